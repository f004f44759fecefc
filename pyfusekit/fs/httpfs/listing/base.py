"""What a driver of listings is, and what it gets to read."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol
from urllib.parse import urlsplit

from ..values import Listing

HEAD = 16384
"""Bytes of the body that tell what it is: Caddy has 5 KB of style before the first word of its own."""
_CHARSETS = (
    "ascii",
    "us-ascii",
    "iso-8859-",
    "iso8859-",
    "latin",
    "windows-125",
    "cp125",
    "koi8-",
    "gb",
    "big5",
    "shift_jis",
    "euc-",
)
"""Beginnings of the charsets that are decoded: ASCII is itself in all, and "<" is no part of another character. There are
codecs in Python that are slow, or no charsets."""


class Page(NamedTuple):
    """An answer that may be a listing."""

    url: str
    """Where it came from in the end, after redirects."""
    content_type: str
    """In lower case, without parameters."""
    charset: str
    """That Python knows; utf-8 when none was named."""
    body: bytes
    head: bytes
    """How it begins, without space before it, in lower case."""

    @property
    def is_directory(self) -> bool:
        """Whether the URL is that of a directory: such is what has no mark of a server still taken for a listing."""
        return urlsplit(self.url).path.endswith("/")

    @property
    def is_xml(self) -> bool:
        """Whether it is XML, and not a web page in it."""
        if "html" in self.content_type or b"<html" in self.head:
            return False
        return self.content_type.endswith("xml") or "metalink" in self.content_type or self.head.startswith(b"<?xml")

    @property
    def is_html(self) -> bool:
        """Whether it is a web page."""
        if self.content_type:
            return self.content_type in ("text/html", "application/xhtml+xml")
        return self.head.startswith((b"<!doctype html", b"<html"))

    @property
    def is_json(self) -> bool:
        """Whether it is JSON, or may be: some servers know no type for it."""
        if self.content_type.endswith("json"):
            return True
        return self.content_type in ("", "application/octet-stream", "text/plain") and self.head.startswith((b"[", b"{"))

    def text(self) -> str:
        """Return the body as text; bytes that are none in its charset survive as surrogates."""
        return self.body.decode(self.charset, "surrogateescape")


class Driver(Protocol):
    """A kind of listing."""

    name: str
    """For the log and `status`."""

    def accepts(self, page: Page) -> bool:
        """Return whether *page* looks like one of this kind; what only looks so is sorted out by parse."""

    def parse(self, page: Page, external: bool, skipped: Callable[[str], None]) -> Listing | None:
        """Return the listing; None when it is none after all. Of what is left out and matters, tell *skipped* a line each."""


def page_of(url: str, content_type: str, body: bytes) -> Page:
    """Return the answer with what its header says taken apart."""
    kind, _, rest = content_type.partition(";")
    charset = ""
    for parameter in rest.split(";")[:16]:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset":
            charset = value.strip().strip("\"'").lower()
    if charset.startswith("utf-16") or body[:2] in (b"\xff\xfe", b"\xfe\xff"):
        body = body.decode("utf-16" if body[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-16-le", "replace").encode()
    elif body.startswith(b"\xef\xbb\xbf"):
        body = body[3:]
    known = charset if charset.startswith(_CHARSETS) else "utf-8"
    try:
        b"".decode(known)
    except LookupError:
        known = "utf-8"
    return Page(url, kind.strip().lower(), known, body, body[:HEAD].lstrip().lower())


__all__ = ["Driver", "Page", "page_of"]
