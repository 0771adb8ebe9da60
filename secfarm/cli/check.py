"""`secfarm check`: what would travel of a task, and whether a server would run it. The task itself is not called."""

from __future__ import annotations

from collections.abc import Callable

import click

from secfarm.cli.client import CONNECT_TIMEOUT_S, client_auth, some_addresses
from secfarm.cli.output import Output, output_options, pass_output, printable
from secfarm.cli.script import task_of_file
from secfarm.errors import SecfarmError, ValueTransferError
from secfarm.farm.kernel import Kernel
from secfarm.run.preflight import modules_of
from secfarm.task import codec
from secfarm.task.capture import Captured, capture, refuse_values
from secfarm.task.deftask import Task
from secfarm.task.program import SourceProgram

_WIDTH = 10  # of the first column


@click.command("check")
@click.option(
    "--on",
    "addresses",
    multiple=True,
    metavar="ADDR",
    callback=some_addresses,
    help="A server to ask; repeatable.",
)
@click.argument("word", metavar="FILE.py[::FUNCTION]")
@output_options()
@pass_output
def command(output: Output, *, addresses: tuple[str, ...], word: str) -> None:
    """Show what would travel of one function of a file, and whether servers would run it.

    FUNCTION is `main`, or the only one in the file, unless named. The file is loaded here, as for `run`. A server goes
    through everything but the call: signature, policy, compilation, modules, requirements and the Python version.
    """
    task = task_of_file(word)
    captured = capture(task)
    sizes = _sizes(captured)
    record, lines = _described(task, captured, sizes)
    verdicts: dict[str, object] = {}
    failure: SecfarmError | None = None
    for address in addresses:
        try:
            report = _ask(address, task)
        except SecfarmError as error:
            failure = failure or error
            verdicts[address] = {"runs": False, "code": error.code, "reason": str(error)}
            lines.append(_row("server", f"{address} would not run it ({error.code})"))
        else:
            verdicts[address] = {"runs": True, "python_version": report["python_version"]}
            lines.append(_row("server", f"{address} (Python {report['python_version']}) would run it"))
    output.answer(record | {"servers": verdicts}, *(printable(line) for line in lines))
    if failure is not None:
        raise failure


def _ask(address: str, task: Callable[..., object]) -> dict[str, str]:
    # At most once: a command that waits for a server to come back looks like one that hangs.
    auth, timeout_s = client_auth(), CONNECT_TIMEOUT_S
    with Kernel([address], auth=auth, connect_timeout_s=timeout_s, delivery="at-most-once") as kernel:
        return kernel.dry_run(task).result()


def _sizes(captured: Captured) -> list[int]:
    """Return how many bytes each captured value has when it is encoded."""
    try:
        return [len(codec.encode(value)) for value in captured.values]
    except ValueTransferError as error:
        raise refuse_values(captured, error, codec.encode) from error


def _described(
    task: Callable[..., object], captured: Captured, sizes: list[int]
) -> tuple[dict[str, object], list[str]]:
    program = captured.program
    content = program.content
    imports, requirements = [], []
    if isinstance(content, SourceProgram):
        imports, requirements = sorted(modules_of(content)), list(content.requirements)
    values = [
        {"place": place, "type": type(value).__name__, "bytes": size}
        for place, value, size in zip(captured.places, captured.values, sizes, strict=True)
    ]
    record: dict[str, object] = {
        "name": task.name if isinstance(task, Task) else program.name,
        "kind": program.kind.value,
        "digest": program.digest,
        "python_version": program.python_version,
        "bytes": len(program.text) + len(program.origin),
        "text": program.source_text,
        "places": [f"{place.file}:{place.line}" for place in program.places],
        "values": values,
        "imports": imports,
        "requires": requirements,
    }
    lines = [
        _row("task", f"{record['name']}, written for Python {program.python_version}"),
        _row("digest", program.digest),
        _row("text", f"{record['bytes']} bytes"),
        *(f"  {line}" for line in program.source_text.split("\n")),
        *(_row("value", f"{value['place']}: {value['type']}, {value['bytes']} bytes") for value in values),
        *(_row("import", name) for name in imports),
        *(_row("requires", requirement) for requirement in requirements),
    ]
    return record, lines


def _row(word: str, text: str) -> str:
    return f"{word:{_WIDTH}}{text}"
