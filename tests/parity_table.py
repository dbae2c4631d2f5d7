"""Writes the table of the parity matrix: which engine every family takes, and how far it is from the reference."""

import sys
from pathlib import Path

import torch
from families import CONFIGS, REFUSED, hf_model
from test_parity import LARGEST_ERROR, LENGTHS, SMALLEST_EFFECT, request_on

from ivlens.effects.engines import METHODS, run_engine
from ivlens.models import load_model

INTRODUCTION = f"""# Which engine every family of models takes

An *engine* is a way to compute the causal effects of all heads. There are three, and they give the same numbers:
`exact` (the fast one, asked for by `method="exact"`, the default), `cached`, and `reference` (one hooked forward pass
for every head). `exact` needs blocks that accept copies of the last token. If a model's blocks do not, `cached`
takes over, and if that does not work either, `reference`. One log line says so, and `HeadEffects.method` names the
engine that ran.

`make families` makes this table from tiny random models (three layers, four heads; windows of six tokens where a family
has them), in float32, on padded prompts of {", ".join(map(str, LENGTHS))} tokens with answers of three tokens. *Error*
is the largest difference from the effects of `reference`, and *effect* the largest effect, both in nats of the answer's
log-probability. `make parity` requires errors of at most {LARGEST_ERROR:g}, and an effect of at least
{SMALLEST_EFFECT:g}.

| family | transformers class | engine | error | effect |
|---|---|---|---|---|
"""

REFUSALS = """
## What is refused

For these models, also tiny and random, `load_model` raises an error:

| family | transformers class | reason |
|---|---|---|
"""

CHECKED = """
## What is compared at load

Before a model is wrapped, ivlens runs it on two short prompts of unequal length, padded on the left, with their mask
and positions, and then on one more token from its cache, in the dtype and on the device that will be used. The wrapped
model gets the same inputs. If the logits differ by more than rounding, or if a call fails that works in transformers,
the model is refused. Two known differences are repaired instead: TransformerLens lets the tokens of GPT-1 see later
tokens, and it fails on OLMo's rotary tables in half precision.

Two more checks are made when a model is first used. First, many passes can share the computation of a common prefix.
This is compared, on two prompts, with passes over the whole text; a prefix is not shared if the model's cache holds
more than keys and values. Second, every block is run once with all its head outputs set to 0. The change in the block's
output must be a fixed multiple of what the heads' projection gave: 1 in nearly all families, `attention_out_multiplier`
in Falcon-H1. If it is no fixed multiple, as in GPT-1, effects can be measured, but vectors are refused.
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
