"""Reading a remote file: ranges in flight, a window ahead of who reads in order, and a limit for the memory of them all.

A Prefetcher belongs to one version of one file and is shared by all who have it open. It tells its readers apart by where they
read: each Stream is one that goes on where it ended, with parts that lie one behind the other, each a ranged request, the last
of them up to *window* bytes ahead. The window grows when the reader had to wait and never otherwise, so a slow reader is not
fetched for in vain. A read elsewhere is one request for just its range, or for what such readers went on to read so far.

Nothing here knows what the file is or how it is fetched: *fetch* gets a range and a sink, and its errors are the reader's.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias

from .memory import Budget, Data, Part

Fetch: TypeAlias = Callable[[int, int, Callable[[bytes], None]], Coroutine[Any, Any, None]]
"""fetch(start, end, sink): hand the bytes [start, end) to *sink*, piece after piece in order; cancelled, end the request."""

FIRST_WINDOW = 1 << 20
"""What is fetched ahead at first. The kernel adds its own readahead to the reads it sends."""
LARGEST_PART = 8 << 20
"""Bytes of one request of a stream: what it costs is hidden by then."""
SMALLEST_PART = 128 << 10
"""Bytes ahead that are worth a request. A run of reads that is no longer than this is random access."""
KEEP_BEHIND = 1 << 20
"""Bytes kept behind the reader: the kernel's readahead is not asked in strict order."""
STREAMS = 16
"""Readers of one file that are told apart."""
SPREAD = 2
"""Requests of a window: each costs a store more than its bytes do."""
PARTS_AHEAD = 16
"""Requests under way for one stream."""


class Stream:
    """One who reads on where he ended.

    INVARIANT: *parts* lie in order and without gaps; *held* is the sum of what they hold of the budget.
    """

    __slots__ = ("begun", "failed", "held", "mark", "parts", "position", "quiet", "used_at", "window")

    def __init__(self, offset: int, window: int) -> None:
        self.begun = offset
        self.position = offset
        """Where the next read in order begins."""
        self.window = window
        self.quiet = offset
        """Nothing is fetched ahead before the reader is here: who jumps about has read so far and jumped again."""
        self.mark = offset + FIRST_WINDOW
        """A reader who waits here or behind has the window widened: once a window, not with each of many reads at once."""
        self.parts: list[Part] = []
        self.held = 0
        self.used_at = 0.0
        self.failed = False
        """Some part ended with an error."""

    @property
    def reach(self) -> int:
        """Where the last part ends."""
        return self.parts[-1].end if self.parts else self.position

    def covers(self, offset: int) -> bool:
        """Return whether a read at *offset* goes on here."""
        if not self.parts:
            return offset == self.position
        gap = FIRST_WINDOW if self.window >= FIRST_WINDOW else 0
        return self.parts[0].start <= offset <= self.parts[-1].end + gap

    def busy(self) -> bool:
        """Return whether somebody waits for a part."""
        return any(part.users for part in self.parts)

    def shrink(self, size: int) -> None:
        """Give *size* bytes back, if as many lie behind the reader, or ahead and nobody waits for them."""
        least = self.held - size
        self.let_go_before(self.position)
        while self.parts and self.held > least and not self.parts[-1].users:
            self.parts.pop().discard()

    def let_go_before(self, offset: int) -> None:
        """Give back the pieces that end before *offset*."""
        while self.parts and not self.parts[0].users:
            if self.parts[0].end > offset:
                self.parts[0].drop_before(offset)
                return
            self.parts.pop(0).discard()

    def drop_failed(self) -> None:
        """Forget a part that failed, and what lies behind it: the next reader tries again."""
        self.failed = False
        for index, part in enumerate(self.parts):
            if part.error is not None:
                for dropped in self.parts[index:]:
                    dropped.leave()
                del self.parts[index:]
                return

    def close(self) -> None:
        """End all requests but those that somebody waits for."""
        for part in self.parts:
            part.leave()
        self.parts.clear()


