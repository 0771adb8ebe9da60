"""The server as one that serves: decisions, results, records, and its ways to end."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import msgspec
import pytest

from secfarm.disk.auditlog import verify_log
from secfarm.errors import AuthError
from secfarm.limits import INLINE_BYTES
from secfarm.task import codec
from secfarm.task.payload import Cancel, EndServer, Kill, Status, TakeBack
from secfarm.wire.messages import Goodbyes, OrderResult, Results, Workers
from tests.daemon.site import ADA, BOB, Client, ServerProcess, Serving, Site, client, secret_client
from tests.meeting import NETWORK, Gate, Notes, mark_process, note, pass_gate

# --- serving ------------------------------------------------------------------------------------------------------


def test_two_mechanisms_are_served_at_once(site: Site) -> None:
    site.config(secrets=["cy.secret"])
    site.policy('[[grant]]\nprincipals = ["ada", "cy"]\nmay = ["call"]\nnames = ["*"]\n')
    with Serving(site) as serving, client(serving, site) as ada, secret_client(serving, site.secret) as cy:
        assert (ada.run("builtins:abs", -1), cy.run("builtins:abs", -2)) == (1, 2)
    assert {record["mechanism"] for record in site.events("session")} == {"ed25519", "shared-secret"}


def test_several_addresses_serve_the_same_server(site: Site) -> None:
    """TCP on both families where there are both, and a unix socket."""
    site.config(listen=["127.0.0.1:0", "127.0.0.1:0", f"unix:{site.folder}/sock"])
    with Serving(site) as serving:
        assert len(set(serving.addresses)) == 3
        for address in serving.addresses:
            with Client(address, site.auth(), ADA).meet() as ada:
                assert ada.run("builtins:abs", -3) == 3
    assert not (site.folder / "sock").exists()


def test_tasks_of_two_principals_run_in_processes_of_their_own(site: Site, serving: Serving) -> None:
    with client(serving, site) as ada, client(serving, site, BOB) as bob:
        marks = [one.run(mark_process) for one in (ada, bob, ada, bob)]
    assert len({marks[0], marks[2]} & {marks[1], marks[3]}) == 0


# --- policy -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("may", "allowed"),
    [
        ("", set()),
        ('"run"', {"source"}),
        ('"call"', {"name"}),
        ('"broadcast"', set()),
        ('"run", "broadcast"', {"source", "broadcast"}),
        ('"kill"', {"kill"}),
        ('"admin"', {"status"}),
    ],
)
def test_a_grant_lets_through_what_it_names_and_nothing_else(site: Site, may: str, allowed: set[str]) -> None:
    site.policy(f'[[grant]]\nprincipals = ["ada"]\nmay = [{may}]\nnames = ["builtins.abs"]\n')
    with Serving(site) as serving, client(serving, site) as ada:
        calls = {
            "source": ada.task(lambda x: x, 1),
            "name": ada.task("builtins:abs", -1),
            "broadcast": ada.task(lambda x: [x], 1, broadcast=True),
            "other name": ada.task("os:system", "true"),
        }
        ada.submit(*calls.values())
        done = {what: ada.outcome(call.task_id) for what, (_, call) in calls.items()}
        answers = {"kill": ada.order(Kill(1, "default")), "status": ada.order(Status(2))}
    passed = {what for what, outcome in done.items() if outcome.error is None}
    passed |= {what for what, answer in answers.items() if answer.error is None}
    assert passed == allowed
    for outcome in done.values():
        if outcome.error is not None:
            assert (outcome.error.code, outcome.error.description) == ("refused", "")
            assert "grant" not in outcome.error.report
    record = site.events("accepted")[0]
    other = calls["other name"][1].task_id.hex()
    assert any(line.startswith(f"{other}: policy: ") for line in record["refused"])


def test_a_principal_without_a_grant_may_connect_and_nothing_more(site: Site) -> None:
    site.policy("")
    with Serving(site) as serving, client(serving, site) as ada:
        one = ada.task("builtins:abs", -1)
        ada.submit(one)
        assert ada.outcome(one[1].task_id).error.code == "refused"


def test_limits_of_the_grant_bound_what_is_asked(site: Site, gate: Gate) -> None:
    site.policy(
        '[[grant]]\nprincipals = ["ada"]\nmay = ["run"]\n[grant.limits]\nwall_s = 1\ntasks = 2\noutput_bytes = 5\n'
        f"memory_bytes = 50_000_000\n{NETWORK}"
    )
    with Serving(site) as serving, client(serving, site) as ada:
        calls = [ada.task(pass_gate, *gate.arguments(0), timeout_s=1000.0) for _ in range(3)]
        ada.submit(*calls)
        codes = sorted(ada.outcome(call.task_id).error.code for _, call in calls)
        assert codes == ["refused", "timeout", "timeout"]
        ada.acknowledge()
        loud = ada.task(lambda: print("x" * 100))
        ada.submit(loud)
        assert ada.outcome(loud[1].task_id).output.startswith("xxxxx\n[95 more")
        assert (ada.outcome(loud[1].task_id).error.kind, ada.outcome(loud[1].task_id).error.limit) == ("output", 5)
        ada.acknowledge()
        big = ada.task(lambda: len(bytes(200_000_000)), memory_bytes=10**12)
        ada.submit(big)
        assert ada.outcome(big[1].task_id).error.kind == "memory"


# --- a task is run once -------------------------------------------------------------------------------------------


def test_a_result_waits_for_a_client_whose_connection_broke_and_is_given_once(
    site: Site, serving: Serving, gate: Gate
) -> None:
    ada = client(serving, site)
    one = ada.task(pass_gate, *gate.arguments(0), task_id=b"t" * 16)
    ada.submit(one)
    gate.next()
    ada.cut()
    serving.until(lambda: not serving.server.sessions)
    gate.open()
    serving.until(lambda: serving.server.tasks.find("ada", b"t" * 16).done is not None)
    with client(serving, site) as again:
        again.submit(again.task(pass_gate, *gate.arguments(0), task_id=b"t" * 16))
        assert codec.decode(again.outcome(b"t" * 16).value) == 0
        again.acknowledge()
        serving.until(lambda: len(serving.server.tasks) == 0)
    assert not gate.has_come()


def test_a_running_task_is_told_to_the_session_that_asks_for_it_again(site: Site, serving: Serving, gate: Gate) -> None:
    ada = client(serving, site)
    ada.submit(ada.task(pass_gate, *gate.arguments(0), task_id=b"t" * 16))
    gate.next()
    ada.cut()
    serving.until(lambda: not serving.server.sessions)
    with client(serving, site) as again:
        again.submit(again.task(pass_gate, *gate.arguments(0), task_id=b"t" * 16))
        assert again.order(Cancel(1, ())).error is None  # the batch before it was taken
        gate.open()
        assert codec.decode(again.outcome(b"t" * 16).value) == 0


def test_tasks_are_taken_over_from_a_session_that_is_dead_without_our_knowing(
    site: Site, serving: Serving, gate: Gate
) -> None:
    """The client sees the break first and asks again in a new session; then the old connection ends."""
    old = client(serving, site)
    running, waiting = (
        (lambda one: one.task(pass_gate, *gate.arguments(0), task_id=b"r" * 16)),
        (lambda one: one.task("builtins:abs", -5, task_id=b"w" * 16)),
    )
    old.submit(running(old), waiting(old))
    gate.next()
    with client(serving, site) as new:
        new.submit(running(new), waiting(new))
        assert new.order(Cancel(1, ())).error is None
        old.cut()
        serving.until(lambda: len(serving.server.sessions) == 1)
        gate.open()
        assert codec.decode(new.outcome(b"r" * 16).value) == 0
        assert codec.decode(new.outcome(b"w" * 16).value) == 5
    assert not gate.has_come()


def test_what_had_not_begun_when_the_connection_broke_is_run_when_it_is_asked_for_again(
    site: Site, serving: Serving, gate: Gate
) -> None:
    ada = client(serving, site)
    ada.submit(ada.task(pass_gate, *gate.arguments(0)), ada.task("builtins:abs", -5, task_id=b"w" * 16))
    gate.next()
    ada.cut()
    serving.until(lambda: not serving.server.sessions)
    assert serving.call(lambda: serving.server.tasks.find("ada", b"w" * 16)) is None
    gate.open()
    with client(serving, site) as again:
        assert again.run("builtins:abs", -5, task_id=b"w" * 16) == 5


def test_a_goodbye_ends_everything_of_the_session(site: Site, serving: Serving, gate: Gate) -> None:
    with client(serving, site) as ada:
        ada.submit(ada.task(pass_gate, *gate.arguments(0)))
        pid = gate.next()
        ada.session.close(Goodbyes.DONE)
        ada.flush()
        ada.goodbye()
    serving.until(lambda: not Path(f"/proc/{pid}").exists())
    assert serving.call(lambda: len(serving.server.tasks)) == 0


def test_another_principal_finds_neither_the_result_nor_the_task(site: Site, gate: Gate) -> None:
    site.config(workers=2)
    with Serving(site) as serving, client(serving, site) as ada, client(serving, site, BOB) as bob:
        ada.submit(ada.task(pass_gate, *gate.arguments(0), task_id=b"t" * 16))
        gate.next()
        assert msgspec.msgpack.decode(bob.order(Cancel(1, (b"t" * 16,))).value) == []
        assert msgspec.msgpack.decode(bob.order(Kill(2, "default")).value) == 0
        assert bob.run("builtins:abs", -1, task_id=b"t" * 16) == 1
        gate.open()
        assert codec.decode(ada.outcome(b"t" * 16).value) == 0


def test_a_task_that_is_cancelled_has_one_outcome(site: Site, serving: Serving, gate: Gate) -> None:
    with client(serving, site) as ada:
        running = ada.task(pass_gate, *gate.arguments(0))
        waiting = ada.task("builtins:abs", -1)
        ada.submit(running, waiting)
        gate.next()
        ids = [call.task_id for _, call in (running, waiting)]
        assert msgspec.msgpack.decode(ada.order(Cancel(1, tuple(ids))).value) == ids
        assert [ada.outcome(one).error.code for one in ids] == ["killed", "killed"]
        assert ada.run("builtins:abs", -2) == 2
        told = [outcome.task_id for one in ada.heard if isinstance(one, Results) for outcome in one.outcomes]
        assert len(told) == len(set(told)) == 3


def test_what_has_not_begun_is_given_back_and_what_runs_stays(site: Site, serving: Serving, gate: Gate) -> None:
    """It has no outcome then, and may be submitted again; nobody gives back what is another session's."""
    with client(serving, site) as ada, client(serving, site) as other:
        running = [ada.task(pass_gate, *gate.arguments(0)) for _ in range(serving.server.pool.size)]
        waiting = [ada.task("builtins:abs", -number) for number in range(1, 20)]
        ada.submit(*running, *waiting)
        for _ in running:
            gate.next()
        ids = tuple(call.task_id for _, call in (*running, *waiting))
        assert msgspec.msgpack.decode(other.order(TakeBack(1, ids)).value) == []
        given_back = msgspec.msgpack.decode(ada.order(TakeBack(1, (*ids, b"x" * 16))).value)
        assert sorted(given_back) == sorted(call.task_id for _, call in waiting)
        assert msgspec.msgpack.decode(ada.order(TakeBack(2, ids)).value) == []
        ada.submit(waiting[0])
        gate.open(len(running))
        for _, call in (*running, waiting[0]):
            assert ada.outcome(call.task_id).error is None
        told = [outcome.task_id for one in ada.heard if isinstance(one, Results) for outcome in one.outcomes]
        assert len(told) == len(running) + 1


