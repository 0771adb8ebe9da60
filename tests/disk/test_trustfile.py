"""Trust files: read only where others cannot have written them; lines added are lines read back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from secfarm.disk.trustfile import add_known_server, read_allowed_signers, read_known_servers, read_policy
from secfarm.errors import TrustFileError
from secfarm.sign.keys import SigningKey

KEY = SigningKey.from_seed(bytes(range(32))).public
OTHER = SigningKey.from_seed(bytes(32)).public


def test_each_file_is_read_and_names_itself_in_errors(tmp_path: Path) -> None:
    (tmp_path / "signers").write_text(f"ada {KEY.openssh()}\n")
    (tmp_path / "servers").write_text(f"node1 {KEY.openssh()}\n")
    (tmp_path / "policy").write_text('[[grant]]\nprincipals = ["ada"]\n')
    assert read_allowed_signers(tmp_path / "signers")[0].place == f"{tmp_path / 'signers'}:1"
    assert read_known_servers(tmp_path / "servers").keys_for("node1") == ((KEY, "node1"),)
    assert read_policy(tmp_path / "policy").grant_for("ada").place == f"{tmp_path / 'policy'}:1"


@pytest.mark.parametrize("read", [read_allowed_signers, read_known_servers, read_policy])
def test_a_file_that_others_may_write_is_refused(tmp_path: Path, read: Callable[[Path], object]) -> None:
    path = tmp_path / "file"
    with pytest.raises(TrustFileError, match="cannot be opened"):
        read(path)
    path.write_text("")
    path.chmod(0o664)
    with pytest.raises(TrustFileError, match="chmod go-w"):
        read(path)
    path.chmod(0o644)
    read(path)
    path.write_bytes(b"\xff")
    with pytest.raises(TrustFileError, match="UTF-8"):
        read(path)


def test_an_added_server_is_known_and_the_old_ones_stay(tmp_path: Path) -> None:
    path = tmp_path / "new" / "known_servers"
    add_known_server(path, "127.0.0.1:7419", KEY, comment="first")
    path.write_text(path.read_text().rstrip("\n"))  # as an editor may leave it
    add_known_server(path, "node2,unix:/run/x", OTHER)
    known = read_known_servers(path)
    assert [entry.key for entry in known.entries] == [KEY, OTHER]
    assert known.keys_for("unix:/run/x") == ((OTHER, "node2"),)
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("pattern", ["", " ", "two words", "a\nb", "#comment", "a,", "\x1b[2J"])
def test_a_pattern_that_would_be_read_otherwise_is_not_written(tmp_path: Path, pattern: str) -> None:
    with pytest.raises(TrustFileError):
        add_known_server(tmp_path / "known_servers", pattern, KEY)
    assert not (tmp_path / "known_servers").exists()


def test_nothing_is_added_to_a_file_that_others_may_write(tmp_path: Path) -> None:
    path = tmp_path / "known_servers"
    path.write_text("")
    path.chmod(0o666)
    with pytest.raises(TrustFileError, match="0666"):
        add_known_server(path, "node1", KEY)
    assert path.read_text() == ""
