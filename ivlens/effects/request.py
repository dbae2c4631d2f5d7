"""What an engine is asked to measure and what it returns; all input is checked here, once for all engines."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, SupportsIndex, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ivlens.common.memory import memory_budget
from ivlens.common.progress import Progress
from ivlens.forward.hooks import check_layers, check_unsteered, whole_numbers
from ivlens.forward.inputs import check_answers, check_length, check_prompts
from ivlens.forward.scoring import check_score, score_answers, score_streams, scored_columns
from ivlens.models.attention import without_heads
from ivlens.models.boot import TransformerBridge, check_model
from ivlens.models.mixers import check_mixer, columns, existing

Mode = Literal["replace", "add"]
MODES: tuple[str, ...] = get_args(Mode)


@dataclass(frozen=True)
class EffectRequest:
    """Corrupted prompts, what to patch into them, and how to score them: the input of every engine.

    Attributes:
        tokens, attention_mask: Left-padded prompts, on the model's device.
        answers: The answer tokens that the score reads, right-padded with -100.
        foils: First answer tokens to compare with; None unless the score is `logit_diff`.
        mean_z: What is patched, in the model's dtype; NaN where a layer has no such head.
        mode: `replace` or `add`.
        score: The name of the score.
        layers, heads: What to measure: these heads in each of these layers, both in ascending order.
        max_memory: Bytes of activations that one pass may use.
        is_wide: Whether heads are the columns of `ivlens.models.mixers`.
        progress: Called with (done, total), in a unit that each engine chooses.
    """

    tokens: Int[Tensor, "batch pos"]
    attention_mask: Int[Tensor, "batch pos"]
    answers: Int[Tensor, "batch answer_len"]
    foils: Int[Tensor, " batch"] | None
    mean_z: Float[Tensor, "n_layers n_heads d_head"]
    mode: str
    score: str
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    max_memory: int
    is_wide: bool = False
    progress: Progress = lambda done, total: None

    def exists(self, layer: int, head: int) -> bool:
        """Whether the layer has this head."""
        return not bool(self.mean_z[layer, head].isnan().any())

    def scores(
        self, logits: Float[Tensor, "rows answer_len d_vocab"], prompts: slice | Int[Tensor, " rows"]
    ) -> Float[Tensor, " rows"]:
        """The score of each row of logits.

        Args:
            logits: At the positions that predict the answer tokens.
            prompts: For each row the number of the prompt that it belongs to; a slice where rows are prompts.

        Raises:
            ValueError: the model's logits are NaN.
        """
        foils = None if self.foils is None else self.foils[prompts]
        return _numbers(score_answers(self.score, logits, self.answers[prompts], foils))

    def scores_of_streams(
        self, stream: Float[Tensor, "rows answer_len d_model"], linear: nn.Linear, prompts: Int[Tensor, " rows"]
    ) -> Float[Tensor, " rows"]:
        """`scores` of the logits that `linear` makes of each row's stream, without holding all of them."""
        foils = None if self.foils is None else self.foils[prompts]
        return _numbers(score_streams(self.score, stream, linear, self.answers[prompts], foils))

    def patched(self, z: Float[Tensor, "*rows d_head"], mean: Float[Tensor, "... d_head"]) -> Tensor:
        """The patched head outputs: the mean in the place of `z`, or added to it."""
        return mean.expand_as(z) if self.mode == "replace" else z + mean


def _numbers(found: Float[Tensor, " rows"]) -> Float[Tensor, " rows"]:
    """The scores themselves; ValueError where one is NaN."""
    if bool(found.isnan().any()):
        raise ValueError(
            f"the model's logits are NaN on {int(found.isnan().sum())} of {len(found)} prompts, expected numbers; some "
            "families do that on padded prompts in float64 or under autocast, and any may in float16: load the model "
            "in float32 or bfloat16."
        )
    return found


