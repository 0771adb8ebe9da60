"""Penalties: a source whose connections keep failing is turned away before it costs anything.

A bucket of failures for each source, refilled with time. Pure: the clock is passed in. Idea: sshd's PerSourcePenalties.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

BURST: Final = 100  # failures that a source may have at once: a site's whole cluster with one wrong key is no attack
REFILL_PER_S: Final = 10.0
_MAX_SOURCES: Final = 10_000  # remembered at once


@dataclass(slots=True)
class _Bucket:
    left: float
    at_s: float


class Penalties:
    """What each source of connections has left."""

    def __init__(self) -> None:
        self._buckets: dict[str, _Bucket] = {}

    def is_open(self, source: str, now_s: float) -> bool:
        """Return whether a connection from `source` is to be let in."""
        bucket = self._buckets.get(source)
        return bucket is None or self._left(bucket, now_s) >= 1

    def failed(self, source: str, now_s: float) -> None:
        """Note that a connection from `source` did not become a session."""
        bucket = self._buckets.get(source)
        if bucket is None:
            if len(self._buckets) >= _MAX_SOURCES:
                self._forget_full(now_s)
            bucket = self._buckets[source] = _Bucket(BURST, now_s)
        bucket.left, bucket.at_s = max(0.0, self._left(bucket, now_s) - 1), now_s

    @staticmethod
    def _left(bucket: _Bucket, now_s: float) -> float:
        return min(BURST, bucket.left + REFILL_PER_S * max(0.0, now_s - bucket.at_s))

    def _forget_full(self, now_s: float) -> None:
        """Forget who is in good standing again; if nobody is, whoever failed longest ago."""
        for source in [name for name, bucket in self._buckets.items() if self._left(bucket, now_s) >= BURST]:
            del self._buckets[source]
        if len(self._buckets) >= _MAX_SOURCES:
            del self._buckets[min(self._buckets, key=lambda name: self._buckets[name].at_s)]
