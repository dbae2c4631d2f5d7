"""What a real model costs on two cores: effects, a judgement, causal tests, a training step, beside their arithmetic.

    python benches/real_size.py [effects] [judgement] [causal] [training] [--against PATH] [--rounds N]
                               [--json PATH] [--write]

Arithmetic is counted while the code runs, by torch's FlopCounterMode: two operations for a multiplication and an
addition, of matrix products alone. Its seconds are those of the bare matrix products of one pass over the prompts, with
the weights of all layers in turn, timed between the rounds. `--against` runs an older checkout of ivlens in turns with
this one. *Needed* is the arithmetic that the answer needs whatever way it is found: of `head_effects`, one pass over
the prompts for the means, one over the clean and one over the corrupted prompts, and for each head one copy of the last
token from its layer upward, with its score. A training step takes turns with the step of a loop of transformers and
peft alone. The causal tests are those of a study for one of its tasks, with one draw of each control in place of 19.
"""

import argparse
import copy
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import machine_line, table, write_json, write_section
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode

from ivlens import (
    InstructionVector,
    PromptRecipe,
    build_prompts,
    evaluate_intervention,
    head_effects,
    load_model,
    load_task,
)
from ivlens.analysis.dynamics import causal_tests
from ivlens.analysis.dynamics.stages import TrackOptions, measure_stage
from ivlens.effects import EffectOptions
from ivlens.models.plain import plain_model
from ivlens.runs.study.plan import StudyOptions
from ivlens.steering.evaluate import JudgeOptions
from ivlens.steering.search import Grid, tried_layers
from ivlens.tuning import Learner, TuneOptions
from ivlens.tuning.training.data import IGNORED, training_set
from ivlens.tuning.training.order import batch_of

TASK, RECIPE, N_PROMPTS, N_MEANS = "third_person", PromptRecipe(n_shots=5, instruction=None), 16, 32
N_CAUSAL_DRAWS = 1
N_JUDGED, ALPHAS, N_DRAWS, OTHERS = 32, (1.0, 2.0, 4.0), 3, ("present_past", "singular_plural", "first_of_three")


@dataclass
class Way:
    """Something that is timed.

    Attributes:
        run: What is timed.
        needed: Operations that its answer needs; None: not known.
        counted: Operations that it took, once they are counted.
        seconds: The best of all rounds so far.
        plain: The same without ivlens, where there is such a thing; and its best seconds.
    """

    run: Callable[[], Any]
    needed: int | None = None
    counted: int = 0
    seconds: float = float("inf")
    plain: Callable[[], Any] | None = None
    plain_seconds: float = float("inf")


def rate(model: Any) -> float:
    """Operations in a second, of the matrix products of one pass over the prompts."""
    weights = [p.detach() for block in model.blocks for p in block.parameters() if p.ndim == 2]
    n_rows = N_PROMPTS * _columns(model)
    inputs = {weight.shape[1]: torch.randn(n_rows, weight.shape[1]) for weight in weights}
    best = float("inf")
    with torch.inference_mode():
        for _ in range(3):
            start = time.perf_counter()
            for weight in weights:
                torch.nn.functional.linear(inputs[weight.shape[1]], weight)
            best = min(best, time.perf_counter() - start)
    return sum(2 * n_rows * weight.numel() for weight in weights) / best


def per_token(model: Any) -> tuple[int, int]:
    """Operations for one token: in one block, without attention scores, and in the unembedding."""
    cfg, block = model.cfg, model.blocks[0]
    weights = sum(p.numel() for p in block.parameters() if p.ndim == 2)
    return 2 * weights, 2 * cfg.d_model * cfg.d_vocab


def needed_for_effects(model: Any, n_columns: int) -> int:
    """Operations of what `head_effects` cannot do without, for prompts of about this many tokens."""
    cfg = model.cfg
    block, logits = per_token(model)
    score = 4 * cfg.n_heads * cfg.d_head * n_columns  # of a token's attention in one block: scores and their sum
    prompt = n_columns * cfg.n_layers * (block + score)
    copies = sum((layer + 1) * cfg.n_heads for layer in range(cfg.n_layers)) * (block + score)
    scores = cfg.n_layers * cfg.n_heads * logits
    return N_MEANS * prompt + 2 * N_PROMPTS * (prompt + logits) + N_PROMPTS * (copies + scores)


