"""What dead servers left beside files: renames, removals and multipart uploads are brought to their end."""

from __future__ import annotations

import asyncio
import itertools
import logging

from ..remote.store import Object, Store, Upload
from ..writing.copying import delete_exactly
from ..writing.publish import Publisher
from .journal import Journal, Record
from .rename import resume

log = logging.getLogger(__name__)

FIRST_RETRY = 1.0
"""Seconds after the first failure; twice as many after each, with jitter."""
LAST_RETRY = 60.0


async def finish_removal(store: Store, journal: Journal, record: Record) -> None:
    """Delete the version that a file's record expects, and no other, until it works."""
    for failures in itertools.count():
        try:
            await delete_exactly(store, Object(*record.value["file"]["replaces"]))
            await journal.done(record)
            return
        except OSError as exc:
            log.warning("%r could not be deleted yet: %s", record.value["key"], exc.strerror)
        await asyncio.sleep(min(LAST_RETRY, FIRST_RETRY * 2 ** min(failures, 16)))


async def finish_rename(store: Store, journal: Journal, record: Record) -> None:
    """Finish a rename; what goes wrong is logged, and left to the next mount."""
    try:
        await resume(store, journal, record)
    except OSError as exc:
        log.error("a rename that a dead server began could not be finished; the next mount tries again: %s", exc.strerror)


async def abort_uploads(publisher: Publisher, journal: Journal, records: list[Record]) -> None:
    """Abort multipart uploads, and forget them when that worked."""
    try:
        await publisher.leftovers([Upload(str(one.value["key"]), str(one.value["id"])) for one in records])
    except OSError as exc:
        log.warning("uploads of a dead server could not be aborted; the next mount tries again: %s", exc.strerror)
        return
    for record in records:
        journal.done_soon(record)


__all__ = ["FIRST_RETRY", "LAST_RETRY", "abort_uploads", "finish_removal", "finish_rename"]
