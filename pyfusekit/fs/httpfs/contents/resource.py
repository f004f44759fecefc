"""What the headers of an answer say of a file: its size, its version, when it was changed."""

from __future__ import annotations

import calendar
from collections.abc import Mapping
from email.utils import parsedate_tz
from urllib.parse import urlsplit

from ..values import Resource, Validator

SETTLED_SECONDS = 60
"""So much older than the answer a Last-Modified must be to tell versions apart (RFC 9110, section 8.8.2.2: clocks differ)."""
IDENTITY = {"accept-encoding": "identity"}
"""Sent with every request for a file's bytes or its size."""


def http_time(text: str) -> int | None:
    """Return a date of HTTP, in any of its three forms, as seconds since 1970; None when it is none."""
    try:
        found = parsedate_tz(text)
        return None if found is None else calendar.timegm((*found[:6], 0, 0, 0)) - (found[9] or 0)
    except (ValueError, OverflowError, IndexError, TypeError):
        return None


def encoded(headers: Mapping[str, str]) -> str:
    """Return the coding of an answer's body; empty when it is the file's own bytes."""
    codings = [word.strip().lower() for word in headers.get("content-encoding", "").split(",")]
    return ", ".join(word for word in codings if word not in ("", "identity"))


def length_of(headers: Mapping[str, str]) -> int | None:
    """Return the size of the file an answer of 200 brings; None when it does not tell, or tells that of something else."""
    text = headers.get("content-length", "").strip()
    if encoded(headers) or headers.get("transfer-encoding") or not (text.isascii() and text.isdecimal()):
        return None
    return int(text) if len(text) < 19 else None


def validator_of(headers: Mapping[str, str]) -> Validator:
    """Return what an answer tells its version apart by."""
    modified = headers.get("last-modified", "").strip()
    changed, now = http_time(modified), http_time(headers.get("date", ""))
    settled = changed is not None and now is not None and now - changed >= SETTLED_SECONDS
    return Validator(headers.get("etag", "").strip(), modified, settled)


def describe(url: str, final_url: str, size: int | None, headers: Mapping[str, str], *, ranges: bool | None) -> Resource:
    """Return the version of a file that an answer tells of."""
    changed = http_time(headers.get("last-modified", ""))
    return Resource(
        url,
        final_url,
        size,
        None if changed is None else changed * 1_000_000_000,
        validator_of(headers),
        headers.get("content-type", "").strip(),
        ranges,
        dict(headers),
    )


def other_version(pinned: Validator, seen: Validator) -> bool:
    """Return whether *seen* is not of the version that was *pinned*: strictly, unless If-Range settles it."""
    if pinned.changed(seen):
        return True
    return not pinned.condition and bool(pinned.modified and seen.modified and pinned.modified != seen.modified)


def tells(pinned: Validator, seen: Validator) -> bool:
    """Return whether *seen* has something of what was *pinned*, so that it can be told which version it is of."""
    if pinned.etag:
        return bool(seen.etag)
    return bool(seen.modified) or not pinned.modified


def cache_key(resource: Resource) -> str:
    """Return what names this version among all there were and will be; empty when nothing does.

    A promised digest does; a strong ETag; a Last-Modified that is strong, also beside a weak ETag.
    """
    digest = strongest(resource.hashes)
    if digest:
        return f"{digest[0]}:{digest[1].lower()}"
    validator = resource.validator
    if validator.condition:
        return validator.condition
    return f"{validator.etag} {validator.modified}" if validator.settled else ""


_STRONG = ("sha512", "sha3_512", "blake2b", "sha384", "sha3_384", "sha256", "sha3_256", "blake2s", "sha1", "md5")


def strongest(hashes: tuple[tuple[str, str], ...]) -> tuple[str, str] | None:
    """Return the best of *hashes* that can be computed here, by its name in hashlib; None when there is none."""
    named = {name.lower().replace("-", "_").replace("sha_", "sha"): digest for name, digest in hashes}
    return next(((name, named[name].strip()) for name in _STRONG if named.get(name)), None)


def origin_of(url: str) -> str:
    """Return scheme, host and port."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


__all__ = [
    "IDENTITY",
    "SETTLED_SECONDS",
    "cache_key",
    "describe",
    "encoded",
    "http_time",
    "length_of",
    "origin_of",
    "other_version",
    "strongest",
    "tells",
    "validator_of",
]
