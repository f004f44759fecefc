"""The store against a server that does everything wrong."""

from __future__ import annotations

import asyncio
import errno
import logging
import random
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from badserver import (
    Answer,
    Asked,
    BadServer,
    clean_environment,
    error,
    error_body,
    hang_up,
    plain,
    read,
    refused,
    stall,
    store_on,
    written,
)

from pyfusekit.core import Duration, Secret
from pyfusekit.fs.s3fs.options import S3Options
from pyfusekit.fs.s3fs.remote.aio import AioStore
from pyfusekit.fs.s3fs.remote.answers import crc32_header
from pyfusekit.fs.s3fs.remote.errors import StoreError
from pyfusekit.fs.s3fs.remote.store import ABSENT, Attributes, Bytes, Condition, Object, Part, Upload

MIB = 1 << 20
NOTHING = Attributes()


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    clean_environment(monkeypatch, tmp_path)


BODY = random.Random(5).randbytes(300_000)
ITEM = Object("f", len(BODY), 0, "v1")


def partial(etag: str = "v1", upto: int | None = None, total: int = len(BODY), more: str = "", body: bytes = BODY) -> Answer:
    """Answer the range that was asked for, or the whole; *upto* bytes of it, then hang up."""

    async def answer(asked: Asked, writer: asyncio.StreamWriter) -> None:
        span = asked.headers.get("range", "")
        headers = f'ETag: "{etag}"\r\n{more}'
        if not span:
            await plain(200, body[:upto], headers, length=len(body))(asked, writer)
            return
        start, last = (int(number) for number in span.removeprefix("bytes=").split("-"))
        whole = body[start : last + 1]
        headers += f"Content-Range: bytes {start}-{last}/{total}\r\n"
        await plain(206, whole[:upto], headers, length=len(whole))(asked, writer)

    return answer


async def stall_in_body(asked: Asked, writer: asyncio.StreamWriter) -> None:
    start = int(asked.headers.get("range", "bytes=0-").removeprefix("bytes=").split("-")[0])
    said = f"Content-Length: {len(BODY) - start}\r\nContent-Range: bytes {start}-{len(BODY) - 1}/{len(BODY)}\r\n"
    writer.write(f'HTTP/1.1 206 X\r\nETag: "v1"\r\n{said}\r\n'.encode() + BODY[start : start + 100])
    await asyncio.Event().wait()


async def test_every_get_carries_its_range_and_its_version() -> None:
    async with BadServer(partial()) as bad, store_on(bad) as store:
        assert await read(store, ITEM, 100, 200) == BODY[100:200]
    assert (bad.seen[0]["range"], bad.seen[0]["if-match"]) == ("bytes=100-199", '"v1"')


@pytest.mark.parametrize("thin", [True, False])
async def test_body_that_breaks_off_is_continued_where_it_broke(thin: bool) -> None:
    async with BadServer(partial(upto=1000), partial(upto=0), partial()) as bad, store_on(bad, thin=thin) as store:
        assert await read(store, ITEM) == BODY
    assert [asked.headers.get("range", "").split("-")[0] for asked in bad.seen] == ["", "bytes=1000", "bytes=1000"]


async def test_body_continued_from_another_version_is_estale() -> None:
    async with BadServer(partial(upto=1000), partial(etag="v2")) as bad, store_on(bad) as store:
        with pytest.raises(StoreError, match="another version") as info:
            await read(store, ITEM)
        assert not store.features.get_if_match
    assert info.value.errno == errno.ESTALE


async def test_other_size_behind_the_same_etag_is_estale() -> None:
    async with BadServer(partial(total=999_999)) as bad, store_on(bad) as store:
        with pytest.raises(StoreError, match="size is 999999 now") as info:
            await read(store, ITEM, 1, 5)
    assert info.value.errno == errno.ESTALE


