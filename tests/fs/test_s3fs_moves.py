"""What happens to a file while its name changes: renames and removals beside publishes, readers, and files without a name."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from fakestore import FakeStore, Fault, denied

from pyfusekit.core import Attr, Opened, Request, SetAttr, Size
from pyfusekit.fs.s3fs import S3FS, S3Options
from pyfusekit.fs.s3fs.naming import nodes
from pyfusekit.fs.s3fs.remote.errors import StoreError

ME = Request(2, 0, 0, 4711)
ROOT = 1
KEPT = 1


async def done(result: Any) -> Any:
    """Return a handler's value, whether it had to wait or not."""
    return await result if isinstance(result, Coroutine) else result


class Silent:
    """A notifier nobody listens to."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None


class World:
    """A mount of a store in memory, used as the kernel uses it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.store = FakeStore()
        self.fs = S3FS("bucket", self.options(), store=self.store)

    def options(self, **more: Any) -> S3Options:
        return S3Options(cache_dir=str(self.home / "cache"), staging_dir=str(self.home / "staging"), **more)

    async def begin(self, **more: Any) -> None:
        if more:
            self.fs = S3FS("bucket", self.options(**more), store=self.store)
        self.fs.notifier = Silent()  # type: ignore[assignment]
        await self.fs.init()
        self.store.calls.clear()

    async def find(self, path: str) -> Attr:
        attr = Attr(ino=ROOT)
        for name in filter(None, path.split("/")):
            attr = await done(self.fs.lookup(ME, attr.ino, name.encode()))
            if attr is None:
                raise FileNotFoundError(errno.ENOENT, path)
        return attr

    async def above(self, path: str) -> tuple[int, bytes]:
        folder, _, name = path.rpartition("/")
        return (await self.find(folder)).ino, name.encode()

    async def open(self, path: str, flags: int = os.O_RDONLY) -> tuple[int, Any]:
        """Open, or make, a file; return its number and handle."""
        if flags & os.O_CREAT:
            parent, name = await self.above(path)
            attr, opened = await done(self.fs.create(ME, parent, name, 0o100644, 0, flags & ~os.O_CREAT))
            return attr.ino, opened.handle
        ino = (await self.find(path)).ino
        opened = await done(self.fs.open(ME, ino, flags))
        assert isinstance(opened, Opened)
        return ino, opened.handle

    async def write(self, file: tuple[int, Any], data: bytes, offset: int = 0) -> None:
        assert await done(self.fs.write(ME, *file, offset, memoryview(data))) == len(data)

    async def read(self, file: tuple[int, Any], size: int = 1000) -> bytes:
        data = await done(self.fs.read(ME, *file, 0, size))
        return b"".join(data) if isinstance(data, list) else bytes(data)

    async def flush(self, file: tuple[int, Any]) -> None:
        await done(self.fs.flush(ME, *file, 0))

    async def release(self, file: tuple[int, Any]) -> None:
        await done(self.fs.release(ME, *file))

    async def close(self, file: tuple[int, Any]) -> None:
        await self.flush(file)
        await self.release(file)

    async def make(self, path: str, data: bytes) -> int:
        file = await self.open(path, os.O_CREAT | os.O_WRONLY)
        await self.write(file, data)
        await self.close(file)
        return file[0]

    async def mkdir(self, path: str) -> int:
        parent, name = await self.above(path)
        made: Attr = await self.fs.mkdir(ME, parent, name, 0o755, 0)
        return made.ino

    async def rename(self, old: str, new: str) -> None:
        await self.fs.rename(ME, *await self.above(old), *await self.above(new), 0)

    async def unlink(self, path: str) -> None:
        await self.fs.unlink(ME, *await self.above(path))

    async def stat(self, path: str) -> Attr:
        found: Attr = await done(self.fs.getattr(ME, (await self.find(path)).ino, None))
        return found

    async def forget(self) -> None:
        """Have the kernel forget all names; what runs beside the requests goes on to its end."""
        for _ in range(20):
            await asyncio.sleep(0)
        for ino, node in list(self.fs.tree.nodes.items()):
            if ino != ROOT and node.nlookup:
                self.fs.forget(ino, node.nlookup)


def gated(world: World, pattern: str) -> asyncio.Event:
    """Hold the next request that *pattern* matches until the event is set; what was asked before is forgotten."""
    world.store.calls.clear()
    gate = asyncio.Event()
    world.store.fail.append(Fault(pattern, gate=gate))
    return gate


