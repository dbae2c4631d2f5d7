"""Context managers that read and edit activations of a live model; the only file that spells hook names.

Each of them holds the model's lock, removes its hooks whatever happens, and raises if no forward pass reached them.
Head outputs `z` always have shape `[batch, pos, n_heads, d_head]`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from operator import index
from typing import Any, Literal, SupportsIndex, cast
from weakref import WeakKeyDictionary, ref

import torch
from jaxtyping import Float
from torch import Tensor

from ivlens.common.owned import Hold, OwnedLock
from ivlens.forward.firing import Edit, Firing, Select, keeping, replacing
from ivlens.forward.hooked import remove_left_hooks, whole_passes
from ivlens.forward.places import Place, joining, mixer_place
from ivlens.models.attention import attention_layers, attention_of, without_heads
from ivlens.models.boot import TransformerBridge, check_model
from ivlens.models.mixers import Columns, columns, existing
from ivlens.models.projection import head_matrices

Site = Literal["resid_post", "attn_out"]
SITES: tuple[Site, ...] = ("resid_post", "attn_out")

_LOCKS: WeakKeyDictionary[TransformerBridge, OwnedLock] = WeakKeyDictionary()  # weak: a lock keeps no model alive
_LOCKS_GUARD = OwnedLock()


def model_lock(model: TransformerBridge) -> OwnedLock:
    """The one re-entrant lock of `model`, held around every hooked call: hooks belong to the model, not to a thread.

    Threads that hook two models at once must lock them in the same order, or each waits for the other forever.
    """
    lock = _LOCKS.get(model)
    if lock is None:
        with _LOCKS_GUARD:  # two threads that come first at once must get the same lock
            lock = _LOCKS.setdefault(check_model(model), OwnedLock(partial(remove_left_hooks, ref(model))))
    return lock


@contextmanager
def steering(model: TransformerBridge) -> Iterator[Hold]:
    """Mark the body as steered, while hooks of the caller edit the end of each prompt. Marks nest."""
    with model_lock(model).held("steer") as hold:
        yield hold


def is_steered(model: TransformerBridge) -> bool:
    """Whether a `steering` context is open on this model."""
    return model in _LOCKS and any(hold.purpose == "steer" for hold in _LOCKS[model].holds())


def check_unsteered(model: TransformerBridge) -> None:
    """Refuse passes with answer tokens inside `steering`: the last of them would be taken for the prompt's end.

    Raises:
        RuntimeError: this thread has a `steering` context open on the model, in this asyncio task or in another one. A
            context of another thread is no error: it is waited for.
    """
    with model_lock(model):
        if is_steered(model):
            raise RuntimeError(
                "this thread has a steer context open on the model, expected none: the vector would be added to answer "
                "tokens; leave it before scoring or measuring (evaluate_intervention judges a vector)."
            )


# Hook points of the bridge, and the exception to them: where the bridge has no room for a tensor, hooks go on modules
# of Hugging Face, see `Place`. That is attention in Nemotron-H, which calls all its mixers by one name; the heads of
# latent attention, whose width the bridge mistakes; and those of recurrent mixers, which it shows in few families.
# `hook_attn_out` shows what reaches the residual stream, after any post-norm; `attn.hook_out` is before that norm
_PLACES = {
    "heads": "attn.hook_z",
    "patterns": "attn.hook_pattern",
    "projection": "attn.o.hook_out",
    "resid_post": "hook_out",
    "attn_out": "hook_attn_out",
}


def _place(model: TransformerBridge, layer: int, place: str, wide: Columns | None = None) -> Place:
    name = f"blocks.{layer}.{_PLACES[place]}"
    if place == "resid_post":
        return Place(name)
    attention = attention_of(model.blocks[layer])
    if attention is None:
        raise ValueError(without_heads(model, layer))
    if attention.is_wrapped or (place == "patterns" and hasattr(model.blocks[layer], "attn")):
        return Place(name, wide=wide)
    if place == "patterns":
        return Place(name, attention.module, "weights")
    # without a norm after it, what the projection gives is what attention adds
    return Place(name, attention.projection, "heads" if place == "heads" else "output", model.cfg.n_heads, wide)


def _head_places(model: TransformerBridge, layer: int, mixers: bool) -> list[Place]:
    """Where the outputs of a layer's heads are: at attention, or with `mixers` there and at the recurrent mixer."""
    if not mixers:
        return [_place(model, layer, "heads")]
    own = [_place(model, layer, "heads", columns(model))] if layer in attention_layers(model) else []
    return own + [place for place in [mixer_place(model, layer, "heads")] if place is not None]


