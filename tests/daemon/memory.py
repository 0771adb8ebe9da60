"""What is in the memory of a process, and the forms in which a secret may lie there."""

from __future__ import annotations

import base64
import mmap
import os
from collections.abc import Iterator
from pathlib import Path


def forms(secret: bytes) -> list[bytes]:
    """How secret bytes could show in text."""
    return [secret, secret.hex().encode(), base64.b64encode(secret).rstrip(b"="), repr(secret)[2:-1].encode()]


def lines_with(key_file: Path, secret: bytes) -> list[bytes]:
    """The lines of an OpenSSH private key that encode these bytes."""
    lines = [line for line in key_file.read_bytes().splitlines() if b"-----" not in line]
    first_at = base64.b64decode(b"".join(lines)).index(secret)
    first, last = (at * 4 // 3 // len(lines[0]) for at in (first_at, first_at + len(secret)))
    return lines[first : last + 1]


def memory_of(pid: int) -> Iterator[bytes]:
    """What a process has in memory, region by region; pages that cannot be read are left out."""
    with Path(f"/proc/{pid}/maps").open() as maps, Path(f"/proc/{pid}/mem").open("rb", 0) as memory:
        for line in maps:
            where, mode = line.split()[:2]
            start, end = (int(part, 16) for part in where.split("-"))
            if "r" in mode and "[v" not in line:
                yield b"".join(_readable(memory.fileno(), start, end))


def _readable(memory: int, start: int, end: int) -> Iterator[bytes]:
    while start < end:
        try:
            data = os.pread(memory, end - start, start)
        except OSError:
            data = b""
        yield data
        start += len(data) or mmap.PAGESIZE


def holds(pid: int, needles: list[bytes]) -> list[bytes]:
    """Those of the needles that are in the memory, the environment or the command line of a process."""
    found = {needle for region in memory_of(pid) for needle in needles if needle in region}
    for name in ("environ", "cmdline"):
        text = Path(f"/proc/{pid}/{name}").read_bytes()
        found |= {needle for needle in needles if needle in text}
    return [needle for needle in needles if needle in found]
