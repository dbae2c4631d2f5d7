"""Opens GGUF files, the format of llama.cpp, with transformers, and writes them as ordinary checkpoints."""

import copy
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from logging import getLogger
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from ivlens.models.boot import check_config
from ivlens.models.ggufheader import Header, check_gguf_installed, check_whole, read_header, refuse
from ivlens.models.opening import check_fits, check_sizes, opened_by

logger = getLogger("ivlens")

_REMEDY = "expected a GGUF of a decoder that it reads (Llama, Mistral, Qwen, Gemma, Phi-3 ...); use another file"
_NAME = "model.gguf"
# Shares of the time of a conversion, which sum to 1. Most of it goes into reading the vocabulary, once for each part.
_CONFIG, _TOKENIZER, _WEIGHTS, _TENSORS, _WRITING = 0.22, 0.20, 0.45, 0.08, 0.05

OnShare = Callable[[float], object]  # is told what share of the work was done since its last call


def open_gguf(path: Path, dtype: torch.dtype | None = None, *, on_share: OnShare = lambda share: None) -> nn.Module:
    """A Hugging Face model with the weights of a GGUF file, dequantised; it trains and saves like any other.

    Args:
        path: The file.
        dtype: Dtype of the weights; None: float32, which holds the numbers of every quantisation.
        on_share: Called with the share of a whole conversion that has been done since its last call.

    Raises:
        ImportError: the package `gguf` is missing.
        ValueError: the file is cut or damaged, holds no decoder, or one of a family that transformers cannot read.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    header = _checked(path)
    reading = partial(opened_by, "transformers", f"model {str(path)!r}", _REMEDY)
    # building a model draws random numbers, which must not change the caller's draws
    with _folder_of_one(path) as folder, _quietly(on_share), torch.random.fork_rng(devices=[]):
        with reading():
            config = AutoConfig.from_pretrained(folder, gguf_file=_NAME)
        check_config(config, str(path))
        check_sizes(config, path)
        on_share(_CONFIG)
        with reading():
            opened: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                gguf_file=_NAME,
                config=config,
                dtype=dtype or torch.float32,
                attn_implementation="eager",
                output_loading_info=True,
            )
        read, about = opened
        check_fits(read, about, str(path))
        on_share(_WEIGHTS)
        plain = _plain(read)
    if any(tensor.name.startswith("rope_freqs") for tensor in header.tensors):
        logger.warning(
            "%s: transformers leaves out how the file stretches positions (rope_freqs); long prompts may differ.", path
        )
    return plain


def gguf_tokenizer(path: Path) -> Any:
    """The tokenizer inside a GGUF file, with its chat template.

    Raises:
        ImportError: the package `gguf` is missing.
        ValueError: the file has no tokenizer that transformers can read.
    """
    _checked(path)
    remedy = "expected a GGUF with a tokenizer that it reads; use another file, or pass tokenizer="
    label = f"the tokenizer of {str(path)!r}"
    with _folder_of_one(path) as folder, _quietly(), opened_by("transformers", label, remedy):
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(folder, gguf_file=_NAME)


def write_checkpoint(path: Path, folder: Path, *, on_share: OnShare = lambda share: None) -> None:
    """Write the model of a GGUF file, in float32, and its tokenizer as a checkpoint folder for transformers.

    Args:
        path: The GGUF file.
        folder: An existing folder for the checkpoint.
        on_share: Called with the share of the work that has been done since its last call.

    Raises:
        ImportError: the package `gguf` is missing.
        ValueError: a file that `open_gguf` or `gguf_tokenizer` refuses.
    """
    model: Any = open_gguf(path, on_share=on_share)
    tokenizer = gguf_tokenizer(path)
    on_share(_TOKENIZER)
    with _quietly():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    on_share(_WRITING)


def _checked(path: Path) -> Header:
    """The header of a file, after checks that the file is whole and holds one model."""
    check_gguf_installed()
    header = read_header(path)
    kind, n_parts = header.fields.get("general.type", "model"), header.fields.get("split.count", 0)
    if kind != "model":
        refuse(path, f"is a GGUF of the type {kind!r:.40}, not a model")
    if isinstance(n_parts, int) and n_parts > 1:
        refuse(path, f"is one of {n_parts} parts of a model (llama-gguf-split --merge makes one file of them)")
    if not isinstance(header.fields.get("general.architecture"), str):
        refuse(path, "does not say which family it belongs to (general.architecture)")
    check_whole(path, header)
    return header


@contextmanager
def _folder_of_one(path: Path) -> Iterator[Path]:
    """A temporary folder with the file alone: transformers would also use what lies beside it, even adapters."""
    with TemporaryDirectory(prefix="ivlens-gguf-") as temporary:
        folder = Path(temporary)
        try:
            os.symlink(path.resolve(), folder / _NAME)
        except OSError:  # some systems have no symbolic links, or only for administrators
            os.link(path, folder / _NAME)
        yield folder


def _plain(read: Any) -> Any:
    """The same model built anew without its GGUF settings, with which transformers refuses to save it."""
    config = copy.deepcopy(read.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    dtype = next(read.parameters()).dtype
    plain = type(read).from_pretrained(
        None, config=config, state_dict=read.state_dict(), dtype=dtype, attn_implementation="eager"
    )
    plain.generation_config = read.generation_config
    return plain.eval()


@contextmanager
def _quietly(on_share: OnShare = lambda share: None) -> Iterator[None]:
    """In the body, transformers shows no progress bars; its loop over all tensors calls `on_share` instead."""
    from transformers import modeling_gguf_pytorch_utils as reading
    from transformers.utils import logging

    def counted(items: Iterable[Any], **_: Any) -> Iterator[Any]:
        listed = list(items)
        for item in listed:
            yield item
            on_share(_TENSORS / len(listed))

    # the loop's bar is a name in that module, which not every version of transformers has
    shown, bar = logging.is_progress_bar_enabled(), getattr(reading, "tqdm", None)
    logging.disable_progress_bar()
    if bar is not None:
        reading.tqdm = counted
    try:
        yield
    finally:
        if bar is not None:
            reading.tqdm = bar
        if shown:
            logging.enable_progress_bar()
