"""The exact engine: all heads of all layers for little more than one forward pass.

A patch touches one head at the last prompt token. Nothing before that token changes, so the keys and values of the
prompt are the same under every patch; nothing below the patched layer changes either. So one plain pass over the prompt
is enough, if copies of its last token travel along, one for every patched head, each from its own layer upward:

    block 2   prompt . . . . . t   a0' a1'  b0' b1'  c0 c1     c: patched here, in head 0 and in head 1
    block 1   prompt . . . . . t   a0' a1'  b0 b1              b: patched one block lower
    block 0   prompt . . . . . t   a0 a1                       a: patched in the first block

Block `l` runs on the prompt and on all copies: those from below as they come, and `n_heads` new ones, equal to `t` as
it enters the block, whose head outputs are replaced on the way. The copies are positions of one sequence, and each sees
the prompt's keys and values and its own. With several answer tokens `t` is the last prompt token and the answer tokens
that follow it. There are three ways, of which the first one is taken that a model allows:

- *with the prompts*: copies stand behind their prompt, in one call of each plain block (`ivlens.effects.together`);
- *own attention*: after a block has run on the prompt, it runs once more, on the copies, with an attention of their own
  (`ivlens.effects.apart`, `ivlens.effects.own_attention`);
- *one mask*: the same, where the family's own attention keeps copies apart by a mask (`ivlens.effects.copies`).

In blocks with a recurrence copies are rows, each of which takes its steps from the prompt's state
(`ivlens.effects.recurrent`).

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
from dataclasses import asdict
from itertools import pairwise
from typing import Literal, get_args
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ivlens.common.memory import is_out_of_memory
from ivlens.effects.apart import Apart
from ivlens.effects.checks import Check, check_unhooked, refusals_explained
from ivlens.effects.chunks import ChunkSize, chunk_size
from ivlens.effects.copies import Copies
from ivlens.effects.request import EffectRequest, Measured, Unsuitable
from ivlens.effects.routers import RouterWatch
from ivlens.effects.together import Together
from ivlens.forward.hooks import model_lock
from ivlens.forward.inputs import forced, row_slices
from ivlens.forward.joining import blocks_left_out
from ivlens.forward.sharing import give_way
from ivlens.forward.unembedding import full_logits
from ivlens.forward.unwrapped import parts_agree
from ivlens.forward.vocabulary import keeping_stream, plain_unembedding
from ivlens.models.boot import TransformerBridge

_log = logging.getLogger("ivlens")

Way = Literal["with the prompts", "own attention", "one mask"]
WAYS: tuple[Way, ...] = get_args(Way)
# for each dtype, with and without autocast, the first way that a model has not refused
_FIRST: WeakKeyDictionary[TransformerBridge, dict[tuple[torch.dtype, bool], Way]] = WeakKeyDictionary()


def measure(model: TransformerBridge, request: EffectRequest) -> Measured:
    """CIE of each asked head on each prompt, and the scores of the unpatched prompts.

    Progress is counted in blocks times prompts.

    Raises:
        Unsuitable: a model with hooks of its own; or a family whose blocks cannot take copies, or give other logits for
            copies than the reference does.
        MemoryError: one prompt with copies for one head does not fit in memory.
    """
    with model_lock(model):  # another thread's pass has hooks of its own
        check_unhooked(model)
    kind = request.mean_z.dtype, torch.is_autocast_enabled(request.tokens.device.type)
    first = _FIRST.setdefault(model, {})
    for way, following in pairwise(WAYS[WAYS.index(first.get(kind, WAYS[0])) :]):
        try:
            return _measured(model, request, way)
        except Unsuitable as why:
            first[kind] = following
            _log.debug("%s: copies are measured by %s: %s.", model.cfg.architecture, following, why)
    return _measured(model, request, WAYS[-1])


def _measured(model: TransformerBridge, request: EffectRequest, way: Way) -> Measured:
    """`measure` in one of the ways; where these prompts do not allow the first one, in the second."""
    found = Measured.nothing_yet(model, request, "exact")
    watch = RouterWatch(model)
    size, start = chunk_size(model, request, is_split=way != "one mask"), 0
    if way == "with the prompts" and (request.is_wide or watch.is_watching or size.n_heads < len(request.heads)):
        way = "own attention"
    found.record["copies"] = way
    with model_lock(model), torch.no_grad():
        check_unhooked(model)
        if way != "one mask" and not parts_agree(model):
            raise Unsuitable("the bridge calculates with parts of matrices that the plain blocks have no longer")
        # `while`, not a list of slices: sizes are estimates, and get smaller where memory runs out on the way
        while start < len(request.tokens):
            rows = slice(start, min(start + size.n_prompts, len(request.tokens)))
            try:
                _Pass(model, request, rows, size, watch, way).enter_into(found)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                # the same prompts once more: effects are entered only after a whole pass
                size = size.halved()
                if way == "with the prompts" and size.n_heads < len(request.heads):
                    found.record["copies"] = way = "own attention"
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
        way: Way,
    ) -> None:
        self._way = way
        self._model, self._request, self._rows, self._size, self._watch = model, request, rows, size, watch
        self._inputs = forced(request.tokens[rows], request.attention_mask[rows], request.answers[rows])
        self._check = Check(model, request, f"exact, {way}", size.n_heads)
        self._is_due = self._check.is_due()
        # several short sequences of copies where one long one would need too much memory for its attention scores
        groups = [request.heads[part] for part in row_slices(len(request.heads), size.n_heads)]
        # a witness in the first sequence only: the others get their masks in the same way. It is in every pass, so that
        # a pass with the check gives the same bits as one without
        self._groups = [Copies(heads, witness=number == 0) for number, heads in enumerate(groups)]
        self._form = 0  # the `output_form` of the blocks, seen in the pass

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
        """Run prompts and copies; the logits of the unpatched prompts."""
        given = self._model, self._request, self._inputs, self._groups
        if self._way == "with the prompts":
            run: Together | Apart = Together(*given, self._say)
        else:
            run = Apart(*given, self._way == "own attention", self._watch, self._say)
        plain = run.run()
        self._form = run.form
        return plain

    def _say(self, layer: int) -> None:
        """Tell that a block has run on prompts and copies."""
        lowest, n_prompts = min(self._request.layers), len(self._inputs.tokens)
        n_blocks = self._model.cfg.n_layers - lowest
        done = n_blocks * self._rows.start + n_prompts * (layer + 1 - lowest)
        self._request.progress(done, n_blocks * len(self._request.tokens))

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