class Prefetcher:
    """The bytes of one version of a file of *size* bytes, for all who have it open.

    *limit* is the largest window of a stream; with 0 nothing is fetched that was not asked for. *tasks* gets every request
    under way: who ends the filesystem waits for them. Requests begin and end at multiples of *align* where they can.
    """

    __slots__ = ("_fetch", "_runs", "_streams", "_tasks", "align", "budget", "closed", "limit", "name", "size", "spread")

    def __init__(
        self,
        fetch: Fetch,
        size: int,
        limit: int,
        budget: Budget,
        tasks: set[asyncio.Task[Any]],
        *,
        align: int = 1,
        spread: int = SPREAD,
        name: str = "",
    ) -> None:
        """Make one; a window is asked for in *spread* requests, as far as they are worth it."""
        self._fetch = fetch
        self.size = size
        self.limit = limit
        self.budget = budget
        self._tasks = tasks
        self.align = align
        self.spread = spread
        self.name = name
        """For error texts."""
        self.closed = False
        self._streams: list[Stream] = []
        """The one that was read from last comes first."""
        self._runs: deque[Stream] = deque(maxlen=4)
        """Where the last jumps went, and how far they read on: what the next one will want."""

    def read(self, offset: int, size: int, run: int = 0) -> list[Data] | Coroutine[Any, Any, list[Data]]:
        """Return up to *size* bytes from *offset*: at once when they are there, else a coroutine. OSError is fetch's.

        *run* bytes before *offset* were read in order already, but came from elsewhere.
        """
        end = min(offset + size, self.size)
        if offset >= end:
            return []
        stream = self._find(offset) or self._jump(offset, run)
        needed = self._needed(stream, offset, end)
        self.budget.touch(stream)
        if needed is None:
            stream.shrink(stream.held)
            stream.position = max(stream.position, end)
            return self._read_tight(offset, end)
        if all(part.has(end) for part in needed):
            found = _views(needed, offset, end)
            self._pass(stream, end)
            self._settle(stream, offset)
            return found
        for part in needed:
            part.users += 1
        grows = offset >= stream.mark
        if grows:
            stream.window = min(self.limit, stream.window * (4 if stream.window < LARGEST_PART else 2))
        self._pass(stream, end)
        if grows:
            stream.mark = stream.reach
        return self._read_stream(stream, needed, offset, end)

    def covers(self, offset: int) -> bool:
        """Return whether a read at *offset* goes on where another ended, or is on its way already."""
        return any(stream.covers(offset) for stream in self._streams)

    def whole(self) -> bytes | None:
        """Return the whole file when one stream holds all of it; nothing is fetched."""
        for stream in self._streams:
            parts = stream.parts
            if parts and parts[0].start == 0 and parts[-1].end == self.size and all(part.has(part.end) for part in parts):
                return b"".join(_views(parts, 0, self.size))
        return None

    async def begin(self) -> None:
        """Fetch a small file whole and wait for its first byte, so that opening it shows whether it can be read."""
        stream = self._find(0)
        if stream is None:
            stream = Stream(0, min(FIRST_WINDOW, self.limit))
            self._add(stream)
        if not stream.parts and self.size:
            if not self.budget.claim(self.size):
                await self.budget.wait(self.size)
            if self.closed or stream.parts:
                self.budget.give(self.size)
            else:
                self._begin(stream, 0, self.size)
                self.budget.touch(stream)
        needed = stream.parts[:1]
        for part in needed:
            part.users += 1
        await self._wait(stream, needed, 1)

    def begin_ahead(self) -> bool:
        """Fetch a small file whole for who will open it soon; return False when there is no memory to spare."""
        stream = Stream(0, min(FIRST_WINDOW, self.limit))
        if self._streams or not self.budget.take(self.size, stream, ahead=True):
            return False
        self._add(stream)
        self._begin(stream, 0, self.size, ahead=True)
        self.budget.touch(stream)
        return True

    def close(self) -> None:
        """End all requests but those that reads wait for; nobody begins to read any more."""
        self.closed = True
        for stream in self._streams:
            stream.close()
            self.budget.forget(stream)
        self._streams.clear()
        self._runs.clear()

    @property
    def held(self) -> int:
        """Bytes of memory reserved for this file."""
        return sum(stream.held for stream in self._streams)

    @property
    def window(self) -> int:
        """The window of the stream that was read from last."""
        return self._streams[0].window if self._streams else 0

    # Streams.

    def _find(self, offset: int) -> Stream | None:
        """Return the stream that a read at *offset* goes on with."""
        streams = self._streams
        for index, stream in enumerate(streams):
            if stream.failed:
                stream.drop_failed()
            if stream.covers(offset):
                if index:
                    del streams[index]
                    streams.insert(0, stream)
                return stream
        return None

    def _jump(self, offset: int, run: int) -> Stream:
        """Return a new stream at *offset* that fetches at first what readers read on so far after a jump."""
        runs = [run.position - run.begun for run in self._runs]
        mean = min(sum(runs) // len(runs), FIRST_WINDOW) if runs else 0
        stream = Stream(offset, 0)
        if self.limit and offset == 0 and (len(runs) < 4 or mean > SMALLEST_PART):
            stream.window = min(FIRST_WINDOW, self.limit)
        elif run > SMALLEST_PART:
            stream.window = min(FIRST_WINDOW, self.limit, run)
        elif mean > SMALLEST_PART:
            stream.quiet = offset + min(mean, self.limit)
        self._runs.append(stream)
        self._add(stream)
        return stream

    def _add(self, stream: Stream) -> None:
        self._streams.insert(0, stream)
        for index in range(len(self._streams) - 1, 0, -1):
            if len(self._streams) <= STREAMS:
                return
            if not self._streams[index].busy():
                old = self._streams.pop(index)
                old.close()
                self.budget.forget(old)

    def _needed(self, stream: Stream, offset: int, end: int) -> list[Part] | None:
        """Return the parts that hold [offset, end), begun where they were missing; None when there is no memory for them."""
        if not stream.parts:
            if not self._demand(stream, offset - offset % self.align, end):
                return None
        elif stream.reach < end:
            # What is there already must not be given up to make room for the rest.
            pinned = [part for part in stream.parts if part.end > offset]
            for part in pinned:
                part.users += 1
            enough = self._demand(stream, stream.reach, end)
            for part in pinned:
                part.users -= 1
            if not enough:
                return None
        return [part for part in stream.parts if part.start < end and part.end > offset]

    def _demand(self, stream: Stream, start: int, end: int) -> bool:
        """Begin a part from *start* to *end* or beyond, as far as the stream's window and the memory reach."""
        best = self._aligned(max(end, stream.quiet, start + self._part(min(stream.window, self.budget.share()))))
        if self.budget.take(best - start, stream):
            self._begin(stream, start, best)
            return True
        least = self._aligned(end)
        if self.budget.claim(least - start):
            self._begin(stream, start, least)
            return True
        return False

    def _aligned(self, end: int) -> int:
        return min(self.size, -(-end // self.align) * self.align)

    def _part(self, window: int) -> int:
        """Return the bytes of a request in a stream that reaches *window* bytes ahead."""
        if window <= FIRST_WINDOW:
            return max(window, SMALLEST_PART) if window else 0
        return min(LARGEST_PART, max(FIRST_WINDOW, 1 << (window // self.spread).bit_length() - 1))

    def _begin(self, stream: Stream, start: int, end: int, ahead: bool = False) -> None:
        """Request [start, end), whose memory was taken."""
        part = Part(self.budget, stream, start, end, self.name)
        stream.parts.append(part)
        stream.held += end - start
        part.begin(self._fetch(start, end, part.take), self._tasks, ahead)

    def _pass(self, stream: Stream, end: int) -> None:
        """Note that the reader went on to *end*, and fetch ahead of him."""
        if end > stream.position:
            if stream.position > stream.begun and stream.window < FIRST_WINDOW:
                run = end - stream.begun
                stream.window = min(self.limit, FIRST_WINDOW, max(run, SMALLEST_PART, stream.window))
            stream.position = end
        window = min(stream.window, self.budget.share())
        if not window or end <= stream.quiet or stream.reach >= self.size or stream.reach - end >= window:
            return
        part = self._part(window)
        under_way = sum(not part.done for part in stream.parts)
        while (reach := stream.reach) < self.size and reach - end < window and under_way < PARTS_AHEAD:
            # Stores keep large files in parts too, mostly of a power of two: a request in one of them costs them less.
            upto = self._aligned((reach // part + 1) * part if part >= FIRST_WINDOW else reach + part)
            if not self.budget.take(upto - reach, stream, ahead=True):
                stream.window = max(SMALLEST_PART, stream.window // 2)
                return
            self._begin(stream, reach, upto, ahead=True)
            under_way += 1

    def _settle(self, stream: Stream, offset: int) -> None:
        """Let go of what lies far behind a reader who read at *offset*; of all when he will not read on."""
        if stream.position >= (self.size if stream.window else stream.reach):
            if not stream.busy():
                stream.close()
                self.budget.forget(stream)
        else:
            stream.let_go_before(offset - min(KEEP_BEHIND, stream.window, self.budget.share()))
        if self.budget.waiting:
            self.budget.relieve()

    # Waiting.

    async def _read_stream(self, stream: Stream, needed: list[Part], offset: int, end: int) -> list[Data]:
        """Wait for [offset, end), which *needed* holds: a later read may drop them from the stream."""
        found: list[Data] = []
        await self._wait(stream, needed, end, offset, found)
        return found

    async def _wait(
        self, stream: Stream, needed: list[Part], end: int, offset: int = 0, found: list[Data] | None = None
    ) -> None:
        """Wait for the bytes before *end* and take views of them; each of *needed* was given a user, who goes away here."""
        interrupted = False
        try:
            for part in needed:
                await part.wait(min(end, part.end))
            if found is not None:
                found.extend(_views(needed, offset, end))
        except asyncio.CancelledError:
            interrupted = True
            raise
        finally:
            for part in needed:
                part.unpin()
            # When nobody else reads, what an interrupted reader asked for ends now and not at its deadline.
            if interrupted and not stream.busy():
                stream.close()
                self.budget.forget(stream)
            elif found is not None:
                self._settle(stream, offset)

    async def _read_tight(self, offset: int, end: int) -> list[Data]:
        """Wait for memory and fetch just [offset, end). Who waits here holds nothing, so nobody waits for him."""
        await self.budget.wait(end - offset)
        part = Part(self.budget, None, offset, end, self.name)
        try:
            part.begin(self._fetch(offset, end, part.take), self._tasks)
            await part.wait(end)
            return part.views(offset, end)
        finally:
            part.discard()


def _views(parts: list[Part], offset: int, end: int) -> list[Data]:
    """Return [offset, end) as views of the pieces of *parts*, which hold it."""
    if len(parts) == 1:
        return parts[0].views(offset, end)
    return [view for part in parts for view in part.views(max(offset, part.start), min(end, part.end))]


__all__ = [
    "FIRST_WINDOW",
    "KEEP_BEHIND",
    "LARGEST_PART",
    "PARTS_AHEAD",
    "SMALLEST_PART",
    "STREAMS",
    "Budget",
    "Fetch",
    "Prefetcher",
    "Stream",
]
