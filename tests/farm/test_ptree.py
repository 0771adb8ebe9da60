"""Ptrees: each value computed once, after what it needs, and errors kept until they are cleared."""

from __future__ import annotations

import operator
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secfarm import (
    InvalidTaskError,
    NoKernelError,
    Ptree,
    PtreeError,
    RedefinedNodeError,
    UndefinedNodeError,
    set_kernel,
)
from tests.farm.farms import WAIT_S, until
from tests.meeting import is_heard, note, pass_gate


@pytest.fixture(autouse=True)
def _current(one_kernel) -> None:
    set_kernel(one_kernel)


def garden() -> Ptree:
    """lparallel's own example."""
    tree = Ptree()
    tree.define("area", ["width", "height"], operator.mul)
    tree.define("width", ["border"], lambda border: 7 + 2 * border)
    tree.define("height", ["border"], "operator.pos")
    tree.define("border", [], lambda: 3)
    return tree


def test_a_node_is_computed_from_the_values_of_its_args() -> None:
    tree = garden()
    assert not tree.computed("area")
    assert tree.call("width") == 13
    assert [tree.computed(node) for node in ("area", "width", "height", "border")] == [False, True, False, True]
    assert tree.call("area") == 39
    assert all(tree.computed(node) for node in ("area", "width", "height", "border"))


def test_ids_are_any_hashable_values_and_args_any_iterable() -> None:
    tree = Ptree()
    tree.define((1, "a"), iter([2, None, 2]), lambda *values: values)
    tree.define(2, (), lambda: "two")
    tree.define(None, [], lambda: None)
    assert tree.call((1, "a")) == ("two", None, "two")


def test_a_value_is_computed_once(ran) -> None:
    file = ran.port
    tree = Ptree()
    tree.define("base", [], lambda: note(file, 1))
    tree.define("left", ["base"], lambda base: base + 1)
    tree.define("right", ["base", "base"], lambda a, b: a + b)
    tree.define("top", ["left", "right", "base"], lambda *values: sum(values))
    assert (tree.call("top"), tree.call("top"), tree.call("base")) == (5, 5, 1)
    assert ran.numbers() == [1]
    tree.clear()
    assert not tree.computed("base")
    assert tree.call("top") == 5
    assert ran.numbers() == [1, 1]


def test_a_computed_value_needs_no_kernel() -> None:
    tree = garden()
    tree.call("area")
    set_kernel(None)
    assert tree.call("area") == 39
    with pytest.raises(NoKernelError):
        garden().call("area")


def test_what_does_not_depend_on_each_other_runs_in_parallel(gate) -> None:
    host, port, _ = gate.arguments(None)
    tree = Ptree()
    tree.define("a", [], lambda: pass_gate(host, port, "a"))
    tree.define("b", [], lambda: pass_gate(host, port, "b"))
    tree.define("both", ["a", "b"], "operator.add")
    got = []
    thread = threading.Thread(target=lambda: got.append(tree.call("both")))
    thread.start()
    gate.wait(2)
    gate.open(2)
    thread.join(WAIT_S)
    assert got == ["ab"]


def test_calls_of_several_threads_share_what_is_being_computed(gate, ran) -> None:
    file = ran.port
    host, port, _ = gate.arguments(None)
    tree = Ptree()
    tree.define("slow", [], lambda: (pass_gate(host, port, "slow"), note(file, 1))[1])
    tree.define("more", ["slow"], lambda slow: slow + 1)
    got = []
    threads = [
        threading.Thread(target=lambda node=node: got.append(tree.call(node))) for node in ("slow", "more", "slow")
    ]
    for thread in threads:
        thread.start()
    gate.wait()
    gate.open(3)
    for thread in threads:
        thread.join(WAIT_S)
    assert sorted(got) == [1, 1, 2]
    assert ran.numbers() == [1]


# --- what is wrong with a tree ----------------------------------------------------------------------------------------


def test_a_node_is_defined_once() -> None:
    tree = garden()
    with pytest.raises(RedefinedNodeError, match="'border' is defined already") as caught:
        tree.define("border", [], lambda: 4)
    assert isinstance(caught.value, ValueError)
    assert tree.call("border") == 3
    tree.clear()
    with pytest.raises(RedefinedNodeError):
        tree.define("border", [], lambda: 4)


