"""Servers that others run: started on their machines over the user's own ssh, and ended, here or there, by asking.

ssh starts `secfarm serve --detach` with the configuration, keys and policy that stand there; nothing of ours is copied.
Then each server has to prove itself to us, as always. Idea: lfarm's start-remote-servers.
"""

from __future__ import annotations

import shlex
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from secfarm.errors import AuthError, KernelCreationError, SecfarmError
from secfarm.farm.launcher import end_server, ping
from secfarm.net.ssh import ssh_said, ssh_words
from secfarm.wire.address import TcpAddress, parse_address, parse_user

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from secfarm.auth.base import Auth

_START_S: Final = 60.0  # until ssh has returned
_ANSWER_S: Final = 10.0  # until a server that says that it listens has answered
_AT_ONCE: Final = 16
_SAID_BYTES: Final = 4096


def start_remote_servers(
    addresses: Iterable[str | tuple[str, int]],
    *,
    ssh: str = "ssh",
    ssh_options: Sequence[str] | str = (),
    ssh_user: str | None = None,
    command: Sequence[str] | str = "secfarm serve",
    auth: Auth | None = None,
) -> list[str]:
    """Start a server on each host over ssh; return the addresses once each has answered an authenticated ping.

    What runs there is `command --listen HOST:PORT --detach`, without our `--listen` if the command has one. It outlives
    ssh and us; `end_remote_servers` ends it.

    Args:
        addresses: where the servers are to listen; ssh connects to the same hosts.
        ssh: the program.
        ssh_options: its options, as words; text is split as a shell would, but nothing is expanded.
        ssh_user: the user there; None leaves it to ssh.
        command: words likewise; the shell there gets them quoted.
        auth: how we prove ourselves in the ping, by default as the configuration says.

    Raises:
        ValueError: an address or a word is malformed; nothing was started.
        KernelCreationError: with some hosts ssh or the server failed, or the server does not answer or believe us. The
            message names each and says why; the other servers run on.
    """
    wanted = [_tcp(address) for address in addresses]
    words, options = _words(command), _words(ssh_options)
    user = "" if ssh_user is None else parse_user(ssh_user)
    if not words:
        raise ValueError("the command has no words; nothing was started")
    listens = any(word.partition("=")[0] == "--listen" for word in words)
    commands = [
        ssh_words(
            [ssh, *options],
            address.host,
            user,
            None,
            [*words, *([] if listens else ["--listen", str(address)]), "--detach"],
        )
        for address in wanted
    ]
    with ThreadPoolExecutor(_AT_ONCE) as starters:
        outcomes = list(starters.map(_start, commands))
    failures = [f"{address}: {why}" for address, why in zip(wanted, outcomes, strict=True) if why]
    cause: AuthError | None = None
    for address, why in zip(wanted, outcomes, strict=True):
        try:
            if not why and not ping(str(address), timeout_s=_ANSWER_S, auth=auth):
                failures.append(f"{address}: it was started there and does not answer here within {_ANSWER_S:g} s")
        except AuthError as error:
            failures.append(f"{address}: it was started, but {error}")
            cause = error
    if failures:
        raise KernelCreationError(f"{len(failures)} of {len(wanted)} servers: {'; '.join(failures)}") from cause
    return [str(address) for address in wanted]


def end_remote_servers(addresses: Iterable[str | tuple[str, int]], *, auth: Auth | None = None) -> None:
    """Let each server end as `end_server` does; all are asked, whatever becomes of one.

    Raises:
        SecfarmError: that of the first that would not, with the others as notes.
    """
    errors: list[SecfarmError] = []
    for address in [parse_address(address) for address in addresses]:
        try:
            end_server(str(address), auth=auth)
        except SecfarmError as error:
            errors.append(error)
    if errors:
        for other in errors[1:]:
            errors[0].add_note(f"and another: {other}")
        raise errors[0]


end_local_servers = end_remote_servers


def _start(words: list[str]) -> str:
    """Run ssh and return why that failed, or nothing."""
    # A file, not a pipe: what ssh leaves in the background (ControlPersist) may hold it open.
    with tempfile.TemporaryFile() as said:
        try:
            done = subprocess.run(
                words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=said, timeout=_START_S, check=False
            )
        except OSError as error:
            return f"{words[0]!a} cannot be started ({error})"
        except subprocess.TimeoutExpired:
            return f"ssh did not return within {_START_S:g} s"
        if not done.returncode:
            return ""
        said.seek(max(0, said.tell() - _SAID_BYTES))
        return f"ssh ended with status {done.returncode}: {ssh_said(said.read())}"


def _tcp(address: str | tuple[str, int]) -> TcpAddress:
    parsed = parse_address(address)
    if isinstance(parsed, TcpAddress):
        return parsed
    raise ValueError(f"{address!r} is no address that a server far away could listen on; nothing was started")


def _words(given: Sequence[str] | str) -> list[str]:
    return shlex.split(given) if isinstance(given, str) else list(given)
