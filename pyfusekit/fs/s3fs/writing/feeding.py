"""Sending a file while it is being written: full parts of new, truncated and appended-to files, several at a time."""

from __future__ import annotations

import asyncio
import errno
import logging
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol

from ..remote.store import MAX_PARTS, MIN_PART, Attributes, Store, Upload
from .plan import CopyPart, PutPart, part_bytes, plan, put_limit
from .scratch import Scratch
from .staging import Staged
from .streams import FileBody, Stream

log = logging.getLogger("pyfusekit.s3fs")

TXN = "pyfusekit-txn"
"""The metadata that says which publish made a version: how a lost answer is told from another writer's update."""
PARALLEL = 16
"""Parts of one file on their way at a time, at most."""
BACKLOG = 128 << 20
"""Bytes a writer may be ahead of what is being sent; they are on disk, so this bounds how long close takes, not memory."""
REWRITES = 4
"""After so many changes of parts that were sent already, a file is no longer sent before its publish."""


class PublishOptions(Protocol):
    """The mount's options that matter here: see S3Options."""

    @property
    def part_size(self) -> int:
        """Bytes of a part."""

    @property
    def uploads(self) -> int:
        """Uploads at a time."""

    @property
    def on_conflict(self) -> str:
        """fail, rename, overwrite or append-merge."""