@dataclass(frozen=True)
class Measured:
    """The numbers that an engine found.

    Attributes:
        cie: Effect of each head on each prompt, in the unit of the score; NaN for heads that were not asked for.
        base: Scores of the unpatched prompts.
        method: The name of the engine that ran.
        record: What else belongs in a result's settings, such as the sizes of the portions it worked in.
    """

    cie: Float[Tensor, "batch n_layers n_heads"]
    base: Float[Tensor, " batch"]
    method: str
    record: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def nothing_yet(cls, model: TransformerBridge, request: EffectRequest, method: str) -> "Measured":
        """Tensors of the right shapes, NaN everywhere, which the engine fills portion by portion."""
        # differences of scores, which would round to nothing in half precision
        dtype = torch.promote_types(request.mean_z.dtype, torch.float32)
        cie = request.mean_z.new_full((len(request.tokens), *request.mean_z.shape[:2]), torch.nan, dtype=dtype)
        return cls(cie, cie[:, 0, 0].clone(), method)  # any column: NaN of the right length, dtype and device

    def enter(self, rows: slice, layers: Sequence[int], heads: Sequence[int], cie: Tensor) -> None:
        """Put the effects of some prompts, layers and heads into `self.cie`; `cie` is `[rows, layers, heads]`."""
        # `rows` is a slice, so `self.cie[rows]` is a view, and the assignment writes into `self.cie`
        where = torch.tensor(layers)[:, None], torch.tensor(heads)
        self.cie[rows][:, *where] = cie.to(self.cie)


class Unsuitable(Exception):
    """Raised by an engine that does not suit a model, or cannot be checked on it; another engine takes over.

    Attributes:
        known: Whether this was found before, and so is in the log already.
    """

    def __init__(self, reason: str, *, known: bool = False) -> None:
        super().__init__(reason)
        self.known = known


@dataclass(frozen=True)
class PatchOptions:
    """How heads are patched and scored; the fields are parameters of `causal_indirect_effect`, described there."""

    mode: str = "replace"
    layers: Iterable[SupportsIndex] | None = None
    heads: Iterable[SupportsIndex] | None = None
    score: str = "prob"
    max_memory: int | str = "auto"


def make_request(
    model: TransformerBridge,
    tokens: Tensor,
    attention_mask: Tensor,
    answer_tokens: Tensor,
    mean_z: Tensor,
    *,
    foil_tokens: Tensor | None = None,
    options: PatchOptions | None = None,
) -> EffectRequest:
    """The checked request for an engine.

    Raises:
        TypeError, ValueError, RuntimeError: as `causal_indirect_effect`.
    """
    options = options or PatchOptions()
    mode, score = options.mode, options.score
    check_unsteered(check_model(model))
    check_mode(mode)
    check_score(score, has_foils=foil_tokens is not None)
    means, is_wide = _check_mean_z(model, mean_z)
    mixer = "all" if is_wide else "attention"
    chosen_layers, chosen_heads = check_selection(model, options.layers, options.heads, mixer)
    # only the columns that the score reads: with `prob` passes hold one answer position instead of the whole answer
    tokens, mask = check_prompts(model, tokens, attention_mask)
    answers = scored_columns(score, check_answers(model, answer_tokens, len(tokens)))
    check_length(model, mask, answers.shape[1])
    return EffectRequest(
        tokens=tokens,
        attention_mask=mask,
        answers=answers,
        foils=_check_foils(foil_tokens, answers, model) if score == "logit_diff" else None,
        mean_z=means,
        mode=mode,
        score=score,
        layers=chosen_layers,
        heads=chosen_heads,
        max_memory=memory_budget(options.max_memory, tokens.device),
        is_wide=is_wide,
    )


