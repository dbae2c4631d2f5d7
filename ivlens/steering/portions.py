"""Prompts that fit in memory together, run under many interventions: pairs of both are rows of shared passes."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ivlens.forward.borders import Borders
from ivlens.forward.inputs import check_prompts
from ivlens.forward.prefix import SharedPrefix
from ivlens.forward.vocabulary import Read, keeping_stream, plain_unembedding
from ivlens.models.boot import TransformerBridge
from ivlens.prompts.batch import PromptBatch
from ivlens.steering.additions import Additions
from ivlens.steering.answers import AnswerRows, AnswerTable, Rows, alike, enter, enter_whole, wanted_tokens
from ivlens.steering.edits import Positions, RowEdit, Where
from ivlens.steering.summary import METRICS, Scores, Setting

# numbers that one pass may hold (0.5 GB in float32): for every row its share of the cache, and three times its logits
_FLOATS_PER_PASS = 2**27
_PASSES_TOGETHER = 4  # between them other threads may run the model, and the bar moves on
_LOGITS_OF_A_POSITION = 2**14  # for each position, at most, where they are read for a part of the vocabulary at a time

_log = logging.getLogger("ivlens")

Edit = Additions | RowEdit | Callable[[Where], AbstractContextManager[None]]

# what is scored: `all`; all but `logprob`, which is then NaN; the first tokens alone, with which whole answers count as
# right; or the rest of answers, whose first tokens are known to be right
Part = Literal["all", "no logprob", "first tokens", "rest"]


class Portion:
    """As many prompts as fit in memory together, with their shared prefix; `first` is the number of the first one."""

    def __init__(
        self,
        model: TransformerBridge,
        batch: PromptBatch,
        positions: Positions,
        rows_per_pass: int,
        borders: Borders,
        first: int = 0,
    ) -> None:
        self.model, self.batch, self._borders, self._first = model, batch, borders, first
        self.positions: Positions = positions
        self._tokens, self._mask = check_prompts(model, batch.tokens, batch.attention_mask)
        n_ctx = model.cfg.n_ctx
        self._places = n_ctx - self._mask.sum(1).cpu()  # tokens that fit behind each prompt
        # without texts nothing is asked behind an answer: no word is seen to go on
        asked_behind = self._places * (borders.tokenizer is not None)
        self._answers = AnswerTable.of(batch.alternatives, asked_behind, n_ctx - self._tokens.shape[1])
        self._streams_of: dict[tuple[int, int], Tensor | None] = {}  # by the identity of rows, and the tokens given
        self._narrow: dict[int, SharedPrefix] = {}  # by the number of tokens given after the prompt
        self._unshared = "vectors are added to all tokens" if positions == "all" else None
        self._prefix = SharedPrefix(model, self._tokens, self._mask, self._answers.most_given, self._unshared)
        if (fault := self._prefix.fault) is not None and not self._prefix.is_known:
            _log.warning("%s: every vector runs over whole prompts, slowly: %s.", model.cfg.architecture, fault)
        n_logits = model.cfg.d_vocab
        if plain_unembedding(model) is not None:
            n_logits = min(n_logits, _LOGITS_OF_A_POSITION)
        floats = self._prefix.floats_per_row + 3 * (self._answers.most_given + 1) * n_logits
        self._rows_per_pass = max(1, min(rows_per_pass, _FLOATS_PER_PASS // floats))

    def at(
        self,
        settings: Sequence[Setting],
        thetas: Float[Tensor, "n d_model"],
        asked: Bool[Tensor, "n prompts"],
        part: Part,
        more_done: Callable[[int], object],
    ) -> Scores:
        """The scores of each vector at its own setting on the prompts that it is asked about; 0 on the others."""
        every = Additions.of(settings, thetas)
        order = (2 * every.starts + every.is_post).argsort(
            stable=True
        )  # so that the rows of a pass enter at blocks in ascending order
        parts, n_prompts = [], int(asked.any(0).sum())
        for indices in self._together(every.starts[order], every.is_post[order], n_prompts):
            chosen = order[indices]
            parts.append(self.scores(len(chosen), every.chosen(chosen), part, asked[chosen]))
            more_done(len(chosen))
        return Scores.stacked(parts).chosen(order.argsort().tolist())

    def _together(
        self, starts: Int[Tensor, " n"], is_post: Bool[Tensor, " n"], n_prompts: int
    ) -> list[Int[Tensor, " some"]]:
        """The numbers of the interventions that share passes, in their order."""
        self._streams(self._answers.openings, 0)
        if self._prefix.joins(0):
            # without the stream that enters block 0, what is edited there starts with the tokens
            apart = (starts == 0).long()
            most = max(1, _PASSES_TOGETHER * self._rows_per_pass // max(1, n_prompts))
        else:
            apart, most = 2 * starts + is_post, len(starts)
        places = apart.unique_consecutive(return_counts=True)[1].tolist()
        return [part for place in torch.arange(len(starts)).split(places) for part in place.split(most)]

    def scores(self, n: int, edit: Edit, part: Part, asked: Bool[Tensor, "n prompts"] | None = None) -> Scores:
        """The scores of `n` interventions on the prompts that each is asked about (None: all); 0 on the others."""
        size = (n, len(self.batch))
        scores = Scores(*(torch.zeros(size) for _ in METRICS))
        begun = torch.ones(size, dtype=torch.bool) if asked is None else asked
        if part == "all":
            self._finish(scores, *self._written(scores, begun, edit), edit)
            return scores
        if part != "rest":
            begun = self._begun(scores, begun, edit)
        if part == "first tokens":
            scores.accuracy[begun] = 1.0
        else:  # few first tokens are right, so few answers are looked at
            self._finish(scores, *self._answers.of_pairs(begun), edit)
        unknown = {name: torch.full(size, torch.nan) for name in ("logprob", "prob")[: 1 + (part == "rest")]}
        return replace(scores, **unknown)

    def plain_streams(self) -> Float[Tensor, "n_layers prompts d_model"] | None:
        """The unedited residual stream after each block at the last prompt token; None where it cannot be shared."""
        rows = self._answers.openings  # one row for each prompt, in their order
        found = self._prefix.streams(rows.prompts, rows.given, self._rows_per_pass)
        return None if found is None else found[:, :, 0]

    def answer_passes(
        self, every: Additions, prompts: Int[Tensor, " some"], n_rows: Callable[[int, int], int]
    ) -> Iterator[tuple[Int[Tensor, " rows"], Int[Tensor, " rows"], Int[Tensor, "rows answer_len"], Tensor]]:
        """Passes over the whole answers of some prompts, each under all of these vectors.

        Args:
            every: The vectors, in ascending order of the blocks that they enter at.
            n_rows: The number of rows in a pass, by its numbers of positions and of answer tokens.

        Yields:
            For each row the number of its vector, that of its prompt, and the answer's tokens (padded with -100); and
            the logits that predict them, with gradients if the vectors require them.
        """
        for some in self._together(every.starts, every.is_post, len(prompts)):
            for group in self._answers.whole:
                rows = torch.isin(group.prompts, prompts).nonzero()[:, 0]
                pairs, lengths = torch.cartesian_prod(some, rows), (group.answers[rows] >= 0).sum(1).repeat(len(some))
                for near in alike(lengths):
                    n_answer = int(lengths[near].max())
                    size = n_rows(self.prefix_for(group.given.shape[1]).n_before + n_answer, n_answer)
                    for of, part in (one.T for one in pairs[near].split(size)):
                        answers = group.answers[part, :n_answer]
                        logits = self._logits(group, of, part, every, n_answer - 1)
                        yield of, group.prompts[part], answers.masked_fill(answers < 0, -100), logits

    def _begun(self, scores: Scores, asked: Bool[Tensor, "n prompts"], edit: Edit) -> Bool[Tensor, "n prompts"]:
        """Enter the probabilities of first tokens; returns for which of the asked pairs the likeliest one is right."""
        chosen, prompts = asked.nonzero(as_tuple=True)  # a prompt is its own row among the openings
        right = self._run(scores, self._answers.openings, chosen, prompts, edit) >= 0
        begun = torch.zeros_like(asked)
        begun[chosen[right], prompts[right]] = True
        return begun

    def _written(
        self, scores: Scores, asked: Bool[Tensor, "n prompts"], edit: Edit
    ) -> tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"]]:
        """Enter the probabilities of all answers; returns those that are written, by intervention and number."""
        found = []
        for group in self._answers.by_length:
            chosen, rows = asked[:, group.prompts].nonzero(as_tuple=True)
            written = self._run(scores, group, chosen, rows, edit)
            chosen, rows, written = (each[written >= 0] for each in (chosen, rows, written))
            if self._borders.tokenizer is None:  # tokens without texts: no answer is seen to go on
                scores.accuracy[chosen, group.prompts[rows]] = 1.0
            else:
                found.append((chosen, group.wholes[rows, written]))
        nothing = torch.zeros(0, dtype=torch.long)
        chosen, numbers = (torch.cat([nothing, *each]) for each in zip(*found, strict=True)) if found else [nothing] * 2
        # interventions in their order: the rows of a pass have to enter at blocks in ascending order
        order = chosen.argsort(stable=True)
        return chosen[order], numbers[order]

    def _run(
        self,
        scores: Scores,
        group: AnswerRows,
        chosen: Int[Tensor, " pairs"],
        rows: Int[Tensor, " pairs"],
        edit: Edit,
    ) -> Int[Tensor, " pairs"]:
        """Enter the probabilities of pairs of intervention and row; returns the answer that each writes, or -1."""
        written = [torch.zeros(0, dtype=torch.long)]
        parts = zip(chosen.split(self._rows_per_pass), rows.split(self._rows_per_pass), strict=True)
        for of, some in parts if len(rows) else ():
            read = self._read(group, of, some, edit, wanted_tokens(group, some))
            written.append(enter(scores, group, of, some, read))
        return torch.cat(written)

    def _finish(
        self, scores: Scores, chosen: Int[Tensor, " pairs"], numbers: Int[Tensor, " pairs"], edit: Edit
    ) -> None:
        """Enter which of these whole answers are right, with the tokens behind them, and which end the text."""
        for group in self._answers.whole:
            here = ((numbers >= group.whole[0]) & (numbers <= group.whole[-1])).nonzero()[:, 0]
            n_read = group.n_read[numbers[here] - group.whole[0]]
            for some in alike(n_read):  # without the padding of longer answers, where there are enough of one length
                for part in here[some].split(self._rows_per_pass):
                    of, rows = chosen[part], numbers[part] - group.whole[0]
                    seen = torch.arange(int(group.n_read[rows].max())) < group.n_read[rows][:, None]
                    nothing = torch.zeros((int(seen.sum()), 0), dtype=torch.long)
                    read = self._read(group, of, rows, edit, nothing, seen)
                    enter_whole(scores, group, of, rows, read, self._borders)

    def _read(
        self,
        group: Rows,
        chosen: Int[Tensor, " rows"],
        rows: Int[Tensor, " rows"],
        edit: Edit,
        tokens: Int[Tensor, "positions wanted"],
        seen: Bool[Tensor, "rows kept"] | None = None,
    ) -> Read:
        """The likeliest token at each position, and the log-probabilities of these tokens there.

        Args:
            seen: The positions that are read in each row; None: all of them.
        """
        tokens = tokens.to(self._tokens.device)
        n_given = group.given.shape[1] if seen is None else seen.shape[1] - 1
        # made now: they take passes of their own, whose logits are compared
        if isinstance(edit, Additions):
            self._streams(group, n_given)

        def positions(found: Float[Tensor, "rows kept some"]) -> Float[Tensor, "positions some"]:
            return found.flatten(0, 1) if seen is None else found[seen.to(found.device)]

        if (linear := plain_unembedding(self.model)) is None:
            return Read.of_logits(positions(self._logits(group, chosen, rows, edit, n_given)), tokens)
        with keeping_stream(linear) as kept:
            n_read = self._logits(group, chosen, rows, edit, n_given).shape[1]
        return Read.of_stream(positions(kept[-1][:, -n_read:]), linear, tokens)

    def _logits(
        self, group: Rows, chosen: Int[Tensor, " rows"], rows: Int[Tensor, " rows"], edit: Edit, n_given: int
    ) -> Float[Tensor, "rows kept d_vocab"]:
        """Logits at the last prompt token and the tokens given after it, each row under its own intervention.

        Gradients flow back to vectors that require them.
        """
        where, prefix = self._where(group, len(rows), n_given), self.prefix_for(group.given.shape[1])
        given = group.prompts[rows], group.given[rows, :n_given]
        if not isinstance(edit, Additions):
            with edit.of_rows(where, given[0] + self._first, given[1]) if isinstance(edit, RowEdit) else edit(where):
                return prefix.logits(*given)
        own, streams, with_grad = edit.chosen(chosen), self._streams(group, n_given), edit.deltas.requires_grad
        # nothing below an edit changes, so a row starts there if it can, with the unedited stream
        is_mixed = len(own.starts.unique()) > 1
        if streams is None or not int(own.starts.min()) or (is_mixed and not prefix.joins(n_given)):
            with own.in_passes(self.model, where, torch.ones_like(own.is_post)):
                return prefix.logits(*given, with_grad=with_grad)
        entered = own.after_blocks(streams[own.starts.to(streams.device) - 1, rows.to(streams.device)], where)
        with own.in_passes(self.model, where, ~own.is_post):
            start = own.starts if is_mixed else int(own.starts[0])
            return prefix.logits(*given, entered, start, with_grad)

    def _streams(self, group: Rows, n_given: int) -> Tensor | None:
        """The unedited residual stream of a group's rows after every block, with so many given tokens; made once."""
        key = id(group), n_given
        if key not in self._streams_of:
            self._streams_of[key] = self._made_streams(group, n_given)
        return self._streams_of[key]

    def _made_streams(self, group: Rows, n_given: int) -> Tensor | None:
        prefix, (first, *others) = self.prefix_for(group.given.shape[1]), self._answers.whole
        given = group.given[:, :n_given]
        if others or (group is first and n_given == first.given.shape[1]):
            return prefix.streams(group.prompts, given, self._rows_per_pass)
        # nothing looks at tokens behind it, so the streams of whole answers begin with those of shorter ones
        if (every := self._streams(first, first.given.shape[1])) is None:
            return None
        own = every[:, :, : n_given + 1]
        if group is not first:
            own = own[:, group.whole.to(every.device)]
        return own if prefix.resumes(group.prompts, given, own) else None

    def prefix_for(self, n_given: int) -> SharedPrefix:
        """The prefix of all prompts or, if some have no room for so many tokens behind them, of those that have."""
        if self._tokens.shape[1] + n_given <= self.model.cfg.n_ctx:
            return self._prefix
        if n_given not in self._narrow:
            fits = self._places > n_given
            # a prompt that fits stands in for each long one, so that all keep their numbers; it is never asked
            kept = torch.where(fits, torch.arange(len(fits)), fits.int().argmax()).to(self._tokens.device)
            narrow = check_prompts(self.model, self._tokens[kept], self._mask[kept])
            self._narrow[n_given] = SharedPrefix(self.model, *narrow, n_given, self._unshared)
        return self._narrow[n_given]

    def _where(self, group: Rows, n_rows: int, n_given: int) -> Where:
        """The positions to edit in a pass over some rows: known beforehand, so no hook has to find them."""
        n_before = self.prefix_for(group.given.shape[1]).n_before
        where = torch.zeros(n_rows, n_before + n_given + 1, dtype=torch.bool, device=self._tokens.device)
        begin = 0 if self.positions == "all" else n_before
        where[:, begin : n_before + 1 if self.positions == "prompt" else None] = True
        return lambda: where
