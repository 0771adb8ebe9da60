"""Receipts as bytes: what was signed comes back, and nothing else is believed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secfarm.errors import BadSignatureError, UntrustedKeyError, VerifyError
from secfarm.sign.envelope import Envelope, Signature, decode_envelope, encode_envelope, pae, seal
from secfarm.sign.keys import SharedSecret, SigningKey
from secfarm.sign.sshsig import armor
from secfarm.trust.receipt import (
    RECEIPT_NAMESPACE,
    RECEIPT_TYPE,
    Entry,
    Statement,
    check_receipt,
    digest_of,
    encode_receipt,
    sign_statement,
)

KEY = SigningKey.from_seed(b"\x03" * 32)
OTHER = SigningKey.from_seed(b"\x04" * 32)
SECRET = SharedSecret("ada", bytes(range(32)))
ENTRY = Entry(b"t" * 16, b"p" * 32, "ok", digest_of(b"\x05"), 1.5, 2.5)
REFUSED = Entry(b"u" * 16, b"", "refused", b"", 0.0, 0.0)
STATEMENT = Statement(1, "node1", "ada", "ab" * 32, (ENTRY, REFUSED))


@pytest.mark.parametrize("key", [KEY, SECRET], ids=["ed25519", "secret"])
def test_a_receipt_says_what_was_signed(key: SigningKey | SharedSecret) -> None:
    verifier = key.public if isinstance(key, SigningKey) else key
    statement = sign_statement(STATEMENT, key)
    first, second = (check_receipt(encode_receipt(statement, index), [OTHER.public, verifier]) for index in (0, 1))
    assert (first.key_id, first.server, first.principal, first.session) == (key.key_id, "node1", "ada", "ab" * 32)
    assert (first.task_id, first.task_digest, first.outcome) == ((b"t" * 16).hex(), (b"p" * 32).hex(), "ok")
    assert (first.result_digest, first.started_s, first.ended_s) == (digest_of(b"\x05").hex(), 1.5, 2.5)
    assert (second.task_digest, second.outcome, second.result_digest) == ("", "refused", "")
    assert check_receipt(bytes(first), [verifier]) == first
    assert "encoded" not in repr(first)


@pytest.mark.parametrize("key", [KEY, SECRET], ids=["ed25519", "secret"])
def test_no_byte_of_a_receipt_can_change(key: SigningKey | SharedSecret) -> None:
    verifier = key.public if isinstance(key, SigningKey) else key
    wire = encode_receipt(sign_statement(msgspec.structs.replace(STATEMENT, entries=(ENTRY,)), key), 0)
    for at in range(len(wire)):
        for flip in (0x01, 0x80):
            changed = wire[:at] + bytes([wire[at] ^ flip]) + wire[at + 1 :]
            with pytest.raises(VerifyError):
                check_receipt(changed, [verifier])


@given(st.binary(max_size=200))
def test_bytes_that_nobody_signed_are_no_receipt(data: bytes) -> None:
    with pytest.raises(VerifyError):
        check_receipt(data, [KEY.public, SECRET])


def wrapped(payload_type: str, payload: bytes, signature: Signature) -> bytes:
    return encode_receipt(encode_envelope(Envelope(payload_type, payload, (signature,))), 0)


def test_a_signature_for_another_use_is_none_for_a_receipt() -> None:
    payload = decode_envelope(sign_statement(STATEMENT, KEY)).payload
    message = pae(RECEIPT_TYPE, payload)
    for namespace in ("task@secfarm", "auth@secfarm", "receipt"):
        value = KEY.sign_in(namespace, message)
        with pytest.raises(BadSignatureError):
            check_receipt(wrapped(RECEIPT_TYPE, payload, Signature(KEY.key_id, value)), [KEY.public])
    batch = seal("application/vnd.secfarm.batch+msgpack;session=x", payload, SECRET)
    for kind in (RECEIPT_TYPE, batch.payload_type):
        with pytest.raises(VerifyError):
            check_receipt(wrapped(kind, payload, batch.signatures[0]), [SECRET])


def test_a_key_that_is_not_ours_is_named_and_not_believed() -> None:
    wire = encode_receipt(sign_statement(STATEMENT, OTHER), 0)
    with pytest.raises(UntrustedKeyError, match=OTHER.key_id.replace("+", r"\+")):
        check_receipt(wire, [KEY.public, SECRET])
    with pytest.raises(UntrustedKeyError):
        check_receipt(wire, [])
    # A key id is a hint: to name ours makes the signature no better.
    envelope = decode_envelope(sign_statement(STATEMENT, OTHER))
    renamed = Signature(KEY.key_id, envelope.signatures[0].value)
    with pytest.raises(BadSignatureError):
        check_receipt(wrapped(RECEIPT_TYPE, envelope.payload, renamed), [KEY.public])


@pytest.mark.parametrize("payload", [b"", b"\x90", b"\x95\x02\xa1n\xa1a\xa0\x91\xc0", b"\x91" * 2000], ids=repr)
def test_a_signed_statement_that_is_none_is_a_verify_error(payload: bytes) -> None:
    value = KEY.sign_in(RECEIPT_NAMESPACE, pae(RECEIPT_TYPE, payload))
    with pytest.raises(VerifyError):
        check_receipt(wrapped(RECEIPT_TYPE, payload, Signature(KEY.key_id, value)), [KEY.public])


def test_version_and_index_have_their_bounds() -> None:
    with pytest.raises(VerifyError, match="version 2"):
        check_receipt(
            encode_receipt(sign_statement(msgspec.structs.replace(STATEMENT, version=2), KEY), 0), [KEY.public]
        )
    with pytest.raises(VerifyError, match="2 entries"):
        check_receipt(encode_receipt(sign_statement(STATEMENT, KEY), 2), [KEY.public])
    with pytest.raises(VerifyError, match="no receipt"):
        check_receipt(bytes((1 << 20) + 100), [KEY.public])


def test_ssh_keygen_checks_a_statement(tmp_path: Path) -> None:
    envelope = decode_envelope(sign_statement(STATEMENT, KEY))
    (tmp_path / "statement.sig").write_text(armor(envelope.signatures[0].value))
    (tmp_path / "allowed_signers").write_text(f"node1 {KEY.public.openssh()}\n")
    command = ["ssh-keygen", "-Y", "verify", "-f", "allowed_signers", "-I", "node1", "-n", RECEIPT_NAMESPACE]
    done = subprocess.run(
        [*command, "-s", "statement.sig"],
        cwd=tmp_path,
        input=pae(RECEIPT_TYPE, envelope.payload),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
