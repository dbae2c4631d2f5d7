"""`Learner`: a model that learns one task after another."""

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from ivlens.common.files import held, ready_folder
from ivlens.common.names import path_of
from ivlens.common.progress import bar
from ivlens.common.saves import replacing
from ivlens.models.adapters import put_in_order
from ivlens.models.boot import TransformerBridge, check_model
from ivlens.models.fingerprint import config_hash, model_identity
from ivlens.models.known import known_model
from ivlens.models.load import load_model
from ivlens.models.merging import merged
from ivlens.models.plain import plain_model
from ivlens.tuning.guidance import Guidance
from ivlens.tuning.loop import Row, Trainer
from ivlens.tuning.methods import Method, Penalty, new_method
from ivlens.tuning.terms.term import Term
from ivlens.tuning.training.asking import Shift
from ivlens.tuning.training.data import TrainingSet
from ivlens.tuning.training.options import TuneOptions
from ivlens.tuning.training.processes import current, own_draws
from ivlens.tuning.training.sites import Sites


class Learner:
    """A copy of a model that learns a sequence of tasks, with what its method remembers of earlier ones.

    Args:
        model: From `load_model`; it is never changed.
        method: Name of a method, or a method with options of its own, of which the learner takes a copy.
    """

    def __init__(self, model: TransformerBridge, method: str | Method = "lora") -> None:
        self._first = check_model(model)
        # a copy: a method holds what it remembers of earlier tasks, and belongs to one sequence
        self.method = new_method(method) if isinstance(method, str) else copy.deepcopy(method)
        self.n_tasks = 0
        self.sites = Sites(model)
        self.trained: nn.Module = plain_model(model)
        name = model_identity(model).name
        known = known_model(name)
        # peft writes this name into its adapters as their base model; names of ivlens mean nothing on the Hub
        self.trained.__dict__["name_or_path"] = name if known is None else str(known.folder)
        self._has_begun = False  # whether the method has made the next task's weights trainable

    def learn(
        self,
        data: TrainingSet,
        options: TuneOptions | None = None,
        guidance: Guidance | None = None,
        *,
        folder: str | Path | None = None,
        on_step: Callable[[Row], None] = lambda row: None,
        judge: Callable[[nn.Module], Mapping[str, float]] | None = None,
        stop: Callable[[Row], bool] = lambda row: False,
    ) -> pd.DataFrame:
        """Train on one task and return the log: a row for every step, with the weighted terms of the loss.

        Args:
            data: The task's prompts and answers, from `training_set`.
            folder: Folder for the state of the training; the same call after an interruption goes on from there.
            on_step: Called with every row of the log as soon as it is made.
            judge: Gives scores of the model in training every `options.judge_every` steps and at the end; they go into
                the log.
            stop: Whether the training ends early after this judged row.

        Raises:
            ValueError: guidance at a place that does not exist, or a folder with the state of another training.
            OSError: a folder that cannot be written, or that another training is using.

        After an exception or an interruption the weights are those from before the call, which can be repeated.
        """
        where = None if folder is None else ready_folder(folder)
        with alone_in(where):
            return self._learn(data, options, guidance, folder=where, on_step=on_step, judge=judge, stop=stop)

    def _learn(
        self,
        data: TrainingSet,
        options: TuneOptions | None,
        guidance: Guidance | None,
        *,
        folder: Path | None,
        on_step: Callable[[Row], None],
        judge: Callable[[nn.Module], Mapping[str, float]] | None,
        stop: Callable[[Row], bool] = lambda row: False,
    ) -> pd.DataFrame:
        """As `learn`, in a folder that the caller has locked already."""
        trainer = self.trainer(data, options, guidance)
        trainer.folder, trainer.stop = folder, stop
        trainer.judge = None if judge is None else lambda: judge(self.trained)
        with _undone_on_error(self.trained), bar("training", trainer.options.steps, "steps") as report:

            def step_done(row: Row) -> None:
                report(int(row["step"]), trainer.options.steps)
                on_step(row)

            trainer.on_step = step_done
            rows = trainer.run()
            self.method.finish(self.trained, data, trainer.seed)
        self.n_tasks += 1
        self._has_begun = False
        return pd.DataFrame(rows)

    def trainer(
        self, data: TrainingSet, options: TuneOptions | None = None, guidance: Guidance | None = None
    ) -> Trainer:
        """The training of one task as `learn` runs it, before its first step: for your own loops, and to time a step.

        The frozen model is asked about the examples of `options.steps` steps, so a loop cannot make more of them.

        Raises:
            ValueError: guidance at a place that does not exist.
        """
        options = options or TuneOptions()
        terms = self._terms(guidance)
        seed = options.seed + 7_907 * self.n_tasks  # other draws for every task of the sequence
        self._begin(seed)
        return Trainer(
            model=self.trained,
            sites=self.sites,
            data=self.method.data(data, seed),
            n_own=len(data),
            options=options,
            terms=terms,
            seed=seed,
            about={"method": self.method.describe(), "model": config_hash(self.trained)},
        )

    def _begin(self, seed: int) -> None:
        """Let the method prepare the model for the next task; only once, so that a repeated call adds no adapter."""
        if not self._has_begun:
            with own_draws(next(self.trained.parameters()).device), warnings.catch_warnings():
                # peft warns about transformers, and transformers about peft: a user can change neither
                warnings.filterwarnings("ignore", category=FutureWarning)
                torch.manual_seed(seed)  # for the random weights of a new adapter
                self.trained = self.method.begin(self.trained)
            self._has_begun = True

    def bridge(self, name: str = "") -> TransformerBridge:
        """A copy of the model as it is now, as a bridge for hooks, with adapters merged into its weights.

        Args:
            name: The model's name in results; "" makes one from the first model, the tasks and the method.
        """
        plain: Any = copy.deepcopy(self.trained)
        if hasattr(plain, "merge_and_unload"):
            plain = merged(plain)
        plain.requires_grad_(False)
        name = name or f"{self._first.cfg.model_name} + {self.n_tasks} tasks ({self.method.name})"
        return load_model(name, hf_model=plain.eval(), tokenizer=self._first.tokenizer)

    def save(self, folder: str | Path) -> Path:
        """Write the adapters in peft's own format, or the whole model where there are none, and return the folder.

        Files that an earlier call wrote into the folder are replaced, whether they were adapters or a whole model. With
        several processes only the first one writes.
        """
        target = path_of(folder, "folder")
        if not current().is_first:
            return target
        with replacing(target) as scratch:
            model: Any = self.trained
            # without this option peft asks the Hub whether the vocabulary has grown; training never changes it
            model.save_pretrained(
                scratch, **({"save_embedding_layers": False} if hasattr(model, "peft_config") else {})
            )
            put_in_order(scratch)
            if not hasattr(model, "peft_config") and self._first.tokenizer is not None:
                # a whole model must open by itself, while adapters are opened beside their first model
                self._first.tokenizer.save_pretrained(scratch)
        return target

    def _terms(self, guidance: Guidance | None) -> list[tuple[Term, Shift | None]]:
        """The terms of the method and of the guidance, each with the vector and place that the guidance shares.

        Raises:
            ValueError: a place or a head that does not exist, or a vector of another model.
        """
        terms: list[tuple[Term, Shift | None]] = [(Penalty(self.method), None)]
        d_model = self._first.cfg.d_model
        if guidance is not None:
            self.sites.check(guidance.layer, guidance.site)
            for term in guidance.terms:
                term.check(self.sites)
            if guidance.theta is not None and len(guidance.theta) != d_model:
                raise ValueError(
                    f"theta has {len(guidance.theta)} entries, expected {d_model}, the model's d_model; "
                    "use a vector of this model."
                )
            terms += [(term, guidance.shift) for term in guidance.terms]
        own = self.method.distillation()
        if own is not None:
            # a KL term needs a vector: zeros make its teacher the frozen model as it is
            terms.append((own, Shift(0, "resid_post", torch.zeros(d_model))))
        return terms


def alone_in(folder: str | Path | None) -> AbstractContextManager[object]:
    """Lock the folder against other trainings while the body runs; with several processes only the first one does."""
    return nullcontext() if folder is None or not current().is_first else held(path_of(folder, "folder"), "a training")


@contextmanager
def _undone_on_error(model: nn.Module) -> Iterator[None]:
    """Put the trained weights back to their values from before the body, if the body is interrupted or fails."""
    # on the CPU: the GPU's memory is for the training
    before = {
        name: weight.detach().to("cpu", copy=True) for name, weight in model.named_parameters() if weight.requires_grad
    }
    try:
        yield
    except BaseException:  # KeyboardInterrupt too
        named = dict(model.named_parameters())
        with torch.no_grad():
            for name, weight in before.items():
                named[name].copy_(weight)
        raise
