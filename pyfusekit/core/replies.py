"""What a handler returned, made into the reply; the node counts and handles that go with it."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterable, Callable, Sequence
from typing import Any

from . import abi, codec, encoders
from .filesystem import Filesystem
from .inodes import HandleTable
from .types import Attr, Data, DirEntry, Ioctl, Lock, Opened, ReadResult, Request, StatFs

Message = bytes | Sequence[Data] | None
"""A whole reply, or its parts for one writev, or None: there is no reply."""

_JOIN_UP_TO = 4096
"""Bytes; below, one copy costs less than a second part of a writev."""
_LONGEST_TARGET = 4095
"""Bytes of a symbolic link's target: a page without its NUL (fs/fuse/dir.c fuse_readlink_folio)."""
_MOST_PARTS = 1000
"""Parts of one writev; Linux takes 1024 (UIO_MAXIOV)."""

_pack_header = encoders.pack_reply_header


class TooLong(ValueError):
    """A handler returned more than was asked for."""


class Replies:
    """Builds the replies of one session. Each method is ``(request, result) -> Message``, and one row's ``out`` names it."""

    def __init__(self, fs: Filesystem, handles: HandleTable) -> None:
        self._fs = fs
        self._handles = handles
        self._attr_ttl = codec.split_ttl(fs.attr_ttl)
        self._entry_ttl = codec.split_ttl(fs.entry_ttl)
        self._negative_ttl = codec.split_ttl(fs.negative_ttl)
        self.passthrough = False
        """The kernel agreed to serve data from backing files."""
        self.last_fh = 0
        """The handle that the last reply with one told the kernel; and the nodes that the last listing counted. They are
        taken back when that very reply is not delivered, which is known before the next one is built."""
        self.counted: list[int] = []
        self.builder: dict[abi.Out, Callable[[Request, Any], Message]] = {
            abi.EMPTY: self._empty,
            abi.NO_REPLY: self._no_reply,
            abi.ENTRY: self._entry,
            abi.ATTRS: self._attrs,
            abi.STATX_ATTRS: self._statx,
            abi.OPENED: self._opened,
            abi.CREATED: self._created,
            abi.TARGET: self._target,
            abi.DATA: self._data,
            abi.WRITTEN: self._written,
            abi.TOTALS: self._totals,
            abi.XATTR: self._xattr,
            abi.XATTR_NAMES: self._xattr_names,
            abi.DIRENTS: self._dirents,
            abi.DIRENTS_PLUS: self._dirents_plus,
            abi.LOCK: self._lock,
            abi.BLOCK: self._offset,
            abi.IOCTL_RESULT: self._ioctl,
            abi.REVENTS: self._revents,
            abi.OFFSET: self._offset,
            abi.COPIED: self._offset,
        }

    # Each takes what its operation's method returned.

    def _empty(self, request: Request, result: None) -> Message:
        return _pack_header(16, 0, request.unique)

    def _no_reply(self, request: Request, result: None) -> Message:
        return None

    def _entry(self, request: Request, result: Attr | None) -> Message:
        if result is None:
            return encoders.encode_negative_entry(request.unique, self._negative_ttl)
        try:
            return encoders.encode_entry(request.unique, result, self._entry_ttl, self._attr_ttl)
        except BaseException:
            self._uncount(result)
            raise

    def _uncount(self, attr: Any) -> None:
        """Take back the lookup of an Attr that cannot be put into words: the kernel will not hear of it."""
        if isinstance(attr, Attr):
            self._fs.forget(attr.ino, 1)

    def _attrs(self, request: Request, result: Attr) -> Message:
        return encoders.encode_attr(request.unique, result, self._attr_ttl)

    def _statx(self, request: Request, result: Attr) -> Message:
        return encoders.encode_statx(request.unique, result, self._attr_ttl)

    def _open_words(self, result: Any) -> tuple[int, int, int]:
        """Return (fh, open_flags, backing_id) of what open returned, and keep its handle."""
        flags = backing_id = 0
        if type(result) is Opened:
            flags = result.flags
            if result.backing is not None and self.passthrough:
                flags |= abi.FOPEN_PASSTHROUGH
                backing_id = result.backing.id
            result = result.handle
        self.last_fh = fh = self._handles.add(result) if result is not None else 0
        return fh, flags, backing_id

    def _opened(self, request: Request, result: Any) -> Message:
        fh, flags, backing_id = self._open_words(result)
        try:
            return encoders.encode_opened(request.unique, fh, flags, backing_id)
        except BaseException:
            self._handles.pop(fh)
            raise

    def _created(self, request: Request, result: tuple[Attr, Any]) -> Message:
        attr, opened = result
        fh, flags, backing_id = self._open_words(opened)
        try:
            return encoders.encode_created(request.unique, attr, self._entry_ttl, self._attr_ttl, fh, flags, backing_id)
        except BaseException:
            self._handles.pop(fh)
            self._uncount(attr)
            raise

    def _target(self, request: Request, result: bytes) -> Message:
        if len(result) > _LONGEST_TARGET:
            raise TooLong(f"readlink returned {len(result)} bytes, a path has at most {_LONGEST_TARGET}")
        return _pack_header(16 + len(result), 0, request.unique) + result

    def _data(self, request: Request, result: ReadResult) -> Message:
        if type(result) is list:
            length = sum(map(len, result))
            if length > request.size:
                raise TooLong(f"read returned {length} bytes, {request.size} were asked for")
            header = _pack_header(16 + length, 0, request.unique)
            if length <= _JOIN_UP_TO or len(result) > _MOST_PARTS:
                return header + b"".join(result)
            return [header, *result]
        length = len(result)
        if length > request.size:
            raise TooLong(f"read returned {length} bytes, {request.size} were asked for")
        header = _pack_header(16 + length, 0, request.unique)
        if length <= _JOIN_UP_TO:
            return header + result  # type: ignore[operator]
        return (header, result)  # type: ignore[return-value]

    def _written(self, request: Request, result: int) -> Message:
        return encoders.encode_written(request.unique, result)

    def _totals(self, request: Request, result: StatFs) -> Message:
        return encoders.encode_statfs(request.unique, result)

    def _xattr(self, request: Request, result: Data) -> Message:
        length = len(result)
        if request.size == 0:
            return encoders.encode_written(request.unique, length)
        if length > request.size:
            return _pack_header(16, -errno.ERANGE, request.unique)
        return _pack_header(16 + length, 0, request.unique) + bytes(result)

    def _xattr_names(self, request: Request, result: list[bytes]) -> Message:
        return self._xattr(request, b"".join([name + b"\0" for name in result]))

    def _packer(self, request: Request, plus: bool) -> encoders.DirentPacker:
        return encoders.DirentPacker(request.size, plus, self._entry_ttl, self._attr_ttl, self._fs.entered)

    def _take_back(self, packer: encoders.DirentPacker) -> None:
        for ino in packer.counted:
            self._fs.forget(ino, 1)

    def _dirents(self, request: Request, result: Any) -> Message:
        return self._listing(request, result, plus=False)

    def _dirents_plus(self, request: Request, result: Any) -> Message:
        return self._listing(request, result, plus=True)

    def _listing(self, request: Request, result: Any, plus: bool) -> Message:
        if isinstance(result, encoders.DirentPacker):
            packer = result
        else:
            packer = self._packer(request, plus)
            try:
                for entry in result:
                    if not packer.add(entry):
                        break
            except BaseException:
                self._take_back(packer)
                raise
        self.counted = packer.counted
        body = b"".join(packer.parts)
        return _pack_header(16 + len(body), 0, request.unique) + body

    async def gather(self, request: Request, entries: AsyncIterable[DirEntry], plus: bool) -> encoders.DirentPacker:
        """Take entries from an asynchronous source until the reply is full, and close the source."""
        packer = self._packer(request, plus)
        iterator = entries.__aiter__()
        try:
            try:
                async for entry in iterator:
                    if not packer.add(entry):
                        break
            finally:
                close = getattr(iterator, "aclose", None)
                if close is not None:
                    await close()
        except BaseException:
            self._take_back(packer)
            raise
        return packer

    def _lock(self, request: Request, result: Lock | None) -> Message:
        return encoders.encode_lock(request.unique, result)

    def _offset(self, request: Request, result: int) -> Message:
        return encoders.encode_offset(request.unique, result)

    def _revents(self, request: Request, result: int) -> Message:
        return encoders.encode_written(request.unique, result)

    def _ioctl(self, request: Request, result: Ioctl | None) -> Message:
        if result is None:
            return encoders.encode_ioctl(request.unique, 0, b"")
        if len(result.data) > request.size:
            raise TooLong(f"ioctl returned {len(result.data)} bytes, {request.size} were asked for")
        return encoders.encode_ioctl(request.unique, result.result, result.data)
