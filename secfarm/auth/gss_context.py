"""A session's GSS context, from the first token to the key that it leaves: what both sides of `gss` check of it.

What the library granted is checked, not assumed; the channel goes into the library's own bindings *and* into a MIC over
all that was said, each way, for bindings that only one end sets are not refused everywhere.
Law: docs/PROTOCOL.md, section 3.3.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol

from secfarm.auth.base import Mechanism, Peer, Side, transcript
from secfarm.auth.gss_errors import KerberosError, in_words
from secfarm.errors import AuthError, BadSignatureError, KeyFileError
from secfarm.limits import MAX_FRAME_BEFORE_AUTH_BYTES

if TYPE_CHECKING:
    import gssapi

    from secfarm.auth.gss import GssAuthClient, GssAuthServer

NAME: Final = "gss"
_CLIENT_LABEL: Final = "secfarm auth v1 gss client"
_SERVER_LABEL: Final = "secfarm auth v1 gss server"
_BINDINGS_LABEL: Final = b"secfarm session v1:"
_KRB5_HEADER: Final = bytes.fromhex("06092a864886f712010202")  # RFC 4121, section 4.1: the mechanism's identifier
_SPNEGO_HEADER: Final = bytes.fromhex("06062b0601050502")  # RFC 4178
_NTLM_HEADER: Final = b"NTLMSSP\0"
_MAX_TOKEN_BYTES: Final = MAX_FRAME_BEFORE_AUTH_BYTES - 512  # the frame and our MIC need some
_MAX_MIC_BYTES: Final = 256
_LENGTH_BYTES: Final = 4
_ANONYMOUS: Final = "WELLKNOWN/ANONYMOUS@"  # RFC 8062
_SKEW_S: Final = 300  # MIT's acceptor counts the clock skew that it allows into a ticket's life


class Keytab(Protocol):
    """A server's keytab as `secfarm.disk.keytab` gives it."""

    def name(self) -> str:
        """Return the name by which GSS finds the keytab as it is now.

        Raises:
            KeyFileError: it is missing, unreadable, empty, open to others or no keytab.
        """


@dataclass(frozen=True, slots=True)
class ContextKey:
    """A session's GSS context as a key: MICs of one end hold at the other, in their order, and nowhere else.

    The context lives in one process; whoever is to verify needs this object.
    """

    algorithm: ClassVar[str] = "gss-mic"
    key_id: str
    _context: Any = field(repr=False)
    _library: Any = field(repr=False)

    def sign(self, message: bytes) -> bytes:
        """Return the MIC of `message`."""
        return bytes(self._library.raw.get_mic(self._context, message))

    def verify(self, message: bytes, signature: bytes, /) -> bytes:
        """Return `message` if `signature` is the other end's next MIC and over it, else raise.

        Raises:
            BadSignatureError: it is not: altered, repeated, out of order, or our own.
        """
        if len(signature) > _MAX_MIC_BYTES:
            raise BadSignatureError(f"a MIC of {len(signature)} bytes; nothing was believed")
        try:
            self._library.raw.verify_mic(self._context, message, signature)
        except self._library.exceptions.GSSError as error:
            raise BadSignatureError(
                f"the MIC is not the next one of this session's context ({type(error).__name__}); nothing was believed"
            ) from error
        return message


