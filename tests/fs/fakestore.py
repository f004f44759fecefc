"""A Store in memory that does what S3 does, and whose answers can be held back, refused, lost and counted."""

from __future__ import annotations

import asyncio
import bisect
import errno
import hashlib
import re
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from pyfusekit.fs.s3fs.remote.errors import StoreError
from pyfusekit.fs.s3fs.remote.store import (
    ANYWAY,
    KEY_MAX,
    MAX_PART,
    MAX_PARTS,
    MIN_PART,
    Attributes,
    Begun,
    Body,
    Condition,
    Features,
    Head,
    Object,
    Page,
    Part,
    Upload,
    Version,
    Versions,
)

SECOND = 1_000_000_000
METADATA_MAX = 2048
"""Bytes of all names and values of an object's metadata (S3 user guide, "user-defined object metadata")."""


def lost() -> StoreError:
    """Return the error of a request whose answer did not come."""
    return StoreError(errno.EIO, "the connection broke", retryable=True)


def slow_down() -> StoreError:
    """Return the error of a store that has too much to do."""
    return StoreError(errno.EBUSY, "503 SlowDown", code="SlowDown", status=503, retryable=True)


def denied() -> StoreError:
    """Return the error of a key that may not be used so."""
    return StoreError(errno.EACCES, "403 AccessDenied", code="AccessDenied", status=403)


def busy() -> StoreError:
    """Return the error of a conditional write that met another one (409)."""
    return StoreError(errno.EBUSY, "409 ConditionalRequestConflict", code="ConditionalRequestConflict", status=409)


def failed_condition() -> StoreError:
    """Return the error of a condition that does not hold."""
    return StoreError(errno.ESTALE, "412 PreconditionFailed", code="PreconditionFailed", status=412)


def invalid(code: str) -> StoreError:
    """Return the error of a request that makes no sense."""
    return StoreError(errno.EINVAL, f"400 {code}", code=code, status=400)


def _missing(code: str) -> StoreError:
    return StoreError(errno.ENOENT, f"404 {code}", code=code, status=404)


def _unknown() -> StoreError:
    return StoreError(errno.EOPNOTSUPP, "501 NotImplemented", code="NotImplemented", status=501)


@dataclass
class Fault:
    """What happens to the next *times* calls whose line (see FakeStore.calls) has *pattern*, a regular expression, in it.

    *gate* is waited for, *do* is done (another client's write, say), then the call fails with *error*, if there is one: all
    before anything was changed, or, *after*, when the store has done its work, so that only the answer is late or lost.
    """

    pattern: str
    error: StoreError | None = None
    after: bool = False
    times: int = 1
    gate: asyncio.Event | None = None
    do: Callable[[], object] | None = None

    async def happen(self) -> None:
        """Go wrong."""
        if self.gate is not None:
            await self.gate.wait()
        if self.do is not None:
            self.do()
        if self.error is not None:
            raise self.error


class Stored(NamedTuple):
    """What the store holds under a key."""

    data: bytes
    item: Object
    metadata: Mapping[str, str]
    headers: Mapping[str, str]
    tags: Mapping[str, str]
    version: str


class Objects(dict[str, Stored]):
    """Keys and what they hold; in_order() has the keys sorted."""

    def __init__(self) -> None:
        super().__init__()
        self._sorted: list[str] | None = []

    def in_order(self) -> list[str]:
        """Return the keys in the order of their UTF-8 bytes, which is that of their code points."""
        if self._sorted is None:
            self._sorted = sorted(self)
        return self._sorted

    def __setitem__(self, key: str, value: Stored) -> None:
        if key not in self and self._sorted is not None:
            if self._sorted and key < self._sorted[-1]:
                self._sorted = None
            else:
                self._sorted.append(key)
        super().__setitem__(key, value)

    def __delitem__(self, key: str) -> None:
        super().__delitem__(key)
        self._sorted = None

    def pop(self, key: str) -> Stored | None:  # type: ignore[override]
        """Remove a key and return what it held."""
        stored = self.get(key)
        if stored is not None:
            del self[key]
        return stored


