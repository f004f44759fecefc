from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import signal
import struct
import subprocess
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, nullcontext
from fcntl import F_RDLCK, F_UNLCK, F_WRLCK
from functools import partial
from pathlib import Path
from stat import S_IFDIR, S_IFREG
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from served import mounted, served

from pyfusekit.core.abi import LK_FLOCK
from pyfusekit.core.filesystem import Filesystem
from pyfusekit.core.locks import END, LockKeeper, LockTable
from pyfusekit.core.types import Attr, Lock, Request, Result

INO = 5
A, B, C, D = 0xA, 0xB, 0xC, 0xD


def read(start: int = 0, end: int = END, pid: int = 1) -> Lock:
    return Lock(F_RDLCK, start, end, pid)


def write(start: int = 0, end: int = END, pid: int = 1) -> Lock:
    return Lock(F_WRLCK, start, end, pid)


def unlock(start: int = 0, end: int = END) -> Lock:
    return Lock(F_UNLCK, start, end, 0)


def held(table: LockTable, owner: int, *, flock: bool = False) -> list[tuple[int, int, int]]:
    return [(lock.type, lock.start, lock.end) for who, lock in table.held(INO, flock=flock) if who == owner]


async def settle() -> None:
    for _ in range(4):
        await asyncio.sleep(0)


class Waits:
    """A table, and tasks that wait for its locks, every owner through a handle of its own."""

    def __init__(self) -> None:
        self.table = LockTable()
        self.handles: defaultdict[int, object] = defaultdict(object)

    def take(self, owner: int, lock: Lock, *, ino: int = INO, flock: bool = False) -> bool:
        return self.table.set(ino, owner, lock, self.handles[owner], flock=flock)

    async def wait(self, owner: int, lock: Lock, *, ino: int = INO, flock: bool = False) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(self.table.wait(ino, owner, lock, self.handles[owner], flock=flock))
        await settle()
        return task


# Ranges.


def test_readers_share_and_a_writer_does_not() -> None:
    table = LockTable()
    assert table.set(INO, A, read(0, 9), "a")
    assert table.set(INO, B, read(5, 14), "b")
    assert not table.set(INO, C, write(9, 9), "c")
    assert table.set(INO, C, write(15, 20), "c")


def test_getlk_names_the_first_lock_in_the_way() -> None:
    table = LockTable()
    table.set(INO, A, write(10, 19, pid=100), "a")
    table.set(INO, B, read(5, 8, pid=200), "b")
    assert table.test(INO, C, write(0, 30)) == Lock(F_RDLCK, 5, 8, 200)
    assert table.test(INO, C, read(0, 30)) == Lock(F_WRLCK, 10, 19, 100)
    assert table.test(INO, C, read(0, 9)) is None
    assert table.test(INO, A, read(10, 19)) is None
    assert table.test(INO + 1, C, write()) is None


def test_getlk_of_f_unlck_tells_own_locks() -> None:
    table = LockTable()
    table.set(INO, A, write(10, 19, pid=100), "a")
    assert table.test(INO, A, unlock(0, 12)) == Lock(F_WRLCK, 10, 19, 100)
    assert table.test(INO, A, unlock(20, 30)) is None
    assert table.test(INO, B, unlock()) is None


def test_unlocking_the_middle_splits() -> None:
    table = LockTable()
    table.set(INO, A, write(0, 99), "a")
    table.set(INO, A, unlock(40, 59), "a")
    assert held(table, A) == [(F_WRLCK, 0, 39), (F_WRLCK, 60, 99)]


def test_touching_ranges_of_one_type_merge() -> None:
    table = LockTable()
    for lock in (read(0, 9), read(20, 29), read(10, 19)):
        table.set(INO, A, lock, "a")
    assert held(table, A) == [(F_RDLCK, 0, 29)]


def test_upgrade_and_downgrade_replace_only_their_range() -> None:
    table = LockTable()
    table.set(INO, A, read(0, 99), "a")
    table.set(INO, A, write(50, END), "a")
    table.set(INO, A, read(60, 69), "a")
    assert held(table, A) == [(F_RDLCK, 0, 49), (F_WRLCK, 50, 59), (F_RDLCK, 60, 69), (F_WRLCK, 70, END)]


