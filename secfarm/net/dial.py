"""Dialling: open a socket to an address, put TLS on it, wait until the session is ready; and when to try again."""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
from typing import TYPE_CHECKING, Final, TypeVar

from secfarm.auth.tls import TlsAuthClient
from secfarm.errors import AuthError, ProtocolError
from secfarm.limits import HANDSHAKE_TIMEOUT_S
from secfarm.net.certificates import dialling
from secfarm.net.ssh import SshLine
from secfarm.wire.address import SshAddress, UnixAddress

if TYPE_CHECKING:
    from collections.abc import Callable

    from secfarm.auth.base import Auth
    from secfarm.net.stream import Stream
    from secfarm.wire.address import Address

_FIRST_PAUSE_S: Final = 0.05
_STEADY_S: Final = 1.0  # a peer that let us in and closed sooner may do so for ever
_BRIEF_GROWTH: Final = 1.25  # of the pauses then: a line that breaks a dozen times is hardly slower for it

_SSH_TIMEOUT_S: Final = 30.0  # ssh has a handshake of its own, and then a server is to start


class BackOff:
    """The pauses of one who dials for ever: each twice the one before, up to a bound.

    They are jittered, so that those who lost the same peer do not all come back in the same moment.
    """

    def __init__(self, longest_s: float) -> None:
        self._longest_s = longest_s
        self._pause_s = _FIRST_PAUSE_S

    def ended(self, lasted_s: float, *, was_of_use: bool = False) -> None:
        """A session has ended: where it lasted, or was of use, pauses begin anew, else they grow more slowly."""
        if was_of_use or lasted_s >= _STEADY_S:
            self._pause_s = _FIRST_PAUSE_S
        else:
            self._pause_s = max(_FIRST_PAUSE_S, self._pause_s * _BRIEF_GROWTH / 2)

    async def pause(self) -> None:
        """Wait until the next attempt is due."""
        await asyncio.sleep(self._pause_s * random.uniform(0.5, 1.0))  # noqa: S311 - spreads peers, hides nothing
        self._pause_s = min(2 * self._pause_s, self._longest_s)


S = TypeVar("S", bound="Stream")


async def dial(address: Address, make: Callable[[], S], auth: Auth | None = None) -> S:
    """Return a connection to `address` whose session is ready.

    Args:
        address: of the peer.
        make: returns the protocol object.
        auth: a client's, where the channel has to know: with certificates of the site TLS verifies both ends.

    Raises:
        OSError: nobody answers there, or not within the time for a handshake.
        AuthError: one side did not believe the other.
        ProtocolError: the other side speaks something else.
        ConfigError: ssh cannot be started.
    """
    if not isinstance(address, SshAddress):
        return await _dial(address, make, auth, None, 2 * HANDSHAKE_TIMEOUT_S)
    line = SshLine(address)
    try:
        connection = await _dial(address, make, auth, line.socket, _SSH_TIMEOUT_S)
    except (OSError, ProtocolError) as error:
        raise await line.failure(error) from error
    except BaseException:
        line.end()
        raise
    connection.closed.add_done_callback(lambda _: line.end())
    return connection


async def _dial(
    address: Address, make: Callable[[], S], auth: Auth | None, line: socket.socket | None, limit_s: float
) -> S:
    loop = asyncio.get_running_loop()
    context, server_name = dialling(auth, address)
    connection = make()
    try:
        async with asyncio.timeout(limit_s):
            if isinstance(address, SshAddress):
                await loop.create_unix_connection(
                    lambda: connection,
                    sock=line,
                    ssl=context,
                    server_hostname=server_name,
                    ssl_handshake_timeout=limit_s,
                )
            elif isinstance(address, UnixAddress):
                await loop.create_unix_connection(
                    lambda: connection,
                    address.path,
                    ssl=context,
                    server_hostname=server_name,
                    ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S,
                )
            else:
                transport, _ = await loop.create_connection(
                    lambda: connection,
                    address.host,
                    address.port,
                    ssl=context,
                    server_hostname=server_name,
                    ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S,
                )
                transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await asyncio.shield(connection.ready)
    except TimeoutError as error:
        connection.abort()
        raise TimeoutError(f"{address} did not complete the handshake within {limit_s:g} s") from error
    except ssl.SSLError as error:
        connection.abort()
        raise _not_believed(address, error) from error
    except ValueError as error:
        connection.abort()
        raise ProtocolError(f"{address}: {error}") from error
    except (ConnectionError, ProtocolError) as error:
        connection.close()
        # TLS 1.3 lets us speak before the server has judged our certificate; one that it refuses ends the stream.
        if isinstance(auth, TlsAuthClient) and connection.unheard:
            raise AuthError(
                f"{address} closed the connection once it had our certificate: most likely it does not accept it "
                "(another authority, expired, not for clients); its log says why"
            ) from error
        raise
    except BaseException:
        connection.close()
        raise
    return connection


def _not_believed(address: Address, error: ssl.SSLError) -> Exception:
    """Return the error for a TLS handshake that failed: a certificate that was not believed, or no TLS at all."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return AuthError(
            f"the certificate of {address} was not believed ({error.verify_message}); nothing was sent to it"
        )
    if "CERTIFICATE" in (error.reason or "") or "UNKNOWN_CA" in (error.reason or ""):
        return AuthError(f"{address} did not accept our certificate ({error.reason}); its log says why")
    return error
