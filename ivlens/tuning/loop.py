"""The training loop: answer-only loss, guidance, the method's penalty; resumes after a kill to the same weights."""

import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ivlens.tuning.data import TrainingSet, answer_logits, last_column
from ivlens.tuning.guidance import Guidance
from ivlens.tuning.losses import Totals, answer_loss, head_distance, iv_kl
from ivlens.tuning.options import TuneOptions
from ivlens.tuning.processes import current, own_draws
from ivlens.tuning.sites import Sites
from ivlens.tuning.state import TrainingState
from ivlens.tuning.teacher import Teacher, ask_teacher
from ivlens.tuning.terms import strength

logger = logging.getLogger("ivlens")

Row = dict[str, float | int]


@dataclass
class Trainer:
    """Trains what is trainable in `model` on `data`.

    Attributes:
        n_own: how many of the first examples are the task's own; guidance acts on these alone, since its vector is the
            task's. None: all.
        guides: each with its own teacher, asked when training begins.
        terms: further terms of the loss by name, already weighted, for the present weights in a step: their shares, a
            pass at a time. Each share is backpropagated before the next one is asked for.
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
    guides: Sequence[Guidance] = ()
    terms: Mapping[str, Callable[[int], Iterator[Tensor]]] = field(default_factory=dict)
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
        processes.check_same(_digest_of(fingerprint), "models, data or options", device)
        teachers = self.teachers()
        trained = {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}
        optimizer = torch.optim.AdamW(trained.values(), lr=self.options.lr, weight_decay=self.options.weight_decay)
        state = TrainingState(self.folder, fingerprint, trained, optimizer)
        rows, best = state.restore()
        processes.check_same(_digest_of(rows), "states to go on from: put the folder on a disk all share", device)
        self._prepare()
        is_over = processes.agreed(self._is_over(rows), device)
        try:
            with own_draws(device), torch.enable_grad():
                while not is_over:
                    rows.append(self._step(len(rows), optimizer, list(trained.values()), teachers))
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

    def teachers(self) -> list[Teacher]:
        """Ask the model as it is now about the task's own examples, once for each guide."""
        own = self.data.rows(slice(self.n_own))
        with self._autocast():
            teachers = [ask_teacher(self.model, self.sites, own, guide) for guide in self.guides]
        n_bytes = sum(teacher.n_bytes for teacher in teachers)
        if n_bytes:
            each = f"{n_bytes / len(own) / 1e3:.1f} kB each"
            logger.info("the teacher keeps %.1f MB for %d examples (%s)", n_bytes / 1e6, len(own), each)
        return teachers

    def _judge(self, row: Row) -> None:
        is_last = row["step"] == self.options.steps
        if self.judge is not None and (is_last or row["step"] % self.options.judge_every == 0):
            self.model.eval()
            row.update(current().as_the_first(self.judge(), self.data.tokens.device), judged=1)
            self.model.train()
            if self.options.patience is not None and "new" not in row:
                raise self._no_score("the judge gives no score `new`")

    def _is_over(self, rows: Sequence[Row]) -> bool:
        if not rows or len(rows) == self.options.steps:
            return bool(rows)
        if "judged" not in rows[-1]:
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

    def _step(
        self, step: int, optimizer: torch.optim.Optimizer, trained: list[Tensor], teachers: Sequence[Teacher]
    ) -> Row:
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
            for name, value in self._backward(index, step, teachers, totals).items():
                sums[name] = sums.get(name, 0.0) + value
        for name, term in self.terms.items():
            for share in term(step):
                if share.requires_grad:
                    share.backward()
                    sums[name] = sums.get(name, 0.0) + float(share.detach())
        sums = dict(processes.summed(sums, self._names(), device))
        loss = sum(sums.values())
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss} in step {step}; use a smaller lr, or precision='float32'.")
        processes.sum_gradients(trained)
        norm = nn.utils.clip_grad_norm_(trained, self.options.max_grad_norm)
        optimizer.step()
        about = {"lr": self.options.rate(step), "grad_norm": float(norm), "seconds": time.perf_counter() - started}
        return {"step": step + 1, "loss": loss, **sums, **about}

    def _names(self) -> list[str]:
        """Of all terms that a step's loss may have."""
        suffixes = ["", *(f"_{number + 1}" for number in range(1, len(self.guides)))]
        return ["lm", *(f"{part}{suffix}" for part in ("kl", "heads") for suffix in suffixes), *self.terms]

    def _totals(self, batch: Int[Tensor, " batch_size"]) -> tuple[Totals, Totals]:
        """Of a step: of all its examples, and of those that guidance acts on."""
        return Totals.of(self.data.answers[batch]), Totals.of(self.data.answers[batch[self._own(batch)]])

    def _own(self, index: Int[Tensor, " rows"]) -> Bool[Tensor, " rows"]:
        return index < (len(self.data) if self.n_own is None else self.n_own)

    def _backward(
        self, index: Int[Tensor, " rows"], step: int, teachers: Sequence[Teacher], totals: tuple[Totals, Totals]
    ) -> Row:
        """Add the gradients of one pass; its share of every term, already weighted."""
        rows, column, own = self.data.rows(index), last_column(self.data), self._own(index)
        with ExitStack() as stack:
            # open during backward as well: checkpointed blocks are run again there
            self._intervene(stack, column, step / self.options.steps, own)
            layers = sorted({layer for guide in self.guides if guide.heads for layer, _ in guide.heads.heads})
            z = stack.enter_context(self.sites.head_outputs(self.model, layers, column))
            with self._autocast():
                logits = answer_logits(self.model, rows)
            terms = {"lm": answer_loss(logits, rows.answers, totals[0])}
            if bool(own.any()):
                terms |= self._held(logits, z, rows.answers, index, teachers, totals[1])
            torch.stack(list(terms.values())).sum().backward()
        return {name: float(term.detach()) for name, term in terms.items()}

    def _held(
        self,
        logits: Float[Tensor, "rows answer_len d_vocab"],
        z: Mapping[int, Float[Tensor, "rows n_heads d_head"]],
        answers: Int[Tensor, "rows answer_len"],
        index: Int[Tensor, " rows"],
        teachers: Sequence[Teacher],
        totals: Totals,
    ) -> dict[str, Tensor]:
        """Guidance's terms of one pass, on the task's own examples in it."""
        own = self._own(index)
        if not bool(own.all()):
            logits, answers, index = logits[own], answers[own], index[own]
            z = {layer: outputs[own] for layer, outputs in z.items()}
        terms = {}
        for number, (guide, teacher) in enumerate(zip(self.guides, teachers, strict=True)):
            wanted, suffix = teacher.rows(index), "" if number == 0 else f"_{number + 1}"
            if guide.kl is not None and wanted.soft is not None:
                terms[f"kl{suffix}"] = guide.kl.weight * iv_kl(logits, wanted.soft, answers, guide.kl, totals)
            if guide.heads is not None and wanted.z is not None:
                distance = head_distance(self.sites.held(self.model, z, guide.heads), wanted.z, totals)
                terms[f"heads{suffix}"] = guide.heads.weight * distance
        return terms

    def _intervene(self, stack: ExitStack, column: int, progress: float, own: Bool[Tensor, " rows"]) -> None:
        for guide in self.guides:
            if guide.progressive is None:
                continue
            g = guide.progressive.sign * strength(guide.progressive.schedule, progress)
            delta = g * guide.delta
            if not bool(own.all()):
                delta = own[:, None].to(delta) * delta.to(own.device)
            if g:
                stack.enter_context(self.sites.shifted(self.model, guide.layer, guide.site, column, delta))

    def _autocast(self) -> Any:
        return self.options.autocast(self.data.tokens.device)

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
        """What must be the same for a state to be gone on from."""
        content = [self.data.tokens, self.data.attention_mask, self.data.answers]
        return {
            "options": self.options.kept(),
            "guides": [[guide.describe(), _digest(guide.tensors())] for guide in self.guides],
            "seed": self.seed,
            "data": _digest(content),
            "start": _digest(self.model.state_dict().values()),
            **({} if current().size == 1 else {"processes": current().size}),
            **self.about,
        }


def _mixed(seed: int, number: int) -> int:
    """One seed for each pair."""
    return (seed * 1_000_003 + number * 7_919) % 2**63


def _digest_of(content: Any) -> str:
    return sha256(json.dumps(content, default=str, sort_keys=True).encode()).hexdigest()


def _digest(tensors: Iterable[Tensor | None]) -> str:
    """One short text for the content of all of them."""
    digest = sha256()
    for tensor in tensors:
        if tensor is not None:
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