def test_upgrade_that_fails_keeps_the_posix_lock() -> None:
    table = LockTable()
    table.set(INO, A, read(0, 9), "a")
    table.set(INO, B, read(0, 9), "b")
    assert not table.set(INO, A, write(0, 9), "a")
    assert held(table, A) == [(F_RDLCK, 0, 9)]


@pytest.mark.parametrize(
    "lock", [Lock(3, 0, 1, 1), Lock(F_RDLCK, 5, 4, 1), Lock(F_RDLCK, -1, 4, 1), Lock(F_WRLCK, 0, 2**63, 1)]
)
def test_nonsense_is_einval(lock: Lock) -> None:
    table = LockTable()
    for act in (lambda: table.set(INO, A, lock, "a"), lambda: table.test(INO, A, lock)):
        with pytest.raises(OSError, match="is not a") as caught:
            act()
        assert caught.value.errno == errno.EINVAL
    assert len(table) == 0


def test_files_do_not_see_each_other() -> None:
    table = LockTable()
    assert table.set(INO, A, write(), "a")
    assert table.set(INO + 1, B, write(), "b")
    assert len(table) == 2


def test_flock_and_posix_do_not_see_each_other() -> None:
    table = LockTable()
    assert table.set(INO, A, write(), "a")
    assert table.set(INO, B, write(), "b", flock=True)
    assert not table.set(INO, A, read(), "a", flock=True)
    assert not table.set(INO, B, read(), "b")


def test_nothing_remains_of_a_file_without_locks() -> None:
    table = LockTable()
    table.set(INO, A, write(), "a")
    table.set(INO, A, unlock(), "a")
    table.set(INO, A, unlock(), "a")
    table.set(INO, A, read(), "a", flock=True)
    table.set(INO, A, unlock(), "a", flock=True)
    assert (len(table), table._posix, table._flock) == (0, {}, {})


# flock.


def test_flock_covers_the_whole_file_whatever_the_range() -> None:
    table = LockTable()
    table.set(INO, A, write(3, 4), "a", flock=True)
    assert held(table, A, flock=True) == [(F_WRLCK, 0, END)]


def test_failed_flock_conversion_loses_the_lock() -> None:
    table = LockTable()
    table.set(INO, A, read(), "a", flock=True)
    table.set(INO, B, read(), "b", flock=True)
    assert not table.set(INO, A, write(), "a", flock=True)
    assert held(table, A, flock=True) == []
    assert table.set(INO, B, write(), "b", flock=True)


def test_flock_conversion_lets_a_waiter_in_first() -> None:
    async def main() -> None:
        waits = Waits()
        waits.take(A, write(), flock=True)
        waiter = await waits.wait(B, write(), flock=True)
        assert not waits.take(A, read(), flock=True)
        await waiter
        assert held(waits.table, B, flock=True) == [(F_WRLCK, 0, END)]

    asyncio.run(main())


def test_two_flocks_waiting_for_each_other_are_not_edeadlk() -> None:
    async def main() -> None:
        waits = Waits()
        waits.take(A, write(), ino=1, flock=True)
        waits.take(B, write(), ino=2, flock=True)
        first = await waits.wait(A, write(), ino=2, flock=True)
        second = await waits.wait(B, write(), ino=1, flock=True)
        assert not first.done()
        assert not second.done()
        first.cancel()
        second.cancel()
        assert waits.take(B, unlock(), ino=2, flock=True)

    asyncio.run(main())


def test_flock_behind_one_who_waits_for_an_ofd_lock_is_not_edeadlk() -> None:
    async def main() -> None:
        waits = Waits()
        waits.take(A, write(), ino=1)
        waits.take(B, write(), ino=2, flock=True)
        ofd = await waits.wait(B, write(), ino=1)
        whole = await waits.wait(A, write(), ino=2, flock=True)
        assert not whole.done()
        waits.take(A, unlock(), ino=1)
        waits.take(B, unlock(), ino=2, flock=True)
        await asyncio.gather(ofd, whole)

    asyncio.run(main())


