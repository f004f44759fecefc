"""JSON: nginx's autoindex_format json, Caddy's answer to Accept: application/json, and index.json as people write it.

That is a list of names, or of objects with a name, type, mtime and size under their usual spellings, or an object that has
such a list under "files", "entries", "items", "children", "contents" or "list". Names are not percent-encoded, URLs are. A
string that is an http URL is one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

from ..values import Listing
from .base import Page
from .fields import any_ns, within
from .names import Names

_LISTS = ("files", "entries", "items", "children", "contents", "list")
_NAMES = ("name", "filename", "path")
_URLS = ("url", "href")
_TIMES = ("mtime", "mod_time", "modified", "last_modified", "lastModified", "modTime", "date", "time")
_DIRECTORIES = ("directory", "dir", "d", "folder")
_FLAGS = ("is_dir", "isDir", "is_directory", "isDirectory", "dir")
_HASHES = {"md5": 32, "sha1": 40, "sha256": 64, "sha384": 96, "sha512": 128}


def hexadecimal(text: object, algorithm: str) -> str:
    """Return a digest in lower case, when it is one of *algorithm*."""
    if not isinstance(text, str) or len(text) != _HASHES.get(algorithm) or set(text.lower()) - set("0123456789abcdef"):
        return ""
    return text.lower()


class JsonDriver:
    """Lists in JSON."""

    name = "json"

    def accepts(self, page: Page) -> bool:
        """Return whether it may be one: JSON at a directory's URL, or a file that is named as JSON."""
        return page.is_json and (page.is_directory or page.url.partition("?")[0].endswith(".json"))

    def parse(self, page: Page, external: bool, skipped: Callable[[str], None]) -> Listing | None:
        """Return the listing; None when it is other JSON, or none at all."""
        try:
            # nginx writes a name that is not UTF-8 as its bytes are.
            rows = json.loads(page.text())
        except (ValueError, RecursionError):
            return None
        if isinstance(rows, dict):
            rows = next((rows[key] for key in _LISTS if isinstance(rows.get(key), list)), None)
        if not isinstance(rows, list):
            return None
        names = Names(page.url, external, skipped)
        if not self._rows(rows, names, skipped):
            return None
        first = rows[0] if rows and isinstance(rows[0], dict) else {}
        driver = "caddy-json" if "mod_time" in first and "is_dir" in first else "nginx-json" if "type" in first else "json"
        return Listing(names.entries(), "", driver)

    def _rows(self, rows: list[Any], names: Names, skipped: Callable[[str], None]) -> bool:
        """Take all rows; False when none of them is one."""
        taken = 0
        for row in rows:
            if isinstance(row, dict):
                taken += self._object(row, names)
            elif isinstance(row, str):
                taken += 1
                if row.startswith(("http://", "https://")):
                    names.link(row)
                else:
                    names.named(row)
        if taken < len(rows):
            skipped(f"{len(rows) - taken} rows are left out: they name nothing")
        return taken > 0 or not rows

    @staticmethod
    def _object(row: dict[str, Any], names: Names) -> bool:
        """Take one object; False when it names nothing."""
        name, href = _text(row, _NAMES), _text(row, _URLS)
        if not name and not href:
            return False
        kind = row.get("type")
        is_dir = (isinstance(kind, str) and kind.lower() in _DIRECTORIES) or any(row.get(flag) is True for flag in _FLAGS)
        size = row.get("size")
        size = within(size) if isinstance(size, int) and not isinstance(size, bool) else None
        mtime_ns = next((any_ns(row[key]) for key in _TIMES if row.get(key) is not None), None)
        if not name:
            names.link(href, size, size is not None, mtime_ns, is_dir=is_dir)
            return True
        if href and "\ufffd" in name:
            # Caddy's way with bytes that are not UTF-8; its URL has them.
            names.link(href, size, size is not None, mtime_ns, is_dir=is_dir)
            return True
        hashes = tuple((key, digest) for key in _HASHES if key in row and (digest := hexadecimal(row[key], key)))
        more: dict[str, object] = {"hashes": hashes} if hashes else {}
        names.named(name, size, size is not None, mtime_ns, is_dir=is_dir, href=href, **more)
        return True


def _text(row: dict[str, Any], keys: Iterable[str]) -> str:
    return next((row[key] for key in keys if isinstance(row.get(key), str)), "")


__all__ = ["JsonDriver", "hexadecimal"]
