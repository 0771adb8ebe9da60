"""lparallel's own tests, in Python: what its suite asks of kernels, channels, promises, cognates and ptrees.

After t/kernel-test.lisp, t/promise-test.lisp, t/cognate-test.lisp, t/ptree-test.lisp, each with its name where it has
one there. What the other files of this folder state is not repeated; what lparallel needs for its threads (worker
contexts, bindings, work stealing, defpun) has no meaning here.
"""

from __future__ import annotations

import functools
import itertools
import operator
import random
import threading
from collections import Counter

import pytest

from secfarm import (
    Kernel,
    KernelError,
    NoKernelError,
    Ptree,
    SecfarmError,
    TaskKilledError,
    WorkerLostError,
    broadcast_task,
    chain,
    check_kernel,
    current_kernel,
    delay,
    do_fast_receives,
    end_kernel,
    force,
    fulfill,
    fulfilledp,
    future,
    kernel_name,
    kernel_worker_count,
    kill_tasks,
    make_channel,
    pand,
    pcount,
    pcount_if,
    pcount_if_not,
    pdotimes,
    pevery,
    pfind,
    pfind_if,
    pfind_if_not,
    pfuncall,
    plet,
    plet_if,
    pmap,
    pmap_into,
    pmap_reduce,
    pmapc,
    pmapcan,
    pmapcar,
    pmaplist,
    pnotany,
    pnotevery,
    por,
    preduce,
    preduce_partial,
    premove,
    premove_if,
    premove_if_not,
    promise,
    psome,
    psort,
    receive_result,
    set_kernel,
    speculate,
    submit_task,
    task_categories_running,
    task_category,
    task_from_source,
    task_priority,
    try_receive_result,
    use_kernel,
)
from tests.farm.farms import WAIT_S, Daemon, gone, results, until
from tests.meeting import Gate, is_heard, mark_process, note, pass_gate


def double(x):
    return 2 * x


def fail(x=None):
    raise LookupError("foo")


@pytest.fixture(autouse=True)
def _current(one_kernel: Kernel) -> None:
    set_kernel(one_kernel)


# --- kernel-test: channels --------------------------------------------------------------------------------------------


def test_kernel_test(kernel: Kernel) -> None:
    """Rounds of a channel of its own each; over every transport."""
    for _ in range(5):
        with use_kernel(kernel):
            channel = make_channel()
        for i in range(40):
            submit_task(channel, double, i)
        assert sorted(receive_result(channel) for _ in range(40)) == [2 * i for i in range(40)]


def test_many_task_test() -> None:
    channel = make_channel()
    for _ in range(5):
        for i in range(1000):
            submit_task(channel, "operator.neg", i)
        assert sorted(do_fast_receives(channel, 1000)) == list(range(-999, 1))
    assert try_receive_result(channel) == (None, False)


def test_multi_channel_test() -> None:
    """Results come out of the channel that they went into, whoever submits to the others meanwhile."""
    channels = [make_channel() for _ in range(6)]

    def use(number: int) -> None:
        for i in range(30):
            submit_task(channels[number], "operator.mul", number, i)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, channel in enumerate(channels):
        assert sorted(channel) == [number * i for i in range(30)]


