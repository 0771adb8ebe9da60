"""The supervisor: `secfarm serve`. Opens the sockets, starts keeper, gate and zygotes, and starts again what ends.

It parses nothing of a peer and reads no key. A gate that ends is replaced while tasks run on; when the keeper ends
nothing that depends on it may go on: all roles start anew, and clients come back with what had no answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from secfarm.daemon.passage import (
    Down,
    Drain,
    Gate,
    Keep,
    Listen,
    Reload,
    Reloaded,
    ToKeeper,
    Up,
    Zygote,
    decode_from_keeper,
    encode,
)
from secfarm.daemon.roles import DIALLING_GATE, GATE, KEEPER
from secfarm.disk.config import KERBEROS_NAMES, SERVER_CONFIG, state_home
from secfarm.errors import KernelError, error_of
from secfarm.net.line import Line, line_ends
from secfarm.net.listen import local_address, open_sockets
from secfarm.run import control_groups
from secfarm.run.lists import begin
from secfarm.run.role import ZYGOTE, spawn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from secfarm.daemon.log import Log
    from secfarm.disk.config import ServerConfig
    from secfarm.net.service import Notifier
    from secfarm.run.role import Role
    from secfarm.wire.address import Address

_STDERR: Final = 2
_PAUSE_S: Final = 0.2  # before a role that ended is started again
_STEADY_S: Final = 10.0  # a role that lived so long was well
_ENDS_WITHIN_S: Final = 2.0  # a zygote without a keeper
_TRIES: Final = 5  # in a row, of roles that did not
_log: Final = logging.getLogger("secfarm")


class Supervisor:
    """The roles of one server."""

    def __init__(
        self,
        config: ServerConfig,
        sockets: Sequence[socket.socket],
        ready: Callable[[], None],
        notifier: Notifier,
        log: Log,
    ) -> None:
        """Prepare; `run` starts.

        Args:
            config: of a file.
            sockets: listening.
            ready: called once, when connections are accepted.
            notifier: told how the server is.
            log: how the roles log.
        """
        self._config = config
        self._sockets = sockets
        self._gate_role = DIALLING_GATE if config.dial else GATE
        self._ready = ready
        self._notifier = notifier
        self._log = log
        ways = {"listening on": [local_address(sock) for sock in sockets], "dialling in to": config.dial}
        self._status = "; ".join([f"{word} {', '.join(map(str, ones))}" for word, ones in ways.items() if ones])
        self._loop = asyncio.get_running_loop()
        self._children: dict[int, tuple[Role, subprocess.Popen[bytes]]] = {}  # by pidfd
        self._keeper: Line | None = None
        self._gate: Line | None = None
        self._draining = self._is_up = False
        self._failures = 0
        self._started_s = 0.0
        self._finished: asyncio.Future[None] = self._loop.create_future()

    async def run(self) -> None:
        """Return when the server has ended.

        Raises:
            SecfarmError: it does not start, or does not stay up.
        """
        self._start_all()
        try:
            await self._finished
        finally:
            self._notifier.stopping("ending")
            self._end_all()

    def drain(self) -> None:
        """Let the server finish what it has accepted; the second time, end it now."""
        if self._draining:
            self.halt()
        elif self._keeper is not None:
            self._draining = True
            _log.info("draining; a second signal ends the server at once")
            self._notifier.stopping("finishing what was accepted")
            self._tell_keeper(Drain())

    def halt(self) -> None:
        """End the server now."""
        if not self._finished.done():
            self._finished.set_result(None)

    def reload(self) -> None:
        """Have trust files, policy and keys read again."""
        if self._is_up:  # else the files are about to be read, or were just now
            self._notifier.reloading()
        self._tell_keeper(Reload())

    # --- roles ------------------------------------------------------------------------------------------------------

    def _start_all(self) -> None:
        self._started_s = self._loop.time()
        near, far = line_ends()
        self._spawn(KEEPER, {"supervisor": far})
        self._keeper = Line(self._loop, near, self._told, lambda: None)
        config = self._config
        self._tell_keeper(
            Keep(
                str(Path(config.file or SERVER_CONFIG).absolute()),
                str((config.state or state_home(os.environ)).absolute()),
                tuple([str(local_address(sock)) for sock in self._sockets]),
                tuple([str(address) for address in config.dial]),
                self._log,
                ""
                if config.kerberos is None or config.kerberos.keytab is None
                else str(config.kerberos.keytab.absolute()),
                {name: os.environ[name] for name in KERBEROS_NAMES if name in os.environ},
            )
        )
        self._start_gate()

    def _start_gate(self) -> None:
        near, far = line_ends()
        keeper_end, gate_end = line_ends()
        self._spawn(self._gate_role, {"supervisor": far, "keeper": gate_end})
        self._gate = Line(self._loop, near, lambda _, __: None, lambda: None)
        sockets = [os.dup(sock.fileno()) for sock in self._sockets]
        self._gate.send(encode(Listen(tuple(dict.fromkeys(map(str, self._config.dial))), self._log)), sockets)
        self._tell_keeper(Gate(), keeper_end.detach())

    def _spawn(self, role: Role, ends: dict[str, socket.socket]) -> None:
        """Start a role; its ends of lines are closed here."""
        # What a zygote has as stderr its workers have: tasks do not write into our log.
        stderr = subprocess.DEVNULL if role is ZYGOTE else _STDERR
        try:
            process = spawn(role, {name: end.fileno() for name, end in ends.items()}, stderr=stderr)
        finally:
            for end in ends.values():
                end.close()
        pidfd = os.pidfd_open(process.pid)
        self._children[pidfd] = role, process
        self._loop.add_reader(pidfd, self._ended, pidfd)

    def _tell_keeper(self, order: ToKeeper, *descriptors: int) -> None:
        if self._keeper is not None:
            self._keeper.send(encode(order), descriptors)

    def _told(self, packet: bytes, descriptors: list[int]) -> None:
        match decode_from_keeper(packet):
            case Up():
                if not self._is_up:
                    self._is_up = True
                    self._ready()
                self._notifier.ready(self._status)
            case Reloaded(problem):
                self._notifier.ready(f"not reloaded: {problem}" if problem else self._status)
            case Down(code, text):
                self._fail(error_of(code)(text))
            case Zygote() if len(descriptors) == 1:
                self._spawn(ZYGOTE, {"control": socket.socket(fileno=descriptors.pop())})
            case _:
                pass
        for fd in descriptors:
            os.close(fd)

    def _fail(self, error: Exception) -> None:
        if not self._finished.done():
            self._finished.set_exception(error)

    def _ended(self, pidfd: int) -> None:
        self._loop.remove_reader(pidfd)
        os.close(pidfd)
        role, process = self._children.pop(pidfd)
        status = process.wait()
        if role is ZYGOTE:  # it may end in the same moment as its keeper, and is nobody's to sweep after then
            control_groups.sweep(process.pid)
        if self._finished.done():
            return
        if role is KEEPER and status == 0:
            self.halt()
            return
        if role is ZYGOTE and status == 0:
            return  # nobody needed it any more
        if role is KEEPER:  # the others may have ended because it is about to
            _log_again(role, status)
        if self._loop.time() - self._started_s > _STEADY_S:
            self._failures = 0
        self._failures += 1
        if self._failures > _TRIES:
            self._fail(KernelError(f"the {role.name} ended {self._failures} times in a row; the server was ended"))
        elif role is KEEPER:
            self._end_all()
            self._loop.call_later(_PAUSE_S, self._again, self._start_all)
        elif role is self._gate_role:
            self._started_s = self._loop.time()
            self._loop.call_later(_PAUSE_S, self._again, partial(self._start_gate_of, self._keeper, status))
        else:
            self._loop.call_later(_PAUSE_S, self._again, partial(_log_again, role, status))

    def _again(self, start: Callable[[], None]) -> None:
        if not self._finished.done():
            start()

    def _start_gate_of(self, keeper: Line | None, status: int) -> None:
        if keeper is self._keeper:  # else all were started anew meanwhile: a gate ends with its keeper
            _log_again(GATE, status)
            self._start_gate()

    def _end_all(self) -> None:
        """Kill every role; they are gone when this returns, and the kernel has ended the workers."""
        for line in (self._keeper, self._gate):
            if line is not None:
                line.close()
        self._keeper = self._gate = None
        for pidfd, (role, process) in self._children.items():
            self._loop.remove_reader(pidfd)
            os.close(pidfd)
            if role is not ZYGOTE:
                process.kill()
        for role, process in self._children.values():
            if role is ZYGOTE:  # it ends what workers started, now that it has no keeper
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_ENDS_WITHIN_S)
                process.kill()
            process.wait()
            if role is ZYGOTE:
                control_groups.sweep(process.pid)
        self._children.clear()


def _log_again(role: Role, status: int) -> None:
    _log.error("the %s ended (%s); it is started again", role.name, _told_by(status))


def _told_by(status: int) -> str:
    if status >= 0:
        return f"status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"


async def supervise(
    config: ServerConfig,
    given: Sequence[socket.socket],
    listen: Sequence[Address],
    ready: Callable[[list[Address]], None],
    notifier: Notifier,
    log: Log,
    lifeline: int | None = None,
) -> None:
    """Run a server until it is ended, by its signals, an order or the end of file of `lifeline`.

    Args:
        given: listening sockets that somebody else opened, and removes.

    Raises:
        SecfarmError: it does not start; nothing was served.
    """
    begin(capable=True)  # it starts zygotes
    try:
        control_groups.occupy()
    except OSError as error:
        _log.warning("no control groups for workers: %s (%s)", error.strerror, error.filename)
    loop = asyncio.get_running_loop()
    own = open_sockets(listen)
    sockets = [*given, *own]
    opened = [local_address(sock) for sock in sockets]
    paths = [Path(sock.getsockname()) for sock in own if sock.family == socket.AF_UNIX]
    try:
        supervisor = Supervisor(config, sockets, lambda: ready(opened), notifier, log)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, supervisor.drain)
        loop.add_signal_handler(signal.SIGHUP, supervisor.reload)
        if lifeline is not None:
            loop.add_reader(lifeline, supervisor.halt)
        await supervisor.run()
    finally:
        for sock in sockets:
            sock.close()
        for path in paths:
            with contextlib.suppress(OSError):
                path.unlink()
