"""`HeadEffects`: the measured effects of all heads, with intervals, a table, a figure and a file."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ivlens.common.arguments import checked
from ivlens.common.checks import check_count
from ivlens.common.intervals import LEVEL, N_RESAMPLES
from ivlens.common.names import set_shown
from ivlens.effects.bands import ChosenHeads, MapInterval
from ivlens.effects.files import FILE, TENSORS, again_content, check_model_of, read_effects
from ivlens.effects.taken import LEAST_SHARE, Taken
from ivlens.forward.ability import Ability
from ivlens.models.boot import ModelRef, TransformerBridge, WeakModel
from ivlens.models.fingerprint import ModelIdentity, model_identity
from ivlens.models.load import device_of
from ivlens.models.mixers import head_label
from ivlens.prompts.recipe import PromptRecipe
from ivlens.tasks.task import Task

if TYPE_CHECKING:
    import plotly.graph_objects as go


@checked
@dataclass(frozen=True, eq=False)
class HeadEffects:
    """Causal indirect effects of every head for one task.

    Attributes:
        cie: Effect of each head on each corrupted prompt, in the unit of the score; NaN where it was not measured.
        mean_z: `z̄`, mean head outputs over clean prompts, at their last token.
        mean_z_corrupted: The same over the corrupted versions of those prompts; None where no contrast was asked for.
        write_scale: Mean scale of a head's write into the residual stream; 1 in most families, see `mean_write_scale`.
        base_scores: Score of each corrupted prompt without a patch.
        clean_scores: Score of the clean version of each prompt; None in files of older versions, which lack it.
        corruptions: How each prompt was corrupted.
        inputs: The input that each prompt asks about.
        task: Name of the task.
        model: Identity of the model: name, shape, hashes of weights, configuration and tokenizer.
        settings: Everything else that made these numbers, in plain JSON values.
        model_ref: Weak reference to the model, which gives it as long as it is in memory.
        again: The strongest heads measured again on prompts that did not choose them; see `measure_again`.
    """

    cie: Float[Tensor, "batch n_layers n_heads"]
    mean_z: Float[Tensor, "n_layers n_heads d_head"]
    mean_z_corrupted: Float[Tensor, "n_layers n_heads d_head"] | None
    write_scale: Float[Tensor, "n_layers d_model"]
    base_scores: Float[Tensor, " batch"]
    corruptions: tuple[str, ...]
    inputs: tuple[str, ...]
    task: str
    model: ModelIdentity
    settings: Mapping[str, Any]
    model_ref: WeakModel = field(default=None, repr=False)
    clean_scores: Float[Tensor, " batch"] | None = None
    again: ChosenHeads | None = None

    def __post_init__(self) -> None:
        set_shown(self, "task")
        ModelRef.set_in(self)
        for name in ("base_scores", "clean_scores"):
            if (scores := getattr(self, name)) is not None and len(scores) != len(self.cie):
                raise ValueError(f"{name} has {len(scores)} values, expected {len(self.cie)}: one for each row of cie.")

    def __repr__(self) -> str:
        best = ", ".join(f"{head_label(*head, self.model.n_heads)} {self.aie[head]:+.3g}" for head in self.top_heads(1))
        taken = f"{self.taken}, " if self.taken else ""
        return f"HeadEffects({self.task!r}, {self.model.name!r}, {len(self.cie)} prompts, {taken}largest {best})"

    def __str__(self) -> str:
        return "\n".join([*self.warnings, repr(self)])

    @property
    def ability(self) -> Ability | None:
        """Clean and bare accuracy on *select* inputs; None where it was not measured."""
        return Ability.recorded(self.settings)

    @property
    def clean_accuracy(self) -> float | None:
        """The model's accuracy on clean prompts; None where it was not measured."""
        return self.ability and self.ability.clean

    @property
    def bare_accuracy(self) -> float | None:
        """The model's accuracy without instruction and demonstrations; None where it was not measured."""
        return self.ability and self.ability.bare

    @property
    def taken(self) -> Taken | None:
        """What the corruption takes away from the score of the measured prompts; None without `clean_scores`."""
        if self.clean_scores is None:
            return None
        return Taken.of(self.clean_scores, self.base_scores, str(self.settings.get("score", "prob")))

    @property
    def taken_warning(self) -> str:
        """A sentence saying that the corruption takes little away; empty where it takes enough, or is `none`."""
        if set(self.corruptions) == {"none"} or self.taken is None or self.taken.is_enough:
            return ""
        kinds = ", ".join(sorted(set(self.corruptions)))
        # a fifth or more on average, from prompts that differ so much that it may be nothing
        unsure = self.taken.mean > 0 and self.taken.share >= LEAST_SHARE
        little = "may take nothing away (the interval includes 0)" if unsure else "takes little away"
        return (
            f"{self.task}: the corruption {kinds} {little}, {self.taken}: what heads bring back then says "
            "little of the task; use another corruption or recipe, or more prompts."
        )

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences on what speaks against building a vector from these effects; empty where nothing does."""
        ability = self.ability.warning(self.task, self.model.name) if self.ability else ""
        return tuple(filter(None, (ability, self.taken_warning)))

    @property
    def live_model(self) -> TransformerBridge | None:
        """The bridge these effects were measured on, while it is in memory; None after `load` without a model."""
        return self.model_ref() if self.model_ref is not None else None

    def check_task(self, task: Task) -> None:
        """Refuse a task of the same name but other content than the one that was measured.

        Raises:
            ValueError: the content is another one; effects that do not record the content are not checked.
        """
        if self.settings.get("task_hash", task.content_hash()) != task.content_hash():
            raise ValueError(
                f"the effects of {self.task!r} were measured on another task of that name, expected effects of the "
                "given task; rename one of the two (dataclasses.replace(task, name=...)) and measure it."
            )

    @property
    def recipe(self) -> PromptRecipe:
        """How the clean prompts were made."""
        return PromptRecipe.recorded(self.settings) or PromptRecipe()

    @property
    def method(self) -> str:
        """The engine that ran; another one than was asked for, where that one did not suit the model."""
        return str(self.settings["method"])

    @property
    def aie(self) -> Float[Tensor, "n_layers n_heads"]:
        """Average indirect effect of each head: the mean of `cie` over prompts; NaN where it was not measured."""
        return self.cie.mean(0)

    def contrasted(self) -> Float[Tensor, "n_layers n_heads d_head"]:
        """`mean_z_corrupted`, which is there only where `contrast` was asked for.

        Raises:
            ValueError: it is not there.
        """
        if self.mean_z_corrupted is None:
            raise ValueError(
                f"the effects of {self.task!r} hold no means over corrupted prompts, which a contrast subtracts; "
                "measure them with head_effects(..., options=EffectOptions(contrast=True))."
            )
        return self.mean_z_corrupted

    def interval(
        self, level: float = LEVEL, simultaneous: bool = False, *, n_resamples: int = N_RESAMPLES, seed: int = 0
    ) -> MapInterval:
        """Interval of `aie` over prompts: `low` and `high` for every head, and the kind of interval in words.

            >>> low, high = effects.interval(simultaneous=True)

        Args:
            level: Coverage for each head alone (t), or with `simultaneous` for all heads of the map at once.
            simultaneous: max-T with studentised resamples, see `max_t_reach` and docs/method.md, 13 Intervals. For
                reading a whole map, where some of hundreds of separate intervals miss by chance. Where the prompts are
                too few for the map, or some heads' effects depend on one or two of them, the interval is pointwise
                instead, and `kind` says so.
            n_resamples: Number of resamples of the prompts, for max-T.
            seed: Draws the resamples.

        Returns:
            NaN where a head was not measured, and everywhere if there is only one prompt.

        Raises:
            ValueError: the level is not between 0 and 1.
        """
        check_count("n_resamples", n_resamples, 1)
        check_count("seed", seed, 0)
        return MapInterval.of(self.cie, level, simultaneous, n_resamples=n_resamples, seed=seed)

    def top_heads(self, k: int) -> list[tuple[int, int]]:
        """The `k` heads of largest `aie` as `(layer, head)`, largest first.

        Raises:
            ValueError: `k` is not between 1 and the number of measured heads.
        """
        aie = self.aie.flatten()
        measured = int((~aie.isnan()).sum())  # NaN: layers or heads that were left out
        if not 1 <= k <= measured:
            raise ValueError(f"k is {k}, expected 1 to {measured}, the number of measured heads.")
        # heads that were not measured go last; stable, so that equal effects give the same heads everywhere
        order = aie.nan_to_num(-torch.inf).argsort(descending=True, stable=True)[:k].tolist()
        return [divmod(index, self.cie.shape[2]) for index in order]

    def to_frame(self, level: float = LEVEL) -> pd.DataFrame:
        """One row for each measured head, largest effect first.

        Returns:
            Columns `task`, `label`, `layer`, `head`, `score` (of which `aie` is a difference), `aie`, `low`, `high`,
            `interval` (its kind: simultaneous where that is possible, see `interval`), `n` (prompts). Heads that were
            measured again (`measure_again`) have also `aie_again`, `low_again`, `high_again`, `interval_again`,
            `n_again`.
        """
        shown = self.interval(level, simultaneous=True)
        measured = int((~self.aie.isnan()).sum())
        rows = [
            {
                "task": self.task,
                "label": head_label(layer, head, self.model.n_heads),
                "layer": layer,
                "head": head,
                "score": str(self.settings.get("score", "")),
                "aie": float(self.aie[layer, head]),
                "low": float(shown.low[layer, head]),
                "high": float(shown.high[layer, head]),
                "interval": shown.kind,
                "n": len(self.cie),
            }
            for layer, head in self.top_heads(measured)
        ]
        frame = pd.DataFrame(rows)
        return frame if self.again is None else frame.merge(self.again.to_frame(level), "left", ["layer", "head"])

    def plot(self, top: int = 10) -> "go.Figure":
        """A figure of the map of all heads; the `top` strongest are marked with their rank."""
        from ivlens.show.figures.heads import head_heatmap  # late: `show` is a room below, and brings plotly

        check_count("top", top, 0)
        return head_heatmap(self, top=top)

    def pick(self, k: int = 10) -> Any:
        """The map in a notebook's cell, on which heads are clicked in and out of a choice: `picked.vector()`.

            >>> picked = effects.pick()  # the last line of a cell shows it; then: picked.heads, picked.vector()

        Args:
            k: How many of the strongest heads are chosen at first; 0: none.

        Raises:
            ImportError, RuntimeError: panel is not installed, or this is no notebook.
        """
        from ivlens.show.picking.opening import pick

        return pick(self, k)

    def _repr_html_(self) -> str:
        from ivlens.show.tables import effects_html

        return effects_html(self)

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file with metadata in JSON; ValueError for settings that JSON cannot hold."""
        names = ("task", "model", "settings", "corruptions", "inputs")
        content = {name: getattr(self, name) for name in names} | {"settings": dict(self.settings)}
        tensors = {name: tensor for name in TENSORS if (tensor := getattr(self, name)) is not None}
        tensors_again, about_again = again_content(self.again)
        return FILE.write(path, tensors | tensors_again, content | about_again)

    @classmethod
    def load(cls, path: str | Path, model: TransformerBridge | None = None) -> "HeadEffects":
        """Read effects that `save` wrote.

        Args:
            model: The model to use the effects with, which becomes `live_model`, so that vectors can be built from
                them. It must have the weights, configuration and tokenizer that were measured. None: any file is read,
                and later use checks the model.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not a file of head effects, a damaged one, or one measured on another model.
        """
        loaded = cls(**read_effects(path))
        if model is None:  # tables and figures need no model
            return loaded
        check_model_of(path, loaded.model, model_identity(model))
        return replace(loaded, model_ref=ModelRef(model))

    def to(self, device: str | torch.device) -> "HeadEffects":
        """The same effects with their tensors on another device.

        Raises:
            ValueError: no such device, or none here.
        """
        device = device_of(device)
        tensors = {name: tensor for name in TENSORS if (tensor := getattr(self, name)) is not None}
        return replace(self, **{name: tensor.to(device) for name, tensor in tensors.items()})
