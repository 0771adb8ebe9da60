"""The cradle of every server: workers are forked into confinement by zygotes, one for each distinct `Openings`.

A zygote whose confinement was not proven by `probe` forks nothing. One that ends is replaced, and the new one proven
again; workers that were ordered meanwhile wait for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from functools import partial
from typing import TYPE_CHECKING, Final

from secfarm.run.control_groups import usage_s
from secfarm.run.cradle import Exit
from secfarm.run.launch import Launched, launch
from secfarm.run.nursery import Nursery
from secfarm.run.probe import probe
from secfarm.run.profile import ConfinementError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from secfarm.run.birth import Exited
    from secfarm.run.cradle import Terms
    from secfarm.run.profile import Bounds, Openings, Profile

_READY_S: Final = 30.0
_PAUSE_S: Final = 0.2  # before a zygote that ended is replaced
_NOT_CONFINED: Final = Exit(None, 78)  # EX_CONFIG of sysexits.h
_CPU_CLOCK: Final = 2  # CPUCLOCK_SCHED of the kernel's include/linux/posix-timers.h
_log: Final = logging.getLogger("secfarm")


class SealedCradle:
    """A `Cradle` of confined workers.

    Attributes:
        confinement: the profile's name.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        profile: Profile,
        launch: Callable[[], Launched] = launch,
        folder: Path | None = None,
    ) -> None:
        """Prepare; `expect` starts zygotes.

        Args:
            launch: starts a zygote (see `Nursery`).
            folder: for the probe's canary; None: the system's for temporary files.
        """
        self.confinement = profile.name
        self._loop = loop
        self._profile = profile
        self._launch = launch
        self._folder = folder
        self._wards: dict[Openings, Ward] = {}

    def expect(self, openings: Iterable[Openings]) -> None:
        """Start the zygotes of these openings."""
        for one in openings:
            self._ward(one)

    async def ready(self) -> None:
        """Return once every zygote is confined and proven (see `Cradle`)."""
        for ward in list(self._wards.values()):
            await ward.opened()

    def start(self, requests_read: int, results_write: int, terms: Terms, on_exit: Callable[[Exit], None]) -> Sealed:
        """Order a worker (see `Cradle`)."""
        ward = self._ward(terms.openings)
        child = Sealed(ward, on_exit)
        ward.start(child, requests_read, results_write, terms.bounds)
        return child

    def close(self) -> None:
        """End all zygotes and workers."""
        for ward in self._wards.values():
            ward.close()
        self._wards.clear()

    def _ward(self, openings: Openings) -> Ward:
        if openings not in self._wards:
            make = partial(Nursery, self._profile, openings, launch=self._launch)
            self._wards[openings] = Ward(self._loop, make, partial(_prove, folder=self._folder))
        return self._wards[openings]


