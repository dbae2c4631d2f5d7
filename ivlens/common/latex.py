"""Texts and tables as LaTeX that pdflatex compiles, with the package booktabs and no other.

Nothing that is written has letters beyond ASCII: which of them pdflatex knows depends on its fonts.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_SPECIAL = {char: f"\\{char}" for char in "&%$#_{}"} | {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": "$<$", ">": "$>$", "|": "$|$",
}  # fmt: skip
_MATHS = {
    "−": "-", "±": r"\pm", "×": r"\times", "·": r"\cdot", "≈": r"\approx", "≤": r"\leq", "≥": r"\geq", "≠": r"\neq",
    "→": r"\rightarrow", "←": r"\leftarrow", "↔": r"\leftrightarrow", "²": "^{2}", "³": "^{3}", "∞": r"\infty",
    "Δ": r"\Delta", "α": r"\alpha", "β": r"\beta", "γ": r"\gamma", "δ": r"\delta", "θ": r"\theta", "λ": r"\lambda",
    "µ": r"\mu", "μ": r"\mu", "π": r"\pi", "σ": r"\sigma", "Σ": r"\Sigma",
}  # fmt: skip
_LETTERS = {
    "–": "--", "—": "---", "‘": "`", "’": "'", "“": "``", "”": "''", "„": ",,", '"': "''", "…": r"\ldots{}",
    "\N{NO-BREAK SPACE}": "~", "°": r"\textdegree{}", "ß": r"\ss{}", "æ": r"\ae{}", "Æ": r"\AE{}", "œ": r"\oe{}",
    "Œ": r"\OE{}", "ø": r"\o{}", "Ø": r"\O{}", "ł": r"\l{}", "Ł": r"\L{}", "ı": r"\i{}", "§": r"\S{}",
    "•": r"\textbullet{}", "€": "EUR",
}  # fmt: skip
_ACCENTS = {
    "\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0304": "=", "\u0306": "u", "\u0307": ".",
    "\u0308": '"', "\u030a": "r", "\u030b": "H", "\u030c": "v", "\u0327": "c",
}  # fmt: skip


@dataclass(frozen=True)
class Look:
    """How a table is set.

    Attributes:
        columns: LaTeX's letters for the columns.
        size: the command for the size of its letters.
        gap: half the space between two columns, in points.
    """

    columns: str
    size: str = "footnotesize"
    gap: int = 3


def escaped(text: object) -> str:
    """A text as LaTeX: what has a meaning there is written out, and letters beyond ASCII become commands.

    Letters that have none, such as Chinese ones, become their numbers: `U+4E2D`. Line breaks become spaces.
    """
    parts = []
    for letter in " ".join(unicodedata.normalize("NFC", str(text)).split()):
        if letter in _LETTERS:
            parts.append(_LETTERS[letter])
        elif letter in _SPECIAL:
            parts.append(_SPECIAL[letter])
        elif letter in _MATHS:
            parts.append(f"${_MATHS[letter]}$")
        else:
            parts.append(letter if " " <= letter <= "~" else _accented(letter))
    return "".join(parts)


def number(value: float, digits: int = 2) -> str:
    """A number with so many digits after the point, with a minus sign; `--` for NaN."""
    if value != value:
        return "--"
    text = f"{value:.{digits}f}"
    # "-0.00" would be a loss of nothing
    return f"$-${text[1:]}" if text.startswith("-") and float(text) else text.removeprefix("-")


def with_interval(value: float, low: float, high: float, digits: int = 2) -> str:
    """A number and its interval in smaller letters; the number alone where there is no interval (NaN)."""
    if value != value or low != low or high != high:
        return number(value, digits)
    return f"{number(value, digits)} {{\\scriptsize [{number(low, digits)}, {number(high, digits)}]}}"


def stacked(text: object, most: int = 14) -> str:
    """A heading broken into lines of about `most` letters, one below the other, at the right side of its column."""
    lines: list[str] = []
    for word in str(text).split():
        if lines and len(lines[-1]) + 1 + len(word) <= most:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    if len(lines) < 2:
        return escaped(text)
    return r"\begin{tabular}[b]{@{}r@{}}" + r" \\ ".join(map(escaped, lines)) + r"\end{tabular}"


def wrapped(text: object) -> str:
    """A text for a column of fixed width (`p`): lines may end after `_`, `/` and `-`, and spaces are not stretched."""
    broken = re.sub(r"(\\_|/|(?<!-)-(?!-))(?=.)", r"\1\\allowbreak{}", escaped(text))
    return f"{{\\raggedright {broken}\\par}}"


def latex_table(head: Sequence[str], rows: Iterable[Sequence[str]], look: Look) -> str:
    """A table of these cells, which are LaTeX already.

    Args:
        head: the names of the columns.
        rows: the cells of each row; a row of none is a rule between rows.
        look: columns and sizes.
    """
    lines = [" & ".join(row) + r" \\" if row else r"\midrule" for row in rows]
    body = "\n".join([r"\toprule", " & ".join(head) + r" \\", r"\midrule", *lines, r"\bottomrule"])
    return (
        f"{{\\{look.size}\\setlength{{\\tabcolsep}}{{{look.gap}pt}}%\n"
        f"\\begin{{tabular}}{{{look.columns}}}\n{body}\n\\end{{tabular}}}}\n"
    )


def _accented(letter: str) -> str:
    """A letter with its accent as a command, such as `\\'{e}`; its number where there is no such command."""
    first, *marks = unicodedata.normalize("NFD", letter)
    if first.isascii() and first.isalpha() and len(marks) == 1 and marks[0] in _ACCENTS:
        base = f"\\{first}" if first in "ij" else first  # these two lose their dots below an accent
        return f"\\{_ACCENTS[marks[0]]}{{{base}}}"
    return f"U+{ord(letter):04X}"
