"""`LogitLens`: the next-token distribution after every layer, without a vector and with it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jaxtyping import Float, Int
from torch import Tensor

from ivlens.common.arguments import checked
from ivlens.models.fingerprint import ModelIdentity

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


@checked
@dataclass(frozen=True, eq=False)
class LogitLens:
    """The next-token distribution after every layer, read through the model's own final norm and unembedding.

    Attributes:
        runs: `plain`, and `patched` where a vector was added.
        prompts: The prompts.
        tokens: The likeliest tokens of each layer, as texts: for each run, prompt and layer a tuple, likeliest first.
        probs: Their probabilities.
        followed: The texts whose first tokens were followed through the layers.
        followed_probs: Their probabilities.
        followed_ranks: Their ranks among all tokens, 1 for the likeliest.
        entropy: Entropy of each distribution, in nats.
        kl: Divergence `KL(model's output ‖ layer)`, in nats; 0 in the last layer.
        model: Identity of the model.
        settings: What else made these numbers, in plain JSON values.
    """

    runs: tuple[str, ...]
    prompts: tuple[str, ...]
    tokens: tuple[tuple[tuple[tuple[str, ...], ...], ...], ...]
    probs: Float[Tensor, "runs n_prompts n_layers k"]
    followed: tuple[str, ...]
    followed_probs: Float[Tensor, "runs n_prompts n_layers n_followed"]
    followed_ranks: Int[Tensor, "runs n_prompts n_layers n_followed"]
    entropy: Float[Tensor, "runs n_prompts n_layers"]
    kl: Float[Tensor, "runs n_prompts n_layers"]
    model: ModelIdentity
    settings: Mapping[str, Any]

    def frame(self) -> "pd.DataFrame":
        """One row for each run, prompt, layer and likely token.

        Returns:
            Columns `run`, `prompt` (its number), `layer`, `rank`, `token`, `prob`, and the layer's `entropy` and `kl`
            (nats).
        """
        import pandas as pd

        rows = [
            {"run": run, "prompt": prompt, "layer": layer, "rank": rank + 1, "token": token}
            | {"prob": float(self.probs[i, prompt, layer, rank])}
            | {name: float(getattr(self, name)[i, prompt, layer]) for name in ("entropy", "kl")}
            for i, run in enumerate(self.runs)
            for prompt, layers in enumerate(self.tokens[i])
            for layer, tokens in enumerate(layers)
            for rank, token in enumerate(tokens)
        ]
        return pd.DataFrame(rows)

    def followed_frame(self) -> "pd.DataFrame":
        """One row for each run, prompt, layer and followed text.

        Returns:
            Columns `run`, `prompt`, `layer`, `text`, `prob`, `rank`; empty where nothing was followed.
        """
        import pandas as pd

        rows = [
            {"run": run, "prompt": prompt, "layer": layer, "text": text}
            | {"prob": float(self.followed_probs[i, prompt, layer, at])}
            | {"rank": int(self.followed_ranks[i, prompt, layer, at])}
            for i, run in enumerate(self.runs)
            for prompt in range(len(self.prompts))
            for layer in range(self.probs.shape[2])
            for at, text in enumerate(self.followed)
        ]
        return pd.DataFrame(rows, columns=["run", "prompt", "layer", "text", "prob", "rank"])

    def table(self, prompt: int = 0) -> "pd.DataFrame":
        """One row for each layer of one prompt: the likeliest token of each run with its probability, last layer first.

        Raises:
            ValueError: there is no such prompt.
        """
        import pandas as pd

        if not 0 <= prompt < len(self.prompts):
            raise ValueError(f"prompt is {prompt}, expected 0 to {len(self.prompts) - 1}.")
        rows = []
        for layer in reversed(range(self.probs.shape[2])):
            row: dict[str, Any] = {"layer": layer}
            for i, run in enumerate(self.runs):
                row |= {run: self.tokens[i][prompt][layer][0], f"{run}_prob": float(self.probs[i, prompt, layer, 0])}
            rows.append(row)
        return pd.DataFrame(rows)

    def plot(self, prompt: int = 0) -> "go.Figure":
        """A figure of one prompt: the probability of each followed text by layer, plain and with the vector.

        Raises:
            ValueError: no text was followed, or there is no such prompt.
        """
        from ivlens.show.figures.lens import lens_plot  # late: `show` is a room below, and brings plotly

        return lens_plot(self, prompt)

    def __str__(self) -> str:
        return self.table().to_string(index=False, float_format="%.3f")

    def __repr__(self) -> str:
        n_layers = self.probs.shape[2]
        return (
            f"LogitLens({' and '.join(self.runs)}, {len(self.prompts)} prompts, {n_layers} layers, {self.model.name!r})"
        )

    def _repr_html_(self) -> str:
        return self.table().to_html(index=False, float_format=lambda value: f"{value:.3f}")
