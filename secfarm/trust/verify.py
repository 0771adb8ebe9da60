"""The one gate: from wire bytes to a `VerifiedBatch`, which nothing else can make and `run/` takes nothing but.

Each step is one function that returns its subject or raises; `verify_batch` is their order. The bytes verified are the
bytes parsed. What is wrong with the envelope refuses the batch whole; what a grant denies refuses the one call.
Law: docs/PROTOCOL.md, "Verification".
"""

from __future__ import annotations

import hashlib
from dataclasses import InitVar, dataclass
from typing import TYPE_CHECKING, Final, NoReturn

import msgspec

from secfarm.errors import (
    PolicyError,
    ProtocolError,
    UntrustedKeyError,
    VerifyError,
    WrongAudienceError,
)
from secfarm.limits import (
    MAX_BATCH_CALLS,
    MAX_CATEGORY_CHARS,
    MAX_FRAME_BYTES,
    MAX_PROGRAMS_PER_SESSION,
    MAX_VALUE_BYTES,
)
from secfarm.sign.envelope import BATCH_TYPE, Envelope, check_signatures, decode_envelope, session_type
from secfarm.sign.sshsig import TASK_NAMESPACE
from secfarm.task.payload import (
    AnyOrder,
    Batch,
    Blob,
    Call,
    Cancel,
    EndServer,
    Kill,
    Running,
    Status,
    TakeBack,
    decode_batch,
)
from secfarm.task.program import Program, ProgramKind, decode_program
from secfarm.trust.policy import Grant, Policy, Right
from secfarm.trust.replay import SequenceWindow
from secfarm.trust.store import TrustStore

if TYPE_CHECKING:
    from secfarm.sign.keys import Verifier

MAX_PROGRAMS_BYTES: Final = 64 << 20  # all programs that one session may have us remember
TASK_ID_BYTES: Final = 16
DIGEST_BYTES: Final = 32
_MAX_REQUEST_ID: Final = (1 << 63) - 1

_SEAL: Final = object()  # held by no one else: the proof that `verify_batch` was here


@dataclass(frozen=True, slots=True)
class RefusedCall:
    """A call that will not run, and why. The peer hears the error's public word only."""

    task_id: bytes
    error: VerifyError
    arguments: bytes | Blob  # a large value is sent all the same: whoever receives it must expect it


@dataclass(frozen=True, slots=True)
class RefusedOrder:
    """An order that will not be followed, and why."""

    request_id: int
    error: VerifyError


@dataclass(frozen=True, slots=True)
class VerifiedBatch:
    """A batch that a trusted principal signed for this session, and what its grant lets through.

    Attributes:
        principal: who signed it, by our trust files.
        key_id: with which key.
        digest: hex SHA-256 of the envelope's bytes.
        sequence: its number in the session.
        grant: what decided.
        calls: to run, their limits already the smaller of asked and granted.
        refused_calls: not to run.
        programs: those that it announced, in its order.
        values: captured values, encoded; `Call.values` is an index.
        orders: to follow.
        refused_orders: not to follow.
        envelope: the bytes that were verified, for an archive.
    """

    principal: str
    key_id: str
    digest: str
    sequence: int
    grant: Grant
    calls: tuple[Call, ...]
    refused_calls: tuple[RefusedCall, ...]
    programs: tuple[Program, ...]
    values: tuple[bytes | Blob, ...]
    orders: tuple[AnyOrder, ...]
    refused_orders: tuple[RefusedOrder, ...]
    envelope: bytes
    seal: InitVar[object]

    def __post_init__(self, seal: object) -> None:
        if seal is not _SEAL:
            raise TypeError("only trust.verify.verify_batch makes a VerifiedBatch")

    def __init_subclass__(cls) -> NoReturn:
        raise TypeError("a VerifiedBatch has no subclasses: one could skip the seal")

    def __reduce__(self) -> NoReturn:
        raise TypeError("a VerifiedBatch is not pickled or copied: it would be made anew without being verified")


