"""The numbers of system calls are the kernel's."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess

import pytest

from secfarm.run.syscalls import MACHINES, this_machine

# What arm64's own unistd.h asks of the generic one.
_ARM64 = ("RENAMEAT", "NEW_STAT", "SET_GET_RLIMIT", "SYS_CLONE3", "MEMFD_SECRET")
_HEADERS = {
    "x86_64": "#include <asm/unistd_64.h>\n",
    "aarch64": "".join(f"#define __ARCH_WANT_{name}\n" for name in _ARM64)
    + "#define __BITS_PER_LONG 64\n#include <asm-generic/unistd.h>\n",
}


def header_numbers(machine: str) -> dict[str, int]:
    if shutil.which("gcc") is None:
        pytest.skip("no gcc to read the kernel's headers")
    if machine == "x86_64" != platform.machine():
        pytest.skip("the headers here are another machine's")
    done = subprocess.run(
        ["gcc", "-E", "-dM", "-"], input=_HEADERS[machine], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip("no kernel headers (linux-libc-dev)")
    defined = dict(re.findall(r"^#define (\w+) (\S+)$", done.stdout, re.MULTILINE))
    found = {}
    for name, first in defined.items():
        value = first
        while value in defined:
            value = defined[value]
        if name.startswith("__NR_") and value.isdigit():
            found[name.removeprefix("__NR_")] = int(value)
    return found


@pytest.mark.parametrize("machine", MACHINES)
def test_numbers_are_those_of_the_headers(machine: str) -> None:
    ours, theirs = MACHINES[machine].numbers, header_numbers(machine)
    both = ours.keys() & theirs.keys()
    assert len(both) > 300
    assert {name: ours[name] for name in both} == {name: theirs[name] for name in both}


@pytest.mark.parametrize("machine", MACHINES)
def test_no_two_calls_have_one_number(machine: str) -> None:
    numbers = MACHINES[machine].numbers
    assert len(set(numbers.values())) == len(numbers)


def test_this_machine_is_known() -> None:
    assert this_machine().name == platform.machine()


def test_an_unknown_machine_is_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(LookupError, match="riscv64"):
        this_machine()
