"""What commands that dial share: the type of an address, and who we are."""

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


class AddressType(click.ParamType):
    """An address, in its normal form."""

    name = "address"

    def __init__(self, *, listening: bool = False) -> None:
        self._listening = listening

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the normal form of `value`, or fail as click does."""
        try:
            return str(parse_address(value, listening=self._listening))
        except ValueError as error:
            self.fail(str(error), param, ctx)


def client_auth() -> Auth | None:
    """Return how we prove who we are: with the configuration's key, whose passphrase is asked for if it has one.

    None leaves it to the library, which finds a shared secret or says what is missing.

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
