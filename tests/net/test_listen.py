"""Listening sockets: whose they are, what was there before."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from secfarm.errors import ConfigError
from secfarm.net.listen import local_address, open_socket
from secfarm.wire.address import UnixAddress, parse_address


def test_a_unix_socket_is_for_its_owner_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with open_socket(UnixAddress(f"{tmp_path}/sock")) as sock:
            mode = (tmp_path / "sock").stat().st_mode
            assert stat.S_ISSOCK(mode)
            assert stat.S_IMODE(mode) == 0o600
            assert str(local_address(sock)) == f"unix:{tmp_path}/sock"
        assert os.umask(0) == 0
    finally:
        os.umask(before)


def test_a_socket_that_a_dead_server_left_is_replaced(tmp_path: Path) -> None:
    address = UnixAddress(f"{tmp_path}/sock")
    open_socket(address).close()
    with open_socket(address), socket.socket(socket.AF_UNIX) as peer:
        peer.connect(address.path)


def test_the_socket_of_a_living_server_is_left_alone(tmp_path: Path) -> None:
    address = UnixAddress(f"{tmp_path}/sock")
    with open_socket(address) as living:
        with pytest.raises(ConfigError, match=r"cannot listen on unix:.*nothing was started"):
            open_socket(address)
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(address.path)
            living.accept()[0].close()


@pytest.mark.parametrize("kind", ["file", "directory", "link to a file", "dangling link"])
def test_what_is_no_socket_is_not_touched(tmp_path: Path, kind: str) -> None:
    path, target = tmp_path / "sock", tmp_path / "target"
    if kind == "file":
        path.write_text("kept")
    elif kind == "directory":
        path.mkdir()
    else:
        if kind == "link to a file":
            target.write_text("kept")
        path.symlink_to(target)
    before = path.lstat()
    with pytest.raises(ConfigError, match="cannot listen"):
        open_socket(UnixAddress(str(path)))
    assert path.lstat() == before
    assert target.exists() == (kind == "link to a file")


@pytest.mark.parametrize("address", ["127.0.0.1:0", "unix:{}/nowhere/sock", "192.0.2.1:7419", "no-such-host.invalid:1"])
def test_an_address_that_cannot_be_had_is_a_config_error(tmp_path: Path, address: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        text = address.format(tmp_path).replace("127.0.0.1:0", f"127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(ConfigError, match="nothing was started"):
            open_socket(parse_address(text))


def test_the_port_that_the_system_chose_is_told() -> None:
    with open_socket(parse_address("127.0.0.1:0", listening=True)) as sock:
        assert str(local_address(sock)) == f"127.0.0.1:{sock.getsockname()[1]}"
