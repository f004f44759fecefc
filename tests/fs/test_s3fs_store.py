"""The store: every call of the protocol on two real servers, by both paths."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import random
import zlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from badserver import clean_environment, read, refused, store_on
from s3server import S3Server
from seaweed import SeaweedServer

from pyfusekit.fs.s3fs.remote.aio import AioStore
from pyfusekit.fs.s3fs.remote.errors import StoreError
from pyfusekit.fs.s3fs.remote.store import ABSENT, MIN_PART, Attributes, Bytes, Condition, Object

MIB = 1 << 20
NOTHING = Attributes()


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    clean_environment(monkeypatch, tmp_path)


@pytest.fixture(scope="module")
def moto() -> Iterator[S3Server]:
    with S3Server(seed=("many", 2500)) as server:
        yield server


_NUMBERS = iter(range(10_000))


@pytest.fixture(params=["moto", "seaweed"])
def server(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


@pytest.fixture
def bucket(server: Any) -> Iterator[str]:
    name = f"store-{next(_NUMBERS)}"
    client = server.client()
    client.create_bucket(Bucket=name)
    yield name
    if isinstance(server, SeaweedServer):
        for found in client.list_objects_v2(Bucket=name).get("Contents", ()):
            client.delete_object(Bucket=name, Key=found["Key"])
        client.delete_bucket(Bucket=name)


@pytest.fixture(params=[True, False], ids=["thin", "aiobotocore"])
async def store(request: pytest.FixtureRequest, server: Any, bucket: str) -> AsyncIterator[AioStore]:
    async with store_on(server, bucket, thin=request.param) as store:
        yield store
        # What this test is about, the thin path or the other, was what it used to its end.
        assert store.link.use_thin is request.param


# On real servers, by both paths.

ODD = "dir/ö x+y%41&=?#~'()*!;:@,.txt"


async def test_object_is_what_was_written(store: AioStore, server: Any) -> None:
    given = Attributes({"mode": "33188", "Mtime": "1.5"}, {"content-type": "text/plain", "cache-control": "no-cache"})
    made = await store.put(ODD, Bytes(b"hello world"), given)
    head = await store.head(ODD)
    assert (made.key, made.size, made.etag) == (ODD, 11, hashlib.md5(b"hello world").hexdigest())
    assert head.item._replace(mtime_ns=0) == made._replace(mtime_ns=0)
    assert abs(head.item.mtime_ns - made.mtime_ns) <= 2 * 10**9
    assert head.metadata == {"mode": "33188", "mtime": "1.5"}
    assert head.headers["content-type"] == "text/plain"
    assert head.headers["cache-control"] == "no-cache"
    (listed,) = (await store.list("dir/")).objects
    assert (listed.key, listed.size, listed.etag) == (ODD, 11, made.etag)
    assert await read(store, made) == b"hello world"
    assert await read(store, made, 4, 7) == b"o w"
    assert await read(store, made, 3, 3) == b""


async def test_empty_object_is_an_object(store: AioStore) -> None:
    made = await store.put("empty", Bytes(b""), NOTHING, ABSENT)
    assert (await store.head("empty")).item.size == made.size == 0
    assert await read(store, made) == b""


async def test_listing_has_prefixes_pages_and_a_beginning(store: AioStore) -> None:
    keys = [*(f"d/{number:02}" for number in range(7)), "d/sub dir/x", "d/sub dir/y", "e"]
    await asyncio.gather(*(store.put(key, Bytes(key.encode()), NOTHING) for key in keys))
    page = await store.list("d/")
    assert [item.key for item in page.objects] == keys[:7]
    assert page.prefixes == ["d/sub dir/"]
    assert page.token == ""
    found, token, pages = [], "", 0
    while pages == 0 or token:
        page = await store.list("", token=token, max_keys=4, delimiter="")
        found += [item.key for item in page.objects]
        token, pages = page.token, pages + 1
    assert (found, pages) == (keys, 3)
    after = await store.list("d/", start_after="d/04")
    assert [item.key for item in after.objects] == keys[5:7]
    assert (await store.list("nothing/")) == ([], [], "")


async def test_conditions_decide_who_writes(store: AioStore) -> None:
    first = await store.put("k", Bytes(b"1"), NOTHING, ABSENT)
    for condition in (ABSENT, Condition(match="0" * 32)):
        with pytest.raises(StoreError) as info:
            await store.put("k", Bytes(b"2"), NOTHING, condition)
        assert refused(info) == (errno.ESTALE, "PreconditionFailed")
    second = await store.put("k", Bytes(b"2"), NOTHING, Condition(match=first.etag))
    with pytest.raises(StoreError) as info:
        await store.put("nothing", Bytes(b"2"), NOTHING, Condition(match=first.etag))
    assert refused(info) == (errno.ESTALE, "PreconditionFailed")
    with pytest.raises(StoreError) as info:
        await store.delete("k", Condition(match=first.etag))
    assert refused(info) == (errno.ESTALE, "PreconditionFailed")
    await store.delete("k", Condition(match=second.etag))
    await store.delete("k")
    with pytest.raises(StoreError) as info:
        await store.head("k")
    assert info.value.errno == errno.ENOENT


async def test_one_of_eight_creates_a_key(store: AioStore) -> None:
    results = await asyncio.gather(
        *(store.put("k", Bytes(b"%d" % number), NOTHING, ABSENT) for number in range(8)), return_exceptions=True
    )
    winners = [number for number, result in enumerate(results) if isinstance(result, Object)]
    assert len(winners) == 1
    losers = [result.errno for result in results if isinstance(result, StoreError)]
    assert set(losers) <= {errno.ESTALE, errno.EBUSY}
    assert len(losers) == 7
    assert await read(store, (await store.head("k")).item) == b"%d" % winners[0]


async def test_copy_keeps_or_replaces_what_the_source_carries(store: AioStore) -> None:
    source = await store.put("a b+ö", Bytes(b"bytes"), Attributes({"mode": "1"}, {"content-type": "text/plain"}))
    copied = await store.copy(source, "copy", None)
    assert (copied.key, copied.size, copied.etag) == ("copy", 5, source.etag)
    head = await store.head("copy")
    assert (head.metadata, head.headers["content-type"]) == ({"mode": "1"}, "text/plain")
    itself = await store.copy(source, source.key, Attributes({"mode": "2"}, {"content-type": "image/png"}))
    head = await store.head(source.key)
    assert (head.metadata, head.headers["content-type"]) == ({"mode": "2"}, "image/png")
    assert await read(store, itself) == b"bytes"


async def test_missing_source_of_a_copy_is_enoent(store: AioStore) -> None:
    with pytest.raises(StoreError) as info:
        await store.copy(Object("nothing", 1, 0, ""), "copy", None)
    assert info.value.errno == errno.ENOENT


async def test_deletions_in_one_request(store: AioStore) -> None:
    keys = ["a", "b c", "ö&<>", "tab\tnew\rline"]
    for key in keys[:3]:
        await store.put(key, Bytes(b"x"), NOTHING)
    assert await store.delete_many([*keys, "nothing"]) == {}
    assert (await store.list("")).objects == []
    assert await store.delete_many([]) == {}


async def test_multipart_upload_of_sent_and_copied_parts(store: AioStore, server: Any) -> None:
    data = random.Random(4).randbytes(MIN_PART)
    source = await store.put("source", Bytes(data * 2), NOTHING)
    upload = await store.create_upload("large", Attributes({"mode": "1"}, {"content-type": "text/plain"}))
    assert [begun.upload for begun in await store.uploads("lar")] == [upload]
    parts = await asyncio.gather(
        store.upload_part(upload, 1, Bytes(data)),
        store.copy_part(upload, 2, source, 3, 3 + MIN_PART),
        store.upload_part(upload, 3, Bytes(b"the last")),
    )
    assert [(part.number, part.size) for part in parts] == [(1, MIN_PART), (2, MIN_PART), (3, 8)]
    again = await store.upload_part(upload, 3, Bytes(b"the end"))
    assert again.crc32 == zlib.crc32(b"the end")
    made = await store.complete(upload, [*parts[:2], again], ABSENT)
    head = await store.head("large")
    assert made.size == head.item.size == 2 * MIN_PART + 7
    assert (made.etag, head.metadata, head.headers["content-type"]) == (head.item.etag, {"mode": "1"}, "text/plain")
    assert await read(store, made) == data + (data * 2)[3 : 3 + MIN_PART] + b"the end"
    assert store.features.checksums
    assert await store.uploads("") == []


async def test_given_up_upload_is_gone(store: AioStore, server: Any) -> None:
    upload = await store.create_upload("large", NOTHING)
    part = await store.upload_part(upload, 1, Bytes(b"x"))
    await store.abort(upload)
    await store.abort(upload)
    assert await store.uploads("") == []
    if isinstance(server, S3Server):
        # moto answers 500.
        return
    with pytest.raises(StoreError) as info:
        await store.complete(upload, [part])
    assert refused(info) == (errno.ENOENT, "NoSuchUpload")


async def test_part_of_an_upload_begun_by_another_store_is_sent(store: AioStore, server: Any, bucket: str) -> None:
    upload = await store.create_upload("large", NOTHING)
    async with store_on(server, bucket) as other:
        part = await other.upload_part(upload, 1, Bytes(b"x"))
        assert (await other.complete(upload, [part])).size == 1


async def test_tags_are_kept(store: AioStore) -> None:
    await store.put("k", Bytes(b"x"), NOTHING)
    assert await store.tags("k") == {}
    await store.set_tags("k", {"project": "a b", "two": "2"})
    assert await store.tags("k") == {"project": "a b", "two": "2"}
    await store.set_tags("k", {})
    assert await store.tags("k") == {}


async def test_older_versions_can_be_listed_and_read(store: AioStore, server: Any, bucket: str) -> None:
    client = server.client()
    client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    ids = [client.put_object(Bucket=bucket, Key="d/k", Body=b"%d" % n * (n + 1))["VersionId"] for n in range(3)]
    marker = client.delete_object(Bucket=bucket, Key="d/k")["VersionId"]
    client.put_object(Bucket=bucket, Key="d/sub/x", Body=b"")
    found = await store.versions("d/")
    assert [version.id for version in found.versions] == [marker, *reversed(ids)]
    assert [version.deleted for version in found.versions] == [True, False, False, False]
    assert [version.latest for version in found.versions] == [True, False, False, False]
    assert (found.prefixes, found.token) == (["d/sub/"], "")
    for number, version in enumerate(reversed(found.versions[1:])):
        assert version.item.size == number + 1
        assert await read(store, version.item, version=version.id) == b"%d" % number * (number + 1)
    if isinstance(server, SeaweedServer):
        for one in client.list_object_versions(Bucket=bucket).get("Versions", ()):
            client.delete_object(Bucket=bucket, Key=one["Key"], VersionId=one["VersionId"])
        client.delete_object(Bucket=bucket, Key="d/k", VersionId=marker)


async def test_ranges_read_in_parallel_are_the_originals_bytes(store: AioStore) -> None:
    data = random.Random(6).randbytes(3_300_003)
    made = await store.put("k", Bytes(data), NOTHING)
    parts = await asyncio.gather(*(read(store, made, at, min(at + 200_000, len(data))) for at in range(0, len(data), 200_000)))
    assert b"".join(parts) == data


async def test_replaced_object_is_estale(store: AioStore) -> None:
    first = await store.put("k", Bytes(b"1" * 100), NOTHING)
    await store.put("k", Bytes(b"2" * 100), NOTHING)
    with pytest.raises(StoreError, match="412") as info:
        await read(store, first, 50, 60)
    assert info.value.errno == errno.ESTALE
    assert store.reported[0][1:] == ("GetObject", "k")  # type: ignore[attr-defined]


async def test_deleted_object_is_enoent(store: AioStore) -> None:
    made = await store.put("k", Bytes(b"1" * 100), NOTHING)
    await store.delete("k")
    with pytest.raises(StoreError) as info:
        await read(store, made)
    assert info.value.errno == errno.ENOENT
    assert store.reported == []  # type: ignore[attr-defined]


async def test_bucket_deleted_under_the_mount_is_enoent_and_reported(moto: S3Server) -> None:
    client = moto.client()
    client.create_bucket(Bucket="vanishing")
    async with store_on(moto, "vanishing") as store:
        await store.list("")
        client.delete_bucket(Bucket="vanishing")
        with pytest.raises(StoreError, match="NoSuchBucket") as info:
            await store.list("")
        with pytest.raises(StoreError, match="NoSuchBucket"):
            await store.put("k", Bytes(b"x"), NOTHING)
        assert [failure[1:] for failure in store.reported] == [("ListObjectsV2", ""), ("PutObject", "k")]  # type: ignore[attr-defined]
    assert info.value.errno == errno.ENOENT


# What only one of the servers shows.


async def test_2500_keys_are_listed_in_three_requests(moto: S3Server) -> None:
    async with store_on(moto, "many") as store:
        before = moto.requests("list-type=2")
        found, token = [], None
        while token != "":
            page = await store.list("", token=token or "")
            found += page.objects
            token = page.token
        assert moto.requests("list-type=2") - before == 3
    assert [item.key for item in found] == [f"k{number:04}" for number in range(2500)]
    assert [item.size for item in found[:9]] == [0, 1, 2, 3, 4, 5, 6, 0, 1]


async def test_odd_keys_are_themselves(moto: S3Server) -> None:
    client = moto.client()
    client.create_bucket(Bucket="odd")
    keys = ["a//b", "dir/", "dir/..", "./x", "dir/" + "l" * 255, "日本\U0001f600", "back\\slash", " lead", "trail ", "+", "%2B"]
    async with store_on(moto, "odd") as store:
        for key in keys:
            made = await store.put(key, Bytes(key.encode()), NOTHING)
            assert await read(store, made) == key.encode()
            assert (await store.head(key)).item.size == len(key.encode())
        page = await store.list("", delimiter="")
        assert sorted(item.key for item in page.objects) == sorted(keys)
        for item in page.objects:
            assert await read(store, item) == item.key.encode()
        assert await store.delete_many(keys) == {}
        assert (await store.list("", delimiter="")).objects == []


async def test_archived_object_says_so(moto: S3Server, caplog: pytest.LogCaptureFixture) -> None:
    client = moto.client()
    client.create_bucket(Bucket="cold")
    client.put_object(Bucket="cold", Key="f", Body=b"ice", StorageClass="GLACIER")
    async with store_on(moto, "cold") as store:
        head = await store.head("f")
        assert head.item.storage_class == "GLACIER"
        with pytest.raises(StoreError, match="InvalidObjectState") as info:
            await read(store, head.item)
        assert store.reported[0][0].request_id  # type: ignore[attr-defined]
    assert info.value.errno == errno.ENODATA
    assert any("GetObject 'f'" in line and "ENODATA" in line and "request" in line for line in caplog.messages)


async def test_storage_class_is_the_options_and_a_copy_keeps_its_own(moto: S3Server) -> None:
    moto.client().create_bucket(Bucket="classes")
    async with store_on(moto, "classes", storage_class="STANDARD_IA") as store:
        made = await store.put("k", Bytes(b"x"), NOTHING)
        assert (await store.head("k")).item.storage_class == made.storage_class == "STANDARD_IA"
        upload = await store.create_upload("m", NOTHING)
        assert (await store.complete(upload, [await store.upload_part(upload, 1, Bytes(b"x"))])).storage_class == "STANDARD_IA"
        assert (await store.head("m")).item.storage_class == "STANDARD_IA"
    async with store_on(moto, "classes") as store:
        assert (await store.copy(made, "copy", None)).storage_class == "STANDARD_IA"
        assert (await store.head("copy")).item.storage_class == "STANDARD_IA"


async def test_encryption_is_the_options(moto: S3Server) -> None:
    moto.client().create_bucket(Bucket="encrypted")
    async with store_on(moto, "encrypted", sse="aws:kms", sse_kms_key="arn:aws:kms:us-east-1:1:key/k") as store:
        made = await store.put("k", Bytes(b"x"), NOTHING)
        upload = await store.create_upload("m", NOTHING)
        await store.complete(upload, [await store.upload_part(upload, 1, Bytes(b"x"))])
        await store.copy(made, "c", None)
        for key in "kmc":
            headers = (await store.head(key)).headers
            assert headers["x-amz-server-side-encryption"] == "aws:kms"
            assert headers["x-amz-server-side-encryption-aws-kms-key-id"] == "arn:aws:kms:us-east-1:1:key/k"


async def test_changed_bytes_are_refused_by_a_store_that_looks(seaweed: SeaweedServer, seaweed_bucket: str) -> None:
    class Changed(Bytes):
        def crc32(self) -> int:
            return zlib.crc32(self.data) ^ 1

    for thin in (True, False):
        async with store_on(seaweed, seaweed_bucket, thin=thin) as store:
            store.attempts = 2
            for size in (10, MIB):
                with pytest.raises(StoreError, match="BadDigest") as info:
                    await store.put("k", Changed(b"x" * size), NOTHING)
                assert info.value.errno == errno.EIO
            assert (await store.list("")).objects == []


async def test_wrong_checksum_of_the_whole_is_refused(seaweed: SeaweedServer, seaweed_bucket: str) -> None:
    async with store_on(seaweed, seaweed_bucket) as store:
        store.attempts = 1
        upload = await store.create_upload("k", NOTHING)
        part = await store.upload_part(upload, 1, Bytes(b"x"))
        with pytest.raises(StoreError, match="BadDigest"):
            await store.complete(upload, [part._replace(crc32=1)])
        await store.abort(upload)


async def test_conditions_on_copies_and_completions_hold(seaweed: SeaweedServer, seaweed_bucket: str) -> None:
    for thin in (True, False):
        async with store_on(seaweed, seaweed_bucket, thin=thin) as store:
            one, two = [await store.put(key, Bytes(key.encode()), NOTHING) for key in ("one", "two")]
            for condition in (ABSENT, Condition(match=one.etag)):
                with pytest.raises(StoreError) as info:
                    await store.copy(one, "two", None, condition)
                assert info.value.errno == errno.ESTALE
                upload = await store.create_upload("two", NOTHING)
                part = await store.upload_part(upload, 1, Bytes(b"x"))
                with pytest.raises(StoreError) as info:
                    await store.complete(upload, [part], condition)
                assert refused(info) == (errno.ESTALE, "PreconditionFailed")
                await store.abort(upload)
            with pytest.raises(StoreError) as info:
                await store.copy(one._replace(etag="0" * 32), "three", None)
            assert info.value.errno == errno.ESTALE
            upload = await store.create_upload("two", NOTHING)
            with pytest.raises(StoreError) as info:
                await store.copy_part(upload, 1, one._replace(etag="0" * 32), 0, 2)
            assert info.value.errno == errno.ESTALE
            await store.abort(upload)
            assert (await store.copy(one, "two", None, Condition(match=two.etag))).etag == one.etag
            assert await store.delete_many(["one", "two"]) == {}


@pytest.mark.parametrize(
    ("key", "secret", "code"), [("nobody", "testing", "InvalidAccessKeyId"), ("testing", "wrong", "SignatureDoesNotMatch")]
)
async def test_wrong_credentials_are_eacces(
    key: str, secret: str, code: str, seaweed: SeaweedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    for thin in (True, False):
        async with store_on(seaweed, "bucket", thin=thin) as store:
            for request in (
                store.list(""),
                store.put("k", Bytes(b"x"), NOTHING),
                store.put("k", Bytes(b"x" * MIB), NOTHING),
                store.create_upload("k", NOTHING),
            ):
                with pytest.raises(StoreError, match=code) as info:
                    await request
                assert info.value.errno == errno.EACCES
            with pytest.raises(StoreError) as info:
                await store.head("k")
            assert info.value.errno == errno.EACCES


async def test_wrong_clock_is_corrected(seaweed: SeaweedServer, seaweed_bucket: str) -> None:
    async with store_on(seaweed, seaweed_bucket) as store:
        clock = store.link._clock
        truth = clock.now
        clock.now = lambda: truth() + 3600
        made = await store.put("k", Bytes(b"x" * MIB), NOTHING)
        upload = await store.create_upload("k", NOTHING)
        await store.abort(upload)
        assert await read(store, made, 0, 3) == b"xxx"
        assert clock.offset == pytest.approx(-3600, abs=30)
        assert store.link.use_thin
        await store.delete("k")
