"""What a mount believes: its nodes, and its own changes held against listings that do not show them yet."""

from __future__ import annotations

import asyncio
import copy
import errno
from collections.abc import Iterator

import pytest
from fakestore import FakeStore, Objects
from hypothesis import example, given, settings
from hypothesis import strategies as st
from namespace import Clock, Namespace

from pyfusekit.fs.s3fs.naming import beliefs, lookup, overlay, tree, walk
from pyfusekit.fs.s3fs.naming.nodes import Node, ident, pack, unpack
from pyfusekit.fs.s3fs.naming.overlay import GRACE_S
from pyfusekit.fs.s3fs.naming.tree import UNKNOWN, Tree
from pyfusekit.fs.s3fs.remote.store import Object, Page

MD5 = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    made.install(monkeypatch)
    return made


def obj(key: str, etag: str = MD5, size: int = 3) -> Object:
    return Object(key, size, 1_700_000_000_000_000_000, etag)


# Nodes.


@pytest.mark.parametrize(
    "item",
    [
        obj("k"),
        obj("k", f"{MD5}-1"),
        obj("k", f"{MD5}-10000", 5 << 40),
        obj("k", MD5.upper()),
        obj("k", f"{MD5}-007"),
        obj("k", f"{MD5}-99999999999999"),
        obj("k", "no md5 at all"),
        obj("k", " ".join(MD5)),
        obj("k", ""),
        Object("k", 0, -1, MD5, "GLACIER"),
        Object("k", 1, 5, MD5, "A_NEW_CLASS"),
        Object("k", 1, 5, "é", ""),
    ],
)
def test_packed_object_is_the_object(item: Object) -> None:
    assert unpack("k", pack(item)) == item
    node = Node(2, "k", False, 0.0, pack(item))
    assert (node.item, node.size, node.mtime_ns, node.etag) == (item, item.size, item.mtime_ns, item.etag)


def test_numbers_follow_from_keys_and_fit_60_bits() -> None:
    one, other = Tree("", 1.0), Tree("p/", 1.0)
    numbers = {one.ino_of(f"key {number}") for number in range(1000)}
    assert len(numbers) == 1000
    assert all(1 < number < 1 << 60 for number in numbers)
    assert one.ino_of("d/f") == other.ino_of("d/f") == one.install("d/f", obj("d/f"), 1.0).ino
    assert one.ino_of("d/") == 1 or one.ino_of("d/") != one.ino_of("d")
    assert one.ino_of("") == other.ino_of("p/") == 1


def test_file_and_directory_of_the_same_key_are_two_nodes() -> None:
    made = Tree("", 1.0)
    file = made.install("d/", obj("d/"), 1.0)
    directory = made.install("d/", None, 1.0)
    assert (file.is_dir, directory.is_dir) == (False, True)
    assert file.ino != directory.ino
    assert made.at("d/", False) is file
    assert made.at("d/", True) is directory


def test_keys_with_the_same_number_are_two_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    from pyfusekit.fs.s3fs.naming import nodes

    real = nodes.number_of
    monkeypatch.setattr(nodes, "number_of", lambda name: 77 if "\0" not in name else real(name))
    monkeypatch.setattr(beliefs, "number_of", lambda name: 77)
    made = Tree("", 1.0)
    found = [made.install(key, obj(key), 1.0) for key in ("a", "b", "c")]
    assert len({node.ino for node in found}) == 3
    assert [made.at(key, False) for key in ("a", "b", "c")] == found
    assert made.ino_of("b") == found[1].ino
    made.release(found[0])
    assert made.at("a", False) is None
    assert made.at("b", False) is found[1]


def test_unknown_node_is_estale() -> None:
    with pytest.raises(OSError, match="4711") as info:
        Tree("", 1.0).node(4711)
    assert info.value.errno == errno.ESTALE


