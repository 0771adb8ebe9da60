"""From a server's error record to one of our exceptions: its words choose among our classes and nothing more."""

from __future__ import annotations

from typing import TYPE_CHECKING

from secfarm.errors import (
    MissingModulesError,
    PythonVersionError,
    ResourceExceededError,
    SecfarmError,
    TaskKilledError,
    TaskRefusedError,
    TaskTimeoutError,
    ValueTransferError,
    WorkerLostError,
    execution_error,
)

if TYPE_CHECKING:
    from secfarm.task.outcome import ErrorRecord


def error_of(record: ErrorRecord, server: str) -> SecfarmError:
    """Return the exception for what a server reports; a code that we do not know is a refusal."""
    report = record.report
    match record.code:
        case "raised":
            made: SecfarmError = execution_error(
                report, description=record.description, remote_type=record.remote_type, server=server
            )
        case "timeout":
            made = TaskTimeoutError(report)
        case "killed":
            made = TaskKilledError(report)
        case "worker-lost":
            made = WorkerLostError(report, signal=record.signal)
        case "resource":
            made = ResourceExceededError(report, kind=record.kind, limit=record.limit)
        case "value":
            made = ValueTransferError(report)
        case "missing-modules":
            words, version = f"{report} (on server {server})", record.python_version
            made = MissingModulesError(words, modules=record.modules, python_version=version, server=server)
        case "python-version":
            made = PythonVersionError(report, python_version=record.python_version, server=server)
        case _:
            made = TaskRefusedError(f"server {server} would not run it ({record.code}); it was not compiled")
    return made
