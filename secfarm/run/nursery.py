"""The zygote as its server sees it: orders workers, hears of their ends, stops and kills them.

One nursery for each distinct `Openings`. Non-blocking but where said; an event loop watches `fileno()` for reading and
calls `dispatch`.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import socket
import subprocess
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from secfarm.run.birth import (
    MAX_MESSAGE_BYTES,
    Born,
    Exited,
    Fork,
    Go,
    Kill,
    Ready,
    Refused,
    Report,
    Start,
    Stop,
    Stopped,
    decode_report,
    encode,
)
from secfarm.run.control_groups import sweep
from secfarm.run.launch import Launched, launch
from secfarm.run.profile import FULL, Bounds, ConfinementError, Layer, LayerState, Openings, Profile

if TYPE_CHECKING:
    from secfarm.run.birth import Order

_STOPS_WITHIN_S: Final = 0.1
_ENDS_WITHIN_S: Final = 2.0  # where it ends what its workers started, and no namespace does


@dataclass(slots=True)
class Birth:
    """A worker that was ordered, as far as it is known."""

    number: int
    on_exit: Callable[[Exited], None]
    pidfd: int | None = None
    usage: int | None = None  # of its control group

    def close(self) -> None:
        """Close its descriptors."""
        for fd in (self.pidfd, self.usage):
            if fd is not None:
                os.close(fd)


class Nursery:
    """A zygote and its workers. Close it: that ends them all."""

    def __init__(
        self,
        profile: Profile = FULL,
        openings: Openings | None = None,
        *,
        launch: Callable[[], Launched] = launch,
        on_lost: Callable[[], None] | None = None,
    ) -> None:
        """Start the zygote; returns before it is ready, workers may be ordered at once.

        Args:
            launch: starts the process; by default as a child of this one.
            on_lost: called once when the zygote has ended by itself; its workers are gone, their `on_exit` was called.
        """
        self.profile = profile
        self.openings = openings or Openings()
        self.states: list[LayerState] | None = None
        self.missed: list[LayerState] = []  # the layers, one of them missing, when it refused
        self._refusal: ConfinementError | None = None
        self._on_lost = on_lost or (lambda: None)
        self._births: dict[int, Birth] = {}
        self._numbers = itertools.count(1)
        self._queued: deque[Report] = deque()
        self._is_open = True
        launched = launch()
        self._control, self._process = launched.control, launched.process
        try:
            self._order(Start(profile, self.openings))
        except ConfinementError:  # it has ended already
            self.close()
            raise

    def fileno(self) -> int:
        """What becomes readable when `dispatch` has something to do."""
        return self._control.fileno()

    @property
    def is_open(self) -> bool:
        """Whether it was neither closed nor lost its zygote."""
        return self._is_open

    @property
    def pid(self) -> int | None:
        """Process id of the role's first process, whose end is the zygote's, if it is a child of this one."""
        return None if self._process is None else self._process.pid

    def wait_ready(self, within_s: float) -> list[LayerState]:
        """Block until the zygote is confined, and return what became of each layer.

        Raises:
            ConfinementError: it could not confine itself as its profile demands, or ended, or took too long.
        """
        deadline_s = time.monotonic() + within_s
        while self.states is None and self._refusal is None and self._is_open:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0 or not _readable(self._control, left_s):
                break
            self.dispatch()
        if self._refusal is not None:
            raise self._refusal
        if self.states is None:
            end = "is not ready" if self._is_open else "ended"
            raise ConfinementError(f"the zygote {end} after {within_s:g} s; nothing is served")
        return self.states

    # --- orders -----------------------------------------------------------------------------------------------------

    def fork(
        self, requests_read: int, results_write: int, on_exit: Callable[[Exited], None], bounds: Bounds | None = None
    ) -> int:
        """Order a worker on these ends of its two pipes, which are given away: closed here. Return its number.

        Raises:
            ConfinementError: the zygote is gone.
        """
        number = next(self._numbers)
        self._births[number] = Birth(number, on_exit)
        try:
            self._order(Fork(number, bounds or Bounds()), requests_read, results_write)
        except ConfinementError:
            del self._births[number]
            raise
        finally:
            os.close(requests_read)
            os.close(results_write)
        return number

    def stop(self, number: int) -> bool:
        """Stop a worker where it stands and return whether it does.

        Blocks for some 0.1 ms; 0.1 s at worst, on a machine that is overloaded.
        """
        if number not in self._births or not self._is_open:
            return False
        self._order(Stop(number))
        deadline_s = time.monotonic() + _STOPS_WITHIN_S
        while (left_s := deadline_s - time.monotonic()) > 0 and _readable(self._control, left_s):
            report = self._receive()
            if isinstance(report, Stopped) and report.number == number:
                return report.stands
            if report is None:
                return False
            if not isinstance(report, Stopped):
                self._queued.append(report)
        return False

    def go(self, number: int) -> None:
        """Let a stopped worker go on."""
        self._order_if_there(Go(number))

    def kill(self, number: int) -> None:
        """End a worker and all that it started; its `on_exit` follows."""
        self._order_if_there(Kill(number))

    def pid_of(self, number: int) -> int | None:
        """The worker's process id here, if it was born and is not gone."""
        birth = self._births.get(number)
        if birth is None or birth.pidfd is None:
            return None
        with Path(f"/proc/self/fdinfo/{birth.pidfd}").open(encoding="ascii") as lines:
            pid = next(int(line.split()[1]) for line in lines if line.startswith("Pid:"))
        return pid if pid > 0 else None

    def usage_of(self, number: int) -> int | None:
        """The descriptor that tells what the worker's control group has used, if it has one."""
        birth = self._births.get(number)
        return None if birth is None else birth.usage

    def close(self) -> None:
        """End the zygote and every worker; they are gone when this returns, without a call of `on_exit`."""
        self._is_open = False
        self._control.close()  # which ends a zygote
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(0.0 if Layer.PID in self.profile.layers else _ENDS_WITHIN_S)
            self._process.kill()
            self._process.wait()
            sweep(self._process.pid)
        for birth in self._births.values():
            if birth.pidfd is not None:
                _readable_fd(birth.pidfd, None)
            birth.close()
        self._births.clear()

    # --- reports ----------------------------------------------------------------------------------------------------

    def dispatch(self) -> None:
        """Take the reports that are there and call those whom they concern. Does not block."""
        while self._is_open:
            if self._queued:
                report: Report | None = self._queued.popleft()
            elif _readable(self._control, 0):
                report = self._receive()
            else:
                return
            if report is None:
                self._lost()
            else:
                self._take(report)

    def _take(self, report: Report) -> None:
        match report:
            case Ready():
                self.states = report.states
            case Refused():
                self._refusal = ConfinementError(report.text)
                self.missed = report.states
            case Exited():
                if (birth := self._births.pop(report.number, None)) is not None:
                    birth.close()
                    birth.on_exit(report)
            case Stopped() | Born():
                pass

    def _receive(self) -> Report | None:
        """Return the next report; None: the zygote is gone."""
        try:
            data, fds, _, _ = socket.recv_fds(self._control, MAX_MESSAGE_BYTES, 2, socket.MSG_CMSG_CLOEXEC)
        except ConnectionError:
            return None
        if not data:
            return None
        report: Report = decode_report(data)
        if isinstance(report, Born) and report.number in self._births:
            birth = self._births[report.number]
            birth.pidfd = fds.pop(0)
            birth.usage = fds.pop() if fds else None
        for fd in fds:
            os.close(fd)
        return report

    def _lost(self) -> None:
        births = list(self._births.values())
        self.close()
        for birth in births:
            birth.on_exit(Exited(birth.number, 9, None, 0.0))
        self._on_lost()

    def _order_if_there(self, order: Go | Kill) -> None:
        if order.number in self._births and self._is_open:
            with contextlib.suppress(ConfinementError):  # then it is gone already
                self._order(order)

    def _order(self, order: Order, *fds: int) -> None:
        try:
            socket.send_fds(self._control, [encode(order)], fds)
        except OSError as error:
            raise ConfinementError(f"the zygote is gone ({error.strerror}); no worker was started") from error


def _readable(control: socket.socket, within_s: float) -> bool:
    return _readable_fd(control.fileno(), within_s)


def _readable_fd(fd: int, within_s: float | None) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(None if within_s is None else within_s * 1000))
