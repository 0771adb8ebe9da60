"""Values to typed nodes: a walk that keeps exact types, order, shared references and cycles.

The result holds nothing but what msgpack carries exactly. No code of the value's own runs. Format: docs/codec.md.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Final, TypeAlias, cast

from secfarm.limits import MAX_DEPTH
from secfarm.task.codec_kinds import (
    FEW,
    FROZENSET,
    INT,
    LIST,
    MAP,
    MAX_CLASSES,
    MAX_HEIGHT,
    PAIRS,
    REF,
    SCALARS,
    SET,
    TEXT,
    TUPLE,
    CannotTravel,
    Node,
    all_of,
    shown,
)

__all__ = ["Fill", "TreeEncoder", "int_node", "text_node"]

# Fills the empty node of a value that stands at a depth.
Fill: TypeAlias = "Callable[[TreeEncoder, Node, object, int], None]"

_NARROW: Final = SCALARS - {int, str}
_SHOWN_CHARS: Final = 40  # of a key in an error's path
_SHOWN_INT: Final = 10**_SHOWN_CHARS
_TOO_DEEP: Final = f"is nested deeper than {MAX_DEPTH} containers"


class TreeEncoder:
    """One walk over one value (or over a call's arguments, which share their references).

    Args:
        wide: whether ints over 64 bits and texts with lone surrogates are looked for, item by item.
    """

    __slots__ = ("_classes", "_flat", "_nodes", "_slots", "_tuples")

    def __init__(self, *, wide: bool = False) -> None:
        self._flat = _NARROW if wide else SCALARS
        self._nodes: dict[int, tuple[Node, object]] = {}  # by id; the value is held, so that its id stays its own
        self._slots: dict[int, int] = {}  # id of a value met twice: its place in the table
        self._tuples: list[tuple[object, Iterable[object]]] = []  # and slices, each after those in it
        self._classes: dict[tuple[object, ...], int] = {}

    def finish(self, root: object) -> list[object]:
        """Return `[root]`, `[root, table]` or `[root, table, classes]`; nodes met twice move into the table."""
        table: list[object] = []
        if self._slots:
            self._check_heights()
        for ident in self._slots:
            node, _ = self._nodes[ident]
            table.append(node.copy())
            node[:] = (REF, len(table) - 1)
        if self._classes:
            return [root, table, list(self._classes)]
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
        ident = id(value)
        if ident in self._nodes:
            return [REF, self._slots.setdefault(ident, len(self._slots))]
        fill = CONTAINERS.get(kind) or _rarer(kind)
        if depth >= MAX_DEPTH:
            raise CannotTravel(_TOO_DEEP)
        node: Node = []
        self._nodes[ident] = node, value
        fill(self, node, value, depth + 1)
        return node

    def within(self, value: object, depth: int, step: str) -> object:
        """Return the node of a part; `step` names it in an error's path."""
        try:
            return self.node(value, depth)
        except CannotTravel as trouble:
            trouble.steps.append(step)
            raise

    def class_index(self, entry: tuple[object, ...]) -> int:
        """Return the place of a class's entry in the table of classes."""
        index = self._classes.get(entry)
        if index is None:
            index = self._classes[entry] = len(self._classes)
            if index >= MAX_CLASSES:
                raise CannotTravel(f"is a record of one class more than the {MAX_CLASSES} that a value may hold")
        return index

    def items(self, node: Node, values: Collection[object], depth: int, step: str = "[{}]") -> None:
        """Append the nodes of `values`; `step` names one of them in an error's path."""
        if len(values) > FEW and all_of(self._flat, values):
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
        if not all_of(self._flat, value):
            node.append(PAIRS)
            self.pairs(node, value, depth)
            return
        flat = self._flat
        if len(value) > FEW and all_of(flat, value.values()):
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
            node.append(self.within(key, depth, f".keys()[{(len(node) - 1) // 2}]"))
            try:
                node.append(self.node(item, depth))
            except CannotTravel as trouble:
                trouble.steps.append(f"[{_shown(key)}]")
                raise

    def note_tuple(self, value: object, parts: Iterable[object]) -> None:
        """Remember a tuple or slice, of which `parts` are the items, for the bound on how deep they stand."""
        self._tuples.append((value, parts))

    def _check_heights(self) -> None:
        """Bound how deep tuples and slices stand in each other by sharing; else their depth is bounded already.

        Hashing them is a recursion in C that Python does not guard.
        """
        heights: dict[int, int] = {}
        for value, parts in self._tuples:
            inner = [heights.get(id(item), 1) for item in parts if isinstance(item, tuple | slice)]
            if inner:
                heights[id(value)] = 1 + max(inner)
        if max(heights.values(), default=0) > MAX_HEIGHT:
            raise CannotTravel(_TOO_DEEP)


def _shown(key: object) -> str:
    """A scalar key as its user wrote it, any other by its type: no `__repr__` of a user runs here."""
    if type(key) not in SCALARS:
        return f"<{shown(type(key))}>"
    if type(key) is int and not -_SHOWN_INT < key < _SHOWN_INT:
        return f"<int of {key.bit_length()} bits>"  # Python may refuse to write it out
    text = repr(key)
    if type(key) is str:
        text = text[1:-1].replace("\\'", "'").replace('"', '\\"')
        text = f'"{text}"'
    return text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "..."


def _rarer(kind: type) -> Fill:
    # Loaded when first needed: the modules of these types would slow the start of every worker.
    from secfarm.task import codec_records, codec_types

    return codec_types.FILLS.get(kind) or codec_records.fill_for(kind)


def _list(walk: TreeEncoder, node: Node, value: object, depth: int) -> None:
    node.append(LIST)
    walk.items(node, cast("list[object]", value), depth)


def _tuple(walk: TreeEncoder, node: Node, value: object, depth: int) -> None:
    node.append(TUPLE)
    values = cast("tuple[object, ...]", value)
    walk.items(node, values, depth)
    walk.note_tuple(values, values)


def _set(walk: TreeEncoder, node: Node, value: object, depth: int) -> None:
    node.append(SET if type(value) is set else FROZENSET)
    walk.items(node, cast("set[object]", value), depth, "{{...}}")


def _dict(walk: TreeEncoder, node: Node, value: object, depth: int) -> None:
    walk.mapping(node, cast("dict[object, object]", value), depth)


def int_node(value: object) -> object:
    """An int, or the node of one that msgpack has no room for."""
    number = cast("int", value)
    if -(1 << 63) <= number < 1 << 64:
        return number
    return [INT, number.to_bytes(number.bit_length() // 8 + 1, "big", signed=True)]


def text_node(value: object) -> object:
    """A str, or the node of one with lone surrogates."""
    text = cast("str", value)
    try:
        text.encode()
    except UnicodeEncodeError:
        return [TEXT, text.encode("utf-8", "surrogatepass")]
    return text


LEAVES: Final[dict[type, Callable[[object], object]]] = {int: int_node, str: text_node}
CONTAINERS: Final[dict[type, Fill]] = {
    list: _list,
    tuple: _tuple,
    set: _set,
    frozenset: _set,
    dict: _dict,
}
