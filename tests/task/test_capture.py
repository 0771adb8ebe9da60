"""Whatever travels computes on a server what it computes here; whatever cannot is refused by name."""

from __future__ import annotations

import ast
import builtins
import datetime as dt
import decimal
import functools
import gc
import io
import linecache
import math
import operator
import os.path
import random
import re
import subprocess
import sys
import textwrap
import timeit
import weakref
import xml.dom.minidom
from collections import Counter
from pathlib import Path
from types import CodeType, FunctionType, SimpleNamespace
from typing import Any

import pytest
from _pytest.assertion.rewrite import rewrite_asserts

from secfarm.errors import InvalidTaskError, ValueTransferError
from secfarm.task import codec, source
from secfarm.task.capture import capture, refuse_values
from secfarm.task.deftask import Task, task_from_source
from secfarm.task.program import ProgramKind
from secfarm.task.template import compile_function
from tests.task.programs import finish, load, prepare, remote

HEADER = "from secfarm.task.deftask import Task as deftask\n"

CASES = Path(__file__).parent


def read_cases(name: str) -> dict[str, tuple[str, tuple[object, ...]]]:
    """Return the cases of a file: for each name a module text that defines `task`, and the tuple beside the name."""
    cases: dict[str, tuple[str, tuple[object, ...]]] = {}
    for case in re.split("^=== ", (CASES / name).read_bytes().decode(), flags=re.MULTILINE)[1:]:
        header, _, text = case.partition("\n")
        title, literal, *since = header.split(" | ")
        if not since or sys.version_info >= tuple(map(int, since[0].split("."))):
            cases[title] = (text.rstrip("\n"), ast.literal_eval(literal))
    return cases


TRAVELS = read_cases("travels.txt")  # with the arguments of one call
REFUSED = read_cases("refused.txt")  # with what the refusal has to say


@pytest.mark.parametrize("name", TRAVELS)
def test_a_task_computes_there_what_it_computes_here(name: str, tmp_path: Path) -> None:
    text, args = TRAVELS[name]
    there = remote(load(tmp_path, HEADER + text, "same").task, *args)
    module = load(tmp_path, HEADER + text, "same")
    assert repr(there) == repr(finish(module.task(*args)))


@pytest.mark.parametrize("ending", ["\r\n", "\r"])
@pytest.mark.parametrize("name", ["match", "string at the margin", "lambda over lines", "comments and blank lines"])
def test_line_ends_do_not_matter(name: str, ending: str, tmp_path: Path) -> None:
    text, args = TRAVELS[name]
    module = load(tmp_path, (HEADER + text).replace("\n", ending).encode())
    assert remote(module.task, *args) == module.task(*args)


def encode(task: object) -> None:
    """Do with a task what a submit does."""
    captured = capture(task)
    try:
        codec.encode(list(captured.values))
    except ValueTransferError as error:
        raise refuse_values(captured, error, codec.encode) from error


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_cannot_travel_is_refused_by_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text, words = REFUSED[name]
    monkeypatch.setitem(sys.modules, "cmd", sys.modules.get("cmd"))
    module = load(tmp_path, HEADER + text)
    with pytest.raises(InvalidTaskError) as refusal:
        encode(module.task)
    assert [word for word in words if word not in str(refusal.value)] == []
    assert "nothing was sent" in str(refusal.value)


# --- names -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("len", "builtins:len"),
        (len, "builtins:len"),
        (open, "builtins:open"),
        ("operator.add", "operator.add"),
        ("operator:add", "operator:add"),
        (operator.add, "operator:add"),
        (math.hypot, "math:hypot"),
        (os.path.join, "os.path:join"),
        (textwrap.dedent, "textwrap:dedent"),
        (int, "builtins:int"),
        (Counter, "collections:Counter"),
        (decimal.Decimal, "decimal:Decimal"),
        (str.upper, "builtins:str.upper"),
        (dict.fromkeys, "builtins:dict.fromkeys"),
        (dt.date.fromisoformat, "datetime:date.fromisoformat"),
        (random.randint, "random:randint"),
        (random.random, "random:random"),
        (functools.reduce, "functools:reduce"),
        (io.StringIO, "io:StringIO"),
        (os.getcwd, "os:getcwd"),
    ],
)
def test_what_is_installed_goes_by_its_public_name(task: object, name: str) -> None:
    program = capture(task).program
    assert (program.kind, program.name) == (ProgramKind.NAME, name)


@pytest.mark.parametrize(
    "name", ["", "nowhere:", ":add", "a b", "os:_exit", "_thread:exit", "a.b:c:d", "lambda x: x", "os..sep"]
)
def test_a_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(InvalidTaskError):
        capture(name)


