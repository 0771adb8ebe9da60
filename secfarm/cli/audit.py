"""`secfarm audit`: check the chain of an audit log, and read it."""

from __future__ import annotations

import json
from pathlib import Path

import click

from secfarm.cli.output import Output, output_options, pass_output, printable
from secfarm.disk.auditlog import verify_log

_CHAIN = ("seq", "time", "event", "prev", "hash")


@click.group("audit")
def command() -> None:
    """Check or show a server's audit log."""


@command.command("verify")
@click.argument("file", type=click.Path(path_type=Path))
@output_options()
@pass_output
def verify(output: Output, *, file: Path) -> None:
    """Check that no record of FILE was changed, removed or put in."""
    summary = verify_log(file)
    output.confirm(
        {"file": str(file), "records": summary.records, "head": summary.head, "last": summary.last},
        f"{file}: {summary.records} records, the chain is whole{f', last at {summary.last}' if summary.last else ''}",
        f"head {summary.head} (keep it elsewhere to notice a cut at the end)",
    )


@command.command("show")
@click.argument("file", type=click.Path(path_type=Path))
@output_options()
@pass_output
def show(output: Output, *, file: Path) -> None:
    """Print the records of FILE, one a line, if its chain is whole."""
    verify_log(file)
    with file.open(encoding="ascii") as lines:
        for line in lines:
            record = json.loads(line)
            output.answer(record, record_line(record))


def record_line(record: dict[str, object]) -> str:
    """Return one audit record as a line for people."""
    fields = [f"{name}={json.dumps(value)}" for name, value in record.items() if name not in _CHAIN]
    head = f"{record.get('seq')} {record.get('time')} {record.get('event', '')}"
    return printable(" ".join([head, *fields]), one_line=True)
