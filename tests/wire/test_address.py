from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secfarm.wire.address import Address, SshAddress, TcpAddress, UnixAddress, parse_address


@pytest.mark.parametrize(
    ("written", "address", "normal"),
    [
        ("node1", TcpAddress("node1", 7419), "node1:7419"),
        ("Node1.Example.ORG:80", TcpAddress("node1.example.org", 80), "node1.example.org:80"),
        ("127.0.0.1:7420", TcpAddress("127.0.0.1", 7420), "127.0.0.1:7420"),
        ("[::1]:65535", TcpAddress("::1", 65535), "[::1]:65535"),
        ("[0:0::1]", TcpAddress("::1", 7419), "[::1]:7419"),
        ("[fe80::1%eth0]:1", TcpAddress("fe80::1%eth0", 1), "[fe80::1%eth0]:1"),
        (("::1", 1), TcpAddress("::1", 1), "[::1]:1"),
        (("localhost", 7419), TcpAddress("localhost", 7419), "localhost:7419"),
        ("unix:/run/secfarm/sock", UnixAddress("/run/secfarm/sock"), "unix:/run/secfarm/sock"),
        ("ssh://Node1", SshAddress("node1"), "ssh://node1"),
        ("ssh://ada@node1:22", SshAddress("node1", "ada", 22), "ssh://ada@node1:22"),
        ("ssh://ada@lab@[::1]:7419", SshAddress("::1", "ada@lab", 7419), "ssh://ada@lab@[::1]:7419"),
        ("ssh://[0::1]", SshAddress("::1"), "ssh://[::1]"),
        (SshAddress("h", "", 1), SshAddress("h", "", 1), "ssh://h:1"),
        (TcpAddress("h", 1), TcpAddress("h", 1), "h:1"),
        (UnixAddress("/s"), UnixAddress("/s"), "unix:/s"),
    ],
)
def test_each_form_has_one_normal_form(written: str | tuple[str, int] | Address, address: Address, normal: str) -> None:
    assert parse_address(written) == address
    assert str(address) == normal
    assert parse_address(normal) == address


@pytest.mark.parametrize(
    "written",
    [
        *("", " ", ":", ":7419", "host:", "host:0", "host:65536", "host:-1", "host:+1", "host: 1", "host:1_0"),
        *("host:\N{FULLWIDTH DIGIT ONE}", "::1", "::1:7419", "[::1", "::1]:1", "[::1]7419", "[]:1", "[host]:1"),
        *("[127.0.0.1]:1", "[::g]:1", "[fe80::1%a b]:1", "[::1%]]:1", "10", "1.2.3.4.5:1", "256.1.1.1:1"),
        *("a b:1", "user@host:1", "http://host:1", "host/path", "a..b", ".a", "-a", "h\0:1", "h\n:1", "b\xfccher:1"),
        *("a" * 254, "unix:", "unix:relative", "unix:/dir/", "unix:/a\0b", "unix:/a\nb", "unix:/" + "a" * 107),
        *(
            "ssh://",
            "ssh://-oProxyCommand=x",
            "ssh://-l@h",
            "ssh://@h",
            "ssh://a b@h",
            "ssh://h/",
            "ssh://h:0",
            "ssh://h?x",
        ),
        *(("host", 0), ("host", True), ("host", "1"), ("", 1), ("h:1", 1), ("host",), ("h", 1, 2), 7419, None, b"h:1"),
    ],
    ids=repr,
)
def test_what_is_malformed_is_a_value_error_that_shows_it(written: str) -> None:
    with pytest.raises(ValueError, match="malformed address") as refused:
        parse_address(written)
    assert repr(written) in str(refused.value)


def test_port_zero_is_for_listening_only() -> None:
    assert parse_address("127.0.0.1:0", listening=True) == TcpAddress("127.0.0.1", 0)


def test_nobody_listens_on_ssh() -> None:
    for address in ("ssh://node1", SshAddress("node1")):
        with pytest.raises(ValueError, match="malformed"):
            parse_address(address, listening=True)


@given(st.text(max_size=40))
def test_any_text_is_an_address_with_a_stable_normal_form_or_a_value_error(text: str) -> None:
    try:
        address = parse_address(text)
    except ValueError:
        return
    assert parse_address(str(address)) == address
