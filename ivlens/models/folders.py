"""Opens a checkpoint folder that may be damaged or hostile: it is checked before a model is built.

The sizes in the configuration are compared with those of the weights. The model is first built without memory for its
weights, and its parts are counted, so that a wrong number in the configuration is an error and does not use up all
memory. Weights are read, not memory-mapped, so that files may change or vanish afterwards.
"""

import copy
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from ivlens.common.files import check_inner_names
from ivlens.common.foreign import foreign_json, opened_tensors, read_foreign, read_pickled, read_tensors
from ivlens.common.memory import machine_memory
from ivlens.models.boot import check_config
from ivlens.models.looks import CONFIG, check_entries, safe_config
from ivlens.models.opening import SAVE_AGAIN, WEIGHT_FILES, check_fits, check_sizes, opened_by

_GENERATION = "generation_config.json"
_MOST_INDEX, _MOST_GENERATION = 2**26, 2**20  # bytes
_PARTS = 20  # most modules for each tensor of the files, many more than any model has
_SPARE = 2**22  # how many more numbers a model may have than its files: positions, masks


def open_folder(folder: Path, dtype: torch.dtype | None) -> Any:
    """The Hugging Face model of a checkpoint folder, in eval mode, with its weights in memory.

    Raises:
        FileNotFoundError: a file is missing or cannot be read.
        ValueError: no decoder, a configuration that does not fit the weights, or weights that are missing, needless
            or too large for the machine.
    """
    check_entries(folder)
    with _private(folder) as place, opened_by("transformers", f"model {str(folder)!r}", SAVE_AGAIN):
        from transformers import AutoConfig, GenerationConfig

        config = AutoConfig.from_pretrained(place, trust_remote_code=False)
        # from_pretrained below gets no folder, and so would not find these settings
        if (place / _GENERATION).is_file():
            generation = GenerationConfig.from_pretrained(place)
        else:
            generation = GenerationConfig.from_pretrained(place, config_file_name=CONFIG, _from_model_config=True)
    check_config(config, str(folder))
    check_sizes(config, folder)
    files = _files(folder, getattr(config, "transformers_weights", None))
    pickled = _pickled(folder, files)
    sizes = _sizes(folder, files, pickled)
    # transformers reads quantised weights itself, from the folder: it converts them on the way into the model
    quantised = getattr(config, "quantization_config", None) is not None
    empty = _built_empty(config, len(sizes), str(folder))
    if not quantised:
        _check_numbers(empty, sizes, folder)
    with opened_by("transformers", f"model {str(folder)!r}", SAVE_AGAIN):
        given = {} if quantised else {"state_dict": _state(files, pickled)}
        opened: Any = type(empty).from_pretrained(
            folder if quantised else None,
            config=copy.deepcopy(empty.config),
            dtype=dtype or "auto",
            attn_implementation="eager",
            output_loading_info=True,
            **given,
        )
    model, about = opened
    del pickled, given  # frees the tensors of `.bin` files where the model has copied them
    check_fits(model, about, str(folder), sizes if not quantised else None)
    model.name_or_path = model.config.name_or_path = str(folder)
    model.generation_config = generation
    return model


@contextmanager
def _private(folder: Path) -> Iterator[Path]:
    """A temporary folder with the checked configuration alone, without entries that fetch or run code."""
    with TemporaryDirectory(prefix="ivlens-config-") as temporary:
        place = Path(temporary)
        (place / CONFIG).write_text(json.dumps(safe_config(folder)), encoding="utf-8")
        if (folder / _GENERATION).is_file():
            (place / _GENERATION).write_bytes(read_foreign(folder / _GENERATION, _MOST_GENERATION))
        yield place


def _files(folder: Path, named: Any) -> list[Path]:
    """The files of weights that transformers would read: one file, or all that an index lists.

    Args:
        folder: The checkpoint.
        named: The file that the configuration names, if it does.

    Raises:
        FileNotFoundError: there is no file of weights, or one of several is missing.
        ValueError: the index is damaged, or names a file outside the folder.
    """
    name = next((name for name in ([named] if named else WEIGHT_FILES) if (folder / str(name)).is_file()), None)
    if name is None:
        raise FileNotFoundError(
            f"model {str(folder)!r} has no file of weights ({', '.join(WEIGHT_FILES[::2])}), {SAVE_AGAIN}."
        )
    if not name.endswith(".index.json"):
        return [folder / name]
    try:
        listed = list(foreign_json(folder / name, _MOST_INDEX)["weight_map"].values())
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"model {str(folder)!r}: {name} is no index ({type(error).__name__}), {SAVE_AGAIN}.") from None
    check_inner_names(folder / name, listed)
    found = sorted(set(listed))
    for file in found:
        if not file.endswith((".safetensors", ".bin")):
            raise ValueError(
                f"model {str(folder)!r}: {name} lists {file!r:.80}, expected files of weights; save it again."
            )
        if not (folder / file).is_file():
            raise FileNotFoundError(f"model {str(folder)!r} lacks {file!r:.80}, which {name} lists, {SAVE_AGAIN}.")
    return [folder / file for file in found]


