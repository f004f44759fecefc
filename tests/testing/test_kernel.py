"""The fake kernel: it asks as the kernel asks, refuses what the kernel refuses, and keeps count."""

from __future__ import annotations

import asyncio
import errno
import logging
import stat
from collections.abc import AsyncIterator
from typing import Any

import pytest

from pyfusekit.core import Attr, DirEntry, Entries, Filesystem, Request, abi, codec, encoders
from pyfusekit.testing.contract.base import fails_with
from pyfusekit.testing.kernel import FakeKernel
from pyfusekit.testing.pending import Pending

EIGHT = b"\0" * 8


class Shelf(Filesystem):
    """A root with one file "book" (node 7), which is slow to read on demand, and one directory "box" (node 8)."""

    entry_ttl = attr_ttl = 60.0

    def __init__(self) -> None:
        self.nlookup = {7: 0, 8: 0}
        self.gate = asyncio.Event()
        self.running = self.most = 0
        self.cancelled = 0
        self.handles: list[object] = []
        self.written = b""
        self.wrong_type = 0

    def attr(self, ino: int) -> Attr:
        kind = stat.S_IFREG if ino == 7 else stat.S_IFDIR
        return Attr(ino=ino, mode=kind | 0o755, size=1000 if ino == 7 else 0, nlink=1)

    def lookup(self, request: Request, parent: int, name: bytes) -> Attr | None:
        ino = {b"book": 7, b"box": 8}.get(name)
        if ino is None:
            raise OSError(errno.ENOENT, "no such thing")
        self.nlookup[ino] += 1
        return self.attr(ino)

    def forget(self, ino: int, nlookup: int) -> None:
        self.nlookup[ino] -= nlookup

    def entered(self, ino: int) -> None:
        self.nlookup[ino] += 1

    def getattr(self, request: Request, ino: int, handle: Any) -> Attr:
        return self.attr(ino)

    def open(self, request: Request, ino: int, flags: int) -> Any:
        handle = object()
        self.handles.append(handle)
        return handle

    def release(self, request: Request, ino: int, handle: Any) -> None:
        self.handles.remove(handle)

    async def read(self, request: Request, ino: int, handle: Any, offset: int, size: int) -> bytes:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
        return bytes([offset % 251]) * size

    def write(self, request: Request, ino: int, handle: Any, offset: int, data: memoryview) -> int:
        self.written = bytes(data)
        return len(data)

    async def mkdir(self, request: Request, parent: int, name: bytes, mode: int, umask: int) -> Attr:
        await self.gate.wait()
        self.nlookup[8] += 1
        return Attr(ino=8, mode=self.wrong_type or stat.S_IFDIR | mode)

    def readdirplus(self, request: Request, ino: int, handle: Any, offset: int) -> Entries:
        entries = [
            DirEntry(b".", 1, stat.S_IFDIR, 1, self.attr(1)),
            DirEntry(b"..", 1, stat.S_IFDIR, 2, self.attr(1)),
            DirEntry(b"book", 7, stat.S_IFREG, 3, self.attr(7)),
            DirEntry(b"box", 8, stat.S_IFDIR, 4),
        ]
        return entries[offset:]

    def readdir(self, request: Request, ino: int, handle: Any, offset: int) -> Entries:
        return self.readdirplus(request, ino, handle, offset)


@pytest.fixture
async def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
async def kernel(shelf: Shelf) -> AsyncIterator[FakeKernel]:
    async with FakeKernel(shelf) as kernel:
        yield kernel


async def settled(kernel: FakeKernel) -> None:
    """Wait until all that was sent has been read: messages are read in order, so one question behind them tells."""
    await kernel.request(abi.STATFS, 1)


# Asking.


@pytest.mark.parametrize("minor", [23, 27, 31, 35, 36, 40, 45])
async def test_every_version_the_core_speaks_is_negotiated(minor: int) -> None:
    async with FakeKernel(Shelf(), minor=minor) as kernel:
        assert kernel.agreed is not None
        assert kernel.agreed.minor == minor
        assert (await kernel.request(abi.LOOKUP, 1, names=[b"book"])).fields["nodeid"] == 7
        kernel.forget_all()
        kernel.check()


async def test_what_is_not_offered_is_not_agreed() -> None:
    async with FakeKernel(Shelf(), offered=abi.INIT_EXT | abi.MAX_PAGES) as kernel:
        assert kernel.has(abi.MAX_PAGES)
        assert not kernel.has(abi.DO_READDIRPLUS)
        assert not kernel.has(abi.PARALLEL_DIROPS)
        kernel.check()


