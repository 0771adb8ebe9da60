"""Every error is an exit status and two lines: what happened, what to do."""

from __future__ import annotations

import click
import pytest

from secfarm import errors
from secfarm.cli.failure import failure_of
from secfarm.errors import ExitStatus, KernelCreationError, SecfarmError, execution_error

CLASSES = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, SecfarmError)]


@pytest.mark.parametrize("kind", CLASSES)
def test_every_class_has_its_own_status_and_a_hint(kind: type[SecfarmError]) -> None:
    failure = failure_of(kind("it went wrong"))
    assert failure.status is kind.exit_status
    assert "it went wrong" in failure.message
    assert failure.hint
    assert failure.lines().count("\n") == 2
    assert failure.lines().startswith("secfarm: ")
    assert failure.lines().splitlines()[1].startswith("hint: ")


@pytest.mark.parametrize(
    ("cause", "status"),
    [
        (errors.AuthError("no"), ExitStatus.AUTHENTICATION),
        (errors.ConfigError("no"), ExitStatus.USAGE),
        (TimeoutError("no"), ExitStatus.UNREACHABLE),
        (None, ExitStatus.UNREACHABLE),
    ],
)
def test_why_a_kernel_could_not_be_made_decides(cause: Exception | None, status: ExitStatus) -> None:
    error = KernelCreationError("no session")
    error.__cause__ = cause
    assert failure_of(error).status is status


def test_a_task_that_raised_is_reported_without_its_traceback() -> None:
    error = execution_error("ValueError: no", description="Traceback ...", remote_type="ValueError", server="node1")
    failure = failure_of(error)
    assert failure.message == "the task raised on server node1: ValueError: no"
    assert failure.status is ExitStatus.TASK_RAISED


def test_the_words_of_a_peer_stay_on_one_line_and_cannot_control_a_terminal() -> None:
    failure = failure_of(errors.WorkerLostError("first\nsecond \x1b[2J" + "x" * 10_000))
    assert "first second \\x1b[2J" in failure.message
    assert len(failure.message) < 5000


def test_a_command_that_the_message_names_becomes_the_hint() -> None:
    failure = failure_of(errors.KeyFileError("key: its mode opens it to others. Run: chmod 600 key"))
    assert failure.message == "key: its mode opens it to others."
    assert failure.hint == "run: chmod 600 key"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (KeyboardInterrupt(), ExitStatus.INTERRUPTED),
        (click.Abort(), ExitStatus.INTERRUPTED),
        (click.UsageError("bad"), ExitStatus.USAGE),
        (FileNotFoundError(2, "No such file", "x"), ExitStatus.USAGE),
        (TimeoutError(), ExitStatus.TIMED_OUT),
        (ZeroDivisionError("oops"), ExitStatus.TASK_RAISED),
    ],
)
def test_other_errors_have_a_status_and_words_too(error: BaseException, status: ExitStatus) -> None:
    failure = failure_of(error)
    assert failure.status is status
    assert failure.message
    assert failure.hint
