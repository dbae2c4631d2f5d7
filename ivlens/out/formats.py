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