async def reached(world: World, call: str) -> None:
    """Wait until the store was asked *call*."""
    for _ in range(100_000):
        if any(made.startswith(call) for made in world.store.calls):
            return
        await asyncio.sleep(0)
    raise AssertionError(f"the store was never asked {call}: {world.store.calls}")


async def settle() -> None:
    """Let everything run that can."""
    for _ in range(100):
        await asyncio.sleep(0)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path)
    await made.begin()
    yield made
    await made.fs.destroy()


# Renames and removals beside publishes.


async def test_rename_waits_for_the_publish_of_its_file(world: World) -> None:
    file = await world.open("a", os.O_CREAT | os.O_WRONLY)
    await world.write(file, b"data")
    gate = gated(world, "^PUT a")
    closing = asyncio.create_task(world.close(file))
    await reached(world, "PUT a")
    renaming = asyncio.create_task(world.rename("a", "b"))
    await settle()
    assert not renaming.done()
    gate.set()
    await closing
    await renaming
    assert {key: world.store.data(key) for key in world.store.objects} == {"b": b"data"}


async def test_removal_waits_for_the_publish_of_its_file(world: World) -> None:
    await world.make("a", b"old")
    file = await world.open("a", os.O_WRONLY)
    await world.write(file, b"new")
    gate = gated(world, "^PUT a")
    closing = asyncio.create_task(world.close(file))
    await reached(world, "PUT a")
    removing = asyncio.create_task(world.unlink("a"))
    await settle()
    gate.set()
    await closing
    await removing
    assert not world.store.objects


async def test_publish_of_a_file_that_is_being_removed_does_nothing(world: World) -> None:
    await world.make("a", b"old")
    file = await world.open("a", os.O_WRONLY)
    await world.write(file, b"new")
    gate = gated(world, "^DELETE a")
    removing = asyncio.create_task(world.unlink("a"))
    await reached(world, "DELETE a")
    closing = asyncio.create_task(world.close(file))
    await settle()
    gate.set()
    await removing
    await closing
    assert not world.store.objects
    assert world.store.count("PUT") == 0


async def test_rename_over_a_file_that_is_being_published_replaces_what_was_published(world: World) -> None:
    await world.make("new", b"new")
    file = await world.open("f", os.O_CREAT | os.O_WRONLY)
    await world.write(file, b"old")
    gate = gated(world, "^PUT f")
    closing = asyncio.create_task(world.close(file))
    await reached(world, "PUT f")
    renaming = asyncio.create_task(world.rename("new", "f"))
    await settle()
    gate.set()
    await closing
    await renaming
    assert {key: world.store.data(key) for key in world.store.objects} == {"f": b"new"}


# Who has it open.


async def test_reader_of_a_removed_file_goes_on_and_nothing_is_published_of_it(world: World) -> None:
    world.store.seed("a", b"x" * (2 << 20))
    file = await world.open("a")
    await world.unlink("a")
    assert await world.read(file, 4 << 20) == b"x" * (2 << 20)
    await world.release(file)
    await settle()
    assert not world.store.objects
    assert world.store.count("PUT") == 0
    assert world.fs.scratch.used_bytes == 0


async def test_reader_may_close_while_its_file_is_kept_for_it(world: World) -> None:
    world.store.seed("a", b"x" * (2 << 20))
    file = await world.open("a")
    gate = gated(world, "^GET a")
    removing = asyncio.create_task(world.unlink("a"))
    await reached(world, "GET a")
    closing = asyncio.create_task(world.release(file))
    await reached(world, "GET a")
    gate.set()
    await removing
    await closing
    assert not world.store.objects
    assert world.fs.scratch.used_bytes == 0


async def test_removal_that_fails_leaves_the_file_as_it_was(world: World) -> None:
    world.store.seed("a", b"x" * (2 << 20))
    file = await world.open("a")
    world.store.fail.append(Fault("^DELETE a", error=denied()))
    with pytest.raises(StoreError):
        await world.unlink("a")
    assert await world.read(file) == b"x" * 1000
    await world.release(file)
    await settle()
    assert world.store.count("PUT") == 0
    assert (await world.stat("a")).nlink == 1
    assert world.fs.scratch.used_bytes == 0


# Directories.


