"""What guidance costs a training step: LoRA alone, with each part of guidance, and as the reference codes it.

    python benches/overhead.py [--quick] [--json PATH] [--write] [--gpu]

The steps of all trainings take turns, so that they share the machine's moods; the best of all rounds counts. The
teacher is asked once per example before training; the reference asks a frozen model in every step: with the vector for
KL, and without it for the heads, for whole distributions. All steps lie in the first quarter of the schedule, where the
student carries the vector.
"""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from common import gpt2_small, machine_line, seconds, table, write_json, write_section

from ivlens import load_model, load_task
from ivlens.tuning import IVKL, RECIPES, Guidance, HeadConsistency, Learner, Progressive, TuneOptions, iv_guidance
from ivlens.tuning.loop import Trainer
from ivlens.tuning.terms import Rehearsal
from ivlens.tuning.terms.rehearsal_prompts import instruction_rehearsal
from ivlens.tuning.terms.term import Targets
from ivlens.tuning.training.data import TrainingSet, training_set

BAR = 1.25  # of a guided step ÷ a plain one, for the parts of the paper
PAPER = ("progressive", "kl", "heads", "iv")
EPOCHS = (1, 3, 10)
NO_GPU = (
    "GPU (Llama-2-7B shape, bf16, LoRA r = 8, batch 8 × 256): not in this run, see *On one H200*; `--gpu` measures it."
)


@dataclass(frozen=True)
class Case:
    """A model, its training examples, and the guidance with all three parts that the single ones are taken from."""

    model: Any
    data: TrainingSet
    whole: Guidance
    rehearsal: Rehearsal
    batch_size: int
    n_samples: int  # in an epoch

    def guidance(self) -> dict[str, Guidance | None]:
        """By the name of the way."""
        alone = {term.name: replace(self.whole, terms=(term,)) for term in self.whole.terms}
        return {"plain": None, **alone, "iv": self.whole, "instructions": Guidance((self.rehearsal,))}


class EveryStep(Trainer):
    """The reference way: the frozen model is asked about the examples of each step, when the step is made."""

    def _backward(self, index: Any, step: int, known: Any, totals: Any) -> Any:
        rows, all_of_them = self.data.rows(index), torch.arange(len(index), device=index.device)
        now = asked_of_frozen(self, rows)
        return super()._backward(index, step, [one and _Fixed(one, all_of_them) for one in now], totals)


def asked_of_frozen(trainer: Trainer, rows: TrainingSet) -> list[Any]:
    """What every term asks the model before the task about these examples."""
    model: Any = trainer.model
    with model.disable_adapter():
        return [term.ask(replace(at, own=rows)) for term, at in trainer.active()]


@dataclass(frozen=True)
class _Fixed:
    """Targets of the examples at hand, whatever numbers they have."""

    targets: Targets
    everyone: torch.Tensor

    def rows(self, index: torch.Tensor) -> Any:
        return self.targets.rows(self.everyone)


def pocket() -> Case:
    """Real prompts of one of the tasks that the built-in model has not seen."""
    model, task = load_model("pocket"), load_task("middle_of_three")
    earlier = [load_task(name) for name in ("antonym", "english_french", "capitalize")]
    examples = list(task.split("fit"))
    data = training_set(model, task, examples, n_samples=400)
    whole = iv_guidance(model, task, RECIPES["iv"], earlier=earlier)
    return Case(model, data, whole, instruction_rehearsal(model, task, examples, earlier), 32, 400)


