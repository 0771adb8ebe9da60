"""From a kernel's arguments to its servers: those that it dials, and the door for those that dial in."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeAlias, cast

from secfarm.errors import AuthError, ConfigError, KernelCreationError, KeyFileError
from secfarm.farm.hub import Hub
from secfarm.wire.address import Address, parse_address

if TYPE_CHECKING:
    from secfarm.disk.credentials import ClientCredentials
    from secfarm.farm.dispatch import Dispatch

Given: TypeAlias = str | tuple[str, int] | Iterable[str | tuple[str, int]]


def parse_addresses(given: Given, *, listening: bool = False) -> tuple[Address, ...]:
    """Return the addresses that a user wrote: one, or several.

    Raises:
        ValueError: one is malformed.
    """
    if isinstance(given, str):
        return (parse_address(given, listening=listening),)
    listed = list(given)
    if len(listed) == 2 and isinstance(listed[0], str) and isinstance(listed[1], int):  # noqa: PLR2004 - (host, port)
        return (parse_address((listed[0], listed[1]), listening=listening),)
    return tuple(parse_address(cast("str | tuple[str, int]", one), listening=listening) for one in listed)


def check_limit(name: str, limit_s: float | None) -> float | None:
    """Return a limit in seconds, None for none, that a user wrote.

    Raises:
        ValueError: it is none.
    """
    if limit_s is not None and not limit_s >= 0:
        raise ValueError(f"{name} is a number of seconds, 0 or more, or None, not {limit_s!r}; nothing was dialled")
    return limit_s


async def connect(
    dispatch: Dispatch,
    addresses: tuple[Address, ...],
    listening: tuple[Address, ...],
    own: ClientCredentials,
    name: str,
    timeout_s: float | None,
) -> Hub | None:
    """Listen, dial every address, and wait until each has answered; return the hub, if there is one.

    Raises:
        KernelCreationError: see `Kernel`.
    """
    hub = Hub(dispatch, own.auth, own.signer) if listening else None
    try:
        if hub is not None:
            hub.open(listening)
            dispatch.listens = True
            if not addresses and timeout_s is not None:
                await hub.first(timeout_s)
        await dispatch.open(addresses, own.auth, own.signer, name)
        await _joined(dispatch, timeout_s)
    except BaseException:
        if hub is not None:
            hub.close()
        raise
    return hub


async def _joined(dispatch: Dispatch, timeout_s: float | None) -> None:
    """Wait for the servers that are dialled."""
    try:
        async with asyncio.timeout(timeout_s):
            await asyncio.gather(*[link.joined for link in dispatch.links])
    except TimeoutError as error:
        missing = [link for link in dispatch.links if link.welcome is None]
        reasons = "; ".join(f"{link.address}: {link.last_error or 'no answer'}" for link in missing)
        raise KernelCreationError(f"not every server answered within {timeout_s:g} s: {reasons}") from error
    except (AuthError, ConfigError, KeyFileError) as error:
        refused = next(link for link in dispatch.links if link.last_error is error)
        raise KernelCreationError(f"no session with {refused.address}: {error}") from error
