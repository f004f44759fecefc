from __future__ import annotations

import asyncio
import errno
import os
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from stat import S_IFDIR, S_IFLNK, S_IFMT, S_IFREG
from typing import Any, TypeVar

import pytest
from served import mounted, served

from pyfusekit.core.filesystem import Filesystem
from pyfusekit.core.pathops import PathOperations
from pyfusekit.core.paths import UNKNOWN_INO, PathFilesystem
from pyfusekit.core.types import Attr, DirEntry, Opened, Request, Result, SetAttr, StatFs

T = TypeVar("T")
DIR, FILE = S_IFDIR | 0o755, S_IFREG | 0o644
NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4


class Files(dict[bytes, tuple[Attr, bytearray]]):
    def __missing__(self, path: bytes) -> tuple[Attr, bytearray]:
        raise FileNotFoundError(path)


class Memory(PathOperations):
    """Files in memory: the whole of a simple filesystem."""

    def __init__(self) -> None:
        self.files = Files({b"/": (Attr(mode=DIR, nlink=2), bytearray())})

    def getattr(self, request: Request, path: bytes, handle: Any) -> Attr:
        attr, data = handle or self.files[path]
        attr.size = len(data)
        return attr

    def setattr(self, request: Request, path: bytes, changes: SetAttr, handle: Any) -> None:
        attr, data = handle or self.files[path]
        if changes.mode is not None:
            attr.mode = S_IFMT(attr.mode) | changes.mode & 0o7777
        if changes.size is not None:
            data[:] = data[: changes.size].ljust(changes.size, b"\0")

    def mknod(self, request: Request, path: bytes, mode: int, rdev: int) -> None:
        self.files[path] = Attr(mode=mode, uid=request.uid, gid=request.gid), bytearray()

    def mkdir(self, request: Request, path: bytes, mode: int) -> None:
        self.mknod(request, path, S_IFDIR | mode, 0)

    def unlink(self, request: Request, path: bytes) -> None:
        del self.files[path]

    rmdir = unlink

    def rename(self, request: Request, path: bytes, newpath: bytes, flags: int) -> None:
        for old in [old for old in self.files if old == path or old.startswith(path + b"/")]:
            self.files[newpath + old[len(path) :]] = self.files.pop(old)

    def readdir(self, request: Request, path: bytes, handle: Any) -> list[bytes]:
        return [os.path.basename(file) for file in self.files if os.path.dirname(file) == path != file]

    def open(self, request: Request, path: bytes, flags: int) -> Any:
        return self.files[path]

    def read(self, request: Request, path: bytes, handle: Any, offset: int, size: int) -> bytes:
        return bytes(handle[1][offset : offset + size])

    def write(self, request: Request, path: bytes, handle: Any, offset: int, data: memoryview) -> int:
        handle[1][offset : offset + len(data)] = data.tobytes()
        return len(data)


class Careful(Memory):
    """The same, which can tell that a name is taken."""

    rename_flags = NOREPLACE

    def rename(self, request: Request, path: bytes, newpath: bytes, flags: int) -> None:
        if flags & NOREPLACE and newpath in self.files:
            raise FileExistsError(newpath)
        super().rename(request, path, newpath, flags)


class Waiting(Careful):
    """The same, asynchronously; every operation on a path of ``stops`` waits for its event, and says so."""

    def __init__(self) -> None:
        super().__init__()
        self.stops: dict[str, asyncio.Event] = {}
        self.log: list[tuple[str, bytes]] = []

    async def stop(self, name: str, path: bytes) -> None:
        self.log.append((name, path))
        if name in self.stops:
            await self.stops[name].wait()

    async def getattr(self, request: Request, path: bytes, handle: Any) -> Attr:  # type: ignore[override]
        attr = super().getattr(request, path, handle)
        await self.stop("getattr", path)
        return attr

    async def read(self, request: Request, path: bytes, handle: Any, offset: int, size: int) -> bytes:  # type: ignore[override]
        await self.stop("read", path)
        return super().read(request, path, handle, offset, size)

    async def rename(self, request: Request, path: bytes, newpath: bytes, flags: int) -> None:  # type: ignore[override]
        await self.stop("rename", path)
        super().rename(request, path, newpath, flags)

    async def unlink(self, request: Request, path: bytes) -> None:  # type: ignore[override]
        await self.stop("unlink", path)
        super().unlink(request, path)

    async def mknod(self, request: Request, path: bytes, mode: int, rdev: int) -> None:  # type: ignore[override]
        await self.stop("mknod", path)
        super().mknod(request, path, mode, rdev)


