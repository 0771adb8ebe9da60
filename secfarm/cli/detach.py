"""`secfarm serve --detach`: the same command once more, in a session of its own, until it listens or says why not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import click

from secfarm.cli.output import Output, printable, write
from secfarm.disk.guard import check_owner_and_mode
from secfarm.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path


def open_log(path: Path) -> int:
    """Return a descriptor that appends to the log, which is made (mode 0600) if it is not there.

    Raises:
        ConfigError: it cannot be opened, or others may touch it.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise ConfigError(f"{path}: the log cannot be opened ({error}); nothing was started") from error
    check_owner_and_mode(path, descriptor, secret=True, error=ConfigError)
    return descriptor


def detached(output: Output, log: Path) -> None:
    """Start the server that this very command describes, without `--detach`, and return when it listens.

    Raises:
        click.exceptions.Exit: it did not start; its words are on stderr, the status is its own.
    """
    descriptor = open_log(log)
    before_bytes = os.fstat(descriptor).st_size
    server = subprocess.Popen(
        [sys.executable, "-P", "-m", "secfarm", *_words(click.get_current_context(), output)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=descriptor,
        start_new_session=True,
    )
    line = server.stdout.readline() if server.stdout is not None else b""
    if not line:
        words = os.pread(descriptor, 1 << 16, before_bytes).decode("utf-8", "replace")
        write(sys.stderr, printable(words))
        raise click.exceptions.Exit(server.wait())
    record = {**json.loads(line), "log": str(log)}
    output.confirm(record, *[f"listening on {address}" for address in record["listening"]], f"its log is {log}")
    server.returncode = 0  # it is nobody's child from here on; without this Python warns of a process left behind


def _words(context: click.Context, output: Output) -> list[str]:
    """Return the words of this command, as they would be typed, without `--detach` and with `--json`."""
    words = [context.command.name or "", "--json"] + ["--quiet"] * output.quiet + ["--verbose"] * output.verbose
    for option in context.command.params:
        value = context.params.get(option.name or "")
        if isinstance(option, click.Option) and value and option.name != "detach":
            spelling = option.opts[-1]
            values = value if option.multiple else [value]
            words += [spelling] if option.is_flag else [f"{spelling}={one}" for one in values]
    return words
