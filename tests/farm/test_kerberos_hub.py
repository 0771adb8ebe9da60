"""A hub whose servers prove themselves by Kerberos: the server dials, and the client is still the one who has a ticket.

The server's name says for which principal the hub asks a ticket, and whoever dials in chooses that name: a hub takes
only those that it was told.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from secfarm import Kernel, KernelCreationError
from secfarm.auth import GssAuthClient, Side, TlsAuthClient
from secfarm.errors import AuthError, ConfigError
from tests.auth.exchange import BINDING, refusal
from tests.auth.realm import HOST, REALM, need_kerberos
from tests.farm.farms import ROOT, WAIT_S, Daemon, gone, until
from tests.meeting import Gate


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    need_kerberos()
    with Daemon("dialin-gss", name=HOST) as daemon, daemon.realm.lived_in():
        yield daemon


def test_tasks_broadcast_and_kill(daemon: Daemon, gate: Gate) -> None:
    with daemon.connect() as kernel:
        assert list(kernel.map(lambda x: x * x, range(500))) == [x * x for x in range(500)]
        assert kernel.broadcast(lambda: 3) == [3, 3]
        future = gate.hold(kernel.options(category="held"))
        ((_, pid),) = gate.wait()
        assert kernel.kill("held") == 1
        assert future.exception(WAIT_S) is not None
        gone([pid])


def test_a_target_names_the_one_server_whatever_it_calls_itself(daemon: Daemon) -> None:
    auth = GssAuthClient(ccache=daemon.realm.folder / "ccache", target=HOST)
    with Kernel(listen=daemon.hub, auth=auth, connect_timeout_s=WAIT_S) as kernel:
        assert kernel.run(lambda: 5) == 5


def test_a_session_ends_with_the_hubs_ticket_and_the_server_comes_again(daemon: Daemon, gate: Gate) -> None:
    realm = daemon.realm
    assert realm is not None
    auth = GssAuthClient(ccache=realm.folder / "short", servers=[HOST])
    with Kernel(listen=daemon.hub, auth=auth) as kernel:
        until(lambda: kernel.worker_count or not realm.ticket("ada", "-l", "3s", ccache="short"), "the server dials in")
        future = gate.hold(kernel, "held")
        until(lambda: not kernel.worker_count, "the session ends")
        realm.ticket("ada", ccache="short")
        gate.open()
        assert future.result(WAIT_S) == "held"


def test_a_server_of_several_processes_dials_in(daemon: Daemon, tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text(f'[[grant]]\nprincipals = ["ada@{REALM}"]\nmay = ["run"]\n')
    with Kernel(listen="127.0.0.1:0", auth=daemon.auth) as kernel:
        config = tmp_path / "config.toml"
        config.write_text(
            f'dial = ["{kernel.listening[0]}"]\nname = "{HOST}"\npolicy = "policy.toml"\nstate = "state"\nworkers = 1\n'
            f'[kerberos]\nkeytab = "{daemon.realm.folder}/secfarm.keytab"\nallowed_users = ["ada@{REALM}"]\n'
        )
        for path in (policy, config):
            path.chmod(0o600)
        command = [sys.executable, "-m", "secfarm", "serve", "-c", str(config)]
        environ = {**os.environ, "PYTHONPATH": str(ROOT)}
        with subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
            try:
                assert kernel.submit(lambda: 9).result(2 * WAIT_S) == 9
            finally:
                server.terminate()


# --- who may dial in ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("auth", "words"),
    [(GssAuthClient(), "which servers may dial in"), (TlsAuthClient("a", "b", "c"), r"docs/planned\.md")],
)
def test_a_hub_that_could_not_tell_servers_apart_is_not_opened(auth: object, words: str) -> None:
    if isinstance(auth, GssAuthClient):
        need_kerberos()
        with pytest.raises(KernelCreationError, match=words):
            Kernel(listen="127.0.0.1:0", auth=auth)
    with pytest.raises(ConfigError, match=words):
        auth.at_hub()


def test_a_server_that_is_not_listed_hears_nothing(daemon: Daemon, caplog: pytest.LogCaptureFixture) -> None:
    auth = GssAuthClient(ccache=daemon.realm.folder / "ccache", servers=["elsewhere"])
    with caplog.at_level(logging.WARNING, "secfarm"), Kernel(listen=daemon.hub, auth=auth) as kernel:
        until(lambda: f"calls itself '{HOST}' dialled in, and is none of servers" in caplog.text, "it is turned away")
        assert kernel.worker_count == 0


@pytest.mark.parametrize(
    "name", ["evil", "", f"host/{HOST}@{REALM}", f"host/{HOST}", f"{HOST}@{REALM}", f"{HOST}:7419", HOST.upper()]
)
def test_who_dials_in_cannot_choose_the_principal_that_it_has_to_prove(name: str) -> None:
    """Any host of a realm has a key of its own: a name with a slash would be a principal that it can prove."""
    need_kerberos()
    with pytest.raises(AuthError, match="none of servers") as error:
        GssAuthClient(servers=[HOST]).at_hub().begin(side=Side.CLIENT, binding=BINDING, address=name, now_s=0.0)
    refusal(error)


def test_a_server_that_takes_the_name_of_another_cannot_prove_it(daemon: Daemon) -> None:
    """It gets a ticket for that other one, which it cannot read."""
    daemon.realm.admin("addprinc -randkey secfarm/other")
    auth = GssAuthClient(ccache=daemon.realm.folder / "ccache", servers=["other"])
    with (
        Daemon("dialin-gss", name="other") as thief,  # its key is that of HOST
        daemon.realm.lived_in(),
        Kernel(listen=thief.hub, auth=auth) as kernel,
    ):
        until(lambda: "for another service" in (thief.folder / "state/audit.jsonl").read_text(), "it says so")
        assert kernel.worker_count == 0


@pytest.mark.parametrize("servers", ["localhost", [""], ["a/b"], ["a@B"], ["a b"]])
def test_servers_are_names_of_hosts(servers: object) -> None:
    with pytest.raises(ConfigError, match="servers"):
        GssAuthClient(servers=servers)
