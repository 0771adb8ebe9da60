"""From an error to what the shell and the user get: an exit status, what happened, what to do.

Two lines on stderr and no traceback. The messages are the errors' own; the second line is this module's.
"""

from __future__ import annotations

import concurrent.futures
from dataclasses import dataclass
from typing import Final

import click

from secfarm.auth.gss_errors import KerberosError
from secfarm.cli.output import printable
from secfarm.disk.keytab import KeytabError
from secfarm.errors import (
    AuthError,
    ConfigError,
    ExitStatus,
    InvalidTaskError,
    KernelCreationError,
    KernelError,
    KeyFileError,
    MissingModulesError,
    PolicyError,
    ProtocolError,
    PythonVersionError,
    ResourceExceededError,
    SecfarmError,
    TaskExecutionError,
    TaskKilledError,
    TaskRefusedError,
    TaskTimeoutError,
    TrustFileError,
    ValueTransferError,
    VerifyError,
    WorkerLostError,
)

_MAX_CHARS: Final = 4000  # of one message; a peer may have written some of it

# The first class that fits decides.
_HINTS: Final[tuple[tuple[type[BaseException], str], ...]] = (
    (InvalidTaskError, "change the task as the message says; docs/concepts.md, Tasks, lists what travels"),
    (PythonVersionError, "run it on a server with that Python or a newer one, or write it for the older one"),
    (TaskExecutionError, "the error is the task's own; the traceback above shows its lines"),
    (TaskTimeoutError, "give it longer with --timeout; the server's policy (wall_s) may allow less"),
    (TaskKilledError, "run it again if that was not meant"),
    (ResourceExceededError, "let the task need less, or ask for a higher limit in the server's policy"),
    (WorkerLostError, "try a smaller input: running out of memory is the usual reason; the server's log may say more"),
    (TaskRefusedError, "ask the server's administrator: its audit log has the reason, its policy what you may do"),
    (MissingModulesError, "have them installed in the server's Python, or do without them in the task"),
    (ValueTransferError, "pass and return plain values; docs/codec.md lists what travels"),
    (KerberosError, "docs/kerberos.md explains every message; `secfarm doctor --kerberos` looks at this machine"),
    (AuthError, "compare known_servers here, allowed_signers there, and both clocks; the server's log has the reason"),
    (KeytabError, "docs/kerberos.md, section 1, says how keytabs are made and kept"),
    (KeyFileError, "`secfarm keygen` makes keys; keys/README.md says how they are kept"),
    (TrustFileError, "correct the file; docs/operations.md has its format"),
    (ConfigError, "correct the configuration; docs/operations.md has its format"),
    (PolicyError, "the server's policy.toml says what you may do"),
    (VerifyError, "keep what failed as evidence, and find out who changed it"),
    (ProtocolError, "check that the address is that of a secfarm server of the same version"),
    (KernelError, "check the address and the firewall, and that `secfarm serve` runs there"),
    (TimeoutError, "try again; if it recurs, the server's log may say why"),
    (OSError, "check the path and its permissions"),
)
_REMEDY: Final = " Run: "  # behind it some messages name the very command that helps
_REPORT: Final = "run it again with -v for the traceback, and report it"


@dataclass(frozen=True, slots=True)
class Failure:
    """How a command failed."""

    message: str
    hint: str
    status: ExitStatus

    def lines(self) -> str:
        """Return the two lines for stderr."""
        return f"secfarm: {self.message}\nhint: {self.hint}\n"


def failure_of(error: BaseException) -> Failure:
    """Return what to tell of `error`; of one that is no `SecfarmError` nor the system's, that it is our mistake."""
    if isinstance(error, click.ClickException):
        return _usage(error)
    if isinstance(error, KeyboardInterrupt | click.Abort | concurrent.futures.CancelledError):
        return Failure("interrupted", "what was running for you has been ended", ExitStatus.INTERRUPTED)
    told = _reason(error)
    hint = next((hint for kind, hint in _HINTS if isinstance(told, kind)), _REPORT)
    if isinstance(error, TaskExecutionError) and not isinstance(error, PythonVersionError):
        where = f" on server {error.server}" if error.server else ""
        return Failure(_line(f"the task raised{where}: {error.report}"), hint, error.exit_status)
    message, _, remedy = _line(_words(error)).partition(_REMEDY)
    return Failure(message, f"run: {remedy}" if remedy else hint, _status_of(told))


def _status_of(error: BaseException) -> ExitStatus:
    if isinstance(error, SecfarmError):
        return error.exit_status
    if isinstance(error, TimeoutError):
        return ExitStatus.TIMED_OUT
    return ExitStatus.USAGE if isinstance(error, OSError) else ExitStatus.TASK_RAISED


def _reason(error: BaseException) -> BaseException:
    """Return what decides about status and hint: where a kernel could not be made, why that was."""
    cause = error.__cause__
    return cause if isinstance(error, KernelCreationError) and isinstance(cause, SecfarmError) else error


def _words(error: BaseException) -> str:
    if isinstance(error, SecfarmError | OSError) and str(error):
        return str(error)
    return f"{type(error).__name__}: {error}" if isinstance(error, OSError) else f"an error inside secfarm: {error!r}"


def _usage(error: click.ClickException) -> Failure:
    context = error.ctx if isinstance(error, click.UsageError) else None
    words = context.command_path if context is not None else "secfarm"
    message = error.format_message().rstrip(".")
    return Failure(_line(message[:1].lower() + message[1:]), f"see: {words} --help", ExitStatus.USAGE)


def _line(text: str) -> str:
    text = printable(" ".join(text.split()), one_line=True)
    return text if len(text) <= _MAX_CHARS else f"{text[:_MAX_CHARS]}... [{len(text)} characters]"
