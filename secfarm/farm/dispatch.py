"""A kernel's part that lives in the background loop: its links, its schedule, and the way of each task between them.

Everything here runs in the loop's thread, but for `submit`, which only appends to a queue and rings.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec

from secfarm.errors import ConnectionLostError, ProtocolError, SecfarmError, TaskKilledError
from secfarm.farm.failure import error_of
from secfarm.farm.link import Link
from secfarm.farm.schedule import Schedule
from secfarm.task import codec
from secfarm.task.payload import Cancel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from secfarm.auth.base import Auth
    from secfarm.farm.future import Future, Submission
    from secfarm.farm.schedule import Identity, Seat
    from secfarm.sign.keys import Signer
    from secfarm.task.payload import Order
    from secfarm.wire.address import Address
    from secfarm.wire.messages import Outcome

_RETURN_S: Final = 3.0  # a server whose line broke has this long to come back for the tasks that it may be running


class Dispatch:
    """The links and the schedule of one kernel."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, at_most_once: bool) -> None:
        self.loop = loop
        self.links: list[Link] = []
        self._at_most_once = at_most_once
        self._schedule = Schedule()
        self._seats: dict[Seat, Link] = {}
        self._returning: dict[Identity, asyncio.TimerHandle] = {}
        self._arrived: deque[Submission] = deque()
        self._ringing = False
        self._pumping = False
        self._running: list[asyncio.Task[None]] = []
        self._broadcasts: list[Submission] = []  # done once; every server that comes later gets them first
        self._outstanding = 0
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

    async def until_idle(self) -> None:
        """Return once every task that was submitted is done."""
        self._take_in()
        while self._outstanding:
            self._idle.clear()
            await self._idle.wait()

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
        return sum(seat.workers for seat in self._seats)

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

    def join(self, link: Link, workers: int, max_tasks: int) -> None:
        """A server has welcomed us: give the link its seat."""
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

    def finish(self, link: Link, seat: Seat, outcome: Outcome, value: bytes | None) -> None:
        """A server has answered: the future gets its value or its error."""
        submission = self._schedule.finish(seat, outcome.task_id, outcome.ended_s - outcome.started_s)
        if submission is None:
            raise ProtocolError("the server reports a task that it was not given")
        future = submission.future
        future.output = outcome.output
        killed = outcome.error is not None and outcome.error.code == TaskKilledError.code
        if submission.verdict is not None:
            if not submission.verdict.done():  # who asked for it may have been interrupted
                submission.verdict.set_result(killed)
            if killed:
                future.withdrawn()
                self._over()
                return
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
            self._fail(submission, error_of(outcome.error, link.server_name))
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
                order = self.loop.create_task(link.order(partial(Cancel, task_ids=held), list[bytes]))
                self._orders.add(order)
                order.add_done_callback(self._ordered)

    def _ordered(self, order: asyncio.Task[object]) -> None:
        self._orders.discard(order)
        if not order.cancelled():
            order.exception()  # the session broke: its tasks run once more, and nobody asks for their results

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
