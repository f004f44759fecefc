"""A descriptor on the loop: draining, its budget, the bounded spin, sending when full, ending."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pyfusekit.core.asyncfd import BUDGET_WITH_TASKS, KEPT, POOL, SCHEDULED, AsyncFd

BYTES = 1 << 16


class End:
    """One end of a socket pair, and the AsyncFd that owns the other."""

    def __init__(self, **options: Any) -> None:
        self.socket, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.setblocking(False)
        self.device = AsyncFd(other.detach(), BYTES, **options)
        self.got: list[bytes] = []
        self.says: Callable[[bytes], int] = lambda message: 0
        self.device.receive = self.receive

    def receive(self, buffer: Any, n: int) -> int:
        self.got.append(bytes(buffer[:n]))
        return self.says(self.got[-1])

    def sent(self) -> list[bytes]:
        """Return what the device has sent so far."""
        messages = []
        while True:
            try:
                messages.append(self.socket.recv(BYTES))
            except BlockingIOError:
                return messages
            if not messages[-1]:
                messages.pop()
                return messages

    def close(self) -> None:
        self.device.close()
        self.socket.close()


@pytest.fixture
async def ends() -> Any:
    made: list[End] = []

    def make(**options: Any) -> End:
        made.append(End(**options))
        return made[-1]

    yield make
    for end in made:
        end.close()


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def until(condition: Callable[[], object]) -> None:
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it did not happen")


async def test_messages_come_one_a_call_in_order(ends: Any) -> None:
    end = ends()
    end.device.start()
    for i in range(20):
        end.socket.send(b"message %d" % i)
    await until(lambda: len(end.got) == 20)
    assert end.got == [b"message %d" % i for i in range(20)]


async def test_one_turn_drains_what_is_there(ends: Any) -> None:
    end = ends(budget=100)
    for i in range(50):
        end.socket.send(b"%d" % i)
    end.device.start()
    await turns(3)
    assert len(end.got) == 50


async def test_a_message_that_comes_while_another_is_dealt_with_is_read_in_the_same_turn(ends: Any) -> None:
    end = ends(spin=0)
    end.says = lambda message: (end.socket.send(b"%d" % (int(message) + 1)) if int(message) < 30 else 0) and 0
    end.device.start()
    end.socket.send(b"0")
    await turns(3)
    assert end.got == [b"%d" % i for i in range(31)]


async def test_a_buffer_is_used_again_and_a_shorter_message_is_not_mixed_with_the_longer_before(ends: Any) -> None:
    end = ends()
    buffers: set[int] = set()

    def receive(buffer: Any, n: int) -> int:
        buffers.add(id(buffer))
        return int(end.receive(buffer, n))

    end.device.receive = receive
    end.device.start()
    end.socket.send(b"a long message")
    end.socket.send(b"short")
    await until(lambda: len(end.got) == 2)
    assert end.got == [b"a long message", b"short"]
    assert len(buffers) == 1


# The turn of others.


@pytest.mark.parametrize("budget", [1, 7, 128])
async def test_the_budget_gives_other_tasks_their_turn(ends: Any, budget: int) -> None:
    """A client that never stops asking does not keep the loop for itself."""
    end = ends(budget=budget)
    at_turn: list[int] = []
    end.says = lambda message: end.socket.send(b"again") and 0
    end.device.start()
    end.socket.send(b"first")
    for _ in range(6):
        await asyncio.sleep(0)
        at_turn.append(len(end.got))
    end.says = lambda message: 0
    taken = [later - earlier for earlier, later in itertools.pairwise(at_turn)]
    assert max(taken) == budget
    assert sum(taken) > 0


async def test_after_a_task_was_made_it_has_its_turn_soon(ends: Any) -> None:
    end = ends(budget=2000)
    ran: list[int] = []

    async def task() -> None:
        ran.append(len(end.got))

    made: list[asyncio.Task[None]] = []

    def says(message: bytes) -> int:
        end.socket.send(b"again")
        if len(end.got) == 10:
            made.append(asyncio.get_running_loop().create_task(task()))
            return SCHEDULED
        return 0

    end.says = says
    end.device.start()
    end.socket.send(b"first")
    await until(lambda: ran)
    end.says = lambda message: 0
    assert 10 <= ran[0] <= 10 + BUDGET_WITH_TASKS


# The spin.


class Reads:
    """Stands between a device and its descriptor: notes what every read said, and lets something happen before one."""

    def __init__(self, device: AsyncFd) -> None:
        self.count = 0
        self.said: list[int | None] = []
        self.before: Callable[[int], object] = lambda count: None
        """Called before each read with its number, the first being 1; what it raises, the read raises."""
        self._real = device._read
        device._read = self.read

    def read(self, buffer: bytearray) -> int | None:
        self.count += 1
        self.before(self.count)
        self.said.append(self._real(buffer))
        return self.said[-1]


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("spin", [1, 5, 20])
async def test_an_idle_descriptor_is_asked_just_so_often(ends: Any, spin: int) -> None:
    before = open_descriptors()
    end = ends(spin=spin)
    reads = Reads(end.device)
    end.device.start()
    end.socket.send(b"x")
    await until(lambda: end.got)
    once = [1, None, *[None] * spin]
    assert reads.said == once
    await turns(20)
    assert reads.said == once, "an idle descriptor costs nothing"
    end.socket.send(b"y")
    await until(lambda: len(end.got) == 2)
    assert reads.said == once * 2
    end.close()
    assert open_descriptors() == before
    await turns()
    assert reads.count == len(once * 2), "a closed one is not asked: its number may be another's"


@pytest.mark.parametrize("asked", [1, 3, 5])
async def test_a_message_during_the_spin_is_read_without_going_to_sleep(ends: Any, asked: int) -> None:
    end = ends(spin=5)
    reads = Reads(end.device)
    loop = asyncio.get_running_loop()
    order: list[bytes] = []

    def before(count: int) -> None:
        if count == 2 + asked:  # after the message and the EAGAIN
            loop.call_soon(order.append, b"the loop")
            end.socket.send(b"in time")

    def says(message: bytes) -> int:
        order.append(message)
        return 0

    reads.before = before
    end.says = says
    end.device.start()
    end.socket.send(b"x")
    await until(lambda: len(order) == 3)
    assert order == [b"x", b"in time", b"the loop"]
    assert reads.said == [1, None, *[None] * (asked - 1), len(b"in time"), None, *[None] * 5]


async def test_a_spin_of_0_never_asks_again(ends: Any) -> None:
    end = ends(spin=0)
    reads = Reads(end.device)
    end.device.start()
    for i in range(3):
        end.socket.send(b"x")
        await until(lambda: len(end.got) > i)  # noqa: B023 - called before i changes
    assert reads.said == [1, None] * 3


async def test_nothing_spins_while_a_task_wants_its_turn(ends: Any) -> None:
    end = ends(spin=20)
    reads = Reads(end.device)
    made: list[asyncio.Task[None]] = []
    ran: list[list[int | None]] = []

    async def task() -> None:
        ran.append(list(reads.said))

    def says(message: bytes) -> int:
        made.append(asyncio.get_running_loop().create_task(task()))
        return SCHEDULED

    end.says = says
    end.device.start()
    end.socket.send(b"x")
    await until(lambda: ran)
    assert ran == [[1, None]]
    await turns()
    assert reads.said == [1, None]
    end.says = lambda message: 0
    end.socket.send(b"y")
    await until(lambda: len(end.got) == 2)
    assert reads.said == [1, None, 1, None, *[None] * 20], "and it spins again when none does"


# Buffers.


async def test_a_kept_buffer_stays_as_it_is_and_comes_back(ends: Any) -> None:
    end = ends()
    kept: list[tuple[Any, bytes]] = []

    def receive(buffer: Any, n: int) -> int:
        kept.append((buffer, bytes(buffer[:n])))
        return SCHEDULED | KEPT

    end.device.receive = receive
    end.device.start()
    for i in range(POOL + 5):
        end.socket.send(b"message %d" % i)
    await until(lambda: len(kept) == POOL + 5)
    assert len({id(buffer) for buffer, _ in kept}) == POOL + 5
    for buffer, content in kept:
        assert bytes(buffer[: len(content)]) == content
    known = {id(buffer) for buffer, _ in kept}
    for buffer, _ in kept:
        end.device.recycle(buffer)
    held = [buffer for buffer, _ in kept]  # so that no new buffer can have an old one's address
    kept.clear()
    for i in range(POOL + 1):
        end.socket.send(b"again %d" % i)
    await until(lambda: len(kept) == POOL + 1)
    assert len({id(buffer) for buffer, _ in kept[1:]} & known) == POOL
    assert len(held) == POOL + 5


async def test_no_more_buffers_are_kept_for_later_than_the_pool_holds(ends: Any) -> None:
    end = ends()
    for _ in range(POOL * 3):
        end.device.recycle(bytearray(BYTES))
    assert len(end.device._pool) == POOL


# Sending.


async def test_a_message_is_sent_at_once(ends: Any) -> None:
    end = ends()
    end.device.write(b"whole")
    end.device.writev([b"in ", bytearray(b"three "), memoryview(b"parts")])
    assert end.sent() == [b"whole", b"in three parts"]


async def test_what_does_not_fit_is_sent_later_in_order(ends: Any) -> None:
    end = ends()
    end.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    end.device.start()
    expected = []
    piece = bytearray(5000)
    for i in range(400):
        if i % 2:
            piece[:4] = b"%04d" % i
            end.device.writev((b"v", memoryview(piece)))
            expected.append(b"v" + bytes(piece))
        else:
            end.device.write(b"%04d" % i + b"x" * 5000)
            expected.append(b"%04d" % i + b"x" * 5000)
    assert end.device._unsent, "the socket took everything; the test needs a smaller one"
    got: list[bytes] = []

    def all_there() -> bool:
        got.extend(end.sent())
        return len(got) == len(expected)

    await until(all_there)
    assert got == expected
    assert not end.device._unsent
    end.device.write(b"at once again")
    assert end.sent() == [b"at once again"]


async def test_a_message_that_is_too_long_for_a_socket_is_an_oserror(ends: Any) -> None:
    end = ends()
    with pytest.raises(OSError, match="too long") as caught:
        end.device.write(b"x" * (16 << 20))
    assert caught.value.errno == errno.EMSGSIZE


async def test_a_write_to_nobody_is_an_oserror(ends: Any) -> None:
    end = ends()
    end.socket.close()
    with pytest.raises(BrokenPipeError):
        end.device.write(b"x")
    with pytest.raises(BrokenPipeError):
        end.device.writev((b"x", b"y"))


async def test_what_cannot_be_sent_later_ends_the_descriptor(ends: Any) -> None:
    end = ends()
    end.device.start()
    while not end.device._unsent:
        end.device.write(b"x" * 5000)
    end.socket.close()
    ended = await asyncio.wait_for(end.device.closed, 10)
    assert ended is None or ended.errno in (errno.EPIPE, errno.ECONNRESET)


# The end.


async def test_the_end_of_the_other_side_is_none(ends: Any) -> None:
    end = ends()
    end.device.start()
    end.socket.send(b"last words")
    end.socket.close()
    assert await asyncio.wait_for(end.device.closed, 10) is None
    assert end.got == [b"last words"]


def fail_at(device: AsyncFd, number: int, at: tuple[int, ...]) -> Reads:
    """Let the reads of these numbers fail, the first being 1."""
    reads = Reads(device)

    def before(count: int) -> None:
        if count in at:
            raise OSError(number, os.strerror(number))

    reads.before = before
    return reads


FIRST, AGAIN, IN_THE_SPIN = 1, 2, 4
"""Which read is of a message, of a drained descriptor, of the spin, when one message is there."""


@pytest.mark.parametrize("at", [FIRST, AGAIN, IN_THE_SPIN])
@pytest.mark.parametrize("number", [errno.ENODEV, errno.ECONNABORTED, errno.EINVAL, errno.EIO])
async def test_an_error_of_read_ends_it_and_is_told(ends: Any, number: int, at: int) -> None:
    end = ends(spin=5)
    reads = fail_at(end.device, number, (at,))
    end.device.start()
    end.socket.send(b"x")
    ended = await asyncio.wait_for(end.device.closed, 10)
    assert ended is not None
    assert ended.errno == number
    assert end.got == ([] if at == FIRST else [b"x"])
    end.socket.send(b"too late")
    await turns()
    assert reads.count == at, "it is not read again"
    assert end.device.fd >= 0, "closing is the owner's business"
    os.fstat(end.device.fd)


@pytest.mark.parametrize("at", [(1, 2, 3), (AGAIN,), (IN_THE_SPIN, IN_THE_SPIN + 1)])
async def test_enoent_of_read_is_passed_over(ends: Any, at: tuple[int, ...]) -> None:
    end = ends(spin=5)
    reads = fail_at(end.device, errno.ENOENT, at)
    end.device.start()
    end.socket.send(b"x")
    await until(lambda: end.got)
    assert reads.count - len(reads.said) == len(at), "all of them failed"
    end.socket.send(b"y")
    await until(lambda: len(end.got) == 2)
    assert end.got == [b"x", b"y"]
    assert not end.device.closed.done()


async def test_closing_gives_the_number_back_once(ends: Any) -> None:
    end = ends()
    end.device.start()
    number = end.device.fd
    end.device.close()
    assert end.device.fd == -1
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)
    other = os.open("/dev/null", os.O_RDONLY)  # is likely to get the same number
    end.device.close()
    os.fstat(other)
    os.close(other)
    assert await end.device.closed is None


async def test_closing_before_the_start_is_fine(ends: Any) -> None:
    end = ends()
    end.device.close()
    assert end.device.fd == -1
    assert end.device.closed.done()


async def test_closing_while_a_message_is_dealt_with_reads_no_more(ends: Any) -> None:
    end = ends()

    def says(message: bytes) -> int:
        end.device.close()
        return 0

    end.says = says
    end.device.start()
    for _ in range(3):
        end.socket.send(b"x")
    await turns()
    assert end.got == [b"x"]
    assert end.device.fd == -1


async def test_closing_with_unsent_messages_drops_them(ends: Any) -> None:
    end = ends()
    end.device.start()
    while not end.device._unsent:
        end.device.write(b"x" * 5000)
    end.device.close()
    end.sent()
    await turns()
    with pytest.raises(OSError, match="Bad file descriptor"):
        end.device.write(b"after the end")
    with pytest.raises(OSError, match="Bad file descriptor"):
        end.device.writev((b"after", b"the end"))


async def test_an_error_before_closing_is_what_closed_says(ends: Any) -> None:
    end = ends()
    fail_at(end.device, errno.ENODEV, (FIRST,))
    end.device.start()
    end.socket.send(b"x")
    await until(lambda: end.device.closed.done())
    end.device.close()
    assert (await end.device.closed).errno == errno.ENODEV


async def test_stopping_reads_no_more_and_still_writes(ends: Any) -> None:
    end = ends()
    end.device.start()
    end.device.stop()
    end.socket.send(b"not read")
    await turns()
    assert end.got == []
    assert end.device.closed.done()
    end.device.write(b"answer")
    assert end.sent() == [b"answer"]
    end.device.stop()
    end.device.close()
    end.device.stop()


async def test_stopping_while_a_message_is_dealt_with_reads_no_more(ends: Any) -> None:
    end = ends()

    def says(message: bytes) -> int:
        end.device.stop()
        return 0

    end.says = says
    end.device.start()
    for _ in range(3):
        end.socket.send(b"x")
    await turns()
    assert end.got == [b"x"]


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    read_end, write_end = os.pipe()
    yield read_end, write_end
    for fd in (read_end, write_end):
        try:
            os.close(fd)
        except OSError as error:
            assert error.errno == errno.EBADF  # noqa: PT017


async def test_a_pipe_is_a_descriptor_too(pipe: tuple[int, int]) -> None:
    read_end, write_end = pipe
    got: list[bytes] = []

    def receive(buffer: Any, n: int) -> int:
        got.append(bytes(buffer[:n]))
        return 0

    device = AsyncFd(read_end, BYTES)
    device.receive = receive
    device.start()
    assert not os.get_blocking(read_end)
    os.write(write_end, b"through a pipe")
    await until(lambda: got)
    os.close(write_end)
    assert await asyncio.wait_for(device.closed, 10) is None
    assert got == [b"through a pipe"]
    device.close()
