"""Runs many interventions on the same prompts: pairs of prompt and vector are rows of one pass, on a shared prefix."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ivlens.common.progress import bar, ticking
from ivlens.forward.borders import Borders
from ivlens.forward.hooks import captured_heads, captured_residual, check_unsteered, model_lock
from ivlens.forward.inputs import check_length, check_prompts, row_slices
from ivlens.forward.prefix import prompts_that_fit
from ivlens.forward.sharing import give_way
from ivlens.models.boot import TransformerBridge
from ivlens.prompts.batch import PromptBatch
from ivlens.steering.additions import Additions
from ivlens.steering.edits import Positions, RowEdit, Where
from ivlens.steering.portions import Part, Portion
from ivlens.steering.slopes import slopes
from ivlens.steering.summary import Scores, Setting


class Trials:
    """Prompts to be run under many interventions; what no intervention changes is computed once.

    Nothing is generated: accepted answers are given to the model, and greedy decoding writes an answer if each of its
    tokens is the likeliest one. The token behind the answer decides whether its word goes on (see `Correct`). Where
    prompt and answer fill the context, the answer counts as ended. Without a tokenizer nothing is asked behind answers:
    `accuracy` is that of the answer's tokens alone, and `exact` is 0.

    Prompts whose caches do not fit in memory together run in portions; each call then computes their caches anew.

    Args:
        batch: Left-padded prompts with their answers.
        positions: `prompt` (the last prompt token), `every` (the answer's tokens as well) or `all` (the whole prompt
            too, so that no pass can share its cache), as in `steer`.
        rows_per_pass: Upper bound on rows in one forward pass; memory may lower it.

    Raises:
        ValueError: a prompt that does not fit the model, with its longest answer.
        RuntimeError: inside a `steer` context, whose vector would be added to the wrong tokens here.
    """

    def __init__(
        self,
        model: TransformerBridge,
        batch: PromptBatch,
        *,
        positions: Positions = "prompt",
        rows_per_pass: int = 512,
    ) -> None:
        self.model, self.batch = model, batch
        self.positions: Positions = positions
        self._rows_per_pass = rows_per_pass
        self._borders = Borders(model.tokenizer)
        tokens, mask = check_prompts(model, batch.tokens, batch.attention_mask)
        longest = max(len(answer) for answers in batch.alternatives for answer in answers)
        check_length(model, mask, longest)
        check_unsteered(model)
        # for `prompts_that_fit`, the positions whose streams are kept: whole answers with the token behind them, padded
        # to the longest of all, then answers without their last tokens, and the last prompt token
        n_kept = max(len(own) * (longest + 1) + sum(map(len, own)) + 1 for own in batch.alternatives)
        size = min(rows_per_pass, prompts_that_fit(model, tokens.shape[1], n_kept))
        self._slices = list(row_slices(len(batch), size))
        self._held: tuple[int, Portion] | None = None

    def unsteered(self) -> Scores:
        """Scores of the prompts without an intervention, in one row."""
        return self.edited(lambda where: nullcontext())

    def streams(self) -> Float[Tensor, "n_layers batch d_model"]:
        """The residual stream after each block at the last prompt token."""
        with model_lock(self.model), torch.no_grad():
            check_unsteered(self.model)
            numbers = ticking(range(len(self._slices)), "hidden states", "portions")
            return torch.cat([self._streams(number) for number in numbers], 1)

    def _streams(self, number: int) -> Float[Tensor, "n_layers rows d_model"]:
        """The streams of one portion, by passes over its last tokens alone where the model allows it."""
        if (shared := self._portion(number).plain_streams()) is not None:
            return shared
        layers, parts = range(self.model.cfg.n_layers), []
        rows = self.batch.rows(self._slices[number])
        for part in row_slices(len(rows), 32):
            tokens, mask = check_prompts(self.model, rows.tokens[part], rows.attention_mask[part])
            with captured_residual(self.model, layers, select=lambda one: one[:, -1]) as kept:
                self.model(tokens, attention_mask=mask, use_cache=False)
            parts.append(torch.stack([kept[layer] for layer in layers]))
        return torch.cat(parts, 1)

    def head_outputs(
        self, prompts: Int[Tensor, " rows"], given: Int[Tensor, "rows given"]
    ) -> Float[Tensor, "rows given+1 n_layers n_heads d_head"]:
        """The output of every head at the last prompt token of each row, and at each token that is given after it."""
        parts, order = [], []
        with model_lock(self.model), torch.no_grad():
            check_unsteered(self.model)
            for number, own in enumerate(self._slices):
                rows = ((prompts >= own.start) & (prompts < own.stop)).nonzero()[:, 0]
                for some in rows.split(self._rows_per_pass) if len(rows) else ():
                    prefix = self._portion(number).prefix_for(given.shape[1])
                    with captured_heads(self.model, select=lambda z: z[:, -given.shape[1] - 1 :].cpu()) as kept:
                        prefix.logits(prompts[some] - own.start, given[some])
                    nothing = torch.zeros_like(next(iter(kept.values())))  # in the layers of hybrids without heads
                    parts.append(torch.stack([kept.get(at, nothing) for at in range(self.model.cfg.n_layers)], 2))
                    order.append(some)
        return torch.cat(parts)[torch.cat(order).argsort()]

    @property
    def n_portions(self) -> int:
        """The number of portions; where there are several, only the last one that was used is kept in memory."""
        return len(self._slices)

    def prompts_of(self, portion: int) -> Int[Tensor, " some"]:
        """The numbers of the prompts in a portion."""
        return torch.arange(len(self.batch))[self._slices[portion]]

    def slopes(
        self, settings: Sequence[Setting], thetas: Float[Tensor, "n d_model"], prompts: Int[Tensor, " some"]
    ) -> tuple[Float[Tensor, "n some"], Float[Tensor, "n d_model"]]:
        """The log-probability (nats) of each prompt's answer under each vector, and the gradient of each vector's sum.

        Args:
            settings: The setting of each vector, in ascending order of layers, all at one site.
            prompts: The numbers of the prompts to run, all of one portion, each with one accepted answer.
        """
        number = next(at for at, rows in enumerate(self._slices) if rows.start <= int(prompts[0]) < rows.stop)
        here = prompts - self._slices[number].start
        assert int(prompts.max()) < self._slices[number].stop, "prompts of two portions"
        with model_lock(self.model):
            check_unsteered(self.model)
            with torch.no_grad():
                portion = self._portion(number)
            values, found = slopes(portion, Additions.of(settings, thetas), here)
        alphas = torch.tensor([setting.alpha for setting in settings])
        return values[:, here], alphas[:, None] * found

    def edited(
        self, context: Callable[[Where], AbstractContextManager[None]] | RowEdit, *, part: Part = "all"
    ) -> Scores:
        """Scores with `context(where)` open around every pass, in one row; `part` as in `at`."""
        return self._all(lambda number, rows: self._portion(number).scores(1, context, part), "asking the model")

    def added(self, deltas: Float[Tensor, "n d_model"], layer: int, site: str, *, brief: bool = False) -> Scores:
        """Scores with each of `deltas` added at one layer and site; with `brief`, `logprob` is left out (NaN)."""
        same = Additions.at_one_place(deltas, layer, site)
        part: Part = "no logprob" if brief else "all"
        return self._all(lambda number, rows: self._portion(number).scores(len(deltas), same, part), "trying vectors")

    def at(
        self,
        settings: Sequence[Setting],
        thetas: Float[Tensor, "n d_model"],
        *,
        prompts: slice = slice(None),
        part: Part = "all",
        begun: Bool[Tensor, "n asked"] | None = None,
    ) -> Scores:
        """Scores of each vector at its own setting; all settings share their passes where the model allows it.

        Args:
            prompts: The prompts to run; the scores are of these alone.
            part: With `no logprob`, `logprob` is left out: it is NaN. With `first tokens`, an answer counts as right
                where its first token is the likeliest one: `accuracy` is never too low, and `exact` is 0. `rest` finds
                `accuracy` and `exact` alone, of the pairs in `begun`.
            begun: For each vector and each of these prompts, whether the first token of an answer is right; None: all
                pairs are looked at. The others get 0.
        """
        asked = torch.zeros(len(settings), len(self.batch), dtype=torch.bool)
        asked[:, prompts] = True if begun is None else begun
        wanted = torch.zeros(len(self.batch), dtype=torch.bool)
        wanted[prompts] = True
        total, done = len(settings) * sum(bool(wanted[rows].any()) for rows in self._slices), 0
        with bar("trying settings", total, "settings") as report:

            def more_done(n: int) -> None:
                nonlocal done
                done += n
                report(done, total)
                give_way(self.model)

            def run(number: int, rows: slice) -> Scores | None:
                if not bool(wanted[rows].any()):
                    return None  # without it a portion's prefix is not even made
                if not bool(asked[:, rows].any()):
                    more_done(len(settings))
                    return Scores.unknown(len(settings), int(wanted[rows].sum()))
                found = self._portion(number).at(settings, thetas, asked[:, rows], part, more_done)
                return found.of_prompts(wanted[rows])

            return self._all(run)

    def _all(self, run: Callable[[int, slice], Scores | None], what: str = "") -> Scores:
        numbers = range(len(self._slices))
        with model_lock(self.model), torch.no_grad():
            check_unsteered(self.model)
            each = ticking(numbers, what, "portions") if what else numbers
            found = [run(number, self._slices[number]) for number in each]
            return Scores.abreast([scores for scores in found if scores is not None])

    def _portion(self, number: int) -> "Portion":
        if self._held is None or self._held[0] != number:
            self._held = None  # first let go of the old portion: two at once would need twice the memory
            rows = self.batch.rows(self._slices[number])
            first = self._slices[number].start
            portion = Portion(self.model, rows, self.positions, self._rows_per_pass, self._borders, first)
            self._held = number, portion
        return self._held[1]
