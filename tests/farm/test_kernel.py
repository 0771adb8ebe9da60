"""The kernel is an executor: the three kinds of task, and the laws of CPython's own executor tests."""

# ruff: noqa: PLW0603, PT012, RUF005 - tasks are written as users write them

from __future__ import annotations

import concurrent.futures
import functools
import gc
import itertools
import math
import operator
import os
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION
from pathlib import Path
from types import SimpleNamespace

import pytest

from secfarm import (
    AuthError,
    InvalidTaskError,
    Kernel,
    KernelCreationError,
    KernelError,
    SigningKey,
    TaskTimeoutError,
    ValueTransferError,
    broadcast_task,
    current_kernel,
    deftask,
    local_kernel,
    make_kernel,
    task_from_source,
)
from secfarm.auth import Ed25519AuthClient, SharedSecretAuth
from secfarm.trust.store import KnownServer, KnownServers
from tests.farm.farms import ROOT, WAIT_S, Daemon, let_go, make_short, results
from tests.meeting import Gate, Notes, mark_process, note, pass_gate


def mul(x, y):
    return x * y


def capture(*args, **kwargs):
    return args, kwargs


def fail():
    raise ZeroDivisionError("this task fails")


@deftask
def add(x, y):
    return x + y


@deftask
def twice_sum(x, y):
    return 2 * add(x, y)


OFFSET = 7


# --- the three kinds of task ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "arguments", "expected"),
    [
        pytest.param(lambda x, y: x + y, (3, 4), 7, id="lambda"),
        pytest.param(add, (3, 4), 7, id="deftask"),
        pytest.param(twice_sum, (3, 4), 14, id="deftask-names-deftask"),
        pytest.param(mul, (3, 4), 12, id="plain-function"),
        pytest.param("operator.add", (3, 4), 7, id="dotted-name"),
        pytest.param("operator:add", (3, 4), 7, id="name"),
        pytest.param("len", ([1, 2, 3],), 3, id="builtin-name"),
        pytest.param(len, ([1, 2, 3],), 3, id="builtin"),
        pytest.param(math.hypot, (3.0, 4.0), 5.0, id="library-function"),
        pytest.param(operator.add, ("a", "b"), "ab", id="library-builtin"),
        pytest.param(lambda: OFFSET, (), 7, id="module-data"),
        pytest.param(lambda n: math.factorial(n), (5,), 120, id="module-import"),
        pytest.param(task_from_source("def cube(x): return x ** 3"), (3,), 27, id="source-text"),
        pytest.param(lambda n: [add(i, i) for i in range(n)], (3,), [0, 2, 4], id="lambda-names-deftask"),
    ],
)
def test_each_kind_of_task_runs(kernel: Kernel, task, arguments, expected) -> None:
    assert kernel.submit(task, *arguments).result(WAIT_S) == expected


@pytest.mark.parametrize("what", [1, None, object(), functools.partial(mul, 1), [].append, "", "no such:name"])
def test_what_is_no_task_is_refused_at_submit(one_kernel: Kernel, what) -> None:
    """As in CPython, where a bad callable is a TypeError of `submit`; here nothing is sent either."""
    with pytest.raises(InvalidTaskError) as caught:
        one_kernel.submit(what)
    assert isinstance(caught.value, TypeError)


def test_closed_over_values_are_read_at_each_submit(one_kernel: Kernel) -> None:
    count = 1
    task = lambda: count
    first = one_kernel.submit(task)
    count = 2
    assert results([first, one_kernel.submit(task)]) == [1, 2]


def test_a_task_runs_in_another_process_with_fresh_globals(one_kernel: Kernel) -> None:
    def leave_and_look():
        global LEFT
        try:
            return LEFT
        except NameError:
            LEFT = 1
            return 0

    assert set(results(one_kernel.submit(leave_and_look) for _ in range(6))) == {0}
    assert one_kernel.submit(os.getpid).result(WAIT_S) != os.getpid()


# --- submit, run, options, broadcast --------------------------------------------------------------------------------


def test_submit(kernel: Kernel) -> None:
    assert kernel.submit(pow, 2, 8).result(WAIT_S) == 256


