"""The demo does what it says: the numbers agree, and both attacks are refused for the right reason."""

from __future__ import annotations

import json

from secfarm.cli import demo_tasks
from tests.cli.conftest import Secfarm


def test_every_claim_is_checked_and_shown(secfarm: Secfarm) -> None:
    done = secfarm("demo", "--files", "30")
    assert (done.returncode, done.stderr) == (0, "")
    for words in ("30 files", "confined by the profile full", "a local run gives the same answer", "0 refused",
                  'code="bad-signature"', 'code="replayed"', "both chains whole"):  # fmt: skip
        assert words in done.stdout


def test_the_record_has_the_numbers(secfarm: Secfarm) -> None:
    record = json.loads(secfarm("demo", "--files", "10", "--json").stdout)
    assert record["files"] == 10
    assert record["batches_signed"] == record["batches_verified"] > 0
    assert record["batches_refused"] == 0
    assert record["refusals"] == ["bad-signature", "replayed"]


def test_surveys_add_up() -> None:
    """Merged surveys of two files are what one survey of both counts."""
    texts = ["def f():\n    return x.y\n", "class C:\n    async def g(self):\n        pass\n"]
    both = demo_tasks.merge([demo_tasks.survey(f"{number}.py", text) for number, text in enumerate(texts)])
    assert both["lines"] == 5
    assert both["functions"] == 2
    assert both["identifiers"] == {"x": 1, "y": 1}
    assert both["longest"] == [(2, "0.py:1 f"), (2, "1.py:2 g")]


def test_a_file_that_is_not_python_is_counted_as_text() -> None:
    survey = demo_tasks.survey("x.py", "print 'hello'\n")
    assert (survey["unparsed"], survey["words"], survey["functions"]) == (1, 2, 0)
