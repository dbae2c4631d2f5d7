"""The state of a training on disk, from which the same training goes on after an interruption.

It is one safetensors file with JSON metadata, written whole or not at all.
"""

import json
from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from ivlens.common.files import STATE, write_whole
from ivlens.common.foreign import opened_tensors, read_tensors
from ivlens.common.version import __version__, check_version

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # what AdamW remembers of every weight, under torch's names


class TrainingState:
    """A training's weights, AdamW's moments, its log, and the best weights so far where they are kept.

    Args:
        folder: Folder of the state; None: nothing is saved.
        fingerprint: Everything that makes the training what it is; a state with another fingerprint is refused.
        trained: The weights in training, by name.
        optimizer: The optimiser, whose moments are saved and restored.
    """

    def __init__(
        self,
        folder: Path | None,
        fingerprint: Mapping[str, Any],
        trained: Mapping[str, Tensor],
        optimizer: torch.optim.Optimizer,
    ) -> None:
        self._path = None if folder is None else folder / STATE
        # once through JSON, so that it equals what is read from a file: tuples become lists
        self._fingerprint = json.loads(json.dumps(fingerprint, default=str))
        self._trained, self._optimizer = dict(trained), optimizer

    def save(self, rows: list[dict[str, float | int]], best: Mapping[str, Tensor] | None = None) -> None:
        """Write the present state in place of the last one."""
        if self._path is None:
            return
        tensors = {f"weight/{name}": weight.detach() for name, weight in self._trained.items()}
        for name, weight in self._trained.items():
            moments = self._optimizer.state.get(weight, {})
            tensors |= {f"{moment}/{name}": moments[moment] for moment in _MOMENTS if moment in moments}
        tensors |= {f"best/{name}": weight for name, weight in (best or {}).items()}
        metadata = {"ivlens": json.dumps({"version": __version__, "fingerprint": self._fingerprint, "log": rows})}
        data = safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata)
        write_whole(self._path, lambda partial: partial.write_bytes(data))

    def restore(self) -> tuple[list[dict[str, float | int]], dict[str, Tensor]]:
        """Load the folder's state into weights and optimiser, and return its log and its best weights.

        Both are empty where the folder has no state.

        Raises:
            ValueError: a state of another training or of another version of ivlens, or a damaged one.
        """
        if self._path is None or not self._path.exists():
            return [], {}
        tensors, about = self._read(self._path)
        check_version(self._path, about["version"])
        if about["fingerprint"] != self._fingerprint or {f"weight/{name}" for name in self._trained} - set(tensors):
            raise ValueError(
                f"{str(self._path)!r} is the state of another training, expected one with the same data, options, "
                "guidance, method and seed; use another folder, or remove the file to begin anew."
            )
        if any(tensors[f"weight/{name}"].shape != weight.shape for name, weight in self._trained.items()):
            raise _damaged(self._path, "weights of other shapes")
        for name, weight in self._trained.items():
            with torch.no_grad():
                weight.copy_(tensors[f"weight/{name}"])
            moments = {moment: tensors[f"{moment}/{name}"] for moment in _MOMENTS if f"{moment}/{name}" in tensors}
            if moments:
                # AdamW keeps its count of steps on the CPU, wherever the weights are
                self._optimizer.state[weight] = {
                    moment: value if moment == "step" else value.to(weight) for moment, value in moments.items()
                }
        best = {name: tensors[f"best/{name}"] for name in self._trained if f"best/{name}" in tensors}
        return about["log"], best

    def _read(self, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors and the metadata of a state, after a check that they are complete."""
        about = _about(path)
        try:
            tensors, _ = read_tensors(path)
            names = {name.split("/", 1)[1] for name in tensors if name.startswith("exp_avg/")}
            if not (isinstance(about["log"], list) and all(isinstance(row, dict) for row in about["log"])):
                raise KeyError("log")
            if [row["step"] for row in about["log"]] != [*range(1, len(about["log"]) + 1)]:
                raise KeyError("step")
            if any(f"{moment}/{name}" not in tensors for name in names for moment in _MOMENTS):
                raise KeyError("moment")
            return tensors, about
        except (OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise _damaged(path, type(error).__name__) from error


def check_state(folder: Path) -> None:
    """Refuse a folder whose training state is damaged or of another version of ivlens, before anything is measured.

    Raises:
        ValueError: the state is of another version, or damaged.
    """
    path = folder / STATE
    if path.exists():
        check_version(path, _about(path)["version"])


def _about(path: Path) -> dict[str, Any]:
    """The metadata of a state, without its tensors."""
    try:
        with opened_tensors(path) as opened:
            about = json.loads((opened.metadata() or {})["ivlens"])
        return {name: about.get(name) for name in ("fingerprint", "log", "version")}
    except (OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise _damaged(path, type(error).__name__) from error


def _damaged(path: Path, why: str) -> ValueError:
    return ValueError(f"{str(path)!r} is no whole training state ({why}); remove it to begin anew.")


def digest_of(content: Any) -> str:
    """The digest of a value that JSON can hold."""
    return sha256(json.dumps(content, default=str, sort_keys=True).encode()).hexdigest()


def digest_of_tensors(tensors: Iterable[Tensor | None]) -> str:
    """One digest of the content of all tensors together."""
    digest = sha256()
    for tensor in tensors:
        if tensor is not None:
            # as bytes: numpy has no bfloat16
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
