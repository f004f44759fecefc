"""A Tree that is a directory of this machine: the real kernel's system calls.

An Actor is a thread that has stopped sharing: raw setresuid and friends change the calling thread only (glibc's wrappers
would change the process), unshare(CLONE_FS) gives it a umask, close_range(CLOSE_RANGE_UNSHARE) a descriptor table of its own
and with it another owner of POSIX locks (the kernel's owner is the table, files_struct).
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import signal
import struct
import threading
from typing import Any

from .tree import UTIME_NOW, UTIME_OMIT, Actor, Dirent, HeldLock, Path, Stat, Totals, Tree

_libc = ctypes.CDLL(None, use_errno=True)
_CLONE_FS = 0x200
_CLOSE_RANGE_UNSHARE = 2
_AT_FDCWD = -100
_AT_SYMLINK_FOLLOW = 0x400
_STATX_BTIME = 0x800
_STATX_MASK_BTIME = struct.Struct("=I76xqI")
"""stx_mask, then stx_btime at offset 80 (struct statx, linux/stat.h)."""
_DIRENT = struct.Struct("=QqHB")
_FLOCK = struct.Struct("@hhqqi4x")
"""struct flock of a 64-bit machine: l_type, l_whence, l_start, l_len, l_pid."""
_UTIME_NSEC = {UTIME_NOW: (1 << 30) - 1, UTIME_OMIT: (1 << 30) - 2}

_SYSCALLS = {
    "x86_64": {"getdents64": 217, "setgroups": 116, "setresgid": 119, "setresuid": 117, "renameat2": 316},
    "aarch64": {"getdents64": 61, "setgroups": 159, "setresgid": 149, "setresuid": 147, "renameat2": 276},
}[os.uname().machine]


def _checked(result: int, what: str = "") -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result


def _syscall(name: str, *args: Any) -> int:
    return _checked(_libc.syscall(ctypes.c_long(_SYSCALLS[name]), *args), name)


def _ignore_signal(number: int, frame: Any) -> None:
    """Do nothing: the signal is only sent to end a system call with EINTR."""


class NativeTree(Tree):
    """The directory *root* of this machine."""

    maps_files = True

    def __init__(self, root: Path) -> None:
        self.root = os.fsencode(root)

    def _at(self, path: Path) -> bytes:
        name = os.fsencode(path)
        return self.root + b"/" + name if name else self.root

    # Processes.

    def actor(self, uid: int = 0, gid: int = 0, groups: tuple[int, ...] = ()) -> Actor:
        signal.signal(signal.SIGUSR1, _ignore_signal)
        signal.siginterrupt(signal.SIGUSR1, True)

        def enter() -> None:
            _checked(_libc.unshare(_CLONE_FS), "unshare")
            _checked(_libc.close_range(3, ctypes.c_uint(0xFFFFFFFF), _CLOSE_RANGE_UNSHARE), "close_range")
            _libc.umask(0o022)
            if os.geteuid() != 0:
                return
            array = (ctypes.c_uint32 * max(1, len(groups)))(*groups)
            _syscall("setgroups", ctypes.c_long(len(groups)), array)
            _syscall("setresgid", ctypes.c_long(gid), ctypes.c_long(gid), ctypes.c_long(gid))
            _syscall("setresuid", ctypes.c_long(uid), ctypes.c_long(uid), ctypes.c_long(uid))

        def leave() -> None:
            # Not left to the thread's end, which is not awaited by join: the kernel takes a thread apart a little later.
            _checked(_libc.close_range(3, ctypes.c_uint(0xFFFFFFFF), 0), "close_range")

        def interrupt(thread: threading.Thread) -> None:
            if thread.ident is not None:
                signal.pthread_kill(thread.ident, signal.SIGUSR1)

        return Actor(f"actor-{uid}", enter, leave, interrupt)

    def umask(self, mask: int) -> int:
        return int(_libc.umask(mask))

    def below(self, path: Path) -> NativeTree:
        return NativeTree(self._at(path))

    def drop_caches(self) -> None:
        with open("/proc/sys/vm/drop_caches", "w", encoding="ascii") as file:
            file.write("3\n")

    # Descriptors.

    def open(self, path: Path, flags: int, mode: int = 0o666) -> int:
        return os.open(self._at(path), flags, mode)

    def close(self, fd: int) -> None:
        os.close(fd)

    def dup(self, fd: int) -> int:
        return os.dup(fd)

    def read(self, fd: int, size: int) -> bytes:
        return os.read(fd, size)

    def write(self, fd: int, data: bytes) -> int:
        return os.write(fd, data)

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        return os.pread(fd, size, offset)

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        return os.pwrite(fd, data, offset)

    def read_direct(self, fd: int, size: int, offset: int) -> bytes:
        with mmap.mmap(-1, size) as buffer:
            return buffer[: os.preadv(fd, [buffer], offset)]

    def lseek(self, fd: int, offset: int, whence: int) -> int:
        return os.lseek(fd, offset, whence)

    def fsync(self, fd: int) -> None:
        os.fsync(fd)

    def fdatasync(self, fd: int) -> None:
        os.fdatasync(fd)

    def ftruncate(self, fd: int, size: int) -> None:
        os.ftruncate(fd, size)

    def fallocate(self, fd: int, mode: int, offset: int, length: int) -> None:
        _checked(_libc.fallocate(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length)), "fallocate")

    def copy_file_range(self, fd_in: int, offset_in: int, fd_out: int, offset_out: int, length: int) -> int:
        return os.copy_file_range(fd_in, fd_out, length, offset_in, offset_out)

    def fstat(self, fd: int) -> Stat:
        return _stat_of(os.fstat(fd))

    def fchmod(self, fd: int, mode: int) -> None:
        os.fchmod(fd, mode)

    def getdents(self, fd: int, size: int = 4096) -> list[Dirent]:
        buffer = ctypes.create_string_buffer(size)
        length = _syscall("getdents64", ctypes.c_long(fd), buffer, ctypes.c_long(size))
        data = buffer.raw[:length]
        entries = []
        position = 0
        while position < length:
            ino, offset, reclen, kind = _DIRENT.unpack_from(data, position)
            name = data[position + _DIRENT.size : position + reclen]
            entries.append(Dirent(name[: name.index(0)], ino, offset, kind))
            position += reclen
        return entries

    def link_fd(self, fd: int, path: Path) -> None:
        # By /proc: AT_EMPTY_PATH asks for CAP_DAC_READ_SEARCH.
        source = f"/proc/self/task/{threading.get_native_id()}/fd/{fd}".encode()
        _checked(_libc.linkat(_AT_FDCWD, source, _AT_FDCWD, self._at(path), _AT_SYMLINK_FOLLOW), "linkat")

    # Locks: not through the fcntl module, whose calls begin again after a signal.

    def _fcntl_lock(self, fd: int, command: int, type: int, start: int, length: int) -> tuple[int, int, int, int]:
        buffer = ctypes.create_string_buffer(_FLOCK.pack(type, os.SEEK_SET, start, length, 0), _FLOCK.size)
        _checked(_libc.fcntl(fd, command, buffer), "fcntl")
        kind, _, begin, span, pid = _FLOCK.unpack(buffer.raw)
        return kind, begin, span, pid

    def posix_lock(self, fd: int, type: int, start: int = 0, length: int = 0, *, wait: bool = False) -> None:
        self._fcntl_lock(fd, fcntl.F_SETLKW if wait else fcntl.F_SETLK, type, start, length)

    def posix_getlk(self, fd: int, type: int, start: int = 0, length: int = 0) -> HeldLock | None:
        kind, begin, span, pid = self._fcntl_lock(fd, fcntl.F_GETLK, type, start, length)
        return None if kind == fcntl.F_UNLCK else HeldLock(kind, begin, span, pid)

    def ofd_lock(self, fd: int, type: int, start: int = 0, length: int = 0, *, wait: bool = False) -> None:
        self._fcntl_lock(fd, fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK, type, start, length)

    def flock(self, fd: int, operation: int) -> None:
        _checked(_libc.flock(fd, operation), "flock")

    # Names.

    def stat(self, path: Path, *, follow: bool = True) -> Stat:
        return _stat_of(os.stat(self._at(path), follow_symlinks=follow))

    def btime_ns(self, path: Path) -> int | None:
        buffer = ctypes.create_string_buffer(256)
        _checked(_libc.statx(_AT_FDCWD, self._at(path), 0, _STATX_BTIME, buffer), "statx")
        mask, seconds, nanoseconds = _STATX_MASK_BTIME.unpack_from(buffer.raw)
        return int(seconds * 1_000_000_000 + nanoseconds) if mask & _STATX_BTIME else None

    def access(self, path: Path, mode: int) -> bool:
        return os.access(self._at(path), mode)

    def mkdir(self, path: Path, mode: int = 0o777) -> None:
        os.mkdir(self._at(path), mode)

    def rmdir(self, path: Path) -> None:
        os.rmdir(self._at(path))

    def unlink(self, path: Path) -> None:
        os.unlink(self._at(path))

    def rename(self, old: Path, new: Path, flags: int = 0) -> None:
        at = ctypes.c_long(_AT_FDCWD)
        _syscall("renameat2", at, self._at(old), at, self._at(new), ctypes.c_long(flags))

    def link(self, old: Path, new: Path) -> None:
        os.link(self._at(old), self._at(new), follow_symlinks=False)

    def symlink(self, target: Path, path: Path) -> None:
        os.symlink(os.fsencode(target), self._at(path))

    def readlink(self, path: Path) -> bytes:
        return os.readlink(self._at(path))

    def mknod(self, path: Path, mode: int, rdev: int = 0) -> None:
        os.mknod(self._at(path), mode, rdev)

    def chmod(self, path: Path, mode: int) -> None:
        os.chmod(self._at(path), mode)

    def chown(self, path: Path, uid: int, gid: int, *, follow: bool = True) -> None:
        os.chown(self._at(path), uid, gid, follow_symlinks=follow)

    def truncate(self, path: Path, size: int) -> None:
        os.truncate(self._at(path), size)

    def utimens(self, path: Path, atime_ns: int, mtime_ns: int, *, follow: bool = True) -> None:
        times = b"".join(
            struct.pack("@ll", 0, _UTIME_NSEC[ns]) if ns in _UTIME_NSEC else struct.pack("@ll", *divmod(ns, 1_000_000_000))
            for ns in (atime_ns, mtime_ns)
        )
        flags = 0 if follow else 0x100
        _checked(_libc.utimensat(_AT_FDCWD, self._at(path), times, flags), "utimensat")

    def statfs(self, path: Path = "") -> Totals:
        value = os.statvfs(self._at(path))
        return Totals(
            bsize=value.f_bsize,
            frsize=value.f_frsize,
            blocks=value.f_blocks,
            bfree=value.f_bfree,
            bavail=value.f_bavail,
            files=value.f_files,
            ffree=value.f_ffree,
            namelen=value.f_namemax,
        )

    # Extended attributes.

    def _getxattr(self, path: Path, name: Path, buffer: Any, size: int, follow: bool) -> int:
        call = _libc.getxattr if follow else _libc.lgetxattr
        call.restype = ctypes.c_ssize_t
        return _checked(call(self._at(path), os.fsencode(name), buffer, ctypes.c_size_t(size)), "getxattr")

    def getxattr(self, path: Path, name: Path, size: int = 65536, *, follow: bool = True) -> bytes:
        buffer = ctypes.create_string_buffer(size)
        length = self._getxattr(path, name, buffer, size, follow)
        return buffer.raw[:length]

    def getxattr_size(self, path: Path, name: Path) -> int:
        return self._getxattr(path, name, None, 0, True)

    def setxattr(self, path: Path, name: Path, value: bytes, flags: int = 0, *, follow: bool = True) -> None:
        os.setxattr(self._at(path), os.fsencode(name), value, flags, follow_symlinks=follow)

    def listxattr(self, path: Path, *, follow: bool = True) -> list[bytes]:
        return [os.fsencode(name) for name in os.listxattr(self._at(path), follow_symlinks=follow)]

    def removexattr(self, path: Path, name: Path, *, follow: bool = True) -> None:
        os.removexattr(self._at(path), os.fsencode(name), follow_symlinks=follow)

    # Memory.

    def mmap(self, fd: int, length: int, *, shared: bool = True, writable: bool = False) -> Any:
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        return mmap.mmap(fd, length, mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE, protection)


def _stat_of(value: os.stat_result) -> Stat:
    return Stat(
        ino=value.st_ino,
        mode=value.st_mode,
        nlink=value.st_nlink,
        uid=value.st_uid,
        gid=value.st_gid,
        rdev=value.st_rdev,
        size=value.st_size,
        blocks=value.st_blocks,
        blksize=value.st_blksize,
        atime_ns=value.st_atime_ns,
        mtime_ns=value.st_mtime_ns,
        ctime_ns=value.st_ctime_ns,
    )


__all__ = ["NativeTree"]
