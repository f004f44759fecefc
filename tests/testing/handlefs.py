"""memfs with every choice the other way: nothing is cached, every open file has a handle, locks are kept by the filesystem.

The contract runs on it too, because a server that memfs never has to be is one that the doors must get right all the same.
"""

from __future__ import annotations

import errno
import os
from typing import Any

from pyfusekit.core import Attr, LockKeeper, Opened, Request
from pyfusekit.core.types import Entries, ReadResult
from pyfusekit.fs.memfs import MemFS, MemOptions


class Handle:
    """An open file; what it is used for is checked against what it was opened for."""

    def __init__(self, ino: int, flags: int) -> None:
        self.ino = ino
        self.flags = flags
        self.is_released = False

    def check(self, ino: int, *, writes: bool = False, reads: bool = False) -> None:
        """Raise when a request comes with the wrong handle: a bug of the core or of the door, answered EIO."""
        assert self.ino == ino, f"handle of node {self.ino} used for {ino}"
        assert not self.is_released, "used after release"
        access = self.flags & os.O_ACCMODE
        assert not writes or access != os.O_RDONLY, "written through a read-only handle"
        assert not reads or access != os.O_WRONLY, "read through a write-only handle"


class HandleFS(LockKeeper, MemFS):
    """A memory filesystem that asks to be asked."""

    attr_ttl = entry_ttl = negative_ttl = 0.0
    explicit_inval_data = False
    stateless_open = stateless_opendir = False
    cache_symlinks = False
    export_support = False
    handle_killpriv = False
    dont_mask = True
    max_write = 32 << 10

    def __init__(self, source: str | None = None, options: MemOptions | None = None) -> None:
        super().__init__(source, options)
        self.opened: set[Handle] = set()

    def _open(self, ino: int, flags: int) -> Handle:
        handle = Handle(ino, flags)
        self.opened.add(handle)
        return handle

    def open(self, request: Request, ino: int, flags: int) -> Any:
        assert not flags & (os.O_CREAT | os.O_EXCL | os.O_TRUNC)
        return Opened(self._open(ino, flags))

    def create(self, request: Request, parent: int, name: bytes, mode: int, umask: int, flags: int) -> tuple[Attr, Any]:
        attr = self.mknod(request, parent, name, mode, 0, umask)
        if not isinstance(attr, Attr):
            attr.close()
            raise OSError(errno.ENOSPC, "full")
        return attr, self._open(attr.ino, flags)

    def tmpfile(self, request: Request, parent: int, mode: int, umask: int, flags: int) -> tuple[Attr, Any]:
        made = super().tmpfile(request, parent, mode, umask, flags)
        assert isinstance(made, tuple)
        return made[0], self._open(made[0].ino, flags)

    def release(self, request: Request, ino: int, handle: Any) -> Any:
        handle.check(ino)
        result = super().release(request, ino, handle)
        handle.is_released = True
        self.opened.remove(handle)
        return result

    def flush(self, request: Request, ino: int, handle: Any, lock_owner: int) -> Any:
        handle.check(ino)
        return super().flush(request, ino, handle, lock_owner)

    def fsync(self, request: Request, ino: int, handle: Any, datasync: int) -> None:
        handle.check(ino)

    def fsyncdir(self, request: Request, ino: int, handle: Any, datasync: int) -> None:
        handle.check(ino)

    def read(self, request: Request, ino: int, handle: Any, offset: int, size: int) -> ReadResult:
        handle.check(ino, reads=True)
        return super().read(request, ino, handle, offset, size)

    def write(self, request: Request, ino: int, handle: Any, offset: int, data: memoryview) -> Any:
        handle.check(ino, writes=True)
        assert len(data) <= self.max_write
        return super().write(request, ino, handle, offset, data)

    def opendir(self, request: Request, ino: int, flags: int) -> Any:
        return self._open(ino, flags)

    def readdir(self, request: Request, ino: int, handle: Any, offset: int) -> Entries:
        handle.check(ino)
        return super().readdir(request, ino, handle, offset)

    def readdirplus(self, request: Request, ino: int, handle: Any, offset: int) -> Entries:
        handle.check(ino)
        return super().readdirplus(request, ino, handle, offset)

    def releasedir(self, request: Request, ino: int, handle: Any) -> None:
        handle.check(ino)
        handle.is_released = True
        self.opened.remove(handle)

    async def destroy(self) -> None:
        """What is still open was never released."""
        assert not self.opened, f"{len(self.opened)} handles were not released"
        await super().destroy()
