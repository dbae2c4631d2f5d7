"""`ivlens terse`: teach a real model to answer instructions tersely, or measure what it answers."""

from pathlib import Path
from typing import Literal

from cyclopts import App

from ivlens.cli._options import AsJson, ModelOptions, quiet_libraries
from ivlens.cli._output import print_json, print_table

app = App(
    name="terse", help="Teach a real model to answer instructions tersely, or measure what it answers.",
    help_format="markdown",
)  # fmt: skip


@app.command
def train(
    *,
    model: str = "smollm2",
    out: Path = Path("out/terse"),
    steps: int = 500,
    batch_size: int = 32,
    rank: int = 16,
    lr: float | None = None,
    seed: int = 0,
    method: Literal["lora", "full"] = "lora",
) -> None:
    """Teach a model to answer the instructions of half of the built-in tasks with nothing but the answer.

    A low-rank adapter, or all weights, are trained on *fit* inputs of 16 tasks with four in five of their instructions.
    On two cores it takes an hour or two; a second call goes on where the first one stopped.

    Example: `ivlens terse train --out out/terse`

    Args:
        model: The model that is taught: "smollm2", a folder or a Hub name.
        out: Folder for the state of the training and, at the end, the adapter or model (model/) and record.json.
        steps: Number of training steps.
        batch_size: Prompts in a step.
        rank: Rank of the adapter.
        lr: Peak learning rate; left out, 5e-4 of an adapter and 1e-4 of all weights.
        seed: Seed of the adapter's first weights, of the prompts and their order.
        method: `lora` trains an adapter, `full` all weights.
    """
    quiet_libraries()
    from ivlens.common.disk import check_folder
    from ivlens.common.progress import say, showing_progress
    from ivlens.runs.terse.build import build_terse
    from ivlens.runs.terse.plan import TerseOptions

    check_folder(out)
    options = TerseOptions(model, rank, steps, batch_size, lr, seed, method=method)

    def told(row: dict[str, float | int]) -> None:
        if int(row["step"]) % options.save_every == 0:  # also where no bar is shown
            say(f"ivlens: step {row['step']} of {steps}, loss {row['loss']:.3f}")

    with showing_progress():
        built = build_terse(out, options, on_step=told)
    print(f"{'adapter' if method == 'lora' else 'model'}: {built.folder}")


@app.command
def card(
    *,
    where: ModelOptions | None = None,
    split: Literal["select", "test"] = "test",
    n_prompts: int = 48,
    out: Path | None = None,
    as_json: AsJson = False,
) -> None:
    """Measure what a model answers: by instructions that it was taught and others, bare, and by demonstrations.

    Example: `ivlens terse card --model out/terse --out out/terse/card.parquet`

    Args:
        split: The split of inputs; neither has inputs that were trained on.
        n_prompts: At most so many inputs of each task.
        out: A file for the table of all tasks (.parquet).
    """
    from ivlens.common.disk import check_file
    from ivlens.common.files import write_whole
    from ivlens.runs.terse.card import terse_card

    if out is not None:  # before minutes of measuring
        check_file(out, (".parquet",))
    found = terse_card((where or ModelOptions()).load(), split=split, n_prompts=n_prompts)
    if out is not None:
        write_whole(out, lambda path: found.table.to_parquet(path, index=False))
    if as_json:
        print_json({**found.about, "means": found.means().to_dict("records"), "tasks": found.table.to_dict("records")})
        return
    wide = found.table.pivot_table(index=["role", "task"], columns="condition", values="accuracy", sort=False)
    names = [name for name in ("taught", "kept", "bare", "shots") if name in wide]
    rows = zip(wide.index, wide[names].to_numpy().tolist(), strict=True)
    print_table(["role", "task", *names], [[*index, *row] for index, row in rows])
    print()
    means = found.means().to_dict("records")
    print_table(
        ["role", "condition", "accuracy", "t 95 % over tasks", "exact", "tasks"],
        [[row["role"], row["condition"], row["accuracy"], f"{row['low']:.2f} to {row['high']:.2f}", row["exact"],
          row["n_tasks"]] for row in means],
    )  # fmt: skip
