"""A farm whose ends are proven by the site's certificates: real TLS, real servers, certificates that are no good."""

from __future__ import annotations

import datetime as dt
import os
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from secfarm import Kernel, SigningKey, start_server
from secfarm.auth import Ed25519AuthClient, SharedSecretAuth, TlsAuthClient, TlsAuthServer
from secfarm.cli.failure import failure_of
from secfarm.daemon.process import BackgroundServer
from secfarm.disk.keyfile import create_secret, create_signing_key
from secfarm.errors import AuthError, ExitStatus, KernelCreationError, KeyFileError, TaskRefusedError
from secfarm.trust.store import KnownServer, KnownServers
from tests.farm.farms import ROOT, WAIT_S, records, until
from tests.net.site_certificates import Authority, dns, email, ip, uri

POLICY = """\
[[grant]]
principals = ["ada@example.com", "ada"]
may = ["run", "call", "broadcast", "kill", "admin"]
names = ["*"]

[[grant]]
principals = ["keyed@example.com"]
may = ["run"]
require_key = true
"""


class Farm:
    """A server that takes certificates, keys and secrets, and the authority of its site."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700)
        self.folder = folder
        self.ca = Authority(folder / "ca")
        self.certificate, self.key = self.ca.certify(dns("localhost"), ip("127.0.0.1"), file="server", client=False)
        self.server_key = create_signing_key(folder / "key")
        self.ada = SigningKey.from_seed(b"a" * 32)
        self.secret = create_secret(folder / "secret", "ada")
        self.write("allowed_signers", f"ada,ada@example.com {self.ada.public.openssh()}\n")
        self.write("policy.toml", POLICY)
        self.write(
            "config.toml",
            'listen = ["127.0.0.1:0"]\nkey = "key"\nallowed_signers = "allowed_signers"\nsecrets = ["secret"]\n'
            'policy = "policy.toml"\nstate = "state"\nworkers = 1\n'
            f'[tls]\ncertificate = "{self.certificate}"\nkey = "{self.key}"\nca = "{self.ca.path}"\n',
        )
        self.server: BackgroundServer = start_server(port=0, background=True, config=folder / "config.toml")

    @property
    def address(self) -> str:
        return f"localhost:{self.server.addresses[0].port}"

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)
        (self.folder / name).chmod(0o600)

    def auth(self, *names: object, ca: Authority | None = None, **settings: object) -> TlsAuthClient:
        certificate, key = (ca or self.ca).certify(*(names or (email("ada@example.com"),)), file="client", **settings)
        return TlsAuthClient(certificate, key, self.ca.path)

    def turned_away(self, words: str) -> None:
        """The server's own log gives that reason: it is written while the client already hears of it."""

        until(lambda: any(words in str(record["reason"]) for record in self.audit("turned-away")), words)

    def audit(self, event: str) -> list[dict[str, object]]:
        return records(self.folder / "state/audit.jsonl", event)


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    farm = Farm(tmp_path_factory.mktemp("certificates") / "farm")
    with farm.server:
        yield farm


def connect(farm: Farm, auth: object, address: str = "", **settings: object) -> Kernel:
    return Kernel(address or farm.address, auth=auth, connect_timeout_s=WAIT_S, **settings)


def refused(farm: Farm, auth: object, address: str = "") -> str:
    """What the user hears; it is an authentication's failure."""
    with pytest.raises(KernelCreationError) as error:
        connect(farm, auth, address)
    assert isinstance(error.value.__cause__, AuthError)
    assert failure_of(error.value).status is ExitStatus.AUTHENTICATION
    return str(error.value)


def test_tasks_run_for_who_the_certificate_names(farm: Farm) -> None:
    with connect(farm, farm.auth()) as kernel:
        assert kernel.run(lambda x: x + 1, 4) == 5
        assert list(kernel.map(lambda x: x * x, range(50))) == [x * x for x in range(50)]
    session = [one for one in farm.audit("session") if one["mechanism"] == "tls"][-1]
    assert session["principal"] == "ada@example.com"
    assert str(farm.audit("accepted")[-1]["key"]).startswith("TLS:")


def test_a_server_of_several_processes_whose_gate_ends_tls(farm: Farm) -> None:
    """`secfarm serve`: what the gate's TLS has verified reaches the keeper, and nothing else does."""
    text = (farm.folder / "config.toml").read_text()
    farm.write("roles.toml", text.replace('"state"', '"state-roles"'))
    command = [sys.executable, "-m", "secfarm", "serve", "-c", str(farm.folder / "roles.toml")]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            address = server.stdout.readline().split()[-1].replace("127.0.0.1", "localhost")
            with connect(farm, farm.auth(), address) as kernel:
                assert kernel.run(lambda: 9) == 9
            known = KnownServers([KnownServer(("*:*",), farm.server_key.public)])
            with connect(farm, Ed25519AuthClient(farm.ada, known), address) as kernel:
                assert kernel.run(lambda: 9) == 9
            assert "accept" in refused(farm, farm.auth(ca=Authority(farm.folder / "fourth", "fourth")), address)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(ssl.SSLContext, "load_cert_chain", lambda *_, **__: None)
                assert "refused" in refused(farm, farm.auth(), address)
        finally:
            server.terminate()


def test_the_other_mechanisms_go_on_beside_it_on_the_same_socket(farm: Farm) -> None:
    known = KnownServers([KnownServer(("*:*",), farm.server_key.public)])
    for auth in (Ed25519AuthClient(farm.ada, known), SharedSecretAuth(farm.secret)):
        with connect(farm, auth) as kernel:
            assert kernel.run(lambda: 7) == 7


