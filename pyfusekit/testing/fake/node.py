"""What the kernel keeps of a filesystem: inodes, names, open files, processes."""

from __future__ import annotations

import itertools
import stat
import threading
from typing import Any

_numbers = itertools.count(1)
"""Process ids, lock owners: any numbers that differ."""


class Process:
    """Who calls: credentials, umask, descriptors; and the owner of its POSIX locks."""

    def __init__(self, uid: int = 0, gid: int = 0, groups: tuple[int, ...] = ()) -> None:
        self.pid = 100_000 + next(_numbers)
        self.uid = uid
        self.gid = gid
        self.groups = groups
        self.umask = 0o022
        self.files: dict[int, OpenFile] = {}
        self.owner = 0x1000_0000_0000 + next(_numbers)
        self.waiting: Any = None
        """The request, or the local lock, that it sleeps in."""

    @property
    def is_root(self) -> bool:
        """Root has every capability, others have none."""
        return self.uid == 0

    def is_in(self, gid: int) -> bool:
        """Say whether the process belongs to a group."""
        return gid == self.gid or gid in self.groups


class Inode:
    """A node the server told us of."""

    def __init__(self, nodeid: int, generation: int, mode: int) -> None:
        self.nodeid = nodeid
        self.generation = generation
        self.kind = stat.S_IFMT(mode)
        self.mode = mode
        self.nlink = self.uid = self.gid = self.rdev = self.size = self.blocks = self.blksize = 0
        self.atime_ns = self.mtime_ns = self.ctime_ns = 0
        self.btime_ns: int | None = None
        self.fresh_until = 0.0
        """Until when the attributes hold, on time.monotonic()."""
        self.version = 0
        """Raised by each change made here, so that an older answer is not believed."""
        self.acl: bytes | None = None
        """system.posix_acl_access; b"" is none, None is not asked."""
        self.names: set[Dentry] = set()
        self.opens = 0
        self.busy = 0
        """Verbs under way that hold it."""
        self.is_linkable = False
        """Made by O_TMPFILE without O_EXCL."""
        self.is_bad = False
        self.lock = threading.RLock()
        """i_rwsem: held while a directory is changed or a file is written."""

    @property
    def is_dir(self) -> bool:
        return self.kind == stat.S_IFDIR

    @property
    def is_link(self) -> bool:
        return self.kind == stat.S_IFLNK

    @property
    def is_regular(self) -> bool:
        return self.kind == stat.S_IFREG

    def take(self, attr: dict[str, Any], prefix: str, fresh_until: float) -> None:
        """Believe the fields of a fuse_attr until *fresh_until*."""
        for field in ("nlink", "uid", "gid", "rdev", "size", "blocks", "mode"):
            setattr(self, field, attr[prefix + field])
        self.blksize = attr[prefix + "blksize"] or 4096
        for field in ("atime", "mtime", "ctime"):
            setattr(self, field + "_ns", attr[prefix + field] * 1_000_000_000 + attr[prefix + field + "nsec"])
        self.fresh_until = fresh_until

    def stale(self) -> None:
        """Have the attributes asked again."""
        self.version += 1
        self.fresh_until = 0.0
        self.acl = None


class Dentry:
    """A name in a directory; one without an inode says that there is no such name."""

    def __init__(self, parent: Dentry | None, name: bytes, inode: Inode | None, fresh_until: float) -> None:
        self.parent = parent
        self.name = name
        self.inode = inode
        self.fresh_until = fresh_until
        self.children: dict[bytes, Dentry] = {}
        self.opens = 0
        if inode is not None:
            inode.names.add(self)

    @property
    def node(self) -> Inode:
        """The inode of a name that is there."""
        assert self.inode is not None
        return self.inode

    def is_below(self, other: Dentry) -> bool:
        """Say whether *other* is this directory or one above it."""
        at: Dentry | None = self
        while at is not None:
            if at is other:
                return True
            at = at.parent
        return False

    def detach(self) -> None:
        """Take the name out of its directory; what is below stays reachable for who has it open."""
        if self.parent is not None and self.parent.children.get(self.name) is self:
            del self.parent.children[self.name]

    def drop(self) -> list[Inode]:
        """Forget the name and all below that is not open; return the inodes that lost a name."""
        lost = []
        for child in list(self.children.values()):
            lost += child.drop()
        if not self.opens and not self.children and self.parent is not None:
            self.detach()
            if self.inode is not None:
                self.inode.names.discard(self)
                lost.append(self.inode)
        return lost


class OpenFile:
    """An open file description: shared by duplicated descriptors, owner of OFD locks and flocks."""

    def __init__(self, dentry: Dentry, inode: Inode, flags: int, fh: int, open_flags: int, has_handle: bool) -> None:
        self.dentry = dentry
        self.inode = inode
        self.flags = flags
        self.fh = fh
        self.open_flags = open_flags
        self.has_handle = has_handle
        """The server was asked to open, so it is to be asked to release."""
        self.offset = 0
        self.descriptors = 1
        self.owner = 0x2000_0000_0000 + next(_numbers)
        self.has_flock = False
        self.lock = threading.RLock()

    @property
    def reads(self) -> bool:
        return self.flags & 3 in (0, 2)

    @property
    def writes(self) -> bool:
        return self.flags & 3 in (1, 2)


__all__ = ["Dentry", "Inode", "OpenFile", "Process"]
