"""From a configuration to a server in this process, and the event loop that it lives in."""

from __future__ import annotations

import asyncio
import os
import socket
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from secfarm.daemon.server import Server
from secfarm.daemon.terms import check_hidden
from secfarm.disk.auditlog import AuditLog, SourceArchive
from secfarm.disk.config import state_home
from secfarm.disk.credentials import server_credentials
from secfarm.run.launch import Launched, launch
from secfarm.run.profile import PROFILES
from secfarm.run.sealed import SealedCradle

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from secfarm.auth.base import Auth
    from secfarm.disk.config import ServerConfig
    from secfarm.disk.credentials import ServerCredentials


def audit_path(config: ServerConfig) -> Path:
    """Return the audit log's file."""
    return config.audit or (config.state or state_home(os.environ)) / "audit.jsonl"


def make_server(
    config: ServerConfig,
    auth: Auth | None,
    name: str | None,
    audit: AuditLog | None = None,
    *,
    launch: Callable[[], Launched] = launch,
) -> Server:
    """Return a server that is not started; its zygotes are on their way.

    Args:
        launch: starts a zygote; by default as a child of this process.

    Raises:
        SecfarmError: a key or trust file does not allow one, or a task could read it.
    """
    state = config.state or state_home(os.environ)
    config = replace(config, state=state)  # which no worker may see, named by the file or not

    def read() -> ServerCredentials:
        credentials = server_credentials(config, auth)
        check_hidden(config, credentials.policy, auth)
        return credentials

    credentials = read()
    return Server(
        name=name or config.name or socket.gethostname(),
        auths=credentials.auths,
        store=credentials.store,
        policy=credentials.policy,
        read_again=read,
        audit=audit or AuditLog(audit_path(config)),
        archive=SourceArchive(state / "sources"),
        workers=config.workers or os.cpu_count() or 1,
        cradle=SealedCradle(asyncio.get_running_loop(), PROFILES[config.confinement], launch, state),
        identity=credentials.identity,
    )


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """Return what makes the fastest event loop that is installed."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return cast("Callable[[], asyncio.AbstractEventLoop]", uvloop.new_event_loop)
