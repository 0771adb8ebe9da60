from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.run.team import Hold


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Hold]:
    """One gate for held calls."""
    gate = Hold(tmp_path)
    yield gate
    gate.close()


@pytest.fixture
def other_held(tmp_path: Path) -> Iterator[Hold]:
    """A second one."""
    gate = Hold(tmp_path)
    yield gate
    gate.close()
