"""Values to typed nodes: a walk that keeps exact types, order, shared references and cycles.

The result holds nothing but what msgpack carries exactly. No code of the value's own runs. Format: docs/codec.md.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final, cast

from secfarm.limits import MAX_DEPTH
from secfarm.task.codec_kinds import (
    FROZENSET,
    INT,
    LIST,
    MAP,
    PAIRS,
    REF,
    SCALARS,
    SET,
    TEXT,
    TUPLE,
    CannotTravel,
    Node,
    kinds_of,
)

__all__ = ["TreeEncoder"]

_NARROW: Final = SCALARS - {int, str}
_SHOWN_CHARS: Final = 40  # of a key in an error's path
_TOO_DEEP: Final = f"is nested deeper than {MAX_DEPTH} containers"


class TreeEncoder:
    """One walk over one value (or over a call's arguments, which share their references).

    Args:
        wide: whether ints over 64 bits and texts with lone surrogates are looked for, item by item.
    """

    __slots__ = ("_flat", "_heights", "_kept", "_nodes", "_slots", "classes")

    def __init__(self, *, wide: bool = False) -> None:
        self._flat = _NARROW if wide else SCALARS
        self._nodes: dict[int, Node] = {}  # by id of the value
        self._slots: dict[int, int] = {}  # id of a value met twice: its place in the table
        self._heights: dict[int, int] = {}  # of tuples that hold tuples
        self._kept: list[object] = []  # made here: an id must not be given to another object meanwhile

    def finish(self, root: object) -> list[object]:
        """Return `[root]` or `[root, table]`: nodes that were met twice move into the table."""
        table: list[object] = []
        for ident in self._slots:
            node = self._nodes[ident]
            table.append(node.copy())
            node[:] = (REF, len(table) - 1)
        return [root, table] if table else [root]

    def node(self, value: object, depth: int) -> object:
        """Return the node of `value`, which stands inside `depth` containers.

        Raises:
            CannotTravel: it, or something in it, is of a type without a wire form.
        """
        kind = type(value)
        if kind in self._flat:
            return value
        if (leaf := LEAVES.get(kind)) is not None:
            return leaf(value)
        if (fill := CONTAINERS.get(kind)) is None:
            raise CannotTravel(f"is of type {kind.__module__}.{kind.__qualname__}, which has no wire form")
        ident = id(value)
        if ident in self._nodes:
            return [REF, self._slots.setdefault(ident, len(self._slots))]
        if depth >= MAX_DEPTH:
            raise CannotTravel(_TOO_DEEP)
        node: Node = []
        self._nodes[ident] = node
        fill(self, node, value, depth + 1)
        return node

    def items(self, node: Node, values: Collection[object], depth: int, *, step: str = "[{}]") -> None:
        """Append the nodes of `values`; `step` names one of them in an error's path."""
        if kinds_of(values) <= self._flat:
            node.extend(values)
            return
        flat, start = self._flat, len(node)
        try:
            for item in values:
                node.append(item if type(item) in flat else self.node(item, depth))
        except CannotTravel as trouble:
            trouble.steps.append(step.format(len(node) - start))
            raise

    def mapping(self, node: Node, value: dict[object, object], depth: int) -> None:
        """Append a dict: one msgpack map when its keys allow, else pairs."""
        if not kinds_of(value) <= self._flat:
            node.append(PAIRS)
            self.pairs(node, value, depth)
            return
        flat = self._flat
        if kinds_of(value.values()) <= flat:
            node += (MAP, value)
            return
        filled: dict[object, object] = {}
        node += (MAP, filled)
        key: object = None
        try:
            for key, item in value.items():
                filled[key] = item if type(item) in flat else self.node(item, depth)
        except CannotTravel as trouble:
            trouble.steps.append(f"[{_shown(key)}]")
            raise

    def pairs(self, node: Node, value: dict[object, object], depth: int) -> None:
        """Append key, value, key, value, ..."""
        for key, item in value.items():
            try:
                node.append(self.node(key, depth))
            except CannotTravel as trouble:
                trouble.steps.append(f".keys()[{(len(node) - 1) // 2}]")
                raise
            try:
                node.append(self.node(item, depth))
            except CannotTravel as trouble:
                trouble.steps.append(f"[{_shown(key)}]")
                raise

    def note_height(self, values: tuple[object, ...]) -> None:
        """Bound how deep tuples stand in tuples, through shared ones too.

        Hashing a tuple is a recursion in C that Python does not guard.
        """
        inner = [self._heights.get(id(item), 1) for item in values if type(item) is tuple]
        if not inner:
            return
        height = 1 + max(inner)
        if height > MAX_DEPTH:
            raise CannotTravel(_TOO_DEEP)
        self._heights[id(values)] = height


def _shown(key: object) -> str:
    """A scalar key as its user wrote it, any other by its type: no `__repr__` of a user runs here."""
    if type(key) not in SCALARS:
        return f"<{type(key).__qualname__}>"
    text = repr(key)
    return text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "..."


def _list(walk: TreeEncoder, node: Node, value: object, depth: int) -> None:
    node.append(LIST)
    walk.items(node, cast("list[object]", value), depth)


def _tuple(walk: TreeEncoder, node: Node, value: object, depth: int) -> None:
    node.append(TUPLE)
    values = cast("tuple[object, ...]", value)
    walk.items(node, values, depth)
    walk.note_height(values)


def _set(walk: TreeEncoder, node: Node, value: object, depth: int) -> None:
    node.append(SET if type(value) is set else FROZENSET)
    walk.items(node, cast("set[object]", value), depth, step="{{...}}")


def _dict(walk: TreeEncoder, node: Node, value: object, depth: int) -> None:
    walk.mapping(node, cast("dict[object, object]", value), depth)


def _int(value: object) -> object:
    number = cast("int", value)
    if -(1 << 63) <= number < 1 << 64:
        return number
    return [INT, number.to_bytes(number.bit_length() // 8 + 1, "big", signed=True)]


def _text(value: object) -> object:
    text = cast("str", value)
    try:
        text.encode()
    except UnicodeEncodeError:
        return [TEXT, text.encode("utf-8", "surrogatepass")]
    return text


LEAVES: Final[dict[type, Callable[[object], object]]] = {int: _int, str: _text}
CONTAINERS: Final[dict[type, Callable[[TreeEncoder, Node, object, int], None]]] = {
    list: _list,
    tuple: _tuple,
    set: _set,
    frozenset: _set,
    dict: _dict,
}