# What ends with what.


def test_flush_drops_the_owners_posix_locks_only() -> None:
    table = LockTable()
    table.set(INO, A, write(0, 9), "h1")
    table.set(INO, A, write(20, 29), "h2")
    table.set(INO, B, read(40, 49), "h1")
    table.set(INO, A, read(), "h1", flock=True)
    table.set(INO + 1, A, read(), "h3")
    table.flush(INO, A)
    assert held(table, A) == []
    assert held(table, B) == [(F_RDLCK, 40, 49)]
    assert len(table) == 3


def test_release_drops_what_was_taken_through_the_handle_whoever_owns_it() -> None:
    table = LockTable()
    open_file, other = object(), object()
    table.set(INO, A, write(0, 9), open_file)
    table.set(INO, B, write(10, 19), open_file)
    table.set(INO, A, read(20, 29), other)
    table.set(INO, A, read(), open_file, flock=True)
    table.release(INO, open_file)
    assert [(who, lock.start) for who, lock in table.held(INO)] == [(A, 20)]
    assert table.held(INO, flock=True) == []


def test_range_belongs_to_the_handle_that_took_it_last() -> None:
    table = LockTable()
    table.set(INO, A, write(0, 29), "first")
    table.set(INO, A, write(10, 19), "second")
    table.release(INO, "second")
    assert held(table, A) == [(F_WRLCK, 0, 9), (F_WRLCK, 20, 29)]


def test_handles_are_told_apart_by_identity() -> None:
    table = LockTable()
    first, equal = [1], [1]
    table.set(INO, A, write(0, 9), first)
    table.release(INO, equal)
    assert held(table, A) == [(F_WRLCK, 0, 9)]
    table.set(INO, A, write(10, 19), equal)
    table.release(INO, equal)
    assert held(table, A) == [(F_WRLCK, 0, 9)]


# Waiting.


def test_waiter_gets_the_lock_when_it_is_given_back() -> None:
    async def main() -> None:
        waits = Waits()
        waits.take(A, write(0, 9))
        waiter = await waits.wait(B, write(5, 6))
        waits.take(A, unlock(0, 4))
        await settle()
        assert not waiter.done()
        waits.take(A, unlock(5, 6))
        # It is B's at once, before its task has run.
        assert not waits.take(C, write(5, 6))
        await waiter
        assert held(waits.table, B) == [(F_WRLCK, 5, 6)]
        assert waits.table.waiting(INO) == 0

    asyncio.run(main())


def test_waiters_for_one_range_are_served_in_order() -> None:
    async def main() -> None:
        waits = Waits()
        order: list[int] = []
        waits.take(A, write())
        tasks = []
        for owner in (D, B, C):
            task = await waits.wait(owner, write())
            task.add_done_callback(partial(lambda owner, _: order.append(owner), owner))
            tasks.append(task)
        for owner in (A, D, B, C):
            waits.take(owner, unlock())
            await settle()
        assert order == [D, B, C]

    asyncio.run(main())


def test_readers_come_in_together() -> None:
    async def main() -> None:
        waits = Waits()
        waits.take(A, write())
        readers = [await waits.wait(owner, read()) for owner in (B, C)]
        writer = await waits.wait(D, write())
        waits.take(A, unlock())
        await settle()
        assert all(task.done() for task in readers)
        assert not writer.done()
        waits.take(B, unlock())
        waits.take(C, unlock())
        await writer

    asyncio.run(main())


@pytest.mark.parametrize("how", ["downgrade", "flush", "release", "unlock"])
def test_everything_that_frees_wakes(how: str) -> None:
    async def main() -> None:
        waits = Waits()
        waits.take(A, write())
        waiter = await waits.wait(B, read())
        if how == "downgrade":
            waits.take(A, read())
        elif how == "flush":
            waits.table.flush(INO, A)
        elif how == "release":
            waits.table.release(INO, waits.handles[A])
        else:
            waits.take(A, unlock())
        await settle()
        assert waiter.done()

    asyncio.run(main())


