"""What the store's answers mean, whichever path they came by: headers and botocore's dictionaries become our values."""

from __future__ import annotations

import base64
import binascii
import email.errors
import email.header
import errno
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import unquote_plus

from .errors import StoreError, refused
from .extras import META
from .store import Begun, Head, Object, Page, Upload, Version
from .xmlpages import bare, http_ns, not_s3

HELD = 8 << 20
"""Bytes of the largest object that is kept back until its checksum was compared: nothing wrong may reach the reader."""

_DESCRIBING = frozenset(
    {"content-type", "cache-control", "content-encoding", "content-disposition", "content-language", "expires"}
)
_OF_THE_REQUEST = frozenset({"x-amz-request-id", "x-amz-id-2"})


def head_of(what: str, key: str, headers: Mapping[str, str]) -> Head:
    """Return what the headers of a HEAD say; EIO when they are not S3's."""
    metadata: dict[str, str] = {}
    others: dict[str, str] = {}
    length = etag = modified = ""
    for given, value in headers.items():
        name = given.lower()
        if name.startswith(META):
            metadata[name.removeprefix(META)] = _decoded(value)
        elif (name.startswith("x-amz-") and name not in _OF_THE_REQUEST) or name in _DESCRIBING:
            others[name] = value
        elif name == "content-length":
            length = value
        elif name == "etag":
            etag = value
        elif name == "last-modified":
            modified = value
    if not length.isdecimal():
        raise not_s3(what)
    item = Object(key, int(length), http_ns(modified), bare(etag), _stored_as(others.get("x-amz-storage-class", "")))
    return Head(item, metadata, others)


def _stored_as(storage_class: str) -> str:
    return "" if storage_class == "STANDARD" else storage_class


def _decoded(value: str) -> str:
    """Return a metadata value as it was meant: S3 wraps what is not ASCII as RFC 2047 does."""
    if "=?" not in value:
        return value
    try:
        return str(email.header.make_header(email.header.decode_header(value)))
    except (email.errors.HeaderParseError, LookupError, UnicodeError, binascii.Error):
        return value


def written(key: str, size: int, headers: Mapping[str, str], storage_class: str = "") -> Object:
    """Return the version that the answer to a write names."""
    now = http_ns(headers.get("date", "")) or time.time_ns()
    return Object(key, size, now, bare(headers.get("etag", "")), _stored_as(storage_class))


def moment(value: Any) -> int:
    """Return a datetime as nanoseconds; S3's own have whole seconds or milliseconds."""
    milliseconds: int = round(value.timestamp() * 1000)
    return milliseconds * 1_000_000


def row_of_listing(row: Mapping[str, Any]) -> Object:
    """Return an object as botocore parsed it in a listing of objects or versions."""
    return Object(
        row["Key"],
        int(row.get("Size", 0)),
        moment(row["LastModified"]),
        bare(row.get("ETag", "")),
        row.get("StorageClass", ""),
    )


def page_of(what: str, answer: Mapping[str, Any]) -> Page:
    """Return a page as botocore parsed it; EIO when it was none."""
    if not answer.keys() & {"IsTruncated", "KeyCount", "Name"}:
        # Any page of a web server parses as a listing without names; a directory must not look empty for that.
        raise not_s3(what)
    token = answer.get("NextContinuationToken", "") if answer.get("IsTruncated") else ""
    return Page(
        [row_of_listing(row) for row in answer.get("Contents", ())],
        [row["Prefix"] for row in answer.get("CommonPrefixes", ())],
        token,
    )


def versions_of(answer: Mapping[str, Any]) -> list[Version]:
    """Return the versions of a page of ListObjectVersions, by key, the newest first.

    botocore returns versions and delete markers apart: of those of one second the latest is first, then versions.
    """
    found: list[Version] = []
    for kind, deleted in (("Versions", False), ("DeleteMarkers", True)):
        rows: Sequence[Mapping[str, Any]] = answer.get(kind, ())
        found += [
            Version(row_of_listing(row), str(row.get("VersionId", "")), bool(row.get("IsLatest")), deleted) for row in rows
        ]
    found.sort(key=lambda version: (version.item.key.encode(), not version.latest, -version.item.mtime_ns))
    return found


def uploads_of(answer: Mapping[str, Any]) -> list[Begun]:
    """Return the uploads of a page of ListMultipartUploads that was asked for with the keys url-encoded."""
    encoded = answer.get("EncodingType") == "url"
    return [
        Begun(Upload(unquote_plus(row["Key"]) if encoded else row["Key"], row["UploadId"]), moment(row["Initiated"]))
        for row in answer.get("Uploads", ())
    ]


def failures_of(answer: Mapping[str, Any]) -> dict[str, OSError]:
    """Return the keys that DeleteObjects could not delete; what is not there is deleted."""
    failed: dict[str, OSError] = {}
    for row in answer.get("Errors", ()):
        key, code = row.get("Key", ""), row.get("Code", "")
        if code != "NoSuchKey":
            failed[key] = refused(f"DeleteObjects {key!r}", 0, code, row.get("Message", ""), "")
    return failed


