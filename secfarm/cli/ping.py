"""`secfarm ping`: is the server there, and do the two believe each other."""

from __future__ import annotations

import time

import click

from secfarm.cli.client import client_auth, one_address, timeout_option
from secfarm.cli.output import Output, output_options, pass_output
from secfarm.errors import ConnectionLostError
from secfarm.farm.launcher import ping


@click.command("ping")
@click.argument("address", callback=one_address)
@timeout_option
@output_options()
@pass_output
def command(output: Output, *, address: str, timeout_s: float) -> None:
    """Ask whether a server answers at ADDRESS; both ends prove who they are."""
    start_s = time.monotonic()
    if not ping(address, timeout_s=timeout_s, auth=client_auth()):
        raise ConnectionLostError(f"{address} does not answer; gave up after {timeout_s:g} s")
    took_s = time.monotonic() - start_s
    output.confirm({"address": address, "seconds": round(took_s, 6)}, f"{address} answers ({took_s * 1e3:.0f} ms)")
