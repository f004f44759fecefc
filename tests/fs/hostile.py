"""A web server that does everything wrong, on 127.0.0.1, in a thread of its own. A mode for each path: ``/MODE/anything``.

It writes to the socket by itself, so that it can lie at will, and notes every request. What it does wrong the SECOND time it
counts for each path. Other modes than those of ``MODES`` are 404.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import functools
import gzip
import random
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

SIZE = 8 << 20
DATA = random.Random(4).randbytes(SIZE)
"""What every file is, until it changes."""
OTHER = random.Random(5).randbytes(SIZE)
"""What it is then: as many bytes, and not one block the same."""
OLD = "Mon, 01 Jan 2024 10:00:00 GMT"
NEWER = "Tue, 02 Jan 2024 10:00:00 GMT"
CHANGES_AFTER = 3
"""GETs until a file changes."""
CUT = 300_001
"""Bytes after which a body is cut."""


@dataclass
class Asked:
    """A request as it came."""

    method: str
    target: str
    headers: Mapping[str, str]
    number: int
    """How many there were of this method and path, this one included."""
    at: float = field(default_factory=time.monotonic)

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    @property
    def mode(self) -> str:
        return self.path.split("/")[1]

    def span(self, size: int) -> tuple[int, int] | None:
        """Return the range that is asked for, [start, end); None without one."""
        text = self.headers.get("range", "")
        if not text.startswith("bytes="):
            return None
        first, _, last = text.removeprefix("bytes=").partition("-")
        return int(first), min(size, int(last) + 1 if last else size)


@dataclass
class File:
    """What an honest server would have."""

    data: bytes = DATA
    etag: str = '"v1"'
    modified: str = OLD


class Hangup(Exception):
    """The connection is closed at once."""


class Reply:
    """One answer on its way."""

    def __init__(self, writer: asyncio.StreamWriter, asked: Asked) -> None:
        self.writer = writer
        self.asked = asked

    async def head(self, status: str, headers: Mapping[str, str | None], *, date: bool = True) -> None:
        lines = [f"HTTP/1.1 {status}", *([f"Date: {email.utils.formatdate(usegmt=True)}"] if date else [])]
        lines += [f"{name}: {value}" for name, value in headers.items() if value is not None]
        await self.send("\r\n".join([*lines, "", ""]).encode())

    async def send(self, data: bytes) -> None:
        if self.asked.method != "HEAD" or data.startswith(b"HTTP/"):
            self.writer.write(data)
            await self.writer.drain()

    async def empty(self, status: str, **headers: str) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        await self.head(status, {**named, "Content-Length": "0"})

    async def honest(self, file: File, **changed: str | None) -> None:
        """Answer as RFC 9110 has it; *changed* headers (None: left out) are the lie."""
        asked, size = self.asked, len(file.data)
        said = {"ETag": file.etag or None, "Last-Modified": file.modified or None, "Accept-Ranges": "bytes"}
        said["Content-Type"] = "application/octet-stream"
        more = {name.replace("_", "-"): value for name, value in changed.items()}
        span = asked.span(size)
        condition = asked.headers.get("if-range", "")
        if condition and condition not in (file.etag, file.modified):
            span = None
        if span is None or asked.method == "HEAD":
            await self.head("200 OK", {**said, "Content-Length": str(size), **more})
            await self.send(file.data)
        elif span[0] >= size:
            await self.head("416 Range Not Satisfiable", {"Content-Range": f"bytes */{size}", "Content-Length": "0", **more})
        else:
            start, end = span
            said |= {"Content-Range": f"bytes {start}-{end - 1}/{size}", "Content-Length": str(end - start)}
            await self.head("206 Partial Content", {**said, **more})
            await self.send(file.data[start:end])

    async def whole(self, file: File, data: bytes | None = None, **changed: str | None) -> None:
        """Answer 200 with everything, whatever was asked for."""
        more = {name.replace("_", "-"): value for name, value in changed.items()}
        data = file.data if data is None else data
        said = {"ETag": file.etag or None, "Last-Modified": file.modified or None, "Content-Length": str(len(data))}
        await self.head("200 OK", {**said, **more})
        await self.send(data)

    async def chunked(self, file: File, **changed: str | None) -> None:
        """Answer 200 in chunks, which tell no length."""
        more = {name.replace("_", "-"): value for name, value in changed.items()}
        said = {"ETag": file.etag or None, "Last-Modified": file.modified or None, "Transfer-Encoding": "chunked"}
        await self.head("200 OK", {**said, **more})
        for start in range(0, len(file.data), 100_003):
            piece = file.data[start : start + 100_003]
            await self.send(b"%x\r\n%b\r\n" % (len(piece), piece))
        await self.send(b"0\r\n\r\n")


Mode = Callable[["HostileServer", Asked, Reply], Awaitable[None]]
MODES: dict[str, Mode] = {}


def mode(function: Mode) -> Mode:
    """Make *function* what is done at the path of its name."""
    MODES[function.__name__.replace("_", "-")] = function
    return function


class HostileServer:
    """``with HostileServer() as server:`` *url(mode)* is a file there; *seen* are the requests so far."""

    def __init__(self, other: HostileServer | None = None) -> None:
        self.other = other
        """Where redirects to another host lead: another port is another origin."""
        self.seen: list[Asked] = []
        self.files: dict[str, File] = {}
        """By path; made when it is asked for first. Tests may put others there."""
        self.valid = ""
        """The signature that is good at the moment."""
        self._counts: Counter[tuple[str, str]] = Counter()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hostile", daemon=True)
        self._writers: set[asyncio.StreamWriter] = set()

    def __enter__(self) -> HostileServer:
        self._thread.start()
        self._ready.wait(10)
        return self

    def __exit__(self, *exc: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def url(self, mode: str, name: str = "file.bin") -> str:
        return f"{self.root}/{mode}/{name}"

    def asked(self, method: str, mode: str) -> list[Asked]:
        """Return the requests of a method for the files of a mode."""
        return [one for one in self.seen if one.method == method and one.mode == mode]

    def file(self, asked: Asked) -> File:
        return self.files.setdefault(asked.path, File())

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.root = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._ready.set()
        await self._stop.wait()
        server.close()
        for writer in self._writers:
            writer.transport.abort()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, Hangup, asyncio.CancelledError):
                while True:
                    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                    method, target, _ = head[0].split(" ")
                    rows = (line.partition(":") for line in head[1:] if line)
                    headers = {name.strip().lower(): value.strip() for name, _, value in rows}
                    path = target.partition("?")[0]
                    self._counts[method, path] += 1
                    asked = Asked(method, target, headers, self._counts[method, path])
                    self.seen.append(asked)
                    reply = Reply(writer, asked)
                    await MODES.get(asked.mode, missing)(self, asked, reply)
                    await writer.drain()
        finally:
            self._writers.discard(writer)
            writer.transport.abort() if writer.transport.get_write_buffer_size() else writer.close()


async def missing(server: HostileServer, asked: Asked, reply: Reply) -> None:
    await reply.empty("404 Not Found")


# What is right, and what is legal but strange.


@mode
async def honest(server: HostileServer, asked: Asked, reply: Reply) -> None:
    await reply.honest(server.file(asked))


@mode
async def empty(server: HostileServer, asked: Asked, reply: Reply) -> None:
    await reply.whole(server.file(asked), b"")


@mode
async def weak(server: HostileServer, asked: Asked, reply: Reply) -> None:
    await reply.honest(File(etag='W/"v1"'))


@mode
async def no_validator(server: HostileServer, asked: Asked, reply: Reply) -> None:
    await reply.honest(File(etag="", modified=""))


@mode
async def fresh(server: HostileServer, asked: Asked, reply: Reply) -> None:
    """Changed so lately that Last-Modified may stand for two versions."""
    await reply.honest(File(etag="", modified="Fri, 01 Jan 2100 10:00:00 GMT"))


@mode
async def short_206(server: HostileServer, asked: Asked, reply: Reply) -> None:
    """Never more than 1,000,000 bytes at a time, which is allowed."""
    span = asked.span(SIZE)
    if span is not None and asked.method == "GET":
        asked.headers = {**asked.headers, "range": f"bytes={span[0]}-{min(span[1], span[0] + 1_000_000) - 1}"}
    await reply.honest(server.file(asked))


@mode
async def long_206(server: HostileServer, asked: Asked, reply: Reply) -> None:
    """More than was asked for, and says so."""
    span = asked.span(SIZE)
    if span is not None:
        asked.headers = {**asked.headers, "range": f"bytes={span[0]}-"}
    await reply.honest(server.file(asked))


@mode
async def bare_206(server: HostileServer, asked: Asked, reply: Reply) -> None:
    """Ranges do not tell their version."""
    if asked.span(SIZE) is None:
        await reply.honest(server.file(asked))
    else:
        await reply.honest(server.file(asked), ETag=None, Last_Modified=None)


@mode
async def bare_weak(server: HostileServer, asked: Asked, reply: Reply) -> None:
    """Ranges do not tell their version, and there is none that If-Range could carry."""
    file = File(etag='W/"v1"')
    await (reply.honest(file) if asked.span(SIZE) is None else reply.honest(file, ETag=None, Last_Modified=None))


@mode
async def bare_changes(server: HostileServer, asked: Asked, reply: Reply) -> None:
    """Ranges do not tell their version, If-Range is not known, and the file changes."""
    asked.headers = {name: value for name, value in asked.headers.items() if name != "if-range"}
    file = File(OTHER, '"v2"', NEWER) if _changing(server, asked) else File()
    await (reply.honest(file) if asked.span(SIZE) is None else reply.honest(file, ETag=None, Last_Modified=None))


@mode
async def bare_405(server: HostileServer, asked: Asked, reply: Reply) -> None:
    """And HEAD is refused, so that only the whole file tells it."""
    await (reply.empty("405 Method Not Allowed") if asked.method == "HEAD" else bare_changes(server, asked, reply))


async def in_parts(asked: Asked, reply: Reply, spans: list[tuple[int, int]], total: int = SIZE) -> None:
    body = b"some words before\r\n"
    for start, end in spans:
        body += b"--THIS--STRING\r\nContent-Type: text/plain\r\n"
        body += b"Content-Range: bytes %d-%d/%d\r\n\r\n" % (start, end - 1, total)
        body += DATA[start:end] + b"\r\n"
    body += b"--THIS--STRING--\r\n"
    said = {"Content-Type": 'multipart/byteranges; boundary="THIS--STRING"', "ETag": '"v1"', "Content-Length": str(len(body))}
    await reply.head("206 Partial Content", said)
    await reply.send(body)


@mode
async def multipart(server: HostileServer, asked: Asked, reply: Reply) -> None:
    """A range in two parts, the second one first."""
    span = asked.span(SIZE)
    if span is None or asked.method == "HEAD":
        await reply.honest(server.file(asked))
        return
    middle = (span[0] + span[1]) // 2
    spans = [(middle, span[1]), (span[0], middle)] if middle > span[0] else [span]
    await in_parts(asked, reply, spans)


@mode
async def multipart_holes(server: HostileServer, asked: Asked, reply: Reply) -> None:
    """A range in two parts with a hole between, which is not in the answer."""
    span = asked.span(SIZE)
    if span is None or asked.method == "HEAD":
        await reply.honest(server.file(asked))
        return
    third = (span[1] - span[0]) // 3
    await in_parts(asked, reply, [(span[0], span[0] + third), (span[1] - third, span[1])] if third else [span])


@mode
async def multipart_total(server: HostileServer, asked: Asked, reply: Reply) -> None:
    """A part of another file."""
    span = asked.span(SIZE)
    if span is None or asked.method == "HEAD":
        await reply.honest(server.file(asked))
    else:
        await in_parts(asked, reply, [span], SIZE + 1)


# Ranges are ignored, HEAD is refused, there is no length.


@mode
async def ignores_range(server: HostileServer, asked: Asked, reply: Reply) -> None:
    await reply.whole(server.file(asked))


@mode
async def ignores_range_unversioned(server: HostileServer, asked: Asked, reply: Reply) -> None:
    await reply.whole(File(etag="", modified=""))


@mode
async def ignores_range_cut(server: HostileServer, asked: Asked, reply: Reply) -> None:
    """And cuts every second body."""
    if asked.method == "GET" and asked.number % 2:
        await reply.head("200 OK", {"ETag": '"v1"', "Content-Length": str(SIZE)})
        await reply.send(DATA[:CUT])
        raise Hangup
    await reply.whole(server.file(asked))


@mode
async def ignores_range_changing(server: HostileServer, asked: Asked, reply: Reply) -> None:
    """No version is told, every second body is cut, and what follows is another file."""
    if asked.method == "GET":
        data = DATA if asked.number % 2 else OTHER
        await reply.head("200 OK", {"Content-Length": str(SIZE)})
        await reply.send(data[:CUT])
        raise Hangup
    await reply.whole(File(etag="", modified=""))


@mode
async def head_405(server: HostileServer, asked: Asked, reply: Reply) -> None:
    if asked.method == "HEAD":
        await reply.empty("405 Method Not Allowed", Allow="GET")
    else:
        await reply.honest(server.file(asked))


@mode
async def head_404(server: HostileServer, asked: Asked, reply: Reply) -> None:
    if asked.method == "HEAD":
        await reply.empty("404 Not Found")
    else:
        await reply.honest(server.file(asked))


@mode
async def head_lies(server: HostileServer, asked: Asked, reply: Reply) -> None:
    if asked.method == "HEAD":
        await reply.head("200 OK", {"ETag": '"v1"', "Content-Length": "77"})
    else:
        await reply.honest(server.file(asked))


@mode
async def head_zero(server: HostileServer, asked: Asked, reply: Reply) -> None:
    if asked.method == "HEAD":
        await reply.empty("200 OK", ETag='"v1"')
    else:
        await reply.honest(server.file(asked))


@mode
async def chunked(server: HostileServer, asked: Asked, reply: Reply) -> None:
    await reply.chunked(server.file(asked))


@mode
async def chunked_unversioned(server: HostileServer, asked: Asked, reply: Reply) -> None:
    await reply.chunked(File(etag="", modified=""))


@mode
async def until_close(server: HostileServer, asked: Asked, reply: Reply) -> None:
    """As HTTP/1.0 did: the body ends with the connection."""
    reply.writer.write(b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\n")
    await reply.send(DATA)
    raise Hangup


@functools.cache
def _compressed() -> bytes:
    return gzip.compress(DATA, 1)


@mode
async def gzip_always(server: HostileServer, asked: Asked, reply: Reply) -> None:
    """Compresses what it was asked not to; no ranges."""
    await reply.whole(server.file(asked), _compressed(), Content_Encoding="gzip")


@mode
async def gzip_asked(server: HostileServer, asked: Asked, reply: Reply) -> None:
    """Compresses for who takes it."""
    if "gzip" in asked.headers.get("accept-encoding", ""):
        await gzip_always(server, asked, reply)
    else:
        await reply.honest(server.file(asked))


@mode
async def encoded_206(server: HostileServer, asked: Asked, reply: Reply) -> None:
    """Ranges of something compressed."""
    await reply.honest(server.file(asked), Content_Encoding=None if asked.span(SIZE) is None else "gzip")


@mode
async def brotli(server: HostileServer, asked: Asked, reply: Reply) -> None:
    await reply.whole(server.file(asked), Content_Encoding="br")


# The file changes.


def _changing(server: HostileServer, asked: Asked) -> bool:
    return sum(one.method == "GET" and one.path == asked.path for one in server.seen) > CHANGES_AFTER


@mode
async def changes(server: HostileServer, asked: Asked, reply: Reply) -> None:
    await reply.honest(File(OTHER, '"v2"', NEWER) if _changing(server, asked) else File())


@mode
async def changes_no_if_range(server: HostileServer, asked: Asked, reply: Reply) -> None:
    """And the server knows no If-Range: it sends ranges of the new version."""
    asked.headers = {name: value for name, value in asked.headers.items() if name != "if-range"}
    await reply.honest(File(OTHER, '"v2"', NEWER) if _changing(server, asked) else File())


@mode
async def changes_unnamed(server: HostileServer, asked: Asked, reply: Reply) -> None:
    """The new version has no ETag, and If-Range is not known."""
    asked.headers = {name: value for name, value in asked.headers.items() if name != "if-range"}
    await reply.honest(File(OTHER, "", "") if _changing(server, asked) else File())


@mode
async def changes_date(server: HostileServer, asked: Asked, reply: Reply) -> None:
    """There is nothing but Last-Modified."""
    await reply.honest(File(OTHER, "", NEWER) if _changing(server, asked) else File(etag=""))


@mode
async def changes_weak(server: HostileServer, asked: Asked, reply: Reply) -> None:
    asked.headers = {name: value for name, value in asked.headers.items() if name != "if-range"}
    await reply.honest(File(OTHER, 'W/"v2"', NEWER) if _changing(server, asked) else File(etag='W/"v1"'))


@mode
async def changes_size(server: HostileServer, asked: Asked, reply: Reply) -> None:
    """There is no validator, but the new version is longer."""
    await reply.honest(File(OTHER + b"more", "", "") if _changing(server, asked) else File(etag="", modified=""))


@mode
async def shrinks(server: HostileServer, asked: Asked, reply: Reply) -> None:
    """There is no validator: ranges beyond the new end are 416."""
    await reply.honest(File(OTHER[:4_000_000], "", "") if _changing(server, asked) else File(etag="", modified=""))


@mode
async def vanishes(server: HostileServer, asked: Asked, reply: Reply) -> None:
    if _changing(server, asked):
        await reply.empty("404 Not Found")
    else:
        await reply.honest(server.file(asked))


@mode
async def refuses_412(server: HostileServer, asked: Asked, reply: Reply) -> None:
    if _changing(server, asked):
        await reply.empty("412 Precondition Failed")
    else:
        await reply.honest(server.file(asked))


# The network, and patience.


@mode
async def cut(server: HostileServer, asked: Asked, reply: Reply) -> None:
    """Every second body is cut."""
    span = asked.span(SIZE)
    if asked.method == "GET" and span is not None and asked.number % 2 == 0:
        start, end = span
        said = {"ETag": '"v1"', "Content-Range": f"bytes {start}-{end - 1}/{SIZE}", "Content-Length": str(end - start)}
        await reply.head("206 Partial Content", said)
        await reply.send(DATA[start : min(end, start + CUT)])
        if end - start > CUT:
            raise Hangup
        return
    await reply.honest(server.file(asked))


async def _busy(status: str, server: HostileServer, asked: Asked, reply: Reply, after: str) -> None:
    if asked.method == "GET" and asked.number == 2:
        await reply.empty(status, Retry_After=after)
    else:
        await reply.honest(server.file(asked))


@mode
async def busy_429(server: HostileServer, asked: Asked, reply: Reply) -> None:
    await _busy("429 Too Many Requests", server, asked, reply, "1")


@mode
async def busy_503_date(server: HostileServer, asked: Asked, reply: Reply) -> None:
    await _busy("503 Service Unavailable", server, asked, reply, email.utils.formatdate(time.time() + 1, usegmt=True))


@mode
async def busy_forever(server: HostileServer, asked: Asked, reply: Reply) -> None:
    if asked.method == "GET":
        await reply.empty("503 Service Unavailable", Retry_After="86400")
    else:
        await reply.honest(server.file(asked))


@mode
async def silent(server: HostileServer, asked: Asked, reply: Reply) -> None:
    """Never answers the second GET, nor any behind it."""
    if asked.method == "GET" and asked.number >= 2:
        await asyncio.sleep(3600)
    await reply.honest(server.file(asked))


@mode
async def stalls(server: HostileServer, asked: Asked, reply: Reply) -> None:
    """The second body stops in the middle and the connection stays."""
    span = asked.span(SIZE)
    if asked.method == "GET" and span is not None and asked.number == 2:
        start, end = span
        said = {"ETag": '"v1"', "Content-Range": f"bytes {start}-{end - 1}/{SIZE}", "Content-Length": str(end - start)}
        await reply.head("206 Partial Content", said)
        await reply.send(DATA[start : start + (end - start) // 2])
        await asyncio.sleep(3600)
    await reply.honest(server.file(asked))


@mode
async def hangs_up(server: HostileServer, asked: Asked, reply: Reply) -> None:
    """Closes at once, for ever."""
    if asked.method == "GET":
        raise Hangup
    await reply.honest(server.file(asked))


@mode
async def half_status(server: HostileServer, asked: Asked, reply: Reply) -> None:
    if asked.method == "GET":
        reply.writer.write(b"HTTP/1.1 20")
        await reply.writer.drain()
        raise Hangup
    await reply.honest(server.file(asked))


@mode
async def large_headers(server: HostileServer, asked: Asked, reply: Reply) -> None:
    if asked.method == "GET":
        await reply.honest(server.file(asked), X_Large="x" * (1 << 20))
    else:
        await reply.honest(server.file(asked))


# Redirects.


@mode
async def redirects(server: HostileServer, asked: Asked, reply: Reply) -> None:
    """To another host."""
    target = (server.other or server).url("honest", asked.path.rsplit("/", 1)[1])
    await reply.empty("302 Found", Location=target)


@mode
async def signs(server: HostileServer, asked: Asked, reply: Reply) -> None:
    """To a URL of another host with a signature that is good for three requests."""
    there = server.other or server
    there.valid = f"s{len(server.seen)}"
    await reply.empty("302 Found", Location=f"{there.url('signed')}?signature={there.valid}")


@mode
async def signed(server: HostileServer, asked: Asked, reply: Reply) -> None:
    used = sum(one.target == asked.target for one in server.seen)
    if not asked.target.endswith(f"={server.valid}") or used > CHANGES_AFTER:
        await reply.empty("403 Forbidden")
    else:
        await reply.honest(server.file(asked))


@mode
async def signs_never(server: HostileServer, asked: Asked, reply: Reply) -> None:
    """To a URL that is good for HEAD only."""
    await reply.empty("302 Found", Location=server.url("signed-never"))


@mode
async def signed_never(server: HostileServer, asked: Asked, reply: Reply) -> None:
    if asked.method == "HEAD":
        await reply.honest(server.file(asked))
    else:
        await reply.empty("403 Forbidden")


@mode
async def signs_gone(server: HostileServer, asked: Asked, reply: Reply) -> None:
    """To a URL that expires, and then the file is gone."""
    there = server.other or server
    name = asked.path.rsplit("/", 1)[1]
    if any(one.number > CHANGES_AFTER and one.path.endswith(name) for one in there.asked("GET", "expires")):
        await reply.empty("404 Not Found")
    else:
        await reply.empty("302 Found", Location=there.url("expires", name))


@mode
async def expires(server: HostileServer, asked: Asked, reply: Reply) -> None:
    """Good for a few GETs."""
    if asked.method == "GET" and asked.number > CHANGES_AFTER:
        await reply.empty("403 Forbidden")
    else:
        await reply.honest(server.file(asked))


@mode
async def loop(server: HostileServer, asked: Asked, reply: Reply) -> None:
    await reply.empty("302 Found", Location=asked.path)


@mode
async def bomb(server: HostileServer, asked: Asked, reply: Reply) -> None:
    """Redirects that never end, each to another URL that is twice as long."""
    await reply.empty("302 Found", Location=f"{asked.path}{asked.path.rsplit('/', 1)[1][:2000]}")


# Lies.


@mode
async def wrong_start(server: HostileServer, asked: Asked, reply: Reply) -> None:
    span = asked.span(SIZE)
    if span is not None and span[0] and asked.method == "GET":
        asked.headers = {**asked.headers, "range": f"bytes={span[0] - 4096}-{span[1] - 4097}"}
    await reply.honest(server.file(asked))


@mode
async def wrong_total(server: HostileServer, asked: Asked, reply: Reply) -> None:
    span = asked.span(SIZE)
    lie = None if span is None else {"Content_Range": f"bytes {span[0]}-{span[1] - 1}/{SIZE + 5}"}
    await reply.honest(server.file(asked), **(lie or {}))


@mode
async def no_content_range(server: HostileServer, asked: Asked, reply: Reply) -> None:
    if asked.method == "HEAD" or asked.span(SIZE) is None:
        await reply.honest(server.file(asked))
    else:
        await reply.honest(server.file(asked), Content_Range=None)


@mode
async def says_204(server: HostileServer, asked: Asked, reply: Reply) -> None:
    if asked.method == "HEAD":
        await reply.honest(server.file(asked))
    else:
        await reply.head("204 No Content", {})


@mode
async def says_304(server: HostileServer, asked: Asked, reply: Reply) -> None:
    if asked.method == "HEAD":
        await reply.honest(server.file(asked))
    else:
        await reply.head("304 Not Modified", {})


@mode
async def length_too_long(server: HostileServer, asked: Asked, reply: Reply) -> None:
    """More is promised than comes, of a file that is sent whole."""
    await reply.head("200 OK", {"ETag": '"v1"', "Content-Length": str(SIZE + 1000)})
    await reply.send(DATA)
    if asked.method == "GET":
        raise Hangup


@mode
async def length_too_short(server: HostileServer, asked: Asked, reply: Reply) -> None:
    """More comes than a range's Content-Length says, and what is more is of another file."""
    span = asked.span(SIZE)
    await reply.honest(server.file(asked))
    if asked.method == "GET" and span is not None:
        await reply.send(OTHER[:10_000])


@mode
async def range_length_short(server: HostileServer, asked: Asked, reply: Reply) -> None:
    """Half of what Content-Range says comes, as Content-Length says."""
    span = asked.span(SIZE)
    if span is None or asked.method == "HEAD":
        await reply.honest(server.file(asked))
        return
    start, end = span
    half = max(1, (end - start) // 2)
    said = {"ETag": '"v1"', "Content-Range": f"bytes {start}-{end - 1}/{SIZE}", "Content-Length": str(half)}
    await reply.head("206 Partial Content", said)
    await reply.send(DATA[start : start + half])


__all__ = ["CHANGES_AFTER", "CUT", "DATA", "MODES", "OTHER", "SIZE", "Asked", "File", "HostileServer", "Reply"]
