"""Servers on this machine: real daemons with throw-away keys, and the two questions one asks of any server.

What starts here verifies, checks policy and confines its workers like any other server; only its keys live no longer
than it does. It ends with its owner: each daemon watches a pipe that closes when this process is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from secfarm.auth.ed25519 import Ed25519AuthClient
from secfarm.disk.credentials import client_credentials
from secfarm.disk.keyfile import create_signing_key
from secfarm.errors import ConnectionLostError, KernelCreationError
from secfarm.farm.connect import check_limit
from secfarm.farm.dispatch import Dispatch
from secfarm.farm.kernel import Kernel
from secfarm.farm.loop import background_loop, run_in_background
from secfarm.sign.keys import SigningKey
from secfarm.task.payload import EndServer, Status
from secfarm.trust.store import KnownServer, KnownServers
from secfarm.wire.address import Address, parse_address

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping
    from typing import Self, TypeVar

    from secfarm.auth.base import Auth
    from secfarm.farm.link import Link
    from secfarm.sign.keys import PublicKey

    T = TypeVar("T")

_START_S: Final = 30.0
_END_S: Final = 5.0
_PRINCIPAL: Final = "local"
_POLICY: Final = f"""\
[[grant]]
principals = ["{_PRINCIPAL}"]
may = ["run", "call", "broadcast", "kill", "admin"]
names = ["*"]
"""


@dataclass(frozen=True, slots=True)
class _Settings:
    """What the daemons of one `LocalServers` have in common."""

    workers: int | None
    confinement: str
    policy: str


def _confine_table(confine: Mapping[str, object]) -> str:
    """Return `[grant.confine]` in TOML; strings, numbers, booleans and lists of them are written as in JSON."""
    pairs = [(name, json.dumps(value, ensure_ascii=False, default=os.fspath)) for name, value in confine.items()]
    return "".join(["[grant.confine]\n", *[f"{json.dumps(name)} = {value}\n" for name, value in pairs]])


class LocalServers:
    """Daemons on this machine. A context manager.

    Attributes:
        addresses: where they listen, in the order asked for.
        auth: what a `Kernel` needs to be let in.
        folder: their configuration, state and audit logs, one folder each; removed at the end.
    """

    def __init__(
        self,
        addresses: Iterable[str | tuple[str, int]],
        *,
        workers: int | None = None,
        confine: Mapping[str, object] | None = None,
        confinement: str = "full",
        folder: Path | None = None,
    ) -> None:
        """Start a daemon on each address; port 0 lets the system choose.

        Args:
            workers: of each; by default as many as there are cores.
            confine: what tasks are let out to, the policy's `[grant.confine]`, as `{"read": ["/data"], "network":
                True}`; by default nothing.
            confinement: the profile, as in config.toml; "container" where "full" is not to be had.
            folder: an empty one to use, and to remove at the end, instead of a new one.

        Raises:
            KernelCreationError: one does not start, or tasks cannot be confined so; those started before are ended.
            TypeError: `confine` holds what TOML cannot say.
        """
        wanted = [parse_address(address, listening=True) for address in addresses]
        settings = _Settings(workers, confinement, _POLICY + _confine_table(confine or {}))
        self.folder = folder or _new_folder()
        self.addresses: list[str] = []
        self._owner = os.getpid()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._lifeline_read, self._lifeline = os.pipe()
        client = SigningKey.from_seed(os.urandom(32))
        entries: list[KnownServer] = []
        try:
            answers = [self._start(self.folder / f"server{i}", wanted[i], client, settings) for i in range(len(wanted))]
            for public, answer in answers:
                address = self._wait(answer)
                self.addresses.append(address)
                entries.append(KnownServer((address,), public, address))
        except BaseException:
            self.close()
            raise
        self.auth = Ed25519AuthClient(client, KnownServers(entries))

    def _start(self, folder: Path, address: Address, client: SigningKey, settings: _Settings) -> tuple[PublicKey, int]:
        folder.mkdir(mode=0o700)
        key = create_signing_key(folder / "key")
        (folder / "allowed_signers").write_text(f"{_PRINCIPAL} {client.public.openssh()}\n", encoding="utf-8")
        (folder / "policy.toml").write_text(settings.policy, encoding="utf-8")
        config = [
            f"listen = [{json.dumps(str(address))}]",
            'key = "key"',
            'allowed_signers = "allowed_signers"',
            'policy = "policy.toml"',
            'state = "state"',
            'audit = "audit.jsonl"',
            f"name = {json.dumps(folder.name)}",
            f"confinement = {json.dumps(settings.confinement)}",
            *([] if settings.workers is None else [f"workers = {settings.workers}"]),
        ]
        path = folder / "config.toml"
        path.write_text("\n".join(config) + "\n", encoding="utf-8")
        for file in ("allowed_signers", "policy.toml", "config.toml"):
            (folder / file).chmod(0o600)
        answer_read, answer = os.pipe()
        self._processes.append(
            subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "secfarm.daemon.alone",
                    str(path),
                    str(self._lifeline_read),
                    str(answer),
                    "throw-away",
                ],
                # Where this process found secfarm, the daemon finds it too.
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(self._lifeline_read, answer),
                start_new_session=True,
            )
        )
        os.close(answer)
        return key.public, answer_read

    def _wait(self, answer: int) -> str:
        with os.fdopen(answer, encoding="utf-8") as pipe:
            readable, _, _ = select.select([pipe], [], [], _START_S)
            line = pipe.readline() if readable else ""
        if not line:
            raise KernelCreationError("a local server ended, or hung, before it was ready; its words are on stderr")
        told = json.loads(line)
        if "error" in told:
            raise KernelCreationError(f"a local server did not start: {told['error']}")
        return str(told["addresses"][0])

    def pids(self) -> list[int]:
        """Process ids of the daemons."""
        return [process.pid for process in self._processes]

    def close(self) -> None:
        """End the daemons and remove their folder. Twice is no error."""
        if self._lifeline < 0 or self._owner != os.getpid():  # a forked child leaves the parent's alone
            return
        os.close(self._lifeline)
        os.close(self._lifeline_read)
        self._lifeline = -1
        for process in self._processes:
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __repr__(self) -> str:
        return f"<secfarm.LocalServers on {', '.join(self.addresses)}{', closed' * (self._lifeline < 0)}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def start_local_servers(
    addresses: Iterable[str | tuple[str, int]],
    *,
    workers: int | None = None,
    confine: Mapping[str, object] | None = None,
    confinement: str = "full",
) -> LocalServers:
    """Start real daemons with throw-away keys on this machine; `.addresses` and `.auth` are for a `Kernel`.

    Args and errors are those of `LocalServers`.
    """
    return LocalServers(addresses, workers=workers, confine=confine, confinement=confinement)


def local_kernel(
    workers: int | None = None, *, confine: Mapping[str, object] | None = None, confinement: str = "full"
) -> Kernel:
    """Return a kernel on a daemon of its own, on a private unix socket, which ends when the kernel is shut down.

    Its tasks are confined: they read Python and its libraries, write a scratch of their own, and reach nothing else.

    Args:
        workers: how many; by default as many as there are cores.
        confine: what tasks are let out to, the policy's `[grant.confine]`, as `{"read": ["/data"], "network": True}`.
        confinement: the profile; "container" where "full" is not to be had.

    Raises:
        KernelCreationError: the daemon does not start, or tasks cannot be confined so.
        TypeError: `confine` holds what TOML cannot say.
    """
    folder = _new_folder()
    try:
        servers = LocalServers(
            [f"unix:{folder}/sock"], workers=workers, confine=confine, confinement=confinement, folder=folder
        )
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    try:
        kernel = Kernel(servers.addresses, auth=servers.auth, name="local", connect_timeout_s=_START_S)
    except BaseException:
        servers.close()
        raise
    kernel.on_close(servers.close)
    return kernel


def _new_folder() -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix="secfarm-"))
    except OSError as error:
        raise KernelCreationError(f"local servers keep their keys in a temporary directory: {error}") from error


# --- questions ----------------------------------------------------------------------------------------------------


def ping(address: str | tuple[str, int], *, timeout_s: float | None = 3.0, auth: Auth | None = None) -> bool:
    """Return whether a server answers at `address`, to us: authenticated, as everything is.

    Tries again until `timeout_s`; None: for ever.

    Raises:
        AuthError: it answers, but one of the two does not believe the other.
        ValueError: the address is malformed, or `timeout_s` no time.
    """
    try:
        _ask(address, auth, timeout_s, lambda link: link.ping())
    except TimeoutError:
        return False
    return True


def end_server(address: str | tuple[str, int], *, auth: Auth | None = None, timeout_s: float | None = 10.0) -> None:
    """Let the server take no new connections and end when those in progress have; needs the `admin` grant.

    Raises:
        TaskRefusedError: the policy does not let us.
        AuthError: one of the two does not believe the other.
        ConnectionLostError: it does not answer.
    """
    try:
        _ask(address, auth, timeout_s, lambda link: link.order(EndServer, bool))
    except TimeoutError as error:
        raise ConnectionLostError(f"{address} does not answer; it was not ended") from error


def server_status(
    address: str | tuple[str, int], *, auth: Auth | None = None, timeout_s: float | None = 10.0
) -> dict[str, object]:
    """Return what the server says of its workers, sessions and queues; needs `admin`. Errors as `end_server`."""
    try:
        answer = _ask(address, auth, timeout_s, lambda link: link.order(Status, dict[str, object]))
    except TimeoutError as error:
        raise ConnectionLostError(f"{address} does not answer") from error
    return cast("dict[str, object]", answer)


def _ask(
    address: str | tuple[str, int], auth: Auth | None, timeout_s: float | None, question: Callable[[Link], Awaitable[T]]
) -> T:
    credentials = client_credentials(auth, None, os.environ)
    addresses = credentials.routed([parse_address(address)])
    check_limit("timeout_s", timeout_s)

    async def asking() -> T:
        dispatch = Dispatch(background_loop(), at_most_once=True)
        await dispatch.open(addresses, credentials.auth, credentials.signer, "secfarm")
        (link,) = dispatch.links
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    await asyncio.shield(link.joined)
                    with contextlib.suppress(ConnectionLostError):  # it went away between joining and asking
                        return await question(link)
                    await asyncio.sleep(0)
        finally:
            await dispatch.close()

    return run_in_background(asking())
