"""A set of drawings as files: figures in several formats, tables as LaTeX, captions beside them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import plotly.graph_objects as go

from ivlens.common.saves import filling
from ivlens.show.figures.paper import Drawing
from ivlens.show.figures.theme import IMAGE_SUFFIXES, find_browser, write_figure

FORMATS = ("pdf", "png", "svg", "html", "json")
PNG_SCALE = 3.125  # of 96 pixels per inch: 300


def write_set(drawings: Sequence[Drawing], folder: str | Path, formats: Sequence[str]) -> tuple[list[Path], str]:
    """Write every figure in every format, every table as `.tex`, and `captions.md`.

    HTML pages share one `plotly.min.js` beside them and need no network. Where no image can be made, figures are
    written as HTML in its place.

    Args:
        formats: some of `FORMATS`.

    Returns:
        The files, and what kept images from being made; an empty text where nothing did.

    Raises:
        ValueError: an unknown format, or two drawings of one name.
        OSError: the folder cannot be made or written to.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        raise ValueError(f"formats are {', '.join(unknown) or 'none'}, expected some of {', '.join(FORMATS)}.")
    root, trouble, wanted = Path(folder), "", list(dict.fromkeys(formats))
    with filling(root) as scratch, _browser(wanted):
        for drawing in (one for one in drawings if one.figure is not None and not trouble):
            try:
                for suffix in (name for name in wanted if f".{name}" in IMAGE_SUFFIXES):
                    write_figure(drawing.printed(), scratch / f"{drawing.name}.{suffix}", scale=_scale(suffix))
            except (ImportError, FileNotFoundError) as error:
                trouble = str(error)
        pages = [name for name in wanted if f".{name}" not in IMAGE_SUFFIXES]
        for drawing in drawings:
            _write_others(drawing, scratch, pages or (["html"] if trouble else []))
        (scratch / "captions.md").write_text(_captions(drawings), encoding="utf-8")
        files = sorted(path.relative_to(scratch) for path in scratch.rglob("*") if path.is_file())
    return [root / file for file in files], trouble


def _scale(suffix: str) -> float:
    # a vector format has the printed size at scale 1
    return PNG_SCALE if suffix == "png" else 1.0


def _write_others(drawing: Drawing, folder: Path, formats: Sequence[str]) -> None:
    if drawing.figure is None:
        (folder / f"{drawing.name}.tex").write_text(drawing.table, encoding="utf-8")
        return
    if "json" in formats:
        write_figure(drawing.printed(), folder / f"{drawing.name}.json")
    if "html" in formats:
        page = go.Figure(drawing.figure)
        page.write_html(folder / f"{drawing.name}.html", include_plotlyjs="directory", config={"displaylogo": False},
                        div_id=drawing.name)  # fmt: skip


def _captions(drawings: Sequence[Drawing]) -> str:
    lines = {f"{drawing.name}{'.tex' if drawing.table else ''}": drawing.caption for drawing in drawings}
    return "# Captions\n\n" + "".join(f"- `{name}`: {caption}\n" for name, caption in lines.items())


@contextmanager
def _browser(formats: Sequence[str]) -> Iterator[None]:
    """One browser for all images, where there is one: starting it takes ten times as long as drawing."""
    if not any(f".{name}" in IMAGE_SUFFIXES for name in formats) or find_spec("kaleido") is None or not find_browser():
        yield  # write_figure says what is missing
        return
    import kaleido

    kaleido.start_sync_server(silence_warnings=True)
    try:
        yield
    finally:
        kaleido.stop_sync_server(silence_warnings=True)
