"""What went wrong in a mount, kept for its operator: ``pyfusekit errors`` shows it.

A program sees an errno; the person who runs the mount needs the backend's own words, the request's id and what to do.
"""

from __future__ import annotations

import errno as numbers
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from .errors import errno_of

CONFLICT = "conflict"
"""The operation of a problem that stays although the same path succeeds later: somebody else's change met one made here."""


@dataclass(slots=True)
class Problem:
    """One thing that went wrong, however often it did."""

    operation: str
    """What was being done, in the backend's words or the kernel's: "PutObject", "rename"."""
    path: str
    """Where: a path below the mount's root, without a slash at its front; "" when it is about no file."""
    errno: int
    """What programs were told."""
    cause: str
    """Why, in one line."""
    remedy: str = ""
    """What mends it, in one line; "" when nobody can know."""
    request_id: str = ""
    """What the backend's operator asks for."""
    time: float = field(default_factory=time.time)
    """When it happened last, in seconds since 1970."""
    first_time: float = 0.0
    """When it happened first; 0 is *time*."""
    count: int = 1
    """How often."""

    def __post_init__(self) -> None:
        self.first_time = self.first_time or self.time

    @property
    def errno_name(self) -> str:
        """The errno as errno(3) calls it: "EACCES"."""
        return numbers.errorcode.get(self.errno, str(self.errno))


class ProblemLog:
    """The newest *maxlen* problems of a mount, the newest last.

    The same operation failing on the same path with the same errno is one problem that happened again: it keeps its first
    time, counts, and says what was said last.
    """

    def __init__(self, maxlen: int = 200) -> None:
        self.maxlen = maxlen
        self._problems: dict[tuple[str, str, int], Problem] = {}

    def add(self, problem: Problem) -> None:
        """Keep *problem*; the oldest goes when there are too many."""
        key = (problem.operation, problem.path, problem.errno)
        before = self._problems.pop(key, None)
        if before is not None:
            problem.first_time = min(before.first_time, problem.first_time)
            problem.count += before.count
        self._problems[key] = problem
        while len(self._problems) > self.maxlen:
            del self._problems[next(iter(self._problems))]

    def note(self, exc: BaseException, operation: str, path: str, *, remedy: str = "") -> None:
        """Keep what *exc* says: its errno (EIO when it has none), its words, and a ``request_id`` if it has one."""
        words = getattr(exc, "strerror", None) or str(exc) or type(exc).__name__
        request_id = getattr(exc, "request_id", "")
        problem = Problem(
            operation,
            path,
            errno_of(exc) or numbers.EIO,
            " ".join(str(words).split()),
            remedy,
            request_id if isinstance(request_id, str) else "",
        )
        self.add(problem)

    def settle(self, path: str, *, conflicts: bool = False) -> None:
        """Drop the problems of *path*: what failed there has succeeded since. Its *conflicts* are a person's to settle."""
        for key in [key for key in self._problems if key[1] == path and (conflicts or key[0] != CONFLICT)]:
            del self._problems[key]

    def __iter__(self) -> Iterator[Problem]:
        """Yield the problems, the newest last."""
        return iter(list(self._problems.values()))

    def __len__(self) -> int:
        return len(self._problems)


__all__ = ["CONFLICT", "Problem", "ProblemLog"]