@dataclass
class Uploading:
    """A multipart upload under way."""

    key: str
    attributes: Attributes
    begun_ns: int
    parts: dict[int, tuple[bytes, str]] = field(default_factory=dict)


class FakeStore:
    """Sorts, pages, decides conditions and names versions as S3 does.

    *calls* has a line for each request: "GET key offset+size", "PUT key size", "PART key number size"... (each method says
    its own). *fail* holds what is to go wrong: Faults, or plain StoreErrors for the next call whatever it is. *gate*, when
    set, holds the answers of get back; *list_gate* those of the pages behind the first.

    *does* is what this server really does: a condition whose feature is False there is passed over in silence, and so is
    the source's condition of copies when *source_conditions* is False. *features* is what the client believes. With
    *by_name* listings are in the order of a tree walked name by name, "a", "a/b", "a-1", which is SeaweedFS', not S3's.
    """

    def __init__(
        self, page_size: int = 1000, *, does: Features | None = None, min_part: int = MIN_PART, by_name: bool = False
    ) -> None:
        self.page_size = page_size
        self.by_name = by_name
        self.min_part = min_part
        self.features = Features()
        self.does = does or Features()
        self.source_conditions = True
        self.copies_markers = True
        """False as SeaweedFS, which has nothing to copy under a key that ends in a slash."""
        self.versioned = False
        self.storage_class = ""
        """Of what is written."""
        self.second = 1_700_000_000
        """The store's clock: each write is a second later than the one before."""
        self.objects = Objects()
        self.stale: Objects | None = None
        """What listings show instead of the objects: see lie()."""
        self.history: dict[str, list[Version]] = {}
        self.old: dict[tuple[str, str], bytes] = {}
        self.uploading: dict[str, Uploading] = {}
        self.calls: list[str] = []
        self.gate: asyncio.Event | None = None
        self.list_gate: asyncio.Event | None = None
        self.fail: list[StoreError | Fault] = []
        self.latency = 0.0
        """Seconds each request takes, at least."""
        self.under_way = 0
        self.most_under_way = 0
        """GETs at once. *busiest* has the same of each other method: its word -> requests."""
        self.busiest: Counter[str] = Counter()
        self.cancelled = 0
        self.closed = False
        self._running: Counter[str] = Counter()
        self._made = 0

    # What a test does, unseen by *calls*.

    def seed(
        self,
        key: str,
        data: bytes = b"",
        second: int = 1_700_000_000,
        metadata: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        storage_class: str = "",
    ) -> Object:
        """Put an object there, as another client."""
        item = Object(key, len(data), second * SECOND, hashlib.md5(data).hexdigest(), storage_class)
        return self._keep(data, item, Attributes(metadata or {}, headers or {}))

    def put_plain(self, key: str, data: bytes, metadata: Mapping[str, str] | None = None) -> Object:
        """Put an object there as another client does now: its time is later than that of all before."""
        return self.seed(key, data, self._tick(), metadata)

    def data(self, key: str) -> bytes:
        """Return what an object holds."""
        return self.objects[key].data

    def count(self, word: str) -> int:
        """Return how many requests began with *word*."""
        return sum(call.startswith(word) for call in self.calls)

    def lie(self) -> None:
        """Let listings show what is there now until honest(), whatever is written."""
        self.stale = Objects()
        for key in self.objects.in_order():
            self.stale[key] = self.objects[key]

    def honest(self) -> None:
        """Let listings show what is there."""
        self.stale = None

    # The protocol.

    async def start(self) -> None:
        """Do nothing."""

    async def close(self) -> None:
        """Remember that it was called."""
        self.closed = True

    async def list(
        self, prefix: str, *, token: str = "", start_after: str = "", max_keys: int = 1000, delimiter: str = "/"
    ) -> Page:
        """LIST prefix [token] [> start_after]; LISTALL when there is no delimiter."""
        more = f" {token}{f'> {start_after}' if start_after else ''}"
        async with self._call(f"{'LIST' if delimiter else 'LISTALL'} {prefix}{more}".rstrip()):
            if self.list_gate is not None and token:
                await self.list_gate.wait()
            objects = self.stale if self.stale is not None else self.objects
            limit = min(self.page_size, max_keys)
            if self.by_name:
                rows, more_to_come = _rows_by_name(objects, prefix, token, start_after, limit, delimiter)
            else:
                rows, more_to_come = _rows(objects.in_order(), prefix, token, start_after, limit, delimiter)
            return Page(
                [objects[key].item for key, common in rows if not common],
                [key for key, common in rows if common],
                rows[-1][0] if more_to_come and rows else "",
            )

    async def head(self, key: str) -> Head:
        """HEAD key"""
        async with self._call(f"HEAD {key}"):
            stored = self.objects.get(key)
            if stored is None:
                raise _missing("404")
            headers = {"content-type": "binary/octet-stream", **stored.headers}
            if stored.item.storage_class not in ("", "STANDARD"):
                headers["x-amz-storage-class"] = stored.item.storage_class
            if stored.version:
                headers["x-amz-version-id"] = stored.version
            return Head(stored.item, dict(stored.metadata), headers)

    async def get(self, item: Object, offset: int, size: int, sink: Callable[[bytes], None], *, version: str = "") -> None:
        """GET key offset+size [version]"""
        async with self._call(f"GET {item.key} {offset}+{size} {version}".rstrip()):
            if self.gate is not None:
                await self.gate.wait()
            data = self._old_bytes(item.key, version) if version else self._bytes_of(item, 0, None)
            assert 0 <= offset < offset + size <= len(data), "a range outside of the object"
            half = offset + size // 2
            for piece in (data[offset:half], data[half : offset + size]):
                if piece:
                    sink(piece)
                await asyncio.sleep(0)

    async def put(self, key: str, body: Body, attributes: Attributes, condition: Condition = ANYWAY) -> Object:
        """PUT key size"""
        async with self._call(f"PUT {key} {body.size}"):
            _check_key(key, attributes)
            if body.size > MAX_PART:
                raise invalid("EntityTooLarge")
            data = await _received(body)
            self._check(key, condition, self.does.put_if_absent, self.does.put_if_match)
            return self._write(key, data, hashlib.md5(data).hexdigest(), attributes)

    async def copy(self, source: Object, key: str, attributes: Attributes | None, condition: Condition = ANYWAY) -> Object:
        """COPY source key"""
        async with self._call(f"COPY {source.key} {key}"):
            if source.key == key and attributes is None:
                raise invalid("InvalidRequest")
            _check_key(key, attributes or Attributes())
            if source.key.endswith("/") and not self.copies_markers:
                raise _missing("NoSuchKey")
            data = self._bytes_of(source, 0, None, self.source_conditions)
            if len(data) > MAX_PART:
                raise invalid("InvalidRequest")
            self._check(key, condition, self.does.copy_if, self.does.copy_if)
            was = self.objects[source.key]
            made = self._write(key, data, hashlib.md5(data).hexdigest(), attributes or Attributes(was.metadata, was.headers))
            self.objects[key] = self.objects[key]._replace(tags=was.tags)
            return made

    async def delete(self, key: str, condition: Condition = ANYWAY) -> None:
        """DELETE key"""
        async with self._call(f"DELETE {key}"):
            self._check(key, condition, True, self.does.delete_if)
            self._remove(key)

    async def delete_many(self, keys: Sequence[str]) -> dict[str, OSError]:
        """DELETE_MANY number; a Fault for the line "DELETE_ONE key" makes that key fail."""
        async with self._call(f"DELETE_MANY {len(keys)}"):
            if not 0 < len(keys) <= 1000:
                raise invalid("MalformedXML")
            failures: dict[str, OSError] = {}
            for key in keys:
                fault = self._fault(f"DELETE_ONE {key}", one=True)
                if fault is not None and fault.error is not None:
                    failures[key] = fault.error
                else:
                    self._remove(key)
            return failures

    async def create_upload(self, key: str, attributes: Attributes, *, copies: bool = False) -> Upload:
        """CREATE key"""
        async with self._call(f"CREATE {key}"):
            _check_key(key, attributes)
            self._made += 1
            upload = Upload(key, f"upload-{self._made}")
            self.uploading[upload.id] = Uploading(key, attributes, self._tick() * SECOND)
            return upload

    async def upload_part(self, upload: Upload, number: int, body: Body) -> Part:
        """PART key number size"""
        async with self._call(f"PART {upload.key} {number} {body.size}"):
            under_way = self._upload(upload, number)
            if body.size > MAX_PART:
                raise invalid("EntityTooLarge")
            return self._part(under_way, number, await _received(body))

    async def copy_part(self, upload: Upload, number: int, source: Object, start: int, end: int) -> Part:
        """COPY_PART source key number start-end"""
        async with self._call(f"COPY_PART {source.key} {upload.key} {number} {start}-{end}"):
            if not self.does.copy_part:
                raise _unknown()
            under_way = self._upload(upload, number)
            data = self._bytes_of(source, start, end, self.source_conditions)
            if not 0 <= start < end or len(data) != end - start:
                raise invalid("InvalidRange")
            if len(data) > MAX_PART:
                raise invalid("EntityTooLarge")
            return self._part(under_way, number, data)

    async def complete(self, upload: Upload, parts: Sequence[Part], condition: Condition = ANYWAY) -> Object:
        """COMPLETE key number-of-parts"""
        async with self._call(f"COMPLETE {upload.key} {len(parts)}"):
            under_way = self._upload(upload, 1)
            numbers = [part.number for part in parts]
            if not parts or numbers != sorted(set(numbers)):
                raise invalid("InvalidPartOrder" if parts else "MalformedXML")
            if any(under_way.parts.get(part.number, (b"", ""))[1] != part.etag for part in parts):
                raise invalid("InvalidPart")
            pieces = [under_way.parts[number][0] for number in numbers]
            if any(len(piece) < self.min_part for piece in pieces[:-1]):
                raise invalid("EntityTooSmall")
            self._check(upload.key, condition, self.does.complete_if, self.does.complete_if)
            del self.uploading[upload.id]
            sums = b"".join(hashlib.md5(piece).digest() for piece in pieces)
            etag = f"{hashlib.md5(sums).hexdigest()}-{len(parts)}"
            return self._write(upload.key, b"".join(pieces), etag, under_way.attributes)

    async def abort(self, upload: Upload) -> None:
        """ABORT key"""
        async with self._call(f"ABORT {upload.key}"):
            self.uploading.pop(upload.id, None)

    async def uploads(self, prefix: str) -> list[Begun]:
        """UPLOADS prefix"""
        async with self._call(f"UPLOADS {prefix}".rstrip()):
            found = [Begun(Upload(one.key, name), one.begun_ns) for name, one in self.uploading.items()]
            return sorted(one for one in found if one.upload.key.startswith(prefix))

    async def tags(self, key: str) -> dict[str, str]:
        """TAGS key"""
        async with self._call(f"TAGS {key}"):
            if not self.does.tags:
                raise _unknown()
            if key not in self.objects:
                raise _missing("NoSuchKey")
            return dict(self.objects[key].tags)

    async def set_tags(self, key: str, tags: Mapping[str, str]) -> None:
        """SET_TAGS key"""
        async with self._call(f"SET_TAGS {key}"):
            if not self.does.tags:
                raise _unknown()
            if key not in self.objects:
                raise _missing("NoSuchKey")
            if len(tags) > 10:
                raise invalid("BadRequest")
            self.objects[key] = self.objects[key]._replace(tags=dict(tags))

    async def versions(self, prefix: str, *, token: str = "", delimiter: str = "/") -> Versions:
        """VERSIONS prefix [token]"""
        async with self._call(f"VERSIONS {prefix} {token}".rstrip()):
            rows, more = _rows(sorted(self.history), prefix, token, "", self.page_size, delimiter)
            found = [version for key, common in rows if not common for version in reversed(self.history[key])]
            return Versions(found, [key for key, common in rows if common], rows[-1][0] if more and rows else "")

    # How it does it.

    @asynccontextmanager
    async def _call(self, line: str) -> AsyncIterator[None]:
        """Count a call, let its faults happen, and note when it is cancelled."""
        self.calls.append(line)
        word = line.partition(" ")[0]
        fault = self._fault(line)
        self._running[word] += 1
        self.busiest[word] = max(self.busiest[word], self._running[word])
        if word == "GET":
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await asyncio.sleep(self.latency)
            if fault is not None and not fault.after:
                await fault.happen()
            yield
            if fault is not None and fault.after:
                await fault.happen()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self._running[word] -= 1
            if word == "GET":
                self.under_way -= 1

    def _fault(self, line: str, *, one: bool = False) -> Fault | None:
        """Take the first fault that is meant for a call. *one* key of many is met by Faults that name it only."""
        for fault in self.fail:
            if isinstance(fault, StoreError):
                if not one:
                    self.fail.remove(fault)
                    return Fault("", fault)
            elif re.search(fault.pattern, line) and (not one or fault.pattern):
                fault.times -= 1
                if fault.times <= 0:
                    self.fail.remove(fault)
                return fault
        return None

    def _tick(self) -> int:
        self.second += 1
        return self.second

    def _check(self, key: str, condition: Condition, absent: bool, match: bool) -> None:
        """Decide a condition; *absent* and *match* say which kinds this server does not pass over."""
        stored = self.objects.get(key)
        if condition.absent and absent and stored is not None:
            raise failed_condition()
        if condition.match and match and (stored is None or stored.item.etag != condition.match):
            raise failed_condition()

    def _write(self, key: str, data: bytes, etag: str, attributes: Attributes) -> Object:
        return self._keep(data, Object(key, len(data), self._tick() * SECOND, etag, self.storage_class), attributes)

    def _keep(self, data: bytes, item: Object, attributes: Attributes) -> Object:
        self._made += 1
        version = f"v{self._made}" if self.versioned else ""
        stored = Stored(data, item, dict(attributes.metadata), dict(attributes.headers), {}, version)
        self.objects[item.key] = stored
        self._remember(item, version or "null", deleted=False)
        self.old[item.key, version or "null"] = data
        return item

    def _remember(self, item: Object, version: str, deleted: bool) -> None:
        rows = [row._replace(latest=False) for row in self.history.get(item.key, ()) if row.id != version]
        self.history[item.key] = [*rows, Version(item, version, True, deleted)]

    def _remove(self, key: str) -> None:
        if self.objects.pop(key) is None:
            return
        if self.versioned:
            self._made += 1
            self._remember(Object(key, 0, self._tick() * SECOND, ""), f"v{self._made}", deleted=True)
        else:
            self.history.pop(key, None)

    def _bytes_of(self, item: Object, start: int, end: int | None, conditions: bool = True) -> bytes:
        """Return bytes of the version *item*; ENOENT, ESTALE, or ENODATA when it is archived."""
        stored = self.objects.get(item.key)
        if stored is None:
            raise _missing("NoSuchKey")
        if conditions and item.etag and stored.item.etag != item.etag:
            raise failed_condition()
        restored = 'ongoing-request="false"' in stored.headers.get("x-amz-restore", "")
        if stored.item.storage_class in ("GLACIER", "DEEP_ARCHIVE") and not restored:
            raise StoreError(errno.ENODATA, "403 InvalidObjectState", code="InvalidObjectState", status=403)
        return stored.data[start:end]

    def _old_bytes(self, key: str, version: str) -> bytes:
        if (key, version) not in self.old:
            raise _missing("NoSuchVersion")
        return self.old[key, version]

    def _upload(self, upload: Upload, number: int) -> Uploading:
        under_way = self.uploading.get(upload.id)
        if under_way is None or under_way.key != upload.key:
            raise _missing("NoSuchUpload")
        if not 1 <= number <= MAX_PARTS:
            raise invalid("InvalidArgument")
        return under_way

    def _part(self, under_way: Uploading, number: int, data: bytes) -> Part:
        etag = hashlib.md5(data).hexdigest()
        under_way.parts[number] = (data, etag)
        return Part(number, etag, len(data), zlib.crc32(data))