def test_a_cancelled_broadcast_has_one_outcome(site: Site, serving: Serving, gate: Gate) -> None:
    with client(serving, site) as ada:
        one = ada.task(pass_gate, *gate.arguments(0), broadcast=True)
        ada.submit(one)
        gate.next()
        ada.order(Cancel(1, (one[1].task_id,)))
        gate.open()
        assert ada.run("builtins:abs", -2) == 2
        told = [outcome.task_id for one in ada.heard if isinstance(one, Results) for outcome in one.outcomes]
        assert len(told) == len(set(told)) == 2


def test_many_large_errors_at_once_reach_the_client(site: Site, serving: Serving) -> None:
    """Their texts count towards a message's size: it would not fit a frame, and the session would hang."""

    def shout() -> None:
        raise ValueError("x" * 60_000)

    with client(serving, site) as ada:
        calls = [ada.task(shout) for _ in range(300)]
        ada.submit(*calls)
        serving.until(lambda: not serving.server.pool.busy)
        assert {ada.outcome(call.task_id).error.remote_type for _, call in calls} == {"ValueError"}


# --- the audit log ------------------------------------------------------------------------------------------------


def test_every_decision_is_a_record_of_a_chain_that_verifies(site: Site) -> None:
    with Serving(site) as serving, client(serving, site) as ada:
        assert ada.run(lambda x: x + 1, 1) == 2
        broken = ada.task(lambda: 1 / 0)
        ada.submit(broken)
        ada.outcome(broken[1].task_id)
        ada.order(Kill(1, "etl"))
        ada.raw(b"\x00\x00\x00\x01\xc1")
        ada.goodbye()
        serving.until(lambda: not serving.server.sessions)
    events = [record["event"] for record in site.audit]
    assert events[:2] == ["started", "session"]
    assert events.count("accepted") == 3
    assert events.count("finished") == 2
    assert "closed" in events
    assert verify_log(site.folder / "audit.jsonl").records == len(events)
    outcomes = [code for record in site.events("finished") for code in record["outcomes"].values()]
    assert outcomes == ["ok", "raised"]
    [digest] = site.events("accepted")[0]["programs"]
    assert b"x + 1" in (site.folder / "state" / "sources" / digest).read_bytes()


