"""The server attacks itself: a confined worker tries some real escapes before anybody's task is served.

A layer can be engaged and yet not hold: in a container that maps too much, under a kernel that is not what it seems.
"""

from __future__ import annotations

import contextlib
import os
import select
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from secfarm.run.escapes import ATTEMPTS
from secfarm.run.pipe import LENGTH, Run, decode_report, encode_run
from secfarm.run.profile import ConfinementError, Layer
from secfarm.task import codec
from secfarm.task.outcome import Done
from secfarm.task.program import NameProgram, make_program

if TYPE_CHECKING:
    from collections.abc import Iterator

    from secfarm.run.nursery import Nursery

_ATTEMPT: Final = make_program(NameProgram("secfarm.run.escapes:attempt"))
_MAX_REPORT_BYTES: Final = 64 << 10

# The layers, any of which stops the attempt.
_STOPPED_BY: Final = {
    "read a file of the server": (Layer.ROOT, Layer.LANDLOCK),
    "read a file of the server through /proc": (Layer.ROOT, Layer.LANDLOCK),
    "write a file of the server": (Layer.ROOT, Layer.LANDLOCK, Layer.SECCOMP),
    "reach the network of the server": (Layer.NET, Layer.SECCOMP),
    "fork": (Layer.SECCOMP,),
    "open the memory of the server": (Layer.ROOT, Layer.LANDLOCK),
    "trace the server": (Layer.PID, Layer.SECCOMP),
    "signal the server": (Layer.PID, Layer.SECCOMP),
    "enter a namespace": (Layer.SECCOMP,),
    "make memory for code of its own": (Layer.WRITE_XOR_EXECUTE,),
    "inherit descriptors": (Layer.DESCRIPTORS,),
    "hold capabilities": (Layer.CAPABILITIES,),
    "gain privileges": (Layer.NO_NEW_PRIVS,),
    "be dumped": (Layer.DUMPABLE,),
    "use without a limit": (Layer.RLIMITS,),
}


@dataclass(frozen=True, slots=True)
class Attempt:
    """One escape that was tried; `got` is what it got hold of, None if it was stopped."""

    name: str
    layers: tuple[Layer, ...]
    got: str | None


def probe(nursery: Nursery, folder: Path | None = None, within_s: float = 10.0) -> list[Attempt]:
    """Let a worker of a ready nursery try to escape, and return what it tried; all in vain, else raise.

    Blocks for some 20 ms. What the openings of the nursery allow is not tried.

    Args:
        nursery: ready.
        folder: where a file may be made that no worker is to read; None: among the system's temporary files.
        within_s: for all of it.

    Raises:
        ConfinementError: an escape succeeded, or the worker did not start or answer; nothing may be served.
    """
    names = [name for name in ATTEMPTS if name not in _allowed(nursery)]
    with _Probe(nursery, folder, time.monotonic() + within_s) as worker:
        attempts = [Attempt(name, _STOPPED_BY[name], worker.ask(name)) for name in names]
    if escaped := [one for one in attempts if one.got is not None]:
        listed = "; ".join(f"{one.name} ({one.got}), against {' or '.join(one.layers)}" for one in escaped)
        raise ConfinementError(f"a confined worker could {listed}; nothing is served")
    return attempts


def _allowed(nursery: Nursery) -> set[str]:
    openings, allowed = nursery.openings, set()
    if openings.network:
        allowed.add("reach the network of the server")
    if openings.subprocesses:
        allowed |= {"fork"}
    if openings.generated_code:
        allowed.add("make memory for code of its own")
    return allowed


@contextlib.contextmanager
def _canary(folder: Path | None) -> Iterator[Path]:
    with contextlib.ExitStack() as stack:
        try:
            place = stack.enter_context(tempfile.TemporaryDirectory(prefix="secfarm-", dir=folder))
            canary = Path(place, "canary")
            canary.write_text("canary", "utf-8")
        except OSError as error:
            raise ConfinementError(
                f"the probe finds no place for a file that workers are not to read: {error}; nothing is served"
            ) from error
        yield canary


class _Probe:
    """A worker with its pipes, and a canary."""

    def __init__(self, nursery: Nursery, folder: Path | None, deadline_s: float) -> None:
        self._nursery = nursery
        self._deadline_s = deadline_s
        self._stack = contextlib.ExitStack()
        self._canary = self._stack.enter_context(_canary(folder))
        requests_read, self._requests = os.pipe2(os.O_DIRECT | os.O_CLOEXEC)
        self._results, results_write = os.pipe2(os.O_CLOEXEC)
        for fd in (self._requests, self._results):
            self._stack.callback(os.close, fd)
        self._number = nursery.fork(requests_read, results_write, lambda _: None)
        self._stack.callback(nursery.kill, self._number)
        self._carried = False

    def __enter__(self) -> Self:
        ready = self._read()
        if ready.error is not None:
            self._stack.close()
            raise ConfinementError(ready.error.report)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def ask(self, name: str) -> str | None:
        arguments = codec.encode_call((name, str(self._canary), os.getpid()), {})
        text = None if self._carried else _ATTEMPT.wire
        self._carried = True
        os.write(self._requests, encode_run(Run(1, _ATTEMPT.key, arguments, None, text)))
        done = self._read()
        if done.error is not None:
            raise ConfinementError(f"the probe {name!r} failed: {done.error.report}; nothing is served")
        got = codec.decode(done.value or b"")
        return None if got is None else str(got)

    def _read(self) -> Done:
        (size,) = LENGTH.unpack(self._exactly(LENGTH.size))
        if size > _MAX_REPORT_BYTES:
            raise ConfinementError(f"the probing worker announced a report of {size} bytes; nothing is served")
        report = decode_report(self._exactly(size))
        return report if isinstance(report, Done) else self._read()

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            left_s = max(0.0, self._deadline_s - time.monotonic())
            part = (
                os.read(self._results, size - len(data)) if select.select([self._results], [], [], left_s)[0] else b""
            )
            if not part:
                raise ConfinementError("the probing worker ended or did not answer in time; nothing is served")
            data += part
        return data
