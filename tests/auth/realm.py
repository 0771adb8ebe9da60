"""A Kerberos realm of the tests' own: a real MIT KDC on loopback, its files in a directory nobody else reads.

It starts in a fraction of a second, needs no privileges and shares nothing with the system's Kerberos: port, database,
configuration, caches and keytabs are its own, so test processes side by side have one each.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Final, Self

import pytest

REALM: Final = "SECFARM.TEST"
OTHER: Final = "OTHER.TEST"
HOST: Final = "localhost"
SERVICE: Final = f"secfarm/{HOST}"
PATH: Final = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
WAIT_S: Final = 60.0
PROGRAMS: Final = ("krb5kdc", "kdb5_util", "kadmin.local", "kinit")
# Where tests of Kerberos have to run, their lack is a failure: the Makefile sets it. (SECFARM_* is unset for tests.)
REQUIRED: Final = os.environ.get("KERBEROS_TESTS") == "required"


def need_kerberos() -> None:
    """Skip what needs a KDC or the package gssapi where they are not installed, or fail where they have to be."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]
    try:
        import gssapi  # noqa: F401
    except ImportError:
        missing.append("the package gssapi")
    if not missing:
        return
    _lacks(f"not installed: {', '.join(missing)} (apt: krb5-kdc krb5-admin-server krb5-user; pip: gssapi)")


def need_pkinit() -> None:
    """Likewise what needs MIT's plug-in for public keys."""
    need_kerberos()
    plug_in = "krb5/plugins/preauth/pkinit.so"
    if not [path for place in ("lib*", "lib/*") for path in Path("/usr").glob(f"{place}/{plug_in}")]:
        _lacks("not installed: MIT's plug-in pkinit (apt: krb5-pkinit)")


def _lacks(words: str) -> None:
    if REQUIRED:
        pytest.fail(words)
    pytest.skip(words)


class Realm:
    """A realm and its KDC. A context manager; `environ` is what a process needs to live in it."""

    wait_s: ClassVar[float] = WAIT_S

    def __init__(self, *, name: str = REALM, clockskew_s: int = 300) -> None:
        """Make the database and start the KDC."""
        self.name = name
        self.folder = Path(tempfile.mkdtemp(prefix="secfarm-krb-"))
        self._reserved = _reserved_port()  # as long as the realm is there, whether or not its KDC runs
        self.port: int = self._reserved.getsockname()[1]
        self.krb5_conf = self.write("krb5.conf", _KRB5_CONF.format(realm=name, port=self.port, skew=clockskew_s))
        self.environ = {
            "KRB5_CONFIG": str(self.krb5_conf),
            "KRB5CCNAME": f"FILE:{self.folder / 'ccache'}",
            "KRB5RCACHENAME": "none:",
        }
        self._kdc: subprocess.Popen[bytes] | None = None
        self._create()
        self.start()

    def _create(self) -> None:
        """Make the database, with the service, ada and bob in it; a user's password is the user's name."""
        self.write("kdc.conf", _KDC_CONF.format(realm=self.name, port=self.port, folder=self.folder))
        self.environ["KRB5_KDC_PROFILE"] = str(self.folder / "kdc.conf")
        self.tool("kdb5_util", "create", "-r", self.name, "-s", "-P", "master")
        self.admin(f"addprinc -randkey {SERVICE}", "addprinc -pw ada ada", "addprinc -pw bob bob")

    def _command(self) -> list[str]:
        """The KDC's, which stays in the foreground."""
        return ["krb5kdc", "-n", "-r", self.name]

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        path.chmod(0o600)
        return path

    def start(self) -> None:
        """Start the KDC and return when it answers."""
        program, *rest = self._command()
        self._kdc = subprocess.Popen(
            [self._find(program), *rest],
            env=self._environ(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline_s = time.monotonic() + WAIT_S
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), WAIT_S):
                return
            assert self._kdc.poll() is None, "the KDC did not start"
            assert time.monotonic() < deadline_s, "the KDC does not answer"
            time.sleep(0.005)

    def stop(self) -> None:
        """End the KDC: nobody answers at its port then."""
        if self._kdc is not None:
            self._kdc.send_signal(signal.SIGTERM)
            self._kdc.wait(WAIT_S)
            self._kdc = None

    def close(self) -> None:
        self.stop()
        self._reserved.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def tool(self, *command: str, password: str = "") -> str:
        """Run one of Kerberos' own programs in this realm."""
        done = subprocess.run(
            [self._find(command[0]), *command[1:]],
            env=self._environ(),
            input=password,
            capture_output=True,
            text=True,
            check=False,
            timeout=self.wait_s,
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def admin(self, *orders: str) -> None:
        """Give orders to the realm's administration."""
        for order in orders:
            self.tool("kadmin.local", "-r", self.name, "-q", order)

    def keytab(self, name: str, *principals: str) -> Path:
        """A keytab with the present keys of these principals."""
        path = self.folder / name
        for principal in principals:
            self.admin(f"ktadd -norandkey -k {path} {principal}")
        path.chmod(0o600)
        return path

    def ticket(self, user: str = "ada", *options: str, ccache: str = "") -> Path:
        """Log `user` in; return the credential cache, which is one of its own where it has a name."""
        path = self.folder / (ccache or "ccache")
        self.tool("kinit", "-c", f"FILE:{path}", *options, user, password=user)
        return path

    def know(self, *realms: Realm) -> None:
        """Let programs of this realm find the KDCs of others; host names stay the first one's."""
        text = self.krb5_conf.read_text(encoding="utf-8")
        others = "".join(f"    {one.name} = {{\n        kdc = 127.0.0.1:{one.port}\n    }}\n" for one in realms)
        head = text.partition("[realms]\n")[0]
        home = f"[domain_realm]\n    localhost = {realms[0].name}\n"
        self.write("krb5.conf", f"{head}[realms]\n{others}{home}")

    def _environ(self) -> dict[str, str]:
        return {**os.environ, **self.environ, "PATH": PATH}

    @staticmethod
    def _find(program: str) -> str:
        found = shutil.which(program, path=PATH)
        assert found is not None, program
        return found

    @contextlib.contextmanager
    def lived_in(self) -> Iterator[Self]:
        """Let this process live in the realm."""
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.environ.items():
                patch.setenv(name, value)
            yield self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _reserved_port() -> socket.socket:
    """As that of tests/farm/farms.py, which imports us: the system gives the port to nobody; a KDC may listen there."""
    reserved = socket.socket()
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reserved.bind(("127.0.0.1", 0))
    return reserved


_KRB5_CONF: Final = """\
[libdefaults]
    default_realm = {realm}
    dns_lookup_kdc = false
    dns_lookup_realm = false
    dns_canonicalize_hostname = false
    rdns = false
    udp_preference_limit = 1
    clockskew = {skew}
    kdc_timesync = 1
[realms]
    {realm} = {{
        kdc = 127.0.0.1:{port}
    }}
[domain_realm]
    localhost = {realm}
"""
_KDC_CONF: Final = """\
[kdcdefaults]
    kdc_listen = 127.0.0.1:{port}
    kdc_tcp_listen = 127.0.0.1:{port}
[realms]
    {realm} = {{
        database_name = {folder}/principal
        key_stash_file = {folder}/stash
        acl_file = {folder}/acl
        max_life = 1d
        max_renewable_life = 7d
    }}
[logging]
    kdc = FILE:{folder}/kdc.log
    admin_server = FILE:{folder}/kadmin.log
"""
