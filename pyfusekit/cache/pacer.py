"""How everybody slows down when a server says that it is asked too much."""

from __future__ import annotations

import time
from collections.abc import Callable


class Pacer:
    """Spaces the requests of everybody once the server has said that they are too many, and less and less when it stops.

    A server that throttles means the client, not the one request it refused: without this the others go on at full rate, and
    all of them spend their attempts.
    """

    FIRST = 0.01
    MOST = 1.0
    SETTLE = 0.5
    """Seconds in which further refusals count as the same one: they were sent before anybody slowed down."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.interval = 0.0
        """Seconds between the beginnings of two requests; 0 is no pacing."""
        self._clock = clock
        self._next = 0.0
        self._slowed = float("-inf")

    def slow(self) -> None:
        """Double the interval: the server refused a request for its rate."""
        now = self._clock()
        if now - self._slowed < self.SETTLE:
            return
        self._slowed = now
        self.interval = min(self.MOST, max(self.FIRST, self.interval * 2))
        self._next = max(self._next, now)

    def done(self) -> None:
        """Shorten the interval: a request was answered."""
        self.interval = self.interval * 0.95 if self.interval > self.FIRST / 4 else 0.0

    def delay(self) -> float:
        """Take a turn; return the seconds until it comes."""
        now = self._clock()
        turn = max(self._next, now)
        self._next = turn + self.interval
        return turn - now


__all__ = ["Pacer"]
