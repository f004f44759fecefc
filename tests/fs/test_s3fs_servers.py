"""The store in memory beside real ones: the same calls, through AioStore, on SeaweedFS and moto. What differs is listed."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import pytest
from fakestore import FakeStore
from s3server import S3Server
from seaweed import ACCESS, SeaweedServer

from pyfusekit.core import Url
from pyfusekit.fs.s3fs.options import S3Options
from pyfusekit.fs.s3fs.remote.aio import AioStore
from pyfusekit.fs.s3fs.remote.store import (
    ABSENT,
    MIN_PART,
    Attributes,
    Bytes,
    Condition,
    Features,
    Head,
    Object,
    Page,
    Part,
    Store,
)

PLAIN = Attributes()
FULL = Attributes({"mode": "33188", "mtime": "1.5"}, {"content-type": "text/x-test", "cache-control": "no-cache"})
STALE = Condition(match="0" * 32)
KEYS = ("a", "a/b", "a/c", "a-1", "b/x/y", "b/z", "c.txt", "d\u00e9 +&%/f", "\U0001f600")
KINDS = ("content-type", "cache-control")


class Differs(NamedTuple):
    """What a server does otherwise, and why that is so. None: what "complete" answers."""

    outcome: Any
    why: str


def _etag(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


_IN_COPIES = "moto knows conditions of PutObject, GetObject and DeleteObject only"
_MARKERS = "keys that end in a slash are directories of SeaweedFS' own tree, not objects"
_500 = "moto fails inside and answers 500, which is tried again and then EIO"
DIFFERENCES: dict[str, dict[str, Differs]] = {
    "seaweed": {
        "writing: empty's head": Differs(
            (
                ("empty", 0, hashlib.md5(b"").hexdigest()),
                {},
                {"content-type": "application/octet-stream", "cache-control": None},
            ),
            "another default type than Amazon's binary/octet-stream",
        ),
        "markers: its metadata": Differs({}, _MARKERS),
        "markers: copy it": Differs("ENOENT", _MARKERS),
        "markers: head of the copy": Differs("ENOENT", _MARKERS),
        "markers: head of what is no marker": Differs(
            (
                ("g/", 0, hashlib.md5(b"").hexdigest() + "-0"),
                {},
                {"content-type": "application/x-directory", "cache-control": None},
            ),
            _MARKERS,
        ),
        "parts: complete again": Differs(None, "an upload that was completed is remembered"),
    },
    "moto": {
        "copying: copy an old version": Differs(("g", 3, _etag(b"now")), _IN_COPIES),
        "copying: copy where something is": Differs(("h", 3, _etag(b"now")), _IN_COPIES),
        "copying: copy over another version": Differs(("h", 3, _etag(b"now")), _IN_COPIES),
        "parts: part of an old version": Differs((4, _etag(b"0123456789"), 10), _IN_COPIES),
        "parts: complete over another version": Differs(None, _IN_COPIES),
        "parts: complete with a wrong part": Differs(None, "that did complete it: now it is remembered"),
        "parts: complete again": Differs(None, "an upload that was completed is remembered"),
        "parts: part of what is complete": Differs("EIO", _500),
        "parts: complete what was aborted": Differs("EIO", _500),
    },
}


def shown(value: Any) -> Any:
    """Return of an answer what is to be equal: no times, no ids."""
    if isinstance(value, Object):
        return (value.key, value.size, value.etag)
    if isinstance(value, Page):
        return ([shown(item) for item in value.objects], value.prefixes, bool(value.token))
    if isinstance(value, Head):
        return (shown(value.item), dict(value.metadata), {name: value.headers.get(name) for name in KINDS})
    if isinstance(value, Part):
        return (value.number, value.etag, value.size)
    return value


class Recorder:
    """Does calls and writes down what came of them."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.steps: dict[str, Any] = {}

    async def do(self, name: str, call: Awaitable[Any]) -> Any:
        """Await a call; return its answer, or None."""
        assert name not in self.steps, name
        try:
            value = await call
        except OSError as error:
            self.steps[name] = errno.errorcode[error.errno or 0]
            return None
        self.steps[name] = shown(value)
        return value

    async def read(self, item: Object, start: int, size: int) -> bytes:
        pieces: list[bytes] = []
        await self.store.get(item, start, size, pieces.append)
        return hashlib.md5(b"".join(pieces)).hexdigest().encode()


