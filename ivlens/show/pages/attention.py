"""The page of where heads look: the shares of the prompt's parts, and prompts token by token, as one HTML file."""

from html import escape
from pathlib import Path

from plotly.offline import get_plotlyjs

from ivlens.analysis.attention.results import HeadAttention
from ivlens.common.names import path_of, shown
from ivlens.common.version import __version__
from ivlens.show.figures.attention import LOOKS, attention_bars, strongest
from ivlens.show.figures.rows import Row, grouped, rows_of
from ivlens.show.pages.html import embedded, script, style, template

MOST_BARS, MOST_READ = 20, 6  # heads in the figure and the table, and heads whose prompts are written out


def write_page(found: HeadAttention, path: str | Path, *, files: tuple[str, ...] = ()) -> Path:
    """Write the page to `path` (about 5 MB, almost all of it plotly.js).

    Args:
        files: names of tables in the same folder, which the page links to.
    """
    target = path_of(path)
    target.write_text(page(found, files=files), encoding="utf-8")
    return target


def page(found: HeadAttention, *, files: tuple[str, ...] = ()) -> str:
    """The page as one HTML text, which loads nothing from elsewhere."""
    frame = found.frame()
    by_head = grouped(rows_of(frame, ("label",), "HeadAttention.frame()"), lambda row: row["label"])
    heads = strongest(by_head, MOST_BARS)
    head, rows = _table(by_head, heads)
    n = " and ".join(f"{len(one.inputs)} {kind}" for kind, one in found.looked.items())
    some = f"{len(heads)} of {len(by_head)}" if len(heads) < len(by_head) else f"{len(by_head)}"
    return template("attention.html").substitute(
        title=f"Where heads look: {escape(found.task)}",
        lead=f"{some} heads of <code>{escape(shown(found.model.name))}</code> on {n} prompts of the task "
        f"<code>{escape(found.task)}</code>.",
        style=style(),
        head=head,
        rows=rows,
        note="Induction score: attention, in random tokens that are written twice, to the token after the same one "
        "before. Previous-token score: attention to the token before, in the same texts.",
        prompts="".join(_prompt(found, label) for label in heads[:MOST_READ]) or "<p>No tokens were kept.</p>",
        settings=_settings(found),
        files=", ".join(f'<a href="{escape(name)}">{escape(name)}</a>' for name in files) or "nothing",
        plotly=get_plotlyjs(),
        script=script(),
        figures=embedded(lambda theme: {"attention": attention_bars(frame, top=MOST_BARS, theme=theme)}),
    )


def _table(by_head: dict[str, list[Row]], heads: list[str]) -> tuple[str, str]:
    """Head and body of the table: a row for each head and kind of prompts, shares with their intervals."""
    segments = [
        name for name in LOOKS if any(row["share"] > 0 for at in heads for row in by_head[at] if row["segment"] == name)
    ]
    names = [*(LOOKS[name].label for name in segments), "induction", "previous token"]
    head = "<tr><th>head</th><th>prompts</th>" + "".join(f"<th class=n>{escape(name)}</th>" for name in names) + "</tr>"
    body = []
    for label in heads:
        for kind, own in grouped(by_head[label], lambda row: row["prompts"]).items():
            of = {row["segment"]: row for row in own}
            shares = "".join(f"<td class=n>{_share(of[name])}</td>" for name in segments)
            scores = "".join(f"<td class=n>{_number(own[0][name])}</td>" for name in ("induction", "previous"))
            body.append(f"<tr><th>{escape(label)}</th><td>{escape(kind)}</td>{shares}{scores}</tr>")
    return head, "".join(body)


def _share(row: Row) -> str:
    interval = "" if row["low"] != row["low"] else f"<small>{row['low']:.2f} to {row['high']:.2f}</small>"
    return f"{row['share']:.2f}{interval}"


def _number(value: float) -> str:
    return "–" if value != value else f"{value:.2f}"


def _prompt(found: HeadAttention, label: str) -> str:
    """The first prompt of each kind, its tokens coloured by the weights of one head; empty where none was kept."""
    parts = []
    for kind, looked in found.looked.items():
        if not looked.shown:
            continue
        tokens = found.tokens(label, 0, kind).to_dict("records")
        most = max(float(row["weight"]) for row in tokens)
        chips = "".join(_chip(row, most) for row in tokens)
        parts.append(f'<p class="note below">{escape(kind)}, darkest: {most:.2f}</p><div class="tokens">{chips}</div>')
    return f'<div class="card below"><h3>{escape(label)}</h3>{"".join(parts)}</div>' if parts else ""


def _chip(row: Row, most: float) -> str:
    """One token; a line end is shown as a sign, and breaks the line."""
    share = float(row["weight"]) / most if most else 0.0
    text = shown(str(row["token"]).replace("\n", "⏎"))
    title = f"{LOOKS[row['segment']].label}: {row['weight']:.3f}"
    ends = "<br>" if "\n" in str(row["token"]) else ""
    # the colour of a chip grows to 38 % with its share; here up to all of it
    return (
        f'<span class="chip mono" style="--share:{2.2 * share:.3f}" title="{escape(title)}">{escape(text)}</span>{ends}'
    )


def _settings(found: HeadAttention) -> str:
    """How everything was measured, as a list of names and values."""
    settings = found.settings
    facts = {
        "model": str(found.model),
        "prompts": f"{found.recipe}; {settings.get('split')} inputs",
        "corruptions": ", ".join(settings.get("corruptions", ())) or "none",
        "made with": f"ivlens {__version__}",
    }
    return "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in facts.items())
