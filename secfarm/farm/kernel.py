"""The kernel: a client's set of servers, as a `concurrent.futures.Executor`.

A blocking façade over the background loop. `submit` captures, encodes and queues in the caller's thread; signing,
sending and hearing happen in the loop. Idea and names: lparallel's kernel, lfarm's make-kernel.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import itertools
import os
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final, Literal, ParamSpec, TypeVar, cast

from secfarm.disk.credentials import client_credentials
from secfarm.errors import ConfigError, KernelCreationError, KernelError, ValueTransferError
from secfarm.farm.channel import Channel
from secfarm.farm.connect import check_limit, connect, parse_addresses
from secfarm.farm.current import priority_of, set_kernel, task_settings, use_kernel
from secfarm.farm.dispatch import Dispatch
from secfarm.farm.future import Future, Options, Submission
from secfarm.farm.loop import background_loop, in_background, run_in_background
from secfarm.farm.shown import servers_html
from secfarm.farm.view import KernelView
from secfarm.limits import MAX_CATEGORY_CHARS
from secfarm.task import codec
from secfarm.task.capture import capture, refuse_values
from secfarm.task.payload import Kill, Running

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
    from types import TracebackType
    from typing import Self

    from secfarm.auth.base import Auth
    from secfarm.farm.connect import Given
    from secfarm.farm.hub import Hub
    from secfarm.sign.keys import SigningKey
    from secfarm.task.program import Program

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class WorkerRecord:
    """One worker as `Kernel.workers` shows it; `category` is None where it is idle."""

    server: str
    address: str
    python_version: str
    busy: bool
    category: str | None


Delivery = Literal["at-least-once", "at-most-once"]
_CHUNKS_PER_WORKER: Final = 4  # of map: enough to even out uneven items, few enough to keep the cost per item small


class Kernel(concurrent.futures.Executor):
    """A set of servers that runs tasks. A context manager: current inside its block, shut down at its end.

    Raises (on creation):
        ValueError: an address is malformed, or another argument; nothing was dialled.
        KernelCreationError: a server refused us, or is not the one that we know, or did not answer in time.
    """

    def __init__(
        self,
        addresses: Given = (),
        *,
        auth: Auth | None = None,
        key: SigningKey | str | os.PathLike[str] | None = None,
        name: str = "secfarm",
        listen: Given | None = None,
        connect_timeout_s: float | None = None,
        delivery: Delivery = "at-least-once",
    ) -> None:
        """Connect to every address, and wait until each has answered.

        Args:
            addresses: `"host:port"`, `"[::1]:port"`, `"host"` (port 7419), `("host", port)`, `"unix:/path"`,
                `"ssh://[user@]host[:port]"`; those of the configuration where none is given, here or by `listen`.
            auth: how to prove who we are; by default with the key.
            key: signs what is sent; by default the auth's own key or secret, or the configuration's.
            name: for people and logs.
            listen: addresses to listen on, for servers that dial in (`secfarm serve --dial`); with port 0 the system
                chooses one, see `listening`.
            connect_timeout_s: None keeps trying for ever. Who may dial in is waited for only where a number is given
                and no address: for the first that comes.
            delivery: whether a task whose session broke is sent again (and run once by a server that survived), or
                fails with `ConnectionLostError`.
        """
        if delivery not in ("at-least-once", "at-most-once"):
            raise ValueError(f'delivery is "at-least-once" or "at-most-once", not {delivery!r}')
        check_limit("connect_timeout_s", connect_timeout_s)
        parsed, listening = parse_addresses(addresses), parse_addresses(listen or (), listening=True)
        try:
            credentials = client_credentials(auth, key, os.environ)
        except ConfigError as error:
            raise KernelCreationError(str(error)) from error
        parsed = credentials.routed(parsed if parsed or listening else credentials.hosts)
        if not parsed and not listening:
            raise KernelCreationError(
                "no server is named; give addresses or listen=, set SECFARM_HOSTS or `hosts` of config.toml, or use "
                "local_kernel()"
            )
        self.name = name
        self._closed = self._inherited = False
        self._lock = threading.RLock()  # a signal's handler may submit as well
        self._task_ids = itertools.count()
        self._task_prefix = os.urandom(8)
        self._current = ExitStack()
        self._on_close = ExitStack()
        self._dispatch = Dispatch(background_loop(), at_most_once=delivery == "at-most-once")
        self._hub: Hub | None = None
        try:
            self._hub = self._opened(connect(self._dispatch, parsed, listening, credentials, name, connect_timeout_s))
        except BaseException:
            self.shutdown(wait=False)
            raise
        _not_ended.add(self)

    def _opened(self, opening: Coroutine[object, object, Hub | None]) -> Hub | None:
        return run_in_background(opening)  # secfarm.aio can give it up

    # --- submitting -----------------------------------------------------------------------------------------------

    def submit(self, task: Callable[P, T] | str, /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Send a task and return its future at once.

        Args:
            task: a lambda, a deftask, a function, or the name of a function on the server.
            args: values that can travel (docs/codec.md).

        Raises:
            InvalidTaskError: it cannot travel; nothing was sent.
            ValueTransferError: an argument cannot.
            KernelError: the kernel was shut down.
        """
        return cast("Future[T]", self._submit(task, args, kwargs, None))

    def _submit(
        self, task: object, args: tuple[object, ...], kwargs: dict[str, object], options: Options | None
    ) -> Future[object]:
        program, values = _captured(task)
        return self._send(task, program, codec.encode_call(args, kwargs), values, options)

    def _send(
        self,
        task: object,
        program: Program,
        arguments: bytes,
        values: bytes | None,
        options: Options | None,
        *,
        spread: bool = False,
        dry_run: bool = False,
    ) -> Future[object]:
        submission = Submission(
            self._task_prefix + next(self._task_ids).to_bytes(8, "big"),
            program,
            arguments,
            values,
            task_settings(task, options),
            self._recall,
            spread=spread,
            dry_run=dry_run,
        )
        with self._lock:  # of a submit and a shutdown, one sees what the other has done
            if not self._closed:
                self._dispatch.submit(submission)
                return submission.future
        raise KernelError(f"kernel {self.name!r} {self._why_closed()}; the task was not sent")

    def run(
        self, task: Callable[..., T] | str, /, *args: object, timeout_s: float | None = None, **kwargs: object
    ) -> T:
        """Submit, wait, and return the result; `timeout_s` is the task's limit, after which it is killed."""
        options = None if timeout_s is None else replace(task_settings(task, None), timeout_s=timeout_s)
        return cast("T", self._submit(task, args, kwargs, options).result())

    def dry_run(self, task: Callable[..., object] | str, /) -> Future[dict[str, str]]:
        """Ask a server whether `task` would run there, by everything but calling it.

        The result says the `digest` of the program and the `python_version` of the server; errors are those of a call
        that is refused, lacks modules or does not compile there.

        Raises:
            InvalidTaskError: it cannot travel; nothing was sent.
        """
        program, values = _captured(task)
        future = self._send(task, program, codec.encode_call((), {}), values, None, dry_run=True)
        return cast("Future[dict[str, str]]", future)

    def map(
        self,
        fn: Callable[..., T] | str,
        *iterables: Iterable[object],
        timeout: float | None = None,
        chunksize: int | None = None,
    ) -> Iterator[T]:
        """Return the results of `fn` over `zip(*iterables)`, in order; the meaning is `Executor.map`'s.

        Args:
            timeout: seconds from now until the last result must be there, else `TimeoutError`.
            chunksize: items in one task; None chooses so that each worker has a few.
        """
        return self._map(fn, iterables, timeout, chunksize, None)

    def _map(
        self,
        fn: Callable[..., T] | str,
        iterables: tuple[Iterable[object], ...],
        timeout_s: float | None,
        chunksize: int | None,
        options: Options | None,
    ) -> Iterator[T]:
        return self._in_order(self._send_chunks(fn, iterables, chunksize, options), timeout_s)

    def _send_chunks(
        self,
        fn: object,
        iterables: tuple[Iterable[object], ...],
        chunksize: int | None,
        options: Options | None,
    ) -> list[Future[object]]:
        if chunksize is not None and chunksize < 1:
            raise ValueError(f"chunksize is at least 1, not {chunksize}")
        items = list(zip(*iterables))  # noqa: B905 - the shortest ends it, as in Executor.map
        size = chunksize or self._chunk_size(len(items), task_settings(fn, options))
        program, values = _captured(fn)
        futures = []
        for start in range(0, len(items), size):
            arguments = codec.encode_call((items[start : start + size],), {})
            futures.append(self._send(fn, program, arguments, values, options, spread=True))
        return futures

    def _in_order(self, futures: list[Future[object]], timeout_s: float | None) -> Iterator[T]:
        """Yield the items of the chunks' results; when the reader stops, or one fails, the others are withdrawn."""
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s

        def results() -> Iterator[T]:
            try:
                futures.reverse()
                while futures:
                    left_s = None if deadline_s is None else max(0.0, deadline_s - time.monotonic())
                    error = futures[-1].exception(left_s)
                    future = futures.pop()
                    chunk = list(cast("Sequence[T]", future.result() if error is None else future.before))
                    del future
                    chunk.reverse()
                    while chunk:
                        yield chunk.pop()  # the reader alone holds it then
                    if error is not None:
                        raise error
            finally:
                if futures:
                    self._dispatch.abandon([future for future in futures if not future.done()])

        return results()

    def _chunk_size(self, items: int, options: Options) -> int:
        if options.timeout_s is not None:
            return 1  # the limit is meant for one item
        return max(1, -(-items // (_CHUNKS_PER_WORKER * max(1, self.worker_count))))

    def broadcast(self, task: Callable[..., T] | str, /, *args: object, **kwargs: object) -> list[T]:
        """Run a task once on every worker and return the results; what its `global` statements define stays there."""
        if self._closed:
            raise KernelError(f"kernel {self.name!r} {self._why_closed()}; the task was not broadcast")
        program, values = _captured(task)
        submission = Submission(
            b"",
            program,
            codec.encode_call(args, kwargs),
            values,
            task_settings(task, None),
            self._recall,
            broadcast=True,
        )
        return cast("list[T]", run_in_background(self._dispatch.broadcast(submission)))

    def kill(self, category: str, *, dry_run: bool = False) -> int:
        """Kill the running tasks of a category, by killing their processes, and return how many there were.

        Pending tasks stay. Needs the `kill` grant of every server. Source: lparallel's kill-tasks.

        Raises:
            TypeError: it is no category; nothing was sent.
            TaskRefusedError: a server's policy does not let us.
        """
        if not isinstance(category, str):
            raise TypeError(f"a category is a str, not {category!r}; nothing was killed")
        if len(category) > MAX_CATEGORY_CHARS:
            return 0  # no task has one
        answers = run_in_background(self._dispatch.order_all(partial(Kill, category=category, dry_run=dry_run), int))
        return sum(cast("list[int]", answers))

    def categories_running(self) -> list[str | None]:
        """Return what each worker runs for this kernel now, by category; None for an idle one."""
        answers = run_in_background(self._dispatch.order_all(Running, list[str | None]))
        return [category for answer in cast("list[list[str | None]]", answers) for category in answer]

    def workers(self) -> list[WorkerRecord]:
        """Return a record of each worker of the servers that are connected now."""
        links = self._dispatch.connected
        answers = run_in_background(self._dispatch.order_all(Running, list[str | None]))
        return [
            WorkerRecord(link.server_name, str(link.address), link.python_version, category is not None, category)
            for link, answer in zip(links, cast("list[list[str | None]]", answers), strict=False)
            for category in answer
        ]

    def options(
        self,
        *,
        timeout_s: float | None = None,
        category: str | None = None,
        priority: Literal["default", "low"] | None = None,
        memory_bytes: int | None = None,
        on_output: Callable[[str, str], object] | None = None,
        on_progress: Callable[[float, float, str], object] | None = None,
    ) -> KernelView:
        """Return a view of this kernel whose tasks have these settings; a view of a view has those of both.

        Args:
            timeout_s: a task that runs longer is killed.
            category: the name that `kill` knows it by.
            memory_bytes: what it may allocate.
            on_output: called with "stdout" or "stderr" and the text that a task has printed, while it runs.
            on_progress: called with what a task gives to `secfarm.progress`.

        Both are called in a thread of this kernel's own, in order, the last time before the future is done.

        Raises:
            ValueError, TypeError: a setting is none that a server would take.
        """
        settings: dict[str, object] = {
            "timeout_s": timeout_s,
            "category": category,
            "priority": None if priority is None else priority_of(priority),
            "memory_bytes": memory_bytes,
            "on_output": on_output,
            "on_progress": on_progress,
        }
        return KernelView(self, settings)

    def channel(self, *, fixed_capacity: int | None = None) -> Channel:
        """Return a channel whose tasks run on this kernel."""
        return Channel(self, fixed_capacity=fixed_capacity)

    @property
    def worker_count(self) -> int:
        """Workers of all servers that are connected now."""
        return self._dispatch.worker_count

    @property
    def listening(self) -> list[str]:
        """The addresses at which servers may dial in, with the ports that the system chose."""
        return [] if self._hub is None else [str(address) for address in self._hub.addresses]

    @property
    def closed(self) -> bool:
        """Whether it was shut down."""
        return self._closed

    def _why_closed(self) -> str:
        if self._inherited:
            return "is that of the process that forked this one, which has to make its own"
        return "was shut down"

    def on_close(self, callback: Callable[[], object]) -> None:
        """Call `callback` when the kernel has been shut down; the last one registered comes first."""
        self._on_close.callback(callback)

    # --- ending ---------------------------------------------------------------------------------------------------

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002 - Executor's
        """Take no more tasks; the meaning of the arguments is `Executor.shutdown`'s. Twice is no error."""
        if self._inherited:
            return
        with self._lock:
            first, self._closed = not self._closed, True
        if not first and not wait:
            return
        ending = asyncio.run_coroutine_threadsafe(self._end(cancel_futures=cancel_futures), background_loop())
        if wait and not in_background():
            ending.result()
            self._on_close.close()
        else:
            ending.add_done_callback(lambda _: threading.Thread(target=self._on_close.close).start())

    async def _end(self, *, cancel_futures: bool) -> None:
        if cancel_futures:
            for submission in self._dispatch.withdraw_waiting():
                submission.future.withdrawn()
        await self._dispatch.until_idle()
        if self._hub is not None:
            self._hub.close()
        await self._dispatch.close()
        _not_ended.discard(self)

    def _recall(self, submission: Submission) -> concurrent.futures.Future[bool]:
        return asyncio.run_coroutine_threadsafe(self._dispatch.cancel(submission), background_loop())

    def __enter__(self) -> Self:
        self._current.enter_context(use_kernel(self))
        before = set_kernel(self)  # threads that are started inside the block see it as well
        self._current.callback(lambda: set_kernel(before))
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        self._current.close()
        # Nobody will look at what is under way, and a server that is gone would be waited for.
        if exc_type is not None and not self._inherited:
            error = KernelError(f"kernel {self.name!r} was left by {exc_type.__name__}; the task has no result")
            background_loop().call_soon_threadsafe(self._dispatch.drop, error)
        self.shutdown(wait=True)

    def __repr__(self) -> str:
        servers = ", ".join(self._servers())
        return f"<secfarm.Kernel {self.name!r} on {servers}: {self.worker_count} workers{', closed' * self._closed}>"

    def __rich_repr__(self) -> Iterator[tuple[str, object]]:
        """What rich shows (rich.pretty)."""
        yield from (("name", self.name), ("servers", self._servers()), ("workers", self.worker_count))
        if self._closed:
            yield "closed", True

    def _repr_html_(self) -> str:
        title = f"secfarm.Kernel {self.name}: {self.worker_count} workers{', closed' * self._closed}"
        return servers_html(title, [*self._dispatch.links, *self._dispatch.connected])

    def _servers(self) -> list[str]:
        return [*(str(link.address) for link in self._dispatch.links), *(f"dial-in {one}" for one in self.listening)]


_not_ended: Final[set[Kernel]] = set()


@atexit.register
def _end_all() -> None:
    """Let what was submitted finish before the interpreter ends, as the executors of the library do."""
    for kernel in list(_not_ended):
        kernel.shutdown()


def _disown() -> None:
    """A forked child has the sessions' keys, but not the sessions: what it did with them would break the parent's."""
    for kernel in _not_ended:
        kernel._closed = kernel._inherited = True  # noqa: SLF001 - not by `shutdown`, which would end the parent's
        kernel._lock = threading.RLock()  # noqa: SLF001 - a thread that is not here may have held it
    _not_ended.clear()


os.register_at_fork(after_in_child=_disown)


def make_kernel(
    addresses: Given = (),
    *,
    auth: Auth | None = None,
    key: SigningKey | str | os.PathLike[str] | None = None,
    name: str = "secfarm",
    listen: Given | None = None,
    connect_timeout_s: float | None = None,
    delivery: Delivery = "at-least-once",
) -> Kernel:
    """Return a kernel, as lfarm's make-kernel does; it does not become the current one."""
    return Kernel(
        addresses,
        auth=auth,
        key=key,
        name=name,
        listen=listen,
        connect_timeout_s=connect_timeout_s,
        delivery=delivery,
    )


def _captured(task: object) -> tuple[Program, bytes | None]:
    captured = capture(task)
    if not captured.values:
        return captured.program, None
    try:
        return captured.program, codec.encode(list(captured.values))
    except ValueTransferError as error:
        raise refuse_values(captured, error, codec.encode) from error
