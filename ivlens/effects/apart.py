"""Prompts and copies in calls of their own: after a block has run on the prompts, it runs once more, on the copies.

For models that do not take both in one sequence (`ivlens.effects.together`), and for copies in several sequences.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from ivlens.effects.checks import refusals_explained
from ivlens.effects.copies import BlockArguments, Copies, PromptKeys, named_arguments
from ivlens.effects.own_attention import own_attention
from ivlens.effects.patches import Patches
from ivlens.effects.recurrent import Recurrences
from ivlens.effects.request import EffectRequest
from ivlens.effects.routers import RouterWatch
from ivlens.forward.inputs import Inputs
from ivlens.forward.joining import output_form
from ivlens.forward.unembedding import full_logits
from ivlens.models.attention import attention_layers
from ivlens.models.boot import TransformerBridge


@dataclass(eq=False)
class Apart:
    """One pass over some prompts, and the copies of their last tokens in hooks behind each block.

    Attributes:
        model, request: What is measured.
        inputs: The prompts of this pass.
        groups: The copies, in one or several sequences; their streams are those behind the last block after the pass.
        is_split: Whether copies have an attention of their own; False: they are kept apart by a mask.
        watch: Compares the experts of copies and prompts.
        done: Called with the number of each layer that has run.
        form: The form of the blocks' output (`ivlens.forward.joining.output_form`), seen in the first hook.
    """

    model: TransformerBridge
    request: EffectRequest
    inputs: Inputs
    groups: Sequence[Copies]
    is_split: bool
    watch: RouterWatch
    done: Callable[[int], None]
    form: int = 0

    def __post_init__(self) -> None:
        last, n_answer = self.inputs.last, self.inputs.n_answer
        self._recurrences = Recurrences(self.model, last, self.request.max_memory // 16)
        self._keys = PromptKeys(last, self.is_split, self._recurrences.config)
        # copies in a sequence after the last layer, and the witness
        most = len(self.request.layers) * max(len(copies.heads) for copies in self.groups) + 1
        device = self.request.tokens.device
        self._arguments = BlockArguments(last, n_answer, most, device, is_split=self.is_split)

    @cached_property
    def _patches(self) -> Patches:
        return Patches(self.model, self.request, self.inputs.n_answer)

    def run(self) -> Float[Tensor, "batch answer_len d_vocab"]:
        """Run the prompts, and the copies on the way; the logits of the unpatched prompts."""
        with ExitStack() as stack:
            stack.enter_context(self.watch.open())
            # below the lowest asked layer there are no copies yet
            for layer in range(min(self.request.layers), self.model.cfg.n_layers):
                after = self.model.blocks[layer].register_forward_hook(partial(self._after, layer), with_kwargs=True)
                stack.callback(after.remove)
            stack.enter_context(refusals_explained())
            stack.enter_context(full_logits(self.model))
            return self.model(
                self.inputs.tokens,
                attention_mask=self.inputs.attention_mask,
                past_key_values=self._keys,  # an empty cache to the model, and our view of each block's keys
                use_cache=True,
                logits_to_keep=self.inputs.n_answer,
            )

    def _after(self, layer: int, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Hook of a block that has just run on the prompts: run the same block on the copies."""
        self.form = output_form(output)
        given = named_arguments(block, args, kwargs)
        entered = given.pop("hidden_states")
        routed = self.watch.seen(block)  # the experts of the prompts' tokens, before the copies' take their place
        for copies in self.groups:
            self._advance(copies, layer, block, entered, given)
            if copies.witness:
                self.watch.compare(routed, self.watch.seen(block), len(entered), self.inputs.n_answer)
        self.done(layer)

    def _advance(
        self,
        copies: Copies,
        layer: int,
        block: nn.Module,
        entered: Float[Tensor, "batch pos d_model"],
        given: dict[str, Any],
    ) -> None:
        """Run a block on one sequence of copies, with new copies patched in it if its layer was asked for.

        Args:
            entered: the stream that entered the block on the prompts.
            given: the other arguments of the block's call on the prompts.
        """
        is_patched = layer in self.request.layers
        # the new copies begin as the last prompt token and the answer tokens
        places = copies.join(entered[:, -self.inputs.n_answer :]) if is_patched else None
        assert copies.stream is not None
        stream = copies.stream.to(entered.device)  # blocks may lie on several devices
        if layer in self._recurrences:
            patch_of = None if places is None else partial(self._patches.of_rows, layer, places, copies.heads)
            with refusals_explained():
                copies.stream = self._recurrences.advance(layer, block, entered, given, stream, patch_of)
            return
        with ExitStack() as stack:
            if places is not None:
                stack.enter_context(self._patches.of_positions(layer, places, copies.heads))
            n_copies = stream.shape[1]
            with refusals_explained(), self._keys.handed_on(), self._attention(layer):
                # `forward`, not a call of the block: a call would run this hook again, on copies of copies
                out = block.forward(stream.flatten(1, 2), **self._arguments.for_copies(given, n_copies))
        out = out[0] if isinstance(out, tuple) else out
        copies.stream = out.unflatten(1, (n_copies, -1))

    def _attention(self, layer: int) -> AbstractContextManager[None]:
        """The attention of copies in the body: their own, or that of the family."""
        if not self.is_split or layer not in attention_layers(self.model):
            return nullcontext()
        return own_attention(self.model, layer, *self._keys.shared, self.inputs.n_answer)
