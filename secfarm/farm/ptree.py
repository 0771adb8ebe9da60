"""Ptrees: values that depend on each other, computed in parallel in the order that their dependencies allow.

Source: lparallel (src/ptree.lisp): make-ptree, ptree-fn, call-ptree, ptree-computed-p, check-ptree, clear-ptree,
clear-ptree-errors.
"""

from __future__ import annotations

import queue
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from secfarm.errors import PtreeError, RedefinedNodeError, UndefinedNodeError
from secfarm.farm.current import check_kernel

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator

    from secfarm.farm.future import Future
    from secfarm.farm.kernel import Kernel


@dataclass(slots=True, eq=False)
class _Node:
    """One value: the task that computes it from those of `args`, and its future from the first call on."""

    id: Hashable
    args: tuple[Hashable, ...]
    task: Callable[..., object] | str
    future: Future[object] | None = field(default=None, repr=False)

    @property
    def computed(self) -> bool:
        future = self.future
        return future is not None and future.done() and not future.cancelled() and future.exception() is None

    @property
    def failed(self) -> bool:
        return self.future is not None and self.future.done() and not self.computed


class Ptree:
    """A graph of values without cycles. Safe for several threads.

    >>> tree = Ptree()
    >>> tree.define("area", ["width", "height"], lambda width, height: width * height)
    >>> tree.define("width", ["border"], lambda border: 7 + 2 * border)
    >>> tree.define("height", ["border"], lambda border: 5 + 2 * border)
    >>> tree.define("border", [], lambda: 1)
    >>> from secfarm import local_kernel
    >>> with local_kernel(workers=1):
    ...     tree.call("area")
    63
    """

    def __init__(self) -> None:
        self._nodes: dict[Hashable, _Node] = {}
        self._lock = threading.RLock()

    def define(self, id: Hashable, args: Iterable[Hashable], task: Callable[..., object] | str) -> None:  # noqa: A002
        """Define a node: `task` computes it from the values of the nodes `args`, which may be defined later.

        Raises:
            RedefinedNodeError: there is a node of that id.
            TypeError: `args` is text, which would be read as one id a letter, or an id is not hashable.
        """
        if isinstance(args, str | bytes):
            raise TypeError(f"args of node {id!r} is the text {args!r}; write a list of ids: [{args!r}]")
        node = _Node(id, tuple(args), task)
        hash(node.args)
        with self._lock:
            if id in self._nodes:
                raise RedefinedNodeError(f"node {id!r} is defined already; it was left as it is")
            self._nodes[id] = node

    def call(self, id: Hashable) -> object:  # noqa: A002 - the contract's name
        """Return the value of a node, computed on the current kernel with all that it needs and that is not yet there.

        A value is computed once. When a node fails its error is raised, now and by each later call that needs it, until
        `clear_errors`; nodes that run at that time go on, and what they give is kept.

        Raises:
            UndefinedNodeError: it needs a node that was never defined; nothing was computed.
            PtreeError: it needs itself; nothing was computed.
            NoKernelError: there is something to compute, and no current kernel.
        """
        with self._lock:
            node = self._node(id)
            if node.computed and node.future is not None:
                return node.future.result()
            order = self._in_order([id], all_nodes=False)
            for needed in order:
                if needed.failed and needed.future is not None:
                    needed.future.result()
            run = _Run(self._lock, check_kernel(), self._nodes, order)
        return run.finish(node)

    def computed(self, id: Hashable) -> bool:  # noqa: A002 - the contract's name
        """Whether the node has its value; an error is none.

        Raises:
            UndefinedNodeError: there is no such node.
        """
        with self._lock:
            return self._node(id).computed

    def check(self) -> None:
        """Make sure that every node that is named is defined, and that none needs itself.

        Raises:
            UndefinedNodeError: one is not defined.
            PtreeError: there is a cycle.
        """
        with self._lock:
            self._in_order(self._nodes, all_nodes=True)

    def clear(self) -> None:
        """Forget all values and errors, so that calls compute anew; what is being computed is cancelled."""
        with self._lock:
            futures = [node.future for node in self._nodes.values() if node.future is not None]
            for node in self._nodes.values():
                node.future = None
        for future in futures:
            future.cancel()

    def clear_errors(self) -> None:
        """Forget the errors, so that calls go on from the values that are there."""
        with self._lock:
            for node in self._nodes.values():
                if node.failed:
                    node.future = None

    def __repr__(self) -> str:
        with self._lock:
            computed = sum(node.computed for node in self._nodes.values())
            return f"<secfarm.Ptree: {computed} of {len(self._nodes)} nodes computed>"

    def _node(self, id: Hashable, user: _Node | None = None) -> _Node:  # noqa: A002 - the contract's name
        node = self._nodes.get(id)
        if node is None:
            needed = "" if user is None else f" and node {user.id!r} needs it"
            raise UndefinedNodeError(f"node {id!r} was never defined{needed}; nothing was computed")
        return node

    def _in_order(self, ids: Iterable[Hashable], *, all_nodes: bool) -> list[_Node]:
        """Return these nodes with all that they need, each after what it needs; computed ones only for `all_nodes`."""
        order: list[_Node] = []
        seen: set[Hashable] = set()
        path: dict[Hashable, None] = {}  # from the first one to where we are
        stack: list[tuple[_Node | None, Iterator[Hashable]]] = [(None, iter(ids))]
        while stack:
            user, wanted = stack[-1]
            for id in wanted:  # noqa: A001 - the contract's name
                if id in path:
                    cycle = [*list(path)[list(path).index(id) :], id]
                    raise PtreeError(f"a node needs itself: {' -> '.join(map(repr, cycle))}; nothing was computed")
                if id in seen:
                    continue
                seen.add(id)
                node = self._node(id, user)
                if all_nodes or not node.computed:
                    path[id] = None
                    stack.append((node, iter(node.args)))
                    break
            else:
                stack.pop()
                if user is not None:
                    del path[user.id]
                    order.append(user)
        return order