def random_case(model: Any, *, n: int, n_tokens: int, top_n: int | None, seed: int = 1) -> Case:
    """Random prompts with answers of two tokens, a random vector, ten random heads; 1,000 samples in an epoch."""
    generator, device = torch.Generator().manual_seed(seed), next(model.parameters()).device
    tokens = torch.randint(10, model.cfg.d_vocab, (2 * n, n_tokens), generator=generator).to(device)
    data = TrainingSet(tokens[:n, :-2], torch.ones_like(tokens[:n, :-2]), tokens[:n, -2:])
    asked = TrainingSet(tokens[n:, :-2], torch.ones_like(tokens[n:, :-2]), tokens[n:, -2:-1])
    places = torch.randperm(model.cfg.n_layers * model.cfg.n_heads, generator=generator)[:10].tolist()
    theta = torch.randn(model.cfg.d_model, generator=generator).to(device)
    whole = Guidance(
        (
            Progressive(sign=-1),
            IVKL(top_n=top_n),
            HeadConsistency(tuple(sorted(divmod(place, model.cfg.n_heads) for place in places)), 1.0),
        ),
        theta=theta,
    )
    return Case(model, data, whole, Rehearsal(asked, None, per_step=8), 8, 1000)


class Steps:
    """A training that takes one step whenever it is called; its teachers have been asked, except in the first way."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.done = trainer, 0
        self.trained = [weight for weight in trainer.model.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=trainer.options.lr)
        asks_later = isinstance(trainer, EveryStep)
        self.known = [None] * len(trainer.terms) if asks_later else trainer.ask_frozen()

    def __call__(self) -> None:
        self.trainer.model.train()
        with torch.enable_grad():
            self.trainer._step(self.done, self.optimizer, self.trained, self.known)
        self.done += 1
        _wait(self.trainer.data.tokens.device)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(case: Case, *, rounds: int, precision: str = "float32") -> dict[str, float]:
    """Seconds of a step of every way; of the teacher's pass, and the bytes that it leaves, for an example."""
    options = TuneOptions(steps=10_000, batch_size=case.batch_size, decay="constant", precision=precision)
    learner = Learner(case.model, "lora")  # one for all: a step costs the same wherever the weights are
    ways = {name: Steps(learner.trainer(case.data, options, guide)) for name, guide in case.guidance().items()}
    whole = [replace(term, top_n=None) if isinstance(term, IVKL) else term for term in case.whole.terms]
    every_token = replace(case.whole, terms=tuple(whole))
    ways["reference"] = Steps(EveryStep(**vars(learner.trainer(case.data, options, every_token))))
    found = {f"step {name}": taken for name, taken in seconds(ways, rounds).items()}
    few = case.data.rows(torch.arange(min(64, len(case.data)), device=case.data.tokens.device))

    whole_trainer = learner.trainer(few, options, case.whole)

    def ask() -> list[Any]:
        known = asked_of_frozen(whole_trainer, few)
        _wait(few.tokens.device)
        return known

    found["teacher"] = seconds({"teacher": ask}, max(2, rounds // 5))["teacher"] / len(few)
    n_bytes = sum(one.n_bytes for one in ask() if one is not None)
    about = {"bytes": n_bytes / len(few), "n_samples": case.n_samples, "batch_size": case.batch_size}
    return found | about


def totals(found: Mapping[str, float]) -> dict[str, float]:
    """Guided ÷ plain over so many epochs, the teacher's pass over all examples included, and the reference ÷ plain."""
    ratios = {}
    for epochs in EPOCHS:
        n_steps = epochs * found["n_samples"] / found["batch_size"]
        guided = found["n_samples"] * found["teacher"] + n_steps * found["step iv"]
        ratios[f"{epochs} epoch{'s' if epochs > 1 else ''}"] = guided / (n_steps * found["step plain"])
    return ratios | {"any number, as the reference": found["step reference"] / found["step plain"]}


def run(quick: bool) -> dict[str, Any]:
    rounds = 5 if quick else 40
    gpt2 = random_case(gpt2_small(), n=64, n_tokens=64, top_n=IVKL().top_n)
    return {
        "cases": {
            "pocket": measure(pocket(), rounds=rounds),
            "GPT-2-small shape": measure(gpt2, rounds=max(3, rounds // 3)),
        }
    }


NAMES = {
    "plain": "plain LoRA",
    "progressive": "+ progressive intervention",
    "kl": "+ IV-KL",
    "heads": "+ head consistency",
    "iv": "+ all three (`iv`)",
    "instructions": "+ rehearsal of instructions, a second batch (`instructions`)",
    "reference": "all three, teacher asked in every step",
}


def report(result: dict[str, Any]) -> str:
    cases = result["cases"]
    ways = [
        [
            NAMES[name],
            *(f"{1e3 * case[f'step {name}']:.3g} ({_ratio(case, name):.2f})" for case in cases.values()),
            f"≤ {BAR}" if name in PAPER else "",
        ]
        for name in NAMES
    ]
    sums = {name: totals(case) for name, case in cases.items()}
    rows = [[name, *(f"{each[name]:.2f}" for each in sums.values())] for name in next(iter(sums.values()))]
    asked = "; ".join(
        f"{name}: {1e3 * case['teacher']:.2g} ms and {case['bytes'] / 1e3:.1f} kB an example "
        f"({case['n_samples'] * case['teacher']:.1f} s and {case['n_samples'] * case['bytes'] / 1e6:.0f} MB for "
        f"{case['n_samples']:.0f})"
        for name, case in cases.items()
    )
    return "\n".join(
        [
            "## Overhead of guidance (`python benches/overhead.py --write`)\n",
            f"{machine_line()} Pocket: real prompts, batches of 32. GPT-2-small shape: random weights, prompts of 62 "
            "tokens with answers of two, batches of 8, 4,096 tokens of the teacher kept. In brackets: ÷ plain.\n",
            table(["a training step, ms", *cases, "bar"], ways),
            f"The teacher, asked once before training for all three parts. {asked}.\n",
            table(["a whole training, guided ÷ plain", *cases], rows),
            "In one epoch each example is asked about once either way; later epochs ask the cached teacher nothing.\n",
            result.get("gpu", NO_GPU),
        ]
    )


def _ratio(case: Mapping[str, float], name: str) -> float:
    return case[f"step {name}"] / case["step plain"]


def on_gpu(config: Any = None, device: str = "cuda", n_tokens: int = 256) -> str:
    """The Llama-2-7B shape in bf16 on CUDA, random weights; what was not measured where there is no such device."""
    if device == "cuda" and not torch.cuda.is_available():
        return NO_GPU.replace("`--gpu` measures it", "asked for with `--gpu`, but torch finds no CUDA device here")
    torch.manual_seed(0)
    with torch.device(device):
        config = config or transformers.LlamaConfig()
        hf = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    case = random_case(load_model(hf_model=hf, device=device), n=16, n_tokens=n_tokens, top_n=IVKL().top_n)
    found = measure(case, rounds=10, precision="bfloat16")
    steps = ", ".join(f"{name} {found[f'step {name}']:.3g} s ({_ratio(found, name):.2f})" for name in NAMES)
    where = torch.cuda.get_device_name() if device == "cuda" else device
    return (
        f"GPU: {where}, Llama-2-7B shape, bf16, LoRA r = 8, batch 8 × {n_tokens}, a step (÷ plain, bar {BAR} for the "
        f"parts of the paper): {steps}; teacher {1e3 * found['teacher']:.2g} ms and {found['bytes'] / 1e3:.0f} kB an "
        f"example."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a minute, rougher")
    parser.add_argument("--json", type=Path, help="also write the numbers there")
    parser.add_argument("--write", action="store_true", help="put the tables into benches/RESULTS.md")
    parser.add_argument("--gpu", action="store_true", help="also the row that needs a CUDA device")
    options = parser.parse_args()
    result = run(options.quick) | ({"gpu": on_gpu()} if options.gpu else {})
    print(report(result))
    write_json(options.json, result)
    if options.write:
        write_section("overhead", report(result))


if __name__ == "__main__":
    main()
