"""lfarm's own tests, in Python: what its suite asks of tasks that travel, of values, of errors, of kernels.

After lfarm-test (package, circularity, closures, deftask, broadcast, errors, big data, reconnection). What the other
files of this folder state is not repeated: each kind of task, errors by class, cut lines and restarted servers.
"""

# ruff: noqa: PLC3002, PLW0603, PYI024 - tasks are written as users write them

from __future__ import annotations

import array
import collections
import dataclasses
import datetime as dt
import decimal
import enum
import fractions
import itertools
import math
import operator
import pathlib
import threading
import uuid

import pytest

from secfarm import (
    InvalidTaskError,
    Kernel,
    TaskExecutionError,
    TaskRefusedError,
    ValueTransferError,
    broadcast_task,
    check_kernel,
    deftask,
    force,
    future,
    kernel_worker_count,
    make_channel,
    ping,
    plet,
    pmap_into,
    pmap_reduce,
    pmapcar,
    receive_result,
    set_kernel,
    start_local_servers,
    submit_task,
    task_from_source,
    use_kernel,
)
from tests.farm.farms import WAIT_S, Daemon, results
from tests.meeting import mark_process, note

BASE = 5
TABLE = {"a": [1, 2]}
Pair = collections.namedtuple("Pair", "a b")


@dataclasses.dataclass
class Node:
    value: object
    next: object = None


class Color(enum.Enum):
    RED = 1


@pytest.fixture(autouse=True)
def _current(one_kernel: Kernel) -> None:
    set_kernel(one_kernel)


# --- deftask: every form of a function --------------------------------------------------------------------------------


@deftask
def factorial(n):
    return 1 if n < 2 else n * factorial(n - 1)


@deftask
def is_even(n):
    return True if n == 0 else is_odd(n - 1)


@deftask
def is_odd(n):
    return False if n == 0 else is_even(n - 1)


@deftask
def parameters(a, /, b=2, *rest, c=BASE, **others):
    """A docstring, and
    another line of it."""
    return a, b, rest, c, others


@deftask(name="typed", category="forms", timeout_s=30)
def annotated(x: list[int], y: dict[str, decimal.Decimal] | None = None) -> int:
    total: int = len(x)
    return total + len(y or ())


@deftask
async def awaited(x):
    import asyncio

    await asyncio.sleep(0)
    return [i async for i in _numbers(x)]


async def _numbers(n):
    for i in range(n):
        yield i


@deftask
def generated(n):
    yield from range(n)


@deftask
def with_class(x):
    class Doubler:
        factor = 2

        def __init__(self, value):
            self.value = value

        def get(self):
            return self.value * self.factor

    return Doubler(x).get()


@deftask
def matched(value):
    match value:
        case {"k": [x, *rest]}:
            return x, rest
        case (a, b) if (c := a + b) > 3:
            return c
        case str() as text:
            return f"{text!r:>5}"
        case _:
            return None


@deftask
def counted():
    n = 0

    def up():
        nonlocal n
        n += 1
        return n

    return [up() for _ in range(3)]


@deftask
def handled():
    from contextlib import suppress

    try:
        raise ExceptionGroup("both", [KeyError("x"), OSError()])
    except* KeyError as group:
        found = len(group.exceptions)
    except* OSError:
        pass
    with suppress(ZeroDivisionError):
        1 / 0  # noqa: B018
    return found


@deftask
def uses_globals():
    return BASE, TABLE["a"], math.floor(2.5), factorial(3)


@deftask
def documented():
    """Said here."""
    return documented.__doc__, documented.__name__


FORMS = [
    (factorial, (10,), 3628800),
    (is_even, (11,), False),
    (parameters, (1,), (1, 2, (), 5, {})),
    (annotated, ([1, 2],), 2),
    (awaited, (3,), [0, 1, 2]),
    (generated, (3,), [0, 1, 2]),
    (with_class, (4,), 8),
    (matched, ({"k": [1, 2]},), (1, [2])),
    (matched, ((2, 3),), 5),
    (matched, ("q",), "  'q'"),
    (counted, (), [1, 2, 3]),
    (handled, (), 1),
    (uses_globals, (), (5, [1, 2], 2, 6)),
    (documented, (), ("Said here.", "documented")),
    (lambda x, y=3, *z, k=4, **q: (x, y, z, k, q), (1,), (1, 3, (), 4, {})),
    (task_from_source("async def later(x):\n    return x + 1"), (1,), 2),
    (task_from_source("lambda *xs: [x for x in xs if (y := x) > 1]"), (1, 2, 3), [2, 3]),
    (Color.__members__.get, (), InvalidTaskError),
    ("collections:Counter.fromkeys", (), TaskExecutionError),
    (dt.date.fromisoformat, ("2020-01-02",), dt.date(2020, 1, 2)),
    (decimal.Decimal, ("1.50",), decimal.Decimal("1.50")),
    (str.upper, ("a",), "A"),
    ("os.path.join", ("a", "b"), "a/b"),
]