def test_a_node_that_was_never_defined_is_an_error_and_nothing_is_computed(ran) -> None:
    file = ran.port
    tree = Ptree()
    tree.define("top", ["base", "missing"], lambda base, missing: base)
    tree.define("base", [], lambda: note(file, 1))
    for call in (lambda: tree.call("top"), tree.check, lambda: tree.call("missing")):
        with pytest.raises(UndefinedNodeError, match="'missing' was never defined") as caught:
            call()
        assert isinstance(caught.value, LookupError)
    with pytest.raises(UndefinedNodeError):
        tree.computed("missing")
    assert ran.numbers() == []
    assert tree.call("base") == 1, "which needs nothing else"
    tree.define("missing", [], lambda: 2)
    tree.check()
    assert tree.call("top") == 1


@pytest.mark.parametrize("length", [1, 2, 5])
def test_a_node_that_needs_itself_is_an_error(length) -> None:
    tree = Ptree()
    tree.define("start", [0], lambda value: value)
    for number in range(length):
        tree.define(number, [(number + 1) % length], lambda value: value)
    for call in (lambda: tree.call("start"), tree.check):
        with pytest.raises(PtreeError, match=r"needs itself: 0 -> .*0; nothing was computed"):
            call()


def test_text_is_no_list_of_ids() -> None:
    tree = Ptree()
    with pytest.raises(TypeError, match="list of ids"):
        tree.define("area", "width", lambda width: width)
    with pytest.raises(TypeError, match="unhashable"):
        tree.define("area", [["width"]], lambda width: width)
    assert repr(tree) == "<secfarm.Ptree: 0 of 0 nodes computed>"


def test_a_task_that_cannot_travel_is_refused_when_it_is_needed() -> None:
    tree = Ptree()
    tree.define("a", [], 3)
    with pytest.raises(InvalidTaskError):
        tree.call("a")
    assert not tree.computed("a")


# --- errors -----------------------------------------------------------------------------------------------------------


def test_an_error_is_kept_until_it_is_cleared_and_values_stay(ran, gate) -> None:
    file, broken = ran.port, gate.port
    tree = Ptree()
    tree.define("good", [], lambda: note(file, 1))
    tree.define("bad", ["good"], lambda good: 1 // 0 if is_heard(broken) else note(file, 2))
    tree.define("top", ["bad"], lambda bad: bad + 1)
    for _ in range(2):
        for node in ("top", "bad"):
            with pytest.raises(ZeroDivisionError):
                tree.call(node)
    assert [tree.computed(node) for node in ("good", "bad", "top")] == [True, False, False]
    gate.close()
    with pytest.raises(ZeroDivisionError):
        tree.call("top")
    tree.clear_errors()
    assert tree.call("top") == 3
    assert ran.numbers() == [1, 2]


def test_what_runs_when_a_node_fails_goes_on_and_is_kept(gate, one_kernel) -> None:
    host, port, _ = gate.arguments(None)
    tree = Ptree()
    tree.define("slow", [], lambda: pass_gate(host, port, "slow"))
    tree.define("bad", [], lambda: 1 // 0)
    tree.define("top", ["slow", "bad"], lambda slow, bad: (slow, bad))
    with pytest.raises(ZeroDivisionError):
        tree.call("top")
    gate.wait()
    gate.open()
    assert tree.call("slow") == "slow"


def test_clear_cancels_what_is_being_computed(gate, one_kernel) -> None:
    host, port, _ = gate.arguments(None)
    tree = Ptree()
    tree.define("slow", [], lambda: pass_gate(host, port, "slow"))
    tree.define("bad", [], lambda: 1 // 0)
    tree.define("top", ["slow", "bad"], lambda slow, bad: (slow, bad))
    with pytest.raises(ZeroDivisionError):
        tree.call("top")
    gate.wait()
    tree.clear()
    until(lambda: not one_kernel._dispatch._outstanding, "nothing is computed")  # the gate stays closed
    assert not tree.computed("slow")


# --- trees of any form ------------------------------------------------------------------------------------------------


@given(st.lists(st.lists(st.integers(0, 100), max_size=4), min_size=1, max_size=25))
@settings(max_examples=10)
def test_every_acyclic_tree_gives_what_one_after_the_other_gives(wanted) -> None:
    """Node i needs some of those before it."""
    tree, values = Ptree(), []
    nodes = [[arg % number for arg in args] if number else [] for number, args in enumerate(wanted)]
    for number in reversed(range(len(nodes))):
        tree.define(number, nodes[number], lambda *args: 1 + sum(args) % 1000)
    for args in nodes:
        values.append(1 + sum(values[arg] for arg in args) % 1000)
    tree.check()
    assert tree.call(len(nodes) - 1) == values[-1]
    assert [tree.call(number) for number in range(len(nodes))] == values


def test_a_deep_tree_is_no_recursion() -> None:
    tree = Ptree()
    tree.define(0, [], lambda: 0)
    for number in range(1, 2000):
        tree.define(number, [number - 1], "operator.pos")
    tree.check()
    assert tree.call(50) == 0