def _pickled(folder: Path, files: Sequence[Path]) -> dict[Path, dict[str, Tensor]]:
    """The tensors of each `.bin` file; unlike safetensors, such a file has to be read whole to know their shapes."""
    with opened_by("transformers", f"model {str(folder)!r}", SAVE_AGAIN):
        try:
            return {path: read_pickled(path) for path in files if path.suffix == ".bin"}
        except ValueError as error:
            what = "a file of weights is damaged or holds more than tensors; nothing else is read"
            raise ValueError(f"{what} (it {error!s:.120})") from None


def _sizes(
    folder: Path, files: Sequence[Path], pickled: Mapping[Path, Mapping[str, Tensor]]
) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors in the files, by name; of safetensors only the headers are read."""
    found = {name: tuple(tensor.shape) for read in pickled.values() for name, tensor in read.items()}
    with opened_by("transformers", f"model {str(folder)!r}", SAVE_AGAIN):
        for path in files:
            if path not in pickled:
                with opened_tensors(path) as opened:
                    found |= {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}
    return found


def _state(files: Sequence[Path], pickled: Mapping[Path, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """All tensors of the files in memory, by name; those of `.bin` files were read before."""
    state: dict[str, Tensor] = {}
    for path in files:
        state |= pickled[path] if path in pickled else read_tensors(path)[0]
    return state


def _built_empty(config: Any, n_tensors: int, label: str) -> Any:
    """The model of a configuration, built on the device `meta`, where weights take no memory.

    Raises:
        ValueError: no decoder, many more modules than tensors, or a configuration of which no model can be built.
    """
    from transformers import AutoModelForCausalLM

    with _counted(_PARTS * n_tensors + 10_000), opened_by("transformers", f"model {label!r}", SAVE_AGAIN):
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(
                copy.deepcopy(config), trust_remote_code=False, attn_implementation="eager"
            )


@contextmanager
def _counted(most: int) -> Iterator[None]:
    """Raise in the body as soon as it has made more modules and parameters than `most`.

    Modules take memory on any device, so that a count of layers with too many zeros must be stopped while building.
    """
    left, own = [most], threading.get_ident()

    def count(*_: Any) -> None:
        left[0] -= threading.get_ident() == own  # the hooks are global: other threads may be building models too
        if left[0] < 0:
            raise ValueError(f"its configuration makes more than {most:,} modules, far more than it has weights for")

    hooks = [
        nn.modules.module.register_module_module_registration_hook(count),
        nn.modules.module.register_module_parameter_registration_hook(count),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _check_numbers(empty: Any, sizes: Mapping[str, tuple[int, ...]], folder: Path) -> None:
    """Refuse a model and files that differ much in size, before memory for the weights is taken.

    Small differences are found by name later, in `check_fits`.

    Args:
        empty: The model on the device `meta`.
        sizes: Shapes of the tensors in the files.
        folder: The checkpoint, for the error.

    Raises:
        ValueError: one is more than twice as large as the other, or the model is larger than the machine's memory.
    """
    # tied weights are one parameter, and count once
    wanted = sum(weight.numel() for weight in {id(weight): weight for weight in empty.parameters()}.values())
    masks = sum(buffer.numel() * buffer.element_size() for buffer in empty.buffers())
    held = sum(map(prod, sizes.values()))
    if wanted > 2 * held + _SPARE or held > 2 * wanted + masks + _SPARE or masks > 8 * held + 2**28:
        raise ValueError(
            f"model {str(folder)!r}: by config.json it has {wanted:,} numbers and {masks:,} bytes of tables, its files "
            f"have {held:,} numbers, expected sizes that fit together; save or download the checkpoint again."
        )
    # two bytes for each number, the least for weights that are not quantised: only what certainly fails is refused
    n_bytes, memory = wanted * 2 + masks, machine_memory()
    if n_bytes > memory:
        raise ValueError(
            f"model {str(folder)!r} needs {n_bytes / 2**30:,.0f} GiB, this machine has {memory / 2**30:,.0f}; use a "
            "smaller model or a larger machine."
        )