@pytest.mark.parametrize(("task", "arguments", "expected"), FORMS, ids=itertools.count())
def test_every_form_of_a_task_gives_there_what_it_gives_here(task, arguments, expected) -> None:
    if isinstance(expected, type):
        with pytest.raises(expected):
            force(future(task, *arguments))
    else:
        assert force(future(task, *arguments)) == expected


def test_deftask_is_still_a_function_and_its_keywords_travel() -> None:
    assert parameters(1, 3, 4, c=6, d=7) == force(future(parameters, 1, 3, 4, c=6, d=7)) == (1, 3, (4,), 6, {"d": 7})
    assert parameters.submit(9, b=1).result(WAIT_S) == (9, 1, (), 5, {})
    assert force(future(lambda **names: names, task=1, self=2, channel=3)) == {"task": 1, "self": 2, "channel": 3}


# --- closures: let, flet, labels --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [4, None, True, "ü\n'\"", b"\0\xff", 1e400, 2**200, [1, [2]], {"a": (1,)}, frozenset({1}), Pair(1, 2), Node(3)],
    ids=repr,
)
def test_let(value) -> None:
    """What a lambda closes over comes along, at any depth of functions."""
    assert force(future(lambda: value)) == value
    assert force(future(lambda: (lambda: (lambda: value)())())) == value
    assert pmapcar(lambda x: (x, value), [1, 2]) == [(1, value), (2, value)]


def test_flet_and_labels() -> None:
    offset = 100

    def shifted(x):
        return x + offset

    def even(n):
        return True if n == 0 else odd(n - 1)

    def odd(n):
        return False if n == 0 else even(n - 1)

    twice = lambda f, x: f(f(x))
    assert force(future(lambda: shifted(1))) == 101
    assert force(future(lambda: (even(7), odd(7)))) == (False, True)
    assert force(future(lambda: twice(shifted, 1))) == 201
    assert force(future(even, 4)) is True
    assert plet(a=lambda: shifted(2), b=lambda: offset).a == 102
    assert pmap_into([0, 0], lambda x: shifted(x), [1, 2]) == [101, 102]
    assert pmap_reduce(lambda x: shifted(x), lambda x, y: x + y + offset, [1, 2, 3]) == 506


def test_closed_over_functions_of_every_kind() -> None:
    made = lambda f: lambda *args: f(*args)
    assert force(future(made(factorial), 5)) == 120
    assert force(future(made(len), [1])) == 1
    assert force(future(made(math.hypot), 3, 4)) == 5
    assert force(future(made(lambda x: x + BASE), 1)) == 6
    assert force(future((lambda m: lambda: m.sqrt(4))(math))) == 2


def test_what_is_closed_over_is_a_copy_of_that_moment() -> None:
    box = [1]
    tasks = [future(lambda: box)]
    box.append(2)
    tasks.append(future(lambda: box))
    force(future(lambda: box.append(3)))
    assert results(tasks) == [[1], [1, 2]]
    assert box == [1, 2]
    late = [lambda: i for i in range(3)]  # noqa: B023
    assert [force(future(one)) for one in late] == [2, 2, 2]


# --- values -----------------------------------------------------------------------------------------------------------


def test_circularity() -> None:
    """Shared and circular objects come back as such, through arguments, closures and results."""
    inner = [1]
    both = [inner, inner]
    ring = [1, 2]
    ring.append(ring)
    chain = Node(1)
    chain.next = Node(2, chain)
    for task in (lambda x: x, "copy.copy"):
        got = force(future(task, both))
        assert got == both
        assert got[0] is got[1]
        got = force(future(task, ring))
        assert got[2] is got or got[2][2] is got[2]
        got = force(future(task, chain))
        assert (got.value, got.next.value, got.next.next.value) == (1, 2, 1)
        assert got.next.next is got or got.next.next.next is got.next
    assert force(future(lambda: ring[2] is ring and both[0] is both[1])) is True

    def knot():
        made: dict[str, object] = {}
        made["self"] = made
        return made

    got = force(future(knot))
    assert got["self"] is got


