"""The gate: each check refuses what it is there for, in the order of the law, and only it makes a VerifiedBatch."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import pickle
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secfarm.errors import (
    BadSignatureError,
    ExpiredError,
    PolicyError,
    ProtocolError,
    ReplayedError,
    RevokedKeyError,
    RewoundError,
    SecfarmError,
    UntrustedKeyError,
    VerifyError,
    WrongAudienceError,
)
from secfarm.limits import MAX_BATCH_CALLS, MAX_FRAME_BYTES, MAX_PROGRAMS_PER_SESSION, MAX_VALUE_BYTES
from secfarm.sign.envelope import (
    BATCH_TYPE,
    Envelope,
    Signature,
    audience_type,
    decode_envelope,
    encode_envelope,
    pae,
    seal,
    session_type,
)
from secfarm.sign.keys import SharedSecret, Signer, SigningKey
from secfarm.task.payload import (
    BATCH_VERSION,
    Batch,
    Blob,
    Call,
    Cancel,
    EndServer,
    Kill,
    Priority,
    ProgramText,
    Status,
    encode_batch,
)
from secfarm.task.program import (
    Function,
    FunctionKind,
    NameProgram,
    Namespace,
    Place,
    Program,
    SourceProgram,
    make_program,
)
from secfarm.trust.policy import Policy
from secfarm.trust.store import TrustStore, parse_allowed_signers
from secfarm.trust.verify import MAX_PROGRAMS_BYTES, SessionTrust, VerifiedBatch, verify_batch

KEY = SigningKey.from_seed(bytes(range(32)))
STRANGER = SigningKey.from_seed(b"\x01" * 32)
BOB = SigningKey.from_seed(b"\x02" * 32)
SECRET = SharedSecret("ada@laptop", b"s" * 32)
SESSION = "5e55" * 16
NOW_S = 1_700_000_000.0  # 2023-11-14T22:13:20Z

POLICY = """\
[[grant]]
principals = ["ada@laptop"]
may = ["run", "call", "kill"]
names = ["operator.*"]
[grant.limits]
wall_s = 60
memory_bytes = 1000000
"""


def source(text: str = "lambda: 1") -> Program:
    function = Function(FunctionKind.LAMBDA, "<lambda>", text, 0)
    return make_program(SourceProgram("<lambda>", (function,), (Namespace("__main__"),)), (Place("f.py", 1),))


def named(name: str) -> Program:
    return make_program(NameProgram(name))


SOURCE, ADD, SYSTEM = source(), named("operator:add"), named("os:system")


def call(program: Program = SOURCE, number: int = 0, **fields: object) -> Call:
    settings: dict[str, object] = {"arguments": b"\x92\x90\x80", **fields}
    return Call(number.to_bytes(16, "big"), program.key, **settings)


def batch(*calls: Call, programs: Sequence[Program] = (SOURCE,), sequence: int = 0, **fields: object) -> Batch:
    texts = tuple(program.wire for program in programs)
    return Batch(BATCH_VERSION, sequence, texts, calls=calls or (call(),), **fields)


def sealed(content: Batch | bytes, signer: Signer = KEY, *, payload_type: str = session_type(SESSION)) -> bytes:
    payload = content if isinstance(content, bytes) else encode_batch(content)
    return encode_envelope(seal(payload_type, payload, signer))


def context(line: str = "ada@laptop {key}\n", *, policy: str = POLICY, revoked: Sequence[str] = ()) -> SessionTrust:
    text = line.format(key=KEY.public.openssh()) + f"bob {BOB.public.openssh()}\n"
    store = TrustStore(parse_allowed_signers(text, file="F"), [SECRET], revoked)
    return SessionTrust(SESSION, "ada@laptop", store, Policy.parse(policy, file="P"))


def verify(content: Batch, session: SessionTrust | None = None) -> VerifiedBatch:
    return verify_batch(sealed(content), session or context(), NOW_S)


def refuse(
    wire: bytes, session: SessionTrust, error: type[SecfarmError], *, match: str | None = None, now_s: float = NOW_S
) -> None:
    """Check that `wire` is refused with exactly that class, and that nothing of the session moved."""
    last, programs = session.window.last, dict(session.programs)
    with pytest.raises(error, match=match) as caught:
        verify_batch(wire, session, now_s)
    assert type(caught.value) is error
    assert (session.window.last, session.programs) == (last, programs)


# --- what is accepted ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signer", [KEY, SECRET], ids=["ed25519", "hmac"])
def test_an_honest_batch_comes_out_as_it_went_in(signer: SigningKey | SharedSecret) -> None:
    session = context()
    content = batch(call(category="etl", timeout_s=5.0, priority=Priority.LOW), values=(b"\xc0",), sequence=7)
    wire = sealed(content, signer)
    verified = verify_batch(wire, session, NOW_S)
    assert verified.principal == "ada@laptop"
    assert verified.key_id == signer.key_id
    assert verified.digest == hashlib.sha256(wire).hexdigest()
    assert verified.envelope == wire
    assert verified.sequence == session.window.last == 7
    assert verified.calls == (msgspec.structs.replace(content.calls[0], memory_bytes=1_000_000),)
    assert (verified.refused_calls, verified.orders, verified.refused_orders) == ((), (), ())
    assert [program.key for program in verified.programs] == [SOURCE.key] == list(session.programs)
    assert verified.values == (b"\xc0",)
    assert verified.grant.place == "P:1"


def test_a_program_is_remembered_for_later_batches_of_the_session_only() -> None:
    session = context()
    verify(batch(sequence=0), session)
    assert verify(batch(programs=(), sequence=1), session).calls
    [refused] = verify(batch(programs=(), sequence=0)).refused_calls
    assert (refused.task_id, type(refused.error)) == (bytes(16), VerifyError)
    assert "never announced" in str(refused.error)


def test_a_second_signature_of_a_stranger_neither_helps_nor_hurts() -> None:
    content = encode_batch(batch())
    assert verify_batch(encode_envelope(seal(session_type(SESSION), content, STRANGER, KEY)), context(), NOW_S).calls
    refuse(encode_envelope(seal(session_type(SESSION), content, STRANGER)), context(), UntrustedKeyError)


# --- the envelope as a whole --------------------------------------------------------------------------------------


def _flips(wire: bytes, session: SessionTrust) -> None:
    for at in range(len(wire)):
        for flip in (0x01, 0x80, 0xFF):
            changed = bytearray(wire)
            changed[at] ^= flip
            with pytest.raises((ProtocolError, VerifyError)):
                verify_batch(bytes(changed), session, NOW_S)
    assert session.window.last == -1
    assert session.programs == {}
    assert verify_batch(wire, session, NOW_S).calls


@pytest.mark.parametrize("signer", [KEY, SECRET], ids=["ed25519", "hmac"])
def test_a_flipped_byte_anywhere_in_an_envelope_is_refused(signer: SigningKey | SharedSecret) -> None:
    """Every byte, key id and framing included; and the session is none the worse for it."""
    _flips(sealed(batch(), signer), context())


@given(st.data())
def test_a_cut_or_lengthened_envelope_is_refused(data: st.DataObject) -> None:
    wire = sealed(batch())
    cut = wire[: data.draw(st.integers(0, len(wire) - 1))]
    for other in (cut, wire + data.draw(st.binary(min_size=1, max_size=9))):
        refuse(other, context(), ProtocolError)


@given(st.binary(max_size=200))
def test_garbage_raises_protocol_or_verify_errors_only(wire: bytes) -> None:
    with pytest.raises((ProtocolError, VerifyError)):
        verify_batch(wire, context(), NOW_S)


@given(st.binary(max_size=120))
def test_a_signed_payload_of_garbage_is_a_protocol_error(payload: bytes) -> None:
    """A trusted key is no licence to confuse the parser."""
    refuse(sealed(payload), context(), ProtocolError)


def test_an_envelope_over_the_limit_is_not_read() -> None:
    refuse(bytes(MAX_FRAME_BYTES + 1), context(), ProtocolError, match="over the limit")


@pytest.mark.parametrize(
    "payload_type",
    [
        session_type("other"),
        session_type(SESSION[:-1]),
        audience_type(SESSION),
        BATCH_TYPE,
        session_type(SESSION) + " ",
        session_type(SESSION).upper(),
        "application/vnd.in-toto+json",
        "",
    ],
)
def test_an_envelope_for_elsewhere_is_the_wrong_audience(payload_type: str) -> None:
    refuse(sealed(batch(), payload_type=payload_type), context(), WrongAudienceError, match="Nothing was run")


def test_an_envelope_of_another_session_cannot_be_relabelled() -> None:
    stolen = decode_envelope(sealed(batch(), payload_type=session_type("other")))
    relabelled = Envelope(session_type(SESSION), stolen.payload, stolen.signatures)
    refuse(encode_envelope(relabelled), context(), BadSignatureError)


def test_a_signature_of_the_payload_without_its_type_is_none() -> None:
    payload = encode_batch(batch())
    for message in (payload, pae("", payload), pae(BATCH_TYPE, payload)):
        envelope = Envelope(session_type(SESSION), payload, (Signature(KEY.key_id, KEY.sign(message)),))
        refuse(encode_envelope(envelope), context(), BadSignatureError)


# --- keys ---------------------------------------------------------------------------------------------------------


def test_a_key_that_nobody_trusts_is_refused() -> None:
    refuse(sealed(batch(), STRANGER), context(), UntrustedKeyError, match="trust none")


def test_a_strangers_signature_under_a_trusted_key_id_is_refused() -> None:
    """The key id is a hint: it finds a key, and the key decides."""
    theirs = decode_envelope(sealed(batch(), STRANGER))
    for key_id in (KEY.key_id, SECRET.key_id):
        forged = Envelope(theirs.payload_type, theirs.payload, (Signature(key_id, theirs.signatures[0].value),))
        refuse(encode_envelope(forged), context(), BadSignatureError)


def test_a_public_key_is_never_an_hmac_secret() -> None:
    """The JWT confusion: the tag is made with the public key's bytes, the hint names the public key."""
    payload = encode_batch(batch())
    confused = SharedSecret("ada@laptop", KEY.public.raw)
    tag = confused.sign(pae(session_type(SESSION), payload))
    forged = Envelope(session_type(SESSION), payload, (Signature(KEY.key_id, tag),))
    refuse(encode_envelope(forged), context(), BadSignatureError)
    refuse(sealed(batch(), confused), context(), UntrustedKeyError)