def test_released_node_is_dropped_unless_somebody_knows_it() -> None:
    made = Tree("", 60.0)
    node = made.install("f", obj("f"), made.expiry())
    node.nlookup = 1
    made.release(node)
    assert made.nodes[node.ino] is node
    node.nlookup = 0
    node.opens = 1
    made.release(node)
    assert made.nodes[node.ino] is node
    node.opens = 0
    node.staged = object()
    made.release(node)
    assert made.nodes[node.ino] is node
    node.staged = None
    made.release(node)
    assert list(made.nodes) == [1]
    made.release(made.root)
    assert list(made.nodes) == [1]


def test_new_version_is_the_same_node_and_of_an_open_file_another() -> None:
    made = Tree("", 60.0)
    node = made.install("f", obj("f"), made.expiry())
    node.nlookup = 1
    assert made.install("f", obj("f", "2"), made.expiry()) is node
    assert node.etag == "2"
    node.opens = 1
    newer = made.install("f", obj("f", "3"), made.expiry())
    assert newer is not node
    assert (node.etag, node.replaced, newer.etag) == ("2", True, "3")
    assert made.at("f", False) is newer
    node.opens = node.nlookup = 0
    made.release(node)
    assert made.at("f", False) is newer


def test_older_answer_does_not_take_a_newer_version_back(clock: Clock) -> None:
    made = Tree("", 60.0)
    before = made.expiry()
    clock.now += 1
    node = made.install("f", obj("f", "new"), made.expiry())
    assert made.install("f", obj("f", "old"), before) is node
    assert node.etag == "new"


def test_file_with_local_changes_is_not_touched_by_a_listing() -> None:
    made = Tree("", 60.0)
    node = made.install("f", obj("f"), made.expiry())
    node.staged = object()
    node.opens = 1
    assert made.install("f", obj("f", "theirs"), made.expiry()) is node
    assert node.etag == MD5


def test_metadata_of_another_version_is_forgotten() -> None:
    made = Tree("", 60.0)
    node = made.install("f", obj("f"), made.expiry())
    node.posix = object()  # type: ignore[assignment]
    made.install("f", obj("f"), made.expiry())
    assert node.posix is not None
    made.install("f", obj("f", "2"), made.expiry())
    assert node.posix is None


# Names.


def test_name_of_a_node_is_the_one_it_is_found_by() -> None:
    made = Tree("p/", 60.0)
    for key, is_dir, beside, name in (
        ("p/f", False, False, "f"),
        ("p/d/", True, False, "d"),
        ("p/d//", True, False, "␛e"),
        ("p/d/", False, False, "␛e"),
        ("p/d", False, True, "d␛f"),
        ("p/./", True, False, "␛."),
        ("p/" + "x" * 240, True, False, "x" * 240 + "␛+"),
        ("p/" + "x" * 300, False, False, "x" * 60),
    ):
        node = made.install(key, None if is_dir else obj(key), made.expiry(), is_dir)
        node.beside = beside
        assert made.name_of(node).decode() == name
        above = made.parent_key(node)
        assert made.meaning(made.install(above, None, made.expiry(), True), name.encode()) is not None
        assert key.startswith(above)


def test_file_beside_a_directory_is_made_only_where_there_is_one() -> None:
    made = Tree("", 60.0)
    with pytest.raises(OSError, match="not there") as info:
        made.key_for(made.root, "d␛f".encode(), False)
    assert info.value.errno == errno.EINVAL
    made.install("d/", None, made.expiry(), True)
    assert made.key_for(made.root, "d␛f".encode(), False) == "d"
    assert made.create("d", False).beside


# What was done here, against listings that do not show it.


async def test_new_file_is_there_before_it_is_published_whatever_a_listing_says(clock: Clock) -> None:
    store = FakeStore()
    world = Namespace(store, ttl=1.0)
    node = world.tree.create("f", False)
    clock.now += 1000
    assert world.tree.known(world.root, b"f") is node
    assert await world.names() == ["f"]
    world.tree.release(node)
    assert world.tree.known(world.root, b"f") is node
    world.tree.removed(node)
    assert await world.lookup(world.root, "f") is None
    assert node.ino not in world.tree.nodes


