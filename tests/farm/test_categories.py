"""Categories: what runs is listed and killed by its category; what waits stays. lparallel's kill-tasks and its kin."""

from __future__ import annotations

import threading

import pytest

from secfarm import (
    Kernel,
    NoKernelError,
    TaskKilledError,
    TaskRefusedError,
    current_kernel,
    kill_tasks,
    task_categories_running,
    task_category,
    use_kernel,
)
from tests.farm.farms import WAIT_S, Daemon
from tests.meeting import Gate, pass_gate

READ_ONLY = '[[grant]]\nprincipals = ["*"]\nmay = ["run"]\n'


def test_running_tasks_of_a_category_are_killed_and_waiting_ones_stay(kernel: Kernel, gate: Gate) -> None:
    workers = kernel.worker_count
    view = kernel.options(category="blah")
    held = [view.submit(pass_gate, *gate.arguments(i)) for i in range(workers)]
    gate.wait(workers)
    waiting = view.submit(pass_gate, *gate.arguments("waits"))
    assert kernel.categories_running() == ["blah"] * workers
    assert kernel.kill("other") == 0
    assert kernel.kill("blah", dry_run=True) == workers
    assert kernel.kill("blah") == workers
    for future in held:
        with pytest.raises(TaskKilledError):
            future.result(WAIT_S)
    gate.open()
    assert waiting.result(WAIT_S) == "waits"
    assert kernel.kill("blah") == 0


def test_what_is_no_category_is_refused_where_it_is_given() -> None:
    for wrong, kind in ((None, TypeError), (3, TypeError), ("x" * 129, ValueError)):
        with pytest.raises(kind), task_category(wrong):  # type: ignore[arg-type]
            pytest.fail("the block was entered")


def test_each_worker_has_a_record(kernel: Kernel, gate: Gate) -> None:
    held = gate.hold(kernel)
    gate.wait()
    records = kernel.workers()
    assert len(records) == kernel.worker_count
    assert sorted((record.busy, record.category) for record in records if record.busy) == [(True, "default")]
    assert all(record.category is None for record in records if not record.busy)
    assert {record.python_version.count(".") for record in records} == {2}
    gate.open()
    held.result(WAIT_S)


def test_the_functions_use_the_current_kernel_and_the_context_s_category(one_kernel: Kernel, gate: Gate) -> None:
    with pytest.raises(NoKernelError):
        kill_tasks("blah")
    with pytest.raises(NoKernelError):
        task_categories_running()
    with use_kernel(one_kernel), task_category("blah"):
        held = gate.hold(one_kernel)
        gate.wait()
        assert task_categories_running().count("blah") == 1
        assert kill_tasks("blah", dry_run=True) == kill_tasks("blah") == 1
    with pytest.raises(TaskKilledError):
        held.result(WAIT_S)


def test_killing_needs_the_grant() -> None:
    with Daemon(policy=READ_ONLY) as daemon, daemon.connect() as kernel:
        with pytest.raises(TaskRefusedError):
            kernel.kill("default")
        assert kernel.categories_running() == [None] * kernel.worker_count


def test_threads_started_inside_the_block_see_its_kernel() -> None:
    seen: list[Kernel | None] = []
    with Daemon() as daemon:
        with daemon.connect() as kernel:
            thread = threading.Thread(target=lambda: seen.append(current_kernel()))
            thread.start()
            thread.join()
        assert seen == [kernel]
        assert current_kernel() is None