def whole_numbers(name: str, values: Iterable[Any]) -> tuple[int, ...]:
    """`values` as ints; TypeError for texts, truth values and fractions, which `int()` would convert in silence."""
    try:
        values = tuple(values)
        if any(isinstance(value, bool) or getattr(value, "dtype", None) == torch.bool for value in values):
            raise TypeError
        return tuple(index(value) for value in values)
    except TypeError:
        raise TypeError(f"{name} are {values!r}, expected whole numbers in a list, counted from 0.") from None


def check_layers(model: TransformerBridge, layers: Iterable[SupportsIndex]) -> tuple[int, ...]:
    """`layers` as a tuple, in the order given.

    Raises:
        TypeError: the model is no bridge, or a layer no whole number.
        ValueError: a layer the model does not have.
    """
    if model not in _LOCKS:  # a model that has a lock passed this check before
        check_model(model)
    chosen = whole_numbers("layers", layers)
    for layer in chosen:
        if not 0 <= layer < model.cfg.n_layers:
            raise ValueError(
                f"layer {layer} does not exist: the model has {model.cfg.n_layers} layers, "
                f"0 to {model.cfg.n_layers - 1}; choose one of them."
            )
    return chosen


def check_site(site: str) -> Site:
    """`site` itself; ValueError if it is not one of `SITES`."""
    if site not in SITES:
        raise ValueError(f"site is {site!r:.60}, expected one of {', '.join(SITES)}.")
    return cast(Site, site)


@contextmanager
def _hooked(model: TransformerBridge, hooks: Mapping[Place, Callable[[Tensor], Tensor | None]]) -> Iterator[None]:
    """In the body these hooks are on the model, under its lock; they are removed however the body ends."""
    lock = model_lock(model)
    with lock.held() as hold:
        firing = Firing((place.name for place in hooks), lock)
        with hold.undo as undo:  # closed by the lock where the context's own thread is gone
            for module in whole_passes(model):
                undo.callback(module.register_forward_hook(firing.after_pass, always_call=True).remove)
            watched = {place: firing.watched(place.name, hook) for place, hook in hooks.items()}
            points = [(place.name, hook) for place, hook in watched.items() if place.module is None]
            undo.enter_context(model.hooks(fwd_hooks=points))
            for place in (place for place in watched if place.module is not None):
                undo.callback(place.attach(watched[place]).remove)
            yield
        if not hold.is_over:  # a context that was ended from outside need not have run a pass
            firing.check()


@contextmanager
def _captured(
    model: TransformerBridge, layers: Iterable[int] | None, place: str, select: Select | None
) -> Iterator[dict[int, Tensor]]:
    kept: dict[int, Tensor] = {}
    chosen = attention_layers(check_model(model)) if layers is None else check_layers(model, layers)
    with _hooked(model, {_place(model, layer, place): keeping(kept, layer, select) for layer in chosen}):
        yield kept


@contextmanager
def captured_heads(
    model: TransformerBridge,
    layers: Iterable[int] | None = None,
    *,
    select: Select | None = None,
    mixers: bool = False,
) -> Iterator[dict[int, Tensor]]:
    """Keep head outputs: `with captured_heads(model) as z: model(tokens)`, then `z[layer]`.

    Args:
        layers: the layers to read; None: all that have heads.
        select: applied to each `z` before it is kept, e.g. `lambda z: z[:, -1]`, so that a long prompt costs no memory.
        mixers: whether heads of recurrent mixers are read too: then `z` has the columns of `ivlens.models.mixers`.

    Returns:
        A context that gives `layer -> z [batch, pos, n_heads, d_head]`, filled by the forward pass; of several passes
        the last one's.

    Raises:
        ValueError: no such layer, or one without heads.
        RuntimeError: no forward pass reached one of the layers.
    """
    if not mixers:
        with _captured(model, layers, "heads", select) as kept:
            yield kept
        return
    found: dict[int, Tensor] = {}
    has_heads = existing(check_model(model)).any(1).nonzero()[:, 0].tolist()
    chosen = has_heads if layers is None else check_layers(model, layers)
    with _hooked(model, joining(found, {layer: _head_places(model, layer, True) for layer in chosen}, select)):
        yield found


