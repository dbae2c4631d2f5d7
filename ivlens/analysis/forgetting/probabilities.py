"""Instruction and knowledge probability of one model, for every example."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ivlens.common.arguments import checked
from ivlens.common.checks import as_items, check_counts
from ivlens.common.progress import ticking
from ivlens.forward.asking import prompts_for
from ivlens.forward.scoring import answer_passes, first_token_prob, greedy_correct, sequence_logprob
from ivlens.models.boot import TransformerBridge, check_model
from ivlens.prompts.batch import PromptBatch
from ivlens.prompts.build import build_prompts
from ivlens.prompts.recipe import PromptRecipe
from ivlens.prompts.templates import PromptTemplate
from ivlens.tasks.task import SplitName, Task, TaskExample

if TYPE_CHECKING:
    import pandas as pd

# probability of the first answer token; of the whole answer, per token; greedy decoding that begins with the answer, or
# is the answer; rank among the task's answers
MEASURES = ("prob", "seq_prob", "accuracy", "exact", "ranked")
SHAPE = "ivlens_shape"  # of the model that a table is about, in the table's attrs
NO_KNOWLEDGE = ("rule", "choice")  # kinds of tasks that are nothing to know: the answer follows from the input


@checked
@dataclass(frozen=True)
class ProbeOptions:
    """What is asked.

    Attributes:
        split: Which examples.
        n_prompts: At most so many of each task, drawn with the recipe's seed; None: all of the split.
        n_clozes: At most so many of a task's clozes; every example is asked by each of them. None: all.
        recipe: How clean prompts are made, with the seed of splits and draws; clozes stand alone, without instruction
            or demonstrations.
        batch_size: Prompts in a pass.
    """

    split: SplitName = "test"
    n_prompts: int | None = None
    n_clozes: int | None = 4
    recipe: PromptRecipe = PromptRecipe()
    batch_size: int = 128

    def __post_init__(self) -> None:
        check_counts(self, n_prompts=1, n_clozes=1, batch_size=1)


def has_knowledge(task: Task) -> bool:
    """Whether the task states something that can be asked for without an instruction.

    It needs clozes, and must not be a rule or a choice: the first letter of a word is read off, not remembered.
    """
    return bool(task.clozes) and task.kind not in NO_KNOWLEDGE


@checked
def probe(model: TransformerBridge, tasks: Sequence[Task], options: ProbeOptions | None = None) -> "pd.DataFrame":
    """How probable the right answer is with the instruction, and in a cloze sentence without it.

    Instruction probability is `P(y | c, x)` under the clean prompt of the recipe, where `c` is the instruction, or the
    demonstrations of a task that has none; knowledge probability is `P(y | x)` after a cloze of the task (`The capital
    of {x} is`), the mean over its clozes. Each in these measures:

    - `prob`: probability of the answer's first token;
    - `seq_prob`: `exp(log P(y) / n_tokens)`, the geometric mean of its tokens' probabilities, teacher-forced;
    - `accuracy`: whether greedy decoding begins with an accepted answer and does not go on inside its last word;
      `exact`: whether it also ends the text or the line there;
    - `ranked`: whether the answer's first token is more probable than that of every other answer of the task (answers
      that share it are left out; NaN where all do).

    Args:
        model: From `load_model`, with its tokenizer.
        tasks: Those without clozes, and rules, get no `knowledge` rows.

    Returns:
        One row for each task, kind (`instruction`, `knowledge`) and example: `task`, `kind`, `input`, the measures
        (shares of the clozes for the last three), `n_prompts`. Its `attrs` have the shape of the model.

    Raises:
        ValueError: no tasks, a recipe that leaves prompts of a task with nothing that tells it, prompts that do not
            fit the model.

    Source: arXiv 2406.12227, section 3; docs/method.md, section 7. Departures: clozes for the knowledge, and all these
        measures.
    """
    import pandas as pd

    options, model = options or ProbeOptions(), check_model(model)
    tasks = as_items("tasks", tasks, Task, meant="ivlens.load_task opens one by its name")
    if not tasks or len({task.name for task in tasks}) < len(tasks):
        raise ValueError(f"tasks are {[task.name for task in tasks]}, expected one or more with distinct names.")
    options.recipe.check_for(tasks)
    rows: list[dict[str, Any]] = []
    for task in ticking(tasks, "probing", "tasks"):
        examples = _examples(task, options)
        if not (task.fused or options.recipe.texts(task) or options.recipe.shots(task)):
            raise ValueError(
                f"task {task.name!r}: the recipe gives its prompts neither an instruction nor demonstrations, expected "
                "something that tells the task; give it an instruction or n_shots."
            )
        clozes = _clozes(task, options) if has_knowledge(task) else []
        for kind, recipes in (("instruction", [options.recipe]), ("knowledge", clozes)):
            others = _first_tokens(model, task, recipes[0]) if recipes else torch.empty(0)
            found = [_scored(model, task, examples, recipe, others, options.batch_size) for recipe in recipes]
            for text in found[0] if found else ():
                means = np.mean([scores[text] for scores in found], 0)
                values = dict(zip(MEASURES, means.tolist(), strict=True))
                rows.append({"task": task.name, "kind": kind, "input": text, **values, "n_prompts": len(found)})
    table = pd.DataFrame(rows)
    table.attrs[SHAPE] = shape_of(model)
    return table


def shape_of(model: TransformerBridge) -> str:
    """What two checkpoints of one model have in common, in words; not the vocabulary, which tuning may have grown."""
    cfg = model.cfg
    return f"{cfg.architecture} of {cfg.n_layers} layers x {cfg.n_heads} heads, d_model {cfg.d_model}"


def _examples(task: Task, options: ProbeOptions) -> list[TaskExample]:
    seed = options.recipe.seed
    examples = list(task.split(options.split, seed))
    Random(f"{seed}\0{task.name}\0probe").shuffle(examples)
    return examples[: options.n_prompts]


def _clozes(task: Task, options: ProbeOptions) -> list[PromptRecipe]:
    """The clozes as recipes whose prompts carry neither an instruction nor demonstrations."""
    found = []
    for number, cloze in enumerate(task.clozes[: options.n_clozes]):
        bare = cloze.replace("{x}", "{input}")
        template = PromptTemplate(f"cloze {number}", instructed=f"{{instruction}} {bare}", bare=bare)
        found.append(PromptRecipe(template, instruction=None, n_shots=0, seed=options.recipe.seed))
    return found


def _scored(
    model: TransformerBridge,
    task: Task,
    examples: Sequence[TaskExample],
    recipe: PromptRecipe,
    others: Tensor,
    batch_size: int,
) -> dict[str, list[float]]:
    """The measures of every example under one recipe; `others` are the first tokens of all the task's answers."""
    batch = prompts_for(model, task, examples, recipe)
    first, log_probs, ranked = [], [], []
    for rows, logits in answer_passes(model, batch, batch_size=batch_size):
        answers = batch.answer_tokens[rows].to(logits.device)
        first.append(first_token_prob(logits[:, 0], answers[:, 0]).double().cpu())
        log_probs.append((sequence_logprob(logits, answers) / (answers != -100).sum(-1)).double().cpu())
        ranked.append(_ranked(logits[:, 0].cpu(), batch.rows(rows), others))
    right = [each.double().cpu() for each in greedy_correct(model, batch, batch_size=batch_size)]
    columns = [torch.cat(first), torch.cat(log_probs).exp(), *right, torch.cat(ranked)]
    values = torch.stack(columns, 1).tolist()
    return dict(zip((example.input for example in batch.examples), values, strict=True))


def _first_tokens(model: TransformerBridge, task: Task, recipe: PromptRecipe) -> Tensor:
    """First tokens of the task's answers, of whatever split; demonstrations make no difference to them."""
    return build_prompts(model.tokenizer, task, task.examples, replace(recipe, n_shots=0)).answer_tokens[:, 0].unique()


def _ranked(logits: Float[Tensor, "rows d_vocab"], batch: PromptBatch, others: Tensor) -> Float[Tensor, " rows"]:
    """1 where an accepted answer's first token beats those of all answers that are not accepted, NaN without such."""
    theirs = logits[:, others].float()
    own = torch.full((len(batch),), -torch.inf)
    for row, answers in enumerate(batch.alternatives):
        firsts = torch.tensor([answer[0] for answer in answers])
        own[row] = logits[row, firsts].float().max()
        theirs[row, torch.isin(others, firsts)] = -torch.inf
    best = theirs.max(-1).values
    return (own > best).double().masked_fill(best == -torch.inf, torch.nan)
