"""A farm whose ends are proven by Kerberos: real servers, a real KDC, tickets that end while tasks run."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from secfarm import Kernel, SigningKey, end_server, ping, start_server
from secfarm.auth import Ed25519AuthClient, GssAuthClient, GssAuthServer
from secfarm.cli.failure import failure_of
from secfarm.disk.keyfile import create_signing_key
from secfarm.errors import ConnectionLostError, ExitStatus, KernelCreationError, TaskExecutionError
from secfarm.trust.store import KnownServer, KnownServers
from tests.auth.realm import HOST, REALM, SERVICE, Realm, need_kerberos
from tests.disk.access_list import credential, listed
from tests.farm.farms import ROOT, WAIT_S, Daemon, gone, records, results, until
from tests.meeting import NETWORK, Gate
from tests.run.nobody import NOBODY, public_folder, run_as_nobody

ADA = f"ada@{REALM}"
POLICY = f"""\
[[grant]]
principals = ["{ADA}", "tester"]
may = ["run", "call", "broadcast", "kill", "admin"]
names = ["*"]
{NETWORK}"""


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    need_kerberos()
    with Daemon("tcp-gss") as daemon, daemon.realm.lived_in():
        yield daemon


@pytest.fixture(scope="module")
def kernel(daemon: Daemon) -> Iterator[Kernel]:
    with daemon.connect() as kernel:
        yield kernel


@pytest.fixture(scope="module")
def realm() -> Iterator[Realm]:
    need_kerberos()
    with Realm() as realm, realm.lived_in():
        realm.keytab("secfarm.keytab", SERVICE)
        realm.ticket()
        yield realm


class Site:
    """Files of a server in this process."""

    def __init__(self, folder: Path, realm: Realm) -> None:
        folder.mkdir(mode=0o700)
        self.folder = folder
        self.realm = realm
        self.write("policy.toml", POLICY)
        self.kerberos = f'[kerberos]\nkeytab = "{realm.folder}/secfarm.keytab"\nallowed_users = ["{ADA}"]\n'

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text)
        path.chmod(0o600)
        return path

    def config(self, rest: str | None = None, keys: str = "") -> Path:
        head = f'listen = ["127.0.0.1:0"]\npolicy = "policy.toml"\nstate = "state"\nworkers = 1\n{keys}\n'
        return self.write("config.toml", head + (self.kerberos if rest is None else rest))

    def audit(self, event: str) -> list[dict[str, object]]:
        return records(self.folder / "state/audit.jsonl", event)


@pytest.fixture
def site(tmp_path: Path, realm: Realm) -> Site:
    return Site(tmp_path / "site", realm)


def connect(server: object, auth: object = None, **settings: object) -> Kernel:
    address = f"{HOST}:{server.addresses[0].port}"
    return Kernel(address, auth=auth or GssAuthClient(), connect_timeout_s=WAIT_S, **settings)


# --- a farm like any other ------------------------------------------------------------------------------------------


def test_tasks_values_and_errors(kernel: Kernel) -> None:
    assert kernel.run(lambda x: x + 1, 4) == 5
    assert list(kernel.map(lambda x: x * x, range(2000))) == [x * x for x in range(2000)]
    big = os.urandom(3 << 20)
    assert kernel.run(lambda value: value[::-1], big) == big[::-1]
    with pytest.raises(ZeroDivisionError) as error:
        kernel.run(lambda: 1 / 0)
    assert isinstance(error.value, TaskExecutionError)


def test_broadcast_and_kill(kernel: Kernel, gate: Gate) -> None:
    assert kernel.broadcast(lambda: 3) == [3, 3]
    future = kernel.options(category="held").submit(*held(gate))
    ((_, pid),) = gate.wait()
    assert kernel.kill("held") == 1
    assert future.exception(WAIT_S) is not None
    gone([pid])


def held(gate: Gate) -> tuple[object, ...]:
    from tests.meeting import pass_gate

    return (pass_gate, *gate.arguments(0))


def test_many_threads_at_once(kernel: Kernel) -> None:
    """MICs are counted by the context: they leave in the order in which they are made."""
    found: list[int] = []

    def work(start: int) -> None:
        found.extend(results([kernel.submit(lambda x: -x, number) for number in range(start, start + 200)]))

    threads = [threading.Thread(target=work, args=(start,)) for start in range(0, 1000, 200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert sorted(found, reverse=True) == [-number for number in range(1000)]


def test_ping_and_admin(daemon: Daemon) -> None:
    assert ping(daemon.address, auth=daemon.auth, timeout_s=WAIT_S)


def test_a_server_that_was_killed_is_found_again(gate: Gate) -> None:
    need_kerberos()
    with Daemon("tcp-gss") as daemon, daemon.realm.lived_in(), daemon.connect() as kernel:
        assert kernel.run(lambda: 1) == 1
        daemon.kill()
        future = kernel.submit(lambda: 2)
        daemon.start()
        assert future.result(WAIT_S) == 2
        end_server(daemon.address, auth=daemon.auth)


# --- tickets --------------------------------------------------------------------------------------------------------


def test_a_session_ends_with_its_ticket_and_work_goes_on_with_the_next(site: Site, gate: Gate) -> None:
    with start_server(port=0, background=True, config=site.config()) as server:
        cache = site.realm.ticket("ada", "-l", "3s", ccache="short")
        with connect(server, GssAuthClient(ccache=cache)) as kernel:
            future = gate.hold(kernel, "held")
            until(lambda: site.audit("closed"), "the session ends")
            site.realm.ticket("ada", ccache="short")
            until(lambda: len(site.audit("session")) > 1, "there is another")
            gate.wait()  # in the first session, where the machine is not too slow for that
            gate.open()
            assert future.result(WAIT_S) == "held"
            assert kernel.run(lambda: 1) == 1


def test_a_client_keytab_renews_its_tickets_by_itself(site: Site) -> None:
    """The sessions end with their tickets, of a few seconds; nobody fetches the next one but the client itself."""
    robot = f"robot@{REALM}"
    site.realm.admin("addprinc -randkey -maxlife 3s robot")
    site.write("policy.toml", POLICY.replace(ADA, robot))
    auth = GssAuthClient(client_keytab=site.realm.keytab("robot.keytab", "robot"))
    config = site.config(site.kerberos.replace(ADA, robot))
    with start_server(port=0, background=True, config=config) as server, connect(server, auth) as kernel:
        until(lambda: len(site.audit("session")) > 2, "there is a third session")
        assert kernel.run(lambda: 1) == 1
    assert {one["principal"] for one in site.audit("session")} == {robot}


def test_a_slow_kdc_or_hook_keeps_nobody_else_waiting(site: Site) -> None:
    """The hook of one client waits; the server serves another meanwhile."""
    inside, go = threading.Event(), threading.Event()

    class Slow(GssAuthServer):
        def name_accepted(self, name: object) -> bool:
            if str(name).startswith("bob"):
                inside.set()
                assert go.wait(WAIT_S)
            return True

    bob = site.realm.ticket("bob", ccache="bob")
    auth = Slow(site.realm.folder / "secfarm.keytab")
    with start_server(port=0, background=True, config=site.config(), auth=auth) as server:
        waiting = threading.Thread(target=lambda: connect(server, GssAuthClient(ccache=bob)).shutdown())
        waiting.start()
        assert inside.wait(WAIT_S)
        with connect(server) as kernel:
            assert kernel.run(lambda: 5) == 5
        go.set()
        waiting.join(WAIT_S)
        assert {one["principal"] for one in site.audit("session")} == {ADA, f"bob@{REALM}"}


# --- who is let in --------------------------------------------------------------------------------------------------


class Broken(GssAuthServer):
    def name_accepted(self, name: object) -> bool:
        raise LookupError("the directory is down")


@pytest.mark.parametrize(
    ("kind", "principal", "reason"),
    [
        (GssAuthServer, SERVICE, f"'{ADA}' proved its name and is not accepted"),
        (Broken, SERVICE, "the directory is down"),
        (GssAuthServer, "bob", "the keytab has no key of"),
    ],
)
def test_the_client_hears_one_word_and_the_server_writes_the_reason(
    site: Site, kind: type[GssAuthServer], principal: str, reason: str
) -> None:
    auth = kind(site.realm.keytab(f"{site.folder.parent.name}.keytab", principal))
    with start_server(port=0, background=True, config=site.config(), auth=auth) as server:
        with pytest.raises(KernelCreationError, match=r": the server refused us \('refused'\)[^(]*$") as error:
            connect(server)
        assert failure_of(error.value).status is ExitStatus.AUTHENTICATION
        until(lambda: site.audit("turned-away"), "the record")
        assert reason in str(site.audit("turned-away")[0]["reason"])


def test_without_a_ticket_nothing_is_sent(site: Site) -> None:
    with (
        start_server(port=0, background=True, config=site.config()) as server,
        pytest.raises(KernelCreationError, match="Run: kinit"),
    ):
        connect(server, GssAuthClient(ccache=site.folder / "none"))


def test_keys_secrets_and_kerberos_on_one_server(site: Site) -> None:
    key, client = create_signing_key(site.folder / "key"), SigningKey.from_seed(b"t" * 32)
    site.write("allowed_signers", f"tester {client.public.openssh()}\n")
    keys = 'key = "key"\nallowed_signers = "allowed_signers"'
    with start_server(port=0, background=True, config=site.config(keys=keys)) as server:
        known = KnownServers([KnownServer(("*:*",), key.public)])
        for auth in (Ed25519AuthClient(client, known), GssAuthClient()):
            with connect(server, auth) as kernel:
                assert kernel.run(lambda: 1) == 1
    assert {one["mechanism"] for one in site.audit("session")} == {"ed25519", "gss"}


@pytest.mark.parametrize("listed", [ADA, "somebody"])
def test_the_clients_own_key_signs_where_it_is_given_and_must_be_its_own(site: Site, listed: str) -> None:
    client = SigningKey.from_seed(b"t" * 32)
    site.write("allowed_signers", f"{listed} {client.public.openssh()}\n")
    site.write("policy.toml", POLICY.replace(NETWORK, f"require_key = true\n{NETWORK}"))
    config = site.config(keys='allowed_signers = "allowed_signers"')
    with start_server(port=0, background=True, config=config) as server:
        with connect(server, key=client, delivery="at-most-once") as kernel:
            future = kernel.submit(lambda: 1)
            if listed == ADA:
                assert future.result(WAIT_S) == 1
                assert site.audit("accepted")[0]["key"] == client.key_id
            else:
                with pytest.raises(ConnectionLostError):
                    future.result(WAIT_S)
        if listed == ADA:
            with connect(server, delivery="at-most-once") as kernel, pytest.raises(ConnectionLostError):
                kernel.run(lambda: 1)
            assert "demands" in str(site.audit("refused")[0]["reason"])


def test_a_policy_maps_and_folds_realms(site: Site) -> None:
    """Active Directory's names have no case; a realm may be written as another."""
    site.realm.admin("addprinc -pw Eve Eve")
    eve = site.realm.ticket("Eve", ccache="eve")
    kerberos = f'[kerberos]\ncase_insensitive = true\nrealms = {{ "{REALM}" = "example.com" }}\n'
    site.write("policy.toml", '[[grant]]\nprincipals = ["eve@example.com"]\nmay = ["run"]\n' + kerberos)
    allowed = site.kerberos.replace("ada@", "Eve@")
    with (
        start_server(port=0, background=True, config=site.config(allowed)) as server,
        connect(server, GssAuthClient(ccache=eve)) as kernel,
    ):
        assert kernel.run(lambda: 1) == 1
    (session,) = site.audit("session")
    assert (session["principal"], session["proven"]) == ("eve@example.com", f"Eve@{REALM}")