class _Gss(Mechanism):
    """What both sides check of a context."""

    name = NAME
    blocking = True
    side: ClassVar[Side]

    def __init__(self, library: Any, binding: bytes, now_s: float, service: str) -> None:  # noqa: ANN401 - see gss.py
        self._library = library
        self._binding = binding
        self._now_s = now_s
        self._service = service
        flag = library.RequirementFlag
        self._needed = {
            "mutual authentication": flag.mutual_authentication,
            "replay detection": flag.replay_detection,
            "sequence": flag.out_of_sequence_detection,
            "integrity": flag.integrity,
            "confidentiality": flag.confidentiality,
        }

    @property
    def complete(self) -> bool:
        return self.peer is not None

    def _bindings(self) -> Any:  # noqa: ANN401 - see gss.py
        return self._library.raw.ChannelBindings(application_data=_BINDINGS_LABEL + self._binding)

    def _check(self, result: Any) -> None:  # noqa: ANN401 - see gss.py
        """Return if the context is complete and what we asked for was granted, nothing that we did not, else raise."""
        if result.more_steps:
            raise KerberosError("kerberos: the context needs more rounds than Kerberos 5 takes; it was ended")
        if result.mech != self._library.MechType.kerberos:
            raise KerberosError("kerberos: the context is of another mechanism than Kerberos 5; it was ended")
        missing = [word for word, flag in self._needed.items() if flag not in result.flags]
        if missing:
            raise KerberosError(f"kerberos: the context grants no {', '.join(missing)}; it was ended")
        if self._library.RequirementFlag.delegate_to_peer in result.flags or getattr(result, "delegated_creds", None):
            raise KerberosError(
                "kerberos: the client delegates its credentials, and this end wants none; it was ended. Client: do not "
                "set delegation (forwarding) for this service"
            )

    def _name(self, name: Any, whose: Side) -> str:  # noqa: ANN401 - see gss.py
        """Return the full principal of a proven name, else raise."""
        shown = self._library.raw.display_name(name)
        principal: str = shown.name.decode("utf-8", "strict")
        kinds = {self._library.NameType.anonymous, None}
        if shown.name_type in kinds or principal.startswith(_ANONYMOUS):
            raise KerberosError(f"kerberos: the {whose.value} is anonymous; it was not let in")
        if not all(principal.rpartition("@")) or not principal.isprintable() or " " in principal:
            raise KerberosError(f"kerberos: {principal!a} is no full principal; it was not let in")
        return principal

    def _key(self, context: Any) -> ContextKey:  # noqa: ANN401 - see gss.py
        return ContextKey(f"GSS:{self._binding.hex()}", context, self._library)

    def _expires_s(self, lifetime_s: int | None, skew_s: int = 0) -> float | None:
        if lifetime_s is None:
            return None
        return self._now_s + (lifetime_s - skew_s if lifetime_s > skew_s else lifetime_s)

    def _check_mic(self, key: ContextKey, message: bytes, mic: bytes) -> None:
        try:
            key.verify(message, mic)
        except BadSignatureError as error:
            raise KerberosError(
                f"kerberos: the {self.side.other.value} did not prove that it is at the other end of this channel: "
                "somebody may stand in between; the session was ended"
            ) from error


class GssClient(_Gss):
    """A client's side of one session; by GSS's words the initiator, whoever dialled."""

    side = Side.CLIENT

    def __init__(self, library: Any, auth: GssAuthClient, target: str, binding: bytes, now_s: float) -> None:  # noqa: ANN401
        super().__init__(library, binding, now_s, target)
        self._auth = auth
        self._context: Any = None
        self._target: Any = None
        self._credentials: Any = None
        self._token = b""

    def step(self, token: bytes | None) -> bytes | None:
        """Take the peer's token and return ours; see `Mechanism.step`."""
        if self.complete or (token is None) != (self._context is None):
            raise AuthError("kerberos: a token came out of turn")
        try:
            return self._begin() if token is None else self._end(token)
        except self._library.exceptions.GSSError as error:
            raise in_words(error, self.side, self._service, fetching=token is None) from error

    def _begin(self) -> bytes:
        library = self._library
        kind = library.NameType.kerberos_principal if "/" in self._service else library.NameType.hostbased_service
        self._target = library.raw.import_name(self._service.encode(), kind)
        self._credentials = self._acquire()
        result = self._init(None)
        self._context, self._token = result.context, bytes(result.token or b"")
        if len(self._token) > _MAX_TOKEN_BYTES:
            raise KerberosError(
                f"kerberos: the ticket makes a token of {len(self._token)} bytes, {_MAX_TOKEN_BYTES} are allowed; "
                "nothing was sent. A principal with fewer groups has a smaller one"
            )
        return self._token

    def _init(self, token: bytes | None) -> Any:  # noqa: ANN401 - see gss.py
        return self._library.raw.init_sec_context(
            self._target,
            creds=self._credentials,
            context=self._context,
            mech=self._library.MechType.kerberos,
            flags=list(self._needed.values()),
            channel_bindings=self._bindings(),
            input_token=token,
        )

    def _acquire(self) -> Any:  # noqa: ANN401 - see gss.py
        store: dict[bytes, bytes] = {}
        if self._auth.ccache is not None:
            store[b"ccache"] = _file(str(self._auth.ccache))
        elif self._auth.client_keytab is not None:
            store[b"client_keytab"] = _file(str(self._auth.client_keytab))
            # Of this keytab only: another's tickets must not be taken for its own.
            store[b"ccache"] = b"MEMORY:secfarm " + str(self._auth.client_keytab).encode()
        raw, kerberos = self._library.raw, [self._library.MechType.kerberos]
        if not store:
            return raw.acquire_cred(None, mechs=kerberos, usage="initiate").creds
        return raw.acquire_cred_from(store, None, mechs=kerberos, usage="initiate").creds

    def _end(self, token: bytes) -> bytes:
        answer, mic = _cut(token)
        result = self._init(answer)
        self._check(result)
        key = self._key(result.context)
        self._check_mic(key, transcript(_SERVER_LABEL, self._binding, self._token, answer), mic)
        server = self._name(self._library.raw.inquire_context(result.context).target_name, Side.SERVER)
        self.peer = Peer(server, NAME, session_signer=key, expires_s=self._expires_s(result.lifetime))
        return key.sign(transcript(_CLIENT_LABEL, self._binding, self._token, token))


