"""`head_attention`: where heads look from the last prompt token, part by part of the prompt."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ivlens.analysis.attention.chosen import Named, chosen_heads, followed
from ivlens.analysis.attention.looked import SEGMENTS, Looked, LookedAt
from ivlens.analysis.attention.results import HeadAttention
from ivlens.analysis.attention.scores import HeadScores, ScoreOptions, check_seen, head_scores
from ivlens.common.arguments import checked
from ivlens.common.checks import check_counts
from ivlens.common.precision import HALF
from ivlens.common.progress import ticking
from ivlens.forward.hooks import captured_patterns, check_unsteered, model_lock
from ivlens.forward.inputs import Inputs, check_prompts, row_slices
from ivlens.forward.remembered import Auto
from ivlens.models.boot import ModelRef, TransformerBridge, check_model
from ivlens.models.fingerprint import model_identity
from ivlens.prompts.batch import PromptBatch
from ivlens.prompts.corruptions import Corruption
from ivlens.prompts.recipe import PromptRecipe
from ivlens.prompts.segments import Segment, token_segments
from ivlens.prompts.tokens import token_text
from ivlens.steering.prompt_sets import PromptSets
from ivlens.tasks.task import SplitName, Task
from ivlens.vectors.heads import Heads

_SINK = {True: 2e-2, False: 1e-3}  # what rounding may take from a row's sum of 1, in half precision or not


@checked
@dataclass(frozen=True)
class AttentionOptions:
    """Which prompts heads are watched on, and what is kept.

    Attributes:
        corruptions: Corrupted prompts of the same inputs beside the clean ones. None: `shuffle` where there are two
            demonstrations or more, otherwise nothing.
        k: How many of the strongest heads are watched where effects are given.
        split: The split of the inputs.
        seed: Draws the inputs; splits, instructions and demonstrations are those of the recipe's seed.
        n_kept: For so many prompts of each kind the weights of all single tokens are kept, for
            `HeadAttention.tokens`; None: for all.
        scores: How heads are scored as induction and previous-token heads, or their scores; None: not at all.
        batch_size: Prompts in each pass.
    """

    corruptions: Sequence[Corruption] | None = None
    k: int = 10
    split: SplitName = "select"
    seed: int = 0
    n_kept: int | None = 8
    scores: ScoreOptions | HeadScores | None = ScoreOptions()
    batch_size: int = 16

    def __post_init__(self) -> None:
        check_counts(self, k=1, seed=0, n_kept=0, batch_size=1)


@checked
def head_attention(
    model: TransformerBridge,
    task: Task,
    heads: Named = None,
    *,
    recipe: PromptRecipe | Auto | None = None,
    n_prompts: int | None = 32,
    options: AttentionOptions | None = None,
) -> HeadAttention:
    """Measure how much attention heads pay, from the last prompt token, to each part of the prompt.

    The weights of the tokens of each segment are added, so the shares of a head sum to 1 in every prompt:

    - `start`: the first token (BOS, or whatever a prompt begins with), to which heads attend that do nothing;
    - `instruction`: the instruction, and the system text of a `PromptTemplate`;
    - `inputs`, `answers`: those of the demonstrations;
    - `query`: the input that is asked about;
    - `template`: everything else, such as `Input:`, separators, the cue, and what a chat template writes;
    - `sink`: attention that goes to no token, in families that have learned such sinks (gpt-oss); otherwise 0.

    A token that lies across two parts counts for the one that has most of its letters.

    Example:
        >>> import ivlens
        >>> model, task = ivlens.load_model("pocket"), ivlens.load_task("antonym")
        >>> found = ivlens.head_attention(model, task, ["L0H7"], n_prompts=4)
        >>> found.frame().set_index("segment")["share"].round(1)[["instruction", "query"]].to_dict()
        {'instruction': 1.0, 'query': 0.0}
        >>> figure = found.plot("L0H7")  # one prompt, token by token; print(found): the shares of all parts

    Args:
        model: From `load_model`, with its tokenizer.
        task: From `load_task`.
        heads: Pairs `(layer, head)`, labels (`L20H5`), effects (their `k` strongest heads) or a vector (its heads);
            None: all heads.
        recipe: How clean prompts are made. None: as those of the effects or of the vector, otherwise the task's
            instruction; `"auto"`: see `head_effects`.
        n_prompts: The largest number of prompts of each kind; None: the whole split.
        options: Which other prompts, and what is kept.

    Raises:
        TypeError: a model that `load_model` did not return, or one without a tokenizer.
        ValueError: no such head; prompts that do not fit the model; a tokenizer that does not show where its tokens
            stand; or attention that gives no weights (fused kernels).
        RuntimeError: inside a `steer` context.

    Source: docs/method.md, 15 Where heads look.
    """
    check_unsteered(check_model(model))
    options = options or AttentionOptions()
    chosen = chosen_heads(model, heads, options.k)
    recipe = followed(model, task, heads, recipe).resolved(task)
    corruptions = options.corruptions
    if corruptions is None:
        corruptions = ("shuffle",) if recipe.shots(task) > 1 else ()
    # all batches first: a corruption that does not suit the recipe is refused before the passes
    sets = [PromptSets(model, task, recipe, each, n_prompts, options.seed) for each in corruptions]
    clean = PromptSets(model, task, recipe, None, n_prompts, options.seed).batch(options.split, corrupted=False)
    batches = [clean, *(each.batch(options.split) for each in sets)]
    looked = {}
    for batch in batches:
        kept = batch.rows(batch.rows_of_one_kind())
        segments = token_segments(model.tokenizer, task, recipe, kept)
        looked[kept.corruptions[0]] = _looked(model, kept, segments, chosen, options)
    scores = head_scores(model, options.scores) if isinstance(options.scores, ScoreOptions) else options.scores
    settings = {name: getattr(options, name) for name in ("split", "seed", "batch_size")}
    settings |= {"recipe": recipe.to_dict(), "corruptions": list(corruptions), "n_prompts": n_prompts}
    settings |= {"task_hash": task.content_hash(), "scores": None if scores is None else dict(scores.settings)}
    return HeadAttention(
        heads=chosen,
        looked=looked,
        scores=scores,
        task=task.name,
        model=model_identity(model),
        settings=settings,
        model_ref=ModelRef(model),
    )


def _looked(
    model: TransformerBridge,
    batch: PromptBatch,
    segments: Sequence[Sequence[Segment]],
    heads: Heads,
    options: AttentionOptions,
) -> Looked:
    """Shares of one kind of prompts, and the weights of single tokens of the first ones."""
    shares, kept = torch.zeros(len(batch), len(heads), len(SEGMENTS)), list[LookedAt]()
    for prompt, (ids, weights) in enumerate(
        last_rows(model, batch.tokens, batch.attention_mask, heads, options.batch_size)
    ):
        labels = segments[prompt]
        shares[prompt].index_add_(1, torch.tensor([SEGMENTS.index(each) for each in labels]), weights)
        if options.n_kept is None or prompt < options.n_kept:
            texts = tuple(token_text(model.tokenizer, one) for one in ids)
            kept.append(LookedAt(ids, texts, tuple(labels), weights))
    totals = shares.sum(-1)
    sinks = with_sinks(1 - totals, heads, next(model.parameters()).dtype in HALF)
    scale = torch.where(sinks, 1.0, totals)  # where there is no sink, what lacks from 1 is rounding
    shares /= scale[..., None]
    shares[..., -1] = torch.where(sinks, (1 - totals).clamp(min=0), 0.0)
    shown = [replace(one, weights=one.weights / own[:, None]) for one, own in zip(kept, scale, strict=False)]
    return Looked(shares, tuple(example.input for example in batch.examples), tuple(shown))


def with_sinks(short: Float[Tensor, "n_prompts heads"], heads: Heads, is_half: bool) -> Bool[Tensor, " heads"]:
    """For each head whether its layer has sinks: some row of weights there sums to clearly less than 1."""
    least = {layer: False for layer, _ in heads}
    for column, (layer, _) in enumerate(heads):
        least[layer] |= bool((short[:, column] > _SINK[is_half]).any())
    return torch.tensor([least[layer] for layer, _ in heads])


def last_rows(
    model: TransformerBridge,
    tokens: Int[Tensor, "batch pos"],
    attention_mask: Int[Tensor, "batch pos"],
    heads: Heads,
    batch_size: int,
) -> Iterator[tuple[tuple[int, ...], Float[Tensor, "heads pos"]]]:
    """For each prompt its tokens, and the weights of these heads from the last to each of them (float32, CPU).

    Raises:
        ValueError: prompts that do not fit the model, weights that are NaN, or attention that gives none.
    """
    layers = sorted({layer for layer, _ in heads})
    for rows in ticking(list(row_slices(len(tokens), batch_size)), "attention", "pass"):
        # checked in parts, which cuts the padding that these rows do not need
        part, mask = check_prompts(model, tokens[rows], attention_mask[rows])
        with model_lock(model), captured_patterns(model, layers, select=_last) as kept:
            check_unsteered(model)
            Inputs(part, mask, last=part.shape[1] - 1, n_answer=1).logits(model)
            check_seen(model, kept, layers)
        weights = torch.stack([kept[layer][:, head].cpu() for layer, head in heads], 1)
        if bool(weights.isnan().any()):
            raise ValueError("the model's attention has NaN weights, expected numbers; load it in float32 or bfloat16.")
        for ids, each, seen in zip(part.cpu(), weights, (mask == 1).cpu(), strict=True):
            yield tuple(ids[seen].tolist()), each[:, seen]


def _last(pattern: Float[Tensor, "batch n_heads pos keys"]) -> Float[Tensor, "batch n_heads keys"]:
    # cloned, so that the pattern of the whole prompt is let go of when the block has run
    return pattern[:, :, -1].clone().float()
