"""A plain list, a URL or relative reference a line, as text/uri-list has it (RFC 2483); "#" begins a comment.

References are percent-encoded, so a line with space in it is no reference, and the text no list. What is served as another
text is taken for a list at a directory's URL only, or when all lines are http URLs.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from ..values import Listing
from .base import Page
from .names import Names

_SCHEMES = ("http://", "https://")
_LINE = 8192
_space = re.compile(r"[\x00-\x20]").search


class TextDriver:
    """Lists in plain text."""

    name = "text"

    def accepts(self, page: Page) -> bool:
        """Return whether it is text."""
        return page.content_type in ("text/plain", "text/uri-list")

    def parse(self, page: Page, external: bool, skipped: Callable[[str], None]) -> Listing | None:
        """Return the listing; None when a line is no reference, or none leads to an entry."""
        names = Names(page.url, external, skipped)
        anything = page.is_directory or page.content_type == "text/uri-list"
        for raw in page.text().split("\n"):
            line = raw.rstrip("\r \t")
            if not line or line.startswith("#"):
                continue
            if len(line) > _LINE or _space(line):
                return None
            if not anything and not line.lower().startswith(_SCHEMES):
                return None
            names.link(line)
        entries = names.entries()
        return Listing(entries, "", self.name) if entries else None


__all__ = ["TextDriver"]