def test_refused_clients_and_batches_are_records_too(site: Site, serving: Serving) -> None:
    from tests.daemon.site import EVE

    with pytest.raises(AuthError):
        client(serving, site, EVE)
    with client(serving, site) as ada:
        from secfarm.wire.messages import Submit

        ada.send(Submit(ada.sealed(ada.batch(ada.task("builtins:abs", -1)), signer=BOB)))
        assert ada.goodbye().code == "refused"
    serving.until(lambda: not serving.server.sessions)
    [away] = site.events("turned-away")
    assert str(away["source"]).startswith("127.1.")
    [refused] = site.events("refused")
    assert (refused["principal"], refused["code"]) == ("ada", "untrusted-key")


def test_without_room_for_records_nothing_runs_and_the_server_ends(site: Site, ran: Notes) -> None:
    """The file may not grow any more: the next batch is refused, and so is everything after it."""
    with Serving(site) as serving, client(serving, site) as ada:
        assert ada.run("builtins:abs", -1) == 1
        full = os.open("/dev/full", os.O_WRONLY | os.O_CLOEXEC)
        serving.call(lambda: os.dup2(full, serving.server._audit._descriptor, inheritable=False))
        os.close(full)
        ada.submit(ada.task(note, ran.port, 1))
        assert ada.goodbye().code == "error"
        serving.wait()
    assert ran.lines() == []
    verify_log(site.folder / "audit.jsonl")


