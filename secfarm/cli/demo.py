"""`secfarm demo`: real work on two servers that verify every batch, then two attacks that they refuse.

Whatever does not hold is an error: exit status 0 means that every claim that was printed was checked.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import platform
import shutil
import sys
import sysconfig
import tempfile
import time
import tokenize
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar, cast

import click

from secfarm.cli import demo_attack
from secfarm.cli.audit import record_line
from secfarm.cli.output import Output, output_options, pass_output, printable
from secfarm.cli.script import load_script
from secfarm.disk.auditlog import verify_log
from secfarm.disk.config import CONFINEMENTS
from secfarm.errors import BadSignatureError, ReplayedError, VerifyError
from secfarm.farm.kernel import Kernel
from secfarm.farm.launcher import LocalServers, server_status, start_local_servers
from secfarm.sign.keys import SigningKey

if TYPE_CHECKING:
    from secfarm.cli.demo_tasks import Survey
    from secfarm.sign.keys import Signer

T = TypeVar("T")

_TASKS: Final = Path(__file__).with_name("demo_tasks.py")
_LEFT_OUT: Final = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test"})
_GROUP: Final = 16  # surveys that one task adds up
_SHOWN: Final = 5
_CONNECT_S: Final = 30.0


@click.command("demo")
@click.option("--files", "limit", type=click.IntRange(min=1), help="Take only so many files.  [default: all]")
@click.option(
    "--confinement",
    type=click.Choice(CONFINEMENTS),
    default=CONFINEMENTS[0],
    show_default=True,
    help="How tasks are confined; container: where there are no namespaces to be had.",
)
@output_options()
@pass_output
def command(output: Output, *, limit: int | None, confinement: str) -> None:
    """Survey the standard library on two servers, then try to cheat them.

    The servers are started here, with fresh keys, and ended. Every `.py` file of this Python's standard library (but
    for its own tests) is parsed and counted by them, the counts are added up by them, and the answer is compared with
    a local run. Then a forged and a replayed batch are sent.
    """
    start_s = time.monotonic()
    workers = max(1, (os.cpu_count() or 1) // 2)
    texts = _read_library(limit)
    _say(
        output,
        f"input    {len(texts)} files, {sum(map(len, texts.values())) / 1e6:.1f} MB: the standard library of "
        f"Python {platform.python_version()}, without its tests",
    )
    with (
        tempfile.TemporaryDirectory(prefix="secfarm-demo-") as folder,
        start_local_servers(["127.0.0.1:0"] * 2, workers=workers, confinement=confinement) as servers,
    ):
        tasks = load_script(Path(shutil.copy(_TASKS, Path(folder, "library_survey.py"))))
        _say(output, f"servers  {' and '.join(servers.addresses)}, fresh keys, {workers} worker(s) each")
        started = [record["confinement"] for record in _records(servers) if record["event"] == "started"]
        _hold(started == [confinement] * 2, "both servers confine their tasks")
        _say(output, f"confined by the profile {confinement}, out of which each server has tried in vain to escape")
        counted, times = _count(output, servers, tasks, texts)
        batches = _batches(servers)
        _say(
            output,
            f"batches  {batches['signed']} signed by {_key(servers).key_id}, {batches['verified']} verified, "
            f"{batches['refused']} refused",
        )
        _hold(batches["signed"] == batches["verified"] and not batches["refused"], "every signed batch is verified")
        refusals = _attack(output, servers)
        after = _batches(servers)
        _hold(after["refused"] == len(refusals), "the servers count each refused batch")
        records = _verify_audit(output, servers)
    took_s = time.monotonic() - start_s
    _say(output, f"done     in {took_s:.1f} s; everything above was checked")
    record = {**_summary(counted), **times, **{f"batches_{name}": number for name, number in batches.items()}}
    if output.json:
        output.answer({**record, "refusals": refusals, "audit_records": records, "seconds": round(took_s, 3)})


def _say(output: Output, line: str) -> None:
    if not output.json:
        output.confirm({}, line)


def _hold(claim: bool, what: str) -> None:  # noqa: FBT001 - the claim is the point
    if not claim:
        raise VerifyError(f"this does not hold: {what}; see the lines above")


def _key(servers: LocalServers) -> Signer:
    key = servers.auth.key
    if not isinstance(key, SigningKey):
        raise VerifyError("this does not hold: local servers are given a loaded key")
    return key


# --- the work -----------------------------------------------------------------------------------------------------


def _read_library(limit: int | None) -> dict[str, str]:
    """Return path below the standard library -> text, for every file of it."""
    root = Path(sysconfig.get_path("stdlib"))
    paths = [path for path in sorted(root.rglob("*.py")) if _LEFT_OUT.isdisjoint(path.relative_to(root).parts)]
    texts: dict[str, str] = {}
    for path in paths[:limit]:
        # Some distributions leave links here that lead nowhere.
        with contextlib.suppress(OSError, SyntaxError, UnicodeDecodeError), tokenize.open(path) as file:
            texts[str(path.relative_to(root))] = file.read()
    return texts


def _count(
    output: Output, servers: LocalServers, tasks: Mapping[str, object], texts: Mapping[str, str]
) -> tuple[Survey, dict[str, float]]:
    survey = cast("Callable[[str, str], Survey]", tasks["survey"])
    merge = cast("Callable[[list[Survey]], Survey]", tasks["merge"])
    start_s = time.monotonic()
    with Kernel(servers.addresses, auth=servers.auth, connect_timeout_s=_CONNECT_S) as kernel:
        futures = [kernel.submit(survey, path, text) for path, text in texts.items()]
        surveys = [future.result() for future in _shown(output, futures, "two servers")]
        while len(surveys) > 1:
            groups = [surveys[at : at + _GROUP] for at in range(0, len(surveys), _GROUP)]
            surveys = [future.result() for future in [kernel.submit(merge, group) for group in groups]]
    farm_s = time.monotonic() - start_s
    (counted,) = surveys
    for line in _table(counted):
        _say(output, line)
    start_s = time.monotonic()
    local = functools.reduce(
        lambda left, right: merge([left, right]),
        [survey(path, text) for path, text in _shown(output, list(texts.items()), "local run")],
    )
    local_s = time.monotonic() - start_s
    _hold(counted == local, "the servers' answer is that of a local run")
    _say(output, f"checked  a local run gives the same answer ({farm_s:.1f} s on the servers, {local_s:.1f} s here)")
    return counted, {"farm_s": round(farm_s, 3), "local_s": round(local_s, 3)}


def _shown(output: Output, items: list[T], label: str) -> Iterable[T]:
    """Yield `items`, with a bar on a terminal."""
    hidden = output.quiet or output.json or not sys.stderr.isatty()
    with click.progressbar(items, label=label, file=sys.stderr, hidden=hidden) as bar:
        yield from bar


def _most_used(counted: Survey) -> list[tuple[str, int]]:
    return sorted(counted["identifiers"].items(), key=lambda item: (-item[1], item[0]))[:_SHOWN]


def _summary(counted: Survey) -> dict[str, object]:
    return {
        "files": counted["files"],
        "unparsed": counted["unparsed"],
        "lines": counted["lines"],
        "words": counted["words"],
        "functions": counted["functions"],
        "distinct_identifiers": len(counted["identifiers"]),
        "most_used": _most_used(counted),
        "longest": counted["longest"],
    }


def _table(counted: Survey) -> Iterable[str]:
    uses, names = sum(counted["identifiers"].values()), len(counted["identifiers"])
    most = ", ".join(f"{name} {count:,}" for name, count in _most_used(counted))
    yield f"counted  {counted['lines']:,} lines, {counted['words']:,} words, {counted['functions']:,} functions"
    if counted["unparsed"]:
        yield f"         {counted['unparsed']:,} files are not of this Python's syntax; only their words are counted"
    yield f"         {uses:,} uses of {names:,} identifiers; most used: {most}"
    yield "         longest functions:"
    for lines, where in counted["longest"]:
        yield f"         {lines:6,} lines  {printable(where, one_line=True)}"


# --- what the servers say -----------------------------------------------------------------------------------------


def _records(servers: LocalServers) -> list[dict[str, object]]:
    """Return the records of both audit logs."""
    return [json.loads(line) for log in _logs(servers) for line in log.read_text("ascii").splitlines()]


def _logs(servers: LocalServers) -> list[Path]:
    return sorted(servers.folder.glob("*/audit.jsonl"))


def _batches(servers: LocalServers) -> dict[str, int]:
    """Return how many batches the servers verified and refused, and how many were signed with our key by their logs."""
    statuses = [server_status(address, auth=servers.auth) for address in servers.addresses]
    accepted = [record for record in _records(servers) if record["event"] == "accepted"]
    return {
        "signed": sum(record["key"] == _key(servers).key_id for record in accepted),
        "verified": sum(cast("int", status["batches_verified"]) for status in statuses),
        "refused": sum(cast("int", status["batches_refused"]) for status in statuses),
    }


def _attack(output: Output, servers: LocalServers) -> list[str]:
    """Send a forged and a replayed batch; return the codes by which they were refused."""
    first, second = servers.addresses
    auth, key = servers.auth, _key(servers)
    proof = servers.folder / "forged"
    heard = asyncio.run(demo_attack.forge(first, auth, key, f"touch '{proof}'"))
    _say(output, "forged   a batch signed for len('harmless'), with os.system('touch ...') put in its place")
    forged = _refusal(output, servers, heard, BadSignatureError.code)
    _hold(heard.outcomes == 0 and not proof.exists(), "nothing of the forged batch ran")
    heard = asyncio.run(demo_attack.replay(second, auth, key))
    _say(output, "replayed a batch that was signed once and ran once, sent again byte for byte")
    replayed = _refusal(output, servers, heard, ReplayedError.code)
    _hold(heard.outcomes == 1, "the replayed batch ran only the first time")
    return [forged, replayed]


def _refusal(output: Output, servers: LocalServers, heard: demo_attack.Heard, code: str) -> str:
    """Show the audit record of what was refused in that session; it must give `code` as the reason."""
    mine = [record for record in _records(servers) if record.get("session") == heard.session_id]
    refused = [record for record in mine if record["event"] == "refused"]
    _hold(len(refused) == 1 and refused[0]["code"] == code, f"one batch of the session was refused as {code}")
    _hold(heard.goodbye == "refused", "the client hears the one word `refused`")
    _say(output, "         the client heard: refused. The server's audit log:")
    _say(output, f"         {record_line(refused[0])}")
    return code


def _verify_audit(output: Output, servers: LocalServers) -> int:
    summaries = [verify_log(log) for log in _logs(servers)]
    _hold(len(summaries) == len(servers.addresses), "each server has written its log")
    records = sum(summary.records for summary in summaries)
    _say(output, f"audit    {len(summaries)} logs, {records} records, both chains whole")
    return records
