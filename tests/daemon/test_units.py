"""contrib/: the units of systemd and the recipe for containers are hardened, and the server works under them."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from secfarm import Kernel
from secfarm.errors import TaskError
from secfarm.run import libc, seccomp
from secfarm.run.syscalls import this_machine
from tests.daemon.site import ADA, DEADLINE_S, ROOT, Site
from tests.daemon.units import (
    SERVICE,
    SOCKET,
    Unit,
    analyze,
    directives,
    filter_of,
    grant_by_list,
    grant_by_owner,
)
from tests.run.nobody import NOBODY, become, public_folder, skip_without_user_namespaces

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a root of its own, or files of another")


def test_the_exposure_that_systemd_sees_is_low() -> None:
    done = analyze("security", "--offline=yes", "--threshold=30", SERVICE)
    assert done.returncode == 0, done.stdout + done.stderr


def test_systemd_understands_every_line_of_the_units(tmp_path: Path) -> None:
    for unit in (SERVICE, SOCKET):  # the program and the user are not on every machine
        text = unit.read_text("utf-8").replace("/usr/local/bin/secfarm", "/bin/true").replace("=secfarm\n", "=root\n")
        (tmp_path / unit.name).write_text(text, "utf-8")
    units = tmp_path / SERVICE.name, tmp_path / SOCKET.name
    done = analyze("verify", "--man=no", *units, SYSTEMD_UNIT_PATH=f"{tmp_path}:")
    lines = [line for line in (done.stdout + done.stderr).splitlines() if "secfarm" in line]
    assert (done.returncode, lines) == (0, [])


def test_the_unit_holds_no_secret_and_gives_no_privilege() -> None:
    said = directives(SERVICE)
    names = {name for name, _ in said}
    assert not names & {"Environment", "EnvironmentFile", "SetCredential", "PassEnvironment", "SupplementaryGroups"}
    assert {"CapabilityBoundingSet", "AmbientCapabilities"} <= {name for name, value in said if value == ""}
    assert ("User", "secfarm") in said
    assert ("Type", "notify") in said
    # The first SIGTERM is the supervisor's alone: the roles would end before what was accepted has finished.
    assert ("KillMode", "mixed") in said


def test_what_is_left_out_says_why() -> None:
    """Comments end lines of directives nowhere; each directive that the zygote cannot bear is named with its reason."""
    text = SERVICE.read_text("utf-8")
    for name in ("RestrictNamespaces", "ProtectHostname", "ProtectControlGroups", "PrivateUsers", "PrivateNetwork"):
        assert re.search(rf"^# .*{name}", text, re.MULTILINE), name
        assert name not in dict(directives(SERVICE))


@pytest.fixture
def folder() -> Iterator[Path]:
    skip_without_user_namespaces()
    with public_folder() as folder:
        yield folder


def reads(path):
    from pathlib import Path

    return Path(path).read_bytes()


@as_root
@pytest.mark.parametrize("grant", [grant_by_list, grant_by_owner])
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
def test_an_unprivileged_service_serves_the_socket_that_it_is_given(
    folder: Path, grant: Callable[[Path, int], None], family: int
) -> None:
    """Under the unit's filter, with credentials, and told to the service manager from beginning to end."""
    with socket.socket(family) as listening:
        listening.bind(("127.0.0.1", 0) if family == socket.AF_INET else f"{folder}/sock")
        listening.listen()
        with Unit(folder, listening, grant) as unit:
            assert unit.heard() == f"READY=1; STATUS=listening on {unit.address}"
            with unit.kernel() as kernel:
                assert kernel.run(lambda: __import__("os").getuid()) == NOBODY
                with pytest.raises(TaskError):
                    kernel.run(reads, str(unit.credentials / "server"))
            unit.process.send_signal(signal.SIGTERM)
            assert unit.heard() == "STOPPING=1; STATUS=finishing what was accepted"
            assert unit.process.wait(DEADLINE_S) == 0
            said = [(record["role"], record["message"].partition(";")[0]) for record in unit.log()]
            assert said == [("supervisor", "draining")]
        assert family == socket.AF_INET or (folder / "sock").is_socket()  # whoever made it removes it


