"""Keys as objects: their ids, what they sign, and that their secrets stay inside."""

from __future__ import annotations

import copy
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secfarm.errors import BadSignatureError, KeyFileError
from secfarm.sign.keys import PublicKey, SharedSecret, SigningKey

SEED = bytes(range(32))
KEY = SigningKey.from_seed(SEED)
OTHER = SigningKey.from_seed(bytes(32))
SECRET = SharedSecret("ada@laptop", b"\x07" * 32)


def test_what_a_key_signs_its_public_half_verifies() -> None:
    assert KEY.public.verify(b"message", KEY.sign(b"message")) == b"message"


@pytest.mark.parametrize("verifier", [OTHER.public, SECRET], ids=["another key", "a secret"])
def test_another_key_verifies_nothing(verifier: PublicKey | SharedSecret) -> None:
    with pytest.raises(BadSignatureError):
        verifier.verify(b"message", KEY.sign(b"message"))


def test_a_signature_of_another_namespace_is_refused() -> None:
    """What was signed to authenticate, or for git, can never pass as a batch."""
    blob = KEY.sign_in("auth@secfarm", b"message")
    assert KEY.public.verify(b"message", blob, namespace="auth@secfarm") == b"message"
    with pytest.raises(BadSignatureError, match="task@secfarm"):
        KEY.public.verify(b"message", blob)


@given(st.data())
def test_a_flipped_byte_anywhere_in_a_blob_is_refused(data: st.DataObject) -> None:
    blob = bytearray(KEY.sign(b"message"))
    blob[data.draw(st.integers(0, len(blob) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(BadSignatureError):
        KEY.public.verify(b"message", bytes(blob))


@given(st.binary(max_size=300))
def test_garbage_is_a_bad_signature_and_no_other_error(garbage: bytes) -> None:
    for verifier in (KEY.public, SECRET):
        with pytest.raises(BadSignatureError):
            verifier.verify(b"message", garbage)


def test_a_cut_or_lengthened_blob_is_refused() -> None:
    blob = KEY.sign(b"message")
    for other in (blob[:-1], blob[1:], blob + b"\0", blob[:-64]):
        with pytest.raises(BadSignatureError):
            KEY.public.verify(b"message", other)


def test_public_text_round_trips_with_and_without_comment() -> None:
    for comment in ("", "ada@laptop", "several words é"):
        text = KEY.public.openssh(comment)
        assert PublicKey.from_openssh(text) == KEY.public
        assert text.endswith(comment)


def test_a_comment_cannot_add_a_line() -> None:
    with pytest.raises(KeyFileError, match="printable"):
        KEY.public.openssh("x\nmallory ssh-ed25519 AAAA")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ssh-ed25519",
        "ssh-rsa AAAAB3NzaC1yc2E=",
        "ssh-ed25519 !!!!",
        "ssh-ed25519 AAAA",
        "ssh-ed25519 " + KEY.public.openssh().split()[1][:-4],
        "ssh-ed25519 " + KEY.public.openssh().split()[1] + "AAAA",
        "ssh-ed25519 é",
        # The type inside differs from the type outside.
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE4AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
    ],
)
def test_a_malformed_public_key_is_a_key_file_error(text: str) -> None:
    with pytest.raises(KeyFileError):
        PublicKey.from_openssh(text)


def test_a_public_key_has_32_bytes() -> None:
    with pytest.raises(KeyFileError, match="31"):
        PublicKey(bytes(31))


@pytest.mark.parametrize("holder", [KEY, SECRET], ids=["signing key", "shared secret"])
def test_a_secret_is_in_no_repr_and_no_pickle(holder: SigningKey | SharedSecret) -> None:
    for hidden in (SEED, b"\x07" * 32):
        assert hidden.hex() not in repr(holder)
        assert repr(hidden)[2:-1] not in repr(holder)
    assert holder.key_id in repr(holder)
    assert not hasattr(holder, "__dict__")
    for copying in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="holds a secret"):
            copying(holder)


def test_a_seed_comes_back_for_the_key_file_only_by_that_name() -> None:
    assert KEY.reveal_seed() == SEED
    assert SECRET.reveal_secret() == b"\x07" * 32


@pytest.mark.parametrize("length", [0, 1, 16, 31, 1025])
def test_a_short_secret_is_refused(length: int) -> None:
    with pytest.raises(KeyFileError, match=str(length)):
        SharedSecret("ada", b"x" * length)


@pytest.mark.parametrize(
    "text",
    [
        KEY.public.openssh().encode(),
        b"-----BEGIN OPENSSH PRIVATE KEY-----\n" + b"A" * 40,
        b"\0\0\0\x0bssh-ed25519" + b"x" * 36,
    ],
)
def test_a_public_key_can_never_serve_as_a_secret(text: bytes) -> None:
    with pytest.raises(KeyFileError, match="not a secret"):
        SharedSecret("ada", text)


@pytest.mark.parametrize("principal", ["", "two words", "line\nbreak", "tab\t", "esc\x1b"])
def test_a_principal_is_one_printable_word(principal: str) -> None:
    with pytest.raises(KeyFileError, match="principal"):
        SharedSecret(principal, b"x" * 32)


def test_the_key_id_of_a_secret_names_it_and_does_not_tell_it() -> None:
    assert SECRET.key_id == SharedSecret("bob", b"\x07" * 32).key_id
    assert SECRET.key_id != SharedSecret("ada@laptop", b"\x08" * 32).key_id
    assert SECRET.key_id.startswith("HMAC:")