def test_grant_that_shares_wakes_an_earlier_waiter() -> None:
    async def main() -> None:
        waits = Waits()
        waits.take(A, write(0, 4))
        waits.take(B, write(5, 9))
        early = await waits.wait(C, read(0, 4))
        late = await waits.wait(A, read(0, 9))
        waits.take(B, unlock())
        await settle()
        assert late.done()
        assert early.done()

    asyncio.run(main())


def test_cancelled_wait_leaves_no_trace() -> None:
    async def main() -> None:
        waits = Waits()
        waits.take(A, write(0, 9))
        waits.take(B, read(10, 19))
        waiter = await waits.wait(B, write(0, 19))
        behind = await waits.wait(C, read(10, 19))
        await behind
        waiter.cancel()
        waits.take(A, unlock())  # before the cancelled task has run
        with pytest.raises(asyncio.CancelledError):
            await waiter
        assert held(waits.table, B) == [(F_RDLCK, 10, 19)]
        assert waits.table.waiting(INO) == 0
        assert waits.table._waiting == {}

    asyncio.run(main())


def test_cancel_after_the_grant_is_a_success() -> None:
    async def main() -> None:
        waits = Waits()
        waits.take(A, write(0, 9))
        waits.take(B, read(20, 29))
        waiter = await waits.wait(B, write(0, 29))
        waits.take(A, unlock())
        waiter.cancel()
        await waiter
        assert held(waits.table, B) == [(F_WRLCK, 0, 29)]

    asyncio.run(main())


def test_release_ends_the_waits_of_its_handle() -> None:
    async def main() -> None:
        waits = Waits()
        waits.take(A, write())
        waiter = await waits.wait(B, write())
        cancelled = await waits.wait(B, write())
        cancelled.cancel()
        waits.table.release(INO, waits.handles[B])
        with pytest.raises(OSError, match="closed while waiting") as caught:
            await waiter
        assert caught.value.errno == errno.EBADF
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        waits.take(A, unlock())
        assert (len(waits.table), waits.table._posix, waits.table._waiting) == (0, {}, {})

    asyncio.run(main())


def test_flush_leaves_the_waits_of_the_owners_other_threads() -> None:
    async def main() -> None:
        waits = Waits()
        waits.take(A, write(0, 9))
        waits.take(B, read(20, 29))
        waiter = await waits.wait(B, write(0, 9))
        waits.table.flush(INO, B)
        await settle()
        assert not waiter.done()
        waits.take(A, unlock())
        await waiter

    asyncio.run(main())


def test_wait_for_a_free_lock_does_not_wait() -> None:
    async def main() -> None:
        waits = Waits()
        with pytest.raises(StopIteration):
            waits.table.wait(INO, A, write(), "a").send(None)
        with pytest.raises(StopIteration):
            waits.table.wait(INO, A, unlock(), "a").send(None)

    asyncio.run(main())


# Deadlock.


def expect_deadlock(waiting: Coroutine[Any, Any, None]) -> None:
    with pytest.raises(OSError, match="wait for this one's owner") as caught:
        waiting.send(None)
    assert caught.value.errno == errno.EDEADLK


def test_two_that_wait_for_each_other_are_edeadlk() -> None:
    async def main() -> None:
        waits = Waits()
        waits.take(A, write(0, 0))
        waits.take(B, write(1, 1))
        waiter = await waits.wait(A, write(1, 1))
        expect_deadlock(waits.table.wait(INO, B, write(0, 0), "b"))
        waits.take(B, unlock())
        await waiter

    asyncio.run(main())


def test_a_circle_over_several_files_is_edeadlk() -> None:
    async def main() -> None:
        waits = Waits()
        for ino, owner in ((1, A), (2, B), (3, C)):
            waits.take(owner, write(), ino=ino)
        first = await waits.wait(A, read(), ino=2)
        second = await waits.wait(B, read(), ino=3)
        expect_deadlock(waits.table.wait(1, C, read(), "c"))
        waits.table.flush(3, C)
        await second
        waits.table.flush(2, B)
        await first

    asyncio.run(main())


