"""The files of a memory filesystem, the table that finds them by number, and the account of what they use."""

from __future__ import annotations

import errno
import stat
import time
from bisect import bisect_right
from collections.abc import Iterator

from pyfusekit.core import Attr, DirEntry

from .acl import ACCESS, DEFAULT
from .data import PAGE_SHIFT, Contents

INODE_BYTES = 1024
"""What an inode, and every further name of one, counts in the account of inodes (mm/shmem.c, BOGO_INODE_SIZE)."""
XATTR_BYTES = 40
"""What an xattr counts beside its name and its value (fs/xattr.c, simple_xattr_space)."""
DIRENT_BYTES = 20
"""What a name adds to its directory's st_size; "." and ".." are names too (mm/shmem.c, BOGO_DIRENT_SIZE)."""
BLKSIZE = 1 << 16
"""st_blksize. NOTE: tmpfs says 4096; stdio and Python write in pieces of this size, and here every piece is a request."""
LINK_MAX = 2**32 - 1
"""The protocol's nlink has 32 bits."""

now_ns = time.time_ns


class Node(Attr):
    """A file of any type: its attributes, and what belongs to them. Handing out its attributes builds nothing."""

    __slots__ = ("contents", "flags", "nlookup", "xattrs")

    def __init__(self, ino: int, mode: int, uid: int, gid: int, rdev: int) -> None:
        self.ino = ino
        self.mode = mode
        self.nlink = 1
        self.uid = uid
        self.gid = gid
        self.rdev = rdev
        self.size = 0
        self.blocks = 0
        self.blksize = BLKSIZE
        self.atime_ns = self.mtime_ns = self.ctime_ns = self.btime_ns = now_ns()
        self.generation = 0
        self.entry_ttl = None
        self.attr_ttl = None
        self.nlookup = 0
        """What the kernel knows the node by. INVARIANT: a node with neither names nor lookups is not in the table."""
        self.flags = 0
        self.contents: Contents | None = None
        """A regular file's bytes, once there are any."""
        self.xattrs: dict[bytes, bytes] | None = None
        """By whole name, the two ACLs among them. INVARIANT: the access ACL agrees with mode, and says more than it."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.ino} {stat.filemode(self.mode)} nlink={self.nlink} nlookup={self.nlookup}>"

    def accessed(self) -> None:
        """Note a read, as relatime does: when the file changed since the last one, or a day has passed."""
        now = now_ns()
        atime = self.atime_ns
        if atime <= self.mtime_ns or atime <= self.ctime_ns or now - atime >= 86_400_000_000_000:
            self.atime_ns = now


class Symlink(Node):
    """A symbolic link."""

    __slots__ = ("target",)

    def __init__(self, ino: int, mode: int, uid: int, gid: int, target: bytes) -> None:
        super().__init__(ino, mode, uid, gid, 0)
        self.target = target
        self.size = len(target)


class Directory(Node):
    """A directory: names, each with a cookie that is its own for as long as the name lives.

    Cookies grow, and a dict keeps the order in which names came, so the dict is in the order of cookies. For reading there
    is beside it a list of cookies and one of names, made when first needed. Names that came since are found at the end of
    the dict, names that went stay in the lists until they are half of them: so a walk never meets a name twice nor misses
    one that stays, removing costs the same in a large directory as in a small one, and nothing depends on who is reading.
    """

    __slots__ = ("_cookies", "_names", "_next_cookie", "entries", "parent")

    def __init__(self, ino: int, mode: int, uid: int, gid: int, parent: Directory | None) -> None:
        super().__init__(ino, mode, uid, gid, 0)
        self.nlink = 2
        self.size = 2 * DIRENT_BYTES
        self.parent = self if parent is None else parent
        self.entries: dict[bytes, tuple[Node, int]] = {}
        """name -> (node, cookie). INVARIANT: in the order of cookies."""
        self._next_cookie = 3  # behind "." and ".."
        self._cookies: list[int] = []
        self._names: list[bytes] = []

    def add(self, name: bytes, node: Node) -> None:
        """Give *node* the *name*, which is free."""
        cookie = self._next_cookie
        self._next_cookie = cookie + 1
        self.entries[name] = (node, cookie)
        self.size += DIRENT_BYTES

    def replace(self, name: bytes, node: Node) -> None:
        """Let *name*, which there is, mean *node*; whoever is reading sees it as the same entry."""
        self.entries[name] = (node, self.entries[name][1])

    def remove(self, name: bytes) -> None:
        """Take the name away."""
        del self.entries[name]
        self.size -= DIRENT_BYTES

    def holds(self, directory: Directory) -> bool:
        """Say whether *directory* is this one or below it."""
        while directory is not self:
            if directory.parent is directory:
                return False
            directory = directory.parent
        return True

    def listing(self, offset: int, *, attrs: bool) -> Iterator[DirEntry]:
        """Yield the entries behind the cookie *offset*, with their attributes when *attrs*."""
        if offset < 1:
            yield DirEntry(b".", self.ino, self.mode, 1)
        if offset < 2:
            yield DirEntry(b"..", self.parent.ino, self.parent.mode, 2)
        self._catch_up()
        cookies = self._cookies
        entries = self.entries
        names = self._names
        for at in range(bisect_right(cookies, offset), len(cookies)):
            name = names[at]
            entry = entries.get(name)
            if entry is None or entry[1] != cookies[at]:
                continue
            node = entry[0]
            yield DirEntry(name, node.ino, node.mode, cookies[at], node if attrs else None)

    def _catch_up(self) -> None:
        cookies, names, entries = self._cookies, self._names, self.entries
        if len(names) > 2 * len(entries) + 64:
            self._names = list(entries)
            self._cookies = [cookie for _, cookie in entries.values()]
            return
        last = cookies[-1] if cookies else 0
        if last == self._next_cookie - 1:
            return
        came: list[tuple[bytes, int]] = []
        for name, (_, cookie) in reversed(entries.items()):
            if cookie <= last:
                break
            came.append((name, cookie))
        came.reverse()
        names.extend([name for name, _ in came])
        cookies.extend([cookie for _, cookie in came])


class NodeTable(dict[int, Node]):
    """Node id -> node, of every file that has a name or that the kernel knows; ESTALE for another id."""

    def __missing__(self, ino: int) -> Node:
        raise OSError(errno.ESTALE, f"node {ino} is gone")


class DirectoryTable(dict[int, Directory]):
    """Node id -> directory, of those in the table of nodes; ENOTDIR for another id."""

    def __missing__(self, ino: int) -> Directory:
        raise OSError(errno.ENOTDIR, f"node {ino} is not a directory")


class Space:
    """What may still be used: pages of data, and inodes in the bytes that tmpfs reckons them in."""

    __slots__ = ("_untrimmed", "free_inode_bytes", "free_pages", "inode_bytes", "pages")

    UNLIMITED = 1 << 62
    TRIM_PAGES = 16384
    """After so many freed pages, 64 MiB, the C library is told to return memory: it keeps what lies between other things."""

    def __init__(self, size: int, nr_inodes: int) -> None:
        self.pages = (size + (1 << PAGE_SHIFT) - 1) >> PAGE_SHIFT or self.UNLIMITED
        self.free_pages = self.pages
        self.inode_bytes = nr_inodes * INODE_BYTES or self.UNLIMITED
        self.free_inode_bytes = self.inode_bytes
        self._untrimmed = 0

    def free(self, pages: int) -> None:
        """Count pages that went out of use, and whose memory is free."""
        self.free_pages += pages
        self._untrimmed += pages
        if self._untrimmed >= self.TRIM_PAGES:
            self._untrimmed = 0
            return_memory()

    def take_inode(self) -> None:
        """Count an inode, or another name of one; ENOSPC."""
        if self.free_inode_bytes < INODE_BYTES:
            raise OSError(errno.ENOSPC, "no inode left (nr_inodes)")
        self.free_inode_bytes -= INODE_BYTES

    def give_back(self, node: Node) -> None:
        """Count what *node*, which is going, had in use."""
        node.contents = None
        self.free(node.blocks >> 3)
        self.free_inode_bytes += INODE_BYTES
        if node.xattrs:
            self.free_inode_bytes += sum(xattr_bytes(name, value) for name, value in node.xattrs.items())


def return_memory() -> None:
    """Return free memory to the system, where the C library can be told to: glibc; 4 ms for 64 MiB."""
    import ctypes

    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def xattr_bytes(name: bytes, value: bytes) -> int:
    """Return what an xattr counts in the account of inodes; ACLs count nothing."""
    return 0 if name in (ACCESS, DEFAULT) else XATTR_BYTES + len(name) + len(value)


__all__ = [
    "BLKSIZE",
    "DIRENT_BYTES",
    "INODE_BYTES",
    "LINK_MAX",
    "XATTR_BYTES",
    "Directory",
    "DirectoryTable",
    "Node",
    "NodeTable",
    "Space",
    "Symlink",
    "now_ns",
    "return_memory",
    "xattr_bytes",
]
