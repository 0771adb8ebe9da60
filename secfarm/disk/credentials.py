"""From configuration and auth objects to loaded keys: what a server needs to believe clients, and a client to be one.

An auth object may name files; here they become what is in them. Nothing is guessed: what is missing is an error that
says which file to make.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from secfarm.auth.base import Auth
from secfarm.auth.ed25519 import Ed25519AuthClient, Ed25519AuthServer
from secfarm.auth.gss import GssAuthClient, GssAuthServer
from secfarm.auth.shared_secret import SharedSecretAuth
from secfarm.auth.tls import TlsAuthClient, TlsAuthServer, TlsIdentity
from secfarm.disk.config import ClientConfig, ServerConfig, load_client_config
from secfarm.disk.keyfile import read_secret, read_signing_key
from secfarm.disk.site_auth import (
    kerberos_client,
    kerberos_server,
    ready_gss_client,
    ready_gss_server,
    ready_tls_client,
    ready_tls_server,
    tls_client,
    tls_identity,
)
from secfarm.disk.trustfile import read_allowed_signers, read_known_servers, read_policy
from secfarm.errors import ConfigError
from secfarm.sign.keys import SharedSecret, Signer, SigningKey
from secfarm.trust.policy import Policy
from secfarm.trust.store import KnownServers, TrustStore
from secfarm.wire.address import Address, SshAddress


@dataclass(frozen=True, slots=True)
class ServerCredentials:
    """Whom a server believes, and for what.

    Attributes:
        auths: by the mechanism's name on the wire; each is loaded.
        store: verifies the envelopes of every session, however its client proved itself.
        policy: what each principal may do.
        identity: the site's certificate for the channel; None: an ephemeral one.
    """

    auths: Mapping[str, Auth]
    store: TrustStore
    policy: Policy
    identity: TlsIdentity | None = None


def server_credentials(
    config: ServerConfig, auth: Auth | None = None, environ: Mapping[str, str] = os.environ
) -> ServerCredentials:
    """Read the files of `config`.

    Args:
        auth: the only mechanism to offer, instead of those that the configuration gives.
        environ: may name a keytab (KRB5_KTNAME, or CREDENTIALS_DIRECTORY for systemd's credential `keytab`).

    Raises:
        KeyFileError, TrustFileError: a file is missing, malformed or open to others; nothing was started.
        ConfigError: nobody could prove a name.
    """
    policy = read_policy(config.policy)
    entries = () if config.allowed_signers is None else read_allowed_signers(config.allowed_signers)
    identity = None if config.tls is None else tls_identity(config.tls)
    if auth is not None:
        return _with_auth(_ready_site(auth, config, environ), TrustStore(entries), policy, identity)
    store = TrustStore(entries, [read_secret(path) for path in config.secrets])
    auths: list[Auth] = []
    if config.key is not None:
        auths.append(Ed25519AuthServer(read_signing_key(config.key), store))
    if store.secrets:
        auths.append(SharedSecretAuth(*store.secrets))
    if config.kerberos is not None:
        auths.append(kerberos_server(config.kerberos, config, environ))
    if (tls := config.tls) is not None and tls.ca is not None and identity is not None:
        auths.append(TlsAuthServer(tls.certificate, tls.key, tls.ca).loaded(identity))
    if not auths:
        raise ConfigError("neither key nor secrets is given: nobody could be authenticated, so nothing was started")
    if config.dial and all(isinstance(one, TlsAuthServer) for one in auths):
        raise ConfigError(
            "dial: a hub cannot be proven by certificates yet (docs/planned.md), and nothing else is given; nothing "
            "was started. Add key, secrets or [kerberos]"
        )
    return ServerCredentials({one.mechanism: one for one in auths}, store, policy, identity)


def _ready_site(auth: Auth, config: ServerConfig, environ: Mapping[str, str]) -> Auth:
    """Return `auth` loaded if it is Kerberos or certificates."""
    if isinstance(auth, GssAuthServer):
        return ready_gss_server(auth, config, environ)
    return ready_tls_server(auth) if isinstance(auth, TlsAuthServer) else auth


def _with_auth(auth: Auth, store: TrustStore, policy: Policy, identity: TlsIdentity | None) -> ServerCredentials:
    """Offer `auth` alone; the keys that it brings sign envelopes too."""
    if isinstance(auth, Ed25519AuthServer):
        auth = _ready_server(auth, store)
        store = auth.allowed_signers if isinstance(auth.allowed_signers, TrustStore) else store
    elif isinstance(auth, SharedSecretAuth):
        auth = _ready_secret(auth)
        store = TrustStore(store.entries, [one for one in auth.secrets if isinstance(one, SharedSecret)])
    elif isinstance(auth, TlsAuthServer):
        identity = auth.identity
    elif isinstance(auth, Ed25519AuthClient | GssAuthClient | TlsAuthClient):
        name = type(auth).__name__
        raise ConfigError(f"{name} is for clients; give the server an {name.replace('Client', 'Server')}")
    return ServerCredentials({auth.mechanism: auth}, store, policy, identity)


class ClientCredentials:
    """How a client proves itself and what it signs with.

    Attributes:
        auth: loaded.
        signer: signs the envelopes; None: the key that the mechanism makes for each session.
    """

    __slots__ = ("_config", "auth", "signer")

    def __init__(self, auth: Auth, signer: Signer | None, config: _LazyConfig) -> None:
        self.auth = auth
        self.signer = signer
        self._config = config

    @property
    def hosts(self) -> tuple[Address, ...]:
        """The configuration's servers; it is read only when they are asked for.

        Raises:
            ConfigError: it cannot be used as written.
        """
        return self._config.get().hosts

    def routed(self, addresses: Iterable[Address]) -> tuple[Address, ...]:
        """Return the addresses, those of ssh with what the configuration's `[ssh]` says; only they have it read.

        Raises:
            ConfigError: it cannot be used as written.
        """
        return tuple([self._through(one) if isinstance(one, SshAddress) else one for one in addresses])

    def _through(self, address: SshAddress) -> SshAddress:
        ssh = self._config.get().ssh
        return address if ssh is None else replace(address, ssh=(ssh.program, *ssh.options), command=ssh.command)


def client_credentials(
    auth: Auth | None, key: SigningKey | str | os.PathLike[str] | None, environ: Mapping[str, str]
) -> ClientCredentials:
    """Load what a client proves and signs with.

    Args:
        auth: how to prove who we are; None: with `key`, else with the configuration's key or secret.
        key: signs; None: the auth's own key or secret, Kerberos' or the certificate's session, else the configuration's
            key.
        environ: names the configuration (see `load_client_config`), which is read only if something is missing.

    Raises:
        KeyFileError, TrustFileError: a file is missing, malformed or open to others; nothing was sent.
        ConfigError: there is no key, or the configuration cannot be used as written.
    """
    config = _LazyConfig(environ)
    signing = _loaded(key) if key is not None else None
    if auth is None:
        auth = _default_auth(signing, config.get())
    if isinstance(auth, GssAuthClient):
        return ClientCredentials(ready_gss_client(auth), signing, config)
    if isinstance(auth, TlsAuthClient):
        return ClientCredentials(ready_tls_client(auth), signing, config)
    if isinstance(auth, Ed25519AuthClient):
        auth = _ready_client(auth, config)
        own: Signer | None = auth.key if isinstance(auth.key, SigningKey) else None
    elif isinstance(auth, SharedSecretAuth):
        auth = _ready_secret(auth)
        own = next((one for one in auth.secrets if isinstance(one, SharedSecret)), None)
    elif isinstance(auth, Ed25519AuthServer | GssAuthServer | TlsAuthServer):
        name = type(auth).__name__
        raise ConfigError(f"{name} is for servers; give the client an {name.replace('Server', 'Client')}")
    else:
        path = config.get().key if signing is None else None
        own = None if path is None else read_signing_key(path)
    signer = signing or own
    if signer is None:
        raise ConfigError(f"nothing to sign with: {type(auth).__name__} brings no key; give key=, nothing was sent")
    return ClientCredentials(auth, signer, config)


def _default_auth(key: SigningKey | None, config: ClientConfig) -> Auth:
    if key is not None:
        return Ed25519AuthClient(key)
    if config.key is not None:
        return Ed25519AuthClient(config.key)
    if config.secret is not None:
        return SharedSecretAuth(config.secret)
    if (site := kerberos_client(config) or tls_client(config)) is not None:
        return site
    raise ConfigError(
        f"no key: neither auth= nor key= is given, SECFARM_KEY is not set, and {config.file} names no key or secret; "
        "nothing was sent. Make a key with `secfarm keygen`, or use local_kernel()"
    )


class _LazyConfig:
    """The client's configuration, read at most once and only if it is needed."""

    __slots__ = ("_config", "_environ")

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = dict(environ)
        self._config: ClientConfig | None = None

    def get(self) -> ClientConfig:
        if self._config is None:
            self._config = load_client_config(None, self._environ)
        return self._config


def _ready_client(auth: Ed25519AuthClient, config: _LazyConfig) -> Ed25519AuthClient:
    """Return `auth` with its files read; `known_servers` that it does not name are the configuration's."""
    known = auth.known_servers
    if known is None:
        path = config.get().known_servers
        known = read_known_servers(path) if path.exists() else KnownServers()
    elif not isinstance(known, KnownServers):
        known = read_known_servers(known)
    return Ed25519AuthClient(_loaded(auth.key), known)


def _ready_server(auth: Ed25519AuthServer, default: TrustStore) -> Ed25519AuthServer:
    """Return `auth` with its files read; `allowed_signers` that it does not name are `default`."""
    allowed = auth.allowed_signers
    if allowed is None:
        allowed = default
    elif not isinstance(allowed, TrustStore):
        allowed = TrustStore(read_allowed_signers(allowed))
    return Ed25519AuthServer(_loaded(auth.key), allowed)


def _ready_secret(auth: SharedSecretAuth) -> SharedSecretAuth:
    """Return `auth` with its secret files read."""
    return SharedSecretAuth(*[one if isinstance(one, SharedSecret) else read_secret(one) for one in auth.secrets])


def _loaded(key: SigningKey | str | os.PathLike[str]) -> SigningKey:
    return key if isinstance(key, SigningKey) else read_signing_key(key)
