"""Which columns of a table are read: those that the caller names, or those with usual names."""

from collections.abc import Iterable, Sequence

from ivlens.tasks.formats.records import Columns, listed, wrong

# Usual names of columns. The first name is taken if a column has it, another name only if no other column fits.
INPUT_NAMES = ("input", "inputs", "prompt", "sentence", "text", "question", "query", "source", "word", "x")
OUTPUT_NAMES = ("output", "outputs", "answer", "answers", "label", "target", "targets", "completion", "response", "y")
INSTRUCTION_NAMES = ("instruction", "instructions", "definition", "system_prompt")
CONTEXT_NAMES = ("context", "passage", "article", "paragraph", "story")  # a text that a question is about
_USUAL = {"input": INPUT_NAMES, "output": OUTPUT_NAMES, "instruction": INSTRUCTION_NAMES}
OPTIONS = {  # the parameters of `load_task`, and the options of commands
    "input": "input_column= (--input-column)",
    "output": "output_column= (--answer-column)",
    "instruction": "instruction_column= (--instruction-column)",
}


def guess_column(found: Iterable[str], given: str | None, names: Sequence[str]) -> str | None:
    """The column to use, or None: the given one, the most usual name, or the only column with a usual name.

    Args:
        found: The columns that there are.
        given: The column that the caller asked for, or None.
        names: The usual names, the most usual first.
    """
    found = list(found)
    if given is not None:
        return given if given in found else None
    by_lower = {name.strip().lower(): name for name in reversed(found)}
    present = [by_lower[name] for name in names if name in by_lower]
    return present[0] if present and (len(present) == 1 or names[0] in by_lower) else None


def first_column(found: Iterable[str], names: Sequence[str]) -> str | None:
    """The column with the first of these names that there is; None where there is none of them."""
    by_lower = {name.strip().lower(): name for name in reversed(list(found))}
    return next((by_lower[name] for name in names if name in by_lower), None)


def pick_columns(columns: Columns, found: Sequence[str], subject: object) -> dict[str, str]:
    """The columns to read as input, output and instruction, chosen among those found.

    Beside an instruction the input may be called `context`, as in Dolly, or be missing: the instruction is then the
    whole prompt.

    Raises:
        ValueError: one is missing or chosen twice.
    """
    picked: dict[str, str] = {}
    missing: list[str] = []
    told = guess_column(found, columns.instruction, INSTRUCTION_NAMES) is not None
    for what, names in _USUAL.items():
        given: str | None = getattr(columns, what)
        name = guess_column(found, given, names)
        if name is None and what == "input" and given is None and told:
            name = first_column(found, CONTEXT_NAMES)
            if name is None and first_column(found, INPUT_NAMES) is None:
                continue  # the instruction is the whole prompt
        if name is None and given is not None:
            raise wrong(subject, f"has the columns {listed(found)}", f"{given!r:.60}", f"name it with {OPTIONS[what]}")
        if name is None and what != "instruction":
            missing.append(what)
        if name is not None and name in picked.values():
            raise wrong(subject, f"got {name!r} for two columns", "distinct ones", "name the others")
        if name is not None:
            picked[what] = name
    if missing:
        raise _unnamed(missing, found, subject)
    return picked


def _unnamed(missing: Sequence[str], found: Sequence[str], subject: object) -> ValueError:
    """The error for columns of which it cannot be told which to read, which the caller raises."""
    doubts = []
    for what in missing:
        names = [name for name in found if name.strip().lower() in _USUAL[what]]  # none or more than one
        doubts += [f"{listed(names)} could all be the {what}"] if names else []
    got = "; ".join([f"has the columns {listed(found)}", *doubts])
    expected = " and ".join(f"exactly one usual name for the {what} ({', '.join(_USUAL[what])})" for what in missing)
    options = " and ".join(OPTIONS[what] for what in missing)
    return wrong(subject, got, expected, f"name {'it' if len(missing) == 1 else 'them'} with {options}")
