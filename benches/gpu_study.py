"""The study's cells of a real model on one GPU, as many as fit into some minutes: made for a machine that is soon gone.

    python benches/gpu_study.py --out OUT --model FOLDER [--terse FOLDER] [--minutes 9] [--device cuda]

1. Teaches SmolLM2 to follow instructions (`ivlens terse`), unless `--terse` names the adapter, and writes it at once.
2. Runs cells of the regimes `few` and `terse` of `study.py` in turns, one order after the other, and writes all that
   are done into `OUT/cells.parquet` after each. `study.py show --out OUT/cells.parquet --write` keeps them.

`--model` is the checkpoint folder of SmolLM2-135M-Instruct (`ivlens get smollm2` prints its place), or `pocket` for a
trial without a GPU: with `--dry` everything is as small as it can be.
"""

import argparse
import shutil
import time
from dataclasses import replace
from pathlib import Path

import study

from ivlens import load_model
from ivlens.models.boot import TransformerBridge
from ivlens.runs.terse.build import build_terse
from ivlens.runs.terse.plan import TerseOptions

LEFT = 90.0  # seconds before the end after which no cell is begun


def terse_model(first: TransformerBridge, out: Path, dry: bool) -> Path:
    """The folder of the adapter, made now; a copy without the training's state is written to `OUT/terse`."""
    options = TerseOptions(model="pocket", steps=2, batch_size=4) if dry else TerseOptions()
    built = build_terse(out / "work" / "teaching", options, model=first)
    shutil.copytree(built.folder, out / "terse", dirs_exist_ok=True)
    print(f"taught in {built.seconds:.0f} s", flush=True)
    return built.folder


def small(regime: study.Regime) -> study.Regime:
    """A regime of pocket in which every amount is the least."""
    options = replace(
        regime.options, model="pocket", earlier=("antonym", "country_capital", "present_past"), steps=2, batch_size=4,
        n_prompts=3, n_judge_prompts=3, n_exam_prompts=2, n_draws=2, n_samples=16, k=4,
    )  # fmt: skip
    return replace(regime, options=options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--terse", type=Path)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dry", action="store_true")
    given = parser.parse_args()
    until = time.monotonic() + 60 * given.minutes - LEFT
    if given.dry:
        study.REGIMES.update({name: small(study.REGIMES[name]) for name in ("few", "terse")})
    first = load_model(given.model, device=given.device, dtype="float32")
    taught = terse_model(first, given.out, given.dry) if given.terse is None else given.terse
    models = {"few": first, "terse": load_model(str(taught), device=given.device, dtype="float32")}
    cells = given.out / "work" / "cells"
    for order in range(len(study.REAL_ORDERS)):
        for name, model in models.items():
            study.run(cells, [order], [0], None, name, model=model, until=until)
            if done := study.kept(cells):
                study.in_one_file(done, given.out / "cells.parquet")


if __name__ == "__main__":
    main()
