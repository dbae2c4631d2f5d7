"""The card of one head: where it looks, what it does to the answer, what it writes, on which inputs it matters."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ivlens.analysis.attention.looking import last_rows
from ivlens.common.intervals import t_interval
from ivlens.effects.engines import causal_indirect_effect
from ivlens.effects.plan import Plan
from ivlens.effects.results import HeadEffects
from ivlens.models.boot import TransformerBridge
from ivlens.prompts.parts import Piece, joined
from ivlens.prompts.segments import piece_segments
from ivlens.prompts.single import prompt_pieces
from ivlens.prompts.tokens import Encoder, token_text
from ivlens.show.figures.heads import unit_of
from ivlens.show.lab.chosen import Chosen
from ivlens.show.lab.engine import Engine
from ivlens.show.lab.maps import whole_map
from ivlens.show.lab.state import Head, LabState
from ivlens.vectors.decode import top_tokens
from ivlens.vectors.heads import head_writes

N_INPUTS = 5  # inputs of largest and of smallest effect
N_TOKENS = 10  # decoded tokens
_MOST_TOKENS = 1_500  # tokens of a prompt that are shown as shaded text: the last ones


def head_card(chosen: Chosen, state: LabState) -> Iterator[dict[str, Any]]:
    """The card of the state's head in each model; first what is known, then what takes passes of the model."""
    engine = chosen.engines[0]
    head = state.head or engine.effects(state).top_heads(1)[0]
    label = f"L{head[0]}H{head[1]}"
    cards = [_known(chosen, each, state, head) for each in chosen.engines]
    yield {"head": list(head), "cards": cards, "busy": f"Looking where {label} looks"}
    for card, each in zip(cards, chosen.engines, strict=True):
        card["attention"] = _attention(chosen, each, state, head)
        card["here"] = _here(each, state, head)
    yield {"head": list(head), "cards": cards, "done": True}


def _known(chosen: Chosen, engine: Engine, state: LabState, head: Head) -> dict[str, Any]:
    """What follows from the effects and the weights: the effect on the task, and what the head writes."""
    effects, (layer, number) = engine.effects(state), head
    vector = chosen.vectors(state)[chosen.engines.index(engine)]
    own = effects.cie[:, layer, number]
    shown = whole_map(effects)
    ranks = effects.aie.nan_to_num(float("-inf")).flatten().argsort(descending=True, stable=True).tolist()
    return {
        "name": engine.facts()["name"],
        "unit": unit_of(effects),
        "corruption": effects.corruptions[0],
        "rank": ranks.index(layer * effects.aie.shape[1] + number) + 1,
        "n_heads": len(ranks),
        "n_prompts": len(own),
        "effect": _numbers(effects.aie[layer, number], shown.low[layer, number], shown.high[layer, number]),
        "interval": shown.kind,
        "alone": _numbers(*t_interval(own.double().numpy())),
        "most": _inputs(effects, own, largest=True),
        "least": _inputs(effects, own, largest=False),
        **_write(engine, effects, head, vector),
    }


def _write(engine: Engine, effects: HeadEffects, head: Head, vector: Any) -> dict[str, Any]:
    """The head's mean write, decoded, and its cosine with the vector; an error in words where it is not defined."""
    try:
        write = head_writes(engine.model, effects.mean_z, effects.write_scale)[head]
    except ValueError as error:
        return {"tokens": [], "against": [], "norm": None, "cosine": None, "write_error": str(error)}
    length = float(write.norm())
    cosine = None
    if vector is not None and length and vector.norm and len(vector.theta) == len(write):
        cosine = float(write @ vector.theta) / (length * vector.norm)
    return {
        "tokens": top_tokens(write, engine.model, N_TOKENS),
        "against": top_tokens(-write, engine.model, N_TOKENS),
        "norm": length,
        "cosine": cosine,
        "write_error": "",
    }


