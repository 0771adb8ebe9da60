"""The zygote and its workers as a server sees them: births, ends, stops; and that nothing outlives it."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from secfarm.errors import KernelError
from secfarm.run.launch import Launched, launch
from secfarm.run.nursery import Nursery
from secfarm.run.profile import CONTAINER, FULL, Bounds, ConfinementError, Layer, Openings, Profile
from secfarm.run.role import Role, spawn
from secfarm.run.zygote import ROLE
from secfarm.task import codec
from tests.daemon.roles import children_of
from tests.run.cell import START_S, Cell, Worker
from tests.run.nobody import run_as_nobody, skip_without_user_namespaces

profiles: Final = pytest.mark.parametrize("profile", [FULL, CONTAINER], ids=lambda one: one.name)


@pytest.fixture
def cell() -> Iterator[Cell]:
    if os.geteuid() != 0:
        skip_without_user_namespaces()
    with Cell(FULL) as one:
        yield one


def here(profile: Profile) -> Profile:
    if profile is FULL and os.geteuid() != 0:
        skip_without_user_namespaces()
    return profile


def loop() -> None:
    while True:
        pass


@profiles
def test_calls_are_answered_in_their_order(profile: Profile) -> None:
    with Cell(here(profile)) as cell:
        worker = cell.worker()
        for number in range(1, 51):
            worker.send(abs, -number, number=number)
        for number in range(1, 51):
            done = worker.read(START_S)
            assert (done.number, codec.decode(done.value)) == (number, number)
        exited = worker.end(kill=False)
        assert (exited.signal, exited.status) == (None, 0)


def test_workers_have_each_a_scratch_a_process_number_and_a_user_of_their_own(cell: Cell) -> None:
    def own() -> tuple[int, int]:
        import os
        from pathlib import Path

        Path("mine").touch(exist_ok=False)
        return os.getpid(), os.getuid()

    users = set()
    with Cell(FULL) as other:  # threads are counted per user: tasks of one zygote must not use up those of another
        workers = [cell.worker(), cell.worker(), other.worker()]
        for worker in workers:
            worker.send(own)
            pid, uid = codec.decode(worker.read(START_S).value)
            users.add(uid)
            assert pid == 1
        assert len(users) == (3 if os.geteuid() == 0 else 1)
        for worker in workers:
            worker.end()


@profiles
def test_a_worker_that_is_killed_says_so_at_once_and_no_other_is_harmed(profile: Profile) -> None:
    with Cell(here(profile)) as cell:
        victim, other = cell.worker(), cell.worker()
        victim.send(loop)
        cell.nursery.kill(victim.number)
        assert victim.wait().signal == signal.SIGKILL
        other.send(abs, -1)
        assert codec.decode(other.read(START_S).value) == 1
        victim.end()
        other.end()


@profiles
def test_a_stopped_worker_stands_still_until_it_may_go_on(profile: Profile) -> None:
    with Cell(here(profile)) as cell:
        worker = cell.worker()
        assert any(cell.nursery.stop(worker.number) for _ in range(100))  # not at once where others run all the time
        pid = cell.nursery.pid_of(worker.number)
        assert state_of(pid) == "T"
        worker.send(abs, -5)
        cell.nursery.go(worker.number)
        assert codec.decode(worker.read(START_S).value) == 5
        worker.end()
        assert not cell.nursery.stop(worker.number)
        assert cell.nursery.pid_of(worker.number) is None


def state_of(pid: int | None) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@profiles
def test_nothing_outlives_a_zygote_that_is_killed(profile: Profile) -> None:
    lost = []
    nursery = Nursery(here(profile), on_lost=lambda: lost.append(True))
    nursery.wait_ready(START_S)
    workers = [Worker(nursery) for _ in range(3)]
    for worker in workers:
        worker.ready()
        worker.send(loop)
    while not all(pids := [nursery.pid_of(worker.number) for worker in workers]):
        assert select.select([nursery], [], [], START_S)[0], "a birth is not told"  # it may be ready before that
        nursery.dispatch()
    fds = [os.pidfd_open(pid) for pid in pids]
    os.kill(nursery.pid, signal.SIGKILL)
    for fd in fds:
        assert select.select([fd], [], [], START_S)[0], "a worker outlived its zygote"
        os.close(fd)
    for worker in workers:
        assert worker.wait().signal == signal.SIGKILL
        worker.end()
    assert lost == [True]
    with pytest.raises(ConfinementError, match="zygote is gone"):
        Worker(nursery)


def test_a_zygote_that_somebody_else_started_ends_with_its_socket() -> None:
    """As where a supervisor starts all processes of a server."""
    started = []

    def launch_elsewhere() -> Launched:
        launched = launch()
        started.append(launched.process)
        return Launched(launched.control, None)

    nursery = Nursery(CONTAINER, launch=launch_elsewhere)
    nursery.wait_ready(START_S)
    worker = Worker(nursery)
    worker.ready()
    worker.send(loop)
    nursery.dispatch()
    nursery.close()  # returns when the worker is gone
    assert started[0].wait(START_S) == 0
    worker.exits.append(None)
    worker.end()


def test_a_worker_starts_whatever_numbers_the_descriptors_of_its_server_have() -> None:
    """A role keeps its server's numbers."""
    fillers = [os.dup(0) for _ in range(8)]
    try:
        while fillers[-1] < 40:
            with Cell(CONTAINER) as cell:
                assert cell.run(abs, -1).value == 1
            fillers += [os.dup(0) for _ in range(3)]
    finally:
        for fd in fillers:
            os.close(fd)