def _rows(
    keys: Sequence[str], prefix: str, token: str, start_after: str, limit: int, delimiter: str
) -> tuple[list[tuple[str, bool]], bool]:
    """Return up to *limit* rows of a listing, keys and (True) common prefixes, and whether there are more behind them."""
    rows: list[tuple[str, bool]] = []
    index = bisect.bisect_left(keys, prefix)
    if token or start_after:
        index = max(index, bisect.bisect_right(keys, token or start_after))
    while index < len(keys) and keys[index].startswith(prefix):
        key = keys[index]
        cut = key.find(delimiter, len(prefix)) if delimiter else -1
        common = key[: cut + len(delimiter)] if cut >= 0 else ""
        if common and token and common <= token:
            index = _behind(keys, common, index)
            continue
        if len(rows) == limit:
            return rows, True
        rows.append((common or key, bool(common)))
        index = _behind(keys, common, index) if common else index + 1
    return rows, False


def _rows_by_name(
    objects: Objects, prefix: str, token: str, start_after: str, limit: int, delimiter: str
) -> tuple[list[tuple[str, bool]], bool]:
    """Return the same, with "/" before all other characters."""
    swapped = [text.replace("/", "\0") for text in (prefix, token, start_after, delimiter)]
    rows, more = _rows(sorted(key.replace("/", "\0") for key in objects), *swapped[:3], limit, swapped[3])
    return [(key.replace("\0", "/"), common) for key, common in rows], more


