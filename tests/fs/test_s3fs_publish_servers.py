"""Publishing on real servers, with the features that the probe found of each, and with answers lost on the way."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from badserver import clean_environment, store_on
from faultproxy import Fault, FaultProxy
from s3server import S3Server

from pyfusekit.fs.s3fs.options import Source
from pyfusekit.fs.s3fs.remote import probe
from pyfusekit.fs.s3fs.remote.aio import AioStore
from pyfusekit.fs.s3fs.remote.errors import StoreError
from pyfusekit.fs.s3fs.remote.store import Attributes, Object
from pyfusekit.fs.s3fs.writing.publish import Publisher
from pyfusekit.fs.s3fs.writing.scratch import Scratch

MIB = 1 << 20
MODE = Attributes({"mode": "420"}, {"content-type": "text/plain"})
_NUMBERS = iter(range(10_000))


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    clean_environment(monkeypatch, tmp_path)


@pytest.fixture(scope="module")
def moto() -> Iterator[S3Server]:
    with S3Server() as server:
        yield server


@pytest.fixture(params=["moto", "seaweed"])
def proxy(request: pytest.FixtureRequest) -> Iterator[FaultProxy]:
    """A way to a server on which answers get lost."""
    server = request.getfixturevalue(request.param)
    with FaultProxy(server.url) as proxy:
        proxy.bucket = f"publish-{next(_NUMBERS)}"  # type: ignore[attr-defined]
        client = server.client()
        client.create_bucket(Bucket=proxy.bucket)  # type: ignore[attr-defined]
        yield proxy
        for found in client.list_objects_v2(Bucket=proxy.bucket).get("Contents", ()):  # type: ignore[attr-defined]
            client.delete_object(Bucket=proxy.bucket, Key=found["Key"])  # type: ignore[attr-defined]


@pytest.fixture
async def store(proxy: Any) -> AsyncIterator[AioStore]:
    async with store_on(proxy, proxy.bucket, part_size=5 * MIB) as store:
        await probe.features(store, Source(proxy.bucket, ""))
        yield store
        assert await store.uploads("") == [], "an upload was left"


@pytest.fixture
def scratch(tmp_path: Path) -> Scratch:
    return Scratch(str(tmp_path / "staging"))


@pytest.fixture
async def publisher(store: AioStore, scratch: Scratch) -> AsyncIterator[Publisher]:
    made = Publisher(store, store.options, scratch)
    yield made
    await made.close()


def block(number: int, size: int) -> bytes:
    return bytes((number * 31 + index) % 251 for index in range(251)) * (size // 251) + bytes([number]) * (size % 251)


def contents(path: str) -> bytes:
    return Path(path).read_bytes()


async def data(store: AioStore, item: Object) -> bytes:
    pieces: list[bytes] = []
    if item.size:
        await store.get(item, 0, item.size, pieces.append)
    return b"".join(pieces)


async def test_a_file_is_made_changed_appended_to_and_cut_off(store: AioStore, scratch: Scratch, publisher: Publisher) -> None:
    staged = scratch.stage(None)
    model = bytearray()
    for number in range(13):
        model += block(number, MIB)
        room = publisher.room(staged, number * MIB, (number + 1) * MIB)
        if room is not None:
            await room
        staged.write(number * MIB, block(number, MIB))
        publisher.feed(staged, "key", lambda: MODE)
        await asyncio.sleep(0)

    async def publish() -> None:
        item = await publisher.publish(staged, "key", MODE)
        head = await store.head("key")
        assert (head.item.etag, head.item.size, head.metadata["mode"]) == (item.etag, len(model), "420")
        assert head.headers["content-type"] == "text/plain"
        assert await data(store, item) == model
        await publisher.discard(staged)

    await publish()
    for change in ("middle", "end", "append", "shorter", "longer", "short", "empty", "small"):
        staged = scratch.stage((await store.head("key")).item)
        if change in ("middle", "end"):
            offset = {"middle": 6 * MIB + 3, "end": len(model) - 4}[change]
            staged.write(offset, b"!" * 4)
            model[offset : offset + 4] = b"!" * 4
        elif change in ("append", "small"):
            staged.write(len(model), b"tail")
            model += b"tail"
        else:
            size = {"shorter": 10 * MIB, "longer": 12 * MIB + 1, "short": 3, "empty": 0}[change]
            staged.truncate(size)
            del model[size:]
            model.extend(bytes(size - len(model)))
        await publish()


async def test_attributes_are_changed_in_place(store: AioStore, scratch: Scratch, publisher: Publisher) -> None:
    staged = scratch.stage(None)
    staged.write(0, b"hello")
    await publisher.publish(staged, "key", MODE)
    staged.touch()
    item = await publisher.publish(staged, "key", Attributes({"mode": "511"}, MODE.headers))
    assert (await store.head("key")).metadata["mode"] == "511"
    assert await data(store, item) == b"hello"


@pytest.mark.parametrize("size", [5, 3 * MIB, 11 * MIB])
async def test_an_answer_lost_by_a_real_server_is_no_conflict(
    proxy: Any, store: AioStore, scratch: Scratch, publisher: Publisher, size: int
) -> None:
    for base in (None, "there"):
        staged = scratch.stage(None if base is None else (await store.head("key")).item, truncated=base is not None)
        content = block(1 if base is None else 2, size)
        staged.write(0, content)
        lost = (
            Fault(method="PUT", path="/key$", lose=True)
            if size < 8 * MIB
            else Fault(query="^uploadId", method="POST", lose=True)
        )
        proxy.add(lost)
        item = await publisher.publish(staged, "key", MODE)
        assert lost.met == 1
        assert await data(store, item) == content
        await publisher.discard(staged)


@pytest.mark.parametrize("size", [5, 11 * MIB])
async def test_two_writers_of_one_file_do_not_overwrite_each_other(
    store: AioStore, scratch: Scratch, publisher: Publisher, size: int
) -> None:
    for base in (None, "there"):
        item = None if base is None else (await store.head("key")).item
        one, other = scratch.stage(item, truncated=item is not None), scratch.stage(item, truncated=item is not None)
        ours, theirs = (block(number if item is None else number + 2, size) for number in (1, 2))
        one.write(0, ours)
        other.write(0, theirs)
        won = await publisher.publish(one, "key", MODE)
        with pytest.raises(StoreError, match="changed by somebody else") as caught:
            await publisher.publish(other, "key", MODE)
        assert caught.value.errno == errno.ESTALE
        assert contents(other.kept) == theirs
        assert await data(store, won) == ours
        await publisher.discard(one)
        await publisher.discard(other)
