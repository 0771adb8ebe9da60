"""Run a script as an ordinary user, with this very Python, wherever it is installed.

In a mount namespace of its own the interpreter and this tree are bound so that everybody may reach them; nothing of
the machine is changed. Needs root; whoever is no root is an ordinary user already.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from secfarm.run import libc

ROOT: Final = Path(__file__).parents[2]
NOBODY: Final = 65534


def _open_the_way(paths: set[str]) -> None:
    """Cover directories above the paths that are closed to others by ones that hold the ways to the paths alone."""
    found = {path: os.open(path, os.O_PATH) for path in sorted(map(os.path.realpath, paths), key=len)}
    above = {path: [one for one in reversed(Path(path).parents) if not _is_open(one)] for path in found}
    for closed in {str(ones[0]) for ones in above.values() if ones}:
        libc.mount("tmpfs", closed, "tmpfs", 0, "mode=0755")
    for path, fd in found.items():
        if above[path]:
            Path(path).mkdir(parents=True, exist_ok=True)
            libc.mount(f"/proc/self/fd/{fd}", path, None, libc.MS_BIND | libc.MS_REC)
        os.close(fd)


def _is_open(directory: Path) -> bool:
    return bool(directory.stat().st_mode & 0o001)


def become(before: Callable[[], None] = lambda: None) -> None:
    """Make this process, forked as root, one of the user nobody; `before` runs last with its privileges."""
    libc.syscall("unshare", libc.CLONE_NEWNS)
    libc.mount("none", "/", None, libc.MS_REC | libc.MS_PRIVATE)
    _open_the_way({sys.base_prefix, sys.prefix, str(ROOT)})
    before()
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)


def run_as_nobody(
    script: str, *args: str, timeout_s: float = 50, stdin: int = subprocess.DEVNULL
) -> subprocess.CompletedProcess[str]:
    """Run Python source as the user nobody (or as ourselves if we are no root) and return what it said."""
    return subprocess.run(
        [sys.executable, "-c", script, *args],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        preexec_fn=become if os.geteuid() == 0 else None,
        stdin=stdin,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


@contextlib.contextmanager
def public_folder(*, of_nobody: bool = False) -> Iterator[Path]:
    """A folder that everybody may enter, unlike pytest's: nothing but confinement is to protect what is there."""
    with tempfile.TemporaryDirectory(prefix="secfarm-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        if of_nobody and os.geteuid() == 0:
            os.chown(folder, NOBODY, NOBODY)
        yield folder


def skip_without_user_namespaces() -> None:
    """Skip the test where an ordinary user may not have namespaces."""
    script = "from secfarm.run import libc\nlibc.syscall('unshare', libc.CLONE_NEWUSER | libc.CLONE_NEWNS)"
    done = run_as_nobody(script)
    if done.returncode and "PermissionError" in done.stderr:
        pytest.skip(f"no user namespaces for ordinary users here: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
