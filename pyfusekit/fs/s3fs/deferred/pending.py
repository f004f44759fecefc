"""A file whose upload waits: what writeback.py knows of it."""

from __future__ import annotations

import asyncio
import hashlib
import os

from ..remote.store import Attributes, Object
from ..writing.scratch import Scratch
from ..writing.staging import Staged
from .journal import Record, copy_ranges, open_data

_ONE_PUT = 1 << 20
"""Bytes up to which a file may change while it is sent (the publisher's SMALL)."""


class Pending:
    """A file that waits to be uploaded, or is on its way."""

    __slots__ = (
        "attributes",
        "blocked",
        "due",
        "ending",
        "failures",
        "frozen_end",
        "generation",
        "keeping",
        "key",
        "lock",
        "record",
        "running",
        "staged",
        "stopped",
        "waiters",
    )

    def __init__(self, key: str, staged: Staged, attributes: Attributes) -> None:
        self.key = key
        self.staged = staged
        """The live one: it was given to keep(), or made from the journal."""
        self.attributes = attributes
        self.record: Record | None = None
        self.generation = -1
        """What of the Staged was acknowledged."""
        self.frozen_end = 0
        """Bytes [0, frozen_end) of the staging file are the record's."""
        self.keeping = asyncio.Lock()
        """Held while a record is made."""
        self.lock = asyncio.Lock()
        """Held while the staging file is published, or replaced by a copy."""
        self.running: asyncio.Task[None] | None = None
        self.ending: asyncio.Future[None] | None = None
        """Ends when the last record of a published version is off the journal."""
        self.due = 0.0
        self.failures = 0
        self.blocked = False
        """Written since it was acknowledged: the next keep() uploads it at once."""
        self.stopped = False
        """Removed, or renamed just now: no upload begins."""
        self.waiters: list[asyncio.Future[None]] = []

    @property
    def base(self) -> Object | None:
        """The version the store holds, as far as known: moves on when an upload ends."""
        return self.staged.base


def settle(waiter: asyncio.Future[None], error: OSError | None) -> None:
    """Answer who waits for an upload."""
    if waiter.done():
        return
    if error is None:
        waiter.set_result(None)
    else:
        waiter.set_exception(error)
        waiter.exception()  # Whoever waited may have been cancelled.


def copied(scratch: Scratch, fd: int, ranges: list[tuple[int, int]]) -> tuple[int, str]:
    """Return a descriptor of a copy of a staging file, and its path, as Scratch.open."""
    copy, path = scratch.open()
    try:
        os.ftruncate(copy, os.fstat(fd).st_size)
        copy_ranges(fd, copy, ranges)
    except BaseException:
        os.close(copy)
        if path:
            os.unlink(path)
        raise
    return copy, path


def etag_of(record: Record) -> str:
    """Return the ETag that one PUT of what a record holds will most likely make; "" when not all of it is here. Sync."""
    file = record.value["file"]
    ranges = [(int(start), int(end)) for start, end in file["local"]]
    if ranges not in ([(0, file["size"])], []) or (not ranges and file["size"]) or file["size"] > _ONE_PUT:
        return ""
    try:
        fd = open_data(record, ranges)
    except OSError:
        return ""
    try:
        data = os.pread(fd, file["size"], 0)
    finally:
        os.close(fd)
    return hashlib.md5(data, usedforsecurity=False).hexdigest() if len(data) == file["size"] else ""


__all__ = ["Pending", "copied", "etag_of", "settle"]
