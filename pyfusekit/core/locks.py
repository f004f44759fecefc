"""File locks for filesystems that keep their own: POSIX, open-file-description (OFD) and flock locks, with waits.

Keep locks only to share them with other machines or programs; otherwise the kernel keeps them by itself, faster. A filesystem
that does inherits :class:`LockKeeper`, first among its bases:

    class Shared(LockKeeper, Filesystem): ...

What the kernel sends, and when, is odd (fs/fuse/file.c, fs/locks.c):

- POSIX and OFD locks both arrive as plain SETLK and SETLKW, owner being the process or the open file. They stand in each
  other's way. flock(2) locks carry LK_FLOCK and live in a world of their own.
- close(2) sends no unlock. FLUSH names the owner whose POSIX locks on the inode end. For an OFD lock there is only the RELEASE
  of its open file: so each lock remembers the handle it was taken through, and goes with it.

A lock that is free is granted at once, as the kernel does, even past waiters that it would disturb no further. Waiters are
served first come, first served: the one whose way becomes free has the lock before anybody else can ask.
"""

from __future__ import annotations

import errno
from bisect import bisect_left
from collections.abc import Callable, Coroutine, Iterable, Iterator
from fcntl import F_RDLCK, F_UNLCK, F_WRLCK
from functools import cached_property
from typing import TYPE_CHECKING, Any

from .abi import LK_FLOCK
from .filesystem import Filesystem
from .types import Lock, Request, Result

if TYPE_CHECKING:
    import asyncio

END = (1 << 63) - 1
"""The last byte of a lock that reaches to the end of the file, however long that grows."""


def _deadlock() -> OSError:
    return OSError(errno.EDEADLK, "the locks in the way wait for this one's owner")


class _Held:
    """A range that an owner holds."""

    __slots__ = ("end", "handle", "pid", "start", "type")

    def __init__(self, type: int, start: int, end: int, pid: int, handle: Any) -> None:
        self.type = type
        self.start = start
        self.end = end
        self.pid = pid
        self.handle = handle
        """The open file it was taken through; compared by identity."""


def _end_of(held: _Held) -> int:
    return held.end


class _Waiter:
    """A lock that somebody waits for."""

    __slots__ = ("file", "future", "handle", "lock", "owner")

    def __init__(self, file: _FileLocks, owner: int, lock: Lock, handle: Any, future: asyncio.Future[None]) -> None:
        self.file = file
        self.owner = owner
        self.lock = lock
        self.handle = handle
        self.future = future

    def fail(self, error: OSError) -> None:
        """End the wait with *error*, unless it has ended."""
        if not self.future.done():
            self.file.waiters.remove(self)
            self.future.set_exception(error)


