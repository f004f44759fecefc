"""Files that the kernel reads and writes by itself: FUSE passthrough (Linux 6.9, fs/fuse/backing.c, passthrough.c).

``open`` answers ``Opened(handle, backing=Backing(device_fd, fd))`` and no read, write or mmap of that open file comes back.
The kernel keeps one mode a node: while it is open with a backing file, every other open of it needs the same Backing.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable
from fcntl import ioctl
from types import TracebackType

from . import abi

_MAP = struct.Struct("=iIQ")
_ID = struct.Struct("=I")

_CAUSES = {
    errno.EPERM: "passthrough was not agreed on, or the process has no CAP_SYS_ADMIN in the first user namespace",
    errno.EISDIR: "a directory cannot be a backing file",
    errno.EINVAL: "only a regular file can be a backing file",
    errno.ELOOP: "the backing file lies on a filesystem stacked higher than max_stack_depth allows",
    errno.EOPNOTSUPP: "this kernel is built without passthrough",
    errno.ENOTTY: "this kernel knows no backing files",
    errno.EBADF: "the file to back with is not open",
}


class Backing:
    """A file registered with the kernel; a context manager around its id.

    *device* returns the connection's descriptor, *fd* is the file, which may be closed afterwards. Reads and writes will be
    done with the credentials of the caller of this constructor. OSError says why not, see the table above. Open files keep
    their backing by themselves: :meth:`close` may follow as soon as the reply to open was sent, and does not disturb them.
    """

    __slots__ = ("_device", "id")

    def __init__(self, device: Callable[[], int], fd: int) -> None:
        self._device = device
        self.id = 0
        """The backing id, above 0; 0 when closed."""
        try:
            # The id is what ioctl(2) returns, which fcntl.ioctl only hands on when the buffer is a writable one.
            self.id = ioctl(device(), abi.DEV_IOC_BACKING_OPEN, bytearray(_MAP.pack(fd, 0, 0)))
        except OSError as error:
            number = error.errno or errno.EIO
            raise OSError(number, _CAUSES.get(number) or os.strerror(number)) from None

    def close(self) -> None:
        """Give the id back. Again, or when the mount is gone, is nothing."""
        if not self.id:
            return
        number, self.id = self.id, 0
        try:
            ioctl(self._device(), abi.DEV_IOC_BACKING_CLOSE, bytearray(_ID.pack(number)))
        except OSError as error:
            # ENOENT: the connection was aborted, which gave all ids back. EBADF, EPERM: it is closed, or was never mounted.
            if error.errno not in (errno.ENOENT, errno.EBADF, errno.EPERM, errno.ENODEV):
                raise

    def __enter__(self) -> Backing:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Backing(id={self.id})"


__all__ = ["Backing"]