@as_root
def test_hang_up_reads_credentials_again_and_a_broken_one_changes_nothing(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening, Unit(folder, listening, grant_by_list) as unit:
        assert unit.heard().startswith("READY=1")
        key = unit.credentials / "server"
        good = key.read_bytes()

        def reload() -> str:
            unit.process.send_signal(signal.SIGHUP)
            assert re.fullmatch(r"RELOADING=1; MONOTONIC_USEC=\d+; STATUS=reading files again", unit.heard())
            return unit.heard()

        with unit.kernel() as kernel:
            assert reload() == f"READY=1; STATUS=listening on {unit.address}"
            key.write_bytes(b"broken\nMAINPID=1")
            assert reload().startswith(f"READY=1; STATUS=not reloaded: {key}: no OpenSSH private key")
            key.write_bytes(good)
            key.chmod(0o444)  # by the list's mask everybody reads it now
            assert "mode 0444 opens it to others" in reload()
            key.unlink()
            assert "not reloaded" in reload()
            assert kernel.run(lambda: 1) == 1
        with unit.kernel() as kernel:  # the old key still proves the server
            assert kernel.run(lambda: 2) == 2
        assert [record["message"].partition(":")[0] for record in unit.log()] == [
            "trust files, policy and keys were read again",
            *["nothing was reloaded"] * 3,
        ]
        assert {record["role"] for record in unit.log()} == {"keeper"}


def refusal(site: Site, shell: str = 'exec "$@"', *words: str, pass_fds: Sequence[int] = (), **environ: str) -> str:
    """What a server says that does not start, of the command that `shell` runs."""
    done = subprocess.run(
        ["bash", "-c", shell, "-", sys.executable, "-m", "secfarm", "serve", "-c", site.folder / "config.toml", *words],
        env={"PYTHONPATH": str(ROOT), "HOME": str(site.folder), **environ},
        pass_fds=pass_fds,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert (done.returncode in {2, 3}, done.stdout) == (True, ""), done.stderr
    return done.stderr


def test_a_link_to_a_directory_of_credentials_does_not_make_it_believed(site: Site) -> None:
    (site.folder / "bad").mkdir()
    (site.folder / "key").rename(site.folder / "bad" / "server")
    (site.folder / "bad").chmod(0o777)
    (site.folder / "link").symlink_to(site.folder / "bad")
    site.config(key="credential:server")
    assert "lets others replace server" in refusal(site, CREDENTIALS_DIRECTORY=f"{site.folder}/link")


def test_addresses_beside_given_sockets_are_refused(site: Site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        fd = listening.fileno()
        activated = f'exec 3<&{fd}; LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"'
        said = refusal(site, activated, "--listen", "127.0.0.1:0", pass_fds=(fd,))
    assert "given by LISTEN_FDS, and addresses to listen on as well" in said


def test_garbage_of_a_service_manager_stops_a_start(site: Site) -> None:
    assert "LISTEN_FDS='x' is no such number" in refusal(site, 'LISTEN_PID=$$ LISTEN_FDS=x exec "$@"')


# --- contrib/container ------------------------------------------------------------------------------------------------

_DENIED = frozenset(
    {"unshare", "setns", "mount", "umount2", "pivot_root", "chroot", "mount_setattr", "open_tree", "move_mount"}
    | {"fsopen", "fsconfig", "fsmount", "fspick", "keyctl", "add_key", "request_key", "bpf", "perf_event_open"}
    | {"userfaultfd", "ptrace", "process_vm_readv", "kcmp", "sethostname", "setdomainname", "open_by_handle_at"}
)  # what engines deny whoever has no capability


def _in_a_container(state: Path) -> None:
    """Between fork and exec: a read-only root, a volume, no capability, no new privileges, the engine's filter."""

    def seal() -> None:
        libc.restrict_mount("/", libc.MOUNT_ATTR_RDONLY, recursive=True)
        for path in (str(state), *_unused_temporaries(state)):
            libc.mount("tmpfs", path, "tmpfs", libc.MS_NOSUID | libc.MS_NODEV, f"mode=0700,uid={NOBODY}")

    libc.drop_bounding_set()
    become(before=seal)
    libc.prctl(libc.PR_SET_NO_NEW_PRIVS, 1)
    seccomp.engage(filter_of(frozenset(this_machine().numbers) - _DENIED))


def _unused_temporaries(state: Path) -> list[str]:
    """The recipe has /tmp, where the site's files may lie here, or this Python."""
    used = [Path(sys.prefix), ROOT, state]
    return [path for path in ("/tmp", "/var/tmp") if not any(one.is_relative_to(path) for one in used)]


def _serve_in_a_container(site: Site) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "secfarm", "serve", "--json", "-c", site.folder / "config.toml"],
        cwd="/",
        env={"PYTHONPATH": str(ROOT), "NOTIFY_SOCKET": "/no/such/socket"},  # where nobody hears it, which harms nothing
        preexec_fn=lambda: _in_a_container(site.folder / "state"),  # noqa: PLW1509 the tests have one thread
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def contained() -> Iterator[Site]:
    with public_folder() as folder:
        site = Site(folder)
        (folder / "state").mkdir()
        for name in ("policy.toml", "allowed_signers"):
            (folder / name).chmod(0o644)
        os.chown(folder / "key", NOBODY, NOBODY)
        yield site


@as_root
def test_the_recipe_for_containers_serves_an_unprivileged_user_on_a_read_only_root(contained: Site) -> None:
    contained.config(confinement="container", audit="state/audit.jsonl").chmod(0o644)
    with _serve_in_a_container(contained) as server:
        assert server.stdout is not None
        found = re.search(r"127\.0\.0\.1:\d+", server.stdout.readline())
        assert found, server.communicate(timeout=DEADLINE_S)[1]
        with Kernel([found[0]], auth=contained.auth(), key=ADA) as kernel:
            assert kernel.run(lambda: __import__("os").getuid()) == NOBODY
            with pytest.raises(TaskError):
                kernel.run(reads, str(contained.folder / "key"))
        server.terminate()
        assert server.wait(DEADLINE_S) == 0


@as_root
def test_there_the_profile_for_machines_is_refused_and_the_one_for_containers_named(contained: Site) -> None:
    contained.config(audit="state/audit.jsonl").chmod(0o644)
    with _serve_in_a_container(contained) as server:
        out, err = server.communicate(timeout=DEADLINE_S)
    assert (server.returncode != 0, out) == (True, "")
    assert "profile `container`" in err


def test_the_recipe_says_what_was_tested() -> None:
    text = (ROOT / "contrib/container/Dockerfile").read_text("utf-8")
    assert re.search(r"^USER [1-9][0-9]*:[1-9][0-9]*$", text, re.MULTILINE)
    assert not re.search(r"^(ADD|ENV|ARG) ", text, re.MULTILINE)
