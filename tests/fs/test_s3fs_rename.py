"""Renames: whole under one name in the end, whatever fails, whoever else writes, wherever the server is killed."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fakestore import FakeStore, Fault, busy, denied, lost

from pyfusekit.fs.s3fs.deferred import rename
from pyfusekit.fs.s3fs.deferred.journal import Journal
from pyfusekit.fs.s3fs.deferred.rename import rename_file, rename_tree, resume
from pyfusekit.fs.s3fs.remote.store import ABSENT, ANYWAY, Attributes, Condition, Features, Object
from pyfusekit.fs.s3fs.writing import copying
from pyfusekit.fs.s3fs.writing.copying import copy_object, delete_exactly


@pytest.fixture
def store() -> FakeStore:
    return FakeStore(page_size=100)


@pytest.fixture
def home(tmp_path: Path) -> str:
    return str(tmp_path / "journal")


@pytest.fixture
async def journal(home: str) -> AsyncIterator[Journal]:
    opened = Journal(home)
    await opened.open()
    yield opened
    await opened.close()
    assert os.listdir(home) == ["lock"], "something was left in the journal"


async def resume_all(home: str, store: FakeStore) -> list[str]:
    """Finish what dead servers left, as the next mount does; return what it was."""
    journal = Journal(home)
    records = await journal.open()
    for record in records:
        if record.kind != "upload":
            await resume(store, journal, record)
        else:
            await journal.done(record)
    await journal.close()
    return [record.kind for record in records]


def tree(store: FakeStore, prefix: str) -> dict[str, bytes]:
    return {key[len(prefix) :]: stored.data for key, stored in store.objects.items() if key.startswith(prefix)}


def fill(store: FakeStore, count: int = 250) -> dict[str, bytes]:
    for n in range(count):
        store.seed(f"a/b/{n:03}", str(n).encode(), metadata={"n": str(n)})
    store.seed("a/b/", b"")
    store.seed("a/b/sub/x", b"x")
    store.seed("a/bc", b"a neighbour")
    return tree(store, "a/b/")


# Files.


@pytest.mark.parametrize("size", [0, 10])
async def test_a_file_is_a_copy_and_a_delete_and_keeps_its_attributes(store: FakeStore, journal: Journal, size: int) -> None:
    source = store.seed("a", b"x" * size, metadata={"mode": "1"}, headers={"content-type": "text/x"})
    made = await rename_file(store, source, "b", ABSENT, journal=journal)
    assert store.calls == ["COPY a b", "DELETE a"]
    assert list(store.objects) == ["b"]
    assert made == store.objects["b"].item
    assert store.objects["b"].metadata == {"mode": "1"}
    assert store.objects["b"].headers == {"content-type": "text/x"}


async def test_a_file_may_get_other_attributes_on_the_way(store: FakeStore) -> None:
    made = await rename_file(store, store.seed("a", b"x"), "b", ANYWAY, Attributes({"mode": "2"}))
    assert store.objects["b"].metadata["mode"] == "2"
    assert made.key == "b"


async def test_noreplace_is_eexist_and_changes_nothing(store: FakeStore, journal: Journal) -> None:
    source, target = store.seed("a", b"ours"), store.seed("b", b"theirs")
    with pytest.raises(FileExistsError):
        await rename_file(store, source, "b", ABSENT, journal=journal)
    assert store.objects["a"].item == source
    assert store.objects["b"].item == target


async def test_a_target_that_changed_meanwhile_is_estale_and_stays(store: FakeStore, journal: Journal) -> None:
    source, target = store.seed("a", b"ours"), store.seed("b", b"old")
    store.put_plain("b", b"newer")
    with pytest.raises(OSError, match="412") as caught:
        await rename_file(store, source, "b", Condition(match=target.etag), journal=journal)
    assert caught.value.errno == errno.ESTALE
    assert (store.data("a"), store.data("b")) == (b"ours", b"newer")


async def test_a_source_that_changed_meanwhile_is_estale_and_stays(store: FakeStore, journal: Journal) -> None:
    source = store.seed("a", b"old")
    store.put_plain("a", b"newer")
    with pytest.raises(OSError, match="412") as caught:
        await rename_file(store, source, "b", ABSENT, journal=journal)
    assert caught.value.errno == errno.ESTALE
    assert list(store.objects) == ["a"]


@pytest.mark.parametrize("etag", ["", "-2"])
@pytest.mark.parametrize("condition", [ABSENT, ANYWAY])
async def test_a_copy_whose_answer_was_lost_is_done(
    store: FakeStore, journal: Journal, etag: str, condition: Condition
) -> None:
    source = store.seed("a", b"data", metadata={"k": "v"})
    if etag:  # As of a multipart upload: the copy's is another.
        source = source._replace(etag=source.etag + etag)
        store.objects["a"] = store.objects["a"]._replace(item=source)
    store.fail.append(Fault("COPY", lost(), after=True))
    await rename_file(store, source, "b", condition, journal=journal)
    assert list(store.objects) == ["b"]
    assert store.objects["b"].metadata["k"] == "v"


async def test_an_update_between_copy_and_delete_is_not_deleted(store: FakeStore, journal: Journal) -> None:
    source = store.seed("a", b"old")
    store.fail.append(Fault("DELETE", do=lambda: store.put_plain("a", b"newer")))
    await rename_file(store, source, "b", ABSENT, journal=journal)
    assert (store.data("a"), store.data("b")) == (b"newer", b"old")


async def test_servers_without_conditions_are_asked_before(store: FakeStore, journal: Journal) -> None:
    store.does = Features(copy_if=False, delete_if=False)
    store.features = Features(copy_if=False, delete_if=False)
    source, target = store.seed("a", b"ours"), store.seed("b", b"theirs")
    with pytest.raises(FileExistsError):
        await rename_file(store, source, "b", ABSENT, journal=journal)
    with pytest.raises(OSError, match="changed by somebody else"):
        await rename_file(store, source, "b", Condition(match="other"), journal=journal)
    assert await delete_exactly(store, target._replace(etag="other")) is False
    assert (store.data("a"), store.data("b")) == (b"ours", b"theirs")
    await rename_file(store, source, "b", Condition(match=target.etag), journal=journal)
    assert tree(store, "") == {"b": b"ours"}


async def test_an_old_name_that_may_not_be_removed_undoes_the_rename(store: FakeStore, journal: Journal) -> None:
    source = store.seed("a", b"data")
    store.fail.append(Fault("DELETE a", denied()))
    with pytest.raises(OSError, match="403") as caught:
        await rename_file(store, source, "b", ABSENT, journal=journal)
    assert caught.value.errno == errno.EACCES
    assert list(store.objects) == ["a"]


async def test_where_it_replaced_something_both_names_stay_and_the_error_says_so(store: FakeStore, journal: Journal) -> None:
    source, target = store.seed("a", b"data"), store.seed("b", b"old")
    store.fail.append(Fault("DELETE a", denied()))
    with pytest.raises(OSError, match="old name could not be removed"):
        await rename_file(store, source, "b", Condition(match=target.etag), journal=journal)
    assert (store.data("a"), store.data("b")) == (b"data", b"data")


async def test_conditional_requests_that_met_each_other_are_repeated(store: FakeStore) -> None:
    store.fail.append(Fault("COPY", busy(), times=2))
    await rename_file(store, store.seed("a", b"data"), "b", ABSENT)
    assert list(store.objects) == ["b"]


@pytest.mark.parametrize("inside", [True, False])
async def test_what_is_too_large_for_a_copy_goes_in_parts(
    store: FakeStore, journal: Journal, monkeypatch: pytest.MonkeyPatch, inside: bool
) -> None:
    for name, value in {"MAX_PART": 100, "COPY_PART": 64, "THROUGH": 48}.items():
        monkeypatch.setattr(copying, name, value)
    store.min_part = 1
    store.does.copy_part = inside
    data = os.urandom(1000)
    source = store.seed("a", data, metadata={"mode": "1"}, headers={"content-type": "text/x"})
    store.objects["a"] = store.objects["a"]._replace(tags={"colour": "red"})
    monkeypatch.setattr(FakeStore, "head", tagged(FakeStore.head))
    await rename_file(store, source, "b", ABSENT, journal=journal)
    assert list(store.objects) == ["b"]
    made = store.objects["b"]
    assert (made.data, made.metadata["mode"], made.headers["content-type"]) == (data, "1", "text/x")
    assert made.tags == {"colour": "red"}
    assert store.uploading == {}
    assert store.count("COPY_PART") == (16 if inside else store.count("COPY_PART"))
    assert store.features.copy_part is inside


def tagged(head):  # type: ignore[no-untyped-def]
    async def with_count(self, key):  # type: ignore[no-untyped-def]
        found = await head(self, key)
        return found._replace(headers={**found.headers, "x-amz-tagging-count": str(len(self.objects[key].tags))})

    return with_count


@pytest.mark.parametrize("word", ["COPY_PART", "COMPLETE"])
async def test_a_copy_in_parts_that_fails_leaves_no_upload(
    store: FakeStore, journal: Journal, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    monkeypatch.setattr(copying, "MAX_PART", 100)
    monkeypatch.setattr(copying, "COPY_PART", 64)
    store.min_part = 1
    source = store.seed("a", bytes(1000))
    store.fail.append(Fault(word, denied()))
    with pytest.raises(OSError, match="403"):
        await rename_file(store, source, "b", ABSENT, journal=journal)
    assert store.uploading == {}
    assert list(store.objects) == ["a"]


async def test_a_copy_in_parts_whose_end_was_not_heard_is_done(
    store: FakeStore, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "MAX_PART", 100)
    monkeypatch.setattr(copying, "COPY_PART", 64)
    store.min_part = 1
    source = store.seed("a", bytes(1000))
    store.fail.append(Fault("COMPLETE", lost(), after=True))
    await rename_file(store, source, "b", ABSENT, journal=journal)
    assert list(store.objects) == ["b"]


async def test_a_server_with_a_smaller_limit_gets_parts(store: FakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = denied()
    refused.code, refused.errno = "EntityTooLarge", errno.EINVAL
    store.fail.append(Fault("COPY a", refused))
    data = os.urandom(6 << 20)
    made = await copy_object(store, store.seed("a", data), "b", None, ABSENT)
    assert store.data("b") == data
    assert made.etag.endswith("-1")


# Trees.


async def test_a_tree_moves_whole_and_says_what_became_of_each_key(store: FakeStore, journal: Journal) -> None:
    whole = fill(store)
    seen: list[tuple[int, int]] = []
    made = await rename_tree(store, journal, "a/b/", "z/", lambda done, total: seen.append((done, total)))
    assert tree(store, "z/") == whole
    assert tree(store, "a/") == {"bc": b"a neighbour"}
    assert made == {f"a/b/{rest}": store.objects[f"z/{rest}"].item for rest in whole}
    assert store.objects["z/007"].metadata == {"n": "7"}
    assert seen[-1] == (252, 252)
    assert store.busiest["COPY"] == rename.PARALLEL
    assert store.count("LISTALL") == 6


async def test_what_a_listing_does_not_show_yet_is_moved_too(store: FakeStore, journal: Journal) -> None:
    fill(store, 3)
    store.lie()
    store.seed("a/b/new", b"just published")
    store.seed("a/b/001", b"another version")
    whole = tree(store, "a/b/")
    published = {f"a/b/{name}": store.objects[f"a/b/{name}"].item.etag for name in ("new", "001", "002")}
    made = await rename_tree(store, journal, "a/b/", "z/", published={**published, "a/b/gone": "e", "a/b/no-marker/": ""})
    assert tree(store, "z/") == whole
    assert tree(store, "a/") == {"bc": b"a neighbour"}
    assert made == {f"a/b/{rest}": store.objects[f"z/{rest}"].item for rest in whole}


async def test_without_conditional_deletes_the_old_names_go_a_page_at_a_time(store: FakeStore, journal: Journal) -> None:
    store.does.delete_if = store.features.delete_if = False
    whole = fill(store)
    await rename_tree(store, journal, "a/b/", "z/")
    assert tree(store, "z/") == whole
    assert tree(store, "a/") == {"bc": b"a neighbour"}
    assert store.count("DELETE_MANY") == 3 + 1, "the marker goes last"
    assert store.count("DELETE ") == 0


async def test_nothing_there_is_enoent(store: FakeStore, journal: Journal) -> None:
    with pytest.raises(FileNotFoundError):
        await rename_tree(store, journal, "a/b/", "z/")


async def test_a_marker_of_the_empty_target_is_replaced(store: FakeStore, journal: Journal) -> None:
    whole = fill(store, 3)
    store.seed("z/", b"", metadata={"mode": "old"})
    await rename_tree(store, journal, "a/b/", "z/")
    assert tree(store, "z/") == whole


@pytest.mark.parametrize("pattern", ["COPY a/b/200 ", "LISTALL a/b/ a/b/0"])
async def test_a_copy_that_fails_undoes_the_rename(store: FakeStore, journal: Journal, pattern: str) -> None:
    whole = fill(store)
    store.seed("z/", b"")
    store.fail.append(Fault(pattern, denied()))
    with pytest.raises(OSError, match="403") as caught:
        await rename_tree(store, journal, "a/b/", "z/")
    assert caught.value.errno == errno.EACCES
    assert tree(store, "a/b/") == whole
    assert set(tree(store, "z/")) <= {""}, "the marker of the target may stay, nothing else"
    assert "z/" in store.objects


async def test_something_in_the_way_is_enotempty_and_stays(store: FakeStore, journal: Journal) -> None:
    whole = fill(store)
    store.seed("z/100", b"theirs")
    with pytest.raises(OSError, match="z/100") as caught:
        await rename_tree(store, journal, "a/b/", "z/")
    assert caught.value.errno == errno.ENOTEMPTY
    assert tree(store, "a/b/") == whole
    assert tree(store, "z/") == {"100": b"theirs"}


async def test_a_key_that_would_be_too_long_is_enametoolong_before_anything_is_lost(store: FakeStore, journal: Journal) -> None:
    store.seed("a/" + "x" * 1000, b"x")
    with pytest.raises(OSError, match="longer than") as caught:
        await rename_tree(store, journal, "a/", "z" * 100 + "/")
    assert caught.value.errno == errno.ENAMETOOLONG
    assert len(store.objects) == 1


async def test_cancelled_while_copying_it_is_undone(store: FakeStore, journal: Journal) -> None:
    whole = fill(store)
    store.fail.append(Fault("COPY a/b/150 ", gate=asyncio.Event()))
    renaming = asyncio.ensure_future(rename_tree(store, journal, "a/b/", "z/"))
    while store.count("COPY a/b/150 ") < 1:  # noqa: ASYNC110
        await asyncio.sleep(0)
    renaming.cancel()
    with pytest.raises(asyncio.CancelledError):
        await renaming
    await asyncio.wait(journal._tasks)
    assert tree(store, "a/b/") == whole
    assert tree(store, "z/") == {}


async def test_cancelled_while_deleting_it_is_done(store: FakeStore, journal: Journal) -> None:
    whole = fill(store)
    gate = asyncio.Event()
    store.fail.append(Fault("DELETE a/b/150", gate=gate))
    renaming = asyncio.ensure_future(rename_tree(store, journal, "a/b/", "z/"))
    while store.count("DELETE a/b/150") < 1:  # noqa: ASYNC110
        await asyncio.sleep(0)
    renaming.cancel()
    await asyncio.sleep(0)
    gate.set()
    assert len(await renaming) == len(whole)
    assert tree(store, "z/") == whole
    assert tree(store, "a/b/") == {}


async def test_answers_that_were_lost_are_found_out(store: FakeStore, journal: Journal) -> None:
    whole = fill(store)
    store.fail += [Fault("COPY a/b/.*7 ", lost(), after=True, times=20), Fault("DELETE a/b/.*3", lost(), after=True, times=1)]
    store.fail[1].error = None
    await rename_tree(store, journal, "a/b/", "z/")
    assert tree(store, "z/") == whole
    assert tree(store, "a/b/") == {}


async def test_an_update_while_it_is_copied_is_moved_too(store: FakeStore, journal: Journal) -> None:
    fill(store)
    store.fail += [
        Fault("COPY a/b/150 ", do=lambda: store.put_plain("a/b/150", b"newer")),
        Fault("COPY a/b/151 ", do=lambda: store.objects.pop("a/b/000")),
        Fault("COPY a/b/152 ", do=lambda: (store._remove("a/b/152"), None)[1]),
        Fault("DELETE a/b/010", do=lambda: (store.put_plain("a/b/011", b"newest"), store.put_plain("a/b/new", b"1"))),
    ]
    await rename_tree(store, journal, "a/b/", "z/")
    moved = tree(store, "z/")
    assert moved["150"] == b"newer"
    assert moved["011"] == b"newest"
    assert moved["new"] == b"1"
    assert "152" not in moved
    assert tree(store, "a/b/") == {}


async def test_old_names_that_may_not_be_removed_undo_the_rename(store: FakeStore, journal: Journal) -> None:
    whole = fill(store)
    store.fail.append(Fault("DELETE a/b/", denied(), times=1000))
    with pytest.raises(OSError, match="403"):
        await rename_tree(store, journal, "a/b/", "z/")
    assert tree(store, "a/b/") == whole
    assert tree(store, "z/") == {}


async def test_some_old_names_that_stay_are_said_and_removed_by_the_next_mount(
    store: FakeStore, home: str, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(home)
    await journal.open()
    whole = fill(store)
    store.fail.append(Fault("DELETE a/b/1", denied(), times=1000))
    with pytest.raises(OSError, match="100 objects of 'a/b/' could not be removed after they were copied") as caught:
        await rename_tree(store, journal, "a/b/", "z/")
    assert caught.value.errno == errno.EACCES
    assert tree(store, "z/") == whole
    await journal.close()
    store.fail.clear()
    store.put_plain("a/b/105", b"of somebody else")
    assert await resume_all(home, store) == ["tree"]
    assert tree(store, "a/b/") == {}
    assert tree(store, "z/") == {**whole, "105": b"of somebody else"}
    assert os.listdir(home) == ["lock"]


async def test_copies_that_cannot_be_removed_again_are_removed_by_the_next_mount(
    store: FakeStore, home: str, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(home)
    await journal.open()
    whole = fill(store)
    store.fail += [Fault("COPY a/b/200 ", denied()), Fault("DELETE z/", denied(), times=1000)]
    with caplog.at_level(logging.ERROR), pytest.raises(OSError, match="403"):
        await rename_tree(store, journal, "a/b/", "z/")
    assert "the next mount tries again" in caplog.text
    await journal.close()
    store.fail.clear()
    assert await resume_all(home, store) == ["tree"]
    assert tree(store, "a/b/") == whole
    assert tree(store, "z/") == {}


# Crashes.


async def kill(journal: Journal, task: asyncio.Task[object]) -> None:
    """End as kill -9 does: nothing that would be done at a cancellation is."""
    assert journal._own is not None
    await journal._own.idle()
    journal._own.abandon()
    journal._own._write = lambda batch: [setattr(entry, "error", OSError(errno.EIO, "dead")) for entry in batch]  # type: ignore
    for _ in range(2):  # What it does when it is cancelled, too.
        tasks = [task, *journal._tasks]
        for one in tasks:
            one.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    journal._own = None
    journal._threads.shutdown()


class Dead(Exception):
    """The server is dead: no request of it comes through."""


@pytest.mark.parametrize("at", [0, 1, 5, 40, 130, 252, 253, 254, 256, 258, 300, 450, 500, 505, 506, 507])
async def test_a_tree_is_whole_under_one_name_wherever_the_server_dies(
    store: FakeStore, home: str, at: int, caplog: pytest.LogCaptureFixture
) -> None:
    whole = fill(store)
    journal = Journal(home)
    await journal.open()
    alive = Mortal(store, at)
    with caplog.at_level(logging.CRITICAL):
        task = asyncio.ensure_future(rename_tree(alive, journal, "a/b/", "z/"))  # type: ignore[arg-type]
        await asyncio.wait([task, asyncio.ensure_future(alive.died.wait())], return_when=asyncio.FIRST_COMPLETED)
        await kill(journal, task)
    assert {**tree(store, "a/b/"), **tree(store, "z/")} == whole
    await resume_all(home, store)
    old, new = tree(store, "a/b/"), tree(store, "z/")
    assert (old, new) in ((whole, {}), ({}, whole)), (len(old), len(new))
    assert store.data("a/bc") == b"a neighbour"
    assert await resume_all(home, store) == []


async def test_a_tree_that_cannot_be_finished_after_the_crash_is_undone(
    store: FakeStore, home: str, caplog: pytest.LogCaptureFixture
) -> None:
    whole = fill(store)
    journal = Journal(home)
    await journal.open()
    alive = Mortal(store, 120)
    task = asyncio.ensure_future(rename_tree(alive, journal, "a/b/", "z/"))  # type: ignore[arg-type]
    await alive.died.wait()
    await kill(journal, task)
    assert tree(store, "z/")
    # Also what was copied without the dead server's knowing it.
    store.fail += [Fault("COPY a/b/2", denied()), Fault("LISTALL a/b/ a", gate=asyncio.Event(), error=denied())]
    store.fail[1].gate.set()  # type: ignore[union-attr]
    with caplog.at_level(logging.WARNING):
        assert await resume_all(home, store) == ["tree"]
    assert "is undone" in caplog.text
    assert tree(store, "a/b/") == whole
    assert tree(store, "z/") == {}
    store.fail.clear()
    assert await resume_all(home, store) == []


@pytest.mark.parametrize("at", range(4))
async def test_a_file_is_under_one_name_wherever_the_server_dies(store: FakeStore, home: str, at: int) -> None:
    source = store.seed("a", b"data")
    journal = Journal(home)
    await journal.open()
    alive = Mortal(store, at)
    task = asyncio.ensure_future(rename_file(alive, source, "b", ABSENT, journal=journal))  # type: ignore[arg-type]
    await asyncio.wait([task, asyncio.ensure_future(alive.died.wait())], return_when=asyncio.FIRST_COMPLETED)
    await kill(journal, task)
    await resume_all(home, store)
    assert list(store.objects) in (["a"], ["b"])
    assert await resume_all(home, store) == []


class Mortal:
    """A store for a server that dies: the call number *at* is done, but neither it nor any other is ever answered again."""

    def __init__(self, store: FakeStore, at: int) -> None:
        self.store = store
        self.left = at
        self.died = asyncio.Event()
        self.features = store.features

    def __getattr__(self, name: str) -> object:
        call = getattr(self.store, name)

        async def mortal(*args: object, **kwargs: object) -> object:
            self.left -= 1
            if self.left < -1:
                await asyncio.Event().wait()
            found = await call(*args, **kwargs)
            if self.left < 0:
                self.died.set()
                await asyncio.Event().wait()
            return found

        return mortal


def test_objects_are_json(store: FakeStore) -> None:
    """The journal writes them as lists."""
    item = store.seed("a", b"x")
    assert Object(*list(item)) == item
