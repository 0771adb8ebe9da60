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
    """Show workers, sessions and queues of the server at ADDRESS. Needs the grant `admin`."""
    status = server_status(address, auth=client_auth(), timeout_s=timeout_s)
    lines = [f"{_line(name)}: {_shown(status[name])}" for name in status if not name.endswith("_records")]
    for kind in ("worker", "session"):
        lines += [f"{kind}: {_fields(record)}" for record in _records(status.get(f"{kind}_records"))]
    output.answer({"address": address, **status}, *lines)


def _records(found: object) -> list[dict[object, object]]:
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def _fields(record: dict[object, object]) -> str:
    return ", ".join(f"{_line(str(name))} {_shown(value)}" for name, value in record.items() if value is not None)


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return _line(", ".join(map(str, value)) if isinstance(value, list) else str(value))


def _line(text: str) -> str:
    return printable(text.replace("_", " "), one_line=True)