async def test_read_and_write_sizes_follow_max_pages() -> None:
    async with FakeKernel(Shelf(), max_pages=4) as kernel:
        assert kernel.agreed is not None
        assert kernel.agreed.max_write == 4 * 4096


async def test_lookup_is_counted_and_forgotten(kernel: FakeKernel, shelf: Shelf) -> None:
    for _ in range(3):
        reply = await kernel.request(abi.LOOKUP, 1, names=[b"book"])
    assert reply.fields["attr_size"] == 1000
    assert kernel.lookups[7] == shelf.nlookup[7] == 3
    kernel.forget(7, 2)
    await settled(kernel)
    assert shelf.nlookup[7] == 1
    kernel.forget(7)
    await settled(kernel)
    assert shelf.nlookup[7] == 0
    kernel.check()


async def test_error_is_raised_with_its_errno(kernel: FakeKernel) -> None:
    with pytest.raises(FileNotFoundError):
        await kernel.request(abi.LOOKUP, 1, names=[b"missing"])


async def test_all_are_forgotten_in_one_message(kernel: FakeKernel, shelf: Shelf) -> None:
    for name in (b"book", b"box", b"box"):
        await kernel.request(abi.LOOKUP, 1, names=[name])
    kernel.forget_all()
    await settled(kernel)
    assert shelf.nlookup == {7: 0, 8: 0}
    assert kernel.asked[abi.BATCH_FORGET] == 1
    kernel.check()


async def test_listing_counts_only_entries_with_attributes(kernel: FakeKernel, shelf: Shelf) -> None:
    reply = await kernel.request(abi.READDIRPLUS, 1, size=4096)
    names = [entry["name"] for entry in codec.decode_dirents(reply.data, plus=True)]
    assert names == [b".", b"..", b"book", b"box"]
    assert dict(kernel.lookups) == {7: 1}
    assert shelf.nlookup == {7: 1, 8: 0}


async def test_big_data_goes_both_ways(kernel: FakeKernel, shelf: Shelf) -> None:
    shelf.gate.set()
    fh = (await kernel.request(abi.OPEN, 7)).fields["fh"]
    data = bytes(range(256)) * 256
    written = await kernel.request(abi.WRITE, 7, fh=fh, size=len(data), data=data)
    assert written.fields["size"] == 65536
    assert shelf.written == data
    reply = await kernel.request(abi.READ, 7, fh=fh, offset=5, size=65536)
    assert reply.data == b"\5" * 65536
    await kernel.request(abi.RELEASE, 7, fh=fh)
    kernel.check()


async def test_setattr_carries_owner_and_caller(kernel: FakeKernel) -> None:
    pending = kernel.send(abi.SETATTR, 7, caller=(11, 12, 13), valid=abi.FATTR_UID, uid=21, gid=22)
    message = codec.decode_request(pending.message)
    assert [message.header[key] for key in ("uid", "gid", "pid")] == [11, 12, 13]
    assert [message.fields[key] for key in ("uid", "gid")] == [21, 22]
    with pytest.raises(PermissionError):
        await pending


async def test_absent_operation_is_asked_once(kernel: FakeKernel) -> None:
    for _ in range(3):
        with fails_with(errno.ENOSYS):
            await kernel.request(abi.GETXATTR, 7, names=[b"user.x"], size=100)
    assert kernel.asked[abi.GETXATTR] == 1
    assert abi.GETXATTR in kernel.absent


async def test_ioctl_is_asked_every_time(kernel: FakeKernel) -> None:
    for _ in range(2):
        with fails_with(errno.ENOSYS, errno.ENOTTY):
            await kernel.request(abi.IOCTL, 7, cmd=1)
    assert kernel.asked[abi.IOCTL] == 2


async def test_a_thousand_requests_wait_side_by_side(kernel: FakeKernel, shelf: Shelf) -> None:
    fh = (await kernel.request(abi.OPEN, 7)).fields["fh"]
    reads = [kernel.send(abi.READ, 7, fh=fh, offset=index, size=4096) for index in range(1000)]
    await settled(kernel)
    await asyncio.sleep(0)
    assert shelf.most == 1000
    shelf.gate.set()
    for index, pending in enumerate(reads):
        assert (await pending).data == bytes([index % 251]) * 4096
    await kernel.request(abi.RELEASE, 7, fh=fh)
    kernel.check()


