"""Every error that secfarm raises: one tree, each class with a stable code and an exit status.

Knows nothing else of the package. A message says what happened, with which values, what was not done and what
to do next; `public` is the one word that the peer hears. The tree is the contract of docs/concepts.md, "Errors".
"""

from __future__ import annotations

import builtins
from enum import IntEnum
from typing import ClassVar, Final, cast

__all__ = [
    "AuthError",
    "BadSignatureError",
    "ConfigError",
    "ConnectionLostError",
    "ExitStatus",
    "ExpiredError",
    "InvalidTaskError",
    "KernelCreationError",
    "KernelError",
    "KeyFileError",
    "MissingModulesError",
    "NoKernelError",
    "PolicyError",
    "ProtocolError",
    "PtreeError",
    "PythonVersionError",
    "RedefinedNodeError",
    "ReplayedError",
    "ResourceExceededError",
    "RevokedKeyError",
    "RewoundError",
    "SecfarmError",
    "TaskError",
    "TaskExecutionError",
    "TaskKilledError",
    "TaskRefusedError",
    "TaskTimeoutError",
    "TrustFileError",
    "UndefinedNodeError",
    "UntrustedKeyError",
    "ValueTransferError",
    "VerifyError",
    "WorkerLostError",
    "WrongAudienceError",
]


class ExitStatus(IntEnum):
    """What the commands return to the shell; 124 and 130 are timeout(1)'s and bash's own."""

    OK = 0
    TASK_RAISED = 1
    USAGE = 2
    AUTHENTICATION = 3
    REFUSED = 4
    UNREACHABLE = 5
    MISSING = 6
    KILLED = 7
    VERIFICATION = 8
    TIMED_OUT = 124
    INTERRUPTED = 130


class SecfarmError(Exception):
    """The root. `code` is stable and for machines; `public` is all that a peer is told."""

    code: ClassVar[str] = "error"
    public: ClassVar[str] = "error"
    exit_status: ClassVar[ExitStatus] = ExitStatus.TASK_RAISED
    hint: ClassVar[str] = ""


class TaskError(SecfarmError):
    """Something is wrong with one task; its siblings and the kernel are unharmed."""

    code = "task"


class InvalidTaskError(TaskError, TypeError):
    """Not a task, or one that cannot travel; raised at submit, nothing was sent."""

    code = "invalid-task"
    exit_status = ExitStatus.USAGE


class TaskExecutionError(TaskError):
    """The task ran on the server and raised.

    When the remote exception is a built-in subclass of `Exception`, the error that is raised here is an instance
    of that class too (see `execution_error`), so `except ZeroDivisionError` works across the wire.

    Attributes:
        report: one line, as Python prints it last: `ZeroDivisionError: division by zero`.
        description: the remote traceback's text, with the client's file names and lines.
        remote_type: `ValueError` for a built-in, else with its module: `decimal.InvalidOperation`.
        server: name of the server on which it ran.
    """

    code = "raised"
    public = "failed"

    def __init__(self, report: str, *, description: str = "", remote_type: str = "Exception", server: str = "") -> None:
        Exception.__init__(self, report)
        self.report = report
        self.description = description
        self.remote_type = remote_type
        self.server = server

    def __str__(self) -> str:
        """The report, then the remote traceback: a built-in's own `__str__` may want fields that we do not have."""
        where = f" (on server {self.server})" if self.server else ""
        return f"{self.report}{where}\n{self.description}" if self.description else f"{self.report}{where}"


class PythonVersionError(TaskExecutionError, SyntaxError):
    """The task's text is of a newer Python than the server's; no code of the user ran.

    Attributes:
        python_version: the server's.
    """

    code = "python-version"
    exit_status = ExitStatus.MISSING

    def __init__(self, report: str, *, python_version: str = "", server: str = "") -> None:
        super().__init__(report, remote_type="SyntaxError", server=server)
        self.python_version = python_version


class TaskKilledError(TaskError):
    """The task was running and was killed on request (`kill_tasks`, `Future.cancel`, the end of a session)."""

    code = "killed"
    exit_status = ExitStatus.KILLED


class TaskTimeoutError(TaskError, TimeoutError):
    """The task ran longer than its limit and its worker process was killed."""

    code = "timeout"
    exit_status = ExitStatus.TIMED_OUT


