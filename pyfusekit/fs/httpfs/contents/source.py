"""One version of a file at one place: ranges of it, or all of it, and nothing of another version.

The version was pinned when the file was opened. If-Range has the server compare it with what it has; what comes is compared
here too, for servers that do not know If-Range are many: ETag, Last-Modified, where the bytes lie, and of how many.
"""

from __future__ import annotations

import asyncio
import errno
import zlib
from collections.abc import Awaitable, Callable, Iterator
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING

from ..client.words import shown
from ..values import HttpError, Resource
from .probe import Prober
from .ranges import Multipart, Span, asked, boundary_of, content_range, unsatisfied
from .resource import IDENTITY, encoded, length_of, other_version, tells, validator_of

if TYPE_CHECKING:
    from ..client.web import Stream, Web

Put = Callable[[int, bytes], Awaitable[None]]
"""put(position, piece): take the next bytes of a whole file. A file that is fetched again begins at 0 again."""

_PIECE = 1 << 20
_WORTH = 16 << 10
"""Bytes that an answer must have brought before it was cut, for the next one not to count as another attempt."""
_RESOLVES = 3
"""How often the redirects are followed anew before a refusal is believed: many ranges may be refused at once."""
_MOVED = frozenset({401, 403, 404, 410})
"""What a URL answers to which a redirect led, when it is not good any more: signed ones expire."""


class RangeIgnored(Exception):
    """The server has this version, and sends all of it whatever is asked for. [start, position) was handed on."""

    def __init__(self, position: int) -> None:
        super().__init__(position)
        self.position = position


class _Verdict(Enum):
    """What an answer calls for."""

    DONE = 0
    RESOLVE = 1
    """Ask the URL before the redirects where the file is now."""
    CONFIRM = 2
    """It does not tell its version: ask whether that is still there."""
    IGNORED = 3


class _Receiver:
    """A range as it arrives: [start, position) is there."""

    __slots__ = ("confirmed", "end", "position", "sink", "start")

    def __init__(self, start: int, end: int, sink: Callable[[bytes], None], *, confirmed: bool = False) -> None:
        self.start = self.position = start
        self.end = end
        self.sink = sink
        self.confirmed = confirmed
        """It is asked behind each answer whether the version still stands, so that need not tell its own."""

    def take(self, at: int, piece: bytes) -> None:
        """Take what is new of *piece*, which lies at *at*; what was not asked for is dropped."""
        if at <= self.position < at + len(piece) and self.position < self.end:
            new = piece[self.position - at : self.end - at] if at < self.position or at + len(piece) > self.end else piece
            self.position += len(new)
            self.sink(new)


