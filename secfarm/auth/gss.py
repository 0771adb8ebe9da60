"""The mechanism `gss`: both ends are proven by Kerberos, through the system's GSSAPI library.

Kerberos 5 only. What the library granted is checked, not assumed; the channel goes into the library's own bindings
*and* into a MIC over all that was said, each way, for bindings that only one end sets are not refused everywhere. The
library reads caches and keytabs and asks KDCs, so this mechanism's steps may wait. It needs the package `gssapi`.
Law: docs/PROTOCOL.md, section 3.3.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeAlias

from secfarm.auth.base import Auth, Mechanism, Side
from secfarm.auth.gss_context import NAME, GssClient, GssServer, Keytab
from secfarm.auth.gss_errors import KerberosError
from secfarm.errors import ConfigError

if TYPE_CHECKING:
    import os
    from typing import Self

    import gssapi

    StrPath: TypeAlias = "str | os.PathLike[str]"

DEFAULT_SERVICE: Final = "secfarm"
_MISSING: Final = (
    "Kerberos needs the package gssapi, which is not installed; nothing was sent. Install secfarm[gssapi] (it is "
    "compiled: apt-get install libkrb5-dev gcc), or use a key"
)
_NO_STORES: Final = (
    "the package gssapi was compiled against a Kerberos library that cannot be told which cache or keytab to use (such "
    "as Heimdal 7): nothing was sent or started. Servers need MIT's library; a client may name its cache by KRB5CCNAME "
    "instead"
)


def _gss() -> Any:  # noqa: ANN401 - the package may be absent, and then has no types
    """Return the package, loaded now.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import gssapi
    except ImportError as error:
        raise ConfigError(f"{_MISSING} ({error})") from error
    return gssapi


class _GssAuth(Auth):
    mechanism: ClassVar[str] = NAME

    @property
    def _names_files(self) -> bool:
        """Whether the library has to be told a cache or a keytab."""
        return True

    def check_library(self) -> None:
        """Return if the package gssapi is there and can do what this needs.

        Raises:
            ConfigError: it is not installed, or was compiled against a library that cannot be told a cache or a keytab.
        """
        if not hasattr(_gss().raw, "acquire_cred_from") and self._names_files:
            raise ConfigError(_NO_STORES)


class GssAuthClient(_GssAuth):
    """A client's side: proves the principal of a ticket.

    Attributes:
        service_name: first part of the server's principal, `service_name/host@REALM`.
        ccache: credential cache; None: the usual one (`KRB5CCNAME`).
        client_keytab: keytab with which tickets are fetched and renewed, for services; its first principal is proven.
        target: the server's host, if it is not the one that is dialled (tunnels, unix sockets), or, with a slash, its
            whole principal.
        servers: names of the servers that may dial in to a hub; one that calls itself `name` has to prove that it is
            `service_name/name`.
        is_hub: whether this is for servers that dial in; see `at_hub`.
    """

    is_hub = False

    def __init__(
        self,
        service_name: str = DEFAULT_SERVICE,
        ccache: StrPath | None = None,
        client_keytab: StrPath | None = None,
        target: str | None = None,
        *,
        servers: Iterable[str] = (),
    ) -> None:
        """Take what is described above; nothing is read yet.

        Raises:
            ConfigError: both `ccache` and `client_keytab` are given: a keytab's tickets are kept in memory; or
                `servers` are no names of hosts.
        """
        if ccache is not None and client_keytab is not None:
            raise ConfigError("GssAuthClient takes a ccache or a client_keytab, not both; nothing was sent")
        self.service_name = service_name
        self.ccache = ccache
        self.client_keytab = client_keytab
        self.target = target
        if isinstance(servers, str):
            raise ConfigError("servers is a list of names, not one text")
        self.servers = frozenset(servers)
        for name in self.servers:
            if not name or not name.isprintable() or set(name) & set(" /@"):
                raise ConfigError(f"servers: {name!a} is no name of a host; nothing was sent")

    def __repr__(self) -> str:
        """Names and paths; there is no secret in it."""
        return f"GssAuthClient({self.service_name!r}, {self.ccache!r}, {self.client_keytab!r}, {self.target!r})"

    @property
    def _names_files(self) -> bool:
        return self.ccache is not None or self.client_keytab is not None

    def at_hub(self) -> Self:
        """Return the auth for servers that dial in; see `Auth.at_hub`."""
        if not self.servers and self.target is None:
            raise ConfigError(
                "a hub has to be told which servers may dial in, for any service of the realm could: give "
                "GssAuthClient(servers=[...]) their names, or target=; it was not opened"
            )
        other = copy.copy(self)
        other.is_hub = True
        return other

    def begin(self, *, side: Side, binding: bytes, address: str, now_s: float) -> Mechanism:
        """Return the mechanism for one session; see `Auth.begin`."""
        if side is not Side.CLIENT:
            raise ConfigError("GssAuthClient is for clients; give the server a GssAuthServer")
        return GssClient(_gss(), self, self._target(address), binding, now_s)

    def _target(self, address: str) -> str:
        """Return `service@host`, or a whole principal, with a slash."""
        if self.is_hub and self.target is None:
            if address not in self.servers:
                raise KerberosError(
                    f"kerberos: a server that calls itself {address!a} dialled in, and is none of servers "
                    f"({', '.join(sorted(self.servers))}); nothing was sent to it"
                )
            return f"{self.service_name}@{address}"
        host = self.target or ("" if address.startswith("unix:") else address.rpartition(":")[0].strip("[]") or address)
        if not host:
            raise ConfigError(
                f"{address} has no host name that could be in a Kerberos principal; nothing was sent. Give "
                "GssAuthClient(target=...) the server's"
            )
        return host if "/" in host else f"{self.service_name}@{host}"


