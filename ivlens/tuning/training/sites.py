"""Head outputs read, and vectors added to the residual stream, inside a plain Hugging Face model, with gradients."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ivlens.forward.hooks import check_layers, check_site
from ivlens.forward.writes import attention_factor
from ivlens.models.attention import attention_layers, without_heads
from ivlens.models.boot import TransformerBridge
from ivlens.models.mixers import head_label, mixer_of
from ivlens.models.plain import ModulePaths, module_paths
from ivlens.models.projection import adapted_weight, is_plain, written_by
from ivlens.tuning.training.data import base_model


class Sites:
    """The places of a plain model where vectors are added and heads are read.

    They are the places of `ivlens.forward.hooks`, found by the names that the modules had before the bridge was made.
    """

    def __init__(self, model: TransformerBridge) -> None:
        self.paths: ModulePaths = module_paths(model)
        self._model = model
        config = getattr(getattr(model, "original_model", None), "config", None)
        self._multiplier = float(getattr(config, "residual_multiplier", None) or 1.0)
        self._adapted: WeakSet[nn.Module] = WeakSet()
        self._n_heads, self._d_head = model.cfg.n_heads, model.cfg.d_head

    def check(self, layer: int, site: str) -> None:
        """Raise ValueError if the model has no such layer, or the layer no such site."""
        check_site(site)
        check_layers(self._model, [layer])
        if site == "attn_out":
            attention_factor(self._model, layer)  # refuses layers without attention

    def check_heads(self, heads: Sequence[tuple[int, int]]) -> None:
        """Raise ValueError if the model lacks one of these heads."""
        check_layers(self._model, [layer for layer, _ in heads])
        has_mixers = any(mixer_of(block) is not None for block in self._model.blocks)
        n_named = self._n_heads if has_mixers else max((head + 1 for _, head in heads), default=0)
        missing = [head_label(layer, head, n_named) for layer, head in heads if not 0 <= head < self._n_heads]
        if missing:
            named, n = ", ".join(missing), self._n_heads
            raise ValueError(
                f"heads {named} do not exist: the model has {n} in a layer, and training holds attention's alone."
            )
        for layer, _ in heads:
            if layer not in attention_layers(self._model):
                raise ValueError(without_heads(self._model, layer))

    @contextmanager
    def shifted(
        self, plain: nn.Module, layer: int, site: str, column: int, delta: Float[Tensor, "*batch d_model"]
    ) -> Iterator[None]:
        """Run the body with `delta` added to the residual stream in one column.

        Args:
            plain: The model that runs.
            delta: One vector for all rows of the input, or one vector for each row.
        """
        names = {"resid_post": self.paths.blocks, "attn_out": self.paths.attn_out}[check_site(site)]
        name = names[layer]
        if name is None:
            raise ValueError(without_heads(self._model, layer))
        module = base_model(plain).get_submodule(name)
        if site == "attn_out":
            # Some families scale attention's output after this module: Granite between the module and the bridge's
            # hook, Falcon-H1 after that hook. Divided by both factors, it is `delta` that reaches the stream.
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
        """Collect `z` of every head of these layers, in one column; each pass of the body fills the dictionary."""
        kept: dict[int, Tensor] = {}
        base, handles = base_model(plain), []
        try:
            for layer in layers:
                projection = base.get_submodule(self._projection(layer))
                handles.append(projection.register_forward_pre_hook(self._keep(kept, layer, column)))
            yield kept
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def streams(
        self, plain: nn.Module, layers: Iterable[int], column: int
    ) -> Iterator[dict[int, Float[Tensor, "batch d_model"]]]:
        """Collect the residual stream after these layers, in one column; each pass of the body fills the dictionary."""
        kept: dict[int, Tensor] = {}

        def keeping(layer: int) -> Callable[[nn.Module, object, Any], None]:
            def keep(_: nn.Module, given: object, out: Any) -> None:
                kept[layer] = (out[0] if isinstance(out, tuple) else out)[:, column]

            return keep

        base, handles = base_model(plain), []
        try:
            for layer in layers:
                handles.append(base.get_submodule(self.paths.blocks[layer]).register_forward_hook(keeping(layer)))
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
        """The outputs of these heads side by side, or, with `as_vector`, the one vector that they write together."""
        if not as_vector:
            return torch.stack([kept[layer][:, head] for layer, head in heads], 1)
        each = [self._written(plain, kept[layer], layer, head) for layer, head in heads]
        return torch.stack(each).sum(0)[:, None]

    def _written(
        self, plain: nn.Module, z: Float[Tensor, "batch n_heads d_head"], layer: int, head: int
    ) -> Float[Tensor, "batch d_model"]:
        """`z W_O` of one head, with the weights as they are now, those of adapters included."""
        module: Any = base_model(plain).get_submodule(self._projection(layer))
        z = z.to(module.weight.dtype)  # in mixed precision z is bfloat16, while weights keep their dtype
        if not is_plain(module):
            self._check_adapted(module, layer)
            # all other heads at 0: what the adapted projection makes of this is the head's write
            alone = (
                nn.functional.one_hot(torch.tensor(head, device=z.device), self._n_heads)[:, None] * z[:, head, None]
            )
            return written_by(module, alone.flatten(1))
        by_input = module.weight.T if isinstance(module, nn.Linear) else module.weight  # GPT-2's is the other way round
        return z[:, head] @ by_input.unflatten(0, (self._n_heads, self._d_head))[head]

    def _projection(self, layer: int) -> str:
        """The name of a layer's output projection."""
        name = self.paths.projections[layer]
        if name is None:
            raise ValueError(without_heads(self._model, layer))
        return name

    def _check_adapted(self, module: nn.Module, layer: int) -> None:
        """Refuse an adapter that is no matrix, under which no head has a write of its own; once for each projection."""
        if module not in self._adapted:
            adapted_weight(module, self._n_heads, self._d_head, f"the output projection of layer {layer}")
            self._adapted.add(module)

    def _keep(self, kept: dict[int, Tensor], layer: int, column: int) -> Callable[[nn.Module, Any], None]:
        """A hook that stores the input of a layer's output projection, which is `z` of all heads side by side."""

        def keep(_: nn.Module, given: Any) -> None:
            kept[layer] = given[0][:, column].unflatten(-1, (self._n_heads, self._d_head))

        return keep


def _in_column(stream: Float[Tensor, "batch pos d_model"], column: int, delta: Tensor) -> Tensor:
    """`delta` in one column and zeros elsewhere, to be added: autograd forbids an edit of the stream in place."""
    where = torch.zeros(stream.shape[1], 1, dtype=stream.dtype, device=stream.device)
    where[column] = 1
    return where * delta.to(stream).unsqueeze(-2)
