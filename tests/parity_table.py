"""Writes the table of the parity matrix: which engine every family takes, and how far it is from the reference."""

import sys
from pathlib import Path

import torch
from families import CONFIGS, REFUSED, hf_model
from test_parity import LARGEST_ERROR, LENGTHS, SMALLEST_EFFECT, request_on

from ivlens.effects.engines import METHODS, run_engine
from ivlens.effects.request import PatchOptions, make_request
from ivlens.forward.writes import mixer_factors
from ivlens.models import load_model
from ivlens.models.attention import attention_layers, has_every_head, mixer_name
from ivlens.models.mixers import columns

# hybrids whose recurrent mixers have heads
MIXED = (
    "falcon_h1", "qwen3_next", "qwen3_5", "qwen3_5_moe", "olmo_hybrid", "nemotron_h", "bamba", "granite_hybrid",
    "granite_hybrid_dense", "zamba2",
)  # fmt: skip

INTRODUCTION = f"""# Which engine every family of models takes

An *engine* is a way to compute the causal effects of all heads. There are three, and they give the same numbers:
`exact` (the fast one, asked for by `method="exact"`, the default), `cached`, and `reference` (one hooked forward pass
for every head). `exact` needs blocks that accept copies of the last token. If a model's blocks do not, `cached`
takes over, and if that does not work either, `reference`. One log line says so, and `HeadEffects.method` names the
engine that ran.

Hybrid models have attention in some layers only. The others have no attention heads: their effects are NaN, and maps
are hatched there. Copies go through recurrent layers as well, each in steps from its own copy of the prompt's state.

`make families` makes this table from tiny random models (three layers, four heads; windows of six tokens where a family
has them), in float32, on padded prompts of {", ".join(map(str, LENGTHS))} tokens with answers of three tokens. *Error*
is the largest difference from the effects of `reference`, and *effect* the largest effect, both in nats of the answer's
log-probability. `make parity` requires errors of at most {LARGEST_ERROR:g}, and an effect of at least
{SMALLEST_EFFECT:g}.

| family | transformers class | layers with heads | engine | error | effect |
|---|---|---|---|---|---|
"""

MIXERS = """
## Heads of recurrent mixers

With `mixer="all"` the heads of recurrent mixers are measured too (Mamba-2, gated delta nets), in the same way: the
output of one head, before the mixer's output projection, is replaced at the last prompt token. *Scale* is what
multiplies the projection's output on its way into the stream, and is part of every vector. Mamba (Jamba) and short
convolutions (LFM2) work channel by channel: they have no heads.

| family | mixer | heads | engine | error | effect | scale |
|---|---|---|---|---|---|---|
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
more than keys, values and the states of recurrent layers, of which every pass gets copies. Second, every block is run
once with all its head outputs set to 0. The change in the block's output must be a fixed multiple of what the heads'
projection gave: 1 in nearly all families, `attention_out_multiplier` in Falcon-H1. If it is no fixed multiple, as in
GPT-1 and Zamba 2, effects can be measured, but vectors are refused.

Models that take images or sound as well are never wrapped as a whole. Of one that is in memory (`hf_model=`) the text
part is measured, if transformers has a language model of that part alone: Mistral 3, Gemma 3, Qwen3.5. Qwen3-VL has
none, but on text it is a Qwen 3, and is opened as one with the same weights. For others, such as Qwen2.5-VL, a class
for their text part in transformers would lift the refusal.

What would lift it for models of text: for Gemma 4, a bridge whose layers may have heads of several sizes. For
RecurrentGemma, a version of transformers that masks padding in its recurrence and keeps its state in the cache. Mamba-2
without any attention has mixers with heads, but ivlens numbers these behind attention's, and prompts, vectors and the
lab ask for attention first; a kind of model without attention would have to be added. Gemma 3n keeps several residual
streams, and there is no one place to add a vector.
"""


def row(family: str) -> str:
    plain = hf_model(family)
    model = load_model(hf_model=plain)
    request = request_on(model)
    want = METHODS["reference"](model, request).cie
    found = run_engine(model, request, "exact")
    known = ~want.isnan()
    error, want = (found.cie - want)[known].abs().max(), want[known]
    where = "all" if has_every_head(model) else ", ".join(map(str, attention_layers(model)))
    return (
        f"| {family} | `{type(plain).__name__}` | {where} | {found.method} | {error:.1e} nats "
        f"| {want.abs().max():.1f} nats |\n"
    )


def mixer_row(family: str) -> str:
    model = load_model(hf_model=hf_model(family))
    request, what = request_on(model), columns(model)
    mean_z = 6 * torch.randn(model.cfg.n_layers, what.n, what.width, generator=torch.Generator().manual_seed(3))
    given = request.tokens, request.attention_mask, request.answers, mean_z
    request = make_request(model, *given, options=PatchOptions(score="logprob"))
    want = run_engine(model, request, "reference").cie[:, :, what.n_attention :]
    found = run_engine(model, request, "exact")
    known = ~want.isnan()
    error = (found.cie[:, :, what.n_attention :] - want)[known].abs().max()
    mixer = mixer_name(model.blocks[what.layers[0]])
    scale = float(mixer_factors(model)[what.layers[0]])
    return (
        f"| {family} | `{mixer}` | {what.n_mixer} in {len(what.layers)} of 3 layers | {found.method} "
        f"| {error:.1e} nats | {want[known].abs().max():.1f} nats | {scale:.2g} |\n"
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
    table += MIXERS + "".join(mixer_row(family) for family in MIXED)
    table += REFUSALS + "".join(refusal(family) for family in REFUSED) + CHECKED
    Path(path).write_text(table, encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main(sys.argv[1])