def _check_mean_z(model: TransformerBridge, mean_z: Any) -> tuple[Float[Tensor, "n_layers n_heads d_head"], bool]:
    """The means on the model's device and in its dtype, so that a patch needs no conversion, and whether they are wide.

    Wide ones also hold heads of recurrent mixers.
    """
    cfg, is_wide = model.cfg, False
    want = (cfg.n_layers, cfg.n_heads, cfg.d_head)
    if isinstance(mean_z, Tensor) and mean_z.ndim == 3 and mean_z.shape[1] > cfg.n_heads:
        what = columns(model)
        is_wide, want = what.n_mixer > 0, (cfg.n_layers, what.n, what.width)
    if not isinstance(mean_z, Tensor):
        raise TypeError(f"mean_z is {type(mean_z).__name__}, expected a tensor of shape {want}.")
    if tuple(mean_z.shape) != want:
        raise ValueError(
            f"mean_z has shape {tuple(mean_z.shape)}, expected {want} from model.cfg; recompute it with "
            "mean_head_outputs(model, tokens, attention_mask)."
        )
    exists = existing(model)[:, : want[1]].to(mean_z.device)
    if not bool(mean_z[exists].isfinite().all()):
        raise ValueError("mean_z contains NaN or infinite values, expected finite ones; compute it in float32.")
    parameter = next(model.parameters())
    # where a layer has no head, whatever stands there
    mean_z = mean_z.detach().masked_fill(~exists[..., None], torch.nan)
    return mean_z.to(parameter.device, parameter.dtype), is_wide


def _check_foils(foils: Any, answers: Int[Tensor, "batch answer_len"], model: TransformerBridge) -> Tensor:
    """One foil token for each prompt, on the device of the answers."""
    # [batch] or [batch, 1], as a column cut out of answer tokens
    if not isinstance(foils, Tensor) or foils.numel() != len(answers) or foils.shape[0] != len(answers):
        got = tuple(foils.shape) if isinstance(foils, Tensor) else type(foils).__name__
        raise ValueError(f"foil_tokens has shape {got}, expected ({len(answers)},), one token for each prompt.")
    if foils.is_floating_point() or foils.dtype == torch.bool:
        raise TypeError(f"foil_tokens have dtype {foils.dtype}, expected token ids (torch.long).")
    foils = foils.reshape(-1).to(answers.device).long()
    if int(foils.min()) < 0 or int(foils.max()) >= model.cfg.d_vocab:
        row = int(((foils < 0) | (foils >= model.cfg.d_vocab)).nonzero()[0])
        raise ValueError(
            f"foil_tokens row {row} is {int(foils[row])}, expected a token id from 0 to {model.cfg.d_vocab - 1}; leave "
            "out rows whose counterfactual fell back to 'drop'."
        )
    return foils


def check_mode(mode: str) -> None:
    """Raise ValueError if there is no such mode."""
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r:.60}, expected one of {', '.join(MODES)}.")


def check_selection(
    model: TransformerBridge,
    layers: Iterable[SupportsIndex] | None,
    heads: Iterable[SupportsIndex] | None,
    mixer: str = "attention",
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The layers and heads to measure, sorted and without repetitions; None: all. Layers without heads are left out.

    Raises:
        TypeError: layers or heads that are no whole numbers.
        ValueError: a layer or head that does not exist, none at all, or layers of which none has heads.
    """
    given = check_layers(model, range(model.cfg.n_layers) if layers is None else layers)
    n_heads = columns(model).n if check_mixer(model, mixer) else model.cfg.n_heads
    wanted = whole_numbers("heads", range(n_heads) if heads is None else heads)
    for head in wanted:
        if not 0 <= head < n_heads:
            raise ValueError(
                f"head {head} does not exist: the model has {n_heads} heads in a layer, 0 to {n_heads - 1}; choose "
                "some of them."
            )
    has_heads = existing(model)[:, list(wanted)].any(1)
    chosen = [layer for layer in given if has_heads[layer]]
    if given and wanted and not chosen:
        raise ValueError(without_heads(model, given[0]))
    if not chosen or not wanted:
        raise ValueError("no layers or no heads were chosen, expected at least one of each; None means all.")
    return tuple(sorted(set(chosen))), tuple(sorted(set(wanted)))
