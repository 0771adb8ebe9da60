"""Requirements: what is accepted means what PEP 440 says, and what is beyond is refused. The oracle is `packaging`."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.requirements import InvalidRequirement
from packaging.requirements import Requirement as Oracle

from secfarm.errors import InvalidTaskError
from secfarm.task.requirement import MAX_REQUIREMENTS, parse_requirement, parse_requirements

numbers = st.lists(st.integers(0, 3), min_size=1, max_size=3).map(lambda parts: ".".join(map(str, parts)))
signs = st.sampled_from(["==", "!=", ">=", "<=", ">", "<", "~="])
suffixes = st.sampled_from(
    [
        "",
        "",
        "",
        "a1",
        "b2",
        "rc1",
        ".dev1",
        ".post1",
        "rc1.post1",
        "a1.dev2",
        ".post1.dev1",
        "+cpu",
        "-1",
        "_alpha",
        "c",
    ]
)
installed = st.builds(
    lambda epoch, release, end: epoch + release + end, st.sampled_from(["", "", "1!"]), numbers, suffixes
)
clauses = st.builds(lambda sign, version: f"{sign}{version}", signs, numbers)


@given(st.lists(clauses, max_size=3), installed)
def test_a_version_fits_exactly_when_pep_440_says_so(given_clauses: list[str], version: str) -> None:
    text = "some-name" + ",".join(given_clauses)
    try:
        oracle = Oracle(text)
    except InvalidRequirement:
        with pytest.raises(InvalidTaskError):
            parse_requirement(text)
        return
    assert parse_requirement(text).is_met_by(version) is oracle.specifier.contains(version, prereleases=True)


@pytest.mark.parametrize(
    ("text", "spelled"),
    [
        ("numpy", "numpy"),
        (" numpy >= 2 , < 3 ", "numpy>=2,<3"),
        ("ruamel.yaml==0.18.6", "ruamel.yaml==0.18.6"),
        ("a~=1.02", "a~=1.2"),
    ],
)
def test_a_requirement_has_one_spelling(text: str, spelled: str) -> None:
    assert str(parse_requirement(text)) == spelled
    assert str(parse_requirement(spelled)) == spelled


@pytest.mark.parametrize(
    "text",
    [
        "", " ", ">=2", "numpy>=", "numpy 2", "numpy>=2,", "numpy,>=2", "numpy=>2", "numpy=2", "-numpy", "numpy-",
        "numpy>=2;python_version>'3'", "numpy[extra]", "numpy @ https://example.org", "numpy (>=2)", "numpy===2",
        "numpy==2.*", "numpy>=2rc1", "numpy>=2.0.post1", "numpy==2+cpu", "numpy>=1!2", "numpy~=2", "numpy>=v2", "nümpy",
        "numpy>=٢", "numpy>=2\0", "a" * 300, "a>=" + "1" * 300,
    ],
)  # fmt: skip
def test_what_is_malformed_or_beyond_is_refused(text: str) -> None:
    with pytest.raises(InvalidTaskError):
        parse_requirement(text)


def test_a_version_that_is_none_fits_only_a_bare_name() -> None:
    for version in ("", "unknown", "1.0-x-y", "1" * 300, "1." * 50):
        assert not parse_requirement("a!=1").is_met_by(version)
        assert parse_requirement("a").is_met_by(version)


@pytest.mark.parametrize("given", ["numpy", [1], None, {"numpy"}, ["numpy>"], ["a"] * (MAX_REQUIREMENTS + 1)])
def test_requires_is_a_list_of_requirements(given: object) -> None:
    with pytest.raises(InvalidTaskError):
        parse_requirements(given)


def test_requirements_are_sorted_and_there_once() -> None:
    assert parse_requirements(["b", "a >=1", "a>=1", "b"]) == ("a>=1", "b")