class SessionTrust:
    """What the gate knows of one session: who is on its line, what it may, and what it announced.

    Attributes:
        store: may be replaced when the trust files change.
        policy: likewise.
        session_key: checks what the client signs without a key of its own (a GSS context's MIC, say); None where the
            mechanism gives none.
        programs: announced and remembered, by key. Read by the daemon, written here only.
    """

    __slots__ = ("_programs_bytes", "policy", "principal", "programs", "session_id", "session_key", "store", "window")

    def __init__(
        self, session_id: str, principal: str, store: TrustStore, policy: Policy, session_key: Verifier | None = None
    ) -> None:
        self.session_id = session_id
        self.principal = principal
        self.store = store
        self.policy = policy
        self.session_key = session_key
        self.window = SequenceWindow()
        self.programs: dict[bytes, Program] = {}
        self._programs_bytes = 0

    def remember(self, programs: tuple[Program, ...]) -> tuple[Program, ...]:
        """Return `programs`, remembered for later batches, if the session has room for them, else raise.

        Raises:
            ProtocolError: it has not. Forgetting some instead would refuse calls that the client takes for announced.
        """
        count = len(self.programs) + len(programs)
        size_bytes = self._programs_bytes + sum(len(one.text) + len(one.origin) for one in programs)
        if count > MAX_PROGRAMS_PER_SESSION or size_bytes > MAX_PROGRAMS_BYTES:
            raise ProtocolError(
                f"the session announced {count} programs of {size_bytes} bytes, over the limit of "
                f"{MAX_PROGRAMS_PER_SESSION} and {MAX_PROGRAMS_BYTES}; the batch was not run. Open a new session"
            )
        self._programs_bytes = size_bytes
        self.programs.update((program.key, program) for program in programs)
        return programs


def verify_batch(wire: bytes, context: SessionTrust, now_s: float) -> VerifiedBatch:
    """Return what may be run of the envelope in `wire`.

    Args:
        context: of the session it came by.
        now_s: Unix seconds by our clock.

    Raises:
        ProtocolError: not an envelope, or not of a batch that the protocol allows.
        VerifyError: of the subclass that says which check failed. In either case nothing of it may run and
            the context is as it was, save that a number once admitted stays used.
    """
    wire = check_size(wire)
    envelope = decode_envelope(wire)
    expected_type = check_type(envelope, context.session_id)
    candidates = find_keys(envelope, context.store, context.session_key)
    signer = check_signatures(envelope, candidates, expected_type=expected_type)[0]
    principal = check_principal(signer, context, now_s)
    batch = check_form(decode_batch(envelope.payload))
    programs = read_programs(batch)
    sequence = context.window.admit(batch.sequence)
    programs = context.remember(programs)
    grant = check_signer(signer, context, context.policy.grant_for(principal))
    calls, refused_calls = judge_calls(batch, context.programs, grant)
    orders, refused_orders = judge_orders(batch, grant)
    return VerifiedBatch(
        principal=principal,
        key_id=signer.key_id,
        digest=hashlib.sha256(wire).hexdigest(),
        sequence=sequence,
        grant=grant,
        calls=calls,
        refused_calls=refused_calls,
        programs=programs,
        values=batch.values,
        orders=orders,
        refused_orders=refused_orders,
        envelope=wire,
        seal=_SEAL,
    )


def check_size(wire: bytes) -> bytes:
    """Return `wire` if it is no longer than a frame may be, else raise `ProtocolError`."""
    if len(wire) > MAX_FRAME_BYTES:
        raise ProtocolError(f"an envelope of {len(wire)} bytes is over the limit of {MAX_FRAME_BYTES}; it was not read")
    return wire


