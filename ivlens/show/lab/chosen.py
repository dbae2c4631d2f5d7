"""`Chosen`: the vector that a session shows, made from heads or loaded from a file, and what follows from it."""

from dataclasses import dataclass, replace

from ivlens.show.lab.code import Listing, python_code
from ivlens.show.lab.engine import Engine
from ivlens.show.lab.state import Head, LabState
from ivlens.vectors.vector import InstructionVector


@dataclass(frozen=True)
class Chosen:
    """The engines of a session, and the vector that was loaded, if any.

    Attributes:
        engines: One for each model.
        loaded: The vector that is used while the state's `source` is `file`.
        file: The name of its file.
    """

    engines: tuple[Engine, ...]
    loaded: InstructionVector | None = None
    file: str = ""

    def is_ready(self, state: LabState) -> bool:
        """Whether the heads of the vector are known without a measurement."""
        return state.source == "file" or state.heads is not None or self.engines[0].knows(state)

    def heads(self, state: LabState) -> tuple[Head, ...]:
        """The heads of the shown vector: those of the loaded one, or of the state."""
        if state.source == "file" and self.loaded is not None:
            return tuple(self.loaded.heads)
        return self.engines[0].heads(state)

    def vectors(self, state: LabState) -> list[InstructionVector | None]:
        """The vector that is added to each model; None where no head is chosen."""
        if state.source == "file":
            return [self.loaded] * len(self.engines)
        if len(self.engines) == 1 or state.donor == "first":
            return [self.engines[0].vector(state)] * len(self.engines)
        # the same heads in both models, each with its own mean outputs
        named = replace(state, heads=self.engines[0].heads(state))
        return [engine.vector(named) for engine in self.engines]

    def resolved(self, state: LabState) -> LabState:
        """The state with its heads, layer, strength and site filled in, searched for where it has none."""
        heads = self.heads(state)
        if None in (state.layer, state.alpha, state.site):
            found = self.engines[0].setting(state, self.vectors(state)[0])._asdict()
            missing = {name: value for name, value in found.items() if getattr(state, name) is None}
            state = replace(state, **missing)
        return replace(state, heads=heads)

    def seed(self, state: LabState) -> int:
        """The seed of the splits and demonstrations with which the vector was made."""
        loaded = self.loaded.recipe if self.loaded is not None and state.source == "file" else None
        return (loaded or self.engines[0].recipe(state)).seed

    def code(self, state: LabState) -> str:
        """A script that prints the completions of a state that is `resolved`."""
        from_file = state.source == "file"
        listing = Listing(
            models=[each.identity.name for each in self.engines],
            task=self.engines[0].tasks[state.task],
            prompt=self.engines[0].prompt(state, self.seed(state)),
            effects=[] if from_file else [engine.effects(state).settings for engine in self.engines],
            file=self.file if from_file else None,
        )
        return python_code(state, listing)
