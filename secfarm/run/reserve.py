"""The workers that wait for a crew: how many of which terms, and what happens when they do not start."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from secfarm.errors import KernelError
from secfarm.run.cradle import DEFAULT

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable

    from secfarm.run.cradle import Exit, Terms
    from secfarm.run.crew import Worker
    from secfarm.run.pool import WorkerPool

_BOOT_TRIES: Final = 3
_BOOT_PAUSE_S: Final = 0.5
_MAX_KINDS: Final = 8  # of spares that wait for sessions to come
_LATER_S: Final = 0.003  # when most calls that took a spare are over


class Reserve:
    """A pool's warm spares. `started` is done when the first worker is ready, or none will be."""

    def __init__(self, pool: WorkerPool) -> None:
        self._pool = pool
        self._spares: deque[Worker] = deque()
        self._failures: dict[Terms, int] = {}
        self._expected: tuple[Terms, ...] = (DEFAULT,)
        self._filling: asyncio.TimerHandle | None = None
        self.started = pool.loop.create_future()

    def expect(self, wanted: Iterable[Terms]) -> None:
        """Keep spares of these terms, of the first most of all; by default of no particular ones."""
        self._expected = tuple(dict.fromkeys(wanted))[:_MAX_KINDS] or (DEFAULT,)

    def take(self, terms: Terms) -> Worker | None:
        """Return a worker of these terms, warm if there is one; None: they do not start, which is tried again later."""
        spare = next((one for one in self._spares if one.terms == terms), None)
        if spare is not None:
            self._spares.remove(spare)
            return spare
        return self._pool.spawn(terms) if self._may_start(terms) else None

    def fill_soon(self) -> None:
        """As `fill`: at once where no spare is left, else in a moment: a fork slows the call that took the spare."""
        if not self._spares:
            self.fill()
        elif self._filling is None:
            self._filling = self._pool.loop.call_later(_LATER_S, self.fill)

    def fill(self) -> None:
        """Keep as many spares as may be wanted: of the first terms for every free place, of the others one."""
        pool = self._pool
        self._forget_filling()
        kinds = dict.fromkeys([*self._expected, *[crew.terms for crew in pool.crews]])
        employed = sum(len(crew.workers) for crew in pool.crews)
        for terms in kinds:
            wanted = max(1, pool.size + 1 - employed) if terms is self._expected[0] else 1
            spares = [worker for worker in self._spares if worker.terms == terms]
            for worker in spares[wanted:]:  # workers of other terms are in their places
                self._dismiss(worker)
            for _ in range(wanted - len(spares)):
                if pool.closed or len(pool.workers) >= pool.size + len(kinds) or not self._may_start(terms):
                    break
                self._spares.append(pool.spawn(terms))
        for worker in [worker for worker in self._spares if worker.terms not in kinds]:
            self._dismiss(worker)

    def discard(self, worker: Worker) -> None:
        """It is gone."""
        if worker in self._spares:
            self._spares.remove(worker)

    def _dismiss(self, worker: Worker) -> None:
        self._spares.remove(worker)
        self._pool.end(worker)

    # --- starting -------------------------------------------------------------------------------------------------

    def _may_start(self, terms: Terms) -> bool:
        return self._failures.get(terms, 0) < _BOOT_TRIES

    def has_started(self, worker: Worker) -> None:
        """A worker is ready."""
        self._failures.pop(worker.terms, None)
        if not self.started.done():
            self.started.set_result(None)

    def did_not_start(self, worker: Worker, how: Exit) -> None:
        """A worker ended before it was ready."""
        failures = self._failures[worker.terms] = self._failures.get(worker.terms, 0) + 1
        if failures != _BOOT_TRIES or self._pool.closed:
            return
        reason = str(how) if worker.refusal is None else worker.refusal.report
        if not self.started.done():
            message = (
                f"{_BOOT_TRIES} workers ended before they were ready, the last one so: {reason}; nothing is served"
            )
            self.started.set_exception(KernelError(message))
        self._pool.loop.call_later(_BOOT_PAUSE_S, self._try_again, worker.terms)

    def _try_again(self, terms: Terms) -> None:
        self._failures[terms] = _BOOT_TRIES - 1
        self.fill()
        self._pool.pump_all()

    def _forget_filling(self) -> None:
        if self._filling is not None:
            self._filling.cancel()
            self._filling = None

    def close(self) -> None:
        """Nothing will start any more."""
        self._forget_filling()
        if not self.started.done():  # whoever waits for it would for ever
            self.started.set_exception(KernelError("the server was told to end before a worker was ready"))
            self.started.exception()  # looked at: nobody need wait
