"""`load_model`: opens a Hugging Face decoder, checks it and wraps it as a `TransformerBridge`."""

import copy
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ivlens.common.arguments import checked
from ivlens.common.checks import check_filled
from ivlens.common.foreign import read_foreign
from ivlens.common.hub import without_retries
from ivlens.common.memory import pass_on_shortage
from ivlens.common.progress import bar
from ivlens.common.saves import whole
from ivlens.models.adapters import is_adapter, named_base, named_revision
from ivlens.models.boot import TransformerBridge, boot, check_model, check_supported
from ivlens.models.fingerprint import remember_name
from ivlens.models.folders import open_folder
from ivlens.models.gguf import gguf_tokenizer, open_gguf
from ivlens.models.known import finished, label_of, nearest_known, place_of, source_of
from ivlens.models.live import LiveAdapters
from ivlens.models.looks import MOST_TEMPLATE, check_entries
from ivlens.models.merging import with_adapters
from ivlens.models.opening import (
    check_fits,
    check_name,
    first_line,
)
from ivlens.models.plain import plain_model, plain_origin, remember_plain
from ivlens.models.towers import text_tower
from ivlens.models.words import check_words
from ivlens.prompts.tokens import check_tokenizer

_TEMPLATE = "chat_template.jinja"


@checked
def load_model(
    name: str | Path = "pocket",
    *,
    hf_model: Any = None,
    tokenizer: Any = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    base: "str | Path | TransformerBridge | None" = None,
) -> TransformerBridge:
    """Open a decoder-only language model as a bridge, ready for hooks.

    The bridge is in eval mode and without gradients. Its logits were compared with those of the Hugging Face model
    before wrapping. `model.tokenizer` is the given tokenizer itself, or else the checkpoint's; a tokenizer without a
    padding token pads with its end-of-text token. Text given to the model gets a BOS token exactly where the tokenizer
    adds one. Adapters inside a given model (`peft_model.get_base_model()`) stay trainable if they were.

    Example:
        >>> import ivlens
        >>> model = ivlens.load_model("pocket")  # or "smollm2", a folder, a name on the Hub
        >>> model.cfg.n_layers, model.cfg.n_heads
        (6, 8)

    Args:
        name: `"pocket"` (the built-in model), `"smollm2"` (a real one; `ivlens get smollm2` fetches it), a folder, a
            GGUF file that transformers reads, or a name on the Hugging Face Hub. Adapters in a folder that peft wrote
            are merged into the model that they name. Write `"./smollm2"` for a folder with a known model's name.
        hf_model: A model in memory, which is wrapped in place; results then call it `name`. Of a model that takes
            images or sound as well the text part is wrapped.
        tokenizer: The model's tokenizer. None: the checkpoint's; for a model in memory, that of the folder it was read
            from, or none, which is enough for calls that take tokens.
        device: `"auto"`: where a given model is, otherwise the GPU if there is one.
        dtype: `"auto"`: as stored, but float16 becomes float32 on a CPU, and a GGUF file float32.
        revision: Branch, tag or commit on the Hub.
        base: For a folder of adapters: the model they belong to, by name or as a bridge (which is not changed); None:
            the model that they name.

    Raises:
        FileNotFoundError: The folder does not exist or holds no checkpoint, or a known model is not here yet.
        ImportError: A GGUF file, and the package `gguf` is not installed.
        ConnectionError: The Hub could not be reached, or has no such model.
        TypeError: `hf_model` is no transformers model.
        ValueError: An encoder-decoder, no attention heads, NaN weights, a GGUF file that is cut, an architecture that
            is not supported or gives other logits once wrapped, or a device or dtype that does not exist.
    """
    with bar(f"loading {name}" if hf_model is None else "wrapping the model"):
        return _loaded(name, hf_model, tokenizer, device, dtype, revision, base)


