"""The schedule, as a state machine: nothing is lost, nothing is given twice, order and bounds hold."""

from __future__ import annotations

import os

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from secfarm.farm.future import Options, Submission
from secfarm.farm.schedule import Schedule, Seat
from secfarm.task.payload import Priority
from secfarm.task.program import NameProgram, make_program

SERVERS = [("key", "a"), ("key", "b")]
SHORT = make_program(NameProgram("operator:add"))
OTHER = make_program(NameProgram("operator:mul"))


def submission(program=SHORT, priority=Priority.DEFAULT) -> Submission:
    return Submission(os.urandom(16), program, b"", None, Options(priority=priority), lambda _: False)


def assigned(schedule: Schedule) -> list[Submission]:
    return [one for _, given in schedule.assign() for one in given]


class Machine(RuleBasedStateMachine):
    """Any order of joins, submits, answers and losses."""

    def __init__(self) -> None:
        super().__init__()
        self.schedule = Schedule()
        self.seats: list[Seat] = []
        self.waiting: list[Submission] = []
        self.kept: list[Submission] = []
        self.at: dict[bytes, tuple[Seat, Submission]] = {}
        self.finished: set[bytes] = set()

    @rule(workers=st.integers(0, 3), limit=st.integers(1, 20))
    def join(self, workers: int, limit: int) -> None:
        if len(self.seats) < 3:
            self.seats.append(self.schedule.join(workers, limit))

    @rule(priority=st.sampled_from(Priority), program=st.sampled_from([SHORT, OTHER]), count=st.integers(1, 30))
    def submit(self, priority: Priority, program, count: int) -> None:
        for _ in range(count):
            one = submission(program, priority)
            self.waiting.append(one)
            self.schedule.add(one)

    @rule()
    def assign(self) -> None:
        for seat, given in self.schedule.assign():
            assert seat in self.seats
            for one in given:
                self.waiting.remove(one)
                assert one.task_id not in self.at
                assert one.task_id not in self.finished
                self.at[one.task_id] = (seat, one)
            assert len(seat.held) <= max(seat.workers, seat.max_tasks)

    @precondition(lambda self: self.at)
    @rule(data=st.data(), seconds=st.sampled_from([0.0, 1e-5, 1e-3, 0.5, 30.0, float("nan"), -1.0]))
    def finish(self, data, seconds: float) -> None:
        task_id = data.draw(st.sampled_from(list(self.at)))
        seat, one = self.at.pop(task_id)
        assert self.schedule.finish(seat, task_id, seconds) is one
        assert self.schedule.finish(seat, task_id, seconds) is None
        self.finished.add(task_id)

    @precondition(lambda self: self.seats)
    @rule(data=st.data())
    def leave(self, data) -> None:
        seat = self.seats.pop(data.draw(st.integers(0, len(self.seats) - 1)))
        held = self.schedule.leave(seat)
        assert {one.task_id for one in held} == {task_id for task_id, (at, _) in self.at.items() if at is seat}
        for one in held:
            del self.at[one.task_id]
        if data.draw(st.booleans()):
            self.schedule.keep(data.draw(st.sampled_from(SERVERS)), held)
            self.kept += held
        else:
            self.schedule.put_back(held)
            self.waiting += held

    @precondition(lambda self: self.kept)
    @rule(identity=st.sampled_from(SERVERS), limit=st.integers(1, 20))
    def come_back(self, identity: tuple[str, str], limit: int) -> None:
        """A server gets what it had, as far as it has room; the rest is for all."""
        seat = self.schedule.join(1, limit)
        self.seats.append(seat)
        had = self.schedule.kept(identity)
        given = self.schedule.give(seat, had)
        assert given == had[:limit]
        for one in had:
            self.kept.remove(one)
        self.waiting += had[limit:]
        self.at |= {one.task_id: (seat, one) for one in given}

    @precondition(lambda self: self.kept)
    @rule(identity=st.sampled_from(SERVERS))
    def give_up(self, identity: tuple[str, str]) -> None:
        had = self.schedule.kept(identity)
        self.schedule.put_back(had)
        self.waiting += had
        for one in had:
            self.kept.remove(one)

    @precondition(lambda self: self.waiting or self.kept)
    @rule(data=st.data())
    def withdraw(self, data) -> None:
        one = data.draw(st.sampled_from(self.waiting + self.kept))
        (self.waiting if one in self.waiting else self.kept).remove(one)
        assert self.schedule.withdraw(one)
        assert not self.schedule.withdraw(one)

    @invariant()
    def nothing_is_lost(self) -> None:
        assert {one.task_id for one in self.schedule.waiting} == {one.task_id for one in self.waiting}


TestSchedule = Machine.TestCase


def test_a_task_of_unknown_length_goes_to_a_free_worker_only() -> None:
    schedule = Schedule()
    schedule.join(2, 100)
    for _ in range(5):
        schedule.add(submission())
    assert len(assigned(schedule)) == 2
    assert not assigned(schedule)


def test_short_tasks_are_sent_ahead_and_long_ones_are_not() -> None:
    """One answer tells how long a program takes."""
    for seconds, ahead in ((1e-5, True), (1.0, False)):
        schedule = Schedule()
        seat = schedule.join(1, 1000)
        for _ in range(500):
            schedule.add(submission())
        (first,) = assigned(schedule)
        schedule.finish(seat, first.task_id, seconds)
        assert (len(assigned(schedule)) > 1) is ahead


def test_low_priority_waits_until_nothing_of_the_default_does() -> None:
    schedule = Schedule()
    seat = schedule.join(1, 100)
    low, default = submission(priority=Priority.LOW), submission()
    schedule.add(low)
    schedule.add(default)
    assert assigned(schedule) == [default]
    schedule.finish(seat, default.task_id, 10.0)
    assert assigned(schedule) == [low]


def test_tasks_that_are_put_back_come_first_and_in_order() -> None:
    schedule = Schedule()
    seat = schedule.join(2, 100)
    tasks = [submission() for _ in range(4)]
    for one in tasks:
        schedule.add(one)
    assert assigned(schedule) == tasks[:2]
    schedule.put_back(schedule.leave(seat))
    assert schedule.waiting == tasks


def test_what_is_kept_for_a_server_waits_for_it_and_can_be_withdrawn() -> None:
    schedule = Schedule()
    seat = schedule.join(3, 100)
    tasks = [submission() for _ in range(3)]
    for one in tasks:
        schedule.add(one)
    assigned(schedule)
    schedule.keep(SERVERS[0], schedule.leave(seat))
    other = schedule.join(3, 100)
    assert not assigned(schedule), "another server gets none of it"
    assert schedule.withdraw_all(lambda one: one is tasks[1]) == [tasks[1]]
    assert schedule.kept(SERVERS[1]) == []
    assert schedule.give(other, schedule.kept(SERVERS[0])) == [tasks[0], tasks[2]]
    assert schedule.kept(SERVERS[0]) == []


def test_a_server_without_workers_gets_nothing() -> None:
    schedule = Schedule()
    schedule.join(0, 100)
    schedule.add(submission())
    assert not assigned(schedule)


@pytest.mark.parametrize("free", [1, 3])
def test_work_goes_where_most_workers_are_free(free: int) -> None:
    schedule = Schedule()
    schedule.join(1, 100)
    larger = schedule.join(1 + free, 100)
    schedule.add(submission())
    ((seat, _),) = schedule.assign()
    assert seat is larger
