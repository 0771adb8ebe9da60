"""`secfarm doctor`: what is wrong with this installation, its configuration, keys and trust files.

Looks and starts nothing that stays; dials nobody. Each check is one function that says what it found or raises.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from secfarm.cli.failure import failure_of
from secfarm.cli.output import Output, output_options, pass_output, printable
from secfarm.daemon.terms import check_hidden
from secfarm.disk.auditlog import verify_log
from secfarm.disk.config import CONFINEMENTS, SERVER_CONFIG, load_client_config, load_server_config
from secfarm.disk.credentials import server_credentials
from secfarm.disk.keyfile import read_secret, read_signing_key
from secfarm.disk.trustfile import read_allowed_signers, read_known_servers, read_policy
from secfarm.errors import ExitStatus, KeyFileError, SecfarmError
from secfarm.net.listen import open_socket
from secfarm.net.tls import acceptor_context, tls_library
from secfarm.wire.address import UnixAddress

if TYPE_CHECKING:
    from secfarm.disk.config import ClientConfig, ServerConfig

_MIN_PYTHON: Final = (3, 11)
_REQUIREMENT: Final = re.compile(r"([A-Za-z0-9_.-]+)(?:\[[A-Za-z0-9,_-]+\])?\s*>=\s*([0-9.]+)")


class Level(StrEnum):
    """How bad it is. A warning is something that one may do without."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found, and what to do about it."""

    level: Level
    subject: str
    text: str
    remedy: str = ""
    status: ExitStatus = ExitStatus.OK

    def lines(self) -> str:
        """Return the finding as one line, and a second one for the remedy."""
        line = f"{self.level:<5} {self.subject:<13} {self.text}"
        return f"{line}\n      remedy: {self.remedy}" if self.remedy else line


@click.command("doctor")
@click.option(
    "-c",
    "--config",
    "file",
    type=click.Path(path_type=Path),
    help="A server's configuration to look at.  [default: /etc/secfarm/config.toml if there is one]",
)
@click.option("--kerberos", is_flag=True, help="Look at ticket, keytab, host names, KDC and clock, too.")
@output_options()
@pass_output
def command(output: Output, *, file: Path | None, kerberos: bool) -> None:
    """Examine this installation, and the configuration, keys and trust files of this user and of a server."""
    server = file or (SERVER_CONFIG if SERVER_CONFIG.exists() else None)
    findings = [*_installation(), *_confinement(server), *_client(), *_server(server)]
    if kerberos:
        from secfarm.cli.doctor_kerberos import kerberos_findings

        findings += kerberos_findings(server)
    failed = [finding for finding in findings if finding.level is Level.FAIL]
    shown = [finding for finding in findings if not output.quiet or finding.level is not Level.OK]
    output.answer(
        {
            "ok": not failed,
            "checks": [
                {"level": one.level, "subject": one.subject, "text": one.text, "remedy": one.remedy} for one in findings
            ],
        },
        *[finding.lines() for finding in shown],
    )
    if failed:
        raise click.exceptions.Exit(failed[0].status)


def _check(subject: str, look: Callable[[], str | Finding]) -> Finding:
    """Return what `look` found; an error is a failure, its hint the remedy."""
    try:
        found = look()
    except (SecfarmError, OSError) as error:
        failure = failure_of(error)
        return Finding(Level.FAIL, subject, failure.message, failure.hint, failure.status)
    return found if isinstance(found, Finding) else Finding(Level.OK, subject, printable(found, one_line=True))


# --- the installation ---------------------------------------------------------------------------------------------


def _installation() -> Iterator[Finding]:
    yield _check("python", _python)
    yield _check("tls", _tls)
    for requirement in importlib.metadata.requires("secfarm") or []:
        if (found := _REQUIREMENT.match(requirement)) and "extra ==" not in requirement:
            yield _package(found[1], found[2])
    yield _check("uvloop", _uvloop)
    yield _check("unix socket", _unix_socket)


def _python() -> str | Finding:
    text = f"{platform.python_implementation()} {platform.python_version()} ({sys.executable})"
    if sys.version_info < _MIN_PYTHON or sys.platform != "linux":
        return Finding(
            Level.FAIL, "python", f"{text} on {sys.platform}", "use Python 3.11 or later on Linux", ExitStatus.MISSING
        )
    return text


def _tls() -> str:
    context, certificate = acceptor_context()
    return f"{context.minimum_version.name} by {tls_library()}; a certificate of {len(certificate)} bytes was made"


def _package(name: str, minimum: str) -> Finding:
    remedy = f"pip install '{name}>={minimum}'"
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Finding(Level.FAIL, name, "is not installed", remedy, ExitStatus.MISSING)
    if _numbers(version) < _numbers(minimum):
        text = f"{version} is older than {minimum}"
        return Finding(Level.FAIL, name, text, remedy, ExitStatus.MISSING)
    return Finding(Level.OK, name, version)


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)[:3]]


