"""Methods of learning a sequence of tasks: which weights are trained, what is added to the loss, what is remembered.

`begin` is called before a task, `penalty` in every step, `finish` after the task. The object holds what it remembers of
earlier tasks, so one object serves one sequence. See docs/method.md, section 10 Sequences of tasks.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ivlens.common.checks import Texts, as_items
from ivlens.tuning.terms.kl import IVKL
from ivlens.tuning.terms.term import Term
from ivlens.tuning.training.asking import InTraining
from ivlens.tuning.training.data import TrainingSet, answer_logits, evaluating
from ivlens.tuning.training.losses import answer_loss
from ivlens.tuning.training.processes import current

# The papers train adapters on the query and value projections. Where both are fused into one module, that one is used.
_PAIRS = (("q_proj", "v_proj"),)
_FUSED = ("c_attn", "query_key_value", "qkv_proj", "Wqkv")


@dataclass
class Method:
    """Full fine-tuning: all weights are trained and nothing is remembered. Other methods override parts of it."""

    name: str = "full"

    def begin(self, plain: nn.Module) -> nn.Module:
        """The model to train on the next task: `plain` itself, or a peft model around it."""
        plain.requires_grad_(True)
        return plain

    def data(self, data: TrainingSet, seed: int) -> TrainingSet:
        """The examples to train on: those of the task, followed by any that the method adds."""
        return data

    def penalty(self, model: nn.Module) -> Tensor | None:
        """A term of the loss that depends on the weights alone; None where the method has none."""
        return None

    def distillation(self) -> IVKL | None:
        """A KL term to the model before the task, where the method is defined by one; None otherwise."""
        return None

    def finish(self, model: nn.Module, data: TrainingSet, seed: int) -> None:
        """Remember what is needed of a task after its training; `data` are the task's own examples."""

    def describe(self) -> dict[str, Any]:
        """The method's options as plain values, without what it remembers."""
        return {
            name: value for name, value in vars(self).items() if isinstance(value, str | int | float | tuple | None)
        }


@dataclass(frozen=True, eq=False)
class Penalty(Term):
    """A method's penalty as a term of the loss, computed once in a step."""

    name: ClassVar[str] = "penalty"

    method: Method

    def passes(self, step: int, asked: Any, model: InTraining) -> Iterator[Float[Tensor, ""]]:
        """The method's penalty, if it has one; with several processes only in the first one."""
        # gradients are added up over processes: in each of them the penalty would count several times
        value = self.method.penalty(model.plain) if current().is_first else None
        if value is not None:
            yield value

    def describe(self) -> dict[str, Any]:
        """No options: the method describes itself."""
        return {}


@dataclass
class Lora(Method):
    """One low-rank adapter, trained on all tasks in turn.

    Attributes:
        r: Rank of the adapter's matrices.
        alpha: Scale: the adapter adds `alpha / r · B A` to a weight.
        targets: Names of the modules that get an adapter; None: the query and value projections, or the module that
            holds both.
    """

    name: str = "lora"
    r: int = 8
    alpha: int = 16
    targets: Texts | None = None

    def begin(self, plain: nn.Module) -> nn.Module:
        return plain if hasattr(plain, "peft_config") else self._adapted(plain, "default")

    def _adapted(self, plain: nn.Module, adapter: str) -> nn.Module:
        """The model with a new adapter of this name, beside any that it has."""
        from peft import LoraConfig, get_peft_model

        chosen = list(as_items("targets", self.targets) if self.targets else lora_targets(plain))
        config = LoraConfig(r=self.r, lora_alpha=self.alpha, target_modules=chosen, lora_dropout=0.0, bias="none")
        plain.requires_grad_(False)  # only the new adapter is trained
        model: Any = plain
        if hasattr(plain, "peft_config"):
            model.add_adapter(adapter, config)
            return model
        return get_peft_model(model, config, adapter_name=adapter)


@dataclass
class IncLora(Lora):
    """A new adapter for every task; earlier adapters stay active and are not trained any more.

    Attributes:
        adapters: Names of the adapters made so far, one for each task.
    """

    name: str = "inclora"
    adapters: list[str] = field(default_factory=list)

    def begin(self, plain: nn.Module) -> nn.Module:
        self.adapters.append(f"task{len(self.adapters)}")
        model: Any = self._adapted(plain, self.adapters[-1])
        # all adapters are active; `set_adapter` makes them trainable too, so earlier ones are frozen afterwards
        model.base_model.set_adapter(self.adapters)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(f".{self.adapters[-1]}." in name)
        return model


@dataclass
class OLora(IncLora):
    """As `inclora`, with a penalty that keeps a new adapter's input subspace orthogonal to all earlier ones.

    The penalty is `weight · Σ_{i<t} ‖A_i A_tᵀ‖²` with the adapters' input matrices `A`.

    Source: arXiv 2310.14152, equation 8, with squares (the release sums absolute values).
    """

    name: str = "olora"
    weight: float = 0.5

    def penalty(self, model: nn.Module) -> Tensor | None:
        terms = [(earlier @ new.T).square().sum() for earlier, new in self.subspaces(model)]
        return self.weight * torch.stack(terms).sum() if terms else None

    def subspaces(self, model: nn.Module) -> list[tuple[Tensor, Tensor]]:
        """Pairs of input matrices `A_i` and `A_t`, for every adapted module and every earlier task `i`."""
        # peft calls the input matrix of an adapted module `lora_A`, one for each adapter's name
        pairs = []
        for module in model.modules():
            lora_a = getattr(module, "lora_A", None)
            if isinstance(lora_a, nn.ModuleDict) and self.adapters[-1] in lora_a:
                new = lora_a[self.adapters[-1]].weight
                pairs += [(lora_a[name].weight, new) for name in self.adapters[:-1] if name in lora_a]
        return pairs


