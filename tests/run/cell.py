"""Confined workers without a server: run one captured task in a fresh fork of a zygote and say how it ended."""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from secfarm.run.birth import Exited
from secfarm.run.nursery import Nursery
from secfarm.run.pipe import LENGTH, Run, decode_report, encode_run
from secfarm.run.profile import Bounds, ConfinementError, Openings, Profile
from secfarm.task import codec
from secfarm.task.capture import capture
from secfarm.task.outcome import Done

START_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one task: `done` unless the worker died or was killed first."""

    done: Done | None
    killed: bool
    exited: Exited

    @property
    def value(self) -> object:
        """What it returned; an error is an AssertionError."""
        assert self.done is not None, self
        assert self.done.error is None, self.done.error
        return codec.decode(self.done.value or b"")


class Worker:
    """One confined worker and this end of its pipes."""

    def __init__(self, nursery: Nursery, bounds: Bounds | None = None) -> None:
        requests_read, self._requests = os.pipe2(os.O_DIRECT | os.O_CLOEXEC)
        self._results, results_write = os.pipe2(os.O_CLOEXEC)
        self._nursery = nursery
        self.exits: list[Exited] = []
        self.is_closed = False  # by the worker: its end of the results
        self.number = nursery.fork(requests_read, results_write, self.exits.append, bounds)

    def ready(self) -> None:
        done = self.read(START_S)
        assert done is not None, "the worker did not start"
        if done.error is not None:
            raise ConfinementError(done.error.report)

    def send(self, task: Callable[..., object], *args: object, number: int = 1) -> None:
        program = capture(task).program
        self.write(encode_run(Run(number, program.key, codec.encode_call(args, {}), None, program.wire)))

    def write(self, data: bytes) -> None:
        """Send an encoded call, in packets as its pipe takes them."""
        for start in range(0, len(data), 4096):
            os.write(self._requests, data[start : start + 4096])

    def read(self, within_s: float) -> Done | None:
        """How the next call ended; None when there is no word of it in time or the worker is gone."""
        deadline_s = time.monotonic() + within_s
        while True:
            size = self._exactly(LENGTH.size, deadline_s)
            length = None if size is None else LENGTH.unpack(size)[0]
            body = None if length is None or length > 64 << 20 else self._exactly(length, deadline_s)
            if body is None:
                return None
            if isinstance(report := decode_report(body), Done):
                return report

    def _exactly(self, size: int, deadline_s: float) -> bytes | None:
        data = b""
        while len(data) < size:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0 or not select.select([self._results], [], [], left_s)[0]:
                return None
            part = os.read(self._results, size - len(data))
            if not part:
                self.is_closed = True
                return None
            data += part
        return data

    def end(self, *, kill: bool = True) -> Exited:
        """Close the pipes, kill, and return how it ended."""
        os.close(self._requests)
        os.close(self._results)
        if kill:
            self._nursery.kill(self.number)
        return self.wait()

    def wait(self, within_s: float = START_S) -> Exited:
        deadline_s = time.monotonic() + within_s
        while not self.exits:
            left_s = deadline_s - time.monotonic()
            assert left_s > 0, "the worker did not end"
            select.select([self._nursery], [], [], left_s)
            self._nursery.dispatch()
        return self.exits[0]


class Cell:
    """A nursery for tests: `run` uses a fresh worker for each task. A context manager; nothing outlives it."""

    def __init__(self, profile: Profile, openings: Openings | None = None) -> None:
        self.nursery = Nursery(profile, openings)
        try:
            self.states = self.nursery.wait_ready(START_S)
        except BaseException:
            self.nursery.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.nursery.close()
        assert not Path(f"/proc/{self.nursery.pid}").exists()

    def worker(self, bounds: Bounds | None = None) -> Worker:
        worker = Worker(self.nursery, bounds)
        worker.ready()
        return worker

    def run(
        self, task: Callable[..., object], *args: object, bounds: Bounds | None = None, within_s: float = START_S
    ) -> Outcome:
        """Run one task; when it has not answered in time its worker is killed."""
        worker = self.worker(bounds)
        worker.send(task, *args)
        done = worker.read(within_s)
        if worker.is_closed:  # which is a moment before the process ends, if it does
            with contextlib.suppress(AssertionError):
                worker.wait(10.0)
        self.nursery.dispatch()
        died = bool(worker.exits)
        exited = worker.end()
        return Outcome(done, done is None and not died, exited)
