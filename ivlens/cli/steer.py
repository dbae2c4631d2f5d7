"""`ivlens steer`: complete one text with and without an Instruction Vector."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from ivlens.cli._options import AsJson, ColumnOptions, MeasureOptions, ModelOptions
from ivlens.cli._output import one_line, print_json

if TYPE_CHECKING:
    from ivlens.models.boot import TransformerBridge
    from ivlens.prompts.recipe import PromptRecipe
    from ivlens.tasks.task import Task
    from ivlens.vectors.vector import InstructionVector

Flag = Annotated[bool, Parameter(negative="")]
N_SEARCH_PROMPTS = 48
LEAST_GAIN = 0.1  # in accuracy, over the bare prompt; a vector that gains less is said to do nothing


@Parameter(name="*")
@dataclass(frozen=True)
class SteerOptions(ColumnOptions):
    """Which vector is added, and where.

    Attributes:
        task: Name of a built-in task, or a path: the vector is built for this task, and layer and strength are searched
            for on its *select* inputs.
        vector: A vector from a file that `ivlens vector --out` wrote, instead of a new one.
        k: Number of heads in a new vector.
        layer: Layer where the vector is added; by default the best one on the task's *select* inputs.
        alpha: Strength of the vector, negative to subtract it; by default the best one on the task's *select* inputs.
        site: Place in the layer: resid_post (after the block) or attn_out (what attention adds); by default the best
            one, or resid_post where layer and alpha are given.
        positions: prompt: the vector is added once, at the last prompt token; every: at each generated token too; all:
            at every token of the prompt as well.
        mode: vector: the vector is added; heads: the outputs of its heads are replaced by their means.
        allow_other_weights: Accept a vector from a model of the same architecture with other weights.
        raw: Take the text as the whole prompt, without a template.
        max_new_tokens: Number of tokens in each completion.
    """

    task: str | None = None
    vector: Path | None = None
    k: int = 10
    layer: int | None = None
    alpha: Annotated[float | None, Parameter(allow_leading_hyphen=True)] = None
    site: Literal["resid_post", "attn_out"] | None = None
    positions: Literal["prompt", "every", "all"] = "prompt"
    mode: Literal["vector", "heads"] = "vector"
    allow_other_weights: Flag = False
    raw: Flag = False
    max_new_tokens: int = 16


def steer_text(
    *,
    text: str,
    what: SteerOptions | None = None,
    where: ModelOptions | None = None,
    how: MeasureOptions | None = None,
    as_json: AsJson = False,
) -> None:
    """Complete a text with and without an Instruction Vector.

    Example: `ivlens steer --task antonym --text big`, or with a saved vector
    `ivlens steer --vector antonym.safetensors --layer 3 --alpha 4 --text big`

    Args:
        text: The input of the task. It is put into a template without instruction and demonstrations, by default the
            template of the vector's own prompts.
    """
    what, where, how = what or SteerOptions(), where or ModelOptions(), how or MeasureOptions()
    text.encode()  # refuses bytes that are no text (half a surrogate) in one line, before a library fails on them
    task = _task(what)
    how.recipe()  # refuses wrong options before the model is loaded
    model = where.load()
    iv = _vector(model, task, what, how)
    setting = _setting(model, task, iv, what, how)
    recipe = how.recipe(iv.recipe)
    prompt = _prompt(model, task, text, None if what.raw else recipe)
    plain, steered = _completions(model, iv, setting, prompt, what.max_new_tokens)
    if as_json:
        from ivlens.models.mixers import head_labels

        about = {"task": iv.task, "norm": iv.norm, "heads": head_labels(iv.heads, iv.model.n_heads)}
        about["recipe"] = iv.recipe and iv.recipe.to_dict()
        facts = {"text": text, "prompt": prompt, "plain": plain, "steered": steered, "recipe": recipe.to_dict()}
        print_json({**facts, "setting": setting, "vector": about, "model": asdict(iv.model)})
        return
    print(f"prompt   {one_line(prompt)}")
    print(f"plain    {one_line(plain.strip())}")
    print(f"steered  {one_line(steered.strip())}")
    print(f"\n{iv.task}: {_setting_text(setting)}")
    if nothing := _nothing_found(setting, iv, where.model or "pocket"):
        print(nothing)


def _task(what: SteerOptions) -> "Task | None":
    """The task, if one is given; needed wherever a vector must be built or its place searched for."""
    if what.task is None and what.vector is None:
        raise ValueError("ivlens steer got neither --task nor --vector, expected one; try --task antonym.")
    # mode "heads" has no layer to search for
    searched = what.mode == "vector" and None in (what.layer, what.alpha)
    if what.task is None and searched:
        raise ValueError("a vector from a file needs --layer and --alpha, or --task to find them with; add these.")
    return what.load_if_given(what.task)


def _vector(
    model: "TransformerBridge", task: "Task | None", what: SteerOptions, how: MeasureOptions
) -> "InstructionVector":
    """The vector from the file, or a new one for the task."""
    from ivlens.vectors.vector import InstructionVector

    if what.vector is not None:
        return InstructionVector.load(what.vector, model, allow_other_weights=what.allow_other_weights)
    assert task is not None
    return InstructionVector.from_effects(how.measure(model, task), what.k, model=model)


def _setting(
    model: "TransformerBridge", task: "Task | None", iv: "InstructionVector", what: SteerOptions, how: MeasureOptions
) -> dict[str, Any]:
    """Arguments for `steer`; those that the user does not give are searched for on *select*.

    After a search there are also `select_accuracy`, `select_bare` (without the vector) and `select_n`, which are no
    arguments of `steer`.
    """
    from ivlens.forward.ability import measure_ability
    from ivlens.steering.search import NO_VECTOR, Grid, sweep_settings

    common = {"positions": what.positions, "mode": what.mode}
    if what.mode == "heads":
        return {**common, "layer": None, "alpha": 1.0 if what.alpha is None else what.alpha, "site": "resid_post"}
    if what.layer is not None and what.alpha is not None:
        return {**common, "layer": what.layer, "alpha": what.alpha, "site": what.site or "resid_post"}
    assert task is not None
    grid = Grid(
        layers=None if what.layer is None else (what.layer,),
        alphas=Grid.alphas if what.alpha is None else (what.alpha,),
        sites=Grid.sites if what.site is None else (what.site,),
        positions=what.positions,
    )
    recipe = how.recipe(iv.recipe)
    if what.vector is not None:
        # warns before the long search if the model cannot do the task; for a new vector, measuring has warned already
        measure_ability(model, task, recipe)
    frame, bare = (
        sweep_settings(model, task, iv, recipe=recipe, grid=each, n_prompts=N_SEARCH_PROMPTS, seed=recipe.seed)
        for each in (grid, NO_VECTOR)
    )
    # stable: of equal settings the first in the grid's order
    best = frame.sort_values(["accuracy", "prob"], ascending=False, kind="stable").iloc[0]
    found = {"layer": int(best["layer"]), "alpha": float(best["alpha"]), "site": str(best["site"])}
    accuracies = {"select_accuracy": float(best["accuracy"]), "select_bare": float(bare["accuracy"].iloc[0])}
    return {**common, **found, **accuracies, "select_n": int(best["n"])}


def _nothing_found(setting: dict[str, Any], iv: "InstructionVector", model: str) -> str:
    """A warning that no setting of the search makes a difference; "" where one does, or nothing was searched."""
    from ivlens.forward.ability import Ability

    if "select_accuracy" not in setting or setting["select_accuracy"] - setting["select_bare"] >= LEAST_GAIN:
        return ""
    best, bare, n = setting["select_accuracy"], setting["select_bare"], setting["select_n"]
    ability = Ability.recorded(iv.settings.get("effects") or {})
    why = "" if ability is None or ability.is_enough else f" The model itself cannot do the task: {ability}."
    return (
        f"\nNo setting of the search makes this vector work: on {n} select inputs the best one gets {best:.0%} right, "
        f"and the bare prompt without it {bare:.0%}.{why}\nLook for prompts that the model can answer with `ivlens "
        f"prompts --model {model} --task {iv.task}`, try more heads (--k), or take another task."
    )


def _prompt(model: "TransformerBridge", task: "Task | None", text: str, recipe: "PromptRecipe | None") -> str:
    """The text as a prompt without instruction and demonstrations; without a recipe, the text itself."""
    from ivlens.prompts.rendering import Renderer
    from ivlens.prompts.templates import find_template

    if not text.strip():
        raise ValueError("--text is empty, expected some text to complete.")
    if recipe is None:
        return text
    fused = task is not None and task.fused
    return Renderer(find_template(recipe.template), model.tokenizer, fused=fused)(None, (), text)[0]


def _completions(
    model: "TransformerBridge", iv: "InstructionVector", setting: dict[str, Any], prompt: str, max_new_tokens: int
) -> tuple[str, str]:
    """The completions of the prompt without and with the vector."""
    from ivlens.forward.completions import complete
    from ivlens.steering.steer import steer

    (plain,) = complete(model, [prompt], max_new_tokens=max_new_tokens)
    arguments = {name: value for name, value in setting.items() if not name.startswith("select_")}
    with steer(model, iv, **arguments):
        (steered,) = complete(model, [prompt], max_new_tokens=max_new_tokens)
    return plain, steered


def _setting_text(setting: dict[str, Any]) -> str:
    """Where and how strongly the vector was added, in words."""
    if setting["mode"] == "heads":
        return f"heads replaced by their means, share {setting['alpha']:g}"
    found = f" (accuracy on select {setting['select_accuracy']:.2f})" if "select_accuracy" in setting else ""
    return f"layer {setting['layer']}, alpha {setting['alpha']:g}, {setting['site']}, {setting['positions']}{found}"
