"""Every notification against the real kernel. The server is this file run as a script; it obeys lines of JSON on its stdin."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from math import inf
from pathlib import Path
from stat import S_IFDIR, S_IFREG
from typing import Any

import pytest
from served import mounted, served

from pyfusekit.core.errors import DeadlockError
from pyfusekit.core.filesystem import Filesystem
from pyfusekit.core.types import Attr, DirEntry, Opened, Request, Result

KEEP_CACHE = 1 << 1
FILE, SLOW, PIPE = 2, 3, 4
NAMES = {b"file": FILE, b"slow": SLOW, b"pipe": PIPE}


class Told(Filesystem):
    """A directory whose contents the kernel believes for ever, and that changes behind its back."""

    attr_ttl = entry_ttl = inf
    explicit_inval_data = True

    def __init__(self) -> None:
        self.data = {FILE: b"first", SLOW: b"slow", PIPE: b""}
        self.names = dict(NAMES)
        self.count: dict[str, int] = {}
        self.resent = 0
        self.go = asyncio.Event()
        self.kh: int | None = None
        self.ready = 0
        self.refused = ""

    def counted(self, name: str) -> None:
        self.count[name] = self.count.get(name, 0) + 1

    def attr(self, ino: int) -> Attr:
        if ino == 1:
            return Attr(ino=1, mode=S_IFDIR | 0o755)
        return Attr(ino=ino, mode=S_IFREG | 0o644, size=len(self.data[ino]))

    def lookup(self, request: Request, parent: int, name: bytes) -> Result[Attr | None]:
        self.counted("lookup")
        if name == b"awaits":
            return self.awaits(parent, name)
        return self.attr(self.names[name]) if name in self.names else None

    async def awaits(self, parent: int, name: bytes) -> None:
        """Await what can only happen after this very answer."""
        try:
            await self.notifier.inval_entry(parent, name)
        except DeadlockError as error:
            self.refused = str(error)

    def forget(self, ino: int, nlookup: int) -> None:
        self.counted(f"forget {ino}")

    def getattr(self, request: Request, ino: int, handle: Any) -> Attr:
        self.counted("getattr")
        return self.attr(ino)

    def open(self, request: Request, ino: int, flags: int) -> Opened:
        return Opened(ino, KEEP_CACHE)

    def read(self, request: Request, ino: int, handle: Any, offset: int, size: int) -> Result[Any]:
        self.counted("read")
        if request.unique >> 63:
            self.resent += 1
        return self.slowly(offset, size) if ino == SLOW else self.data[ino][offset : offset + size]

    async def slowly(self, offset: int, size: int) -> bytes:
        await self.go.wait()
        return self.data[SLOW][offset : offset + size]

    def write(self, request: Request, ino: int, handle: Any, offset: int, data: memoryview) -> int:
        # A plain def: this goes out after the reply, or the kernel would wait for it.
        self.data[ino] = bytes(data)
        self.notifier.inval_inode(ino, 0)
        return len(data)

    def readdir(self, request: Request, ino: int, handle: Any, offset: int) -> Iterator[DirEntry]:
        listed = [DirEntry(name, ino, S_IFREG, at) for at, (name, ino) in enumerate(self.names.items(), 1)]
        return iter(listed[offset:])

    def poll(self, request: Request, ino: int, handle: Any, events: int, kh: int | None) -> int:
        self.kh = kh if kh is not None else self.kh
        return self.ready & events


# The test's side.


class Server:
    """A mounted Told, and the way to tell it things."""

    def __init__(self, top: Path, process: subprocess.Popen[str]) -> None:
        self.top = top
        self.process = process

    def __call__(self, verb: str, *arguments: Any) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([verb, *arguments]) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def count(self, name: str) -> int:
        found: int = self("get", "count").get(name, 0)
        return found

    def until(self, condition: Callable[[], Any]) -> None:
        pause = threading.Event()
        for _ in range(5000):
            if condition():
                return
            pause.wait(0.002)
        raise AssertionError("it never happened")


@pytest.fixture
def server() -> Iterator[Server]:
    with served(__file__) as (top, process):
        yield Server(top, process)


@contextlib.contextmanager
def meanwhile(call: Callable[[], Any]) -> Iterator[list[Any]]:
    """Run *call* in a thread; its result is in the list when the block is left."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(call()), daemon=True)
    thread.start()
    yield results
    thread.join(30)
    assert not thread.is_alive()


@mounted
def test_inval_inode_drops_contents_and_attributes(server: Server) -> None:
    file = server.top / "file"
    assert file.read_bytes() == b"first"
    server("data", FILE, "other")
    assert file.read_bytes() == b"first"
    assert server("notify", "inval_inode", FILE, 0, 0) is True
    assert file.read_bytes() == b"other"
    server("data", FILE, "longer than before")
    assert server("notify", "inval_inode", FILE) is True
    assert file.stat().st_size == 18
    assert server("notify", "inval_inode", 999) is False


@mounted
def test_write_may_tell_about_its_own_file(server: Server) -> None:
    file = server.top / "file"
    with file.open("r+b", buffering=0) as opened:
        for text in (b"one", b"two", b"three"):
            assert opened.write(text) == len(text)
            opened.seek(0)
    assert file.read_bytes() == b"three"


@mounted
@pytest.mark.parametrize("expire_only", [False, True])
def test_inval_entry_has_a_name_looked_up_again(server: Server, expire_only: bool) -> None:
    file = server.top / "file"
    file.stat()
    file.stat()
    assert server.count("lookup") == 1
    assert server("notify", "inval_entry", 1, "file", {"expire_only": expire_only}) is True
    file.stat()
    assert server.count("lookup") == 2
    assert server("notify", "inval_entry", 1, "unheard-of", {"expire_only": expire_only}) is False


