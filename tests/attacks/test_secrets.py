"""Key material: in no repr, log, record, traceback, and in no memory or environment of a worker."""

from __future__ import annotations

import copy
import logging
import os
import pickle
import traceback
from pathlib import Path

import pytest

from secfarm.auth.ed25519 import Ed25519AuthClient, Ed25519AuthServer
from secfarm.auth.shared_secret import SharedSecretAuth
from secfarm.errors import AuthError, SecfarmError
from secfarm.sign.keys import SharedSecret, SigningKey
from secfarm.trust.store import TrustStore
from secfarm.wire.messages import Submit
from tests.daemon.memory import forms, memory_of
from tests.daemon.site import EVE, Client, ServerProcess, Serving, Site, client, secret_client
from tests.meeting import Gate, pass_gate

SEED = bytes(range(100, 132))
SECRET = bytes(range(60, 92)) + b"tail"


def assert_hidden(text: str | bytes, *secrets: bytes) -> None:
    data = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
    for secret in secrets:
        for form in forms(secret):
            assert form not in data
            assert form[: len(form) // 2] not in data


def holders() -> list[object]:
    key, secret = SigningKey.from_seed(SEED), SharedSecret("ada", SECRET)
    store = TrustStore((), [secret])
    return [
        key,
        secret,
        Ed25519AuthClient(key),
        Ed25519AuthServer(key, store),
        SharedSecretAuth(secret),
        store,
    ]


@pytest.mark.parametrize("number", range(6))
def test_no_repr_str_or_format_shows_a_secret(number: int) -> None:
    one = holders()[number]
    for text in (repr(one), str(one), f"{one}", f"{[one]}", f"{ ({'x': one}) }"):
        assert_hidden(text, SEED, SECRET)


@pytest.mark.parametrize("number", range(2))
def test_keys_are_not_pickled_or_copied(number: int) -> None:
    one = holders()[number]
    for make in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="secret"):
            make(one)


def test_a_traceback_with_locals_shows_no_secret() -> None:
    """As crash reporters print them: every local variable of every frame, by its repr."""
    key, secret = holders()[:2]
    try:
        key.sign(None)
    except Exception as error:  # noqa: BLE001 - any error shows frames
        shown = traceback.TracebackException.from_exception(error, capture_locals=True)
        text = "".join(shown.format())
    assert_hidden(text, SEED)
    try:
        secret.verify(b"message", b"x" * 32)
    except SecfarmError as error:
        assert_hidden(str(error), SECRET)


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG)
    return caplog


def test_no_log_and_no_record_shows_a_secret_or_an_argument(site: Site, log: pytest.LogCaptureFixture) -> None:
    """Of honest sessions, refused clients and refused batches, at every level."""
    site.config(secrets=["cy.secret"])
    site.policy('[[grant]]\nprincipals = ["ada", "cy"]\nmay = ["run", "call"]\nnames = ["*"]\n')
    with Serving(site) as serving:
        with client(serving, site) as ada, secret_client(serving, site.secret) as cy:
            assert ada.run(lambda x: x, "argument-of-a-task") == "argument-of-a-task"
            assert cy.run("builtins:str", "argument-of-a-task") == "argument-of-a-task"
            cy.send(Submit(b"\xc1"))
            cy.goodbye()
        with pytest.raises(AuthError):
            client(serving, site, EVE)
        with pytest.raises(AuthError):
            secret_client(serving, SharedSecret("cy", b"w" * 32))
    seeds = [site.key.reveal_seed(), site.secret.reveal_secret(), b"\x01" * 32]
    everything = (site.folder / "audit.jsonl").read_bytes() + log.text.encode()
    assert_hidden(everything, *seeds)
    assert b"argument-of-a-task" not in everything


@pytest.mark.skipif(
    os.geteuid() != 0
    and Path("/proc/sys/kernel/yama/ptrace_scope").exists()
    and Path("/proc/sys/kernel/yama/ptrace_scope").read_text().strip() not in "01",
    reason="this system lets nobody but root read the memory of another process",
)
def test_no_worker_has_key_material_in_its_memory(site: Site, gate: Gate) -> None:
    """Searched for as bytes; the server itself, where they must be, is what proves the search."""
    site.config(secrets=["cy.secret"])
    secrets = [site.key.reveal_seed(), site.secret.reveal_secret()]
    with ServerProcess(site) as server, client(server, site) as ada:
        ada.submit(ada.task(pass_gate, *gate.arguments(0)))
        worker = gate.next()
        found = [any(secret in region for region in memory_of(server.process.pid)) for secret in secrets]
        assert found == [True, True]
        for region in memory_of(worker):
            for secret in secrets:
                for form in forms(secret)[:3]:
                    assert form not in region
        assert Path(f"/proc/{worker}/environ").read_bytes() == b""
        assert_hidden(Path(f"/proc/{worker}/cmdline").read_bytes(), *secrets)
        gate.open()
    assert server.stderr.read_text() == ""


def test_an_honest_client_sends_nothing_that_another_server_could_use(site: Site, serving: Serving) -> None:
    """The whole stream of a client, seen from inside TLS, holds neither its key nor a reusable proof."""
    said: list[bytes] = []
    ada = Client(serving.address, site.auth(), EVE)
    send = ada.socket.sendall
    ada.socket.sendall = lambda data: said.append(bytes(data)) or send(data)  # type: ignore[method-assign]
    with ada:
        ada.meet()
    assert_hidden(b"".join(said), b"\x01" * 32)
