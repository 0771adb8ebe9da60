"""`run`: a result on stdout, everything else on stderr, and an exit status that says how it went."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from secfarm.errors import ExitStatus
from tests.cli.conftest import COMMAND, TIMEOUT_S, Secfarm, Site

TASKS = """\
import math
from secfarm import deftask

SCALE = 10


@deftask
def add(x, y):
    return x + y


def scaled(x):
    return add(x, 0) * SCALE


def kinds(*values):
    return [type(value).__name__ for value in values]


def greet(name):
    print("to", name)
    return f"hello {name}"


def broken(n):
    print("before")
    return math.sqrt(1 / n)


def lone(x):
    return "\\x1b[31m" + x
"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("tasks") / "tasks.py"
    file.write_text(TASKS)
    return file


@pytest.mark.parametrize(
    ("function", "arguments", "shown"),
    [
        ("add", ["3", "4"], "7\n"),
        ("add", ["3", "-4.5"], "-1.5\n"),
        ("add", ["one ", "two"], "one two\n"),
        ("scaled", ["3"], "30\n"),
        ("kinds", ["1", "1.0", "True", "None", "'a'", "a", "(1,)", "{}", "b''"],
         "['int', 'float', 'bool', 'NoneType', 'str', 'str', 'tuple', 'dict', 'bytes']\n"),
        ("greet", ["ada"], "to ada\nhello ada\n"),
        ("lone", ["x"], "\\x1b[31mx\n"),
    ],
)  # fmt: skip
def test_a_function_of_a_file(
    function: str, arguments: list[str], shown: str, tasks: Path, call: Secfarm, site: Site, address: str
) -> None:
    done = call("run", f"{tasks}::{function}", *arguments, "--on", address, env=site.client())
    assert (done.returncode, done.stdout, done.stderr) == (0, shown, "")


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["-e", "2 ** 10"], "1024\n"),
        (["-e", "-5"], "-5\n"),
        (["-e", "math.floor(2.5) + len(os.sep)"], "3\n"),
        (["-e", "[string for string in 'ab']"], "['a', 'b']\n"),
        (["-e", "'''a\nb'''"], "a\nb\n"),
        (["-e", "None"], "None\n"),
        (["-e", "lambda x, y=2: x * y", "4"], "8\n"),
    ],
)
def test_an_expression(arguments: list[str], shown: str, call: Secfarm, site: Site, address: str) -> None:
    done = call("run", *arguments, env={**site.client(), "SECFARM_HOSTS": address})
    assert (done.returncode, done.stdout, done.stderr) == (0, shown, "")


def test_a_task_that_raises_shows_the_lines_of_the_client(
    tasks: Path, secfarm: Secfarm, site: Site, address: str
) -> None:
    done = secfarm("run", f"{tasks}::broken", "0", "--on", address, env=site.client())
    assert (done.returncode, done.stdout) == (ExitStatus.TASK_RAISED, "before\n")
    assert (
        f'File "{tasks}", line {TASKS.splitlines().index("    return math.sqrt(1 / n)") + 1}, in broken' in done.stderr
    )
    assert "    return math.sqrt(1 / n)\n" in done.stderr
    *_, happened, hint = done.stderr.splitlines()
    assert happened == "secfarm: the task raised on server node1: ZeroDivisionError: division by zero"
    assert hint.startswith("hint: ")
    assert "secfarm/" not in done.stderr.replace(str(tasks), "")


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["-e", "time.sleep(60)", "--timeout", "0.3"], ExitStatus.TIMED_OUT, "0.3 s"),
        (["-e", "os._exit(9)"], ExitStatus.KILLED, "status 9"),
        (["-e", "undefined"], ExitStatus.TASK_RAISED, "NameError"),
        (["-e", "1 +"], ExitStatus.USAGE, "is not an expression"),
        (["-e", "1", "2"], ExitStatus.USAGE, "only a lambda takes ARGs"),
        (["-e", "object()"], ExitStatus.USAGE, "object"),
        (["-e", "10 ** 5000"], ExitStatus.USAGE, "cannot be printed"),
        (["nowhere.py"], ExitStatus.USAGE, "there is no file nowhere.py"),
    ],
)
def test_how_it_can_end(
    arguments: list[str], status: ExitStatus, words: str, call: Secfarm, site: Site, address: str
) -> None:
    done = call("run", *arguments, "--on", address, env=site.client())
    assert (done.returncode, done.stdout) == (status, "")
    assert words in done.stderr
    assert "\nhint: " in done.stderr


