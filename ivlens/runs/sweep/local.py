"""Cells one after the other, in this process."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from ivlens.common.store.store import Store
from ivlens.runs.sweep.cells import Cell, ModelSpec, Survey
from ivlens.runs.sweep.options import Setting
from ivlens.runs.sweep.workshop import Report, Workshop

Job = tuple[Cell, Survey]


class LocalExecutor:
    """This process."""

    def __init__(self, store: Store) -> None:
        self._shop = Workshop(store)

    def survey(self, spec: ModelSpec, setting: Setting, *, load: bool = True) -> Survey:
        """What a model is."""
        return self._shop.survey(spec, setting, load=load)

    def run(self, jobs: Sequence[Job], stop: Callable[[], bool]) -> Iterator[tuple[Job, Report]]:
        """Make all cells, those that another process is making last; `stop` is asked between two of them."""
        queue = deque(jobs)
        n_busy = 0  # in a row
        while queue and not stop():
            job = queue.popleft()
            report = self._shop.attempt(*job)
            if report.status != "busy":
                n_busy = 0
                yield job, report
                continue
            queue.append(job)
            n_busy += 1
            if n_busy >= len(queue):  # all that is left is in other hands
                time.sleep(0.2)

    def close(self) -> None:
        """Nothing to close."""