class ResourceExceededError(TaskError):
    """The task went over a limit other than time.

    Attributes:
        kind: which one: `memory`, `cpu`, `output`, `result`, ...
        limit: its value, in bytes or seconds.
    """

    code = "resource"
    exit_status = ExitStatus.KILLED

    def __init__(self, message: str, *, kind: str = "", limit: float | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.limit = limit


class WorkerLostError(TaskError):
    """The worker process died under the task.

    Attributes:
        signal: number of the signal that ended it, or None when it exited by itself.
    """

    code = "worker-lost"
    exit_status = ExitStatus.KILLED

    def __init__(self, message: str, *, signal: int | None = None) -> None:
        super().__init__(message)
        self.signal = signal


class TaskRefusedError(TaskError):
    """The server would not run the task: it was never compiled and never executed.

    Attributes:
        code: the one word that the server says about it; its log and audit record hold the reason.
    """

    code = "refused"
    public = "refused"
    exit_status = ExitStatus.REFUSED
    hint = "ask the server's administrator: its audit log has the reason, its policy what you may do"


class MissingModulesError(TaskError):
    """The task imports modules that the server lacks; no code of the user ran.

    Attributes:
        modules: all of them, sorted.
        python_version: the server's.
        server: its name.
    """

    code = "missing-modules"
    exit_status = ExitStatus.MISSING

    def __init__(
        self, message: str, *, modules: tuple[str, ...] = (), python_version: str = "", server: str = ""
    ) -> None:
        super().__init__(message)
        self.modules = modules
        self.python_version = python_version
        self.server = server


class ValueTransferError(SecfarmError, TypeError):
    """A value cannot travel; the message names its path and its type."""

    code = "value"
    exit_status = ExitStatus.USAGE


class KernelError(SecfarmError, RuntimeError):
    """The kernel cannot do what was asked of it."""

    code = "kernel"
    exit_status = ExitStatus.UNREACHABLE


class NoKernelError(KernelError):
    """There is no current kernel."""

    code = "no-kernel"
    exit_status = ExitStatus.USAGE


class KernelCreationError(KernelError):
    """The kernel could not be made; the cause is kept (`__cause__`)."""

    code = "kernel-creation"


class ConnectionLostError(KernelError, ConnectionError):
    """The session broke and the task may not be sent twice."""

    code = "connection-lost"


class AuthError(SecfarmError):
    """The peer did not prove who it is, or would not believe us."""

    code = "auth"
    public = "refused"
    exit_status = ExitStatus.AUTHENTICATION


class VerifyError(SecfarmError):
    """A signed thing was not believed; nothing of it was parsed further, compiled or run."""

    code = "verify"
    public = "refused"
    exit_status = ExitStatus.VERIFICATION


class BadSignatureError(VerifyError):
    """No signature of the envelope fits its bytes."""

    code = "bad-signature"


class UntrustedKeyError(VerifyError):
    """The key is nobody's that we know, or is not meant for this use."""

    code = "untrusted-key"


class RevokedKeyError(VerifyError):
    """The key was revoked."""

    code = "revoked-key"


class ExpiredError(VerifyError):
    """The key or the envelope is past its time."""

    code = "expired"


class RewoundError(VerifyError):
    """The key or the envelope is dated in the future (the word is MUNGE's)."""

    code = "rewound"


class ReplayedError(VerifyError):
    """The batch was seen before, or is out of order."""

    code = "replayed"


class WrongAudienceError(VerifyError):
    """The envelope was signed for another session or another farm."""

    code = "wrong-audience"


class PolicyError(VerifyError):
    """The signature holds, but the principal may not do this."""

    code = "policy"
    exit_status = ExitStatus.REFUSED


class ProtocolError(SecfarmError):
    """The peer's bytes are not what the protocol allows here."""

    code = "protocol"
    public = "protocol"
    exit_status = ExitStatus.UNREACHABLE


class KeyFileError(SecfarmError):
    """A key or secret file is missing, unreadable, malformed, or open to others."""

    code = "key-file"
    exit_status = ExitStatus.AUTHENTICATION


class TrustFileError(SecfarmError):
    """`allowed_signers`, `known_servers` or the policy cannot be believed as written."""

    code = "trust-file"
    exit_status = ExitStatus.USAGE


class ConfigError(SecfarmError):
    """The configuration cannot be used as written; nothing was started."""

    code = "config"
    exit_status = ExitStatus.USAGE


class PtreeError(SecfarmError):
    """A ptree cannot be computed as defined."""

    code = "ptree"


class UndefinedNodeError(PtreeError, LookupError):
    """A ptree names a node that was never defined."""

    code = "undefined-node"


class RedefinedNodeError(PtreeError, ValueError):
    """A ptree node was defined twice."""

    code = "redefined-node"


# PEP 479 turns a StopIteration that leaves a generator into RuntimeError, and asyncio refuses it in futures:
# raising one from `Future.result()` would end the caller's loops in silence.
_NOT_MIXED: Final = (StopIteration, StopAsyncIteration)

_mixed: dict[str, type[TaskExecutionError]] = {}


def execution_error(report: str, *, description: str, remote_type: str, server: str) -> TaskExecutionError:
    """Make the `TaskExecutionError` for a remote exception, catchable as the built-in class of that name.

    Args:
        remote_type: name from the server, believed only as a key to look up among our own built-ins.
    """
    made = _mixed.get(remote_type)
    if made is None:
        made = _mixed_class(remote_type)
    return made(report, description=description, remote_type=remote_type, server=server)


def _mixed_class(remote_type: str) -> type[TaskExecutionError]:
    base = getattr(builtins, remote_type, None) if remote_type.isidentifier() else None
    if (
        not (isinstance(base, type) and issubclass(base, Exception))
        or issubclass(base, _NOT_MIXED)
        or base is Exception
    ):
        return TaskExecutionError
    namespace: dict[str, object] = {"__module__": __name__, "__doc__": TaskExecutionError.__doc__}
    if issubclass(base, ExceptionGroup):
        # A group cannot be made empty; what it held stays on the server, its text is in the description.
        namespace["__new__"] = lambda cls, report, **_: base.__new__(cls, report, [Exception(report)])
    elif issubclass(base, OSError):
        # Without the arguments: OSError's __new__ would look for an errno among ours.
        namespace["__new__"] = lambda cls, *_, **__: base.__new__(cls)
    made = cast(
        "type[TaskExecutionError]", type(f"TaskExecutionError[{remote_type}]", (TaskExecutionError, base), namespace)
    )
    _mixed[remote_type] = made
    return made


def error_of(code: str) -> type[SecfarmError]:
    """Return the class with this stable code, which another process of ours told; the root where there is none."""
    pending: list[type[SecfarmError]] = [SecfarmError]
    while pending:
        one = pending.pop()
        if one.code == code:
            return one
        pending += one.__subclasses__()
    return SecfarmError
