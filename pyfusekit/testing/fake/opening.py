"""Opening and closing, through the fake kernel (fs/open.c, fs/fuse/file.c fuse_file_open, fs/fuse/dir.c fuse_create_open)."""

from __future__ import annotations

import errno
import os
import stat

from ...core import abi
from ..tree import Path, Stat, Tree
from .mount import MAY_EXEC, MAY_READ, MAY_WRITE, FakeMount
from .node import Dentry, Inode, OpenFile, Process

PAGE = 4096
MAX_BYTES = (1 << 63) - 1
O_LARGEFILE = 0o100000
_TMPFILE_BIT = os.O_TMPFILE & ~os.O_DIRECTORY


def fail(number: int, what: object = "") -> OSError:
    """Return the OSError of an errno."""
    return OSError(number, os.strerror(number), what)


class FakeOpening(Tree):
    """The verbs that take or give descriptors."""

    def __init__(self, mount: FakeMount, root: bytes = b"") -> None:
        self.mount = mount
        self.kernel = mount.kernel
        self.root = root

    def _at(self, path: Path) -> bytes:
        name = os.fsencode(path)
        return self.root + b"/" + name if name and self.root else name or self.root

    def _file(self, fd: int) -> OpenFile:
        file = self.mount.process.files.get(fd)
        if file is None:
            raise fail(errno.EBADF, fd)
        return file

    # Opening.

    def open(self, path: Path, flags: int, mode: int = 0o666) -> int:
        with self.mount.verb() as process:
            if flags & _TMPFILE_BIT:
                file = self._open_tmpfile(self._at(path), flags, mode)
            elif flags & os.O_CREAT:
                file = self._open_or_create(self._at(path), flags, mode)
            else:
                dentry = self.mount.walk(self._at(path), follow=not flags & os.O_NOFOLLOW)
                file = self._open_known(dentry, flags)
            return self._install(process, file)

    @staticmethod
    def _install(process: Process, file: OpenFile) -> int:
        fd = next(number for number in range(3, 1 << 20) if number not in process.files)
        process.files[fd] = file
        return fd

    def _open_or_create(self, path: bytes, flags: int, mode: int) -> OpenFile:
        parent, name, slash = self.mount.walk_for_change(path)
        for _ in range(40):
            if slash or name in (b"", b".", b".."):
                raise fail(errno.EISDIR, path)
            directory = parent.node
            self.mount.permit(directory, MAY_EXEC)
            with directory.lock:
                dentry = self.mount.child(parent, name)
                if dentry.inode is None:
                    return self._create(parent, dentry, flags, mode)
            inode = dentry.node
            if flags & os.O_EXCL:
                raise fail(errno.EEXIST, path)
            if not inode.is_link or flags & os.O_NOFOLLOW:
                return self._open_known(dentry, flags)
            parent, name, slash = self.mount.follow_last(parent, inode)
        raise fail(errno.ELOOP, path)

    def _create(self, parent: Dentry, dentry: Dentry, flags: int, mode: int) -> OpenFile:
        """Make the file, in one request where the server can (fuse_create_open)."""
        directory, name = parent.node, dentry.name
        self.mount.want_write()
        if directory.nlink == 0 and directory.fresh_until:
            raise fail(errno.ENOENT, name)
        self.mount.permit(directory, MAY_WRITE | MAY_EXEC)
        mode = self.masked(stat.S_IFREG | mode & 0o7777)
        try:
            reply = self.mount.ask(
                abi.CREATE,
                directory,
                names=[name],
                mode=mode,
                umask=self.mount.process.umask,
                flags=(flags | O_LARGEFILE) & ~os.O_NOCTTY,
                open_flags=self._open_kill(flags),
            ).fields
        except OSError as error:
            if error.errno != errno.ENOSYS:
                self.mount.invalidate(dentry)
                raise
        else:
            made = self.mount.place(parent, name, reply, "entry_")
            directory.stale()
            file = self._describe(made, flags, reply["open_fh"], reply["open_open_flags"], True)
            if flags & os.O_TRUNC:
                made.node.stale()
            return file
        entry = self.mount.ask(abi.MKNOD, directory, names=[name], mode=mode, rdev=0, umask=self.mount.process.umask).fields
        directory.stale()
        return self._open_handle(self.mount.place(parent, name, entry), flags & ~os.O_TRUNC)

    def masked(self, mode: int) -> int:
        """Apply the umask, unless the server does (DONT_MASK)."""
        return mode if self.kernel.has(abi.DONT_MASK) else mode & ~self.mount.process.umask

    def _open_kill(self, flags: int) -> int:
        kills = self.kernel.has(abi.HANDLE_KILLPRIV_V2) and flags & os.O_TRUNC and not self.mount.process.is_root
        return abi.OPEN_KILL_SUIDGID if kills else 0

    def _open_known(self, dentry: Dentry, flags: int) -> OpenFile:
        inode = dentry.node
        writes = flags & 3 in (1, 2)
        if inode.is_link:
            raise fail(errno.ELOOP)
        if flags & os.O_DIRECTORY and not inode.is_dir:
            raise fail(errno.ENOTDIR)
        if inode.is_dir and (writes or flags & (os.O_CREAT | os.O_TRUNC)):
            raise fail(errno.EISDIR)
        mask = MAY_READ if flags & 3 in (0, 2) else 0
        if writes or flags & os.O_TRUNC:
            mask |= MAY_WRITE
        self.mount.permit(inode, mask)
        if flags & os.O_NOATIME and not self.mount.is_owner(inode):
            raise fail(errno.EPERM)
        if inode.kind == stat.S_IFSOCK:
            raise fail(errno.ENXIO)
        if not inode.is_dir and not inode.is_regular:
            raise fail(errno.ENODEV, "the fake kernel opens no devices and fifos")
        return self._open_handle(dentry, flags)

    def _open_handle(self, dentry: Dentry, flags: int) -> OpenFile:
        """Ask the server for a handle (fuse_file_open), then truncate if that is not its business."""
        inode = dentry.node
        opcode = abi.OPENDIR if inode.is_dir else abi.OPEN
        sent = (flags | O_LARGEFILE) & ~(os.O_CREAT | os.O_EXCL | os.O_NOCTTY)
        truncates = bool(flags & os.O_TRUNC) and inode.is_regular
        if not self.kernel.has(abi.ATOMIC_O_TRUNC):
            sent &= ~os.O_TRUNC
        try:
            reply = self.mount.ask(opcode, inode, flags=sent, open_flags=self._open_kill(flags)).fields
        except OSError as error:
            may_be_absent = abi.NO_OPENDIR_SUPPORT if inode.is_dir else abi.NO_OPEN_SUPPORT
            if error.errno != errno.ENOSYS or not self.kernel.has(may_be_absent):
                raise
            file = self._describe(dentry, flags, 0, abi.FOPEN_KEEP_CACHE, False)
        else:
            open_flags = reply["open_flags"]
            if open_flags & abi.FOPEN_PASSTHROUGH:
                self.kernel.complaints.append("OPEN: passthrough was not agreed")
                open_flags &= ~abi.FOPEN_PASSTHROUGH
            file = self._describe(dentry, flags, reply["fh"], open_flags, True)
        if truncates and self.kernel.has(abi.ATOMIC_O_TRUNC):
            inode.stale()
            inode.size = 0
        elif truncates:
            self.set_attributes(inode, {"size": 0}, file=file)
        return file

    def _describe(self, dentry: Dentry, flags: int, fh: int, open_flags: int, has_handle: bool) -> OpenFile:
        dentry.opens += 1
        dentry.node.opens += 1
        return OpenFile(dentry, dentry.node, flags & ~(os.O_CREAT | os.O_EXCL | os.O_TRUNC), fh, open_flags, has_handle)

    def _open_tmpfile(self, path: bytes, flags: int, mode: int) -> OpenFile:
        if flags & 3 not in (1, 2):
            raise fail(errno.EINVAL)
        parent = self.mount.walk(path)
        directory = parent.node
        if not directory.is_dir:
            raise fail(errno.ENOTDIR)
        self.mount.permit(directory, MAY_WRITE | MAY_EXEC)
        try:
            reply = self.mount.ask(
                abi.TMPFILE,
                directory,
                names=[b"/"],
                mode=self.masked(stat.S_IFREG | mode & 0o7777),
                umask=self.mount.process.umask,
                flags=(flags | O_LARGEFILE) & ~os.O_NOCTTY,
            ).fields
        except OSError as error:
            raise fail(errno.EOPNOTSUPP if error.errno == errno.ENOSYS else error.errno or errno.EIO) from error
        inode = self.mount.instantiate(reply, "entry_")
        inode.is_linkable = not flags & os.O_EXCL
        nameless = Dentry(None, b"", inode, 0.0)
        return self._describe(nameless, flags, reply["open_fh"], reply["open_open_flags"], True)

    def dup(self, fd: int) -> int:
        file = self._file(fd)
        file.descriptors += 1
        return self._install(self.mount.process, file)

    # Closing.

    def close(self, fd: int) -> None:
        with self.mount.verb() as process:
            file = self._file(fd)
            del process.files[fd]
            try:
                self._flush(process, file)
            finally:
                file.descriptors -= 1
                if not file.descriptors:
                    self._release(file)

    def _flush(self, process: Process, file: OpenFile) -> None:
        """FLUSH, at every close of a file; POSIX locks end here."""
        inode = file.inode
        if not inode.is_dir and not file.open_flags & abi.FOPEN_NOFLUSH:
            try:
                self.mount.ask(abi.FLUSH, inode, fh=file.fh, lock_owner=process.owner)
            except OSError as error:
                if error.errno != errno.ENOSYS:
                    raise
            inode.fresh_until = 0.0
        if not self.kernel.has(abi.POSIX_LOCKS):
            self.mount.locks.drop(inode.nodeid, process.owner, flock=False)

    def _release(self, file: OpenFile) -> None:
        inode = file.inode
        self.mount.locks.drop(inode.nodeid, file.owner, flock=False)
        self.mount.locks.drop(inode.nodeid, file.owner, flock=True)
        if file.has_handle:
            # Nobody waits for its answer, and it comes from nobody.
            self.mount.begin(
                abi.RELEASEDIR if inode.is_dir else abi.RELEASE,
                inode.nodeid,
                caller=(0, 0, 0),
                fh=file.fh,
                flags=file.flags,
                release_flags=abi.RELEASE_FLOCK_UNLOCK if file.has_flock else 0,
                lock_owner=file.owner if file.has_flock else 0,
            )
        inode.opens -= 1
        file.dentry.opens -= 1
        if not self.mount.is_named(file.dentry):
            inode.names.discard(file.dentry)
        self.mount.lose(inode)

    # Attributes.

    def set_attributes(
        self, inode: Inode, changes: dict[str, int], *, file: OpenFile | None = None, kills: bool = False
    ) -> None:
        """Send SETATTR (fuse_do_setattr); what may be changed was checked before."""
        valid = 0
        fields: dict[str, int] = {}
        for name, value in changes.items():
            valid |= _FATTR[name]
            if not name.endswith("_now"):
                fields[name] = value
        process = self.mount.process
        has_v2 = self.kernel.has(abi.HANDLE_KILLPRIV_V2)
        if "size" in changes:
            valid |= abi.FATTR_LOCKOWNER
            fields["lock_owner"] = process.owner
            if has_v2 and not process.is_root:
                valid |= abi.FATTR_KILL_SUIDGID
        if ("uid" in changes or "gid" in changes) and has_v2 and not inode.is_dir:
            valid |= abi.FATTR_KILL_SUIDGID
        if kills and not has_v2 and "mode" not in changes:
            valid |= abi.FATTR_MODE
            fields["mode"] = without_privileges(self.mount.refresh(inode).mode)
        if file is not None:
            valid |= abi.FATTR_FH
            fields["fh"] = file.fh
        version = inode.version = inode.version + 1
        reply = self.mount.ask(abi.SETATTR, inode, valid=valid, **fields).fields
        inode.acl = None
        self.mount.believe(inode, reply, version)


