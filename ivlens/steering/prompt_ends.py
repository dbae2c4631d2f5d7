"""Finds where the prompt ends in the current forward pass, in the same way however a text is decoded.

A hook sees `[batch, pos, ...]` only. In a generation with a cache, the prompt takes one pass or several, and each new
token one more; without a cache the sequence grows; an assistant's tokens are checked several at a time. So columns are
counted from the first cached one, and a generation says how wide its prompt is (`generations.py`). Outside a generation
the tokens, the mask and the cache of each pass are read before it starts.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ivlens.common.owned import Runner
from ivlens.forward.hooked import is_recomputing, whole_passes
from ivlens.forward.hooks import model_lock, steering
from ivlens.models.boot import TransformerBridge
from ivlens.steering.generations import (
    Generation,
    cached_length,
    check_ends_together,
    checked_mask,
    ends_in_padding,
    hf_generation,
    named_arguments,
    refuse_batching,
)
from ivlens.steering.positions import Chosen, PromptPlace, first_columns


class PromptEnds:
    """Knows the prompt's end in every pass through one model while a `followed` context is open."""

    def __init__(self, pad_token: int | None, runner: Runner) -> None:
        self.is_open = True
        self._runner = runner
        self.pad_token = pad_token
        self._generations: list[Generation] = []  # a stack: the bridge's `generate` may call Hugging Face's
        self._running: torch.nn.Module | None = None  # the module whose pass is under way
        self._place: PromptPlace | None = None  # where the prompt lies in that pass

    def columns(self, positions: Chosen) -> Bool[Tensor, "batch pos"]:
        """The positions of the current pass that are edited.

        Raises:
            RuntimeError: a block runs, but no pass of the whole model that began inside the context.
            ValueError: a slice or a mask that does not fit the pass.
        """
        if self._place is None or (self._running is None and not is_recomputing()):
            raise RuntimeError(
                "a block ran outside a forward pass of the steered model, so where the prompt ends is unknown; call "
                "the model itself, inside the context (an assistant must not share its blocks)."
            )
        return self._place.chosen(positions)

    def before_pass(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Pre-hook of the wrapped model: tokens (or embeddings), mask and cache of the call give the prompt's end."""
        self._runner.take()
        if self._running not in (None, module):  # the inner model, called by the one with the unembedding: same pass
            return
        named = named_arguments(module.forward, args, kwargs)
        _check_rows(named)
        given = named.get("input_ids")
        given = named.get("inputs_embeds") if given is None else given
        if not isinstance(given, Tensor):  # the model itself will say what is wrong with its input
            return
        past = cached_length(named.get("past_key_values"))
        batch, pos = given.shape[:2]
        mask = named.get("attention_mask")
        # columns are counted over the whole text, cached ones included
        columns = (past + torch.arange(pos, device=given.device)).expand(batch, pos)
        nothing_padded = torch.zeros(batch, dtype=torch.long, device=given.device)
        starts = nothing_padded if mask is None else first_columns(mask)
        if self._generations:
            generation = self._generations[-1]
            if generation.width is None:  # a generation of the bridge, whose first pass is the whole prompt
                last = _last_token(given, mask, self.pad_token)
                if isinstance(mask, Tensor):
                    check_ends_together(mask)
                generation.width = past + pos
                generation.tokens = given if given.ndim == 2 else None
                generation.first = generation.n_read = past
            generation.check_pass(given, past)
            starts = generation.begins_at(starts)
            # rows of a generation end together, so the last prompt token is in one column for all of them
            last, width = torch.full((batch,), generation.width - 1, device=given.device), generation.width
        elif past:  # a loop written by hand: tokens that follow a cache are generated ones; -1 is no column
            last, width = torch.full((batch,), -1, device=given.device), past
        else:
            last, width = _last_token(given, mask, self.pad_token), pos
        self._place = PromptPlace(columns, last, width, starts)
        self._running = module

    def after_pass(self, module: torch.nn.Module, *_: Any) -> None:
        """Hook of the wrapped model, called whether the pass ended well or not."""
        # another thread's pass, which was refused, must not end this one
        if self._running in (None, module) and self._runner.is_mine():
            self._running = None
            self._rest()

    @contextmanager
    def generating(self, generation: Generation) -> Iterator[None]:
        """Mark the passes of the body as those of this generation."""
        self._runner.take()  # refuses another thread, whose passes would be taken for those of this generation
        self._generations.append(generation)
        try:
            yield
        finally:
            self._generations.pop()
            self._rest()

    @property
    def is_generating(self) -> bool:
        """Whether a generation is running that began inside the context."""
        return bool(self._generations)

    def _rest(self) -> None:
        """Let another thread run the model, once neither a pass nor a generation is under way."""
        if self._running is None and not self._generations:
            self._runner.done()


_SECOND_THREAD = (
    "two threads ran the model inside one steer context, expected one; open a context in each thread (the second waits "
    "for the first), or hold ivlens.forward.hooks.model_lock(model) around other passes."
)
_FOLLOWED: WeakKeyDictionary[TransformerBridge, PromptEnds] = WeakKeyDictionary()


@contextmanager
def followed(model: TransformerBridge) -> Iterator[PromptEnds]:
    """Follow the prompt's end through every pass of the body; nested contexts on one model share one `PromptEnds`."""
    with steering(model) as hold:
        if model in _FOLLOWED:
            yield _FOLLOWED[model]
            return
        ends = PromptEnds(getattr(model.tokenizer, "pad_token_id", None), Runner(model_lock(model), _SECOND_THREAD))
        wrapped = model.original_model
        with hold.undo as stack:  # undone in reverse order, also where the thread that opened the context is gone
            for module in whole_passes(model):
                stack.callback(module.register_forward_pre_hook(ends.before_pass, with_kwargs=True).remove)
                stack.callback(module.register_forward_hook(ends.after_pass, always_call=True).remove)
            for owner, name, wrap in _METHODS:
                owner = model if owner == "bridge" else wrapped
                if hasattr(owner, name):
                    stack.enter_context(_replaced(owner, name, wrap(getattr(owner, name), ends, owner)))
            _FOLLOWED[model] = ends
            stack.callback(_FOLLOWED.pop, model)
            stack.callback(setattr, ends, "is_open", False)
            yield ends


def _watch_call(generate: Callable[..., Any], ends: PromptEnds, _: torch.nn.Module) -> Callable[..., Any]:
    """The bridge's `generate`, its passes marked as one generation."""

    def watched(*args: Any, **kwargs: Any) -> Any:
        with ends.generating(Generation()):
            return generate(*args, **kwargs)

    return watched


def _watch_hf_call(generate: Callable[..., Any], ends: PromptEnds, wrapped: torch.nn.Module) -> Callable[..., Any]:
    """Hugging Face's `generate`, its passes marked as one generation whose prompt the arguments describe."""

    def watched(*args: Any, **kwargs: Any) -> Any:
        named = named_arguments(generate, args, kwargs)
        # a model that drafts for itself (early exit) calls its own `generate`: same text, same prompt, so it is steered
        if ends.is_generating and getattr(named.get("generation_config"), "is_assistant", False):
            return _drafted(generate, args, kwargs)
        with ends.generating(hf_generation(wrapped, named, ends.pad_token)), _whole(wrapped):
            return generate(*args, **kwargs)

    return watched


def _drafted(generate: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Drafts by the model's own first layers; one clear error for families whose forward pass always runs all."""
    try:
        return generate(*args, **kwargs)
    except IndexError as error:  # the cache has fewer layers than ran
        raise ValueError(
            "generate got assistant_early_exit, but this family's forward pass does not exit early; leave it out, or "
            "use an assistant_model."
        ) from error


@contextmanager
def _whole(wrapped: torch.nn.Module) -> Iterator[None]:
    """Restore the number of layers after the body: an early exit that raises would leave the model cut short."""
    config: Any = getattr(wrapped, "base_model", wrapped).config
    n_layers = getattr(config, "num_hidden_layers", None)
    try:
        yield
    finally:
        if n_layers is not None and config.num_hidden_layers != n_layers:
            config.num_hidden_layers = n_layers


def _watch_stream(generate_stream: Callable[..., Any], ends: PromptEnds, _: torch.nn.Module) -> Callable[..., Any]:
    """The bridge's `generate_stream`, its passes marked as one generation, chunk by chunk."""

    def watched(*args: Any, **kwargs: Any) -> Iterator[Any]:
        stream = generate_stream(*args, **kwargs)
        generation = Generation()
        try:
            while True:
                if not ends.is_open:
                    raise RuntimeError("the stream outlived the steer context it began in; read it to its end inside.")
                # marked for each chunk alone: between two chunks the caller may run the model on another prompt
                with ends.generating(generation):
                    chunk = next(stream, ends)  # `ends` stands for the end of the stream, and is no possible chunk
                if chunk is ends:
                    return
                yield chunk
        finally:
            stream.close()

    return watched


def _refuse_batching(*_: Any) -> Callable[..., Any]:
    """A method that refuses continuous batching, in the place of one that begins it."""
    return refuse_batching


def _eager(*_: Any) -> Callable[..., bool]:
    """A method that says no when Hugging Face asks whether to compile the model: hooks break a compiled graph."""
    return lambda *args, **kwargs: False


def _expect_watched(method: Callable[..., Any], ends: PromptEnds, _: torch.nn.Module) -> Callable[..., Any]:
    """A step of every generation, which refuses a `generate` that was taken from the model before the context."""

    def watched(*args: Any, **kwargs: Any) -> Any:
        if not ends.is_generating:
            raise RuntimeError(
                "a generate method that was taken from the model before steering began cannot be followed; "
                "call model.generate or model.hf_generate itself inside the context."
            )
        return method(*args, **kwargs)

    return watched


# methods that are replaced while a context is open: whose method it is, its name, and what makes the new one
_METHODS: tuple[tuple[str, str, Callable[..., Callable[..., Any]]], ...] = (
    ("bridge", "generate", _watch_call),
    ("bridge", "generate_stream", _watch_stream),
    ("wrapped", "generate", _watch_hf_call),
    ("wrapped", "generate_batch", _refuse_batching),
    ("wrapped", "init_continuous_batching", _refuse_batching),
    # private methods of the libraries: if a version lacks one of them, only what is done at this method is left out
    ("bridge", "_generate_tokens", _expect_watched),
    ("wrapped", "_prepare_cache_for_generation", _expect_watched),
    ("wrapped", "_valid_auto_compile_criteria", _eager),
)


@contextmanager
def _replaced(owner: torch.nn.Module, name: str, method: Callable[..., Any]) -> Iterator[None]:
    """Give an object another method in the body, through `__dict__`; afterwards that of its class counts again."""
    before = owner.__dict__.get(name)
    owner.__dict__[name] = method
    try:
        yield
    finally:
        if before is None:
            del owner.__dict__[name]
        else:
            owner.__dict__[name] = before


def _check_rows(named: dict[str, Any]) -> None:
    """Refuse rows that hold several prompts, which have several ends."""
    if any(named.get(name) is not None for name in ("cu_seq_lens_q", "cu_seqlens", "seq_idx")):
        raise ValueError(
            "the pass holds several prompts packed into one row, expected one prompt in each row; pad them instead."
        )


def _last_token(given: Tensor, mask: Any, pad_token: int | None) -> Int[Tensor, " batch"]:
    """The column of each row's last real token, counted in this pass.

    Raises:
        ValueError: padding that cannot be told from text, or a mask that steering cannot read.
    """
    batch, pos = given.shape[:2]
    if mask is None:
        if batch > 1 and given.ndim == 2 and pad_token is not None and bool((given[:, -1] == pad_token).any()):
            raise ends_in_padding(pad_token)
        return torch.full((batch,), pos - 1, device=given.device)
    real = checked_mask(mask)[:, -pos:] != 0  # a mask also covers cached columns, which come first
    if not bool(real.any(1).all()):
        raise ValueError("attention_mask has a row without a single token, expected at least one; leave the row out.")
    return cast(Tensor, pos - 1 - real.flip(1).int().argmax(1))  # argmax gives the first 1 of the flipped row