@mounted
def test_delete_takes_a_name_away(server: Server) -> None:
    file = server.top / "file"
    file.stat()
    server("remove", "file")
    assert file.exists()
    assert server("notify", "delete", 1, FILE, "file") is True
    assert not file.exists()
    assert server("notify", "delete", 1, FILE, "never there") is False


@mounted
def test_store_fills_the_cache(server: Server) -> None:
    file = server.top / "file"
    file.stat()
    server("data", FILE, "pushed from behind")
    assert server("notify", "store", FILE, 0, "pushed from behind") is True
    assert file.read_bytes() == b"pushed from behind"
    assert server.count("read") == 0


@mounted
def test_retrieve_gives_what_is_cached(server: Server) -> None:
    file = server.top / "file"
    assert server("notify", "retrieve", 999, 0, 10) == ""
    file.stat()
    assert server("notify", "retrieve", FILE, 0, 10) == ""
    file.read_bytes()
    assert server("notify", "retrieve", FILE, 1, 3) == "irs"
    assert server("notify", "retrieve", FILE, 0, 4096).rstrip("\0") == "first"


@mounted
def test_poll_wakes(server: Server) -> None:
    fd = os.open(server.top / "pipe", os.O_RDONLY)
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        assert poll.poll(0) == []
        with meanwhile(lambda: poll.poll(20_000)) as results:
            server.until(lambda: server("get", "kh") is not None)
            server("ready", select.POLLIN)
            server("notify", "poll", server("get", "kh"))
        assert results == [[(fd, select.POLLIN)]]
    finally:
        os.close(fd)


@mounted
def test_inc_epoch_has_all_names_looked_up_again(server: Server) -> None:
    for name in ("file", "slow", "file", "slow"):
        (server.top / name).stat()
    assert server.count("lookup") == 2
    if server("notify", "inc_epoch") == "EOPNOTSUPP":
        pytest.skip("this kernel has no FUSE_NOTIFY_INC_EPOCH")
    for name in ("file", "slow"):
        (server.top / name).stat()
    assert server.count("lookup") == 4


@mounted
def test_prune_lets_a_node_go(server: Server) -> None:
    (server.top / "file").stat()
    assert server.count("forget 2") == 0
    if server("notify", "prune", [FILE, 999]) == "EOPNOTSUPP":
        pytest.skip("this kernel has no FUSE_NOTIFY_PRUNE")
    server.until(lambda: server.count("forget 2") == 1)


@mounted
def test_resend_brings_the_unanswered_again(server: Server) -> None:
    with meanwhile((server.top / "slow").read_bytes) as results:
        server.until(lambda: server.count("read"))
        if server("notify", "resend") == "EOPNOTSUPP":
            server("go")
            pytest.skip("this kernel has no FUSE_NOTIFY_RESEND")
        server.until(lambda: server("get", "resent"))
        server("go")
    assert results == [b"slow"]
    assert server.count("read") == 2


@mounted
def test_notification_that_waits_for_a_read_stops_nobody(server: Server) -> None:
    with meanwhile((server.top / "slow").read_bytes) as results:
        server.until(lambda: server.count("read"))
        # The kernel holds the pages of the file: this blocks until the read is answered.
        assert server("post", "inval_inode", SLOW, 0) == "posted"
        assert (server.top / "file").read_bytes() == b"first"
        server("data", SLOW, "slow")
        server("go")
    assert results == [b"slow"]
    server.until(lambda: server("get", "pending") == 0)


@mounted
def test_lookup_that_awaits_the_invalidation_of_its_own_name_is_refused(server: Server) -> None:
    assert not (server.top / "awaits").exists()
    assert "can only happen after the answer" in server("get", "refused")


# The server's side.


async def obey(fs: Told, line: str) -> Any:
    """Do what one line says; return what JSON can say of the result."""
    verb, *arguments = json.loads(line)
    if verb == "get":
        if arguments[0] == "pending":
            return len(fs.notifier._queue) + len(fs.notifier._writing)
        return getattr(fs, arguments[0])
    if verb in ("notify", "post"):
        options = arguments.pop() if isinstance(arguments[-1], dict) else {}
        method, *values = arguments
        note: Awaitable[Any] = getattr(fs.notifier, method)(
            *[value.encode() if isinstance(value, str) else value for value in values], **options
        )
        if verb == "post":
            return "posted"
        try:
            result = await note
        except OSError as error:
            return os.strerror(error.errno or 0) if error.errno != 95 else "EOPNOTSUPP"
        return result.decode("latin-1") if isinstance(result, bytes) else result
    if verb == "data":
        fs.data[arguments[0]] = arguments[1].encode()
    elif verb == "remove":
        del fs.names[arguments[0].encode()]
    elif verb == "ready":
        fs.ready = arguments[0]
    elif verb == "go":
        fs.go.set()
    else:
        raise ValueError(verb)
    return "done"


async def serve_told(mountpoint: str) -> None:
    from pyfusekit.core.serving import serve

    fs = Told()
    loop = asyncio.get_running_loop()
    lines = asyncio.StreamReader()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    async with serve(fs, mountpoint) as serving:
        print("ready", flush=True)

        async def listen() -> None:
            while line := await lines.readline():
                print(json.dumps(await obey(fs, line.decode())), flush=True)

        listening = asyncio.create_task(listen())
        await serving.wait()
        listening.cancel()
        await asyncio.wait([listening])
    transport.close()


if __name__ == "__main__":
    asyncio.run(serve_told(sys.argv[1]))
