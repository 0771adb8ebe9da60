"""Penalties: bounded failures a source, forgiven with time, and never another source's."""

from __future__ import annotations

import pytest

from secfarm.net import penalty
from secfarm.net.penalty import BURST, REFILL_PER_S, Penalties


def exhausted(source: str) -> Penalties:
    penalties = Penalties()
    for _ in range(BURST):
        assert penalties.is_open(source, 0.0)
        penalties.failed(source, 0.0)
    return penalties


def test_a_source_is_turned_away_after_its_burst_and_let_in_again_with_time() -> None:
    penalties = exhausted("a")
    assert not penalties.is_open("a", 0.0)
    assert not penalties.is_open("a", 0.9 / REFILL_PER_S)
    assert penalties.is_open("a", 1.1 / REFILL_PER_S)


def test_one_source_does_not_pay_for_another() -> None:
    assert exhausted("a").is_open("b", 0.0)


def test_a_clock_that_goes_back_opens_nothing() -> None:
    assert not exhausted("a").is_open("a", -1000.0)


def test_the_number_of_sources_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(penalty, "_MAX_SOURCES", 50)
    penalties = exhausted("a")
    for number in range(200):
        penalties.failed(f"source {number}", number * 0.001)
    assert len(penalties._buckets) <= 50
