"""Wrapping a Hugging Face model as a bridge, and making sure that it is the same model afterwards."""

import copy
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ivlens.models.opening import opened_by

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
else:  # importing transformer_lens takes seconds; at run time a bridge is checked as what it is, a module
    TransformerBridge = nn.Module

_PROBE_LENGTH = 8


def check_config(config: Any, label: str) -> None:
    """Refuse what a config alone shows to be no supported decoder.

    Raises:
        ValueError: encoder-decoder, or Falcon's new decoder architecture.
    """
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"model {label!r} is an encoder-decoder ({config.model_type}), expected a decoder-only language model; "
            "use a causal one such as Llama, Qwen, Gemma or GPT-2."
        )
    if getattr(config, "new_decoder_architecture", False):
        raise ValueError(
            f"model {label!r} uses Falcon's new decoder architecture, which transformer_lens wraps with wrong logits; "
            "use another model (falcon-7b has the older architecture and works)."
        )


def check_supported(hf_model: Any, label: str) -> None:
    """Refuse a model that cannot be measured.

    Raises:
        ValueError: encoder-decoder, wrapped already, or weights that are not finite.
    """
    if hasattr(hf_model, "get_base_model"):
        raise ValueError(
            f"model {label!r} is a PEFT wrapper, expected the model inside; merge the adapter "
            "(peft_model.merge_and_unload()), or pass peft_model.get_base_model() where q, k and v are not fused."
        )
    check_config(hf_model.config, label)
    if any("_original_component" in name for name, _ in hf_model.named_modules()):
        raise ValueError(f"model {label!r} is wrapped already; use the bridge load_model returned, or load it afresh.")
    for name, parameter in hf_model.named_parameters():
        if parameter.is_floating_point() and not bool(torch.isfinite(parameter).all()):
            raise ValueError(
                f"model {label!r} has weights that are not finite (NaN or inf) in {name}, expected numbers; "
                "the checkpoint is broken or was trained to divergence: use another one."
            )


def boot(hf_model: Any, tokenizer: Any, label: str) -> TransformerBridge:
    """The bridge of `hf_model`, in eval mode and without gradients, with `tokenizer` as it is.

    Raises:
        ValueError: no attention heads, architecture unknown to transformer_lens, or logits changed by wrapping.
    """
    from transformer_lens.model_bridge import TransformerBridge as Bridge

    _freeze(hf_model.eval())
    hf_model.set_attn_implementation("eager")  # what the bridge runs: on Falcon sdpa is another model
    if not hf_model.config.architectures:
        hf_model.config.architectures = [type(hf_model).__name__]
    parameter = next(hf_model.parameters())
    n_words = hf_model.get_input_embeddings().weight.shape[0]
    probe = torch.arange(_PROBE_LENGTH, device=parameter.device)[None] * 7 % n_words
    with torch.no_grad(), opened_by("transformers", f"model {label!r}", "expected one that runs; check its config"):
        want = hf_model(probe, use_cache=False).logits
    try:
        model = Bridge.boot_transformers(
            "ivlens/in-memory",  # a name it does not know, so that it neither renames nor downloads anything
            hf_model=hf_model,
            tokenizer=_stand_in(tokenizer),
            device=str(parameter.device),
            dtype=parameter.dtype,
        )
    except Exception as error:  # whatever the wrapping stumbles over
        raise ValueError(
            f"model {label!r} ({type(hf_model).__name__}) cannot be wrapped by transformer_lens "
            f"({str(error).splitlines()[0]:.160}); use an architecture it supports."
        ) from error
    _keep_tokenizer(model, tokenizer)
    model.cfg.model_name = label
    _freeze(model.eval())
    _check_heads(model, label)
    with torch.no_grad():
        _check_logits(model(probe, use_cache=False), want, label)
    return model


