"""Configuration files of server and client: strict TOML, paths relative to the file, XDG homes.

The environment is passed in. It holds paths and names (SECFARM_CONFIG, SECFARM_HOSTS, SECFARM_KEY), never a secret.
Format: docs/operations.md, "config.toml".
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from secfarm.disk.guard import read_guarded_text
from secfarm.errors import ConfigError
from secfarm.limits import DEFAULT_PORT
from secfarm.trust.strict_toml import Table, parse_toml
from secfarm.wire.address import Address, SshAddress, parse_address

SERVER_CONFIG: Final = Path("/etc/secfarm/config.toml")
DEFAULT_LISTEN: Final = f"127.0.0.1:{DEFAULT_PORT}"
DEFAULT_KEY_NAME: Final = "id_ed25519"
DEFAULT_SERVICE: Final = "secfarm"
CONFINEMENTS: Final = ("full", "container")  # the profiles of docs/confinement.md
# By which Kerberos, and systemd, say where their files are.
KERBEROS_NAMES: Final = ("KRB5_CONFIG", "KRB5_KTNAME", "KRB5RCACHENAME", "CREDENTIALS_DIRECTORY")
_CREDENTIAL: Final = "credential:"  # before the name of a credential that systemd has loaded for this service
_CREDENTIAL_NAME: Final = re.compile(r"(?!\.)[A-Za-z0-9._@-]{1,255}")  # of what systemd takes, what needs no quotes


@dataclass(frozen=True, slots=True)
class KerberosConfig:
    """`[kerberos]`: of a server `keytab` and `allowed_users`, of a client the rest."""

    service_name: str = DEFAULT_SERVICE
    keytab: Path | None = None
    allowed_users: tuple[str, ...] = ()
    ccache: str | None = None
    client_keytab: Path | None = None
    target: str | None = None
    servers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TlsConfig:
    """`[tls]`: the site's own certificates instead of the ephemeral one.

    With `ca`, which a client must give, they prove names; a client may say which `server_name` it expects.
    """

    certificate: Path
    key: Path
    ca: Path | None = None
    server_name: str | None = None


@dataclass(frozen=True, slots=True)
class SshConfig:
    """`[ssh]` of a client: how `ssh://` addresses are dialled. The fields are words; nothing passes a local shell."""

    program: str = "ssh"
    options: tuple[str, ...] = ()
    command: tuple[str, ...] = ("secfarm", "serve", "--stdio")


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """A server's config.toml. Where a value is None the server has its own default (host name, cores, ...)."""

    policy: Path
    listen: tuple[Address, ...] = ()
    dial: tuple[Address, ...] = ()
    workers: int | None = None
    name: str | None = None
    key: Path | None = None
    allowed_signers: Path | None = None
    secrets: tuple[Path, ...] = ()
    audit: Path | None = None
    state: Path | None = None
    kerberos: KerberosConfig | None = None
    tls: TlsConfig | None = None
    confinement: str = CONFINEMENTS[0]
    file: Path | None = None


@dataclass(frozen=True, slots=True)
class ClientConfig:
    """A client's config.toml. `key` and `secret` exclude each other; the default `known_servers` need not exist.

    A key or secret comes first; `kerberos` or `tls` prove names where there is none.
    """

    known_servers: Path
    hosts: tuple[Address, ...] = ()
    key: Path | None = None
    secret: Path | None = None
    kerberos: KerberosConfig | None = None
    ssh: SshConfig | None = None
    tls: TlsConfig | None = None
    file: Path | None = None


def config_home(environ: Mapping[str, str]) -> Path:
    """Return the directory of a user's configuration, `~/.config/secfarm`."""
    return _xdg(environ, "XDG_CONFIG_HOME", ".config")


def state_home(environ: Mapping[str, str]) -> Path:
    """Return the directory of a user's state, `~/.local/state/secfarm`."""
    return _xdg(environ, "XDG_STATE_HOME", ".local/state")


def _xdg(environ: Mapping[str, str], variable: str, default: str) -> Path:
    base = Path(environ.get(variable, ""))
    if not base.is_absolute():  # XDG base directory specification: a relative path there is ignored
        base = Path(environ.get("HOME") or Path.home()) / default
    return base / "secfarm"


