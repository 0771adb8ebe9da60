"""The roles' own lists: what a gate and a keeper may still do, tried from within; and that real ones are so bound."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from secfarm import Kernel
from secfarm.auth import Ed25519AuthClient
from secfarm.daemon.roles import DIALLING_GATE, GATE, KEEPER
from secfarm.run import landlock
from secfarm.run.calls import worker_rules, zygote_rules
from secfarm.run.profile import ConfinementError, Openings
from secfarm.run.role import Role
from secfarm.run.seccomp import ALLOW, ERRNO, build
from secfarm.run.syscalls import MACHINES, Machine
from secfarm.trust.store import KnownServer, KnownServers
from tests.daemon.breaking_out import ATTACKS
from tests.daemon.roles import Roles
from tests.daemon.site import ADA, BOB, DEADLINE_S, ROOT, Site
from tests.run.nobody import NOBODY, public_folder, run_as_nobody
from tests.run.test_seccomp import both, verdict

EPERM: Final = ERRNO | errno.EPERM
_SCOPES_ABI: Final = 6
# What the role is for.
ITS_OWN: Final = {
    "gate": set(),
    "dialling gate": {"connect", "datagram"},
    "keeper": {"key"},
}
USERS: Final = ["nobody", *(["root"] if os.geteuid() == 0 else [])]
_SCRIPT: Final = "import sys; from tests.daemon.breaking_out import main; main(*sys.argv[1:])"


def try_all(role: str, user: str) -> dict[str, str | None]:
    """Run every attack from within a process that is bound as this role is; return what they got."""
    with public_folder(of_nobody=user == "nobody") as folder:
        site = folder / "site"
        site.mkdir(mode=0o700)
        Site(site)
        if user == "nobody" and os.geteuid() == 0:
            for path in (site, *site.iterdir()):
                os.chown(path, NOBODY, NOBODY)
        if user == "nobody":
            done = run_as_nobody(_SCRIPT, role, str(site))
        else:
            command = [sys.executable, "-c", _SCRIPT, role, str(site)]
            done = subprocess.run(
                command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
            )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize("user", USERS)
def test_each_attack_succeeds_where_there_are_no_lists(user: str) -> None:
    got = try_all("none", user)
    switch = Path("/proc/sys/kernel/io_uring_disabled")
    off = {"ring"} if switch.exists() and switch.read_text() != "0\n" else set()
    assert {attack for attack in ATTACKS if got[attack] is None} <= off


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("role", ITS_OWN)
def test_code_that_took_over_a_role_can_do_the_roles_work_and_no_more(role: str, user: str) -> None:
    got = try_all(role, user)
    unscoped = {"connect_abstract"} if role == "dialling gate" and landlock.abi() < _SCOPES_ABI else set()
    assert {attack for attack in ATTACKS if got[attack] is not None} == ITS_OWN[role] | unscoped


# --- real ones --------------------------------------------------------------------------------------------------------
def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def core_limits(pid: int) -> list[str]:
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
    return next(line for line in lines if line.startswith("Max core")).split()[4:6]


@pytest.mark.parametrize("profile", ["full", "container"])
def test_the_roles_of_a_server_are_bound(site: Site, profile: str) -> None:
    site.config(confinement=profile)
    with Roles(site) as roles, roles.kernel() as kernel:
        assert kernel.run(lambda: 1) == 1
        bound = {name: roles.pid(name) for name in ("gate", "keeper", "zygote")} | {"supervisor": roles.process.pid}
        for name, pid in bound.items():
            said = status(pid)
            assert said["NoNewPrivs"] == "1", name
            assert core_limits(pid) == ["0", "0"], name
            if name != "supervisor":
                assert said["Seccomp"] == "2", name
            if name in {"gate", "keeper"}:
                assert {said[one] for one in ("CapEff", "CapPrm", "CapInh")} == {"0" * 16}, name


_SAME_USER: Final = """
import os, pathlib, subprocess, sys
from tests.daemon.roles import Roles
from tests.daemon.site import Site
folder = pathlib.Path(sys.argv[1])
(folder / "site").mkdir(mode=0o700)
def opens(pid):
    try:
        open(f"/proc/{pid}/mem", "rb").close()
        open(f"/proc/{pid}/environ", "rb").close()
        return True
    except PermissionError:
        return False
