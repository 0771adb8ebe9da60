"""The sandbox is tested: with a layer an attack fails, without it that very attack succeeds, or nothing starts."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from secfarm.run import landlock, libc
from secfarm.run.probe import probe
from secfarm.run.profile import (
    CONTAINER,
    FULL,
    ConfinementError,
    Layer,
    LayerState,
    Openings,
    Profile,
    check_layers,
)
from secfarm.run.view import host_view
from tests.attacks.hostile import named
from tests.attacks.siege import assault
from tests.attacks.world import World
from tests.run.cell import Cell
from tests.run.nobody import public_folder, run_as_nobody, skip_without_user_namespaces

ROOT: Final = "root"
USER: Final = "nobody"


@dataclass(frozen=True, slots=True)
class Removal:
    """An attack that `layer` stops where the layers in `also` are gone too, because they would stop it as well."""

    layer: Layer
    attack: str
    user: str = ROOT
    profile: Profile = FULL
    also: tuple[Layer, ...] = ()


REMOVALS: Final = (
    Removal(Layer.PID, "kills", USER, also=(Layer.SECCOMP, Layer.LANDLOCK)),
    Removal(Layer.ROOT, "learns_of_a_file_outside", also=(Layer.SCRATCH,)),
    Removal(Layer.NET, "sends_a_datagram", also=(Layer.SECCOMP,)),
    Removal(Layer.IPC, "looks_into_shared_memory", also=(Layer.SECCOMP,)),
    Removal(Layer.UTS, "learns_the_name_of_the_machine"),
    Removal(Layer.UTS, "learns_the_name_of_the_machine", USER),
    Removal(Layer.CGROUP, "learns_its_cgroup", also=(Layer.ROOT, Layer.LANDLOCK, Layer.SCRATCH)),
    Removal(Layer.DESCRIPTORS, "finds_inherited_descriptors"),
    Removal(Layer.DESCRIPTORS, "finds_inherited_descriptors", USER, CONTAINER),
    Removal(Layer.RLIMITS, "memory_bomb"),
    Removal(Layer.RLIMITS, "descriptor_bomb", USER),
    Removal(Layer.IDENTITY, "thread_bomb"),
    Removal(Layer.IDENTITY, "thread_bomb", USER),
    Removal(Layer.CAPABILITIES, "holds_capabilities", USER),
    Removal(Layer.WRITE_XOR_EXECUTE, "runs_machine_code"),
    Removal(Layer.WRITE_XOR_EXECUTE, "makes_memory_executable", USER, CONTAINER),
    Removal(Layer.LANDLOCK, "plants_a_link_or_a_pipe"),
    Removal(Layer.LANDLOCK, "reads_a_file_by_path", USER, CONTAINER),
    Removal(Layer.SECCOMP, "forks"),
    Removal(Layer.SECCOMP, "enters_namespaces", USER),
    Removal(Layer.SECCOMP, "sends_a_datagram", USER, CONTAINER),
)
# Without these nothing starts, or nothing can be written: there is no state in between.
CLOSED: Final = {Layer.USER, Layer.SCRATCH, Layer.NO_NEW_PRIVS}
# These protect against others than the task, or a nursery alone does not have them; each has a test of its own: below,
# in test_zygote.py or in daemon/test_control_groups.py.
OTHERS: Final = {Layer.DEATH, Layer.DUMPABLE, Layer.GROUP}

AS_USER: Final = """
import json, sys
from pathlib import Path
from secfarm.run.profile import *
from tests.run.test_confine import escape
print(json.dumps([escape(name, CONTAINER if "container" in profile else FULL, [Layer(one) for one in gone], folder)
                  for name, profile, gone, folder in json.loads(sys.argv[1])]))
