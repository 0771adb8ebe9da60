"""Roles: the processes of a server, each a fresh exec of this Python with a declared table of descriptors.

It has no environment, and checks its descriptors when it starts: that keeps keys and files of one role out of another.
`spawn` is the only way in which one is started.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from secfarm.errors import KernelError

# The directories that hold secfarm and msgspec: `python -I` sees no PYTHONPATH, no user site and no current directory,
# so a package that was found through one of those is named to the role, and nothing else is.
_PATHS: Final = sorted({str(Path(__file__).parents[2]), str(Path(str(msgspec.__file__)).parents[1])})
_BOOT: Final = (
    "import sys; name = sys.argv[1]; split = sys.argv.index('--'); paths = sys.argv[split + 1:];"
    "fds = [int(fd) for fd in sys.argv[2:split]]; sys.path[:0] = paths;"
    "from importlib import import_module; module = import_module(name);"  # this tree's, whatever else is installed
    "sys.path[:] = [*sys.path[len(paths):], *(p for p in paths if p not in sys.path[len(paths):])];"
    "module.main(*module.ROLE.check(fds))"
)
_STANDARD: Final = 3  # 0, 1 and 2


@dataclass(frozen=True, slots=True)
class Role:
    """A kind of process.

    Attributes:
        module: has this record as `ROLE`, and `main`, which takes one descriptor for each name in `descriptors`.
    """

    name: str
    module: str
    descriptors: tuple[str, ...]

    def check(self, fds: list[int]) -> list[int]:
        """Return `fds` if this process has these descriptors, the standard ones and no other, else raise.

        Raises:
            KernelError: it has others, or not these; it must end.
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
        return fds


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


ZYGOTE: Final = Role("zygote", "secfarm.run.zygote", ("control",))


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
