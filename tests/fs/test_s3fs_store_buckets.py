"""All buckets as one store."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Any

import pytest
from badserver import BadServer, clean_environment, error, options, plain, read
from s3server import S3Server

from pyfusekit.fs.s3fs.remote.buckets import AllBuckets
from pyfusekit.fs.s3fs.remote.errors import StoreError
from pyfusekit.fs.s3fs.remote.store import ABSENT, Attributes, Bytes, Object

NOTHING = Attributes()


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    clean_environment(monkeypatch, tmp_path)


@pytest.fixture(scope="module")
def moto() -> Iterator[S3Server]:
    with S3Server(seed=("many", 1)) as server:
        yield server


@pytest.fixture(params=["moto", "seaweed"])
def server(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


@pytest.fixture
def bucket(server: Any) -> Iterator[str]:
    """A bucket, and beside it the other one with "-other" behind its name."""
    names = ["all-buckets", "all-buckets-other"]
    for name in names:
        server.client().create_bucket(Bucket=name)
    yield names[0]
    for name in names:
        server.client().delete_bucket(Bucket=name)


async def test_all_buckets_are_one_store(server: Any, bucket: str) -> None:
    other = f"{bucket}-other"
    store = AllBuckets(options(server.url))
    await store.start()
    try:
        page = await store.list("")
        assert {f"{bucket}/", f"{other}/"} <= set(page.prefixes)
        assert page.objects == []
        assert (await store.list(bucket)).prefixes == [f"{other}/", f"{bucket}/"]
        assert (await store.list(bucket, max_keys=1)) == ([], [f"{other}/"], f"{other}/")
        assert (await store.list(bucket, max_keys=1, token=f"{other}/")) == ([], [f"{bucket}/"], "")
        assert (await store.list("no-such-bucket")) == ([], [], "")
        made = await store.put(f"{bucket}/d/k", Bytes(b"hello"), Attributes({"a": "b"}))
        assert made.key == f"{bucket}/d/k"
        copied = await store.copy(made, f"{other}/x", None, ABSENT)
        assert (copied.key, (await store.head(copied.key)).metadata) == (f"{other}/x", {"a": "b"})
        assert await read(store, copied, 1, 3) == b"el"
        upload = await store.create_upload(f"{other}/m", NOTHING)
        assert [begun.upload for begun in await store.uploads(f"{other}/")] == [upload]
        assert await store.uploads("") == []
        large = await store.complete(upload, [await store.copy_part(upload, 1, made, 1, 4)])
        assert (large.key, await read(store, large)) == (f"{other}/m", b"ell")
        upload = await store.create_upload(f"{other}/m", NOTHING)
        await store.upload_part(upload, 1, Bytes(b"x"))
        await store.abort(upload)
        await store.set_tags(made.key, {"t": "1"})
        assert await store.tags(made.key) == {"t": "1"}
        assert (await store.list(f"{bucket}/")).prefixes == [f"{bucket}/d/"]
        assert [item.key for item in (await store.list(f"{other}/", start_after=f"{other}/m")).objects] == [f"{other}/x"]
        found, token = [], None
        while token != "":
            page = await store.list(bucket, delimiter="", max_keys=1, token=token or "")
            found += [item.key for item in page.objects]
            token = page.token
        assert found == [f"{other}/m", f"{other}/x", made.key]
        assert [version.item.key for version in (await store.versions(f"{other}/")).versions] == [f"{other}/m", f"{other}/x"]
        assert set((await store.versions(bucket)).prefixes) == {f"{bucket}/", f"{other}/"}
        await store.delete(f"{other}/m")
        assert await store.delete_many([made.key, copied.key]) == {}
    finally:
        await store.close()


async def test_buckets_are_neither_made_nor_removed(moto: S3Server) -> None:
    store = AllBuckets(options(moto.url))
    await store.start()
    try:
        item = Object("many/k", 1, 0, "")
        for request in (
            store.put("new", Bytes(b""), NOTHING),
            store.put("new/", Bytes(b""), NOTHING),
            store.copy(item, "new", None),
            store.delete("many/"),
            store.delete("many"),
            store.create_upload("new", NOTHING),
            store.delete_many(["many"]),
        ):
            with pytest.raises(StoreError, match="neither made nor removed") as info:
                await request
            assert info.value.errno == errno.EPERM
        for key in ("many", "many/"):
            with pytest.raises(StoreError) as info:
                await store.head(key)
            assert info.value.errno == errno.ENOENT
    finally:
        await store.close()


async def test_bucket_that_may_not_be_listed_among_all_is_found_by_its_name() -> None:
    page = plain(200, b"<ListBucketResult><EncodingType>url</EncodingType></ListBucketResult>")
    async with BadServer(error(403, "AccessDenied"), page) as bad:
        store = AllBuckets(options(bad.url))
        await store.start()
        try:
            assert (await store.list("mine")).prefixes == ["mine/"]
        finally:
            await store.close()
    assert bad.seen[1].path == "/mine"
