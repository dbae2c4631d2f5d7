"""What the whole paper costs on 7B and 70B models: arithmetic, with the shares measured in RESULTS.md.

python benches/plan.py [--write]     with --write into docs/cluster.md
"""

import argparse
import re
from dataclasses import dataclass
from pathlib import Path

from common import RESULTS, table

from ivlens.runs.sweep import Survey, cost

PAGE = Path(__file__).parent.parent / "docs" / "cluster.md"

MODELS = {
    "7B": Survey("", None, "LlamaForCausalLM", "cuda", 6_738_415_616, 32, 32, 4096, 32_000),
    "70B": Survey("", None, "LlamaForCausalLM", "cuda", 68_976_648_192, 80, 64, 8192, 32_000),
}
D_HEAD, BYTES = 128, 2  # bf16

# Assumed, not measured: an H100's bf16 matrix products without sparsity, the share of them that a pass gets, a disk.
PEAK, SHARE, DISK = 989e12, 0.4, 2e9

N_TASKS, N_CHECKPOINTS, N_TOKENS = 60, 20, 256
N_PROMPTS, N_MEAN, N_SELECT, N_TEST = 32, 100, 50, 50  # inputs of a task on each side
N_VECTORS = 1 + 19 + 19 + 19  # the vector, random vectors, vectors of random heads, other tasks'
N_ALPHAS, N_SITES, N_SCREEN, N_FINALISTS = 5, 2, 16, 6
N_CLOZES = 4
SEQUENCE, N_ORDERS, N_SAMPLES, N_EPOCHS, N_SEEDS = 5, 3, 1000, 3, 3
METHODS = ("lora", "inclora", "ewc", "olora", "lwf", "replay")
N_GUIDANCE = 2  # without, and with all three parts
TRAINING_PASSES = 3  # forward, and twice that backward


@dataclass(frozen=True)
class Measured:
    """From RESULTS.md.

    Attributes:
        engine: Time of the exact engine over its arithmetic at the machine's own rate.
        guided: A training step with all three parts of guidance over one without.
        teacher: Bytes kept for an example.
    """

    engine: float
    guided: float
    teacher: float

    @classmethod
    def read(cls) -> "Measured":
        """The present numbers."""
        text = RESULTS.read_text(encoding="utf-8")
        engine = re.search(r"^\| c ÷ limit \| [\d.]+ \| ([\d.]+)", text, re.MULTILINE)
        guided = re.search(r"^\| \+ all three .*?\(([\d.]+)\) \| [^|]*\(([\d.]+)\)", text, re.MULTILINE)
        teacher = re.search(r"GPT-2-small shape: [\de.+]+ ms and ([\d.]+) kB an example", text)
        assert engine and guided and teacher, "RESULTS.md has no such numbers; run benches/effects.py and overhead.py"
        return cls(float(engine[1]), float(guided[2]), 1e3 * float(teacher[1]))


def operations(model: Survey, measured: Measured) -> dict[str, tuple[float, float]]:
    """Of every part: times it is done, and floating-point operations of once."""
    once = cost.forward(model, N_TOKENS, 1)
    settings = model.n_layers * N_ALPHAS * N_SITES
    rows = N_VECTORS * (settings * N_SCREEN + N_FINALISTS * N_SELECT + N_TEST)
    # a training: some tasks one after the other, every one judged on all after each
    trained = SEQUENCE * N_SAMPLES * N_EPOCHS * TRAINING_PASSES * cost.forward(model, N_TOKENS)
    judged = (SEQUENCE + 1) * (SEQUENCE + 10) * N_TEST * 2 * once
    n_trainings = len(METHODS) * N_GUIDANCE * N_ORDERS * N_SEEDS
    pairs = N_TASKS * N_CHECKPOINTS
    return {
        "effects of all heads": (pairs, measured.engine * N_PROMPTS * cost.all_heads(model, N_TOKENS)),
        "means of head outputs": (pairs, 4 * N_MEAN * once),
        "forgetting: instructed and clozes": (pairs, 2 * (1 + N_CLOZES) * N_TEST * once),
        "interventions with all controls": (
            pairs,
            (N_SELECT + 3 * N_TEST) * once + rows * cost.forward(model, 2),
        ),
        "trainings": (n_trainings, (1 + measured.guided) / 2 * trained + judged),
    }


