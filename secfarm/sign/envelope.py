"""The envelope: a payload, its type, and signatures over both (DSSE), as msgpack on the wire or as JSON in a file.

Opens nothing and trusts nobody: who signs and who is believed is passed in. The payload type carries the destination,
so an envelope for one session fits no other.
Source: DSSE, protocol.md 1.0.0 (PAE) and envelope.md 1.0.2 (JSON form), github.com/secure-systems-lab/dsse.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from typing import Annotated, Final

import msgspec

from secfarm.errors import BadSignatureError, ProtocolError
from secfarm.sign.keys import Signer, Verifier

BATCH_TYPE: Final = "application/vnd.secfarm.batch+msgpack"
MAX_SIGNATURES: Final = 8  # each costs the verifier a look-up, and a hit up to 100 µs
MAX_PAYLOAD_TYPE_CHARS: Final = 512
MAX_KEY_ID_CHARS: Final = 256
MAX_SIGNATURE_BYTES: Final = 4096  # an SSHSIG with a certificate; an Ed25519 one has under 200

_DESTINATION: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,127}")


class Signature(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """One signature; the key id is an unsigned hint for finding the key."""

    key_id: Annotated[str, msgspec.Meta(max_length=MAX_KEY_ID_CHARS)]
    value: Annotated[bytes, msgspec.Meta(max_length=MAX_SIGNATURE_BYTES)]


class Envelope(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """A payload and who signed it. Nothing in it is believed before `check_signatures`."""

    payload_type: Annotated[str, msgspec.Meta(max_length=MAX_PAYLOAD_TYPE_CHARS)]
    payload: bytes
    signatures: Annotated[tuple[Signature, ...], msgspec.Meta(min_length=1, max_length=MAX_SIGNATURES)]


class _JsonSignature(msgspec.Struct):
    sig: str
    keyid: str = ""


class _JsonEnvelope(msgspec.Struct, rename="camel"):
    payload: str
    payload_type: str
    signatures: list[_JsonSignature]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Envelope)
_json_decoder = msgspec.json.Decoder(_JsonEnvelope)


def pae(payload_type: str, payload: bytes) -> bytes:
    """Return the bytes that are signed: DSSE's pre-authentication encoding, injective in its two arguments."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def session_type(session_id: str) -> str:
    """Return the payload type of a batch for one session.

    Raises:
        ValueError: the id has characters that are not of `A-Z a-z 0-9 . _ @ -`.
    """
    return f"{BATCH_TYPE};session={_destination(session_id)}"


def audience_type(farm: str) -> str:
    """Return the payload type of a batch that is stored or carried to the farm of that name.

    Raises:
        ValueError: as `session_type`.
    """
    return f"{BATCH_TYPE};audience={_destination(farm)}"


def _destination(name: str) -> str:
    if _DESTINATION.fullmatch(name) is None:
        raise ValueError(f"{name!r} cannot name a destination: 1 to 128 of A-Z a-z 0-9 . _ @ - are allowed")
    return name


def seal(payload_type: str, payload: bytes, *signers: Signer) -> Envelope:
    """Return the envelope of `payload`, signed by each of `signers` (at least one)."""
    if not 1 <= len(signers) <= MAX_SIGNATURES:
        raise ValueError(f"an envelope has 1 to {MAX_SIGNATURES} signers, not {len(signers)}")
    message = pae(payload_type, payload)
    return Envelope(payload_type, payload, tuple([Signature(key.key_id, key.sign(message)) for key in signers]))


def encode_envelope(envelope: Envelope) -> bytes:
    """Return the msgpack form."""
    return _encoder.encode(envelope)


def decode_envelope(wire: bytes) -> Envelope:
    """Return the envelope in `wire`; its size was judged by the caller.

    Raises:
        ProtocolError: it is not one.
    """
    try:
        return _decoder.decode(wire)
    # msgspec raises a bare UnicodeDecodeError for bad text and RecursionError for deep nesting.
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"not an envelope: {error}; nothing of it was believed") from error


def check_signatures(
    envelope: Envelope, verifiers: Iterable[Verifier], *, expected_type: str | None = None, threshold: int = 1
) -> tuple[Verifier, ...]:
    """Return those of `verifiers` that signed the envelope, if they are at least `threshold`, else raise.

    Key ids play no part here: a verifier is tried on every signature, and counts once however often it signed.

    Args:
        expected_type: the payload type by our own reckoning; the envelope's own where None. It goes into the bytes
            that are verified, so a signature for elsewhere fails even where nobody compared the types.

    Raises:
        BadSignatureError: they are fewer.
    """
    message = pae(envelope.payload_type if expected_type is None else expected_type, envelope.payload)
    found = tuple([verifier for verifier in verifiers if _signed_by(verifier, message, envelope.signatures)])
    if len({verifier.key_id for verifier in found}) < max(threshold, 1):
        raise BadSignatureError(
            f"{len(found)} of the {max(threshold, 1)} signatures needed fit the envelope's bytes; nothing was believed"
        )
    return found


def _signed_by(verifier: Verifier, message: bytes, signatures: tuple[Signature, ...]) -> bool:
    for signature in signatures:
        try:
            verifier.verify(message, signature.value)
        except BadSignatureError:
            continue
        return True
    return False


def to_json(envelope: Envelope) -> str:
    """Return the DSSE JSON form."""
    signatures = [{"keyid": one.key_id, "sig": _base64(one.value)} for one in envelope.signatures]
    fields = {"payload": _base64(envelope.payload), "payloadType": envelope.payload_type, "signatures": signatures}
    return msgspec.json.encode(fields).decode()


def from_json(text: str | bytes) -> Envelope:
    """Return the envelope of the DSSE JSON form; standard and URL-safe Base64 are read, unknown fields ignored.

    Raises:
        ProtocolError: it is not one.
    """
    try:
        fields = _json_decoder.decode(text)
        signatures = tuple([Signature(one.keyid, _unbase64(one.sig)) for one in fields.signatures])
        envelope = Envelope(fields.payload_type, _unbase64(fields.payload), signatures)
        return _decoder.decode(_encoder.encode(envelope))  # the bounds of the wire form hold for the JSON form too
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ProtocolError(f"not a DSSE envelope: {error}; nothing of it was believed") from error


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _unbase64(text: str) -> bytes:
    return base64.b64decode(text.replace("-", "+").replace("_", "/"), validate=True)