def test_a_receiver_that_waits_gets_what_is_submitted_later() -> None:
    channel, got = make_channel(), []
    threads = [threading.Thread(target=lambda: got.append(receive_result(channel))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for i in range(4):
        submit_task(channel, double, i)
    for thread in threads:
        thread.join(WAIT_S)
    assert sorted(got) == [0, 2, 4, 6]


def test_those_who_iterate_over_one_channel_share_its_results_and_all_end(gate: Gate) -> None:
    """However many wait for the last result, one gets it and none waits on."""
    channel, got = make_channel(), []
    submit_task(channel, pass_gate, *gate.arguments("last"))
    for i in range(20):
        submit_task(channel, double, i)
    threads = [threading.Thread(target=lambda: got.extend(channel)) for _ in range(4)]
    for thread in threads:
        thread.start()
    gate.wait()
    gate.open()
    for thread in threads:
        thread.join(WAIT_S)
        assert not thread.is_alive()
    assert Counter(got) == Counter([2 * i for i in range(20)] + ["last"])


@pytest.mark.parametrize("timeout_s", [None, 0, 0.01, -1])
def test_try_receive_test(timeout_s, gate: Gate) -> None:
    """Nothing submitted, something that runs, something that is there; a timeout below zero is none."""
    channel = make_channel()
    assert try_receive_result(channel, timeout_s=timeout_s) == (None, False)
    submit_task(channel, pass_gate, *gate.arguments("here"))
    gate.wait()
    assert try_receive_result(channel, timeout_s=timeout_s) == (None, False)
    gate.open()
    until(lambda: channel._done, "a result")
    assert try_receive_result(channel, timeout_s=timeout_s) == ("here", True)
    assert try_receive_result(channel, timeout_s=timeout_s) == (None, False)


@pytest.mark.parametrize("capacity", [1, 2, 5])
def test_channel_capacity_test(capacity: int) -> None:
    """One thread submits, another receives: never more than the capacity is outstanding, and nothing is lost."""
    channel, most = make_channel(fixed_capacity=capacity), 0

    def submit() -> None:
        for i in range(40):
            submit_task(channel, double if i % 4 else fail, i)

    thread = threading.Thread(target=submit)
    thread.start()
    got: list[object] = []
    for _ in range(40):
        most = max(most, channel._outstanding)
        try:
            got.append(receive_result(channel))
        except LookupError:
            got.append("failed")
    thread.join(WAIT_S)
    assert Counter(got) == Counter([2 * i for i in range(40) if i % 4] + ["failed"] * 10)
    assert most <= capacity


def test_kernel_error_in_a_channel_leaves_the_others() -> None:
    channel = make_channel()
    for i in range(30):
        submit_task(channel, (lambda x: 1 // (x % 3)), i)
    outcomes: list[object] = []
    for _ in range(30):
        try:
            outcomes.append(receive_result(channel))
        except ZeroDivisionError:
            outcomes.append("error")
    assert Counter(outcomes) == {"error": 10, 1: 10, 0: 10}


# --- kernel-test: beginning and ending --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "use",
    [
        make_channel,
        kernel_worker_count,
        kernel_name,
        check_kernel,
        task_categories_running,
        lambda: kill_tasks("default"),
        lambda: broadcast_task(double, 1),
        lambda: future(double, 3),
        lambda: speculate(double, 3),
        lambda: pmap(list, double, [1]),
        lambda: preduce("operator.add", [1, 2]),
        lambda: psort([2, 1]),
        lambda: plet(lambda: 1),
        lambda: pand(lambda: 1),
    ],
)
def test_no_kernel_test(use) -> None:
    set_kernel(None)
    with pytest.raises(NoKernelError, match="local_kernel"):
        use()


def test_end_kernel_test(one_daemon: Daemon) -> None:
    """Kernels one after the other; what was submitted is done when `end_kernel(wait=True)` returns."""
    for number in range(3):
        kernel = one_daemon.connect(name=f"number {number}")
        set_kernel(kernel)
        assert (kernel_name(), kernel_worker_count()) == (f"number {number}", 2)
        futures = [future(double, i) for i in range(20)]
        end_kernel(wait=True)
        assert all(one.done() for one in futures)
        assert results(futures) == [2 * i for i in range(20)]
        end_kernel(wait=True)
        end_kernel()
        assert current_kernel() is None
        with pytest.raises(KernelError):
            kernel.broadcast(double, 1)


def test_end_kernel_does_not_wait_unless_told(one_daemon: Daemon, gate: Gate) -> None:
    set_kernel(one_daemon.connect())
    held = future(pass_gate, *gate.arguments("later"))
    gate.wait()
    end_kernel()
    assert not held.done()
    gate.open()
    assert force(held) == "later"


def test_many_kernels_test(daemon_of) -> None:
    """Each channel remembers the kernel that was current where it was made."""
    kernels = [
        daemon_of(way).connect(name=f"{number}") for number, way in enumerate(("tcp-ed25519", "unix-secret") * 2)
    ]
    channels = []
    for kernel in kernels:
        with use_kernel(kernel):
            channels.append(make_channel())
    for number, channel in enumerate(channels):
        submit_task(channel, double, number)
    assert [receive_result(channel) for channel in channels] == [0, 2, 4, 6]
    assert [channel.kernel.name for channel in channels] == ["0", "1", "2", "3"]
    for kernel in kernels:
        kernel.shutdown()


# --- kernel-test: killing ---------------------------------------------------------------------------------------------


def test_kill_test(one_kernel: Kernel, gate: Gate) -> None:
    """Kill all that runs, again and again: each is an error of its own task, and the workers are replaced."""
    channel = make_channel()
    for _ in range(3):
        with task_category("victim"):
            for i in range(2):
                submit_task(channel, pass_gate, *gate.arguments(i))
        pids = [pid for _, pid in gate.wait(2)]
        assert kill_tasks("nobody") == 0
        assert kill_tasks("victim", dry_run=True) == 2
        assert kill_tasks("victim") == 2
        for _ in range(2):
            with pytest.raises(TaskKilledError):
                receive_result(channel)
        gone(pids)
        assert one_kernel.worker_count == 2
    assert pmapcar(double, range(5)) == [0, 2, 4, 6, 8]


def test_kill_different_tasks_test(gate: Gate) -> None:
    held = {}
    for category in ("a", "b"):
        with task_category(category):
            held[category] = future(pass_gate, *gate.arguments(category))
    gate.wait(2)
    assert Counter(task_categories_running()) == {"a": 1, "b": 1}
    assert kill_tasks("a") == 1
    with pytest.raises(TaskKilledError):
        force(held["a"])
    assert Counter(task_categories_running()) == {None: 1, "b": 1}
    gate.open()
    assert force(held["b"]) == "b"
    assert task_categories_running() == [None, None]


def test_default_kill_test(gate: Gate) -> None:
    """Who gives no category has "default"; what waits stays, whatever its category."""
    held = [future(pass_gate, *gate.arguments(i)) for i in range(2)]
    gate.wait(2)
    with task_category("other"):
        waiting = [future(lambda: "ran") for _ in range(3)]
    waiting.append(future(lambda: "ran"))
    assert kill_tasks("other") == 0
    assert kill_tasks("default") == 2
    assert results(waiting) == ["ran"] * 4
    for one in held:
        with pytest.raises(TaskKilledError):
            force(one)


@pytest.mark.parametrize("category", [None, 3, ("a",), b"default"])
def test_reject_kill_nil_test(one_kernel: Kernel, category) -> None:
    """What is no category is refused here: sent, it would end the session."""
    with pytest.raises(TypeError, match="category"):
        kill_tasks(category)
    assert kill_tasks("x" * 1000) == 0
    assert one_kernel.run(double, 1) == 2


def test_priorities_have_two_words() -> None:
    with pytest.raises(ValueError, match="'high'"), task_priority("high"):
        pass
    with pytest.raises(ValueError, match="'high'"):
        check_kernel().options(priority="high")


def test_kill_during_end_kernel_test(one_daemon: Daemon, gate: Gate) -> None:
    kernel = one_daemon.connect()
    held = [gate.hold(kernel, i) for i in range(2)]
    gate.wait(2)
    ending = threading.Thread(target=kernel.shutdown)
    ending.start()
    until(lambda: kernel.closed, "the kernel is closed")
    assert kernel.kill("default") == 2
    ending.join(WAIT_S)
    assert not ending.is_alive()
    assert all(isinstance(one.exception(), TaskKilledError) for one in held)


def test_worker_suicide_test() -> None:
    """A task that ends its worker is an error of that task alone."""
    channel = make_channel()
    for _ in range(4):
        submit_task(channel, lambda: __import__("os")._exit(3))
        with pytest.raises(WorkerLostError):
            receive_result(channel)
    submit_task(channel, double, 4)
    assert receive_result(channel) == 8


def test_broadcast_test(daemon: Daemon) -> None:
    """Once on each worker; an error is raised and the definitions of others stand; killed workers get them again."""
    with daemon.connect():
        assert broadcast_task("operator.add", 2, 3) == [5, 5]
        assert len(set(broadcast_task(mark_process))) == 2
        with pytest.raises(LookupError):
            broadcast_task(fail)
        broadcast_task(
            task_from_source("def define(n):\n    global shift\n    def shift(x):\n        return x + n"), 100
        )
        shifted = task_from_source("def use(x):\n    return shift(x)")
        assert [force(future(shifted, i)) for i in range(4)] == [100, 101, 102, 103]
        with pytest.raises(WorkerLostError):
            force(future(lambda: __import__("os")._exit(1)))
        assert pmapcar(shifted, range(8)) == list(range(100, 108))


# --- promise-test -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda: future(double, 3), lambda: speculate(double, 3), lambda: delay(lambda: 6)])
def test_force_test(make) -> None:
    one = make()
    assert [force(one) for _ in range(3)] == [6, 6, 6]
    assert fulfilledp(one)
    assert fulfill(one, 7) is False
    assert force(one) == 6
    assert force(chain(chain(make()))) == 6


@pytest.mark.parametrize("make", [lambda: future(fail), lambda: speculate(fail), lambda: delay(fail)])
def test_error_is_raised_by_each_force(make) -> None:
    one = make()
    for _ in range(3):
        with pytest.raises(LookupError, match="foo"):
            force(one)
    assert fulfilledp(one)
    with pytest.raises(LookupError, match="foo"):
        force(chain(one))


@pytest.mark.parametrize("value", [3, None, "text", [], (1,), double, LookupError("a value")])
def test_force_of_what_is_no_promise(value) -> None:
    assert force(value) is value
    assert fulfilledp(value) is True
    assert fulfill(value, 9) is False


def test_sequential_force_test() -> None:
    """Futures forced in an order that is not theirs."""
    futures = [(future if i % 2 else speculate)(double, i) for i in range(30)]
    order = random.Random(1).sample(range(30), 30)
    assert {i: force(futures[i]) for i in order} == {i: 2 * i for i in range(30)}


def test_multiple_force_test() -> None:
    """Many threads force one promise; one of many who fulfil it does."""
    one, got = promise(), []
    waiting = [threading.Thread(target=lambda: got.append(force(one))) for _ in range(8)]
    for thread in waiting:
        thread.start()
    done = [fulfill(one, i) for i in range(5)]
    for thread in waiting:
        thread.join(WAIT_S)
    assert (done, got) == ([True, False, False, False, False], [0] * 8)


def test_speculation_test(gate: Gate, one_daemon: Daemon, ran) -> None:
    """While something of default priority waits, no speculation begins."""
    path = ran.port

    def noted(port: int, number: int) -> object:
        """How long it takes nobody knows: what is known to be short is sent ahead of a free worker."""
        return note(port, number)

    with one_daemon.connect() as kernel:  # to whose server it is new how long the held ones take
        held = [gate.hold(kernel, i) for i in range(2)]
        gate.wait(2)
        guesses = [speculate(noted, path, -i) for i in range(1, 4)]
        wanted = [future(noted, path, i) for i in range(1, 4)]
        kernel.categories_running()  # asked behind them all
        gate.open()  # one worker has them all, one after the other
        results([*guesses, *wanted])
        assert ran.numbers() == [1, 2, 3, -1, -2, -3]
        gate.open()
        results(held)


def test_plet_test() -> None:
    assert plet() == ()
    assert plet(lambda: 1, "builtins.dict", double_of_three) == (1, {}, 6)
    made = plet(a=lambda: 1, b=double_of_three)
    assert (made.a, made.b) == (1, 6)
    for predicate in (True, False, lambda: True, lambda: False):
        assert plet_if(predicate, lambda: 1, double_of_three) == (1, 6)
        assert plet_if(predicate, a=double_of_three).a == 6
        with pytest.raises(LookupError):
            plet_if(predicate, lambda: 1, fail)


def double_of_three():
    return 6


# --- cognate-test: the grind tests ------------------------------------------------------------------------------------

SIZES = (0, 1, 2, 3, 7, 50)
PARTS = (None, 1, 2, 5, 100)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("parts", PARTS)
def test_grind(size: int, parts) -> None:
    """Each cognate over the same dice, beside what Python itself says."""
    dice = random.Random(size)
    data = [dice.randrange(10) for _ in range(size)]
    more = [dice.randrange(10) for _ in range(size + 3)]
    odd = lambda x: x % 2 == 1
    set_of = lambda x, y: x * 10 + y
    assert pmap(list, set_of, data, more, parts=parts) == list(map(set_of, data, more))
    assert pmap(tuple, odd, data, parts=parts) == tuple(map(odd, data))
    assert pmap_into([None] * (size + 2), odd, data, parts=parts) == [*map(odd, data), None, None]
    assert pmaplist(sum, data, parts=parts) == [sum(data[i:]) for i in range(size)]
    assert pmapcan(lambda x: [x] * (x % 3), data, parts=parts) == [x for x in data for _ in range(x % 3)]
    assert pcount_if(odd, data, parts=parts) == sum(map(odd, data))
    assert pcount_if_not(odd, data, parts=parts) == size - sum(map(odd, data))
    assert pcount(3, data, parts=parts) == data.count(3)
    assert pfind(3, data, parts=parts) == next((x for x in data if x == 3), None)
    assert pfind_if(odd, data, parts=parts) == next(filter(odd, data), None)
    assert pfind_if_not(odd, data, parts=parts) == next(itertools.filterfalse(odd, data), None)
    assert premove(3, data, parts=parts) == [x for x in data if x != 3]
    assert premove_if(odd, data, parts=parts) == list(itertools.filterfalse(odd, data))
    assert premove_if_not(odd, data, parts=parts) == list(filter(odd, data))
    assert psort(data, parts=parts) == sorted(data)
    assert psort(data, lambda x, y: x > y, parts=parts) == sorted(data, reverse=True)
    assert pevery(odd, data, parts=parts) == all(map(odd, data))
    assert bool(psome(odd, data, parts=parts)) == any(map(odd, data))
    assert pnotany(odd, data, parts=parts) == (not any(map(odd, data)))
    assert pnotevery(odd, data, parts=parts) == (not all(map(odd, data)))
    assert preduce("operator.add", data, initial_value=100, parts=parts) == sum(data) + 100
    reduced = pmap_reduce(odd, "operator.add", data, initial_value=0, parts=parts)
    assert reduced == sum(map(odd, data))
    if size:
        assert preduce(operator.add, data, parts=parts) == functools.reduce(operator.add, data)
        assert sum(preduce_partial(lambda x, y: x + y, data, parts=parts)) == sum(data)
    assert pmapc(odd, data, parts=parts) is data
    assert pdotimes(size, odd, parts=parts) is None


@pytest.mark.parametrize("size", [0, 1, 3, 99])
def test_pmap_with_size_constraint_test(size: int) -> None:
    assert pmap(list, double, range(10), size=size) == [2 * i for i in range(10)][:size]
    assert pmap_into([9] * 5, double, range(10), size=size) == [
        *[2 * i for i in range(5)][:size],
        *[9] * max(0, 5 - size),
    ]


@pytest.mark.parametrize(
    "call",
    [
        lambda: pmap(list, fail, [1, 2, 3]),
        lambda: pmap_into([1, 2], fail, [1, 2]),
        lambda: preduce(lambda x, y: fail(x), [1, 2, 3]),
        lambda: pmap_reduce(fail, max, [1, 2]),
        lambda: psort([3, 2, 1], lambda x, y: fail(x)),
        lambda: psome(fail, [1, 2]),
        lambda: pcount_if(fail, [1]),
        lambda: premove_if(fail, [1]),
        lambda: pfind_if(fail, [1]),
        lambda: pand(lambda: 1, fail),
        lambda: por(lambda: None, fail),
        lambda: pfuncall(fail, lambda: 1),
        lambda: pfuncall(double, fail),
        lambda: pdotimes(3, fail),
    ],
)
def test_errors_come_out_of_every_cognate_and_the_kernel_goes_on(call) -> None:
    with pytest.raises(LookupError, match="foo") as caught:
        call()
    assert isinstance(caught.value, SecfarmError)
    assert pmapcar(double, [1]) == [2]


def test_pand_por_test() -> None:
    assert (pand(), por()) == (True, False)
    assert pand(lambda: 3, lambda: 4) in (3, 4)
    assert por(lambda: 0, lambda: 4) == 4
    assert pand(lambda: 3, lambda: 0) == 0
    assert por(lambda: 0, lambda: "") in (0, "")


def test_cognates_in_threads() -> None:
    """Several at a time on one kernel do not mix."""
    got: dict[int, object] = {}

    def use(number: int) -> None:
        got[number] = [preduce("operator.add", pmapcar(double, range(number, number + 50))) for _ in range(3)]

    threads = [threading.Thread(target=use, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == {number: [2 * sum(range(number, number + 50))] * 3 for number in range(5)}


# --- ptree-test -------------------------------------------------------------------------------------------------------


def test_grind_ptree_test() -> None:
    """A random tree, called from several threads at once, by ids of several types."""
    dice = random.Random(7)
    ids = [f"node{i}" if i % 2 else (i, "node") for i in range(40)]
    wanted: dict[object, int] = {}
    tree = Ptree()
    for number, name in enumerate(ids):
        args = dice.sample(ids[:number], min(number, dice.randrange(4)))
        tree.define(name, args, lambda *values, number=number: number + sum(values))
        wanted[name] = number + sum(wanted[arg] for arg in args)
    tree.check()
    got: list[dict[object, object]] = []
    threads = [
        threading.Thread(target=lambda: got.append({name: tree.call(name) for name in ids[:: dice.choice((1, -1))]}))
        for _ in range(3)
    ]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert got == [wanted] * 3
    assert all(tree.computed(name) for name in ids)


def test_ptree_error_test(gate, ran) -> None:
    """An error stands until it is cleared; nodes that do not need it are computed; values are kept meanwhile."""
    path, broken = ran.port, gate.port

    def fragile(x, broken):
        if is_heard(broken):
            raise LookupError("foo")
        return x + 1

    tree = Ptree()
    tree.define("x", (), lambda: note(path, 1))
    tree.define("broken", (), lambda: broken)
    tree.define("y", ("x", "broken"), fragile)
    tree.define("z", ("y",), double)
    tree.define("beside", ("x",), double)
    for _ in range(2):
        with pytest.raises(LookupError, match="foo"):
            tree.call("z")
    assert tree.call("beside") == 2
    assert [tree.computed(name) for name in ("x", "y", "z", "beside")] == [True, False, False, True]
    gate.close()
    with pytest.raises(LookupError):
        tree.call("z")
    tree.clear_errors()
    assert tree.call("z") == 4
    assert ran.numbers() == [1]
    tree.clear()
    assert not tree.computed("x")
    assert tree.call("z") == 4
    assert ran.numbers() == [1, 1]
