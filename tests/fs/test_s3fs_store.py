"""s3fs on aiobotocore: against moto in a process of its own, and against a server that does everything wrong."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import logging
import random
import re
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from typing import Any

import pytest
from s3server import S3Server

from pyfusekit.core import Duration, MountError, Request, Url
from pyfusekit.fs.s3fs import S3FS, S3Options
from pyfusekit.fs.s3fs.store import AioStore, Object

ME = Request(2, 0, 0, 1)
MIB = 1 << 20


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """Keys for moto, and nothing of who runs the tests."""
    for name in (
        "AWS_PROFILE",
        "AWS_ENDPOINT_URL",
        "AWS_ENDPOINT_URL_S3",
        "AWS_SESSION_TOKEN",
        "AWS_REGION",
        "AWS_DEFAULT_REGION",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with S3Server(seed=("many", 2500)) as server:
        yield server


def options(url: str, **more: Any) -> S3Options:
    return S3Options(endpoint_url=Url(url), region="us-east-1", **more)


async def done(result: Any) -> Any:
    return await result if isinstance(result, Coroutine) else result


async def read(fs: S3FS, ino: int, handle: Any, offset: int, size: int) -> bytes:
    data = await done(fs.read(ME, ino, handle, offset, size))
    return b"".join(data) if isinstance(data, list) else bytes(data)


@contextlib.asynccontextmanager
async def running(source: str, chosen: S3Options) -> AsyncIterator[S3FS]:
    fs = S3FS(source, chosen)
    await fs.init()
    try:
        yield fs
    finally:
        await fs.destroy()


# Against moto.


async def test_2500_keys_are_listed_in_three_pages_with_sizes_and_times(server: S3Server) -> None:
    client = server.client()
    async with running("many", options(server.url)) as fs:
        before = server.requests("list-type=2")
        walk = fs.opendir(ME, 1, 0)
        found = {entry.name: entry.attr async for entry in walk.entries(2, plus=True)}
        assert server.requests("list-type=2") - before == 3
    assert list(found) == [b"k%04d" % number for number in range(2500)]
    head = client.head_object(Bucket="many", Key="k0004")
    attr = found[b"k0004"]
    assert attr is not None
    assert attr.size == head["ContentLength"] == 4
    assert attr.mtime_ns // 10**9 == int(head["LastModified"].timestamp())


async def test_ranges_read_in_parallel_are_the_originals_bytes(server: S3Server) -> None:
    client = server.client()
    client.create_bucket(Bucket="ranges")
    data = {f"dir/ö {n}.bin": random.Random(n).randbytes(n * 1_300_003) for n in range(4)}
    for key, body in data.items():
        client.put_object(Bucket="ranges", Key=key, Body=body)
    async with running("ranges", options(server.url)) as fs:

        async def digest(key: str) -> str:
            attr = await done(fs.lookup(ME, directory.ino, key.removeprefix("dir/").encode()))
            handle = (await done(fs.open(ME, attr.ino, 0))).handle
            steps = range(0, attr.size, 128 * 1024)
            parts = await asyncio.gather(*(read(fs, attr.ino, handle, step, 128 * 1024) for step in steps))
            fs.release(ME, attr.ino, handle)
            return hashlib.sha256(b"".join(parts)).hexdigest()

        directory = await done(fs.lookup(ME, 1, b"dir"))
        assert stat.S_ISDIR(directory.mode)
        found = await asyncio.gather(*(digest(key) for key in data))
    assert found == [hashlib.sha256(body).hexdigest() for body in data.values()]


async def test_object_replaced_while_open_is_estale(server: S3Server) -> None:
    client = server.client()
    client.create_bucket(Bucket="replaced")
    client.put_object(Bucket="replaced", Key="f", Body=b"1" * (3 * MIB))
    async with running("replaced", options(server.url)) as fs:
        attr = await done(fs.lookup(ME, 1, b"f"))
        handle = (await done(fs.open(ME, attr.ino, 0))).handle
        assert await read(fs, attr.ino, handle, 0, 10) == b"1" * 10
        client.put_object(Bucket="replaced", Key="f", Body=b"2" * (3 * MIB))
        with pytest.raises(OSError, match="412") as info:
            await read(fs, attr.ino, handle, 3 * MIB - 10, 10)
        assert info.value.errno == errno.ESTALE
        fs.release(ME, attr.ino, handle)
        attr = await done(fs.lookup(ME, 1, b"f"))
        handle = (await done(fs.open(ME, attr.ino, 0))).handle
        assert await read(fs, attr.ino, handle, 3 * MIB - 10, 10) == b"2" * 10
        fs.release(ME, attr.ino, handle)


async def test_odd_keys_are_listed_or_hidden(server: S3Server) -> None:
    client = server.client()
    client.create_bucket(Bucket="odd")
    for key in ("a//b", "dir/", "dir/x y+z%41&.txt", "dir/\u65e5\u672c\U0001f600", "dir/..", "dir/" + "l" * 255):
        client.put_object(Bucket="odd", Key=key, Body=key.encode())
    async with running("odd", options(server.url)) as fs:
        directory = await done(fs.lookup(ME, 1, b"dir"))
        walk = fs.opendir(ME, directory.ino, 0)
        names = [entry.name async for entry in walk.entries(2, plus=False)]
        assert names == [b"l" * 255, b"x y+z%41&.txt", "\u65e5\u672c\U0001f600".encode()]
        for name in names:
            attr = await done(fs.lookup(ME, directory.ino, name))
            handle = (await done(fs.open(ME, attr.ino, 0))).handle
            assert await read(fs, attr.ino, handle, 0, 1000) == b"dir/" + name
            fs.release(ME, attr.ino, handle)


async def test_archived_object_says_so(server: S3Server, caplog: pytest.LogCaptureFixture) -> None:
    client = server.client()
    client.create_bucket(Bucket="cold")
    client.put_object(Bucket="cold", Key="f", Body=b"ice", StorageClass="GLACIER")
    async with running("cold", options(server.url)) as fs:
        attr = await done(fs.lookup(ME, 1, b"f"))
        with pytest.raises(OSError, match="InvalidObjectState") as info:
            await done(fs.open(ME, attr.ino, 0))
    assert info.value.errno == errno.ENODATA
    assert any("GetObject 'f'" in line and "ENODATA" in line and "request" in line for line in caplog.messages)


async def test_missing_bucket_names_those_there_are(server: S3Server) -> None:
    server.client().create_bucket(Bucket="photos-2026")
    with pytest.raises(MountError, match=r"s3://photos-2062: no such bucket \(404 NoSuchBucket from http") as info:
        await S3FS("photos-2062", options(server.url)).init()
    assert info.value.kind == "source-missing"
    assert "photos-2026" in info.value.remedy


async def test_impossible_bucket_name_is_a_missing_source(server: S3Server) -> None:
    with pytest.raises(MountError, match="no name of a bucket") as info:
        await S3FS("no bucket!", options(server.url)).init()
    assert info.value.kind == "source-missing"


async def test_dead_endpoint_is_unreachable() -> None:
    # A port nothing listens on: bound, so that nobody else takes it, and never listening.
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(MountError, match=f"{url}: connection refused") as info:
            await S3FS("bucket", options(url)).init()
    assert info.value.kind == "source-unreachable"
    assert "--endpoint-url" in info.value.remedy


async def test_missing_credentials_are_access_denied(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(MountError, match="credentials") as info:
        await S3FS("bucket", options(server.url)).init()
    assert info.value.kind == "access-denied"
    assert "--anonymous" in info.value.remedy
    server.client().create_bucket(Bucket="public")
    async with running("public", options(server.url, anonymous=True)):
        pass


async def test_unknown_profile_is_access_denied(server: S3Server) -> None:
    with pytest.raises(MountError, match="nobody") as info:
        await S3FS("bucket", options(server.url, profile="nobody")).init()
    assert info.value.kind == "access-denied"


# Against a server that does everything wrong.

Answer = Callable[[str, dict[str, str], asyncio.StreamWriter], Awaitable[None]]

BODY = random.Random(5).randbytes(300_000)
ITEM = Object("f", len(BODY), 0, "v1")


class BadServer:
    """Answers each request with the next of *answers*, the last one for ever. *broken* is set when a client hangs up on it."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.seen: list[dict[str, str]] = []
        self.broken = asyncio.Event()
        self.asked = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> BadServer:
        self._server = await asyncio.start_server(self._begin, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        # A connection that was accepted a moment ago gets its task in the next round of the loop.
        for _ in range(3):
            await asyncio.sleep(0)
        for writer in self._writers:
            writer.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _begin(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        self._tasks.add(asyncio.ensure_future(self._serve(reader, writer)))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests: asyncio.Queue[list[str]] = asyncio.Queue()
        answering = asyncio.ensure_future(self._answer(requests, writer))
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                requests.put_nowait(head)
        except (asyncio.IncompleteReadError, ConnectionError):
            self.broken.set()
        finally:
            answering.cancel()
            await asyncio.gather(answering, return_exceptions=True)
            writer.close()

    async def _answer(self, requests: asyncio.Queue[list[str]], writer: asyncio.StreamWriter) -> None:
        while True:
            head = await requests.get()
            headers = {line.partition(":")[0].lower(): line.partition(":")[2].strip() for line in head[1:]}
            self.seen.append(headers)
            answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            self.asked.set()
            await answer(head[0], headers, writer)
            await writer.drain()


def plain(status: int, body: bytes, headers: str = "", *, length: int | None = None) -> Answer:
    async def answer(line: str, asked: dict[str, str], writer: asyncio.StreamWriter) -> None:
        said = len(body) if length is None else length
        writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: {said}\r\n{headers}\r\n".encode() + body)
        if said > len(body):
            await writer.drain()
            writer.close()

    return answer


def error(status: int, code: str) -> Answer:
    return plain(status, f"<Error><Code>{code}</Code><Message>m</Message></Error>".encode(), "x-amz-request-id: R4\r\n")


def partial(etag: str = "v1", upto: int | None = None, total: int = len(BODY)) -> Answer:
    """Answer the range that was asked for; *upto* bytes of it, then hang up."""

    async def answer(line: str, asked: dict[str, str], writer: asyncio.StreamWriter) -> None:
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", asked["range"])
        assert found
        start, last = int(found[1]), int(found[2])
        headers = f'ETag: "{etag}"\r\nContent-Range: bytes {start}-{last}/{total}\r\n'
        whole = BODY[start : last + 1]
        await plain(206, whole[:upto], headers, length=len(whole))(line, asked, writer)

    return answer


async def stall(line: str, asked: dict[str, str], writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


async def stall_in_body(line: str, asked: dict[str, str], writer: asyncio.StreamWriter) -> None:
    start = int(asked["range"].removeprefix("bytes=").split("-")[0])
    headers = f'ETag: "v1"\r\nContent-Range: bytes {start}-{len(BODY) - 1}/{len(BODY)}\r\n'
    writer.write(f"HTTP/1.1 206 X\r\nContent-Length: {len(BODY) - start}\r\n{headers}\r\n".encode() + BODY[start : start + 100])
    await asyncio.Event().wait()


@contextlib.asynccontextmanager
async def store_on(bad: BadServer, **more: Any) -> AsyncIterator[AioStore]:
    store = AioStore("bucket", options(bad.url, **more))
    await store.start()
    try:
        yield store
    finally:
        await store.close()


async def get(store: AioStore, start: int = 0, end: int = len(BODY)) -> bytes:
    pieces: list[bytes] = []
    await store.get(ITEM, start, end - start, pieces.append)
    return b"".join(pieces)


async def test_every_get_carries_its_range_and_its_version() -> None:
    async with BadServer(partial()) as bad, store_on(bad) as store:
        assert await get(store, 100, 200) == BODY[100:200]
    assert (bad.seen[0]["range"], bad.seen[0]["if-match"]) == ("bytes=100-199", '"v1"')


async def test_body_that_breaks_off_is_continued_where_it_broke() -> None:
    async with BadServer(partial(upto=1000), partial(upto=0), partial()) as bad, store_on(bad) as store:
        assert await get(store) == BODY
    assert [request["range"].split("-")[0] for request in bad.seen] == ["bytes=0", "bytes=1000", "bytes=1000"]


async def test_body_continued_from_another_version_is_estale() -> None:
    async with BadServer(partial(upto=1000), partial(etag="v2")) as bad, store_on(bad) as store:
        with pytest.raises(OSError, match="another version") as info:
            await get(store)
    assert info.value.errno == errno.ESTALE


async def test_other_size_behind_the_same_etag_is_estale() -> None:
    async with BadServer(partial(total=999_999)) as bad, store_on(bad) as store:
        with pytest.raises(OSError, match="size is 999999 now") as info:
            await get(store)
    assert info.value.errno == errno.ESTALE


async def test_server_that_passes_over_range_is_not_believed() -> None:
    whole = plain(200, BODY, 'ETag: "v1"\r\n')
    async with BadServer(whole) as bad, store_on(bad) as store:
        assert await get(store) == BODY
        with pytest.raises(OSError, match="were asked for") as info:
            await get(store, 100, 200)
    assert info.value.errno == errno.EIO


async def test_range_that_is_not_said_is_not_believed_even_without_a_length() -> None:
    async def whole(line: str, asked: dict[str, str], writer: asyncio.StreamWriter) -> None:
        writer.write(b'HTTP/1.1 200 X\r\nConnection: close\r\nETag: "v1"\r\n\r\n' + BODY[:50])
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.write(BODY[50:100])
        await writer.drain()
        writer.close()

    async with BadServer(whole) as bad, store_on(bad) as store:
        with pytest.raises(OSError, match="were asked for") as info:
            await get(store, 100, 200)
    assert info.value.errno == errno.EIO


async def test_passing_errors_are_retried_and_lasting_ones_are_not() -> None:
    async with BadServer(error(503, "SlowDown"), error(500, "InternalError"), partial()) as bad, store_on(bad) as store:
        assert await get(store, 0, 10) == BODY[:10]
    assert len(bad.seen) == 3
    async with BadServer(error(403, "AccessDenied"), partial()) as bad, store_on(bad) as store:
        with pytest.raises(OSError, match=r"GetObject 'f': 403 AccessDenied: m \(request R4\)") as info:
            await get(store, 0, 10)
    assert info.value.errno == errno.EACCES
    assert len(bad.seen) == 1


async def test_store_that_never_recovers_is_an_errno_with_its_own_words(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "pyfusekit.s3fs")
    async with BadServer(error(500, "InternalError")) as bad, store_on(bad) as store:
        store.attempts = 3
        with pytest.raises(OSError, match="InternalError") as info:
            await get(store, 0, 10)
    assert info.value.errno == errno.EIO
    assert len(bad.seen) == 3
    assert [line.endswith("-> EIO") for line in caplog.messages] == [False, False, True]


@pytest.mark.parametrize("answer", [stall, stall_in_body])
async def test_silent_server_is_etimedout_at_the_deadline(answer: Answer) -> None:
    async with BadServer(answer) as bad, store_on(bad, deadline=Duration(0.3)) as store:
        with pytest.raises(OSError, match=r".") as info:
            await get(store, 0, 10 if answer is stall else len(BODY))
    assert info.value.errno == errno.ETIMEDOUT


async def test_dripping_server_is_etimedout_at_the_deadline() -> None:
    async def drip(line: str, asked: dict[str, str], writer: asyncio.StreamWriter) -> None:
        headers = f'ETag: "v1"\r\nContent-Range: bytes 0-999/{len(BODY)}\r\n'
        writer.write(f"HTTP/1.1 206 X\r\nContent-Length: 1000\r\n{headers}\r\n".encode())
        for at in range(1000):
            writer.write(BODY[at : at + 1])
            await asyncio.sleep(0.05)

    async with BadServer(drip) as bad, store_on(bad, deadline=Duration(0.5)) as store:
        with pytest.raises(OSError, match="not done within") as info:
            await get(store, 0, 1000)
    assert info.value.errno == errno.ETIMEDOUT


async def test_deadline_does_not_count_waiting_for_others() -> None:
    async def slow(line: str, asked: dict[str, str], writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.3)
        await partial()(line, asked, writer)

    async with BadServer(slow) as bad, store_on(bad, max_connections=1, deadline=Duration(1.5)) as store:
        parts = await asyncio.gather(*(get(store, n, n + 10) for n in range(8)))
    assert parts == [BODY[n : n + 10] for n in range(8)]


@pytest.mark.parametrize("answer", [stall, stall_in_body])
async def test_interrupt_ends_the_http_request(answer: Answer) -> None:
    async with BadServer(answer) as bad, store_on(bad) as store:
        task = asyncio.ensure_future(get(store))
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

    async def slow(line: str, asked: dict[str, str], writer: asyncio.StreamWriter) -> None:
        nonlocal most, now
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.02)
        now -= 1
        await partial()(line, asked, writer)

    async with BadServer(slow) as bad, store_on(bad, max_connections=4) as store:
        parts = await asyncio.gather(*(get(store, n * 10, n * 10 + 10) for n in range(20)))
    assert parts == [BODY[n * 10 : n * 10 + 10] for n in range(20)]
    assert most == 4


@pytest.mark.parametrize("body", [b"<html><body>hello</body></html>", b"It works!", b""])
async def test_web_server_that_is_no_store_is_unreachable(body: bytes) -> None:
    async with BadServer(plain(200, body, "Content-Type: text/html\r\n")) as bad:
        with pytest.raises(MountError, match="does not answer as S3 does") as info:
            await S3FS("bucket", options(bad.url)).init()
    assert info.value.kind == "source-unreachable"


async def test_refused_keys_are_named() -> None:
    async with BadServer(error(403, "InvalidAccessKeyId")) as bad:
        with pytest.raises(MountError, match=r"InvalidAccessKeyId \(key testing from env") as info:
            await S3FS("bucket", options(bad.url)).init()
    assert info.value.kind == "access-denied"


async def test_page_token_that_repeats_does_not_list_for_ever() -> None:
    page = (
        b"<ListBucketResult><IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken>"
        b"<Contents><Key>k</Key><Size>1</Size><ETag>e</ETag><LastModified>2026-01-01T00:00:00Z</LastModified></Contents>"
        b"</ListBucketResult>"
    )
    async with BadServer(plain(200, page)) as bad, running("bucket", options(bad.url)) as fs:
        walk = fs.opendir(ME, 1, 0)
        with pytest.raises(OSError, match="repeats its page token") as info:
            _ = [entry async for entry in walk.entries(2, plus=True)]
    assert info.value.errno == errno.EIO