async def test_published_file_outlives_a_listing_that_does_not_show_it_for_a_while(clock: Clock) -> None:
    store = FakeStore()
    store.lie()
    world = Namespace(store, ttl=1.0)
    node = world.tree.create("f", False)
    world.tree.published(node, store.seed("f", b"new"))
    clock.now += 2
    store.calls.clear()
    assert await world.lookup(world.root, "f") is node
    assert store.count("LIST") == 1  # it was asked, and not believed
    assert await world.names() == ["f"]
    clock.now += GRACE_S
    # Then the store decides.
    assert await world.lookup(world.root, "f") is None
    assert await world.names() == []


async def test_published_version_outlives_a_listing_that_shows_the_one_before(clock: Clock) -> None:
    store = FakeStore()
    store.seed("f", b"old")
    store.lie()
    world = Namespace(store, ttl=1.0)
    node = await world.find("f")
    item = store.seed("f", b"newer")
    world.tree.published(node, item)
    clock.now += 2
    assert await world.lookup(world.root, "f") is node
    assert node.item == item
    await world.names(plus=True)
    assert node.item == item
    # Another version is somebody else's, and newer.
    store.honest()
    theirs = store.put_plain("f", b"theirs")
    clock.now += 2
    assert await world.lookup(world.root, "f") is node
    assert node.item == theirs


async def test_removed_file_stays_away_from_a_listing_that_shows_it_but_not_another_version(clock: Clock) -> None:
    store = FakeStore()
    store.seed("f", b"old")
    world = Namespace(store, ttl=1.0)
    node = await world.find("f")
    store.lie()
    del store.objects["f"]
    world.tree.removed(node)
    clock.now += 2
    assert await world.lookup(world.root, "f") is None
    assert await world.names() == []
    store.honest()
    store.seed("f", b"again")
    clock.now += 2
    found = await world.lookup(world.root, "f")
    assert found is not None
    assert found.size == 5


async def test_removed_and_made_again_is_the_new_one_and_older_ones_are_known(clock: Clock) -> None:
    store = FakeStore()
    store.seed("f", b"old")
    world = Namespace(store, ttl=1.0)
    node = await world.find("f")
    store.lie()
    world.tree.removed(node)
    again = world.tree.create("f", False)
    assert again.ino != node.ino
    world.tree.published(again, store.seed("f", b"new"))
    clock.now += 2
    assert await world.lookup(world.root, "f") is again
    world.tree.removed(again)
    del store.objects["f"]
    clock.now += 2
    # The listing shows the first version of all.
    assert await world.lookup(world.root, "f") is None


async def test_cached_listing_does_not_bring_back_what_was_removed_after_it(clock: Clock) -> None:
    store = FakeStore()
    store.seed("f", b"old")
    store.seed("g", b"other")
    world = Namespace(store, ttl=1000.0)
    await world.names()
    node = await world.find("f")
    node.nlookup = 0
    del store.objects["f"]
    world.tree.removed(node)
    for _ in range(4):
        clock.now += 3
        found = world.tree.known(world.root, b"f")
        assert found is None or (found is UNKNOWN and await world.finder.lookup(world.root, b"f") is None)
    clock.now += 1100
    world.tree.create("unrelated", False)  # what was done long ago is forgotten here
    assert world.tree.counts()["local"] == 1
    assert await world.lookup(world.root, "f") is None


