"""A client's side of receipts: what it keeps of each result, and the check against it when the receipt is read."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from secfarm.auth.ed25519 import Ed25519AuthClient
from secfarm.auth.shared_secret import SharedSecretAuth
from secfarm.disk.keyfile import read_secret
from secfarm.disk.trustfile import read_known_servers
from secfarm.errors import BadSignatureError, UntrustedKeyError
from secfarm.sign.keys import SharedSecret
from secfarm.task.payload import Blob
from secfarm.trust.receipt import OK, Receipt, check_receipt, digest_of, receipt_in
from secfarm.trust.store import KnownServers

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TypeAlias

    from secfarm.auth.base import Peer
    from secfarm.farm.future import Future, Submission
    from secfarm.sign.keys import Verifier
    from secfarm.trust.store import KnownServer
    from secfarm.wire.messages import Outcome, Results

    Known: TypeAlias = (
        "KnownServers | Sequence[KnownServer] | str | os.PathLike[str] | SharedSecret | Ed25519AuthClient "
        "| SharedSecretAuth"
    )


@dataclass(frozen=True, slots=True)
class Testimony:
    """What the server signed beside one message of results; nothing of it is checked before somebody asks."""

    statement: bytes
    key: Verifier  # the one that the server proved in this session


def testimony_of(message: Results, peer: Peer | None) -> Testimony | None:
    """Return what the results of `message` share, or None where there is nothing that could be checked."""
    if peer is None or peer.verifier is None or not message.statement:
        return None
    return Testimony(message.statement, peer.verifier)


def keep(submission: Submission, testimony: Testimony | None, outcome: Outcome) -> None:
    """Note at the task's future what its receipt is to be about; no object is made for it but the digest."""
    if testimony is None or submission.dry_run:  # what did not run needs no receipt
        return
    future, value = submission.future, outcome.value
    future.testimony = testimony
    future.digest = value.digest if isinstance(value, Blob) else digest_of(value)
    if outcome.error is not None:
        future.outcome = outcome.error.code


def receipt_of(future: Future[object], testimony: Testimony, task_id: bytes, task_digest: str) -> Receipt:
    """Return the receipt, if the server signed it and it is about the result that came.

    Raises:
        VerifyError: it is not.
    """
    receipt = receipt_in(testimony.statement, task_id, testimony.key)
    refused = receipt.outcome != OK and not receipt.task_digest
    said = (receipt.task_digest, receipt.outcome, receipt.result_digest)
    if said != ("" if refused else task_digest, future.outcome, future.digest.hex()):
        raise BadSignatureError(
            f"the receipt of {receipt.server!a} is not about what it sent for task {task_id.hex()}; do not believe "
            "the result"
        )
    return receipt


def verify_receipt(receipt: Receipt | bytes, known_servers: Known) -> Receipt:
    """Return what the receipt says if a server that we know signed it, else raise.

    Args:
        receipt: `Future.receipt`, or its bytes.
        known_servers: a `KnownServers` or its entries, the path of a `known_servers` file, or a client's auth. For
            sessions by shared secret, the `SharedSecret` or `SharedSecretAuth`: such a receipt proves something to us
            alone, for the client could have made it as well.

    Raises:
        UntrustedKeyError: signed by a key that is in no line of it.
        BadSignatureError: bytes or fields were changed, or it was signed as something else.
        VerifyError: it is no receipt.
        TrustFileError, KeyFileError: a file cannot be used.
    """
    found = check_receipt(bytes(receipt), _keys(known_servers))
    if isinstance(receipt, Receipt) and receipt != found:
        changed = [field.name for field in fields(found) if getattr(found, field.name) != getattr(receipt, field.name)]
        raise BadSignatureError(f"{', '.join(changed)} of the receipt is not what was signed; nothing was believed")
    return found


def _keys(known: Known) -> list[Verifier]:
    if isinstance(known, Ed25519AuthClient):
        if known.known_servers is None:
            raise UntrustedKeyError("the auth names no known_servers; nothing was believed. Give the file's path")
        known = known.known_servers
    if isinstance(known, SharedSecret):
        return [known]
    if isinstance(known, SharedSecretAuth):
        return [one if isinstance(one, SharedSecret) else read_secret(one) for one in known.secrets]
    if isinstance(known, str | os.PathLike):
        known = read_known_servers(known)
    if not isinstance(known, KnownServers):
        known = KnownServers(known)
    return [entry.key for entry in known.entries]
