"""One connection's protocol: bytes in, calls of the filesystem, bytes out. It holds no descriptor.

The driver hands every message to :meth:`Session.receive` and gives the session two functions that send: ``write`` for a
whole message and ``writev`` for its parts. Both raise OSError as write(2) does. What the messages look like is abi.py's and
codec.py's; what the two sides agree on at the start is capabilities.py's; how a result becomes a reply is replies.py's.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import struct
import sys
from collections.abc import AsyncIterable, Callable, Sequence
from contextvars import ContextVar
from types import CoroutineType
from typing import Any

from . import abi, capabilities, codec, encoders, table
from .capabilities import Agreed, Limits
from .errors import ProtocolError, errno_of
from .filesystem import Filesystem
from .inodes import HandleTable
from .notification import InFlight
from .notify import Notifier
from .replies import Message, Replies
from .table import Row
from .types import Data, Request

log = logging.getLogger(__name__)

DONE = 0
SCHEDULED = 1
KEPT = 2
"""What receive says: the message is dealt with; a task now waits for its turn on the loop; the task also keeps the buffer,
until ``recycle`` gives it back."""

_unpack_header = struct.Struct("=" + "".join(list(abi.IN_HEADER.fields.values())[:-1])).unpack_from
"""All of fuse_in_header but its padding."""
_new_request = object.__new__
_pack_header = encoders.pack_reply_header
_HEADER_BYTES = codec.HEADER_BYTES
_U32 = struct.Struct("=I")
_U64 = struct.Struct("=Q")
_EAGER = sys.version_info >= (3, 12)

_FAILED = object()
"""Stands for the result of a handler that had none."""
_GONE = frozenset((errno.ENOENT, errno.ENODEV, errno.ECONNABORTED, errno.ENOTCONN, errno.EPIPE, errno.ECONNRESET, errno.EBADF))
"""Errors of a write that say: whoever asked, or the whole mount, is gone. EBADF is our own end, closed meanwhile."""

_current: ContextVar[InFlight | None] = ContextVar("pyfusekit_request", default=None)
"""The request that the running task answers."""

_SECOND_NODE_AT = {abi.RENAME: 40, abi.RENAME2: 40, abi.LINK: 40, abi.COPY_FILE_RANGE: 56, abi.COPY_FILE_RANGE_64: 56}
"""Where a request names a second node."""


class Session:
    """The protocol state of one connection.

    INVARIANT: each request with a reply is answered exactly once: in receive, or by the task that ``inflight`` holds.
    """

    def __init__(
        self,
        fs: Filesystem,
        write: Callable[[bytes], object],
        writev: Callable[[Sequence[Data]], object],
        *,
        notifier: Notifier | None = None,
        limits: Limits | None = None,
        recycle: Callable[[Any], None] | None = None,
    ) -> None:
        self.fs = fs
        self.agreed: Agreed | None = None
        """What INIT settled; None before."""
        self.initialised: asyncio.Future[Agreed] | None = None
        """Set by the driver; done when INIT was answered, or failed with the ProtocolError that says why not."""
        self.handles = HandleTable()
        self.inflight: dict[int, InFlight] = {}
        """unique -> the request whose task is running. The strong reference that asyncio asks for."""
        self.trace: Callable[[str], None] | None = None
        """Called with one line for every message, after start_trace."""
        self._plain_sends: tuple[Callable[[bytes], object], Callable[[Sequence[Data]], object]] | None = None
        self._write = write
        self._writev = writev
        self._notifier = notifier
        self._limits = limits or Limits()
        self._recycle = recycle
        self._replies = Replies(fs, self.handles)
        self._objects = self.handles.objects
        self._lost = 0
        """Counts what runs without a number of the kernel's; downwards, so that it is nobody else's."""
        self._table: list[tuple[Any, Any, Any, Any]] = [(None, None, None, None)] * (max(abi.OPS) + 1)
        """opcode -> (call, method, reply, row); only INIT before the two sides have agreed."""
        self._table[abi.INIT] = (self._init_call, None, self._init_reply, Row(abi.INIT, abi.OPS[abi.INIT]))
        if notifier is not None:
            notifier.current = self._current_request

    # Messages in.

    def receive(self, buffer: Any, n: int) -> int:
        """Deal with the message ``buffer[:n]``; return DONE, SCHEDULED or SCHEDULED | KEPT. Never raises, never waits.

        *buffer* is bytes or a bytearray, and may be longer than the message.
        """
        try:
            length, opcode, unique, nodeid, uid, gid, pid, extlen = _unpack_header(buffer)
            call, method, reply, row = self._table[opcode]
        except (struct.error, IndexError):
            self._unintelligible(buffer, n)
            return DONE
        if length != n or n < _HEADER_BYTES or call is None:
            self._refuse(buffer, n, row)
            return DONE
        if self.trace is not None:
            self.trace(self._describe(buffer, n))
        # Request(unique, uid, gid, pid), spelled out: a call of __init__ costs a tenth of all that happens here.
        request = _new_request(Request)
        request.unique = unique
        request.uid = uid
        request.gid = gid
        request.pid = pid
        request.flags = 0
        request.size = 0
        request.extensions = None
        try:
            if extlen:
                n = self._take_extensions(request, buffer, n, extlen)
            result = call(method, request, buffer, n, nodeid, self._objects)
            if type(result) is CoroutineType:
                return self._start(row, request, nodeid, result, buffer)
            message = reply(request, result)
        except BaseException as error:
            result = _FAILED
            message = self._failure(row, request, error)
        try:
            if isinstance(message, bytes):
                self._write(message)
            elif message is not None:
                self._writev(message)
        except Exception as error:
            self._undelivered(row, request, nodeid, result, error)
        return DONE

    def start_trace(self, line: Callable[[str], None] | None) -> None:
        """Call *line* with one line of text for every message in and out from now on; None ends it."""
        self.trace = line
        if self._plain_sends is None:
            self._plain_sends = (self._write, self._writev)
        write, writev = self._plain_sends
        if line is None:
            self._write, self._writev = write, writev
            return

        def traced_write(message: bytes) -> None:
            line(codec.describe_reply(message))
            write(message)

        def traced_writev(parts: Sequence[Data]) -> None:
            line(codec.describe_reply(parts[0]))
            writev(parts)

        self._write, self._writev = traced_write, traced_writev

    def _describe(self, buffer: Any, n: int) -> str:
        """Return a request's line of the trace."""
        message = bytes(buffer[:n])
        is_short = self.agreed is not None and not self.agreed.has(abi.SETXATTR_EXT)
        is_short = is_short and int.from_bytes(message[4:8], sys.byteorder) == abi.SETXATTR
        return codec.describe_request(message, abi.SETXATTR_IN_COMPAT if is_short else None)

    def _unintelligible(self, buffer: Any, n: int) -> None:
        """Answer a message whose opcode is not in the table, or log one that is no message at all."""
        if n < _HEADER_BYTES or len(buffer) < _HEADER_BYTES:
            log.error("protocol error: a message of %d bytes is shorter than its header", n)
            return
        length, opcode, unique = _unpack_header(buffer)[:3]
        if length != n:
            log.error("protocol error: a message of %d bytes says it has %d", n, length)
        else:
            log.warning("the kernel asked for operation %d, which this version does not know", opcode)
        self._answer_error(unique, errno.ENOSYS)

    def _refuse(self, buffer: Any, n: int, row: Row | None) -> None:
        """Answer a message that has the wrong length, or an operation that is absent, or that comes before INIT."""
        if n < _HEADER_BYTES or len(buffer) < _HEADER_BYTES:
            return self._unintelligible(buffer, n)
        length, opcode, unique = _unpack_header(buffer)[:3]
        op = abi.OPS.get(opcode)
        if op is None:
            return self._unintelligible(buffer, n)
        if self.trace is not None:
            self.trace(self._describe(buffer, n))
        if length != n:
            log.error("protocol error: %s of %d bytes says it has %d", op.name, n, length)
        if op.out is abi.NO_REPLY:
            return None
        if length != n:
            return self._answer_error(unique, errno.EIO)
        if row is None:
            log.error("protocol error: %s before INIT", op.name)
            return self._answer_error(unique, errno.EIO)
        if row.absent:
            return self._answer_error(unique, row.absent)
        return self._send_quietly(_pack_header(16, 0, unique))

    def _take_extensions(self, request: Request, buffer: Any, n: int, extlen: int) -> int:
        end = n - 8 * extlen
        if end < _HEADER_BYTES:
            raise ProtocolError(f"extensions of {8 * extlen} bytes in a message of {n}")
        request.extensions = codec.parse_extensions(bytes(buffer[end:n]))
        return end

    # Handlers that wait.

    def _start(self, row: Row, request: Request, nodeid: int, coroutine: Any, buffer: Any) -> int:
        """Make a task of a handler that returned a coroutine."""
        nodeids: tuple[int, ...] = (nodeid,)
        at = _SECOND_NODE_AT.get(row.opcode)
        if at is not None:
            nodeids += _U64.unpack_from(buffer, at)
        entry = InFlight(request.unique, row.opcode, nodeids)
        keeps = row.op.data and self._recycle is not None
        if keeps and row.copies and _U32.unpack_from(buffer)[0] <= table.COPY_UP_TO:
            keeps = False
        former = self.inflight.get(request.unique)
        if former is not None:  # resent a second time while it runs: the first of the two answers counts
            self._lost -= 1
            former.unique = self._lost
            self.inflight[former.unique] = former
        self.inflight[request.unique] = entry
        answer = self._answer(row, request, nodeid, coroutine, entry, buffer if keeps else None)
        if _EAGER:
            entry.task = asyncio.Task(answer, loop=asyncio.get_running_loop(), eager_start=True)  # type: ignore[call-arg]
        else:
            entry.task = asyncio.get_running_loop().create_task(answer)
        return SCHEDULED | KEPT if keeps else SCHEDULED

    async def _answer(self, row: Row, request: Request, nodeid: int, coroutine: Any, entry: InFlight, buffer: Any) -> None:
        """Await a handler, and answer; whatever it does there is one answer."""
        entry.task = asyncio.current_task()  # known from the handler's first step, eager ones included
        _current.set(entry)
        result = _FAILED
        try:
            result = await coroutine
            out = row.op.out
            if isinstance(result, AsyncIterable) and (out is abi.DIRENTS or out is abi.DIRENTS_PLUS):
                result = await self._replies.gather(request, result, out is abi.DIRENTS_PLUS)
            message = row.reply(request, result)  # type: ignore[misc]
        except BaseException as error:
            result = _FAILED
            message = self._failure(row, request, error)
        # Before the reply: the kernel may use the number again as soon as it has the answer.
        self.inflight.pop(entry.unique, None)
        try:
            if isinstance(message, bytes):
                self._write(message)
            elif message is not None:
                self._writev(message)
        except Exception as error:
            self._undelivered(row, request, nodeid, result, error)
        if buffer is not None and self._recycle is not None:
            self._recycle(buffer)
        for callback in entry.after:
            callback()

    def _current_request(self) -> InFlight | None:
        """Return the request whose handler runs now, or whose handler started the task that does; None when it was answered."""
        entry = _current.get()
        return entry if entry is not None and self.inflight.get(entry.unique) is entry else None

    # Answers.

    def _failure(self, row: Row, request: Request, error: BaseException) -> Message:
        """Return the answer to a request whose handler raised *error*; log what is a bug."""
        number = errno_of(error)
        if number is None:
            if isinstance(error, asyncio.CancelledError):
                number = errno.EINTR
            elif isinstance(error, ProtocolError):
                log.error("protocol error: %s", error)
                number = errno.EIO
            else:
                log.error("%s: the handler failed, answering EIO", row.op.name, exc_info=error)
                number = errno.EIO
        elif number == errno.ENOSYS:
            # The kernel would take it for the whole mount; only the core says it, for what is not overridden.
            number = errno.ENOTTY if row.opcode == abi.IOCTL else errno.EOPNOTSUPP
        if row.op.out is abi.NO_REPLY:
            return None
        return _pack_header(16, -number, request.unique)

    def _answer_error(self, unique: int, number: int) -> None:
        self._send_quietly(_pack_header(16, -number, unique))

    def _send_quietly(self, message: bytes) -> None:
        """Send an answer that nobody misses when its caller is gone."""
        try:
            self._write(message)
        except OSError as error:
            if error.errno not in _GONE:
                log.error("the kernel refused an answer: %s", error)

    def _undelivered(self, row: Row, request: Request, nodeid: int, result: Any, error: Exception) -> None:
        """Take back what an answer that did not arrive had counted: ENOENT says that the request was aborted meanwhile.

        A request whose answer was refused for its form (the length is not what the header says: EINVAL) stays pending in the
        kernel (fs/fuse/dev.c fuse_dev_do_write), and its caller would wait for ever: it is answered EIO. One that was refused
        for its size was answered so by the kernel; then this answer is an ENOENT that nobody minds.
        """
        if not isinstance(error, OSError):
            log.error("%s: the handler's result cannot be sent, answering EIO", row.op.name, exc_info=error)
            self._answer_error(request.unique, errno.EIO)
        elif error.errno not in _GONE:
            log.error("%s: the kernel refused the reply to request %d: %s", row.op.name, request.unique, error)
            self._answer_error(request.unique, errno.EIO)
        if result is _FAILED:
            return
        out = row.op.out
        if out is abi.ENTRY:
            if result is not None:
                self._forget(request, result.ino, 1)
        elif out is abi.CREATED:
            self._forget(request, result[0].ino, 1)
            self._release_lost(request, nodeid=result[0].ino, is_directory=False)
        elif out is abi.OPENED:
            self._release_lost(request, nodeid, row.opcode == abi.OPENDIR)
        elif out is abi.DIRENTS_PLUS:
            for ino in self._replies.counted:
                self._forget(request, ino, 1)

    def _release_lost(self, request: Request, nodeid: int, is_directory: bool) -> None:
        """Release a handle that the kernel never heard of."""
        handle = self.handles.pop(self._replies.last_fh) if self._replies.last_fh else None
        release = self.fs.releasedir if is_directory else self.fs.release
        row = self._table[abi.RELEASEDIR if is_directory else abi.RELEASE][3].silent()
        self._lost -= 1
        lost = Request(self._lost, request.uid, request.gid, request.pid)
        try:
            result = release(lost, nodeid, handle)
            if type(result) is CoroutineType:
                self._start(row, lost, nodeid, result, b"")
        except BaseException as error:
            self._failure(row, lost, error)

    # What the core answers itself.

    def _forget(self, request: Request, nodeid: int, nlookup: int) -> None:
        try:
            self.fs.forget(nodeid, nlookup)
        except BaseException:
            log.exception("FORGET: the handler failed")

    def _batch_forget(self, request: Request, count: int, data: memoryview) -> None:
        forget = self.fs.forget
        for nodeid, nlookup in codec.FORGET_ONE.iter_unpack(data):
            try:
                forget(nodeid, nlookup)
            except BaseException:
                log.exception("BATCH_FORGET: the handler failed")

    def _interrupt(self, request: Request, unique: int) -> None:
        """Cancel the handler of *unique*. One that is not known was already answered: a single reader sees requests in
        order, so there is nothing the kernel should ask again for with EAGAIN."""
        entry = self.inflight.get(unique)
        if entry is not None and entry.task is not None:
            # Not at once: a task that has not begun must begin, so that it answers.
            asyncio.get_running_loop().call_soon(entry.task.cancel)

    def _notify_reply(self, request: Request, offset: int, data: memoryview) -> None:
        if self._notifier is not None:
            self._notifier.retrieved(request.unique, offset, bytes(data))

    def _destroy(self, request: Request) -> None:
        """Nothing: the driver ends the filesystem when reading ends, which also happens without a DESTROY."""

    # INIT.

    def _init_call(self, method: None, request: Request, buffer: Any, n: int, nodeid: int, objects: Any) -> Any:
        message = codec.decode_request(bytes(buffer[:n]))
        return message.fields

    def _init_reply(self, request: Request, fields: dict[str, Any]) -> Message:
        """Answer INIT: agree, or refuse a kernel that is too old, or ask a newer major version to speak ours."""
        major, minor = fields["major"], fields["minor"]
        if self.agreed is not None:
            raise ProtocolError("INIT came twice")
        if major > abi.KERNEL_VERSION:
            return codec.encode_reply(abi.INITIAL, request.unique, major=abi.KERNEL_VERSION, minor=abi.KERNEL_MINOR_VERSION)
        if major < abi.KERNEL_VERSION or minor < abi.OLDEST_MINOR_VERSION:
            oldest = f"{abi.KERNEL_VERSION}.{abi.OLDEST_MINOR_VERSION}"
            error = ProtocolError(f"the kernel speaks FUSE {major}.{minor}; at least {oldest} (Linux 3.15) is needed")
            if self.initialised is not None and not self.initialised.done():
                self.initialised.set_exception(error)
            log.error("protocol error: %s", error)
            return _pack_header(16, -errno.EPROTO, request.unique)
        offered = fields["flags"] | (fields.get("flags2", 0) << 32 if fields["flags"] & abi.INIT_EXT else 0)
        agreed = capabilities.negotiate(self.fs, minor, offered, fields["max_readahead"], self._limits)
        self._build(agreed)
        if self.initialised is not None and not self.initialised.done():
            self.initialised.set_result(agreed)
        return codec.encode_reply(abi.INITIAL, request.unique, **agreed.reply_fields())

    def _build(self, agreed: Agreed) -> None:
        """Build the table from what the filesystem overrides and what was agreed."""
        self.agreed = agreed
        self._replies.passthrough = agreed.has(abi.PASSTHROUGH)
        if self._notifier is not None:
            self._notifier.kernel_minor = agreed.minor
        own: dict[int, Callable[..., Any]] = {
            abi.FORGET: self._forget,
            abi.BATCH_FORGET: self._batch_forget,
            abi.INTERRUPT: self._interrupt,
            abi.NOTIFY_REPLY: self._notify_reply,
            abi.DESTROY: self._destroy,
        }
        self._table[:] = table.build(self.fs, agreed, self._replies, self.handles, own)
        self._table[abi.INIT] = (self._init_call, None, self._init_reply, Row(abi.INIT, abi.OPS[abi.INIT]))

    # The end.

    async def drain(self, grace: float = 5.0) -> None:
        """Let the running handlers end: cancel them, and wait *grace* seconds for those that clean up."""
        tasks = [entry.task for entry in self.inflight.values() if entry.task is not None]
        if not tasks:
            return
        await asyncio.sleep(0)  # a task that has not begun must begin, so that it answers
        for task in tasks:
            task.cancel()
        _, late = await asyncio.wait(tasks, timeout=grace)
        if late:
            log.warning("%d handlers did not end within %g s of being cancelled", len(late), grace)
