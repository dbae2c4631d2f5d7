"""`ivlens store`: list, check, clean or export a store of results."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from ivlens.cli._options import AsJson
from ivlens.cli._output import print_json, print_table
from ivlens.common.names import shown

if TYPE_CHECKING:
    from ivlens.common.store.entries import Entry
    from ivlens.common.store.store import Finding, Store

app = App(name="store", help="List, check, clean or export a store of results.", help_format="markdown")

Folder = Annotated[Path, Parameter(help="Folder of the store.")]


@app.command(name="ls")
def list_entries(store: Folder, /, *, kind: str | None = None, as_json: AsJson = False) -> None:
    """List the results in a store, and the cells that failed.

    Example: `ivlens store ls out/store --kind effects`

    Args:
        kind: List only results of this kind.
    """
    opened = _opened(store)
    found = [entry for entry in opened.entries(kind)]
    failed = opened.failures()
    rows = [
        {
            "key": entry.key,
            "kind": entry.kind,
            "labels": dict(entry.labels),
            "bytes": entry.n_bytes,
            "digest": entry.digest,
            "seconds": entry.made.get("seconds"),
            "at": entry.made.get("at"),
        }
        for entry in found
    ]
    if as_json:
        print_json({"entries": rows, "failed": failed})
        return
    varied = _varied(found)
    lines = [
        [row["key"][:12], row["kind"], _label_text(row["labels"], varied), f"{row['bytes'] / 1e3:.0f} kB"]
        for row in rows
    ]
    print_table(["entry", "kind", "labels", "size"], lines)
    print(f"\n{len(found)} results, {sum(entry.n_bytes for entry in found) / 1e6:.1f} MB")
    for key, about in failed.items():
        line = f"failed: {key[:12]} {about.get('cell', '')}: {about.get('error', '')}"
        print(shown(line)[:200])  # errors may be pages long, and hold what terminals obey


@app.command
def verify(store: Folder, /, *, as_json: AsJson = False) -> int:
    """Compare every file of a store with its checksum, and change nothing. The exit status is 1 if a file is damaged.

    Example: `ivlens store verify out/store`
    """
    from ivlens.common.store.care import verify

    whole, findings = verify(_opened(store))
    if as_json:
        print_json({"whole": whole, "findings": _plain(findings)})
    else:
        _print(findings)
        print(f"{whole} results are whole, {len(findings)} findings")
    return 1 if findings else 0


@app.command
def gc(
    store: Folder,
    /,
    *,
    other_versions: Annotated[bool, Parameter(negative="")] = False,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove damaged results, files that killed processes left behind, and locks that no process holds.

    Example: `ivlens store gc out/store --dry-run`

    Args:
        other_versions: Also remove the results of other versions of ivlens.
        dry_run: Print what would be removed, and remove nothing.
    """
    from ivlens.common.store.care import collect_garbage

    findings = collect_garbage(_opened(store), other_versions=other_versions, dry_run=dry_run)
    if as_json:
        print_json({"removed": [] if dry_run else _plain(findings), "found": _plain(findings)})
        return
    _print(findings)
    size = sum(finding.n_bytes for finding in findings) / 1e6
    print(f"{len(findings)} things, {size:.1f} MB, {'would be removed' if dry_run else 'removed'}")


@app.command
def export(store: Folder, /, *, out: Path, kind: str | None = None, as_json: AsJson = False) -> None:
    """Write the rows of all results of a store into one table.

    Example: `ivlens store export out/store --kind interventions --out interventions.parquet`

    Args:
        out: File to write: .parquet, .csv or .json.
        kind: Write only results of this kind, which have the same columns.
    """
    from ivlens.common.store.care import export

    n_rows = export(_opened(store), out, kind)
    if as_json:
        print_json({"rows": n_rows, "out": str(out)})
    else:
        print(f"written: {out} ({n_rows} rows)")


def _opened(folder: Path) -> "Store":
    """The store in a folder, or the one that a command keeps in its folder; any other folder is an error."""
    from ivlens.common.store.store import KEPT, MARK, Store
    from ivlens.common.store.written import said_of

    # `Store` would make a new store in any folder
    for place in (folder, folder / KEPT):
        if (place / MARK).is_file():
            return Store(place)
    what = said_of(folder) or "no store"
    raise FileNotFoundError(
        f"{str(folder)!r} is {what}, expected the --store folder of `ivlens sweep`, or the --out folder of a command "
        "that keeps a store in it; check the path."
    )


def _varied(found: "list[Entry]") -> set[tuple[str, str]]:
    """Pairs of a kind and a label with more than one value; other labels do not help to tell results apart."""
    values: dict[tuple[str, str], set[object]] = {}
    for entry in found:
        for name, value in entry.labels.items():
            values.setdefault((entry.kind, name), set()).add(value)
    # by kind: a label that varies among effects may be the same in all vectors
    return {each for each, seen in values.items() if len(seen) > 1}


def _label_text(labels: dict[str, object], varied: set[tuple[str, str]]) -> str:
    """Model, task and the labels that vary, as the text of a cell."""
    kind = str(labels.get("kind", ""))
    first = [str(labels[name]) for name in ("model", "task") if name in labels]
    others = [name for name in labels if name not in ("kind", "model", "task")]
    return " ".join([*first, *(f"{name}={labels[name]}" for name in others if (kind, name) in varied or not first)])


def _plain(findings: "list[Finding]") -> list[dict[str, object]]:
    """Findings as plain values, for JSON."""
    return [{"what": each.what, "path": str(each.path), "bytes": each.n_bytes} for each in findings]


def _print(findings: "list[Finding]") -> None:
    """Print a line for each finding."""
    for finding in findings:
        print(shown(f"{finding.path}: {finding.what}"))
