"""Estimate the floating-point operations of a cell: two for each weight and token of a forward pass.

The estimates are lower bounds: in small models starting an operation takes longer than the operation. Where the store
has finished cells of the same kind and model, their time tells how fast the machine really is.
"""

import time
from functools import lru_cache
from typing import Any

import torch

from ivlens.prompts.recipe import PromptRecipe
from ivlens.runs.sweep.cells import Cell, Survey
from ivlens.runs.sweep.tasks import open_task, suite_of_cell
from ivlens.tasks.task import Task, split_of
from ivlens.tuning.builder import find_guidance

CHARS_PER_TOKEN = 4
BACKWARD = 2  # forward passes that one backward pass costs


def forward(model: Survey, n_tokens: float | int, n_unembedded: float | int | None = None) -> float:
    """Operations of a forward pass over `n_tokens`, with logits at `n_unembedded` of them (None: at all)."""
    unembedding = model.d_model * model.d_vocab
    columns = n_tokens if n_unembedded is None else n_unembedded
    # all other weights are used for every token, the unembedding only where logits are asked for
    return 2.0 * max(model.n_params - unembedding, unembedding) * n_tokens + 2.0 * unembedding * columns


def all_heads(model: Survey, n_tokens: float | int) -> float:
    """Operations of the exact effects of all heads on one prompt: one copy of the last token for each head."""
    n_copies = model.n_layers * model.n_heads
    # a copy begins at the layer of its head, so on average it passes half of the layers
    return forward(model, n_tokens + n_copies / 2, n_copies + 1)


def effects(cell: Cell, model: Survey) -> float:
    """Operations of mean head outputs on clean prompts (with `contrast` on corrupted ones too), and of the effects."""
    options, n_tokens = cell.options, _prompt(cell)
    means = (
        (2 if options.contrast else 1)
        * min(options.n_mean_prompts, _n(cell.task, "fit", cell.seed))
        * forward(model, n_tokens)
    )
    n_prompts = min(options.n_prompts, _n(cell.task, "fit", cell.seed))
    if options.method == "attribution":
        return means + n_prompts * (1 + BACKWARD) * forward(model, n_tokens)
    if options.method == "reference":
        return means + n_prompts * (model.n_layers * model.n_heads + 1) * forward(model, n_tokens)
    return means + n_prompts * all_heads(model, n_tokens)


def vectors(cell: Cell, model: Survey) -> float:
    """Operations of one matrix product for each head, and one with the unembedding."""
    return 2.0 * cell.options.k * model.d_model**2 + 2.0 * model.d_model * model.d_vocab


def interventions(cell: Cell, model: Survey) -> float:
    """Operations of trying every vector at every setting, the best settings on more prompts, and of the judgement."""
    options = cell.options
    n_vectors = 1 + 2 * options.n_draws + len(cell.others)
    n_settings = len(options.layers or range(model.n_layers)) * len(options.alphas) * len(options.sites)
    n_select, n_test = (_n(cell.task, split, cell.seed, options.n_judge_prompts) for split in ("select", "test"))
    rows = n_vectors * (n_settings * min(16, n_select) + 6 * n_select + n_test)
    # most of each prompt is run once, and only the rest for each vector and setting
    prefix = (n_select + 2 * n_test) * forward(model, _prompt(cell), 1)
    return prefix + rows * forward(model, 2)  # the last prompt token and the answer


def forgetting(cell: Cell, model: Survey) -> float:
    """Operations of every prompt, with the instruction and as each cloze: once for its answer, once for decoding."""
    options, task = cell.options, open_task(cell.task)
    n_forms = 1 + min(len(task.clozes), options.n_clozes or len(task.clozes))
    return 2 * n_forms * _n(cell.task, "test", cell.seed, options.n_prompts) * forward(model, _prompt(cell) + 2)


