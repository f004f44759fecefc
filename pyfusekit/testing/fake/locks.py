"""The locks the kernel keeps by itself when the server does not ask for them (fs/locks.c)."""

from __future__ import annotations

import errno
import fcntl
import threading
from dataclasses import dataclass

from .node import Process

TO_END = (1 << 63) - 1


@dataclass
class _Held:
    owner: int
    type: int
    start: int
    end: int
    pid: int


class LocalLocks:
    """The locks of one mount; one table for byte ranges (POSIX and OFD), one for flock."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._held: dict[tuple[int, bool], list[_Held]] = {}
        self._blocked: dict[int, int] = {}
        """owner -> the owner it waits for."""
        self._interrupted: set[int] = set()

    def _conflict(self, key: tuple[int, bool], wanted: _Held) -> _Held | None:
        for held in self._held.get(key, ()):
            if (
                held.owner != wanted.owner
                and held.start <= wanted.end
                and wanted.start <= held.end
                and fcntl.F_WRLCK in (held.type, wanted.type)
            ):
                return held
        return None

    def test(self, nodeid: int, owner: int, type: int, start: int, end: int) -> tuple[int, int, int, int] | None:
        """Return (type, start, end, pid) of a lock in the way."""
        with self._changed:
            held = self._conflict((nodeid, False), _Held(owner, type, start, end, 0))
            return (held.type, held.start, held.end, held.pid) if held is not None else None

    def set(
        self, process: Process, nodeid: int, owner: int, type: int, start: int, end: int, *, flock: bool, wait: bool, pid: int
    ) -> None:
        """Take, change or give back a lock; EAGAIN, EINTR, EDEADLK."""
        key = (nodeid, flock)
        wanted = _Held(owner, type, start, end, pid)
        with self._changed:
            self._interrupted.discard(process.owner)
            if flock and type != fcntl.F_UNLCK:
                # A change of kind gives the old lock back first (fs/locks.c flock_lock_inode).
                mine = [held for held in self._held.get(key, ()) if held.owner == owner]
                if mine and mine[0].type != type:
                    self._put(key, _Held(owner, fcntl.F_UNLCK, 0, TO_END, pid))
            while type != fcntl.F_UNLCK and (held := self._conflict(key, wanted)) is not None:
                if not wait:
                    raise OSError(errno.EAGAIN, "locked")
                self._sleep(process, owner, held.owner, deadlocks=not flock and owner == process.owner)
            self._put(key, wanted)

    def _sleep(self, process: Process, owner: int, blocker: int, *, deadlocks: bool) -> None:
        if deadlocks:
            at: int | None = blocker
            while at is not None:
                if at == owner:
                    raise OSError(errno.EDEADLK, "each waits for the other")
                at = self._blocked.get(at)
            self._blocked[owner] = blocker
        process.waiting = self
        try:
            self._changed.wait(0.5)
        finally:
            process.waiting = None
            self._blocked.pop(owner, None)
        if process.owner in self._interrupted:
            self._interrupted.discard(process.owner)
            raise OSError(errno.EINTR, "interrupted")

    def _put(self, key: tuple[int, bool], new: _Held) -> None:
        table: list[_Held] = []
        for held in self._held.get(key, ()):
            if held.owner != new.owner or held.end < new.start or held.start > new.end:
                table.append(held)
                continue
            if held.start < new.start:
                table.append(_Held(held.owner, held.type, held.start, new.start - 1, held.pid))
            if held.end > new.end:
                table.append(_Held(held.owner, held.type, new.end + 1, held.end, held.pid))
        if new.type != fcntl.F_UNLCK:
            table.append(new)
        self._held[key] = table
        if not table:
            del self._held[key]
        self._changed.notify_all()

    def drop(self, nodeid: int, owner: int, *, flock: bool) -> None:
        """Give back all locks of *owner* on a file: it was closed."""
        with self._changed:
            if (nodeid, flock) in self._held:
                self._put((nodeid, flock), _Held(owner, fcntl.F_UNLCK, 0, TO_END, 0))

    def interrupt(self, process: Process) -> None:
        """A signal came to a process that waits."""
        with self._changed:
            self._interrupted.add(process.owner)
            self._changed.notify_all()


__all__ = ["TO_END", "LocalLocks"]
