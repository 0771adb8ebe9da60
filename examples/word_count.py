"""Word count: each part of the lines is counted where it is, and the counts are added up (`pmap_reduce`).

python examples/word_count.py [--on ADDRESS] [--most N] [FILE...]
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from pathlib import Path

from secfarm import Kernel, deftask, local_kernel, pmap_reduce

TEXT = """\
In the beginning was the word, and the word was on one machine.
Then there were more words than the machine could count,
and the words went to the machines, and the machines counted the words.
"""


@deftask
def count(line: str) -> Counter[str]:
    """Return how often each word occurs in a line."""
    return Counter(re.findall(r"\w+", line.lower()))


def main() -> None:
    """Read, count, print the words that occur most."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--on", metavar="ADDRESS", help="a server; by default one is started here")
    parser.add_argument("--most", type=int, default=5)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="by default a few lines of this example")
    options = parser.parse_args()
    texts = [file.read_text("utf-8") for file in options.files] or [TEXT]
    lines = [line for text in texts for line in text.splitlines()]
    with Kernel(options.on) if options.on else local_kernel():
        counted = pmap_reduce(count, lambda a, b: a + b, lines, initial_value=Counter())
    for word, times in sorted(counted.items(), key=lambda item: (-item[1], item[0]))[: options.most]:
        print(f"{times:7} {word}")


if __name__ == "__main__":
    main()
