"""Control groups of workers, where the system's manager delegated a part of the tree to this server (cgroups(7)).

    what was delegated          by systemd's `Delegate=`; no process is in it itself
    ├── server                  supervisor, gate, keeper, and zygotes until they have one of their own
    └── workers-PID             of the zygote that the server knows by that process id
        ├── zygote
        └── 1, 2, ...           a worker and all that it starts: memory.max, pids.max, cpu.stat, cgroup.kill

They bound what single processes cannot be bounded by: the sum over all that a task started, with scratch and page
tables, and processor time while it is used. An extra: without delegation the other layers carry the confinement. What
is delegated is told by an extended attribute (systemd's docs/CGROUP_DELEGATION.md); a group without one is not touched,
whoever may write there. Version 2 only, as Linux documents it (Documentation/admin-guide/cgroup-v2.rst).
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from secfarm.run.profile import Bounds

_SERVER: Final = "server"
_WORKERS: Final = "workers-"
_WANTED: Final = frozenset({"cpu", "memory", "pids"})  # cpu: no task takes the server's own share
_KERNEL_BYTES: Final = 16 << 20  # page tables, pipes and stacks, of which a bound on address space knows nothing
_MOST_BYTES: Final = 16 << 10  # of a file; there are many processes in none that is read
_EMPTY_WITHIN_S: Final = 1.0
_DELEGATED: Final = ("user.delegate", "trusted.delegate")  # of systemd 251, and of older ones, for root to read


def occupy() -> None:
    """Move this process, if it is alone in a group that was delegated, to the leaf `server`, and enable controllers.

    What an earlier server left there is ended. Where nothing was delegated, or somebody else is there, nothing is done.

    Raises:
        OSError: the kernel refused; this process may have been moved.
    """
    delegated = _own()
    if delegated is None or not _is_delegated(delegated):
        return
    with _opened(delegated) as directory:
        with contextlib.suppress(FileExistsError):
            os.mkdir(_SERVER, dir_fd=directory)
        others = _read(directory, "cgroup.procs").split() + _read(directory, f"{_SERVER}/cgroup.procs").split()
        if others != [str(os.getpid())]:
            return
        for left in delegated.glob(f"{_WORKERS}*"):
            _end(left)
        _write(directory, f"{_SERVER}/cgroup.procs", 0)
        _enable(directory)


def sweep(zygote: int) -> None:
    """End whatever a zygote that is gone has left, and remove its groups; what does not end is left to `occupy`.

    Args:
        zygote: its process id, as this process knows it.
    """
    if (delegated := _occupied()) is not None:
        with contextlib.suppress(OSError):
            _end(delegated / f"{_WORKERS}{zygote}")


def controllers() -> frozenset[str] | None:
    """Which controllers workers may have; None: this process is not in the leaf `server` of what was delegated."""
    if (delegated := _occupied()) is None:
        return None
    with _opened(delegated) as directory:
        return _controllers(directory)


class Groups:
    """The groups of a zygote's workers."""

    def __init__(self) -> None:
        """Make the one that holds them all; this process, which the server knows the zygote by, stays where it is.

        Raises:
            OSError: it cannot be made.
        """
        if (delegated := _occupied()) is None:
            raise FileNotFoundError("no control group was delegated")
        path = delegated / f"{_WORKERS}{os.getpid()}"
        path.mkdir()
        self._directory = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._controllers = _controllers(self._directory)

    def enter(self) -> None:
        """Move this process into it: a cgroup namespace that is made now has it as its root, so it may move workers."""
        _write(self._directory, "cgroup.procs", 0)

    def settle(self) -> None:
        """Leave it for the zygote's leaf: only a group without processes may give controllers to those below it."""
        os.mkdir("zygote", dir_fd=self._directory)
        _write(self._directory, "zygote/cgroup.procs", 0)
        _enable(self._directory)

    def add(self, number: int, bounds: Bounds) -> Group:
        """Make the group of a worker, with its bounds.

        Raises:
            OSError: the kernel refused; there is none.
        """
        group = Group(self._directory, str(number))
        os.mkdir(group.name, dir_fd=self._directory)
        try:
            if "pids" in self._controllers:
                group.write("pids.max", bounds.processes)
            if "memory" in self._controllers:
                group.write("memory.max", bounds.memory_bytes + bounds.scratch_bytes + _KERNEL_BYTES)
                group.write("memory.oom.group", 1)  # all of it: a task without one of its programs is no better off
                with contextlib.suppress(FileNotFoundError):  # this kernel does not swap
                    group.write("memory.swap.max", 0)
        except OSError:
            group.remove()
            raise
        return group


