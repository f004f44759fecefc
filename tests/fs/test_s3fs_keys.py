"""Keys as names: every key has one path, every path one key, and nothing else is shown."""

from __future__ import annotations

import asyncio
import errno

import pytest
from fakestore import FakeStore
from hypothesis import example, given, settings
from hypothesis import strategies as st
from namespace import Namespace

from pyfusekit.fs.s3fs.naming.keys import (
    BESIDE,
    HEAD_MAX,
    MARK,
    MORE,
    NAME_MAX,
    PLAIN,
    escape,
    meaning,
    name_in,
    new_key,
    parent_of,
    path_of,
    splits,
    unescape,
)
from pyfusekit.fs.s3fs.naming.tree import Node
from pyfusekit.fs.s3fs.remote.store import KEY_MAX

PIECES = st.sampled_from(
    [
        "a",
        "b",
        "/",
        "//",
        ".",
        "..",
        "/./",
        MARK,
        f"{MARK}e",
        f"{MARK}f",
        f"{MARK}+",
        "\0",
        "e",
        "f",
        "+",
        "0",
        "-",
        "é",
        "😀",
        "\n",
        "x" * 100,
        "x" * 239,
        "x" * 240,
        "x" * 251,
        "x" * 252,
        "x" * 255,
        "x" * 256,
        MARK * 42,
        MARK * 43,
        "\0" * 63,
        "\0" * 70,
        "é" * 128,
    ]
)
COMPONENTS = st.one_of(
    st.lists(PIECES, max_size=8).map(lambda pieces: "".join(pieces).replace("/", "")),
    st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="/"), max_size=300),
).filter(lambda text: len(text.encode()) <= KEY_MAX - len("d/"))
KEYS = st.lists(PIECES, min_size=1, max_size=8).map("".join).filter(lambda text: 0 < len(text.encode()) <= KEY_MAX)
SMALL_KEYS = st.text(st.sampled_from(["a", "/", ".", MARK, "f", "e", "-"]), min_size=1, max_size=6)


@pytest.mark.parametrize(
    ("component", "name"),
    [
        ("plain", "plain"),
        ("", "␛e"),
        (".", "␛."),
        ("..", "␛.."),
        ("...", "..."),
        ("a\0b", "a␛0b"),
        ("␛", "␛␛"),
        ("␛e", "␛␛e"),
        ("x␛f", "x␛␛f"),
        ("x␛+", "x␛␛+"),
    ],
)
def test_component_is_escaped_so_and_back(component: str, name: str) -> None:
    assert escape(component) == name
    assert unescape(name) == component
    assert name_in("d/", component) == (name.encode(), PLAIN, len(component))
    assert meaning("d/", name.encode()) == (f"d/{component}", PLAIN)


@pytest.mark.parametrize("name", ["", ".", "..", "␛", "a␛", "␛x", "␛...", "a␛e", "␛e␛e", "␛␛␛", "a␛f␛f", "a␛+", "a/b", "n\0"])
def test_name_that_no_key_has_means_nothing(name: str) -> None:
    assert meaning("d/", name.encode()) is None


def test_bytes_that_are_not_utf8_mean_nothing() -> None:
    assert meaning("d/", b"\xff") is None


def test_file_beside_a_directory_has_the_suffix() -> None:
    assert name_in("d/", "a", beside=True) == ("a␛f".encode(), BESIDE, 1)
    assert meaning("d/", "a␛f".encode()) == ("d/a", BESIDE)
    # The component that looks like it is another name.
    assert name_in("d/", "a␛f") == ("a␛␛f".encode(), PLAIN, 3)
    assert meaning("d/", "a␛␛f".encode()) == ("d/a␛f", PLAIN)
    assert meaning("d/", "a␛␛␛f".encode()) == ("d/a␛", BESIDE)


