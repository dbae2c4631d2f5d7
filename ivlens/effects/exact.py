"""The exact engine: all heads of all layers for little more than one forward pass.

A patch touches one head at the last prompt token. Nothing before that token changes, so the keys and values of the
prompt are the same under every patch; nothing below the patched layer changes either. So one plain pass over the prompt
is enough, if copies of its last token travel along, one for every patched head, each from its own layer upward:

    block 2   prompt . . . . . t   a0' a1'  b0' b1'  c0 c1     c: patched here, in head 0 and in head 1
    block 1   prompt . . . . . t   a0' a1'  b0 b1              b: patched one block lower
    block 0   prompt . . . . . t   a0 a1                       a: patched in the first block

After the model has run block `l` on the prompt, the engine runs the same block once more, on all copies: those from
below as they come, and `n_heads` new ones, equal to `t` as it entered the block, whose head outputs are replaced on
the way. The copies are positions of one sequence. Each sees the prompt's keys and values and its own: by an attention
of their own (`ivlens.effects.own_attention`), or in families without a place for one by a mask
(`ivlens.effects.copies`). In blocks with a recurrence they are rows, each of which takes its steps from the prompt's
state (`ivlens.effects.recurrent`). With several answer tokens `t` is the last prompt token and the answer tokens that
follow it.

Cost, in forward passes over a prompt of T tokens with an answer of A:

    1 + A (n_layers + 1) n_heads / 2T,  and the unembedding of A tokens for every copy
    (2 in place of 1 for recurrent blocks, which run on the prompt a second time for its state)

against `n_layers * n_heads` with one pass for every head.

One more copy, the witness, is never patched. It stands last, so that it would see all other copies if a mask were
wrong: in every pass its logits must be those of `t`. The first pass over prompts of a new shape is also compared with
the reference engine (see `ivlens.effects.checks`).

Formulas: docs/method.md, 4 Causal indirect effects.
"""

import logging
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ivlens.common.memory import is_out_of_memory
from ivlens.effects.checks import Check, check_unhooked, refusals_explained
from ivlens.effects.chunks import ChunkSize, chunk_size
from ivlens.effects.copies import BlockArguments, Copies, PromptKeys, named_arguments
from ivlens.effects.own_attention import own_attention
from ivlens.effects.patches import Patches
from ivlens.effects.recurrent import Recurrences
from ivlens.effects.request import EffectRequest, Measured, Unsuitable
from ivlens.effects.routers import RouterWatch
from ivlens.forward.hooks import model_lock
from ivlens.forward.inputs import forced, row_slices
from ivlens.forward.joining import blocks_left_out
from ivlens.forward.prefix import output_form
from ivlens.forward.sharing import give_way
from ivlens.forward.unembedding import full_logits
from ivlens.forward.vocabulary import keeping_stream, plain_unembedding
from ivlens.models.attention import attention_layers
from ivlens.models.boot import TransformerBridge

_log = logging.getLogger("ivlens")

# the dtypes, with and without autocast, in which the copies of a model need a mask
_MASKED: WeakKeyDictionary[TransformerBridge, set[tuple[torch.dtype, bool]]] = WeakKeyDictionary()


def measure(model: TransformerBridge, request: EffectRequest) -> Measured:
    """CIE of each asked head on each prompt, and the scores of the unpatched prompts.

    Progress is counted in blocks times prompts.

    Raises:
        Unsuitable: a model with hooks of its own; or a family whose blocks cannot take copies, or give other logits for
            copies than the reference does.
        MemoryError: one prompt with copies for one head does not fit in memory.
    """
    check_unhooked(model)
    kind = request.mean_z.dtype, torch.is_autocast_enabled(request.tokens.device.type)
    masked = _MASKED.setdefault(model, set())
    if kind not in masked:
        try:
            return _measured(model, request, is_split=True)
        except Unsuitable as why:
            masked.add(kind)
            _log.debug("%s: copies are kept apart by a mask: %s.", model.cfg.architecture, why)
    return _measured(model, request, is_split=False)


