"""Web pages: what nginx, Apache, lighttpd, Caddy and Python show for a directory, and any page that links to what is below it.

A name is in the link, never in its text, which nginx and Apache cut off with "..>". nginx tells sizes to the byte as it comes,
Apache those below 1 KiB, lighttpd none; what they round is an estimate. Caddy has the exact size and time in attributes.
nginx and Apache tell times to the minute, lighttpd and Caddy to the second.
"""

from __future__ import annotations

from collections.abc import Callable

from ..values import Listing
from .base import Page
from .fields import iso_ns, row_fields, size_of
from .names import Names, decoded, decoded_by_python
from .tags import Links


class HtmlDriver:
    """Pages with all of *marks* in their beginning, or one of several sets of them.

    *exact*: a size in digits alone is exact. *decode*: how names are made of links.
    """

    def __init__(
        self,
        name: str,
        *marks: tuple[bytes, ...],
        exact: bool = False,
        decode: Callable[[str], str] = decoded,
    ) -> None:
        self.name = name
        self.marks = marks
        self.exact = exact
        self.decode = decode

    def accepts(self, page: Page) -> bool:
        """Return whether the page has the marks, or for the driver without any whether its URL is that of a directory."""
        if not page.is_html:
            return False
        if not self.marks:
            return page.is_directory
        return any(all(mark in page.head for mark in marks) for marks in self.marks)

    def parse(self, page: Page, external: bool, skipped: Callable[[str], None]) -> Listing | None:
        """Return the links of the page; None for one without marks that links to nothing below it."""
        names = Names(page.url, external, skipped, self.decode)
        link, exact_digits = names.link, self.exact

        def emit(href: str, tail: str, size_text: str, time_text: str) -> None:
            mtime_ns, size, exact = row_fields(tail) if tail else (None, None, False)
            if size_text:
                told, whole = size_of(size_text)
                size, exact = (told, True) if whole else (size, False)
            else:
                exact = exact and exact_digits
            if time_text:
                mtime_ns = iso_ns(time_text) or mtime_ns
            link(href, size, exact, mtime_ns)

        if not Links(emit, names.rebase).read(page):
            skipped("the page is given up: it is no HTML")
            return None
        entries = names.entries()
        return Listing(entries, "", self.name) if entries or self.marks else None


DRIVERS = (
    HtmlDriver("caddy", (b"<body", b"folder-shortcut"), (b"caddy", b"<svg"), exact=True),
    HtmlDriver("lighttpd", (b"<title>index of ", b'class="list"'), (b"<title>index of ", b"div.list")),
    HtmlDriver("nginx", (b"<head><title>index of ", b"</h1><hr><pre><a "), exact=True),
    HtmlDriver("apache", (b"<title>index of ", b"<h1>index of ", b"//dtd html"), (b"<title>index of ", b"?c=n"), exact=True),
    HtmlDriver("python", (b"<title>directory listing for ", b"<h1>directory listing for "), decode=decoded_by_python),
    HtmlDriver("links"),
)
"""In the order they are asked."""

__all__ = ["DRIVERS", "HtmlDriver"]
