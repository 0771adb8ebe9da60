"""The files that a worker sees: Python with its libraries, a few devices, what the principal was opened, nothing else.

Found out from the running interpreter, wherever it was installed; `build` makes a read-only root of it.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from secfarm.run import libc
from secfarm.run.profile import ConfinementError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from secfarm.run.profile import Openings

_TMP: Final = "/tmp"  # noqa: S108 a file system of the worker's own, which nobody else sees
_NOT_TMP: Final = "/scratch"
_OLD: Final = Path("/.old")
_MAX_LINKS: Final = 40  # as the kernel
_STAGES: Final = ("/tmp", "/mnt", "/usr")  # noqa: S108 directories that are there; the new root is made over one
_DEVICES: Final = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
_LIBRARIES: Final = ("/lib", "/lib64", "/lib32", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache")
_ZONES: Final = ("/usr/share/zoneinfo", "/etc/localtime")
_PROGRAMS: Final = ("/usr", "/bin", "/sbin", "/etc/alternatives")
RESOLVER_FILES: Final = tuple(
    f"/etc/{name}" for name in ("resolv.conf", "hosts", "nsswitch.conf", "services", "protocols", "gai.conf")
)
_NETWORK: Final = (*RESOLVER_FILES, "/etc/ssl", "/usr/share/ca-certificates")
# Never shown whole, whatever lies there: too much would be seen.
TOO_MUCH: Final = frozenset({"/", "/usr", "/home", "/root", "/opt", "/etc", "/var", "/tmp", "/srv"})  # noqa: S108
_WHOLE: Final = libc.MOUNT_ATTR_RDONLY | libc.MOUNT_ATTR_NOSUID | libc.MOUNT_ATTR_NODEV


@dataclass(frozen=True, slots=True)
class View:
    """What is seen, found out once.

    Attributes:
        paths: absolute, as they are named; some may be symbolic links or lie in another. Existing ones only.
        devices: the same.
        scratch: where a worker may write: /tmp, unless Python itself lies there.
    """

    paths: tuple[str, ...]
    devices: tuple[str, ...]
    scratch: str

    def covers(self, path: str) -> str | None:
        """Return the offered path through which a worker could read `path`, if there is one: no key may lie there."""
        wanted = Path(path).resolve()
        for offered in self.paths:
            if wanted.is_relative_to(Path(offered).resolve()):
                return offered
        return None


def host_view(openings: Openings) -> View:
    """Return what a worker of these openings is to see.

    Raises:
        ConfinementError: a path that is to be opened is not there or is not absolute.
    """
    wanted = [*_LIBRARIES, *_ZONES, *_interpreter(), *_packages(), *_loaded_libraries()]
    if openings.network:
        wanted += _NETWORK
    if openings.subprocesses:
        wanted += _PROGRAMS
    for path in openings.read:
        if not Path(path).is_absolute() or not Path(path).exists():
            raise ConfinementError(
                f"the policy opens {path!r} for reading, which is no absolute path that exists here; nothing is served"
            )
        wanted.append(path)
    there = {os.path.normpath(path) for path in wanted if Path(path).exists()}
    devices = tuple(path for path in _DEVICES if Path(path).exists())
    named = there | {os.path.realpath(path) for path in there}
    scratch = _NOT_TMP if any(Path(path).is_relative_to(_TMP) for path in named) else _TMP
    return View(tuple(sorted(there)), devices, scratch)


def everybody_reads(view: View, *, with_parents: bool) -> bool:
    """Whether a user who owns none of it may read the view, judged by the modes of what it names.

    Args:
        with_parents: the directories above count too, as they do without a root of our own.
    """
    for offered in view.paths:
        path = Path(offered).resolve()
        needed = 0o005 if path.is_dir() else 0o004
        if path.stat().st_mode & needed != needed:
            return False
        if with_parents and not all(parent.stat().st_mode & 0o001 for parent in path.parents):
            return False
    return True


def _interpreter() -> Iterable[str]:
    """Prefixes where Python has one to itself, else (/usr) its directories."""
    for prefix in (sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix):
        if os.path.realpath(prefix) not in TOO_MUCH:
            yield prefix
    yield from (sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))


def _packages() -> Iterable[str]:
    """Our own packages where they lie outside the prefixes, as in a checkout; nothing that lies beside them."""
    yield str(Path(__file__).parents[1])
    yield str(Path(str(msgspec.__file__)).parent)


def _loaded_libraries() -> Iterable[str]:
    """The shared objects of this process: those of a Python that brought its own."""
    with Path("/proc/self/maps").open(encoding="utf-8", errors="surrogateescape") as maps:
        for line in maps:
            fields = line.rstrip("\n").split(maxsplit=5)
            if len(fields) == 6 and ".so" in fields[5] and fields[5].startswith("/"):  # noqa: PLR2004 all columns
                yield fields[5]


def build(view: View) -> None:
    """Replace this process's root by one that has the view and nothing else, read-only; needs a mount namespace.

    Pivots first and binds from the old root after: the directory over which the new root is made may hold some of it.

    Raises:
        OSError: the kernel refused a step.
    """
    libc.mount("none", "/", None, libc.MS_REC | libc.MS_PRIVATE)
    stage = next(path for path in _STAGES if Path(path).is_dir())
    libc.mount("tmpfs", stage, "tmpfs", libc.MS_NOSUID | libc.MS_NODEV, "mode=0755,size=1m,nr_inodes=4096")
    os.chdir(stage)
    Path(_OLD.name).mkdir(mode=0o700)
    libc.syscall("pivot_root", b".", _OLD.name.encode())
    os.chdir("/")
    for path in view.paths:
        _offer(Path(path))
    for path in view.devices:
        _bind(_OLD / path[1:], Path(path), libc.MOUNT_ATTR_NOSUID | libc.MOUNT_ATTR_NOEXEC)
    Path(view.scratch).mkdir(exist_ok=True)
    libc.syscall("umount2", bytes(_OLD), libc.MNT_DETACH)
    _OLD.rmdir()
    libc.restrict_mount("/", _WHOLE | libc.MOUNT_ATTR_NOEXEC, recursive=False)


def _offer(path: Path) -> None:
    """Make `path` what it is in the old root: bound, or a link to what is bound."""
    if os.path.lexists(path):
        return  # inside one that was offered before
    real = _resolve(path)
    if real == path:
        _bind(_OLD / path.relative_to("/"), path, _WHOLE)
        return
    _offer(real)
    if not os.path.lexists(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(real)


def _resolve(path: Path) -> Path:
    """Return `path` of the old root without links, which mean that root though it is no longer ours."""
    parts, done, left = list(path.parts[1:]), Path("/"), _MAX_LINKS
    while parts:
        part = parts.pop(0)
        here = done.parent if part == ".." else done / part
        old = _OLD / here.relative_to("/")
        if part == ".." or not old.is_symlink():
            done = here
            continue
        left -= 1
        if left == 0:
            raise ConfinementError(f"{path} leads through {_MAX_LINKS} symbolic links; nothing is served")
        target = old.readlink()
        if target.is_absolute():
            done = Path("/")
        parts = [*(part for part in target.parts if part != "/"), *parts]
    return done


def _bind(source: Path, target: Path, attributes: int) -> None:
    if source.is_dir():
        target.mkdir(parents=True, exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch(mode=0o444)
    libc.mount(str(source), str(target), None, libc.MS_BIND | libc.MS_REC)
    libc.restrict_mount(str(target), attributes, recursive=True)
