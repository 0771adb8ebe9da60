"""Kerberos beside Ed25519, on one machine in one run: tasks per second, and the time to a first result.

    python bench/kerberos.py

It starts the tests' own KDC and servers: krb5-kdc, krb5-admin-server, krb5-user and the package gssapi must be there.
"""

from __future__ import annotations

import importlib
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
TASKS = 20_000
CONNECTIONS = 40
ROUNDS = 3


def tasks_per_s(daemon: Any) -> float:  # noqa: ANN401 - of the tests, which have no types
    """Return the best of some rounds of small tasks."""
    with daemon.connect() as kernel:
        rates = []
        for _ in range(ROUNDS):
            start_s = time.perf_counter()
            futures = [kernel.submit("operator.neg", number) for number in range(TASKS)]
            assert [future.result() for future in futures] == [-number for number in range(TASKS)]
            rates.append(TASKS / (time.perf_counter() - start_s))
    return max(rates)


def first_result_ms(daemon: Any) -> tuple[float, float]:  # noqa: ANN401 - as above
    """Return least and median time to connect, prove both names and have one result; a ticket is in the cache."""
    times = []
    for _ in range(CONNECTIONS):
        start_s = time.perf_counter()
        with daemon.connect() as kernel:
            assert kernel.run("operator.neg", 1) == -1
            times.append((time.perf_counter() - start_s) * 1e3)
    return min(times), statistics.median(times)


def main() -> None:
    """Measure both ways in turns and print a line for each."""
    farms = importlib.import_module("tests.farm.farms")
    with farms.Daemon("tcp-ed25519") as ed25519, farms.Daemon("tcp-gss") as gss:
        os.environ.update(gss.realm.environ)
        for _ in range(2):
            for name, daemon in (("ed25519", ed25519), ("kerberos", gss)):
                rate, (least, median) = tasks_per_s(daemon), first_result_ms(daemon)
                print(f"{name:9} {rate:8.0f} tasks/s, first result after {least:.1f} ms (median {median:.1f} ms)")


if __name__ == "__main__":
    main()
