"""What a filesystem in terms of paths is asked: the interface of core/paths.py.

Paths are bytes, absolute, without a slash at the end: b"/", b"/a/b".
"""

from __future__ import annotations

import errno
from collections.abc import AsyncIterable, Iterable
from typing import Any

from .types import Attr, Data, ReadResult, Request, Result, SetAttr, StatFs

Listed = bytes | tuple[bytes, Attr]
"""What a listing says of a file: its name, or its name and Attr, which saves the kernel a question."""

Names = Iterable[Listed]
"""A directory's contents."""


def _absent(operation: str) -> OSError:
    return OSError(errno.ENOSYS, f"{operation} is not implemented")


class PathOperations:
    """A filesystem in terms of paths: override what you support, with ``def`` or ``async def``.

    The methods are those of Filesystem, which says more about each, with *path* for the node; what is not overridden is
    answered as there. Attr.ino need not be set. Raise OSError; ENOENT where there is no such file.
    """

    rename_flags: int = 0
    """Which of RENAME_NOREPLACE, RENAME_EXCHANGE and RENAME_WHITEOUT ``rename`` does; the others are EINVAL without asking."""

    async def init(self) -> None:
        """Begin; called before mounting."""

    async def destroy(self) -> None:
        """End; called once, when the mount is gone."""

    def getattr(self, request: Request, path: bytes, handle: Any) -> Result[Attr]:
        """Return the attributes; ENOENT when there is no such file. Must be overridden: every lookup asks this.

        *handle* is an open file's or None; it is given for a file that has no name any more.
        """
        raise _absent("getattr")

    def setattr(self, request: Request, path: bytes, changes: SetAttr, handle: Any) -> Result[Attr | None]:
        """Change what *changes* names; return the new attributes, or None to be asked for them. As all that makes files."""
        raise _absent("setattr")

    def access(self, request: Request, path: bytes, mask: int) -> Result[None]:
        """Raise EACCES unless the caller may do *mask*; only without default_permissions."""
        raise _absent("access")

    def readlink(self, request: Request, path: bytes) -> Result[bytes]:
        """Return the target of a symbolic link."""
        raise _absent("readlink")

    def mknod(self, request: Request, path: bytes, mode: int, rdev: int) -> Result[Attr | None]:
        """Make a file; *mode* has its type."""
        raise _absent("mknod")

    def mkdir(self, request: Request, path: bytes, mode: int) -> Result[Attr | None]:
        """Make a directory; *mode* may lack S_IFDIR."""
        raise _absent("mkdir")

    def symlink(self, request: Request, path: bytes, target: bytes) -> Result[Attr | None]:
        """Make a symbolic link."""
        raise _absent("symlink")

    def unlink(self, request: Request, path: bytes) -> Result[None]:
        """Remove a name. Who has the file open goes on using it by its handle."""
        raise _absent("unlink")

    def rmdir(self, request: Request, path: bytes) -> Result[None]:
        """Remove an empty directory."""
        raise _absent("rmdir")

    def rename(self, request: Request, path: bytes, newpath: bytes, flags: int) -> Result[None]:
        """Move a file, or a directory with all that is in it; *flags* are among rename_flags."""
        raise _absent("rename")

    def open(self, request: Request, path: bytes, flags: int) -> Result[Any]:
        """Open; return any object as its handle, or an Opened. Not overridden: None."""
        return None

    def create(self, request: Request, path: bytes, mode: int, flags: int) -> Result[tuple[Attr | None, Any]]:
        """Make a file and open it: (Attr or None, what open returns). Not overridden: mknod and open."""
        raise _absent("create")

    def read(self, request: Request, path: bytes, handle: Any, offset: int, size: int) -> Result[ReadResult]:
        """Return at most *size* bytes from *offset*; fewer mean the end of the file."""
        raise _absent("read")

    def write(self, request: Request, path: bytes, handle: Any, offset: int, data: memoryview) -> Result[int]:
        """Write *data*, which is only valid until this returns, and return its length."""
        raise _absent("write")

    def flush(self, request: Request, path: bytes, handle: Any) -> Result[None]:
        """A descriptor was closed; errors are close(2)'s."""
        raise _absent("flush")

    def release(self, request: Request, path: bytes, handle: Any) -> Result[None]:
        """The last descriptor of *handle* is gone; called once."""
        return None

    def fsync(self, request: Request, path: bytes, handle: Any, datasync: int) -> Result[None]:
        """Make the file survive a crash."""
        raise _absent("fsync")

    def fallocate(self, request: Request, path: bytes, handle: Any, mode: int, offset: int, length: int) -> Result[None]:
        """Reserve or free space."""
        raise _absent("fallocate")

    def opendir(self, request: Request, path: bytes, flags: int) -> Result[Any]:
        """Open a directory; as open. Not overridden: None."""
        return None

    def readdir(self, request: Request, path: bytes, handle: Any) -> Result[Names] | AsyncIterable[Listed]:
        """Return everything in the directory; "." and ".." are added. Asked once for each walk through it."""
        raise _absent("readdir")

    def releasedir(self, request: Request, path: bytes, handle: Any) -> Result[None]:
        """The last descriptor of a directory's handle is gone."""
        return None

    def fsyncdir(self, request: Request, path: bytes, handle: Any, datasync: int) -> Result[None]:
        """Make the directory's names survive a crash."""
        raise _absent("fsyncdir")

    def getxattr(self, request: Request, path: bytes, name: bytes) -> Result[Data]:
        """Return a value; ENODATA."""
        raise _absent("getxattr")

    def setxattr(self, request: Request, path: bytes, name: bytes, value: memoryview, flags: int) -> Result[None]:
        """Set a value."""
        raise _absent("setxattr")

    def listxattr(self, request: Request, path: bytes) -> Result[list[bytes]]:
        """Return the names."""
        raise _absent("listxattr")

    def removexattr(self, request: Request, path: bytes, name: bytes) -> Result[None]:
        """Remove a value; ENODATA."""
        raise _absent("removexattr")

    def statfs(self, request: Request, path: bytes) -> Result[StatFs]:
        """Return the totals. Not overridden: zeros."""
        return StatFs()


__all__ = ["Listed", "Names", "PathOperations"]
