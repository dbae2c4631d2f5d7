"""What the page shows beside the completions: each view is filled by a function of its own."""

from collections.abc import Callable, Iterator
from typing import Any

from ivlens.show.lab.card import head_card
from ivlens.show.lab.chosen import Chosen
from ivlens.show.lab.state import LabState

_FILL: dict[str, Callable[[Chosen, LabState], Iterator[dict[str, Any]]]] = {"head": head_card}


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
