"""The house as a table: which room may import which, and what must occur in one place or nowhere.

The table is that of docs/concepts.md, "Rooms". Every check reads the syntax tree, so an import inside a function
counts like one at the top.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parent.parent
PACKAGE: Final = ROOT / "secfarm"
MAX_MODULE_LINES: Final = 500
MAX_FUNCTION_LINES: Final = 70

# Each line may import the lines below it, and its own room; rooms of one line do not import each other.
LEVELS: Final = (
    ("__init__", "__main__"),
    ("cli", "aio", "joblib_backend"),
    ("farm", "daemon"),
    ("carrier", "net", "disk", "run"),
    ("wire",),
    ("auth",),
    ("trust",),
    ("task", "sign"),
    ("errors", "limits"),
)
LEVEL_OF: Final = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
PURE_ROOMS: Final = frozenset({"task", "sign", "trust", "auth", "wire"})

# Clock, randomness, sockets, files and processes are passed in to the pure rooms.
IMPURE: Final = frozenset(
    {"asyncio", "glob", "multiprocessing", "random", "secrets", "select", "selectors", "shutil", "signal", "socket"}
    | {"sqlite3", "ssl", "subprocess", "tempfile", "time", "urllib"}
)
CLOCK_RANDOMNESS_FILES: Final = frozenset({"open", "os.open", "os.urandom", "datetime.now", "datetime.datetime.now"})
# Pure rooms still meet a file in one place: the client's own source text, read when a function is captured.
READS_SOURCE: Final = frozenset({"task/source.py"})

NOWHERE: Final = frozenset({"pickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "copyreg", "xmlrpc"})
# What reads keys, opens ciphers and talks to terminals, and the rooms that do.
ONLY_IN: Final = {
    "nacl": frozenset({"sign"}),
    "cryptography": frozenset({"disk", "net"}),
    "ssl": frozenset({"net"}),
    "click": frozenset({"cli"}),
}
RUN_IN_WORKER: Final = frozenset({"worker", "compiler", "exceeded", "fellow", "output", "pipe", "preflight"})
# A zygote becomes the workers that it forks.
RUN_IN_ZYGOTE: Final = RUN_IN_WORKER | frozenset(
    {"zygote", "birth", "control_groups", "role", "lists", "profile", "confine", "view"}
    | {"landlock", "seccomp", "calls", "syscalls", "libc"}
)
WORKER: Final = frozenset({"errors.py", "limits.py", "run/escapes.py", *(f"run/{name}.py" for name in RUN_IN_ZYGOTE)})
NOT_IN_WORKER: Final = frozenset({"nacl", "cryptography", "asyncio", "ssl", "socket", "cffi"})


def modules() -> dict[str, ast.Module]:
    """Path below secfarm/ -> syntax tree."""
    found = sorted(PACKAGE.rglob("*.py"))
    return {path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text("utf-8"), str(path)) for path in found}


MODULES: Final = modules()
every_module: Final = pytest.mark.parametrize("path", MODULES)


def room_of(path: str) -> str:
    """`task/source.py` -> `task`; `errors.py` -> `errors`."""
    return path.split("/", maxsplit=1)[0].removesuffix(".py")


def is_worker(path: str) -> bool:
    """Return whether worker processes import this module."""
    return path in WORKER or (room_of(path) == "task" and path != "task/source.py")


def imports(path: str, *, lazy: bool = True) -> Iterator[tuple[str, int]]:
    """Yield every module that `path` imports, as `a.b.c`, with its line; without `lazy` only those at its top."""
    tree = MODULES[path]
    for node in ast.walk(tree) if lazy else tree.body:
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def breaches(path: str, banned: frozenset[str], *, lazy: bool = True) -> list[str]:
    return [f"{path}:{line} {name}" for name, line in imports(path, lazy=lazy) if name.split(".")[0] in banned]


def test_there_is_something_to_check() -> None:
    assert len(MODULES) > 20
    assert {room_of(path) for path in MODULES} <= LEVEL_OF.keys()


@every_module
def test_arrows_point_down(path: str) -> None:
    """A module imports its own room and the lines below it; farm does not know run."""
    room = room_of(path)
    wrong = []
    for name, line in imports(path):
        parts = name.split(".")
        if parts[0] != "secfarm":
            continue
        # `from secfarm import X` is the surface, which no room may lean on.
        target = parts[1] if len(parts) > 1 and parts[1] in LEVEL_OF else "__init__"
        below = LEVEL_OF[target] > LEVEL_OF[room] and (room, target) != ("farm", "run")
        if not (below or target == room):
            wrong.append(f"{path}:{line} imports {name}")
    assert wrong == []


@every_module
def test_pure_rooms_get_clock_randomness_and_io_passed_in(path: str) -> None:
    if room_of(path) in PURE_ROOMS:
        assert breaches(path, IMPURE) == []
        opened = [
            f"{path}:{node.lineno} {ast.unparse(node.func)}"
            for node in ast.walk(MODULES[path])
            if isinstance(node, ast.Call) and ast.unparse(node.func) in CLOCK_RANDOMNESS_FILES
        ]
        assert path in READS_SOURCE or opened == []


@every_module
def test_no_import_of_what_turns_bytes_into_objects_of_any_kind(path: str) -> None:
    assert breaches(path, NOWHERE) == []


@every_module
def test_keys_ciphers_and_terminals_have_their_rooms(path: str) -> None:
    banned = frozenset(name for name, rooms in ONLY_IN.items() if room_of(path) not in rooms)
    assert breaches(path, banned) == []


@every_module
def test_compile_occurs_once_and_exec_and_eval_nowhere(path: str) -> None:
    """Neither called nor handed on, by name or through `builtins`; asking `compile` for a mere tree is parsing."""
    calls = [node for node in ast.walk(MODULES[path]) if isinstance(node, ast.Call)]
    flags = [
        (call, [*call.args[3:4], *(word.value for word in call.keywords if word.arg == "flags")]) for call in calls
    ]
    parsing = {id(call.func) for call, given in flags if any("PyCF_ONLY_AST" in ast.unparse(flag) for flag in given)}
    found = [name for name, _ in imports(path) if name.startswith("builtins.")]
    for node in ast.walk(MODULES[path]):
        through_builtins = isinstance(node, ast.Attribute) and ast.unparse(node.value) in {"builtins", "__builtins__"}
        name = node.id if isinstance(node, ast.Name) else node.attr if through_builtins else ""
        if name in {"exec", "eval", "compile", "__import__"} and id(node) not in parsing:
            found.append(name)
    assert found == (["compile"] if path == "task/template.py" else [])


@every_module
def test_no_check_is_an_assert_or_hides_in_a_bare_except(path: str) -> None:
    """`python -O` removes asserts; a bare except believes what it did not understand."""
    wrong = [
        f"{path}:{node.lineno}"
        for node in ast.walk(MODULES[path])
        if isinstance(node, ast.Assert) or (isinstance(node, ast.ExceptHandler) and node.type is None)
    ]
    assert wrong == []


@every_module
def test_modules_and_functions_fit_a_sitting(path: str) -> None:
    assert len((PACKAGE / path).read_text("utf-8").splitlines()) <= MAX_MODULE_LINES
    long = [
        f"{path}:{node.lineno} {node.name}"
        for node in ast.walk(MODULES[path])
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno + 1 > MAX_FUNCTION_LINES
    ]
    assert long == []


@every_module
def test_worker_modules_know_no_key_cipher_or_event_loop(path: str) -> None:
    """Not even lazily, but for asyncio, which runs a coroutine function that is the task."""
    if is_worker(path):
        assert breaches(path, NOT_IN_WORKER, lazy=False) == []
        assert breaches(path, NOT_IN_WORKER - {"asyncio"}) == []
        rooms = {name.split(".")[1] for name, _ in imports(path) if name.startswith("secfarm.")}
        assert rooms <= {"errors", "limits", "task", "run"}


@pytest.mark.parametrize(("main", "own"), [("worker", RUN_IN_WORKER), ("zygote", RUN_IN_ZYGOTE)])
def test_a_worker_process_holds_no_key_cipher_or_event_loop(main: str, own: frozenset[str]) -> None:
    """The same, asked of a real process started as workers and zygotes are."""
    code = f"import sys, secfarm.run.{main}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, env={}, check=True)
    loaded = set(done.stdout.split())
    assert f"secfarm.run.{main}" in loaded
    assert not NOT_IN_WORKER & loaded
    ours = {name.split(".")[1] for name in loaded if name.startswith("secfarm.")}
    assert ours <= {"errors", "limits", "task", "run"}
    assert {name.split(".")[2] for name in loaded if name.startswith("secfarm.run.")} <= own
