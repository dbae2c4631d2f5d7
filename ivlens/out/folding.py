"""A checkpoint in which the vector is a bias, so that transformers opens a steered model without any code.

Added at every position, a vector is a constant that a module writes into the residual stream, and so is a bias. At
`attn_out` it is that of attention's output projection, at `resid_post` that of the MLP's. In exact arithmetic the
folded model is the steered one. What differs is rounding: the sum is made in another order, and in half precision the
bias is rounded as well.
"""

import copy
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ivlens.common.precision import FULL
from ivlens.common.saves import replacing
from ivlens.common.version import __version__
from ivlens.models.boot import TransformerBridge
from ivlens.models.plain import mlp_paths, module_paths, plain_model
from ivlens.models.selfcheck import probe_prompts
from ivlens.out.leaving import Leaving
from ivlens.steering.steer import steer

RECORD = "steered.json"


def write_folded(leaving: Leaving, path: Path) -> Path:
    """Write the folder: config, weights and tokenizer, and a record of the vector in `steered.json`.

    Raises:
        ValueError: other positions than `all`; an architecture that has no bias there and no setting for one, or norms
            what is written; the folded model gives other logits than the steered one; a folder with another model.
        TypeError: `load_model` did not make the model.
    """
    leaving.check_all("a bias in a checkpoint")
    _check_place(leaving, path)
    folded = folded_model(leaving)
    about = {"vector": leaving.iv.task, "at": leaving.at._asdict(), "norm": leaving.iv.norm, "positions": "all"}
    record = {**about, "model": asdict(leaving.iv.model), "ivlens": __version__}
    with replacing(path) as scratch:
        folded.save_pretrained(scratch)
        if leaving.model.tokenizer is not None:
            leaving.model.tokenizer.save_pretrained(scratch)
        (scratch / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return path


def _check_place(leaving: Leaving, path: Path) -> None:
    """Refuse a folder whose model would be lost: the one that is being steered, or one of somebody else."""
    origin = getattr(leaving.model.original_model, "name_or_path", "")
    if origin and path.is_dir() and Path(origin).is_dir() and path.samefile(origin):
        why = "is the folder that the model was opened from"
    elif (path / "config.json").exists() and not (path / RECORD).exists():
        why = "holds a model that was not exported by ivlens"
    else:
        return
    raise ValueError(f"{str(path)!r} {why}, expected a new folder, or one of an earlier export; name another one.")


def folded_model(leaving: Leaving) -> Any:
    """A plain Hugging Face model whose bias holds the vector, checked against `steer`."""
    plain, name = plain_model(leaving.model), _bias_name(leaving)
    folded: Any = plain
    if plain.get_submodule(name).bias is None:
        folded = _with_biases(plain, name, leaving.model)
    bias, layer = folded.get_submodule(name).bias, leaving.at.layer
    before = _block_output(leaving, folded, layer)
    old, delta = bias.detach().clone(), leaving.delta.to(bias.device)
    with torch.no_grad():
        bias.copy_(old + delta.to(bias.dtype))
        # some families multiply what a module writes before it enters the stream
        if leaving.at.site == "resid_post":
            found = (_block_output(leaving, folded, layer) - before).float()
            share = float((found * delta).sum() / (delta.square().sum() * found[..., 0].numel()).clamp_min(1e-30))
        else:
            share = leaving.factor
        if share > 1e-3 and abs(share - 1) > 1e-3:
            bias.copy_(old + (delta / share).to(bias.dtype))
    _check_steered(leaving, folded)
    return folded


def _bias_name(leaving: Leaving) -> str:
    """The module whose bias takes the vector."""
    layer, _, site = leaving.at
    paths = module_paths(leaving.model)
    if site == "attn_out":
        name, is_normed = paths.projections[layer], paths.attn_out[layer] != paths.projections[layer]
    else:
        name, is_normed = mlp_paths(leaving.model)[layer], hasattr(leaving.model.blocks[layer], "ln2_post")
    if name is None or is_normed:
        why = "norms what is written there" if is_normed else "writes there by several experts"
        raise _no_place(leaving.model, f"it {why}")
    return name


def _no_place(model: TransformerBridge, why: str) -> ValueError:
    return ValueError(
        f"{model.cfg.architecture} has no place for the vector as a bias ({why}), expected a projection with one; "
        "export it as python, or try the other site."
    )


def _with_biases(plain: Any, name: str, model: TransformerBridge) -> Any:
    """The same model with biases of 0 that its configuration can switch on, at this module among others."""
    for config in _switched(plain.config):
        with torch.device("meta"):
            shape: Any = type(plain)(config)
        new = {key: one for key, one in shape.state_dict().items() if key not in plain.state_dict()}
        if shape.get_submodule(name).bias is None or not all(key.endswith(".bias") for key in new):
            continue
        zeros = {key: torch.zeros(one.shape, dtype=plain.dtype, device=plain.device) for key, one in new.items()}
        with torch.random.fork_rng(devices=[]):  # building a model draws random numbers
            made = type(plain).from_pretrained(
                None, config=config, state_dict={**plain.state_dict(), **zeros}, dtype=plain.dtype
            )
        return made.to(plain.device).eval()
    raise _no_place(model, f"{name} has no bias, and no setting gives it one")


def _switched(config: Any) -> Iterator[Any]:
    """Configurations in each of which one switch about biases is turned."""
    for key, value in config.to_dict().items():
        if "bias" in key and isinstance(value, bool):
            switched = copy.deepcopy(config)
            setattr(switched, key, not value)
            yield switched


def _block_output(leaving: Leaving, plain: nn.Module, layer: int) -> Float[Tensor, "batch pos d_model"]:
    """The output of a block on the probe prompts."""
    kept: list[Tensor] = []
    block = plain.get_submodule(module_paths(leaving.model).blocks[layer])

    def keep(_: nn.Module, given: Any, output: Any) -> None:
        kept.append(output[0] if isinstance(output, tuple) else output)

    hook = block.register_forward_hook(keep)
    try:
        _logits(plain, leaving)
    finally:
        hook.remove()
    return kept[0].detach().clone()


def _logits(model: Any, leaving: Leaving) -> Float[Tensor, "batch pos d_vocab"]:
    tokens = probe_prompts(leaving.model.original_model)[0][:1]  # the one without padding
    with torch.no_grad():
        found = model(tokens, use_cache=False)
    return getattr(found, "logits", found).float()


def _check_steered(leaving: Leaving, folded: Any) -> None:
    """Refuse a folded model that gives other logits than `steer` at every position."""
    with steer(leaving.model, leaving.iv, at=leaving.at, positions="all"):
        want = _logits(leaving.model, leaving)
    error = float((_logits(folded, leaving) - want).abs().max())
    tolerance = (1e-3 if next(folded.parameters()).dtype in FULL else 5e-2) * max(1.0, float(want.abs().max()))
    if not error <= tolerance:  # so that NaN fails
        raise _no_place(leaving.model, f"its logits would be off by {error:.3g}")
