"""What the rooms of httpfs hand each other: entries of listings, versions of files, and what went wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Entry(NamedTuple):
    """A name in a directory, as a listing shows it."""

    name: str
    """As a person reads it: decoded, one path component. Never empty, ".", "..", nor with a slash or NUL."""
    url: str
    """Absolute, as it is asked for: encoded, with its query, without a fragment. A directory's ends in a slash."""
    is_dir: bool
    size: int | None = None
    """Bytes; None when the listing does not tell."""
    exact: bool = False
    """Whether size is exact, and not a rounded "1.2K"."""
    mtime_ns: int | None = None
    etag: str = ""
    """Where the listing tells one (WebDAV, S3), as an ETag header would have it, quotes included."""
    content_type: str = ""
    mirrors: tuple[str, ...] = ()
    """Other URLs of the same bytes (metalink), best first."""
    hashes: tuple[tuple[str, str], ...] = ()
    """What the whole file must have, as (algorithm of hashlib, digest in hex)."""


class Listing(NamedTuple):
    """A page of a directory."""

    entries: list[Entry]
    next_url: str = ""
    """Where the next page is; empty on the last."""
    driver: str = ""
    """Which kind of listing it was, for the log and `status`."""


class Validator(NamedTuple):
    """What tells the versions of a resource apart (RFC 9110, section 8.8)."""

    etag: str = ""
    """As the header has it, W/ and quotes included."""
    modified: str = ""
    """Last-Modified, as the header has it."""
    settled: bool = False
    """Last-Modified is at least 60 s older than the answer's Date: it is strong then (section 8.8.2.2)."""

    @property
    def condition(self) -> str:
        """What If-Range may carry: a strong ETag, or a Last-Modified that is strong; empty when there is neither."""
        if self.etag and not self.etag.startswith("W/"):
            return self.etag
        return self.modified if self.settled and not self.etag else ""

    def changed(self, other: Validator) -> bool:
        """Return whether *other* is surely another version: what only one of the two has tells nothing."""
        if self.etag and other.etag:
            return self.etag.removeprefix("W/") != other.etag.removeprefix("W/")
        return bool(self.modified and other.modified and self.modified != other.modified)


class Resource(NamedTuple):
    """What a server says of one version of a file."""

    url: str
    """As it was asked for."""
    final_url: str
    """Where redirects ended."""
    size: int | None
    """Bytes; None when the server does not tell: chunked, or encoded."""
    mtime_ns: int | None
    validator: Validator
    content_type: str = ""
    ranges: bool | None = None
    """Whether ranges are served; None: nobody has tried."""
    headers: Mapping[str, str] = {}
    """The answer's, names in lower case."""
    mirrors: tuple[str, ...] = ()
    hashes: tuple[tuple[str, str], ...] = ()


class HttpError(OSError):
    """A request that failed; strerror says in words what was asked of whom, and what came back."""

    def __init__(
        self,
        number: int,
        why: str,
        *,
        url: str = "",
        status: int = 0,
        retryable: bool = False,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(number, why)
        self.url = url
        self.status = status
        """Of the answer; 0 when there was none."""
        self.retryable = retryable
        """It may pass."""
        self.retry_after = retry_after
        """Seconds the server asks for before the next request."""


__all__ = ["Entry", "HttpError", "Listing", "Resource", "Validator"]
