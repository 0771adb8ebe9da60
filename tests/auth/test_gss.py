"""Kerberos against a real KDC: both names proven over the channel, every failure in words, on the side that can act.

The mechanisms are driven by hand here, so that an attacker can stand between any two tokens.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from secfarm.auth import GssAuthClient, GssAuthServer, Side
from secfarm.auth.base import Mechanism
from secfarm.disk.keytab import KeytabFile
from secfarm.disk.site_auth import ready_gss_client
from secfarm.errors import AuthError, BadSignatureError, ConfigError
from secfarm.sign.envelope import check_signatures, seal, session_type
from tests.auth.exchange import (
    ADA,
    ADDRESS,
    BINDING,
    OTHER_BINDING,
    flipped,
    meet,
    pair,
    refusal,
    server_auth,
)
from tests.auth.realm import HOST, OTHER, REALM, SERVICE, Realm, need_kerberos


@pytest.fixture(scope="module")
def realm() -> Iterator[Realm]:
    need_kerberos()
    with Realm() as realm, realm.lived_in():
        realm.keytab("secfarm.keytab", SERVICE)
        realm.ticket()
        yield realm


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    return home


# --- it works -------------------------------------------------------------------------------------------------------


def test_both_ends_learn_the_full_name_of_the_other(realm: Realm, home: Path) -> None:
    server, client = meet(*pair(realm, home))
    assert client.principal == ADA
    assert server.principal == f"{SERVICE}@{REALM}"
    assert client.mechanism == server.mechanism == "gss"


def test_the_session_ends_with_the_ticket(realm: Realm, home: Path) -> None:
    """MIT does not enforce it, and its acceptor adds the clock skew; ours is the ticket's own end, at both."""
    realm.ticket("ada", "-l", "1000s", ccache="short")
    now_s = time.time()
    server, client = meet(*pair(realm, home, client=GssAuthClient(ccache=realm.folder / "short")))
    for peer in (server, client):
        assert peer.expires_s is not None
        assert 900 < peer.expires_s - now_s <= 1001  # whole seconds


def test_what_the_client_signs_with_the_context_the_server_verifies_once_and_in_order(realm: Realm, home: Path) -> None:
    server, client = meet(*pair(realm, home))
    near, far = server.session_signer, client.session_verifier
    assert near is not None
    assert far is not None
    assert near.key_id == far.key_id
    envelopes = [seal(session_type("s"), payload, near) for payload in (b"first", b"second", b"third")]
    check_signatures(envelopes[0], [far])
    with pytest.raises(BadSignatureError):  # repeated
        check_signatures(envelopes[0], [far])
    with pytest.raises(BadSignatureError):  # one was left out
        check_signatures(envelopes[2], [far])


@pytest.mark.parametrize("mic", [b"", b"junk", bytes(28), bytes(10_000)])
def test_what_is_no_mic_verifies_nothing(realm: Realm, home: Path, mic: bytes) -> None:
    server, client = meet(*pair(realm, home))
    for verifier in (client.session_verifier, server.session_signer):
        with pytest.raises(BadSignatureError):
            verifier.verify(b"message", mic)


def test_a_mic_is_over_its_message_and_its_direction(realm: Realm, home: Path) -> None:
    server, client = meet(*pair(realm, home))
    mic = server.session_signer.sign(b"message")
    with pytest.raises(BadSignatureError):  # reflected to its own maker
        server.session_signer.verify(b"message", mic)
    with pytest.raises(BadSignatureError):
        client.session_verifier.verify(b"massage", mic)
    assert client.session_verifier.verify(b"message", mic) == b"message"


def test_a_client_keytab_fetches_its_own_tickets(realm: Realm, home: Path) -> None:
    """Whatever lies in the user's cache: a service has none."""
    auth = ready_gss_client(GssAuthClient(client_keytab=realm.keytab("robot.keytab", "bob")))
    server = server_auth(realm, home, GssAuthServer(realm.folder / "secfarm.keytab", allowed_users=[f"bob@{REALM}"]))
    assert meet(*pair(realm, home, client=auth, server=server))[1].principal == f"bob@{REALM}"


@pytest.mark.parametrize("target", [HOST, f"{SERVICE}@{REALM}"])
def test_a_target_names_the_server_behind_a_tunnel(realm: Realm, home: Path, target: str) -> None:
    near = GssAuthClient(target=target).begin(side=Side.CLIENT, binding=BINDING, address="unix:/s", now_s=time.time())
    far = pair(realm, home)[1]
    assert meet(near, far)[0].principal == f"{SERVICE}@{REALM}"