class Feeder:
    """The background of a Publisher."""

    def __init__(
        self,
        store: Store,
        options: PublishOptions,
        scratch: Scratch,
        begun: Callable[[Upload], None] | None,
        ended: Callable[[Upload], None] | None,
    ) -> None:
        self.store = store
        self.options = options
        self.scratch = scratch
        self.part_size = max(MIN_PART, options.part_size)
        self.parallel = max(1, min(options.uploads, PARALLEL))
        self._begun = begun or (lambda upload: None)
        self._ended = ended or (lambda upload: None)
        self._slots = asyncio.Semaphore(max(1, options.uploads))
        self._streams: dict[Stream, Staged] = {}
        """Uploads under way."""
        self._tasks: set[asyncio.Task[Any]] = set()
        self._unaborted: set[Upload] = set()
        """Uploads whose abort failed: tried again when the mount ends; the journal has them too."""
        self._closed = False

    def feed(self, staged: Staged, key: str, attributes: Callable[[], Attributes]) -> None:
        """Call after each write: starts to send the full parts of a new (or truncated, or appended to) file in the background.

        Cheap when there is nothing to do. *attributes* is called when the upload is begun: what the object shall have as far
        as it is known.
        """
        stream = staged.stream
        if stream is None:
            if staged.size - staged.base_limit < 2 * self.part_size or staged.sending is not None or self._closed:
                return
            stream = self._stream(staged, staged.diverted or key, attributes)
            if stream is None:
                return
        elif staged.size - stream.frontier < self.part_size:
            if staged.size < stream.frontier and not stream.laid and not staged.gone:  # Cut off: another beginning.
                self._forget(staged)
            return
        elif stream.key != (staged.diverted or key):
            if not staged.gone and staged.sending is None:  # Renamed: an upload cannot be.
                self._forget(staged)
            return
        self._pump(staged, stream)

    def _stream(self, staged: Staged, key: str, attributes: Callable[[], Attributes]) -> Stream | None:
        """Begin an upload for *staged* if its end is being written in order; None otherwise."""
        origin = staged.base_limit
        least = 2 * self.part_size
        if not staged.changed.covers(origin, origin + least) or (origin and staged.changed.start < origin):
            return None
        # What is copied does not depend on how much follows, if it is enough for a multipart upload.
        steps = plan(origin + put_limit(self.part_size) + 1, self.copyable(staged), self.part_size)
        copies = [step for step in steps if isinstance(step, CopyPart)]
        if (copies[-1].end if copies else 0) != origin:
            return None
        return self.begin(staged, key, attributes(), len(copies) + 1, origin)

    def begin(self, staged: Staged, key: str, attributes: Attributes, first: int = 1, origin: int = 0) -> Stream:
        """Create a multipart upload, in a task, for what *staged* holds."""
        staged.stream = self.create(staged, key, attributes, first, origin)
        return staged.stream

    def create(self, staged: Staged, key: str, attributes: Attributes, first: int = 1, origin: int = 0) -> Stream:
        """Create a multipart upload in a task."""
        copies = bool(self.copyable(staged))
        # What will be in it is not known yet, and an upload before may still be completed.
        txn = f"{staged.id}.{uuid.uuid4().hex[:8]}-{'.m' if staged.merged else ''}"
        stream = Stream(key, attributes, txn, first, origin)
        self._streams[stream] = staged
        stream.creating = self._spawn(self._create(stream, copies))
        return stream

    async def _create(self, stream: Stream, copies: bool) -> Upload:
        upload = await self.store.create_upload(stream.key, labelled(stream.attributes, stream.txn), copies=copies)
        stream.upload = upload
        self._begun(upload)
        return upload

    def copyable(self, staged: Staged) -> list[tuple[int, int]]:
        """Return which bytes this server can copy from the base."""
        return staged.copyable() if self.store.features.copy_part else []

    def _pump(self, staged: Staged, stream: Stream) -> None:
        """Begin to send the parts that are full, as many as may be under way."""
        while (
            len(stream.under_way) < self.parallel
            and not stream.laid
            and stream.error is None
            and stream.rewritten < REWRITES
            and staged.stream is stream
            and stream.number <= MAX_PARTS
        ):
            start = stream.frontier
            step = PutPart(stream.number, start, start + part_bytes(stream.number, self.part_size))
            if not staged.changed.covers(step.start, step.end):
                return
            stream.begin(step)
            stream.under_way[step.number] = self._spawn(self._send_behind(staged, stream, step))

    async def _send_behind(self, staged: Staged, stream: Stream, step: PutPart) -> None:
        try:
            assert stream.creating is not None
            # Shielded: other parts wait for it too.
            upload = await asyncio.shield(stream.creating)
            async with self._slots:
                body = FileBody(staged.fd, step.start, step.end)
                part = await self.store.upload_part(upload, step.number, body)
            stream.sent(step, part)
        except OSError as exc:
            # The publish sends it again, and says what is wrong if it still is. Bytes that changed while they were sent
            # fail for their checksum.
            if not stream.stale(step.number):
                stream.error = exc
                log.info("part %d of %r was not sent: %s", step.number, stream.key, exc.strerror)
        finally:
            stream.under_way.pop(step.number, None)
        self._pump(staged, stream)

    # Back-pressure.

    def room(self, staged: Staged, start: int, end: int) -> Awaitable[None] | None:
        """Return None when the bytes [start, end) may be written now, else what to await first.

        When that returns they may be, if nothing else is awaited in between. For truncate(n): start and end are n and the size,
        the smaller first. Waits while a publish is sending these bytes, while the writer is far ahead of what is sent, and
        while the staging area is full of bytes that are on their way; each of these ends when the store fails.
        """
        if start < staged.sending_end or (
            not self.scratch.fits(end - start) and not self.scratch.fits(staged.grows_by(start, end))
        ):
            return self._wait(staged, start, end)
        stream = staged.stream
        if stream is not None and stream.under_way and staged.size - stream.frontier > max(BACKLOG, 2 * self.part_size):
            return self._wait(staged, start, end)
        return None

    async def _wait(self, staged: Staged, start: int, end: int) -> None:
        while True:
            if start < staged.sending_end:
                if staged.thawed is None:
                    staged.thawed = asyncio.Event()
                await staged.thawed.wait()
                continue
            if not self._make_room(staged, start, end):
                tasks = [task for stream in self._streams for task in stream.tasks()]
            else:
                stream = staged.stream
                ahead = staged.size - stream.frontier if stream is not None else 0
                tasks = stream.tasks() if stream is not None and ahead > max(BACKLOG, 2 * self.part_size) else []
            if not tasks:
                return
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)

    def _make_room(self, writer: Staged, start: int, end: int) -> bool:
        """Give up local copies of parts that the store has until *writer* can write [start, end); return whether it can.

        Never the first part: who writes in order comes back to it for a header.
        """
        size = writer.grows_by(start, end)
        for stream, staged in list(self._streams.items()):
            if staged.sending is not None:
                continue
            for step, _ in list(stream.done.values()):
                if self.scratch.fits(size):
                    return True
                wanted = staged is writer and step.start < end and start < step.end
                if isinstance(step, PutPart) and step.number > 1 and not wanted and staged.local.covers(step.start, step.end):
                    staged.drop(step.start, step.end)
        return self.scratch.fits(size)

    # The end of an upload.

    def _forget(self, staged: Staged) -> None:
        """Give up a Staged's upload, if it has one, in the background."""
        if staged.gone:
            raise OSError(errno.EBUSY, "parts of this file are in an upload only: it must be published first")
        stream, staged.stream = staged.stream, None
        if stream is not None:
            self._spawn(self._abort(stream))

    async def _abort(self, stream: Stream) -> None:
        """Stop a stream's parts and abort its upload; if that fails, close tries again."""
        self._streams.pop(stream, None)
        tasks = stream.tasks()
        for task in tasks:
            task.cancel()
        # A creation is waited for: cancelled, it might leave an upload that nobody knows.
        waited = [*tasks, *([stream.creating] if stream.creating is not None else [])]
        if waited:
            await asyncio.wait(waited)
        upload, stream.upload = stream.upload, None
        if upload is None:
            return
        try:
            await self.store.abort(upload)
        except OSError as exc:
            log.info("an unfinished upload of %r could not be aborted: %s", stream.key, exc.strerror)
            self._unaborted.add(upload)
        else:
            self._ended(upload)

    def _completed(self, staged: Staged, stream: Stream) -> None:
        """The upload became an object."""
        self._streams.pop(stream, None)
        if staged.stream is stream:
            staged.stream = None
        if stream.upload is not None:
            self._ended(stream.upload)

    async def leftovers(self, uploads: list[Upload]) -> int:
        """Abort the uploads that dead servers left (those a journal recorded, nobody else's); return how many were."""
        results = await asyncio.gather(*(self._slotted(self.store.abort(upload)) for upload in uploads), return_exceptions=True)
        for upload, result in zip(uploads, results, strict=True):
            if result is None:
                self._ended(upload)
            else:
                log.warning("an unfinished upload of %r stays in the store: %s", upload.key, result)
        return sum(result is None for result in results)

    async def _slotted(self, work: Coroutine[Any, Any, None]) -> None:
        async with self._slots:
            await work

    async def close(self) -> None:
        """Stop everything in the background, and abort the uploads it began. No publish may be under way."""
        self._closed = True
        for stream, staged in list(self._streams.items()):
            staged.stream = None
            self._spawn(self._abort(stream))
        while self._tasks:
            await asyncio.wait(self._tasks)
        await self.leftovers(list(self._unaborted))
        self._unaborted.clear()

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run *work* beside the requests; close waits for it."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (exc := task.exception()) is not None and not isinstance(exc, OSError):
            log.error("sending in the background failed", exc_info=exc)


def labelled(attributes: Attributes, txn: str) -> Attributes:
    """Return *attributes* with a transaction id."""
    return attributes._replace(metadata={**attributes.metadata, TXN: txn})


async def stopped(tasks: list[asyncio.Task[None]]) -> None:
    """Cancel tasks that have not ended, and wait until they have."""
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # Retrieved: the first error is the one that counts.


__all__ = ["BACKLOG", "PARALLEL", "TXN", "Feeder", "PublishOptions", "labelled", "stopped"]