# --- a server process, and the command ------------------------------------------------------------------------------


@pytest.mark.parametrize("named", ["option", "KRB5_KTNAME", "CREDENTIALS_DIRECTORY"])
def test_where_the_keytab_may_come_from(site: Site, named: str) -> None:
    config = site.config(f'[kerberos]\nallowed_users = ["{ADA}"]\n')
    keytab = site.folder / "keytab"
    keytab.write_bytes((site.realm.folder / "secfarm.keytab").read_bytes())
    keytab.chmod(0o400)
    if named == "CREDENTIALS_DIRECTORY":
        listed(keytab, credential(os.geteuid()))
    values = {"KRB5_KTNAME": f"FILE:{keytab}", "CREDENTIALS_DIRECTORY": str(site.folder)}
    options = ["--keytab", str(keytab)] if named == "option" else []
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    environ |= {named: values[named]} if named in values else {}
    command = [sys.executable, "-m", "secfarm", "serve", "-c", str(config), *options]
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            address = server.stdout.readline().split()[-1].replace("127.0.0.1", HOST)
            with Kernel(address, auth=GssAuthClient(), connect_timeout_s=WAIT_S) as kernel:
                assert kernel.run(lambda: 1) == 1
        finally:
            server.terminate()


def test_a_bound_keeper_reads_what_krb5_conf_includes_and_a_keytab_that_was_replaced(site: Site) -> None:
    """Its lists name the directories: of the included files too, and the keytab's, in which another file comes."""
    realm, around = site.realm, site.folder.parent
    for name in ("etc", "etc.d", "keys"):
        (around / name).mkdir(mode=0o700)
    site.write("../etc.d/realm.conf", realm.krb5_conf.read_text())
    conf = site.write("../etc/krb5.conf", f"includedir {around}/etc.d\n")
    keytab = around / "keys/secfarm.keytab"
    shutil.copy(realm.keytab("other.keytab", ADA), keytab)
    config = site.config(f'[kerberos]\nkeytab = "{keytab}"\nallowed_users = ["{ADA}"]\n')
    command = [sys.executable, "-m", "secfarm", "serve", "-c", str(config)]
    environ = {**os.environ, "KRB5_CONFIG": str(conf)}
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().split()[-1].replace("127.0.0.1", HOST)
            with pytest.raises(KernelCreationError):
                Kernel(address, auth=GssAuthClient(), connect_timeout_s=WAIT_S)
            shutil.copy(realm.folder / "secfarm.keytab", around / "keys/new")
            (around / "keys/new").replace(keytab)
            with Kernel(address, auth=GssAuthClient(), connect_timeout_s=WAIT_S) as kernel:
                assert kernel.run(lambda: 1) == 1
        finally:
            server.terminate()


