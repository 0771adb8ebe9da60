"""Patterns with `*` and `?`, as OpenSSH and policies write them. There are no character classes and no escapes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

MAX_SUBJECT_CHARS: Final = 1024  # several stars cost a power of the subject's length: what is longer matches nothing


def matches(pattern: str, subject: str, *, separator: str = "") -> bool:
    """Return whether the whole of `subject` fits `pattern`.

    Args:
        separator: one character that neither `*` nor `?` covers; a pattern that is only `*` covers even that.
    """
    if len(subject) > MAX_SUBJECT_CHARS:
        return False
    return pattern == "*" or _compiled(pattern, separator).fullmatch(subject) is not None


def matches_list(patterns: Iterable[str], subject: str) -> bool:
    """Return whether some pattern fits and none that begins with `!` does (ssh_config(5), PATTERNS)."""
    found = False
    for pattern in patterns:
        if pattern.startswith("!"):
            if matches(pattern[1:], subject):
                return False
        elif matches(pattern, subject):
            found = True
    return found


def is_definite(pattern: str) -> bool:
    """Return whether the pattern can only be one name."""
    return bool(pattern) and not pattern.startswith("!") and "*" not in pattern and "?" not in pattern


@lru_cache(maxsize=4096)
def _compiled(pattern: str, separator: str) -> re.Pattern[str]:
    one = f"[^{re.escape(separator)}]" if separator else "."
    pieces = [f"{one}*" if piece[0] == "*" else one if piece == "?" else re.escape(piece) for piece in _pieces(pattern)]
    return re.compile("".join(pieces), re.DOTALL)


def _pieces(pattern: str) -> list[str]:
    """Cut into runs of stars, single question marks and literal runs."""
    return re.findall(r"\*+|\?|[^*?]+", pattern)
