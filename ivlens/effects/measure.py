"""`head_effects`: from a task to the effects of all heads, with everything recorded that made them."""

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from random import Random
from typing import Any, SupportsIndex

from torch import Tensor
from tqdm.auto import tqdm

from ivlens.common.version import __version__
from ivlens.effects.engines import find_engine, run_engine
from ivlens.effects.request import Measured, Progress, check_mode, check_selection, make_request
from ivlens.effects.results import HeadEffects
from ivlens.forward.hooks import check_unsteered
from ivlens.forward.means import mean_head_outputs, mean_write_scale
from ivlens.forward.scoring import check_score, greedy_accuracy
from ivlens.models.boot import TransformerBridge, check_model
from ivlens.models.fingerprint import model_identity
from ivlens.prompts.batch import PromptBatch
from ivlens.prompts.build import build_prompts
from ivlens.prompts.templates import PromptTemplate
from ivlens.tasks.bank import load_bank
from ivlens.tasks.task import SplitName, Task, TaskExample, hash_of_tasks

_DEFAULT_SHOTS = 5


def head_effects(
    model: TransformerBridge,
    task: Task,
    *,
    n_prompts: int = 32,
    corruption: str | None = None,
    score: str = "prob",
    seed: int = 0,
    mode: str = "replace",
    method: str = "exact",
    template: str | PromptTemplate = "plain",
    n_shots: int | None = None,
    split: SplitName = "fit",
    n_mean_prompts: int = 100,
    correct_only: bool = False,
    others: Sequence[Task] | Mapping[str, Task] | None = None,
    layers: Iterable[SupportsIndex] | None = None,
    heads: Iterable[SupportsIndex] | None = None,
    batch_size: int = 32,
    max_memory: int | str = "auto",
    progress: bool | Progress = False,
) -> HeadEffects:
    """Measure what every head does for `task`: its mean over clean prompts, patched into corrupted ones.

    Args:
        model: From `load_model`, with its tokenizer.
        task: From `load_task`.
        n_prompts: Corrupted prompts; fewer where the split has fewer.
        corruption: See `build_prompts`. None: `counterfactual` where the task has instructions, `none` where
            instruction and input are one text, otherwise `shuffle`.
        score: `prob`, `logprob` or `logit_diff`; the last leaves out prompts without a counterfactual.
        seed: For every draw and for the splits.
        mode: `replace` or `add`.
        method: The engine, see `causal_indirect_effect`.
        template: Prompt template.
        n_shots: Demonstrations. None: 5 where there is no instruction in the prompt, otherwise 0. With `shuffle`
            the demonstrations stand alone, without an instruction.
        split: Where all prompts come from.
        n_mean_prompts: Clean prompts for the mean, from the other end of the (shuffled) split.
        correct_only: Only clean prompts that the model answers correctly enter the mean.
        others: Tasks that counterfactual instructions come from; by default the built-in ones, see `build_prompts`.
        layers, heads: Measure only these.
        batch_size: Prompts in each pass that only reads.
        max_memory: As in `causal_indirect_effect`.
        progress: Show a bar; or called with what is done and what there is in all, and what it raises ends the work.

    Raises:
        TypeError: a model that `load_model` did not return, or one without a tokenizer.
        ValueError: prompts that do not fit the model, no usable prompt, or an option that does not exist or does not
            suit the task; or a family in which a head's write is not defined (see `mean_write_scale`).
        RuntimeError: inside a `steer` context.
    """
    check_unsteered(check_model(model))
    plan = _plan(task, corruption, n_shots, template, others, seed)
    find_engine(method)
    check_score(score, has_foils=plan.corruption == "counterfactual")
    check_mode(mode)
    chosen_layers, chosen_heads = check_selection(model, layers, heads)
    if min(n_prompts, n_mean_prompts) < 1:
        raise ValueError(f"n_prompts is {n_prompts}, n_mean_prompts is {n_mean_prompts}, expected 1 or more of both.")
    examples = list(task.split(split, seed))
    Random(f"{seed}\0{task.name}\0prompts").shuffle(examples)
    corrupted = _measured_prompts(model, plan, examples, n_prompts, score)
    clean, counterpart = _mean_prompts(model, plan, examples[::-1][:n_mean_prompts], correct_only, batch_size)
    # all that may refuse the model or the options comes before the long part
    means = _means(model, clean, counterpart, batch_size)
    request = make_request(
        model, corrupted.tokens, corrupted.attention_mask, corrupted.answer_tokens, means["mean_z"],
        foil_tokens=corrupted.foil_tokens, mode=mode, layers=chosen_layers, heads=chosen_heads, score=score,
        max_memory=max_memory,
    )  # fmt: skip
    with _bar(f"{task.name}: heads", progress is True) as bar:
        report = bar if isinstance(progress, bool) else progress
        found = run_engine(model, replace(request, progress=report), method)
    asked = {"score": score, "mode": mode, "method": found.method, "split": split, "correct_only": correct_only}
    asked |= {"method_asked": method, "max_memory": request.max_memory, **found.record}
    asked["layers"] = None if layers is None else list(chosen_layers)
    asked["heads"] = None if heads is None else list(chosen_heads)
    settings = plan.settings() | asked | _provenance(model, corrupted, clean)
    return _result(model, task, found, means, corrupted, settings)


