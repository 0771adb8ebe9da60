"""The schedule, as a state machine: nothing is lost, nothing is given twice, order and bounds hold."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from secfarm.farm.future import Options, Submission
from secfarm.farm.schedule import Schedule, Seat
from secfarm.task.payload import Priority
from secfarm.task.program import NameProgram, make_program

SERVERS = [("key", "a"), ("key", "b")]
SHORT = make_program(NameProgram("operator:add"))
_numbers = itertools.count()  # hypothesis must find the ids in the same order again
OTHER = make_program(NameProgram("operator:mul"))


def submission(program=SHORT, priority=Priority.DEFAULT) -> Submission:
    return Submission(
        next(_numbers).to_bytes(16, "big"), program, b"", None, Options(priority=priority), lambda _: False
    )


def assigned(schedule: Schedule) -> list[Submission]:
    return [one for _, given in schedule.assign() for one in given]


class Machine(RuleBasedStateMachine):
    """Any order of joins, submits, answers, losses, withdrawals and returns, beside what a simple model says."""

    def __init__(self) -> None:
        super().__init__()
        self.schedule = Schedule()
        self.seats: list[Seat] = []
        self.waiting: dict[Priority, list[Submission]] = {priority: [] for priority in Priority}
        self.kept: list[Submission] = []
        self.at: dict[bytes, tuple[Seat, Submission]] = {}
        self.finished: set[bytes] = set()

    @precondition(lambda self: len(self.seats) < 3)
    @rule(workers=st.integers(0, 3), limit=st.integers(1, 20))
    def join(self, workers: int, limit: int) -> None:
        self.seats.append(self.schedule.join(workers, limit))

    @rule(priority=st.sampled_from(Priority), program=st.sampled_from([SHORT, OTHER]), count=st.integers(1, 30))
    def submit(self, priority: Priority, program, count: int) -> None:
        for _ in range(count):
            one = submission(program, priority)
            self.waiting[priority].append(one)
            self.schedule.add(one)

    @rule()
    def assign(self) -> None:
        free = {seat: seat.free for seat in self.seats}
        before = {priority: list(queue) for priority, queue in self.waiting.items()}
        given = dict.fromkeys(Priority, 0)
        for seat, tasks in self.schedule.assign():
            assert seat in self.seats, "only who is there gets work"
            assert seat.workers
            places = [before[one.options.priority].index(one) for one in tasks]
            for priority in Priority:
                of_priority = [
                    place for place, one in zip(places, tasks, strict=True) if one.options.priority is priority
                ]
                assert of_priority == sorted(of_priority), "first in, first out"
            for one in tasks:
                given[one.options.priority] += 1
                self.waiting[one.options.priority].remove(one)
                assert one.task_id not in self.at, "nothing is given twice"
                assert one.task_id not in self.finished, "nor again when it is done"
                self.at[one.task_id] = (seat, one)
            assert len(seat.held) <= max(seat.workers, seat.max_tasks), "capacity is respected"
            ahead = len(tasks) - max(0, free[seat])
            assert ahead <= 0 or not seat.stalled, "nothing is sent ahead to who is stuck"
        for priority, queue in self.waiting.items():
            assert queue == before[priority][given[priority] :], "those that were first are gone"
        assert not self.waiting[Priority.DEFAULT] or not given[Priority.LOW], "low waits for the default"
        if any(self.waiting.values()):
            assert not any(seat.free > 0 for seat in self.seats), "no worker is free while a task waits"

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
        if data.draw(st.booleans()):
            for one in held:
                del self.at[one.task_id]
            self.schedule.keep(data.draw(st.sampled_from(SERVERS)), held)
            self.kept += held
        else:
            self._put_back(held)

    @precondition(lambda self: self.kept)
    @rule(data=st.data())
    def what_may_run_elsewhere_is_not_withdrawn(self, data) -> None:
        one = data.draw(st.sampled_from(self.kept))
        assert self.schedule.keeps(one)
        assert not self.schedule.withdraw(one)

    @precondition(lambda self: self.kept)
    @rule(identity=st.sampled_from(SERVERS), limit=st.integers(1, 20))
    def come_back(self, identity: tuple[str, str], limit: int) -> None:
        """A server gets what it had, as far as it has room; the rest is for all."""
        seat = self.schedule.join(1, limit)
        self.seats.append(seat)
        had = self.schedule.kept(identity)
        given = self.schedule.give(seat, had)
        assert given == had[:limit]
        self._first_again(had[limit:])
        for one in had:
            self.kept.remove(one)
        self.at |= {one.task_id: (seat, one) for one in given}

    @precondition(lambda self: self.kept)
    @rule(identity=st.sampled_from(SERVERS))
    def give_up(self, identity: tuple[str, str]) -> None:
        had = self.schedule.kept(identity)
        self.schedule.put_back(had)
        self._first_again(had)
        for one in had:
            self.kept.remove(one)

    @precondition(lambda self: self.schedule.blocked())
    @rule(data=st.data())
    def unblock(self, data) -> None:
        """A server that is stuck gives back what it has not begun: at most all but what its workers run."""
        blocked = self.schedule.blocked()
        assert any(seat.free > 0 for seat in self.seats)
        seat = data.draw(st.sampled_from(list(blocked)))
        assert len(seat.held) > seat.workers
        seat.stalled = True
        ids = data.draw(st.lists(st.sampled_from(list(seat.held)), unique=True, max_size=len(seat.held) - seat.workers))
        back = self.schedule.take_back(seat, [*ids, b"of somebody else"])
        assert [one.task_id for one in back] == ids
        self._put_back(back)

    def _put_back(self, submissions: list[Submission]) -> None:
        for one in submissions:
            del self.at[one.task_id]
        self.schedule.put_back(submissions)
        self._first_again(submissions)

    def _first_again(self, submissions: list[Submission]) -> None:
        for priority, queue in self.waiting.items():
            queue[:0] = [one for one in submissions if one.options.priority is priority]

    @precondition(lambda self: any(self.waiting.values()))
    @rule(data=st.data())
    def withdraw(self, data) -> None:
        one = data.draw(st.sampled_from([one for queue in self.waiting.values() for one in queue]))
        self.waiting[one.options.priority].remove(one)
        assert self.schedule.withdraw(one)
        assert not self.schedule.withdraw(one)

    @invariant()
    def nothing_is_lost(self) -> None:
        assert self.schedule.waiting == [one for queue in self.waiting.values() for one in queue]
        assert {task_id for seat in self.seats for task_id in seat.held} == self.at.keys()

    @invariant()
    def what_is_expected_of_a_server_is_never_less_than_nothing(self) -> None:
        assert all(seat.load_s > -1e-6 for seat in self.seats)


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


def test_what_waits_behind_a_long_task_is_seen_when_another_server_is_free() -> None:
    """And when it was given back it goes there, and nothing else is sent ahead to the one that is stuck."""
    schedule = Schedule()
    stuck = schedule.join(1, 1000)
    tasks = [submission() for _ in range(100)]
    schedule.add(tasks[0])
    assigned(schedule)
    schedule.finish(stuck, tasks[0].task_id, 1e-5)
    for one in tasks[1:]:
        schedule.add(one)
    ahead = assigned(schedule)
    assert len(ahead) > 10
    assert schedule.blocked() == {}
    free = schedule.join(1, 1000)
    assert schedule.blocked() == {stuck: 1}
    stuck.stalled = True
    schedule.put_back(schedule.take_back(stuck, [one.task_id for one in ahead[1:]]))
    assert list(stuck.held.values()) == ahead[:1]
    assert schedule.assign() == [(free, tasks[2:])]


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
