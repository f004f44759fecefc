"""Renames: S3 has none, so copies inside the store and then deletes: conditional, journalled, finished after a crash."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import itertools
import json
import logging
import os
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeVar

from ..remote.errors import StoreError
from ..remote.store import ABSENT, ANYWAY, KEY_MAX, Attributes, Condition, Object, Store
from ..writing.copying import copy_object, delete_exactly, each, head_or_none, is_copy, unsure
from .journal import Journal, Record

log = logging.getLogger(__name__)
A = TypeVar("A")
R = TypeVar("R")
PARALLEL = 32
"""Copies and deletes at a time."""
_ROUNDS = 4
"""How often what others put under the old name meanwhile is brought after."""


async def rename_file(
    store: Store,
    source: Object,
    key: str,
    condition: Condition = ANYWAY,
    attributes: Attributes | None = None,
    journal: Journal | None = None,
) -> Object:
    """Move an object to *key* and return the new one; *attributes* None: they are copied.

    *condition* is what the destination must be: ABSENT (EEXIST when it is not), or the ETag of what is replaced (ESTALE).
    ESTALE, ENOENT: *source* is no longer that version, and nothing was changed. When the old name cannot be removed the new
    one is, where nothing was replaced by it; else both stay, and the error says so.
    """
    value: dict[str, Any] = {"source": list(source), "key": key, "txn": uuid.uuid4().hex}
    record = await journal.begin("rename", value) if journal is not None else None
    try:
        made = await copy_file(store, source, key, condition, attributes, value["txn"], journal)
        try:
            await delete_exactly(store, source)
        except OSError as exc:
            raise await _unmove(store, source, made, condition, exc) from None
    finally:
        # Also when cancelled: whoever asked was told that it failed, so that nothing may be finished later.
        if journal is not None and record is not None:
            journal.done_soon(record)
    return made


async def copy_file(
    store: Store,
    source: Object,
    key: str,
    condition: Condition,
    attributes: Attributes | None,
    txn: str,
    journal: Journal | None,
) -> Object:
    """Copy an object to *key*, as copy_object does; a copy whose answer was lost is found by its stamp *txn*."""
    try:
        return await copy_object(store, source, key, attributes, condition, txn=txn, journal=journal)
    except StoreError as exc:
        if not unsure(exc):
            raise
        # The answer may be lost, or be about our own copy; or it was the source that changed.
        made = await is_copy(store, source, key, txn)
        if made is not None and made.etag != condition.match:
            return made
        if condition.absent and exc.errno == errno.ESTALE and (await store.head(source.key)).item.etag == source.etag:
            raise FileExistsError(errno.EEXIST, f"{key}: {os.strerror(errno.EEXIST)}") from None
        raise


async def _unmove(store: Store, source: Object, made: Object, condition: Condition, exc: OSError) -> OSError:
    """Return the error of a rename whose source could not be removed; take the copy back where nothing stood before."""
    if condition.absent:
        try:
            await delete_exactly(store, made)
            return exc
        except OSError as again:
            log.warning("%r could not be removed again: %s", made.key, again.strerror)
    text = f"{source.key!r} was copied to {made.key!r}, but the old name could not be removed: {exc.strerror}"
    return OSError(exc.errno or errno.EIO, text)


async def rename_tree(
    store: Store,
    journal: Journal,
    source: str,
    destination: str,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    parallel: int = PARALLEL,
    versions: dict[str, str] | None = None,
    published: Mapping[str, str] | None = None,
) -> dict[str, Object]:
    """Move all objects below the directory key *source* ("a/b/") to *destination*, where nothing but a marker may be.

    Returns old key -> new Object. ENOENT when nothing is below *source*; ENOTEMPTY when something is at a new name. A copy that
    fails, or a cancellation, undoes the rename: the copies are removed (in the background), the source is as it was. Once all
    is copied the rename is decided: the old names are removed, whatever happens; what cannot be removed is an error that says
    how many, and is tried again by the next mount. *on_progress*(copied, known) is called now and then. *versions* gets the
    ETags of what was copied, by old key: others may have changed it since the caller looked. *published* are keys below
    *source*, with their ETags if they are known, that a listing may not show yet as they are: they were written a moment ago.
    """
    name = f"data-tree-{uuid.uuid4().hex}"
    os.close(os.open(os.path.join(journal.directory, name), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    value = {"source": source, "destination": destination, "phase": "copy", "data": name, "published": dict(published or {})}
    record = await journal.begin("tree", value)
    move = _Move(store, journal, record, on_progress, parallel)
    try:
        await move.copy()
        if not move.made:
            raise FileNotFoundError(errno.ENOENT, f"nothing is below {source!r}")
        await journal.change(record, phase="delete")
    except BaseException as exc:
        undoing = journal.background(move.undo())
        if not isinstance(exc, asyncio.CancelledError):
            await asyncio.shield(undoing)
        raise
    finishing = journal.background(move.finish())
    try:
        await asyncio.shield(finishing)
    except asyncio.CancelledError:
        # It is decided: who asked is told what came of it.
        await finishing
    if versions is not None:
        versions.update((source + rest, row.etag) for rest, row in move.made.items())
    return {source + rest: row.made for rest, row in move.made.items()}


async def resume(store: Store, journal: Journal, record: Record) -> None:
    """Finish what a dead server began (kinds "rename" and "tree"): forward, or back; OSError when neither works."""
    value = record.value
    if record.kind == "rename":
        source = Object(*value["source"])
        if await is_copy(store, source, value["key"], value["txn"]) is not None:
            await delete_exactly(store, source)
        await journal.done(record)
        return
    move = _Move(store, journal, record, lambda done, total: None, PARALLEL)
    try:
        await asyncio.to_thread(move.load)
        await _resume_tree(journal, move)
    finally:
        move.close()


async def _resume_tree(journal: Journal, move: _Move) -> None:
    value = move.record.value
    if value["phase"] == "copy":
        try:
            await move.copy()
            await journal.change(move.record, phase="delete")
        except OSError as exc:
            if isinstance(exc, StoreError) and exc.retryable:
                raise
            log.warning("the rename of %r to %r is undone: %s", value["source"], value["destination"], exc.strerror)
            await move.undo()
            return
    if value["phase"] == "delete":
        await move.finish()
    else:
        await move.undo()


def _is_marker(item: Object) -> bool:
    return not item.size and item.key.endswith("/")


def _depth(item: Object) -> int:
    return item.key.count("/")


class _Row(NamedTuple):
    """One object that was copied."""

    etag: str
    size: int
    made: Object


class _Move:
    """A rename of a tree under way.

    Its manifest, the file record.value["data"], has a line [rest of key] before each copy and [rest, etag, size, *made] after
    it; the record says the phase: "copy" (the source is whole), "delete" (the destination is) or "undo" (the source is).
    """

    def __init__(
        self, store: Store, journal: Journal, record: Record, on_progress: Callable[[int, int], None], parallel: int
    ) -> None:
        self.store = store
        self.journal = journal
        self.record = record
        self.source: str = record.value["source"]
        self.destination: str = record.value["destination"]
        self.made: dict[str, _Row] = {}
        """By the rest of the key behind the directory's."""
        self.unsure: set[str] = set()
        """Rests of keys whose copy may have been made."""
        self.on_progress = on_progress
        self.parallel = parallel
        self.path = os.path.join(record.directory, record.value["data"])
        self.manifest = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        self.known = 0

    def load(self) -> None:
        """Read the manifest of a dead server; sync."""
        with open(self.path, "rb") as file:
            data = file.read()
        for line in data.splitlines():
            try:
                rest, *row = json.loads(line)
            except ValueError:
                continue  # The last line, cut off by the crash: its attempt is noted before.
            if row:
                self.made[rest] = _Row(row[0], row[1], Object(*row[2:]))
                self.unsure.discard(rest)
            else:
                self.unsure.add(rest)
        if data and not data.endswith(b"\n"):
            os.write(self.manifest, b"\n")

    def close(self) -> None:
        """Close the manifest. May be called twice."""
        if self.manifest >= 0:
            os.close(self.manifest)
            self.manifest = -1

    def _txn(self, rest: str) -> str:
        return hashlib.blake2b(f"{self.record.id} {rest}".encode(), digest_size=16).hexdigest()

    def _say(self, *line: Any) -> None:
        os.write(self.manifest, json.dumps(line, separators=(",", ":")).encode() + b"\n")

    async def pages(self) -> AsyncIterator[list[Object]]:
        """Yield what is below the source, a page at a time; the next one is on its way meanwhile.

        At last what was published a moment ago and is not listed as it is, if it is there.
        """
        unlisted: dict[str, str] = dict(self.record.value.get("published", {}))
        waiting = asyncio.ensure_future(self.store.list(self.source, delimiter=""))
        try:
            while True:
                page = await waiting
                if page.token:
                    waiting = asyncio.ensure_future(self.store.list(self.source, token=page.token, delimiter=""))
                shown = []
                for item in page.objects:
                    if unlisted.get(item.key, "") in ("", item.etag):
                        unlisted.pop(item.key, None)
                        shown.append(item)
                yield shown
                if not page.token:
                    break
        finally:
            waiting.cancel()
            await asyncio.wait([waiting])
            _ = waiting.cancelled() or waiting.exception()  # Not wanted any more, whatever became of it.
        if unlisted:
            heads = await self._each(partial(head_or_none, self.store), sorted(unlisted))
            yield [head.item for head in heads if head is not None]

    async def copy(self) -> None:
        """Copy everything."""
        async for objects in self.pages():
            self.known += len(objects)
            await self._each(self._copy_one, [item for item in objects if not self._has(item)])
            self.on_progress(len(self.made), self.known)
        await asyncio.to_thread(os.fdatasync, self.manifest)

    def _has(self, item: Object) -> bool:
        row = self.made.get(item.key[len(self.source) :])
        return row is not None and (row.etag, row.size) == (item.etag, item.size)

    async def _copy_one(self, item: Object) -> None:
        """Copy an object, or the newer version that took its place; ENOTEMPTY when another is in the way."""
        rest = item.key[len(self.source) :]
        if len((self.destination + rest).encode()) > KEY_MAX:
            raise OSError(errno.ENAMETOOLONG, f"{self.destination + rest!r} would be longer than {KEY_MAX} bytes")
        for _ in range(_ROUNDS):
            self.unsure.add(rest)
            self._say(rest)
            made = await self._try(item, rest)
            if made is not None:
                self.made[rest] = _Row(item.etag, item.size, made)
                self.unsure.discard(rest)
                self._say(rest, item.etag, item.size, *made)
                return
            head = await head_or_none(self.store, item.key)
            if head is None:
                return  # Somebody removed it: so it is not moved.
            item = head.item
        raise OSError(errno.EBUSY, f"{item.key!r} changes all the time")

    async def _try(self, item: Object, rest: str) -> Object | None:
        """Copy an object once; None when it is no longer that version."""
        key, txn = self.destination + rest, self._txn(rest)
        known = self.made.get(rest)
        if not rest and known is None and await head_or_none(self.store, key) is not None:
            # The marker of an empty directory may be replaced (rename(2)); it is not removed when the rename is undone.
            await self.journal.change(self.record, marker=True)
        # A marker has no bytes to be lost, and where keys are paths it is there as soon as anything is below it (SeaweedFS).
        condition = ANYWAY if _is_marker(item) else Condition(match=known.made.etag) if known is not None else ABSENT
        try:
            return await copy_object(self.store, item, key, None, condition, txn=txn, journal=self.journal)
        except StoreError as exc:
            if not unsure(exc) and exc.errno != errno.ENOENT:
                raise
            found = await is_copy(self.store, item, key, txn)
            if found is not None:
                return found
            head = await head_or_none(self.store, item.key)
            if head is None or head.item.etag != item.etag:
                return None
            if exc.errno == errno.ESTALE:
                raise OSError(errno.ENOTEMPTY, f"{key!r} is there") from None
            raise

    async def finish(self) -> None:
        """Remove the old names, once all is copied; what others put there meanwhile is moved too, while it can."""
        left: list[OSError] = []
        removed, again = 0, True
        try:
            for _ in range(_ROUNDS):
                if left or not again:
                    break
                again = False
                markers: list[Object] = []
                async for objects in self.pages():
                    fresh = [item for item in objects if not self._has(item)]
                    again = again or bool(fresh)
                    await self._each(self._copy_late, fresh)
                    copied = [item for item in objects if self._has(item)]
                    markers += [item for item in copied if _is_marker(item)]
                    copied = [item for item in copied if not _is_marker(item)]
                    failures = await self._remove(copied)
                    removed += len(copied) - len(failures)
                    left += failures
                    self.on_progress(len(self.made), len(self.made))
                failures = await self._remove_markers(markers)
                removed += len(markers) - len(failures)
                left += failures
            if not left:
                await self.journal.done(self.record)
        finally:
            self.close()
        if left and not removed and await self._give_up():
            raise left[0]
        if left:
            text = f"{len(left)} objects of {self.source!r} could not be removed after they were copied: {left[0].strerror}"
            raise OSError(left[0].errno or errno.EIO, text)

    async def _give_up(self) -> bool:
        """Undo the rename instead, when not one old name could be removed."""
        try:
            await self.journal.change(self.record, phase="undo")
        except OSError:
            return False
        await self.undo()
        return True

    async def _copy_late(self, item: Object) -> None:
        try:
            await self._copy_one(item)
        except OSError as exc:
            log.warning("%r was written while its directory was renamed, and stays: %s", item.key, exc.strerror)

    async def _remove(self, items: list[Object]) -> list[OSError]:
        """Remove versions that were copied."""
        if self.store.features.delete_if:
            return [failure for failure in await self._each(self._delete, items) if failure is not None]
        if not items:
            return []
        # The server passes conditions over: these keys held these versions a moment ago, when they were listed.
        try:
            return list((await self.store.delete_many([item.key for item in items])).values())
        except OSError as exc:
            return [exc] * len(items)

    async def _remove_markers(self, markers: list[Object]) -> list[OSError]:
        """Remove the markers of directories when nothing is in them any more, the deepest first.

        SeaweedFS shows a directory whose marker went before what was in it for ever.
        """
        failures: list[OSError] = []
        for _, level in itertools.groupby(sorted(markers, key=_depth, reverse=True), _depth):
            items = list(level)
            for start in range(0, len(items), 1000):
                failures += await self._remove(items[start : start + 1000])
        return failures

    async def _delete(self, item: Object) -> OSError | None:
        try:
            await delete_exactly(self.store, item)
        except OSError as exc:
            return exc
        return None

    async def _each(self, work: Callable[[A], Coroutine[Any, Any, R]], items: Iterable[A]) -> list[R]:
        """Do *work* for all, some at a time."""
        free = asyncio.Semaphore(self.parallel)

        async def one(item: A) -> R:
            async with free:
                return await work(item)

        return await each([one(item) for item in items])

    async def undo(self) -> None:
        """Remove what was copied: the source is whole."""
        made = [row.made for rest, row in self.made.items() if rest or not self.record.value.get("marker")]
        try:
            if self.record.value["phase"] != "undo":
                await self.journal.change(self.record, phase="undo")
            failures = [one for one in await self._each(self._delete, [item for item in made if not _is_marker(item)]) if one]
            failures += await self._remove_markers([item for item in made if _is_marker(item)])
            failures += [one for one in await self._each(self._delete_unsure, self.unsure - set(self.made)) if one]
            if not failures:
                await self.journal.done(self.record)
        except OSError as exc:
            failures = [exc]
        finally:
            self.close()
        if failures:
            text = "%d copies below %r, of a rename that failed, could not be removed; the next mount tries again: %s"
            log.error(text, len(failures), self.destination, failures[0].strerror)

    async def _delete_unsure(self, rest: str) -> OSError | None:
        """Remove a copy that may have been made: the bytes are still under the old name, or it stays."""
        try:
            head = await head_or_none(self.store, self.source + rest)
            if head is None or (not rest and self.record.value.get("marker")):
                return None
            made = await is_copy(self.store, head.item, self.destination + rest, self._txn(rest))
            if made is not None:
                await delete_exactly(self.store, made)
        except OSError as exc:
            return exc
        return None


__all__ = ["PARALLEL", "copy_file", "copy_object", "rename_file", "rename_tree", "resume"]
