"""The training loop: answer-only loss, guidance, the method's penalty; resumes after a kill to the same weights."""

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from ivlens.tuning.terms.term import Term, unique_names
from ivlens.tuning.training.asking import Answer, InTraining, Shift, Student
from ivlens.tuning.training.data import TrainingSet, last_column
from ivlens.tuning.training.losses import Totals, answer_loss
from ivlens.tuning.training.options import TuneOptions
from ivlens.tuning.training.processes import current, own_draws
from ivlens.tuning.training.sites import Sites
from ivlens.tuning.training.state import TrainingState, digest_of, digest_of_tensors

logger = logging.getLogger("ivlens")

Row = dict[str, float | int]


@dataclass
class Trainer:
    """Trains what is trainable in `model` on `data`.

    Attributes:
        n_own: how many of the first examples are the task's own; guidance acts on these alone, since its vector is the
            task's. None: all.
        terms: what is added to the loss or to the stream, each with the vector and place of its guidance. The frozen
            model is asked for them when training begins.
        folder: where the state is kept; None: nowhere.
        on_step: called with the log's row after every step.
        judge: what else goes into the row of every `judge_every`-th step and of the last one.
        stop: whether a judged row ends the training.
        about: what else makes the training what it is, for the fingerprint of its state.
    """

    model: nn.Module
    sites: Sites
    data: TrainingSet
    options: TuneOptions
    n_own: int | None = None
    terms: Sequence[tuple[Term, Shift | None]] = ()
    seed: int = 0
    folder: Path | None = None
    on_step: Callable[[Row], None] = lambda row: None
    judge: Callable[[], Mapping[str, float]] | None = None
    stop: Callable[[Row], bool] = lambda row: False
    about: Mapping[str, Any] = field(default_factory=dict)

    def run(self) -> list[Row]:
        """The whole training, or what is left of it; one row for every step.

        Raises:
            ValueError: the folder holds the state of another training, or patience without a judge that gives `new`.
            FloatingPointError: the loss is not finite; the last state on disk is kept.
        """
        if self.options.patience is not None and self.judge is None:
            raise self._no_score("nothing judges the training")
        fingerprint, processes, device = self._fingerprint(), current(), self.data.tokens.device
        self._check_shares(processes.size)
        processes.check_same(digest_of(fingerprint), "models, data or options", device)
        known = self.ask_frozen()
        trained = {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}
        optimizer = torch.optim.AdamW(trained.values(), lr=self.options.lr, weight_decay=self.options.weight_decay)
        state = TrainingState(self.folder, fingerprint, trained, optimizer)
        rows, best = state.restore()
        processes.check_same(digest_of(rows), "states to go on from: put the folder on a disk all share", device)
        self._prepare()
        is_over = processes.agreed(self._is_over(rows), device)
        try:
            with own_draws(device), torch.enable_grad():
                while not is_over:
                    rows.append(self._step(len(rows), optimizer, list(trained.values()), known))
                    self._judge(rows[-1])
                    if self._best(rows) == len(rows):
                        best = {name: weight.detach().to("cpu", copy=True) for name, weight in trained.items()}
                    if processes.is_first:
                        self.on_step(rows[-1])
                    is_over = processes.agreed(self._is_over(rows), device)
                    if processes.is_first and (is_over or len(rows) % self.options.save_every == 0):
                        state.save(rows, best)
        finally:
            self.model.eval()
        with torch.no_grad():
            for name, weight in best.items():
                trained[name].copy_(weight)
        kept = self._best(rows)
        return [{**row, "kept": 1} if row["step"] == kept else row for row in rows]

    def _check_shares(self, n_processes: int) -> None:
        n_passes = self.options.accumulate * n_processes
        if self.options.batch_size % n_passes:
            raise ValueError(
                f"batch_size is {self.options.batch_size}, expected a multiple of {n_passes}: {n_processes} processes, "
                f"accumulate {self.options.accumulate}; change one of them."
            )

    def ask_frozen(self) -> list[Any]:
        """What every term has to know of the model as it is now."""
        known = [term.ask(model) for term, model in self.active()]
        n_bytes = sum(getattr(one, "n_bytes", 0) for one in known)
        if n_bytes:
            n_own = len(self._own_examples())
            each = f"{n_bytes / n_own / 1e3:.1f} kB each"
            logger.info("the frozen model's targets take %.1f MB for %d examples (%s)", n_bytes / 1e6, n_own, each)
        return known

    def active(self) -> list[tuple[Term, InTraining]]:
        """Every term, and the model as that term asks it."""
        own, seen, found = self._own_examples(), Counter(), []
        for term, shift in self.terms:
            # terms of one name that draw prompts of their own draw others
            seed = self.seed + seen[term.name]
            found.append((term, InTraining(self.model, self.sites, self.options, own, shift, seed)))
            seen[term.name] += 1
        return found

    def _own_examples(self) -> TrainingSet:
        return self.data.rows(slice(self.n_own))

    def _judge(self, row: Row) -> None:
        is_last = row["step"] == self.options.steps
        if self.judge is not None and (is_last or row["step"] % self.options.judge_every == 0):
            self.model.eval()
            row.update(current().as_the_first(self.judge(), self.data.tokens.device), judged=1)
            self.model.train()
            if self.options.patience is not None and "new" not in row:
                raise self._no_score("the judge gives no score `new`")

    def _is_over(self, rows: Sequence[Row]) -> bool:
        if rows and len(rows) == self.options.steps:
            return True
        if not rows or "judged" not in rows[-1]:
            return False
        since = sum("judged" in row and row.get("merit", 0.0) >= 0 for row in rows[self._best(rows) :])
        return bool(self.stop(rows[-1])) or (self.options.patience is not None and since >= self.options.patience)

    def _best(self, rows: Sequence[Row]) -> int:
        """The step whose weights are kept, as far as it is known; 0 where it is the last."""
        if self.options.patience is None:
            return 0
        judged = [row for row in rows if "judged" in row]
        return int(max(judged, key=lambda row: row.get("merit", row["new"]))["step"]) if judged else 0

    def _no_score(self, why: str) -> ValueError:
        return ValueError(
            f"patience is {self.options.patience}, but {why}, expected judge= with a score `new`; pass one, or leave "
            "patience out."
        )

    def _prepare(self) -> None:
        self.model.train()
        if self.options.gradient_checkpointing:
            model: Any = self.model
            model.gradient_checkpointing_enable({"use_reentrant": False})

    def _step(self, step: int, optimizer: torch.optim.Optimizer, trained: list[Tensor], known: Sequence[Any]) -> Row:
        started = time.perf_counter()
        # every draw depends on the step alone, so that a resumed training draws the same
        processes, device = current(), self.data.tokens.device
        torch.manual_seed(_mixed(self.seed, step) + processes.rank)
        for group in optimizer.param_groups:
            group["lr"] = self.options.rate(step)
        optimizer.zero_grad(set_to_none=True)
        sums: Row = {}
        batch = self._batch(step)
        totals = self._totals(batch)
        for index in processes.share(batch.chunk(self.options.accumulate * processes.size)):
            for name, value in self._backward(index, step, known, totals).items():
                sums[name] = sums.get(name, 0.0) + value
        for name, (term, model), asked in zip(self.names(), self.active(), known, strict=True):
            for share in term.passes(step, asked, model):
                if share.requires_grad:
                    share.backward()
                    sums[name] = sums.get(name, 0.0) + float(share.detach())
        sums = dict(processes.summed(sums, ["lm", *self.names()], device))
        loss = sum(sums.values())
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss} in step {step}; use a smaller lr, or precision='float32'.")
        processes.sum_gradients(trained)
        norm = nn.utils.clip_grad_norm_(trained, self.options.max_grad_norm)
        optimizer.step()
        about = {"lr": self.options.rate(step), "grad_norm": float(norm), "seconds": time.perf_counter() - started}
        return {"step": step + 1, "loss": loss, **sums, **about}

    def names(self) -> list[str]:
        """The column of every term in the log."""
        return unique_names([term for term, _ in self.terms])

    def _totals(self, batch: Int[Tensor, " batch_size"]) -> tuple[Totals, Totals]:
        """Of a step: of all its examples, and of those that guidance acts on."""
        return Totals.of(self.data.answers[batch]), Totals.of(self.data.answers[batch[self._own(batch)]])

    def _own(self, index: Int[Tensor, " rows"]) -> Bool[Tensor, " rows"]:
        return index < (len(self.data) if self.n_own is None else self.n_own)

    def _backward(
        self, index: Int[Tensor, " rows"], step: int, known: Sequence[Any], totals: tuple[Totals, Totals]
    ) -> Row:
        """Add the gradients of one pass; its share of every term, already weighted."""
        rows, own = self.data.rows(index), self._own(index)
        with ExitStack() as stack:
            # open during backward as well: checkpointed blocks are run again there
            self._shift(stack, last_column(self.data), step / self.options.steps, own)
            layers = sorted({layer for term, _ in self.terms for layer in term.layers_read})
            answer = self._model().answer(rows, stack, layers=layers)
            losses = {"lm": answer_loss(answer.logits, rows.answers, totals[0])}
            if bool(own.any()):
                losses |= self._guided(answer, rows.answers, index, known, totals[1])
            torch.stack(list(losses.values())).sum().backward()
        return {name: float(loss.detach()) for name, loss in losses.items()}

    def _guided(
        self,
        answer: Answer,
        answers: Int[Tensor, "rows answer_len"],
        index: Int[Tensor, " rows"],
        known: Sequence[Any],
        totals: Totals,
    ) -> dict[str, Tensor]:
        """What terms add on the task's own examples of one pass; guidance acts on no others."""
        own = self._own(index)
        if not bool(own.all()):
            answers, index = answers[own], index[own]
            answer = Answer(answer.logits[own], {layer: z[own] for layer, z in answer.z.items()})
        student = Student(answer, answers, index, totals)
        losses = {}
        for name, (term, model), asked in zip(self.names(), self.active(), known, strict=True):
            loss = term.loss(student, asked, model)
            if loss is not None:
                losses[name] = loss
        return losses

    def _shift(self, stack: ExitStack, column: int, progress: float, own: Bool[Tensor, " rows"]) -> None:
        """Add to the stream what terms add, in the rows of the task's own examples."""
        for term, shared in self.terms:
            shift = None if shared is None else term.shift(shared, progress)
            if shift is None:
                continue
            delta = shift.delta
            if not bool(own.all()):
                delta = own[:, None].to(delta) * delta.to(own.device)
            stack.enter_context(self.sites.shifted(self.model, shift.layer, shift.site, column, delta))

    def _model(self) -> InTraining:
        return InTraining(self.model, self.sites, self.options, self.data)

    def _batch(self, step: int) -> Int[Tensor, " batch_size"]:
        """Examples of a step: all of them in a new order in every epoch."""
        first = step * self.options.batch_size
        numbers = [n for _, n in zip(range(self.options.batch_size), self._order(first), strict=False)]
        return torch.tensor(numbers, device=self.data.tokens.device)

    def _order(self, first: int) -> Iterator[int]:
        epoch, skipped = divmod(first, len(self.data))
        while True:
            generator = torch.Generator().manual_seed(_mixed(self.seed, -1 - epoch))
            yield from torch.randperm(len(self.data), generator=generator)[skipped:].tolist()
            epoch, skipped = epoch + 1, 0

    def _fingerprint(self) -> dict[str, Any]:
        """What must be the same for a training to go on from a saved state."""
        content = [self.data.tokens, self.data.attention_mask, self.data.answers]
        return {
            "options": self.options.kept(),
            "terms": [_described(term, shift) for term, shift in self.terms],
            "seed": self.seed,
            "data": digest_of_tensors(content),
            "start": digest_of_tensors(self.model.state_dict().values()),
            **({} if current().size == 1 else {"processes": current().size}),
            **self.about,
        }


def _described(term: Term, shared: Shift | None) -> list[Any]:
    """What a term is and holds, with the vector only where it uses one."""
    uses = shared if term.needs_vector else None
    place = None if uses is None else [uses.layer, uses.site]
    return [
        term.name,
        term.describe(),
        place,
        digest_of_tensors([*term.tensors(), None if uses is None else uses.delta]),
    ]


def _mixed(seed: int, number: int) -> int:
    """One seed for each pair."""
    return (seed * 1_000_003 + number * 7_919) % 2**63
