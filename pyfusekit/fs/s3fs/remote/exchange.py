"""One request and its answer over HTTP/1.1, on connections of our own: what is asked thousands of times a second.

A HEAD costs 0.08 ms of CPU, its signature and the system calls included, and 0.22 through aiohttp's client: a head is written
as bytes, an answer is read where the loop received it, and a body's bytes go to who wants them without a queue between. It
knows what a store sends: Content-Length, chunks (RFC 9112 section 7.1) and bodies that end with the connection. Whatever
else comes is no answer.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import ssl

KEPT_S = 60.0
"""Seconds that an unused connection is kept."""
_HEAD_BYTES = 64 << 10
_LINE_BYTES = 8 << 10
_ERROR_BYTES = 64 << 10
"""Of the body of a refusal so much is read."""
_ENDLESS = -1
"""The body ends with the connection."""


class Unreachable(Exception):
    """No connection came about; the cause is why."""


class Lost(ConnectionError):
    """The connection ended, or what came over it was no answer."""

    def __init__(self, why: str, unanswered: bool = False) -> None:
        super().__init__(errno.ECONNRESET, why)
        self.unanswered = unanswered
        """Not a byte had come."""


class Reply(NamedTuple):
    """An answer. Of a refusal *body* may lack the end."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes


class Sink(NamedTuple):
    """Who takes the body of a success in pieces, when *check* raises nothing about its headers."""

    check: Callable[[Mapping[str, str]], None]
    take: Callable[[bytes], None]


