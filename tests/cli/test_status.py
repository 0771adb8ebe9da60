"""`status` shows a server to those with the grant, and to nobody else."""

from __future__ import annotations

import json

from secfarm.errors import ExitStatus
from tests.cli.conftest import Secfarm, Site


def test_workers_sessions_and_batches(call: Secfarm, site: Site, address: str) -> None:
    done = call("status", address, env=site.client())
    assert (done.returncode, done.stderr) == (0, "")
    assert "server: node1\n" in done.stdout
    assert "\nsessions: ada@laptop" in done.stdout  # and again, where the command before is just going
    record = json.loads(call("status", address, "--json", env=site.client()).stdout)
    assert record["address"] == address
    assert record["workers"] == 1
    assert record["batches_verified"] >= 2
    assert "worker: pid " in done.stdout
    assert "session: principal ada@laptop, " in done.stdout
    assert {one["principal"] for one in record["session_records"]} == {"ada@laptop"}


def test_without_the_grant_it_is_refused(call: Secfarm, site: Site, address: str) -> None:
    done = call("status", address, env=site.client("eve"))
    assert (done.returncode, done.stdout) == (ExitStatus.REFUSED, "")
    assert "hint: ask the server's administrator" in done.stderr
