"""Copies inside the store of any size, and deletes of one version: what renames and metadata changes are made of."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Coroutine, Sequence
from typing import Any, Protocol, TypeVar

from ..remote.errors import StoreError
from ..remote.store import (
    ANYWAY,
    MAX_PART,
    MAX_PARTS,
    MIN_PART,
    Attributes,
    Bytes,
    Condition,
    Head,
    Object,
    Part,
    Store,
    Upload,
    read_range,
    same_version,
)

T = TypeVar("T")
TXN = "pyfusekit-txn"
"""The metadata by which a write whose answer was lost is told from somebody else's."""
COPY_PART = 256 << 20
"""Bytes of a part that the store copies by itself; larger where 10,000 of them are too few."""
THROUGH = 8 << 20
"""The same where the bytes have to come through here."""
_AT_A_TIME = 16
_MEMORY = 64 << 20
_ATTEMPTS = 4
_KEPT_HEADERS = ("content-type", "cache-control", "content-encoding", "content-disposition", "content-language", "expires")
_METADATA_MAX = 2048


class Notes(Protocol):
    """Who is told of multipart uploads: the journal."""

    def upload_begun(self, upload: Upload) -> None:
        """It began."""

    def upload_ended(self, upload: Upload) -> None:
        """It was completed or aborted."""


async def copy_object(
    store: Store,
    source: Object,
    key: str,
    attributes: Attributes | None,
    condition: Condition = ANYWAY,
    *,
    txn: str = "",
    journal: Notes | None = None,
) -> Object:
    """Copy *source* of any size to *key*, also to itself with other attributes; None copies them.

    ESTALE when *source* is no longer that version or *condition* does not hold: also when it is the copy itself that is in the
    way, because an answer was lost (unsure(), is_copy() and *txn* tell). What the server does not check is checked before.
    """
    if attributes is None and txn and "-" in source.etag:
        # Its copy will have another ETag, so that only a stamp can say what it is.
        attributes = attributes_of(await store.head(source.key))
    if attributes is not None and txn:
        attributes = _stamped(attributes, txn)
    condition = await _checked(store, key, condition, store.features.copy_if)
    for attempt in range(_ATTEMPTS):
        try:
            if source.size <= MAX_PART:
                return await store.copy(source, key, attributes, condition)
            break
        except StoreError as exc:
            if exc.code == "ConditionalRequestConflict" and attempt < _ATTEMPTS - 1:
                await asyncio.sleep(0.05 * 2**attempt)
            elif _too_large(exc, source):
                break
            elif exc.errno == errno.ENOENT and not source.size and source.key.endswith("/"):
                return await _put_marker(store, source, key, attributes, condition, txn)
            else:
                raise
    head = await store.head(source.key)
    if attributes is None:
        attributes = attributes_of(head)
        attributes = _stamped(attributes, txn) if txn else attributes
    made = await _copy_parts(store, source, Upload(key, ""), attributes, condition, journal)
    if int(head.headers.get("x-amz-tagging-count") or 0) and key != source.key:
        await store.set_tags(key, await store.tags(source.key))
    return made


async def _put_marker(
    store: Store, source: Object, key: str, attributes: Attributes | None, condition: Condition, txn: str
) -> Object:
    """Make the marker of a directory anew: SeaweedFS has nothing to copy there. ENOENT when it is gone."""
    if attributes is None:
        attributes = attributes_of(await store.head(source.key))
        attributes = _stamped(attributes, txn) if txn else attributes
    return await store.put(key, Bytes(b""), attributes, condition)


def attributes_of(head: Head) -> Attributes:
    """Return what a copy of an object is to carry."""
    return Attributes(dict(head.metadata), {name: head.headers[name] for name in _KEPT_HEADERS if name in head.headers})


def _stamped(attributes: Attributes, txn: str) -> Attributes:
    metadata = {**attributes.metadata, TXN: txn}
    if sum(len(name) + len(value) for name, value in metadata.items()) > _METADATA_MAX:
        return attributes
    return attributes._replace(metadata=metadata)


