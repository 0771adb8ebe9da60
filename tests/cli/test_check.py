"""`check`: what would travel is shown, a server is asked, and the task is never called."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from secfarm.errors import ExitStatus
from secfarm.task.codec import encode
from tests.cli.conftest import Secfarm, Site

TASKS = """\
import math
from pathlib import Path
from secfarm import deftask

TABLE = [1.0] * 1000


def helper(x):
    return x + math.pi


@deftask(requires=["msgspec>=0.1"])
def task(x):
    import json
    Path("/nowhere").touch()
    return helper(x) + TABLE[0]


@deftask(requires=["no-such-thing>=2"])
def lacking():
    import no_such_module


def opened():
    return FILE


FILE = open(__file__)
FILE.close()
"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("tasks") / "checked.py"
    file.write_text(TASKS)
    return file


def test_what_would_travel_is_one_record(tasks: Path, call: Secfarm) -> None:
    done = call("check", f"{tasks}::task", "--json")
    record = json.loads(done.stdout)
    assert done.returncode == 0
    assert record["name"] == "task"
    assert record["kind"] == "source"
    assert record["text"].split("\n\n")[0] == TASKS[TASKS.index("def task") :].split("\n\n\n", maxsplit=1)[0]
    lines = [TASKS[: TASKS.index(name)].count("\n") + 1 for name in ("def task", "def helper")]
    assert record["places"] == [f"{tasks}:{line}" for line in lines]
    assert record["imports"] == ["json", "math", "pathlib"]
    assert record["requires"] == ["msgspec>=0.1"]
    assert record["values"] == [
        {"place": "global variable `TABLE` of function `task`", "type": "list", "bytes": len(encode([1.0] * 1000))}
    ]
    assert len(record["digest"]) == 64
    assert record["servers"] == {}


def test_people_see_the_same(tasks: Path, call: Secfarm) -> None:
    done = call("check", f"{tasks}::task")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert "      return helper(x) + TABLE[0]" in lines
    for row in ("value     global variable `TABLE` of function `task`: list, 9003 bytes", "import    math",
                "requires  msgspec>=0.1"):  # fmt: skip
        assert row in lines


def test_a_server_that_would_run_it_says_so_and_does_not(tasks: Path, call: Secfarm, site: Site, address: str) -> None:
    done = call("check", f"{tasks}::task", "--json", "--on", address, env=site.client())
    verdict = json.loads(done.stdout)["servers"][address]
    assert (done.returncode, verdict["runs"]) == (0, True)
    done = call("check", f"{tasks}::task", "--on", address, env=site.client())
    assert done.stdout.splitlines()[-1].endswith(f"(Python {verdict['python_version']}) would run it")


def test_all_that_a_server_lacks_is_told(tasks: Path, call: Secfarm, site: Site, address: str) -> None:
    done = call("check", f"{tasks}::lacking", "--json", "--on", address, env=site.client())
    verdict = json.loads(done.stdout)["servers"][address]
    assert (done.returncode, verdict["runs"], verdict["code"]) == (ExitStatus.MISSING, False, "missing-modules")
    for text in (verdict["reason"], done.stderr):
        assert "no-such-thing>=2 (not installed)" in text
        assert "no_such_module" in text


def test_policy_is_asked_too(tasks: Path, call: Secfarm, site: Site, address: str) -> None:
    done = call("check", f"{tasks}::task", "--on", address, env=site.client("eve"))
    assert done.returncode == ExitStatus.REFUSED
    assert "would not run it (refused)" in done.stdout


@pytest.mark.parametrize(
    ("function", "words"),
    [("opened", "global variable `FILE`"), ("nobody", "has no function nobody"), ("", "names no function")],
)
def test_what_cannot_travel_is_said(function: str, words: str, tasks: Path, call: Secfarm) -> None:
    done = call("check", f"{tasks}::{function}")
    assert (done.returncode, done.stdout) == (ExitStatus.USAGE, "")
    assert words in done.stderr
    assert "\nhint: " in done.stderr


def test_a_dry_run_is_in_the_audit_log_as_one(tasks: Path, call: Secfarm, site: Site, address: str) -> None:
    call("check", f"{tasks}::task", "--on", address, env=site.client())
    written = (site.folder / "audit.jsonl").read_text()
    records = [json.loads(line) for line in written[: written.rindex("\n")].splitlines()]  # the last may be under way
    assert [record for record in records if record.get("dry_runs") == record.get("calls") == 1]
