"""Siblings: how a cognate's rows are cut, and which of its tasks may be called together by a function of ours."""

from __future__ import annotations

import asyncio
import concurrent.futures

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secfarm import InvalidTaskError, deftask, set_kernel, task_category
from secfarm.farm.future import Options
from secfarm.farm.shipped import folder, judge, seeker, sorter
from secfarm.farm.siblings import Siblings, joint_settings

source = lambda x: x


@pytest.fixture(autouse=True)
def _current(one_kernel) -> None:
    set_kernel(one_kernel)


@given(st.lists(st.integers(), max_size=40), st.none() | st.integers(1, 50))
def test_pieces_are_the_rows_in_order_and_of_even_size(rows: list[int], parts: int | None) -> None:
    pieces = Siblings().pieces(rows, parts, Options())
    sizes = [len(piece) for piece in pieces]
    assert [row for piece in pieces for row in piece] == rows
    assert max(sizes, default=1) - min(sizes, default=1) <= 1
    assert all(sizes)
    assert parts is None or len(pieces) == min(parts, len(rows))


def test_first_takes_the_first_in_order_of_those_that_are_known() -> None:
    futures = [concurrent.futures.Future() for _ in range(4)]
    for number in (3, 1, 2):
        futures[number].set_result(number)
    assert Siblings.first(futures, lambda value: value > 0) == (1, 1)
    futures[0].set_exception(KeyError("known too"))
    with pytest.raises(KeyError):
        Siblings.first(futures, lambda value: value > 0)
    assert Siblings.first(futures[1:], lambda value: value > 9) is None


def test_tasks_are_called_together_unless_only_names_travel_or_their_settings_differ() -> None:
    etl, limited = deftask(category="etl")(source), deftask(timeout_s=1)(source)
    assert joint_settings(source, len) == joint_settings(source) == Options()
    assert joint_settings(etl) == joint_settings(etl, etl) == Options(category="etl")
    for tasks in [(len,), (len, abs), (source, "len"), ("len",), (limited,), (etl, source)]:
        assert joint_settings(*tasks) is None, tasks
    with task_category("same"):
        assert joint_settings(etl, source) == Options(category="same")
    with pytest.raises(InvalidTaskError):
        joint_settings(source, 3)


def test_what_travels_does_the_same_here() -> None:
    """The functions of farm/shipped.py are functions: run in this process they do what they do there."""

    async def later(x):
        await asyncio.sleep(0)
        return x

    def letters(word):
        yield from word

    assert folder(lambda a, b: a + b, letters, from_end=False)(["ab", "c"], [["!"]]) == ["!", "a", "b", "c"]
    assert folder(lambda a, b: f"({a}{b})", None, from_end=True)(["a", "b"], ["!"]) == "(a(b!))"
    assert seeker(later, None, wanted=True, keep=True)([(0,), (5,), (6,)]) == (1, 5)
    assert seeker(later, abs, wanted=False, keep=False)([(-1,), (0,)]) == (1, None)
    assert seeker(later, None, wanted=True, keep=True)([(0,)]) is None
    assert judge(later, None)([(0,), (2,)]) == [False, True]
    assert judge(later, len)([("",), ("a",)]) == [False, True]
    assert sorter(lambda a, b: a > b)([1, 3, 2, 3]) == [1, 3, 2, 0]
