"""`find_prompts`: in which form a model can answer a task.

A model may know a task and not answer it: asked by an instruction it writes a sentence, after ten demonstrations the
word. No vector carries what the model does not do, so the form comes first.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, SupportsIndex

from ivlens.common.arguments import checked
from ivlens.common.checks import as_items, check_count
from ivlens.common.intervals import wilson
from ivlens.common.progress import Progress, bar, showing_progress
from ivlens.forward.ability import Ability
from ivlens.forward.forms import DEFAULT_SHOTS_TRIED, Form, Template, all_forms, templates_of, told_by, tried_examples
from ivlens.forward.hooks import check_unsteered, model_lock
from ivlens.forward.inputs import check_answers, check_prompts, forced
from ivlens.forward.scoring import greedy_correct
from ivlens.models.boot import TransformerBridge, check_model
from ivlens.models.fingerprint import ModelIdentity, model_identity
from ivlens.prompts.batch import PromptBatch
from ivlens.prompts.recipe import PromptRecipe
from ivlens.tasks.task import Task

if TYPE_CHECKING:
    import pandas as pd

N_FIRST = 8  # prompts that every form is tried on
N_FINALISTS = 4  # forms that are tried on all prompts


@checked
@dataclass(frozen=True, eq=False)
class PromptSearch:
    """In which forms a task was asked, how often the model was right, and the best form.

    Attributes:
        table: One row for each form, the best one first: `template`, `n_shots`, `instruction` (`task`: one of the
            task's own; `none`), `clean` and `bare` (accuracy of these prompts, and of the same inputs without
            instruction and demonstrations), `n` (inputs that both were measured on: fewer where a form was stopped
            early), `clean_lo`, `clean_hi`, `bare_lo`, `bare_hi` (Wilson's 95 % intervals), `n_tokens` (mean length of
            a clean prompt).
        recipes: Of each row the recipes that make its prompts; the first one is what the row names.
        task: Name of the task.
        model: The model that was asked.
        remembered: Whether it was found earlier, and read from the cache.
    """

    table: "pd.DataFrame"
    recipes: tuple[tuple[PromptRecipe, ...], ...]
    task: str
    model: ModelIdentity
    remembered: bool = False

    @property
    def best(self) -> PromptRecipe:
        """The recipe with the largest difference of clean and bare accuracy, of equals the cheaper one."""
        return self.recipes[0][0]

    @property
    def n_forms(self) -> int:
        """How many forms were tried."""
        return len(self.table)

    @property
    def ability(self) -> Ability:
        """Clean and bare accuracy of the best form."""
        row = self.table.iloc[0]
        return Ability(float(row["clean"]), float(row["bare"]), int(row["n"]))

    @property
    def warning(self) -> str:
        """What is wrong with the best form; empty where a vector may carry the task."""
        if self.ability.is_enough:
            return ""
        return (
            f"{self.model.name} answers {self.task} in none of {self.n_forms} forms well enough, in the best one with "
            f"{self.ability}: no vector can carry what the model does not do; take another task or model, or try "
            "templates and shots of your own."
        )

    def __str__(self) -> str:
        row = self.table.iloc[0]
        told = {"task": "the task's instruction", "none": "no instruction"}[row["instruction"]]
        return (
            f"{self.task}: template {row['template']}, {row['n_shots']} demonstrations, {told}: accuracy "
            f"{row['clean']:.2f}, bare {row['bare']:.2f} on {row['n']} inputs; best of {self.n_forms} forms"
            f"{' (remembered)' if self.remembered else ''}"
        )

    def _repr_html_(self) -> str:
        from ivlens.show.tables import search_html

        return search_html(self)


@checked
def find_prompts(
    model: TransformerBridge,
    task: Task,
    *,
    templates: Template | Sequence[Template] | None = None,
    shots: int | Sequence[int] = DEFAULT_SHOTS_TRIED,
    n_prompts: int = 24,
    seed: int = 0,
    progress: bool = False,
) -> PromptSearch:
    """Ask a task in every form, and say in which one the model answers it.

        >>> search = ivlens.find_prompts(model, task)
        >>> effects = ivlens.head_effects(model, task, recipe=search.best)

    Forms are templates x numbers of demonstrations x with and without instruction; forms with the same text are tried
    once. Accuracy is that of `greedy_correct` on *select* inputs. What decides is clean minus bare accuracy, and among
    equals the shorter prompt. Every form is tried on eight inputs, from the shortest to the longest, and the best four
    on all. After half of its eight, a form is stopped if it could not be among the best four even with all its other
    answers right; of the four, one is stopped that could not become the best. So stopping changes neither the four nor
    the best form.

    Args:
        templates: Names, files or `PromptTemplate`s; None: `plain`, `after`, `qa`, and `chat` where the tokenizer has
            a chat template. One without a demonstration is tried without.
        shots: Numbers of demonstrations. Those for which the task has too few examples, or the model too short a
            context, are left out, with a line in the log.
        n_prompts: Inputs that the best forms are tried on.
        seed: Draws inputs, instructions and demonstrations, and decides the splits.
        progress: Show a bar.

    Raises:
        TypeError: a model that `load_model` did not return, or one without a tokenizer.
        ValueError: no form is left, and the message says why; or an option that does not exist.
        RuntimeError: inside a `steer` context.

    Source: docs/method.md, section 3.
    """
    check_unsteered(check_model(model))
    check_count("n_prompts", n_prompts, 1)
    numbers = sorted({PromptRecipe(n_shots=each).n_shots or 0 for each in as_items("shots", shots, SupportsIndex)})
    if not numbers:
        raise ValueError("shots is empty, expected at least one number of demonstrations.")
    chosen = templates_of(model.tokenizer, templates)
    examples = tried_examples(model, task, n_prompts, seed)
    forms = all_forms(model, task, examples, chosen, numbers, seed)
    with showing_progress(progress), bar(f"{task.name}: forms", unit="prompt") as report:
        trials = search_forms(forms, lambda batch: right_answers(model, batch), report)
    return summed_up(trials, task.name, model_identity(model))


Asked = Callable[[PromptBatch], list[bool]]


@dataclass(eq=False)
class Trial:
    """What came of one form: right answers of its clean prompts as far as they were asked, and of the bare ones.

    `order` is the form's place among all: the cheapest first, of equals in the order of the templates.
    """

    form: Form
    order: int
    bare: list[bool]
    clean: list[bool] = field(default_factory=list)

    def gain(self, n: int | None = None) -> int:
        """Right clean answers minus right bare ones, on the first `n` inputs, or on all that were asked."""
        n = len(self.clean) if n is None else n
        return sum(self.clean[:n]) - sum(self.bare[:n])

    def at_most(self, n: int) -> int:
        """What `gain(n)` can still become, if all other answers are right."""
        return sum(self.clean) + n - len(self.clean) - sum(self.bare[:n])


def search_forms(forms: Sequence[Form], ask: Asked, report: Progress, *, stop: bool = True) -> list[Trial]:
    """Try the forms, which stand in order of their cost; the best one first, then those that were asked most.

    Args:
        ask: Which prompts of a batch are answered right.
        report: Called with how many prompts were asked, and how many there may be in all.
        stop: Whether forms that cannot win are stopped; without, the same form is found at a higher cost.
    """
    n = len(forms[0].clean)
    n_first = min(N_FIRST, n)
    n_bare = len({id(form.bare) for form in forms})
    total = n_first * (len(forms) + n_bare) + (n - n_first) * 2 * min(N_FINALISTS, len(forms))
    done = 0

    def extend(right: list[bool], batch: PromptBatch, end: int) -> None:
        nonlocal done
        if len(right) < end:
            done += end - len(right)
            right += ask(batch.rows(slice(len(right), end)))
            report(done, total)

    bares: dict[int, list[bool]] = {}
    trials: list[Trial] = []
    whole: list[Trial] = []
    for order, form in enumerate(forms):
        trial = Trial(form, order, bares.setdefault(id(form.bare), []))
        trials.append(trial)
        extend(trial.bare, form.bare, n_first)
        fourth = sorted((each.gain() for each in whole), reverse=True)[N_FINALISTS - 1 : N_FINALISTS]
        if fourth and stop:
            extend(trial.clean, form.clean, (n_first + 1) // 2)
            if trial.at_most(n_first) <= fourth[0]:  # it is no cheaper than those before it, so of equals it loses
                continue
        extend(trial.clean, form.clean, n_first)
        whole.append(trial)
    best: Trial | None = None
    for trial in _ranked(whole)[:N_FINALISTS]:
        extend(trial.bare, trial.form.bare, n)
        for end in range(n_first, n + N_FIRST, N_FIRST):
            if stop and best is not None and (trial.at_most(n), -trial.order) < _merit(best):
                break
            extend(trial.clean, trial.form.clean, min(end, n))
        if len(trial.clean) == n and (best is None or _merit(trial) > _merit(best)):
            best = trial
    assert best is not None
    others = sorted((trial for trial in _ranked(trials) if trial is not best), key=lambda trial: -len(trial.clean))
    return [best, *others]


def _merit(trial: Trial) -> tuple[int, int]:
    """By what the best form is chosen: the gain, and of equals the cheaper form."""
    return trial.gain(), -trial.order


def _ranked(trials: Iterable[Trial]) -> list[Trial]:
    """The largest gain for each prompt first, of equals the cheaper form (`sorted` keeps their order)."""
    return sorted(trials, key=lambda trial: -trial.gain() / len(trial.clean))


def right_answers(model: TransformerBridge, batch: PromptBatch) -> list[bool]:
    """Which prompts are answered right, by `greedy_correct`.

    Of prompts with several accepted answers only those answers are looked at that begin with the likeliest token: no
    other can be right, and each would cost a pass of its own.
    """
    rows = list(range(len(batch)))
    if any(len(answers) > 1 for answers in batch.alternatives):
        tokens, mask = check_prompts(model, batch.tokens, batch.attention_mask)
        first = check_answers(model, batch.answer_tokens, len(batch))[:, :1]
        with model_lock(model):
            check_unsteered(model)
            likeliest = forced(tokens, mask, first).logits(model)[:, 0].argmax(-1).tolist()
        possible = [
            tuple(answer for answer in answers if answer[0] == token)
            for answers, token in zip(batch.alternatives, likeliest, strict=True)
        ]
        rows = [row for row in rows if possible[row]]
        if not rows:
            return [False] * len(batch)
        right = greedy_correct(
            model, replace(batch.rows(rows), alternatives=tuple(possible[row] for row in rows))
        ).accuracy.tolist()
    else:
        right = greedy_correct(model, batch).accuracy.tolist()
    found = dict(zip(rows, right, strict=True))
    return [found.get(row, False) for row in range(len(batch))]


def summed_up(trials: Sequence[Trial], task: str, model: ModelIdentity) -> PromptSearch:
    """The table of a search."""
    import pandas as pd

    rows = []
    for trial in trials:
        recipe, n = trial.form.recipes[0], len(trial.clean)
        right = {"clean": sum(trial.clean), "bare": sum(trial.bare[:n])}
        name = recipe.template if isinstance(recipe.template, str) else recipe.template.name
        row: dict[str, Any] = {"template": name, "n_shots": recipe.n_shots, "instruction": told_by(recipe)}
        row |= {what: count / n if n else float("nan") for what, count in right.items()} | {"n": n}
        for what, count in right.items():
            row[f"{what}_lo"], row[f"{what}_hi"] = wilson(count, n)
        rows.append(row | {"n_tokens": trial.form.n_tokens})
    return PromptSearch(pd.DataFrame(rows), tuple(trial.form.recipes for trial in trials), task, model)