def test_without_a_host_name_a_target_is_asked_for() -> None:
    need_kerberos()
    with pytest.raises(ConfigError, match="target"):
        GssAuthClient().begin(side=Side.CLIENT, binding=BINDING, address="unix:/s", now_s=0.0)


def test_each_side_has_its_own_class(realm: Realm, home: Path) -> None:
    with pytest.raises(ConfigError, match="GssAuthServer"):
        GssAuthClient().begin(side=Side.SERVER, binding=BINDING, address="", now_s=0.0)
    with pytest.raises(ConfigError, match="GssAuthClient"):
        server_auth(realm, home).begin(side=Side.CLIENT, binding=BINDING, address="", now_s=0.0)
    with pytest.raises(ConfigError, match="not loaded"):
        GssAuthServer().begin(side=Side.SERVER, binding=BINDING, address="", now_s=0.0)


@pytest.mark.parametrize(("users", "words"), [(["ada"], "no realm"), (["@R"], "no realm"), ("ada@R", "list")])
def test_allowed_users_are_full_principals(users: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        GssAuthServer(allowed_users=users)


# --- the hook -------------------------------------------------------------------------------------------------------


class Hook(GssAuthServer):
    """Says what it is told to say, and notes whom it was asked about."""

    def __init__(self, keytab: Path, verdict: object) -> None:
        super().__init__(keytab)
        self.verdict = verdict
        self.asked: list[str] = []

    def name_accepted(self, name: object) -> bool:
        import gssapi

        assert isinstance(name, gssapi.Name)
        self.asked.append(str(name))
        if isinstance(self.verdict, Exception):
            raise self.verdict
        return self.verdict  # type: ignore[return-value]


def test_the_hook_is_asked_once_when_all_is_proven(realm: Realm, home: Path) -> None:
    hook = Hook(realm.folder / "secfarm.keytab", True)
    near, far = pair(realm, home, server=server_auth(realm, home, hook))
    reply = far.step(near.step(None))
    assert hook.asked == []
    last = near.step(reply)
    assert hook.asked == []
    far.step(last)
    assert hook.asked == [ADA]
    assert far.complete


@pytest.mark.parametrize("verdict", [False, None, 1, "yes", object(), ValueError("no"), SystemError()])
def test_only_true_accepts(realm: Realm, home: Path, verdict: object) -> None:
    hook = Hook(realm.folder / "secfarm.keytab", verdict)
    near, far = pair(realm, home, server=server_auth(realm, home, hook))
    with pytest.raises(AuthError) as error:
        meet(near, far)
    words = refusal(error)
    assert ADA in words
    assert ("raised" in words) is isinstance(verdict, Exception)
    assert not far.complete
    assert hook.asked == [ADA]


@pytest.mark.parametrize(
    "users", [[], [f"bob@{REALM}"], ["ada@OTHER.TEST"], [f"ADA@{REALM}"], [f"ada@{REALM}".lower()]]
)
def test_the_default_takes_exactly_the_users_that_are_listed(realm: Realm, home: Path, users: list[str]) -> None:
    """Another realm's ada is somebody else."""
    server = server_auth(realm, home, GssAuthServer(realm.folder / "secfarm.keytab", allowed_users=users))
    with pytest.raises(AuthError, match="not accepted"):
        meet(*pair(realm, home, server=server))


# --- what is wrong at the client ------------------------------------------------------------------------------------


def client_refusal(realm: Realm, home: Path, auth: GssAuthClient) -> str:
    near, _ = pair(realm, home, client=auth)
    with pytest.raises(AuthError) as error:
        near.step(None)
    return refusal(error)


def test_no_ticket(realm: Realm, home: Path) -> None:
    words = client_refusal(realm, home, GssAuthClient(ccache=home / "none"))
    assert "no Kerberos ticket" in words
    assert words.endswith("Run: kinit")


@pytest.mark.parametrize(("content", "words"), [(b"", "damaged or empty"), (b"x" * 100, "no credential cache")])
def test_a_cache_that_is_none(realm: Realm, home: Path, content: bytes, words: str) -> None:
    (home / "cache").write_bytes(content)
    assert words in client_refusal(realm, home, GssAuthClient(ccache=home / "cache"))


def test_a_cache_of_somebody_else(realm: Realm) -> None:
    """As another user, since nothing is closed to root."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    code = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
from secfarm.auth import GssAuthClient, Side
from secfarm.errors import AuthError
import gssapi
os.chmod(sys.argv[2], 0o711)
os.setuid(65534)
try:
    GssAuthClient(ccache=sys.argv[2] + "/ccache").begin(
        side=Side.CLIENT, binding=bytes(32), address="localhost:1", now_s=0.0).step(None)
except AuthError as error:
    print(error)
"""
    root = str(Path(__file__).parents[2])
    environ = {**os.environ, "KRB5_CONFIG": "/dev/null"}
    done = subprocess.run(
        [sys.executable, "-c", code, root, str(realm.folder)], capture_output=True, text=True, env=environ, check=False
    )
    realm.folder.chmod(0o700)
    assert "may not be read" in done.stdout, done


def test_an_expired_ticket(realm: Realm, home: Path) -> None:
    cache = realm.ticket("ada", "-l", "1s", ccache="expiring")
    auth = GssAuthClient(ccache=cache)
    deadline_s = time.monotonic() + 20
    error: AuthError | None = None
    while error is None:
        assert time.monotonic() < deadline_s
        try:
            pair(realm, home, client=auth)[0].step(None)
        except AuthError as problem:
            error = problem
    words = client_refusal(realm, home, auth)
    assert "expired" in words
    assert words.endswith("Run: kinit")


def test_an_unknown_service(realm: Realm, home: Path) -> None:
    assert "addprinc" in client_refusal(realm, home, GssAuthClient(service_name="nosuch"))
    assert "does not know the service" in client_refusal(realm, home, GssAuthClient(target="elsewhere"))


def test_an_unknown_realm(realm: Realm, home: Path) -> None:
    assert "domain_realm" in client_refusal(realm, home, GssAuthClient(target="secfarm/x@NOWHERE.TEST"))


def test_no_kdc(home: Path) -> None:
    need_kerberos()
    with Realm() as lonely, lonely.lived_in():
        lonely.ticket()
        lonely.stop()
        near = GssAuthClient().begin(side=Side.CLIENT, binding=BINDING, address=ADDRESS, now_s=0.0)
        with pytest.raises(AuthError) as error:
            near.step(None)
        assert "no KDC of the realm answers" in refusal(error)


def test_a_client_keytab_that_is_out_of_date(home: Path) -> None:
    need_kerberos()
    with Realm() as realm, realm.lived_in():
        keytab = realm.keytab("bob.keytab", "bob")
        realm.admin("cpw -randkey bob")
        assert "it changed" in client_refusal_only(GssAuthClient(client_keytab=keytab))
        realm.keytab("bob.keytab", "bob")
        realm.admin("modprinc -allow_tix bob")
        assert "locked the client's account" in client_refusal_only(GssAuthClient(client_keytab=keytab))
        realm.admin("delprinc -force bob")
        assert "does not know the client" in client_refusal_only(GssAuthClient(client_keytab=keytab))


def client_refusal_only(auth: GssAuthClient) -> str:
    near = auth.begin(side=Side.CLIENT, binding=BINDING, address=ADDRESS, now_s=time.time())
    with pytest.raises(AuthError) as error:
        near.step(None)
    return refusal(error)


# --- what is wrong at the server ------------------------------------------------------------------------------------


def server_refusal(near: Mechanism, far: Mechanism) -> str:
    token = near.step(None)
    with pytest.raises(AuthError) as error:
        far.step(token)
    assert not far.complete
    return refusal(error)


def test_a_keytab_without_our_principal(realm: Realm, home: Path) -> None:
    realm.keytab("ada.keytab", "ada")
    assert "ktadd" in server_refusal(*pair(realm, home, server=server_auth(realm, home, keytab="ada.keytab")))


def test_a_keytab_that_is_gone_or_damaged_since_the_start(realm: Realm, home: Path) -> None:
    copy = home / "copy.keytab"
    copy.write_bytes((realm.folder / "secfarm.keytab").read_bytes())
    copy.chmod(0o600)
    server = server_auth(realm, home, GssAuthServer(copy, allowed_users=[ADA]))
    meet(*pair(realm, home, server=server))
    copy.write_bytes(b"garbage")
    assert "no keytab" in server_refusal(*pair(realm, home, server=server))
    copy.unlink()
    assert "cannot be opened" in server_refusal(*pair(realm, home, server=server))


def test_new_keys_count_without_a_restart_and_old_ones_are_named(home: Path) -> None:
    need_kerberos()
    with Realm() as realm, realm.lived_in():
        realm.keytab("secfarm.keytab", SERVICE)
        realm.ticket()
        server = server_auth(realm, home)
        meet(*pair(realm, home, server=server))
        realm.admin(f"cpw -randkey {SERVICE}")
        realm.ticket()  # the old service ticket is gone with the old cache
        assert "key version" in server_refusal(*pair(realm, home, server=server))
        realm.keytab("secfarm.keytab", SERVICE)
        meet(*pair(realm, home, server=server))


def test_a_keytab_with_another_key_of_the_same_version(realm: Realm, home: Path) -> None:
    with Realm() as other:
        keytab = other.keytab("secfarm.keytab", SERVICE)
        server = server_auth(realm, home, GssAuthServer(keytab, allowed_users=[ADA]))
        assert "another key" in server_refusal(*pair(realm, home, server=server))


def test_clocks_apart(home: Path) -> None:
    """The client's clock is off; the offset to the KDC in its cache stands for it."""
    need_kerberos()
    with Realm(clockskew_s=5) as realm, realm.lived_in():
        realm.keytab("secfarm.keytab", SERVICE)
        realm.ticket()
        near, _ = pair(realm, home)
        near.step(None)  # the service's ticket is in the cache now
        skewed(realm.folder / "ccache", 1000)
        words = server_refusal(*pair(realm, home))
        assert "clocks" in words
        assert "NTP" in words
        skewed(realm.folder / "ccache", -1000)
        assert "clock is behind" in client_refusal(realm, home, GssAuthClient())


def skewed(cache: Path, offset_s: int) -> None:
    """Write the KDC's time offset into a credential cache: MIT, "Credential cache file format", header field 1."""
    content = cache.read_bytes()
    header_bytes = int.from_bytes(content[2:4], "big")
    field = (1).to_bytes(2, "big") + (8).to_bytes(2, "big") + offset_s.to_bytes(4, "big", signed=True) + bytes(4)
    cache.write_bytes(content[:2] + len(field).to_bytes(2, "big") + field + content[4 + header_bytes :])


# --- attacks --------------------------------------------------------------------------------------------------------


def test_a_token_that_was_seen_before(realm: Realm, home: Path) -> None:
    """Even on the very same channel; the replay cache is our own file."""
    server = server_auth(realm, home)
    near, far = pair(realm, home, server=server)
    token = near.step(None)
    far.step(token)
    again = pair(realm, home, server=server)[1]
    with pytest.raises(AuthError) as error:
        again.step(token)
    assert "replay" in refusal(error)
    assert (home / "kerberos/replay.rcache2").stat().st_mode & 0o077 == 0


def test_a_token_of_another_channel(realm: Realm, home: Path) -> None:
    assert "another channel" in server_refusal(*pair(realm, home, bindings=(OTHER_BINDING, BINDING)))


def test_a_client_that_sets_no_bindings_has_nothing_to_show_at_the_end(realm: Realm, home: Path) -> None:
    """The library takes such a context; our MIC over the binding is what stops the relay."""
    near, far = pair(realm, home, bindings=(OTHER_BINDING, BINDING))
    near._bindings = lambda: None  # type: ignore[attr-defined]
    reply = far.step(near.step(None))
    with pytest.raises(AuthError) as error:
        near.step(reply)  # the honest client behind a relay
    assert "stand in between" in refusal(error)
    near._check_mic = lambda *_: None  # type: ignore[attr-defined]
    with pytest.raises(AuthError):
        far.step(near._key(near._context).sign(b"whatever it has"))  # type: ignore[attr-defined]
    assert not far.complete


@pytest.mark.parametrize("where", ["header", "ticket", "authenticator"])
def test_an_altered_token(realm: Realm, home: Path, where: str) -> None:
    near, far = pair(realm, home)
    token = near.step(None)
    at = {"header": 1, "ticket": len(token) // 3, "authenticator": len(token) - 20}[where]
    with pytest.raises(AuthError) as error:
        far.step(flipped(token, at))
    refusal(error)
    assert not far.complete


def test_any_altered_byte_of_the_servers_answer_is_noticed(realm: Realm, home: Path) -> None:
    probe = pair(realm, home)
    length = len(probe[1].step(probe[0].step(None)))
    for at in [*range(0, length, 23), *range(length - 28, length, 5)]:
        near, far = pair(realm, home)
        reply = far.step(near.step(None))
        with pytest.raises(AuthError) as error:
            near.step(flipped(reply, at % len(reply)))
        refusal(error)
        assert not near.complete


def test_an_altered_last_token(realm: Realm, home: Path) -> None:
    near, far = pair(realm, home)
    last = near.step(far.step(near.step(None)))
    with pytest.raises(AuthError) as error:
        far.step(flipped(last, len(last) - 1))
    assert "stand in between" in refusal(error)
    assert not far.complete


def test_reflected_tokens(realm: Realm, home: Path) -> None:
    near, far = pair(realm, home)
    token = near.step(None)
    for reflected in (token, len(token).to_bytes(4, "big") + token + bytes(28)):
        other = pair(realm, home)[0]
        other.step(None)
        with pytest.raises(AuthError) as error:
            other.step(reflected)
        refusal(error)
    reply = far.step(token)
    with pytest.raises(AuthError) as error:
        far.step(reply[-28:])  # the server's own MIC
    refusal(error)


def test_spnego_ntlm_and_junk(realm: Realm, home: Path) -> None:
    import gssapi
    from gssapi import raw

    target = raw.import_name(f"secfarm@{HOST}".encode(), gssapi.NameType.hostbased_service)
    spnego = raw.init_sec_context(target, mech=gssapi.OID.from_int_seq("1.3.6.1.5.5.2")).token
    for token, word in ((spnego, "SPNEGO"), (b"NTLMSSP\0" + bytes(40), "NTLM"), (b"junk", "not one of Kerberos 5")):
        with pytest.raises(AuthError) as error:
            pair(realm, home)[1].step(token)
        assert word in refusal(error)


def test_a_ticket_for_another_service(realm: Realm, home: Path) -> None:
    realm.admin(f"addprinc -randkey host/{HOST}")
    assert "another service" in server_refusal(*pair(realm, home, client=GssAuthClient(service_name="host")))


def test_a_name_of_another_realm_that_ours_trusts(home: Path) -> None:
    """Really proven, over both KDCs; and still somebody else than the ada who is listed."""
    need_kerberos()
    with Realm() as ours, Realm(name=OTHER) as theirs:
        for one in (ours, theirs):
            one.admin(f"addprinc -pw trust krbtgt/{REALM}@{OTHER}")
            one.know(ours, theirs)
        keytab = ours.keytab("secfarm.keytab", SERVICE)
        with theirs.lived_in():
            theirs.ticket()
            with pytest.raises(AuthError, match=f"ada@{OTHER}' proved its name and is not accepted"):
                meet(*pair(ours, home))
            both = GssAuthServer(keytab, allowed_users=[f"ada@{OTHER}"])
            assert meet(*pair(ours, home, server=server_auth(ours, home, both)))[1].principal == f"ada@{OTHER}"


def test_nobody_is_not_a_name(realm: Realm, home: Path) -> None:
    import gssapi

    _, far = pair(realm, home)
    for name in ("WELLKNOWN/ANONYMOUS@WELLKNOWN:ANONYMOUS", f"WELLKNOWN/ANONYMOUS@{REALM}"):
        nobody = gssapi.raw.import_name(name.encode(), gssapi.NameType.kerberos_principal)
        with pytest.raises(AuthError, match="anonymous"):
            far._name(nobody, Side.CLIENT)  # type: ignore[attr-defined]


@pytest.mark.parametrize("flag", ["mutual authentication", "replay detection", "sequence"])
def test_a_client_that_does_not_ask_for_what_we_need(realm: Realm, home: Path, flag: str) -> None:
    near, far = pair(realm, home)
    del near._needed[flag]  # type: ignore[attr-defined]
    assert flag in server_refusal(near, far)


def test_delegated_credentials_are_refused(realm: Realm, home: Path) -> None:
    import gssapi

    realm.ticket("ada", "-f", ccache="forwardable")
    client = GssAuthClient(ccache=realm.folder / "forwardable")
    meet(*pair(realm, home, client=client))  # ours never delegates, though it could
    near, far = pair(realm, home, client=client)
    near._needed["delegation"] = gssapi.RequirementFlag.delegate_to_peer  # type: ignore[attr-defined]
    assert "delegates" in server_refusal(near, far)


def test_tokens_out_of_turn(realm: Realm, home: Path) -> None:
    near, far = pair(realm, home)
    with pytest.raises(AuthError, match="turn"):
        near.step(b"token")
    with pytest.raises(AuthError, match="turn"):
        far.step(None)
    meet(near, far)
    for mechanism in (near, far):
        with pytest.raises(AuthError, match="turn"):
            mechanism.step(b"token")


def test_the_package_is_asked_for_by_name_when_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gssapi", None)
    with pytest.raises(ConfigError, match=r"secfarm\[gssapi\]"):
        GssAuthClient().begin(side=Side.CLIENT, binding=BINDING, address=ADDRESS, now_s=0.0)
    with pytest.raises(ConfigError, match=r"secfarm\[gssapi\]"):
        ready_gss_client(GssAuthClient())


def test_nothing_of_a_key_is_in_a_repr(realm: Realm, home: Path) -> None:
    server, client = meet(*pair(realm, home))
    assert isinstance(server_auth(realm, home).source, KeytabFile)
    assert "context" not in repr(server.session_signer).lower().replace("contextkey", "")
    assert "keytab" in repr(server_auth(realm, home))
    assert "session" not in repr(client)
