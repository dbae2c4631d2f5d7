"""What the page shows beside the completions: each view is filled by a function of its own."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from ivlens.show.lab.card import head_card
from ivlens.show.lab.chosen import Chosen
from ivlens.show.lab.inside import by_layer, by_place
from ivlens.show.lab.many import many_inputs
from ivlens.show.lab.state import LabState

_FILL: dict[str, Callable[[Chosen, LabState], Iterator[dict[str, Any]]]] = {
    "head": head_card,
    "many": many_inputs,
    "layers": by_layer,
    "places": by_place,
}


# what is said while a view is being filled, where that takes long
VIEW_WORK = {"places": "Patching layers and a head, place by place"}
# the parts of a state on which a view does not depend
_FREE: dict[str, dict[str, Any]] = {
    "head": {},
    "many": {"text": "", "head": None},
    "layers": {"head": None},
    "places": {
        **{name: None for name in ("layer", "alpha", "site", "heads", "demos", "demo_seed")},
        **{"text": "", "instruction": "", "bare": False, "random": False, "max_new_tokens": 1},
    },
}


def view_key(chosen: Chosen, state: LabState) -> tuple[Any, ...]:
    """What a view depends on: two states with the same key fill it alike."""
    if state.view == "places" and state.head is None:
        state = replace(state, head=chosen.engines[0].effects(state).top_heads(1)[0])
    return replace(state, **_FREE.get(state.view, {})), chosen.loaded


def view_facts(chosen: Chosen, state: LabState) -> Iterator[dict[str, Any]]:
    """What the open view shows, as far as it has come; an entry `busy` says in words what is done next.

    Args:
        state: A state that is `resolved`.
    """
    fill = _FILL.get(state.view)
    if fill is None:  # the vector and the code are sent with the completions
        yield {"done": True}
        return
    try:
        yield from fill(chosen, state)
    except ValueError as error:  # a view that cannot be made leaves the rest of the page as it is
        yield {"error": str(error)}
