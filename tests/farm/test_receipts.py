"""Receipts as users meet them: with every result, of every way to reach a server, and good without it."""

from __future__ import annotations

import hashlib
import time
from dataclasses import replace
from pathlib import Path

import pytest

from secfarm import (
    BadSignatureError,
    Future,
    Kernel,
    PublicKey,
    Receipt,
    TaskExecutionError,
    TrustFileError,
    UntrustedKeyError,
    VerifyError,
    deftask,
    verify_receipt,
)
from secfarm.auth import Ed25519AuthClient
from secfarm.task import codec
from secfarm.trust.store import KnownServer, KnownServers
from tests.farm.farms import WAIT_S, Daemon
from tests.meeting import Gate


@deftask
def add(x: int, y: int) -> int:
    return x + y


@deftask
def zeros(size: int) -> bytes:
    return bytes(size)


def receipt_of(future: Future[object]) -> Receipt:
    receipt = future.receipt
    assert receipt is not None
    return receipt


def test_a_result_has_a_receipt_that_stands_alone(way: str, daemon: Daemon, kernel: Kernel) -> None:
    before_s = time.time()
    future = kernel.submit(add, 3, 4)
    assert future.result(WAIT_S) == 7
    receipt = receipt_of(future)
    assert (receipt.server, receipt.principal, receipt.outcome) == ("node", "tester", "ok")
    assert (receipt.task_id, receipt.task_digest) == (future.task_id, add.digest)
    assert receipt.result_digest == hashlib.sha256(codec.encode(7)).hexdigest()
    assert before_s - 1 <= receipt.started_s <= receipt.ended_s <= time.time() + 1
    assert receipt.key_id.startswith("HMAC:" if way.endswith("secret") else "SHA256:")
    assert verify_receipt(receipt, daemon.auth) == verify_receipt(bytes(receipt), daemon.auth) == receipt
    if isinstance(daemon.auth, Ed25519AuthClient):
        assert isinstance(daemon.auth.known_servers, KnownServers)
        assert verify_receipt(receipt, list(daemon.auth.known_servers.entries)) == receipt
    with pytest.raises(UntrustedKeyError):
        verify_receipt(receipt, [])


def test_every_outcome_has_one(kernel: Kernel) -> None:
    failed = kernel.submit(divmod, 1, 0)
    assert isinstance(failed.exception(WAIT_S), TaskExecutionError)
    assert (receipt_of(failed).outcome, receipt_of(failed).result_digest) == ("raised", "")
    large = kernel.submit(zeros, 300_000)
    assert large.result(WAIT_S) == bytes(300_000)
    assert receipt_of(large).result_digest == hashlib.sha256(codec.encode(bytes(300_000))).hexdigest()
    futures = [kernel.submit(add, number, 1) for number in range(2000)]
    results = [future.result(WAIT_S) for future in futures]
    for future, result in zip(futures, results, strict=True):
        receipt = receipt_of(future)
        assert (receipt.task_id, receipt.result_digest) == (
            future.task_id,
            hashlib.sha256(codec.encode(result)).hexdigest(),
        )


def test_a_refusal_has_one_too() -> None:
    policy = '[[grant]]\nprincipals = ["tester"]\nmay = ["call"]\nnames = ["math.*"]\n'
    with Daemon("unix-ed25519", policy=policy, workers=1) as daemon, daemon.connect() as kernel:
        refused = kernel.submit(add, 1, 2)
        assert refused.exception(WAIT_S) is not None
        receipt = receipt_of(refused)
        assert (receipt.outcome, receipt.task_digest, receipt.started_s) == ("refused", "", 0.0)


def test_a_receipt_outlives_kernel_and_server(tmp_path: Path) -> None:
    with Daemon("unix-ed25519", workers=1) as daemon:
        with daemon.connect() as kernel:
            future = kernel.submit(add, 1, 2)
        daemon.kill()
        assert isinstance(daemon.auth, Ed25519AuthClient)
        assert isinstance(daemon.auth.known_servers, KnownServers)
        key = daemon.auth.known_servers.entries[0].key
    path = tmp_path / "known_servers"
    path.write_text(f"node {key.openssh()}\n")
    path.chmod(0o600)
    assert verify_receipt(receipt_of(future), path).key_id == key.key_id
    path.chmod(0o666)
    with pytest.raises(TrustFileError):
        verify_receipt(receipt_of(future), path)


def test_there_is_none_before_the_end(one_kernel: Kernel, gate: Gate) -> None:
    future = gate.hold(one_kernel)
    assert future.receipt is None
    gate.wait()
    gate.open()
    future.result(WAIT_S)
    assert future.receipt is not None


def test_changed_fields_and_other_keys_are_not_believed(one_daemon: Daemon, one_kernel: Kernel) -> None:
    future = one_kernel.submit(add, 1, 2)
    future.result(WAIT_S)
    receipt = receipt_of(future)
    for changed in (
        {"outcome": "raised"},
        {"result_digest": "00" * 32},
        {"task_id": "00" * 16},
        {"principal": "root"},
        {"ended_s": 0.0},
        {"server": "other"},
    ):
        with pytest.raises(BadSignatureError, match=next(iter(changed))):
            verify_receipt(replace(receipt, **changed), one_daemon.auth)
    other = KnownServers([KnownServer(("*",), PublicKey(bytes(32)))])
    for nobody in (other, KnownServers()):
        with pytest.raises(UntrustedKeyError):
            verify_receipt(receipt, nobody)
    with pytest.raises(VerifyError):
        verify_receipt(b"", one_daemon.auth)
