"""Wraps a Hugging Face model as a `TransformerBridge`, and checks that it still computes the same."""

import copy
from typing import TYPE_CHECKING, Any
from weakref import ref

import torch
from torch import nn

from ivlens.common.memory import pass_on_shortage
from ivlens.common.names import shown
from ivlens.common.precision import HALF
from ivlens.models.attention import Attention, attention_of, mixer_name
from ivlens.models.mending import bound_masks, mend
from ivlens.models.opening import first_line
from ivlens.models.selfcheck import PlainLogits, difference, plain_logits
from ivlens.models.towers import takes_more_than_text

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
else:  # importing transformer_lens takes seconds; at run time, signatures are checked against its base class
    TransformerBridge = nn.Module


class ModelRef(ref[TransformerBridge]):
    """A weak reference to a model. Copies of a result share it; a pickle of the result does not contain the model."""

    @classmethod
    def set_in(cls, result: Any) -> None:
        """Turn the `model_ref` of a frozen result, any weak reference or None, into a `ModelRef` or None."""
        model = None if result.model_ref is None else result.model_ref()
        object.__setattr__(result, "model_ref", None if model is None else cls(model))

    def __reduce__(self) -> tuple[Any, ...]:
        return _no_model, ()

    def __copy__(self) -> "ModelRef":
        return self

    def __deepcopy__(self, _: Any) -> "ModelRef":
        return self


WeakModel = ref[TransformerBridge] | None


def _no_model() -> None:
    """A model reference after unpickling: None, because the model is not in that process."""


def check_config(config: Any, label: str) -> None:
    """Refuse a model whose configuration already shows that it cannot be measured, before its weights are read.

    Raises:
        ValueError: an encoder-decoder, a model of images or sound, Gemma 3n, or Falcon's new decoder architecture.
    """
    kind = getattr(config, "model_type", "")
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"model {label!r} is an encoder-decoder ({kind}), expected a decoder-only language model.")
    if takes_more_than_text(config):
        # and never wrapped: transformer_lens would fetch a processor for it, and install packages by itself
        raise ValueError(
            f"model {label!r} ({kind}) takes more than text, expected a language model alone; open it with "
            "transformers and pass hf_model=, of which the text part is used."
        )
    if kind.startswith("gemma3n"):
        raise ValueError(
            f"model {label!r} ({kind}) keeps several residual streams (AltUp), expected one; use another model."
        )
    if kind == "recurrent_gemma":
        raise ValueError(
            f"model {label!r} ({kind}) reads padding as text and keeps its state outside the cache; use another model."
        )
    if getattr(config, "new_decoder_architecture", False):
        raise ValueError(
            f"model {label!r} has Falcon's new decoder architecture, which transformer_lens wraps with wrong logits; "
            "use another model."
        )


def check_supported(hf_model: Any, label: str) -> None:
    """Refuse a model in memory that cannot be wrapped or measured.

    Raises:
        ValueError: a configuration that `check_config` refuses, a PEFT wrapper, a model that is wrapped already, or
            weights that are not finite or not in memory.
    """
    if hasattr(hf_model, "get_base_model"):
        raise ValueError(
            f"model {label!r} is a PEFT wrapper, expected the model inside; merge the adapter "
            "(peft_model.merge_and_unload()), or pass peft_model.get_base_model() where q, k and v are not fused."
        )
    check_config(hf_model.config, label)
    if any(parameter.is_meta for parameter in hf_model.parameters()):
        raise ValueError(
            f"model {label!r} has weights on the disk (meta tensors), expected all of them in memory; load it without "
            "device_map, in a smaller dtype if need be."
        )
    if any("_original_component" in name for name, _ in hf_model.named_modules()):
        raise ValueError(f"model {label!r} is wrapped already; use the bridge load_model returned, or load it afresh.")
    for name, parameter in hf_model.named_parameters():
        if parameter.is_floating_point() and not bool(torch.isfinite(parameter).all()):
            raise ValueError(
                f"model {label!r} has weights that are not finite (NaN or inf) in {name}, expected numbers; "
                "the checkpoint is broken or was trained to divergence: use another one."
            )


