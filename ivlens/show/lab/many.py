"""Many inputs at once: *select* inputs completed plainly, with the vector and with a random one, and how many right."""

from collections.abc import Iterator, Sequence
from random import Random
from typing import Any, cast

from ivlens.common.intervals import wilson
from ivlens.forward.completions import complete
from ivlens.forward.hooks import Site
from ivlens.prompts.single import prompt_text
from ivlens.prompts.tokens import Encoder
from ivlens.show.lab.chosen import Chosen
from ivlens.show.lab.engine import Engine, begins_right
from ivlens.show.lab.state import RAW, LabState
from ivlens.steering.edits import Positions
from ivlens.steering.steer import steer
from ivlens.tasks.task import Task, TaskExample
from ivlens.vectors.vector import InstructionVector

N_INPUTS = 32
_LEAST_NEW = 4  # new tokens that are shown at least, where the state has as many


def many_inputs(chosen: Chosen, state: LabState) -> Iterator[dict[str, Any]]:
    """A row for each input with all completions, and the accuracy of each kind of completion; kind by kind."""
    for number, engine in enumerate(chosen.engines):
        yield from _table(chosen, engine, number, state)


def _table(chosen: Chosen, engine: Engine, number: int, state: LabState) -> Iterator[dict[str, Any]]:
    """The table of one model, as far as it has come."""
    task, seed = engine.tasks[state.task], chosen.seed(state)
    examples = select_examples(task, seed)
    prompts = [_prompt(engine, state, example, seed) for example in examples]
    n_new = _n_new(engine, state, examples)
    vector = chosen.vectors(state)[number]
    rows: list[dict[str, Any]] = [{"input": each.input, "answer": each.answer.strip()} for each in examples]
    kinds = ["plain", "patched", *(["random"] if state.random else [])] if vector is not None else ["plain"]
    totals: list[dict[str, Any]] = []
    for kind in kinds:
        yield {**_shown(engine, number, rows, totals), "busy": f"Completing {len(examples)} inputs, {kind}"}
        used = {"plain": None, "patched": vector, "random": vector and vector.random_like(state.seed)}[kind]
        texts = _completed(engine, prompts, used, state, n_new)
        right = [begins_right(text, each.answers) is True for text, each in zip(texts, examples, strict=True)]
        for row, text, good in zip(rows, texts, right, strict=True):
            row[kind] = [text.strip(), good]
        low, high = wilson(sum(right), len(right))
        totals.append({"name": kind, "value": sum(right) / len(right), "low": low, "high": high})
    yield {**_shown(engine, number, rows, totals), "done": True}


def _shown(engine: Engine, number: int, rows: Sequence[Any], totals: Sequence[Any]) -> dict[str, Any]:
    return {
        "model": number,
        "name": engine.facts()["name"],
        "rows": [dict(row) for row in rows],
        "totals": list(totals),
    }


def select_examples(task: Task, seed: int) -> list[TaskExample]:
    """Up to `N_INPUTS` *select* inputs, in an order drawn with the seed.

    Raises:
        ValueError: the task has none.
    """
    examples = list(task.split("select", seed))
    Random(f"{seed}\0{task.name}\0lab").shuffle(examples)
    return examples[:N_INPUTS]


def _prompt(engine: Engine, state: LabState, example: TaskExample, seed: int) -> str:
    """The shown prompt with another input; demonstrations are drawn for it, and never show its own answer."""
    if state.template == RAW:
        return example.input
    task = engine.tasks[state.task]
    return prompt_text(
        engine.model.tokenizer,
        task,
        example.input,
        state.shown(task, seed),
        shots=None if state.bare or state.demos is None else [pair for pair in state.demos if pair[0] != example.input],
        seed=state.demo_seed,
    )


def _n_new(engine: Engine, state: LabState, examples: Sequence[TaskExample]) -> int:
    """New tokens of each completion: the longest answer and two more, by which it is judged whether its word ends."""
    encoder = Encoder(engine.model.tokenizer)
    longest = max(len(encoder.ids(f" {answer}")) - len(encoder.start) for each in examples for answer in each.answers)
    return min(state.max_new_tokens, max(_LEAST_NEW, longest + 2))


def _completed(
    engine: Engine, prompts: Sequence[str], vector: InstructionVector | None, state: LabState, n_new: int
) -> list[str]:
    """The completions of all prompts, as `steer` and `complete` give them."""
    assert state.layer is not None and state.alpha is not None
    if vector is None:
        return complete(engine.model, prompts, max_new_tokens=n_new)
    with steer(
        engine.model,
        # the vector may have been made on other weights of this shape, as those of a compared model
        vector.for_model(engine.model, engine.identity),
        layer=state.layer,
        alpha=state.alpha,
        site=cast(Site, state.site),
        positions=cast(Positions, state.positions),
    ):
        return complete(engine.model, prompts, max_new_tokens=n_new)
