"""What the benchmarks share: models of a given shape, prompts, interleaved timing, and the file of results."""

import json
import platform
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers

from ivlens import load_model, load_task
from ivlens.common.memory import machine_memory
from ivlens.effects.reference import patched_logits
from ivlens.effects.request import EffectRequest, PatchOptions, make_request
from ivlens.forward.means import mean_head_outputs
from ivlens.prompts import build_prompts

RESULTS = Path(__file__).parent / "RESULTS.md"


def gpt2_small(n_layers: int = 12, n_ctx: int = 1024) -> Any:
    """A random model of GPT-2-small's shape: 12 x 12 heads, d_model 768, 50,257 tokens."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_layer=n_layers, n_positions=n_ctx, bos_token_id=0, eos_token_id=0)
    return load_model(hf_model=transformers.GPT2LMHeadModel(config).eval())


def random_request(model: Any, n_prompts: int, n_tokens: int, score: str = "logprob") -> EffectRequest:
    """Random prompts of one length, and means large enough to move logits by more than a nat."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(10, model.cfg.d_vocab, (n_prompts, n_tokens), generator=generator)
    answers = torch.randint(10, model.cfg.d_vocab, (n_prompts, 1), generator=generator)
    mean_z = 6 * torch.randn((model.cfg.n_layers, model.cfg.n_heads, model.cfg.d_head), generator=generator)
    device = next(model.parameters()).device
    mask = torch.ones_like(tokens)
    request = make_request(
        model, *(each.to(device) for each in (tokens, mask, answers, mean_z)), options=PatchOptions(score=score)
    )
    request.answers[:, 0] = _moved(model, request).argmax(-1)
    return request


def _moved(model: Any, request: EffectRequest) -> torch.Tensor:
    """How far patching L0H0 moves the log-probability of every token, `[batch, d_vocab]`."""
    everyone = torch.arange(len(request.tokens))
    nothing = replace(request, mode="add", mean_z=request.mean_z * 0)
    after, before = (patched_logits(model, each, everyone, 0, 0)[:, 0] for each in (request, nothing))
    return (after.float().log_softmax(-1) - before.float().log_softmax(-1)).abs()


def pocket_request(model: Any, n_prompts: int, task: str = "antonym") -> EffectRequest:
    """Real prompts: another task's instruction, and the means of the right one."""
    loaded = load_task(task)
    examples = loaded.split("fit")
    corrupted = build_prompts(model.tokenizer, loaded, examples[:n_prompts], corruption="counterfactual")
    clean = build_prompts(model.tokenizer, loaded, examples)
    mean_z = mean_head_outputs(model, clean.tokens, clean.attention_mask)
    return make_request(
        model,
        corrupted.tokens,
        corrupted.attention_mask,
        corrupted.answer_tokens,
        mean_z,
        options=PatchOptions(score="logprob"),
    )


def seconds(ways: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Seconds of each way, the best of some rounds in which they take turns.

    The best, and not the median: what slows a run down on a shared machine is not the way that is measured.
    """
    for way in ways.values():
        way()
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            taken[name].append(time.perf_counter() - start)
    return {name: min(times) for name, times in taken.items()}


def machine() -> dict[str, Any]:
    packages = ("torch", "transformers", "transformer-lens", "ivlens")
    return {
        "date": date.today().isoformat(),
        "cpu": _cpu(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(machine_memory() / 2**30, 1),
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }


def _cpu() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    names = re.findall(r"^model name\s*: (.*)$", text, re.MULTILINE)
    return names[0] if names else platform.machine()


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write_section(name: str, text: str) -> None:
    """Put one benchmark's part into RESULTS.md, in the place of its older one."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    part = f"{begin}\n{text.strip()}\n{end}\n"
    old = RESULTS.read_text() if RESULTS.exists() else "# Benchmark results\n"
    found = re.search(f"{re.escape(begin)}.*{re.escape(end)}\n", old, re.DOTALL)
    new = old.replace(found[0], part) if found else f"{old}\n{part}"
    RESULTS.write_text(new)


def machine_line() -> str:
    facts = machine()
    versions = ", ".join(f"{name} {facts[name]}" for name in ("torch", "transformers", "transformer-lens", "ivlens"))
    return (
        f"{facts['date']}, {facts['cpu']}, {facts['threads']} threads, {facts['memory_gib']} GiB; Python "
        f"{facts['python']}, {versions}."
    )


def write_json(path: Path | None, result: Any) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"machine": machine(), **result}, indent=2) + "\n")
