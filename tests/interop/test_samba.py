"""What is peculiar to Active Directory, shown by Samba's domain controller: names without case, accounts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from secfarm import Kernel, start_server
from secfarm.auth import GssAuthClient, GssAuthServer
from secfarm.disk.keytab import KeytabFile
from secfarm.disk.site_auth import ready_gss_client
from secfarm.errors import AuthError
from tests.auth.exchange import meet, pair, refusal, server_auth
from tests.auth.realm import HOST, SERVICE, Realm
from tests.farm.farms import WAIT_S
from tests.interop.realms import CLIENT, SambaRealm, site

pytestmark = [pytest.mark.interop, pytest.mark.timeout(240)]

AES256 = 18  # RFC 3962


@pytest.fixture(scope="module")
def domain(samba: SambaRealm) -> Iterator[SambaRealm]:
    with samba.lived_in():
        yield samba


def shouted(domain: Realm, *options: str) -> GssAuthClient:
    """Ada, who logged in with her name in capitals."""
    cache = domain.folder / "shouted"
    domain.tool("kinit", "-c", f"FILE:{cache}", *options, CLIENT.upper(), password=CLIENT)
    return GssAuthClient(ccache=cache)


def test_an_account_that_may_use_aes_has_a_keytab_of_it(domain: SambaRealm) -> None:
    entries = KeytabFile(domain.folder / "secfarm.keytab").entries()
    assert (f"{SERVICE}@{domain.name}", AES256) in {(entry.principal, entry.enctype) for entry in entries}


@pytest.mark.parametrize("folded", [True, False])
def test_a_policy_that_folds_names_knows_ada_however_she_writes_herself(
    domain: SambaRealm,
    tmp_path: Path,
    folded: bool,  # noqa: FBT001 - a case
) -> None:
    """A domain gives ADA a ticket as ADA: without folding that is another principal, which has no grant."""
    kerberos = f"[kerberos]\ncase_insensitive = {str(folded).lower()}\n"
    policy = f'[[grant]]\nprincipals = ["{CLIENT}@{domain.name}"]\nmay = ["run"]\n{kerberos}'
    allowed = [f"{CLIENT.upper()}@{domain.name}"]
    auth = GssAuthServer(domain.folder / "secfarm.keytab", allowed_users=allowed)
    config = site(domain, tmp_path, policy)
    with (
        start_server(port=0, background=True, config=config, auth=auth) as server,
        Kernel(f"{HOST}:{server.addresses[0].port}", auth=shouted(domain), connect_timeout_s=WAIT_S) as kernel,
    ):
        error = kernel.submit(lambda: 1).exception(WAIT_S)
        assert (error is None) is folded
    records = map(json.loads, (tmp_path / "state/audit.jsonl").read_text().splitlines())
    (session,) = [one for one in records if one["event"] == "session"]
    assert session["principal"] == (f"{CLIENT}@{domain.name}" if folded else allowed[0])


def test_who_has_the_name_canonicalized_is_who_is_listed(domain: SambaRealm, tmp_path: Path) -> None:
    """`kinit -C` asks the domain for the name as it writes it itself, which allowed_users can list."""
    auth = GssAuthServer(domain.folder / "secfarm.keytab", allowed_users=[f"{CLIENT}@{domain.name}"])
    server = server_auth(domain, tmp_path, auth)
    with pytest.raises(AuthError, match=f"'{CLIENT.upper()}@{domain.name}' proved its name and is not accepted"):
        meet(*pair(domain, tmp_path, client=shouted(domain), server=server))
    listed = meet(*pair(domain, tmp_path, client=shouted(domain, "-C"), server=server))[1]
    assert listed.principal == f"{CLIENT}@{domain.name}"


def test_an_account_that_is_disabled_is_told_so(domain: SambaRealm, tmp_path: Path) -> None:
    """Whether it asks for its first ticket, with a client keytab, or has one from before."""
    domain.admin("user create eve eve")
    keytab = GssAuthClient(client_keytab=domain.keytab("eve.keytab", "eve"))
    before = GssAuthClient(ccache=domain.ticket("eve", ccache="eve"))
    domain.admin("user disable eve")
    for auth, words in ((ready_gss_client(keytab), "locked the client's account"), (before, "may be disabled")):
        with pytest.raises(AuthError, match=words) as error:
            pair(domain, tmp_path, client=auth)[0].step(None)
        assert "ask its administrator" in refusal(error)
