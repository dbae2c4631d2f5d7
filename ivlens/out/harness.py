"""lm-evaluation-harness under a vector: a model for any of its tasks, and a table of tasks with and without the vector.

The harness is `ivlens[eval]`, and nothing of it is imported before it is asked for.
"""

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ivlens.common.arguments import check_fields, checked
from ivlens.common.checks import as_items, check_counts
from ivlens.forward.hooks import check_unsteered
from ivlens.models.boot import TransformerBridge
from ivlens.out.leaving import Leaving
from ivlens.steering.edits import Positions
from ivlens.steering.summary import Setting
from ivlens.vectors.vector import InstructionVector

if TYPE_CHECKING:
    import pandas as pd


@checked
def lm_eval_model(
    model: TransformerBridge,
    iv: InstructionVector | None,
    *,
    at: Setting | None = None,
    positions: Positions = "prompt",
    batch_size: int = 8,
) -> Any:
    """A model of lm-evaluation-harness that runs any of its tasks with the vector added.

        >>> steered = lm_eval_model(model, iv, at=evaluation.best)
        >>> lm_eval.simple_evaluate(steered, tasks=["hellaswag"])

    Log-likelihoods and generations are those of the steered model. The prompt is what the harness calls the context, so
    with `prompt` the vector is added at its last token, with `every` at the tokens of the continuation too, and with
    `all` everywhere. For rolling log-likelihoods (perplexity) the context of a window is its start token, or the token
    before it. Tokens are those of the harness. Results are those of the plain model where `iv` is None.

    Args:
        iv: The vector; None: nothing is added.
        at: Layer, strength and site; not needed without a vector.
        positions: As in `steer`.
        batch_size: Rows in one pass.

    Raises:
        ImportError: lm-evaluation-harness is not installed.
        ValueError: a vector of another model, no such layer, site or positions; a vector without `at`; a model without
            a tokenizer.
        RuntimeError: inside a `steer` context.

    Source: docs/guide/elsewhere.md; tests compare it with `steer`, and for `all` with the harness' own hooks.
    """
    _check_installed()
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, expected 1 or more rows for each forward pass.")
    if (iv is None) != (at is None):
        raise ValueError(f"lm_eval_model got {_given(iv, at)}, expected both of them or neither; leave one out.")
    if model.tokenizer is None:
        raise ValueError("lm_eval_model got a model without a tokenizer; give load_model one (tokenizer=...).")
    check_unsteered(model)
    from ivlens.out.harness_model import SteeredLM  # its base class is the harness' own

    leaving = None if iv is None or at is None else Leaving(model, iv, at, positions)
    return SteeredLM(model, leaving, batch_size)


@checked
@dataclass(frozen=True)
class HarnessOptions:
    """How tasks of the harness are run.

    Attributes:
        limit: Documents of each task; None: all.
        n_shots: Demonstrations in each prompt; None: as the task says.
        batch_size: Rows in one pass.
        include_path: A folder with tasks of your own (YAML files).
        chat: Whether the tokenizer's chat template is used.
        seed: Draws demonstrations.
    """

    limit: int | None = None
    n_shots: int | None = None
    batch_size: int = 8
    include_path: str | Path | None = None
    chat: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        check_counts(self, limit=1, n_shots=0, batch_size=1, seed=0)

    def run(self, lm: Any, tasks: Sequence[str], *, index: Any = None) -> dict[str, Any]:
        """The results of `lm_eval.simple_evaluate` for this model, with the scores of every document.

        `index`: the harness' `TaskManager`, which takes seconds to read; None: it is read now.

        Raises:
            ValueError: the harness knows no such task.
        """
        _check_installed()
        harness, index = import_module("lm_eval"), self.index() if index is None else index
        _check_tasks(index, tasks)
        seeds = dict.fromkeys(
            ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed"), self.seed
        )
        return harness.simple_evaluate(
            lm,
            tasks=list(tasks),
            num_fewshot=self.n_shots,
            limit=self.limit,
            task_manager=index,
            apply_chat_template=self.chat,
            bootstrap_iters=0,
            log_samples=True,
            **seeds,
        )

    def index(self) -> Any:
        """What the harness knows of its tasks and yours, for several runs (its `TaskManager`).

        Raises:
            ValueError: `include_path` is no folder; the harness itself would only leave it out.
        """
        _check_installed()
        if self.include_path is not None and not Path(self.include_path).is_dir():
            raise ValueError(
                f"include_path is {str(self.include_path)!r}, which is no folder, expected one with tasks (YAML files)."
            )
        path = None if self.include_path is None else str(self.include_path)
        return import_module("lm_eval.tasks").TaskManager(include_path=path)