site = Site(folder / "site")
site.config(confinement=sys.argv[2])
with Roles(site) as roles, roles.kernel() as kernel, subprocess.Popen(["/bin/sleep", "60"]) as other:
    assert kernel.run(lambda: 1) == 1
    others = [roles.pid("gate"), roles.pid("keeper"), roles.process.pid]
    print(opens(other.pid), [opens(pid) for pid in others])
    other.kill()
"""


def test_a_process_of_the_same_user_cannot_open_the_memory_of_a_role() -> None:
    with public_folder(of_nobody=True) as folder:
        done = run_as_nobody(_SAME_USER, str(folder), "container")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "True [False, False, False]\n"


def replace(site: Site, name: str, text: str) -> None:
    """Write a file as editors do: a new one, renamed over the old."""
    site.write(f"{name}.new", text).replace(site.folder / name)


def hang_up(roles: Roles, event: str) -> str:
    """Send SIGHUP, and return the reason that the record of this event gives."""
    before = len(roles.site.events(event))
    roles.process.send_signal(signal.SIGHUP)
    roles.until(lambda: len(roles.site.events(event)) > before)
    return str(roles.site.events(event)[-1].get("reason"))


def test_files_that_were_replaced_are_read_again(site: Site) -> None:
    with Roles(site) as roles, roles.kernel() as kernel:
        assert kernel.run(lambda: 1) == 1
        replace(site, "allowed_signers", f"bob {BOB.public.openssh()}\n")
        replace(site, "policy.toml", '[[grant]]\nprincipals = ["bob"]\nmay = ["run"]\n')
        hang_up(roles, "reloaded")
        with Kernel([roles.address], auth=site.auth(BOB), key=BOB) as bob:
            assert bob.run(lambda: 2) == 2
        assert site.events("revoked")[0]["principal"] == "ada"


def test_a_directory_that_was_replaced_needs_a_restart_and_says_so(site: Site) -> None:
    trust = site.folder.parent / "trust"
    trust.mkdir(mode=0o700)
    site.write("../trust/allowed_signers", f"ada {ADA.public.openssh()}\n")
    site.config(allowed_signers=str(trust / "allowed_signers"))
    with Roles(site) as roles, roles.kernel() as kernel:
        shutil.copytree(trust.rename(trust.with_name("before")), trust)
        assert "restart the server" in hang_up(roles, "not-reloaded")
        assert kernel.run(lambda: 1) == 1


def test_a_server_dials_a_hub_by_its_name(site: Site) -> None:
    """A gate that dials may ask who a name is, and connect; the keeper behind it is bound as ever."""
    auth = Ed25519AuthClient(ADA, KnownServers([KnownServer(("node1",), site.key.public)]))
    with Kernel(listen="127.0.0.1:0", auth=auth, key=ADA) as kernel:
        port = kernel.listening[0].rpartition(":")[2]
        site.config(listen=None, dial=[f"localhost:{port}"])
        with Roles(site, says="dialling in to") as roles:
            assert kernel.submit(lambda: 5).result(DEADLINE_S) == 5
            assert status(roles.pid("gate"))["Seccomp"] == "2"


_MOVED: Final = """
import json, pathlib, sys
from secfarm import Kernel
from secfarm.auth import Ed25519AuthClient
from secfarm.run import libc
from secfarm.trust.store import KnownServer, KnownServers
from tests.daemon.roles import Roles
from tests.daemon.site import ADA, DEADLINE_S, Site
libc.syscall("unshare", libc.CLONE_NEWNS)
libc.mount("none", "/", None, libc.MS_REC | libc.MS_PRIVATE)
etc = pathlib.Path(sys.argv[1], "etc")
etc.mkdir()
(etc / "resolv.conf").write_text("nameserver 127.0.0.1\\n")
(etc / "nsswitch.conf").write_text("hosts: files\\n")
(etc / "hosts").write_text("127.0.0.1 localhost\\n")
libc.mount(str(etc), "/etc", None, libc.MS_BIND)
folder = pathlib.Path(sys.argv[1], "site")
folder.mkdir(mode=0o700)
site = Site(folder)
auth = Ed25519AuthClient(ADA, KnownServers([KnownServer(("node1",), site.key.public)]))
with Kernel(listen="127.0.0.1:0", auth=auth, key=ADA) as kernel:
    port = kernel.listening[0].rpartition(":")[2]
    site.config(listen=None, dial=["hub.test:" + port])
    with Roles(site, says="dialling in to") as roles:
        gate = roles.pid("gate")
        roles.until(lambda: site.events("started"))
        (etc / "hosts.new").write_text("127.0.0.1 localhost hub.test\\n")
        (etc / "hosts.new").rename(etc / "hosts")
        print(kernel.submit(lambda: 5).result(DEADLINE_S), roles.pid("gate") != gate)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has an /etc of its own")
