"""Checks that a fast engine gives the reference's logits on the prompts at hand, before its numbers are used."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ivlens.common.memory import is_out_of_memory
from ivlens.effects.reference import patched_logits
from ivlens.effects.request import EffectRequest, Unsuitable
from ivlens.forward.hooked import is_hooked
from ivlens.models.boot import TransformerBridge
from ivlens.models.mixers import head_label

# largest difference of logits that is taken for rounding, as a share of the largest logit
_TOLERANCES = {torch.float64: 1e-6, torch.float32: 2e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}

Logits = Float[Tensor, "prompts answer_len d_vocab"]
LogitsOf = Callable[[int, int, Int[Tensor, " prompts"]], Logits]

# outcome for each engine and shape: None where the check passed, otherwise why the engine cannot be used
_FOUND: WeakKeyDictionary[TransformerBridge, dict[tuple[object, ...], str | None]] = WeakKeyDictionary()


def check_unhooked(model: TransformerBridge) -> None:
    """Refuse models with hooks, for engines whose passes have other positions and rows than the prompts have.

    A hook of the user that acts on the fourth token, or on the second row, would meet another one there.

    Raises:
        Unsuitable: hooks are on the model.
    """
    if is_hooked(model):
        raise Unsuitable("the model carries hooks, which would meet other positions than those of the prompt")


@dataclass(frozen=True)
class Check:
    """The check of one engine on prompts of one shape, made once for each shape.

    Faults of masks, windows or positions depend on the model and on shapes, not on the texts of the prompts.

    Attributes:
        model, request: What is measured.
        method: The name of the engine.
        n_heads: Heads in one portion of the engine's work, which is part of the shape.
    """

    model: TransformerBridge
    request: EffectRequest
    method: str
    n_heads: int

    @property
    def key(self) -> tuple[object, ...]:
        """Everything that the outcome of this check depends on, for one model."""
        request = self.request
        shapes = (*request.tokens.shape[1:], *request.answers.shape[1:], request.layers, self.n_heads)
        return self.method, shapes, request.mean_z.dtype, torch.is_autocast_enabled(request.tokens.device.type)

    def is_due(self) -> bool:
        """Whether this shape has still to be checked.

        Raises:
            Unsuitable: it was checked before, and the engine failed.
        """
        found = _FOUND.get(self.model, {})
        if self.key not in found:
            return True
        reason = found[self.key]
        if reason is not None:
            raise Unsuitable(reason, known=True)
        return False

    def passed(self) -> None:
        """Remember that the engine is right for this shape."""
        self._remember(None)

    def failed(self, reason: str) -> Unsuitable:
        """Remember that the engine is wrong for this shape, and return the error to raise."""
        self._remember(reason)
        return Unsuitable(reason)

    def _remember(self, reason: str | None) -> None:
        _FOUND.setdefault(self.model, {})[self.key] = reason

    def plain(self, copied: Float[Tensor, "tokens d_vocab"], plain: Float[Tensor, "tokens d_vocab"]) -> None:
        """Compare the logits of unpatched copies with those of the tokens that they are copies of.

        Raises:
            Unsuitable: they differ by more than rounding.
        """
        error = _error(copied, plain, self.request.mean_z.dtype)
        if error:
            raise self.failed(f"an unpatched copy's logits are off by {error:.3g}")

    def patched(self, rows: slice, logits_of: LogitsOf) -> None:
        """Compare logits under a patch with those of the reference, for three heads in three layers.

        Args:
            rows: the prompts that the engine has run.
            logits_of: the engine's logits for `(layer, head, prompts)`, prompts counted from the first of `rows`.

        Raises:
            Unsuitable: they differ by more than rounding.
        """
        # the longest prompt and the shortest one, which has most padding
        lengths = self.request.attention_mask[rows].sum(1)
        prompts = torch.stack([lengths.argmax(), lengths.argmin()]).unique()
        real = self.request.answers[rows][prompts] != -100
        for layer, head in self._picked():
            want = patched_logits(self.model, self.request, prompts + rows.start, layer, head)
            error = _error(logits_of(layer, head, prompts)[real], want[real], self.request.mean_z.dtype)
            if error:
                name = head_label(layer, head, self.model.cfg.n_heads)
                raise self.failed(f"with {name} patched its logits are off by {error:.3g}")

    def _picked(self) -> list[tuple[int, int]]:
        """The heads that are compared, in the first, the middle and the last of the asked layers."""
        layers, heads = self.request.layers, self.request.heads
        places = [(0, len(heads) // 2), (len(layers) // 2, len(heads) - 1), (len(layers) - 1, 0)]
        found = []
        for place, head in places:
            # from this head on the first one that the layer has
            turned = [*heads[head:], *heads[:head]]
            found += [(layers[place], one) for one in turned if self.request.exists(layers[place], one)][:1]
        return list(dict.fromkeys(found))


def _error(got: Tensor, want: Tensor, dtype: torch.dtype) -> float:
    """The largest difference of the logits; 0 where it is within rounding."""
    error = float((got.float() - want.float()).abs().max())
    within = error <= _TOLERANCES.get(dtype, 2e-4) * max(1.0, float(want.abs().max()))  # False for NaN
    return 0.0 if within else error


@contextmanager
def refusals_explained() -> Iterator[None]:
    """Turn errors that a model raises in the body into `Unsuitable`, so that another engine takes over.

    Each family has errors of its own for copies, a cache or left-out blocks that it does not take. Shortage of memory
    is none of these, and is raised as it is.
    """
    try:
        yield
    except (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError, AssertionError) as error:
        if is_out_of_memory(error):
            raise
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        raise Unsuitable(f"it does not take what this engine passes ({what:.120})") from error
