"""`Workshop` makes the cells of a sweep in one process, and keeps the last model open for the next cell."""

import gc
import logging
import random
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from ivlens.common.digests import stamp
from ivlens.common.names import one_line
from ivlens.common.store.entries import TABLE, DamagedEntry, Entry
from ivlens.common.store.errors import StoreError
from ivlens.common.store.keys import content_key, versions
from ivlens.common.store.store import SURVEYS, Store
from ivlens.models.adapters import is_adapter, named_base
from ivlens.models.boot import TransformerBridge
from ivlens.models.fingerprint import model_identity
from ivlens.models.known import source_of
from ivlens.models.load import device_of, load_model
from ivlens.runs.sweep.cells import Cell, ModelSpec, Survey, survey_from
from ivlens.runs.sweep.making import MAKERS, Making
from ivlens.runs.sweep.options import Setting
from ivlens.runs.sweep.tasks import open_task

logger = logging.getLogger("ivlens")

Status = str  # "made", "there", "failed", "busy" or "full"; see `Report`


@dataclass(frozen=True)
class Report:
    """The outcome of one attempt to make a cell.

    Attributes:
        status: `made`; `there` (the result is in the store already); `failed`; `busy` (another process is making it);
            `full` (the disk takes no more results).
        seconds: How long the attempt took.
        error: The error in one line, if the status is `failed` or `full`.
    """

    status: Status
    seconds: float = 0.0
    error: str = ""


class Workshop:
    """Makes cells and keeps their results in a store.

    Args:
        store: The store that keeps the results.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        # the model that is open: how it was asked for, the bridge, the key of its identity, and its files at that time
        self._warm: tuple[ModelSpec, Setting, TransformerBridge, str, dict[str, Any]] | None = None

    def survey(self, spec: ModelSpec, setting: Setting, *, load: bool = True) -> Survey:
        """The facts about a model. The store remembers them: a model is loaded once, while its files stay the same.

        Args:
            load: Load the model if the store does not know it. False: read its sizes from its configuration, and leave
                its hashes empty.
        """
        device = device_of(setting.device).type
        what = _files_of(spec, setting, device)
        known = self._surveys.read(what, _survey_of) if _is_fixed(spec) else None
        if known is not None:
            return known
        if not load:
            return _sized(spec, device)
        model = self._model(spec, setting)
        identity, cfg = model_identity(model), model.cfg
        n_params = sum(parameter.numel() for parameter in model.original_model.parameters())
        found = Survey(
            identity.weights_hash,
            identity.revision,
            identity.architecture,
            device,
            n_params,
            cfg.n_layers,
            cfg.n_heads,
            cfg.d_model,
            cfg.d_vocab,
            identity.key,
        )
        if _is_fixed(spec):
            row = pd.DataFrame([asdict(found)])
            self._surveys.put(what, lambda folder: row.to_parquet(folder / TABLE, index=False), {"model": spec.name})
        return found

    @cached_property
    def _surveys(self) -> Store:
        """The store of facts about models; it is apart from the results, so that no table of results shows them."""
        return Store(self._store.folder / SURVEYS)

    def attempt(self, cell: Cell, model: Survey) -> Report:
        """Make a cell, and the cells that it is made from; errors of the cell are in the report and never raised."""
        what = cell.what(model)
        key, started = content_key(what), time.perf_counter()
        try:
            if self._store.find(key) is not None:
                self._store.forgive(key)  # an earlier failure, or a state of a process that was killed after its `put`
                return Report("there")
            with self._store.alone(key):
                if self._store.find(key) is not None:
                    return Report("there")
                self._store.put(what, self._fill(cell, what, model), cell.labels())
            return Report("made", time.perf_counter() - started)
        except BlockingIOError:
            return Report("busy")
        except StoreError as error:
            return Report("full", time.perf_counter() - started, str(error))
        except Exception as error:  # an error of any kind costs this cell alone
            return self._failed(cell, key, error, time.perf_counter() - started)

    def _failed(self, cell: Cell, key: str, error: Exception, seconds: float) -> Report:
        """Write down the error of a cell with its traceback, and report it."""
        line = f"{type(error).__name__}: {one_line(error, 500)}"
        about = {"cell": cell.name, "error": line, "traceback": traceback.format_exc(), "description": cell.to_json()}
        try:
            self._store.fail(key, about)
        except StoreError as full:
            return Report("full", seconds, str(full))
        return Report("failed", seconds, line)

    def _entry(self, cell: Cell, model: Survey) -> Entry:
        """The result that another cell is made from; it is made if it is not there, or waited for."""
        what = cell.what(model)
        return self._store.obtain(what, self._fill(cell, what, model), cell.labels())

    def _fill(self, cell: Cell, what: dict[str, Any], model: Survey) -> Callable[[Path], None]:
        """A function that makes a cell and puts its files into a folder."""

        def fill(folder: Path) -> None:
            bridge = self._model(cell.model, cell.setting, model.identity)
            work = self._store.work(content_key(what))
            making = Making(cell, bridge, open_task, lambda other: self._entry(other, model), work)
            with _same_bits(cell):
                MAKERS[cell.kind].run(making, folder)

        return fill

    def _model(self, spec: ModelSpec, setting: Setting, identity: str | None = None) -> TransformerBridge:
        """The model, loaded, or the one that is open if it is the same and has not changed.

        Args:
            identity: Key of the identity that the model must have; None: any.

        Raises:
            ValueError: the loaded model has another identity.
        """
        files = _files_of(spec, setting, setting.device)
        if self._warm is not None and self._warm[:2] == (spec, setting):
            model, first, before = self._warm[2:]
            is_meant = files == before if identity is None else first == identity
            # hashed again: a cell before this one may have changed its weights in memory
            if is_meant and model_identity(model).key == first:
                return model
        self._warm = None
        gc.collect()  # the old model must be gone before the new one needs its memory
        model = load_model(spec.name, revision=spec.revision, device=setting.device, dtype=setting.dtype)
        found = model_identity(model).key
        if identity is not None and found != identity:
            # the remembered facts are of a model that is no longer there, and would fail every cell from now on
            self._surveys.remove(content_key(_files_of(spec, setting, device_of(setting.device).type)))
            raise ValueError(
                f"model {spec.name!r} is {found:.12}, expected {identity:.12} as when the sweep began (weights, "
                "configuration and tokenizer); leave its files as they are while a sweep runs, and start it again."
            )
        self._warm = spec, setting, model, found, files
        return model


@contextmanager
def _same_bits(cell: Cell) -> Iterator[None]:
    """In the body, threads, random states and algorithms are as the cell says, whatever this process did before."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    states = random.getstate(), np.random.get_state()
    torch.set_num_threads(cell.setting.threads)
    with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else []):
        try:
            random.seed(cell.seed)
            np.random.seed(cell.seed)
            torch.manual_seed(cell.seed)
            if torch.cuda.is_available():
                torch.use_deterministic_algorithms(True, warn_only=True)
            yield
        finally:
            torch.use_deterministic_algorithms(deterministic)
            torch.set_num_threads(threads)
            random.setstate(states[0])
            np.random.set_state(states[1])


