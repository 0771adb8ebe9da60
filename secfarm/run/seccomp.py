"""seccomp: which system calls a confined worker may make. An allow-list; anything that it does not know is ENOSYS.

A filter is a small program (classic BPF) that the kernel runs before each call. Built from tables here, as bytes.
Source: the kernel's Documentation/userspace-api/seccomp_filter.rst and linux/seccomp.h.
"""

from __future__ import annotations

import ctypes
import errno
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from secfarm.run.libc import syscall

if TYPE_CHECKING:
    from secfarm.run.syscalls import Machine

KILL: Final = 0x80000000  # SECCOMP_RET_KILL_PROCESS
ERRNO: Final = 0x00050000
ALLOW: Final = 0x7FFF0000
_SET_MODE_FILTER: Final = 1

_LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
_AND: Final = 0x54
_JUMP: Final = 0x05
_IF_EQUAL: Final = 0x15
_IF_AT_LEAST: Final = 0x35
_RETURN: Final = 0x06
_INSTRUCTION: Final = struct.Struct("=HBBI")

# Offsets into struct seccomp_data, little-endian as both machines are.
_NUMBER: Final = 0
_ARCH: Final = 4
_ARGUMENTS: Final = 16


@dataclass(frozen=True, slots=True)
class Word:
    """An argument, of which the kernel takes the low 32 bits: `value & mask` is one of `among`."""

    argument: int
    among: tuple[int, ...]
    mask: int = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Whole:
    """An argument, all 64 bits of which must make one of `among` (each below 2**32)."""

    argument: int
    among: tuple[int, ...]


Test = Word | Whole
Cases = Sequence[Sequence[Test]]  # allowed when all tests of one case hold


@dataclass(frozen=True, slots=True)
class Rules:
    """What a filter lets through.

    Attributes:
        allowed: calls with any arguments.
        checked: calls with some arguments only; with others they are EPERM.
        never: EPERM, so that it reads as forbidden; all other calls are ENOSYS, as in an older kernel.
        fatal: of checked calls, arguments with which they end the process (SIGSYS).
    """

    allowed: frozenset[str]
    checked: Mapping[str, Cases]
    never: frozenset[str]
    fatal: Mapping[str, Cases] = field(default_factory=dict)


def build(rules: Rules, machine: Machine) -> bytes:
    """Return the filter's program. Names that this machine does not have are left out.

    The verdict is found by bisection: when a filter is engaged, the kernel runs it for every number there is, to know
    beforehand which ones it need not ask about.
    """
    numbers = machine.numbers
    verdicts: dict[int, list[bytes]] = {}
    for names, verdict in ((rules.never, ERRNO | errno.EPERM), (rules.allowed, ALLOW)):
        verdicts.update((numbers[name], [_op(_RETURN, verdict)]) for name in names if name in numbers)
    for name, cases in rules.checked.items():
        if name in numbers:
            fatal = rules.fatal.get(name, ())
            refused = _op(_RETURN, ERRNO | errno.EPERM)
            verdicts[numbers[name]] = [*_checked(fatal, KILL), *_checked(cases, ALLOW), refused]
    unknown = [_op(_RETURN, ERRNO | errno.ENOSYS)]
    leaves = [(0, verdicts.get(0, unknown))]
    for number in range(1, max(verdicts) + 2):
        leaf = verdicts.get(number, unknown)
        if leaf != leaves[-1][1]:
            leaves.append((number, leaf))
    code = [_op(_LOAD, _ARCH), _op(_IF_EQUAL, machine.audit_arch, 1, 0), _op(_RETURN, KILL), _op(_LOAD, _NUMBER)]
    if machine.foreign_from:
        code += [_op(_IF_AT_LEAST, machine.foreign_from, 0, 1), _op(_RETURN, KILL)]
    return b"".join([*code, *_bisect(leaves)])


def _bisect(leaves: list[tuple[int, list[bytes]]]) -> list[bytes]:
    """Return instructions that go to the last of the leaves whose first number is not above the call's."""
    if len(leaves) == 1:
        return leaves[0][1]
    middle = len(leaves) // 2
    below, above = _bisect(leaves[:middle]), _bisect(leaves[middle:])
    # A conditional jump reaches 255 instructions, a plain one as far as needed.
    return [_op(_IF_AT_LEAST, leaves[middle][0], 0, 1), _op(_JUMP, len(below)), *below, *above]


def _op(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return _INSTRUCTION.pack(code, if_true, if_false, value)


def _checked(cases: Cases, verdict: int) -> Iterator[bytes]:
    """Yield a block of one call: a case that holds returns the verdict, else the next is tried, and what follows."""
    for case in cases:
        tests = [list(_test(test)) for test in case]
        left = sum(map(len, tests)) + len(tests)  # each test is followed by the jump that a failure takes
        for test in tests:
            yield from test
            left -= len(test) + 1
            yield _op(_JUMP, left + 1)  # over the rest of this case and its RETURN
        yield _op(_RETURN, verdict)


def _test(test: Test) -> Iterator[bytes]:
    """Yield instructions that go on behind the next one when the test holds, and to it when not."""
    low = _ARGUMENTS + 8 * test.argument
    count = len(test.among)
    if isinstance(test, Whole):
        yield _op(_LOAD, low + 4)
        yield _op(_IF_EQUAL, 0, 0, count + 1)
        yield _op(_LOAD, low)
    else:
        yield _op(_LOAD, low)
        if test.mask != 0xFFFFFFFF:  # noqa: PLR2004 all of them
            yield _op(_AND, test.mask)
    for place, value in enumerate(test.among):
        yield _op(_IF_EQUAL, value, count - place, 0)


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))


def engage(program: bytes) -> None:
    """Put this thread under the filter, for good; no new privileges must be set before.

    Raises:
        OSError: the kernel did not take it.
    """
    syscall("seccomp", _SET_MODE_FILTER, 0, _Program(len(program) // _INSTRUCTION.size, program))
