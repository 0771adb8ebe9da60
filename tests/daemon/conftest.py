from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon.site import Serving, Site


@pytest.fixture
def site(tmp_path: Path) -> Site:
    folder = tmp_path / "site"
    folder.mkdir(mode=0o700)
    return Site(folder)


@pytest.fixture
def serving(site: Site) -> Iterator[Serving]:
    """A server in this process; that nothing broke in its loop is checked at the end."""
    with Serving(site) as running:
        yield running