def _measured(model: TransformerBridge, request: EffectRequest, *, is_split: bool) -> Measured:
    """`measure` in one of two ways: with an attention of the copies' own, or with a mask over all of them."""
    found = Measured.nothing_yet(model, request, "exact")
    found.record["copies"] = "own attention" if is_split else "one mask"
    watch = RouterWatch(model)
    size, start = chunk_size(model, request, is_split=is_split), 0
    with model_lock(model), torch.no_grad():
        check_unhooked(model)
        # `while`, not a list of slices: sizes are estimates, and get smaller where memory runs out on the way
        while start < len(request.tokens):
            rows = slice(start, min(start + size.n_prompts, len(request.tokens)))
            try:
                _Pass(model, request, rows, size, watch, is_split).enter_into(found)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                # the same prompts once more: effects are entered only after a whole pass
                size = size.halved()
            else:
                start = rows.stop
                give_way(model)  # no hook is on the model here, so another thread may run a short pass
    found.record["chunk"] = asdict(size)
    if watch.decisions:
        found.record["router_flips"] = f"{watch.flips} of {watch.decisions}"
    return found


class _Pass:
    """One plain pass over some prompts, with the patched copies of their last tokens travelling along."""

    def __init__(
        self,
        model: TransformerBridge,
        request: EffectRequest,
        rows: slice,
        size: ChunkSize,
        watch: RouterWatch,
        is_split: bool,
    ) -> None:
        self._is_split = is_split
        self._model, self._request, self._rows, self._size, self._watch = model, request, rows, size, watch
        self._inputs = forced(request.tokens[rows], request.attention_mask[rows], request.answers[rows])
        self._check = Check(model, request, "exact, split" if is_split else "exact", size.n_heads)
        self._is_due = self._check.is_due()
        # several short sequences of copies where one long one would need too much memory for its attention scores
        groups = [request.heads[part] for part in row_slices(len(request.heads), size.n_heads)]
        # a witness in the first sequence only: the others get their masks in the same way. It is in every pass, so that
        # a pass with the check gives the same bits as one without
        self._groups = [Copies(heads, witness=number == 0) for number, heads in enumerate(groups)]
        self._patches = Patches(model, request, self._inputs.n_answer)
        self._recurrences = Recurrences(model, self._inputs.last, request.max_memory // 16)
        self._keys = PromptKeys(self._inputs.last, is_split, self._recurrences.config)
        most = len(request.layers) * size.n_heads + 1  # copies in a sequence after the last layer, and the witness
        self._arguments = BlockArguments(
            self._inputs.last, self._inputs.n_answer, most, request.tokens.device, is_split=is_split
        )
        self._form = 0  # the `output_form` of the blocks, seen in the first hook

    def enter_into(self, found: Measured) -> None:
        """Run the pass, check it, and put its effects and base scores into `found`."""
        plain = self._run()
        found.base[self._rows] = self._request.scores(plain, self._rows)
        scores = [self._scores(copies, plain) for copies in self._groups]
        if self._is_due:
            with refusals_explained():
                self._check.patched(self._rows, self._logits_of)
            self._check.passed()
        # only now, after the checks
        for copies, each in zip(self._groups, scores, strict=True):
            effects = each - found.base[self._rows, None, None]
            found.enter(self._rows, self._request.layers, copies.heads, effects)

    def _run(self) -> Float[Tensor, "batch answer_len d_vocab"]:
        """Run the prompts, and the copies in hooks behind each block; the logits of the unpatched prompts."""
        with ExitStack() as stack:
            stack.enter_context(self._watch.open())
            # below the lowest asked layer there are no copies yet
            for layer in range(min(self._request.layers), self._model.cfg.n_layers):
                after = self._model.blocks[layer].register_forward_hook(partial(self._after, layer), with_kwargs=True)
                stack.callback(after.remove)
            stack.enter_context(refusals_explained())
            stack.enter_context(full_logits(self._model))
            return self._model(
                self._inputs.tokens,
                attention_mask=self._inputs.attention_mask,
                past_key_values=self._keys,  # an empty cache to the model, and our view of each block's keys
                use_cache=True,
                logits_to_keep=self._inputs.n_answer,
            )

    def _after(self, layer: int, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Hook of a block that has just run on the prompts: run the same block on the copies."""
        self._form = output_form(output)
        given = named_arguments(block, args, kwargs)
        entered = given.pop("hidden_states")
        routed = self._watch.seen(block)  # the experts of the prompts' tokens, before the copies' take their place
        for copies in self._groups:
            self._advance(copies, layer, block, entered, given)
            if copies.witness:
                self._watch.compare(routed, self._watch.seen(block), len(entered), self._inputs.n_answer)
        total = len(self._request.tokens) * (self._model.cfg.n_layers - min(self._request.layers))
        done = total * self._rows.start // len(self._request.tokens)
        self._request.progress(done + len(entered) * (layer + 1 - min(self._request.layers)), total)

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
        is_patched = layer in self._request.layers
        # the new copies begin as the last prompt token and the answer tokens
        places = copies.join(entered[:, -self._inputs.n_answer :]) if is_patched else None
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
        if not self._is_split or layer not in attention_layers(self._model):
            return nullcontext()
        return own_attention(self._model, layer, *self._keys.shared, self._inputs.n_answer)

    def _scores(
        self, copies: Copies, plain: Float[Tensor, "batch answer_len d_vocab"]
    ) -> Float[Tensor, "batch n_layers n_heads"]:
        """Scores of every patched copy. The witness is unembedded among them, and must have the logits `plain`."""
        assert copies.stream is not None
        batch, n_copies = copies.stream.shape[:2]
        stream = copies.stream.flatten(0, 1)  # prompt by prompt, each with all its copies
        prompts = torch.arange(batch, device=stream.device).repeat_interleave(n_copies)
        is_witness = (torch.arange(n_copies, device=stream.device) >= copies.n_patched).repeat(batch)
        scores = []
        # logits are the largest tensors, and only their scores are kept
        for part in row_slices(len(stream), self._size.n_logit_rows):
            of, seen = prompts[part] + self._rows.start, is_witness[part]
            if (linear := plain_unembedding(self._model)) is None:
                logits = self._logits(stream[part])
                scores.append(self._request.scores(logits, of))
                unpatched = logits[seen]
            else:
                with keeping_stream(linear) as kept:
                    self._logits(stream[part])
                scores.append(self._request.scores_of_streams(kept[0], linear, of))
                unpatched = self._logits(stream[part][seen]) if bool(seen.any()) else plain[:0]
            self._check_witness(unpatched, plain, prompts[part][seen])
        # copies joined layer by layer, so the patched ones unfold into layers x heads
        kept = torch.cat(scores).reshape(batch, n_copies)[:, : copies.n_patched]
        return kept.reshape(batch, len(self._request.layers), len(copies.heads))

    def _check_witness(
        self,
        copied: Float[Tensor, "rows answer_len d_vocab"],
        plain: Float[Tensor, "batch answer_len d_vocab"],
        prompts: Int[Tensor, " rows"],
    ) -> None:
        """Compare the witness with the prompts' own logits, at real answer tokens."""
        if len(prompts):
            real = self._request.answers[self._rows][prompts] != -100
            self._check.plain(copied[real], plain[prompts][real])

    def _logits(self, stream: Float[Tensor, "copies answer_len d_model"]) -> Float[Tensor, "copies answer_len d_vocab"]:
        """Logits that the model makes of the stream after its last block: final norm, unembedding, scale, softcap."""
        # the model's own forward with all blocks left out, so that nothing a family does there is forgotten; the token
        # ids only give the shape
        nothing = torch.zeros(stream.shape[:2], dtype=torch.long, device=self._request.tokens.device)
        n_layers = self._model.cfg.n_layers
        with (
            refusals_explained(),
            full_logits(self._model),
            blocks_left_out(self._model, n_layers, stream, self._form),
        ):
            return self._model(nothing, attention_mask=torch.ones_like(nothing), use_cache=False)

    def _logits_of(
        self, layer: int, head: int, prompts: Int[Tensor, " prompts"]
    ) -> Float[Tensor, "prompts answer_len d_vocab"]:
        """Logits of some prompts with one head patched, for the check against the reference."""
        copies = next(copies for copies in self._groups if head in copies.heads)
        assert copies.stream is not None
        place = self._request.layers.index(layer) * len(copies.heads) + copies.heads.index(head)
        return self._logits(copies.stream[prompts, place])