# Interrupting, abandoning, sending again.


async def test_interrupt_cancels_the_handler_and_the_caller_sees_eintr(kernel: FakeKernel, shelf: Shelf) -> None:
    pending = kernel.send(abi.READ, 7, size=10)
    await settled(kernel)
    kernel.interrupt(pending)
    with pytest.raises(InterruptedError):
        await pending
    assert shelf.cancelled == 1
    kernel.check()


async def test_interrupt_of_an_answered_request_is_not_sent(kernel: FakeKernel) -> None:
    pending = kernel.send(abi.GETATTR, 7)
    await pending
    kernel.interrupt(pending)
    assert kernel.asked[abi.INTERRUPT] == 0


async def test_answer_to_who_was_killed_is_enoent_and_is_taken_back(kernel: FakeKernel, shelf: Shelf) -> None:
    pending = kernel.send(abi.MKDIR, 1, names=[b"new"], mode=0o755)
    await settled(kernel)
    kernel.abandon(pending)
    shelf.gate.set()
    await settled(kernel)
    await asyncio.sleep(0.01)
    assert shelf.nlookup[8] == 0
    assert kernel.lookups[8] == 0
    kernel.check()


async def test_unanswered_requests_are_sent_again_with_bit_63(kernel: FakeKernel, shelf: Shelf) -> None:
    pending = kernel.send(abi.READ, 7, offset=3, size=4)
    await settled(kernel)
    before = pending.unique
    assert kernel.resend() == 1
    assert pending.unique == before | 1 << 63
    with pytest.raises(FileNotFoundError):
        kernel._take_reply([encoders.pack_reply_header(16, 0, before)])
    assert kernel.complaints.pop().startswith("reply to")
    await settled(kernel)
    kernel.interrupt(pending)
    with pytest.raises(InterruptedError):
        await pending


# Judging.


@pytest.fixture
async def waiting(kernel: FakeKernel) -> Pending:
    """A READ of at most 8 bytes that the server does not answer."""
    pending = kernel.send(abi.READ, 7, size=8)
    await settled(kernel)
    return pending


def assert_refused(kernel: FakeKernel, number: int, message: bytes) -> None:
    """The server's write of *message* gets *number*, and the reckoning at the end tells of it."""
    with fails_with(number):
        kernel._take_reply([message])
    assert len(kernel.complaints) == 1
    with pytest.raises(AssertionError):
        kernel.check()


async def test_reply_to_nobody_is_enoent(kernel: FakeKernel) -> None:
    assert_refused(kernel, errno.ENOENT, encoders.pack_reply_header(16, 0, 4242))


async def test_second_reply_is_enoent(kernel: FakeKernel) -> None:
    pending = kernel.send(abi.GETATTR, 7)
    await pending
    assert_refused(kernel, errno.ENOENT, encoders.pack_reply_header(16, -errno.EIO, pending.unique))


async def test_reply_that_lies_about_its_length_is_einval(kernel: FakeKernel, waiting: Pending) -> None:
    assert_refused(kernel, errno.EINVAL, encoders.pack_reply_header(17, 0, waiting.unique))
    assert not waiting.future.done()


@pytest.mark.parametrize("error", [1, -512, -1000])
async def test_error_out_of_range_is_einval_and_the_caller_hangs(kernel: FakeKernel, waiting: Pending, error: int) -> None:
    assert_refused(kernel, errno.EINVAL, encoders.pack_reply_header(16, error, waiting.unique))
    assert not waiting.future.done()


async def test_error_with_a_body_is_einval_and_eio(kernel: FakeKernel, waiting: Pending) -> None:
    assert_refused(kernel, errno.EINVAL, encoders.pack_reply_header(24, -errno.ENOENT, waiting.unique) + EIGHT)
    with pytest.raises(OSError, match="malformed"):
        await waiting


async def test_more_data_than_was_asked_for_is_einval_and_eio(kernel: FakeKernel, waiting: Pending) -> None:
    assert_refused(kernel, errno.EINVAL, encoders.pack_reply_header(25, 0, waiting.unique) + EIGHT + b"x")
    with pytest.raises(OSError, match="malformed"):
        await waiting


async def test_less_data_than_was_asked_for_is_taken(kernel: FakeKernel, waiting: Pending) -> None:
    kernel._take_reply([encoders.pack_reply_header(19, 0, waiting.unique), b"abc"])
    assert (await waiting).data == b"abc"
    assert not kernel.complaints


