"""The bench of capture and codec runs; what it measures is for people."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_case_is_measured_and_has_its_ratio() -> None:
    command = [sys.executable, ROOT / "bench/capture.py", "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    header, *rows = done.stdout.splitlines()
    assert header.split() == ["case", "µs", "target", "/", "pickle", "5"]
    assert len(rows) == 12
    assert all(float(row.split()[-1]) > 0 for row in rows)
