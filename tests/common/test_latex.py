"""Texts and tables as LaTeX: what pdflatex would refuse or print too wide. Compiled where pdflatex is installed."""

import re
import shutil
import subprocess
import unicodedata
from pathlib import Path

import pandas as pd
import pytest

from ivlens.common.latex import Look, escaped, latex_table, number, stacked, with_interval, wrapped
from ivlens.runs.suites.report import latex, summary_of
from ivlens.show.figures.conditions import LOOKS
from ivlens.show.figures.tables import claims_table, condition_table, tuning_table
from ivlens.show.figures.training import KINDS

PAGE = 6.5 * 72.27  # points
HOSTILE = 'a_b&c%$#{}~^\\ é ñ ü č – — “x” − ≥ ≈ → ² α 中文 \n \U0001f600 <script> | "'
LONG = "instruction_following_in_three_languages/with-a-long-name"
# what the tables may use, none of it from a package but the four rules, which are booktabs'
COMMANDS = {
    "toprule", "midrule", "bottomrule", "begin", "end", "scriptsize", "footnotesize", "setlength", "tabcolsep", "par",
    "raggedright", "allowbreak", "linewidth", "medskip", "textbackslash", "textasciitilde", "textasciicircum", "ldots",
    "textdegree", "textbullet", "approx", "geq", "leq", "neq", "rightarrow", "leftarrow", "leftrightarrow", "pm",
    "times", "cdot", "alpha", "beta", "theta", "ss", "ae", "AE", "oe", "OE", "o", "O", "l", "L", "i", "j", "S", "infty",
    "Delta", "gamma", "delta", "lambda", "mu", "pi", "sigma", "Sigma", "u", "r", "H", "v", "c",
}  # fmt: skip
SYMBOLS = set("&%$#_{}\\`'^~=.\"")
# widths of letters of Computer Modern at 8 points, in points; of all others that of a capital letter
WIDTHS = {**dict.fromkeys("0123456789", 4.25), **dict.fromkeys("ijl.,:;'!|", 2.4), **dict.fromkeys("frst()[]/", 3.3)}
WIDTHS |= {
    **dict.fromkeys("abcdeghknopquvxyz", 4.5),
    **dict.fromkeys("m", 7.1),
    **dict.fromkeys("w", 6.2),
    " ": 2.9,
    "-": 2.9,
}
SMALL = 0.94  # the width of the same letter at 7 points


def tables() -> dict[str, str]:
    """Every table that ivlens writes, with names as they are and as they should not be."""
    judged = [
        {"task": task, "condition": name, "accuracy": 0.5, "accuracy_lo": 0.4, "accuracy_hi": 0.6}
        for task in ("antonym", LONG, HOSTILE) for name in LOOKS
    ]  # fmt: skip
    scores = [
        {"task": task, "role": role, "before": 0.5, "none": 0.2, "instructions_lighter": 0.7, "heads/random_heads": 0.5}
        for task, role in ((LONG, "new"), ("antonym", "earlier"))
    ]  # fmt: skip
    claim = {"text": "It is ≥ 0.9 → kept, said “in words” " * 2, "paper": "−10.24 against +1.93 (R² ≈ 0.87)"}
    claims = [{**claim, "value": -0.01, "low": -0.2, "high": 0.3, "margin": 0.05, "verdict": "not testable here"}]
    cells = [
        {"method": method, "guidance": kind, "order": 0, "seed": seed, "lr": 1e-3, "ap": 0.7 + seed / 50, "fp": 0.2}
        | {"forget": 0.455, "bwt": -0.683 + seed / 70, "gp_change": -0.833 + seed / 90, "ip_change": -0.7}
        for method in ("inclora", "olora") for kind in ("none", "instructions_lighter") for seed in range(6)
    ]  # fmt: skip
    return {
        "conditions": condition_table(pd.DataFrame(judged)),
        "tuning": tuning_table(pd.DataFrame(scores)),
        "claims": claims_table(pd.DataFrame(claims)),
        "bench": latex(summary_of(pd.DataFrame(cells))),
    }


TABLES = tables()
NAMES = pytest.mark.parametrize("name", [*TABLES])


def test_texts_keep_their_meaning_in_plain_letters() -> None:
    assert escaped("a_b & 5 %") == r"a\_b \& 5 \%"
    assert escaped("é ñ ü č ı") == r"\'{e} \~{n} \"{u} \v{c} \i{}" and escaped("í") == r"\'{\i}"
    assert escaped("− ≥ ≈ → ²") == r"$-$ $\geq$ $\approx$ $\rightarrow$ $^{2}$"
    assert escaped("“a” – b—c…") == r"``a'' -- b---c\ldots{}" and escaped("中\n文") == "U+4E2D U+6587"
    for letter in map(chr, [*range(32, 0x250), 0x2212, 0x4E2D, 0x1F600]):
        assert escaped(letter).isascii() and not re.search(r"(?<!\\)[&%#_]", escaped(letter)), hex(ord(letter))
        assert escaped(letter) or unicodedata.category(letter) in ("Cc", "Zs")


