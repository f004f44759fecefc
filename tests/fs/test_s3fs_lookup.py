"""Finding names in the store: how many requests it takes, and what is not asked at all."""

from __future__ import annotations

import asyncio
import errno
import logging
import random

import pytest
from fakestore import FakeStore, Fault, denied
from namespace import Clock, Namespace

from pyfusekit.fs.s3fs.naming.tree import UNKNOWN


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    made.install(monkeypatch)
    return made


async def test_missing_name_takes_one_request() -> None:
    store = FakeStore()
    world = Namespace(store)
    assert await world.lookup(world.root, "nothing") is None
    assert store.calls == ["LIST nothing"]


async def test_directory_is_there_without_a_marker_and_with_only_a_marker(caplog: pytest.LogCaptureFixture) -> None:
    store = FakeStore()
    store.seed("implicit/deep/file", b"x")
    store.seed("empty/")
    world = Namespace(store)
    for path in ("implicit", "implicit/deep", "empty"):
        assert (await world.find(path)).is_dir
    assert await world.names(await world.find("empty")) == []
    assert caplog.messages == []


async def test_prefix_mount_finds_only_what_is_below_it() -> None:
    store = FakeStore()
    for key in ("a/1", "a/b/2", "ab/3", "4"):
        store.seed(key, key.encode())
    world = Namespace(store, prefix="a/")
    assert await world.names() == ["1", "b"]
    assert (await world.find("b/2")).key == "a/b/2"
    assert await world.lookup(world.root, "4") is None
    assert world.tree.parent_key(await world.find("b")) == "a/"


async def test_directory_behind_more_names_than_a_lookup_asks_for_is_found() -> None:
    store = FakeStore()
    for number in range(50):
        store.seed(f"a-{number:02}", b"x")
    store.seed("a/b", b"x")
    world = Namespace(store)
    assert (await world.find("a")).is_dir
    assert store.calls == ["LIST a", "LIST a/"]


async def test_name_before_many_longer_ones_costs_one_request() -> None:
    store = FakeStore()
    for number in range(50):
        store.seed(f"a{number:02}", b"x")
    store.seed("a", b"x")
    world = Namespace(store)
    assert not (await world.find("a")).is_dir
    assert store.calls == ["LIST a"]


async def test_directory_has_the_name_and_the_object_the_one_beside_it() -> None:
    store = FakeStore(page_size=2)
    for key in ("a", "a-1", "a-2", "a.txt", "a/b", "a0", "b"):
        store.seed(key, key.encode())
    world = Namespace(store)
    assert (await world.find("a")).is_dir
    file = await world.find("a␛f")
    assert (file.key, file.is_dir, file.beside) == ("a", False, True)
    for plus in (False, True):
        assert await world.names(plus=plus) == ["a", "a-1", "a-2", "a.txt", "a0", "a␛f", "b"]
    assert await world.lookup(world.root, "b␛f") is None
    # When the directory goes, the object has its plain name again.
    del store.objects["a/b"]
    world.tree.refresh("")
    assert await world.find("a") is file
    assert await world.lookup(world.root, "a␛f") is None


async def test_long_names_are_found_through_their_continuation() -> None:
    store = FakeStore(page_size=2)
    head = "x" * 240
    for key in (f"d/{head}", f"d/{head}1", f"d/{head}/y", "d/" + "x" * 256, "d/" + "x" * 300 + "/z"):
        store.seed(key, key.encode())
    world = Namespace(store)
    d = await world.find("d")
    assert await world.names(d) == [head, f"{head}1", f"{head}␛+", f"{head}␛f"]
    assert (await world.find(f"d/{head}␛+/{'x' * 16}")).key == "d/" + "x" * 256
    assert (await world.find(f"d/{head}␛+/{'x' * 60}/z")).key == "d/" + "x" * 300 + "/z"
    assert await world.names(await world.find(f"d/{head}␛+")) == ["x" * 16, "x" * 60]
    assert await world.lookup(d, "x" * 239 + "␛+") is None


@pytest.mark.parametrize("plus", [False, True])
async def test_keys_that_are_no_names_are_hidden_with_a_line_each(caplog: pytest.LogCaptureFixture, plus: bool) -> None:
    store = FakeStore()
    long = "x" * 256
    for key in ("a//b", "a/./c", "a/../d", "a/n\0ul", f"a/{long}", "/root", "a/good", "a/clash", "a/clash/x", "a/␛x", "a/"):
        store.seed(key, b"x")
    world = Namespace(store, keys_mode="hide")
    a = await world.find("a")
    assert await world.names(a, plus) == ["clash", "good", "␛x"]
    assert await world.names(plus=plus) == ["a"]
    assert sum("is hidden" in line for line in caplog.messages) == 8
    for name in (b".", b"..", b"\xff", b"n\0ul", "clash␛f".encode(), "␛e".encode()):
        assert await world.lookup(a, name) is None
    assert (await world.find("a/␛x")).key == "a/␛x"
    await world.names(a, plus)
    assert sum("is hidden" in line for line in caplog.messages) == 8


