"""A build as a ptree: what each target is made of is said once, and what does not wait for each other runs at a time.

The "compiler" makes a listing out of a source, the "linker" joins listings. A source that is broken fails its target
and what needs it; the others are built, and are kept until it is mended.

python examples/build.py [--on ADDRESS]
"""

from __future__ import annotations

import argparse

from secfarm import Kernel, Ptree, TaskExecutionError, deftask, local_kernel

SOURCES = {
    "main.c": "int main() { return add(1, 2); }",
    "add.c": "int add(int x, int y) { return x + y; }",
    "log.c": "void log(char *text) { puts(text) }",
}
TARGETS = {"program": ["main.o", "add.o"], "logger": ["log.o"]}


@deftask
def compiled(source: str) -> str:
    """Return the listing of a source."""
    if ";" not in source:
        raise SyntaxError(f"expected ';' in {source!r}")
    return f"[{len(source)} bytes: {source.split('(', maxsplit=1)[0]}]"


@deftask
def linked(*listings: str) -> str:
    """Return the program that consists of these listings."""
    return " + ".join(listings)


def build_graph() -> Ptree:
    """Return the graph: sources, listings, programs."""
    graph = Ptree()
    for name, text in SOURCES.items():
        graph.define(name, [], lambda text=text: text)
        graph.define(name.replace(".c", ".o"), [name], compiled)
    for name, parts in TARGETS.items():
        graph.define(name, parts, linked)
    graph.check()
    return graph


def main() -> None:
    """Build every target; say what was made and what was not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--on", metavar="ADDRESS", help="a server; by default one is started here")
    options = parser.parse_args()
    graph = build_graph()
    with Kernel(options.on) if options.on else local_kernel():
        for target in TARGETS:
            try:
                print(f"{target}: {graph.call(target)}")
            except TaskExecutionError as error:
                print(f"{target}: not built, {error.report}")
        print("kept:", *(name for part in TARGETS.values() for name in part if graph.computed(name)))


if __name__ == "__main__":
    main()