async def test_short_struct_is_einval_and_eio(kernel: FakeKernel, shelf: Shelf) -> None:
    pending = kernel.send(abi.MKDIR, 1, names=[b"new"], mode=0o755)
    await settled(kernel)
    assert_refused(kernel, errno.EINVAL, encoders.pack_reply_header(16 + 120, 0, pending.unique) + bytes(120))


async def test_node_of_another_type_is_eio_and_forgotten(kernel: FakeKernel, shelf: Shelf) -> None:
    shelf.gate.set()
    shelf.wrong_type = stat.S_IFREG | 0o644
    with pytest.raises(OSError, match="type"):
        await kernel.request(abi.MKDIR, 1, names=[b"new"], mode=0o755)
    await settled(kernel)
    assert shelf.nlookup[8] == 0
    assert "MKDIR" in kernel.complaints[0]


@pytest.mark.parametrize("nodeid", [0, 1])
async def test_new_node_must_not_be_the_root_or_nothing(kernel: FakeKernel, nodeid: int) -> None:
    pending = kernel.send(abi.MKDIR, 1, names=[b"new"], mode=0o755)
    await settled(kernel)
    entry = codec.pack(abi.ENTRY_OUT, nodeid=nodeid, attr_mode=stat.S_IFDIR)
    kernel._take_reply([encoders.pack_reply_header(16 + len(entry), 0, pending.unique), entry])
    with pytest.raises(OSError, match="node"):
        await pending
    assert kernel.complaints


# Keeping count.


async def test_check_tells_of_a_lookup_not_forgotten(kernel: FakeKernel) -> None:
    await kernel.request(abi.LOOKUP, 1, names=[b"book"])
    with pytest.raises(AssertionError, match="not forgotten"):
        kernel.check()


async def test_check_tells_of_a_handle_not_released(kernel: FakeKernel) -> None:
    await kernel.request(abi.OPEN, 7)
    with pytest.raises(AssertionError, match="not released"):
        kernel.check()


async def test_check_tells_of_a_request_not_answered(kernel: FakeKernel, waiting: Pending) -> None:
    with pytest.raises(AssertionError, match="unanswered"):
        kernel.check()


async def test_more_is_not_forgotten_than_was_looked_up(kernel: FakeKernel) -> None:
    await kernel.request(abi.LOOKUP, 1, names=[b"book"])
    with pytest.raises(AssertionError):
        kernel.forget(7, 2)


async def test_callers_see_enotconn_when_the_server_ends(kernel: FakeKernel, waiting: Pending) -> None:
    kernel.device.close()
    with fails_with(errno.ENOTCONN):
        await waiting


# Notifications.


async def test_notifications_arrive(kernel: FakeKernel, shelf: Shelf) -> None:
    await kernel.request(abi.LOOKUP, 1, names=[b"book"])
    assert await shelf.notifier.inval_inode(7)
    assert await shelf.notifier.inval_entry(1, b"book")
    assert [note.code for note in kernel.notifications] == [abi.NOTIFY_INVAL_INODE, abi.NOTIFY_INVAL_ENTRY]
    assert kernel.notifications[1].names == [b"book"]


async def test_notification_of_an_unknown_node_finds_nothing(kernel: FakeKernel, shelf: Shelf) -> None:
    assert not await shelf.notifier.inval_inode(8)
    assert kernel.notifications == []


async def test_retrieve_is_answered(kernel: FakeKernel, shelf: Shelf) -> None:
    await kernel.request(abi.LOOKUP, 1, names=[b"book"])
    assert await shelf.notifier.retrieve(7, 0, 100) == b""
    assert kernel.asked[abi.NOTIFY_REPLY] == 1


async def test_resend_is_obeyed(kernel: FakeKernel, shelf: Shelf, waiting: Pending) -> None:
    assert await shelf.notifier.resend()
    await settled(kernel)
    assert waiting.unique >> 63 == 1


async def test_a_bug_in_a_handler_is_eio(kernel: FakeKernel, shelf: Shelf, caplog: pytest.LogCaptureFixture) -> None:
    shelf.nlookup.clear()
    with caplog.at_level(logging.CRITICAL, logger="pyfusekit"), fails_with(errno.EIO):
        await kernel.request(abi.LOOKUP, 1, names=[b"book"])
    kernel.check()