def _is_fixed(spec: ModelSpec) -> bool:
    """Whether facts about a model may be kept: it lies in files here, or its revision is a commit, not a branch."""
    return all(isinstance(source, Path) for source in _sources(spec.name)) or len(spec.revision or "") == 40


def _sources(name: str) -> list[Path | str]:
    """Folders or Hub names that a model's weights come from: adapters first, then the model that they belong to."""
    if is_adapter(name):
        return [Path(name), *_sources(named_base(name))]
    return [source_of(name)]


def _files_of(spec: ModelSpec, setting: Setting, device: str) -> dict[str, Any]:
    """The description under which facts about a model are kept: options, and its files with sizes and times.

    The model is not opened for it. A file that was changed has another `stamp`, even if its old time was set again.
    """
    sources = _sources(spec.name)
    places = [source for source in sources if isinstance(source, Path)]
    found = [path for place in places for path in (place, *place.rglob("*")) if path.is_file()]
    files = [[str(path), *stamp(path)] for path in sorted(found)]
    about = {"kind": "survey", "model": asdict(spec), "sources": [*map(str, sources)], "files": files}
    return about | {"dtype": setting.dtype, "device": device, **versions()}


def _survey_of(entry: Entry) -> Survey:
    """The facts about a model in a store's result.

    Raises:
        DamagedEntry: the table holds other things.
    """
    rows = entry.table().to_dict("records")
    try:
        return survey_from({str(name): value for name, value in rows[0].items()})
    except (IndexError, TypeError) as error:
        raise DamagedEntry(f"{entry.folder} holds no survey of a model ({error!s:.80})") from None


def _sized(spec: ModelSpec, device: str) -> Survey:
    """Facts about a model from its configuration alone: its sizes, and empty hashes."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config: Any = AutoConfig.from_pretrained(_sources(spec.name)[-1], revision=spec.revision, trust_remote_code=False)
    with torch.device("meta"):  # parameters with shapes and no memory
        n_params = sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(config).parameters())
    text = config.get_text_config()
    sizes = (text.num_hidden_layers, text.num_attention_heads, text.hidden_size, text.vocab_size)
    return Survey("", spec.revision, type(config).__name__, device, n_params, *sizes)
