"""`ivlens lab`: serve the lab, a live page of heads, vector and completions, on this machine."""

import os
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from ivlens.cli._options import ColumnOptions, ModelOptions, PromptOptions

if TYPE_CHECKING:
    from ivlens.effects.results import HeadEffects
    from ivlens.models.boot import TransformerBridge
    from ivlens.show.lab.server import LabServer

EXIT_INTERRUPTED = 130
Flag = Annotated[bool, Parameter(negative="")]


@Parameter(name="*")
@dataclass(frozen=True)
class LabOptions(ColumnOptions):
    """What the page shows at first; all of it can be changed on the page.

    Attributes:
        task: Name of a built-in task, or a path; can be given several times, and the first one is shown. By default the
            tasks that the model was trained on, or all built-in tasks.
        compare: A second checkpoint of the same shape, shown beside the first.
        text: The input that is completed.
        layer: Layer where the vector is added; by default the best one on the task's *select* inputs.
        alpha: Strength of the vector; by default the best one on the task's *select* inputs.
        site: Place in that layer: resid_post (after the block) or attn_out (what attention adds).
        n_prompts: Number of prompts on which the effects of a task are measured.
        n_search: Number of *select* prompts on which layer, strength and site are searched for; 0: no search.
        score: The score whose gain is the effect of a head; by default prob, or logprob where answers share their first
            tokens.
        effects: A file of effects (`ivlens effects --out`), which are shown instead of being measured; can be given
            several times. The first one's form of prompt is taken, unless options name another.
    """

    task: Annotated[tuple[str, ...], Parameter(negative="")] = ()
    compare: str | None = None
    text: str = ""
    layer: int | None = None
    alpha: Annotated[float | None, Parameter(allow_leading_hyphen=True)] = None
    site: Literal["resid_post", "attn_out"] | None = None
    n_prompts: int = 32
    n_search: int = 24
    score: Literal["prob", "logprob", "logit_diff"] | None = None
    effects: Annotated[tuple[Path, ...], Parameter(negative="")] = ()


def lab(
    *,
    what: LabOptions | None = None,
    where: ModelOptions | None = None,
    prompts: PromptOptions | None = None,
    port: int = 0,
    no_browser: Flag = False,
) -> None:
    """Open the lab, a live page on which heads are clicked into a vector and completions are compared.

    Example: `ivlens lab`, or `ivlens lab --model ./my-checkpoint --task antonym --task ./my-task.json --no-browser`

    Only this machine can open the page, and only with the printed address. To use it from another machine: there run
    `ssh -L 5006:127.0.0.1:5006 machine` and, on `machine`, `ivlens lab --port 5006 --no-browser`; then open the printed
    address. Ctrl-C ends the lab. If prompts have demonstrations, heads are measured on these prompts; the input on
    the page has none until its box *Bare* is cleared.

    Args:
        port: Port to listen on; 0: any free port.
        no_browser: Print the address, and open no browser.
    """
    what, where = what or LabOptions(), where or ModelOptions()
    from ivlens.show.lab.opening import check_panel

    check_panel()  # before the model is loaded
    server = _server(what, where, prompts or PromptOptions(), port)
    print(f"ivlens lab: {server.url}", flush=True)
    print("Ctrl-C ends it.", file=sys.stderr)
    with nullcontext() if no_browser else server.shown():
        has_ended = _has_ended(server)
    if not has_ended:  # a thread is still computing: Python's usual end would cut it off, and abort the process
        print("\nivlens: interrupted", file=sys.stderr, flush=True)
        os._exit(EXIT_INTERRUPTED)
    raise KeyboardInterrupt  # only Ctrl-C ends the server, and some event loops swallow the exception


def _has_ended(server: "LabServer") -> bool:
    """Serve until Ctrl-C, and return whether all work has stopped; a second Ctrl-C does not wait for that."""
    try:
        return server.run()
    except KeyboardInterrupt:
        return False


def _server(what: LabOptions, where: ModelOptions, prompts: PromptOptions, port: int) -> "LabServer":
    from ivlens.models.fingerprint import is_built_in
    from ivlens.show.lab.kept import kept_results
    from ivlens.show.lab.limits import Limits
    from ivlens.show.lab.measures import EngineOptions
    from ivlens.show.lab.opening import open_engines
    from ivlens.show.lab.server import open_server

    given_effects = [_effects(path) for path in what.effects]
    named = tuple(dict.fromkeys(each.task for each in given_effects)) or None
    # before the model, which takes longer to open
    tasks = what.load_all(what.task) if what.task else what.load_if_given(None) or named
    model = where.load()
    recorded = given_effects[0].recipe if given_effects else None
    recipe = prompts.recipe(recorded)
    # the built-in model is asked as it was trained; for others the page looks for a form, after it has opened
    auto = prompts.is_open and not given_effects and not is_built_in(model)
    options = EngineOptions(what.n_prompts, what.n_search, recipe.seed, what.score, kept_results(), auto)
    opened = open_engines(model, tasks, _second(what, where), given_effects, options)
    given = {name: value for name in ("layer", "alpha", "site") if (value := getattr(what, name)) is not None}
    # bare: beside demonstrations the model answers without the vector, and its effect could not be seen
    state = opened.state(recipe, text=what.text, bare=bool(recipe.n_shots), **given)
    about = opened.engines[0].identity
    # a wrong layer is refused here in one line; otherwise the page would open with an error
    Limits((state.task,), about.n_layers, about.n_heads).changed(state, {"text": what.text, **given})
    return open_server(opened.engines, state, port=port)


def _effects(path: Path) -> "HeadEffects":
    """The effects in a file; the lab checks that they are of its model and tasks."""
    from ivlens.effects.results import HeadEffects

    return HeadEffects.load(path)


def _second(what: LabOptions, where: ModelOptions) -> "TransformerBridge | None":
    """The second checkpoint, on the device and in the dtype of the first; None where none is compared."""
    if what.compare is None:
        return None
    return ModelOptions(what.compare, where.device, where.dtype).load()
