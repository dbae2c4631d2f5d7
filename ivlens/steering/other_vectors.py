"""Rows of other vectors with a search of their own: other numbers of heads, mean differences, trained vectors."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from ivlens.steering.climb import TrainedOptions
from ivlens.steering.controls import draw_seed, is_contrast, random_head_vectors
from ivlens.steering.judging import Vectors, judged_groups, judged_vectors
from ivlens.steering.more_rows import Asked
from ivlens.steering.search import Grid
from ivlens.steering.summary import Judged
from ivlens.steering.trained import train_vector
from ivlens.vectors.vector import InstructionVector


def by_k(asked: Asked) -> list[Judged]:
    """The rows `by_k` and `by_k_random_heads`: vectors of other numbers of heads, each with its own search.

    Raises:
        ValueError: the effects, by which heads are chosen, were not given.
    """
    effects, model = asked.need_effects("by_k"), asked.prompts.model
    most = int((~effects.aie.isnan()).sum())
    contrast, groups = is_contrast(asked.iv), {}
    for k in sorted({k for k in asked.more.ks if k <= most}):
        vector = InstructionVector.from_effects(effects, k, model=model, contrast=contrast)
        groups["by_k", f"k={k}"] = [vector]
        drawn = random_head_vectors(model, vector, effects, asked.n_draws, asked.prompts.seed)
        if drawn:
            groups["by_k_random_heads", f"k={k}"] = drawn
    named = {f"{condition} {variant}": several for (condition, variant), several in groups.items()}
    found = judged_vectors(named, asked.prompts, asked.judge, asked.grid)
    return [
        replace(one, condition=condition, variant=variant, against="by_k" if condition != "by_k" else "iv")
        for one, (condition, variant) in zip(found, groups, strict=True)
    ]


def mean_difference(asked: Asked) -> list[Judged]:
    """The rows `mean_difference`: at each layer the mean stream of clean prompts minus that of others.

    The stream is that after the block, at the last prompt token of *fit* prompts. The variant `corrupted` subtracts
    the mean over corrupted prompts, `bare` that over bare prompts. Layer and strength are searched on *select*. The
    control `mean_difference_random` has one random direction for all layers, with the same norm at each.
    """
    clean = mean_stream(asked, "none")
    others = {"corrupted": asked.corruption, "bare": "drop"}
    if asked.prompts.applied != "drop":  # there is nothing to take away
        others = {}
    elif asked.corruption == "drop":
        others = {"bare": "drop"}
    grid = replace(asked.grid, sites=("resid_post",))  # where the means were read
    found: list[Judged] = []
    for variant, corruption in others.items():
        theta = clean - mean_stream(asked, corruption)
        groups = {"mean_difference": Vectors((f"mean difference, {variant}",), theta[None])}
        if asked.n_draws:
            names = tuple(f"random {draw}" for draw in range(asked.n_draws))
            groups["mean_difference_random"] = Vectors(names, _random_like(asked, theta))
        for one in judged_groups(groups, asked.prompts, asked.judge, grid):
            norms = [at.alpha * float(theta[at.layer].norm()) for at in one.settings]
            against = "iv" if one.condition == "mean_difference" else "mean_difference"
            details = {"norm": sum(norms) / len(norms)}
            found.append(replace(one, variant=variant, against=against, details=details))
    return found


def trained(asked: Asked) -> list[Judged]:
    """The rows `trained` and `trained_permuted`: a vector trained on *fit*, and one trained on permuted answers.

    The layer and the length of each are searched in its training, on the *select* prompts of the judgement; what else
    is not given is as in `TrainedOptions`.
    """
    prompts, found = asked.prompts, []
    for condition, against in (("trained", "iv"), ("trained_permuted", "trained")):
        options = TrainedOptions(
            site="resid_post",
            n_select=prompts.n_prompts,
            corruption=prompts.corruption,
            permuted=condition == "trained_permuted",
            seed=prompts.seed,
        )
        one = train_vector(prompts.model, prompts.task, recipe=prompts.recipe, options=options)
        (judged,) = judged_vectors({condition: [one.vector]}, prompts, asked.judge, Grid.only(one.setting))
        details = {
            "norm": one.vector.norm,
            "select_accuracy": one.accuracy,
            "steps": one.vector.settings["trained"]["best"]["step"],
        }
        found.append(replace(judged, against=against, details=details))
    return found


def mean_stream(asked: Asked, corruption: str) -> Float[Tensor, "n_layers d_model"]:
    """The mean residual stream after each block at the last token of *fit* prompts."""
    trials = asked.fit_prompts(corruption).trials("fit")
    rows = trials.batch.rows_of_one_kind()
    return trials.streams()[:, rows].float().mean(1).cpu()


def _random_like(asked: Asked, theta: Float[Tensor, "n_layers d_model"]) -> Float[Tensor, "n n_layers d_model"]:
    """Random directions with the norm that `theta` has at each layer."""
    drawn = []
    for draw in range(asked.n_draws):
        generator = torch.Generator().manual_seed(draw_seed(asked.prompts.seed, asked.iv, "mean difference", draw))
        direction = torch.randn(theta.shape[1], generator=generator)
        drawn.append(theta.norm(dim=1, keepdim=True) * direction / direction.norm())
    return torch.stack(drawn)
