"""Every example runs, as a user runs it: on servers of its own, and on one that is there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.farm.farms import WAIT_S, Daemon

EXAMPLES: Final = Path(__file__).parent.parent / "examples"
# What to call each with, so that it is done at once, and what it says then.
SAYS: Final = {
    "pi": (["--throws", "2000", "--tasks", "4"], r"pi is about 3\.\d{4}\n"),
    "word_count": (["--most", "2"], r" +8 the\n +3 and\n"),
    "build": ([], r"program: \[32 .*\] \+ \[39 .*\]\nlogger: not built, SyntaxError: .*\nkept: main\.o add\.o\n"),
    "sweep": (["--steps", "50", "--points", "20"], r"\d+ of 40 are chaotic; the most at r = 4\.000: 0\.\d+\n"),
}
HUB: Final = (["--tasks", "300"], r"of 300 numbers 235 takes most steps: 127\nservers that are there: node1, node2\n")


def test_each_example_has_its_test_and_its_line_in_the_readme() -> None:
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    readme = (EXAMPLES.parent / "README.md").read_text("utf-8")
    assert names == {*SAYS, "hub"}
    assert all(f"(examples/{name}.py)" in readme for name in names)


def run(name: str, *arguments: str, **environment: str) -> str:
    ended = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py", *arguments],
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=2 * WAIT_S,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout


@pytest.mark.parametrize("name", SAYS)
def test_it_runs_on_servers_of_its_own(name: str) -> None:
    said = run(name, *SAYS[name][0])
    assert re.fullmatch(SAYS[name][1], said), said


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with Daemon("tcp-secret") as daemon:
        config = daemon.folder / "client.toml"
        config.write_text('secret = "secret"\n', "utf-8")
        config.chmod(0o600)
        yield daemon


@pytest.mark.parametrize("name", SAYS)
def test_it_runs_on_a_server_that_is_there(name: str, daemon: Daemon) -> None:
    said = run(name, *SAYS[name][0], "--on", daemon.address, SECFARM_CONFIG=str(daemon.folder / "client.toml"))
    assert re.fullmatch(SAYS[name][1], said), said


def test_servers_dial_in_to_the_hub_and_end_with_it() -> None:
    said = run("hub", *HUB[0])
    assert re.fullmatch(HUB[1], said), said
