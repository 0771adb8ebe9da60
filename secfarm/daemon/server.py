"""The server: the door, the pool, the sessions, and what they share. Lives in one event loop.

Knows who is believed (the trust store and the policy are given to it, loaded) and how to end: draining lets what was
accepted finish. Reading files and signals is daemon/process.py's.
"""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import time
from functools import partial
from typing import TYPE_CHECKING, Final

from secfarm.auth.base import End, Side
from secfarm.auth.ed25519 import Ed25519AuthServer
from secfarm.auth.gss import GssAuthServer
from secfarm.daemon.session import ServerSession
from secfarm.daemon.status import status_of
from secfarm.daemon.tasks import Task, TaskTable
from secfarm.daemon.terms import terms_of_all
from secfarm.daemon.ways import GateWays, OwnWays, Ways
from secfarm.errors import AuthError, KernelError, SecfarmError, TrustFileError
from secfarm.limits import MAX_SESSIONS, MAX_SESSIONS_PER_PRINCIPAL
from secfarm.net.listen import local_address, open_sockets
from secfarm.net.pump import Connection
from secfarm.run.pool import WorkerPool
from secfarm.sign.keys import SigningKey
from secfarm.wire.messages import NONCE_BYTES
from secfarm.wire.session import Session

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable, Mapping

    from secfarm.auth.base import Auth, Peer, PeerCertificate
    from secfarm.auth.tls import TlsIdentity
    from secfarm.disk.auditlog import AuditLog, SourceArchive
    from secfarm.disk.credentials import ServerCredentials
    from secfarm.run.cradle import Cradle
    from secfarm.task.outcome import Done
    from secfarm.task.program import Program
    from secfarm.trust.audit import AuditValue
    from secfarm.trust.policy import Policy
    from secfarm.trust.store import TrustStore
    from secfarm.wire.address import Address

_EXPIRE_EVERY_S: Final = 10.0
_log: Final = logging.getLogger("secfarm")


