"""A filesystem in memory that does what tmpfs does; mm/shmem.c is the authority on what that is.

The kernel is the only one who changes anything, so it may believe what it was told for ever, and asks little: a lookup once
a name, attributes when it has changed them, contents once. Opening needs no request at all.
"""

from __future__ import annotations

import errno
import math
import os
import stat
from typing import Any

from pyfusekit.core import (
    SETXATTR_ACL_KILL_SGID,
    WRITE_CACHE,
    WRITE_KILL_SUIDGID,
    Attr,
    Data,
    Ioctl,
    ReadResult,
    Request,
    Result,
    SetAttr,
    StatFs,
)

from . import acl
from . import flags as inode_flags
from .data import PAGE, PAGE_SHIFT, Contents
from .nodes import INODE_BYTES, XATTR_BYTES, Node, Space, Symlink, now_ns, xattr_bytes
from .options import MemOptions
from .tree import NAME_MAX, Tree, patient

FALLOC_FL_KEEP_SIZE = 0x01
FALLOC_FL_PUNCH_HOLE = 0x02
FALLOC_FL_ZERO_RANGE = 0x10
XATTR_CREATE = 1
XATTR_REPLACE = 2

COPY_BYTES = 8 << 20
"""Most bytes of one copy_file_range: everybody else waits for it, and who wants more asks again."""

_PREFIXES = (b"user.", b"trusted.", b"security.")
_CAPABILITY = b"security.capability"
_NOTHING = SetAttr()
_SET_IDS = stat.S_ISUID | stat.S_ISGID
_IN_PAGE = PAGE - 1


def _pages(offset: int, stop: int) -> tuple[int, int]:
    """Return the number of the first page of a range of bytes, and of the one behind its last."""
    return offset >> PAGE_SHIFT, (stop + _IN_PAGE) >> PAGE_SHIFT


def is_in_group(request: Request, gid: int) -> bool:
    """Say whether the caller is in the group *gid*; a request names only the first of its groups."""
    if request.gid == gid:
        return True
    try:
        with open(f"/proc/{request.pid}/status", encoding="utf-8", errors="replace") as status:
            groups = next(line for line in status if line.startswith("Groups:"))
    except (OSError, StopIteration):
        return False  # in a pid namespace that is not ours, or gone
    return str(gid) in groups.split()[1:]


