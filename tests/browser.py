"""A headless Chromium and a running lab, for the tests that look at the page as a user does."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from warm import Warm

REQUIRED = "IVLENS_REQUIRE_BROWSER"
REMEDY = (
    "pip install -e '.[dev]' and install Chromium (Debian: apt-get install --no-install-recommends chromium "
    "fonts-dejavu-core)"
)


def chromium() -> str:
    """The browser; where there is none, the tests skip, or fail if they are required."""
    found = os.environ.get("BROWSER_PATH") or shutil.which("chromium") or shutil.which("chromium-browser")
    try:
        import axe_playwright_python
        import panel
        import playwright

        missing = None if found and axe_playwright_python and panel and playwright else "no Chromium"
    except ImportError as error:
        missing = str(error)
    if missing is None:
        assert found is not None
        return found
    if os.environ.get(REQUIRED):
        pytest.fail(f"{REQUIRED} is set, but the browser tests cannot run: {missing}; {REMEDY}.")
    pytest.skip(f"browser tests: {missing}; {REMEDY}")


@contextmanager
def running(*arguments: str, announce: str = r"ivlens lab: (http://\S+)", warm: bool = True) -> Iterator[str]:
    """Run `python -m ...`, from a warm process if `warm`, and yield the address it announces."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    command = ["-m", *arguments]
    with Warm(command, **options) if warm else subprocess.Popen([sys.executable, *command], **options) as job:
        try:
            assert job.stdout is not None
            said = []
            for line in job.stdout:
                said.append(line)
                if found := re.search(announce, line):
                    yield found[1]
                    break
            else:
                raise AssertionError(f"{' '.join(arguments)} ended without an address:\n{''.join(said)}")
        finally:
            job.terminate()
            job.communicate(timeout=30)
