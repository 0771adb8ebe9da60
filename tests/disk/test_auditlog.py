"""The audit log on disk: it only grows, one process writes it, and a broken one is not continued."""

from __future__ import annotations

import hashlib
import json
import resource
import signal
from pathlib import Path

import pytest

from secfarm.disk.auditlog import AuditLog, SourceArchive, open_free_log, verify_log
from secfarm.errors import ConfigError, TrustFileError, VerifyError

NOW_S = 1_700_000_000.0


def write(path: Path, *events: str) -> None:
    with AuditLog(path) as log:
        for event in events:
            log.append({"event": event}, NOW_S)


def test_a_log_is_continued_over_restarts(tmp_path: Path) -> None:
    path = tmp_path / "state" / "audit.jsonl"
    write(path, "started", "accepted")
    with AuditLog(path, sync=True) as log:
        log.append_all([{"event": "accepted"}, {"event": "finished"}], NOW_S)
        assert verify_log(path).head == log.head
    assert verify_log(path).records == 4
    assert [json.loads(line)["event"] for line in path.read_text().splitlines()] == [
        "started",
        *["accepted"] * 2,
        "finished",
    ]
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (lambda lines: [lines[0].replace(b"started", b"stopped"), *lines[1:]], 1),
        (lambda lines: [lines[0], lines[2]], 2),
        (lambda lines: [*lines, lines[2]], 4),
        (lambda lines: [*lines, b"half a rec"], 4),
    ],
)
def test_a_broken_log_is_not_continued(tmp_path: Path, damage: object, line: int) -> None:
    path = tmp_path / "audit.jsonl"
    write(path, "started", "accepted", "finished")
    path.write_bytes(b"".join(damage(path.read_bytes().splitlines(keepends=True))))  # type: ignore[operator]
    before = path.read_bytes()
    for check in (verify_log, AuditLog):
        with pytest.raises(VerifyError, match=f"audit line {line} .*move it away"):
            check(path)
    assert path.read_bytes() == before


def test_a_last_line_without_its_end_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    write(path, "started")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(VerifyError, match="cut off"):
        AuditLog(path)


def test_one_process_writes_a_log(tmp_path: Path) -> None:
    with AuditLog(tmp_path / "audit.jsonl"), pytest.raises(ConfigError, match="another server"):
        AuditLog(tmp_path / "audit.jsonl")
    write(tmp_path / "audit.jsonl", "started")


def test_a_log_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    write(path, "started")
    path.chmod(0o644)
    with pytest.raises(TrustFileError, match="chmod 600"):
        AuditLog(path)
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(TrustFileError, match="cannot be opened"):
        AuditLog(tmp_path / "link")


def test_what_cannot_be_recorded_closes_the_log(tmp_path: Path) -> None:
    """A full disk, played by a limit of the process: nothing may go on unrecorded."""
    path = tmp_path / "audit.jsonl"
    with AuditLog(path) as log:
        log.append({"event": "started"}, NOW_S)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, before[1]))
        try:
            with pytest.raises(OSError, match="large"):
                log.append({"event": "accepted"}, NOW_S)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, handler)
        with pytest.raises(OSError, match="descriptor"):
            log.append({"event": "accepted"}, NOW_S)
    assert verify_log(path).records == 1, "half a line was left in it"
    write(path, "started")


def test_a_missing_log_cannot_be_verified(tmp_path: Path) -> None:
    with pytest.raises(TrustFileError, match="cannot be read"):
        verify_log(tmp_path / "missing")


def test_the_archive_keeps_each_text_once_under_its_digest(tmp_path: Path) -> None:
    archive = SourceArchive(tmp_path / "sources")
    text = b"def add(x, y): ..."
    digest = archive.keep(text)
    assert digest == hashlib.sha256(text).hexdigest()
    path = archive.path(digest)
    first = path.stat()
    assert archive.keep(text) == digest
    assert path.read_bytes() == text
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (first.st_ino, first.st_mtime_ns)
    assert first.st_mode & 0o777 == 0o600
    assert [file.name for file in (tmp_path / "sources").iterdir()] == [digest]


def test_an_archive_reaches_no_file_outside(tmp_path: Path) -> None:
    archive = SourceArchive(tmp_path / "sources")
    for digest in ("", "../x", "0" * 63, "g" * 64, "/" + "0" * 63):
        with pytest.raises(ValueError, match="no digest"):
            archive.path(digest)
    (tmp_path / "file").touch()
    with pytest.raises(TrustFileError, match="cannot be made"):
        SourceArchive(tmp_path / "file" / "sources")


def test_a_free_log_is_the_first_that_nobody_writes(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    with AuditLog(path), open_free_log(path) as first, open_free_log(path) as second:
        first.append({"event": "first"}, 1.0)
        second.append({"event": "second"}, 1.0)
    with open_free_log(path) as again:
        again.append({"event": "third"}, 2.0)
    assert verify_log(tmp_path / "audit-1.jsonl").records == 2
    assert verify_log(tmp_path / "audit-2.jsonl").records == 1
    (tmp_path / "audit-1.jsonl").write_bytes(b"{}\n")
    with pytest.raises(VerifyError):
        open_free_log(path)
