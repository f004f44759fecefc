"""What servers show as a directory: pages of HTML, JSON, XML or text, each kind read by one driver.

`parse` is given an answer and finds the driver by content type and content. It does no I/O, never raises for what a server
sent, and takes time and memory in proportion to the page.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from ..values import Listing
from .base import Driver, Page, page_of
from .dav import PROPFIND, DavDriver
from .html import DRIVERS as HTML_DRIVERS
from .jsonlist import JsonDriver
from .metalink import MetalinkDriver
from .names import origin_of
from .s3 import S3Driver
from .textlist import TextDriver
from .xmllist import NginxXmlDriver

log = logging.getLogger("pyfusekit.httpfs")

ACCEPT = "application/json, text/html;q=0.9, application/xml;q=0.8, */*;q=0.5"
"""What to send for a directory. Caddy answers JSON, with exact sizes and times, to whoever names it; the others have one
form. Nothing is refused, so no server has reason for a 406."""

DRIVERS: tuple[Driver, ...] = (
    JsonDriver(),
    DavDriver(),
    S3Driver(),
    MetalinkDriver(),
    NginxXmlDriver(),
    *HTML_DRIVERS,
    TextDriver(),
)
"""In the order they are asked."""
_SKIPPED_LINES = 8
"""How many of the names a page has in vain get a line."""


class _Skipped:
    """What a page has in vain: a line for the first few, the rest are counted."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.tell = tell
        self.count = 0

    def __call__(self, line: str) -> None:
        self.count += 1
        if self.count <= _SKIPPED_LINES:
            self.tell(line)

    def close(self) -> None:
        if self.count > _SKIPPED_LINES:
            self.tell(f"{self.count - _SKIPPED_LINES} more are left out")


def parse(
    url: str,
    content_type: str,
    body: bytes,
    *,
    external: bool = False,
    skipped: Callable[[str], None] | None = None,
) -> Listing | None:
    """Return the listing that an answer is, or None: then it is a file.

    *url* is where the answer came from after redirects; what is a listing by its form alone (other HTML, JSON, text) is one
    only where that ends in a slash. *content_type* is the header, parameters included. *external* keeps links to other
    origins. *skipped* is told a line for each name that is left out, at most nine lines a page; the log, when not given.
    """
    if not origin_of(url):
        return None
    lines = _Skipped(skipped or (lambda line: log.warning("%s: %s", url, line)))
    page = page_of(url, content_type, body)
    try:
        for driver in DRIVERS:
            if driver.accepts(page):
                listing = driver.parse(page, external, lines)
                if listing is not None:
                    return listing
        return None
    finally:
        lines.close()


__all__ = ["ACCEPT", "DRIVERS", "PROPFIND", "Driver", "Page", "parse"]
