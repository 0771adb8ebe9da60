"""A real sshd on loopback for one user, one key and one host name of its own: OpenSSH, started for each connection."""

from __future__ import annotations

import contextlib
import getpass
import os
import secrets
import shutil
import socket
import subprocess
import threading
from pathlib import Path
from typing import Final, Self

_CONFIG: Final = """\
HostKey {folder}/host
AuthorizedKeysFile {folder}/client.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin yes
LogLevel ERROR
"""


class Sshd:
    """Listens on a loopback address of its own and hands each connection to `sshd -i`. A context manager.

    Attributes:
        host, port: where; the address is no other test's, so a server may listen there on any port.
    """

    def __init__(self, folder: Path) -> None:
        program = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        assert program, "there is no sshd; .ci/apt sshd installs it"
        for name in ("host", "client"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where sshd, as root, locks its children up
        (folder / "sshd_config").write_text(_CONFIG.format(folder=folder), encoding="utf-8")
        self._words = [program, "-i", "-e", "-f", str(folder / "sshd_config")]
        self._log = (folder / "sshd.log").open("wb")
        self.host = "127.{}.{}.{}".format(*(1 + secrets.randbelow(250) for _ in range(3)))
        self._listening = socket.create_server((self.host, 0))
        self.port: int = self._listening.getsockname()[1]
        key = (folder / "host.pub").read_text(encoding="utf-8")
        (folder / "known_hosts").write_text(f"[{self.host}]:{self.port} {key}", encoding="utf-8")
        self._settings: dict[str, object] = {
            "Port": self.port,
            "StrictHostKeyChecking": "yes",
            "UserKnownHostsFile": folder / "known_hosts",
            "IdentitiesOnly": "yes",
            "IdentityFile": folder / "client",
            "User": getpass.getuser(),
        }
        self._children: list[subprocess.Popen[bytes]] = []
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def options(self, **changes: object) -> list[str]:
        """The options of ssh with which one gets in, but for `changes`."""
        settings = self._settings | changes
        return ["-F", "none", *(word for name in settings for word in ("-o", f"{name}={settings[name]}"))]

    @property
    def count(self) -> int:
        """Connections so far."""
        return len(self._children)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = self._listening.accept()
                with peer:
                    self._children.append(
                        subprocess.Popen(self._words, stdin=peer, stdout=peer, stderr=self._log, env={})
                    )

    def cut(self) -> None:
        """End the sessions of all connections, as a network would."""
        for child in self._children:
            child.kill()
            child.wait()

    def close(self) -> None:
        """Listen no more and end what is left."""
        self._listening.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listening.close()
        self.cut()
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def free_port(host: str) -> int:
    """A port that nothing listens on; `host` is nobody else's, so it stays free."""
    with socket.create_server((host, 0)) as sock:
        return int(sock.getsockname()[1])
