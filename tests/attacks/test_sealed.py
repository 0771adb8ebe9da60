"""Promise P5, at a real server: no hostile task escapes `secfarm serve`, and nobody else notices that it tried."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from secfarm import ResourceExceededError
from tests.attacks.hostile import CORPUS, Attack
from tests.attacks.onslaught import Onslaught
from tests.attacks.siege import DEADLINE_S, PROFILES
from tests.attacks.test_confinement import as_root
from tests.attacks.world import BOUNDS
from tests.run.nobody import public_folder, run_as_nobody, skip_without_user_namespaces


@pytest.fixture(scope="module", params=[(profile, "task") for profile in PROFILES] + [("full", "session")])
def attacked(request: pytest.FixtureRequest) -> Iterator[Onslaught]:
    with public_folder() as folder, Onslaught(request.param[0], folder, request.param[1]) as onslaught:
        yield onslaught


@as_root
@pytest.mark.parametrize("attack", CORPUS, ids=lambda attack: attack.name)
def test_no_hostile_task_escapes(attacked: Onslaught, attack: Attack) -> None:
    if attack.needs_namespaces and attacked.profile.name == "container":
        pytest.skip("Landlock does not hide that a file is there, nor the host's name")
    if attack.name == "finds_traces" and attacked.isolation == "session":
        pytest.skip("a session's tasks share their worker, and what they leave in it")
    before = len(attacked.site.audit)
    assert attacked.assault(attack) is None
    attacked.stands()
    records = attacked.site.audit[before:]
    accepted = [record["principal"] for record in records if record["event"] == "accepted"]
    assert accepted == ["ada", "bob"]
    assert {record["event"] for record in records} <= {"accepted", "finished"}


@as_root
def test_arguments_that_do_not_fit_into_memory_are_a_typed_error(attacked: Onslaught) -> None:
    with pytest.raises(ResourceExceededError, match="the arguments of the task need more memory") as caught:
        attacked.ada.submit(lambda data: len(data), bytes(BOUNDS.memory_bytes + (24 << 20))).result(DEADLINE_S)
    assert caught.value.kind == "memory"
    attacked.stands()


@pytest.mark.timeout(240)
@pytest.mark.parametrize("profile", PROFILES)
def test_no_hostile_task_escapes_from_an_ordinary_users_server(profile: str) -> None:
    if profile == "full":
        skip_without_user_namespaces()
    script = "import sys; from tests.attacks.onslaught import main; main(*sys.argv[1:])"
    with public_folder(of_nobody=True) as folder:
        done = run_as_nobody(script, profile, str(folder), timeout_s=220)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["escapes"] == {}
    assert told["attacks"] >= 85
