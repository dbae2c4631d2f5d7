"""`ivlens figures`: draw stored results as figures and tables for a paper."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from ivlens.cli._options import AsJson
from ivlens.cli._output import print_json, print_table, told

if TYPE_CHECKING:
    from ivlens.show.figures.paper import Paper


def figures(
    *,
    results: Annotated[list[Path], Parameter(name="--from", negative="")],
    out: Path = Path("figures"),
    formats: Annotated[str, Parameter(name="--format")] = "pdf,png",
    width: str | None = None,
    font: str | None = None,
    rename: Annotated[list[str], Parameter(negative="")] = [],  # noqa: B006, never changed
    as_json: AsJson = False,
) -> int:
    """Draw stored results as figures and LaTeX tables, at the size in which a paper prints them.

    Files are recognised by their content: head effects, vectors, sweeps, judged conditions, logs of trainings and
    benchmark grids, as `ivlens demo`, `effects`, `vector`, `tune` and `bench` write them. Figures are as wide as one
    column (3.3 inches) or as a page (6.8 inches), have fonts of 7 points or more and no titles; captions.md explains
    each figure.

    Example: `ivlens figures --from out/demo --out figures --format pdf,png,svg,html`

    Args:
        results: Folder with results; all folders inside it are searched too, and each counts as a run of its own. The
            option can be given several times: names of figures then start with the name of the folder.
        out: Folder to write to.
        formats: Formats separated by commas: pdf, png (300 dpi), svg, html (works offline), json.
        width: Width of a column and of the page in inches, such as 3.25,6.75; one number for a paper of one column.
        font: Font of the figures, such as "Times New Roman", which Chromium must find.
        rename: What a task is called in figures and tables, as task=Label; the option can be given several times.
    """
    from ivlens.common.disk import check_folder
    from ivlens.common.store.written import said_of
    from ivlens.show.figures.export import write_set
    from ivlens.show.figures.found import find_results
    from ivlens.show.figures.kinds import draw_all

    paper = _paper(width, font)
    check_folder(out)
    drawings, unknown = draw_all(find_results(*results, names=_names(rename)))
    if not drawings:  # an empty folder would look like success
        what = next(filter(None, map(said_of, results)), "")
        raise ValueError(
            f"--from {', '.join(map(repr, map(str, results)))} has {len(unknown)} tables or artefacts, none of a known "
            f"kind{f' (it is {what})' if what else ''}, expected the --out folder of a command that measures, or a "
            "store; name one."
        )
    files, trouble = write_set(drawings, out, [part.strip() for part in formats.split(",") if part.strip()], paper)
    if as_json:
        names = {"files": files, "left_out": [file.path for file in unknown]}
        print_json({key: [str(path) for path in paths] for key, paths in names.items()} | {"trouble": trouble or None})
    else:
        rows = [[one.name, "table" if one.table else one.width, one.caption.split(".")[0]] for one in drawings]
        print_table(["name", "size", "shows"], rows)
        print(f"\nwritten: {len(files)} files in {out}")
    return told(trouble)


def _paper(width: str | None, font: str | None) -> "Paper":
    """The paper that --width and --font describe."""
    from ivlens.show.figures.paper import PAPER_FONT, Paper

    given: dict[str, Any] = {}
    if width is not None:
        try:
            column, *page = [float(part) for part in width.split(",")]
            (page,) = page or [column]
        except ValueError:
            raise ValueError(
                f"--width is {width!r:.40}, expected one or two numbers of inches, such as 3.25,6.75."
            ) from None
        given |= {"column": column, "page": page}
    if font is not None:
        given["font"] = f"{Paper(font=font).font}, {PAPER_FONT}"  # checked before others are added
    return Paper(**given)


def _names(rename: list[str]) -> dict[str, str]:
    """The labels of tasks that --rename gives."""
    pairs = [text.partition("=") for text in rename]
    wrong = [
        text for text, (task, is_given, name) in zip(rename, pairs, strict=True) if not (task and is_given and name)
    ]
    if wrong:
        raise ValueError(
            f"--rename is {wrong[0]!r:.60}, expected a task and its label, such as third_person='3rd person'."
        )
    return {task: name for task, _, name in pairs}
