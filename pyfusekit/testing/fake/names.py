"""Making, removing and moving names, through the fake kernel (fs/namei.c, fs/fuse/dir.c)."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ...core import abi
from ..tree import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    RENAME_WHITEOUT,
    Path,
)
from .handles import FakeHandles
from .mount import MAY_EXEC, MAY_READ, MAY_WRITE
from .node import Dentry, Inode
from .opening import fail

DEFAULT_ACL = b"system.posix_acl_default"
XATTR_SIZE_MAX = 65536
_STATX_BTIME = 0x800
_STATX_ALL = 0xFFF


class FakeNames(FakeHandles):
    """The verbs that change directories."""

    # Making and removing names.

    @contextmanager
    def _new_name(self, path: Path, *, directory: bool = False) -> Iterator[tuple[Dentry, Dentry]]:
        """Hold a directory for a name that must not be there; give the directory's dentry and the name's (filename_create)."""
        with self.mount.verb():
            parent, name, slash = self.mount.walk_for_change(self._at(path))
            if name in (b"", b".", b".."):
                raise fail(errno.EEXIST, path)
            with parent.node.lock:
                self.mount.permit(parent.node, MAY_EXEC)
                dentry = self.mount.child(parent, name, forced=True)
                if dentry.inode is not None:
                    raise fail(errno.EEXIST, path)
                if slash and not directory:
                    raise fail(errno.ENOENT, path)
                self.mount.want_write()
                if parent.node is not self.mount.root.inode and not parent.node.names:
                    raise fail(errno.ENOENT, path)
                self.mount.permit(parent.node, MAY_WRITE | MAY_EXEC)
                yield parent, dentry

    def _make(self, parent: Dentry, dentry: Dentry, opcode: int, **arguments: Any) -> None:
        try:
            entry = self.mount.ask(opcode, parent.node, **arguments).fields
        except OSError:
            # What the name means is no longer sure.
            self.mount.invalidate(dentry)
            raise
        parent.node.stale()
        self.mount.place(parent, dentry.name, entry)

    def mkdir(self, path: Path, mode: int = 0o777) -> None:
        with self._new_name(path, directory=True) as (parent, dentry):
            mode = self.masked(mode & 0o1777)
            self._make(parent, dentry, abi.MKDIR, names=[dentry.name], mode=mode, umask=self.mount.process.umask)

    def mknod(self, path: Path, mode: int, rdev: int = 0) -> None:
        kind = stat.S_IFMT(mode) or stat.S_IFREG
        if kind == stat.S_IFDIR:
            raise fail(errno.EPERM)
        if kind not in (stat.S_IFREG, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK):
            raise fail(errno.EINVAL)
        with self._new_name(path) as (parent, dentry):
            if kind in (stat.S_IFCHR, stat.S_IFBLK) and not self.mount.process.is_root:
                raise fail(errno.EPERM)
            device = _packed_device(rdev) if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0
            self._make(
                parent,
                dentry,
                abi.MKNOD,
                names=[dentry.name],
                mode=self.masked(kind | mode & 0o7777),
                rdev=device,
                umask=self.mount.process.umask,
            )

    def symlink(self, target: Path, path: Path) -> None:
        aim = os.fsencode(target)
        if not aim:
            raise fail(errno.ENOENT)
        if len(aim) > 4095:
            raise fail(errno.ENAMETOOLONG)
        with self._new_name(path) as (parent, dentry):
            self._make(parent, dentry, abi.SYMLINK, names=[dentry.name, aim])

    def link(self, old: Path, new: Path) -> None:
        with self.mount.verb():
            self._link(self.mount.walk(self._at(old), follow=False).node, new)

    def link_fd(self, fd: int, path: Path) -> None:
        self._link(self._file(fd).inode, path)

    def _link(self, inode: Inode, path: Path) -> None:
        with self._new_name(path) as (parent, dentry):
            self.mount.refresh(inode)
            if not self.mount.is_owner(inode):
                self._must_be_safe_to_link(inode)
            if inode.is_dir:
                raise fail(errno.EPERM)
            if inode.nlink == 0 and not inode.is_linkable:
                raise fail(errno.ENOENT)
            try:
                entry = self.mount.ask(abi.LINK, parent.node, oldnodeid=inode.nodeid, names=[dentry.name]).fields
            except OSError as error:
                self.mount.invalidate(dentry)
                raise fail(errno.EPERM if error.errno == errno.ENOSYS else error.errno or errno.EIO) from error
            parent.node.stale()
            self.mount.place(parent, dentry.name, entry)

    def _must_be_safe_to_link(self, inode: Inode) -> None:
        """fs/namei.c may_linkat, with /proc/sys/fs/protected_hardlinks on."""
        exposed = inode.mode & stat.S_ISUID or inode.mode & 0o2010 == 0o2010
        if not inode.is_regular or exposed:
            raise fail(errno.EPERM)
        try:
            self.mount.permit(inode, MAY_READ | MAY_WRITE)
        except PermissionError:
            raise fail(errno.EPERM) from None

    def _may_delete(self, parent: Dentry, victim: Inode) -> None:
        self.mount.want_write()
        directory = parent.node
        self.mount.permit(directory, MAY_WRITE | MAY_EXEC)
        process = self.mount.process
        self.mount.refresh(victim)
        if directory.mode & stat.S_ISVTX and not process.is_root and process.uid not in (victim.uid, directory.uid):
            raise fail(errno.EPERM)

    def unlink(self, path: Path) -> None:
        self._remove(path, abi.UNLINK)

    def rmdir(self, path: Path) -> None:
        self._remove(path, abi.RMDIR)

    def _remove(self, path: Path, opcode: int) -> None:
        with self.mount.verb():
            parent, name, slash = self.mount.walk_for_change(self._at(path))
            if name in (b".", b"..", b""):
                if opcode == abi.UNLINK:
                    raise fail(errno.EISDIR)
                raise fail({b".": errno.EINVAL, b"..": errno.ENOTEMPTY, b"": errno.EBUSY}[name])
            with parent.node.lock:
                self.mount.permit(parent.node, MAY_EXEC)
                dentry = self.mount.child(parent, name)
                inode = dentry.inode
                if inode is None:
                    raise fail(errno.ENOENT, path)
                if opcode == abi.UNLINK and slash:
                    raise fail(errno.EISDIR if inode.is_dir else errno.ENOTDIR)
                self._may_delete(parent, inode)
                if opcode == abi.UNLINK and inode.is_dir:
                    raise fail(errno.EISDIR)
                if opcode == abi.RMDIR and not inode.is_dir:
                    raise fail(errno.ENOTDIR)
                self._ask_remove(opcode, parent, dentry)

    def _ask_remove(self, opcode: int, parent: Dentry, dentry: Dentry) -> None:
        inode = dentry.node
        try:
            self.mount.ask(opcode, parent.node, names=[dentry.name])
        except OSError as error:
            if error.errno in (errno.EINTR, errno.ENOENT):
                self.mount.invalidate(dentry)
            raise
        parent.node.stale()
        self._unname(dentry)
        inode.stale()
        inode.nlink = 0 if inode.is_dir else max(0, inode.nlink - 1)

    def _unname(self, dentry: Dentry) -> None:
        """The name is gone; whoever has the file open keeps it."""
        for child in list(dentry.children.values()):
            self.mount.lose(*child.drop())
        dentry.detach()
        inode = dentry.node
        if not dentry.opens:
            inode.names.discard(dentry)
        self.mount.lose(inode)

    # Renaming.

    def rename(self, old: Path, new: Path, flags: int = 0) -> None:
        if flags & ~7 or (flags & RENAME_EXCHANGE and flags & (RENAME_NOREPLACE | RENAME_WHITEOUT)):
            raise fail(errno.EINVAL)
        with self.mount.verb():
            parent, name, slash = self.mount.walk_for_change(self._at(old))
            newparent, newname, newslash = self.mount.walk_for_change(self._at(new))
            if name in (b"", b".", b"..") or newname in (b"", b".", b".."):
                raise fail(errno.EBUSY)
            first, second = sorted((parent.node, newparent.node), key=id)
            with first.lock, second.lock:
                for directory in (parent, newparent):
                    self.mount.permit(directory.node, MAY_EXEC)
                source = self.mount.child(parent, name)
                if source.inode is None:
                    raise fail(errno.ENOENT, old)
                target = self.mount.child(newparent, newname, forced=True)
                self._check_rename(parent, source, newparent, target, flags, slash, newslash)
                if source.inode is target.inode:
                    return
                self._ask_rename(parent, source, newparent, target, flags)

    def _check_rename(
        self, parent: Dentry, source: Dentry, newparent: Dentry, target: Dentry, flags: int, slash: bool, newslash: bool
    ) -> None:
        """What do_renameat2 and vfs_rename check before asking."""
        inode, replaced = source.node, target.inode
        if flags & RENAME_NOREPLACE and replaced is not None:
            raise fail(errno.EEXIST)
        if flags & RENAME_EXCHANGE:
            if replaced is None:
                raise fail(errno.ENOENT)
            if newslash and not replaced.is_dir:
                raise fail(errno.ENOTDIR)
        if not inode.is_dir and (slash or (newslash and not flags & RENAME_EXCHANGE)):
            raise fail(errno.ENOTDIR)
        if newparent.is_below(source):
            raise fail(errno.EINVAL)
        if replaced is not None and parent.is_below(target):
            raise fail(errno.EINVAL if flags & RENAME_EXCHANGE else errno.ENOTEMPTY)
        if inode is replaced:
            return
        self._may_delete(parent, inode)
        if replaced is None:
            self.mount.permit(newparent.node, MAY_WRITE | MAY_EXEC)
        else:
            self._may_delete(newparent, replaced)
            if not flags & RENAME_EXCHANGE and inode.is_dir != replaced.is_dir:
                raise fail(errno.ENOTDIR if inode.is_dir else errno.EISDIR)
        if parent is not newparent:
            # A directory's ".." changes.
            if inode.is_dir:
                self.mount.permit(inode, MAY_WRITE)
            if flags & RENAME_EXCHANGE and replaced is not None and replaced.is_dir:
                self.mount.permit(replaced, MAY_WRITE)
        if flags & RENAME_WHITEOUT and not self.mount.process.is_root:
            raise fail(errno.EPERM)

    def _ask_rename(self, parent: Dentry, source: Dentry, newparent: Dentry, target: Dentry, flags: int) -> None:
        names = [source.name, target.name]
        inode, replaced = source.node, target.inode
        try:
            if flags:
                self.mount.ask(abi.RENAME2, parent.node, names=names, newdir=newparent.node.nodeid, flags=flags)
            else:
                self.mount.ask(abi.RENAME, parent.node, names=names, newdir=newparent.node.nodeid)
        except OSError as error:
            if flags and error.errno == errno.ENOSYS:
                raise fail(errno.EINVAL) from error
            if error.errno in (errno.EINTR, errno.ENOENT):
                self.mount.invalidate(source)
                self.mount.invalidate(target)
            raise
        for directory in (parent.node, newparent.node):
            directory.stale()
        inode.stale()
        source.detach()
        target.detach()
        if replaced is not None:
            replaced.stale()
            if flags & RENAME_EXCHANGE:
                self._move(target, parent, source.name)
            else:
                replaced.nlink = 0 if replaced.is_dir else max(0, replaced.nlink - 1)
                self._unname(target)
        self._move(source, newparent, target.name)

    @staticmethod
    def _move(dentry: Dentry, parent: Dentry, name: bytes) -> None:
        dentry.parent, dentry.name = parent, name
        parent.children[name] = dentry


def _packed_device(device: int) -> int:
    """Return the 32 bits of a device number on the wire (new_encode_dev)."""
    major, minor = os.major(device), os.minor(device)
    return (minor & 0xFF) | (major << 8) | ((minor & ~0xFF) << 12)


__all__ = ["FakeNames"]
