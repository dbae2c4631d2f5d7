"""By layer and by place: the next token after every layer, and where along the prompt patching matters."""

from collections.abc import Iterator
from typing import Any, cast

from ivlens.analysis.inside.lens import LensOptions, logit_lens
from ivlens.analysis.inside.places import PlaceOptions, patch_places
from ivlens.common.intervals import named_of, t_interval
from ivlens.effects.results import HeadEffects
from ivlens.forward.scoring import Score
from ivlens.prompts.corruptions import Corruption
from ivlens.show.figures.heads import unit_of
from ivlens.show.lab.chosen import Chosen
from ivlens.show.lab.state import LabState
from ivlens.steering.summary import Setting

N_PLACES_PROMPTS = 4


def by_layer(chosen: Chosen, state: LabState) -> Iterator[dict[str, Any]]:
    """The likeliest next tokens after every layer for the shown prompt, plain and patched, in each model."""
    yield {"models": [], "busy": "Reading the next token after every layer"}
    assert state.layer is not None and state.alpha is not None and state.site is not None
    at = Setting(state.layer, state.alpha, state.site)
    models = []
    for engine, vector in zip(chosen.engines, chosen.vectors(state), strict=True):
        answers = engine.answers(state)
        # most answers follow a space; a chat's template may end in one
        follow = [answers[0] if answers[0][:1].isspace() else f" {answers[0]}"] if answers else []
        prompt = engine.prompt(state, chosen.seed(state))
        own = None if vector is None else vector.for_model(engine.model, engine.identity)
        lens = logit_lens(
            engine.model, prompt, own, at=None if own is None else at, options=LensOptions(k=3, follow=follow)
        )
        layers = [
            {
                "layer": layer,
                "runs": [
                    {
                        "tokens": list(lens.tokens[i][0][layer]),
                        "probs": [round(p, 5) for p in lens.probs[i, 0, layer].tolist()],
                        "answer": float(lens.followed_probs[i, 0, layer, 0]) if follow else None,
                        "kl": float(lens.kl[i, 0, layer]),
                    }
                    for i in range(len(lens.runs))
                ],
            }
            for layer in range(lens.probs.shape[2])
        ]
        models.append(
            {
                "name": engine.facts()["name"],
                "runs": list(lens.runs),
                "layers": layers,
                "answer": answers[0].strip() if answers else None,
                "added": None if own is None else state.layer,
            }
        )
    yield {"models": models, "done": True}


def by_place(chosen: Chosen, state: LabState) -> Iterator[dict[str, Any]]:
    """How much of the answer's score comes back, place by place: one layer's residual stream, and the card's head."""
    engine = chosen.engines[0]
    effects, task = engine.effects(state), engine.tasks[state.task]
    head = state.head or effects.top_heads(1)[0]
    n_layers = engine.identity.n_layers
    # early and late: how what tells the task moves toward the end of the prompt
    layers = sorted({n_layers // 3, (2 * n_layers) // 3})
    yield {"targets": [], "busy": f"Patching {len(layers)} layers and one head at every place"}
    found = patch_places(
        engine.model,
        task,
        layers=layers,
        heads=[head],
        recipe=effects.recipe,
        n_prompts=N_PLACES_PROMPTS,
        options=PlaceOptions(cast(Corruption, effects.settings["corruption"]), cast(Score, effects.settings["score"])),
    )
    taken = float((found.clean_scores - found.base_scores).mean())
    targets = [
        {
            "name": f"residual stream after layer {name.split()[1]}" if name.startswith("resid") else f"head {name}",
            "effects": [
                list(t_interval(found.effects[:, number, at].double().numpy())) for at in range(len(found.places))
            ],
        }
        for number, name in enumerate(found.targets)
    ]
    yield {
        "targets": targets,
        "places": list(found.places),
        "taken": taken,
        "unit": unit_of(effects),
        "n_prompts": len(found.effects),
        "interval": named_of(len(found.effects), "t"),
        "told": _told(effects),
        "done": True,
    }


def _told(effects: HeadEffects) -> str:
    """How the prompts are made, in words."""
    return f"{effects.corruptions[0]} prompts, {effects.recipe}"
