"""The head-effects benchmark: every way side by side on the same prompts, and how far the engine is from its limit.

    python benches/effects.py [--quick] [--json PATH] [--write] [--gpu]

(a) one hooked forward per head and prompt, (b) the same in batches of one layer's heads, (c) the exact engine,
(d) attribution; one plain forward for scale; and the limit, the arithmetic of (c) at this machine's matmul rate.
(a) and (b) are timed on some heads or layers and extrapolated, since every head costs the same.
"""

import argparse
import resource
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import ways
from common import gpt2_small, machine_line, pocket_request, random_request, seconds, table, write_json, write_section
from limit import Limit

from ivlens import head_effects, load_model, load_task
from ivlens.effects import exact
from ivlens.effects.chunks import chunk_size

N_PROMPTS = 4
BARS = {  # of the GPT-2-small shape: (T = 64, T = 256)
    "a ÷ c": (60, 120),
    "c ÷ plain": (2.4, 1.3),
    "c ÷ limit": (1.4, 1.4),
    "a ÷ c, last-position logits": (40, 80),
    "c ÷ plain, last-position logits": (3.7, 1.8),
    "memory over plain, MB": (400, 400),
    "error, nats": (1e-4, 1e-4),
}
OVERLAP_TASKS = ("antonym", "english_french", "first_letter", "capitalize")


