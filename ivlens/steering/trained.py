"""`train_vector`: a vector that is trained by gradient, as a reference for what one vector at one layer can do.

Formulas: docs/method.md, 6 Intervention and its controls.
"""

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import torch

from ivlens.common.arguments import checked
from ivlens.common.html import of_frame
from ivlens.common.progress import showing_progress
from ivlens.forward.asking import prompts_for
from ivlens.models.boot import ModelRef, TransformerBridge
from ivlens.models.fingerprint import model_identity
from ivlens.prompts.batch import PromptBatch
from ivlens.prompts.recipe import PromptRecipe
from ivlens.steering.climb import Climb, TrainedOptions
from ivlens.steering.controls import permuted_answers
from ivlens.steering.prompt_sets import PromptSets
from ivlens.steering.slopes import frozen_weights
from ivlens.steering.summary import Setting
from ivlens.steering.trials import Trials
from ivlens.tasks.task import SplitName, Task
from ivlens.vectors.vector import InstructionVector

if TYPE_CHECKING:
    import pandas as pd

_NOT_RECORDED = ("progress", "n_fit", "n_select")  # how many prompts there were is recorded instead


@checked
@dataclass(frozen=True, eq=False)
class TrainedVector:
    """A trained vector, where it is added, and how it was trained.

    Attributes:
        vector: The vector; it has no heads. Its settings record the training under `trained`.
        setting: Where it is added, with strength 1.
        accuracy: Accuracy on the *select* prompts by which the vector was chosen, which is too high for a report.
        logprob: Mean log-probability of the answers on these prompts, in nats.
        curve: A row for each judged vector: `step` (1 is the first), `layer`, `norm` (the largest length that it may
            have) and `length`, both in units of the stream's mean length there, `loss` (minus the mean log-probability
            of answers, nats, on the *fit* prompts of the steps since the last judgement), and `accuracy` and `logprob`
            on *select*. Step 0 is the prompts without a vector.
    """

    vector: InstructionVector
    setting: Setting
    accuracy: float
    logprob: float
    curve: "pd.DataFrame"

    def __repr__(self) -> str:
        about = f"layer {self.setting.layer}, {self.setting.site}, norm {self.vector.norm:.3g}"
        bare = self.curve["accuracy"].iloc[0]
        return f"TrainedVector({self.vector.task!r}: {about}; select accuracy {self.accuracy:.2f}, bare {bare:.2f})"

    def __str__(self) -> str:
        return f"{self!r}\n{self._shown().to_string(index=False, na_rep='')}"

    def _repr_html_(self) -> str:
        return of_frame(self._shown(), "A vector trained by gradient: scores along its training")

    def _shown(self) -> "pd.DataFrame":
        return self.curve.round(2)


@checked
def train_vector(
    model: TransformerBridge,
    task: Task,
    *,
    recipe: PromptRecipe | None = None,
    options: TrainedOptions | None = None,
) -> TrainedVector:
    """A vector that is trained to make the model answer the task on bare prompts, as a reference for other vectors.

        >>> trained = ivlens.train_vector(model, task)
        >>> ivlens.evaluate_intervention(model, task, trained.vector, at=trained.setting)

    The vector is added once, at the last prompt token, and trained on *fit* prompts by Adam to maximise the mean
    log-probability of whole answers. Its layer and its largest length are searched by short trainings: of the layers
    the better ones go on, then the best one, then the best length; what they are judged by is accuracy on *select*,
    and among equals log-probability. The best vector of all judgements is returned. The model is left as it is.

    What it reaches is a reference, not a bound: a longer training or more prompts may reach more, and few prompts may
    let it learn their answers by heart. Its controls are a vector trained on permuted answers
    (`TrainedOptions(permuted=True)`), which shows what the right kind of answers is worth, and the best constant.

    Args:
        recipe: How the clean prompts are made, of which the vector's prompts are the corrupted ones; the splits are
            those of its seed.

    Raises:
        ValueError: a layer that the model does not have; prompts with nothing to take away, or too long for the model;
            an empty split; answers that no permutation changes; a model in train mode, or one that overflows.
        RuntimeError: inside a `steer` context.

    Source:
        docs/method.md, 6 Intervention and its controls; arXiv 2509.24169, where trained task vectors are compared with
        those taken from activations. Added here: the search of layer and length on a split of its own, and controls.
    """
    options, recipe = options or TrainedOptions(), recipe or PromptRecipe()
    layers = options.tried(model)
    # `inference_mode(False)`: what is cached in the caller's inference mode could not be differentiated
    with showing_progress(options.progress), torch.inference_mode(False), frozen_weights(model):
        return _trained(model, task, recipe, options, layers)


def _trained(
    model: TransformerBridge, task: Task, recipe: PromptRecipe, options: TrainedOptions, layers: list[int]
) -> TrainedVector:
    """The training itself, once the arguments are checked."""
    import pandas as pd

    sets = [
        PromptSets(model, task, recipe, options.corruption, n, options.seed) for n in (options.n_fit, options.n_select)
    ]
    (fit, kept), (select, _) = _batch(sets[0], "fit", options), _batch(sets[1], "select", options)
    lesson = replace(fit, alternatives=tuple(answers[:1] for answers in fit.alternatives))
    climb = Climb(Trials(model, lesson), Trials(model, select), layers, options)
    best = climb.run()
    columns = ["step", "layer", "norm", "length", "loss", "accuracy", "logprob"]
    curve = pd.DataFrame([{"step": 0, **climb.bare}, *(one.row for one in climb.found)], columns=columns)
    curve = curve.astype({"layer": "Int64"})  # whole numbers, though the first row has none
    record = {
        "split": "fit",
        "task": task.name,
        "task_hash": task.content_hash(),
        "recipe": recipe.resolved(task).to_dict(),
        "n_prompts": len(fit),
        "n_select_prompts": len(select),
        **{name: value for name, value in asdict(options).items() if name not in _NOT_RECORDED},
        "corruption": sets[0].applied,
        "layers": layers,
        "kept_answers": kept,
        "bare": climb.bare,
        "best": dict(best.row),
    }
    name = f"permuted {task.name}" if options.permuted else task.name
    no_means = torch.zeros(0, model.cfg.d_head)
    vector = InstructionVector(
        best.theta, (), no_means, name, model_identity(model), {"trained": record}, ModelRef(model)
    )
    return TrainedVector(vector, best.setting, best.row["accuracy"], best.row["logprob"], curve)


def _batch(prompts: PromptSets, split: SplitName, options: TrainedOptions) -> tuple[PromptBatch, float | None]:
    """The prompts of a split; with permuted answers, also the share of these that are right all the same."""
    if not options.permuted:
        return prompts.batch(split), None
    task = prompts.task
    examples, kept = permuted_answers(prompts.examples(split), f"{options.seed}\0{task.name}\0{split}")
    return prompts_for(prompts.model, task, examples, prompts.recipe, corruption=prompts.applied), kept
