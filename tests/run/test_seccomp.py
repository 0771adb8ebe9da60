"""The filter, run here by an interpreter of classic BPF, for both machines: the lists mean what they say."""

from __future__ import annotations

import errno
import struct
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secfarm.run.calls import worker_rules
from secfarm.run.profile import Openings
from secfarm.run.seccomp import ALLOW, ERRNO, KILL, Rules, Whole, Word, build
from secfarm.run.syscalls import MACHINES, Machine

EPERM: Final = ERRNO | errno.EPERM
ENOSYS: Final = ERRNO | errno.ENOSYS
both: Final = pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)


def verdict(program: bytes, machine: Machine, number: int, *args: int, arch: int | None = None) -> int:
    """What the kernel would decide; every jump must stay in the program."""
    whole = [*args, *(0 for _ in range(6 - len(args)))]
    data = struct.pack("<IIQ6Q", number, machine.audit_arch if arch is None else arch, 0, *whole)
    code = [struct.unpack_from("=HBBI", program, at) for at in range(0, len(program), 8)]
    at = value = 0
    while True:
        kind, if_true, if_false, constant = code[at]
        at += 1
        match kind:
            case 0x20:
                (value,) = struct.unpack_from("<I", data, constant)
            case 0x54:
                value &= constant
            case 0x05:
                at += constant
            case 0x15:
                at += if_true if value == constant else if_false
            case 0x35:
                at += if_true if value >= constant else if_false
            case 0x06:
                return constant
            case _:
                raise AssertionError(f"no such instruction: {kind:#x}")


def program(
    machine: Machine, openings: Openings | None = None, *, pid: int = 1, scratch: bool = True, wxe: bool = True
) -> bytes:
    rules = worker_rules(openings or Openings(), pid=pid, has_scratch=scratch, write_xor_execute=wxe)
    return build(rules, machine)


def of(machine: Machine, name: str, *args: int, **settings: object) -> int:
    return verdict(program(machine, **settings), machine, machine.numbers[name], *args)


@both
def test_a_call_of_a_foreign_convention_kills(machine: Machine) -> None:
    ours = program(machine)
    assert verdict(ours, machine, machine.numbers["read"], arch=0x40000003) == KILL  # i386's, by int 0x80
    if machine.foreign_from:
        assert verdict(ours, machine, machine.foreign_from + 39) == KILL


@both
@pytest.mark.parametrize("inside", [False, True])
def test_what_may_start_programs_signals_others_where_a_layer_keeps_that_inside(
    machine: Machine, *, inside: bool
) -> None:
    rules = worker_rules(
        Openings(subprocesses=True), pid=7, has_scratch=False, write_xor_execute=True, signals_inside=inside
    )
    for name in ("kill", "tgkill"):
        verdicts = [
            verdict(build(rules, machine), machine, machine.numbers[name], pid) for pid in (7, 8, (1 << 64) - 1)
        ]
        assert verdicts == [ALLOW, *[ALLOW if inside else EPERM] * 2], name


@both
def test_what_is_in_no_list_is_not_there(machine: Machine) -> None:
    for number in (max(machine.numbers.values()) + 1, 600, 100_000, machine.numbers["clone3"]):
        assert verdict(program(machine), machine, number) == ENOSYS


@both
def test_every_name_of_the_lists_has_its_verdict(machine: Machine) -> None:
    rules = worker_rules(Openings(), pid=1, has_scratch=True, write_xor_execute=True)
    assert not rules.allowed & rules.never
    known = set().union(*(other.numbers for other in MACHINES.values()))
    assert rules.allowed | rules.never | rules.checked.keys() <= known
    for names, expected in ((rules.allowed - rules.checked.keys(), ALLOW), (rules.never, EPERM)):
        for name in names & machine.numbers.keys():
            assert of(machine, name) == expected, name


@both
def test_clone_makes_threads_and_nothing_else(machine: Machine) -> None:
    assert of(machine, "clone", 0x3D0F00) == ALLOW
    for flags in (17, 0x3D0F00 | 0x20000000, 0x3D0F00 | 1 << 32, 0x3D0F00 & ~0x10000, 0x100 | 17):
        assert of(machine, "clone", flags) == EPERM


@both
def test_signals_go_to_oneself(machine: Machine) -> None:
    for name in ("kill", "tgkill"):
        assert of(machine, name, 77, pid=77) == ALLOW
        for pid in (1, 0, 78, 2**32 - 1, 2**32 - 77):
            assert of(machine, name, pid, pid=77) == EPERM


@both
def test_process_1_can_kill_itself_all_the_same(machine: Machine) -> None:
    assert of(machine, "kill", 1, 9, pid=1) == of(machine, "tgkill", 1, 5, 9, pid=1) == KILL
    assert of(machine, "kill", 1, 15, pid=1) == of(machine, "tgkill", 1, 5, 10, pid=1) == ALLOW
    assert of(machine, "kill", 77, 9, pid=77) == ALLOW
    assert of(machine, "kill", 2, 9, pid=1) == EPERM


