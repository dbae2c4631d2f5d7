"""Merges adapters into a model's weights, and checks that the logits stay those that peft computes."""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors.torch import save_file
from torch import Tensor, nn

from ivlens.common.memory import pass_on_shortage
from ivlens.common.names import one_line
from ivlens.common.precision import rounding_share
from ivlens.models.adapters import CONFIG, WEIGHTS, Adapter, read_adapters
from ivlens.models.bounds import check_bounds

_PREFIX = "base_model.model."  # before the names of weights in an adapter's file


def with_adapters(plain: Any, folder: str | Path) -> Any:
    """The model `plain` with the adapters of `folder` merged into its weights; `plain` is used up.

    If the adapters were trained with a larger vocabulary, the embeddings are enlarged first.

    Raises:
        ImportError: peft is not installed.
        ValueError: the adapters are damaged or incomplete, do not fit the model, or cannot be merged.
    """
    try:
        from peft import PeftModel
    except ImportError:
        what = "adapters need the package peft, which is not installed; pip install 'ivlens[tune]'."
        raise ImportError(what) from None
    found = read_adapters(folder)
    for adapter in found.values():
        check_bounds(adapter, plain)
    first, *others = found
    try:
        with _quietly(), TemporaryDirectory(prefix="ivlens-adapters-") as temporary:
            _fit_vocabulary(plain, [adapter.shapes for adapter in found.values()])
            copies = {name: _copied(adapter, Path(temporary) / name) for name, adapter in found.items()}
            wrapped: Any = PeftModel.from_pretrained(plain, copies[first], adapter_name=first)
            for name in others:
                wrapped.load_adapter(copies[name], name)
        for name, adapter in found.items():
            _check_all_used(wrapped, name, set(adapter.tensors))
        wrapped.base_model.set_adapter(list(found))
        return merged(wrapped.eval())
    except Exception as error:  # from peft, torch or safetensors, each with errors of its own
        pass_on_shortage(error)
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise ValueError(
            f"the adapters in {str(folder)!r} do not fit the model ({reason}), expected the model they were trained on "
            "and files as peft wrote them; name it with base=, or save them again."
        ) from None


def _copied(adapter: Adapter, place: Path) -> Path:
    """A folder with the adapter as it was read and checked.

    peft opens this copy: it maps files, which may change, and reads other files that lie beside them.
    """
    place.mkdir()
    (place / CONFIG).write_text(json.dumps(dict(adapter.about)), encoding="utf-8")
    save_file({name: tensor.clone().contiguous() for name, tensor in adapter.tensors.items()}, place / WEIGHTS)
    return place


def merged(wrapped: Any) -> Any:
    """The Hugging Face model inside a peft model, with the active adapters merged; `wrapped` is used up.

    Where an adapter changes one of two embeddings that share a weight, each gets a weight of its own: peft's forward
    pass changes one of them alone, but its merging would change both.

    Raises:
        ValueError: merging changes the logits by more than rounding.
    """
    probe = _probe(wrapped)
    with torch.no_grad(), _quietly():
        want = wrapped(input_ids=probe, use_cache=False).logits
        base = wrapped.get_base_model()
        untied = _untie(base)
        plain = wrapped.merge_and_unload()
        plain.requires_grad_(False)
        shared = _weight(plain.get_input_embeddings()) is _weight(plain.get_output_embeddings())
        if untied or not shared:
            _record_untied(plain)
        got = plain(input_ids=probe, use_cache=False).logits
    _check_same(got, want)
    return plain


def _untie(base: Any) -> bool:
    """Separate input and output embedding if they share a weight and one has an adapter; True if that was done."""
    ends = [base.get_input_embeddings(), base.get_output_embeddings()]
    if not any(hasattr(end, "base_layer") for end in ends):
        return False
    inner = [_innermost(end) for end in ends]
    if _weight(inner[0]) is None or _weight(inner[0]) is not _weight(inner[1]):
        return False
    inner[1].weight = nn.Parameter(inner[1].weight.detach().clone(), requires_grad=False)
    return True


def _innermost(module: Any) -> Any:
    """The model's own layer inside the layers of adapters around it."""
    while hasattr(module, "base_layer"):
        module = module.base_layer
    return module


def _weight(module: Any) -> Tensor | None:
    """A module's weight; None for a module without one, and for None."""
    return getattr(module, "weight", None)


