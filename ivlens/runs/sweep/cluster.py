"""Make cells on workers of dask.distributed; when a worker dies, another one makes its cell.

Each worker makes one cell at a time and keeps its last model open. Cells and reports are sent as JSON. Results go into
the store, which all workers must reach under the same path.
"""

import json
import logging
import os
import signal
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ivlens.common.names import one_line
from ivlens.common.store.keys import content_key
from ivlens.common.store.store import Store
from ivlens.runs.sweep.cells import Cell, ModelSpec, Survey, survey_from
from ivlens.runs.sweep.local import Job
from ivlens.runs.sweep.options import Setting
from ivlens.runs.sweep.tasks import forget_tasks
from ivlens.runs.sweep.workshop import Report, Workshop

logger = logging.getLogger("ivlens")

MAX_DEATHS = 3  # workers that may die with the same cell before it counts as failed
WAIT_FOR_WORKERS = 600.0  # seconds
_SHOPS: dict[str, Workshop] = {}  # in a worker: its workshop, by the store's folder


class ClusterExecutor:
    """Makes cells on the workers of a running scheduler, or on workers that it starts on this machine.

    Args:
        store: A store on a file system that all workers see under the same path.
        scheduler: Address of the scheduler: `tcp://host:8786` or `tls://...`.
        n_workers: Without a scheduler, how many workers to start on this machine, which alone can reach them. Each
            gets a GPU; if there are more workers than GPUs, several share one.

    Raises:
        ConnectionError: no scheduler answers at the address.
        ImportError: dask.distributed is not installed.
    """

    def __init__(self, store: Store, *, scheduler: str | None = None, n_workers: int | None = None) -> None:
        import distributed

        self._store, self._cluster = str(store.folder.resolve()), None
        if scheduler is None:
            self._cluster = _local_cluster(n_workers or 1)
        try:
            self._client = distributed.Client(self._cluster or scheduler, timeout=30)
        except (OSError, ValueError, ImportError) as error:
            self.close()
            raise ConnectionError(
                f"scheduler {scheduler!r} does not answer ({one_line(error, 200)}), expected the address of a dask "
                "scheduler such as tcp://host:8786; start one with `dask scheduler`, or use --workers."
            ) from None
        if self._cluster is not None:
            self._client.register_plugin(_deaf_to_interrupts())

    def survey(self, spec: ModelSpec, setting: Setting, *, load: bool = True) -> Survey:
        """The facts about a model (see `Workshop.survey`), from a worker, whose device this machine may lack."""
        self._wait_for_workers()
        call = self._client.submit(survey, self._store, asdict(spec), asdict(setting), load, pure=False)
        return survey_from(json.loads(call.result()))

    def run(self, jobs: Sequence[Job], stop: Callable[[], bool]) -> Iterator[tuple[Job, Report]]:
        """Make all cells, and yield a report of each; after `stop` says so, only cells that were begun are finished."""
        yield from _Dispatch(self._client, self._store, jobs, self._wait_for_workers).run(stop)

    def close(self) -> None:
        """Leave the scheduler, and end the workers that this object started."""
        for one in (getattr(self, "_client", None), self._cluster):
            if one is not None:
                one.close(timeout=10)

    def _wait_for_workers(self) -> None:
        """Wait until there is a worker; after ten minutes without one, raise a `ConnectionError`."""
        try:
            self._client.wait_for_workers(1, timeout=WAIT_FOR_WORKERS)
        except TimeoutError:
            raise ConnectionError(
                f"the scheduler has no workers after {WAIT_FOR_WORKERS:.0f} s, expected one or more; start some, and "
                "give the same command again."
            ) from None


