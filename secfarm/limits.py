"""Numbers that bound what a peer can make us do. Each carries its unit and its reason; nothing is computed here."""

from __future__ import annotations

from typing import Final

DEFAULT_PORT: Final = 7419

# --- frames and messages ------------------------------------------------------------------------------------------
MAX_FRAME_BEFORE_AUTH_BYTES: Final = 16 << 10  # a handshake token is under 1 KiB, a GSS token under 8 KiB
MAX_FRAME_BYTES: Final = 8 << 20  # an envelope of a full batch; larger values travel as chunks
CHUNK_BYTES: Final = 256 << 10  # of a large value; small enough that a ping never waits long behind one
INLINE_BYTES: Final = 64 << 10  # encoded arguments or results up to this size ride inside their batch
MAX_VALUE_BYTES: Final = 1 << 30  # one encoded value, as chunks
MAX_PENDING_VALUES_BYTES: Final = 2 << 30  # announced and not yet complete, per session; so much may wait as well
MAX_UNREAD_BYTES: Final = 256 << 20  # of results that a client has not acknowledged: then nothing new begins for it

# --- batches ------------------------------------------------------------------------------------------------------
MAX_BATCH_CALLS: Final = 512
MAX_BATCH_BYTES: Final = 1 << 20  # the batcher stops adding calls here; one call alone may reach INLINE_BYTES more
MAX_CATEGORY_CHARS: Final = 128
MAX_STATEMENT_BYTES: Final = 1 << 20  # of a server, on one message of results: some four times one of 1024 outcomes
MAX_PROGRAM_BYTES: Final = 1 << 20
MAX_PROGRAMS_PER_SESSION: Final = 10_000
MAX_OUTSTANDING_TASKS: Final = 20_000  # default of policy's `tasks`

# --- values -------------------------------------------------------------------------------------------------------
MAX_DEPTH: Final = 100  # nesting of a value; far under the interpreter's recursion limit
MAX_ERROR_TEXT_BYTES: Final = 64 << 10  # a remote traceback

# --- output -------------------------------------------------------------------------------------------------------
MAX_OUTPUT_CHARS: Final = 1 << 20  # of one task; a message holds it in any encoding, with an ordinary result beside it
MAX_LIVE_CHARS: Final = 2 * MAX_OUTPUT_CHARS  # the same while it runs, as a client bounds it: room for notes

# --- time ---------------------------------------------------------------------------------------------------------
HANDSHAKE_TIMEOUT_S: Final = 5.0  # from accept to a proven name, whatever trickles in meanwhile
IDLE_PING_S: Final = 15.0  # a client that hears nothing this long asks
IDLE_TIMEOUT_S: Final = 60.0  # and after this long takes the line for dead
RESULT_KEEP_S: Final = 600.0  # a result whose client vanished waits this long to be asked for again

# --- one source of connections ------------------------------------------------------------------------------------
MAX_UNAUTHENTICATED: Final = 64  # connections in handshake at once, in all
MAX_UNAUTHENTICATED_PER_SOURCE: Final = 16
MAX_SESSIONS: Final = 1024
MAX_SESSIONS_PER_PRINCIPAL: Final = 256
# Of a worker, beyond what its tasks may allocate: threads reserve addresses that they never touch, 64 MiB each.
RESERVED_BYTES: Final = 1 << 29
