"""Promise P5, at the bare zygote: none of the hostile tasks escapes, in any profile, and the zygote is unharmed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import pytest

from tests.attacks.hostile import CORPUS, Attack, named
from tests.attacks.siege import PROFILES, assault, stands
from tests.attacks.world import World
from tests.run.cell import Cell
from tests.run.nobody import public_folder, run_as_nobody, skip_without_user_namespaces

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="what root's server can do is tried by root")


@pytest.fixture(scope="module", params=PROFILES)
def besieged(request: pytest.FixtureRequest) -> Iterator[tuple[Cell, World]]:
    with public_folder() as folder:
        world = World(folder)
        try:
            with Cell(PROFILES[request.param]) as cell:
                yield cell, world
        finally:
            world.close()


@as_root
@pytest.mark.parametrize("attack", CORPUS, ids=lambda attack: attack.name)
def test_no_hostile_task_escapes_from_roots_server(besieged: tuple[Cell, World], attack: Attack) -> None:
    cell, world = besieged
    if attack.needs_namespaces and cell.nursery.profile.name == "container":
        pytest.skip("Landlock does not hide that a file is there, nor the host's name")
    zygote = cell.nursery.pid
    assert assault(cell, attack, world) is None
    stands(cell, world, zygote)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("profile", PROFILES)
def test_no_hostile_task_escapes_from_an_ordinary_users_server(profile: str) -> None:
    if profile == "full":
        skip_without_user_namespaces()
    script = "import sys; from tests.attacks.siege import main; main(*sys.argv[1:])"
    with public_folder(of_nobody=True) as folder:
        done = run_as_nobody(script, profile, str(folder), timeout_s=220)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["escapes"] == {}
    assert told["attacks"] >= 85


def test_the_corpus_has_a_task_for_every_kind_of_promise() -> None:
    names = [attack.name for attack in CORPUS]
    assert len(names) == len(set(names)) >= 64
    assert named("forks").task.__name__ == "forks"
