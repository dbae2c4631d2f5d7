"""The least time that the exact engine's arithmetic can take here: its matmuls alone, at its own shapes.

The work is counted from the shape of the model (a plain pass over the prompts; in block `l` one more pass over
`(l + 1) n_heads + 1` copies of one token each, which attend to the prompt; the unembedding of one row per copy) and
timed as bare matmuls of exactly those shapes, each at the best of several runs.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ivlens.effects.request import EffectRequest


@dataclass(frozen=True)
class Matmul:
    """`[batch, rows, inner] @ [batch, inner, columns]`, `n_times`."""

    batch: int
    rows: int
    inner: int
    columns: int
    n_times: int = 1

    @property
    def flops(self) -> int:
        return 2 * self.batch * self.rows * self.inner * self.columns * self.n_times

    def seconds(self) -> float:
        """Of one of them."""
        left = torch.randn(self.batch, self.rows, self.inner)
        right = torch.randn(self.batch, self.columns, self.inner).mT
        with torch.inference_mode():
            return min(_timed(left, right) for _ in range(2))


def _timed(left: torch.Tensor, right: torch.Tensor) -> float:
    start = time.perf_counter()
    torch.bmm(left, right) if len(left) > 1 else left[0] @ right[0]
    return time.perf_counter() - start


def exact_matmuls(model: Any, request: EffectRequest, n_logit_rows: int) -> Iterator[Matmul]:
    """The matmuls of the exact engine on a model of GPT-2's kind, for answers of one token."""
    cfg, (batch, pos) = model.cfg, request.tokens.shape
    for layer in range(cfg.n_layers):
        for rows in (pos, (layer + 1) * cfg.n_heads + 1):
            yield Matmul(1, batch * rows, cfg.d_model, cfg.n_heads * cfg.d_head, 4)
            yield Matmul(1, batch * rows, cfg.d_model, cfg.d_mlp)
            yield Matmul(1, batch * rows, cfg.d_mlp, cfg.d_model)
            yield Matmul(batch * cfg.n_heads, rows, cfg.d_head, pos)
            yield Matmul(batch * cfg.n_heads, rows, pos, cfg.d_head)
    yield Matmul(1, batch, cfg.d_model, cfg.d_vocab)
    rows = batch * cfg.n_layers * cfg.n_heads
    n_full, left = divmod(rows, n_logit_rows)
    if n_full:
        yield Matmul(1, n_logit_rows, cfg.d_model, cfg.d_vocab, n_full)
    if left:
        yield Matmul(1, left, cfg.d_model, cfg.d_vocab)


class Limit:
    """The best seconds of every matmul over all calls of `measure`, and their sum."""

    def __init__(self, model: Any, request: EffectRequest, n_logit_rows: int) -> None:
        self._work = list(exact_matmuls(model, request, n_logit_rows))
        self._best = dict.fromkeys(self._work, float("inf"))

    def measure(self) -> None:
        for matmul, best in self._best.items():
            self._best[matmul] = min(best, matmul.seconds())

    @property
    def seconds(self) -> float:
        return sum(self._best[matmul] * matmul.n_times for matmul in self._work)

    @property
    def flops(self) -> int:
        return sum(matmul.flops for matmul in self._work)
