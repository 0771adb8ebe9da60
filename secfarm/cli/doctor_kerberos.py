"""`secfarm doctor --kerberos`: package, krb5.conf, ticket, keytab, host names, KDC and clock, as Kerberos sees them.

Asks the KDC as a client would, and, where a ticket and a keytab are both here, proves the one to the other.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from secfarm.auth.base import Side
from secfarm.auth.gss import GssAuthClient, GssAuthServer
from secfarm.cli.doctor import Finding, Level, _check
from secfarm.disk.config import KerberosConfig, ServerConfig, load_client_config, load_server_config
from secfarm.disk.keytab import KeytabEntry, KeytabFile, find_keytab
from secfarm.disk.site_auth import ready_gss_client
from secfarm.errors import ConfigError, ExitStatus, KeyFileError
from secfarm.wire.address import TcpAddress

_BINDING: Final = bytes(32)
_ADVICE: Final = ("dns_canonicalize_hostname", "rdns")


def kerberos_findings(server_file: Path | None) -> Iterator[Finding]:
    """Yield what is found; `server_file` is a server's configuration, if one is to be looked at."""
    try:
        version = importlib.metadata.version("gssapi")
        GssAuthClient().check_library()
    except (importlib.metadata.PackageNotFoundError, ConfigError) as error:
        remedy = "apt-get install libkrb5-dev gcc; pip install 'secfarm[gssapi]'"
        yield Finding(Level.FAIL, "gssapi", f"cannot be loaded ({error})", remedy, ExitStatus.MISSING)
        return
    yield Finding(Level.OK, "gssapi", version)
    yield _check("krb5.conf", _krb5_conf)
    server = None if server_file is None else load_server_config(server_file, {})
    keytab = _keytab(server)
    entries: tuple[KeytabEntry, ...] = ()
    if keytab is not None:
        found, entries = _keytab_found(keytab, server)
        yield found
    client = load_client_config(None, os.environ)
    kerberos = client.kerberos or KerberosConfig()
    hosts = [address.host for address in client.hosts if isinstance(address, TcpAddress)]
    own = _service_hosts(entries, kerberos.service_name if server is None else _service(server))
    for host in dict.fromkeys([*hosts, *own]):
        yield _check("host name", lambda host=host: _canonical(host))  # type: ignore[misc]
    target = kerberos.target or next(iter([*hosts, *own]), None)
    if target is None:
        text = "no server is named: neither `hosts` of config.toml nor a keytab"
        yield Finding(Level.WARN, "kdc", text, "name one; then a ticket for it is asked for")
        return
    yield from _exchange(kerberos, target, keytab if target in own else None, server)


def _krb5_conf() -> str | Finding:
    path = Path(os.environ.get("KRB5_CONFIG", "/etc/krb5.conf").partition(":")[0])
    text = path.read_text(encoding="utf-8", errors="replace")
    lacking = [name for name in _ADVICE if not re.search(rf"^\s*{name}\s*=\s*(false|no|0|off)\b", text, re.MULTILINE)]
    if lacking:
        return Finding(
            Level.WARN,
            "krb5.conf",
            f"{path}: {' and '.join(lacking)} not switched off: DNS decides which server a ticket is for",
            f"[libdefaults] {', '.join(f'{name} = false' for name in lacking)}",
        )
    return f"{path}: host names are taken as they are written"


def _service(server: ServerConfig) -> str:
    return (server.kerberos or KerberosConfig()).service_name


def _keytab(server: ServerConfig | None) -> Path | None:
    if server is None or server.kerberos is None:
        return None
    try:
        return find_keytab(server.kerberos.keytab, os.environ)
    except KeyFileError:
        return None


def _keytab_found(path: Path, server: ServerConfig | None) -> tuple[Finding, tuple[KeytabEntry, ...]]:
    entries: tuple[KeytabEntry, ...] = ()
    service = KerberosConfig().service_name if server is None else _service(server)

    def look() -> str | Finding:
        nonlocal entries
        entries = KeytabFile(path).entries()
        keys = ", ".join(sorted({f"{one.principal} (kvno {one.kvno})" for one in entries}))
        if not _service_hosts(entries, service):
            text = f"{path} has no key of {service}/HOST, only {keys}"
            remedy = f"kadmin: addprinc -randkey {service}/HOST; ktadd -k {path} {service}/HOST"
            return Finding(Level.FAIL, "keytab", text, remedy, ExitStatus.AUTHENTICATION)
        return f"{path}: {keys}"

    return _check("keytab", look), entries


def _service_hosts(entries: tuple[KeytabEntry, ...], service: str) -> list[str]:
    names = [one.principal.rpartition("@")[0].partition("/") for one in entries]
    return list(dict.fromkeys(host for first, _, host in names if first == service and host))


def _canonical(host: str) -> str | Finding:
    try:
        canonical = socket.getaddrinfo(host, None, flags=socket.AI_CANONNAME)[0][3]
    except OSError as error:
        text = f"{host} is not found ({error.strerror})"
        return Finding(Level.WARN, "host name", text, "write it into DNS or /etc/hosts, or use target=")
    if canonical not in {"", host}:
        return Finding(
            Level.WARN,
            "host name",
            f"{host} is canonically {canonical}: with dns_canonicalize_hostname a ticket is for that name",
            "use the canonical name in hosts and in the keytab, or switch canonicalisation off",
        )
    return f"{host} is its own canonical name"


def _exchange(
    kerberos: KerberosConfig, target: str, keytab: Path | None, server: ServerConfig | None
) -> Iterator[Finding]:
    """Ask for a ticket, and show it to the keytab: KDC, clock and keys are right if that works."""
    token = b""
    auth = GssAuthClient(kerberos.service_name, kerberos.ccache, kerberos.client_keytab, target)
    address = f"{target}:0"

    def ask() -> str:
        nonlocal token
        client = ready_gss_client(auth).begin(side=Side.CLIENT, binding=_BINDING, address=address, now_s=time.time())
        token = client.step(None) or b""
        return f"gave a ticket for {kerberos.service_name}@{target}; the clocks agree"

    yield _check("kdc", ask)
    if not token or keytab is None or server is None:
        return

    def show() -> str:
        accepting = GssAuthServer(keytab, _service(server))
        accepting.source = KeytabFile(keytab)
        accepting.begin(side=Side.SERVER, binding=_BINDING, address="", now_s=time.time()).step(token)
        return "the keytab's key is the KDC's: it took that ticket"

    yield _check("key", show)
