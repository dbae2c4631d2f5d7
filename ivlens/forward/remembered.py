"""`recipe="auto"`: the form that `find_prompts` finds for a model and a task, searched for once and then remembered.

Results of searches are kept in the user's cache. Their key is all that they depend on: the model with its
configuration, tokenizer and chat template, the task, the seed, the forms, and the version of ivlens. Where the cache is
damaged or cannot be written to, the search is made again, and nothing else happens.
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
    """The given recipe; for `"auto"` the one found for this task, for None the default one.

    Raises:
        TypeError: `given` is none of these.
    """
    if given is None or isinstance(given, PromptRecipe):
        return given or PromptRecipe()
    if given != "auto":
        raise TypeError(
            f"recipe is {given!r:.60}, expected a PromptRecipe, 'auto', or None for the task's instruction."
        )
    return auto_recipe(model, [task])


def auto_recipe(model: TransformerBridge, tasks: Sequence[Task], *, seed: int = 0) -> PromptRecipe:
    """The recipe with which the model answers these tasks best, as `find_prompts` finds it.

    For several tasks it is the form with the largest mean of clean minus bare accuracy over them, among equals the one
    with the shorter prompts. Each task is searched and remembered on its own.

    A line in the log says what was chosen, from how many forms, and whether it was remembered. For a single task
    another line warns where no form is answered well enough for a vector.

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
    """The result of `find_prompts` with its defaults, read from the cache where it was found earlier.

    Raises:
        TypeError, ValueError, RuntimeError: as `find_prompts`.
    """
    key, store = _search_key(check_model(model), task, seed), _store()
    found = None if store is None else _read(store, key, model)
    if found is not None:
        return found
    search = find_prompts(model, task, seed=seed)
    if store is not None:
        _write(store, key, search)
    return search


def _search_key(model: TransformerBridge, task: Task, seed: int) -> dict[str, Any]:
    """Everything that the outcome of a search depends on."""
    tokenizer: Any = model.tokenizer
    return {
        "kind": KIND,
        "ivlens": __version__,
        "model": model_identity(model).key,
        "task": task.name,  # draws depend on the name too, so equal content under another name is another search
        "content": task.full_hash(),
        "templates": [PromptRecipe(each).to_dict()["template"] for each in templates_of(tokenizer, None)],
        "shots": list(DEFAULT_SHOTS_TRIED),
        "seed": seed,
    }


def _store() -> Store | None:
    """The store in the user's cache; None, and a line in the log, where it cannot be opened."""
    try:
        return Store(cache_folder() / FOLDER)
    except (OSError, ValueError) as error:
        logger.warning("the prompts that are found cannot be remembered: %s", error)
        return None


def _read(store: Store, key: dict[str, Any], model: TransformerBridge) -> PromptSearch | None:
    """The search of this key; None where there is none, or none that can be read."""
    try:
        entry = store.find(key)
        if entry is None:
            return None
        table = entry.table()
        listed = json.loads(read_small(entry.path(RECIPES)))
        recipes = tuple(tuple(PromptRecipe.from_dict(each) for each in row) for row in listed)
        if not recipes or len(recipes) != len(table) or not all(recipes):
            raise ValueError(f"{len(recipes)} rows of recipes for {len(table)} forms")
    # whatever a damaged file can raise above: a cache must not stop a measurement
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        logger.warning("remembered prompts of %s cannot be read (%s): looked for again.", key["task"], error)
        return None
    return PromptSearch(table, recipes, key["task"], model_identity(model), remembered=True)


def _write(store: Store, key: dict[str, Any], search: PromptSearch) -> None:
    """Keep a search under its key; a line in the log where that fails."""
    recipes = [[recipe.to_dict() for recipe in row] for row in search.recipes]

    def fill(folder: Path) -> None:  # the store makes the entry visible only once both files are whole
        search.table.to_parquet(folder / "table.parquet", index=False)
        (folder / RECIPES).write_text(json.dumps(recipes), encoding="utf-8")

    try:
        store.put(key, fill, {"task": search.task, "model": search.model.name, "seed": key["seed"]})
    except (OSError, ValueError) as error:
        logger.warning("the prompts found for %s cannot be remembered: %s", search.task, error)


def _best_for_all(searches: Sequence[PromptSearch]) -> PromptRecipe:
    """The recipe with the largest mean of clean minus bare accuracy, among those with which every task was asked."""
    # for each recipe and task: clean minus bare accuracy, and minus the length of the prompts for ties
    gains: dict[PromptRecipe, list[tuple[float, float]]] = {}
    for search in searches:
        for row, recipes in zip(search.table.to_dict("records"), search.recipes, strict=True):
            for recipe in recipes:
                gains.setdefault(recipe, []).append((row["clean"] - row["bare"], -row["n_tokens"]))
    # a form that was left out for one task, or stands for other recipes there, cannot be compared
    common = {recipe: found for recipe, found in gains.items() if len(found) == len(searches)}
    if not common:
        names = ", ".join(search.task for search in searches)
        raise ValueError(
            f"no form suits all of the tasks {names:.200}, expected one recipe for all of them; give a template and a "
            "number of demonstrations, or ask fewer tasks."
        )
    return max(common, key=lambda recipe: [fmean(column) for column in zip(*common[recipe], strict=True)])


def _chosen(searches: Sequence[PromptSearch], recipe: PromptRecipe) -> str:
    """The line of the log that says what was chosen, and among how many forms."""
    if len(searches) == 1:
        return f"prompts found for {searches[0]}"
    n_forms = sum(search.n_forms for search in searches)
    n_remembered = sum(search.remembered for search in searches)
    remembered = f", {n_remembered} of {len(searches)} tasks remembered" if n_remembered else ""
    clean = fmean(_row(search, recipe)["clean"] for search in searches)
    bare = fmean(_row(search, recipe)["bare"] for search in searches)
    return (
        f"prompts found for {len(searches)} tasks: {recipe}: mean accuracy {clean:.2f}, bare {bare:.2f} on select "
        f"inputs; {n_forms} forms tried{remembered}"
    )


def _row(search: PromptSearch, recipe: PromptRecipe) -> dict[Any, Any]:
    """The row of a search's table whose prompts this recipe makes."""
    at = next(number for number, recipes in enumerate(search.recipes) if recipe in recipes)
    return search.table.to_dict("records")[at]
