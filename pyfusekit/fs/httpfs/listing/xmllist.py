"""XML by expat, hardened: no document type, so no entities; and nginx's autoindex_format xml."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from xml.parsers import expat

from ..values import Listing
from .base import Page
from .fields import iso_ns, within
from .names import Names

_DEPTH = 64
_TAME = {code: 0x10FE00 + (code & 0xFF) for code in (*range(9), 11, 12, *range(14, 32), *range(0xDC80, 0xDD00))}
"""What XML cannot have to the end of the last private area: control characters, and bytes that are not UTF-8."""
_WILD = {tame: wild for wild, tame in _TAME.items()}
_wild = re.compile(f"[{chr(0x10FE00)}-{chr(0x10FEFF)}]").search
_forbidden = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\udc80-\udcff]").search


class NotXml(ValueError):
    """It is not well-formed, has a document type, or is nested too deeply."""


Start = Callable[[str, dict[str, str]], None]
End = Callable[[str, str], None]
"""Is given the name and the text in front of the end of an element."""


def read(body: bytes, start: Start, end: End) -> None:
    """Read a document; names are "namespace name", with a space where there is a namespace; NotXml.

    Bytes that are not UTF-8 and control characters, which XML cannot have, survive: nginx writes names as they are.
    """
    changed = _tamed(body)
    try:
        if changed is None:
            _parse(body, start, end)
        else:
            _parse(changed, start, lambda name, text: end(name, _untamed(text)))
    except expat.ExpatError as error:
        raise NotXml(str(error)) from None


def _tamed(body: bytes) -> str | None:
    """Return *body* with what XML forbids in characters nobody uses; None when it has nothing of that, or these characters."""
    text = body.decode("utf-8", "surrogateescape")
    if text.isascii() and text.isprintable():
        return None
    if not _forbidden(text) or _wild(text):
        return None
    return text.translate(_TAME)


def _untamed(text: str) -> str:
    return text.translate(_WILD) if not text.isascii() and _wild(text) else text


def _parse(document: bytes | str, start: Start, end: End) -> None:
    pieces: list[str] = []
    depth = 0

    def begin(name: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > _DEPTH:
            raise NotXml("nested too deeply")
        pieces.clear()
        start(name, attributes)

    def finish(name: str) -> None:
        nonlocal depth
        depth -= 1
        end(name, pieces[0] if len(pieces) == 1 else "".join(pieces))
        pieces.clear()

    def refuse(*_: Any) -> None:
        raise NotXml("a document type")

    parser = expat.ParserCreate(namespace_separator=" ")
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = begin
    parser.EndElementHandler = finish
    parser.CharacterDataHandler = pieces.append
    try:
        parser.Parse(document, True)
    except (LookupError, ValueError) as error:
        # An encoding nobody knows.
        raise error if isinstance(error, NotXml) else NotXml(str(error)) from None


def local(name: str) -> str:
    """Return an element's name without its namespace."""
    return name.rpartition(" ")[2]


def number_of(text: str) -> int | None:
    """Return a size; None when it is none."""
    return within(int(text)) if len(text) < 20 and text.isascii() and text.isdigit() else None


def root(page: Page) -> str:
    """Return the name of the first element as it is written, without a prefix, by the beginning of the page alone."""
    head = page.head
    for _ in range(16):
        at = head.find(b"<")
        if at < 0:
            return ""
        mark = head[at + 1 : at + 2]
        if mark.isalpha():
            return re.split(rb"[\s/>]", head[at + 1 :], maxsplit=1)[0].rpartition(b":")[2].decode("ascii", "replace")
        head = head[at + 1 :].partition(b"-->" if head.startswith(b"<!--", at) else b">")[2]
    return ""


class NginxXmlDriver:
    """nginx: <list> of <directory>, <file> and <other>, each a name with mtime and size as attributes."""

    name = "nginx-xml"

    def accepts(self, page: Page) -> bool:
        """Return whether it is XML of a <list>."""
        return page.is_xml and root(page) == "list"

    def parse(self, page: Page, external: bool, skipped: Callable[[str], None]) -> Listing | None:
        """Return the listing; None when it is other XML, or none at all."""
        names = Names(page.url, external, skipped)
        attributes: dict[str, str] = {}

        def start(name: str, given: dict[str, str]) -> None:
            nonlocal attributes
            attributes = given

        def end(name: str, text: str) -> None:
            if name in ("directory", "file", "other"):
                size = number_of(attributes.get("size", ""))
                mtime_ns = iso_ns(attributes.get("mtime", ""))
                names.named(text, size, size is not None, mtime_ns, is_dir=name == "directory")

        try:
            read(page.body, start, end)
        except NotXml:
            return None
        return Listing(names.entries(), "", self.name)


__all__ = ["NginxXmlDriver", "NotXml", "local", "number_of", "read", "root"]
