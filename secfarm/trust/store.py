"""The trust store: which key speaks for which principal, in which namespace, and when.

Pure: texts come in, secfarm/disk/trustfile.py reads them. A key id finds candidates and proves nothing. Grammar of
`allowed_signers`: ssh-keygen(1), ALLOWED SIGNERS; of a `known_servers` line: `PATTERN ssh-ed25519 AAAA... [comment]`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from secfarm.errors import ExpiredError, KeyFileError, RevokedKeyError, RewoundError, TrustFileError, UntrustedKeyError
from secfarm.limits import DEFAULT_PORT
from secfarm.sign.keys import PublicKey, SharedSecret, Verifier
from secfarm.sign.sshsig import KEY_TYPE
from secfarm.trust.patterns import is_definite, matches, matches_list

_PRINCIPALS: Final = re.compile(r'"(?P<quoted>[^"]*)"(?=[ \t])|(?P<plain>[^\s"]+)(?=[ \t])')
_OPTIONS: Final = re.compile(r'(?:[^\s"\\]|\\.|"(?:[^"\\]|\\.)*")+(?=[ \t])')
_OPTION: Final = re.compile(r'(?P<name>[A-Za-z-]+)(?:="(?P<value>(?:[^"\\]|\\.)*)")?(?:,(?=[^,])|$)')
_ANY_KEY_TYPE: Final = re.compile(r"(ssh|ecdsa|sk|rsa|webauthn)-\S+")
_TIME: Final = re.compile(r"(?P<day>\d{8})(?:(?P<minute>\d{4})(?P<second>\d{2})?)?(?P<zone>[Zz]?)")


@dataclass(frozen=True, slots=True)
class AllowedSigner:
    """One line of `allowed_signers`.

    Attributes:
        principals: the line's pattern list; of a plain key the first is its name.
        namespaces: patterns of what it may sign for; None: everything.
        valid_after_s, valid_before_s: Unix seconds, both inclusive; None: no bound.
        cert_authority: the key certifies keys and signs nothing itself.
        place: `file:line`.
    """

    principals: tuple[str, ...]
    key: PublicKey
    namespaces: tuple[str, ...] | None = None
    valid_after_s: float | None = None
    valid_before_s: float | None = None
    cert_authority: bool = False
    place: str = ""

    @property
    def principal(self) -> str:
        """The name that the key gives its owner."""
        return self.principals[0]


def parse_allowed_signers(text: str, *, file: str) -> tuple[AllowedSigner, ...]:
    """Return the entries of an `allowed_signers` file, in its order.

    Raises:
        TrustFileError: a line is not understood whole; it names `file` and the line. None of the file is used then,
            because an option that we skipped might have been a restriction.
    """
    return tuple([_allowed_signer(line, place) for place, line in _lines(text, file)])


def _lines(text: str, file: str) -> list[tuple[str, str]]:
    """Return (place, line) of what is neither blank nor a comment; only a newline ends a line."""
    numbered = [(f"{file}:{number}", line.strip(" \t\r")) for number, line in enumerate(text.split("\n"), start=1)]
    kept = [(place, line) for place, line in numbered if line and not line.startswith("#")]
    for place, line in kept:
        if not line.replace("\t", " ").isprintable():
            raise TrustFileError(f"{place}: there are unprintable characters in the line; the file was not used")
    return kept


def _allowed_signer(line: str, place: str) -> AllowedSigner:
    found = _PRINCIPALS.match(line)
    if found is None:
        raise TrustFileError(f"{place}: expected `PRINCIPALS [OPTIONS] {KEY_TYPE} AAAA...`; the file was not used")
    principals = tuple((found["quoted"] or found["plain"] or "").split(","))
    rest = line[found.end() :].lstrip(" \t")
    options: dict[str, str | None] = {}
    if _ANY_KEY_TYPE.match(rest) is None:
        written = _OPTIONS.match(rest)
        if written is None:
            raise TrustFileError(f"{place}: no key after {','.join(principals)!r}; the file was not used")
        options = _options(written[0], place)
        rest = rest[written.end() :].lstrip(" \t")
    namespaces = options.get("namespaces")
    entry = AllowedSigner(
        principals=principals,
        key=_key(rest, place),
        namespaces=None if namespaces is None else tuple(namespaces.split(",")),
        valid_after_s=_time_s(options.get("valid-after"), place),
        valid_before_s=_time_s(options.get("valid-before"), place),
        cert_authority="cert-authority" in options,
        place=place,
    )
    return _check_entry(entry)


def _check_entry(entry: AllowedSigner) -> AllowedSigner:
    if not all(entry.principals):
        raise TrustFileError(f"{entry.place}: an empty principal; the file was not used")
    if not entry.cert_authority and not is_definite(entry.principal):
        raise TrustFileError(
            f"{entry.place}: {entry.principal!r} is a pattern, but a key must name one principal first; the file was "
            "not used. Write the name of the key's owner, without * ? !"
        )
    after, before = entry.valid_after_s, entry.valid_before_s
    if after is not None and before is not None and after >= before:
        raise TrustFileError(f"{entry.place}: valid-after is not before valid-before; the file was not used")
    return entry


def _options(written: str, place: str) -> dict[str, str | None]:
    options: dict[str, str | None] = {}
    at = 0
    while at < len(written):
        found = _OPTION.match(written, at)
        name = found["name"].lower() if found else written[at:]
        if found is None or name not in _TAKES_VALUE or _TAKES_VALUE[name] != (found["value"] is not None):
            raise TrustFileError(
                f'{place}: option {name!r} is not one of cert-authority, namespaces="...", valid-after="...", '
                'valid-before="..."; the file was not used'
            )
        if name in options:
            raise TrustFileError(f"{place}: option {name!r} is given twice; the file was not used")
        options[name] = None if found["value"] is None else re.sub(r'\\"', '"', found["value"])
        at = found.end()
    return options


_TAKES_VALUE: Final = {"cert-authority": False, "namespaces": True, "valid-after": True, "valid-before": True}


def _time_s(written: str | None, place: str) -> float | None:
    """Return Unix seconds of `YYYYMMDD[HHMM[SS]][Z]`; without Z it is local time, as for OpenSSH."""
    if written is None:
        return None
    found = _TIME.fullmatch(written)
    try:
        if found is None:
            raise ValueError("not of that form")
        digits = found["day"] + (found["minute"] or "0000") + (found["second"] or "00")
        moment = datetime.strptime(digits, "%Y%m%d%H%M%S")  # noqa: DTZ007 - the zone follows
        return (moment.replace(tzinfo=UTC) if found["zone"] else moment).timestamp()
    except (ValueError, OverflowError, OSError) as error:
        raise TrustFileError(f"{place}: {written!r} is no time YYYYMMDD[HHMM[SS]][Z]; the file was not used") from error


def _key(text: str, place: str) -> PublicKey:
    try:
        return PublicKey.from_openssh(text)
    except KeyFileError as error:
        raise TrustFileError(f"{place}: {error}; the file was not used") from error


class TrustStore:
    """What the trust files of a server say, ready to be asked. Immutable: a changed file makes a new store."""

    __slots__ = ("_entries", "_revoked", "_secrets", "_signers")

    def __init__(
        self,
        entries: Iterable[AllowedSigner] = (),
        secrets: Iterable[SharedSecret] = (),
        revoked: Iterable[str] = (),
    ) -> None:
        """Take the entries in file order, the shared secrets, and the ids of revoked keys.

        Raises:
            TrustFileError: two principals have one secret, so neither could be told from the other.
        """
        self._entries = tuple(entries)
        self._signers: dict[str, list[AllowedSigner]] = {}
        for entry in self._entries:
            if not entry.cert_authority:
                self._signers.setdefault(entry.key.key_id, []).append(entry)
        self._secrets: dict[str, SharedSecret] = {}
        for secret in secrets:
            other = self._secrets.setdefault(secret.key_id, secret)
            if other.principal != secret.principal:
                raise TrustFileError(
                    f"{other.principal!r} and {secret.principal!r} have the same shared secret; give each its own"
                )
        self._revoked = frozenset(revoked)

    @property
    def entries(self) -> tuple[AllowedSigner, ...]:
        """The lines of `allowed_signers`, in the order given."""
        return self._entries

    @property
    def secrets(self) -> tuple[SharedSecret, ...]:
        """The shared secrets, in the order given."""
        return tuple(self._secrets.values())

    def candidates(self, key_id: str) -> tuple[Verifier, ...]:
        """Return the keys of that id, revoked and expired ones too: an id is a hint, the judgement comes after."""
        if signers := self._signers.get(key_id):
            return (signers[0].key,)
        secret = self._secrets.get(key_id)
        return () if secret is None else (secret,)

    def principal_of(self, key_id: str, *, namespace: str, now_s: float) -> str:
        """Return the principal for whom the key speaks now, in this namespace.

        Of several lines for one key the first that is valid now decides.

        Raises:
            UntrustedKeyError: nobody's key, or not for this namespace.
            RevokedKeyError: it was revoked.
            ExpiredError: its time is past.
            RewoundError: its time has not come.
        """
        if key_id in self._revoked:
            raise RevokedKeyError(f"key {key_id} was revoked; nothing was run. Sign with a new key")
        secret = self._secrets.get(key_id)
        if secret is not None:
            return secret.principal
        entries = self._signers.get(key_id, [])
        fitting = [entry for entry in entries if entry.namespaces is None or matches_list(entry.namespaces, namespace)]
        for entry in fitting:
            if _not_yet(entry, now_s) is None and _no_longer(entry, now_s) is None:
                return entry.principal
        raise _untrusted(key_id, namespace, entries, fitting, now_s)


def _not_yet(entry: AllowedSigner, now_s: float) -> float | None:
    """Return since when the entry will be valid, if it is not yet."""
    return entry.valid_after_s if entry.valid_after_s is not None and now_s < entry.valid_after_s else None


def _no_longer(entry: AllowedSigner, now_s: float) -> float | None:
    """Return until when the entry was valid, if it no longer is."""
    return entry.valid_before_s if entry.valid_before_s is not None and now_s > entry.valid_before_s else None


def _untrusted(
    key_id: str, namespace: str, entries: list[AllowedSigner], fitting: list[AllowedSigner], now_s: float
) -> UntrustedKeyError | ExpiredError | RewoundError:
    """Say why none of the entries counts; of several reasons the last line's, as the newest."""
    if not entries:
        return UntrustedKeyError(f"key {key_id} is in no line of allowed_signers; nothing was run")
    if not fitting:
        return UntrustedKeyError(
            f"key {key_id} of {entries[0].principal} is not for {namespace!r} ({entries[0].place}); nothing was run"
        )
    entry = fitting[-1]
    begins_s, ended_s = _not_yet(entry, now_s), _no_longer(entry, now_s)
    if begins_s is not None:
        return RewoundError(
            f"key {key_id} of {entry.principal} is valid from {_utc(begins_s)} on ({entry.place}), now it is "
            f"{_utc(now_s)}; nothing was run"
        )
    return ExpiredError(
        f"key {key_id} of {entry.principal} was valid until {_utc(ended_s or 0.0)} ({entry.place}), now it is "
        f"{_utc(now_s)}; nothing was run. Ask the server's administrator to extend it"
    )