def _loaded(
    name: str | Path,
    hf_model: Any,
    tokenizer: Any,
    device: str | torch.device,
    dtype: str | torch.dtype,
    revision: str | None,
    base: "str | Path | TransformerBridge | None",
) -> TransformerBridge:
    """What `load_model` does, without its progress bar."""
    if hf_model is not None and not (isinstance(hf_model, nn.Module) and hasattr(hf_model, "config")):
        raise TypeError(f"hf_model is {type(hf_model).__name__}, expected a transformers model (LlamaForCausalLM ...).")
    asked, place = _dtype(dtype), device_of(device, hf_model)
    check_name(name)
    name = finished(name) if hf_model is None else name
    check_filled(revision=revision, base=base)
    if tokenizer is not None:
        check_tokenizer(tokenizer)
    is_folder = hf_model is None and is_adapter(name)
    if base is not None and not is_folder:
        raise ValueError(f"load_model got base= for {str(name)!r}, which is no folder of adapters; leave base out.")
    if is_folder:
        label = label_of(name)
        hf_model, tokenizer = _adapted(place_of(name), base, tokenizer, asked, revision)
    elif hf_model is None:
        label = label_of(name)
        hf_model, tokenizer = _opened(source_of(name), tokenizer, asked, revision)
    else:
        path = getattr(hf_model, "name_or_path", "")
        label = (path or type(hf_model).__name__) if name == "pocket" else str(name)
        if tokenizer is None and (Path(path or "-") / "tokenizer_config.json").is_file():
            tokenizer = _own_tokenizer(Path(path), None)
    if asked is None and place.type == "cpu" and next(hf_model.parameters()).dtype == torch.float16:
        asked = torch.float32
    hf_model = text_tower(hf_model, label)
    check_supported(hf_model, label)
    if asked is not None or next(hf_model.parameters()).device != place:
        hf_model = hf_model.to(device=place, dtype=asked)
    origin = plain_origin(hf_model)  # before `boot`, which changes the model in place
    adapters = LiveAdapters(hf_model)  # the caller may train adapters inside the model
    model = boot(hf_model, tokenizer, label)
    adapters.keep(model, label)
    remember_plain(model, origin)
    remember_name(model, label, getattr(hf_model.config, "_commit_hash", None) or revision)
    return model


def _adapted(
    folder: Path,
    base: "str | Path | TransformerBridge | None",
    tokenizer: Any,
    dtype: torch.dtype | None,
    revision: str | None,
) -> tuple[Any, Any]:
    """The plain model with the adapters of a folder merged into it, and a tokenizer.

    The tokenizer is the given one, or that in the adapters' folder, or the model's. The model that the adapters belong
    to may itself be a folder of adapters.
    """
    folder = whole(folder)
    has_own = tokenizer is not None or (folder / "tokenizer_config.json").is_file()
    if tokenizer is None and has_own:
        tokenizer = _own_tokenizer(folder, None)
    named = named_base(folder) if base is None else base
    named = finished(named) if isinstance(named, str | Path) else named
    if not isinstance(named, str | Path):
        plain = plain_model(check_model(named))
        tokenizer = named.tokenizer if tokenizer is None else tokenizer
    elif is_adapter(named):
        plain, tokenizer = _adapted(place_of(named), None, tokenizer, dtype, revision)
    else:
        # a revision in the adapters' description belongs to the model that they name, not to another one
        revision = named_revision(folder) if base is None and revision is None else revision
        plain, tokenizer = _opened(source_of(named), tokenizer, dtype, revision)
    template = folder / _TEMPLATE
    if tokenizer is not None and not has_own and template.is_file():
        tokenizer = copy.deepcopy(tokenizer)  # it may be that of the caller's bridge
        check_entries(folder)
        tokenizer.chat_template = read_foreign(template, MOST_TEMPLATE).decode("utf-8")
    return with_adapters(plain, folder).requires_grad_(False).eval(), tokenizer


def _opened(source: str | Path, tokenizer: Any, dtype: torch.dtype | None, revision: str | None) -> tuple[Any, Any]:
    """The plain model of a Hub name, a folder or a GGUF file, and the given tokenizer or else the model's."""
    if isinstance(source, Path) and source.is_file():
        return open_gguf(source, dtype), gguf_tokenizer(source) if tokenizer is None else tokenizer
    with without_retries() if isinstance(source, str) else nullcontext():
        plain = _download(source, dtype, revision)
        return plain, _own_tokenizer(source, revision) if tokenizer is None else tokenizer


