"""`psort` is `sorted`: stable, a new list of the same objects, whatever sort of predicate it asks."""

from __future__ import annotations

import operator
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secfarm import NoKernelError, deftask, psort, set_kernel, task_from_source
from tests.farm.farms import POLICY, Daemon

greater = [
    lambda a, b: a > b,
    operator.gt,
    "operator.gt",
    task_from_source("lambda a, b: a > b"),
    deftask(timeout_s=20)(lambda a, b: a > b),
]


@pytest.fixture(autouse=True)
def _current(one_kernel) -> None:
    set_kernel(one_kernel)


@pytest.mark.parametrize("predicate", greater)
@pytest.mark.parametrize("parts", [None, 1, 3])
def test_every_kind_of_predicate_sorts(predicate, parts) -> None:
    numbers = random.Random(1).sample(range(1000), 30)
    assert psort(numbers, predicate, parts=parts) == sorted(numbers, reverse=True)
    assert psort([], predicate, parts=parts) == []
    assert psort((1,), predicate, parts=parts) == [1]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers()), max_size=12), st.integers(1, 5))
@settings(max_examples=15)
def test_equal_items_stay_as_they_stood(items, parts) -> None:
    first = lambda pair: pair[0]
    assert psort(items, key=first) == sorted(items, key=first)
    for predicate in (lambda a, b: a < b, "operator.lt"):
        assert psort(items, predicate, key=first, parts=parts) == sorted(items, key=first)
    assert psort(items, lambda a, b: a[0] > b[0], parts=parts) == sorted(items, key=lambda pair: -pair[0])


def test_without_a_predicate_it_is_sorted() -> None:
    assert psort("bca") == ["a", "b", "c"]
    assert psort({3: 1, 1: 2}) == [1, 3]
    assert psort([-3, 2, 1], key=abs) == [1, 2, -3]
    assert psort([-3, 2, 1], key="abs") == [1, 2, -3]
    with pytest.raises(TypeError, match="not supported"):
        psort([1, "a"])


def test_the_list_is_new_and_its_items_are_the_callers_own() -> None:
    items = [[2], [1]]
    made = psort(items, lambda a, b: a < b)
    assert items == [[2], [1]]
    assert (made[0], made[1]) == ([1], [2])
    assert made[0] is items[1]


def test_errors_of_predicates_and_keys_are_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        psort([1, 2, 3], lambda a, b: a // 0)
    with pytest.raises(ZeroDivisionError):
        psort([1, 2, 3], key=lambda a: a // 0)


def test_without_a_kernel_nothing_is_sorted() -> None:
    set_kernel(None)
    with pytest.raises(NoKernelError):
        psort([2, 1])


def test_a_name_sorts_under_a_policy_that_grants_no_source() -> None:
    policy = POLICY.replace('"run", ', "").replace('"*"]\n', '"operator.*"]\n')
    with Daemon(policy=policy) as daemon, daemon.connect():
        assert psort([2, 3, 1, 5, 4], "operator.gt") == [5, 4, 3, 2, 1]
