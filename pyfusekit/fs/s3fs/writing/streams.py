"""What is under way for a file: a publish, and a multipart upload: which parts the store has, and which are no longer true."""

from __future__ import annotations

import asyncio
import errno
import os
import zlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ..remote.store import Attributes, Part, Upload
from .extents import Extents
from .plan import Step

_PIECE = 1 << 20


class Attempt(NamedTuple):
    """A publish whose outcome is not known: the store may have done it."""

    generation: int
    """What it published; -1 when that is not known any more."""
    size: int
    """Bytes of the object it makes; -1 when not known."""
    etag: str = ""
    """The ETag that the object will most likely have; "" when not known."""
    merged: bool = False
    """It put the file's tail behind another writer's bytes."""


@dataclass(slots=True)
class Snapshot:
    """What a publish is sending, and what changed since."""

    generation: int
    size: int
    limit: int
    """How many bytes of the object that is being made the file still shows."""
    since: Extents = field(default_factory=Extents)


class FileBody:
    """A Body: the bytes [start, end) of a file, read when they are sent, so that they never are in memory whole."""

    __slots__ = ("_end", "_fd", "_start")

    def __init__(self, fd: int, start: int, end: int) -> None:
        self._fd = fd
        self._start = start
        self._end = end

    @property
    def size(self) -> int:
        """How many bytes."""
        return self._end - self._start

    def pieces(self) -> Iterator[bytes]:
        """Yield them; EIO when the file is shorter."""
        position = self._start
        while position < self._end:
            piece = os.pread(self._fd, min(_PIECE, self._end - position), position)
            if not piece:
                raise OSError(errno.EIO, "the staging file is shorter than what was written to it")
            position += len(piece)
            yield piece

    def crc32(self) -> int:
        """Return their checksum."""
        value = 0
        for piece in self.pieces():
            value = zlib.crc32(piece, value)
        return value


class Stream:
    """The upload of one Staged.

    INVARIANT: a part in *done* holds the bytes that the file has at its offsets; touched() sees to it.
    """

    def __init__(self, key: str, attributes: Attributes, txn: str, first: int, origin: int) -> None:
        self.key = key
        self.attributes = attributes
        """What the object will have, without the transaction id."""
        self.txn = txn
        """The transaction id in its metadata."""
        self.first = first
        """The number of the first part that may be sent in the background..."""
        self.origin = origin
        """...and the offset where it begins: what is before is copied from the base."""
        self.upload: Upload | None = None
        self.creating: asyncio.Task[Upload] | None = None
        self.done: dict[int, tuple[Step, Part]] = {}
        self.under_way: dict[int, asyncio.Task[None]] = {}
        """Parts that are being sent in the background."""
        self.error: OSError | None = None
        """Why nothing more is sent before the publish."""
        self.rewritten = 0
        """How many parts changed when they were sent already."""
        self.laid = False
        """A publish has decided on all parts, so the background sends no more."""
        self._starts: list[int] = []
        self._order: list[Step] = []
        self._steps: dict[int, Step] = {}
        self._stale: set[int] = set()

    @property
    def number(self) -> int:
        """The number of the next part to send in the background."""
        return self._order[-1].number + 1 if self._order else self.first

    @property
    def frontier(self) -> int:
        """The offset where that part begins."""
        return self._order[-1].end if self._order else self.origin

    def lay(self, steps: Sequence[Step]) -> None:
        """Decide on all parts; what was sent and is not among them counts no more."""
        self.laid = True
        self._order = list(steps)
        self._starts = [step.start for step in steps]
        self._steps = {step.number: step for step in steps}
        self.done = {number: sent for number, sent in self.done.items() if self._steps.get(number) == sent[0]}

    def begin(self, step: Step) -> None:
        """A part is being sent: what is written into it from now on makes it untrue."""
        self._stale.discard(step.number)
        self.done.pop(step.number, None)
        if step.number not in self._steps:
            self._steps[step.number] = step
            self._order.append(step)
            self._starts.append(step.start)

    def sent(self, step: Step, part: Part) -> None:
        """The store has a part."""
        if step.number not in self._stale and self._steps.get(step.number) == step:
            self.done[step.number] = (step, part)

    def touched(self, start: int, end: int) -> None:
        """Bytes of the file changed."""
        if not self._order or start >= self._order[-1].end:
            return
        index = max(0, bisect_right(self._starts, start) - 1)
        while index < len(self._order) and self._starts[index] < end:
            number = self._order[index].number
            if self._order[index].end > start:
                self.rewritten += number in self.done or number in self.under_way
                self._stale.add(number)
                self.done.pop(number, None)
            index += 1

    def stale(self, number: int) -> bool:
        """Return whether a part changed since it was begun."""
        return number in self._stale

    def has(self, step: Step) -> bool:
        """Return whether the store has this part as the file is now."""
        sent = self.done.get(step.number)
        return sent is not None and sent[0] == step

    @property
    def whole(self) -> bool:
        """Whether the store has all parts that were decided on."""
        return len(self.done) == len(self._steps) > 0

    def tasks(self) -> list[asyncio.Task[None]]:
        """Return the parts under way."""
        return list(self.under_way.values())


__all__ = ["Attempt", "FileBody", "Snapshot", "Stream"]
