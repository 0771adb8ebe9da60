"""The policy: default nothing, the first grant decides, what is misspelt refuses the file."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secfarm.errors import PolicyError, TrustFileError
from secfarm.limits import MAX_OUTSTANDING_TASKS
from secfarm.trust.policy import NOTHING, Confine, Grant, Isolation, Limits, Policy, Right

EXAMPLE = """\
[[grant]]
principals = ["ada@laptop", "*@EXAMPLE.COM"]
may = ["run", "call", "broadcast", "kill", "admin"]
names = ["operator.*", "math.*"] # what "call" covers

[grant.limits]
wall_s = 60
cpu_s = 60
memory_bytes = 1_000_000_000
output_bytes = 1_000_000
tasks = 1000                     # outstanding

[grant.confine]
isolation = "session"            # or "task"
network = false
read = []
"""


def parse(text: str) -> Policy:
    return Policy.parse(text, file="F")


def test_the_documented_example_means_what_it_says() -> None:
    grant = parse(EXAMPLE).grant_for("bob@EXAMPLE.COM")
    assert grant.may == frozenset(Right)
    assert grant.limits == Limits(60.0, 60.0, 1_000_000_000, 1_000_000, 1000)
    assert grant.confine == Confine(Isolation.SESSION, network=False, read=())
    assert grant.place == "F:1"
    grant.check_name("operator:add")
    grant.check(Right.ADMIN)


@given(st.text(max_size=20))
def test_who_is_not_named_may_nothing(principal: str) -> None:
    for policy in (parse(""), parse('[[grant]]\nprincipals = ["ada@laptop"]\nmay = ["run"]\n')):
        grant = policy.grant_for(principal)
        if principal != "ada@laptop":
            assert grant is NOTHING
            for right in Right:
                with pytest.raises(PolicyError, match="nothing was run"):
                    grant.check(right)
            with pytest.raises(PolicyError):
                grant.check_name("operator:add")


def test_a_grant_without_may_is_a_ban_when_it_comes_first() -> None:
    policy = parse('[[grant]]\nprincipals = ["eve@lab"]\n[[grant]]\nprincipals = ["*@lab"]\nmay = ["run"]\n')
    assert policy.grant_for("ada@lab").may == {Right.RUN}
    assert policy.grant_for("eve@lab").may == frozenset()


def test_rights_do_not_imply_each_other() -> None:
    grant = Grant(may=frozenset({Right.RUN}), names=("*",))
    with pytest.raises(PolicyError):
        grant.check_name("operator:add")
    with pytest.raises(PolicyError):
        grant.check(Right.BROADCAST)


@pytest.mark.parametrize(
    ("names", "name", "covered"),
    [
        (["operator.*"], "operator:add", True),
        (["operator.*"], "operator.add", True),
        (["operator.add"], "operator:add", True),
        (["os.*"], "os.path:join", False),
        (["os.*"], "os:path.join", False),
        (["os.path.*"], "os.path:join", True),
        (["*"], "os.path:join", True),
        (["*.*"], "os.path:join", False),
        (["len"], "builtins:len", True),
        (["builtins.len"], "builtins:len", True),
        (["builtins.*"], "builtins:len", True),
        (["builtins.len"], "len", True),
        (["len"], "len", True),
        (["len"], "evil:len", False),
        (["math.*"], "math:__loader__", False),
        (["math.__loader__"], "math:__loader__", True),
        (["math.?_x"], "math:__x", False),
        (["getattr.*"], "builtins:getattr.x", False),
        (["math.*"], "cmath:sin", False),
        (["math.*"], "math", False),
        ([], "operator:add", False),
        (["operator.*"], "operator." + "a" * 2000, False),
    ],
)
def test_a_star_covers_one_public_part(names: list[str], name: str, *, covered: bool) -> None:
    grant = Grant(may=frozenset({Right.CALL}), names=tuple(names))
    if covered:
        assert grant.check_name(name) == name
    else:
        with pytest.raises(PolicyError, match="do not cover"):
            grant.check_name(name)


@given(st.none() | st.floats(0.001, 1e6), st.none() | st.floats(0.001, 1e6))
def test_the_effective_limit_is_the_smaller_one(asked_s: float | None, granted_s: float | None) -> None:
    given_s = [limit for limit in (asked_s, granted_s) if limit is not None]
    assert Limits(wall_s=granted_s).wall_for(asked_s) == (min(given_s) if given_s else None)


@pytest.mark.parametrize("asked", [0, -1, float("nan"), float("inf"), float("-inf")])
def test_a_limit_that_bounds_nothing_is_refused(asked: float) -> None:
    """`min(nan, 60)` is nan: no limit at all."""
    for limits in (Limits(), Limits(wall_s=60.0, memory_bytes=1000)):
        with pytest.raises(PolicyError, match="bounds nothing"):
            limits.wall_for(asked)
        if asked in (0, -1):
            with pytest.raises(PolicyError, match="bounds nothing"):
                limits.memory_for(int(asked))
    assert Limits(memory_bytes=1000).memory_for(10**9) == 1000
    assert Limits(memory_bytes=1000).memory_for(10) == 10


def test_outstanding_tasks_are_always_bounded() -> None:
    assert NOTHING.limits.tasks == MAX_OUTSTANDING_TASKS
    assert parse('[[grant]]\nprincipals=["a"]\n').grant_for("a").limits.tasks == MAX_OUTSTANDING_TASKS


_HEAD = '[[grant]]\nprincipals = ["a"]\n'


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("grants = 1\n", 1),
        ("[grant]\nprincipals = ['a']\n", 1),
        ("[[grant]]\nmay = ['run']\n", 1),
        ("[[grant]]\nprincipals = []\n", 2),
        ("[[grant]]\nprincipals = 'a'\n", 2),
        (_HEAD + "may = ['walk']\n", 3),
        (_HEAD + "may = 'run'\n", 3),
        (_HEAD + "mey = ['run']\n", 3),
        (_HEAD + "[grant.limits]\nwall = 1\n", 4),
        (_HEAD + "[grant.limits]\nwall_s = '1'\n", 4),
        (_HEAD + "[grant.limits]\nwall_s = 0\n", 4),
        (_HEAD + "[grant.limits]\nmemory_bytes = 1.5\n", 4),
        (_HEAD + "[grant.confine]\nisolation = 'none'\n", 4),
        (_HEAD + "[grant.confine]\nnetwork = 0\n", 4),
        (_HEAD + "[grant.confine]\nread = ['relative']\n", 4),
        (_HEAD + _HEAD + "[grant.confine]\nextra = 1\n", 6),
    ],
)
def test_a_misspelt_policy_is_refused_with_its_line(text: str, line: int) -> None:
    with pytest.raises(TrustFileError, match=f"^F:{line}: .*the file was not used"):
        parse(text)


# --- Kerberos -------------------------------------------------------------------------------------------------------


def test_kerberos_names_stay_as_they_are_unless_the_policy_says_otherwise() -> None:
    assert Policy.parse("", file="p").kerberos.principal_of("Ada/admin@Example.COM") == "Ada/admin@Example.COM"


@pytest.mark.parametrize(
    ("text", "name", "principal"),
    [
        ("case_insensitive = true", "Ada@Example.com", "ada@EXAMPLE.COM"),
        ('realms = { "A.COM" = "B.COM" }', "ada@A.COM", "ada@B.COM"),
        ('realms = { "A.COM" = "B.COM" }', "ada@a.com", "ada@a.com"),
        ('realms = { "A.COM" = "B.COM" }', "ada@C.COM", "ada@C.COM"),
        ('realms = { "A.COM" = "B.COM", "B.COM" = "C.COM" }', "ada@A.COM", "ada@B.COM"),
        ('case_insensitive = true\nrealms = { "A.COM" = "b" }', "ADA@a.com", "ada@b"),
    ],
)
def test_realms_are_folded_and_mapped_once(text: str, name: str, principal: str) -> None:
    assert Policy.parse(f"[kerberos]\n{text}\n", file="p").kerberos.principal_of(name) == principal


@pytest.mark.parametrize("text", ["case_insensitive = 1", "realms = 3", 'realms = { "A" = 1 }', "surprise = true"])
def test_a_table_of_kerberos_is_read_strictly(text: str) -> None:
    with pytest.raises(TrustFileError):
        Policy.parse(f"[kerberos]\n{text}\n", file="p")


def test_a_key_is_demanded_only_where_the_grant_says_so() -> None:
    text = '[[grant]]\nprincipals = ["a"]\nrequire_key = true\n[[grant]]\nprincipals = ["b"]\n'
    policy = Policy.parse(text, file="p")
    assert policy.grant_for("a").require_key
    assert not policy.grant_for("b").require_key
    assert not policy.grant_for("c").require_key
