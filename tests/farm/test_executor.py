"""CPython's own tests of executors and futures, run on a kernel.

Where Python is installed with those tests they are taken from there, as they are; `NOT_OURS` says which of them ask for
something that a kernel is not. What follows asks the same of a Python without them, as far as test_kernel.py and
test_future.py do not.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import importlib
import itertools
import os
import subprocess
import sys
import threading
import unittest
import weakref
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Final

import pytest

from secfarm import Kernel
from tests.farm.farms import ROOT, WAIT_S, Daemon, let_go, results
from tests.meeting import Gate

# --- CPython's --------------------------------------------------------------------------------------------------------

MIXINS: Final = {
    "ExecutorTest": "executor",
    "WaitTests": "test_wait",
    "AsCompletedTests": "test_as_completed",
    "ExecutorShutdownTest": "test_shutdown",
}
NOT_OURS: Final = {
    "test_max_workers_negative": "a kernel's workers are its servers' business",
    "test_no_stale_references": "a bound method cannot travel",
    "test_interpreter_shutdown": "its script imports executors of the library; ours is below",
    "test_submit_after_interpreter_shutdown": "as test_interpreter_shutdown",
    "test_hang_gh83386": "as test_interpreter_shutdown",
}


def mixin(name: str) -> type | None:
    """Return a class of tests, from the package that they are since 3.12 or from the module before."""
    for module in (f"test.test_concurrent_futures.{MIXINS[name]}", "test.test_concurrent_futures"):
        with contextlib.suppress(ImportError, AttributeError):
            found: type = getattr(importlib.import_module(module), name)
            return found
    return None


def cpython_tests() -> Iterator[tuple[str, str]]:
    for name in MIXINS:
        found = mixin(name)
        tests = [test for test in dir(found) if test.startswith("test_") and "buffersize" not in test]
        yield from ((name, test) for test in tests if test not in NOT_OURS)


@pytest.fixture(scope="module")
def five() -> Iterator[Daemon]:
    with Daemon("unix-ed25519", workers=5) as daemon:
        yield daemon


@pytest.mark.parametrize(("name", "test"), list(cpython_tests()))
def test_cpython_s_own(name: str, test: str, five: Daemon) -> None:
    class Case(mixin(name), unittest.TestCase):  # type: ignore[misc]
        worker_count = 5
        executor_type = staticmethod(lambda max_workers: five.connect())

        def setUp(self) -> None:
            self.executor = five.connect()

        def tearDown(self) -> None:
            self.executor.shutdown()

    result = unittest.TestResult()
    Case(test).run(result)
    assert (result.testsRun, result.errors, result.failures) == (1, [], [])


# --- waiting ----------------------------------------------------------------------------------------------------------


def mul(x, y):
    return x * y


def done(result: object = None, error: BaseException | None = None) -> concurrent.futures.Future[object]:
    future: concurrent.futures.Future[object] = concurrent.futures.Future()
    future.set_exception(error) if error is not None else future.set_result(result)
    return future


def cancelled(*, notified: bool) -> concurrent.futures.Future[object]:
    future: concurrent.futures.Future[object] = concurrent.futures.Future()
    future.cancel()
    if notified:
        future.set_running_or_notify_cancel()
    return future


def test_wait_takes_futures_of_any_origin_and_each_once(one_kernel: Kernel, gate: Gate) -> None:
    """CPython's test_all_completed, test_20369, test_timeout, test_first_*_already_*."""
    others = [cancelled(notified=True), done(42), done(error=OSError())]
    sent = [one_kernel.submit(divmod, 2, 0), one_kernel.submit(mul, 2, 21)]
    assert futures.wait([*others, *sent, sent[0]]) == ({*others, *sent}, set())
    held = gate.hold(one_kernel)
    assert futures.wait([held, held, *others], timeout=0.02) == (set(others), {held})
    assert futures.wait([others[0], others[1], held], return_when=futures.FIRST_COMPLETED) == (set(others[:2]), {held})
    unheard = cancelled(notified=False)
    assert futures.wait([unheard, *others, held, sent[0]], return_when=futures.FIRST_EXCEPTION) == (
        {*others, sent[0]},
        {unheard, held},
    )
    gate.open()
    assert futures.wait([held, held], WAIT_S) == ({held}, set())


@pytest.mark.parametrize("timeout_s", [0, 0.02])
def test_as_completed_times_out_and_says_what_is_missing(one_kernel: Kernel, gate: Gate, timeout_s) -> None:
    ready = {cancelled(notified=True), done(42), done(error=OSError())}
    held = gate.hold(one_kernel)
    came = set()
    with pytest.raises(futures.TimeoutError, match=r"1 \(of 4\) futures unfinished"):
        came.update(iter_into(came, futures.as_completed({*ready, held}, timeout_s)))
    assert came == ready
    gate.open()
    held.result(WAIT_S)


def iter_into(seen: set, values: Iterator) -> Iterator:
    for value in values:
        seen.add(value)
        yield value


def test_as_completed_yields_duplicates_once_and_keeps_no_reference(one_kernel: Kernel) -> None:
    """CPython's issues 20367, 31641 and 14406."""
    future = one_kernel.submit(mul, 2, 3)
    assert list(futures.as_completed(itertools.repeat(future, 3))) == [future]
    sent = [one_kernel.submit(mul, i, i) for i in range(8)]
    for one in futures.as_completed(sent):
        sent.remove(one)
        seen = weakref.ref(one)
        del one
        let_go(seen)
    assert sent == []


# --- futures ----------------------------------------------------------------------------------------------------------