async def test_local_changes_below_a_renamed_directory_go_with_it(world: World) -> None:
    await world.mkdir("d")
    await world.make("d/f", b"0123456789")
    file = await world.open("d/f", os.O_RDWR)
    await world.write(file, b"AB")
    await world.rename("d", "e")
    await world.write(file, b"Z", 9)
    assert await world.read(file) == b"AB2345678Z"
    await world.close(file)
    assert world.store.data("e/f") == b"AB2345678Z"
    assert [key for key in world.store.objects if key.startswith("d/")] == []


async def test_what_is_written_while_a_directory_is_renamed_lies_over_the_copy(world: World) -> None:
    await world.mkdir("d")
    await world.make("d/f", b"0123456789")
    file = await world.open("d/f", os.O_RDWR)
    gate = gated(world, "^COPY d/f")
    renaming = asyncio.create_task(world.rename("d", "e"))
    await reached(world, "COPY d/f")
    await world.write(file, b"AB")
    closing = asyncio.create_task(world.close(file))
    await settle()
    gate.set()
    await renaming
    await closing
    assert world.store.data("e/f") == b"AB23456789"
    assert [key for key in world.store.objects if key.startswith("d/")] == []


async def test_directory_whose_copy_fails_keeps_its_name(world: World) -> None:
    await world.mkdir("d")
    await world.make("d/f", b"data")
    missing = StoreError(errno.ENOENT, "404 NoSuchKey", code="NoSuchKey", status=404)
    world.store.fail.append(Fault("^COPY d/f", error=missing))
    with pytest.raises(StoreError):
        await world.rename("d", "e")
    await settle()
    assert (await world.stat("d/f")).size == 4
    with pytest.raises(FileNotFoundError):
        await world.find("e")
    assert world.store.data("d/f") == b"data"


async def test_marker_that_the_server_cannot_copy_is_made_anew(world: World) -> None:
    world.store.copies_markers = False
    ino = await world.mkdir("d")
    await world.make("d/f", b"data")
    await world.mkdir("d/sub")
    await world.fs.setattr(ME, ino, SetAttr(mode=0o40700), None)
    await world.rename("d", "e")
    assert sorted(world.store.objects) == ["e/", "e/f", "e/sub/"]
    assert world.store.objects["e/"].metadata["mode"] == str(0o40700)


async def test_markers_of_a_renamed_directory_are_removed_last_and_the_deepest_first(world: World) -> None:
    for path in ("d", "d/a", "d/a/b"):
        await world.mkdir(path)
        await world.make(f"{path}/f", b"data")
    world.store.calls.clear()
    await world.rename("d", "e")
    removed = [call.split()[1] for call in world.store.calls if call.startswith("DELETE ")]
    assert sorted(removed[:3]) == ["d/a/b/f", "d/a/f", "d/f"]
    assert removed[3:] == ["d/a/b/", "d/a/", "d/"]


# Numbers.


async def test_renamed_file_keeps_its_number_when_the_kernel_has_forgotten_it(world: World) -> None:
    number = await world.make("a", b"one")
    await world.rename("a", "b")
    await world.forget()
    other = await world.make("a", b"two")
    await world.forget()
    assert world.fs.tree.ino_of("b") == number
    assert (await world.find("b")).ino == number
    assert (await world.find("a")).ino == other != number


async def test_number_goes_with_a_renamed_directory(world: World) -> None:
    await world.mkdir("d")
    number = await world.make("d/a", b"one")
    await world.rename("d/a", "d/b")
    await world.forget()
    await world.rename("d", "e")
    assert (await world.find("e/b")).ino == number


async def test_only_so_many_numbers_are_remembered(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "NUMBERS_KEPT", KEPT)
    first = await world.make("a", b"")
    second = await world.make("b", b"")
    for name in ("a", "b"):
        await world.rename(name, f"{name}{name}")
    await world.forget()
    found = {(await world.find("aa")).ino, (await world.find("bb")).ino}
    assert len(found) == 2
    assert len(found & {first, second}) == KEPT


# Times.


async def test_rename_changes_the_objects_ctime_and_nothing_else_of_it(world: World) -> None:
    await world.make("a", b"data")
    world.store.calls.clear()
    before = world.store.objects["a"]
    await world.rename("a", "b")
    after = world.store.objects["b"]
    changed = {name for name in {**before.metadata, **after.metadata} if before.metadata.get(name) != after.metadata.get(name)}
    assert changed == {"ctime", "pyfusekit-txn"}
    assert world.store.count("HEAD") == 0, "what was just written need not be asked for"