class _FileLocks:
    """The locks of one kind on one inode, and who waits for one."""

    __slots__ = ("owners", "waiters")

    def __init__(self) -> None:
        self.owners: dict[int, list[_Held]] = {}
        """INVARIANT: each list is not empty, sorted, and its ranges do not touch unless type or handle differ."""
        self.waiters: list[_Waiter] = []
        """In the order they came. INVARIANT: something stands in the way of each, or it was cancelled and is about to go."""

    def conflicts(self, owner: int, lock: Lock) -> Iterator[tuple[int, _Held]]:
        """Go through what stands in the way of *lock*, with its owners."""
        for other, ranges in self.owners.items():
            if other == owner:
                continue
            for index in range(bisect_left(ranges, lock.start, key=_end_of), len(ranges)):
                held = ranges[index]
                if held.start > lock.end:
                    break
                if held.type == F_WRLCK or lock.type == F_WRLCK:
                    yield other, held

    def is_free(self, owner: int, lock: Lock) -> bool:
        """Say whether nothing stands in the way of *lock*."""
        return next(self.conflicts(owner, lock), None) is None

    def first_free(self) -> _Waiter | None:
        """Return the first waiter that has nothing in its way any more."""
        for waiter in self.waiters:
            # One that was cancelled stays here until its task runs.
            if not waiter.future.done() and self.is_free(waiter.owner, waiter.lock):
                return waiter
        return None

    def put(self, owner: int, lock: Lock, handle: Any) -> None:
        """Let *owner* hold lock.type on the range, F_UNLCK being nothing, whatever it held there before."""
        ranges = self.owners.get(owner, [])
        start, end = lock.start, lock.end
        # From the first range that overlaps or touches to the last.
        first = last = bisect_left(ranges, start - 1, key=_end_of)
        before: list[_Held] = []
        after: list[_Held] = []
        while last < len(ranges) and ranges[last].start <= end + 1:
            held = ranges[last]
            last += 1
            if lock.type == held.type and held.handle is handle:
                start, end = min(start, held.start), max(end, held.end)
                continue
            if held.start < lock.start:
                before.append(_Held(held.type, held.start, min(held.end, lock.start - 1), held.pid, held.handle))
            if held.end > lock.end:
                after.append(_Held(held.type, max(held.start, lock.end + 1), held.end, held.pid, held.handle))
        here = [] if lock.type == F_UNLCK else [_Held(lock.type, start, end, lock.pid, handle)]
        ranges[first:last] = before + here + after
        if ranges:
            self.owners[owner] = ranges
        else:
            self.owners.pop(owner, None)

    def drop_handle(self, handle: Any) -> bool:
        """Drop every lock taken through *handle*; say whether there was one."""
        dropped = False
        for owner, ranges in list(self.owners.items()):
            kept = [held for held in ranges if held.handle is not handle]
            if len(kept) < len(ranges):
                dropped = True
                if kept:
                    self.owners[owner] = kept
                else:
                    del self.owners[owner]
        return dropped


