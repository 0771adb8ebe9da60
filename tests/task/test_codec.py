"""The codec as a whole: exact values, calls, shared references, cycles, depth, and the paths of refusals."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secfarm.errors import ProtocolError, ValueTransferError
from secfarm.limits import MAX_DEPTH
from secfarm.task import codec
from secfarm.task.codec import decode, decode_call, encode, encode_call

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=-(2**80), max_value=2**80),
    st.floats(),
    st.text(st.characters(), max_size=8),  # lone surrogates included
    st.binary(max_size=8),
)
KEYS = st.recursive(SCALARS, lambda inside: st.tuples(inside, inside) | st.frozensets(inside, max_size=3), max_leaves=4)
VALUES = st.recursive(
    SCALARS,
    lambda inside: st.one_of(
        st.lists(inside, max_size=4),
        st.tuples(inside, inside),
        st.dictionaries(KEYS, inside, max_size=4),
        st.sets(KEYS, max_size=4),
        st.frozensets(KEYS, max_size=4),
    ),
    max_leaves=12,
)


def exact(value: object) -> object:
    """A form of `value` that differs where type, order, sign or bits do."""
    match value:
        case float():
            return "float", value.hex()
        case list() | tuple():
            return type(value).__name__, [exact(item) for item in value]
        case set() | frozenset():
            return type(value).__name__, sorted(ascii(exact(item)) for item in value)
        case dict():
            return "dict", [(exact(key), exact(item)) for key, item in value.items()]
        case _:
            return type(value).__name__, value


@given(VALUES)
def test_what_is_encoded_comes_back_exactly(value: object) -> None:
    assert exact(decode(encode(value))) == exact(value)
    assert exact(decode(memoryview(encode(value)))) == exact(value)


@given(st.lists(VALUES, max_size=4), st.dictionaries(st.text(max_size=5), VALUES, max_size=3))
def test_the_arguments_of_a_call_come_back_exactly(args: list[object], kwargs: dict[str, object]) -> None:
    back = decode_call(encode_call(tuple(args), kwargs))
    assert exact(back) == exact((tuple(args), kwargs))


def test_a_plain_value_is_its_msgpack() -> None:
    assert encode([1, {"a": None}]).hex() == "920181a161c0"
    assert encode((1,))[:1] == b"\xc1"


@pytest.mark.parametrize("size", [300, 1000])
def test_one_odd_item_in_a_long_list_is_not_overlooked(size: int) -> None:
    for odd in (1, True, (1.0,), 2**70, "\ud800"):
        for at in (0, size // 2, size - 1):
            value: list[object] = [1.5] * size
            value[at] = odd
            assert exact(decode(encode(value))) == exact(value)


def test_shared_references_stay_shared_and_equal_ones_stay_apart() -> None:
    shared: list[object] = [1]
    back = decode(encode([shared, shared, [1], {"k": shared}]))
    assert isinstance(back, list)
    assert back[0] is back[1] is back[3]["k"]
    assert back[0] is not back[2]
    args, kwargs = decode_call(encode_call((shared, (shared,)), {"k": shared}))
    assert args[0] is args[1][0] is kwargs["k"]  # type: ignore[index]


def test_a_list_and_a_dict_may_contain_themselves() -> None:
    loop: list[object] = [1]
    loop.append(loop)
    back = decode(encode(loop))
    assert isinstance(back, list)
    assert back[1] is back
    table: dict[object, object] = {}
    table[(1, 2)] = table["x"] = table
    again = decode(encode(table))
    assert isinstance(again, dict)
    assert again["x"] is again[(1, 2)] is again
    assert list(again) == [(1, 2), "x"]


def _around(inner: list[object] | dict[object, object]) -> tuple[object, ...]:
    outer = (inner,)
    other = (0, outer)
    if isinstance(inner, list):
        inner += [other, outer, [other], "end"]
    else:
        inner.update({"first": other, "outer": outer, "last": 1})
    return outer


def test_a_cycle_may_begin_at_a_tuple_and_pass_through_others() -> None:
    """The tuple is complete only after what it holds, which holds it: that place is filled at the end."""
    back = decode(encode(_around([])))
    assert isinstance(back, tuple)
    assert back[0][1] is back
    assert back[0][0][1] is back
    assert back[0][2][0] is back[0][0]
    assert back[0][3] == "end"
    again = decode(encode(_around({})))
    assert isinstance(again, tuple)
    assert list(again[0]) == ["first", "outer", "last"]
    assert again[0]["first"][1] is again[0]["outer"] is again


def test_a_shared_tuple_that_waits_for_an_outer_one_is_found_after_it() -> None:
    inner: list[object] = []
    first = (inner,)
    second = (first, "x")
    inner.append(second)
    back = decode(encode((first, second, second)))
    assert isinstance(back, tuple)
    assert back[0][0][0] is back[1] is back[2]
    assert back[1][0] is back[0]


NESTERS: list[Callable[[object], object]] = [
    lambda inner: [inner],
    lambda inner: (inner,),
    lambda inner: {"k": inner},
    lambda inner: {(): inner},
    lambda inner: frozenset([inner]),
]


def _nested(nest: Callable[[object], object], depth: int) -> object:
    value: object = 1
    for _ in range(depth):
        value = nest(value)
    return value


@pytest.mark.parametrize("nest", NESTERS)
def test_values_travel_up_to_the_greatest_depth_and_not_beyond(nest: Callable[[object], object]) -> None:
    deepest = _nested(nest, MAX_DEPTH)
    encode_call((_nested(nest, MAX_DEPTH),), {"k": _nested(nest, MAX_DEPTH)})
    assert ascii(decode(encode(deepest))) == ascii(deepest)
    args, kwargs = decode_call(encode_call((deepest,), {"k": _nested(nest, MAX_DEPTH)}))
    assert ascii(args[0]) == ascii(kwargs["k"]) == ascii(deepest)
    with pytest.raises(ValueTransferError, match="deeper than 100"):
        encode(_nested(nest, MAX_DEPTH + 1))
    with pytest.raises(ValueTransferError, match="deeper than 100"):
        encode_call((_nested(nest, MAX_DEPTH + 1),), {})


def test_tuples_nested_by_sharing_count_too() -> None:
    """Hashing a tuple is a recursion in C that nothing guards; sharing must not get around the bound."""
    chain: list[tuple[object, ...]] = [()]
    for _ in range(MAX_DEPTH):
        chain.append((chain[-1],))
    assert decode(encode(chain)) == chain
    chain += [(chain[-1],), ((chain[-1],),)]
    with pytest.raises(ValueTransferError, match="deeper than 100"):
        encode(chain)
    nodes = b"".join(b"\x92\x02\x92\x00" + (b"\xcd" + at.to_bytes(2, "big")) for at in range(299))
    table = b"\xdc" + (300).to_bytes(2, "big") + b"\x92\x02\xc0" + nodes
    root = b"\xdc" + (301).to_bytes(2, "big") + b"\x01"
    root += b"".join(b"\x92\x00\xcd" + at.to_bytes(2, "big") for at in range(300))
    with pytest.raises(ProtocolError, match="deeper than 102"):
        decode(b"\xc1\x92" + root + table)


def test_a_full_stack_is_a_clear_refusal() -> None:
    def descend(levels: int) -> bytes:
        return descend(levels - 1) if levels else encode([[(1,)]])

    limit = sys.getrecursionlimit()
    outcomes = set()
    for levels in range(limit - 200, limit):
        try:
            descend(levels)
        except ValueTransferError as error:
            outcomes.add("stack" in str(error))
        except RecursionError:
            break
    assert outcomes <= {True}


@pytest.mark.parametrize(
    ("args", "kwargs", "path"),
    [
        ((object(),), {}, "args[0] "),
        (({"x": [0, 1, 2, object()]},), {}, 'args[0]["x"][3] '),
        ((1,), {"key": (object(),)}, 'kwargs["key"][0] '),
        (({1.5: {b"k": object()}},), {}, "args[0][1.5][b'k'] "),
        (({(1, 2): object()},), {}, "args[0][<tuple>] "),
        (({(1, object()): 1},), {}, "args[0].keys()[0][1] "),
        (({1, (object(),)},), {}, "{...}[0] "),
        (({"it's": object()},), {}, 'args[0]["it\'s"] '),
        (({'a"b': object()},), {}, 'args[0]["a\\"b"] '),
    ],
)
def test_a_refusal_names_the_path_and_the_type(args: tuple[object, ...], kwargs: dict[str, object], path: str) -> None:
    with pytest.raises(ValueTransferError) as caught:
        encode_call(args, kwargs)
    assert path in str(caught.value)
    assert "type object" in str(caught.value)
    assert "nothing was sent" in str(caught.value)


def test_keyword_names_are_exactly_texts() -> None:
    class Name(str):
        __slots__ = ()

    with pytest.raises(ValueTransferError, match="keyword"):
        encode_call((), {Name("a"): 1})
    for wrong in (encode([[], {1: 2}]), encode([1, {}]), encode({}), encode(((), {(): 1})), encode([]), encode(3)):
        with pytest.raises(ProtocolError):
            decode_call(wrong)


def test_importing_the_codec_loads_none_of_the_rarer_types() -> None:
    """Each worker imports it at its start."""
    code = (
        "import sys, secfarm.task.codec as codec\n"
        "codec.decode(codec.encode([(1,), {2}, 2**70]))\n"
        "print([name for name in ('zoneinfo', 'ipaddress', 'numpy', 'secfarm.task.codec_types')"
        " if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- the short ways of small calls --------------------------------------------------------------------------------

_scalars = st.none() | st.booleans() | st.integers(-9, 9) | st.floats() | st.text(max_size=3) | st.binary(max_size=3)
_simple_values: st.SearchStrategy[object] = st.recursive(
    _scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(_scalars, inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.lists(_simple_values, max_size=3), st.dictionaries(st.text(max_size=2), _simple_values, max_size=2))
def test_the_short_way_of_a_call_writes_what_the_general_way_writes(
    args: list[object], kwargs: dict[str, object]
) -> None:
    for given_args in (tuple(args), (*args, *args)):
        short = codec._encode_simple_call(given_args, kwargs)
        assert short in (None, codec._encode_call_tree(given_args, kwargs, wide=False))


def test_containers_that_are_shared_do_not_go_the_short_way() -> None:
    one: list[object] = [1]
    assert codec._encode_simple_call(([1], [1]), {}) is not None
    assert codec._encode_simple_call((one, one), {}) is None
    assert codec._encode_simple_call((one,), {"again": one}) is None
    assert codec._encode_simple_call(({"a": (one,)}, (one, 2)), {}) is None
    one.append(one)
    assert codec._encode_simple_call(((), one), {}) is None
    assert codec._encode_simple_call((), {"all": ()}) is None


def test_a_call_of_many_levels_goes_the_general_way_from_end_to_end() -> None:
    value: object = ()
    for _ in range(20):
        value = (value,)
    assert codec._encode_simple_call((value,), {}) is None
    wire = encode_call((value,), {})
    assert codec._decode_simple_call(wire[1:]) is None
    assert decode_call(wire) == ((value,), {})


_kinds = st.sampled_from([0, 1, 2, 3, 4, 2.0, True, "", None])
_nodes = _scalars | st.builds(lambda kind, items: [kind, *items], _kinds, st.lists(_simple_values, max_size=2))
_calls = st.builds(
    lambda kind, args, kwargs, more: [[kind, args, kwargs, *more]],
    _kinds,
    st.builds(lambda kind, items: [kind, *items], _kinds, st.lists(_nodes, max_size=3)) | _simple_values,
    st.builds(lambda kind, held: [kind, held], _kinds, st.dictionaries(_scalars, _nodes, max_size=2)) | _simple_values,
    st.just([]) | st.lists(_nodes, max_size=1),
)


@given(_calls | _simple_values)
def test_the_short_way_of_a_tree_reads_what_the_general_way_reads(tree: object) -> None:
    wire = msgspec.msgpack.encode(tree)
    short = codec._decode_simple_call(wire)
    if short is not None:
        general = codec._decode_tree(b"\xc1" + wire, -2)
        assert exact(general) == exact(short)


@given(
    st.lists(st.lists(_simple_values, max_size=3) | st.dictionaries(_scalars, _simple_values, max_size=2), max_size=3)
)
def test_the_short_way_of_a_plain_call_reads_what_the_general_way_reads(pair: list[object]) -> None:
    wire = msgspec.msgpack.encode(pair)
    short = codec._decode_scalar_call(wire)
    if short is not None:
        args, kwargs = codec._decode_plain(wire, -2)
        assert exact((tuple(args), kwargs)) == exact(short)