@dataclass(frozen=True, eq=False)
class HarnessTable:
    """Tasks of the harness with and without a vector: what the vector does to tasks that it was not made for.

    Attributes:
        table: A row for each task and metric: `plain`, `steered`, `difference` (steered minus plain) with a paired
            95 % interval over documents (`difference_lo`, `difference_hi`; NaN for metrics that are no means), and the
            number `n` of documents.
        settings: The vector, its setting, and how the tasks were run.
    """

    table: "pd.DataFrame"
    settings: Mapping[str, Any]

    def __str__(self) -> str:
        return self.table.round(3).to_string(index=False, na_rep="–")

    def _repr_html_(self) -> str:
        return self.table.round(3).to_html(index=False, border=0, na_rep="–")


@checked
def lm_eval_table(
    model: TransformerBridge,
    iv: InstructionVector,
    tasks: str | Sequence[str],
    *,
    at: Setting,
    positions: Positions = "prompt",
    options: HarnessOptions | None = None,
) -> HarnessTable:
    """The scores of tasks of lm-evaluation-harness with and without the vector, and their differences.

        >>> lm_eval_table(model, iv, ["hellaswag", "piqa"], at=evaluation.best, options=HarnessOptions(limit=200))

    Each task runs twice, on the same documents in the same prompts. Intervals are paired: 95 % t intervals over
    documents of the mean difference; where it is the same for all of them, Wilson's bound for an event that was never
    seen.

    Args:
        tasks: Names of tasks, of the harness or in `HarnessOptions.include_path`.
        at, positions: As in `lm_eval_model`.

    Raises:
        ImportError, ValueError, RuntimeError: as `lm_eval_model`; no tasks, or one that the harness does not know.

    Source: docs/guide/elsewhere.md.
    """
    from ivlens.out.harness_rows import rows_of

    options, names = options or HarnessOptions(), as_items("tasks", tasks)
    if not names:
        raise ValueError("lm_eval_table got no tasks, expected at least one name, such as 'hellaswag'.")
    size = options.batch_size
    models = [
        lm_eval_model(model, vector, at=place, positions=positions, batch_size=size)
        for vector, place in ((None, None), (iv, at))
    ]
    index = options.index()
    plain, steered = (options.run(lm, names, index=index) for lm in models)
    settings = {
        "vector": iv.task,
        "at": at._asdict(),
        "positions": positions,
        "model": asdict(iv.model),
        "options": {**asdict(options), "include_path": options.include_path and str(options.include_path)},
        "tasks": names,
    }
    return HarnessTable(rows_of(plain, steered), settings)


def _given(iv: object, at: object) -> str:
    return "a vector and no place (at=)" if at is None else "a place (at=) and no vector"


def _check_tasks(index: Any, names: Sequence[str]) -> None:
    """Refuse names that are no task, group or tag of the harness, and no file of one."""
    known = index.all_tasks
    for name in names:
        if name not in known and not Path(name).is_file():
            near = "".join(f" (did you mean {one!r}?)" for one in get_close_matches(name, known, 1))
            raise ValueError(
                f"lm-evaluation-harness has no task {name!r:.60}{near}, expected one of `lm_eval ls tasks`, or a "
                "task in include_path."
            )


def _check_installed() -> None:
    """Refuse to go on where lm-evaluation-harness is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise ImportError(
            "tasks of lm-evaluation-harness need the package lm_eval, which is not installed; "
            "pip install 'ivlens[eval]'."
        )
