"""Key files: OpenSSH reads ours, we read OpenSSH's, and nobody else's mistake is believed."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path

import pytest

from secfarm.disk.keyfile import (
    create_secret,
    create_signing_key,
    read_public_key,
    read_secret,
    read_signing_key,
    write_secret,
    write_signing_key,
)
from secfarm.errors import KeyFileError
from secfarm.sign.keys import PublicKey, SharedSecret, SigningKey
from secfarm.sign.sshsig import armor

HAS_BCRYPT = importlib.util.find_spec("bcrypt") is not None


def keygen(*arguments: str | Path, message: bytes = b"") -> bytes:
    done = subprocess.run(["ssh-keygen", *arguments], input=message, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_ssh_keygen_reads_our_key_file(tmp_path: Path) -> None:
    key = create_signing_key(tmp_path / "id", comment="ada@laptop")
    assert PublicKey.from_openssh(keygen("-y", "-f", tmp_path / "id").decode()) == key.public
    assert (tmp_path / "id.pub").read_text() == key.public.openssh("ada@laptop") + "\n"
    assert read_public_key(tmp_path / "id.pub") == key.public
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("id", "id.pub")] == [0o600, 0o644]


def test_our_signature_is_byte_for_byte_that_of_ssh_keygen(tmp_path: Path) -> None:
    key = create_signing_key(tmp_path / "id")
    signed = keygen("-q", "-Y", "sign", "-f", tmp_path / "id", "-n", "task@secfarm", message=b"message")
    assert signed.decode() == armor(key.sign(b"message"))


def test_we_read_the_key_file_of_ssh_keygen(tmp_path: Path) -> None:
    keygen("-q", "-t", "ed25519", "-N", "", "-C", "ada", "-f", tmp_path / "id")
    key = read_signing_key(tmp_path / "id")
    assert key.public == read_public_key(tmp_path / "id.pub")


def test_a_key_comes_back_as_it_was_written(tmp_path: Path) -> None:
    key = SigningKey.from_seed(bytes(range(32)))
    write_signing_key(tmp_path / "id", key)
    assert read_signing_key(str(tmp_path / "id")).reveal_seed() == key.reveal_seed()


def test_two_new_keys_and_two_new_secrets_differ(tmp_path: Path) -> None:
    assert create_signing_key(tmp_path / "a").key_id != create_signing_key(tmp_path / "b").key_id
    assert create_secret(tmp_path / "c", "ada").key_id != create_secret(tmp_path / "d", "ada").key_id


def test_no_key_is_overwritten_not_even_its_public_half(tmp_path: Path) -> None:
    key = create_signing_key(tmp_path / "id")
    with pytest.raises(KeyFileError, match="not overwritten"):
        create_signing_key(tmp_path / "id")
    (tmp_path / "other.pub").write_text("somebody's")
    with pytest.raises(KeyFileError, match="not overwritten"):
        create_signing_key(tmp_path / "other")
    assert not (tmp_path / "other").exists()
    assert read_signing_key(tmp_path / "id").key_id == key.key_id


def test_an_encrypted_key_asks_for_its_passphrase_and_only_then(tmp_path: Path) -> None:
    """Made by ssh-keygen, so that the test runs where this installation has no bcrypt."""
    keygen("-q", "-t", "ed25519", "-N", "correct horse", "-f", tmp_path / "id")
    with pytest.raises(KeyFileError, match=r"encrypted|pip install bcrypt"):
        read_signing_key(tmp_path / "id")
    create_signing_key(tmp_path / "plain")

    def never() -> bytes:
        raise RuntimeError("asked for a passphrase that is not needed")

    read_signing_key(tmp_path / "plain", passphrase=never)
    if HAS_BCRYPT:
        key = read_signing_key(tmp_path / "id", passphrase=lambda: b"correct horse")
        assert key.public == read_public_key(tmp_path / "id.pub")
        with pytest.raises(KeyFileError, match="passphrase"):
            read_signing_key(tmp_path / "id", passphrase=lambda: b"wrong")
    else:
        with pytest.raises(KeyFileError, match="pip install bcrypt"):
            read_signing_key(tmp_path / "id", passphrase=lambda: b"correct horse")


def test_we_encrypt_so_that_ssh_keygen_can_decrypt_or_say_what_is_missing(tmp_path: Path) -> None:
    key = SigningKey.from_seed(bytes(32))
    if HAS_BCRYPT:
        write_signing_key(tmp_path / "id", key, passphrase=b"correct horse")
        shown = keygen("-y", "-P", "correct horse", "-f", tmp_path / "id").decode()
        assert PublicKey.from_openssh(shown) == key.public
    else:
        with pytest.raises(KeyFileError, match="pip install bcrypt"):
            write_signing_key(tmp_path / "id", key, passphrase=b"correct horse")
        assert not (tmp_path / "id").exists()


@pytest.mark.parametrize("kind", ["rsa", "ecdsa"])
def test_a_key_of_another_type_is_refused(tmp_path: Path, kind: str) -> None:
    keygen("-q", "-t", kind, "-N", "", "-f", tmp_path / "id")
    with pytest.raises(KeyFileError, match="not an ssh-ed25519 key"):
        read_signing_key(tmp_path / "id")
    with pytest.raises(KeyFileError, match="only ssh-ed25519"):
        read_public_key(tmp_path / "id.pub")


@pytest.mark.parametrize("cut", [0, 30, 100, 300, -40])
def test_a_damaged_key_file_is_a_key_file_error(tmp_path: Path, cut: int) -> None:
    create_signing_key(tmp_path / "id")
    content = (tmp_path / "id").read_bytes()
    (tmp_path / "id").write_bytes(content[:cut])
    with pytest.raises(KeyFileError, match=str(tmp_path / "id")):
        read_signing_key(tmp_path / "id")


def test_the_public_file_is_no_private_key_and_no_secret(tmp_path: Path) -> None:
    create_signing_key(tmp_path / "id")
    (tmp_path / "id.pub").chmod(0o600)
    for read in (read_signing_key, read_secret):
        with pytest.raises(KeyFileError):
            read(tmp_path / "id.pub")


@pytest.mark.parametrize("read", [read_signing_key, read_secret])
def test_a_key_open_to_others_is_refused(tmp_path: Path, read: object) -> None:
    create_signing_key(tmp_path / "id")
    (tmp_path / "id").chmod(0o640)
    with pytest.raises(KeyFileError, match="chmod 600"):
        read(tmp_path / "id")  # type: ignore[operator]


def test_a_secret_file_is_one_line_and_round_trips(tmp_path: Path) -> None:
    secret = create_secret(tmp_path / "ada.secret", "ada@laptop")
    [line] = (tmp_path / "ada.secret").read_text().splitlines()
    assert line.startswith("secfarm-secret-v1 ada@laptop ")
    assert (tmp_path / "ada.secret").stat().st_mode & 0o777 == 0o600
    again = read_secret(tmp_path / "ada.secret")
    assert (again.principal, again.key_id) == ("ada@laptop", secret.key_id)
    with pytest.raises(KeyFileError, match="not overwritten"):
        write_secret(tmp_path / "ada.secret", SharedSecret("eve", bytes(32)))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n\n",
        "secfarm-secret-v1 ada",
        "secfarm-secret-v2 ada " + "QUJD" * 16,
        "secfarm-secret-v1 ada " + "QUJD" * 16 + " more",
        "secfarm-secret-v1 ada " + "QUJD" * 16 + "\nsecfarm-secret-v1 eve " + "QUJD" * 16,
        "secfarm-secret-v1 ada QUJDQUJD",
        "secfarm-secret-v1 ada !" + "QUJD" * 16,
        "QUJD" * 16,
    ],
)
def test_a_malformed_secret_file_is_refused_without_showing_it(tmp_path: Path, text: str) -> None:
    path = tmp_path / "secret"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(KeyFileError, match=str(path)) as caught:
        read_secret(path)
    assert "QUJD" not in str(caught.value)
