"""Serve a filesystem at a mountpoint: mount, session, loop and teardown as one ``async with``."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from types import TracebackType
from typing import Any

from . import mount as mounting
from .asyncfd import AsyncFd
from .capabilities import PAGE_BYTES, Agreed, Limits
from .errors import MountError
from .filesystem import Filesystem
from .mount import Mount, MountOptions
from .notify import Notifier
from .session import Session

log = logging.getLogger(__name__)

READAHEAD_KIB = 1024
INIT_TIMEOUT_S = 20.0
LEAVE_TIMEOUT_S = 10.0
"""How long leaving the block waits for those who still use a mount that was taken out of the tree."""

CHANGING = (
    "setattr", "mknod", "mkdir", "symlink", "link", "unlink", "rmdir", "rename", "create", "tmpfile", "write", "fallocate",
    "copy_file_range", "setxattr", "removexattr", "ioctl",
)  # fmt: skip
"""A filesystem that overrides none of these is mounted read-only, and the kernel says EROFS by itself."""
_HEADROOM_BYTES = 4096
_SMALLEST_BUFFER_BYTES = (64 << 10) + 8192
"""Holds the largest setxattr (64 KiB) beside its headers."""
_CAP_SYS_ADMIN = 21


def machine_limits(options: MountOptions) -> Limits:
    """Read what this machine and process allow (fs/fuse/sysctl.c, fs/fuse/backing.c)."""
    limits = Limits(default_permissions=options.default_permissions, may_passthrough=_is_admin())
    try:
        with open("/proc/sys/fs/fuse/max_pages_limit", encoding="ascii") as file:
            limits.max_pages = max(1, int(file.read()))
    except (OSError, ValueError):
        pass  # before Linux 6.13 it was a constant, the default
    return limits


def _is_admin() -> bool:
    """Say whether this process has CAP_SYS_ADMIN in the first user namespace, as backing files need."""
    try:
        with open("/proc/self/uid_map", encoding="ascii") as file:
            if file.read().split() != ["0", "0", "4294967295"]:
                return False
        with open("/proc/self/status", encoding="ascii") as file:
            for line in file:
                if line.startswith("CapEff:"):
                    return bool(int(line.split()[1], 16) >> _CAP_SYS_ADMIN & 1)
    except (OSError, ValueError):
        pass
    return False


class Served:
    """A filesystem being served; made by :func:`serve`."""

    def __init__(self, fs: Filesystem, mount: Mount, limits: Limits, spin: int | None) -> None:
        self.fs = fs
        self.mount = mount
        """Where it is mounted, and how."""
        largest = max(min(fs.max_write, limits.max_pages * PAGE_BYTES), _SMALLEST_BUFFER_BYTES)
        self.device = (
            AsyncFd(mount.fd, largest + _HEADROOM_BYTES)
            if spin is None
            else AsyncFd(mount.fd, largest + _HEADROOM_BYTES, spin=spin)
        )
        self.notifier = Notifier(self._notify)
        self.session = Session(
            fs,
            self.device.write,
            self.device.writev,
            notifier=self.notifier,
            limits=limits,
            recycle=self.device.recycle,
        )
        self.device.receive = self.session.receive
        self._ended = False

    def _notify(self, parts: object) -> int:
        """Write one notification; on the notifier's thread, where it may block."""
        fd = self.device.fd
        if fd < 0:
            raise OSError(errno.ENODEV, "the mount is gone")
        return os.writev(fd, parts)  # type: ignore[arg-type]

    async def begin(self) -> Agreed:
        """Answer INIT and serve; return what was agreed. Raises MountError when the kernel does not ask or is too old."""
        loop = asyncio.get_running_loop()
        self.session.initialised = loop.create_future()
        self.notifier.attach(loop)
        self.fs.notifier = self.notifier
        self.device.start()
        waits: set[asyncio.Future[Any]] = {self.session.initialised, self.device.closed}
        await asyncio.wait(waits, timeout=INIT_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
        if not self.session.initialised.done():
            self.session.initialised.cancel()
            raise MountError(
                "the kernel did not begin to talk to the mount",
                kind=mounting.MOUNT_FAILED,
                remedy="look at the kernel's log: dmesg | tail",
            )
        agreed = self.session.initialised.result()
        if self.mount.minor is not None:
            await asyncio.to_thread(mounting.set_readahead, self.mount.minor, READAHEAD_KIB)
        return agreed

    async def wait(self) -> None:
        """Return when the mount is gone, whoever unmounted or aborted it."""
        await asyncio.shield(self.device.closed)

    async def unmount(self, *, lazy: bool = False) -> None:
        """Unmount; MountError with the kind BUSY when it is in use and not *lazy*. Serving goes on until the last user left."""
        if self.mount.how != "given":
            await asyncio.to_thread(self.mount.unmount, lazy=lazy)

    async def end(self) -> None:
        """Unmount if that has not happened, wait a while for users, and free everything; again is nothing."""
        if self._ended:
            return
        self._ended = True
        try:
            await self._leave()
        finally:
            await self.session.drain()
            self.notifier.close()
            self.device.close()
            await self.fs.destroy()

    async def _leave(self) -> None:
        try:
            await self.unmount()
        except MountError as error:
            if error.kind == mounting.BUSY:
                log.warning("%s is in use; it is detached, and ends when its last user leaves", self.mount.path)
                await self._detach()
            elif error.kind != mounting.NOT_MOUNTED:
                log.warning("%s", error)
        if self.mount.how != "given":
            await asyncio.wait({self.device.closed}, timeout=LEAVE_TIMEOUT_S)

    async def _detach(self) -> None:
        try:
            await self.unmount(lazy=True)
        except MountError as error:
            log.warning("%s; closing the connection instead", error)  # another mount lies over this one
            self.device.close()


class serve:
    """``async with serve(fs, mountpoint) as served:`` mounts *fs*, serves it inside the block, and unmounts.

    Entering runs ``fs.init()``, mounts, and answers the kernel's INIT: inside the block the filesystem works. Leaving
    unmounts (when it is in use: detaches, and waits a few seconds for the users), cancels what still runs, and calls
    ``fs.destroy()``. Raises MountError, and whatever ``fs.init()`` raises.

    NOTE: never touch the mount from the event loop that serves it, not even with stat: that waits for itself.
    """

    def __init__(
        self, fs: Filesystem, mountpoint: str, options: MountOptions | None = None, *, spin: int | None = None
    ) -> None:
        self._fs = fs
        self._mountpoint = mountpoint
        self._options = options or MountOptions(default_permissions=fs.default_permissions, read_only=fs.read_only)
        self._spin = spin
        self._served: Served | None = None

    async def __aenter__(self) -> Served:
        fs, options = self._fs, self._options
        if fs.read_only or not any(map(fs.implements, CHANGING)):
            options.read_only = True
        options.file = options.file or fs.root_is_file
        await fs.init()
        try:
            limits = machine_limits(options)
            mounted = await asyncio.to_thread(mounting.mount, self._mountpoint, options)
            self._served = served = Served(fs, mounted, limits, self._spin)
        except BaseException:
            await fs.destroy()
            raise
        try:
            await served.begin()
        except BaseException:
            await served.end()
            raise
        return served

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._served is not None:
            await self._served.end()


def run(fs: Filesystem, mountpoint: str, options: MountOptions | None = None) -> None:
    """Serve *fs* in the foreground until it is unmounted, or SIGINT or SIGTERM comes. For scripts and examples."""
    import signal

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with serve(fs, mountpoint, options) as served:
            stop = asyncio.Event()
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, stop.set)
            served.device.closed.add_done_callback(lambda _: stop.set())
            await stop.wait()

    asyncio.run(main())
