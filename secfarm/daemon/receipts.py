"""The notary of a session: puts what became of its tasks into messages of results, and signs each once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from secfarm.limits import INLINE_BYTES, MAX_BATCH_BYTES, MAX_BATCH_CALLS
from secfarm.sign.keys import SharedSecret
from secfarm.task.payload import Blob
from secfarm.trust.receipt import CHECKED, OK, STATEMENT_VERSION, Entry, Statement, digest_of, sign_statement
from secfarm.wire.blobs import blob_of
from secfarm.wire.messages import Outcome, Results

if TYPE_CHECKING:
    from collections.abc import Iterable

    from secfarm.auth.base import Peer
    from secfarm.daemon.tasks import Task
    from secfarm.sign.keys import Signer, SigningKey
    from secfarm.task.outcome import Done


class Notary:
    """Signs for one session. With nothing to sign with, statements are empty."""

    def __init__(self, server: str, peer: Peer, session_id: str, key: SigningKey | None) -> None:
        """Prepare.

        Args:
            server: the server's name.
            peer: the session's client. One who proved a shared secret can check nothing but that.
            key: the server's own, if it has one.
        """
        self._signer: Signer | None = peer.verifier if isinstance(peer.verifier, SharedSecret) else key
        self._server = server
        self._principal = peer.principal
        self._session_id = session_id

    def results(self, told: Iterable[tuple[Task, Done]]) -> tuple[list[Results], list[tuple[Blob, bytes]]]:
        """Return the messages that tell what became of tasks, and the large values that are to follow them."""
        messages: list[Results] = []
        large: list[tuple[Blob, bytes]] = []
        outcomes: list[Outcome] = []
        entries: list[Entry] = []
        size = 0
        for task, done in told:
            value: bytes | Blob | None = done.value
            if done.value is not None and len(done.value) > INLINE_BYTES:
                value = blob_of(done.value)
                large.append((value, done.value))
            else:
                size += len(done.value or b"")
            size += len(done.output)
            if done.error is not None:
                size += len(done.error.report) + len(done.error.description)
            outcomes.append(Outcome(task.task_id, value, done.error, done.started_s, done.ended_s, done.output))
            entries.append(_entry(task, outcomes[-1]))
            if size > MAX_BATCH_BYTES or len(outcomes) == MAX_BATCH_CALLS:
                messages.append(Results(tuple(outcomes), self._statement(entries)))
                outcomes, entries, size = [], [], 0
        if outcomes:
            messages.append(Results(tuple(outcomes), self._statement(entries)))
        return messages, large

    def _statement(self, entries: list[Entry]) -> bytes:
        if self._signer is None:
            return b""
        statement = Statement(STATEMENT_VERSION, self._server, self._principal, self._session_id, tuple(entries))
        return sign_statement(statement, self._signer)


def _entry(task: Task, outcome: Outcome) -> Entry:
    word = OK if outcome.error is None else outcome.error.code
    if word == OK and task.work is not None and task.work.dry_run:
        word = CHECKED
    value = outcome.value
    digest = value.digest if isinstance(value, Blob) else digest_of(value)
    return Entry(outcome.task_id, bytes.fromhex(task.program), word, digest, outcome.started_s, outcome.ended_s)
