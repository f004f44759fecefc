"""Walking directories: pages, cookies, what exists here only, and what the reader is not made to wait or pay for."""

from __future__ import annotations

import asyncio
import errno
import stat

import pytest
from fakestore import FakeStore, Fault, denied
from namespace import Clock, Namespace

from pyfusekit.core import Attr, DirEntry
from pyfusekit.fs.s3fs.naming.tree import UNKNOWN, Node, Tree
from pyfusekit.fs.s3fs.naming.walk import Walk
from pyfusekit.fs.s3fs.remote.store import Object, Page


def filled(count: int, prefix: str = "", page_size: int = 10) -> FakeStore:
    store = FakeStore(page_size)
    for number in range(count):
        store.seed(f"{prefix}f{number:04}", b"x")
    return store


def files(entries: list[DirEntry]) -> list[bytes]:
    return [entry.name for entry in entries if entry.name not in (b".", b"..")]


async def all_behind(walk: Walk, offset: int, plus: bool = False) -> list[DirEntry]:
    return [entry async for entry in walk.entries(offset, plus)]


@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize("reply", [1, 7, 10_000])
async def test_every_name_is_listed_once_whatever_the_size_of_replies_and_pages(plus: bool, reply: int) -> None:
    store = filled(57, "top/")
    for name in ("dir-x", "dir.y", "dir/below"):
        store.seed(f"top/{name}", b"x")
    world = Namespace(store)
    entries = await world.listed(await world.find("top"), plus, reply)
    assert [entry.name for entry in entries[:2]] == [b".", b".."]
    expected = [b"f%04d" % number for number in range(57)] + [b"dir", b"dir-x", b"dir.y"]
    assert sorted(files(entries)) == sorted(expected)
    assert [entry.offset for entry in entries] == list(range(1, len(entries) + 1))


async def test_first_entries_come_before_the_last_page_is_in() -> None:
    store = filled(30)
    world = Namespace(store)
    store.list_gate = asyncio.Event()
    source = world.walk(world.root).entries(0, plus=True)
    first = [await anext(source) for _ in range(11)]
    assert files(first) == [b"f%04d" % number for number in range(9)]
    waiting = asyncio.ensure_future(anext(source))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    store.list_gate.set()
    assert (await waiting).name == b"f0009"
    await source.aclose()


async def test_directory_that_is_listed_whole_costs_a_request_a_page() -> None:
    store = filled(95)
    world = Namespace(store)
    assert len(await world.names(plus=True)) == 95
    assert store.calls == ["LIST"] + [f"LIST  f{number:04}" for number in range(9, 95, 10)]


async def test_who_reads_only_the_first_names_does_not_pay_for_the_next_page() -> None:
    store = filled(2000, page_size=1000)
    world = Namespace(store)
    walk = world.walk(world.root)
    source = walk.entries(0, plus=True)
    for _ in range(100):
        await anext(source)
    await source.aclose()
    await asyncio.sleep(0)
    assert store.count("LIST") == 1
    source = walk.entries(100, plus=True)
    for _ in range(100):
        await anext(source)
    await source.aclose()
    await asyncio.sleep(0)
    assert store.count("LIST") == 2
    walk.close()


async def test_interrupted_listing_goes_on_where_it_was() -> None:
    store = filled(30)
    world = Namespace(store)
    store.list_gate = asyncio.Event()
    walk = world.walk(world.root)
    task = asyncio.ensure_future(all_behind(walk, 0))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    store.list_gate.set()
    assert len(await all_behind(walk, 2)) == 30
    # Going back to an earlier cookie finds the same names behind it.
    assert files(await all_behind(walk, 12)) == [b"f%04d" % number for number in range(10, 30)]
    assert store.count("LIST") == 3


async def test_closed_walk_ends_its_request() -> None:
    store = filled(30)
    world = Namespace(store)
    store.list_gate = asyncio.Event()
    walk = world.walk(world.root)
    task = asyncio.ensure_future(all_behind(walk, 0))
    await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.wait([task])
    walk.close()
    for _ in range(5):
        await asyncio.sleep(0)
    assert store.cancelled == 1


async def test_two_readers_of_one_handle_fetch_each_page_once() -> None:
    store = filled(30)
    world = Namespace(store)
    walk = world.walk(world.root)
    one, other = await asyncio.gather(all_behind(walk, 0), all_behind(walk, 0))
    assert files(one) == files(other) == [b"f%04d" % number for number in range(30)]
    assert store.count("LIST") == 3


async def test_names_are_the_same_for_who_goes_far_back() -> None:
    store = filled(100)
    world = Namespace(store)
    walk = world.walk(world.root)
    entries = await all_behind(walk, 0, plus=True)
    again = await all_behind(walk, 5, plus=True)
    assert [(entry.name, entry.ino, entry.offset) for entry in again] == [
        (entry.name, entry.ino, entry.offset) for entry in entries[5:]
    ]
    # The objects of what was read are given up: no attributes, and the kernel will ask.
    assert again[0].attr is None
    walk.close()


