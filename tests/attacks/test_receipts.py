"""Receipts that are lies: of a false server, of another key, signed as something else. None is believed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Final

import msgspec
import pytest

from secfarm import Kernel, verify_receipt
from secfarm.auth import Ed25519AuthClient
from secfarm.errors import BadSignatureError, UntrustedKeyError, VerifyError
from secfarm.sign.envelope import Envelope, decode_envelope, encode_envelope
from secfarm.sign.keys import SharedSecret, SigningKey
from secfarm.task import codec
from secfarm.task.capture import capture
from secfarm.trust.receipt import Entry, Statement, encode_receipt, sign_statement
from secfarm.wire.messages import Outcome, Results, Submit
from tests.attacks.test_middle import FalseServer, known
from tests.daemon.site import ADA, DEADLINE_S, Client, Serving, Site, client, secret_client

KEY: Final = SigningKey.from_seed(b"\x07" * 32)
VALUE: Final = codec.encode("forged")
DIGEST: Final = hashlib.sha256(codec.encode("true")).digest()

Lie = Callable[[bytes, bytes], bytes]  # task id, program's digest -> the statement beside the result


def statement(entry: Entry, key: SigningKey = KEY) -> bytes:
    return sign_statement(Statement(1, "false", "ada", "s", (entry,)), key)


def honest(task_id: bytes, program: bytes) -> Entry:
    return Entry(task_id, program, "ok", hashlib.sha256(VALUE).digest(), 1.0, 2.0)


def replaced(**fields: object) -> Lie:
    return lambda task_id, program: statement(msgspec.structs.replace(honest(task_id, program), **fields))


def as_batch(task_id: bytes, program: bytes) -> bytes:
    """Signed by the right key, as a batch would be."""
    envelope = decode_envelope(statement(honest(task_id, program)))
    return encode_envelope(Envelope("application/vnd.secfarm.batch+msgpack", envelope.payload, envelope.signatures))


LIES: Final[dict[str, tuple[Lie, type[VerifyError]]]] = {
    "another task": (replaced(task_id=b"x" * 16), VerifyError),
    "another program": (replaced(program=b"x" * 32), BadSignatureError),
    "another result": (replaced(result=DIGEST), BadSignatureError),
    "another outcome": (replaced(outcome="raised"), BadSignatureError),
    "another key": (lambda task_id, program: statement(honest(task_id, program), ADA), UntrustedKeyError),
    "another use": (as_batch, VerifyError),
    "garbage": (lambda *_: b"\xc1" * 100, VerifyError),
}


def run(lie: Lie) -> object:
    """Take a result of a proven server that lies beside it, and return the receipt that we are shown."""

    def answer(ids: tuple[bytes, ...]) -> list[Results]:
        program = bytes.fromhex(capture(abs).program.digest)
        return [Results((Outcome(one, VALUE, None, 1.0, 2.0),), lie(one, program)) for one in ids]

    with (
        FalseServer(answer, KEY) as server,
        Kernel([server.address], auth=Ed25519AuthClient(ADA, known(KEY)), connect_timeout_s=DEADLINE_S) as kernel,
    ):
        future = kernel.submit(abs, -1)
        assert future.result(DEADLINE_S) == "forged"
        return future.receipt


@pytest.mark.parametrize("lie", LIES)
def test_a_receipt_about_something_else_is_not_shown(lie: str) -> None:
    make, error = LIES[lie]
    with pytest.raises(error):
        run(make)


def test_the_same_server_is_believed_where_it_says_what_it_sent() -> None:
    """So the lies fail for what they are."""
    assert getattr(run(lambda task_id, program: statement(honest(task_id, program))), "outcome", None) == "ok"
    assert run(lambda *_: b"") is None


def statement_of(one: Client) -> bytes:
    task = one.task("operator:neg", 1)
    one.submit(task)
    one.outcome(task[1].task_id)
    [message] = [message for message in one.heard if isinstance(message, Results)]
    return message.statement


def test_a_statement_is_no_batch_and_a_batch_no_statement(site: Site, serving: Serving) -> None:
    with client(serving, site) as ada:
        signed = statement_of(ada)
        assert verify_receipt(encode_receipt(signed, 0), site.known()).principal == "ada"
        ada.send(Submit(signed))
        assert (goodbye := ada.goodbye()) is not None
        assert goodbye.code == "refused"
    with client(serving, site) as ada:
        batch = ada.sealed(ada.batch(ada.task("operator:neg", 1)))
        with pytest.raises(VerifyError):
            verify_receipt(encode_receipt(batch, 0), site.known())


def test_a_dry_run_cannot_pass_as_a_run(site: Site, serving: Serving) -> None:
    with client(serving, site) as ada:
        task = ada.task("operator:neg", 1, dry_run=True)
        ada.submit(task)
        ada.outcome(task[1].task_id)
        [message] = [message for message in ada.heard if isinstance(message, Results)]
        assert verify_receipt(encode_receipt(message.statement, 0), site.known()).outcome == "checked"


def test_a_statement_under_a_secret_is_no_batch_and_nothing_to_others(site: Site) -> None:
    """The client's own tags and the server's differ in the payload type, which the tag covers."""
    site.config(secrets=["cy.secret"])
    site.policy('[[grant]]\nprincipals = ["cy"]\nmay = ["call"]\nnames = ["operator.*"]\n')
    with Serving(site) as serving, secret_client(serving, site.secret) as cy:
        signed = statement_of(cy)
        receipt = encode_receipt(signed, 0)
        assert verify_receipt(receipt, site.secret).principal == "cy"
        for others in (site.known(), SharedSecret("cy", b"o" * 32)):
            with pytest.raises(UntrustedKeyError):
                verify_receipt(receipt, others)
        cy.send(Submit(signed))
        assert (goodbye := cy.goodbye()) is not None
        assert goodbye.code == "refused"
