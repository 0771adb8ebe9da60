"""What a task prints, and how far it says it is, reaches its submitter and nobody else; live where that was asked."""

from __future__ import annotations

import logging
import sys
import threading
import time
import warnings

import pytest

import secfarm
from secfarm import Kernel, KernelError, ResourceExceededError, TaskExecutionError, TaskKilledError, deftask, progress
from secfarm.farm.loop import background_loop
from tests.farm.farms import WAIT_S, Daemon
from tests.meeting import Gate, pass_gate


def joined(pieces: list[tuple[str, str]]) -> dict[str, str]:
    """The text of each stream."""
    found = {"stdout": "", "stderr": ""}
    for stream, text in pieces:
        found[stream] += text
    return found


class Ear:
    """An `on_output` that keeps what it hears and can be waited for."""

    def __init__(self) -> None:
        self.pieces: list[tuple[str, str]] = []
        self._came = threading.Condition()

    def __call__(self, stream: str, text: str) -> None:
        with self._came:
            self.pieces.append((stream, text))
            self._came.notify_all()

    def wait(self, text: str) -> None:
        """Wait until `text` was heard."""
        with self._came:
            assert self._came.wait_for(lambda: any(text in piece for _, piece in self.pieces), WAIT_S)


def speak() -> None:
    print("to stdout")
    print("to stderr", file=sys.stderr)
    sys.stdout.write("no line end, ")
    sys.stdout.buffer.write("bytes: é\n".encode())
    sys.stderr.writelines(["a", "b\n"])
    logging.getLogger("a task").warning("logged")
    warnings.warn("careful", stacklevel=1)


def test_all_ways_of_printing_reach_the_future_and_the_callback(kernel: Kernel) -> None:
    ear = Ear()
    future = kernel.options(on_output=ear).submit(speak)
    future.result(WAIT_S)
    assert joined(ear.pieces)["stdout"] == "to stdout\nno line end, bytes: é\n"
    assert joined(ear.pieces)["stderr"].startswith("to stderr\nab\nlogged\n")
    assert "UserWarning: careful" in joined(ear.pieces)["stderr"]
    assert future.output == "".join(text for _, text in ear.pieces)
    plain = kernel.submit(speak)
    plain.result(WAIT_S)
    assert plain.output.startswith("to stdout\nto stderr\nno line end, bytes: é\nab\nlogged\n")


def test_output_comes_while_the_task_runs(kernel: Kernel, gate: Gate) -> None:
    def task(host: str, port: int) -> None:
        print("begun")
        print("half a line", end="", flush=True)
        pass_gate(host, port, 1)
        print(", the other half", end="")

    ear = Ear()
    future = kernel.options(on_output=ear).submit(task, *gate.arguments(0)[:2])
    gate.wait()
    ear.wait("half a line")
    assert not future.done()
    assert joined(ear.pieces)["stdout"] == "begun\nhalf a line"
    gate.open()
    future.result(WAIT_S)
    assert joined(ear.pieces)["stdout"] == "begun\nhalf a line, the other half"


def test_the_future_is_resolved_behind_the_last_callback(one_kernel: Kernel) -> None:
    """However slow it is."""
    may_go, seen = threading.Event(), []

    def slow(_: str, text: str) -> None:
        may_go.wait(WAIT_S)
        seen.append(text)

    future = one_kernel.options(on_output=slow).submit(print, "late")
    assert one_kernel.run(divmod, 7, 2) == (3, 1), "other tasks go on"
    assert not future.done()
    may_go.set()
    future.result(WAIT_S)
    assert "".join(seen) == "late\n"


def test_a_callback_that_raises_is_logged_and_harms_nothing(
    one_kernel: Kernel, caplog: pytest.LogCaptureFixture
) -> None:
    def bad(_: str, text: str) -> None:
        raise SystemExit(text)

    future = one_kernel.options(on_output=bad).submit(print, "x")
    assert future.result(WAIT_S) is None
    assert future.output == "x\n"
    assert "the callback" in caplog.text
    assert one_kernel.options(on_output=Ear()).submit(print, "y").result(WAIT_S) is None


def test_a_callback_may_submit_and_wait_for_other_tasks_and_cannot_lock_itself_up(one_kernel: Kernel) -> None:
    heard: list[object] = []
    futures: list[secfarm.Future[object]] = []

    def callback(_: str, text: str) -> None:
        heard.append(one_kernel.submit("operator.add", text, "!").result(WAIT_S))
        with pytest.raises(KernelError, match="callback"):
            futures[0].result()
        heard.append("went on")

    futures.append(one_kernel.options(on_output=callback).submit(lambda s: print(s, end=""), "x"))
    futures[0].result(WAIT_S)
    assert heard == ["x!", "went on"]


