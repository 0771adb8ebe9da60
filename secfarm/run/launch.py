"""How a zygote is started, as whoever owns it sees that."""

from __future__ import annotations

import socket
import subprocess
from dataclasses import dataclass

from secfarm.run.role import ZYGOTE, spawn


@dataclass(frozen=True, slots=True)
class Launched:
    """A zygote that was started: our end of its control socket, and the process if it is a child of this one."""

    control: socket.socket
    process: subprocess.Popen[bytes] | None


def launch() -> Launched:
    """Start a zygote as a child of this process; it waits for its first order."""
    control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        try:
            return Launched(control, spawn(ZYGOTE, {"control": theirs.fileno()}))
        except BaseException:
            control.close()
            raise
