"""What the filesystem knows of an object store: a protocol, and the values it speaks in.

Every method raises StoreError and nothing else, and may be cancelled at any time, which ends its HTTP request. A request that
was cancelled or failed may still have been done by the store.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

MIN_PART = 5 << 20
"""Bytes of the smallest part of a multipart upload but the last (S3 user guide, "multipart upload limits")."""
MAX_PART = 5 << 30
"""Bytes of the largest part, of the largest PutObject and of the largest CopyObject."""
MAX_PARTS = 10_000
MAX_OBJECT = 5 << 40
KEY_MAX = 1024
"""Bytes of the longest key."""


class Object(NamedTuple):
    """One version of an object, as a listing, a HEAD or the answer to a write says."""

    key: str
    size: int
    mtime_ns: int
    """LastModified. Of an answer to a write: the time the store says it is, which may differ by a second."""
    etag: str
    """The version, without its quotes; empty when the store says none."""
    storage_class: str = ""
    """As the listing says; empty is STANDARD."""


class Page(NamedTuple):
    """One answer of ListObjectsV2. Objects and prefixes are each in the order of their UTF-8 bytes, where the store sorts."""

    objects: list[Object]
    prefixes: list[str]
    """What is common to keys up to the delimiter, "/" included."""
    token: str
    """Asks for the next page; empty when this is the last."""


class Head(NamedTuple):
    """What HeadObject says of an object."""

    item: Object
    metadata: Mapping[str, str]
    """User metadata: names in lower case without "x-amz-meta-"."""
    headers: Mapping[str, str]
    """The other headers that describe the object, names in lower case: content-type, cache-control, content-encoding,
    content-disposition, content-language, expires, and every x-amz-* but the metadata (x-amz-version-id, x-amz-restore...)."""


class Attributes(NamedTuple):
    """What a new version carries beside its bytes; storage class and encryption of new objects are the store's options."""

    metadata: Mapping[str, str] = {}
    headers: Mapping[str, str] = {}
    """content-type, cache-control, content-encoding, content-disposition, content-language, expires."""


class Condition(NamedTuple):
    """What must hold for a write to be done: ESTALE otherwise."""

    match: str = ""
    """The ETag the key must hold."""
    absent: bool = False
    """The key must hold nothing."""


ANYWAY = Condition()
ABSENT = Condition(absent=True)


def expecting(item: Object | None) -> Condition:
    """Return the condition that the key still holds *item* (None: nothing); without an ETag it cannot be told from others."""
    return ABSENT if item is None else Condition(match=item.etag)


class Upload(NamedTuple):
    """A multipart upload under way."""

    key: str
    id: str


class Part(NamedTuple):
    """A part the store has."""

    number: int
    """From 1 to MAX_PARTS."""
    etag: str
    size: int
    crc32: int | None = None


class Begun(NamedTuple):
    """A multipart upload somebody began and has not ended."""

    upload: Upload
    begun_ns: int


class Version(NamedTuple):
    """One version of an object in a bucket that keeps versions."""

    item: Object
    id: str
    latest: bool
    deleted: bool
    """A delete marker: no bytes."""


class Versions(NamedTuple):
    """One answer of ListObjectVersions with the delimiter "/"."""

    versions: list[Version]
    prefixes: list[str]
    token: str
    """Opaque; empty when this is the last page."""


class Body(Protocol):
    """Bytes to be sent, perhaps more than once: a retry begins again."""

    @property
    def size(self) -> int:
        """How many."""

    def pieces(self) -> Iterator[bytes]:
        """Yield them from the first, in pieces of at most 1 MiB; the same with every call."""

    def crc32(self) -> int:
        """Return zlib.crc32 of them; may take a millisecond a MiB, so call it in a thread when there are many."""


