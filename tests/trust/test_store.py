"""The trust store: the grammar of its files, and which key speaks for whom when."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secfarm.errors import (
    ExpiredError,
    RevokedKeyError,
    RewoundError,
    SecfarmError,
    TrustFileError,
    UntrustedKeyError,
)
from secfarm.sign.keys import SharedSecret, SigningKey
from secfarm.sign.sshsig import TASK_NAMESPACE, armor
from secfarm.trust.store import TrustStore, parse_allowed_signers, parse_known_servers

KEY = SigningKey.from_seed(bytes(range(32)))
OTHER = SigningKey.from_seed(bytes(32))
LINE = KEY.public.openssh()
NOW_S = 1_700_000_000.0  # 2023-11-14T22:13:20Z


def principal_of(text: str, *, namespace: str = TASK_NAMESPACE, now_s: float = NOW_S) -> str:
    store = TrustStore(parse_allowed_signers(text, file="F"))
    return store.principal_of(KEY.key_id, namespace=namespace, now_s=now_s)


@pytest.mark.parametrize(
    "text",
    [
        f"ada@laptop {LINE}",
        f'ada@laptop {LINE} a comment, with = and "quotes"',
        f"\n# comment\n   \nada@laptop {LINE}\r\n",
        f"  ada@laptop\t{LINE}",
        f"ada@laptop,*@lab {LINE}",
        f'"ada@laptop,two words" {LINE}',
        f'ada@laptop namespaces="{TASK_NAMESPACE}" {LINE}',
        f'ada@laptop NAMESPACES="git,task@*" {LINE}',
        f'ada@laptop valid-after="20231114",valid-before="20231115Z" {LINE}'.replace('"20231114"', '"20231114Z"'),
        f'ada@laptop namespaces="*",valid-before="20231114221320Z" {LINE}',
        f'ada@laptop valid-after="202311142213Z" {LINE}',
        f"* cert-authority {OTHER.public.openssh()}\nada@laptop {LINE}",
    ],
)
def test_a_line_that_openssh_takes_names_the_keys_principal(text: str) -> None:
    assert principal_of(text) == "ada@laptop"


@pytest.mark.parametrize(
    "line",
    [
        "ada@laptop",
        LINE,
        "ada@laptop ssh-rsa AAAAB3NzaC1yc2E=",
        f"ada@laptop {LINE[:-4]}",
        "ada@laptop ssh-ed25519",
        f"ada@laptop no-touch-required {LINE}",
        f"ada@laptop namespaces {LINE}",
        f"ada@laptop namespaces=git {LINE}",
        f'ada@laptop namespaces="git {LINE}',
        f'ada@laptop cert-authority="x" {LINE}',
        f'ada@laptop namespaces="a",,cert-authority {LINE}',
        f'ada@laptop namespaces="a", {LINE}',
        f'ada@laptop namespaces="a",namespaces="b" {LINE}',
        f'ada@laptop namespaces="a"valid-after="20231114Z" {LINE}',
        f'ada@laptop valid-after="yesterday" {LINE}',
        f'ada@laptop valid-after="20231314Z" {LINE}',
        f'ada@laptop valid-after="2023111422Z" {LINE}',
        f'ada@laptop valid-after="20231115Z",valid-before="20231114Z" {LINE}',
        f"*@lab {LINE}",
        f"!eve {LINE}",
        f",ada {LINE}",
        f'"" {LINE}',
        f'"ada {LINE}',
        f"ada@laptop \x1b[2J {LINE}",
        f"ada\u2028@laptop {LINE}",
        f"ada@laptop {LINE} comment\x00",
    ],
)
def test_a_line_that_is_not_understood_whole_refuses_the_file(line: str) -> None:
    with pytest.raises(TrustFileError, match=r"^F:3: "):
        parse_allowed_signers(f"# comment\n\n{line}\nada@laptop {LINE}\n", file="F")


def test_an_unsupported_key_type_says_which_one_is_supported() -> None:
    with pytest.raises(TrustFileError, match="only ssh-ed25519"):
        parse_allowed_signers("ada ecdsa-sha2-nistp256 AAAA", file="F")


def test_a_vertical_tab_or_line_separator_begins_no_line() -> None:
    """`str.splitlines` would let a comment smuggle a key in."""
    for separator in "\x0b\x0c\x1c\x85\u2028":
        text = f"# harmless{separator}mallory {LINE}"
        assert parse_allowed_signers(text, file="F") == ()


@given(st.text(max_size=60))
def test_garbage_is_a_trust_file_error_or_nothing(text: str) -> None:
    try:
        entries = parse_allowed_signers(text, file="F")
    except TrustFileError:
        return
    assert entries == ()


def test_a_certificate_authority_signs_nothing_itself() -> None:
    text = f"ada@laptop cert-authority {LINE}"
    assert parse_allowed_signers(text, file="F")[0].cert_authority
    with pytest.raises(UntrustedKeyError):
        principal_of(text)
    assert TrustStore(parse_allowed_signers(text, file="F")).candidates(KEY.key_id) == ()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ('namespaces="git"', UntrustedKeyError),
        ('namespaces="*,!task@secfarm"', UntrustedKeyError),
        ('valid-before="20231114221319Z"', ExpiredError),
        ('valid-after="20231114221321Z"', RewoundError),
    ],
)
def test_a_key_outside_its_namespace_or_time_is_refused(options: str, error: type[SecfarmError]) -> None:
    with pytest.raises(error, match=r"F:1\b.*nothing was run"):
        principal_of(f"ada@laptop {options} {LINE}")


def test_the_bounds_are_inclusive_as_openssh_has_them() -> None:
    text = f'ada valid-after="20231114221320Z",valid-before="20231114221321Z" {LINE}'
    assert principal_of(text, now_s=NOW_S) == principal_of(text, now_s=NOW_S + 1) == "ada"
    with pytest.raises(RewoundError):
        principal_of(text, now_s=NOW_S - 1)
    with pytest.raises(ExpiredError):
        principal_of(text, now_s=NOW_S + 2)


@pytest.fixture
def _time_zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "XYZ-3")  # three hours before UTC's clock
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("_time_zone")
def test_a_time_without_z_is_local() -> None:
    """As for OpenSSH (ssh-keygen(1), valid-after)."""
    local, utc = (
        parse_allowed_signers(f'ada valid-after="{written}" {LINE}', file="F")[0].valid_after_s
        for written in ("20231114120000", "20231114120000Z")
    )
    assert utc is not None
    assert local == utc - 3 * 3600


def test_the_first_line_that_is_valid_now_decides() -> None:
    """A name or a period is changed by adding a line."""
    text = f'old valid-before="20230101Z" {LINE}\nnew {LINE}\nnewer {LINE}'
    assert principal_of(text) == "new"
    assert principal_of(text, now_s=1_600_000_000.0) == "old"


def test_a_key_in_no_line_is_untrusted() -> None:
    with pytest.raises(UntrustedKeyError, match=KEY.key_id.replace("+", r"\+")):
        principal_of(f"bob {OTHER.public.openssh()}")
    assert TrustStore().candidates(KEY.key_id) == ()


def test_a_revoked_key_or_secret_speaks_for_nobody() -> None:
    secret = SharedSecret("bob", b"s" * 32)
    entries = parse_allowed_signers(f"ada {LINE}", file="F")
    store = TrustStore(entries, [secret], revoked=[KEY.key_id, secret.key_id])
    for key_id in (KEY.key_id, secret.key_id):
        with pytest.raises(RevokedKeyError):
            store.principal_of(key_id, namespace=TASK_NAMESPACE, now_s=NOW_S)


def test_a_secret_speaks_for_its_principal_and_is_found_by_its_id_only() -> None:
    secret = SharedSecret("bob", b"s" * 32)
    store = TrustStore(secrets=[secret])
    assert store.principal_of(secret.key_id, namespace=TASK_NAMESPACE, now_s=NOW_S) == "bob"
    assert store.candidates(secret.key_id) == (secret,)
    assert store.candidates("") == store.candidates("bob") == ()
    assert store.secrets == (secret,)


def test_two_principals_with_one_secret_are_refused() -> None:
    with pytest.raises(TrustFileError, match="same shared secret"):
        TrustStore(secrets=[SharedSecret("ada", b"s" * 32), SharedSecret("bob", b"s" * 32)])


@pytest.mark.parametrize(
    "options",
    [
        "",
        'namespaces="task@secfarm"',
        'Namespaces="task@secfarm"',
        'namespaces="git"',
        'namespaces="task@*,git"',
        'namespaces="*,!task@secfarm"',
        'valid-before="19990101Z"',
        'valid-after="20990101Z"',
        "cert-authority",
    ],
)
def test_we_believe_a_line_exactly_when_ssh_keygen_does(tmp_path: Path, options: str) -> None:
    line = f"ada@laptop {options} {LINE}\n"
    (tmp_path / "signers").write_text(line)
    (tmp_path / "sig").write_text(armor(KEY.sign(b"message")))
    command = ["ssh-keygen", "-Y", "verify", "-f", "signers", "-I", "ada@laptop", "-n", TASK_NAMESPACE, "-s", "sig"]
    theirs = subprocess.run(command, cwd=tmp_path, input=b"message", capture_output=True, check=False).returncode == 0
    try:
        ours = principal_of(line) == "ada@laptop"
    except SecfarmError:
        ours = False
    assert ours == theirs


# --- known_servers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("patterns", "address", "fits"),
    [
        ("127.0.0.1:7419", "127.0.0.1:7419", True),
        ("127.0.0.1", "127.0.0.1:7419", True),
        ("127.0.0.1", "127.0.0.1:7420", False),
        ("[::1]:7419", "[::1]:7419", True),
        ("::1", "[::1]:7419", True),
        ("[::1]", "[::1]:7419", True),
        ("[::1]:7420", "[::1]:7419", False),
        ("Node1.Example.com", "node1.example.com:7419", True),
        ("*.example.com", "node1.example.com:7419", True),
        ("*.example.com", "node1.example.com:9999", False),
        ("*.example.com:*", "node1.example.com:9999", True),
        ("*.example.com", "example.com.evil:7419", False),
        ("*,!bad.example.com", "bad.example.com:7419", False),
        ("*,!bad.example.com", "good.example.com:7419", True),
        ("unix:/run/secfarm/sock", "unix:/run/secfarm/sock", True),
        ("unix:/run/Secfarm/sock", "unix:/run/secfarm/sock", False),
        ("unix:/run/*", "unix:/run/secfarm/sock", True),
        ("node1", "node1", True),
        ("node1", "node10", False),
        ("*", "anything:1", True),
    ],
)
def test_a_pattern_is_for_these_addresses(patterns: str, address: str, *, fits: bool) -> None:
    known = parse_known_servers(f"# servers\n{patterns} {LINE} comment\n", file="F")
    assert bool(known.keys_for(address)) is fits


def test_the_name_of_a_server_is_its_first_pattern_or_its_address() -> None:
    text = f"node1,10.0.0.1 {LINE}\n*.lab {OTHER.public.openssh()} all of the lab\n"
    known = parse_known_servers(text, file="F")
    assert known.keys_for("10.0.0.1:7419") == ((KEY.public, "node1"),)
    assert known.keys_for("x.lab:7419") == ((OTHER.public, "x.lab:7419"),)
    assert known.entries[1].comment == "all of the lab"


@pytest.mark.parametrize(
    "line", ["node1", f"{LINE}", "node1 ssh-rsa AAAA", f", {LINE}", f"a,! {LINE}", f"a\x07 {LINE}"]
)
def test_a_malformed_known_server_names_its_line(line: str) -> None:
    with pytest.raises(TrustFileError, match=r"^F:2: "):
        parse_known_servers(f"\n{line}\n", file="F")
