"""Many interventions on the same prompts: rows of prompt and vector side by side in one pass, on a shared prefix."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ivlens.forward.hooks import added, check_unsteered, model_lock
from ivlens.forward.inputs import check_length, check_prompts, row_slices
from ivlens.forward.prefix import SharedPrefix, prompts_that_fit
from ivlens.models.boot import TransformerBridge
from ivlens.prompts.batch import PromptBatch
from ivlens.steering.edits import Positions, Where, addition
from ivlens.steering.summary import Scores, Setting

# a share of the cache and three copies of the logits for every row of a pass must fit in this many floats (0.5 GB)
_FLOATS_PER_PASS = 2**27


class Trials:
    """Prompts with everything that does not depend on the intervention computed once.

    Teacher forcing with an argmax at every answer token is greedy decoding as far as right answers go; every accepted
    answer is tried. Where the caches of all prompts do not fit in memory, the prompts are run in portions, one after
    the other, and each call computes anew what a portion shares.

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
        tokens, mask = check_prompts(model, batch.tokens, batch.attention_mask)
        check_length(model, mask, max(len(answer) for answers in batch.alternatives for answer in answers))
        check_unsteered(model)
        n_answer_tokens = max(sum(map(len, answers)) for answers in batch.alternatives)
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
        return self._all(lambda portion: portion.scores(1, context))

    def added(self, deltas: Float[Tensor, "n d_model"], layer: int, site: str, *, brief: bool = False) -> Scores:
        """Scores with each of `deltas` added at one place; `brief`: without `logprob`, which is then NaN."""
        return self._all(lambda portion: portion.added(deltas, layer, site, brief=brief))

    def at(self, settings: Sequence[Setting], thetas: Float[Tensor, "n d_model"], *, brief: bool = False) -> Scores:
        """Scores of each vector at its own setting; settings of one place share their passes."""
        return self._all(lambda portion: portion.at(settings, thetas, brief=brief))

    def _all(self, run: "Callable[[_Portion], Scores]") -> Scores:
        with model_lock(self.model):
            check_unsteered(self.model)
            return Scores.abreast([run(self._portion(number)) for number in range(len(self._slices))])

    def _portion(self, number: int) -> "_Portion":
        if self._held is None or self._held[0] != number:
            self._held = None  # two at once would be twice the memory
            rows = self.batch.rows(self._slices[number])
            self._held = number, _Portion(self.model, rows, self.positions, self._rows_per_pass)
        return self._held[1]


