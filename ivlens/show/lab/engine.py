"""All that the lab computes with one model: what it measures, prompts and completions. All pages of a lab share it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch

from ivlens.forward.borders import begins_with
from ivlens.forward.sharing import stopping
from ivlens.prompts.parts import Piece
from ivlens.prompts.recipe import PromptRecipe
from ivlens.prompts.single import prompt_pieces, prompt_shots, prompt_text
from ivlens.show.lab.measures import Asked, Measures
from ivlens.show.lab.state import RAW, LabState
from ivlens.show.lab.streams import Addition, Completion, stream_completions
from ivlens.show.lab.worker import Unwanted
from ivlens.steering.edits import Positions
from ivlens.steering.summary import Setting
from ivlens.tasks.task import Task
from ivlens.vectors.vector import InstructionVector, check_width


class Engine(Measures):
    """One model with what is measured on it (see `Measures`), its prompts and its completions."""

    @contextmanager
    def stopping(self, unwanted: Asked) -> Iterator[None]:
        """Once `unwanted()` is True, end the body's forward pass between two blocks, by raising `Unwanted`."""

        def check() -> None:
            if unwanted():
                raise Unwanted

        with stopping(self.model, check):
            yield

    def prompt(self, state: LabState, seed: int | None = None) -> str:
        """The text that the model completes; `seed` draws its demonstrations, by default that of the effects.

        Raises:
            ValueError: there is no text, or the task has too few demonstrations.
        """
        _check_text(state)
        return state.text if state.template == RAW else prompt_text(*self._asked(state, seed), **self._demos(state))

    def pieces(self, state: LabState, seed: int | None = None) -> list[Piece]:
        """The same prompt in pieces, each of which knows its part.

        Raises:
            ValueError: as `prompt`; or a chat template hides where the parts stand.
        """
        _check_text(state)
        if state.template == RAW:
            return [Piece(state.text, "query")]
        return prompt_pieces(*self._asked(state, seed), **self._demos(state))

    def shots(self, state: LabState, seed: int | None = None) -> tuple[tuple[str, str], ...]:
        """Input and answer of each demonstration in the shown prompt, which may be written by hand.

        Raises:
            ValueError: the task has too few demonstrations.
        """
        if state.bare or state.template == RAW:
            return ()
        if state.demos is not None:
            return state.demos
        return prompt_shots(*self._asked(state, seed), seed=state.demo_seed)

    def _asked(self, state: LabState, seed: int | None) -> tuple[Any, Task, str, PromptRecipe]:
        task, seed = self.tasks[state.task], self.recipe(state).seed if seed is None else seed
        return self.model.tokenizer, task, state.text, state.shown(task, seed)

    def _demos(self, state: LabState) -> dict[str, Any]:
        return {"shots": None if state.bare else state.demos, "seed": state.demo_seed}

    def stream(
        self,
        state: LabState,
        prompt: str,
        vector: InstructionVector | None,
        setting: Setting | None,
    ) -> Iterator[dict[str, Completion]]:
        """Completions of a prompt without a vector (`plain`), with it (`patched`), and with a random one (`random`).

        `random` is there only if the state asks for it. Without a setting there is `plain` alone: nothing is measured.

        Yields:
            The completions by these names, as far as they have come, after every token.

        Raises:
            ValueError: the prompt is empty or too long; the vector's `d_model` is not that of the model.
        """
        names = ["plain", "patched"] if setting else ["plain"]
        # without a vector both rows get zeros, so that all rows run in the same passes
        deltas = [torch.zeros(self.model.cfg.d_model) for _ in names]
        setting = setting or self.usual()
        if vector is not None:
            check_width(vector, self.model)
            deltas[1] = setting.alpha * vector.theta
            if state.random:
                names.append("random")
                deltas.append(setting.alpha * vector.random_like(state.seed).theta)
        what = Addition(torch.stack(deltas), setting.layer, setting.site, cast(Positions, state.positions))
        for rows in stream_completions(self.model, prompt, what, max_new_tokens=state.max_new_tokens):
            yield dict(zip(names, rows, strict=True))

    def answers(self, state: LabState) -> tuple[str, ...]:
        """The right answers for the state's input; empty if the task does not list this input."""
        found = self.tasks[state.task].find(state.text) or self.tasks[state.task].find(state.text.strip())
        return found.answers if found is not None else ()

    def facts(self) -> dict[str, Any]:
        """The model's name, weights and shape, as values that JSON can hold."""
        about = self.identity
        return {
            "name": about.name.rstrip("/").rpartition("/")[2] or about.name,
            "weights": about.weights_hash[:12],
            "n_layers": about.n_layers,
            "n_heads": about.n_heads,
        }


def _check_text(state: LabState) -> None:
    if not state.text.strip():
        raise ValueError("the input is empty, expected some text to complete; write or choose one.")


def begins_right(text: str, answers: Sequence[str]) -> bool | None:
    """Whether a completion begins with an answer and does not go on inside its last word; None: no known answers."""
    return any(begins_with(text, answer) for answer in answers) if answers else None