def test_upgrade_by_two_readers_is_edeadlk_for_the_second() -> None:
    async def main() -> None:
        waits = Waits()
        waits.take(A, read())
        waits.take(B, read())
        waiter = await waits.wait(A, write())
        expect_deadlock(waits.table.wait(INO, B, write(), "b"))
        waits.take(B, unlock())
        await waiter

    asyncio.run(main())


def test_any_of_several_in_the_way_may_close_the_circle() -> None:
    async def main() -> None:
        waits = Waits()
        for owner in (A, B, C):
            waits.take(owner, read(0, 0))
        waits.take(D, write(1, 1))
        waiter = await waits.wait(B, read(1, 1))
        expect_deadlock(waits.table.wait(INO, D, write(0, 0), "d"))
        waiter.cancel()

    asyncio.run(main())


def test_cancelled_waiter_closes_no_circle() -> None:
    async def main() -> None:
        waits = Waits()
        waits.take(A, write(0, 0))
        waits.take(B, write(1, 1))
        first = await waits.wait(A, write(1, 1))
        first.cancel()
        second = waits.table.wait(INO, B, write(0, 0), "b")
        assert second.send(None) is not None  # it waits, instead of being told of a deadlock
        second.close()

    asyncio.run(main())


def test_grant_that_closes_a_circle_ends_the_one_it_shuts_out() -> None:
    # C has two threads: one waits for X, one for Y, which D holds; D waits for X too. When C gets X, D is stuck.
    async def main() -> None:
        waits = Waits()
        waits.take(A, write(), ino=1)
        waits.take(D, write(), ino=2)
        for_x = await waits.wait(C, write(), ino=1)
        shut_out = await waits.wait(D, write(), ino=1)
        for_y = await waits.wait(C, write(), ino=2)
        waits.take(A, unlock(), ino=1)
        await for_x
        with pytest.raises(OSError, match="wait for") as caught:
            await shut_out
        assert caught.value.errno == errno.EDEADLK
        waits.take(D, unlock(), ino=2)
        await for_y

    asyncio.run(main())


# The kernel as oracle: OFD locks have one owner for each open file, so one process holds them all.

_FLOCK = struct.Struct("hhqqi4x")
_OWNERS = 3
_SIZE = 24


class KernelLocks:
    """The same calls on a real file."""

    def __init__(self, path: str) -> None:
        self.fds = [os.open(path, os.O_RDWR) for _ in range(_OWNERS)]
        self.path = path

    def set(self, owner: int, type_: int, start: int, end: int) -> bool:
        try:
            fcntl.fcntl(self.fds[owner], fcntl.F_OFD_SETLK, self.pack(type_, start, end))
        except BlockingIOError:
            return False
        return True

    def test(self, owner: int, type_: int, start: int, end: int) -> tuple[int, int, int] | None:
        answer = fcntl.fcntl(self.fds[owner], fcntl.F_OFD_GETLK, self.pack(type_, start, end))
        found, _, at, length, _ = _FLOCK.unpack(answer)
        return None if found == F_UNLCK else (found, at, at + length - 1 if length else END)

    def reopen(self, owner: int) -> None:
        os.close(self.fds[owner])
        self.fds[owner] = os.open(self.path, os.O_RDWR)

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)

    @staticmethod
    def pack(type_: int, start: int, end: int) -> bytes:
        return _FLOCK.pack(type_, os.SEEK_SET, start, 0 if end == END else end - start + 1, 0)


_OWNER = st.integers(0, _OWNERS - 1)
_START = st.integers(0, _SIZE - 1)
_LENGTH = st.one_of(st.integers(1, _SIZE), st.just(0))


