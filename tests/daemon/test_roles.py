"""A server's roles: each holds what it needs and nothing else, and the end of one is survived."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from secfarm import Kernel, deftask
from secfarm.disk.keyfile import read_signing_key
from secfarm.errors import ConnectionLostError, KernelCreationError
from tests.daemon.site import ADA, BOB, DEADLINE_S, EVE, ROOT, Site


class Roles:
    """`secfarm serve` of a site. A context manager."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.stderr = site.folder / "stderr"
        with self.stderr.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "secfarm", "serve", "-c", site.folder / "config.toml"],
                env={"PYTHONPATH": str(ROOT), "HOME": str(site.folder), "SECRET_OF_THE_SHELL": "canary"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        assert self.process.stdout is not None
        found = re.search(r"127\.0\.0\.1:\d+", self.process.stdout.readline())
        assert found, self.stderr.read_text()
        self.address = found[0]

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
        for pid in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split():
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            found |= {word.rpartition(b".")[2].decode(): int(pid) for word in words if word.startswith(b"secfarm.")}
        return found

    def kernel(self, **settings: Any) -> Kernel:
        return Kernel([self.address], auth=self.site.auth(), key=ADA, **settings)

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


@pytest.fixture
def roles(site: Site) -> Iterator[Roles]:
    with Roles(site) as roles:
        yield roles


def test_a_role_has_no_environment(roles: Roles) -> None:
    for role in ("gate", "keeper"):
        assert Path(f"/proc/{roles.pid(role)}/environ").read_bytes() == b""


def _links(pid: int) -> list[str]:
    return [str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir()]


def _inodes(pid: int) -> set[str]:
    links = _links(pid)
    return {link.removeprefix("socket:[").rstrip("]") for link in links if link.startswith("socket:")}


def _network(pid: int) -> set[str]:
    tables = [Path(f"/proc/{pid}/net/{name}").read_text() for name in ("tcp", "tcp6", "udp")]
    return {line.split()[9] for table in tables for line in table.splitlines()} & _inodes(pid)


def test_only_the_gate_has_the_network_and_only_the_keeper_the_files(roles: Roles) -> None:
    with roles.kernel() as kernel:
        assert kernel.run(lambda: 1) == 1
        assert len(_network(roles.pid("gate"))) == 2  # it listens, and the kernel is connected
        assert _network(roles.pid("keeper")) == set()
        folder = str(roles.site.folder)
        assert {name for name in _links(roles.pid("gate")) if name.startswith(folder)} <= {f"{folder}/stderr"}
        assert f"{folder}/audit.jsonl" in _links(roles.pid("keeper"))


def _holds(pid: int, secret: bytes) -> bool:
    with Path(f"/proc/{pid}/mem").open("rb", 0) as memory, Path(f"/proc/{pid}/maps").open() as maps:
        for line in maps:
            first, last = (int(part, 16) for part in line.split()[0].split("-"))
            if " rw" not in line or "[v" in line:
                continue
            try:
                memory.seek(first)
                if secret in memory.read(last - first):
                    return True
            except OSError:
                continue
    return False


def test_the_gate_never_has_the_key(roles: Roles) -> None:
    seed = read_signing_key(roles.site.folder / "key").reveal_seed()
    with roles.kernel() as kernel:
        assert kernel.run(lambda: 1) == 1
        assert not _holds(roles.pid("gate"), seed)
        assert _holds(roles.pid("keeper"), seed)  # so the search finds what is there


@deftask
def slow_note(folder: str, number: int) -> int:
    import os
    import time

    fd = os.open(f"{folder}/ran", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, b"%d\n" % number)
    os.close(fd)
    time.sleep(0.005)  # so that the kill meets some that wait, one that runs and some that are done
    return number


@pytest.mark.parametrize("role", ["gate", "keeper"])
def test_a_role_that_is_killed_costs_no_task(roles: Roles, tmp_path: Path, role: str) -> None:
    with roles.kernel() as kernel:
        futures = [kernel.submit(slow_note, str(tmp_path), number) for number in range(100)]
        futures[3].result(DEADLINE_S)
        pid = roles.pid(role)
        os.kill(pid, signal.SIGKILL)
        assert [future.result(DEADLINE_S) for future in futures] == list(range(100))
        assert roles.pid(role) != pid
    ran = [int(line) for line in (tmp_path / "ran").read_text().split()]
    assert set(ran) == set(range(100))
    if role == "gate":
        assert len(ran) == 100  # the keeper kept results and the task that was running


def test_without_its_supervisor_no_role_stays(roles: Roles) -> None:
    pids = [roles.pid("gate"), roles.pid("keeper")]
    with roles.kernel() as kernel:
        (worker,) = kernel.broadcast(os.getpid)
        roles.process.kill()
        roles.process.wait(DEADLINE_S)
        for pid in [*pids, worker]:
            roles.until(lambda pid=pid: not Path(f"/proc/{pid}").exists() or _is_zombie(pid))


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_hang_up_reads_trust_files_and_policy_again(roles: Roles) -> None:
    site = roles.site
    with roles.kernel() as kernel:
        running = kernel.submit("time:sleep", 60)
        site.allowed_signers(f"bob {BOB.public.openssh()}\n")
        roles.process.send_signal(signal.SIGHUP)
        roles.until(lambda: site.events("revoked"))
        assert site.events("revoked")[0]["principal"] == "ada"
        with pytest.raises(KernelCreationError, match="refused"):
            roles.kernel(connect_timeout_s=5.0)
        with pytest.raises(ConnectionLostError, match="no server lets us in any more"):
            running.result(DEADLINE_S)
    with Kernel([roles.address], auth=site.auth(BOB), key=BOB) as kernel:
        assert kernel.run(lambda: 2) == 2


def test_a_file_that_is_wrong_changes_nothing(roles: Roles) -> None:
    site = roles.site
    with roles.kernel() as kernel:
        site.policy("[[grant]]\n")
        roles.process.send_signal(signal.SIGHUP)
        roles.until(lambda: site.events("not-reloaded"))
        assert "policy.toml" in str(site.events("not-reloaded")[0]["reason"])
        assert kernel.run(lambda: 3) == 3


def test_the_word_of_refusal_comes_through_the_gate(roles: Roles) -> None:
    with pytest.raises(KernelCreationError, match="refused"):
        Kernel([roles.address], auth=roles.site.auth(EVE), key=EVE, connect_timeout_s=5.0)
    assert len(roles.site.events("turned-away")) == 1
