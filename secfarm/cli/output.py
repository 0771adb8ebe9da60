"""What commands print, and how: an answer, a confirmation, a note; for people or as one line of JSON.

Text that a peer wrote goes through `printable` before it reaches a terminal.
"""

from __future__ import annotations

import json
import os
import sys
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TextIO, TypeVar

import click

from secfarm.errors import ExitStatus

Command = TypeVar("Command", bound=Callable[..., object])


def printable(text: str, *, one_line: bool = False) -> str:
    """Return `text` with everything escaped that could move a cursor, change a colour or hide other text.

    Args:
        one_line: escape line ends and tabs too.
    """
    if text.isprintable():
        return text
    kept = "" if one_line else "\n\t"
    return "".join([char if char in kept or _is_visible(char) else _escaped(char) for char in text])


def _is_visible(char: str) -> bool:
    # isprintable() leaves out the spaces of other scripts, which harm nobody.
    return char.isprintable() or unicodedata.category(char) == "Zs"


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


def json_line(record: Mapping[str, object]) -> str:
    """Return `record` as one line of JSON in ASCII, every control character escaped."""
    return json.dumps(record, ensure_ascii=True).replace("\x7f", "\\u007f")  # the one that JSON leaves as it is


@dataclass(slots=True)
class Output:
    """Where the words of one command go, as its options say.

    Attributes:
        json: records instead of words.
        quiet: answers and errors only.
        verbose: a traceback where something is wrong with secfarm itself, and the server's smaller log lines.
    """

    json: bool = False
    quiet: bool = False
    verbose: bool = False

    def answer(self, record: Mapping[str, object], *lines: str) -> None:
        """Print what was asked for: `record` as JSON, or else `lines`."""
        for line in [json_line(record)] if self.json else lines:
            write(sys.stdout, f"{line}\n")

    def confirm(self, record: Mapping[str, object], *lines: str) -> None:
        """Print that something was done; nobody needs it, so `--quiet` leaves the words out."""
        if self.json or not self.quiet:
            self.answer(record, *lines)

    def note(self, line: str) -> None:
        """Say something beside the matter, on stderr."""
        if not self.quiet:
            write(sys.stderr, f"{line}\n")


def write(stream: TextIO, text: str) -> None:
    """Write `text` now. When nobody reads any more the command ends, without a word.

    Raises:
        click.exceptions.Exit: the reader has gone.
    """
    try:
        stream.write(text)
        stream.flush()
    except BrokenPipeError:
        silence(stream)
        raise click.exceptions.Exit(ExitStatus.OK) from None


def silence(stream: TextIO) -> None:
    """Let whatever else is written to `stream` vanish, what its buffer still holds included."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


pass_output = click.make_pass_decorator(Output, ensure=True)


def output_options(*, record: bool = True) -> Callable[[Command], Command]:
    """Add `--quiet`, `-v` and, for a command that prints a record, `--json`."""

    def decorate(command: Command) -> Command:
        if record:
            command = _flag("--json", name="json", text="Print a record, as one line of JSON.")(command)
        command = _flag("-q", "--quiet", name="quiet", text="Print answers and errors only.")(command)
        return _flag("-v", "--verbose", name="verbose", text="Say more.")(command)

    return decorate


def _flag(*spellings: str, name: str, text: str) -> Callable[[Command], Command]:
    def note(context: click.Context, _: click.Parameter, given: bool) -> None:  # noqa: FBT001 - click's callback
        if given:
            setattr(context.ensure_object(Output), name, True)

    return click.option(*spellings, name, is_flag=True, expose_value=False, callback=note, help=text)
