"""How well attribution ranks heads, against the exact effects: `docs/attribution.md`.

    python benches/attribution.py [--write]

On pocket, real tasks; on two random architectures with weights scaled up, random prompts.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
import transformers
from common import random_request, table
from scipy.stats import spearmanr

from ivlens import EffectOptions, head_effects, load_model, load_task
from ivlens.effects.engines import METHODS

PAGE = Path(__file__).parent.parent / "docs" / "attribution.md"
TASKS = ("antonym", "english_french", "first_letter", "capitalize", "synonym", "last_letter")
SCORES = ("prob", "logprob")

INTRODUCTION = """# When attribution is good enough

`method="attribution"` estimates the effects of all heads from one forward and one backward pass. The estimate for a
head is the gradient of the score with respect to the head's output, times the change that the patch would make (mean −
output). This is the first-order term of the effect: right for small changes, wrong where the score saturates. A
probability near 0 has almost no gradient, whatever a patch would do to it.

The table compares these estimates with the exact effects, both averaged over prompts. Its columns are the rank
correlation (Spearman) over all heads; how many of the ten strongest heads are the same by both; and the largest
estimate divided by the largest effect. `python benches/attribution.py --write` makes it.

"""

ADVICE = """
Use attribution for a quick look at a model, or to choose the layers to measure exactly, and with `score="logprob"` or
`"logit_diff"`. Do not report its estimates as effects: the exact engine costs little more (see `benches/RESULTS.md`).
"""


def agreement(estimate: torch.Tensor, effect: torch.Tensor) -> list[str]:
    """Of two `[n_layers, n_heads]` maps."""
    estimate, effect = estimate.flatten(), effect.flatten()
    top = [set(values.topk(10).indices.tolist()) for values in (estimate, effect)]
    scale = float(estimate.abs().max() / effect.abs().max())
    return [f"{spearmanr(estimate, effect).statistic:.2f}", str(len(top[0] & top[1])), f"{scale:.2g}"]


def pocket_rows() -> Iterator[list[str]]:
    model = load_model("pocket")
    for task in map(load_task, TASKS):
        for score in SCORES:
            aie = {
                method: head_effects(model, task, score=score, options=EffectOptions(method=method)).aie
                for method in ("attribution", "exact")
            }
            yield [f"pocket, {task.name}", score, *agreement(aie["attribution"], aie["exact"])]


def random_rows() -> Iterator[list[str]]:
    sizes = {"vocab_size": 1000, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 6}
    configs = {
        "random GPT-2 shape": transformers.GPT2Config(
            vocab_size=1000, n_embd=128, n_layer=6, n_head=8, bos_token_id=0, eos_token_id=0
        ),
        "random Llama shape": transformers.LlamaConfig(**sizes, num_attention_heads=8, num_key_value_heads=4),
    }
    for name, config in configs.items():
        torch.manual_seed(0)
        plain = transformers.AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            for parameter in plain.parameters():
                parameter.mul_(4.0 if parameter.ndim > 1 else 1.0)
        model = load_model(hf_model=plain)
        for score in SCORES:
            request = random_request(model, 16, 32, score=score)
            aie = {method: METHODS[method](model, request).cie.mean(0) for method in ("attribution", "exact")}
            yield [name, score, *agreement(aie["attribution"], aie["exact"])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write docs/attribution.md")
    options = parser.parse_args()
    head = ["model, task", "score", "rank correlation", "shared of top 10", "largest estimate ÷ effect"]
    page = INTRODUCTION + table(head, [*pocket_rows(), *random_rows()]) + ADVICE
    print(page)
    if options.write:
        PAGE.write_text(page)


if __name__ == "__main__":
    main()