def test_longest_name_is_itself_and_one_more_byte_goes_on_in_a_directory() -> None:
    assert path_of("x" * NAME_MAX) == [b"x" * NAME_MAX]
    assert path_of("x" * 256) == [b"x" * HEAD_MAX + "␛+".encode(), b"x" * 16]
    assert meaning("d/", b"x" * HEAD_MAX + "␛+".encode()) == ("d/" + "x" * HEAD_MAX, MORE)
    assert meaning("d/" + "x" * HEAD_MAX, b"x" * 16) == ("d/" + "x" * 256, PLAIN)
    # What needs no continuation is not in it.
    assert meaning("d/" + "x" * HEAD_MAX, b"x" * 15) is None


def test_continuation_splits_no_character_and_no_escape() -> None:
    assert path_of("é" * 128) == ["é".encode() * 120 + "␛+".encode(), "é".encode() * 8]
    heads = path_of("x" * 238 + "␛" * 10)
    assert heads[0] == b"x" * 238 + "␛+".encode()
    assert heads[1] == "␛␛".encode() * 10


def test_name_of_a_continuation_must_be_as_long_as_it_can_be() -> None:
    assert meaning("d/", b"x" * 239 + "␛+".encode()) == ("d/" + "x" * 239, MORE)  # "é" may follow
    assert meaning("d/", b"x" * 234 + "␛+".encode()) is None
    assert meaning("d/", b"x" * 241 + "␛+".encode()) is None


@given(COMPONENTS, st.booleans())
@settings(max_examples=200, deadline=None)
@example("x" * 252, True)
@example(MARK * 41 + "xxxxxx", True)
@example("", True)
@example("." * 256, False)
def test_path_leads_back_to_the_component(component: str, beside: bool) -> None:
    names = path_of(component, beside)
    places = splits(component, beside)
    assert all(len(name) <= NAME_MAX and b"/" not in name and b"\0" not in name for name in names)
    assert not {b"", b".", b".."} & set(names)
    assert len(names) == len(places) + 1
    directory = "d/"
    for name, place in zip(names, places, strict=False):
        assert name_in(directory, component, beside) == (name, MORE, place)
        found = meaning(directory, name)
        assert found == (f"d/{component[:place]}", MORE)
        assert parent_of(found.key, True) == directory
        directory = found.key
    assert meaning(directory, names[-1]) == (f"d/{component}", BESIDE if beside else PLAIN)
    assert parent_of(f"d/{component}", False, beside) == directory
    if not beside:
        assert parent_of(f"d/{component}/", True) == directory


@given(COMPONENTS, COMPONENTS, st.booleans(), st.booleans())
@settings(max_examples=150, deadline=None)
def test_two_components_never_share_a_path(one: str, other: str, one_beside: bool, other_beside: bool) -> None:
    if (one, one_beside) != (other, other_beside):
        assert path_of(one, one_beside) != path_of(other, other_beside)


NAMES = st.one_of(
    st.lists(st.sampled_from([MARK, "e", "f", "+", "0", ".", "a", "x" * 120, "x" * 235]), max_size=8).map(
        lambda pieces: "".join(pieces).encode()
    ),
    st.binary(max_size=40),
    st.lists(PIECES, max_size=4).map(lambda pieces: "".join(pieces).encode()),
)


@given(NAMES, st.sampled_from(["", "d/", "d/" + "x" * 240, "d/" + "x" * 480]))
@settings(max_examples=250, deadline=None)
def test_every_name_that_means_something_is_the_one_that_is_shown(name: bytes, directory: str) -> None:
    found = meaning(directory, name)
    if found is None:
        return
    base = directory[: directory.rfind("/") + 1]
    component = found.key[len(base) :]
    if found.kind == MORE:
        component += MARK * 60
    shown = name_in(directory, component, found.kind == BESIDE)
    assert shown is not None
    assert (shown.name, shown.kind) == (name, found.kind)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        (b"\xff", errno.EILSEQ),
        ("x␛".encode(), errno.EINVAL),
        ("␛x".encode(), errno.EINVAL),
        (b"x" * 240 + "␛+".encode(), errno.EINVAL),
        (b"x" * 256, errno.ENAMETOOLONG),
    ],
)
def test_new_name_that_no_key_can_have_is_refused(name: bytes, number: int) -> None:
    with pytest.raises(OSError, match=r".") as info:
        new_key("d/", name, False, True)
    assert info.value.errno == number