class GssServer(_Gss):
    """A server's side of one session; by GSS's words the acceptor, whoever dialled."""

    side = Side.SERVER

    def __init__(self, library: Any, auth: GssAuthServer, keytab: Keytab, binding: bytes, now_s: float) -> None:  # noqa: ANN401
        super().__init__(library, binding, now_s, auth.service_name)
        self._auth = auth
        self._keytab = keytab
        self._said: bytes | None = None  # what the client has to make its MIC over, once the context is complete
        self._result: Any = None

    def step(self, token: bytes | None) -> bytes | None:
        """Take the peer's token and return ours; see `Mechanism.step`."""
        if token is None or self.complete:
            raise AuthError("kerberos: a token came out of turn")
        try:
            if self._said is None:
                return self._accept(token)
            self._finish(self._said, token)
        except self._library.exceptions.GSSError as error:
            raise in_words(error, self.side, self._service) from error
        except KeyFileError as error:
            raise KerberosError(f"kerberos: {error}") from error
        return None

    def _accept(self, token: bytes) -> bytes:
        _check_kind(token)
        result = self._library.raw.accept_sec_context(
            token, acceptor_creds=self._credentials(), channel_bindings=self._bindings()
        )
        self._check(result)
        self._name(result.initiator_name, Side.CLIENT)
        self._result = result
        answer = bytes(result.token or b"")
        mic = self._key(result.context).sign(transcript(_SERVER_LABEL, self._binding, token, answer))
        reply = len(answer).to_bytes(_LENGTH_BYTES, "big") + answer + mic
        self._said = transcript(_CLIENT_LABEL, self._binding, token, reply)
        return reply

    def _credentials(self) -> Any:  # noqa: ANN401 - see gss.py
        """Acquired anew for each session, so a keytab with new keys counts at once."""
        store = {b"keytab": self._keytab.name().encode()}
        if self._auth.replay_cache is not None:
            store[b"rcache"] = b"file2:" + self._auth.replay_cache.encode()
        library = self._library
        # Without a name any principal of the keytab would be taken, without mechs SPNEGO.
        name = library.raw.import_name(self._auth.service_name.encode(), library.NameType.hostbased_service)
        kerberos = [library.MechType.kerberos]
        return library.raw.acquire_cred_from(store, name, mechs=kerberos, usage="accept").creds

    def _finish(self, said: bytes, mic: bytes) -> None:
        result, self._result = self._result, None
        key = self._key(result.context)
        self._check_mic(key, said, mic)
        principal = self._name(result.initiator_name, Side.CLIENT)
        self._ask(principal, self._library.Name(result.initiator_name))
        self.peer = Peer(principal, NAME, session_verifier=key, expires_s=self._expires_s(result.lifetime, _SKEW_S))

    def _ask(self, principal: str, name: gssapi.Name) -> None:
        try:
            verdict: object = self._auth.name_accepted(name)
        except Exception as error:
            raise KerberosError(
                f"kerberos: name_accepted raised {type(error).__name__} for {principal!a}, so it was not let in"
                f": {error}"
            ) from error
        if verdict is not True:
            hint = "" if verdict is False else f" (it returned {type(verdict).__name__}, and only True accepts)"
            raise KerberosError(
                f"kerberos: {principal!a} proved its name and is not accepted{hint}; it was not let in. If it "
                "should be, add it to allowed_users"
            )


def _check_kind(token: bytes) -> None:
    """Return if `token` begins as one of Kerberos 5 does, else raise and say what it is instead."""
    head = token[:32]
    if token.startswith(_NTLM_HEADER):
        raise KerberosError("kerberos: the client sent an NTLM token; only Kerberos 5 itself is accepted")
    if _SPNEGO_HEADER in head:
        raise KerberosError("kerberos: the client sent a SPNEGO token; only Kerberos 5 itself is accepted")
    if not token.startswith(b"\x60") or _KRB5_HEADER not in head:
        raise KerberosError(f"kerberos: the client's first token of {len(token)} bytes is not one of Kerberos 5")


def _cut(token: bytes) -> tuple[bytes, bytes]:
    """Cut the server's token into GSS's and the MIC behind it."""
    end = _LENGTH_BYTES + int.from_bytes(token[:_LENGTH_BYTES], "big")
    if not _LENGTH_BYTES < end < len(token) <= end + _MAX_MIC_BYTES:
        raise KerberosError(
            f"kerberos: the server's token of {len(token)} bytes is none of this exchange; it was ended"
        )
    return token[_LENGTH_BYTES:end], token[end:]


def _file(name: str) -> bytes:
    """A path as Kerberos writes it; what has a kind already stays."""
    return (name if ":" in name else f"FILE:{name}").encode()
