"""`export_vector`: writes a vector in the format of another tool."""

from collections.abc import Callable
from pathlib import Path

from ivlens.common.arguments import checked
from ivlens.common.names import path_of
from ivlens.models.boot import TransformerBridge
from ivlens.out.control_vector import write_control_vector
from ivlens.out.folding import write_folded
from ivlens.out.formats import SUFFIXES, Format, usual_positions
from ivlens.out.leaving import Leaving
from ivlens.out.lm_eval_file import write_lm_eval
from ivlens.out.script import write_script
from ivlens.steering.edits import Positions
from ivlens.steering.summary import Setting
from ivlens.vectors.vector import InstructionVector

_WRITERS: dict[Format, Callable[[Leaving, Path], Path]] = {
    "lm-eval": write_lm_eval,
    "python": write_script,
    "checkpoint": write_folded,
    "gguf-control-vector": write_control_vector,
}


@checked
def export_vector(
    model: TransformerBridge,
    iv: InstructionVector,
    path: str | Path,
    *,
    format: Format,
    at: Setting,
    positions: Positions | None = None,
) -> Path:
    """Write the vector, at its place and with its strength, in the format of another tool; returns the path.

        >>> export_vector(model, iv, "antonym.py", format="python", at=evaluation.best)

    Formats:

    - `lm-eval`: a `.pt` for lm-evaluation-harness (`--model steered --model_args steer_path=x.pt`); positions `all`.
    - `python`: a script that needs torch and transformers alone, with the vector inside; positions `prompt`, `every`
      or `all`.
    - `checkpoint`: a folder with the whole model, the vector as a bias, for transformers without code; positions `all`.
    - `gguf-control-vector`: a `.gguf` for llama.cpp (`--control-vector`); positions `all`, site `resid_post`, from
      layer 1 on.

    Args:
        path: The file, or for `checkpoint` the folder.
        format: One of these.
        at: Layer, strength and site, such as `Evaluation.best`.
        positions: As in `steer`; slices and masks belong to one batch, and stay here. By default `prompt` for `python`,
            and `all`, the only one they can express, for the others.

    Raises:
        ValueError: a vector of another model, a setting that does not exist, a suffix of another format; a setting or
            positions that the format cannot express; an architecture without a place for a bias.
        ImportError: `gguf-control-vector` without the package gguf.
        OSError: the path cannot be written to.

    Source: docs/guide/elsewhere.md.
    """
    place, suffixes = path_of(path), SUFFIXES[format]
    if suffixes and place.suffix.lower() not in suffixes:
        raise ValueError(
            f"{str(place)!r} has suffix {place.suffix!r}, expected {' or '.join(suffixes)} for format {format!r}; name "
            "another file."
        )
    # a setting is usually searched for `prompt`: a script that added it everywhere would write nonsense
    leaving = Leaving(model, iv, at, usual_positions(format) if positions is None else positions)
    return _WRITERS[format](leaving, place)