async def test_failing_page_is_the_readers_errno_and_is_asked_for_again() -> None:
    store = filled(30)
    world = Namespace(store)
    walk = world.walk(world.root)
    store.fail = [Fault("LIST  f", denied())]
    source = walk.entries(0, plus=False)
    for _ in range(11):
        await anext(source)
    with pytest.raises(OSError, match="AccessDenied") as info:
        await anext(source)
    assert info.value.errno == errno.EACCES
    assert len(await all_behind(walk, 11)) == 21


async def test_rewound_directory_shows_what_came_meanwhile() -> None:
    store = FakeStore()
    store.seed("a", b"x")
    world = Namespace(store, ttl=0.0)
    walk = world.walk(world.root)
    assert files(await all_behind(walk, 0)) == [b"a"]
    store.seed("b", b"x")
    assert files(await all_behind(walk, 0)) == [b"a", b"b"]


async def test_entry_that_found_no_room_leaves_no_node() -> None:
    store = filled(5)
    world = Namespace(store)
    await world.listed(world.root, plus=True, reply=2)
    for number in range(5):
        node = world.tree.at(f"f{number:04}", False)
        assert node is not None
        assert node.nlookup == 1
        node.nlookup -= 1
        world.tree.release(node)
    assert list(world.tree.nodes) == [1]


async def test_entry_whose_attributes_are_not_known_goes_out_without_and_leaves_no_node() -> None:
    store = filled(3)
    world = Namespace(store)
    types: list[str] = []

    def attr(node: Node, name: bytes) -> Attr | None:
        return None if name == b"f0001" else world.attr(node, name)

    def type_of(key: str, item: Object) -> int:
        types.append(key)
        return stat.S_IFLNK

    walk = Walk(store, world.tree, world.root, attr, type_of=type_of)
    entries = (await all_behind(walk, 2, plus=True))[:3]
    assert [entry.attr is None for entry in entries] == [False, True, False]
    assert entries[1].mode == stat.S_IFLNK
    assert types == ["f0001"]
    assert world.tree.at("f0001", False) is None
    assert entries[1].ino == world.tree.ino_of("f0001")


async def test_page_is_seen_before_its_entries_go_out() -> None:
    store = filled(15)
    world = Namespace(store)
    pages: list[int] = []

    async def seen(items: list[Object]) -> None:
        await asyncio.sleep(0)
        pages.append(len(items))

    walk = Walk(store, world.tree, world.root, lambda node, name: world.attr(node, name) if pages else None, seen)
    entries = await all_behind(walk, 2, plus=True)
    assert all(entry.attr is not None for entry in entries)
    assert pages == [10, 5]


async def test_inodes_of_readdir_readdirplus_and_lookup_agree() -> None:
    store = FakeStore()
    store.seed("f", b"x")
    store.seed("d/x", b"x")
    world = Namespace(store)
    plain = {entry.name: entry.ino for entry in await world.listed(world.root)}
    plus = {entry.name: entry.ino for entry in await world.listed(world.root, plus=True)}
    assert plain == plus
    assert plain[b"f"] == (await world.find("f")).ino
    d = await world.find("d")
    assert plain[b"d"] == d.ino
    assert [entry.ino for entry in await world.listed(d)][:2] == [d.ino, 1]


# What exists here only.


async def test_new_file_is_listed_once_before_and_after_it_is_published() -> None:
    store = filled(25)
    world = Namespace(store)
    node = world.tree.create("f0003a", False)
    for _ in range(2):
        for plus in (False, True):
            names = await world.names(plus=plus)
            assert names.count("f0003a") == 1
            assert len(names) == 26
        world.tree.published(node, store.seed("f0003a", b"new"))


async def test_new_directory_is_listed_as_one_and_its_files_too() -> None:
    store = FakeStore()
    world = Namespace(store)
    world.tree.create("d/", True)
    world.tree.create("d/f", False)
    entries = await world.listed(world.root, plus=True)
    assert [(entry.name, stat.S_ISDIR(entry.mode)) for entry in entries[2:]] == [(b"d", True)]
    assert await world.names(await world.find("d")) == ["f"]
    # It was made here, so nothing in it need be asked for.
    store.calls.clear()
    assert await world.lookup(await world.find("d"), "other") is None
    assert store.calls == []


async def test_removed_file_is_not_listed_by_a_page_that_came_before() -> None:
    store = filled(25)
    world = Namespace(store)
    node = await world.find("f0013")
    walk = world.walk(world.root)
    source = walk.entries(0, plus=True)
    for _ in range(14):  # the page with f0013 is in
        await anext(source)
    await source.aclose()
    world.tree.removed(node)
    rest = files(await all_behind(walk, 14, plus=True))
    assert b"f0013" not in rest
    assert len(rest) == 25 - 12 - 1
    assert node.ino not in world.tree.nodes or world.tree.nodes[node.ino].gone
    walk.close()


