"""The .versions view: every version of every key under a name of its own, read-only, whatever the keys are."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import AsyncIterator, Iterator
from typing import Any, cast

import pytest
from fakestore import FakeStore
from s3server import ACCESS, S3Server

from pyfusekit.core import ROOT_ID, Attr, DirEntry
from pyfusekit.fs.s3fs.naming.keys import MARK
from pyfusekit.fs.s3fs.naming.versions import FIRST_INO, VersionView, owns
from pyfusekit.fs.s3fs.remote.store import Object, Store, Version, Versions


class Whole:
    """A reader that fetches everything with each read."""

    def __init__(self, store: Store, item: Object) -> None:
        self.store = store
        self.item = item
        self.closed = False

    async def read(self, offset: int, size: int) -> bytes:
        """Return bytes."""
        pieces: list[bytes] = []
        size = min(size, self.item.size - offset)
        if size > 0:
            await self.store.get(self.item, offset, size, pieces.append)
        return b"".join(pieces)

    def close(self) -> None:
        """Note it."""
        self.closed = True


def stamp(attr: Attr, directory: bool) -> None:
    """Give defaults, writable ones."""
    attr.uid, attr.gid = 12, 34
    attr.mode = stat.S_IFDIR | 0o775 if directory else stat.S_IFREG | 0o664


@pytest.fixture
def store() -> FakeStore:
    store = FakeStore()
    store.versioned = True
    return store


@pytest.fixture
def view(store: FakeStore) -> VersionView:
    return view_of(store)


def view_of(store: Any, prefix: str = "") -> VersionView:
    """Return a view of a store."""
    return VersionView(cast(Store, store), prefix, ttl=5.0, stamp=stamp, reader=Whole)


async def listed(view: VersionView, ino: int, plus: bool = False) -> list[DirEntry]:
    """Return the entries of a directory without the dots."""
    entries = view.readdir(ino, view.opendir(ino), 0, plus)
    return [entry async for entry in cast(AsyncIterator[DirEntry], entries) if entry.name not in (b".", b"..")]


async def names(view: VersionView, ino: int) -> list[str]:
    """Return the names in a directory."""
    return [entry.name.decode() for entry in await listed(view, ino)]


async def walked(view: VersionView, path: str) -> Attr | None:
    """Look a path up from the root."""
    attr: Attr | None = view.enter_root()
    for name in path.split("/") if path else []:
        assert attr is not None
        found = view.lookup(attr.ino, name.encode())
        attr = await found if asyncio.iscoroutine(found) else cast("Attr | None", found)
        if attr is None:
            return None
    return attr


async def at(view: VersionView, path: str) -> Attr:
    """Return what must be at a path."""
    attr = await walked(view, path)
    assert attr is not None, path
    return attr


async def content(view: VersionView, path: str) -> bytes:
    """Return a file's bytes."""
    attr = await at(view, path)
    opened = view.open(attr.ino, os.O_RDONLY)
    data: bytes = await opened.handle.read(0, 1 << 20)
    view.release(attr.ino, opened.handle)
    assert opened.handle.closed
    return data


async def test_versions_of_a_key_are_files_the_newest_first(store: FakeStore, view: VersionView) -> None:
    store.seed("dir/a.txt", b"one", second=1_700_000_000)
    store.seed("dir/a.txt", b"second", second=1_700_000_060)
    directory = await at(view, "dir/a.txt")
    assert await names(view, directory.ino) == ["2023-11-14T22:14:20Z.v2", "2023-11-14T22:13:20Z.v1"]
    assert await content(view, "dir/a.txt/2023-11-14T22:14:20Z.v2") == b"second"
    assert await content(view, "dir/a.txt/2023-11-14T22:13:20Z.v1") == b"one"
    old = await at(view, "dir/a.txt/2023-11-14T22:13:20Z.v1")
    assert (old.size, old.mtime_ns, old.mode) == (3, 1_700_000_000 * 10**9, stat.S_IFREG | 0o444)
    assert (old.uid, old.gid, old.entry_ttl) == (12, 34, 5.0)
    assert directory.mode == stat.S_IFDIR | 0o555