async def test_renamed_file_is_the_same_node_under_the_new_name_only(clock: Clock) -> None:
    store = FakeStore()
    store.seed("old", b"data")
    store.seed("target", b"was here")
    store.lie()
    world = Namespace(store, ttl=1.0)
    node = await world.find("old")
    target = await world.find("target")
    item = store.seed("target", b"data")
    del store.objects["old"]
    world.tree.moved(node, "target", item)
    assert (target.gone, node.key, node.item) == (True, "target", item)
    for _ in range(2):
        assert await world.lookup(world.root, "old") is None
        assert await world.lookup(world.root, "target") is node
        assert await world.names(plus=True) == ["target"]
        clock.now += 2
    store.honest()
    clock.now += 10
    assert await world.lookup(world.root, "target") is node
    assert await world.lookup(world.root, "old") is None
    node.nlookup = target.nlookup = 0
    for each in (node, target):
        world.tree.release(each)
    assert list(world.tree.nodes) == [1]


async def test_unpublished_file_is_renamed_without_the_store() -> None:
    store = FakeStore()
    world = Namespace(store)
    node = world.tree.create("a", False)
    world.tree.moved(node, "b")
    assert await world.lookup(world.root, "a") is None
    assert await world.lookup(world.root, "b") is node
    assert await world.names() == ["b"]


async def test_renamed_directory_takes_all_it_holds_along(clock: Clock) -> None:
    store = FakeStore()
    for key in ("old/", "old/f", "old/sub/g", "other"):
        store.seed(key, b"" if key.endswith("/") else key.encode())
    store.lie()
    world = Namespace(store, ttl=1.0)
    f, g, sub = await world.find("old/f"), await world.find("old/sub/g"), await world.find("old/sub")
    new = world.tree.create("old/new", False)
    for key in ("old/", "old/f", "old/sub/g"):
        store.seed(key.replace("old/", "moved/"), store.objects[key].data)
        del store.objects[key]
    moved = world.tree.moved_tree("old/", "moved/", {"moved/f": store.objects["moved/f"].item})
    assert {node.key for node in moved} == {"moved/", "moved/f", "moved/sub/", "moved/sub/g", "moved/new"}
    assert moved[0].key == "moved/"
    for _ in range(2):
        assert await world.names() == ["moved", "other"]
        assert await world.lookup(world.root, "old") is None
        for path, node in (("moved/f", f), ("moved/sub", sub), ("moved/sub/g", g), ("moved/new", new)):
            assert await world.path(path) is node
        clock.now += 2
    # Who makes the directory again does not find in it what was moved.
    world.tree.create("old/", True)
    assert await world.names(await world.find("old")) == []
    assert await world.path("old/f") is None
    store.honest()
    clock.now += 10
    assert await world.path("moved/f") is f


async def test_removed_directory_is_gone_and_made_again_is_empty(clock: Clock) -> None:
    store = FakeStore()
    store.seed("d/")
    store.seed("d/f", b"x")
    store.lie()
    world = Namespace(store, ttl=1.0)
    d, f = await world.find("d"), await world.find("d/f")
    del store.objects["d/f"]
    world.tree.removed(f)
    assert await world.finder.empty(d)
    del store.objects["d/"]
    world.tree.removed(d)
    clock.now += 2
    assert await world.lookup(world.root, "d") is None
    assert await world.names() == []
    again = world.tree.create("d/", True)
    assert again is not d
    assert await world.names(again) == []


async def test_directory_that_is_held_stays_without_keys_until_it_is_removed(clock: Clock) -> None:
    store = FakeStore()
    store.seed("d/f", b"x")
    world = Namespace(store, ttl=1.0)
    d, f = await world.find("d"), await world.find("d/f")
    world.tree.hold(d)
    del store.objects["d/f"]
    world.tree.removed(f)
    for _ in range(3):
        assert await world.lookup(world.root, "d") is d
        assert await world.names() == ["d"]
        assert await world.names(d) == []
        d.nlookup = 0
        world.tree.release(d)
        clock.now += 100
    world.tree.removed(d)
    assert await world.lookup(world.root, "d") is None