async def test_rename_copies_the_metadata_of_others(world: World) -> None:
    world.store.seed("a", b"data", metadata={"colour": "red", "mode": str(0o100640), "ctime": "1"})
    await world.rename("a", "b")
    metadata = world.store.objects["b"].metadata
    assert (metadata["colour"], metadata["mode"]) == ("red", str(0o100640))
    assert metadata["ctime"] != "1"


async def test_plain_object_stays_plain_when_it_is_renamed(world: World) -> None:
    world.store.seed("a", b"data", headers={"content-type": "text/x-mine"})
    await world.rename("a", "b")
    assert set(world.store.objects["b"].metadata) <= {"pyfusekit-txn"}
    assert world.store.objects["b"].headers["content-type"] == "text/x-mine"


async def test_time_that_is_set_by_hand_stands_over_that_of_a_change(world: World) -> None:
    ino = await world.mkdir("d")
    await world.make("d/f", b"")
    await world.fs.setattr(ME, ino, SetAttr(mtime_ns=10**18), None)
    assert (await world.stat("d")).mtime_ns == 10**18
    await world.unlink("d/f")
    assert (await world.stat("d")).mtime_ns > 10**18


async def test_times_of_changes_go_with_a_directory_and_end_with_it(world: World) -> None:
    await world.mkdir("d")
    await world.make("d/f", b"")
    changed = (await world.stat("d")).mtime_ns
    await world.rename("d", "e")
    assert (await world.stat("e")).mtime_ns == changed
    await world.unlink("e/f")
    await world.fs.rmdir(ME, ROOT, b"e")
    ino = await world.mkdir("e")
    posix = world.fs.tree.node(ino).posix
    assert posix is not None
    assert (await world.stat("e")).mtime_ns == posix.mtime_ns


# Files without a name, and space.


async def test_file_without_a_name_never_reaches_the_store(world: World) -> None:
    attr, opened = world.fs.tmpfile(ME, ROOT, 0o100600, 0, os.O_RDWR)
    file = attr.ino, opened.handle
    await world.write(file, b"nameless")
    await done(world.fs.fsync(ME, *file, 0))
    await world.close(file)
    world.fs.forget(attr.ino, 1)
    assert world.store.calls == []
    assert world.fs.scratch.used_bytes == 0
    assert attr.ino not in world.fs.tree.nodes


async def test_file_that_is_given_a_name_is_one_request_at_close(world: World) -> None:
    attr, opened = world.fs.tmpfile(ME, ROOT, 0o100600, 0, os.O_RDWR)
    file = attr.ino, opened.handle
    await world.write(file, b"named")
    named = await world.fs.link(ME, attr.ino, ROOT, b"f")
    assert (named.ino, named.nlink, named.size) == (attr.ino, 1, 5)
    assert world.store.count("PUT") == 0
    await world.close(file)
    assert world.store.data("f") == b"named"
    assert world.store.count("PUT") == 1
    with pytest.raises(OSError, match="hard links") as info:
        await world.fs.link(ME, attr.ino, ROOT, b"g")
    assert info.value.errno == errno.EPERM


async def test_sync_of_a_directory_publishes_what_was_made_in_it(world: World) -> None:
    ino = await world.mkdir("d")
    attr, opened = world.fs.tmpfile(ME, ino, 0o100600, 0, os.O_RDWR)
    await world.write((attr.ino, opened.handle), b"named")
    await world.fs.link(ME, attr.ino, ino, b"f")
    other = await world.open("g", os.O_CREAT | os.O_WRONLY)
    await world.fs.fsyncdir(ME, ino, None, 0)
    assert sorted(world.store.objects) == ["d/", "d/f"]
    await world.close((attr.ino, opened.handle))
    await world.close(other)
    assert world.store.count("PUT d/f") == 1


async def test_space_that_the_staging_area_has_not_is_enospc(world: World) -> None:
    await world.fs.destroy()
    await world.begin(staging_size=Size(1 << 20))
    file = await world.open("f", os.O_CREAT | os.O_WRONLY)
    with pytest.raises(OSError, match="no room") as info:
        await done(world.fs.fallocate(ME, *file, 0, 0, 2 << 20))
    assert info.value.errno == errno.ENOSPC
    await done(world.fs.fallocate(ME, *file, 0, 0, 1 << 19))
    assert (await world.stat("f")).size == 1 << 19
    await world.close(file)


