"""`secfarm keygen`: a new key pair in OpenSSH's format, or a new shared secret."""

from __future__ import annotations

import getpass
import os
import socket
import sys
from pathlib import Path

import click

from secfarm.cli.output import Output, output_options, pass_output
from secfarm.disk.config import DEFAULT_KEY_NAME, config_home
from secfarm.disk.keyfile import create_secret, create_signing_key, public_path
from secfarm.sign.sshsig import TASK_NAMESPACE


@click.command("keygen")
@click.option("--ed25519", "kind", flag_value="ed25519", default="ed25519", help="A key pair (the default).")
@click.option("--secret", "kind", flag_value="secret", help="A shared secret, for one client and its servers.")
@click.option("-C", "--comment", help="Who it belongs to: a secret's principal.  [default: user@host]")
@click.option(
    "-f",
    "--file",
    type=click.Path(path_type=Path),
    help="Where to write it.  [default: id_ed25519 or secret in the configuration's directory]",
)
@click.option("--passphrase", "encrypt", is_flag=True, help="Ask for a passphrase, twice, and encrypt the key with it.")
@output_options()
@pass_output
def command(output: Output, *, kind: str, comment: str | None, file: Path | None, encrypt: bool) -> None:
    """Make a key or a secret. No file is ever overwritten."""
    comment = comment or f"{getpass.getuser()}@{socket.gethostname()}"
    if kind == "secret":
        if encrypt:
            raise click.UsageError("a shared secret's file is not encrypted; leave --passphrase out")
        _secret(output, file or config_home(os.environ) / "secret", comment)
    else:
        _pair(output, file or config_home(os.environ) / DEFAULT_KEY_NAME, comment, encrypt=encrypt)


def _pair(output: Output, file: Path, comment: str, *, encrypt: bool) -> None:
    passphrase = _new_passphrase() if encrypt else None
    key = create_signing_key(file, comment=comment, passphrase=passphrase)
    line = key.public.openssh(comment)
    principal = next(iter(comment.split()), "PRINCIPAL")
    output.confirm(
        {
            "type": "ed25519",
            "key_id": key.key_id,
            "public": line,
            "file": str(file),
            "public_file": str(public_path(file)),
        },
        f"key id {key.key_id}",
        f"wrote  {file} and {public_path(file)}",
        f"public {line}",
        f'next   client key: add to the server\'s allowed_signers: {principal} namespaces="{TASK_NAMESPACE}" '
        f"{key.public.openssh()}",
        f"       server key: add to the clients' known_servers: ADDRESS {key.public.openssh()}",
    )


def _new_passphrase() -> bytes:
    """Ask on the terminal, twice; without one both lines are read from stdin."""
    if sys.stdin.isatty():
        return str(click.prompt("Passphrase", hide_input=True, confirmation_prompt=True, err=True)).encode()
    first, second = (sys.stdin.readline().rstrip("\n") for _ in range(2))
    if not first or first != second:
        raise click.UsageError("the passphrase is empty, or the two lines differ; no key was made")
    return first.encode()


def _secret(output: Output, file: Path, principal: str) -> None:
    secret = create_secret(file, principal)
    output.confirm(
        {"type": "secret", "key_id": secret.key_id, "principal": principal, "file": str(file)},
        f"key id {secret.key_id}",
        f"wrote  {file}, the secret of {principal}",
        "next   carry the file to the server by a way you trust, name it in `secrets` there and as `secret` here",
    )