class GssAuthServer(_GssAuth):
    """A server's side: accepts principals of Kerberos. Subclass it and override `name_accepted` for rules of your own.

    Attributes:
        keytab: path of the keytab; None: `KRB5_KTNAME`, or systemd's credential `keytab`.
        service_name: first part of our principal; any host of that service in the keytab will do.
        allowed_users: full principals, with realm, that the default hook accepts.
        source: the keytab as loaded; set by `secfarm.disk.credentials`.
        replay_cache: path of our own; None: the library's. Set likewise.
    """

    source: Keytab | None = None
    replay_cache: str | None = None

    def __init__(
        self, keytab: StrPath | None = None, service_name: str = DEFAULT_SERVICE, allowed_users: Iterable[str] = ()
    ) -> None:
        """Take what is described above; nothing is read yet.

        Raises:
            ConfigError: a user has no realm, or the users are one text.
        """
        if isinstance(allowed_users, str):
            raise ConfigError("allowed_users is a list of principals, not one text")
        self.keytab = keytab
        self.service_name = service_name
        self.allowed_users = frozenset(allowed_users)
        for user in self.allowed_users:
            if not all(user.rpartition("@")):
                raise ConfigError(f"allowed_users: {user!r} has no realm; write user@REALM. Nothing was started")

    def __repr__(self) -> str:
        """Names and paths; there is no secret in it."""
        return f"{type(self).__name__}({self.keytab!r}, {self.service_name!r}, {sorted(self.allowed_users)!r})"

    def name_accepted(self, name: gssapi.Name) -> bool:
        """Return True if this client may have a session; whatever else is returned or raised refuses it.

        Called once a session, when the context is complete, its flags are checked and its binding is proven; in the
        server's process, in a thread of its own, so it may wait (within the handshake's five seconds) and several may
        run at once. Idea: lfarm-gss.

        Args:
            name: `str(name)` is the full principal, with realm. Names do not compare equal and are not hashable.
        """
        return str(name) in self.allowed_users

    def begin(self, *, side: Side, binding: bytes, address: str, now_s: float) -> Mechanism:  # noqa: ARG002 - contract
        """Return the mechanism for one session; see `Auth.begin`."""
        if side is not Side.SERVER:
            raise ConfigError("GssAuthServer is for servers; give the client a GssAuthClient")
        if self.source is None:
            raise ConfigError("GssAuthServer names a keytab that was not loaded; nothing was started")
        return GssServer(_gss(), self, self.source, binding, now_s)