def boot(hf_model: Any, tokenizer: Any, label: str) -> TransformerBridge:
    """`hf_model` wrapped as a bridge, in eval mode and without gradients; `tokenizer` gets a padding token if need be.

    Raises:
        ValueError: no attention heads, an architecture that transformer_lens does not know, or logits that wrapping
            changes.
    """
    from transformer_lens.model_bridge import TransformerBridge as Bridge

    _freeze(hf_model.eval())
    hf_model.set_attn_implementation("eager")  # as the bridge computes; with sdpa Falcon gives other logits
    if getattr(hf_model.config, "position_embedding_type", "") is None:
        # None means "no positions" to Granite's hybrids; the bridge knows that as "nope"
        hf_model.config.position_embedding_type = "nope"
    if not hf_model.config.architectures:
        hf_model.config.architectures = [type(hf_model).__name__]
    parameter = next(hf_model.parameters())
    want = plain_logits(hf_model, label)  # now, because wrapping changes the model in place
    try:
        model = Bridge.boot_transformers(
            "ivlens/in-memory",  # a name that transformer_lens does not know, so that it looks up and downloads nothing
            hf_model=hf_model,
            tokenizer=_stand_in(tokenizer),
            device=str(parameter.device),
            dtype=parameter.dtype,
        )
    except Exception as error:  # transformer_lens raises errors of many kinds here
        pass_on_shortage(error)
        known = "Could not determine supported architecture" not in str(error)
        reason = first_line(error).split(". ")[0] if known else "it has no adapter for this architecture"
        raise ValueError(
            f"{_named(label, type(hf_model).__name__)} cannot be wrapped by transformer_lens ({reason:.70}); "
            "use another model."
        ) from error
    _keep_tokenizer(model, tokenizer)
    model.cfg.model_name = shown(label)
    _freeze(model.eval())
    bound_masks(model)
    _check_heads(model, label)
    _check_same(model, hf_model, want, label)
    return model


def _freeze(model: nn.Module) -> None:
    """Switch off the gradients of all parameters."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)


def _stand_in(tokenizer: Any) -> Any:
    """A tokenizer for wrapping only, because transformer_lens reloads or changes the one that it is given."""
    if tokenizer is None:
        from tokenizers import Tokenizer, models
        from transformers import PreTrainedTokenizerFast

        words = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
        stand_in = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", bos_token="<unk>")
        stand_in.add_special_tokens({"eos_token": "<unk>", "pad_token": "<unk>"})
    else:
        stand_in = copy.deepcopy(tokenizer)
    stand_in.init_kwargs.setdefault("name_or_path", "")
    stand_in.init_kwargs["add_bos_token"] = True  # otherwise it would be loaded again by its name
    return stand_in


def _keep_tokenizer(model: TransformerBridge, tokenizer: Any) -> None:
    """Put the caller's tokenizer into the bridge, in the place of the stand-in."""
    if tokenizer is not None and (tokenizer.pad_token is None or tokenizer.pad_token_id >= _n_words(model)):
        # the bridge pads even a single text, and a padding token beyond the embedding matrix would be an index error
        tokenizer.pad_token = tokenizer.eos_token
    model.tokenizer = None  # first None: the bridge changes a tokenizer that replaces another one
    model.tokenizer = tokenizer
    if hasattr(model._driver, "tokenizer"):
        model._driver.tokenizer = tokenizer
    # the bridge adds a BOS token where the tokenizer does, so that a text gives the same tokens there as in ivlens
    model.cfg.default_prepend_bos = bool(tokenizer is not None and model.cfg.tokenizer_prepends_bos)


def _n_words(model: TransformerBridge) -> int:
    """Rows of the embedding matrix."""
    wrapped: Any = model.original_model
    return wrapped.get_input_embeddings().weight.shape[0]