@pytest.mark.parametrize(
    "value",
    [
        range(3),
        slice(1, None, 2),
        ...,
        bytearray(b"b"),
        complex(1, -0.0),
        uuid.UUID(int=1),
        pathlib.PurePosixPath("/a"),
        array.array("d", [1.5]),
        collections.deque([1], maxlen=3),
        collections.OrderedDict(b=1, a=2),
        collections.defaultdict(list, a=[1]),
        fractions.Fraction(1, 3),
        dt.timedelta(1, 2, 3),
        Color.RED,
        Pair(1, [2]),
        Node(Node(1), {2}),
        ValueError("x", 1),
        {1: "a", (2,): "b", None: "c", 1.5: "d"},
        "\ud800".encode("utf-8", "surrogatepass"),
    ],
    ids=repr,
)
def test_values_come_back_as_they_went(kernel: Kernel, value) -> None:
    """Records of classes that the server does not have included: there they are placeholders."""
    got = kernel.submit(lambda *args: args, value, [value]).result(WAIT_S)
    assert type(got[0]) is type(value)
    assert repr(got) == repr((value, [value]))


@pytest.mark.parametrize("size_bytes", [1, 60_000, 1 << 20, 9 << 20])
def test_big_data(kernel: Kernel, size_bytes: int) -> None:
    """lfarm's big-data-test, up and down and captured, beside small tasks."""
    text, blob = "x" * size_bytes, bytes(size_bytes)
    small = [kernel.submit(operator.neg, i) for i in range(20)]
    big = [kernel.submit(lambda a, b: (b, a), text, blob), kernel.submit(lambda: len(text) + len(blob))]
    assert results(small) == [-i for i in range(20)]
    assert results(big) == [(blob, text), 2 * size_bytes]


def test_many_objects() -> None:
    data = {i: [str(i), (i, float(i))] for i in range(20_000)}
    assert force(future(lambda x: {**x, -1: len(x)}, data)) == {**data, -1: 20_000}


# --- errors -----------------------------------------------------------------------------------------------------------


def outer(x):
    return inner(x)


def inner(x):
    return [][x]


def test_task_execution_error_tells_what_where_and_how() -> None:
    failed = future(outer, 7)
    with pytest.raises(TaskExecutionError) as caught:
        force(failed)
    error = caught.value
    assert isinstance(error, IndexError)
    assert error.report == "IndexError: list index out of range"
    assert error.remote_type == "IndexError"
    assert error.server == "node"
    assert str(error).startswith(error.report)
    for part in ("test_lfarm.py", "in outer", "return inner(x)", "in inner", "return [][x]", error.report):
        assert part in error.description
    assert "secfarm" not in error.description.replace(__file__, "").replace("test_lfarm", "")
    assert failed.exception() is error


@pytest.mark.parametrize(
    ("task", "error"),
    [
        (None, InvalidTaskError),
        (3, InvalidTaskError),
        ([], InvalidTaskError),
        ("", InvalidTaskError),
        ("1x", InvalidTaskError),
        ("os.", InvalidTaskError),
        ("os:path:join", InvalidTaskError),
        ("os._exit", InvalidTaskError),
        ("__import__", InvalidTaskError),
        (Node, InvalidTaskError),
        (Node(1), InvalidTaskError),
        ([].append, InvalidTaskError),
        (operator.itemgetter(1), InvalidTaskError),
        (lambda: Node(1), InvalidTaskError),
        (lambda: threading.local, ValueTransferError),
        ("no_such_function", TaskExecutionError),
        ("os.no_such_function", TaskExecutionError),
        ("no_such_module.f", TaskExecutionError),
        ("math.pi", TaskExecutionError),
        (lambda: undefined_name, TaskExecutionError),  # noqa: F821
        (lambda: object(), ValueTransferError),
        (lambda: factorial, ValueTransferError),
    ],
    ids=itertools.count(),
)
def test_what_is_no_task_and_what_the_server_lacks(task, error) -> None:
    """Refused here or an error there; in no case of the kernel."""
    channel = make_channel()
    with pytest.raises(error):
        (submit_task(channel, task), receive_result(channel))
    assert force(future(operator.neg, 1)) == -1


