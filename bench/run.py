"""secfarm beside the peers a user would pick, on the same work, in one run.

Every measurement runs in a process of its own, which starts the peer with two workers, runs the cases and ends it.
What is measured and how to read it: bench/README.md.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import platform
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

WORKERS: Final = 2
MIB: Final = 1 << 20
TIMEOUT_S: Final = 600
READY_TIMEOUT_S: Final = 20.0
CHUNK: Final = 1000  # items a pickle of ProcessPoolExecutor.map carries


# --- the work: the same functions for every peer ------------------------------------------------------------------
def increment(number: int) -> int:
    """Do as little as a task can do."""
    return number + 1


def measure(blob: bytes) -> int:
    """Take a large argument, give a small result."""
    return len(blob)


def produce(mebibytes: int) -> bytes:
    """Take a small argument, give a large result that does not compress."""
    return os.urandom(1 << 20) * mebibytes


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything."""

    round_trips: int = 2000
    warm_up: int = 200
    tasks: int = 20_000
    items: int = 200_000
    mebibytes: int = 64


QUICK: Final = Sizes(round_trips=50, warm_up=5, tasks=200, items=2000, mebibytes=2)


# --- the peers ------------------------------------------------------------------------------------------------------
class Peer(ABC):
    """What a case asks of a peer."""

    @abstractmethod
    def call(self, task: Callable[..., object], *args: object) -> object:
        """Run one task and wait for its result."""

    @abstractmethod
    def each(self, task: Callable[[int], int], count: int) -> list[int]:
        """Submit `count` tasks, each its own future, all before the first result is read."""

    @abstractmethod
    def map(self, task: Callable[[int], int], count: int) -> list[int]:
        """Map over `range(count)` the way the peer recommends for small tasks."""


class ExecutorPeer(Peer):
    """Any `concurrent.futures.Executor`; secfarm's Kernel is one."""

    def __init__(self, executor: Executor, chunk: int | None = None) -> None:
        self._executor = executor
        self._map_options: dict[str, Any] = {} if chunk is None else {"chunksize": chunk}

    def call(self, task: Callable[..., object], *args: object) -> object:  # noqa: D102 the base class says it
        return self._executor.submit(task, *args).result()

    def each(self, task: Callable[[int], int], count: int) -> list[int]:  # noqa: D102
        futures = [self._executor.submit(task, number) for number in range(count)]
        return [future.result() for future in futures]

    def map(self, task: Callable[[int], int], count: int) -> list[int]:  # noqa: D102
        return list(self._executor.map(task, range(count), **self._map_options))


