"""Whose a URL is, who it names, where a redirect leads, and how it goes over the wire."""

from __future__ import annotations

import base64
import functools
import re
from typing import Any, NamedTuple
from urllib.parse import quote, unquote, urljoin, urlsplit, urlunsplit

_SAFE = "%/:=&?~#+!$,;'@()*[]"
"""What quote() leaves alone besides letters and digits: a URL that is encoded stays as it is."""
_PLAIN = re.compile(r"[!-~]*")

Origin = tuple[str, str, int]
"""Scheme, host in lower case, port."""


@functools.lru_cache(maxsize=1024)
def origin_of(url: str) -> Origin | None:
    """Return whose *url* is (RFC 9110, section 4.3.1); None when it is no URL of a web server."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    default = {"http": 80, "https": 443}.get(parts.scheme)
    if default is None or not host:
        return None
    return parts.scheme, host.rstrip("."), default if port is None else port


class User(NamedTuple):
    """Of basic authentication."""

    name: str
    password: str


@functools.lru_cache(maxsize=1024)
def without_user(url: str) -> tuple[str, User | None]:
    """Return *url* without user and password, and these. ValueError when it is no URL."""
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    if not at:
        return url, None
    name, _, password = user.partition(":")
    return urlunsplit(parts._replace(netloc=host)), User(unquote(name), unquote(password))


def basic(user: User) -> str:
    """Return the value of Authorization (RFC 7617, in UTF-8)."""
    return "Basic " + base64.b64encode(f"{user.name}:{user.password}".encode()).decode("ascii")


def absolute(base: str, place: str) -> str:
    """Return where a Location leads that came with *base*, encoded, without a fragment; "" when that is no URL."""
    # Header bytes that are no UTF-8 come as surrogates; quote() brings the bytes back.
    place = place.strip()
    if not place.isascii() or re.search(r"[\x00-\x20\x7f\"<>\\^`{|}]", place):
        place = quote(place, safe=_SAFE, errors="surrogateescape")
    try:
        parts = urlsplit(urljoin(base, place))
        return urlunsplit((parts.scheme, parts.netloc, parts.path or "/", parts.query, ""))
    except ValueError:
        return ""


@functools.lru_cache(maxsize=1024)
def wire(url: str) -> Any:
    """Return *url* as aiohttp takes it, its encoding untouched: "%2F" is not "/", and a signature covers each byte.

    What no URL may hold is encoded. ValueError when it is none.
    """
    from yarl import URL

    parts = urlsplit(url)
    host = parts.netloc
    if not host.isascii():
        host = host.encode("idna").decode("ascii")
    path, query = (
        text if _PLAIN.fullmatch(text) else quote(text, safe=_SAFE, errors="surrogateescape")
        for text in (parts.path or "/", parts.query)
    )
    return URL(urlunsplit((parts.scheme, host, path, query, "")), encoded=True)


__all__ = ["Origin", "User", "absolute", "basic", "origin_of", "wire", "without_user"]
