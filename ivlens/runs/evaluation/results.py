"""`TaskEvaluations`: the vectors of several tasks, what was measured of them, and how all of it is written."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from ivlens.common.arguments import checked
from ivlens.common.files import file_name
from ivlens.common.names import path_of
from ivlens.common.saves import filling
from ivlens.effects.results import HeadEffects
from ivlens.models.fingerprint import ModelIdentity
from ivlens.runs.evaluation.plan import EvaluateOptions
from ivlens.steering.evaluation import Evaluation
from ivlens.steering.summary import corrected
from ivlens.tasks.task import Task
from ivlens.vectors.vector import InstructionVector

TABLES = {"rows": "table", "by_vector": "by_vector", "heads": "heads", "settings": "by_setting"}


class Shown(NamedTuple):
    """One judged input of a task: its clean and its bare prompt, and the accepted answers."""

    task: str
    clean: str
    bare: str
    answers: tuple[str, ...]


@checked
@dataclass(frozen=True, eq=False)
class TaskEvaluations:
    """Evaluations of the vectors of several tasks; tuples have one entry per task, in the order of `tasks`.

    Attributes:
        options: The options of the evaluation.
        model: The identity of the model.
        tasks: The tasks.
        effects: Effects of all heads, with the strongest ones measured again on *select*.
        vectors: The vector of each task.
        evaluations: The judgement of each vector, on *test*.
        settings: Accuracy of each vector at every setting, on *select*; rows of strength 0 are without a vector.
        shown: One input of each task with its prompts.
        seconds: Wall time.
    """

    options: EvaluateOptions
    model: ModelIdentity
    tasks: tuple[Task, ...]
    effects: tuple[HeadEffects, ...]
    vectors: tuple[InstructionVector, ...]
    evaluations: tuple[Evaluation, ...]
    settings: tuple[pd.DataFrame, ...]
    shown: tuple[Shown, ...]
    seconds: float

    @cached_property
    def table(self) -> pd.DataFrame:
        """All rows of all judgements, as in `Evaluation.table`, with a column `task`, and `p_holm` for several tasks.

        `p_holm` is Holm's correction of `p` for the number of tasks. `table.attrs["tasks"]` has the settings of each
        judgement.
        """
        found = self._joined([one.table for one in self.evaluations])
        found.attrs = {"tasks": [dict(one.settings) for one in self.evaluations]}
        return corrected(found, ("condition", "variant")) if len(self.tasks) > 1 else found

    @cached_property
    def by_vector(self) -> pd.DataFrame:
        """A row for each vector of a condition, instead of one for each condition."""
        return self._joined([one.by_vector() for one in self.evaluations])

    @cached_property
    def matrix(self) -> pd.DataFrame:
        """Accuracy on each task with each task's vector, at the setting that is best for this pair on *select*."""
        rows = [row for row in self.by_vector.to_dict("records") if row["condition"] in ("iv", "other_tasks")]
        columns = (
            "task",
            "vector",
            "accuracy",
            "accuracy_lo",
            "accuracy_hi",
            "interval",
            "layer",
            "alpha",
            "site",
            "n",
        )
        return pd.DataFrame([{name: row[name] for name in columns} for row in rows])

    @cached_property
    def heads(self) -> pd.DataFrame:
        """Effects of all heads on all tasks, as in `HeadEffects.to_frame`."""
        return pd.concat([one.to_frame() for one in self.effects], ignore_index=True)

    @cached_property
    def by_setting(self) -> pd.DataFrame:
        """The tables `settings` of all tasks."""
        return self._joined(list(self.settings))

    def about(self) -> dict[str, Any]:
        """Model, options and time, as plain values for JSON."""
        options = {name: value for name, value in vars(self.options).items() if name not in ("recipe", "more", "grid")}
        more = self.options.more
        options |= {"grid": asdict(self.options.grid), "more": None if more is None else more.recorded()}
        recipe = self.options.recipe.to_dict()
        return {"model": asdict(self.model), "options": options | {"recipe": recipe}, "seconds": round(self.seconds, 1)}

    def write(self, folder: str | Path, *, also: Callable[[Path], object] | None = None) -> list[Path]:
        """Write rows, vectors and effects, and return the paths; all files are put into the folder together.

        The files: `rows.parquet` (`table`), `by_vector.parquet`, `heads.parquet`, `settings.parquet` (`by_setting`) and
        `vectors/<task>.safetensors`.

        Args:
            also: Called with a scratch folder, to add more files (the page); they are written together with the others.

        Raises:
            OSError: the folder cannot be made or written to.
        """
        root = path_of(folder, "folder")
        with filling(root) as scratch:
            for file, name in TABLES.items():
                getattr(self, name).to_parquet(scratch / f"{file}.parquet", index=False)
            for vector in self.vectors:
                vector.save(scratch / "vectors" / file_name(vector.task, ".safetensors"))
            if also is not None:
                also(scratch)
            files = sorted(path.relative_to(scratch) for path in scratch.rglob("*") if path.is_file())
        return [root / file for file in files]

    def _joined(self, frames: list[pd.DataFrame]) -> pd.DataFrame:
        """One table of all rows, with `task` as its first column."""
        named = [frame.assign(task=task.name) for frame, task in zip(frames, self.tasks, strict=True)]
        found = pd.concat(named, ignore_index=True)
        found.insert(0, "task", found.pop("task"))
        found.attrs = {}
        return found

    def __repr__(self) -> str:
        best = [f"{task.name} {one.accuracy():.2f}" for task, one in zip(self.tasks, self.evaluations, strict=True)]
        return f"TaskEvaluations({self.model.name!r}: {', '.join(best)})"
