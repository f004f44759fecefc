"""Two mounts and a plain client on one bucket, against a model.

No update is lost: what a close or fsync acknowledged is what the store held afterwards, or it was replaced by somebody who had
seen it, or a conflict was told and a copy is kept. No versions are mixed: what is read through one open file is one version.
Listings are exact in the end: when everything has settled, all three see the same names, sizes and bytes.

    PYFUSEKIT_ORACLE_EXAMPLES   how many sequences of 40 steps (90)
    PYFUSEKIT_ORACLE_SEED       a number: other sequences than usual
    PYFUSEKIT_ORACLE_SHRINK     1: when a sequence fails, look for the shortest that does; takes minutes
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import fakestore
import oracle
import pytest
from badserver import clean_environment, options
from fakestore import Fault
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from namespace import Clock
from s3user import Fd
from s3world import SHM, TTL, AtOnce, History, Inode, Mount, Opened, Tracebacks, Watched, small_world
from seaweed import SeaweedServer

from pyfusekit.fs.s3fs.naming.overlay import GRACE_S
from pyfusekit.fs.s3fs.remote.aio import AioStore

EXAMPLES = oracle.examples(90)
STEPS = 40
STEP_S = 5
"""A step that takes longer hangs."""
TIMEOUT_S = 7200 if EXAMPLES > 90 or oracle.SHRINK else 120

FILES = ("a", "b", "d", "d/a", "d/b", "e/a")
FOLDERS = ("d", "e")
OPEN_FLAGS = (
    os.O_RDONLY,
    os.O_RDONLY,
    os.O_RDWR,
    os.O_WRONLY,
    os.O_RDWR | os.O_CREAT,
    os.O_WRONLY | os.O_CREAT | os.O_TRUNC,
    os.O_WRONLY | os.O_CREAT | os.O_EXCL,
)
WHATEVER = frozenset((errno.ENOENT, errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ENOTEMPTY, errno.ESTALE, errno.EBUSY))
"""What names that others change, or that are no longer what was believed, may be answered with."""
FAULTY = WHATEVER | {errno.EIO, errno.EACCES, errno.EAGAIN, errno.EINVAL}
WRITES = "^(PUT|COMPLETE|COPY) "
FAULTS: dict[str, Callable[[], Fault]] = {
    "lost before": lambda: Fault(f"{WRITES}|^DELETE ", fakestore.lost()),
    "lost after": lambda: Fault(f"{WRITES}|^DELETE ", fakestore.lost(), after=True),
    "503": lambda: Fault("", fakestore.slow_down()),
    "409": lambda: Fault(WRITES, fakestore.busy()),
    "no head": lambda: Fault("^HEAD ", fakestore.slow_down()),
    "part": lambda: Fault("^(PART|COPY_PART) ", fakestore.lost()),
    "part after": lambda: Fault("^(PART|COPY_PART) ", fakestore.lost(), after=True),
    "get": lambda: Fault("^GET ", fakestore.lost()),
    "create": lambda: Fault("^CREATE ", fakestore.denied()),
    "denied": lambda: Fault(f"{WRITES}|^DELETE|^PART ", fakestore.denied()),
    "deletions": lambda: Fault("^DELETE_MANY ", fakestore.lost(), after=True),
}


def steps(files: tuple[str, ...], *without: str) -> st.SearchStrategy[tuple[Any, ...]]:
    """Return steps: a method of Machine and its arguments."""
    whos = st.sampled_from((0, 1))
    paths = st.sampled_from(files)
    folders = st.sampled_from(FOLDERS)
    offsets = st.sampled_from((0, 0, 3, 8, 20))
    lengths = st.sampled_from((1, 5, 9, 17, 40))
    kinds: dict[str, tuple[int, tuple[st.SearchStrategy[Any], ...]]] = {
        "open_file": (4, (whos, paths, st.sampled_from(OPEN_FLAGS))),
        "write": (4, (whos, whos, offsets, lengths)),
        "append": (3, (whos, whos, lengths)),
        "truncate": (1, (whos, whos, offsets)),
        "read": (3, (whos, whos, offsets, st.sampled_from((4, 16, 4096)))),
        "close_file": (3, (whos, whos)),
        "fsync": (2, (whos, whos)),
        "save": (4, (whos, paths, lengths)),
        "add_line": (5, (whos, paths, lengths)),
        "cut": (1, (whos, paths, offsets)),
        "cat": (3, (whos, paths)),
        "unlink": (2, (whos, paths)),
        "rename": (2, (whos, paths, paths)),
        "rename_folder": (1, (whos, folders, st.sampled_from((*FOLDERS, "f")))),
        "mkdir": (1, (whos, folders)),
        "rmdir": (1, (whos, folders)),
        "chmod": (1, (whos, paths, st.sampled_from((0o600, 0o644)))),
        "ls": (2, (whos, st.sampled_from(("", "", *FOLDERS)))),
        "put_elsewhere": (3, (paths, lengths)),
        "delete_elsewhere": (1, (paths,)),
        "fault": (2, (st.sampled_from(sorted(FAULTS)),)),
        "race": (2, (paths, lengths)),
        "tick": (4, (st.sampled_from((0.5, 2.0, 6.0, 30.0)),)),
        "lie": (1, (st.sampled_from((0.0, 1.0, 3.0)),)),
        "kill": (1, (whos, st.integers(0, 30), st.booleans())),
    }
    often = [name for name, (weight, _) in kinds.items() if name not in without for _ in range(weight)]
    return st.sampled_from(often).flatmap(lambda name: st.tuples(st.just(name), *kinds[name][1]))


class Machine(RuleBasedStateMachine):
    """The steps."""

    store: Any
    small = True

    @initialize(
        write_back=st.tuples(st.booleans(), st.booleans()),
        attempts=st.sampled_from((1, 2)),
        readahead=st.sampled_from((0, 1 << 20)),
        cache_size=st.sampled_from((0, 1 << 20)),
        lies=st.booleans(),
    )
    def begin(self, write_back: tuple[bool, bool], attempts: int, readahead: int, cache_size: int, lies: bool) -> None:
        self.lies = lies
        for path in FILES[:4:3]:
            self.store.put_plain(path, self.text(path, 20))
        for name, late in zip("AB", write_back, strict=True):
            options = {"write_back": late, "readahead": readahead, "cache_size": cache_size}
            self.mounts.append(Mount(name, self.store, self.home / name, options, attempts))
        self.run(self.start())

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp(prefix="pyfusekit-model-", dir=SHM))
        self.clock = Clock()
        self.patches = small_world(self.clock, small=self.small)
        self.patches.__enter__()
        self.loop = asyncio.new_event_loop()
        self.loop.set_default_executor(AtOnce())
        self.tracebacks = Tracebacks()
        logging.getLogger("pyfusekit").addHandler(self.tracebacks)
        self.mounts: list[Mount] = []
        self.numbers = itertools.count(1)
        self.faulty = 0
        self.store = self.make_store()

    def make_store(self) -> Any:
        return History(self.clock)

    def run(self, work: Awaitable[Any]) -> Any:
        return self.loop.run_until_complete(asyncio.wait_for(work, STEP_S))

    async def start(self) -> None:
        for mount in self.mounts:
            await mount.start()

    @rule(step=steps(FILES))
    def step(self, step: tuple[Any, ...]) -> None:
        getattr(self, step[0])(*step[1:])

    # What a step does around what it does.

    async def attempt(self, mount: Mount, work: Awaitable[Any]) -> int:
        """Do something that may fail, and return its errno, 0 when it did not."""
        self.clock.now += 0.01
        before = len(self.store.fail)
        failure: OSError | None = None
        try:
            await work
        except OSError as exc:
            failure = exc
        finally:
            hit = before > len(self.store.fail) or self.faulty
            if before > len(self.store.fail):
                self.faulty = 6  # A request of the background may have met it, and what follows runs into that.
            self.faulty = max(0, self.faulty - 1)
            await self.settle(3)
            self.look()
        if failure is None:
            return 0
        assert failure.errno in (FAULTY if hit else WHATEVER), f"{failure!r} without a cause"
        return failure.errno or errno.EIO

    async def settle(self, rounds: int) -> None:
        for _ in range(rounds):
            await asyncio.sleep(0)

    def look(self) -> None:
        assert not self.store.wrong, "\n".join(self.store.wrong)
        assert not self.tracebacks.found, "\n".join(self.tracebacks.found)
        for mount in self.mounts:
            for path in [path for path in mount.owed if path not in mount.fs.writeback.files]:
                if all(self.stored(contents) for contents in mount.owed[path]):
                    del mount.owed[path]

    def text(self, path: str, length: int) -> bytes:
        """Return bytes that nobody else writes."""
        word = f"{next(self.numbers)}:{path};".encode()
        return (word * (length // len(word) + 1))[: max(length, len(word))]

    def may_be(self, mount: Mount, path: str) -> set[tuple[bytes | None, bytes]]:
        """Return what may be found under a path that is opened now."""
        # What was done here is believed against a listing for the time of grace: it may lag.
        since = 0.0 if self.lies else self.clock.now - TTL - GRACE_S - 0.1
        found = {(v.data, v.data) for v in self.store.held.get(path, ()) if v.until >= since}
        for row in mount.owed.get(path, ()):
            found |= {(content, content) for content in row}
        return found

    # Opening, reading, writing.

    async def open(self, mount: Mount, path: str, flags: int) -> Opened | None:
        got: list[Any] = []

        async def work() -> None:
            got.append(await mount.user.open(path, flags))

        possible = self.may_be(mount, path)
        if await self.attempt(mount, work()):
            return None
        fd = got[0]
        inode = mount.inodes.get(fd.ino)
        node = mount.fs.tree.nodes[fd.ino]
        if inode is None or not inode.opens:
            inode = mount.inodes[fd.ino] = Inode(possible | self.may_be(mount, path))
            inode.began = len(self.store.held.get(path, ()))
            if node.packed is None and path not in mount.fs.writeback.files:
                inode.pairs = {(None, b"")}
                inode.changed = True
        if flags & os.O_TRUNC:
            inode.change(lambda content: b"")
        inode.opens += 1
        opened = Opened(fd, inode, path, flags)
        mount.opened.append(opened)
        return opened

    async def close(self, mount: Mount, opened: Opened) -> None:
        await self.flush(mount, opened, mount.user.flush)
        mount.opened.remove(opened)
        opened.inode.opens -= 1
        await self.attempt(mount, mount.user.release(opened.fd))

    async def flush(self, mount: Mount, opened: Opened, how: Callable[[Any], Awaitable[None]]) -> None:
        """close or fsync: what it says is held to it."""
        contents, changed = opened.inode.contents, opened.inode.changed and opened.writable
        failed = await self.attempt(mount, how(opened.fd))
        if not changed or opened.path is None:
            return
        if failed == errno.ESTALE:
            unchanged = any(base == content for base, content in opened.inode.pairs)
            assert unchanged or mount.keeps(contents) or b"" in contents, f"{opened.path!r}: {contents} is not kept"
            mount.owed.pop(opened.path, None)
            opened.inode.changed = False
            return
        if failed or mount.write_back:
            # The journal has it now, or will have it when the file is released.
            mount.owed[opened.path] = [contents]
            if not failed:
                opened.inode.changed = False
            return
        self.acknowledged(mount, opened)

    def acknowledged(self, mount: Mount, opened: Opened) -> None:
        """The store must hold what was written, made of the version it replaced."""
        inode, path = opened.inode, opened.path
        assert path is not None
        made = [v for v in self.store.held.get(path, ())[inode.began - 1 if inode.began else 0 :] if v.who in mount.lines]
        made = [v for v in made if v.data in inode.contents]
        if not made and any(base == content for base, content in inode.pairs):
            return  # What was done to it left it as it was.
        assert made, f"{mount.name}: {path!r} was acknowledged and is not in the store: {inode.contents}"
        version = made[-1]
        was = version.replaced
        while was is not None and was.who is version.who and was.since >= version.since:
            was = was.replaced  # Attributes that followed the bytes.
        pairs = {pair for pair in inode.pairs if pair[1] == version.data}
        replaced = was.data if was is not None and was.until >= version.since else None
        assert any(base == replaced for base, _ in pairs) or version.data == replaced, (
            f"{mount.name}: {path!r} was made {version.data!r} over {replaced!r}, but it was {pairs}"
        )
        inode.pairs = {(version.data, version.data)}
        inode.changed = False
        inode.began = len(self.store.held[path])
        mount.owed.pop(path, None)

    def open_file(self, who: int, path: str, flags: int) -> None:
        mount = self.mounts[who]
        if len(mount.opened) < 3:
            self.run(self.open(mount, path, flags))

    def pick(self, who: int, number: int, *, writable: bool = False) -> tuple[Mount, Opened | None]:
        mount = self.mounts[who]
        among = [opened for opened in mount.opened if opened.writable or not writable]
        return mount, among[number % len(among)] if among else None

    def write(self, who: int, number: int, offset: int, length: int) -> None:
        mount, opened = self.pick(who, number, writable=True)
        if opened is not None:
            self.run(self._write(mount, opened, offset, length))

    async def _write(self, mount: Mount, opened: Opened, offset: int, length: int) -> None:
        data = self.text(opened.path or "gone", length)
        if not await self.attempt(mount, mount.user.pwrite(opened.fd, data, offset)):
            end = offset + len(data)
            opened.inode.change(lambda old: old[:offset].ljust(offset, b"\0") + data + old[end:])

    def append(self, who: int, number: int, length: int) -> None:
        mount, opened = self.pick(who, number, writable=True)
        if opened is None:
            return
        size = self.size(mount, opened)
        if size is not None:
            self.run(self._write(mount, opened, size, length))

    def size(self, mount: Mount, opened: Opened) -> int | None:
        got: list[int] = []

        async def work() -> None:
            got.append((await mount.user.fstat(opened.fd)).size)

        if self.run(self.attempt(mount, work())):
            return None
        pairs = {pair for pair in opened.inode.pairs if len(pair[1]) == got[0]}
        assert pairs, f"{opened.path!r} has {got[0]} bytes, and could be {opened.inode.contents}"
        opened.inode.pairs = pairs
        return got[0]

    def truncate(self, who: int, number: int, size: int) -> None:
        mount, opened = self.pick(who, number, writable=True)
        if opened is not None and not self.run(self.attempt(mount, mount.user.set(opened.fd, size=size))):
            opened.inode.change(lambda old: old[:size].ljust(size, b"\0"))

    def read(self, who: int, number: int, offset: int, length: int) -> None:
        mount, opened = self.pick(who, number)
        if opened is not None and opened.flags & os.O_ACCMODE != os.O_WRONLY:
            self.run(self._read(mount, opened, offset, length))

    async def _read(self, mount: Mount, opened: Opened, offset: int, length: int) -> bytes | None:
        got: list[bytes] = []

        async def work() -> None:
            got.append(await mount.user.pread(opened.fd, length, offset))

        if await self.attempt(mount, work()):
            return None
        pairs = {pair for pair in opened.inode.pairs if pair[1][offset : offset + length] == got[0]}
        assert pairs, f"{mount.name}: {opened.path!r} at {offset} is {got[0]!r}, and could be {opened.inode.contents}"
        opened.inode.pairs = pairs
        return got[0]

    def close_file(self, who: int, number: int) -> None:
        mount, opened = self.pick(who, number)
        if opened is not None:
            self.run(self.close(mount, opened))

    def fsync(self, who: int, number: int) -> None:
        mount, opened = self.pick(who, number, writable=True)
        if opened is not None:
            self.run(self.flush(mount, opened, mount.user.fsync))

    def save(self, who: int, path: str, length: int) -> None:
        """What ">" does."""
        self.run(self._save(self.mounts[who], path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, length))

    def add_line(self, who: int, path: str, length: int) -> None:
        """What ">>" does."""
        self.run(self._save(self.mounts[who], path, os.O_RDWR | os.O_CREAT, length))

    async def _save(self, mount: Mount, path: str, flags: int, length: int) -> None:
        opened = await self.open(mount, path, flags)
        if opened is None:
            return
        if flags & os.O_TRUNC:
            await self._write(mount, opened, 0, length)
        else:
            old = await self._read(mount, opened, 0, 1 << 16)
            if old is not None:
                await self._write(mount, opened, len(old), length)
        await self.close(mount, opened)

    def cat(self, who: int, path: str) -> None:
        self.run(self._cat(self.mounts[who], path))

    async def _cat(self, mount: Mount, path: str) -> None:
        opened = await self.open(mount, path, os.O_RDONLY)
        if opened is not None:
            await self._read(mount, opened, 0, 1 << 16)
            await self.close(mount, opened)

    def cut(self, who: int, path: str, size: int) -> None:
        """truncate(2)."""
        mount = self.mounts[who]
        inos: list[int] = []

        async def work() -> None:
            inos.append(await mount.user.ino(path))
            await mount.user.set(Fd(inos[0], 0, 0, 0), by_fh=False, size=size)

        began = len(self.store.held.get(path, ()))
        possible = self.may_be(mount, path)
        if self.run(self.attempt(mount, work())):
            return
        possible |= self.may_be(mount, path)
        # Of an open file that somebody else has replaced meanwhile the path leads to another inode.
        opens = [opened for opened in mount.opened if opened.path == path and opened.fd.ino == inos[0]]
        shorter = {(base, old[:size].ljust(size, b"\0")) for base, old in possible}
        inode = Inode(shorter, True, began)
        if opens:
            opens[0].inode.change(lambda old: old[:size].ljust(size, b"\0"))
        elif mount.write_back:
            mount.owed[path] = [inode.contents]
        elif not any(base == content for base, content in shorter):
            made = self.store.held[path][-1]
            assert made.data in inode.contents, f"{path!r} is {made.data!r}, and could be {inode.contents}"
            mount.owed.pop(path, None)

    def chmod(self, who: int, path: str, mode: int) -> None:
        mount = self.mounts[who]
        self.run(self.attempt(mount, mount.user.set(path, mode=mode)))

    # Names.

    def unlink(self, who: int, path: str) -> None:
        mount = self.mounts[who]
        mount.line.removes.add(path)
        failed = self.run(self.attempt(mount, mount.user.unlink(path)))
        if failed in (errno.ENOENT, errno.EISDIR, errno.ENOTDIR):
            return
        # When it failed the store may have done it all the same.
        mount.owed.pop(path, None)
        if not failed:
            self.renamed(mount, path, None)

    def renamed(self, mount: Mount, old: str, new: str | None) -> None:
        for opened in mount.opened:
            if new is not None and opened.path == new:
                opened.path = None
            if opened.path is None or not (opened.path == old or opened.path.startswith(f"{old}/")):
                continue
            was, opened.path = opened.path, None if new is None else new + opened.path[len(old) :]
            opened.inode.began = 0
            # It was published under the old name first, or replaces what had the new one: the store looked at that.
            held = [*self.store.held.get(was, ()), *self.store.held.get(opened.path or "", ())]
            bases = {None, *(version.data for version in held)}
            opened.inode.pairs |= {(base, content) for base in bases for content in opened.inode.contents}

    def rename(self, who: int, old: str, new: str) -> None:
        self._rename(who, old, new)

    def rename_folder(self, who: int, old: str, new: str) -> None:
        self._rename(who, old, new)

    def _rename(self, who: int, old: str, new: str) -> None:
        mount = self.mounts[who]
        if new.startswith(f"{old}/"):
            return
        failed = self.run(self.attempt(mount, mount.user.rename(old, new)))
        if failed or old == new:
            return
        self.renamed(mount, old, new)
        mount.owed.pop(new, None)
        for path in [path for path in mount.owed if path == old or path.startswith(f"{old}/")]:
            mount.owed[new + path[len(old) :]] = mount.owed.pop(path)

    def mkdir(self, who: int, path: str) -> None:
        mount = self.mounts[who]
        self.run(self.attempt(mount, mount.user.mkdir(path)))

    def rmdir(self, who: int, path: str) -> None:
        mount = self.mounts[who]
        mount.line.removes.add(f"{path}/")
        self.run(self.attempt(mount, mount.user.rmdir(path)))

    def ls(self, who: int, path: str) -> None:
        mount = self.mounts[who]
        self.run(self.attempt(mount, mount.user.list(path)))

    # The world.

    def put_elsewhere(self, path: str, length: int) -> None:
        self.clock.now += 0.01
        self.store.put_plain(path, self.text(path, length))

    def delete_elsewhere(self, path: str) -> None:
        self.clock.now += 0.01
        self.store.remove_plain(path)

    def fault(self, name: str) -> None:
        self.store.fail.append(FAULTS[name]())

    def race(self, path: str, length: int) -> None:
        """Just when a mount is about to write, another client does."""
        key = path

        def put() -> None:
            self.store.put_plain(key, self.text(key, length))

        self.store.fail.append(Fault(f"^(PUT|COMPLETE|COPY .*) {key}( |$)|^DELETE {key}$", do=put))

    def tick(self, seconds: float) -> None:
        self.clock.now += seconds
        self.run(self.settle(5))

    def lie(self, seconds: float) -> None:
        if self.lies:
            self.store.lag = seconds

    def kill(self, who: int, rounds: int, finish: bool) -> None:
        self.run(self._kill(self.mounts[who], rounds, finish))

    async def _kill(self, mount: Mount, rounds: int, finish: bool) -> None:
        closing = [opened for opened in mount.opened if opened.writable and opened.inode.changed and opened.path is not None]
        task = None
        if closing:
            task = asyncio.ensure_future(mount.user.flush(closing[0].fd))
        await self.settle(rounds)
        done = task is not None and task.done() and task.exception() is None
        if done and mount.write_back:
            mount.owed[str(closing[0].path)] = [closing[0].inode.contents]
        elif done:
            self.acknowledged(mount, closing[0])
        elif closing:
            # It may have taken the place of what was acknowledged before, or not.
            path = str(closing[0].path)
            mount.owed[path] = [row | closing[0].inode.contents for row in mount.owed.get(path, ())]
        self.store.fail.clear()
        await mount.kill(finish)
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await self.store.look()
        self.look()

    # The end.

    def teardown(self) -> None:
        try:
            if self.mounts:
                self.run(self.finish())
        finally:
            self.loop.run_until_complete(self.loop.shutdown_default_executor())
            self.loop.close()
            logging.getLogger("pyfusekit").removeHandler(self.tracebacks)
            self.patches.__exit__(None, None, None)
            shutil.rmtree(self.home)

    async def finish(self) -> None:
        self.store.fail.clear()
        self.store.lag = 0.0
        self.faulty = 0
        for mount in self.mounts:
            for opened in mount.opened[:]:
                await self.close(mount, opened)
        for mount in self.mounts:
            assert await mount.fs.writeback.drain(20), f"{mount.name} waits for ever"
            assert mount.fs.waiting() == (0, 0)
        self.look()
        self.clock.now += TTL + 2 * GRACE_S + 1
        for mount in self.mounts:
            # A directory that is only remembered gives way to a file of its name when a listing has shown that.
            with contextlib.suppress(NotADirectoryError):
                await self.crawl(mount)
        for _ in range(2):
            self.clock.now += TTL + 2 * GRACE_S + 1
            for mount in self.mounts:
                await self.exact(mount)
        for mount in self.mounts:
            self.settled(mount)
            await mount.stop()
        self.look()

    async def crawl(self, mount: Mount) -> dict[str, int]:
        """Return all that a mount shows: path -> size, -1 of a directory."""
        shown: dict[str, int] = {}
        todo = [""]
        while todo:
            above = todo.pop()
            for name, entry in (await mount.user.ls_l(above)).items():
                path = f"{above}/{name}" if above else name
                shown[path] = -1 if stat.S_ISDIR(entry.mode) else entry.size
                if stat.S_ISDIR(entry.mode):
                    todo.append(path)
        return shown

    async def exact(self, mount: Mount) -> None:
        """See that a mount shows what the store holds."""
        truth = self.store.contents()
        wanted = self.store.names()
        shown = await self.crawl(mount)
        for path, size in list(shown.items()):
            node = mount.fs.tree.at(f"{path}/", True)
            if size == -1 and path not in wanted and node is not None and node.held:
                # Its last key was removed here: it stays for who is in it.
                del shown[path]
        wrong = {path: (shown.get(path), wanted.get(path)) for path in shown.keys() | wanted.keys()}
        wrong = {path: sizes for path, sizes in wrong.items() if sizes[0] != sizes[1]}
        assert not wrong, f"{mount.name}: shown and stored: {wrong}"
        for path, size in wanted.items():
            if size >= 0:
                key = path.removesuffix("␛f")
                assert await mount.user.read(path) == truth[key], f"{mount.name}: {path!r}"

    def stored(self, contents: set[bytes]) -> bool:
        """Say whether one of *contents* came into the store."""
        return any(v.data in contents for held in self.store.held.values() for v in held)

    def settled(self, mount: Mount) -> None:
        """See that the mount kept its promises."""
        for path, rows in mount.owed.items():
            for contents in rows:
                assert self.stored(contents) or mount.keeps(contents) or b"" in contents, (
                    f"{mount.name}: {path!r}: {contents} is lost: {mount.kept()}"
                )


@pytest.mark.timeout(TIMEOUT_S)
def test_no_update_is_lost_no_versions_are_mixed_and_listings_are_exact_in_the_end() -> None:
    oracle.run_machine(Machine, EXAMPLES, STEPS)


@pytest.mark.timeout(TIMEOUT_S)
def test_the_same_on_a_real_server(seaweed: SeaweedServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clean_environment(monkeypatch, tmp_path)
    client = seaweed.client()
    buckets: list[str] = []

    class OnServer(Machine):
        """The steps on SeaweedFS, which has no file and directory of the same name."""

        small = False

        def make_store(self) -> Watched:
            buckets.append(seaweed.bucket())
            self.real = AioStore(buckets[-1], options(seaweed.url))
            self.run(self.real.start())
            return Watched(self.clock, self.real, client, buckets[-1])

        @rule(step=steps(tuple(path for path in FILES if path != "d"), "fault", "race", "lie"))
        def step(self, step: tuple[Any, ...]) -> None:
            getattr(self, step[0])(*step[1:])
            self.run(self.landed())

        async def landed(self) -> None:
            """Wait for what is on its way: what a plain client does between a request and its answer could not be told."""
            quiet = 0
            while quiet < 5:
                await asyncio.sleep(0.001)
                quiet = 0 if any(mount.line.flying for mount in self.mounts) else quiet + 1

        async def finish(self) -> None:
            await super().finish()
            await self.real.close()

    try:
        oracle.run_machine(OnServer, max(6, EXAMPLES // 15), STEPS)
    finally:
        for bucket in buckets:
            client.delete_bucket(Bucket=bucket)