class Ward:
    """The nursery of one set of openings: the present one, or the one that is being made ready."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, make: Callable[..., Nursery], prove: Callable[[Nursery], None]
    ) -> None:
        self.loop = loop
        self._make = make
        self._prove = prove
        self.nursery: Nursery | None = None  # proven
        self._watched = -1
        self._waiting: list[tuple[Sealed, int, int, Bounds]] = []
        self.children: set[Sealed] = set()
        self._closed = self._is_awaited = False
        self._reopen(0.0)

    async def opened(self) -> None:
        """Return once workers can be forked, else raise (see `Cradle.ready`)."""
        self._is_awaited = True
        await asyncio.shield(self._opening)

    async def _open(self, pause_s: float) -> None:
        await asyncio.sleep(pause_s)
        nursery = self._make(on_lost=self._lost)
        try:
            await asyncio.to_thread(self._prove, nursery)
        except BaseException:
            nursery.close()
            for child in self._drop_waiting():
                self.loop.call_soon(child.gone, _NOT_CONFINED)
            raise
        self.nursery = nursery
        # A description of its own to watch: the nursery closes its end when the zygote is gone, which is then told.
        self._watched = os.dup(nursery.fileno())
        self.loop.add_reader(self._watched, nursery.dispatch)
        waiting, self._waiting = self._waiting, []
        for order in waiting:
            self.start(*order)
            order[0].settle()
        nursery.dispatch()

    def start(self, child: Sealed, requests_read: int, results_write: int, bounds: Bounds) -> None:
        """Fork a worker now or as soon as there is a zygote for it."""
        self.children.add(child)
        if self.nursery is None or not self.nursery.is_open:
            self._waiting.append((child, requests_read, results_write, bounds))
            if self._opening.done() and self.nursery is None and not self._closed:
                self._reopen(0.0)  # it could not be opened before
            return
        try:
            child.number = self.nursery.fork(requests_read, results_write, child.exited, bounds)
        except ConfinementError:
            self.loop.call_soon(child.gone, _NOT_CONFINED)  # the zygote has just ended: its end is told next

    def _lost(self) -> None:
        if self.nursery is None:
            return  # it was not proven yet, and whoever tries that is told
        self._forget()
        _log.error("a zygote ended with its workers; another one is started")
        self._reopen(_PAUSE_S)

    def _reopen(self, pause_s: float) -> None:
        self._opening = self.loop.create_task(self._open(pause_s))
        self._opening.add_done_callback(self._heard)

    def _heard(self, opening: asyncio.Task[None]) -> None:
        error = None if opening.cancelled() else opening.exception()
        if error is not None and not self._is_awaited:
            _log.error("no worker is started: %s", error)
        self._is_awaited = False

    def _drop_waiting(self) -> list[Sealed]:
        waiting, self._waiting = self._waiting, []
        for _, requests_read, results_write, _ in waiting:
            os.close(requests_read)
            os.close(results_write)
        return [child for child, _, _, _ in waiting]

    def _forget(self) -> None:
        self.nursery = None
        if self._watched >= 0:
            self.loop.remove_reader(self._watched)
            os.close(self._watched)
            self._watched = -1

    def close(self) -> None:
        """End the zygote and its workers."""
        self._closed = True
        nursery = self.nursery
        self._forget()
        self._opening.cancel()
        if nursery is not None:
            nursery.close()
        self._drop_waiting()
        for child in list(self.children):
            child.gone(Exit(signal.SIGKILL, None))


class Sealed:
    """One confined worker (see `Child`)."""

    def __init__(self, ward: Ward, on_exit: Callable[[Exit], None]) -> None:
        self._ward = ward
        self._on_exit = on_exit
        self._killed = False
        self._pid: int | None = None
        self.number: int | None = None

    @property
    def pid(self) -> int | None:
        """Process id as the server sees it, once it was born."""
        if self._pid is None and (nursery := self._nursery()) is not None and self.number is not None:
            self._pid = nursery.pid_of(self.number)
        return self._pid if self in self._ward.children else None

    def cpu_s(self) -> float:
        """Processor time of it, its threads and what it started; without a control group once that has ended."""
        nursery = self._nursery()
        usage = None if nursery is None or self.number is None else nursery.usage_of(self.number)
        with contextlib.suppress(OSError):
            if usage is not None:
                return usage_s(usage)
            if (pid := self.pid) is not None:
                return time.clock_gettime((~pid << 3) | _CPU_CLOCK)
        return 0.0

    def stop(self) -> bool:
        """Stop it where it stands (see `Child`)."""
        nursery = self._nursery()
        if nursery is None or self.number is None:
            return False
        self._ward.loop.call_soon(nursery.dispatch)  # for what it hears meanwhile
        return nursery.stop(self.number)

    def go(self) -> None:
        """Let it go on."""
        if (nursery := self._nursery()) is not None and self.number is not None:
            nursery.go(self.number)

    def kill(self) -> None:
        """End it and all that it started."""
        self._killed = True
        if (nursery := self._nursery()) is not None and self.number is not None:
            nursery.kill(self.number)

    def end(self) -> None:
        """End it; `on_exit` is called when that is told."""
        self.kill()

    def settle(self) -> None:
        """What was asked of it before it was forked is done now."""
        if self._killed:
            self.kill()

    def exited(self, how: Exited) -> None:
        """It is gone, with all that it started."""
        self.gone(Exit(how.signal, how.status, how.cpu_s, how.out_of_memory))

    def gone(self, how: Exit) -> None:
        """As `exited`."""
        if self in self._ward.children:
            self._ward.children.discard(self)
            self._on_exit(how)

    def _nursery(self) -> Nursery | None:
        return self._ward.nursery if self in self._ward.children else None


def _prove(nursery: Nursery, *, folder: Path | None) -> None:
    """Block until the nursery is confined and its confinement was tried in vain to escape.

    Raises:
        ConfinementError: it is not, or an escape succeeded.
    """
    nursery.wait_ready(_READY_S)
    probe(nursery, folder)
