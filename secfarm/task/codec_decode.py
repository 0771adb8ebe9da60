"""Typed nodes back to values. Imports nothing, calls no constructor of a user's class. Format: docs/codec.md.

Containers are made empty, entered in the table and then filled, so that a cycle finds its beginning. Where a mutable
container holds a tuple that is not complete yet, that place is filled at the end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Final, TypeAlias, cast

from secfarm.limits import MAX_DEPTH
from secfarm.task.codec_kinds import (
    FEW,
    FROZENSET,
    INT,
    LIST,
    MAP,
    MAX_HEIGHT,
    PAIRS,
    RECORD,
    REF,
    SCALARS,
    SET,
    TEXT,
    TUPLE,
    Malformed,
    Node,
    all_of,
)

__all__ = ["Make", "TreeDecoder", "Underway", "parts", "payload", "text", "whole"]

# Makes the value of a node that stands at a depth.
Make: TypeAlias = "Callable[[TreeDecoder, Node, int], object]"


class _Absent:
    """Stands in a slot of the table until its value is made; `slot` is the one that is underway and awaited."""

    __slots__ = ("slot",)

    def __init__(self, slot: int | None) -> None:
        self.slot = slot


_UNMET: Final = _Absent(None)
_MAX_HASHED: Final = 20_000_000  # nodes that all hashes of one value walk: some seconds
_MAX_WEIGHED_DEPTH: Final = 400


class Underway(Exception):  # noqa: N818 - a signal between builders, not an error
    """A reference to a tuple (or its like) that stands around this place and is not complete yet."""

    def __init__(self, slot: int) -> None:
        super().__init__("a tuple contains itself")
        self.slot = slot


class TreeDecoder:
    """One walk over the nodes of one value: its table of shared nodes, its table of classes, its root."""

    __slots__ = (
        "_budget",
        "_built",
        "_heights",
        "_kept",
        "_later",
        "_slots",
        "_stuck",
        "_table",
        "_weights",
        "classes",
    )

    def __init__(self, table: Sequence[object] = (), classes: list[object] | None = None) -> None:
        self.classes = classes or []  # entries; codec_records replaces each by what it means when it is first met
        self._table = table
        self._built: list[object] = [_UNMET] * len(table)
        self._slots = {id(node): slot for slot, node in enumerate(table)} if table else {}
        self._later: list[Callable[[], None]] = []
        self._stuck: dict[int, list[int]] = {}  # slot that is underway: slots that need it
        self._heights: dict[int, int] = {}
        self._kept: list[object] = []  # those in `_heights`: an id must stay theirs
        self._weights: dict[int, int] = {}  # by slot
        self._budget = _MAX_HASHED

    def root(self, node: object, depth: int) -> object:
        """Return the value of the root node; `depth` is below 0 where outer levels do not count.

        Raises:
            Malformed: no encoder of ours makes such nodes.
        """
        value = self.build(node, depth)
        for finish in self._later:  # may grow meanwhile
            finish()
        return value

    def build(self, node: object, depth: int) -> object:
        """Return the value of a node that stands inside `depth` containers."""
        if type(node) in SCALARS:
            return node
        if type(node) is not list or not node or type(node[0]) is not int:
            raise Malformed("a typed node is an array that begins with its kind")
        if (make := CONTAINERS.get(node[0])) is None:
            if node[0] == REF:
                return self._shared(node, depth)
            if (leaf := LEAVES.get(node[0])) is not None:
                return leaf(node)
            if (make := _rarer(node[0])) is None:
                raise Malformed(f"there is no kind {node[0]}")
        if depth >= MAX_DEPTH:
            raise Malformed(f"it is nested deeper than {MAX_DEPTH} containers")
        return make(self, node, depth + 1)

    def born(self, node: Node, value: object) -> None:
        """Let references find `value`, the empty container of `node`, before it is filled."""
        if self._slots and (slot := self._slots.get(id(node))) is not None:
            self._built[slot] = value

    def later(self, finish: Callable[[], None]) -> None:
        """Have `finish` called when every tuple is complete."""
        self._later.append(finish)

    def items(self, node: Node, depth: int, *, start: int = 1) -> list[object]:
        """Return the values of the node's items from `start`, for a container that cannot be filled later."""
        items = node[start:]
        return (
            items
            if len(items) > FEW and all_of(SCALARS, items)
            else [item if type(item) in SCALARS else self.build(item, depth) for item in items]
        )

    def fill_list(self, target: list[object] | deque[object], depth: int) -> None:
        """Replace the nodes in `target` by their values."""
        if len(target) > FEW and all_of(SCALARS, target):
            return
        for index, item in enumerate(target):
            if type(item) in SCALARS:
                continue
            try:
                target[index] = self.build(item, depth)
            except Underway:
                self.later(partial(self._put, target, index, item, depth))

    def fill_map(self, target: dict[object, object], depth: int) -> None:
        """Replace the nodes among the values of `target` by their values."""
        if not all_of(SCALARS, target):
            raise Malformed("the keys of a map are scalars")
        if len(target) > FEW and all_of(SCALARS, target.values()):
            return
        for key, item in target.items():
            if type(item) in SCALARS:
                continue
            try:
                target[key] = self.build(item, depth)
            except Underway:
                target[key] = None
                self.later(partial(self._put, target, key, item, depth))

    def fill_pairs(self, target: dict[object, object], nodes: Node, depth: int, start: int = 1) -> None:
        """Add the pairs from `start` on; where a key is not complete yet, the rest waits, so that order is kept."""
        for index in range(start, len(nodes) - 1, 2):
            self.weigh_key(nodes[index])
            try:
                key, item = self.build(nodes[index], depth), self.build(nodes[index + 1], depth)
            except Underway:
                self.later(partial(self.fill_pairs, target, nodes, depth, index))
                return
            if key in target:
                raise Malformed("a dict has the same key twice")
            target[key] = item

    def fill_set(self, target: set[object], nodes: Node, depth: int) -> None:
        """Add the elements."""
        self.weigh_keys(nodes)
        try:
            target.update(self.items(nodes, depth))
        except Underway:
            self.later(partial(self.fill_set, target, nodes, depth))
            return
        if len(target) != len(nodes) - 1:
            raise Malformed("a set has the same element twice")

    def weigh_key(self, node: object) -> None:
        """Count what a hash of the node's value has to walk, and refuse what no encoder's process could have hashed.

        A tuple has its hash worked out anew each time: one that holds another twice, which holds another twice, and so
        on, takes exponential time. Without a table nothing is shared, and a hash is no longer than its bytes.
        """
        if self._table and type(node) is list:
            self._budget -= self._weigh(node, 0)
            if self._budget < 0:
                raise Malformed("the keys of a dict or the elements of a set share too much")

    def weigh_keys(self, nodes: Node) -> None:
        """The same of the elements of a set's node."""
        if self._table:
            for node in nodes[1:]:
                self.weigh_key(node)

    def _weigh(self, node: object, depth: int) -> int:
        if type(node) is not list:
            return 1
        if depth > _MAX_WEIGHED_DEPTH:
            raise Malformed("a key is nested too deeply")
        if node[:1] == [REF]:
            slot = node[1] if len(node) == 2 else None  # noqa: PLR2004 - kind and slot
            if type(slot) is not int or not 0 <= slot < len(self._table):
                raise Malformed("a reference points outside of the table")
            if slot not in self._weights:
                self._weights[slot] = 1  # of a cycle, which is no tuple's
                self._weights[slot] = self._weigh(self._table[slot], depth + 1)
            return self._weights[slot]
        return min(1 + sum([self._weigh(item, depth + 1) for item in node]), 2 * _MAX_HASHED)

    def note_height(self, value: object, parts: Iterable[object]) -> None:
        """The encoder's bound on tuples in tuples, kept here too; without a table the depth bounds them."""
        if not self._slots:
            return
        inner = [self._heights.get(id(item), 1) for item in parts if isinstance(item, tuple | slice)]
        if not inner:
            return
        height = 1 + max(inner)
        if height > MAX_HEIGHT:
            raise Malformed(f"tuples are nested deeper than {MAX_HEIGHT}")
        self._heights[id(value)] = height
        self._kept.append(value)

    def _shared(self, node: Node, depth: int) -> object:
        slot = node[1] if len(node) == 2 else None  # noqa: PLR2004 - kind and slot
        if type(slot) is not int or not 0 <= slot < len(self._table):
            raise Malformed("a reference points outside of the table")
        value = self._built[slot]
        if isinstance(value, _Absent):
            if (awaited := value.slot) is not None:
                raise Underway(awaited)
            return self._make(slot, depth)
        return value

    def _make(self, slot: int, depth: int) -> object:
        self._built[slot] = _Absent(slot)
        try:
            value = self._built[slot] = self.build(self._table[slot], depth)
        except Underway as underway:
            if underway.slot == slot:
                raise Malformed("a tuple contains itself") from None
            # Not tried again before the other is complete: many references to it would each cost its whole size.
            # Those that wait for this one wait for the other, too: what is waited for is always being built.
            for waiting in (slot, *self._stuck.pop(slot, ())):
                self._built[waiting] = _Absent(underway.slot)
                self._stuck.setdefault(underway.slot, []).append(waiting)
            raise
        for waiting in self._stuck.pop(slot, ()):
            self._built[waiting] = _UNMET
        return value

    def _put(self, target: object, place: object, node: object, depth: int) -> None:
        cast("dict[object, object]", target)[place] = self.build(node, depth)


