"""Makes the further rows that were asked for."""

from collections.abc import Callable, Mapping
from functools import partial

from ivlens.steering.distributed import distributed
from ivlens.steering.more_rows import Asked
from ivlens.steering.necessity import necessity
from ivlens.steering.other_templates import other_templates
from ivlens.steering.other_vectors import by_k, mean_difference, trained
from ivlens.steering.side_effects import SideEffects
from ivlens.steering.summary import Judged, Keep, made_now

MAKERS: Mapping[str, Callable[[Asked], list[Judged]]] = {
    "necessity": necessity,
    "by_k": by_k,
    "mean_difference": mean_difference,
    "distributed": distributed,
    "trained": trained,
    "other_templates": other_templates,
}


def with_more_rows(
    asked: Asked, judged: list[Judged], keep: Keep = made_now, aside: SideEffects | None = None
) -> list[Judged]:
    """These rows and the further ones that were asked for, in the order of `MAKERS`.

    Args:
        keep: Makes each part, or has it already.
        aside: What gives rows of vectors their side effects; None: they have none.
    """
    found = [*judged]
    for name, make in MAKERS.items():
        if name in asked.more.rows:
            found += keep(name, partial(_made, make, asked, aside))
    return found


def _made(make: Callable[[Asked], list[Judged]], asked: Asked, aside: SideEffects | None) -> list[Judged]:
    return make(asked) if aside is None else aside.of(make(asked))