"""


def escape(name: str, profile: Profile, gone: list[Layer], folder: str) -> str | None:
    """How that attack gets out of the profile without these layers."""
    path = Path(folder, "world")
    path.mkdir()
    world = World(path)
    try:
        with Cell(profile.without(*gone)) as cell:
            return assault(cell, named(name), world)
    finally:
        world.close()


def escapes(removal: Removal) -> list[str | None]:
    """How the attack gets out with the layer, and without it."""
    found: list[str | None] = []
    for gone in (removal.also, (*removal.also, removal.layer)):
        with public_folder(of_nobody=removal.user == USER) as folder:
            if removal.user == ROOT:
                found.append(escape(removal.attack, removal.profile, [*gone], str(folder)))
                continue
            work = [(removal.attack, removal.profile.name, [*gone], str(folder))]
            done = run_as_nobody(AS_USER, json.dumps(work))
            assert done.returncode == 0, done.stderr
            found += json.loads(done.stdout)
    return found


@pytest.mark.parametrize("removal", REMOVALS, ids=lambda one: f"{one.profile.name}-{one.user}-{one.layer}-{one.attack}")
def test_without_the_layer_the_attack_succeeds(removal: Removal) -> None:
    if removal.user == ROOT and os.geteuid() != 0:
        pytest.skip("what root's server can do is tried by root")
    if removal.user == USER and removal.profile is FULL:
        skip_without_user_namespaces()
    if removal.layer is Layer.CGROUP and all(
        line.endswith(":/") for line in Path("/proc/self/cgroup").read_text().split()
    ):
        pytest.skip("this process is in the root of all cgroups: there is nothing to hide")
    with_it, without_it = escapes(removal)
    assert with_it is None
    assert without_it is not None


def test_every_layer_has_its_attack() -> None:
    assert {removal.layer for removal in REMOVALS} | CLOSED | OTHERS == {*Layer}


# --- layers without which nothing starts ------------------------------------------------------------------------------
def test_a_worker_has_no_new_privileges_from_its_zygote_too() -> None:
    with Cell(CONTAINER.without(Layer.NO_NEW_PRIVS)) as cell:
        assert {attempt.name: attempt.got for attempt in probe(cell.nursery)}["gain privileges"] is None


def test_without_a_user_namespace_an_ordinary_user_is_told_what_is_missing() -> None:
    skip_without_user_namespaces()
    script = (
        "from secfarm.run.profile import *\nfrom tests.run.cell import Cell\n"
        "try:\n    Cell(FULL.without(Layer.USER))\nexcept ConfinementError as error:\n    print(error)"
    )
    told = run_as_nobody(script).stdout
    assert "process namespaces: Operation not permitted (unshare)" in told
    assert "kernel.apparmor_restrict_unprivileged_userns" in told
    assert "nothing is served" in told


@pytest.fixture(scope="module")
def cell() -> Iterator[Cell]:
    if os.geteuid() != 0:
        skip_without_user_namespaces()
    with Cell(FULL) as one:
        yield one


def test_without_a_scratch_nothing_can_be_written() -> None:
    if os.geteuid() != 0:
        skip_without_user_namespaces()
    with Cell(FULL.without(Layer.SCRATCH)) as without:
        assert without.run(writes).done.error.remote_type in {"PermissionError", "FileNotFoundError"}


def writes() -> str:
    import tempfile

    with tempfile.NamedTemporaryFile("w") as file:
        file.write("x")
        return file.name


# --- a worker that behaves -------------------------------------------------------------------------------------------
def test_a_worker_has_a_scratch_of_its_own(cell: Cell) -> None:
    assert str(cell.run(writes).value).startswith(host_view(Openings()).scratch)


def test_threads_coroutines_and_libraries_work(cell: Cell) -> None:
    def much() -> list[object]:
        import asyncio
        import concurrent.futures
        import ctypes
        import decimal
        import hashlib
        import json
        import sqlite3
        import zlib

        async def later() -> int:
            await asyncio.sleep(0)
            return await asyncio.to_thread(lambda: 2)

        with concurrent.futures.ThreadPoolExecutor(4) as threads:
            squares = list(threads.map(lambda x: x * x, range(4)))
        base = sqlite3.connect("base.db")
        base.execute("create table one (x)")
        base.execute("insert into one values (3)")
        base.commit()
        return [
            squares,
            asyncio.run(later()),
            base.execute("select x from one").fetchall()[0][0],
            str(decimal.Decimal(1) / 3)[:4],
            hashlib.sha256(b"").hexdigest()[:4],
            json.loads("[4]"),
            len(zlib.compress(bytes(1000))) < 100,
            ctypes.sizeof(ctypes.c_int),
        ]

    assert cell.run(much).value == [[0, 1, 4, 9], 2, 3, "0.33", "e3b0", [4], True, 4]


def test_numpy_works_and_every_worker_has_random_numbers_of_its_own() -> None:
    if os.geteuid() != 0:
        skip_without_user_namespaces()

    def numbers() -> tuple[float, float]:
        import numpy as np

        return float(np.linalg.det(np.eye(3))), float(np.random.random())  # noqa: NPY002 the one with a global seed

    with Cell(FULL, Openings(numpy=True)) as one:
        (first, dice), (second, other_dice) = one.run(numbers).value, one.run(numbers).value
    assert first == second == 1.0
    assert dice != other_dice


@pytest.fixture
def public() -> Iterator[Path]:
    with public_folder() as folder:
        yield folder


def test_openings_let_out_what_they_say_and_no_more(public: Path) -> None:
    if os.geteuid() != 0:
        skip_without_user_namespaces()
    (open_file := public / "open").write_text("read me")
    (closed_file := public / "closed").write_text("not me")

    def look(open_path: str, closed_path: str, port: int) -> list[object]:
        import socket
        import subprocess

        socket.create_connection(("127.0.0.1", port), 5).close()
        told = subprocess.run(["/bin/sh", "-c", "echo told"], capture_output=True, text=True, check=True).stdout
        with open(open_path) as file:  # noqa: PTH123
            text = file.read()
        try:
            open(closed_path)  # noqa: PTH123, SIM115
        except OSError as error:
            return [told, text, type(error).__name__]
        return [told, text, "read"]

    import socket

    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        Cell(FULL, Openings(read=(str(open_file),), network=True, subprocesses=True, generated_code=True)) as one,
    ):
        told = one.run(look, str(open_file), str(closed_file), server.getsockname()[1]).value
        assert told == ["told\n", "read me", "FileNotFoundError"]
        probe(one.nursery)


def test_a_path_that_is_to_be_opened_and_is_not_there_is_an_error() -> None:
    with pytest.raises(ConfinementError, match="'/no/such/place'"):
        Cell(FULL, Openings(read=("/no/such/place",)))


# --- asking beforehand -----------------------------------------------------------------------------------------------
def test_a_missing_layer_is_named_with_its_remedy() -> None:
    states = [
        LayerState(Layer.LANDLOCK, engaged=False, required=True, why="Not implemented", remedy="Use Linux 6.2"),
        LayerState(Layer.CGROUP, engaged=False, required=False, why="none"),
    ]
    with pytest.raises(ConfinementError, match=r"full .*landlock: Not implemented.*nothing is served.*6\.2$"):
        check_layers(FULL, states)
    assert check_layers(FULL, states[1:]) == states[1:]


def test_the_probe_is_stopped_by_a_whole_profile_and_not_by_one_with_a_hole(cell: Cell) -> None:
    attempts = probe(cell.nursery)
    assert len(attempts) == 15
    assert all(one.got is None for one in attempts)
    with (
        Cell(FULL.without(Layer.WRITE_XOR_EXECUTE)) as holed,
        pytest.raises(ConfinementError, match=r"make memory for code .*, against write xor execute; nothing is served"),
    ):
        probe(holed.nursery)


def test_the_kernel_is_asked_for_its_landlock() -> None:
    try:
        version = landlock.abi()
    except OSError:
        pytest.skip("no Landlock here")
    assert version >= 1


def test_a_probe_that_has_no_place_for_its_canary_says_so(cell: Cell, tmp_path: Path) -> None:
    with pytest.raises(ConfinementError, match="the probe finds no place for a file"):
        probe(cell.nursery, tmp_path / "nowhere")


def test_a_call_that_fails_names_itself() -> None:
    with pytest.raises(OSError, match="mount_setattr") as caught:
        libc.restrict_mount("/no/such/place", libc.MOUNT_ATTR_RDONLY, recursive=False)
    assert caught.value.errno in {1, 2}


def test_no_key_may_lie_where_workers_read(tmp_path: Path) -> None:
    view = host_view(Openings(read=(str(tmp_path),)))
    assert view.covers(str(tmp_path / "server_ed25519")) == str(tmp_path)
    assert host_view(Openings()).covers(str(tmp_path / "server_ed25519")) is None
