"""The server's log: one line a record on a stream, in ASCII, as JSON for programs or as text for people.

What a peer put into a record moves no cursor, begins no line and is cut where it is long. All roles write the same
form. Fields: docs/operations.md, "The log".
"""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from typing import TextIO

_MAX_MESSAGE_CHARS: Final = 4000
_MAX_EXCEPTION_CHARS: Final = 16_000
_UNSAFE: Final = re.compile(r"[^ -~]")
_log: Final = logging.getLogger("secfarm")


class LogForm(StrEnum):
    """What a line is."""

    TEXT = "text"
    JSON = "json"


class Log(msgspec.Struct, array_like=True, frozen=True):
    """How a server logs.

    Attributes:
        level: of `logging`; smaller records are left out.
    """

    form: LogForm = LogForm.TEXT
    level: int = logging.INFO


class OneLine(logging.Formatter):
    """Makes one line of a record."""

    def __init__(self, role: str, form: LogForm) -> None:
        super().__init__()
        self._role = role
        self._form = form

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        message = record.getMessage()
        if len(message) > _MAX_MESSAGE_CHARS:
            message = f"{message[:_MAX_MESSAGE_CHARS]}... [{len(message)} characters]"
        exception = self.formatException(record.exc_info) if record.exc_info else ""
        if len(exception) > _MAX_EXCEPTION_CHARS:  # its end says what happened
            exception = f"[{len(exception)} characters] ...{exception[-_MAX_EXCEPTION_CHARS:]}"
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        if self._form is LogForm.JSON:
            fields = {"time": time, "level": record.levelname.lower(), "role": self._role, "message": message}
            return _json(fields | ({"exception": exception} if exception else {}))
        return _UNSAFE.sub(_escaped, f"{time} {record.levelname} {self._role}: {message} {exception}".rstrip())


def _json(fields: dict[str, str]) -> str:
    # Half a character of UTF-16 cannot be written in JSON so that every reader takes it.
    whole = {name: text.encode("utf-8", "backslashreplace").decode() for name, text in fields.items()}
    return json.dumps(whole).replace("\x7f", "\\u007f")  # the one control character that JSON leaves as it is


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")


def log_to(stream: TextIO, role: str, log: Log) -> None:
    """Have this process log on `stream`: our records, warnings, and errors that nobody has caught."""
    lines = logging.StreamHandler(stream)
    lines.setFormatter(OneLine(role, log.form))
    logging.getLogger().addHandler(lines)
    _log.setLevel(log.level)
    logging.captureWarnings(capture=True)
    sys.excepthook = lambda *caught: _log.critical("an error inside secfarm ends the %s", role, exc_info=caught)
    sys.unraisablehook = lambda gone: _log.error(
        "%s: %r", gone.err_msg or "an error that could not be raised", gone.object, exc_info=gone.exc_value
    )
    threading.excepthook = lambda gone: _log.error("an error inside secfarm ends a thread", exc_info=gone.exc_value)
