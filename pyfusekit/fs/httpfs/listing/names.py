"""From links to entries: which are names directly below the URL of a listing, and what they are called.

A name is the last component of a URL's path, percent-decoded: as UTF-8, and bytes that are not survive as surrogates, as
os.fsdecode has it. What cannot be a name in a directory is left out with a line in the log: ".", "..", nothing, more than 255
bytes, a NUL, and a slash, which is what an encoded "%2F" is. (It is not shown escaped: "a%2Fb" is a name a file may really
have, its link says "a%252Fb".)

Quietly left out is what is on every page: the page itself with its links to sort it, the directories above, fragments,
other schemes, other places of the same server, and other servers unless they are asked for. A link that leads deeper,
to "a/b/c", says that there is a directory "a", unless another link says what "a" is.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import quote, unquote_to_bytes, urlsplit

from ..values import Entry

NAME_MAX = 255
_CHARS = r"[A-Za-z0-9_.~!$&'()*+,;=@-]*"
_simple = re.compile(rf"(?:\./)?({_CHARS}(?:%[0-9A-Fa-f][0-9A-Fa-f]{_CHARS})*)(/?)").fullmatch
"""A relative link to one component, as servers write them."""
_scheme = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:").match
_PATH = "/%:@!$&'()*+,;=~-._"
_QUERY = _PATH + "?[]"
_stray = re.compile(r"%(?![0-9A-Fa-f]{2})").sub
_PORTS = {"http": 80, "https": 443}
_NO_BREAKS = str.maketrans("", "", "\t\r\n")


class Place(NamedTuple):
    """A URL taken apart."""

    origin: str
    """Scheme, host and port."""
    path: str
    query: str
    """With its question mark; empty when there is none."""


def origin_of(url: str) -> str:
    """Return "scheme://host:port" in one spelling; empty for what is no http URL."""
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname
    except ValueError:
        return ""
    scheme = parts.scheme.lower()
    if scheme not in _PORTS or not host:
        return ""
    shown = f"[{host}]" if ":" in host else host
    return f"{scheme}://{shown}" if port in (None, _PORTS[scheme]) else f"{scheme}://{shown}:{port}"


def encoded(text: str, safe: str = _PATH) -> str:
    """Return part of a URL with all encoded that may not stand there; what is encoded stays."""
    if "%" in text:
        text = _stray("%25", text)
    return quote(text.encode("utf-8", "surrogateescape"), safe=safe)


def decoded(segment: str) -> str:
    """Return the name a component of a URL stands for."""
    if "%" not in segment and segment.isascii():
        return segment
    return unquote_to_bytes(segment.encode("utf-8", "surrogateescape")).decode("utf-8", "surrogateescape")


def decoded_by_python(segment: str) -> str:
    """Return the same for http.server, which encodes a byte that is not UTF-8 as the surrogate that stands for it."""
    data = unquote_to_bytes(segment.encode("utf-8", "surrogateescape"))
    try:
        return data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return data.decode("utf-8", "surrogateescape")


def _flat(path: str) -> str:
    """Return a path without "." and ".." components (RFC 3986, section 5.2.4)."""
    kept: list[str] = []
    parts = path.split("/")
    for part in parts[1:]:
        if part == "..":
            if kept:
                kept.pop()
        elif part != ".":
            kept.append(part)
    if parts[-1] in (".", "..") and (not kept or kept[-1]):
        kept.append("")
    return "/" + "/".join(kept)


class Names:
    """The entries of a page, gathered from its links in any order.

    A name that comes twice is one entry: a directory rather than a file, a URL without a query rather than with one, the
    first otherwise; size and time are the first that are told.
    """

    def __init__(
        self, url: str, external: bool, skipped: Callable[[str], None], decode: Callable[[str], str] = decoded
    ) -> None:
        self.external = external
        self.skipped = skipped
        self.decode = decode
        parts = urlsplit(url)
        self.origin = origin_of(url)
        path = _flat(encoded(parts.path or "/"))
        self.base = Place(self.origin, path, f"?{parts.query}" if parts.query else "")
        """What links are relative to."""
        self.below = path[: path.rfind("/") + 1]
        self.prefix = self.origin + self.below
        """What the URL of an entry begins with."""
        self.direct = path == self.below
        """Whether a relative link to one component is surely to an entry: there is no other base."""
        self._components = self.below.count("/")
        self._decoded_below = self.below.split("/")
        self._found: dict[str, Entry] = {}
        self._implied: dict[str, str] = {}

    def rebase(self, href: str) -> None:
        """Let links be relative to *href*, as <base> says."""
        place = self.place(href)
        if place is not None:
            self.base = place
            self.direct = place.origin == self.origin and place.path == self.below

    def place(self, href: str) -> Place | None:
        """Return where a link leads, as browsers see it; None when nowhere on the web."""
        href = href.strip(" \x0c\t\r\n").translate(_NO_BREAKS).partition("#")[0]
        if not href:
            return None
        scheme = _scheme(href)
        if scheme or href.startswith("//"):
            if not scheme:
                href = self.base.origin.partition("//")[0] + href
            origin = origin_of(href)
            if not origin:
                return None
            parts = urlsplit(href)
            query = f"?{encoded(parts.query, _QUERY)}" if parts.query else ""
            return Place(origin, _flat(encoded(parts.path or "/")), query)
        path, mark, query = href.partition("?")
        if mark:
            query = f"?{encoded(query, _QUERY)}"
        if not path:
            path = self.base.path
        elif path.startswith("/"):
            path = _flat(encoded(path))
        else:
            path = _flat(self.base.path[: self.base.path.rfind("/") + 1] + encoded(path))
        return Place(self.base.origin, path, query)

    def _rest(self, path: str) -> str | None:
        """Return what of *path* is below the page; None when it is elsewhere."""
        if path.startswith(self.below):
            return path[len(self.below) :]
        parts = path.split("/", self._components)
        if len(parts) <= self._components:
            return None
        # "/My%20Files/" and "/My%20files/" differ, "/%41/" and "/A/" do not.
        if [decoded(part) for part in parts[:-1]] != [decoded(part) for part in self._decoded_below[:-1]]:
            return None
        return parts[-1]

    def link(
        self,
        href: str,
        size: int | None = None,
        exact: bool = False,
        mtime_ns: int | None = None,
        *,
        is_dir: bool = False,
        etag: str = "",
        content_type: str = "",
    ) -> None:
        """Add what *href* leads to, if it is an entry; *is_dir* when more than a slash at its end tells."""
        simple = _simple(href[len(self.below) :] if href.startswith(self.below) else href) if self.direct else None
        if simple is not None:
            segment, slash = simple.groups()
            if not segment or segment in (".", ".."):
                return
            is_dir = is_dir or slash == "/"
            url = f"{self.prefix}{segment}/" if is_dir else self.prefix + segment
        else:
            place = self.place(href)
            found = None if place is None else self._entry_of(place, is_dir)
            if found is None:
                return
            segment, url, is_dir = found
        name = segment if "%" not in segment and segment.isascii() else self.decode(segment)
        if is_dir:
            size, exact = None, False
        # What is this short and came through _simple needs no closer look.
        if (simple is not None and name is segment and len(name) < NAME_MAX) or self.allowed(name):
            entry = Entry(name, url, is_dir, size, exact, mtime_ns, etag, content_type)
            if self._found.setdefault(name, entry) is not entry:
                self.keep(entry)

    def _entry_of(self, place: Place, is_dir: bool) -> tuple[str, str, bool] | None:
        """Return the component, the URL and whether it is a directory of an entry; None when *place* is none."""
        if place.origin != self.origin:
            segment = place.path.rstrip("/").rpartition("/")[2]
            if not self.external or not segment:
                return None
            is_dir = is_dir or place.path.endswith("/")
            path = place.path.rstrip("/") + "/" if is_dir else place.path
            return segment, f"{place.origin}{path}{place.query}", is_dir
        rest = self._rest(place.path)
        if not rest:
            return None
        segment, slash, deeper = rest.partition("/")
        if deeper:
            self._implied.setdefault(self.decode(segment), f"{self.prefix}{segment}/")
            return None
        is_dir = is_dir or slash == "/"
        return segment, f"{self.prefix}{segment}{'/' if is_dir else ''}{place.query}", is_dir

    def named(
        self,
        name: str,
        size: int | None = None,
        exact: bool = False,
        mtime_ns: int | None = None,
        *,
        is_dir: bool = False,
        href: str = "",
        **more: object,
    ) -> None:
        """Add an entry by its *name*, which is not encoded; *href*: where it is, when that is told."""
        if name.endswith("/"):
            name, is_dir = name.rstrip("/"), True
        name = name.removeprefix("./")
        if not self.allowed(name):
            return
        if not href:
            url = f"{self.prefix}{quote(name.encode('utf-8', 'surrogateescape'), safe='')}{'/' if is_dir else ''}"
        else:
            place = self.place(href)
            if place is None or (place.origin != self.origin and not self.external):
                return
            path = place.path + "/" if is_dir and not place.path.endswith("/") else place.path
            url = f"{place.origin}{path}{place.query}"
        self.keep(Entry(name, url, is_dir, None if is_dir else size, exact and not is_dir, mtime_ns)._replace(**more))  # type: ignore[arg-type]

    def allowed(self, name: str) -> bool:
        """Return whether *name* can be one in a directory; if not, a line in the log says why."""
        if name in ("", ".", ".."):
            why = "it is no name"
        elif "/" in name:
            why = "it has a slash"
        elif "\0" in name:
            why = "it has a NUL"
        elif len(name) * 4 > NAME_MAX and _length(name) > NAME_MAX:
            why = "it is longer than 255 bytes"
        elif not name.isascii() and not _encodable(name):
            why = "it is not Unicode"
        else:
            return True
        self.skipped(f"{shown(name)} is left out: {why}")
        return False

    def keep(self, entry: Entry) -> None:
        """Add an entry, or what it tells more of one that is there."""
        old = self._found.setdefault(entry.name, entry)
        if old is entry:
            return
        first, second = old, entry
        if (second.is_dir, "?" not in second.url) > (first.is_dir, "?" not in first.url):
            first, second = second, first
        if first.mtime_ns is None:
            first = first._replace(mtime_ns=second.mtime_ns)
        if first.size is None and not first.is_dir:
            first = first._replace(size=second.size, exact=second.exact)
        self._found[entry.name] = first

    def entries(self) -> list[Entry]:
        """Return all entries, in the order of the page."""
        for name, url in self._implied.items():
            if name not in self._found and self.allowed(name):
                self._found[name] = Entry(name, url, True)
        return list(self._found.values())


def shown(name: str) -> str:
    """Return *name* for a line of the log: printable, and not long."""
    text = ascii(name[:80])
    return text if len(text) <= 100 else f"{text[:96]}...{text[-1]}"


def _length(name: str) -> int:
    return len(name.encode("utf-8", "surrogatepass")) if not _encodable(name) else len(name.encode("utf-8", "surrogateescape"))


def _encodable(name: str) -> bool:
    try:
        name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


__all__ = ["NAME_MAX", "Names", "Place", "decoded", "decoded_by_python", "encoded", "origin_of", "shown"]
