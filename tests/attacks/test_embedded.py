"""Promise P5 holds for every server, those too that live with their client."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.attacks.embedded import ATTACKS, WAYS, Embedded
from tests.attacks.hostile import Attack
from tests.attacks.test_confinement import as_root
from tests.run.nobody import public_folder, run_as_nobody, skip_without_user_namespaces


@pytest.fixture(scope="module", params=WAYS)
def embedded(request: pytest.FixtureRequest) -> Iterator[Embedded]:
    with public_folder() as folder, Embedded(request.param, folder) as embedded:
        yield embedded


@as_root
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_no_hostile_task_escapes(embedded: Embedded, attack: Attack) -> None:
    assert embedded.assault(attack) is None
    embedded.stands()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("way", WAYS)
def test_no_hostile_task_escapes_from_an_ordinary_users_server(way: str) -> None:
    skip_without_user_namespaces()
    script = "import sys; from tests.attacks.embedded import main; main(*sys.argv[1:])"
    with public_folder(of_nobody=True) as folder:
        done = run_as_nobody(script, way, str(folder), timeout_s=100)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"attacks": len(ATTACKS), "escapes": {}}
