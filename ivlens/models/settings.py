"""What a model's numbers depend on beside its weights: its configuration and its tokenizer, each as one hash."""

import json
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from ivlens.common.memory import pass_on_shortage

# Names, versions, what a caller may ask for, and how texts end: no logit depends on them. The dtype is recorded with
# the weights; trainers write the tokenizer's special tokens into the configuration, where nothing here reads them.
_IRRELEVANT = {
    "architectures", "auto_map", "bos_token_id", "dtype", "eos_token_id", "finetuning_task", "gradient_checkpointing",
    "id2label", "label2id", "name_or_path", "output_attentions", "output_hidden_states", "pad_token_id",
    "problem_type", "return_dict", "sep_token_id", "task_specific_params", "torch_dtype", "transformers_version",
    "unk_token_id", "use_cache",
}  # fmt: skip
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "cls_token", "mask_token")
_PLAIN = ("add_bos_token", "add_eos_token", "clean_up_tokenization_spaces", "split_special_tokens", "chat_template")
_PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
_WITNESS = "The Quick  brown fox\njumps over 1234.5 déjà-vu <s> İ ﬁ 你好 it's"
_MISSING = "no such entry"

_TOKENIZERS: WeakKeyDictionary[Any, tuple[str, str]] = WeakKeyDictionary()


def config_facts(config: Any) -> dict[str, Any]:
    """What a configuration says of the numbers, as far as it differs from what its class says by default.

    So that neither a newer version of transformers, which knows more options, nor saving and opening changes it.
    """
    try:
        default = type(config)().to_dict()
    except Exception as error:  # a class that cannot be made without its arguments
        pass_on_shortage(error)
        default = {}
    found = _differences(json.loads(_text(config.to_dict())), json.loads(_text(default)))
    return {"model_type": str(getattr(config, "model_type", "")), **found}


def _differences(values: dict[str, Any], default: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for name in sorted(values.keys() | default.keys()):
        if name in _IRRELEVANT or name.startswith("_"):
            continue
        ours, theirs = values.get(name, _MISSING), default.get(name, _MISSING)
        if isinstance(ours, dict):
            inner = _differences(ours, theirs if isinstance(theirs, dict) else {})
            if inner or not isinstance(theirs, dict):
                found[name] = inner
        elif ours != theirs:
            found[name] = ours
    return found


def plain_name(name: str) -> str:
    """The name that a parameter, a buffer or a module of a bridge has in the model that it wraps."""
    return name.replace("._original_component", "")


def lasting_buffers(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Tensors that are no parameters and yet no consequence of the configuration: what is saved, and all of adapters.

    Such are the biases by which DeepSeek's router chooses, and the random projections of VeRA.
    """
    found = []
    for place, module in model.named_modules():
        home = type(module).__module__
        # the bridge's own, and the bias of zeros that it gives the unembedding
        if home.startswith("transformer_lens") or isinstance(module, nn.Linear):
            continue
        unsaved: set[str] = getattr(module, "_non_persistent_buffers_set", set())  # private to torch
        for name, buffer in module.named_buffers(recurse=False, remove_duplicate=False):
            if name not in unsaved or home.startswith("peft."):
                found.append((plain_name(f"{place}.{name}"), buffer.detach()))
    return sorted(found, key=lambda pair: pair[0])


def tokenizer_hash(tokenizer: Any) -> str:
    """SHA-256 (hex) of everything that makes tokens of a text, and prompts of a chat; empty without a tokenizer.

    Vocabulary, merges, normaliser, added and special tokens, and the chat template. The padding token is left out:
    padding is masked, and trainers set it on the tokenizer that they are given. So are padding and truncation, which
    every call sets anew.
    """
    if tokenizer is None:
        return ""
    state = _text(_quick_state(tokenizer))
    try:
        known = _TOKENIZERS.get(tokenizer)
    except TypeError:  # one that cannot be a key
        return _tokenizer_hash(tokenizer)
    if known is None or known[0] != state:
        known = state, _tokenizer_hash(tokenizer)
        _TOKENIZERS[tokenizer] = known
    return known[1]


def _tokenizer_hash(tokenizer: Any) -> str:
    try:
        content = json.loads(tokenizer.backend_tokenizer.to_str())
        content = {name: value for name, value in content.items() if name not in ("truncation", "padding")}
    except Exception as error:  # one that is written in Python, or has a part that is
        pass_on_shortage(error)
        content = {"kind": type(tokenizer).__name__, "files": _files(tokenizer)}
    return sha256(_text([content, _spoken(tokenizer)]).encode()).hexdigest()


def _spoken(tokenizer: Any) -> dict[str, Any]:
    """Special tokens, chat template, and options that are not part of the tokenizer proper."""
    return {name: found for name in (*_SPECIAL, *_PLAIN) if (found := getattr(tokenizer, name, None)) is not None}


def _files(tokenizer: Any) -> dict[str, str]:
    """Content of the files of a tokenizer that is written in Python, or else what it does."""
    with TemporaryDirectory(prefix="ivlens-tokenizer-") as folder:
        try:
            tokenizer.save_vocabulary(folder)
        except Exception as error:  # some have no files
            pass_on_shortage(error)
        found = {path.name: sha256(path.read_bytes()).hexdigest() for path in sorted(Path(folder).iterdir())}
    words = tokenizer.get_vocab() if hasattr(tokenizer, "get_vocab") else None
    return found | {"words": _text(words), "behaviour": _text(_quick_state(tokenizer))}


def _quick_state(tokenizer: Any) -> list[Any]:
    """Something that changes with almost any change of a tokenizer, without reading its whole vocabulary."""
    state: list[Any] = [_spoken(tokenizer)]
    try:
        state += [len(tokenizer), tokenizer(_WITNESS, add_special_tokens=True, verbose=False)["input_ids"]]
        parts = [getattr(tokenizer.backend_tokenizer, name) for name in _PARTS]
        state += [None if part is None else part.__getstate__().decode() for part in parts]
    except Exception as error:  # written in Python, wholly or in part
        pass_on_shortage(error)
        state.append(type(tokenizer).__name__)
    return state


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