@dataclass(frozen=True, slots=True)
class Group:
    """The group of one worker."""

    directory: int  # of all of them
    name: str

    def join(self) -> None:
        """Move this process into it."""
        self.write("cgroup.procs", 0)

    def write(self, file: str, value: int) -> None:
        """Set one of its files."""
        _write(self.directory, f"{self.name}/{file}", value)

    def open_usage(self) -> int:
        """Return a descriptor for `usage_s`."""
        return os.open(f"{self.name}/cpu.stat", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.directory)

    def was_out_of_memory(self) -> bool:
        """Whether the kernel ended a process in it for want of memory, as far as can be found out."""
        try:
            return _field(_read(self.directory, f"{self.name}/memory.events"), "oom_kill") > 0
        except OSError:  # memory is not among the controllers, or no descriptor is left
            return False

    def remove(self) -> bool:
        """Remove it; False: not yet, for something is still in it, and was told to end."""
        try:
            os.rmdir(self.name, dir_fd=self.directory)
        except FileNotFoundError:
            pass
        except OSError:
            with contextlib.suppress(OSError):  # no descriptor is left: it is tried again
                self.write("cgroup.kill", 1)
            return False
        return True


def usage_s(descriptor: int) -> float:
    """Return the processor time that all in a group have used, by the descriptor of `Group.open_usage`, in seconds.

    Raises:
        OSError: the group is gone.
    """
    return _field(os.pread(descriptor, _MOST_BYTES, 0).decode("ascii"), "usage_usec") / 1e6


# --- the tree ---------------------------------------------------------------------------------------------------------


def _own() -> Path | None:
    """The directory of this process's own group, where it can be seen."""
    with contextlib.suppress(OSError):
        groups = Path("/proc/self/cgroup").read_text("utf-8").splitlines()
        own = next((Path(line.removeprefix("0::")) for line in groups if line.startswith("0::")), None)
        for line in Path("/proc/self/mountinfo").read_text("utf-8").splitlines():
            about, _, kind = line.partition(" - ")
            root, mounted = about.split()[3:5]  # proc_pid_mountinfo(5)
            if kind.startswith("cgroup2 ") and own is not None and own.is_relative_to(root):
                return mounted / own.relative_to(root)
    return None


def _occupied() -> Path | None:
    """What was delegated, if this process is in its leaf `server`."""
    own = _own()
    return own.parent if own is not None and own.name == _SERVER and _is_delegated(own.parent) else None


def _is_delegated(directory: Path) -> bool:
    for name in _DELEGATED:
        with contextlib.suppress(OSError):
            if os.getxattr(directory, name) == b"1":
                return os.access(directory / "cgroup.procs", os.W_OK)
    return False


def _controllers(directory: int) -> frozenset[str]:
    return _WANTED.intersection(_read(directory, "cgroup.controllers").split())


def _enable(directory: int) -> None:
    """Give the groups in it the controllers that it has itself."""
    for name in sorted(_controllers(directory)):
        _write(directory, "cgroup.subtree_control", f"+{name}")


def _end(path: Path) -> None:
    """End what is in a group and below, and remove them."""
    with _opened(path) as directory:
        _write(directory, "cgroup.kill", 1)
        _wait_empty(directory)
    for below in path.iterdir():
        if below.is_dir():
            below.rmdir()
    path.rmdir()


def _wait_empty(directory: int) -> None:
    with _closing(os.open("cgroup.events", os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)) as events:
        poll = select.poll()
        poll.register(events, select.POLLPRI)
        deadline_s = time.monotonic() + _EMPTY_WITHIN_S
        while _field(os.pread(events, _MOST_BYTES, 0).decode("ascii"), "populated"):
            if (left_s := deadline_s - time.monotonic()) <= 0:
                return
            poll.poll(left_s * 1000)


def _opened(path: Path) -> AbstractContextManager[int]:
    return _closing(os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))


@contextlib.contextmanager
def _closing(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _read(directory: int, file: str) -> str:
    with _closing(os.open(file, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)) as descriptor:
        return os.read(descriptor, _MOST_BYTES).decode("ascii")


def _write(directory: int, file: str, value: int | str) -> None:
    with _closing(os.open(file, os.O_WRONLY | os.O_CLOEXEC, dir_fd=directory)) as descriptor:
        os.write(descriptor, str(value).encode("ascii"))


def _field(text: str, name: str) -> int:
    """The number after a name, of a file that has one of each a line."""
    return int(text.split()[text.split().index(name) + 1])
