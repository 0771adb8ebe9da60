from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secfarm.auth import Mechanism, SharedSecretAuth, Side
from secfarm.auth.base import transcript
from secfarm.errors import AuthError, ConfigError, KeyFileError
from secfarm.sign.keys import SharedSecret
from tests.auth.people import ADA_SECRET, ADDRESS, BOB_SECRET, EVE_SECRET, NOW_S

BINDING = bytes([7]) * 32
OTHER_BINDING = bytes([8]) * 32
SECRET_BYTES = bytes(range(32))


def client(secret: SharedSecret | bytes = ADA_SECRET, binding: bytes = BINDING) -> Mechanism:
    return SharedSecretAuth(secret).begin(side=Side.CLIENT, binding=binding, address=ADDRESS, now_s=NOW_S)


def server(*secrets: SharedSecret, binding: bytes = BINDING) -> Mechanism:
    auth = SharedSecretAuth(*(secrets or (BOB_SECRET, ADA_SECRET)))
    return auth.begin(side=Side.SERVER, binding=binding, address="", now_s=NOW_S)


def token(mechanism: Mechanism, received: bytes | None = None) -> bytes:
    sent = mechanism.step(received)
    assert sent is not None
    return sent


def test_both_ends_learn_the_principal_of_the_secret() -> None:
    ada, node = client(), server()
    assert ada.step(token(node, token(ada))) is None
    assert ada.complete
    assert node.complete
    assert ada.peer == node.peer
    assert node.peer is not None
    assert (node.peer.principal, node.peer.key_id) == ("ada", ADA_SECRET.key_id)
    assert node.peer.verifier is ADA_SECRET


def test_the_servers_name_for_the_secret_counts_not_the_clients() -> None:
    node = server()
    node.step(token(client(SharedSecret("root", SECRET_BYTES))))
    assert node.peer is not None
    assert node.peer.principal == "ada"


def test_bytes_are_a_secret_too() -> None:
    ada, node = client(SECRET_BYTES), server()
    ada.step(token(node, token(ada)))
    assert ada.complete


def test_the_secret_is_in_no_token() -> None:
    ada, node = client(), server()
    first = token(ada)
    assert SECRET_BYTES not in first + token(node, first)


def test_an_unknown_secret_and_a_wrong_proof_are_refused_with_one_public_word() -> None:
    forged = bytes(32) + ADA_SECRET.key_id.encode()
    for bad in (token(client(EVE_SECRET)), forged):
        node = server()
        with pytest.raises(AuthError) as refused:
            node.step(bad)
        assert refused.value.public == "refused"
        assert not node.complete


def test_a_right_proof_under_another_known_key_id_is_refused() -> None:
    """The secret that an unknown id is checked with, to take the same time, opens nothing."""
    unknown = b"HMAC:unknown"
    proof = BOB_SECRET.sign(transcript("secfarm auth v1 shared-secret client", BINDING, unknown))
    node = server(BOB_SECRET)
    with pytest.raises(AuthError, match="no secret here"):
        node.step(proof + unknown)
    assert node.peer is None


@pytest.mark.parametrize("bad", [b"", bytes(32), bytes(33), bytes(200), b"\xff" * 60], ids=len)
def test_malformed_client_tokens_are_refused(bad: bytes) -> None:
    with pytest.raises(AuthError):
        server().step(bad)


@given(st.binary(max_size=100))
def test_garbage_never_proves_anything(garbage: bytes) -> None:
    node, ada = server(), client()
    token(ada)
    for mechanism in (node, ada):
        with pytest.raises(AuthError):
            mechanism.step(garbage)
        assert mechanism.peer is None


def test_a_reflected_token_is_refused() -> None:
    ada = client()
    with pytest.raises(AuthError):
        ada.step(token(ada))


def test_a_proof_of_the_server_is_no_proof_of_a_client() -> None:
    node, other = server(), server()
    answer = token(node, token(client()))
    with pytest.raises(AuthError):
        other.step(answer + ADA_SECRET.key_id.encode())


def test_tokens_of_one_channel_are_worth_nothing_on_another() -> None:
    """A relay with a certificate of its own makes two bindings."""
    ada, node = client(binding=BINDING), server(binding=OTHER_BINDING)
    first = token(ada)
    with pytest.raises(AuthError):
        node.step(first)
    with pytest.raises(AuthError, match="in between"):
        ada.step(token(server(binding=OTHER_BINDING), token(client(binding=OTHER_BINDING))))


def test_a_server_without_the_secret_is_not_believed() -> None:
    ada = client()
    token(ada)
    with pytest.raises(AuthError):
        ada.step(EVE_SECRET.sign(b"anything"))


def test_tokens_out_of_turn_are_refused() -> None:
    with pytest.raises(AuthError):
        server().step(None)
    with pytest.raises(AuthError):
        client().step(b"x")
    ada, node = client(), server()
    first = token(ada)
    answer = token(node, first)
    with pytest.raises(AuthError):
        node.step(first)
    ada.step(answer)
    for again in (None, answer):
        with pytest.raises(AuthError):
            ada.step(again)


def test_short_secrets_are_no_secrets() -> None:
    with pytest.raises(KeyFileError):
        SharedSecretAuth(b"password")


def test_none_or_twice_the_same_is_a_mistake() -> None:
    with pytest.raises(ConfigError):
        SharedSecretAuth()
    with pytest.raises(ConfigError):
        SharedSecretAuth(ADA_SECRET, SharedSecret("bob", SECRET_BYTES))


def test_a_sequence_is_several_secrets() -> None:
    assert SharedSecretAuth([ADA_SECRET, BOB_SECRET]).secrets == (ADA_SECRET, BOB_SECRET)


def test_a_client_has_one_secret() -> None:
    with pytest.raises(ConfigError):
        SharedSecretAuth(ADA_SECRET, BOB_SECRET).begin(side=Side.CLIENT, binding=BINDING, address=ADDRESS, now_s=NOW_S)


@pytest.mark.parametrize("path", ["ada.secret", Path("ada.secret")])
def test_a_path_that_nobody_loaded_proves_nothing(path: str | Path) -> None:
    auth = SharedSecretAuth(path)
    assert auth.secrets == (path,)
    for side in Side:
        with pytest.raises(ConfigError, match="not loaded"):
            auth.begin(side=side, binding=BINDING, address=ADDRESS, now_s=NOW_S)


def test_repr_shows_ids_only() -> None:
    shown = repr(SharedSecretAuth(SECRET_BYTES))
    assert ADA_SECRET.key_id in shown
    assert repr(SECRET_BYTES)[2:-1] not in shown
