"""How requests to web servers are made: so many to a host at a time, under a deadline, again or later where that may help."""

from __future__ import annotations

import asyncio
import contextvars
import errno
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from pyfusekit.cache import Pacer

from ..values import HttpError
from .urls import Origin
from .words import shown

log = logging.getLogger("pyfusekit.httpfs")

T = TypeVar("T")

ATTEMPTS = 5
"""How often a request is sent, when the failure is one that may pass."""
SECONDS_PER_BYTE = 8.0 / (1 << 20)
"""What a byte adds to a request's deadline: 128 KiB/s is the slowest line that is waited for."""
GATE_MOST = 300.0
"""Seconds for which a Retry-After is believed without asking again: one that is a mistake must not last for years."""


class Deadline:
    """The time an operation has left, all its attempts together. It does not run while others are waited for."""

    def __init__(self, seconds: float, timeout: asyncio.Timeout | None = None) -> None:
        self._timeout = timeout
        self._end = time.monotonic() + seconds
        self.over = False
        """The operation has ended; what it started may live on."""
        self.last: HttpError | None = None
        """What the newest attempt failed with."""

    def left(self) -> float:
        """Return the seconds that remain."""
        return self._end - time.monotonic()

    def stop(self) -> float:
        """Stop the clock; return when that was, for resume()."""
        if self._timeout is not None and not self.over and not self._timeout.expired():
            self._timeout.reschedule(None)
        return time.monotonic()

    def resume(self, stopped: float) -> None:
        """Let the clock go on."""
        self._end += time.monotonic() - stopped
        if self._timeout is not None and not self.over and not self._timeout.expired() and self._end != float("inf"):
            self._timeout.reschedule(asyncio.get_running_loop().time() + self.left())


_deadline: contextvars.ContextVar[Deadline | None] = contextvars.ContextVar("deadline", default=None)


def current() -> Deadline | None:
    """Return the deadline of the operation that runs here."""
    deadline = _deadline.get()
    return None if deadline is None or deadline.over else deadline


class Host:
    """The requests of everybody to one host and port.

    INVARIANT: no more than *limit* are under way, first come, first served.
    """

    def __init__(self, limit: int) -> None:
        self.pacer = Pacer()
        self.closed_until = 0.0
        """When it may be asked again (time.monotonic): it said Retry-After."""
        self.because = 0
        """The status it said that with."""
        self.limit = max(1, limit)
        self._slots = asyncio.Semaphore(self.limit)
        self._waiting: dict[asyncio.Timeout, float] = {}
        """Who waits for a slot, and for how many seconds without anybody giving one back."""

    def busy(self, status: int, seconds: float | None) -> None:
        """Note that it is asked too much, and for how many *seconds* it wants to be left alone."""
        self.pacer.slow()
        if seconds:
            until = time.monotonic() + min(seconds, GATE_MOST)
            if until > self.closed_until:
                self.closed_until, self.because = until, status

    @asynccontextmanager
    async def slot(self, what: str, url: str, deadline: Deadline) -> AsyncIterator[None]:
        """Wait for a turn and hold it. EBUSY when that is not before the deadline's end."""
        await self._take(what, url, deadline)
        try:
            while (wait := self.closed_until - time.monotonic()) > 0:
                check_wait(what, url, wait, deadline, self.because)
                # Others may be told to wait longer meanwhile. What waited is spread a little.
                await asyncio.sleep(wait + random.uniform(0.0, 0.02))
            if self.pacer.interval:
                await asyncio.sleep(self.pacer.delay())
            yield
        finally:
            self._slots.release()
            now = asyncio.get_running_loop().time()
            for timeout, patience in self._waiting.items():
                if not timeout.expired():
                    timeout.reschedule(now + patience)

    async def _take(self, what: str, url: str, deadline: Deadline) -> None:
        """Wait for a slot while others give theirs back; EBUSY when nobody does for as long as the operation may take."""
        if not self._slots.locked():
            await self._slots.acquire()
            return
        stopped = deadline.stop()
        try:
            patience = min(max(deadline.left(), 0.0), 3600.0)
            async with asyncio.timeout(patience) as timeout:
                self._waiting[timeout] = patience
                try:
                    await self._slots.acquire()
                finally:
                    del self._waiting[timeout]
        except TimeoutError:
            why = f"{what}: all {self.limit} connections to the host are taken; --max-connections allows more"
            raise HttpError(errno.EBUSY, why, url=shown(url)) from None
        finally:
            deadline.resume(stopped)


