"""What the exact engine takes on a GPU, its two ways side by side; and without a GPU, what it would launch and move.

    python benches/gpu.py [--model FOLDER] [--json PATH] [--write]    # where there is a GPU: five minutes at most
    python benches/gpu.py --count [--against PATH] [--json PATH] [--write]    # without one: a minute
    python benches/gpu.py --dry                                       # a trial of the first on a CPU, tiny

*With the prompts* and *own attention* are ways of the engine (`ivlens/effects/exact.py`): copies in the call of each
block on the prompt, or in one of their own. Both check themselves against the reference on their first pass.
The arithmetic is that of a plain pass over the prompts, of one copy for each head from its layer upward, and of their
unembedding, at the rate that a large product of matrices has here.

`--count` runs a Llama of 16 layers and 32 heads, in bfloat16, and counts every call of torch that makes or changes a
tensor, with the bytes that it reads and writes. Norms count once, as on a GPU, where torch has one kernel for them.
`--against` counts the engine of an older checkout of ivlens as well.

`--model` is a checkpoint folder of SmolLM2-135M-Instruct (`ivlens get smollm2` prints its place); without it the rows
of a real model are left out. Rows are printed as they are measured, and the table once more at the end.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from calls import COUNTED, Calls
from common import machine_line, random_request, table, write_json, write_section
from real_size import causal_way, commit

from ivlens import PromptRecipe, head_effects, load_model, load_task
from ivlens.effects import exact
from ivlens.forward import norms

WAYS: tuple[exact.Way, ...] = ("own attention", "with the prompts")
N_COUNTED = (4, 25)
GOALS = {"64": 1.8, "512": 1.8, "one": 0.12, "smollm2": 0.25, "causal": 20.0}
Rows = list[list[str]]


@contextmanager
def norms_counted_once(calls: Calls) -> Iterator[None]:
    """In the body, the one call of a norm counts as one, whatever a CPU makes of it."""
    whole = norms.rms_norm

    def counted(stream: torch.Tensor, *others: Any) -> torch.Tensor:
        n, moved = calls.n, calls.bytes
        found = whole(stream, *others)
        calls.n, calls.bytes = n, moved
        calls.add([stream, found])
        return found

    norms.rms_norm = counted
    try:
        yield
    finally:
        norms.rms_norm = whole


def llama(device: str, dtype: torch.dtype, **shape: int) -> Any:
    torch.manual_seed(0)
    with torch.device(device):
        plain = transformers.AutoModelForCausalLM.from_config(transformers.LlamaConfig(**shape), dtype=dtype).eval()
    return load_model(hf_model=plain, device=device)


def counted(against: Path | None) -> tuple[Rows, dict[str, Any]]:
    """Calls and bytes of maps of few and of many prompts, each way, and in an older checkout."""
    model, found = llama("cpu", torch.bfloat16, **COUNTED), {}
    for n_prompts in N_COUNTED:
        request = random_request(model, n_prompts, 64)
        older = {} if against is None else {f"checkout {commit(against)}": older_count(against, n_prompts)}
        own = {way: count(model, lambda way=way, request=request: exact._measured(model, request, way)) for way in WAYS}
        found |= {f"{n_prompts} prompts, {name}": numbers for name, numbers in (older | own).items()}
    rows = []
    for name, (calls, moved) in found.items():
        new = found[f"{name.partition(',')[0]}, {WAYS[1]}"]
        rows.append([name, f"{calls:.0f}", f"{moved:,.0f}", f"{calls / new[0]:.2f}", f"{moved / new[1]:.2f}"])
    return rows, found


def count(model: Any, run: Callable[[], Any]) -> tuple[float, float]:
    """Calls for each layer, and MB, of a run after the first one, which has checks."""
    run()
    with Calls() as calls, norms_counted_once(calls):
        run()
    return calls.n / model.cfg.n_layers, calls.bytes / 1e6


def older_count(tree: Path, n_prompts: int) -> tuple[float, float]:
    """`count` of the engine of another checkout, which its own code runs in a process of its own."""
    script = (
        "import sys, torch, transformers; from common import random_request; from ivlens import load_model\n"
        "from ivlens.effects import exact; sys.path.append(sys.argv[1]); from calls import COUNTED, Calls\n"
        "config = transformers.LlamaConfig(**COUNTED); torch.manual_seed(0)\n"
        "plain = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()\n"
        "model = load_model(hf_model=plain); request = random_request(model, int(sys.argv[2]), 64)\n"
        "exact.measure(model, request)\n"
        "with Calls() as calls: exact.measure(model, request)\n"
        "print(calls.n / model.cfg.n_layers, calls.bytes / 1e6)"
    )
    path = os.pathsep.join([str(tree), str(tree / "benches")])
    ran = subprocess.run(
        [sys.executable, "-c", script, str(Path(__file__).parent), str(n_prompts)],
        env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    calls, moved = map(float, ran.stdout.split()[-2:])
    return calls, moved


def best(run: Callable[[], Any], rounds: int, device: str) -> float:
    """Seconds of the best round, until the device is done."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times)


def rate(device: str, dtype: torch.dtype, n: int) -> float:
    """Operations in a second, of one large product."""
    left, right = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    left @ right
    return 2 * n**3 / best(lambda: left @ right, 10, device)


