"""Servers for the tests of this folder: one for each way of reaching one, started when first asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest

from secfarm import Kernel, set_kernel
from tests.farm.farms import WAYS, Daemon


@pytest.fixture(scope="session")
def daemon_of() -> Iterator[Callable[[str], Daemon]]:
    """The server of a way, shared by all tests: they leave it idle."""
    with contextlib.ExitStack() as stack:
        running: dict[str, Daemon] = {}

        def get(way: str) -> Daemon:
            if way not in running:
                running[way] = stack.enter_context(Daemon(way))
            return running[way]

        yield get


@pytest.fixture(scope="session")
def kernel_of(daemon_of: Callable[[str], Daemon]) -> Iterator[Callable[[str], Kernel]]:
    """The kernel of a way, shared by all tests."""
    with contextlib.ExitStack() as stack:
        connected: dict[str, Kernel] = {}

        def get(way: str) -> Kernel:
            if way not in connected:
                connected[way] = daemon_of(way).connect(name=way)
                stack.callback(connected[way].shutdown)
            return connected[way]

        yield get


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    """Every test that asks for it, or for what stands on it, runs over every transport, direction and mechanism."""
    return str(request.param)


@pytest.fixture
def daemon(way: str, daemon_of: Callable[[str], Daemon]) -> Daemon:
    return daemon_of(way)


@pytest.fixture
def kernel(way: str, kernel_of: Callable[[str], Kernel]) -> Kernel:
    """A kernel of each way."""
    return kernel_of(way)


@pytest.fixture
def one_daemon(daemon_of: Callable[[str], Daemon]) -> Daemon:
    """Where the way makes no difference."""
    return daemon_of(WAYS[0])


@pytest.fixture
def one_kernel(kernel_of: Callable[[str], Kernel]) -> Kernel:
    """Where the way makes no difference."""
    return kernel_of(WAYS[0])


@pytest.fixture(autouse=True)
def _no_current_kernel() -> Iterator[None]:
    yield
    set_kernel(None)