def check_wait(what: str, url: str, wait: float, deadline: Deadline, status: int) -> None:
    """Raise EBUSY when a server wants to be left alone for longer than the operation may take."""
    if wait < deadline.left():
        return
    why = f"{what}: {status}, the server wants no request for another {wait:.0f} s; --deadline is shorter"
    raise HttpError(errno.EBUSY, why, url=shown(url), status=status, retry_after=wait)


class Attempts:
    """The operations of a mount: deadlines, attempts, the hosts."""

    def __init__(self, limit: int, deadline: float, report: Callable[[HttpError, str], None] | None = None) -> None:
        self.attempts = ATTEMPTS
        self.report = report
        self.hosts: dict[tuple[str, int], Host] = {}
        self._limit = limit
        self._deadline = deadline

    def host(self, origin: Origin) -> Host:
        """Return what is kept of a host."""
        key = origin[1:]
        host = self.hosts.get(key)
        if host is None:
            host = self.hosts[key] = Host(self._limit)
        return host

    def deadline(self, size: int) -> float:
        """Return the seconds an operation that moves *size* bytes may take, its attempts included."""
        return self._deadline + size * SECONDS_PER_BYTE

    async def run(self, what: str, url: str, size: int, attempt: Callable[[], Awaitable[T]]) -> T:
        """Return what *attempt* returns, run again while its failure may pass; HttpError.

        Within another operation it is run once: that one's attempts and deadline count.
        """
        if current() is not None:
            return await attempt()
        name = f"{what} {shown(url)}"
        limit = self.deadline(size)
        deadline: Deadline | None = None
        try:
            async with asyncio.timeout(limit if limit != float("inf") else None) as timeout:
                deadline = Deadline(limit, timeout)
                token = _deadline.set(deadline)
                try:
                    return await self._again(name, url, attempt, deadline)
                finally:
                    deadline.over = True
                    _deadline.reset(token)
        except TimeoutError:
            last = deadline.last if deadline is not None else None
            because = f"; before that: {last.strerror}" if last is not None else ""
            error = HttpError(
                errno.ETIMEDOUT,
                f"{name}: not done within {limit:.0f} s{because}",
                url=shown(url),
                status=last.status if last is not None else 0,
                retryable=True,
            )
            raise self.failed(error, name) from None
        except HttpError as error:
            raise self.failed(error, name) from error.__cause__

    async def _again(self, name: str, url: str, attempt: Callable[[], Awaitable[T]], deadline: Deadline) -> T:
        tries = 0
        while True:
            tries += 1
            try:
                return await attempt()
            except HttpError as error:
                deadline.last = error
                # A server that asks for patience gets it: a refusal costs it nothing.
                busy = error.status in (429, 503)
                if not error.retryable or tries >= self.attempts * (2 if busy else 1):
                    raise
                if error.retry_after:
                    check_wait(name, url, error.retry_after, deadline, error.status)
                log.info("%s; trying again", error.strerror)
                # Who was told to wait by 429 or 503 waits at the host's gate, with everybody else.
                wait = error.retry_after if error.retry_after is not None and not busy else pause(tries, error)
            await asyncio.sleep(wait)

    def failed(self, error: HttpError, name: str) -> HttpError:
        """Log and report why a request failed for good: a program sees only the errno.

        Names that do not exist, methods a server does not know and refused conditions are no failure: who asked decides.
        """
        expected = error.errno in (errno.ENOENT, errno.ESTALE, errno.EOPNOTSUPP)
        code = errno.errorcode.get(error.errno or 0, error.errno)
        log.log(logging.DEBUG if expected else logging.WARNING, "%s -> %s", error.strerror, code)
        if self.report is not None and not expected:
            self.report(error, name)
        return error


def pause(tries: int, error: HttpError) -> float:
    """Return the seconds to wait before attempt *tries* + 1, with jitter; longer when the server says that it has enough."""
    base = 0.5 if error.errno == errno.EBUSY else 0.1
    return float(min(4.0, base * (1 << (tries - 1))) * random.uniform(0.5, 1.0))


__all__ = [
    "ATTEMPTS",
    "GATE_MOST",
    "SECONDS_PER_BYTE",
    "Attempts",
    "Deadline",
    "Host",
    "check_wait",
    "current",
    "pause",
]
