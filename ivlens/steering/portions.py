"""Prompts that fit in memory together, run under many interventions: pairs of both are rows of shared passes."""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ivlens.forward.borders import Borders
from ivlens.forward.inputs import check_prompts
from ivlens.forward.prefix import SharedPrefix
from ivlens.forward.scoring import Correct
from ivlens.forward.vocabulary import Read, keeping_stream, plain_unembedding
from ivlens.models.boot import TransformerBridge
from ivlens.prompts.batch import PromptBatch
from ivlens.steering.additions import Additions
from ivlens.steering.answers import AnswerRows, Rows, answer_rows, enter, wanted_tokens
from ivlens.steering.edits import Positions, Where
from ivlens.steering.summary import METRICS, Scores, Setting

# numbers that one pass may hold (0.5 GB in float32): for every row its share of the cache, and three times its logits
_FLOATS_PER_PASS = 2**27
_PASSES_TOGETHER = 4  # between them other threads may run the model, and the bar moves on
_LOGITS_OF_A_POSITION = 2**14  # for each position, at most, where they are read for a part of the vocabulary at a time

_log = logging.getLogger("ivlens")

Edit = Additions | Callable[[Where], AbstractContextManager[None]]


class Portion:
    """As many prompts as fit in memory together, with their shared prefix."""

    def __init__(
        self, model: TransformerBridge, batch: PromptBatch, positions: Positions, rows_per_pass: int, borders: Borders
    ) -> None:
        self.model, self.batch, self._borders = model, batch, borders
        self.positions: Positions = positions
        self._tokens, self._mask = check_prompts(model, batch.tokens, batch.attention_mask)
        self._places = model.cfg.n_ctx - self._mask.sum(1).cpu()  # tokens that fit behind each prompt
        openings = [[answer[:1] for answer in answers] for answers in batch.alternatives]
        self._groups = answer_rows(batch.alternatives, self._places)
        (self._openings,) = answer_rows(openings, self._places)  # first tokens alone: all of one length, so one group
        self._streams_of: dict[int, Tensor | None] = {}  # by the identity of a group
        self._narrow: dict[int, SharedPrefix] = {}  # by the number of tokens given after the prompt
        longest = max(group.targets.shape[2] for group in self._groups)
        self._prefix = SharedPrefix(
            model, self._tokens, self._mask, max(group.given.shape[1] for group in self._groups)
        )
        if (fault := self._prefix.fault) is not None and not self._prefix.is_known:
            _log.warning("%s: every vector runs over whole prompts, slowly: %s.", model.cfg.architecture, fault)
        n_logits = model.cfg.d_vocab
        if plain_unembedding(model) is not None:
            n_logits = min(n_logits, _LOGITS_OF_A_POSITION)
        floats = self._prefix.floats_per_row + 3 * longest * n_logits
        self._rows_per_pass = max(1, min(rows_per_pass, _FLOATS_PER_PASS // floats))

    def at(
        self,
        settings: Sequence[Setting],
        thetas: Float[Tensor, "n d_model"],
        asked: Bool[Tensor, " prompts"],
        brief: bool,
        loose: bool,
        more_done: Callable[[int], object],
    ) -> Scores:
        every = Additions.of(settings, thetas)
        order = (2 * every.starts + every.is_post).argsort(
            stable=True
        )  # so that the rows of a pass enter at blocks in ascending order
        parts = []
        for indices in self._together(every.starts[order], every.is_post[order], int(asked.sum())):
            chosen = order[indices]
            parts.append(self.scores(len(chosen), every.chosen(chosen), asked, brief=brief, loose=loose))
            more_done(len(chosen))
        return Scores.stacked(parts).chosen(order.argsort().tolist())

    def _together(
        self, starts: Int[Tensor, " n"], is_post: Bool[Tensor, " n"], n_prompts: int
    ) -> list[Int[Tensor, " some"]]:
        """The numbers of the interventions that share passes, in their order."""
        self._streams(self._openings)
        if self._prefix_of(self._openings).joins:
            # without the stream that enters block 0, what is edited there starts with the tokens
            apart = (starts == 0).long()
            most = max(1, _PASSES_TOGETHER * self._rows_per_pass // max(1, n_prompts))
        else:
            apart, most = 2 * starts + is_post, len(starts)
        places = apart.unique_consecutive(return_counts=True)[1].tolist()
        return [part for place in torch.arange(len(starts)).split(places) for part in place.split(most)]

    def scores(
        self,
        n: int,
        edit: Edit,
        asked: Bool[Tensor, " prompts"] | None = None,
        *,
        brief: bool = False,
        loose: bool = False,
    ) -> Scores:
        """The scores of `n` interventions on all prompts of the portion; 0 on those that are not asked."""
        size = (n, len(self.batch))
        scores = Scores(*(torch.zeros(size) for _ in METRICS))
        begun = torch.ones(size, dtype=torch.bool) if asked is None else asked.expand(size)
        if brief and len(self._groups) > 1:
            # one short pass for all; only pairs whose first token is right can have a right answer, and few have
            flat = begun.flatten().nonzero()[:, 0]
            begun = torch.zeros(begun.numel(), dtype=torch.bool).index_fill(
                0, flat[self._run(scores, self._openings, flat, edit) >= 0], True
            )
            begun = begun.reshape(size)
        for group in self._groups:
            n_rows = len(group.prompts)
            flat = torch.arange(n * n_rows)  # number of the pair (intervention, row): intervention * n_rows + row
            flat = flat[begun[flat // n_rows, group.prompts[flat % n_rows]]]
            written = self._run(scores, group, flat, edit)
            flat, written = flat[written >= 0], written[written >= 0]
            chosen, rows = flat // n_rows, flat % n_rows
            if loose or self._borders.tokenizer is None:
                scores.accuracy[chosen, group.prompts[rows]] = 1.0
                continue
            for name, found in self._judged(group, chosen, rows, written, edit)._asdict().items():
                getattr(scores, name)[chosen[found], group.prompts[rows[found]]] = 1.0
        return replace(scores, logprob=torch.full(size, torch.nan)) if brief else scores

    def _run(self, scores: Scores, group: AnswerRows, flat: Int[Tensor, " rows"], edit: Edit) -> Int[Tensor, " rows"]:
        """Enter the probabilities of these (intervention, row) pairs; return the answer that each writes, or -1."""
        written = [torch.zeros(0, dtype=torch.long)]
        for part in flat.split(self._rows_per_pass) if len(flat) else ():
            chosen, rows = part // len(group.prompts), part % len(group.prompts)
            read = self._read(group, chosen, rows, edit, wanted_tokens(group, rows))
            written.append(enter(scores, group, chosen, rows, read))
        return torch.cat(written)

    def _judged(
        self,
        group: AnswerRows,
        chosen: Int[Tensor, " rows"],
        rows: Int[Tensor, " rows"],
        written: Int[Tensor, " rows"],
        edit: Edit,
    ) -> Correct:
        """For each of these written answers, whether its last word is not continued, and whether the text ends."""
        accuracy = torch.ones(len(rows), dtype=torch.bool)
        exact = torch.zeros_like(accuracy)
        after: list[int | None] = [None] * len(rows)
        whole = group.number[rows, written]
        asked = (whole >= 0).nonzero()[:, 0]
        for part in asked.split(self._rows_per_pass) if len(asked) else ():
            nothing = torch.zeros((len(part), 0), dtype=torch.long)
            read = self._read(group.whole, chosen[part], whole[part], edit, nothing, last_only=True)
            accuracy[part] = read.peak.isfinite().cpu()  # a pass that overflows has no next token
            for row, token in zip(part.tolist(), read.top.tolist(), strict=True):
                after[row] = token
        for row, answer in enumerate(map(tuple, group.targets[rows, written].tolist())):
            if accuracy[row]:
                accuracy[row] = not self._borders.goes_on(answer, after[row])
                exact[row] = self._borders.ends(answer, after[row])
        return Correct(accuracy, exact)

    def _read(
        self,
        group: Rows,
        chosen: Int[Tensor, " rows"],
        rows: Int[Tensor, " rows"],
        edit: Edit,
        tokens: Int[Tensor, "positions wanted"],
        *,
        last_only: bool = False,
    ) -> Read:
        """The likeliest token at each position, and the log-probabilities of these tokens there."""
        tokens = tokens.to(self._tokens.device)
        # made now, by passes of their own, whose logits are compared
        self._streams(group) if isinstance(edit, Additions) else self._prefix_of(group)
        if (linear := plain_unembedding(self.model)) is None:
            logits = self._logits(group, chosen, rows, edit, last_only=last_only)
            return Read.of_logits(logits.flatten(0, 1), tokens)
        with keeping_stream(linear) as kept:
            n_read = self._logits(group, chosen, rows, edit, last_only=last_only).shape[1]
        return Read.of_stream(kept[-1][:, -n_read:].flatten(0, 1), linear, tokens)

    def _logits(
        self,
        group: Rows,
        chosen: Int[Tensor, " rows"],
        rows: Int[Tensor, " rows"],
        edit: Edit,
        *,
        last_only: bool = False,
    ) -> Float[Tensor, "rows kept d_vocab"]:
        """Logits at the last prompt token and the tokens given after it, each row under its own intervention."""
        where, prefix = self._where(group, rows), self._prefix_of(group)
        given = group.prompts[rows], group.given[rows]
        if not isinstance(edit, Additions):
            with edit(where):
                return prefix.logits(*given, last_only=last_only)
        own, streams = edit.chosen(chosen), self._streams(group)
        # nothing below an edit changes, so a row starts there if it can, with the unedited stream
        is_mixed = len(own.starts.unique()) > 1
        if streams is None or not int(own.starts.min()) or (is_mixed and not prefix.joins):
            with own.in_passes(self.model, where, torch.ones_like(own.is_post)):
                return prefix.logits(*given, last_only=last_only)
        entered = own.after_blocks(streams[own.starts.to(streams.device) - 1, rows.to(streams.device)], where)
        with own.in_passes(self.model, where, ~own.is_post):
            start = own.starts if is_mixed else int(own.starts[0])
            return prefix.logits(*given, entered, start, last_only=last_only)

    def _streams(self, group: Rows) -> Tensor | None:
        """The unedited residual stream of a group's rows after every block; computed once."""
        if id(group) not in self._streams_of:
            prefix = self._prefix_of(group)
            self._streams_of[id(group)] = prefix.streams(group.prompts, group.given, self._rows_per_pass)
        return self._streams_of[id(group)]

    def _prefix_of(self, group: Rows) -> SharedPrefix:
        """The prefix of all prompts or, if some have no room for the group's answers, of those that have."""
        n_given = group.given.shape[1]
        if self._tokens.shape[1] + n_given <= self.model.cfg.n_ctx:
            return self._prefix
        if n_given not in self._narrow:
            fits = self._places > n_given
            # a prompt that fits stands in for each long one, so that all keep their numbers; it is never asked
            kept = torch.where(fits, torch.arange(len(fits)), fits.int().argmax()).to(self._tokens.device)
            narrow = check_prompts(self.model, self._tokens[kept], self._mask[kept])
            self._narrow[n_given] = SharedPrefix(self.model, *narrow, n_given)
        return self._narrow[n_given]

    def _where(self, group: Rows, rows: Int[Tensor, " rows"]) -> Where:
        """The positions to edit in a pass over these rows: known beforehand, so no hook has to find them."""
        n_before = self._prefix_of(group).n_before
        where = torch.zeros(
            len(rows), n_before + group.given.shape[1] + 1, dtype=torch.bool, device=self._tokens.device
        )
        where[:, n_before : n_before + 1 if self.positions == "prompt" else None] = True
        return lambda: where