@profiles
@pytest.mark.parametrize("end", ["worker", "server"])
def test_what_a_task_started_ends_with_its_worker(profile: Profile, end: str) -> None:
    """However it was detached; without a process namespace by the zygote, whose child it becomes."""

    def detach(marker: str) -> None:
        import subprocess
        import sys

        words = ["/bin/sh", "-c", "echo; sleep 1000", marker]
        start = f"import subprocess; subprocess.Popen({words}, start_new_session=True, stdout=1)"
        with subprocess.Popen([sys.executable, "-c", start], stdout=subprocess.PIPE) as daemon:
            daemon.stdout.read(1)
        subprocess.Popen(words, stdout=subprocess.PIPE).stdout.read(1)

    marker = f"1.{os.getpid()}"
    with Cell(here(profile), Openings(subprocesses=True)) as cell:
        worker = cell.worker()
        worker.send(detach, marker)
        assert worker.read(START_S).error is None
        started = named(marker)
        assert len(started) >= 2  # a shell that forks is there twice
        if end == "worker":
            worker.end()
            assert [pid for pid in started if Path(f"/proc/{pid}").exists()] == []
            assert cell.run(abs, -1).value == 1
        pidfds = [os.pidfd_open(pid) for pid in started if end == "server"]
    for pidfd in pidfds:  # of a namespace that the kernel ends
        assert select.select([pidfd], [], [], START_S)[0]
        os.close(pidfd)


@profiles
def test_a_zygote_without_room_for_descriptors_starts_no_worker_and_goes_on(profile: Profile) -> None:
    with Cell(here(profile)) as cell:
        (zygote,) = children_of(cell.nursery.pid) if Layer.PID in profile.layers else [cell.nursery.pid]
        assert cell.run(abs, -1).value == 1  # so it has opened all that it needs itself
        most = resource.prlimit(zygote, resource.RLIMIT_NOFILE)
        held = {int(path.name) for path in Path(f"/proc/{zygote}/fd").iterdir()}
        first = min({*range(most[0])} - held)
        for room in (0, 1):  # for the two that come with the order
            resource.prlimit(zygote, resource.RLIMIT_NOFILE, (first + room, most[1]))
            worker = Worker(cell.nursery)
            assert worker.read(START_S) is None
            assert worker.end(kill=False).status == 75  # EX_TEMPFAIL
        resource.prlimit(zygote, resource.RLIMIT_NOFILE, most)
        assert cell.run(abs, -1).value == 1


def named(word: str) -> list[int]:
    """The processes with a word in their command lines."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if word.encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found


def test_without_the_death_signal_a_worker_outlives_its_zygote() -> None:
    """What the layer is for where no process namespace does it."""
    assert not outlives(CONTAINER, START_S)
    assert outlives(CONTAINER.without(Layer.DEATH), 0.5)


def outlives(profile: Profile, by_s: float) -> bool:
    nursery = Nursery(profile)
    nursery.wait_ready(START_S)
    worker = Worker(nursery)
    worker.ready()
    worker.send(loop)
    nursery.dispatch()
    pid = nursery.pid_of(worker.number)
    assert pid
    fd = os.pidfd_open(pid)
    os.kill(nursery.pid, signal.SIGKILL)
    os.waitid(os.P_PID, nursery.pid, os.WEXITED | os.WNOWAIT)
    has_ended = bool(select.select([fd], [], [], by_s)[0])
    signal.pidfd_send_signal(fd, signal.SIGKILL)
    select.select([fd], [], [])
    os.close(fd)
    nursery.close()
    worker.exits.append(None)
    worker.end()
    return not has_ended


def test_a_worker_cannot_be_read_by_its_own_user_outside() -> None:
    """What not being dumpable is for; of root this cannot be asked."""
    script = """
