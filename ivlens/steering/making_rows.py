"""Makes the further rows that were asked for."""

from collections.abc import Callable, Mapping

from ivlens.steering.distributed import distributed
from ivlens.steering.more_rows import Asked
from ivlens.steering.necessity import necessity
from ivlens.steering.other_templates import other_templates
from ivlens.steering.other_vectors import by_k, mean_difference, trained
from ivlens.steering.side_effects import side_effects
from ivlens.steering.summary import Judged

MAKERS: Mapping[str, Callable[[Asked], list[Judged]]] = {
    "necessity": necessity,
    "by_k": by_k,
    "mean_difference": mean_difference,
    "distributed": distributed,
    "trained": trained,
    "other_templates": other_templates,
}


def with_more_rows(asked: Asked, judged: list[Judged]) -> list[Judged]:
    """These rows and the further ones that were asked for, in the order of `MAKERS`."""
    found = [*judged]
    for name, make in MAKERS.items():
        if name in asked.more.rows:
            found += make(asked)
    return side_effects(asked, found) if "side_effects" in asked.more.rows else found