def load_server_config(
    path: str | os.PathLike[str] | None, environ: Mapping[str, str], *, dial: tuple[Address, ...] = ()
) -> ServerConfig:
    """Return the configuration in `path`, else in SECFARM_CONFIG, else in /etc/secfarm.

    A server with hubs to dial, by `dial` or else by the file, listens only where it is told to.

    Raises:
        ConfigError: it cannot be read or used as written; it names the file and, where there is one, the line.
    """
    file = Path(path or environ.get("SECFARM_CONFIG") or SERVER_CONFIG)
    root = parse_toml(read_guarded_text(file, secret=False, error=ConfigError), file=str(file), error=ConfigError)
    reader = _Paths(root, file.parent, environ)
    policy = reader.file("policy")
    if policy is None:
        raise root.fault("policy", "policy is missing: without one nobody may do anything")
    listen, hubs = _addresses(root, "listen", listening=True), _addresses(root, "dial")
    dial = dial or hubs
    if not listen and not dial:
        listen = (parse_address(DEFAULT_LISTEN),)
    config = ServerConfig(
        policy=policy,
        listen=listen,
        dial=dial,
        workers=root.count("workers"),
        name=root.text("name"),
        key=reader.file("key"),
        allowed_signers=reader.file("allowed_signers"),
        secrets=reader.files("secrets"),
        audit=reader.path("audit"),
        state=reader.path("state"),
        kerberos=_server_kerberos(root.table("kerberos"), reader),
        tls=_tls(root.table("tls"), reader),
        confinement=_confinement(root),
        file=file,
    )
    root.finish()
    return _check_server(config, root)


def _confinement(root: Table) -> str:
    word = root.text("confinement") or CONFINEMENTS[0]
    if word not in CONFINEMENTS:
        known = " or ".join(f'"{one}"' for one in CONFINEMENTS)
        raise root.fault("confinement", f"confinement must be {known}, not {word!r}; there is no way to do without")
    return word


def _check_server(config: ServerConfig, root: Table) -> ServerConfig:
    """Return `config` if some client could prove itself to such a server, else raise."""
    other = config.kerberos is not None or (config.tls is not None and config.tls.ca is not None)
    if config.key is None and not config.secrets and not other:
        raise root.fault("key", "neither key nor secrets is given: nobody could be authenticated")
    if any(isinstance(address, SshAddress) for address in config.dial):
        raise root.fault("dial", "dial: a hub is not reached by ssh, which starts a server at its other end")
    # Whom another mechanism has proven may still sign with a key of allowed_signers.
    if (config.key is None) != (config.allowed_signers is None) and not (config.key is None and other):
        given, missing = ("key", "allowed_signers") if config.key else ("allowed_signers", "key")
        raise root.fault(given, f"{given} is given and {missing} is not: Ed25519 needs both")
    return config


def load_client_config(path: str | os.PathLike[str] | None, environ: Mapping[str, str]) -> ClientConfig:
    """Return the configuration in `path`, else in SECFARM_CONFIG, else in the user's XDG home, else the default.

    SECFARM_HOSTS and SECFARM_KEY come before what the file says.

    Raises:
        ConfigError: a file that was named is not there, or one cannot be used as written.
    """
    home = config_home(environ)
    named = path or environ.get("SECFARM_CONFIG")
    file = Path(named or home / "config.toml")
    text = read_guarded_text(file, secret=False, error=ConfigError) if named or file.exists() else ""
    root = parse_toml(text, file=str(file), error=ConfigError)
    reader = _Paths(root, file.parent, environ)
    hosts, key, secret = _addresses(root, "hosts"), reader.file("key"), reader.file("secret")
    if key and secret:
        raise root.fault("secret", "key and secret are both given: say which one to prove")
    kerberos, tls = _client_kerberos(root.table("kerberos"), reader), _tls(root.table("tls"), reader, client=True)
    if kerberos and tls:
        raise root.fault("tls", "[kerberos] and [tls] are both given: say which one to prove")
    if environ.get("SECFARM_HOSTS"):
        hosts = parse_hosts(environ["SECFARM_HOSTS"], source="SECFARM_HOSTS")
    if environ.get("SECFARM_KEY"):
        key, secret = Path(environ["SECFARM_KEY"]), None
    elif not any((key, secret, kerberos, tls)) and (home / DEFAULT_KEY_NAME).exists():
        key = home / DEFAULT_KEY_NAME
    config = ClientConfig(
        known_servers=reader.file("known_servers") or home / "known_servers",
        hosts=hosts,
        key=key,
        secret=secret,
        kerberos=kerberos,
        ssh=_ssh(root.table("ssh")),
        tls=tls,
        file=file,
    )
    root.finish()
    return config