def secfarm(*command: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "secfarm", *command],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environ},
        capture_output=True,
        text=True,
        check=False,
        timeout=WAIT_S,
    )


def test_the_command_runs_with_a_ticket_and_says_what_to_do_without_one(site: Site, tmp_path: Path) -> None:
    client = site.write("client.toml", "[kerberos]\n")
    with start_server(port=0, background=True, config=site.config()) as server:
        run = ("run", "-e", "6 * 7", "--on", f"{HOST}:{server.addresses[0].port}")
        done = secfarm(*run, SECFARM_CONFIG=str(client))
        assert (done.returncode, done.stdout) == (0, "42\n"), done.stderr
        done = secfarm(*run, SECFARM_CONFIG=str(client), KRB5CCNAME=f"FILE:{tmp_path}/none")
        assert done.returncode == 3
        assert "no Kerberos ticket" in done.stderr
        assert "hint: run: kinit" in done.stderr


def test_doctor_looks_at_ticket_keytab_names_kdc_and_clock(site: Site) -> None:
    config, client = str(site.config()), str(site.write("client.toml", f'hosts = ["{HOST}"]\n[kerberos]\n'))

    def doctor(**environ: str) -> dict[str, dict[str, str]]:
        done = secfarm("doctor", "--kerberos", "--json", "-c", config, SECFARM_CONFIG=client, **environ)
        return {one["subject"]: one for one in json.loads(done.stdout)["checks"]} | {"status": done.returncode}

    found = doctor()
    assert found["status"] == 0, found
    for subject in ("gssapi", "krb5.conf", "keytab", "host name", "kdc", "key"):
        assert found[subject]["level"] == "ok", found[subject]
    assert f"{SERVICE}@{REALM} (kvno " in found["keytab"]["text"]
    found = doctor(KRB5CCNAME=f"FILE:{site.folder}/none")
    assert (found["status"], found["kdc"]["level"], found["kdc"]["remedy"]) == (3, "fail", "run: kinit")
    text = site.realm.krb5_conf.read_text().replace("rdns = false", "")
    found = doctor(KRB5_CONFIG=str(site.write("loose.conf", text)))
    assert (found["status"], found["krb5.conf"]["level"]) == (0, "warn")
    config = str(site.config(site.kerberos + 'service_name = "other"\n'))
    found = doctor()
    assert (found["status"], found["keytab"]["level"]) == (3, "fail")
    assert "addprinc" in found["keytab"]["remedy"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no file"),
        (b"", "is empty"),
        (b"garbage", "no keytab"),
        ("open", "opens it to others"),
    ],
)
def test_a_server_does_not_start_with_a_keytab_that_cannot_be_used(
    site: Site, content: bytes | str | None, words: str
) -> None:
    keytab = site.folder / "bad.keytab"
    if content is not None:
        keytab.write_bytes(content if isinstance(content, bytes) else b"\x05\x02")
        keytab.chmod(0o644 if content == "open" else 0o600)
    kerberos = f'[kerberos]\nkeytab = "bad.keytab"\nallowed_users = ["{ADA}"]\n'
    done = secfarm("serve", "-c", str(site.config(kerberos)))
    assert done.returncode == (2 if content is None else 3), done.stderr
    assert words in done.stderr
    assert "keygen" not in done.stderr


