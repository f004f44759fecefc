"""serve() on the real kernel. The server is another process: this module, run with the name of a scenario."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import select
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest
from served import needs_root

from pyfusekit.core import abi, codec, serving
from pyfusekit.core import mount as mounting
from pyfusekit.core.errors import MountError
from pyfusekit.core.filesystem import Filesystem
from pyfusekit.core.mount import MountOptions
from pyfusekit.core.mountinfo import MountInfo, read_mountinfo
from pyfusekit.core.mountpoints import probe
from pyfusekit.core.serving import Served, run, serve
from pyfusekit.core.types import Attr, DirEntry, Opened, ReadResult, Request, SetAttr

LIMIT_S = 20
WATCHDOG_S = 40
CONTENT = b"hello, kernel\n"
BIG = 8 << 20
CROWD = 1000
NOBODY = 65534

pytestmark = [
    pytest.mark.mounted,
    needs_root,
]


def readable(file: int | IO[bytes], seconds: float) -> bool:
    """Wait until *file* can be read. select(2) knows no descriptors from 1024 on, and a long test run has them."""
    poll = select.poll()
    poll.register(file, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


# --- the server's side --------------------------------------------------------------------------------------------------


def emit(word: str, **facts: Any) -> None:
    """Tell the test something."""
    os.write(1, (json.dumps([word, facts]) + "\n").encode())


class Orders:
    """What the test says, one word a line."""

    def __init__(self) -> None:
        self._words: asyncio.Queue[str] = asyncio.Queue()
        self._rest = b""
        os.set_blocking(0, False)
        asyncio.get_running_loop().add_reader(0, self._ready)

    def _ready(self) -> None:
        *words, self._rest = (self._rest + os.read(0, 4096)).split(b"\n")
        for word in words:
            self._words.put_nowait(word.decode())

    async def next(self) -> str:
        return await self._words.get()


FILES = {2: b"hello", 3: b"slow", 4: b"stuck", 5: b"bug", 6: b"latebug", 7: b"big", 8: b"setid"}


class Small(Filesystem):
    """A directory of files that each behave in their own way."""

    attr_ttl = entry_ttl = 0.0

    def __init__(self) -> None:
        self.now = self.most = 0
        self.everyone = asyncio.Event()
        self.largest = 0
        self.mode = stat.S_IFREG | 0o6777

    async def init(self) -> None:
        emit("init")

    async def destroy(self) -> None:
        emit("destroy")

    def attr(self, ino: int) -> Attr:
        if ino == 1:
            return Attr(ino=1, mode=stat.S_IFDIR | 0o755, nlink=2)
        size = BIG if ino == 7 else 1 << 30 if ino == 3 else len(CONTENT)
        return Attr(ino=ino, mode=self.mode if ino == 8 else stat.S_IFREG | 0o644, size=size)

    def lookup(self, request: Request, parent: int, name: bytes) -> Attr | None:
        return next((self.attr(ino) for ino, known in FILES.items() if known == name), None)

    def getattr(self, request: Request, ino: int, handle: Any) -> Attr:
        return self.attr(ino)

    def open(self, request: Request, ino: int, flags: int) -> Any:
        return Opened(ino, 0 if ino == 7 else abi.FOPEN_DIRECT_IO)

    def readdir(self, request: Request, ino: int, handle: Any, offset: int) -> list[DirEntry]:
        entries = [DirEntry(b".", 1, stat.S_IFDIR, 1), DirEntry(b"..", 1, stat.S_IFDIR, 2)]
        entries += [DirEntry(name, number, stat.S_IFREG, number + 1) for number, name in FILES.items()]
        return entries[offset:]

    def read(self, request: Request, ino: int, handle: Any, offset: int, size: int) -> Any:
        self.largest = max(self.largest, size)
        if ino == 5:
            raise ValueError("a bug in read")
        if ino == 7:
            return b"b" * max(0, min(size, BIG - offset))
        if ino == 2 or ino == 8:
            return CONTENT[offset : offset + size]
        return self.late(ino, offset)

    async def late(self, ino: int, offset: int) -> ReadResult:
        if ino == 6:
            await asyncio.sleep(0)
            raise ValueError("a late bug in read")
        if ino == 4:
            emit("stuck")
            try:
                await asyncio.Event().wait()
            finally:
                emit("let go")
        self.now += 1
        self.most = max(self.most, self.now)
        if self.now == CROWD:
            self.everyone.set()
        await asyncio.sleep(0.1)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.everyone.wait(), LIMIT_S)
        self.now -= 1
        return b"%08d" % offset


class Writable(Small):
    """The same, where the set-id file can be written; the core clears its bits."""

    def setattr(self, request: Request, ino: int, changes: SetAttr, handle: Any) -> Attr:
        if changes.mode is not None:
            self.mode = changes.mode
        return self.attr(ino)

    def write(self, request: Request, ino: int, handle: Any, offset: int, data: memoryview) -> int:
        return len(data)

    def fallocate(self, request: Request, ino: int, handle: Any, mode: int, offset: int, length: int) -> None:
        return None


async def obey(served: Served, orders: Orders) -> None:
    """Do what the test says, inside the block, until it says that the block is over."""
    while True:
        word = await orders.next()
        if word == "leave":
            return
        if word == "fail":
            raise RuntimeError("inside the block")
        if word == "wait":
            emit("waiting")
            await served.wait()
            emit("gone")
            return
        if word == "unmount":
            try:
                await served.unmount()
                emit("unmounted")
            except MountError as error:
                emit("refused", kind=error.kind)
        if word == "most":
            emit("most", most=served.fs.most, largest=served.fs.largest)  # type: ignore[attr-defined]


async def scenario_serve(mountpoint: str, kind: str = "Small", leave: str = "10") -> None:
    """Serve, and obey."""
    serving.LEAVE_TIMEOUT_S = float(leave)
    orders = Orders()
    fs = globals()[kind]()
    try:
        async with serve(fs, mountpoint, MountOptions(allow_other=True, nosuid=False)) as served:
            emit("serving", minor=served.mount.minor)
            await obey(served, orders)
    except RuntimeError as error:
        emit("raised", what=str(error))
    emit("left")


async def scenario_two(one: str, two: str) -> None:
    """Serve two filesystems at once, and leave the first when told."""
    orders = Orders()

    class Other(Small):
        def read(self, request: Request, ino: int, handle: Any, offset: int, size: int) -> Any:
            return b"the other"[offset : offset + size]

    async with serve(Other(), two) as second:
        async with serve(Small(), one) as first:
            emit("serving", minors=[first.mount.minor, second.mount.minor])
            await obey(first, orders)
        emit("left one")
        await obey(second, orders)
    emit("left")


async def scenario_init_fails(mountpoint: str) -> None:
    class Failing(Small):
        async def init(self) -> None:
            raise ConnectionRefusedError("the backend is down")

    try:
        async with serve(Failing(), mountpoint):
            emit("serving")
    except ConnectionRefusedError as error:
        emit("raised", what=str(error))


async def scenario_readahead(mountpoint: str, max_readahead: str) -> None:
    fs = Small()
    fs.max_readahead = int(max_readahead)
    orders = Orders()
    async with serve(fs, mountpoint) as served:
        emit("serving", minor=served.mount.minor)
        await obey(served, orders)


async def scenario_no_init(mountpoint: str) -> None:
    """Serve a descriptor whose INIT somebody has answered already."""
    serving.INIT_TIMEOUT_S = 0.3
    mount = await asyncio.to_thread(mounting.mount, mountpoint, MountOptions())
    try:
        while not readable(mount.fd, LIMIT_S):
            raise TimeoutError("no INIT")
        hello = codec.decode_request(os.read(mount.fd, 1 << 17))
        os.write(mount.fd, codec.encode_reply(abi.INITIAL, hello.header["unique"], major=7, minor=31, max_write=4096))
        try:
            async with serve(Small(), f"/dev/fd/{os.dup(mount.fd)}"):
                emit("serving")
        except MountError as error:
            emit("raised", what=str(error), kind=error.kind, remedy=error.remedy)
    finally:
        os.close(mount.fd)
        await asyncio.to_thread(mount.unmount, lazy=True)


async def scenario_too_old(mountpoint: str) -> None:
    """Speak to a kernel that says it is 7.22."""
    abi.OLDEST_MINOR_VERSION = 99
    try:
        async with serve(Small(), mountpoint):
            emit("serving")
    except MountError as error:
        emit("raised", what=str(error), kind=error.kind, remedy=error.remedy)


async def scenario_cancelled_mounting(mountpoint: str) -> None:
    """Be cancelled while the thread mounts."""
    real, mounted = mounting.mount, threading.Event()

    def slowly(*arguments: Any) -> Any:
        emit("mounting")
        assert mounted.wait(LIMIT_S)
        return real(*arguments)

    mounting.mount = slowly  # type: ignore[assignment]

    async def use() -> None:
        async with serve(Small(), mountpoint):
            emit("serving")

    orders = Orders()
    task = asyncio.ensure_future(use())
    await orders.next()
    task.cancel()
    await asyncio.sleep(0.05)
    mounted.set()
    emit("ended", cancelled=isinstance((await asyncio.gather(task, return_exceptions=True))[0], asyncio.CancelledError))


async def scenario_cancelled_leaving(mountpoint: str) -> None:
    """Be cancelled while waiting for users to go."""
    serving.LEAVE_TIMEOUT_S = LIMIT_S * 10
    orders, over = Orders(), asyncio.Event()

    async def use() -> None:
        async with serve(Small(), mountpoint):
            emit("serving")
            await over.wait()

    task = asyncio.ensure_future(use())
    await orders.next()
    over.set()
    await orders.next()
    task.cancel()
    emit("ended", cancelled=isinstance((await asyncio.gather(task, return_exceptions=True))[0], asyncio.CancelledError))


async def scenario_bad_attributes(mountpoint: str) -> None:
    fs = Small()
    fs.entry_ttl = "soon"  # type: ignore[assignment]
    try:
        async with serve(fs, mountpoint):
            emit("serving")
    except TypeError:
        emit("raised")


async def scenario_notifies_early(mountpoint: str) -> None:
    """Use the notifier in init, and from a task that init began."""

    class Early(Small):
        async def init(self) -> None:
            self.first = self.notifier.inval_inode(2)
            self.task = asyncio.ensure_future(self.watch())

        async def watch(self) -> None:
            for _ in range(5):
                self.notifier.inval_entry(1, b"hello")
                await asyncio.sleep(0)

    orders = Orders()
    fs = Early()
    async with serve(fs, mountpoint) as served:
        emit("serving")
        await fs.first
        emit("taken")
        await obey(served, orders)


def scenario_run(mountpoint: str) -> None:
    """The foreground server of scripts."""

    class Telling(Filesystem):
        def getattr(self, request: Request, ino: int, handle: Any) -> Attr:
            return Attr(ino=1, mode=stat.S_IFDIR | 0o755)

        async def destroy(self) -> None:
            emit("destroy")

    run(Telling(), mountpoint)
    emit("left")


# --- the test's side ----------------------------------------------------------------------------------------------------


class Server:
    """A scenario in a process of its own."""

    def __init__(self, top: Path, scenario: str, *arguments: str) -> None:
        self.log = top / f"{scenario}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, __file__, scenario, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
            )
        self.heard: list[str] = []
        self._rest = b""

    def say(self, word: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(word.encode() + b"\n")
        self.process.stdin.flush()

    def hear(self, word: str) -> dict[str, Any]:
        """Wait until the server says *word*, and return the facts that go with it."""
        assert self.process.stdout is not None
        until = time.monotonic() + LIMIT_S
        while True:
            line, newline, rest = self._rest.partition(b"\n")
            if newline:
                self._rest = rest
                said, facts = json.loads(line)
                self.heard.append(said)
                if said == word:
                    found: dict[str, Any] = facts
                    return found
                continue
            left = until - time.monotonic()
            if left <= 0 or not readable(self.process.stdout, left):
                raise AssertionError(f"the server did not say {word!r}, but {self.heard}; {self.complaints()}")
            more = os.read(self.process.stdout.fileno(), 4096)
            if not more:
                raise AssertionError(f"the server ended without saying {word!r}, but {self.heard}; {self.complaints()}")
            self._rest += more

    def complaints(self) -> str:
        return self.log.read_text()

    def ended(self) -> int:
        """Wait until the process has ended; return its exit code."""
        code = self.process.wait(LIMIT_S)
        assert self.process.stdout is not None
        rest = self._rest + self.process.stdout.read()
        self.heard += [json.loads(line)[0] for line in rest.splitlines()]
        return code


def below(top: Path) -> list[MountInfo]:
    return [info for info in read_mountinfo() if info.mountpoint.startswith(f"{top}/")]


@pytest.fixture
def top() -> Iterator[Path]:
    """A directory to mount below, with a watchdog that frees whoever hangs on a mount there."""
    path = Path(tempfile.mkdtemp(prefix="pyfusekit-serving-", dir="/tmp"))
    path.chmod(0o755)

    def free() -> None:
        for info in below(path):
            with contextlib.suppress(MountError):
                mounting.abort(info.minor)

    watchdog = threading.Timer(WATCHDOG_S, free)
    watchdog.start()
    try:
        yield path
        left = [info.mountpoint for info in below(path)]
    finally:
        watchdog.cancel()
        free()
        for info in reversed(below(path)):
            with contextlib.suppress(MountError):
                mounting.unmount(info.mountpoint, lazy=True)
        shutil.rmtree(path)
    assert left == [], "the test left a mount behind"


@pytest.fixture
def start(top: Path) -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def starting(scenario: str, *arguments: str) -> Server:
        servers.append(Server(top, scenario, *arguments))
        return servers[-1]

    yield starting
    for server in servers:
        if server.process.poll() is None:
            server.process.kill()
        server.process.wait(LIMIT_S)
        for pipe in (server.process.stdin, server.process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


@pytest.fixture
def mnt(top: Path) -> Path:
    path = top / "mnt"
    path.mkdir()
    return path


def until(condition: Callable[[], object], what: str) -> None:
    """Wait until something is so."""
    for _ in range(LIMIT_S * 100):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError(f"not {what} within {LIMIT_S} s")


# Serving, and the ways it ends.


def test_a_filesystem_is_served_inside_the_block_and_unmounted_behind_it(
    start: Callable[..., Server], top: Path, mnt: Path
) -> None:
    server = start("serve", str(mnt))
    minor = server.hear("serving")["minor"]
    (info,) = below(top)
    assert (info.minor, info.fstype) == (minor, "fuse.pyfusekit")
    assert (mnt / "hello").read_bytes() == CONTENT
    assert sorted(os.listdir(mnt)) == sorted(name.decode() for name in FILES.values())
    with pytest.raises(FileNotFoundError):
        (mnt / "absent").stat()
    server.say("leave")
    server.hear("left")
    assert server.ended() == 0
    assert below(top) == []
    assert server.heard == ["init", "serving", "destroy", "left"]
    assert server.complaints() == ""


@pytest.mark.parametrize("ending", ["leave", "umount", "abort", "exception"])
def test_destroy_is_called_once_however_it_ends_and_nothing_stays_mounted(
    start: Callable[..., Server], top: Path, mnt: Path, ending: str
) -> None:
    server = start("serve", str(mnt))
    minor = server.hear("serving")["minor"]
    assert (mnt / "hello").read_bytes() == CONTENT
    if ending in ("umount", "abort"):
        server.say("wait")
        server.hear("waiting")
        if ending == "umount":
            mounting.unmount(str(mnt))
        else:
            mounting.abort(minor)
        server.hear("gone")
    else:
        server.say("leave" if ending == "leave" else "fail")
    if ending == "exception":
        assert server.hear("raised")["what"] == "inside the block"
    assert server.ended() == 0
    assert server.heard.count("destroy") == 1
    assert server.heard[-1] == "left"
    assert below(top) == []
    assert server.complaints() == ""


def test_a_mount_in_use_is_detached_and_served_until_its_last_user_left(
    start: Callable[..., Server], top: Path, mnt: Path
) -> None:
    server = start("serve", str(mnt))
    server.hear("serving")
    with (mnt / "hello").open("rb", buffering=0) as file:
        server.say("leave")
        until(lambda: below(top) == [], "detached")
        assert os.listdir(mnt) == []
        assert file.read(100) == CONTENT
        assert server.process.poll() is None
        assert "destroy" not in server.heard
    server.hear("left")
    assert server.ended() == 0
    assert server.complaints().count("\n") == 1
    assert "is in use; it is detached" in server.complaints()


def test_a_user_who_stays_is_not_waited_for_for_ever(start: Callable[..., Server], top: Path, mnt: Path) -> None:
    server = start("serve", str(mnt), "Small", "0.2")
    server.hear("serving")
    fd = os.open(mnt / "hello", os.O_RDONLY)
    try:
        server.say("leave")
        server.hear("left")
        assert server.ended() == 0
        with pytest.raises(OSError, match=r"not connected|aborted") as caught:
            os.read(fd, 100)
        assert caught.value.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    finally:
        with contextlib.suppress(OSError):  # it flushes, to nobody
            os.close(fd)
    assert below(top) == []


def test_unmount_says_busy_and_serving_goes_on(start: Callable[..., Server], top: Path, mnt: Path) -> None:
    server = start("serve", str(mnt))
    server.hear("serving")
    with (mnt / "hello").open("rb", buffering=0) as file:
        server.say("unmount")
        assert server.hear("refused")["kind"] == mounting.BUSY
        assert file.read(100) == CONTENT
        assert (mnt / "hello").read_bytes() == CONTENT
    server.say("unmount")
    server.hear("unmounted")
    assert below(top) == []
    server.say("leave")
    server.hear("left")
    assert server.ended() == 0


def test_two_mounts_live_in_one_process(start: Callable[..., Server], top: Path) -> None:
    one, two = top / "one", top / "two"
    one.mkdir()
    two.mkdir()
    server = start("two", str(one), str(two))
    first, second = server.hear("serving")["minors"]
    assert first != second
    assert (one / "hello").read_bytes() == CONTENT
    assert (two / "hello").read_bytes() == b"the other"
    server.say("leave")
    server.hear("left one")
    assert [info.mountpoint for info in below(top)] == [str(two)]
    assert (two / "hello").read_bytes() == b"the other"
    server.say("leave")
    assert server.ended() == 0
    assert server.heard.count("destroy") == 2
    assert server.complaints() == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_run_ends_with_a_signal(start: Callable[..., Server], top: Path, mnt: Path, number: int) -> None:
    server = start("run", str(mnt))
    until(lambda: below(top), "mounted")
    until(lambda: probe(str(mnt)) == 0, "serving")
    server.process.send_signal(number)
    assert server.ended() == 0
    assert server.heard == ["destroy", "left"]
    assert below(top) == []
    assert server.complaints() == ""


def test_run_ends_with_its_mount(start: Callable[..., Server], top: Path, mnt: Path) -> None:
    server = start("run", str(mnt))
    until(lambda: below(top), "mounted")
    until(lambda: probe(str(mnt)) == 0, "serving")
    mounting.unmount(str(mnt))
    assert server.ended() == 0
    assert server.heard == ["destroy", "left"]
    assert server.complaints() == ""


def test_a_killed_server_leaves_a_mount_that_unmount_takes_away(start: Callable[..., Server], top: Path, mnt: Path) -> None:
    server = start("serve", str(mnt))
    server.hear("serving")
    server.process.kill()
    server.process.wait(LIMIT_S)
    with pytest.raises(OSError, match="not connected") as caught:
        os.stat(mnt)
    assert caught.value.errno == errno.ENOTCONN
    assert len(below(top)) == 1
    mounting.unmount(str(mnt))
    assert below(top) == []
    assert os.listdir(mnt) == []


# What goes wrong at the start.


def test_a_backend_that_is_down_stops_the_mount(start: Callable[..., Server], top: Path, mnt: Path) -> None:
    server = start("init_fails", str(mnt))
    assert server.hear("raised")["what"] == "the backend is down"
    assert server.ended() == 0
    assert server.heard == ["raised"]
    assert below(top) == []


def test_a_kernel_that_does_not_begin_is_an_error(start: Callable[..., Server], top: Path, mnt: Path) -> None:
    server = start("no_init", str(mnt))
    raised = server.hear("raised")
    assert "did not begin to talk" in raised["what"]
    assert raised["remedy"]
    assert server.ended() == 0
    assert server.heard == ["init", "destroy", "raised"]


def test_a_kernel_that_is_too_old_is_an_error_and_leaves_nothing(start: Callable[..., Server], top: Path, mnt: Path) -> None:
    server = start("too_old", str(mnt))
    raised = server.hear("raised")
    assert "the kernel speaks FUSE 7." in raised["what"]
    assert raised["remedy"]
    assert server.ended() == 0
    assert server.heard == ["init", "destroy", "raised"]
    assert below(top) == []


def test_being_cancelled_while_mounting_leaves_nothing(start: Callable[..., Server], top: Path, mnt: Path) -> None:
    server = start("cancelled_mounting", str(mnt))
    server.hear("mounting")
    server.say("cancel")
    assert server.hear("ended")["cancelled"]
    assert server.ended() == 0
    assert below(top) == []
    assert server.heard == ["init", "mounting", "destroy", "ended"]
    assert server.complaints() == ""


def test_being_cancelled_while_leaving_detaches_at_once(start: Callable[..., Server], top: Path, mnt: Path) -> None:
    server = start("cancelled_leaving", str(mnt))
    server.hear("serving")
    fd = os.open(mnt / "hello", os.O_RDONLY)
    try:
        server.say("leave")
        until(lambda: below(top) == [], "detached")
        server.say("cancel")
        assert server.hear("ended")["cancelled"]
        assert server.ended() == 0
    finally:
        with contextlib.suppress(OSError):
            os.close(fd)
    assert server.heard.count("destroy") == 1


def test_a_filesystem_that_says_nonsense_leaves_nothing(start: Callable[..., Server], top: Path, mnt: Path) -> None:
    server = start("bad_attributes", str(mnt))
    server.hear("raised")
    assert server.ended() == 0
    assert server.heard == ["init", "destroy", "raised"]
    assert below(top) == []


def test_the_notifier_is_there_before_init_and_used_after_the_kernels(
    start: Callable[..., Server], top: Path, mnt: Path
) -> None:
    server = start("notifies_early", str(mnt))
    server.hear("taken")
    assert (mnt / "hello").read_bytes() == CONTENT
    server.say("leave")
    assert server.ended() == 0
    assert server.complaints() == ""


# Handlers that misbehave.


def test_a_handler_that_never_returns_stops_nobody_else_and_can_be_interrupted(
    start: Callable[..., Server], top: Path, mnt: Path
) -> None:
    server = start("serve", str(mnt))
    server.hear("serving")
    client = subprocess.Popen(["cat", str(mnt / "stuck")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        server.hear("stuck")
        for _ in range(20):
            assert (mnt / "hello").read_bytes() == CONTENT
        client.send_signal(signal.SIGINT)
        assert client.wait(LIMIT_S) == -signal.SIGINT
        server.hear("let go")
    finally:
        client.kill()
        client.wait(LIMIT_S)
    assert (mnt / "hello").read_bytes() == CONTENT
    server.say("leave")
    server.hear("left")
    assert server.ended() == 0
    assert server.complaints() == ""


def test_a_killed_client_of_a_handler_that_never_returns_dies(start: Callable[..., Server], top: Path, mnt: Path) -> None:
    server = start("serve", str(mnt))
    server.hear("serving")
    client = subprocess.Popen(["cat", str(mnt / "stuck")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        server.hear("stuck")
    finally:
        client.kill()
        assert client.wait(LIMIT_S) == -signal.SIGKILL
    server.hear("let go")
    server.say("leave")
    server.hear("left")
    assert server.ended() == 0


def test_leaving_lets_go_of_handlers_that_never_return(start: Callable[..., Server], top: Path, mnt: Path) -> None:
    server = start("serve", str(mnt), "Small", "0.2")
    server.hear("serving")
    client = subprocess.Popen(["cat", str(mnt / "stuck")], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        server.hear("stuck")
        server.say("leave")
        server.hear("let go")
        server.hear("left")
        assert server.ended() == 0
        assert client.wait(LIMIT_S) == 1
        assert client.stderr is not None
        assert b"not connected" in client.stderr.read()  # cat asks again after EINTR
    finally:
        client.kill()
        client.communicate(timeout=LIMIT_S)
    assert below(top) == []


@pytest.mark.parametrize("name", ["bug", "latebug"])
def test_a_handler_with_a_bug_is_eio_with_one_traceback_and_the_mount_lives(
    start: Callable[..., Server], top: Path, mnt: Path, name: str
) -> None:
    server = start("serve", str(mnt))
    server.hear("serving")
    with pytest.raises(OSError, match="Input/output error") as caught, (mnt / name).open("rb", buffering=0) as file:
        file.read(10)
    assert caught.value.errno == errno.EIO
    assert (mnt / "hello").read_bytes() == CONTENT
    server.say("leave")
    assert server.ended() == 0
    said = server.complaints()
    assert said.count("Traceback") == 1
    assert said.count("ValueError: ") == 1
    assert "READ: the handler failed" in said


# Many at once, and how far the kernel reads ahead.


_CROWD = """
import os, sys, threading
threading.stack_size(64 << 10)
fd = os.open(sys.argv[1], os.O_RDONLY)
count = int(sys.argv[2])
right = [False] * count
def read(i):
    right[i] = os.pread(fd, 8, i * 4096) == b"%08d" % (i * 4096)