def _utc(time_s: float) -> str:
    return datetime.fromtimestamp(time_s, UTC).isoformat(timespec="seconds")


@dataclass(frozen=True, slots=True)
class KnownServer:
    """One line of `known_servers`: the patterns of where it answers, and its key."""

    patterns: tuple[str, ...]
    key: PublicKey
    comment: str = ""
    place: str = ""


class KnownServers:
    """The servers that a client believes."""

    __slots__ = ("entries",)

    def __init__(self, entries: Iterable[KnownServer] = ()) -> None:
        self.entries = tuple(entries)

    def keys_for(self, address: str) -> tuple[tuple[PublicKey, str], ...]:
        """Return (key, name) of each line whose patterns fit.

        Args:
            address: normal form of what was dialled (`127.0.0.1:7419`, `[::1]:7419`, `unix:/path`) or, for a server
                that dials in, its name. The name returned is the line's first pattern, or the address where that is
                not one definite name.
        """
        return tuple(
            [
                (entry.key, entry.patterns[0] if is_definite(entry.patterns[0]) else address)
                for entry in self.entries
                if _fits_address(entry.patterns, address)
            ]
        )


def parse_known_servers(text: str, *, file: str) -> KnownServers:
    """Return the entries of a `known_servers` file.

    Raises:
        TrustFileError: a line is not understood; it names `file` and the line.
    """
    entries = []
    for place, line in _lines(text, file):
        patterns, _, rest = line.replace("\t", " ").partition(" ")
        key = _key(rest, place)
        if not all(one.removeprefix("!") for one in patterns.split(",")):
            raise TrustFileError(f"{place}: an empty pattern; the file was not used")
        comment = rest.split(maxsplit=2)[2:]
        entries.append(KnownServer(tuple(patterns.split(",")), key, comment[0] if comment else "", place))
    return KnownServers(entries)


def _fits_address(patterns: tuple[str, ...], address: str) -> bool:
    positive = [pattern for pattern in patterns if not pattern.startswith("!")]
    negative = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
    return any(_fits_one(pattern, address) for pattern in positive) and not any(
        _fits_one(pattern, address) for pattern in negative
    )


def _fits_one(pattern: str, address: str) -> bool:
    """A pattern without a port is for the default port; a star stays within host, port or a part of an IPv6 address."""
    if not address.startswith("unix:"):
        pattern, address = pattern.lower(), address.lower()
    forms = (pattern, f"{pattern}:{DEFAULT_PORT}", f"[{pattern}]:{DEFAULT_PORT}")
    return any(matches(form, address, separator=":") for form in forms)