def _rarer(kind: int) -> Make | None:
    # Loaded when first needed: the modules of these types would slow the start of every worker.
    from secfarm.task import codec_records, codec_types

    return codec_records.make_record if kind == RECORD else codec_types.MAKERS.get(kind)


def _list(walk: TreeDecoder, node: Node, depth: int) -> list[object]:
    made = node[1:]
    walk.born(node, made)
    walk.fill_list(made, depth)
    return made


def _tuple(walk: TreeDecoder, node: Node, depth: int) -> tuple[object, ...]:
    made = tuple(walk.items(node, depth))
    walk.note_height(made, made)
    return made


def _map(walk: TreeDecoder, node: Node, depth: int) -> dict[object, object]:
    if len(node) != 2 or type(node[1]) is not dict:  # noqa: PLR2004 - kind and map
        raise Malformed("a map node holds one map")
    made = node[1].copy()
    walk.born(node, made)
    walk.fill_map(made, depth)
    return made


def _pairs(walk: TreeDecoder, node: Node, depth: int) -> dict[object, object]:
    if not len(node) % 2:
        raise Malformed("a key lacks its value")
    made: dict[object, object] = {}
    walk.born(node, made)
    walk.fill_pairs(made, node, depth)
    return made


def _set(walk: TreeDecoder, node: Node, depth: int) -> set[object]:
    made: set[object] = set()
    walk.born(node, made)
    walk.fill_set(made, node, depth)
    return made


