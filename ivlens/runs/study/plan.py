"""The options of a study: its tasks, its trainings, and how everything is measured."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from ivlens.analysis.dynamics.causal import CausalOptions
from ivlens.analysis.dynamics.stages import TrackOptions
from ivlens.analysis.forgetting.probabilities import ProbeOptions
from ivlens.analysis.transplant.heads import TransplantOptions
from ivlens.analysis.transplant.splicing import SpliceOptions
from ivlens.common.checks import Texts, check_counts, set_items
from ivlens.prompts.recipe import PromptRecipe
from ivlens.runs.suites.suite import load_suite
from ivlens.steering.search import Grid
from ivlens.tasks.bank import load_task
from ivlens.tasks.task import Task, tasks_of
from ivlens.tuning.builder import find_guidance
from ivlens.tuning.methods import new_method
from ivlens.tuning.training.options import Decay, TuneOptions

# tasks that the built-in model knows. All have clozes, which knowledge probability needs
EARLIER_TASKS = ("antonym", "english_french", "comparative", "country_capital", "present_past", "singular_plural")
NEW_TASKS = ("middle_of_three", "second_letter")  # tasks that the built-in model was not trained on
# tasks beside both, in which general abilities are measured; those that a study trains or keeps are left out of it
GENERAL_TASKS = ("synonym", "noun_kind", "first_letter", "present_gerund", "third_person", "country_language")
# kinds of guidance: none, that of the paper, the same with a zero vector, and rehearsal of instructions
PLAIN, PAPER, CONTROL, REHEARSAL = "none", "iv", "iv/zero_vector", "instructions_lighter"
HEADS, OTHER_HEADS = "heads", "heads/random_heads"  # kinds that a study may have beside these
SPLICES = 8  # layers at which the models are spliced: each costs a pass over all prompts, for both ways round
JUDGEMENTS = 5  # times that each training on a new task is judged, the last time at its end
# kinds of rehearsal, the first of which that a study has is the one that its claims are about
REHEARSALS = (REHEARSAL, "answers", "instructions", "instructions_light", "answers_light")
GUIDANCE = (PLAIN, PAPER, CONTROL, REHEARSAL)


@dataclass(frozen=True)
class StudyOptions:
    """Options of a study.

    Attributes:
        model: Name or folder of the model, as for `load_model`.
        earlier: Tasks that the model knows, by name or path. They are measured during training, their forgetting is
            taken apart, and guidance keeps them.
        new: Tasks that the model is trained on, one after the other.
        general: Tasks beside these, for what is kept of general abilities; earlier and new tasks among them are left
            out.
        guidance: Names of guidance (`ivlens.tuning.RECIPES`). The first is `none`: only in this training are
            vectors measured, and only its model has causal tests.
        method: Name of the training method.
        steps: Steps for each new task. After the default the built-in model has lost most of its accuracy on earlier
            tasks, and something can still be restored; after twice as many steps less can.
        lr, batch_size, decay, n_samples: As in `TuneOptions`, for each training.
        n_records: Number of checkpoints that are measured during each new task.
        n_prompts: Number of corrupted prompts of each task for the effects.
        n_judge_prompts: At most so many prompts of each earlier task in every judgement.
        n_exam_prompts: At most so many *select* prompts of each task wherever a training is judged, and so many *test*
            prompts of each general task.
        n_draws: Number of random vectors, and of sets of random heads, beside every causal test.
        k: Number of heads in a vector.
        training: How prompts of new tasks are made where the model is trained and judged on them; None: by `recipe`. A
            model may be asked old tasks by demonstrations, and be trained on new ones by instructions.
        recipe: How prompts of all tasks are made. Its seed is that of everything that is measured, and of the splits of
            earlier tasks; new tasks are divided as a suite divides them.
        seed: Seed of the trainings: samples, their order, new adapters.
        grid: The settings that are tried for every vector in the causal tests.
    """

    model: str = "pocket"
    earlier: Texts = EARLIER_TASKS
    new: Texts = NEW_TASKS
    general: Texts = GENERAL_TASKS
    guidance: Texts = GUIDANCE
    method: str = "lora"
    steps: int = 50
    lr: float = 1e-3
    batch_size: int = 32
    decay: Decay = "linear"
    n_samples: int = 1600
    n_records: int = 3
    n_prompts: int = 24
    n_judge_prompts: int = 32
    n_exam_prompts: int = 16
    n_draws: int = 19
    k: int = 10
    recipe: PromptRecipe = PromptRecipe()
    training: PromptRecipe | None = None
    seed: int = 0
    grid: Grid = field(
        default_factory=lambda: Grid(alphas=(1.0, 2.0, 4.0), sites=("resid_post",), n_screen=12, n_finalists=4)
    )

    def __post_init__(self) -> None:
        set_items(self, "earlier", "new", "general", "guidance")
        if len(self.earlier) < 2 or not self.new or {*self.earlier} & {*self.new}:
            raise ValueError(
                f"the study got the earlier tasks {', '.join(self.earlier) or 'none'} and the new ones "
                f"{', '.join(self.new) or 'none'}, expected two or more earlier ones and others that are new."
            )
        for name in ("earlier", "new", "general", "guidance"):
            self._check_once(name)
        if not self.guidance or self.guidance[0] != PLAIN:
            raise ValueError(f"guidance is {', '.join(self.guidance)}, expected {PLAIN} first.")
        for name in self.guidance:
            find_guidance(name)
        new_method(self.method)
        check_counts(self, n_prompts=1, n_judge_prompts=1, n_exam_prompts=1, n_draws=1, k=1, n_samples=1, n_records=1)
        _ = self.tune  # which checks its options: an error comes here, and not after the first measurements
        if not 1 <= self.n_records <= self.steps:
            raise ValueError(
                f"steps is {self.steps} and n_records {self.n_records}, expected no more records than steps, and 1 "
                "or more; take more steps."
            )

    def _check_once(self, name: str) -> None:
        """Refuse a name that is given twice: results are filed by names, so the second would be lost."""
        given = getattr(self, name)
        twice = next((one for one in given if given.count(one) > 1), None)
        if twice is not None:
            raise ValueError(f"{name} is {', '.join(given)}, expected each name once; leave out the second {twice!r}.")

    @property
    def told(self) -> PromptRecipe:
        """How prompts of new tasks are made."""
        return self.recipe if self.training is None else self.training

    @property
    def tune(self) -> TuneOptions:
        """Options of each training, which is judged five times, and once more at its end if the steps leave a rest."""
        names = ("lr", "steps", "batch_size", "decay", "n_samples", "seed")
        every = max(1, self.steps // JUDGEMENTS)
        return TuneOptions(judge_every=every, **{name: getattr(self, name) for name in names})

    @property
    def track(self) -> TrackOptions:
        """Options of the measurements during training, on *select*."""
        return TrackOptions(self.n_prompts, self.k, n_judge_prompts=self.n_judge_prompts, recipe=self.recipe)

    @property
    def causal(self) -> CausalOptions:
        """Options of the causal tests, on *test*."""
        return CausalOptions(self.grid, n_prompts=self.n_judge_prompts, n_draws=self.n_draws, recipe=self.recipe)

    @property
    def transplant(self) -> TransplantOptions:
        """Options of the transplants, on *test*."""
        return TransplantOptions(n_draws=self.n_draws, seed=self.recipe.seed)

    def splice(self, n_layers: int) -> SpliceOptions:
        """Options of the splices, on *test*: at up to `SPLICES` layers, evenly from the first to the last."""
        n = min(SPLICES, n_layers)
        layers = {1 + round(number * (n_layers - 1) / max(1, n - 1)) for number in range(n)}
        return SpliceOptions(tuple(sorted(layers)), seed=self.recipe.seed)

    @property
    def probe(self) -> ProbeOptions:
        """Options of instruction and knowledge probability, on *test*."""
        return ProbeOptions(n_prompts=self.n_judge_prompts, recipe=self.recipe)


def study_tasks(options: StudyOptions) -> tuple[list[Task], list[Task], list[Task]]:
    """The earlier, the new and the general tasks; tables tell tasks apart by their names, so these have to differ.

    Raises:
        ValueError: two tasks of one name; a task that is given twice, by its name and by a path for instance.
    """
    earlier = [load_task(name) for name in options.earlier]
    news = new_tasks(options.new)
    for what, given in (("earlier", earlier), ("new", news)):
        beside = [] if what == "earlier" else earlier
        if len(tasks_of(what, given, beside=beside)) < len(given):
            named = ", ".join(getattr(options, what))
            raise ValueError(f"{what} is {named}, which holds a task twice, expected each task once; leave one out.")
    taken = {task.name for task in (*earlier, *news)}
    general = [task for task in map(load_task, options.general) if task.name not in taken]
    return earlier, news, list(tasks_of("general", general))


def new_tasks(names: Sequence[str]) -> list[Task]:
    """Tasks to train on; those of the pocket suite come from it, as it has more training inputs than the bank."""
    suite = {task.name for task in load_suite("pocket").tasks}
    own = [name for name in names if name in suite]
    drilled = {task.name: task for task in load_suite("pocket", order=own or 0).tasks}
    return [drilled[name] if name in suite else load_task(name) for name in names]
