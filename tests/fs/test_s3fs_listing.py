"""Pages made into names, and pages remembered for lookups."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyfusekit.fs.s3fs.naming import listing
from pyfusekit.fs.s3fs.naming.listing import Life, Listing, Memory, Row, Span, clean
from pyfusekit.fs.s3fs.remote.store import Object, Page


def obj(key: str, size: int = 1) -> Object:
    return Object(key, size, 0, "e" * 32)


def refuse(key: str, why: str) -> None:
    raise AssertionError(f"{key!r} is hidden: {why}")


def taken(directory: str, *pages: Page, mode: str = "escape") -> list[Row]:
    made = Listing(directory, mode, refuse)
    return [row for page in pages for row in made.take(clean(page, directory))]


def test_page_becomes_names_with_what_nodes_need() -> None:
    rows = taken("d/", Page([obj("d/", 0), obj("d/a"), obj("d/b"), obj("d/c")], ["d/a/", "d/x/"], ""))
    assert rows == [
        (b"a", "d/a/", None, True, False),
        (b"x", "d/x/", None, True, False),
        ("a␛f".encode(), "d/a", obj("d/a"), False, True),
        (b"b", "d/b", obj("d/b"), False, False),
        (b"c", "d/c", obj("d/c"), False, False),
    ]


def test_object_waits_for_the_page_that_may_have_its_directory() -> None:
    made = Listing("", "escape", refuse)
    assert [row.name for row in made.take(Page([obj("a"), obj("a-1"), obj("a-2")], [], "1"))] == [b"a-1"]
    assert [row.name for row in made.take(Page([obj("a-3"), obj("a.")], [], "2"))] == [b"a-2", b"a-3"]
    rows = made.take(Page([obj("b")], ["a/"], "3"))
    assert [row.name for row in rows] == [b"a", "a␛f".encode(), b"a."]
    assert [row.name for row in made.take(Page([], ["b/"], ""))] == [b"b", "b␛f".encode()]


def test_objects_that_wait_come_at_the_end() -> None:
    assert [row.name for row in taken("", Page([obj("a")], [], "1"), Page([], [], ""))] == [b"a"]


def test_what_is_not_in_the_directory_is_left_out() -> None:
    page = Page([obj("c"), obj("d/x"), obj("d/y/z"), obj("d/m/")], ["e/", "d/", "d/p/q/"], "t")
    assert clean(page, "d/") == Page([obj("d/x")], ["d/m/", "d/p/", "d/y/"], "t")
    good = Page([obj("d/x")], ["d/y/"], "")
    assert clean(good, "d/") is good


@pytest.mark.parametrize("prefixes", [["d/y"], ["d/a/b/", "d/y"], ["d/", "d/a/b/"]])
def test_prefix_that_is_none_is_not_believed(prefixes: list[str]) -> None:
    cleaned = clean(Page([], prefixes, ""), "d/")
    assert set(cleaned.prefixes) <= {"d/a/"}


NAMES = st.text(st.sampled_from(["a", "b", "-", "0", "/"]), min_size=1, max_size=4)


@given(st.sets(NAMES, max_size=12), st.sets(NAMES, max_size=4), st.lists(st.integers(0, 11), max_size=4), st.booleans())
@settings(max_examples=150, deadline=None)
def test_remembered_pages_say_what_the_store_has_or_nothing(
    keys: set[str], asked: set[str], cuts: list[int], backwards: bool
) -> None:
    rows = sorted({key if "/" not in key else key[: key.index("/") + 1] for key in keys})
    ends = sorted({min(cut, len(rows)) for cut in cuts} | {len(rows)})
    memory = Memory()
    spans: list[tuple[str, Page]] = []
    start = 0
    for end in ends:
        part = rows[start:end]
        if part or end == len(rows):
            page = Page([obj(key) for key in part if key[-1] != "/"], [key for key in part if key[-1] == "/"], "more")
            spans.append((rows[start - 1] if start else "", page._replace(token="" if end == len(rows) else "more")))
        start = end
    for after, page in reversed(spans) if backwards else spans[:-1]:
        memory.add("", Span(after, page, 0.0, Life(float("inf"))), 0.0)
    for name in (asked | {row.rstrip("/") for row in rows}) - {""}:
        said = memory.find("", name) if "/" not in name else None
        if said is not None:
            assert (said.item is not None) == (name in rows)
            assert said.below == (f"{name}/" in rows)
        elif "/" not in name and backwards:
            raise AssertionError(f"{name!r} is not remembered")


def spanning(*keys: str, after: str = "", token: str = "", asked: float = 0.0, expires: float = 100.0) -> Span:
    return Span(after, Page([obj(key) for key in keys], [], token), asked, Life(expires))


def test_newer_page_takes_the_place_of_what_it_overlaps() -> None:
    memory = Memory()
    memory.add("", spanning("a", "b", token="t"), 0.0)
    memory.add("", spanning("c", "d", after="b", token="t"), 0.0)
    memory.add("", spanning("e", after="d"), 0.0)
    memory.add("", spanning("b2", "c2", after="b1", token="t"), 0.0)
    assert memory.rows() == 5  # without "c" and "d"
    for name, there in (("b2", True), ("e", True), ("b3", False)):
        said = memory.find("", name)
        assert said is not None
        assert (said.item is not None) == there
    assert memory.find("", "a") is not None
    assert memory.find("", "d") is None


def test_unsorted_page_is_not_remembered() -> None:
    memory = Memory()
    memory.add("", spanning("b", "a"), 0.0)
    memory.add("", spanning("a", "b", after="b"), 0.0)
    assert memory.rows() == 0


def test_old_pages_and_too_many_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "MAX_ROWS", 10)
    memory = Memory()
    memory.add("old/", spanning("old/a", expires=5.0), 0.0)
    memory.add("one/", spanning("one/a", "one/b", "one/c"), 6.0)
    assert memory.find("old/", "old/a") is None
    memory.add("two/", spanning("two/a", "two/b", "two/c", token="t"), 6.0)
    memory.add("two/", spanning("two/d", "two/e", "two/f", after="two/c"), 6.0)
    assert memory.find("one/", "one/a") is None
    assert memory.find("two/", "two/a") is not None
    memory.add("two/", spanning("two/x", "two/y", "two/z", after="two/w", asked=7.0), 6.0)
    assert memory.rows() <= 10


def test_page_whose_objects_nodes_have_is_light_and_still_knows_what_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "MAX_ROWS", 13)
    memory = Memory()
    spans = [spanning(*(f"{name}{n}" for n in range(8)), after=before, token="t") for before, name in (("", "a"), ("a7", "b"))]
    for span in spans:
        memory.add("", span, 0.0)
        memory.lean(span)
    assert memory.find("", "a3") is None
    said = memory.find("", "a33")
    assert said is not None
    assert said.item is None
    memory.forget_old("", 1.0)
    assert memory.rows() == 0


def test_many_pages_are_packed_and_still_know_their_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "MAX_ROWS", 40)
    monkeypatch.setattr(listing, "LOOSE_ROWS", 16)
    memory = Memory()
    names = [f"{page:02}{n}" for page in range(10) for n in range(8)]
    for page in range(10):
        before = names[8 * page - 1] if page else ""
        memory.add("", spanning(*names[8 * page : 8 * page + 8], after=before, token="t" if page < 9 else ""), 0.0)
    assert memory.rows() == 80
    for name in names:
        said = memory.find("", name)
        assert said is not None
        assert said.item == obj(name)
    assert [item for _, item in memory.behind("", "003", 3)] == [obj("004"), obj("005"), obj("006")]


def test_page_of_plain_names_is_not_looked_at_name_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Listing, "_row", None)
    page = Page([obj(f"dir/name-{number:05}.dat") for number in range(1000)], ["dir/sub/"], "more")
    assert len(taken("dir/", page)) == 1001
