"""`secfarm policy`: what a server's policy grants, as the server reads it."""

from __future__ import annotations

import os
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

import click

from secfarm.cli.output import Output, output_options, pass_output, printable
from secfarm.disk.config import load_server_config
from secfarm.disk.trustfile import read_policy

if TYPE_CHECKING:
    from secfarm.trust.policy import Grant


@click.group("policy")
def command() -> None:
    """Show what a server's policy grants."""


@command.command("show")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option(
    "-c",
    "--config",
    type=click.Path(path_type=Path),
    help="The configuration that names the policy.  [default: SECFARM_CONFIG, else /etc/secfarm/config.toml]",
)
@output_options()
@pass_output
def show(output: Output, *, file: Path | None, config: Path | None) -> None:
    """Print each grant of the policy FILE: for whom, rights, limits, and what its workers are let out to.

    The first grant whose principals match decides; who matches none may do nothing. Without FILE, the policy of the
    server's configuration.
    """
    policy = read_policy(file or load_server_config(config, os.environ).policy)
    grants = [_record(grant) for grant in policy.grants]
    output.answer({"grants": grants}, *[line for grant in grants for line in _lines(grant)])


def _record(grant: Grant) -> dict[str, object]:
    return {
        "place": grant.place,
        "principals": list(grant.principals),
        "may": sorted(right.value for right in grant.may),
        "names": list(grant.names),
        "require_key": grant.require_key,
        "limits": {name: value for name, value in asdict(grant.limits).items() if value is not None},
        "confine": {name: _plain(value) for name, value in asdict(grant.confine).items()},
    }


def _plain(value: object) -> object:
    return value.value if isinstance(value, Enum) else value


def _lines(grant: dict[str, object]) -> list[str]:
    lines = [f"{grant['place']}: {_words(grant['principals'])}", f"  may      {_words(grant['may'])}"]
    if grant["names"]:
        lines.append(f"  names    {_words(grant['names'])}")
    if grant["require_key"]:
        lines.append("  only     batches that a key of allowed_signers signed")
    lines.append(f"  limits   {_words(grant['limits'])}")
    lines.append(f"  confine  {_words(grant['confine'])}")
    return [printable(line, one_line=True) for line in lines]


def _words(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_words(one)}" for name, one in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    return (", ".join(map(str, value)) or "none") if isinstance(value, list | tuple) else str(value)
