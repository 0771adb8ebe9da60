"""The pauses of one who dials for ever grow to a bound, are spread, and begin anew after a success."""

from __future__ import annotations

import asyncio

import pytest

from secfarm.net.dial import BackOff


def test_pauses_grow_to_a_bound_and_begin_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []

    async def sleep(pause_s: float) -> None:
        waited.append(pause_s)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    back_off = BackOff(2.0)

    async def pauses(count: int) -> list[float]:
        waited.clear()
        for _ in range(count):
            await back_off.pause()
        return waited

    for longest, pause_s in zip([0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0], asyncio.run(pauses(8)), strict=True):
        assert longest / 2 <= pause_s <= longest
    assert len(set(waited[-2:])) == 2, "jittered"
    back_off.ended(0.01)
    assert asyncio.run(pauses(1))[0] >= 0.625, "let in and closed at once is no success"
    back_off.ended(0.01, was_of_use=True)
    assert asyncio.run(pauses(1))[0] <= 0.05
    back_off.ended(60.0)
    assert asyncio.run(pauses(1))[0] <= 0.05