def test_submit_takes_every_keyword(kernel: Kernel) -> None:
    assert kernel.submit(mul, 2, y=8).result(WAIT_S) == 16
    args, kwargs = kernel.submit(capture, 1, self=2, fn=3, task=4, timeout_s=5).result(WAIT_S)
    assert (tuple(args), kwargs) == ((1,), {"self": 2, "fn": 3, "task": 4, "timeout_s": 5})
    with pytest.raises(TypeError):
        kernel.submit(fn=capture, arg=1)
    with pytest.raises(TypeError):
        kernel.submit(arg=1)


def test_run_submits_waits_and_limits(one_kernel: Kernel) -> None:
    assert one_kernel.run(mul, 2, y=4) == 8
    with pytest.raises(ZeroDivisionError):
        one_kernel.run(fail)
    with pytest.raises(TaskTimeoutError):
        one_kernel.run(time.sleep, 60, timeout_s=0.05)


def test_options_are_a_view_with_the_settings_of_its_tasks(one_kernel: Kernel) -> None:
    view = one_kernel.options(timeout_s=WAIT_S, category="slow", priority="low")
    assert view.submit(mul, 2, 3).result(WAIT_S) == 6
    assert list(view.map(mul, [1, 2], [3, 4])) == [3, 8]
    brief = view.options(timeout_s=0.05)
    for limited in (brief, brief.options(category="other")):
        with pytest.raises(TaskTimeoutError):
            limited.run(time.sleep, 3600)
    assert one_kernel.run(time.sleep, 0.1) is None, "the kernel itself is as before"
    assert brief.options(timeout_s=WAIT_S).run(time.sleep, 0.1) is None
    assert brief.run(mul, 2, y=3, timeout_s=WAIT_S) == 6
    with pytest.raises(ValueError, match="urgent"):
        one_kernel.options(priority="urgent")


def test_options_go_before_the_settings_of_a_deftask(one_kernel: Kernel) -> None:
    @deftask(timeout_s=0.05)
    def pause(seconds):
        import time

        time.sleep(seconds)

    with pytest.raises(TaskTimeoutError):
        one_kernel.run(pause, 60)
    assert one_kernel.options(timeout_s=WAIT_S).run(pause, 0.1) is None


def test_low_priority_runs_when_nothing_else_waits(one_daemon: Daemon, gate: Gate, ran: Notes) -> None:
    path = ran.port
    with one_daemon.connect() as kernel:  # to whose server it is new how long the held ones take
        before = kernel.submit(note, path, -1)
        results([before])
        assert ran.numbers() == [-1]
        held = [gate.hold(kernel, i) for i in range(kernel.worker_count)]
        gate.wait(len(held))
        make_short(kernel, before, *held)  # all are sent then, and the server alone chooses
        low = [kernel.options(priority="low").submit(note, path, i) for i in range(4)]
        default = [kernel.submit(note, path, i + 10) for i in range(4)]
        kernel.categories_running()  # a round trip behind them: what was to be sent has arrived
        gate.open(1)  # one worker takes them all, in order
        results(low + default)
        gate.open(len(held))
        assert ran.numbers()[1:] == [10, 11, 12, 13, 0, 1, 2, 3]
        results(held)


def test_broadcast_runs_once_on_each_worker(kernel: Kernel) -> None:
    marks = kernel.broadcast(mark_process)
    assert len(set(marks)) == len(marks) == kernel.worker_count
    assert kernel.broadcast(lambda x: x + 1, 1) == [2] * kernel.worker_count
    with pytest.raises(ZeroDivisionError):
        kernel.broadcast(fail)


def test_what_a_broadcast_defines_stays_for_its_own_session(one_daemon: Daemon) -> None:
    def define(value):
        global SHARED
        SHARED = value

    read = lambda: SHARED
    with one_daemon.connect() as kernel, one_daemon.connect() as other:
        broadcast_task(define, 5)  # on the innermost current kernel: the other
        assert set(results(other.submit(read) for _ in range(8))) == {5}
        with pytest.raises(NameError):
            kernel.run(read)


def test_a_replaced_worker_gets_the_broadcasts_before_any_task(one_daemon: Daemon) -> None:
    def define():
        global SHARED
        SHARED = 6

    with one_daemon.connect() as kernel:
        kernel.broadcast(define)
        deaths = [kernel.submit(lambda: __import__("os")._exit(1)) for _ in range(kernel.worker_count + 1)]
        concurrent.futures.wait(deaths, WAIT_S)
        assert set(results(kernel.submit(lambda: SHARED) for _ in range(8))) == {6}


