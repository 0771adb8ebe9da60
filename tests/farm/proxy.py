"""A TCP relay in the test's own process that cuts what goes through it, at points that the test names."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, Final, Self

WAIT_S: Final = 60.0  # a bound for what should take milliseconds, on a machine that does other things too
_PIECE_BYTES: Final = 64 << 10


@dataclass
class Line:
    """One connection through the relay."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    pumps: list[asyncio.Task[None]] = field(default_factory=list)


class Proxy:
    """Listens on `address` and relays to `upstream`. A context manager.

    Attributes:
        cuts: what the next connections are cut after, one pair each: bytes from the client, bytes from the server;
            None never cuts that way, and a connection for which there is no pair is not cut.
        count: connections so far.
    """

    def __init__(
        self, upstream: str, cuts: list[tuple[int | None, int | None]] | None = None, *, port: int = 0
    ) -> None:
        self._upstream = upstream
        self.cuts = deque(cuts or [])
        self.count = 0
        self._lines: list[Line] = []
        self._writers: list[asyncio.StreamWriter] = []  # all that there ever were
        self._relays: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy")
        self._thread.start()
        self._server = self._run(asyncio.start_server(self._connected, "127.0.0.1", port))
        self.address = "{}:{}".format(*self._server.sockets[0].getsockname())

    def _run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(WAIT_S)

    def _connected(self, client_reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        self._writers.append(client)  # here, for a task may be cancelled before its first step
        relay = self._loop.create_task(self._relay(client_reader, client))
        self._relays.add(relay)
        relay.add_done_callback(self._relays.discard)

    async def _relay(self, client_reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        self.count += 1
        up, down = self.cuts.popleft() if self.cuts else (None, None)
        try:
            if self._upstream.startswith("unix:"):
                server_reader, server = await asyncio.open_unix_connection(self._upstream.removeprefix("unix:"))
            else:
                host, _, port = self._upstream.rpartition(":")
                server_reader, server = await asyncio.open_connection(host, int(port))
        except OSError:
            client.transport.abort()
            return
        self._writers.append(server)
        line = Line(client, server)
        self._lines.append(line)
        line.pumps = [
            self._loop.create_task(self._pump(line, client_reader, server, up)),
            self._loop.create_task(self._pump(line, server_reader, client, down)),
        ]

    async def _pump(
        self, line: Line, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, left: int | None
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_PIECE_BYTES if left is None else min(left, _PIECE_BYTES)):
                writer.write(data)
                await writer.drain()
                if left is not None:
                    left -= len(data)
                    if left <= 0:
                        break
        for end in (line.client, line.server):
            end.transport.abort()

    def cut(self, *, only_client: bool = False) -> None:
        """Break every connection; `only_client` leaves the server believing that its ends still stand."""

        async def cut() -> list[asyncio.StreamWriter]:
            kept = []
            for line in self._lines:
                for pump in line.pumps:
                    pump.cancel()
                line.client.transport.abort()
                if only_client:
                    kept.append(line.server)
                else:
                    line.server.transport.abort()
            self._lines.clear()
            return kept

        self._kept = self._run(cut())

    def cut_the_rest(self) -> None:
        """Break what `cut(only_client=True)` left standing."""

        async def cut() -> None:
            for writer in self._kept:
                writer.transport.abort()

        self._run(cut())

    def close(self) -> None:
        """Cut everything and stop listening."""
        self.cut()

        async def end() -> None:
            self._server.close()
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for writer in self._writers:
                writer.transport.abort()
            await asyncio.sleep(0)

        self._run(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
