"""The steered model of lm-evaluation-harness. Imported only where the harness is installed.

The harness pads rows on the right and passes no mask, so a hook could not tell where a context ends. So
log-likelihoods are computed here, on prompts and continuations whose border is known; generations go through `steer`.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib import import_module
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from ivlens.common.progress import bar
from ivlens.forward.hooks import check_unsteered, model_lock
from ivlens.forward.inputs import Inputs, check_prompts, forced
from ivlens.forward.writes import added_to_stream
from ivlens.models.boot import TransformerBridge
from ivlens.out.leaving import Leaving
from ivlens.prompts.tokens import padded
from ivlens.steering.edits import addition
from ivlens.steering.steer import steer

HFLM: Any = import_module("lm_eval.models.huggingface").HFLM

_Request = tuple[tuple[str, str] | None, list[int], list[int]]  # its texts, and the tokens of context and continuation
_Row = tuple[tuple[int, ...], tuple[int, ...]]  # tokens of a context, and of a continuation without its last one


class SteeredLM(HFLM):
    """A model of the harness in whose passes a vector is added; as `HFLM` in all else.

    Args:
        model: The bridge.
        leaving: The vector and its place; None: the plain model.
        batch_size: Rows in one pass.
    """

    def __init__(self, model: TransformerBridge, leaving: Leaving | None, batch_size: int) -> None:
        advice = logging.getLogger("lm_eval.models.huggingface")
        level = advice.level
        advice.setLevel(logging.ERROR)  # it warns of every model that is given as an object
        try:
            super().__init__(
                pretrained=model.original_model,
                backend="causal",
                tokenizer=model.tokenizer,
                max_length=model.cfg.n_ctx,
                batch_size=batch_size,
            )
        finally:
            advice.setLevel(level)
        self._bridge, self._leaving = model, leaving

    def _loglikelihood_tokens(
        self, requests: Sequence[_Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """The log-probability of each continuation in nats, and whether greedy decoding writes it.

        Continuations that differ in their last token alone share a row. A text that is too long loses tokens at its
        left end, as everywhere in the harness.
        """
        rows: dict[_Row, list[int]] = defaultdict(list)
        cut = [self._cut(context, continuation) for _, context, continuation in requests]
        for number, (context, continuation) in enumerate(cut):
            rows[tuple(context), tuple(continuation[:-1])].append(number)
        found: dict[int, tuple[float, bool]] = {}
        with bar("log-likelihoods", len(requests), "texts") as report:
            for part in self._together(rows, override_bs or int(self.batch_size)):
                for row, logprobs in zip(part, self._logprobs(part), strict=True):
                    for number in rows[row]:
                        found[number] = _score(logprobs, cut[number][1])
                report(len(found), len(requests))
        for number, (texts, _, _) in enumerate(requests):
            if texts is not None:  # windows of a rolling log-likelihood have no key of their own
                self.cache_hook.add_partial("loglikelihood", texts, found[number])
        return [found[number] for number in range(len(requests))]

    def _together(self, rows: Iterable[_Row], size: int) -> Iterator[list[_Row]]:
        """Rows that share a pass: at most `size`, and no wider together than the model's context; long ones first."""
        part: list[_Row] = []
        for row in sorted(rows, key=lambda row: (-len(row[0]) - len(row[1]), row)):
            width = sum(max(map(len, side)) for side in zip(*part, row, strict=True))
            if part and (len(part) == size or width > self.max_length):
                yield part
                part = []
            part.append(row)
        if part:
            yield part

    def _cut(self, context: list[int], continuation: list[int]) -> tuple[list[int], list[int]]:
        """A request whose tokens fit the model; the last token is predicted, and takes no position of its own."""
        n_too_many = max(0, len(context) + len(continuation) - 1 - self.max_length)
        return context[n_too_many:], continuation

    def _logprobs(self, rows: Sequence[_Row]) -> list[Tensor]:
        """For each row the log-probabilities `[tokens, d_vocab]` of the tokens that its continuation may have."""
        lengths = [len(given) + 1 for _, given in rows]
        contexts = [list(context) for context, _ in rows]
        tokens, mask = padded(contexts, 0, left=True), padded([[1] * len(one) for one in contexts], 0, left=True)
        # the predicted token is not given, so any number stands for it
        answers = padded([[*given, 0] for _, given in rows], -100, left=False)
        tokens, mask = check_prompts(self._bridge, tokens, mask)
        inputs = forced(tokens, mask, answers.to(tokens.device))
        with model_lock(self._bridge):
            check_unsteered(self._bridge)
            with self._edited(inputs):
                logits = inputs.logits(self._bridge)
        return [own[:length].float().log_softmax(-1).cpu() for own, length in zip(logits, lengths, strict=True)]

    def _edited(self, inputs: Inputs) -> AbstractContextManager[None]:
        """A context in which one pass has the vector in it."""
        if self._leaving is None or not self._leaving.at.alpha:
            return nullcontext()
        where = torch.zeros_like(inputs.tokens, dtype=torch.bool)
        begin = 0 if self._leaving.positions == "all" else inputs.last
        where[:, begin : inputs.last + 1 if self._leaving.positions == "prompt" else None] = True
        (layer, _, site), edit = self._leaving.at, addition(self._leaving.delta, _always(where))
        return added_to_stream(self._bridge, layer, site, edit)

    def _model_call(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(
            "a pass without a border between context and continuation cannot be steered; use the tasks of the harness, "
            "which ask for log-likelihoods and generations."
        )

    def _model_generate(self, *args: Any, **kwargs: Any) -> Any:
        with self._steered(), torch.no_grad():
            return super()._model_generate(*args, **kwargs)

    @contextmanager
    def _steered(self) -> Iterator[None]:
        if self._leaving is None:
            check_unsteered(self._bridge)
            yield
            return
        iv, at, positions = self._leaving.iv, self._leaving.at, self._leaving.positions
        with steer(self._bridge, iv, at=at, positions=positions):
            yield


def _always(where: Bool[Tensor, "batch columns"]) -> Callable[[], Tensor]:
    return lambda: where


def _score(logprobs: Tensor, continuation: Sequence[int]) -> tuple[float, bool]:
    wanted = torch.tensor(list(continuation))
    logprob = logprobs.gather(1, wanted[:, None]).double().sum()
    return float(logprob), bool((logprobs.argmax(-1) == wanted).all())
