"""`audit` believes a log only when its chain is whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from secfarm.cli.main import main
from secfarm.disk.auditlog import AuditLog
from secfarm.errors import ExitStatus


@pytest.fixture
def log(tmp_path: Path) -> Path:
    with AuditLog(tmp_path / "audit.jsonl") as audit:
        audit.append({"event": "session", "principal": "ada\x1b[2J"}, 1.0)
        audit.append({"event": "accepted", "calls": 2}, 2.0)
    return tmp_path / "audit.jsonl"


def test_a_whole_chain_is_summed_up(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "verify", str(log)]) == 0
    assert "2 records, the chain is whole" in capsys.readouterr().out
    assert main(["audit", "verify", "--json", str(log)]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["records"] == 2
    assert record["head"] == json.loads(log.read_text().splitlines()[1])["hash"]


def test_show_prints_one_escaped_line_a_record(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "show", str(log)]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("0 1970-01-01T00:00:01")
    assert "session principal=" in first
    assert "\x1b" not in first
    assert second.endswith("accepted calls=2")
    assert main(["audit", "show", "--json", str(log)]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[1])["event"] == "accepted"


@pytest.mark.parametrize("command", ["verify", "show"])
def test_a_broken_chain_is_status_8_and_names_the_line(
    command: str, log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log.write_text(log.read_text().replace('"calls":2', '"calls":1'))
    assert main(["audit", command, str(log)]) == ExitStatus.VERIFICATION
    out, err = capsys.readouterr()
    assert out == ""
    assert "audit line 2 was altered" in err