def without_privileges(mode: int) -> int:
    """Return *mode* without set-user-id, and without set-group-id if the group may execute."""
    mode &= ~stat.S_ISUID
    return mode & ~stat.S_ISGID if mode & stat.S_IXGRP else mode


def stat_of(inode: Inode) -> Stat:
    """Return what stat(2) says of an inode."""
    return Stat(
        ino=inode.nodeid,
        mode=inode.mode,
        nlink=inode.nlink,
        uid=inode.uid,
        gid=inode.gid,
        rdev=_device(inode.rdev),
        size=inode.size,
        blocks=inode.blocks,
        blksize=inode.blksize,
        atime_ns=inode.atime_ns,
        mtime_ns=inode.mtime_ns,
        ctime_ns=inode.ctime_ns,
    )


def _device(packed: int) -> int:
    """Return the st_rdev of the 32 bits on the wire (new_decode_dev)."""
    return os.makedev((packed & 0xFFF00) >> 8, (packed & 0xFF) | ((packed >> 12) & 0xFFF00))


_FATTR = {
    "mode": abi.FATTR_MODE,
    "uid": abi.FATTR_UID,
    "gid": abi.FATTR_GID,
    "size": abi.FATTR_SIZE,
    "atime": abi.FATTR_ATIME,
    "atimensec": 0,
    "mtime": abi.FATTR_MTIME,
    "mtimensec": 0,
    "atime_now": abi.FATTR_ATIME_NOW,
    "mtime_now": abi.FATTR_MTIME_NOW,
}


__all__ = ["FakeOpening", "fail", "stat_of", "without_privileges"]
