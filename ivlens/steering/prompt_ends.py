"""Where the prompt ends in the forward pass under way: the same answer with and without a KV cache, left or right
padded.

A hook sees `[batch, pos, ...]` only. In a generation with a cache the prompt is one pass and every new token another;
without a cache the sequence grows, and "the last position" is the prompt's end only once. So the tokens, the mask and
the cache of each pass are looked at before it starts, and the generating methods are watched.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ivlens.forward.hooks import steering
from ivlens.models.boot import TransformerBridge
from ivlens.steering.edits import Positions


@dataclass
class _Generation:
    """One running generation: the width of its prompt and the column of each row's last prompt token, once known."""

    width: int | None = None
    last: Tensor | None = None


class PromptEnds:
    """Follows the passes through one model while a `followed` context is open."""

    def __init__(self, pad_token: int | None) -> None:
        self.is_open = True
        self._pad_token = pad_token
        self._generations: list[_Generation] = []
        self._thread: int | None = None
        self._prompt: Tensor | None = None
        self._generated: Tensor | None = None

    def columns(self, positions: Positions) -> Bool[Tensor, "batch pos"]:
        """Which positions of the pass under way are meant.

        `prompt`: the last prompt token. `every`: that one, and every token generated after it.

        Raises:
            RuntimeError: the pass began before the context did.
        """
        if self._prompt is None or self._generated is None:
            raise RuntimeError(
                "a forward pass was under way when steering began, so where its prompt ends is unknown; "
                "start it inside the context."
            )
        return self._prompt if positions == "prompt" else self._prompt | self._generated

    def before_pass(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Pre-hook of the wrapped model: its tokens (or embeddings), mask and cache tell where the prompt ends."""
        self._check_thread()
        given = args[0] if args else kwargs.get("input_ids")
        given = kwargs.get("inputs_embeds") if given is None else given
        assert isinstance(given, Tensor)
        cache = kwargs.get("past_key_values")
        past = int(cache.get_seq_length()) if cache is not None else 0
        batch, pos = given.shape[:2]
        columns = (past + torch.arange(pos, device=given.device)).expand(batch, pos)
        generation = self._generations[-1] if self._generations else _Generation()
        if past and not self._generations:  # a loop written by hand: what follows a cache is generated
            generation = _Generation(past, torch.full((batch,), -1, device=given.device))
        if generation.width is None:
            generation.last = past + _last_token(given, kwargs.get("attention_mask"), self._pad_token)
            generation.width = past + pos
        assert generation.last is not None
        self._prompt = columns == generation.last[:, None]
        self._generated = columns >= generation.width

    @contextmanager
    def generating(self, generation: _Generation) -> Iterator[None]:
        """The passes of the body belong to this generation."""
        self._generations.append(generation)
        try:
            yield
        finally:
            self._generations.pop()

    def _check_thread(self) -> None:
        me = threading.get_ident()
        if self._thread not in (None, me):
            raise RuntimeError(
                "two threads ran the model inside one steer context, expected one; open a context in each thread "
                "(the second waits for the first), or hold ivlens.forward.hooks.model_lock(model) around other passes."
            )
        self._thread = me


_FOLLOWED: WeakKeyDictionary[TransformerBridge, PromptEnds] = WeakKeyDictionary()


@contextmanager
def followed(model: TransformerBridge) -> Iterator[PromptEnds]:
    """Follow the prompt's end through every pass of the body; contexts on one model share one `PromptEnds`."""
    with steering(model):
        if model in _FOLLOWED:
            yield _FOLLOWED[model]
            return
        ends = PromptEnds(getattr(model.tokenizer, "pad_token_id", None))
        with ExitStack() as stack:
            wrapped = model.original_model
            stack.callback(wrapped.register_forward_pre_hook(ends.before_pass, with_kwargs=True).remove)
            for owner, name, wrap in (
                (model, "generate", _watch_call),
                (wrapped, "generate", _watch_call),
                (model, "generate_stream", _watch_stream),
            ):
                stack.enter_context(_replaced(owner, name, wrap(getattr(owner, name), ends)))
            _FOLLOWED[model] = ends
            stack.callback(_FOLLOWED.pop, model)
            try:
                yield ends
            finally:
                ends.is_open = False


def _watch_call(generate: Callable[..., Any], ends: PromptEnds) -> Callable[..., Any]:
    def watched(*args: Any, **kwargs: Any) -> Any:
        with ends.generating(_Generation()):
            return generate(*args, **kwargs)

    return watched


def _watch_stream(generate_stream: Callable[..., Any], ends: PromptEnds) -> Callable[..., Any]:
    def watched(*args: Any, **kwargs: Any) -> Iterator[Any]:
        stream = generate_stream(*args, **kwargs)
        generation = _Generation()
        try:
            while True:
                if not ends.is_open:
                    raise RuntimeError("the stream outlived the steer context it began in; read it to its end inside.")
                # a pass of another prompt may run between two chunks
                with ends.generating(generation):
                    chunk = next(stream, ends)
                if chunk is ends:
                    return
                yield chunk
        finally:
            stream.close()

    return watched


@contextmanager
def _replaced(owner: torch.nn.Module, name: str, method: Callable[..., Any]) -> Iterator[None]:
    before = owner.__dict__.get(name)
    owner.__dict__[name] = method
    try:
        yield
    finally:
        if before is None:
            del owner.__dict__[name]
        else:
            owner.__dict__[name] = before


def _last_token(given: Tensor, mask: Any, pad_token: int | None) -> Int[Tensor, " batch"]:
    """Column of each row's last real token among those of this pass.

    Raises:
        ValueError: padding that cannot be told from text.
    """
    batch, pos = given.shape[:2]
    if mask is None:
        if batch > 1 and given.ndim == 2 and pad_token is not None and bool((given[:, -1] == pad_token).any()):
            raise ValueError(
                f"a row ends in the pad token {pad_token} and there is no attention_mask, so the last prompt token is "
                "unknown; pass attention_mask (for a list of texts: tokenise it first, with padding)."
            )
        return torch.full((batch,), pos - 1, device=given.device)
    if not isinstance(mask, Tensor) or mask.ndim != 2:
        shape = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(
            f"attention_mask is {shape}, expected [batch, pos] of zeros and ones; steering needs that form."
        )
    real = mask[:, -pos:] != 0
    if not bool(real.any(1).all()):
        raise ValueError("attention_mask has a row without a single token, expected at least one; leave the row out.")
    return cast(Tensor, pos - 1 - real.flip(1).int().argmax(1))
