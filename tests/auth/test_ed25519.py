from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secfarm.auth import Ed25519AuthClient, Ed25519AuthServer, Mechanism, Side
from secfarm.auth.base import transcript
from secfarm.auth.ed25519 import AUTH_NAMESPACE
from secfarm.errors import AuthError, BadSignatureError, ConfigError, ExpiredError, RevokedKeyError, UntrustedKeyError
from secfarm.sign.keys import SigningKey
from tests.auth.people import (
    ADA,
    ADDRESS,
    EVE,
    FILE_SIGNER,
    NOW_S,
    OLD,
    REVOKED,
    SERVER,
    SERVER_NAME,
    known_servers,
    store,
)

BINDING = bytes([7]) * 32
OTHER_BINDING = bytes([8]) * 32


def client(key: SigningKey = ADA, binding: bytes = BINDING, address: str = ADDRESS) -> Mechanism:
    auth = Ed25519AuthClient(key, known_servers())
    return auth.begin(side=Side.CLIENT, binding=binding, address=address, now_s=NOW_S)


def server(key: SigningKey = SERVER, binding: bytes = BINDING) -> Mechanism:
    return Ed25519AuthServer(key, store()).begin(side=Side.SERVER, binding=binding, address="", now_s=NOW_S)


def token(mechanism: Mechanism, received: bytes | None = None) -> bytes:
    sent = mechanism.step(received)
    assert sent is not None
    return sent


def refused_proof(key: SigningKey) -> AuthError:
    """Let `key` go all the way and return what the server says in its log."""
    who, node = client(key), server()
    proof = token(who, token(node, token(who)))
    with pytest.raises(AuthError) as refused:
        node.step(proof)
    assert node.peer is None
    return refused.value


@pytest.mark.parametrize("address", [ADDRESS, SERVER_NAME])
def test_each_end_learns_the_name_that_its_own_files_give(address: str) -> None:
    ada, node = client(address=address), server()
    assert node.step(token(ada, token(node, token(ada)))) is None
    assert ada.complete
    assert node.complete
    assert ada.peer is not None
    assert node.peer is not None
    assert (ada.peer.principal, ada.peer.key_id) == (ADDRESS, SERVER.key_id)
    assert (node.peer.principal, node.peer.key_id) == ("ada", ADA.key_id)
    assert (ada.peer.verifier, node.peer.verifier) == (SERVER.public, ADA.public)


def test_the_client_proves_nothing_before_the_server_has() -> None:
    assert token(client()) == ADA.public.raw


@pytest.mark.parametrize(
    ("key", "cause"),
    [(EVE, UntrustedKeyError), (OLD, ExpiredError), (FILE_SIGNER, UntrustedKeyError), (REVOKED, RevokedKeyError)],
    ids=["unknown", "expired", "other namespace", "revoked"],
)
def test_keys_that_the_trust_store_does_not_believe_are_refused(key: SigningKey, cause: type[Exception]) -> None:
    refused = refused_proof(key)
    assert isinstance(refused.__cause__, cause)
    assert refused.public == "refused"


def test_an_unknown_key_gets_the_servers_token_like_a_known_one() -> None:
    """Who is known does not show before the client's own proof."""
    assert [len(token(server(), key.public.raw)) for key in (ADA, EVE)] == [len(token(server(), OLD.public.raw))] * 2


def test_showing_a_key_without_having_it_is_refused() -> None:
    node = server()
    answer = token(node, ADA.public.raw)
    forged = EVE.sign_in(AUTH_NAMESPACE, transcript("x", BINDING, answer[:32], ADA.public.raw))
    with pytest.raises(AuthError) as refused:
        node.step(forged)
    assert isinstance(refused.value.__cause__, BadSignatureError)


def test_a_server_with_another_key_is_not_believed_and_gets_no_proof() -> None:
    ada, false = client(), server(EVE)
    with pytest.raises(AuthError, match="known_servers") as refused:
        ada.step(token(false, token(ada)))
    assert EVE.key_id in str(refused.value)
    assert SERVER.key_id in str(refused.value)
    assert not ada.complete


