"""A Tree behind the fake kernel: processes, and what is said of files (fs/attr.c, fs/xattr.c, fs/fuse/xattr.c)."""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ...core import abi
from ..tree import (
    UTIME_NOW,
    UTIME_OMIT,
    Actor,
    Path,
    Stat,
    Totals,
)
from .mount import ACCESS_ACL, MAY_READ, MAY_WRITE, parse_acl
from .names import FakeNames
from .node import Inode, Process
from .opening import fail, stat_of

DEFAULT_ACL = b"system.posix_acl_default"
XATTR_SIZE_MAX = 65536
_STATX_BTIME = 0x800
_STATX_ALL = 0xFFF


class FakeTree(FakeNames):
    """The tree of a FakeMount below *root*."""

    counts_requests = True

    # Processes.

    def actor(self, uid: int = 0, gid: int = 0, groups: tuple[int, ...] = ()) -> Actor:
        process = Process(uid, gid, groups)

        def leave() -> None:
            for fd in list(process.files):
                self.close(fd)

        def interrupt(thread: threading.Thread) -> None:
            self.mount.interrupt(process)

        return Actor(f"actor-{uid}", lambda: self.mount.become(process), leave, interrupt)

    def umask(self, mask: int) -> int:
        process = self.mount.process
        old, process.umask = process.umask, mask & 0o777
        return old

    def below(self, path: Path) -> FakeTree:
        return FakeTree(self.mount, self._at(path))

    def drop_caches(self) -> None:
        self.mount.drop_caches()

    # Attributes.

    def readlink(self, path: Path) -> bytes:
        with self.mount.verb():
            inode = self.mount.walk(self._at(path), follow=False).node
            if not inode.is_link:
                raise fail(errno.EINVAL, path)
            return self.mount.readlink(inode)

    def stat(self, path: Path, *, follow: bool = True) -> Stat:
        with self.mount.verb():
            return stat_of(self.mount.refresh(self.mount.walk(self._at(path), follow=follow).node))

    def btime_ns(self, path: Path) -> int | None:
        with self.mount.verb():
            inode = self.mount.walk(self._at(path)).node
            if inode.btime_ns is None or time.monotonic() >= inode.fresh_until:
                try:
                    reply = self.mount.ask(abi.STATX, inode, sx_mask=_STATX_ALL).fields
                except OSError as error:
                    if error.errno != errno.ENOSYS:
                        raise
                    return None
                if not reply["stat_mask"] & _STATX_BTIME:
                    return None
                inode.btime_ns = reply["stat_btime_tv_sec"] * 1_000_000_000 + reply["stat_btime_tv_nsec"]
                if stat.S_IFMT(reply["stat_mode"]) != inode.kind or reply["stat_ino"] != inode.nodeid:
                    self.kernel.complaints.append(f"STATX: mode {reply['stat_mode']:o}, ino {reply['stat_ino']}")
            return inode.btime_ns

    def access(self, path: Path, mode: int) -> bool:
        with self.mount.verb():
            try:
                inode = self.mount.walk(self._at(path)).node
                if mode:
                    self.mount.permit(inode, mode, asks_access=True)
            except OSError:
                return False
            return True

    def chmod(self, path: Path, mode: int) -> None:
        with self.mount.verb():
            self._chmod(self.mount.walk(self._at(path)).node, mode)

    def fchmod(self, fd: int, mode: int) -> None:
        with self.mount.verb():
            self._chmod(self._file(fd).inode, mode)

    def _chmod(self, inode: Inode, mode: int) -> None:
        self.mount.want_write()
        with inode.lock:
            self.mount.refresh(inode)
            if self.mount.checks_permissions:
                if not self.mount.is_owner(inode):
                    raise fail(errno.EPERM)
                if not self.mount.process.is_root and not self.mount.process.is_in(inode.gid):
                    mode &= ~stat.S_ISGID
            self.set_attributes(inode, {"mode": inode.kind | mode & 0o7777})

    def chown(self, path: Path, uid: int, gid: int, *, follow: bool = True) -> None:
        with self.mount.verb():
            inode = self.mount.walk(self._at(path), follow=follow).node
            self.mount.want_write()
            with inode.lock:
                self.mount.refresh(inode)
                process = self.mount.process
                if self.mount.checks_permissions and not process.is_root:
                    keeps_owner = uid in (-1, inode.uid)
                    may_give = gid == -1 or gid == inode.gid or process.is_in(gid)
                    if process.uid != inode.uid or not keeps_owner or not may_give:
                        raise fail(errno.EPERM)
                changes = {name: value for name, value in (("uid", uid), ("gid", gid)) if value != -1}
                mode = inode.mode
                self.set_attributes(inode, changes, kills=not inode.is_dir and bool(mode & 0o6000))

    def truncate(self, path: Path, size: int) -> None:
        with self.mount.verb():
            if size < 0:
                raise fail(errno.EINVAL)
            inode = self.mount.walk(self._at(path)).node
            if not inode.is_regular:
                raise fail(errno.EISDIR if inode.is_dir else errno.EINVAL)
            self.mount.permit(inode, MAY_WRITE)
            self._truncate(inode, size)

    def utimens(self, path: Path, atime_ns: int, mtime_ns: int, *, follow: bool = True) -> None:
        with self.mount.verb():
            if atime_ns == mtime_ns == UTIME_OMIT:
                return
            inode = self.mount.walk(self._at(path), follow=follow).node
            self.mount.want_write()
            with inode.lock:
                if self.mount.checks_permissions and not self.mount.is_owner(inode):
                    if atime_ns != UTIME_NOW or mtime_ns != UTIME_NOW:
                        raise fail(errno.EPERM)
                    self.mount.permit(inode, MAY_WRITE)
                changes: dict[str, int] = {}
                for name, value in (("atime", atime_ns), ("mtime", mtime_ns)):
                    if value == UTIME_OMIT:
                        continue
                    if value == UTIME_NOW:
                        changes[f"{name}_now"] = 0
                        value = time.time_ns()
                    changes[name], changes[f"{name}nsec"] = divmod(value, 1_000_000_000)
                self.set_attributes(inode, changes)

    def statfs(self, path: Path = "") -> Totals:
        with self.mount.verb():
            fields = self.mount.ask(abi.STATFS, self.mount.walk(self._at(path)).node).fields
            return Totals(**{name: fields[f"st_{name}"] for name in Totals.__slots__})

    # Extended attributes.

    def _permit_xattr(self, inode: Inode, name: bytes, mask: int) -> None:
        """fs/xattr.c xattr_permission."""
        if mask & MAY_WRITE:
            self.mount.want_write()
        if not name or len(name) > 255:
            raise fail(errno.ERANGE)
        if name.startswith((b"security.", b"system.")):
            if name.startswith(b"security.") and mask & MAY_WRITE and not self.mount.process.is_root:
                raise fail(errno.EPERM)
            return
        if name.startswith(b"trusted."):
            if not self.mount.process.is_root:
                raise fail(errno.EPERM if mask & MAY_WRITE else errno.ENODATA)
            return
        if name.startswith(b"user.") and not inode.is_regular and not inode.is_dir:
            raise fail(errno.EPERM if mask & MAY_WRITE else errno.ENODATA)
        self.mount.permit(inode, mask)

    @contextmanager
    def _xattr_verb(self, path: Path, name: bytes, follow: bool, mask: int) -> Iterator[Inode]:
        with self.mount.verb():
            inode = self.mount.walk(self._at(path), follow=follow).node
            is_acl = name in (ACCESS_ACL, DEFAULT_ACL)
            if is_acl and inode.is_link:
                raise fail(errno.EOPNOTSUPP)
            if is_acl and mask & MAY_WRITE:
                self.mount.want_write()
                if not self.mount.is_owner(inode):
                    raise fail(errno.EPERM)
            if not is_acl:
                self._permit_xattr(inode, name, mask)
            try:
                yield inode
            except OSError as error:
                if error.errno == errno.ENOSYS:
                    raise fail(errno.EOPNOTSUPP) from error
                raise
            if mask & MAY_WRITE:
                inode.stale()

    def getxattr(self, path: Path, name: Path, size: int = 65536, *, follow: bool = True) -> bytes:
        key = os.fsencode(name)
        with self._xattr_verb(path, key, follow, MAY_READ) as inode:
            return self.mount.ask(abi.GETXATTR, inode, names=[key], size=min(size, XATTR_SIZE_MAX)).data

    def getxattr_size(self, path: Path, name: Path) -> int:
        key = os.fsencode(name)
        with self._xattr_verb(path, key, True, MAY_READ) as inode:
            return int(self.mount.ask(abi.GETXATTR, inode, names=[key], size=0).fields["size"])

    def setxattr(self, path: Path, name: Path, value: bytes, flags: int = 0, *, follow: bool = True) -> None:
        key = os.fsencode(name)
        if flags & ~3:
            raise fail(errno.EINVAL)
        if len(key) > 255 or not key:
            raise fail(errno.ERANGE)
        if len(value) > XATTR_SIZE_MAX:
            raise fail(errno.E2BIG)
        with self._xattr_verb(path, key, follow, MAY_WRITE) as inode, inode.lock:
            extra = 0
            if key in (ACCESS_ACL, DEFAULT_ACL):
                check_acl(value)
                if key == DEFAULT_ACL and not inode.is_dir:
                    raise fail(errno.EACCES)
                if not parse_acl(value):
                    self.mount.ask(abi.REMOVEXATTR, inode, names=[key])
                    return
                process = self.mount.process
                if key == ACCESS_ACL and not process.is_root and not process.is_in(self.mount.refresh(inode).gid):
                    extra = abi.SETXATTR_ACL_KILL_SGID
            self.mount.ask(abi.SETXATTR, inode, names=[key], data=value, size=len(value), flags=flags, setxattr_flags=extra)

    def listxattr(self, path: Path, *, follow: bool = True) -> list[bytes]:
        with self.mount.verb():
            inode = self.mount.walk(self._at(path), follow=follow).node
            try:
                size = self.mount.ask(abi.LISTXATTR, inode, size=0).fields["size"]
                data = self.mount.ask(abi.LISTXATTR, inode, size=size).data if size else b""
            except OSError as error:
                if error.errno == errno.ENOSYS:
                    raise fail(errno.EOPNOTSUPP) from error
                raise
            if data and not data.endswith(b"\0"):
                self.kernel.complaints.append("LISTXATTR: the last name is not terminated")
                raise fail(errno.EIO)
            return data.split(b"\0")[:-1]

    def removexattr(self, path: Path, name: Path, *, follow: bool = True) -> None:
        key = os.fsencode(name)
        with self._xattr_verb(path, key, follow, MAY_WRITE) as inode, inode.lock:
            try:
                self.mount.ask(abi.REMOVEXATTR, inode, names=[key])
            except OSError as error:
                if key not in (ACCESS_ACL, DEFAULT_ACL) or error.errno != errno.ENODATA:
                    raise

    # Memory.

    def mmap(self, fd: int, length: int, *, shared: bool = True, writable: bool = False) -> Any:
        raise fail(errno.ENODEV, "the fake kernel has no memory")


def check_acl(value: bytes) -> None:
    """Raise EINVAL for an ACL that is not valid (fs/posix_acl.c posix_acl_valid)."""
    entries = parse_acl(value)
    order = [tag for tag, _, _ in entries]
    singles = [order.count(tag) for tag in (0x01, 0x04, 0x20)]
    is_extended = 0x02 in order or 0x08 in order
    if entries and (
        order != sorted(order)
        or singles != [1, 1, 1]
        or order.count(0x10) != (1 if is_extended else order.count(0x10))
        or order.count(0x10) > 1
        or any(perms & ~7 for _, perms, _ in entries)
        or any(tag not in (1, 2, 4, 8, 16, 32) for tag in order)
    ):
        raise fail(errno.EINVAL)


__all__ = ["FakeTree", "check_acl"]