def captured_residual(
    model: TransformerBridge, layers: int | Iterable[int], site: str = "resid_post", *, select: Select | None = None
) -> AbstractContextManager[dict[int, Tensor]]:
    """Keep the activations at a site, `layer -> [batch, pos, d_model]`; otherwise as `captured_heads`."""
    return _captured(model, [layers] if isinstance(layers, int) else layers, check_site(site), select)


def captured_projection(
    model: TransformerBridge, layers: Iterable[int] | None = None, *, select: Select | None = None
) -> AbstractContextManager[dict[int, Tensor]]:
    """Keep `sum_h z_h W_O^h + b_O`, before any post-norm, `[batch, pos, d_model]`; otherwise as `captured_heads`."""
    return _captured(model, layers, "projection", select)


@contextmanager
def captured_mixers(model: TransformerBridge) -> Iterator[dict[int, Tensor]]:
    """Keep what the output projections of recurrent mixers give, `layer -> [batch, pos, d_model]`."""
    kept: dict[int, Tensor] = {}
    places = {layer: mixer_place(model, layer, "output") for layer in columns(check_model(model)).layers}
    with _hooked(model, {place: keeping(kept, layer, None) for layer, place in places.items() if place is not None}):
        yield kept


def captured_patterns(
    model: TransformerBridge, layers: Iterable[int] | None = None, *, select: Select | None = None
) -> AbstractContextManager[dict[int, Tensor]]:
    """Keep attention weights, `layer -> [batch, n_heads, pos, pos]` with a row of keys for each query.

    Otherwise as `captured_heads`. A `select` that cuts rows out should clone them: a view keeps the whole pattern.
    """
    return _captured(model, layers, "patterns", select)


@contextmanager
def patched_heads(
    model: TransformerBridge,
    edits: Callable[[Tensor, int], Tensor],
    layers: Iterable[int],
    *,
    mixers: bool = False,
) -> Iterator[None]:
    """Run the body with head outputs `z -> edits(z, layer)` in each of `layers`.

    `edits` returns a new tensor of the same shape `[batch, pos, n_heads, d_head]` and does not change its argument.
    Contexts nest: the outer one edits first, and whatever is captured inside sees the edited values. With `mixers`, `z`
    has the columns of `ivlens.models.mixers`, zeros for columns that a place does not have; a layer with attention and
    a mixer is edited in both places.

    Raises:
        ValueError: no such layer, one without heads, or an edit changed the shape.
        RuntimeError: no forward pass reached one of the layers.
    """
    places = [(place, at) for at in check_layers(model, layers) for place in _head_places(model, at, mixers)]
    with _hooked(model, {place: place.editing(lambda z, layer=at: edits(z, layer)) for place, at in places}):
        yield


@contextmanager
def added(model: TransformerBridge, layer: int, site: str, edit: Edit) -> Iterator[None]:
    """Run the body with `edit` applied at `site` of `layer`; it keeps the shape `[batch, pos, d_model]`.

    `resid_post` is the output of the whole block; `attn_out` is what attention adds to the residual stream, after a
    post-norm where the family has one.

    Raises:
        ValueError: no such layer or site, no attention there (`attn_out`), or the edit changed the shape.
        RuntimeError: no forward pass reached the layer.
    """
    (layer,) = check_layers(model, [layer])
    place = _place(model, layer, check_site(site))
    with _hooked(model, {place: replacing(place.name, edit)}):
        yield


def output_projection(
    model: TransformerBridge, layer: int | None = None
) -> Float[Tensor, "*n_layers n_heads d_head d_model"]:
    """`W_O` of every head of one layer: the projection's output is `z @ W_O` summed over heads, plus a bias.

    Adapters on the projection are included, merged or not. The bias belongs to no head, so no vector contains it.
    Without a layer: the matrices of all layers in one tensor, which is a copy, and needs them all on one device; NaN in
    layers without heads.

    Raises:
        ValueError: no such layer, or one without heads.
    """
    if layer is None:
        own = {each: head_matrices(model, each) for each in attention_layers(check_model(model))}
        none = torch.full_like(next(iter(own.values())), torch.nan)
        return torch.stack([own.get(each, none) for each in range(model.cfg.n_layers)])
    (layer,) = check_layers(model, [layer])
    return head_matrices(model, layer)
