"""The mechanism `shared-secret`: both ends hold the same secret and say so over the binding with HMAC-SHA256.

The secret never travels, nor anything that another channel, another side or another time would take. Sans-I/O.
Law: docs/PROTOCOL.md, section 3.1.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, ClassVar, Final, TypeAlias

from secfarm.auth.base import Auth, Mechanism, Peer, Side, transcript
from secfarm.errors import AuthError, BadSignatureError, ConfigError
from secfarm.sign.keys import SharedSecret

if TYPE_CHECKING:
    from collections.abc import Iterable

NAME: Final = "shared-secret"
DEFAULT_PRINCIPAL: Final = "shared-secret"  # of a secret that is given as bare bytes
_CLIENT_LABEL: Final = "secfarm auth v1 shared-secret client"
_SERVER_LABEL: Final = "secfarm auth v1 shared-secret server"
_TAG_BYTES: Final = 32  # HMAC-SHA256
_MAX_KEY_ID_BYTES: Final = 128

SecretSource: TypeAlias = "SharedSecret | bytes | str | os.PathLike[str]"


class SharedSecretAuth(Auth):
    """Authentication by a shared secret; the same class on both sides.

    Attributes:
        secrets: loaded secrets, and paths of files that `secfarm.disk.credentials.ready` replaces by their content.
    """

    mechanism: ClassVar[str] = NAME

    def __init__(self, *secrets: SecretSource | Iterable[SecretSource]) -> None:
        """Take one secret (a client) or several (a server), each as a `SharedSecret`, bytes, or the path of its file.

        Raises:
            KeyFileError: bytes that are too short for a secret.
            ConfigError: no secret, or two with one key id.
        """
        self.secrets: tuple[SharedSecret | str | os.PathLike[str], ...] = tuple(
            SharedSecret(DEFAULT_PRINCIPAL, one) if isinstance(one, bytes) else one for one in _flat(secrets)
        )
        key_ids = [secret.key_id for secret in self.secrets if isinstance(secret, SharedSecret)]
        if not self.secrets or len(set(key_ids)) != len(key_ids):
            raise ConfigError("SharedSecretAuth needs at least one secret, and each only once")

    def __repr__(self) -> str:
        """Key ids and paths, never a secret."""
        return f"SharedSecretAuth({', '.join(map(repr, self.secrets))})"

    def begin(self, *, side: Side, binding: bytes, address: str, now_s: float) -> Mechanism:  # noqa: ARG002 - contract
        """Return the mechanism for one session; see `Auth.begin`."""
        loaded = tuple(secret for secret in self.secrets if isinstance(secret, SharedSecret))
        if len(loaded) != len(self.secrets):
            raise ConfigError("SharedSecretAuth names secret files that were not loaded; nothing was sent")
        if side is Side.SERVER:
            return _SecretServer(loaded, binding)
        if len(loaded) != 1:
            raise ConfigError(f"a client proves one secret, SharedSecretAuth has {len(loaded)}; nothing was sent")
        return _SecretClient(loaded[0], binding)


def _flat(sources: Iterable[SecretSource | Iterable[SecretSource]]) -> Iterable[SecretSource]:
    for source in sources:
        if isinstance(source, SharedSecret | bytes | str | os.PathLike):
            yield source
        else:
            yield from source


class _SecretClient(Mechanism):
    name = NAME

    def __init__(self, secret: SharedSecret, binding: bytes) -> None:
        self._secret = secret
        self._binding = binding
        self._proof: bytes | None = None

    @property
    def complete(self) -> bool:
        return self.peer is not None

    def step(self, token: bytes | None) -> bytes | None:
        if self._proof is None and token is None:
            key_id = self._secret.key_id.encode()
            self._proof = self._secret.sign(transcript(_CLIENT_LABEL, self._binding, key_id)) + key_id
            return self._proof
        if self._proof is None or token is None or self.complete:
            raise AuthError("shared-secret: a token came out of turn")
        try:
            self._secret.verify(transcript(_SERVER_LABEL, self._binding, self._proof), token)
        except BadSignatureError as error:
            raise AuthError(
                f"the server did not prove the shared secret {self._secret.key_id}: it holds another one, "
                "or somebody stands in between; nothing was sent to it"
            ) from error
        self.peer = Peer(self._secret.principal, NAME, self._secret.key_id, self._secret)
        return None


class _SecretServer(Mechanism):
    name = NAME

    def __init__(self, secrets: tuple[SharedSecret, ...], binding: bytes) -> None:
        self._secrets = {secret.key_id: secret for secret in secrets}
        self._binding = binding

    @property
    def complete(self) -> bool:
        return self.peer is not None

    def step(self, token: bytes | None) -> bytes | None:
        if token is None or self.complete:
            raise AuthError("shared-secret: a token came out of turn")
        if not _TAG_BYTES < len(token) <= _TAG_BYTES + _MAX_KEY_ID_BYTES:
            raise AuthError(f"shared-secret: the client's token has {len(token)} bytes")
        tag, key_id = token[:_TAG_BYTES], token[_TAG_BYTES:]
        secret = self._secrets.get(key_id.decode("ascii", "replace"))
        # An unknown key id costs one HMAC as well, so that time does not tell which ones exist.
        checked = secret or next(iter(self._secrets.values()))
        try:
            checked.verify(transcript(_CLIENT_LABEL, self._binding, key_id), tag)
        except BadSignatureError as error:
            raise _refused(key_id, known=secret is not None) from error
        if secret is None:
            raise _refused(key_id, known=False)
        self.peer = Peer(secret.principal, NAME, secret.key_id, secret)
        return secret.sign(transcript(_SERVER_LABEL, self._binding, token))


def _refused(key_id: bytes, *, known: bool) -> AuthError:
    why = "did not prove it" if known else "no secret here has that id"
    return AuthError(f"a client named the shared secret {key_id!r}: {why}; nothing was run")
