"""The frozen model before the task: what it says with the vector in it, and what its heads put out without.

It never changes, so it is asked once per example, before the first step, by the very model that is about to be
trained; no second model is held, and a step costs no teacher pass.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ivlens.tuning.data import TrainingSet, answer_logits, evaluating, last_column
from ivlens.tuning.guidance import Guidance
from ivlens.tuning.losses import SoftTargets
from ivlens.tuning.sites import Sites


@dataclass(frozen=True, eq=False)
class Teacher:
    """Targets of every training example; None for a part that is not in use.

    An example takes `answer_len` positions of `SoftTargets` and `4 |S| d_head` bytes: 66 kB for two positions of
    whatever vocabulary kept to `top_n` 4,096 (the default of `IVKL`), 402 kB for two positions of 50,257 kept whole.
    """

    soft: SoftTargets | None
    z: Float[Tensor, "n parts width"] | None

    def rows(self, index: Int[Tensor, " rows"]) -> "Teacher":
        """Those of some examples."""
        return Teacher(None if self.soft is None else self.soft.rows(index), None if self.z is None else self.z[index])

    @property
    def n_bytes(self) -> int:
        """What the targets take in memory."""
        return (0 if self.soft is None else self.soft.n_bytes) + (0 if self.z is None else self.z.nbytes)


def ask_teacher(
    plain: nn.Module, sites: Sites, data: TrainingSet, guidance: Guidance, *, batch_size: int = 32
) -> Teacher:
    """Run the model as it is now over all examples, once for each part of the guidance that needs it."""
    soft: list[SoftTargets] = []
    z: list[Tensor] = []
    with torch.no_grad(), evaluating(plain):
        for _, rows in data.portions(batch_size):
            column = last_column(rows)
            if guidance.kl is not None:
                with sites.shifted(plain, guidance.layer, guidance.site, column, guidance.delta):
                    soft.append(SoftTargets.of(answer_logits(plain, rows), guidance.kl))
            if guidance.heads is not None:
                layers = sorted({layer for layer, _ in guidance.heads.heads})
                with sites.head_outputs(plain, layers, column) as kept:
                    answer_logits(plain, rows)
                z.append(sites.held(plain, kept, guidance.heads))
    return Teacher(SoftTargets.joined(soft) if soft else None, torch.cat(z) if z else None)
