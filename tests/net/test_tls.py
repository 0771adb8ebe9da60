"""The channel: TLS 1.3 and nothing else, a certificate of its own for every process, no resumption."""

from __future__ import annotations

import hashlib
import socket
import ssl
import threading
import warnings

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from secfarm.net.tls import acceptor_context, initiator_context


def handshake(client: ssl.SSLContext, server: ssl.SSLContext) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Both ends of one handshake, in memory."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    near = client.wrap_bio(to_client, to_server)
    far = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(5):
        for one in (near, far):
            try:
                one.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return near, far


def test_both_ends_speak_tls_1_3() -> None:
    server, certificate = acceptor_context()
    near, far = handshake(initiator_context(), server)
    assert near.version() == far.version() == "TLSv1.3"
    assert near.getpeercert(binary_form=True) == certificate
    assert near.compression() is None


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2])
@pytest.mark.parametrize("weak", ["client", "server"])
def test_no_older_version_is_spoken_by_either_end(version: ssl.TLSVersion, weak: str) -> None:
    contexts = {"client": initiator_context(), "server": acceptor_context()[0]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python calls the old versions deprecated
        contexts[weak].minimum_version = version
        contexts[weak].maximum_version = version
    with pytest.raises(ssl.SSLError):
        handshake(contexts["client"], contexts["server"])


def test_the_certificate_is_ephemeral_and_of_an_algorithm_with_a_defined_binding() -> None:
    """RFC 5929, section 4.1: ECDSA with SHA-256."""
    first, second = (x509.load_der_x509_certificate(acceptor_context()[1]) for _ in range(2))
    assert first.public_key() != second.public_key()
    assert isinstance(first.public_key(), ec.EllipticCurvePublicKey)
    assert isinstance(first.public_key().curve, ec.SECP256R1)
    assert isinstance(first.signature_hash_algorithm, type(second.signature_hash_algorithm))
    assert first.signature_hash_algorithm.name == "sha256"
    assert first.issuer == first.subject


def test_no_ticket_is_given_out() -> None:
    """A resumed handshake would show no certificate to bind to."""
    server, _ = acceptor_context()
    assert server.num_tickets == 0
    here, there = socket.socketpair()

    def serve() -> None:
        with server.wrap_socket(there, server_side=True) as tls:
            tls.sendall(b"x")

    thread = threading.Thread(target=serve)
    thread.start()
    with initiator_context().wrap_socket(here) as tls:
        assert tls.recv(1) == b"x"
        assert not tls.session_reused
        assert tls.session is None or not tls.session.has_ticket
    thread.join()


def test_two_certificates_have_two_bindings() -> None:
    digests = {hashlib.sha256(acceptor_context()[1]).digest() for _ in range(3)}
    assert len(digests) == 3
