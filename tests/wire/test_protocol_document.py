"""docs/PROTOCOL.md is the law: its tags, states, limits and vectors are those of the code."""

from __future__ import annotations

import re
import typing
from pathlib import Path

import pytest

from secfarm import limits
from secfarm.auth import Ed25519AuthClient, Ed25519AuthServer, SharedSecretAuth, Side
from secfarm.sign.envelope import decode_envelope
from secfarm.sign.keys import SharedSecret, SigningKey
from secfarm.task.payload import Batch, Cancel, Status, encode_batch
from secfarm.trust.receipt import Entry, Statement, encode_receipt, sign_statement
from secfarm.trust.store import TrustStore, parse_allowed_signers, parse_known_servers
from secfarm.wire.frames import encode_frame
from secfarm.wire.messages import Goodbyes, Hello, Message, Ping, encode_message
from secfarm.wire.session import session_binding
from secfarm.wire.state import State

TEXT = (Path(__file__).parents[2] / "docs" / "PROTOCOL.md").read_text("utf-8")
VECTORS = {line.strip() for line in TEXT.splitlines() if line.startswith("  ")}

CLIENT_HELLO = encode_message(Hello(1, b"\x11" * 32, Side.CLIENT, ("ed25519",), "laptop", "3.11.2"))
SERVER_HELLO = encode_message(Hello(1, b"\x22" * 32, Side.SERVER, ("ed25519", "shared-secret"), "node1", "3.11.2"))
BINDING = session_binding(certificate=b"certificate", initiator_hello=CLIENT_HELLO, acceptor_hello=SERVER_HELLO)


def tokens(client: Ed25519AuthClient | SharedSecretAuth, server: Ed25519AuthServer | SharedSecretAuth) -> list[str]:
    """All tokens of one authentication, alternating."""
    sides = [
        client.begin(side=Side.CLIENT, binding=BINDING, address="node1", now_s=0.0),
        server.begin(side=Side.SERVER, binding=BINDING, address="", now_s=0.0),
    ]
    said: list[str] = []
    token = sides[0].step(None)
    while token is not None:
        said.append(token.hex())
        token = sides[len(said) % 2].step(token)
    assert all(side.complete for side in sides)
    return said


def test_frames_hellos_binding_and_batch_are_those_of_the_vectors() -> None:
    batch = encode_batch(Batch(1, 1, orders=(Cancel(1, (b"t" * 16,)), Status(2))))
    for made in (encode_frame(encode_message(Ping(1))), CLIENT_HELLO, SERVER_HELLO, BINDING, batch):
        assert made.hex() in VECTORS


def test_a_receipt_is_that_of_the_vectors() -> None:
    entry = Entry(b"t" * 16, b"p" * 32, "ok", b"r" * 32, 1.0, 2.0)
    signed = sign_statement(Statement(1, "node1", "ada", "a" * 64, (entry,)), SigningKey.from_seed(b"\x03" * 32))
    assert {decode_envelope(signed).payload.hex(), encode_receipt(signed, 0).hex()} <= VECTORS


def test_shared_secret_tokens_are_those_of_the_vectors() -> None:
    secret = SharedSecret("ada", bytes(range(32)))
    assert {secret.key_id, *tokens(SharedSecretAuth(secret), SharedSecretAuth(secret))} <= VECTORS


def test_ed25519_tokens_are_those_of_the_vectors() -> None:
    ada, node = SigningKey.from_seed(b"\x01" * 32), SigningKey.from_seed(b"\x03" * 32)
    known = parse_known_servers(f"node1 {node.public.openssh()}", file="known_servers")
    store = TrustStore(parse_allowed_signers(f"ada {ada.public.openssh()}", file="allowed_signers"))
    assert set(tokens(Ed25519AuthClient(ada, known), Ed25519AuthServer(node, store))) <= VECTORS


@pytest.mark.parametrize("kind", typing.get_args(Message), ids=lambda kind: kind.__name__)
def test_each_message_is_in_the_table_with_its_tag_and_fields(kind: type[Message]) -> None:
    row = re.search(
        rf"^\| {kind.__struct_config__.tag} \| {kind.__name__} \| (.*) \| (client|server|both) \|$", TEXT, re.MULTILINE
    )
    assert row is not None
    assert re.findall(r"(?:^|; )(\w+):", row[1]) == list(kind.__struct_fields__)


def test_each_state_and_each_code_is_named() -> None:
    for state in State:
        assert re.search(rf"^\| {state.value} \|", TEXT, re.MULTILINE), state
    for code in Goodbyes:
        assert f"`{code}`" in TEXT


@pytest.mark.parametrize(
    "number",
    [
        limits.MAX_FRAME_BEFORE_AUTH_BYTES,
        limits.MAX_FRAME_BYTES,
        limits.CHUNK_BYTES,
        limits.INLINE_BYTES,
        limits.MAX_PROGRAMS_PER_SESSION,
        limits.MAX_BATCH_CALLS,
    ],
)
def test_limits_are_those_of_the_code(number: int) -> None:
    assert re.search(rf"(?<![\d,]){number:,}(?!\d|,\d)", TEXT)