def test_each_submitter_hears_its_own_tasks_only(one_daemon: Daemon) -> None:
    with one_daemon.connect() as ours, one_daemon.connect() as theirs:
        ears = [Ear() for _ in range(40)]
        futures = [
            (ours if i % 2 else theirs).options(on_output=ear).submit(print, f"task {i}") for i, ear in enumerate(ears)
        ]
        for i, (future, ear) in enumerate(zip(futures, ears, strict=True)):
            future.result(WAIT_S)
            assert joined(ear.pieces) == {"stdout": f"task {i}\n", "stderr": ""}


def test_a_task_that_prints_more_than_the_policy_allows_is_ended() -> None:
    policy = '[[grant]]\nprincipals = ["*"]\nmay = ["run"]\n[grant.limits]\noutput_bytes = 1000\n'

    def ignores() -> None:
        import contextlib

        while True:
            with contextlib.suppress(BaseException):
                print("x" * 500)

    def leaves_it_to_a_thread() -> int:
        import threading

        thread = threading.Thread(target=lambda: print("x" * 5000))
        thread.start()
        thread.join()
        return 1

    with Daemon(policy=policy) as daemon, daemon.connect() as kernel:
        ear = Ear()
        futures = [kernel.options(on_output=ear).submit(lambda: print("x" * 5000))]
        futures += [kernel.submit(ignores), kernel.submit(leaves_it_to_a_thread)]
        for future in futures:
            begin_s = time.monotonic()
            with pytest.raises(ResourceExceededError, match="printed more than its 1000 bytes") as caught:
                future.result(WAIT_S)
            assert time.monotonic() - begin_s < 2.0
            assert (caught.value.kind, caught.value.limit) == ("output", 1000)
        assert futures[0].output == "x" * 1000 + "\n[4000 more characters were printed and dropped]"
        assert "".join(text for _, text in ear.pieces) == futures[0].output
        assert kernel.run(lambda: print("x" * 999)) is None


def test_a_map_has_the_results_before_the_item_that_printed_too_much() -> None:
    policy = '[[grant]]\nprincipals = ["*"]\nmay = ["run"]\n[grant.limits]\noutput_bytes = 1000\n'
    with Daemon(policy=policy) as daemon, daemon.connect() as kernel:
        results = kernel.map(lambda item: print("x" * 100 * item) or item, range(1, 13), chunksize=12)
        assert [next(results) for _ in range(9)] == [*range(1, 10)]
        with pytest.raises(ResourceExceededError):
            next(results)


def test_much_output_comes_whole_and_in_few_pieces(one_kernel: Kernel) -> None:
    def chatter() -> None:
        for number in range(50_000):
            print(number)

    ear = Ear()
    future = one_kernel.options(on_output=ear).submit(chatter)
    future.result(WAIT_S)
    assert joined(ear.pieces)["stdout"] == future.output == "".join(f"{number}\n" for number in range(50_000))
    assert len(ear.pieces) < 5000


def test_a_client_that_does_not_read_stops_nobody(one_daemon: Daemon, one_kernel: Kernel, gate: Gate) -> None:
    """Its tasks run to their end meanwhile, and the server serves others; the outcomes are whole in the end."""

    def flood(host: str, port: int) -> None:
        for _ in range(1000):
            print("x" * 999)
        pass_gate(host, port, 1)

    with one_daemon.connect() as kernel:
        assert kernel.run(divmod, 7, 2) == (3, 1)
        loop, (link,) = background_loop(), kernel._dispatch.links
        transport = link._connection._transport  # type: ignore[union-attr]
        loop.call_soon_threadsafe(transport.pause_reading)  # type: ignore[union-attr]
        views = [kernel.options(on_output=Ear()) for _ in range(kernel.worker_count)]
        futures = [view.submit(flood, *gate.arguments(0)[:2]) for view in views]
        gate.wait(len(futures))
        gate.open(len(futures))
        assert one_kernel.run(divmod, 7, 2) == (3, 1)
        assert not any(future.done() for future in futures)
        loop.call_soon_threadsafe(transport.resume_reading)  # type: ignore[union-attr]
        for future in futures:
            future.result(WAIT_S)
            assert future.output == ("x" * 999 + "\n") * 1000


