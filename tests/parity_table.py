"""Writes the table of the parity matrix: which engine every family takes, and how far it is from the reference."""

import sys
from pathlib import Path

import torch
from families import CONFIGS, REFUSED, hf_model
from test_parity import LARGEST_ERROR, LENGTHS, SMALLEST_EFFECT, request_on

from ivlens.effects.engines import METHODS, run_engine
from ivlens.models import load_model

INTRODUCTION = f"""# Which engine every family of models takes

`method="exact"` asks for the engine of `ivlens/effects/exact.py`. A family whose blocks cannot take the mask that it
needs goes on with `cached`, and one that cannot do that either with `reference`; one log line says so, and
`HeadEffects.method` which one ran. The numbers are the same on all of them.

This table is made by `make families`, from tiny random models (three layers, four heads; windows of six tokens where a
family has them), in float32, on padded prompts of {", ".join(map(str, LENGTHS))} tokens with answers of three.
*Error* is the largest difference from one hooked forward pass for every head, in nats of the answer's log-probability;
*effect* is the largest effect there is. `make parity` requires errors of at most {LARGEST_ERROR:g} beside effects of at
least {SMALLEST_EFFECT:g}.

| family | transformers class | engine | error | effect |
|---|---|---|---|---|
"""

REFUSALS = """
## What is refused

`load_model` raises an error for these, made and asked in the same way:

| family | transformers class | reason |
|---|---|---|
"""

CHECKED = """
## What is compared at load

Before a model is wrapped it is asked two short prompts of unequal length, padded on the left, with their mask and
positions, and then one token more from its cache: in the dtype and on the device that will be used. The wrapped model
is asked the same as ivlens asks it. Logits that differ by more than rounding, or a call that fails where transformers
does not, mean that the model is refused. Two differences are put right: TransformerLens lets GPT-1's tokens see what
follows them, and fails on OLMo's rotary tables in half precision.

Two more checks come with the first use. A prefix that many passes share is tried on two prompts beside a pass over
everything, and is not shared where the cache holds more than keys and values. And every block is run once more with
all heads at 0: what its output loses must be a fixed multiple of what the heads' projection gave, 1 in nearly all
families and `attention_out_multiplier` in Falcon-H1. Where it is none, as in GPT-1, effects are measured and vectors
are refused.
"""


def row(family: str) -> str:
    plain = hf_model(family)
    model = load_model(hf_model=plain)
    request = request_on(model)
    want = METHODS["reference"](model, request).cie
    found = run_engine(model, request, "exact")
    error = (found.cie - want).abs().max()
    return (
        f"| {family} | `{type(plain).__name__}` | {found.method} | {error:.1e} nats | {want.abs().max():.1f} nats |\n"
    )


def refusal(family: str) -> str:
    plain = hf_model(family)
    kind = type(plain).__name__
    try:
        load_model(hf_model=plain)
    except ValueError as error:
        reason = str(error).removeprefix(f"model {kind!r}").removeprefix(":").strip()
        return f"| {family} | `{kind}` | {reason} |\n"
    raise AssertionError(f"{family} is listed as refused, and opens")


def main(path: str) -> None:
    torch.set_num_threads(1)  # the last digits of the errors depend on it
    table = INTRODUCTION + "".join(row(family) for family in CONFIGS)
    table += REFUSALS + "".join(refusal(family) for family in REFUSED) + CHECKED
    Path(path).write_text(table, encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main(sys.argv[1])
