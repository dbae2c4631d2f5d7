"""Reading heads and moving the stream inside a plain Hugging Face model, with gradients."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ivlens.forward.hooks import check_layers, check_site
from ivlens.forward.writes import attention_factor
from ivlens.models.boot import TransformerBridge
from ivlens.models.plain import ModulePaths, module_paths
from ivlens.models.projection import adapted_weight, is_plain, written_by
from ivlens.tuning.training.data import base_model


class Sites:
    """Where an Instruction Vector enters a plain model, and where its heads are read.

    The places are those of `ivlens.forward.hooks`, found by the names that the modules had before the bridge was made.
    """

    def __init__(self, model: TransformerBridge) -> None:
        self.paths: ModulePaths = module_paths(model)
        self._model = model
        config = getattr(getattr(model, "original_model", None), "config", None)
        self._multiplier = float(getattr(config, "residual_multiplier", None) or 1.0)
        self._adapted: WeakSet[nn.Module] = WeakSet()
        self._n_heads, self._d_head = model.cfg.n_heads, model.cfg.d_head

    def check(self, layer: int, site: str) -> None:
        """Raise ValueError if there is no such place."""
        check_site(site)
        check_layers(self._model, [layer])

    def check_heads(self, heads: Sequence[tuple[int, int]]) -> None:
        """Raise ValueError if there is no such head."""
        check_layers(self._model, [of for of, _ in heads])
        missing = [f"L{of}H{head}" for of, head in heads if not 0 <= head < self._n_heads]
        if missing:
            raise ValueError(f"heads {', '.join(missing)} do not exist: the model has {self._n_heads} in a layer.")

    @contextmanager
    def shifted(
        self, plain: nn.Module, layer: int, site: str, column: int, delta: Float[Tensor, "*batch d_model"]
    ) -> Iterator[None]:
        """Run the body with `delta`, one for all rows or one for each, added to the stream in one column."""
        names = {"resid_post": self.paths.blocks, "attn_out": self.paths.attn_out}[check_site(site)]
        module = base_model(plain).get_submodule(names[layer])
        if site == "attn_out":
            # Granite scales what attention adds only after this module, Falcon-H1 what the bridge's hook shows as well
            delta = delta / self._multiplier / attention_factor(self._model, layer)

        def shift(_: nn.Module, given: object, out: Any) -> Any:
            stream = out[0] if isinstance(out, tuple) else out
            stream = stream + _in_column(stream, column, delta)
            return (stream, *out[1:]) if isinstance(out, tuple) else stream

        handle = module.register_forward_hook(shift)
        try:
            yield
        finally:
            handle.remove()

    @contextmanager
    def head_outputs(
        self, plain: nn.Module, layers: Iterable[int], column: int
    ) -> Iterator[dict[int, Float[Tensor, "batch n_heads d_head"]]]:
        """Keep `z` of every head in one column: `layer -> z`, filled by each pass."""
        kept: dict[int, Tensor] = {}
        base, handles = base_model(plain), []
        try:
            for layer in layers:
                projection = base.get_submodule(self.paths.projections[layer])
                handles.append(projection.register_forward_pre_hook(self._keep(kept, layer, column)))
            yield kept
        finally:
            for handle in handles:
                handle.remove()

    def held(
        self,
        plain: nn.Module,
        kept: Mapping[int, Float[Tensor, "batch n_heads d_head"]],
        heads: Sequence[tuple[int, int]],
        *,
        as_vector: bool = False,
    ) -> Float[Tensor, "batch parts width"]:
        """Outputs of these heads side by side, or, as one vector, what they write together."""
        if not as_vector:
            return torch.stack([kept[layer][:, head] for layer, head in heads], 1)
        each = [self._written(plain, kept[layer], layer, head) for layer, head in heads]
        return torch.stack(each).sum(0)[:, None]

    def _written(
        self, plain: nn.Module, z: Float[Tensor, "batch n_heads d_head"], layer: int, head: int
    ) -> Float[Tensor, "batch d_model"]:
        """`z W_O` of one head, with the weights as they are now: those of adapters in training count."""
        module: Any = base_model(plain).get_submodule(self.paths.projections[layer])
        z = z.to(module.weight.dtype)  # mixed precision puts out bfloat16, but keeps its weights
        if not is_plain(module):
            self._check_adapted(module, layer)
            alone = (
                nn.functional.one_hot(torch.tensor(head, device=z.device), self._n_heads)[:, None] * z[:, head, None]
            )
            return written_by(module, alone.flatten(1))
        by_input = module.weight.T if isinstance(module, nn.Linear) else module.weight  # GPT-2's is the other way round
        return z[:, head] @ by_input.unflatten(0, (self._n_heads, self._d_head))[head]

    def _check_adapted(self, module: nn.Module, layer: int) -> None:
        """Refuse, once for each projection, an adapter by which no head writes by itself."""
        if module not in self._adapted:
            adapted_weight(module, self._n_heads, self._d_head, f"the output projection of layer {layer}")
            self._adapted.add(module)

    def _keep(self, kept: dict[int, Tensor], layer: int, column: int) -> Callable[[nn.Module, Any], None]:
        def keep(_: nn.Module, given: Any) -> None:
            kept[layer] = given[0][:, column].unflatten(-1, (self._n_heads, self._d_head))

        return keep


def _in_column(stream: Float[Tensor, "batch pos d_model"], column: int, delta: Tensor) -> Tensor:
    """`delta` in one column, zeros elsewhere: adding it keeps autograd happy where an edit in place would not."""
    where = torch.zeros(stream.shape[1], 1, dtype=stream.dtype, device=stream.device)
    where[column] = 1
    return where * delta.to(stream).unsqueeze(-2)