class MemFS(Tree):
    """A memory filesystem."""

    summary = "A filesystem in memory, gone when it is unmounted."
    Options = MemOptions
    source_use = "optional"

    attr_ttl = entry_ttl = negative_ttl = math.inf
    explicit_inval_data = True  # the page cache holds what was written: a new mtime is no reason to drop it
    stateless_open = True
    stateless_opendir = True
    cache_symlinks = True
    export_support = True
    posix_acl = True
    handle_killpriv = True

    def __init__(self, source: str | None = None, options: MemOptions | None = None) -> None:
        super().__init__(options or MemOptions())

    async def destroy(self) -> None:
        self.nodes.clear()
        self.directories.clear()

    # Attributes.

    def getattr(self, request: Request, ino: int, handle: Any) -> Attr:
        return self.nodes[ino]

    def statx(self, request: Request, ino: int, handle: Any, mask: int) -> Attr:
        return self.nodes[ino]

    def setattr(self, request: Request, ino: int, changes: SetAttr, handle: Any) -> Attr:
        node = self.nodes[ino]
        if self.bound and node.flags & (inode_flags.FLAG_IMMUTABLE | inode_flags.FLAG_APPEND):
            self._check_changeable(node, changes)
        now = now_ns()
        if changes.size is not None:
            self._truncate(node, changes.size)
            node.mtime_ns = now
        if changes.uid is not None:
            node.uid = changes.uid
        if changes.gid is not None:
            node.gid = changes.gid
        if changes.mode is not None:
            self._chmod(node, changes.mode)
        # With HANDLE_KILLPRIV_V2 the kernel takes its own clearing out of a SETATTR and sends what is left: nothing at all,
        # for chown(-1, -1), and before a write, fallocate or copy_file_range to a file that has such bits. NOTE: so anybody's
        # chown(-1, -1) clears them, which tmpfs refuses; not to clear them would leave them to whoever wrote the file.
        if changes.kill_suidgid or changes == _NOTHING:
            self._kill_privileges(request, node)
        if changes.atime_ns is not None:
            node.atime_ns = changes.atime_ns
        if changes.mtime_ns is not None:
            node.mtime_ns = changes.mtime_ns
        node.ctime_ns = now if changes.ctime_ns is None else changes.ctime_ns
        return node

    def _check_changeable(self, node: Node, changes: SetAttr) -> None:
        """Refuse what an immutable or append-only file keeps; an append-only one may be touched."""
        touched = changes.atime_now or changes.mtime_now
        if node.flags & inode_flags.FLAG_IMMUTABLE or not touched:
            raise OSError(errno.EPERM, "immutable or append-only")

    def _chmod(self, node: Node, mode: int) -> None:
        node.mode = stat.S_IFMT(node.mode) | stat.S_IMODE(mode)
        if node.xattrs is not None and acl.ACCESS in node.xattrs:
            node.xattrs[acl.ACCESS] = acl.chmod(node.xattrs[acl.ACCESS], mode)

    def _kill_privileges(self, request: Request, node: Node) -> None:
        """Clear what another's write, or any chown, must not leave behind: suid, sgid, file capabilities.

        Sgid stays where the group may not execute and the caller is in the group (fs/attr.c, setattr_should_drop_sgid).
        """
        mode = node.mode
        if stat.S_ISDIR(mode):
            return
        if mode & stat.S_ISGID and (mode & stat.S_IXGRP or (request.uid and not is_in_group(request, node.gid))):
            mode &= ~stat.S_ISGID
        node.mode = mode & ~stat.S_ISUID
        if node.xattrs is not None and _CAPABILITY in node.xattrs:
            self.space.free_inode_bytes += xattr_bytes(_CAPABILITY, node.xattrs.pop(_CAPABILITY))

    def _truncate(self, node: Node, size: int) -> None:
        if not stat.S_ISREG(node.mode):
            raise OSError(errno.EISDIR if stat.S_ISDIR(node.mode) else errno.EINVAL, "not a regular file")
        # Also to the same size: what was reserved behind the end goes.
        if size <= node.size and node.contents is not None:
            gone = node.contents.punch(size, None)
            self.space.free(gone)
            node.blocks -= gone << 3
        node.size = size

    def readlink(self, request: Request, ino: int) -> bytes:
        node = self.nodes[ino]
        if not isinstance(node, Symlink):
            raise OSError(errno.EINVAL, "not a symbolic link")
        node.accessed()
        return node.target

    # Contents.

    def _contents(self, node: Node) -> Contents:
        """Return what the regular file *node* holds, to be written."""
        if self.bound and node.flags & inode_flags.FLAG_IMMUTABLE:
            raise OSError(errno.EPERM, "immutable")
        contents = node.contents
        if contents is None:
            if not stat.S_ISREG(node.mode):
                raise OSError(errno.EISDIR if stat.S_ISDIR(node.mode) else errno.EINVAL, "not a regular file")
            contents = node.contents = Contents()
        return contents

    def read(self, request: Request, ino: int, handle: Any, offset: int, size: int) -> ReadResult:
        node = self.nodes[ino]
        node.accessed()
        left = node.size - offset
        if left < size:
            if left <= 0:
                return b""
            size = left
        contents = node.contents
        if contents is None:
            contents = Contents()
        return contents.read(offset, size)

    def write(self, request: Request, ino: int, handle: Any, offset: int, data: memoryview) -> Result[int]:
        node = self.nodes[ino]
        contents = node.contents
        if contents is None or self.bound:
            contents = self._contents(node)
        size = len(data)
        stop = offset + size
        space = self.space
        if ((stop + _IN_PAGE) >> PAGE_SHIFT) - (offset >> PAGE_SHIFT) > space.free_pages or not size:
            return self._write_scarce(request, node, offset, data)
        if self.bound and node.flags & inode_flags.FLAG_APPEND and offset < node.size:
            raise OSError(errno.EPERM, "append-only")
        new = contents.write(offset, data)
        if new:
            space.free_pages -= new
            node.blocks += new << 3
        if stop > node.size:
            node.size = stop
        node.mtime_ns = node.ctime_ns = now_ns()
        if request.flags & WRITE_KILL_SUIDGID and (node.mode & _SET_IDS or node.xattrs):
            self._kill_privileges(request, node)
        return size

    def _write_scarce(self, request: Request, node: Node, offset: int, data: memoryview) -> Result[int]:
        """Write *data* when there may not be enough pages: all of it, or what fits, or ENOSPC."""
        if not data:
            return 0
        fits = self._fitting(node, offset, len(data))
        if fits < len(data) and self.orphans:
            return self.later(lambda: self._write_part(request, node, offset, data))
        return self._write_part(request, node, offset, data)

    def _write_part(self, request: Request, node: Node, offset: int, data: memoryview) -> int:
        fits = self._fitting(node, offset, len(data))
        if not fits:
            raise OSError(errno.ENOSPC, "no page left (size)")
        new = self._contents(node).write(offset, data[:fits])
        self.space.free_pages -= new
        node.blocks += new << 3
        node.size = max(node.size, offset + fits)
        node.mtime_ns = node.ctime_ns = now_ns()
        if request.flags & WRITE_KILL_SUIDGID:
            self._kill_privileges(request, node)
        if fits < len(data) and request.flags & WRITE_CACHE:
            # The kernel asks nobody for the rest of a write-back: only an error reaches msync and close.
            raise OSError(errno.ENOSPC, "no page left (size)")
        return fits

    def _fitting(self, node: Node, offset: int, size: int) -> int:
        """Return how many of *size* bytes at *offset* can be written with the pages that are left."""
        contents = self._contents(node)
        free = self.space.free_pages
        first, last = _pages(offset, offset + size)
        for page in range(first, last):
            free -= contents.missing(page, page + 1)
            if free < 0:
                return max((page << PAGE_SHIFT) - offset, 0)
        return size

    @patient
    def fallocate(self, request: Request, ino: int, handle: Any, mode: int, offset: int, length: int) -> None:
        node = self.nodes[ino]
        contents = self._contents(node)
        stop = offset + length
        kind = mode & ~FALLOC_FL_KEEP_SIZE
        if kind == FALLOC_FL_PUNCH_HOLE and mode & FALLOC_FL_KEEP_SIZE:
            gone = contents.punch(offset, stop)
            self.space.free(gone)
            node.blocks -= gone << 3
        elif kind in (0, FALLOC_FL_ZERO_RANGE):
            first, last = _pages(offset, stop)
            if contents.missing(first, last) > self.space.free_pages:
                raise OSError(errno.ENOSPC, "no page left (size)")
            if kind:
                contents.blank(offset, stop)
            new = contents.reserve(first, last)
            self.space.free_pages -= new
            node.blocks += new << 3
            if not mode & FALLOC_FL_KEEP_SIZE and stop > node.size:
                node.size = stop
        else:
            raise OSError(errno.EOPNOTSUPP, f"fallocate mode {mode:#x}")
        node.mtime_ns = node.ctime_ns = now_ns()

    def lseek(self, request: Request, ino: int, handle: Any, offset: int, whence: int) -> int:
        node = self.nodes[ino]
        if offset < 0 or offset >= node.size:
            raise OSError(errno.ENXIO, "behind the end")
        contents = node.contents or Contents()
        if whence == os.SEEK_HOLE:
            return contents.next_hole(offset, node.size)
        if whence != os.SEEK_DATA:
            raise OSError(errno.EINVAL, f"lseek whence {whence}")
        found = contents.next_data(offset, node.size)
        if found is None:
            raise OSError(errno.ENXIO, "no data from here on")
        return found

    @patient
    def copy_file_range(
        self,
        request: Request,
        ino: int,
        handle: Any,
        offset: int,
        ino_out: int,
        handle_out: Any,
        offset_out: int,
        length: int,
        flags: int,
    ) -> int:
        """Copy the bytes; holes stay holes, where the other file had none they become reserved pages."""
        source, target = self.nodes[ino], self.nodes[ino_out]
        into = self._contents(target)
        length = min(length, COPY_BYTES, source.size - offset)
        if length <= 0:
            return 0
        source.accessed()
        copied = 0
        for start, stop, is_data in list((source.contents or Contents()).segments(offset, offset + length)):
            at = offset_out + start - offset
            fits = stop - start
            if is_data and source.contents is not None:
                fits = self._fitting(target, at, stop - start)
                found = source.contents.read(start, fits)
                new = into.write(at, memoryview(b"".join(found) if isinstance(found, list) else bytes(found))) if fits else 0
                self.space.free_pages -= new
                target.blocks += new << 3
            else:
                into.blank(at, at + fits)
            copied += fits
            if fits < stop - start:
                break
        if not copied:
            raise OSError(errno.ENOSPC, "no page left (size)")
        target.size = max(target.size, offset_out + copied)
        target.mtime_ns = target.ctime_ns = now_ns()
        return copied

    # Extended attributes.

    def _check_xattr_name(self, name: bytes) -> None:
        for prefix in _PREFIXES:
            if name.startswith(prefix):
                if name == prefix:
                    raise OSError(errno.EINVAL, "an xattr without a name")
                return
        if name not in (acl.ACCESS, acl.DEFAULT):
            raise OSError(errno.EOPNOTSUPP, "xattrs are user, trusted, security and the ACLs")

    def getxattr(self, request: Request, ino: int, name: bytes) -> Data:
        xattrs = self.nodes[ino].xattrs
        value = xattrs.get(name) if xattrs is not None else None
        if value is None:
            self._check_xattr_name(name)
            raise OSError(errno.ENODATA, "no such xattr")
        return value

    def listxattr(self, request: Request, ino: int) -> list[bytes]:
        """NOTE: who is not root does not see trusted ones; the kernel's own rule asks for CAP_SYS_ADMIN."""
        names = list(self.nodes[ino].xattrs or ())
        return [name for name in names if not name.startswith(b"trusted.")] if request.uid else names

    @patient
    def setxattr(self, request: Request, ino: int, name: bytes, value: memoryview, flags: int) -> None:
        node = self.nodes[ino]
        self._check_xattr_name(name)
        self._check_unbound(node)
        xattrs = node.xattrs if node.xattrs is not None else {}
        old = xattrs.get(name)
        is_acl = name in (acl.ACCESS, acl.DEFAULT)
        used = 0 if is_acl else XATTR_BYTES + len(name) + len(value)
        if used >= self.space.free_inode_bytes:  # NOTE: the last byte is never given out, as in tmpfs
            raise OSError(errno.ENOSPC, "no room for xattrs (nr_inodes)")
        if flags & XATTR_CREATE and old is not None:
            raise OSError(errno.EEXIST, "the xattr is there")
        if flags & XATTR_REPLACE and old is None:
            raise OSError(errno.ENODATA, "no such xattr")
        if is_acl:
            self._set_acl(request, node, name, bytes(value))
            return
        # The old value is given back only now, as in tmpfs.
        self.space.free_inode_bytes -= used if old is None else used - xattr_bytes(name, old)
        xattrs[name] = bytes(value)
        node.xattrs = xattrs
        node.ctime_ns = now_ns()

    def _set_acl(self, request: Request, node: Node, name: bytes, value: bytes) -> None:
        entries = acl.parse(value)
        xattrs = {} if node.xattrs is None else node.xattrs
        if name == acl.DEFAULT:
            if not stat.S_ISDIR(node.mode):
                raise OSError(errno.EACCES, "only directories have a default ACL")
            xattrs[name] = value
        else:
            node.mode = node.mode & ~0o777 | acl.permissions(entries)
            if request.flags & SETXATTR_ACL_KILL_SGID:
                node.mode &= ~stat.S_ISGID
            if acl.is_plain(entries):
                xattrs.pop(name, None)
            else:
                xattrs[name] = value
        node.xattrs = xattrs
        node.ctime_ns = now_ns()

    def removexattr(self, request: Request, ino: int, name: bytes) -> None:
        node = self.nodes[ino]
        self._check_xattr_name(name)
        self._check_unbound(node)
        old = node.xattrs.pop(name, None) if node.xattrs is not None else None
        if old is not None:
            self.space.free_inode_bytes += xattr_bytes(name, old)
        elif name not in (acl.ACCESS, acl.DEFAULT):  # that there is no ACL is what is asked for
            raise OSError(errno.ENODATA, "no such xattr")
        node.ctime_ns = now_ns()

    def _check_unbound(self, node: Node) -> None:
        if self.bound and node.flags & (inode_flags.FLAG_IMMUTABLE | inode_flags.FLAG_APPEND):
            raise OSError(errno.EPERM, "immutable or append-only")

    # The rest.

    def ioctl(self, request: Request, ino: int, handle: Any, cmd: int, arg: int, data: memoryview) -> Ioctl | None:
        node = self.nodes[ino]
        found = inode_flags.encode(cmd, node.flags)
        if found is not None:
            return Ioctl(0, found[: request.size])
        new = inode_flags.decode(cmd, data)
        if new is None:
            raise OSError(errno.ENOTTY, f"ioctl {cmd:#x}")
        bound = inode_flags.FLAG_IMMUTABLE | inode_flags.FLAG_APPEND
        self.bound += bool(new & bound) - bool(node.flags & bound)
        node.flags = new
        node.ctime_ns = now_ns()
        return None

    def statfs(self, request: Request, ino: int) -> Result[StatFs]:
        return self.later(self._totals) if self.orphans else self._totals()

    def _totals(self) -> StatFs:
        space = self.space
        totals = StatFs(namelen=NAME_MAX)
        if space.inode_bytes != Space.UNLIMITED:
            totals.files = space.inode_bytes // INODE_BYTES
            totals.ffree = space.free_inode_bytes // INODE_BYTES
        totals.blocks, totals.bfree = space.pages, space.free_pages
        if space.pages == Space.UNLIMITED:  # then the memory is the limit
            totals.blocks = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> PAGE_SHIFT
            totals.bfree = max(totals.blocks - (space.pages - space.free_pages), 0)
        totals.bavail = totals.bfree
        return totals


__all__ = ["MemFS"]
