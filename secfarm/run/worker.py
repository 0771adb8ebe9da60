"""The worker process: reads calls from one pipe, runs them one after another, writes reports to the other.

Forked by the zygote and confined before it reads anything, with no descriptor but its two pipes. It holds no key and
knows no peer. Whatever a task does here, it does to this process only; one session's tasks share it.
"""

from __future__ import annotations

import opcode
import os
import platform
import resource
import threading
import time
import traceback
from types import CoroutineType, GeneratorType
from typing import TYPE_CHECKING, Final, NoReturn, TypeVar, cast

import msgspec

from secfarm.errors import MissingModulesError, ProtocolError, PythonVersionError, SecfarmError, ValueTransferError
from secfarm.limits import MAX_ERROR_TEXT_BYTES, MAX_VALUE_BYTES, RESERVED_BYTES
from secfarm.run.compiler import Prepared
from secfarm.run.exceeded import exceeded
from secfarm.run.output import Output
from secfarm.run.pipe import LENGTH, PACKET_BYTES, Run, decode_run, encode_done, encode_report
from secfarm.task import codec
from secfarm.task.outcome import Done, ErrorRecord
from secfarm.task.program import (
    Function,
    FunctionKind,
    NameProgram,
    Namespace,
    Place,
    SourceProgram,
    decode_program,
    make_program,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from secfarm.run.profile import Bounds
    from secfarm.task.payload import ProgramText

_T = TypeVar("_T")
_MAX_REPORT_CHARS: Final = 4096
_MAX_NAME_CHARS: Final = 255
_MAX_MODULES: Final = 500
_traceback_of: Final = vars(BaseException)["__traceback__"].__get__  # past what a class of the user's says
_RAISE: Final = opcode.opmap["RAISE_VARARGS"]
# Calls of ours, which leave nothing behind: what every first call would wait for is done before there is one.
_REHEARSED: Final = (
    make_program(
        SourceProgram(
            "rehearsal",
            (Function(FunctionKind.LAMBDA, "<lambda>", "lambda x: x", 0),),
            (Namespace("rehearsal", ()),),
        ),
        (Place("<rehearsal>", 1),),
    ),
    make_program(NameProgram("operator:pos")),
)


class Worker:
    """The state of this process between calls: compiled programs and what broadcasts defined."""

    def __init__(self, write: Callable[..., None], statm_fd: int, bounds: Bounds) -> None:
        """Begin with nothing.

        Args:
            write: takes the frames of what calls report while they run.
            bounds: which the kernel holds this process to.
        """
        self._bounds = bounds
        self._write = write
        self._output = Output(write, self._give_up)
        self._begun: tuple[int, float] = 0, 0.0  # number and time of the call
        self._statm_fd = statm_fd
        self._programs: dict[bytes, Prepared] = {}
        self._texts: dict[bytes, ProgramText] = {}  # of programs that could not be prepared so far
        self._inherited: dict[str, object] = {}

    def run(self, call: Run) -> Done:
        """Run one call to its end and say what became of it; never raises, whatever the task does."""
        self._output.begin(call)
        started_s = time.time()
        self._begun = call.number, started_s
        value, error = None, None
        try:
            value = _encoded(self._result(call))
        except BaseException as raised:  # noqa: BLE001 - a SystemExit in a task ends the task, not the worker
            error = _told(call, raised, self._bounds)
            value = _before(raised)
        output = self._output.end()
        if self._output.exceeded is not None:
            # However the task took it: a thread of it may have printed, or an `except` have caught what was raised.
            value, error = (None if error is None else value), _over_output(self._output.exceeded)
        return Done(call.number, value, error, started_s, time.time(), output)

    def _give_up(self) -> NoReturn:
        """Report a call that does not end, and end this process; in whichever thread it prints."""
        number, started_s = self._begun
        error = _over_output(self._output.exceeded)
        self._write(encode_report(Done(number, None, error, started_s, time.time(), self._output.end())))
        os._exit(0)

    def _result(self, call: Run) -> object:
        prepared = self._prepared(call)
        if call.dry_run:
            return _rehearsed(prepared, call)
        if not call.spread:
            args, kwargs = _decoded(codec.decode_call, call.arguments)
            return self._call(prepared, call, args, kwargs)
        (items,), _ = _decoded(codec.decode_call, call.arguments)
        if not isinstance(items, list):
            raise ProtocolError("the arguments to be spread are not a list")
        results: list[object] = []
        try:
            results.extend(self._call(prepared, call, args, {}) for args in items)
        except _TaskRaisedError as error:
            error.before = results
            raise
        return results

    def _call(self, prepared: Prepared, call: Run, args: Sequence[object], kwargs: Mapping[str, object]) -> object:
        # Decoded anew for each run: what one does to a captured list, the next must not see.
        values = () if call.values is None else _values(call.values)
        function = prepared.bind(values, self._inherited)
        self._output.count_anew()
        try:
            if call.memory_bytes is not None:
                _limit_memory(call.memory_bytes, self._statm_fd)
            result = function(*args, **kwargs)
            if isinstance(result, GeneratorType):
                result = list(result)
            elif isinstance(result, CoroutineType):
                result = _run_coroutine(result)
        except BaseException as error:  # noqa: BLE001 - whatever it is, the task raised it
            raise _TaskRaisedError(prepared, error) from None
        finally:
            if call.memory_bytes is not None:
                _limit_memory(None, self._statm_fd)  # decoders and encoders in C die where memory runs out
        if call.broadcast:
            self._inherited.update(prepared.defined())
        return result

    def _prepared(self, call: Run) -> Prepared:
        prepared = self._programs.get(call.program)
        if prepared is None:
            text = call.text or self._texts.get(call.program)
            if text is None:
                raise ProtocolError("the program was never sent to this worker")
            self._texts[call.program] = text  # it comes once, and preparing it may fail
            prepared = self._programs[call.program] = Prepared(decode_program(text))
            prepared.publish_lines()
            del self._texts[call.program]
        return prepared


def _over_output(limit: int | None) -> ErrorRecord:
    return ErrorRecord("resource", f"the task printed more than its {limit} bytes", kind="output", limit=limit)


def _rehearsed(prepared: Prepared, call: Run) -> dict[str, object]:
    """Return what a dry run reports: all went well up to the call itself, with which program in which Python."""
    _decoded(codec.decode_call, call.arguments)
    prepared.bind(() if call.values is None else _values(call.values), {})
    return {"digest": prepared.program.digest, "python_version": platform.python_version()}


class _TaskRaisedError(Exception):
    """Carries what the user's code raised past the handlers for our own errors."""

    def __init__(self, prepared: Prepared, cause: BaseException) -> None:
        super().__init__()
        self.prepared = prepared
        self.cause = cause
        self.before: list[object] = []


class _NoRoomError(Exception):
    """What the task was given, or what it returned, has no room in the worker's memory."""


def _told(call: Run, error: BaseException, bounds: Bounds) -> ErrorRecord:
    """Return what the client hears of an error."""
    try:
        return _bounded(_record(call, error, bounds))
    except BaseException:  # noqa: BLE001 - an error is the user's: to look at its attributes or class may do anything
        report = "an error that cannot be described"
        return ErrorRecord("raised", report, report)


def _record(call: Run, error: BaseException, bounds: Bounds) -> ErrorRecord:
    if isinstance(error, _NoRoomError):
        limit = bounds.memory_bytes if call.memory_bytes is None else call.memory_bytes
        report = f"{error} of the task need more memory than a worker of {limit} bytes has"
        return ErrorRecord("resource", report, kind="memory", limit=limit)
    if isinstance(error, _TaskRaisedError):
        return _raised_by_task(call, error, bounds)
    if isinstance(error, PythonVersionError):
        version = error.python_version
        return ErrorRecord(error.code, error.report, remote_type=error.remote_type, python_version=version)
    if isinstance(error, MissingModulesError):
        return ErrorRecord(error.code, str(error), modules=error.modules, python_version=error.python_version)
    if isinstance(error, SecfarmError):
        return ErrorRecord(error.code, str(error))
    # Importing or compiling what the task names failed before it was called.
    report = "".join(traceback.format_exception_only(error)).strip()
    return ErrorRecord("raised", report, report, type(error).__qualname__)


def _raised_by_task(call: Run, error: _TaskRaisedError, bounds: Bounds) -> ErrorRecord:
    try:
        record = _over_bounds(call, error, bounds)
    except BaseException:  # noqa: BLE001 - its text and attributes are the user's, and may do anything
        record = None
    return record or ErrorRecord("raised", *error.prepared.format_exception(error.cause))


def _over_bounds(call: Run, error: _TaskRaisedError, bounds: Bounds) -> ErrorRecord | None:
    is_own, function = _raised_in(error)
    if is_own:
        return None
    if call.memory_bytes is not None and isinstance(error.cause, MemoryError):
        report = f"the task wanted more than its {call.memory_bytes} bytes of memory"
        return ErrorRecord("resource", report, kind="memory", limit=call.memory_bytes)
    return exceeded(error.cause, function, bounds)


def _raised_in(error: _TaskRaisedError) -> tuple[bool, str]:
    """Return whether a `raise` of the user's own text raised it, and the function where it was raised."""
    innermost = _traceback_of(error.cause)
    while innermost is not None and innermost.tb_next is not None:
        innermost = innermost.tb_next
    if innermost is None:
        return False, ""
    code = innermost.tb_frame.f_code
    is_own = code.co_filename in error.prepared.files and code.co_code[innermost.tb_lasti] == _RAISE
    return is_own, code.co_name


def _bounded(record: ErrorRecord) -> ErrorRecord:
    """Return `record` with what a task can make long cut off."""
    return msgspec.structs.replace(
        record,
        report=record.report[:_MAX_REPORT_CHARS],
        description=record.description[:MAX_ERROR_TEXT_BYTES],
        remote_type=record.remote_type[:_MAX_NAME_CHARS],
        modules=tuple(name[:_MAX_NAME_CHARS] for name in record.modules[:_MAX_MODULES]),
    )


def _decoded(decode: Callable[[bytes], _T], data: bytes) -> _T:
    """Return what came for a task.

    Raises:
        ProtocolError: see `decode`.
        _NoRoomError: it does not fit into memory.
    """
    try:
        return decode(data)
    except ProtocolError as error:
        if isinstance(error.__cause__, MemoryError):
            raise _NoRoomError("the arguments") from None
        raise


def _encoded(result: object) -> bytes:
    """Return the bytes of a result.

    Raises:
        ValueTransferError: a part of it cannot travel, or it is too large.
        _NoRoomError: there is no memory for them.
    """
    try:
        encoded = codec.encode_result(result)
        if len(encoded) > MAX_VALUE_BYTES:
            raise ValueTransferError(f"value has {len(encoded)} bytes, at most {MAX_VALUE_BYTES} can travel")
        return cast("bytes", encoded)  # a bytearray goes into a report as bytes do
    except MemoryError:
        raise _NoRoomError("the results") from None
    except ValueTransferError as error:
        reason = str(error).removesuffix("; nothing was sent")
        if reason.startswith("value"):
            reason = "result" + reason.removeprefix("value")
        raise ValueTransferError(f"the task ran, but its result cannot come back: {reason}") from None


def _before(error: BaseException) -> bytes | None:
    """Return the results of a spread call that stand before its failing item, if there are any and they can travel."""
    if not isinstance(error, _TaskRaisedError) or not error.before:
        return None
    try:
        return _encoded(error.before)
    except BaseException:  # noqa: BLE001 - what is looked at is the user's, and may do anything
        return None


def _run_coroutine(coroutine: CoroutineType[object, object, object]) -> object:
    import asyncio

    return asyncio.run(coroutine)


def _values(encoded: bytes) -> list[object]:
    values = _decoded(codec.decode, encoded)
    if not isinstance(values, list):
        raise ProtocolError("the captured values are not a list")
    return values


def _limit_memory(memory_bytes: int | None, statm_fd: int) -> None:
    """Set how much more may be allocated from now on; None takes the limit away."""
    allocated = addresses = resource.RLIM_INFINITY
    if memory_bytes is not None:
        pages = os.pread(statm_fd, 256, 0).split()
        addresses = int(pages[0]) * resource.getpagesize() + memory_bytes + RESERVED_BYTES
        allocated = int(pages[5]) * resource.getpagesize() + memory_bytes
    _set_limit(resource.RLIMIT_DATA, allocated)
    _set_limit(resource.RLIMIT_AS, addresses)


def _set_limit(kind: int, limit: int) -> None:
    """Set a soft limit, where the hard one allows it; else that one holds."""
    _, hard = resource.getrlimit(kind)
    is_above = hard != resource.RLIM_INFINITY and (limit == resource.RLIM_INFINITY or limit > hard)
    resource.setrlimit(kind, (hard if is_above else limit, hard))


def _read_frame(fd: int) -> bytes | bytearray | memoryview | None:
    """Return the next frame's body, or None when the daemon has closed its end."""
    packet = os.read(fd, PACKET_BYTES)
    if not packet:
        return None
    (size,) = LENGTH.unpack_from(packet)
    if len(packet) == LENGTH.size + size:
        return memoryview(packet)[LENGTH.size :]
    body = bytearray(packet[LENGTH.size :])
    while len(body) < size:
        more = os.read(fd, PACKET_BYTES)
        if not more:
            return None
        body += more
    return body


class _Pipe:
    """The writing end of the results pipe, which the threads of a task share with us."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = threading.RLock()

    def write(self, *parts: bytes) -> None:
        """Write a frame, which may come in parts."""
        with self._lock:
            for part in parts:
                view = memoryview(part)
                while view:
                    view = view[os.write(self._fd, view) :]


def rehearse(statm_fd: int, bounds: Bounds) -> list[Done]:
    """Run calls of our own in this process, and say what became of them.

    A forked process copies each page that it writes to when it first does, some 300 in its first call: over a
    millisecond, which a spare has and a caller has not.
    """
    worker = Worker(lambda _: None, statm_fd, bounds)
    arguments = codec.encode_call((1,), {})
    return [worker.run(Run(0, program.key, arguments, None, program.wire)) for program in _REHEARSED]


def main(requests_fd: int, results_fd: int, statm_fd: int, bounds: Bounds) -> None:
    """Serve until the daemon closes the request pipe or ends this process.

    Args:
        statm_fd: this process's /proc/self/statm: there is no /proc to open it in.
        bounds: which it is held to.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core would hold other people's arguments
    write = _Pipe(results_fd).write
    run: Callable[[Run], Done] = Worker(write, statm_fd, bounds).run
    write(encode_report(Done(0, b"", None, 0.0, 0.0)))
    rehearse(statm_fd, bounds)
    while (body := _read_frame(requests_fd)) is not None:
        write(*encode_done(run(decode_run(body))))
