"""Monte Carlo pi: each task throws dice of its own, seeded by its number, so that every run gives the same answer.

python examples/pi.py [--on ADDRESS] [--throws N] [--tasks N]
"""

from __future__ import annotations

import argparse
import random

from secfarm import Kernel, deftask, local_kernel


@deftask
def hits(seed: int, throws: int) -> int:
    """Return how many of `throws` random points of the unit square lie in the quarter of a circle."""
    dice = random.Random(seed)
    return sum(dice.random() ** 2 + dice.random() ** 2 <= 1 for _ in range(throws))


def main() -> None:
    """Throw, count, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--on", metavar="ADDRESS", help="a server; by default one is started here")
    parser.add_argument("--throws", type=int, default=2_000_000)
    parser.add_argument("--tasks", type=int, default=20)
    options = parser.parse_args()
    each = options.throws // options.tasks
    with Kernel(options.on) if options.on else local_kernel() as kernel:
        found = sum(kernel.map(hits, range(options.tasks), [each] * options.tasks))
    print(f"pi is about {4 * found / (each * options.tasks):.4f}")


if __name__ == "__main__":
    main()