def test_new_key_of_more_than_1024_bytes_is_enametoolong() -> None:
    directory = "d" * 200 + "/"
    deep = directory * 5
    assert new_key(deep, b"e" * 19, False, True).key == deep + "e" * 19
    for name, is_dir in ((b"e" * 20, False), (b"e" * 19, True)):
        with pytest.raises(OSError, match="1024") as info:
            new_key(deep, name, is_dir, True)
        assert info.value.errno == errno.ENAMETOOLONG


def test_new_names_where_nothing_is_escaped_are_keys_as_they_stand() -> None:
    assert new_key("d/", "␛x".encode(), True, False).key == "d/␛x/"
    assert new_key("d/", "␛e".encode(), False, False).key == "d/␛e"


def test_file_with_an_empty_name_is_the_marker_of_its_directory() -> None:
    assert new_key("d/", "␛e".encode(), False, True).key == "d/"
    assert new_key("d/", "␛e".encode(), True, True).key == "d//"
    with pytest.raises(OSError, match="no key's name"):
        new_key("", "␛e".encode(), False, True)


# Whole buckets.


async def shown(store: FakeStore) -> None:
    """Crawl a bucket, and hold what is seen to what is there."""
    world = Namespace(store)
    found = await world.crawl()
    files = {path: node for path, node in found.items() if not node.is_dir}
    seen = [node.key for node in files.values()]
    assert len(seen) == len(set(seen)), "a key is shown twice"
    expected = {key for key in store.objects if not key.endswith("/") or store.objects[key].data}
    assert set(seen) == expected
    for path, node in found.items():
        assert world.tree.name_of(node).decode() == path.rstrip("/").rpartition("/")[2]
        if not node.is_dir:
            assert node.item == store.objects[node.key].item
        # Who never listed anything finds the same by its path.
        other = Namespace(store)
        looked_up = await other.find(path.rstrip("/"))
        assert (looked_up.key, looked_up.is_dir, looked_up.ino) == (node.key, node.is_dir, node.ino)
        assert other.tree.parent_key(looked_up) == world.tree.parent_key(node)
        # And by the listings.
        known = world.tree.known(parent(world, found, path), path.rstrip("/").rpartition("/")[2].encode())
        assert known is node
    for path, node in found.items():
        assert not node.is_dir or any(key.startswith(node.key) for key in store.objects), f"{path!r} has no keys"


def parent(world: Namespace, found: dict[str, Node], path: str) -> Node:
    above = path.rstrip("/").rpartition("/")[0]
    return found[f"{above}/"] if above else world.root


@given(st.sets(st.one_of(KEYS, SMALL_KEYS), min_size=1, max_size=7), st.integers(1, 4), st.sets(st.integers(0, 6)))
@settings(max_examples=80, deadline=None)
@example({"a", "a/", "a/b", "a//b", "a//", "a-"}, 1, {1, 3})
@example({"x" * 252, "x" * 252 + "/y", "x" * 256, "x" * 240, "x" * 240 + "/z"}, 2, set())
@example({"a/", "a//c"}, 1, {0})
@example({"/", "//", "///a", ".", "..", "./..", MARK, f"a{MARK}f", "a", "a/b"}, 2, {0, 1})
def test_every_key_of_a_bucket_is_one_file_and_looked_up_by_its_path(keys: set[str], page_size: int, full: set[int]) -> None:
    store = FakeStore(page_size)
    for number, key in enumerate(sorted(keys)):
        store.seed(key, key.encode() if number in full or not key.endswith("/") else b"")
    asyncio.run(shown(store))
