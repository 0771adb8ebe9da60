"""Configuration: strict, relative to its file, and refused where a server could authenticate nobody."""

from __future__ import annotations

from pathlib import Path

import pytest

from secfarm.disk.config import (
    KerberosConfig,
    TlsConfig,
    config_home,
    load_client_config,
    load_server_config,
    state_home,
)
from secfarm.errors import ConfigError
from secfarm.wire.address import TcpAddress, UnixAddress

FILES = ("server_ed25519", "allowed_signers", "ada.secret", "policy.toml", "k.keytab", "s.pem", "s.key", "c.pem")
FULL = """\
listen = ["127.0.0.1:7419", "unix:/run/secfarm/sock", "[::1]:0"]
dial = ["hub:1234"]
workers = 4
name = "node1"
key = "server_ed25519"
allowed_signers = "allowed_signers"
secrets = ["ada.secret"]
policy = "policy.toml"
audit = "audit.jsonl"
state = "state"

[kerberos]
keytab = "k.keytab"
service_name = "farm"
allowed_users = ["ada@EXAMPLE.COM"]

[tls]
certificate = "s.pem"
key = "s.key"
ca = "c.pem"
"""
LEAST = 'policy = "policy.toml"\nsecrets = ["ada.secret"]\n'


@pytest.fixture
def home(tmp_path: Path) -> Path:
    for name in FILES:
        (tmp_path / name).touch(mode=0o600)
    return tmp_path


def write(home: Path, text: str) -> Path:
    path = home / "config.toml"
    path.write_text(text)
    path.chmod(0o600)
    return path


def test_the_documented_server_config_is_read_with_paths_relative_to_it(home: Path) -> None:
    config = load_server_config(write(home, FULL), {})
    assert [str(address) for address in config.listen] == ["127.0.0.1:7419", "unix:/run/secfarm/sock", "[::1]:0"]
    assert config.dial == (TcpAddress("hub", 1234),)
    assert (config.workers, config.name, config.file) == (4, "node1", home / "config.toml")
    assert (config.key, config.allowed_signers) == (home / "server_ed25519", home / "allowed_signers")
    assert (config.secrets, config.policy) == ((home / "ada.secret",), home / "policy.toml")
    assert (config.audit, config.state) == (home / "audit.jsonl", home / "state")
    assert config.kerberos == KerberosConfig("farm", home / "k.keytab", ("ada@EXAMPLE.COM",))
    assert config.tls == TlsConfig(home / "s.pem", home / "s.key", home / "c.pem")


def test_a_server_listens_on_loopback_unless_told_otherwise(home: Path) -> None:
    config = load_server_config(write(home, LEAST), {})
    assert config.listen == (TcpAddress("127.0.0.1", 7419),)
    assert load_server_config(write(home, LEAST + 'dial = ["hub"]\n'), {}).listen == ()


def test_files_may_be_credentials_of_systemd(home: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run" / "credentials"
    directory.mkdir(parents=True)
    for name in FILES:
        (home / name).rename(directory / name)
    text = FULL.replace('audit = "audit.jsonl"\nstate = "state"\n', "")
    for name in FILES:
        text = text.replace(f'"{name}"', f'"credential:{name}"')
    config = load_server_config(write(home, text), {"CREDENTIALS_DIRECTORY": str(directory)})
    assert config.key == directory / "server_ed25519"
    assert config.secrets == (directory / "ada.secret",)
    assert config.kerberos is not None
    assert config.kerberos.keytab == directory / "k.keytab"
    assert config.tls == TlsConfig(directory / "s.pem", directory / "s.key", directory / "c.pem")


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../key", "a/b", "/etc/passwd", ".hidden", "a b", "a:b", "é", "x" * 256]
)
def test_a_credential_has_the_name_of_one(home: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r":3: key: .* is no name of a credential"):
        load_server_config(write(home, LEAST + f'key = "credential:{name}"\n'), {"CREDENTIALS_DIRECTORY": str(home)})


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({}, "CREDENTIALS_DIRECTORY is not set"),
        ({"CREDENTIALS_DIRECTORY": ""}, "CREDENTIALS_DIRECTORY is not set"),
        ({"CREDENTIALS_DIRECTORY": "relative"}, "is the relative path 'relative'"),
        ({"CREDENTIALS_DIRECTORY": "/no/such"}, "there is no file /no/such/k"),
    ],
)
def test_a_credential_without_its_directory_says_what_to_do(home: Path, environ: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=f":3: key: .*{words}"):
        load_server_config(write(home, LEAST + 'key = "credential:k"\n'), environ)


