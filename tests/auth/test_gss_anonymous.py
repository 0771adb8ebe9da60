"""A real anonymous ticket (RFC 8062), which any KDC with certificates may give to anybody: it is nobody's name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from secfarm.auth import GssAuthClient, GssAuthServer
from secfarm.errors import AuthError
from tests.auth.exchange import pair, refusal, server_auth
from tests.auth.realm import HOST, SERVICE, Realm, need_pkinit
from tests.net.site_certificates import Authority, dns


class WithCertificates(Realm):
    """A realm whose KDC has a certificate, and so gives anonymous tickets."""

    def _create(self) -> None:
        super()._create()
        authority = Authority(self.folder / "ca")
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)  # MIT 1.20 signs with no other kind
        certificate, key_file = authority.certify(dns(HOST), file="kdc", client=False, key=key)
        lines = [
            f"pkinit_anchors = FILE:{authority.path}",
            f"pkinit_identity = FILE:{certificate},{key_file}",
            f"pkinit_kdc_hostname = {HOST}",
            "pkinit_eku_checking = kpServerAuth",
        ]
        head = f"    {self.name} = {{\n"
        for name in ("krb5.conf", "kdc.conf"):
            text = (self.folder / name).read_text(encoding="utf-8")
            assert head in text
            self.write(name, text.replace(head, head + "".join(f"        {line}\n" for line in lines)))
        self.admin("addprinc -randkey WELLKNOWN/ANONYMOUS")


@pytest.fixture(scope="module")
def realm() -> Iterator[Realm]:
    need_pkinit()
    with WithCertificates() as realm, realm.lived_in():
        realm.keytab("secfarm.keytab", SERVICE)
        realm.tool("kinit", "-n", "-c", f"FILE:{realm.folder}/anonymous")
        yield realm


class Everybody(GssAuthServer):
    """Accepts whatever name it is asked for."""

    def __init__(self, keytab: Path) -> None:
        super().__init__(keytab)
        self.asked: list[str] = []

    def name_accepted(self, name: object) -> bool:
        self.asked.append(str(name))
        return True


def test_an_anonymous_client_is_told_apart_and_the_hook_is_not_asked(realm: Realm, tmp_path: Path) -> None:
    cache = realm.folder / "anonymous"
    assert "WELLKNOWN/ANONYMOUS@WELLKNOWN:ANONYMOUS" in realm.tool("klist", "-c", f"FILE:{cache}")
    hook = Everybody(realm.folder / "secfarm.keytab")
    server = server_auth(realm, tmp_path, hook)
    near, far = pair(realm, tmp_path, client=GssAuthClient(ccache=cache), server=server)
    with pytest.raises(AuthError, match="the client is anonymous; it was not let in") as error:
        far.step(near.step(None))
    refusal(error)
    assert hook.asked == []
    assert far.peer is None


def test_who_has_a_name_is_let_in_there(realm: Realm, tmp_path: Path) -> None:
    hook = Everybody(realm.folder / "secfarm.keytab")
    near, far = pair(
        realm, tmp_path, client=GssAuthClient(ccache=realm.ticket()), server=server_auth(realm, tmp_path, hook)
    )
    far.step(near.step(far.step(near.step(None))))
    assert hook.asked == [f"ada@{realm.name}"]
