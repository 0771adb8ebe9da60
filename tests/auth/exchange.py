"""Both ends of a Kerberos session, driven by hand: between any two tokens somebody may stand."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

import pytest

from secfarm.auth import GssAuthClient, GssAuthServer, Peer, Side
from secfarm.auth.base import Mechanism
from secfarm.auth.gss_errors import KerberosError
from secfarm.cli.failure import failure_of
from secfarm.disk.config import ServerConfig
from secfarm.disk.site_auth import ready_gss_server
from secfarm.errors import AuthError, ExitStatus, KernelCreationError
from tests.auth.realm import HOST, REALM, Realm

BINDING: Final = bytes(range(32))
OTHER_BINDING: Final = bytes(range(1, 33))
ADDRESS: Final = f"{HOST}:7419"
ADA: Final = f"ada@{REALM}"


def server_auth(
    realm: Realm, home: Path, auth: GssAuthServer | None = None, keytab: str = "secfarm.keytab"
) -> GssAuthServer:
    auth = auth or GssAuthServer(realm.folder / keytab, allowed_users=[ADA])
    return ready_gss_server(auth, ServerConfig(policy=home / "policy", state=home), {})


def pair(
    realm: Realm,
    home: Path,
    *,
    client: GssAuthClient | None = None,
    server: GssAuthServer | None = None,
    bindings: tuple[bytes, bytes] = (BINDING, BINDING),
) -> tuple[Mechanism, Mechanism]:
    """A client's and a server's mechanism for one session."""
    now_s = time.time()
    near = (client or GssAuthClient()).begin(side=Side.CLIENT, binding=bindings[0], address=ADDRESS, now_s=now_s)
    far = (server or server_auth(realm, home)).begin(side=Side.SERVER, binding=bindings[1], address="", now_s=now_s)
    return near, far


def meet(near: Mechanism, far: Mechanism) -> tuple[Peer, Peer]:
    """Carry the tokens and return whom each end has proven."""
    token = near.step(None)
    while not far.complete:
        reply = far.step(token)
        token = None if reply is None else near.step(reply)
    assert near.complete
    assert near.peer is not None
    assert far.peer is not None
    return near.peer, far.peer


def flipped(token: bytes, at: int) -> bytes:
    return token[:at] + bytes([token[at] ^ 1]) + token[at:][1:]


def refusal(error: pytest.ExceptionInfo[AuthError]) -> str:
    """The message, after checking what holds for all: status, the peer's one word, a hint that fits."""
    told = error.value
    assert isinstance(told, KerberosError)
    assert told.public == "refused"
    failure = failure_of(told)
    assert failure.status is ExitStatus.AUTHENTICATION
    assert "kerberos" in failure.hint or "run: " in failure.hint
    creation = KernelCreationError(str(told))
    creation.__cause__ = told
    assert failure_of(creation).status is ExitStatus.AUTHENTICATION
    return str(told)