def test_hubs_that_are_named_at_start_come_before_those_of_the_file(home: Path) -> None:
    hub = TcpAddress("other", 1)
    config = load_server_config(write(home, LEAST + 'dial = ["hub"]\n'), {}, dial=(hub,))
    assert (config.dial, config.listen) == ((hub,), ())
    config = load_server_config(write(home, LEAST), {}, dial=(hub,))
    assert (config.dial, config.listen) == ((hub,), ())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LEAST + "worker = 4\n", ":3: unknown key 'worker'"),
        (LEAST + "workers = 0\n", ":3: workers must be"),
        (LEAST + "workers = '4'\n", ":3: workers must be"),
        (LEAST + "listen = '127.0.0.1'\n", ":3: listen must be a list"),
        (LEAST + "listen = ['host:port']\n", ":3: listen: malformed address"),
        (LEAST + "dial = ['host:0']\n", ":3: dial: malformed address"),
        (LEAST + "dial = ['ssh://host']\n", ":3: dial: a hub is not reached by ssh"),
        (LEAST + "key = 'server_ed25519'\n", ":3: key is given and allowed_signers is not"),
        (LEAST + "allowed_signers = 'allowed_signers'\n", ":3: allowed_signers is given and key is not"),
        (LEAST + "[tls]\nca = 'c.pem'\n", ":3: \\[tls\\] needs"),
        (LEAST + "[tls]\ncertificate = 's.pem'\nkey = 's.key'\nextra = 1\n", ":6: unknown key 'extra'"),
        (LEAST + "[kerberos]\nkeytab = 'missing'\n", ":4: keytab: there is no file"),
        ('secrets = ["ada.secret"]\n', ": policy is missing"),
        ('policy = "missing.toml"\nsecrets = ["ada.secret"]\n', ":1: policy: there is no file"),
        ('policy = "policy.toml"\nsecrets = ["missing"]\n', ":2: secrets: there is no file"),
        ('policy = "policy.toml"\n', ": neither key nor secrets"),
        ('policy = "policy.toml"\nsecrets = []\n', ": neither key nor secrets"),
        ("policy = \n", ": not TOML"),
    ],
)
def test_a_server_config_that_cannot_serve_names_file_and_line(home: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"config.toml{message}"):
        load_server_config(write(home, text), {})


def test_a_config_that_others_may_write_is_refused(home: Path) -> None:
    path = write(home, LEAST)
    path.chmod(0o666)
    for load in (load_server_config, load_client_config):
        with pytest.raises(ConfigError, match="chmod go-w"):
            load(path, {})


def test_secfarm_config_names_the_file_where_no_argument_does(home: Path) -> None:
    path = write(home, LEAST)
    assert load_server_config(None, {"SECFARM_CONFIG": str(path)}).file == path
    for load in (load_server_config, load_client_config):
        with pytest.raises(ConfigError, match="cannot be opened"):
            load(None, {"SECFARM_CONFIG": str(home / "missing")})


def test_homes_are_xdg_and_relative_ones_are_ignored() -> None:
    assert config_home({"XDG_CONFIG_HOME": "/x", "HOME": "/h"}) == Path("/x/secfarm")
    assert config_home({"XDG_CONFIG_HOME": "x", "HOME": "/h"}) == Path("/h/.config/secfarm")
    assert state_home({"HOME": "/h"}) == Path("/h/.local/state/secfarm")
    assert config_home({}).name == "secfarm"


@pytest.fixture
def client_home(tmp_path: Path) -> Path:
    home = tmp_path / "secfarm"
    home.mkdir()
    for name in ("k", "s", "known"):
        (home / name).touch(mode=0o600)
    return home


def environ(home: Path, **more: str) -> dict[str, str]:
    return {"XDG_CONFIG_HOME": str(home.parent), **more}