class LockTable:
    """The locks of a filesystem's files. One event loop; only :meth:`wait` waits."""

    def __init__(self) -> None:
        self._posix: dict[int, _FileLocks] = {}
        self._flock: dict[int, _FileLocks] = {}
        self._waiting: dict[int, list[_Waiter]] = {}
        """Who waits for a POSIX or OFD lock, by owner."""

    def __len__(self) -> int:
        """Return how many ranges are held."""
        return sum(len(ranges) for file in self._files() for ranges in file.owners.values())

    def held(self, ino: int, *, flock: bool = False) -> list[tuple[int, Lock]]:
        """Return the locks held on *ino* with their owners, by where they start."""
        file = (self._flock if flock else self._posix).get(ino)
        if file is None:
            return []
        every = [(owner, Lock(h.type, h.start, h.end, h.pid)) for owner, ranges in file.owners.items() for h in ranges]
        return sorted(every, key=lambda pair: (pair[1].start, pair[0]))

    def waiting(self, ino: int, *, flock: bool = False) -> int:
        """Return how many wait for a lock on *ino*."""
        file = (self._flock if flock else self._posix).get(ino)
        return 0 if file is None else len(file.waiters)

    def test(self, ino: int, owner: int, lock: Lock) -> Lock | None:
        """Return the first lock, by its start, that stands in the way of a POSIX or OFD *lock*, or None.

        For F_UNLCK, return what *owner* itself holds there (F_OFD_GETLK, fs/locks.c posix_test_locks_conflict).
        """
        self._check(lock, flock=False)
        file = self._posix.get(ino)
        if file is None:
            return None
        if lock.type == F_UNLCK:
            candidates = [held for held in file.owners.get(owner, ()) if held.start <= lock.end and held.end >= lock.start]
        else:
            candidates = [held for _, held in file.conflicts(owner, lock)]
        found = min(candidates, key=lambda held: held.start, default=None)
        return None if found is None else Lock(found.type, found.start, found.end, found.pid)

    def set(self, ino: int, owner: int, lock: Lock, handle: Any, *, flock: bool = False) -> bool:
        """Take *lock*, or give it back when its type is F_UNLCK; return False when another stands in its way.

        A flock conversion is not atomic, as in fs/locks.c: the old lock is gone, and may go to another, even if this fails.
        """
        self._check(lock, flock)
        files = self._flock if flock else self._posix
        file = files.get(ino)
        if file is None:
            if lock.type == F_UNLCK:
                return True
            file = files[ino] = _FileLocks()
        if flock:
            lock = Lock(lock.type, 0, END, lock.pid)
            mine = file.owners.get(owner)
            if mine is not None:
                if mine[0].type == lock.type:
                    return True
                del file.owners[owner]
                self._serve(file, flock)
        if lock.type != F_UNLCK and not file.is_free(owner, lock):
            return False
        file.put(owner, lock, handle)
        if lock.type != F_WRLCK:  # something may have been given back, or become shared
            self._serve(file, flock)
        self._tidy(files, ino, file)
        return True

    async def wait(self, ino: int, owner: int, lock: Lock, handle: Any, *, flock: bool = False) -> None:
        """Take *lock* as soon as nothing stands in its way.

        OSError(EDEADLK) when those in the way wait, through however many others, for *owner*. NOTE: the kernel leaves OFD locks
        out of this search, but on the wire they cannot be told from POSIX locks. Being cancelled leaves no trace, unless the
        lock was granted already: then it is held, and this returns. The handle's release while waiting is EBADF.
        """
        if self.set(ino, owner, lock, handle, flock=flock):
            return
        import asyncio

        files = self._flock if flock else self._posix
        file = files[ino]
        if flock:
            lock = Lock(lock.type, 0, END, lock.pid)
        elif self._would_deadlock(file, owner, lock):
            raise _deadlock()
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiter = _Waiter(file, owner, lock, handle, future)
        file.waiters.append(waiter)
        if not flock:
            self._waiting.setdefault(owner, []).append(waiter)
        try:
            await future
        except asyncio.CancelledError:
            # What was done is answered as done: undoing it could not give back what the lock replaced.
            if not future.done() or future.cancelled():
                raise
            future.result()
        finally:
            if waiter in file.waiters:
                file.waiters.remove(waiter)
            if not flock:
                self._waiting[owner].remove(waiter)
                if not self._waiting[owner]:
                    del self._waiting[owner]
            self._tidy(files, ino, file)

    def flush(self, ino: int, owner: int) -> None:
        """Drop the POSIX locks of *owner* on *ino*: it closed a descriptor of it.

        Its waits go on: another thread of it waits, through another descriptor maybe; if it was this one, the kernel itself
        gives the lock back when it comes (fs/locks.c fcntl_setlk).
        """
        file = self._posix.get(ino)
        if file is not None and file.owners.pop(owner, None) is not None:
            self._serve(file, flock=False)
            self._tidy(self._posix, ino, file)

    def release(self, ino: int, handle: Any) -> None:
        """Drop every lock on *ino* that was taken through *handle*: POSIX, OFD, flock; end its waits with EBADF."""
        for files in (self._posix, self._flock):
            file = files.get(ino)
            if file is None:
                continue
            for waiter in [waiter for waiter in file.waiters if waiter.handle is handle]:
                waiter.fail(OSError(errno.EBADF, "the file was closed while waiting for a lock"))
            if file.drop_handle(handle):
                self._serve(file, flock=files is self._flock)
            self._tidy(files, ino, file)

    def _serve(self, file: _FileLocks, flock: bool) -> None:
        """Grant what has become free, in the order it was asked for. To be called after every change that frees something."""
        granted = False
        while waiter := file.first_free():
            file.waiters.remove(waiter)
            file.put(waiter.owner, waiter.lock, waiter.handle)
            waiter.future.set_result(None)
            granted = True
        if granted and not flock:
            # The rest now waits for others than before. An owner with several threads may have closed a circle with that.
            for waiter in list(file.waiters):
                if self._would_deadlock(file, waiter.owner, waiter.lock):
                    waiter.fail(_deadlock())

    def _files(self) -> Iterable[_FileLocks]:
        yield from self._posix.values()
        yield from self._flock.values()

    @staticmethod
    def _check(lock: Lock, flock: bool) -> None:
        if lock.type not in (F_RDLCK, F_WRLCK, F_UNLCK):
            raise OSError(errno.EINVAL, f"{lock.type} is not a type of lock")
        if not flock and not 0 <= lock.start <= lock.end <= END:
            raise OSError(errno.EINVAL, f"{lock.start} to {lock.end} is not a range")

    @staticmethod
    def _tidy(files: dict[int, _FileLocks], ino: int, file: _FileLocks) -> None:
        if not file.owners and not file.waiters and files.get(ino) is file:
            del files[ino]

    def _would_deadlock(self, file: _FileLocks, owner: int, lock: Lock) -> bool:
        """Follow who waits for whom, from those in the way of *lock*; say whether that leads back to *owner*."""
        pending = {other for other, _ in file.conflicts(owner, lock)}
        seen: set[int] = set()
        while pending:
            other = pending.pop()
            if other == owner:
                return True
            seen.add(other)
            for waiter in self._waiting.get(other, ()):
                if not waiter.future.done():
                    pending.update(next_ for next_, _ in waiter.file.conflicts(other, waiter.lock) if next_ not in seen)
        return False


