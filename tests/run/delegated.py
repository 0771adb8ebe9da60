"""A control group that is delegated as systemd does it, on the machine's own tree of version 2."""

from __future__ import annotations

import contextlib
import os
import select
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.run.nobody import NOBODY

_DEADLINE_S: Final = 20.0


def _tree() -> Path | None:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        about, _, kind = line.partition(" - ")
        if kind.startswith("cgroup2 ") and os.access(about.split()[4], os.W_OK):
            return Path(about.split()[4])
    return None


class Delegated:
    """One group; what a process needs to start in it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def join(self) -> None:
        """Move this process, just forked, into it."""
        (self.path / "cgroup.procs").write_text("0")

    def of_nobody(self) -> None:
        """Give it to an ordinary user, as `Delegate=` gives it to `User=`."""
        for path in (self.path, *(self.path / f"cgroup.{name}" for name in ("procs", "threads", "subtree_control"))):
            os.chown(path, NOBODY, NOBODY)

    def groups(self) -> dict[str, list[int]]:
        """Path below it -> the processes in it, for all that is there."""
        found = {}
        for directory, _, _ in os.walk(self.path):
            with contextlib.suppress(OSError):  # removed meanwhile
                processes = [int(pid) for pid in Path(directory, "cgroup.procs").read_text().split()]
                found[os.path.relpath(directory, self.path)] = processes
        return found

    def read(self, group: str, file: str) -> str:
        return (self.path / group / file).read_text().strip()

    def need(self, controller: str) -> None:
        """Skip the test where the tree has no such controller."""
        if controller not in self.read(".", "cgroup.controllers").split():
            pytest.skip(f"the tree of this machine's control groups (version 2) has no controller {controller}")

    def remove(self) -> None:
        """End what is in it, and remove it."""
        (self.path / "cgroup.kill").write_text("1")
        with (self.path / "cgroup.events").open() as events:
            poll = select.poll()
            poll.register(events, select.POLLPRI)
            while "populated 1" in events.read():
                assert poll.poll(_DEADLINE_S * 1000), f"{self.path} is not empty"
                events.seek(0)
        for directory, _, _ in os.walk(self.path, topdown=False):
            Path(directory).rmdir()


@contextlib.contextmanager
def delegated(*, told: bool = True) -> Iterator[Delegated]:
    """A group for one test.

    Args:
        told: that it is delegated.
    """
    tree = _tree()
    if tree is None:
        pytest.skip("no tree of control groups (version 2) that this user may write to")
    group = Delegated(Path(tempfile.mkdtemp(prefix="secfarm-", dir=tree)))
    try:
        if told:
            os.setxattr(group.path, "user.delegate", b"1")
        yield group
    finally:
        group.remove()