def test_a_server_does_not_start_with_a_keytab_that_its_user_may_not_read(realm: Realm) -> None:
    """The user nobody runs it, and the keytab is that of another."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    script = "import sys; from secfarm.cli.main import main; sys.exit(main(['serve', '-c', sys.argv[1]]))"
    with public_folder() as folder:
        site = Site(folder / "site", realm)
        keytab = site.write("secfarm.keytab", "")
        config = site.config(f'[kerberos]\nkeytab = "secfarm.keytab"\nallowed_users = ["{ADA}"]\n')
        for path in (site.folder, config, site.folder / "policy.toml"):
            os.chown(path, NOBODY, NOBODY)
        done = run_as_nobody(script, str(config))
    assert done.returncode == ExitStatus.AUTHENTICATION, done.stderr
    assert "cannot be opened (Permission denied)" in done.stderr
    assert f"hint: run: chown {NOBODY} {keytab}" in done.stderr


def test_steps_that_wait_do_so_outside_of_the_event_loop(site: Site) -> None:
    """A client whose KDC does not answer has a loop that turns."""
    silent = socket.create_server(("127.0.0.1", 0))  # accepts, and never answers
    port = silent.getsockname()[1]
    text = site.realm.krb5_conf.read_text().replace(str(site.realm.port), str(port))
    with pytest.MonkeyPatch.context() as patch, start_server(port=0, background=True, config=site.config()) as server:
        cache = site.realm.ticket("ada", ccache="tgt-only")
        patch.setenv("KRB5_CONFIG", str(site.write("silent.conf", text)))
        with pytest.raises(KernelCreationError):
            Kernel(f"{HOST}:{server.addresses[0].port}", auth=GssAuthClient(ccache=cache), connect_timeout_s=0.3)
        from secfarm.farm.loop import background_loop

        turned = asyncio.run_coroutine_threadsafe(asyncio.sleep(0, "turned"), background_loop())
        assert turned.result(2.0) == "turned"
    silent.close()
