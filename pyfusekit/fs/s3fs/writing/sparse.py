"""Files with holes, and files without a name: what Python's os has no call for."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from typing import Any

_PUNCH = 0x1 | 0x2  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE of linux/falloc.h
_ZEROS = bytes(1 << 20)


def link(fd: int, path: str) -> None:
    """Give an open file, perhaps one without a name, the name *path* on the same filesystem."""
    # With a directory descriptor Python takes linkat(2), which follows the link in /proc; link(2) does not.
    directory = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.link(f"/proc/self/fd/{fd}", path, src_dir_fd=directory, follow_symlinks=True)
    finally:
        os.close(directory)


def punch(fd: int, start: int, end: int) -> None:
    """Make the bytes [start, end) of a file zero, and free them where its filesystem can. Its size stays, or grows to *end*."""
    if _fallocate()(fd, _PUNCH, start, end - start) == 0:
        return
    while start < end:
        start += os.pwrite(fd, memoryview(_ZEROS)[: end - start], start)


@functools.cache
def _fallocate() -> Callable[[int, int, int, int], int]:
    """Return fallocate(2)."""
    function: Any = ctypes.CDLL(None).fallocate
    function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    found: Callable[[int, int, int, int], int] = function
    return found


__all__ = ["link", "punch"]
