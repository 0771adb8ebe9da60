"""The mechanism `tls`: both ends are proven by the site's certificates, which TLS itself has verified beneath.

The certificates prove the names; what is left for this module is to say which name, and to give the session a key: the
client makes an Ed25519 key for this one session and proves it over the binding, inside the channel that its
certificate authenticated. Sans-I/O. Law: docs/PROTOCOL.md, section 3.4.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Final, TypeAlias

from secfarm.auth.base import Auth, Mechanism, Peer, PeerCertificate, Side, transcript
from secfarm.errors import AuthError, BadSignatureError, ConfigError
from secfarm.sign.keys import PublicKey, SigningKey
from secfarm.sign.primitives import PUBLIC_KEY_BYTES
from secfarm.trust.patterns import is_definite

if TYPE_CHECKING:
    import os
    from typing import Self

NAME: Final = "tls"
AUTH_NAMESPACE: Final = "auth@secfarm"
_CLIENT_LABEL: Final = "secfarm auth v1 tls client"
_KINDS: Final = ("email", "URI", "DNS")  # whose name a certificate is: a person's before a program's before a machine's
_MAX_NAME_CHARS: Final = 255

StrPath: TypeAlias = "str | os.PathLike[str]"


@dataclass(frozen=True, slots=True)
class TlsIdentity:
    """Certificate, key and authority as they are in their files, in PEM.

    Attributes:
        certificate: ours, and the authorities between it and the root if there are some.
        key: of the certificate.
        ca: who may certify the other end; empty: nobody.
        place: for messages.
    """

    certificate: bytes
    key: bytes = field(repr=False)
    ca: bytes
    place: str = ""


class _TlsAuth(Auth):
    """What both sides have: three files, or what is in them."""

    mechanism: ClassVar[str] = NAME
    side: ClassVar[Side]

    def __init__(self, certificate: StrPath, key: StrPath, ca: StrPath) -> None:
        """Take the paths of PEM files.

        Args:
            certificate: ours, followed by those between it and the root, if any.
            key: of the certificate, without a passphrase.
            ca: the authorities that may certify the other end. Nobody else's word counts, the system's neither.
        """
        self.files: tuple[StrPath, StrPath, StrPath] = (certificate, key, ca)
        self.loaded_identity: TlsIdentity | None = None
        self.peer_certificate: PeerCertificate | None = None

    @property
    def identity(self) -> TlsIdentity:
        """What is in the files.

        Raises:
            ConfigError: they were not loaded.
        """
        if self.loaded_identity is None:
            raise ConfigError(f"{type(self).__name__} names files that were not loaded; nothing was sent")
        return self.loaded_identity

    def over(self, certificate: PeerCertificate | None) -> Self:
        """Return the auth for a session over a channel; see `Auth.over`."""
        other = copy.copy(self)
        other.peer_certificate = certificate
        return other

    def _told(self) -> PeerCertificate:
        if self.peer_certificate is None:
            raise AuthError(
                f"the {self.side.other.value} showed no certificate, or this end verified none; it was not let in. "
                "Give it a certificate of an authority that this end names"
            )
        return self.peer_certificate

    def _check_side(self, side: Side) -> None:
        if side is not self.side:
            raise ConfigError(f"{type(self).__name__} is for a {self.side.value}, not for a {side.value}")


class TlsAuthClient(_TlsAuth):
    """A client's side. Batches are signed by a key made for the session, or by the key given to the kernel."""

    side = Side.CLIENT

    def __init__(self, certificate: StrPath, key: StrPath, ca: StrPath, *, server_name: str | None = None) -> None:
        """Take the paths of PEM files.

        Args:
            certificate: ours, followed by those between it and the root, if any.
            key: of the certificate, without a passphrase.
            ca: the authorities that may certify a server.
            server_name: what the server's certificate must name; None: the host that is dialled. For tunnels and unix
                sockets.
        """
        super().__init__(certificate, key, ca)
        self.server_name = server_name
        self.make_key: Callable[[], SigningKey] | None = None

    def loaded(self, identity: TlsIdentity, make_key: Callable[[], SigningKey]) -> Self:
        """Return the same with the content of its files and a source of keys for its sessions."""
        other = copy.copy(self)
        other.loaded_identity, other.make_key = identity, make_key
        return other

    def at_hub(self) -> Self:
        """Raise: servers that dial in take no certificate, and show none."""
        raise ConfigError(
            "a hub cannot prove itself by certificates yet (docs/planned.md); it was not opened. Give it a key, a "
            "secret or Kerberos"
        )

    def begin(self, *, side: Side, binding: bytes, address: str, now_s: float) -> Mechanism:  # noqa: ARG002 - contract
        """Return the mechanism for one session; see `Auth.begin`."""
        self._check_side(side)
        if self.make_key is None:
            raise ConfigError("TlsAuthClient names files that were not loaded; nothing was sent")
        return _TlsClient(self.make_key(), binding, self._told(), self.server_name or _host(address))