REQUEST = Request(2, 1000, 1000, 1)


def now(result: Result[T]) -> T:
    """Return the result of an operation that does not wait."""
    assert not isinstance(result, Coroutine)
    return result


async def later(result: Result[T]) -> T:
    return await result if isinstance(result, Coroutine) else result


def spawn(result: Result[T]) -> asyncio.Task[T]:
    assert isinstance(result, Coroutine)
    return asyncio.get_running_loop().create_task(result)


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def lookup(fs: PathFilesystem, path: bytes) -> int:
    """Look every name of *path* up, as the kernel does; return the last one's node id."""
    ino = 1
    for name in path.split(b"/")[1:]:
        attr = now(fs.lookup(REQUEST, ino, name))
        assert attr is not None
        ino = attr.ino
    return ino


def each(result: Result[Any]) -> Iterator[DirEntry]:
    return iter(now(result))


def entries(result: Result[Any]) -> list[DirEntry]:
    return list(each(result))


@pytest.fixture
def fs() -> PathFilesystem:
    """/a/b/file, /a/other, /c"""
    made = PathFilesystem(Careful())
    a = now(made.mkdir(REQUEST, 1, b"a", 0o755, 0)).ino
    b = now(made.mkdir(REQUEST, a, b"b", 0o755, 0)).ino
    now(made.mkdir(REQUEST, 1, b"c", 0o755, 0))
    now(made.mknod(REQUEST, b, b"file", FILE, 0, 0))
    now(made.mknod(REQUEST, a, b"other", FILE, 0, 0))
    return made


def memory(fs: PathFilesystem) -> Memory:
    assert isinstance(fs.operations, Memory)
    return fs.operations


def absent(call: Callable[[], object], number: int) -> None:
    with pytest.raises(OSError, match=r".") as caught:
        call()
    assert caught.value.errno == number


# Abilities.


def test_abilities_follow_from_the_operations() -> None:
    fs = PathFilesystem(Memory())
    methods = [name for name in vars(Filesystem) if not name.startswith("_") and callable(getattr(fs, name))]
    supported = {name for name in methods if fs.implements(name)}
    assert supported == {
        "forget", "entered", "getattr", "implements", "lookup", "mkdir", "mknod", "open", "read", "readdir", "readdirplus",
        "rename", "rmdir", "setattr", "unlink", "write",
    }  # fmt: skip


def test_operation_that_is_not_overridden_is_absent_as_in_filesystem() -> None:
    operations = PathOperations()
    fs = PathFilesystem(operations)
    assert not any(fs.implements(name) for name in ("read", "flush", "create", "link", "readdirplus", "setlk", "getxattr"))
    for name in ("read", "write", "create", "readdir", "flush", "getxattr"):
        assert not fs.implements(name)
    assert now(fs.opendir(REQUEST, 1, 0)).handle.handle is None
    assert now(fs.open(REQUEST, 1, 0)) is None
    assert now(fs.statfs(REQUEST, 1)) == StatFs()


# The tree.


def test_path_of_every_depth_reaches_the_operations(fs: PathFilesystem) -> None:
    assert now(fs.getattr(REQUEST, lookup(fs, b"/a/b/file"), None)).mode == FILE
    assert now(fs.getattr(REQUEST, 1, None)).mode == DIR
    assert set(memory(fs).files) == {b"/", b"/a", b"/a/b", b"/a/b/file", b"/a/other", b"/c"}


def test_missing_name_is_a_negative_entry(fs: PathFilesystem) -> None:
    assert now(fs.lookup(REQUEST, 1, b"none")) is None