# --- map: CPython's test_map*, test_shutdown_race_issue12456, test_free_reference -----------------------------------


def test_map_is_the_built_in_map(kernel: Kernel) -> None:
    assert list(kernel.map(pow, range(10), range(10))) == list(map(pow, range(10), range(10)))
    assert list(kernel.map(pow, range(10), itertools.count())) == list(map(pow, range(10), range(10)))
    assert list(kernel.map(str, [])) == []
    assert list(kernel.map(lambda x: x, range(5000))) == list(range(5000))


@pytest.mark.parametrize("chunksize", [1, 6, 40, 50])
def test_map_gives_the_same_with_every_chunksize(one_kernel: Kernel, chunksize: int) -> None:
    mapped = one_kernel.map(pow, range(40), range(40), chunksize=chunksize)
    assert list(mapped) == list(map(pow, range(40), range(40)))


def test_map_refuses_a_chunksize_below_one(one_kernel: Kernel) -> None:
    for chunksize in (0, -1):
        with pytest.raises(ValueError, match="chunksize"):
            one_kernel.map(str, [1], chunksize=chunksize)


def test_map_raises_where_the_failing_item_stands(one_kernel: Kernel) -> None:
    mapped = one_kernel.map(divmod, [1, 1, 1, 1], [2, 3, 0, 5], chunksize=1)
    assert next(mapped) == (0, 1)
    assert next(mapped) == (0, 1)
    with pytest.raises(ZeroDivisionError):
        next(mapped)


