"""Hostile tasks against the servers that live with their client; what escaped is said, not asserted.

Also a script, for those who must be another user: `embedded.py WAY FOLDER` prints a JSON object of escapes.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Self

from secfarm import Kernel, local_kernel, start_server
from tests.attacks.hostile import Attack, named
from tests.attacks.onslaught import assault
from tests.attacks.siege import DEADLINE_S
from tests.attacks.world import World
from tests.daemon.site import ADA, ROOT, Site

# One for each thing that there is to steal or to break; the whole corpus is test_sealed.py's.
ATTACKS: Final[tuple[Attack, ...]] = tuple(
    named(name)
    for name in (
        "reads_a_file_by_path",
        "reads_a_file_through_proc",
        "reads_an_environment",
        "reads_the_memory_of_the_server_by_path",
        "reads_the_memory_of_a_process_by_call",
        "learns_of_a_file_outside",
        "searches_all_objects",
        "finds_inherited_descriptors",
        "writes_a_file",
        "creates_where_everybody_may",
        "writes_into_python",
        "runs_a_program",
        "forks",
        "kills",
        "traces",
        "enters_namespaces",
        "undoes_its_confinement",
        "makes_memory_executable",
        "connects",
        "connects_to_a_unix_socket",
        "connects_to_an_abstract_socket",
        "looks_into_shared_memory",
        "waits_for_ever",
        "crashes",
    )
)
_POLICY: Final = """\
[[grant]]
principals = ["ada"]
may = ["run", "call", "admin"]
names = ["*"]
"""


def _site(folder: Path) -> Site:
    (home := folder / "home").mkdir(mode=0o700)
    site = Site(home)
    site.policy(_POLICY)
    return site


@contextlib.contextmanager
def _local(folder: Path) -> Iterator[Kernel]:
    del folder
    with local_kernel(workers=1) as kernel:
        yield kernel


@contextlib.contextmanager
def _in_the_background(folder: Path) -> Iterator[Kernel]:
    site = _site(folder)
    server = start_server(port=0, background=True, config=site.folder / "config.toml")
    assert server is not None
    with server, Kernel(server.addresses, auth=site.auth(), connect_timeout_s=DEADLINE_S) as kernel:  # type: ignore[arg-type]
        yield kernel


@contextlib.contextmanager
def _stdio(folder: Path) -> Iterator[Kernel]:
    """Over a program that stands where ssh would, on this machine."""
    site = _site(folder)
    ssh = folder / "ssh"
    words = f"'{sys.executable}' -m secfarm serve -c '{site.folder}/config.toml' --stdio"
    ssh.write_text(f"#!/bin/sh\nPYTHONPATH='{ROOT}' exec {words}\n")
    ssh.chmod(0o755)
    client = site.write("client.toml", f'[ssh]\nprogram = "{ssh}"\n')
    os.environ["SECFARM_CONFIG"] = str(client)
    try:
        with Kernel("ssh://far", auth=site.auth(ADA), connect_timeout_s=DEADLINE_S) as kernel:
            yield kernel
    finally:
        del os.environ["SECFARM_CONFIG"]


WAYS: Final = {"local_kernel": _local, "start_server": _in_the_background, "serve --stdio": _stdio}


class Embedded:
    """A server of one way, under attack. A context manager."""

    def __init__(self, way: str, folder: Path) -> None:
        self._stack = contextlib.ExitStack()
        self.world = World(folder)
        self._stack.callback(self.world.close)
        os.environ["SECRET_OF_THE_OWNER"] = str(self.world.facts["marker"])[::-1]
        self._stack.callback(os.environ.pop, "SECRET_OF_THE_OWNER")
        self.kernel = self._stack.enter_context(WAYS[way](folder))

    def assault(self, attack: Attack) -> str | None:
        """Run one attack; return how it escaped, or None."""
        return assault(self.kernel, attack, self.world)

    def stands(self) -> None:
        """Canaries are untouched, and a benign task answers."""
        self.world.check()
        assert self.kernel.run(lambda: sum(range(10))) == 45

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def main(way: str, folder: str) -> None:
    escapes: dict[str, str] = {}
    with Embedded(way, Path(folder)) as embedded:
        for attack in ATTACKS:
            if (escape := embedded.assault(attack)) is not None:
                escapes[attack.name] = escape
            embedded.stands()
    print(json.dumps({"attacks": len(ATTACKS), "escapes": escapes}))


if __name__ == "__main__":
    main(*sys.argv[1:])