async def test_deleted_key_is_there_with_its_versions_and_its_deletion(store: FakeStore, view: VersionView) -> None:
    store.seed("a", b"one")
    store.second = 1_700_000_059
    await store.delete("a")
    found = await names(view, (await at(view, "a")).ino)
    assert found == ["2023-11-14T22:14:20Z.v2.deleted", "2023-11-14T22:13:20Z.v1"]
    assert await content(view, "a/2023-11-14T22:13:20Z.v1") == b"one"
    assert await content(view, f"a/{found[0]}") == b""


async def test_key_and_what_lies_below_it_are_one_directory(store: FakeStore, view: VersionView) -> None:
    store.seed("a", b"file")
    store.seed("a/b", b"below")
    for number in range(5):
        store.seed(f"a-{number}", b"between a and a/")
    store.page_size = 2
    root = view.enter_root()
    assert await names(view, root.ino) == ["a", "a-0", "a-1", "a-2", "a-3", "a-4"]
    assert await names(view, (await at(view, "a")).ino) == ["2023-11-14T22:13:20Z.v1", "b"]
    assert await content(view, "a/b/2023-11-14T22:13:20Z.v2") == b"below"


async def test_directory_without_an_object_of_its_name_is_found_behind_many_neighbours(
    store: FakeStore, view: VersionView
) -> None:
    store.seed("a/b", b"below")
    for number in range(5):
        store.seed(f"a-{number}", b"between a and a/")
    store.page_size = 2
    assert await names(view, (await at(view, "a")).ino) == ["b"]


async def test_names_that_are_nowhere_are_none(store: FakeStore, view: VersionView) -> None:
    store.seed("dir/ab", b"x")
    for path in (
        "di",
        "dirx",
        "dir/a",
        "dir/abc",
        "dir/ab/x",
        "dir/ab/2023-11-14T22:13:20Z.v9",
        "dir/ab/..",
        "2023",
        "dir/\xff",
    ):
        assert await walked(view, path) is None, path
    root = view.enter_root()
    assert await view._lookup(view.root, b"\xff") is None
    with pytest.raises(OSError, match="255") as caught:
        view.lookup(root.ino, b"x" * 256)
    assert caught.value.errno == errno.ENAMETOOLONG


async def test_prefix_of_the_mount_is_the_root_of_the_view(store: FakeStore) -> None:
    store.seed("in/a", b"x")
    store.seed("out", b"y")
    view = view_of(store, "in/")
    assert await names(view, view.enter_root().ino) == ["a"]
    assert await content(view, "a/2023-11-14T22:13:20Z.v1") == b"x"


async def test_markers_are_not_shown_unless_they_have_bytes(store: FakeStore, view: VersionView) -> None:
    store.seed("empty/", b"")
    store.seed("full/", b"bytes")
    assert await names(view, view.enter_root().ino) == ["empty", "full"]
    assert await names(view, (await at(view, "empty")).ino) == []
    assert await names(view, (await at(view, "full")).ino) == [f"{MARK}e"]
    assert await content(view, f"full/{MARK}e/2023-11-14T22:13:20Z.v2") == b"bytes"
    assert await walked(view, f"empty/{MARK}e") is None


@pytest.mark.parametrize("key", ["a//b", "a/./b", "../x", "a\0b", MARK, "x" * 600, "d/" + "é" * 300 + "/e", "a/" + "x" * 250])
async def test_every_key_is_reachable(store: FakeStore, view: VersionView, key: str) -> None:
    store.seed(key, b"found")
    store.seed("other", b"")
    found: list[bytes] = []
    todo = [entry.ino for entry in await listed(view, view.enter_root().ino) if entry.name != b"other"]
    assert len(todo) == 1
    path: list[str] = []
    ino = view.root.attr.ino
    while True:
        (entry, *_) = [entry for entry in await listed(view, ino) if entry.name != b"other"]
        assert len(entry.name) <= 255
        path.append(entry.name.decode())
        ino = (await at(view, "/".join(path))).ino
        assert ino == entry.ino
        if stat.S_ISREG(entry.mode):
            break
    found.append(await content(view, "/".join(path)))
    assert found == [b"found"]


async def test_version_has_the_name_when_a_key_would_have_the_same(store: FakeStore, view: VersionView) -> None:
    store.seed("a", b"version")
    store.seed("a/2023-11-14T22:13:20Z.v1", b"a key like that")
    assert await names(view, (await at(view, "a")).ino) == ["2023-11-14T22:13:20Z.v1"]
    assert await content(view, "a/2023-11-14T22:13:20Z.v1") == b"version"


