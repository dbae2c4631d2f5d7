"""What a lab has measured, kept in the user's cache, so that the next start, or another page, need not measure again.

The key of a result is all that it depends on. Where the cache is damaged or cannot be written to, results are measured
again, and nothing else happens.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from ivlens.common.cache import cache_folder
from ivlens.common.files import read_small
from ivlens.common.store.entries import TABLE
from ivlens.common.store.store import Store
from ivlens.common.version import __version__
from ivlens.effects.results import HeadEffects
from ivlens.models.boot import TransformerBridge
from ivlens.models.fingerprint import model_identity
from ivlens.prompts.recipe import PromptRecipe
from ivlens.tasks.bank import load_bank
from ivlens.tasks.task import Task, hash_of_tasks

logger = logging.getLogger(__name__)

FOLDER = "lab-results"
_EFFECTS, _FACTS = "effects.safetensors", "facts.json"


def kept_results() -> "Kept | None":
    """What is kept in the user's cache; None, and a line in the log, where it cannot be opened."""
    try:
        return Kept(Store(cache_folder() / FOLDER))
    except (OSError, ValueError) as error:
        logger.warning("what the lab measures cannot be kept: %s", error)
        return None


@dataclass(frozen=True)
class Kept:
    """Effects and small results in a store, found by `key`."""

    store: Store

    @staticmethod
    def key(kind: str, model: TransformerBridge, task: Task, recipe: PromptRecipe, **more: Any) -> dict[str, Any]:
        """The description of a result: its kind, and everything that it depends on."""
        return {
            "kind": f"lab {kind}",
            "ivlens": __version__,
            "model": model_identity(model).key,
            "task": task.name,  # draws depend on the name too
            "content": task.full_hash(),
            "others": _bank_hash(),  # counterfactual prompts ask other built-in tasks
            "recipe": recipe.to_dict(),
            **more,
        }

    def effects(self, key: Mapping[str, Any], model: TransformerBridge) -> HeadEffects | None:
        """The effects of this key, tied to the model; None where there are none that can be read."""
        return self._read(key, lambda entry: HeadEffects.load(entry.path(_EFFECTS), model))

    def keep_effects(self, key: Mapping[str, Any], effects: HeadEffects) -> None:
        """Keep effects under their key."""

        def fill(folder: Any) -> None:
            effects.to_frame().to_parquet(folder / TABLE, index=False)
            effects.save(folder / _EFFECTS)

        self._put(key, fill)

    def facts(self, key: Mapping[str, Any]) -> Any:
        """The plain values of this key; None where there are none that can be read."""
        return self._read(key, lambda entry: json.loads(read_small(entry.path(_FACTS), 10**6)))

    def keep_facts(self, key: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        """Keep values that JSON can hold under their key."""
        import pandas as pd

        def fill(folder: Any) -> None:
            pd.DataFrame([{"facts": json.dumps(facts)}]).to_parquet(folder / TABLE, index=False)
            (folder / _FACTS).write_text(json.dumps(facts), encoding="utf-8")

        self._put(key, fill)

    def _read(self, key: Mapping[str, Any], read: Any) -> Any:
        try:
            return self.store.read(key, read)
        # whatever a damaged file can raise: a cache must not stop a measurement
        except (OSError, TypeError, KeyError, RecursionError) as error:
            logger.warning("%s of %s cannot be read (%s): measured again.", key["kind"], key["task"], error)
            return None

    def _put(self, key: Mapping[str, Any], fill: Any) -> None:
        try:
            self.store.put(key, fill, {"task": str(key["task"]), "kind": str(key["kind"])})
        except (OSError, ValueError) as error:
            logger.warning("%s of %s cannot be kept: %s", key["kind"], key["task"], error)


@cache
def _bank_hash() -> str:
    return hash_of_tasks(load_bank().values())


def digest(content: bytes) -> str:
    """A short name for some bytes, such as those of a vector."""
    return hashlib.sha256(content).hexdigest()
