"""Envelopes that nobody entitled signed, or not for here, or not for now: nothing of them runs."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from secfarm.errors import AuthError
from secfarm.sign.envelope import Envelope, Signature, decode_envelope, encode_envelope
from secfarm.sign.keys import SharedSecret
from secfarm.task import codec
from secfarm.task.payload import BATCH_VERSION, Batch, Call, Kill, ProgramText
from secfarm.task.program import (
    Function,
    FunctionKind,
    ImportRef,
    NameProgram,
    Namespace,
    Place,
    SourceProgram,
    make_program,
)
from secfarm.wire.messages import Submit
from tests.daemon.site import ADA, BOB, EVE, Client, Serving, Site, client
from tests.meeting import NETWORK, Notes, note

MARK = "print"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    folder = tmp_path_factory.mktemp("envelopes") / "site"
    folder.mkdir(mode=0o700)
    made = Site(folder)
    made.policy(
        '[[grant]]\nprincipals = ["ada"]\nmay = ["run", "call"]\nnames = ["operator.*", "json.*", "os.path.*"]\n'
        f"[grant.limits]\nwall_s = 3\n{NETWORK}"
        '[[grant]]\nprincipals = ["bob"]\nmay = ["run"]\n'
    )
    return made


@pytest.fixture(scope="module")
def serving(site: Site) -> Iterator[Serving]:
    with Serving(site) as running:
        yield running


@pytest.fixture
def mark(ran: Notes) -> Iterator[Notes]:
    """Where a task of an attack would leave a note."""
    yield ran
    assert ran.lines() == []


def refused(attacker: Client, wire: bytes, word: str = "refused") -> None:
    """The server says the word and closes."""
    with attacker:
        attacker.send(Submit(wire))
        goodbye = attacker.goodbye()
        assert goodbye is not None
        assert (goodbye.code, goodbye.text) == (word, "")
        assert attacker.outcomes == {}


def reason(site: Site) -> object:
    """What the audit log says about the last refusal."""
    return site.events("refused")[-1]["code"]


# --- whose signature ----------------------------------------------------------------------------------------------


def test_a_flipped_byte_anywhere_in_an_envelope_refuses_it(site: Site, serving: Serving, mark: Notes) -> None:
    """Every 23rd byte, and so every part of it: type, payload, key id, signature."""
    with client(serving, site) as ada:
        length = len(ada.sealed(ada.batch(ada.task(note, mark.port, 1))))
    for at in range(0, length, 23):
        ada = client(serving, site)
        wire = bytearray(ada.sealed(ada.batch(ada.task(note, mark.port, 1))))
        wire[at] ^= 0x20
        with ada:
            ada.send(Submit(bytes(wire)))
            assert ada.goodbye().code in {"refused", "protocol"}


@pytest.mark.parametrize(
    ("signer", "code"), [(EVE, "untrusted-key"), (BOB, "untrusted-key")], ids=["stranger", "other"]
)
def test_a_batch_that_somebody_else_signed_is_refused(
    site: Site, serving: Serving, mark: Notes, signer: object, code: str
) -> None:
    ada = client(serving, site)
    refused(ada, ada.sealed(ada.batch(ada.task(note, mark.port, 1)), signer=signer))
    assert reason(site) == code


def test_a_strangers_signature_under_our_key_id_is_refused(site: Site, serving: Serving, mark: Notes) -> None:
    ada = client(serving, site)
    forged = decode_envelope(ada.sealed(ada.batch(ada.task(note, mark.port, 1)), signer=EVE))
    wire = encode_envelope(
        Envelope(forged.payload_type, forged.payload, (Signature(ADA.key_id, forged.signatures[0].value),))
    )
    refused(ada, wire)
    assert reason(site) == "bad-signature"


def test_the_public_key_is_no_shared_secret(site: Site, serving: Serving, mark: Notes) -> None:
    ada = client(serving, site)
    confused = SharedSecret("ada", ADA.public.raw)
    wire = decode_envelope(ada.sealed(ada.batch(ada.task(note, mark.port, 1)), signer=confused))
    refused(
        ada,
        encode_envelope(Envelope(wire.payload_type, wire.payload, (Signature(ADA.key_id, wire.signatures[0].value),))),
    )
    assert reason(site) == "bad-signature"


def test_an_unsigned_envelope_is_refused(site: Site, serving: Serving, mark: Notes) -> None:
    import msgspec

    ada = client(serving, site)
    payload = decode_envelope(ada.sealed(ada.batch(ada.task(note, mark.port, 1))))
    refused(ada, msgspec.msgpack.encode([payload.payload_type, payload.payload, []]), "protocol")


def test_the_payload_of_a_batch_without_an_envelope_is_refused(site: Site, serving: Serving, mark: Notes) -> None:
    ada = client(serving, site)
    refused(ada, decode_envelope(ada.sealed(ada.batch(ada.task(note, mark.port, 1)))).payload, "protocol")


# --- when ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ('ada valid-before="20200101"', "expired"),
        ('ada valid-after="20900101"', "rewound"),
        ('ada namespaces="git"', "untrusted-key"),
    ],
)
def test_a_key_out_of_its_time_or_use_gets_no_session(tmp_path: Path, line: str, code: str) -> None:
    site = Site(tmp_path)
    site.allowed_signers(f"{line} {ADA.public.openssh()}\n")
    with Serving(site) as serving:
        with pytest.raises(AuthError, match="refused us"):
            client(serving, site)
        serving.until(lambda: bool(site.events("turned-away")))
    [record] = site.events("turned-away")
    assert ADA.key_id in str(record["reason"])


def test_a_key_that_expires_in_the_middle_of_a_session_signs_nothing_more(tmp_path: Path, mark: Notes) -> None:
    site = Site(tmp_path)
    site.allowed_signers(f'ada valid-before="20500101Z" {ADA.public.openssh()}\n')
    with Serving(site) as serving:
        ada = client(serving, site)
        assert ada.run("builtins:abs", -1) == 1
        ada.outcomes.clear()
        serving.server.clock = lambda: 2_600_000_000.0  # 2052
        refused(ada, ada.sealed(ada.batch(ada.task(note, mark.port, 1))))
        assert reason(site) == "expired"


# --- again, and elsewhere -----------------------------------------------------------------------------------------


def test_a_replayed_batch_is_refused(site: Site, serving: Serving, ran: Notes) -> None:
    ada = client(serving, site)
    one = ada.task(note, ran.port, 1)
    wire = ada.sealed(ada.batch(one))
    ada.send(Submit(wire))
    assert ada.outcome(one[1].task_id).error is None
    ada.outcomes.clear()
    refused(ada, wire)
    assert reason(site) == "replayed"
    assert ran.numbers() == [1]


def test_a_reordered_batch_is_refused(site: Site, serving: Serving, mark: Notes) -> None:
    ada = client(serving, site)
    first = ada.sealed(ada.batch(ada.task(note, mark.port, 1), sequence=1))
    ada.send(Submit(ada.sealed(Batch(BATCH_VERSION, 2))))
    refused(ada, first)
    assert reason(site) == "replayed"


def test_an_envelope_of_another_session_is_refused_even_with_its_label_changed(
    site: Site, serving: Serving, mark: Notes
) -> None:
    with client(serving, site) as other:
        stolen = other.sealed(other.batch(other.task(note, mark.port, 1)))
    refused(client(serving, site), stolen)
    assert reason(site) == "wrong-audience"
    ada = client(serving, site)
    envelope = decode_envelope(stolen)
    own = decode_envelope(ada.sealed(b"")).payload_type
    refused(ada, encode_envelope(Envelope(own, envelope.payload, envelope.signatures)))
    assert reason(site) == "bad-signature"


# --- beyond the grant ---------------------------------------------------------------------------------------------


def call_of(program: object, *args: object, **fields: object) -> tuple[object, Call]:
    return program, Call(os.urandom(16), program.key, codec.encode_call(args, {}), **fields)


@pytest.mark.parametrize(
    "name",
    [
        "operator:__loader__",
        "operator:_attrgetter",
        "json:__init__",
        "_operator:add",
        "json.__spec__",
        "operator:add.__call__",
        "operator:",
        ":add",
        "",
        "operator:add:x",
        "operator..add",
        "operator:add\x00",
        "opérator :add",
        "json:decoder. scanner",
    ],
)
def test_names_with_private_or_malformed_parts_refuse_the_batch(site: Site, serving: Serving, name: str) -> None:
    ada = client(serving, site)
    one = call_of(make_program(NameProgram(name)), 1, 2)
    refused(ada, ada.sealed(ada.batch(one)), "protocol")


@pytest.mark.parametrize(
    "name",
    [
        "os:system",
        "os.system",
        "posix:system",
        "builtins:eval",
        "builtins:exec",
        "subprocess:run",
        "operator.add.x",
        "json:decoder.scanner",
        "json.decoder.JSONDecoder",
        "operator2:add",
        "xoperator:add",
    ],
)
def test_names_that_no_pattern_covers_are_refused_and_others_of_the_batch_run(
    site: Site, serving: Serving, name: str
) -> None:
    with client(serving, site) as ada:
        bad, good = call_of(make_program(NameProgram(name)), "x"), ada.task("operator:add", 1, 2)
        ada.submit(bad, good)
        assert ada.outcome(bad[1].task_id).error.code == "refused"
        assert codec.decode(ada.outcome(good[1].task_id).value) == 3


@pytest.mark.parametrize("name", ["json:codecs.open", "json:decoder", "os.path:os.system", "os.path.os"])
def test_a_covered_name_does_not_lead_into_another_module(site: Site, serving: Serving, name: str) -> None:
    """Some are stopped by the pattern, the rest by the worker: none of them calls anything."""
    with client(serving, site) as ada:
        bad = call_of(make_program(NameProgram(name)), "true")
        ada.submit(bad)
        error = ada.outcome(bad[1].task_id).error
        assert (error.code, error.remote_type) in {
            ("refused", ""),
            ("raised", "AttributeError"),
            ("raised", "TypeError"),
        }


@pytest.mark.parametrize("timeout_s", [1e9, math.inf, math.nan, 0.0, -1.0, 5e-324])
def test_a_limit_above_the_grant_or_no_limit_at_all_is_not_obeyed(
    site: Site, serving: Serving, timeout_s: float
) -> None:
    def spin() -> None:
        while True:
            pass

    with client(serving, site) as ada:
        one = ada.task(spin, timeout_s=timeout_s)
        ada.submit(one)
        assert ada.outcome(one[1].task_id).error.code in {"timeout", "refused"}


@pytest.mark.parametrize("memory_bytes", [0, -1])
def test_memory_that_bounds_nothing_is_refused(site: Site, serving: Serving, memory_bytes: int) -> None:
    with client(serving, site) as ada:
        one = ada.task(lambda: 1, memory_bytes=memory_bytes)
        ada.submit(one)
        assert ada.outcome(one[1].task_id).error.code == "refused"


@pytest.mark.parametrize(
    "fields",
    [{"values": 0}, {"values": -2}, {"values": 2**62}, {"category": "x" * 129}],
    ids=str,
)
def test_a_call_with_references_out_of_range_refuses_the_batch(
    site: Site, serving: Serving, fields: dict[str, object]
) -> None:
    ada = client(serving, site)
    refused(ada, ada.sealed(ada.batch(ada.task(lambda: 1, **fields))), "protocol")


def test_a_task_id_twice_in_a_batch_refuses_it(site: Site, serving: Serving) -> None:
    ada = client(serving, site)
    one = ada.task(lambda: 1)
    refused(ada, ada.sealed(ada.batch(one, one)), "protocol")


def test_a_program_that_was_never_announced_here_is_refused(site: Site, serving: Serving) -> None:
    """Also when another session of the same principal announced it."""
    with client(serving, site) as other, client(serving, site) as ada:
        one = other.task(lambda: 12345)
        other.submit(one)
        assert other.outcome(one[1].task_id).error is None
        ada.announced.add(one[0].key)
        again = ada.task(lambda: 1)
        ada.submit((one[0], Call(b"x" * 16, one[0].key, codec.encode_call((), {}))), again)
        assert ada.outcome(b"x" * 16).error.code == "refused"
        assert codec.decode(ada.outcome(again[1].task_id).value) == 1


def test_an_order_without_the_right_is_refused_and_says_one_word(site: Site, serving: Serving) -> None:
    with client(serving, site) as ada:
        answer = ada.order(Kill(1, "default"))
        assert (answer.error.code, answer.value) == ("refused", b"")
        assert "grant" not in answer.error.report


@pytest.mark.parametrize(
    "text", [b"", b"\xc1", b"\x90", b"\x92\x01\xa0", b"\x92\x02\xa3a.b", b"\x91" * 2000, b"\xdd\xff\xff\xff\xff"]
)
def test_a_malformed_program_refuses_the_batch(site: Site, serving: Serving, text: bytes) -> None:
    ada = client(serving, site)
    batch = Batch(BATCH_VERSION, 1, (ProgramText(text, b"\x92\xa43.11\x90"),))
    refused(ada, ada.sealed(batch), "protocol")


def test_a_program_whose_text_is_more_than_one_function_runs_nothing_of_it(
    site: Site, serving: Serving, mark: Notes
) -> None:
    """Statements beside the function, a decorator, a default and an annotation that would run when it is defined."""
    bad = f"__import__('socket').create_connection(('127.0.0.1', {mark.port}))"
    texts = [
        f"def f(): pass\n{bad}",
        f"@{bad}\ndef f(): pass",
        f"def f(x={bad}): pass",
        f"def f(x: {bad}): pass",
        f"def f() -> {bad}: pass",
        f"{bad}",
        f"class f:\n    {bad}",
        f"def f(): pass\ndef g(): {bad}",
    ]
    with client(serving, site) as ada:
        for text in texts:
            function = Function(FunctionKind.DEF, "f", text, 0)
            program = make_program(SourceProgram("f", (function,), (Namespace("m"),)), (Place("f.py", 1),))
            one = call_of(program)
            ada.submit(one)
            outcome = ada.outcome(one[1].task_id)
            assert outcome.error is not None or codec.decode(outcome.value) is None
        nested = f"lambda: [1 for x in ()] and ({bad})"
        function = Function(FunctionKind.LAMBDA, "<lambda>", f"lambda: 1)({bad}", 0)
        program = make_program(
            SourceProgram("f", (function,), (Namespace("m", (("x", ImportRef("os")),)),)), (Place("f.py", 1),)
        )
        one = call_of(program)
        ada.submit(one)
        assert ada.outcome(one[1].task_id).error is not None, nested


# --- text that would be printed -----------------------------------------------------------------------------------


def test_escapes_in_peers_text_land_escaped_in_the_audit_log(site: Site, serving: Serving) -> None:
    evil = '\x1b]0;owned\x07\x9b31m\r\n{"event":"forged"}\u202e\x7f'
    ada = client(serving, site, name=evil)
    envelope = decode_envelope(ada.sealed(b""))
    refused(ada, encode_envelope(Envelope(evil, b"", (Signature(evil, b""),))))
    ada = client(serving, site)
    refused(ada, encode_envelope(Envelope(envelope.payload_type, b"", (Signature(evil, b""),))))
    raw = (site.folder / "audit.jsonl").read_bytes()
    assert all(32 <= byte < 127 or byte == 10 for byte in raw)
    assert not site.events("forged")