@pytest.mark.parametrize("thin", [True, False])
async def test_server_that_passes_over_range_is_not_believed(thin: bool) -> None:
    whole = plain(200, BODY, 'ETag: "v1"\r\n')
    async with BadServer(whole) as bad, store_on(bad, thin=thin) as store:
        assert await read(store, ITEM) == BODY
        with pytest.raises(StoreError, match="were asked for") as info:
            await read(store, ITEM, 100, 200)
    assert info.value.errno == errno.EIO


async def test_range_that_is_not_said_is_not_believed_even_without_a_length() -> None:
    async def whole(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(b'HTTP/1.1 200 X\r\nConnection: close\r\nETag: "v1"\r\n\r\n' + BODY[:50])
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.write(BODY[50:100])
        await writer.drain()
        writer.close()

    async with BadServer(whole) as bad, store_on(bad) as store:
        with pytest.raises(StoreError, match="were asked for") as info:
            await read(store, ITEM, 100, 200)
    assert info.value.errno == errno.EIO


async def test_bytes_that_changed_on_their_way_are_fetched_again() -> None:
    said = f"x-amz-checksum-crc32: {crc32_header(zlib.crc32(BODY))}\r\n"
    wrong = partial(more=said, body=BODY[:-1] + b"!")
    async with BadServer(wrong, partial(more=said)) as bad, store_on(bad) as store:
        assert await read(store, ITEM) == BODY
    assert bad.seen[0]["x-amz-checksum-mode"] == "ENABLED"
    async with BadServer(wrong) as bad, store_on(bad) as store:
        pieces: list[bytes] = []
        with pytest.raises(StoreError, match="does not have the object's checksum") as info:
            await store.get(ITEM, 0, len(BODY), pieces.append)
        assert store.reported[0][1:] == ("GetObject", "f")  # type: ignore[attr-defined]
    assert (info.value.errno, pieces, len(bad.seen)) == (errno.EIO, [], 2)
    async with BadServer(wrong) as bad, store_on(bad, checksums="off") as store:
        assert await read(store, ITEM) == BODY[:-1] + b"!"
    assert "x-amz-checksum-mode" not in bad.seen[0].headers


async def test_passing_errors_are_retried_and_lasting_ones_are_not() -> None:
    async with BadServer(error(503, "SlowDown"), error(500, "InternalError"), partial()) as bad, store_on(bad) as store:
        assert await read(store, ITEM, 0, 10) == BODY[:10]
    assert len(bad.seen) == 3
    async with BadServer(error(403, "AccessDenied"), partial()) as bad, store_on(bad) as store:
        with pytest.raises(StoreError, match=r"GetObject 'f': 403 AccessDenied: m \(request R4\)") as info:
            await read(store, ITEM, 0, 10)
    assert info.value.errno == errno.EACCES
    assert len(bad.seen) == 1


REQUESTS: dict[str, Callable[[AioStore], Any]] = {
    "ListObjectsV2": lambda store: store.list("k"),
    "HeadObject": lambda store: store.head("k"),
    "GetObject": lambda store: read(store, ITEM._replace(key="k")),
    "PutObject": lambda store: store.put("k", Bytes(b"x"), NOTHING),
    "CopyObject": lambda store: store.copy(ITEM, "k", None),
    "DeleteObject": lambda store: store.delete("k"),
    "DeleteObjects": lambda store: store.delete_many(["k"]),
    "CreateMultipartUpload": lambda store: store.create_upload("k", NOTHING),
    "UploadPart": lambda store: store.upload_part(Upload("k", "u"), 1, Bytes(b"x")),
    "UploadPartCopy": lambda store: store.copy_part(Upload("k", "u"), 1, ITEM, 0, 5),
    "CompleteMultipartUpload": lambda store: store.complete(Upload("k", "u"), [Part(1, "e", 1)]),
    "AbortMultipartUpload": lambda store: store.abort(Upload("k", "u")),
    "ListMultipartUploads": lambda store: store.uploads("k"),
    "GetObjectTagging": lambda store: store.tags("k"),
    "PutObjectTagging": lambda store: store.set_tags("k", {"a": "b"}),
    "ListObjectVersions": lambda store: store.versions("k"),
}


@pytest.mark.parametrize("operation", REQUESTS)
@pytest.mark.parametrize("thin", [True, False])
async def test_access_denied_on_a_single_operation_is_eacces_and_reported(operation: str, thin: bool) -> None:
    async with BadServer(error(403, "AccessDenied")) as bad, store_on(bad, thin=thin) as store:
        with pytest.raises(StoreError, match=f"{operation} 'k': 403") as info:
            await REQUESTS[operation](store)
        (failure,) = store.reported  # type: ignore[attr-defined]
    assert info.value.errno == errno.EACCES
    assert failure[1:] == (operation, "k")
    assert failure[0].request_id == "R4"
    assert len(bad.seen) == 1


@pytest.mark.parametrize("thin", [True, False])
@pytest.mark.parametrize(
    "operation", ["ListObjectsV2", "PutObject", "CopyObject", "CompleteMultipartUpload", "UploadPartCopy", "GetObject"]
)
async def test_error_under_the_status_200_is_an_error(operation: str, thin: bool) -> None:
    body = error_body("InternalError")
    async with BadServer(plain(200, body)) as bad, store_on(bad, thin=thin) as store:
        store.attempts = 2
        item = Object("k", len(body), 0, "v1")
        with pytest.raises(StoreError) as info:
            await (read(store, item) if operation == "GetObject" else REQUESTS[operation](store))
    assert info.value.errno == errno.EIO


async def test_error_under_the_status_200_is_tried_again() -> None:
    copied = plain(200, b"<CopyObjectResult><ETag>e</ETag><LastModified>2026-11-22T10:11:12Z</LastModified></CopyObjectResult>")
    for thin in (True, False):
        async with BadServer(plain(200, error_body("InternalError")), copied) as bad, store_on(bad, thin=thin) as store:
            assert (await store.copy(ITEM, "k", None)).etag == "e"
        assert len(bad.seen) == 2


async def test_store_that_never_recovers_is_an_errno_with_its_own_words(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "pyfusekit.s3fs")
    async with BadServer(error(500, "InternalError")) as bad, store_on(bad) as store:
        store.attempts = 3
        with pytest.raises(StoreError, match="InternalError") as info:
            await read(store, ITEM, 0, 10)
    assert info.value.errno == errno.EIO
    assert len(bad.seen) == 3
    assert [line.endswith("-> EIO") for line in caplog.messages] == [False, False, True]


async def test_lost_answer_to_a_conditional_write_is_a_conflict_for_the_writer_to_judge() -> None:
    async with BadServer(hang_up, hang_up, error(412, "PreconditionFailed")) as bad, store_on(bad) as store:
        with pytest.raises(StoreError) as info:
            await store.put("k", Bytes(b"x"), NOTHING, ABSENT)
        assert store.reported == []  # type: ignore[attr-defined]
    assert refused(info) == (errno.ESTALE, "PreconditionFailed")


async def test_lost_answer_to_a_conditional_delete_is_no_conflict_when_the_key_is_gone() -> None:
    answers = (error(500, "InternalError"), error(412, "PreconditionFailed"), error(404, "NoSuchKey"))
    async with BadServer(*answers) as bad, store_on(bad) as store:
        await store.delete("k", Condition(match="e"))
    assert [asked.method for asked in bad.seen] == ["DELETE", "DELETE", "HEAD"]
    async with BadServer(*answers[:2], plain(200, b"", 'ETag: "e2"\r\n')) as bad, store_on(bad) as store:
        with pytest.raises(StoreError) as info:
            await store.delete("k", Condition(match="e"))
    assert info.value.errno == errno.ESTALE


async def test_two_conditional_writes_that_meet_are_ebusy_for_the_writer_to_repeat() -> None:
    async with BadServer(error(409, "ConditionalRequestConflict")) as bad, store_on(bad) as store:
        with pytest.raises(StoreError) as info:
            await store.put("k", Bytes(b"x"), NOTHING, ABSENT)
    assert refused(info) == (errno.EBUSY, "ConditionalRequestConflict")
    assert len(bad.seen) == 1


async def test_conditions_that_a_copy_does_not_know_are_compared_before() -> None:
    copied = plain(200, b"<CopyObjectResult><ETag>e</ETag><LastModified>2026-11-22T10:11:12Z</LastModified></CopyObjectResult>")
    other = plain(200, b"", 'ETag: "theirs"\r\n')
    async with BadServer(error(501, "NotImplemented"), error(404, "NoSuchKey"), copied) as bad, store_on(bad) as store:
        assert (await store.copy(ITEM, "k", None, ABSENT)).etag == "e"
        assert not store.features.copy_if
    assert [asked.headers.get("if-none-match") for asked in bad.seen] == ["*", None, None]
    async with BadServer(error(501, "NotImplemented"), other, copied) as bad, store_on(bad) as store:
        with pytest.raises(StoreError) as info:
            await store.copy(ITEM, "k", None, ABSENT)
    assert info.value.errno == errno.ESTALE


@pytest.mark.parametrize("status", [(400, "InvalidRequest"), (501, "NotImplemented"), (400, "InvalidArgument")])
async def test_checksums_that_are_refused_are_not_sent_again(status: tuple[int, str]) -> None:
    async with BadServer(error(*status), written()) as bad, store_on(bad) as store:
        for _ in range(2):
            await store.put("k", Bytes(b"x"), NOTHING)
        assert not store.features.checksums
    assert ["x-amz-checksum-crc32" in asked.headers for asked in bad.seen] == [True, False, False]


async def test_refusal_that_is_not_about_checksums_does_not_end_them() -> None:
    async with BadServer(error(400, "InvalidRequest")) as bad, store_on(bad) as store:
        with pytest.raises(StoreError) as info:
            await store.put("k", Bytes(b"x"), NOTHING)
        assert store.features.checksums
    assert info.value.errno == errno.EINVAL


async def test_customers_key_goes_with_every_request_about_the_bytes() -> None:
    secret = Secret("0123456789abcdef" * 2)
    async with BadServer(written()) as bad, store_on(bad, sse_c_key=secret) as store:
        await store.put("k", Bytes(b"x"), NOTHING)
        await store.head("k")
        await store.upload_part(Upload("k", "u"), 1, Bytes(b"x"))
        with pytest.raises(StoreError):
            await store.copy(ITEM, "k", None)
    names = [{name for name in asked.headers if "customer-key" in name and "md5" not in name} for asked in bad.seen]
    own, source = ("x-amz-server-side-encryption-customer-key", "x-amz-copy-source-server-side-encryption-customer-key")
    assert names == [{own}, {own}, {own}, {own, source}]


@pytest.mark.parametrize("answer", [stall, stall_in_body])
async def test_silent_server_is_etimedout_at_the_deadline(answer: Answer) -> None:
    async with BadServer(answer) as bad, store_on(bad, deadline=Duration(0.3)) as store:
        store.calls.deadline = lambda size: 0.3  # type: ignore[method-assign]
        with pytest.raises(StoreError) as info:
            await read(store, ITEM)
    assert info.value.errno == errno.ETIMEDOUT


async def test_dripping_server_is_etimedout_at_the_deadline() -> None:
    async def drip(asked: Asked, writer: asyncio.StreamWriter) -> None:
        headers = f'ETag: "v1"\r\nContent-Range: bytes 0-999/{len(BODY)}\r\n'
        writer.write(f"HTTP/1.1 206 X\r\nContent-Length: 1000\r\n{headers}\r\n".encode())
        for at in range(1000):
            writer.write(BODY[at : at + 1])
            await asyncio.sleep(0.05)

    async with BadServer(drip) as bad, store_on(bad, deadline=Duration(0.5)) as store:
        with pytest.raises(StoreError, match="not done within") as info:
            await read(store, ITEM, 0, 1000)
    assert info.value.errno == errno.ETIMEDOUT


async def test_deadline_does_not_count_waiting_for_others() -> None:
    async def slow(asked: Asked, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.3)
        await partial()(asked, writer)

    async with BadServer(slow) as bad, store_on(bad, max_connections=1, deadline=Duration(1.5)) as store:
        parts = await asyncio.gather(*(read(store, ITEM, n, n + 10) for n in range(8)))
    assert parts == [BODY[n : n + 10] for n in range(8)]


@pytest.mark.parametrize("thin", [True, False])
@pytest.mark.parametrize("answer", [stall, stall_in_body])
async def test_interrupt_ends_the_http_request(answer: Answer, thin: bool) -> None:
    async with BadServer(answer) as bad, store_on(bad, thin=thin) as store:
        task = asyncio.ensure_future(read(store, ITEM))
        await asyncio.wait_for(bad.asked.wait(), 10)
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        # Within the store's own deadline of 30 s only a cancelled request makes the client hang up.
        await asyncio.wait_for(bad.broken.wait(), 5)


async def test_deadline_grows_with_the_size() -> None:
    store = AioStore("bucket", S3Options(deadline=Duration(10.0)))
    assert store.deadline(0) == 10
    assert store.deadline(4 * MIB) == 42


async def test_no_more_requests_than_allowed_are_under_way() -> None:
    most = 0
    now = 0

    async def slow(asked: Asked, writer: asyncio.StreamWriter) -> None:
        nonlocal most, now
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.02)
        now -= 1
        await partial()(asked, writer)

    async with BadServer(slow) as bad, store_on(bad, max_connections=4) as store:
        parts = await asyncio.gather(*(read(store, ITEM, n * 10, n * 10 + 10) for n in range(20)))
    assert parts == [BODY[n * 10 : n * 10 + 10] for n in range(20)]
    assert most == 4