class LockMachine(RuleBasedStateMachine):
    """Random locks, unlocks and closes by three open files, here and in the kernel."""

    @initialize()
    def start(self) -> None:
        descriptor, self.path = tempfile.mkstemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
        os.close(descriptor)
        self.kernel = KernelLocks(self.path)
        self.table = LockTable()
        self.handles = [object() for _ in range(_OWNERS)]

    @rule(owner=_OWNER, type_=st.sampled_from([F_RDLCK, F_WRLCK, F_UNLCK]), at=_START, length=_LENGTH)
    def set(self, owner: int, type_: int, at: int, length: int) -> None:
        end = at + length - 1 if length else END
        ours = self.table.set(INO, owner, Lock(type_, at, end, 1), self.handles[owner])
        assert ours == self.kernel.set(owner, type_, at, end)

    @rule(owner=_OWNER, type_=st.sampled_from([F_RDLCK, F_WRLCK]), at=_START, length=_LENGTH)
    def test(self, owner: int, type_: int, at: int, length: int) -> None:
        end = at + length - 1 if length else END
        ours = self.table.test(INO, owner, Lock(type_, at, end, 1))
        theirs = self.kernel.test(owner, type_, at, end)
        assert (ours is None) == (theirs is None)
        if theirs is not None:  # the kernel takes the first in its own order
            assert theirs in [entry for other in range(_OWNERS) if other != owner for entry in held(self.table, other)]

    @rule(owner=_OWNER)
    def close_and_open(self, owner: int) -> None:
        self.kernel.reopen(owner)
        self.table.release(INO, self.handles[owner])
        self.handles[owner] = object()

    @invariant()
    def same_state_of_every_byte(self) -> None:
        probe = os.open(self.path, os.O_RDWR)
        try:
            for byte in range(_SIZE * 2 + 1):
                for type_ in (F_RDLCK, F_WRLCK):
                    answer = fcntl.fcntl(probe, fcntl.F_OFD_GETLK, KernelLocks.pack(type_, byte, byte))
                    ours = self.table.test(INO, 99, Lock(type_, byte, byte, 1))
                    assert (ours is None) == (_FLOCK.unpack(answer)[0] == F_UNLCK)
        finally:
            os.close(probe)

    def teardown(self) -> None:
        if hasattr(self, "kernel"):
            self.kernel.close()
            os.unlink(self.path)


LockMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestLocksAgainstTheKernel = LockMachine.TestCase


# The mixin.


class Files(Filesystem):
    """What a filesystem does at flush and release, written down."""

    def __init__(self, mode: str) -> None:
        self.mode = mode
        self.calls: list[str] = []

    def flush(self, request: Request, ino: int, handle: Any, lock_owner: int) -> Result[None]:
        return self.act("flush")

    def release(self, request: Request, ino: int, handle: Any) -> Result[None]:
        return self.act("release")

    def act(self, name: str) -> Result[None]:
        self.calls.append(name)
        if self.mode == "raises":
            raise OSError(errno.EIO, "no")
        return self.later(name) if self.mode.startswith("waits") else None

    async def later(self, name: str) -> None:
        await asyncio.sleep(0)
        self.calls.append(f"{name} done, {len(self.locks_seen())} locks")
        if self.mode == "waits and raises":
            raise OSError(errno.EIO, "no")

    def locks_seen(self) -> list[tuple[int, Lock]]:
        raise NotImplementedError


class Keeping(LockKeeper, Files):
    def locks_seen(self) -> list[tuple[int, Lock]]:
        return self.locks.held(INO)


class Plain(LockKeeper):
    pass


def request(flags: int = 0) -> Request:
    made = Request(2, 0, 0, 1)
    made.flags = flags
    return made


async def finish(result: Result[None]) -> None:
    if result is not None:
        await result


def test_keeper_supports_locks_and_what_they_need() -> None:
    fs = Plain()
    assert fs.keep_own_locks
    for method in ("getlk", "setlk", "setlkw", "flush", "release"):
        assert fs.implements(method)


def test_keeper_without_own_flush_answers_it() -> None:
    fs = Plain()
    fs.setlk(request(), INO, "h", A, write())
    assert fs.getlk(request(), INO, "i", B, read()) == Lock(F_WRLCK, 0, END, 1)
    assert fs.flush(request(), INO, "h", A) is None
    assert fs.getlk(request(), INO, "i", B, read()) is None


def test_keeper_tells_flock_by_the_request() -> None:
    fs = Plain()
    fs.setlk(request(LK_FLOCK), INO, "h", A, write())
    fs.setlk(request(), INO, "i", B, write())
    with pytest.raises(OSError, match="in the way") as caught:
        fs.setlk(request(LK_FLOCK), INO, "i", B, write())
    assert caught.value.errno == errno.EAGAIN


