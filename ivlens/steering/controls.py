"""The controls that an Instruction Vector has to beat: random vectors, random heads, other tasks, the best constant.

Each control rules out another reason for a good result: that any vector of that length would do (random vectors), any
heads (random heads), the vector of any task (other tasks), or one frequent answer (the constant); for a trained vector,
that any answers of this kind would do (permuted answers). See docs/method.md, 6 Intervention and its controls.
"""

import logging
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from random import Random
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ivlens.common.progress import ticking
from ivlens.effects.measure import EffectOptions, head_effects
from ivlens.effects.results import HeadEffects
from ivlens.forward.means import HeadMeans, head_means, mean_head_outputs
from ivlens.models.boot import TransformerBridge
from ivlens.models.mixers import mixer_with
from ivlens.steering.prompt_sets import PromptSets
from ivlens.tasks.bank import load_bank
from ivlens.tasks.task import Task, TaskExample, tasks_of
from ivlens.vectors.heads import Heads, head_writes
from ivlens.vectors.vector import InstructionVector, base_task

logger = logging.getLogger(__name__)


def draw_seed(seed: int, iv: InstructionVector, what: str, draw: int) -> int:
    """A seed for one draw of one vector's controls, different for every task, kind and draw."""
    # so that the controls of two tasks are independent; 7 bytes, as any such number is a valid seed for torch
    return int.from_bytes(sha256(f"{seed}\0{iv.task}\0{what}\0{draw}".encode()).digest()[:7])


def random_vectors(iv: InstructionVector, n: int, seed: int = 0) -> list[InstructionVector]:
    """`n` vectors in random directions with the norm of `iv`, drawn with the seed and the name of the task."""
    return [replace(iv.random_like(draw_seed(seed, iv, "vector", draw)), task=f"random {draw}") for draw in range(n)]


def random_head_vectors(
    model: TransformerBridge, iv: InstructionVector, means: HeadMeans | HeadEffects, n: int, seed: int = 0
) -> list[InstructionVector]:
    """`n` vectors made as `iv` was, but from as many random heads outside `S`, scaled to the norm of `iv`.

    For a vector made with `contrast` the controls are contrasts as well. Where fewer heads are left than `iv` has, all
    of them are used; where none is left, or `iv` has no heads, the list is empty.

    Raises:
        ValueError: a vector made with `contrast`, and `means` without means over corrupted prompts.
    """
    # heads that a layer does not have are NaN; means of recurrent mixers' heads are there where the vector's were
    places = (~means.mean_z.isnan().any(-1)).nonzero().tolist()
    free = [(layer, head) for layer, head in places if (layer, head) not in iv.heads]
    k = min(iv.k, len(free))
    if not k:
        return []
    values = means.mean_z
    if is_contrast(iv):
        if means.mean_z_corrupted is None:
            raise ValueError(
                f"vector {iv.task!r} was made with contrast, but means holds no mean_z_corrupted for its random heads; "
                "pass the HeadEffects the vector was made from, or leave means out to measure both again."
            )
        values = means.mean_z - means.mean_z_corrupted
    writes = head_writes(model, values, means.write_scale)
    vectors = []
    for draw in range(n):
        generator = torch.Generator().manual_seed(draw_seed(seed, iv, "heads", draw))
        heads = [free[index] for index in torch.randperm(len(free), generator=generator)[:k].tolist()]
        layers, numbers = (list(part) for part in zip(*heads, strict=True))
        theta = writes[layers, numbers].sum(0)
        # to equal norm: random heads must not lose only because their sum is shorter; `tiny` guards against a sum of 0
        theta = theta * (iv.norm / theta.norm().clamp_min(torch.finfo(theta.dtype).tiny))
        made_by = {"random_heads_of": iv.task, "heads": heads, "seed": seed, "draw": draw}
        vectors.append(iv.derived(theta, f"random heads {draw}", made_by))
    return vectors