class Server:
    """A server in this process. `start`, then `finished` is set when it has ended.

    Attributes:
        pid: of the process to send signals to.
        read_again: returns what the files say now.
    """

    def __init__(
        self,
        *,
        name: str,
        auths: Mapping[str, Auth],
        store: TrustStore,
        policy: Policy,
        read_again: Callable[[], ServerCredentials],
        audit: AuditLog,
        archive: SourceArchive,
        workers: int,
        cradle: Cradle,
        identity: TlsIdentity | None = None,
    ) -> None:
        self.name = name
        self.pid = os.getpid()
        self.identity = identity
        self.python_version = platform.python_version()
        self.store = store
        self.policy = policy
        self.tasks = TaskTable()
        self.sessions: set[ServerSession] = set()
        self.loop = asyncio.get_running_loop()
        self.clock = time.time
        self.started_s = self.clock()
        self.verified = 0
        self.refused = 0
        self.finished = asyncio.Event()
        self._auths = dict(auths)
        self.read_again = read_again
        self._audit = audit
        self._archive = archive
        self._unrecorded: OSError | None = None
        self._ways: Ways | None = None
        self.dial: list[str] = []
        self.pool = WorkerPool(self.loop, workers, cradle, terms_of_all(policy))
        self._ending = False
        self._expiring = self.loop.call_later(_EXPIRE_EVERY_S, self._expire)

    async def start(self, addresses: Iterable[Address], dial: Iterable[Address] = ()) -> list[Address]:
        """Listen, and return the addresses with the ports that the system chose.

        Args:
            addresses: where to listen.
            dial: hubs to dial in to, now and whenever the session with one has ended.

        Raises:
            ConfigError: an address cannot be listened on.
            KernelError: worker processes do not start.
        """
        try:
            sockets = open_sockets(addresses)
            try:
                await self.pool.ready()
            except BaseException:
                for sock in sockets:
                    sock.close()
                raise
        except BaseException:
            self.stop()
            raise
        opened = [local_address(sock) for sock in sockets]
        hubs = list(dict.fromkeys(dial))
        self._started(OwnWays(self, sockets, hubs), map(str, opened), map(str, hubs))
        return opened

    async def start_behind(self, listen: Iterable[str], dial: Iterable[str]) -> GateWays:
        """Start with a gate for all ways in, which the caller attaches; the addresses are for the record.

        Raises:
            KernelError: worker processes do not start.
        """
        try:
            await self.pool.ready()
        except BaseException:
            self.stop()
            raise
        ways = GateWays(self)
        self._started(ways, listen, dial)
        return ways

    async def serve_only(self, sock: socket.socket) -> None:
        """Serve the one connection that `sock` is, and end with it; for a server that listens nowhere."""
        if isinstance(self._ways, OwnWays):
            await self._ways.take(sock)
        self.end()

    def _started(self, ways: Ways, listen: Iterable[str], dial: Iterable[str]) -> None:
        self._ways = ways
        self.dial = list(dial)
        started: dict[str, AuditValue] = {"listen": list(listen), "workers": self.pool.size}
        started["confinement"] = self.pool.confinement
        self.audit("started", started | ({"dial": self.dial} if self.dial else {}))

    def principal_of(self, peer: Peer) -> str:
        """Return the name of a proven peer by which policy, audit and results know it."""
        kerberos = peer.mechanism == GssAuthServer.mechanism
        return self.policy.kerberos.principal_of(peer.principal) if kerberos else peer.principal

    # --- what sessions ask ----------------------------------------------------------------------------------------

    def admit(self, session: ServerSession) -> None:
        """Take a proven client in.

        Raises:
            AuthError: the server is full, or ending.
        """
        own = sum(1 for other in self.sessions if other.principal == session.principal)
        if len(self.sessions) >= MAX_SESSIONS or own >= MAX_SESSIONS_PER_PRINCIPAL or self._ending:
            reason = f"{own} of {len(self.sessions)} sessions are its own, or the server is ending; it was not let in"
            self.audit("turned-away", {"source": session.principal, "reason": reason})
            raise AuthError(reason)
        self.sessions.add(session)

    @property
    def key(self) -> SigningKey | None:
        """What signs receipts; a server that knows its clients by secrets alone has none."""
        keys = [auth.key for auth in self._auths.values() if isinstance(auth, Ed25519AuthServer)]
        return next((key for key in keys if isinstance(key, SigningKey)), None)

    def audit(self, event: str, fields: Mapping[str, AuditValue]) -> None:
        """Write one record. When that fails the server ends: what goes unrecorded must not go on."""
        if self._unrecorded is not None:
            return
        try:
            self._audit.append({"event": event, **fields}, self.clock())
        except OSError as error:
            self._unrecorded = error
            _log.error("the audit log cannot be written (%s): the server takes no more work and ends", error)
            self.loop.call_soon(self.drain)

    def record(self, fields: Mapping[str, AuditValue], programs: Iterable[Program]) -> None:
        """Write down that a batch was accepted, and keep the texts that are new.

        Raises:
            KernelError: that cannot be written; nothing of the batch may run.
        """
        try:
            for program in programs:
                self._archive.keep(program.text)
        except OSError as error:
            raise KernelError(f"the source archive cannot be written ({error}); the batch was not run") from error
        self.audit("accepted", fields)
        if self._unrecorded is not None:
            raise KernelError(f"the audit log cannot be written ({self._unrecorded}); the batch was not run")

    def finish(self, task: Task, done: Done) -> None:
        """A task is over: whoever is there for it hears it, once."""
        if task.done is not None:
            return
        self.tasks.finished(task, done)
        if task.session is not None:
            task.session.finished(task, done)

    def reload(self) -> str:
        """Read trust files, policy and keys again; what they no longer allow ends.

        Returns:
            "", or what is wrong with one of them; nothing has changed then.
        """
        try:
            credentials = self.read_again()
        except SecfarmError as error:
            _log.error("nothing was reloaded: %s", error)
            self.audit("not-reloaded", {"reason": str(error)})
            return str(error)
        self._auths = dict(credentials.auths)
        self.store, self.policy = credentials.store, credentials.policy
        self.pool.expect(terms_of_all(self.policy))
        _log.info("trust files, policy and keys were read again")
        self.audit("reloaded", {"grants": len(self.policy.grants)})
        for session in list(self.sessions):
            session.judge_again()
        return ""

    def status(self) -> dict[str, object]:
        """Workers, sessions and queues."""
        return status_of(self)

    @property
    def dialled(self) -> list[str]:
        """The hubs that there is a session with."""
        return [] if self._ways is None else self._ways.connected()

    # --- ends -----------------------------------------------------------------------------------------------------

    def end(self) -> None:
        """Accept no new connections and dial no more; the server is over when the last session is."""
        self._close_ways_in()
        self._ending = True
        self.session_ended()

    def drain(self) -> None:
        """End, and ask the clients to send nothing more: what was accepted is finished."""
        self.end()
        for session in list(self.sessions):
            session.drain()

    def stop(self) -> None:
        """End now: running tasks are killed."""
        self._ending = True
        self._close_ways_in()
        for session in list(self.sessions):
            session.abort()
        self._expiring.cancel()
        self.pool.close()
        self.finished.set()

    async def over(self) -> None:
        """Return when it has ended.

        Raises:
            TrustFileError: because its audit log could not be written.
        """
        await self.finished.wait()
        if self._unrecorded is not None:
            raise TrustFileError(
                f"the audit log cannot be written ({self._unrecorded}): the server took no more work and ended. Make "
                "room for it and start the server again"
            ) from self._unrecorded

    def _close_ways_in(self) -> None:
        if self._ways is not None:
            self._ways.close()

    def session_ended(self) -> None:
        """A session is gone; the last one of an ending server takes it along."""
        if self._ending and not self.sessions and not self.finished.is_set():
            self.audit("ended", {"batches_verified": self.verified, "batches_refused": self.refused})
            self.stop()

    # --- connections ----------------------------------------------------------------------------------------------

    def connection(
        self,
        certificate: bytes,
        dialled: Address | None,
        channel: bytes | None = None,
        verified: PeerCertificate | None = None,
    ) -> Connection:
        """Return the protocol object for one connection.

        Args:
            certificate: what we showed, in DER, if the peer called.
            dialled: the hub's address, if we did.
            channel: the peer's certificate, where TLS ended before this process.
            verified: likewise, what TLS has verified of it.
        """
        make = partial(self._session, certificate, dialled)
        return Connection(make, lambda connection: ServerSession(self, connection), channel, verified)

    def turned_away(self, source: str, error: Exception) -> None:
        """Write down who did not get in."""
        _log.info("a connection from %s was turned away: %s", source, error)
        self.audit("turned-away", {"source": source, "reason": str(error)})

    def _session(self, certificate: bytes, dialled: Address | None, peer_certificate: bytes) -> Session:
        return Session(
            end=End.ACCEPTOR if dialled is None else End.INITIATOR,
            side=Side.SERVER,
            auths=self._auths,
            nonce=os.urandom(NONCE_BYTES),
            certificate=certificate if dialled is None else peer_certificate,
            address="" if dialled is None else str(dialled),
            # Who has not proven a name hears none, the welcome says it; but a hub looks our key up by it.
            name="" if dialled is None else self.name,
            python_version="",
            clock=self.clock,
        )

    def _expire(self) -> None:
        self.tasks.expire(self.clock())
        for session in list(self.sessions):
            session.check_alive()
        self._expiring = self.loop.call_later(_EXPIRE_EVERY_S, self._expire)
