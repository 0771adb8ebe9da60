"""Keytabs: what may be wrong with the file is told apart before Kerberos is asked; new content counts at once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from secfarm.disk.guard import read_guarded
from secfarm.disk.keytab import KeytabEntry, KeytabError, KeytabFile, find_keytab, parse_keytab
from secfarm.errors import ExitStatus, KeyFileError


def field(text: str) -> bytes:
    return len(text).to_bytes(2, "big") + text.encode()


def entry(principal: str, kvno: int, *, long_kvno: int | None = None) -> bytes:
    """One entry of the format of MIT's documentation."""
    name, realm = principal.split("@")
    parts = name.split("/")
    body = len(parts).to_bytes(2, "big") + field(realm) + b"".join(map(field, parts)) + bytes(8)
    body += bytes([kvno]) + (18).to_bytes(2, "big") + (32).to_bytes(2, "big") + b"k" * 32
    if long_kvno is not None:
        body += long_kvno.to_bytes(4, "big")
    return len(body).to_bytes(4, "big") + body


GOOD = b"\x05\x02" + entry("secfarm/node1@EXAMPLE.COM", 3)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    file = tmp_path / "secfarm.keytab"
    file.write_bytes(GOOD)
    file.chmod(0o600)
    return file


def content_of(keytab: KeytabFile) -> bytes:
    return Path(keytab.name().removeprefix("FILE:")).read_bytes()


def test_entries_are_read_without_their_keys() -> None:
    hole = (-40).to_bytes(4, "big", signed=True) + bytes(40)
    content = GOOD + hole + entry("ada@EXAMPLE.COM", 255, long_kvno=300)
    found = parse_keytab(content, file="f")
    assert found == (
        KeytabEntry("secfarm/node1@EXAMPLE.COM", 3, 18),
        KeytabEntry("ada@EXAMPLE.COM", 300, 18),
    )
    assert "kkk" not in repr(found)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"garbage" * 9, "no keytab"),
        (b"\x05\x01" + GOOD[2:], "no keytab"),
        (b"\x05\x02", "holds no key"),
        (GOOD[:-1], "damaged"),
        (GOOD[:40], "damaged"),
        (b"\x05\x02\x7f\xff\xff\xff", "damaged"),
    ],
)
def test_what_is_wrong_with_the_content_is_said(file: Path, content: bytes, words: str) -> None:
    file.write_bytes(content)
    with pytest.raises(KeyFileError, match=words) as error:
        KeytabFile(file)
    assert str(file) in str(error.value)
    assert error.value.exit_status is ExitStatus.AUTHENTICATION


def test_any_cut_or_flipped_byte_is_an_error_or_a_keytab() -> None:
    for at in range(len(GOOD)):
        for content in (GOOD[:at], GOOD[:at] + bytes([GOOD[at] ^ 0xFF]) + GOOD[at + 1 :]):
            try:
                assert parse_keytab(content, file="f")
            except KeyFileError:
                continue


def test_a_keytab_that_is_missing_a_directory_or_open_to_others(file: Path) -> None:
    with pytest.raises(KeyFileError, match="cannot be opened"):
        KeytabFile(file.parent / "none")
    with pytest.raises(KeyFileError, match="not a regular file"):
        KeytabFile(file.parent)
    file.chmod(0o640)
    with pytest.raises(KeyFileError, match="0640"):
        KeytabFile(file)


def test_what_was_judged_is_what_is_used_and_new_keys_count(file: Path) -> None:
    keytab = KeytabFile(file)
    name = keytab.name()
    assert content_of(keytab) == GOOD
    longer = GOOD + entry("secfarm/node1@EXAMPLE.COM", 4)
    file.write_bytes(longer)
    assert keytab.name() == name
    assert content_of(keytab) == longer
    assert [one.kvno for one in keytab.entries()] == [3, 4]
    file.write_bytes(GOOD)
    assert content_of(keytab) == GOOD
    file.write_bytes(b"")
    with pytest.raises(KeyFileError, match="empty"):
        keytab.name()


def test_a_process_that_gave_up_its_privileges_goes_on_with_what_it_read(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keytab = KeytabFile(file)

    def denied(path: Path, **_: object) -> bytes:
        raise KeytabError(f"{path}: cannot be opened") from PermissionError(13, "denied")

    monkeypatch.setattr("secfarm.disk.keytab.read_guarded", denied)
    assert content_of(keytab) == GOOD
    with pytest.raises(KeyFileError, match="cannot be opened; a keytab belongs to the user who uses it"):
        KeytabFile(file)
    monkeypatch.setattr("secfarm.disk.keytab.read_guarded", read_guarded)
    assert content_of(keytab) == GOOD


def test_no_child_inherits_it_and_it_can_be_forgotten(file: Path) -> None:
    keytab = KeytabFile(file)
    descriptor = int(keytab.name().rpartition("/")[2])
    assert not os.get_inheritable(descriptor)
    file.write_bytes(GOOD + entry("a@B", 1))
    keytab.name()
    assert not os.get_inheritable(descriptor)
    keytab.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_which_keytab(file: Path) -> None:
    elsewhere = {"KRB5_KTNAME": f"FILE:{file}", "CREDENTIALS_DIRECTORY": "/run/credentials/x"}
    assert find_keytab("given", elsewhere) == Path("given")
    assert find_keytab(None, elsewhere) == file
    assert find_keytab(None, {"KRB5_KTNAME": str(file)}) == file
    assert find_keytab(None, {"CREDENTIALS_DIRECTORY": "/run/x"}) == Path("/run/x/keytab")
    with pytest.raises(KeyFileError, match="only keytabs in files"):
        find_keytab(None, {"KRB5_KTNAME": "KCM:0"})
    with pytest.raises(KeyFileError, match="--keytab"):
        find_keytab(None, {})