def _means(
    model: TransformerBridge, clean: PromptBatch, counterpart: PromptBatch, batch_size: int
) -> dict[str, Tensor]:
    """What is the same for all prompts: means over the clean ones and their counterparts, by their name in a result."""
    inputs = model, clean.tokens, clean.attention_mask
    return {
        "mean_z": mean_head_outputs(*inputs, batch_size=batch_size),
        "mean_z_corrupted": mean_head_outputs(
            model, counterpart.tokens, counterpart.attention_mask, batch_size=batch_size
        ),
        "write_scale": mean_write_scale(*inputs, batch_size=batch_size),
    }


def _result(
    model: TransformerBridge,
    task: Task,
    found: Measured,
    means: Mapping[str, Tensor],
    corrupted: PromptBatch,
    settings: Mapping[str, Any],
) -> HeadEffects:
    return HeadEffects(
        cie=found.cie.cpu(),
        **{name: value.cpu() for name, value in means.items()},
        base_scores=found.base.cpu(),
        corruptions=corrupted.corruptions,
        inputs=tuple(example.input for example in corrupted.examples),
        task=task.name,
        model=model_identity(model),
        settings=settings,
        model_ref=weakref.ref(model),
    )


@contextmanager
def _bar(what: str, shown: bool) -> Iterator[Progress]:
    with tqdm(desc=what, disable=not shown) as bar:

        def report(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield report


@dataclass(frozen=True)
class _Plan:
    """How clean and corrupted prompts are made."""

    task: Task
    corruption: str
    n_shots: int
    template: str | PromptTemplate
    others: Sequence[Task] | Mapping[str, Task] | None
    seed: int

    def prompts(self, tokenizer: Any, examples: Sequence[TaskExample], *, corrupted: bool) -> PromptBatch:
        return build_prompts(
            tokenizer,
            self.task,
            examples,
            template=self.template,
            instruction="" if self.corruption == "shuffle" else None,
            n_shots=self.n_shots,
            corruption=self.corruption if corrupted else None,
            others=self.others,
            seed=self.seed,
        )

    def settings(self) -> dict[str, Any]:
        others = list(self.others.values() if isinstance(self.others, Mapping) else self.others or ())
        pool = load_bank().values() if self.others is None else others
        return {
            "corruption": self.corruption,
            "n_shots": self.n_shots,
            "template": self.template if isinstance(self.template, str) else asdict(self.template),
            "others": None if self.others is None else sorted(other.name for other in others),
            "others_hash": hash_of_tasks(pool) if self.corruption == "counterfactual" else None,
            "seed": self.seed,
            "task_hash": self.task.content_hash(),
        }


def _plan(
    task: Task,
    corruption: str | None,
    n_shots: int | None,
    template: str | PromptTemplate,
    others: Sequence[Task] | Mapping[str, Task] | None,
    seed: int,
) -> _Plan:
    if corruption is None:
        corruption = "none" if task.fused else "counterfactual" if task.instructions else "shuffle"
    if n_shots is None:
        told = task.fused or (task.instructions and corruption != "shuffle")
        n_shots = 0 if told else min(_DEFAULT_SHOTS, len(task.split("fit", seed)) - 1)
    return _Plan(task, corruption, n_shots, template, others, seed)


def _measured_prompts(
    model: TransformerBridge, plan: _Plan, examples: Sequence[TaskExample], n_prompts: int, score: str
) -> PromptBatch:
    if score != "logit_diff":
        return plan.prompts(model.tokenizer, examples[:n_prompts], corrupted=True)
    batch = plan.prompts(model.tokenizer, examples, corrupted=True)
    assert batch.foil_tokens is not None
    usable = (batch.foil_tokens >= 0).nonzero()[:, 0].tolist()
    if not usable:
        raise ValueError(
            f"score 'logit_diff' found no counterfactual for any of {len(batch)} prompts of task {plan.task.name!r}, "
            "expected another task with the same inputs and another first answer token; pass others=, or score='prob'."
        )
    return batch.rows(usable[:n_prompts])


def _mean_prompts(
    model: TransformerBridge, plan: _Plan, examples: Sequence[TaskExample], correct_only: bool, batch_size: int
) -> tuple[PromptBatch, PromptBatch]:
    """Clean prompts, and their corrupted counterparts."""
    clean = plan.prompts(model.tokenizer, examples, corrupted=False)
    counterpart = plan.prompts(model.tokenizer, clean.examples, corrupted=True)
    assert clean.examples == counterpart.examples
    if not correct_only:
        return clean, counterpart
    right = greedy_accuracy(model, clean, batch_size=batch_size).nonzero()[:, 0].tolist()
    if not right:
        raise ValueError(
            f"correct_only=True found none of {len(clean)} clean prompts of task {plan.task.name!r} answered "
            "correctly, expected at least one; use correct_only=False, or a model that knows the task."
        )
    return clean.rows(right), counterpart.rows(right)


def _provenance(model: TransformerBridge, corrupted: PromptBatch, clean: PromptBatch) -> dict[str, Any]:
    packages = ("ivlens", "torch", "transformers", "transformer-lens")
    return {
        "counterfactual_tasks": dict(sorted(Counter(filter(None, corrupted.counterfactuals)).items())),
        "n_prompts": len(corrupted),
        "n_mean_prompts": len(clean),
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "versions": {package: _version(package) for package in packages},
    }


def _version(package: str) -> str:
    if package == "ivlens":
        return __version__
    return version(package)
