"""The training loop: the loss of the answers, guidance and the method's penalty, step by step.

A training that was killed and is started again ends with the same weights as one that was never interrupted.
"""

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from ivlens.tuning.terms.term import Term, fingerprint_of, unique_names
from ivlens.tuning.training.asking import Answer, InTraining, Shift, Student
from ivlens.tuning.training.data import TrainingSet, last_column
from ivlens.tuning.training.losses import Totals, answer_loss
from ivlens.tuning.training.options import TuneOptions
from ivlens.tuning.training.order import batch_of, mixed_seed, read_by
from ivlens.tuning.training.processes import current, own_draws
from ivlens.tuning.training.sites import Sites
from ivlens.tuning.training.state import TrainingState, digest_of, digest_of_tensors

logger = logging.getLogger("ivlens")

Row = dict[str, float | int]  # one step in the log


@dataclass
class Trainer:
    """One training of all weights of `model` that require gradients, on `data`.

    Attributes:
        n_own: How many examples, counted from the first, belong to the task itself; None: all. The others are replayed
            from earlier tasks: guidance leaves them alone, because its vector is that of the new task.
        terms: The terms of guidance, each with the vector and place that the guidance shares. They ask the frozen model
            when training starts.
        folder: Where the state of the training is kept; None: nowhere.
        on_step: Called with the log's row after every step.
        judge: Gives scores of the model every `judge_every` steps and after the last one; they go into the log's row.
        stop: Whether the training ends after this judged row.
        about: Further facts (method, model) that a saved state must share with the training that resumes from it.
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
        """Train to the end, from the state in the folder if there is one, and return the log: one row for each step.

        Raises:
            ValueError: the folder holds the state of another training, or patience without a judge that gives `new`.
            FloatingPointError: the loss is not finite; the last state on disk stays.
        """
        if self.options.patience is not None and self.judge is None:
            raise self._no_score("nothing judges the training")
        # fingerprint and targets are of the model before the task, so they come before `restore` changes the model
        fingerprint, processes, device = self._fingerprint(), current(), self.data.tokens.device
        processes.check_shares(self.options.batch_size, self.options.accumulate)
        processes.check_same(digest_of(fingerprint), "models, data or options", device)
        targets = self.ask_frozen()
        trained = {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}
        optimizer = torch.optim.AdamW(trained.values(), lr=self.options.lr, weight_decay=self.options.weight_decay)
        state = TrainingState(self.folder, fingerprint, trained, optimizer)
        rows, best = state.restore()
        processes.check_same(digest_of(rows), "saved states (put the folder on a disk that all share)", device)
        self._prepare()
        # the first process decides for all: one that stopped alone would leave the others waiting for its gradients
        is_over = processes.agreed(self._is_over(rows), device)
        try:
            with own_draws(device), torch.enable_grad():
                while not is_over:
                    rows.append(self._step(len(rows), optimizer, list(trained.values()), targets))
                    self._judge(rows[-1])
                    if self._best(rows) == len(rows):
                        best = {name: weight.detach().to("cpu", copy=True) for name, weight in trained.items()}
                    if processes.is_first:
                        self.on_step(rows[-1])
                    is_over = processes.agreed(self._is_over(rows), device)
                    # saved after `on_step`: a step whose `on_step` was interrupted is made, and reported, once more
                    if processes.is_first and (is_over or len(rows) % self.options.save_every == 0):
                        state.save(rows, best)
        finally:
            self.model.eval()
        with torch.no_grad():
            for name, weight in best.items():  # empty without patience: the last weights stay
                trained[name].copy_(weight)
        best_step = self._best(rows)
        return [{**row, "kept": 1} if row["step"] == best_step else row for row in rows]

    def ask_frozen(self) -> list[Any]:
        """What every term needs to know of the model as it is now, in the order of the terms."""
        targets = [term.ask(model) for term, model in self.active()]
        n_bytes = sum(getattr(one, "n_bytes", 0) for one in targets)
        if n_bytes:
            n = len(self._read)
            each = f"{n_bytes / n / 1e3:.1f} kB each"
            logger.info("the frozen model's targets take %.1f MB for %d examples (%s)", n_bytes / 1e6, n, each)
        return targets

    def active(self) -> list[tuple[Term, InTraining]]:
        """Every term with the model in training, and with the vector and the seed for that term."""
        own, seen, found = self._own_examples, Counter(), []
        for term, shift in self.terms:
            # two terms of one name (two rehearsals) must not draw the same prompts
            seed = self.seed + seen[term.name]
            found.append((term, InTraining(self.model, self.sites, self.options, own, shift, seed)))
            seen[term.name] += 1
        return found

    @cached_property
    def _read(self) -> Int[Tensor, " read"]:
        """The numbers of the task's own examples that the steps read; one where they read replayed examples alone."""
        read = read_by(self.options.steps, self.options.batch_size, len(self.data), self.seed)
        own = read[self._own(read)]
        return (own if len(own) else read.new_zeros(1)).to(self.data.tokens.device)

    @cached_property
    def _own_examples(self) -> TrainingSet:
        """The examples of `_read`: of the task's own, the frozen model is asked about no others."""
        n_own = len(self.data) if self.n_own is None else self.n_own
        return self.data.rows(slice(n_own) if len(self._read) == n_own else self._read)  # all: without a copy

    def _judge(self, row: Row) -> None:
        """Add the judge's scores to the row, where this step is judged."""
        is_last = row["step"] == self.options.steps
        if self.judge is not None and (is_last or row["step"] % self.options.judge_every == 0):
            self.model.eval()
            # all take the first process's scores: rounding differs between GPUs, and scores decide what is kept
            row.update(current().as_the_first(self.judge(), self.data.tokens.device), judged=1)
            self.model.train()
            if self.options.patience is not None and "new" not in row:
                raise self._no_score("the judge gives no score `new`")

    def _is_over(self, rows: Sequence[Row]) -> bool:
        """Whether the training ends after these rows: all steps are made, `stop` says so, or patience is at its end."""
        if rows and len(rows) == self.options.steps:
            return True
        if not rows or "judged" not in rows[-1]:
            return False
        # a merit below 0 says that the model has not learned enough yet: waiting for that costs no patience
        n_worse = sum("judged" in row and row.get("merit", 0.0) >= 0 for row in rows[self._best(rows) :])
        return bool(self.stop(rows[-1])) or (self.options.patience is not None and n_worse >= self.options.patience)

    def _best(self, rows: Sequence[Row]) -> int:
        """The step, counted from 1, with the best judgement so far; 0 without patience or before any judgement."""
        if self.options.patience is None:
            return 0
        judged = [row for row in rows if "judged" in row]
        return int(max(judged, key=lambda row: row.get("merit", row["new"]))["step"]) if judged else 0

    def _no_score(self, why: str) -> ValueError:
        """The error for patience without a score by which to judge."""
        return ValueError(
            f"patience is {self.options.patience}, but {why}, expected judge= with a score `new`; pass one, or leave "
            "patience out."
        )

    def _prepare(self) -> None:
        """Put the model in training mode, with gradient checkpointing where it is asked for."""
        self.model.train()
        if self.options.gradient_checkpointing:
            model: Any = self.model
            # the reentrant kind gives no gradients where a block's input needs none, as under adapters
            model.gradient_checkpointing_enable({"use_reentrant": False})

    def _step(self, step: int, optimizer: torch.optim.Optimizer, trained: list[Tensor], targets: Sequence[Any]) -> Row:
        """Make one step of the optimiser and return its row of the log."""
        started = time.perf_counter()
        # every draw depends on the step alone, so that a resumed training draws the same; dropout differs by process
        processes, device = current(), self.data.tokens.device
        torch.manual_seed(mixed_seed(self.seed, step) + processes.rank)
        for group in optimizer.param_groups:
            group["lr"] = self.options.rate(step)
        optimizer.zero_grad(set_to_none=True)
        sums: Row = {}
        batch = self._batch(step)
        # means are over the whole step, so gradients of its passes add up to those of one large pass
        totals = self._totals(batch)
        for index in processes.share(batch.chunk(self.options.accumulate * processes.size)):
            for name, value in self._backward(index, step, targets, totals).items():
                sums[name] = sums.get(name, 0.0) + value
        # prompts of a term's own come after the task's, one backward pass at a time: one graph at a time is in memory
        for name, (term, model), asked in zip(self.names(), self.active(), targets, strict=True):
            for share in term.passes(step, asked, model):
                if share.requires_grad:
                    share.backward()
                    sums[name] = sums.get(name, 0.0) + float(share.detach())
        sums = dict(processes.summed(sums, ["lm", *self.names()], device))
        loss = sum(sums.values())
        # before the optimiser moves a weight; the loss is the sum over processes, so all of them raise together
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss} in step {step}; use a smaller lr, or precision='float32'.")
        processes.sum_gradients(trained)  # before clipping: the norm is that of the whole step
        norm = nn.utils.clip_grad_norm_(trained, self.options.max_grad_norm)
        optimizer.step()
        about = {"lr": self.options.rate(step), "grad_norm": float(norm), "seconds": time.perf_counter() - started}
        return {"step": step + 1, "loss": loss, **sums, **about}

    def names(self) -> list[str]:
        """The column of every term in the log."""
        return unique_names([term for term, _ in self.terms])

    def _totals(self, batch: Int[Tensor, " batch_size"]) -> tuple[Totals, Totals]:
        """Counts that means are taken over: of all examples of a step, and of those that guidance acts on."""
        return Totals.of(self.data.answers[batch]), Totals.of(self.data.answers[batch[self._own(batch)]])

    def _own(self, index: Int[Tensor, " rows"]) -> Bool[Tensor, " rows"]:
        """Whether each of these examples is the task's own: a method's replayed examples come after them."""
        return index < (len(self.data) if self.n_own is None else self.n_own)

    def _backward(
        self, index: Int[Tensor, " rows"], step: int, targets: Sequence[Any], totals: tuple[Totals, Totals]
    ) -> Row:
        """Add the gradients of one pass, and return its part of every term of the loss, already weighted."""
        rows, own = self.data.rows(index), self._own(index)
        with ExitStack() as stack:
            # hooks stay during backward as well: gradient checkpointing runs blocks again there
            self._shift(stack, last_column(self.data), step / self.options.steps, own)
            layers = sorted({layer for term, _ in self.terms for layer in term.layers_read})
            streams = sorted({layer for term, _ in self.terms for layer in term.streams_read})
            answer = self._model().answer(rows, stack, layers=layers, streams=streams)
            losses = {"lm": answer_loss(answer.logits, rows.answers, totals[0])}
            if bool(own.any()):
                losses |= self._guided(answer, rows.answers, index, targets, totals[1])
            torch.stack(list(losses.values())).sum().backward()
        return {name: float(loss.detach()) for name, loss in losses.items()}

    def _guided(
        self,
        answer: Answer,
        answers: Int[Tensor, "rows answer_len"],
        index: Int[Tensor, " rows"],
        targets: Sequence[Any],
        totals: Totals,
    ) -> dict[str, Tensor]:
        """The loss of every term on the task's own examples of one pass; guidance leaves other examples alone."""
        own = self._own(index)
        if not bool(own.all()):
            answers, index = answers[own], index[own]
            answer = answer.rows(own)
        student = Student(answer, answers, torch.searchsorted(self._read, index), totals)
        losses = {}
        for name, (term, model), asked in zip(self.names(), self.active(), targets, strict=True):
            loss = term.loss(student, asked, model)
            if loss is not None:
                losses[name] = loss
        return losses

    def _shift(self, stack: ExitStack, column: int, progress: float, own: Bool[Tensor, " rows"]) -> None:
        """Install the hooks that add vectors of terms to the stream, in the rows of the task's own examples."""
        for term, shared in self.terms:
            shift = None if shared is None else term.shift(shared, progress)
            if shift is None:
                continue
            delta = shift.delta
            if not bool(own.all()):  # zeros in the rows of replayed examples
                delta = own[:, None].to(delta) * delta.to(own.device)
            stack.enter_context(self.sites.shifted(self.model, shift.layer, shift.site, column, delta))

    def _model(self) -> InTraining:
        """The model with the data of the whole training, for the pass that all terms share."""
        return InTraining(self.model, self.sites, self.options, self.data)

    def _batch(self, step: int) -> Int[Tensor, " batch_size"]:
        """The numbers of the examples in a step."""
        size = self.options.batch_size
        return batch_of(step, size, len(self.data), self.seed).to(self.data.tokens.device)

    def _fingerprint(self) -> dict[str, Any]:
        """Everything that must be the same for a training to go on from a saved state."""
        content = [self.data.tokens, self.data.attention_mask, self.data.answers]
        return {
            "options": self.options.kept(),
            "terms": [fingerprint_of(term, shift) for term, shift in self.terms],
            "seed": self.seed,
            "data": digest_of_tensors(content),
            "start": digest_of_tensors(self.model.state_dict().values()),
            # dropout draws by process, so another number of processes is another training
            **({} if current().size == 1 else {"processes": current().size}),
            **self.about,
        }
