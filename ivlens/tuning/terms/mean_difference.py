"""`MeanDifferenceKL`: as `IVKL`, with a difference of mean activations in place of the Instruction Vector.

Source: ivlens. A difference of means, with and without the instruction, is the usual steering vector; it has no heads.
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
    """KL divergence between the student and the frozen model with `α Δ` added: `IVKL` with `Δ` in place of `θ`.

    `Δ = mean of h_l(x, c) - mean of h_l(x)` at the last prompt token: the mean residual stream over inputs `x` of the
    *fit* split with the instruction or demonstrations `c`, minus that without `c`. See docs/method.md, section 9 Guided
    fine-tuning.

    Attributes:
        shifted: `α Δ` with its layer and site; None: `iv_guidance` measures it.
    """

    name: ClassVar[str] = "mean_kl"
    needs_vector: ClassVar[bool] = False

    # not compared: == of tensors gives a tensor, not True or False
    shifted: Shift | None = field(default=None, compare=False)

    @property
    def uses_vectors(self) -> bool:
        """Whether the term uses any vector: yes, `Δ`."""
        return True

    def made(self, before: Before) -> "MeanDifferenceKL":
        """The term with the difference of means, measured in the model before the task."""
        fit = before.task.split("fit", before.recipe.seed)
        told = sampled_prompts(
            before.model.tokenizer, before.task, fit, before.recipe, n=before.n_prompts, seed=before.recipe.seed
        )
        # the same inputs in both, so that the difference is what the prompt adds
        bare = build_prompts(before.model.tokenizer, before.task, told.examples, before.recipe, corruption="drop")
        means = [_mean_stream(before.model, batch, before.layer, before.site) for batch in (told, bare)]
        return replace(self, shifted=Shift(before.layer, before.site, before.alpha * (means[0] - means[1])))

    def with_vectors(self, change: ChangeVectors) -> "MeanDifferenceKL":
        """The term with `Δ` changed, for a control."""
        if self.shifted is None:
            return self
        return replace(self, shifted=replace(self.shifted, delta=change(self.shifted.delta)))

    def ask(self, frozen: InTraining) -> SoftTargets:
        """The teacher's distributions for every example that is read: the frozen model's, with `α Δ` added."""
        return super().ask(replace(frozen, shift=self.shifted))

    def describe(self) -> dict[str, object]:
        """Every option as plain values, without the vector."""
        return {name: value for name, value in vars(self).items() if name != "shifted"}

    def tensors(self) -> list[Tensor | None]:
        """The vector `α Δ`."""
        return [None if self.shifted is None else self.shifted.delta]


def _mean_stream(model: TransformerBridge, batch: PromptBatch, layer: int, site: str) -> Float[Tensor, " d_model"]:
    """Mean of the residual stream over prompts at their last token, which is in the last column (left padding)."""
    batch = batch.to(next(model.parameters()).device)
    with (
        model_lock(model),
        torch.no_grad(),
        captured_residual(model, layer, site, select=lambda stream: stream[:, -1]) as kept,
    ):
        model(batch.tokens, attention_mask=batch.attention_mask, use_cache=False)
    return kept[layer].float().mean(0)  # summed in float32, whatever the model's dtype is
