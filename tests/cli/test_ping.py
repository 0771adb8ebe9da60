"""`ping`: 0 for a server that answers and is believed, 5 for none, 3 where one does not believe the other."""

from __future__ import annotations

import json
import socket

from secfarm.errors import ExitStatus
from tests.cli.conftest import Secfarm, Site


def test_a_server_that_answers(secfarm: Secfarm, site: Site, address: str) -> None:
    done = secfarm("ping", address, env=site.client())
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{address} answers (")
    record = json.loads(secfarm("ping", "--json", address, env=site.client()).stdout)
    assert record["address"] == address
    assert secfarm("ping", "-q", address, env=site.client()).stdout == ""


def test_every_peer_that_is_proven_may_ping(call: Secfarm, site: Site, address: str) -> None:
    assert call("ping", address, env=site.client("eve")).returncode == 0


def test_nobody_there(call: Secfarm, site: Site) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        done = call("ping", address, "--timeout", "0.3", env=site.client())
    assert (done.returncode, done.stdout) == (ExitStatus.UNREACHABLE, "")
    assert done.stderr.startswith(f"secfarm: {address} does not answer; gave up after 0.3 s\nhint: ")


def test_a_client_that_the_server_does_not_know(call: Secfarm, site: Site, address: str) -> None:
    done = call("ping", address, env=site.client("mallory"))
    assert (done.returncode, done.stdout) == (ExitStatus.AUTHENTICATION, "")
    assert "hint: compare known_servers here" in done.stderr


def test_a_server_that_the_client_does_not_know(call: Secfarm, site: Site, address: str) -> None:
    done = call("ping", f"localhost:{address.partition(':')[2]}", env=site.client())
    assert done.returncode == ExitStatus.AUTHENTICATION
    assert "known_servers" in done.stderr


def test_no_key_is_a_matter_of_configuration(call: Secfarm, address: str) -> None:
    done = call("ping", address)
    assert done.returncode == ExitStatus.USAGE
    assert "secfarm keygen" in done.stderr


def test_an_encrypted_key_needs_a_terminal(secfarm: Secfarm, site: Site, address: str) -> None:
    key = site.folder / "locked"
    secfarm("keygen", "-q", "--passphrase", "-f", key, typed="word\nword\n")
    done = secfarm("ping", address, env={**site.client(), "SECFARM_KEY": str(key)})
    assert done.returncode == ExitStatus.AUTHENTICATION
    assert "no terminal" in done.stderr
