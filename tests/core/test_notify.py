from __future__ import annotations

import asyncio
import errno
import gc
import logging
import struct
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from pyfusekit.core import abi, notify
from pyfusekit.core.errors import DeadlockError
from pyfusekit.core.notification import InFlight, Notification
from pyfusekit.core.notify import Notifier
from pyfusekit.core.types import Data

DIR, FILE, OTHER = 0x11, 0x22, 0x33
PATIENCE_S = 20.0


class Kernel:
    """The other side of the notifier's write: keeps messages, and blocks or refuses those it is told to."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.threads: set[str] = set()
        self.refuse: dict[int, int] = {}
        """Notification code -> errno."""
        self.gates: dict[int, threading.Event] = {}
        """Notification code -> what its write waits for."""
        self.entered: dict[int, threading.Event] = {}

    def block(self, code: int) -> threading.Event:
        self.entered[code] = threading.Event()
        gate = self.gates[code] = threading.Event()
        return gate

    def write(self, parts: Sequence[Data]) -> int:
        message = b"".join(bytes(part) for part in parts)
        code = struct.unpack_from("=i", message, 4)[0]
        self.threads.add(threading.current_thread().name)
        if code in self.gates:
            self.entered[code].set()
            assert self.gates[code].wait(PATIENCE_S)
        if code in self.refuse:
            raise OSError(self.refuse[code], "refused")
        self.messages.append(message)
        return len(message)

    def codes(self) -> list[int]:
        return [struct.unpack_from("=i", message, 4)[0] for message in self.messages]


class Machine:
    """A notifier on the running loop, and the requests whose handlers are tasks of it."""

    def __init__(self) -> None:
        self.kernel = Kernel()
        self.notifier = Notifier(self.kernel.write)
        self.notifier.attach(asyncio.get_running_loop())
        self.notifier.current = self.current
        self.inflight: dict[asyncio.Task[Any], InFlight] = {}
        self.replies: list[int] = []

    def current(self) -> InFlight | None:
        task = asyncio.current_task()
        return None if task is None else self.inflight.get(task)

    def handle(self, opcode: int, nodeids: tuple[int, ...], handler: Callable[[], Awaitable[Any]]) -> asyncio.Task[Any]:
        """Start a handler as the session does: reply when it ends, then what comes after the reply."""
        request = InFlight(2 * len(self.inflight) + 2, opcode, nodeids)

        async def run() -> Any:
            try:
                return await handler()
            finally:
                self.inflight.pop(task)
                self.replies.append(len(self.kernel.messages))
                for callback in request.after:
                    callback()

        task = asyncio.get_running_loop().create_task(run())
        self.inflight[task] = request
        return task


async def until(condition: Callable[[], Any]) -> None:
    """Wait for what another thread does."""
    for _ in range(int(PATIENCE_S * 1000)):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it never happened")


def machine(test: Callable[[Machine], Awaitable[None]]) -> None:
    """Run *test* with a machine, and end it."""

    async def main() -> None:
        made = Machine()
        try:
            async with asyncio.timeout(PATIENCE_S):
                await test(made)
        finally:
            for gate in made.kernel.gates.values():
                gate.set()
            made.notifier.close()

    asyncio.run(main())


# Bytes.


HEADER = struct.Struct("=IiQ")


@pytest.mark.parametrize(
    ("send", "code", "body"),
    [
        (lambda n: n.poll(0x1122), 1, struct.pack("=Q", 0x1122)),  # kh
        (lambda n: n.inval_inode(FILE), 2, struct.pack("=Qqq", FILE, -1, 0)),  # ino, off, len
        (lambda n: n.inval_inode(FILE, 4096, 512), 2, struct.pack("=Qqq", FILE, 4096, 512)),
        (lambda n: n.inval_inode(FILE, 0, -7), 2, struct.pack("=Qqq", FILE, 0, 0)),
        (lambda n: n.inval_entry(DIR, b"name"), 3, struct.pack("=QII", DIR, 4, 0) + b"name\0"),  # parent, namelen, flags
        (lambda n: n.inval_entry(DIR, b"\xff", expire_only=True), 3, struct.pack("=QII", DIR, 1, 1) + b"\xff\0"),
        (lambda n: n.store(FILE, 8192, b"data!"), 4, struct.pack("=QQII", FILE, 8192, 5, 0) + b"data!"),  # nodeid, offset, size
        (lambda n: n.delete(DIR, FILE, b"gone"), 6, struct.pack("=QQII", DIR, FILE, 4, 0) + b"gone\0"),  # parent, child
        (lambda n: n.resend(), 7, b""),
        (lambda n: n.inc_epoch(), 8, b""),
        (lambda n: n.prune([FILE, 2**64 - 1]), 9, struct.pack("=IIQQQ", 2, 0, 0, FILE, 2**64 - 1)),  # count, pad, spare
    ],
)
def test_notification_is_what_the_kernel_reads(send: Callable[[Notifier], Notification[bool]], code: int, body: bytes) -> None:
    async def test(m: Machine) -> None:
        assert await send(m.notifier) is True
        assert m.kernel.messages == [HEADER.pack(16 + len(body), code, 0) + body]
        assert m.kernel.threads == {"fuse-notify"}

    machine(test)


def test_retrieve_gives_the_bytes_that_come_back() -> None:
    async def test(m: Machine) -> None:
        first, second = m.notifier.retrieve(FILE, 4096, 100), m.notifier.retrieve(OTHER, 0, 5)
        await until(lambda: len(m.kernel.messages) == 2)
        fields = [struct.unpack("=QQQII", message[16:]) for message in m.kernel.messages]
        assert [field[1:] for field in fields] == [(FILE, 4096, 100, 0), (OTHER, 0, 5, 0)]  # nodeid, offset, size, padding
        m.notifier.retrieved(fields[1][0], 0, memoryview(b"two"))
        m.notifier.retrieved(fields[0][0], 4096, b"")
        m.notifier.retrieved(999, 0, b"nobody asked")
        assert (await first, await second) == (b"", b"two")

    machine(test)


def test_retrieve_may_be_answered_before_the_write_returns() -> None:
    async def test(m: Machine) -> None:
        gate = m.kernel.block(abi.NOTIFY_RETRIEVE)
        note = m.notifier.retrieve(FILE, 0, 9)
        await until(m.kernel.entered[abi.NOTIFY_RETRIEVE].is_set)
        m.notifier.retrieved(2, 0, b"early")
        assert await note == b"early"
        gate.set()

    machine(test)


def test_retrieve_of_an_unknown_node_is_empty() -> None:
    async def test(m: Machine) -> None:
        m.kernel.refuse[abi.NOTIFY_RETRIEVE] = errno.ENOENT
        assert await m.notifier.retrieve(FILE, 0, 9) == b""
        m.kernel.refuse[abi.NOTIFY_RETRIEVE] = errno.EINVAL
        with pytest.raises(OSError, match="refused") as caught:
            await m.notifier.retrieve(DIR, 0, 9)
        assert caught.value.errno == errno.EINVAL

    machine(test)


def test_stored_data_is_copied() -> None:
    async def test(m: Machine) -> None:
        data = bytearray(b"before")
        note = m.notifier.store(FILE, 0, memoryview(data))
        data[:] = b"after!"
        await note
        assert m.kernel.messages[0].endswith(b"before")

    machine(test)


def test_long_prune_is_several_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "MAX_PRUNED", 2)

    async def test(m: Machine) -> None:
        assert await m.notifier.prune(ino for ino in (5, 6, 7, 8, 9)) is True
        await until(lambda: len(m.kernel.messages) == 3)
        assert [len(message) for message in m.kernel.messages] == [48, 48, 40]

    machine(test)


def test_prune_of_nothing_says_nothing() -> None:
    async def test(m: Machine) -> None:
        assert await m.notifier.prune([]) is True
        assert m.kernel.messages == []

    machine(test)


# What is refused before it is sent.


@pytest.mark.parametrize(
    "send",
    [
        lambda n: n.inval_inode(0),
        lambda n: n.inval_inode(2**64),
        lambda n: n.inval_inode(5, -2),
        lambda n: n.inval_inode(5, 2**63),
        lambda n: n.inval_inode(5, 0, 2**63),
        lambda n: n.inval_entry(0, b"name"),
        lambda n: n.inval_entry(5, b""),
        lambda n: n.inval_entry(5, b"a/b"),
        lambda n: n.inval_entry(5, b"a\0b"),
        lambda n: n.inval_entry(5, b".."),
        lambda n: n.delete(5, 0, b"name"),
        lambda n: n.delete(0, 5, b"name"),
        lambda n: n.store(0, 0, b""),
        lambda n: n.store(5, -1, b""),
        lambda n: n.store(5, 2**63 - 1, b"x"),
        lambda n: n.retrieve(0, 0, 1),
        lambda n: n.retrieve(5, -1, 1),
        lambda n: n.retrieve(5, 0, 2**32),
        lambda n: n.retrieve(5, 0, -1),
        lambda n: n.prune([5, 0]),
    ],
)
def test_nonsense_is_a_value_error(send: Callable[[Notifier], object]) -> None:
    async def test(m: Machine) -> None:
        with pytest.raises(ValueError, match=r"is no|are no"):
            send(m.notifier)
        assert not m.notifier._posted

    machine(test)


def test_too_much_data_is_a_value_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "MAX_DATA_BYTES", 4)

    async def test(m: Machine) -> None:
        with pytest.raises(ValueError, match="more than"):
            m.notifier.store(FILE, 0, b"12345")

    machine(test)


def test_too_long_a_name_is_enametoolong() -> None:
    async def test(m: Machine) -> None:
        with pytest.raises(OSError, match="4096") as caught:
            m.notifier.inval_entry(DIR, b"n" * 4096)
        assert caught.value.errno == errno.ENAMETOOLONG
        assert await m.notifier.inval_entry(DIR, b"n" * 4095)

    machine(test)


# Outcomes.


def test_what_the_kernel_does_not_know_is_false() -> None:
    async def test(m: Machine) -> None:
        m.kernel.refuse[abi.NOTIFY_INVAL_ENTRY] = errno.ENOENT
        note = m.notifier.inval_entry(DIR, b"name")
        assert await note is False
        assert await note is False

    machine(test)


def test_other_errors_are_raised() -> None:
    async def test(m: Machine) -> None:
        m.kernel.refuse[abi.NOTIFY_DELETE] = errno.ENOTEMPTY
        with pytest.raises(OSError, match="DELETE") as caught:
            await m.notifier.delete(DIR, FILE, b"name")
        assert caught.value.errno == errno.ENOTEMPTY

    machine(test)


def test_error_that_nobody_awaited_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def test(m: Machine) -> None:
        m.kernel.refuse = {abi.NOTIFY_DELETE: errno.EBUSY, abi.NOTIFY_STORE: errno.EIO}
        m.notifier.delete(DIR, FILE, b"name")
        with pytest.raises(OSError, match="STORE"):
            await m.notifier.store(OTHER, 0, b"")
        gc.collect()
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
        assert "DELETE" in caplog.text

    machine(test)


def test_bug_in_write_is_logged_and_eio(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        def write(parts: Sequence[Data]) -> int:
            raise TypeError("bug")

        notifier = Notifier(write)
        notifier.attach(asyncio.get_running_loop())
        with pytest.raises(OSError, match="RESEND") as caught:
            await notifier.resend()
        assert caught.value.errno == errno.EIO
        notifier.close()

    asyncio.run(main())
    assert "TypeError: bug" in caplog.text


@pytest.mark.parametrize(
    ("minor", "send"),
    [(39, lambda n: n.resend()), (43, lambda n: n.inc_epoch()), (44, lambda n: n.prune([5]))],
)
def test_notification_that_the_kernel_lacks_is_eopnotsupp(minor: int, send: Callable[[Notifier], Notification[bool]]) -> None:
    async def test(m: Machine) -> None:
        m.notifier.kernel_minor = minor
        with pytest.raises(OSError, match="does not know") as caught:
            await send(m.notifier)
        assert caught.value.errno == errno.EOPNOTSUPP
        assert m.kernel.messages == []
        m.notifier.kernel_minor = minor + 1
        assert await send(m.notifier)
        m.kernel.refuse = dict.fromkeys((7, 8, 9), errno.EINVAL)
        with pytest.raises(OSError, match="does not know"):
            await send(m.notifier)

    machine(test)


# Order, and merging.


def test_nothing_goes_out_before_the_loops_next_turn() -> None:
    async def test(m: Machine) -> None:
        note = m.notifier.inval_inode(FILE)
        assert m.notifier._threads == []
        assert not note.begun
        await note

    machine(test)


def test_what_was_posted_before_attach_goes_out_then() -> None:
    async def main() -> None:
        kernel = Kernel()
        notifier = Notifier(kernel.write)
        note = notifier.inval_inode(FILE)
        await asyncio.sleep(0)
        assert not note.begun
        with pytest.raises(RuntimeError, match="not attached"):
            await note
        notifier.attach(asyncio.get_running_loop())
        assert await note
        notifier.close()

    asyncio.run(main())


def test_same_invalidations_go_out_once_while_they_wait() -> None:
    async def test(m: Machine) -> None:
        first = m.notifier.inval_entry(DIR, b"name")
        assert m.notifier.inval_entry(DIR, b"name") is first
        assert m.notifier.inval_entry(DIR, b"name", expire_only=True) is not first
        attributes = m.notifier.inval_inode(FILE)
        assert m.notifier.inval_inode(FILE) is attributes
        assert m.notifier.inval_inode(OTHER) is not attributes
        epoch = m.notifier.inc_epoch()
        assert m.notifier.inc_epoch() is epoch
        await epoch
        assert m.notifier.inc_epoch() is not epoch
        assert m.notifier.inval_entry(DIR, b"name") is not first
        assert m.kernel.codes() == [3, 3, 2, 2, 8]

    machine(test)


def test_invalidation_is_not_merged_with_one_before_a_store() -> None:
    async def test(m: Machine) -> None:
        first = m.notifier.inval_inode(FILE, 0)
        m.notifier.store(FILE, 0, b"stale")
        last = m.notifier.inval_inode(FILE, 0)
        assert last is not first
        await last
        assert m.kernel.codes() == [2, 4, 2]

    machine(test)


def test_invalidation_is_not_merged_with_one_that_has_begun() -> None:
    async def test(m: Machine) -> None:
        gate = m.kernel.block(abi.NOTIFY_INVAL_INODE)
        first = m.notifier.inval_inode(FILE)
        await until(m.kernel.entered[abi.NOTIFY_INVAL_INODE].is_set)
        second = m.notifier.inval_inode(FILE)
        assert second is not first
        gate.set()
        await second

    machine(test)


def test_cancelled_wait_disturbs_nobody() -> None:
    async def test(m: Machine) -> None:
        gate = m.kernel.block(abi.NOTIFY_RESEND)
        note = m.notifier.resend()

        async def wait() -> bool:
            return await note

        first, second = asyncio.create_task(wait()), asyncio.create_task(wait())
        await until(m.kernel.entered[abi.NOTIFY_RESEND].is_set)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        gate.set()
        assert await second

    machine(test)


def test_thousands_go_out_in_order() -> None:
    async def test(m: Machine) -> None:
        for ino in range(1, 3001):
            last = m.notifier.inval_inode(ino, 0)
        await last
        assert [struct.unpack_from("=Q", message, 16)[0] for message in m.kernel.messages] == list(range(1, 3001))
        assert m.notifier._newest == {}
        assert m.notifier._mergeable == {}

    machine(test)


# Deadlock: what conflicts.

_ENTRY = ("inval_entry", (DIR, b"n"))
_DELETE = ("delete", (DIR, FILE, b"n"))
_INODE = ("inval_inode", (FILE, 0))
_STORE = ("store", (FILE, 0, b"x"))
_RETRIEVE = ("retrieve", (FILE, 0, 1))


@pytest.mark.parametrize(
    ("opcode", "nodeids", "send"),
    [
        *[
            (opcode, (DIR,), _ENTRY)
            for opcode in (abi.LOOKUP, abi.CREATE, abi.MKNOD, abi.MKDIR, abi.SYMLINK, abi.UNLINK, abi.RMDIR, abi.TMPFILE)
        ],
        *[(opcode, (DIR,), _ENTRY) for opcode in (abi.READDIR, abi.READDIRPLUS, abi.GETATTR, abi.SETATTR, abi.FSYNCDIR)],
        (abi.LINK, (DIR, FILE), _ENTRY),
        (abi.RENAME, (DIR, OTHER), _ENTRY),
        (abi.RENAME, (OTHER, DIR), _ENTRY),
        (abi.RENAME2, (OTHER, DIR), _DELETE),
        (abi.UNLINK, (DIR,), _DELETE),
        (abi.WRITE, (FILE,), _DELETE),
        (abi.SETXATTR, (FILE,), _DELETE),
        *[(opcode, (FILE,), _INODE) for opcode in (abi.READ, abi.WRITE, abi.FSYNC, abi.SETATTR, abi.FALLOCATE)],
        (abi.COPY_FILE_RANGE, (OTHER, FILE), _INODE),
        (abi.READ, (FILE,), _STORE),
        (abi.WRITE, (FILE,), _RETRIEVE),
    ],
)
def test_handler_that_awaits_what_waits_for_its_answer_is_a_deadlock_error(
    opcode: int, nodeids: tuple[int, ...], send: tuple[str, tuple[Any, ...]]
) -> None:
    async def test(m: Machine) -> None:
        notes: list[Notification[bool]] = []

        async def handler() -> None:
            notes.append(getattr(m.notifier, send[0])(*send[1]))
            with pytest.raises(DeadlockError, match="after the answer"):
                await notes[0]
            await asyncio.sleep(0.01)
            assert m.kernel.messages == []

        await m.handle(opcode, nodeids, handler)
        # It was only put off until the reply.
        await until(lambda: m.kernel.messages)
        assert m.replies == [0]

    machine(test)


@pytest.mark.parametrize(
    ("opcode", "nodeids", "send"),
    [
        (abi.LOOKUP, (OTHER,), _ENTRY),
        (abi.OPENDIR, (DIR,), _ENTRY),
        (abi.READ, (FILE,), _ENTRY),
        (abi.READ, (FILE,), ("inval_inode", (FILE,))),
        (abi.LOOKUP, (FILE,), _INODE),
        (abi.READ, (OTHER,), _STORE),
        (abi.SETLKW, (FILE,), _DELETE),
        (abi.UNLINK, (DIR,), ("inc_epoch", ())),
        (abi.READ, (FILE,), ("prune", ([FILE],))),
        (abi.POLL, (FILE,), ("poll", (7,))),
    ],
)
def test_handler_may_await_what_does_not_wait_for_it(
    opcode: int, nodeids: tuple[int, ...], send: tuple[str, tuple[Any, ...]]
) -> None:
    async def test(m: Machine) -> None:
        async def handler() -> Any:
            return await getattr(m.notifier, send[0])(*send[1])

        assert await m.handle(opcode, nodeids, handler) is True
        assert m.replies == [1]

    machine(test)


# Deadlock: who stands in front of whom.


def test_others_overtake_what_is_put_off() -> None:
    async def test(m: Machine) -> None:
        async def handler() -> None:
            m.notifier.inval_entry(DIR, b"n")
            assert await m.notifier.poll(1)
            assert await m.notifier.inval_entry(OTHER, b"n")

        await m.handle(abi.CREATE, (DIR,), handler)
        await until(lambda: len(m.kernel.messages) == 3)
        assert m.kernel.codes() == [1, 3, 3]

    machine(test)


def test_order_about_one_node_is_kept_behind_what_is_put_off() -> None:
    async def test(m: Machine) -> None:
        go_on = asyncio.Event()

        async def handler() -> None:
            m.notifier.store(FILE, 0, b"old")
            await go_on.wait()

        task = m.handle(abi.READ, (FILE,), handler)
        await asyncio.sleep(0.01)
        later = m.notifier.inval_inode(FILE, 0)
        await m.notifier.poll(1)
        assert m.kernel.codes() == [1]
        go_on.set()
        await task
        await later
        assert m.kernel.codes() == [1, 4, 2]

    machine(test)


def test_awaiting_behind_ones_own_is_a_deadlock_error() -> None:
    async def test(m: Machine) -> None:
        async def handler() -> None:
            m.notifier.delete(DIR, FILE, b"n")
            # About FILE, so it must follow the delete, which must follow this handler.
            with pytest.raises(DeadlockError):
                await m.notifier.inval_inode(FILE, 0)

        await m.handle(abi.UNLINK, (DIR,), handler)

    machine(test)


def test_handler_is_not_stuck_behind_a_notification_that_waits_for_it() -> None:
    async def test(m: Machine) -> None:
        gate = m.kernel.block(abi.NOTIFY_INVAL_ENTRY)
        m.notifier.inval_entry(DIR, b"n")
        await until(m.kernel.entered[abi.NOTIFY_INVAL_ENTRY].is_set)  # the kernel holds the thread

        async def handler() -> bool:
            return await m.notifier.poll(1)  # needs another

        assert await m.handle(abi.LOOKUP, (DIR,), handler)
        assert len(m.notifier._threads) == 2
        gate.set()
        await until(lambda: m.kernel.codes() == [1, 3])

    machine(test)


def test_notification_that_would_wait_for_an_awaiting_handler_is_put_off() -> None:
    async def test(m: Machine) -> None:
        gate = m.kernel.block(abi.NOTIFY_RESEND)

        async def handler() -> bool:
            return await m.notifier.resend()

        task = m.handle(abi.LOOKUP, (DIR,), handler)
        await until(m.kernel.entered[abi.NOTIFY_RESEND].is_set)
        entry = m.notifier.inval_entry(DIR, b"n")
        m.notifier.poll(1)
        gate.set()
        await task
        assert await entry
        assert m.kernel.codes() == [7, 1, 3] or m.kernel.codes() == [7, 3, 1]
        assert len(m.notifier._threads) == 1

    machine(test)


def test_no_thread_takes_what_would_wait_for_an_awaiting_handler() -> None:
    async def test(m: Machine) -> None:
        gate = m.kernel.block(abi.NOTIFY_RESEND)

        async def handler() -> bool:
            return await m.notifier.resend()

        task = m.handle(abi.LOOKUP, (DIR,), handler)
        await until(m.kernel.entered[abi.NOTIFY_RESEND].is_set)
        with m.notifier._ready:
            m.notifier._spawn()  # one that has nothing to do
        entry = m.notifier.inval_entry(DIR, b"n")
        await m.notifier.poll(1)
        await m.notifier.inval_entry(OTHER, b"n")
        assert not entry.begun
        gate.set()
        await task
        assert await entry

    machine(test)


def test_invalidation_before_a_reply_is_not_the_one_after_it() -> None:
    async def test(m: Machine) -> None:
        gate = m.kernel.block(abi.NOTIFY_RESEND)
        m.notifier.resend()
        await until(m.kernel.entered[abi.NOTIFY_RESEND].is_set)
        before = m.notifier.inval_entry(DIR, b"n")

        async def handler() -> Notification[bool]:
            return m.notifier.inval_entry(DIR, b"n")

        after = await m.handle(abi.CREATE, (DIR,), handler)
        assert after is not before
        gate.set()
        assert await after

    machine(test)


def test_two_handlers_that_await_each_others_are_a_deadlock_error() -> None:
    async def test(m: Machine) -> None:
        notes: dict[str, Notification[bool]] = {}
        outcomes: list[object] = []

        def handler(mine: str, parent: int, theirs: str) -> Callable[[], Awaitable[None]]:
            async def run() -> None:
                notes[mine] = m.notifier.inval_entry(parent, b"n")  # put off until this handler answers
                await asyncio.sleep(0.01)
                try:
                    outcomes.append(await notes[theirs])
                except DeadlockError as error:
                    outcomes.append(type(error))

            return run

        first = m.handle(abi.CREATE, (DIR,), handler("a", DIR, "b"))
        second = m.handle(abi.CREATE, (OTHER,), handler("b", OTHER, "a"))
        await asyncio.gather(first, second)
        assert outcomes == [DeadlockError, True]

    machine(test)


def test_awaiting_what_somebody_else_posted_may_be_a_deadlock_error() -> None:
    async def test(m: Machine) -> None:
        gate = m.kernel.block(abi.NOTIFY_RESEND)
        m.notifier.resend()
        await until(m.kernel.entered[abi.NOTIFY_RESEND].is_set)
        entry = m.notifier.inval_entry(DIR, b"n")

        async def handler() -> None:
            with pytest.raises(DeadlockError):
                await entry

        await m.handle(abi.LOOKUP, (DIR,), handler)
        gate.set()
        assert await entry

    machine(test)


def test_circle_over_what_an_awaiting_handler_puts_off_is_a_deadlock_error() -> None:
    async def test(m: Machine) -> None:
        gate = m.kernel.block(abi.NOTIFY_RESEND)
        m.notifier.resend()
        await until(m.kernel.entered[abi.NOTIFY_RESEND].is_set)
        about_first = m.notifier.inval_entry(DIR, b"n")
        about_second = m.notifier.inval_entry(OTHER, b"n")

        def handler(awaited: Notification[bool]) -> Callable[[], Awaitable[object]]:
            async def run() -> object:
                try:
                    return await awaited
                except DeadlockError as error:
                    return type(error)

            return run

        first = m.handle(abi.LOOKUP, (DIR,), handler(about_second))
        second = m.handle(abi.LOOKUP, (OTHER,), handler(about_first))
        await asyncio.sleep(0.01)
        gate.set()
        assert [await first, await second] == [True, DeadlockError]

    machine(test)


def test_too_many_stuck_threads_are_a_deadlock_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "MAX_THREADS", 1)

    async def test(m: Machine) -> None:
        m.kernel.block(abi.NOTIFY_INVAL_ENTRY)
        m.notifier.inval_entry(DIR, b"n")
        await until(m.kernel.entered[abi.NOTIFY_INVAL_ENTRY].is_set)

        async def handler() -> None:
            with pytest.raises(DeadlockError, match="1 notifications wait"):
                await m.notifier.poll(1)

        await m.handle(abi.LOOKUP, (DIR,), handler)
        assert m.notifier._awaiting == {}

    machine(test)


# The end.


def test_close_fails_what_is_pending_and_what_comes_later(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        m = Machine()
        gate = m.kernel.block(abi.NOTIFY_INVAL_INODE)
        pending: list[Notification[Any]] = [m.notifier.inval_inode(FILE), m.notifier.poll(1), m.notifier.retrieve(OTHER, 0, 1)]
        await until(m.kernel.entered[abi.NOTIFY_INVAL_INODE].is_set)
        pending.append(m.notifier.resend())  # not even handed to the thread

        async def wait(note: Notification[Any]) -> int | None:
            with pytest.raises(OSError, match="mount is gone") as caught:
                await note
            return caught.value.errno

        tasks = [asyncio.create_task(wait(note)) for note in pending]
        await asyncio.sleep(0)
        threading.Timer(0.05, gate.set).start()
        m.notifier.close()
        m.notifier.close()
        assert not any(thread.is_alive() for thread in m.notifier._threads)
        assert await asyncio.gather(*tasks) == [errno.ENODEV] * 4
        later: list[Notification[Any]] = [m.notifier.poll(1), m.notifier.retrieve(FILE, 0, 1)]
        for note in later:
            assert await wait(note) == errno.ENODEV
        m.notifier.retrieved(2, 0, b"late")
        m.notifier.poll(2)
        gc.collect()
        assert not caplog.records
        await asyncio.sleep(0.01)
        assert m.kernel.codes() == [2]

    asyncio.run(main())


def test_close_leaves_a_thread_that_the_kernel_keeps(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(notify, "JOIN_TIMEOUT_S", 0.05)
    kernel = Kernel()
    gate = kernel.block(abi.NOTIFY_RESEND)
    notifier = Notifier(kernel.write)

    async def main() -> None:
        notifier.attach(asyncio.get_running_loop())
        notifier.resend()
        await until(kernel.entered[abi.NOTIFY_RESEND].is_set)
        notifier.close()

    asyncio.run(main())
    assert "does not return" in caplog.text
    gate.set()  # the loop is closed: nobody is told any more
    notifier._threads[0].join(PATIENCE_S)
    assert not notifier._threads[0].is_alive()


def test_close_of_an_unused_notifier_is_nothing() -> None:
    notifier = Notifier(Kernel().write)
    notifier.close()
    assert notifier._threads == []
