"""Hashes of a tokenizer, and the parts of a configuration that a model's logits depend on."""

import json
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from ivlens.common.memory import pass_on_shortage

# Entries of a configuration that change no logit: names, versions, options of a call, ends of texts. The dtype is part
# of the hash of the weights. Special tokens are part of the tokenizer's hash; trainers copy them into configurations.
_IRRELEVANT = {
    "architectures", "auto_map", "bos_token_id", "dtype", "eos_token_id", "finetuning_task", "gradient_checkpointing",
    "id2label", "label2id", "name_or_path", "output_attentions", "output_hidden_states", "pad_token_id",
    "problem_type", "return_dict", "sep_token_id", "task_specific_params", "torch_dtype", "transformers_version",
    "unk_token_id", "use_cache",
}  # fmt: skip
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "cls_token", "mask_token")
# options that transformers' wrapper holds beside the tokenizer itself
_PLAIN = ("add_bos_token", "add_eos_token", "clean_up_tokenization_spaces", "split_special_tokens", "chat_template")
_PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
# a text whose tokens differ after almost any change of a tokenizer: blanks, line break, digits, accents, ligature
_SAMPLE_TEXT = "The Quick  brown fox\njumps over 1234.5 déjà-vu <s> İ ﬁ 你好 it's"
_MISSING = "no such entry"

# for each tokenizer: its quick state at the last hashing, and the hash
_TOKENIZERS: WeakKeyDictionary[Any, tuple[str, str]] = WeakKeyDictionary()


def config_facts(config: Any) -> dict[str, Any]:
    """The entries of a configuration that logits depend on and that differ from the defaults of its class.

    Defaults are left out, so that the result stays the same after saving and opening, and in a newer transformers with
    more options.
    """
    try:
        default = type(config)().to_dict()
    except Exception as error:  # a class that needs arguments has no defaults
        pass_on_shortage(error)
        default = {}
    found = _differences(json.loads(_text(config.to_dict())), json.loads(_text(default)))
    return {"model_type": str(getattr(config, "model_type", "")), **found}


def _differences(values: dict[str, Any], default: dict[str, Any]) -> dict[str, Any]:
    """The entries of `values`, at any depth, that logits depend on and that differ from `default`."""
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
    """The plain model's name for a parameter, buffer or module, made from its name in the bridge."""
    return name.replace("._original_component", "")


def lasting_buffers(model: nn.Module) -> list[tuple[str, Tensor]]:
    """The buffers that logits depend on and that cannot be computed from the configuration, sorted by name.

    These are the saved buffers and all buffers of adapters, such as the biases with which DeepSeek's router chooses,
    and the random projections of VeRA.
    """
    found = []
    for place, module in model.named_modules():
        home = type(module).__module__
        # left out: buffers of the bridge's own modules, and the zero bias that it adds to the unembedding
        if home.startswith("transformer_lens") or isinstance(module, nn.Linear):
            continue
        unsaved: set[str] = getattr(module, "_non_persistent_buffers_set", set())  # torch has no public name for it
        for name, buffer in module.named_buffers(recurse=False, remove_duplicate=False):
            if name not in unsaved or home.startswith("peft."):
                found.append((plain_name(f"{place}.{name}"), buffer.detach()))
    return sorted(found, key=lambda pair: pair[0])


def tokenizer_hash(tokenizer: Any) -> str:
    """SHA-256 (hex) of all that decides the tokens of a text or a chat; empty without a tokenizer.

    These are vocabulary, merges, normaliser, added and special tokens, and the chat template. The padding token is left
    out, because padding is masked and trainers often set another one. Settings of padding and truncation are left out
    too, because every call sets them.
    """
    if tokenizer is None:
        return ""
    state = _text(_quick_state(tokenizer))
    try:
        known = _TOKENIZERS.get(tokenizer)
    except TypeError:  # it cannot be the key of a weak dictionary
        return _tokenizer_hash(tokenizer)
    if known is None or known[0] != state:
        known = state, _tokenizer_hash(tokenizer)
        _TOKENIZERS[tokenizer] = known
    return known[1]


def _tokenizer_hash(tokenizer: Any) -> str:
    """What `tokenizer_hash` gives, computed anew."""
    try:
        content = json.loads(tokenizer.backend_tokenizer.to_str())
        content = {name: value for name, value in content.items() if name not in ("truncation", "padding")}
    except Exception as error:  # tokenizers that are written in Python, wholly or in part
        pass_on_shortage(error)
        content = {"kind": type(tokenizer).__name__, "files": _files(tokenizer)}
    return sha256(_text([content, _special_options(tokenizer)]).encode()).hexdigest()


def _special_options(tokenizer: Any) -> dict[str, Any]:
    """Special tokens, chat template and options, which transformers holds beside the tokenizer itself."""
    return {name: found for name in (*_SPECIAL, *_PLAIN) if (found := getattr(tokenizer, name, None)) is not None}


def _files(tokenizer: Any) -> dict[str, str]:
    """Hashes of the vocabulary files of a tokenizer that is written in Python, its words, and its quick state."""
    with TemporaryDirectory(prefix="ivlens-tokenizer-") as folder:
        try:
            tokenizer.save_vocabulary(folder)
        except Exception as error:  # some have no files
            pass_on_shortage(error)
        found = {path.name: sha256(path.read_bytes()).hexdigest() for path in sorted(Path(folder).iterdir())}
    words = tokenizer.get_vocab() if hasattr(tokenizer, "get_vocab") else None
    return found | {"words": _text(words), "behaviour": _text(_quick_state(tokenizer))}


def _quick_state(tokenizer: Any) -> list[Any]:
    """A few facts about a tokenizer: quick to get, and different after almost any change of it."""
    state: list[Any] = [_special_options(tokenizer)]
    try:
        state += [len(tokenizer), tokenizer(_SAMPLE_TEXT, add_special_tokens=True, verbose=False)["input_ids"]]
        parts = [getattr(tokenizer.backend_tokenizer, name) for name in _PARTS]
        state += [None if part is None else part.__getstate__().decode() for part in parts]
    except Exception as error:  # written in Python, wholly or in part
        pass_on_shortage(error)
        state.append(type(tokenizer).__name__)
    return state


def _text(value: Any) -> str:
    """A value as JSON with sorted keys; what JSON lacks is written as text."""
    return json.dumps(value, sort_keys=True, default=str)
