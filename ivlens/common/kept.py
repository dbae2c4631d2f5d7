"""Tables that are measured once and kept, with what they were measured on."""

import json
import logging
import re
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ivlens.common.files import write_whole
from ivlens.common.version import __version__

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger("ivlens")
KEY = "ivlens_key"
RENAMED = {"greedy": "accuracy"}  # measures, as older tables call them


def digest(what: Any) -> str:
    """One short text for plain values; others by their `str`."""
    return sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:16]


def is_digest(name: str) -> bool:
    """Whether a text can be what `digest` gives."""
    return re.fullmatch("[0-9a-f]{16}", name) is not None


def key_of(what: Any) -> str:
    """The key of something kept: what it depends on, this version of ivlens included."""
    return f"{digest(what)} {__version__}"


def kept_table(path: Path | None, key: Mapping[str, Any], make: "Callable[[], pd.DataFrame]") -> "pd.DataFrame":
    """The table at `path`, or where there is none (or a damaged one) what `make` makes, which is then kept there.

    Raises:
        ValueError: the table there was made for another key, or by another version of ivlens.
    """
    found = find_table(path, key)
    return make_table(path, key, make) if found is None else found


def make_table(path: Path | None, key: Mapping[str, Any], make: "Callable[[], pd.DataFrame]") -> "pd.DataFrame":
    """What `make` makes, kept at `path` whatever is there."""
    made = make()
    made.attrs[KEY] = key_of(key)
    if path is not None:
        write_whole(path, made.to_parquet)
    return made


def find_table(path: Path | None, key: Mapping[str, Any]) -> "pd.DataFrame | None":
    """The table at `path`; None where there is none, or a damaged one.

    Raises:
        ValueError: as `kept_table`.
    """
    import pandas as pd

    if path is None or not path.exists():
        return None
    try:
        found = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        logger.warning("%s is damaged (%s); it is measured again.", path, type(error).__name__)
        return None
    check_key(path, found.attrs.get(KEY), key_of(key))
    return renamed(found)


def renamed(table: "pd.DataFrame") -> "pd.DataFrame":
    """A table with measures under the names they have now, as columns or in a column `measure`."""
    found = table.rename(columns=RENAMED)
    return found.assign(measure=found["measure"].replace(RENAMED)) if "measure" in found else found


def check_key(path: Path, found: Any, expected: str) -> None:
    """Refuse what was kept for something else, or by another version of ivlens, which may measure other numbers.

    Raises:
        ValueError: another key.
    """
    check_version(path, version_in(found))
    if found != expected:
        raise ValueError(
            f"{str(path)!r} was measured on other weights, tasks or options, expected the same ones; use another "
            "folder, or remove the file."
        )


def version_in(key: Any) -> str:
    """The version of ivlens in a key; empty for one from before versions were in keys."""
    return key.partition(" ")[2] if isinstance(key, str) else ""


def check_version(path: Path, found: Any) -> None:
    """Refuse what another version of ivlens made: going on from it would mix two kinds of numbers.

    Raises:
        ValueError: another version, or none.
    """
    if found != __version__:
        made_by = f"ivlens {found!s:.40}" if found else "an older ivlens"
        raise ValueError(
            f"{str(path)!r} was made by {made_by}, expected ivlens {__version__}; go on with that version, use another "
            "folder, or remove the file to begin anew."
        )
