"""A role's own lists: what a process of the server may still do, and how it binds itself to that, for good.

In two steps: `begin` and the filter before the role's own code, `settle` as soon as it knows its files and before it
hears a peer. Nothing falls back: a role that cannot be bound does not start. Docs: docs/confinement.md, "The other
roles".
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from secfarm.run import landlock, libc, seccomp
from secfarm.run.calls import worker_rules
from secfarm.run.profile import ConfinementError, Openings
from secfarm.run.seccomp import Cases, Rules
from secfarm.run.syscalls import this_machine
from secfarm.run.view import host_view

if TYPE_CHECKING:
    from secfarm.run.syscalls import Machine

_PLAIN: Final = Openings()
_SETTLING: Final = frozenset({"landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self", "seccomp"})
_REMEDY: Final = "Linux 6.2 or later is needed, with `landlock` among the `lsm=` of its command line"


@dataclass(frozen=True, slots=True)
class Lists:
    """What one role may do.

    Attributes:
        calls: system calls with any arguments, beyond those of a worker without a scratch.
        checked: calls with some arguments, instead of those that such a worker may give.
        shown: the files of such a worker's view may be read: Python's, which imports late.
        tcp: of `landlock.TCP`, what it may do.
    """

    calls: frozenset[str] = frozenset()
    checked: Mapping[str, Cases] = field(default_factory=dict)
    shown: Openings = _PLAIN
    tcp: int = 0

    def rules(self, pid: int) -> Rules:
        """Return the filter's rules; `pid` is the only process that it may signal: itself."""
        worker = worker_rules(_PLAIN, pid=pid, has_scratch=False, write_xor_execute=True)
        checked = {name: cases for name, cases in worker.checked.items() if name not in self.calls} | {**self.checked}
        allowed = worker.allowed | self.calls
        return Rules(allowed, checked, worker.never - allowed - checked.keys())

    def program(self, machine: Machine, pid: int) -> bytes:
        """Return the filter."""
        return seccomp.build(self.rules(pid), machine)

    def filter_early(self) -> None:
        """Engage the filter with what is left to do: `settle`. An event loop must find no io_uring to make.

        Raises:
            ConfinementError: the kernel did not take it; the process must end.
        """
        rules = self.rules(os.getpid())
        early = Rules(rules.allowed | _SETTLING, rules.checked, rules.never - _SETTLING)
        try:
            seccomp.engage(seccomp.build(early, this_machine()))
        except OSError as error:
            raise ConfinementError(f"no filter of system calls: {error.strerror}; nothing is served") from error


def begin(*, capable: bool = False, dumpable: bool = False) -> None:
    """Leave no core dump, gain no privileges and have none; let nobody but root open this process's memory.

    Args:
        capable: it keeps what capabilities it has, to make namespaces or to start who does.
        dumpable: it keeps its own files in /proc, by which an ordinary user maps itself into a namespace.

    Raises:
        OSError: the kernel refused.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if not capable:
        libc.drop_capabilities()
    libc.prctl(libc.PR_SET_NO_NEW_PRIVS, 1)
    if not dumpable:
        libc.prctl(libc.PR_SET_DUMPABLE, 0)


def settle(name: str, lists: Lists, files: Iterable[tuple[str, int]] = ()) -> None:
    """Bind this process, which has one thread, to its lists; `begin` came before.

    Args:
        name: the role's.
        lists: its own.
        files: paths with all below and rights of `landlock`, beyond what the lists show.

    Raises:
        ConfinementError: the kernel lacks a layer; the process must end.
    """
    if len(list(Path("/proc/self/task").iterdir())) != 1:
        raise ConfinementError(f"the {name} has threads that its lists would not bind; it does not start")
    try:
        version = landlock.abi()
        if version < landlock.MIN_ABI:
            raise ConfinementError(f"the {name} is not bound by Landlock ABI {version}; nothing is served. {_REMEDY}")
        view = host_view(lists.shown)
        shown = [(path, landlock.READ) for path in view.paths] + [(path, landlock.READ_FILE) for path in view.devices]
        landlock.engage(version, [*shown, *files], tcp=lists.tcp)
        seccomp.engage(lists.program(this_machine(), os.getpid()))
    except OSError as error:
        why = f"{error.strerror} ({error.filename})"
        raise ConfinementError(f"the {name} is not bound by its lists: {why}; nothing is served. {_REMEDY}") from error
