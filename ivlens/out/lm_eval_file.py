"""The file that lm-evaluation-harness' own steered models read (`--model steered`, `steer_path=x.pt`)."""

from io import BytesIO
from pathlib import Path

import torch

from ivlens.common.files import write_whole
from ivlens.models.plain import module_paths
from ivlens.out.leaving import Leaving, module_name, place_name, plain_vector


def write_lm_eval(leaving: Leaving, path: Path) -> Path:
    """Write the file: one module with its vector and coefficient, which the harness adds at every position.

    This is the one format in which ivlens writes a pickle, since the harness reads nothing else. ivlens never reads it.

    Raises:
        ValueError: other positions than `all`; a site that is no module of the plain model.
    """
    leaving.check_all("lm-eval's steered model")
    paths, (layer, alpha, site) = module_paths(leaving.model), leaving.at
    content = {
        place_name(leaving.model, module_name(paths, layer, site)): {
            "steering_vector": plain_vector(leaving.iv.theta),
            "steering_coefficient": float(alpha) / leaving.factor,
            "action": "add",
            "bias": None,
            "head_index": None,
        }
    }
    buffer = BytesIO()  # torch puts the name of a file into it, so the same vector would give other bytes elsewhere
    torch.save(content, buffer)
    return write_whole(path, lambda partial: partial.write_bytes(buffer.getvalue()))
