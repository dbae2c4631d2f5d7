"""`InstructionVector`: the sum of what chosen heads write into the residual stream, and a record of how it was made."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from ivlens.common.arguments import checked
from ivlens.common.names import set_shown
from ivlens.effects.results import HeadEffects
from ivlens.models.boot import ModelRef, TransformerBridge, WeakModel, check_model
from ivlens.models.fingerprint import ModelIdentity, model_identity
from ivlens.models.mixers import head_labels
from ivlens.prompts.recipe import PromptRecipe
from ivlens.vectors.decode import top_tokens
from ivlens.vectors.file import check_parts, check_same_width, check_weights, read_vector, was_allowed, write_vector
from ivlens.vectors.heads import Heads, checked_model, choose_heads, choosing, chosen_means, head_writes, named_heads
from ivlens.vectors.provenance import bracketed, made_from, recipe_of, shares_of

if TYPE_CHECKING:
    import plotly.graph_objects as go


@checked
@dataclass(frozen=True, eq=False)
class InstructionVector:
    """The sum of what chosen heads write into the residual stream under an instruction; float32, on the CPU.

    `θ = Σ_{(l,h)∈S} (z̄_{l,h} W_O^{l,h}) · w_l`, see docs/method.md, 5 The Instruction Vector. The projection's bias is
    left out, because it belongs to no head. `w_l` is 1 in most families. In Gemma 2 and 3 and OLMo 2 a head's write
    passes a norm on its way to the stream; there `w_l` is this norm's mean scale at the last prompt token.

    Attributes:
        theta: the vector `θ`.
        heads: `S`, as `(layer, head)`, largest effect first; empty for a vector computed from others, or trained.
        head_means: `z̄` of each head of `S`, multiplied by the same factor as `θ` where the vector was scaled.
        task: name of the task, or the formula by which the vector was computed (`"antonym - synonym"`).
        model: name, shape and hashes of the model that the vector belongs to.
        settings: all other choices that made the vector (k, contrast, universal, the settings of the effects), and
            `shares`: for each head with write `w`, its share of `θ`, `w·θ / |θ|²`.
    """

    theta: Float[Tensor, " d_model"]
    heads: Heads
    head_means: Float[Tensor, "k d_head"]
    task: str
    model: ModelIdentity
    settings: Mapping[str, Any]
    model_ref: WeakModel = field(default=None, repr=False)

    def __post_init__(self) -> None:
        set_shown(self, "task")
        ModelRef.set_in(self)
        check_parts(self.task, self.theta, self.heads, self.head_means)

    def __repr__(self) -> str:
        labels = ", ".join(head_labels(self.heads, self.model.n_heads)) or "no heads"
        return f"InstructionVector({self.task!r}, {self.model.name!r}, norm {self.norm:.3g}, {labels})"

    @classmethod
    def from_effects(
        cls,
        effects: HeadEffects,
        k: int = 10,
        *,
        heads: Sequence[tuple[int, int]] | None = None,
        model: TransformerBridge | None = None,
        contrast: bool = False,
        universal: Sequence[HeadEffects] | None = None,
    ) -> "InstructionVector":
        """The vector of the `k` heads with the largest average effects, or of `heads`.

        Example:
            >>> import ivlens
            >>> model, task = ivlens.load_model("pocket"), ivlens.load_task("antonym")
            >>> effects = ivlens.head_effects(model, task, n_prompts=8)
            >>> iv = ivlens.InstructionVector.from_effects(effects, k=10)
            >>> iv.k, iv.task, len(iv.theta)
            (10, 'antonym', 128)

        Args:
            effects: measured effects and head means of the task.
            k: how many heads; 10 suits models of 7B parameters.
            heads: use exactly these `(layer, head)`, whatever their effects are; `k` is then ignored.
            model: the bridge the effects were measured on; needed only where it is no longer in memory (loaded
                effects).
            contrast: subtract the same sum over corrupted prompts, so that `θ` holds what the instruction adds; the
                effects must have been measured with `EffectOptions(contrast=True)`.
            universal: effects of several tasks; the heads are chosen by the average of these effects, not by `effects`.

        Raises:
            ValueError: `k` is not between 1 and the number of measured heads; `heads` is empty, repeats a head, names
                one that the model does not have, or is given together with `universal`; no model; another model than
                the measured one; `universal` effects that differ in weights, seed, score or mode.

        Source:
            docs/method.md, 5 The Instruction Vector; arXiv 2406.12227 and 2310.15213. The reference code of 2310.15213
            adds the projection's bias once per head on GPT-2 and GPT-NeoX; ivlens does not.
        """
        live = checked_model(effects, model)
        pool = choosing(effects, universal)
        chosen = choose_heads(pool, k) if heads is None else named_heads(effects, heads, alone=universal is None)
        values = effects.mean_z - effects.contrasted() if contrast else effects.mean_z
        layers, numbers = (list(part) for part in zip(*chosen, strict=True))
        # the plain means, with `contrast` too: mode "heads" of `steer` puts these in the place of a head's output
        means = chosen_means(effects, chosen)
        writes = head_writes(live, values, effects.write_scale)[layers, numbers]
        theta = writes.sum(0)
        settings = {
            "k": len(chosen),
            **({} if heads is None else {"heads": "named"}),
            "contrast": contrast,
            "shares": shares_of(writes, theta),
            **made_from(effects, pool if universal else ()),
        }
        return cls(theta, chosen, means, effects.task, effects.model, settings, ModelRef(live))

    @property
    def recipe(self) -> PromptRecipe | None:
        """The recipe of the prompts behind the vector; None where none is recorded, or several different ones."""
        return recipe_of(self.settings)

    @property
    def k(self) -> int:
        """Number of heads."""
        return len(self.heads)

    @property
    def norm(self) -> float:
        """Euclidean length of `theta`."""
        return float(self.theta.norm())

    def cosine(self, other: "InstructionVector | Tensor") -> float:
        """Cosine of the angle to another vector of the same `d_model`.

        Raises:
            ValueError: another `d_model`, or one of the two is zero.
        """
        theirs = other.theta if isinstance(other, InstructionVector) else other.detach().float().cpu()
        check_same_width(self.theta, theirs)
        if not (length := self.norm * float(theirs.norm())):
            raise ValueError("cosine got a vector of length 0, expected two vectors with a direction.")
        return float(self.theta @ theirs) / length

    def __add__(self, other: "InstructionVector") -> "InstructionVector":
        return self._combined(other, 1.0, "+") if isinstance(other, InstructionVector) else NotImplemented

    def __sub__(self, other: "InstructionVector") -> "InstructionVector":
        return self._combined(other, -1.0, "-") if isinstance(other, InstructionVector) else NotImplemented

    def __mul__(self, factor: float | int) -> "InstructionVector":
        if isinstance(factor, bool) or not isinstance(factor, int | float):  # bool is an int to Python
            return NotImplemented
        # a scaled vector is still a sum of these heads, so they stay and their means are scaled too
        scaled = {"factor": float(factor) * self.settings.get("factor", 1.0), "scaled": base_task(self)}
        return replace(
            self,
            theta=self.theta * float(factor),
            head_means=self.head_means * float(factor),
            task=f"{factor:g} * {bracketed(self.task)}",
            settings={**self.settings, **scaled},
        )

    __rmul__ = __mul__

    def __neg__(self) -> "InstructionVector":
        return self * -1.0

    def derived(self, theta: Float[Tensor, " d_model"], task: str, settings: Mapping[str, Any]) -> "InstructionVector":
        """A vector computed from this one: same model, no heads (so `steer(mode="heads")` refuses it)."""
        # what was allowed for the first vector (`used_with`) is allowed for the derived one
        made = {name: self.settings[name] for name in ("used_with",) if name in self.settings} | dict(settings)
        return replace(self, theta=theta, heads=(), head_means=self.head_means[:0], task=task, settings=made)

    def random_like(self, seed: int) -> "InstructionVector":
        """A vector of the same norm in a random direction, uniform on the sphere; used as a control."""
        noise = torch.randn(len(self.theta), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        theta = (noise * (self.theta.double().norm() / noise.norm())).float()  # in float64, so that norms agree
        return self.derived(theta, f"random {seed}", {"random_like": self._origin(), "seed": seed})

    def decode(self, model: TransformerBridge | None = None, *, k: int = 10) -> list[tuple[str, float]]:
        """The `k` tokens of largest logit when the vector alone goes through the final norm and the unembedding.

        Args:
            model: the bridge whose norm and unembedding are used; by default the one the vector was made on, if it is
                still in memory. A bias of the final norm counts.

        Returns:
            `(token, logit)` pairs.

        Raises:
            ValueError: no model, one without a tokenizer, or one of another `d_model`.
        """
        bridge = model if model is not None else self.model_ref() if self.model_ref is not None else None
        if bridge is None:
            raise ValueError("decode has no model: this vector's own is not in memory; pass decode(model).")
        check_width(self, bridge)
        return top_tokens(self.theta, bridge, k)

    def plot(self) -> "go.Figure":
        """A bar chart of each head's share of the vector.

        Raises:
            ValueError: the vector has no heads: it was trained, or computed from other vectors.
        """
        from ivlens.show.figures.vectors import head_shares  # slow to import, and needed for drawing alone

        return head_shares(self)

    def _repr_html_(self) -> str:
        from ivlens.show.tables import vector_html

        return vector_html(self)

    def save(self, path: str | Path) -> Path:
        """Write a safetensors file with all provenance in its metadata; the same vector gives the same bytes."""
        content = {"heads": self.heads, "task": self.task, "model": self.model, "settings": self.settings}
        return write_vector(path, self.theta, self.head_means, content)

    @classmethod
    def load(
        cls, path: str | Path, model: TransformerBridge | None = None, *, allow_other_weights: bool = False
    ) -> "InstructionVector":
        """The vector that `save` wrote.

        Args:
            model: the model that the vector will be used with; None: it is checked where the vector is used.
            allow_other_weights: accept a model of the same shape with other weights, as `for_model` does.

        Raises:
            FileNotFoundError: no such file.
            ValueError: the file was not written by `save`, is damaged, or holds a vector for another model.
        """
        theta, head_means, content = read_vector(path)
        vector = cls(theta, content["heads"], head_means, content["task"], content["model"], content["settings"])
        if model is None:
            return vector
        used_with = check_weights(str(path), vector.model, model_identity(model), allow_other_weights)
        settings = {**vector.settings, "used_with": used_with} if used_with else vector.settings
        return replace(vector, settings=settings, model_ref=ModelRef(model))

    def for_model(self, model: TransformerBridge, identity: ModelIdentity | None = None) -> "InstructionVector":
        """The same vector, allowed for another checkpoint of the same shape; recorded in `settings["used_with"]`.

        Without it, `steer` and `evaluate_intervention` refuse a model with other weights, such as a tuned one. To find
        the model's `identity`, where it is not given, all weights are read.

        Raises:
            ValueError: a model of another shape.
        """
        other = identity or model_identity(model)
        used_with = check_weights(f"InstructionVector {self.task!r}", self.model, other, allow_other_weights=True)
        settings = {**self.settings, "used_with": used_with} if used_with else self.settings
        return replace(self, settings=settings, model_ref=ModelRef(model))

    def _origin(self) -> dict[str, Any]:
        """The record of this vector in a vector that is computed from it."""
        return {"task": self.task, "weights_hash": self.model.weights_hash, "settings": dict(self.settings)}

    def _combined(self, other: "InstructionVector", sign: float, symbol: str) -> "InstructionVector":
        check_same_width(self.theta, other.theta)
        made_by = {"operation": symbol, "operands": [self._origin(), other._origin()]}
        right = other.task if symbol == "+" else bracketed(other.task)  # a - (b + c) needs its brackets
        return self.derived(self.theta + sign * other.theta, f"{self.task} {symbol} {right}", made_by)


def check_width(vector: InstructionVector, model: TransformerBridge) -> None:
    """Refuse a vector that does not fit the model's residual stream.

    Raises:
        ValueError: another `d_model`.
    """
    if len(vector.theta) != check_model(model).cfg.d_model:
        raise ValueError(
            f"InstructionVector {vector.task!r} has d_model {len(vector.theta)} (from {vector.model.name!r}), expected "
            f"{model.cfg.d_model} from model.cfg; compute it on this model with head_effects and from_effects."
        )


def check_belongs(vector: InstructionVector, model: TransformerBridge) -> None:
    """Refuse a vector of another model, unless `for_model` or `load` allowed it for this one.

    Raises:
        TypeError: the model is no bridge.
        ValueError: another `d_model`, another shape of heads, or other weights that were not allowed.
    """
    check_width(vector, model)
    found = model_identity(model)
    check_weights(f"InstructionVector {vector.task!r}", vector.model, found, was_allowed(vector.settings, found))


def base_task(vector: InstructionVector) -> str:
    """The vector's task, without the factor that the vector was scaled by."""
    return vector.settings.get("scaled", vector.task)