class LockKeeper(Filesystem):
    """The lock methods of :class:`Filesystem`, done; to be the first base of a filesystem that keeps its own locks.

    flush and release of the other bases run first, so that what was written under a lock is there when the next one gets it; a
    filesystem that overrides them in its own class calls ``super()``. ``open`` and ``create`` must return a handle of its own
    for every open file, because locks go with it; without one, taking a lock is ENOLCK.
    """

    keep_own_locks: bool = True

    @cached_property
    def locks(self) -> LockTable:
        """The locks of this filesystem's files."""
        return LockTable()

    def getlk(self, request: Request, ino: int, handle: Any, owner: int, lock: Lock) -> Result[Lock | None]:
        """Return what stands in the way of *lock*."""
        return self.locks.test(ino, owner, lock)

    def setlk(self, request: Request, ino: int, handle: Any, owner: int, lock: Lock) -> Result[None]:
        """Take or give back a lock; EAGAIN."""
        self._need_handle(handle)
        if not self.locks.set(ino, owner, lock, handle, flock=bool(request.flags & LK_FLOCK)):
            raise OSError(errno.EAGAIN, "another lock stands in the way")
        return None

    def setlkw(self, request: Request, ino: int, handle: Any, owner: int, lock: Lock) -> Result[None]:
        """Take a lock, waiting for it; EDEADLK."""
        self._need_handle(handle)
        flock = bool(request.flags & LK_FLOCK)
        if self.locks.set(ino, owner, lock, handle, flock=flock):
            return None
        return self.locks.wait(ino, owner, lock, handle, flock=flock)

    def flush(self, request: Request, ino: int, handle: Any, lock_owner: int) -> Result[None]:
        """Flush, then drop the owner's POSIX locks."""
        below = super().flush
        if getattr(below, "__func__", None) is Filesystem.flush:
            self.locks.flush(ino, lock_owner)
            return None
        return _run_then(lambda: below(request, ino, handle, lock_owner), lambda: self.locks.flush(ino, lock_owner))

    def release(self, request: Request, ino: int, handle: Any) -> Result[None]:
        """Release, then drop every lock that was taken through *handle*."""
        below = super().release
        return _run_then(lambda: below(request, ino, handle), lambda: self.locks.release(ino, handle))

    @staticmethod
    def _need_handle(handle: Any) -> None:
        if handle is None:
            raise OSError(errno.ENOLCK, "locks need a handle for every open file, but open returned none")


def _run_then(call: Callable[[], Result[None]], then: Callable[[], None]) -> Result[None]:
    """Run *call*, and *then* when it has ended, however it did."""
    try:
        result = call()
    except BaseException:
        then()
        raise
    if isinstance(result, Coroutine):
        return _await_then(result, then)
    then()
    return None


async def _await_then(running: Coroutine[Any, Any, None], then: Callable[[], None]) -> None:
    try:
        await running
    finally:
        then()


__all__ = ["END", "LockKeeper", "LockTable"]