def test_other_errors_of_a_lookup_are_raised(fs: PathFilesystem, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(request: Request, path: bytes, handle: Any) -> Attr:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(memory(fs), "getattr", fail)
    absent(lambda: fs.lookup(REQUEST, 1, b"a"), errno.EIO)


def test_name_keeps_its_number_while_it_is_known(fs: PathFilesystem) -> None:
    first = lookup(fs, b"/a")
    assert lookup(fs, b"/a") == first
    fs.forget(first, 3)  # mkdir and two lookups, and /a/b and /a/other are still known
    assert fs.ino_of(b"/a") is None
    assert now(fs.getattr(REQUEST, lookup(fs, b"/a/b"), None)).mode == DIR
    assert lookup(fs, b"/a") != first


def test_forgotten_names_leave_nothing(fs: PathFilesystem) -> None:
    a, b, c = (fs.ino_of(path) for path in (b"/a", b"/a/b", b"/c"))
    file, other = fs.ino_of(b"/a/b/file"), fs.ino_of(b"/a/other")
    for ino in (a, file, b, other, c):
        assert ino is not None
        fs.forget(ino, 1)
    assert fs._tree.root.children == {}
    assert len(fs._tree.inodes) == 1


def test_forgotten_node_is_estale(fs: PathFilesystem) -> None:
    ino = fs.ino_of(b"/c")
    assert ino is not None
    fs.forget(ino, 1)
    absent(lambda: fs.getattr(REQUEST, ino, None), errno.ESTALE)


def test_rename_moves_the_whole_subtree(fs: PathFilesystem) -> None:
    file, a, c = lookup(fs, b"/a/b/file"), lookup(fs, b"/a"), lookup(fs, b"/c")
    now(fs.rename(REQUEST, a, b"b", c, b"new", 0))
    assert fs.ino_of(b"/c/new/file") == file
    assert fs.ino_of(b"/a/b") is None
    assert now(fs.getattr(REQUEST, file, None)).ino == file
    assert b"/c/new/file" in memory(fs).files


def test_rename_of_a_parent_of_open_files_is_seen_by_them(fs: PathFilesystem) -> None:
    file = lookup(fs, b"/a/b/file")
    now(fs.rename(REQUEST, 1, b"a", 1, b"z", 0))
    assert fs.ino_of(b"/z/b/file") == file
    now(fs.setattr(REQUEST, file, SetAttr(mode=0o600), None))
    assert memory(fs).files[b"/z/b/file"][0].mode == S_IFREG | 0o600


def test_rename_over_a_file_takes_its_name_away(fs: PathFilesystem) -> None:
    a, replaced = lookup(fs, b"/a"), lookup(fs, b"/a/other")
    source = lookup(fs, b"/a/b/file")
    now(fs.rename(REQUEST, lookup(fs, b"/a/b"), b"file", a, b"other", 0))
    assert fs.ino_of(b"/a/other") == source
    absent(lambda: fs.getattr(REQUEST, replaced, None), errno.ESTALE)


def test_rename_of_a_name_the_kernel_never_looked_up(fs: PathFilesystem) -> None:
    memory(fs).files[b"/unseen"] = Attr(mode=FILE), bytearray()
    replaced = lookup(fs, b"/a/other")
    now(fs.rename(REQUEST, 1, b"unseen", lookup(fs, b"/a"), b"other", 0))
    absent(lambda: fs.getattr(REQUEST, replaced, None), errno.ESTALE)
    assert lookup(fs, b"/a/other") != replaced


@pytest.mark.parametrize("flags", [EXCHANGE, WHITEOUT, NOREPLACE | EXCHANGE, 8])
def test_rename_flags_that_are_not_done_are_einval(fs: PathFilesystem, flags: int) -> None:
    before = dict(memory(fs).files)
    absent(lambda: fs.rename(REQUEST, 1, b"a", 1, b"z", flags), errno.EINVAL)
    assert memory(fs).files == before


def test_rename_flags_that_are_done_are_passed_on(fs: PathFilesystem) -> None:
    with pytest.raises(FileExistsError):
        fs.rename(REQUEST, 1, b"a", 1, b"c", NOREPLACE)
    assert fs.ino_of(b"/a/b/file") is not None
    now(fs.rename(REQUEST, 1, b"a", 1, b"free", NOREPLACE))
    assert fs.ino_of(b"/free/b/file") is not None


def test_exchange_swaps_the_subtrees() -> None:
    class Exchanging(Memory):
        rename_flags = EXCHANGE

        def rename(self, request: Request, path: bytes, newpath: bytes, flags: int) -> None:
            assert flags == EXCHANGE
            super().rename(request, path, b"/tmp", 0)
            super().rename(request, newpath, path, 0)
            super().rename(request, b"/tmp", newpath, 0)

    fs = PathFilesystem(Exchanging())
    a = now(fs.mkdir(REQUEST, 1, b"a", 0o755, 0)).ino
    b = now(fs.mkdir(REQUEST, 1, b"b", 0o755, 0)).ino
    file = now(fs.mknod(REQUEST, a, b"file", FILE, 0, 0)).ino
    now(fs.rename(REQUEST, 1, b"a", 1, b"b", EXCHANGE))
    assert (fs.ino_of(b"/b"), fs.ino_of(b"/a"), fs.ino_of(b"/b/file")) == (a, b, file)
    assert now(fs.getattr(REQUEST, file, None)).ino == file


def test_new_file_of_a_former_name_is_another_node(fs: PathFilesystem) -> None:
    former = lookup(fs, b"/a/other")
    del memory(fs).files[b"/a/other"]  # behind the kernel's back
    made = now(fs.mknod(REQUEST, lookup(fs, b"/a"), b"other", FILE, 0, 0)).ino
    assert made != former
    absent(lambda: fs.getattr(REQUEST, former, None), errno.ESTALE)


def test_another_type_of_file_is_another_node(fs: PathFilesystem) -> None:
    former = lookup(fs, b"/a/other")
    memory(fs).files[b"/a/other"] = Attr(mode=DIR), bytearray()
    absent(lambda: fs.getattr(REQUEST, former, None), errno.ESTALE)
    assert lookup(fs, b"/a/other") != former


def test_attr_that_serves_several_files_gets_each_ones_number() -> None:
    shared = Attr(mode=FILE)

    class Shared(PathOperations):
        def getattr(self, request: Request, path: bytes, handle: Any) -> Attr:
            return Attr(mode=DIR) if path == b"/" else shared

    fs = PathFilesystem(Shared())
    attrs = [now(fs.lookup(REQUEST, 1, name)) for name in (b"x", b"y")]
    numbers = [attr.ino for attr in attrs if attr is not None]
    assert len(set(numbers)) == 2
    assert [now(fs.getattr(REQUEST, ino, None)).ino for ino in numbers] == numbers


# Open files.


def test_open_file_lives_on_without_a_name(fs: PathFilesystem) -> None:
    ino = lookup(fs, b"/a/b/file")
    handle = now(fs.open(REQUEST, ino, os.O_RDWR))
    assert now(fs.write(REQUEST, ino, handle, 0, memoryview(b"bytes"))) == 5
    now(fs.unlink(REQUEST, lookup(fs, b"/a/b"), b"file"))
    assert now(fs.read(REQUEST, ino, handle, 1, 3)) == b"yte"
    assert now(fs.getattr(REQUEST, ino, None)).size == 5  # the kernel names no handle
    assert now(fs.setattr(REQUEST, ino, SetAttr(size=2), None)).size == 2
    absent(lambda: fs.open(REQUEST, ino, 0), errno.ESTALE)
    now(fs.release(REQUEST, ino, handle))
    absent(lambda: fs.getattr(REQUEST, ino, None), errno.ESTALE)
    assert fs._tree.inodes[ino].handles == []


def test_unlinked_file_without_a_handle_is_estale(fs: PathFilesystem) -> None:
    ino = lookup(fs, b"/a/b/file")
    now(fs.unlink(REQUEST, lookup(fs, b"/a/b"), b"file"))
    for call in (
        lambda: fs.read(REQUEST, ino, None, 0, 1),
        lambda: fs.setattr(REQUEST, ino, SetAttr(), None),
        lambda: fs.getxattr(REQUEST, ino, b"user.x"),
    ):
        absent(call, errno.ESTALE)
    assert now(fs.statfs(REQUEST, ino)) == StatFs()


def test_handle_is_what_open_returned_and_comes_back() -> None:
    class Handles(Memory):
        released: list[Any]

        def open(self, request: Request, path: bytes, flags: int) -> Any:
            return Opened([path], 4)

        def release(self, request: Request, path: bytes, handle: Any) -> None:
            self.released = handle

    fs = PathFilesystem(Handles())
    ino = now(fs.mknod(REQUEST, 1, b"f", FILE, 0, 0)).ino
    opened = now(fs.open(REQUEST, ino, 0))
    assert opened == Opened([b"/f"], 4)
    equal = now(fs.open(REQUEST, ino, 0)).handle
    now(fs.release(REQUEST, ino, equal))
    assert [handle is opened.handle for handle in fs._tree.inodes[ino].handles] == [True]


@pytest.mark.parametrize("says_attr", [True, False])
@pytest.mark.parametrize("waits", [True, False])
def test_create_makes_and_opens(says_attr: bool, waits: bool) -> None:
    class Creating(Memory):
        def create(self, request: Request, path: bytes, mode: int, flags: int) -> Result[tuple[Attr | None, Any]]:
            if path not in self.files:
                self.mknod(request, path, mode, 0)
            result = (self.files[path][0] if says_attr else None), self.files[path]
            return self.slowly(result) if waits else result

        async def slowly(self, result: tuple[Attr | None, Any]) -> tuple[Attr | None, Any]:
            await asyncio.sleep(0)
            return result

    async def main() -> None:
        fs = PathFilesystem(Creating())
        attr, handle = await later(fs.create(REQUEST, 1, b"new", FILE, 0, os.O_RDWR))
        assert (attr.mode, attr.ino, handle[0].mode) == (FILE, fs.ino_of(b"/new"), FILE)
        assert fs._tree.inodes.nlookup(attr.ino) == 1
        again, _ = await later(fs.create(REQUEST, 1, b"new", FILE, 0, os.O_RDWR))
        assert again.ino == attr.ino
        assert fs._tree.inodes.nlookup(attr.ino) == 2
        assert len(fs._tree.inodes[attr.ino].handles) == 2
        assert fs._tree.root.users == 0

    asyncio.run(main())


# Directories.


def test_listing_of_names_has_the_dots_and_the_numbers_that_are_known(fs: PathFilesystem) -> None:
    a = lookup(fs, b"/a")
    memory(fs).files[b"/a/new"] = Attr(mode=FILE), bytearray()
    handle = now(fs.opendir(REQUEST, a, 0)).handle
    listed = [(entry.name, entry.ino, entry.offset) for entry in entries(fs.readdir(REQUEST, a, handle, 0))]
    assert listed == [
        (b".", a, 1),
        (b"..", 1, 2),
        (b"b", fs.ino_of(b"/a/b"), 3),
        (b"other", fs.ino_of(b"/a/other"), 4),
        (b"new", UNKNOWN_INO, 5),
    ]
    assert all(entry.attr is None for entry in entries(fs.readdirplus(REQUEST, a, handle, 0)))


def test_walk_goes_on_behind_any_cookie_whatever_happens_meanwhile(fs: PathFilesystem) -> None:
    handle = now(fs.opendir(REQUEST, 1, 0)).handle
    all_names = [entry.name for entry in entries(fs.readdir(REQUEST, 1, handle, 0))]
    now(fs.rename(REQUEST, 1, b"a", 1, b"zz", 0))
    for cookie in range(1, len(all_names) + 2):
        assert [entry.name for entry in entries(fs.readdir(REQUEST, 1, handle, cookie))] == all_names[cookie:]
    # rewinddir(3) begins anew.
    assert [entry.name for entry in entries(fs.readdir(REQUEST, 1, handle, 0))] == [b".", b"..", b"c", b"zz"]


def test_dots_of_the_filesystem_itself_are_not_doubled() -> None:
    class Dots(Memory):
        def readdir(self, request: Request, path: bytes, handle: Any) -> list[bytes]:
            return [b".", b"..", b"x"]

    fs = PathFilesystem(Dots())
    assert [entry.name for entry in entries(fs.readdir(REQUEST, 1, None, 0))] == [b".", b"..", b"x"]


class Listing(Memory):
    """Says the attributes in its listing."""

    def readdir(self, request: Request, path: bytes, handle: Any) -> Any:
        return [(name, Attr(mode=DIR if name == b"d" else FILE, size=len(name))) for name in (b"d", b"one", b"two")]


def test_readdirplus_counts_only_what_was_packed() -> None:
    fs = PathFilesystem(Listing())
    handle = now(fs.opendir(REQUEST, 1, 0)).handle
    taken = []
    for entry in each(fs.readdirplus(REQUEST, 1, handle, 0)):
        if entry.name == b"two":  # does not fit
            break
        if entry.attr is not None:
            assert entry.attr.ino == entry.ino
            fs.entered(entry.ino)
            taken.append(entry.ino)
    assert fs.ino_of(b"/d") == taken[0]
    assert fs.ino_of(b"/one") == taken[1]
    assert fs.ino_of(b"/two") is None
    # The one that was left is not kept for ever: the next one offered takes its place.
    for _ in range(3):
        assert [entry.name for entry in each(fs.readdirplus(REQUEST, 1, handle, 4))] == [b"two"]
    assert len(fs._tree.inodes) == 4
    fs.forget(taken[0], 1)
    assert fs.ino_of(b"/d") is None


def test_readdirplus_of_known_names_keeps_their_numbers() -> None:
    operations = Listing()
    operations.files[b"/one"] = Attr(mode=FILE), bytearray()
    operations.files[b"/d"] = Attr(mode=FILE), bytearray()
    fs = PathFilesystem(operations)
    one, was_a_file = lookup(fs, b"/one"), lookup(fs, b"/d")
    for entry in each(fs.readdirplus(REQUEST, 1, None, 0)):
        if entry.attr is not None:
            fs.entered(entry.ino)
    assert fs.ino_of(b"/one") == one
    assert fs._tree.inodes.nlookup(one) == 2
    assert fs.ino_of(b"/d") != was_a_file
    absent(lambda: fs.getattr(REQUEST, was_a_file, None), errno.ESTALE)


def test_listing_may_wait_or_be_an_async_generator() -> None:
    class Coming(Memory):
        async def readdir(self, request: Request, path: bytes, handle: Any) -> Any:  # type: ignore[override]
            await asyncio.sleep(0)
            return (name for name in (b"x", b"y"))

    class Dripping(Memory):
        async def readdir(self, request: Request, path: bytes, handle: Any) -> AsyncIterator[bytes]:  # type: ignore[override]
            yield b"x"
            await asyncio.sleep(0)
            yield b"y"

    async def main() -> None:
        for operations in (Coming(), Dripping()):
            fs = PathFilesystem(operations)
            listed: Any = await later(fs.readdir(REQUEST, 1, None, 0))
            assert [entry.name for entry in listed] == [b".", b"..", b"x", b"y"]
            assert fs._tree.root.users == 0

    asyncio.run(main())


def test_directory_handle_comes_back_to_the_operations() -> None:
    class Handles(Memory):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[Any] = []

        def opendir(self, request: Request, path: bytes, flags: int) -> Any:
            return Opened("handle", 8)

        def readdir(self, request: Request, path: bytes, handle: Any) -> list[bytes]:
            self.seen.append(handle)
            return []

        def fsyncdir(self, request: Request, path: bytes, handle: Any, datasync: int) -> None:
            self.seen.append(handle)

        def releasedir(self, request: Request, path: bytes, handle: Any) -> None:
            self.seen.append(handle)

    operations = Handles()
    fs = PathFilesystem(operations)
    opened = now(fs.opendir(REQUEST, 1, 0))
    assert opened.flags == 8
    entries(fs.readdir(REQUEST, 1, opened.handle, 0))
    now(fs.fsyncdir(REQUEST, 1, opened.handle, 0))
    now(fs.releasedir(REQUEST, 1, opened.handle))
    assert operations.seen == ["handle"] * 3
    assert fs._tree.root.handles == []


# Operations that wait.


def waiting() -> tuple[PathFilesystem, Waiting]:
    operations = Waiting()
    fs = PathFilesystem(operations)
    for path, mode in ((b"/a", DIR), (b"/a/x", FILE), (b"/b", DIR)):
        operations.files[path] = Attr(mode=mode), bytearray(b"old")
    return fs, operations


async def look(fs: PathFilesystem, path: bytes) -> int:
    ino = 1
    for name in path.split(b"/")[1:]:
        attr = await later(fs.lookup(REQUEST, ino, name))
        assert attr is not None
        ino = attr.ino
    return ino


def test_rename_waits_for_who_uses_the_path_and_others_wait_for_it() -> None:
    async def main() -> None:
        fs, operations = waiting()
        x = await look(fs, b"/a/x")
        operations.log.clear()
        operations.stops = {"getattr": asyncio.Event(), "rename": asyncio.Event()}
        before = spawn(fs.getattr(REQUEST, x, None))
        await settle()
        rename = spawn(fs.rename(REQUEST, 1, b"a", 1, b"z", 0))
        await settle()
        after = spawn(fs.getattr(REQUEST, x, None))
        elsewhere = spawn(fs.lookup(REQUEST, 1, b"b"))
        await settle()
        assert operations.log == [("getattr", b"/a/x"), ("getattr", b"/b")]
        operations.stops["getattr"].set()
        await before
        await elsewhere
        await settle()
        assert operations.log[2:] == [("rename", b"/a")]
        assert not after.done()
        operations.stops["rename"].set()
        await rename
        assert (await after).ino == x
        assert operations.log[3:] == [("getattr", b"/z/x")]
        assert all(node.users == 0 for node in (fs._tree.root, fs._tree.inodes[x]))
        assert (fs._tree._moving, fs._tree._waiters) == (0, [])

    asyncio.run(main())


def test_operations_on_a_handle_neither_wait_nor_are_waited_for() -> None:
    async def main() -> None:
        fs, operations = waiting()
        x = await look(fs, b"/a/x")
        handle = await later(fs.open(REQUEST, x, 0))
        operations.stops = {"read": asyncio.Event(), "rename": asyncio.Event()}
        read = spawn(fs.read(REQUEST, x, handle, 0, 9))
        await settle()
        unlink = spawn(fs.unlink(REQUEST, fs.ino_of(b"/a") or 0, b"x"))
        await unlink
        operations.stops["read"].set()
        assert await read == b"old"

    asyncio.run(main())


def test_cancelled_rename_lets_the_others_go_on() -> None:
    async def main() -> None:
        fs, operations = waiting()
        x = await look(fs, b"/a/x")
        operations.stops = {"getattr": asyncio.Event(), "rename": asyncio.Event()}
        user = spawn(fs.getattr(REQUEST, x, None))
        await settle()
        for started in (False, True):
            rename = spawn(fs.rename(REQUEST, 1, b"a", 1, b"z", 0))
            if started:
                operations.stops["getattr"].set()
                await user
            await settle()
            behind = spawn(fs.getattr(REQUEST, x, None))
            await settle()
            assert not behind.done()
            rename.cancel()
            with pytest.raises(asyncio.CancelledError):
                await rename
            if started:
                assert (await behind).ino == x
            else:
                behind.cancel()
                await asyncio.wait([behind])
        assert (fs._tree._moving, fs._tree.root.users, fs._tree.inodes[x].users) == (0, 0, 0)
        assert fs.ino_of(b"/a/x") == x

    asyncio.run(main())


def test_crossing_renames_end() -> None:
    async def main() -> None:
        fs, operations = waiting()
        await look(fs, b"/a/x")
        b, a = await look(fs, b"/b"), await look(fs, b"/a")
        operations.stops = {"rename": asyncio.Event()}
        first = spawn(fs.rename(REQUEST, a, b"x", b, b"y", 0))
        second = spawn(fs.rename(REQUEST, 1, b"b", 1, b"c", 0))
        third = spawn(fs.rename(REQUEST, 1, b"a", 1, b"b", 0))
        await settle()
        operations.stops["rename"].set()
        await asyncio.gather(first, second, third)
        assert (fs.ino_of(b"/c"), fs.ino_of(b"/b")) == (b, a)
        assert set(operations.files) == {b"/", b"/b", b"/c", b"/c/y"}

    asyncio.run(main())


def test_failed_rename_changes_nothing() -> None:
    async def main() -> None:
        fs, _ = waiting()
        x = await look(fs, b"/a/x")
        with pytest.raises(FileExistsError):
            await later(fs.rename(REQUEST, 1, b"b", 1, b"a", NOREPLACE))
        assert fs.ino_of(b"/a/x") == x
        assert fs._tree._moving == 0

    asyncio.run(main())


def test_attributes_are_asked_for_after_making_a_file_also_when_that_waits() -> None:
    async def main() -> None:
        fs, operations = waiting()
        attr = await later(fs.mknod(REQUEST, await look(fs, b"/b"), b"new", FILE, 0, 0))
        assert (attr.ino, attr.mode) == (fs.ino_of(b"/b/new"), FILE)
        assert operations.log[-2:] == [("mknod", b"/b/new"), ("getattr", b"/b/new")]
        absent_name = await later(fs.lookup(REQUEST, 1, b"none"))
        assert absent_name is None

    asyncio.run(main())


# The kernel.


def test_symlinks_and_xattrs_and_the_rest_reach_the_operations() -> None:
    calls: list[tuple[Any, ...]] = []

    class Rest(Memory):
        def symlink(self, request: Request, path: bytes, target: bytes) -> Attr:
            calls.append((path, target))
            self.files[path] = Attr(mode=S_IFLNK | 0o777), bytearray(target)
            return self.files[path][0]

        def readlink(self, request: Request, path: bytes) -> bytes:
            return bytes(self.files[path][1])

        def access(self, request: Request, path: bytes, mask: int) -> None:
            calls.append((path, mask))

        def getxattr(self, request: Request, path: bytes, name: bytes) -> bytes:
            return path + name

        def setxattr(self, request: Request, path: bytes, name: bytes, value: memoryview, flags: int) -> None:
            calls.append((path, name, bytes(value), flags))

        def listxattr(self, request: Request, path: bytes) -> list[bytes]:
            return [path]

        def removexattr(self, request: Request, path: bytes, name: bytes) -> None:
            calls.append((path, name))

        def flush(self, request: Request, path: bytes, handle: Any) -> None:
            calls.append((path, handle))

        def fsync(self, request: Request, path: bytes, handle: Any, datasync: int) -> None:
            calls.append((path, handle, datasync))

        def fallocate(self, request: Request, path: bytes, handle: Any, mode: int, offset: int, length: int) -> None:
            calls.append((path, handle, mode, offset, length))

        def statfs(self, request: Request, path: bytes) -> StatFs:
            return StatFs(blocks=len(path))

    fs = PathFilesystem(Rest())
    ino = now(fs.symlink(REQUEST, 1, b"link", b"target")).ino
    assert now(fs.readlink(REQUEST, ino)) == b"target"
    now(fs.access(REQUEST, ino, 4))
    assert now(fs.getxattr(REQUEST, ino, b"user.x")) == b"/linkuser.x"
    now(fs.setxattr(REQUEST, ino, b"user.x", memoryview(b"v"), 1))
    assert now(fs.listxattr(REQUEST, ino)) == [b"/link"]
    now(fs.removexattr(REQUEST, ino, b"user.x"))
    now(fs.flush(REQUEST, ino, "h", 77))
    now(fs.fsync(REQUEST, ino, None, 1))
    now(fs.fallocate(REQUEST, ino, "h", 1, 2, 3))
    assert now(fs.statfs(REQUEST, ino)).blocks == 5
    assert calls == [
        (b"/link", b"target"), (b"/link", 4), (b"/link", b"user.x", b"v", 1), (b"/link", b"user.x"), (b"/link", "h"),
        (b"/link", None, 1), (b"/link", "h", 1, 2, 3),
    ]  # fmt: skip
    absent(lambda: fs.link(REQUEST, ino, 1, b"hard"), errno.ENOSYS)


@mounted
def test_memory_filesystem_works_through_a_mount() -> None:
    with served(__file__) as (top, _):
        (top / "a" / "b").mkdir(parents=True)
        file = top / "a" / "b" / "file"
        file.write_bytes(b"x" * 300_000)
        os.rename(top / "a", top / "z")
        file = top / "z" / "b" / "file"
        assert file.read_bytes() == b"x" * 300_000
        assert sorted(os.listdir(top / "z" / "b")) == ["file"]
        with file.open("r+b") as opened:
            file.unlink()
            opened.seek(0)
            opened.write(b"still")
            opened.truncate(7)
            assert os.fstat(opened.fileno()).st_size == 7
            opened.seek(0)
            assert opened.read() == b"stillxx"
        assert not file.exists()
        with pytest.raises(PermissionError):
            os.link(_made(top / "f"), top / "hard")
        (top / "f").chmod(0o600)
        assert (top / "f").stat().st_mode == S_IFREG | 0o600
        (top / "z" / "b").rmdir()
        assert sorted(entry.name for entry in os.scandir(top)) == ["f", "z"]


def _made(path: Any) -> Any:
    path.touch()
    return path


if __name__ == "__main__":
    from pyfusekit.core.serving import serve

    async def serve_until_unmounted() -> None:
        async with serve(PathFilesystem(Memory()), sys.argv[1]) as serving:
            print("ready", flush=True)
            await serving.wait()

    asyncio.run(serve_until_unmounted())
