"""Hostile tasks: what they print, claim or break is theirs alone, and the server serves on."""

from __future__ import annotations

import os
import sys

import pytest

from secfarm.run.pipe import encode_report
from secfarm.task import codec
from secfarm.task.outcome import Done, ErrorRecord
from tests.daemon.site import BOB, Client, Serving, Site, client


def write_to_results(frames: list[bytes], end: bool) -> int:  # noqa: FBT001
    """Find the pipe that results go through and write to it."""
    fd = int(sys.argv[2])
    for one in frames:
        os.write(fd, one)
    if end:
        os._exit(0)
    return 1


def report(ada: Client, *frames: bytes, end: bool = True) -> ErrorRecord | None:
    one = ada.task(write_to_results, list(frames), end)
    ada.submit(one)
    return ada.outcome(one[1].task_id).error


def forged(number: int, value: bytes | None = b"\x01", error: ErrorRecord | None = None, output: str = "") -> bytes:
    return encode_report(Done(number, value, error, 0.0, 0.0, output))


def claim(number: int) -> None:
    """Report ten million characters of output, or of an error, for the call of that number."""
    from secfarm.run.pipe import encode_report
    from secfarm.task.outcome import Done, ErrorRecord

    long = "x" * 10_000_000
    claims = [
        Done(number, b"\x01", None, 0.0, 0.0, long),
        Done(number, None, ErrorRecord("raised", long), 0.0, 0.0),
        Done(number, None, ErrorRecord("raised", "", long), 0.0, 0.0),
    ]
    data = encode_report(claims[number % 3])
    while data:
        data = data[os.write(int(sys.argv[2]), data) :]


def test_output_and_errors_that_would_fit_no_message_end_the_worker_and_not_the_session(
    site: Site, serving: Serving
) -> None:
    """The next number of the pool is easy to guess; a claim of 10 MB is not passed on."""
    with client(serving, site) as ada, client(serving, site, BOB) as bob:
        for number in range(1, 7):
            one = ada.task(claim, number)
            ada.submit(one)
            error = ada.outcome(one[1].task_id).error
            assert error is not None
            assert error.code == "worker-lost"
        assert ada.run("builtins:abs", -1) == 1
        ada.session.close("done")
        ada.flush()
        assert bob.run("builtins:abs", -2) == 2


def test_a_value_that_is_no_value_is_passed_on_as_bytes_and_nothing_more(site: Site, serving: Serving) -> None:
    """The gate never decodes it."""
    with client(serving, site) as ada:
        one = ada.task(write_to_results, [forged(1, b"\xc1garbage")], True)
        ada.submit(one)
        assert ada.outcome(one[1].task_id).value == b"\xc1garbage"
        assert ada.run("builtins:abs", -1) == 1


@pytest.mark.parametrize("code", ["refused", "\x1b[31m\r\n", "", "killed"])
def test_a_task_that_lies_about_its_own_end_harms_nobody(site: Site, serving: Serving, code: str) -> None:
    with client(serving, site) as ada:
        error = report(ada, forged(1, None, ErrorRecord(code, "lie")))
        assert error == ErrorRecord(code, "lie")
        assert ada.run("builtins:abs", -1) == 1
    raw = (site.folder / "audit.jsonl").read_bytes()
    assert all(32 <= byte < 127 or byte == 10 for byte in raw)


def test_a_task_that_reads_the_calls_behind_it_takes_only_its_own_sessions(site: Site) -> None:
    """What it read it may not run under another's name: reports out of turn end the worker, the calls are lost."""

    def steal() -> int:
        import time

        fd = int(sys.argv[1])
        os.set_blocking(fd, False)
        got = 0
        deadline_s = time.monotonic() + 0.2
        while time.monotonic() < deadline_s:
            try:
                got += len(os.read(fd, 4096)) > 0
            except BlockingIOError:
                continue
        os.set_blocking(fd, True)
        return got

    with Serving(site) as serving, client(serving, site) as ada, client(serving, site, BOB) as bob:
        calls = [ada.task(steal), *(ada.task("builtins:abs", -number) for number in range(1, 5))]
        ada.submit(*calls)
        assert ada.outcome(calls[0][1].task_id).error is None
        for number, (_, call) in enumerate(calls[1:], 1):
            outcome = ada.outcome(call.task_id)
            assert outcome.error is not None or codec.decode(outcome.value) == number
        assert bob.run("builtins:abs", -9) == 9


@pytest.mark.parametrize(
    "source",
    [
        lambda: (
            __import__("os").kill(__import__("os").getppid(), 0)
            or __import__("os").close(int(__import__("sys").argv[2]))
        ),
        lambda: __import__("os").close(int(__import__("sys").argv[1])),
        lambda: (
            [__import__("os").close(fd) for fd in range(64) if __import__("os").path.exists(f"/proc/self/fd/{fd}")]
            and None
        ),
        lambda: __import__("sys").setrecursionlimit(10**6),
        lambda: setattr(__import__("builtins"), "len", None),
        lambda: __import__("sys").modules.clear(),
        lambda: __import__("gc").disable() or __import__("os").abort(),
    ],
    ids=["results closed", "requests closed", "all closed", "recursion", "builtins", "modules", "abort"],
)
def test_a_worker_that_is_broken_from_inside_is_replaced(site: Site, serving: Serving, source: object) -> None:
    """Its own session may need another try; the server and everybody else do not notice."""
    with client(serving, site) as ada, client(serving, site, BOB) as bob:
        one = ada.task(source)
        ada.submit(one)
        ada.outcome(one[1].task_id)
        for _ in range(3):
            after = ada.task(lambda: 1)
            ada.submit(after)
            ada.outcome(after[1].task_id)
            ada.acknowledge()
        assert bob.run("builtins:abs", -2) == 2


def test_a_client_that_acknowledges_nothing_is_bounded(site: Site) -> None:
    site.policy('[[grant]]\nprincipals = ["ada"]\nmay = ["call"]\nnames = ["*"]\n[grant.limits]\ntasks = 10\n')
    with Serving(site) as serving, client(serving, site) as ada:
        for _ in range(4):
            calls = [ada.task("builtins:abs", -1) for _ in range(10)]
            ada.submit(*calls)
            codes = [ada.outcome(call.task_id).error for _, call in calls]
        assert {error.code for error in codes} == {"refused"}
        assert serving.call(lambda: len(serving.server.tasks)) <= 20
        ada.acknowledge()
        assert ada.run("builtins:abs", -1) == 1


def test_acknowledging_what_was_never_told_is_refused(site: Site, serving: Serving) -> None:
    from secfarm.wire.messages import Received

    with client(serving, site) as ada:
        assert ada.run("builtins:abs", -1) == 1
        ada.send(Received(2))
        assert ada.goodbye().code == "protocol"
