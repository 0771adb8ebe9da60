"""The site's own certificates: TLS contexts in which each end is verified by the other, and what they have verified.

All verification is the standard library's (OpenSSL's): chain, validity, purpose and, by whoever dials, the host name.
"""

from __future__ import annotations

import hashlib
import ssl
from typing import TYPE_CHECKING, cast

from secfarm.auth.base import PeerCertificate
from secfarm.auth.tls import TlsAuthClient, TlsIdentity
from secfarm.errors import ConfigError, KeyFileError
from secfarm.net.tls import as_file, initiator_context, new_context
from secfarm.wire.address import TcpAddress

if TYPE_CHECKING:
    from secfarm.auth.base import Auth
    from secfarm.wire.address import Address


def verified_certificate(tls: ssl.SSLObject) -> PeerCertificate | None:
    """Return the peer's certificate if this end's context has verified it; None where it showed or verified none."""
    found = tls.getpeercert()  # empty, or None, unless it was verified
    raw = tls.getpeercert(binary_form=True)
    if not found or raw is None:
        return None
    names = cast("tuple[tuple[str, str], ...]", found.get("subjectAltName", ()))
    ends = ssl.cert_time_to_seconds(cast("str", found["notAfter"]))
    return PeerCertificate(tuple(names), hashlib.sha256(raw).hexdigest(), float(ends))


def dialling(auth: Auth | None, address: Address) -> tuple[ssl.SSLContext, str]:
    """Return the context for dialling `address` with `auth`, and the name that the other end's certificate must have.

    Without certificates in `auth` any certificate is taken, and there is no name: the mechanism above binds to it.

    Raises:
        ConfigError: `auth` needs a name to expect, and there is none.
        KeyFileError: its certificate and key cannot be used.
    """
    if not isinstance(auth, TlsAuthClient):
        return initiator_context(), ""
    name = auth.server_name or (address.host if isinstance(address, TcpAddress) else "")
    if not name:
        raise ConfigError(
            f"{address} has no host name that its certificate could have; give TlsAuthClient(server_name=...). "
            "Nothing was sent"
        )
    context = new_context(ssl.PROTOCOL_TLS_CLIENT)  # verifies chain and host name
    _load(context, auth.identity)
    return context, name


def listening(identity: TlsIdentity) -> tuple[ssl.SSLContext, bytes]:
    """Return an acceptor's context with the site's certificate, and that certificate (DER).

    With an authority it asks who dials for a certificate. One that is shown must be good; that one is shown at all is
    the mechanism's to demand, for other mechanisms need none.

    Raises:
        KeyFileError: certificate and key cannot be used.
    """
    context = new_context(ssl.PROTOCOL_TLS_SERVER)
    context.num_tickets = 0  # a resumed session would show no certificate to bind to
    if identity.ca:
        context.verify_mode = ssl.CERT_OPTIONAL
    _load(context, identity)
    first = identity.certificate.partition(b"-----END CERTIFICATE-----")
    return context, ssl.PEM_cert_to_DER_cert((first[0][first[0].index(b"-----BEGIN") :] + first[1]).decode())


def _load(context: ssl.SSLContext, identity: TlsIdentity) -> None:
    try:
        with as_file(identity.certificate) as certificate, as_file(identity.key) as key:
            # Without a password callback OpenSSL would ask at the terminal.
            context.load_cert_chain(certificate, key, password=lambda: b"")
        if identity.ca:
            context.load_verify_locations(cadata=identity.ca.decode("ascii"))
    except (ssl.SSLError, OSError, ValueError) as error:
        raise KeyFileError(
            f"{identity.place}: certificate, key and authority cannot be used together ({error}). The key must be the "
            "certificate's, in PEM, without a passphrase; nothing was started"
        ) from error
