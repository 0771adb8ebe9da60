"""One realm of each for all tests: a domain takes its time to make."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.auth.realm import SERVICE
from tests.interop.realms import HeimdalRealm, SambaRealm, need_others


@pytest.fixture(scope="session")
def heimdal() -> Iterator[HeimdalRealm]:
    need_others()
    with HeimdalRealm() as realm:
        realm.keytab("secfarm.keytab", SERVICE)
        yield realm


@pytest.fixture(scope="session")
def samba() -> Iterator[SambaRealm]:
    need_others()
    with SambaRealm() as realm:
        realm.keytab("secfarm.keytab", SERVICE)
        yield realm
