"""Write drawings to files: figures in several formats, tables as LaTeX, and a file with all captions."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import plotly.graph_objects as go

from ivlens.common.names import path_of
from ivlens.common.saves import filling
from ivlens.show.figures.images import one_browser
from ivlens.show.figures.paper import USUAL, Drawing, Paper
from ivlens.show.figures.theme import IMAGE_SUFFIXES, write_figure

FORMATS = ("pdf", "png", "svg", "html", "json")
PNG_SCALE = 3.125  # 300 pixels per inch, since figures have 96


def write_set(
    drawings: Sequence[Drawing], folder: str | Path, formats: Sequence[str], paper: Paper = USUAL
) -> tuple[list[Path], str]:
    """Write every figure in every format, every table as `.tex`, and all captions to `captions.md`.

    HTML pages share one `plotly.min.js` in the same folder and need no network. If images cannot be made on this
    machine, all figures are written as HTML instead.

    Args:
        formats: some of `FORMATS`.
        paper: widths and font of the paper that the figures are for.

    Returns:
        The files, and the reason why images could not be made; an empty text if they were.

    Raises:
        ValueError: an unknown format, or two drawings of one name.
        OSError: the folder cannot be made or written to.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        raise ValueError(f"formats are {', '.join(unknown) or 'none'}, expected some of {', '.join(FORMATS)}.")
    root, trouble, wanted = path_of(folder, "folder"), "", list(dict.fromkeys(formats))
    with filling(root) as scratch, one_browser():
        # after the first image that fails, no other is tried: the reason is the same for all of them
        for drawing in (one for one in drawings if one.figure is not None and not trouble):
            try:
                for suffix in (name for name in wanted if f".{name}" in IMAGE_SUFFIXES):
                    write_figure(drawing.printed(paper), scratch / f"{drawing.name}.{suffix}", scale=_scale(suffix))
            except (ImportError, FileNotFoundError, TimeoutError) as error:
                trouble = str(error)
        pages = [name for name in wanted if f".{name}" not in IMAGE_SUFFIXES]
        for drawing in drawings:
            _write_others(drawing, scratch, pages or (["html"] if trouble else []), paper)
        (scratch / "captions.md").write_text(_captions(drawings), encoding="utf-8")
        files = sorted(path.relative_to(scratch) for path in scratch.rglob("*") if path.is_file())
    return [root / file for file in files], trouble


def write_figures(figures: Mapping[Path, go.Figure]) -> tuple[list[Path], str]:
    """Write each figure to its path; if images cannot be made on this machine, write HTML files instead.

    Returns:
        The files, and the reason why images could not be made; an empty text if they were.

    Raises:
        ValueError: a path has an unknown suffix.
        OSError: a file cannot be written.
    """
    written, trouble = [], ""
    with one_browser():
        for path, figure in figures.items():
            is_image = path.suffix.lower() in IMAGE_SUFFIXES
            try:
                written.append(write_figure(figure, path.with_suffix(".html") if trouble and is_image else path))
            except (ImportError, FileNotFoundError, TimeoutError) as error:
                trouble = str(error)
                written.append(write_figure(figure, path.with_suffix(".html")))
    return written, trouble


def _scale(suffix: str) -> float:
    """Pixels of the image for each pixel of the figure; a vector format has the printed size at scale 1."""
    return PNG_SCALE if suffix == "png" else 1.0


def _write_others(drawing: Drawing, folder: Path, formats: Sequence[str], paper: Paper) -> None:
    """Write what needs no browser: a table as LaTeX, a figure as JSON or HTML."""
    if drawing.figure is None:
        (folder / f"{drawing.name}.tex").write_text(drawing.table, encoding="utf-8")
        return
    if "json" in formats:
        write_figure(drawing.printed(paper), folder / f"{drawing.name}.json")
    if "html" in formats:
        # the figure for screens: a page has room for the title, and hover texts
        page = go.Figure(drawing.figure)
        page.write_html(folder / f"{drawing.name}.html", include_plotlyjs="directory", config={"displaylogo": False},
                        div_id=drawing.name)  # fmt: skip


def _captions(drawings: Sequence[Drawing]) -> str:
    """All captions as a Markdown list."""
    lines = {f"{drawing.name}{'.tex' if drawing.table else ''}": drawing.caption for drawing in drawings}
    return "# Captions\n\n" + "".join(f"- `{name}`: {caption}\n" for name, caption in lines.items())
