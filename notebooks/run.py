"""Run the notebooks and keep their outputs: `make notebooks`.

    python notebooks/run.py [--out FOLDER] [NAME ...]

Each `NAME.py` (percent format, what is edited) becomes `NAME.ipynb` beside it, or in FOLDER, with what running it
showed; figures are PNGs. Under CI (the variable is set) outputs go to out/notebooks: there only running counts.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jupytext
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError

from ivlens.show.figures.images import find_browser

HERE = Path(__file__).parent
SECONDS = 120  # for one notebook, on two cores
CELL_SECONDS = 300  # where it is given up, on a busy machine
MOST_BYTES = 1_000_000
REAL = '"smollm2"'  # what a notebook on the real model names

# In a reader's Jupyter figures are live; what is kept are images. Each has a browser of its own: one that
# serves them all (kaleido.start_sync_server) has been seen to wait for ever.
STARTUP = """
import plotly.io as pio, warnings
warnings.filterwarnings("ignore", message="The kopts argument is ignored")
pio.renderers["png"].width, pio.renderers["png"].scale = 760, 1.5
pio.renderers.default = "png"
"""


def run(source: Path, target: Path) -> float:
    """Run one notebook; return its seconds. One that hangs is run once more."""
    try:
        return _run(source, target)
    except CellTimeoutError:
        print(f"{source.stem}: a cell took more than {CELL_SECONDS} s; once more", file=sys.stderr, flush=True)
        return _run(source, target)


def _run(source: Path, target: Path) -> float:
    notebook = jupytext.read(source)
    notebook.metadata["jupytext"] = {"formats": "ipynb,py:percent"}
    notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    start = time.perf_counter()
    place = {"metadata": {"path": str(HERE)}}
    limits = {"timeout": CELL_SECONDS, "startup_timeout": 300}
    NotebookClient(notebook, kernel_name="python3", resources=place, **limits).execute()
    seconds = time.perf_counter() - start
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"  # the same in every run
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not _is_noise(output)]
    for name in ("language_info", "widgets"):
        notebook.metadata.pop(name, None)
    jupytext.write(notebook, target, fmt="ipynb")
    return seconds


def _is_noise(output: Any) -> bool:
    """A progress bar of a library, or advice that only another library can act on."""
    if output.output_type not in ("stream", "display_data"):
        return False
    text = output.text if output.output_type == "stream" else output.get("data", {}).get("text/plain", "it/s]")
    if "image/png" in output.get("data", {}):
        return False
    is_bar = "it/s]" in text or "TqdmWarning" in text or not text.strip()
    return is_bar or ("transformers" in text and "FutureWarning" in text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="stems of notebooks; all by default")
    parser.add_argument("--out", type=Path, default=Path("out/notebooks") if os.environ.get("CI") else HERE)
    given = parser.parse_args()
    found = {path.stem: path for path in sorted(HERE.glob("[0-9]*.py"))}
    unknown = [name for name in given.names if name not in found]
    if unknown:
        print(f"there is no notebook {', '.join(unknown)}, expected some of {', '.join(found)}.", file=sys.stderr)
        return 2
    browser = find_browser()
    if not browser:
        print(
            "notebooks keep their figures as images, which need Chromium, and none was found; install it (Debian: "
            "apt-get install --no-install-recommends chromium fonts-dejavu-core) or set BROWSER_PATH.",
            file=sys.stderr,
        )
        return 2
    os.environ["BROWSER_PATH"] = browser  # kernels draw with it
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as profile:
        startup = Path(profile) / "profile_default" / "startup"
        startup.mkdir(parents=True)
        # a kernel on ports of this machine, whose warning about that would stand in every log
        (startup.parent / "ipython_kernel_config.py").write_text("c.IPKernelApp.log_level = 40\n", encoding="utf-8")
        (startup / "00-figures.py").write_text(STARTUP, encoding="utf-8")
        os.environ["IPYTHONDIR"] = profile
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")]))
        failed = 0
        own_threads = os.environ.get("OMP_NUM_THREADS")
        for name in given.names or found:
            # a second thread makes a small model slower on a busy machine, and a real one faster
            few = "" if REAL in found[name].read_text(encoding="utf-8") else "1"
            os.environ["OMP_NUM_THREADS"] = own_threads or few or str(os.cpu_count() or 1)
            target = given.out / f"{name}.ipynb"
            try:
                seconds = run(found[name], target)
            except (CellExecutionError, CellTimeoutError) as error:
                print(f"{name}: failed\n{error}", file=sys.stderr)
                failed += 1
                continue
            size = target.stat().st_size
            late = f", more than {SECONDS}" if seconds > SECONDS else ""
            large = f", more than {MOST_BYTES}" if size > MOST_BYTES else ""
            print(f"{name}: {seconds:.0f} s{late}, {size} bytes{large}", flush=True)
            failed += bool(large)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
