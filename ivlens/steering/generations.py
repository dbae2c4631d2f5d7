"""Reads from a call of `generate`, before it starts, how wide its prompt is and whether steering can follow it.

Hugging Face's `generate` splits a prompt into chunks, continues caches, drafts tokens and checks several of them in one
pass. In all these ways rows end together (padding on the left). So the last prompt token of every row is in column
`width - 1`, counted from the first cached column, and the width is known from the call alone.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ivlens.steering.positions import first_columns


@dataclass
class Generation:
    """What is known of the prompt of one running generation.

    Attributes:
        width: Columns of the prompt, cached ones and padding included; None until the first pass.
        tokens: The prompt's tokens from column `first` on; None where the prompt is given as embeddings.
        first: The column of `tokens[:, 0]`.
        n_read: Columns that went through the model so far, or were cached before.
        starts: The column of each prompt's first real token; None until it is known.
    """

    width: int | None = None
    tokens: Tensor | None = None
    first: int = 0
    n_read: int = 0
    starts: Tensor | None = None

    def begins_at(self, starts: Tensor | None) -> Tensor | None:
        """Where the prompts begin: as the call said, or else as the first pass shows whose mask is `[batch, pos]`."""
        if self.starts is None:
            self.starts = starts
        return self.starts

    def check_pass(self, given: Tensor, past: int) -> None:
        """Refuse a pass over another prompt, such as the unconditional pass of classifier-free guidance.

        Args:
            given: Tokens or embeddings of the pass.
            past: Columns cached before the pass.

        Raises:
            ValueError: the pass has other tokens where the prompt should be, or begins or ends at a column where no
                pass over this prompt could.
        """
        assert self.width is not None
        end = past + given.shape[1]
        # while the prompt is being read, each pass begins where the last one ended; later passes end behind the prompt
        is_other = past != self.n_read if self.n_read < self.width else end < self.width
        n_shared = min(end, self.width) - past
        if not is_other and n_shared > 0 and self.tokens is not None and past >= self.first:
            start = past - self.first
            is_other = given.ndim != 2 or not _rows_of(given[:, :n_shared], self.tokens[:, start : start + n_shared])
        if is_other:
            raise ValueError(
                "generate ran the model on another prompt than its own, so where to steer is unknown; leave out what "
                "does that (a processor, guidance, virtual tokens)."
            )
        self.n_read = max(self.n_read, end)


def _rows_of(given: Tensor, prompt: Tensor) -> bool:
    """Whether every row of `given` is a row of `prompt`; beams and several returned sequences repeat rows."""
    prompt = prompt.to(given.device)
    n_times, rest = divmod(len(given), len(prompt))
    # first the usual order, in one comparison; then row by row, since reordered beams may repeat rows unevenly
    if not rest and torch.equal(given, prompt.repeat_interleave(n_times, 0)):
        return True
    return all(bool((row == prompt).all(1).any()) for row in given)


def hf_generation(model: Any, named: dict[str, Any], pad_token: int | None) -> Generation:
    """The width and tokens of the prompt in a call `model.generate(**named)` of Hugging Face.

    Args:
        pad_token: The tokenizer's pad token, which the call may not mention.

    Raises:
        ValueError: a way of decoding that cannot be steered; padding on the right; a prompt whose end cannot be known.
    """
    _check_options(model, named)
    tokens = named.get("inputs") if named.get("inputs") is not None else named.get("input_ids")
    embeds = named.get("inputs_embeds")
    mask = named.get("attention_mask")
    given = tokens if embeds is None else embeds
    past = cached_length(named.get("past_key_values"))
    _check_drafts(model, named, past)
    if mask is not None:
        check_ends_together(checked_mask(mask))
    elif embeds is None and tokens is not None:
        _check_unmasked(tokens, named, model, pad_token)
    n_given = given.shape[1] if given is not None else 1  # without a prompt Hugging Face begins with one BOS token
    n_masked = mask.shape[1] if mask is not None else n_given
    if not n_given:
        raise ValueError("generate got a prompt without a token, expected at least one, such as BOS.")
    if embeds is not None:
        # tokens beside embeddings are the ones that are already embedded, or none
        if tokens is not None and tokens.shape[1] not in (0, n_given):
            raise ValueError(
                f"generate got {tokens.shape[1]} tokens beside {n_given} inputs_embeds, expected equally many; "
                "pass inputs_embeds alone."
            )
        tokens = None
    # two ways to continue a cache: the call has the whole prompt, cached tokens included, or only the new tokens with a
    # mask over everything
    if n_masked == n_given and n_given > past:
        return Generation(n_given, tokens, n_read=past, starts=_starts(mask, tokens, named, model))
    if n_masked == past + n_given and embeds is None:
        return Generation(n_masked, tokens, past, past, _starts(mask, tokens, named, model))
    raise ValueError(
        f"generate got {n_given} tokens, a mask of {n_masked} and a cache of {past}, so the prompt's end is unknown; "
        "pass the whole prompt, cached tokens included, with a mask of the same length."
    )


def _starts(mask: Any, tokens: Tensor | None, named: dict[str, Any], model: Any) -> Tensor | None:
    """The column of each prompt's first real token; None where only a pass may show it."""
    if mask is not None or tokens is None:
        return first_columns(mask)
    # without a mask Hugging Face takes pad tokens for padding
    pad = _option("pad_token_id", named, model)
    if isinstance(pad, int) and bool((tokens == pad).any()):
        return None
    return torch.zeros(len(tokens), dtype=torch.long, device=tokens.device)


