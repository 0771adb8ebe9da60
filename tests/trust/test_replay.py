"""Sequence numbers rise strictly."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secfarm.errors import ReplayedError
from secfarm.trust.replay import SequenceWindow


@given(st.lists(st.integers(-3, 20), max_size=20))
def test_admitted_numbers_rise_strictly_whatever_comes(numbers: list[int]) -> None:
    window, admitted = SequenceWindow(), []
    for number in numbers:
        if number > max(admitted, default=-1):
            assert window.admit(number) == number
            admitted.append(number)
        else:
            with pytest.raises(ReplayedError, match="nothing was run"):
                window.admit(number)
        assert window.last == max(admitted, default=-1)
    assert admitted == sorted(set(admitted))