async def test_open_version_is_read_when_the_key_has_another_or_none(store: FakeStore, view: VersionView) -> None:
    store.seed("a", b"one")
    attr = await at(view, "a/2023-11-14T22:13:20Z.v1")
    opened = view.open(attr.ino, os.O_RDONLY)
    store.seed("a", b"other")
    assert await opened.handle.read(0, 10) == b"one"
    await store.delete("a")
    assert await opened.handle.read(1, 10) == b"ne"
    assert opened.handle.store.features is store.features


async def test_nothing_can_be_changed(store: FakeStore, view: VersionView) -> None:
    store.seed("a", b"one")
    attr = await at(view, "a/2023-11-14T22:13:20Z.v1")
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC):
        with pytest.raises(OSError, match="read-only") as caught:
            view.open(attr.ino, flags)
        assert caught.value.errno == errno.EROFS
    assert view.refuse(attr.ino).errno == errno.EROFS


async def test_files_are_no_directories_and_directories_no_files(store: FakeStore, view: VersionView) -> None:
    store.seed("a", b"one")
    file = await at(view, "a/2023-11-14T22:13:20Z.v1")
    for call in (lambda: view.opendir(file.ino), lambda: view.lookup(file.ino, b"x")):
        with pytest.raises(OSError, match="no directory") as caught:
            call()
        assert caught.value.errno == errno.ENOTDIR
    with pytest.raises(OSError, match="directory") as caught:
        view.open(view.root.attr.ino, os.O_RDONLY)
    assert caught.value.errno == errno.EISDIR


async def test_nodes_live_as_long_as_the_kernel_knows_them(store: FakeStore, view: VersionView) -> None:
    store.seed("a", b"one")
    attr = await at(view, "a")
    await at(view, "a")
    ino = attr.ino
    assert owns(ino)
    assert ino >= FIRST_INO
    assert not owns(ROOT_ID)
    view.forget(ino, 1)
    assert view.getattr(ino) is attr
    view.forget(ino, 1)
    view.forget(ino, 1)
    del attr
    with pytest.raises(OSError, match="not known") as caught:
        view.getattr(ino)
    assert caught.value.errno == errno.ESTALE
    assert (await at(view, "a")).ino == ino


async def test_readdirplus_entries_count_when_they_reach_the_kernel(store: FakeStore, view: VersionView) -> None:
    store.seed("a", b"one")
    handle = view.opendir(view.enter_root().ino)
    entries = [entry async for entry in handle.entries(0, True)]
    assert [(entry.name, entry.offset) for entry in entries] == [(b".", 1), (b"..", 2), (b"a", 3)]
    assert entries[1].ino == ROOT_ID
    ino = entries[2].ino
    assert entries[2].attr is view.getattr(ino)
    view.entered(ino)
    del handle, entries
    assert view.getattr(ino).ino == ino
    view.forget(ino, 1)


async def test_walk_goes_on_where_it_was(store: FakeStore, view: VersionView) -> None:
    for number in range(7):
        store.seed(f"k{number}", b"x")
    store.page_size = 3
    handle = view.opendir(view.enter_root().ino)
    first: list[DirEntry] = []
    async for entry in handle.entries(0, False):
        first.append(entry)
        if len(first) == 5:
            break
    rest = [entry.name async for entry in handle.entries(first[-2].offset, False)]
    assert rest == [first[-1].name, b"k3", b"k4", b"k5", b"k6"]
    assert [entry.name async for entry in handle.entries(9, False)] == []
    assert len([entry async for entry in handle.entries(0, False)]) == 9


async def test_first_names_come_before_the_last_page(store: FakeStore, view: VersionView) -> None:
    for number in range(7):
        store.seed(f"k{number}", b"x")
    store.page_size = 3
    entries = view.opendir(view.enter_root().ino).entries(0, False)
    assert [(await anext(entries)).name for _ in range(3)] == [b".", b"..", b"k0"]
    assert store.count("VERSIONS") == 1
    await cast(Any, entries).aclose()