class _Run:
    """One call: what it waits for, and what it starts when that is there."""

    def __init__(self, lock: threading.RLock, kernel: Kernel, nodes: dict[Hashable, _Node], order: list[_Node]) -> None:
        """Start what needs nothing else.

        Args:
            order: the nodes to compute, each after what it needs.
        """
        self._lock = lock
        self._kernel = kernel
        # Our own, so that what somebody clears or defines meanwhile is not ours.
        self._futures = {arg: nodes[arg].future for node in order for arg in node.args}
        self._waiting: dict[Hashable, int] = {}
        self._users: dict[Hashable, list[_Node]] = {}
        self._done: queue.SimpleQueue[_Node] = queue.SimpleQueue()
        missing = {node.id for node in order}
        for node in order:
            needs = missing.intersection(node.args)
            self._waiting[node.id] = len(needs)
            for arg in needs:
                self._users.setdefault(arg, []).append(node)
            if not needs:
                self._start(node)

    def _start(self, node: _Node) -> None:
        with self._lock:
            if node.future is None:
                values = [self._value(arg) for arg in node.args]
                node.future = self._kernel.submit(node.task, *values)
            future = self._futures[node.id] = node.future
        future.add_done_callback(lambda _: self._done.put(node))

    def _value(self, id: Hashable) -> object:  # noqa: A002 - the contract's name
        future = self._futures[id]
        return None if future is None else future.result()

    def finish(self, wanted: _Node) -> object:
        """Wait for the node and return its value; the first error of any that it needs is raised."""
        while True:
            node = self._done.get()
            value = self._value(node.id)
            if node is wanted:
                return value
            for user in self._users.get(node.id, ()):
                self._waiting[user.id] -= 1
                if not self._waiting[user.id]:
                    self._start(user)
