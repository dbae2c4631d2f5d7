"""KL to the frozen model with the difference of means in it: what the prompt adds to the stream, without any head.

Source: ivlens; the difference of means is the usual steering vector, here in the place of the Instruction Vector.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ivlens.forward.hooks import captured_residual, model_lock
from ivlens.models.boot import TransformerBridge
from ivlens.prompts.batch import PromptBatch
from ivlens.prompts.build import build_prompts, sampled_prompts
from ivlens.tuning.terms.kl import IVKL, SoftTargets
from ivlens.tuning.terms.measuring import Before
from ivlens.tuning.terms.term import ChangeVectors
from ivlens.tuning.training.asking import InTraining, Shift


@dataclass(frozen=True)
class MeanDifferenceKL(IVKL):
    """Divergence from the frozen model run with `α Δ` added, as `IVKL` with `Δ` in the place of `θ`.

    `Δ = mean of h_l(x, c) - mean of h_l(x)` at the last prompt token, over inputs `x` of the *fit* split with what
    tells the task and without it.

    Attributes:
        shifted: `α Δ` and its place; None: what `iv_guidance` measures.
    """

    name: ClassVar[str] = "mean_kl"
    needs_vector: ClassVar[bool] = False

    shifted: Shift | None = field(default=None, compare=False)

    @property
    def uses_vectors(self) -> bool:
        """Whether vectors have a part in it: yes, one that no heads write."""
        return True

    def made(self, before: Before) -> "MeanDifferenceKL":
        """With the difference of means in the model before the task."""
        fit = before.task.split("fit", before.recipe.seed)
        told = sampled_prompts(
            before.model.tokenizer, before.task, fit, before.recipe, n=before.n_prompts, seed=before.recipe.seed
        )
        bare = build_prompts(before.model.tokenizer, before.task, told.examples, before.recipe, corruption="drop")
        means = [_mean_stream(before.model, batch, before.layer, before.site) for batch in (told, bare)]
        return replace(self, shifted=Shift(before.layer, before.site, before.alpha * (means[0] - means[1])))

    def with_vectors(self, change: ChangeVectors) -> "MeanDifferenceKL":
        """With another vector in the place of `Δ`."""
        if self.shifted is None:
            return self
        return replace(self, shifted=replace(self.shifted, delta=change(self.shifted.delta)))

    def ask(self, frozen: InTraining) -> SoftTargets:
        """The frozen model's distributions for every example, with `α Δ` in it."""
        return super().ask(replace(frozen, shift=self.shifted))

    def describe(self) -> dict[str, object]:
        """Every option."""
        return {name: value for name, value in vars(self).items() if name != "shifted"}

    def tensors(self) -> list[Tensor | None]:
        """`α Δ`."""
        return [None if self.shifted is None else self.shifted.delta]


def _mean_stream(model: TransformerBridge, batch: PromptBatch, layer: int, site: str) -> Float[Tensor, " d_model"]:
    """Mean of the residual stream at the last prompt token (prompts are left-padded)."""
    batch = batch.to(next(model.parameters()).device)
    with (
        model_lock(model),
        torch.no_grad(),
        captured_residual(model, layer, site, select=lambda stream: stream[:, -1]) as kept,
    ):
        model(batch.tokens, attention_mask=batch.attention_mask, use_cache=False)
    return kept[layer].float().mean(0)
