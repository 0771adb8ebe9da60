"""Whose KDC it is makes no difference: Heimdal's and Samba's tickets and keytabs do as MIT's do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from secfarm import Kernel, start_server
from secfarm.auth import GssAuthClient, GssAuthServer
from secfarm.disk.site_auth import ready_gss_client
from secfarm.errors import AuthError, KernelCreationError
from tests.auth.exchange import BINDING, OTHER_BINDING, meet, pair, refusal, server_auth
from tests.auth.realm import HOST, SERVICE, Realm
from tests.farm.farms import WAIT_S
from tests.interop.realms import CLIENT, OTHER_CLIENT, site

pytestmark = [pytest.mark.interop, pytest.mark.timeout(240)]


@pytest.fixture(scope="module", params=["heimdal", "samba"])
def realm(request: pytest.FixtureRequest) -> Iterator[Realm]:
    with request.getfixturevalue(request.param).lived_in() as realm:
        realm.ticket()
        yield realm


@pytest.fixture
def server(realm: Realm, tmp_path: Path) -> GssAuthServer:
    auth = GssAuthServer(realm.folder / "secfarm.keytab", allowed_users=[f"{CLIENT}@{realm.name}"])
    return server_auth(realm, tmp_path, auth)


def test_a_first_task_runs_for_who_has_a_ticket_and_a_name_that_is_accepted(realm: Realm, tmp_path: Path) -> None:
    config = site(realm, tmp_path, f'[[grant]]\nprincipals = ["*@{realm.name}"]\nmay = ["run"]\n')
    bob = GssAuthClient(ccache=realm.ticket(OTHER_CLIENT, ccache="bob"))
    with start_server(port=0, background=True, config=config) as server:
        address = f"{HOST}:{server.addresses[0].port}"
        with Kernel(address, auth=GssAuthClient(), connect_timeout_s=WAIT_S) as kernel:
            assert list(kernel.map(lambda x: x * x, range(5))) == [0, 1, 4, 9, 16]
        with pytest.raises(KernelCreationError, match=r"refused us \('refused'\)"):
            Kernel(address, auth=bob, connect_timeout_s=WAIT_S)


def test_both_ends_learn_the_name_of_the_other_and_its_key(realm: Realm, tmp_path: Path, server: GssAuthServer) -> None:
    far, near = meet(*pair(realm, tmp_path, server=server))
    assert (near.principal, far.principal) == (f"{CLIENT}@{realm.name}", f"{SERVICE}@{realm.name}")
    for signer, verifier in ((far.session_signer, near.session_verifier), (near.session_verifier, far.session_signer)):
        assert verifier.verify(b"message", signer.sign(b"message")) == b"message"
    assert near.expires_s is not None
    assert abs(near.expires_s - far.expires_s) < 2


def test_a_client_keytab_fetches_its_own_tickets(realm: Realm, tmp_path: Path) -> None:
    auth = ready_gss_client(GssAuthClient(client_keytab=realm.keytab("bob.keytab", OTHER_CLIENT)))
    bob = f"{OTHER_CLIENT}@{realm.name}"
    hook = GssAuthServer(realm.folder / "secfarm.keytab", allowed_users=[bob])
    far = server_auth(realm, tmp_path, hook)
    assert meet(*pair(realm, tmp_path, client=auth, server=far))[1].principal == bob


def test_a_name_that_is_not_accepted(realm: Realm, tmp_path: Path) -> None:
    hook = server_auth(realm, tmp_path, GssAuthServer(realm.folder / "secfarm.keytab"))
    with pytest.raises(AuthError, match=f"'{CLIENT}@{realm.name}' proved its name and is not accepted"):
        meet(*pair(realm, tmp_path, server=hook))


@pytest.mark.parametrize("client", [GssAuthClient("nosuch"), GssAuthClient(target="elsewhere")])
def test_a_service_that_the_kdc_does_not_know(realm: Realm, tmp_path: Path, client: GssAuthClient) -> None:
    with pytest.raises(AuthError, match="does not know the service") as error:
        pair(realm, tmp_path, client=client)[0].step(None)
    refusal(error)


def test_a_ticket_for_another_service(realm: Realm, tmp_path: Path, server: GssAuthServer) -> None:
    near, far = pair(realm, tmp_path, server=server, client=GssAuthClient(target=f"krbtgt/{realm.name}@{realm.name}"))
    with pytest.raises(AuthError, match="another service") as error:
        far.step(near.step(None))
    refusal(error)


def test_a_token_that_was_seen_before_or_is_of_another_channel(
    realm: Realm, tmp_path: Path, server: GssAuthServer
) -> None:
    near, far = pair(realm, tmp_path, server=server)
    token = near.step(None)
    far.step(token)
    with pytest.raises(AuthError, match="replay"):
        pair(realm, tmp_path, server=server)[1].step(token)
    near, far = pair(realm, tmp_path, server=server, bindings=(OTHER_BINDING, BINDING))
    with pytest.raises(AuthError, match="another channel"):
        far.step(near.step(None))


def test_a_kdc_that_is_down(realm: Realm, tmp_path: Path) -> None:
    realm.ticket(ccache="no-service-yet")
    realm.stop()
    try:
        with pytest.raises(AuthError, match="no KDC of the realm answers"):
            pair(realm, tmp_path, client=GssAuthClient(ccache=realm.folder / "no-service-yet"))[0].step(None)
    finally:
        realm.start()
