"""Make cells in this process, one after the other."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from ivlens.common.store.store import Store
from ivlens.runs.sweep.cells import Cell, ModelSpec, Survey
from ivlens.runs.sweep.options import Setting
from ivlens.runs.sweep.workshop import Report, Workshop

Job = tuple[Cell, Survey]  # a cell, and the facts about its model


class LocalExecutor:
    """Makes cells in this process, one after the other."""

    def __init__(self, store: Store) -> None:
        self._shop = Workshop(store)

    def survey(self, spec: ModelSpec, setting: Setting, *, load: bool = True) -> Survey:
        """The facts about a model; see `Workshop.survey`."""
        return self._shop.survey(spec, setting, load=load)

    def run(self, jobs: Sequence[Job], stop: Callable[[], bool]) -> Iterator[tuple[Job, Report]]:
        """Make all cells, and yield a report of each; before each cell `stop` says whether to end.

        A cell that another process is making is put off to the end.
        """
        queue = deque(jobs)
        n_busy = 0  # cells in a row that other processes were making
        while queue and not stop():
            job = queue.popleft()
            report = self._shop.attempt(*job)
            if report.status != "busy":
                n_busy = 0
                yield job, report
                continue
            queue.append(job)
            n_busy += 1
            if n_busy >= len(queue):  # other processes are making all that is left
                time.sleep(0.2)

    def close(self) -> None:
        """Do nothing: this process has no workers to end."""
