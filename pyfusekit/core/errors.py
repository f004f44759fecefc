"""The core's exceptions, and the errno an exception stands for.

PyfusekitError            everything the core raises by itself
  ProtocolError           bytes that are not what the protocol says; logged, never raised out of a session
  MountError              mounting or unmounting failed; carries what a person needs to mend it
  DeadlockError           a notification that would wait for the very request that sends it
"""

from __future__ import annotations

import errno

_ERRNO_OF_TYPE: tuple[tuple[type[BaseException], int], ...] = (
    (FileNotFoundError, errno.ENOENT),
    (FileExistsError, errno.EEXIST),
    (PermissionError, errno.EACCES),
    (NotADirectoryError, errno.ENOTDIR),
    (IsADirectoryError, errno.EISDIR),
    (InterruptedError, errno.EINTR),
    (BlockingIOError, errno.EAGAIN),
    (TimeoutError, errno.ETIMEDOUT),
    (ConnectionRefusedError, errno.ECONNREFUSED),
    (ConnectionResetError, errno.ECONNRESET),
    (BrokenPipeError, errno.EPIPE),
    (ConnectionAbortedError, errno.ECONNABORTED),
)

MAX_ERRNO = 511
"""The largest errno the kernel takes in a reply; it leaves the request hanging for anything else (fs/fuse/dev.c)."""


class PyfusekitError(Exception):
    """What the core raises by itself."""


class ProtocolError(PyfusekitError):
    """A message that is not what the FUSE protocol says it should be."""


class DeadlockError(PyfusekitError):
    """A notification was awaited by the handler whose reply the kernel needs before it can take the notification."""


class MountError(PyfusekitError):
    """Mounting or unmounting failed.

    *kind* names the case for programs (see the constants of core/mount.py), the message the cause and *remedy* what to do
    about it, both for people; *errno* is the system's, where it said one.
    """

    def __init__(self, message: str, *, kind: str, remedy: str = "", errno: int | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.remedy = remedy
        self.errno = errno


def errno_of(exc: BaseException) -> int | None:
    """Return the errno a handler's exception stands for, from 1 to MAX_ERRNO, or None when it is a bug (answered EIO).

    A bare ``FileNotFoundError("x")`` has no errno; its type says enough. An errno out of the kernel's range is EIO.
    """
    if not isinstance(exc, OSError):
        return None
    number = exc.errno
    if isinstance(number, int):
        return number if 1 <= number <= MAX_ERRNO else errno.EIO
    for kind, meant in _ERRNO_OF_TYPE:
        if isinstance(exc, kind):
            return meant
    return None


__all__ = ["MAX_ERRNO", "DeadlockError", "MountError", "ProtocolError", "PyfusekitError", "errno_of"]
