"""A client whose package gssapi is compiled against Heimdal's library, with servers on MIT's."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from secfarm import start_server
from secfarm.auth import GssAuthServer
from secfarm.auth.base import Mechanism
from secfarm.errors import AuthError
from tests.auth.exchange import ADDRESS, BINDING, OTHER_BINDING, pair, server_auth
from tests.auth.realm import HOST, SERVICE, Realm
from tests.farm.farms import ROOT, WAIT_S
from tests.interop.realms import CLIENT, UNPACKED, heimdal_libraries, need_others, site

pytestmark = [pytest.mark.interop, pytest.mark.timeout(240)]


@pytest.fixture(scope="module", params=["MIT", "heimdal"])
def realm(request: pytest.FixtureRequest) -> Iterator[Realm]:
    """Whose KDC it is."""
    need_others()
    if request.param == "heimdal":
        with request.getfixturevalue("heimdal").lived_in() as realm:
            realm.ticket()
            yield realm
        return
    with Realm() as realm, realm.lived_in():
        realm.keytab("secfarm.keytab", SERVICE)
        realm.ticket()
        yield realm


def with_heimdal(code: str, *args: str, lines: str = "") -> str:
    """Run Python whose gssapi is Heimdal's; return what it says."""
    done = subprocess.run(
        [sys.executable, "-c", code, *args],
        env={**os.environ, "PYTHONPATH": f"{UNPACKED}/python:{ROOT}", "LD_LIBRARY_PATH": heimdal_libraries()},
        input=lines,
        capture_output=True,
        text=True,
        check=False,
        timeout=2 * WAIT_S,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_is_heimdals_library(realm: Realm) -> None:
    code = "import gssapi; print(*{line.split()[-1] for line in open('/proc/self/maps') if 'libgssapi' in line})"
    loaded = with_heimdal(code).split()
    assert loaded
    assert all(path.startswith(heimdal_libraries()) for path in loaded)


def test_a_task_runs(realm: Realm, tmp_path: Path) -> None:
    code = f"""
import sys
from secfarm import task_from_source, Kernel
from secfarm.auth import GssAuthClient
with Kernel(sys.argv[1], auth=GssAuthClient(), connect_timeout_s={WAIT_S}) as kernel:
    print(*kernel.map(task_from_source("def square(x): return x * x"), range(300)))
"""
    config = site(realm, tmp_path, f'[[grant]]\nprincipals = ["{CLIENT}@{realm.name}"]\nmay = ["run"]\n')
    with start_server(port=0, background=True, config=config) as server:
        said = with_heimdal(code, f"{HOST}:{server.addresses[0].port}")
    assert said.split() == [str(x * x) for x in range(300)]


FIRST_TOKEN = f"""
import sys
from secfarm.auth import GssAuthClient, Side
near = GssAuthClient().begin(side=Side.CLIENT, binding=bytes.fromhex(sys.argv[1]), address="{ADDRESS}", now_s=0.0)
print(near.step(None).hex())
"""


def server_of(realm: Realm, folder: Path) -> Mechanism:
    auth = GssAuthServer(realm.folder / "secfarm.keytab", allowed_users=[f"{CLIENT}@{realm.name}"])
    return pair(realm, folder, server=server_auth(realm, folder, auth))[1]


def test_its_channel_bindings_hold_with_those_of_mit(realm: Realm, tmp_path: Path) -> None:
    """They are sent, and judged: MIT's library takes a client that sends none."""
    far = server_of(realm, tmp_path)
    assert far.step(bytes.fromhex(with_heimdal(FIRST_TOKEN, BINDING.hex())))
    with pytest.raises(AuthError, match="another channel"):
        server_of(realm, tmp_path).step(bytes.fromhex(with_heimdal(FIRST_TOKEN, OTHER_BINDING.hex())))


def refused(statement: str) -> str:
    return with_heimdal(f"""
from pathlib import Path
from secfarm.auth import GssAuthClient, GssAuthServer, Side
from secfarm.disk.config import ServerConfig
from secfarm.disk.site_auth import ready_gss_client, ready_gss_server
from secfarm.errors import SecfarmError
try:
    {statement}
except SecfarmError as error:
    print(error)
""")


def test_what_it_cannot_do_is_said(realm: Realm) -> None:
    """Heimdal 7 has no credential stores, so caches and keytabs cannot be named to it."""
    server = f"ready_gss_server(GssAuthServer('{realm.folder}/secfarm.keytab'), ServerConfig(policy=Path('p')), {{}})"
    assert "Servers need MIT's library" in refused(server)
    assert "KRB5CCNAME" in refused("ready_gss_client(GssAuthClient(ccache='x'))")


@pytest.mark.parametrize(("environ", "words"), [("KRB5CCNAME", "Run: kinit"), ("KRB5_CONFIG", "[domain_realm]")])
def test_its_failures_have_words(
    realm: Realm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environ: str, words: str
) -> None:
    monkeypatch.setenv(environ, str(tmp_path / "none"))
    begin = f"GssAuthClient().begin(side=Side.CLIENT, binding={BINDING!r}, address={ADDRESS!r}, now_s=0.0)"
    assert words in refused(f"{begin}.step(None)")