class _Portion:
    """As many prompts as fit in memory side by side."""

    def __init__(self, model: TransformerBridge, batch: PromptBatch, positions: Positions, rows_per_pass: int) -> None:
        self.model = model
        self.positions: Positions = positions
        tokens, mask = check_prompts(model, batch.tokens, batch.attention_mask)
        self.batch, self._device = batch, tokens.device
        self._groups = _answer_rows(batch.alternatives)
        (self._openings,) = _answer_rows([[answer[:1] for answer in answers] for answers in batch.alternatives])
        self._streams_of: dict[int, Tensor | None] = {}
        longest = max(group.targets.shape[2] for group in self._groups)
        self._prefix = SharedPrefix(model, tokens, mask)
        floats = self._prefix.floats_per_row + 3 * longest * model.cfg.d_vocab
        self._rows_per_pass = max(1, min(rows_per_pass, _FLOATS_PER_PASS // floats))

    def added(self, deltas: Float[Tensor, "n d_model"], layer: int, site: str, *, brief: bool) -> Scores:
        return self.scores(len(deltas), _Addition(deltas, layer, site), brief)

    def at(self, settings: Sequence[Setting], thetas: Float[Tensor, "n d_model"], *, brief: bool) -> Scores:
        places: dict[tuple[int, str], list[int]] = defaultdict(list)
        for index, setting in enumerate(settings):
            places[setting.layer, setting.site].append(index)
        parts = []
        for (layer, site), indices in places.items():
            alphas = torch.tensor([settings[index].alpha for index in indices])
            parts.append(self.added(thetas[indices] * alphas[:, None], layer, site, brief=brief))
        order = torch.tensor([index for indices in places.values() for index in indices])
        return Scores.stacked(parts).chosen(order.argsort().tolist())

    def scores(self, n: int, edit: "_Edit", brief: bool = False) -> Scores:
        size = (n, len(self.batch))
        scores = Scores(torch.zeros(size), torch.zeros(size), torch.zeros(size))
        begun = torch.ones(size, dtype=torch.bool)
        if brief and len(self._groups) > 1:
            # few get a first token right, and no others need be looked at further
            begun = self._run(scores, self._openings, torch.arange(begun.numel()), edit).reshape(size)
        for group in self._groups:
            n_rows = len(group.prompts)
            flat = torch.arange(n * n_rows)
            flat = flat[begun[flat // n_rows, group.prompts[flat % n_rows]]]
            right = flat[self._run(scores, group, flat, edit)]
            scores.accuracy[right // n_rows, group.prompts[right % n_rows]] = 1.0
        return replace(scores, logprob=torch.full(size, torch.nan)) if brief else scores

    def _run(
        self, scores: Scores, group: "_AnswerRows", flat: Int[Tensor, " rows"], edit: "_Edit"
    ) -> Bool[Tensor, " rows"]:
        """Enter probabilities of these (intervention, row) pairs into `scores`; which of them are answered right."""
        right = [torch.zeros(0, dtype=torch.bool)]
        for part in flat.split(self._rows_per_pass) if len(flat) else ():
            chosen, rows = part // len(group.prompts), part % len(group.prompts)
            if isinstance(edit, _Addition):
                logits = self._added_pass(group, chosen, rows, edit)
            else:
                with edit(self._where(group, rows)):
                    logits = self._prefix.logits(group.prompts[rows], group.given[rows])
            right.append(_enter(scores, group, chosen, rows, logits))
        return torch.cat(right)

    def _added_pass(
        self, group: "_AnswerRows", chosen: Int[Tensor, " rows"], rows: Int[Tensor, " rows"], edit: "_Addition"
    ) -> Float[Tensor, "rows answer_len d_vocab"]:
        change = addition(edit.deltas[chosen], self._where(group, rows))
        given = group.prompts[rows], group.given[rows]
        streams = self._streams(group)
        if streams is None or (edit.site, edit.layer) == ("attn_out", 0):
            with added(self.model, edit.layer, edit.site, change):
                return self._prefix.logits(*given)
        if edit.site == "resid_post":
            return self._prefix.logits(*given, change(streams[edit.layer, rows]), edit.layer + 1)
        with added(self.model, edit.layer, edit.site, change):
            return self._prefix.logits(*given, streams[edit.layer - 1, rows], edit.layer)

    def _streams(self, group: "_AnswerRows") -> Tensor | None:
        if id(group) not in self._streams_of:
            self._streams_of[id(group)] = self._prefix.streams(group.prompts, group.given, self._rows_per_pass)
        return self._streams_of[id(group)]

    def _where(self, group: "_AnswerRows", rows: Int[Tensor, " rows"]) -> Where:
        where = torch.ones(len(rows), group.targets.shape[2], dtype=torch.bool, device=self._device)
        if self.positions == "prompt":
            where[:, 1:] = False
        return lambda: where


@dataclass(frozen=True, eq=False)
class _Addition:
    """Vectors, already scaled, added at one place."""

    deltas: Float[Tensor, "n d_model"]
    layer: int
    site: str


_Edit = _Addition | Callable[[Where], AbstractContextManager[None]]


@dataclass(frozen=True, eq=False)
class _AnswerRows:
    """The answers of one length: rows of a prompt and the tokens given after it, and what would be right after each.

    `targets` is padded with -1; where `first` holds, the task's first answer stands first among them.
    """

    prompts: Int[Tensor, " rows"]
    given: Int[Tensor, "rows given"]
    targets: Int[Tensor, "rows answers answer_len"]
    first: Bool[Tensor, " rows"]


def _answer_rows(alternatives: Sequence[Sequence[tuple[int, ...]]]) -> list[_AnswerRows]:
    # answers that differ in their last token only share a row; most are one token long and share it all
    by_length: dict[int, dict[tuple[int, tuple[int, ...]], list[tuple[int, ...]]]] = defaultdict(dict)
    for prompt, answers in enumerate(alternatives):
        for answer in answers:
            by_length[len(answer)].setdefault((prompt, answer[:-1]), []).append(answer)
    groups = []
    for length, rows in sorted(by_length.items()):
        most = max(map(len, rows.values()))
        targets = torch.full((len(rows), most, length), -1)
        for row, answers in enumerate(rows.values()):
            targets[row, : len(answers)] = torch.tensor(answers)
        first = [alternatives[prompt][0] in answers for (prompt, _), answers in rows.items()]
        given = torch.tensor([prefix for _, prefix in rows], dtype=torch.long).reshape(len(rows), length - 1)
        prompts = torch.tensor([prompt for prompt, _ in rows])
        groups.append(_AnswerRows(prompts, given, targets, torch.tensor(first)))
    return groups


def _enter(
    scores: Scores,
    group: _AnswerRows,
    chosen: Int[Tensor, " rows"],
    rows: Int[Tensor, " rows"],
    logits: Float[Tensor, "rows answer_len d_vocab"],
) -> Bool[Tensor, " rows"]:
    """Put the probabilities of these rows into `scores`, in place; which rows are answered right."""
    targets, prompts, first = group.targets[rows], group.prompts[rows], group.first[rows]
    logits = logits.float()
    top = logits.argmax(-1, keepdim=True)
    wanted, peak = logits.gather(2, targets[:, :1].transpose(1, 2).to(logits.device)), logits.gather(2, top)
    # of logits with a NaN the argmax is that NaN, which is no answer
    chosen_tokens = top.masked_fill(~peak.isfinite(), -2)[..., 0].cpu()
    right = (chosen_tokens[:, None] == targets).all(2).any(1)
    # in place: logits are by far the largest tensor here, and nobody else has them
    total = logits.sub_(peak).exp_().sum(2, keepdim=True).log_().add_(peak)
    log_probs = (wanted - total)[..., 0].cpu()
    scores.prob[chosen[first], prompts[first]] = log_probs[first, 0].exp()
    scores.logprob[chosen[first], prompts[first]] = log_probs[first].sum(1)
    return right
