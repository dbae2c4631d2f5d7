"""Cells on workers of dask.distributed: one cell and one warm model each; when one dies, another takes its cell.

Cells and reports travel as JSON texts; results go to the store, which all workers must reach under the same path.
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

MAX_DEATHS = 3  # of workers with the same cell
WAIT_FOR_WORKERS = 600.0  # seconds
_SHOPS: dict[str, Workshop] = {}  # in a worker


class ClusterExecutor:
    """Workers of a scheduler that runs somewhere, or some of this machine, started here.

    Args:
        store: On a file system that all workers see under the same path.
        scheduler: Address, `tcp://host:8786` or `tls://...`.
        n_workers: Start so many here instead, reachable from this machine alone, one GPU each as long as there are any.

    Raises:
        ConnectionError: no scheduler there.
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
        """What a model is, asked of a worker: it may have a device that this machine lacks."""
        self._wait_for_workers()
        call = self._client.submit(survey, self._store, asdict(spec), asdict(setting), load, pure=False)
        return survey_from(json.loads(call.result()))

    def run(self, jobs: Sequence[Job], stop: Callable[[], bool]) -> Iterator[tuple[Job, Report]]:
        """Make all cells; after `stop` those that are under way are waited for."""
        yield from _Dispatch(self._client, self._store, jobs, self._wait_for_workers).run(stop)

    def close(self) -> None:
        """Leave the scheduler; end the workers that were started here."""
        for one in (getattr(self, "_client", None), self._cluster):
            if one is not None:
                one.close(timeout=10)

    def _wait_for_workers(self) -> None:
        try:
            self._client.wait_for_workers(1, timeout=WAIT_FOR_WORKERS)
        except TimeoutError:
            raise ConnectionError(
                f"the scheduler has no workers after {WAIT_FOR_WORKERS:.0f} s, expected one or more; start some, and "
                "give the same command again."
            ) from None


class _Dispatch:
    """Which worker has which cell."""

    def __init__(self, client: Any, store: str, jobs: Sequence[Job], wait_for_workers: Callable[[], None]) -> None:
        self._client, self._store, self._wait_for_workers = client, store, wait_for_workers
        self._queue = deque(jobs)
        self._flying: dict[Any, tuple[Job, str]] = {}
        self._warm: dict[str, ModelSpec] = {}  # by worker
        self._deaths: Counter[str] = Counter()
        self._n_sent = 0

    def run(self, stop: Callable[[], bool]) -> Iterator[tuple[Job, Report]]:
        while self._flying or (self._queue and not stop()):
            workers = set(self._client.nthreads())
            if not workers:
                self._wait_for_workers()
                continue
            yield from self._lost(workers)
            if not stop():
                self._send(sorted(workers - {address for _, address in self._flying.values()}))
            yield from self._landed()

    def _send(self, free: Sequence[str]) -> None:
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
                key=f"ivlens-{self._n_sent}-{os.getpid()}-{time.time_ns()}",
                pure=False,
            )
            self._flying[call] = job, address

    def _pick(self, address: str) -> Job:
        """A cell of the model that the worker has; else one of a model that no other worker has; else the next."""
        mine = self._warm.get(address)
        taken = {spec for other, spec in self._warm.items() if other != address}
        by_wish = (
            next((job for job in self._queue if job[0].model == mine), None),
            next((job for job in self._queue if job[0].model not in taken), None),
        )
        job = next(filter(None, by_wish), self._queue[0])
        self._queue.remove(job)
        return job

    def _landed(self) -> Iterator[tuple[Job, Report]]:
        from distributed import wait

        if not self._flying:
            return
        try:
            finished: Any = wait(list(self._flying), timeout=0.5, return_when="FIRST_COMPLETED")
        except TimeoutError:
            return
        for call in finished.done:
            job, address = self._flying.pop(call)
            try:
                report = Report(**json.loads(call.result()))
            except Exception as error:  # of the cluster, as a cell's own error is a report
                if address not in self._client.nthreads():
                    yield from self._died(job, address)
                    continue
                report = Report("failed", 0.0, f"{type(error).__name__}: {one_line(error)}")
            if report.status == "busy":
                self._queue.append(job)
                time.sleep(0.2 if len(self._queue) == 1 else 0.0)
            else:
                yield job, report

    def _lost(self, workers: set[str]) -> Iterator[tuple[Job, Report]]:
        """Cells whose workers are gone go back into the queue."""
        for call, (job, address) in list(self._flying.items()):
            if address not in workers and not call.done():
                call.cancel()
                del self._flying[call]
                yield from self._died(job, address)

    def _died(self, job: Job, address: str) -> Iterator[tuple[Job, Report]]:
        self._warm.pop(address, None)
        name = job[0].to_json()
        self._deaths[name] += 1
        if self._deaths[name] < MAX_DEATHS:
            logger.warning("worker %s died with %s; another one takes it.", address, job[0].name)
            self._queue.append(job)
        else:
            yield job, Report("failed", 0.0, f"WorkerDied: {MAX_DEATHS} workers died with it; is it too large for one?")


def survey(store: str, spec: Mapping[str, Any], setting: Mapping[str, Any], load: bool) -> str:
    """In a worker: what a model is, as JSON."""
    return json.dumps(asdict(_shop(store).survey(ModelSpec(**spec), Setting(**setting), load=load)))


def work(store: str, cell: str, model: str, key: str) -> str:
    """In a worker: make one cell; the report as JSON."""
    made, known = Cell.from_json(cell), survey_from(json.loads(model))
    if content_key(made.what(known)) != key:
        forget_tasks()
    if content_key(made.what(known)) != key:
        report = Report("failed", 0.0, "OtherContent: the worker has another ivlens, torch or task file")
    else:
        report = _shop(store).attempt(made, known)
    return json.dumps(asdict(report))


def _shop(store: str) -> Workshop:
    if store not in _SHOPS:
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        _SHOPS.clear()  # one warm model
        _SHOPS[store] = Workshop(Store(Path(store)))
    return _SHOPS[store]


def pins(n_workers: int, gpus: Sequence[str]) -> list[dict[str, str]]:
    """Environment of each worker: one GPU each, in turn; none where there are none."""
    threads = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}  # deterministic products of matrices
    return [threads | ({"CUDA_VISIBLE_DEVICES": gpus[n % len(gpus)]} if gpus else {}) for n in range(n_workers)]


def visible_gpus() -> list[str]:
    """Names of the GPUs that this process may use, as CUDA_VISIBLE_DEVICES spells them."""
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip()]
    return [str(number) for number in range(torch.cuda.device_count())]


def _local_cluster(n_workers: int) -> Any:
    """Workers of this machine, bound to 127.0.0.1, restarted when they die."""
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
    """Ctrl-C reaches every process of a terminal; what a worker has begun shall be finished all the same."""
    from distributed import WorkerPlugin

    class Deaf(WorkerPlugin):
        name = "ivlens-deaf"

        def setup(self, worker: Any) -> None:
            try:
                signal.signal(signal.SIGINT, signal.SIG_IGN)
            except ValueError:  # not in the main thread, which then hears nothing either
                pass

    return Deaf()