class _Dispatch:
    """Sends cells to workers and collects their reports: one cell for each worker at a time."""

    def __init__(self, client: Any, store: str, jobs: Sequence[Job], wait_for_workers: Callable[[], None]) -> None:
        self._client, self._store, self._wait_for_workers = client, store, wait_for_workers
        self._queue = deque(jobs)
        self._running: dict[Any, tuple[Job, str]] = {}  # for each call: its job, and the address of the worker
        self._warm: dict[str, ModelSpec] = {}  # the model that each worker keeps open, by address
        self._deaths: Counter[str] = Counter()  # workers that died with a cell, by the cell as JSON
        self._n_sent = 0

    def run(self, stop: Callable[[], bool]) -> Iterator[tuple[Job, Report]]:
        """Make all cells, and yield a report of each."""
        while self._running or (self._queue and not stop()):
            workers = set(self._client.nthreads())
            if not workers:
                self._wait_for_workers()
                continue
            yield from self._from_dead(workers)
            if not stop():
                self._send(sorted(workers - {address for _, address in self._running.values()}))
            yield from self._finished()

    def _send(self, free: Sequence[str]) -> None:
        """Send a cell to each of these workers, which have none."""
        for address in free:
            if not self._queue:
                return
            job = self._pick(address)
            self._warm[address] = job[0].model
            self._n_sent += 1
            call = self._client.submit(
                work,
                self._store,
                job[0].to_json(),
                json.dumps(asdict(job[1])),
                content_key(job[0].what(job[1])),
                workers=[address],
                # a key of its own: dask would answer a key that it knows with the earlier report
                key=f"ivlens-{self._n_sent}-{os.getpid()}-{time.time_ns()}",
                pure=False,
            )
            self._running[call] = job, address

    def _pick(self, address: str) -> Job:
        """The next cell for a worker: of the model it has open, else of one that no other worker has open, else any."""
        mine = self._warm.get(address)
        taken = {spec for other, spec in self._warm.items() if other != address}
        by_wish = (
            next((job for job in self._queue if job[0].model == mine), None),
            next((job for job in self._queue if job[0].model not in taken), None),
        )
        job = next(filter(None, by_wish), self._queue[0])
        self._queue.remove(job)
        return job

    def _finished(self) -> Iterator[tuple[Job, Report]]:
        """Reports of the calls that have ended."""
        from distributed import wait

        if not self._running:
            return
        try:
            finished: Any = wait(list(self._running), timeout=0.5, return_when="FIRST_COMPLETED")
        except TimeoutError:
            return
        for call in finished.done:
            job, address = self._running.pop(call)
            try:
                report = Report(**json.loads(call.result()))
            except Exception as error:  # an error of the cluster: errors of cells come as reports
                if address not in self._client.nthreads():
                    yield from self._put_back(job, address)
                    continue
                report = Report("failed", 0.0, f"{type(error).__name__}: {one_line(error)}")
            if report.status == "busy":
                self._queue.append(job)
                time.sleep(0.2 if len(self._queue) == 1 else 0.0)  # nothing else to do: ask again, but not at once
            else:
                yield job, report

    def _from_dead(self, workers: set[str]) -> Iterator[tuple[Job, Report]]:
        """Put the cells of dead workers back into the queue; yields a report for each cell that is given up."""
        for call, (job, address) in list(self._running.items()):
            if address not in workers and not call.done():
                call.cancel()
                del self._running[call]
                yield from self._put_back(job, address)

    def _put_back(self, job: Job, address: str) -> Iterator[tuple[Job, Report]]:
        """Put the cell of a dead worker back into the queue, or give it up after the third worker."""
        self._warm.pop(address, None)
        name = job[0].to_json()
        self._deaths[name] += 1
        if self._deaths[name] < MAX_DEATHS:
            logger.warning("worker %s died with %s; another one takes it.", address, job[0].name)
            self._queue.append(job)
        else:
            yield job, Report("failed", 0.0, f"WorkerDied: {MAX_DEATHS} workers died with it; is it too large for one?")


def survey(store: str, spec: Mapping[str, Any], setting: Mapping[str, Any], load: bool) -> str:
    """Called in a worker: the facts about a model, as JSON."""
    return json.dumps(asdict(_shop(store).survey(ModelSpec(**spec), Setting(**setting), load=load)))


def work(store: str, cell: str, model: str, key: str) -> str:
    """Called in a worker: make one cell, and return the report as JSON."""
    # the key of the one who asks: the worker may have another version of a package, or read a task before it changed
    made, known = Cell.from_json(cell), survey_from(json.loads(model))
    if content_key(made.what(known)) != key:
        forget_tasks()
    if content_key(made.what(known)) != key:
        report = Report("failed", 0.0, "OtherContent: the worker has another ivlens, torch or task file")
    else:
        report = _shop(store).attempt(made, known)
    return json.dumps(asdict(report))


def _shop(store: str) -> Workshop:
    """The worker's workshop for a store."""
    if store not in _SHOPS:
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        _SHOPS.clear()  # each workshop keeps a model open, and there is memory for one
        _SHOPS[store] = Workshop(Store(Path(store)))
    return _SHOPS[store]


def pins(n_workers: int, gpus: Sequence[str]) -> list[dict[str, str]]:
    """Environment variables of each worker: workers get the GPUs in turn, one each."""
    threads = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}  # deterministic products of matrices
    return [threads | ({"CUDA_VISIBLE_DEVICES": gpus[n % len(gpus)]} if gpus else {}) for n in range(n_workers)]


def visible_gpus() -> list[str]:
    """Names or numbers of the GPUs that this process may use, as they stand in CUDA_VISIBLE_DEVICES."""
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip()]
    return [str(number) for number in range(torch.cuda.device_count())]


def _local_cluster(n_workers: int) -> Any:
    """A scheduler and workers on this machine, reachable at 127.0.0.1 alone; a worker that dies is started again."""
    import dask
    from distributed import Nanny, Scheduler, SpecCluster

    dask.config.set({"distributed.worker.daemon": False, "distributed.comm.timeouts.connect": "30s"})
    for name in ("distributed", "distributed.scheduler", "distributed.nanny", "distributed.worker", "distributed.http"):
        logging.getLogger(name).setLevel(logging.ERROR)
    here = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0", "dashboard": False}
    workers = {
        number: {"cls": Nanny, "options": {**here, "nthreads": 1, "env": env, "silence_logs": logging.ERROR}}
        for number, env in enumerate(pins(n_workers, visible_gpus()))
    }
    scheduler = {"cls": Scheduler, "options": {**here, "port": 0}}
    return SpecCluster(workers=workers, scheduler=scheduler)


def _deaf_to_interrupts() -> Any:
    """A plugin that makes workers ignore Ctrl-C: a terminal sends it to all processes, but begun cells are finished."""
    from distributed import WorkerPlugin

    class Deaf(WorkerPlugin):
        name = "ivlens-deaf"

        def setup(self, worker: Any) -> None:
            try:
                signal.signal(signal.SIGINT, signal.SIG_IGN)
            except ValueError:  # signals can only be set in the main thread; workers elsewhere get none
                pass

    return Deaf()