async def listing(record: Recorder) -> None:
    store, do = record.store, record.do
    for key in KEYS:
        await store.put(key, Bytes(key.encode()), PLAIN)
    await do("all at the top", store.list(""))
    await do("all below", store.list("", delimiter=""))
    await do("a directory", store.list("a/"))
    await do("a prefix that is none", store.list("zzz"))
    await do("behind a key", store.list("", start_after="a/c"))
    token, pages = "", 0
    while pages == 0 or (token and pages < 20):
        page = await do(f"page {pages}", store.list("", token=token, max_keys=2))
        token, pages = page.token, pages + 1


async def writing(record: Recorder) -> None:
    store, do = record.store, record.do
    first = await do("put with attributes", store.put("f", Bytes(b"first"), FULL, ABSENT))
    await do("its head", store.head("f"))
    await do("put where something is", store.put("f", Bytes(b"x"), PLAIN, ABSENT))
    await do("put over another version", store.put("f", Bytes(b"x"), PLAIN, STALE))
    await do("put over nothing that should be something", store.put("none", Bytes(b"x"), PLAIN, STALE))
    second = await do("put over the version", store.put("f", Bytes(b"second"), PLAIN, Condition(match=first.etag)))
    await do("read the new", record.read(second, 1, 3))
    await do("read the old", record.read(first, 0, 5))
    await do("head of nothing", store.head("none"))
    await do("read of nothing", record.read(first._replace(key="none"), 0, 5))
    await do("put nothing", store.put("empty", Bytes(b""), PLAIN))
    await do("empty's head", store.head("empty"))
    big = bytes(range(256)) * 9000
    large = await do("put 2 MiB", store.put("large", Bytes(big), PLAIN))
    await do("read in its middle", record.read(large, 1_000_001, 1_000_003))
    await do("delete another version", store.delete("f", STALE))
    await do("delete nothing", store.delete("none"))
    await do("delete nothing that should be something", store.delete("none", STALE))
    await do("delete the version", store.delete("f", Condition(match=second.etag)))
    await do("head of what was deleted", store.head("f"))
    await do("delete many", store.delete_many(["empty", "large", "none"]))
    await do("what is left", store.list(""))


async def copying(record: Recorder) -> None:
    store, do = record.store, record.do
    old = await store.put("f", Bytes(b"old"), FULL)
    now = await store.put("f", Bytes(b"now"), FULL)
    await do("copy an old version", store.copy(old, "g", None))
    await do("copy", store.copy(now, "sp ace/g +%", None))
    await do("head of the copy", store.head("sp ace/g +%"))
    await do("copy with attributes", store.copy(now, "h", Attributes({"new": "1"}, {"content-type": "text/y"})))
    await do("its head", store.head("h"))
    await do("copy where something is", store.copy(now, "h", None, ABSENT))
    await do("copy over another version", store.copy(now, "h", None, STALE))
    await do("copy of nothing", store.copy(now._replace(key="none"), "h", None))
    await do("copy onto itself", store.copy(now, "f", Attributes({"new": "2"}), Condition(match=now.etag)))
    await do("head of that", store.head("f"))


async def markers(record: Recorder) -> None:
    store, do = record.store, record.do
    marker = await do("put a marker", store.put("d/", Bytes(b""), Attributes({"mode": "16877"}), ABSENT))
    await do("put it again", store.put("d/", Bytes(b""), PLAIN, ABSENT))
    await do("its metadata", _metadata(store.head("d/")))
    await do("the directory", store.list("", max_keys=2))
    await do("what is in it", store.list("d/"))
    await do("copy it", store.copy(marker, "e/", None))
    await do("head of the copy", store.head("e/"))
    await do("a marker with bytes", store.put("f/", Bytes(b"bytes"), PLAIN))
    await do("delete it", store.delete("d/", Condition(match=marker.etag)))
    await do("what is left of it", store.head("d/"))
    await store.put("g/h", Bytes(b"x"), PLAIN)
    await do("head of what is no marker", store.head("g/"))
    await store.delete("g/h")
    await do("a directory whose last key went", store.list("g"))


