"""`ivlens export`: write a vector in the format of another tool."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from ivlens.cli._options import AsJson, ModelOptions
from ivlens.cli._output import print_json
from ivlens.out.formats import SUFFIXES, Format, usual_positions

if TYPE_CHECKING:
    from ivlens.steering.summary import Setting

_USES: dict[Format, str] = {  # what is typed next; capitals stand for what the user has
    "lm-eval": "lm_eval --model steered --model_args pretrained=FOLDER,steer_path={out} --tasks arc_easy",
    "python": "python {out} TEXT",
    "checkpoint": "AutoModelForCausalLM.from_pretrained('{out}')",
    "gguf-control-vector": "llama-cli -m MODEL.gguf --control-vector {out} -p PROMPT",
}


@Parameter(name="*")
@dataclass(frozen=True)
class PlaceOptions:
    """Where and how strongly the vector is added.

    Attributes:
        layer: Layer where the vector is added.
        alpha: Strength of the vector, negative to subtract it.
        site: Place in the layer: resid_post (after the block) or attn_out (what attention adds).
        positions: prompt: once, at the last prompt token; every: at each generated token too; all: at every token.
            By default prompt for python, as ivlens steer does; the other formats can only do all.
        allow_other_weights: Accept a vector from a model of the same architecture with other weights.
    """

    layer: int
    alpha: Annotated[float, Parameter(allow_leading_hyphen=True)]
    site: Literal["resid_post", "attn_out"] = "resid_post"
    positions: Literal["prompt", "every", "all"] | None = None
    allow_other_weights: Annotated[bool, Parameter(negative="")] = False

    @property
    def at(self) -> "Setting":
        """Layer, strength and site together."""
        from ivlens.steering.summary import Setting

        return Setting(self.layer, self.alpha, self.site)


def export(
    file: Path,
    /,
    *,
    format: Format,
    place: PlaceOptions,
    out: Path,
    where: ModelOptions | None = None,
    as_json: AsJson = False,
) -> None:
    """Write a vector in the format of another tool, which then steers without ivlens.

    Example: `ivlens export antonym.safetensors --format python --layer 1 --alpha 4 --site attn_out --out antonym.py`,
    then `python antonym.py big`

    Args:
        file: File of a vector, as `ivlens vector --out` wrote it.
        format: lm-eval (a .pt for the steered models of lm-evaluation-harness), python (a script that needs torch and
            transformers alone), checkpoint (a folder: the model with the vector as a bias), or gguf-control-vector (a
            .gguf for llama.cpp).
        out: The file, or for checkpoint the folder.
    """
    from ivlens.common.disk import check_file, check_folder

    where = where or ModelOptions()
    if SUFFIXES[format]:
        check_file(out, SUFFIXES[format])
    else:
        check_folder(out)
    model = where.load()
    from ivlens.out.export import export_vector
    from ivlens.vectors.vector import InstructionVector

    iv = InstructionVector.load(file, model, allow_other_weights=place.allow_other_weights)
    positions = place.positions or usual_positions(format)
    export_vector(model, iv, out, format=format, at=place.at, positions=positions)
    if as_json:
        at = {**place.at._asdict(), "positions": positions}
        print_json({"vector": iv.task, "format": format, "setting": at, "out": str(out)})
        return
    print(f"{iv.task}: layer {place.layer}, alpha {place.alpha:g}, {place.site}, {positions}")
    print(f"written: {out}")
    print(f"use it:  {_USES[format].format(out=out)}")
