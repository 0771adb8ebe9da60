"""A server starts whole or not at all, and says why."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from secfarm import start_server
from secfarm.auth import Ed25519AuthServer, SharedSecretAuth
from secfarm.disk.config import load_server_config
from secfarm.disk.keyfile import create_secret
from secfarm.errors import ConfigError, KernelError, KeyFileError, SecfarmError, TrustFileError, VerifyError
from secfarm.run.nursery import Nursery
from secfarm.run.profile import FULL, PROFILES, ConfinementError, Layer
from secfarm.run.role import _BOOT
from tests.daemon.site import ADA, POLICY, ROOT, Client, ServerProcess, Serving, Site, client
from tests.farm.farms import below, children, gone, until


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"policy": None}, "policy is missing"),
        ({"key": None, "allowed_signers": None}, "neither key nor secrets"),
        ({"key": None}, "neither key nor secrets"),
        ({"allowed_signers": None}, "Ed25519 needs both"),
        ({"policy": "nowhere.toml"}, "there is no file"),
        ({"key": "nowhere"}, "there is no file"),
        ({"secrets": ["nowhere"]}, "there is no file"),
        ({"listen": ["127.0.0.1:99999"]}, "malformed address"),
        ({"polcy": "policy.toml"}, "polcy"),
        ({"insecure": True}, "insecure"),
        ({"workers": 0}, "workers"),
        ({"workers": "4"}, "workers"),
    ],
    ids=str,
)
def test_a_configuration_that_is_not_right_in_every_key_starts_nothing(
    site: Site, changes: dict[str, object], words: str
) -> None:
    path = site.config(**changes)
    with pytest.raises(ConfigError, match=words) as caught:
        load_server_config(path, {})
    assert "config.toml" in str(caught.value)
    with ServerProcess(site) as server:
        assert words in server.answer["error"]
        assert server.wait() != 0
        assert "Traceback" not in server.stderr.read_text()
    assert not (site.folder / "audit.jsonl").exists()


@pytest.mark.parametrize(
    ("name", "mode", "error"),
    [
        ("key", 0o640, KeyFileError),
        ("cy.secret", 0o604, KeyFileError),
        ("policy.toml", 0o620, TrustFileError),
        ("allowed_signers", 0o602, TrustFileError),
        ("config.toml", 0o666, ConfigError),
    ],
)
def test_a_file_that_others_could_have_touched_starts_nothing(
    site: Site, name: str, mode: int, error: type[SecfarmError]
) -> None:
    site.config(secrets=["cy.secret"])
    (site.folder / name).chmod(mode)
    with pytest.raises(error, match=f"{mode:04o}"):
        Serving(site)


@pytest.mark.parametrize(
    ("name", "text"),
    [("policy.toml", "[[grant]]\nmay = ['run']\n"), ("allowed_signers", "nonsense\n"), ("policy.toml", "x=")],
)
def test_a_trust_file_that_is_not_understood_whole_starts_nothing(site: Site, name: str, text: str) -> None:
    site.write(name, text)
    with pytest.raises(TrustFileError, match=name):
        Serving(site)


def test_a_broken_audit_log_starts_nothing(site: Site) -> None:
    """To continue it would bury the break."""
    with Serving(site) as serving, client(serving, site) as ada:
        assert ada.run("builtins:abs", -1) == 1
    log = site.folder / "audit.jsonl"
    log.write_bytes(log.read_bytes().replace(b'"ada"', b'"eve"', 1))
    with pytest.raises(VerifyError, match=r"audit\.jsonl"):
        Serving(site)


def test_two_servers_never_write_one_audit_log(site: Site) -> None:
    with Serving(site), pytest.raises(ConfigError, match="another server"):
        Serving(site)


def test_a_restarted_server_continues_its_log(site: Site) -> None:
    from secfarm.disk.auditlog import verify_log

    for number in range(2):
        with Serving(site) as serving, client(serving, site) as ada:
            assert ada.run("builtins:abs", -number) == number
    assert [record["event"] for record in site.audit].count("started") == 2
    verify_log(site.folder / "audit.jsonl")


def test_an_address_that_is_taken_starts_nothing_and_leaves_nothing_behind(site: Site) -> None:
    """Neither the sockets opened before it nor a worker process."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        site.config(listen=["127.0.0.1:0", f"127.0.0.1:{port}"])
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}"):
            Serving(site)
    children = [one for one in os.listdir("/proc") if one.isdigit() and _is_ours(one)]  # noqa: PTH208
    assert children == []


