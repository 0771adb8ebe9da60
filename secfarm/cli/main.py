"""The command `secfarm`: the group, what all commands share, and the one place where errors become exit statuses."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Sequence
from typing import Final, TextIO, cast

import click

from secfarm.cli.failure import failure_of
from secfarm.cli.output import Output, output_options, printable, silence
from secfarm.errors import ExitStatus, TaskExecutionError

# Name -> module of this room; each is imported when it is asked for, so that `keygen` loads no event loop.
_COMMANDS: Final = {
    "demo": "demo",
    "keygen": "keygen",
    "serve": "serve",
    "run": "run",
    "check": "check",
    "ping": "ping",
    "end-server": "end_server",
    "status": "status",
    "doctor": "doctor",
    "audit": "audit",
    "policy": "policy",
}


class _Lazy(click.Group):
    """A group whose commands are imported when they are named."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's contract
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's contract
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"secfarm.cli.{_COMMANDS[cmd_name]}")
        return cast("click.Command", module.command)


@click.group(
    cls=_Lazy,
    no_args_is_help=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit status: 0 ok, 1 the task raised, 2 usage, 3 authentication, 4 refused, 5 unreachable, "
    "6 missing modules, 7 killed or over a limit, 8 verification failed, 124 timed out, 130 interrupted.",
)
@click.version_option(package_name="secfarm", prog_name="secfarm", message="%(prog)s %(version)s")
@output_options()
@click.pass_context
def cli(context: click.Context) -> None:
    """A task farm that verifies before it compiles.

    Send functions, as source, to servers of your own. See `secfarm COMMAND --help`.
    """
    context.ensure_object(Output)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; errors are two lines on stderr."""
    output = Output()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a terminal that lacks a letter is no reason to fail
    try:
        status = cli.main(arguments, prog_name="secfarm", standalone_mode=False, obj=output)
        sys.stdout.flush()
    except BrokenPipeError:
        silence(sys.stdout)
        return ExitStatus.OK
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the one place where every error ends
        return _tell(error, output)
    return status if isinstance(status, int) else ExitStatus.OK


def _tell(error: BaseException, output: Output) -> ExitStatus:
    failure = failure_of(error)
    text = failure.lines()
    if isinstance(error, TaskExecutionError) and error.description:
        text = f"{printable(error.description.rstrip())}\n{text}"
    elif output.verbose and not isinstance(error, click.ClickException):
        text = f"{printable(''.join(traceback.format_exception(error)))}{text}"
    _write_quietly(sys.stderr, text)
    return failure.status


def _write_quietly(stream: TextIO, text: str) -> None:
    try:
        stream.write(text)
        stream.flush()
    except BrokenPipeError:
        silence(stream)
