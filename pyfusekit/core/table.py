"""The operations of one session, ready to be served: which method answers an opcode, or which errno when none does."""

from __future__ import annotations

import errno
import inspect
import struct
from collections.abc import AsyncIterable, Callable, Mapping
from typing import Any

from . import abi, calls, codec
from .capabilities import Agreed
from .filesystem import Filesystem
from .inodes import HandleTable
from .killpriv import PrivilegeKiller
from .replies import Message, Replies
from .types import Request

COPY_UP_TO = 32 << 10
"""Bytes of a message. What an ``async def`` is given is copied up to here: a thousand small writes that wait would otherwise
keep a thousand buffers of the largest write's size."""

_HEADER_BYTES = codec.HEADER_BYTES
_U64 = struct.Struct("=Q")
_STATELESS = {abi.OPEN: abi.NO_OPEN_SUPPORT, abi.OPENDIR: abi.NO_OPENDIR_SUPPORT}

Served = tuple[calls.Call | None, Callable[..., Any] | None, Callable[[Request, Any], Message] | None, Any]
"""(call, method, reply, row), as the session takes it apart."""


class Row:
    """One opcode, ready to be served by this session."""

    __slots__ = ("absent", "call", "copies", "method", "op", "opcode", "reply")

    def __init__(self, opcode: int, op: abi.Op) -> None:
        self.opcode = opcode
        self.op = op
        self.call: calls.Call | None = None
        self.method: Callable[..., Any] | None = None
        self.reply: Callable[[Request, Any], Message] | None = None
        self.absent = op.absent
        """The errno answered when there is no call."""
        self.copies = False
        """Data of up to COPY_UP_TO bytes is copied before the call, so that the task keeps no buffer."""

    def silent(self) -> Row:
        """Return the row for a call that nobody asked for, so that nobody is answered."""
        silent = Row(self.opcode, self.op._replace(out=abi.NO_REPLY))
        silent.reply = lambda request, result: None
        return silent


def build(
    fs: Filesystem, agreed: Agreed, replies: Replies, handles: HandleTable, own: Mapping[int, Callable[..., Any]]
) -> list[Served]:
    """Return opcode -> what serves it, from what *fs* overrides and what was agreed; *own* are the session's own methods."""
    wrap: Callable[[str], Callable[..., Any]] = PrivilegeKiller(fs).wrap
    if fs.handle_killpriv or not agreed.has(abi.HANDLE_KILLPRIV_V2):
        wrap = lambda name: getattr(fs, name)  # noqa: E731
    table: list[Served] = [(None, None, None, None)] * (max(abi.OPS) + 1)
    for opcode, op in abi.OPS.items():
        row = Row(opcode, op)
        row.reply = replies.builder.get(op.out)
        if opcode in own:
            row.method = own[opcode]
        elif op.method and not _is_absent(fs, row, agreed):
            row.method = wrap(op.method)
            row.copies = op.data and inspect.iscoroutinefunction(getattr(fs, op.method))
        if row.method is not None:
            row.call = _compile(row, agreed, replies, handles)
        table[opcode] = (row.call, row.method, row.reply, row)
    return table


def _is_absent(fs: Filesystem, row: Row, agreed: Agreed) -> bool:
    """Say whether an operation is answered with row.absent instead of calling a method."""
    opcode, op = row.opcode, row.op
    if (opcode == abi.OPEN and fs.stateless_open) or (opcode == abi.OPENDIR and fs.stateless_opendir):
        row.absent = errno.ENOSYS if agreed.has(_STATELESS[opcode]) else 0
        return row.absent != 0
    if opcode == abi.CREATE and fs.stateless_open:
        return True
    if op.absent == 0:
        return False  # the base class answers
    if opcode == abi.FLUSH and not fs.implements("flush") and agreed.has(abi.POSIX_LOCKS):
        row.absent = 0  # ENOSYS would let the kernel close without telling, and POSIX locks would leak
        return True
    return not fs.implements(op.method)


def _compile(row: Row, agreed: Agreed, replies: Replies, handles: HandleTable) -> calls.Call:
    """Return the row's call, with what the session adds to a few of them."""
    opcode, op = row.opcode, row.op
    if opcode == abi.SETXATTR and not agreed.has(abi.SETXATTR_EXT):
        op = op._replace(struct=abi.SETXATTR_IN_COMPAT, flags="")
    call = calls.compile_call(op)
    if opcode in (abi.RELEASE, abi.RELEASEDIR):
        return _popping(call, handles)
    if opcode in (abi.READDIR, abi.READDIRPLUS):
        return _gathering(call, replies, opcode == abi.READDIRPLUS)
    return _copying(call) if row.copies else call


def _popping(call: calls.Call, handles: HandleTable) -> calls.Call:
    """The handle ends with the release, whatever the filesystem says to it."""
    whole = _HEADER_BYTES + codec.struct_of(abi.RELEASE_IN).size

    def popping(method: Any, request: Request, buffer: Any, n: int, nodeid: int, objects: Any) -> Any:
        try:
            return call(method, request, buffer, n, nodeid, objects)
        finally:
            if n >= whole:
                (fh,) = _U64.unpack_from(buffer, _HEADER_BYTES)
                if 0 < fh < len(objects) and objects[fh] is not None:
                    handles.pop(fh)

    return popping


def _gathering(call: calls.Call, replies: Replies, plus: bool) -> calls.Call:
    """A listing that is an async generator is taken from in a task."""

    def gathering(method: Any, request: Request, buffer: Any, n: int, nodeid: int, objects: Any) -> Any:
        result = call(method, request, buffer, n, nodeid, objects)
        if isinstance(result, AsyncIterable):
            return replies.gather(request, result, plus)
        return result

    return gathering


def _copying(call: calls.Call) -> calls.Call:
    """Return *call* for a small message's copy."""

    def copying(method: Any, request: Request, buffer: Any, n: int, nodeid: int, objects: Any) -> Any:
        if n <= COPY_UP_TO:
            buffer = bytes(memoryview(buffer)[:n])
        return call(method, request, buffer, n, nodeid, objects)

    return copying