class Source:
    """The file that *resource* describes. Every error is an HttpError; ESTALE when it is another version now."""

    def __init__(self, web: Web, prober: Prober, resource: Resource) -> None:
        self._web = web
        self._prober = prober
        self.resource = resource
        self._bare = False
        """Its ranges do not tell of which version they are."""
        self._resolved = 0
        """How often the redirects were followed anew since something was read."""
        self._resolving = asyncio.Lock()

    # Ranges.

    async def fetch(self, start: int, end: int, sink: Callable[[bytes], None]) -> None:
        """Hand [start, end) to *sink*, piece after piece; RangeIgnored when the server serves no ranges."""
        if self._bare:
            await self._fetch_and_confirm(start, end, sink)
        else:
            await self._fetch(_Receiver(start, end, sink))

    async def _fetch(self, receiver: _Receiver) -> None:
        while receiver.position < receiver.end:
            url = self.resource.final_url
            size = receiver.end - receiver.position
            verdict = await self._web.run("GET", url, size, partial(self._attempt, url, receiver))
            if verdict is _Verdict.RESOLVE:
                await self._resolve(url)
            elif verdict is _Verdict.IGNORED:
                raise RangeIgnored(receiver.position)
            elif verdict is _Verdict.CONFIRM:
                # RFC 9110, section 15.3.7, wants the ETag in a 206 too: whether such a server knows If-Range, nobody knows.
                self._bare = True
                await self._fetch_and_confirm(receiver.position, receiver.end, receiver.sink)
                return

    async def _fetch_and_confirm(self, start: int, end: int, sink: Callable[[bytes], None]) -> None:
        """Fetch a range that does not tell its version, and ask whether that was there still before a byte is handed on."""
        pieces: list[bytes] = []
        await self._fetch(_Receiver(start, end, pieces.append, confirmed=True))
        self._compare(await self._prober.probe(self.resource.url))
        for piece in pieces:
            sink(piece)

    async def _attempt(self, url: str, receiver: _Receiver) -> _Verdict:
        """Ask for what is missing until it is there: what is cut, or shorter than asked, is continued at the byte."""
        while receiver.position < receiver.end:
            before = receiver.position
            try:
                verdict = await self._ask(url, receiver)
                if verdict is not _Verdict.DONE:
                    return verdict
                if receiver.position == before:
                    raise self._error(errno.EIO, "the answer has no byte of what was asked for", retryable=True)
            except HttpError as exc:
                if not exc.retryable or receiver.position - before < _WORTH:
                    raise
        return _Verdict.DONE

    async def _ask(self, url: str, receiver: _Receiver) -> _Verdict:
        headers = IDENTITY | {"range": asked(receiver.position, receiver.end)}
        if self.resource.validator.condition:
            headers["if-range"] = self.resource.validator.condition
        async with self._web.open("GET", url, headers=headers) as answer:
            if answer.status == 206:
                return await self._partial(answer, receiver)
            if answer.status == 200:
                return await self._all_instead(answer, receiver)
            if answer.status == 416:
                total = unsatisfied(answer.headers.get("content-range", ""))
                if total == self.resource.size:
                    raise self._error(errno.EIO, f"{headers['range']} is refused, of {total} bytes", answer)
                raise self._stale(f"it has {total} bytes" if total is not None else "it is shorter", answer)
            return self._refusal(answer, url)

    async def _partial(self, answer: Stream, receiver: _Receiver) -> _Verdict:
        """Read a 206."""
        pinned, seen = self.resource.validator, validator_of(answer.headers)
        if other_version(pinned, seen):
            raise self._changed(answer)
        if encoded(answer.headers):
            why = f"a range was sent in the coding {encoded(answer.headers)!r}, which was not asked for and cannot be read"
            raise self._error(errno.EIO, why, answer)
        if not tells(pinned, seen) and not receiver.confirmed:
            return _Verdict.CONFIRM
        self._resolved = 0
        boundary = boundary_of(answer.headers)
        if boundary is None:
            span = content_range(answer.headers.get("content-range", ""))
            self._check(span, receiver.position, answer)
            assert span is not None
            await self._read(answer, receiver, span.start, span.end)
        else:
            await self._read_parts(answer, receiver, boundary)
        return _Verdict.DONE

    def _check(self, span: Span | None, start: int, answer: Stream) -> None:
        """Raise unless the bytes that come are those that were asked for, of a file as large as it was."""
        text = answer.headers.get("content-range", "")
        if span is None:
            why = f"Content-Range: {text}" if text else "no Content-Range"
            raise self._error(errno.EIO, f"a range came with {why}", answer)
        size, pinned = self.resource.size, self.resource.validator
        if span.total is not None and span.total != size:
            self._prober.distrust_head(self.resource.url)
            if pinned.condition and tells(pinned, validator_of(answer.headers)):
                raise self._error(errno.EIO, f"the same version is of {span.total} bytes now, and of {size} before", answer)
            raise self._stale(f"it has {span.total} bytes, and had {size}", answer)
        if span.start != start:
            raise self._error(errno.EIO, f"byte {start} was asked for, and what came begins at {span.start}", answer)

    async def _read(self, answer: Stream, receiver: _Receiver, position: int, end: int) -> None:
        """Read the bytes [position, end), as far as they come and were asked for: then the connection is cut off."""
        while position < end and receiver.position < receiver.end:
            data = await answer.readany()
            if not data:
                # It ended as its length says, or with the connection: what is missing is asked for.
                return
            receiver.take(position, data if len(data) <= end - position else data[: end - position])
            position += len(data)

    async def _read_parts(self, answer: Stream, receiver: _Receiver, boundary: bytes) -> None:
        """Read the parts of an answer in several; what they leave out is asked for again."""
        newest: Span | None = None
        try:
            parts = Multipart(boundary)
            while receiver.position < receiver.end and not parts.ended and (data := await answer.readany()):
                for span, at, piece in parts.feed(data):
                    if span is not newest:
                        self._check(span, span.start, answer)
                        newest = span
                    receiver.take(at, piece)
        except ValueError as exc:
            raise self._error(errno.EIO, f"parts of a range that make no sense: {exc}", answer) from None

    async def _all_instead(self, answer: Stream, receiver: _Receiver) -> _Verdict:
        """Read a 200 to a request for a range: another version, or a server that ignores Range."""
        size = self._same_file(answer)
        pinned, wanted = self.resource.validator, (receiver.position, receiver.end)
        told = bool(pinned.etag or pinned.modified)
        if told and size is not None and size == self.resource.size and wanted == (0, size):
            await self._read(answer, receiver, 0, size)
            self._resolved = 0
            return _Verdict.DONE
        return _Verdict.IGNORED

    def _same_file(self, answer: Stream) -> int | None:
        """Raise ESTALE unless a 200 is of the pinned version; return its length if it is told."""
        pinned, seen = self.resource.validator, validator_of(answer.headers)
        if other_version(pinned, seen) or not tells(pinned, seen):
            raise self._changed(answer)
        size = length_of(answer.headers)
        if size is not None and self.resource.size is not None and size != self.resource.size:
            self._prober.distrust_head(self.resource.url)
            raise self._stale(f"it has {size} bytes, and had {self.resource.size}", answer)
        return size

    # All of it.

    async def fetch_all(self, put: Put, size: int) -> int:
        """Hand the whole file to *put*; return its size. *size* bytes are what the deadline is for.

        An answer that is cut is followed by another from the beginning: *put* compares.
        """
        while True:
            url = self.resource.final_url
            verdict, found = await self._web.run("GET", url, size, partial(self._attempt_all, url, put))
            if verdict is _Verdict.DONE:
                return found
            await self._resolve(url)

    async def read_all(self, put: Put) -> int:
        """The same in one attempt, without a deadline: *put* may wait for a reader as long as it likes."""
        url = self.resource.final_url
        verdict, found = await self._ask_all(url, put, [0])
        while verdict is not _Verdict.DONE:
            await self._resolve(url)
            url = self.resource.final_url
            verdict, found = await self._ask_all(url, put, [0])
        return found

    async def _attempt_all(self, url: str, put: Put) -> tuple[_Verdict, int]:
        reached = [0]
        while True:
            before = reached[0]
            try:
                return await self._ask_all(url, put, reached)
            except HttpError as exc:
                if not exc.retryable or reached[0] - before < _WORTH:
                    raise

    async def _ask_all(self, url: str, put: Put, reached: list[int]) -> tuple[_Verdict, int]:
        """Read a whole answer. *reached* is as far as any has got."""
        position = 0
        async with self._web.open("GET", url, headers=IDENTITY) as answer:
            if answer.status != 200:
                return self._refusal(answer, url), 0
            length = self._same_file(answer)
            decoder = self._decoder(answer)
            while length is None or position < length:
                data = await answer.readany()
                if not data:
                    break
                try:
                    for piece in (data,) if decoder is None else decoder.feed(data):
                        await put(position, piece if length is None else piece[: length - position])
                        position += len(piece)
                except zlib.error as exc:
                    raise self._error(errno.EIO, f"the compressed answer is damaged: {exc}", answer) from None
                reached[0] = max(reached[0], position)
            self._ended(position, length, decoder, answer)
            self._resolved = 0
            return _Verdict.DONE, position if length is None else length

    def _ended(self, position: int, length: int | None, decoder: _Decoder | None, answer: Stream) -> None:
        """Raise unless an answer ended where it should."""
        size = self.resource.size
        wanted = length if length is not None else size
        if decoder is not None and not decoder.ended:
            raise self._error(errno.EIO, "the compressed answer ends too early", answer, retryable=True)
        if wanted is not None and position < wanted:
            why = f"{wanted - position} bytes are missing at the end of an answer"
            raise self._error(errno.EIO, why, answer, retryable=True)
        if length is None and size is not None and position > size:
            raise self._stale(f"it has {position} bytes, and had {size}", answer)

    def _decoder(self, answer: Stream) -> _Decoder | None:
        coding = encoded(answer.headers)
        if not coding:
            return None
        if coding in ("gzip", "x-gzip", "deflate"):
            return _Decoder()
        why = f"the file was sent in the coding {coding!r}, which was not asked for and cannot be read"
        raise self._error(errno.EIO, why, answer)

    # What else may be answered.

    def _refusal(self, answer: Stream, url: str) -> _Verdict:
        """Raise for an answer without the file; RESOLVE when a redirect led there."""
        status = answer.status
        moved = status in _MOVED and url != self.resource.url
        if moved and (self._resolved < _RESOLVES or url != self.resource.final_url):
            return _Verdict.RESOLVE
        if status == 412:
            raise self._changed(answer)
        if status in (404, 410):
            raise self._stale(f"it is gone: {status} {answer.reason}".rstrip(), answer)
        if 200 <= status < 400:
            raise self._error(errno.EIO, f"the answer {status} is none to a request for a file's bytes", answer)
        raise self._web.judge(answer)

    async def _resolve(self, url: str) -> None:
        """Follow the redirects anew, once for all who were refused at *url*; the version must be the same."""
        async with self._resolving:
            if self.resource.final_url != url:
                return
            try:
                fresh = await self._prober.probe(self.resource.url)
            except HttpError as exc:
                if exc.status in (404, 410):
                    raise self._stale(f"it is gone: {exc.strerror}") from exc
                raise
            self._compare(fresh)
            self.resource = self.resource._replace(final_url=fresh.final_url)
            self._resolved += 1

    def _compare(self, fresh: Resource) -> None:
        pinned = self.resource.validator
        if other_version(pinned, fresh.validator) or not tells(pinned, fresh.validator):
            raise self._stale(_versions(pinned.etag or pinned.modified, fresh.validator.etag or fresh.validator.modified))
        if fresh.size is not None and self.resource.size is not None and fresh.size != self.resource.size:
            raise self._stale(f"it has {fresh.size} bytes, and had {self.resource.size}")

    def _changed(self, answer: Stream) -> HttpError:
        pinned, seen = self.resource.validator, validator_of(answer.headers)
        if not tells(pinned, seen):
            # HEAD may have told what GET does not: the next open asks by GET.
            self._prober.distrust_head(self.resource.url)
        if pinned.etag:
            return self._stale(_versions(pinned.etag, seen.etag), answer)
        return self._stale(_versions(pinned.modified, seen.modified), answer)

    def _stale(self, why: str, answer: Stream | None = None) -> HttpError:
        return self._error(errno.ESTALE, f"the file was replaced while it was open: {why}", answer)

    def _error(self, number: int, why: str, answer: Stream | None = None, *, retryable: bool = False) -> HttpError:
        url = shown(self.resource.url)
        status = 0 if answer is None else answer.status
        return HttpError(number, f"GET {url}: {why}", url=url, status=status, retryable=retryable)


class _Decoder:
    """Undoes gzip or deflate: a server that compresses what it was asked not to."""

    def __init__(self) -> None:
        self._zlib = self._begun()

    @staticmethod
    def _begun() -> zlib._Decompress:
        # 32 is for gzip and zlib, whichever it is.
        return zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)

    @property
    def ended(self) -> bool:
        """Whether the end was seen, with the checksum before it."""
        return self._zlib.eof

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield what *data* stands for, in pieces of at most 1 MiB; zlib.error."""
        piece = b""
        while data or len(piece) == _PIECE:
            if self._zlib.eof:
                self._zlib = self._begun()
            piece = self._zlib.decompress(data, _PIECE)
            if piece:
                yield piece
            data = self._zlib.unused_data if self._zlib.eof else self._zlib.unconsumed_tail


def _versions(pinned: str, seen: str) -> str:
    return f"{pinned or 'no version'} then, {seen or 'no version'} now"


__all__ = ["Put", "RangeIgnored", "Source"]