async def test_page_token_that_repeats_does_not_list_for_ever() -> None:
    page = (
        b"<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken>"
        b"<Contents><Key>k</Key><Size>1</Size><ETag>e</ETag><LastModified>2026-01-01T00:00:00Z</LastModified></Contents>"
        b"</ListBucketResult>"
    )
    for thin in (True, False):
        async with BadServer(plain(200, page)) as bad, store_on(bad, thin=thin) as store:
            assert (await store.list("")).token == "t"
            with pytest.raises(StoreError, match="repeats its page token") as info:
                await store.list("", token="t")
        assert info.value.errno == errno.EIO


async def test_deletions_one_by_one_where_the_store_knows_no_other_way() -> None:
    async with BadServer(error(501, "NotImplemented"), error(403, "AccessDenied"), plain(204)) as bad, store_on(bad) as store:
        failed = await store.delete_many(["a", "b", "c"])
    assert len(failed) == 1
    assert [found.errno for found in failed.values()] == [errno.EACCES]
    assert [asked.method for asked in bad.seen] == ["POST", "DELETE", "DELETE", "DELETE"]


async def test_keys_that_could_not_be_deleted_are_named() -> None:
    body = (
        b"<DeleteResult><Error><Key>a</Key><Code>AccessDenied</Code><Message>m</Message></Error>"
        b"<Error><Key>b</Key><Code>NoSuchKey</Code></Error></DeleteResult>"
    )
    async with BadServer(plain(200, body)) as bad, store_on(bad) as store:
        failed = await store.delete_many(["a", "b", "c"])
    assert {key: found.errno for key, found in failed.items()} == {"a": errno.EACCES}


async def test_store_that_copies_no_parts_says_so() -> None:
    async with BadServer(plain(200, b"<CopyPartResult></CopyPartResult>")) as bad, store_on(bad) as store:
        with pytest.raises(StoreError) as info:
            await store.copy_part(Upload("k", "u"), 1, ITEM, 0, 5)
        assert not store.features.copy_part
    assert info.value.errno == errno.EOPNOTSUPP
