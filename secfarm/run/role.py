"""Roles: the processes of a server, each a fresh exec of this Python with a declared table of descriptors and lists.

It has no environment, and checks its descriptors when it starts: that keeps keys and files of one role out of another.
Its lists keep it to its work (lists.py). `spawn` is the only way in which one is started.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from secfarm.errors import KernelError
from secfarm.run import landlock
from secfarm.run.lists import Lists, begin, settle
from secfarm.run.profile import ConfinementError

# The directories that hold secfarm and msgspec: `python -I` sees no PYTHONPATH, no user site and no current directory,
# so a package that was found through one of those is named to the role, and nothing else is.
_PATHS: Final = sorted({str(Path(__file__).parents[2]), str(Path(str(msgspec.__file__)).parents[1])})
_BOOT: Final = (
    "import sys; name = sys.argv[1]; split = sys.argv.index('--'); paths = sys.argv[split + 1:];"
    "fds = [int(fd) for fd in sys.argv[2:split]]; sys.path[:0] = paths;"
    "from importlib import import_module; module = import_module(name);"  # this tree's, whatever else is installed
    "sys.path[:] = [*sys.path[len(paths):], *(p for p in paths if p not in sys.path[len(paths):])];"
    "module.main(*module.ROLE.begin(fds))"
)
_STANDARD: Final = 3  # 0, 1 and 2


@dataclass(frozen=True, slots=True)
class Role:
    """A kind of process.

    Attributes:
        module: has this record as `ROLE`, and `main`, which takes one descriptor for each name in `descriptors`.
        lists: what it may do once it is at work; None: it makes its own confinement, and needs its privileges for that.
    """

    name: str
    module: str
    descriptors: tuple[str, ...]
    lists: Lists | None

    def begin(self, fds: list[int]) -> list[int]:
        """Return `fds` if this process has these descriptors, the standard ones and no other, else raise.

        From here on it can gain no privileges and leaves no core dump; with lists it has no capabilities either, its
        memory is closed to its own user, and it makes no system calls but those.

        Raises:
            KernelError: it has others, or not these, or there is no filter; it must end.
            OSError: the kernel refused; it must end.
        """
        with os.scandir("/proc/self/fd") as entries:
            numbers = sorted(int(entry.name) for entry in entries)
        # The directory itself was open while it was read.
        held = {number for number in numbers if _is_open(number)}
        if held != {*range(_STANDARD), *fds} or len(fds) != len(self.descriptors):
            raise KernelError(
                f"the {self.name} was started with descriptors {sorted(held)} instead of 0 to 2 and, for "
                f"{', '.join(self.descriptors)}, {fds}; it does not start"
            )
        begin(capable=self.lists is None, dumpable=self.lists is None)
        if self.lists is not None:
            self.lists.filter_early()
        return fds

    def settle(self, files: Iterable[tuple[str, int]] = ()) -> None:
        """Bind this process to the role's lists, for good: before it hears a peer.

        Args:
            files: paths with all below and rights of `landlock`, beyond what the lists show.

        Raises:
            ConfinementError: it cannot be bound; it must end.
        """
        settle(self.name, self.lists or Lists(), files)

    def rehearse(self) -> str:
        """Bind a child of this process as the role is bound, let it end, and return what bound it, in words.

        Raises:
            ConfinementError: it cannot be bound here.
        """
        heard, tell = os.pipe()
        if (pid := os.fork()) == 0:
            words = "it ended"
            try:
                begin()
                self.settle()
                words = ""
            except (KernelError, OSError) as error:
                words = str(error)
            finally:
                os.write(tell, words.encode())
                os._exit(0)
        os.close(tell)
        with os.fdopen(heard, encoding="utf-8") as pipe:
            words = pipe.read()
        os.waitpid(pid, 0)
        if words:
            raise ConfinementError(words)
        return f"no privileges, memory closed to its user, landlock (ABI {landlock.abi()}), seccomp"


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


ZYGOTE: Final = Role("zygote", "secfarm.run.zygote", ("control",), lists=None)


def spawn(role: Role, descriptors: Mapping[str, int], *, stderr: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
    """Start a role with these descriptors, which stay open here too.

    Args:
        stderr: where Python's last words go; by default nowhere.

    Raises:
        KernelError: they are not those that the role declares.
    """
    if tuple(descriptors) != role.descriptors:
        raise KernelError(f"the {role.name} takes {role.descriptors}, not {tuple(descriptors)}; it was not started")
    fds = list(descriptors.values())
    return subprocess.Popen(
        [sys.executable, "-I", "-c", _BOOT, role.module, *map(str, fds), "--", *_PATHS],
        env={},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        cwd="/",
        pass_fds=fds,
        start_new_session=True,  # a Ctrl-C on the server's terminal is the server's alone
    )