def test_a_killed_task_s_output_so_far_is_in_the_future(one_kernel: Kernel, gate: Gate) -> None:
    def task(host: str, port: int) -> None:
        print("before the end")
        pass_gate(host, port, 1)

    ear = Ear()
    future = one_kernel.options(on_output=ear, category="doomed").submit(task, *gate.arguments(0)[:2])
    gate.wait()
    ear.wait("before")
    assert one_kernel.kill("doomed") == 1
    with pytest.raises(TaskKilledError):
        future.result(WAIT_S)
    assert future.output == "before the end\n"


def test_a_stream_that_one_task_keeps_serves_the_next(one_daemon: Daemon) -> None:
    """A logging handler holds the stream that it found when it was made."""

    def configure() -> None:
        import logging

        logging.basicConfig(format="%(message)s", force=True)

    def log(text: str) -> None:
        import logging

        logging.getLogger().error(text)

    policy_kernel = one_daemon.connect()
    with policy_kernel as kernel:
        kernel.broadcast(configure)
        for text in ("one", "two"):
            future = kernel.submit(log, text)
            future.result(WAIT_S)
            assert future.output == f"{text}\n"


def test_what_is_no_text_cannot_be_written(one_kernel: Kernel) -> None:
    with pytest.raises(TypeError):
        one_kernel.run(lambda: sys.stdout.write(b"bytes"))
    future = one_kernel.submit(lambda: print("\ud800"))
    future.result(WAIT_S)
    assert future.output == "?\n"


# --- progress -----------------------------------------------------------------------------------------------------


@deftask
def by_name(count: int) -> int:
    for i in range(count):
        progress(i + 1, count, f"row {i}")
    return count


def by_module(count: int) -> int:
    secfarm.progress(count, count, "all")
    return count


@pytest.mark.parametrize("task", [by_name, by_module])
def test_progress_reaches_the_submitter(kernel: Kernel, task) -> None:
    heard: list[tuple[float, float, str]] = []
    future = kernel.options(on_progress=lambda *reached: heard.append(reached)).submit(task, 500)
    assert future.result(WAIT_S) == 500
    assert heard[-1] == future.progress
    assert heard[-1][:2] == (500, 500)
    assert len(heard) < 500, "what comes too fast is told now and then"
    assert kernel.submit(task, 3).result(WAIT_S) == 3
    assert kernel.submit(task, 3).progress is None, "nobody asked"


def test_progress_does_nothing_here_but_judge_its_arguments() -> None:
    assert progress(1, 2, "half") is None
    assert by_name(3) == 3
    with pytest.raises(ValueError, match="finite"):
        progress(1, float("inf"))
    with pytest.raises(TypeError):
        progress(1, 2, b"bytes")  # type: ignore[arg-type]


def test_progress_of_an_odd_kind_travels_or_is_the_task_s_own_error(one_kernel: Kernel) -> None:
    heard: list[tuple[float, float, str]] = []
    view = one_kernel.options(on_progress=lambda *reached: heard.append(reached))
    view.run(lambda: progress(10**30, 0.5, "\ud800\x1b[31m" + "x" * 5000))
    assert heard == [(1e30, 0.5, ("?\x1b[31m" + "x" * 5000)[:1000])]
    with pytest.raises(TaskExecutionError, match="finite"):
        view.run(lambda: progress(float("nan"), 1))


def test_a_worker_that_runs_a_task_with_progress_loads_no_client(one_kernel: Kernel) -> None:
    def loaded() -> list[str]:
        secfarm.progress(1, 1)
        return sorted({name.split(".")[1] for name in sys.modules if name.startswith("secfarm.")})

    assert set(one_kernel.run(loaded)) <= {"errors", "limits", "task", "run"}


def test_live_callbacks_work_for_maps(one_kernel: Kernel) -> None:
    ear = Ear()
    assert list(one_kernel.options(on_output=ear).map(print, range(10))) == [None] * 10
    assert sorted(joined(ear.pieces)["stdout"].split()) == [str(i) for i in range(10)]


@pytest.mark.parametrize(
    "settings",
    [
        {"timeout_s": 0},
        {"timeout_s": float("nan")},
        {"memory_bytes": 0},
        {"memory_bytes": 2**70},
        {"category": "x" * 129},
    ],
)
def test_settings_that_no_server_takes_are_refused_here(one_kernel: Kernel, settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="nothing was sent"):
        one_kernel.options(**settings).submit(divmod, 7, 2)  # type: ignore[arg-type]
    assert one_kernel.run(divmod, 7, 2) == (3, 1)
