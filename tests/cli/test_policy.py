"""`policy show` says what the server would grant, openings included."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from secfarm.cli.main import main
from secfarm.errors import ExitStatus
from tests.cli.conftest import Secfarm, Site

POLICY = """\
[[grant]]
principals = ["ada@laptop", "*@EXAMPLE.COM"]
may = ["run", "call"]
names = ["operator.*"]

[grant.limits]
wall_s = 60

[grant.confine]
isolation = "task"
network = true
read = ["/srv/tables"]

[[grant]]
principals = ["eve"]
"""


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    path = tmp_path / "policy.toml"
    path.write_text(POLICY)
    path.chmod(0o600)
    return path


def test_each_grant_is_shown_with_its_limits_and_openings(policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "show", str(policy)]) == 0
    out = capsys.readouterr().out
    assert f"{policy}:1: ada@laptop, *@EXAMPLE.COM\n  may      call, run\n  names    operator.*\n" in out
    assert "limits   wall_s 60" in out
    assert "confine  isolation task, network yes, read /srv/tables, subprocesses no, generated_code no, numpy no" in out
    assert "  may      none\n" in out
    assert "confine  isolation session, network no, read none, subprocesses no" in out


def test_the_record_has_the_same(policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "show", "--json", str(policy)]) == 0
    first, second = json.loads(capsys.readouterr().out)["grants"]
    assert first["confine"]["read"] == ["/srv/tables"]
    assert (first["confine"]["isolation"], first["limits"]["wall_s"]) == ("task", 60)
    assert (second["may"], second["confine"]["network"]) == ([], False)


def test_the_configuration_names_the_policy(call: Secfarm, site: Site) -> None:
    done = call("policy", "show", "-c", site.server_toml)
    assert done.returncode == 0
    assert f"read {site.shown}" in done.stdout


def test_a_policy_that_the_server_would_not_read_is_not_shown(call: Secfarm, policy: Path) -> None:
    policy.write_text(POLICY + "what = 1\n")
    done = call("policy", "show", policy)
    assert done.returncode == ExitStatus.USAGE
    assert "what" in done.stderr
    assert done.stdout == ""
