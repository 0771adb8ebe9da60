"""The one secure channel: TLS 1.3 of the standard library, with an ephemeral certificate that proves nothing by itself.

The mechanism above binds its proofs to the certificate (`tls-server-end-point`, RFC 5929), so whoever relays with a
certificate of its own makes the proofs fail. ECDSA P-256 with SHA-256 is an algorithm for which RFC 5929 defines that.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import ssl
from collections.abc import Iterator
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_VALIDITY: Final = dt.timedelta(days=3650)  # nobody checks it: the certificate lives as long as its process


def acceptor_context() -> tuple[ssl.SSLContext, bytes]:
    """Return a context with a certificate made this moment, and that certificate (DER)."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "secfarm")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + _VALIDITY)
        .sign(key, hashes.SHA256())
    )
    context = new_context(ssl.PROTOCOL_TLS_SERVER)
    context.num_tickets = 0  # a resumed session would show no certificate to bind to
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ) + certificate.public_bytes(serialization.Encoding.PEM)
    with as_file(pem) as path:
        context.load_cert_chain(path)
    return context, certificate.public_bytes(serialization.Encoding.DER)


def initiator_context() -> ssl.SSLContext:
    """Return a context that takes any certificate: who is at the other end is the mechanism's to prove."""
    context = new_context(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def new_context(protocol: int) -> ssl.SSLContext:
    """Return a context that speaks TLS 1.3 and nothing else."""
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.maximum_version = ssl.TLSVersion.TLSv1_3
    return context


@contextlib.contextmanager
def as_file(content: bytes) -> Iterator[str]:
    """Give `content` as a file: the ssl module reads keys from files only, and no other process sees a memfd."""
    descriptor = os.memfd_create("certificate", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, content)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def tls_library() -> str:
    """Return name and version of the library that speaks TLS here, for people."""
    return ssl.OPENSSL_VERSION
