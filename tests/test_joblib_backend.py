"""The joblib backend: joblib's own words, our way of sending; what cannot travel is refused and never pickled."""

from __future__ import annotations

import functools
import gc
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import joblib
import pytest
from joblib import Parallel, delayed

import secfarm.joblib_backend
from secfarm import InvalidTaskError, Kernel, NoKernelError, ValueTransferError, deftask, set_kernel
from tests.farm.farms import WAIT_S, Daemon, until
from tests.meeting import Gate, mark_process, pass_gate


@deftask
def square(x, plus=0):
    return x * x + plus


def root(x):
    if x < 0:
        raise ValueError(f"no root of {x}")
    return x**0.5


class Callable:
    def __call__(self, x):
        return x

    def __reduce__(self):
        raise AssertionError("it was pickled")


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with Daemon("unix-ed25519") as daemon:
        yield daemon


@pytest.fixture(scope="module")
def kernel(daemon: Daemon) -> Iterator[Kernel]:
    kernel = daemon.connect()
    yield kernel
    kernel.shutdown()


@pytest.fixture(autouse=True)
def _backend(kernel: Kernel) -> Iterator[None]:
    with joblib.parallel_config(backend="secfarm", kernel=kernel):
        yield


@pytest.mark.parametrize("settings", [{}, {"batch_size": 7}, {"pre_dispatch": "all"}, {"n_jobs": 3}, {"n_jobs": -2}])
def test_results_come_in_order(settings) -> None:
    assert Parallel(**settings)(delayed(square)(i, plus=1) for i in range(60)) == [i * i + 1 for i in range(60)]


@pytest.mark.parametrize("task", [square, root, lambda x: -x, "math.sqrt", abs, os.path.basename], ids=range(6))
def test_every_kind_of_task_runs_there(task) -> None:
    argument = "a/b" if task is os.path.basename else 4
    here = {"math.sqrt": 2.0}.get(task) if isinstance(task, str) else task(argument)
    assert Parallel()([delayed(task)(argument)] * 3) == [here] * 3
    pids = Parallel()(delayed(os.getpid)() for _ in range(4))
    assert os.getpid() not in pids


def test_all_workers_are_used_by_default(kernel: Kernel) -> None:
    assert joblib.effective_n_jobs() == kernel.worker_count == 2
    assert joblib.effective_n_jobs(5) == 5
    with pytest.raises(ValueError, match="n_jobs"):
        joblib.effective_n_jobs(0)


def test_one_worker_is_no_reason_to_run_here() -> None:
    with (
        Daemon("unix-ed25519", workers=1) as daemon,
        daemon.connect() as one,
        joblib.parallel_config(backend="secfarm", kernel=one),
    ):
        assert os.getpid() not in Parallel()(delayed(os.getpid)() for _ in range(3))


def test_an_error_is_raised_and_what_runs_is_killed(kernel: Kernel, gate: Gate) -> None:
    pids = []

    def let_one_through() -> None:
        pids.extend(pid for _, pid in gate.wait(2))
        gate.open()

    thread = threading.Thread(target=let_one_through)
    thread.start()
    calls = [delayed(pass_gate)(*gate.arguments(i)) for i in range(2)]
    with pytest.raises(ValueError, match="no root of -1"):
        Parallel(pre_dispatch="n_jobs")([*calls, *[delayed(root)(-1)] * 5])
    thread.join()
    until(lambda: [Path(f"/proc/{pid}").exists() for pid in pids].count(True) == 1, "the one that waits is killed")
    assert len(set(kernel.broadcast(mark_process))) == kernel.worker_count


@pytest.mark.parametrize("task", [functools.partial(root, 1), Callable(), threading.Lock().acquire])
@pytest.mark.parametrize("when", [0, 40])
def test_what_cannot_travel_is_refused_in_plain_words(task, when) -> None:
    """At once, and when it comes from an iterator that joblib reads on in a thread of ours."""
    with pytest.raises(InvalidTaskError):
        Parallel()([*[delayed(square)(i) for i in range(when)], delayed(task)()])


def test_an_argument_that_cannot_travel_is_refused() -> None:
    with pytest.raises(ValueTransferError):
        Parallel()([delayed(square)(threading.Lock())])


def test_an_error_of_the_iterator_is_the_caller_s() -> None:
    def calls():
        yield from (delayed(square)(i) for i in range(20))
        raise OSError("the file ended")

    with pytest.raises(OSError, match="the file ended"):
        Parallel()(calls())


@pytest.mark.parametrize("return_as", ["generator", "generator_unordered"])
def test_results_may_be_a_generator(return_as) -> None:
    values = Parallel(return_as=return_as)(delayed(square)(i) for i in range(30))
    assert sorted(values) == [i * i for i in range(30)]


def test_a_timeout_is_one(gate: Gate) -> None:
    with pytest.raises(multiprocessing.TimeoutError):  # joblib's
        Parallel(timeout=0.05)([delayed(pass_gate)(*gate.arguments(0))])


def test_one_parallel_may_be_used_again(kernel: Kernel) -> None:
    with Parallel() as parallel:
        assert parallel(delayed(square)(i) for i in range(5)) == [0, 1, 4, 9, 16]
        with pytest.raises(ValueError, match="no root"):
            parallel([delayed(root)(-1)])
        assert parallel([delayed(root)(4)]) == [2.0]


def test_without_a_kernel_the_current_one_is_used(kernel: Kernel) -> None:
    secfarm.joblib_backend.register()
    with joblib.parallel_config(backend="secfarm"):
        with pytest.raises(NoKernelError):
            Parallel()([delayed(square)(3)])
        set_kernel(kernel)
        try:
            assert Parallel()([delayed(square)(3)]) == [9]
        finally:
            set_kernel(None)


def test_threads_of_the_backend_go_with_it(kernel: Kernel) -> None:
    def threads() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name.startswith("secfarm-joblib")]

    before = threads()
    with joblib.parallel_config(backend="secfarm", kernel=kernel):
        Parallel()([delayed(square)(3)])
        (ours,) = set(threads()) - set(before)
    deadline_s = time.monotonic() + WAIT_S
    while ours.is_alive() and time.monotonic() < deadline_s:
        gc.collect()  # again: a callback that is just ending may have held the backend
        ours.join(0.05)
    assert not ours.is_alive()
