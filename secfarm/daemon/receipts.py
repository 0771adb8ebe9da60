"""The notary of a session: signs what became of its tasks, once for each message of results."""

from __future__ import annotations

from typing import TYPE_CHECKING

from secfarm.sign.keys import SharedSecret
from secfarm.task.payload import Blob
from secfarm.trust.receipt import OK, STATEMENT_VERSION, Entry, Statement, digest_of, sign_statement

if TYPE_CHECKING:
    from secfarm.auth.base import Peer
    from secfarm.sign.keys import Signer, SigningKey
    from secfarm.wire.messages import Outcome


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

    def statement(self, outcomes: list[Outcome], programs: list[str]) -> bytes:
        """Return a signed statement on `outcomes`; `programs` are the digests (hex) of what they were calls of."""
        if self._signer is None:
            return b""
        entries = [
            Entry(
                outcome.task_id,
                bytes.fromhex(program),
                OK if outcome.error is None else outcome.error.code,
                outcome.value.digest if isinstance(outcome.value, Blob) else digest_of(outcome.value),
                outcome.started_s,
                outcome.ended_s,
            )
            for outcome, program in zip(outcomes, programs, strict=True)
        ]
        statement = Statement(STATEMENT_VERSION, self._server, self._principal, self._session_id, tuple(entries))
        return sign_statement(statement, self._signer)
