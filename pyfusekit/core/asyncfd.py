"""A non-blocking descriptor on the event loop, whose messages come one a read."""

from __future__ import annotations

import asyncio
import errno
import io
import os
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

SCHEDULED = 1
"""Bit of what *receive* says: a task waits for its turn, so the loop must have it now."""
KEPT = 2
"""Bit of what *receive* says: the buffer is in use until :meth:`AsyncFd.recycle` is given it back."""

SPIN = 50
"""How often an idle descriptor is asked again before the loop goes to sleep; docs/decisions.md has the measurement."""
BUDGET = 64
"""Messages dealt with before other tasks on the loop have their turn; one that was waited for counts as two."""
BUDGET_WITH_TASKS = 32
"""Messages dealt with after one made a task, before the tasks have their turn."""
POOL = 8
"""Buffers kept for later; more are made when more are in use."""


class AsyncFd:
    """Owns a descriptor: reads messages into a kept buffer, writes, closes.

    After a message the descriptor is read again until it says EAGAIN, and then asked a few times more: the client that was
    just answered is likely to come back at once, and sleeping and waking would cost more than all the rest.

    INVARIANT: ``fd`` is -1 when closed. Numbers of descriptors are used again at once, so a stale one is worse than none.
    """

    def __init__(self, fd: int, buffer_bytes: int, *, spin: int = SPIN, budget: int = BUDGET) -> None:
        os.set_blocking(fd, False)
        self.fd = fd
        self.receive: Callable[[Any, int], int] = lambda buffer, n: 0
        """Called with each message as ``receive(buffer, n)``; returns bits of SCHEDULED and KEPT. Set before start."""
        self.closed: asyncio.Future[OSError | None] = asyncio.get_running_loop().create_future()
        """Done when reading has ended: with the error that ended it, or None after close or end of file."""
        self._loop = asyncio.get_running_loop()
        self._buffer_bytes = buffer_bytes
        self._buffer = bytearray(buffer_bytes)
        self._pool: list[bytearray] = []
        self._tries = range(spin)
        self._budget = budget
        self._unsent: deque[Sequence[Any]] = deque()
        # It reads into a buffer as os.readv does, but says EAGAIN by None: an exception costs more than the call.
        self._read: Callable[[bytearray], int | None] = io.FileIO(fd, "rb", closefd=False).readinto
        self._reading = False

    def start(self) -> None:
        """Begin to read."""
        self._reading = True
        self._loop.add_reader(self.fd, self._ready)

    def _ready(self) -> None:
        if not self._reading:
            return
        read = self._read
        receive = self.receive
        buffer = self._buffer
        left = self._budget
        tasks_wait = False
        while left > 0:
            try:
                n = read(buffer)
                if n is None:
                    # Not while tasks want their turn: what they answer is what the clients are waiting for.
                    if tasks_wait:
                        return
                    for _ in self._tries:
                        n = read(buffer)
                        if n is not None:
                            break
                    else:
                        return
                    left -= 1
            except OSError as error:
                if error.errno == errno.ENOENT:
                    continue  # the request was aborted while it was read
                self._end(error)
                return
            if not n:
                self._end(None)
                return
            said = receive(buffer, n)
            left -= 1
            if said:
                if said & KEPT:
                    buffer = self._buffer = self._pool.pop() if self._pool else bytearray(self._buffer_bytes)
                if not tasks_wait:
                    tasks_wait = True
                    left = min(left, BUDGET_WITH_TASKS)
            if not self._reading:
                return

    def recycle(self, buffer: bytearray) -> None:
        """Take back a buffer that receive had kept."""
        if len(self._pool) < POOL:
            self._pool.append(buffer)

    def write(self, message: bytes) -> None:
        """Send one message; OSError as write(2). A socket that is full takes it later."""
        if self._unsent:
            self._unsent.append((message,))
            return
        try:
            os.write(self.fd, message)
        except BlockingIOError:
            self._send_later((message,))

    def writev(self, parts: Sequence[Any]) -> None:
        """Send one message in parts; OSError as writev(2). A socket that is full takes it later."""
        if self._unsent:
            self._unsent.append([bytes(part) for part in parts])
            return
        try:
            os.writev(self.fd, parts)
        except BlockingIOError:
            self._send_later([bytes(part) for part in parts])

    def _send_later(self, parts: Sequence[Any]) -> None:
        self._unsent.append(parts)
        self._loop.add_writer(self.fd, self._send_unsent)

    def _send_unsent(self) -> None:
        while self._unsent:
            try:
                os.writev(self.fd, self._unsent[0])
            except BlockingIOError:
                return
            except OSError as error:
                self._unsent.clear()
                self._loop.remove_writer(self.fd)
                self._end(error)
                return
            self._unsent.popleft()
        self._loop.remove_writer(self.fd)

    def _end(self, error: OSError | None) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self.fd)
        if not self.closed.done():
            self.closed.set_result(error)

    def stop(self) -> None:
        """Read no more, so that what is running can end; answers still go out. Again is nothing."""
        self._end(None)

    def close(self) -> None:
        """Stop reading and close the descriptor; again is nothing."""
        if self.fd < 0:
            return
        self._end(None)
        if self._unsent:
            self._unsent.clear()
            self._loop.remove_writer(self.fd)
        fd, self.fd = self.fd, -1
        os.close(fd)
