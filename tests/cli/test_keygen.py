"""`keygen` makes keys that OpenSSH reads, for their owner alone, and overwrites nothing."""

from __future__ import annotations

import json
import stat
import subprocess
from pathlib import Path

import pytest

from secfarm.cli.main import main
from secfarm.disk.keyfile import read_public_key, read_secret, read_signing_key
from secfarm.errors import ExitStatus
from tests.cli.conftest import Secfarm


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_pair_is_openssh_s_and_its_lines_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "ada"
    assert main(["keygen", "-f", str(file), "-C", "ada@laptop"]) == 0
    out = capsys.readouterr().out
    key = read_signing_key(file)
    assert (mode(file), mode(tmp_path / "ada.pub")) == (0o600, 0o644)
    assert f"key id {key.key_id}\n" in out
    assert key.public.openssh("ada@laptop") in out
    assert f'ada@laptop namespaces="task@secfarm" {key.public.openssh()}' in out
    shown = subprocess.run(["ssh-keygen", "-y", "-f", file], capture_output=True, text=True, check=True).stdout
    assert shown.startswith(key.public.openssh())
    listed = subprocess.run(["ssh-keygen", "-lf", f"{file}.pub"], capture_output=True, text=True, check=True).stdout
    assert key.key_id in listed


def test_json_names_files_and_key_and_no_secret(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "k"
    assert main(["keygen", "--json", "-f", str(file), "-C", "me"]) == 0
    record = json.loads(capsys.readouterr().out)
    public = read_public_key(record["public_file"])
    assert record["key_id"] == public.key_id
    assert record["public"] == public.openssh("me")
    assert record["file"] == str(file)


@pytest.mark.parametrize("kind", ["--ed25519", "--secret"])
def test_nothing_is_overwritten(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "k"
    file.write_text("precious")
    assert main(["keygen", kind, "-f", str(file), "-C", "me"]) == ExitStatus.AUTHENTICATION
    assert "exists already" in capsys.readouterr().err
    assert [path.read_text() for path in tmp_path.iterdir()] == ["precious"]


def test_a_secret_goes_to_its_file_and_nowhere_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "s"
    assert main(["keygen", "--secret", "-f", str(file), "-C", "ada@laptop"]) == 0
    out = "".join(capsys.readouterr())
    secret = read_secret(file)
    assert (secret.principal, mode(file)) == ("ada@laptop", 0o600)
    assert secret.key_id in out
    assert file.read_text().split()[2] not in out


def test_defaults_are_in_the_configuration_s_directory(secfarm: Secfarm, tmp_path: Path) -> None:
    home = {"XDG_CONFIG_HOME": str(tmp_path)}
    assert secfarm("keygen", env=home).returncode == 0
    assert secfarm("keygen", "--secret", env=home).returncode == 0
    assert sorted(path.name for path in (tmp_path / "secfarm").iterdir()) == ["id_ed25519", "id_ed25519.pub", "secret"]
    assert "@" in read_secret(tmp_path / "secfarm/secret").principal


def test_a_passphrase_is_given_twice_and_encrypts_the_file(secfarm: Secfarm, tmp_path: Path) -> None:
    file = tmp_path / "k"
    done = secfarm("keygen", "--passphrase", "-f", file, typed="open sesame\nopen sesame\n")
    assert done.returncode == 0
    assert read_signing_key(file, passphrase=lambda: b"open sesame").key_id in done.stdout
    assert "sesame" not in done.stdout + done.stderr


@pytest.mark.parametrize("lines", ["one\ntwo\n", "\n\n", ""])
def test_two_different_passphrases_make_no_key(lines: str, secfarm: Secfarm, tmp_path: Path) -> None:
    done = secfarm("keygen", "--passphrase", "-f", tmp_path / "k", typed=lines)
    assert done.returncode == ExitStatus.USAGE
    assert list(tmp_path.iterdir()) == []
