"""The server as a process: from a configuration to a running server, and its signals.

The first SIGTERM (or SIGINT) drains: no new connections and no new work, what was accepted finishes. The second ends
the server at once.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from typing import TYPE_CHECKING

from secfarm.daemon.log import Log
from secfarm.daemon.make import audit_path, loop_factory, make_server
from secfarm.daemon.supervisor import supervise
from secfarm.disk.auditlog import open_free_log
from secfarm.disk.config import load_server_config
from secfarm.errors import ConfigError
from secfarm.limits import DEFAULT_PORT
from secfarm.net.service import Notifier, given_sockets
from secfarm.wire.address import parse_address

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence
    from typing import Self

    from secfarm.auth.base import Auth
    from secfarm.daemon.server import Server
    from secfarm.disk.config import ServerConfig
    from secfarm.wire.address import Address

_log = logging.getLogger("secfarm")
_LOG = Log()


def serve(
    config: ServerConfig,
    *,
    listen: Sequence[Address] = (),
    ready: Callable[[list[Address]], None] = lambda _: None,
    lifeline: int | None = None,
    log: Log = _LOG,
) -> None:
    """Run a server, each of its roles a process of its own, until it is ended.

    Sockets that systemd gives to this process are served instead of the configuration's addresses.

    Args:
        config: of a file; the files that it names are read now.
        listen: instead of the configuration's addresses.
        ready: told the addresses once connections are accepted.
        lifeline: a descriptor at whose end of file the server ends at once: its owner is gone.
        log: how the roles log, on standard error.

    Raises:
        SecfarmError: a key, trust file, address or worker does not allow a start; nothing was served.
    """
    notifier, given = Notifier(os.environ), given_sockets(os.environ, os.getpid())
    if given and listen:
        raise ConfigError("sockets are given by LISTEN_FDS, and addresses to listen on as well; nothing was started")
    default = [] if config.dial else [parse_address(f"127.0.0.1:{DEFAULT_PORT}")]
    addresses = [] if given else listen or config.listen or default
    with asyncio.Runner() as runner:
        runner.run(supervise(config, given, addresses, ready, notifier, log, lifeline))


def serve_line(config: ServerConfig, line: socket.socket) -> None:
    """Run a server in this process for the one connection that `line` is, and end with it; nothing listens.

    Other servers of the same configuration may run: it writes an audit log of its own beside the configuration's.

    Raises:
        SecfarmError: as `serve`.
    """
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_serve_line(config, line))


async def _serve_line(config: ServerConfig, line: socket.socket) -> None:
    server = make_server(config, None, None, open_free_log(audit_path(config)))
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, Ender(server))
    await server.start(())
    await server.serve_only(line)
    await server.over()


class Ender:
    """What a signal does: drain at first, then stop."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._again = False

    def __call__(self) -> None:
        """Do it."""
        if self._again:
            self._server.stop()
        else:
            self._again = True
            _log.info("draining; a second signal ends the server at once")
            self._server.drain()


class BackgroundServer:
    """A server in a thread of this process. A context manager.

    Attributes:
        addresses: where it listens.
    """

    def __init__(self, config: ServerConfig, listen: Sequence[Address], auth: Auth | None, name: str | None) -> None:
        """Start it, and return when connections are accepted.

        Raises:
            SecfarmError: it does not start.
        """
        self.addresses: list[Address] = []
        self._loop = loop_factory()()
        self._server: Server | None = None
        self._error: BaseException | None = None
        self._started = threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(config, listen, auth, name), name="secfarm server", daemon=True
        )
        self._thread.start()
        self._started.wait()
        if self._error is not None:
            self._thread.join()
            raise self._error

    def _run(self, config: ServerConfig, listen: Sequence[Address], auth: Auth | None, name: str | None) -> None:
        try:
            # Which lets all that was begun come to its end: a zygote that is not ready yet is there to be reaped.
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._main(config, listen, auth, name))
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits in __init__
            self._error = error
        finally:
            self._started.set()

    async def _main(self, config: ServerConfig, listen: Sequence[Address], auth: Auth | None, name: str | None) -> None:
        server = self._server = make_server(config, auth, name)
        self.addresses = await server.start(listen, config.dial)
        self._started.set()
        await server.over()

    def wait(self) -> None:
        """Return when the server has ended; whatever interrupts that ends it.

        Raises:
            SecfarmError: it ended because it could not go on.
        """
        with self:
            self._thread.join()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """End the server at once and wait until it has."""
        if self._server is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._server.stop)
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def start_server(
    host: str = "127.0.0.1",
    port: int = DEFAULT_PORT,
    *,
    background: bool = False,
    name: str | None = None,
    auth: Auth | None = None,
    config: ServerConfig | str | os.PathLike[str] | None = None,
) -> BackgroundServer | None:
    """Run a server on `host` and `port` with the keys, trust and policy of `config` (lfarm's start-server).

    Args:
        background: return at once with a handle, the server running in a thread; else return when it has ended.
        auth: instead of the mechanisms that the configuration's keys and secrets give.
        config: path or loaded; None: SECFARM_CONFIG or /etc/secfarm/config.toml.

    Raises:
        SecfarmError: it does not start; nothing was served.
    """
    from secfarm.disk.config import ServerConfig as Loaded

    loaded = config if isinstance(config, Loaded) else load_server_config(config, os.environ)
    server = BackgroundServer(loaded, [parse_address((host, port), listening=True)], auth, name)
    if background:
        return server
    server.wait()
    return None