def test_numbers_have_a_minus_sign_and_no_negative_zero() -> None:
    assert [number(value) for value in (0.5, -0.25, -0.001, float("nan"))] == ["0.50", "$-$0.25", "0.00", "--"]
    assert with_interval(-0.5, -0.75, 0.0, 3) == r"$-$0.500 {\scriptsize [$-$0.750, 0.000]}"
    assert with_interval(0.5, float("nan"), 1.0) == "0.50"
    assert stacked("with the vector", 9) == r"\begin{tabular}[b]{@{}r@{}}with the \\ vector\end{tabular}"
    assert wrapped("a_b") == r"{\raggedright a\_\allowbreak{}b\par}"


def cells_of(row: str) -> list[str]:
    """The cells of a row: `&` inside a table in a cell, or escaped, ends none."""
    inner = re.sub(r"\\begin\{tabular\}.*?\\end\{tabular\}", lambda found: found[0].replace("&", "+"), row)
    return [cell.strip() for cell in re.split(r"(?<!\\)&", inner)]


def width_of(cell: str) -> float:
    """The width of a cell in points; of a heading in several lines that of the longest."""
    inner = re.fullmatch(r"\\begin\{tabular\}\[b\]\{@\{\}r@\{\}\}(.*)\\end\{tabular\}", cell)
    if inner:
        return max(width_of(line) for line in inner[1].split(r" \\ "))
    small = "".join(re.findall(r"\\scriptsize ([^}]*)\}", cell))
    plain = re.sub(r"\{\\scriptsize [^}]*\}", "", cell)
    return _width(plain) + SMALL * _width(small)


def _width(text: str) -> float:
    seen = re.sub(r"\\[a-zA-Z]+|\\(?=[&%$#_{}])|[{}]", "", text.replace("$-$", "M"))
    return sum(WIDTHS.get(letter, 6.4) for letter in seen)


@NAMES
def test_a_table_is_what_pdflatex_reads(name: str) -> None:
    table = TABLES[name]
    assert table.isascii()
    depth, at = 0, 0
    for found in re.finditer(r"\\(.)|([{}])", table, re.DOTALL):
        depth += {"{": 1, "}": -1}.get(found[2] or "", 0)
        assert depth >= 0 and found.start() >= at
    assert depth == 0, "braces do not pair"
    assert set(re.findall(r"\\([a-zA-Z]+)", table)) <= COMMANDS
    assert set(re.findall(r"\\([^a-zA-Z\n])", table)) <= SYMBOLS
    bodies = re.sub(r"\\[\\$]", "", table)
    assert bodies.count("$") % 2 == 0 and table.count(r"\begin{tabular}") == table.count(r"\end{tabular}")


@NAMES
def test_every_row_has_the_columns_of_its_table_and_all_fit_a_page(name: str) -> None:
    form = r"\\setlength\{\\tabcolsep\}\{(\d)pt\}%\n\\begin\{tabular\}\{([^\n]*)\}\n(.*?)\n\\end\{tabular\}\}\n"
    found = re.findall(form, TABLES[name], re.DOTALL)
    assert len(found) == (2 if name == "bench" else 1)
    for gap, columns, body in found:
        kinds = re.findall(r"p\{([\d.]+)\\linewidth\}|([lr])", columns)
        lines = [line for line in body.split("\n") if "rule" not in line]
        assert body.startswith(r"\toprule") and body.endswith(r"\bottomrule") and body.count(r"\midrule") >= 1
        rows = [cells_of(line.removesuffix(r" \\")) for line in lines]
        assert all(line.endswith(r" \\") for line in lines) and {len(row) for row in rows} == {len(kinds)}
        widths = [
            PAGE * float(share) if share else max(width_of(row[place]) for row in rows)
            for place, (share, _) in enumerate(kinds)
        ]
        assert sum(widths) + 2 * int(gap) * len(kinds) <= PAGE, (name, [round(width) for width in widths])


def test_the_check_of_widths_knows_a_table_that_is_too_wide() -> None:
    # by the metrics of cmr8 and cmr7: 4 digits of 4.25, 8 of 3.98, and points, spaces and brackets
    assert width_of("0.388 {\\scriptsize [0.342, 0.432]}") == pytest.approx(67.8, abs=3)
    assert width_of("Instruction Vector added") > 90


def test_every_table_compiles(tmp_path: Path) -> None:
    """Each as wide as a page, and what is narrow as wide as a column; a line that is too long fails."""
    program = shutil.which("pdflatex")
    if program is None:
        pytest.skip("pdflatex is not installed (Debian: texlive-latex-extra); the tests above check the same by rules")
    parts = "\n\n".join(f"\\noindent {table}" for table in TABLES.values())
    head = "\\documentclass{article}\\usepackage{booktabs}\\usepackage[textwidth=6.5in]{geometry}\\begin{document}\n"
    (tmp_path / "all.tex").write_text(f"{head}{parts}\\end{{document}}\n", encoding="ascii")
    command = [program, "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout, done.stdout[-2000:]


def test_guidance_of_every_kind_fits_a_heading() -> None:
    assert all(width_of(stacked(kind.label, 12)) < 62 for kind in KINDS.values())
    assert latex_table(["a"], [["b"], [], ["c"]], Look("l")).count(r"\midrule") == 2