# Copies.


async def copy(world: World, source: tuple[int, Any], target: tuple[int, Any], length: int, offset: int = 0) -> int:
    copied: int = await world.fs.copy_file_range(ME, *source, offset, *target, offset, length, 0)
    return copied


BIG = bytes(range(256)) * 8192


async def test_whole_object_is_copied_inside_the_store(world: World) -> None:
    world.store.seed("a", BIG, metadata={"colour": "red"})
    source = await world.open("a")
    target = await world.open("b", os.O_CREAT | os.O_WRONLY)
    assert await copy(world, source, target, 1 << 40) == len(BIG)
    # What is copied may change before the copy is closed.
    await world.unlink("a")
    await world.close(target)
    assert world.store.data("b") == BIG
    assert "colour" not in world.store.objects["b"].metadata, "it is a new file, not the old one's metadata"
    assert world.store.objects["b"].metadata["mode"] == str(0o100644)
    assert (world.store.count("COPY"), world.store.count("PUT"), world.store.count("PART")) == (1, 0, 0)
    assert (await world.stat("b")).size == len(BIG)
    reader = await world.open("b")
    assert await world.read(reader, 4 << 20) == BIG
    await world.release(reader)


async def test_copy_is_written_on(world: World) -> None:
    world.store.seed("a", BIG)
    target = await world.open("b", os.O_CREAT | os.O_RDWR)
    await copy(world, await world.open("a"), target, len(BIG))
    await world.write(target, b"end", len(BIG))
    await world.close(target)
    assert world.store.data("b") == BIG + b"end"


async def test_copy_over_a_file_somebody_else_changed_is_left_to_the_kernel(world: World) -> None:
    world.store.seed("a", BIG)
    world.store.seed("b", b"old")
    source = await world.open("a")
    target = await world.open("b", os.O_WRONLY | os.O_TRUNC)
    world.store.put_plain("b", b"theirs")
    with pytest.raises(OSError, match="whole objects") as info:
        await copy(world, source, target, len(BIG))
    assert info.value.errno == errno.EOPNOTSUPP
    assert world.store.data("b") == b"theirs"
    with pytest.raises(OSError, match="somebody else"):
        await world.flush(target)


@pytest.mark.parametrize("case", ["part", "small", "not-empty", "dirty"])
async def test_all_other_copies_are_left_to_the_kernel(world: World, case: str) -> None:
    world.store.seed("a", BIG if case != "small" else b"small")
    source = await world.open("a", os.O_RDWR)
    target = await world.open("b", os.O_CREAT | os.O_WRONLY)
    if case == "not-empty":
        await world.write(target, b"there")
    if case == "dirty":
        await world.write(source, b"changed")
    with pytest.raises(OSError, match="whole objects") as info:
        await copy(world, source, target, 1000 if case == "part" else 1 << 30)
    assert info.value.errno == errno.EOPNOTSUPP
    assert world.store.count("COPY") == 0


async def test_what_is_written_into_a_file_while_it_becomes_a_copy_counts(world: World) -> None:
    world.store.seed("a", BIG)
    source = await world.open("a")
    target = await world.open("b", os.O_CREAT | os.O_WRONLY)
    gate = gated(world, "^COPY a b")
    copying = asyncio.create_task(copy(world, source, target, len(BIG)))
    await reached(world, "COPY a b")
    await world.write(target, b"written")
    gate.set()
    with pytest.raises(OSError, match="whole objects"):
        await copying
    await world.close(target)
    assert world.store.data("b") == b"written"


async def test_copy_nobody_waits_for_is_made_all_the_same(world: World) -> None:
    world.store.seed("a", BIG)
    source = await world.open("a")
    target = await world.open("b", os.O_CREAT | os.O_WRONLY)
    gate = gated(world, "^COPY a b")
    copying = asyncio.create_task(copy(world, source, target, len(BIG)))
    await reached(world, "COPY a b")
    copying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await copying
    gate.set()
    await world.close(target)
    assert world.store.data("b") == BIG


async def test_name_that_was_not_there_is_found_once_it_is_made(world: World) -> None:
    with pytest.raises(FileNotFoundError):
        await world.find("d")
    await world.mkdir("d")
    await world.forget()
    assert (await world.find("d")).ino == world.fs.tree.ino_of("d/")
