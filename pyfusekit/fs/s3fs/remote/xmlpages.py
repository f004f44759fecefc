"""The XML of the store's answers, read with expat: listings, errors, and the small answers to a copy.

botocore's parser takes 65 ms of CPU for a page of 1000 keys, expat 5; where all keys of a page look alike, which is what
servers send, a regular expression made from the first reads them in 2. The text comes from the network: what is malformed
is a StoreError, never a wrong key.
"""

from __future__ import annotations

import errno
import functools
import operator
import re
from calendar import timegm
from typing import NamedTuple
from urllib.parse import unquote_plus
from xml.parsers import expat

from .errors import StoreError
from .store import Object, Page

_MONTHS = {
    name: number
    for number, name in enumerate(("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"), start=1)
}
_TOP = frozenset({"EncodingType", "IsTruncated", "NextContinuationToken"})
"""The elements of a page that are about all of it; none has the name of one inside Contents."""


class Said(NamedTuple):
    """The <Error> of an answer."""

    code: str
    message: str
    request_id: str
    region: str
    """Where the bucket is, when the error is that it is not here."""


@functools.lru_cache(1024)
def _day(text: str) -> int:
    """Return when a day begins: the keys of a page share a few."""
    return timegm((int(text[:4]), int(text[5:7]), int(text[8:10]), 0, 0, 0))


def iso_ns(text: str) -> int:
    """Return "2026-11-22T10:11:12.345Z" as nanoseconds; 0 when it is no time. Fractions and the zone Z are optional."""
    try:
        seconds = _day(text[:10]) + int(text[11:13]) * 3600 + int(text[14:16]) * 60 + int(text[17:19])
        fraction = text[20:].rstrip("Z")[:9] if text[19:20] == "." else ""
        return seconds * 1_000_000_000 + (int(fraction.ljust(9, "0")) if fraction else 0)
    except ValueError:
        return 0


@functools.lru_cache(1024)
def http_ns(text: str) -> int:
    """Return "Sun, 22 Nov 2026 10:11:12 GMT" as nanoseconds; 0 when it is no time."""
    try:
        _, day, month, year, clock, *_ = text.split()
        hours, minutes, seconds = clock.split(":")
        moment = (int(year), _MONTHS[month], int(day), int(hours), int(minutes), int(seconds))
        return timegm(moment) * 1_000_000_000
    except (ValueError, KeyError):
        return 0


def bare(etag: str) -> str:
    """Return an ETag without what surrounds it."""
    return etag.removeprefix("W/").strip('"')


def _refuse_doctype(*_: object) -> None:
    """Stop at a document type: S3 sends none, web pages do, and entities are how small documents become large."""
    raise ValueError("a document type")


def _parser() -> expat.XMLParserType:
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = _refuse_doctype
    return parser


Row = tuple[str, str, str, str, str]
"""Of a key: _FIELDS, as text; empty is missing."""


class _Elements(NamedTuple):
    """What a ListBucketResult consists of."""

    root: str
    top: dict[str, str]
    rows: list[Row]
    prefixes: list[str]


def _elements(data: bytes, *, exact: bool) -> _Elements:
    """Return the parts of a listing; ValueError or expat.ExpatError.

    Only the ends of elements are Python calls, the text is gathered by list.append: that halves the time of a page. So, when
    not *exact*, space before an element counts as the beginning of its text, and is cut off.
    """
    buffer: list[str] = []
    rows: list[Row] = []
    prefixes: list[str] = []
    top: dict[str, str] = {}
    row: dict[str, str] = {}
    root = ""
    clear = buffer.clear

    def end(name: str) -> None:
        nonlocal row, root
        if name == "Contents":
            get = row.get
            rows.append((get("Key", ""), get("Size", ""), get("LastModified", ""), get("ETag", ""), get("StorageClass", "")))
            row = {}
        elif name == "CommonPrefixes":
            prefixes.append(row.get("Prefix", ""))
            row = {}
        else:
            text = buffer[0] if len(buffer) == 1 else "".join(buffer)
            if not exact:
                text = text.lstrip()
            if name in _TOP:
                top[name] = text
            else:
                row[name] = text
        root = name
        clear()

    parser = _parser()
    parser.EndElementHandler = end
    parser.CharacterDataHandler = buffer.append
    if exact:
        parser.StartElementHandler = lambda name, attributes: clear()
    parser.Parse(data, True)
    return _Elements(root, top, rows, prefixes)


_ELEMENT = re.compile(r"<(\w+)>[^<]*</\1>|<(\w+)>(?:<(\w+)>[^<]*</\3>|<\w+/>)+</\2>")
_FIELDS = ("Key", "Size", "LastModified", "ETag", "StorageClass")


