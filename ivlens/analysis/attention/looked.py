"""What heads looked at in prompts of one kind: shares of the prompt's parts, and single tokens."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from ivlens.prompts.segments import Segment

SEGMENTS = ("start", "instruction", "inputs", "answers", "query", "template", "sink")


@dataclass(frozen=True, eq=False)
class LookedAt:
    """One prompt, token by token.

    Attributes:
        ids: Its tokens.
        texts: Their texts, with the spaces before them.
        segments: The segment of each token.
        weights: The weight of each token for each head, from the last one; rows sum to 1, less what a sink takes.
    """

    ids: tuple[int, ...]
    texts: tuple[str, ...]
    segments: tuple[Segment, ...]
    weights: Float[Tensor, "heads pos"]


@dataclass(frozen=True, eq=False)
class Looked:
    """Prompts of one kind.

    Attributes:
        shares: The share of attention that each head pays to each of `SEGMENTS`; they sum to 1.
        inputs: The input that each prompt asks about.
        shown: The first prompts, token by token.
    """

    shares: Float[Tensor, "n_prompts heads segments"]
    inputs: tuple[str, ...]
    shown: tuple[LookedAt, ...]