def hours(n: float) -> float:
    """GPU-hours of so many operations."""
    return n / (PEAK * SHARE) / 3600


def _cost_table(measured: Measured) -> str:
    parts = {name: operations(model, measured) for name, model in MODELS.items()}
    rows = []
    for part in parts["7B"]:
        cells = [f"{hours(times * once):,.1f}" for times, once in (parts[name][part] for name in MODELS)]
        rows.append([part, f"{parts['7B'][part][0]:,}", *cells])
    loaded = [N_CHECKPOINTS * model.n_params * BYTES / DISK / 3600 for model in MODELS.values()]
    rows.append(["reading checkpoints, once each", str(N_CHECKPOINTS), *(f"{value:,.1f}" for value in loaded)])
    sums = [sum(hours(a * b) for a, b in parts[name].values()) for name in MODELS]
    rows.append(["**all of it**", "", *(f"**{total + more:,.0f}**" for total, more in zip(sums, loaded, strict=True))])
    by_head = [N_TASKS * N_CHECKPOINTS * N_PROMPTS * (model.n_layers * model.n_heads + 1) for model in MODELS.values()]
    each = [hours(n * cost.forward(model, N_TOKENS, 1)) for n, model in zip(by_head, MODELS.values(), strict=True)]
    rows.append(["(effects by one pass for each head)", f"{N_TASKS * N_CHECKPOINTS:,}", *(f"({n:,.0f})" for n in each)])
    return table(["GPU-hours", "times", *MODELS], rows)


def _memory_table(measured: Measured) -> str:
    rows: list[list[str]] = []

    def row(what: str, *values: float) -> None:
        rows.append([what, *(f"{value / 1e9:,.1f}" for value in values)])

    models = list(MODELS.values())
    row("weights", *(model.n_params * BYTES for model in models))
    row("copies of the last token, one prompt", *(
        model.n_layers * model.n_heads * (8 * model.d_model + 2 * model.d_vocab) * BYTES for model in models
    ))  # fmt: skip
    row("training, batch 8, checkpointed: a layer's input each", *(
        model.n_layers * 8 * N_TOKENS * model.d_model * BYTES for model in models
    ))  # fmt: skip
    row("teacher of 1,000 examples, kept on the CPU", *([1000 * measured.teacher] * 2))
    floats = [2 * model.n_heads * D_HEAD + model.d_model + N_PROMPTS * model.n_heads for model in models]
    kept = [4 * N_TASKS * N_CHECKPOINTS * model.n_layers * n for model, n in zip(models, floats, strict=True)]
    row("store: all effects, on disk", *kept)
    return table(["GB", *MODELS], rows)


def text() -> str:
    """Both tables and what they rest on."""
    measured = Measured.read()
    about = (
        f"{N_TASKS} tasks x {N_CHECKPOINTS} checkpoints, prompts of {N_TOKENS} tokens; effects on {N_PROMPTS} prompts, "
        f"means over {N_MEAN}; {N_VECTORS} vectors at every layer, {N_ALPHAS} strengths, {N_SITES} sites; "
        f"{len(METHODS)} methods x {N_GUIDANCE} kinds of guidance x {N_ORDERS} orders x {N_SEEDS} seeds of {SEQUENCE} "
        f"tasks, {N_SAMPLES:,} samples, {N_EPOCHS} epochs. Two operations for each weight and token, at {SHARE:.0%} of "
        f"an H100's {PEAK / 1e12:.0f} Tflop/s in bf16 (assumed). From RESULTS.md: the engine takes {measured.engine} "
        f"times its arithmetic, a guided step {measured.guided} times a plain one, the teacher "
        f"{measured.teacher / 1e3:.0f} kB an example."
    )
    return f"{about}\n\n{_cost_table(measured)}\n{_memory_table(measured)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    found = text()
    print(found)
    if parser.parse_args().write:
        begin, end = "<!-- plan -->", "<!-- end of plan -->"
        page = PAGE.read_text(encoding="utf-8")
        head, rest = page.split(begin)
        PAGE.write_text(f"{head}{begin}\n{found.strip()}\n{end}{rest.split(end)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
