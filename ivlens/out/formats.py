"""The formats in which a vector leaves, and the suffixes of their files; a list that needs no torch."""

from typing import Literal, get_args

Format = Literal["lm-eval", "python", "checkpoint", "gguf-control-vector"]
FORMATS: tuple[Format, ...] = get_args(Format)
SUFFIXES: dict[Format, tuple[str, ...]] = {  # none: a folder
    "lm-eval": (".pt", ".pth"),
    "python": (".py",),
    "checkpoint": (),
    "gguf-control-vector": (".gguf",),
}


def usual_positions(format: Format) -> Literal["prompt", "all"]:
    """Where a format adds the vector if nothing is said: a script as `steer` does, any other where alone it can."""
    return "prompt" if format == "python" else "all"
