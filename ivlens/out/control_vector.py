"""A control vector for llama.cpp: a GGUF file with one direction for a layer, the format that repeng writes."""

from pathlib import Path
from typing import Any

from ivlens.common.files import write_whole
from ivlens.models.ggufheader import check_gguf_installed
from ivlens.out.leaving import Leaving, plain_vector

_KIND = "controlvector"


def write_control_vector(leaving: Leaving, path: Path) -> Path:
    """Write the file: the tensor `direction.L`, which llama.cpp adds to the output of block L at every position.

    The strength is in it, so that llama.cpp's own scale is 1.

    Raises:
        ImportError: the package gguf is not installed.
        ValueError: other positions than `all`, site `attn_out`, or layer 0, which the format has no place for.
    """
    leaving.check_all("llama.cpp")
    layer, _, site = leaving.at
    if site != "resid_post":
        raise ValueError(
            f"llama.cpp adds control vectors to the output of whole blocks, so it cannot express site={site!r}, "
            "expected 'resid_post'; search a setting there (Grid(sites='resid_post'))."
        )
    if layer == 0:
        raise ValueError(
            "llama.cpp's control vectors begin at layer 1, so they cannot express layer 0, expected a later one; "
            "search a setting there (Grid(layers=[1, 2, ...]))."
        )
    check_gguf_installed()
    direction = plain_vector(leaving.delta).numpy()
    family = str(getattr(leaving.model.original_model.config, "model_type", ""))

    def write(partial: Path) -> None:
        import gguf

        writer: Any = gguf.GGUFWriter(str(partial), _KIND)
        writer.add_string(f"{_KIND}.model_hint", family)
        writer.add_uint32(f"{_KIND}.layer_count", 1)
        writer.add_description(f"{leaving.words}; written by ivlens, strength included")
        writer.add_tensor(f"direction.{layer}", direction)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    return write_whole(path, write)