async def _checked(store: Store, key: str, condition: Condition, does: bool) -> Condition:
    """Return the condition to send; what the server would pass over is looked at now, which leaves a short moment open."""
    if does or condition == ANYWAY:
        return condition
    head = await head_or_none(store, key)
    if (condition.absent and head is not None) or (condition.match and (head is None or head.item.etag != condition.match)):
        raise StoreError(errno.ESTALE, f"{key!r} was changed by somebody else", code="PreconditionFailed", status=412)
    return ANYWAY


def _too_large(exc: StoreError, source: Object) -> bool:
    """Return whether a server refused a copy for its size: some allow less than S3's 5 GiB."""
    return source.size > MIN_PART and exc.code in ("EntityTooLarge", "InvalidRequest")


async def _copy_parts(
    store: Store, source: Object, target: Upload, attributes: Attributes, condition: Condition, journal: Notes | None
) -> Object:
    upload = await store.create_upload(target.key, attributes, copies=store.features.copy_part)
    if journal is not None:
        journal.upload_begun(upload)
    try:
        try:
            parts = await _parts(store, source, upload, inside=store.features.copy_part)
        except StoreError as exc:
            if exc.errno != errno.EOPNOTSUPP or not store.features.copy_part:
                raise
            store.features.copy_part = False
            parts = await _parts(store, source, upload, inside=False)
        condition = await _checked(store, target.key, condition, store.features.complete_if)
        made = await store.complete(upload, parts, condition)
    except BaseException as exc:
        if not (isinstance(exc, StoreError) and exc.errno == errno.ENOENT):
            await _abort(store, upload)
        raise
    finally:
        if journal is not None:
            journal.upload_ended(upload)
    return made


async def _abort(store: Store, upload: Upload) -> None:
    try:
        await asyncio.shield(store.abort(upload))
    except OSError:
        return  # The caller's error matters; the upload's parts go with the bucket's lifecycle rule.


async def _parts(store: Store, source: Object, upload: Upload, *, inside: bool) -> list[Part]:
    """Make all parts, in the store itself or through here."""
    size = max(COPY_PART if inside else THROUGH, -(-source.size // MAX_PARTS))
    free = asyncio.Semaphore(_AT_A_TIME if inside else max(1, min(_AT_A_TIME, _MEMORY // size)))

    async def part(number: int, start: int, end: int) -> Part:
        async with free:
            if inside:
                return await store.copy_part(upload, number, source, start, end)
            return await store.upload_part(upload, number, Bytes(await read_range(store, source, start, end)))

    starts = range(0, source.size, size)
    return await each([part(number, start, min(start + size, source.size)) for number, start in enumerate(starts, 1)])


async def each(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Run all of *work* and return what they return; when one fails the others are stopped before its error is raised."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def delete_exactly(store: Store, item: Object) -> bool:
    """Delete the version *item*; return False when the key holds another by now, which stays. No error when it is gone."""
    if store.features.delete_if and item.etag:
        try:
            await store.delete(item.key, Condition(match=item.etag))
        except StoreError as exc:
            if exc.errno == errno.ENOENT:
                return True
            if exc.errno != errno.ESTALE:
                raise
            # Another version; or none: of a missing key some servers say 412, and so they do when an answer was lost.
            return await head_or_none(store, item.key) is None
        return True
    head = await head_or_none(store, item.key)
    if head is None:
        return True
    if not same_version(head.item, item):
        return False
    await store.delete(item.key)
    return True


async def head_or_none(store: Store, key: str) -> Head | None:
    """Return what *key* is, or None when it is not there."""
    try:
        return await store.head(key)
    except StoreError as exc:
        if exc.errno != errno.ENOENT:
            raise
        return None


def unsure(exc: StoreError) -> bool:
    """Return whether a write that failed so may have been done: its answer was lost, or it is in its own way."""
    return exc.errno == errno.ESTALE or exc.retryable or exc.code in ("NoSuchUpload", "ConditionalRequestConflict")


async def is_copy(store: Store, source: Object, key: str, txn: str) -> Object | None:
    """Return what *key* holds when it is the copy of *source* that *txn* stamped, or has the same bytes."""
    head = await head_or_none(store, key)
    if head is None:
        return None
    same = bool(source.etag) and head.item.etag == source.etag and head.item.size == source.size
    return head.item if same or (txn and head.metadata.get(TXN) == txn) else None


__all__ = ["TXN", "Notes", "attributes_of", "copy_object", "delete_exactly", "each", "head_or_none", "is_copy", "unsure"]