class DaskPeer(Peer):
    """A dask.distributed client."""

    def __init__(self, client: Any) -> None:  # noqa: ANN401 dask is an extra, its types are not here
        self._client = client

    def call(self, task: Callable[..., object], *args: object) -> object:  # noqa: D102
        result: object = self._client.submit(task, *args, pure=False).result()
        return result

    def each(self, task: Callable[[int], int], count: int) -> list[int]:  # noqa: D102
        futures = [self._client.submit(task, number, pure=False) for number in range(count)]
        return list(self._client.gather(futures))

    def map(self, task: Callable[[int], int], count: int) -> list[int]:  # noqa: D102
        bag = importlib.import_module("dask.bag")
        return list(bag.from_sequence(range(count), npartitions=max(1, count // CHUNK)).map(task).compute())


@contextmanager
def secfarm_ed25519() -> Iterator[Peer]:
    """A real daemon over TCP, throw-away keys, each batch signed by Ed25519."""
    from secfarm import Kernel, start_local_servers

    with (
        start_local_servers([f"127.0.0.1:{free_port()}"], workers=WORKERS) as servers,
        Kernel(servers.addresses, auth=servers.auth) as kernel,
    ):
        yield ExecutorPeer(kernel)


@contextmanager
def secfarm_secret() -> Iterator[Peer]:
    """A real daemon over TCP, a shared secret, each batch signed by HMAC-SHA256."""
    from secfarm import Kernel, ping
    from secfarm.auth import SharedSecretAuth

    command = [sys.executable, "-m", "secfarm"]
    with tempfile.TemporaryDirectory(prefix="secfarm-bench-") as name:
        home, address = Path(name), f"127.0.0.1:{free_port()}"
        secret = home / "bench.secret"
        subprocess.run(
            [*command, "keygen", "--secret", "-C", "bench", "-f", str(secret)], check=True, stdout=subprocess.DEVNULL
        )
        policy = '[[grant]]\nprincipals = ["bench"]\nmay = ["run", "call"]\n'
        (home / "policy.toml").write_text(policy + 'names = ["*"]\n[grant.limits]\ntasks = 1_000_000\n')
        config = f'listen = ["{address}"]\nworkers = {WORKERS}\nsecrets = ["bench.secret"]\npolicy = "policy.toml"\n'
        (home / "server.toml").write_text(config + 'audit = "audit.jsonl"\nstate = "state"\n')
        for path in home.iterdir():
            path.chmod(0o600)
        server = subprocess.Popen([*command, "serve", "-c", str(home / "server.toml")], stdout=subprocess.DEVNULL)
        try:
            auth = SharedSecretAuth(secret)
            if not ping(address, timeout_s=READY_TIMEOUT_S, auth=auth):
                raise SystemExit(f"bench: the secfarm server at {address} does not answer")
            with Kernel([address], auth=auth) as kernel:
                yield ExecutorPeer(kernel)
        finally:
            server.terminate()
            server.wait()


@contextmanager
def process_pool() -> Iterator[Peer]:
    """The standard library: pickles over pipes, no network, no security."""
    with ProcessPoolExecutor(WORKERS) as executor:
        yield ExecutorPeer(executor, chunk=CHUNK)


@contextmanager
def dask_tcp() -> Iterator[Peer]:
    """dask.distributed: scheduler and two worker processes over TCP, no authentication, no encryption."""
    distributed = importlib.import_module("distributed")
    options = {"n_workers": WORKERS, "threads_per_worker": 1, "processes": True, "protocol": "tcp://"}
    with (
        distributed.LocalCluster(**options, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield DaskPeer(client)


PEERS: Final = {
    "secfarm-ed25519": secfarm_ed25519,
    "secfarm-secret": secfarm_secret,
    "process-pool": process_pool,
    "dask-tcp": dask_tcp,
}


def free_port() -> int:
    """Return a port of the loopback interface that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


# --- the cases ------------------------------------------------------------------------------------------------------
def latency(peer: Peer, sizes: Sizes) -> dict[str, float]:
    """One task at a time: how long from submit to result."""
    for number in range(sizes.warm_up):
        peer.call(increment, number)
    spent_s = []
    for number in range(sizes.round_trips):
        before = time.perf_counter()
        right = peer.call(increment, number) == number + 1
        spent_s.append(time.perf_counter() - before)
        assert right
    cuts = statistics.quantiles(spent_s, n=100)
    return {"latency p50": cuts[49] * 1e3, "latency p99": cuts[98] * 1e3}


def tasks(peer: Peer, sizes: Sizes) -> dict[str, float]:
    """Many tiny tasks, each its own future."""
    before = time.perf_counter()
    results = peer.each(increment, sizes.tasks)
    spent_s = time.perf_counter() - before
    assert results == list(range(1, sizes.tasks + 1))
    return {"tasks": sizes.tasks / spent_s}


def mapping(peer: Peer, sizes: Sizes) -> dict[str, float]:
    """One map over many items."""
    before = time.perf_counter()
    results = peer.map(increment, sizes.items)
    spent_s = time.perf_counter() - before
    assert results == list(range(1, sizes.items + 1))
    return {"map": sizes.items / spent_s}


def payload(peer: Peer, sizes: Sizes) -> dict[str, float]:
    """A large argument, then a large result."""
    blob = secrets.token_bytes(MIB) * sizes.mebibytes
    before = time.perf_counter()
    taken = peer.call(measure, blob)
    up_s = time.perf_counter() - before
    before = time.perf_counter()
    given = peer.call(produce, sizes.mebibytes)
    down_s = time.perf_counter() - before
    assert taken == len(blob)
    assert isinstance(given, bytes)
    assert len(given) == len(blob)
    return {"up": sizes.mebibytes / up_s, "down": sizes.mebibytes / down_s}


CASES: Final = {"latency": latency, "tasks": tasks, "map": mapping, "payload": payload}


def measure_peer(name: str, cases: list[str], sizes: Sizes) -> dict[str, float]:
    """Start the peer in this process, run the cases, end it."""
    values: dict[str, float] = {}
    with PEERS[name]() as peer:
        for case in cases:
            values |= CASES[case](peer, sizes)
    return values


def cold_start(name: str) -> dict[str, float]:
    """From the start of a new interpreter, servers and keys included, to the first result."""
    before = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, __file__, "--first-result", name], stdout=subprocess.PIPE, text=True
    ) as child:
        line = child.stdout.readline() if child.stdout else ""
        spent_s = time.perf_counter() - before
    if line != "2\n" or child.returncode:
        raise SystemExit(f"bench: {name} gave no first result")
    return {"cold start": spent_s}


def first_result(name: str) -> None:
    """Print the result of one task as soon as it is there (the child of `cold_start`)."""
    with PEERS[name]() as peer:
        print(peer.call(increment, 1), flush=True)


def in_child(name: str, cases: list[str], *, quick: bool) -> dict[str, float]:
    """Measure in a fresh process, so that no peer inherits another's threads or memory."""
    command = [sys.executable, __file__, "--child", name, "--cases", ",".join(cases), *(["--quick"] if quick else [])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, timeout=TIMEOUT_S)
    if done.returncode:
        raise SystemExit(f"bench: {name} ended with status {done.returncode}")
    values: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return values


# --- the report -----------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Measure:
    """A row of the table."""

    unit: str
    lower_is_better: bool = False


MEASURES: Final = {
    "latency p50": Measure("ms", lower_is_better=True),
    "latency p99": Measure("ms", lower_is_better=True),
    "tasks": Measure("1/s"),
    "map": Measure("items/s"),
    "up": Measure("MiB/s"),
    "down": Measure("MiB/s"),
    "cold start": Measure("s", lower_is_better=True),
}

Table = dict[str, dict[str, float]]  # peer -> measure -> median


def medians(runs: dict[str, list[dict[str, float]]]) -> Table:
    """Return the median of the repeats, for each peer and measure."""
    return {
        peer: {name: statistics.median(run[name] for run in repeats) for name in MEASURES if name in repeats[0]}
        for peer, repeats in runs.items()
    }


def ratio(table: Table, ours: str, theirs: str, name: str) -> float:
    """Return how many times better `ours` is than `theirs`."""
    mine, other = table[ours][name], table[theirs][name]
    return other / mine if MEASURES[name].lower_is_better else mine / other


def figure(value: float) -> str:
    """Three digits that mean something, thousands apart."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"  # noqa: PLR2004 three digits


def report(table: Table) -> str:
    """Return the table of medians, and below it how secfarm compares."""
    peers = list(table)
    names = [name for name in MEASURES if all(name in values for values in table.values())]
    lines = [f"{'':<24}" + "".join(f"{peer:>18}" for peer in peers)]
    for name in names:
        label = f"{name}, {MEASURES[name].unit}"
        lines.append(f"{label:<24}" + "".join(f"{figure(table[peer][name]):>18}" for peer in peers))
    for ours in (peer for peer in peers if peer.startswith("secfarm")):
        others = [peer for peer in peers if not peer.startswith("secfarm")]
        lines += ["", f"{ours}, times as fast as" if others else ""]
        for name in names:
            cells = "".join(f"{figure(ratio(table, ours, peer, name)):>18}" for peer in others)
            if cells:
                lines.append(f"{name:<24}" + cells)
    return "\n".join(lines).rstrip()


def versions() -> dict[str, str]:
    """Return what was measured, on what."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version(), "kernel": platform.release(), "cores": str(os.cpu_count())}
    for package in ("secfarm", "PyNaCl", "cryptography", "msgspec", "uvloop", "distributed"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def arguments() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description="secfarm beside its peers, in one run")
    available = [name for name in PEERS if name != "dask-tcp" or importlib.util.find_spec("distributed")]
    parser.add_argument("--peers", default=",".join(available), help="default: %(default)s")
    parser.add_argument("--cases", default=",".join([*CASES, "cold"]), help="default: %(default)s")
    parser.add_argument("--repeat", type=int, default=3, help="rounds over all peers; medians are shown (default 3)")
    parser.add_argument("--quick", action="store_true", help="small sizes: does it run at all")
    parser.add_argument("--json", metavar="FILE", help="write versions, every value and the medians to FILE")
    parser.add_argument("--child", metavar="PEER", help=argparse.SUPPRESS)
    parser.add_argument("--first-result", metavar="PEER", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure every peer in turn, `--repeat` times round, and print the medians."""
    options = arguments()
    cases = [case for case in options.cases.split(",") if case in CASES]
    if options.first_result:
        first_result(options.first_result)
        return
    if options.child:
        print(json.dumps(measure_peer(options.child, cases, QUICK if options.quick else Sizes())))
        return
    runs: dict[str, list[dict[str, float]]] = {peer: [] for peer in options.peers.split(",")}
    for turn in range(options.repeat):
        for peer, repeats in runs.items():
            print(f"round {turn + 1} of {options.repeat}: {peer}", file=sys.stderr)
            values = in_child(peer, cases, quick=options.quick) if cases else {}
            if "cold" in options.cases.split(","):
                values |= cold_start(peer)
            repeats.append(values)
    table = medians(runs)
    print(report(table))
    if options.json:
        record = {"versions": versions(), "quick": options.quick, "runs": runs, "medians": table}
        Path(options.json).write_text(json.dumps(record, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