# --- ends ---------------------------------------------------------------------------------------------------------


def test_end_server_lets_sessions_finish_and_takes_no_new_ones(site: Site) -> None:
    with Serving(site) as serving:
        with client(serving, site) as ada:
            assert msgspec.msgpack.decode(ada.order(EndServer(1)).value) is True
            with pytest.raises(OSError, match="refused"):
                client(serving, site)
            assert ada.run("builtins:abs", -1) == 1
        serving.wait()
    assert site.audit[-1]["event"] == "ended"


def test_a_drained_server_finishes_what_it_accepted_and_takes_nothing_more(site: Site, gate: Gate) -> None:
    """Large results too: it leaves when the client has them."""

    def hold_then(host: str, port: int, size: int) -> bytes:
        pass_gate(host, port, 0)
        return bytes(size)

    with Serving(site) as serving, client(serving, site) as ada:
        one = ada.task(hold_then, *gate.arguments(0)[:2], 20 * INLINE_BYTES)
        ada.submit(one)
        gate.next()
        serving.call(serving.server.drain)
        while not any(isinstance(message, Workers) for message in ada.heard):
            ada.read()
        late = ada.task("builtins:abs", -1)
        ada.submit(late)
        assert ada.order(Cancel(7, ())).error is None  # the batch before it was looked at
        gate.open()
        outcome = ada.outcome(one[1].task_id)
        assert outcome.value.size_bytes > 20 * INLINE_BYTES
        received = 0
        while received < outcome.value.size_bytes:
            received = sum(len(message.data) for message in ada.heard if type(message).__name__ == "Chunk")
            if received < outcome.value.size_bytes:
                ada.read()
        ada.acknowledge()
        assert ada.goodbye().code == "shutdown"
        ada.cut()
        assert late[1].task_id not in ada.outcomes
        serving.wait()
    assert site.audit[-1]["event"] == "ended"


def test_sigterm_drains_and_the_second_one_ends(site: Site, gate: Gate) -> None:
    with ServerProcess(site) as server, client(server, site) as ada:
        one = ada.task(pass_gate, *gate.arguments(0))
        ada.submit(one)
        gate.next()
        server.signal(signal.SIGTERM)
        while not any(isinstance(message, Workers) for message in ada.heard):
            ada.read()
        gate.open()
        assert ada.outcome(one[1].task_id).error is None
        ada.acknowledge()
        assert ada.goodbye().code == "shutdown"
        ada.cut()
        assert server.wait() == 0
        assert server.stderr.read_text() == ""
    with ServerProcess(site) as server, client(server, site) as ada:
        ada.submit(ada.task(pass_gate, *gate.arguments(0)))
        pid = gate.next()
        for _ in range(2):
            server.signal(signal.SIGTERM)
            while not any(isinstance(message, Workers) for message in ada.heard):
                ada.read()
        assert server.wait() == 0
        deadline_s = time.monotonic() + 20
        while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline_s:
            os.sched_yield()
        assert not Path(f"/proc/{pid}").exists()
        assert "Traceback" not in server.stderr.read_text()


def test_a_server_ends_with_its_owner(site: Site) -> None:
    server = ServerProcess(site)
    server.close()
    assert server.process.returncode == 0


def test_every_order_is_answered_once(site: Site, serving: Serving) -> None:
    with client(serving, site) as ada:
        ada.submit(orders=(Status(1), Kill(2, "x"), Cancel(3, ()), Status(4)))
        while len([one for one in ada.heard if isinstance(one, OrderResult)]) < 4:
            ada.read()
        assert [one.request_id for one in ada.heard if isinstance(one, OrderResult)] == [1, 2, 3, 4]
