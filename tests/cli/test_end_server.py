"""`end-server` ends a server for those with the grant."""

from __future__ import annotations

from pathlib import Path

from secfarm.errors import ExitStatus
from tests.cli.conftest import TIMEOUT_S, Secfarm, Served, Site, make_site


def test_only_who_may_ends_a_server_and_its_audit_log_is_whole(secfarm: Secfarm, tmp_path: Path) -> None:
    site = make_site(tmp_path)
    server = Served(site)
    assert secfarm("end-server", server.address, env=site.client("eve")).returncode == ExitStatus.REFUSED
    assert server.process.poll() is None
    done = secfarm("end-server", server.address, env=site.client())
    assert (done.returncode, done.stderr) == (0, "")
    assert server.address in done.stdout
    assert server.process.wait(TIMEOUT_S) == 0
    server.close()
    assert secfarm("audit", "verify", tmp_path / "audit.jsonl").returncode == 0


def test_no_server_no_end(call: Secfarm, site: Site, tmp_path: Path) -> None:
    done = call("end-server", "--timeout", "0.2", f"unix:{tmp_path}/none", env=site.client())
    assert done.returncode == ExitStatus.UNREACHABLE
