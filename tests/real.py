"""The real model, for tests marked `real`."""

import os

import pytest
import torch

REQUIRED = "IVLENS_REQUIRE_REAL"


def smollm2() -> torch.nn.Module:
    """The bridge of `load_model("smollm2")`, fetched if need be; where it cannot be had, tests skip or fail.

    Raises:
        AssertionError: it cannot be had, and `IVLENS_REQUIRE_REAL` is set.
    """
    from ivlens.models import get_model, load_model

    try:
        get_model("smollm2")
    except (OSError, ImportError, ValueError) as error:
        without_it(str(error))
    return load_model("smollm2")


def without_it(why: str) -> None:
    """Skip the test that asked, and say how to get the model; or fail, if it is required here."""
    if os.environ.get(REQUIRED, "") not in ("", "0"):
        pytest.fail(f"{REQUIRED} is set, but the real model cannot be had: {why}")
    pytest.skip(f"the real model is not here: {why}; get it with `ivlens get smollm2`")
