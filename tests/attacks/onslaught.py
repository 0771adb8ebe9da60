"""The corpus of hostile tasks against a real `secfarm serve`, by a real client; what escaped is said, not asserted.

Also a script, for those who must be another user: `onslaught.py PROFILE FOLDER` prints a JSON object of escapes.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Final, Self

from secfarm import Kernel, ResourceExceededError, TaskTimeoutError, WorkerLostError
from secfarm.errors import TaskError, ValueTransferError
from secfarm.limits import RESERVED_BYTES
from secfarm.run.confine import SHARED_PROCESSES
from tests.attacks.hostile import Attack, End
from tests.attacks.siege import DEADLINE_S, PROFILES, SHORT_S, corpus
from tests.attacks.world import BOUNDS, World
from tests.daemon.roles import Roles
from tests.daemon.site import BOB, Site

_ANSWERS_WITHIN_S: Final = 2.0
_POLICY: Final = f"""\
[[grant]]
principals = ["ada"]
may = ["run", "call"]
names = ["*"]
[grant.limits]
memory_bytes = {BOUNDS.memory_bytes}
processes = {BOUNDS.processes}
files = {BOUNDS.files}
scratch_bytes = {BOUNDS.scratch_bytes}
scratch_files = {BOUNDS.scratch_files}
[grant.confine]
isolation = "ISOLATION"

[[grant]]
principals = ["bob"]
may = ["run"]
"""
ROLES: Final = ("gate", "keeper", "zygote")


def assault(kernel: Kernel, attack: Attack, world: World) -> str | None:
    """Run one attack through a kernel; return how it escaped, or None."""
    within_s = SHORT_S if End.KILLED in attack.ends else DEADLINE_S
    end = End.NOTHING
    try:
        if got := kernel.options(timeout_s=within_s).submit(attack.task, world.facts).result(DEADLINE_S):
            return f"got {got!r:.200}"
    except TaskTimeoutError:
        end = End.KILLED
    except WorkerLostError:
        end = End.DIED
    except ValueTransferError:
        pass  # what it returned is no value
    except TaskError as error:
        if isinstance(error, ResourceExceededError) and error.kind == "":
            return f"a limit without a name: {error}"
    return None if end in attack.ends else end.value


class Onslaught:
    """A server under attack by ada, which serves bob meanwhile. A context manager."""

    def __init__(self, profile: str, folder: Path, isolation: str = "task") -> None:
        self.profile = PROFILES[profile]
        self.isolation = isolation
        self.world = World(folder)
        (home := folder / "home").mkdir(mode=0o700)
        self.site = Site(home)
        self.site.policy(_POLICY.replace("ISOLATION", isolation))
        self.site.config(confinement=profile)
        self.roles = Roles(self.site)
        self.pids = {role: self.roles.pid(role) for role in ROLES}
        self.ada = self.roles.kernel()
        self.bob = Kernel([self.roles.address], auth=self.site.auth(BOB), key=BOB)
        self.world.facts["server"] = self.pids["keeper"]
        self.world.facts["most_memory"] = BOUNDS.memory_bytes + RESERVED_BYTES

    def assault(self, attack: Attack) -> str | None:
        """Run one attack; return how it escaped, or None."""
        return assault(self.ada, attack, self.world)

    def stands(self) -> None:
        """All roles are the same processes, canaries are untouched, a benign task answers, nothing was left running."""
        begin_s = time.monotonic()
        assert self.bob.run(lambda: sum(range(10))) == 45
        assert time.monotonic() - begin_s < _ANSWERS_WITHIN_S
        assert {role: self.roles.pid(role) for role in ROLES} == self.pids
        self.world.check()
        # One for each of the two, and one more that is on its way out.
        self.roles.until(lambda: len(self.roles.workers()) <= 4)

    def close(self) -> None:
        self.ada.shutdown(wait=False, cancel_futures=True)
        self.bob.shutdown(wait=False, cancel_futures=True)
        self.roles.close()
        self.world.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def main(profile: str, folder: str) -> None:
    escapes: dict[str, str] = {}
    attacks = corpus(PROFILES[profile])
    with Onslaught(profile, Path(folder)) as onslaught:
        if profile == "container":  # an ordinary user's workers share its count of processes
            onslaught.world.facts["most_threads"] = BOUNDS.processes + SHARED_PROCESSES
        for attack in attacks:
            if (escape := onslaught.assault(attack)) is not None:
                escapes[attack.name] = escape
            onslaught.stands()
    print(json.dumps({"attacks": len(attacks), "escapes": escapes}))


if __name__ == "__main__":
    main(*sys.argv[1:])