def check_type(envelope: Envelope, session_id: str) -> str:
    """Return the payload type of this session's batches if it is the envelope's, else raise.

    The string is made of our own session id and is what the signature is verified over, so this comparison only
    gives the clearer error.

    Raises:
        WrongAudienceError: it is for another session, or is no batch.
    """
    expected = session_type(session_id)
    if envelope.payload_type != expected:
        what = "for another destination" if envelope.payload_type.startswith(BATCH_TYPE) else "no batch of tasks"
        raise WrongAudienceError(
            f"the envelope's type is {envelope.payload_type[:200]!r}: {what}; this session takes {expected!r}. "
            "Nothing was run"
        )
    return expected


def find_keys(envelope: Envelope, store: TrustStore, session_key: Verifier | None = None) -> tuple[Verifier, ...]:
    """Return the keys that the envelope's hints name, if we know one of them, else raise.

    Args:
        session_key: the session's own, known besides those of the store.

    Raises:
        UntrustedKeyError: we know none.
    """
    hints = dict.fromkeys(signature.key_id for signature in envelope.signatures)
    found = tuple([verifier for hint in hints for verifier in store.candidates(hint)])
    if session_key is not None and session_key.key_id in hints:
        found = (*found, session_key)
    if not found:
        raise UntrustedKeyError(f"signed by {', '.join(map(repr, hints))}, of which we trust none; nothing was run")
    return found


def check_principal(signer: Verifier, context: SessionTrust, now_s: float) -> str:
    """Return the signer's principal if it is the session's and its key counts now, else raise.

    Raises:
        UntrustedKeyError, RevokedKeyError, ExpiredError, RewoundError: see `TrustStore.principal_of`.
        UntrustedKeyError: it is somebody else than who authenticated.
    """
    if signer is context.session_key:
        return context.principal  # the handshake proved whose session it is
    principal = context.store.principal_of(signer.key_id, namespace=TASK_NAMESPACE, now_s=now_s)
    if principal != context.principal:
        raise UntrustedKeyError(
            f"signed by {principal!r} in a session of {context.principal!r}; nothing was run. Sign with the key of the "
            "one who connects"
        )
    return principal


def check_signer(signer: Verifier, context: SessionTrust, grant: Grant) -> Grant:
    """Return `grant` if it takes batches that this key signed, else raise.

    Raises:
        PolicyError: it demands a key of the client's own, and the session's signed.
    """
    if grant.require_key and signer is context.session_key:
        raise PolicyError(
            f"the grant at {grant.place} demands batches signed with a key of allowed_signers; this one is signed by "
            "the session only. Nothing was run. Give the kernel a key"
        )
    return grant


def check_form(batch: Batch) -> Batch:
    """Return `batch` if its numbers and references are ones that our own client could send, else raise.

    Raises:
        ProtocolError: they are not.
    """
    if len(batch.calls) + len(batch.orders) > MAX_BATCH_CALLS or len(batch.programs) > MAX_BATCH_CALLS:
        raise ProtocolError(f"a batch has at most {MAX_BATCH_CALLS} calls, orders and programs; nothing was run")
    if len({call.task_id for call in batch.calls}) != len(batch.calls):
        raise ProtocolError("a batch has two calls of one task id; nothing was run")
    for call in batch.calls:
        _check_call(call, len(batch.values))
    for value in batch.values:
        _check_value(value)
    for order in batch.orders:
        _check_order(order)
    return batch


def _check_call(call: Call, values: int) -> None:
    if len(call.task_id) != TASK_ID_BYTES or len(call.program) != DIGEST_BYTES:
        raise ProtocolError("a call's task id or program key has the wrong length; nothing was run")
    if not -1 <= call.values < values:
        raise ProtocolError(f"a call names values {call.values} of {values}; nothing was run")
    if len(call.category) > MAX_CATEGORY_CHARS:
        raise ProtocolError(f"a category has {len(call.category)} characters of {MAX_CATEGORY_CHARS}; nothing was run")
    if call.dry_run and (call.broadcast or call.spread):
        raise ProtocolError("a dry run is neither broadcast nor spread; nothing was run")
    _check_value(call.arguments)


