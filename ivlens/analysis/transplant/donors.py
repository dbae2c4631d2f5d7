"""One model gives the outputs of its heads, prompt by prompt, and another one goes on with them."""

from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ivlens.forward.hooks import patched_heads
from ivlens.models.boot import TransformerBridge
from ivlens.steering.edits import Where
from ivlens.steering.trials import Trials
from ivlens.vectors.heads import Heads


def check_alike(before: TransformerBridge, after: TransformerBridge) -> None:
    """Refuse two models that are one object, or of different shapes, in which heads and layers do not correspond.

    Raises:
        ValueError: the models do not fit each other.
    """
    if before is after:
        raise ValueError(
            "before and after are the same model object, expected two, as hooks of one would edit the other; load it "
            "twice."
        )
    names = ("architecture", "n_layers", "n_heads", "d_model", "d_head", "d_vocab")
    shapes = [{name: getattr(model.cfg, name) for name in names} for model in (before, after)]
    for name in names:
        if shapes[0][name] != shapes[1][name]:
            raise ValueError(
                f"before has {name} {shapes[0][name]} and after {shapes[1][name]}, expected two states of one model, "
                "such as a model and its fine-tuned copy."
            )


@dataclass(frozen=True, eq=False)
class Donor:
    """The outputs of all heads of a model on its prompts; each row is computed once, for all sets of heads.

    Attributes:
        trials: The prompts, in the model that gives.
    """

    trials: Trials
    # by the number of a prompt and the tokens given after it
    _known: dict[tuple[int, ...], Float[Tensor, "positions n_layers n_heads d_head"]] = field(default_factory=dict)

    def outputs(
        self, prompts: Int[Tensor, " rows"], given: Int[Tensor, "rows given"]
    ) -> Float[Tensor, "rows positions n_layers n_heads d_head"]:
        """The outputs at the last prompt token of each row, and at each of the tokens given after it."""
        prompts, given = prompts.cpu(), given.cpu()
        keys = [(prompt, *tokens) for prompt, tokens in zip(prompts.tolist(), given.tolist(), strict=True)]
        new = [row for row, key in enumerate(keys) if key not in self._known]
        if new:
            made = self.trials.head_outputs(prompts[new], given[new])
            self._known.update(zip([keys[row] for row in new], made, strict=True))
        return torch.stack([self._known[key] for key in keys])


@dataclass(frozen=True, eq=False)
class FromDonor:
    """The edit `z_{l,h} -> z_{l,h}` of the donor on the same prompt, for some heads at the edited positions.

    Attributes:
        model: The model that receives.
        donor: The model that gives.
        heads: The heads whose outputs are taken over.
    """

    model: TransformerBridge
    donor: Donor
    heads: Heads

    def of_rows(
        self, where: Where, prompts: Int[Tensor, " rows"], given: Int[Tensor, "rows given"]
    ) -> AbstractContextManager[None]:
        """A context in which the heads of the other model have the donor's outputs."""
        outputs = self.donor.outputs(prompts, given)
        numbers = {layer: [head for at, head in self.heads if at == layer] for layer, _ in self.heads}

        def edit(z: Float[Tensor, "rows pos n_heads d_head"], layer: int) -> Float[Tensor, "rows pos n_heads d_head"]:
            moved, own = z.clone(), numbers[layer]
            # a pass may begin long before the last prompt token, which is the first of these positions
            moved[:, -outputs.shape[1] :, own] = outputs[:, :, layer, own].to(z.device, z.dtype)
            return torch.where(where()[..., None, None].to(z.device), moved, z)

        return patched_heads(self.model, edit, sorted(numbers))
