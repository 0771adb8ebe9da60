"""`secfarm serve` as a test sees it: all its processes."""

from __future__ import annotations

import select
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from secfarm import Kernel
from tests.daemon.site import ADA, DEADLINE_S, ROOT, Site


class Roles:
    """`secfarm serve` of a site. A context manager."""

    def __init__(
        self,
        site: Site,
        *,
        says: str = "listening on",
        environ: Mapping[str, str] | None = None,
        before: Callable[[], None] | None = None,
    ) -> None:
        """Start it, with these variables among others and `before` done in its process; return once it has said so."""
        self.site = site
        self.stderr = site.folder / "stderr"
        with self.stderr.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "secfarm", "serve", "-c", site.folder / "config.toml"],
                env={
                    "PYTHONPATH": str(ROOT),
                    "HOME": str(site.folder),
                    "SECRET_OF_THE_SHELL": "canary",
                    **(environ or {}),
                },
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                preexec_fn=before,  # noqa: PLW1509 before any kernel has its thread
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith(says), self.stderr.read_text()
        self.address = line.split()[-1]

    def pid(self, role: str) -> int:
        """The process of a role, once there is one."""
        return self.until(lambda: self._children().get(role))

    def until(self, look: Callable[[], Any]) -> Any:
        """Return what `look` gives once it is true: nobody tells us of other processes' doings."""
        clock = select.poll()
        for _ in range(int(DEADLINE_S * 100)):
            if found := look():
                return found
            clock.poll(10)
        raise AssertionError(f"it never came true; {self.stderr.read_text()}")

    def _children(self) -> dict[str, int]:
        found = {}
        for pid in children_of(self.process.pid):
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            found |= {word.rpartition(b".")[2].decode(): pid for word in words if word.startswith(b"secfarm.")}
        return found

    def workers(self) -> list[int]:
        """The confined processes, spares included."""
        return [worker for init in children_of(self.pid("zygote")) for worker in children_of(init)]

    def kernel(self, **settings: Any) -> Kernel:
        return Kernel([self.address], auth=self.site.auth(), key=ADA, **settings)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def children_of(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