def compare(model: Any, request: Any, *, n_sampled: int, rounds: int) -> dict[str, float]:
    """Seconds of every way for all prompts, and the numbers the bars are about."""
    n_heads = model.cfg.n_layers * model.cfg.n_heads
    places = list(ways.all_places(model)) if n_sampled >= n_heads else ways.spread(model, n_sampled)
    layers = [model.cfg.n_layers // 2]
    one = _first(request)
    limit = Limit(model, request, chunk_size(model, request, is_split=False).n_logit_rows)
    timed = seconds(
        {
            "plain": partial(ways.plain, model, request),
            "plain_last": partial(ways.plain, model, request, last=True),
            "c": partial(ways.engine, model, request),
            "limit": limit.measure,
            "a": partial(ways.per_head, model, one, places),
            "a_last": partial(ways.per_head, model, one, places, last=True),
        },
        rounds,
    )
    slower = {
        "b": partial(ways.per_layer, model, one, layers),
        "d": partial(ways.engine, model, request, "attribution"),
    }
    timed |= seconds(slower, 2)
    n_prompts = len(request.tokens)
    for name in ("a", "a_last"):
        timed[name] *= n_prompts * n_heads / len(places)
    timed["b"] *= n_prompts * model.cfg.n_layers / len(layers)
    timed["limit"] = limit.seconds
    return timed | _error(model, request, places) | {"n_prompts": n_prompts, "gflop": limit.flops / 1e9}


def _first(request: Any) -> Any:
    return replace(
        request, tokens=request.tokens[:1], attention_mask=request.attention_mask[:1], answers=request.answers[:1]
    )


def _error(model: Any, request: Any, places: list[tuple[int, int]]) -> dict[str, float]:
    """Of the log-probabilities, against one hooked forward pass for each of some heads."""
    found = exact.measure(model, request)
    want = ways.per_head(model, request, places) - found.base[:, None]
    got = torch.stack([found.cie[:, layer, head] for layer, head in places], 1)
    effect = float(want.abs().max())
    assert effect >= 1, f"the largest effect is {effect:.3g} nats, too small for the error to mean anything"
    return {"error": float((got - want).abs().max()), "effect": effect}


def ratios(found: dict[str, float]) -> dict[str, float]:
    return {
        "a ÷ c": found["a"] / found["c"],
        "c ÷ plain": found["c"] / found["plain"],
        "c ÷ limit": found["c"] / found["limit"],
        "a ÷ c, last-position logits": found["a_last"] / found["c"],
        "c ÷ plain, last-position logits": found["c"] / found["plain_last"],
        "memory over plain, MB": found.get("memory_mb", float("nan")),
        "error, nats": found["error"],
    }


def memory_over_plain(n_tokens: int) -> float:
    """MB by which the engine's peak exceeds that of one plain forward, in a process of its own."""
    out = subprocess.run(
        [sys.executable, __file__, "--peak", str(n_tokens)], capture_output=True, text=True, check=True
    )
    return float(out.stdout.split()[-1])


def _peak(n_tokens: int) -> None:
    model = gpt2_small()
    request = random_request(model, N_PROMPTS, n_tokens)
    ways.plain(model, request)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ways.engine(model, request)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


def overlap() -> dict[str, int]:
    """Heads that the ten strongest in bf16 and in float32 have in common, on pocket."""
    tops = {
        dtype: {
            name: set(head_effects(load_model("pocket", dtype=dtype), load_task(name)).top_heads(10))
            for name in OVERLAP_TASKS
        }
        for dtype in ("float32", "bfloat16")
    }
    return {name: len(tops["float32"][name] & tops["bfloat16"][name]) for name in OVERLAP_TASKS}


def run(quick: bool) -> dict[str, Any]:
    cases, model = {}, gpt2_small()
    for n_tokens in (64,) if quick else (64, 256):
        request = random_request(model, N_PROMPTS, n_tokens)
        found = compare(model, request, n_sampled=3, rounds=1 if quick else 15 if n_tokens < 100 else 7)
        memory = {} if quick else {"memory_mb": memory_over_plain(n_tokens)}
        cases[f"GPT-2-small shape, T = {n_tokens}"] = found | memory
    pocket = load_model("pocket")
    cases["pocket"] = compare(pocket, pocket_request(pocket, N_PROMPTS), n_sampled=48, rounds=3 if quick else 15)
    return {"cases": cases} | ({} if quick else {"top_10_overlap": overlap()})


def report(result: dict[str, Any]) -> str:
    cases = result["cases"]
    ways_of = {
        "(a) one hooked forward per head and prompt": "a",
        "(a) with last-position logits": "a_last",
        "(b) batched over the heads of a layer": "b",
        "(c) exact": "c",
        "(d) attribution": "d",
        "one plain forward of all prompts": "plain",
        "one plain forward, last-position logits": "plain_last",
        "limit of (c)": "limit",
    }
    times = table(
        [f"seconds for {N_PROMPTS} prompts, all heads", *cases],
        [[name, *(f"{case[key]:.3g}" for case in cases.values())] for name, key in ways_of.items()],
    )
    gpt2 = [ratios(case) for case in cases.values()]
    bars = table(
        ["", *cases, "bar at T = 64 / 256"],
        [[name, *(_number(each[name]) for each in gpt2), _bar(name)] for name in BARS],
    )
    effects = ", ".join(f"{case['effect']:.2g}" for case in cases.values())
    shared = ", ".join(f"{name} {n}" for name, n in result.get("top_10_overlap", {"not measured": ""}).items())
    return "\n".join(
        [
            "## Head effects (`python benches/effects.py --write`)\n",
            machine_line() + " (a) and (b) are extrapolated from some heads.\n",
            times,
            bars,
            f"Largest effects: {effects} nats. Heads that the ten strongest in bf16 and in float32 share on pocket: "
            f"{shared}.\n",
            result.get(
                "gpu",
                "GPU (Llama-2-7B shape, bf16, 25 prompts of 64 tokens, bar 1.0 s): not in this run, see *On one H200*; "
                "`--gpu` measures it where there is one.",
            ),
        ]
    )


def _number(value: float) -> str:
    return "—" if value != value else "0" if value == 0 else f"{value:.1e}" if value < 0.01 else f"{value:.3g}"


def _bar(name: str) -> str:
    sign = "≥" if name.startswith("a ÷") else "≤"
    return f"{sign} " + " / ".join(f"{bar:g}" for bar in BARS[name])


def on_gpu() -> str:
    """The Llama-2-7B shape in bf16 on CUDA: the whole map, and (a) extrapolated from 64 heads."""
    import transformers

    if not torch.cuda.is_available():
        sys.exit("effects.py: --gpu needs a CUDA device, and torch finds none.")
    torch.manual_seed(0)
    with torch.device("cuda"):
        config = transformers.LlamaConfig(torch_dtype="bfloat16")
        plain = transformers.AutoModelForCausalLM.from_config(config, torch_dtype=torch.bfloat16).eval()
    model = load_model(hf_model=plain, device="cuda")
    request = random_request(model, 25, 64)
    torch.cuda.reset_peak_memory_stats()  # making the model is not what is measured
    timed = seconds({"c": lambda: (ways.engine(model, request), torch.cuda.synchronize())}, 5)
    peak = torch.cuda.max_memory_allocated() / 2**30
    places = ways.spread(model, 64)
    slow = seconds({"a": lambda: (ways.per_head(model, _first(request), places), torch.cuda.synchronize())}, 1)
    whole = slow["a"] * 25 * 1024 / 64
    return (
        f"GPU: {torch.cuda.get_device_name()}, Llama-2-7B shape, bf16, 25 prompts of 64 tokens: {timed['c']:.2f} s for "
        f"all 1,024 heads (bar 1.0 s), (a) {whole:.0f} s extrapolated from 64 heads; peak {peak:.1f} GiB."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under a minute, rougher")
    parser.add_argument("--json", type=Path, help="also write the numbers there")
    parser.add_argument("--write", action="store_true", help="put the tables into benches/RESULTS.md")
    parser.add_argument("--gpu", action="store_true", help="also the row that needs a CUDA device")
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        return _peak(options.peak)
    result = run(options.quick) | ({"gpu": on_gpu()} if options.gpu else {})
    print(report(result))
    write_json(options.json, result)
    if options.write:
        write_section("effects", report(result))


if __name__ == "__main__":
    main()