def _pattern(first: str) -> tuple[str, list[int]] | None:
    """Return the expression of a <Contents> with the elements of *first*, each optional, and which groups are _FIELDS."""
    parts: list[str] = []
    groups: list[str] = []
    at = 0
    while at < len(first):
        found = _ELEMENT.match(first, at)
        if found is None:
            return None
        at = found.end()
        name = found[1] or found[2]
        inside = "[^<]*" if found[1] else r"(?:<\w+>[^<]*</\w+>|<\w+/>)+"
        if name in _FIELDS:
            if name in groups:
                return None
            groups.append(name)
            inside = f"({inside})"
        parts.append(f"(?:<{name}>{inside}</{name}>)?")
    # The last group is always empty: what the keys of this server have not.
    picked = [groups.index(name) if name in groups else len(groups) for name in _FIELDS]
    return f"<Contents>{''.join(parts)}()</Contents>", picked


def _alike(data: bytes) -> tuple[list[Row], bytes] | None:
    """Return the keys of a page and what is left of it without them, when they stand together and all look like the first.

    INVARIANT: what this takes for a key is one to every parser of XML; whatever is not that simple is left to expat, which
    also reads what is left and so sees to the rest of the document.
    """
    # Of the entities these two are in every ETag; they are the quotes that are cut off.
    text = data.decode().replace("&quot;", '"').replace("&#34;", '"')
    start, end = text.find("<Contents>"), text.rfind("</Contents>") + len("</Contents>")
    if start < 0 or "<!" in text or "&" in text[start:end]:
        return None
    made = _pattern(text[start + len("<Contents>") : text.find("</Contents>", start)])
    if made is None:
        return None
    pattern, (key, size, modified, etag, storage_class) = made
    found = re.compile(pattern).findall(text, start, end)
    joints = text.count("</Contents><Contents>", start, end)
    if len(found) != joints + 1 or text.count("Contents>") != 2 * len(found):
        return None
    picked = operator.itemgetter(key, size, modified, etag, storage_class)
    rows: list[Row] = [picked(row) for row in found]
    return rows, (text[:start] + text[end:]).encode()


def page(what: str, data: bytes) -> Page:
    """Return the page that *data* says; StoreError: EIO when it is none."""
    try:
        simple = _alike(data)
        elements = _elements(data if simple is None else simple[1], exact=False)
        encoded = elements.top.get("EncodingType", "") == "url"
        if not encoded:
            # Space may belong to a key, and so may entities.
            elements = _elements(data, exact=True)
        elif simple is not None:
            # Keys in the rest were written in another way than the first.
            elements = _elements(data, exact=False) if elements.rows else elements._replace(rows=simple[0])
        if elements.root == "ListBucketResult":
            return _page(what, elements, encoded)
    except (expat.ExpatError, ValueError) as exc:
        raise not_s3(what) from exc
    raise not_s3(what)


def _page(what: str, elements: _Elements, encoded: bool) -> Page:
    objects: list[Object] = []
    append = objects.append
    for key, size, modified, etag, storage_class in elements.rows:
        if encoded and ("%" in key or "+" in key):
            key = unquote_plus(key)
        if not key:
            raise ValueError("a key without a name")
        append(Object(key, int(size), iso_ns(modified), etag.removeprefix("W/").strip('"'), storage_class))
    prefixes = [unquote_plus(prefix) for prefix in elements.prefixes] if encoded else elements.prefixes
    token = ""
    if elements.top.get("IsTruncated") == "true":
        token = elements.top.get("NextContinuationToken", "")
        if not token:
            raise StoreError(
                errno.EIO, f"{what}: there are more names, and the store does not say how to ask for them", code="NotS3"
            )
    return Page(objects, prefixes, token)


def leaves(data: bytes) -> tuple[str, dict[str, str]]:
    """Return the root's name and the text of each element, the last of a name; ("", {}) when *data* is no XML."""
    found: dict[str, str] = {}
    text: list[str] = []
    root = ""

    def end(name: str) -> None:
        nonlocal root
        found[name] = "".join(text).strip()
        root = name
        text.clear()

    parser = _parser()
    parser.StartElementHandler = lambda name, attributes: text.clear()
    parser.EndElementHandler = end
    parser.CharacterDataHandler = text.append
    try:
        parser.Parse(data, True)
    except (expat.ExpatError, ValueError):
        return "", {}
    return root, found


def said(data: bytes) -> Said | None:
    """Return the error that *data* is, or None."""
    if b"<Error" not in data:
        return None
    root, found = leaves(data)
    if root != "Error":
        return None
    return Said(found.get("Code", ""), found.get("Message", ""), found.get("RequestId", ""), found.get("Region", ""))


def not_s3(what: str) -> StoreError:
    """Return the error of an answer that is none of S3's: any page of a web server may come with the status 200."""
    return StoreError(errno.EIO, f"{what}: the answer is not S3's", code="NotS3")


__all__ = ["Said", "bare", "http_ns", "iso_ns", "leaves", "not_s3", "page", "said"]
