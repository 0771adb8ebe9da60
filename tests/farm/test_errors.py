"""What goes wrong on a server is an exception here: of the right class, with the remote words."""

# ruff: noqa: N818 - tasks are written as users write them

from __future__ import annotations

import builtins
import inspect
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from secfarm import (
    InvalidTaskError,
    MissingModulesError,
    PythonVersionError,
    SecfarmError,
    TaskError,
    TaskExecutionError,
    TaskKilledError,
    TaskRefusedError,
    TaskTimeoutError,
    ValueTransferError,
    WorkerLostError,
    deftask,
)
from secfarm.farm.failure import error_of
from secfarm.task.outcome import ErrorRecord
from tests.farm.farms import POLICY, WAIT_S, Daemon
from tests.meeting import Gate, Notes, mark_process, note

BUILT_IN = sorted(
    name for name, value in vars(builtins).items() if isinstance(value, type) and issubclass(value, BaseException)
)
NEVER_MIXED = ("Exception", "StopIteration", "StopAsyncIteration")


def raise_built_in(name):
    import builtins

    kind = getattr(builtins, name)
    if issubclass(kind, BaseExceptionGroup):
        raise kind("many", [ValueError("one"), OSError("two")])
    if kind is UnicodeDecodeError:
        raise kind("utf-8", b"\xff", 0, 1, "bad byte")
    if kind is UnicodeEncodeError:
        raise kind("ascii", "é", 0, 1, "bad character")
    if kind is UnicodeTranslateError:
        raise kind("é", 0, 1, "bad character")
    raise kind("because")


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_built_in_exception_is_caught_as_itself(one_kernel, name: str) -> None:
    """All but those that would end a loop or the caller itself; those keep their name in the report."""
    error = one_kernel.submit(raise_built_in, name).exception(WAIT_S)
    kind = getattr(builtins, name)
    assert isinstance(error, TaskExecutionError)
    assert isinstance(error, TaskError)
    if kind is BaseExceptionGroup:
        kind = ExceptionGroup  # what Python makes of one that holds nothing but Exceptions
    mixable = issubclass(kind, Exception)
    assert error.remote_type == kind.__name__
    assert error.report.startswith(kind.__name__)
    assert "\n" not in error.report
    assert error.server == "node"
    assert (isinstance(error, kind) and kind not in TaskExecutionError.__mro__) is (name not in NEVER_MIXED and mixable)
    assert error.report in str(error)
    assert kind.__name__ in repr(error)


def test_remote_exceptions_are_caught_by_the_usual_words(kernel) -> None:
    with pytest.raises(ZeroDivisionError):
        kernel.run(lambda: 1 / 0)
    with pytest.raises(KeyError):
        kernel.run(lambda: {}["x"])
    with pytest.raises(FileNotFoundError):
        kernel.run(lambda: open("/nowhere/at/all"))  # noqa: SIM115, PTH123
    with pytest.raises(LookupError):
        kernel.run(lambda: "ab"[len("ab")])
    with pytest.raises(NameError, match="never_defined"):
        kernel.run(lambda: never_defined)  # noqa: F821
    with pytest.raises(ExceptionGroup) as caught:
        kernel.run(raise_built_in, "ExceptionGroup")
    assert isinstance(caught.value, TaskExecutionError)


def test_a_task_that_ends_the_interpreter_only_ends_itself(one_kernel) -> None:
    """SystemExit and its kin are the task's, not the worker's."""
    before = set(one_kernel.broadcast(mark_process))
    for name in ("SystemExit", "KeyboardInterrupt", "GeneratorExit"):
        error = one_kernel.submit(raise_built_in, name).exception(WAIT_S)
        assert type(error) is TaskExecutionError
    assert set(one_kernel.broadcast(mark_process)) == before


def inner(x):
    return 1 / x


def outer(x):
    return inner(x)


def test_the_remote_traceback_shows_the_client_s_files_and_lines(kernel) -> None:
    error = kernel.submit(outer, 0).exception(WAIT_S)
    assert isinstance(error, TaskExecutionError)
    assert error.report == "ZeroDivisionError: division by zero"
    first = inspect.getsourcelines(inner)[1]
    assert f'File "{__file__}", line {first + 1}, in inner' in error.description
    assert f'File "{__file__}", line {first + 5}, in outer' in error.description
    assert "    return 1 / x\n" in error.description
    assert error.description.startswith("Traceback (most recent call last):")
    assert "secfarm/" not in error.description, "no frame of ours"


def test_causes_and_contexts_are_in_the_description(one_kernel) -> None:
    def chained():
        try:
            {}["x"]
        except KeyError as error:
            raise ValueError("second") from error

    error = one_kernel.submit(chained).exception(WAIT_S)
    assert error.remote_type == "ValueError"
    assert "KeyError: 'x'" in error.description
    assert "direct cause" in error.description


