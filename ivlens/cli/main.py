"""The entry point of the `ivlens` command.

A command is one line of `COMMANDS` and one function in a file of its own. The function's docstring is the command's
help (with an example), its annotated parameters are the options. If it returns an int, that is the exit status. No
command is imported before it is called, so `ivlens --help` needs neither torch nor transformers.
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
    """A command's place, "module:function" or "module:cyclopts App", and its line in `ivlens --help`."""

    target: str
    summary: str


COMMANDS = {
    "demo": Command("ivlens.cli.demo:demo", "Measure, build, steer and judge on the built-in model; write a report."),
    "tasks": Command("ivlens.cli.tasks:app", "List the built-in tasks, or say how a task's file is read."),
    "prompts": Command("ivlens.cli.prompts:prompts", "Find the form of prompt in which a model answers a task."),
    "effects": Command("ivlens.cli.effects:effects", "Measure the causal effect of every attention head on a task."),
    "attention": Command("ivlens.cli.attention:attention", "Measure where heads look: which part of the prompt."),
    "vector": Command("ivlens.cli.vector:vector", "Build the Instruction Vector of a task and judge it."),
    "evaluate": Command(
        "ivlens.cli.evaluate:evaluate", "Judge the vectors of several tasks with all controls; a report."
    ),
    "steer": Command("ivlens.cli.steer:steer_text", "Complete a text with and without an Instruction Vector."),
    "export": Command("ivlens.cli.export:export", "Write a vector for other tools, which then steer without ivlens."),
    "lab": Command("ivlens.cli.lab:lab", "Open a live page: click heads into the vector, read both completions."),
    "tune": Command("ivlens.cli.tune:tune", "Teach a model a task, with or without guidance, and see what it forgets."),
    "bench": Command("ivlens.cli.bench:bench", "Teach a model a sequence of tasks, and compare methods of doing so."),
    "sweep": Command("ivlens.cli.sweep:sweep", "Compute every result of a grid, resumable, here or on a cluster."),
    "figures": Command("ivlens.cli.figures:figures", "Draw stored results as figures and tables for a paper."),
    "store": Command("ivlens.cli.store:app", "List, check, clean or export a store of results."),
    "forget": Command("ivlens.cli.forget:forget", "Measure what checkpoints forgot: the instruction or the knowledge."),
    "dynamics": Command("ivlens.cli.dynamics:dynamics", "Follow Instruction Vectors through a series of checkpoints."),
    "transplant": Command("ivlens.cli.transplant:transplant", "Put heads and blocks of a model into its tuned copy."),
    "study": Command("ivlens.cli.study:study", "Test the paper's claims on one model; write a report."),
    "get": Command("ivlens.cli.get:get", "Fetch a real model, which then opens by its name."),
    "pocket": Command("ivlens.cli.pocket:app", "Train the built-in model, or write its model card."),
    "terse": Command("ivlens.cli.terse:app", "Teach a real model to answer instructions tersely, or measure it."),
    "doctor": Command("ivlens.cli.doctor:doctor", "Show versions, hardware and what is missing here."),
}

EXIT_INTERRUPTED = 130  # as shells report a program that Ctrl-C has ended
# what cyclopts puts before an error of ours, which names the option itself
# commands that keep what they have measured or trained as soon as it is done
_GO_ON = frozenset({"evaluate", "tune", "bench", "sweep", "forget", "dynamics", "transplant", "study"})
_TWICE = re.compile(r"^Invalid value for \S+: (?=\S+ is .*, expected )")
_NARROWEST, _WIDEST = 40, 250  # columns of the help; on a screen of one or two columns rich never ends its layout


def build_app(called: str | None = None) -> App:
    """Return the cyclopts application with all of `COMMANDS`, without importing any of them.

    Args:
        called: The command about to run, which keeps its docstring as help; all others get their summary.
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

    An error is one line on stderr. Errors that a user can mend (a wrong value, a missing file or package, a full disk,
    too little memory) end with status 2, all others with status 70. With `--debug` errors are raised instead.
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
        more = "; the same command goes on from what it has kept" if words[:1] and words[0] in _GO_ON else ""
        quietly(lambda: print(f"\nivlens: interrupted{more}", file=sys.stderr))
        if argv is None:  # the program ends here: Python need not search a model's objects for garbage, for seconds
            gc.freeze()
        return EXIT_INTERRUPTED
    except BaseException as error:
        # a panic in a Rust library (tokenizers, safetensors) is a BaseException, but no Exception
        if debug or not (isinstance(error, Exception) or type(error).__name__ == "PanicException"):
            raise
        return ended_by(error)


def _console() -> "Console":
    """The console for help: as wide as the screen, within the widths that rich can lay out."""
    from rich.console import Console

    return Console(width=min(max(Console().width, _NARROWEST), _WIDEST))


def _check_filled(words: list[str]) -> None:
    """Refuse an empty option or argument, such as an unset shell variable leaves; a default would hide the mistake."""
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
    """The name of the command in a command line; None where it names none."""
    if not words or words[0].startswith("-"):
        return None
    if words[0] not in COMMANDS:
        # refused here, because cyclopts would import every command to find the nearest name
        near = get_close_matches(words[0], COMMANDS, n=1)
        remedy = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(COMMANDS)}."
        raise ValueError(f"there is no command {words[0]!r}; {remedy}")
    return words[0]
