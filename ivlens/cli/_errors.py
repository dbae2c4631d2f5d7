"""How a command that fails ends: one line on stderr and an exit status, whichever library raised the error."""

import linecache
import os
import sys
import tempfile
import traceback
from errno import EPIPE
from pathlib import Path

from ivlens.cli._streams import StdoutError, complain, let_go
from ivlens.common.disk import is_short_of_disk, refusal, trouble
from ivlens.common.memory import is_out_of_memory
from ivlens.common.version import __version__

# the first as argparse has it, the second as sysexits.h (EX_SOFTWARE), the third as shells report an end by SIGPIPE
EXIT_ERROR, EXIT_BUG, EXIT_BROKEN_PIPE = 2, 70, 141
_PACKAGE = Path(__file__).parents[1]
_MEMORY = (
    "memory ran out ({why}); use a smaller model, --dtype bfloat16 or fewer prompts, or a machine with more of it: "
    "what has been written is whole."
)


def ended_by(error: BaseException) -> int:
    """Print one line about why a command ended, and return its exit status."""
    if isinstance(error, StdoutError):
        let_go(sys.stdout)  # Python would try to write the rest at its end, and print a second error
        if error.errno == EPIPE:
            return EXIT_BROKEN_PIPE  # no error: the reader (`| head`) has read all that it wanted
        complain(f"stdout cannot be written to ({error.strerror}), what was to be printed is lost; send it elsewhere.")
        return EXIT_ERROR
    line = sentence(error)
    complain(line or _bug(error))
    return EXIT_BUG if line is None else EXIT_ERROR


def sentence(error: BaseException) -> str | None:
    """The line for an error that a user can mend; None for an error that nobody foresaw."""
    said = " ".join(str(error).split())
    if _is_said_here(error):
        return said
    # from here on the text is that of another library, and the remedy is added
    if is_out_of_memory(error):
        return _MEMORY.format(why=said[:120] or type(error).__name__)
    # cyclopts wraps the error of a command's import in another that only repeats the command's name
    missing = error.__cause__ if isinstance(error.__cause__, ModuleNotFoundError) else error
    if isinstance(missing, ModuleNotFoundError):
        if (missing.name or "").startswith("ivlens"):
            return f"this installation of ivlens {__version__} lacks {missing.name}; reinstall it."
        return f"this command needs the package {missing.name!r}, which is not installed; pip install {missing.name}."
    number = trouble(error)
    if number is not None and is_short_of_disk(error):
        named = getattr(error, "filename", None)
        return str(refusal(number, os.fsdecode(named))) if named else f"{said}; free some room, or name another place."
    if isinstance(error, UnicodeEncodeError):
        return (
            f"{error.object!r:.60} cannot be written as {error.encoding} ({error.reason}), expected text; correct it."
        )
    if isinstance(error, OverflowError):
        return f"a number is too large for what is computed with it ({said}), expected a smaller one; change an option."
    if isinstance(error, ValueError | OSError | ImportError | FloatingPointError):
        return said or type(error).__name__
    return None


def _is_said_here(error: BaseException) -> bool:
    """Whether a `raise` in ivlens itself made the error, with a sentence of its own."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames or not Path(frames[-1].filename).is_relative_to(_PACKAGE):
        return False
    # Python may raise in a line of ivlens too (`KeyError: 'x'`): so the line must say `raise`, with a whole sentence
    line = linecache.getline(frames[-1].filename, frames[-1].lineno or 0)
    return line.strip().startswith("raise ") and len(str(error)) > 20


def _bug(error: BaseException) -> str:
    """The line for an error that nobody foresaw. The traceback goes into a file, so that no run must be repeated."""
    text = "".join(traceback.format_exception(error))
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _PACKAGE in Path(frame.filename).parents]
    at = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="ivlens-", suffix=".txt", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as file:
            file.write(text)
        where = f"all of it is in {file.name}"
    except OSError:
        where = "--debug shows all of it"
    return f"an error that nobody foresaw{at} ({said}); {where}: please report it."