def test_callbacks_are_called_in_order_and_each_for_itself(one_kernel: Kernel, gate: Gate) -> None:
    heard: list[object] = []
    last = threading.Event()
    future = gate.hold(one_kernel, 5)
    for i in range(5):
        future.add_done_callback(lambda _, i=i: heard.append(i))
    future.add_done_callback(lambda _: 1 / 0)
    future.add_done_callback(lambda f: heard.append(f.result()))
    future.add_done_callback(lambda _: last.set())
    gate.open()
    assert last.wait(WAIT_S)
    assert heard == [0, 1, 2, 3, 4, 5]


def test_a_done_future_is_not_done_again(one_kernel: Kernel) -> None:
    """CPython's test_multiple_set_result and test_multiple_set_exception."""
    future, failed = one_kernel.submit(mul, 2, 3), one_kernel.submit(divmod, 1, 0)
    assert future.result(WAIT_S) == 6
    error = failed.exception(WAIT_S)
    for one in (future, failed):
        with pytest.raises(futures.InvalidStateError):
            one.set_result(2)
        with pytest.raises(futures.InvalidStateError):
            one.set_exception(ValueError())
        with pytest.raises(RuntimeError):
            one.set_running_or_notify_cancel()
    assert future.result() == 6
    assert failed.exception() is error


def test_states_and_the_words_for_them(one_kernel: Kernel, gate: Gate) -> None:
    """CPython's test_cancelled, test_done, test_running: of what waits, runs, is cancelled, failed and succeeded."""
    held = [gate.hold(one_kernel, i) for i in range(2)]
    gate.wait(2)
    fresh = lambda: 6  # of unknown length, so it is not sent ahead
    waiting, taken = one_kernel.submit(fresh), one_kernel.submit(fresh)
    assert taken.cancel()
    state = lambda future: (future.running(), future.done(), future.cancelled())
    assert [state(future) for future in (held[0], waiting, taken)] == [
        (True, False, False),
        (False, False, False),
        (False, True, True),
    ]
    assert held[0].cancel()
    assert state(held[0]) == (False, True, True)
    assert results([waiting]) == [6]
    assert state(waiting) == (False, True, False)
    with pytest.raises(futures.InvalidStateError):
        taken.set_result(1)
    gate.open()
    assert held[1].result(WAIT_S) == 1


@pytest.mark.parametrize("ask", ["result", "exception"])
def test_who_waits_for_a_future_hears_of_its_cancel(one_kernel: Kernel, gate: Gate, ask: str) -> None:
    """CPython's test_result_with_cancel, test_exception_with_timeout."""
    future = gate.hold(one_kernel)
    gate.wait()
    with pytest.raises(futures.TimeoutError):
        getattr(future, ask)(timeout=0)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        heard = pool.submit(getattr(future, ask), timeout=WAIT_S)
        assert future.cancel()
        assert isinstance(heard.exception(WAIT_S), futures.CancelledError)


def test_a_map_keeps_no_result(one_kernel: Kernel) -> None:
    """CPython's test_free_reference, for objects that a weak reference can be made of."""
    for made in one_kernel.map(lambda i: {i}, range(10)):
        seen = weakref.ref(made)
        del made
        let_go(seen)


# --- the interpreter's end --------------------------------------------------------------------------------------------


def script(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    """Run a script with a kernel of its own; nothing of that is left."""
    file = folder / "script.py"
    file.write_text(text, encoding="utf-8")
    ended = subprocess.run(
        [sys.executable, file],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    assert [path.name for path in folder.iterdir()] == ["script.py"]
    return ended


def test_submit_after_the_interpreter_began_to_end_is_refused(tmp_path: Path) -> None:
    ended = script(
        tmp_path,
        """\
import atexit
@atexit.register
def run_last():
    try:
        kernel.submit(id, None)
    except RuntimeError:
        print("runtime-error")
import secfarm
kernel = secfarm.local_kernel(workers=1)
kernel.submit(id, 42).result()
""",
    )
    assert (ended.stdout, ended.stderr, ended.returncode) == ("runtime-error\n", "", 0)


@pytest.mark.parametrize("settings", ["wait=False", "wait=False, cancel_futures=True", "cancel_futures=True"])
def test_a_shutdown_does_not_hang_at_the_end(tmp_path: Path, settings: str) -> None:
    """CPython's test_hang_gh83386 and test_cancel_futures_wait_false."""
    ended = script(
        tmp_path,
        f"""\
import secfarm
kernel = secfarm.local_kernel(workers=1)
held = [kernel.submit("time.sleep", 0.05) for _ in range(20)]
kernel.shutdown({settings})
import atexit
atexit._run_exitfuncs()
print({{future.done() for future in held}}, sum(future.cancelled() for future in held) > 10)
""",
    )
    assert ended.stderr == ""
    assert ended.stdout == f"{{True}} {'cancel_futures' in settings}\n"


def test_a_shutdown_right_after_a_cancel_ends(one_daemon: Daemon) -> None:
    """CPython's test_hang_gh94440."""
    for _ in range(3):
        kernel = one_daemon.connect()
        kernel.submit(int).result(WAIT_S)
        kernel.submit(int).cancel()
        ending = threading.Thread(target=kernel.shutdown)
        ending.start()
        ending.join(WAIT_S)
        assert not ending.is_alive()


def test_it_is_an_executor_to_those_who_take_one(one_kernel: Kernel) -> None:
    take: Callable[[concurrent.futures.Executor], list[int]] = lambda executor: list(executor.map(abs, [-1, 2]))
    assert isinstance(one_kernel, concurrent.futures.Executor)
    assert take(one_kernel) == [1, 2]
