"""The policy: what a proven principal may do. Default: nothing. The first grant that names the principal decides.

Pure: text in, decisions out. Format: docs/operations.md, "policy.toml".
"""

from __future__ import annotations

import builtins
import math
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, TypeVar

from secfarm.errors import PolicyError, TrustFileError
from secfarm.limits import MAX_OUTSTANDING_TASKS
from secfarm.trust.patterns import matches
from secfarm.trust.strict_toml import Table, parse_toml

_BUILTINS: Final = "builtins."

_Number = TypeVar("_Number", int, float)


class Right(Enum):
    """What a grant's `may` lists."""

    RUN = "run"  # source of the client's own
    CALL = "call"  # functions by name, those that `names` covers
    BROADCAST = "broadcast"
    KILL = "kill"
    ADMIN = "admin"


class Isolation(Enum):
    """How long a worker process lives: for a session, or for a single task."""

    SESSION = "session"
    TASK = "task"


@dataclass(frozen=True, slots=True)
class Limits:
    """Upper bounds of one grant; None: none but the server's own."""

    wall_s: float | None = None
    cpu_s: float | None = None
    memory_bytes: int | None = None
    output_bytes: int | None = None
    tasks: int = MAX_OUTSTANDING_TASKS  # outstanding at once
    processes: int | None = None  # threads, and processes where those are open
    files: int | None = None  # descriptors at once
    scratch_bytes: int | None = None
    scratch_files: int | None = None

    def wall_for(self, asked_s: float | None) -> float | None:
        """Return the smaller of what is asked and what is granted, in seconds.

        Raises:
            PolicyError: what is asked is no positive, finite number.
        """
        return _smaller("timeout_s", asked_s, self.wall_s)

    def memory_for(self, asked_bytes: int | None) -> int | None:
        """Return the smaller of what is asked and what is granted, in bytes.

        Raises:
            PolicyError: what is asked is no positive number.
        """
        return _smaller("memory_bytes", asked_bytes, self.memory_bytes)


def _smaller(name: str, asked: _Number | None, granted: _Number | None) -> _Number | None:
    if asked is None:
        return granted
    # A NaN compares false with everything and would win any `min`.
    if not (asked > 0 and math.isfinite(asked)):
        raise PolicyError(f"{name}={asked!r} bounds nothing; the task was not run. Ask for a number above 0")
    return asked if granted is None else min(asked, granted)


@dataclass(frozen=True, slots=True)
class Confine:
    """What a worker of this grant is let out to; nothing by default."""

    isolation: Isolation = Isolation.SESSION
    network: bool = False
    read: tuple[str, ...] = ()
    subprocesses: bool = False
    generated_code: bool = False
    numpy: bool = False


@dataclass(frozen=True, slots=True)
class Grant:
    """What some principals may do. The empty grant may nothing.

    Attributes:
        names: patterns of the functions that CALL covers, dotted; a `*` stays within one part.
        require_key: whether batches must be signed with a key of `allowed_signers`, however the client proved itself.
        place: `file:line`, for `secfarm policy show` and the audit record.
    """

    principals: tuple[str, ...] = ()
    may: frozenset[Right] = frozenset()
    names: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)
    confine: Confine = field(default_factory=Confine)
    require_key: bool = False
    place: str = ""

    def check(self, right: Right) -> Right:
        """Return `right` if it is granted, else raise.

        Raises:
            PolicyError: it is not.
        """
        if right not in self.may:
            raise PolicyError(f"{self._who()} may not {right.value}; nothing was run")
        return right

    def check_name(self, name: str) -> str:
        """Return `name` (`module:qualname`) if it may be called, else raise.

        A built-in is matched both bare and as `builtins.NAME`. A wildcard never stands for a part that begins with an
        underscore, so `math.*` is not `math.__loader__`.

        Raises:
            PolicyError: it may not.
        """
        self.check(Right.CALL)
        if not any(_covers(pattern, form) for form in _dotted_forms(name) for pattern in self.names):
            raise PolicyError(f"{self._who()} may not call {name[:200]!r}: its names do not cover it; nothing was run")
        return name

    def _who(self) -> str:
        return f"the grant at {self.place}" if self.place else "a principal without a grant"


def _dotted_forms(name: str) -> tuple[str, ...]:
    dotted = name.replace(":", ".", 1)
    bare = dotted.removeprefix(_BUILTINS)
    return (bare, _BUILTINS + bare) if "." not in bare and hasattr(builtins, bare) else (dotted,)


