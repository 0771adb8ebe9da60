"""The real command, and one server for all of a test process, made by commands alone."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest

from secfarm.cli.main import main

COMMAND = [sys.executable, "-m", "secfarm"]
TIMEOUT_S = 60


class Secfarm(Protocol):
    """Run `secfarm` with these arguments and return how it ended."""

    def __call__(
        self, *arguments: str | Path, env: Mapping[str, str] | None = None, typed: str | None = None
    ) -> subprocess.CompletedProcess[str]: ...


def run(
    *arguments: str | Path, env: Mapping[str, str] | None = None, typed: str | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        env=os.environ | (env or {}),
        input=typed,
        stdin=subprocess.DEVNULL if typed is None else None,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


@pytest.fixture(scope="session")
def secfarm() -> Secfarm:
    return run


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Secfarm:
    """The same in this process, which saves its start: for tables of cases."""

    def call(
        *arguments: str | Path, env: Mapping[str, str] | None = None, typed: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        assert typed is None
        with monkeypatch.context() as patch:
            for name, value in (env or {}).items():
                patch.setenv(name, value)
            patch.setattr(sys, "path", list(sys.path))  # `run FILE` finds what stands beside FILE
            capsys.readouterr()
            status = main([str(word) for word in arguments])
        return subprocess.CompletedProcess(arguments, int(status), *capsys.readouterr())

    return call


@dataclass(frozen=True)
class Site:
    """The files of a server and of two clients: ada may run and administrate, eve is known and may nothing.

    Tasks of ada may read what is in `shown`.
    """

    folder: Path

    @property
    def shown(self) -> Path:
        return self.folder / "shown"

    @property
    def server_toml(self) -> Path:
        return self.folder / "server.toml"

    def client(self, name: str = "ada") -> dict[str, str]:
        """The environment of a client."""
        return {"SECFARM_CONFIG": str(self.folder / f"{name}.toml")}


POLICY = """\
[[grant]]
principals = ["ada@laptop"]
may = ["run", "admin"]

[grant.limits]
wall_s = 30

[grant.confine]
read = ["SHOWN"]
"""


def make_site(folder: Path) -> Site:
    for name, comment in (("server", "node1"), ("ada", "ada@laptop"), ("eve", "eve@laptop"), ("mallory", "mallory")):
        assert main(["keygen", "-q", "-f", str(folder / name), "-C", comment]) == 0
    keys = {path.stem: path.read_text("utf-8").rsplit(maxsplit=1)[0] for path in folder.glob("*.pub")}
    files = {
        "allowed_signers": f"ada@laptop {keys['ada']}\neve@laptop {keys['eve']}\n",
        "known_servers": f"127.0.0.1:* {keys['server']}\n",
        "policy.toml": POLICY.replace("SHOWN", str(folder / "shown")),
        "server.toml": 'name = "node1"\nlisten = ["127.0.0.1:0"]\nworkers = 1\nkey = "server"\npolicy = "policy.toml"\n'
        'allowed_signers = "allowed_signers"\naudit = "audit.jsonl"\nstate = "state"\n',
        **{f"{name}.toml": f'key = "{name}"\nknown_servers = "known_servers"\n' for name in ("ada", "eve", "mallory")},
    }
    for name, text in files.items():
        (folder / name).write_text(text, "utf-8")
        (folder / name).chmod(0o600)
    site = Site(folder)
    site.shown.mkdir(mode=0o755)
    return site


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return make_site(tmp_path_factory.mktemp("site"))


class Served:
    """A server started with `secfarm serve`."""

    def __init__(self, site: Site, *options: str) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, "serve", "-c", str(site.server_toml), *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.first_line = self.process.stdout.readline()
        found = re.search(r"127\.0\.0\.1:\d+", self.first_line)
        assert found, self.process.communicate(timeout=TIMEOUT_S)[1]
        self.address = found[0]

    def close(self) -> tuple[str, str]:
        """End it if it still runs, and return what else it printed."""
        if self.process.poll() is None:
            self.process.terminate()
        out, err = self.process.communicate(timeout=TIMEOUT_S)
        return out, err


@pytest.fixture(scope="session")
def served(site: Site) -> Iterator[Served]:
    server = Served(site)
    yield server
    server.close()


@pytest.fixture(scope="session")
def address(served: Served) -> str:
    return served.address