def test_wrong_arguments_are_the_tasks_error() -> None:
    for arguments, names in (((), {}), ((1, 2), {}), ((1,), {"m": 2})):
        with pytest.raises(TypeError, match="factorial"):
            force(future(factorial, *arguments, **names))


@pytest.mark.parametrize("value", [threading.Lock(), lambda: 1, factorial, len, math, int, (i for i in ()), object()])
def test_values_that_cannot_travel_are_refused_and_named(value) -> None:
    with pytest.raises(ValueTransferError, match=r'args\[1\]\["k"\]'):
        future(operator.add, 1, {"k": value})
    with pytest.raises(ValueTransferError, match="kwargs"):
        future(operator.add, k=value)


# --- broadcast, kernels -----------------------------------------------------------------------------------------------


def test_broadcast_definitions(one_daemon: Daemon) -> None:
    """Functions, data and imports that a broadcast defines are there for later tasks; what is captured goes first."""

    def define(n):
        global shift, scale, module
        import json as module

        scale = n

        def shift(x):
            return x + scale

    with one_daemon.connect() as kernel, one_daemon.connect() as other:
        with use_kernel(kernel):
            assert broadcast_task(define, 10) == [None, None]
            uses = task_from_source("def uses(x): return shift(x), scale, module.dumps([x])")
            assert pmapcar(uses, [1, 2]) == [(11, 10, "[1]"), (12, 10, "[2]")]
            broadcast_task(define, 20)
            assert set(pmapcar(task_from_source("lambda _: scale"), range(6))) == {20}
            scale = 3
            assert force(future(lambda: scale)) == 3
        with pytest.raises(NameError):
            other.run(uses, 1)


def test_kernels_and_channels_in_threads(daemon_of) -> None:
    """Several kernels over several ways, several channels each, all at once."""
    kernels = [daemon_of(way).connect(name=way) for way in ("tcp-ed25519", "unix-secret")]
    wrong: list[object] = []

    def use(kernel: Kernel, number: int) -> None:
        with use_kernel(kernel):
            channel = make_channel()
            for i in range(25):
                submit_task(channel, lambda x, y: (x, y), number, i)
            if sorted(channel) != [(number, i) for i in range(25)]:
                wrong.append(number)

    threads = [threading.Thread(target=use, args=(kernels[i % 2], i)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert wrong == []
    for kernel in kernels:
        kernel.shutdown()


def test_one_kernel_on_several_servers() -> None:
    with start_local_servers(["127.0.0.1:0"] * 2, workers=1) as servers, Kernel(servers.addresses, auth=servers.auth):
        assert all(ping(address, auth=servers.auth, timeout_s=WAIT_S) for address in servers.addresses)
        assert kernel_worker_count() == 2
        assert sorted(record.server for record in check_kernel().workers()) == ["server0", "server1"]
        assert pmapcar(factorial, range(6)) == [1, 1, 2, 6, 24, 120]
        assert len(set(broadcast_task(mark_process))) == 2


def test_reconnect_test(ran) -> None:
    """The server is killed and started again: what was defined is defined again, what was submitted is done."""
    with Daemon(workers=1) as daemon, daemon.connect() as kernel:
        broadcast_task(task_from_source("def define():\n    global where\n    where = 7"))
        where = task_from_source("def use(): return where")
        assert kernel.run(where) == 7
        for _ in range(2):
            daemon.kill()
            waiting = [kernel.submit(note, ran.port, i) for i in range(5)]
            daemon.start()
            assert results(waiting) == list(range(5))
            assert kernel.run(where) == 7
        assert ran.numbers() == [*range(5)] * 2


def test_a_policy_that_grants_little_refuses_in_plain_words() -> None:
    policy = '[[grant]]\nprincipals = ["*"]\nmay = ["call"]\nnames = ["operator.*"]\n'
    with Daemon(policy=policy) as daemon, daemon.connect():
        assert force(future("operator.add", 1, 2)) == 3
        for refused in ("math.sqrt", lambda: 1, factorial):
            with pytest.raises(TaskRefusedError) as caught:
                force(future(refused, 1))
            assert caught.value.code
        with pytest.raises(TaskRefusedError):
            broadcast_task("operator.neg", 1)
