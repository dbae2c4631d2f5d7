"""A series of checkpoints of one model, opened one at a time."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ivlens.common.digests import content_digest
from ivlens.common.files import STATE, read_small
from ivlens.common.names import expanded
from ivlens.common.saves import whole
from ivlens.common.store.written import said_of
from ivlens.models.adapters import CONFIG, adapter_folders, is_adapter, named_base
from ivlens.models.boot import TransformerBridge, check_model
from ivlens.models.fingerprint import model_identity
from ivlens.models.ggufheader import is_gguf
from ivlens.models.known import finished, known_model, place_of
from ivlens.models.load import commit_of, load_model

# beginnings of names of files that trainers write beside a model, and that do not change it
_BESIDE = ("optimizer", "scheduler", "training_args", "rng_state", "random_states", STATE, "generation_config")
_WEIGHTS = (".safetensors", ".bin", ".gguf", ".index.json")
# beginnings of names of files of a tokenizer
_WORDS = ("tokenizer", "special_tokens", "added_tokens", "vocab", "merges", "chat_template", "spiece", "sentencepiece")


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """One model of a series.

    Attributes:
        name: Its name, which no other checkpoint of the series has.
        source: A bridge, or a folder or name that `load_model` opens.
        step: Training steps before this checkpoint, where their number is known.
        base: For adapters, the model they belong to; None: the model that they name.
        device, dtype: Passed on to `load_model`.
    """

    name: str
    source: Any
    step: int | None = None
    base: Any = None
    device: str = "auto"
    dtype: str = "auto"

    def open(self) -> TransformerBridge:
        """The model, ready for hooks. Every call reads a folder again and keeps no reference to the model."""
        if isinstance(self.source, str | Path):
            base = self.base if is_adapter(finished(self.source)) else None
            return load_model(self.source, base=base, device=self.device, dtype=self.dtype)
        return self.source

    def key(self) -> dict[str, Any]:
        """What identifies the model, found without opening it: a bridge's hashes, or hashes of a folder's files.

        A folder may be moved or copied: only the content of its files counts, which are weights in any format,
        configuration, tokenizer and chat template. Large files are not read again until they change.
        """
        if not isinstance(self.source, str | Path):
            return {"model": model_identity(self.source).key}
        known = known_model(self.source)
        folder = whole(expanded(finished(self.source))) if known is None else known.folder
        if not folder.is_dir() and not is_gguf(folder):
            commit = {} if folder.exists() else commit_of(str(self.source))
            # a Hub name: its commit tells whether the model behind the name has changed
            return {"source": str(self.source), **commit, **({} if self.dtype == "auto" else {"dtype": self.dtype})}
        parts = adapter_folders(folder).values()
        places = {folder, *parts} if folder.is_dir() else ()  # the tokenizer of several adapters lies above them
        files = [path for place in places for path in place.iterdir() if _makes_the_model(path)] or [folder]
        contents = [[path.relative_to(folder).as_posix(), content_digest(path)] for path in sorted(files)]
        base = (named_base(folder) if self.base is None else self.base) if parts else None
        found = {"files": contents, "base": None if base is None else Checkpoint("base", base).key()}
        return found if self.dtype == "auto" else found | {"dtype": self.dtype}


@dataclass(frozen=True, eq=False)
class CheckpointSeries:
    """The checkpoints of one training, in order.

    At most two models are in memory at once if callers keep `first` and one of `later` at a time, as a `for` loop with
    one variable does.

    Attributes:
        first: The checkpoint with which all others are compared.
        later: The other checkpoints, in order.
    """

    first: Checkpoint
    later: tuple[Checkpoint, ...]

    def __len__(self) -> int:
        return 1 + len(self.later)

    def __iter__(self) -> Iterator[Checkpoint]:
        yield self.first
        yield from self.later


def checkpoint_series(
    source: "str | Path | Sequence[Any] | Mapping[str, Any]",
    *,
    first: Any = None,
    base: Any = None,
    device: str = "auto",
    dtype: str = "auto",
) -> CheckpointSeries:
    """The checkpoints in `source` as a series, in the order of the training.

    Args:
        source: A folder with one checkpoint in each subfolder, the name of a known model, or bridges, folders and names
            as a list or by name. A list keeps its order. Subfolders (whole models, or adapters in peft's format, as
            `ivlens tune --checkpoint-every` and transformers' Trainer write them) are ordered by the last number in
            their names; names without a number come last. A folder that is itself a checkpoint comes after the
            checkpoints inside it; without any inside it is a series of one.
        first: The model with which all are compared, as a bridge, folder or name. None: the model that the adapters
            name, or else the first of the series.
        base: The model that adapters belong to, where it is not the one they name.
        device, dtype: Passed on to `load_model` for every checkpoint.

    Raises:
        FileNotFoundError: no such folder, or no checkpoints in it.
        ValueError: fewer than two models, so that nothing can be compared, or two of one name.
    """
    found = _listed(source, base)
    if first is None and found and isinstance(found[0].source, str | Path) and is_adapter(place_of(found[0].source)):
        first = base if base is not None else named_base(place_of(found[0].source))
    if first is not None:
        found = [Checkpoint("before", first, 0), *found]
    names = [checkpoint.name for checkpoint in found]
    if len(found) < 2 or len(set(names)) < len(names):
        raise ValueError(
            f"the series has the checkpoints {', '.join(names) or 'none'}, expected two or more with distinct names; "
            "name the model before training (first=, on the command line --before)."
        )
    found = [replace(checkpoint, device=device, dtype=dtype) for checkpoint in found]
    return CheckpointSeries(found[0], tuple(found[1:]))


def _listed(source: "str | Path | Sequence[Any] | Mapping[str, Any]", base: Any) -> list[Checkpoint]:
    """All checkpoints of `source` in order, without the first model that the caller may name."""
    if isinstance(source, Mapping):
        return [_checked(str(name), one, base) for name, one in source.items()]
    if not isinstance(source, str | Path):
        found = [_checked(_name_of(one, number), one, base) for number, one in enumerate(source)]
        # the number in a bridge's name is its place in the list, and no number of steps
        return [one if isinstance(one.source, str | Path) else replace(one, step=None) for one in found]
    root = expanded(source)
    if known_model(source) is not None or is_gguf(root):
        return [_checked(root.name, source, base)]
    if not root.is_dir():
        raise FileNotFoundError(f"{str(source)!r} is no folder, expected one with checkpoints in its subfolders.")
    own = set(adapter_folders(root).values())
    inner = [path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")]
    folders = [path for path in inner if _is_checkpoint(path) and path not in own]
    with_weights = [path for path in folders if _has_weights(path)]
    if with_weights or _is_checkpoint(root):
        folders = with_weights  # folders without weights hold only a configuration or an export for other programs
    if _is_checkpoint(root):
        # a trainer's folder: the last model lies in the folder itself, earlier ones in its subfolders
        last = _checked(root.resolve().name, root, base)
        if not folders:
            return [last]
        earlier = [_checked(path.name, path, base) for path in sorted(folders, key=_place)]
        # its steps come from the trainer's record: a number in such a folder's name counts runs
        return [*earlier, *([replace(last, step=_trained_steps(root))] if _has_weights(root) else [])]
    if not folders and (root / STATE).is_file():
        raise FileNotFoundError(
            f"{str(source)!r} holds a training that has not ended (no model/ yet), expected checkpoints; give the same "
            "`ivlens tune` command again, which goes on from where it stopped, or write checkpoints on the way with "
            "--checkpoint-every N."
        )
    if not folders:
        told = said_of(root)
        what = f"is {told}, and holds" if told else "holds"
        raise FileNotFoundError(
            f"{str(source)!r} {what} no checkpoints, expected subfolders written by save_pretrained (whole models or "
            "adapters); `ivlens tune --checkpoint-every N` writes them."
        )
    return [_checked(path.name, path, base) for path in sorted(folders, key=_place)]


def _checked(name: str, source: Any, base: Any) -> Checkpoint:
    """A checkpoint, after a check that its source can be one."""
    if not isinstance(source, str | Path):
        check_model(source)
    elif isinstance(source, Path) and not _is_checkpoint(expanded(source)):
        raise FileNotFoundError(f"checkpoint {name!r}: {str(source)!r} holds neither config.json nor adapters.")
    return Checkpoint(name, source, None if known_model(source) else _step(name), base)  # smollm2 is not step 2


def _is_checkpoint(folder: Path) -> bool:
    """Whether a path is a model's or an adapter's folder, or a GGUF file."""
    return (whole(folder) / "config.json").is_file() or bool(adapter_folders(folder)) or is_gguf(folder)


def _has_weights(folder: Path) -> bool:
    """Whether a checkpoint's folder holds adapters or a file of weights."""
    if adapter_folders(folder):
        return True
    return any(_makes_the_model(path) and path.name.endswith(_WEIGHTS) for path in whole(folder).iterdir())


def _trained_steps(folder: Path) -> int | None:
    """The number of steps in the record that transformers' Trainer writes; None where there is none."""
    try:
        step = json.loads(read_small(folder / "trainer_state.json", 2**28))["global_step"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    return step if isinstance(step, int) else None


def _makes_the_model(path: Path) -> bool:
    """Whether a file decides what the model computes: weights, configuration or tokenizer."""
    if not path.is_file() or path.name.startswith(_BESIDE):
        return False
    is_named = path.name.startswith(_WORDS) or path.name in ("config.json", CONFIG)
    return is_named or path.name.endswith(_WEIGHTS) or path.suffix in (".model", ".tiktoken")


def _name_of(source: Any, number: int) -> str:
    """The name that an item of a list gets in the series; `number` is its place in the list."""
    if isinstance(source, str | Path):
        return Path(source).name or str(source)
    return f"{number}: {model_identity(source).name}"


def _step(name: str) -> int | None:
    """The last number in a name; None where there is none."""
    found = re.findall(r"\d+", name)
    return int(found[-1]) if found else None


def _place(path: Path) -> tuple[bool, int, str]:
    """A key that sorts folders by the number in their names, and those without a number last."""
    step = _step(path.name)
    return step is None, step or 0, path.name