class _Connection(asyncio.Protocol):
    """A connection, and the answer that is awaited on it.

    INVARIANT: *answer* is there from the request until its answer is whole or failed, and one that failed ends the connection.
    """

    __slots__ = (
        "_bodiless", "_chunked", "_due", "_keep", "_left", "_loop", "_pieces", "_rest", "_room", "_sink", "_stall", "_timer",
        "answer", "began", "headers", "pool", "status", "transport", "used_at",
    )  # fmt: skip

    def __init__(self, pool: Connections) -> None:
        self.pool = pool
        self.transport: asyncio.Transport | None = None
        self.answer: asyncio.Future[Reply] | None = None
        self.began = False
        """Something of the answer came."""
        self.used_at = 0.0
        self.status = 0
        """Of the answer whose body is coming; 0 before its head is whole."""
        self.headers: dict[str, str] = {}
        self._loop = asyncio.get_running_loop()
        self._rest = b""
        """What came of a head, or of a chunk's line, that is not whole."""
        self._left = 0
        """Bytes of the body, or of the chunk with the end of its line, that have not come; _ENDLESS."""
        self._room = 0
        """Bytes of a refusal that are still read."""
        self._chunked = self._keep = self._bodiless = False
        self._sink: Sink | None = None
        self._pieces: list[bytes] = []
        self._stall: float | None = None
        self._due = 0.0
        """When the next bytes must have come."""
        self._timer: asyncio.TimerHandle | None = None
        """Looks at _due now and then: a timer for each request costs more than the request."""

    def usable(self) -> bool:
        """Return whether a request may be sent here."""
        return self.transport is not None and not self.transport.is_closing()

    def ask(self, request: bytes, bodiless: bool, sink: Sink | None, stall: float | None) -> asyncio.Future[Reply]:
        """Send a request; the future gets the answer, or the exception."""
        assert self.transport is not None
        self.answer = self._loop.create_future()
        self.began = False
        self.status = 0
        self._rest = b""
        self._bodiless = bodiless
        self._sink = sink
        self._stall = stall
        if stall is not None:
            self._due = self._loop.time() + stall
            if self._timer is None or self._timer.when() > self._due:
                self._arm()
        self.transport.write(request)
        return self.answer

    def end(self, error: BaseException | None = None) -> None:
        """End the connection; an answer that is awaited fails with *error*."""
        answer, self.answer = self.answer, None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._sink = None
        self._pieces = []
        self._rest = b""
        if self.transport is not None:
            self.transport.abort()
        if answer is not None and not answer.done():
            if error is None:
                answer.cancel()
            else:
                answer.set_exception(error)

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(self._due, self._look)

    def _look(self) -> None:
        self._timer = None
        if self.answer is None or self._stall is None:
            return
        if self._loop.time() >= self._due:
            self.end(TimeoutError(errno.ETIMEDOUT, "nothing came"))
        else:
            self._arm()

    # asyncio.Protocol.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self.pool.lost(self)
        if self.answer is None:
            return
        if exc is None and self.status and self._left == _ENDLESS and not self._chunked:
            self._keep = False
            self._done()
        elif isinstance(exc, OSError) and exc.strerror:
            self.end(Lost(exc.strerror, not self.began))
        elif self.began:
            self.end(Lost("the answer broke off"))
        else:
            self.end(Lost("the server disconnected", unanswered=True))

    def data_received(self, data: bytes) -> None:
        if self.answer is None:
            # Nobody asked.
            self.end()
            return
        if self._stall is not None:
            self._due = self._loop.time() + self._stall
        self.began = True
        try:
            if not self.status:
                self._head(data)
            elif self._chunked:
                self._chunks(data)
            else:
                self._body(data)
        except Exception as exc:
            # What the sink raised is for who asked, like the rest.
            self.end(exc)

    # The answer.

    def _head(self, data: bytes) -> None:
        """Take the next bytes of an answer whose head is not whole."""
        while True:
            data = self._rest + data if self._rest else data
            at = data.find(b"\r\n\r\n")
            if at < 0:
                if len(data) > _HEAD_BYTES or (len(data) > 4 and not data.startswith(b"HTTP/")):
                    raise Lost("what came is not HTTP")
                self._rest = data
                return
            status, headers, keep = parse(data[:at])
            self._rest = b""
            data = data[at + 4 :]
            if status >= 200:
                break
            if status == 101:
                raise Lost("the server changes the protocol")
            if not data:
                return
        self.status, self.headers, self._keep = status, headers, keep
        self._pieces = []
        self._room = _ERROR_BYTES
        self._chunked = False
        if self._sink is not None and status < 300:
            self._sink.check(headers)
        if self._bodiless or status in (204, 304):
            self._left = 0
            self._body(data)
        elif "transfer-encoding" in headers:
            if headers["transfer-encoding"].lower() != "chunked":
                raise Lost(f"a body encoded as {headers['transfer-encoding']!r}")
            self._chunked = True
            self._left = 0
            # Who says both may have been talked into it: nothing that follows is believed (RFC 9112 section 6.3).
            self._keep = keep and "content-length" not in headers
            self._chunks(data)
        else:
            length = headers.get("content-length")
            if length is None:
                self._left = _ENDLESS
            elif length.isdecimal() and length.isascii():
                self._left = int(length)
            else:
                raise Lost(f"a body of {length!r} bytes")
            self._body(data)

    def _body(self, data: bytes) -> None:
        """Take the next bytes of a body whose length is known, or which ends with the connection."""
        left = self._left
        count = len(data)
        if left == _ENDLESS:
            if data:
                self._give(data)
        elif count < left:
            self._left = left - count
            if data:
                self._give(data)
        else:
            if count > left:
                # More than the answer: nobody knows what to.
                self._keep = False
                data = data[:left]
            self._left = 0
            if data:
                self._give(data)
            if self.answer is not None:
                self._done()

    def _chunks(self, data: bytes) -> None:
        """Take the next bytes of a body in chunks."""
        data = self._rest + data if self._rest else data
        self._rest = b""
        at = 0
        while self.answer is not None:
            if self._left > 2:
                piece = data[at : at + self._left - 2]
                if not piece:
                    return
                at += len(piece)
                self._left -= len(piece)
                self._give(piece)
                continue
            stop = data.find(b"\r\n", at)
            if stop < 0:
                if len(data) - at > _LINE_BYTES:
                    raise Lost("a chunk without a size")
                self._rest = data[at:]
                return
            line = data[at:stop]
            at = stop + 2
            if self._left == 2:
                if line:
                    raise Lost("a chunk that is longer than it says")
                self._left = 0
            elif self._left == _ENDLESS:
                # Behind the last chunk: trailers, and an empty line.
                if not line:
                    self._keep = self._keep and at == len(data)
                    self._done()
                    return
            else:
                size = _chunk_size(line)
                self._left = size + 2 if size else _ENDLESS

    def _give(self, piece: bytes) -> None:
        if self.status < 300:
            if self._sink is not None:
                self._sink.take(piece)
            else:
                self._pieces.append(piece)
            return
        self._pieces.append(piece)
        self._room -= len(piece)
        if self._room <= 0:
            self._keep = False
            self._done()

    def _done(self) -> None:
        """Hand the answer over, and the connection back."""
        answer, self.answer = self.answer, None
        pieces = self._pieces
        reply = Reply(self.status, self.headers, pieces[0] if len(pieces) == 1 else b"".join(pieces))
        self._sink = None
        self._pieces = []
        if self._keep and self.usable():
            self.used_at = self._loop.time()
            self.pool.unused(self)
        else:
            self.end()
        if answer is not None and not answer.done():
            answer.set_result(reply)


