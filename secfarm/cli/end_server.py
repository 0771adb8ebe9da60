"""`secfarm end-server`: let a server end when the work in progress has."""

from __future__ import annotations

import click

from secfarm.cli.client import client_auth, one_address, timeout_option
from secfarm.cli.output import Output, output_options, pass_output
from secfarm.farm.launcher import end_server


@click.command("end-server")
@click.argument("address", callback=one_address)
@timeout_option
@output_options()
@pass_output
def command(output: Output, *, address: str, timeout_s: float) -> None:
    """Let the server at ADDRESS end: no new connections, those in progress finish. Needs the grant `admin`."""
    end_server(address, auth=client_auth(), timeout_s=timeout_s)
    output.confirm({"address": address, "ending": True}, f"{address} takes no new connections and ends with its last")