async def test_key_that_is_no_name_fails_the_listing_where_that_is_wanted() -> None:
    store = FakeStore()
    store.seed("a//b", b"x")
    store.seed("good/x", b"x")
    world = Namespace(store, keys_mode="error")
    with pytest.raises(OSError, match="'a//'") as info:
        await world.names(await world.find("a"))
    assert info.value.errno == errno.EIO
    assert await world.names(await world.find("good")) == ["x"]


async def test_key_that_is_not_utf8_is_hidden(caplog: pytest.LogCaptureFixture) -> None:
    store = FakeStore()
    store.seed("a/sur\udc80", b"x")
    store.seed("a/good", b"x")
    world = Namespace(store)
    assert await world.names(await world.find("a")) == ["good"]
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


async def test_key_longer_than_s3_allows_is_not_asked_for() -> None:
    store = FakeStore()
    store.seed("/".join(["d" * 200] * 5) + "/f", b"x")
    world = Namespace(store)
    node = await world.find("/".join(["d" * 200] * 5))
    store.calls.clear()
    assert world.tree.known(node, b"e" * 100) is None
    assert await world.finder.lookup(node, b"e" * 100) is None
    assert store.calls == []


async def test_failing_lookup_is_an_errno_and_not_a_missing_name() -> None:
    store = FakeStore()
    store.seed("f", b"x")
    world = Namespace(store)
    store.fail = [Fault("LIST", denied())]
    with pytest.raises(OSError, match="AccessDenied") as info:
        await world.lookup(world.root, "f")
    assert info.value.errno == errno.EACCES
    assert await world.lookup(world.root, "f") is not None


# What need not be asked.


async def test_listing_answers_lookups_and_misses_without_requests() -> None:
    store = FakeStore()
    store.seed("d/file", b"123")
    store.seed("d/sub/x", b"x")
    store.seed("d/odd//x", b"x")
    store.seed("d/sub", b"beside")
    world = Namespace(store)
    d = await world.find("d")
    await world.names(d)
    store.calls.clear()
    assert (await world.find("d/file")).size == 3
    assert (await world.find("d/sub")).is_dir
    assert (await world.find("d/sub␛f")).key == "d/sub"
    for name in ("nothing", "file␛f", "␛e", "␛."):
        assert await world.lookup(d, name) is None
    assert store.calls == []


async def test_what_is_listed_is_believed_for_its_time_to_live_and_misses_for_theirs(clock: Clock) -> None:
    store = FakeStore()
    store.seed("f", b"x")
    world = Namespace(store, ttl=10.0, negative_ttl=2.0)
    await world.names()
    clock.now += 1
    assert world.tree.known(world.root, b"g") is None
    clock.now += 2
    assert world.tree.known(world.root, b"g") is UNKNOWN
    node = world.tree.known(world.root, b"f")
    assert node not in (None, UNKNOWN)
    clock.now += 8
    assert world.tree.known(world.root, b"f") is UNKNOWN


async def test_directory_that_takes_long_to_list_can_be_looked_at_when_it_is_listed(clock: Clock) -> None:
    store = FakeStore(page_size=10)
    for number in range(50):
        store.seed(f"f{number:02}", b"x")
    world = Namespace(store, ttl=10.0)
    walk = world.walk(world.root)
    async for _ in walk.entries(0, plus=False):
        clock.now += 0.5
    walk.close()
    store.calls.clear()
    for number in range(50):
        assert await world.lookup(world.root, f"f{number:02}") is not None
    assert store.calls == []


async def test_names_looked_up_one_after_the_other_are_asked_for_by_the_page() -> None:
    store = FakeStore(page_size=100)
    for number in range(1000):
        store.seed(f"d/f{number:04}", b"x" * number)
    store.seed("d/f0500-/x", b"x")
    world = Namespace(store)
    d = await world.find("d")
    store.calls.clear()
    for number in range(1000):
        node = await world.lookup(d, f"f{number:04}")
        assert node is not None
        assert node.size == number
    assert store.count("LIST") < 30
    assert (await world.find("d/f0500-")).is_dir
    assert await world.lookup(d, "f0500+") is None


async def test_page_of_names_is_worth_it_for_who_is_told_of_them_before_he_asks() -> None:
    store = FakeStore(page_size=100)
    for number in range(1000):
        store.seed(f"f{number:04}", b"x")
    world = Namespace(store)
    for number in range(1000):
        node = await world.find(f"f{number:04}")
        for item in world.tree.following("", node.key, 16):
            world.tree.install(item.key, item, node.expires).nlookup += 1
    assert store.count("LIST") < 30


async def test_object_that_follows_is_not_told_of_while_there_may_be_a_directory_of_its_name() -> None:
    store = FakeStore(page_size=20)
    for number in range(40):
        store.seed(f"n{number:02}", b"x")
    for number in range(30):
        store.seed(f"n30-{number:02}", b"x")
    store.seed("n30/x", b"x")
    world = Namespace(store)
    for number in range(40):
        node = await world.find(f"n{number:02}")
        assert node.is_dir == (number == 30)
        for item in world.tree.following("", f"n{number:02}", 16):
            assert item.key != "n30"
            world.tree.install(item.key, item, node.expires).nlookup += 1


