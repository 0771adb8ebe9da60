"""`doctor` finds what is wrong, says what to do, and fails only for what cannot be done without."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from secfarm.errors import ExitStatus
from tests.cli.conftest import Secfarm, Site, make_site


def findings(text: str) -> dict[str, dict[str, str]]:
    return {one["subject"]: one for one in json.loads(text)["checks"]}


def test_a_fresh_user_gets_warnings_and_status_0(secfarm: Secfarm, tmp_path: Path) -> None:
    done = secfarm("doctor", "--json", env={"XDG_CONFIG_HOME": str(tmp_path)})
    found = findings(done.stdout)
    assert (done.returncode, json.loads(done.stdout)["ok"]) == (0, True)
    assert {found[name]["level"] for name in ("python", "tls", "unix socket", "confinement")} == {"ok"}
    assert {"cryptography", "msgspec", "click"} <= found.keys()
    assert found["key"]["level"] == "warn"
    assert "keygen" in found["key"]["remedy"]


def test_good_files_are_ok_with_their_modes(call: Secfarm, site: Site) -> None:
    done = call("doctor", "-c", site.server_toml, env=site.client())
    assert done.returncode == 0, done.stdout
    assert "fail" not in done.stdout
    for role in ("gate", "dialling gate", "keeper"):
        assert f"role          {role}: no privileges, memory closed to its user, landlock (ABI " in done.stdout
    assert f"{site.folder / 'ada'} (0600, " in done.stdout
    assert "policy.toml (0600, " in done.stdout


@pytest.mark.parametrize(
    ("file", "text", "mode", "subject", "status"),
    [
        ("ada", None, 0o644, "key", ExitStatus.AUTHENTICATION),
        ("ada.toml", "surprise = 1\n", 0o600, "client", ExitStatus.USAGE),
        ("known_servers", "nonsense\n", 0o600, "known servers", ExitStatus.USAGE),
        ("policy.toml", "[[grant]]\n", 0o600, "policy", ExitStatus.USAGE),
        ("allowed_signers", None, 0o666, "signers", ExitStatus.USAGE),
        ("audit.jsonl", "{}\n", 0o600, "audit", ExitStatus.VERIFICATION),
    ],
)
def test_what_is_wrong_fails_with_a_remedy(
    file: str, text: str | None, mode: int, subject: str, status: ExitStatus, tmp_path: Path, call: Secfarm
) -> None:
    site = make_site(tmp_path)
    if text is not None:
        (tmp_path / file).write_text(text)
    (tmp_path / file).chmod(mode)
    done = call("doctor", "--json", "-c", site.server_toml, env=site.client())
    found = findings(done.stdout)[subject]
    assert done.returncode == status
    assert (found["level"], str(tmp_path / file) in found["text"]) == ("fail", True)
    assert found["remedy"]


def test_quiet_shows_only_what_is_wrong(call: Secfarm, site: Site) -> None:
    done = call("doctor", "-q", env=site.client())
    assert not [line for line in done.stdout.splitlines() if line.startswith("ok")]