def test_a_function_that_took_the_place_of_an_installed_one_goes_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    @functools.wraps(textwrap.dedent)
    def dedent(text: str) -> str:
        return text + "!"

    monkeypatch.setattr(textwrap, "dedent", dedent)
    assert remote(textwrap.dedent, "a") == "a!"


def test_a_built_in_that_was_replaced_is_what_travels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = load(tmp_path, "def task(x): return oct(x)")
    monkeypatch.setattr(builtins, "oct", lambda number: number * 8)
    assert remote(module.task, 2) == 16


CHANGES: dict[str, tuple[Any, str, object, str]] = {
    "function": (math, "floor", lambda x: x, "import math as m\ndef task(x): return m.floor(x)"),
    "new name": (math, "mine", lambda x: x, "import math\ndef task(x): return math.mine(x)"),
    "inside": (math, "floor", lambda x: x, "def task(x):\n    import math\n    return math.floor(x)"),
    "submodule": (xml.dom.minidom, "parse", len, "import xml.dom.minidom as m\ndef task(x): return m.parse(x)"),
    "class": (decimal, "Decimal", type("Decimal", (), {}), "import decimal\ndef task(x): return decimal.Decimal(x)"),
    "method": (
        Counter,
        "total",
        lambda x: x,
        "from collections import Counter\ndef task(x): return Counter(x).total()",
    ),
    "static": (Counter, "x", staticmethod(lambda x: x), "from collections import Counter\ndef task(x): Counter.x(x)"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_put_into_an_installed_module_is_refused_by_name(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server has the original."""
    owner, name, value, text = CHANGES[change]
    module = load(tmp_path, text)
    if hasattr(owner, name):
        capture(module.task)
    if value is len:
        value = load(tmp_path, "def parse(n): return n").parse
    monkeypatch.setattr(owner, name, value, raising=False)
    with pytest.raises(InvalidTaskError, match=f"`{name}` of the (module|class) .* is your own here"):
        capture(module.task)


def test_what_was_put_into_an_installed_module_does_not_matter_to_those_who_do_not_use_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(math, "floor", lambda x: x)
    monkeypatch.setattr(math, "ceil", functools.wraps(math.ceil)(functools.partial(math.ceil)))
    assert remote(load(tmp_path, "import math\ndef task(x): return math.sqrt(x)").task, 4) == 2.0


class Unshown:
    def __repr__(self) -> str:
        raise RuntimeError

    def method(self) -> None: ...


@pytest.mark.parametrize(
    "task", [Unshown(), Unshown().method, 10**5000, ["x"] * 10**5], ids=lambda task: type(task).__name__
)
def test_a_refusal_is_told_whatever_shows_itself_badly_or_at_length(task: object) -> None:
    with pytest.raises(InvalidTaskError) as refusal:
        capture(task)
    assert len(str(refusal.value)) < 500
    with pytest.raises(InvalidTaskError):
        Task(task)  # type: ignore[arg-type]


def test_a_deftask_of_an_installed_module_goes_as_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The decorator says so; the name would find a `Task` there and no function."""
    monkeypatch.setattr("secfarm.task.importable.is_installed_file", lambda _: True)
    module = load(tmp_path, HEADER + "@deftask\ndef task(x): return x + 1")
    assert capture(module.task).program.kind is ProgramKind.SOURCE


# --- what is kept and what is read anew ------------------------------------------------------------------------------


def test_values_are_those_of_the_moment(tmp_path: Path) -> None:
    module = load(tmp_path, "N = 1\ndef task(): return N")
    before = capture(module.task)
    module.N = 2
    assert remote(module.task) == 2
    assert before.values == (1,)
    module.N = "three"
    assert remote(module.task) == "three"
    del module.N
    with pytest.raises(NameError):
        remote(module.task)


@pytest.mark.parametrize(
    "change",
    [
        "helper = lambda x: x * 100",
        "def helper(x): return x * 100",
        "helper.__code__ = (lambda x: x * 100).__code__",
        "K = 100",
        "import math; K = math; helper = lambda x: K.floor(100.5) * x",
        "len = lambda x: 100",
        "D.__defaults__ = (100,)",
        "D.__kwdefaults__ = {'k': 100}",
        "helper.n = 100",
        "task.n = 100",
        "task.__defaults__ = (100,)",
    ],
)
def test_nothing_that_changed_is_taken_from_the_cache(change: str, tmp_path: Path) -> None:
    text = (
        "K = 3\ndef helper(x): return x * K\ndef D(a=1, *, k=2): return a, k\n"
        "def task(x=1): return helper(x), len('ab'), D(), getattr(helper, 'n', 0), getattr(task, 'n', 0)\n"
    )
    module = load(tmp_path, text)
    assert remote(module.task) == module.task()
    source = (tmp_path / f"{module.__name__}_change.py").resolve()
    source.write_text(change)
    # Runs in the module as the user's own next lines would, with text that can be found.
    code = compile(change, str(source), "exec")
    FunctionType(code, vars(module))()
    assert remote(module.task) == module.task()


def test_the_columns_say_which_of_the_functions_of_a_line_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of a long line's would take a minute."""
    module = load(tmp_path, f"tasks = [{', '.join(f'lambda x: x + {number}' for number in range(100))}]")
    compiled: list[object] = []

    def count(*args: Any) -> CodeType:
        compiled.append(args)
        return compile_function(*args)

    monkeypatch.setattr(source, "compile_function", count)
    assert remote(module.tasks[70], 1) == 71
    assert len(compiled) == 1


def test_lambdas_of_one_line_keep_their_own_variables(tmp_path: Path) -> None:
    module = load(
        tmp_path, "def make(n, f):\n    return lambda x: f(x) + n\nadd = lambda x: x + 1\nmul = lambda x: x * 9"
    )
    tasks = [module.make(n, f) for n in (1, 2) for f in (module.add, module.mul)]
    assert [remote(task, 3) for task in tasks] == [task(3) for task in tasks]
    assert [remote(task, 3) for task in tasks[::-1]] == [task(3) for task in tasks[::-1]]


def test_variables_that_two_functions_share_are_shared_again_or_apart_again(tmp_path: Path) -> None:
    text = (
        "def make(bump=None):\n    n = 0\n    def own():\n        nonlocal n\n        n += 1\n"
        "    bump = bump or own\n    def task():\n        bump()\n        return n\n    return task, own\n"
    )
    module = load(tmp_path, text)
    _, foreign = module.make()
    for _ in range(2):
        assert remote(module.make()[0]) == 1
        assert remote(module.make(foreign)[0]) == 0


def test_the_same_function_has_the_same_digest_in_every_process(tmp_path: Path) -> None:
    text = (
        HEADER + "import math\nK = {1: 2}\ndef helper(x): return math.floor(x) + len(K)\n"
        "@deftask\ndef task(x, y=3, *, z=(1,)):\n    return helper(x) + y + len({'a', 'b'}), [lambda: x]\n"
        "print(task.digest)\n"
    )
    file = tmp_path / "stable.py"
    file.write_text(text)
    lines = [
        subprocess.run(
            [sys.executable, str(file)],
            check=True,
            capture_output=True,
            env={"PYTHONPATH": ".", "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    ]
    assert lines[0] == lines[1] != b""


def test_where_a_function_stands_is_not_in_its_digest(tmp_path: Path) -> None:
    one = load(tmp_path, "def task(x):\n    return x", "same").task
    first = capture(one).program
    two = load(tmp_path / "..", "\n\n# moved\ndef task(x):\n    return x", "same").task
    assert capture(two).program.digest == first.digest
    assert capture(two).program.key != first.key


def test_a_record_does_not_keep_a_function_or_its_values_alive(tmp_path: Path) -> None:
    module = load(tmp_path, "class Big(list): pass\ndef make(x):\n    return lambda: len(x)")
    big = module.Big()
    watched = weakref.ref(big)
    capture(module.make(big))
    del big
    gc.collect()
    assert watched() is None


def test_a_known_task_is_captured_in_microseconds(tmp_path: Path) -> None:
    """The target is 3 µs; ten times that fails here, for the machine is shared."""
    task = load(tmp_path, "def task(x): return x").task
    capture(task)
    assert min(timeit.repeat(lambda: capture(task), number=1000, repeat=5)) / 1000 < 30e-6


# --- texts and where they come from ------------------------------------------------------------------------------


def test_an_edited_file_is_refused(tmp_path: Path) -> None:
    module = load(tmp_path, "def task(x):\n    return x + 1\n")
    (tmp_path / f"{module.__name__}.py").write_text("def task(x):\n    return x + 2\n")
    linecache.clearcache()
    with pytest.raises(InvalidTaskError, match="edited"):
        capture(module.task)


def test_a_deftask_remembers_its_text(tmp_path: Path) -> None:
    module = load(tmp_path, HEADER + "@deftask\ndef task(x):\n    return x + 1\n")
    (tmp_path / f"{module.__name__}.py").write_text("edited")
    linecache.clearcache()
    assert remote(module.task, 1) == 2


def test_a_stale_linecache_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "twice.py"
    file.write_text("def task(x):\n    return x + 1\n")
    assert linecache.getlines(str(file))
    module = load(tmp_path, "# new\ndef task(x):\n    return x + 2\n", "twice")
    assert remote(module.task, 1) == 3


@pytest.mark.parametrize(
    "raw",
    [
        b"\xef\xbb\xbfdef task(): return '\xc3\xa9'",
        b"# -*- coding: latin-1 -*-\ndef task(): return '\xe9', (lambda: '\xe9\xe9')()",
        b"# coding: cp1252\ntask = ('\x80', lambda: '\x80')[1]",
    ],
)
def test_encodings_do_not_matter(raw: bytes, tmp_path: Path) -> None:
    task = load(tmp_path, raw).task
    assert remote(task) == task()


def test_the_command_line_is_a_text(tmp_path: Path) -> None:
    program = "from tests.task.programs import remote\nk = 3\ntask = lambda x: x + k\nprint(remote(task, 4))"
    for arguments in (["-c", program], ["-Bc", program], ["-X", "dev", "-W", "ignore", f"-c{program}"]):
        done = subprocess.run([sys.executable, *arguments], check=True, capture_output=True, text=True)
        assert done.stdout == "7\n"


@pytest.mark.parametrize("option", ["-O", "-OO"])
def test_optimised_code_travels_as_such(option: str, tmp_path: Path) -> None:
    file = tmp_path / "optimised.py"
    file.write_text(
        "from tests.task.programs import remote\n"
        "def task(x):\n    'doc'\n    assert x\n    return __debug__, task.__doc__\n"
        "print(remote(task, 0) == task(0))"
    )
    done = subprocess.run(
        [sys.executable, option, str(file)], check=True, capture_output=True, text=True, env={"PYTHONPATH": "."}
    )
    assert done.stdout == "True\n"


def test_a_zip_import_has_its_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "code.zip", "w") as archive:
        archive.writestr("zipped_module.py", "K = 2\ndef task(x):\n    return x + K\n")
    monkeypatch.syspath_prepend(str(tmp_path / "code.zip"))
    import zipped_module  # type: ignore[import-not-found]

    assert remote(zipped_module.task, 1) == 3


def test_a_zip_import_has_its_text_in_any_encoding_and_with_any_separators(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`linecache` splits such text at too many places, and asks zipimport for it, which takes all text for UTF-8."""
    import zipfile

    text = HEADER + "@deftask\ndef task(): return 'a\x0cb\x85\xe4'\n"
    with zipfile.ZipFile(tmp_path / "more.zip", "w") as archive:
        archive.writestr("zipped_latin.py", ("# coding: latin-1\n" + text).encode("latin-1"))
        archive.writestr("zipped_lines.py", text.replace("\xe4", "\u2028"))
    monkeypatch.syspath_prepend(str(tmp_path / "more.zip"))
    import zipped_latin  # type: ignore[import-not-found]
    import zipped_lines  # type: ignore[import-not-found]

    assert remote(zipped_latin.task) == "a\x0cb\x85\xe4"
    assert remote(zipped_lines.task) == "a\x0cb\x85\u2028"


def test_a_doctest_has_its_text() -> None:
    import doctest

    text = (
        ">>> from tests.task.programs import remote\n>>> k = 3\n"
        ">>> def f(x):\n...     return x + k\n>>> remote(f, 1)\n4\n"
    )
    test = doctest.DocTestParser().get_doctest(text, {}, "example", None, 0)
    assert doctest.DocTestRunner().run(test) == (0, 4)


def test_a_cell_of_a_notebook_has_its_text() -> None:
    """IPython puts each cell's text into linecache under a name of its own."""
    name = "<ipython-input-1-0123456789ab>"
    text = "import math\nk = 2\ndef task(x):\n    return math.floor(x) + k\n"
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    space: dict[str, object] = {"__name__": "__main__"}
    FunctionType(compile(text, name, "exec"), space)()
    assert remote(space["task"], 1.5) == 3


def _asserting(x: int) -> int:
    """Be changed by pytest, as every `assert` of a test module is."""
    assert x > 0, "small"
    return x


def test_a_function_whose_asserts_pytest_rewrote_travels_as_it_is_written() -> None:
    def task(x: int, *, y: int = 2) -> list[int]:
        assert [x, y] == [1, 2] and (double := _asserting(x) * 2)  # noqa: PT018, RUF018 - all is rewritten

        def inner() -> int:
            assert x
            return x + double

        return [inner(), *(one for one in [y] if one)]

    assert "@pytest_ar" in task.__code__.co_names
    assert remote(task, 1) == task(1) == [3, 2]
    assert "@" not in capture(task).program.source_text
    with pytest.raises(AssertionError):
        remote(task, 5)
    with pytest.raises(AssertionError, match="small"):
        remote(_asserting, 0)


@pytest.mark.parametrize(("text", "travels"), [("x == 1", True), ("x == 2", False), ("x is 1", False)])
def test_a_rewritten_function_travels_only_by_the_text_that_it_was_made_from(
    tmp_path: Path, text: str, *, travels: bool
) -> None:
    file = tmp_path / "rewritten.py"
    written = "def task(x):\n    assert x == 1\n    return x\n"
    file.write_text(written.replace("x == 1", text))
    tree = ast.parse(written)
    rewrite_asserts(tree, written.encode())
    names: dict[str, Any] = {"__name__": "rewritten"}
    FunctionType(compile(tree, str(file), "exec"), names)()
    if travels:
        assert remote(names["task"], 1) == 1
    else:
        with pytest.raises(InvalidTaskError, match="not the code"):
            capture(names["task"])


def test_documentation_that_is_asked_for_is_the_clients(tmp_path: Path) -> None:
    """Python 3.13 takes indentation off, others do not."""
    module = load(tmp_path, 'def task():\n    """One.\n\n    Two."""\n    return task.__doc__\n')
    assert module.task.__doc__ in capture(module.task).values
    assert remote(module.task) == module.task()


def test_two_namespaces_of_one_name_stay_apart(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    one = load(tmp_path, "K = 1\ndef get(): return K", "twin")
    two = load(tmp_path / "other", "K = 2\ndef get(): return K", "twin")
    user = load(tmp_path, "def task(): return one(), two(), K\nK = 3")
    user.one, user.two = one.get, two.get
    assert remote(user.task) == (1, 2, 3)


# --- Task ---------------------------------------------------------------------------------------------------------


def test_a_program_says_what_would_travel(tmp_path: Path) -> None:
    module = load(tmp_path, HEADER + "def helper(x): return x\n@deftask\ndef task(x):\n    return helper(x)\n")
    assert isinstance(module.task, Task)
    assert module.task.source == "def task(x):\n    return helper(x)\n\ndef helper(x): return x"
    assert capture(module.task).program.name == module.task.name == "task"
    assert capture(module.task).program.places[0].line == 4


def test_an_asynchronous_generator_is_no_task_but_may_be_named_by_one(tmp_path: Path) -> None:
    text = "async def stream():\n    yield 1\nasync def task():\n    return [x async for x in stream()]\n"
    module = load(tmp_path, text)
    with pytest.raises(InvalidTaskError, match="asynchronous generator"):
        capture(module.stream)
    assert remote(module.task) == [1]


def test_a_text_task_can_be_named_by_others(tmp_path: Path) -> None:
    text = "from secfarm.task.deftask import task_from_source\nf = task_from_source('def f(x, y=5): return x + y')\n"
    assert remote(load(tmp_path, text + "def task(x): return f(x)").task, 1) == 6


def test_a_task_that_is_used_as_a_value_has_the_looks_of_one(tmp_path: Path) -> None:
    text = """
    made = task_from_source("def made(x): return x + 1")
    def task(): return list(map(made, [1])), repr(made), made.name
    def asks(): return made.submit(1)
    def fails(): return list(map(made, ["text"]))
    """
    module = load(tmp_path, "from secfarm.task.deftask import task_from_source\n" + textwrap.dedent(text), "looks")
    assert remote(module.task) == ([2], "<task made>", "made")
    with pytest.raises(InvalidTaskError, match="`submit` of the task 'made'"):
        remote(module.asks)
    prepared, values = prepare(module.fails)
    with pytest.raises(TypeError) as raised:
        prepared.bind(values, {})()
    _, description, _ = prepared.format_exception(raised.value)
    assert "in fails" in description
    assert "in made" in description
    assert "secfarm" not in description


def test_future_flags_travel(tmp_path: Path) -> None:
    text = (
        "from __future__ import annotations\ndef task(x: Nowhere):\n    def inner(y: Nothing): return y\n"
        "    return inner.__annotations__\n"
    )
    assert remote(load(tmp_path, text).task, 1) == {"y": "Nothing"}


def test_a_text_task_resolves_nothing_here() -> None:
    task = task_from_source("def f(x):\n    return len(x), SimpleNamespace")
    captured = capture(task)
    assert captured.values == ()
    assert SimpleNamespace.__name__ in captured.program.source_text
    with pytest.raises(NameError):
        remote(task, "ab")
