"""Credentials: files become loaded keys, each side gets what it needs, and nothing missing is guessed."""

from __future__ import annotations

from pathlib import Path

import pytest

from secfarm.auth import Auth, Ed25519AuthClient, Ed25519AuthServer, Mechanism, SharedSecretAuth, Side
from secfarm.disk.config import ServerConfig, load_server_config
from secfarm.disk.credentials import client_credentials, server_credentials
from secfarm.disk.keyfile import create_secret, create_signing_key
from secfarm.disk.trustfile import add_known_server
from secfarm.errors import ConfigError, KeyFileError, TrustFileError
from secfarm.sign.keys import SharedSecret, SigningKey
from secfarm.sign.sshsig import TASK_NAMESPACE
from secfarm.trust.policy import Right
from secfarm.trust.store import KnownServers, TrustStore
from secfarm.wire.address import SshAddress, TcpAddress
from tests.net.site_certificates import Authority, dns

KEY = SigningKey.from_seed(bytes(range(32)))


class OwnAuth(Auth):
    """A mechanism of the user's own, without a key."""

    mechanism = "own"

    def begin(self, *, side: Side, binding: bytes, address: str, now_s: float) -> Mechanism:
        raise NotImplementedError


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "secfarm"
    home.mkdir(mode=0o700)
    create_signing_key(home / "key")
    create_secret(home / "ada.secret", "ada")
    (home / "signers").write_text(f"bob {KEY.public.openssh()}\n")
    (home / "policy.toml").write_text('[[grant]]\nprincipals = ["ada", "bob"]\nmay = ["run"]\n')
    return home


def server_config(home: Path, text: str) -> ServerConfig:
    (home / "server.toml").write_text('policy = "policy.toml"\n' + text)
    return load_server_config(home / "server.toml", {})


BOTH = 'key = "key"\nallowed_signers = "signers"\nsecrets = ["ada.secret"]\n'


def begins(auth: Auth, side: Side) -> bool:
    """Whether the auth is loaded: `begin` refuses one that still names files."""
    return bool(auth.begin(side=side, binding=bytes(32), address="a:1", now_s=0.0))


def principal_of(store: TrustStore, key: SigningKey | SharedSecret) -> str:
    return store.principal_of(key.key_id, namespace=TASK_NAMESPACE, now_s=0.0)


# --- servers ------------------------------------------------------------------------------------------------------


def test_a_server_offers_what_its_configuration_has_keys_for(home: Path) -> None:
    credentials = server_credentials(server_config(home, BOTH))
    assert set(credentials.auths) == {"ed25519", "shared-secret"}
    assert all(begins(auth, Side.SERVER) for auth in credentials.auths.values())
    assert principal_of(credentials.store, KEY) == "bob"
    assert [secret.principal for secret in credentials.store.secrets] == ["ada"]
    assert credentials.policy.grant_for("ada").may == {Right.RUN}
    only = server_credentials(server_config(home, 'secrets = ["ada.secret"]\n'))
    assert set(only.auths) == {"shared-secret"}


def test_an_auth_object_replaces_the_configured_mechanisms_and_its_keys_sign(home: Path) -> None:
    config = server_config(home, BOTH)
    secret = SharedSecret("eve", b"e" * 32)
    given = server_credentials(config, SharedSecretAuth(secret))
    assert set(given.auths) == {"shared-secret"}
    assert given.store.secrets == (secret,)
    assert principal_of(given.store, KEY) == "bob"
    from_files = server_credentials(config, SharedSecretAuth(home / "ada.secret"))
    assert [one.principal for one in from_files.store.secrets] == ["ada"]
    named = server_credentials(config, Ed25519AuthServer(home / "key", home / "signers"))
    assert set(named.auths) == {"ed25519"}
    assert begins(named.auths["ed25519"], Side.SERVER)
    assert principal_of(named.store, KEY) == "bob"
    assert principal_of(server_credentials(config, Ed25519AuthServer(str(home / "key"))).store, KEY) == "bob"
    own = OwnAuth()
    assert server_credentials(config, own).auths == {"own": own}


@pytest.mark.parametrize(
    ("file", "error"),
    [("key", KeyFileError), ("ada.secret", KeyFileError), ("signers", TrustFileError), ("policy.toml", TrustFileError)],
)
def test_a_server_does_not_start_on_a_file_that_others_can_write(home: Path, file: str, error: type[Exception]) -> None:
    config = server_config(home, BOTH)
    (home / file).chmod(0o666)
    with pytest.raises(error, match="0666"):
        server_credentials(config)


def test_a_server_needs_a_way_to_authenticate_and_the_right_side(home: Path) -> None:
    config = server_config(home, BOTH)
    with pytest.raises(ConfigError, match="for clients"):
        server_credentials(config, Ed25519AuthClient(KEY))
    with pytest.raises(ConfigError, match="nobody could be authenticated"):
        server_credentials(ServerConfig(policy=home / "policy.toml"))


# --- clients ------------------------------------------------------------------------------------------------------


def environ(home: Path, config: str = "", **more: str) -> dict[str, str]:
    (home / "config.toml").write_text(config)
    return {"XDG_CONFIG_HOME": str(home.parent), **more}