def test_an_empty_key_id_finds_no_key() -> None:
    honest = decode_envelope(sealed(batch()))
    bare = Envelope(honest.payload_type, honest.payload, (Signature("", honest.signatures[0].value),))
    refuse(encode_envelope(bare), context(), UntrustedKeyError)


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ('ada@laptop valid-before="20231114221319Z" {key}\n', ExpiredError),
        ('ada@laptop valid-after="20231114221321Z" {key}\n', RewoundError),
        ('ada@laptop namespaces="git" {key}\n', UntrustedKeyError),
        ("ada@laptop cert-authority {key}\n", UntrustedKeyError),
        ("somebody@else {key}\n", UntrustedKeyError),
    ],
    ids=["expired", "not yet valid", "another namespace", "an authority", "another principal"],
)
def test_a_key_that_does_not_count_now_is_refused(line: str, error: type[SecfarmError]) -> None:
    refuse(sealed(batch()), context(line), error)


def test_a_key_expires_in_the_middle_of_a_session() -> None:
    session = context('ada@laptop valid-before="20231114221320Z" {key}\n')
    assert verify_batch(sealed(batch(sequence=0)), session, NOW_S).calls
    refuse(sealed(batch(sequence=1)), session, ExpiredError, now_s=NOW_S + 1)


def test_a_revoked_key_is_refused_and_so_it_is_when_the_store_is_replaced() -> None:
    refuse(sealed(batch()), context(revoked=[KEY.key_id]), RevokedKeyError)
    session = context()
    verify(batch(sequence=0), session)
    session.store = TrustStore()
    refuse(sealed(batch(sequence=1)), session, UntrustedKeyError)