async def test_directory_is_held_no_more_when_the_store_shows_it_again(clock: Clock) -> None:
    store = FakeStore()
    world = Namespace(store, ttl=1.0)
    store.seed("d/f", b"x")
    d = await world.find("d")
    world.tree.hold(d)
    assert await world.names() == ["d"]
    assert d.held  # a listing that is younger than the last key's end may be wrong
    clock.now += 2 * GRACE_S
    await world.names()
    assert not d.held
    del store.objects["d/f"]
    clock.now += 2
    assert await world.names() == []


async def test_local_file_has_the_name_until_the_store_has_it_and_then_the_directory(clock: Clock) -> None:
    store = FakeStore()
    world = Namespace(store, ttl=1.0)
    node = world.tree.create("a", False)
    store.seed("a/b", b"x")
    assert await world.lookup(world.root, "a") is node
    assert await world.names() == ["a"]
    world.tree.published(node, store.seed("a", b"new"))
    clock.now += 2 * GRACE_S
    found = await world.find("a")
    assert found.is_dir
    assert await world.names() == ["a", "a␛f"]
    assert await world.lookup(world.root, "a␛f") is node


async def test_published_file_keeps_its_name_while_listings_may_not_show_it(clock: Clock) -> None:
    store = FakeStore()
    world = Namespace(store, ttl=1.0)
    node = world.tree.create("a", False)
    store.seed("a/b", b"x")
    store.lie()
    world.tree.published(node, store.seed("a", b"new"))
    clock.now += 2
    assert await world.lookup(world.root, "a") is node
    assert await world.names() == ["a"]


async def test_removal_is_not_believed_longer_than_listings_may_lag(clock: Clock) -> None:
    store = FakeStore()
    store.seed("f", b"old")
    world = Namespace(store, ttl=1000.0)
    await world.names()
    node = await world.find("f")
    clock.now += 1
    world.tree.removed(node)
    store.seed("f", b"of somebody else")
    clock.now += GRACE_S + 1
    found = await world.find("f")
    assert found.size == len(b"of somebody else")


async def test_doubted_node_is_asked_for_again_though_it_was_listed(clock: Clock) -> None:
    store = FakeStore()
    store.seed("f", b"old")
    world = Namespace(store, ttl=1000.0)
    await world.names()
    node = await world.find("f")
    store.seed("f", b"newer")
    clock.now += 1
    world.tree.expire(node)
    assert world.tree.known(world.root, b"f") is UNKNOWN
    clock.now += 1
    assert await world.lookup(world.root, "f") is node
    assert node.size == 5
    assert world.tree.known(world.root, b"f") is node


async def test_refresh_forgets_what_is_below_and_nothing_else(clock: Clock) -> None:
    store = FakeStore()
    for key in ("d/f", "e/f"):
        store.seed(key, b"old")
    world = Namespace(store, ttl=1000.0)
    nodes = {path: await world.find(path) for path in ("d", "d/f", "e", "e/f")}
    await world.names(nodes["d"])
    new = world.tree.create("d/new", False)
    clock.now += 1
    store.seed("d/f", b"newer")
    store.seed("d/more", b"x")
    assert await world.path("d/more") is None
    assert set(world.tree.refresh("d/")) == {nodes["d"], nodes["d/f"], new}
    assert await world.path("d/more") is not None
    assert (await world.find("d/f")).size == 5
    assert await world.path("d/new") is new
    assert world.tree.fresh(nodes["e/f"])
    store.calls.clear()
    assert await world.path("e/f") is nodes["e/f"]
    assert store.calls == []


async def test_refresh_of_one_file_asks_for_it_again(clock: Clock) -> None:
    store = FakeStore()
    store.seed("d/f", b"old")
    world = Namespace(store, ttl=1000.0)
    await world.names(await world.find("d"))
    node = await world.find("d/f")
    store.seed("d/f", b"newer")
    clock.now += 1
    assert world.tree.refresh("d/f") == [node]
    assert (await world.find("d/f")).size == 5