def test_keeper_refuses_locks_without_a_handle() -> None:
    fs = Plain()
    for take in (fs.setlk, fs.setlkw):
        with pytest.raises(OSError, match="need a handle") as caught:
            take(request(), INO, None, A, write())
        assert caught.value.errno == errno.ENOLCK


@pytest.mark.parametrize("mode", ["plain", "raises", "waits", "waits and raises"])
def test_keeper_runs_the_filesystems_own_flush_and_release_and_then_drops_locks(mode: str) -> None:
    async def main() -> None:
        fs = Keeping(mode)
        for ends in ("flush", "release"):
            fs.setlk(request(), INO, "h", A, write())
            fs.calls.clear()
            with pytest.raises(OSError, match="no") if "raises" in mode else nullcontext():
                await finish(fs.flush(request(), INO, "h", A) if ends == "flush" else fs.release(request(), INO, "h"))
            assert fs.calls == ([ends, f"{ends} done, 1 locks"] if "waits" in mode else [ends])
            assert fs.locks.held(INO) == []

    asyncio.run(main())


def test_ofd_lock_ends_with_the_release_of_its_file() -> None:
    async def main() -> None:
        fs = Plain()
        open_file, other = object(), object()
        fs.setlk(request(), INO, open_file, 0x0FD, write())
        result = fs.setlkw(request(), INO, other, B, write())
        assert isinstance(result, Coroutine)
        waiter = asyncio.get_running_loop().create_task(result)
        await settle()
        await finish(fs.flush(request(), INO, open_file, 0x123))  # close(2) names the process, not the open file
        await settle()
        assert not waiter.done()
        await finish(fs.release(request(), INO, open_file))
        await waiter
        assert fs.setlkw(request(), INO, other, B, unlock()) is None

    asyncio.run(main())


# The kernel's side, through a mount.


class OneFile(LockKeeper):
    """A directory with one file, whose locks are kept here."""

    def lookup(self, request: Request, parent: int, name: bytes) -> Attr | None:
        return self.getattr(request, INO, None) if name == b"file" else None

    def getattr(self, request: Request, ino: int, handle: Any) -> Attr:
        return Attr(ino=1, mode=S_IFDIR | 0o755) if ino == 1 else Attr(ino=INO, mode=S_IFREG | 0o644, size=100)

    def open(self, request: Request, ino: int, flags: int) -> object:
        return object()

    def write(self, request: Request, ino: int, handle: Any, offset: int, data: memoryview) -> int:
        """Take nothing seriously: without it the mount is read-only, and only files open for writing take write locks."""
        return len(data)


def lock_bytes(type_: int, start: int = 0, length: int = 0) -> bytes:
    return _FLOCK.pack(type_, os.SEEK_SET, start, length, 0)


