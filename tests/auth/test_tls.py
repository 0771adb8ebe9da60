"""Certificates as a mechanism: which name they give, a key for each session, and nothing without TLS's own verdict."""

from __future__ import annotations

import pytest

from secfarm.auth import Side, TlsAuthClient, TlsAuthServer
from secfarm.auth.base import Mechanism, PeerCertificate
from secfarm.auth.tls import TlsIdentity, principal_of
from secfarm.errors import AuthError, BadSignatureError, ConfigError
from secfarm.sign.keys import SigningKey
from tests.auth.people import ADA, EVE

BINDING = bytes(range(32))
IDENTITY = TlsIdentity(b"certificate", b"very private", b"ca")
NODE = PeerCertificate((("DNS", "node1"),), "ab" * 32, 2e9)
LAPTOP = PeerCertificate((("DNS", "laptop"), ("email", "ada@example.com")), "cd" * 32, 3e9)


def client(binding: bytes = BINDING, certificate: PeerCertificate | None = NODE, key: SigningKey = ADA) -> Mechanism:
    auth = TlsAuthClient("c", "k", "a").loaded(IDENTITY, lambda: key).over(certificate)
    return auth.begin(side=Side.CLIENT, binding=binding, address="node1:7419", now_s=0.0)


def server(binding: bytes = BINDING, certificate: PeerCertificate | None = LAPTOP) -> Mechanism:
    auth = TlsAuthServer("c", "k", "a").loaded(IDENTITY).over(certificate)
    return auth.begin(side=Side.SERVER, binding=binding, address="", now_s=0.0)


def test_the_names_are_those_of_the_certificates_and_the_session_ends_with_them() -> None:
    near, far = client(), server()
    assert far.step(near.step(None)) is None
    assert (near.peer.principal, near.peer.expires_s) == ("node1", 2e9)
    assert (far.peer.principal, far.peer.expires_s, far.peer.key_id) == ("ada@example.com", 3e9, "cd" * 32)


def test_the_session_has_a_key_of_its_own() -> None:
    near, far = client(), server()
    far.step(near.step(None))
    signature = near.peer.session_signer.sign(b"m")
    assert far.peer.session_verifier.verify(b"m", signature) == b"m"
    assert near.peer.session_signer.key_id == far.peer.session_verifier.key_id
    assert near.peer.session_signer.key_id.startswith("TLS:")
    with pytest.raises(BadSignatureError):
        far.peer.session_verifier.verify(b"n", signature)


def test_a_key_that_is_not_proven_on_this_channel() -> None:
    token = client().step(None)
    for wrong in (client(bytes(32)).step(None), EVE.public.raw + token[32:], token[:32], token[:31], b"", token + b"x"):
        far = server()
        with pytest.raises(AuthError):
            far.step(wrong)
        assert not far.complete


@pytest.mark.parametrize("make", [client, server])
def test_without_a_verified_certificate_there_is_no_session(make: object) -> None:
    with pytest.raises(AuthError, match="no certificate"):
        make(certificate=None)


def test_tokens_out_of_turn() -> None:
    near, far = client(), server()
    with pytest.raises(AuthError, match="turn"):
        near.step(b"t")
    with pytest.raises(AuthError, match="turn"):
        far.step(None)
    far.step(near.step(None))
    for one, token in ((near, None), (far, b"t")):
        with pytest.raises(AuthError, match="turn"):
            one.step(token)


@pytest.mark.parametrize(
    ("names", "principal"),
    [
        ((("DNS", "a"), ("URI", "spiffe://x/b"), ("email", "c@d")), "c@d"),
        ((("DNS", "a"), ("URI", "spiffe://x/b")), "spiffe://x/b"),
        ((("IP Address", "127.0.0.1"), ("DNS", "a"), ("DNS", "b")), "a"),
    ],
)
def test_which_name_counts(names: tuple[tuple[str, str], ...], principal: str) -> None:
    assert principal_of(PeerCertificate(names, "", 0.0)) == principal


@pytest.mark.parametrize(
    "names",
    [
        (),
        (("IP Address", "127.0.0.1"),),
        (("DNS", "*.example.com"),),
        (("email", "a b@c"),),
        (("email", "a\x00b@c"),),
        (("email", ""),),
        (("email", "!ada"),),
        (("URI", "u" * 256),),
    ],
)
def test_a_name_that_cannot_be_one_principal(names: tuple[tuple[str, str], ...]) -> None:
    with pytest.raises(AuthError):
        principal_of(PeerCertificate(names, "", 0.0))


def test_each_side_has_its_own_class_and_files_must_be_loaded() -> None:
    with pytest.raises(ConfigError, match="for a client"):
        TlsAuthClient("c", "k", "a").begin(side=Side.SERVER, binding=BINDING, address="", now_s=0.0)
    with pytest.raises(ConfigError, match="for a server"):
        TlsAuthServer("c", "k", "a").begin(side=Side.CLIENT, binding=BINDING, address="", now_s=0.0)
    with pytest.raises(ConfigError, match="not loaded"):
        TlsAuthClient("c", "k", "a").begin(side=Side.CLIENT, binding=BINDING, address="", now_s=0.0)
    with pytest.raises(ConfigError, match="not loaded"):
        _ = TlsAuthServer("c", "k", "a").identity


def test_the_private_key_is_in_no_repr() -> None:
    assert "private" not in repr(IDENTITY)
    assert "private" not in repr(TlsAuthServer("c", "k", "a").loaded(IDENTITY))