def parse(head: bytes) -> tuple[int, dict[str, str], bool]:
    """Return the status, the headers, names in lower case, and whether the connection stays; Lost when it is no head.

    Values of a name that comes twice are joined by commas (RFC 9110 section 5.3).
    """
    if head.count(b"\n") != head.count(b"\r\n") or b"\0" in head:
        raise Lost("what came is not HTTP")
    first, *lines = head.decode("utf-8", "surrogateescape").split("\r\n")
    if (
        first[:7] != "HTTP/1."
        or first[8:9] != " "
        or not (first[9:12].isascii() and first[9:12].isdecimal())
        or first[12:13].strip()
    ):
        raise Lost("what came is not HTTP")
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        name = name.lower()
        value = value.strip(" \t")
        if not colon or not name or name != name.strip():
            raise Lost("what came is not HTTP")
        if name in headers:
            if name == "content-length":
                if headers[name] != value:
                    raise Lost("a body of two lengths")
                continue
            value = f"{headers[name]}, {value}"
        headers[name] = value
    said = headers.get("connection", "").lower()
    return int(first[9:12]), headers, "keep-alive" in said if first[7] == "0" else "close" not in said


def _chunk_size(line: bytes) -> int:
    """Return the size that the line before a chunk says."""
    digits = line.partition(b";")[0].strip()
    if not digits or len(digits) > 16 or digits.strip(b"0123456789abcdefABCDEF"):
        raise Lost("a chunk without a size")
    return int(digits, 16)


class Connections:
    """Connections to one server: so many are open as requests were under way at a time. Who calls limits those."""

    def __init__(self, scheme: str, authority: str, context: ssl.SSLContext | None, connect_s: float) -> None:
        """*context* is for https; *connect_s*: the seconds that a connection may take to come about."""
        url = urlsplit(f"{scheme}://{authority}")
        self.host = url.hostname or ""
        self._is_address = ":" in self.host or self.host.replace(".", "").isdecimal()
        self.port = url.port or (443 if scheme == "https" else 80)
        self.context = context if scheme == "https" else None
        self.connect_s = connect_s
        self._unused: list[_Connection] = []
        """The one used last comes last, and is taken first."""
        self._all: set[_Connection] = set()
        self._sweep: asyncio.TimerHandle | None = None
        self._closed = False

    async def ask(
        self,
        request: bytes,
        *,
        bodiless: bool = False,
        sink: Sink | None = None,
        stall: float | None = None,
        again: bool = False,
    ) -> Reply:
        """Return the answer to *request*, which is a head and its body; Unreachable, Lost, TimeoutError or what *sink* raises.

        *bodiless*: it is HEAD. *stall*: the seconds that are waited for the next bytes. *again*: it may be sent a second time
        where it must be supposed that the server had closed a connection that was kept before the request came.
        """
        connection = self._kept()
        if connection is None:
            return await self._on(await self._connect(), request, bodiless, sink, stall)
        try:
            return await self._on(connection, request, bodiless, sink, stall)
        except Lost as exc:
            if not again or not exc.unanswered or self._closed:
                raise
        return await self._on(await self._connect(), request, bodiless, sink, stall)

    @staticmethod
    async def _on(connection: _Connection, request: bytes, bodiless: bool, sink: Sink | None, stall: float | None) -> Reply:
        answer = connection.ask(request, bodiless, sink, stall)
        try:
            return await answer
        finally:
            if connection.answer is answer:
                connection.end()

    def _kept(self) -> _Connection | None:
        while self._unused:
            connection = self._unused.pop()
            if connection.usable():
                return connection
        return None

    async def _connect(self) -> _Connection:
        if self._closed:
            raise Lost("the store is closed")
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self.connect_s):
                _, connection = await loop.create_connection(
                    lambda: _Connection(self),
                    self.host,
                    self.port,
                    ssl=self.context,
                    server_hostname=self.host if self.context is not None else None,
                    # Of an address there is one; a name may have some that nobody answers (RFC 8305 section 5).
                    happy_eyeballs_delay=None if self._is_address else 0.25,
                )
        except TimeoutError:
            raise
        except OSError as exc:
            raise Unreachable from exc
        self._all.add(connection)
        if self._closed:
            connection.end()
            raise Lost("the store is closed")
        return connection

    def unused(self, connection: _Connection) -> None:
        """Keep a connection for the next request."""
        self._unused.append(connection)
        if self._sweep is None:
            self._sweep = asyncio.get_running_loop().call_later(KEPT_S / 2, self._end_old)

    def lost(self, connection: _Connection) -> None:
        """Forget a connection."""
        self._all.discard(connection)

    def _end_old(self) -> None:
        """Close what nobody has used for KEPT_S."""
        loop = asyncio.get_running_loop()
        old = loop.time() - KEPT_S
        for connection in self._unused:
            if connection.used_at <= old:
                connection.end()
        self._unused = [connection for connection in self._unused if connection.usable()]
        self._sweep = loop.call_later(KEPT_S / 2, self._end_old) if self._unused else None

    async def close(self) -> None:
        """End all connections; requests under way, and those that come later, fail."""
        self._closed = True
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        self._unused.clear()
        for connection in list(self._all):
            connection.end(Lost("the store is closed"))
        # Transports are gone after a turn of the loop.
        await asyncio.sleep(0)


__all__ = ["KEPT_S", "Connections", "Lost", "Reply", "Sink", "Unreachable", "parse"]
