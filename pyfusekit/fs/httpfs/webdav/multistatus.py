"""The answers of WebDAV that are XML (RFC 4918, section 13): what each resource says of its properties."""

from __future__ import annotations

import errno
from typing import NamedTuple
from urllib.parse import unquote, urljoin, urlsplit
from xml.etree import ElementTree

from ..values import HttpError

_DAV = "{DAV:}"


class Member(NamedTuple):
    """A resource that a multistatus names."""

    path: str
    """Of its URL: decoded, without a slash at its end but the root's."""
    is_dir: bool
    props: dict[str, str]
    """Properties of the namespace DAV: that it has, by name: their text."""
    statuses: dict[str, int]
    """What was answered of each property, by name."""
    status: int
    """Of the resource as a whole; 0 when only its properties have one."""


def parse_multistatus(url: str, body: bytes) -> list[Member]:
    """Return the resources an answer of 207 to a request for *url* tells of; HttpError (EIO) when it is no multistatus."""
    try:
        if b"<!DOCTYPE" in body or b"<!ENTITY" in body:
            raise ValueError("it declares entities, which no WebDAV server does")
        root = ElementTree.fromstring(body)
        if root.tag != f"{_DAV}multistatus":
            raise ValueError(f"its root is {root.tag}")
        return [_member(url, one) for one in root.iter(f"{_DAV}response")]
    except (ElementTree.ParseError, ValueError) as exc:
        raise HttpError(errno.EIO, f"{url}: the answer is no multistatus of WebDAV: {exc}", url=url, status=207) from None


def path_of(url: str) -> str:
    """Return the decoded path of *url*, without a slash at its end, for comparing what servers encode differently."""
    return unquote(urlsplit(url).path, errors="surrogateescape").rstrip("/") or "/"


def _member(url: str, response: ElementTree.Element) -> Member:
    href = (response.findtext(f"{_DAV}href") or "").strip()
    if not href:
        raise ValueError("a response has no href")
    props: dict[str, str] = {}
    statuses: dict[str, int] = {}
    is_dir = False
    for propstat in response.iter(f"{_DAV}propstat"):
        status = _status(propstat.findtext(f"{_DAV}status"))
        for prop in propstat.iterfind(f"{_DAV}prop/*"):
            name = prop.tag.removeprefix(_DAV)
            statuses[name] = status
            if 200 <= status < 300:
                props[name] = (prop.text or "").strip()
                is_dir = is_dir or (name == "resourcetype" and prop.find(f"{_DAV}collection") is not None)
    return Member(path_of(urljoin(url, href)), is_dir, props, statuses, _status(response.findtext(f"{_DAV}status")))


def _status(line: str | None) -> int:
    """Return the number in "HTTP/1.1 200 OK"; 0 when there is none."""
    words = (line or "").split()
    return int(words[1]) if len(words) > 1 and words[1].isascii() and words[1].isdecimal() else 0


__all__ = ["Member", "parse_multistatus", "path_of"]