class Client:
    """A process of its own that locks as it is told, by lines of Python that end in an answer."""

    SOURCE = """
import errno, fcntl, os, signal, sys
signal.signal(signal.SIGUSR1, lambda *_: (_ for _ in ()).throw(InterruptedError(errno.EINTR, "signal")))
fds = {}
for line in sys.stdin:
    try:
        answer = repr(eval(line))
    except OSError as error:
        answer = errno.errorcode[error.errno]
    print(answer, flush=True)
"""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.SOURCE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def begin(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ask(self, line: str) -> str:
        self.begin(line)
        return self.answer()

    def begin_posix(self, type_: int, start: int, length: int) -> None:
        self.begin(f"fcntl.fcntl(fds['f'], fcntl.F_SETLKW, {lock_bytes(type_, start, length)!r}) and 'locked'")

    def posix(self, type_: int, start: int, length: int) -> str:
        self.begin_posix(type_, start, length)
        return self.answer()

    def is_waiting(self) -> bool:
        """Say whether the process sleeps in the kernel's wait for an answer."""
        return "request_wait" in Path(f"/proc/{self.process.pid}/wchan").read_text()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()


@pytest.fixture
def file() -> Iterator[Path]:
    with served(__file__) as (top, _):
        yield top / "file"


@pytest.fixture
def clients(file: Path) -> Iterator[list[Client]]:
    with ExitStack() as ends:
        started = []
        for _ in range(2):
            started.append(Client())
            ends.callback(started[-1].end)
            started[-1].ask(f"fds.update(f=os.open({str(file)!r}, os.O_RDWR))")
        yield started


def until(condition: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(5000):
        if condition():
            return
        pause.wait(0.002)
    raise AssertionError("it never happened")


def ofd(fd: int, type_: int) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, lock_bytes(type_))
    except BlockingIOError:
        return False
    return True


@mounted
def test_mounted_ofd_lock_ends_with_the_last_descriptor_of_its_open_file(file: Path) -> None:
    first, second = os.open(file, os.O_RDWR), os.open(file, os.O_RDWR)
    again = os.dup(first)
    assert ofd(first, F_WRLCK)
    assert not ofd(second, F_RDLCK)
    os.close(first)
    assert not ofd(second, F_RDLCK)
    os.close(again)
    until(lambda: ofd(second, F_WRLCK))  # RELEASE comes a little later than close
    os.close(second)


@mounted
def test_mounted_flock_ends_with_its_open_file_and_knows_no_posix_lock(file: Path) -> None:
    first, second = os.open(file, os.O_RDWR), os.open(file, os.O_RDWR)
    fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with pytest.raises(BlockingIOError):
        fcntl.flock(second, fcntl.LOCK_SH | fcntl.LOCK_NB)
    assert ofd(second, F_WRLCK)
    os.close(first)

    def may_lock() -> bool:
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    until(may_lock)
    os.close(second)


@mounted
def test_mounted_posix_wait_is_granted_when_the_other_process_dies(clients: list[Client]) -> None:
    first, second = clients
    assert first.posix(F_WRLCK, 0, 10) != "EAGAIN"
    second.begin_posix(F_WRLCK, 5, 1)
    until(second.is_waiting)
    first.process.kill()
    assert second.answer() == "'locked'"


@mounted
def test_mounted_posix_lock_ends_when_any_descriptor_of_the_file_is_closed(clients: list[Client], file: Path) -> None:
    first, second = clients
    first.posix(F_WRLCK, 0, 10)
    second.begin_posix(F_WRLCK, 0, 10)
    until(second.is_waiting)
    first.ask(f"os.close(os.open({str(file)!r}, os.O_RDONLY))")
    assert second.answer() == "'locked'"


@mounted
def test_mounted_wait_is_interrupted_by_a_signal_and_leaves_no_trace(clients: list[Client]) -> None:
    first, second = clients
    first.posix(F_WRLCK, 0, 10)
    second.begin_posix(F_WRLCK, 0, 20)
    until(second.is_waiting)
    second.process.send_signal(signal.SIGUSR1)
    assert second.answer() == "EINTR"
    first.posix(F_UNLCK, 0, 10)
    assert first.posix(F_WRLCK, 0, 20) == "'locked'"


@mounted
def test_mounted_deadlock_is_edeadlk(clients: list[Client]) -> None:
    first, second = clients
    first.posix(F_WRLCK, 0, 1)
    second.posix(F_WRLCK, 1, 1)
    first.begin_posix(F_WRLCK, 1, 1)
    until(first.is_waiting)
    assert second.posix(F_WRLCK, 0, 1) == errno.errorcode[errno.EDEADLK]
    second.posix(F_UNLCK, 1, 1)
    assert first.answer() == "'locked'"


@mounted
def test_mounted_getlk_names_the_holder(clients: list[Client]) -> None:
    first, second = clients
    first.posix(F_WRLCK, 3, 4)
    found = second.ask(f"fcntl.fcntl(fds['f'], fcntl.F_GETLK, {lock_bytes(F_RDLCK)!r}).hex()")
    assert _FLOCK.unpack(bytes.fromhex(found.strip("'"))) == (F_WRLCK, os.SEEK_SET, 3, 4, first.process.pid)


if __name__ == "__main__":
    from pyfusekit.core.serving import serve

    async def serve_until_unmounted() -> None:
        async with serve(OneFile(), sys.argv[1]) as serving:
            print("ready", flush=True)
            await serving.wait()

    asyncio.run(serve_until_unmounted())