def test_a_trusted_key_of_somebody_else_is_refused_in_this_session() -> None:
    """Bob's batch in Ada's session would run under Ada's grant."""
    refuse(sealed(batch(), BOB), context(), UntrustedKeyError, match="in a session of 'ada@laptop'")


# --- replay -------------------------------------------------------------------------------------------------------


def test_a_replayed_and_a_reordered_batch_are_refused() -> None:
    session = context()
    first, second = sealed(batch(sequence=1)), sealed(batch(sequence=2))
    assert verify_batch(second, session, NOW_S).sequence == 2
    for late in (second, first):
        refuse(late, session, ReplayedError)
    assert verify(batch(sequence=3), session).sequence == 3


def test_a_forged_batch_uses_no_number_up() -> None:
    """Else anyone could make the honest batches look replayed (Jupyter's mistake)."""
    session = context()
    honest = decode_envelope(sealed(batch(sequence=2**62)))
    forged = Envelope(honest.payload_type, honest.payload, (Signature(KEY.key_id, STRANGER.sign(b"")),))
    refuse(encode_envelope(forged), session, BadSignatureError)
    assert verify(batch(sequence=0), session).calls


def test_a_negative_sequence_is_never_admitted() -> None:
    refuse(sealed(batch(sequence=-1)), context(), ReplayedError)


