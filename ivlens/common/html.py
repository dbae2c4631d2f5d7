"""Small HTML tables for the cells of notebooks: escaped, and never wider than the cell that shows them.

Whatever comes from a task, a model or a file is escaped, since a notebook would run the scripts in it.
"""

from collections.abc import Iterable, Mapping
from html import escape
from typing import TYPE_CHECKING, Any

from ivlens.common.names import shown

if TYPE_CHECKING:
    import pandas as pd

MOST_LETTERS = 100  # of a text in a cell; all of it, up to `MOST_TITLE`, is shown on hovering
MOST_TITLE = 2_000


def titled(title: str, content: str) -> str:
    """A title and what stands below it. Words that are longer than a cell are broken."""
    return f'<div style="max-width:100%;overflow-wrap:anywhere"><p><b>{short(title)}</b></p>{content}</div>'


def facts(named: Mapping[str, Any]) -> str:
    """A table of two columns: the name of each fact and its value."""
    rows = "".join(f"<tr><th>{short(name)}</th>{_cell(value)}</tr>" for name, value in named.items())
    return f"<table>{rows}</table>"


def table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """A table with a line of headings."""
    top = "".join(f"<th>{short(name)}</th>" for name in head)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def of_frame(frame: "pd.DataFrame", title: str) -> str:
    """A data frame as a table without its index; what is missing stays empty."""
    missing = frame.isna().to_numpy()  # of whatever kind: NaN, None, pandas' own
    values = frame.to_numpy(object)
    rows = [
        ["" if gone else _plain(value) for value, gone in zip(*row, strict=True)]
        for row in zip(values, missing, strict=True)
    ]
    return titled(title, table(map(str, frame.columns), rows))


def short(value: Any) -> str:
    """A text in one line of at most `MOST_LETTERS` letters, escaped."""
    text = shown(value)  # writes control characters out
    return escape(text if len(text) <= MOST_LETTERS else text[: MOST_LETTERS - 1] + "…")


def _cell(value: Any) -> str:
    """A cell; a text that is cut has all of it as its title."""
    text = shown(value)
    title = f' title="{escape(text[:MOST_TITLE])}"' if len(text) > MOST_LETTERS else ""
    return f"<td{title}>{short(value)}</td>"


def _plain(value: Any) -> Any:
    """A number without zeros at its end."""
    return f"{value:g}" if isinstance(value, float) else value