def test_a_key_alone_proves_and_signs(home: Path) -> None:
    key = SigningKey.from_seed(bytes(32))
    for credentials in (
        client_credentials(None, key, environ(home)),
        client_credentials(Ed25519AuthClient(key), None, environ(home)),
    ):
        assert credentials.signer is key
        assert begins(credentials.auth, Side.CLIENT)


def test_the_configurations_key_or_secret_is_the_default(home: Path) -> None:
    add_known_server(home / "known_servers", "a", KEY.public)
    credentials = client_credentials(None, None, environ(home, 'key = "key"\nhosts = ["a"]\n'))
    assert isinstance(credentials.auth, Ed25519AuthClient)
    assert isinstance(credentials.auth.known_servers, KnownServers)
    assert credentials.auth.known_servers.keys_for("a:7419") == ((KEY.public, "a"),)
    assert credentials.hosts == (TcpAddress("a", 7419),)
    by_secret = client_credentials(None, None, environ(home, 'secret = "ada.secret"\n'))
    assert isinstance(by_secret.auth, SharedSecretAuth)
    assert isinstance(by_secret.signer, SharedSecret)
    assert begins(by_secret.auth, Side.CLIENT)
    by_environment = client_credentials(None, None, environ(home, SECFARM_KEY=str(home / "key")))
    assert by_environment.signer.key_id == credentials.signer.key_id


def test_addresses_of_ssh_take_what_the_configuration_says_of_it(home: Path) -> None:
    wanted = [TcpAddress("a", 7419), SshAddress("b", "ada", 22)]
    ssh = '[ssh]\nprogram = "/opt/ssh"\noptions = ["-v"]\ncommand = ["/opt/secfarm", "serve", "--stdio"]\n'
    plain, routed = client_credentials(None, None, environ(home, f'key = "key"\n{ssh}')).routed(wanted)
    assert (plain, routed) == tuple(wanted)
    assert isinstance(routed, SshAddress)
    assert (routed.ssh, routed.command) == (("/opt/ssh", "-v"), ("/opt/secfarm", "serve", "--stdio"))
    default = client_credentials(None, None, environ(home, 'key = "key"\n[ssh]\noptions = ["-4"]\n')).routed(wanted)[1]
    assert isinstance(default, SshAddress)
    assert (default.ssh, default.command) == (("ssh", "-4"), ("secfarm", "serve", "--stdio"))


def test_a_secret_proves_and_signs_and_a_key_given_besides_signs_instead(home: Path) -> None:
    for secret in (b"s" * 32, SharedSecret("ada", b"s" * 32)):
        assert isinstance(client_credentials(SharedSecretAuth(secret), None, {}).signer, SharedSecret)
    assert client_credentials(SharedSecretAuth(b"s" * 32), KEY, {}).signer is KEY
    from_file = client_credentials(SharedSecretAuth(str(home / "ada.secret")), home / "key", {})
    assert isinstance(from_file.signer, SigningKey)


def test_a_complete_auth_object_needs_no_configuration(home: Path) -> None:
    """A server's SECFARM_CONFIG in the environment must not stop a client that says everything itself."""
    broken = environ(home, "not = 'ours'\n")
    credentials = client_credentials(Ed25519AuthClient(home / "key", KnownServers()), None, broken)
    assert begins(credentials.auth, Side.CLIENT)
    with pytest.raises(ConfigError, match="unknown key"):
        assert credentials.hosts
    with pytest.raises(ConfigError, match="unknown key"):
        client_credentials(None, None, broken)


def test_known_servers_that_are_named_must_be_there(home: Path) -> None:
    with pytest.raises(TrustFileError, match="missing"):
        client_credentials(Ed25519AuthClient(KEY, home / "missing"), None, environ(home))
    (home / "known").write_text(f"a {KEY.public.openssh()}\n")
    auth = client_credentials(Ed25519AuthClient(KEY, str(home / "known")), None, environ(home)).auth
    assert isinstance(auth, Ed25519AuthClient)
    assert isinstance(auth.known_servers, KnownServers)
    assert auth.known_servers.entries


def test_without_a_key_the_message_says_what_to_do(home: Path) -> None:
    with pytest.raises(ConfigError, match="secfarm keygen"):
        client_credentials(None, None, environ(home))
    with pytest.raises(ConfigError, match="nothing to sign with"):
        client_credentials(OwnAuth(), None, environ(home))
    assert client_credentials(OwnAuth(), KEY, environ(home)).signer is KEY
    assert client_credentials(OwnAuth(), None, environ(home, 'key = "key"\n')).signer
    with pytest.raises(ConfigError, match="for servers"):
        client_credentials(Ed25519AuthServer(KEY), None, environ(home))
    with pytest.raises(KeyFileError, match="missing"):
        client_credentials(None, home / "missing", environ(home))


def test_a_server_that_dials_needs_more_than_certificates(home: Path) -> None:
    """No hub could prove itself to it, so it would dial for ever in vain."""
    authority = Authority(home / "ca")
    certificate, key = authority.certify(dns("node1"), file="server", client=False)
    tls = f'[tls]\ncertificate = "{certificate}"\nkey = "{key}"\nca = "{authority.path}"\n'
    with pytest.raises(ConfigError, match="a hub cannot be proven by certificates"):
        server_credentials(server_config(home, f'dial = ["127.0.0.1:1"]\n{tls}'), None, {})
    assert len(server_credentials(server_config(home, f'dial = ["127.0.0.1:1"]\n{BOTH}{tls}'), None, {}).auths) == 3