def effects_way(model: Any) -> Way:
    options = EffectOptions(n_mean_prompts=N_MEANS, n_check_prompts=0)
    run = partial(head_effects, model, load_task(TASK), recipe=RECIPE, n_prompts=N_PROMPTS, options=options)
    return Way(run, needed_for_effects(model, _columns(model)))


def _columns(model: Any) -> int:
    """Tokens of a prompt, on average."""
    batch = build_prompts(model.tokenizer, load_task(TASK), load_task(TASK).split("fit")[:N_PROMPTS], RECIPE)
    return round(float(batch.attention_mask.sum(1).float().mean()))


def judgement_way(model: Any) -> Way:
    few = EffectOptions(n_mean_prompts=N_MEANS, n_check_prompts=0)
    found = {
        name: head_effects(model, load_task(name), recipe=RECIPE, n_prompts=4, options=few) for name in (TASK, *OTHERS)
    }
    vectors = {name: InstructionVector.from_effects(effects, k=10) for name, effects in found.items()}
    grid = Grid(layers=tried_layers(model.cfg.n_layers), alphas=ALPHAS, sites=("resid_post",))
    options = JudgeOptions(other_vectors=[vectors[name] for name in OTHERS], means=found[TASK])
    return Way(
        partial(
            evaluate_intervention, model, load_task(TASK), vectors[TASK],
            recipe=RECIPE, at=grid, n_prompts=N_JUDGED, n_draws=N_DRAWS, options=options,
        )
    )  # fmt: skip


def causal_way(model: Any) -> Way:
    """The four causal tests of one task, with a study's grid and prompts, for the model and itself."""
    names = (TASK, *OTHERS[:2])
    track = TrackOptions(n_prompts=4, n_judge_prompts=4, recipe=RECIPE)
    stage = measure_stage(model, [load_task(name) for name in names], track)
    options = replace(StudyOptions().causal, recipe=RECIPE, n_draws=N_CAUSAL_DRAWS)
    asked = [load_task(TASK)]
    return Way(partial(causal_tests, model, model, (stage, stage), asked, new=stage.vector(OTHERS[0]), options=options))


def training_way(model: Any) -> Way:
    """A step of LoRA on query and value projections, beside a loop of transformers and peft."""
    task, options = load_task(TASK), TuneOptions(steps=10_000, batch_size=16, decay="constant")
    data = training_set(model, task, task.split("fit"), recipe=RECIPE, n_samples=160)
    trainer = Learner(model, "lora").trainer(data, options)
    trained = [weight for weight in trainer.model.parameters() if weight.requires_grad]
    optimizer, numbers = torch.optim.AdamW(trained, lr=options.lr), itertools.count()
    known = trainer.ask_frozen()
    trainer.model.train()

    def step() -> None:
        with torch.enable_grad():
            trainer._step(next(numbers), optimizer, trained, known)

    return Way(step, plain=plain_step(model, data, options))


def plain_step(model: Any, data: Any, options: TuneOptions) -> Callable[[], None]:
    """The same training step as one writes it with transformers and peft: labels, loss, backward, clip, AdamW."""
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], lora_dropout=0.0, bias="none")
    peft: Any = get_peft_model(copy.deepcopy(plain_model(model)), lora)
    trained = [weight for weight in peft.parameters() if weight.requires_grad]
    optimizer, numbers = torch.optim.AdamW(trained, lr=options.lr), itertools.count()
    peft.train()

    def step() -> None:
        batch = data.rows(batch_of(next(numbers), options.batch_size, len(data), 0))
        labels = torch.cat([torch.full_like(batch.tokens, IGNORED), batch.answers], 1)
        tokens = torch.cat([batch.tokens, batch.answers.clamp_min(0)], 1)
        mask = torch.cat([batch.attention_mask, (batch.answers != IGNORED).long()], 1)
        kept = slice(int(mask.any(0).long().argmax()), None)  # as a collator pads: to the longest of the batch
        with torch.enable_grad():
            optimizer.zero_grad()
            found = peft(input_ids=tokens[:, kept], attention_mask=mask[:, kept], labels=labels[:, kept])
            found.loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, options.max_grad_norm)
            optimizer.step()

    return step


WAYS: dict[str, Callable[[Any], Way]] = {
    "effects": effects_way,
    "judgement": judgement_way,
    "causal": causal_way,
    "training": training_way,
}


