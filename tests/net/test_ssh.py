"""The words that ssh is started with, and those that it leaves. A real ssh is met in tests/farm/test_remote.py."""

from __future__ import annotations

import shlex

from hypothesis import given
from hypothesis import strategies as st

from secfarm.net.ssh import ssh_said, ssh_words

_words = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)


@given(st.lists(_words, min_size=1, max_size=5))
def test_the_far_shell_sees_the_words_and_nothing_else(command: list[str]) -> None:
    *local, remote = ssh_words(["ssh", "-v"], "node1", "ada", 22, command)
    assert local == ["ssh", "-v", "-T", "-a", "-x", "-l", "ada", "-p", "22", "--", "node1"]
    assert shlex.split(remote) == command


def test_user_and_port_are_left_to_ssh_where_nobody_named_them() -> None:
    assert ssh_words(["ssh"], "node1", "", None, ["x"]) == ["ssh", "-T", "-a", "-x", "--", "node1", "x"]


@given(st.binary(max_size=5000))
def test_what_ssh_said_is_one_short_printable_line(said: bytes) -> None:
    line = ssh_said(said)
    assert line.isprintable()
    assert line.isascii()
    assert 0 < len(line) <= 4 * 2048 + 20
