"""`general_scores`: what a model keeps of general abilities: the perplexity of plain text, and tasks in two forms."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ivlens.analysis.forgetting.probabilities import ProbeOptions, probe
from ivlens.common.arguments import checked
from ivlens.common.checks import as_items
from ivlens.models.boot import TransformerBridge, check_model
from ivlens.prompts.recipe import TASK, PromptRecipe
from ivlens.steering.side_effects import perplexity
from ivlens.tasks.task import Task

if TYPE_CHECKING:
    import pandas as pd

GENERAL = ("perplexity", "gp", "ip")  # explained in `general_scores`
N_SHOTS = 5  # demonstrations of `ip`
TEXT = "plain text"  # stands in the place of a task beside `perplexity`


@checked
def general_scores(
    model: TransformerBridge, tasks: Sequence[Task], *, n_prompts: int = 16, seed: int = 0, text: str | None = None
) -> "pd.DataFrame":
    """Measure a model's general abilities: how well it reads plain text, and tasks that are neither old nor new here.

    - `perplexity`: exponential of the mean negative log-probability of a text's tokens;
    - `gp`: a task asked by its instruction alone; `ip`: by five demonstrations alone. Both are ranked accuracies: the
      answer's first token is more probable than those of all other answers of the task.

    Args:
        model: From `load_model`, with its tokenizer.
        tasks: General tasks with an instruction and six examples at least; none: the perplexity alone.
        n_prompts: At most so many *test* prompts of each task.
        seed: Seed of the splits and draws.
        text: The text; None: the one that comes with ivlens.

    Returns:
        One row for each measure and task: `measure`, `task`, `value` (a share, or a perplexity), `n` prompts or texts.
        A share is NaN where all answers of the task begin with the same token, so that none can be ranked.

    Raises:
        ValueError: a task cannot be asked in one of the two forms, or the text has too few words.

    Source: GP and IP as in the papers (arXiv 2406.12227 and its follow-up), on tasks of the bank; docs/method.md,
        section 7.
    """
    import pandas as pd

    model = check_model(model)
    tasks = as_items("tasks", tasks, Task, meant="ivlens.load_task opens one by its name")
    rows = [{"measure": "perplexity", "task": TEXT, "value": perplexity(model, text), "n": 1}]
    # no demonstrations in `gp`: left open, a task without an instruction would be asked by them, and pass for the other
    forms = {"gp": PromptRecipe("plain", TASK, 0, seed), "ip": PromptRecipe("plain", None, N_SHOTS, seed)}
    for measure, recipe in forms.items() if tasks else ():
        asked = probe(
            model, [replace(task, clozes=()) for task in tasks], ProbeOptions(n_prompts=n_prompts, recipe=recipe)
        )
        for task, own in asked.groupby("task", sort=False):
            value = float(np.mean(own["ranked"].to_numpy()))
            rows.append({"measure": measure, "task": str(task), "value": value, "n": len(own)})
    return pd.DataFrame(rows)