def crc32_of_parts(parts: Iterable[tuple[int, int]]) -> int:
    """Return the CRC32 of the whole from the CRC32 and the size of each part, in order.

    A CRC is a remainder of polynomials over GF(2): that of A + B is crc(A) * x^(8 * len(B)) + crc(B)
    (Williams, "A painless guide to CRC error detection algorithms"; bits are reflected, so the highest bit is x^0).
    """
    crc = 0
    shifts: dict[int, int] = {}
    for part, size in parts:
        shift = shifts.get(size)
        if shift is None:
            shift = shifts[size] = _power(8 * size)
        crc = _times(shift, crc) ^ part
    return crc


def _times(one: int, other: int) -> int:
    """Return the product of two polynomials modulo the CRC's."""
    product = 0
    while one:
        if one & 0x80000000:
            product ^= other
        one = (one << 1) & 0xFFFFFFFF
        other = other >> 1 ^ 0xEDB88320 if other & 1 else other >> 1
    return product


def _power(exponent: int) -> int:
    """Return x^exponent modulo the CRC's polynomial."""
    result, square = 0x80000000, 0x40000000
    while exponent:
        if exponent & 1:
            result = _times(square, result)
        square = _times(square, square)
        exponent >>= 1
    return result


def crc32_header(value: int) -> str:
    """Return a checksum as x-amz-checksum-crc32 says it."""
    return base64.b64encode(value.to_bytes(4, "big")).decode()


def crc32_said(headers: Mapping[str, str]) -> int | None:
    """Return the checksum of the whole object that the headers say, if they do."""
    value = headers.get("x-amz-checksum-crc32", "")
    # "-N" behind it: the checksum of the parts' checksums, which cannot be compared with anything.
    if not value or headers.get("x-amz-checksum-type", "FULL_OBJECT") != "FULL_OBJECT" or "-" in value:
        return None
    try:
        raw = base64.b64decode(value, validate=True)
    except binascii.Error:
        return None
    return int.from_bytes(raw, "big") if len(raw) == 4 else None


class Receiver:
    """The bytes [start, end) of an object as they come in, over as many answers as it takes.

    When the whole object was asked for and the store says its checksum, the bytes are kept back until it was compared.
    """

    def __init__(self, what: str, item: Object, start: int, end: int, sink: Callable[[bytes], None], *, verify: bool) -> None:
        self.what = what
        self.item = item
        self.position = start
        self.end = end
        self.verify = verify and start == 0 and end == item.size <= HELD
        self.mismatches = 0
        self.version_ignored = False
        """An answer was about another version: the store passes over If-Match."""
        self._start = start
        self._sink = sink
        self._expected: int | None = None
        self._held: list[bytes] = []

    def range(self) -> str:
        """Return the Range to ask for; empty when it is the whole object with its checksum."""
        if self.verify and self.position == 0:
            return ""
        return f"bytes={self.position}-{self.end - 1}"

    def check(self, headers: Mapping[str, str]) -> None:
        """Raise unless an answer is about the version that was asked for and its body is exactly what is missing.

        A header that was sent is no guarantee: there are servers that pass over If-Match, and some that pass over Range.
        """
        item, what = self.item, self.what
        etag = bare(headers.get("etag", ""))
        if item.etag and etag and etag != item.etag:
            self.version_ignored = True
            raise StoreError(
                errno.ESTALE, f"{what}: replaced by another version since it was opened", code="PreconditionFailed"
            )
        said = headers.get("content-range", "")
        length = int(headers.get("content-length", -1))
        if said:
            span, _, total = said.removeprefix("bytes ").partition("/")
            if total not in ("*", str(item.size)):
                raise StoreError(errno.ESTALE, f"{what}: its size is {total} now, it was {item.size} when it was opened")
            right = span == f"{self.position}-{self.end - 1}"
        else:
            right = self.position == 0 and self.end == item.size
        if right and not said and item.etag and not etag:
            raise not_s3(what)
        if not right or length not in (-1, self.end - self.position):
            raise StoreError(
                errno.EIO,
                f"{what}: bytes {self.position}-{self.end - 1} were asked for, {said or 'the whole'} ({length} B) came",
                code="WrongRange",
            )
        if self.verify and self.position == 0:
            self._expected = crc32_said(headers)

    def take(self, piece: bytes) -> None:
        """Take the next bytes."""
        if self.position + len(piece) > self.end:
            raise StoreError(errno.EIO, f"{self.what}: the body is longer than what was asked for", code="WrongRange")
        self.position += len(piece)
        if self._expected is None:
            self._sink(piece)
        else:
            self._held.append(piece)

    def done(self) -> None:
        """End an answer; EIO, to be tried again, when bytes are missing, or, once, when they are wrong."""
        if self.position < self.end:
            missing = self.end - self.position
            raise StoreError(errno.EIO, f"{self.what}: the body ended {missing} bytes early", retryable=True)
        if self._expected is None:
            return
        crc = 0
        for piece in self._held:
            crc = zlib.crc32(piece, crc)
        held, self._held = self._held, []
        if crc != self._expected:
            self.mismatches += 1
            self.position = self._start
            raise StoreError(
                errno.EIO,
                f"{self.what}: what came does not have the object's checksum (CRC32 {crc:08x}, not {self._expected:08x})",
                code="WrongChecksum",
                retryable=self.mismatches == 1,
            )
        for piece in held:
            self._sink(piece)


__all__ = [
    "HELD",
    "Receiver",
    "crc32_header",
    "crc32_of_parts",
    "crc32_said",
    "failures_of",
    "head_of",
    "moment",
    "page_of",
    "row_of_listing",
    "uploads_of",
    "versions_of",
    "written",
]