class TlsAuthServer(_TlsAuth):
    """A server's side: who has a certificate of `ca` is the principal that the certificate names."""

    side = Side.SERVER

    def loaded(self, identity: TlsIdentity) -> Self:
        """Return the same with the content of its files."""
        other = copy.copy(self)
        other.loaded_identity = identity
        return other

    def begin(self, *, side: Side, binding: bytes, address: str, now_s: float) -> Mechanism:  # noqa: ARG002 - contract
        """Return the mechanism for one session; see `Auth.begin`."""
        self._check_side(side)
        return _TlsServer(binding, self._told())


class _TlsClient(Mechanism):
    name = NAME

    def __init__(self, key: SigningKey, binding: bytes, server: PeerCertificate, server_name: str) -> None:
        self._key = key
        self._binding = binding
        self._server = server
        self._server_name = server_name  # TLS has checked that the certificate has it

    @property
    def complete(self) -> bool:
        return self.peer is not None

    def step(self, token: bytes | None) -> bytes | None:
        if token is not None or self.complete:
            raise AuthError("tls: a token came out of turn")
        raw = self._key.public.raw
        server = self._server
        self.peer = Peer(
            self._server_name, NAME, server.fingerprint, session_signer=_Signer(self._key), expires_s=server.expires_s
        )
        return raw + self._key.sign_in(AUTH_NAMESPACE, transcript(_CLIENT_LABEL, self._binding, raw))


class _TlsServer(Mechanism):
    name = NAME

    def __init__(self, binding: bytes, client: PeerCertificate) -> None:
        self._binding = binding
        self._client = client

    @property
    def complete(self) -> bool:
        return self.peer is not None

    def step(self, token: bytes | None) -> bytes | None:
        if token is None or self.complete:
            raise AuthError("tls: a token came out of turn")
        if len(token) <= PUBLIC_KEY_BYTES:
            raise AuthError(f"tls: the client's token has {len(token)} bytes")
        raw, blob = token[:PUBLIC_KEY_BYTES], token[PUBLIC_KEY_BYTES:]
        key = PublicKey(raw)
        try:
            key.verify(transcript(_CLIENT_LABEL, self._binding, raw), blob, namespace=AUTH_NAMESPACE)
        except BadSignatureError as error:
            raise AuthError(
                "tls: the client did not prove the key of its session on this channel; nothing was run"
            ) from error
        self.peer = Peer(
            principal_of(self._client),
            NAME,
            self._client.fingerprint,
            session_verifier=_Verifier(key),
            expires_s=self._client.expires_s,
        )
        return None


def principal_of(certificate: PeerCertificate) -> str:
    """Return whose certificate it is: the first subject alternative name of the kinds email, URI, DNS, in that order.

    Raises:
        AuthError: it has no such name, or one that could not stand for a single principal.
    """
    for kind in _KINDS:
        for found, name in certificate.names:
            if found == kind:
                return _check_name(name)
    raise AuthError(
        f"the certificate SHA256:{certificate.fingerprint} has no subject alternative name of the kinds "
        f"{', '.join(_KINDS)}; its owner was not let in. Have it made with one: the common name is not looked at"
    )


def _check_name(name: str) -> str:
    if not is_definite(name) or not name.isprintable() or " " in name or len(name) > _MAX_NAME_CHARS:
        raise AuthError(f"the certificate's name {name!a} cannot be one principal; its owner was not let in")
    return name


def _host(address: str) -> str:
    return address.rpartition(":")[0].strip("[]") or address


@dataclass(frozen=True, slots=True)
class _Signer:
    """The client's half of a session's key."""

    algorithm: ClassVar[str] = SigningKey.algorithm
    key: SigningKey

    @property
    def key_id(self) -> str:
        return _key_id(self.key.public)

    def sign(self, message: bytes) -> bytes:
        return self.key.sign(message)


@dataclass(frozen=True, slots=True)
class _Verifier:
    """The server's half."""

    algorithm: ClassVar[str] = PublicKey.algorithm
    key: PublicKey

    @property
    def key_id(self) -> str:
        return _key_id(self.key)

    def verify(self, message: bytes, signature: bytes, /) -> bytes:
        return self.key.verify(message, signature)


def _key_id(key: PublicKey) -> str:
    """A name of its own kind, so that no look-up takes the key of a session for one of a trust file."""
    return f"TLS:{key.key_id}"