def matched_heads(
    chosen: Heads, taken: Collection[tuple[int, int]], every: Sequence[tuple[int, int]], draw: Random
) -> Heads:
    """As many random heads as `chosen`, from the same layers, none of them in `taken`.

    Where a layer has too few, heads of the nearest layers with free ones are drawn; fewer heads where none is left.

    Args:
        taken: Heads that are not drawn; those of `chosen` are not drawn in any case.
        every: All heads of the model, in ascending order.
    """
    barred = {*taken, *chosen}
    free: dict[int, list[tuple[int, int]]] = {layer: [] for layer, _ in every}
    for place in every:
        if place not in barred:
            free[place[0]].append(place)
    found: list[tuple[int, int]] = []
    # layers with the fewest free heads last would find their neighbours used up, so all own layers come first
    waiting = []
    for layer, _ in sorted(chosen):
        if free[layer]:
            found.append(free[layer].pop(draw.randrange(len(free[layer]))))
        else:
            waiting.append(layer)
    for layer in waiting:
        near = min((at for at in free if free[at]), key=lambda at: (abs(at - layer), at), default=None)
        if near is not None:
            found.append(free[near].pop(draw.randrange(len(free[near]))))
    return tuple(sorted(found))


def measured_again(prompts: PromptSets, iv: InstructionVector) -> HeadMeans:
    """Head means on up to 100 *fit* prompts, made like the vector's own prompts as far as the vector records how."""
    recipe = replace(iv.recipe or prompts.recipe, seed=prompts.recipe.seed)
    recorded = iv.settings.get("effects") or {}
    source = replace(prompts, recipe=recipe, n_prompts=100, corruption=recorded.get("corruption", prompts.corruption))
    clean = source.batch("fit", corrupted=False)
    mixer = mixer_with(prompts.model, iv.heads)
    if not is_contrast(iv):
        return head_means(prompts.model, clean.tokens, clean.attention_mask, mixer=mixer)
    corrupted = source.batch("fit")
    # a contrast subtracts the two means, so both have to be over the same inputs
    alike = corrupted.rows_of_one_kind()
    clean, corrupted = clean.rows(alike), corrupted.rows(alike)
    found = head_means(prompts.model, clean.tokens, clean.attention_mask, mixer=mixer)
    other = mean_head_outputs(prompts.model, corrupted.tokens, corrupted.attention_mask, mixer=mixer)
    return replace(found, mean_z_corrupted=other)


def is_contrast(iv: InstructionVector) -> bool:
    """Whether the vector was made with `contrast`: from means minus means over corrupted prompts."""
    return bool(iv.settings.get("contrast"))


def other_task_vectors(
    model: TransformerBridge,
    task: Task,
    iv: InstructionVector,
    tasks: Sequence[Task] | None = None,
    *,
    n: int | None = None,
    **options: Any,
) -> list[InstructionVector]:
    """Vectors of other tasks, made as `iv` was: for `evaluate_intervention(..., other_vectors=...)`.

    Each costs one `head_effects`.

    Args:
        task: The task on which `iv` is judged.
        tasks: The other tasks; None: built-in tasks that have at least half of this task's inputs.
        n: The largest number of tasks, drawn with the seed of `iv`; None: all.
        options: Options of `head_effects`. By default `n_prompts`, score, recipe, mode and split, and how clean prompts
            are counted and chosen, are those of `iv` where it records them. Each task has its own instruction, and its
            default corruption (`counterfactual` for the score `logit_diff`).

    Raises:
        ValueError: no built-in task has these inputs, or two different tasks have one name.
    """
    chosen = list(tasks_sharing_inputs(task) if tasks is None else tasks_of("tasks", tasks, beside=[task]))
    if tasks is None and not chosen:
        raise ValueError(f"no built-in task shares the inputs of {task.name!r}, expected some; pass tasks=[...].")
    recorded = iv.settings.get("effects") or {}
    if n is not None and n < len(chosen):
        chosen = Random(f"{iv.recipe.seed if iv.recipe else 0}\0{task.name}").sample(chosen, n)
    same = {name: recorded[name] for name in ("n_prompts", "score") if name in recorded}
    # the number that was asked for: `n_mean_prompts` is how many there were, and another task may have more
    asked = {"n_mean_prompts": recorded.get("n_mean_prompts_asked"), "correct_only": recorded.get("correct_only")}
    asked |= {"mode": recorded.get("mode"), "split": recorded.get("split")}
    given = {name: value for name, value in asked.items() if value is not None}
    # no check of ability: a control need not be a task that the model can do
    same["options"] = EffectOptions(contrast=is_contrast(iv), n_check_prompts=0, **given)
    if iv.recipe is not None:
        same["recipe"] = iv.recipe.for_other_tasks()
    if same.get("score") == "logit_diff":
        same["corruption"] = "counterfactual"
    k = iv.k or iv.settings.get("k", 10)
    return [
        InstructionVector.from_effects(
            head_effects(model, other, **{**same, **options}), k=k, model=model, contrast=is_contrast(iv)
        )
        for other in ticking(chosen, "other tasks' vectors", "tasks")
    ]


