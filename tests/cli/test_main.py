"""What all commands share: help, version, usage errors, and ends without a word too many."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from secfarm.cli.main import cli, main
from secfarm.errors import ExitStatus
from tests.cli.conftest import Secfarm

COMMANDS = ["demo", "keygen", "serve", "run", "check", "ping", "end-server", "status", "doctor", "audit"]


def test_version_is_the_packages(secfarm: Secfarm) -> None:
    assert secfarm("--version").stdout == f"secfarm {version('secfarm')}\n"


def test_the_installed_script_is_the_module(secfarm: Secfarm) -> None:
    script = Path(sys.executable).with_name("secfarm")
    done = subprocess.run([script, "--help"], capture_output=True, text=True, check=True)
    assert done.stdout == secfarm("--help").stdout


def test_help_lists_every_command_and_the_exit_statuses(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in COMMANDS)
    assert "130 interrupted" in " ".join(out.split())
    assert set(cli.commands) <= set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    assert "Usage: secfarm" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["no-such-command"],
        ["ping"],
        ["ping", "host:xx"],
        ["ping", "localhost", "--timeout", "0"],
        ["serve", "--listen", "nowhere:99999"],
        ["run"],
        ["run", "--timeout", "-3", "-e", "1"],
        ["run", "--timeout", "nan", "-e", "1"],
        ["run", "--no-such-option"],
        ["keygen", "--secret", "--passphrase"],
        ["audit"],
    ],
)
def test_wrong_usage_is_status_2_and_two_lines(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == ExitStatus.USAGE
    out, err = capsys.readouterr()
    assert out == ""
    happened, hint = err.splitlines()
    assert happened.startswith("secfarm: ")
    assert hint.startswith("hint: ")
    assert hint.endswith("--help")


def test_no_traceback_unless_it_is_asked_for(secfarm: Secfarm, tmp_path: Path) -> None:
    quiet, verbose = (secfarm("audit", "verify", *option, tmp_path / "none") for option in ([], ["-v"]))
    assert quiet.returncode == verbose.returncode == ExitStatus.USAGE
    assert "Traceback" not in quiet.stderr
    assert "Traceback" in verbose.stderr
    assert verbose.stderr.endswith(quiet.stderr)


def test_a_reader_that_goes_away_is_no_error() -> None:
    """As in `secfarm doctor | head -1`, but certain: nobody reads at all."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "secfarm", "doctor"], stdout=write, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_keygen_starts_without_an_event_loop() -> None:
    """Commands are imported when they are named."""
    code = "import sys; from secfarm.cli.main import main; main(['keygen', '--help']); print('asyncio' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n")
