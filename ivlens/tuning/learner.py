"""`Learner`: one model that learns task after task."""

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from ivlens.common.files import held, ready_folder
from ivlens.common.progress import bar
from ivlens.common.saves import replacing
from ivlens.models.adapters import put_in_order
from ivlens.models.boot import TransformerBridge, check_model
from ivlens.models.fingerprint import config_hash, model_identity
from ivlens.models.known import known_model
from ivlens.models.load import load_model
from ivlens.models.merging import merged
from ivlens.models.plain import plain_model
from ivlens.tuning.data import TrainingSet
from ivlens.tuning.guidance import Guidance
from ivlens.tuning.loop import Row, Trainer
from ivlens.tuning.methods import Method, new_method
from ivlens.tuning.options import TuneOptions
from ivlens.tuning.processes import current, own_draws
from ivlens.tuning.sites import Sites


class Learner:
    """A model on its way through a sequence of tasks. The bridge it began as stays as it is.

    Args:
        model: From `load_model`.
        method: Name of a method, or one with options of its own; it remembers what the method remembers.
    """

    def __init__(self, model: TransformerBridge, method: str | Method = "lora") -> None:
        self._first = check_model(model)
        self.method = new_method(method) if isinstance(method, str) else copy.deepcopy(method)
        self.n_tasks = 0
        self.sites = Sites(model)
        self.trained: nn.Module = plain_model(model)
        name = model_identity(model).name
        known = known_model(name)
        # peft writes it into its adapters as the model that they belong to, and knows no names but the Hub's
        self.trained.__dict__["name_or_path"] = name if known is None else str(known.folder)
        self._has_begun = False

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
        """Train on one task; the log, a row for every step with the terms of the loss as they are weighted.

        Args:
            folder: Keeps the state of the training there; a call like the one that was interrupted goes on from it.
            on_step: Gets every row of the log as it is made.
            judge: Asked about the model in training every `options.judge_every` steps and at the end; what it says
                goes into the log.
            stop: Whether a judged row ends the training early.

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
        """`learn` in a folder that is held already."""
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
        """What `learn` runs, before its first step: for loops of one's own, and to time a step.

        Raises:
            ValueError: guidance at a place that does not exist.
        """
        options = options or TuneOptions()
        guides = self._guides(guidance)
        seed = options.seed + 7_907 * self.n_tasks
        self._begin(seed)
        rehearsals = [part for guide in guides for part in guide.rehearsal]
        rehearsed = {
            f"rehearsal{n}": part.term(self.trained, self.sites, seed + n, options) for n, part in enumerate(rehearsals)
        }
        return Trainer(
            model=self.trained,
            sites=self.sites,
            data=self.method.data(data, seed),
            n_own=len(data),
            options=options,
            guides=guides,
            terms={"penalty": self._penalty} | rehearsed,
            seed=seed,
            about={"method": self.method.describe(), "model": config_hash(self.trained)},
        )

    def _penalty(self, step: int) -> Iterator[torch.Tensor]:
        value = self.method.penalty(self.trained) if current().is_first else None
        if value is not None:
            yield value

    def _begin(self, seed: int) -> None:
        """Ask the method for what is trained on the next task, once."""
        if not self._has_begun:
            with own_draws(next(self.trained.parameters()).device), warnings.catch_warnings():
                warnings.filterwarnings("ignore", category=FutureWarning)  # peft and transformers talk to each other
                torch.manual_seed(seed)  # of a new adapter's weights
                self.trained = self.method.begin(self.trained)
            self._has_begun = True

    def bridge(self, name: str = "") -> TransformerBridge:
        """The model as it is now, adapters merged, ready for hooks; a copy.

        Args:
            name: What results call it.
        """
        plain: Any = copy.deepcopy(self.trained)
        if hasattr(plain, "merge_and_unload"):
            plain = merged(plain)
        plain.requires_grad_(False)
        name = name or f"{self._first.cfg.model_name} + {self.n_tasks} tasks ({self.method.name})"
        return load_model(name, hf_model=plain.eval(), tokenizer=self._first.tokenizer)

    def save(self, folder: str | Path) -> Path:
        """Write the adapters in peft's own format, or the whole model where there are none.

        What an earlier call wrote into the folder is replaced, whichever of the two it was. Of several processes of one
        training the first alone writes.
        """
        target = Path(folder)
        if not current().is_first:
            return target
        with replacing(target) as scratch:
            model: Any = self.trained
            # peft would ask the Hub whether the vocabulary has grown; it has not
            model.save_pretrained(
                scratch, **({"save_embedding_layers": False} if hasattr(model, "peft_config") else {})
            )
            put_in_order(scratch)
            if not hasattr(model, "peft_config") and self._first.tokenizer is not None:
                self._first.tokenizer.save_pretrained(scratch)  # a whole model is opened without its first one
        return target

    def _guides(self, guidance: Guidance | None) -> Sequence[Guidance]:
        guides = [] if guidance is None else [guidance]
        own = self.method.distillation()
        if own is not None:
            guides.append(Guidance(theta=torch.zeros(self._first.cfg.d_model), kl=own))
        for guide in guides:
            self.sites.check(guide.layer, guide.site, guide.heads.heads if guide.heads else ())
            for part in guide.rehearsal:
                self.sites.check(part.layer, part.site, part.heads.heads if part.heads else ())
            if guide.theta is not None and len(guide.theta) != self._first.cfg.d_model:
                raise ValueError(
                    f"theta has {len(guide.theta)} entries, expected {self._first.cfg.d_model}, the model's d_model; "
                    "use a vector of this model."
                )
        return guides


def alone_in(folder: str | Path | None) -> AbstractContextManager[object]:
    """No other training in the same folder meanwhile; of several processes of one training the first sees to it."""
    return nullcontext() if folder is None or not current().is_first else held(Path(folder), "a training")


@contextmanager
def _undone_on_error(model: nn.Module) -> Iterator[None]:
    """Give the trained weights their values back if the body does not come to its end."""
    before = {
        name: weight.detach().to("cpu", copy=True) for name, weight in model.named_parameters() if weight.requires_grad
    }
    try:
        yield
    except BaseException:
        named = dict(model.named_parameters())
        with torch.no_grad():
            for name, weight in before.items():
                named[name].copy_(weight)
        raise