# --- form ---------------------------------------------------------------------------------------------------------

_TWICE = (call(), call())
_MANY = tuple(call(number=number) for number in range(MAX_BATCH_CALLS + 1))


@pytest.mark.parametrize(
    "content",
    [
        Batch(BATCH_VERSION + 1, 0),
        batch(*_TWICE),
        batch(*_MANY),
        batch(call(values=0)),
        batch(call(values=-2), values=(b"",)),
        batch(call(values=1), values=(b"",)),
        batch(call(category="x" * 129)),
        batch(call(arguments=Blob(b"short", 1))),
        batch(call(arguments=Blob(bytes(32), 0))),
        batch(call(arguments=Blob(bytes(32), MAX_VALUE_BYTES + 1))),
        batch(values=(Blob(bytes(31), 1),)),
        batch(Call(b"short", SOURCE.key, b"")),
        batch(Call(bytes(16), b"short", b"")),
        batch(call(dry_run=True, spread=True)),
        batch(call(dry_run=True, broadcast=True)),
        batch(orders=(Kill(-1, "x"),)),
        batch(orders=(Kill(1, "x" * 129),)),
        batch(orders=(Cancel(1, (b"short",)),)),
        Batch(BATCH_VERSION, 0, (ProgramText(b"", b""),)),
        Batch(BATCH_VERSION, 0, (ProgramText(SOURCE.text, b"\xc1"),)),
        Batch(BATCH_VERSION, 0, (ProgramText(bytes(2 << 20), b""),)),
        Batch(BATCH_VERSION, 0, (SOURCE.wire,) * (MAX_BATCH_CALLS + 1)),
    ],
)
def test_what_our_client_never_sends_refuses_the_batch_whole(content: Batch) -> None:
    refuse(sealed(content), context(), ProtocolError)


