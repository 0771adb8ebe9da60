"""What the policy opens and bounds for confined tasks, as clients find it; and what keeps a server from serving."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from typing import Any

import pytest

from secfarm import Kernel, ResourceExceededError
from secfarm.errors import TaskError, TaskKilledError, TaskTimeoutError, ValueTransferError
from secfarm.limits import MAX_DEPTH
from tests.daemon.roles import Roles
from tests.daemon.site import BOB, DEADLINE_S, ROOT, Site
from tests.daemon.test_roles import sleep_aloud
from tests.run.nobody import public_folder

_WITHIN_S = 2.0
_GRANT = '[[grant]]\nprincipals = ["%s"]\nmay = ["run", "broadcast"]\n'
_LIMITS = "[grant.limits]\n"


def policy(site: Site, ada: str) -> None:
    """Give ada a grant of her own, and bob one of nothing but the right to run."""
    site.policy(_GRANT % "ada" + ada + "\n" + _GRANT % "bob")


def burns(seconds):
    import time

    while time.process_time() < seconds:
        pass


def burns_more(seconds):
    import time

    begin_s = time.process_time()
    while time.process_time() - begin_s < seconds:
        pass


def burns_with_threads(seconds):
    import threading

    def burn():
        data = bytes(1 << 22)
        while True:
            data.translate(bytes(256))

    for _ in range(2):
        threading.Thread(target=burn, daemon=True).start()
    import time

    time.sleep(60)


def allocates(size):
    return len(bytes(size))


def starts_threads(count):
    import threading

    hold = threading.Event()
    for _ in range(count):
        threading.Thread(target=hold.wait, daemon=True).start()


def opens_files(count):
    import os

    return [os.open("/dev/null", os.O_RDONLY) for _ in range(count)]


def writes(size):
    from pathlib import Path

    Path("big").write_bytes(bytes(size))  # the scratch is the current directory


def makes_files(count):
    from pathlib import Path

    for number in range(count):
        Path(str(number)).touch()


def prints(times):
    for _ in range(times):
        print("x" * 100)


def nests(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def sleeps(seconds):
    import time

    time.sleep(seconds)


LIMITS = [
    ("output_bytes = 1000", prints, 10**9, "output", 1000),
    ("cpu_s = 0.3", burns, 60, "cpu", 0.3),
    ("cpu_s = 0.3", burns_with_threads, 60, "cpu", 0.3),
    ("memory_bytes = 50000000", allocates, 60_000_000, "memory", 50_000_000),
    ("", allocates, 5 << 30, "memory", 2 << 30),
    ("processes = 8", starts_threads, 20, "processes", 8),
    ("files = 32", opens_files, 40, "files", 32),
    ("scratch_bytes = 1000000", writes, 2_000_000, "scratch_bytes", 1_000_000),
    ("scratch_files = 20", makes_files, 30, "scratch_files", 20),
]


@pytest.mark.parametrize("isolation", ["session", "task"])
def test_each_bound_that_is_exceeded_is_named_and_harms_nobody(site: Site, isolation: str) -> None:
    policy(site, "")  # what is opened is the same from the start, so that one zygote serves
    with Roles(site) as roles, Kernel([roles.address], auth=site.auth(BOB), key=BOB) as bob:
        before = {role: roles.pid(role) for role in ("gate", "keeper", "zygote")}
        for count, (line, task, argument, kind, limit) in enumerate(LIMITS, 1):
            policy(site, f'{_LIMITS}{line}\n[grant.confine]\nisolation = "{isolation}"\n')
            roles.process.send_signal(signal.SIGHUP)
            roles.until(lambda count=count: len(site.events("reloaded")) == count)
            with roles.kernel() as ada:
                begin_s = time.monotonic()
                with pytest.raises(ResourceExceededError) as caught:
                    ada.submit(task, argument).result(DEADLINE_S)
                assert time.monotonic() - begin_s < _WITHIN_S, kind
                assert (caught.value.kind, caught.value.limit) == (kind, limit)
                assert ada.run(lambda: 1) == 1, kind
            assert bob.run(lambda: 2) == 2, kind
        assert {role: roles.pid(role) for role in before} == before


def test_time_and_depth_that_are_exceeded_are_named_and_harm_nobody(site: Site) -> None:
    policy(site, f"{_LIMITS}wall_s = 0.4\n")
    with Roles(site) as roles, roles.kernel() as ada, Kernel([roles.address], auth=site.auth(BOB), key=BOB) as bob:
        before = {role: roles.pid(role) for role in ("gate", "keeper", "zygote")}
        for task, argument, error, named in (
            (sleeps, 60, TaskTimeoutError, r"0\.4 s"),
            (nests, MAX_DEPTH + 1, ValueTransferError, str(MAX_DEPTH)),
        ):
            begin_s = time.monotonic()
            with pytest.raises(error, match=named):
                ada.submit(task, argument).result(DEADLINE_S)
            assert time.monotonic() - begin_s < _WITHIN_S, task
            assert (ada.run(lambda: 1), bob.run(lambda: 2)) == (1, 2)
        assert {role: roles.pid(role) for role in before} == before


def test_time_of_one_call_is_not_counted_for_the_next(site: Site) -> None:
    policy(site, f"{_LIMITS}cpu_s = 0.5\n")
    with Roles(site) as roles, roles.kernel() as kernel:
        for _ in range(4):
            kernel.run(burns_more, 0.2)
        with pytest.raises(ResourceExceededError):
            kernel.run(burns, 60)


def reads(path):
    from pathlib import Path

    return Path(path).read_text()


def connects(port):
    import socket

    with socket.create_connection(("127.0.0.1", port), 5):
        return True


def runs_a_program():
    import subprocess

    return subprocess.run(["/usr/bin/env", "echo", "hello"], capture_output=True, text=True, check=True).stdout


def makes_code():
    import mmap

    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()
    return True


def test_what_is_opened_is_open_for_that_principal_alone_and_written_down(site: Site) -> None:
    with public_folder() as folder, socket.create_server(("127.0.0.1", 0)) as server:
        (folder / "data").write_text("data")
        port = server.getsockname()[1]
        opens = f'read = ["{folder}"]\nnetwork = true\nsubprocesses = true\ngenerated_code = true\n'
        policy(site, f"[grant.confine]\n{opens}")
        tasks: list[tuple[Any, ...]] = [
            (reads, str(folder / "data")),
            (connects, port),
            (runs_a_program,),
            (makes_code,),
        ]
        with Roles(site) as roles, roles.kernel() as ada, Kernel([roles.address], auth=site.auth(BOB), key=BOB) as bob:
            assert [ada.run(*task) for task in tasks] == ["data", True, "hello\n", True]
            for task in tasks:
                with pytest.raises(TaskError):
                    bob.run(*task)
            with pytest.raises(TaskError):
                ada.run(reads, str(site.folder / "key"))
        sessions = {record["principal"]: record for record in site.events("session")}
        listed = ["network", "subprocesses", "generated_code", f"read {folder}"]
        assert sessions["ada"]["opened"] == listed
        assert "opened" not in sessions["bob"]
    assert site.events("started")[0]["confinement"] == "full"


def test_hang_up_closes_what_the_policy_opens_no_more(site: Site) -> None:
    with public_folder() as folder:
        (folder / "data").write_text("data")
        policy(site, f'[grant.confine]\nread = ["{folder}"]\n')
        with Roles(site) as roles, roles.kernel() as ada:
            assert ada.run(reads, str(folder / "data")) == "data"
            said: list[str] = []
            running = ada.options(on_output=lambda _, text: said.append(text)).submit(sleep_aloud)
            roles.until(lambda: said)  # it has begun
            policy(site, "")
            roles.process.send_signal(signal.SIGHUP)
            with pytest.raises(TaskKilledError, match="opens other things"):
                running.result(DEADLINE_S)
            with pytest.raises(TaskError):
                ada.run(reads, str(folder / "data"))
    assert len(site.events("reopened")) == 1


def test_hang_up_opens_nothing_that_would_show_a_key(site: Site) -> None:
    with Roles(site) as roles, roles.kernel() as ada:
        policy(site, f'[grant.confine]\nread = ["{site.folder}"]\n')
        roles.process.send_signal(signal.SIGHUP)
        roles.until(lambda: site.events("not-reloaded"))
        assert ada.run(lambda: 1) == 1


def refusal(site: Site, *changes: str) -> str:
    """What a server that does not start says."""
    done = subprocess.run(
        [sys.executable, "-m", "secfarm", "serve", "-c", site.folder / "config.toml", *changes],
        env={"PYTHONPATH": str(ROOT), "HOME": str(site.folder)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode not in {0, -signal.SIGKILL}
    assert done.stdout == ""
    return done.stderr


@pytest.mark.parametrize("name", ["key", "policy.toml", "state", "config.toml", "audit.jsonl"])
def test_nothing_is_served_where_a_task_could_read_what_the_server_keeps(site: Site, name: str) -> None:
    path = site.folder / name
    policy(site, f'[grant.confine]\nread = ["{path}"]\n')
    if name == "state":
        path.mkdir()
    path.touch()
    said = refusal(site)
    assert str(path) in said
    assert "could be read by tasks" in said
    assert "take what shows it from `read`" in said


def test_nothing_is_served_where_what_is_to_be_opened_is_not_there(site: Site) -> None:
    policy(site, '[grant.confine]\nread = ["/no/such/path"]\n')
    assert "/no/such/path" in refusal(site)


def test_there_is_no_configuration_without_confinement(site: Site) -> None:
    site.config(confinement="none")
    assert 'confinement must be "full" or "container"' in refusal(site)


def test_the_container_profile_serves_too(site: Site) -> None:
    site.config(confinement="container")
    with Roles(site) as roles, roles.kernel() as ada:
        assert ada.run(lambda: 1) == 1
        with pytest.raises(TaskError):
            ada.run(reads, str(site.folder / "key"))
    assert site.events("started")[0]["confinement"] == "container"


def test_each_task_has_a_worker_of_its_own_where_the_policy_says_so(site: Site) -> None:
    def counts():
        import sys

        sys.counted = getattr(sys, "counted", 0) + 1
        return sys.counted

    policy(site, '[grant.confine]\nisolation = "task"\n')
    with Roles(site) as roles, roles.kernel() as ada:
        assert [ada.run(counts) for _ in range(20)] == [1] * 20
    policy(site, "")
    with Roles(site) as roles, roles.kernel() as ada:
        assert [ada.run(counts) for _ in range(3)] == [1, 2, 3]