import sys
from secfarm.run.profile import *
from tests.run.cell import Cell
for gone in ([], [Layer.DUMPABLE]):
    with Cell(CONTAINER.without(*gone)) as cell:
        worker = cell.worker()
        cell.nursery.dispatch()
        try:
            open(f"/proc/{cell.nursery.pid_of(worker.number)}/mem", "rb").close()
            print("read")
        except PermissionError:
            print("refused")
        worker.end()
"""
    done = run_as_nobody(script)
    assert done.stdout.split() == ["refused", "read"], done.stderr


def test_bounds_are_hard_and_of_each_worker() -> None:
    def limits() -> list[int]:
        import os
        import resource

        kinds = (resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC, resource.RLIMIT_CPU, resource.RLIMIT_CORE)
        place = os.statvfs(".")
        return [*(resource.getrlimit(kind)[1] for kind in kinds), place.f_blocks * place.f_frsize, place.f_files]

    if os.geteuid() != 0:
        skip_without_user_namespaces()
    with Cell(FULL) as cell:
        bounds = Bounds(files=40, processes=7, cpu_s=3, scratch_bytes=1 << 20, scratch_files=9)
        assert cell.run(limits, bounds=bounds).value == [40, 7, 3, 0, 1 << 20, 9]
        bounds = Bounds(files=50, processes=8, cpu_s=4, scratch_bytes=2 << 20, scratch_files=10)
        assert cell.run(limits, bounds=bounds).value == [50, 8, 4, 0, 2 << 20, 10]


def test_processor_time_ends_a_worker_that_ignores_every_signal(cell: Cell) -> None:
    """As process 1 of its namespace it hears no SIGXCPU; the hard limit is SIGKILL, and the time used is told."""
    worker = cell.worker(Bounds(cpu_s=1))
    worker.send(loop)
    exited = worker.wait()
    assert exited.signal == signal.SIGKILL
    assert 0.5 < exited.cpu_s < 3  # the kernel counts in ticks
    worker.end()


def test_workers_know_nothing_of_one_another(cell: Cell) -> None:
    def others() -> list[int]:
        import os

        found = []
        for pid in range(2, 200):
            try:
                os.getpgid(pid)
            except ProcessLookupError:
                continue
            found.append(pid)
        return found

    busy = cell.worker()
    busy.send(loop)
    assert cell.run(others).value == []
    busy.end()


def test_a_zygote_that_cannot_confine_itself_says_why_and_ends() -> None:
    script = """
from secfarm.run import libc
from secfarm.run.profile import *
from tests.run.cell import Cell
with open("/proc/sys/user/max_user_namespaces") as file:
    pass
libc.syscall("unshare", libc.CLONE_NEWUSER)
with open("/proc/sys/user/max_user_namespaces", "w") as file:
    file.write("0")
try:
    Cell(FULL)
except ConfinementError as error:
    print(error)
"""
    skip_without_user_namespaces()
    told = run_as_nobody(script).stdout
    if not told:
        pytest.skip("the limit on user namespaces cannot be set here")
    assert "user namespace: No space left on device (unshare)" in told
    assert "or choose the profile `container`" in told


# --- roles ------------------------------------------------------------------------------------------------------------
def test_a_role_with_a_descriptor_too_many_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match="takes"):
        spawn(ROLE, {})
    loose = Role(ROLE.name, ROLE.module, ("control", "other"), lists=None)
    read, write = os.pipe()
    with (tmp_path / "words").open("w+b") as words:
        process = spawn(loose, {"control": read, "other": write}, stderr=words.fileno())
        assert process.wait(START_S) == 1
        words.seek(0)
        assert b"it does not start" in words.read()
    os.close(read)
    os.close(write)


def test_a_role_has_no_environment_and_no_open_file_of_its_server(tmp_path: Path, cell: Cell) -> None:
    with (tmp_path / "secret").open("w") as secret:
        os.set_inheritable(secret.fileno(), True)
        with Cell(CONTAINER) as other:
            folder = Path(f"/proc/{other.nursery.pid}")
            assert (folder / "environ").read_bytes() == b""
            links = [str(entry.readlink()) for entry in (folder / "fd").iterdir()]
            assert not [link for link in links if str(tmp_path) in link]
