"""`secfarm serve`: a server in this process, until it is ended."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from secfarm.auth.gss import GssAuthServer
from secfarm.auth.gss_context import NAME as GSS
from secfarm.cli.client import listening_addresses, some_addresses
from secfarm.cli.detach import detached, open_log
from secfarm.cli.output import Output, output_options, pass_output
from secfarm.daemon.log import Log, LogForm, log_to
from secfarm.daemon.process import serve, serve_line
from secfarm.daemon.stdio import StdioLine
from secfarm.disk.auditlog import verify_log
from secfarm.disk.config import KerberosConfig, load_server_config, state_home
from secfarm.disk.credentials import server_credentials
from secfarm.wire.address import parse_address

if TYPE_CHECKING:
    from collections.abc import Sequence

    from secfarm.disk.config import ServerConfig
    from secfarm.disk.credentials import ServerCredentials
    from secfarm.wire.address import Address


@click.command("serve")
@click.option(
    "-c",
    "--config",
    "file",
    type=click.Path(path_type=Path),
    help="Its configuration.  [default: SECFARM_CONFIG, else /etc/secfarm/config.toml]",
)
@click.option(
    "--listen",
    "addresses",
    multiple=True,
    metavar="ADDR",
    callback=listening_addresses,
    help="Instead of the configuration's addresses; may be repeated. Port 0: the system chooses.",
)
@click.option(
    "--dial",
    "hubs",
    multiple=True,
    metavar="ADDR",
    callback=some_addresses,
    help="A hub to dial in to, for ever, instead of the configuration's; may be repeated. A server that dials "
    "listens only where it is told to.",
)
@click.option(
    "--keytab",
    type=click.Path(path_type=Path),
    help="Accept Kerberos with this keytab; whom, is said by allowed_users of [kerberos].",
)
@click.option("--check", is_flag=True, help="Read everything, say what would be served, and do not listen.")
@click.option("--stdio", is_flag=True, help="Serve one connection over standard input and output, and end with it.")
@click.option(
    "--log-format",
    type=click.Choice([form.value for form in LogForm]),
    help="Of a line of the log.  [default: text on a terminal, else json]",
)
@click.option("--detach", is_flag=True, help="Return once it listens; the server goes on in a session of its own.")
@output_options()
@pass_output
def command(
    output: Output,
    *,
    file: Path | None,
    addresses: tuple[str, ...],
    hubs: tuple[str, ...],
    keytab: Path | None,
    check: bool,
    stdio: bool,
    detach: bool,
    log_format: str | None,
) -> None:
    """Serve tasks. SIGTERM lets what runs finish, a second one ends at once.

    With --stdio or --detach the log is appended to serve.log in the state directory.
    """
    if check + stdio + detach > 1 or (stdio and (addresses or hubs)):
        raise click.UsageError("--check, --stdio and --detach exclude each other; --stdio listens and dials nowhere")
    config = load_server_config(file, os.environ, dial=tuple([parse_address(hub) for hub in hubs]))
    if keytab is not None:
        config = replace(config, kerberos=replace(config.kerberos or KerberosConfig(), keytab=keytab))
    if config.kerberos is not None and not config.kerberos.allowed_users:
        output.note(f"secfarm: {config.file}: [kerberos] has no allowed_users, so no principal is accepted")
    listen = [parse_address(address, listening=True) for address in addresses]
    if check:
        _check(output, config, listen or list(config.listen))
        return
    file_of_log = (config.state or state_home(os.environ)) / "serve.log"
    if detach:
        detached(output, file_of_log)
        return
    default = LogForm.TEXT if not stdio and sys.stderr.isatty() else LogForm.JSON
    level = logging.DEBUG if output.verbose else logging.WARNING if output.quiet else logging.INFO
    log = Log(LogForm(log_format) if log_format else default, level)
    if stdio:
        _serve_stdio(config, file_of_log, log)
        return
    log_to(sys.stderr, "supervisor", log)
    dialling = {"dialling": [str(address) for address in config.dial]} if config.dial else {}

    def ready(opened: list[Address]) -> None:
        with contextlib.suppress(click.exceptions.Exit):  # whoever started us may not read; the server goes on
            output.confirm(
                {"listening": [str(address) for address in opened], **dialling, "pid": os.getpid()},
                *[f"listening on {address}" for address in opened],
                *[f"dialling in to {address}" for address in config.dial],
            )

    serve(config, listen=listen, ready=ready, log=log)


def _serve_stdio(config: ServerConfig, file: Path, log: Log) -> None:
    if os.isatty(0) or os.isatty(1):
        raise click.UsageError("--stdio speaks TLS: it is for sshd to start, not for a terminal")
    log_to(os.fdopen(open_log(file), "a", encoding="ascii"), "server", log)
    line = StdioLine()
    try:
        serve_line(config, line.socket)
    finally:
        line.finish()


def _check(output: Output, config: ServerConfig, listen: Sequence[Address]) -> None:
    credentials = server_credentials(config)
    audit = config.audit or (config.state or state_home(os.environ)) / "audit.jsonl"
    records = verify_log(audit).records if audit.exists() else 0
    workers = config.workers or os.cpu_count() or 1
    name = config.name or socket.gethostname()
    output.confirm(
        {
            "file": str(config.file),
            "name": name,
            "listen": [str(address) for address in listen],
            "dial": [str(address) for address in config.dial],
            "workers": workers,
            "mechanisms": sorted(credentials.auths),
            "principals": _principals(credentials),
            "grants": _grants(credentials),
            "audit": str(audit),
            "audit_records": records,
        },
        f"{config.file}: nothing is wrong with it; the server {name} would",
        *([f"listen on   {', '.join(map(str, listen))}"] if listen else []),
        *([f"dial in to  {', '.join(map(str, config.dial))}"] if config.dial else []),
        f"run tasks   in {workers} worker processes",
        f"believe     {', '.join(_principals(credentials)) or 'nobody'}, by {', '.join(sorted(credentials.auths))}",
        *[
            f"let         {', '.join(grant['principals'])} {', '.join(grant['may']) or 'do nothing'}"
            for grant in _grants(credentials)
        ],
        f"write       {audit} ({records} records so far)",
    )


def _principals(credentials: ServerCredentials) -> list[str]:
    store = credentials.store
    named = [entry.principal for entry in store.entries if not entry.cert_authority]
    gss = credentials.auths.get(GSS)
    users = sorted(gss.allowed_users) if isinstance(gss, GssAuthServer) else []
    return list(dict.fromkeys([*named, *[secret.principal for secret in store.secrets], *users]))


def _grants(credentials: ServerCredentials) -> list[dict[str, list[str]]]:
    return [
        {"principals": list(grant.principals), "may": sorted(right.value for right in grant.may)}
        for grant in credentials.policy.grants
    ]