@dataclass
class EWC(Lora):
    """One adapter, pulled back to where earlier tasks left it by the penalty `weight / 2 · Σ_i F_i (φ_i - φ*_i)²`.

    `F` is the diagonal of the empirical Fisher information, `E[(∂ log p(y|x) / ∂φ)²]` over examples of a task, summed
    over tasks. `φ*` are the weights after the last task.

    Source: arXiv 1612.00796, equation 3, in the online form (one anchor, summed Fisher information). The default weight
    was chosen on pairs of tasks with the built-in model: with 300 it does not learn the second task.

    Attributes:
        weight: Weight of the penalty.
        n_fisher: Examples from which the Fisher information is estimated; each costs one backward pass.
        fisher: `F` by the name of the weight; empty before the first task has ended.
        anchor: `φ*` by the name of the weight.
    """

    name: str = "ewc"
    weight: float = 100.0
    n_fisher: int = 64
    fisher: dict[str, Tensor] = field(default_factory=dict)
    anchor: dict[str, Tensor] = field(default_factory=dict)

    def penalty(self, model: nn.Module) -> Tensor | None:
        if not self.fisher:
            return None
        named = dict(model.named_parameters())
        terms = [(self.fisher[name] * (named[name] - self.anchor[name]).square()).sum() for name in self.fisher]
        return self.weight / 2 * torch.stack(terms).sum()

    # after the task: Fisher information and anchor are those of the weights that were learned
    def finish(self, model: nn.Module, data: TrainingSet, seed: int) -> None:
        drawn = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))[: self.n_fisher]
        for name, value in diagonal_fisher(model, data.rows(drawn.to(data.tokens.device))).items():
            self.fisher[name] = self.fisher[name] + value if name in self.fisher else value
        trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.anchor = {name: parameter.detach().clone() for name, parameter in trained.items()}


@dataclass
class LwF(Lora):
    """One adapter, with a KL term to the model before the task on the new task's own prompts.

    Source: arXiv 1606.09282, with the frozen model's answers at answer positions instead of old output layers. The
    default weight was chosen on the built-in model, which learns nothing with ten times as much.
    """

    name: str = "lwf"
    weight: float = 0.1
    temperature: float = 2.0

    def distillation(self) -> IVKL | None:
        return IVKL(weight=self.weight, temperature=self.temperature)


@dataclass
class Replay(Lora):
    """One adapter, trained on the new task's examples and on some examples of every earlier task.

    Attributes:
        n_kept: Examples that are remembered of every task.
        share: Number of replayed examples for each example of the new task: 0.5 adds half as many.
        buffer: The examples remembered so far, a set for each task.
    """

    name: str = "replay"
    n_kept: int = 64
    share: float = 0.5
    buffer: list[TrainingSet] = field(default_factory=list)

    def data(self, data: TrainingSet, seed: int) -> TrainingSet:
        if not self.buffer:
            return data
        kept = TrainingSet.joined(self.buffer)
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randint(len(kept), (round(self.share * len(data)),), generator=generator)
        # after the task's own examples: guidance acts on the first `len(data)` alone
        return TrainingSet.joined([data, kept.rows(drawn.to(kept.tokens.device))])

    def finish(self, model: nn.Module, data: TrainingSet, seed: int) -> None:
        drawn = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))[: self.n_kept]
        self.buffer.append(data.rows(drawn.to(data.tokens.device)))


METHODS: dict[str, Callable[..., Method]] = {
    "full": Method,
    "lora": Lora,
    "inclora": IncLora,
    "ewc": EWC,
    "olora": OLora,
    "lwf": LwF,
    "replay": Replay,
}


def new_method(name: str, **options: Any) -> Method:
    """A fresh method by its name, which remembers no task yet.

    Raises:
        ValueError: there is no method of that name.
    """
    if name not in METHODS:
        raise ValueError(f"method is {name!r:.60}, expected one of {', '.join(METHODS)}.")
    return METHODS[name](**options)


def lora_targets(plain: nn.Module) -> tuple[str, ...]:
    """Names of the modules of this model that get an adapter: query and value projections, or the fused projection.

    Raises:
        ValueError: the model has no such module under a known name.
    """
    names = {name.rsplit(".", 1)[-1] for name, _ in plain.named_modules()}
    for pair in _PAIRS:
        if names >= set(pair):
            return pair
    fused = next((name for name in _FUSED if name in names), None)
    if fused is None:
        raise ValueError(
            f"{type(plain).__name__} has no module named {', '.join((*_PAIRS[0], *_FUSED))}, expected its query and "
            "value projections among them; name the modules that shall get an adapter with targets=(...)."
        )
    return (fused,)


def diagonal_fisher(model: nn.Module, data: TrainingSet) -> dict[str, Tensor]:
    """`E[(∂ log p(y|x) / ∂φ)²]` for every trainable weight, where `log p(y|x)` is summed over the answer's tokens."""
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    fisher = {name: torch.zeros_like(parameter) for name, parameter in trained.items()}
    with evaluating(model):
        for _, row in data.portions(1):  # one example at a time: the mean of squares is not the square of the mean
            n_tokens = int((row.answers >= 0).sum())
            loss = answer_loss(answer_logits(model, row), row.answers) * n_tokens
            slopes = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
            for name, slope in zip(trained, slopes, strict=True):
                if slope is not None:
                    fisher[name] += slope.square() / len(data)
    return fisher
