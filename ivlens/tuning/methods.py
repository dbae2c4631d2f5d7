"""How a sequence of tasks is learned: what is trainable, what is added to the loss, what is kept from task to task.

A method is told of three moments: `begin` before a task, `penalty` in every step, `finish` after it. It holds what it
remembers of earlier tasks, so one object serves one sequence.
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

# the query and value projections, as the papers train them; where they are fused, the fused one
_PAIRS = (("q_proj", "v_proj"),)
_FUSED = ("c_attn", "query_key_value", "qkv_proj", "Wqkv")


@dataclass
class Method:
    """Everything is trained (`full`), and nothing is remembered. The others build on it."""

    name: str = "full"

    def begin(self, plain: nn.Module) -> nn.Module:
        """The model to train on the next task: `plain` itself, or a peft model around it."""
        plain.requires_grad_(True)
        return plain

    def data(self, data: TrainingSet, seed: int) -> TrainingSet:
        """What is trained on: the task's examples, and whatever the method adds."""
        return data

    def penalty(self, model: nn.Module) -> Tensor | None:
        """A term of the loss for the present weights; None for none."""
        return None

    def distillation(self) -> IVKL | None:
        """A divergence from the model before the task that the method itself asks for."""
        return None

    def finish(self, model: nn.Module, data: TrainingSet, seed: int) -> None:
        """After a task; `data` are its own examples."""

    def describe(self) -> dict[str, Any]:
        """Its options; of what it remembers, nothing."""
        return {
            name: value for name, value in vars(self).items() if isinstance(value, str | int | float | tuple | None)
        }


@dataclass(frozen=True, eq=False)
class Penalty(Term):
    """A method's penalty for the present weights, once in a step."""

    name: ClassVar[str] = "penalty"

    method: Method

    def passes(self, step: int, asked: Any, model: InTraining) -> Iterator[Float[Tensor, ""]]:
        """The penalty; of several processes the first alone has it."""
        value = self.method.penalty(model.plain) if current().is_first else None
        if value is not None:
            yield value

    def describe(self) -> dict[str, Any]:
        """Nothing: the method describes itself."""
        return {}


@dataclass
class Lora(Method):
    """One low-rank adapter for all tasks.

    Attributes:
        r: Rank.
        alpha: Scale: the adapter adds `alpha / r · B A`.
        targets: Names of the modules that get one; None: the query and value projections, or the fused one.
    """

    name: str = "lora"
    r: int = 8
    alpha: int = 16
    targets: Texts | None = None

    def begin(self, plain: nn.Module) -> nn.Module:
        return plain if hasattr(plain, "peft_config") else self._adapted(plain, "default")

    def _adapted(self, plain: nn.Module, adapter: str) -> nn.Module:
        from peft import LoraConfig, get_peft_model

        chosen = list(as_items("targets", self.targets) if self.targets else lora_targets(plain))
        config = LoraConfig(r=self.r, lora_alpha=self.alpha, target_modules=chosen, lora_dropout=0.0, bias="none")
        plain.requires_grad_(False)
        model: Any = plain
        if hasattr(plain, "peft_config"):
            model.add_adapter(adapter, config)
            return model
        return get_peft_model(model, config, adapter_name=adapter)


@dataclass
class IncLora(Lora):
    """A new adapter for every task; the earlier ones stay in place and stand still."""

    name: str = "inclora"
    adapters: list[str] = field(default_factory=list)

    def begin(self, plain: nn.Module) -> nn.Module:
        self.adapters.append(f"task{len(self.adapters)}")
        model: Any = self._adapted(plain, self.adapters[-1])
        model.base_model.set_adapter(self.adapters)  # all of them add to the weights
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(f".{self.adapters[-1]}." in name)
        return model


@dataclass
class OLora(IncLora):
    """As `inclora`, with `weight · Σ_{i<t} ‖A_i A_tᵀ‖²`: a new task's input subspace is orthogonal to all earlier ones.

    Source: arXiv 2310.14152, equation 8, with squares (the release sums absolute values).
    """

    name: str = "olora"
    weight: float = 0.5

    def penalty(self, model: nn.Module) -> Tensor | None:
        terms = [(earlier @ new.T).square().sum() for earlier, new in self.subspaces(model)]
        return self.weight * torch.stack(terms).sum() if terms else None

    def subspaces(self, model: nn.Module) -> list[tuple[Tensor, Tensor]]:
        """Pairs `A_i`, `A_t` of every adapted module and every earlier task."""
        pairs = []
        for module in model.modules():
            lora_a = getattr(module, "lora_A", None)
            if isinstance(lora_a, nn.ModuleDict) and self.adapters[-1] in lora_a:
                new = lora_a[self.adapters[-1]].weight
                pairs += [(lora_a[name].weight, new) for name in self.adapters[:-1] if name in lora_a]
        return pairs


@dataclass
class EWC(Lora):
    """One adapter, held where earlier tasks left it: `weight / 2 · Σ_i F_i (φ_i - φ*_i)²`.

    `F` is the diagonal of the empirical Fisher information, `E[(∂ log p(y|x) / ∂φ)²]` over examples of the task, added
    up over tasks; `φ*` the weights after the last task.

    Source: arXiv 1612.00796, equation 3, in the online form (one anchor, summed Fisher). The weight is a choice, made
    on pairs of tasks of the built-in model, where 300 keeps from learning the second one.

    Attributes:
        n_fisher: Examples that the Fisher is estimated from, one backward pass each.
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

    def finish(self, model: nn.Module, data: TrainingSet, seed: int) -> None:
        drawn = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))[: self.n_fisher]
        for name, value in diagonal_fisher(model, data.rows(drawn.to(data.tokens.device))).items():
            self.fisher[name] = self.fisher[name] + value if name in self.fisher else value
        trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.anchor = {name: parameter.detach().clone() for name, parameter in trained.items()}


@dataclass
class LwF(Lora):
    """One adapter, and a divergence from the model before the task on the task's own prompts.

    Source: arXiv 1606.09282, with the frozen model's answers at answer positions instead of old output layers. The
    weight is a choice, made on the built-in model, which learns nothing with ten times as much.
    """

    name: str = "lwf"
    weight: float = 0.1
    temperature: float = 2.0

    def distillation(self) -> IVKL | None:
        return IVKL(weight=self.weight, temperature=self.temperature)


@dataclass
class Replay(Lora):
    """One adapter, and some examples of every earlier task among those of the new one.

    Attributes:
        n_kept: Examples kept of every task.
        share: Replayed examples for one of the new task's: 0.5 adds half as many.
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
    """A method by name, with nothing in its memory.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in METHODS:
        raise ValueError(f"method is {name!r:.60}, expected one of {', '.join(METHODS)}.")
    return METHODS[name](**options)


def lora_targets(plain: nn.Module) -> tuple[str, ...]:
    """The query and value projections of this model by their names, or the one they are fused in.

    Raises:
        ValueError: it has none under any known name.
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
    """`E[(∂ log p(y|x) / ∂φ)²]` of every trainable weight; `log p(y|x)` is the sum over the answer's tokens."""
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    fisher = {name: torch.zeros_like(parameter) for name, parameter in trained.items()}
    with evaluating(model):
        for _, row in data.portions(1):
            n_tokens = int((row.answers >= 0).sum())
            loss = answer_loss(answer_logits(model, row), row.answers) * n_tokens
            slopes = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
            for name, slope in zip(trained, slopes, strict=True):
                if slope is not None:
                    fisher[name] += slope.square() / len(data)
    return fisher
