"""A parameter sweep: one model for every combination of parameters, the best of them, and progress on a terminal.

The model is the logistic map x -> r x (1 - x); what is looked for is the r that wanders most.

python examples/sweep.py [--on ADDRESS] [--steps N] [--points N]
"""

from __future__ import annotations

import argparse
import itertools
import math

from secfarm import Kernel, deftask, local_kernel, pmap


@deftask
def exponent(r: float, start: float, steps: int) -> float:
    """Return the Lyapunov exponent of the logistic map: above 0 it is chaotic."""
    x, total = start, 0.0
    for _ in range(steps):
        x = r * x * (1 - x)
        total += math.log(max(abs(r * (1 - 2 * x)), 1e-12))
    return total / steps


def main() -> None:
    """Run the model over the grid and print the best."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--on", metavar="ADDRESS", help="a server; by default one is started here")
    parser.add_argument("--steps", type=int, default=2_000)
    parser.add_argument("--points", type=int, default=300)
    options = parser.parse_args()
    rates = [3 + i / options.points for i in range(1, options.points + 1)]
    grid = list(itertools.product(rates, (0.2, 0.3)))
    columns = zip(*grid, strict=True)
    with Kernel(options.on) if options.on else local_kernel():
        found = pmap(list, exponent, *columns, [options.steps] * len(grid), progress=True)
    best, (rate, _) = max(zip(found, grid, strict=True))
    print(f"{sum(value > 0 for value in found)} of {len(grid)} are chaotic; the most at r = {rate:.3f}: {best:.3f}")


if __name__ == "__main__":
    main()
