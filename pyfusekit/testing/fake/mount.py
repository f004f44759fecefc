"""A mount in the fake kernel: the wire, the caches of names and attributes, walking paths, and who may do what.

The rules are those of fs/namei.c and fs/fuse/dir.c of Linux 6.18. There is no page cache: data is asked for page by page.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ...core import abi
from ...core.codec import NotificationMessage, ReplyMessage
from ...core.filesystem import Filesystem
from ..kernel import FakeKernel
from ..pending import Pending
from ..tree import PATIENCE
from .locks import LocalLocks
from .node import Dentry, Inode, Process

MAY_EXEC, MAY_WRITE, MAY_READ = 1, 2, 4
MAX_LINKS = 40
ACCESS_ACL = b"system.posix_acl_access"


class FakeMount:
    """One filesystem mounted on a FakeKernel that runs in a thread of its own."""

    def __init__(self, make: Callable[[], Filesystem], **arguments: Any) -> None:
        self._make = make
        self._arguments = arguments
        self._local = threading.local()
        self._guard = threading.RLock()
        self._active = 0
        self._losing: list[Inode] = []
        self.init = Process()
        """Who calls from a thread that is no actor."""
        self.locks = LocalLocks()
        self.inodes: dict[int, Inode] = {}
        root = Inode(abi.ROOT_ID, 0, stat.S_IFDIR)
        self.root = Dentry(None, b"", root, float("inf"))
        self.inodes[abi.ROOT_ID] = root

    # Life: the session and the filesystem run in a loop in another thread, as a server runs in another process.

    def start(self) -> None:
        """Mount: start the thread and negotiate INIT."""
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        ready = threading.Event()
        failure: list[BaseException] = []

        async def serve() -> None:
            fs = self._make()
            async with FakeKernel(fs, **self._arguments) as kernel:
                self.fs, self.kernel = fs, kernel
                kernel.on_notification = self._notified
                ready.set()
                await self._stop.wait()

        def live() -> None:
            try:
                self._loop.run_until_complete(serve())
            except BaseException as error:
                failure.append(error)
            finally:
                self._loop.close()
                ready.set()

        self._failure = failure
        self._thread = threading.Thread(target=live, name="fake-kernel", daemon=True)
        self._thread.start()
        ready.wait(PATIENCE)
        if failure:
            raise failure[0]

    def finish(self) -> None:
        """Unmount: forget everything, check the reckoning, end the session."""
        for process_fd in list(self.init.files):
            raise AssertionError(f"descriptor {process_fd} is still open")
        try:
            self._loop.call_soon_threadsafe(self.kernel.forget_all)
            asyncio.run_coroutine_threadsafe(self.kernel.settle(), self._loop).result(PATIENCE)
            # Forgets have no answer; one question behind them has.
            self.ask(abi.STATFS, self.root.node)
            self.kernel.check()
        finally:
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(PATIENCE)
        if self._failure:
            raise self._failure[0]

    @property
    def process(self) -> Process:
        """The calling thread's process."""
        return getattr(self._local, "process", self.init)

    def become(self, process: Process) -> None:
        """Make the calling thread act as *process*."""
        self._local.process = process

    # Asking the server.

    def begin(self, opcode: int, inode: Inode | int, **arguments: Any) -> Pending:
        """Send a request in the calling process's name, without waiting for its reply."""
        process = self.process
        nodeid = inode if isinstance(inode, int) else inode.nodeid
        if isinstance(inode, Inode) and inode.is_bad:
            raise OSError(errno.EIO, "bad inode")
        arguments.setdefault("caller", (process.uid, process.gid, process.pid))
        return self.kernel.ask(opcode, nodeid, **arguments).result(PATIENCE)

    def ask(self, opcode: int, inode: Inode | int, *, patience: float | None = PATIENCE, **arguments: Any) -> ReplyMessage:
        """Send a request in the calling process's name and wait for its reply."""
        pending = self.begin(opcode, inode, **arguments)
        process = self.process
        process.waiting = pending
        try:
            return pending.future.result(patience)
        finally:
            process.waiting = None

    def interrupt(self, process: Process) -> None:
        """A signal comes to *process*."""
        waiting = process.waiting
        if isinstance(waiting, Pending):
            self._loop.call_soon_threadsafe(self.kernel.interrupt, waiting)
        elif isinstance(waiting, LocalLocks):
            waiting.interrupt(process)

    def forget(self, nodeid: int, nlookup: int | None = None) -> None:
        """Take lookups of a node back."""
        self._loop.call_soon_threadsafe(self.kernel.forget, nodeid, nlookup)

    # Inodes.

    @contextmanager
    def verb(self) -> Iterator[Process]:
        """Run one system call: what it drops is forgotten when no other is under way."""
        with self._guard:
            self._active += 1
        try:
            yield self.process
        finally:
            with self._guard:
                self._active -= 1
                if not self._active:
                    losing, self._losing = self._losing, []
                    for inode in losing:
                        self._evict(inode)

    def _evict(self, inode: Inode) -> None:
        if inode.nodeid == abi.ROOT_ID or inode.names or inode.opens or self.inodes.get(inode.nodeid) is not inode:
            return
        del self.inodes[inode.nodeid]
        self.forget(inode.nodeid)

    def lose(self, *inodes: Inode | None) -> None:
        """These may have lost their last name or descriptor."""
        with self._guard:
            self._losing += [inode for inode in inodes if inode is not None]

    def instantiate(self, entry: dict[str, Any], prefix: str = "") -> Inode:
        """Return the inode of a fuse_entry_out, known or new (fuse_iget)."""
        nodeid, generation = entry[prefix + "nodeid"], entry[prefix + "generation"]
        mode = entry[prefix + "attr_mode"]
        with self._guard:
            inode = self.inodes.get(nodeid)
            if inode is not None and (inode.generation != generation or inode.kind != stat.S_IFMT(mode)):
                inode.is_bad = True
                inode = None
            if inode is None:
                inode = self.inodes[nodeid] = Inode(nodeid, generation, mode)
            inode.take(entry, prefix + "attr_", _until(entry, prefix + "attr_valid"))
            self._losing.append(inode)
            return inode

    def refresh(self, inode: Inode, *, fh: int | None = None, forced: bool = False) -> Inode:
        """Have the attributes of *inode* at hand, asked if they are no longer believed."""
        if not forced and time.monotonic() < inode.fresh_until:
            return inode
        version = inode.version
        fields: dict[str, Any] = {"getattr_flags": abi.GETATTR_FH, "fh": fh} if fh is not None else {}
        reply = self.ask(abi.GETATTR, inode, **fields).fields
        inode.acl = None
        self.believe(inode, reply, version)
        return inode

    def believe(self, inode: Inode, reply: dict[str, Any], version: int) -> None:
        """Take the attributes of a fuse_attr_out, unless something was changed here since *version*."""
        if stat.S_IFMT(reply["attr_mode"]) != inode.kind:
            inode.is_bad = True
            self.kernel.complaints.append(f"node {inode.nodeid} became another type: {reply['attr_mode']:o}")
            raise OSError(errno.EIO, "the file became another type")
        if inode.version == version:
            inode.take(reply, "attr_", _until(reply, "attr_valid"))

    # Names.

    def child(self, parent: Dentry, name: bytes, *, forced: bool = False) -> Dentry:
        """Return the name in a directory, there or not; *forced* does not believe that it is not there.

        ENAMETOOLONG when the kernel itself refuses the name.
        """
        limit = 4095 if self.kernel.has(abi.MAX_PAGES) else 1024
        if len(name) > limit:
            raise OSError(errno.ENAMETOOLONG, "name")
        directory = parent.node
        with directory.lock:
            known = parent.children.get(name)
            if known is not None:
                if time.monotonic() < known.fresh_until and not (forced and known.inode is None):
                    return known
                if known.inode is not None and self._revalidate(known):
                    return known
                self.invalidate(known)
            entry = self._lookup(directory, name)
            if entry is None:
                return self._place(parent, name, None, 0.0)
            inode = self.instantiate(entry) if entry["nodeid"] else None
            if inode is directory or (inode is not None and inode.nodeid == abi.ROOT_ID):
                raise OSError(errno.EIO, "a name of the root")
            return self._place(parent, name, inode, _until(entry, "entry_valid"))

    def _place(self, parent: Dentry, name: bytes, inode: Inode | None, until: float) -> Dentry:
        dentry = Dentry(parent, name, inode, until)
        parent.children[name] = dentry
        return dentry

    def place(self, parent: Dentry, name: bytes, entry: dict[str, Any], prefix: str = "") -> Dentry:
        """Note the name that the server has just made."""
        old = parent.children.get(name)
        if old is not None:
            self.invalidate(old)
        return self._place(parent, name, self.instantiate(entry, prefix), _until(entry, prefix + "entry_valid"))

    def _lookup(self, directory: Inode, name: bytes) -> dict[str, Any] | None:
        try:
            return self.ask(abi.LOOKUP, directory, names=[name]).fields
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
            return None

    def _revalidate(self, known: Dentry) -> bool:
        """Ask again whether a name means what it meant; another lookup is counted if so."""
        assert known.parent is not None
        try:
            entry = self._lookup(known.parent.node, known.name)
        except OSError as error:
            if error.errno in (errno.ENOMEM, errno.EINTR):
                raise
            return False
        if entry is None or not entry["nodeid"]:
            return False
        inode = known.node
        if (entry["nodeid"], entry["generation"], stat.S_IFMT(entry["attr_mode"])) != (
            inode.nodeid,
            inode.generation,
            inode.kind,
        ):
            self.forget(entry["nodeid"], 1)
            return False
        inode.take(entry, "attr_", _until(entry, "attr_valid"))
        known.fresh_until = _until(entry, "entry_valid")
        return True

    def is_named(self, dentry: Dentry) -> bool:
        """Say whether a name still is in its directory."""
        return dentry is self.root or (dentry.parent is not None and dentry.parent.children.get(dentry.name) is dentry)

    def invalidate(self, dentry: Dentry) -> None:
        """Forget a name and what is cached below it."""
        self.lose(*dentry.drop())
        dentry.detach()
        if dentry.inode is not None and not dentry.opens:
            dentry.inode.names.discard(dentry)
            self.lose(dentry.inode)

    def drop_caches(self) -> None:
        """Forget all names that are not open, and the nodes with them."""
        with self.verb():
            for child in list(self.root.children.values()):
                self.lose(*child.drop())

    # Walking.

    def walk(self, path: bytes, *, follow: bool = True) -> Dentry:
        """Return the name a path leads to; ENOENT when it is not there."""
        dentry = self._resolve(path, follow)
        if dentry.inode is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return dentry

    def walk_for_change(self, path: bytes) -> tuple[Dentry, bytes, bool]:
        """Return the directory, the last name, and whether a slash follows it (filename_parentat). EBUSY for the root."""
        head, name, slash = split_last(path)
        parent = self.walk(head) if head else self.root
        self._must_be_dir(parent)
        return parent, name, slash

    def _resolve(self, path: bytes, follow: bool) -> Dentry:
        if len(path) > 4095:
            raise OSError(errno.ENAMETOOLONG, "path")
        at = self.root
        work = [part for part in reversed(path.split(b"/")) if part]
        must_be_dir = path.endswith(b"/")
        links = 0
        while work:
            self._must_be_dir(at)
            self.permit(at.node, MAY_EXEC)
            part = work.pop()
            if part == b".":
                continue
            if part == b"..":
                at = at.parent or self.root
                continue
            dentry = self.child(at, part)
            inode = dentry.inode
            if inode is None:
                if work:
                    raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), path)
                return dentry
            if inode.is_link and (work or follow or must_be_dir):
                links += 1
                if links > MAX_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                target = self.readlink(inode)
                if target.startswith(b"/"):
                    at = self.root
                work += [piece for piece in reversed(target.split(b"/")) if piece]
                must_be_dir = must_be_dir or (not work and target.endswith(b"/"))
                continue
            at = dentry
        if must_be_dir:
            self._must_be_dir(at)
        return at

    def follow_last(self, parent: Dentry, inode: Inode) -> tuple[Dentry, bytes, bool]:
        """Return where the link *inode* in *parent* leads, as walk_for_change: for open with O_CREAT."""
        return self.walk_for_change(self.path_of(parent) + b"/" + self.readlink(inode))

    def path_of(self, dentry: Dentry) -> bytes:
        """Return a path that leads to a directory."""
        parts = []
        at: Dentry | None = dentry
        while at is not None and at.parent is not None:
            parts.append(at.name)
            at = at.parent
        return b"/".join(reversed(parts))

    def readlink(self, inode: Inode) -> bytes:
        """Ask for a link's target; an empty or overlong one is EIO."""
        target = self.ask(abi.READLINK, inode).data
        if not target or len(target) > 4095 or b"\0" in target:
            self.kernel.complaints.append(f"READLINK: a target of {len(target)} bytes")
            raise OSError(errno.EIO, "target")
        return target

    @staticmethod
    def _must_be_dir(dentry: Dentry) -> None:
        if dentry.inode is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), dentry.name)
        if not dentry.inode.is_dir:
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), dentry.name)

    # Permissions (fs/namei.c generic_permission, fs/fuse/dir.c fuse_permission).

    @property
    def checks_permissions(self) -> bool:
        """The kernel checks, not the server."""
        return self.kernel.limits.default_permissions or self.kernel.has(abi.POSIX_ACL)

    def want_write(self) -> None:
        """EROFS when the mount is read-only."""
        if self.fs.read_only:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def permit(self, inode: Inode, mask: int, *, asks_access: bool = False) -> None:
        """Raise EACCES unless the process may do *mask*."""
        if mask & MAY_WRITE and inode.kind in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK):
            self.want_write()
        if self.checks_permissions:
            is_fresh = time.monotonic() >= inode.fresh_until
            self.refresh(inode)
            if self._granted(inode, mask):
                return
            if not is_fresh:
                # What is cached may be old: a refusal is only given after asking.
                self.refresh(inode, forced=True)
                if self._granted(inode, mask):
                    return
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        if asks_access and abi.ACCESS not in self.kernel.absent:
            try:
                self.ask(abi.ACCESS, inode, mask=mask)
            except OSError as error:
                if error.errno != errno.ENOSYS:
                    raise
        elif mask & MAY_EXEC and inode.is_regular and not self.refresh(inode).mode & 0o111:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    def _granted(self, inode: Inode, mask: int) -> bool:
        process = self.process
        if process.is_root and (inode.is_dir or not mask & MAY_EXEC or inode.mode & 0o111):
            return True
        if process.uid == inode.uid:
            return mask & ~(inode.mode >> 6) == 0
        if inode.mode & 0o070 and self.kernel.has(abi.POSIX_ACL) and not inode.is_link:
            acl = self.acl_of(inode)
            if acl:
                return self._granted_by_acl(inode, acl, mask)
        if process.is_in(inode.gid):
            return mask & ~(inode.mode >> 3) == 0
        return mask & ~inode.mode & 7 == 0

    def acl_of(self, inode: Inode) -> bytes:
        """Return system.posix_acl_access, b"" when there is none; cached with the attributes."""
        if inode.acl is None:
            try:
                inode.acl = self.ask(abi.GETXATTR, inode, names=[ACCESS_ACL], size=4096).data
            except OSError as error:
                if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP, errno.ENOSYS):
                    raise
                inode.acl = b""
        return inode.acl

    def _granted_by_acl(self, inode: Inode, acl: bytes, mask: int) -> bool:
        """fs/posix_acl.c posix_acl_permission; the owner was dealt with before."""
        process = self.process
        limit = 7
        in_group = False
        entries = parse_acl(acl)
        for tag, perms, _ in entries:
            if tag == 0x10:
                limit = perms
        for tag, perms, ident in entries:
            if tag == 0x02 and ident == process.uid:
                return mask & ~(perms & limit) == 0
            if (tag == 0x04 and process.is_in(inode.gid)) or (tag == 0x08 and process.is_in(ident)):
                in_group = True
                if mask & ~perms == 0:
                    return mask & ~limit == 0
        if in_group:
            return False
        return all(mask & ~perms == 0 for tag, perms, _ in entries if tag == 0x20)

    def is_owner(self, inode: Inode) -> bool:
        """Say whether the process owns a file, or is root."""
        return self.process.is_root or self.refresh(inode).uid == self.process.uid

    # Notifications: what the server says has changed.

    def _notified(self, note: NotificationMessage) -> None:
        code, fields = note.code, note.fields
        if code == abi.NOTIFY_INVAL_INODE:
            inode = self.inodes.get(fields["ino"])
            if inode is not None:
                inode.stale()
        elif code in (abi.NOTIFY_INVAL_ENTRY, abi.NOTIFY_DELETE):
            parent = self.inodes.get(fields["parent"])
            for dentry in list(parent.names) if parent is not None else []:
                child = dentry.children.get(note.names[0])
                if child is not None:
                    child.fresh_until = 0.0
        elif code == abi.NOTIFY_INC_EPOCH:
            for inode in list(self.inodes.values()):
                for dentry in inode.names:
                    dentry.fresh_until = 0.0
        elif code == abi.NOTIFY_RETRIEVE:
            self.kernel.notify_reply(fields["notify_unique"], fields["nodeid"], fields["offset"], b"")


def split_last(path: bytes) -> tuple[bytes, bytes, bool]:
    """Return what is before the last name, the last name, and whether slashes follow it."""
    stripped = path.rstrip(b"/")
    head, _, name = stripped.rpartition(b"/")
    return head, name, stripped != path


def parse_acl(value: bytes) -> list[tuple[int, int, int]]:
    """Return the (tag, permissions, id) entries of an ACL attribute; EINVAL when it is not one."""
    if len(value) < 4 or (len(value) - 4) % 8 or value[:4] != b"\x02\0\0\0":
        raise OSError(errno.EINVAL, "not an ACL")
    return [struct.unpack_from("<HHI", value, at) for at in range(4, len(value), 8)]


def _until(fields: dict[str, Any], name: str) -> float:
    seconds: float = fields[name] + fields[name + "_nsec"] / 1e9
    return time.monotonic() + seconds if seconds else 0.0


__all__ = ["MAY_EXEC", "MAY_READ", "MAY_WRITE", "FakeMount", "parse_acl", "split_last"]
