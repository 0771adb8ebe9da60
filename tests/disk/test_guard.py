"""What others could have read or written is not believed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from secfarm.disk.guard import MAX_GUARDED_BYTES, read_guarded, read_guarded_text, write_new
from secfarm.errors import ConfigError, KeyFileError
from tests.disk.access_list import NONE, credential, listed


def make(path: Path, mode: int = 0o600, content: bytes = b"content") -> Path:
    path.write_bytes(content)
    path.chmod(mode)
    return path


def read(path: Path, *, secret: bool = True) -> bytes:
    return read_guarded(path, secret=secret, error=KeyFileError)


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o700])
def test_a_file_for_its_owner_alone_is_read(tmp_path: Path, mode: int) -> None:
    assert read(make(tmp_path / "file", mode)) == b"content"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660, 0o620, 0o602, 0o610, 0o601, 0o666, 0o777])
def test_a_secret_open_to_others_in_any_way_is_refused_with_the_remedy(tmp_path: Path, mode: int) -> None:
    path = make(tmp_path / "file", mode)
    with pytest.raises(KeyFileError, match=f"mode {mode:04o} .*chmod 600 {path}"):
        read(path)


CREDENTIAL = credential(os.geteuid())


def test_the_access_list_of_a_credential_opens_it_to_us_alone(tmp_path: Path) -> None:
    path = listed(make(tmp_path / "file", 0o400), CREDENTIAL)
    assert path.stat().st_mode & 0o777 == 0o440
    assert read(path) == b"content"
    path.chmod(0o400)  # the mask: nothing is granted by the list
    assert read(path) == b"content"


@pytest.mark.parametrize(
    "change",
    [
        {1: (0x02, 4, 12345)},  # it is for somebody else
        {1: (0x02, 6, os.geteuid()), 3: (0x10, 6, NONE)},  # we may write
        {2: (0x04, 4, NONE)},  # the owner's group too
        {4: (0x20, 4, NONE)},  # everybody
        {3: (0x08, 4, 12345), 4: (0x10, 4, NONE), 5: (0x20, 0, NONE)},  # a group
        {2: (0x02, 4, 4_000_000), 3: (0x04, 0, NONE), 4: (0x10, 4, NONE), 5: (0x20, 0, NONE)},  # one more user
    ],
)
def test_any_other_access_list_is_as_bad_as_the_mode_that_it_shows(
    tmp_path: Path, change: dict[int, tuple[int, int, int]]
) -> None:
    entries = dict(enumerate(CREDENTIAL)) | change
    path = listed(make(tmp_path / "file", 0o400), [entries[place] for place in sorted(entries)])
    with pytest.raises(KeyFileError, match="opens it to others"):
        read(path)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o444])
def test_what_is_no_secret_may_be_read_by_others(tmp_path: Path, mode: int) -> None:
    assert read(make(tmp_path / "file", mode), secret=False) == b"content"


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666, 0o620])
def test_what_others_may_write_is_never_believed(tmp_path: Path, mode: int) -> None:
    with pytest.raises(KeyFileError, match=f"mode {mode:04o} .*chmod go-w"):
        read(make(tmp_path / "file", mode), secret=False)


@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_a_directory_in_which_others_could_replace_it_is_refused(tmp_path: Path, mode: int, depth: int) -> None:
    directory = tmp_path / "a" / "b" / "c"
    directory.mkdir(parents=True)
    path = make(directory / "file")
    opened = (directory, *directory.parents)[depth]
    opened.chmod(mode)
    with pytest.raises(KeyFileError, match=f"{opened}: its mode {mode:04o} lets others replace file"):
        read(path)


def test_a_sticky_directory_is_as_good_as_tmp(tmp_path: Path) -> None:
    path = make(tmp_path / "file")
    tmp_path.chmod(0o1777)
    assert read(path) == b"content"


def test_a_link_is_followed_and_what_it_leads_to_is_judged(tmp_path: Path) -> None:
    for directory in ("good", "bad"):
        (tmp_path / directory).mkdir()
        make(tmp_path / directory / "file")
        (tmp_path / f"to-{directory}").symlink_to(tmp_path / directory / "file")
    (tmp_path / "bad").chmod(0o777)
    assert read(tmp_path / "to-good") == b"content"
    with pytest.raises(KeyFileError, match="lets others replace"):
        read(tmp_path / "to-bad")
    make(tmp_path / "good" / "file", 0o644)
    with pytest.raises(KeyFileError, match="0644"):
        read(tmp_path / "to-good")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
@pytest.mark.parametrize("given_away", ["file", "."])
def test_what_belongs_to_somebody_else_is_refused(tmp_path: Path, given_away: str) -> None:
    path = make(tmp_path / "file")
    os.chown(tmp_path / given_away, 12345, 12345)
    with pytest.raises(KeyFileError, match="belongs to user 12345"):
        read(path)
    os.chown(tmp_path, 0, 0)


def test_what_is_no_file_is_refused_and_blocks_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo", 0o600)
    for path in (tmp_path / "fifo", tmp_path, Path("/dev/zero")):
        with pytest.raises(KeyFileError, match="regular file"):
            read(path)


@pytest.mark.parametrize("name", ["missing", "missing/file", "nul\0", "x" * 300])
def test_a_file_that_cannot_be_opened_is_the_callers_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be opened"):
        read_guarded(tmp_path / name, secret=False, error=ConfigError)


def test_an_endless_file_is_not_read_whole(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="over the limit"):
        read(make(tmp_path / "file", content=bytes(MAX_GUARDED_BYTES + 1)))


def test_text_is_utf_8(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="not UTF-8 text \\(byte 1\\)"):
        read_guarded_text(make(tmp_path / "file", content=b"a\xff"), secret=True, error=KeyFileError)


def test_a_new_file_has_its_mode_whatever_the_umask_and_overwrites_nothing(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    before = os.umask(0)
    try:
        write_new(path, b"one", mode=0o600, error=KeyFileError)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    with pytest.raises(KeyFileError, match="not overwritten"):
        write_new(path, b"two", mode=0o600, error=KeyFileError)
    assert path.read_bytes() == b"one"


def test_a_planted_link_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(KeyFileError):
        write_new(tmp_path / "link", b"secret", mode=0o600, error=KeyFileError)
    assert not (tmp_path / "target").exists()
