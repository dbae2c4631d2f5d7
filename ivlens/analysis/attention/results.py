"""`HeadAttention`: where heads look, with intervals, tables, single tokens and a figure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from ivlens.analysis.attention.chosen import label
from ivlens.analysis.attention.files import read_attention, write_attention
from ivlens.analysis.attention.looked import SEGMENTS, Looked, LookedAt
from ivlens.analysis.attention.scores import SCORES, HeadScores, check_seen
from ivlens.common.arguments import checked
from ivlens.common.checks import check_count
from ivlens.common.intervals import LEVEL, named_of, t_reach
from ivlens.common.names import set_shown
from ivlens.forward.hooks import captured_patterns, check_unsteered, model_lock
from ivlens.forward.inputs import Inputs, check_prompts
from ivlens.models.boot import ModelRef, TransformerBridge, WeakModel
from ivlens.models.fingerprint import ModelIdentity, model_identity
from ivlens.prompts.recipe import PromptRecipe
from ivlens.vectors.heads import Heads

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


@checked
@dataclass(frozen=True, eq=False)
class HeadAttention:
    """Where heads look from the last prompt token.

    Attributes:
        heads: The heads, as `(layer, head)`.
        looked: By the kind of prompts (`clean`, `shuffle`, ...), the shares of every prompt.
        scores: Induction and previous-token scores of all heads; None where they were not asked for.
        task: Name of the task.
        model: Identity of the model.
        settings: What else made these numbers, in plain JSON values.
        model_ref: Weak reference to the model, for `pattern`.
    """

    heads: Heads
    looked: Mapping[str, Looked]
    scores: HeadScores | None
    task: str
    model: ModelIdentity
    settings: Mapping[str, Any]
    model_ref: WeakModel = field(default=None, repr=False)

    def __post_init__(self) -> None:
        set_shown(self, "task")
        ModelRef.set_in(self)

    @property
    def recipe(self) -> PromptRecipe:
        """How the clean prompts were made."""
        return PromptRecipe.from_dict(self.settings["recipe"])

    @property
    def prompts(self) -> tuple[str, ...]:
        """The kinds of prompts, `clean` first."""
        return tuple(self.looked)

    def shares(self, prompts: str = "clean") -> Float[Tensor, "n_prompts heads segments"]:
        """The share of each of `SEGMENTS`, for every prompt of a kind and every head of `heads`.

        Raises:
            ValueError: there are no such prompts.
        """
        return self._of(prompts).shares

    def share(self, head: tuple[int, int] | str, segment: str, prompts: str = "clean") -> tuple[float, float, float]:
        """Mean share of a segment, and its 95 % t interval over prompts (NaN for a single prompt).

        Raises:
            ValueError: no such head, segment or prompts here.
        """
        if segment not in SEGMENTS:
            raise ValueError(f"segment is {segment!r:.60}, expected one of {', '.join(SEGMENTS)}.")
        mean, low, high = _intervals(self.shares(prompts))
        at = self._column(head), SEGMENTS.index(segment)
        return float(mean[at]), float(low[at]), float(high[at])

    def frame(self) -> "pd.DataFrame":
        """One row for each kind of prompts, head and segment.

        Returns:
            Columns `task`, `prompts`, `label`, `layer`, `head`, `segment`, `share` (0 to 1) with `low` and `high` (95 %
            over prompts, cut at 0 and 1), `interval` (its kind), `n` (prompts), and the head's `induction` and
            `previous` score.
        """
        import pandas as pd

        rows = []
        for prompts, looked in self.looked.items():
            n = len(looked.shares)
            ends = [each.tolist() for each in _intervals(looked.shares)]
            for number, (layer, head) in enumerate(self.heads):
                about = {"label": label((layer, head)), "layer": layer, "head": head}
                for place, segment in enumerate(SEGMENTS):
                    share, low, high = (each[number][place] for each in ends)
                    found = {"segment": segment, "share": share, "low": low, "high": high}
                    kind = {"interval": named_of(n, "t", LEVEL), "n": n}
                    of = {"task": self.task, "prompts": prompts}
                    rows.append(of | about | found | kind | self._scores_of(number))
        frame = pd.DataFrame(rows)
        frame.attrs.update(self.settings)
        return frame

    def table(self) -> "pd.DataFrame":
        """One row for each head and kind of prompts: the mean share of each segment, and both scores."""
        import pandas as pd

        rows = []
        for number, head in enumerate(self.heads):
            for prompts, looked in self.looked.items():
                means = dict(zip(SEGMENTS, looked.shares[:, number].mean(0).tolist(), strict=True))
                if not any(bool(each.shares[..., -1].any()) for each in self.looked.values()):
                    del means["sink"]  # no family but one or two has it
                rows.append({"head": label(head), "prompts": prompts} | means | self._scores_of(number))
        return pd.DataFrame(rows)

    def tokens(self, head: tuple[int, int] | str, prompt: int = 0, prompts: str = "clean") -> "pd.DataFrame":
        """The tokens of one prompt, with the weight that a head gives each of them from the last one.

        Args:
            head: `(layer, head)`, or a label such as `L20H5`.
            prompt: Which of the prompts whose tokens were kept.
            prompts: Which kind of prompts.

        Returns:
            A row for each token: `token` (its text), `segment`, `weight`.

        Raises:
            ValueError: no such head or prompts, or a prompt whose tokens were not kept.
        """
        import pandas as pd

        shown = self._shown(prompt, prompts)
        weights = shown.weights[self._column(head)].tolist()
        return pd.DataFrame({"token": shown.texts, "segment": shown.segments, "weight": weights})

    def pattern(self, head: tuple[int, int] | str, prompt: int = 0, prompts: str = "clean") -> Float[Tensor, "pos pos"]:
        """All weights of a head in one prompt, a row for each token: the last row is that of `tokens`.

        The model runs once more, so it must still be in memory, and be the same.

        Raises:
            ValueError: as `tokens`; or the model is gone, or changed.
            RuntimeError: inside a `steer` context.
        """
        shown, column = self._shown(prompt, prompts), self._column(head)
        model = self.model_ref() if self.model_ref is not None else None
        if model is None:
            raise ValueError("pattern needs the model, which is no longer in memory; measure the attention again.")
        layer, number = self.heads[column]
        whole = _whole_pattern(model, shown.ids, layer, number)
        if (whole[-1] - shown.weights[column]).abs().max() > 2e-2:
            raise ValueError(f"the model changed since the attention of {self.task!r} was measured; measure it again.")
        return whole

    def plot(
        self, head: Sequence[tuple[int, int] | str] | tuple[int, int] | str | None = None, prompt: int = 0,
        prompts: str = "clean",
    ) -> "go.Figure":  # fmt: skip
        """A figure of one prompt: its tokens shaded by a head's attention, with the parts of the prompt told apart.

        Args:
            head: `(layer, head)`, a label such as `L20H5`, or several of these. None: the three heads that look most at
                what tells the task.
            prompt: Which of the prompts whose tokens were kept.
            prompts: Which kind of prompts.

        Raises:
            ValueError: no such head or prompts, or a prompt whose tokens were not kept.
        """
        from ivlens.show.figures.tokens import attention_tokens  # late: `show` is a room below, and brings plotly

        return attention_tokens(self, head, prompt=prompt, prompts=prompts)

    def plot_shares(self, top: int = 20) -> "go.Figure":
        """A figure of the mean shares over all prompts: a bar for each head and kind of prompts, divided by segment.

        Args:
            top: Of more heads than this those are shown that look most at what tells the task.
        """
        from ivlens.show.figures.attention import attention_bars

        check_count("top", top, 1)
        return attention_bars(self.frame(), top=top)

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file with metadata in JSON; a file of that name is replaced as a whole."""
        about = {name: getattr(self, name) for name in ("task", "model", "heads")} | {"settings": dict(self.settings)}
        return write_attention(path, self.looked, self.scores, about)

    @classmethod
    def load(cls, path: str | Path, model: TransformerBridge | None = None) -> "HeadAttention":
        """Read what `save` wrote.

        Args:
            model: The model, for `pattern`; it must be the one that was watched. None: all but `pattern` works.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not such a file, a damaged one, or one of another model.
        """
        loaded = cls(**read_attention(path))
        if model is None:
            return loaded
        other = model_identity(model).differs(loaded.model)
        if other:
            raise ValueError(f"{path} holds attention of {loaded.model}, expected this model, which has {other}.")
        return replace(loaded, model_ref=ModelRef(model))

    def _repr_html_(self) -> str:
        from ivlens.show.tables import attention_html

        return attention_html(self)

    def __str__(self) -> str:
        return self.table().round(3).to_string(index=False)

    def __repr__(self) -> str:
        n = ", ".join(f"{len(one.shares)} {kind}" for kind, one in self.looked.items())
        return f"HeadAttention({self.task!r}, {self.model.name!r}, {len(self.heads)} heads, prompts: {n})"

    def _scores_of(self, number: int) -> dict[str, float]:
        """Both scores of one of the heads; NaN where they were not measured."""
        found = (float("nan"),) * 2 if self.scores is None else self.scores.of(self.heads[number])
        return dict(zip(SCORES, found, strict=True))

    def _of(self, prompts: str) -> Looked:
        if prompts not in self.looked:
            raise ValueError(f"prompts is {prompts!r:.60}, expected one of {', '.join(self.looked)}.")
        return self.looked[prompts]

    def _column(self, head: tuple[int, int] | str) -> int:
        """The number of a head among `heads`."""
        wanted = head
        if isinstance(head, str):
            wanted = next((pair for pair in self.heads if label(pair).lower() == head.strip().lower()), head)
        if wanted not in self.heads:
            few = ", ".join(map(label, self.heads[:8]))
            raise ValueError(f"head is {head!r:.40}, expected one of the heads that were watched: {few} ...")
        return self.heads.index(wanted)

    def _shown(self, prompt: int, prompts: str) -> LookedAt:
        shown = self._of(prompts).shown
        check_count("prompt", prompt, 0)
        if prompt >= len(shown):
            raise ValueError(
                f"prompt is {prompt}, expected a number below {len(shown)}, as the tokens of so many {prompts} prompts "
                "were kept; AttentionOptions(n_kept=None) keeps all."
            )
        return shown[prompt]


def _intervals(shares: Float[Tensor, "n_prompts heads segments"]) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, low and high end of every share; shares are cut at 0 and 1, where a t interval may reach further."""
    n, values = len(shares), shares.double()
    mean = values.mean(0)
    if n < 2:
        return mean, torch.full_like(mean, torch.nan), torch.full_like(mean, torch.nan)
    reach = values.std(0) * t_reach(n) / sqrt(n)
    return mean, (mean - reach).clamp(min=0), (mean + reach).clamp(max=1)


def _whole_pattern(model: TransformerBridge, ids: tuple[int, ...], layer: int, head: int) -> Float[Tensor, "pos pos"]:
    tokens, mask = check_prompts(model, torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.long))
    with model_lock(model), captured_patterns(model, [layer], select=lambda one: one[0, head].float().cpu()) as kept:
        check_unsteered(model)
        Inputs(tokens, mask, last=len(ids) - 1, n_answer=1).logits(model)
        check_seen(model, kept, [layer])
    return kept[layer]
