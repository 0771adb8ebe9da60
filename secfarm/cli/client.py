"""What commands that dial share: how an address is read, and who we are."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Final

import click

from secfarm.auth.ed25519 import Ed25519AuthClient
from secfarm.disk.config import load_client_config
from secfarm.disk.keyfile import read_signing_key
from secfarm.errors import KeyFileError
from secfarm.wire.address import parse_address

if TYPE_CHECKING:
    from pathlib import Path

    from secfarm.auth.base import Auth

CONNECT_TIMEOUT_S: Final = 5.0  # a command that keeps trying for ever looks like one that hangs


def one_address(context: click.Context, parameter: click.Parameter, value: str) -> str:
    """Return the normal form of an address (click's callback)."""
    return _normal(context, parameter, value, listening=False)


def some_addresses(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """Return the normal forms of addresses to dial (click's callback)."""
    return tuple([_normal(context, parameter, value, listening=False) for value in values])


def listening_addresses(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """Return the normal forms of addresses to listen on (click's callback)."""
    return tuple([_normal(context, parameter, value, listening=True) for value in values])


def _normal(context: click.Context, parameter: click.Parameter, value: str, *, listening: bool) -> str:
    try:
        return str(parse_address(value, listening=listening))
    except ValueError as error:
        raise click.BadParameter(str(error), context, parameter) from error


timeout_option: Final = click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0, min_open=True),
    default=CONNECT_TIMEOUT_S,
    show_default=True,
    metavar="SECONDS",
    help="How long to keep trying.",
)


def client_auth() -> Auth | None:
    """Return how we prove who we are: with the configuration's key, whose passphrase is asked for if it has one.

    None leaves it to the library, which finds a shared secret, Kerberos or certificates, or says what is missing.

    Raises:
        ConfigError, KeyFileError: the configuration or the key cannot be used; nothing was sent.
    """
    path = load_client_config(None, os.environ).key
    if path is None:
        return None
    return Ed25519AuthClient(read_signing_key(path, passphrase=lambda: _ask_passphrase(path)))


def _ask_passphrase(path: Path) -> bytes:
    if not sys.stdin.isatty():
        raise KeyFileError(f"{path}: encrypted, and there is no terminal to ask for its passphrase; nothing was sent")
    return str(click.prompt(f"Passphrase of {path}", hide_input=True, err=True)).encode()
