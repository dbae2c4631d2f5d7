"""`lab`: open the live page for a model and some tasks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ivlens.common.arguments import checked
from ivlens.common.checks import as_items
from ivlens.forward.remembered import Auto, recipe_for
from ivlens.models.boot import TransformerBridge
from ivlens.models.fingerprint import model_identity
from ivlens.models.load import load_model
from ivlens.prompts.recipe import PromptRecipe
from ivlens.show.lab.engine import Engine
from ivlens.show.lab.kept import kept_results
from ivlens.show.lab.measures import EngineOptions
from ivlens.show.lab.state import LabState, values_of, with_template
from ivlens.tasks.bank import list_tasks, load_task
from ivlens.tasks.task import Task

if TYPE_CHECKING:
    from ivlens.effects.results import HeadEffects
    from ivlens.show.lab.view import Lab

_SHAPE = ("n_layers", "n_heads", "d_model", "d_head", "d_vocab")


@checked
def lab(
    model: TransformerBridge | str | Path = "pocket",
    tasks: Task | str | Path | Sequence[Task | str | Path] | None = None,
    *,
    recipe: PromptRecipe | Auto | None = None,
    compare: TransformerBridge | str | Path | None = None,
    effects: Sequence["HeadEffects"] = (),
    n_prompts: int = 32,
    n_search: int = 24,
    **state: Any,
) -> "Lab":
    """A live page: click heads in and out of the vector, move it through layers, and read both completions.

        >>> ivlens.lab("pocket", tasks=["antonym", "english_french"])

    In a notebook, the last line of a cell shows it; `ivlens lab` opens the same in a browser.

    Args:
        model: a bridge, or what `load_model` takes.
        tasks: the tasks (names, files or objects) that the page offers; the first one is shown. None: the tasks that
            the built-in model was trained on, or for another model all built-in tasks.
        recipe: how prompts are made: those on which effects are measured, and the one that is shown first. None: as
            for the given effects of the first task, or else the task's instruction in the template `plain`. `"auto"`:
            the recipe with which the model answers the first task best, see `find_prompts`.
        compare: a second checkpoint of the same shape, shown side by side.
        effects: effects that are already measured; those of other tasks are measured once the task is chosen.
        n_prompts: corrupted prompts on which effects are measured.
        n_search: *select* prompts on which layer, strength and site are searched for; 0: no search.
        state: the values that the page begins with, such as `task`, `text`, `instruction`, `n_shots`, `layer`, `alpha`
            or `heads`; see `LabState`.

    Raises:
        ImportError: panel is not installed.
        ValueError: no tasks, or two of one name; models of different shapes; a value that the state cannot have.
    """
    check_panel()
    import panel as pn

    from ivlens.show.lab.view import Lab

    if not pn.state.curdoc:
        # the page's scripts are written into the notebook, so that nothing is fetched from the network
        pn.extension(inline=True)
    # the seed has to be known before "auto" can be searched for, since that needs the loaded model
    given = recipe if isinstance(recipe, PromptRecipe) else effects[0].recipe if effects else PromptRecipe()
    options = EngineOptions(n_prompts, n_search, given.seed, kept=kept_results())
    opened = open_engines(model, tasks, compare, effects, options)
    if recipe is not None:
        first = opened.engines[0]
        recipe = recipe_for(first.model, next(iter(first.tasks.values())), recipe)
    return Lab(opened.engines, opened.state(recipe, **state))


@dataclass(frozen=True)
class Opened:
    """The engines that all pages of a lab share: one for the model, and one for the checkpoint it is compared with."""

    engines: tuple[Engine, ...]

    def state(self, recipe: PromptRecipe | None = None, **values: Any) -> LabState:
        """The state that a page begins with.

        Args:
            recipe: how prompts are made; None: as for the given effects of the task, or by the defaults.
            values: values of `LabState`, which win over those of the recipe.

        Raises:
            ValueError: a name that `LabState` does not have.
            FileNotFoundError: a template's file does not exist.
        """
        unknown = sorted(set(values) - set(LabState.__dataclass_fields__))
        if unknown:
            known = ", ".join(LabState.__dataclass_fields__)
            raise ValueError(f"lab got {unknown[0]!r}, expected its own arguments or one of {known}.")
        first = self.engines[0]
        name = values.setdefault("task", next(iter(first.tasks)))
        given = first.given.get(name)
        recipe = recipe if recipe is not None or given is None else given.recipe
        by_recipe = {} if recipe is None or name not in first.tasks else values_of(recipe, first.tasks[name])
        return LabState(**{**by_recipe, **with_template(values)})


def open_engines(
    model: TransformerBridge | str | Path,
    tasks: Task | str | Path | Sequence[Task | str | Path] | None,
    compare: TransformerBridge | str | Path | None,
    effects: Sequence["HeadEffects"],
    options: EngineOptions,
) -> Opened:
    """Load the models and tasks that are not loaded yet, and make an engine for each model.

    Raises:
        ValueError: no tasks, or two of one name; models of different shapes; effects of another model or task.
    """
    models = [_bridge(one) for one in (model, compare) if one is not None]
    identities = [model_identity(one) for one in models]
    shapes = [{name: getattr(identity, name) for name in _SHAPE} for identity in identities]
    if shapes[0] != shapes[-1]:
        raise ValueError(
            f"compare is {identities[1].name!r} with {shapes[1]}, expected the shape of {identities[0].name!r}, "
            f"{shapes[0]}: heads are compared one by one; compare two checkpoints of one architecture."
        )
    named = _named(tasks, built_in=identities[0].name == "pocket")
    # each engine gets the effects that were measured on its own model
    known = [[each for each in effects if not each.model.differs(own)] for own in identities]
    strangers = [each for each in effects if all(each.model.differs(own) for own in identities)]
    known[0] += strangers  # the first engine refuses them, and its error says why
    return Opened(tuple(Engine(one, named, options, given) for one, given in zip(models, known, strict=True)))


def check_panel() -> None:
    """Raise ImportError, with the remedy, if the lab's own packages are missing."""
    try:
        import panel  # noqa: F401
    except ImportError:
        raise ImportError("the lab needs panel, which is not installed; pip install 'ivlens[lab]'.") from None


def _bridge(model: TransformerBridge | str | Path) -> TransformerBridge:
    return load_model(model) if isinstance(model, str | Path) else model


def _named(tasks: Task | str | Path | Sequence[Task | str | Path] | None, *, built_in: bool) -> Mapping[str, Task]:
    """The tasks by their names, loaded where need be; the default ones where none are given."""
    if tasks is None:
        tasks = list_tasks(in_training=True) if built_in else list_tasks()
    listed = as_items("tasks", tasks, (Task, str, Path))
    opened = [task if isinstance(task, Task) else load_task(task) for task in listed]
    names = [task.name for task in opened]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"tasks are {names}, expected at least one, and every name once.")
    return dict(zip(names, opened, strict=True))