def parse_hosts(text: str, *, source: str) -> tuple[Address, ...]:
    """Return the addresses in a text separated by commas or spaces.

    Raises:
        ConfigError: one is malformed; it names `source`.
    """
    try:
        return tuple([parse_address(word) for word in re.split(r"[,\s]+", text) if word])
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from error


class _Paths:
    """Reads the paths of a table, relative to the directory of its file; files may be credentials of systemd."""

    def __init__(self, table: Table, base: Path, environ: Mapping[str, str]) -> None:
        self._table = table
        self._base = base
        self._environ = environ

    def of(self, table: Table) -> _Paths:
        """Return the same for another table of the file."""
        return _Paths(table, self._base, self._environ)

    def path(self, key: str) -> Path | None:
        text = self._table.text(key)
        return None if text is None else self._base / text

    def file(self, key: str) -> Path | None:
        text = self._table.text(key)
        return None if text is None else self._existing(key, text)

    def files(self, key: str) -> tuple[Path, ...]:
        return tuple([self._existing(key, text) for text in self._table.texts(key)])

    def _credential(self, key: str, name: str) -> Path:
        if not _CREDENTIAL_NAME.fullmatch(name):
            raise self._table.fault(key, f"{key}: {name!r} is no name of a credential: letters, digits and ._@- only")
        directory = self._environ.get("CREDENTIALS_DIRECTORY", "")
        if not Path(directory).is_absolute():
            what = f"is the relative path {directory!r}" if directory else "is not set"
            raise self._table.fault(
                key,
                f"{key}: {_CREDENTIAL}{name} is for a service of systemd whose unit has LoadCredential={name}, but "
                f"CREDENTIALS_DIRECTORY {what}; name a file instead, or set it to the directory that holds it",
            )
        return Path(directory) / name

    def _existing(self, key: str, text: str) -> Path:
        name = text.removeprefix(_CREDENTIAL)
        path = self._base / text if name == text else self._credential(key, name)
        try:
            found = path.is_file()
        except OSError:
            found = False
        if not found:
            raise self._table.fault(key, f"{key}: there is no file {path}")
        return path


def _addresses(table: Table, key: str, *, listening: bool = False) -> tuple[Address, ...]:
    try:
        return tuple([parse_address(text, listening=listening) for text in table.texts(key)])
    except ValueError as error:
        raise table.fault(key, f"{key}: {error}") from error


def _server_kerberos(table: Table | None, paths: _Paths) -> KerberosConfig | None:
    if table is None:
        return None
    config = KerberosConfig(
        service_name=table.text("service_name") or DEFAULT_SERVICE,
        keytab=paths.of(table).file("keytab"),
        allowed_users=table.texts("allowed_users"),
    )
    table.finish()
    return config


def _client_kerberos(table: Table | None, paths: _Paths) -> KerberosConfig | None:
    if table is None:
        return None
    config = KerberosConfig(
        service_name=table.text("service_name") or DEFAULT_SERVICE,
        ccache=table.text("ccache"),
        client_keytab=paths.of(table).file("client_keytab"),
        target=table.text("target"),
        servers=table.texts("servers"),
    )
    if config.ccache and config.client_keytab:
        raise table.fault("ccache", "ccache and client_keytab are both given: a keytab's tickets are kept in memory")
    table.finish()
    return config


def _ssh(table: Table | None) -> SshConfig | None:
    if table is None:
        return None
    default = SshConfig()
    config = SshConfig(
        program=table.text("program") or default.program,
        options=table.texts("options"),
        command=table.texts("command") or default.command,
    )
    table.finish()
    return config


def _tls(table: Table | None, paths: _Paths, *, client: bool = False) -> TlsConfig | None:
    if table is None:
        return None
    reader = paths.of(table)
    certificate, key, ca = reader.file("certificate"), reader.file("key"), reader.file("ca")
    if certificate is None or key is None:
        raise table.fault("certificate", "[tls] needs certificate and key")
    if client and ca is None:
        raise table.fault("certificate", "[tls] of a client needs ca: who may certify a server")
    server_name = table.text("server_name") if client else None
    table.finish()
    return TlsConfig(certificate, key, ca, server_name)