def _check_value(value: bytes | Blob) -> None:
    if isinstance(value, Blob) and not (len(value.digest) == DIGEST_BYTES and 0 < value.size_bytes <= MAX_VALUE_BYTES):
        raise ProtocolError(f"a value of {value.size_bytes} bytes is announced wrongly; nothing was run")


def _check_order(order: AnyOrder) -> None:
    if not 0 <= order.request_id <= _MAX_REQUEST_ID:
        raise ProtocolError("an order's request id is out of range; nothing was run")
    if isinstance(order, Kill) and len(order.category) > MAX_CATEGORY_CHARS:
        raise ProtocolError(f"a category has {len(order.category)} characters of {MAX_CATEGORY_CHARS}; nothing was run")
    if isinstance(order, Cancel | TakeBack) and any(len(task_id) != TASK_ID_BYTES for task_id in order.task_ids):
        raise ProtocolError("a task id of an order has the wrong length; nothing was run")


def read_programs(batch: Batch) -> tuple[Program, ...]:
    """Return the programs that the batch announces; their size is judged, they are parsed and not compiled.

    Raises:
        ProtocolError: one is too large or malformed.
    """
    return tuple([decode_program(text) for text in batch.programs])


def judge_calls(
    batch: Batch, programs: dict[bytes, Program], grant: Grant
) -> tuple[tuple[Call, ...], tuple[RefusedCall, ...]]:
    """Return the calls that the grant lets through, with their limits lowered to it, and those that it does not."""
    accepted: list[Call] = []
    refused: list[RefusedCall] = []
    verdicts: dict[bytes, VerifyError | None] = {}  # a program is judged once a batch
    for call in batch.calls:
        if call.program not in verdicts:
            verdicts[call.program] = _refusal_of_program(programs.get(call.program), call.program, grant)
        error = verdicts[call.program]
        if error is None:
            try:
                accepted.append(_limited(call, grant))
                continue
            except PolicyError as problem:
                error = problem
        refused.append(RefusedCall(call.task_id, error, call.arguments))
    return tuple(accepted), tuple(refused)


def _refusal_of_program(program: Program | None, key: bytes, grant: Grant) -> VerifyError | None:
    if program is None:
        return VerifyError(f"the session never announced program {key.hex()}; the task was not run")
    try:
        if program.kind is ProgramKind.NAME:
            grant.check_name(program.name)
        else:
            grant.check(Right.RUN)
    except PolicyError as problem:
        return problem
    return None


def _limited(call: Call, grant: Grant) -> Call:
    """Return the call with the smaller of asked and granted limits, if the grant lets it through, else raise."""
    if call.broadcast:
        grant.check(Right.BROADCAST)
    timeout_s = grant.limits.wall_for(call.timeout_s)
    memory_bytes = grant.limits.memory_for(call.memory_bytes)
    if timeout_s == call.timeout_s and memory_bytes == call.memory_bytes:
        return call
    return msgspec.structs.replace(call, timeout_s=timeout_s, memory_bytes=memory_bytes)


_RIGHT_OF: Final[dict[type, Right | None]] = {
    Cancel: None,  # everyone may take back what is one's own
    Kill: Right.KILL,
    EndServer: Right.ADMIN,
    Status: Right.ADMIN,
    Running: None,  # and ask what of one's own runs
    TakeBack: None,
}


def judge_orders(batch: Batch, grant: Grant) -> tuple[tuple[AnyOrder, ...], tuple[RefusedOrder, ...]]:
    """Return the orders that the grant lets through, and those that it does not."""
    accepted: list[AnyOrder] = []
    refused: list[RefusedOrder] = []
    for order in batch.orders:
        try:
            if (right := _RIGHT_OF[type(order)]) is not None:
                grant.check(right)
            accepted.append(order)
        except PolicyError as problem:
            refused.append(RefusedOrder(order.request_id, problem))
    return tuple(accepted), tuple(refused)
