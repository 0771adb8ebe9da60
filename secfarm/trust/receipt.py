"""Receipts: a server's signed word on what it ran and what came of it, made once for each message of results.

One statement covers all outcomes of a message, so that its signature costs each task little; a receipt is the statement
and the number of an entry in it. Payload type and SSHSIG namespace are its own: no batch or proof of a name can pass
as a statement, nor the other way round. Format: docs/PROTOCOL.md, "Receipts".
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
from msgspec import Meta

from secfarm.errors import ProtocolError, UntrustedKeyError, VerifyError
from secfarm.limits import MAX_STATEMENT_BYTES
from secfarm.sign.envelope import Envelope, Signature, decode_envelope, encode_envelope, pae
from secfarm.sign.keys import PublicKey, SigningKey

if TYPE_CHECKING:
    from collections.abc import Iterable

    from secfarm.sign.keys import Signer, Verifier

RECEIPT_TYPE: Final = "application/vnd.secfarm.receipts+msgpack"
RECEIPT_NAMESPACE: Final = "receipt@secfarm"
STATEMENT_VERSION: Final = 1
OK: Final = "ok"
CHECKED: Final = "checked"  # of a dry run: nothing was called
_MAX_RECEIPT_BYTES: Final = MAX_STATEMENT_BYTES + 16

_Index = Annotated[int, Meta(ge=0, lt=1024)]
_TaskId = Annotated[bytes, Meta(min_length=16, max_length=16)]
_Digest = Annotated[bytes, Meta(max_length=32)]
_Word = Annotated[str, Meta(max_length=64)]
_Name = Annotated[str, Meta(max_length=255)]


class Entry(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """One outcome. Digests are SHA-256, and empty where there is nothing to digest."""

    task_id: _TaskId
    program: _Digest  # of the program's text; empty for a call that was refused
    outcome: _Word  # OK, CHECKED, or the code of its error
    result: _Digest  # of the encoded result
    started_s: float  # Unix seconds by the server's clock, 0.0 for what never started
    ended_s: float


class Statement(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """What a server signs: the outcomes of one message of results."""

    version: int
    server: _Name
    principal: str
    session: Annotated[str, Meta(max_length=64)]
    entries: Annotated[tuple[Entry, ...], Meta(min_length=1, max_length=1024)]


class _Wire(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    index: _Index
    statement: bytes


@dataclass(frozen=True, slots=True)
class Receipt:
    """A server's word on one task, as `check_receipt` found it: signed by the key `key_id`.

    Attributes:
        key_id: of the key that signed. It, and not the name, says who did.
        server: the server's name for itself.
        principal: whose task it was, by the server's trust files.
        session: the session's id, also in the server's audit log.
        task_id: `Future.task_id`.
        task_digest: SHA-256 of the program's text, in hex, as `Task.digest`; "" for a task that was refused.
        outcome: "ok", or the code of the error: "raised", "timeout", "refused", ...
        result_digest: SHA-256 of the encoded result (docs/codec.md), in hex; "" where there is none.
        started_s, ended_s: Unix seconds by the server's clock; 0.0 for a task that never started.
        encoded: the receipt as bytes, for a file or for `verify_receipt`; also `bytes(receipt)`.
    """

    key_id: str
    server: str
    principal: str
    session: str
    task_id: str
    task_digest: str
    outcome: str
    result_digest: str
    started_s: float
    ended_s: float
    encoded: bytes = field(repr=False)

    def __bytes__(self) -> bytes:
        return self.encoded


_encoder: Final = msgspec.msgpack.Encoder()
_statements: Final = msgspec.msgpack.Decoder(Statement)
_wires: Final = msgspec.msgpack.Decoder(_Wire)


def digest_of(value: bytes | None) -> bytes:
    """Return what an entry says of an encoded result."""
    return b"" if value is None else hashlib.sha256(value).digest()


def sign_statement(statement: Statement, signer: Signer) -> bytes:
    """Return the envelope of a statement."""
    payload = _encoder.encode(statement)
    message = pae(RECEIPT_TYPE, payload)
    value = signer.sign_in(RECEIPT_NAMESPACE, message) if isinstance(signer, SigningKey) else signer.sign(message)
    return encode_envelope(Envelope(RECEIPT_TYPE, payload, (Signature(signer.key_id, value),)))


def encode_receipt(statement: bytes, index: int) -> bytes:
    """Return the receipt of the entry `index` of a signed statement."""
    return _encoder.encode(_Wire(index, statement))


def check_receipt(wire: bytes, keys: Iterable[Verifier]) -> Receipt:
    """Return what a receipt says if one of `keys` signed it, else raise.

    Raises:
        UntrustedKeyError: the key that it names is none of them.
        BadSignatureError: the signature does not fit its bytes, or is in another namespace.
        VerifyError: it is no receipt.
    """
    if len(wire) > _MAX_RECEIPT_BYTES:
        raise VerifyError(
            f"{len(wire)} bytes are no receipt, which has at most {_MAX_RECEIPT_BYTES}; nothing was believed"
        )
    try:
        outer = _wires.decode(wire)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise VerifyError(f"this is no receipt ({error}); nothing was believed") from error
    key, statement = _check_statement(outer.statement, keys)
    if outer.index >= len(statement.entries):
        raise VerifyError(f"the statement has {len(statement.entries)} entries, the receipt names {outer.index}")
    return _receipt(key, statement, outer.index, wire)


def receipt_in(signed: bytes, task_id: bytes, key: Verifier) -> Receipt:
    """Return the receipt of a task in a statement that `key` signed, else raise as `check_receipt` does."""
    _, statement = _check_statement(signed, [key])
    for index, entry in enumerate(statement.entries):
        if entry.task_id == task_id:
            return _receipt(key, statement, index, encode_receipt(signed, index))
    raise VerifyError(f"the server's statement says nothing of task {task_id.hex()}; nothing was believed")


def _receipt(key: Verifier, statement: Statement, index: int, wire: bytes) -> Receipt:
    entry = statement.entries[index]
    return Receipt(
        key.key_id,
        statement.server,
        statement.principal,
        statement.session,
        entry.task_id.hex(),
        entry.program.hex(),
        entry.outcome,
        entry.result.hex(),
        entry.started_s,
        entry.ended_s,
        wire,
    )


def _check_statement(signed: bytes, keys: Iterable[Verifier]) -> tuple[Verifier, Statement]:
    try:
        envelope = decode_envelope(signed)
    except ProtocolError as error:
        raise VerifyError(f"this is no receipt ({error}); nothing was believed") from error
    if envelope.payload_type != RECEIPT_TYPE:
        raise VerifyError(f"this is signed as {envelope.payload_type!a} and no receipt; nothing was believed")
    key = _signed_by(envelope, keys)
    try:
        statement = _statements.decode(envelope.payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise VerifyError(f"the signed statement is malformed ({error}); nothing was believed") from error
    if statement.version != STATEMENT_VERSION:
        raise VerifyError(f"the statement has version {statement.version}, this side knows {STATEMENT_VERSION}")
    return key, statement


def _signed_by(envelope: Envelope, keys: Iterable[Verifier]) -> Verifier:
    message = pae(RECEIPT_TYPE, envelope.payload)
    named = {signature.key_id: signature.value for signature in envelope.signatures}
    for key in keys:
        if key.key_id in named:
            if isinstance(key, PublicKey):
                key.verify(message, named[key.key_id], namespace=RECEIPT_NAMESPACE)
            else:
                key.verify(message, named[key.key_id])
            return key
    raise UntrustedKeyError(
        f"the receipt is signed by {', '.join(map(ascii, named))}, none of the keys given; nothing was believed"
    )
