"""`ivlens pocket`: train the built-in model, or measure what it can do."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

from cyclopts import App

from ivlens.cli._options import AsJson, ModelOptions

MOST_THREADS = 1024  # torch starts as many as it is told, until the system refuses

app = App(name="pocket", help="Train the built-in model, or write its model card.", help_format="markdown")


@app.command
def train(
    *, out: Path = Path("out/pocket"), seed: int = 0, steps: int | None = None, threads: int | None = None
) -> None:
    """Train the pocket model on the task bank; a second call goes on where the first one stopped.

    Example: `ivlens pocket train --out out/pocket`

    Args:
        out: Folder for the log of losses, the state of the training and, at the end, the checkpoint.
        seed: Seed of the initial weights and of the order of the data.
        steps: Number of training steps; by default as for the shipped model.
        threads: Number of CPU threads; by default as for the shipped model. Another number changes the last bits of the
            weights.
    """
    from ivlens.common.disk import check_folder
    from ivlens.pocket.train import TrainConfig, Trainer

    check_folder(out)

    given = {"steps": steps, "threads": threads}
    for name, value in given.items():
        if value is not None and value < 1:
            raise ValueError(f"--{name} is {value}, expected 1 or more.")
    if threads is not None and threads > MOST_THREADS:
        raise ValueError(f"--threads is {threads}, expected at most {MOST_THREADS}.")
    if abs(seed) >= 2**31:
        raise ValueError(f"--seed is {seed}, expected a number between -2^31 and 2^31.")
    default = TrainConfig()
    config = replace(default, seed=seed, steps=steps or default.steps, threads=threads or default.threads)
    print(f"checkpoint: {Trainer(config, out).run()}")


@app.command
def card(
    *,
    where: ModelOptions | None = None,
    split: Literal["select", "test"] = "test",
    out: Path | None = None,
    as_json: AsJson = False,
) -> None:
    """Measure the pocket model, and compare it with the accuracies it was built to reach; takes a few minutes.

    Example: `ivlens pocket card --json`

    Args:
        split: Split to judge on. Designs are compared on `select`; `test` is for the finished model.
        out: Folder for MODEL_CARD.md and card.json.
    """
    from ivlens.common.disk import check_folder
    from ivlens.pocket.card import measure_card
    from ivlens.pocket.cardfile import card_json, card_table, write_card

    if out is not None:
        check_folder(out)
    result = measure_card((where or ModelOptions()).load(), split=split)
    if out is not None:
        write_card(result, out)
    print(card_json(result) if as_json else card_table(result))
