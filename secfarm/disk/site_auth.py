"""The site's own authorities: Kerberos keytabs and X.509 certificates become loaded auth objects."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from secfarm.auth.gss import GssAuthClient, GssAuthServer
from secfarm.auth.tls import TlsAuthClient, TlsAuthServer, TlsIdentity
from secfarm.disk.config import ClientConfig, KerberosConfig, ServerConfig, TlsConfig, state_home
from secfarm.disk.guard import read_guarded
from secfarm.disk.keytab import KeytabFile, find_keytab
from secfarm.errors import ConfigError, KeyFileError
from secfarm.sign.keys import SigningKey

_SEED_BYTES = 32


def kerberos_server(kerberos: KerberosConfig, config: ServerConfig, environ: Mapping[str, str]) -> GssAuthServer:
    """Return the auth of `[kerberos]`, loaded.

    Raises:
        KeyFileError: the keytab cannot be used; nothing was started.
        ConfigError: the package gssapi is missing, or a user is malformed.
    """
    return ready_gss_server(
        GssAuthServer(kerberos.keytab, kerberos.service_name, kerberos.allowed_users), config, environ
    )


def ready_gss_server(auth: GssAuthServer, config: ServerConfig, environ: Mapping[str, str]) -> GssAuthServer:
    """Return `auth`, a user's subclass perhaps, with its keytab read and a replay cache of its own.

    Raises:
        KeyFileError: the keytab cannot be used; nothing was started.
        ConfigError: the package gssapi is missing.
    """
    auth.check_library()
    if auth.source is None:
        auth.source = KeytabFile(find_keytab(auth.keytab, environ))
    if auth.replay_cache is None:
        auth.replay_cache = str(_replay_cache(config.state or state_home(environ)))
    return auth


def _replay_cache(state: Path) -> Path:
    directory = state / "kerberos"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = directory.stat().st_mode
    except OSError as error:
        raise ConfigError(f"{directory}: the replay cache's directory cannot be made ({error}); not started") from error
    if mode & 0o022:
        raise ConfigError(f"{directory}: others may write it; nothing was started. Run: chmod 700 {directory}")
    return directory / "replay.rcache2"


def ready_gss_client(auth: GssAuthClient) -> GssAuthClient:
    """Return `auth` if the files that it names may be used, else raise.

    Raises:
        KeyFileError: the client keytab is missing, open to others, empty or no keytab; nothing was sent.
        ConfigError: the package gssapi is missing.
    """
    auth.check_library()
    if auth.client_keytab is not None:
        KeytabFile(Path(auth.client_keytab)).close()
    return auth


def kerberos_client(config: ClientConfig) -> GssAuthClient | None:
    """Return the auth of a client's `[kerberos]`, or None where there is no such table."""
    kerberos = config.kerberos
    if kerberos is None:
        return None
    return GssAuthClient(
        kerberos.service_name, kerberos.ccache, kerberos.client_keytab, kerberos.target, servers=kerberos.servers
    )


def tls_client(config: ClientConfig) -> TlsAuthClient | None:
    """Return the auth of a client's `[tls]`, or None where there is no such table."""
    tls = config.tls
    if tls is None or tls.ca is None:
        return None
    return TlsAuthClient(tls.certificate, tls.key, tls.ca, server_name=tls.server_name)


def ready_tls_client(auth: TlsAuthClient) -> TlsAuthClient:
    """Return `auth` with its files read.

    Raises:
        KeyFileError: one cannot be used; nothing was sent.
    """
    certificate, key, ca = map(Path, auth.files)
    return auth.loaded(read_identity(certificate, key, ca), _new_key)


def ready_tls_server(auth: TlsAuthServer) -> TlsAuthServer:
    """Return `auth` with its files read.

    Raises:
        KeyFileError: one cannot be used; nothing was started.
    """
    certificate, key, ca = map(Path, auth.files)
    return auth.loaded(read_identity(certificate, key, ca))


def tls_identity(tls: TlsConfig) -> TlsIdentity:
    """Return what is in the files of `[tls]`.

    Raises:
        KeyFileError: one cannot be used; nothing was started.
    """
    return read_identity(tls.certificate, tls.key, tls.ca)


def read_identity(certificate: Path, key: Path, ca: Path | None) -> TlsIdentity:
    """Return the content of the files; `ca` may be left out by a server that other mechanisms serve.

    Raises:
        KeyFileError: one is missing, open to others (the key to read, the others to write) or not PEM.
    """
    return TlsIdentity(
        _pem(certificate, "CERTIFICATE", secret=False),
        _pem(key, "PRIVATE KEY", secret=True),
        b"" if ca is None else _pem(ca, "CERTIFICATE", secret=False),
        place=str(certificate),
    )


def _pem(path: Path, what: str, *, secret: bool) -> bytes:
    content = read_guarded(path, secret=secret, error=KeyFileError)
    if not content.isascii() or f"{what}-----".encode() not in content:
        raise KeyFileError(f"{path}: there is no {what} in PEM form in it; it was not used")
    return content


def _new_key() -> SigningKey:
    return SigningKey.from_seed(os.urandom(_SEED_BYTES))
