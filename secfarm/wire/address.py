"""Addresses: where a server or a hub listens, as text and as parts. Pure; nothing is resolved or dialled here.

Normal form (`str()`): `host:port`, `[ipv6]:port`, `unix:/path`. It is what `known_servers` patterns are matched with.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final, TypeAlias

from secfarm.limits import DEFAULT_PORT

_MAX_PORT: Final = 65_535
_MAX_HOST: Final = 253  # RFC 1035, section 2.3.4, as text
_MAX_PATH_BYTES: Final = 107  # sockaddr_un.sun_path of Linux holds 108 with its end mark
_HOST: Final = re.compile(r"(?!-)[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?")
_ZONE: Final = re.compile(r"[A-Za-z0-9_.-]{0,15}")  # an interface's name: IFNAMSIZ of Linux is 16 with its end mark
_PORT: Final = re.compile(r"[0-9]{1,5}")
_NUMERIC_HOST: Final = re.compile(r"[0-9.]+")
_FORMS: Final = 'write "host", "host:port", "[ipv6]:port", ("host", port) or "unix:/path"'


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


Address: TypeAlias = TcpAddress | UnixAddress


def parse_address(value: str | tuple[str, int] | Address, *, listening: bool = False) -> Address:
    """Return the address that the user wrote.

    Args:
        value: `"host"` (port 7419), `"host:port"`, `"[ipv6]:port"`, `("host", port)`, `"unix:/path"`, or an address.
        listening: port 0 is meant: the system chooses one.

    Raises:
        ValueError: it is none of these.
    """
    match value:
        case TcpAddress() | UnixAddress():
            return value
        case str() if value.startswith("unix:"):
            return _unix(value)
        case str():
            host, port = _split(value)
            return TcpAddress(_host(host, value), _port(port, value, listening=listening))
        case (str() as host, int() as number) if not isinstance(number, bool):
            return TcpAddress(_host(host, value), _port(str(number), value, listening=listening))
        case _:
            raise _malformed(value, "it is neither text nor (host, port)")


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


def _malformed(value: object, why: str) -> ValueError:
    return ValueError(f"malformed address {value!r}: {why}; nothing was opened; please {_FORMS}")