def measure(model: Any, ways: dict[str, Way], rounds: int) -> float:
    """Count the operations of each way, and time them in turns; returns the machine's best rate."""
    for way in ways.values():
        way.run()  # what is checked once for each shape does not count
        if way.plain is not None:
            way.plain()
        with FlopCounterMode(display=False) as counter:
            way.run()
        way.counted = counter.get_total_flops()
    best = rate(model)
    for _ in range(rounds):
        for way in ways.values():
            start = time.perf_counter()
            way.run()
            way.seconds = min(way.seconds, time.perf_counter() - start)
            if way.plain is not None:
                start = time.perf_counter()
                way.plain()
                way.plain_seconds = min(way.plain_seconds, time.perf_counter() - start)
        best = max(best, rate(model))
    return best


def rows(ways: dict[str, Way], per_second: float) -> list[list[str]]:
    found = []
    for name, way in ways.items():
        shares = [each and way.seconds * per_second / each for each in (way.counted, way.needed)]
        found.append(
            [
                name,
                f"{way.seconds:.2f}",
                f"{way.counted / 1e9:.0f}",
                "" if way.needed is None else f"{way.needed / 1e9:.0f}",
            ]
            + ["" if share is None else f"{share:.2f}" for share in shares]
            + ["" if way.plain is None else f"{way.seconds / way.plain_seconds:.2f}"]
        )
    return found


def report(ways: dict[str, Way], per_second: float) -> str:
    head = ["", "seconds", "GFLOP counted", "GFLOP needed", "time ÷ counted", "time ÷ needed", "÷ plain"]
    return "\n".join(
        [
            "## A real model on two cores (`python benches/real_size.py --write`)\n",
            machine_line()
            + f" SmolLM2-135M-Instruct, float32, at {per_second / 1e9:.0f} GFLOP/s; best of all rounds.\n",
            table(head, rows(ways, per_second)),
        ]
    )


def in_turns(what: list[str], trees: tuple[Path, Path], rounds: int) -> dict[str, list[list[float]]]:
    """For each way its best seconds and its operations, of both checkouts, which take turns."""
    found: dict[str, list[list[float]]] = {name: [[], []] for name in what}
    for _ in range(rounds):
        for number, tree in enumerate(trees):
            with tempfile.TemporaryDirectory() as folder:
                kept = Path(folder, "found.json")
                command = [sys.executable, __file__, *what, "--rounds", "1", "--json", str(kept)]
                paths = os.pathsep.join(map(str, (tree.resolve(), Path(__file__).parent)))
                subprocess.run(command, check=True, capture_output=True, env=os.environ | {"PYTHONPATH": paths})
                for name, (seconds, counted, _) in json.loads(kept.read_text())["ways"].items():
                    best = found[name][number]
                    found[name][number] = [min([seconds, *best[:1]]), counted]
    return found


def commit(tree: Path) -> str:
    command = ["git", "-C", str(tree), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def compared(found: dict[str, list[list[float]]]) -> str:
    lines = [
        [name, f"{old[0]:.2f}", f"{new[0]:.2f}", f"{old[0] / new[0]:.2f}", f"{old[1] / 1e9:.0f}", f"{new[1] / 1e9:.0f}"]
        for name, (old, new) in found.items()
    ]
    return table(["", "older, s", "now, s", "older ÷ now", "older, GFLOP", "now, GFLOP"], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", metavar="|".join(WAYS), help="by default all")
    parser.add_argument("--against", type=Path, help="an older checkout of ivlens")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write the numbers there")
    parser.add_argument("--write", action="store_true", help="put the table into benches/RESULTS.md")
    options = parser.parse_args()
    if unknown := set(options.what) - set(WAYS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(WAYS)}")
    model = load_model("smollm2")
    ways = {name: WAYS[name](model) for name in options.what or WAYS}
    beside = ""
    if options.against:
        found = in_turns(options.what or list(WAYS), (options.against, Path(__file__).parents[1]), options.rounds)
        beside = f"\nIn turns with an older checkout, {commit(options.against)} (`--against`):\n\n{compared(found)}"
    per_second = measure(model, ways, options.rounds)
    text = report(ways, per_second) + beside
    print(text)
    kept = {name: [way.seconds, way.counted, way.needed] for name, way in ways.items()}
    write_json(options.json, {"rate": per_second, "ways": kept})
    if options.write:
        write_section("real_size", text)


if __name__ == "__main__":
    main()