def test_map_yields_what_stands_before_a_failing_item_whatever_the_chunks(one_kernel: Kernel) -> None:
    got = []
    with pytest.raises(ZeroDivisionError):
        for value in one_kernel.map(lambda x: 12 // (50 - x), range(100)):
            got.append(value)  # noqa: PERF402 - it ends by raising
    assert got == [12 // (50 - x) for x in range(50)]


def test_map_times_out_from_the_moment_of_the_call(one_kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    passed_s = 0.0
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + passed_s)
    monkeypatch.setattr("secfarm.farm.kernel.time", clock)
    mapped = one_kernel.map(time.sleep, [0, 0, 3600], timeout=3600, chunksize=1)
    assert (next(mapped), next(mapped)) == (None, None)
    passed_s = 3600.0
    with pytest.raises(TimeoutError):
        next(mapped)


def test_map_submits_at_once_and_not_when_iterated(one_kernel: Kernel, gate: Gate) -> None:
    mapped = one_kernel.map(lambda arguments: pass_gate(*arguments), [gate.arguments(3)])
    assert gate.wait()[0][0] == "3"
    gate.open()
    assert list(mapped) == [3]


def noted_and_held(notes: int, host: str, port: int, number: int) -> int:
    """Leave a note; all but the first stop at the gate then. A task."""
    note(notes, number)
    if number:
        pass_gate(host, port, number)
    return number


def test_a_map_that_nobody_reads_on_takes_its_tasks_back(one_kernel: Kernel, ran: Notes, gate: Gate) -> None:
    """Whatever the pace of the reader: those that stand at the gate when it stops reading are the last that began."""
    workers = one_kernel.worker_count
    host, port, _ = gate.arguments(0)
    repeated = [itertools.repeat(word, 300) for word in (ran.port, host, port)]
    mapped = one_kernel.map(noted_and_held, *repeated, range(300), chunksize=1)
    assert next(mapped) == 0
    gate.wait(workers)
    mapped.close()
    assert one_kernel.run(mul, 2, 3) == 6
    assert len(ran.numbers()) == 1 + workers


def test_results_are_not_kept_by_whoever_yielded_them(one_kernel: Kernel) -> None:
    """Issue 14406 of CPython."""
    for value in one_kernel.map(lambda _: {1, 2}, range(6)):
        reference = weakref.ref(value)
        del value
        let_go(reference)


def test_a_finished_task_leaves_nothing_in_memory(one_kernel: Kernel) -> None:
    """Reference counts alone free the future and its result: large ones must not wait for the collector."""
    gc.collect()
    gc.disable()
    try:
        future = one_kernel.submit(lambda x: set(x), [1, 2, 3])
        reference, result = weakref.ref(future), weakref.ref(future.result(WAIT_S))
        one_kernel.run(mul, 1, 1)  # the loop has turned: whatever it held on its stack it has let go
        del future
        assert result() is None
        assert reference() is None
    finally:
        gc.enable()


# --- wait and as_completed: CPython's WaitTests, AsCompletedTests ---------------------------------------------------


def test_wait_first_completed(kernel: Kernel, gate: Gate) -> None:
    held = gate.hold(kernel, 1)
    gate.wait()
    quick = kernel.submit(mul, 21, 2)
    done, left = concurrent.futures.wait([held, quick], WAIT_S, FIRST_COMPLETED)
    assert (done, left) == ({quick}, {held})
    gate.open()
    assert concurrent.futures.wait([held, quick], WAIT_S, ALL_COMPLETED) == ({held, quick}, set())
    assert concurrent.futures.wait([held, quick], WAIT_S, FIRST_COMPLETED).done == {held, quick}


def test_wait_first_exception(one_kernel: Kernel, gate: Gate) -> None:
    held = gate.hold(one_kernel)
    gate.wait()
    fine, wrong = one_kernel.submit(mul, 2, 21), one_kernel.submit(fail)
    fine.result(WAIT_S)
    assert concurrent.futures.wait([held, fine, wrong], WAIT_S, FIRST_EXCEPTION) == ({fine, wrong}, {held})
    assert concurrent.futures.wait([held, wrong], WAIT_S, FIRST_EXCEPTION) == ({wrong}, {held})
    gate.open()
    results([held])


def test_wait_and_result_and_exception_give_up_in_time(one_kernel: Kernel, gate: Gate) -> None:
    held = gate.hold(one_kernel)
    assert concurrent.futures.wait([held], 0.01) == (set(), {held})
    with pytest.raises(TimeoutError):
        held.result(0)
    with pytest.raises(TimeoutError):
        held.exception(timeout=0.01)
    with pytest.raises(TimeoutError, match=r"1 \(of 1\) futures unfinished"):
        list(concurrent.futures.as_completed([held], timeout=0))
    gate.open()
    assert held.result(WAIT_S) == 0


def test_a_cancelled_future_counts_as_completed(one_kernel: Kernel, gate: Gate) -> None:
    held = [gate.hold(one_kernel) for _ in range(one_kernel.worker_count)]
    gate.wait(len(held))
    waiting = one_kernel.submit(mul, 6, 7)
    threading.Thread(target=waiting.cancel).start()
    assert concurrent.futures.wait([waiting], WAIT_S).done == {waiting}
    assert list(concurrent.futures.as_completed([waiting], WAIT_S)) == [waiting]
    gate.open(len(held))
    results(held)


def test_as_completed_yields_each_once_as_it_is_done(kernel: Kernel, gate: Gate) -> None:
    held = gate.hold(kernel)
    quick, wrong = kernel.submit(mul, 2, 21), kernel.submit(fail)
    order = concurrent.futures.as_completed([held, quick, wrong, quick, held], WAIT_S)
    assert {next(order), next(order)} == {quick, wrong}
    gate.open()
    assert list(order) == [held]


# --- threads --------------------------------------------------------------------------------------------------------


def test_many_threads_share_a_kernel(kernel: Kernel) -> None:
    """CPython's test_pending_calls_race, with a result for each."""
    got: dict[int, list[object]] = {}

    def client(number: int) -> None:
        futures = [kernel.submit(add, number, i) for i in range(100)]
        got[number] = results(futures)

    threads = [threading.Thread(target=client, args=(1000 * i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == {1000 * t: [1000 * t + i for i in range(100)] for t in range(8)}


def test_several_kernels_on_one_server_are_strangers(daemon: Daemon) -> None:
    kernels = [daemon.connect(name=f"k{i}") for i in range(3)]
    try:
        futures = [kernel.submit(add, i, 10 * n) for i in range(20) for n, kernel in enumerate(kernels)]
        assert results(futures) == [i + 10 * n for i in range(20) for n in range(3)]
        assert len({future.task_id for future in futures}) == 60
        kernels[0].shutdown()
        assert kernels[1].run(mul, 2, 3) == 6
    finally:
        for kernel in kernels:
            kernel.shutdown()


# --- making one -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "",
        ":7419",
        "host:",
        "host:port",
        "host:0",
        "host:65536",
        "::1",
        "[::1",
        "unix:",
        "unix:relative",
        "a b",
        7,
        b"host",
    ]
    + [("host",), ("host", "7419"), ("host", 0), "unix:/" + "x" * 108],
)
def test_a_malformed_address_is_a_value_error_before_anything_is_dialled(one_daemon: Daemon, address) -> None:
    """The good address beside it would be dialled for ever, were it dialled at all."""
    with pytest.raises((ValueError, TypeError)) as caught:
        Kernel([one_daemon.address, address], auth=one_daemon.auth)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("form", ["text", "pair", "list", "listed pair"])
def test_every_form_of_an_address_is_understood(one_daemon: Daemon, form: str) -> None:
    host, _, port = one_daemon.address.partition(":")
    pair = (host, int(port))
    given = {"text": one_daemon.address, "pair": pair, "list": [one_daemon.address], "listed pair": [pair]}[form]
    with Kernel(given, auth=one_daemon.auth, connect_timeout_s=WAIT_S) as kernel:
        assert kernel.run(mul, 2, 3) == 6


def test_no_answer_within_connect_timeout_is_a_kernel_creation_error(one_daemon: Daemon, tmp_path: Path) -> None:
    absent = f"unix:{tmp_path}/absent"
    with pytest.raises(KernelCreationError) as caught:  # the other one has to answer within that time
        Kernel([one_daemon.address, absent], auth=one_daemon.auth, connect_timeout_s=2.0)
    assert absent in str(caught.value)
    assert one_daemon.address not in str(caught.value), "only those that did not answer are named"
    assert isinstance(caught.value.__cause__, TimeoutError)


@pytest.mark.parametrize("who", ["a key that the server does not know", "a server that is not the one we know"])
def test_a_refused_proof_is_a_kernel_creation_error_at_once(one_daemon: Daemon, who: str) -> None:
    """Without connect_timeout_s: trying for ever would not help."""
    auth = one_daemon.auth
    assert isinstance(auth, Ed25519AuthClient)
    stranger = SigningKey.from_seed(bytes(32))
    if who.startswith("a key"):
        auth = Ed25519AuthClient(stranger, auth.known_servers)
    else:
        auth = Ed25519AuthClient(auth.key, KnownServers([KnownServer(("*",), stranger.public)]))
    with pytest.raises(KernelCreationError) as caught:
        Kernel(one_daemon.address, auth=auth)
    assert one_daemon.address in str(caught.value)
    assert isinstance(caught.value.__cause__, AuthError)


def test_another_secret_or_another_mechanism_is_refused_at_once(daemon_of, way: str) -> None:
    daemon = daemon_of(way)
    with pytest.raises(KernelCreationError) as caught:
        Kernel(daemon.address, auth=SharedSecretAuth(bytes(range(32))))
    assert isinstance(caught.value.__cause__, AuthError)


def test_without_a_server_or_a_key_there_is_no_kernel(one_daemon: Daemon) -> None:
    with pytest.raises(KernelCreationError, match="SECFARM_HOSTS"):
        Kernel(auth=one_daemon.auth)
    with pytest.raises(KernelCreationError, match="secfarm keygen"):
        Kernel(one_daemon.address)
    with pytest.raises(ValueError, match="at-most-once"):
        Kernel(one_daemon.address, auth=one_daemon.auth, delivery="exactly-once")


def test_make_kernel_makes_one_that_is_not_current(one_daemon: Daemon) -> None:
    kernel = make_kernel(one_daemon.address, auth=one_daemon.auth, name="mine", connect_timeout_s=WAIT_S)
    try:
        assert (kernel.name, current_kernel()) == ("mine", None)
        assert isinstance(kernel, concurrent.futures.Executor)
        assert kernel.run(mul, 2, 3) == 6
        assert "mine" in repr(kernel)
        assert one_daemon.address in repr(kernel)
    finally:
        kernel.shutdown()


def test_worker_count_is_the_sum_over_the_servers_that_are_there() -> None:
    with Daemon(workers=1) as first, Daemon("unix-ed25519", workers=3) as second:
        assert isinstance(first.auth, Ed25519AuthClient)
        assert isinstance(second.auth, Ed25519AuthClient)
        with first.connect() as kernel:
            assert kernel.worker_count == 1
        with second.connect() as kernel:
            assert kernel.worker_count == 3
            assert len(kernel.broadcast(os.getpid)) == 3


# --- ending one: CPython's ExecutorShutdownTest ---------------------------------------------------------------------


def test_submit_after_shutdown_is_a_runtime_error(daemon: Daemon) -> None:
    kernel = daemon.connect()
    kernel.shutdown()
    for _ in range(2):
        with pytest.raises(KernelError) as caught:
            kernel.submit(pow, 2, 5)
        assert isinstance(caught.value, RuntimeError)
    kernel.shutdown()
    kernel.shutdown(wait=False)
    assert kernel.closed
    assert "closed" in repr(kernel)


def test_a_block_that_is_left_by_an_error_waits_for_nothing(one_daemon: Daemon, gate: Gate) -> None:
    """As one presses Ctrl-C: what runs is ended, what waits is cancelled."""

    def leave() -> None:
        with one_daemon.connect() as kernel:
            futures.extend(gate.hold(kernel, number) for number in range(50))
            gate.wait()
            raise ZeroDivisionError

    futures: list[concurrent.futures.Future[object]] = []
    with pytest.raises(ZeroDivisionError):
        leave()
    assert all(future.done() for future in futures)
    assert isinstance(futures[0].exception(), KernelError)
    assert futures[-1].cancelled() or isinstance(futures[-1].exception(), KernelError)


def test_shutdown_waits_for_what_was_submitted(one_daemon: Daemon) -> None:
    """CPython's issues 12364 and 12456."""
    kernel = one_daemon.connect()
    futures = [kernel.submit(mul, i, 2) for i in range(50)]
    mapped = kernel.map(str, [2] * (kernel.worker_count + 1))
    kernel.shutdown()
    assert all(future.done() for future in futures)
    assert results(futures) == [2 * i for i in range(50)]
    assert list(mapped) == ["2"] * 3


def test_shutdown_without_wait_returns_and_lets_everything_finish(one_daemon: Daemon, gate: Gate) -> None:
    kernel = one_daemon.connect()
    held = gate.hold(kernel, 4)
    mapped = kernel.map(abs, range(-5, 5))
    kernel.shutdown(wait=False)
    assert not held.done()
    gate.open()
    assert held.result(WAIT_S) == 4
    assert list(mapped) == [5, 4, 3, 2, 1, 0, 1, 2, 3, 4]


@pytest.mark.parametrize("wait", [True, False])
def test_shutdown_may_cancel_what_waits_and_finishes_what_runs(one_daemon: Daemon, gate: Gate, wait: bool) -> None:  # noqa: FBT001
    kernel = one_daemon.connect()
    held = [gate.hold(kernel, i) for i in range(kernel.worker_count)]
    gate.wait(len(held))
    waiting = [kernel.submit(mul, i, i) for i in range(20)]
    waiting[-1].add_done_callback(lambda _: gate.open(len(held)))
    kernel.shutdown(wait=wait, cancel_futures=True)
    concurrent.futures.wait([*held, *waiting], 0 if wait else WAIT_S)
    assert all(future.cancelled() for future in waiting)
    assert results(held) == [0, 1]


def test_a_block_ends_when_its_tasks_are_done(daemon: Daemon) -> None:
    with daemon.connect() as kernel:
        futures = [kernel.submit(mul, i, 3) for i in range(30)]
        assert current_kernel() is kernel
    assert all(future.done() for future in futures)
    assert current_kernel() is None
    with pytest.raises(KernelError):
        kernel.submit(mul, 1, 1)


def test_a_task_may_not_be_lost_between_submit_and_shutdown(one_daemon: Daemon) -> None:
    """Each submit either raises or its future is done in the end, however the two race."""
    for _ in range(3):
        kernel = one_daemon.connect()
        futures = []
        begun = threading.Event()

        def submit(kernel: Kernel = kernel, futures: list = futures, begun: threading.Event = begun) -> None:
            try:
                while True:
                    futures.append(kernel.submit(mul, 2, 2))
                    begun.set()
            except KernelError:
                pass

        thread = threading.Thread(target=submit)
        thread.start()
        begun.wait(WAIT_S)
        kernel.shutdown()
        thread.join()
        assert set(results(futures)) == {4}


def test_a_shutdown_waits_for_a_submit_that_was_under_way(one_daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """It found the kernel open: what it sends is done, however long its thread was kept from running."""
    kernel = one_daemon.connect()
    under_way, go, futures = threading.Event(), threading.Event(), []
    take_in = kernel._dispatch.submit
    monkeypatch.setattr(kernel._dispatch, "submit", lambda one: (under_way.set(), go.wait(WAIT_S), take_in(one))[2])
    sending = threading.Thread(target=lambda: futures.append(kernel.submit(mul, 2, 3)))
    ending = threading.Thread(target=kernel.shutdown)
    sending.start()
    assert under_way.wait(WAIT_S)
    ending.start()
    ending.join(0.2)  # if it did not wait, it would be over by then
    go.set()
    for thread in (sending, ending):
        thread.join(WAIT_S)
    assert results(futures) == [6]


_AT_EXIT = """
import secfarm, sys, time
kernel = secfarm.local_kernel(workers=1)
def slow():
    import time
    time.sleep(0.3)
    return "apple"
{how}
kernel.submit(slow).add_done_callback(lambda future: open(sys.argv[1], "w").write(future.result()))
"""


@pytest.mark.parametrize("how", ["", "import atexit; atexit.register(kernel.shutdown)"])
def test_the_interpreter_does_not_end_before_its_tasks(tmp_path: Path, how: str) -> None:
    """CPython's test_interpreter_shutdown: what was submitted runs, although nobody called shutdown."""
    script = tmp_path / "script.py"
    script.write_text(_AT_EXIT.format(how=how))
    ended = subprocess.run(
        [sys.executable, script, tmp_path / "out"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
        capture_output=True,
        timeout=WAIT_S,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert (tmp_path / "out").read_text() == "apple"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("secfarm-")] == []


_FORKED = """
import os, sys, secfarm
with secfarm.start_local_servers(["127.0.0.1:0"], workers=1) as servers, \\
        secfarm.local_kernel(workers=1) as kernel, secfarm.Kernel(servers.addresses, auth=servers.auth) as other:
    assert (kernel.run(len, []), other.run(len, [])) == (0, 0)
    sys.stdout.flush()
    child = os.fork()
    if not child:
        try:
            assert secfarm.current_kernel() is None
            for ask in (kernel.submit, kernel.broadcast, other.submit):
                try:
                    ask(len, [])
                except secfarm.KernelError as error:
                    assert "forked" in str(error), error
                else:
                    os._exit(1)
            kernel.shutdown()
        finally:
            sys.exit(7)
    assert os.waitpid(child, 0)[1] >> 8 == 7
    assert (kernel.run(len, [1]), other.run(len, [1]), os.path.exists(servers.folder)) == (1, 1, True)
"""


def test_a_forked_child_has_no_kernel_and_leaves_the_parents_alone(tmp_path: Path) -> None:
    """It would wait for ever for answers that come to the parent, and at its end remove the parent's socket."""
    script = tmp_path / "script.py"
    script.write_text(_FORKED)
    ended = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", script],  # of forking beside threads, since 3.12
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
        capture_output=True,
        timeout=WAIT_S,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, b"")


# --- values that the executor must not mind -------------------------------------------------------------------------


def test_what_is_too_large_to_travel_is_refused_before_it_is_sent(one_kernel: Kernel, monkeypatch) -> None:
    monkeypatch.setattr("secfarm.farm.future.MAX_VALUE_BYTES", 1000)
    text = "x" * 1001
    for task, argument in ((len, text), (lambda _: text, "")):
        with pytest.raises(ValueTransferError, match="1000 can travel; nothing was sent"):
            one_kernel.submit(task, argument)
    with pytest.raises(ValueTransferError, match="1000"):
        one_kernel.broadcast(len, text)
    assert one_kernel.run(len, text[:900]) == 900


def test_an_argument_that_cannot_travel_is_refused_and_the_kernel_goes_on(one_kernel: Kernel) -> None:
    with pytest.raises(ValueTransferError, match=r"args\[1\]"):
        one_kernel.submit(capture, 1, threading.Lock())
    with pytest.raises(ValueTransferError):
        one_kernel.map(str, [1, object()])
    assert one_kernel.run(mul, 2, 3) == 6


def test_local_kernel_runs_the_three_kinds(gate: Gate) -> None:
    with local_kernel(workers=1, confine={"network": True}) as kernel:
        assert kernel.worker_count == 1
        assert results([kernel.submit(lambda: 1), kernel.submit(add, 1, 1), kernel.submit("operator.add", 1, 2)]) == [
            1,
            2,
            3,
        ]
