"""`secfarm status`: what a server says of its workers, sessions and queues."""

from __future__ import annotations

import click

from secfarm.cli.client import client_auth, one_address, timeout_option
from secfarm.cli.output import Output, output_options, pass_output, printable
from secfarm.farm.launcher import server_status


@click.command("status")
@click.argument("address", callback=one_address)
@timeout_option
@output_options()
@pass_output
def command(output: Output, *, address: str, timeout_s: float) -> None:
    """Show workers, sessions and batches of the server at ADDRESS. Needs the grant `admin`."""
    status = server_status(address, auth=client_auth(), timeout_s=timeout_s)
    output.answer({"address": address, **status}, *[f"{_line(name)}: {_shown(status[name])}" for name in status])


def _shown(value: object) -> str:
    return _line(", ".join(map(str, value)) if isinstance(value, list) else str(value))


def _line(text: str) -> str:
    return printable(text.replace("_", " "), one_line=True)
