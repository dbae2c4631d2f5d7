"""Writes the table of the parity matrix: which engine every family takes, and how far it is from the reference."""

import sys
from pathlib import Path

import torch
from families import CONFIGS, hf_model
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


def main(path: str) -> None:
    torch.set_num_threads(1)  # the last digits of the errors depend on it
    table = INTRODUCTION + "".join(row(family) for family in CONFIGS)
    Path(path).write_text(table, encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main(sys.argv[1])
