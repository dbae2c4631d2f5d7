"""`probe`: instruction probability and knowledge probability of one model, for every example."""

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
from ivlens.forward.accepted import AcceptedAnswers
from ivlens.forward.asking import prompts_for
from ivlens.forward.borders import Borders
from ivlens.forward.scoring import whole_answer_passes
from ivlens.models.boot import TransformerBridge, check_model
from ivlens.prompts.batch import PromptBatch
from ivlens.prompts.build import build_prompts
from ivlens.prompts.recipe import PromptRecipe
from ivlens.prompts.templates import PromptTemplate
from ivlens.tasks.task import SplitName, Task, TaskExample

if TYPE_CHECKING:
    import pandas as pd

MEASURES = ("prob", "seq_prob", "accuracy", "exact", "ranked")  # explained in `probe`
SHAPE = "ivlens_shape"  # name under which a table's attrs hold the shape of the probed model
NO_KNOWLEDGE = ("rule", "choice")  # kinds of tasks without knowledge: the answer follows from the input


@checked
@dataclass(frozen=True)
class ProbeOptions:
    """On which prompts `probe` measures.

    Attributes:
        split: The split whose examples are asked.
        n_prompts: At most so many examples of each task, drawn with the recipe's seed; None: the whole split.
        n_clozes: At most so many clozes of each task; every example is put into each of them. None: all.
        recipe: How clean prompts are made, with the seed of splits and draws; prompts of clozes have neither
            instruction nor demonstrations.
        batch_size: Number of prompts in a pass.
    """

    split: SplitName = "test"
    n_prompts: int | None = None
    n_clozes: int | None = 4
    recipe: PromptRecipe = PromptRecipe()
    batch_size: int = 128

    def __post_init__(self) -> None:
        check_counts(self, n_prompts=1, n_clozes=1, batch_size=1)


def has_knowledge(task: Task) -> bool:
    """Whether the task's answers are knowledge that a cloze can ask for without an instruction.

    The task needs clozes, and must not be a rule or a choice: the first letter of a word is seen, not known.
    """
    return bool(task.clozes) and task.kind not in NO_KNOWLEDGE


