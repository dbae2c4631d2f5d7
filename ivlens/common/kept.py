"""Tables that are measured once and kept, with what they were measured on."""

import json
import logging
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ivlens.common.files import write_whole
from ivlens.common.foreign import check_parquet

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger("ivlens")
KEY = "ivlens_key"
RENAMED = {"greedy": "accuracy"}  # measures, as older tables call them


def digest(what: Any) -> str:
    """One short text for plain values; others by their `str`."""
    return sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:16]


def kept_table(path: Path | None, key: Mapping[str, Any], make: "Callable[[], pd.DataFrame]") -> "pd.DataFrame":
    """The table at `path`, or where there is none (or a damaged one) what `make` makes, which is then kept there.

    Raises:
        ValueError: the table there was made for another key.
    """
    import pandas as pd

    mark = digest(key)
    if path is not None and path.exists():
        try:
            check_parquet(path)
            found = pd.read_parquet(path)
        except (OSError, ValueError) as error:
            logger.warning("%s is damaged (%s); it is measured again.", path, type(error).__name__)
        else:
            check_key(path, found.attrs.get(KEY), mark)
            return renamed(found)
    made = make()
    made.attrs[KEY] = mark
    if path is not None:
        write_whole(path, made.to_parquet)
    return made


def renamed(table: "pd.DataFrame") -> "pd.DataFrame":
    """A table with measures under the names they have now, as columns or in a column `measure`."""
    found = table.rename(columns=RENAMED)
    return found.assign(measure=found["measure"].replace(RENAMED)) if "measure" in found else found


def check_key(path: Path, found: Any, expected: str) -> None:
    """Refuse what was kept for something else.

    Raises:
        ValueError: another key.
    """
    if found != expected:
        raise ValueError(
            f"{str(path)!r} was measured on other weights, tasks or options, expected the same ones; use another "
            "folder, or remove the file."
        )