async def test_objects_that_follow_in_a_listing_are_known_without_asking() -> None:
    store = FakeStore(page_size=10)
    for number in range(50):
        store.seed(f"d/f{number:02}", b"x")
    store.seed("d/sub/x", b"x")
    world = Namespace(store)
    d = await world.find("d")
    assert world.tree.following("d/", "d/f07", 3) == []
    await world.names(d, plus=True)
    assert [item.key for item in world.tree.following("d/", "d/f07", 4)] == [f"d/f{number:02}" for number in (8, 9, 10, 11)]
    world.tree.removed(await world.find("d/f09"))
    published = store.seed("d/f10", b"newer")
    world.tree.published(await world.find("d/f10"), published)
    assert [item.key for item in world.tree.following("d/", "d/f07", 4)] == ["d/f08", "d/f11"]
    assert len(world.tree.following("d/", "", 1000)) == 48
    assert world.tree.following("d/", "d/f49", 10) == []


async def test_what_was_beside_a_removed_file_or_directory_is_still_there() -> None:
    store = FakeStore()
    for key in ("a", "a/x", "b", "b/"):
        store.seed(key, b"" if key.endswith("/") else b"x")
    world = Namespace(store)
    a, beside = await world.find("a"), await world.find("a␛f")
    world.tree.removed(beside)
    del store.objects["a"]
    assert await world.find("a") is a
    b, beside = await world.find("b"), await world.find("b␛f")
    world.tree.removed(b)
    del store.objects["b/"]
    assert await world.find("b") is beside


async def test_marker_of_a_new_directory_is_not_its_contents(clock: Clock) -> None:
    store = FakeStore()
    world = Namespace(store, ttl=1.0)
    node = world.tree.create("d/", True, store.seed("d/"))
    node.nlookup += 1
    assert (node.item, node.is_dir, node.size) == (None, True, 0)
    store.calls.clear()
    assert await world.lookup(node, "f") is None
    assert store.calls == []
    world.tree.release(node)
    node.nlookup = 0
    world.tree.release(node)
    clock.now += 2
    again = await world.find("d")
    assert (again.item, again.is_dir) == (None, True)


async def test_counts_say_what_is_known() -> None:
    store = FakeStore()
    for number in range(5):
        store.seed(f"f{number}", b"x")
    world = Namespace(store)
    await world.names(plus=True)
    world.tree.create("new", False)
    assert world.tree.counts() == {"nodes": 7, "listed": 5, "local": 1}


# The same, at random.

TTL = 1.0
FILES = ("a", "b", "a/x", "d/x", "d/y")
WINDOW = TTL + 2 * GRACE_S + 1
OPS = st.one_of(
    st.tuples(st.just("tick"), st.sampled_from([0.3, 0.9, 2.0, 4.0, 6.0, 30.0])),
    st.tuples(st.just("lag"), st.sampled_from([0.0, 0.5, 2.0, 4.9])),
    st.tuples(st.sampled_from(["put", "delete", "create", "publish", "unlink"]), st.sampled_from(FILES)),
    st.tuples(st.sampled_from(["mkdir", "rmdir"]), st.sampled_from(["a", "d"])),
    st.tuples(st.just("rename"), st.tuples(st.sampled_from(FILES), st.sampled_from(FILES))),
    st.tuples(st.sampled_from(["crawl", "look", "crawl", "plain"]), st.none()),
)