def test_a_class_of_the_task_s_own_or_of_a_library_is_named_in_full(one_kernel) -> None:
    def own():
        class Odd(ValueError):
            pass

        raise Odd("here")

    error = one_kernel.submit(own).exception(WAIT_S)
    assert type(error) is TaskExecutionError
    assert error.remote_type.endswith("Odd")
    error = one_kernel.submit(lambda: __import__("decimal").Decimal("x")).exception(WAIT_S)
    assert error.remote_type == "decimal.InvalidOperation"


def test_a_fresh_error_for_each_task(one_kernel) -> None:
    first, second = (one_kernel.submit(inner, 0).exception(WAIT_S) for _ in range(2))
    assert first is not second
    assert type(first) is type(second)


def test_an_enormous_or_odd_error_text_still_comes(one_kernel) -> None:
    def shout():
        raise ValueError("x" * 10_000_000)

    def odd():
        class Odd(Exception):
            def __str__(self):
                raise RuntimeError

        raise Odd

    error = one_kernel.submit(shout).exception(WAIT_S)
    assert isinstance(error, ValueError)
    assert len(error.report) + len(error.description) < 1 << 18
    assert "Odd" in one_kernel.submit(odd).exception(WAIT_S).remote_type
    surrogate = one_kernel.submit(lambda: int("\udcff")).exception(WAIT_S)
    assert isinstance(surrogate, ValueError)


# --- what could not begin -------------------------------------------------------------------------------------------


def test_a_name_that_the_server_lacks(one_kernel) -> None:
    for name, kind in (
        ("math.nothing", AttributeError),
        ("no_such_module.f", ModuleNotFoundError),
        ("math.pi", TypeError),
    ):
        error = one_kernel.submit(name).exception(WAIT_S)
        assert isinstance(error, TaskExecutionError)
        assert isinstance(error, kind)


