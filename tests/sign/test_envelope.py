"""The envelope: what is signed, how it travels, and that no byte of it can change."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secfarm.errors import BadSignatureError, ProtocolError
from secfarm.sign.envelope import (
    MAX_SIGNATURES,
    Envelope,
    Signature,
    audience_type,
    check_signatures,
    decode_envelope,
    encode_envelope,
    from_json,
    pae,
    seal,
    session_type,
    to_json,
)
from secfarm.sign.keys import SharedSecret, SigningKey
from secfarm.sign.primitives import ed25519_verify

KEY = SigningKey.from_seed(bytes(range(32)))
OTHER = SigningKey.from_seed(bytes(32))
SECRET = SharedSecret("ada", b"s" * 32)
DSSE = json.loads((Path(__file__).parent / "data" / "dsse.json").read_text())

_texts = st.text(st.characters(codec="utf-8"), max_size=40)


class RawKey:
    """A verifier of bare Ed25519 signatures, as the vectors of DSSE have them."""

    algorithm = "ed25519"

    def __init__(self, key_id: str, public: bytes) -> None:
        self.key_id = key_id
        self.public = public

    def verify(self, message: bytes, signature: bytes, /) -> bytes:
        return ed25519_verify(self.public, message, signature)


def test_pae_is_that_of_the_specification() -> None:
    example = DSSE["example"]
    assert pae(example["payload_type"], example["payload"].encode()) == example["pae"].encode()


@pytest.mark.parametrize("vector", DSSE["vectors"], ids=lambda vector: vector["id"])
def test_the_vectors_of_dsse_hold(vector: dict[str, object]) -> None:
    envelope = from_json(json.dumps(vector["envelope"]))
    trusted = [RawKey(name, bytes.fromhex(DSSE["keys"][name])) for name in vector["trustedKeys"]]
    try:
        check_signatures(envelope, trusted, threshold=vector["threshold"])
        accepted = envelope.payload_type in vector["supportedPayloadTypes"]
    except BadSignatureError:
        accepted = False
    assert accepted == (vector["expect"] == "accept")
    if accepted:
        assert pae(envelope.payload_type, envelope.payload).hex() == vector["pae"]


@given(_texts, st.binary(max_size=40), _texts, st.binary(max_size=40))
def test_pae_is_injective(type_1: str, payload_1: bytes, type_2: str, payload_2: bytes) -> None:
    """Two different (type, payload) never give the same bytes to sign."""
    assert (pae(type_1, payload_1) == pae(type_2, payload_2)) == ((type_1, payload_1) == (type_2, payload_2))


@given(_texts, st.binary(max_size=40), st.integers(0, 80))
def test_moving_the_border_between_type_and_payload_changes_pae(kind: str, payload: bytes, cut: int) -> None:
    """The attack that injectivity is about: the same characters, cut elsewhere."""
    whole = f"{kind} {len(payload)} ".encode() + payload
    try:
        moved = whole[:cut].decode()
    except UnicodeDecodeError:
        return
    assert pae(moved, whole[cut:]) != pae(kind, payload)


@given(_texts, st.binary(max_size=99))
def test_pae_can_be_taken_apart_again(kind: str, payload: bytes) -> None:
    """A left inverse exists, so PAE is injective."""
    word, length, rest = pae(kind, payload).split(b" ", 2)
    size = int(length)
    _, payload_length, body = rest[size:].split(b" ", 2)
    assert (word, rest[:size].decode(), int(payload_length), body) == (b"DSSEv1", kind, len(payload), payload)


@pytest.mark.parametrize("signer", [KEY, SECRET], ids=["ed25519", "hmac"])
@given(payload=st.binary(max_size=200))
def test_a_sealed_envelope_survives_both_forms(signer: SigningKey | SharedSecret, payload: bytes) -> None:
    envelope = seal(session_type("5e55"), payload, signer)
    assert decode_envelope(encode_envelope(envelope)) == envelope
    assert from_json(to_json(envelope)) == envelope
    verifier = signer.public if isinstance(signer, SigningKey) else signer
    assert check_signatures(envelope, [verifier]) == (verifier,)


def test_the_type_is_taken_from_our_own_reckoning() -> None:
    """Even where nobody compared types, a signature for another session does not fit."""
    envelope = seal(session_type("a"), b"batch", KEY)
    with pytest.raises(BadSignatureError):
        check_signatures(envelope, [KEY.public], expected_type=session_type("b"))


def test_no_verifier_no_threshold_of_zero_and_no_foreign_key_pass() -> None:
    envelope = seal(session_type("a"), b"batch", KEY)
    for verifiers in ([], [OTHER.public], [SECRET]):
        for threshold in (0, 1):
            with pytest.raises(BadSignatureError):
                check_signatures(envelope, verifiers, threshold=threshold)


def test_one_key_counts_once() -> None:
    envelope = seal(session_type("a"), b"batch", KEY, KEY)
    with pytest.raises(BadSignatureError):
        check_signatures(envelope, [KEY.public, KEY.public], threshold=2)
    both = seal(session_type("a"), b"batch", KEY, OTHER)
    assert len(check_signatures(both, [KEY.public, OTHER.public], threshold=2)) == 2


@pytest.mark.parametrize("session_id", ["", "a b", "a;audience=b", "a\n", "é", "/", "x" * 129, "-a"])
def test_a_destination_cannot_be_ambiguous(session_id: str) -> None:
    for make in (session_type, audience_type):
        with pytest.raises(ValueError, match="destination"):
            make(session_id)


def test_a_session_and_an_audience_of_one_name_differ() -> None:
    assert session_type("a") != audience_type("a")


def test_sealing_takes_one_to_eight_signers() -> None:
    for signers in ((), (KEY,) * (MAX_SIGNATURES + 1)):
        with pytest.raises(ValueError, match="signers"):
            seal("type", b"", *signers)


_encode = msgspec.msgpack.encode


@pytest.mark.parametrize(
    "wire",
    [
        b"",
        b"\xc1",
        b"\x93",
        _encode([]),
        _encode(["t", b"p"]),
        _encode(["t", b"p", []]),
        _encode(["t", b"p", [["k", b"s"]] * (MAX_SIGNATURES + 1)]),
        _encode(["t", b"p", [["k", b"s"]], "more"]),
        _encode(["t", "text", [["k", b"s"]]]),
        _encode(["t", b"p", [["k", b"s", b"more"]]]),
        _encode(["t", b"p", [["k" * 257, b"s"]]]),
        _encode(["t", b"p", [["k", b"s" * 4097]]]),
        _encode(["t" * 513, b"p", [["k", b"s"]]]),
        _encode({"payload_type": "t", "payload": b"p", "signatures": [["k", b"s"]]}),
        encode_envelope(seal("t", b"p", KEY)) + b"\0",
        encode_envelope(seal("t", b"p", KEY))[:-1],
        b"\x93\xa1\xff\xc4\x01p\x91\x92\xa1k\xc4\x01s",  # text that is not UTF-8
        b"\x91" * 100_000,
        b"\x93\xdb\xff\xff\xff\xff",  # 4 GiB announced
    ],
)
def test_what_is_no_envelope_is_a_protocol_error(wire: bytes) -> None:
    with pytest.raises(ProtocolError, match="not an envelope"):
        decode_envelope(wire)


@given(st.binary(max_size=80))
def test_garbage_is_a_protocol_error_or_an_envelope(wire: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        assert isinstance(decode_envelope(wire), Envelope)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"payload":"eA==","payloadType":"t","signatures":[]}',
        '{"payload":"e","payloadType":"t","signatures":[{"sig":"eA=="}]}',
        '{"payload":"é","payloadType":"t","signatures":[{"sig":"eA=="}]}',
        '{"payload":"eA==","payloadType":"\\ud800","signatures":[{"sig":"eA=="}]}',
        '{"payload":"eA==","signatures":[{"sig":"eA=="}]}',
        "[" * 100_000,
    ],
)
def test_what_is_no_json_envelope_is_a_protocol_error(text: str) -> None:
    with pytest.raises(ProtocolError):
        from_json(text)


def test_json_ignores_unknown_fields_and_takes_a_missing_key_id_as_empty() -> None:
    """DSSE, envelope.md, parsing rules."""
    text = '{"payload":"eA==","payloadType":"t","more":1,"signatures":[{"sig":"eQ==","cert":"z"}]}'
    assert from_json(text) == Envelope("t", b"x", (Signature("", b"y"),))
