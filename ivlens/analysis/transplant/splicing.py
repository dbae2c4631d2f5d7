"""`splice`: the lower blocks of one model, and the upper blocks of another."""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass

from jaxtyping import Float
from torch import Tensor

from ivlens.analysis.transplant.donors import check_alike
from ivlens.analysis.transplant.results import Splices
from ivlens.common.arguments import checked
from ivlens.common.checks import check_counts
from ivlens.common.memory import pass_on_shortage
from ivlens.common.progress import ticking
from ivlens.forward.accepted import AcceptedAnswers
from ivlens.forward.borders import Borders
from ivlens.forward.hooks import added, captured_residual, check_unsteered, model_lock
from ivlens.forward.inputs import row_slices
from ivlens.forward.joining import blocks_left_out, forms_seen
from ivlens.forward.remembered import Auto, recipe_for
from ivlens.forward.scoring import AnswerPass, whole_answer_passes
from ivlens.models.boot import TransformerBridge, check_model
from ivlens.models.fingerprint import model_identity
from ivlens.prompts.batch import PromptBatch
from ivlens.prompts.recipe import PromptRecipe
from ivlens.steering.prompt_sets import PromptSets
from ivlens.steering.summary import Scores
from ivlens.tasks.task import SplitName, Task

_FLOATS_PER_PASS = 2**27  # numbers of both models' streams, and logits, that are kept at once (0.5 GB in float32)
_FEW = 4  # rows on which it is seen whether blocks can be left out


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
        both = _series((before, after), prompts, layers, options.rows_per_pass)
    for lower, scores in zip(("before", "after"), both, strict=True):
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
    models: tuple[TransformerBridge, TransformerBridge], prompts: PromptBatch, layers: list[int], rows_per_pass: int
) -> tuple[dict[int, Scores], dict[int, Scores]]:
    """The scores for each layer, with the first model below and with the second; 0 is the upper model as it is."""
    wide, source = prompts.expanded()  # a row for every accepted answer, and the prompt that it belongs to
    cfg, n_columns = models[0].cfg, wide.tokens.shape[1] + wide.answer_tokens.shape[1]
    size = _FLOATS_PER_PASS // (n_columns * (2 * cfg.d_model * (len(layers) + 1) + cfg.d_vocab))
    # where a pass would be wider than the context, `whole_answer_passes` runs row by row
    size = max(1, min(size, rows_per_pass)) if n_columns <= cfg.n_ctx else 1
    # both ways round: the model above, and the scores
    ways = [
        (above, {at: AcceptedAnswers(len(prompts), source, Borders(above.tokenizer)) for at in (0, *layers)})
        for above in models[::-1]
    ]
    enters: list[_Enter] = []
    for rows in ticking(list(row_slices(len(wide), size)), "splicing blocks", "passes"):
        part, streams = wide.rows(rows), []
        for above, found in ways:  # each model as it is
            with captured_residual(above, [layer - 1 for layer in layers]) if layers else nullcontext({}) as own:
                found[0].enter(rows, _one_pass(above, part))
            streams.append(own)
        if not enters:  # whether blocks can be left out depends on the models alone: the first rows show it
            few = part.rows(slice(_FEW))
            enters = [_way_in(models[0], ways[0][0], few, layers), _way_in(models[1], ways[1][0], few, layers)]
        for (above, found), own, below, enter in zip(ways, streams, streams[::-1], enters, strict=True):
            for layer in layers:
                # as the upper model has it: on its device and in its dtype
                with enter(above, layer, below[layer - 1].to(own[layer - 1])):
                    found[layer].enter(rows, _one_pass(above, part))
    first, second = ({layer: _one_row(scores) for layer, scores in found.items()} for _, found in ways)
    return first, second


_Stream = Float[Tensor, "rows pos d_model"]
_Enter = Callable[[TransformerBridge, int, _Stream], AbstractContextManager[None]]


def _replaced(model: TransformerBridge, layer: int, stream: _Stream) -> AbstractContextManager[None]:
    """In the body, this stream enters the layer; blocks below it run for nothing."""
    return added(model, layer - 1, "resid_post", lambda own: stream)


def _way_in(below: TransformerBridge, above: TransformerBridge, few: PromptBatch, layers: list[int]) -> _Enter:
    """How streams enter a layer of the upper model: with the blocks below left out, if a few rows get the same logits.

    Blocks of some families hand on more than the stream.
    """
    if not layers:
        return _replaced
    # as high as possible: what a block needs of one that was left out is missed there, but not behind the last block
    layer = max((layer for layer in layers if layer < above.cfg.n_layers), default=layers[-1])
    streams = []
    for model in (below, above):
        with captured_residual(model, [layer - 1]) as kept, forms_seen(model) as forms:
            _one_pass(model, few)
        streams.append(kept[layer - 1])
    stream, form = streams[0].to(streams[1]), forms[-1]
    with _replaced(above, layer, stream):
        whole = _one_pass(above, few).logits

    def left_out(model: TransformerBridge, start: int, entering: _Stream) -> AbstractContextManager[None]:
        return blocks_left_out(model, start, entering, form)

    try:
        with left_out(above, layer, stream):
            off = (_one_pass(above, few).logits - whole).abs()  # NaN is within no bound
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError) as error:
        pass_on_shortage(error)
        return _replaced
    return left_out if bool((off <= 1e-4 * (whole.abs() + whole.abs().max())).all()) else _replaced


def _one_pass(model: TransformerBridge, part: PromptBatch) -> AnswerPass:
    """All rows with their answers in one pass."""
    (only,) = whole_answer_passes(model, part, batch_size=len(part))
    return only


def _one_row(scores: AcceptedAnswers) -> Scores:
    """The scores of all prompts, in one row."""
    return Scores(*(each.float()[None] for each in (*scores.right, scores.prob, scores.logprob)))
