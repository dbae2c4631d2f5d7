"""`splice`: the lower blocks of one model, and the upper blocks of another."""

from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass

import torch

from ivlens.analysis.transplant.donors import check_alike
from ivlens.analysis.transplant.results import Splices
from ivlens.common.arguments import checked
from ivlens.common.checks import check_counts
from ivlens.common.progress import ticking
from ivlens.forward.borders import Borders
from ivlens.forward.hooks import added, captured_residual, check_unsteered, model_lock
from ivlens.forward.inputs import row_slices
from ivlens.forward.remembered import Auto, recipe_for
from ivlens.forward.scoring import AnswerPass, first_token_prob, judged_rows, sequence_logprob, whole_answer_passes
from ivlens.models.boot import TransformerBridge, check_model
from ivlens.models.fingerprint import model_identity
from ivlens.prompts.batch import PromptBatch
from ivlens.prompts.recipe import PromptRecipe
from ivlens.steering.prompt_sets import PromptSets
from ivlens.steering.summary import Scores
from ivlens.tasks.task import SplitName, Task

_FLOATS_PER_PASS = 2**27  # numbers of the lower model's streams that are kept at once (0.5 GB in float32)


@checked
@dataclass(frozen=True)
class SpliceOptions:
    """Where two models are spliced, and how the result is judged.

    Attributes:
        layers: From which layers on the upper model runs, 1 to the number of layers; None: all. The models themselves
            are judged in any case.
        split: The split of inputs to judge on.
        seed: Draws prompts; splits, instructions and demonstrations are those of the recipe's seed.
        rows_per_pass: Upper bound on rows in one forward pass; memory may lower it.
    """

    layers: tuple[int, ...] | None = None
    split: SplitName = "test"
    seed: int = 0
    rows_per_pass: int = 64

    def __post_init__(self) -> None:
        check_counts(self, seed=0, rows_per_pass=1)


@checked
def splice(
    before: TransformerBridge,
    after: TransformerBridge,
    task: Task,
    *,
    recipe: PromptRecipe | Auto | None = None,
    n_prompts: int | None = None,
    options: SpliceOptions | None = None,
) -> Splices:
    """Measure how often the lower blocks of one model and the upper blocks of another answer a task right together.

        >>> print(ivlens.splice(before, after, task))

    The residual stream that enters block `l` of the upper model is, at every position, that of the lower model: blocks
    0 to `l - 1` are those of one model, the others with the final norm and the unembedding those of the other. Where
    the accuracy of a series jumps, there lies what training has changed for this task.

    Args:
        before, after: A model, and a fine-tuned copy of it with the same tokenizer, from `load_model`.
        task: A task that the first model knows.
        recipe: How clean prompts are made; None: an instruction, as the task has it.
        n_prompts: The largest number of prompts; None: the whole split.
        options: At which layers, and how the result is judged.

    Raises:
        ValueError: models of different shapes, a layer that they do not have, or prompts that do not fit.
        RuntimeError: inside a `steer` context.

    Source: docs/method.md, 16 Parts of one model in another.
    """
    options = options or SpliceOptions()
    for name, model in (("before", before), ("after", after)):
        check_unsteered(check_model(model, name))
    check_alike(before, after)
    n_layers = before.cfg.n_layers
    layers = sorted(set(options.layers if options.layers is not None else range(1, n_layers + 1)))
    off = [layer for layer in layers if not 1 <= layer <= n_layers]
    if off:
        raise ValueError(f"layers has {off[0]}, expected layers from 1 to {n_layers}; 0 is the upper model as it is.")
    recipe = recipe_for(before, task, recipe).resolved(task)
    prompts = PromptSets(before, task, recipe, None, n_prompts, options.seed).batch(options.split)
    found: list[tuple[str, int, Scores]] = []
    with ExitStack() as stack:
        for model in sorted((before, after), key=id):  # in one order: two threads cannot block each other
            stack.enter_context(model_lock(model))
        for lower, below, above in (("before", before, after), ("after", after, before)):
            scores = _series(below, above, prompts, layers, options.rows_per_pass, f"blocks of {lower} below")
            found += [(lower, layer, one) for layer, one in scores.items()]
    settings = asdict(options) | {
        "task": task.name,
        "task_hash": task.content_hash(),
        "before": model_identity(before).key,
        "after": model_identity(after).key,
        "recipe": recipe.to_dict(),
        "n_prompts": n_prompts,
    }
    return Splices.of(found, settings)


def _series(
    below: TransformerBridge,
    above: TransformerBridge,
    prompts: PromptBatch,
    layers: list[int],
    rows_per_pass: int,
    what: str,
) -> dict[int, Scores]:
    """The scores for each layer; 0 is the upper model as it is."""
    wide, source = prompts.expanded()  # a row for every accepted answer, and the prompt that it belongs to
    n_columns = wide.tokens.shape[1] + wide.answer_tokens.shape[1]
    size = _FLOATS_PER_PASS // (n_columns * (below.cfg.d_model * (len(layers) + 1) + below.cfg.d_vocab))
    # where a pass would be wider than the context, `whole_answer_passes` runs row by row
    size = max(1, min(size, rows_per_pass)) if n_columns <= below.cfg.n_ctx else 1
    found = {at: _Answers(len(prompts), source, Borders(above.tokenizer)) for at in (0, *layers)}
    for rows in ticking(list(row_slices(len(wide), size)), what, "passes"):
        part = wide.rows(rows)
        with captured_residual(below, [layer - 1 for layer in layers]) if layers else nullcontext({}) as streams:
            _one_pass(below, part)
        found[0].enter(rows, _one_pass(above, part))
        for layer in layers:
            stream = streams[layer - 1]
            with added(above, layer - 1, "resid_post", lambda own, stream=stream: stream.to(own.device, own.dtype)):
                found[layer].enter(rows, _one_pass(above, part))
    return {layer: one.scores() for layer, one in found.items()}


def _one_pass(model: TransformerBridge, part: PromptBatch) -> AnswerPass:
    """All rows with their answers in one pass."""
    (only,) = whole_answer_passes(model, part, batch_size=len(part))
    return only


class _Answers:
    """The scores of one splice, entered row by row."""

    def __init__(self, n_prompts: int, source: torch.Tensor, borders: Borders) -> None:
        self._source, self._borders = source.cpu(), borders
        self._right = torch.zeros(2, n_prompts)
        self._prob, self._logprob = torch.full((2, n_prompts), torch.nan)
        self._scored: set[int] = set()

    def enter(self, rows: slice, one: AnswerPass) -> None:
        """Enter the scores of some rows; of a prompt's answers the first one gives its probabilities."""
        prompts = self._source[rows]
        right = judged_rows(one.logits, one.answers, one.is_full, self._borders)
        for kept, found in zip(self._right, right, strict=True):
            kept[prompts[found.cpu()]] = 1.0
        firsts = first_token_prob(one.logits[:, 0], one.answers[:, 0]).float().cpu()
        wholes = sequence_logprob(one.logits[:, : one.answers.shape[1]], one.answers).float().cpu()
        for row, prompt in enumerate(prompts.tolist()):
            if prompt not in self._scored:
                self._scored.add(prompt)
                self._prob[prompt], self._logprob[prompt] = firsts[row], wholes[row]

    def scores(self) -> Scores:
        """The scores of all prompts, in one row."""
        return Scores(*(each[None] for each in (*self._right, self._prob, self._logprob)))