def _attention(chosen: Chosen, engine: Engine, state: LabState, head: Head) -> list[dict[str, Any]]:
    """Where the head looks from the last token: over the shown prompt, and over the prompt that effects are of."""
    recipe, task = engine.recipe(state), engine.tasks[state.task]
    measured = (engine.model.tokenizer, task, state.text, recipe.resolved(task))
    found = []
    for name, make in (
        ("shown", lambda: engine.pieces(state, chosen.seed(state))),
        ("measured", lambda: prompt_pieces(*measured)),
    ):
        try:
            pieces = make()
        except ValueError as error:  # a chat template that hides where the parts stand
            found.append({"name": name, "tokens": [], "shares": [], "error": str(error)})
            continue
        if found and found[0].get("text") == joined(pieces):
            continue  # the two prompts are one
        found.append({"name": name, **_looked(engine.model, pieces, head)})
    return [{key: value for key, value in each.items() if key != "text"} for each in found]


def _looked(model: TransformerBridge, pieces: Sequence[Piece], head: Head) -> dict[str, Any]:
    """The tokens of a prompt with the head's weights from the last token, and its share on each part of the prompt."""
    text = joined(list(pieces))
    ids = Encoder(model.tokenizer).ids(text)
    segments = piece_segments(model.tokenizer, list(pieces))
    tokens = torch.tensor([ids])
    ((_, weights),) = last_rows(model, tokens, torch.ones_like(tokens), (head,), 1)
    row = weights[0].tolist()
    shares: dict[str, float] = {}
    for segment, weight in zip(segments, row, strict=True):
        shares[segment] = shares.get(segment, 0.0) + weight
    listed = [
        [token_text(model.tokenizer, token), round(weight, 4), segment]
        for token, weight, segment in zip(ids, row, segments, strict=True)
    ]
    sink = max(0.0, 1 - sum(row))
    return {
        "text": text,
        "tokens": listed[-_MOST_TOKENS:],
        "left_out": max(0, len(listed) - _MOST_TOKENS),
        "shares": [
            [name, round(share, 4)] for name, share in {**shares, **({"sink": sink} if sink > 0.02 else {})}.items()
        ],
    }


def _here(engine: Engine, state: LabState, head: Head) -> dict[str, Any]:
    """The head's effect on the state's input, in the prompt that effects are measured on; why not, where there is none.

    The mean that is patched in is that of the task's effects.
    """
    effects, task = engine.effects(state), engine.tasks[state.task]
    layer, number = head
    if state.text in effects.inputs:
        return {"value": float(effects.cie[effects.inputs.index(state.text), layer, number]), "among": True}
    example = task.find(state.text) or task.find(state.text.strip())
    if example is None:
        return {"value": None, "why": "the task does not list this input, so its answer is not known"}
    plan = Plan.of(task, effects.recipe, str(effects.settings["corruption"]), None)
    score = str(effects.settings["score"])
    try:
        batch = plan.pairs(engine.model, [example], score).corrupted
        if batch.corruptions[0] != effects.corruptions[0]:
            raise ValueError(f"its prompt cannot be corrupted as the others were ({effects.corruptions[0]})")
        found = causal_indirect_effect(
            engine.model,
            batch.tokens,
            batch.attention_mask,
            batch.answer_tokens,
            effects.mean_z,
            foil_tokens=batch.foil_tokens if score == "logit_diff" else None,
            mode=str(effects.settings["mode"]),
            layers=[layer],
            heads=[number],
            score=score,
        )
    except ValueError as error:
        return {"value": None, "why": str(error)}
    return {"value": float(found[0, layer, number]), "among": False}


def _inputs(effects: HeadEffects, own: torch.Tensor, *, largest: bool) -> list[list[Any]]:
    """The inputs on which the head's effect is largest, or smallest."""
    order = own.nan_to_num(0).argsort(descending=largest, stable=True)[:N_INPUTS].tolist()
    return [[effects.inputs[row], float(own[row])] for row in order]


def _numbers(*values: Any) -> list[float | None]:
    """Plain numbers, None for NaN, which JSON does not have."""
    return [float(f"{value:.6g}") if (value := float(each)) == value else None for each in values]
