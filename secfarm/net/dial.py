"""Dialling: open a socket to an address, put TLS on it, wait until the session is ready."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

from secfarm.errors import ProtocolError
from secfarm.limits import HANDSHAKE_TIMEOUT_S
from secfarm.net.tls import initiator_context
from secfarm.wire.address import UnixAddress

if TYPE_CHECKING:
    from collections.abc import Callable

    from secfarm.net.pump import Connection
    from secfarm.wire.address import Address


async def dial(address: Address, make: Callable[[], Connection]) -> Connection:
    """Return a connection to `address` whose session is ready.

    Raises:
        OSError: nobody answers there, or not within the time for a handshake.
        AuthError: one side did not believe the other.
        ProtocolError: the other side speaks something else.
    """
    loop = asyncio.get_running_loop()
    context = initiator_context()
    connection = make()
    try:
        async with asyncio.timeout(2 * HANDSHAKE_TIMEOUT_S):
            if isinstance(address, UnixAddress):
                await loop.create_unix_connection(
                    lambda: connection,
                    address.path,
                    ssl=context,
                    server_hostname="",
                    ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S,
                )
            else:
                transport, _ = await loop.create_connection(
                    lambda: connection,
                    address.host,
                    address.port,
                    ssl=context,
                    server_hostname="",
                    ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S,
                )
                transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await asyncio.shield(connection.ready)
    except TimeoutError as error:
        connection.abort()
        raise TimeoutError(f"{address} did not complete the handshake within {2 * HANDSHAKE_TIMEOUT_S:g} s") from error
    except ValueError as error:
        connection.abort()
        raise ProtocolError(f"{address}: {error}") from error
    except BaseException:
        connection.close()
        raise
    return connection
