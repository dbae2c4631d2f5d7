"""Many interventions on the same prompts: rows of prompt and vector side by side in one pass, on a shared prefix."""

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

# a share of the cache and three copies of the logits for every row of a pass must fit in this many floats (0.5 GB)
_FLOATS_PER_PASS = 2**27

_log = logging.getLogger("ivlens")


class Trials:
    """Prompts with everything that does not depend on the intervention computed once.

    Teacher forcing with an argmax at every answer token is greedy decoding as far as right answers go; every accepted
    answer is tried. What is written after an answer is asked in a second pass, and only where all of the answer was
    written (see `Correct`); where prompt and answer fill the model's context, the answer counts as ended. Without a
    tokenizer there is no second pass: `accuracy` is that of the answer's tokens alone, and `exact` is 0.

    Where the caches of all prompts do not fit in memory, the prompts are run in portions, one after the other, and each
    call computes anew what a portion shares.

    Args:
        batch: left-padded prompts with their answers.
        positions: `prompt` (the last prompt token) or `every` (the answer's tokens as well), as in `steer`.
        rows_per_pass: upper bound on rows in one forward pass; memory may lower it.

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
        # every answer is run without its last token and with it
        n_answer_tokens = max(sum(2 * len(answer) + 1 for answer in answers) for answers in batch.alternatives)
        size = min(rows_per_pass, prompts_that_fit(model, tokens.shape[1], n_answer_tokens))
        self._slices = list(row_slices(len(batch), size))
        self._held: tuple[int, _Portion] | None = None

    def first(self, n: int) -> "Trials":
        """The first prompts only."""
        return Trials(
            self.model, self.batch.rows(range(n)), positions=self.positions, rows_per_pass=self._rows_per_pass
        )

    def unsteered(self) -> Scores:
        """Scores of the prompts as they are: one row."""
        return self.edited(lambda where: nullcontext())

    def edited(self, context: Callable[[Where], AbstractContextManager[None]]) -> Scores:
        """Scores with `context(where)` open around every pass: one row."""
        return self._all(lambda portion: portion.scores(1, context), "asking the model")

    def added(self, deltas: Float[Tensor, "n d_model"], layer: int, site: str, *, brief: bool = False) -> Scores:
        """Scores with each of `deltas` added at one place; `brief`: without `logprob`, which is then NaN."""
        return self._all(lambda portion: portion.added(deltas, layer, site, brief), "trying vectors")

    def at(
        self,
        settings: Sequence[Setting],
        thetas: Float[Tensor, "n d_model"],
        *,
        brief: bool = False,
        loose: bool = False,
    ) -> Scores:
        """Scores of each vector at its own setting; settings of one place share their passes.

        Args:
            brief: without `logprob`, which is then NaN.
            loose: brief, and without the second pass: answers that go on count as right, and none is seen to end.
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
            self._held = None  # two at once would be twice the memory
            rows = self.batch.rows(self._slices[number])
            self._held = number, _Portion(self.model, rows, self.positions, self._rows_per_pass, self._borders)
        return self._held[1]


