"""From grants to what their workers live on, and the check that no worker can read what the server must keep."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from secfarm.auth.ed25519 import Ed25519AuthServer
from secfarm.auth.gss import GssAuthServer
from secfarm.auth.shared_secret import SharedSecretAuth
from secfarm.auth.tls import TlsAuthServer
from secfarm.disk.keytab import find_keytab
from secfarm.limits import RESERVED_BYTES
from secfarm.run.cradle import Terms
from secfarm.run.profile import Bounds, ConfinementError, Openings
from secfarm.run.view import host_view
from secfarm.trust.policy import Isolation

if TYPE_CHECKING:
    from collections.abc import Iterator

    from secfarm.auth.base import Auth
    from secfarm.disk.config import ServerConfig
    from secfarm.run.crew import Crew
    from secfarm.trust.audit import AuditValue
    from secfarm.trust.policy import Grant, Policy

_DEFAULT: Final = Bounds()


def terms_of(grant: Grant) -> Terms:
    """Return on what terms the workers of this grant are started."""
    confine, limits = grant.confine, grant.limits
    openings = Openings(
        read=confine.read,
        network=confine.network,
        subprocesses=confine.subprocesses,
        generated_code=confine.generated_code,
        numpy=confine.numpy,
    )
    for_one_task = confine.isolation is Isolation.TASK and limits.cpu_s is not None
    bounds = Bounds(
        memory_bytes=_DEFAULT.memory_bytes if limits.memory_bytes is None else limits.memory_bytes + RESERVED_BYTES,
        # In a worker of many tasks each one's time is watched from outside; a hard limit could not be raised again.
        cpu_s=math.ceil(limits.cpu_s) + 1 if for_one_task and limits.cpu_s is not None else None,
        processes=limits.processes or _DEFAULT.processes,
        files=limits.files or _DEFAULT.files,
        scratch_bytes=limits.scratch_bytes or _DEFAULT.scratch_bytes,
        scratch_files=limits.scratch_files or _DEFAULT.scratch_files,
    )
    return Terms(openings, bounds)


def terms_of_all(policy: Policy) -> list[Terms]:
    """Return the terms of all grants that let somebody do something, in the policy's order."""
    return list(dict.fromkeys(terms_of(grant) for grant in policy.grants if grant.may))


def opened(crew: Crew) -> dict[str, AuditValue]:
    """Return what the workers of a crew are let out to, for the audit record; nothing is opened: nothing."""
    openings = crew.terms.openings
    words = [name for name in ("network", "subprocesses", "generated_code", "numpy") if getattr(openings, name)]
    listed = [*words, *[f"read {path}" for path in openings.read]]
    return {"opened": listed} if listed else {}


def check_hidden(config: ServerConfig, policy: Policy, auth: Auth | None = None) -> Policy:
    """Return `policy` if no worker of it could read a file that the server must keep, else raise.

    Args:
        auth: what the server authenticates with instead of the configuration's keys; it may name files of its own.

    Raises:
        ConfinementError: one could, by what Python's installation or the policy's `read` shows; or what the policy
            opens is not there.
    """
    kept = [(name, path.resolve()) for name, path in [*_kept(config), *_kept_for(auth)]]
    for terms in terms_of_all(policy) or [Terms()]:
        view = host_view(terms.openings)
        for name, path in kept:
            shown = view.covers(str(path)) or next(
                (one for one in view.paths if path.is_dir() and Path(one).resolve().is_relative_to(path)), None
            )
            if shown is not None:
                raise ConfinementError(
                    f"{name} ({path}) could be read by tasks, which are shown {shown}; nothing is served. "
                    f"Move the file, or take what shows it from `read` in the policy"
                )
    return policy


def _kept(config: ServerConfig) -> Iterator[tuple[str, Path]]:
    tls, kerberos = config.tls, config.kerberos
    named = {
        "the configuration": config.file,
        "the policy": config.policy,
        "the server's key": config.key,
        "allowed_signers": config.allowed_signers,
        "the audit log": config.audit,
        "the state directory": config.state,
        "the certificate's key": None if tls is None else tls.key,
    }
    yield from ((name, path) for name, path in named.items() if path is not None)
    yield from (("a secret", path) for path in config.secrets)
    if kerberos is not None:
        yield "the keytab", find_keytab(kerberos.keytab, os.environ)
    if credentials := os.environ.get("CREDENTIALS_DIRECTORY"):
        yield "the credentials directory", Path(credentials)


def _kept_for(auth: Auth | None) -> Iterator[tuple[str, Path]]:
    match auth:
        case Ed25519AuthServer(key=str() | os.PathLike() as key):
            yield "the key of auth", Path(key)
        case TlsAuthServer():
            yield "the certificate's key of auth", Path(auth.files[1])
        case GssAuthServer():
            yield "the keytab of auth", find_keytab(auth.keytab, os.environ)
        case SharedSecretAuth():
            yield from (("a secret of auth", Path(one)) for one in auth.secrets if isinstance(one, str | os.PathLike))
        case _:
            pass
