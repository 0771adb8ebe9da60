"""One client's session at the server: batches in, outcomes out.

Every batch passes `trust.verify.verify_batch` before a word of it is looked at, and only what that returns reaches the
pool. Arguments and results stay opaque bytes here. When the connection breaks, what runs goes on and its result waits
for the client to come back; when the client says goodbye, everything of it is ended.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

import msgspec

from secfarm.daemon.arrivals import Arrivals, Value
from secfarm.daemon.live import LiveBuffer
from secfarm.daemon.receipts import Notary
from secfarm.daemon.tasks import Task
from secfarm.daemon.terms import opened, terms_of
from secfarm.errors import AuthError, PolicyError, ProtocolError, SecfarmError
from secfarm.limits import (
    IDLE_TIMEOUT_S,
    MAX_OUTPUT_CHARS,
    MAX_PENDING_VALUES_BYTES,
)
from secfarm.run.crew import Work
from secfarm.run.hearing import Hearing
from secfarm.sign.sshsig import TASK_NAMESPACE
from secfarm.task.outcome import Done, ErrorRecord
from secfarm.task.payload import AnyOrder, Blob, Cancel, EndServer, Kill, Running, Status, TakeBack
from secfarm.trust.policy import Isolation, Limits
from secfarm.trust.verify import SessionTrust, VerifiedBatch, verify_batch
from secfarm.wire.messages import (
    Chunk,
    Goodbye,
    Goodbyes,
    OrderResult,
    Ping,
    Pong,
    Received,
    Submit,
    Welcome,
    Workers,
)
from secfarm.wire.session import Established

if TYPE_CHECKING:
    import asyncio

    from secfarm.auth.base import Peer
    from secfarm.daemon.server import Server
    from secfarm.net.pump import Connection
    from secfarm.run.crew import Crew
    from secfarm.task.outcome import Printed, Progressed
    from secfarm.task.payload import Call
    from secfarm.task.program import Program
    from secfarm.trust.audit import AuditValue
    from secfarm.wire.messages import Message

_MAX_UNREAD: Final = 100_000  # outcomes; a client that goes on so long without acknowledging is not ours
_CHANGED: Final = ErrorRecord("killed", "the policy opens other things to this client now; the task was killed")
_KILLED: Final = ErrorRecord("killed", "the task was killed on request")


class ServerSession:
    """What the server holds of one connected client. A `net.pump.Listener`."""

    def __init__(self, server: Server, connection: Connection) -> None:
        self._server = server
        self._connection = connection
        self._trust: SessionTrust | None = None
        self._crew: Crew | None = None
        self._notary: Notary | None = None
        self._limits = Limits()
        self._arrivals = Arrivals()
        self._tasks: set[Task] = set()  # accepted in this session or adopted by it, and not finished
        self._finished: list[tuple[Task, Done]] = []  # not yet told
        self._live = LiveBuffer()
        self._told: deque[Task] = deque()  # told and not yet acknowledged, in order
        self._unread_bytes = 0  # results that the client has not acknowledged
        self._acknowledged = 0
        self._heard_s = server.loop.time()
        self._flush_scheduled = False
        self._unanswered: Ping | None = None  # the last one that came while the client did not read
        self._peer: Peer | None = None
        self._since_s = 0.0
        self._expiry: asyncio.TimerHandle | None = None
        self.principal = ""
        self.draining = False

    # --- what the connection tells --------------------------------------------------------------------------------

    def on_message(self, message: Message | Established) -> None:
        """Take one message of the client (see `net.pump.Listener`)."""
        self._heard_s = self._server.loop.time()
        match message:
            case Submit():
                self._submit(message.envelope)
            case Received():
                self._acknowledge(message.count)
            case Chunk():
                self._arrivals.take(message)
            case Established():
                self._establish(message)
            case Ping() if self._connection.writable:
                self._connection.send(Pong(message.nonce))
            case Ping():
                self._unanswered = message
            case Goodbye():
                self._end()
                self._connection.close()
            case _:
                raise ProtocolError(f"a client sent {type(message).__name__}")

    def on_writable(self) -> None:
        """Tell what was held back while the client did not read."""
        ping, self._unanswered = self._unanswered, None
        if ping is not None and self._connection.session.ready:
            self._connection.send(Pong(ping.nonce))
        self._flush_soon()

    def on_closed(self, error: Exception | None) -> None:
        """The connection is gone: let what runs finish, and drop what has not begun."""
        if self._trust is not None:
            self._server.audit("closed", self._who() | {"error": "" if error is None else str(error)})
        if self._expiry is not None:
            self._expiry.cancel()
        self._server.sessions.discard(self)
        if self._crew is not None:
            self._orphan(self._crew)
        self._server.session_ended()

    def _establish(self, event: Established) -> None:
        server, session = self._server, self._connection.session
        peer, self._since_s = event.peer, server.clock()
        self._peer = peer
        self.principal = server.principal_of(peer)
        grant = server.policy.grant_for(self.principal)
        server.admit(self)
        self._trust = SessionTrust(
            session_id=session.session_id,
            principal=self.principal,
            store=server.store,
            policy=server.policy,
            session_key=peer.session_verifier,
        )
        self._limits = grant.limits
        self._notary = Notary(server.name, event.peer, session.session_id, server.key)
        self._crew = server.pool.crew(terms_of(grant), single_use=grant.confine.isolation is Isolation.TASK)
        welcome = Welcome(server.name, server.python_version, server.pool.size, self._limits.tasks)
        self._connection.send(welcome)
        proven: dict[str, AuditValue] = {"mechanism": peer.mechanism, "key": peer.key_id}
        if peer.principal != self.principal:
            proven["proven"] = peer.principal
        server.audit("session", self._who() | proven | opened(self._crew))
        if peer.expires_s is not None:
            self._expiry = server.loop.call_later(max(0.0, peer.expires_s - server.clock()), self._expire)

    def _expire(self) -> None:
        """The client's proof has ended, and with it the session: what runs goes on, it may prove itself again."""
        self._connection.fail(AuthError("the ticket or certificate that proved the client has ended"))

    def judge_again(self) -> None:
        """The trust files or the policy have changed: go on by the new ones, or end."""
        if self._trust is None or self._peer is None:
            return
        server, peer = self._server, self._peer
        self._trust.store, self._trust.policy = server.store, server.policy
        grant = server.policy.grant_for(self.principal)
        self._limits = grant.limits
        try:
            if peer.key_id and peer.session_verifier is None:
                server.store.principal_of(peer.key_id, namespace=TASK_NAMESPACE, now_s=server.clock())
            if not grant.may:
                raise PolicyError(f"no grant of the policy names {self.principal!r} any more")
        except SecfarmError as error:
            server.audit("revoked", self._who() | {"reason": str(error)})
            self._end()
            self._connection.fail(error)
            return
        if self._crew is not None and self._crew.change(
            terms_of(grant), _CHANGED, single_use=grant.confine.isolation is Isolation.TASK
        ):
            server.audit("reopened", self._who() | opened(self._crew))

    def _who(self) -> dict[str, AuditValue]:
        return {"principal": self.principal, "session": self._connection.session.session_id}

    # --- batches --------------------------------------------------------------------------------------------------

    def _submit(self, wire: bytes) -> None:
        if self._trust is None or self._crew is None:
            raise ProtocolError("a batch came before the session was established")
        if len(self._finished) + len(self._told) > _MAX_UNREAD:
            raise ProtocolError(f"over {_MAX_UNREAD} outcomes were not acknowledged; the session was ended")
        server = self._server
        try:
            batch = verify_batch(wire, self._trust, server.clock())
        except SecfarmError as error:
            server.refused += 1
            server.audit("refused", self._who() | {"code": error.code, "reason": str(error)})
            raise
        server.verified += 1
        self._record(batch)
        values = [Value(value) for value in batch.values]
        for call in batch.calls:
            arguments = Value(call.arguments)
            shared = values[call.values] if call.values >= 0 else None
            if not self.draining:  # without an outcome the client takes them elsewhere
                self._accept(call, self._trust.programs[call.program], arguments, shared, self._crew)
            self._arrivals.expect(arguments)
        for refused in batch.refused_calls:
            self._tell_at_once(refused.task_id, refused.error)
            self._arrivals.expect(Value(refused.arguments))
        for value in values:
            self._arrivals.expect(value)
        for unfollowed in batch.refused_orders:
            self._connection.send(OrderResult(unfollowed.request_id, _refusal(unfollowed.error)))
        self._crew.pump()
        for order in batch.orders:
            self._obey(order, self._crew)

    def _record(self, batch: VerifiedBatch) -> None:
        """Write the decision down before anything of the batch is run; without a record nothing runs."""
        record: dict[str, AuditValue] = self._who() | {
            "key": batch.key_id,
            "sequence": batch.sequence,
            "envelope": batch.digest,
            "calls": len(batch.calls),
        }
        if self.draining:
            record["draining"] = True  # the calls were not taken
        if dry_runs := sum(call.dry_run for call in batch.calls):
            record["dry_runs"] = dry_runs  # of the calls
        if batch.programs:
            record["programs"] = [program.digest for program in batch.programs]
        if batch.orders:
            record["orders"] = [type(order).__name__ for order in batch.orders]
        if batch.refused_calls or batch.refused_orders:
            refused = [(call.task_id.hex(), call.error) for call in batch.refused_calls]
            refused += [(f"order {order.request_id}", order.error) for order in batch.refused_orders]
            record["refused"] = [f"{name}: {error.code}: {error}" for name, error in refused]
        self._server.record(record, batch.programs)

    def _accept(self, call: Call, program: Program, arguments: Value, values: Value | None, crew: Crew) -> None:
        table = self._server.tasks
        known = table.find(self.principal, call.task_id)
        if known is not None and self._adopt(known):
            return
        limits = self._limits
        # What was told and is not acknowledged counts as well, with room for acknowledgements that are on their way.
        unread = len(self._finished) + len(self._told)
        if (
            len(self._tasks) >= limits.tasks
            or unread >= 2 * limits.tasks
            or self._unread_bytes > MAX_PENDING_VALUES_BYTES
        ):
            self._tell_at_once(call.task_id, PolicyError(f"more than {limits.tasks} tasks are outstanding"))
            return
        task = Task(self.principal, call.task_id, self, program.digest, crew)
        table.add(task)
        self._tasks.add(task)
        work = task.work = Work(
            program.key,
            program.wire,
            b"",
            None,
            lambda done: self._server.finish(task, done),
            call.category,
            call.priority,
            call.timeout_s,
            call.memory_bytes,
            limits.cpu_s,
            MAX_OUTPUT_CHARS if limits.output_bytes is None else min(limits.output_bytes, MAX_OUTPUT_CHARS),
            call.broadcast,
            call.spread,
            call.dry_run,
            call.live_output,
            call.live_progress,
            limits.output_bytes,
        )
        if call.live_output or call.live_progress:
            work.hearing = Hearing(lambda report: _tell_live(task, report), work.output_bytes)
        self._fill(task, work, "arguments", arguments)
        if values is not None:
            self._fill(task, work, "values", values)
        if not task.missing:
            self._start(task)

    def _fill(self, task: Task, work: Work, name: str, value: Value) -> None:
        """Set a field of `work` now, or when its chunks have come: the task starts with the last of them."""
        if not isinstance(value.here, Blob):
            setattr(work, name, value.here)
            return

        def arrived(whole: bytes) -> None:
            setattr(work, name, whole)
            task.missing -= 1
            if not task.missing and task.crew is not None:
                self._start(task)
                task.crew.pump()

        value.waiting.append(arrived)
        task.missing += 1

    def _start(self, task: Task) -> None:
        if task.crew is None or task.work is None or task.done is not None:
            return
        if task.work.broadcast:
            task.crew.broadcast(task.work, lambda dones: self._server.finish(task, _all_of(dones)))
        else:
            task.crew.submit(task.work)

    def _adopt(self, task: Task) -> bool:
        """The client asks again for a task that we know: answer it, or tell it when it is done.

        Returns False when the task has not begun in the session that has it, which may be dead already without our
        knowing: it was taken from there and is to be started here.
        """
        if task.session is self:
            return True
        if task.session is not None:
            task.session._tasks.discard(task)  # noqa: SLF001 - another of ours
        if task.done is None and task.crew is not None and task.work is not None and task.crew.withdraw({task.work}):
            self._drop(task)
            return False
        self._server.tasks.adopt(task)
        task.session = self
        if task.done is None:
            self._tasks.add(task)
        else:
            self.finished(task, task.done)
        return True

    # --- outcomes -------------------------------------------------------------------------------------------------

    def finished(self, task: Task, done: Done) -> None:
        """Tell the client what became of a task, together with what else finishes in this turn of the loop."""
        self._tasks.discard(task)
        self._unread_bytes += len(done.value or b"")
        self._finished.append((task, done))
        self._flush_soon()

    def heard(self, task: Task, report: Printed | Progressed) -> None:
        """Tell the client, who asked for it, what a running task tells."""
        self._live.add(task.task_id, report)
        self._flush_soon()

    def _tell_at_once(self, task_id: bytes, error: SecfarmError) -> None:
        task = Task(self.principal, task_id, self)
        self._finished.append((task, Done(0, None, _refusal(error), 0.0, 0.0)))
        self._flush_soon()

    def _flush_soon(self) -> None:
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._server.loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_scheduled = False
        if self._notary is None or not self._connection.session.ready or not self._connection.writable:
            return  # on_writable comes back to it
        for news in self._live.take():
            self._connection.send(news)
        told, self._finished = self._finished, []
        messages, large = self._notary.results(told)
        for message in messages:
            self._connection.send(message)
        for blob, whole in large:
            self._connection.send_value(blob, whole)
        if told:
            self._told.extend(task for task, _ in told)
            self._connection.flush()  # the client need not wait for the record
            codes = {task.task_id.hex(): done.error.code if done.error else "ok" for task, done in told}
            self._server.audit("finished", self._who() | {"outcomes": codes})
        self._leave_if_drained()

    def _acknowledge(self, count: int) -> None:
        if not self._acknowledged <= count <= self._acknowledged + len(self._told):
            raise ProtocolError(f"{count} outcomes were acknowledged, {self._acknowledged + len(self._told)} were sent")
        while self._acknowledged < count:
            task = self._told.popleft()
            if task.done is not None:
                self._unread_bytes -= len(task.done.value or b"")
            self._server.tasks.forget(task)
            self._acknowledged += 1
        self._leave_if_drained()

    # --- orders ---------------------------------------------------------------------------------------------------

    def _obey(self, order: AnyOrder, crew: Crew) -> None:
        answer: object
        match order:
            case Cancel():
                answer = [task_id for task_id in order.task_ids if self._cancel(task_id)]
            case Kill():
                answer = crew.kill(order.category, _KILLED, dry_run=order.dry_run)
            case EndServer():
                self._server.end()
                answer = True
            case Status():
                answer = self._server.status()
            case Running():
                answer = crew.categories()
            case TakeBack():
                answer = self._give_back(order.task_ids, crew)
        self._connection.send(OrderResult(order.request_id, None, msgspec.msgpack.encode(answer)))

    def _cancel(self, task_id: bytes) -> bool:
        task = self._server.tasks.find(self.principal, task_id)
        if task is None or task.crew is None or task.work is None or task.done is not None:
            return False
        if not task.crew.cancel(task.work, _KILLED):
            self._server.finish(task, Done(0, None, _KILLED, 0.0, 0.0))
        return True

    def _give_back(self, task_ids: tuple[bytes, ...], crew: Crew) -> list[bytes]:
        found = [self._server.tasks.find(self.principal, task_id) for task_id in task_ids]
        own = {task.work: task for task in found if task is not None and task.crew is crew and task in self._tasks}
        given_back = [own[work] for work in crew.withdraw({work for work in own if work is not None})]
        for task in given_back:
            self._drop(task)
        return [task.task_id for task in given_back]

    def _drop(self, task: Task) -> None:
        """Forget a task that was taken out of its crew: it is to begin elsewhere."""
        self._tasks.discard(task)
        task.crew = task.session = None
        self._server.tasks.forget(task)

    # --- ends -----------------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Take no new work: the client hears that there are no workers, and goodbye once all is told."""
        self.draining = True
        if self._connection.session.ready:
            self._connection.send(Workers(0))
            self._flush_soon()

    def _leave_if_drained(self) -> None:
        if self.draining and not (self._tasks or self._finished or self._told):
            self._connection.close(Goodbyes.SHUTDOWN)

    def check_alive(self) -> None:
        """Cut the connection if nothing was heard for long: a living client pings."""
        if self._server.loop.time() - self._heard_s > IDLE_TIMEOUT_S:
            self._connection.abort()

    def abort(self) -> None:
        """End the connection and everything that runs for it."""
        self._end()
        self._connection.close(Goodbyes.SHUTDOWN)

    def _end(self) -> None:
        """Forget this session's tasks and kill what runs."""
        for task in (*self._tasks, *self._told, *(task for task, _ in self._finished)):
            self._server.tasks.forget(task)
        self._tasks.clear()
        self._told.clear()
        self._finished.clear()
        if self._crew is not None:
            self._crew.close()
            self._crew = None

    def _orphan(self, crew: Crew) -> None:
        now_s = self._server.clock()
        crew.stop_waiting()
        for task in [task for task in self._tasks if task.session is self]:
            work, its_crew = task.work, task.crew
            # A broadcast is of this session's workers: nobody can ask for it again.
            if work is not None and its_crew is not None and not work.broadcast and its_crew.runs(work):
                self._server.tasks.orphan(task, now_s)
            else:
                self._server.tasks.forget(task)
        for task in (*self._told, *(task for task, _ in self._finished)):
            if task.session is self:
                self._server.tasks.orphan(task, now_s)
        crew.close_when_idle()


def _tell_live(task: Task, report: Printed | Progressed) -> None:
    if task.session is not None:  # else nobody is there to hear it; the outcome holds the output
        task.session.heard(task, report)


def _refusal(error: SecfarmError) -> ErrorRecord:
    """What the client may hear of a refusal: one word. The audit record holds the reason."""
    return ErrorRecord(error.public, f"the server {error.public} it")


def _all_of(dones: list[Done]) -> Done:
    """One `Done` for a broadcast: a list of the workers' encoded values, or the first error."""
    failed = next((done for done in dones if done.error is not None), None)
    if failed is not None:
        return failed
    value = msgspec.msgpack.encode([done.value for done in dones])
    output = "".join(done.output for done in dones)[:MAX_OUTPUT_CHARS]
    return Done(0, value, None, min(done.started_s for done in dones), max(done.ended_s for done in dones), output)