def test_the_clients_own_key_may_sign(farm: Farm) -> None:
    farm.write("allowed_signers", f"ada@example.com {farm.ada.public.openssh()}\n")
    text = (farm.folder / "config.toml").read_text()
    farm.write("own.toml", text.replace('"state"', '"state-own"'))
    with start_server(port=0, background=True, config=farm.folder / "own.toml") as server:
        address = f"localhost:{server.addresses[0].port}"
        with connect(farm, farm.auth(), address, key=farm.ada) as kernel:
            assert kernel.run(lambda: 8) == 8


def test_a_policy_can_demand_the_key(farm: Farm) -> None:
    with connect(farm, farm.auth(email("keyed@example.com")), delivery="at-most-once") as kernel:
        future = kernel.submit(lambda: 1)
        with pytest.raises(Exception, match=r"broke|refused"):
            future.result(WAIT_S)
    assert "demands" in str(farm.audit("refused")[-1]["reason"])


def test_a_certificate_of_another_authority(farm: Farm) -> None:
    words = refused(farm, farm.auth(ca=Authority(farm.folder / "other", "other")))
    assert "accept" in words
    farm.turned_away("not believed")


def test_an_expired_certificate(farm: Farm) -> None:
    assert "accept" in refused(farm, farm.auth(email("ada@example.com"), ends=dt.timedelta(hours=-1)))
    farm.turned_away("expired")


def test_a_certificate_that_is_not_for_clients(farm: Farm) -> None:
    assert "accept" in refused(farm, farm.auth(email("ada@example.com"), client=False))
    farm.turned_away("purpose")


def test_a_certificate_without_a_name(farm: Farm) -> None:
    assert "refused" in refused(farm, farm.auth(ip("127.0.0.1"), common="ada@example.com"))
    farm.turned_away("no subject alternative name")


def test_no_certificate(farm: Farm, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that says `tls` and shows none."""
    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", lambda *_, **__: None)
    assert "refused" in refused(farm, farm.auth())
    farm.turned_away("showed no certificate")


def test_a_server_of_another_authority(farm: Farm) -> None:
    other = Authority(farm.folder / "third", "third")
    certificate, key = farm.ca.certify(email("ada@example.com"), file="client")
    assert "was not believed" in refused(farm, TlsAuthClient(certificate, key, other.path))


def test_a_server_of_another_name(farm: Farm) -> None:
    certificate, key = farm.ca.certify(email("ada@example.com"), file="client")
    wrong = TlsAuthClient(certificate, key, farm.ca.path, server_name="elsewhere.example.com")
    assert "mismatch" in refused(farm, wrong)


def test_a_server_with_an_expired_or_no_certificate_of_the_site(farm: Farm, tmp_path: Path) -> None:
    text = (farm.folder / "config.toml").read_text()
    certificate, key = farm.ca.certify(dns("localhost"), file="old", client=False, ends=dt.timedelta(hours=-1))
    old = text.replace(str(farm.certificate), str(certificate)).replace(str(farm.key), str(key))
    for name, config, words in (("old", old, "expired"), ("none", text.partition("[tls]")[0], "was not believed")):
        farm.write(f"{name}.toml", config.replace('"state"', f'"state-{name}"'))
        with start_server(port=0, background=True, config=farm.folder / f"{name}.toml") as server:
            assert words in refused(farm, farm.auth(), f"localhost:{server.addresses[0].port}")


def test_an_address_may_be_what_the_certificate_names(farm: Farm) -> None:
    with connect(farm, farm.auth(), f"127.0.0.1:{farm.server.addresses[0].port}") as kernel:
        assert kernel.run(lambda: 1) == 1


def test_unix_sockets_need_a_name_to_expect(farm: Farm, tmp_path: Path) -> None:
    auth = TlsAuthServer(farm.certificate, farm.key, farm.ca.path)
    farm.write(
        "unix.toml",
        f'listen = ["unix:{tmp_path}/s"]\npolicy = "policy.toml"\nkey = "key"\nworkers = 1\n'
        'allowed_signers = "allowed_signers"\nstate = "state-unix"\n',
    )
    from secfarm.disk.config import load_server_config

    config = load_server_config(farm.folder / "unix.toml", {})
    with BackgroundServer(config, config.listen, auth, None):
        address = f"unix:{tmp_path}/s"
        client = farm.auth()
        with pytest.raises(KernelCreationError, match="server_name"):
            connect(farm, client, address)
        named = TlsAuthClient(*client.files, server_name="localhost")
        with connect(farm, named, address) as kernel:
            assert kernel.run(lambda: 3) == 3


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda paths: paths[1].chmod(0o640), "opens it to others"),
        (lambda paths: paths[0].write_bytes(paths[2].read_bytes()), "cannot be used together"),
        (lambda paths: paths[1].write_bytes(b"no key"), "no PRIVATE KEY"),
        (lambda paths: paths[2].write_bytes(b"-----BEGIN CERTIFICATE-----\nx"), "cannot be used together"),
        (lambda paths: paths[0].unlink(), "cannot be opened"),
    ],
)
def test_files_that_cannot_be_used(
    farm: Farm, tmp_path: Path, spoil: Callable[[list[Path]], object], words: str
) -> None:
    ca = Authority(tmp_path / "ca")
    paths = [*ca.certify(uri("spiffe://x/a"), file="c"), ca.path]
    spoil(paths)
    with pytest.raises((KeyFileError, KernelCreationError), match=words) as error:
        connect(farm, TlsAuthClient(*paths))
    assert failure_of(error.value).status is ExitStatus.AUTHENTICATION


def test_a_task_that_the_grant_does_not_cover(farm: Farm) -> None:
    with connect(farm, farm.auth(email("stranger@example.com"))) as kernel, pytest.raises(TaskRefusedError):
        kernel.run(lambda: 1)
