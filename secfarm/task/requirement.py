"""Requirements: a distribution's name with the versions that a task can use, `numpy>=2,<3`. Text in, values out.

The part of PEP 508 and PEP 440 that is certain in a few lines: release versions and the operators `==`, `!=`, `>=`,
`<=`, `>`, `<` and `~=`. Anything beyond is refused; nothing is guessed.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from secfarm.errors import InvalidTaskError

MAX_REQUIREMENTS: Final = 100  # of one program
_MAX_CHARS: Final = 200  # of one requirement, or of an installed version: Python refuses ints of thousands of digits

_NAME: Final = r"(?P<name>[A-Z0-9](?:[A-Z0-9._-]*[A-Z0-9])?)"
_CLAUSE: Final = r"(?:===|~=|==|!=|<=|>=|<|>)[^,]*"
_REQUIREMENT: Final = re.compile(
    rf"\s*{_NAME}\s*(?P<clauses>{_CLAUSE}(?:,\s*{_CLAUSE})*)?\s*", re.ASCII | re.IGNORECASE
)
_SPECIFIER: Final = re.compile(r"(?P<sign>~=|==|!=|<=|>=|<|>)\s*(?P<version>[0-9]+(?:\.[0-9]+)*)\s*", re.ASCII)
# An installed version, in every spelling that PEP 440 allows (its appendix B).
_INSTALLED: Final = re.compile(
    r"\s*v?(?:(?P<epoch>[0-9]+)!)?(?P<release>[0-9]+(?:\.[0-9]+)*)"
    r"(?P<pre>[-_.]?(?:alpha|beta|preview|pre|a|b|c|rc)[-_.]?[0-9]*)?"
    r"(?P<post>-[0-9]+|[-_.]?(?:post|rev|r)[-_.]?[0-9]*)?"
    r"(?P<dev>[-_.]?dev[-_.]?[0-9]*)?"
    r"(?:\+[a-z0-9]+(?:[-_.][a-z0-9]+)*)?\s*",
    re.ASCII | re.IGNORECASE,
)

_Release = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Requirement:
    """A distribution and the clauses that its version has to meet, all of them."""

    name: str
    clauses: tuple[tuple[str, _Release], ...]

    def __str__(self) -> str:
        """The one spelling of it that travels."""
        return self.name + ",".join(f"{sign}{'.'.join(map(str, release))}" for sign, release in self.clauses)

    def is_met_by(self, version: str) -> bool:
        """Whether an installed version fits; one that PEP 440 does not allow fits nothing but a bare name.

        Pre-releases count like all others, as they do for pip where one is installed.
        """
        if not self.clauses:
            return True
        found = _INSTALLED.fullmatch(version) if len(version) <= _MAX_CHARS else None
        if found is None:
            return False
        epoch, release = int(found["epoch"] or 0), _numbers(found["release"])
        is_before = bool(found["pre"] or (found["dev"] and not found["post"]))
        rank = -1 if is_before else int(found["post"] is not None)
        return all(_fits(sign, wanted, epoch, release, rank) for sign, wanted in self.clauses)


def parse_requirement(text: str) -> Requirement:
    """Return the requirement that `text` says.

    Raises:
        InvalidTaskError: it is malformed, or one of the kinds that are not supported.
    """
    found = _REQUIREMENT.fullmatch(text) if len(text) <= _MAX_CHARS else None
    if found is None:
        raise InvalidTaskError(
            f"{text[:_MAX_CHARS]!r} is not a requirement that can be checked: write a name and versions, as in "
            "'numpy>=2,<3'; extras, markers, URLs and parentheses are not supported"
        )
    clauses: list[tuple[str, _Release]] = []
    for clause in (found["clauses"] or "").split(",") if found["clauses"] else ():
        specifier = _SPECIFIER.fullmatch(clause.strip())
        if specifier is None:
            raise InvalidTaskError(
                f"{clause.strip()!r} of the requirement {text!r} cannot be checked: after ==, !=, >=, <=, >, < or ~= "
                "stands a release version such as 2 or 1.26.4, without wildcards, pre-releases or local parts"
            )
        release = _numbers(specifier["version"])
        if specifier["sign"] == "~=" and len(release) == 1:
            raise InvalidTaskError(f"'~=' in the requirement {text!r} needs two numbers or more, as in ~=2.0")
        clauses.append((specifier["sign"], release))
    return Requirement(found["name"], tuple(clauses))


def parse_requirements(texts: object) -> tuple[str, ...]:
    """Return the requirements of a task, each in its one spelling, sorted.

    Raises:
        InvalidTaskError: that is no list or tuple of texts, too long a one, or one of them is malformed.
    """
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise InvalidTaskError(f'`requires` is a list of texts such as ["numpy>=2"], not {texts!r}')
    if len(texts) > MAX_REQUIREMENTS:
        raise InvalidTaskError(f"`requires` lists {len(texts)} requirements, the limit is {MAX_REQUIREMENTS}")
    return tuple(sorted({str(parse_requirement(text)) for text in texts}))


def _numbers(text: str) -> _Release:
    return tuple(map(int, text.split(".")))


_Ranked = tuple[int, _Release, int]

_COMPARE: Final[dict[str, Callable[[_Ranked, _Ranked], bool]]] = {
    "==": operator.eq,
    "!=": operator.ne,
    ">=": operator.ge,
    "<=": operator.le,
}


def _fits(sign: str, wanted: _Release, epoch: int, release: _Release, rank: int) -> bool:
    """Whether an installed version meets one clause.

    Args:
        rank: -1 for a pre-release or development release of `release`, 1 for a post-release, 0 for itself.
    """
    mine, yours = (epoch, _trimmed(release)), (0, _trimmed(wanted))
    if sign == "<":  # a pre-release of the version is not below it, a post-release not above
        return mine < yours
    if sign == ">":
        return mine > yours
    if sign == "~=":
        prefix = wanted[:-1]
        padded = (*release, *(0,) * len(prefix))[: len(prefix)]
        return epoch == 0 and padded == prefix and (*mine, rank) >= (*yours, 0)
    return _COMPARE[sign]((*mine, rank), (*yours, 0))


def _trimmed(release: _Release) -> _Release:
    """Without the zeros at the end: 1.0 and 1 are one version."""
    end = len(release)
    while end > 1 and release[end - 1] == 0:
        end -= 1
    return release[:end]
