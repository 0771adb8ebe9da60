"""A hub: this process listens, and servers dial in to it, as they do from behind a firewall or out of a batch system.

Work may wait before there is anybody to do it; each server that comes takes its share. Everything is made here, in a
folder for the occasion: keys, who trusts which, a policy. Apart, each side gets only its own private key.

python examples/hub.py [--servers N] [--tasks N]
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from secfarm import Kernel, deftask
from secfarm.auth import Ed25519AuthClient

SECFARM = [sys.executable, "-m", "secfarm"]
POLICY = '[[grant]]\nprincipals = ["ada"]\nmay = ["run"]\n'
SERVER = """\
name = "{name}"
workers = 1
key = "{name}"
allowed_signers = "allowed_signers"
policy = "policy.toml"
state = "{name}.state"
"""


@deftask
def collatz(start: int) -> tuple[int, int]:
    """Return how many steps it takes from `start` to 1."""
    number, steps = start, 0
    while number != 1:
        number, steps = (3 * number + 1 if number % 2 else number // 2), steps + 1
    return steps, start


def make_files(folder: Path, servers: list[str]) -> None:
    """Make a key for each, and let client and servers know each other; a server that dials in is known by its name."""
    for name in ("ada", *servers):
        subprocess.run([*SECFARM, "keygen", "--quiet", "-f", folder / name, "-C", name], check=True)
    public = {name: (folder / f"{name}.pub").read_text("utf-8") for name in ("ada", *servers)}
    texts = {f"{name}.toml": SERVER.format(name=name) for name in servers}
    texts |= {"policy.toml": POLICY, "allowed_signers": f"ada {public['ada']}"}
    texts["known_servers"] = "".join(f"{name} {public[name]}" for name in servers)
    for name, text in texts.items():
        (folder / name).write_text(text, "utf-8")
        (folder / name).chmod(0o600)


def start_server(config: Path, hub: str) -> subprocess.Popen[bytes]:
    """Start a server that dials `hub`."""
    command = [*SECFARM, "serve", "--quiet", "-c", str(config), "--dial", hub]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def main() -> None:
    """Listen, submit, let servers come, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--servers", type=int, default=2)
    parser.add_argument("--tasks", type=int, default=5_000)
    options = parser.parse_args()
    names = [f"node{number}" for number in range(1, options.servers + 1)]
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        make_files(folder, names)
        auth = Ed25519AuthClient(folder / "ada", known_servers=folder / "known_servers")
        kernel = stack.enter_context(Kernel(listen="127.0.0.1:0", auth=auth))
        futures = [kernel.submit(collatz, start) for start in range(1, options.tasks + 1)]  # nobody is there yet
        for name in names:
            server = stack.enter_context(start_server(folder / f"{name}.toml", kernel.listening[0]))
            stack.callback(server.terminate)
        steps, start = max(future.result() for future in futures)
        while kernel.worker_count < options.servers:
            time.sleep(0.05)  # who is slow to start has missed the work
        there = {worker.server for worker in kernel.workers()}
        kernel.shutdown()  # the servers are told to end next, and finish what they have first
    print(f"of {options.tasks} numbers {start} takes most steps: {steps}")
    print(f"servers that are there: {', '.join(sorted(there))}")


if __name__ == "__main__":
    main()
