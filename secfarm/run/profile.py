"""What confinement is made of, as records: layers, profiles, what a principal is let out to, and how much.

No I/O here. Docs: docs/confinement.md.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import msgspec

from secfarm.errors import KernelError
from secfarm.limits import RESERVED_BYTES


class ConfinementError(KernelError):
    """Workers cannot be confined as the profile demands; nothing is served."""

    code = "confinement"


class Layer(StrEnum):
    """One mechanism of the kernel. In the order in which a worker meets them."""

    USER = "user namespace"
    PID = "process namespaces"
    ROOT = "minimal root"
    NET = "network namespace"
    IPC = "ipc namespace"
    UTS = "uts namespace"
    CGROUP = "cgroup namespace"
    GROUP = "control group"
    SCRATCH = "scratch"
    DESCRIPTORS = "descriptors"
    RLIMITS = "rlimits"
    IDENTITY = "own identity"
    CAPABILITIES = "capabilities"
    NO_NEW_PRIVS = "no new privileges"
    DEATH = "death signal"
    DUMPABLE = "not dumpable"
    WRITE_XOR_EXECUTE = "write xor execute"
    LANDLOCK = "landlock"
    SECCOMP = "seccomp"


class Profile(msgspec.Struct, frozen=True):
    """Which layers are engaged where there are any, and without which nothing is served."""

    name: str
    layers: frozenset[Layer]
    required: frozenset[Layer]

    def without(self, *layers: Layer) -> Profile:
        """Return a weaker profile, for tests of what a layer is for."""
        return Profile(f"{self.name} without {', '.join(layers)}", self.layers - {*layers}, self.required - {*layers})


_NAMESPACES: Final = frozenset({Layer.USER, Layer.PID, Layer.ROOT, Layer.NET, Layer.IPC, Layer.UTS, Layer.CGROUP})

# Only a system's manager can give it.
_EXTRA: Final = frozenset({Layer.GROUP})

FULL: Final = Profile("full", frozenset(Layer), frozenset(Layer) - _EXTRA)
# Nothing that needs mount or user namespaces: they are not to be had inside most containers.
_CONTAINED: Final = frozenset(Layer) - _NAMESPACES - {Layer.SCRATCH}
CONTAINER: Final = Profile("container", _CONTAINED, _CONTAINED - _EXTRA)
PROFILES: Final = {profile.name: profile for profile in (FULL, CONTAINER)}


class Openings(msgspec.Struct, frozen=True):
    """What a principal's workers are let out to; by default nothing. Each distinct one has a zygote of its own.

    Attributes:
        read: absolute paths that may be read, with all below.
        network: the host's network, TCP and UDP.
        subprocesses: other programs of the host may be run, confined as the worker is.
        generated_code: memory may become executable, as just-in-time compilers and ctypes callbacks want it.
        numpy: loaded before the fork, so that no worker spends time on that.
    """

    read: tuple[str, ...] = ()
    network: bool = False
    subprocesses: bool = False
    generated_code: bool = False
    numpy: bool = False


class Bounds(msgspec.Struct, frozen=True):
    """What a worker may use in its whole life. Hard: it cannot raise them itself."""

    memory_bytes: int = (2 << 30) + RESERVED_BYTES  # address space, beyond what it has when it is born
    cpu_s: int | None = None
    processes: int = 64  # threads, and processes where those are open
    files: int = 256  # descriptors
    scratch_bytes: int = 64 << 20  # also the largest file
    scratch_files: int = 4096


class LayerState(msgspec.Struct, frozen=True):
    """What became of one layer on this machine, for `secfarm doctor` and for refusing to serve.

    Attributes:
        why: how it is engaged, or what the kernel said.
        remedy: what an administrator can do; empty when nothing needs doing.
    """

    layer: Layer
    engaged: bool
    required: bool
    why: str
    remedy: str = ""


def check_layers(profile: Profile, states: list[LayerState]) -> list[LayerState]:
    """Return `states` if every layer that the profile requires is engaged, else raise.

    Raises:
        ConfinementError: some are not; all of them are named, each with its remedy.
    """
    missing = [state for state in states if state.required and not state.engaged]
    if missing:
        listed = "; ".join(f"{one.layer}: {one.why}" for one in missing)
        remedies = ". ".join(dict.fromkeys(one.remedy for one in missing if one.remedy))
        text = f"profile {profile.name} is not to be had here ({listed}); nothing is served. {remedies}"
        raise ConfinementError(text.rstrip())
    return states
