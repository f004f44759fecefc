"""Local changes of files: a sparse file on disk for each, and what of it counts.

What a writer writes goes to the staging file at its own offset. What was never written still shows the object that was
there before (the base), or zeros behind its end. Nothing is downloaded until a publish needs it.
"""

from __future__ import annotations

import asyncio
import errno
import os
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from ..remote.store import MAX_OBJECT, MIN_PART, Object
from .extents import Extents
from .sparse import link, punch
from .streams import Attempt, Snapshot, Stream

if TYPE_CHECKING:
    from .scratch import Scratch


class Local(NamedTuple):
    """Bytes [start, end) of the file are in the staging file, at the same offsets."""

    start: int
    end: int


class Base(NamedTuple):
    """Bytes [start, end) of the file are those of Staged.base, at the same offsets."""

    start: int
    end: int


class Zero(NamedTuple):
    """Bytes [start, end) of the file are zero."""

    start: int
    end: int


class Staged:
    """The local changes of one file, shared by all its handles. Nothing here waits.

    The filesystem: before write, truncate and zero, `wait = publisher.room(staged, start, end)`, and await it when it is not
    None. Calls on bytes that a publish is just sending raise EBUSY otherwise.

    INVARIANT: bytes of the file that are neither local nor the base's (below base_limit) are zero, and so are they in the
    staging file, which reaches to the size wherever the base does not.
    """

    __slots__ = (
        "appended",
        "attempts",
        "attributes_late",
        "base",
        "base_limit",
        "changed",
        "conflicted",
        "copy",
        "diverted",
        "fd",
        "generation",
        "gone",
        "id",
        "kept",
        "local",
        "lock",
        "merged",
        "named",
        "path",
        "published_generation",
        "replaces",
        "restored",
        "reusable",
        "scratch",
        "sending",
        "sending_end",
        "size",
        "stream",
        "thawed",
    )

    def __init__(self, scratch: Scratch, fd: int, path: str, base: Object | None) -> None:
        """Scratch.stage and Scratch.adopt make these."""
        self.scratch = scratch
        self.fd = fd
        """The staging file, for os.pread of Local ranges and for passthrough; -1 when closed."""
        self.path = path
        """Its name, where it must have one from the start; removed by close."""
        self.base: Object | None = base
        """The object that shows where nothing local covers it. Set by publish; None: the file is new."""
        self.replaces: Object | None = base
        """What the key must hold when this is published (None: nothing): the base, unless retarget() said otherwise."""
        self.base_limit = base.size if base is not None else 0
        """How many of base's first bytes still show."""
        self.size = self.base_limit
        """The file's size now."""
        self.local = Extents()
        """Bytes whose truth is in the staging file."""
        self.changed = Extents()
        """Bytes that differ from base; part of local and gone."""
        self.gone = Extents()
        """Bytes that only the parts of an upload under way hold, because the staging area was too small for them."""
        self.generation = 0
        """Counts changes of any kind."""
        self.published_generation = -1 if base is None else 0
        self.attributes_late = False
        """The object has not the attributes yet that it was published with."""
        self.appended = True
        """Whether every write was at the end, by O_APPEND."""
        self.diverted = ""
        """The key that on_conflict=rename published this under; "" otherwise. Later publishes go there."""
        self.conflicted = False
        """The last publish met another writer's version, and on_conflict knew no way: trying again makes no sense."""
        self.kept = ""
        """Path of the copy that a conflict left in conflicts/; "" when there is none."""
        self.copy = ""
        """The same, also while it is not known to be on disk."""
        self.id = uuid.uuid4().hex
        """What the transaction ids begin with, until one of them succeeded."""
        self.attempts: dict[str, Attempt] = {}
        """Publishes whose outcome is not known, by transaction id."""
        self.merged = False
        """The bytes below changed are another writer's (on_conflict=append-merge)."""
        self.restored = False
        """From a journal: any transaction id that begins with ours may be an attempt."""
        self.named = False
        """The staging file has or had a name: once it is removed, it cannot be given another (linkat(2) of O_TMPFILE)."""
        self.reusable = False
        """Close may keep the staging file for the next: nobody else has it."""
        self.stream: Stream | None = None
        """The multipart upload under way."""
        self.sending: Snapshot | None = None
        self.sending_end = 0
        """Bytes [0, sending_end) must not change: a publish reads them."""
        self.thawed: asyncio.Event | None = None
        """Set when that is over, if anybody waits."""
        self.lock = asyncio.Lock()  # One publish at a time.

    @property
    def dirty(self) -> bool:
        """Whether there is anything to publish: bytes, size or attributes; a new file is."""
        return self.generation != self.published_generation or self.attributes_late

    @property
    def data_dirty(self) -> bool:
        """Whether bytes or the size differ from the base's."""
        return self.base is None or bool(self.changed) or self.size != self.base.size or self.base_limit != self.base.size

    @property
    def complete(self) -> bool:
        """Whether every byte of the file can be read from the staging file."""
        return not self.gone and self.local.covers(0, self.base_limit)

    def write(self, offset: int, data: bytes | memoryview, *, append: bool = False) -> int:
        """Write *data* and return how many bytes were taken: all, or fewer when the disk is full half-way.

        ENOSPC when staging_size or the disk is full and nothing was taken; EFBIG above MAX_OBJECT. *append* says that the
        writer used O_APPEND (on_conflict=append-merge asks).
        """
        length = len(data)
        end = offset + length
        if not length:
            return 0
        if end > MAX_OBJECT:
            raise OSError(errno.EFBIG, "S3's objects have at most 5 TiB")
        self._may_change(offset, end)
        if not self.scratch.fits(length) and not self.scratch.fits(self.grows_by(offset, end)):
            raise OSError(errno.ENOSPC, f"the staging area is full ({self.scratch.used_bytes} bytes)")
        done = self._pwrite(data, offset)
        if done:
            self.appended = self.appended and append
            self._note(offset, offset + done)
            self.size = max(self.size, offset + done)
        return done

    def truncate(self, size: int) -> None:
        """Set the size; what grows is zero."""
        if size > MAX_OBJECT:
            raise OSError(errno.EFBIG, "S3's objects have at most 5 TiB")
        if size == self.size:
            return
        self._may_change(min(size, self.size), max(size, self.size))
        os.ftruncate(self.fd, size)
        if size < self.size:
            self._forget(size, self.size)
            self.base_limit = min(self.base_limit, size)
            if self.sending is not None:
                self.sending.limit = min(self.sending.limit, size)
        self.appended = False
        self.size = size
        self.generation += 1

    def zero(self, start: int, end: int) -> None:
        """Make the bytes [start, end) within the size zero (FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE)."""
        end = min(end, self.size)
        if start >= end:
            return
        self._may_change(start, end)
        punch(self.fd, start, end)
        if os.fstat(self.fd).st_size < end:
            os.ftruncate(self.fd, end)
        self.appended = False
        self._note(start, end)

    def touch(self) -> None:
        """Say that attributes changed: the file is dirty, if only to write its metadata anew."""
        self.generation += 1

    def plan_read(self, offset: int, size: int) -> list[Local | Base | Zero]:
        """Return where the bytes [offset, offset + size) are, in order, cut at the file's size.

        EBUSY when they are sent already and the staging area had no room to keep them: they can be read when published.
        """
        stop = min(offset + size, self.size)
        self._may_read(offset, stop)
        found: list[Local | Base | Zero] = []

        def rest(low: int, high: int) -> None:
            if low < min(high, self.base_limit):
                found.append(Base(low, min(high, self.base_limit)))
            if max(low, self.base_limit) < high:
                found.append(Zero(max(low, self.base_limit), high))

        position = offset
        for low, high in self.local.within(offset, stop):
            rest(position, low)
            found.append(Local(low, high))
            position = high
        rest(position, stop)
        return found

    def read(self, offset: int, size: int) -> bytes | None:
        """Return the bytes when no byte of the base is among them; None otherwise (ask plan_read)."""
        stop = min(offset + size, self.size)
        if offset >= stop:
            return b""
        if not self.local.covers(offset, min(stop, self.base_limit)):
            return None
        self._may_read(offset, stop)
        return os.pread(self.fd, stop - offset, offset)

    def allocated(self, start: int, end: int) -> list[tuple[int, int]]:
        """Return the ranges within [start, end) that hold data, for SEEK_DATA and SEEK_HOLE: all but Zero."""
        shown = Extents([(0, self.base_limit), *self.local.within(start, end), *self.gone.within(start, end)])
        return shown.within(start, min(end, self.size))

    def retarget(self, replaces: Object | None) -> None:
        """Say what the key holds that this will be published under, after a rename: another object, or nothing."""
        self.replaces = replaces
        self.generation += 1

    def record(self) -> dict[str, Any]:
        """Return everything but the bytes as JSON's values, for a journal; Scratch.adopt takes it back."""
        return {
            "id": self.id,
            "base": list(self.base) if self.base is not None else None,
            "replaces": list(self.replaces) if self.replaces is not None else None,
            "base_limit": self.base_limit,
            "size": self.size,
            "generation": self.generation,
            "diverted": self.diverted,
            "appended": self.appended,
            "attempts": {txn: list(attempt) for txn, attempt in self.attempts.items()},
            "local": [list(pair) for pair in self.local],
            "changed": [list(pair) for pair in self.changed],
        }

    def save(self, path: str) -> None:
        """Give the staging file the additional name *path*, on the same filesystem; the data is not fsynced."""
        self.named = True
        link(self.fd, path)

    def replace_file(self, fd: int) -> None:
        """Go on with the file *fd*, which holds the same local bytes, and close it; self.fd stays the same number."""
        os.dup2(fd, self.fd, inheritable=False)
        os.close(fd)
        self._unname()
        self.cover()

    def close(self) -> None:
        """Give the space back and close fd. May be called twice.

        Publisher.discard does this and aborts what is under way; close alone is for files without an upload.
        """
        if self.fd >= 0:
            self.scratch.used_bytes -= self.local.total
            fd, self.fd = self.fd, -1
            self._unname()
            if self.reusable and not (self.named or self.kept or self.restored):
                self.scratch.give_back(fd)
            else:
                os.close(fd)

    # For the publisher.

    def grows_by(self, start: int, end: int) -> int:
        """Return how many bytes more are local when [start, end) is written."""
        return sum(high - low for low, high in self.local.gaps(start, end))

    def copyable(self) -> list[tuple[int, int]]:
        """Return which bytes may be copied from the base inside the store: none when it is too small (S3's rule)."""
        if self.base is None or self.base.size <= MIN_PART:
            return []
        return self.changed.gaps(0, self.base_limit)

    def missing(self, start: int, end: int) -> list[tuple[int, int]]:
        """Return which bytes must be fetched from the base before [start, end) can be sent from the staging file."""
        return self.local.gaps(start, min(end, self.base_limit))

    def fill(self, offset: int, data: bytes) -> None:
        """Take bytes of the base, where nothing local is. ENOSPC; the limit is not asked: a publish makes room."""
        for low, high in self.missing(offset, offset + len(data)):
            piece = memoryview(data)[low - offset : high - offset]
            while piece:
                done = os.pwrite(self.fd, piece, high - len(piece))
                piece = piece[done:]
            self.scratch.used_bytes += self.local.add(low, high)

    def cover(self) -> None:
        """Let the staging file reach to the size where the base does not."""
        if self.size > self.base_limit and os.fstat(self.fd).st_size < self.size:
            os.ftruncate(self.fd, self.size)

    def freeze(self, *, hold: bool) -> Snapshot:
        """Begin to send the file as it is. *hold*: its bytes must not change until thaw."""
        self.sending = Snapshot(self.generation, self.size, self.size)
        self.sending_end = self.size if hold else 0
        return self.sending

    def thaw(self) -> None:
        """End what freeze began."""
        self.sending, self.sending_end = None, 0
        if self.thawed is not None:
            self.thawed.set()
            self.thawed = None

    def published(self, item: Object, snapshot: Snapshot) -> None:
        """The store has *snapshot* as *item*; what changed since is what is left to publish."""
        self.base = self.replaces = item
        self.base_limit = min(item.size, snapshot.limit)
        self.changed = snapshot.since
        self.published_generation = snapshot.generation
        self.gone = Extents()
        self.appended = not self.changed
        self.restored = self.merged = self.conflicted = False
        self.attempts.clear()
        # Another writer may carry our metadata on: an id that succeeded once must never again look like a lost answer.
        self.id = uuid.uuid4().hex

    def own_all(self) -> None:
        """Show nothing of the base any more; every byte must be local."""
        self.changed = Extents([(0, self.size)])
        self.base_limit = 0
        self.scratch.used_bytes += self.local.add(0, self.size)

    def rebase(self, base: Object, fd: int, origin: int) -> None:
        """Stand behind another version: the bytes from *origin* on are in *fd*, from base.size on, and all else is base."""
        tail = self.size - origin
        self.scratch.used_bytes += tail - self.local.total
        self.base = self.replaces = base
        self.base_limit = base.size
        self.size = base.size + tail
        self.local = Extents([(base.size, self.size)])
        self.changed = self.local.copy()
        self.merged = True
        self.attempts.clear()  # Their conditions hold no more: what was not done never will be.
        self.generation += 1
        self.replace_file(fd)

    def continues(self, item: Object) -> None:
        """Take *item* for the base: an earlier state of this file, whose publish was not known to have been done."""
        self.base = self.replaces = item
        if self.appended and item.size <= self.size:
            self.base_limit = item.size
            self.changed.remove(0, item.size)

    def show(self, item: Object) -> None:
        """Forget all that is local: the object says everything."""
        self.scratch.used_bytes -= self.local.total
        self.local, self.changed = Extents(), Extents()
        self.base = self.replaces = item
        self.base_limit = self.size = item.size
        self.published_generation = self.generation
        self.attempts.clear()

    def drop(self, start: int, end: int) -> None:
        """Give the space of bytes back that a part of the upload under way holds."""
        punch(self.fd, start, end)
        self.scratch.used_bytes -= self.local.remove(start, end)
        self.gone.add(start, end)

    # Within.

    def _may_change(self, start: int, end: int) -> None:
        """Raise when the bytes [start, end) must stay as they are for now."""
        if start < self.sending_end:
            raise OSError(errno.EBUSY, "these bytes are being published: await Publisher.room first")
        if self.gone.overlaps(start, end):
            # They cannot be fetched back, and a part cannot be changed: only the whole part can be sent again.
            raise OSError(errno.ENOSPC, "the staging area had no room to keep these bytes, which are sent already")
        if self.fd < 0:
            raise OSError(errno.EBADF, "the staging file is closed")

    def _may_read(self, start: int, end: int) -> None:
        if self.gone.overlaps(start, end):
            raise OSError(errno.EBUSY, "these bytes are sent already, and the staging area had no room to keep them")

    def _pwrite(self, data: bytes | memoryview, offset: int) -> int:
        """Write; return how many bytes were taken, which is less than all only when the disk is full."""
        length = len(data)
        done = os.pwrite(self.fd, data, offset)
        with suppress(OSError):
            while done < length:
                done += os.pwrite(self.fd, memoryview(data)[done:], offset + done)
        return done

    def _note(self, start: int, end: int) -> None:
        """Bytes changed."""
        self.scratch.used_bytes += self.local.add(start, end)
        self.changed.add(start, end)
        if self.sending is not None:
            self.sending.since.add(start, end)
        if self.stream is not None:
            self.stream.touched(start, end)
        self.generation += 1

    def _forget(self, start: int, end: int) -> None:
        """Bytes were cut off."""
        self.scratch.used_bytes -= self.local.remove(start, end)
        self.changed.remove(start, end)
        if self.sending is not None:
            self.sending.since.remove(start, end)
        if self.stream is not None:
            self.stream.touched(start, end)

    def _unname(self) -> None:
        if self.path:
            with suppress(OSError):
                os.unlink(self.path)
            self.path = ""


__all__ = ["Base", "Local", "Staged", "Zero"]