async def test_file_that_exists_while_a_slow_reader_walks_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    clock.install(monkeypatch)
    store = filled(30)
    world = Namespace(store)
    node = world.tree.create("f0000a", False)  # sorts into a page that will be asked for before it is published
    walk = world.walk(world.root)
    seen: list[bytes] = []
    cookie = 0
    for _ in range(40):
        async for entry in walk.entries(cookie, plus=False):
            seen.append(entry.name)
            cookie = entry.offset
            break
        if len(seen) == 15:
            world.tree.published(node, store.seed("f0000a", b"new"))
            clock.now += 600
    assert sorted(seen) == sorted([b".", b"..", b"f0000a", *(b"f%04d" % number for number in range(30))])


async def test_page_that_is_old_gives_names_without_attributes(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    clock.install(monkeypatch)
    store = filled(10)
    world = Namespace(store, ttl=1.0)
    walk = world.walk(world.root)
    source = walk.entries(0, plus=True)
    for _ in range(5):
        assert (await anext(source)).name
    await source.aclose()
    clock.now += 60
    rest = await all_behind(walk, 5, plus=True)
    assert len(rest) == 7
    assert all(entry.attr is None for entry in rest)


async def test_listing_does_not_take_a_version_back_that_was_published_since() -> None:
    store = filled(10)
    world = Namespace(store)
    node = await world.find("f0005")
    walk = world.walk(world.root)
    source = walk.entries(0, plus=True)
    await anext(source)
    await anext(source)
    await anext(source)
    await source.aclose()
    world.tree.published(node, store.seed("f0005", b"longer than before"))
    entries = {entry.name: entry for entry in await all_behind(walk, 3, plus=True)}
    attr = entries[b"f0005"].attr
    assert attr is not None
    assert attr.size == len(b"longer than before")
    assert node.size == attr.size


# Stores that do not do as S3 does.


class OddStore(FakeStore):
    """Gives the pages it is told to."""

    def __init__(self, pages: list[Page]) -> None:
        super().__init__()
        self.pages = pages

    async def list(
        self, prefix: str, *, token: str = "", start_after: str = "", max_keys: int = 1000, delimiter: str = "/"
    ) -> Page:
        self.calls.append("LIST")
        return self.pages[int(token or 0)]


def obj(key: str) -> Object:
    return Object(key, 1, 0, "e" * 32)


async def test_store_that_does_not_sort_shows_every_name_once() -> None:
    pages = [
        Page([obj("c"), obj("a")], ["z/"], "1"),
        Page([obj("b"), obj("c")], ["a/"], "2"),
        Page([obj("z")], ["z/"], ""),
    ]
    world = Namespace(OddStore(pages))
    assert await world.names() == ["a", "a␛f", "b", "c", "z", "z␛f"]


async def test_store_that_repeats_a_key_on_a_later_page_shows_it_once() -> None:
    pages = [Page([obj("a"), obj("b")], [], "1"), Page([obj("b"), obj("c")], [], "")]
    world = Namespace(OddStore(pages))
    assert await world.names() == ["a", "b", "c"]


async def test_store_that_ignores_the_delimiter_or_the_prefix_shows_directories() -> None:
    pages = [Page([obj("other"), obj("d/a"), obj("d/sub/x"), obj("d/sub/y"), obj("d/sub2/")], [], "")]
    world = Namespace(OddStore(pages), prefix="d/")
    assert await world.names() == ["a", "sub", "sub2"]


async def test_store_that_lists_the_same_page_for_ever_is_eio() -> None:
    world = Namespace(OddStore([Page([obj("a")], [], "1"), Page([obj("b")], [], "1")]))
    with pytest.raises(OSError, match="again and again") as info:
        await world.names()
    assert info.value.errno == errno.EIO


async def test_empty_pages_in_between_are_passed_over() -> None:
    world = Namespace(OddStore([Page([], [], "1"), Page([obj("b")], [], "2"), Page([], [], "")]))
    assert await world.names() == ["b"]


async def test_walk_of_a_large_directory_keeps_only_names_of_what_is_read() -> None:
    store = filled(300)
    world = Namespace(store)
    walk = world.walk(world.root)
    await all_behind(walk, 0, plus=True)
    assert walk._pass is not None
    assert sum(batch.rows is not None for batch in walk._pass.batches) <= 2
    assert world.tree.known(world.root, b"f0250") is not UNKNOWN
    walk.close()


@pytest.mark.parametrize("first_without", [b"f0002", b"f0011"])
async def test_what_went_out_without_attributes_is_looked_up_without_asking_the_store(first_without: bytes) -> None:
    store = filled(60)
    world = Namespace(store)

    def attr(node: Node, name: bytes) -> Attr | None:
        return None if name == first_without else world.attr(node, name)

    walk = Walk(store, world.tree, world.root, attr)
    # As the kernel does it: some with attributes, then names only, then with attributes again.
    first = [entry async for entry in walk.entries(0, True)][:8]
    await all_behind(walk, first[-1].offset, plus=False)
    await all_behind(walk, 40, plus=True)
    for name in (first_without, b"f0019", b"f0030"):
        assert world.tree.known(world.root, name) is not UNKNOWN
    walk.close()


def test_root_of_a_prefix_is_its_own_parent() -> None:
    tree = Tree("a/b/", 1.0)
    assert tree.parent_key(tree.root) == "a/b/"
    assert tree.name_of(tree.root) == b""
