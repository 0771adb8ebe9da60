"""Preflight: what a program needs of this server's Python, looked up before any code of the user runs.

Modules are found and not imported; only the packages around a dotted name are, which is how Python finds such a name.
"""

from __future__ import annotations

import platform
import re
import sys
from importlib.util import find_spec
from typing import Final

from secfarm.errors import MissingModulesError, PythonVersionError
from secfarm.task.program import ImportRef, Program, SourceProgram, bindings_of
from secfarm.task.requirement import parse_requirement

_VERSION: Final = re.compile(r"([0-9]{1,3})\.([0-9]{1,3})", re.ASCII)


def references(content: SourceProgram) -> list[ImportRef]:
    """Return all that the program finds by import, in one order."""
    found = {binding for binding in bindings_of(content) if isinstance(binding, ImportRef)}
    return sorted(found, key=lambda reference: (reference.module, reference.qualname))


def modules_of(content: SourceProgram) -> set[str]:
    """Return the modules that have to be there; those of the client of which names travel are not among them."""
    imports = set(content.imports).difference(namespace.label for namespace in content.namespaces)
    return imports.union(content.submodules, (reference.module for reference in references(content)))


def check_installed(content: SourceProgram) -> SourceProgram:
    """Return `content` if all modules and distributions that it needs are there, else raise.

    Raises:
        MissingModulesError: some are not; all of them are named.
    """
    missing = {name: name for name in modules_of(content) if _is_missing(name)}
    for requirement in content.requirements:
        if (reason := _unmet(requirement)) is not None:
            missing[requirement] = f"{requirement} ({reason})"
    if missing:
        version = platform.python_version()
        listed = ", ".join(missing[name] for name in sorted(missing))
        raise MissingModulesError(
            f"this server (Python {version}) lacks {listed}; nothing was run. Install them there, or choose a server "
            "that has them.",
            modules=tuple(sorted(missing)),
            python_version=version,
        )
    return content


def _is_missing(name: str) -> bool:
    try:
        return find_spec(name) is None
    except ModuleNotFoundError as error:  # of a package around it
        return error.name is not None and f"{name}.".startswith(f"{error.name}.")
    # A package around it is there and cannot be imported, or a module has no specification: importing it will tell.
    except Exception:  # noqa: BLE001
        return False


def _unmet(requirement: str) -> str | None:
    # Loaded when first needed: it would slow the start of every worker.
    from importlib import metadata

    wanted = parse_requirement(requirement)
    try:
        version: str | None = metadata.version(wanted.name)
    except metadata.PackageNotFoundError:
        return "not installed"
    except Exception:  # noqa: BLE001 - metadata that cannot be read may make any part of the reader fail
        version = None
    if version is None:
        return "installed without a version"
    return None if wanted.is_met_by(version) else f"version {version} is installed"


def newer_python(program: Program, reason: Exception) -> PythonVersionError | None:
    """Return the error for a text that does not compile here, if it was written for a newer Python than ours.

    Args:
        reason: what compiling it raised.
    """
    found = _VERSION.fullmatch(program.python_version)
    ours = sys.version_info[:2]
    if found is None or (int(found[1]), int(found[2])) <= ours:
        return None
    return PythonVersionError(
        f"written for Python {program.python_version}, this server has {ours[0]}.{ours[1]}: {reason}",
        python_version=platform.python_version(),
    )
