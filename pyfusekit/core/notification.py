"""A notification on its way to the kernel, and a request in flight that may stand in its way."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Coroutine, Generator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from . import abi
from .types import Data

if TYPE_CHECKING:
    import asyncio

T = TypeVar("T")

_log = logging.getLogger(__name__)

_ANY_LOCK_FREE = frozenset(
    {abi.OPENDIR, abi.RELEASEDIR, abi.RELEASE, abi.STATFS, abi.SYNCFS, abi.POLL, abi.FLUSH, abi.GETLK, abi.SETLK, abi.SETLKW}
)
"""Requests during which the kernel holds no lock of the node they name. All others may: even GETATTR is sent under a
directory's lock, by the permission check of a mkdir (fs/fuse/dir.c fuse_perm_getattr)."""
_PAGE_OPS = frozenset(
    {abi.READ, abi.WRITE, abi.FSYNC, abi.FLUSH, abi.SETATTR, abi.FALLOCATE, abi.OPEN, abi.CREATE, abi.COPY_FILE_RANGE,
     abi.COPY_FILE_RANGE_64, abi.SETUPMAPPING, abi.REMOVEMAPPING}
)  # fmt: skip
"""Requests during which the kernel may hold pages of the node they name, or keep others from being written back."""


class InFlight:
    """A request whose handler is running: what the notifier needs to know about it, and what the session keeps of it."""

    __slots__ = ("after", "nodeids", "opcode", "task", "unique")

    def __init__(self, unique: int, opcode: int, nodeids: tuple[int, ...], task: asyncio.Task[None] | None = None) -> None:
        self.unique = unique
        self.opcode = opcode
        self.nodeids = nodeids
        """Every node the request names."""
        self.task = task
        self.after: list[Callable[[], None]] = []
        """Called on the loop, in order, when the reply was written or could not be; then the request is no longer in flight."""

    def __repr__(self) -> str:
        return f"InFlight(unique={self.unique}, opcode={self.opcode}, nodeids={self.nodeids})"


class Notification(Generic[T]):
    """A notification on its way. Awaiting it, which nobody needs to do, waits until the kernel has taken it.

    The result is True, or False when the kernel did not know the inode or name: to a cache that is as good. Of a retrieve it
    is the bytes. Other errors of the kernel are raised as OSError; ENODEV is the end of the mount. Those that
    nobody awaited are logged.
    """

    __slots__ = (
        "_error", "_result", "_seen", "_wait_for", "begun", "code", "done", "holder", "keys", "locks", "pages", "parts",
        "waiters",
    )  # fmt: skip

    def __init__(
        self,
        code: int,
        parts: list[Data],
        keys: tuple[int, ...],
        wait_for: Callable[[Notification[Any]], Coroutine[Any, Any, None]],
    ) -> None:
        self._wait_for = wait_for
        self._error: OSError | None = None
        self._result: Any = None
        self._seen = False
        self.code = code
        self.parts = parts
        self.keys = keys
        """The nodes it is about; those about one node keep their order."""
        self.locks: tuple[int, ...] = ()
        """The nodes whose locks the kernel takes for it."""
        self.pages: int = 0
        """The node whose pages the kernel waits for, or 0."""
        self.holder: InFlight | None = None
        """The request whose answer it waits for before it is written."""
        self.begun = False
        """It is being written, or was."""
        self.done = False
        self.waiters: list[asyncio.Future[None]] = []
        """Of those who await it."""

    def __repr__(self) -> str:
        return f"Notification({abi.NOTES[self.code].name}, keys={self.keys})"

    def __await__(self) -> Generator[Any, None, T]:
        return self._wait().__await__()

    async def _wait(self) -> T:
        if not self.done:
            await self._wait_for(self)
        if self._error is not None:
            self._seen = True
            raise self._error
        result: T = self._result
        return result

    def conflicts(self, request: InFlight) -> bool:
        """Say whether the kernel may hold what this takes until *request* is answered."""
        if self.locks and request.opcode not in _ANY_LOCK_FREE and not set(request.nodeids).isdisjoint(self.locks):
            return True
        return self.pages != 0 and request.opcode in _PAGE_OPS and self.pages in request.nodeids

    def finish(self, result: Any, error: OSError | None) -> None:
        """Set the outcome, once, and wake who awaits it."""
        if self.done:
            return
        self.done = True
        self.parts = []
        self._result, self._error = result, error
        for future in self.waiters:
            if not future.done():
                future.set_result(None)
        self.waiters.clear()

    def __del__(self) -> None:
        if self._error is not None and not self._seen and self._error.errno != errno.ENODEV:
            _log.warning("%r, which nobody awaited: %s", self, self._error)


__all__ = ["InFlight", "Notification"]
