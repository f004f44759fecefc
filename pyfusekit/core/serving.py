"""Serve a filesystem at a mountpoint: mount, session, loop and teardown as one ``async with``."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
from dataclasses import replace
from types import TracebackType
from typing import Any

from . import mount as mounting
from .abi import PASSTHROUGH
from .asyncfd import SPIN, AsyncFd
from .capabilities import PAGE_BYTES, Agreed, Limits
from .errors import MountError, ProtocolError
from .filesystem import Filesystem
from .mount import Mount, MountOptions
from .mountpoints import is_admin
from .notify import Notifier
from .session import Session

log = logging.getLogger(__name__)

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


def machine_limits(options: MountOptions) -> Limits:
    """Read what this machine and process allow (fs/fuse/sysctl.c, fs/fuse/backing.c)."""
    limits = Limits(default_permissions=options.default_permissions is not False, may_passthrough=_may_passthrough())
    try:
        with open("/proc/sys/fs/fuse/max_pages_limit", encoding="ascii") as file:
            limits.max_pages = max(1, int(file.read()))
    except (OSError, ValueError):
        pass  # before Linux 6.13 it was a constant, the default
    return limits


def _may_passthrough() -> bool:
    """Say whether this process has CAP_SYS_ADMIN in the first user namespace, as backing files need."""
    try:
        with open("/proc/self/uid_map", encoding="ascii") as file:
            is_first = file.read().split() == ["0", "0", "4294967295"]
        return is_first and is_admin()
    except (OSError, ValueError):
        return False


class _Way:
    """Where notifications go: to the device, once there is one. Called on the notifier's thread, where it may block."""

    __slots__ = ("device",)

    def __init__(self) -> None:
        self.device: AsyncFd | None = None

    def __call__(self, parts: object) -> int:
        fd = -1 if self.device is None else self.device.fd
        if fd < 0:
            raise OSError(errno.ENODEV, "the mount is gone")
        return os.writev(fd, parts)  # type: ignore[arg-type]


class Served:
    """A filesystem being served; made by :func:`serve`."""

    def __init__(
        self, fs: Filesystem, mount: Mount, options: MountOptions, limits: Limits, spin: int, notifier: Notifier, way: _Way
    ) -> None:
        self.fs = fs
        self.mount = mount
        """Where it is mounted, and how."""
        self.options = options
        """What the kernel was told; with what the filesystem itself said."""
        largest = max(min(fs.max_write, limits.max_pages * PAGE_BYTES), _SMALLEST_BUFFER_BYTES)
        self.device = AsyncFd(mount.fd, largest + _HEADROOM_BYTES, spin=spin)
        way.device = self.device
        self.notifier = notifier
        self.session = Session(
            fs,
            self.device.write,
            self.device.writev,
            notifier=self.notifier,
            limits=limits,
            recycle=self.device.recycle,
        )
        self.device.receive = self._receive_first
        self._ended = False

    def _receive_first(self, buffer: Any, n: int) -> int:
        """Receive until INIT is answered: only then the kernel takes notifications."""
        said = self.session.receive(buffer, n)
        if self.session.agreed is not None and self.device.receive != self.session.receive:
            self.device.receive = self.session.receive
            if self.session.agreed.has(PASSTHROUGH):
                self.fs.device = lambda: self.device.fd
            self.notifier.attach(asyncio.get_running_loop())
        return said

    async def begin(self) -> Agreed:
        """Answer INIT and serve; return what was agreed. Raises MountError when the kernel does not ask or is too old."""
        loop = asyncio.get_running_loop()
        self.session.initialised = loop.create_future()
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
        try:
            agreed = self.session.initialised.result()
        except ProtocolError as error:
            raise MountError(str(error), kind=mounting.MOUNT_FAILED, remedy="use Linux 3.15 or later") from error
        if self.mount.minor is not None:
            # Buffered READs are bounded by it, and INIT can only make it smaller than the default of 128 KiB.
            await asyncio.to_thread(mounting.set_readahead, self.mount.minor, max(0, self.fs.max_readahead) >> 10)
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
        except asyncio.CancelledError:
            await self._detach()  # whoever cannot wait for the users leaves no dead mount behind all the same
            raise
        finally:
            self.device.stop()
            try:
                await self.session.drain()
            finally:
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
            if error.kind != mounting.NOT_MOUNTED:
                log.warning("%s; closing the connection instead", error)  # another mount lies over this one
                self.device.close()


class serve:
    """``async with serve(fs, mountpoint) as served:`` mounts *fs*, serves it inside the block, and unmounts.

    Entering runs ``fs.init()``, mounts, and answers the kernel's INIT: inside the block the filesystem works. Leaving
    unmounts (when it is in use: detaches, and waits a few seconds for the users), cancels what still runs, and calls
    ``fs.destroy()``. Raises MountError, and whatever ``fs.init()`` raises.

    NOTE: never touch the mount from the event loop that serves it, not even with stat: that waits for itself.
    """

    def __init__(self, fs: Filesystem, mountpoint: str, options: MountOptions | None = None, *, spin: int = SPIN) -> None:
        self._fs = fs
        self._mountpoint = mountpoint
        # A copy: what the filesystem says is added to it.
        self._options = replace(options) if options is not None else MountOptions()
        self._spin = spin
        self._served: Served | None = None

    async def __aenter__(self) -> Served:
        fs, options = self._fs, self._options
        if fs.read_only or not any(map(fs.implements, CHANGING)):
            options.read_only = True
        if options.default_permissions is None:
            options.default_permissions = fs.default_permissions
        options.file = options.file or fs.root_is_file
        way = _Way()
        fs.notifier = notifier = Notifier(way)
        await fs.init()
        try:
            limits = machine_limits(options)
            mounted = await self._mount(options)
            try:
                self._served = served = Served(fs, mounted, options, limits, self._spin, notifier, way)
            except BaseException:
                await asyncio.to_thread(_undo, mounted)
                raise
        except BaseException:
            notifier.close()
            await fs.destroy()
            raise
        try:
            await served.begin()
        except BaseException:
            await served.end()
            raise
        return served

    async def _mount(self, options: MountOptions) -> Mount:
        """Mount in a thread, which cannot be stopped: if the wait for it is cancelled, what it mounted is taken away again."""
        mounting_task = asyncio.ensure_future(asyncio.to_thread(mounting.mount, self._mountpoint, options))
        try:
            return await asyncio.shield(mounting_task)
        except asyncio.CancelledError:
            await asyncio.wait({mounting_task})
            if mounting_task.exception() is None:
                await asyncio.to_thread(_undo, mounting_task.result())
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._served is not None:
            await self._served.end()


def _undo(mount: Mount) -> None:
    """Take a mount away that nobody serves."""
    os.close(mount.fd)
    if mount.how != "given":
        with contextlib.suppress(MountError):
            mount.unmount(lazy=True)


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
