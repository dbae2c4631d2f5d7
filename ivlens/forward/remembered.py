"""`recipe="auto"`: the form that `find_prompts` finds, looked for once for each model and task and then remembered.

Searches are kept in the user's cache by everything they depend on: the model with its
configuration, tokenizer and chat template, the task, the seed, the forms, the version of ivlens. A cache that is
damaged or cannot be written to costs time, nothing else.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from ivlens.common.cache import cache_folder
from ivlens.common.files import read_small
from ivlens.common.store.store import Store
from ivlens.common.version import __version__
from ivlens.forward.finding import PromptSearch, find_prompts
from ivlens.forward.forms import DEFAULT_SHOTS_TRIED, templates_of
from ivlens.models.boot import TransformerBridge, check_model
from ivlens.models.fingerprint import model_identity
from ivlens.prompts.recipe import PromptRecipe
from ivlens.tasks.task import Task

logger = logging.getLogger(__name__)

Auto = Literal["auto"]
KIND, FOLDER, RECIPES = "prompts", "prompts", "recipes.json"


def recipe_for(model: TransformerBridge, task: Task, given: PromptRecipe | Auto | None) -> PromptRecipe:
    """The recipe that was given; `"auto"`: the one found for this task; None: the default one.

    Raises:
        TypeError: something else.
    """
    if given is None or isinstance(given, PromptRecipe):
        return given or PromptRecipe()
    if given != "auto":
        raise TypeError(
            f"recipe is {given!r:.60}, expected a PromptRecipe, 'auto', or None for the task's instruction."
        )
    return auto_recipe(model, [task])


def auto_recipe(model: TransformerBridge, tasks: Sequence[Task], *, seed: int = 0) -> PromptRecipe:
    """The recipe in which `find_prompts` finds that the model answers these tasks best.

    For several tasks: the form with the largest mean of clean minus bare accuracy over them, of equals the cheaper one;
    each task is searched, and remembered, on its own.

    The log says in a line what was chosen, of how many forms, and whether it was remembered. For one task another line
    warns where no form is answered well enough for a vector.

    Raises:
        ValueError: no form suits the task, or all of them.
    """
    searches = [remembered_search(model, task, seed) for task in tasks]
    recipe = searches[0].best if len(searches) == 1 else _best_for_all(searches)
    logger.info("%s", _chosen(searches, recipe))
    if len(searches) == 1 and searches[0].warning:
        logger.warning("%s", searches[0].warning)
    return recipe


def remembered_search(model: TransformerBridge, task: Task, seed: int = 0) -> PromptSearch:
    """`find_prompts` with its defaults, or what it found earlier for these weights and this task.

    Raises:
        TypeError, ValueError, RuntimeError: as `find_prompts`.
    """
    what, store = _what(check_model(model), task, seed), _store()
    found = None if store is None else _kept(store, what, model)
    if found is not None:
        return found
    search = find_prompts(model, task, seed=seed)
    if store is not None:
        _keep(store, what, search)
    return search


def _what(model: TransformerBridge, task: Task, seed: int) -> dict[str, Any]:
    """Everything that the outcome of a search depends on."""
    tokenizer: Any = model.tokenizer
    return {
        "kind": KIND,
        "ivlens": __version__,
        "model": model_identity(model).key,
        "task": task.name,  # which every draw depends on
        "content": task.full_hash(),
        "templates": [PromptRecipe(each).to_dict()["template"] for each in templates_of(tokenizer, None)],
        "shots": list(DEFAULT_SHOTS_TRIED),
        "seed": seed,
    }


def _store() -> Store | None:
    try:
        return Store(cache_folder() / FOLDER)
    except (OSError, ValueError) as error:
        logger.warning("the prompts that are found cannot be remembered: %s", error)
        return None


def _kept(store: Store, what: dict[str, Any], model: TransformerBridge) -> PromptSearch | None:
    try:
        entry = store.find(what)
        if entry is None:
            return None
        table = entry.table()
        listed = json.loads(read_small(entry.path(RECIPES)))
        recipes = tuple(tuple(PromptRecipe.from_dict(each) for each in row) for row in listed)
        if not recipes or len(recipes) != len(table) or not all(recipes):
            raise ValueError(f"{len(recipes)} rows of recipes for {len(table)} forms")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        logger.warning("remembered prompts of %s cannot be read (%s): looked for again.", what["task"], error)
        return None
    return PromptSearch(table, recipes, what["task"], model_identity(model), remembered=True)


def _keep(store: Store, what: dict[str, Any], search: PromptSearch) -> None:
    recipes = [[recipe.to_dict() for recipe in row] for row in search.recipes]

    def fill(folder: Path) -> None:
        search.table.to_parquet(folder / "table.parquet", index=False)
        (folder / RECIPES).write_text(json.dumps(recipes), encoding="utf-8")

    try:
        store.put(what, fill, {"task": search.task, "model": search.model.name, "seed": what["seed"]})
    except (OSError, ValueError) as error:
        logger.warning("the prompts found for %s cannot be remembered: %s", search.task, error)


def _best_for_all(searches: Sequence[PromptSearch]) -> PromptRecipe:
    """The recipe with the largest mean difference over all tasks that were asked in its form."""
    gains: dict[PromptRecipe, list[tuple[float, float]]] = {}
    for search in searches:
        for row, recipes in zip(search.table.to_dict("records"), search.recipes, strict=True):
            for recipe in recipes:
                gains.setdefault(recipe, []).append((row["clean"] - row["bare"], -row["n_tokens"]))
    common = {recipe: found for recipe, found in gains.items() if len(found) == len(searches)}
    if not common:
        names = ", ".join(search.task for search in searches)
        raise ValueError(
            f"no form suits all of the tasks {names:.200}, expected one recipe for all of them; give a template and a "
            "number of demonstrations, or ask fewer tasks."
        )
    return max(common, key=lambda recipe: [fmean(column) for column in zip(*common[recipe], strict=True)])


def _chosen(searches: Sequence[PromptSearch], recipe: PromptRecipe) -> str:
    """One line: what was chosen, among how many forms."""
    if len(searches) == 1:
        return f"prompts found for {searches[0]}"
    n_forms = sum(search.n_forms for search in searches)
    n_known = sum(search.remembered for search in searches)
    known = f", {n_known} of {len(searches)} tasks remembered" if n_known else ""
    means = fmean(_row(search, recipe)["clean"] for search in searches)
    bare = fmean(_row(search, recipe)["bare"] for search in searches)
    return (
        f"prompts found for {len(searches)} tasks: {recipe}: mean accuracy {means:.2f}, bare {bare:.2f} on select "
        f"inputs; {n_forms} forms tried{known}"
    )


def _row(search: PromptSearch, recipe: PromptRecipe) -> dict[Any, Any]:
    at = next(number for number, recipes in enumerate(search.recipes) if recipe in recipes)
    return search.table.to_dict("records")[at]