def _behind(keys: Sequence[str], prefix: str, index: int) -> int:
    """Return the index of the first key behind all that begin with *prefix*."""
    return bisect.bisect_left(keys, prefix[:-1] + chr(ord(prefix[-1]) + 1), index)


async def _received(body: Body) -> bytes:
    """Take a body piece by piece, and hold it to its promises."""
    pieces = []
    for piece in body.pieces():
        assert 0 < len(piece) <= 1 << 20, f"a piece of {len(piece)} bytes"
        pieces.append(bytes(piece))
        await asyncio.sleep(0)
    data = b"".join(pieces)
    assert len(data) == body.size, f"{len(data)} bytes of {body.size}"
    assert zlib.crc32(data) == body.crc32(), "the body's checksum is not that of its bytes"
    return data


def _check_key(key: str, attributes: Attributes) -> None:
    """Refuse what S3 refuses of a new object."""
    if not 0 < len(key.encode()) <= KEY_MAX:
        raise StoreError(errno.ENAMETOOLONG, "400 KeyTooLongError", code="KeyTooLongError", status=400)
    metadata = attributes.metadata
    assert all(name == name.lower() and not name.startswith("x-amz-") for name in metadata), metadata
    if not all(f"{name}{value}".isascii() for name, value in metadata.items()):
        raise invalid("InvalidArgument")
    if sum(len(name) + len(value) for name, value in metadata.items()) > METADATA_MAX:
        raise invalid("MetadataTooLarge")