@both
def test_the_upper_half_of_an_argument_hides_nothing(machine: Machine) -> None:
    """The kernel takes 32 bits of an ioctl's number; a socket's address is all 64."""
    tiocsti, fionbio = 0x5412, 0x5421
    assert of(machine, "ioctl", 0, fionbio) == ALLOW
    assert of(machine, "ioctl", 0, tiocsti) == of(machine, "ioctl", 0, 1 << 32 | tiocsti) == EPERM
    assert of(machine, "sendto", 3, 4, 5, 6, 0) == ALLOW
    assert of(machine, "sendto", 3, 4, 5, 6, 1 << 32) == EPERM


@both
def test_memory_is_written_or_run(machine: Machine) -> None:
    assert of(machine, "mmap", 0, 4096, 3) == of(machine, "mmap", 0, 4096, 5) == ALLOW
    assert of(machine, "mmap", 0, 4096, 7) == of(machine, "mmap", 0, 4096, 6) == EPERM
    assert of(machine, "mprotect", 0, 4096, 3) == ALLOW
    assert of(machine, "mprotect", 0, 4096, 5) == of(machine, "pkey_mprotect", 0, 4096, 4) == EPERM
    assert of(machine, "mprotect", 0, 4096, 5, wxe=False) == ALLOW


@both
def test_without_a_scratch_nothing_is_opened_for_writing(machine: Machine) -> None:
    for flags in (1, 2, 0o100, 0o1000, 0o20000000, 0o2000000 | 1):
        assert of(machine, "openat", 3, 0, flags, scratch=False) == EPERM
        assert of(machine, "openat", 3, 0, flags) == ALLOW
    assert of(machine, "openat", 3, 0, 0o2000000, scratch=False) == ALLOW
    assert of(machine, "fchmodat", scratch=False) == of(machine, "unlinkat", scratch=False) == EPERM


@both
def test_a_pair_of_sockets_is_of_streams(machine: Machine) -> None:
    assert of(machine, "socketpair", 1, 1 | 0x80800) == ALLOW
    for family, kind in ((1, 2), (1, 5), (1, 3), (2, 1)):
        assert of(machine, "socketpair", family, kind) == EPERM
    assert of(machine, "socket", 1, 1) == of(machine, "socket", 2, 1) == EPERM


@both
def test_an_opened_network_is_ip_and_not_more(machine: Machine) -> None:
    network = Openings(network=True)
    for family in range(46):
        for kind in (1, 2, 3, 5):
            expected = ALLOW if family in {2, 10} and kind in {1, 2} else EPERM
            assert of(machine, "socket", family, kind | 0x80000, openings=network) == expected
    assert of(machine, "connect", openings=network) == ALLOW
    assert of(machine, "execve", openings=network) == EPERM


@both
def test_opened_subprocesses_get_no_namespaces(machine: Machine) -> None:
    programs = Openings(subprocesses=True)
    assert of(machine, "execve", openings=programs) == of(machine, "clone", 0x4100 | 17, openings=programs) == ALLOW
    for flag in (0x10000000, 0x20000, 0x40000000, 0x2000000):
        assert of(machine, "clone", flag | 17, openings=programs) == EPERM
    assert of(machine, "unshare", openings=programs) == of(machine, "ptrace", openings=programs) == EPERM


@given(
    st.dictionaries(st.sampled_from(["read", "write", "open", "openat", "mmap", "clone", "kill"]), st.integers(0, 3)),
    st.integers(0, 2**64 - 1),
    st.integers(0, 5),
)
def test_bisection_finds_what_the_lists_say(kinds: dict[str, int], value: int, argument: int) -> None:
    """For any lists: a call is allowed, checked, forbidden or unknown exactly as its name is listed."""
    machine = MACHINES["x86_64"]
    listed = {kind: frozenset(name for name, one in kinds.items() if one == kind) for kind in range(4)}
    cases = [[Word(argument, (value & 0xFF,), 0xFF), Whole(argument, (5, value & 0xFFFFFFFF))]]
    ends = [[Word(5 - argument, (7,))]]
    rules = Rules(listed[0] | {"exit"}, dict.fromkeys(listed[1], cases), listed[2], dict.fromkeys(listed[1], ends))
    ours = build(rules, machine)
    args = [value if place == argument else 0 for place in range(6)]
    is_whole = value in {5, value & 0xFFFFFFFF}
    for name in listed[1]:
        fatal = [7 if place == 5 - argument else word for place, word in enumerate(args)]
        assert verdict(ours, machine, machine.numbers[name], *fatal) == KILL
    for name, number in machine.numbers.items():
        expected = {0: ALLOW, 1: ALLOW if is_whole else EPERM, 2: EPERM}.get(kinds.get(name, 3), ENOSYS)
        assert verdict(ours, machine, number, *args) == (ALLOW if name == "exit" else expected)
