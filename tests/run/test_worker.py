"""What a worker process is, and what running a call in it means."""

from __future__ import annotations

import json
import os
import platform
import sys
import textwrap
from pathlib import Path

import pytest

from secfarm.errors import ValueTransferError
from secfarm.run.compiler import Prepared
from secfarm.run.pipe import Run
from secfarm.run.pool import WorkerPool
from secfarm.run.profile import Bounds
from secfarm.run.worker import Worker, _encoded, rehearse
from secfarm.task import codec
from secfarm.task.capture import capture
from secfarm.task.deftask import task_from_source
from secfarm.task.payload import ProgramText
from secfarm.task.program import (
    Function,
    FunctionKind,
    ImportRef,
    Namespace,
    Place,
    SourceProgram,
    decode_program,
    make_program,
)
from tests.run.team import named, pooled, run, submit, work_of

# --- the process --------------------------------------------------------------------------------------------------


def own_environment() -> dict[str, str]:
    with open("/proc/self/environ") as file:  # noqa: PTH123
        return {**os.environ, **({"file": file.read()} if file.read() else {})}


def own_descriptors() -> dict[str, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
        try:
            found[name] = os.readlink(f"/proc/self/fd/{name}")  # noqa: PTH115
        except FileNotFoundError:  # the one that listed
            continue
    return found


@pooled()
async def test_a_worker_has_no_environment(pool: WorkerPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECFARM_TEST", "leaks")
    environment = await run(pool.crew(), own_environment)
    # LC_CTYPE is set by CPython itself when it coerces the C locale (PEP 538).
    assert set(environment) <= {"LC_CTYPE"}


@pooled(2)
async def test_a_worker_holds_dev_null_two_pipes_and_its_own_statm(pool: WorkerPool, tmp_path: Path) -> None:
    """Whatever its parent has open, inheritable or not."""
    file = os.open(tmp_path, os.O_RDONLY)
    os.set_inheritable(file, True)
    try:
        held = await run(pool.crew(), own_descriptors)
    finally:
        os.close(file)
    assert [held.pop(number) for number in "012"] == ["/dev/null"] * 3
    assert len(held) == len(set(held.values())) == 3
    assert sorted(where.rpartition("/")[2].partition(":")[0] for where in held.values()) == ["pipe", "pipe", "statm"]


@pooled()
async def test_a_worker_is_isolated_from_the_users_python_and_directory(pool: WorkerPool) -> None:
    def facts() -> list[object]:
        flags = sys.flags
        return [flags.isolated, flags.no_user_site, os.getcwd(), os.getsid(0) == os.getpid(), "" in sys.path]  # noqa: PTH109

    assert await run(pool.crew(), facts) == [1, 1, "/", True, False]


@pooled()
async def test_a_worker_has_not_even_loaded_what_touches_keys_or_sockets(pool: WorkerPool) -> None:
    def loaded() -> list[str]:
        return sorted({name.partition(".")[0] for name in sys.modules})

    held = set(await run(pool.crew(), loaded))
    assert not held & {"nacl", "cryptography", "ssl", "socket", "asyncio", "_cffi_backend", "numpy"}


def test_what_a_worker_rehearses_succeeds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # calls replace both
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    with Path("/proc/self/statm").open("rb") as statm:
        done = rehearse(statm.fileno(), Bounds())
    assert [(one.error, codec.decode(one.value)) for one in done] == [(None, 1), (None, 1)]


@pooled()
async def test_no_core_dump_would_show_what_a_worker_held(pool: WorkerPool) -> None:
    def core() -> list[int]:
        import resource

        return list(resource.getrlimit(resource.RLIMIT_CORE))

    assert await run(pool.crew(), core) == [0, 0]


# --- one call -----------------------------------------------------------------------------------------------------


def count_up() -> int:
    global COUNTER  # noqa: PLW0603 - what is under test
    try:
        COUNTER += 1
    except NameError:
        COUNTER = 1
    return COUNTER


@pooled()
async def test_every_run_has_fresh_globals(pool: WorkerPool) -> None:
    """Also the items of one chunk of a map are runs of their own."""
    crew = pool.crew()
    assert [await run(crew, count_up) for _ in range(3)] == [1, 1, 1]
    captured = capture(count_up)
    one, future = work_of(captured.program, codec.encode_call(([()] * 4,), {}), None, spread=True)
    crew.submit(one)
    crew.pump()
    assert codec.decode((await future).value) == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("task", "remote_type"),
    [
        (lambda: sys.exit(3), "SystemExit"),
        (lambda: exit(), "SystemExit"),  # noqa: PLR1722
        (lambda: (_ for _ in ()).throw(KeyboardInterrupt), "KeyboardInterrupt"),
        (lambda: [].pop(), "IndexError"),
        (lambda: json.loads("{"), "json.decoder.JSONDecodeError"),
        (lambda: nowhere, "NameError"),  # noqa: F821
    ],
    ids=["SystemExit", "exit()", "KeyboardInterrupt", "IndexError", "JSONDecodeError", "NameError"],
)
@pooled()
async def test_whatever_a_call_raises_ends_the_call_and_not_the_worker(
    pool: WorkerPool, task: object, remote_type: str
) -> None:
    crew = pool.crew()
    before = await run(crew, os.getpid)
    done = await submit(crew, task)
    assert (done.error.code, done.error.remote_type) == ("raised", remote_type)
    assert await run(crew, os.getpid) == before


@pooled()
async def test_what_a_call_prints_is_captured_for_it_alone(pool: WorkerPool) -> None:
    crew = pool.crew()
    first = await submit(crew, lambda: print("to stdout") or sys.stderr.write("to stderr\n"))
    second = await submit(crew, abs, -1)
    assert (first.output, second.output) == ("to stdout\nto stderr\n", "")


@pooled()
async def test_output_is_kept_up_to_its_limit_and_the_rest_is_counted(pool: WorkerPool) -> None:
    crew = pool.crew()
    done = await submit(crew, lambda: print("x" * 1000, end=""), output_bytes=10)
    assert done.output == "x" * 10 + "\n[990 more characters were printed and dropped]"
    done = await submit(crew, lambda: [print("y" * 10**6) for _ in range(200)] and None, output_bytes=1000)
    assert done.error is None
    assert len(done.output) < 1100


@pooled()
async def test_output_that_is_no_text_of_messages_still_arrives(pool: WorkerPool) -> None:
    done = await submit(pool.crew(), lambda: print("a\udc80b\0\x1b"))
    assert done.output == "a?b\0\x1b\n"


@pooled()
async def test_an_error_text_as_large_as_a_task_likes_is_cut(pool: WorkerPool) -> None:
    crew = pool.crew()
    pid = await run(crew, os.getpid)

    def shout() -> None:
        raise type("E" * 1_000_000, (Exception,), {})("x" * 10_000_000)

    done = await submit(crew, shout)
    assert done.error.code == "raised"
    assert len(done.error.report) + len(done.error.description) + len(done.error.remote_type) < 100_000
    assert await run(crew, os.getpid) == pid


@pooled()
async def test_a_value_that_cannot_travel_is_a_typed_error(pool: WorkerPool) -> None:
    done = await submit(pool.crew(), lambda: sys)
    assert done.error.code == "value"


@pooled()
async def test_generators_and_coroutines_give_what_they_come_to(pool: WorkerPool) -> None:
    def squares(count: int) -> object:
        for number in range(count):
            yield number * number

    async def later() -> int:
        import asyncio

        await asyncio.sleep(0)
        return 7

    crew = pool.crew()
    assert await run(crew, squares, 4) == [0, 1, 4, 9]
    assert await run(crew, later) == 7


# --- programs -----------------------------------------------------------------------------------------------------


def importing(module: str) -> object:
    function = Function(FunctionKind.LAMBDA, "<lambda>", "lambda: thing", 0)
    namespace = Namespace("__main__", (("thing", ImportRef(module)),))
    return make_program(SourceProgram("<lambda>", (function,), (namespace,)), (Place("f.py", 1),))


@pooled()
async def test_missing_modules_are_named_each_time_and_no_code_of_the_user_runs(pool: WorkerPool) -> None:
    """The second call finds the program as unusable as the first; its text came only once."""
    crew = pool.crew()
    program = importing("no_such_module_anywhere")
    for _ in range(2):
        one, future = work_of(program, codec.encode_call((), {}), None)
        crew.submit(one)
        crew.pump()
        error = (await future).error
        assert (error.code, error.modules) == ("missing-modules", ("no_such_module_anywhere",))


def leaves_a_mark(path: str = "/nowhere") -> None:
    raise AssertionError("called")


@pooled()
async def test_a_dry_run_is_everything_but_the_call(pool: WorkerPool) -> None:
    crew = pool.crew()
    for task in (leaves_a_mark, "os:abort"):
        captured = capture(task)
        report = await run(crew, task, dry_run=True)
        assert report == {"digest": captured.program.digest, "python_version": platform.python_version()}
    for task, code in (
        (lambda: __import__, "ok"),
        ("os:no_such_name", "raised"),
        (task_from_source("def f():\n    import no_such_module_anywhere"), "missing-modules"),
    ):
        done = await submit(crew, task, dry_run=True)
        assert (done.error.code if done.error else "ok") == code


@pooled()
async def test_a_dry_run_reads_arguments_and_values_too(pool: WorkerPool) -> None:
    program = capture(task_from_source("def f(): pass")).program
    for arguments, values in ((b"\xc1", None), (codec.encode_call((), {}), codec.encode([1]))):
        one, future = work_of(program, arguments, values, dry_run=True)
        crew = pool.crew()
        crew.submit(one)
        crew.pump()
        done = await future
        assert done.error is not None
        assert done.error.code == "protocol"


@pooled()
async def test_a_text_of_a_newer_python_is_told_by_version(pool: WorkerPool) -> None:
    program = capture(task_from_source("def f(): pass")).program
    text = ProgramText(program.text.replace(b"pass", b"p??s"), program.origin.replace(b"\xa43.1", b"\xa43.9"))
    one, future = work_of(decode_program(text), codec.encode_call((), {}), None)
    crew = pool.crew()
    crew.submit(one)
    crew.pump()
    error = (await future).error
    assert error is not None
    assert (error.code, error.remote_type) == ("python-version", "SyntaxError")
    assert error.report.startswith("written for Python 3.9")
    assert error.python_version == platform.python_version()


@pooled()
async def test_source_that_does_not_compile_here_is_the_tasks_error(pool: WorkerPool) -> None:
    recorded = task_from_source("def twice(x): return 2 * x")
    program = capture(recorded).program
    text = program.text.replace(b"2 * x", b"2 * )")
    wire = type(program.wire)(text, program.origin)
    from secfarm.task.program import decode_program

    broken = decode_program(wire)
    crew = pool.crew()
    for _ in range(2):
        one, future = work_of(broken, codec.encode_call((1,), {}), None)
        crew.submit(one)
        crew.pump()
        error = (await future).error
        assert (error.code, error.remote_type) == ("raised", "SyntaxError")
    assert await run(crew, abs, -1) == 1


@pytest.mark.parametrize(
    ("name", "remote_type"),
    [
        ("json:nowhere", "AttributeError"),
        ("no_such_module_anywhere:f", "ModuleNotFoundError"),
        ("json:decoder.scanner.re.compile", "AttributeError"),
        ("json:codecs.open", "AttributeError"),
        ("os.path.os.system", "AttributeError"),
        ("math:pi", "TypeError"),
    ],
)
@pooled()
async def test_a_name_leads_to_a_function_of_its_module_or_nowhere(
    pool: WorkerPool, name: str, remote_type: str
) -> None:
    crew = pool.crew()
    for _ in range(2):
        one, future = named(name, "x")
        crew.submit(one)
        crew.pump()
        assert (await future).error.remote_type == remote_type


def test_a_program_is_compiled_once_however_often_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its key: a second session's workers are other processes, so this is all the sharing there is."""
    made: list[str] = []

    class Counted(Prepared):
        def __init__(self, program: object) -> None:
            made.append(program.name)
            super().__init__(program)

    monkeypatch.setattr("secfarm.run.worker.Prepared", Counted)
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    program = capture(lambda x: x + 1).program
    worker = Worker(lambda _: None, -1, Bounds())
    for number in range(5):
        text = program.wire if number == 0 else None
        done = worker.run(Run(number, program.key, codec.encode_call((number,), {}), None, text))
        assert codec.decode(done.value) == number + 1
    assert made == ["<lambda>"]


@pooled()
async def test_the_traceback_shows_the_clients_file_and_line_and_no_frame_of_ours(
    pool: WorkerPool, tmp_path: Path
) -> None:
    file = tmp_path / "job.py"
    file.write_text(
        textwrap.dedent("""\
        def divide(a, b):
            return a / b
        """)
    )
    sys.path.insert(0, str(tmp_path))
    try:
        import job
    finally:
        sys.path.remove(str(tmp_path))
        sys.modules.pop("job", None)
    done = await submit(pool.crew(), job.divide, 1, 0)
    assert f'File "{file}", line 2, in divide' in done.error.description
    assert "    return a / b\n" in done.error.description
    assert "secfarm" not in done.error.description.replace(str(tmp_path), "")
    assert done.error.report == "ZeroDivisionError: division by zero"


def test_a_result_that_is_too_large_is_told_instead_of_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server would take such a report for an attack and end the worker."""
    monkeypatch.setattr("secfarm.run.worker.MAX_VALUE_BYTES", 1000)
    with pytest.raises(ValueTransferError, match="cannot come back: result has 1004 bytes, at most 1000"):
        _encoded("x" * 1001)
    assert codec.decode(_encoded("x" * 900)) == "x" * 900