def test_without_a_file_a_client_has_the_default(client_home: Path) -> None:
    config = load_client_config(None, environ(client_home))
    assert (config.hosts, config.key, config.secret, config.kerberos) == ((), None, None, None)
    assert config.known_servers == client_home / "known_servers"


def test_the_default_key_is_taken_where_there_is_one_and_none_is_named(client_home: Path) -> None:
    (client_home / "id_ed25519").touch(mode=0o600)
    assert load_client_config(None, environ(client_home)).key == client_home / "id_ed25519"
    write(client_home, 'secret = "s"\n')
    config = load_client_config(None, environ(client_home))
    assert (config.key, config.secret) == (None, client_home / "s")


def test_a_client_config_is_read_and_the_environment_comes_first(client_home: Path) -> None:
    write(client_home, 'hosts = ["a", "unix:/s"]\nkey = "k"\nknown_servers = "known"\n[kerberos]\nservice_name = "f"\n')
    config = load_client_config(None, environ(client_home))
    assert config.hosts == (TcpAddress("a", 7419), UnixAddress("/s"))
    assert (config.key, config.known_servers) == (client_home / "k", client_home / "known")
    assert config.kerberos == KerberosConfig("f")
    config = load_client_config(None, environ(client_home, SECFARM_HOSTS=" b:1, c:2  d:3,", SECFARM_KEY="/other"))
    assert [str(address) for address in config.hosts] == ["b:1", "c:2", "d:3"]
    assert config.key == Path("/other")


def test_a_client_of_kerberos_or_certificates_takes_no_default_key(client_home: Path) -> None:
    """A key that merely lies there is not what was configured."""
    (client_home / "id_ed25519").touch(mode=0o600)
    write(client_home, '[kerberos]\nccache = "KCM:"\ntarget = "node1"\nservers = ["node2"]\n')
    config = load_client_config(None, environ(client_home))
    assert config.key is None
    assert config.kerberos == KerberosConfig(ccache="KCM:", target="node1", servers=("node2",))
    write(client_home, '[kerberos]\nclient_keytab = "k"\n')
    assert load_client_config(None, environ(client_home)).kerberos == KerberosConfig(client_keytab=client_home / "k")
    write(client_home, '[tls]\ncertificate = "k"\nkey = "s"\nca = "known"\nserver_name = "n"\n')
    config = load_client_config(None, environ(client_home))
    assert config.key is None
    assert config.tls == TlsConfig(client_home / "k", client_home / "s", client_home / "known", "n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[kerberos]\nccache = 'c'\nclient_keytab = 'k'\n", ":2: ccache and client_keytab are both given"),
        ("[tls]\ncertificate = 'k'\nkey = 's'\n", ":2: \\[tls\\] of a client needs ca"),
        ("[kerberos]\n[tls]\ncertificate = 'k'\nkey = 's'\nca = 'k'\n", ":2: \\[kerberos\\] and \\[tls\\] are both"),
        ("host = ['a']\n", ":1: unknown key 'host'"),
        ("hosts = ['a:b']\n", ":1: hosts: malformed"),
        ("key = 'k'\nsecret = 's'\n", ":2: key and secret are both given"),
        ("key = 'missing'\n", ":1: key: there is no file"),
        ("known_servers = 'missing'\n", ":1: known_servers: there is no file"),
        ("[kerberos]\nkeytab = 'k'\n", ":2: unknown key 'keytab'"),
        ("[ssh]\nuser = 'ada'\n", ":2: unknown key 'user'"),
        ("[ssh]\noptions = '-v'\n", ":2: "),
    ],
)
def test_a_misspelt_client_config_names_its_line(client_home: Path, text: str, message: str) -> None:
    write(client_home, text)
    with pytest.raises(ConfigError, match=f"config.toml{message}"):
        load_client_config(None, environ(client_home))


def test_malformed_hosts_of_the_environment_are_a_config_error(client_home: Path) -> None:
    with pytest.raises(ConfigError, match="SECFARM_HOSTS: malformed"):
        load_client_config(None, environ(client_home, SECFARM_HOSTS="a:b"))