threads = [threading.Thread(target=read, args=(i,)) for i in range(count)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(sum(right))
"""


def test_a_thousand_slow_reads_are_all_in_flight_at_once(start: Callable[..., Server], top: Path, mnt: Path) -> None:
    server = start("serve", str(mnt))
    server.hear("serving")
    client = subprocess.run(
        [sys.executable, "-c", _CROWD, str(mnt / "slow"), str(CROWD)],
        capture_output=True,
        text=True,
        timeout=WATCHDOG_S,
        check=True,
    )
    assert int(client.stdout) == CROWD
    server.say("most")
    assert server.hear("most")["most"] == CROWD
    server.say("leave")
    assert server.ended() == 0
    assert server.complaints() == ""


def read_ahead_kib(minor: int) -> int:
    return int(Path(f"/sys/class/bdi/0:{minor}/read_ahead_kb").read_text())


def test_the_kernel_reads_ahead_a_mebibyte_at_a_time(start: Callable[..., Server], top: Path, mnt: Path) -> None:
    server = start("serve", str(mnt))
    minor = server.hear("serving")["minor"]
    assert read_ahead_kib(minor) == 1024
    with (mnt / "big").open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        while file.read(1 << 20):
            pass
    server.say("most")
    assert server.hear("most")["largest"] == 1 << 20
    server.say("leave")
    assert server.ended() == 0


@pytest.mark.parametrize(("said", "kib"), [(0, 0), (65536, 64), (4 << 20, 4096)])
def test_a_filesystem_has_its_say_in_read_ahead(
    start: Callable[..., Server], top: Path, mnt: Path, said: int, kib: int
) -> None:
    server = start("readahead", str(mnt), str(said))
    assert read_ahead_kib(server.hear("serving")["minor"]) == kib
    assert (mnt / "hello").read_bytes() == CONTENT
    server.say("leave")
    assert server.ended() == 0


# Set-id bits, as the kernel leaves them to the core.

_CHANGE = """
import os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
os.setgroups([]); os.setgid({nobody}); os.setuid({nobody})
{change}
"""


@pytest.mark.parametrize(
    ("uid", "change", "mode"),
    [
        (NOBODY, "os.pwrite(fd, b'x', 0)", 0o777),
        (NOBODY, "os.posix_fallocate(fd, 0, 4096)", 0o777),
        (0, "os.pwrite(fd, b'x', 0)", 0o6777),
        (0, "os.posix_fallocate(fd, 0, 4096)", 0o6777),
        (0, "os.fchown(fd, 5, 5)", 0o777),
    ],
)
def test_set_id_bits_go_when_an_ordinary_user_changes_the_file(
    start: Callable[..., Server], top: Path, mnt: Path, uid: int, change: str, mode: int
) -> None:
    server = start("serve", str(mnt), "Writable")
    server.hear("serving")
    assert stat.S_IMODE(os.stat(mnt / "setid").st_mode) == 0o6777
    subprocess.run(
        [sys.executable, "-c", _CHANGE.format(nobody=uid, change=change), str(mnt / "setid")], check=True, timeout=LIMIT_S
    )
    assert stat.S_IMODE(os.stat(mnt / "setid").st_mode) == mode
    server.say("leave")
    assert server.ended() == 0
    assert server.complaints() == ""


if __name__ == "__main__":
    scenario = globals()[f"scenario_{sys.argv[1]}"]
    if asyncio.iscoroutinefunction(scenario):
        asyncio.run(scenario(*sys.argv[2:]))
    else:
        scenario(*sys.argv[2:])