def test_modules_that_the_server_lacks_are_all_named_and_nothing_ran(
    one_kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ran: Notes
) -> None:
    for name in ("absent_one", "absent_two"):
        (tmp_path / f"{name}.py").write_text("value = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    import absent_one
    import absent_two

    task = lambda port: note(port, 1) + absent_one.value + absent_two.value
    error = one_kernel.submit(task, ran.port).exception(WAIT_S)
    assert isinstance(error, MissingModulesError)
    assert error.modules == ("absent_one", "absent_two")
    assert error.server == "node"
    assert error.python_version == ".".join(map(str, sys.version_info[:3]))
    assert ran.lines() == []


def test_imports_inside_and_requirements_are_named_too_and_nothing_ran(one_kernel, ran: Notes) -> None:
    @deftask(requires=["msgspec>=0.1", "no-such-thing"])
    def task(port):
        note(port, 1)
        import no_such_inner

        return no_such_inner

    error = one_kernel.submit(task, ran.port).exception(WAIT_S)
    assert isinstance(error, MissingModulesError)
    assert error.modules == ("no-such-thing", "no_such_inner")
    assert "(on server node)" in str(error)
    assert ran.lines() == []


def test_a_dry_run_is_everything_but_the_call(one_kernel, ran: Notes) -> None:
    port = ran.port
    task = deftask(lambda: note(port, 1))
    report = one_kernel.dry_run(task).result(WAIT_S)
    assert report == {"digest": task.digest, "python_version": ".".join(map(str, sys.version_info[:3]))}
    assert ran.lines() == []
    error = one_kernel.dry_run("no_such_module_anywhere:f").exception(WAIT_S)
    assert isinstance(error, ModuleNotFoundError)
    with pytest.raises(InvalidTaskError):
        one_kernel.dry_run(5)


# --- values that cannot travel --------------------------------------------------------------------------------------


def test_an_argument_that_cannot_travel_is_named_by_its_path(one_kernel) -> None:
    for arguments, place in [
        (({"x": [0, threading.Lock()]},), r"args\[0\]\[.x.\]\[1\]"),
        ((1, object()), r"args\[1\]"),
    ]:
        with pytest.raises(ValueTransferError, match=place) as caught:
            one_kernel.submit(max, *arguments)
        assert isinstance(caught.value, TypeError)
    with pytest.raises(ValueTransferError, match="key"):
        one_kernel.submit(max, [1], key=object())


def test_a_captured_value_that_cannot_travel_is_named(one_kernel) -> None:
    lock = threading.Lock()
    with pytest.raises(InvalidTaskError, match="lock"):
        one_kernel.submit(lambda: lock)


@pytest.mark.parametrize(
    "make", ["object()", "open('/dev/null')", "[1, {2: lambda: 3}]", "__import__('threading').Lock()"]
)
def test_a_result_that_cannot_travel_is_an_error_of_its_task(one_kernel, make: str) -> None:
    error = one_kernel.submit("builtins:eval", make).exception(WAIT_S)
    assert isinstance(error, ValueTransferError)
    assert one_kernel.run(divmod, 7, 2) == (3, 1)


# --- ends of workers ------------------------------------------------------------------------------------------------


def test_a_worker_that_dies_of_a_signal_says_which(kernel, gate: Gate) -> None:
    crashed = kernel.submit(lambda: __import__("ctypes").string_at(0))
    killed = gate.hold(kernel)
    os.kill(gate.next(), signal.SIGKILL)
    for future, number in ((crashed, signal.SIGSEGV), (killed, signal.SIGKILL)):
        error = future.exception(WAIT_S)
        assert isinstance(error, WorkerLostError)
        assert error.signal == number
    assert kernel.run(divmod, 7, 2) == (3, 1)


def test_a_task_that_kills_its_own_process_is_told_by_that_signal(kernel) -> None:
    """The kernel alone would keep it from doing so: it is process 1 of a namespace."""
    by_kill = lambda: __import__("os").kill(__import__("os").getpid(), 9)
    by_raise = lambda: __import__("signal").raise_signal(9)
    for task in (by_kill, by_raise):
        error = kernel.submit(task).exception(WAIT_S)
        assert isinstance(error, WorkerLostError)
        assert error.signal == signal.SIGKILL
    assert kernel.run(divmod, 7, 2) == (3, 1)


def test_another_signal_that_a_task_sends_itself_has_no_effect_without_a_handler(one_kernel) -> None:
    """Its worker is process 1 of a namespace: the kernel keeps such signals from it."""
    task = lambda n: __import__("os").kill(__import__("os").getpid(), n)
    assert [one_kernel.run(task, int(n)) for n in (signal.SIGTERM, signal.SIGSTOP)] == [None] * 2


def test_a_worker_that_exits_by_itself_has_no_signal(one_kernel) -> None:
    error = one_kernel.submit(lambda: __import__("os")._exit(3)).exception(WAIT_S)
    assert isinstance(error, WorkerLostError)
    assert error.signal is None
    assert "3" in str(error)


def test_only_the_task_that_killed_its_worker_is_lost(one_kernel) -> None:
    good = [one_kernel.submit(divmod, i, 2) for i in range(200)]
    bad = one_kernel.submit(lambda: __import__("os")._exit(1))
    good += [one_kernel.submit(divmod, i, 2) for i in range(200, 400)]
    assert [future.result(WAIT_S) for future in good] == [divmod(i, 2) for i in range(400)]
    assert isinstance(bad.exception(WAIT_S), WorkerLostError)


@pytest.mark.parametrize(
    "task", [lambda: time.sleep(60), lambda: [None for _ in iter(int, 1)], lambda: sum(range(10**11))]
)
def test_a_task_over_its_time_is_killed_in_python_and_in_c(one_kernel, task) -> None:
    error = one_kernel.options(timeout_s=0.1).submit(task).exception(WAIT_S)
    assert isinstance(error, TaskTimeoutError)
    assert isinstance(error, TimeoutError)
    assert "0.1" in str(error)
    assert one_kernel.run(divmod, 7, 2) == (3, 1)


# --- refusals -------------------------------------------------------------------------------------------------------


def test_what_the_policy_does_not_grant_is_refused_and_the_session_goes_on(ran: Notes) -> None:
    policy = POLICY.replace('may = ["run", "call", "broadcast", "kill", "admin"]', 'may = ["call"]').replace(
        '"*"', '"operator.*"'
    )
    with Daemon("unix-ed25519", policy=policy) as daemon, daemon.connect() as kernel:
        refused = [
            kernel.submit(note, ran.port, 1),
            kernel.submit("socket.create_connection", ("127.0.0.1", ran.port)),
            kernel.submit(len, "abc"),
        ]
        for future in refused:
            error = future.exception(WAIT_S)
            assert isinstance(error, TaskRefusedError)
            assert error.code == "refused"
        with pytest.raises(TaskRefusedError):
            kernel.broadcast("operator.add", 1, 2)
        assert kernel.submit("operator.add", 1, 2).result(WAIT_S) == 3
        assert ran.lines() == []


# --- a server's words choose among our classes ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "kind"),
    [
        (ErrorRecord("raised", "ValueError: x", "text", "ValueError"), ValueError),
        (ErrorRecord("raised", "x", "text", "os.system"), TaskExecutionError),
        (ErrorRecord("raised", "x", "text", "print"), TaskExecutionError),
        (ErrorRecord("raised", "x", "text", "__import__"), TaskExecutionError),
        (ErrorRecord("raised", "x", "", ""), TaskExecutionError),
        (ErrorRecord("timeout", "x"), TaskTimeoutError),
        (ErrorRecord("killed", "x"), TaskKilledError),
        (ErrorRecord("worker-lost", "x", signal=9), WorkerLostError),
        (ErrorRecord("value", "x"), ValueTransferError),
        (ErrorRecord("missing-modules", "x", modules=("m",)), MissingModulesError),
        (ErrorRecord("python-version", "x", python_version="3.11.2"), PythonVersionError),
        (ErrorRecord("refused", "x"), TaskRefusedError),
        (ErrorRecord("KeyboardInterrupt", "x"), TaskRefusedError),
    ],
)
def test_no_word_of_a_server_makes_anything_but_our_errors(record: ErrorRecord, kind: type) -> None:
    error = error_of(record, "node")
    assert isinstance(error, kind)
    assert isinstance(error, SecfarmError)
