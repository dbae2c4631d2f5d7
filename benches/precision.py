"""Effects in half precision against float32: how far single ones are off, and which heads come out on top.

    python benches/precision.py --model smollm2 --tasks third_person,present_past --dtypes bfloat16,float16

Prints a row for every task and dtype: the root mean square of the effects in float32 (of one head on one prompt, in
nats), that of their errors in half precision with the unembedding in that precision and in float32, what ivlens itself
estimates of it (`rounding_noise`), and how many of the ten strongest heads are those of float32.
"""

import argparse
from contextlib import nullcontext
from unittest.mock import patch

import torch
from common import machine

import ivlens
from ivlens.effects import attribution, exact
from ivlens.forward import inputs, prefix


def measured(model, task, args) -> ivlens.HeadEffects:
    """Effects on the log-probability of the answer, on the same prompts in every precision."""
    return ivlens.head_effects(
        model,
        task,
        recipe=ivlens.PromptRecipe(n_shots=args.n_shots, instruction=None),
        score="logprob",
        n_prompts=args.n_prompts,
        options=ivlens.EffectOptions(n_mean_prompts=32, n_check_prompts=0),
    )


def strongest(effects: ivlens.HeadEffects) -> set[tuple[int, int]]:
    """The ten heads with the largest mean effect."""
    return set(effects.top_heads(10))


def in_own_precision():
    """The engines with the unembedding in the model's own precision."""
    modules = (exact, inputs, prefix, attribution)
    return [patch.object(module, "full_logits", lambda model: nullcontext()) for module in modules]


def _rms(values: torch.Tensor) -> float:
    return float(values.double().square().mean().sqrt())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--tasks", default="third_person,present_past")
    parser.add_argument("--dtypes", default="bfloat16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--n-prompts", type=int, default=16)
    parser.add_argument("--n-shots", type=int, default=10)
    args = parser.parse_args()
    print(machine())
    print("| task | dtype | rms effect | rms error, own unembedding | in float32 | estimated | strongest ten |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    tasks = [ivlens.load_task(name) for name in args.tasks.split(",")]
    full = {}
    for dtype in ("float32", *args.dtypes.split(",")):
        model = ivlens.load_model(args.model, dtype=dtype, device=args.device)
        for task in tasks:
            found = measured(model, task, args)
            if dtype == "float32":
                full[task.name] = found
                continue
            patches = in_own_precision()
            for each in patches:
                each.start()
            coarse = measured(model, task, args)
            for each in patches:
                each.stop()
            reference = full[task.name]
            rms = [_rms(each.cie - reference.cie) for each in (coarse, found)]
            same = [len(strongest(each) & strongest(reference)) for each in (coarse, found)]
            print(
                f"| {task.name} | {dtype} | {_rms(reference.cie):.3f} | {rms[0]:.3f} | "
                f"{rms[1]:.3f} | {found.settings['rounding_noise']:.3f} | {same[0]}, {same[1]} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
