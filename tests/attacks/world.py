"""What there is to steal and to break, and whether it is untouched afterwards."""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Final

from secfarm.run.profile import Bounds

BOUNDS: Final = Bounds(memory_bytes=256 << 20, processes=16, files=64, scratch_bytes=4 << 20, scratch_files=64)
_SECRET: Final = "zugvogel-"  # its end is made at run time


class World:
    """Canaries, sockets and a victim process, of the user who runs the server. `facts` is what attacks are told."""

    def __init__(self, folder: Path) -> None:
        folder.chmod(0o755)
        self._secret = _SECRET + os.urandom(8).hex()
        self._canary = folder / f"canary-{os.urandom(4).hex()}"
        self._canary.write_text(self._secret)
        self._canary.chmod(0o666)
        (open_directory := folder / "open").mkdir()
        open_directory.chmod(0o777)
        self._open_directory = open_directory
        self._open_file = open_directory / "file"
        self._open_file.write_text("open")
        self._open_file.chmod(0o666)
        os.utime(self._open_file, (1, 1))
        self._sockets = {
            "tcp": socket.create_server(("127.0.0.1", 0)),
            "udp": socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
            "unix": socket.socket(socket.AF_UNIX),
            "unix_datagram": socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM),
            "abstract": socket.socket(socket.AF_UNIX),
        }
        self._sockets["udp"].bind(("127.0.0.1", 0))
        unix, datagram = os.path.relpath(folder / "sock"), os.path.relpath(folder / "datagram")
        self._sockets["unix"].bind(unix)
        self._sockets["unix_datagram"].bind(datagram)
        abstract = f"secfarm-{os.urandom(8).hex()}"
        self._sockets["abstract"].bind(f"\0{abstract}")
        for name in ("unix", "abstract"):
            self._sockets[name].listen()
        for path in ("sock", "datagram"):
            (folder / path).chmod(0o666)
        self._libc = ctypes.CDLL(None)
        key = int.from_bytes(os.urandom(3), "big")
        self._segment = self._libc.shmget(key, 4096, 0o1666)
        cgroups = Path("/proc/self/cgroup").read_text().split()
        self.victim = subprocess.Popen(
            [sys.executable, "-S", "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE
        )
        self.facts: dict[str, object] = {
            "canary": str(self._canary),
            "marker": self._secret[::-1],
            "own_file": str(self._open_file),
            "open_file": str(self._open_file),
            "open_directory": str(open_directory),
            "server": os.getpid(),
            "victim": self.victim.pid,
            "address": id(self),
            "host": socket.gethostname(),
            "tcp": self._sockets["tcp"].getsockname()[1],
            "udp": self._sockets["udp"].getsockname()[1],
            "unix": str(folder / "sock"),
            "unix_datagram": str(folder / "datagram"),
            "abstract": abstract,
            "shm_key": key,
            "cgroup": max((line.rpartition(":")[2] for line in cgroups), key=len),
            "most_threads": BOUNDS.processes,
            "most_memory": BOUNDS.memory_bytes,
            "most_scratch": BOUNDS.scratch_bytes,
            "most_files": BOUNDS.scratch_files,
            "most_descriptors": BOUNDS.files,
        }

    def check(self) -> None:
        """Nothing was touched, nobody called, the victim lives."""
        assert self._canary.read_text() == self._secret
        assert self._canary.stat().st_mode & 0o777 == 0o666
        assert [path.name for path in self._open_directory.iterdir()] == ["file"]
        assert self._open_file.stat().st_mtime == 1
        assert self.victim.poll() is None
        for name, one in self._sockets.items():
            one.setblocking(False)
            try:
                got = one.recv(16) if name in {"udp", "unix_datagram"} else one.accept()
            except BlockingIOError:
                continue
            raise AssertionError(f"{name}: {got}")

    def close(self) -> None:
        self._libc.shmctl(self._segment, 0, None)
        for one in self._sockets.values():
            one.close()
        assert self.victim.stdin
        self.victim.stdin.close()
        self.victim.wait()