def test_modules_that_the_server_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Secfarm, site: Site, address: str
) -> None:
    """The client has the module, in a directory that only it sees."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site/only_here.py").write_text("x = 1\n")
    file = tmp_path / "task.py"
    file.write_text("import only_here\ndef main():\n    return only_here.x\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    done = call("run", file, "--on", address, env=site.client())
    assert done.returncode == ExitStatus.MISSING
    assert "only_here" in done.stderr


def test_what_policy_denies_is_refused(call: Secfarm, site: Site, address: str) -> None:
    done = call("run", "-e", "1", "--on", address, env=site.client("eve"))
    assert (done.returncode, done.stdout) == (ExitStatus.REFUSED, "")


def test_who_is_not_known_is_not_let_in(call: Secfarm, site: Site, address: str) -> None:
    done = call("run", "-e", "1", "--on", address, env=site.client("mallory"))
    assert (done.returncode, done.stdout) == (ExitStatus.AUTHENTICATION, "")


def test_a_server_that_is_not_there(call: Secfarm, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secfarm.cli.run.CONNECT_TIMEOUT_S", 0.3)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        done = call("run", "-e", "1", "--on", f"127.0.0.1:{closed.getsockname()[1]}", env=site.client())
    assert (done.returncode, done.stdout) == (ExitStatus.UNREACHABLE, "")


def test_json_is_one_record(tasks: Path, call: Secfarm, site: Site, address: str) -> None:
    done = call("run", f"{tasks}::greet", "ada", "--json", "--on", address, env=site.client())
    record = json.loads(done.stdout)
    assert (record["result"], record["repr"], record["output"]) == ("hello ada", "'hello ada'", "to ada\n")
    record = json.loads(call("run", "-e", "{1}", "--json", "--on", address, env=site.client()).stdout)
    assert (record["result"], record["repr"]) == (None, "{1}")


def test_without_servers_one_is_started_here_and_that_is_said(secfarm: Secfarm, tasks: Path) -> None:
    done = secfarm("run", f"{tasks}::add", "1", "2")
    assert (done.returncode, done.stdout) == (0, "3\n")
    assert done.stderr.startswith("secfarm: no server is named")
    assert done.stderr.count("\n") == 1


def test_an_interrupt_ends_the_task_and_is_status_130(
    site: Site, address: str, tmp_path: Path, secfarm: Secfarm, tasks: Path
) -> None:
    """The task says that it runs; the server has one worker, which is free again when it was killed."""
    file = tmp_path / "task.py"
    file.write_text("import time\ndef main():\n    print('on')\n    time.sleep(600)\n")
    command = [*COMMAND, "run", str(file), "--on", address]
    with subprocess.Popen(
        command,
        env=os.environ | site.client(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - whoever runs us may ignore it
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "on\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == ExitStatus.INTERRUPTED
    assert err.strip().startswith("secfarm: interrupted\nhint: ")
    assert secfarm("run", f"{tasks}::add", "1", "2", "--on", address, env=site.client()).stdout == "3\n"


def test_what_the_task_prints_is_shown_while_it_runs_on_the_stream_that_it_meant(
    tmp_path: Path, site: Site, address: str
) -> None:
    """Escaped. The task ends when the test has read its first line."""
    go = site.shown / "go"
    os.mkfifo(go)
    file = tmp_path / "live.py"
    file.write_text(
        "import sys\n\n\ndef main(go):\n    print('first \\x1b[31m')\n    open(go).close()\n"
        "    print('oops', file=sys.stderr, end='')\n    print('last', end='')\n    return 5\n"
    )
    environment = os.environ | site.client()
    with subprocess.Popen(
        [*COMMAND, "run", file, str(go), "--on", address],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "first \\x1b[31m\n"
        assert process.poll() is None
        go.write_text("")
        out, err = process.communicate(timeout=TIMEOUT_S)
    assert (process.returncode, out, err) == (0, "last\n5\n", "oops\n")


def test_with_json_what_the_task_prints_is_on_stderr_and_in_the_record(
    tasks: Path, call: Secfarm, site: Site, address: str
) -> None:
    done = call("run", f"{tasks}::greet", "ada", "--json", "--on", address, env=site.client())
    assert json.loads(done.stdout)["output"] == "to ada\n"
    assert done.stderr == "to ada\n"
