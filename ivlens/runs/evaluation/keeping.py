"""Parts of an evaluation in a store: everything that each depends on, and how it is written and read."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from ivlens.common.store.entries import TABLE, Entry
from ivlens.common.store.keys import canonical, versions
from ivlens.common.store.store import Store
from ivlens.effects.results import HeadEffects
from ivlens.models.boot import TransformerBridge
from ivlens.models.fingerprint import ModelIdentity, model_identity
from ivlens.runs.evaluation.plan import EvaluateOptions
from ivlens.runs.sweep.tasks import bank_hash
from ivlens.steering.judged_file import read_judged, write_judged
from ivlens.steering.summary import Judged, summary
from ivlens.tasks.task import Task
from ivlens.vectors.vector import InstructionVector

KIND = "evaluation"
EFFECTS_FILE, ROWS_FILE, VECTOR_FILE = "effects.safetensors", "rows.safetensors", "vector-{}.safetensors"
T = TypeVar("T")


@dataclass(frozen=True)
class Form:
    """How one kind of part is written into the folder of a store's result, a table among its files, and read again."""

    write: Callable[[Any, Path], None]
    read: Callable[[Entry], Any]


def effects_form(model: TransformerBridge) -> Form:
    """Effects of all heads."""

    def write(found: HeadEffects, folder: Path) -> None:
        found.save(folder / EFFECTS_FILE)
        found.to_frame().to_parquet(folder / TABLE, index=False)

    return Form(write, lambda entry: HeadEffects.load(entry.path(EFFECTS_FILE), model))


def vectors_form(model: TransformerBridge) -> Form:
    """Several vectors, or none."""

    def write(found: Sequence[InstructionVector], folder: Path) -> None:
        for number, vector in enumerate(found):
            vector.save(folder / VECTOR_FILE.format(number))
        names = pd.DataFrame({"vector": pd.Series([vector.task for vector in found], dtype="str")})
        names.to_parquet(folder / TABLE, index=False)

    def read(entry: Entry) -> list[InstructionVector]:
        n = sum(name != TABLE for name in entry.files)
        return [InstructionVector.load(entry.path(VECTOR_FILE.format(number)), model) for number in range(n)]

    return Form(write, read)


def rows_form(model: ModelIdentity) -> Form:
    """Rows of a judgement with their scores."""

    def write(found: Sequence[Judged], folder: Path) -> None:
        write_judged(folder / ROWS_FILE, found, model)
        pd.DataFrame([summary(one) for one in found]).to_parquet(folder / TABLE, index=False)

    return Form(write, lambda entry: read_judged(entry.path(ROWS_FILE)))


TABLE_FORM = Form(lambda found, folder: found.to_parquet(folder / TABLE, index=False), Entry.table)


class Parts:
    """Makes the parts of an evaluation, each once if there is a store, and says which one begins.

    Args:
        store: Where parts are kept; None: nowhere.
        say: Called with a line of text when a part begins.
        total: The number of parts.
    """

    def __init__(
        self,
        model: TransformerBridge,
        options: EvaluateOptions,
        store: Store | None,
        say: Callable[[str], None],
        total: int,
    ) -> None:
        self.model, self.options = model, options
        self._store, self._say, self._total, self._n = store, say, total, 0

    def part(
        self, task: Task, name: str, title: str, depends: Mapping[str, Any], form: Form, make: Callable[[], T]
    ) -> T:
        """One part: what the store has, or what `make` makes.

        Args:
            name: The part's name in its key.
            title: What the line of progress says of it.
            depends: What it depends on, apart from model, task, bank and versions of packages.
        """
        self._n += 1
        line = f"{self._n} of {self._total}: {task.name}: {title}"
        if self._store is None:
            self._say(line)
            return make()
        what = {"kind": KIND, "part": name, "model": model_identity(self.model).key, "task": task.full_hash()}
        what = json.loads(canonical({**what, "bank": bank_hash(), "depends": depends, **versions()}))
        kept = self._store.read(what, form.read)
        self._say(line if kept is None else f"{line} (kept)")
        if kept is not None:
            return kept
        labels = {"model": model_identity(self.model).name, "task": task.name, "part": name}
        return form.read(self._store.obtain(what, lambda folder: form.write(make(), folder), labels))


def effects_facts(options: EvaluateOptions) -> dict[str, Any]:
    """What the effects of a task depend on."""
    return {"k": options.k, "n_prompts": options.n_prompts, "recipe": options.recipe.to_dict()}


def settings_facts(options: EvaluateOptions) -> dict[str, Any]:
    """What the table of all settings depends on."""
    return effects_facts(options) | {"grid": asdict(options.grid), "n_judge_prompts": options.n_judge_prompts}


def rows_facts(options: EvaluateOptions, part: str, others: Sequence[Task]) -> dict[str, Any]:
    """What rows of a judgement depend on.

    Args:
        part: `controls`, or a kind of further rows.
        others: The tasks that are evaluated together with this one.
    """
    more = {} if options.more is None else options.more.recorded()
    asked = more.pop("rows", ())
    has_side_effects = "side_effects" in asked
    aside = {"text": more.pop("text")} if has_side_effects else None
    found = settings_facts(options) | {"n_draws": options.n_draws, "side_effects": aside}
    found |= {"others": [task.full_hash() for task in others]}
    # the same controls serve whatever further rows are asked for
    return found if part == "controls" else found | {"more": {name: more[name] for name in more if name != "text"}}