def test_a_server_at_an_address_that_no_line_names_is_not_believed() -> None:
    ada = client(address="10.0.0.1:7419")
    with pytest.raises(AuthError, match="no key at all"):
        ada.step(token(server(), token(ada)))


def test_a_server_that_shows_a_key_it_has_not_is_not_believed() -> None:
    ada = client()
    answer = token(server(EVE), token(ada))
    with pytest.raises(AuthError, match="in between"):
        ada.step(SERVER.public.raw + answer[32:])


def test_reflection_is_refused() -> None:
    """Even when one key serves a client and a server, a proof of one side is none of the other."""
    same = Ed25519AuthServer(ADA, store())
    node = same.begin(side=Side.SERVER, binding=BINDING, address="", now_s=NOW_S)
    own_proof = token(node, ADA.public.raw)[32:]
    with pytest.raises(AuthError):
        node.step(own_proof)
    ada = client()
    with pytest.raises(AuthError):
        ada.step(token(ada))


def test_proofs_of_one_channel_are_worth_nothing_on_another() -> None:
    """A relay with a certificate of its own makes two bindings."""
    ada, node = client(binding=BINDING), server(binding=OTHER_BINDING)
    with pytest.raises(AuthError, match="in between"):
        ada.step(token(node, token(ada)))
    other = client(binding=OTHER_BINDING)
    proof = token(other, token(node := server(binding=OTHER_BINDING), token(other)))
    victim = server(binding=BINDING)
    token(victim, ADA.public.raw)
    with pytest.raises(AuthError):
        victim.step(proof)
    assert not node.complete


def test_a_batch_signature_is_no_proof() -> None:
    ada, node = client(), server()
    answer = token(node, token(ada))
    message = transcript("secfarm auth v1 ed25519 client", BINDING, answer[:32], ADA.public.raw)
    with pytest.raises(AuthError):
        node.step(ADA.sign(message))


@given(st.binary(max_size=300))
def test_garbage_never_proves_anything(garbage: bytes) -> None:
    ada, node, fresh = client(), server(), server()
    token(node, token(ada))
    for mechanism in (ada, node):
        with pytest.raises(AuthError):
            mechanism.step(garbage)
        assert mechanism.peer is None
    if len(garbage) != 32:
        with pytest.raises(AuthError):
            fresh.step(garbage)


def test_tokens_out_of_turn_are_refused() -> None:
    with pytest.raises(AuthError):
        server().step(None)
    with pytest.raises(AuthError):
        client().step(b"x")
    ada, node = client(), server()
    first = token(ada)
    with pytest.raises(AuthError):
        ada.step(None)
    answer = token(node, first)
    proof = token(ada, answer)
    node.step(proof)
    for mechanism, again in ((node, proof), (ada, answer)):
        with pytest.raises(AuthError):
            mechanism.step(again)


def test_a_side_takes_only_its_own_auth() -> None:
    with pytest.raises(ConfigError):
        Ed25519AuthClient(ADA, known_servers()).begin(side=Side.SERVER, binding=BINDING, address="", now_s=NOW_S)
    with pytest.raises(ConfigError):
        Ed25519AuthServer(SERVER, store()).begin(side=Side.CLIENT, binding=BINDING, address="", now_s=NOW_S)


@pytest.mark.parametrize(
    "auth",
    [
        Ed25519AuthClient("id_ed25519", known_servers()),
        Ed25519AuthClient(ADA),
        Ed25519AuthServer(Path("server_ed25519"), store()),
        Ed25519AuthServer(SERVER),
    ],
    ids=["client paths", "client without servers", "server paths", "server without signers"],
)
def test_paths_that_nobody_loaded_prove_nothing(auth: Ed25519AuthClient | Ed25519AuthServer) -> None:
    side = Side.CLIENT if isinstance(auth, Ed25519AuthClient) else Side.SERVER
    with pytest.raises(ConfigError, match="not loaded"):
        auth.begin(side=side, binding=BINDING, address=ADDRESS, now_s=NOW_S)
