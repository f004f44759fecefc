"""A driver for a Session in tests: messages go in as bytes, and replies are judged as strictly as the kernel would."""

from __future__ import annotations

import asyncio
import errno
import itertools
from collections.abc import Callable, Sequence
from typing import Any

from pyfusekit.core import abi, codec
from pyfusekit.core.capabilities import Limits
from pyfusekit.core.codec import ReplyMessage
from pyfusekit.core.filesystem import Filesystem
from pyfusekit.core.notify import Notifier
from pyfusekit.core.session import KEPT, Session
from pyfusekit.core.types import Attr, Data, Request

OFFERED = 0x7FD << 32 | 0x73FFFFFB
"""What Linux 6.18 offers."""
TURNS = 25
"""Turns of the loop after which what can happen without waiting for time has happened."""


def make_fs(base: type[Filesystem] = Filesystem, /, **members: Any) -> Filesystem:
    """Return a filesystem whose class has *members*: functions become methods, without self."""
    wrapped = {name: staticmethod(value) if callable(value) else value for name, value in members.items()}
    made: Filesystem = type("Made", (base,), wrapped)()
    return made


def attr(ino: int = 7, mode: int = 0o100644, **more: Any) -> Attr:
    """Return some attributes."""
    return Attr(ino=ino, mode=mode, **more)


class Driver:
    """A session with its messages: sends requests, takes replies, recycles buffers."""

    def __init__(
        self,
        fs: Filesystem,
        *,
        offered: int = OFFERED,
        minor: int = 45,
        limits: Limits | None = None,
        notifier: Notifier | None = None,
        begin: bool = True,
    ) -> None:
        self.fs = fs
        self.replies: list[tuple[int, bytes]] = []
        """(unique, message) of what was written."""
        self.refuse: Callable[[int], int] = lambda unique: 0
        """Says with which errno the kernel refuses an answer; 0 takes it."""
        self.refused: list[int] = []
        self.recycled: list[bytearray] = []
        self.opcodes: dict[int, int] = {}
        self._numbers = itertools.count(2, 2)
        self.session = Session(fs, self._write, self._writev, limits=limits, notifier=notifier, recycle=self.recycled.append)
        if begin:
            self.init(offered=offered, minor=minor)

    def init(self, *, offered: int = OFFERED, minor: int = 45, major: int = 7, max_readahead: int = 1 << 17) -> ReplyMessage:
        """Let the kernel begin."""
        return self.ask(
            abi.INIT, major=major, minor=minor, max_readahead=max_readahead, flags=offered & 0xFFFFFFFF, flags2=offered >> 32
        )

    # The session's way out.

    def _write(self, message: bytes) -> None:
        assert type(message) is bytes
        unique = codec.OUT_HEADER.unpack_from(message)[2]
        number = self.refuse(unique)
        if number:
            self.refused.append(unique)
            raise OSError(number, "refused by the test")
        if len(message) != codec.OUT_HEADER.unpack_from(message)[0]:
            self.refused.append(unique)
            raise OSError(errno.EINVAL, "the length is wrong")
        self.replies.append((unique, message))

    def _writev(self, parts: Sequence[Data]) -> None:
        assert len(parts) <= 1024
        self._write(b"".join(memoryview(part) for part in parts))

    # Requests.

    def encode(self, opcode: int, nodeid: int = 1, *, unique: int | None = None, **arguments: Any) -> tuple[int, bytes]:
        """Return a request and its number."""
        unique = next(self._numbers) if unique is None else unique
        self.opcodes[unique] = opcode
        return unique, codec.encode_request(opcode, unique, nodeid, **arguments)

    def send(self, opcode: int, nodeid: int = 1, *, unique: int | None = None, **arguments: Any) -> int:
        """Send a request from a buffer that is overwritten as soon as it is not kept; return its number."""
        unique, message = self.encode(opcode, nodeid, unique=unique, **arguments)
        self.feed(message)
        return unique

    def feed(self, message: bytes) -> int:
        """Hand the session a message, in a buffer that holds older bytes behind it."""
        buffer = bytearray(message + b"\xa5" * 64)
        said = self.session.receive(buffer, len(message))
        if not said & KEPT:
            buffer[:] = b"\x5a" * len(buffer)
        return said

    def taken(self, unique: int) -> list[ReplyMessage]:
        """Return the replies to a request that have arrived so far, judged."""
        out = abi.OPS[self.opcodes[unique]].out
        replies = []
        for number, message in self.replies:
            if number == unique:
                sized = out in (abi.XATTR, abi.XATTR_NAMES) or out.data
                replies.append(codec.decode_reply(out if sized or out.layout else abi.EMPTY, message))
        return replies

    def reply(self, unique: int) -> ReplyMessage:
        """Return the one reply to a request."""
        replies = self.taken(unique)
        assert len(replies) == 1, f"{len(replies)} replies to request {unique}"
        return replies[0]

    def ask(self, opcode: int, nodeid: int = 1, **arguments: Any) -> ReplyMessage:
        """Send a request that is answered at once, and return the reply."""
        return self.reply(self.send(opcode, nodeid, **arguments))

    async def wait(self, opcode: int, nodeid: int = 1, **arguments: Any) -> ReplyMessage:
        """Send a request that may take some turns of the loop, and return the reply."""
        unique = self.send(opcode, nodeid, **arguments)
        await self.settle()
        return self.reply(unique)

    async def settle(self) -> None:
        """Give every task its turns."""
        for _ in range(TURNS):
            await asyncio.sleep(0)

    def interrupt(self, unique: int) -> None:
        """Let a signal come to whoever waits for *unique*."""
        message = codec.encode_request(abi.INTERRUPT, unique & ~abi.UNIQUE_RESEND | 1, body={"unique": unique})
        self.feed(message)


class Counting(Filesystem):
    """Counts the lookups and open files that the kernel has, as the core tells them."""

    def __init__(self) -> None:
        self.lookups: dict[int, int] = {}
        self.files: list[Any] = []
        self.released: list[tuple[int, Any]] = []

    def entered(self, ino: int) -> None:
        self.lookups[ino] = self.lookups.get(ino, 0) + 1

    def forget(self, ino: int, nlookup: int) -> None:
        assert self.lookups.get(ino, 0) >= nlookup, "more was forgotten than counted"
        self.lookups[ino] -= nlookup

    def counted(self, ino: int = 7) -> Attr:
        """Count a lookup where the node is chosen."""
        self.entered(ino)
        return attr(ino)

    def opened(self, handle: Any) -> Any:
        self.files.append(handle)
        return handle

    def release(self, request: Request, ino: int, handle: Any) -> Any:
        self.files.remove(handle)
        self.released.append((ino, handle))

    def releasedir(self, request: Request, ino: int, handle: Any) -> Any:
        self.files.remove(handle)
        self.released.append((ino, handle))
