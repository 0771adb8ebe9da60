"""What the Kerberos library says in numbers, said in words: what happened, and which side has to do what about it.

The numbers are MIT's (krb5_err.et); Heimdal counts the first 128, those of the protocol, likewise (RFC 4120, 7.5.9).
"""

from __future__ import annotations

from typing import Final

from secfarm.auth.base import Side
from secfarm.errors import AuthError

_BASE: Final = -1765328384 & 0xFFFFFFFF  # of the table krb5
_NO_KEY_FOR_NAME: Final = 39756033  # MIT's GSS mechanism: KG_KEYTAB_NOMATCH
_MAX_CHARS: Final = 300
_ROUTINE_ERROR_SHIFT: Final = 16  # RFC 2744, section 3.9.1
_BAD_MECH, _BAD_BINDINGS, _BAD_MIC, _NO_CREDENTIALS, _DEFECTIVE_TOKEN = 1, 4, 6, 7, 9

_SKEW: Final = (
    "the clocks of this machine and of the other one, or of the KDC, are too far apart. Set them by NTP (krb5.conf: "
    "clockskew, 300 s by default)"
)
_AT_CLIENT: Final[dict[int, str]] = {
    6: "the KDC does not know the client's principal. Look into the client keytab (klist -k), or have it added",
    7: "the KDC does not know the service {service}. Have it added (addprinc -randkey), or name it with target= if the "
    "server is reached by another name",
    12: "the KDC's policy forbids the ticket: the account may be disabled or restricted; ask its administrator",
    18: "the KDC has locked the client's account; ask its administrator",
    23: "the password or key of the client has expired. Run: kpasswd",
    24: "the KDC did not take the client's key: it changed since the client keytab was made. Make a new one (ktadd)",
    31: "the server's token could not be decrypted: it was altered on the way",
    33: "the Kerberos ticket is not valid yet: this machine's clock is behind the KDC's. Set both by NTP",
    32: "the Kerberos ticket has expired. Run: kinit",
    36: "the server's token is for another ticket: it was altered on the way",
    37: _SKEW,
    41: "the server's token was altered on the way",
    46: "the server did not prove that it is {service}: its token was altered on the way",
    142: "the credential cache holds no ticket of the kind needed. Run: kinit",
    154: "no KDC is known for the realm of {service}. Name it in krb5.conf ([realms], [domain_realm])",
    156: "no KDC of the realm answers. Check the network and krb5.conf ([realms], kdc)",
    193: "the credential cache cannot be read. Check KRB5CCNAME and the file's owner",
    194: "the credential cache may not be read by this user. Check its owner and KRB5CCNAME",
    195: "there is no Kerberos ticket: no credential cache was found. Run: kinit",
    196: "the credential cache cannot be read. Check KRB5CCNAME and the file's owner",
    199: "the credential cache is damaged or empty. Run: kinit",
    212: "what KRB5CCNAME names is no credential cache. Run: kinit",
    220: "no KDC of the realm can be found. Name it in krb5.conf ([realms], kdc)",
    217: "no realm is known for the host of {service}. Name it in krb5.conf ([domain_realm])",
    213: "the client keytab is no keytab. Make it with `ktutil` or `kadmin` (ktadd)",
}
_OTHER_REALM: Final = (
    "there is no way from the ticket's realm to that of {service}. Check [domain_realm] in krb5.conf, or the trust "
    "between the realms"
)
_AT_SERVER: Final[dict[int, str]] = {
    31: "the client's token could not be decrypted: it was altered on the way",
    32: "the client's ticket has expired; it has to run kinit",
    33: "the client's ticket is not valid yet: compare the clocks of client, server and KDC",
    34: "the client's token was seen before: it is a replay",
    35: "the client's ticket is for another service than those of the keytab; it has to name ours (target)",
    36: "ticket and authenticator of the client's token do not belong together: it was altered on the way",
    37: _SKEW,
    41: "the client's token was altered on the way",
    44: "the client's ticket is for a key version that the keytab does not have. After a change of key put the new one "
    "into it (ktadd); a client with an older ticket has to run kinit again",
    45: "the keytab has no key of the ticket's kind. Make it anew (ktadd)",
    213: "the keytab is no keytab. Make it with `ktutil` or `kadmin` (ktadd)",
}
_UNKNOWN_SERVICE: Final = 7
_PREAUTH_FAILED: Final = 24
_BAD_INTEGRITY: Final = 31
_NOT_DECRYPTED: Final = (
    "the client's ticket cannot be decrypted with the keytab's key of that version: the keytab has another key than "
    "the KDC (make it anew with ktadd), or the ticket was altered on the way"
)


class KerberosError(AuthError):
    """An `AuthError` of the mechanism `gss`; its message holds the remedy, docs/kerberos.md more of it."""


def in_words(error: Exception, side: Side, service: str, *, fetching: bool = False) -> KerberosError:
    """Return what a `gssapi.exceptions.GSSError` means, for our own side's log or user.

    Args:
        side: ours.
        service: the principal of the service that is wanted or offered, for the message.
        fetching: whether a client was still getting its tickets, so that whoever said it was a KDC.
    """
    words = _words(error, side, fetching=fetching).format(service=service)
    what, _, remedy = words.rpartition(" Run: ")
    done = "nothing was sent" if side is Side.CLIENT else "it was not let in"
    said = _said(error)
    if what:
        return KerberosError(f"kerberos: {what.removesuffix('.')} ({said}); {done}. Run: {remedy}")
    return KerberosError(f"kerberos: {words} ({said}); {done}")


def _words(error: Exception, side: Side, *, fetching: bool) -> str:
    minor = getattr(error, "min_code", 0)
    number = minor - _BASE if minor >= _BASE else -1
    found = (_AT_CLIENT if side is Side.CLIENT else _AT_SERVER).get(number)
    if side is Side.CLIENT and number == _UNKNOWN_SERVICE and "krbtgt/" in str(error):
        found = _OTHER_REALM
    elif fetching and number == _BAD_INTEGRITY:
        found = _AT_CLIENT[_PREAUTH_FAILED]
    elif side is Side.SERVER and number == _BAD_INTEGRITY and "Request ticket server" in str(error):
        found = _NOT_DECRYPTED
    elif minor == _NO_KEY_FOR_NAME and side is Side.SERVER:
        found = "the keytab has no key of {service}. Look with `klist -k`; add it with `ktadd`, or set service_name"
    return found or _of_routine((getattr(error, "maj_code", 0) >> _ROUTINE_ERROR_SHIFT) & 0xFF, side)


def _of_routine(routine: int, side: Side) -> str:
    """For what has no number of Kerberos' own."""
    if routine == _BAD_BINDINGS:
        return "the client's token was made for another channel: somebody may stand in between"
    if routine in {_BAD_MIC, _DEFECTIVE_TOKEN, _BAD_MECH}:
        return f"what the {side.other.value} sent is no Kerberos token of this exchange, or was altered on the way"
    if routine == _NO_CREDENTIALS:
        return (
            "there is nothing to prove {service} with"
            if side is Side.SERVER
            else "there is no Kerberos ticket. Run: kinit"
        )
    return "the library reports a failure"


def _said(error: Exception) -> str:
    """The library's own words; they may hold the peer's, so they are escaped and cut."""
    text = str(error).rpartition("): ")[2] or str(error)
    return ascii(text[:_MAX_CHARS])[1:-1]
