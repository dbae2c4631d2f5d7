"""`Cell`: one result of a sweep, described so that any process can make it and any other can find it."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from ivlens.common.store.keys import versions
from ivlens.prompts.recipe import PromptRecipe
from ivlens.runs.sweep.kinds import KINDS
from ivlens.runs.sweep.options import Setting, options_from
from ivlens.runs.sweep.tasks import bank_hash, task_facts


@dataclass(frozen=True)
class ModelSpec:
    """Which model: what `load_model` takes."""

    name: str
    revision: str | None = None


@dataclass(frozen=True)
class Survey:
    """What is known of a model without running it.

    Attributes:
        weights_hash, revision, architecture: What it is; all empty where it was not loaded yet.
        device: Type of the device it runs on.
        n_params, n_layers, n_heads, d_model, d_vocab: Its size, for estimates.
        identity: Of everything that numbers depend on, configuration and tokenizer included (`ModelIdentity.key`).
    """

    weights_hash: str
    revision: str | None
    architecture: str
    device: str
    n_params: int
    n_layers: int
    n_heads: int
    d_model: int
    d_vocab: int
    identity: str = ""


@dataclass(frozen=True)
class Cell:
    """What is varied.

    Attributes:
        kind: Of `KINDS`.
        model: Which model.
        task: Built-in name or path of a task; for a kind that is over suites, the name of one.
        seed: Of everything that is drawn.
        options: Of the kind.
        others: The grid's other tasks, for the kinds that use them.
        setting: How the machine computes.
    """

    kind: str
    model: ModelSpec
    task: str
    seed: int
    options: Any
    others: tuple[str, ...] = ()
    setting: Setting = Setting()

    @property
    def name(self) -> str:
        """For people; not unique."""
        return f"{self.kind} {self.model.name} {self.task} seed {self.seed}"

    @property
    def recipe(self) -> PromptRecipe:
        """How its clean prompts are made."""
        return self.options.recipe(self.seed)

    def to_json(self) -> str:
        """For another process."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Cell":
        """Back."""
        values = json.loads(text)
        kind = values["kind"]
        given = {name: value for name, value in values["options"].items() if value is not None}
        return cls(
            **{
                **values,
                "model": ModelSpec(**values["model"]),
                "others": tuple(values["others"]),
                "setting": Setting(**values["setting"]),
                "options": options_from(KINDS[kind].options, given, kind),
            }
        )

    def needs(self, kind: str, task: str | None = None) -> "Cell":
        """The cell of another kind, with the options that they share, that this one is made from."""
        made = KINDS[kind].options
        given = self.options if task in (None, self.task) else self.options.for_other_tasks()
        shared = {name: getattr(given, name) for name in made.__dataclass_fields__}
        return replace(self, kind=kind, task=task or self.task, options=made(**shared), others=())

    def labels(self) -> dict[str, Any]:
        """Columns of the store's table."""
        plain = {
            name: value if isinstance(value, str | int | float | bool | None) else " ".join(map(str, value))
            for name, value in asdict(self.options).items()
        }
        about = {"suite" if KINDS[self.kind].over == "suites" else "task": self.task}
        return {"kind": self.kind, "model": self.model.name, **about, "seed": self.seed, **plain}

    def what(self, model: Survey) -> dict[str, Any]:
        """Everything the result depends on: the description that the store makes its key from."""
        watched = [*self.others, *getattr(self.options, "watch", ())]
        options = asdict(self.options) | ({"watch": None} if hasattr(self.options, "watch") else {})
        # a template's content, whatever its file is called
        options["template"] = self.recipe.to_dict()["template"]
        options.pop("data", None)  # nor where a suite lies: its content is among the facts
        return {
            "kind": self.kind,
            "format": [KINDS[kind].format for kind in (self.kind, *KINDS[self.kind].made_from)],
            **versions(),
            "model": [model.weights_hash, model.identity, model.revision, model.architecture],
            "device": model.device,
            "threads": self.setting.threads,
            "max_memory": self.setting.max_memory,
            "bank": bank_hash(),
            "task": KINDS[self.kind].facts(self.task, self.options),
            "others": [task_facts(task) for task in watched],
            "seed": self.seed,
            "options": options,
        }


def survey_from(values: Mapping[str, Any]) -> Survey:
    """Back from JSON.

    Raises:
        TypeError: not what a survey is made of.
    """
    found = Survey(**values)
    sizes = (found.n_params, found.n_layers, found.n_heads, found.d_model, found.d_vocab)
    if not all(isinstance(size, int) for size in sizes) or not all(
        isinstance(text, str) and text for text in (found.weights_hash, found.identity)
    ):
        raise TypeError("sizes or hashes are of another type, or missing as in files of older versions")
    return found