async def test_failing_page_is_an_error_and_no_short_listing(store: FakeStore, view: VersionView) -> None:
    from fakestore import Fault, denied

    for number in range(7):
        store.seed(f"k{number}", b"x")
    store.page_size = 3
    store.fail.append(Fault("VERSIONS .*k2", denied()))
    with pytest.raises(OSError, match="AccessDenied"):
        await names(view, view.enter_root().ino)
    assert len(await names(view, view.enter_root().ino)) == 7


class Odd:
    """A store with versions whose ids are not those of any store here."""

    def __init__(self, ids: list[str]) -> None:
        self.ids = ids

    async def versions(self, prefix: str, *, token: str = "", delimiter: str = "/") -> Versions:
        """Return versions of the key "a"."""
        rows = [Version(Object("a", 1, 10**9, "e"), id, False, False) for id in self.ids]
        return Versions(rows if "a".startswith(prefix) else [], [], "")


async def test_odd_version_ids_are_names_that_can_be_told_apart() -> None:
    view = view_of(Odd(["a/b", "\0", "é", "x" * 1000 + "1", "x" * 1000 + "2"]))
    found = [entry.name for entry in await listed(view, (await at(view, "a")).ino)]
    assert found[:3] == [b"1970-01-01T00:00:01Z.a%2Fb", b"1970-01-01T00:00:01Z.%00", b"1970-01-01T00:00:01Z.%C3%A9"]
    assert len(set(found)) == 5
    assert all(len(name) <= 255 for name in found)


class Paged:
    """A store that pages inside the versions of the key "a", and says one of them twice."""

    async def versions(self, prefix: str, *, token: str = "", delimiter: str = "/") -> Versions:
        """Return a page: the last has a neighbour too."""
        number = int(token or 0)
        rows = [Version(Object("a", 1, 10**9, "e"), str(id), False, False) for id in range(number, number + 3)]
        if number == 4:
            rows.append(Version(Object("ab", 1, 10**9, "e"), "x", False, False))
        return Versions(rows if "ab".startswith(prefix) else [], [], str(number + 2) if number < 4 else "")


async def test_versions_on_more_than_one_page_are_each_there_once() -> None:
    view = view_of(Paged())
    found = await names(view, (await at(view, "a")).ino)
    assert found == [f"1970-01-01T00:00:01Z.{number}" for number in range(7)]
    assert await walked(view, f"a/{found[-1]}") is not None


async def test_two_keys_with_one_number_get_different_ones(view: VersionView, monkeypatch: pytest.MonkeyPatch) -> None:
    class Digest:
        def __init__(self, data: bytes, digest_size: int) -> None:
            self.salts = data.count(b"+")

        def digest(self) -> bytes:
            return self.salts.to_bytes(8, "little")

    monkeypatch.setattr("pyfusekit.fs.s3fs.naming.versions.blake2b", Digest)
    one = view._make(None, "one/", "one", None)
    two = view._make(None, "two/", "two", None)
    assert one.attr.ino != two.attr.ino
    assert view._make(None, "two/", "two", None) is two


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with S3Server() as server:
        yield server


async def test_versions_of_a_real_server_are_shown(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyfusekit.fs.s3fs.options import S3Options
    from pyfusekit.fs.s3fs.remote.aio import AioStore

    for name, value in ACCESS.items():
        monkeypatch.setenv(name, value)
    client = await asyncio.to_thread(server.client)
    client.create_bucket(Bucket="versions")
    client.put_object(Bucket="versions", Key="d/a", Body=b"before versions were kept")
    client.put_bucket_versioning(Bucket="versions", VersioningConfiguration={"Status": "Enabled"})
    for data in (b"one", b"second"):
        client.put_object(Bucket="versions", Key="d/a", Body=data)
    client.delete_object(Bucket="versions", Key="d/a")
    client.close()
    store = AioStore("versions", S3Options(endpoint_url=server.url))  # type: ignore[arg-type]
    await store.start()
    try:
        view = view_of(store)
        assert await names(view, (await at(view, "d")).ino) == ["a"]
        found = await names(view, (await at(view, "d/a")).ino)
        assert found[0].endswith(".deleted")
        assert found[3].endswith(".null")
        assert [await content(view, f"d/a/{name}") for name in found] == [b"", b"second", b"one", b"before versions were kept"]
    finally:
        await store.close()
