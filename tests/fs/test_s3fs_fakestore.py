"""The store in memory does what S3 does: what the other tests of s3fs believe is tested here."""

from __future__ import annotations

import asyncio
import errno
import hashlib

import pytest
from fakestore import FakeStore, Fault, busy, denied, lost, slow_down

from pyfusekit.fs.s3fs.remote.errors import StoreError
from pyfusekit.fs.s3fs.remote.store import ABSENT, Attributes, Bytes, Condition, Features, Object, Store

PLAIN = Attributes()


async def everything(store: Store, prefix: str, delimiter: str = "/", max_keys: int = 1000) -> tuple[list[str], list[str], int]:
    """Return the keys and prefixes of all pages, and how many pages there were."""
    keys: list[str] = []
    prefixes: list[str] = []
    token, pages = "", 0
    while True:
        page = await store.list(prefix, token=token, delimiter=delimiter, max_keys=max_keys)
        keys += [item.key for item in page.objects]
        prefixes += page.prefixes
        token, pages = page.token, pages + 1
        if not token:
            return keys, prefixes, pages


async def got(store: Store, item: Object, start: int = 0, end: int | None = None, version: str = "") -> bytes:
    pieces: list[bytes] = []
    end = item.size if end is None else end
    await store.get(item, start, end - start, pieces.append, version=version)
    return b"".join(pieces)


async def write(store: Store, how: str, source: Object, condition: Condition) -> None:
    """Write, or remove, the key f under a condition."""
    if how == "put":
        await store.put("f", Bytes(b"new"), PLAIN, condition)
    elif how == "copy":
        await store.copy(source, "f", None, condition)
    elif how == "delete":
        await store.delete("f", condition)
    else:
        upload = await store.create_upload("f", PLAIN)
        part = await store.upload_part(upload, 1, Bytes(b"new"))
        await store.complete(upload, [part], condition)


