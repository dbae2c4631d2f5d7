"""The entry point of the `ivlens` command.

A command is one line of `COMMANDS` and one function in its own file. Its docstring is its help (with an example), its
annotated parameters are its options; what it returns is the exit status if it is an int, and is ignored otherwise.
Nothing of a command is imported before it is called, so that `ivlens --help` needs neither torch nor transformers.
"""

import gc
import re
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, NamedTuple

from cyclopts import App, CycloptsError, Parameter

from ivlens.cli._errors import EXIT_ERROR, ended_by
from ivlens.cli._output import telling
from ivlens.cli._streams import complain, quietly, ready_streams
from ivlens.cli._values import converted
from ivlens.common.version import __version__

if TYPE_CHECKING:
    from rich.console import Console


class Command(NamedTuple):
    """Where a command lives, "module:function" or "module:cyclopts App", and its line in `ivlens --help`."""

    target: str
    summary: str


COMMANDS = {
    "demo": Command("ivlens.cli.demo:demo", "Measure, build, steer and judge on the built-in model; write a report."),
    "prompts": Command("ivlens.cli.prompts:prompts", "Find the form of prompt in which a model answers a task."),
    "effects": Command("ivlens.cli.effects:effects", "Measure the causal effect of every attention head on a task."),
    "vector": Command("ivlens.cli.vector:vector", "Build the Instruction Vector of a task and judge it."),
    "steer": Command("ivlens.cli.steer:steer_text", "Complete a text with and without an Instruction Vector."),
    "lab": Command("ivlens.cli.lab:lab", "Open a live page: click heads into the vector, read both completions."),
    "tune": Command("ivlens.cli.tune:tune", "Teach a model a task, with or without guidance, and see what it forgets."),
    "bench": Command("ivlens.cli.bench:bench", "Lead a model through a sequence of tasks by several methods."),
    "sweep": Command("ivlens.cli.sweep:sweep", "Make every result of a grid, resumable, here or on a cluster."),
    "figures": Command("ivlens.cli.figures:figures", "Draw stored results as figures and tables for a paper."),
    "store": Command("ivlens.cli.store:app", "Look into a store of results, check it, clean it, export it."),
    "forget": Command("ivlens.cli.forget:forget", "Take apart what checkpoints forgot: instruction or knowledge."),
    "dynamics": Command("ivlens.cli.dynamics:dynamics", "Follow Instruction Vectors through a series of checkpoints."),
    "study": Command("ivlens.cli.study:study", "Test the paper's claims on one model; write a report."),
    "get": Command("ivlens.cli.get:get", "Fetch a real model, to be opened by its name."),
    "pocket": Command("ivlens.cli.pocket:app", "Train the built-in model, or write its model card."),
    "doctor": Command("ivlens.cli.doctor:doctor", "Show versions, hardware and what is missing here."),
}

EXIT_INTERRUPTED = 130
_TWICE = re.compile(r"^Invalid value for \S+: (?=\S+ is .*, expected )")  # before a sentence that names it itself
_NARROWEST, _WIDEST = 40, 250  # columns of help; in one or two its layout never ends


def build_app(called: str | None = None) -> App:
    """Return the application with all of `COMMANDS`, none of them imported.

    Args:
        called: the command about to run. It keeps its own docstring as help, where a summary would replace it.
    """
    app = App(
        name="ivlens",
        help="Instruction Vectors: find the heads that carry an instruction, build the vector, steer with it.\n\n"
        "Errors are one line; `--debug`, anywhere, shows where they come from.",
        help_epilogue=None if called else "`ivlens COMMAND --help` shows its options and an example.",
        version=f"ivlens {__version__}",
        help_format="markdown",
        result_action="return_int_as_exit_code_else_zero",
        suppress_keyboard_interrupt=False,
        default_parameter=Parameter(converter=converted),
        console=_console(),
    )
    for position, (name, command) in enumerate(COMMANDS.items()):
        summary = None if name == called else command.summary
        app.command(command.target, name=name, help=summary, sort_key=position)
    return app


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    Whatever ends it is one line on stderr: errors that a user can mend (a wrong value, a missing file or package, a
    full disk, too little memory) with status 2, all others with status 70. With `--debug` they are raised.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        _check_filled(words)
        with ready_streams(), telling("--json" in words):
            return int(build_app(_called(words))(words, exit_on_error=False, print_error=False))
    except CycloptsError as error:
        said = _TWICE.sub("", " ".join(str(error).split()).rstrip("."))
        complain(f"{said}; ivlens {words[0]} --help shows what there is." if words else f"{said}.")
        return EXIT_ERROR
    except KeyboardInterrupt:
        quietly(lambda: print("\nivlens: interrupted", file=sys.stderr))
        if argv is None:  # the program ends here: without a search through all that a model left, which takes seconds
            gc.freeze()
        return EXIT_INTERRUPTED
    except BaseException as error:
        # what a library in Rust raises in its panic is no Exception
        if debug or not (isinstance(error, Exception) or type(error).__name__ == "PanicException"):
            raise
        return ended_by(error)


def _console() -> "Console":
    """Where help is printed, as wide as the screen within reason."""
    from rich.console import Console

    return Console(width=min(max(Console().width, _NARROWEST), _WIDEST))


def _check_filled(words: list[str]) -> None:
    """Refuse an empty option or argument, which an unset variable of the shell leaves, before a default stands in."""
    for position, word in enumerate(words):
        name, is_given, value = word.partition("=") if word.startswith("--") else ("", "=", word)
        if not is_given or value.strip():
            continue
        before = words[position - 1] if position else ""
        what = name or (before if before.startswith("--") else f"argument {position + 1}")
        raise ValueError(
            f"{what} is empty, expected a value: is a variable of the shell unset? Give it, or leave {what} out."
        )


def _called(words: list[str]) -> str | None:
    if not words or words[0].startswith("-"):
        return None
    if words[0] not in COMMANDS:
        # Said here because cyclopts would import every command to find the nearest name.
        near = get_close_matches(words[0], COMMANDS, n=1)
        remedy = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(COMMANDS)}."
        raise ValueError(f"there is no command {words[0]!r}; {remedy}")
    return words[0]