def _check_heads(model: TransformerBridge, label: str) -> None:
    """Refuse a bridge unless it has attention, whose output projection splits into one matrix of one shape per head."""
    cfg = model.cfg
    blocks = list(getattr(model, "blocks", ()))
    if not blocks:
        raise _refusal(cfg, label, "it has no plain stack of layers")
    found = {layer: attention for layer, block in enumerate(blocks) if (attention := attention_of(block))}
    if not found:
        raise _refusal(cfg, label, f"no layer has attention heads (layer 0 has {mixer_name(blocks[0])})")
    if len({id(attention.module) for attention in found.values()}) < len(found):
        # a hook on the one module would edit all of these layers
        raise _refusal(cfg, label, f"the layers {', '.join(map(str, found))} share one attention")
    _set_width(model, [*found.values()])
    for layer, attention in found.items():
        shape = _projection_shape(model, layer, label) if attention.is_wrapped else _plain_shape(model, attention)
        want = (cfg.n_heads, cfg.d_head, cfg.d_model)
        if shape != want:
            shapes = f"{shape}, expected (n_heads, d_head, d_model) = {want}"
            raise _refusal(cfg, label, f"the output projection of layer {layer} has shape {shapes}")


def _set_width(model: TransformerBridge, found: list[Attention]) -> None:
    """Correct the width of heads' outputs in latent attention, where transformer_lens has that of queries."""
    projection: Any = found[0].projection
    if not found[0].is_wrapped and hasattr(found[0].module, "kv_lora_rank"):
        model.cfg.d_head = projection.weight.shape[1] // model.cfg.n_heads


def _projection_shape(model: TransformerBridge, layer: int, label: str) -> tuple[int, ...]:
    """The shape of a layer's `W_O`, as transformer_lens splits it into heads."""
    try:
        weight = getattr(model.blocks[layer].attn, "W_O", None)
    except Exception as error:  # transformer_lens could not split the projection into heads
        pass_on_shortage(error)
        why = f"layer {layer} has heads of another size than the model's, which transformer_lens does not tell apart"
        raise _refusal(model.cfg, label, why) from None
    if weight is None:
        why = f"attention in layer {layer} has no output projection of its own (W_O)"
        raise _refusal(model.cfg, label, why)
    return tuple(weight.shape)


def _plain_shape(model: TransformerBridge, attention: Attention) -> tuple[int, ...]:
    """The same of attention that transformer_lens has not wrapped; its heads stand side by side in equal parts."""
    projection: Any = attention.projection
    n_out, n_in = projection.weight.shape
    width, rest = divmod(n_in, model.cfg.n_heads)
    return model.cfg.n_heads, 0 if rest else width, n_out


def _refusal(cfg: Any, label: str, reason: str) -> ValueError:
    """The error, to be raised by the caller, for a model whose heads cannot be found."""
    return ValueError(f"{_named(label, cfg.architecture)}: {reason}; use another model.")


def _named(label: str, kind: str) -> str:
    """A model as errors name it: its label, and its class where the label does not say it."""
    return f"model {label!r}" if label == kind else f"model {label!r} ({kind})"


def _check_same(model: TransformerBridge, hf_model: Any, want: PlainLogits, label: str) -> None:
    """Refuse a bridge with other logits than `want`, even after known faults of the wrapping were mended."""
    reason = difference(model, hf_model, want)
    if reason is not None:
        mend(model)
        reason = difference(model, hf_model, want)
    if reason is not None:
        remedy = "load it with dtype='float32'" if want.first.dtype in HALF else "use another model"
        raise ValueError(f"model {label!r} failed the self-check: wrapped, it {reason}; {remedy}.")


def check_model(model: Any, name: str = "model") -> TransformerBridge:
    """`model`, if it is a bridge; `name` is what the error calls it.

    Raises:
        TypeError: anything else, such as the Hugging Face model itself.
    """
    # recognised by its attributes: asking for the class would import transformer_lens, see the top of the file
    if not all(hasattr(model, each) for each in ("original_model", "blocks", "cfg")):
        raise TypeError(
            f"{name} is {type(model).__name__}, expected the TransformerBridge that ivlens.load_model returns; "
            "wrap a Hugging Face model with load_model(hf_model=model, tokenizer=tokenizer)."
        )
    return model