def _covers(pattern: str, dotted: str) -> bool:
    if pattern == "*":
        return True
    if not matches(pattern, dotted, separator="."):
        return False
    # Equal numbers of parts: the separator is in no wildcard.
    pairs = zip(pattern.split("."), dotted.split("."), strict=True)
    return all(ours.startswith("_") or not theirs.startswith("_") for ours, theirs in pairs)


@dataclass(frozen=True, slots=True)
class Realms:
    """How a proven Kerberos name becomes the principal that grants, audit and results know.

    Attributes:
        case_insensitive: names are written as `lower@UPPER` first, as Active Directory treats them: not in case.
        mapped: realm -> the realm that is written instead.
    """

    case_insensitive: bool = False
    mapped: tuple[tuple[str, str], ...] = ()

    def principal_of(self, name: str) -> str:
        """Return the principal that the full name `user@REALM` stands for."""
        user, at, realm = name.rpartition("@")
        if self.case_insensitive:
            user, realm = user.lower(), realm.upper()
        return f"{user}{at}{dict(self.mapped).get(realm, realm)}"


AS_THEY_ARE: Final = Realms()


@dataclass(frozen=True, slots=True)
class Policy:
    """The grants, in the file's order, and how the principals of Kerberos are written in them."""

    grants: tuple[Grant, ...] = ()
    kerberos: Realms = field(default_factory=lambda: AS_THEY_ARE)

    @classmethod
    def parse(cls, text: str, *, file: str) -> Policy:
        """Return the policy that `text` (policy.toml) is.

        Raises:
            TrustFileError: not TOML, an unknown key or a wrong type; it names `file` and the line.
        """
        root = parse_toml(text, file=file, error=TrustFileError)
        grants = tuple([_grant(table) for table in root.tables("grant")])
        kerberos = _realms(root.table("kerberos"))
        root.finish()
        return cls(grants, kerberos)

    def grant_for(self, principal: str) -> Grant:
        """Return the first grant with a pattern that fits the whole principal, else the empty one."""
        for grant in self.grants:
            if any(matches(pattern, principal) for pattern in grant.principals):
                return grant
        return NOTHING


NOTHING: Final = Grant()


def _grant(table: Table) -> Grant:
    principals = table.texts("principals")
    if not principals:
        raise table.fault("principals", "a grant needs principals")
    grant = Grant(
        principals=principals,
        may=frozenset([_right(table, word) for word in table.texts("may")]),
        names=table.texts("names"),
        limits=_limits(table.table("limits")),
        confine=_confine(table.table("confine")),
        require_key=table.flag("require_key", default=False),
        place=table.place,
    )
    table.finish()
    return grant


def _realms(table: Table | None) -> Realms:
    if table is None:
        return AS_THEY_ARE
    pairs = table.table("realms")
    realms = Realms(
        case_insensitive=table.flag("case_insensitive", default=False),
        mapped=() if pairs is None else tuple([(name, pairs.text(name) or name) for name in pairs.keys]),
    )
    if pairs is not None:
        pairs.finish()
    table.finish()
    return realms


def _right(table: Table, word: str) -> Right:
    try:
        return Right(word)
    except ValueError:
        known = ", ".join(right.value for right in Right)
        raise table.fault("may", f"{word!r} is no right; known: {known}") from None


def _limits(table: Table | None) -> Limits:
    if table is None:
        return Limits()
    limits = Limits(
        wall_s=table.seconds("wall_s"),
        cpu_s=table.seconds("cpu_s"),
        memory_bytes=table.count("memory_bytes"),
        output_bytes=table.count("output_bytes"),
        tasks=table.count("tasks") or MAX_OUTSTANDING_TASKS,
        processes=table.count("processes"),
        files=table.count("files"),
        scratch_bytes=table.count("scratch_bytes"),
        scratch_files=table.count("scratch_files"),
    )
    table.finish()
    return limits


def _confine(table: Table | None) -> Confine:
    if table is None:
        return Confine()
    word = table.text("isolation") or Isolation.SESSION.value
    if word not in {one.value for one in Isolation}:
        raise table.fault("isolation", f'isolation must be "session" or "task", not {word!r}')
    read = table.texts("read")
    for path in read:
        if not path.startswith("/"):
            raise table.fault("read", f"read must list absolute paths, not {path!r}")
    confine = Confine(
        Isolation(word),
        network=table.flag("network", default=False),
        read=read,
        subprocesses=table.flag("subprocesses", default=False),
        generated_code=table.flag("generated_code", default=False),
        numpy=table.flag("numpy", default=False),
    )
    table.finish()
    return confine
