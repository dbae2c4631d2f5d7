"""`find_prompts` finds the form of a prompt in which a model can answer a task.

A model may know a task and still answer it in some forms only: after an instruction it writes a sentence, after ten
demonstrations the expected word. No vector carries what the model does not do, so the form is searched for first.
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

N_FIRST = 8  # prompts of the first round, in which every form is tried
N_FINALISTS = 4  # forms that go on to the second round, on all prompts


@checked
@dataclass(frozen=True, eq=False)
class PromptSearch:
    """The forms in which a task was asked, how often the model was right in each, and the best form.

    Attributes:
        table: One row for each form, the best one first: `template`, `n_shots`, `instruction` (`task`: one of the
            task's own; `none`), `clean` and `bare` (accuracy of these prompts, and of the same inputs without
            instruction and demonstrations), `n` (inputs that both were measured on: fewer where a form was stopped
            early), `clean_lo`, `clean_hi`, `bare_lo`, `bare_hi` (Wilson's 95 % intervals), `n_tokens` (mean length of
            a clean prompt).
        recipes: For each row the recipes that make its prompts; the row names the first of them.
        task: Name of the task.
        model: The model that was asked.
        remembered: Whether the result was found earlier and read from the cache.
    """

    table: "pd.DataFrame"
    recipes: tuple[tuple[PromptRecipe, ...], ...]
    task: str
    model: ModelIdentity
    remembered: bool = False

    @property
    def best(self) -> PromptRecipe:
        """The recipe with the largest clean minus bare accuracy; among equals the one with the shorter prompts."""
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
        """A sentence saying that the model answers well enough in no form; empty where a vector may carry the task."""
        if self.ability.is_enough:
            return ""
        return (
            f"{self.model.name} answers {self.task} well enough in none of {self.n_forms} forms, in the best one with "
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
    """Ask a task in every form, and say in which form the model answers it best.

        >>> search = ivlens.find_prompts(model, task)
        >>> effects = ivlens.head_effects(model, task, recipe=search.best)

    Forms are templates x numbers of demonstrations x with and without instruction; forms with the same text are tried
    once. Accuracy is that of `greedy_correct` on *select* inputs. Clean minus bare accuracy decides, and among equals
    the shorter prompt. In a first round every form is tried on eight inputs, from the shortest form to the longest; in
    a second round the best four forms are tried on all inputs. A form is stopped early where even right answers to all
    its other inputs could not bring it among the best four (first round) or make it the best (second round). So
    stopping changes neither the four nor the best form.

    Args:
        templates: Names, files or `PromptTemplate`s; None: `plain`, `after`, `qa`, and `chat` where the tokenizer has
            a chat template. A template that has no place for demonstrations is tried without any.
        shots: Numbers of demonstrations. Numbers for which the task has too few examples, or the model too short a
            context, are left out, with a line in the log.
        n_prompts: Inputs of the second round.
        seed: Draws inputs, instructions and demonstrations, and decides the splits.
        progress: Show a bar.

    Raises:
        TypeError: a model that `load_model` did not return, or one without a tokenizer.
        ValueError: no form is left, and the message says why; or an option that does not exist.
        RuntimeError: inside a `steer` context.

    Source: docs/method.md, 3 Scores and accuracy (In which form a model can answer).
    """
    check_unsteered(check_model(model))
    check_count("n_prompts", n_prompts, 1)
    # a recipe checks each number, and turns numpy's integers into Python's
    numbers = sorted({PromptRecipe(n_shots=each).n_shots or 0 for each in as_items("shots", shots, SupportsIndex)})
    if not numbers:
        raise ValueError("shots is empty, expected at least one number of demonstrations.")
    chosen = templates_of(model.tokenizer, templates)
    examples = tried_examples(model, task, n_prompts, seed)
    forms = all_forms(model, task, examples, chosen, numbers, seed)
    with showing_progress(progress), bar(f"{task.name}: forms", unit="prompt") as report:
        trials = search_forms(forms, lambda batch: right_answers(model, batch), report)
    return summed_up(trials, task.name, model_identity(model))


Asked = Callable[[PromptBatch], list[bool]]  # for each prompt of a batch, whether the model answers it right


@dataclass(eq=False)
class Trial:
    """One form, and for each of its prompts that was asked so far whether the answer was right.

    Attributes:
        form: The form and its prompts.
        order: Its place among all forms: the cheapest first, equals in the order of the templates.
        bare: Answers to the bare prompts; forms with the same bare prompts share one list.
        clean: Answers to the clean prompts.
    """

    form: Form
    order: int
    bare: list[bool]
    clean: list[bool] = field(default_factory=list)

    def gain(self, n: int | None = None) -> int:
        """Right clean answers minus right bare answers on the first `n` inputs; None: on all that were asked."""
        n = len(self.clean) if n is None else n
        return sum(self.clean[:n]) - sum(self.bare[:n])

    def at_most(self, n: int) -> int:
        """The largest value that `gain(n)` can still reach: if all clean answers not asked yet are right."""
        return sum(self.clean) + n - len(self.clean) - sum(self.bare[:n])


def search_forms(forms: Sequence[Form], ask: Asked, report: Progress, *, stop: bool = True) -> list[Trial]:
    """Try all forms in two rounds; the best form comes first, then the others, those asked most often first.

    Args:
        forms: In order of their cost, the cheapest first.
        ask: Says for each prompt of a batch whether the model answers it right.
        report: Called with the number of prompts asked so far, and the largest number there may be.
        stop: Whether forms that cannot win are stopped; False finds the same best form at a higher cost.
    """
    n = len(forms[0].clean)
    n_first = min(N_FIRST, n)
    n_bare = len({id(form.bare) for form in forms})
    total = n_first * (len(forms) + n_bare) + (n - n_first) * 2 * min(N_FINALISTS, len(forms))
    done = 0

    def extend(right: list[bool], batch: PromptBatch, end: int) -> None:
        """Ask the prompts of `batch` up to `end` that have no answer in `right` yet."""
        nonlocal done
        if len(right) < end:
            done += end - len(right)
            right += ask(batch.rows(slice(len(right), end)))
            report(done, total)

    bares: dict[int, list[bool]] = {}  # by the identity of the batch: forms of one template share their bare prompts
    trials: list[Trial] = []
    screened: list[Trial] = []  # asked all prompts of the first round
    for order, form in enumerate(forms):
        trial = Trial(form, order, bares.setdefault(id(form.bare), []))
        trials.append(trial)
        extend(trial.bare, form.bare, n_first)
        fourth = sorted((each.gain() for each in screened), reverse=True)[N_FINALISTS - 1 : N_FINALISTS]
        if fourth and stop:
            extend(trial.clean, form.clean, (n_first + 1) // 2)
            if trial.at_most(n_first) <= fourth[0]:  # equal is not enough: forms before it are cheaper, and go first
                continue
        extend(trial.clean, form.clean, n_first)
        screened.append(trial)
    best: Trial | None = None
    # the most promising form first, so that the others can be stopped early
    for trial in _ranked(screened)[:N_FINALISTS]:
        extend(trial.bare, trial.form.bare, n)
        for end in range(n_first, n + N_FIRST, N_FIRST):
            if stop and best is not None and (trial.at_most(n), -trial.order) < _merit(best):
                break
            extend(trial.clean, trial.form.clean, min(end, n))
        if len(trial.clean) == n and (best is None or _merit(trial) > _merit(best)):
            best = trial
    assert best is not None  # the first of the finalists is never stopped
    others = sorted((trial for trial in _ranked(trials) if trial is not best), key=lambda trial: -len(trial.clean))
    return [best, *others]


def _merit(trial: Trial) -> tuple[int, int]:
    """The key that is largest for the best form: its gain, and among equal gains the lower cost."""
    return trial.gain(), -trial.order


def _ranked(trials: Iterable[Trial]) -> list[Trial]:
    """The trials by gain per prompt, largest first; `sorted` keeps the order of equals, the cheaper form first."""
    return sorted(trials, key=lambda trial: -trial.gain() / len(trial.clean))


def right_answers(model: TransformerBridge, batch: PromptBatch) -> list[bool]:
    """Whether the model answers each prompt right (accuracy of `greedy_correct`).

    Where prompts have several accepted answers, one pass gives the likeliest first token, and only answers that begin
    with it are tried: no other can be right, and each would cost a pass of its own.
    """
    rows = list(range(len(batch)))
    # with one answer each, that extra pass would save nothing
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
    """The result of a search: a table with one row for each form, and their recipes."""
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