def test_a_session_cannot_announce_programs_without_bound() -> None:
    many = context()
    many.programs = {number.to_bytes(32, "big"): SOURCE for number in range(MAX_PROGRAMS_PER_SESSION)}
    large = context()
    for number in range(MAX_PROGRAMS_BYTES // 1_000_000):
        large.remember((source(f"lambda: {number} '{'x' * 999_000}'"),))
    rest = tuple(source(f"lambda: '{letter * 200_000}'") for letter in "abc")
    for session in (many, large):
        with pytest.raises(ProtocolError, match="Open a new session"):
            verify(batch(programs=rest), session)
        assert not any(program.key in session.programs for program in rest)


# --- policy -------------------------------------------------------------------------------------------------------


def test_a_call_that_the_grant_denies_is_refused_alone() -> None:
    calls = (call(ADD, 1), call(SYSTEM, 2), call(SOURCE, 3), call(SOURCE, 4, broadcast=True))
    verified = verify(batch(*calls, programs=(SOURCE, ADD, SYSTEM)))
    assert [one.task_id[-1] for one in verified.calls] == [1, 3]
    assert [one.task_id[-1] for one in verified.refused_calls] == [2, 4]
    assert all(type(one.error) is PolicyError for one in verified.refused_calls)


@pytest.mark.parametrize(
    ("may", "accepted"),
    [
        ("", []),
        ('"run"', [3]),
        ('"call"', [1]),
        ('"run", "broadcast"', [3, 4]),
        ('"call", "broadcast"', [1, 5]),
        ('"broadcast"', []),
        ('"kill", "admin"', []),
    ],
)
def test_source_needs_run_names_need_call_broadcasts_need_both(may: str, accepted: list[int]) -> None:
    policy = f'[[grant]]\nprincipals = ["ada@laptop"]\nmay = [{may}]\nnames = ["operator.*"]\n'
    calls = (call(ADD, 1), call(SYSTEM, 2), call(SOURCE, 3), call(SOURCE, 4, broadcast=True))
    content = batch(*calls, call(ADD, 5, broadcast=True), programs=(SOURCE, ADD, SYSTEM))
    verified = verify(content, context(policy=policy))
    assert [one.task_id[-1] for one in verified.calls] == accepted
    assert len(verified.refused_calls) == 5 - len(accepted)


def test_without_a_grant_nothing_is_accepted() -> None:
    verified = verify(batch(orders=(Kill(1, "x"), EndServer(2), Status(3))), context(policy=""))
    assert verified.calls == verified.orders == ()
    assert [one.request_id for one in verified.refused_orders] == [1, 2, 3]


def test_orders_need_their_right_and_cancelling_needs_none() -> None:
    orders = (Cancel(1, (bytes(16),)), Kill(2, "x"), EndServer(3), Status(4))
    verified = verify(batch(orders=orders))
    assert verified.orders == orders[:2]
    assert [one.request_id for one in verified.refused_orders] == [3, 4]
    admin = '[[grant]]\nprincipals = ["ada@laptop"]\nmay = ["admin"]\n'
    assert verify(batch(orders=orders), context(policy=admin)).orders == (orders[0], *orders[2:])


@pytest.mark.parametrize(
    ("asked_s", "effective_s"), [(None, 60.0), (5.0, 5.0), (60.0, 60.0), (1e9, 60.0), (0.001, 0.001)]
)
def test_the_effective_timeout_is_the_smaller_of_asked_and_granted(asked_s: float | None, effective_s: float) -> None:
    [accepted] = verify(batch(call(timeout_s=asked_s))).calls
    assert accepted.timeout_s == effective_s


@pytest.mark.parametrize("asked_s", [0.0, -1.0, float("nan"), float("inf")])
def test_a_timeout_that_bounds_nothing_refuses_the_call(asked_s: float) -> None:
    verified = verify(batch(call(timeout_s=asked_s), call(number=1)))
    assert [one.task_id[-1] for one in verified.calls] == [1]
    assert [type(one.error) for one in verified.refused_calls] == [PolicyError]


def test_a_changed_policy_counts_from_the_next_batch_on() -> None:
    session = context()
    assert verify(batch(sequence=0), session).calls
    session.policy = Policy()
    assert verify(batch(sequence=1), session).refused_calls


# --- the seal -----------------------------------------------------------------------------------------------------


def _fields(verified: VerifiedBatch) -> dict[str, object]:
    return {one.name: getattr(verified, one.name) for one in dataclasses.fields(verified)}


def test_nothing_else_makes_a_verified_batch() -> None:
    verified = verify(batch())
    fields = _fields(verified)
    with pytest.raises(TypeError):
        VerifiedBatch(**fields)
    for seal_ in (None, object(), True, "seal"):
        with pytest.raises(TypeError, match="only trust"):
            VerifiedBatch(**fields, seal=seal_)
        with pytest.raises(TypeError, match="only trust"):
            dataclasses.replace(verified, principal="root", seal=seal_)
    with pytest.raises((TypeError, ValueError)):
        dataclasses.replace(verified, principal="root")
    for copying in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="not pickled or copied"):
            copying(verified)


def test_a_verified_batch_cannot_be_subclassed_or_changed() -> None:
    with pytest.raises(TypeError, match="no subclasses"):
        type("Forged", (VerifiedBatch,), {})
    with pytest.raises(dataclasses.FrozenInstanceError):
        verify(batch()).principal = "root"
    assert not hasattr(verify(batch()), "seal")
    assert not hasattr(verify(batch()), "__dict__")
