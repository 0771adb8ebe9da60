"""What a submit costs before anything is sent: capturing a known task, and encoding values beside pickle.

Every number is the median of rounds that take the cases in turn, in one process. See bench/README.md.
"""

from __future__ import annotations

import argparse
import pickle
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from secfarm import deftask
from secfarm.task import codec
from secfarm.task.capture import capture

ROUNDS: Final = 15
ROUND_S: Final = 0.05
FLOATS: Final = [index / 7 for index in range(100_000)]
BLOB: Final = bytes(range(256)) * 4096
SCALE: Final = 3


@deftask
def add(x: float, y: float) -> float:
    """Name nothing: the shortest way."""
    return x + y


@deftask
def scaled(x: float) -> float:
    """Name another task and a value, which are looked at again at each submit."""
    return add(x, 1.0) * SCALE


CALLS: Final[dict[str, tuple[object, ...]]] = {
    "(3, 4)": (3, 4),
    "five mixed": (1, "abc", 2.5, (1, 2), None),
    "bytes": ("abc", b"xyz", 1.5, True),
    "100k floats": (FLOATS,),
    "1 MiB bytes": (BLOB,),
}


@dataclass(frozen=True, slots=True)
class Case:
    """One thing to time; `beside` is what its ratio is taken to, `target_s` what it should stay under."""

    name: str
    run: Callable[[], object]
    beside: Callable[[], object] | None = None
    target_s: float | None = None


def cases() -> list[Case]:
    """Return every case; a wrong answer ends the bench here."""
    made = [
        Case(f"submit {task.name}", lambda task=task, args=args: submit(task, args), target_s=25e-6)  # type: ignore[misc]
        for task, args in ((add, (3, 4)), (scaled, (3,)))
    ]
    for name, args in CALLS.items():
        wire, pickled = codec.encode_call(args, {}), pickle.dumps((args, {}), 5)
        assert codec.decode_call(wire) == (args, {}), name
        target_s = 4e-6 if len(wire) < 100 else None  # noqa: PLR2004 - small arguments
        made.append(
            Case(
                f"encode {name}",
                lambda args=args: codec.encode_call(args, {}),  # type: ignore[misc]
                lambda args=args: pickle.dumps((args, {}), 5),  # type: ignore[misc]
                target_s,
            )
        )
        made.append(
            Case(
                f"decode {name}",
                lambda wire=wire: codec.decode_call(wire),  # type: ignore[misc]
                lambda pickled=pickled: pickle.loads(pickled),  # type: ignore[misc] # noqa: S301 - made right here
                target_s,
            )
        )
    return made


def submit(task: Callable[..., object], args: tuple[object, ...]) -> bytes:
    """Do what `Kernel.submit` does in the caller's thread, without the queue."""
    captured = capture(task)
    if captured.values:
        codec.encode(list(captured.values))
    return codec.encode_call(args, {})


def time_of(run: Callable[[], object], round_s: float) -> float:
    """Return seconds a call, over about `round_s` seconds."""
    start_s, count = time.perf_counter(), 0
    while (spent_s := time.perf_counter() - start_s) < round_s:
        for _ in range(10):
            run()
        count += 10
    return spent_s / count


def main() -> None:
    """Print one line for each case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--quick", action="store_true", help="seconds: does it run at all")
    options = parser.parse_args()
    rounds, round_s = (1, 0.001) if options.quick else (options.rounds, ROUND_S)
    every = cases()
    own: dict[str, list[float]] = {case.name: [] for case in every}
    ratios: dict[str, list[float]] = {case.name: [] for case in every}
    for _ in range(rounds):
        for case in every:
            spent_s = time_of(case.run, round_s)
            own[case.name].append(spent_s)
            if case.beside is not None:
                ratios[case.name].append(spent_s / time_of(case.beside, round_s))
    print(f"{'case':22}{'µs':>10}{'target':>9}{'/ pickle 5':>12}")
    for case in every:
        target = "" if case.target_s is None else f"{case.target_s * 1e6:.0f}"
        ratio = f"{statistics.median(ratios[case.name]):.2f}" if ratios[case.name] else ""
        print(f"{case.name:22}{statistics.median(own[case.name]) * 1e6:10.2f}{target:>9}{ratio:>12}")


if __name__ == "__main__":
    main()
