"""Addresses: where a server or a hub listens, as text and as parts. Pure; nothing is resolved or dialled here.

Normal form (`str()`): `host:port`, `[ipv6]:port`, `unix:/path`, `ssh://[user@]host[:port]`. It is what `known_servers`
patterns are matched with.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from secfarm.limits import DEFAULT_PORT

_MAX_PORT: Final = 65_535
_MAX_HOST: Final = 253  # RFC 1035, section 2.3.4, as text
_MAX_PATH_BYTES: Final = 107  # sockaddr_un.sun_path of Linux holds 108 with its end mark
_HOST: Final = re.compile(r"(?!-)[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?")
_ZONE: Final = re.compile(r"[A-Za-z0-9_.-]{0,15}")  # an interface's name: IFNAMSIZ of Linux is 16 with its end mark
_PORT: Final = re.compile(r"[0-9]{1,5}")
_NUMERIC_HOST: Final = re.compile(r"[0-9.]+")
_USER: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]{0,63}")
_SSH: Final = "ssh://"
_FORMS: Final = 'write "host", "host:port", "[ipv6]:port", ("host", port), "unix:/path" or "ssh://[user@]host[:port]"'


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A TCP address. `host` is lower case, without brackets; port 0 (listening only) lets the system choose."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A unix socket by its absolute path."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


@dataclass(frozen=True, slots=True)
class SshAddress:
    """A server that ssh starts for us and whose session goes over its pipes.

    Attributes:
        host: as ssh is to know it; an IPv6 address without brackets.
        user, port: of ssh; "" and None leave them to its own configuration.
        ssh: the program and its options.
        command: the words of what runs there.
    """

    host: str
    user: str = ""
    port: int | None = None
    ssh: tuple[str, ...] = field(default=("ssh",), compare=False, repr=False)
    command: tuple[str, ...] = field(default=("secfarm", "serve", "--stdio"), compare=False, repr=False)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{_SSH}{f'{self.user}@' * bool(self.user)}{host}{'' if self.port is None else f':{self.port}'}"


Address: TypeAlias = TcpAddress | UnixAddress | SshAddress


def parse_address(value: str | tuple[str, int] | Address, *, listening: bool = False) -> Address:
    """Return the address that the user wrote.

    Args:
        value: `"host"` (port 7419), `"host:port"`, `"[ipv6]:port"`, `("host", port)`, `"unix:/path"`,
            `"ssh://[user@]host[:port]"`, or an address.
        listening: port 0 is meant: the system chooses one; ssh has no place to listen on.

    Raises:
        ValueError: it is none of these.
    """
    match value:
        case TcpAddress() | UnixAddress():
            return value
        case SshAddress() if not listening:
            return value
        case str() if value.startswith("unix:"):
            return _unix(value)
        case str() if value.startswith(_SSH) and not listening:
            return _ssh(value)
        case str():
            host, port = _split(value)
            return TcpAddress(_host(host, value), _port(port, value, listening=listening))
        case (str() as host, int() as number) if not isinstance(number, bool):
            return TcpAddress(_host(host, value), _port(str(number), value, listening=listening))
        case _:
            raise _malformed(value, "it is neither text nor (host, port)")


def parse_user(name: str) -> str:
    """Return the name of a user at the far end of ssh, if it can be one.

    Raises:
        ValueError: it cannot.
    """
    if not _USER.fullmatch(name):
        raise ValueError(f"{name!r} is no user name: letters, digits and _ . @ + - are allowed; nothing was opened")
    return name


def _split(text: str) -> tuple[str, str]:
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or ":" not in host or (rest and not rest.startswith(":")):
            raise _malformed(text, "brackets hold an IPv6 address, then :port")
        return host, rest[1:] if rest else str(DEFAULT_PORT)
    if text.count(":") > 1:
        raise _malformed(text, "an IPv6 address stands in brackets")
    host, colon, port = text.partition(":")
    return host, port if colon else str(DEFAULT_PORT)


def _host(host: str, whole: object) -> str:
    if ":" in host:
        if not _ZONE.fullmatch(host.partition("%")[2]):
            raise _malformed(whole, "that is no IPv6 zone")
        try:
            return str(ipaddress.IPv6Address(host))
        except ValueError as error:
            raise _malformed(whole, "that is no IPv6 address") from error
    if _NUMERIC_HOST.fullmatch(host):
        try:
            return str(ipaddress.IPv4Address(host))
        except ValueError as error:
            raise _malformed(whole, "that is no IPv4 address") from error
    if len(host) > _MAX_HOST or not _HOST.fullmatch(host):
        raise _malformed(whole, "the host is not a host name (internationalised names: in their xn-- form)")
    return host.lower()


def _port(port: str, whole: object, *, listening: bool) -> int:
    lowest = 0 if listening else 1
    if not _PORT.fullmatch(port) or not lowest <= int(port) <= _MAX_PORT:
        raise _malformed(whole, f"the port is a number from {lowest} to {_MAX_PORT}")
    return int(port)


def _unix(text: str) -> UnixAddress:
    path = text.removeprefix("unix:")
    if not path.startswith("/") or path.endswith("/"):
        raise _malformed(text, "a unix socket is named by its absolute path")
    if not path.isprintable() or len(path.encode()) > _MAX_PATH_BYTES:
        raise _malformed(text, f"the path is at most {_MAX_PATH_BYTES} bytes of printable text")
    return UnixAddress(path)


def _ssh(text: str) -> SshAddress:
    user, at, rest = text.removeprefix(_SSH).rpartition("@")
    if at and not _USER.fullmatch(user):
        raise _malformed(text, "that is no user name")
    host, port = _split(rest)
    given = rest.endswith(f":{port}")
    return SshAddress(_host(host, text), user, _port(port, text, listening=False) if given else None)


def _malformed(value: object, why: str) -> ValueError:
    return ValueError(f"malformed address {value!r}: {why}; nothing was opened; please {_FORMS}")
