"""The pump and dialling over real sockets: what overtakes what, what is held back, how connections end."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from secfarm.auth.base import End, Side
from secfarm.auth.shared_secret import SharedSecretAuth
from secfarm.errors import AuthError, KernelError, ProtocolError, SecfarmError
from secfarm.limits import CHUNK_BYTES
from secfarm.net.dial import dial
from secfarm.net.listen import Door, local_address, open_socket
from secfarm.net.pump import Connection
from secfarm.net.tls import acceptor_context
from secfarm.sign.keys import SharedSecret
from secfarm.wire.address import Address, UnixAddress, parse_address
from secfarm.wire.blobs import blob_of
from secfarm.wire.messages import Chunk, Goodbye, Message, Ping, Pong, Welcome
from secfarm.wire.session import Established, Session

SECRET = SharedSecret("ada", bytes(range(32)))
DEADLINE_S = 60.0


@dataclass(eq=False)
class Ear:
    """A listener that keeps what it hears."""

    connection: Connection
    heard: list[Message | Established] = field(default_factory=list)
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    writable: asyncio.Event = field(default_factory=asyncio.Event)
    error: Exception | None = None
    trouble: Exception | None = None

    def on_message(self, message: Message | Established) -> None:
        self.heard.append(message)
        self.changed.set()
        if isinstance(message, Established):
            self.connection.send(Welcome("node", "3.11", 1, 1))
        if isinstance(message, Goodbye):
            self.connection.close()
        if isinstance(message, Ping) and self.trouble is not None:
            raise self.trouble

    def on_writable(self) -> None:
        self.writable.set()

    def on_closed(self, error: Exception | None) -> None:
        self.error = error
        self.closed.set()
        self.changed.set()

    async def hears(self, condition: Callable[[list[Message | Established]], bool]) -> None:
        while not condition(self.heard):
            self.changed.clear()
            await self.changed.wait()


class House:
    """A door on a unix socket, and what came through it."""

    def __init__(self, address: Address) -> None:
        context, self.certificate = acceptor_context()
        self.ears: list[Ear] = []
        self.turned_away: list[Exception] = []
        self.door = Door(context, self.accept, lambda _, error: self.turned_away.append(error))
        sock = open_socket(address)
        self.address = local_address(sock)
        self.door.open(sock)

    def accept(self) -> Connection:
        return Connection(self.session, self.own)

    def own(self, connection: Connection) -> Ear:
        self.ears.append(Ear(connection))
        return self.ears[-1]

    def session(self, _: bytes) -> Session:
        return session(Side.SERVER, SECRET, self.certificate)


def session(side: Side, secret: SharedSecret, certificate: bytes, address: str = "") -> Session:
    return Session(
        end=End.ACCEPTOR if side is Side.SERVER else End.INITIATOR,
        side=side,
        auths={"shared-secret": SharedSecretAuth(secret)},
        nonce=os.urandom(32),
        certificate=certificate,
        address=address,
        name="",
        python_version="",
        clock=lambda: 1.8e9,
    )


async def dialled(house: House, secret: SharedSecret = SECRET) -> Ear:
    ears: list[Ear] = []

    def own(connection: Connection) -> Ear:
        ears.append(Ear(connection))
        return ears[-1]

    def make() -> Connection:
        return Connection(lambda certificate: session(Side.CLIENT, secret, certificate, str(house.address)), own)

    await dial(house.address, make)
    return ears[0]


def with_house(test: Callable[[House], Awaitable[None]], address: str) -> None:
    async def main() -> None:
        broken: list[dict[str, object]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: broken.append(context))
        house = House(parse_address(address, listening=True))
        try:
            async with asyncio.timeout(DEADLINE_S):
                await test(house)
        finally:
            house.door.close()
            for ear in house.ears:
                ear.connection.abort()
                if ear.connection._transport is not None:
                    await ear.connection.closed
        assert broken == []

    asyncio.run(main())


@pytest.fixture(params=["tcp", "unix"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return "127.0.0.1:0" if request.param == "tcp" else f"unix:{tmp_path}/sock"


def test_what_is_said_arrives_in_its_order(address: str) -> None:
    async def test(house: House) -> None:
        near = await dialled(house)
        for number in range(1000):
            near.connection.send(Ping(number))
        [far] = house.ears
        await far.hears(lambda heard: len(heard) == 1001)
        assert far.heard[1:] == [Ping(number) for number in range(1000)]
        near.connection.close()
        await far.closed.wait()
        assert far.error is None

    with_house(test, address)


def test_small_messages_overtake_large_values(address: str) -> None:
    """A hundred chunks are on their way when the small message is said: few of them arrive before it."""

    async def test(house: House) -> None:
        near = await dialled(house)
        [far] = house.ears
        value = bytes(100 * CHUNK_BYTES)
        near.connection.send_value(blob_of(value), value)
        await far.hears(lambda heard: any(isinstance(one, Chunk) for one in heard))
        near.connection.send(Ping(1))
        await far.hears(lambda heard: Ping(1) in heard)
        before = sum(isinstance(one, Chunk) for one in far.heard)
        assert before < 60
        await far.hears(lambda heard: sum(isinstance(one, Chunk) for one in heard) == 100)
        near.connection.close()

    with_house(test, address)


def test_a_large_value_waits_outside_the_buffers_while_the_peer_does_not_read(address: str) -> None:
    async def test(house: House) -> None:
        near = await dialled(house)
        [far] = house.ears
        far.connection._transport.pause_reading()
        value = bytes(400 * CHUNK_BYTES)
        near.connection.send_value(blob_of(value), value)
        while near.connection.writable:  # noqa: ASYNC110 - it is no event of the pump
            await asyncio.sleep(0)
        assert near.connection._transport.get_write_buffer_size() < 8 * CHUNK_BYTES
        assert not near.writable.is_set()
        far.connection._transport.resume_reading()
        await near.writable.wait()
        await far.hears(lambda heard: sum(isinstance(one, Chunk) for one in heard) == 400)
        near.connection.close()

    with_house(test, address)


@pytest.mark.parametrize("trouble", [ProtocolError("no"), KernelError("full"), ZeroDivisionError("ours")])
def test_an_error_of_the_owner_ends_the_connection_with_a_word_and_no_more(
    trouble: Exception, address: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(house: House) -> None:
        near = await dialled(house)
        [far] = house.ears
        far.trouble = trouble
        near.connection.send(Ping(1))
        near.connection.send(Ping(2))
        await near.closed.wait()
        await far.closed.wait()
        assert far.heard[1:] == [Ping(1)]
        goodbye = near.heard[-1]
        assert isinstance(goodbye, Goodbye)
        assert goodbye.code in {"protocol", "error"}
        assert goodbye.text == ""

    with caplog.at_level(logging.CRITICAL + 1, "secfarm"):
        with_house(test, address)


def test_after_a_failure_nothing_more_is_said_or_heard(address: str) -> None:
    async def test(house: House) -> None:
        near = await dialled(house)
        [far] = house.ears
        far.connection.fail(ProtocolError("enough"))
        far.connection.send(Pong(1))
        far.connection.data_received(b"\x00\x00\x00\x01\xc1")
        await near.closed.wait()
        assert Pong(1) not in near.heard

    with_house(test, address)


def test_a_connection_whose_peer_never_closes_is_over_all_the_same(address: str) -> None:
    """A failed one is not kept for a peer that does not say that it has seen it."""

    async def test(house: House) -> None:
        near = await dialled(house)
        [far] = house.ears
        near.connection._transport.pause_reading()
        far.connection.fail(ProtocolError("enough"))
        async with asyncio.timeout(DEADLINE_S):
            await far.closed.wait()
        near.connection.abort()

    with_house(test, address)


def test_dialling_says_who_did_not_believe_whom(address: str) -> None:
    async def test(house: House) -> None:
        with pytest.raises(AuthError, match="refused us"):
            await dialled(house, SharedSecret("ada", b"w" * 32))
        while not house.turned_away:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0)
        assert isinstance(house.turned_away[0], AuthError)

    with_house(test, address)


def test_dialling_where_nobody_is_or_something_else_speaks_is_an_os_error(tmp_path: Path) -> None:
    async def main() -> None:
        async def speak(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"SSH-2.0-OpenSSH_9.2\r\n")
            await writer.drain()
            writer.close()

        def make() -> Connection:
            return Connection(lambda certificate: session(Side.CLIENT, SECRET, certificate), Ear)

        server = await asyncio.start_unix_server(speak, f"{tmp_path}/ssh")
        async with server, asyncio.timeout(DEADLINE_S):
            with pytest.raises((OSError, SecfarmError)):
                await dial(UnixAddress(f"{tmp_path}/ssh"), make)
            with pytest.raises(OSError, match="No such file"):
                await dial(UnixAddress(f"{tmp_path}/nobody"), make)

    asyncio.run(main())