def _freeze(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.requires_grad_(False)


def _stand_in(tokenizer: Any) -> Any:
    """A tokenizer for booting only: booting reloads, or adds special tokens to, the one it gets."""
    if tokenizer is None:
        from tokenizers import Tokenizer, models
        from transformers import PreTrainedTokenizerFast

        words = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
        stand_in = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", bos_token="<unk>")
        stand_in.add_special_tokens({"eos_token": "<unk>", "pad_token": "<unk>"})
    else:
        stand_in = copy.deepcopy(tokenizer)
    stand_in.init_kwargs.setdefault("name_or_path", "")
    stand_in.init_kwargs["add_bos_token"] = True  # "is already so": otherwise it is loaded again from its name
    return stand_in


def _keep_tokenizer(model: TransformerBridge, tokenizer: Any) -> None:
    if tokenizer is not None and (tokenizer.pad_token is None or tokenizer.pad_token_id >= _n_words(model)):
        # the bridge pads even a single text; a padding token may have been added without one for it in the model
        tokenizer.pad_token = tokenizer.eos_token
    model.tokenizer = None  # replacing one by another would configure, that is, change, the other
    model.tokenizer = tokenizer
    if hasattr(model._driver, "tokenizer"):
        model._driver.tokenizer = tokenizer
    # text given to the bridge is tokenised as the tokenizer does it, so that a prompt is the same here and in ivlens
    model.cfg.default_prepend_bos = bool(tokenizer is not None and model.cfg.tokenizer_prepends_bos)


def _n_words(model: TransformerBridge) -> int:
    wrapped: Any = model.original_model
    return wrapped.get_input_embeddings().weight.shape[0]


def _check_heads(model: TransformerBridge, label: str) -> None:
    cfg = model.cfg
    want = (cfg.n_heads, cfg.d_head, cfg.d_model)
    for layer, block in enumerate(getattr(model, "blocks", [None])):
        attention = getattr(block, "attn", None)
        weight = getattr(attention, "W_O", None)
        if attention is None or weight is None:
            raise ValueError(
                f"model {label!r} ({cfg.architecture}) has no attention heads in layer {layer}, expected attention in "
                "every layer; use a transformer (not a state-space, recurrent or hybrid model)."
            )
        if tuple(weight.shape) != want:
            raise ValueError(
                f"model {label!r} ({cfg.architecture}): the output projection of layer {layer} has shape "
                f"{tuple(weight.shape)}, expected (n_heads, d_head, d_model) = {want}; its heads cannot be told apart, "
                "use another model."
            )


def _check_logits(
    got: Float[Tensor, "batch pos d_vocab"], want: Float[Tensor, "batch pos d_vocab"], label: str
) -> None:
    if not bool(torch.isfinite(want).all()):
        raise ValueError(f"model {label!r} gives logits that are not finite; load it with dtype='float32'.")
    tolerance = 1e-3 if want.dtype in (torch.float32, torch.float64) else 5e-2
    error = float((got - want).abs().max())
    if not error <= tolerance * max(1.0, float(want.abs().max())):  # so that NaN fails
        raise ValueError(
            f"model {label!r} failed the self-check: wrapped, its logits differ from Hugging Face's by {error:.3g}, "
            f"expected at most {tolerance:g} of their size; load it with attn_implementation='eager' if it was not, "
            "otherwise transformer_lens does not reproduce this architecture: use another model."
        )


def check_model(model: Any) -> TransformerBridge:
    """`model`, if it is a bridge.

    Raises:
        TypeError: anything else, such as the Hugging Face model itself.
    """
    # by what it has: the class is some other module at run time, see TransformerBridge above
    if not all(hasattr(model, name) for name in ("original_model", "blocks", "cfg")):
        raise TypeError(
            f"model is {type(model).__name__}, expected the TransformerBridge that ivlens.load_model returns; "
            "wrap a Hugging Face model with load_model(hf_model=model, tokenizer=tokenizer)."
        )
    return model