def arithmetic(model: Any, n_prompts: int, n_tokens: int) -> float:
    """Operations that a map cannot do without, attention scores left out."""
    cfg = model.cfg
    block = 2 * sum(p.numel() for p in model.blocks[0].parameters() if p.ndim == 2)
    copies = cfg.n_heads * cfg.n_layers * (cfg.n_layers + 1) / 2
    unembedded = 2 * cfg.d_model * cfg.d_vocab * (cfg.n_layers * cfg.n_heads + 1)
    return n_prompts * (block * (n_tokens * cfg.n_layers + copies) + unembedded)


class Measured:
    """Rows of the table, printed as they come."""

    def __init__(self) -> None:
        self.rows: Rows = []
        self.numbers: dict[str, Any] = {}

    def add(self, name: str, goal: str, numbers: dict[str, float], text: list[str]) -> None:
        self.numbers[name] = numbers
        self.rows.append([name, *text, goal])
        print(*self.rows[-1], sep=" | ", flush=True)


def map_rows(found: Measured, device: str, dry: bool) -> None:
    """Maps of the 7B shape."""
    dtype = torch.float32 if dry else torch.bfloat16
    small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = llama(device, dtype, **(small if dry else {}))
    per_second = rate(device, dtype, 256 if dry else 8192)
    for n_prompts, n_tokens in ((25, 64), (25, 256), (25, 512), (1, 64)):
        request = random_request(model, n_prompts, n_tokens)
        for way in WAYS:
            exact._measured(model, request, way)  # with the check
        took = [best(lambda way=way, request=request: exact._measured(model, request, way), 4, device) for way in WAYS]
        least = arithmetic(model, n_prompts, n_tokens) / per_second
        goal = f"{GOALS['one']} s" if n_prompts == 1 else f"{GOALS.get(str(n_tokens), 1.8)} × arithmetic"
        text = [f"{took[0]:.3f}", f"{took[1]:.3f}", f"{took[0] / took[1]:.2f}", f"{took[1] / least:.2f}"]
        numbers = {**dict(zip(WAYS, took, strict=True)), "arithmetic": least}
        found.add(f"7B shape, {n_prompts} prompts, {n_tokens} tokens", goal, numbers, text)


def real_rows(found: Measured, folder: str, device: str, dry: bool) -> None:
    """A real model: its map, and the causal tests of one task of a study."""
    model = load_model(folder, device=device, dtype="float32")
    task, recipe = load_task("third_person"), PromptRecipe(n_shots=2 if dry else 10, instruction=None)
    took = {}
    for way in WAYS:
        exact._FIRST[model] = {(torch.float32, False): way}
        run = partial(head_effects, model, task, recipe=recipe, n_prompts=2 if dry else 32)
        run()
        took[way] = best(run, 1 if dry else 3, device)
    del exact._FIRST[model]
    old, new = took.values()
    found.add(
        "SmolLM2, effects of 32 ten-shot prompts with their means", f"{GOALS['smollm2']} s", took,
        [f"{old:.3f}", f"{new:.3f}", f"{old / new:.2f}", ""],
    )  # fmt: skip
    if not dry:
        causal = causal_way(model)
        seconds = best(causal.run, 1, device)
        text = ["", f"{seconds:.1f}", "", ""]
        found.add("SmolLM2, causal tests of one task", f"{GOALS['causal']:.0f} s for six", {"now": seconds}, text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", action="store_true", help="count calls and bytes, without a GPU")
    parser.add_argument("--against", type=Path, help="an older checkout of ivlens, to be counted too")
    parser.add_argument("--dry", action="store_true", help="a trial on a CPU")
    parser.add_argument("--model", help="a checkpoint folder of SmolLM2-135M-Instruct")
    parser.add_argument("--json", type=Path, help="also write the numbers there")
    parser.add_argument("--write", action="store_true", help="put the table into benches/RESULTS.md")
    given = parser.parse_args()
    if given.count:
        rows, numbers = counted(given.against)
        shown = table(["", "calls for each layer", "MB read and written", "calls ÷ now", "MB ÷ now"], rows)
        title = "## What one map launches and moves (`python benches/gpu.py --count --write`)"
        text = f"{title}\n\n{machine_line()} Counted on a CPU: no GPU was at hand.\n\n{shown}"
        section = "gpu_count"
    else:
        device = "cpu" if given.dry else "cuda"
        if device == "cuda" and not torch.cuda.is_available():
            sys.exit("gpu.py: torch finds no CUDA device; --count counts what it would be asked, --dry tries this out.")
        found = Measured()
        map_rows(found, device, given.dry)
        if given.model:
            real_rows(found, given.model, device, given.dry)
        head = ["", f"{WAYS[0]}, s", f"{WAYS[1]}, s", "÷", "÷ arithmetic", "goal"]
        card = torch.cuda.get_device_name() if device == "cuda" else "a trial on a CPU"
        shown, numbers = table(head, found.rows), found.numbers
        text = f"## On a GPU (`python benches/gpu.py --write`)\n\n{card}. {machine_line()}\n\n{shown}"
        section = "gpu_now"
    print(text)
    write_json(given.json, numbers)
    if given.write and not given.dry:
        write_section(section, text)


if __name__ == "__main__":
    main()
