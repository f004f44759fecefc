"""The other end of /dev/fuse: the kernel's half of the protocol, over a socket pair, without root and without a mount.

    async with FakeKernel(fs) as kernel:
        reply = await kernel.request(abi.LOOKUP, 1, names=[b"x"])
        reply.fields["nodeid"]

The server side is the core's own, AsyncFd and Session. Every reply is judged before it is taken, as fs/fuse/dev.c does:
what the kernel would refuse raises the same OSError in the server's write, and is remembered as a complaint. ``check`` says
at the end whether every request was answered once and every lookup was forgotten.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import stat
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any

from ..core import abi, codec
from ..core.asyncfd import AsyncFd
from ..core.capabilities import Agreed, Limits
from ..core.codec import NotificationMessage, ReplyMessage
from ..core.errors import ProtocolError
from ..core.filesystem import Filesystem
from ..core.notify import Notifier
from ..core.session import Session
from ..core.types import Data
from .pending import OFFERED, STICKY_ENOSYS, Pending

_FREE_LENGTH = frozenset(
    (abi.READ, abi.READDIR, abi.READDIRPLUS, abi.READLINK, abi.GETXATTR, abi.LISTXATTR, abi.IOCTL, abi.INIT)
)
"""Operations whose reply may be shorter than what was asked for ("argvar"); all others are exact."""

_FILE_TYPES = frozenset((stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK))
_MAKES = frozenset((abi.CREATE, abi.MKNOD, abi.MKDIR, abi.SYMLINK, abi.LINK, abi.TMPFILE))
_SO_SNDBUFFORCE = 32
_SNDBUF_BYTES = 8 << 20
_PAGE = 4096
_ERROR_LIMIT = 512


class FakeKernel:
    """The kernel of one mount of *fs*, served in the running loop. Entering negotiates INIT, leaving ends the session."""

    def __init__(
        self,
        fs: Filesystem,
        *,
        minor: int = abi.KERNEL_MINOR_VERSION,
        offered: int = OFFERED,
        max_pages: int = 16,
        max_readahead: int = 128 << 10,
    ) -> None:
        self.fs = fs
        self.minor = minor
        self.offered = offered
        self.max_readahead = max_readahead
        self.limits = Limits(max_pages=max_pages, default_permissions=fs.default_permissions)
        self.agreed: Agreed | None = None
        self.complaints: list[str] = []
        """What the real kernel would have refused, or answered EIO for."""
        self.asked: Counter[int] = Counter()
        """opcode -> how many such requests were sent."""
        self.absent: set[int] = set()
        """Operations answered ENOSYS once, and never asked again."""
        self.lookups: Counter[int] = Counter()
        """nodeid -> how many lookups the server was told to have counted, and not yet forgotten."""
        self.handles: Counter[tuple[int, int]] = Counter()
        """(nodeid, fh) -> open files that were not released."""
        self.pending: dict[int, Pending] = {}
        self.notifications: list[NotificationMessage] = []
        self.on_notification: Callable[[NotificationMessage], None] | None = None
        self.trace: Callable[[str], None] | None = None
        self._next_unique = 2
        self._abandoned: set[int] = set()
        self._outbox: deque[bytes] = deque()

    # Life.

    async def __aenter__(self) -> FakeKernel:
        loop = self._loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (ours, theirs):
            try:
                end.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _SNDBUF_BYTES)
            except PermissionError:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SNDBUF_BYTES)
        ours.setblocking(False)
        self._socket = ours
        self._room_bytes = max(self.limits.max_pages * _PAGE, 64 << 10) + 8192
        self.device = AsyncFd(theirs.detach(), self._room_bytes, spin=0)
        self.notifier = Notifier(self._take_notification)
        self.session = Session(
            self.fs,
            lambda message: self._take_reply((message,)),
            self._take_reply,
            notifier=self.notifier,
            limits=self.limits,
            recycle=self.device.recycle,
        )
        self.device.receive = self.session.receive
        await self.fs.init()
        self.session.initialised = loop.create_future()
        self.notifier.attach(loop)
        self.fs.notifier = self.notifier
        loop.add_reader(ours.fileno(), self._readable)
        self.device.start()
        await self._negotiate()
        return self

    async def _negotiate(self) -> None:
        layout = abi.INIT_IN if self.minor >= 36 else abi.INIT_IN_COMPAT
        fields: dict[str, Any] = {
            "major": abi.KERNEL_VERSION,
            "minor": self.minor,
            "max_readahead": self.max_readahead,
            "flags": self.offered & 0xFFFFFFFF & (0xFFFFFFFF if self.minor >= 36 else ~abi.INIT_EXT),
        }
        if self.minor >= 36:
            fields["flags2"] = self.offered >> 32
        reply = await self.request(abi.INIT, layout=layout, **fields)
        flags = reply.fields["flags"]
        if flags & abi.INIT_EXT:
            flags |= reply.fields["flags2"] << 32
        assert self.session.agreed is not None
        self.agreed = self.session.agreed
        if flags & ~(self.offered | abi.INIT_EXT | abi.ABORT_ERROR):
            self._complain(f"INIT: capabilities {flags & ~self.offered:#x} were not offered")
        if reply.fields["max_write"] < _PAGE:
            self._complain(f"INIT: max_write is {reply.fields['max_write']}")

    async def __aexit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        """Unmount: reading ends, running handlers are cancelled, the filesystem is destroyed."""
        self._loop.remove_reader(self._socket.fileno())
        self._loop.remove_writer(self._socket.fileno())
        self._socket.close()
        await asyncio.wait({self.device.closed}, timeout=5)
        await self.session.drain()
        self.notifier.close()
        self.device.close()
        await self.fs.destroy()

    def has(self, flag: int) -> bool:
        """Say whether the capability *flag* was agreed."""
        return self.agreed is not None and self.agreed.has(flag)

    # Asking.

    def send(
        self,
        opcode: int,
        nodeid: int = 0,
        *,
        caller: tuple[int, int, int] = (0, 0, 0),
        names: Iterable[bytes] = (),
        data: bytes = b"",
        mode: int | None = None,
        **fields: Any,
    ) -> Pending:
        """Send a request and return it.

        *caller* is (uid, gid, pid); *mode* the struct's field where it has one; *fields* the struct's others. An operation
        that was answered ENOSYS fails with it again without being sent.
        """
        op = abi.OPS[opcode]
        layout = fields.pop("layout", op.struct)
        if opcode == abi.SETXATTR and not self.has(abi.SETXATTR_EXT):
            layout = abi.SETXATTR_IN_COMPAT
            fields.pop("setxattr_flags", None)
        if mode is not None:
            fields["mode"] = mode
        unique = self._next_unique
        self._next_unique += 2
        # Not encode_request: setattr's own uid and gid have the names of the header's.
        body = codec.pack(layout, **fields) if layout is not None else b""
        body += b"".join(name + b"\0" for name in names) + data
        message = codec.IN_HEADER.pack(codec.HEADER_BYTES + len(body), opcode, unique, nodeid, *caller, 0, 0) + body
        size = fields.get(op.limit, 4096) if op.limit else 4096
        if opcode in (abi.GETXATTR, abi.LISTXATTR) and size == 0:
            size = 8
        pending = Pending(opcode, nodeid, unique, message, size, mode)
        if opcode in self.absent:
            pending.future.set_exception(OSError(errno.ENOSYS, f"{op.name} is absent"))
            return pending
        if len(message) > self._room_bytes:
            pending.future.set_exception(OSError(errno.E2BIG if opcode == abi.SETXATTR else errno.EIO, "too long"))
            return pending
        self.asked[opcode] += 1
        if op.out is abi.NO_REPLY:
            pending.future.set_result(ReplyMessage(unique, 0, {}, b""))
        else:
            self.pending[unique] = pending
        self._post(message)
        return pending

    async def request(self, opcode: int, nodeid: int = 0, **arguments: Any) -> ReplyMessage:
        """Send a request and return its reply; OSError with the errno it was answered."""
        return await self.send(opcode, nodeid, **arguments)

    def ask(self, opcode: int, nodeid: int = 0, **arguments: Any) -> Future[Pending]:
        """Send a request from another thread; the future is done when it is on its way."""
        started: Future[Pending] = Future()

        def begin() -> None:
            try:
                started.set_result(self.send(opcode, nodeid, **arguments))
            except BaseException as error:
                started.set_exception(error)

        self._loop.call_soon_threadsafe(begin)
        return started

    def interrupt(self, pending: Pending) -> None:
        """A signal came to the caller: ask the server to give up (FUSE_INTERRUPT)."""
        if pending.unique in self.pending and abi.INTERRUPT not in self.absent:
            self.asked[abi.INTERRUPT] += 1
            own = pending.unique & ~abi.UNIQUE_RESEND | 1
            body = codec.pack(abi.INTERRUPT_IN, unique=pending.unique)
            head = codec.IN_HEADER.pack(codec.HEADER_BYTES + len(body), abi.INTERRUPT, own, 0, 0, 0, 0, 0, 0)
            self._post(head + body)

    def abandon(self, pending: Pending) -> None:
        """The caller was killed before the reply came: whatever the server writes for it is ENOENT."""
        self.pending.pop(pending.unique, None)
        self._abandoned.add(pending.unique)
        pending.future.cancel()

    def resend(self) -> int:
        """Send every unanswered request again with bit 63 set, oldest first, and return how many."""
        again = sorted(self.pending.values(), key=lambda pending: pending.unique & ~abi.UNIQUE_RESEND)
        for pending in again:
            del self.pending[pending.unique]
            pending.unique |= abi.UNIQUE_RESEND
            self.pending[pending.unique] = pending
            self._post(pending.message[:8] + pending.unique.to_bytes(8, "little") + pending.message[16:])
        return len(again)

    def forget(self, nodeid: int, nlookup: int | None = None) -> None:
        """Take lookups back: all of them, unless *nlookup* says how many."""
        count = self.lookups[nodeid] if nlookup is None else nlookup
        assert 0 < count <= self.lookups[nodeid], f"node {nodeid} has {self.lookups[nodeid]} lookups, not {count}"
        self.lookups[nodeid] -= count
        self.send(abi.FORGET, nodeid, nlookup=count)

    def forget_all(self) -> None:
        """Take all lookups of all nodes back, in BATCH_FORGETs."""
        known = [(nodeid, count) for nodeid, count in self.lookups.items() if count]
        self.lookups.clear()
        for start in range(0, len(known), 1000):
            batch = known[start : start + 1000]
            data = b"".join(codec.FORGET_ONE.pack(nodeid, count) for nodeid, count in batch)
            self.send(abi.BATCH_FORGET, count=len(batch), data=data)

    def notify_reply(self, notify_unique: int, nodeid: int, offset: int, data: bytes) -> None:
        """Answer a NOTIFY_RETRIEVE: a request whose unique is the server's own number."""
        body = codec.pack(abi.NOTIFY_RETRIEVE_IN, offset=offset, size=len(data)) + data
        head = codec.IN_HEADER.pack(codec.HEADER_BYTES + len(body), abi.NOTIFY_REPLY, notify_unique, nodeid, 0, 0, 0, 0, 0)
        self.asked[abi.NOTIFY_REPLY] += 1
        self._post(head + body)

    def _post(self, message: bytes) -> None:
        if self.trace is not None:
            self.trace(codec.describe_request(message))
        self._outbox.append(message)
        self._flush()

    def _flush(self) -> None:
        while self._outbox:
            try:
                self._socket.send(self._outbox[0])
            except BlockingIOError:
                self._loop.add_writer(self._socket.fileno(), self._flush)
                return
            except OSError as error:
                self._end(error)
                return
            self._outbox.popleft()
        self._loop.remove_writer(self._socket.fileno())

    # Judging answers, on the server's side of the socket: what is refused here is refused in its write.

    def _complain(self, text: str) -> None:
        self.complaints.append(text)

    def _take_reply(self, parts: Sequence[Data]) -> None:
        message = b"".join(bytes(part) for part in parts)
        self._judge(message)
        self.device.writev([message])

    def _judge(self, message: bytes) -> None:
        """Raise the OSError that the kernel's write would give (fs/fuse/dev.c fuse_dev_do_write)."""
        if len(message) < codec.REPLY_HEADER_BYTES:
            self._complain(f"a reply of {len(message)} bytes")
            raise OSError(errno.EINVAL, "short reply")
        length, error, unique = codec.OUT_HEADER.unpack_from(message)
        if length != len(message):
            self._complain(f"reply #{unique:#x} of {len(message)} bytes says it has {length}")
            raise OSError(errno.EINVAL, "wrong length")
        if not -_ERROR_LIMIT < error <= 0:
            self._complain(f"reply #{unique:#x} has the error {error}: the request hangs for ever")
            raise OSError(errno.EINVAL, "wrong error")
        pending = self.pending.get(unique)
        if pending is None:
            if unique not in self._abandoned:
                self._complain(f"reply to #{unique:#x}, which nobody asked, or a second one")
            self._abandoned.discard(unique)
            raise OSError(errno.ENOENT, "no such request")
        if (error and length != codec.REPLY_HEADER_BYTES) or (not error and not self._fits(pending, length)):
            # The request is consumed: its caller sees EIO.
            self._complain(f"{pending}: a reply of {length} bytes does not fit")
            del self.pending[unique]
            pending.future.set_exception(OSError(errno.EIO, "malformed reply"))
            raise OSError(errno.EINVAL, "wrong size")

    def _fits(self, pending: Pending, length: int) -> bool:
        op = abi.OPS[pending.opcode]
        fixed = codec.struct_of(op.out.layout).size if op.out.layout is not None else 0
        body = length - codec.REPLY_HEADER_BYTES
        if pending.opcode not in _FREE_LENGTH:
            return body == fixed
        most = fixed + (pending.size if op.out.data else 0)
        return body <= most

    # Taking answers, on the kernel's side.

    def _readable(self) -> None:
        for _ in range(64):
            try:
                message = self._socket.recv(self._room_bytes + (1 << 20))
            except BlockingIOError:
                return
            except OSError as error:
                self._end(error)
                return
            if not message:
                self._end(ConnectionAbortedError(errno.ENOTCONN, "the server is gone"))
                return
            self._take(message)

    def _end(self, error: OSError) -> None:
        """The server is gone: every caller sees ENOTCONN."""
        self._loop.remove_reader(self._socket.fileno())
        self._outbox.clear()
        pending, self.pending = self.pending, {}
        for request in pending.values():
            request.future.set_exception(OSError(errno.ENOTCONN, str(error)))

    def _take(self, message: bytes) -> None:
        _, code, unique = codec.OUT_HEADER.unpack_from(message)
        if unique == 0:
            self._notified(codec.decode_notification(message))
            return
        if self.trace is not None:
            self.trace(codec.describe_reply(message))
        pending = self.pending.pop(unique, None)
        if pending is None:
            return  # abandoned while the reply was on its way
        if code:
            if code == -errno.ENOSYS and pending.opcode in STICKY_ENOSYS:
                self.absent.add(pending.opcode)
            pending.future.set_exception(OSError(-code, os.strerror(-code)))
            return
        try:
            out = abi.OPS[pending.opcode].out
            if pending.opcode in (abi.GETXATTR, abi.LISTXATTR) and pending.size == 8 and len(message) == 24:
                fields = codec.unpack(abi.GETXATTR_OUT, message, 16)
                reply = ReplyMessage(unique, 0, fields, message[16:])
            else:
                reply = codec.decode_reply(out, message)
            self._count(pending, reply)
        except (ProtocolError, OSError) as error:
            self._complain(f"{pending}: {error}")
            pending.future.set_exception(OSError(errno.EIO, str(error)))
            return
        pending.future.set_result(reply)

    def _count(self, pending: Pending, reply: ReplyMessage) -> None:
        """Count lookups and handles; raise for what the kernel answers EIO (fs/fuse/dir.c)."""
        opcode, fields = pending.opcode, reply.fields
        if opcode == abi.LOOKUP:
            if fields["nodeid"]:
                self._count_node(fields["nodeid"], fields["attr_mode"], None)
        elif opcode in (abi.CREATE, abi.TMPFILE):
            self._count_node(fields["entry_nodeid"], fields["entry_attr_mode"], stat.S_IFREG)
            self.handles[fields["entry_nodeid"], fields["open_fh"]] += 1
        elif opcode in _MAKES:
            kind = {abi.MKDIR: stat.S_IFDIR, abi.SYMLINK: stat.S_IFLNK}.get(opcode)
            if opcode == abi.MKNOD and pending.mode is not None:
                kind = stat.S_IFMT(pending.mode) or stat.S_IFREG
            self._count_node(fields["nodeid"], fields["attr_mode"], kind)
        elif opcode in (abi.OPEN, abi.OPENDIR):
            self.handles[pending.nodeid, fields["fh"]] += 1
        elif opcode == abi.READDIRPLUS:
            for entry in codec.decode_dirents(reply.data, plus=True):
                if entry["entry_out_nodeid"] and entry["name"] not in (b".", b".."):
                    self._count_node(entry["entry_out_nodeid"], entry["entry_out_attr_mode"], None)
        elif opcode in (abi.RELEASE, abi.RELEASEDIR):
            fh = codec.unpack(abi.RELEASE_IN, pending.message, codec.HEADER_BYTES)["fh"]
            self.handles[pending.nodeid, fh] -= 1
            if self.handles[pending.nodeid, fh] < 0:
                raise ProtocolError(f"handle {fh} was released more often than opened")
        elif opcode == abi.WRITE:
            size = codec.unpack(abi.WRITE_IN, pending.message, codec.HEADER_BYTES)["size"]
            if fields["size"] > size:
                raise ProtocolError(f"{fields['size']} bytes written, {size} were given")

    def _count_node(self, nodeid: int, mode: int, kind: int | None) -> None:
        if nodeid in (0, abi.ROOT_ID):
            raise ProtocolError(f"node {nodeid} is not for a name")
        if stat.S_IFMT(mode) not in _FILE_TYPES:
            raise ProtocolError(f"mode {mode:o} has no file type")
        self.lookups[nodeid] += 1
        if kind is not None and stat.S_IFMT(mode) != kind:
            self.forget(nodeid, 1)
            raise ProtocolError(f"mode {mode:o} is not of the type that was asked for, {kind:o}")

    # Notifications.

    def _take_notification(self, parts: Sequence[Data]) -> int:
        """Judge and send one notification; on the notifier's thread."""
        message = b"".join(bytes(part) for part in parts)
        try:
            note = codec.decode_notification(message)
        except ProtocolError as error:
            self._complain(str(error))
            raise OSError(errno.EINVAL, str(error)) from error
        known = {nodeid for nodeid, count in list(self.lookups.items()) if count} | {abi.ROOT_ID}
        for field in ("ino", "parent", "nodeid"):
            if note.fields.get(field, abi.ROOT_ID) not in known:
                raise OSError(errno.ENOENT, f"the kernel does not know node {note.fields[field]}")
        fd = self.device.fd
        if fd < 0:
            raise OSError(errno.ENODEV, "the mount is gone")
        return os.write(fd, message)

    def _notified(self, note: NotificationMessage) -> None:
        self.notifications.append(note)
        if note.code == abi.NOTIFY_RESEND:
            self.resend()
        elif note.code == abi.NOTIFY_RETRIEVE and self.on_notification is None:
            # Nothing is cached here.
            self.notify_reply(note.fields["notify_unique"], note.fields["nodeid"], note.fields["offset"], b"")
        if self.on_notification is not None:
            self.on_notification(note)

    # The reckoning.

    async def settle(self, timeout_s: float = 10.0) -> None:
        """Wait until every request is answered."""
        waiting = [asyncio.wrap_future(pending.future) for pending in self.pending.values()]
        if waiting:
            await asyncio.wait(waiting, timeout=timeout_s)
            for future in waiting:
                if future.done() and not future.cancelled():
                    future.exception()

    def check(self) -> None:
        """Raise AssertionError unless each request was answered once, acceptably, and nothing stays counted or open."""
        left = {nodeid: count for nodeid, count in self.lookups.items() if count}
        opened = {handle: count for handle, count in self.handles.items() if count}
        assert not self.complaints, "\n".join(self.complaints)
        assert not self.pending, f"unanswered: {list(self.pending.values())}"
        assert not left, f"not forgotten: {left}"
        assert not opened, f"not released: {opened}"


__all__ = ["FakeKernel"]
