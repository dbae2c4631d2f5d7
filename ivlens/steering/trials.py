"""Runs many interventions on the same prompts: pairs of prompt and vector are rows of one pass, on a shared prefix."""

import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import count

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ivlens.common.progress import bar, ticking
from ivlens.forward.borders import Borders
from ivlens.forward.hooks import check_unsteered, model_lock
from ivlens.forward.inputs import check_length, check_prompts, row_slices
from ivlens.forward.prefix import SharedPrefix, prompts_that_fit
from ivlens.forward.scoring import Correct
from ivlens.forward.sharing import give_way
from ivlens.forward.writes import added_to_stream
from ivlens.models.boot import TransformerBridge
from ivlens.prompts.batch import PromptBatch
from ivlens.steering.answers import AnswerRows, Rows, answer_rows, enter
from ivlens.steering.edits import Positions, Where, addition
from ivlens.steering.summary import METRICS, Scores, Setting

# numbers that one pass may hold (0.5 GB in float32): for every row its share of the cache, and three times its logits
_FLOATS_PER_PASS = 2**27

_log = logging.getLogger("ivlens")


class Trials:
    """Prompts to be run under many interventions; what no intervention changes is computed once.

    Nothing is generated: every accepted answer is given to the model, and greedy decoding writes an answer if each of
    its tokens is the likeliest one. A second pass over the whole answer gives the next token, which decides whether the
    word goes on (see `Correct`). Where prompt and answer fill the context, the answer counts as ended. Without a
    tokenizer there is no second pass: `accuracy` is that of the answer's tokens alone, and `exact` is 0.

    Prompts whose caches do not fit in memory together run in portions; each call then computes their caches anew.

    Args:
        batch: Left-padded prompts with their answers.
        positions: `prompt` (the last prompt token) or `every` (the answer's tokens as well), as in `steer`.
        rows_per_pass: Upper bound on rows in one forward pass; memory may lower it.

    Raises:
        ValueError: a prompt that does not fit the model, with its longest answer.
        RuntimeError: inside a `steer` context, whose vector would be added to the wrong tokens here.
    """

    def __init__(
        self,
        model: TransformerBridge,
        batch: PromptBatch,
        *,
        positions: Positions = "prompt",
        rows_per_pass: int = 512,
    ) -> None:
        self.model, self.batch = model, batch
        self.positions: Positions = positions
        self._rows_per_pass = rows_per_pass
        self._borders = Borders(model.tokenizer)
        tokens, mask = check_prompts(model, batch.tokens, batch.attention_mask)
        check_length(model, mask, max(len(answer) for answers in batch.alternatives for answer in answers))
        check_unsteered(model)
        # for `prompts_that_fit`: every answer is run without its last token, and in the second pass with it
        n_answer_tokens = max(sum(2 * len(answer) + 1 for answer in answers) for answers in batch.alternatives)
        size = min(rows_per_pass, prompts_that_fit(model, tokens.shape[1], n_answer_tokens))
        self._slices = list(row_slices(len(batch), size))
        self._held: tuple[int, _Portion] | None = None

    def first(self, n: int) -> "Trials":
        """Trials of the first `n` prompts alone."""
        return Trials(
            self.model, self.batch.rows(range(n)), positions=self.positions, rows_per_pass=self._rows_per_pass
        )

    def unsteered(self) -> Scores:
        """Scores of the prompts without an intervention, in one row."""
        return self.edited(lambda where: nullcontext())

    def edited(self, context: Callable[[Where], AbstractContextManager[None]]) -> Scores:
        """Scores with `context(where)` open around every pass, in one row."""
        return self._all(lambda portion: portion.scores(1, context), "asking the model")

    def added(self, deltas: Float[Tensor, "n d_model"], layer: int, site: str, *, brief: bool = False) -> Scores:
        """Scores with each of `deltas` added at one layer and site; with `brief`, `logprob` is left out (NaN)."""
        return self._all(lambda portion: portion.added(deltas, layer, site, brief), "trying vectors")

    def at(
        self,
        settings: Sequence[Setting],
        thetas: Float[Tensor, "n d_model"],
        *,
        brief: bool = False,
        loose: bool = False,
    ) -> Scores:
        """Scores of each vector at its own setting; settings with the same layer and site share their passes.

        Args:
            brief: Leaves out `logprob`, which is then NaN.
            loose: Leaves out the second pass too: answers whose word goes on count as right, and `exact` stays 0.
        """
        total, done = len({(setting.layer, setting.site) for setting in settings}) * len(self._slices), count(1)
        with bar("trying settings", total, "places") as report:

            def place_done() -> None:
                report(next(done), total)
                give_way(self.model)

            return self._all(lambda portion: portion.at(settings, thetas, brief or loose, loose, place_done))

    def _all(self, run: "Callable[[_Portion], Scores]", what: str = "") -> Scores:
        numbers = range(len(self._slices))
        with model_lock(self.model):
            check_unsteered(self.model)
            each = ticking(numbers, what, "portions") if what else numbers
            return Scores.abreast([run(self._portion(number)) for number in each])

    def _portion(self, number: int) -> "_Portion":
        if self._held is None or self._held[0] != number:
            self._held = None  # first let go of the old portion: two at once would need twice the memory
            rows = self.batch.rows(self._slices[number])
            self._held = number, _Portion(self.model, rows, self.positions, self._rows_per_pass, self._borders)
        return self._held[1]


