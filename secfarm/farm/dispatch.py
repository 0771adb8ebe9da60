"""A kernel's part that lives in the background loop: its links, its schedule, and the way of each task between them.

Everything here runs in the loop's thread, but for `submit`, which only appends to a queue and rings.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Final, cast

import msgspec

from secfarm.errors import ConnectionLostError, ProtocolError, SecfarmError, TaskKilledError
from secfarm.farm.failure import error_of
from secfarm.farm.future import LiveFuture
from secfarm.farm.link import Link
from secfarm.farm.live import Callbacks, hear
from secfarm.farm.receipts import keep
from secfarm.farm.schedule import Schedule
from secfarm.task import codec
from secfarm.task.payload import Cancel, TakeBack

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

    from secfarm.auth.base import Auth
    from secfarm.farm.future import Future, Submission
    from secfarm.farm.receipts import Testimony
    from secfarm.farm.schedule import Identity, Seat
    from secfarm.sign.keys import Signer
    from secfarm.task.payload import Order
    from secfarm.wire.address import Address
    from secfarm.wire.messages import Outcome, Output, Progress

_STALLED_S: Final = 0.03  # without an answer, while another server has free workers: above what is sent ahead

_LOOK_S: Final = 0.02
_RETURN_S: Final = 3.0  # a server whose line broke has this long to come back for the tasks that it may be running


class Dispatch:
    """The links and the schedule of one kernel."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, at_most_once: bool) -> None:
        self.loop = loop
        self.links: list[Link] = []
        self.listens = False  # servers may dial in
        self._refusing: set[Link] = set()
        self._at_most_once = at_most_once
        self._schedule = Schedule()
        self._seats: dict[Seat, Link] = {}
        self._returning: dict[Identity, asyncio.TimerHandle] = {}
        self._arrived: deque[Submission] = deque()
        self._ringing = False
        self._pumping = False
        self._running: list[asyncio.Task[None]] = []
        self._broadcasts: list[Submission] = []  # done once; every server that comes later gets them first
        self._callbacks = Callbacks()
        self._outstanding = 0
        self._stall_check: asyncio.TimerHandle | None = None
        self._idle = asyncio.Event()
        self._orders: set[asyncio.Task[object]] = set()  # the loop itself holds its tasks weakly

    # --- from any thread ------------------------------------------------------------------------------------------

    def submit(self, submission: Submission) -> None:
        """Take a task in; the loop is rung only when it is not on its way already."""
        self._arrived.append(submission)
        if not self._ringing:
            self._ringing = True
            self.loop.call_soon_threadsafe(self._take_in)

    def abandon(self, futures: Iterable[Future[object]]) -> None:
        """Take back tasks whose results nobody will ask for; returns at once."""
        self.loop.call_soon_threadsafe(self._abandon, {future.task_id for future in futures})

    # --- in the loop ----------------------------------------------------------------------------------------------

    async def open(self, addresses: Iterable[Address], auth: Auth, signer: Signer | None, name: str) -> None:
        """Start a link to each address; they join as their servers answer."""
        for address in addresses:
            link = Link(self, address, auth, signer, name)
            self.links.append(link)
            self._running.append(self.loop.create_task(link.run(address)))

    async def close(self) -> None:
        """End all links; tasks that are not done stay undone."""
        for task in self._running:
            task.cancel()
        for link in self.links:
            link.close()
        await asyncio.gather(*self._running, return_exceptions=True)
        self._callbacks.close()

    async def until_idle(self) -> None:
        """Return once every task that was submitted is done."""
        self._take_in()
        while self._outstanding:
            self._idle.clear()
            await self._idle.wait()

    def drop(self, error: BaseException) -> None:
        """Cancel the tasks that wait, and let those that a server has fail: nobody will wait for them."""
        for submission in self.withdraw_waiting():
            submission.future.withdrawn()
        for seat in self._seats:
            for submission in list(seat.held.values()):
                self._schedule.finish(seat, submission.task_id, 0.0)
                self._fail(submission, error)

    @property
    def connected(self) -> list[Link]:
        """The links whose servers are there."""
        return list(self._seats.values())

    async def order_all(self, make: Callable[[int], Order], answer: object) -> list[object]:
        """Send an order to every server that is there and return the answers, in the order of `connected`."""
        return await asyncio.gather(*(link.order(make, answer) for link in self.connected))

    @property
    def worker_count(self) -> int:
        """Workers of all servers that are there."""
        return sum(seat.workers for seat in list(self._seats))  # other threads ask while servers come and go

    def _take_in(self) -> None:
        self._ringing = False
        while self._arrived:
            submission = self._arrived.popleft()
            self._outstanding += 1
            if submission.future.cancelled():
                self._over()
            else:
                self._schedule.add(submission)
        self._pump()

    def pump_soon(self) -> None:
        """Assign tasks at the end of this turn of the loop."""
        if not self._pumping:
            self._pumping = True
            self.loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._pumping = False
        for seat, submissions in self._schedule.assign():
            self._seats[seat].submit(submissions)
        if self._stall_check is None and (blocked := self._schedule.blocked()):
            self._stall_check = self.loop.call_later(_STALLED_S, self._unblock, blocked)

    def _unblock(self, before: dict[Seat, int]) -> None:
        """Take back what waits at servers that have not answered anything since `before`, for those that are free."""
        self._stall_check = None
        for seat, answers in self._schedule.blocked().items():
            if before.get(seat) == answers and not seat.stalled:
                seat.stalled = True
                self._order(self._take_back(seat, self._seats[seat]))
        self.pump_soon()

    async def _take_back(self, seat: Seat, link: Link) -> None:
        make = partial(TakeBack, task_ids=tuple(seat.held))
        given_back = cast("list[bytes]", await link.order(make, list[bytes]))
        again: list[Submission] = []
        for submission in self._schedule.take_back(seat, given_back):
            if submission.verdict is None:
                again.append(submission)
            else:  # it was to be cancelled, and that is what it is now
                if not submission.verdict.done():
                    submission.verdict.set_result(True)
                submission.future.withdrawn()
                self._over()
        self._schedule.put_back(again)
        self.pump_soon()

    def _order(self, coroutine: Coroutine[object, object, object]) -> None:
        order = self.loop.create_task(coroutine)
        self._orders.add(order)
        order.add_done_callback(self._ordered)

    def refused(self, link: Link, error: Exception) -> None:
        """A server that let us in before does so no more.

        Where no other server may, what waits would wait for ever: it fails.
        """
        self._refusing.add(link)
        self.give_up(link.identity)
        if len(self._refusing) < len(self.links) or self.listens:
            return
        lost = ConnectionLostError(f"no server lets us in any more, the last one said: {error}; the task has no result")
        self._take_in()
        for submission in self._schedule.withdraw_all(lambda _: True):
            self._fail(submission, lost)

    def join(self, link: Link, workers: int, max_tasks: int) -> None:
        """A server has welcomed us: give the link its seat."""
        self._refusing.discard(link)
        seat = self._schedule.join(workers, max_tasks)
        self._seats[seat] = link
        link.seat = seat
        for submission in self._broadcasts:
            self._send_to(seat, link, submission.again())
        if link.identity in self._returning:
            self._returning.pop(link.identity).cancel()
            link.submit(self._schedule.give(seat, self._schedule.kept(link.identity)))
        self.pump_soon()

    def _send_to(self, seat: Seat, link: Link, submission: Submission) -> None:
        self._outstanding += 1
        seat.hold(submission)
        link.submit([submission])

    async def broadcast(self, first: Submission) -> list[object]:
        """Run a task on every worker of every server, those that come later included; return the results so far.

        Raises:
            ConnectionLostError: there is no server, or one was lost meanwhile.
        """
        self._take_in()
        sent = [first.again() for _ in self._seats]
        if not sent:
            raise ConnectionLostError("no server is connected; the task was not broadcast")
        self._broadcasts.append(first)  # before the first wait: a server that joins meanwhile gets it as well
        for (seat, link), submission in zip(self._seats.items(), sent, strict=True):
            self._send_to(seat, link, submission)
        try:
            parts = await asyncio.gather(*(asyncio.wrap_future(submission.future) for submission in sent))
        except BaseException:
            self._broadcasts.remove(first)
            raise
        return [value for part in parts if isinstance(part, list) for value in part]

    def leave(self, seat: Seat, error: ConnectionLostError, *, may_return: bool) -> None:
        """A session has ended: what had no result is sent again under the same task id, unless that is unwanted.

        The server, if it lives, knows what it ran: so it is asked first, whether it is here already by another line
        or comes back soon.
        """
        identity = self._seats.pop(seat).identity
        again: list[Submission] = []
        for submission in self._schedule.leave(seat):
            if submission.verdict is not None:
                if not submission.verdict.done():
                    submission.verdict.set_result(False)
                submission.verdict = None
            if self._at_most_once or submission.broadcast:
                self._fail(submission, error)
            else:
                again.append(submission)
        other = next((pair for pair in self._seats.items() if pair[1].identity == identity), None)
        if not may_return:
            self._schedule.put_back(again)
        elif other is not None:
            other[1].submit(self._schedule.give(other[0], again))
        elif again:
            self._schedule.keep(identity, again)
            if identity in self._returning:
                self._returning[identity].cancel()
            self._returning[identity] = self.loop.call_later(_RETURN_S, self.give_up, identity)
        self.pump_soon()

    def give_up(self, identity: Identity) -> None:
        """A server that was lost is not waited for any longer: others may have its tasks."""
        if identity in self._returning:
            self._returning.pop(identity).cancel()
            self._schedule.put_back(self._schedule.kept(identity))
            self.pump_soon()

    def hear(self, link: Link, message: Output | Progress) -> None:
        """A server tells what a task does while it runs."""
        submission = link.seat.held.get(message.task_id) if link.seat is not None else None
        if submission is None:
            raise ProtocolError("the server tells of a task that it was not given")
        hear(self._callbacks, submission, message)

    def finish(
        self, link: Link, seat: Seat, outcome: Outcome, value: bytes | None, testimony: Testimony | None
    ) -> None:
        """A server has answered: the future gets its value or its error, behind what its task told meanwhile."""
        submission = self._schedule.finish(seat, outcome.task_id, outcome.ended_s - outcome.started_s)
        if submission is None:
            raise ProtocolError("the server reports a task that it was not given")
        future = submission.future
        future.output = outcome.output
        keep(submission, testimony, outcome)
        killed = outcome.error is not None and outcome.error.code == TaskKilledError.code
        if submission.verdict is not None:
            if not submission.verdict.done():  # who asked for it may have been interrupted
                submission.verdict.set_result(killed)
            if killed:
                future.withdrawn()
                self._over()
                return
        settle = partial(self._settle, submission, outcome, value, link.server_name)
        if isinstance(future, LiveFuture):
            future.output = outcome.output or "".join(future.heard)  # a task that was killed reports nothing
            self._callbacks.call(self.loop.call_soon_threadsafe, settle)
        else:
            settle()

    def _settle(self, submission: Submission, outcome: Outcome, value: bytes | None, server: str) -> None:
        future = submission.future
        result: object = None
        try:
            if value is not None:
                result = _broadcast_result(value) if submission.broadcast else codec.decode(value)
        except SecfarmError as error:
            self._fail(submission, error)
            return
        if outcome.error is not None:
            if submission.spread and isinstance(result, list):
                future.before = result
            self._fail(submission, error_of(outcome.error, server))
            return
        if not future.cancelled():
            future.set_result(result)
        self._over()

    def _fail(self, submission: Submission, error: BaseException) -> None:
        if not submission.future.cancelled():
            submission.future.set_exception(error)
        self._over()

    def _over(self) -> None:
        self._outstanding -= 1
        if not self._outstanding:
            self._idle.set()

    # --- cancelling -----------------------------------------------------------------------------------------------

    async def cancel(self, submission: Submission) -> bool:
        """Return True once it is certain that the task does not run."""
        self._take_in()
        while self._schedule.keeps(submission):  # noqa: ASYNC110 - its server may run it, and is back soon or given up
            await asyncio.sleep(_LOOK_S)
        if self._schedule.withdraw(submission):
            self._over()
            return True
        for seat, link in self._seats.items():
            if submission.task_id in seat.held:
                if submission.verdict is not None:
                    return await asyncio.shield(submission.verdict)  # somebody else has asked already
                verdict: asyncio.Future[bool] = self.loop.create_future()
                submission.verdict = verdict
                with contextlib.suppress(SecfarmError):  # the session broke: `leave` gives the verdict
                    await link.order(lambda number: Cancel(number, (submission.task_id,)), list[bytes])
                return await verdict
        return False

    def _abandon(self, task_ids: set[str]) -> None:
        self._take_in()
        for submission in self._schedule.withdraw_all(lambda one: one.task_id.hex() in task_ids):
            submission.future.withdrawn()
            self._over()
        for seat, link in self._seats.items():
            held = tuple(task_id for task_id in seat.held if task_id.hex() in task_ids)
            if held:
                self._order(link.order(partial(Cancel, task_ids=held), list[bytes]))

    def _ordered(self, order: asyncio.Task[object]) -> None:
        self._orders.discard(order)
        if not order.cancelled():
            order.exception()  # the session broke: its tasks are given out again

    def withdraw_waiting(self) -> list[Submission]:
        """Forget the tasks that no server has, and return them."""
        self._take_in()
        withdrawn = self._schedule.withdraw_all(lambda _: True)
        for _ in withdrawn:
            self._over()
        return withdrawn


def _broadcast_result(value: bytes) -> list[object]:
    try:
        encoded = msgspec.msgpack.decode(value, type=list[bytes])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ProtocolError(f"the results of a broadcast are malformed: {error}") from error
    return [codec.decode(one) for one in encoded]
