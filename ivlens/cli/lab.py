"""`ivlens lab`: the live page, on this machine."""

import os
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from ivlens.cli._options import ModelOptions, PromptOptions

if TYPE_CHECKING:
    from ivlens.models.boot import TransformerBridge
    from ivlens.show.lab.server import LabServer

EXIT_INTERRUPTED = 130
Flag = Annotated[bool, Parameter(negative="")]


@Parameter(name="*")
@dataclass(frozen=True)
class LabOptions:
    """What the page begins with; all of it can be changed there.

    Attributes:
        task: Name of a built-in task, or a path; once or several times, and the first is shown. By default those the
            model was trained on, or all built-in tasks.
        compare: A second checkpoint of the same shape, shown side by side.
        text: The input that is completed.
        layer: Where to add the vector; by default the best on the task's *select* inputs.
        alpha: Strength; by default the best on the task's *select* inputs.
        site: resid_post (after the block) or attn_out (what attention adds).
        n_prompts: Prompts that the effects of a task are measured on.
        n_search: *select* prompts on which layer, strength and site are searched for; 0: no search.
    """

    task: tuple[str, ...] = ()
    compare: str | None = None
    text: str = ""
    layer: int | None = None
    alpha: Annotated[float | None, Parameter(allow_leading_hyphen=True)] = None
    site: Literal["resid_post", "attn_out"] | None = None
    n_prompts: int = 32
    n_search: int = 24


def lab(
    *,
    what: LabOptions | None = None,
    where: ModelOptions | None = None,
    prompts: PromptOptions | None = None,
    port: int = 0,
    no_browser: Flag = False,
) -> None:
    """Open the lab: heads, vector and completions of a live model, on a page of this machine.

    Example: `ivlens lab`, or `ivlens lab --model ./my-checkpoint --task antonym --task ./my-task.json --no-browser`

    The page is for this machine only and opens with the printed address alone. From elsewhere:
    `ssh -L 5006:127.0.0.1:5006 machine`, there `ivlens lab --port 5006 --no-browser`, and the address opens here.
    Ctrl-C ends it. Demonstrations are for the prompts that heads are measured on; the input on the page stands alone
    until its box *Bare* is cleared.

    Args:
        port: Where to listen; 0: any free port.
        no_browser: Print the address only.
    """
    what, where = what or LabOptions(), where or ModelOptions()
    from ivlens.show.lab.opening import check_panel

    check_panel()
    server = _server(what, where, prompts or PromptOptions(), port)
    print(f"ivlens lab: {server.url}", flush=True)
    print("Ctrl-C ends it.", file=sys.stderr)
    with nullcontext() if no_browser else server.shown():
        has_ended = _has_ended(server)
    if not has_ended:  # a thread that computes would be cut off by Python's own end, which aborts the process
        print("\nivlens: interrupted", file=sys.stderr, flush=True)
        os._exit(EXIT_INTERRUPTED)
    raise KeyboardInterrupt  # nothing else ends it, and some event loops keep the signal to themselves


def _has_ended(server: "LabServer") -> bool:
    """Serve until Ctrl-C; whether all work stopped, for which a second Ctrl-C does not wait."""
    try:
        return server.run()
    except KeyboardInterrupt:
        return False


def _server(what: LabOptions, where: ModelOptions, prompts: PromptOptions, port: int) -> "LabServer":
    from ivlens.show.lab.engine import EngineOptions
    from ivlens.show.lab.opening import open_engines
    from ivlens.show.lab.server import open_server
    from ivlens.show.lab.state import Limits

    recipe = prompts.recipe()
    options = EngineOptions(what.n_prompts, what.n_search, recipe.seed)
    opened = open_engines(where.load(), what.task or None, _second(what, where), (), options)
    given = {name: value for name in ("layer", "alpha", "site") if (value := getattr(what, name)) is not None}
    first = opened.engines[0]
    recipe = prompts.chosen(first.model, [next(iter(first.tasks.values()))])
    # the vector's work is seen on the bare input: beside demonstrations there is nothing left to do
    state = opened.state(recipe, text=what.text, bare=bool(recipe.n_shots), **given)
    about = opened.engines[0].identity
    # a wrong layer is one line here, where the page would open with an error
    Limits((state.task,), about.n_layers, about.n_heads).changed(state, {"text": what.text, **given})
    return open_server(opened.engines, state, port=port)


def _second(what: LabOptions, where: ModelOptions) -> "TransformerBridge | None":
    if what.compare is None:
        return None
    return ModelOptions(what.compare, where.device, where.dtype).load()