def _record_untied(plain: Any) -> None:
    """Record in the configuration that the embeddings share no weight, or transformers ties them again on loading."""
    for config in {id(each): each for each in (plain.config, plain.config.get_text_config())}.values():
        config.tie_word_embeddings = False


def _probe(model: Any) -> Int[Tensor, "1 pos"]:
    """One prompt with tokens from the whole vocabulary, its last ones too, because a vocabulary grows at its end."""
    n_words = model.get_input_embeddings().weight.shape[0]
    tokens = [*(number * 7 % n_words for number in range(8)), n_words // 2, n_words - 2, n_words - 1]
    return torch.tensor([tokens], device=next(model.parameters()).device).clamp(min=0)


def _check_same(got: Float[Tensor, "1 pos d_vocab"], want: Float[Tensor, "1 pos d_vocab"]) -> None:
    """Refuse logits that differ from `want` by more than rounding."""
    if got.shape != want.shape:
        raise ValueError(f"merged, the adapters give logits of shape {tuple(got.shape)}, not {tuple(want.shape)}")
    error = float((got - want).abs().max())
    if not error <= rounding_share(want.dtype) * max(1.0, float(want.abs().max())):  # so that NaN fails
        raise ValueError(
            f"merged into the weights they give other logits than peft, by {error:.3g}: such adapters cannot be merged"
        )


def _fit_vocabulary(plain: Any, adapters: list[dict[str, tuple[int, ...]]]) -> None:
    """Resize the embeddings of `plain` to the number of words in the adapters' files, if these hold embeddings.

    Args:
        plain: The model, changed in place.
        adapters: For each adapter, the shapes of its weights by name.

    Raises:
        ValueError: the adapters have different numbers of words, or more words than they have weights for.
    """
    names = {name for name, weight in plain.named_parameters(remove_duplicate=False) if _is_end(plain, weight)}
    # how many words each embedding in the files has; adapters of one model must agree
    rows = {shapes[key][0] for shapes in adapters for key in shapes if _stripped(key) in names}
    n_words = plain.get_input_embeddings().weight.shape[0]
    if not rows - {n_words}:
        return
    if len(rows) > 1:
        raise ValueError(f"their embeddings have {' and '.join(map(str, sorted(rows)))} words")
    held = {_stripped(key) for shapes in adapters for key in shapes}
    tied = _weight(plain.get_input_embeddings()) is _weight(plain.get_output_embeddings())
    if max(rows) > n_words and not (names & held if tied else names <= held):
        lacking = ", ".join(sorted(names - held))
        raise ValueError(f"their vocabulary has {rows.pop()} words, the model's {n_words}, and no file has {lacking}")
    with torch.random.fork_rng(devices=[]):  # new rows are drawn at random, and later overwritten
        plain.resize_token_embeddings(rows.pop(), mean_resizing=False)


def _is_end(plain: Any, weight: Tensor) -> bool:
    """Whether a weight is that of the input or output embedding."""
    return any(weight is _weight(end) for end in (plain.get_input_embeddings(), plain.get_output_embeddings()))


def _stripped(key: str) -> str:
    """The name that a weight of an adapter's file has in the plain model, if it replaces one of the model's weights."""
    return key.removeprefix(_PREFIX).replace(".base_layer.", ".").replace(".modules_to_save.", ".")


def _check_all_used(wrapped: Any, name: str, listed: set[str]) -> None:
    """Refuse an adapter whose file lacks weights, or has weights that neither adapter nor model uses.

    peft only warns: it makes up missing weights and ignores needless ones.

    Args:
        wrapped: The peft model with the adapter loaded.
        name: Name of the adapter.
        listed: Names of the weights in its file.
    """
    from peft import get_peft_model_state_dict

    own = set(get_peft_model_state_dict(wrapped, adapter_name=name, save_embedding_layers=False))
    lacking, needless = sorted(own - listed), sorted(listed - own - set(wrapped.state_dict()))
    if lacking or needless:
        raise ValueError(
            f"in {name!r}, {len(lacking)} weights are missing and {len(needless)} belong nowhere: "
            f"{', '.join([*lacking, *needless][:2]):.160}"
        )


@contextmanager
def _quietly() -> Iterator[None]:
    """In the body, peft does not warn of missing weights, which are refused here, or tied ones, which are untied."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="peft")
        warnings.filterwarnings("ignore", message="Found missing adapter keys")
        warnings.filterwarnings("ignore", message=".*tie_word_embeddings")
        yield
