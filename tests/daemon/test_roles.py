"""A server's roles: each holds what it needs and nothing else, and the end of one is survived."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from secfarm import Kernel, deftask
from secfarm.auth import GssAuthClient
from secfarm.disk.auditlog import verify_log
from secfarm.errors import ConnectionLostError, KernelCreationError, TaskRefusedError, WorkerLostError
from tests.auth.realm import HOST, REALM, SERVICE, Realm, need_kerberos
from tests.daemon.memory import forms, holds, lines_with
from tests.daemon.roles import Roles, children_of
from tests.daemon.site import BOB, DEADLINE_S, EVE, Site

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="a role's memory is closed to its own user")


@pytest.fixture
def roles(site: Site) -> Iterator[Roles]:
    with Roles(site) as roles:
        yield roles


@only_root
def test_a_role_has_no_environment(roles: Roles) -> None:
    for role in ("gate", "keeper", "zygote"):
        assert Path(f"/proc/{roles.pid(role)}/environ").read_bytes() == b""


def _links(pid: int) -> list[str]:
    found = []
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found.append(str(path.readlink()))
    return found


def _inodes(pid: int) -> set[str]:
    links = _links(pid)
    return {link.removeprefix("socket:[").rstrip("]") for link in links if link.startswith("socket:")}


def _network(pid: int) -> set[str]:
    tables = [Path(f"/proc/{pid}/net/{name}").read_text() for name in ("tcp", "tcp6", "udp")]
    return {line.split()[9] for table in tables for line in table.splitlines()} & _inodes(pid)


@only_root
def test_only_the_gate_has_the_network_and_only_the_keeper_the_files(roles: Roles) -> None:
    with roles.kernel() as kernel:
        assert kernel.run(lambda: 1) == 1
        assert len(_network(roles.pid("gate"))) == 2  # it listens, and the kernel is connected
        assert _network(roles.pid("keeper")) == set()
        folder = str(roles.site.folder)
        assert {name for name in _links(roles.pid("gate")) if name.startswith(folder)} <= {f"{folder}/stderr"}
        assert f"{folder}/audit.jsonl" in _links(roles.pid("keeper"))


@deftask
def sleep_aloud() -> None:
    import time

    print("on")
    time.sleep(60)


def processes(roles: Roles) -> dict[str, int]:
    """All processes of a server but the keeper, which is the one to have keys."""
    found = {role: roles.pid(role) for role in ("gate", "zygote")} | {"supervisor": roles.process.pid}
    found |= {f"the zygote's {number}": pid for number, pid in enumerate(children_of(found["zygote"]))}
    return found | {f"worker {number}": pid for number, pid in enumerate(roles.workers())}


@only_root
@pytest.mark.parametrize("profile", ["full", "container"])
def test_only_the_keeper_has_keys_and_secrets(site: Site, profile: str) -> None:
    """While a session runs; in memory, environment and command line, as bytes and as text."""
    site.config(confinement=profile, secrets=["cy.secret"])
    seed, secret = site.key.reveal_seed(), site.secret.reveal_secret()
    needles = [*forms(seed), *forms(secret), *lines_with(site.folder / "key", seed)]
    with Roles(site) as roles, roles.kernel() as kernel:
        said: list[str] = []
        running = kernel.options(on_output=lambda _, text: said.append(text)).submit(sleep_aloud)
        roles.until(lambda: said)
        others = processes(roles)
        assert len(others) >= 5 + (profile == "full")
        assert {name: found for name, pid in others.items() if (found := holds(pid, needles))} == {}
        assert {seed, secret} <= set(holds(roles.pid("keeper"), needles))  # so the search finds what is there
        assert running.cancel()


@only_root
def test_only_the_keeper_has_the_keys_of_the_keytab(site: Site) -> None:
    need_kerberos()
    with Realm() as realm, realm.lived_in():
        keytab = realm.keytab("secfarm.keytab", SERVICE)
        realm.ticket()
        key = keytab.read_bytes()[-20:-4]  # of the last entry: the end of its key, before its version
        user = f"ada@{REALM}"
        table = f'[kerberos]\nkeytab = "{keytab}"\nallowed_users = ["{user}"]\n'
        site.write(
            "config.toml", site.config(key=None, allowed_signers=None, secrets=["cy.secret"]).read_text() + table
        )
        site.policy(f'[[grant]]\nprincipals = ["{user}"]\nmay = ["run"]\n')
        with Roles(site, environ=realm.environ) as roles:
            address = roles.address.replace("127.0.0.1", HOST)
            with Kernel(address, auth=GssAuthClient(), connect_timeout_s=DEADLINE_S) as kernel:
                assert kernel.run(lambda: 1) == 1
                others = processes(roles)
                assert {name: found for name, pid in others.items() if (found := holds(pid, forms(key)))} == {}
                assert key in holds(roles.pid("keeper"), forms(key))


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


def test_how_the_zygote_ended_is_told_by_the_signal(roles: Roles) -> None:
    (init,) = children_of(roles.pid("zygote"))
    os.kill(init, signal.SIGKILL)
    roles.until(lambda: "the zygote ended (SIGKILL)" in roles.stderr.read_text())
    with roles.kernel() as kernel:
        assert kernel.run(lambda: 1) == 1


def test_on_a_full_disk_the_server_ends_with_an_error_and_its_log_whole(roles: Roles) -> None:
    """Played by a limit of the keeper; with room again it starts."""
    log = roles.site.folder / "audit.jsonl"
    with roles.kernel(delivery="at-most-once") as kernel:
        assert kernel.run(lambda: 1) == 1
        roles.until(lambda: roles.site.events("finished"))
        resource.prlimit(roles.pid("keeper"), resource.RLIMIT_FSIZE, (log.stat().st_size + 10, resource.RLIM_INFINITY))
        with pytest.raises((ConnectionLostError, TaskRefusedError)):
            kernel.run(lambda: 2)
    assert roles.process.wait(DEADLINE_S) == 2
    assert "cannot be written" in roles.stderr.read_text().splitlines()[-2]
    assert verify_log(log).records == len(roles.site.audit)
    with Roles(roles.site) as again, again.kernel() as kernel:
        assert kernel.run(lambda: 3) == 3


def test_without_its_supervisor_no_role_stays(roles: Roles) -> None:
    pids = [roles.pid("gate"), roles.pid("keeper"), roles.pid("zygote")]
    with roles.kernel() as kernel:
        assert kernel.broadcast(os.getpid) == [1]  # of its namespace
        roles.until(lambda: len(roles.workers()) >= 2)  # a spare is on its way
        workers = roles.workers()
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
            roles.kernel(connect_timeout_s=DEADLINE_S)
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
        Kernel([roles.address], auth=roles.site.auth(EVE), key=EVE, connect_timeout_s=DEADLINE_S)
    roles.until(lambda: roles.site.events("turned-away"))  # written once the word was said
    assert len(roles.site.events("turned-away")) == 1
    assert "127.0.0.1 was turned away: a client showed" in roles.stderr.read_text()