async def test_names_that_will_be_made_are_asked_for_by_the_page() -> None:
    store = FakeStore()
    store.seed("d/z", b"x")
    world = Namespace(store)
    d = await world.find("d")
    store.calls.clear()
    for number in range(1000):
        assert await world.lookup(d, f"f{number:04}") is None
        node = world.tree.create(f"d/f{number:04}", False)
        world.tree.published(node, store.seed(f"d/f{number:04}", b"x"))
    assert store.count("LIST") < 15


async def test_names_looked_up_in_no_order_are_asked_for_one_by_one() -> None:
    store = FakeStore(page_size=10)
    for number in range(3000):
        store.seed(f"f{number:04}", b"x")
    world = Namespace(store)
    for number in random.Random(3).sample(range(3000), 300):
        assert (await world.find(f"f{number:04}")).size == 1
    assert store.count("LIST") < 320
    assert sum(">" in call for call in store.calls) < 10


async def test_many_lookups_at_once_share_a_page() -> None:
    store = FakeStore()
    for number in range(500):
        store.seed(f"f{number:04}", b"x")
    world = Namespace(store)
    found = await asyncio.gather(*(world.find(f"f{number:04}") for number in range(500)))
    assert all(node.size == 1 for node in found)
    assert store.count("LIST") < 20


# Is it still there?


async def test_node_that_is_asked_for_again_is_the_same_or_newer_or_gone(clock: Clock) -> None:
    store = FakeStore()
    store.seed("f", b"x")
    store.seed("d/g", b"x")
    world = Namespace(store, ttl=1.0)
    f, d = await world.find("f"), await world.find("d")
    clock.now += 2
    store.calls.clear()
    assert await world.finder.current(f) is f
    assert world.tree.fresh(f)
    assert await world.finder.current(d) is d
    assert store.calls == ["LIST f", "LIST d/"]
    newer = store.seed("f", b"newer")
    clock.now += 2
    assert await world.finder.current(f) is f
    assert f.item == newer
    f.opens = 1
    store.seed("f", b"newest")
    clock.now += 2
    other = await world.finder.current(f)
    assert other is not None
    assert (other is not f, f.replaced) == (True, True)
    del store.objects["f"], store.objects["d/g"]
    clock.now += 2
    assert await world.finder.current(other) is None
    assert await world.finder.current(d) is None
    assert await world.finder.current(world.root) is world.root


async def test_object_beside_a_directory_is_asked_for_as_itself(clock: Clock) -> None:
    store = FakeStore()
    store.seed("a", b"x")
    store.seed("a/b", b"x")
    store.seed("a/", b"marker with bytes")
    world = Namespace(store, ttl=1.0)
    beside, marker = await world.find("a␛f"), await world.find("a/␛e")
    clock.now += 2
    assert await world.finder.current(beside) is beside
    assert await world.finder.current(marker) is marker
    assert (marker.key, marker.is_dir, marker.size) == ("a/", False, 17)


async def test_directory_is_empty_when_only_its_marker_is_left() -> None:
    store = FakeStore()
    store.seed("d/")
    store.seed("full/a/b/c", b"x")
    store.seed("bytes/", b"x")
    world = Namespace(store)
    d = await world.find("d")
    store.calls.clear()
    assert await world.finder.empty(d)
    assert store.calls == ["LISTALL d/"]
    assert not await world.finder.empty(await world.find("full"))
    assert not await world.finder.empty(await world.find("bytes"))
    world.tree.create("d/new", False)
    assert not await world.finder.empty(d)


async def test_directory_whose_files_were_just_removed_is_empty_though_a_listing_shows_them() -> None:
    store = FakeStore()
    for number in range(5):
        store.seed(f"d/{number}", b"x")
    store.lie()
    world = Namespace(store)
    d = await world.find("d")
    for number in range(5):
        node = await world.find(f"d/{number}")
        assert not await world.finder.empty(d)
        world.tree.removed(node)
    assert await world.finder.empty(d)


async def test_answer_that_was_on_its_way_while_a_file_was_published_does_not_hide_it() -> None:
    store = FakeStore()
    world = Namespace(store)
    gate = asyncio.Event()
    store.fail = [Fault("LIST f", gate=gate, after=True)]
    asking = asyncio.ensure_future(world.finder.lookup(world.root, b"f"))
    await asyncio.sleep(0.01)
    node = world.tree.create("f", False)
    world.tree.published(node, store.seed("f", b"new"))
    gate.set()
    assert await asking is node


async def test_answer_that_was_on_its_way_while_it_was_doubted_is_given_but_not_believed() -> None:
    store = FakeStore()
    store.seed("f", b"old")
    world = Namespace(store)
    node = await world.find("f")
    world.tree.refresh("")
    gate = asyncio.Event()
    store.fail = [Fault("LIST f", gate=gate, after=True)]
    asking = asyncio.ensure_future(world.finder.lookup(world.root, b"f"))
    await asyncio.sleep(0.01)
    world.tree.expire(node)
    gate.set()
    assert await asking is node
    assert not world.tree.fresh(node)
    assert world.tree.known(world.root, b"f") is UNKNOWN
