"""Ranges of bytes as HTTP writes them (RFC 9110, section 14): Content-Range, and the parts of multipart/byteranges."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from email.message import Message
from typing import NamedTuple

HEAD_LIMIT = 16 << 10
"""Bytes of a part's headers, and of what may stand before the first part."""

_SATISFIED = re.compile(r"bytes[ =](\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", re.ASCII | re.IGNORECASE)
_UNSATISFIED = re.compile(r"bytes[ =]\*/(\d{1,18})", re.ASCII | re.IGNORECASE)


class Span(NamedTuple):
    """What a Content-Range says: [start, end) of a file of *total* bytes, None when it does not tell."""

    start: int
    end: int
    total: int | None


def content_range(text: str) -> Span | None:
    """Return what a Content-Range says of the bytes that come; None when it is none, or makes no sense."""
    found = _SATISFIED.fullmatch(text.strip())
    if found is None:
        return None
    total = None if found[3] == "*" else int(found[3])
    span = Span(int(found[1]), int(found[2]) + 1, total)
    return span if span.start < span.end and (total is None or span.end <= total) else None


def unsatisfied(text: str) -> int | None:
    """Return how large the file is, as a 416 says; None when it does not."""
    found = _UNSATISFIED.fullmatch(text.strip())
    return None if found is None else int(found[1])


def asked(start: int, end: int) -> str:
    """Return the Range header for [start, end)."""
    return f"bytes={start}-{end - 1}"


def boundary_of(headers: Mapping[str, str]) -> bytes | None:
    """Return the boundary of a multipart/byteranges answer; None when it is another kind of answer, b"" when it has none."""
    message = Message()
    message["content-type"] = headers.get("content-type", "")
    if message.get_content_type() != "multipart/byteranges":
        return None
    found = message.get_param("boundary", "")
    return found.encode("ascii", "replace") if isinstance(found, str) else b""


class Multipart:
    """The parts of a multipart/byteranges body as it comes; each is as long as its Content-Range says. ValueError."""

    def __init__(self, boundary: bytes) -> None:
        if not boundary or len(boundary) > 200:
            raise ValueError("the parts have no boundary")
        self._delimiter = b"--" + boundary
        self._held = b""
        self._position = self._left = 0
        """Of the part that is being read."""
        self.span: Span | None = None
        """The newest part's."""
        self.ended = False

    def feed(self, data: bytes) -> Iterator[tuple[Span, int, bytes]]:
        """Take the next bytes; yield pieces of parts: the part, where in the file the piece lies, the piece."""
        self._held += data
        while not self.ended and self._held:
            if self._left:
                piece, self._held = self._held[: self._left], self._held[self._left :]
                at = self._position
                self._position += len(piece)
                self._left -= len(piece)
                assert self.span is not None
                yield self.span, at, piece
            elif not self._head():
                return

    def _head(self) -> bool:
        """Read the headers of the next part, if they are there."""
        before, found, rest = self._held.partition(self._delimiter)
        if found and rest.startswith(b"--"):
            self.ended = True
            return False
        head, complete, body = rest.partition(b"\r\n\r\n")
        if not found or not complete:
            if len(self._held) > HEAD_LIMIT:
                raise ValueError("the next part does not begin")
            return False
        if self.span is not None and before.strip():
            raise ValueError("a part is longer than it says")
        for line in head.decode("latin-1").split("\r\n"):
            name, _, value = line.partition(":")
            if name.strip().lower() == "content-range":
                self.span = span = content_range(value)
                if span is not None:
                    self._position, self._left, self._held = span.start, span.end - span.start, body
                    return True
        raise ValueError("a part does not say where it lies")


__all__ = ["HEAD_LIMIT", "Multipart", "Span", "asked", "boundary_of", "content_range", "unsatisfied"]
