"""Large values that are not what was signed: refused with their connection. What was signed arrives."""

from __future__ import annotations

import hashlib
import os

import msgspec
import pytest

from secfarm.limits import CHUNK_BYTES, MAX_VALUE_BYTES
from secfarm.task import codec
from secfarm.task.payload import Blob
from secfarm.wire.blobs import blob_of, chunks
from secfarm.wire.messages import Chunk, Submit
from tests.daemon.site import Client, Serving, Site, client


def announced(ada: Client, value: bytes, blob: Blob | None = None) -> bytes:
    """Submit `len` with a large argument that is still to come."""
    program, call = ada.task("builtins:len", b"")
    ada.submit((program, msgspec.structs.replace(call, arguments=blob or blob_of(value))))
    return call.task_id


def refused(ada: Client) -> None:
    with ada:
        goodbye = ada.goodbye()
        assert goodbye is not None
        assert goodbye.code == "protocol"
        assert ada.outcomes == {}


VALUE = codec.encode_call((bytes(600_000),), {})


def test_what_was_announced_arrives(site: Site, serving: Serving) -> None:
    with client(serving, site) as ada:
        task_id = announced(ada, VALUE)
        for chunk in chunks(blob_of(VALUE), VALUE):
            ada.send(chunk)
        assert codec.decode(ada.outcome(task_id).value) == 600_000


def test_a_value_that_nobody_announced_is_refused(site: Site, serving: Serving) -> None:
    ada = client(serving, site)
    ada.send(next(chunks(blob_of(VALUE), VALUE)))
    refused(ada)


def test_a_value_announced_in_another_session_is_refused(site: Site, serving: Serving) -> None:
    with client(serving, site) as other:
        announced(other, VALUE)
        ada = client(serving, site)
        ada.send(next(chunks(blob_of(VALUE), VALUE)))
        refused(ada)


def test_other_bytes_than_the_signed_ones_are_never_run(site: Site, serving: Serving) -> None:
    """One bit of the last chunk: the digest is in the signed batch."""
    ada = client(serving, site)
    announced(ada, VALUE)
    altered = VALUE[:-1] + bytes([VALUE[-1] ^ 1])
    for chunk in chunks(blob_of(VALUE), altered):
        ada.send(chunk)
    refused(ada)


@pytest.mark.parametrize(
    "chunk",
    [
        Chunk(blob_of(VALUE).digest, 0, memoryview(VALUE)[:1]),
        Chunk(blob_of(VALUE).digest, 0, memoryview(VALUE)[: CHUNK_BYTES - 1]),
        Chunk(blob_of(VALUE).digest, CHUNK_BYTES, memoryview(VALUE)[CHUNK_BYTES : 2 * CHUNK_BYTES]),
        Chunk(blob_of(VALUE).digest, 1, memoryview(VALUE)[:CHUNK_BYTES]),
        Chunk(hashlib.sha256(b"").digest(), 0, memoryview(VALUE)[:CHUNK_BYTES]),
    ],
    ids=["one byte", "one byte short", "the second first", "off by one", "another's"],
)
def test_chunks_that_are_not_the_next_of_the_value_are_refused(site: Site, serving: Serving, chunk: Chunk) -> None:
    ada = client(serving, site)
    announced(ada, VALUE)
    ada.send(chunk)
    refused(ada)


def test_more_bytes_than_announced_are_refused(site: Site, serving: Serving) -> None:
    ada = client(serving, site)
    longer = VALUE + bytes(CHUNK_BYTES)
    announced(ada, VALUE, Blob(blob_of(longer).digest, len(VALUE)))
    for chunk in chunks(blob_of(longer), longer):
        ada.send(chunk)
    refused(ada)


@pytest.mark.parametrize("size_bytes", [0, -1, MAX_VALUE_BYTES + 1, 1 << 62])
def test_sizes_out_of_range_are_refused_before_a_byte_comes(site: Site, serving: Serving, size_bytes: int) -> None:
    ada = client(serving, site)
    announced(ada, VALUE, Blob(b"d" * 32, size_bytes))
    refused(ada)


def test_announcing_more_than_is_allowed_costs_no_memory(site: Site, serving: Serving) -> None:
    ada = client(serving, site)
    for number in range(3):
        announced(ada, VALUE, Blob(bytes([number]) * 32, MAX_VALUE_BYTES))
    refused(ada)


def test_a_value_of_a_refused_call_is_expected_all_the_same(site: Site) -> None:
    """It was sent before the client could know; the calls around it go on."""
    site.policy('[[grant]]\nprincipals = ["ada"]\nmay = ["call"]\nnames = ["builtins.len"]\n')
    with Serving(site) as serving, client(serving, site) as ada:
        program, call = ada.task("os:system", b"")
        bad = msgspec.structs.replace(call, arguments=blob_of(VALUE))
        good_program, good_call = ada.task("builtins:len", b"")
        good = msgspec.structs.replace(good_call, arguments=blob_of(VALUE))
        ada.send(Submit(ada.sealed(ada.batch((program, bad), (good_program, good)))))
        for _ in range(2):
            for chunk in chunks(blob_of(VALUE), VALUE):
                ada.send(chunk)
        assert ada.outcome(bad.task_id).error.code == "refused"
        assert codec.decode(ada.outcome(good.task_id).value) == 600_000


def test_small_calls_overtake_a_large_value_on_its_way(site: Site, serving: Serving) -> None:
    """Between any two chunks, in both directions."""
    large = codec.encode_call((os.urandom(3_000_000),), {})
    with client(serving, site) as ada:
        task_id = announced(ada, large)
        for number, chunk in enumerate(chunks(blob_of(large), large)):
            assert task_id not in ada.outcomes
            ada.send(chunk)
            assert ada.run("builtins:abs", -number) == number
        assert codec.decode(ada.outcome(task_id).value) == 3_000_000
