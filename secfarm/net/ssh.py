"""ssh as a way: the user's own `ssh`, started with a list of words, whose standard streams carry a connection.

ssh is trusted with nothing: what goes over its streams is TLS with a proof of both names, as over any socket. Words for
the far side's shell are quoted; nothing passes a shell here. What ssh says is a peer's text: escaped and cut.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
import socket
import subprocess
from typing import TYPE_CHECKING, Final

from secfarm.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from secfarm.wire.address import SshAddress

_END_S: Final = 5.0  # what was said last is on its way; then ssh is ended
_OBITUARY_S: Final = 2.0  # between the end of the stream and that of ssh
_WORDS_BYTES: Final = 2048  # of ssh's stderr: the last, which says why
# No terminal, no agent and no display at the far end: nothing of ours is lent to a server.
_ALWAYS: Final = ("-T", "-a", "-x")


def ssh_words(ssh: Sequence[str], host: str, user: str, port: int | None, command: Sequence[str]) -> list[str]:
    """Return the words that start `command` on `host` with the program and options `ssh`."""
    where = [*(("-l", user) if user else ()), *(("-p", str(port)) if port is not None else ())]
    return [*ssh, *_ALWAYS, *where, "--", host, shlex.join(command)]


def ssh_said(stderr: bytes) -> str:
    """Return the end of what ssh wrote, for a message: one line of printable characters."""
    text = stderr[-_WORDS_BYTES:].decode("utf-8", "replace")
    line = "; ".join(filter(None, map(str.strip, text.splitlines())))
    return ascii(line)[1:-1] or "it said nothing"


class SshLine:
    """A running ssh whose standard input and output are the other end of `socket`.

    Attributes:
        socket: ours, for a transport to take over.
    """

    def __init__(self, address: SshAddress) -> None:
        """Start ssh.

        Raises:
            ConfigError: it cannot be started.
        """
        self._loop = asyncio.get_running_loop()
        # There is no terminal to ask on. Options of the user's stand before, and ssh keeps the first that it reads.
        ssh = (*address.ssh, "-o", "BatchMode=yes")
        words = ssh_words(ssh, address.host, address.user, address.port, address.command)
        self.socket, theirs = socket.socketpair()
        self._stderr, stderr = os.pipe()
        try:
            self._process = subprocess.Popen(
                words, stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=stderr, start_new_session=True
            )
        except OSError as error:
            self.socket.close()
            os.close(self._stderr)
            raise ConfigError(f"{address}: {words[0]!a} cannot be started ({error}); nothing was dialled") from error
        finally:
            theirs.close()
            os.close(stderr)
        self._said = b""
        self._ended: asyncio.Future[int] = self._loop.create_future()
        self._killing: asyncio.TimerHandle | None = None
        self._pidfd = os.pidfd_open(self._process.pid)
        self._loop.add_reader(self._pidfd, self._reap)
        self._loop.add_reader(self._stderr, self._hear)

    def end(self) -> None:
        """Give ssh a moment to see that the stream has ended, then end it."""
        if self._killing is None and not self._ended.done():
            self._killing = self._loop.call_later(_END_S, self._process.send_signal, signal.SIGTERM)

    async def failure(self, error: Exception) -> Exception:
        """Return what to raise for `error`: if ssh has failed, that is why."""
        self.end()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_OBITUARY_S):
                if status := await asyncio.shield(self._ended):
                    return ConnectionError(f"ssh ended with status {status}: {ssh_said(self._said)}")
        return error

    def _hear(self) -> None:
        data = os.read(self._stderr, 1 << 16)
        self._said = (self._said + data)[-_WORDS_BYTES:]
        if not data:
            self._loop.remove_reader(self._stderr)

    def _reap(self) -> None:
        """Hear the rest of what ssh said, now that it is gone, and let go of it."""
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._loop.remove_reader(self._stderr)
        os.set_blocking(self._stderr, False)
        with contextlib.suppress(BlockingIOError):
            self._hear()
        os.close(self._stderr)
        if self._killing is not None:
            self._killing.cancel()
        self._ended.set_result(self._process.wait())
