"""`ivlens pocket`: train the built-in model, and measure what it can do."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

from cyclopts import App

from ivlens.cli._options import AsJson, ModelOptions

MOST_THREADS = 1024

app = App(name="pocket", help="Train the built-in model, or write its model card.", help_format="markdown")


@app.command
def train(
    *, out: Path = Path("out/pocket"), seed: int = 0, steps: int | None = None, threads: int | None = None
) -> None:
    """Train the pocket model from the task bank; a second call resumes where the first stopped.

    Example: `ivlens pocket train --out out/pocket`

    Args:
        out: Folder for the loss log, the resumable state and, at the end, the checkpoint.
        seed: Decides initial weights and data order.
        steps: Training steps; as for the shipped model if not given.
        threads: CPU threads; as for the shipped model if not given. Another number changes the last bits.
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
    """Measure the pocket model beside the bars it was built to reach; takes a few minutes.

    Example: `ivlens pocket card --json`

    Args:
        split: Inputs to judge on. Designs are compared on `select`; `test` is for the finished model.
        out: Folder to write MODEL_CARD.md and card.json into.
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
