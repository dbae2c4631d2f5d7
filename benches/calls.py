"""Counts what a GPU would be asked for. It imports torch alone, as it also counts in older checkouts of ivlens."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# the shape of the Llama that is counted
COUNTED = {
    "hidden_size": 1024, "intermediate_size": 2752, "num_hidden_layers": 16, "num_attention_heads": 32,
    "vocab_size": 2048,
}  # fmt: skip
# what only says how memory is read, or takes some
NO_WORK = {"aten::_unsafe_view", "aten::detach", "aten::new_empty", "aten::empty", "aten::empty_strided"}


class Calls(TorchDispatchMode):
    """Counts calls that make or change a tensor, and the bytes of their inputs and outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.n = self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        is_view = any(each.alias_info is not None and not each.alias_info.is_write for each in func._schema.returns)
        if not is_view and func._schema.name not in NO_WORK:
            self.add(torch.utils._pytree.tree_leaves((args, kwargs, made)))
        return made

    def add(self, tensors: list[Any]) -> None:
        self.n += 1
        self.bytes += sum(each.numel() * each.element_size() for each in tensors if isinstance(each, torch.Tensor))
