"""`ivlens doctor`: versions, hardware, missing parts, and how to install them."""

import json
import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from ivlens.common.version import __version__

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
_MAC_CHROME = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
_REMEDIES = {
    "torch": "pip install torch",
    "transformer-lens": "pip install 'transformer-lens>=4.3,<5'",
    "transformers": "pip install transformers",
    "pocket": "ivlens pocket train, or reinstall ivlens: the wheel contains the checkpoint",
    "smollm2": "ivlens get smollm2; only needed to run ivlens on this real model",
    "gguf": "pip install 'ivlens[gguf]'; only needed for ivlens get, GGUF files and control vectors",
    "panel": "pip install 'ivlens[lab]'; only needed for ivlens.lab and ivlens lab",
    "kaleido": "pip install 'ivlens[export]'; only needed for PNG, SVG and PDF figures",
    "chrome": "install Chrome or Chromium (Debian: apt-get install --no-install-recommends chromium fonts-dejavu-core),"
    " or set BROWSER_PATH; only needed for PNG, SVG and PDF figures",
}
_REQUIRED = ("torch", "transformer-lens", "transformers", "pocket")  # without one of these the exit status is 1


def doctor(*, as_json: Annotated[bool, Parameter(name="--json", negative="")] = False) -> int:
    """Show versions and hardware, and how to install what is missing.

    The exit status is 1 if something is missing that ivlens cannot work without, else 0.

    Example: `ivlens doctor --json`

    Args:
        as_json: Print one JSON object instead of a table.
    """
    facts = survey()
    if as_json:
        print(json.dumps(facts, indent=2))
        return 0 if facts["ok"] else 1
    for name, value in facts.items():
        if name not in ("ok", "remedies"):
            print(f"{name:<18}{'not found' if value is None else value}")
    for name, remedy in facts["remedies"].items():
        print(f"\n{name} is missing: {remedy}")
    return 0 if facts["ok"] else 1


def survey() -> dict[str, Any]:
    """Return versions and hardware by name, None for a missing part; also `ok`, and `remedies` for missing parts."""
    facts: dict[str, Any] = {
        "ivlens": __version__,
        "python": f"{platform.python_version()} ({sys.executable})",
        "platform": platform.platform(),
        **_torch_facts(),
        "transformer-lens": _version("transformer-lens"),
        "transformers": _version("transformers"),
        "plotly": _version("plotly"),
        "gguf": _version("gguf"),
        "panel": _version("panel"),
        "kaleido": _version("kaleido"),
        "chrome": _chrome(),
        "cores": _cores(),
        "memory_gib": _memory_gib(),
        "pocket": _known("pocket"),
        "smollm2": _known("smollm2"),
    }
    facts["ok"] = all(facts[name] is not None for name in _REQUIRED)
    facts["remedies"] = {name: remedy for name, remedy in _REMEDIES.items() if facts[name] is None}
    return facts


def _torch_facts() -> dict[str, Any]:
    """Return the version and build of torch, the GPUs it sees, and its number of threads."""
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a shared library of a CUDA build is missing
        return {"torch": None, "torch_build": f"import failed: {error}", "gpu": "none", "threads": None}
    cuda, rocm = torch.version.cuda, torch.version.hip
    build = f"CUDA {cuda}" if cuda else f"ROCm {rocm}" if rocm else "CPU"
    gpu = "none"
    if torch.cuda.is_available():
        devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        gpu = ", ".join(f"{device.name} ({device.total_memory / 2**30:.0f} GiB)" for device in devices)
    elif torch.backends.mps.is_available():
        gpu = "Apple (mps)"
    return {"torch": torch.__version__, "torch_build": build, "gpu": gpu, "threads": torch.get_num_threads()}


def _version(package: str) -> str | None:
    """Return the installed version of a package; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _chrome() -> str | None:
    """Return the browser that writes figures as images; None if there is none."""
    chosen = os.environ.get("BROWSER_PATH")
    if chosen:  # kaleido tries no other browser then
        return chosen if Path(chosen).is_file() else None
    found = next((path for name in _BROWSERS if (path := shutil.which(name))), None)
    return found or (_MAC_CHROME if Path(_MAC_CHROME).is_file() else None)


def _cores() -> int:
    """Return the number of cores that this process may use: in a container fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory_gib() -> float | None:
    """Return the memory of the machine, or of the container if that is less, in GiB."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
    try:
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # no such limit, or "max"
        pass
    return round(total / 2**30, 1)


def _known(name: str) -> str | None:
    """Return the folder of a model that ivlens knows by name; None if the model is not there."""
    try:
        from ivlens.models.known import KNOWN

        return str(KNOWN[name].folder) if KNOWN[name].is_here() else None
    except (ImportError, OSError):
        return None
