"""Prompts and copies in one sequence: each block is called once for both, as Hugging Face wrote it.

The exact engine needs of a block its output on the prompts and on the copies of their last tokens. Here these stand
behind the prompt in the same sequence, so that each block is called once, without hook points, and each of its matrix
products is one large one:

    block 2   p0 p1 p2 t | w  a0' a1'  b0' b1'  c0 c1      w: the witness, which is never patched
    block 1   p0 p1 p2 t | w  a0' a1'  b0  b1              a, b, c: copies of t, patched in the block where they enter
    block 0   p0 p1 p2 t | w  a0  a1

Only attention tells them apart. It is a function of this module, which the family's attention calls in place of the
usual one. A copy sees what `t` sees, but for `t` it sees itself, so all rows have as many scores as the prompt has
tokens. The scores of the prompt's last `answer_len` columns are replaced by those of the copy's own keys, and the
values of these columns are corrected by the difference:

    softmax(S + mask) V + weights_own (V_own - V_t),   S = q K^T * scaling,   S_own = q K_own^T * scaling

Models whose blocks do not allow it (no such attention function, experts that are watched, recurrences, several
sequences of copies) have the prompts and the copies in calls of their own, see `ivlens.effects.exact`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AttentionInterface

from ivlens.effects.checks import refusals_explained
from ivlens.effects.copies import INDEXED, Copies, named_arguments, of_queries
from ivlens.effects.own_attention import OUTSIDE, check_told, products, with_function
from ivlens.effects.recurrent import Recurrences
from ivlens.effects.request import EffectRequest, Unsuitable
from ivlens.forward.hooks import model_lock
from ivlens.forward.inputs import Inputs
from ivlens.forward.joining import output_form
from ivlens.forward.norms import fused_norms
from ivlens.forward.unwrapped import unwrapped
from ivlens.models.boot import TransformerBridge

_NAME = "ivlens_together"


@dataclass(eq=False)
class Together:
    """One pass over some prompts, with the copies of their last tokens behind them.

    Attributes:
        model, request: What is measured.
        inputs: The prompts of this pass.
        groups: The copies of all heads in one sequence; its stream is that behind the last block after the pass.
        done: Called with the number of each layer that has run.
        form: The form of the blocks' output (`ivlens.forward.joining.output_form`).
    """

    model: TransformerBridge
    request: EffectRequest
    inputs: Inputs
    groups: Sequence[Copies]
    done: Callable[[int], None]
    form: int = 0
    _was_read: bool = field(default=False, init=False)  # whether an attention has called this module's function
    _wide: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict, init=False)

    @property
    def n_tokens(self) -> int:
        """Columns of the prompts; the copies stand behind them."""
        return self.inputs.tokens.shape[1]

    @cached_property
    def columns(self) -> Int[Tensor, " positions"]:
        """For each position of the sequence after the last block, the column of the prompt that it repeats."""
        n_copies = len(self.request.layers) * len(self.request.heads) + 1
        every = torch.arange(self.n_tokens, device=self.inputs.tokens.device)
        return torch.cat([every, every[-self.inputs.n_answer :].repeat(n_copies)])

    @cached_property
    def _recurrences(self) -> Recurrences:
        return Recurrences(self.model, self.inputs.last, max_floats=0)

    @cached_property
    def _where(self) -> tuple[Int[Tensor, " heads"], Int[Tensor, " heads"]]:
        """The heads that are patched, each in the new copy of the same number."""
        heads = torch.tensor(self.request.heads, device=self.columns.device)
        return torch.arange(len(heads), device=heads.device), heads

    def run(self) -> Float[Tensor, "batch answer_len d_vocab"]:
        """Run prompts and copies; the logits of the unpatched prompts.

        Raises:
            Unsuitable: an attention takes no other attention function, or a block's call holds what is not known here.
        """
        with refusals_explained(), self._travelling():
            return self.inputs.logits(self.model)

    @contextmanager
    def _travelling(self) -> Iterator[None]:
        """In the body, a pass over the prompts takes the copies along."""
        layers = range(self.model.cfg.n_layers)
        # undone with the hold, also where an interrupt cuts the undoing off, or this thread is lost in a fork
        with model_lock(self.model).held() as hold, hold.undo as stack:
            plain = stack.enter_context(unwrapped(self.model, layers))
            stack.enter_context(fused_norms(plain.values()))
            for layer in layers:
                block = plain.get(layer)
                if block is None:
                    raise Unsuitable(f"block {layer} is not wrapped")
                forward: Callable[..., Any] = block.forward
                if layer >= min(self.request.layers):
                    self._prepare(layer, stack)
                    forward = partial(self._advance, layer, block)
                # through `__dict__`: the bridge's own setattr would hand the name on to the module that it wraps
                own = self.model.blocks[layer].__dict__
                stack.callback(own.pop, "forward", None)  # first, as an interrupt may come before the next line
                own["forward"] = forward
            stack.callback(_RUNNING.reset, _RUNNING.set(self))
            yield

    def _prepare(self, layer: int, stack: ExitStack) -> None:
        """Have one block's attention call this module's function, and the heads of its new copies patched."""
        # beside attention, as in Falcon-H1: copies would go on from one another's states
        if layer in self._recurrences:
            raise Unsuitable(f"block {layer} keeps a state")
        attention, config = with_function(self.model, layer, _NAME)
        stack.callback(setattr, attention.module, "config", attention.module.config)
        attention.module.config = config
        if layer in self.request.layers:
            stack.callback(attention.projection.register_forward_pre_hook(partial(self._patch, layer)).remove)

    def _advance(self, layer: int, block: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Stands for a block's forward: new copies join behind the stream, and the plain block runs on all of it."""
        given = named_arguments(block, args, kwargs)
        stream = given.pop("hidden_states")
        last = stream[:, self.n_tokens - self.inputs.n_answer : self.n_tokens]
        # the witness comes first, so that the copies of later layers join behind the others
        n_new = len(self.request.heads) * (layer in self.request.layers) + (stream.shape[1] == self.n_tokens)
        if n_new:
            stream = torch.cat([stream, last[:, None].expand(-1, n_new, -1, -1).flatten(1, 2)], 1)
        self._was_read = False
        out = block(stream, **{name: self._wider(name, value, stream.shape[1]) for name, value in given.items()})
        if not self._was_read:
            raise Unsuitable("an attention did not call the attention function that it was given")
        self.done(layer)
        if layer < self.model.cfg.n_layers - 1:
            return out
        self.form = output_form(out)
        after = out[0] if isinstance(out, tuple) else out
        copies = after[:, self.n_tokens :].unflatten(1, (-1, self.inputs.n_answer))
        self.groups[0].stream = torch.cat([copies[:, 1:], copies[:, :1]], 1)  # the witness last
        return (after[:, : self.n_tokens], *out[1:]) if isinstance(out, tuple) else after[:, : self.n_tokens]

    def _wider(self, name: str, value: Any, n: int) -> Any:
        """One argument of a block's call for a sequence of `n` positions; the mask is widened by attention itself."""
        if isinstance(value, tuple | list):
            return type(value)(self._wider(name, part, n) for part in value)
        if not isinstance(value, Tensor) or name == "attention_mask":
            return value
        # only what has an entry for each position: a guess at other axes could be wrong without an error
        if INDEXED.get(name) is not of_queries or value.shape[1] != self.n_tokens:
            raise Unsuitable(f"its blocks take {name!r}, which copies have no version of")
        columns = self.columns.to(value.device)
        return self._kept(value, lambda: of_queries(value, columns, columns))[:, :n]

    def _kept(self, value: Tensor, make: Callable[[], Tensor]) -> Tensor:
        """What is made of one of the model's own tensors, which many layers get."""
        if id(value) not in self._wide:  # `value` is kept too, so that no later tensor can get its id
            self._wide[id(value)] = value, make()
        return self._wide[id(value)][1]

    def _patch(self, layer: int, projection: nn.Module, args: tuple[Any, ...]) -> None:
        """Hook of an output projection: replace in each new copy the output of the head that it stands for."""
        n_new = len(self.request.heads)
        z = args[0].unflatten(-1, (self.model.cfg.n_heads, -1))[:, -n_new * self.inputs.n_answer :]
        first = z.unflatten(1, (n_new, -1))[:, :, 0]  # the first token of each new copy
        mean = self.request.mean_z[layer].to(z.device)
        # in place: nothing else reads what attention has just made
        if n_new == self.model.cfg.n_heads:
            own = first.diagonal(dim1=1, dim2=2).mT
            own.copy_(self.request.patched(own, mean))
        else:
            copies, heads = (each.to(z.device) for each in self._where)
            first[:, copies, heads] = self.request.patched(first[:, copies, heads], mean[heads])

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float, softcap: float | None, sinks: Any
    ) -> Float[Tensor, "batch positions n_heads d_value"]:
        """Attention of prompts and copies (see the formula above)."""
        self._was_read = True
        n_tokens, n_own = self.n_tokens, self.inputs.n_answer
        batch, n_heads, n, d_head = query.shape
        n_keys = key.shape[1]
        # into memory of its own, as the product needs heads to lie apart
        scaled = torch.mul(query, scaling, out=query.new_empty(query.shape)).view(batch, n_keys, -1, n, d_head)
        # heads that share keys stand side by side, as rows of one product; so keys are not repeated
        scores = (scaled.flatten(2, 3) @ key[..., :n_tokens, :].mT).unflatten(2, (-1, n))
        queries, keys, values = (
            each[..., n_tokens:, :].unflatten(-2, (-1, n_own))
            for each in (scaled, key.unsqueeze(2), value.unsqueeze(2))
        )
        scores[..., n_tokens:, n_tokens - n_own :].unflatten(-2, (-1, n_own)).copy_(products(queries, keys))
        if softcap is not None:
            scores = (scores / softcap).tanh() * softcap
        wide = self._kept(mask, lambda: mask[..., self.columns.to(mask.device), :])[:, :, None, :n]
        # under autocast the mask has the larger range: in place, its lowest number would become infinite
        scores = scores.add_(wide) if scores.dtype == wide.dtype else scores + wide
        if sinks is not None:
            each = sinks.reshape(1, n_keys, -1, 1, 1).expand(*scores.shape[:-1], 1)
            scores = torch.cat([scores, each.to(scores)], -1)
        weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)[..., :n_tokens]
        del scores  # the largest tensor here
        found = (weights.flatten(2, 3) @ value[..., :n_tokens, :]).unflatten(2, (-1, n))
        own = weights[..., n_tokens:, n_tokens - n_own :].unflatten(-2, (-1, n_own))
        other = values - value[:, :, None, None, n_tokens - n_own : n_tokens]
        of_copies = found[..., n_tokens:, :].unflatten(-2, (-1, n_own))
        if n_own == 1:
            of_copies.addcmul_(own, other)
        else:
            of_copies.add_(own @ other)
        return found.flatten(1, 2).transpose(1, 2)


_RUNNING: ContextVar[Together | None] = ContextVar("ivlens_together", default=None)


def _attend(
    module: nn.Module,
    query: Float[Tensor, "batch n_heads positions d_head"],
    key: Float[Tensor, "batch n_key_heads positions d_head"],
    value: Float[Tensor, "batch n_key_heads positions d_value"],
    attention_mask: Float[Tensor, "batch 1 columns columns"] | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Float[Tensor, " n_heads"] | None = None,
    **others: Any,
) -> tuple[Float[Tensor, "batch positions n_heads d_value"], None]:
    """The attention function that the families call."""
    running = _RUNNING.get()
    if running is None:
        raise Unsuitable(OUTSIDE)
    mask = check_told(attention_mask, (running.n_tokens, running.n_tokens), others)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return running.attend(query, key, value, mask, scale, softcap, s_aux), None


AttentionInterface.register(_NAME, _attend)
