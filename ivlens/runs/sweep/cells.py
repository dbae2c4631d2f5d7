"""`Cell`: the description of one result of a sweep, from which any process can make it or find it in the store."""

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
    """A model as `load_model` takes it: name or folder, and revision."""

    name: str
    revision: str | None = None


@dataclass(frozen=True)
class Survey:
    """Facts about a model: its identity, for keys of results, and its size, for estimates.

    Attributes:
        weights_hash, revision, architecture: As in `ModelIdentity`; the hash is empty where the model was not loaded.
        device: Type of the device that the model runs on.
        n_params, n_layers, n_heads, d_model, d_vocab: Sizes of the model.
        identity: `ModelIdentity.key`: a hash of weights, configuration and tokenizer; empty without `weights_hash`.
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
    """One result of a sweep: its kind, model, task, seed and options.

    Attributes:
        kind: One of `KINDS`.
        model: The model that is measured or trained.
        task: Built-in name or path of a task; for kinds that run over suites, the name of a suite.
        seed: Seed of all draws.
        options: Options of the kind, an object of its `Kind.options`.
        others: The grid's other tasks with the same inputs, for kinds that use them.
        setting: How the machine computes: device, dtype, threads, memory.
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
        """A name for messages; several cells may have the same."""
        return f"{self.kind} {self.model.name} {self.task} seed {self.seed}"

    @property
    def recipe(self) -> PromptRecipe:
        """How the cell's clean prompts are made."""
        return self.options.recipe(self.seed)

    def to_json(self) -> str:
        """The cell as JSON, for another process."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Cell":
        """The cell whose JSON `to_json` gave."""
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
        """The cell of another kind that this cell is made from; the options that both kinds have are the same."""
        made = KINDS[kind].options
        given = self.options if task in (None, self.task) else self.options.for_other_tasks()
        shared = {name: getattr(given, name) for name in made.__dataclass_fields__}
        return replace(self, kind=kind, task=task or self.task, options=made(**shared), others=())

    def labels(self) -> dict[str, Any]:
        """Names and options for people, each a column of the store's table."""
        plain = {
            name: value if isinstance(value, str | int | float | bool | None) else " ".join(map(str, value))
            for name, value in asdict(self.options).items()
        }
        about = {"suite" if KINDS[self.kind].over == "suites" else "task": self.task}
        return {"kind": self.kind, "model": self.model.name, **about, "seed": self.seed, **plain}

    def what(self, model: Survey) -> dict[str, Any]:
        """The description of the result in the store: everything that it depends on. Its key is a hash of this."""
        watched = [*self.others, *getattr(self.options, "watch", ())]
        options = asdict(self.options) | ({"watch": None} if hasattr(self.options, "watch") else {})
        # the content of a template, in place of the name of its file
        options["template"] = self.recipe.to_dict()["template"]
        options.pop("data", None)  # the folder of a suite; its content is in `Kind.facts`
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
    """The survey whose values were written as JSON or as a table.

    Raises:
        TypeError: a value is missing, or of another type.
    """
    found = Survey(**values)
    sizes = (found.n_params, found.n_layers, found.n_heads, found.d_model, found.d_vocab)
    if not all(isinstance(size, int) for size in sizes) or not all(
        isinstance(text, str) and text for text in (found.weights_hash, found.identity)
    ):
        raise TypeError("sizes or hashes are of another type, or missing as in files of older versions")
    return found
