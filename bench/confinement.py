"""What confinement costs: calls in confined workers beside the same calls in workers that nothing confines.

    python bench/confinement.py [--quick]

The workers are forked by zygotes of the tests' own, with every layer of the profile `full` or with none; the last rows
go through a real server. Sizes of processes are shown to root only.
"""

from __future__ import annotations

import argparse
import importlib
import re
import statistics
import sys
import time
from functools import partial
from operator import neg
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT: Final = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from secfarm.run.pipe import Run, encode_run  # noqa: E402 - from this tree, whatever is installed
from secfarm.run.profile import FULL, Layer  # noqa: E402
from secfarm.task import codec  # noqa: E402
from secfarm.task.capture import capture  # noqa: E402

ROUNDS: Final = 9
CALLS: Final = 2000
WORKERS: Final = 100
PAUSE_S: Final = 0.02  # between two calls of a user who is not in a hurry: spares are warm again
GRANT: Final = '\n[grant.confine]\nisolation = "{}"\n'


def call_us(worker: Any, run: bytes, calls: int) -> float:  # noqa: ANN401 - of the tests, which have no types
    """Return the median time of a call in a worker that is there."""
    times = []
    for _ in range(calls):
        start_s = time.perf_counter()
        worker.write(run)
        done = worker.read(1.0)
        times.append(time.perf_counter() - start_s)
        if done.value != codec.encode(-1):
            raise SystemExit(f"a wrong answer: {done}")
    return statistics.median(times) * 1e6


def fresh_ms(cell: Any) -> float:  # noqa: ANN401 - as above
    """Return the time from the order of a worker to its word that it is ready."""
    start_s = time.perf_counter()
    worker = cell.worker()
    taken_s = time.perf_counter() - start_s
    worker.end()
    return taken_s * 1e3


def pss_mb(cell: Any) -> float | None:  # noqa: ANN401 - as above
    """Return the proportional set size of a worker that has run a call, beside another; None: not ours to know."""
    worker, other = cell.worker(), cell.worker()
    worker.send(neg, 1)
    worker.read(1.0)
    cell.nursery.dispatch()
    try:
        rollup = Path(f"/proc/{cell.nursery.pid_of(worker.number)}/smaps_rollup").read_text("ascii")
    except PermissionError:
        return None
    finally:
        worker.end()
        other.end()
    found = re.search(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE)
    return None if found is None else int(found[1]) / 1000


def paused_ms(kernel: Any, calls: int) -> float:  # noqa: ANN401 - as above
    """Return the median time of a call through a server that has had time to breathe."""
    times = []
    for _ in range(calls):
        time.sleep(PAUSE_S)
        start_s = time.perf_counter()
        kernel.run("operator.neg", 1)
        times.append(time.perf_counter() - start_s)
    return statistics.median(times) * 1e3


def in_turns(rounds: int, first: Callable[[], float], second: Callable[[], float]) -> tuple[float, float]:
    """Return the medians of both, measured in turns, so that the machine's moods meet both alike."""
    pairs = [(first(), second()) for _ in range(rounds)]
    return statistics.median([pair[0] for pair in pairs]), statistics.median([pair[1] for pair in pairs])


def main() -> None:
    """Measure, and print a line for each reach."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="does it run at all")
    quick = parser.parse_args().quick
    rounds, calls, workers = (1, 20, 3) if quick else (ROUNDS, CALLS, WORKERS)
    cells, farms = (importlib.import_module(f"tests.{name}") for name in ("run.cell", "farm.farms"))
    program = capture(neg).program
    run = encode_run(Run(1, program.key, codec.encode_call((1,), {}), None, program.wire))
    with cells.Cell(FULL) as confined, cells.Cell(FULL.without(*Layer)) as bare:
        times = [partial(call_us, cell.worker(), run, calls) for cell in (confined, bare)]
        ours, others = in_turns(rounds, *times)
        print(f"a call, worker reused    {ours:6.1f} µs confined, {others:.1f} µs not: {ours / others:.2f}")
        fresh = [fresh_ms(confined) for _ in range(workers)]
        print(f"a fresh confined worker  {statistics.median(fresh):6.2f} ms, at best {min(fresh):.2f} ms")
        size = pss_mb(confined)
        print("an idle worker           " + ("its size is root's to know" if size is None else f"{size:6.1f} MB PSS"))
    policies = [farms.POLICY.partition("\n[grant.confine]")[0] + GRANT.format(word) for word in ("session", "task")]
    servers = [farms.Daemon(policy=policy) for policy in policies]
    with servers[0], servers[1], servers[0].connect() as first, servers[1].connect() as second:
        ours, others = in_turns(rounds, *[partial(paused_ms, kernel, calls // 10) for kernel in (first, second)])
    print(f"a call through a server  {ours:6.2f} ms, {others:.2f} ms with a worker of its own from the spares")


if __name__ == "__main__":
    main()
