"""The tables of `benches/vectors.py`, and what they say in a few sentences."""

from collections.abc import Sequence

import pandas as pd
from common import table

from ivlens.common.intervals import t_interval

N_SHOTS, N_JUDGED, K = 10, 48, 10  # of every cell: demonstrations, *test* inputs, heads of the vector

MAIN = ("clean", "bare", "iv", "random", "random_heads", "other_tasks", "iv_heads", "universal", "constant")
WAYS = (
    ("iv", ""),
    ("mean_difference", "corrupted"),
    ("mean_difference", "bare"),
    ("distributed", "mean"),
    ("distributed", "minus_bare"),
    ("trained", ""),
    ("trained_permuted", ""),
)


def show(found: pd.DataFrame, model: str) -> str:
    """The tables of one model as Markdown."""
    own = found[found["model"] == model]
    frames = {str(name): rows.dropna(axis=1, how="all") for name, rows in own.groupby("table")}
    if "rows" not in frames:
        return f"no cell of {model} is finished; python benches/vectors.py run\n"
    rows, cells = frames["rows"].assign(variant=frames["rows"]["variant"].fillna("")), frames["cells"]
    tasks = list(dict.fromkeys(rows["task"]))
    seeds = cells.groupby("task")["seed"].nunique()
    per = f"{len(cells)} cells: {len(tasks)} tasks, {seeds.min()} to {seeds.max()} seeds" if len(cells) else ""
    about = (
        f"{per}; {N_SHOTS} demonstrations, no instruction; vectors of {K} heads, added to bare *test* inputs "
        f"({N_JUDGED} of each task and seed), each at the layer and strength that did best on *select*. Intervals of "
        "single tasks are Wilson's, or t over seeds where there are several; those of means are t over tasks."
    )
    parts = ["## What vectors do in a real model (`python benches/vectors.py show --write`)", about]
    parts += ["### In short", _in_short(frames, rows, tasks)]
    parts += [_ability(frames["ability"])] if "ability" in frames else []
    parts += ["### The vector and its controls", _main(rows, tasks)]
    parts += ["### Other ways to make a vector", _ways(rows, tasks)]
    parts += ["### What the heads are needed for: accuracy lost on clean prompts", _necessity(rows, tasks)]
    parts += ["### Accuracy against the number of heads", _by_k(rows, tasks)]
    parts += ["### Other templates, and texts that have nothing to do with the task", _aside(rows, tasks)]
    parts += ["### The strongest heads, and what the corruption takes away", _heads(frames["heads"], cells, tasks)]
    if "matrix" in frames:
        parts += ["### The vector of each task (columns) on the bare inputs of each task (rows)", _matrix(frames, rows)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _cell(rows: pd.DataFrame, task: str, condition: str, variant: str = "", value: str = "accuracy") -> str:
    """The mean over seeds, with an interval."""
    own = rows[(rows["task"] == task) & (rows["condition"] == condition) & (rows["variant"] == variant)]
    own = own.dropna(subset=[value]) if value in own else own.iloc[:0]
    if own.empty:
        return ""
    mean = float(own[value].mean())
    if len(own) == 1:
        low, high = own[f"{value}_lo"].iloc[0], own[f"{value}_hi"].iloc[0]
    else:
        _, low, high = t_interval(own[value].to_numpy())
    return f"{mean:.2f} [{max(low, -1):.2f}, {min(high, 1):.2f}]" if low == low else f"{mean:.2f}"


def _plain(rows: pd.DataFrame, task: str, condition: str, variant: str = "", value: str = "accuracy") -> float:
    own = rows[(rows["task"] == task) & (rows["condition"] == condition) & (rows["variant"] == variant)]
    return float(own[value].mean()) if value in own and len(own) else float("nan")


def _means(rows: pd.DataFrame, tasks: Sequence[str], columns: Sequence[tuple[str, str]], value: str) -> list[str]:
    """The last line of a table: means over tasks, with t intervals over them."""
    line = ["mean"]
    for condition, variant in columns:
        each = pd.Series([_plain(rows, task, condition, variant, value) for task in tasks]).dropna()
        mean, low, high = t_interval(each.to_numpy()) if len(each) > 1 else (each.mean(), float("nan"), float("nan"))
        line.append("" if each.empty else f"{mean:.2f} [{low:.2f}, {high:.2f}]" if low == low else f"{mean:.2f}")
    return line


def _grid(rows: pd.DataFrame, tasks: Sequence[str], columns: Sequence[tuple[str, str]], value: str = "accuracy") -> str:
    lines = [[task, *(_cell(rows, task, *column, value=value) for column in columns)] for task in tasks]
    heads = [f"{condition}, {variant}" if variant else condition for condition, variant in columns]
    return table(["task", *(head.replace("_", " ") for head in heads)], [*lines, _means(rows, tasks, columns, value)])


def _over_tasks(values: Sequence[float]) -> str:
    """A mean over tasks with its t interval."""
    known = [value for value in values if value == value]
    mean, low, high = t_interval(known) if len(known) > 1 else (sum(known), float("nan"), float("nan"))
    return f"{mean:.2f} [{low:.2f}, {high:.2f}]" if low == low else f"{mean:.2f}"


def _in_short(frames: dict[str, pd.DataFrame], rows: pd.DataFrame, tasks: Sequence[str]) -> str:
    """What the tables say: means over tasks, and differences of two conditions on the same tasks."""

    def mean(condition: str, variant: str = "", value: str = "accuracy") -> str:
        return _over_tasks([_plain(rows, task, condition, variant, value) for task in tasks])

    def less(one: tuple[str, str], other: tuple[str, str], value: str = "accuracy") -> str:
        pairs = [(_plain(rows, task, *one, value), _plain(rows, task, *other, value)) for task in tasks]
        return _over_tasks([a - b for a, b in pairs])

    iv = ("iv", "")
    heads, n_able = frames["heads"], len(frames["ability"]) if "ability" in frames else 0
    first = {task: heads[heads["task"] == task].groupby("label")["aie"].mean().idxmax() for task in tasks}
    strongest = pd.Series(first).value_counts()
    needed, others = ("necessity", "other_tasks"), ("necessity_random_heads", "other_tasks")
    lines = [
        f"- {len(tasks)} of {n_able} built-in tasks. Clean prompts: {mean('clean')}; bare inputs: {mean('bare')}; bare "
        f"inputs with the vector, added once: **{mean(*iv)}**; random vectors: {mean('random')}; vectors of random "
        f"heads: {mean('random_heads')}; other tasks' vectors: {mean('other_tasks')}; best constant: "
        f"{mean('constant')}.",
        "- Other ways, less the vector on the same tasks: difference of means (clean − bare) "
        f"{less(('mean_difference', 'bare'), iv)}, distributed over its heads' layers "
        f"{less(('distributed', 'mean'), iv)}, its heads replaced {less(('iv_heads', ''), iv)}, trained by gradient "
        f"{less(('trained', ''), iv)}.",
        f"- Needed: clean prompts lose {mean(*needed, 'lost')} where the vector's heads have the outputs of other "
        f"tasks, and {mean(*others, 'lost')} with random heads of the same layers (difference "
        f"{less(needed, others, 'lost')}); with means over corrupted prompts "
        f"{mean('necessity', 'corrupted', 'lost')} and {mean('necessity_random_heads', 'corrupted', 'lost')}.",
        f"- {strongest.index[0]} has the largest effect in {strongest.iloc[0]} of {len(tasks)} tasks. With the heads "
        f"that are strongest on average over tasks, the vector gives {less(('universal', ''), iv)} more than with the "
        "task's own.",
        f"- Heads: one gives {mean('by_k', 'k=1')}, five {mean('by_k', 'k=5')}, ten {mean('by_k', 'k=10')}, forty "
        f"{mean('by_k', 'k=40')}.",
        f"- The vector less the best constant: {less(iv, ('constant', ''))}; trained on permuted answers: "
        f"{mean('trained_permuted')}. In the template `qa`, with the setting found in `plain`: "
        f"{mean('other_template', 'qa')} (demonstrations there {mean('other_template_clean', 'qa')}).",
        f"- {_strongest(rows)}",
    ]
    return "\n".join(lines)


def _strongest(rows: pd.DataFrame) -> str:
    """How often the largest strength of the grid was the best one, which says that a larger one may do better."""
    alphas = rows.loc[rows["condition"] == "iv", "alpha"]
    return f"Strength {alphas.max():g} did best in {(alphas == alphas.max()).sum()} of {len(alphas)} cells."


def _ability(ability: pd.DataFrame) -> str:
    listed = ", ".join(
        f"{row['ability_task']} {row['clean']:.2f}"
        for row in ability.sort_values("clean", ascending=False).to_dict("records")
    )
    return f"Accuracy on clean prompts ({int(ability['n'].max())} *select* inputs), all built-in tasks: {listed}."


def _main(rows: pd.DataFrame, tasks: Sequence[str]) -> str:
    return _grid(rows, tasks, [(condition, "") for condition in MAIN])


def _ways(rows: pd.DataFrame, tasks: Sequence[str]) -> str:
    controls = [("mean_difference_random", "bare"), ("distributed_random_heads", "mean")]
    return _grid(rows, tasks, [*WAYS, *controls])


def _necessity(rows: pd.DataFrame, tasks: Sequence[str]) -> str:
    kinds = ("necessity", "necessity_next_heads", "necessity_random_heads")
    columns = [(kind, variant) for variant in ("corrupted", "other_tasks", "bare") for kind in kinds]
    return _grid(rows, tasks, columns, "lost")


def _by_k(rows: pd.DataFrame, tasks: Sequence[str]) -> str:
    ks = sorted({v for v in rows["variant"] if v.startswith("k=")}, key=lambda v: int(v[2:]))
    return _grid(rows, tasks, [(kind, k) for k in ks for kind in ("by_k", "by_k_random_heads")])


def _aside(rows: pd.DataFrame, tasks: Sequence[str]) -> str:
    lines = []
    for task in tasks:
        qa = [_cell(rows, task, name, "qa") for name in ("other_template", "other_template_clean")]
        effects = []
        for condition in ("iv", "random", "mean_difference", "trained"):
            variant = "bare" if condition == "mean_difference" else ""
            kl, after, before = (
                _plain(rows, task, condition, variant, value) for value in ("kl", "perplexity", "perplexity_plain")
            )
            effects.append("" if kl != kl else f"{kl:.2f}, ×{after / before:.2f}")
        lines.append([task, *qa, *effects])
    titles = ["vector in qa", "clean in qa", "vector: KL, perplexity", "random", "mean difference", "trained"]
    return table(["task", *titles], lines)


def _heads(heads: pd.DataFrame, cells: pd.DataFrame, tasks: Sequence[str]) -> str:
    lines = []
    for task in tasks:
        own = heads[heads["task"] == task].groupby("label")["aie"].mean().nlargest(5)
        taken = cells[cells["task"] == task]
        strongest = ", ".join(f"{label} {aie:.2f}" for label, aie in own.items())
        scores = f"{taken['clean_score'].mean():.2f} → {taken['corrupted_score'].mean():.2f}"
        lines.append([task, strongest, ", ".join(sorted(set(taken["corruption"]))), scores])
    return table(["task", "strongest heads (AIE)", "corruption", "score, clean → corrupted"], lines)


def _matrix(frames: dict[str, pd.DataFrame], rows: pd.DataFrame) -> str:
    matrix = frames["matrix"].groupby(["task", "of"])["accuracy"].mean()
    tasks, of = list(dict.fromkeys(rows["task"])), sorted({str(name) for _, name in matrix.index})
    lines = []
    for task in tasks:
        values = [_plain(rows, task, "iv") if name == task else matrix.get((task, name), float("nan")) for name in of]
        lines.append([task, *("" if value != value else f"{value:.2f}" for value in values)])
    return table(["on", *of], lines)
