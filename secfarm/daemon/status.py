"""What a server says of itself to those with the `admin` grant: workers, sessions, queues. For people and scripts."""

# ruff: noqa: SLF001 - it looks into the sessions of its own room, and changes nothing

from __future__ import annotations

import contextlib
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from secfarm.daemon.server import Server
    from secfarm.daemon.session import ServerSession
    from secfarm.run.crew import Worker

_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


def status_of(server: Server) -> dict[str, object]:
    """Return the answer to a `Status` order; its form is in docs/operations.md, "Status"."""
    records = [_session(session) for session in server.sessions]
    return {
        "server": server.name,
        "pid": server.pid,
        "python_version": server.python_version,
        "since": utc(server.started_s),
        "workers": server.pool.size,
        "busy": server.pool.busy,
        "sessions": [session.principal for session in server.sessions],
        "tasks": len(server.tasks),
        "waiting": sum(record["waiting"] for record in records if isinstance(record["waiting"], int)),
        "batches_verified": server.verified,
        "batches_refused": server.refused,
        "dial": server.dial,
        "dialled": server.dialled,
        "worker_records": [_worker(server, worker) for worker in server.pool.workers],
        "session_records": records,
    }


def utc(time_s: float) -> str:
    """Return a moment as the audit log writes it."""
    return datetime.fromtimestamp(time_s, UTC).isoformat(timespec="seconds")


def _session(session: ServerSession) -> dict[str, object]:
    crew, peer = session._crew, session._peer
    return {
        "principal": session.principal,
        "session": session._connection.session.session_id,
        "mechanism": "" if peer is None else peer.mechanism,
        "since": utc(session._since_s),
        "outstanding": len(session._tasks),
        "waiting": 0 if crew is None else sum(map(len, crew.waiting)),
        "unacknowledged": len(session._finished) + len(session._told),
        "draining": session.draining,
    }


def _employs(session: ServerSession, worker: Worker) -> bool:
    return worker.crew is not None and worker.crew is session._crew


def _worker(server: Server, worker: Worker) -> dict[str, object]:
    owner = next((session for session in server.sessions if _employs(session, worker)), None)
    return {
        "pid": worker.process.pid,
        "busy": bool(worker.queue),
        "category": worker.queue[0].category if worker.queue else None,
        "queued": max(0, len(worker.queue) - 1),
        "principal": owner.principal if owner is not None else None,
        "memory_bytes": _resident_bytes(worker.process.pid),
    }


def _resident_bytes(pid: int | None) -> int | None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1]) * _PAGE_BYTES
    return None
