"""How a mount's server ends: what signals ask for, leaving the tree, and writing back what still waits."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import signal
import time
from dataclasses import dataclass, field
from typing import Any

from pyfusekit.core.errors import MountError
from pyfusekit.core.filesystem import Filesystem
from pyfusekit.core.mount import BUSY as MOUNT_BUSY
from pyfusekit.core.serving import Served

from .words import amount_text, files_text

log = logging.getLogger(__name__)

UNMOUNT_LIMIT_S = 10.0
"""How long the last detaching may take before the connection is closed under it."""
DRAIN_LIMIT_S = 60.0
"""How long a server whose mount is gone writes back what waits; the rest is kept for the next mount. systemd kills what has
not ended 90 s after SIGTERM."""
_SLACK_S = 2.0
"""How much later than it was told a filesystem may return from its last drain."""


@dataclass
class Ending:
    """What signals ask for, and how it is done."""

    served: Served | None = None
    """None until the mount stands: until then a signal cancels the start."""
    starting: asyncio.Task[Any] | None = None
    asked: int = 0
    first: int = 0
    """The signal that began it."""
    now: asyncio.Event = field(default_factory=asyncio.Event)
    detaching: asyncio.Task[None] | None = None
    drain_limit: float = math.nan
    """How long the last drain may take, when somebody said so; nan is DRAIN_LIMIT_S."""
    draining: bool = False
    drained: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when nothing more is written back: what waits now is left to the next mount."""

    def on_signal(self, number: int) -> None:
        """End the start, or begin to unmount, or, the second time, end at once."""
        self.asked += 1
        self.first = self.first or number
        name = signal.Signals(number).name
        if self.served is None:
            if self.starting is not None:
                self.starting.cancel()
        elif self.asked == 1 and self.draining:
            log.info("%s: writing back what waits; another one ends at once", name)
        elif self.asked == 1:
            log.info("%s: unmounting", name)
            self.detaching = asyncio.get_running_loop().create_task(self._detach(self.served))
        else:
            log.warning("%s again: ending at once", name)
            self.now.set()

    async def _detach(self, served: Served) -> None:
        """Unmount; in use, detach and leave serving to go on until the kernel ends the connection.

        In a thread: the kernel may need this loop's answers to finish.
        """
        try:
            try:
                await asyncio.to_thread(served.mount.unmount)
            except MountError as exc:
                if exc.kind != MOUNT_BUSY:
                    raise
                log.warning("in use: detached, serving until the last user is gone")
                await asyncio.to_thread(served.mount.unmount, lazy=True)
        except MountError as exc:
            log.warning("not unmounted: %s", exc)
            self.now.set()

    async def until_over(self, served: Served) -> None:
        """Wait until the mount has ended by itself or a second signal wants it now; then nothing is left in the tree."""
        waits = {asyncio.ensure_future(served.wait()), asyncio.ensure_future(self.now.wait())}
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for future in waits:
                future.cancel()
        if self.detaching is not None and not self.now.is_set():
            await self.detaching
        # An aborted connection leaves a dead mount behind; one that was unmounted is gone, and says so.
        with contextlib.suppress(MountError, TimeoutError):
            await asyncio.wait_for(asyncio.to_thread(served.mount.unmount, lazy=True), UNMOUNT_LIMIT_S)
        if self.now.is_set():
            # Closing the descriptor ends every request that waits, and so everybody who holds the mount.
            served.device.close()

    async def write_back(self, fs: Filesystem) -> None:
        """Have *fs* write back what waits, within the limit; a second signal ends it at once."""
        limit = DRAIN_LIMIT_S if math.isnan(self.drain_limit) else self.drain_limit
        self.draining = True
        try:
            files, size = waiting_in(fs)
            if files and limit > 0 and not self.now.is_set():
                log.info("unmounted; writing back %s (%s)", files_text(files), amount_text(size))
                await self._drain(fs, limit)
            files, size = waiting_in(fs)
            if files:
                words = f"{files_text(files)} ({amount_text(size)})"
                log.warning("%s not written back: kept on this machine for the next mount of the same source", words)
        finally:
            self.drained.set()

    async def _drain(self, fs: Filesystem, limit: float) -> None:
        draining = asyncio.ensure_future(fs.drain(time.monotonic() + limit))
        hurry = asyncio.ensure_future(self.now.wait())
        try:
            await asyncio.wait({draining, hurry}, timeout=limit + _SLACK_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            hurry.cancel()
            await stop(draining)


async def stop(task: asyncio.Future[None]) -> None:
    """Cancel a drain that is not over, and log the bug it ended with, if it did."""
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled() and (exc := task.exception()) is not None:
        log.error("writing back what waits failed", exc_info=exc)


def waiting_in(fs: Filesystem) -> tuple[int, int]:
    """Return how many files and bytes wait in *fs*; a filesystem that cannot say so has a bug, and is believed to have none."""
    try:
        files, size = fs.waiting()
    except Exception:
        log.exception("the filesystem does not say what waits to be written back")
        return 0, 0
    return int(files), int(size)
