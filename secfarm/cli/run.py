"""`secfarm run`: one task, from a file or an expression, on a server."""

from __future__ import annotations

import ast
import contextlib
import math
import os
import re
import sys
import time
from collections.abc import Callable
from typing import Final, TextIO

import click

from secfarm.cli.client import CONNECT_TIMEOUT_S, client_auth, some_addresses
from secfarm.cli.output import Output, json_line, output_options, pass_output, printable, write
from secfarm.cli.script import task_of_file
from secfarm.disk.config import load_client_config
from secfarm.errors import InvalidTaskError, ValueTransferError
from secfarm.farm.deftask import task_from_source
from secfarm.farm.kernel import Kernel
from secfarm.farm.launcher import local_kernel
from secfarm.farm.progress_line import ProgressLine

_NEGATIVE: Final = re.compile(r"-[.\d]")
_MARK: Final = "\0"  # no argument of a process can hold it


class _NumbersAreArguments(click.Command):
    """A command for which `-3` is an argument and `-v` an option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, [_MARK + word if _NEGATIVE.match(word) else word for word in args])


def _unmarked(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    return None if value is None else value.removeprefix(_MARK)


def _all_unmarked(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    return tuple([value.removeprefix(_MARK) for value in values])


def _seconds(context: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
    if value is None:
        return None
    try:
        seconds = float(value.removeprefix(_MARK))
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise click.BadParameter("it is a number of seconds above 0", context, parameter)
    return seconds


@click.command("run", cls=_NumbersAreArguments)
@click.option(
    "-e", "--expression", metavar="EXPR", callback=_unmarked, help="Run this expression, or call this lambda with ARGs."
)
@click.option(
    "--on", "addresses", multiple=True, metavar="ADDR", callback=some_addresses, help="A server; may be repeated."
)
@click.option("--timeout", "timeout_s", metavar="SECONDS", callback=_seconds, help="Kill the task when it runs longer.")
@click.argument("words", nargs=-1, callback=_all_unmarked, metavar="[FILE.py[::FUNCTION]] [ARG]...")
@output_options()
@pass_output
def command(
    output: Output,
    *,
    expression: str | None,
    addresses: tuple[str, ...],
    timeout_s: float | None,
    words: tuple[str, ...],
) -> None:
    """Run one function of a file, or an expression, on a server, and print its result.

    FUNCTION is `main`, or the only one in the file, unless named. Each ARG is a Python literal, else text. Servers are
    those of --on, else of SECFARM_HOSTS or the configuration, else one that is started here for the occasion.
    """
    if expression is None and not words:
        raise click.UsageError("name a FILE.py, or give an expression with -e")
    if expression is None:
        task, words = task_of_file(words[0]), words[1:]
    else:
        task = _task_of_expression(expression, has_arguments=bool(words))
    arguments = [_literal(word) for word in words]
    with _kernel(output, addresses) as kernel:
        _run(output, kernel, task, arguments, timeout_s)


def _kernel(output: Output, addresses: tuple[str, ...]) -> Kernel:
    hosts = addresses or tuple(str(host) for host in load_client_config(None, os.environ).hosts)
    if not hosts:
        output.note("secfarm: no server is named (--on, SECFARM_HOSTS, `hosts`); one is started here for this task")
        return local_kernel(workers=1)
    # At most once: a command that waits for a server to come back looks like one that hangs.
    return Kernel(hosts, auth=client_auth(), connect_timeout_s=CONNECT_TIMEOUT_S, delivery="at-most-once")


def _run(
    output: Output, kernel: Kernel, task: Callable[..., object], arguments: list[object], timeout_s: float | None
) -> None:
    start_s = time.monotonic()
    show = _Show(output)
    line = ProgressLine("task") if not (output.json or output.quiet) else None
    view = kernel.options(
        timeout_s=timeout_s, on_output=show, on_progress=line.reached if line is not None and line.is_shown else None
    )
    future = view.submit(task, *arguments)
    try:
        value = future.result()
    except BaseException:
        if not future.done():
            future.cancel()  # an interrupt: the task is killed there
        raise
    finally:
        if line is not None:
            line.close()
        show.end()
    shown = _shown(value)
    if output.json:
        took_s = round(time.monotonic() - start_s, 6)
        record = {"task_id": future.task_id, "result": _json_value(value), "repr": shown, "output": future.output}
        output.answer(record | {"seconds": took_s})
    else:
        write(sys.stdout, f"{printable(value if isinstance(value, str) else shown)}\n")


class _Show:
    """Shows what the task prints, while it runs, on the stream that it meant; with --json that is stderr."""

    def __init__(self, output: Output) -> None:
        self._streams = {"stdout": sys.stderr if output.json else sys.stdout, "stderr": sys.stderr}
        self._unended: dict[str, TextIO] = {}

    def __call__(self, stream: str, text: str) -> None:
        """Write `text`, as kernels tell it; when nobody reads any more it goes nowhere."""
        with contextlib.suppress(click.exceptions.Exit):
            write(self._streams[stream], printable(text))
        self._unended.pop(stream, None)
        if not text.endswith("\n"):
            self._unended[stream] = self._streams[stream]

    def end(self) -> None:
        """End the last lines: what follows begins on a line of its own."""
        for stream in self._unended.values():
            write(stream, "\n")


def _shown(value: object) -> str:
    try:
        return repr(value)
    except ValueError as error:  # an int of more digits than sys.get_int_max_str_digits() allows
        raise ValueTransferError(f"the result came and cannot be printed: {error}; let the task return less") from error


def _json_value(value: object) -> object:
    """Return `value` if JSON has it, else None; `repr` says what it is."""
    try:
        json_line({"value": value})
    except (TypeError, ValueError, RecursionError):
        return None
    return value


def _literal(word: str) -> object:
    try:
        return ast.literal_eval(word)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return word


def _task_of_expression(text: str, *, has_arguments: bool) -> Callable[..., object]:
    """Return the task of a lambda, or of a function that returns the value of the expression.

    Modules of the standard library that the expression names are imported: it has no other place to do so.
    """
    try:
        tree = ast.parse(text.strip(), "<expression>", "eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InvalidTaskError(f"{text!r} is not an expression: {error}; nothing was sent") from error
    if isinstance(tree, ast.Lambda):
        return task_from_source(text.strip())
    if has_arguments:
        raise click.UsageError("only a lambda takes ARGs: run -e 'lambda x, y: x + y' 3 4")
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    loaded = {node.id for node in names if isinstance(node.ctx, ast.Load)}
    bound = {node.id for node in names if not isinstance(node.ctx, ast.Load)}
    bound |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    imports = "".join(f"    import {name}\n" for name in sorted((loaded & sys.stdlib_module_names) - bound))
    return task_from_source(f"def expression():\n{imports}    return (\n{text}\n)\n")
