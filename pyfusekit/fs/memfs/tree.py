"""The tree: names, the nodes they mean, and how these come and go."""

from __future__ import annotations

import errno
import functools
import os
import stat
from collections.abc import Callable
from itertools import count
from typing import Any, Concatenate, ParamSpec, TypeVar

from pyfusekit.core import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    RENAME_WHITEOUT,
    ROOT_ID,
    Attr,
    Entries,
    Filesystem,
    Request,
    Result,
)

from . import acl
from .flags import FLAG_APPEND, FLAG_IMMUTABLE
from .nodes import INODE_BYTES, LINK_MAX, Directory, DirectoryTable, Node, NodeTable, Space, Symlink, now_ns
from .options import MemOptions

NAME_MAX = 255
INLINE_SYMLINK = 127
"""A longer target takes a page (mm/shmem.c, SHORT_SYMLINK_LEN)."""
TURNS = 8
"""Turns of the loop in which forgets that wait in the kernel are read."""

_BOUND = FLAG_IMMUTABLE | FLAG_APPEND

P = ParamSpec("P")
S = TypeVar("S", bound="Tree")
T = TypeVar("T")


def patient(method: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], Result[T]]:
    """Make a handler that finds no space try again when the forgets were read that the kernel has in its queue.

    A file that lost its last name counts until it is forgotten, as it may be open. The kernel queues the forget in the very
    system call that gives the file up, but hands out requests before forgets: without this, who removes a file and writes
    another would now and then be told ENOSPC. *method* must leave nothing behind when it raises that.
    """

    @functools.wraps(method)
    def handler(self: S, /, *args: P.args, **kwargs: P.kwargs) -> Result[T]:
        try:
            return method(self, *args, **kwargs)
        except OSError as error:
            if error.errno != errno.ENOSPC or not self.orphans:
                raise
        return self.later(functools.partial(method, self, *args, **kwargs))

    return handler


