"""The memory of what is under way: one limit for all, and the pieces of a range as they arrive."""

from __future__ import annotations

import asyncio
import errno
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Coroutine
from typing import Any, Protocol, TypeAlias

Data: TypeAlias = bytes | bytearray | memoryview

IDLE_SECONDS = 5.0
"""A holder that was not used for so long counts as nobody when the memory is shared out."""
FLIGHTS = 64
"""Requests under way that nobody waits for, in all."""
_SMALL = 32 << 10
"""Pieces below this are gathered, so that a range is not a list of thousands."""
_CHUNK = 128 << 10


class Holder(Protocol):
    """Who holds memory that he can give back when others need it more."""

    held: int
    used_at: float

    def shrink(self, size: int) -> None:
        """Give *size* bytes back, as far as nobody waits for them."""


class Budget:
    """The bytes that all buffers of a mount may hold together.

    What is fetched ahead takes memory when there is some; a read claims it, from what others fetched ahead if need be; and
    when all of it is in use by reads, it waits in line. INVARIANT: used <= limit, or one that is larger than limit is alone.
    Who waits must hold nothing that he will not give up, and then everybody's turn comes: what is in use is in use by a read
    whose request has a deadline.
    """

    __slots__ = ("_holders", "_relieving", "_waiters", "flights", "limit", "most_used", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self.most_used = 0
        self.flights = 0
        """Requests under way that were made ahead."""
        self._holders: dict[Holder, None] = {}
        """The one that was used last comes last."""
        self._waiters: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._relieving = False

    @property
    def waiting(self) -> int:
        """How many wait for memory."""
        return len(self._waiters)

    def share(self) -> int:
        """Return the bytes each who reads in order may fetch ahead: all while there is plenty, and equal shares later.

        A stream may hold twice its window: what is behind its reader, and the part that reaches beyond the window.
        """
        if self.used * 2 <= self.limit:
            return self.limit // 2
        recent = time.monotonic() - IDLE_SECONDS
        count = 0
        for holder in reversed(self._holders):
            if holder.used_at < recent:
                break
            count += 1
        return self.limit // (2 * max(1, count))

    def touch(self, holder: Holder) -> None:
        """Note that *holder* is in use, and has something to give back."""
        holder.used_at = time.monotonic()
        self._holders.pop(holder, None)
        self._holders[holder] = None

    def forget(self, holder: Holder) -> None:
        """Note that *holder* holds nothing."""
        self._holders.pop(holder, None)

    def take(self, size: int, asking: Holder, ahead: bool = False) -> bool:
        """Take *size* bytes if nobody needs them more: from those who hold more than their share, or are idle."""
        if self._waiters or (ahead and self.flights >= FLIGHTS):
            return False
        if self.used + size > self.limit:
            share = 2 * self.share()
            recent = time.monotonic() - IDLE_SECONDS
            for holder in list(self._holders):
                excess = holder.held - (share if holder.used_at >= recent else 0)
                if excess > 0 and holder is not asking:
                    holder.shrink(min(excess, self.used + size - self.limit))
                    if self.used + size <= self.limit:
                        break
            else:
                return False
        self._grant(size)
        return True

    def claim(self, size: int) -> bool:
        """Take *size* bytes for a read, from what others hold in advance if need be; False when all is in use by reads."""
        if self._waiters:
            return False
        self._reclaim(size)
        if self._fits(size):
            self._grant(size)
            return True
        return False

    async def wait(self, size: int) -> None:
        """Take *size* bytes, when it is our turn and they are there."""
        if self.claim(size):
            return
        waiter = asyncio.get_running_loop().create_future()
        place = (size, waiter)
        self._waiters.append(place)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self.give(size)
            else:
                if place in self._waiters:
                    self._waiters.remove(place)
                self.relieve()
            raise

    def give(self, size: int) -> None:
        """Give *size* bytes back."""
        self.used -= size
        if self._waiters:
            self.relieve()

    def relieve(self) -> None:
        """Serve those who wait: whoever gave up waiting for a part, or for memory, may have left something for them."""
        if self._relieving:
            return
        self._relieving = True
        try:
            while self._waiters:
                size, waiter = self._waiters[0]
                if not waiter.done():
                    self._reclaim(size)
                    if not self._fits(size):
                        return
                    self._grant(size)
                    waiter.set_result(None)
                self._waiters.popleft()
        finally:
            self._relieving = False

    def _fits(self, size: int) -> bool:
        return self.used + size <= self.limit or not self.used

    def _grant(self, size: int) -> None:
        self.used += size
        self.most_used = max(self.most_used, self.used)

    def _reclaim(self, size: int) -> None:
        """Have holders give back until *size* fits, those first that were not used for the longest time."""
        if self._fits(size):
            return
        for holder in list(self._holders):
            holder.shrink(self.used + size - self.limit)
            if self._fits(size):
                return


class Owner(Protocol):
    """Who keeps a part."""

    held: int
    failed: bool


class Part:
    """A range on its way: a request that fills it, and those who wait for it.

    The pieces are kept as they came and handed out as views: nothing is copied but small pieces.

    INVARIANT: [start, filled) is there, is right and stays as it is; when *done*, filled == end or *error* says why not.
    *held* bytes of the budget are this part's until it is discarded.
    """

    __slots__ = (
        "_budget", "_owner", "_pieces", "_room", "_starts", "_task", "_waiters",
        "ahead", "discarded", "done", "end", "error", "filled", "held", "name", "start", "users",
    )  # fmt: skip

    def __init__(self, budget: Budget, owner: Owner | None, start: int, end: int, name: str) -> None:
        self.start = start
        """The first byte that is still here."""
        self.end = end
        self.filled = start
        self.held = end - start
        self.name = name
        self.error: Exception | None = None
        self.done = False
        self.ahead = False
        self.discarded = False
        self.users = 0
        """Reads that need it; only a part without any may be discarded."""
        self._budget = budget
        self._owner = owner
        """None when its stream has dropped it: it ends with its last user."""
        self._pieces: list[bytes | bytearray] = []
        self._starts: list[int] = []
        self._room = 0
        """Bytes of the last piece, a bytearray, that are not filled."""
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []
        self._task: asyncio.Task[None] | None = None

    def begin(self, request: Coroutine[Any, Any, None], tasks: set[asyncio.Task[Any]], ahead: bool = False) -> None:
        """Have *request* fill it by :meth:`take`. Nobody waits yet for one made *ahead*."""
        self.ahead = ahead
        self._budget.flights += ahead
        task = self._task = asyncio.get_running_loop().create_task(request)
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        task.add_done_callback(self._ended)

    def take(self, piece: bytes) -> None:
        """Take the next bytes."""
        if self.discarded:
            return
        if self.filled + len(piece) > self.end:
            raise OSError(errno.EIO, f"{self.name}: more bytes came than were asked for")
        if len(piece) >= _SMALL:
            if self._room:
                # What is left of a chunk is not worth copying a large piece into it.
                last = self._pieces[-1]
                self._pieces[-1] = bytes(memoryview(last)[: len(last) - self._room])
                self._room = 0
            self._starts.append(self.filled)
            self._pieces.append(piece)
            self.filled += len(piece)
        else:
            self._gather(piece)
        if self._waiters:
            self._wake()

    def _gather(self, piece: bytes) -> None:
        """Copy a small piece behind the one before."""
        position = 0
        while position < len(piece):
            if not self._room:
                self._room = min(_CHUNK, self.end - self.filled)
                self._starts.append(self.filled)
                self._pieces.append(bytearray(self._room))
            last = self._pieces[-1]
            count = min(self._room, len(piece) - position)
            at = len(last) - self._room
            memoryview(last)[at : at + count] = piece[position : position + count]
            self._room -= count
            self.filled += count
            position += count

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Note how the request ended."""
        self.done = True
        self._budget.flights -= self.ahead
        if task.cancelled():
            self._fail(OSError(errno.EINTR, f"{self.name}: the file was closed"))
        elif (error := task.exception()) is not None:
            self._fail(error if isinstance(error, Exception) else OSError(errno.EIO, repr(error)))
        elif self.filled < self.end and not self.discarded:
            self._fail(OSError(errno.EIO, f"{self.name}: {self.end - self.filled} bytes are missing"))

    def _fail(self, error: Exception) -> None:
        self.error = self.error or error
        if self._owner is not None and not self.discarded:
            self._owner.failed = True
        self._wake()

    def _wake(self) -> None:
        """Wake those whose bytes are there, or will not come."""
        late: list[tuple[int, asyncio.Future[None]]] = []
        for place in self._waiters:
            upto, waiter = place
            if upto > self.filled and self.error is None:
                late.append(place)
            elif not waiter.done():
                waiter.set_result(None)
        self._waiters = late

    def has(self, upto: int) -> bool:
        """Return whether the bytes before the offset *upto*, as far as they are this part's, are there."""
        return self.filled >= upto or self.filled == self.end

    async def wait(self, upto: int) -> None:
        """Wait until the bytes before *upto* are there; raise what went wrong."""
        while not self.has(upto):
            if self.error is not None:
                # A fresh exception for each: several may wait for one part, and a traceback is not theirs to share.
                if isinstance(self.error, OSError):
                    raise OSError(self.error.errno, self.error.strerror) from self.error
                raise self.error
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append((upto, waiter))
            await waiter

    def views(self, offset: int, end: int) -> list[Data]:
        """Return [offset, end), which is there, as views of the pieces."""
        if self.discarded:
            raise OSError(errno.EINTR, f"{self.name}: the file was closed")
        starts, pieces = self._starts, self._pieces
        index = bisect_right(starts, offset) - 1
        found: list[Data] = []
        while offset < end:
            piece, start = pieces[index], starts[index]
            upto = min(end, start + len(piece))
            found.append(memoryview(piece)[offset - start : upto - start])
            offset = upto
            index += 1
        return found

    def drop_before(self, offset: int) -> None:
        """Give back the pieces that end at *offset* or before it."""
        index = bisect_right(self._starts, offset) - 1
        if index > 0:
            kept = self._starts[index]
            del self._starts[:index], self._pieces[:index]
            freed, self.start = kept - self.start, kept
            self._free(freed)

    def unpin(self) -> None:
        """Note that a read needs it no more."""
        self.users -= 1
        if not self.users and self._owner is None:
            self.discard()

    def leave(self) -> None:
        """Belong to nobody: the last user ends it."""
        if self._owner is not None:
            self._owner.held -= self.held
            self._owner = None
        if not self.users:
            self.discard()

    def discard(self) -> None:
        """End the request and give the memory back. Who waits still gets EINTR."""
        if self.discarded:
            return
        self.discarded = True
        if self.filled < self.end:
            # One that has all its bytes ends by itself, and its connection can be used again.
            if self._task is not None and not self._task.done():
                self._task.cancel()
            self.error = self.error or OSError(errno.EINTR, f"{self.name}: the file was closed")
        self._wake()
        self._pieces.clear()
        self._starts.clear()
        self._free(self.held)

    def _free(self, size: int) -> None:
        self.held -= size
        if self._owner is not None:
            self._owner.held -= size
        self._budget.give(size)


__all__ = ["FLIGHTS", "IDLE_SECONDS", "Budget", "Data", "Holder", "Part"]