async def _metadata(head: Awaitable[Head]) -> dict[str, str]:
    return dict((await head).metadata)


async def parts(record: Recorder) -> None:
    store, do = record.store, record.do
    source = await store.put("source", Bytes(b"0123456789" * 600_000), PLAIN)
    upload = await store.create_upload("f", FULL)
    one = await do("part", store.upload_part(upload, 1, Bytes(b"1" * MIN_PART)))
    await store.upload_part(upload, 2, Bytes(b"replaced"))
    two = await do("part of a source", store.copy_part(upload, 2, source, 10, 10 + MIN_PART))
    three = await do("last part", store.upload_part(upload, 3, Bytes(b"the end")))
    await do("nothing yet", store.head("f"))
    await do("uploads", _keys(store.uploads("f")))
    old = source._replace(etag="0" * 32)
    await do("part of an old version", store.copy_part(upload, 4, old, 0, 10))
    await store.put("f", Bytes(b"in the way"), PLAIN)
    await do("complete where something is", store.complete(upload, [one, two, three], ABSENT))
    await do("complete over another version", store.complete(upload, [one, two, three], STALE))
    await do("complete with a wrong part", store.complete(upload, [one, two._replace(etag="0" * 32), three]))
    made = await do("complete", store.complete(upload, [one, two, three]))
    if made is not None:
        await do("its head", store.head("f"))
        await do("read over a seam", record.read(made, MIN_PART - 5, 100))
    await do("complete again", store.complete(upload, [one, two, three]))
    await do("part of what is complete", store.upload_part(upload, 1, Bytes(b"x")))
    await do("abort what is complete", store.abort(upload))
    small = await store.create_upload("small", PLAIN)
    few = [await store.upload_part(small, number, Bytes(b"abc")) for number in (1, 2)]
    await do("parts too small", store.complete(small, few))
    await do("abort", store.abort(small))
    await do("no uploads", _keys(store.uploads("")))
    await do("complete what was aborted", store.complete(small, few))


async def _keys(begun: Awaitable[Any]) -> list[str]:
    return [one.upload.key for one in await begun]


async def tagging(record: Recorder) -> None:
    store, do = record.store, record.do
    await store.put("f", Bytes(b"x"), PLAIN)
    await do("no tags", store.tags("f"))
    await do("set", store.set_tags("f", {"a": "1", "b c": "\u00e9"}))
    await do("tags", store.tags("f"))
    await do("set none", store.set_tags("f", {}))
    await do("none", store.tags("f"))
    await do("tags of nothing", store.tags("none"))


PROGRAMS = {program.__name__: program for program in (listing, writing, copying, markers, parts, tagging)}


@pytest.fixture(scope="module")
def moto() -> Iterator[S3Server]:
    with S3Server() as server:
        yield server


@asynccontextmanager
async def opened(url: str, bucket: str) -> AsyncIterator[AioStore]:
    store = AioStore(bucket, S3Options(endpoint_url=Url(url), region="us-east-1"))
    await store.start()
    try:
        yield store
    finally:
        await store.close()


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("name", ["seaweed", "moto"])
async def test_store_in_memory_answers_as_real_ones_do(
    program: str, name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in ACCESS.items():
        monkeypatch.setenv(variable, value)
    server: SeaweedServer | S3Server = request.getfixturevalue(name)
    bucket = f"compared-{program}"
    server.client().create_bucket(Bucket=bucket)
    fake = Recorder(FakeStore(by_name=name == "seaweed"))
    await PROGRAMS[program](fake)
    async with opened(server.url, bucket) as store:
        real = Recorder(store)
        await PROGRAMS[program](real)
        assert store.features == Features()
    expected = dict(fake.steps)
    for step, differs in DIFFERENCES[name].items():
        where, _, what = step.partition(": ")
        if where == program:
            outcome = expected["complete"] if differs.outcome is None else differs.outcome
            assert expected[what] != outcome, f"{step} differs no more"
            expected[what] = outcome
    assert real.steps == expected