class Bytes:
    """A Body in memory."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data

    @property
    def size(self) -> int:
        """How many bytes."""
        return len(self.data)

    def pieces(self) -> Iterator[bytes]:
        """Yield them."""
        for start in range(0, len(self.data), 1 << 20):
            yield self.data if len(self.data) <= 1 << 20 else self.data[start : start + (1 << 20)]

    def crc32(self) -> int:
        """Return their checksum."""
        return zlib.crc32(self.data)


@dataclass(slots=True)
class Features:
    """What the server really does, found by the probe or learnt on the way: True until shown otherwise.

    A header that is sent is no guarantee: many servers pass over what they do not know (reference/s3.md section 5).
    """

    get_if_match: bool = True
    put_if_absent: bool = True
    put_if_match: bool = True
    complete_if: bool = True
    """Conditions on CompleteMultipartUpload."""
    copy_if: bool = True
    """Conditions on what CopyObject replaces."""
    delete_if: bool = True
    copy_part: bool = True
    """UploadPartCopy with a range."""
    checksums: bool = True
    """x-amz-checksum-crc32 on uploads."""
    tags: bool = True


class Store(Protocol):
    """A bucket."""

    features: Features

    async def start(self) -> None:
        """Make the connection; nothing is sent yet."""

    async def close(self) -> None:
        """End everything that is under way. May be called twice."""

    async def list(
        self, prefix: str, *, token: str = "", start_after: str = "", max_keys: int = 1000, delimiter: str = "/"
    ) -> Page:
        """Return the objects that begin with *prefix* and have no *delimiter* behind it, and the common prefixes of the others.

        The page is the one *token* of the page before asks for, or begins behind the key *start_after*, or is the first.
        With an empty delimiter all objects below the prefix are listed.
        """

    async def head(self, key: str) -> Head:
        """Return what *key* is now; ENOENT."""

    async def get(self, item: Object, offset: int, size: int, sink: Callable[[bytes], None], *, version: str = "") -> None:
        """Hand the bytes [offset, offset + size) of *item* to *sink*, piece after piece in order.

        The range must lie within the object. ESTALE when the key holds another version than item.etag. What sink has got
        when an error is raised is right as far as it goes. *version* reads an older version by its id.
        """

    async def put(self, key: str, body: Body, attributes: Attributes, condition: Condition = ANYWAY) -> Object:
        """Write an object of at most MAX_PART bytes; ESTALE when *condition* does not hold."""

    async def copy(self, source: Object, key: str, attributes: Attributes | None, condition: Condition = ANYWAY) -> Object:
        """Copy *source*, at most MAX_PART bytes, to *key* inside the store; ESTALE when source is no longer that version.

        *attributes* replace the copy's; None copies them. A copy onto itself needs them.
        """

    async def delete(self, key: str, condition: Condition = ANYWAY) -> None:
        """Remove *key*; no error when it is not there, unless *condition* wants it (ESTALE)."""

    async def delete_many(self, keys: Sequence[str]) -> dict[str, OSError]:
        """Remove up to 1000 keys in one request; return those that failed."""

    async def create_upload(self, key: str, attributes: Attributes, *, copies: bool = False) -> Upload:
        """Begin a multipart upload. *copies*: parts of it will be copied, and what is sent is checked by its MD5."""

    async def upload_part(self, upload: Upload, number: int, body: Body) -> Part:
        """Send part *number*, again in place of the one sent before."""

    async def copy_part(self, upload: Upload, number: int, source: Object, start: int, end: int) -> Part:
        """Make part *number* of the bytes [start, end) of *source*; ESTALE when source is no longer that version."""

    async def complete(self, upload: Upload, parts: Sequence[Part], condition: Condition = ANYWAY) -> Object:
        """Make the object of its parts, in order; ESTALE when *condition* does not hold, ENOENT when the upload is gone."""

    async def abort(self, upload: Upload) -> None:
        """Give up a multipart upload; no error when it is gone."""

    async def uploads(self, prefix: str) -> Sequence[Begun]:
        """Return the multipart uploads under way below *prefix*."""

    async def tags(self, key: str) -> dict[str, str]:
        """Return an object's tags."""

    async def set_tags(self, key: str, tags: Mapping[str, str]) -> None:
        """Replace an object's tags."""

    async def versions(self, prefix: str, *, token: str = "", delimiter: str = "/") -> Versions:
        """Return a page of the versions below *prefix*, by key, the newest of a key first."""


async def read_range(store: Store, item: Object, start: int, end: int) -> bytes:
    """Return the bytes [start, end) of *item* in one piece; errors are those of Store.get."""
    pieces: list[bytes] = []
    await store.get(item, start, end - start, pieces.append)
    return b"".join(pieces)


def same_version(one: Object, other: Object) -> bool:
    """Return whether two answers about a key are about the same bytes."""
    return one.etag == other.etag and one.size == other.size and (bool(one.etag) or _seconds(one) == _seconds(other))


def _seconds(item: Object) -> int:
    """Return the whole seconds of a time: HEAD has no more, a listing may have milliseconds."""
    return item.mtime_ns // 1_000_000_000


__all__ = [
    "ABSENT",
    "ANYWAY",
    "KEY_MAX",
    "MAX_OBJECT",
    "MAX_PART",
    "MAX_PARTS",
    "MIN_PART",
    "Attributes",
    "Begun",
    "Body",
    "Bytes",
    "Condition",
    "Features",
    "Head",
    "Object",
    "Page",
    "Part",
    "Store",
    "Upload",
    "Version",
    "Versions",
    "expecting",
    "read_range",
    "same_version",
]
