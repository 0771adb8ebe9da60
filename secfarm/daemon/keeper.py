"""The keeper: the process that holds keys, secrets, policy and audit. It proves who is on the line, verifies, decides.

It has no socket but those to the other roles: the network is read by the gate, tasks run in the zygote's workers.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import resource
import socket
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from secfarm.daemon.log import log_to
from secfarm.daemon.make import loop_factory, make_server
from secfarm.daemon.passage import (
    Down,
    Drain,
    FromKeeper,
    Gate,
    Halt,
    Keep,
    Reload,
    Reloaded,
    ToKeeper,
    Up,
    Zygote,
    decode_to_keeper,
    encode,
)
from secfarm.daemon.roles import KEEPER, keeper_files
from secfarm.disk.config import KerberosConfig, load_server_config
from secfarm.errors import ConfigError, SecfarmError
from secfarm.net.line import Line
from secfarm.run.launch import Launched
from secfarm.wire.address import parse_address

if TYPE_CHECKING:
    from collections.abc import Callable

    from secfarm.daemon.server import Server
    from secfarm.daemon.ways import GateWays
    from secfarm.disk.credentials import ServerCredentials

ROLE: Final = KEEPER
_log: Final = logging.getLogger("secfarm")


class Keeper:
    """The state of this process."""

    def __init__(self, supervisor: socket.socket) -> None:
        self._loop = asyncio.get_running_loop()
        self.ended = asyncio.Event()
        self._server: Server | None = None
        self._ways: GateWays | None = None
        self._gates: list[socket.socket] = []  # that came before the server was ready for them
        self._starting: asyncio.Task[None] | None = None
        self._line = Line(self._loop, supervisor, self._order, self._alone)

    def _alone(self) -> None:
        """The supervisor is gone: nobody could end us later."""
        if self._server is not None:
            self._server.stop()
        self.ended.set()

    def _tell(self, message: FromKeeper, *descriptors: int) -> None:
        self._line.send(encode(message), descriptors)

    def _order(self, packet: bytes, descriptors: list[int]) -> None:
        order: ToKeeper = decode_to_keeper(packet)
        match order:
            case Keep():
                self._starting = self._loop.create_task(self._start(order))
            case Gate() if len(descriptors) == 1:
                end = socket.socket(fileno=descriptors.pop())
                end.settimeout(0)
                self._gates.append(end)
                self._attach()
            case Drain() | Halt() if self._server is None:
                self.ended.set()  # nothing was accepted yet
            case Drain() if self._server is not None:
                self._server.drain()
            case Halt() if self._server is not None:
                self._server.stop()
            case Reload() if self._server is not None:
                self._tell(Reloaded(self._server.reload()))
            case _:
                pass
        for fd in descriptors:
            os.close(fd)

    async def _start(self, keep: Keep) -> None:
        log_to(sys.stderr, ROLE.name, keep.log)
        try:
            dial = tuple(map(parse_address, keep.dial))
            config = replace(load_server_config(keep.file, keep.environ, dial=dial), state=Path(keep.state))
            os.environ.update(keep.environ)
            if keep.keytab:
                kerberos = replace(config.kerberos or KerberosConfig(), keytab=Path(keep.keytab))
                config = replace(config, kerberos=kerberos)
            self._server = make_server(config, None, None, launch=self._launch)
            self._server.pid = os.getppid()
            self._server.read_again = partial(_read_again, self._server.read_again)
            # No peer was heard so far, and no gate is attached.
            ROLE.settle(keeper_files(config, Path(keep.state), os.environ))
            self._ways = await self._server.start_behind(keep.listen, keep.dial)
        except SecfarmError as error:
            self._tell(Down(error.code, str(error)))
            return
        except Exception as error:  # noqa: BLE001 - ours: it is told before this process ends
            _log.exception("an error inside secfarm: the server does not start")
            self._tell(Down("error", f"{type(error).__name__}: {error}"))
            return
        self._attach()
        try:
            await self._server.over()
        except SecfarmError as error:
            self._tell(Down(error.code, str(error)))  # the supervisor ends all roles, this one too
            return
        self.ended.set()

    def _attach(self) -> None:
        if self._ways is not None:
            for end in self._gates:
                self._ways.attach(end, self._up)
            self._gates.clear()

    def _up(self) -> None:
        gc.freeze()  # what lives as long as the process need not be looked at again by the collector
        self._tell(Up())

    def _launch(self) -> Launched:
        """Have a zygote started; it is the supervisor's child."""
        control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._tell(Zygote(), theirs.detach())
        return Launched(control, None)


def _read_again(read: Callable[[], ServerCredentials]) -> ServerCredentials:
    """Read the files that were named when this process was bound.

    Raises:
        SecfarmError: one is wrong, or lies where this process may not read any more.
    """
    try:
        return read()
    except SecfarmError as error:
        if isinstance(error.__cause__, PermissionError):
            raise ConfigError(
                f"{error}. If its modes are right: a running server reads only the directories that its files had when "
                "it started; restart the server"
            ) from error
        raise


async def _serve(supervisor: socket.socket) -> None:
    await Keeper(supervisor).ended.wait()


def main(supervisor: int) -> None:
    """Keep until the server has ended or the supervisor is gone."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # one descriptor a connection, five a worker
    end = socket.socket(fileno=supervisor)
    end.settimeout(0)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_serve(end))
