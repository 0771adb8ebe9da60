"""A server's roles: each holds what it needs and nothing else, and the end of one is survived."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from secfarm import Kernel, deftask
from secfarm.disk.keyfile import read_signing_key
from secfarm.errors import ConnectionLostError, KernelCreationError, WorkerLostError
from tests.daemon.roles import Roles
from tests.daemon.site import BOB, DEADLINE_S, EVE, Site


@pytest.fixture
def roles(site: Site) -> Iterator[Roles]:
    with Roles(site) as roles:
        yield roles


def test_a_role_has_no_environment(roles: Roles) -> None:
    for role in ("gate", "keeper", "zygote"):
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


def test_only_the_keeper_has_the_key(roles: Roles) -> None:
    seed = read_signing_key(roles.site.folder / "key").reveal_seed()
    with roles.kernel() as kernel:
        assert kernel.run(lambda: 1) == 1
        for pid in [roles.pid("gate"), roles.pid("zygote"), *roles.workers()]:
            assert not _holds(pid, seed)
        assert _holds(roles.pid("keeper"), seed)  # so the search finds what is there


@deftask
def counted(number: int) -> tuple[int, str, int]:
    """Return the number, and which call of which worker this is: a confined task leaves nothing else to count by."""
    import os
    import sys
    import time

    worker, count = getattr(sys, "counted", (os.urandom(8).hex(), 0))
    sys.counted = worker, count + 1
    time.sleep(0.005)  # so that the kill meets some that wait, one that runs and some that are done
    return number, worker, count + 1


def runs(results: list[tuple[int, str, int]]) -> int:
    """How often `counted` ran: whatever ran and is not among the results is a gap in its worker's count."""
    last: dict[str, int] = {}
    for _, worker, count in results:
        last[worker] = max(count, last.get(worker, 0))
    return sum(last.values())


@pytest.mark.parametrize("role", ["gate", "keeper", "zygote"])
def test_a_role_that_is_killed_costs_no_task(roles: Roles, role: str) -> None:
    with roles.kernel() as kernel:
        futures = [kernel.submit(counted, number) for number in range(100)]
        futures[3].result(DEADLINE_S)
        pid = roles.pid(role)
        os.kill(pid, signal.SIGKILL)
        lost = [future for future in futures if isinstance(future.exception(DEADLINE_S), WorkerLostError)]
        results = [future.result(DEADLINE_S) for future in futures if future not in lost]
        assert len(lost) <= (role == "zygote")  # the one that was running, which might do harm if it ran twice
        assert len({number for number, _, _ in results}) == 100 - len(lost)
        assert roles.pid(role) != pid
    if role == "gate":
        assert runs(results) == 100  # the keeper kept results and the task that was running


@deftask
def sleep_aloud() -> None:
    import time

    print("on")
    time.sleep(60)


def test_the_end_of_the_zygote_leaves_no_worker_behind(roles: Roles) -> None:
    with roles.kernel() as kernel:
        said: list[str] = []
        sleeping = kernel.options(on_output=lambda _, text: said.append(text)).submit(sleep_aloud)
        roles.until(lambda: said)  # it has begun
        workers = roles.workers()
        os.kill(roles.pid("zygote"), signal.SIGKILL)
        with pytest.raises(WorkerLostError):
            sleeping.result(DEADLINE_S)
        for pid in workers:
            roles.until(lambda pid=pid: not Path(f"/proc/{pid}").exists() or is_zombie(pid))


def test_without_its_supervisor_no_role_stays(roles: Roles) -> None:
    pids = [roles.pid("gate"), roles.pid("keeper"), roles.pid("zygote")]
    with roles.kernel() as kernel:
        assert kernel.broadcast(os.getpid) == [1]  # of its namespace
        workers = roles.workers()
        assert len(workers) >= 2
        roles.process.kill()
        roles.process.wait(DEADLINE_S)
        for pid in [*pids, *workers]:
            roles.until(lambda pid=pid: not Path(f"/proc/{pid}").exists() or is_zombie(pid))


def is_zombie(pid: int) -> bool:
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
    roles.until(lambda: roles.site.events("turned-away"))  # written once the word was said
    assert len(roles.site.events("turned-away")) == 1
