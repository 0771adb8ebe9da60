"""Realms whose KDC is not MIT's: Heimdal's and that of Samba's domain controller, unpacked by `.ci/interop`.

Their programs run in the foreground, on loopback, with files of their own; nothing of them is installed.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import ClassVar, Final

import pytest

from tests.auth.realm import SERVICE, Realm, need_kerberos

# Set by `make test-interop`, which fetches them: there the lack of one is a failure.
UNPACKED: Final = os.environ.get("KERBEROS_INTEROP", "")
CLIENT: Final = "ada"
OTHER_CLIENT: Final = "bob"


def need_others() -> None:
    """Skip what needs the other implementations where they were not fetched."""
    if not UNPACKED:
        pytest.skip("Heimdal and Samba have to be fetched; run: make test-interop")
    need_kerberos()


def heimdal_libraries() -> str:
    """The directory of Heimdal's libraries."""
    return str(next(Path(UNPACKED).glob("usr/lib/*/libgssapi.so.3")).parent)


class HeimdalRealm(Realm):
    """A realm of Heimdal's KDC, with the users ada and bob."""

    def __init__(self) -> None:
        super().__init__(name="HEIMDAL.TEST")

    def _create(self) -> None:
        self.write("heimdal.conf", _HEIMDAL_CONF.format(realm=self.name, folder=self.folder))
        self.admin("init --realm-max-ticket-life=1d --realm-max-renewable-life=7d " + self.name)
        self.admin(f"add --use-defaults -r {SERVICE}")
        self.admin(*(f"add --use-defaults -p {user} {user}" for user in (CLIENT, OTHER_CLIENT)))

    def _command(self) -> list[str]:
        return [
            *self._heimdal("lib/heimdal-servers/kdc"),
            "--addresses=127.0.0.1",
            f"--ports={self.port}",
        ]

    def admin(self, *orders: str) -> None:
        for order in orders:
            self.tool(*self._heimdal("bin/kadmin.heimdal"), "-l", *shlex.split(order))

    def keytab(self, name: str, *principals: str) -> Path:
        path = self.folder / name
        self.admin(*(f"ext_keytab -k {path} {principal}" for principal in principals))
        return path

    def _heimdal(self, program: str) -> list[str]:
        libraries = f"LD_LIBRARY_PATH={heimdal_libraries()}"
        return ["env", libraries, f"{UNPACKED}/usr/{program}", "-c", f"{self.folder}/heimdal.conf"]


class SambaRealm(Realm):
    """A domain of Samba's, of whose controller only the KDC runs. Needs root: the programs are laid over /usr."""

    wait_s: ClassVar[float] = 120.0  # making a domain takes ten seconds of work

    def __init__(self) -> None:
        if os.geteuid() != 0:
            pytest.fail("Samba's domain controller is tested by root only; run: sudo make test-interop")
        super().__init__(name="SAMBA.TEST")

    def _create(self) -> None:
        provision = "domain provision --domain=SAMBA --server-role=dc --dns-backend=NONE --host-name=dc"
        self.tool(
            *self._samba("samba-tool", *provision.split()),
            f"--targetdir={self.folder}",
            f"--realm={self.name}",
            "--host-ip=127.0.0.1",
            "--adminpass=Only-of-a-test-1",
        )
        self.write("etc/smb.conf", _SMB_CONF.format(realm=self.name, folder=self.folder, port=self.port))
        self.admin("domain passwordsettings set --complexity=off --min-pwd-length=0")
        self.admin(*(f"user create {user} {user}" for user in (CLIENT, OTHER_CLIENT, "svc-secfarm")))
        # An account has keys of RC4 only until it is said that its service knows AES.
        self.tool(*self._samba("/usr/bin/python3", "-c", _ALLOW_AES, f"{self.folder}/etc/smb.conf"))
        self.admin(f"spn add {SERVICE} svc-secfarm")

    def _command(self) -> list[str]:
        conf = f"{self.folder}/etc/smb.conf"
        return self._samba("samba", "--foreground", "--no-process-group", "--model=single", f"--configfile={conf}")

    def admin(self, *orders: str) -> None:
        for order in orders:
            self.tool(*self._samba("samba-tool", *order.split()), f"--configfile={self.folder}/etc/smb.conf")

    def keytab(self, name: str, *principals: str) -> Path:
        path = self.folder / name
        self.admin(*(f"domain exportkeytab {path} --principal={principal}" for principal in principals))
        path.chmod(0o600)
        return path

    @staticmethod
    def _samba(*command: str) -> list[str]:
        """Run it where the unpacked /usr lies over the machine's: Samba finds its modules by fixed paths only."""
        lay = 'mount -t overlay overlay -o "ro,lowerdir=$0/usr:/usr" /usr && exec "$@"'
        return ["unshare", "--mount", "sh", "-c", lay, UNPACKED, *command]


def site(realm: Realm, folder: Path, policy: str) -> Path:
    """Write the files of a server of this realm, which accepts ada; return its configuration."""
    config = folder / "config.toml"
    (folder / "policy.toml").write_text(policy)
    config.write_text(
        'listen = ["127.0.0.1:0"]\npolicy = "policy.toml"\nstate = "state"\nworkers = 1\n[kerberos]\n'
        f'keytab = "{realm.folder}/secfarm.keytab"\nallowed_users = ["{CLIENT}@{realm.name}"]\n'
    )
    for path in (config, folder / "policy.toml"):
        path.chmod(0o600)
    return config


_HEIMDAL_CONF: Final = """\
[libdefaults]
    default_realm = {realm}
[kdc]
    database = {{
        dbname = {folder}/heimdal
        realm = {realm}
        mkey_file = {folder}/master
        acl_file = {folder}/acl
        log_file = {folder}/heimdal.log
    }}
[logging]
    default = FILE:{folder}/log
"""
_SMB_CONF: Final = """\
[global]
    netbios name = DC
    workgroup = SAMBA
    realm = {realm}
    server role = active directory domain controller
    server services = kdc
    interfaces = lo
    bind interfaces only = yes
    krb5 port = {port}
    kpasswd port = 0
    private dir = {folder}/private
    state directory = {folder}/state
    cache directory = {folder}/cache
    lock directory = {folder}
    pid directory = {folder}
    ncalrpc dir = {folder}/ncalrpc
    log file = {folder}/log
"""
_ALLOW_AES: Final = """\
import sys
from samba.auth import system_session
from samba.param import LoadParm
from samba.samdb import SamDB
lp = LoadParm(filename_for_non_global_lp=sys.argv[1])
db = SamDB(lp=lp, session_info=system_session())
db.modify_ldif(f'''\
dn: CN=svc-secfarm,CN=Users,{db.domain_dn()}
changetype: modify
replace: msDS-SupportedEncryptionTypes
msDS-SupportedEncryptionTypes: 24
''')
"""