def _dtype(dtype: str | torch.dtype) -> torch.dtype | None:
    """The dtype of that name; None for `"auto"`.

    Raises:
        ValueError: no floating-point dtype has that name.
    """
    if dtype == "auto" or isinstance(dtype, torch.dtype):
        return None if dtype == "auto" else dtype
    found = getattr(torch, dtype.removeprefix("torch."), None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"dtype is {dtype!r:.60}, expected 'auto', 'float32', 'bfloat16', 'float16' or a torch.dtype.")
    return found


def device_of(device: str | torch.device, hf_model: Any = None) -> torch.device:
    """The device for a model; for `"auto"` that of `hf_model` if given, otherwise the GPU if there is one.

    Raises:
        ValueError: the device does not exist, or not on this machine.
    """
    if device == "auto":
        if hf_model is not None:
            return next(hf_model.parameters()).device
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    try:
        place = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device is {device!r:.60}, expected 'auto', 'cpu', 'cuda' or 'cuda:0'.") from None
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device is {str(place)!r}, but torch {torch.__version__} sees no GPU here; use device='cpu'.")
    if place.type == "cuda" and place.index is None:
        return torch.device("cuda", torch.cuda.current_device())  # with its number, to compare equal with a parameter's
    return place


def _download(source: str | Path, dtype: torch.dtype | None, revision: str | None) -> Any:
    """The plain model of a folder or of a Hub name."""
    from transformers import AutoModelForCausalLM

    try:
        if isinstance(source, Path):
            return open_folder(source, dtype)
        opened: Any = AutoModelForCausalLM.from_pretrained(
            source,
            revision="main" if revision is None else revision,
            dtype=dtype or "auto",
            trust_remote_code=False,
            attn_implementation="eager",
            output_loading_info=True,
        )
        loaded, about = opened
        check_fits(loaded, about, source)
        return loaded
    except OSError as error:
        if isinstance(source, Path):  # `open_folder` has explained it
            raise
        raise _unreachable(source, error) from None
    except ValueError as error:
        if "Unrecognized configuration class" not in str(error):
            raise
        raise ValueError(
            f"model {str(source)!r} is no decoder-only language model that transformers can open; use a causal one."
        ) from None


def commit_of(name: str) -> dict[str, str]:
    """The present commit of a Hub model's main branch, as `{"commit": ...}`; empty where it cannot be found out."""
    from transformers import AutoConfig

    try:
        with without_retries():
            commit = getattr(AutoConfig.from_pretrained(name, trust_remote_code=False), "_commit_hash", None)
    except Exception as error:  # no error here: opening the model explains what is wrong
        pass_on_shortage(error)
        commit = None
    return {} if commit is None else {"commit": commit}


def _unreachable(source: str, error: Exception) -> ConnectionError:
    """The error, to be raised by the caller, for a name that is no folder and cannot be fetched."""
    return ConnectionError(
        f"model {source!r} is no folder here, and could not be fetched from the Hub ({first_line(error):.60}); "
        f"check name and connection, or pass a local checkpoint folder ({nearest_known(source)})."
    )


def _own_tokenizer(source: str | Path, revision: str | None) -> Any:
    """The tokenizer of a checkpoint folder or a Hub name."""
    from transformers import AutoTokenizer

    if isinstance(source, Path):
        check_words(source)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source, revision="main" if revision is None else revision, trust_remote_code=False
        )
        if not tokenizer("The first 1 of 2, a")["input_ids"]:  # transformers opens one without its vocabulary file too
            raise ValueError("it makes no tokens of a text")
    except Exception as error:  # from three libraries, each with errors of its own
        pass_on_shortage(error)
        if isinstance(source, str):
            raise _unreachable(source, error) from None
        raise FileNotFoundError(
            f"model {str(source)!r} has no tokenizer beside its weights that transformers can open "
            f"({first_line(error):.200}); save one there, or pass tokenizer=."
        ) from None
    return tokenizer
