"""`patch_places`: at which place of the prompt a clean activation brings the answer back."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any, SupportsIndex

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ivlens.analysis.attention.chosen import chosen_heads, label
from ivlens.analysis.inside.places_results import PlaceEffects
from ivlens.common.arguments import checked
from ivlens.common.checks import check_count, check_counts
from ivlens.common.progress import Progress, bar
from ivlens.effects.plan import Pair, Plan, measured_prompts, score_for
from ivlens.forward.hooks import (
    added,
    captured_heads,
    captured_residual,
    check_layers,
    check_unsteered,
    model_lock,
    patched_heads,
)
from ivlens.forward.inputs import check_answers, check_prompts, forced, row_slices
from ivlens.forward.remembered import Auto, recipe_for
from ivlens.forward.scoring import Score, score_answers, scored_columns
from ivlens.forward.sharing import rest
from ivlens.models.boot import TransformerBridge, check_model
from ivlens.models.fingerprint import model_identity
from ivlens.prompts.batch import PromptBatch
from ivlens.prompts.corruptions import Corruption
from ivlens.prompts.recipe import PromptRecipe
from ivlens.prompts.segments import place_tokens
from ivlens.tasks.task import SplitName, Task
from ivlens.vectors.heads import Heads

_MOST_LAYERS = 12  # that are patched where none are named
Spot = tuple[int, int | None]  # a layer and a head; None: the residual stream after the block


@checked
@dataclass(frozen=True)
class PlaceOptions:
    """Which prompts are patched, and how they are scored.

    Attributes:
        corruption: What the patched prompts lack, as in `head_effects`; it should leave the inputs of the
            demonstrations where they are, as `shuffle` and `counterfactual` do.
        score: The score whose gain is the effect; None: as `head_effects` chooses it.
        split: The split of the inputs.
        batch_size: Rows in each pass: a row is one prompt, patched at one place.
        progress: Called with (done, total) after every pass.
    """

    corruption: Corruption | None = None
    score: Score | None = None
    split: SplitName = "select"
    batch_size: int = 32
    progress: Progress = lambda done, total: None

    def __post_init__(self) -> None:
        check_counts(self, batch_size=1)


@checked
def patch_places(
    model: TransformerBridge,
    task: Task,
    *,
    layers: Iterable[SupportsIndex] | None = None,
    heads: Sequence[tuple[int, int] | str] = (),
    recipe: PromptRecipe | Auto | None = None,
    n_prompts: int = 8,
    options: PlaceOptions | None = None,
) -> PlaceEffects:
    """How much of the answer's score comes back when one activation at one place is taken from the clean prompt.

        `E(l, q) = s(M(corrupted | h_l(q) := h_l^clean(q))) - s(M(corrupted))`

    The places are the last tokens of the instruction, of each demonstration's input and answer, and of the query, and
    the last token of the prompt. Those that some prompt lacks, clean or corrupted, are left out.

    Example:
        >>> import ivlens
        >>> model, task = ivlens.load_model("pocket"), ivlens.load_task("antonym")
        >>> found = ivlens.patch_places(model, task, layers=[2, 4], n_prompts=2)  # or heads=["L0H7"]
        >>> found.places
        ('instruction', 'query', 'last')
        >>> round(float(found.effects[:, 0, -1].mean()), 1)  # layer 2, last token: the answer is there
        1.0

    Args:
        model: From `load_model`, with its tokenizer.
        task: From `load_task`.
        layers: The layers whose residual stream (after the block) is patched. None: up to 12, evenly spread, or none if
            heads are given.
        heads: Heads whose output is patched, as `(layer, head)` or labels (`L20H5`).
        recipe: How clean prompts are made. None: the task's instruction, or five demonstrations where it has none;
            `"auto"`: see `head_effects`.
        n_prompts: Number of prompts; fewer where the split has fewer.
        options: Which prompts, and their score.

    Raises:
        TypeError: a model that `load_model` did not return, or one without a tokenizer.
        ValueError: no such layer or head, nothing to patch, prompts that do not fit the model, or a tokenizer that does
            not show where its tokens stand.
        RuntimeError: inside a `steer` context.

    Source: docs/method.md, 17 Inside a pass; arXiv 2202.05262 (patching clean activations into corrupted runs).
    """
    check_unsteered(check_model(model))
    options = options or PlaceOptions()
    check_count("n_prompts", n_prompts, 1)
    spots = _spots(model, layers, heads)
    plan = Plan.of(task, recipe_for(model, task, recipe), options.corruption, None)
    examples = list(task.split(options.split, plan.recipe.seed))
    Random(f"{plan.recipe.seed}\0{task.name}\0places").shuffle(examples)
    pair = measured_prompts(model, plan, examples, n_prompts, options.score)
    score = score_for(task, pair.corrupted, options.score)
    run = _Run.of(model, plan, pair, score, options)
    kept = run.captured(spots)
    base, clean = run.plain(pair.corrupted), run.plain(pair.clean)
    total = len(spots) * len(list(row_slices(run.n_rows, options.batch_size)))
    scores, done = [], 0
    with bar(f"{task.name}: places", total, "pass") as shown:
        for spot in spots:
            parts = []
            for part in run.patched(spot, kept):
                parts.append(part)
                done += 1
                shown(done, total)
                options.progress(done, total)
            scores.append(torch.cat(parts).reshape(run.corrupted_at.shape))
    effects = torch.stack(scores, 1)
    return PlaceEffects(
        targets=tuple(f"resid {layer}" if head is None else label((layer, head)) for layer, head in spots),
        places=run.places,
        effects=effects - base[:, None, None],
        base_scores=base,
        clean_scores=clean,
        inputs=tuple(example.input for example in pair.clean.examples),
        task=task.name,
        model=model_identity(model),
        settings=plan.settings() | {"score": score, "split": options.split, "n_prompts": n_prompts},
    )


def _picked(number: Int[Tensor, "batch 1"], at: Int[Tensor, "batch places"], tensor: Tensor) -> Tensor:
    """The activations at the places, cut out of those at all tokens."""
    return tensor[number, at].clone()  # cloned: a view would keep all tokens


def _spots(
    model: TransformerBridge, layers: Iterable[SupportsIndex] | None, heads: Sequence[tuple[int, int] | str]
) -> tuple[Spot, ...]:
    """What is patched: residual streams first, then heads."""
    chosen: Heads = chosen_heads(model, heads) if heads else ()
    if layers is None:
        layers = () if chosen else _spread(model.cfg.n_layers)
    spots = (*((layer, None) for layer in check_layers(model, layers)), *chosen)
    if not spots:
        raise ValueError("patch_places got no layers and no heads, expected something to patch; name some.")
    return spots


def _spread(n_layers: int) -> list[int]:
    """All layers, or `_MOST_LAYERS` of them from the first to the last."""
    steps = min(n_layers, _MOST_LAYERS)
    return sorted({round(step * (n_layers - 1) / max(1, steps - 1)) for step in range(steps)})


@dataclass(frozen=True)
class _Run:
    """The prompts of one measurement and where their places are.

    Attributes:
        places: The names of the places that all prompts have.
        clean_at, corrupted_at: The column of each place in the left-padded tokens of each prompt.
    """

    model: TransformerBridge
    pair: Pair
    score: str
    places: tuple[str, ...]
    clean_at: Int[Tensor, "n_prompts places"]
    corrupted_at: Int[Tensor, "n_prompts places"]
    batch_size: int

    @classmethod
    def of(cls, model: TransformerBridge, plan: Plan, pair: Pair, score: str, options: PlaceOptions) -> "_Run":
        """Find the places of all prompts; both batches are cut to the columns that they need."""
        pair = Pair(pair.corrupted.narrowed(), pair.clean.narrowed())
        ends = {
            name: place_tokens(model.tokenizer, plan.task, plan.recipe, batch)
            for name, batch in (("clean", pair.clean), ("corrupted", pair.corrupted))
        }
        first = ends["clean"][0]
        places = tuple(name for name in first if all(name in each for rows in ends.values() for each in rows))
        columns = {}
        for name, batch in (("clean", pair.clean), ("corrupted", pair.corrupted)):
            padding = (batch.attention_mask == 0).sum(1).tolist()
            rows = zip(ends[name], padding, strict=True)
            columns[name] = torch.tensor([[before + each[place] for place in places] for each, before in rows])
        return cls(model, pair, score, places, columns["clean"], columns["corrupted"], options.batch_size)

    @property
    def n_rows(self) -> int:
        """Rows that are run for each spot."""
        return len(self.pair.clean) * len(self.places)

    def captured(self, spots: Sequence[Spot]) -> Mapping[Spot, Float[Tensor, "n_prompts places d"]]:
        """The clean activations of every spot at every place."""
        layers = sorted({layer for layer, head in spots if head is None})
        of_heads = sorted({layer for layer, head in spots if head is not None})
        parts: dict[Spot, list[Tensor]] = {spot: [] for spot in spots}
        for rows in row_slices(len(self.pair.clean), self.batch_size):
            at = self.clean_at[rows]
            number = torch.arange(len(at))[:, None]
            with model_lock(self.model), ExitStack() as stack:
                select = partial(_picked, number, at)
                streams = stack.enter_context(captured_residual(self.model, layers, select=select)) if layers else {}
                z = stack.enter_context(captured_heads(self.model, of_heads, select=select)) if of_heads else {}
                self._logits(self.pair.clean, rows)
            for layer, head in spots:
                parts[layer, head].append(streams[layer] if head is None else z[layer][:, :, head])
        return {spot: torch.cat(each) for spot, each in parts.items()}

    def plain(self, batch: PromptBatch) -> Float[Tensor, " n_prompts"]:
        """The scores of prompts without a patch."""
        parts = []
        for rows in row_slices(len(batch), self.batch_size):
            with model_lock(self.model):
                parts.append(self._scores(self._logits(batch, rows), batch, torch.arange(len(batch))[rows]))
        return torch.cat(parts)

    def patched(
        self, spot: Spot, kept: Mapping[Spot, Float[Tensor, "n_prompts places d"]]
    ) -> Iterator[Float[Tensor, " rows"]]:
        """The scores of the corrupted prompts, each patched at each place: prompt by prompt, pass by pass."""
        n_prompts, n_places = self.corrupted_at.shape
        prompts = torch.arange(n_prompts).repeat_interleave(n_places)
        columns, values = self.corrupted_at.flatten(), kept[spot].flatten(0, 1)
        for rows in row_slices(len(prompts), self.batch_size):
            with model_lock(self.model), self._edit(spot, columns[rows], values[rows]):
                logits = self._logits(self.pair.corrupted, prompts[rows])
            yield self._scores(logits, self.pair.corrupted, prompts[rows])
            rest(self.model)  # between two passes, where no hook is on the model, short ones of others go first

    def _edit(
        self, spot: Spot, columns: Int[Tensor, " rows"], values: Float[Tensor, "rows d"]
    ) -> AbstractContextManager[None]:
        """A context in which each row of a pass has `values` at its own column."""
        (layer, head), number = spot, torch.arange(len(columns))

        def edit(tensor: Tensor, layer: int = 0) -> Tensor:
            tensor = tensor.clone()  # in place, the edit would reach whatever else holds this tensor
            at = (number, columns) if head is None else (number, columns, head)
            tensor[at] = values.to(tensor)
            return tensor

        if head is None:
            return added(self.model, layer, "resid_post", edit)
        return patched_heads(self.model, edit, [layer])

    def _logits(self, batch: PromptBatch, rows: Any) -> Float[Tensor, "rows answer_len d_vocab"]:
        """Logits at the positions that predict the scored answer tokens. Columns stay those of the whole batch."""
        tokens, mask = batch.tokens[rows], batch.attention_mask[rows]
        check_prompts(self.model, tokens, mask)
        device = next(self.model.parameters()).device
        tokens = tokens.to(device).masked_fill(mask.to(device) == 0, 0)
        answers = scored_columns(self.score, check_answers(self.model, batch.answer_tokens, len(batch)))
        return forced(tokens, mask.to(device), answers[rows]).logits(self.model)

    def _scores(self, logits: Tensor, batch: PromptBatch, prompts: Int[Tensor, " rows"]) -> Float[Tensor, " rows"]:
        """The score of each row, of the right answer of its prompt."""
        answers = scored_columns(self.score, check_answers(self.model, batch.answer_tokens, len(batch)))[prompts]
        foils = self.pair.corrupted.foil_tokens if self.score == "logit_diff" else None
        own = None if foils is None else foils[prompts].to(answers.device)
        return score_answers(self.score, logits, answers, own).float().cpu()