class _Portion:
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
        floats = self._prefix.floats_per_row + 3 * longest * model.cfg.d_vocab
        self._rows_per_pass = max(1, min(rows_per_pass, _FLOATS_PER_PASS // floats))

    def added(
        self, deltas: Float[Tensor, "n d_model"], layer: int, site: str, brief: bool, loose: bool = False
    ) -> Scores:
        return self.scores(len(deltas), _Addition(deltas, layer, site), brief, loose)

    def at(
        self,
        settings: Sequence[Setting],
        thetas: Float[Tensor, "n d_model"],
        brief: bool,
        loose: bool,
        place_done: Callable[[], object],
    ) -> Scores:
        places: dict[tuple[int, str], list[int]] = defaultdict(list)
        for index, setting in enumerate(settings):
            places[setting.layer, setting.site].append(index)
        parts = []
        for (layer, site), indices in places.items():
            alphas = torch.tensor([settings[index].alpha for index in indices])
            parts.append(self.added(thetas[indices] * alphas[:, None], layer, site, brief, loose))
            place_done()
        order = torch.tensor([index for indices in places.values() for index in indices])  # undone by its `argsort`
        return Scores.stacked(parts).chosen(order.argsort().tolist())

    def scores(self, n: int, edit: "_Edit", brief: bool = False, loose: bool = False) -> Scores:
        """The scores of `n` interventions on all prompts of the portion."""
        size = (n, len(self.batch))
        scores = Scores(*(torch.zeros(size) for _ in METRICS))
        begun = torch.ones(size, dtype=torch.bool)
        if brief and len(self._groups) > 1:
            # one short pass for all; only pairs whose first token is right can have a right answer, and few have
            begun = self._run(scores, self._openings, torch.arange(begun.numel()), edit).reshape(size) >= 0
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

    def _run(
        self, scores: Scores, group: AnswerRows, flat: Int[Tensor, " rows"], edit: "_Edit"
    ) -> Int[Tensor, " rows"]:
        """Enter the probabilities of these (intervention, row) pairs; return the answer that each writes, or -1."""
        written = [torch.zeros(0, dtype=torch.long)]
        for part in flat.split(self._rows_per_pass) if len(flat) else ():
            chosen, rows = part // len(group.prompts), part % len(group.prompts)
            written.append(enter(scores, group, chosen, rows, self._logits(group, chosen, rows, edit)))
        return torch.cat(written)

    def _judged(
        self,
        group: AnswerRows,
        chosen: Int[Tensor, " rows"],
        rows: Int[Tensor, " rows"],
        written: Int[Tensor, " rows"],
        edit: "_Edit",
    ) -> Correct:
        """For each of these written answers, whether its last word is not continued, and whether the text ends."""
        accuracy = torch.ones(len(rows), dtype=torch.bool)
        exact = torch.zeros_like(accuracy)
        after: list[int | None] = [None] * len(rows)
        whole = group.number[rows, written]
        asked = (whole >= 0).nonzero()[:, 0]
        for part in asked.split(self._rows_per_pass) if len(asked) else ():
            logits = self._logits(group.whole, chosen[part], whole[part], edit, last_only=True)[:, -1]
            accuracy[part] = logits.amax(-1).isfinite().cpu()  # a pass that overflows has no next token
            for row, token in zip(part.tolist(), logits.argmax(-1).tolist(), strict=True):
                after[row] = token
        for row, answer in enumerate(map(tuple, group.targets[rows, written].tolist())):
            if accuracy[row]:
                accuracy[row] = not self._borders.goes_on(answer, after[row])
                exact[row] = self._borders.ends(answer, after[row])
        return Correct(accuracy, exact)

    def _logits(
        self,
        group: Rows,
        chosen: Int[Tensor, " rows"],
        rows: Int[Tensor, " rows"],
        edit: "_Edit",
        *,
        last_only: bool = False,
    ) -> Float[Tensor, "rows kept d_vocab"]:
        """Logits at the last prompt token and the tokens given after it, each row under its own intervention."""
        where, prefix = self._where(group, rows), self._prefix_of(group)
        given = group.prompts[rows], group.given[rows]
        if not isinstance(edit, _Addition):
            with edit(where):
                return prefix.logits(*given, last_only=last_only)
        change, streams = addition(edit.deltas[chosen], where), self._streams(group)
        # nothing below the edit changes, so a pass starts there if it can, with the unedited stream
        if streams is None or (edit.site, edit.layer) == ("attn_out", 0):
            with added_to_stream(self.model, edit.layer, edit.site, change):
                return prefix.logits(*given, last_only=last_only)
        if edit.site == "resid_post":  # the output of the block itself: edited here, without a hook
            return prefix.logits(*given, change(streams[edit.layer, rows]), edit.layer + 1, last_only=last_only)
        with added_to_stream(self.model, edit.layer, edit.site, change):
            return prefix.logits(*given, streams[edit.layer - 1, rows], edit.layer, last_only=last_only)

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


@dataclass(frozen=True, eq=False)
class _Addition:
    """Vectors, already multiplied by their strengths, that are added at one layer and site."""

    deltas: Float[Tensor, "n d_model"]
    layer: int
    site: str


_Edit = _Addition | Callable[[Where], AbstractContextManager[None]]