class Tree(Filesystem):
    """The part of a memory filesystem that names files; what is in them is the business of its subclass."""

    def __init__(self, options: MemOptions) -> None:
        memory_pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 12
        size = memory_pages // 2 * 4096 if options.size is None else options.size
        nr_inodes = memory_pages // 2 if options.nr_inodes is None else options.nr_inodes
        self.space = Space(size, nr_inodes)
        self.nodes = NodeTable()
        self.directories = DirectoryTable()
        """INVARIANT: the directories among nodes."""
        self.orphans = 0
        """How many nodes have no name any more and wait to be forgotten."""
        self.bound = 0
        """How many nodes are immutable or append-only. While there are none, nobody looks."""
        self._numbers = count(ROOT_ID + 1)  # never used again, so that (ino, generation) tells files apart for ever
        uid = os.geteuid() if options.uid is None else options.uid
        gid = os.getegid() if options.gid is None else options.gid
        root = Directory(ROOT_ID, stat.S_IFDIR | options.mode & 0o7777, uid, gid, None)
        root.nlookup = 1
        self.nodes[ROOT_ID] = self.directories[ROOT_ID] = root
        self.space.take_inode()

    async def later(self, call: Callable[[], T]) -> T:
        """Call *call* when the forgets that are in the kernel's queue have been read."""
        import asyncio  # here, so that the options can be shown without it

        for _ in range(TURNS):
            if not self.orphans:
                break
            await asyncio.sleep(0)
        return call()

    # Finding and forgetting.

    def lookup(self, request: Request, parent: int, name: bytes) -> Attr | None:
        entry = self.directories[parent].entries.get(name) if name != b"." else None
        if entry is None:
            return self._lookup_special(parent, name)
        node = entry[0]
        node.nlookup += 1
        return node

    def _lookup_special(self, parent: int, name: bytes) -> Attr | None:
        if len(name) > NAME_MAX:
            raise OSError(errno.ENAMETOOLONG, "name of more than 255 bytes")
        if name == b".":
            node = self.nodes[parent]
            if not node.nlink:
                raise OSError(errno.ESTALE, f"node {parent} has no name any more")
        elif name == b"..":
            node = self.directories[parent].parent
        else:
            return None
        node.nlookup += 1
        return node

    def entered(self, ino: int) -> None:
        self.nodes[ino].nlookup += 1

    def forget(self, ino: int, nlookup: int) -> None:
        node = self.nodes.get(ino)
        if node is None:
            return
        node.nlookup -= nlookup
        if node.nlookup <= 0 and not node.nlink:
            self._evict(node)

    def _evict(self, node: Node) -> None:
        """Let go of a node that has neither names nor lookups."""
        self.orphans -= 1
        if node.flags & _BOUND:
            self.bound -= 1
        self.space.give_back(node)
        del self.nodes[node.ino]
        self.directories.pop(node.ino, None)

    def _unname(self, node: Node) -> None:
        """Note that *node* has lost a name, its last one when nlink is 0 now."""
        if node.nlink:
            self.space.free_inode_bytes += INODE_BYTES  # a further name counts like an inode
            return
        self.orphans += 1
        if node.nlookup <= 0:
            self._evict(node)

    # Making.

    def place_for(self, parent: int, name: bytes) -> Directory:
        """Return the directory *parent* if it may get the *name*, which it has not."""
        directory = self.directories[parent]
        if name in directory.entries:
            raise OSError(errno.EEXIST, "the name is taken")
        if len(name) > NAME_MAX:
            raise OSError(errno.ENAMETOOLONG, "name of more than 255 bytes")
        if not directory.nlink:
            raise OSError(errno.ENOENT, "the directory was removed")
        if self.bound and directory.flags & FLAG_IMMUTABLE:
            raise OSError(errno.EPERM, "the directory is immutable")
        return directory

    def _settle(self, node: Node, directory: Directory, umask: int) -> None:
        """Give a new node what it has from its directory: group, permissions, ACLs (fs/inode.c, inode_init_owner)."""
        if directory.mode & stat.S_ISGID:
            node.gid = directory.gid
            if stat.S_ISDIR(node.mode):
                node.mode |= stat.S_ISGID
        default = directory.xattrs.get(acl.DEFAULT) if directory.xattrs is not None else None
        if default is None:
            node.mode &= ~umask
        else:
            node.mode, access = acl.inherit(default, node.mode)
            node.xattrs = {} if access is None else {acl.ACCESS: access}
            if stat.S_ISDIR(node.mode):
                node.xattrs[acl.DEFAULT] = default
        self.nodes[node.ino] = node
        node.nlookup = 1

    @patient
    def mknod(self, request: Request, parent: int, name: bytes, mode: int, rdev: int, umask: int) -> Attr:
        directory = self.place_for(parent, name)
        self.space.take_inode()
        if not stat.S_IFMT(mode):
            mode |= stat.S_IFREG
        node = Node(next(self._numbers), mode, request.uid, request.gid, rdev)
        self._settle(node, directory, umask)
        directory.add(name, node)
        directory.mtime_ns = directory.ctime_ns = node.ctime_ns
        return node

    @patient
    def mkdir(self, request: Request, parent: int, name: bytes, mode: int, umask: int) -> Attr:
        directory = self.place_for(parent, name)
        if directory.nlink >= LINK_MAX:
            raise OSError(errno.EMLINK, "too many directories in a directory")
        self.space.take_inode()
        node = Directory(next(self._numbers), stat.S_IFDIR | mode & 0o7777, request.uid, request.gid, directory)
        self._settle(node, directory, umask)
        self.directories[node.ino] = node
        directory.add(name, node)
        directory.nlink += 1
        directory.mtime_ns = directory.ctime_ns = node.ctime_ns
        return node

    @patient
    def symlink(self, request: Request, parent: int, name: bytes, target: bytes) -> Attr:
        directory = self.place_for(parent, name)
        space = self.space
        pages = 1 if len(target) > INLINE_SYMLINK else 0
        if space.free_pages < pages:
            raise OSError(errno.ENOSPC, "no page left (size)")
        space.take_inode()
        space.free_pages -= pages
        node = Symlink(next(self._numbers), stat.S_IFLNK | 0o777, request.uid, request.gid, target)
        node.blocks = pages << 3
        if directory.mode & stat.S_ISGID:
            node.gid = directory.gid
        self.nodes[node.ino] = node
        node.nlookup = 1
        directory.add(name, node)
        directory.mtime_ns = directory.ctime_ns = node.ctime_ns
        return node

    @patient
    def tmpfile(self, request: Request, parent: int, mode: int, umask: int, flags: int) -> tuple[Attr, Any]:
        directory = self.directories[parent]
        if not directory.nlink:
            raise OSError(errno.ENOENT, "the directory was removed")
        self.space.take_inode()
        node = Node(next(self._numbers), stat.S_IFREG | mode & 0o7777, request.uid, request.gid, 0)
        self._settle(node, directory, umask)
        node.nlink = 0
        self.orphans += 1
        return node, None

    @patient
    def link(self, request: Request, ino: int, newparent: int, newname: bytes) -> Attr:
        node = self.nodes[ino]
        directory = self.place_for(newparent, newname)
        if stat.S_ISDIR(node.mode) or (self.bound and node.flags & _BOUND):
            raise OSError(errno.EPERM, "no further name for this one")
        if node.nlink >= LINK_MAX:
            raise OSError(errno.EMLINK, "too many names")
        if node.nlink:
            self.space.take_inode()
        else:
            self.orphans -= 1  # an O_TMPFILE gets its name; its inode is counted already
        node.nlink += 1
        node.nlookup += 1
        directory.add(newname, node)
        directory.mtime_ns = directory.ctime_ns = node.ctime_ns = now_ns()
        return node

    # Removing.

    def _named(self, parent: int, name: bytes) -> tuple[Directory, Node]:
        directory = self.directories[parent]
        entry = directory.entries.get(name)
        if entry is None:
            raise OSError(errno.ENOENT, "no such name")
        if self.bound and (directory.flags | entry[0].flags) & _BOUND:
            raise OSError(errno.EPERM, "immutable or append-only")
        return directory, entry[0]

    def unlink(self, request: Request, parent: int, name: bytes) -> None:
        directory, node = self._named(parent, name)
        if stat.S_ISDIR(node.mode):
            raise OSError(errno.EISDIR, "a directory")
        directory.remove(name)
        node.nlink -= 1
        directory.mtime_ns = directory.ctime_ns = node.ctime_ns = now_ns()
        self._unname(node)

    def rmdir(self, request: Request, parent: int, name: bytes) -> None:
        directory, node = self._named(parent, name)
        if not isinstance(node, Directory):
            raise OSError(errno.ENOTDIR, "not a directory")
        if node.entries:
            raise OSError(errno.ENOTEMPTY, "not empty")
        directory.remove(name)
        node.nlink = 0
        directory.nlink -= 1
        directory.mtime_ns = directory.ctime_ns = node.ctime_ns = now_ns()
        self._unname(node)

    # Renaming.

    @patient
    def rename(self, request: Request, parent: int, name: bytes, newparent: int, newname: bytes, flags: int) -> None:
        if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE | RENAME_WHITEOUT):
            raise OSError(errno.EINVAL, f"rename flags {flags:#x}")
        if flags & RENAME_EXCHANGE and flags != RENAME_EXCHANGE:
            raise OSError(errno.EINVAL, "an exchange neither refuses nor leaves anything")
        if len(newname) > NAME_MAX:
            raise OSError(errno.ENAMETOOLONG, "name of more than 255 bytes")
        old, node = self._named(parent, name)
        new = self.directories[newparent]
        if isinstance(node, Directory) and node.holds(new):
            raise OSError(errno.EINVAL, "a directory cannot move into itself")
        target = None
        if newname in new.entries:
            target = self._named(newparent, newname)[1]
        elif self.bound and new.flags & FLAG_IMMUTABLE:
            raise OSError(errno.EPERM, "the directory is immutable")
        if flags & RENAME_EXCHANGE:
            self._exchange(old, name, node, new, newname, target)
            return
        if target is not None and flags & RENAME_NOREPLACE:
            raise OSError(errno.EEXIST, "the name is taken")
        if target is node:
            return
        if not new.nlink:
            raise OSError(errno.ENOENT, "the directory was removed")
        self._check_replaceable(node, target)
        whiteout = self._whiteout(request, old) if flags & RENAME_WHITEOUT else None
        self._move(old, name, node, new, newname, target)
        if whiteout is not None:
            old.add(name, whiteout)

    def _check_replaceable(self, node: Node, target: Node | None) -> None:
        if isinstance(target, Directory):
            if not isinstance(node, Directory):
                raise OSError(errno.EISDIR, "a directory is replaced by directories only")
            if target.entries:
                raise OSError(errno.ENOTEMPTY, "not empty")
        elif target is not None and isinstance(node, Directory):
            raise OSError(errno.ENOTDIR, "a directory replaces directories only")

    def _whiteout(self, request: Request, directory: Directory) -> Node:
        """Make what overlayfs takes for "nothing here": a character device 0:0, without permissions."""
        self.space.take_inode()
        node = Node(next(self._numbers), stat.S_IFCHR, request.uid, request.gid, 0)
        self._settle(node, directory, 0)
        node.nlookup = 0  # nobody asked for it
        return node

    def _move(self, old: Directory, name: bytes, node: Node, new: Directory, newname: bytes, target: Node | None) -> None:
        old.remove(name)
        if target is None:
            new.add(newname, node)
        else:
            new.replace(newname, node)
        now = now_ns()
        old.mtime_ns = old.ctime_ns = new.mtime_ns = new.ctime_ns = node.ctime_ns = now
        if isinstance(node, Directory):
            old.nlink -= 1
            new.nlink += 1
            node.parent = new
        if target is not None:
            target.ctime_ns = now
            if isinstance(target, Directory):
                target.nlink = 0
                new.nlink -= 1
            else:
                target.nlink -= 1
            self._unname(target)

    def _exchange(self, old: Directory, name: bytes, node: Node, new: Directory, newname: bytes, target: Node | None) -> None:
        if target is None:
            raise OSError(errno.ENOENT, "nothing to exchange with")
        if isinstance(target, Directory) and target.holds(old):
            raise OSError(errno.EINVAL, "a directory cannot move into itself")
        old.replace(name, target)
        new.replace(newname, node)
        if isinstance(node, Directory):
            old.nlink -= 1
            new.nlink += 1
            node.parent = new
        if isinstance(target, Directory):
            new.nlink -= 1
            old.nlink += 1
            target.parent = old
        now = now_ns()
        old.mtime_ns = old.ctime_ns = new.mtime_ns = new.ctime_ns = node.ctime_ns = target.ctime_ns = now

    # Listing.

    def readdir(self, request: Request, ino: int, handle: Any, offset: int) -> Entries:
        directory = self.directories[ino]
        directory.accessed()
        return directory.listing(offset, attrs=False)

    def readdirplus(self, request: Request, ino: int, handle: Any, offset: int) -> Entries:
        directory = self.directories[ino]
        directory.accessed()
        return directory.listing(offset, attrs=True)


__all__ = ["NAME_MAX", "Tree", "patient"]
