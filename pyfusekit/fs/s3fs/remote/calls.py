"""How requests to the store are made: so many at a time, each under a deadline, again when that may help, slower when asked."""

from __future__ import annotations

import asyncio
import errno
import logging
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from pyfusekit.cache import Pacer

from .errors import StoreError, throttled, translate

log = logging.getLogger("pyfusekit.s3fs")

T = TypeVar("T")

ATTEMPTS = 5
"""How often a request is sent, when the failure is one that may pass."""
SECONDS_PER_BYTE = 8.0 / (1 << 20)
"""What a byte adds to a request's deadline: 128 KiB/s is the slowest line that is waited for."""

Report = Callable[[StoreError, str, str], None]
"""Is told of each request that failed for good: the error, the operation's name, the key."""


class Calls:
    """The requests of a mount.

    INVARIANT: no more than *limit* requests are under way, and a deadline begins with the first attempt, so it never counts
    time spent waiting for others.
    """

    def __init__(self, limit: int, deadline: float, report: Report | None = None) -> None:
        self.attempts = ATTEMPTS
        self.pacer = Pacer()
        self.report = report
        self.quiet = False
        """Failures are expected: the probe is trying what the server refuses."""
        self._deadline = deadline
        self._slots = asyncio.Semaphore(max(1, limit))

    def deadline(self, size: int) -> float:
        """Return the seconds a request that moves *size* bytes may take, its retries included."""
        return self._deadline + size * SECONDS_PER_BYTE

    async def run(self, operation: str, key: str, size: int, attempt: Callable[[], Awaitable[T]]) -> T:
        """Run *attempt*, again if its failure may pass, until the deadline of a request of *size* bytes; StoreError."""
        async with self._slots:
            limit = self.deadline(size)
            last: list[StoreError] = []
            if self.pacer.interval:
                await asyncio.sleep(self.pacer.delay())
            try:
                async with asyncio.timeout(limit if limit != float("inf") else None):
                    return await self._attempts(f"{operation} {key!r}", attempt, last)
            except TimeoutError:
                because = f"; the last answer was: {last[0].strerror}" if last else ""
                error = StoreError(errno.ETIMEDOUT, f"{operation} {key!r}: not done within {limit:.0f} s{because}")
                raise self.failed(error, operation, key) from None
            except StoreError as error:
                raise self.failed(error, operation, key) from error.__cause__

    async def _attempts(self, what: str, attempt: Callable[[], Awaitable[T]], last: list[StoreError]) -> T:
        """Run *attempt* until it is done or not to be tried again; the newest failure is in *last*."""
        tries = 0
        while True:
            tries += 1
            try:
                result = await attempt()
            except Exception as exc:
                error = translate(what, exc)
                error.tries = tries
                last[:] = [error]
                busy = throttled(error)
                if busy:
                    self.pacer.slow()
                # A store that asks for patience gets it: a refusal costs it nothing.
                if not error.retryable or tries >= self.attempts * (2 if busy else 1):
                    raise error from (exc if error is not exc else exc.__cause__)
            else:
                if self.pacer.interval:
                    self.pacer.done()
                return result
            log.info("%s; trying again", last[0].strerror)
            await asyncio.sleep(_pause(tries, last[0]))
            if self.pacer.interval:
                await asyncio.sleep(self.pacer.delay())

    def failed(self, error: StoreError, operation: str, key: str) -> StoreError:
        """Log and report why a request failed for good: a program sees only the errno. Names that do not exist are no failure.

        Nor is the refused condition of a write: who set it decides what that means. A bucket that vanished is one.
        """
        expected = (
            self.quiet
            or (error.errno == errno.ENOENT and error.code != "NoSuchBucket")
            or (error.errno == errno.ESTALE and operation != "GetObject")
        )
        name = errno.errorcode.get(error.errno or 0, error.errno)
        log.log(logging.DEBUG if expected else logging.WARNING, "%s -> %s", error.strerror, name)
        if self.report is not None and not expected:
            self.report(error, operation, key)
        return error


def _pause(tries: int, error: StoreError) -> float:
    """Return the seconds to wait before attempt *tries* + 1, with jitter; longer when the store says that it has enough."""
    base = 0.5 if error.errno == errno.EBUSY else 0.1
    return float(min(4.0, base * (1 << (tries - 1))) * random.uniform(0.5, 1.0))


__all__ = ["ATTEMPTS", "SECONDS_PER_BYTE", "Calls", "Report"]
