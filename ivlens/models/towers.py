"""The text part of a model that takes images or sound as well, as a language model of its own.

Such a model holds an ordinary decoder. Where transformers has a class for that decoder with an unembedding, a model of
that class is made around the same modules, so that nothing is copied and nothing of the other parts is wrapped.
"""

from typing import Any

import torch

from ivlens.common.memory import pass_on_shortage
from ivlens.models.opening import first_line

_OTHER_PARTS = ("vision_config", "audio_config")

# text parts for which transformers has no class with an unembedding, and which are decoders of another family
_SAME_AS = {"qwen3_vl_text": "Qwen3Config", "qwen3_vl_moe_text": "Qwen3MoeConfig"}


def takes_more_than_text(config: Any) -> bool:
    """Whether a configuration has parts for images or sound."""
    return any(getattr(config, name, None) is not None for name in _OTHER_PARTS)


def text_tower(hf_model: Any, label: str) -> Any:
    """The text part of a model in memory, which shares its modules; the model itself if it takes text alone.

    Raises:
        ValueError: there is no such class, or the part alone gives other logits for text than the whole model.
    """
    if not takes_more_than_text(hf_model.config):
        return hf_model
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    config = hf_model.config.get_text_config(decoder=True)
    kind = f"({hf_model.config.model_type})"
    is_another = config.model_type in _SAME_AS
    if is_another:
        config = _as_another(config)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(
            f"model {label!r} {kind} takes more than text, and transformers has no language model of its text part "
            f"alone ({config.model_type}); use a model of text."
        )
    found: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    with torch.device("meta"):  # without memory for weights, all of which are put in place below
        made = found(config)
    tokens = torch.arange(8, device=next(hf_model.parameters()).device)[None] * 7 % config.vocab_size
    try:
        if is_another:
            _fill(made, hf_model.get_decoder())
        else:
            setattr(made, made.base_model_prefix, hf_model.get_decoder())
        made.set_output_embeddings(hf_model.get_output_embeddings())
        made.eval()
        with torch.no_grad():
            want = hf_model.eval()(input_ids=tokens, use_cache=False).logits
            got = made(input_ids=tokens, use_cache=False).logits
    except Exception as error:  # a family whose parts go together in another way, with errors of any kind
        pass_on_shortage(error)
        raise _refused(label, kind, f"cannot be taken out ({type(error).__name__}: {first_line(error):.60})") from error
    if not torch.allclose(got.float(), want.float(), rtol=1e-3, atol=1e-3 * float(want.abs().max())):
        raise _refused(label, kind, "gives other logits by itself")
    made.name_or_path = getattr(hf_model, "name_or_path", "")
    return made


def _as_another(config: Any) -> Any:
    """The configuration of the family of text models that a text part is one of."""
    import transformers

    entries = {key: value for key, value in config.to_dict().items() if key not in ("model_type", "architectures")}
    # a text has one position on all three axes, so how these share the rotary angles changes nothing
    entries["rope_parameters"] = {
        key: value for key, value in entries["rope_parameters"].items() if not key.startswith("mrope_")
    }
    if "moe" in config.model_type:
        entries["norm_topk_prob"] = True  # Qwen 3 has a setting for this, and the text part always does it
    return getattr(transformers, _SAME_AS[config.model_type])(**entries)


def _fill(made: Any, decoder: Any) -> None:
    """Give a model without weights those of a decoder, by name: the same parameters, and not copies."""
    made.base_model.load_state_dict(decoder.state_dict(keep_vars=True), assign=True)
    rotary = made.base_model.rotary_emb  # its tables are no weights
    made.base_model.rotary_emb = type(rotary)(made.config).to(next(decoder.parameters()).device)


def _refused(label: str, kind: str, why: str) -> ValueError:
    return ValueError(f"model {label!r} {kind} takes more than text, and its text part {why}; use a model of text.")
