"""`pick`: open a clickable map of head effects in a notebook."""

import sys
from typing import TYPE_CHECKING

from ivlens.common.arguments import checked
from ivlens.effects.results import HeadEffects

if TYPE_CHECKING:
    from ivlens.show.picking.picked import Picked

_ELSE = "name the heads: InstructionVector.from_effects(effects, heads=[(layer, head), ...])."


@checked
def pick(effects: HeadEffects, k: int = 10) -> "Picked":
    """The map of all heads for the cell of a notebook, on which heads are clicked in and out of a choice.

    Args:
        effects: The effects of all heads.
        k: How many of the strongest heads are chosen at first; 0: none.

    Raises:
        ImportError: panel is not installed.
        RuntimeError: there is no notebook that could show it.
        ValueError: `k` is not between 0 and the number of measured heads.
    """
    heads = effects.top_heads(k) if k else []
    try:
        import panel as pn
    except ImportError:
        raise ImportError(f"pick needs panel, which is not installed; pip install 'ivlens[lab]', or {_ELSE}") from None
    if not pn.state.curdoc:
        if not _is_notebook():
            raise RuntimeError(
                f"pick shows a map to click on, and this is no notebook, expected one; run it in JupyterLab, or {_ELSE}"
            )
        # the page's scripts are written into the notebook, so that nothing is fetched from the network
        pn.extension(inline=True)
    from ivlens.show.picking.picked import Picked

    return Picked(effects, heads)


def _is_notebook() -> bool:
    """Whether this runs in the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None
