"""A server that does everything wrong, for the tests of the store; and what those tests share."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from pyfusekit.core import Url
from pyfusekit.fs.s3fs.options import S3Options
from pyfusekit.fs.s3fs.remote.aio import AioStore
from pyfusekit.fs.s3fs.remote.client import Client
from pyfusekit.fs.s3fs.remote.errors import StoreError
from pyfusekit.fs.s3fs.remote.store import Object


@functools.cache
def _models() -> Any:
    from botocore.loaders import create_loader

    return create_loader()


def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """Set keys for a server on this machine, and leave nothing of who runs the tests."""
    for name in (
        "AWS_PROFILE",
        "AWS_ENDPOINT_URL",
        "AWS_ENDPOINT_URL_S3",
        "AWS_SESSION_TOKEN",
        "AWS_REGION",
        "AWS_DEFAULT_REGION",
        "AWS_CA_BUNDLE",
        *("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"),
    ):
        monkeypatch.delenv(name, raising=False)
    open_session = Client.open_session

    def with_models(self: Client) -> None:
        open_session(self)
        self.session.register_component("data_loader", _models())

    # botocore's models take 0.1 s to load for each session.
    monkeypatch.setattr(Client, "open_session", with_models)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def options(url: str, **more: Any) -> S3Options:
    return S3Options(**{"endpoint_url": Url(url), "region": "us-east-1", **more})


@dataclass(frozen=True)
class Asked:
    """A request as it came."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes

    def __getitem__(self, name: str) -> str:
        return self.headers[name]

    @property
    def credential(self) -> list[str]:
        """Key, day, region and service of the signature."""
        found = re.search(r"Credential=([^,]+)", self.headers["authorization"])
        assert found
        return found[1].split("/")


Answer = Callable[[Asked, asyncio.StreamWriter], Awaitable[None]]


class BadServer:
    """Answers each request with the next of *answers*, the last one for ever. *broken* is set when a client hangs up on it."""

    def __init__(self, *answers: Answer, certificate: Path | None = None) -> None:
        self._certificate = certificate
        self.answers = list(answers)
        self.seen: list[Asked] = []
        self.broken = asyncio.Event()
        self.asked = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> BadServer:
        context = None
        if self._certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self._certificate)
        self._server = await asyncio.start_server(self._begin, "127.0.0.1", 0, limit=1 << 20, ssl=context)
        self.url = f"{'https' if context else 'http'}://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
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
        requests: asyncio.Queue[Asked] = asyncio.Queue()
        answering = asyncio.ensure_future(self._answer(requests, writer))
        try:
            while True:
                requests.put_nowait(await self._read(reader))
        except (asyncio.IncompleteReadError, ConnectionError):
            self.broken.set()
        finally:
            answering.cancel()
            await asyncio.gather(answering, return_exceptions=True)
            writer.close()

    async def _read(self, reader: asyncio.StreamReader) -> Asked:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {line.partition(":")[0].lower(): line.partition(":")[2].strip() for line in head[1:] if line}
        method, target, _ = head[0].split(" ")
        body = await self.read_body(reader, int(headers.get("content-length", 0)))
        query = {name: values[0] for name, values in parse_qs(urlsplit(target).query, keep_blank_values=True).items()}
        return Asked(method, target.partition("?")[0], query, headers, body)

    async def read_body(self, reader: asyncio.StreamReader, size: int) -> bytes:
        return await reader.readexactly(size)

    async def _answer(self, requests: asyncio.Queue[Asked], writer: asyncio.StreamWriter) -> None:
        while True:
            asked = await requests.get()
            self.seen.append(asked)
            answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            self.asked.set()
            await answer(asked, writer)
            await writer.drain()


class DeafServer(BadServer):
    """Reads the head of a request and no more."""

    async def read_body(self, reader: asyncio.StreamReader, size: int) -> bytes:
        if size:
            self.asked.set()
            await asyncio.Event().wait()
        return b""


def plain(status: int, body: bytes = b"", headers: str = "", *, length: int | None = None) -> Answer:
    """Answer with *body*, of which *length* bytes are promised."""

    async def answer(asked: Asked, writer: asyncio.StreamWriter) -> None:
        said = len(body) if length is None else length
        sent = b"" if asked.method == "HEAD" else body
        writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: {said}\r\n{headers}\r\n".encode() + sent)
        if said > len(body):
            await writer.drain()
            writer.close()

    return answer


def error_body(code: str, more: str = "") -> bytes:
    return f'<?xml version="1.0"?>\n<Error><Code>{code}</Code><Message>m</Message>{more}</Error>'.encode()


def error(status: int, code: str, more: str = "", *, ahead: float = 0) -> Answer:
    """Answer with S3's *code*; the server's clock is *ahead* of ours by so many seconds."""
    import time

    date = formatdate(time.time() + ahead, usegmt=True)
    return plain(status, error_body(code, more), f"x-amz-request-id: R4\r\nDate: {date}\r\n")


def written(etag: str = "v1") -> Answer:
    """Answer a write."""
    return plain(200, b"", f'ETag: "{etag}"\r\nDate: Sun, 22 Nov 2026 10:11:12 GMT\r\n')


async def hang_up(asked: Asked, writer: asyncio.StreamWriter) -> None:
    """Lose the answer."""
    writer.close()


async def stall(asked: Asked, writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


@contextlib.asynccontextmanager
async def store_on(server: Any, bucket: str = "bucket", *, thin: bool = True, **more: Any) -> AsyncIterator[AioStore]:
    """A store on a server, whose failures are gathered in ``store.reported``."""
    reported: list[tuple[StoreError, str, str]] = []
    store = AioStore(bucket, options(server.url, **more), report=lambda *failure: reported.append(failure))
    store.link.use_thin = thin
    store.reported = reported  # type: ignore[attr-defined]
    await store.start()
    try:
        yield store
    finally:
        await store.close()


async def read(store: Any, item: Object, start: int = 0, end: int | None = None, **more: Any) -> bytes:
    pieces: list[bytes] = []
    end = item.size if end is None else end
    await store.get(item, start, end - start, pieces.append, **more)
    return b"".join(pieces)


def refused(info: pytest.ExceptionInfo[StoreError]) -> tuple[Any, str]:
    return info.value.errno, info.value.code