class _Portion:
    """As many prompts as fit in memory side by side."""

    def __init__(
        self, model: TransformerBridge, batch: PromptBatch, positions: Positions, rows_per_pass: int, borders: Borders
    ) -> None:
        self.model, self.batch, self._borders = model, batch, borders
        self.positions: Positions = positions
        self._tokens, self._mask = check_prompts(model, batch.tokens, batch.attention_mask)
        self._places = model.cfg.n_ctx - self._mask.sum(1).cpu()
        openings = [[answer[:1] for answer in answers] for answers in batch.alternatives]
        self._groups = answer_rows(batch.alternatives, self._places)
        (self._openings,) = answer_rows(openings, self._places)
        self._streams_of: dict[int, Tensor | None] = {}
        self._narrow: dict[int, SharedPrefix] = {}
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
        order = torch.tensor([index for indices in places.values() for index in indices])
        return Scores.stacked(parts).chosen(order.argsort().tolist())

    def scores(self, n: int, edit: "_Edit", brief: bool = False, loose: bool = False) -> Scores:
        size = (n, len(self.batch))
        scores = Scores(*(torch.zeros(size) for _ in METRICS))
        begun = torch.ones(size, dtype=torch.bool)
        if brief and len(self._groups) > 1:
            # few get a first token right, and no others need be looked at further
            begun = self._run(scores, self._openings, torch.arange(begun.numel()), edit).reshape(size) >= 0
        for group in self._groups:
            n_rows = len(group.prompts)
            flat = torch.arange(n * n_rows)
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
        """Enter probabilities of these (intervention, row) pairs into `scores`; the answer that each writes, or -1."""
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
        """Which of these answers, all of which were written, do not go on inside their last word, and which end."""
        accuracy = torch.ones(len(rows), dtype=torch.bool)
        exact = torch.zeros_like(accuracy)
        after: list[int | None] = [None] * len(rows)
        whole = group.number[rows, written]
        asked = (whole >= 0).nonzero()[:, 0]
        for part in asked.split(self._rows_per_pass) if len(asked) else ():
            logits = self._logits(group.whole, chosen[part], whole[part], edit, last_only=True)[:, -1]
            accuracy[part] = logits.amax(-1).isfinite().cpu()  # an overflow is no next token
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
        """Logits at the last prompt token and at the tokens given after it, each row under its own intervention."""
        where, prefix = self._where(group, rows), self._prefix_of(group)
        given = group.prompts[rows], group.given[rows]
        if not isinstance(edit, _Addition):
            with edit(where):
                return prefix.logits(*given, last_only=last_only)
        change, streams = addition(edit.deltas[chosen], where), self._streams(group)
        if streams is None or (edit.site, edit.layer) == ("attn_out", 0):
            with added_to_stream(self.model, edit.layer, edit.site, change):
                return prefix.logits(*given, last_only=last_only)
        if edit.site == "resid_post":
            return prefix.logits(*given, change(streams[edit.layer, rows]), edit.layer + 1, last_only=last_only)
        with added_to_stream(self.model, edit.layer, edit.site, change):
            return prefix.logits(*given, streams[edit.layer - 1, rows], edit.layer, last_only=last_only)

    def _streams(self, group: Rows) -> Tensor | None:
        if id(group) not in self._streams_of:
            prefix = self._prefix_of(group)
            self._streams_of[id(group)] = prefix.streams(group.prompts, group.given, self._rows_per_pass)
        return self._streams_of[id(group)]

    def _prefix_of(self, group: Rows) -> SharedPrefix:
        """The prefix of all prompts; where the longest would make rows wider than the context, that of the others."""
        n_given = group.given.shape[1]
        if self._tokens.shape[1] + n_given <= self.model.cfg.n_ctx:
            return self._prefix
        if n_given not in self._narrow:
            fits = self._places > n_given
            # another prompt stands in the places of the long ones, so that each keeps its number
            kept = torch.where(fits, torch.arange(len(fits)), fits.int().argmax()).to(self._tokens.device)
            narrow = check_prompts(self.model, self._tokens[kept], self._mask[kept])
            self._narrow[n_given] = SharedPrefix(self.model, *narrow, n_given)
        return self._narrow[n_given]

    def _where(self, group: Rows, rows: Int[Tensor, " rows"]) -> Where:
        n_before = self._prefix_of(group).n_before
        where = torch.zeros(
            len(rows), n_before + group.given.shape[1] + 1, dtype=torch.bool, device=self._tokens.device
        )
        where[:, n_before : n_before + 1 if self.positions == "prompt" else None] = True
        return lambda: where


@dataclass(frozen=True, eq=False)
class _Addition:
    """Vectors, already scaled, added at one place."""

    deltas: Float[Tensor, "n d_model"]
    layer: int
    site: str


_Edit = _Addition | Callable[[Where], AbstractContextManager[None]]