@pytest.mark.parametrize("page", [1, 2, 3, 7, 1000])
async def test_pages_are_the_sorted_keys_and_each_common_prefix_once(page: int) -> None:
    store = FakeStore(page_size=page)
    for key in ("b/2", "a", "a/1", "a/2", "a-1", "b/1", "c", "a0", "b//x", "\u00e9", "\U0001f600/x", "z/"):
        store.seed(key)
    keys, prefixes, pages = await everything(store, "")
    assert keys == ["a", "a-1", "a0", "c", "\u00e9"]
    assert prefixes == ["a/", "b/", "z/", "\U0001f600/"]
    assert pages == -(-9 // page)
    assert await everything(store, "b/") == (["b/1", "b/2"], ["b//"], -(-3 // page))
    every, none, _ = await everything(store, "", delimiter="")
    assert (every, none) == (sorted(store.objects), [])


@pytest.mark.parametrize("page", [1, 2, 1000])
async def test_listing_by_name_has_the_same_rows_in_the_order_of_a_tree(page: int) -> None:
    store = FakeStore(page_size=page, by_name=True)
    for key in ("a", "a/1", "a/2", "a-1", "b/1", "a0"):
        store.seed(key)
    keys, prefixes, _ = await everything(store, "")
    assert (keys, prefixes) == (["a", "a-1", "a0"], ["a/", "b/"])
    every, _, _ = await everything(store, "", delimiter="")
    assert every == ["a", "a/1", "a/2", "a-1", "a0", "b/1"]
    assert [item.key for item in (await store.list("a", start_after="a/1", delimiter="")).objects][:1] == ["a/2"]


async def test_listing_begins_behind_a_key_and_has_at_most_max_keys() -> None:
    store = FakeStore()
    for number in range(5):
        store.seed(f"k{number}")
    page = await store.list("k", start_after="k1", max_keys=2)
    assert [item.key for item in page.objects] == ["k2", "k3"]
    assert store.calls == ["LIST k > k1"]


async def test_big_bucket_is_listed_without_sorting_it_for_every_page() -> None:
    store = FakeStore()
    for number in range(20_000):
        store.seed(f"{number % 100:02}/{number:05}")
    assert len((await everything(store, "50/"))[0]) == 200
    assert len((await everything(store, ""))[1]) == 100
    assert len((await everything(store, "", delimiter=""))[0]) == 20_000


async def test_what_is_put_is_what_head_and_get_say() -> None:
    store = FakeStore()
    attributes = Attributes({"mode": "33188"}, {"content-type": "text/plain"})
    item = await store.put("f", Bytes(b"hello"), attributes)
    assert (item.key, item.size, item.etag) == ("f", 5, hashlib.md5(b"hello").hexdigest())
    head = await store.head("f")
    assert head.item == item
    assert (head.metadata, head.headers) == ({"mode": "33188"}, {"content-type": "text/plain"})
    assert await got(store, item, 1, 4) == b"ell"
    assert (await store.put("f", Bytes(b"hello"), PLAIN)).mtime_ns > item.mtime_ns
    assert (await store.head("f")).metadata == {}
    with pytest.raises(StoreError) as info:
        await store.head("g")
    assert info.value.errno == errno.ENOENT


@pytest.mark.parametrize(
    ("there", "condition", "holds"),
    [
        (False, ABSENT, True),
        (True, ABSENT, False),
        (True, Condition(match=hashlib.md5(b"old").hexdigest()), True),
        (True, Condition(match="other"), False),
        (False, Condition(match="other"), False),
    ],
)
@pytest.mark.parametrize("how", ["put", "copy", "complete", "delete"])
async def test_condition_decides_each_kind_of_write(how: str, there: bool, condition: Condition, holds: bool) -> None:
    if how == "delete" and condition.absent:
        condition, holds = Condition(match="other"), False
    for ignored in (False, True):
        wanted = {"put": ("put_if_absent", "put_if_match"), "complete": ("complete_if",)}.get(how, (f"{how}_if",))
        store = FakeStore(does=Features(**dict.fromkeys(wanted, False)) if ignored else None)
        source = store.seed("source", b"new")
        if there:
            store.seed("f", b"old")
        before = dict(store.objects)
        if holds or ignored:
            await write(store, how, source, condition)
            assert ("f" in store.objects) == (how != "delete")
        else:
            with pytest.raises(StoreError) as info:
                await write(store, how, source, condition)
            assert (info.value.errno, info.value.code) == (errno.ESTALE, "PreconditionFailed")
            assert store.objects == before


async def test_multipart_upload_is_nothing_until_it_is_completed() -> None:
    store = FakeStore(min_part=4)
    source = store.seed("source", b"0123456789")
    upload = await store.create_upload("f", Attributes({"a": "b"}))
    wrong = await store.upload_part(upload, 2, Bytes(b"wrong"))
    parts = [
        await store.upload_part(upload, 1, Bytes(b"abcd")),
        await store.upload_part(upload, 2, Bytes(b"efgh")),
        await store.copy_part(upload, 3, source, 2, 5),
    ]
    assert [begun.upload for begun in await store.uploads("f")] == [upload]
    assert "f" not in store.objects
    with pytest.raises(StoreError, match=r"InvalidPart$"):
        await store.complete(upload, [parts[0], wrong])
    item = await store.complete(upload, parts)
    assert store.data("f") == b"abcdefgh234"
    sums = b"".join(hashlib.md5(piece).digest() for piece in (b"abcd", b"efgh", b"234"))
    assert item.etag == f"{hashlib.md5(sums).hexdigest()}-3"
    assert (await store.head("f")).metadata == {"a": "b"}
    assert await store.uploads("") == []
    with pytest.raises(StoreError) as info:
        await store.complete(upload, parts)
    assert (info.value.errno, info.value.code) == (errno.ENOENT, "NoSuchUpload")
    await store.abort(upload)


async def test_small_part_that_is_not_the_last_is_refused_and_an_aborted_upload_is_gone() -> None:
    store = FakeStore(min_part=4)
    upload = await store.create_upload("f", PLAIN)
    parts = [await store.upload_part(upload, number, Bytes(b"abc")) for number in (1, 2)]
    with pytest.raises(StoreError, match="EntityTooSmall"):
        await store.complete(upload, parts)
    with pytest.raises(StoreError, match="InvalidPartOrder"):
        await store.complete(upload, parts[::-1])
    await store.abort(upload)
    with pytest.raises(StoreError, match="NoSuchUpload"):
        await store.upload_part(upload, 1, Bytes(b"abc"))


async def test_copy_is_of_the_version_that_was_named() -> None:
    store = FakeStore()
    old = store.seed("a", b"old", metadata={"mode": "1"})
    store.put_plain("a", b"new")
    for attempt in (store.copy(old, "b", None), store.copy(old, "a", PLAIN)):
        with pytest.raises(StoreError) as info:
            await attempt
        assert info.value.errno == errno.ESTALE
    now = (await store.head("a")).item
    await store.copy(now, "a", Attributes({"mode": "2"}))
    assert (store.data("a"), (await store.head("a")).metadata) == (b"new", {"mode": "2"})
    with pytest.raises(StoreError, match="InvalidRequest"):
        await store.copy(now, "a", None)


async def test_fault_before_changes_nothing_and_fault_after_loses_the_answer_only() -> None:
    store = FakeStore()
    store.fail = [Fault("^PUT f", slow_down()), Fault("^PUT f", lost(), after=True)]
    for expected in (False, True):
        with pytest.raises(StoreError):
            await store.put("f", Bytes(b"x"), PLAIN, ABSENT)
        assert ("f" in store.objects) == expected
    assert (await store.put("g", Bytes(b"x"), PLAIN)).size == 1
    assert store.fail == []
    assert store.count("PUT f") == 2


async def test_plain_error_meets_the_next_call_and_a_gate_holds_one_back() -> None:
    store = FakeStore()
    store.fail = [denied()]
    with pytest.raises(StoreError, match="AccessDenied"):
        await store.list("")
    gate = asyncio.Event()
    store.fail = [Fault("^COMPLETE", busy(), gate=gate, do=lambda: store.put_plain("f", b"theirs"))]
    upload = await store.create_upload("f", PLAIN)
    part = await store.upload_part(upload, 1, Bytes(b"mine"))
    task = asyncio.create_task(store.complete(upload, [part]))
    for _ in range(5):
        await asyncio.sleep(0)
    assert store.count("COMPLETE") == 1
    assert "f" not in store.objects
    gate.set()
    with pytest.raises(StoreError) as info:
        await task
    assert info.value.code == "ConditionalRequestConflict"
    assert store.data("f") == b"theirs"


async def test_one_key_of_many_fails_and_the_others_are_removed() -> None:
    store = FakeStore()
    for key in "abc":
        store.seed(key)
    store.fail = [Fault("^DELETE_ONE b$", denied())]
    failures = await store.delete_many(["a", "b", "c", "nothing"])
    assert list(failures) == ["b"]
    assert list(store.objects) == ["b"]
    assert store.calls == ["DELETE_MANY 4"]


async def test_cancelled_write_is_counted_and_did_nothing() -> None:
    store = FakeStore()
    store.latency = 60
    task = asyncio.create_task(store.put("f", Bytes(b"x"), PLAIN))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (store.cancelled, dict(store.objects), store.busiest["PUT"]) == (1, {}, 1)


async def test_listing_that_lies_shows_what_was() -> None:
    store = FakeStore()
    store.seed("a", b"1")
    store.lie()
    store.put_plain("a", b"22")
    store.seed("b")
    assert [(item.key, item.size) for item in (await store.list("")).objects] == [("a", 1)]
    store.honest()
    assert [(item.key, item.size) for item in (await store.list("")).objects] == [("a", 2), ("b", 0)]


async def test_versions_are_kept_and_read_by_id_and_removal_leaves_a_marker() -> None:
    store = FakeStore()
    store.versioned = True
    first = store.seed("d/f", b"one")
    store.put_plain("d/f", b"two")
    await store.delete("d/f")
    found = await store.versions("d/")
    assert [(v.deleted, v.latest, v.item.size) for v in found.versions] == [
        (True, True, 0),
        (False, False, 3),
        (False, False, 3),
    ]
    assert await got(store, first, version=found.versions[2].id) == b"one"
    assert (await store.versions("")).prefixes == ["d/"]
    assert (await store.list("")).objects == []


async def test_archived_object_is_not_read_until_it_is_restored() -> None:
    store = FakeStore()
    item = store.seed("f", b"cold", storage_class="GLACIER")
    assert (await store.head("f")).headers["x-amz-storage-class"] == "GLACIER"
    with pytest.raises(StoreError) as info:
        await got(store, item)
    assert info.value.errno == errno.ENODATA
    item = store.seed("f", b"cold", storage_class="GLACIER", headers={"x-amz-restore": 'ongoing-request="false"'})
    assert await got(store, item) == b"cold"


async def test_tags_are_kept_or_not_known() -> None:
    store = FakeStore()
    store.seed("f")
    await store.set_tags("f", {"a": "1"})
    assert await store.tags("f") == {"a": "1"}
    store.does.tags = False
    with pytest.raises(StoreError) as info:
        await store.tags("f")
    assert info.value.errno == errno.EOPNOTSUPP


@pytest.mark.parametrize(
    ("key", "metadata", "number"),
    [("k" * 1025, {}, errno.ENAMETOOLONG), ("f", {"a": "\u00e9"}, errno.EINVAL), ("f", {"a": "x" * 2048}, errno.EINVAL)],
)
async def test_what_s3_refuses_of_a_new_object_is_refused(key: str, metadata: dict[str, str], number: int) -> None:
    with pytest.raises(StoreError) as info:
        await FakeStore().put(key, Bytes(b""), Attributes(metadata))
    assert info.value.errno == number
