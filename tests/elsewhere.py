"""The tools that vectors are exported for. `make elsewhere` has them in an environment of its own."""

import importlib
import importlib.util
import os
from types import ModuleType

import pytest

REQUIRED = "IVLENS_REQUIRE_ELSEWHERE"


def missing(name: str) -> bool:
    """Whether a tool is not here and need not be; where it must be, its tests run and fail."""
    return importlib.util.find_spec(name) is None and os.environ.get(REQUIRED, "") in ("", "0")


def tool(name: str) -> ModuleType:
    """A package of a tool; where it is not installed, the test that asked skips, or fails if it is required."""
    if missing(name):
        pytest.skip(f"{name} is not here: run `make elsewhere`")
    return importlib.import_module(name)
