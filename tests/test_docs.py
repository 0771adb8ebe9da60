"""The documents are true: links resolve, the README's commands run, every command and word that is named exists."""

from __future__ import annotations

import ast
import doctest
import os
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import pytest

from secfarm.trust.policy import Policy
from tests.farm.farms import reserved_port

ROOT: Final = Path(__file__).parent.parent
# The one document that names what does not exist yet.
PLANNED: Final = ROOT / "docs/planned.md"
FENCE: Final = re.compile(r"^```(\w*)(?: title=(\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK: Final = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
COMMAND: Final = re.compile(r"(?:^|[`$(\s/])secfarm ([a-z][a-z-]+)")
README_TIMEOUT_S: Final = 240
# docs/glossary.md, last line; `data` and `info` are too common as parts of other words to be looked for.
AVOIDED: Final = frozenset({"job", "engine", "manager", "handler", "helper", "helpers", "util", "utils"})
WORDS: Final = frozenset(
    {"task", "program", "call", "batch", "payload", "envelope", "signature", "key id", "principal", "trust store"}
    | {"policy", "grant", "mechanism", "initiator", "acceptor", "client", "server", "session", "frame", "message"}
    | {"gate", "zygote", "worker", "kernel", "channel", "future", "promise", "cognate", "parts", "category"}
    | {"broadcast", "hub", "carrier", "audit record", "receipt", "refused", "failed", "lost"}
)


def tree_files(*suffixes: str) -> list[Path]:
    """Every file of the project with one of these suffixes; environments, caches and git's own are left out."""
    found = []
    for directory, names, files in os.walk(ROOT):
        names[:] = [name for name in names if name not in {".venv", ".git", "__pycache__", "build", "dist"}]
        names[:] = [name for name in names if not name.endswith("_cache") and name != ".hypothesis"]
        found += [Path(directory, name) for name in files if name.endswith(suffixes)]
    return sorted(found)


DOCUMENTS: Final = tree_files(".md")
every_document: Final = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def blocks(text: str, language: str) -> list[tuple[str, str]]:
    """Return (title, content) of every fenced block of that language."""
    return [(title, content) for tag, title, content in FENCE.findall(text) if tag == language]


def outside_fences(text: str) -> str:
    return FENCE.sub("", text)


def anchors(path: Path) -> set[str]:
    """Return the anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", outside_fences(path.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_document
def test_relative_links_resolve(path: Path) -> None:
    wrong = []
    for link in LINK.findall(outside_fences(path.read_text("utf-8"))):
        target, _, anchor = link.partition("#")
        if "://" in target:
            continue
        there = (path.parent / target).resolve() if target else path
        if not there.exists() or not there.is_relative_to(ROOT) or (anchor and anchor not in anchors(there)):
            wrong.append(link)
    assert wrong == []


@every_document
def test_toml_blocks_parse_and_policies_are_policies(path: Path) -> None:
    for _, content in blocks(path.read_text("utf-8"), "toml"):
        assert tomllib.loads(content)
        if "[[grant]]" in content:
            assert Policy.parse(content, file=path.name).grant_for("ada@laptop").may


@every_document
def test_python_blocks_are_python(path: Path) -> None:
    for _, content in blocks(path.read_text("utf-8"), "python"):
        assert ast.parse(content, str(path)).body


def commands_named() -> set[str]:
    """Every `secfarm COMMAND` in code of a document: fenced blocks and code spans."""
    named: set[str] = set()
    for path in DOCUMENTS:
        text = path.read_text("utf-8")
        code = [content for tag, _, content in FENCE.findall(text) if tag in {"console", "sh", "ini"}]
        code += re.findall(r"`[^`\n]+`", outside_fences(text))
        if path != PLANNED:
            named |= {command for part in code for command in COMMAND.findall(part)}
    return named


def test_the_documents_name_commands() -> None:
    assert {"keygen", "serve", "run", "ping", "end-server"} <= commands_named()


@pytest.mark.parametrize("command", sorted(commands_named()))
def test_every_command_that_is_named_exists(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "secfarm", command, "--help"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


# --- the README, run ------------------------------------------------------------------------------------------------
def console_steps(text: str) -> Iterator[tuple[str, str]]:
    """Yield (command, expected output) from console blocks: `$ ` begins a command, `> ` continues it."""
    for _, content in blocks(text, "console"):
        assert content.startswith("$ "), content
        for step in re.split(r"^\$ ", content, flags=re.MULTILINE)[1:]:
            lines = step.splitlines()
            more = [line[2:] for line in lines[1:] if line.startswith("> ")]
            yield "\n".join([lines[0], *more]), "".join(f"{line}\n" for line in lines[1 + len(more) :])


def run_shell(script: str, directory: Path) -> int:
    """Run a bash script; whatever it left in the background is gone afterwards. Return its exit status."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    command = ["bash", "-c", script]
    with subprocess.Popen(
        command, cwd=directory, env=environment, stdin=subprocess.DEVNULL, start_new_session=True
    ) as process:
        try:
            return process.wait(README_TIMEOUT_S)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def test_the_readme_runs_as_it_is_written(tmp_path: Path) -> None:
    """Titled blocks become files; console blocks are one shell session; what is shown is what comes out."""
    # The README's port may be taken here, by a server or by a test beside this one.
    reserved = reserved_port()
    text = (ROOT / "README.md").read_text("utf-8").replace("7419", str(reserved.getsockname()[1]))
    for language in ("python", "toml"):
        for title, content in blocks(text, language):
            if title:
                (tmp_path / title).write_text(content, "utf-8")
                (tmp_path / title).chmod(0o600)
    steps = list(console_steps(text))
    assert len(steps) > 10
    parts = ["set -e", "exec 2>stderr"]
    for number, (command, _) in enumerate(steps):
        parts += [f"exec >{number}.out", f"echo {number} >reached", command]
    with reserved:
        status = run_shell("\n".join([*parts, "echo end >reached"]), tmp_path)
    reached, stderr = ((tmp_path / name).read_text("utf-8").strip() for name in ("reached", "stderr"))
    assert (status, reached) == (0, "end"), f"stopped at: {steps[int(reached)][0]}\n{stderr}"
    checker = doctest.OutputChecker()
    for number, (command, wanted) in enumerate(steps):
        came = (tmp_path / f"{number}.out").read_text("utf-8")
        assert not wanted or checker.check_output(wanted, came, doctest.ELLIPSIS), f"$ {command}\n{came}"


# --- words ----------------------------------------------------------------------------------------------------------
def test_the_glossary_explains_every_word_of_the_trade_in_order() -> None:
    explained = re.findall(r"^\*\*([^*]+)\*\* — ", (ROOT / "docs/glossary.md").read_text("utf-8"), re.MULTILINE)
    assert WORDS - set(explained) == set()
    assert explained == sorted(explained)


def defined_names(path: Path) -> Iterator[str]:
    """Yield the module's name and those of its classes and functions."""
    yield path.stem
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name


def test_no_name_is_one_of_the_words_that_mean_too_much() -> None:
    wrong = []
    for path in sorted((ROOT / "secfarm").rglob("*.py")):
        for name in defined_names(path):
            parts = re.findall(r"[A-Z]?[a-z]+", name)
            wrong += [f"{path.relative_to(ROOT)}: {name}" for part in parts if part.lower() in AVOIDED]
    assert wrong == []


def test_no_file_names_a_path_of_one_machine() -> None:
    """Nobody else has our home, our checkout or our scratch directory."""
    machine = re.compile(r"(?<![\w.~/])/(?:wo" + r"rk|ro" + r"ot|ho" + r"me/\w+|Us" + r"ers)/")
    suffixes = (".py", ".md", ".toml", ".example", ".yml", "Makefile", "run", "apt", ".gitignore")
    assert [
        str(path.relative_to(ROOT)) for path in tree_files(*suffixes) if machine.search(path.read_text("utf-8"))
    ] == []