def _uvloop() -> str | Finding:
    if importlib.util.find_spec("uvloop") is None:
        text = "is not installed; asyncio's own loop is used"
        return Finding(Level.WARN, "uvloop", text, "pip install 'secfarm[fast]'")
    return importlib.metadata.version("uvloop")


def _unix_socket() -> str:
    with tempfile.TemporaryDirectory(prefix="secfarm-") as folder:
        path = Path(folder, "sock")
        with open_socket(UnixAddress(str(path))):
            return f"can be listened on ({path.parent.parent})"


def _confinement(server: Path | None) -> Iterator[Finding]:
    from secfarm.cli.doctor_confinement import confinement_findings

    profile = CONFINEMENTS[0]
    if server is not None:
        with contextlib.suppress(SecfarmError):  # which is a finding of its own
            profile = load_server_config(server, {}).confinement
    yield from confinement_findings(profile, serves=server is not None)


# --- the client's files -------------------------------------------------------------------------------------------


def _client() -> Iterator[Finding]:
    config: ClientConfig | None = None

    def look() -> str | Finding:
        nonlocal config
        config = load_client_config(None, os.environ)
        if config.file is None or not config.file.exists():
            return Finding(
                Level.WARN,
                "client",
                f"there is no {config.file}",
                "none is needed for servers started here; for others see docs/operations.md, config.toml of a client",
            )
        return f"{_file(config.file)}; hosts: {', '.join(map(str, config.hosts)) or 'none'}"

    yield _check("client", look)
    if config is None:
        return
    known_servers = config.known_servers
    if config.key is not None:
        yield _check("key", lambda path=config.key: _key(path))  # type: ignore[misc]
    elif config.secret is not None:
        yield _check("secret", lambda path=config.secret: _secret(path))  # type: ignore[misc]
    elif config.kerberos is not None or config.tls is not None:
        return
    else:
        yield Finding(Level.WARN, "key", "none", "secfarm keygen; SECFARM_KEY and `key` in config.toml name one")
    if known_servers.exists():
        yield _check(
            "known servers", lambda: f"{_file(known_servers)}: {len(read_known_servers(known_servers).entries)} keys"
        )
    elif config.secret is None:
        yield Finding(
            Level.WARN, "known servers", f"there is no {known_servers}", "write a line `ADDRESS ssh-ed25519 AAAA...`"
        )


def _key(path: Path) -> str:
    def encrypted() -> bytes:
        raise _EncryptedError(f"{path} is encrypted")

    try:
        return f"{_file(path)}: {read_signing_key(path, passphrase=encrypted).key_id}"
    except _EncryptedError:
        return f"{_file(path)}: encrypted, its passphrase is asked for"


class _EncryptedError(KeyFileError):
    """Says that a passphrase would be needed."""


def _secret(path: Path) -> str:
    secret = read_secret(path)
    return f"{_file(path)}: {secret.key_id} of {secret.principal}"


def _file(path: Path) -> str:
    """Return the path with mode and owner."""
    status = path.stat()
    try:
        owner = path.owner()
    except KeyError:
        owner = f"user {status.st_uid}"
    return f"{path} ({status.st_mode & 0o7777:04o}, {owner})"


# --- a server's files ---------------------------------------------------------------------------------------------


def _server(file: Path | None) -> Iterator[Finding]:
    if file is None:
        return
    config: ServerConfig | None = None

    def look() -> str:
        nonlocal config
        config = load_server_config(file, {})
        return f"{_file(file)}; listens on {', '.join(map(str, config.listen))}"

    yield _check("server", look)
    if config is None:
        return
    findings = list(_server_files(config))
    yield from findings
    if all(finding.level is not Level.FAIL for finding in findings):
        yield _check("trust", lambda: f"clients may prove themselves by {', '.join(server_credentials(config).auths)}")


def _server_files(config: ServerConfig) -> Iterator[Finding]:
    if (key := config.key) is not None:
        yield _check("server key", lambda: f"{_file(key)}: {read_signing_key(key).key_id}")
    for path in config.secrets:
        yield _check("secret", lambda path=path: _secret(path))  # type: ignore[misc]
    if (signers := config.allowed_signers) is not None:
        yield _check("signers", lambda: f"{_file(signers)}: {len(read_allowed_signers(signers))} keys")
    yield _check("policy", lambda: _policy(config))
    if (audit := config.audit) is not None and audit.exists():
        yield _check("audit", lambda: f"{_file(audit)}: {verify_log(audit).records} records, the chain is whole")


def _policy(config: ServerConfig) -> str | Finding:
    path = config.policy
    grants = check_hidden(config, read_policy(path)).grants
    if not any(grant.may for grant in grants):
        return Finding(Level.WARN, "policy", f"{_file(path)}: nobody may do anything", "add a [[grant]]")
    return f"{_file(path)}: {len(grants)} grants"
