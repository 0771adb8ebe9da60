"""The server as a process: from a configuration to a running server, and its signals.

The first SIGTERM (or SIGINT) drains: no new connections and no new work, what was accepted finishes. The second ends
the server at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import os
import shutil
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, cast

from secfarm.daemon.server import Server
from secfarm.disk.auditlog import AuditLog, SourceArchive, open_free_log
from secfarm.disk.config import load_server_config, state_home
from secfarm.disk.credentials import server_credentials
from secfarm.errors import SecfarmError
from secfarm.limits import DEFAULT_PORT
from secfarm.wire.address import parse_address

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Self

    from secfarm.auth.base import Auth
    from secfarm.disk.config import ServerConfig
    from secfarm.wire.address import Address

_log = logging.getLogger("secfarm")


def serve(
    config: ServerConfig,
    *,
    listen: Sequence[Address] = (),
    ready: Callable[[list[Address]], None] = lambda _: None,
    lifeline: int | None = None,
) -> None:
    """Run a server in this process until it is ended.

    Args:
        config: loaded; its files are read now.
        listen: instead of the configuration's addresses.
        ready: told the addresses once connections are accepted.
        lifeline: a descriptor at whose end of file the server ends at once: its owner is gone.

    Raises:
        SecfarmError: a key, trust file, address or worker does not allow a start; nothing was served.
    """
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_serve(config, listen, ready, lifeline))


async def _serve(
    config: ServerConfig, listen: Sequence[Address], ready: Callable[[list[Address]], None], lifeline: int | None
) -> None:
    server = _make(config, None, None)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _Ender(server))
    if lifeline is not None:
        loop.add_reader(lifeline, server.stop)
    addresses = await server.start(listen or config.listen or [parse_address(f"127.0.0.1:{DEFAULT_PORT}")])
    gc.freeze()  # what lives as long as the process need not be looked at again by the collector
    ready(addresses)
    await server.finished.wait()


def serve_line(config: ServerConfig, line: socket.socket) -> None:
    """Run a server in this process for the one connection that `line` is, and end with it; nothing listens.

    Other servers of the same configuration may run: it writes an audit log of its own beside the configuration's.

    Raises:
        SecfarmError: as `serve`.
    """
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_serve_line(config, line))


async def _serve_line(config: ServerConfig, line: socket.socket) -> None:
    server = _make(config, None, None, open_free_log(_audit_path(config)))
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, _Ender(server))
    await server.start(())
    await server.serve_only(line)
    await server.finished.wait()


def _audit_path(config: ServerConfig) -> Path:
    return config.audit or (config.state or state_home(os.environ)) / "audit.jsonl"


def _make(config: ServerConfig, auth: Auth | None, name: str | None, audit: AuditLog | None = None) -> Server:
    credentials = server_credentials(config, auth)
    state = config.state or state_home(os.environ)
    return Server(
        name=name or config.name or socket.gethostname(),
        auths=credentials.auths,
        store=credentials.store,
        policy=credentials.policy,
        audit=audit or AuditLog(_audit_path(config)),
        archive=SourceArchive(state / "sources"),
        workers=config.workers or os.cpu_count() or 1,
    )


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return cast("Callable[[], asyncio.AbstractEventLoop]", uvloop.new_event_loop)


class _Ender:
    """What a signal does: drain at first, then stop."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._again = False

    def __call__(self) -> None:
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
        self._loop = _loop_factory()()
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
            self._loop.run_until_complete(self._main(config, listen, auth, name))
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits in __init__
            self._error = error
        finally:
            self._started.set()
            self._loop.close()

    async def _main(self, config: ServerConfig, listen: Sequence[Address], auth: Auth | None, name: str | None) -> None:
        server = self._server = _make(config, auth, name)
        self.addresses = await server.start(listen)
        self._started.set()
        await server.finished.wait()

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
    with server:
        server._thread.join()  # noqa: SLF001 - it is this module's
    return None


def main(arguments: Sequence[str]) -> int:
    """Serve for `farm/launcher.py`: configuration file, lifeline descriptor, descriptor for the answer.

    The answer is one JSON line: the addresses, or why there are none. With a fourth argument, `throw-away`, the
    configuration's folder is removed at the end, and the folder around it once that is empty: by then the owner may
    be gone.
    """
    path, lifeline, answer = arguments[0], int(arguments[1]), int(arguments[2])

    def tell(message: dict[str, object]) -> None:
        with os.fdopen(answer, "w", encoding="utf-8") as pipe:
            pipe.write(json.dumps(message) + "\n")

    try:
        serve(
            load_server_config(path, {}),
            ready=lambda addresses: tell({"addresses": [str(address) for address in addresses]}),
            lifeline=lifeline,
        )
    except SecfarmError as error:
        tell({"error": str(error)})
        return int(error.exit_status)
    finally:
        if arguments[3:] == ["throw-away"]:
            folder = Path(path).parent
            shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):
                folder.parent.rmdir()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
