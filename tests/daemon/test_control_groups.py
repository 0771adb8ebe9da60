"""A server in a delegated control group: each worker has one of its own, and what bounds that."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from secfarm import deftask
from secfarm.errors import ResourceExceededError
from secfarm.limits import RESERVED_BYTES
from tests.daemon.roles import Roles
from tests.daemon.site import DEADLINE_S, ROOT, Site
from tests.run import nobody
from tests.run.delegated import Delegated, delegated

WORKER = re.compile(r"workers-\d+/\d+")


def opened(limit: str = "") -> str:
    """A policy by which tasks may start programs, within a limit."""
    return f"""\
[[grant]]
principals = ["ada"]
may = ["run", "call"]
names = ["*"]
[grant.limits]
{limit}
[grant.confine]
subprocesses = true
"""


@pytest.fixture
def group() -> Iterator[Delegated]:
    with delegated() as one:
        yield one


def sleeping(before: Callable[[], None]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sleep", "1000"], preexec_fn=before)  # noqa: PLW1509


def workers(group: Delegated) -> dict[str, list[int]]:
    return {path: pids for path, pids in group.groups().items() if WORKER.fullmatch(path)}


def test_each_worker_has_a_group_and_the_server_another(site: Site, group: Delegated) -> None:
    with Roles(site, before=group.join) as roles, roles.kernel() as kernel:
        assert kernel.run(lambda: 1) == 1
        groups = group.groups()
        assert groups["."] == []
        assert {roles.process.pid, roles.pid("gate"), roles.pid("keeper"), roles.pid("zygote")} <= {*groups["server"]}
        roles.until(lambda: len(roles.workers()) >= 2)  # a spare is on its way, and so is its group
        roles.until(lambda: sorted(workers(group).values()) == sorted([pid] for pid in roles.workers()))


@pytest.mark.parametrize("profile", ["full", "container"])
def test_an_ordinary_user_s_server_has_them_too(group: Delegated, profile: str) -> None:
    if profile == "full":
        nobody.skip_without_user_namespaces()
    with nobody.public_folder(of_nobody=True) as folder:
        site = Site(folder)
        site.config(confinement=profile)
        for path in folder.iterdir():
            os.chown(path, nobody.NOBODY, nobody.NOBODY)
        group.of_nobody()
        with Roles(site, before=lambda: nobody.become(group.join)) as roles, roles.kernel() as kernel:
            assert kernel.run(lambda: 1) == 1
            assert workers(group)


def test_the_group_of_a_worker_goes_with_it_and_that_of_a_zygote_is_swept(site: Site, group: Delegated) -> None:
    with Roles(site, before=group.join) as roles, roles.kernel() as kernel:
        assert kernel.run(lambda: 1) == 1
        before = {*workers(group)}
        (pid,) = workers(group)[min(before)]
        os.kill(pid, signal.SIGKILL)
        roles.until(lambda: before - {*workers(group)})
        zygote = roles.pid("zygote")
        os.kill(zygote, signal.SIGKILL)
        roles.until(lambda: f"workers-{zygote}" not in group.groups())
        assert kernel.run(lambda: 2) == 2
        roles.process.terminate()
        assert roles.process.wait(DEADLINE_S) == 0
        assert {*group.groups()} == {".", "server"}


def test_what_a_killed_server_left_ends_when_the_next_one_starts(site: Site, group: Delegated) -> None:
    left = group.path / "workers-1" / "7"
    left.mkdir(parents=True)
    with sleeping(Delegated(left).join) as sleeper:
        with Roles(site, before=group.join) as roles, roles.kernel() as kernel:
            assert kernel.run(lambda: 1) == 1
            assert sleeper.wait(DEADLINE_S) == -signal.SIGKILL
        assert not left.exists()


@deftask
def start_and_tell(*words: str) -> int:
    """Start a program that outlives its worker, if it may, and return its process id where it is."""
    import subprocess

    return subprocess.Popen(words, start_new_session=True).pid


@deftask
def run_program(source: str) -> int:
    import subprocess
    import sys

    return subprocess.run([sys.executable, "-c", source], check=False).returncode


@pytest.mark.parametrize("profile", ["full", "container"])
def test_what_a_task_started_ends_with_its_worker(site: Site, group: Delegated, profile: str) -> None:
    site.policy(opened())
    site.config(confinement=profile)
    with Roles(site, before=group.join) as roles, roles.kernel() as kernel:
        kernel.run(start_and_tell, "sleep", "1000")
        ((name, pids),) = [(name, pids) for name, pids in workers(group).items() if len(pids) > 1]
        kernel.shutdown()
        roles.until(lambda: name not in workers(group))
        roles.until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))  # one may wait to be reaped


@pytest.mark.parametrize("profile", ["full", "container"])
def test_processor_time_of_programs_counts_while_they_run(site: Site, group: Delegated, profile: str) -> None:
    site.policy(opened("cpu_s = 0.5"))
    site.config(confinement=profile)
    with Roles(site) as roles, roles.kernel() as kernel:
        assert kernel.run(run_program, "import time\nwhile time.process_time() < 1: pass") == 0
    with Roles(site, before=group.join) as roles, roles.kernel() as kernel:
        with pytest.raises(ResourceExceededError) as caught:
            kernel.run(run_program, "while True: pass")
        assert caught.value.kind == "cpu"
        assert kernel.run(lambda: 1) == 1


def test_memory_is_bounded_for_all_that_a_task_starts_together(site: Site, group: Delegated) -> None:
    group.need("memory")
    most = 256 << 20
    site.policy(opened(f"memory_bytes = {most}"))

    @deftask
    def eat(programs: int, size: int) -> int:
        import subprocess
        import sys

        source = f"import sys; text = b'x' * {size}; print(1, flush=True); sys.stdin.read()"
        words = [sys.executable, "-c", source]
        eaters = [subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(programs)]
        return sum(int(one.stdout.readline()) for one in eaters)

    with Roles(site, before=group.join) as roles, roles.kernel() as kernel:
        assert kernel.run(eat, 2, 64 << 20) == 2
        bounds = {group.read(path, "memory.max") for path in workers(group)}
        assert all(int(bound) > most + RESERVED_BYTES for bound in bounds)
        with pytest.raises(ResourceExceededError) as caught:
            kernel.run(eat, 16, 128 << 20)
        assert (caught.value.kind, caught.value.limit) == ("memory", most)
        assert kernel.run(lambda: 1) == 1


def test_processes_are_bounded_for_each_worker(site: Site, group: Delegated) -> None:
    group.need("pids")
    site.policy(opened("processes = 7"))
    with Roles(site, before=group.join) as roles, roles.kernel() as kernel:
        assert kernel.run(lambda: 1) == 1
        assert {group.read(path, "pids.max") for path in workers(group)} == {"7"}


def test_a_group_that_was_not_delegated_is_left_as_it_is(site: Site) -> None:
    with delegated(told=False) as group, Roles(site, before=group.join) as roles, roles.kernel() as kernel:
        assert kernel.run(lambda: 1) == 1
        assert {*group.groups()} == {"."}


def test_a_group_with_others_in_it_is_left_as_it_is(site: Site, group: Delegated) -> None:
    with sleeping(group.join) as other:
        with Roles(site, before=group.join) as roles, roles.kernel() as kernel:
            assert kernel.run(lambda: 1) == 1
            assert workers(group) == {}
        other.kill()


def test_a_second_server_leaves_the_first_one_s_groups_alone(tmp_path: Path, group: Delegated) -> None:
    def site(name: str) -> Site:
        (tmp_path / name).mkdir()
        return Site(tmp_path / name)

    with Roles(site("one"), before=group.join) as one, one.kernel() as kernel:
        assert kernel.run(lambda: 1) == 1
        if group.read(".", "cgroup.subtree_control"):
            pytest.skip("the kernel lets no process into a group that gives controllers on")
        before = one.until(lambda: len(found := one.workers()) >= 2 and found)  # with the spare
        with Roles(site("two"), before=group.join) as two, two.kernel() as other:
            assert other.run(lambda: 2) == 2
        assert one.workers() == before
        assert {path.partition("/")[0] for path in workers(group)} == {f"workers-{one.pid('zygote')}"}


def doctor(before: Callable[[], None]) -> str:
    return subprocess.run(
        [sys.executable, "-m", "secfarm", "doctor"],
        cwd=ROOT,
        preexec_fn=before,
        capture_output=True,
        text=True,
        check=False,
    ).stdout


def test_doctor_says_what_there_is(group: Delegated) -> None:
    with delegated(told=False) as other:
        assert "control group: not engaged, none was delegated" in doctor(other.join)
    (line,) = [line for line in doctor(group.join).splitlines() if "control group: " in line]
    have = {"cpu", "memory", "pids"}.intersection(group.read(".", "cgroup.controllers").split())
    assert line.endswith(", ".join(sorted(have)) or "without controllers: it counts and ends")
    assert {*group.groups()} == {".", "server"}
