"""The frame of the repository: the public names hold together, the commands in the Makefile exist, no key is here."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Final

import pytest

import secfarm
from secfarm.trust.store import parse_allowed_signers

ROOT: Final = Path(__file__).parent.parent
INIT: Final = ROOT / "secfarm/__init__.py"
PYPROJECT: Final = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def imported_for_typing() -> dict[str, str]:
    """Name -> module, from the `if TYPE_CHECKING` block of secfarm/__init__.py."""
    tree = ast.parse(INIT.read_text("utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in imports for alias in node.names}


def test_a_type_checker_sees_the_names_that_are_there_at_run_time() -> None:
    """The three lists of secfarm/__init__.py (imports for typing, homes, __all__) say the same."""
    lazy = {name: home for home, names in secfarm._HOMES.items() for name in names}
    assert imported_for_typing() == lazy
    errors = {name for name in secfarm.errors.__all__ if name != "ExitStatus"}
    assert set(secfarm.__all__) == errors | set(lazy)


@pytest.mark.parametrize("name", secfarm.__all__)
def test_every_public_name_can_be_loaded(name: str) -> None:
    assert getattr(secfarm, name) is not None
    assert name in dir(secfarm)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'jobs'"):
        secfarm.__getattr__("jobs")


def test_the_version_is_said_once() -> None:
    """`__version__` is the installed one, and that is pyproject.toml's."""
    assert secfarm.__version__ == version("secfarm") == PYPROJECT["project"]["version"]


def test_importing_secfarm_loads_no_socket_cipher_or_event_loop() -> None:
    code = "import sys, secfarm; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"asyncio", "ssl", "socket", "nacl", "cryptography", "msgspec", "click"} & set(loaded.split())


def test_every_ruff_rule_that_is_off_says_why() -> None:
    lines = (ROOT / "pyproject.toml").read_text("utf-8").splitlines()
    ignored = [line for line in lines if re.match(r'^ {4}"[A-Z]+[0-9]*", ', line)]
    assert len(ignored) > 10
    assert [line for line in ignored if "# " not in line] == []


def test_the_version_has_its_entry_in_the_changelog() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert f"## [{PYPROJECT['project']['version']}]" in changelog


def test_the_licence_is_the_one_that_is_declared() -> None:
    assert PYPROJECT["project"]["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text("utf-8")


def test_keys_holds_no_private_key() -> None:
    """Whatever the file is called, no private key and no secret stands beside the examples."""
    marks = ("PRIVATE" + " KEY-----", "secfarm-" + "secret-v1 ")
    texts = {path.name: path.read_text("utf-8", "replace") for path in (ROOT / "keys").iterdir() if path.is_file()}
    assert "allowed_signers.example" in texts
    example = texts["allowed_signers.example"]
    assert not any(mark in example for mark in marks)
    ignored = (ROOT / ".gitignore").read_text("utf-8").splitlines()
    assert {"/keys/*", "*_ed25519", "*.secret", "*.keytab"} <= set(ignored)


def test_the_example_of_allowed_signers_is_one() -> None:
    """Our own reader takes it, and so does OpenSSH's."""
    example = ROOT / "keys/allowed_signers.example"
    assert len(parse_allowed_signers(example.read_text("utf-8"), file=example.name)) == 2
    finder = ["ssh-keygen", "-Y", "match-principals", "-f", str(example), "-I", "ada@laptop"]
    assert subprocess.run(finder, capture_output=True, text=True, check=True).stdout == "ada@laptop\n"


def test_the_continuous_integration_runs_make_test() -> None:
    script = (ROOT / ".ci/run").read_text("utf-8")
    assert re.search(r"^make test\b", script, re.MULTILINE)
    assert "set -euo pipefail" in script