def dynamics(cell: Cell, model: Survey) -> float:
    """Operations of effects, of mean head outputs on two halves, and of prompts for performance and hidden states."""
    n_tokens, n_fit = _prompt(cell), _n(cell.task, "fit", cell.seed)
    scored = 3 * _n(cell.task, "select", cell.seed, cell.options.n_judge_prompts) * forward(model, n_tokens)
    means = 2 * min(100, n_fit) * forward(model, n_tokens)
    return means + scored + min(cell.options.n_prompts, n_fit) * all_heads(model, n_tokens)


def tuning(cell: Cell, model: Survey) -> float:
    """Operations of the steps of a training, its judgements, and the effects that guidance needs."""
    options, n_tokens = cell.options, _prompt(cell) + 2
    n_judged = options.n_prompts * (1 + len(options.watch))
    return _training(options, model, n_tokens, n_judged, max(1, len(options.watch)))


def sequences(cell: Cell, model: Survey) -> float:
    """Operations of a training on every task of a suite, and of judging all tasks before the first and after each."""
    options = cell.options
    suite = suite_of_cell(cell.task, *options.suite).suite
    tasks = [*suite.tasks, *suite.general]
    n_tokens = 2 + sum(prompt_tokens(task, PromptRecipe(n_shots=0)) for task in tasks) / len(tasks)
    n_general, n_tasks = len(suite.general) * options.n_general, len(suite.tasks)
    trained = sum(
        _training(options, model, n_tokens, options.n_prompts + number * options.n_general + n_general, 1)
        for number in range(n_tasks)
    )
    n_judged = (n_tasks + 1) * n_tasks * options.n_prompts + 2 * (2 if options.few_shots else 1) * n_general
    return trained + n_judged * forward(model, n_tokens)


def _training(options: Any, model: Survey, n_tokens: float, n_judged: int, n_earlier: int) -> float:
    """Operations of one training: its steps, judgements of `n_judged` prompts each, and effects for guidance.

    Args:
        n_earlier: Number of earlier tasks that guidance may measure.
    """
    plan, _ = find_guidance(options.guidance)
    terms = () if plan is None else plan.terms
    n_rows = options.batch_size + sum(term.n_own_prompts for term in terms)
    step = (1 + BACKWARD) * n_rows * forward(model, n_tokens)
    # + 2: before the training and after it
    judged = (options.steps / options.judge_every + 2) * n_judged * forward(model, n_tokens)
    n_measured = max((term.n_measured(n_earlier) for term in terms), default=0)
    measured = 0.0 if plan is None else n_measured * plan.n_prompts * all_heads(model, n_tokens)
    return options.steps * step + judged + measured


def prompt_tokens(task: Task, recipe: PromptRecipe | None = None) -> float:
    """Number of tokens of a task's clean prompts, estimated from the letters of some examples."""
    some, recipe = task.examples[:32], recipe or PromptRecipe()
    mean = sum(len(example.input) + len(example.answer) for example in some) / len(some)
    instruction = max((len(text) for text in recipe.texts(task)[:1]), default=0)
    # 6: the tokens of a template
    return 6 + (instruction + mean * (1 + recipe.shots(task))) / CHARS_PER_TOKEN


def _prompt(cell: Cell) -> float:
    """Estimated number of tokens of the cell's prompts."""
    try:
        return prompt_tokens(open_task(cell.task), cell.recipe)
    except ValueError:  # the recipe does not suit the task: the cell will fail with this error, and not the whole sweep
        return prompt_tokens(open_task(cell.task), PromptRecipe(n_shots=0))


@lru_cache(maxsize=1)
def machine_rate() -> float:
    """Floating-point operations per second of this machine in a product of matrices; no model reaches more."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    one = torch.ones(1024, 1024, device=device)
    best = 0.0
    for _ in range(4):
        started = time.perf_counter()
        float((one @ one)[0, 0])
        best = max(best, 2 * 1024**3 / (time.perf_counter() - started))
    return best


def _n(name: str, split: str, seed: int, at_most: int | None = None) -> int:
    """Number of a task's examples in a split, or `at_most` if it has more."""
    found = sum(split_of(example.input, seed) == split for example in open_task(name).examples)
    return found if at_most is None else min(found, at_most)