def cached_length(cache: Any) -> int:
    """The number of columns that a cache holds; 0 without a cache.

    Raises:
        ValueError: it is no cache of transformers.
    """
    if cache is None:
        return 0
    if not hasattr(cache, "get_seq_length"):
        raise ValueError(
            f"past_key_values is {type(cache).__name__}, expected a Cache of transformers, such as DynamicCache."
        )
    return int(cache.get_seq_length())


def named_arguments(method: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name, those given by position included."""
    return dict(zip(inspect.signature(method).parameters, args, strict=False)) | kwargs


def _option(name: str, named: dict[str, Any], model: Any) -> Any:
    """A generation option as Hugging Face will see it: from the call, else from its config, else from the model's."""
    if name in named:
        return named[name]
    configs = named.get("generation_config"), getattr(model, "generation_config", None)
    return next((value for config in configs if (value := getattr(config, name, None)) is not None), None)


# options that are refused while steered: name, the values that mean "off", and the reason
_REFUSED: tuple[tuple[str, tuple[Any, ...], str], ...] = (
    ("guidance_scale", (None, 1), "it is undefined whether the pass without condition is steered too"),
    ("negative_prompt_ids", (None,), "it is undefined whether the negative prompt is steered too"),
    ("token_healing", (None, False), "it rewrites the prompt's last token, where the vector belongs"),
    ("assistant_ensemble_weight", (None,), "it lets the assistant, which is not steered, choose tokens"),
    ("use_mtp", (None, False), "its drafts were not tried with steering"),
    ("speculation_type", (None,), "its drafts were not tried with steering"),
)


def _check_options(model: Any, named: dict[str, Any]) -> None:
    """Refuse options that would give a text that is not steered, or with which transformers itself fails."""
    for name, off, reason in _REFUSED:
        value = _option(name, named, model)
        # numbers by value, as 1.0 means 1; others by identity, as a tensor has no truth value
        if not any(value is none or (isinstance(value, int | float) and value == none) for none in off):
            shown = "given" if isinstance(value, Tensor) else f"{value!r}"
            raise ValueError(f"generate cannot be steered with {name} ({shown}): {reason}; leave it out.")
    if _option("cache_implementation", named, model) == "paged":
        refuse_batching()
    if named.get("inputs_embeds") is not None and _option("prefill_chunk_size", named, model) is not None:
        raise ValueError("Hugging Face cannot read inputs_embeds in chunks; leave out prefill_chunk_size.")
    cache = str(_option("cache_implementation", named, model))
    if cache.startswith("offloaded") and model.device.type == "cpu":
        raise ValueError(f"cache_implementation={cache!r} needs a GPU, and the model is on the CPU; leave it out.")


def _check_drafts(model: Any, named: dict[str, Any], past: int) -> None:
    """Refuse drafted tokens (assistants, prompt lookup) where transformers loses or repeats a part of the prompt."""
    assistant = named.get("assistant_model")
    if hasattr(assistant, "original_model"):
        raise ValueError("assistant_model is a bridge, expected the Hugging Face model; pass its .original_model.")
    options = ("assistant_early_exit", "prompt_lookup_num_tokens")
    if assistant is None and all(_option(name, named, model) is None for name in options):
        return
    if past:
        raise ValueError(
            f"past_key_values holds {past} tokens, expected an empty cache: with drafted tokens, transformers reads "
            "cached ones a second time; leave the cache or the assistant out."
        )
    if named.get("inputs_embeds") is not None:
        raise ValueError(
            "generate got inputs_embeds, beside which transformers loses drafted tokens; pass input_ids, or leave out "
            "the assistant, early exit or prompt lookup."
        )


def refuse_batching(*_: Any, **__: Any) -> None:
    """Refuse continuous batching; called instead of the methods that begin it.

    Raises:
        ValueError: always.
    """
    raise ValueError(
        "continuous batching packs prompts into one row in a thread of its own, so it cannot be steered; "
        "use generate with a padded batch."
    )


def check_ends_together(mask: Tensor) -> None:
    """Refuse a prompt padded on the right, as its continuation would be written behind the padding.

    Raises:
        ValueError: a row of the mask does not end in a token.
    """
    if bool((mask[:, -1] == 0).any()):
        raise ValueError(
            "generate got a prompt padded on the right, after which Hugging Face itself continues wrongly; "
            "pad on the left (tokenizer.padding_side = 'left')."
        )


def checked_mask(mask: Any) -> Tensor:
    """The mask itself, if it is a tensor `[batch, pos]` of any dtype.

    Raises:
        ValueError: it is something else, such as a mask of four dimensions.
    """
    if not isinstance(mask, Tensor) or mask.ndim != 2:
        shape = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"attention_mask is {shape}, expected [batch, pos] of zeros and ones; steering needs that.")
    return mask


def ends_in_padding(pad_token: int) -> ValueError:
    """The error for a row that ends in the pad token without a mask that tells padding from text."""
    return ValueError(
        f"a row ends in the pad token {pad_token} and there is no attention_mask, so the last prompt token is unknown; "
        "pad on the left and pass attention_mask."
    )


def _check_unmasked(tokens: Tensor, named: dict[str, Any], model: Any, pad_token: int | None) -> None:
    """Refuse rows without a mask that may end in padding, since their last prompt token is unknown."""
    pad, end = _option("pad_token_id", named, model), _option("eos_token_id", named, model)
    ends = {int(row[-1]) for row in tokens} if tokens.shape[1] else set()
    # without a mask Hugging Face takes pad tokens for padding, unless they are end tokens too
    meant = {pad} - set(end if isinstance(end, list | tuple) else [end])
    # rows of one batch may be padded to one width, so there the tokenizer's pad token counts as well
    if found := (ends & ({pad, pad_token} if len(tokens) > 1 else meant) - {None}):
        raise ends_in_padding(min(found))