def _frozenset(walk: TreeDecoder, node: Node, depth: int) -> frozenset[object]:
    walk.weigh_keys(node)
    made = frozenset(walk.items(node, depth))
    if len(made) != len(node) - 1:
        raise Malformed("a set has the same element twice")
    return made


def payload(node: Node) -> bytes:
    """Return the bytes that are a leaf's only item."""
    if len(node) != 2 or type(node[1]) is not bytes:  # noqa: PLR2004 - kind and bytes
        raise Malformed("a node of this kind holds one byte string")
    return node[1]


def _int(node: Node) -> int:
    return int.from_bytes(payload(node), "big", signed=True)


def _text(node: Node) -> str:
    return payload(node).decode("utf-8", "surrogatepass")


def parts(node: Node, count: int) -> list[Any]:
    """Return the node's items after its kind; whether they are of the right types, who asks finds out."""
    if len(node) != count + 1:
        raise Malformed(f"a node of kind {node[0]} has {count} items")
    return node[1:]


def whole(node: object) -> int:
    """Return an int from its msgpack form or its node."""
    if type(node) is int:
        return node
    if type(node) is list and node[:1] == [INT]:
        return _int(node)
    raise Malformed("an int is needed here")


def text(node: object) -> str:
    """Return a str from its msgpack form or its node."""
    if type(node) is str:
        return node
    if type(node) is list and node[:1] == [TEXT]:
        return _text(node)
    raise Malformed("a text is needed here")


LEAVES: Final[dict[int, Callable[[Node], object]]] = {INT: _int, TEXT: _text}
CONTAINERS: Final[dict[int, Make]] = {
    LIST: _list,
    TUPLE: _tuple,
    MAP: _map,
    PAIRS: _pairs,
    SET: _set,
    FROZENSET: _frozenset,
}
