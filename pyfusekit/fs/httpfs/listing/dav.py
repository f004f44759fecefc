"""WebDAV: the answer to PROPFIND with Depth 1 (RFC 4918)."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import urlsplit

from ..values import Listing
from .base import Page
from .fields import any_ns
from .names import Names
from .xmllist import NotXml, number_of, read, root

PROPFIND = (
    b'<?xml version="1.0" encoding="utf-8"?>'
    b'<propfind xmlns="DAV:"><prop><resourcetype/><getcontentlength/><getlastmodified/><getetag/><getcontenttype/></prop>'
    b"</propfind>"
)
"""What to send, as application/xml with Depth: 1."""
_PROPERTIES = frozenset({"DAV: getcontentlength", "DAV: getlastmodified", "DAV: getetag", "DAV: getcontenttype"})


class _Responses:
    """The <response> elements of a <multistatus>: each href with the properties that have status 200."""

    def __init__(self, take: Callable[[str, dict[str, str]], None]) -> None:
        self.take = take
        self.count = 0
        self._path: list[str] = []
        self._href = ""
        self._status = ""
        self._said: dict[str, str] = {}
        self._pending: dict[str, str] = {}
        self._propstat_status = ""

    def start(self, name: str, attributes: dict[str, str]) -> None:
        self._path.append(name)
        if name == "DAV: response":
            self._href, self._status, self._said = "", "", {}
        elif name == "DAV: propstat":
            self._pending, self._propstat_status = {}, ""

    def end(self, name: str, text: str) -> None:
        self._path.pop()
        parent = self._path[-1] if self._path else ""
        if parent == "DAV: response":
            if name == "DAV: href":
                self._href = self._href or text.strip()
            elif name == "DAV: status":
                self._status = text
            elif name == "DAV: propstat" and _good(self._propstat_status):
                self._said.update(self._pending)
        elif parent == "DAV: propstat" and name == "DAV: status":
            self._propstat_status = text
        elif parent == "DAV: prop" and name in _PROPERTIES:
            self._pending[name[5:]] = text.strip()
        elif parent == "DAV: resourcetype" and name == "DAV: collection":
            self._pending["collection"] = "1"
        elif name == "DAV: response":
            self.count += 1
            if self._href and _good(self._status):
                self.take(self._href, self._said)


def _good(status: str) -> bool:
    """Return whether "HTTP/1.1 200 OK" is a success; nothing said is one too."""
    words = status.split(None, 2)
    return len(words) < 2 or words[1].startswith("2")


class DavDriver:
    """A <multistatus>: collections are directories, the URL asked for is left out."""

    name = "webdav"

    def accepts(self, page: Page) -> bool:
        """Return whether it is XML of a <multistatus>."""
        return page.is_xml and root(page) == "multistatus"

    def parse(self, page: Page, external: bool, skipped: Callable[[str], None]) -> Listing | None:
        """Return the listing; None when it is no XML, or without a response.

        Of an absolute href only the path counts: behind a proxy servers tell the name they have inside, and what is told
        is always of the request's own tree (section 8.3).
        """
        url = page.url if page.is_directory else _with_slash(page.url)
        names = Names(url, external, skipped)

        def take(href: str, said: dict[str, str]) -> None:
            if "://" in href[:12]:
                try:
                    parts = urlsplit(href)
                except ValueError:
                    return
                href = parts.path or "/"
            # A path, whatever it begins with: "//x" is no host here.
            href = "/" + href.lstrip("/") if href.startswith("/") else href
            size = number_of(said.get("getcontentlength", ""))
            names.link(
                href,
                size,
                size is not None,
                any_ns(said.get("getlastmodified")),
                is_dir="collection" in said,
                etag=said.get("getetag", ""),
                content_type=said.get("getcontenttype", ""),
            )

        responses = _Responses(take)
        try:
            read(page.body, responses.start, responses.end)
        except NotXml:
            return None
        return Listing(names.entries(), "", self.name) if responses.count else None


def _with_slash(url: str) -> str:
    head, mark, query = url.partition("?")
    return f"{head}/{mark}{query}"


__all__ = ["PROPFIND", "DavDriver"]
