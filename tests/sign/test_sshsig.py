"""OpenSSH's forms, judged by the real `ssh-keygen`."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secfarm.errors import BadSignatureError
from secfarm.sign.envelope import pae, seal, session_type
from secfarm.sign.keys import PublicKey, SigningKey
from secfarm.sign.sshsig import armor, dearmor

KEY = SigningKey.from_seed(bytes(range(32)))


def _verify(directory: Path, message: bytes, armored: str, *, namespace: str) -> subprocess.CompletedProcess[bytes]:
    (directory / "allowed_signers").write_text(f'ada@laptop namespaces="{namespace}" {KEY.public.openssh()}\n')
    (directory / "message.sig").write_text(armored)
    command = ["ssh-keygen", "-Y", "verify", "-f", "allowed_signers", "-I", "ada@laptop", "-n", namespace]
    return subprocess.run(
        [*command, "-s", "message.sig"], cwd=directory, input=message, capture_output=True, check=False
    )


def test_ssh_keygen_accepts_the_signature_of_an_envelope(tmp_path: Path) -> None:
    """An archive of envelopes can be checked without secfarm."""
    envelope = seal(session_type("5e55"), b"a batch", KEY)
    message = pae(envelope.payload_type, envelope.payload)
    done = _verify(tmp_path, message, armor(envelope.signatures[0].value), namespace="task@secfarm")
    assert done.returncode == 0, done.stderr
    assert b"Good" in done.stdout
    assert KEY.key_id.encode() in done.stdout


def test_ssh_keygen_refuses_it_for_other_bytes(tmp_path: Path) -> None:
    """The test above can fail."""
    assert _verify(tmp_path, b"other", armor(KEY.sign(b"message")), namespace="task@secfarm").returncode != 0
    assert (
        _verify(tmp_path, b"message", armor(KEY.sign_in("git", b"message")), namespace="task@secfarm").returncode != 0
    )


def test_what_ssh_keygen_signs_is_byte_for_byte_what_we_sign(tmp_path: Path) -> None:
    key = tmp_path / "id"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    signing = ["ssh-keygen", "-q", "-Y", "sign", "-f", str(key), "-n", "task@secfarm"]
    signed = subprocess.run(signing, input=b"message", capture_output=True, check=True).stdout.decode()
    public = PublicKey.from_openssh((tmp_path / "id.pub").read_text())
    assert public.verify(b"message", dearmor(signed)) == b"message"
    assert armor(dearmor(signed)) == signed


def test_a_key_id_is_the_fingerprint_that_ssh_keygen_prints(tmp_path: Path) -> None:
    (tmp_path / "id.pub").write_text(KEY.public.openssh("ada") + "\n")
    listing = ["ssh-keygen", "-l", "-f", str(tmp_path / "id.pub")]
    assert KEY.key_id in subprocess.run(listing, capture_output=True, check=True, text=True).stdout.split()


@given(st.binary(max_size=400))
def test_armor_round_trips(blob: bytes) -> None:
    assert dearmor(armor(blob)) == blob


@pytest.mark.parametrize("text", ["", "-----BEGIN SSH SIGNATURE-----", "U1NIU0lH", armor(b"x").replace("eA==", "e")])
def test_what_is_not_armored_is_a_bad_signature(text: str) -> None:
    with pytest.raises(BadSignatureError):
        dearmor(text)
