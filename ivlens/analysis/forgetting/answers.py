"""`answers_said`: what a model says in place of the right answer: a new task's answer, the input, or something else."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ivlens.analysis.forgetting.probabilities import ProbeOptions, shuffled
from ivlens.common.arguments import checked
from ivlens.common.checks import as_items
from ivlens.common.progress import ticking
from ivlens.forward.asking import Room, prompts_for
from ivlens.forward.borders import begins_with
from ivlens.forward.completions import complete, first_line
from ivlens.forward.scoring import greedy_accuracy
from ivlens.models.boot import TransformerBridge, check_model
from ivlens.tasks.task import Task

if TYPE_CHECKING:
    import pandas as pd

SAID = ("right", "new", "copied", "own", "earlier", "other")  # explained in `answers_said`
_WRITTEN_AT_ONCE = 32  # prompts that are completed together
_MOST_TOKENS = 24  # of a completion: more than the answers of the bank have


@checked
def answers_said(
    model: TransformerBridge,
    tasks: Sequence[Task],
    new: Sequence[Task] = (),
    options: ProbeOptions | None = None,
) -> "pd.DataFrame":
    """Ask a model the tasks' clean prompts, let it write, and say of every answer of what kind it is.

    If old behaviour is overlaid by a new one, a tuned model's wrong answers are those of the new task. The kinds, of
    which an answer has the first that fits:

    - `right`: greedy decoding begins with an accepted answer, as for `accuracy`;
    - `new`: an answer that one of the new tasks gives to this input;
    - `copied`: the input itself, or its first word;
    - `new` again: any answer of a new task that does not know this input;
    - `own`: the task's answer to another input: what was asked is still clear, but not the answer (the right answer
      after a blank line, which `accuracy` does not count, is here too);
    - `earlier`: what another of `tasks` answers to this input or, if it does not know it, to any;
    - `other`: none of these.

    An answer is read from the first line that the model writes, which has to begin with it as whole words; case counts.

    Args:
        model: From `load_model`, with its tokenizer.
        tasks: The tasks that are asked.
        new: Tasks that the model was trained on in the meantime.
        options: On which prompts, as for `probe`; clozes are not asked.

    Returns:
        One row for each example: `task`, `input`, `said` (the first line), `kind`.

    Raises:
        ValueError: no tasks, two of one name, or prompts that do not fit the model.

    Source: docs/method.md, section 7.
    """
    import pandas as pd

    options, model = options or ProbeOptions(), check_model(model)
    tasks = as_items("tasks", tasks, Task, meant="ivlens.load_task opens one by its name")
    new = as_items("new", new, Task, meant="ivlens.load_task opens one by its name")
    names = [task.name for task in (*tasks, *new)]
    if not tasks or len(set(names)) < len(names):
        raise ValueError(f"tasks and new are {', '.join(names) or 'empty'}, expected tasks with distinct names.")
    options.recipe.check_for(tasks)
    rows = []
    for task in ticking(tasks, "answers", "tasks"):
        others = [other for other in tasks if other is not task]
        room = Room(more=_MOST_TOKENS)
        batch = prompts_for(model, task, shuffled(task, options), options.recipe, n=options.n_prompts, room=room)
        right = greedy_accuracy(model, batch, batch_size=options.batch_size).tolist()
        for start in range(0, len(batch), _WRITTEN_AT_ONCE):
            written = complete(model, batch.texts[start : start + _WRITTEN_AT_ONCE], max_new_tokens=_MOST_TOKENS)
            for number, text in enumerate(map(first_line, written), start):
                asked = batch.examples[number].input
                kind = "right" if right[number] else _kind(text, asked, task, new, others)
                rows.append({"task": task.name, "input": asked, "said": text, "kind": kind})
    return pd.DataFrame(rows)


def shares_said(answers: "pd.DataFrame") -> "pd.DataFrame":
    """The share of each kind of answer, for every task of a table of `answers_said`: a row a task, a column a kind."""
    import pandas as pd

    rows = []
    for task, own in answers.groupby("task", sort=False):
        kinds = own["kind"].tolist()
        rows.append({"task": task, **{kind: kinds.count(kind) / len(kinds) for kind in SAID}})
    return pd.DataFrame(rows, columns=["task", *SAID]).set_index("task")


def _kind(text: str, asked: str, task: Task, new: Sequence[Task], others: Sequence[Task]) -> str:
    """The kind of a wrong answer, see `answers_said`."""
    if any(_gives(other, asked, text, known=True) for other in new):
        return "new"
    if _begins(text, asked) or _begins(text, asked.partition(" ")[0].strip(".,;:")):
        return "copied"
    if any(_gives(other, asked, text, known=False) for other in new):
        return "new"
    if any(_begins(text, answer) for example in task.examples for answer in example.answers):
        return "own"
    if any(_gives(other, asked, text, known) for other in others for known in (True, False)):
        return "earlier"
    return "other"


def _gives(task: Task, asked: str, text: str, known: bool) -> bool:
    """Whether a task gives this answer: to this input (`known`), or to any where it does not know the input."""
    own = [example for example in task.examples if example.input == asked]
    if bool(own) != known:
        return False
    return any(_begins(text, answer) for example in own or task.examples for answer in example.answers)


def _begins(text: str, answer: str) -> bool:
    """Whether a text begins with an answer, and not with a longer word; nothing begins with an empty one."""
    return bool(answer.strip()) and begins_with(text, answer)