def test_a_gate_whose_resolver_was_moved_is_replaced_by_one_that_reads_the_new_one(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _MOVED, str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.stdout == "5 True\n", done.stderr


def test_a_kernel_without_a_layer_binds_no_role(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacks() -> int:
        raise OSError(errno.ENOSYS, "Function not implemented", "landlock_create_ruleset")

    assert "seccomp" in KEEPER.rehearse()
    monkeypatch.setattr(landlock, "abi", lambda: 2)
    with pytest.raises(ConfinementError, match=r"keeper is not bound by Landlock ABI 2; nothing is served. Linux 6.2"):
        KEEPER.rehearse()
    monkeypatch.setattr(landlock, "abi", lacks)
    with pytest.raises(ConfinementError, match=r"gate is not bound by its lists: Function not implemented \(landlock_"):
        GATE.rehearse()


# --- the tables -------------------------------------------------------------------------------------------------------
@both
@pytest.mark.parametrize("role", [GATE, DIALLING_GATE, KEEPER], ids=lambda role: role.name)
def test_every_name_of_the_lists_has_its_verdict(machine: Machine, role: Role) -> None:
    assert role.lists is not None
    rules, program = role.lists.rules(pid=7), role.lists.program(machine, 7)
    known = set().union(*(other.numbers for other in MACHINES.values()))
    assert rules.allowed | rules.never | rules.checked.keys() <= known
    for name in (rules.allowed - rules.checked.keys()) & machine.numbers.keys():
        assert verdict(program, machine, machine.numbers[name]) == ALLOW, name
    for name in ("execve", "execveat", "ptrace", "bind", "listen", "process_vm_readv", "pidfd_getfd", "unshare", "bpf"):
        assert verdict(program, machine, machine.numbers[name]) == EPERM, name
    assert verdict(program, machine, machine.numbers["kill"], 7) == ALLOW
    assert verdict(program, machine, machine.numbers["kill"], 8) == EPERM
    assert (verdict(program, machine, machine.numbers["connect"]) == ALLOW) == (role is DIALLING_GATE)
    for family in (1, 2, 10, 16, 17):
        allowed = role is DIALLING_GATE and family != 17
        kind = 3 if family == 16 else 1
        assert (verdict(program, machine, machine.numbers["socket"], family, kind) == ALLOW) == allowed, family
    write = verdict(program, machine, machine.numbers["openat"], 0, 0, os.O_WRONLY)
    assert (write == ALLOW) == (role is KEEPER)


@both
@pytest.mark.parametrize("openings", [Openings(), Openings(network=True), Openings(subprocesses=True)])
def test_a_zygote_may_do_what_its_workers_may_and_make_them(machine: Machine, openings: Openings) -> None:
    rules = zygote_rules(openings)
    worker = worker_rules(openings, pid=1, has_scratch=True, write_xor_execute=True)
    assert worker.allowed | worker.checked.keys() <= rules.allowed
    program = build(rules, machine)
    assert (verdict(program, machine, machine.numbers["execve"]) == ALLOW) == openings.subprocesses
    assert (verdict(program, machine, machine.numbers["socket"]) == ALLOW) == openings.network
    for name in ("ptrace", "process_vm_readv", "bpf", "keyctl", "open_by_handle_at", "kexec_load"):
        assert verdict(program, machine, machine.numbers[name]) == EPERM, name
