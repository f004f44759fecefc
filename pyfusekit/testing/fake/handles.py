"""Listing directories and locking, through the fake kernel (fs/fuse/readdir.c, fs/locks.c, fs/fuse/file.c fuse_setlk)."""

from __future__ import annotations

import errno
import fcntl
from typing import Any

from ...core import abi, codec
from ..tree import Dirent, HeldLock
from .files import FakeFiles
from .locks import TO_END
from .node import Dentry, OpenFile
from .opening import MAX_BYTES, PAGE, fail


class FakeHandles(FakeFiles):
    """The verbs on open directories, and locks."""

    # Listing.

    def getdents(self, fd: int, size: int = 4096) -> list[Dirent]:
        file = self._file(fd)
        with self.mount.verb(), file.lock, file.inode.lock:
            if not file.inode.is_dir:
                raise fail(errno.ENOTDIR)
            if file.inode.nlink == 0 and file.inode is not self.mount.root.inode and not file.inode.names - {file.dentry}:
                self.mount.refresh(file.inode, fh=file.fh if file.has_handle else None)
                if file.inode.nlink == 0:
                    raise fail(errno.ENOENT)
            taken: list[Dirent] = []
            room = size
            while True:
                entries = self._ask_entries(file, size)
                for entry in entries:
                    needed = (19 + len(entry.name) + 1 + 7) & ~7
                    if needed > room:
                        if not taken:
                            raise fail(errno.EINVAL)
                        return taken
                    room -= needed
                    taken.append(entry)
                    file.offset = entry.offset
                # One reply a call, unless it gave nothing that could be shown.
                if entries or not taken:
                    return taken

    def _ask_entries(self, file: OpenFile, size: int) -> list[Dirent]:
        """Ask for what is behind the file's offset; READDIRPLUS at the beginning, as its heuristics does."""
        plus = self.kernel.has(abi.DO_READDIRPLUS) and (not self.kernel.has(abi.READDIRPLUS_AUTO) or file.offset == 0)
        reply = self.mount.ask(
            abi.READDIRPLUS if plus else abi.READDIR,
            file.inode,
            fh=file.fh,
            offset=file.offset,
            size=max(PAGE, min(size, self._max_read)),
            flags=file.flags,
        )
        prefix = "dirent_" if plus else ""
        entries = []
        for fields in codec.decode_dirents(reply.data, plus):
            name = fields["name"]
            offset = fields[prefix + "off"]
            if b"/" in name or b"\0" in name or not 0 < offset <= MAX_BYTES:
                self.kernel.complaints.append(f"READDIR: entry {name!r} with offset {offset}")
                raise fail(errno.EIO)
            if plus and fields["entry_out_nodeid"] and name not in (b".", b".."):
                self._link_entry(file.dentry, name, fields)
            entries.append(Dirent(name, fields[prefix + "ino"], offset, fields[prefix + "type"]))
        return entries

    def _link_entry(self, parent: Dentry, name: bytes, fields: dict[str, Any]) -> None:
        """Note a name that READDIRPLUS told with its attributes."""
        known = parent.children.get(name)
        if known is not None and known.inode is not None and known.inode.nodeid == fields["entry_out_nodeid"]:
            self.mount.instantiate(fields, "entry_out_")
            return
        if parent.opens and parent.inode is not None and parent.inode.nlink != 0:
            self.mount.place(parent, name, fields, "entry_out_")
        else:
            self.mount.instantiate(fields, "entry_out_")

    # Locks.

    def _range(self, type: int, start: int, length: int) -> tuple[int, int]:
        if length < 0:
            start, length = start + length, -length
        if start < 0:
            raise fail(errno.EINVAL)
        return start, TO_END if length == 0 else start + length - 1

    def _lock(self, file: OpenFile, owner: int, type: int, start: int, end: int, *, flock: bool, wait: bool) -> None:
        process = self.mount.process
        if not self.kernel.has(abi.FLOCK_LOCKS if flock else abi.POSIX_LOCKS):
            self.mount.locks.set(process, file.inode.nodeid, owner, type, start, end, flock=flock, wait=wait, pid=process.pid)
            return
        if flock:
            file.has_flock = True
        self.mount.ask(
            abi.SETLKW if wait and type != fcntl.F_UNLCK else abi.SETLK,
            file.inode,
            patience=None,
            fh=file.fh,
            owner=owner,
            lk_start=start,
            lk_end=end,
            lk_type=type,
            lk_pid=process.pid if type != fcntl.F_UNLCK else 0,
            lk_flags=abi.LK_FLOCK if flock else 0,
        )

    def _check_lock_mode(self, file: OpenFile, type: int) -> None:
        if (type == fcntl.F_RDLCK and not file.reads) or (type == fcntl.F_WRLCK and not file.writes):
            raise fail(errno.EBADF)

    def posix_lock(self, fd: int, type: int, start: int = 0, length: int = 0, *, wait: bool = False) -> None:
        file = self._file(fd)
        self._check_lock_mode(file, type)
        first, last = self._range(type, start, length)
        self._lock(file, self.mount.process.owner, type, first, last, flock=False, wait=wait)

    def ofd_lock(self, fd: int, type: int, start: int = 0, length: int = 0, *, wait: bool = False) -> None:
        file = self._file(fd)
        self._check_lock_mode(file, type)
        first, last = self._range(type, start, length)
        self._lock(file, file.owner, type, first, last, flock=False, wait=wait)

    def posix_getlk(self, fd: int, type: int, start: int = 0, length: int = 0) -> HeldLock | None:
        file = self._file(fd)
        first, last = self._range(type, start, length)
        owner = self.mount.process.owner
        if self.kernel.has(abi.POSIX_LOCKS):
            reply = self.mount.ask(
                abi.GETLK, file.inode, fh=file.fh, owner=owner, lk_start=first, lk_end=last, lk_type=type,
                lk_pid=self.mount.process.pid,
            ).fields  # fmt: skip
            if reply["lk_type"] == fcntl.F_UNLCK:
                return None
            if reply["lk_start"] > reply["lk_end"] or reply["lk_end"] > TO_END:
                raise fail(errno.EIO)
            found = (reply["lk_type"], reply["lk_start"], reply["lk_end"], reply["lk_pid"])
        else:
            local = self.mount.locks.test(file.inode.nodeid, owner, type, first, last)
            if local is None:
                return None
            found = local
        kind, begin, end, pid = found
        return HeldLock(kind, begin, 0 if end == TO_END else end - begin + 1, pid)

    def flock(self, fd: int, operation: int) -> None:
        file = self._file(fd)
        types = {fcntl.LOCK_SH: fcntl.F_RDLCK, fcntl.LOCK_EX: fcntl.F_WRLCK, fcntl.LOCK_UN: fcntl.F_UNLCK}
        type = types[operation & ~fcntl.LOCK_NB]
        self._lock(file, file.owner, type, 0, TO_END, flock=True, wait=not operation & fcntl.LOCK_NB)


__all__ = ["FakeHandles"]
