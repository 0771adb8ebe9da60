"""The whole corpus against one zygote, one fresh worker for each attack; what escaped is said, not asserted.

Also a script, for those who must be another user: `siege.py PROFILE FOLDER` prints a JSON object of escapes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Final

from secfarm.errors import ProtocolError
from secfarm.run.confine import SHARED_PROCESSES
from secfarm.run.profile import CONTAINER, FULL, Layer, Profile
from secfarm.task import codec
from tests.attacks.hostile import CORPUS, Attack, End
from tests.attacks.world import BOUNDS, World
from tests.run.cell import Cell

PROFILES: Final = {profile.name: profile for profile in (FULL, CONTAINER)}
DEADLINE_S: Final = 60.0
SHORT_S: Final = 0.3  # for those that never end by themselves


def corpus(profile: Profile) -> list[Attack]:
    """The attacks that this profile stops."""
    return [attack for attack in CORPUS if Layer.ROOT in profile.layers or not attack.needs_namespaces]


def assault(cell: Cell, attack: Attack, world: World) -> str | None:
    """Run one attack; return how it escaped, or None."""
    within_s = SHORT_S if End.KILLED in attack.ends else DEADLINE_S
    try:
        outcome = cell.run(attack.task, world.facts, bounds=BOUNDS, within_s=within_s)
    except ProtocolError:
        return None if End.DIED in attack.ends else "the worker reports nonsense"
    if outcome.done is not None:
        end = End.NOTHING
        if outcome.done.error is None and (got := codec.decode(outcome.done.value or b"")):
            return f"got {got!r:.200}"
    else:
        end = End.KILLED if outcome.killed else End.DIED
    return None if end in attack.ends else f"{end.value} ({outcome.exited})"


def stands(cell: Cell, world: World, zygote: int) -> None:
    """The zygote is the same, canaries are untouched, a benign task answers."""
    assert cell.nursery.pid == zygote
    world.check()
    assert cell.run(lambda: sum(range(10))).value == 45
    assert cell.nursery._births == {}


def main(profile: str, folder: str) -> None:
    world = World(Path(folder))
    escapes: dict[str, str] = {}
    attacks = corpus(PROFILES[profile])
    try:
        with Cell(PROFILES[profile]) as cell:
            zygote = cell.nursery.pid
            if Layer.IDENTITY not in {state.layer for state in cell.states if state.engaged}:
                world.facts["most_threads"] = BOUNDS.processes + SHARED_PROCESSES
            for attack in attacks:
                if (escape := assault(cell, attack, world)) is not None:
                    escapes[attack.name] = escape
                stands(cell, world, zygote)
    finally:
        world.close()
    print(json.dumps({"attacks": len(attacks), "escapes": escapes}))


if __name__ == "__main__":
    main(*sys.argv[1:])