@checked
def probe(model: TransformerBridge, tasks: Sequence[Task], options: ProbeOptions | None = None) -> "pd.DataFrame":
    """Measure how probable the right answers are with the instruction, and in cloze sentences without it.

    Instruction probability is `P(y | c, x)` under the clean prompt of the recipe, where `c` is the instruction, or the
    demonstrations of a task without instruction. Knowledge probability is `P(y | x)` after a cloze of the task, such as
    `The capital of {x} is`, averaged over its clozes. Both are given in these measures:

    - `prob`: probability of the answer's first token;
    - `seq_prob`: `exp(log P(y) / n_tokens)`, the geometric mean of the probabilities of its tokens, teacher-forced;
    - `accuracy`: whether greedy decoding begins with an accepted answer and does not go on inside its last word;
      `exact`: whether greedy decoding also ends the text or the line there;
    - `ranked`: whether the answer's first token is more probable than the first tokens of all other answers of the task
      (answers with the same first token do not count; NaN where all have the same).

    Args:
        model: From `load_model`, with its tokenizer.
        tasks: Tasks without clozes, rules and choices get no `knowledge` rows.

    Returns:
        One row for each task, kind (`instruction`, `knowledge`) and example: `task`, `kind`, `input`, the measures (for
        `knowledge`, means over clozes), `n_prompts`. The table's `attrs` hold the shape of the model.

    Raises:
        ValueError: no tasks, a recipe with neither instruction nor demonstrations for a task, or prompts that do not
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
        examples = shuffled(task, options)
        if not (task.fused or options.recipe.texts(task) or options.recipe.shots(task)):
            raise ValueError(
                f"task {task.name!r}: the recipe gives its prompts neither an instruction nor demonstrations, expected "
                "something that tells the task; give it an instruction or n_shots."
            )
        # the examples that fit the model with the recipe; clozes are shorter
        examples = prompts_for(model, task, examples, options.recipe, n=options.n_prompts).examples
        clozes = _clozes(task, options) if has_knowledge(task) else []
        for kind, recipes in (("instruction", [options.recipe]), ("knowledge", clozes)):
            others = _first_tokens(model, task, recipes[0]) if recipes else torch.empty(0)
            found = [_scored(model, task, examples, recipe, others, options.batch_size) for recipe in recipes]
            # an input may be too long for one cloze and not for another
            asked = [text for text in found[0] if all(text in scores for scores in found)] if found else []
            for text in asked:
                means = np.mean([scores[text] for scores in found], 0)
                values = dict(zip(MEASURES, means.tolist(), strict=True))
                rows.append({"task": task.name, "kind": kind, "input": text, **values, "n_prompts": len(found)})
    table = pd.DataFrame(rows)
    table.attrs[SHAPE] = shape_of(model)
    return table


def shape_of(model: TransformerBridge) -> str:
    """The shape of a model in words, which is the same for all its checkpoints."""
    cfg = model.cfg  # without the vocabulary, which tuning may have grown
    return f"{cfg.architecture} of {cfg.n_layers} layers x {cfg.n_heads} heads, d_model {cfg.d_model}"


def shuffled(task: Task, options: ProbeOptions) -> list[TaskExample]:
    """The examples of a task in the order in which they are asked, the same for every model."""
    seed = options.recipe.seed
    examples = list(task.split(options.split, seed))
    Random(f"{seed}\0{task.name}\0probe").shuffle(examples)
    return examples


def _clozes(task: Task, options: ProbeOptions) -> list[PromptRecipe]:
    """The task's clozes as recipes, whose prompts have neither an instruction nor demonstrations."""
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
    """The measures of every example under one recipe, by the example's input.

    Args:
        others: First tokens of all answers of the task, for `ranked`.
    """
    batch = prompts_for(model, task, examples, recipe)
    wide, source = batch.expanded()  # a row for every accepted answer, and the prompt that it belongs to
    scores, ranked = AcceptedAnswers(len(batch), source, Borders(model.tokenizer)), torch.zeros(len(batch)).double()
    for one in whole_answer_passes(model, wide, batch_size=batch_size):
        scores.enter(one.rows, one)
        is_first, prompts = scores.firsts(one.rows)
        ranked[prompts] = _ranked(one.logits[:, 0].cpu()[is_first], batch.rows(prompts.tolist()), others)
    n_tokens = (batch.answer_tokens != -100).sum(1).cpu()
    columns = [scores.prob, (scores.logprob / n_tokens).exp(), *scores.right, ranked]
    values = torch.stack(columns, 1).tolist()
    return dict(zip((example.input for example in batch.examples), values, strict=True))


def _first_tokens(model: TransformerBridge, task: Task, recipe: PromptRecipe) -> Tensor:
    """First tokens of the task's answers in all splits."""
    # without demonstrations, which do not change how an answer is written
    return build_prompts(model.tokenizer, task, task.examples, replace(recipe, n_shots=0)).answer_tokens[:, 0].unique()


def _ranked(logits: Float[Tensor, "rows d_vocab"], batch: PromptBatch, others: Tensor) -> Float[Tensor, " rows"]:
    """1 where an accepted answer's first token is more probable than those of all wrong answers, else 0.

    NaN where no wrong answer has another first token.
    """
    theirs = logits[:, others].float()
    # -inf: a token that an accepted answer begins with cannot win against it
    own = torch.full((len(batch),), -torch.inf)
    for row, answers in enumerate(batch.alternatives):
        firsts = torch.tensor([answer[0] for answer in answers])
        own[row] = logits[row, firsts].float().max()
        theirs[row, torch.isin(others, firsts)] = -torch.inf
    best = theirs.max(-1).values
    return (own > best).double().masked_fill(best == -torch.inf, torch.nan)
