"""Ed25519 and HMAC-SHA256 over raw bytes, against the vectors of their RFCs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secfarm.errors import BadSignatureError, KeyFileError
from secfarm.sign.primitives import ed25519_expand, ed25519_sign, ed25519_verify, hmac_sha256, hmac_sha256_verify

_DATA = Path(__file__).parent / "data"


def _vectors(file: str) -> list[dict[str, str]]:
    return list(json.loads((_DATA / file).read_text())["vectors"])


@pytest.mark.parametrize("vector", _vectors("rfc8032.json"), ids=lambda vector: vector["name"])
def test_ed25519_is_that_of_rfc_8032(vector: dict[str, str]) -> None:
    public, expanded = ed25519_expand(bytes.fromhex(vector["seed"]))
    message, signature = bytes.fromhex(vector["message"]), bytes.fromhex(vector["signature"])
    assert public.hex() == vector["public"]
    assert ed25519_sign(expanded, message) == signature
    assert ed25519_verify(public, message, signature) == message


@pytest.mark.parametrize("vector", _vectors("rfc4231.json"), ids=lambda vector: vector["name"])
def test_hmac_is_that_of_rfc_4231(vector: dict[str, str]) -> None:
    key, message, tag = (bytes.fromhex(vector[name]) for name in ("key", "message", "tag"))
    assert hmac_sha256(key, message) == tag
    assert hmac_sha256_verify(key, message, tag) == message


@pytest.mark.parametrize(("key_bytes", "signature_bytes"), [(31, 64), (33, 64), (0, 64), (32, 63), (32, 65), (32, 0)])
def test_a_wrong_length_never_reaches_the_library(key_bytes: int, signature_bytes: int) -> None:
    """The bindings take any pointer: a short buffer would be read over its end."""
    with pytest.raises(BadSignatureError, match="a signature 64"):
        ed25519_verify(bytes(key_bytes), b"message", bytes(signature_bytes))


def test_a_seed_of_another_length_makes_no_key() -> None:
    with pytest.raises(KeyFileError, match="31"):
        ed25519_expand(bytes(31))


def test_the_all_zero_key_and_signature_verify_nothing() -> None:
    """A small-order key would accept signatures of any message."""
    with pytest.raises(BadSignatureError):
        ed25519_verify(bytes(32), b"message", bytes(64))


def test_s_plus_the_group_order_is_refused() -> None:
    """The second spelling of a signature (RFC 8032, section 5.1.7: S must be below the order) is none."""
    public, expanded = ed25519_expand(bytes(32))
    signature = ed25519_sign(expanded, b"message")
    order = 2**252 + 27742317777372353535851937790883648493
    other_s = (int.from_bytes(signature[32:], "little") + order).to_bytes(32, "little")
    with pytest.raises(BadSignatureError):
        ed25519_verify(public, b"message", signature[:32] + other_s)


@given(st.binary(max_size=64), st.integers(0, 63), st.integers(1, 255))
def test_a_flipped_byte_of_a_signature_is_refused(message: bytes, at: int, flip: int) -> None:
    public, expanded = ed25519_expand(bytes(range(32)))
    signature = bytearray(ed25519_sign(expanded, message))
    signature[at] ^= flip
    with pytest.raises(BadSignatureError):
        ed25519_verify(public, message, bytes(signature))


@given(st.binary(max_size=64), st.integers(0, 31), st.integers(1, 255))
def test_a_flipped_or_cut_tag_is_refused(message: bytes, at: int, flip: int) -> None:
    tag = bytearray(hmac_sha256(b"k" * 32, message))
    for cut in (b"", bytes(tag[:16]), bytes(tag[:31]), bytes(tag) + b"\0"):
        with pytest.raises(BadSignatureError):
            hmac_sha256_verify(b"k" * 32, message, cut)
    tag[at] ^= flip
    with pytest.raises(BadSignatureError):
        hmac_sha256_verify(b"k" * 32, message, bytes(tag))
