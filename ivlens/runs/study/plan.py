"""What a study trains, watches and asks."""

from dataclasses import dataclass, field

from ivlens.analysis.dynamics.causal import CausalOptions
from ivlens.analysis.dynamics.stages import TrackOptions
from ivlens.analysis.forgetting.probabilities import ProbeOptions
from ivlens.common.checks import check_counts
from ivlens.steering.search import Grid
from ivlens.tuning.builder import find_recipe
from ivlens.tuning.methods import new_method
from ivlens.tuning.options import TuneOptions

# old to the built-in model, and things to know: every one has clozes, so that both kinds of probability are defined
OLD_TASKS = ("antonym", "english_french", "comparative", "country_capital", "present_past", "singular_plural")
NEW_TASKS = ("middle_of_three", "second_letter")  # what the built-in model was not trained on
PLAIN, PAPER, CONTROL, REHEARSAL = "none", "iv", "iv/zero_vector", "instructions_lighter"
GUIDANCE = (PLAIN, PAPER, CONTROL, REHEARSAL)


@dataclass(frozen=True)
class StudyOptions:
    """What a study does.

    Attributes:
        model: Name or folder, as for `load_model`.
        old: Tasks the model knows, by name or path; each with an instruction.
        new: Tasks it is trained on, one after the other.
        guidance: Kinds of guidance (`ivlens.tuning.RECIPES`); the first is `none`, whose model is taken apart.
        method: Of training.
        n_steps: For each new task. After the default the built-in model has lost most of its accuracy on old tasks, and
            keeps something to restore; after twice as many steps there is less.
        lr, batch_size, decay, n_samples: Of each training.
        n_records: Checkpoints that are measured during each new task.
        n_prompts: Test and select prompts of each old task in every judgement.
        n_effects: Corrupted prompts of each task that effects are measured on.
        n_draws: Random vectors, and sets of random heads, beside every causal test.
        k: Heads in a vector.
        seed: Of everything that is drawn.
    """

    model: str = "pocket"
    old: tuple[str, ...] = OLD_TASKS
    new: tuple[str, ...] = NEW_TASKS
    guidance: tuple[str, ...] = GUIDANCE
    method: str = "lora"
    n_steps: int = 50
    lr: float = 1e-3
    batch_size: int = 32
    decay: str = "linear"
    n_samples: int = 1600
    n_records: int = 3
    n_prompts: int = 32
    n_effects: int = 24
    n_draws: int = 19
    k: int = 10
    seed: int = 0
    grid: Grid = field(
        default_factory=lambda: Grid(alphas=(1.0, 2.0, 4.0), sites=("resid_post",), n_screen=12, n_finalists=4)
    )

    def __post_init__(self) -> None:
        if len(self.old) < 2 or not self.new or {*self.old} & {*self.new}:
            raise ValueError(
                f"the study got the old tasks {', '.join(self.old) or 'none'} and the new ones "
                f"{', '.join(self.new) or 'none'}, expected two or more old ones and others that are new."
            )
        if not self.guidance or self.guidance[0] != PLAIN:
            raise ValueError(f"guidance is {', '.join(self.guidance)}, expected {PLAIN} first.")
        for name in self.guidance:
            find_recipe(name)
        new_method(self.method)
        check_counts(self, n_prompts=1, n_effects=1, n_draws=1, k=1, n_samples=1, n_records=1)
        _ = self.tune  # which checks its own, here and not after the first measurements
        if not 1 <= self.n_records <= self.n_steps:
            raise ValueError(
                f"n_steps is {self.n_steps} and n_records {self.n_records}, expected no more records than steps, and 1 "
                "or more; take more steps."
            )

    @property
    def tune(self) -> TuneOptions:
        """Of each training."""
        return TuneOptions(
            lr=self.lr, n_steps=self.n_steps, batch_size=self.batch_size, decay=self.decay, judge_every=self.n_steps
        )

    @property
    def track(self) -> TrackOptions:
        """Of what is measured during training, on *select*."""
        return TrackOptions(n_prompts=self.n_effects, k=self.k, n_scored=self.n_prompts, seed=self.seed)

    @property
    def causal(self) -> CausalOptions:
        """Of the causal tests, on *test*."""
        return CausalOptions(grid=self.grid, n_prompts=self.n_prompts, n_draws=self.n_draws, seed=self.seed)

    @property
    def probe(self) -> ProbeOptions:
        """Of instruction and knowledge probability, on *test*."""
        return ProbeOptions(n_prompts=self.n_prompts, seed=self.seed)