def some_other_vectors(model: TransformerBridge, task: Task, iv: InstructionVector, n: int) -> list[InstructionVector]:
    """Vectors of up to `n` other built-in tasks; none, and a warning, where no built-in task shares inputs."""
    if tasks_sharing_inputs(task):
        return other_task_vectors(model, task, iv, n=n)
    logger.warning(
        "no built-in task shares the inputs of %r, so the control other_tasks is missing; pass other_vectors=[...], "
        "or () to do without.",
        task.name,
    )
    return []


def tasks_sharing_inputs(task: Task) -> list[Task]:
    """Built-in tasks, other than this one, that have at least half of its inputs."""
    inputs = {example.input for example in task.examples}
    return [
        other
        for other in load_bank().values()
        if other.name != task.name
        and 2 * len(inputs.intersection(example.input for example in other.examples)) >= len(inputs)
    ]


def true_others(vectors: Sequence[InstructionVector], iv: InstructionVector, task: Task) -> list[InstructionVector]:
    """The given vectors without `iv` itself and without any that contains a vector of the judged task.

    Raises:
        ValueError: a vector of a task that has the same name as the judged task, or as that of `iv`, but other content.
    """
    # tasks are told apart by name, so a name has to mean one content
    own = {task.name: task.content_hash()} | {base_task(iv): _task_hash(iv)}
    for other in vectors:
        found, meant = _task_hash(other), own.get(base_task(other))
        if found is not None and meant is not None and found != meant:
            raise ValueError(
                f"other_vectors has one of another task called {base_task(other)!r}, expected one task of each name; "
                "call it something else (dataclasses.replace(task, name=...)) and measure it again."
            )
    return [
        other
        for other in vectors
        if base_task(other) != base_task(iv) and task.name not in _tasks_in(base_task(other), other.settings)
    ]


def _task_hash(vector: InstructionVector) -> str | None:
    """Hash of the content of the task that a vector was made on, if the vector records it."""
    return (vector.settings.get("effects") or {}).get("task_hash")


def _tasks_in(name: str, settings: Mapping[str, Any]) -> Iterator[str]:
    """Names of all tasks whose vectors were added up to this vector, its own included."""
    yield settings.get("scaled", name)  # the name of a multiple, such as "2 * antonym", hides that of its task
    for operand in settings.get("operands", ()):
        yield from _tasks_in(operand["task"], operand["settings"])


def permuted_answers(examples: Sequence[TaskExample], draw: str) -> tuple[tuple[TaskExample, ...], float]:
    """The same inputs with each other's answers, and the share of inputs whose new answer is right all the same.

    Of 20 random permutations it takes the one that gives most inputs a wrong answer.

    Args:
        examples: The examples.
        draw: Decides the permutations: the seed, and whatever else they should depend on.

    Raises:
        ValueError: every permutation leaves every input a right answer.
    """
    random = Random(draw)

    def n_right(order: Sequence[TaskExample]) -> int:
        return sum(other.answer in own.answers for own, other in zip(examples, order, strict=True))

    best = min((random.sample(examples, len(examples)) for _ in range(20)), key=n_right)
    kept = n_right(best) / len(examples)
    if kept == 1.0:
        raise ValueError(
            f"permuted answers: all {len(examples)} examples accept {examples[0].answer!r:.60}, expected different "
            "answers; use another task, or more examples."
        )
    return tuple(replace(own, answers=other.answers) for own, other in zip(examples, best, strict=True)), kept


def best_constant(examples: Sequence[TaskExample]) -> str:
    """The one answer that is right for most of these examples; among equals the first in alphabetical order."""
    # a set: an example that lists an answer twice is still one example
    counts = Counter(answer for example in examples for answer in set(example.answers))
    return min(counts, key=lambda answer: (-counts[answer], answer))


def constant_accuracy(answer: str, examples: Sequence[TaskExample]) -> Float[Tensor, " batch"]:
    """1 for each example that accepts `answer`, else 0."""
    return torch.tensor([float(answer in example.answers) for example in examples])
