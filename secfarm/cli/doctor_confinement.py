"""What `secfarm doctor` says of confinement: each layer, by engaging it, and whether it holds, by trying to escape.

And of the roles' own lists, by binding a process by them.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from secfarm.cli.doctor import Finding, Level
from secfarm.daemon.roles import DIALLING_GATE, GATE, KEEPER
from secfarm.errors import ExitStatus
from secfarm.run.control_groups import occupy
from secfarm.run.nursery import Nursery
from secfarm.run.probe import probe
from secfarm.run.profile import PROFILES, ConfinementError, LayerState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from secfarm.run.role import Role

_READY_S = 30.0


def confinement_findings(profile: str, *, serves: bool) -> Iterator[Finding]:
    """Yield what became of each layer of a profile on this machine, and of the lists of the server's roles.

    Args:
        serves: there is a server's configuration, so what is missing is a failure and no warning.
    """
    bad, status = (Level.FAIL, ExitStatus.MISSING) if serves else (Level.WARN, ExitStatus.OK)
    yield from _workers(profile, bad, status)
    yield from [_role(role, bad, status) for role in (GATE, DIALLING_GATE, KEEPER)]


def _workers(profile: str, bad: Level, status: ExitStatus) -> Iterator[Finding]:
    with contextlib.suppress(OSError):  # then the layer says that there is none
        occupy()
    start_s = time.monotonic()
    nursery = Nursery(PROFILES[profile])
    subject = "confinement"
    try:
        try:
            states = nursery.wait_ready(_READY_S)
        except ConfinementError as error:
            yield from [_layer(state, bad, status) for state in nursery.missed]
            if not any(state.required and not state.engaged for state in nursery.missed):
                yield Finding(bad, subject, str(error), "", status)
            return
        yield from [_layer(state, bad, status) for state in states]
        try:
            attempts = probe(nursery)
        except ConfinementError as error:
            yield Finding(bad, subject, str(error), "do not serve on this machine", status)
            return
        took_ms = (time.monotonic() - start_s) * 1e3
        text = f"profile {profile}; {len(attempts)} escapes were tried in vain; ready in {took_ms:.0f} ms"
        yield Finding(Level.OK, subject, text)
    finally:
        nursery.close()


def _role(role: Role, bad: Level, status: ExitStatus) -> Finding:
    try:
        bound = role.rehearse()
    except ConfinementError as error:
        return Finding(bad, "role", str(error), "", status)
    return Finding(Level.OK, "role", f"{role.name}: {bound}")


def _layer(state: LayerState, bad: Level, status: ExitStatus) -> Finding:
    text = f"{state.layer}: {state.why}"
    if state.engaged:
        return Finding(Level.WARN if state.remedy else Level.OK, "layer", text, state.remedy)
    if not state.required:
        return Finding(Level.OK, "layer", f"{state.layer}: not engaged, {state.why}")
    return Finding(bad, "layer", f"{state.layer}: missing, {state.why}", state.remedy, status)
