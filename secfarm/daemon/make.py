"""From a configuration to a server in this process, and the event loop that it lives in."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import TYPE_CHECKING, cast

from secfarm.daemon.server import Server
from secfarm.disk.auditlog import AuditLog, SourceArchive
from secfarm.disk.config import state_home
from secfarm.disk.credentials import server_credentials

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from secfarm.auth.base import Auth
    from secfarm.disk.config import ServerConfig


def audit_path(config: ServerConfig) -> Path:
    """Return the audit log's file."""
    return config.audit or (config.state or state_home(os.environ)) / "audit.jsonl"


def make_server(config: ServerConfig, auth: Auth | None, name: str | None, audit: AuditLog | None = None) -> Server:
    """Return a server that is not started.

    Raises:
        SecfarmError: a key or trust file does not allow one.
    """
    credentials = server_credentials(config, auth)
    state = config.state or state_home(os.environ)
    return Server(
        name=name or config.name or socket.gethostname(),
        auths=credentials.auths,
        store=credentials.store,
        policy=credentials.policy,
        read_again=lambda: server_credentials(config, auth),
        audit=audit or AuditLog(audit_path(config)),
        archive=SourceArchive(state / "sources"),
        workers=config.workers or os.cpu_count() or 1,
        identity=credentials.identity,
    )


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """Return what makes the fastest event loop that is installed."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return cast("Callable[[], asyncio.AbstractEventLoop]", uvloop.new_event_loop)
