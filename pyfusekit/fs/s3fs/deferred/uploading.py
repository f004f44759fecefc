"""The queue of files that wait to be uploaded: when each is, how many at a time, and what becomes of it."""

from __future__ import annotations

import asyncio
import errno
import heapq
import itertools
import logging
import random
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from ..remote.store import Attributes, Object, Store
from ..writing.publish import Publisher
from ..writing.scratch import Scratch
from .journal import Journal, Record
from .pending import Pending, settle
from .recovery import FIRST_RETRY, LAST_RETRY

log = logging.getLogger(__name__)
T = TypeVar("T")

_UNREACHABLE = frozenset((errno.EHOSTDOWN, errno.ETIMEDOUT, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EBUSY))
"""Errors of the store, not of one file: the others need not run into them too."""


class Uploads:
    """The files that wait, by key, and their uploads.

    published(pending, item): an upload of this file is done, and its live Staged knows already. When the file is no longer in
    *files* nothing of it waits any more, and its Staged may be let go.
    failed(pending, error, final): an upload failed; it will be tried again, unless *final*: then the bytes are where the error
    says (conflicts), and the file waits no more.
    """

    def __init__(
        self,
        store: Store,
        publisher: Publisher,
        scratch: Scratch,
        journal: Journal,
        *,
        uploads: int = 32,
        delay: float = 0.0,
        published: Callable[[Pending, Object], None] = lambda pending, item: None,
        failed: Callable[[Pending, OSError, bool], None] = lambda pending, error, final: None,
    ) -> None:
        self.files: dict[str, Pending] = {}
        """By key. INVARIANT: a file is here from the beginning of keep() until its last record is off the journal."""
        self.most = 1 << 16
        """Files that may wait: each holds a descriptor. See start()."""
        self._store = store
        self._publisher = publisher
        self._scratch = scratch
        self._journal = journal
        self._uploads = uploads
        self._delay = delay
        self._published = published
        self._failed = failed
        self._live: dict[int, Pending] = {}
        """By the id() of the Staged."""
        self._heap: list[tuple[float, int, Pending]] = []
        self._order = itertools.count()
        self._running = 0
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._changed = asyncio.Event()
        """Set when a file waits no more."""
        self._down = 0.0
        """Seconds between attempts while the store cannot be reached; 0 when it can."""
        self._hold = 0.0
        """When the next attempt may be."""
        self._draining = False
        self._closed = True
        """Nothing begins: before start() and from close() on."""

    def _again(self, pending: Pending, wait: float, *, drain: float = 0.0) -> None:
        """Let a file be uploaded in *wait* seconds, while draining in *drain*; at once when somebody waits for it."""
        pending.due = 0.0 if pending.waiters else time.monotonic() + (drain if self._draining else wait)
        self._schedule(pending)

    def _schedule(self, pending: Pending) -> None:
        heapq.heappush(self._heap, (pending.due, next(self._order), pending))
        self._pump()

    def _hurry(self, found: list[Pending]) -> None:
        """Let files be uploaded now, whatever they wait for."""
        self._down = self._hold = 0.0
        for pending in found:
            pending.due = 0.0
            heapq.heappush(self._heap, (0.0, next(self._order), pending))
        self._pump()

    def _pump(self) -> None:
        """Begin with what is due, as many at a time as may be: one while the store cannot be reached."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = time.monotonic()
        while self._heap and not self._closed and self._running < (1 if self._down else self._uploads):
            due, _, pending = self._heap[0]
            due = max(due, 0.0 if pending.waiters else self._hold)
            if due > now:
                self._timer = asyncio.get_running_loop().call_later(due - now, self._pump)
                return
            due = heapq.heappop(self._heap)[0]
            free = pending.running is None and pending.ending is None and not pending.stopped
            if due == pending.due and free and self._live.get(id(pending.staged)) is pending:
                self._begin(pending)

    def _begin(self, pending: Pending) -> None:
        forced = self._draining or bool(pending.waiters)
        if pending.record is None and not forced:
            return  # keep() is on its way: it will say when.
        if pending.staged.generation != pending.generation and not forced:
            pending.blocked = True
            return
        self._running += 1
        pending.running = self._spawn(self._upload(pending))
        pending.running.add_done_callback(partial(self._ended, pending))

    def _ended(self, pending: Pending, task: asyncio.Task[None] | None) -> None:
        """Let the next one begin; *task* None is the one that runs."""
        if pending.running is not None and pending.running is (task or asyncio.current_task()):
            pending.running = None
            self._running -= 1
            if not self._closed:
                self._pump()

    async def _upload(self, pending: Pending) -> None:
        waiters, pending.waiters = pending.waiters, []
        error: OSError | None = None
        try:
            if pending.staged.generation != pending.generation:  # Forced: what nobody acknowledged yet is, first.
                with suppress(OSError):
                    await self._keep(pending, pending.attributes)
            async with pending.lock:
                item = await self._publisher.publish(pending.staged, pending.key, pending.attributes)
            await self._done(pending, item)
        except OSError as exc:
            error = exc
            await self._not_done(pending, exc)
        except BaseException as exc:
            error = OSError(errno.EIO, f"{pending.key}: {exc or type(exc).__name__}")
            raise
        finally:
            for waiter in waiters:
                settle(waiter, error)

    async def _done(self, pending: Pending, item: Object) -> None:
        """An upload ended well: end its record, or let the next version wait on the new base."""
        self._down = self._hold = 0.0
        pending.failures = 0
        staged, record = pending.staged, pending.record
        if staged.dirty or record is None:
            if record is not None and record is pending.record:
                if staged.diverted or item.key != pending.key:
                    pending.generation = -1
                    await self._keep(pending, pending.attributes)
                else:
                    await self._rebase(pending, record, item)
            self._ended(pending, None)
            self._again(pending, self._delay)
        elif self._live.get(id(staged)) is pending:
            self._ended(pending, None)
            await self._end(pending, record)
        self._published(pending, item)

    async def _end(self, pending: Pending, record: Record | None) -> bool:
        """Let a file wait no more that is in the store, or in safety; False when a newer version of it does by now."""
        ending = pending.ending = asyncio.get_running_loop().create_future()
        try:
            if record is not None:
                await self._journal.done(record)
        except OSError as exc:
            log.warning("%r is done with, but the journal could not be told: %s", pending.key, exc.strerror)
        finally:
            ending.set_result(None)
            pending.ending = None
        if pending.record is not record:
            return False
        if pending.keeping.locked():
            pending.record = None  # _keep goes on from here, with a version of its own.
            return False
        self._gone(pending)
        return True

    async def _keep(self, pending: Pending, attributes: Attributes) -> None:
        """Put what a file is now into the journal."""
        raise NotImplementedError

    async def _rebase(self, pending: Pending, record: Record, item: Object) -> None:
        """Let the record of a newer version say on which one it builds: its transaction id is another from here on."""
        staged, file = pending.staged, dict(record.value["file"])
        file.update(base=list(item), replaces=list(item), id=staged.id, base_limit=min(file["base_limit"], staged.base_limit))
        try:
            await self._journal.change(record, file=file)
        except OSError as exc:
            log.warning("%r: the journal could not be told of its new version: %s", pending.key, exc.strerror)

    async def _not_done(self, pending: Pending, exc: OSError) -> None:
        """An upload failed: try again later, unless its bytes are in safety among the conflicts."""
        staged = pending.staged
        if exc.errno == errno.ESTALE and staged.conflicted and (staged.kept or not staged.data_dirty):
            if await self._end(pending, pending.record):
                self._failed(pending, exc, True)
            else:
                self._ended(pending, None)
                self._again(pending, 0.0)
            return
        pending.failures += 1
        longest = LAST_RETRY / 10 if self._draining else LAST_RETRY
        wait = min(longest, FIRST_RETRY * 2 ** min(pending.failures - 1, 16)) * random.uniform(0.7, 1.0)
        now = time.monotonic()
        if exc.errno in _UNREACHABLE:
            self._down = min(longest, self._down * 2 or FIRST_RETRY)
            self._hold = now + self._down
        self._failed(pending, exc, False)
        self._ended(pending, None)
        self._again(pending, wait, drain=wait)

    def _gone(self, pending: Pending) -> None:
        """A file waits no more."""
        for place in [pending.key] if self.files.get(pending.key) is pending else list(self.files):
            if self.files[place] is pending:
                del self.files[place]
        if self._live.get(id(pending.staged)) is pending:
            del self._live[id(pending.staged)]
        self._answer(pending, None)
        self._changed.set()

    def _answer(self, pending: Pending, error: OSError | None) -> None:
        waiters, pending.waiters = pending.waiters, []
        for waiter in waiters:
            settle(waiter, error)

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


__all__ = ["Uploads"]
