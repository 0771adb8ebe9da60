"""`serve` starts only when everything is right, says where it listens, and ends as it is told."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from secfarm.cli.main import main
from secfarm.errors import ExitStatus
from tests.cli.conftest import COMMAND, TIMEOUT_S, Secfarm, Served, Site, make_site
from tests.farm.farms import gone


@pytest.fixture
def own(site: Site, tmp_path: Path) -> Site:
    """A copy of the site's files, to be changed."""
    shutil.copytree(site.folder, tmp_path / "own", ignore=shutil.ignore_patterns("audit*", "state", "shown"))
    (tmp_path / "own").chmod(0o700)
    return Site(tmp_path / "own")


def test_check_says_what_would_be_served_and_listens_nowhere(own: Site, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "-c", str(own.server_toml), "--check"]) == 0
    out = capsys.readouterr().out
    assert "127.0.0.1:0" in out
    assert "ada@laptop" in out
    assert not (own.folder / "audit.jsonl").exists()
    assert main(["serve", "-c", str(own.server_toml), "--check", "--json", "--listen", "unix:/run/x"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["name"], record["workers"], record["listen"]) == ("node1", 1, ["unix:/run/x"])
    assert record["mechanisms"] == ["ed25519"]
    assert record["grants"] == [{"principals": ["ada@laptop"], "may": ["admin", "run"]}]


@pytest.mark.parametrize(
    ("file", "text", "mode", "status"),
    [
        ("server.toml", None, 0o600, ExitStatus.USAGE),
        ("server.toml", "surprise = 1\n", 0o600, ExitStatus.USAGE),
        ("policy.toml", "[[grant]]\n", 0o600, ExitStatus.USAGE),
        ("policy.toml", "", 0o666, ExitStatus.USAGE),
        ("allowed_signers", "nonsense\n", 0o600, ExitStatus.USAGE),
        ("server", None, 0o644, ExitStatus.AUTHENTICATION),
        ("audit.jsonl", "{}\n", 0o600, ExitStatus.VERIFICATION),
    ],
)
def test_whatever_is_wrong_is_named(
    file: str, text: str | None, mode: int, status: ExitStatus, own: Site, call: Secfarm
) -> None:
    path = own.folder / file
    if text is not None:
        path.write_text(text)
        path.chmod(mode)
    elif mode != 0o600:
        path.chmod(mode)
    else:
        path.unlink()
    done = call("serve", "-c", own.server_toml, "--check")
    assert (done.returncode, done.stdout) == (status, "")
    assert str(path) in done.stderr
    assert "\nhint: " in done.stderr
    assert "Traceback" not in done.stderr


def test_a_server_does_not_start_on_what_check_refuses(own: Site, secfarm: Secfarm) -> None:
    (own.folder / "policy.toml").chmod(0o666)
    checked, started = (secfarm("serve", "-c", own.server_toml, *option) for option in (["--check"], []))
    assert (started.returncode, started.stdout, started.stderr) == (checked.returncode, "", checked.stderr)


def test_the_first_sigterm_ends_a_server_that_has_nothing_to_do(tmp_path: Path, secfarm: Secfarm) -> None:
    """It prints one line an address, logs to stderr, and every --listen is served."""
    own = make_site(tmp_path)
    server = Served(own, "--listen", "127.0.0.1:0", "--listen", f"unix:{tmp_path}/sock")
    assert server.process.stdout is not None
    assert server.first_line == f"listening on {server.address}\n"
    assert server.process.stdout.readline() == f"listening on unix:{tmp_path}/sock\n"
    assert secfarm("ping", server.address, env=own.client()).returncode == 0
    server.process.send_signal(signal.SIGTERM)
    out, err = server.close()
    assert (server.process.returncode, out) == (0, "")
    assert "draining" in err
    assert not (tmp_path / "sock").exists()


def test_a_server_that_is_told_to_end_while_it_starts_ends(own: Site) -> None:
    """The order comes long before the keeper has read its files."""
    command = [*COMMAND, "serve", "-c", own.server_toml]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        while not hears_sigterm(server.pid):
            assert server.poll() is None
        server.send_signal(signal.SIGTERM)
        out, err = server.communicate(timeout=TIMEOUT_S)
    assert (server.returncode, out) == (0, "")
    assert "draining" in err
    assert "Traceback" not in err


def hears_sigterm(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text("ascii")
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


def test_json_and_quiet_change_what_is_said_when_ready(own: Site) -> None:
    server = Served(own, "--json", "-q")
    assert json.loads(server.first_line) == {"listening": [server.address], "pid": server.process.pid}
    assert server.close() == ("", "")


def test_a_server_that_only_dials_listens_nowhere(own: Site, call: Secfarm, capsys: pytest.CaptureFixture[str]) -> None:
    text = own.server_toml.read_text().replace('listen = ["127.0.0.1:0"]\n', "")
    own.server_toml.write_text(text + 'dial = ["127.0.0.1:1"]\n')
    record = json.loads(call("serve", "-c", own.server_toml, "--check", "--json").stdout)
    assert (record["listen"], record["dial"]) == ([], ["127.0.0.1:1"])
    own.server_toml.write_text(text)
    hubs = ["--dial", "127.0.0.1:2", "--dial", "unix:/run/hub"]
    done = call("serve", "-c", own.server_toml, "--check", *hubs)
    assert "dial in to  127.0.0.1:2, unix:/run/hub\n" in done.stdout
    assert "listen" not in done.stdout
    assert call("serve", "-c", own.server_toml, "--check", "--dial", "127.0.0.1:0").returncode == ExitStatus.USAGE
    server = Served(own, *hubs)
    assert server.process.stdout is not None
    assert server.first_line == "dialling in to 127.0.0.1:2\n"
    assert server.process.stdout.readline() == "dialling in to unix:/run/hub\n"
    server.process.send_signal(signal.SIGTERM)
    _, err = server.close()
    assert server.process.returncode == 0
    assert "Traceback" not in err


def test_with_dial_a_server_still_listens_where_it_is_told_to(own: Site) -> None:
    server = Served(own, "--json", "--dial", "127.0.0.1:2")
    record = json.loads(server.first_line)
    assert (record["listening"], record["dialling"]) == ([server.address], ["127.0.0.1:2"])
    server.close()


def test_an_address_that_is_taken_is_an_error(own: Site, address: str, secfarm: Secfarm) -> None:
    done = secfarm("serve", "-c", own.server_toml, "--listen", address)
    assert done.returncode == ExitStatus.USAGE
    assert f"cannot listen on {address}" in done.stderr


def test_detach_returns_when_it_listens_and_leaves_a_server(own: Site, secfarm: Secfarm) -> None:
    done = secfarm("serve", "-c", own.server_toml, "--detach", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    record = json.loads(done.stdout)
    [address] = record["listening"]
    assert secfarm("ping", address, env=own.client()).returncode == 0
    assert Path(record["log"]) == own.folder / "state" / "serve.log"
    assert Path(record["log"]).stat().st_mode & 0o777 == 0o600
    assert secfarm("end-server", address, env=own.client()).returncode == 0
    gone([record["pid"]])


def test_detach_tells_why_it_did_not_start(own: Site, secfarm: Secfarm) -> None:
    (own.folder / "policy.toml").write_text("nonsense", "utf-8")
    for _ in range(2):
        done = secfarm("serve", "-c", own.server_toml, "--detach")
        assert (done.returncode, done.stdout) == (ExitStatus.USAGE, "")
        assert done.stderr.count("policy.toml") == 1
        assert "hint: " in done.stderr


def test_stdio_is_for_sshd_and_not_for_terminals(own: Site, call: Secfarm, secfarm: Secfarm) -> None:
    for words in (["--check"], ["--detach"], ["--listen", "127.0.0.1:0"]):
        assert call("serve", "-c", own.server_toml, "--stdio", *words).returncode == ExitStatus.USAGE
    master, terminal = pty.openpty()
    command = [sys.executable, "-m", "secfarm", "serve", "-c", own.server_toml, "--stdio"]
    with os.fdopen(master), os.fdopen(terminal) as end:
        done = subprocess.run(command, stdin=end, stdout=end, stderr=subprocess.PIPE, check=False, timeout=60)
    assert done.returncode == ExitStatus.USAGE
    assert b"terminal" in done.stderr


def test_stdio_ends_with_its_stream_and_writes_nothing_else_into_it(own: Site, secfarm: Secfarm) -> None:
    done = secfarm("serve", "-c", own.server_toml, "--stdio", "-v")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    events = [json.loads(line)["event"] for line in (own.folder / "audit-1.jsonl").read_text("utf-8").splitlines()]
    assert events == ["started", "turned-away", "ended"]


@pytest.mark.parametrize("form", [None, "text", "json"])
@pytest.mark.parametrize("where", ["terminal", "pipe"])
def test_the_log_is_text_on_a_terminal_and_json_elsewhere_unless_told(own: Site, form: str | None, where: str) -> None:
    far, near = pty.openpty() if where == "terminal" else os.pipe()
    words = [] if form is None else ["--log-format", form]
    server = subprocess.Popen(
        [*COMMAND, "serve", "-c", own.server_toml, "--json", *words], stdout=subprocess.PIPE, stderr=near, text=True
    )
    os.close(near)
    with server, os.fdopen(far, "rb", buffering=0) as log:
        assert server.stdout is not None
        assert json.loads(server.stdout.readline())["pid"] == server.pid
        server.send_signal(signal.SIGHUP)
        lines = [log.read(4096).decode("ascii")]
        server.terminate()
        lines.append(log.read(4096).decode("ascii"))
        assert server.wait(TIMEOUT_S) == 0
    for role, message, line in zip(("keeper", "supervisor"), ("trust files", "draining"), lines, strict=True):
        if (form or ("text" if where == "terminal" else "json")) == "json":
            record = json.loads(line)
            assert record["message"].startswith(message)
            assert (record["level"], record["role"]) == ("info", role)
        else:
            assert f"Z INFO {role}: {message}" in line


def test_the_log_of_a_detached_server_is_json(own: Site, secfarm: Secfarm) -> None:
    record = json.loads(secfarm("serve", "-c", own.server_toml, "--detach", "--json").stdout)
    os.kill(record["pid"], signal.SIGTERM)
    gone([record["pid"]])
    lines = [json.loads(line) for line in Path(record["log"]).read_text("ascii").splitlines()]
    assert [(line["role"], line["message"].partition(";")[0]) for line in lines] == [("supervisor", "draining")]