class LaggingStore(FakeStore):
    """Writes are seen at once, but listings show what was there *lag* seconds ago."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(page_size=2)
        self.clock = clock
        self.lag = 0.0
        self.states: list[tuple[float, Objects]] = [(0.0, Objects())]

    def changed(self) -> None:
        """Remember what is there from now on."""
        self.states.append((self.clock.now, copy.copy(self.objects)))
        self.states[-1][1].__dict__.update({})
        snapshot = Objects()
        for key in self.objects.in_order():
            snapshot[key] = self.objects[key]
        self.states[-1] = (self.clock.now, snapshot)

    async def list(
        self, prefix: str, *, token: str = "", start_after: str = "", max_keys: int = 1000, delimiter: str = "/"
    ) -> Page:
        self.stale = [state for since, state in self.states if since <= self.clock.now - self.lag][-1]
        return await super().list(prefix, token=token, start_after=start_after, max_keys=max_keys, delimiter=delimiter)

    def versions_of(self, key: str, since: float) -> set[str | None]:
        """Return the ETags a key has had since then, None where it was not there."""
        found: set[str | None] = set()
        for number, (_, state) in enumerate(self.states):
            end = self.states[number + 1][0] if number + 1 < len(self.states) else float("inf")
            if end > since:
                found.add(state[key].item.etag if key in state else None)
        return found


class Model:
    """Does at random what a mount and another client do, and holds what is shown to what can be explained."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.store = LaggingStore(clock)
        self.world = Namespace(self.store, ttl=TTL)
        self.own: dict[str, float] = {}
        """When a key was last changed here."""
        self.unpublished: dict[str, Node] = {}
        self.made = 0

    async def run(self, ops: list[tuple[str, object]]) -> None:
        for word, value in ops:
            self.clock.now += 0.001
            await getattr(self, word)(value)
        self.clock.now += 0.001
        await self.crawl(None)

    async def tick(self, seconds: float) -> None:
        self.clock.now += seconds

    async def lag(self, seconds: float) -> None:
        self.store.lag = seconds

    def write(self, key: str) -> Object:
        self.made += 1
        item = self.store.put_plain(key, b"%d" % self.made)
        self.store.changed()
        return item

    def wipe(self, key: str) -> None:
        self.store.objects.pop(key)
        self.store.changed()

    async def put(self, key: str) -> None:
        self.write(key)

    async def delete(self, key: str) -> None:
        self.wipe(key)

    async def parent(self, key: str) -> Node | None:
        """Return the directory a key is in, when it is seen."""
        above = key.rpartition("/")[0]
        if not above:
            return self.world.root
        node = await self.world.lookup(self.world.root, above)
        return node if node is not None and node.is_dir else None

    async def file(self, key: str) -> Node | None:
        """Return the file of a key by the path it has now."""
        parent = await self.parent(key)
        name = key.rpartition("/")[2]
        node = await self.world.lookup(parent, name) if parent is not None else None
        if node is not None and node.is_dir and parent is not None:
            node = await self.world.lookup(parent, f"{name}␛f")
        return node

    def current(self, node: Node) -> bool:
        """Decide a write's condition, as the store does."""
        stored = self.store.objects.get(node.key)
        return (stored.item.etag if stored is not None else "") == node.etag

    async def create(self, key: str) -> None:
        parent = await self.parent(key)
        if parent is not None and await self.world.lookup(parent, key.rpartition("/")[2]) is None:
            made = self.world.tree.create(self.world.tree.key_for(parent, key.rpartition("/")[2].encode(), False), False)
            assert made.key == key
            made.nlookup += 1
            self.unpublished[key] = made

    async def publish(self, key: str) -> None:
        node = self.unpublished.get(key) or await self.file(key)
        if node is None:
            return
        if self.current(node):
            self.world.tree.published(node, self.write(key))
            self.unpublished.pop(key, None)
            self.own[key] = self.clock.now

    async def unlink(self, key: str) -> None:
        node = await self.file(key)
        if node is None:
            return
        if not self.current(node):
            self.world.tree.expire(node)
            return
        parent = await self.parent(key)
        if parent is not None and parent is not self.world.root:
            self.world.tree.hold(parent)
        if node.item is not None:
            self.wipe(key)
            self.own[key] = self.clock.now
        self.unpublished.pop(key, None)
        self.world.tree.removed(node)

    async def rename(self, keys: tuple[str, str]) -> None:
        old, new = keys
        node = await self.file(old)
        parent = await self.parent(new)
        if node is None or parent is None or old == new or node.beside:
            return
        target = await self.world.lookup(parent, new.rpartition("/")[2])
        if (target is not None and (target.is_dir or not self.current(target))) or not self.current(node):
            return
        if target is None and new in self.store.objects:
            return
        if target is not None and target.item is None:
            self.unpublished.pop(new)
        self.unpublished.pop(old, None)
        if node.item is None:
            self.world.tree.moved(node, new)
            self.unpublished[new] = node
            if target is not None and target.item is not None:
                self.world.tree.published(node, self.write(new))
                del self.unpublished[new]
                self.own[new] = self.clock.now
            return
        self.world.tree.moved(node, new, self.write(new))
        self.wipe(old)
        self.own[old] = self.own[new] = self.clock.now

    async def mkdir(self, name: str) -> None:
        if await self.world.lookup(self.world.root, name) is None:
            node = self.world.tree.create(f"{name}/", True)
            node.nlookup += 1
            self.store.put_plain(f"{name}/", b"")
            self.store.changed()
            self.world.tree.published(node)

    async def rmdir(self, name: str) -> None:
        node = await self.world.lookup(self.world.root, name)
        if node is not None and node.is_dir and await self.world.finder.empty(node):
            self.wipe(f"{name}/")
            self.world.tree.removed(node)
            for key in FILES:
                if key.startswith(f"{name}/"):
                    # What another client makes there is not seen while listings may still show what was there.
                    self.own.setdefault(key, 0.0)

    async def crawl(self, _: None) -> None:
        found = await self.world.crawl()
        self.check({node.key: node for node in found.values() if not node.is_dir})

    async def plain(self, _: None) -> None:
        await self.world.names()

    async def look(self, _: None) -> None:
        seen: dict[str, Node] = {}
        for key in FILES:
            node = await self.file(key)
            if node is not None:
                assert node.key == key
                seen[key] = node
        self.check(seen)

    def check(self, seen: dict[str, Node]) -> None:
        for key in FILES:
            node = seen.get(key)
            if key in self.unpublished:
                if not self.shadowed(key):
                    assert node is self.unpublished[key], f"{key!r} exists here and is not shown"
                continue
            since = max(self.own.get(key, 0.0), self.clock.now - WINDOW)
            possible = self.store.versions_of(key, since)
            if None not in possible and node is None and self.shadowed(key):
                continue
            assert (node.etag if node is not None else None) in possible, f"{key!r} is not what it was since {since}"

    def shadowed(self, key: str) -> bool:
        """Return whether a file made here has the name of the key's directory."""
        above = key.rpartition("/")[0]
        return above in self.unpublished or self.own.get(above, 0.0) > self.clock.now - WINDOW


@pytest.fixture(scope="module")
def model_clock() -> Iterator[Clock]:
    with pytest.MonkeyPatch.context() as patch:
        made = Clock()
        made.install(patch)
        yield made


@given(st.lists(OPS, min_size=1, max_size=40))
@settings(max_examples=150, deadline=None)
@example([("put", "a"), ("crawl", None), ("put", "a/x"), ("tick", 2.0), ("crawl", None), ("unlink", "a"), ("look", None)])
@example([("mkdir", "d"), ("create", "d/x"), ("lag", 4.9), ("publish", "d/x"), ("tick", 2.0), ("crawl", None), ("look", None)])
def test_what_is_shown_can_always_be_explained(model_clock: Clock, ops: list[tuple[str, object]]) -> None:
    asyncio.run(Model(model_clock).run(ops))


def test_modules_of_the_namespace_take_their_time_from_the_clock(model_clock: Clock) -> None:
    assert all(module.time.monotonic is model_clock for module in (beliefs, lookup, overlay, tree, walk))
    assert ident("a", True) != ident("a", False)
