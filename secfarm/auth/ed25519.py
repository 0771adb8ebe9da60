"""The mechanism `ed25519`: both ends sign the transcript with OpenSSH keys; the server proves itself first.

The client shows its public key, the server signs, the client looks the server's key up in `known_servers` and only
then signs. Signatures are SSHSIG in a namespace of their own, so none of them can pass as a batch's. Sans-I/O.
Law: docs/PROTOCOL.md, section 3.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final, TypeAlias

from secfarm.auth.base import Auth, Mechanism, Peer, Side, transcript
from secfarm.errors import AuthError, BadSignatureError, ConfigError, VerifyError
from secfarm.sign.keys import PublicKey, SigningKey
from secfarm.sign.primitives import PUBLIC_KEY_BYTES
from secfarm.sign.sshsig import TASK_NAMESPACE
from secfarm.trust.store import KnownServers, TrustStore

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

NAME: Final = "ed25519"
AUTH_NAMESPACE: Final = "auth@secfarm"
_CLIENT_LABEL: Final = "secfarm auth v1 ed25519 client"
_SERVER_LABEL: Final = "secfarm auth v1 ed25519 server"

StrPath: TypeAlias = "str | os.PathLike[str]"


@dataclass(frozen=True, slots=True)
class Ed25519AuthClient(Auth):
    """A client's side.

    Attributes:
        key: our signing key, or the path of its file.
        known_servers: which keys a server may have, or the path of the file; None is the file of the configuration.
    """

    mechanism: ClassVar[str] = NAME
    key: SigningKey | StrPath
    known_servers: KnownServers | StrPath | None = None

    def begin(self, *, side: Side, binding: bytes, address: str, now_s: float) -> Mechanism:  # noqa: ARG002 - contract
        """Return the mechanism for one session; see `Auth.begin`."""
        if side is not Side.CLIENT:
            raise ConfigError("Ed25519AuthClient is for clients; give the server an Ed25519AuthServer")
        if not isinstance(self.key, SigningKey) or not isinstance(self.known_servers, KnownServers):
            raise ConfigError("Ed25519AuthClient names files that were not loaded; nothing was sent")
        return _Ed25519Client(self.key, binding, address, self.known_servers)


@dataclass(frozen=True, slots=True)
class Ed25519AuthServer(Auth):
    """A server's side.

    Attributes:
        key: the server's own key, or the path of its file.
        allowed_signers: whom we believe, or the path of the file; None is the file of the configuration.
    """

    mechanism: ClassVar[str] = NAME
    key: SigningKey | StrPath
    allowed_signers: TrustStore | StrPath | None = None

    def begin(self, *, side: Side, binding: bytes, address: str, now_s: float) -> Mechanism:  # noqa: ARG002 - contract
        """Return the mechanism for one session; see `Auth.begin`."""
        if side is not Side.SERVER:
            raise ConfigError("Ed25519AuthServer is for servers; give the client an Ed25519AuthClient")
        if not isinstance(self.key, SigningKey) or not isinstance(self.allowed_signers, TrustStore):
            raise ConfigError("Ed25519AuthServer names files that were not loaded; nothing was started")
        store = self.allowed_signers
        return _Ed25519Server(
            self.key, binding, lambda key: store.principal_of(key.key_id, namespace=TASK_NAMESPACE, now_s=now_s)
        )


class _Ed25519Client(Mechanism):
    name = NAME

    def __init__(self, key: SigningKey, binding: bytes, address: str, known_servers: KnownServers) -> None:
        self._key = key
        self._binding = binding
        self._address = address
        self._known_servers = known_servers
        self._started = False

    @property
    def complete(self) -> bool:
        return self.peer is not None

    def step(self, token: bytes | None) -> bytes | None:
        if not self._started and token is None:
            self._started = True
            return self._key.public.raw
        if not self._started or token is None or self.complete:
            raise AuthError("ed25519: a token came out of turn")
        if len(token) <= PUBLIC_KEY_BYTES:
            raise AuthError(f"ed25519: the server's token has {len(token)} bytes")
        raw, blob = token[:PUBLIC_KEY_BYTES], token[PUBLIC_KEY_BYTES:]
        keys = (self._binding, raw, self._key.public.raw)
        server, name = self._known(PublicKey(raw))
        try:
            server.verify(transcript(_SERVER_LABEL, *keys), blob, namespace=AUTH_NAMESPACE)
        except BadSignatureError as error:
            raise AuthError(
                f"the server {self._address!a} showed {server.key_id} but did not prove it on this channel: "
                "somebody may stand in between; nothing was sent to it"
            ) from error
        self.peer = Peer(name, NAME, server.key_id, server)
        return self._key.sign_in(AUTH_NAMESPACE, transcript(_CLIENT_LABEL, *keys))

    def _known(self, shown: PublicKey) -> tuple[PublicKey, str]:
        known = self._known_servers.keys_for(self._address)
        for key, name in known:
            if key == shown:
                return key, name
        listed = ", ".join(key.key_id for key, _ in known) or "no key at all"
        raise AuthError(
            f"the server {self._address!a} showed {shown.key_id}; known_servers has {listed} for it. Nothing was sent "
            f"to it. If its administrator confirms the key, add a line of that address, or name, and {shown.openssh()}"
        )


class _Ed25519Server(Mechanism):
    name = NAME

    def __init__(self, key: SigningKey, binding: bytes, principal_of: Callable[[PublicKey], str]) -> None:
        self._key = key
        self._binding = binding
        self._principal_of = principal_of
        self._shown: PublicKey | None = None

    @property
    def complete(self) -> bool:
        return self.peer is not None

    def step(self, token: bytes | None) -> bytes | None:
        if token is None or self.complete:
            raise AuthError("ed25519: a token came out of turn")
        if self._shown is None:
            return self._prove(token)
        self._check(self._shown, token)
        return None

    def _prove(self, token: bytes) -> bytes:
        """Answer any key alike: who is known here shows only after the client's own proof."""
        if len(token) != PUBLIC_KEY_BYTES:
            raise AuthError(f"ed25519: the client's key has {len(token)} bytes instead of {PUBLIC_KEY_BYTES}")
        self._shown = PublicKey(token)
        raw = self._key.public.raw
        return raw + self._key.sign_in(AUTH_NAMESPACE, transcript(_SERVER_LABEL, self._binding, raw, token))

    def _check(self, shown: PublicKey, blob: bytes) -> None:
        keys = (self._binding, self._key.public.raw, shown.raw)
        try:
            shown.verify(transcript(_CLIENT_LABEL, *keys), blob, namespace=AUTH_NAMESPACE)
            principal = self._principal_of(shown)
        except VerifyError as error:
            raise AuthError(f"a client showed {shown.key_id} and was not believed: {error}") from error
        self.peer = Peer(principal, NAME, shown.key_id, shown)
