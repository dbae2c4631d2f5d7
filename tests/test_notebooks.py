"""The notebooks as they are committed: paired, narrative, run, small. That they run is what `make notebooks` shows."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "notebooks"
SOURCES = sorted(FOLDER.glob("[0-9]*.py"))
NAMES = pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)


def cells_of(source: Path) -> list[tuple[str, str]]:
    """Kind and text of each cell of a percent script, as a notebook has them."""
    body = re.split(r"^# ---\n", source.read_text(encoding="utf-8"), flags=re.MULTILINE)[-1]
    found = []
    for block in re.split(r"^# %%", body, flags=re.MULTILINE)[1:]:
        head, text = block.split("\n", 1)
        is_text = head.strip() == "[markdown]"
        lines = [re.sub(r"^# ?", "", line) for line in text.splitlines()] if is_text else text.splitlines()
        found.append(("markdown" if is_text else "code", "\n".join(lines).strip()))
    return found


def notebook(source: Path) -> dict:
    return json.loads(source.with_suffix(".ipynb").read_text(encoding="utf-8"))


def test_there_are_five_in_reading_order() -> None:
    assert [path.stem[0] for path in SOURCES] == list("12345")
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == [path.stem for path in SOURCES]


@NAMES
def test_script_and_notebook_are_in_sync(source: Path) -> None:
    kept = [(cell["cell_type"], "".join(cell["source"]).strip()) for cell in notebook(source)["cells"]]
    assert kept == cells_of(source), f"run: make notebooks ARGS={source.stem}"
    assert notebook(source)["metadata"]["jupytext"]["formats"] == "ipynb,py:percent"


@NAMES
def test_it_is_narrative_and_calls(source: Path) -> None:
    code = "\n".join(text for kind, text in cells_of(source) if kind == "code")
    assert not re.search(r"^\s*(def|class|async|lambda)\b", code, re.MULTILINE)
    kinds = [kind for kind, _ in cells_of(source)]
    assert kinds[0] == kinds[-1] == "markdown" and kinds.count("markdown") >= kinds.count("code") * 0.6
    first = next(text for kind, text in cells_of(source) if kind == "code")
    assert re.match(r"(MODEL|CHECKPOINT) = ", first), "the first cell says which model"


@NAMES
def test_it_was_run_and_its_figures_are_images(source: Path) -> None:
    code = [cell for cell in notebook(source)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"], "a warning was kept"
    kinds = [set(output.get("data", {})) for output in outputs]
    assert sum("image/png" in kind for kind in kinds) >= 1
    assert not [kind for kind in kinds if any("plotly" in one or "widget" in one for one in kind)]
    assert "widgets" not in notebook(source)["metadata"]


@NAMES
def test_every_figure_is_explained(source: Path) -> None:
    cells = notebook(source)["cells"]
    for number, cell in enumerate(cells):
        if any("image/png" in output.get("data", {}) for output in cell.get("outputs", [])):
            after = "".join(cells[number + 1]["source"])
            assert cells[number + 1]["cell_type"] == "markdown" and after.startswith("**"), "say how to read the figure"


@NAMES
def test_it_is_small(source: Path) -> None:
    assert source.with_suffix(".ipynb").stat().st_size < 1_000_000