def _is_ours(pid: str) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return f"PPid:\t{os.getpid()}\n" in status and b"secfarm.run.zygote" in command


def test_workers_that_do_not_start_are_an_error_and_no_endless_loop(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("secfarm.run.role._BOOT", "raise SystemExit(7)")
    assert _BOOT
    with pytest.raises(KernelError, match=r"the zygote (ended|is gone)"):
        Serving(site)


def test_a_unix_socket_is_ours_alone(site: Site) -> None:
    site.config(listen=[f"unix:{site.folder}/sock"])
    with Serving(site) as serving:
        assert (site.folder / "sock").stat().st_mode & 0o777 == 0o600
        with Client(serving.address, site.auth(), ADA).meet() as ada:
            assert ada.run("builtins:abs", -1) == 1


def test_without_listen_a_server_is_on_loopback_only(site: Site) -> None:
    assert [str(one) for one in load_server_config(site.config(listen=None), {}).listen] == ["127.0.0.1:7419"]


# --- confinement --------------------------------------------------------------------------------------------------


def test_a_server_out_of_whose_workers_one_can_escape_does_not_start(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PROFILES, "full", FULL.without(Layer.WRITE_XOR_EXECUTE))
    with pytest.raises(ConfinementError, match="could make memory for code"):
        Serving(site)


@pytest.mark.parametrize("shown", ["key", "cy.secret", "dee.secret", "state", "audit.jsonl", "policy.toml", "."])
def test_a_server_whose_tasks_could_read_what_it_keeps_does_not_start(site: Site, shown: str) -> None:
    create_secret(site.folder / "dee.secret", "dee")
    (site.folder / "state").mkdir()
    (site.folder / "audit.jsonl").touch(0o600)
    site.config(secrets=["cy.secret", "dee.secret"])
    site.policy(f'{POLICY}read = ["{(site.folder / shown).resolve()}"]\n')
    with pytest.raises(ConfinementError, match="could be read by tasks"):
        Serving(site)


@pytest.mark.parametrize("name", ["key", "cy.secret", "secfarm"])
def test_what_is_not_named_by_the_configuration_is_hidden_too(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Files that `auth` names, and the state directory where it is by default."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    if name != "secfarm":
        shutil.copy(site.folder / name, tmp_path)
    auths = {"key": Ed25519AuthServer(tmp_path / name), "cy.secret": SharedSecretAuth(tmp_path / name)}
    site.policy(f'{POLICY}read = ["{tmp_path / name}"]\n')
    (tmp_path / "secfarm").mkdir(mode=0o700)
    with pytest.raises(ConfinementError, match="could be read by tasks"):
        start_server(port=0, background=True, config=site.config(state=None), auth=auths.get(name))


def test_a_server_in_the_background_that_does_not_start_leaves_no_process(site: Site) -> None:
    """One of its two zygotes is not ready when the other turns out to be impossible."""
    site.policy(POLICY + '[[grant]]\nprincipals = ["cy"]\nmay = ["run"]\n[grant.confine]\nread = ["/dev/null"]\n')
    before = children()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("secfarm.run.sealed.probe", _refuse_the_network)
        with pytest.raises(ConfinementError, match="not here"):
            start_server(port=0, background=True, config=site.folder / "config.toml")
    assert children() == before


def _refuse_the_network(nursery: Nursery, folder: Path | None) -> None:
    del folder
    if nursery.openings.network:
        raise ConfinementError("not here")
    until(lambda: not nursery.is_open, "the server gives it up")


# --- sudden ends ----------------------------------------------------------------------------------------------------

_OWNER = """
import sys
from secfarm import start_server
with start_server(port=0, background=True, config=sys.argv[1]):
    sys.stdin.read()
"""


@pytest.mark.parametrize(
    "words", [["-c", _OWNER], ["-m", "secfarm", "serve", "--stdio", "-c"]], ids=["thread", "stdio"]
)
def test_nothing_is_left_of_a_server_that_is_killed(site: Site, words: list[str]) -> None:
    """Nobody is there to end its zygote, which sees that its server is gone."""
    with subprocess.Popen(
        [sys.executable, *words, site.folder / "config.toml"],
        env={"PYTHONPATH": str(ROOT), "HOME": str(site.folder)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as server:
        until(lambda: len(below(server.pid)) >= 4, "both processes of a zygote, and a worker")
        pids = below(server.pid)
        server.kill()
        gone(pids)
