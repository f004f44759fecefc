"""Metalink, version 4 (RFC 5854) and 3: files, each with several URLs and the hashes of its content.

Mirrors on other hosts are the point of it: they are kept when the file has a hash that cannot be forged, sha-256 or longer, for
what comes from there is verified; without one, only when external links are asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ..values import Entry, Listing
from .base import Page
from .jsonlist import hexadecimal
from .names import Names, shown
from .xmllist import NotXml, local, number_of, read, root

_STRONG = ("sha256", "sha384", "sha512")
_LAST = 1_000_000


class _Url(NamedTuple):
    """Where a file is; the smallest rank is the best."""

    rank: int
    number: int
    href: str


class _Files:
    """The <file> elements; each is told when it ends, with its name, size, hashes and URLs."""

    def __init__(self, take: Callable[[str, int | None, list[tuple[str, str]], list[_Url]], None]) -> None:
        self.take = take
        self.count = 0
        self._path: list[str] = []
        self._attributes: list[dict[str, str]] = []
        self._name = ""
        self._size: int | None = None
        self._hashes: list[tuple[str, str]] = []
        self._urls: list[_Url] = []

    def start(self, name: str, attributes: dict[str, str]) -> None:
        name = local(name)
        self._path.append(name)
        self._attributes.append(attributes)
        if name == "file":
            self._name, self._size, self._hashes, self._urls = attributes.get("name", ""), None, [], []

    def end(self, name: str, text: str) -> None:
        name = self._path.pop()
        attributes = self._attributes.pop()
        parent = self._path[-1] if self._path else ""
        if name == "file":
            self.count += 1
            self.take(self._name, self._size, self._hashes, sorted(self._urls))
        elif name == "size" and parent == "file":
            self._size = number_of(text.strip())
        elif name == "hash" and parent in ("file", "verification"):
            # Those in <pieces> are of parts.
            algorithm = attributes.get("type", "").lower().replace("-", "")
            digest = hexadecimal(text.strip(), algorithm)
            if digest:
                self._hashes.append((algorithm, digest))
        elif name == "url" and parent in ("file", "resources"):
            self._urls.append(_Url(_rank(attributes), len(self._urls), text.strip()))


def _rank(attributes: dict[str, str]) -> int:
    """Return the place of a URL: version 4 counts priority up from 1, version 3 preference down from 100."""
    priority, preference = number_of(attributes.get("priority", "")), number_of(attributes.get("preference", ""))
    if priority is not None:
        return min(priority, _LAST)
    return _LAST - min(preference, 100) if preference is not None else _LAST


class MetalinkDriver:
    """Each file with a URL is an entry; the best URL is its own, the others are its mirrors."""

    name = "metalink"

    def accepts(self, page: Page) -> bool:
        """Return whether it is XML of a <metalink>."""
        return page.is_xml and root(page) == "metalink"

    def parse(self, page: Page, external: bool, skipped: Callable[[str], None]) -> Listing | None:
        """Return the listing; None when it is no XML, or without a file."""
        names = Names(page.url, external, skipped)

        def take(name: str, size: int | None, hashes: list[tuple[str, str]], urls: list[_Url]) -> None:
            if not names.allowed(name):
                return
            anywhere = external or any(algorithm in _STRONG for algorithm, _ in hashes)
            places = [place for url in urls if (place := names.place(url.href)) is not None]
            kept = [place for place in places if anywhere or place.origin == names.origin]
            if not kept:
                why = "external links are not asked for, and it has no hash of sha-256 or longer" if places else "it has no URL"
                skipped(f"{shown(name)} is left out: {why}")
                return
            first, *others = dict.fromkeys(f"{place.origin}{place.path}{place.query}" for place in kept)
            names.keep(Entry(name, first, False, size, size is not None, mirrors=tuple(others), hashes=tuple(hashes)))

        files = _Files(take)
        try:
            read(page.body, files.start, files.end)
        except NotXml:
            return None
        return Listing(names.entries(), "", self.name) if files.count else None


__all__ = ["MetalinkDriver"]
