"""What every test stands on: deterministic hypothesis, and a home of its own that no user's configuration reaches."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from hypothesis import HealthCheck, settings

from tests.meeting import Gate, Notes

settings.register_profile(
    "secfarm",
    derandomize=True,  # the same examples in every run and on every machine
    deadline=None,  # a shared machine is no stopwatch
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("thorough", parent=settings.get_profile("secfarm"), derandomize=False, max_examples=5000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "secfarm"))

_XDG: Final = {
    "XDG_CONFIG_HOME": "config",
    "XDG_STATE_HOME": "state",
    "XDG_DATA_HOME": "share",
    "XDG_CACHE_HOME": "cache",
    "XDG_RUNTIME_DIR": "run",
}
_saved_environment: Final = pytest.StashKey[dict[str, str]]()
_home: Final = pytest.StashKey[Path]()


def pytest_configure(config: pytest.Config) -> None:
    """Before anything of secfarm is imported: HOME and the XDG directories are new, SECFARM_* is unset."""
    # Directly under the temporary directory: the path of a unix socket may have 107 bytes, no more.
    home = Path(tempfile.mkdtemp(prefix="secfarm-"))
    config.stash[_home] = home
    config.stash[_saved_environment] = dict(os.environ)
    for name in [name for name in os.environ if name.startswith("SECFARM_")]:
        del os.environ[name]
    os.environ["HOME"] = str(home)
    for name, directory in _XDG.items():
        (home / directory).mkdir(mode=0o700)
        os.environ[name] = str(home / directory)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Give the environment back and remove the home."""
    saved = config.stash.get(_saved_environment, None)
    if saved is not None:
        os.environ.clear()
        os.environ.update(saved)
        shutil.rmtree(config.stash[_home], ignore_errors=True)


@pytest.fixture
def gate() -> Iterator[Gate]:
    """Where tasks stop until the test lets them through."""
    with contextlib.closing(Gate()) as gate:
        yield gate


@pytest.fixture
def other_gate() -> Iterator[Gate]:
    """A second one."""
    with contextlib.closing(Gate()) as gate:
        yield gate


@pytest.fixture
def ran() -> Iterator[Notes]:
    """Where tasks leave numbers."""
    with contextlib.closing(Notes()) as notes:
        yield notes
