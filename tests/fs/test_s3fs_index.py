"""The index: one HEAD a version, ever, and never an answer about another version."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from pyfusekit.fs.s3fs.metadata.index import Entry, Index
from pyfusekit.fs.s3fs.remote.store import Head, Object

SECOND = 10**9
METADATA = {"mode": "33188", "foreign": "é"}
HEADERS = {"content-type": "text/plain"}


def version(key: str = "a", etag: str = "e1", second: int = 1_700_000_000, fraction: int = 0) -> Object:
    """Return a version."""
    return Object(key, 3, second * SECOND + fraction, etag)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "made" / "index")


@pytest.fixture
async def index(path: str) -> AsyncIterator[Index]:
    index = Index(path)
    await index.open()
    yield index
    await index.close()


async def again(path: str, items: list[Object]) -> dict[str, Entry]:
    """Return what another mount finds."""
    other = Index(path)
    await other.open()
    found = await other.page(items)
    await other.close()
    return found


async def test_version_that_was_seen_is_known_before_and_after_it_is_written(index: Index) -> None:
    index.put(version(), METADATA, HEADERS)
    expected = {"a": Entry(METADATA, HEADERS)}
    assert await index.page([version()]) == expected
    await index.flush()
    assert await index.page([version(), version("b")]) == expected


async def test_what_was_seen_outlives_the_mount(path: str, index: Index) -> None:
    index.put_head(Head(version(), METADATA, HEADERS))
    await index.close()
    assert await again(path, [version()]) == {"a": Entry(METADATA, HEADERS)}


@pytest.mark.parametrize("written", [False, True])
@pytest.mark.parametrize("other", [version(etag="e2"), version(second=1_700_000_001), version(etag=""), version("A")])
async def test_another_version_is_not_known(index: Index, written: bool, other: Object) -> None:
    index.put(version(), METADATA, HEADERS)
    if written:
        await index.flush()
    assert await index.page([other]) == {}


async def test_fraction_of_a_second_that_only_listings_have_does_not_matter(index: Index) -> None:
    index.put(version(), METADATA, HEADERS)
    await index.flush()
    assert list(await index.page([version(fraction=123_000_000)])) == ["a"]


async def test_newer_version_takes_the_place_of_the_older(index: Index) -> None:
    index.put(version(), METADATA, HEADERS)
    await index.flush()
    index.put(version(etag="e2"), {}, {})
    assert await index.page([version(etag="e2")]) == {"a": Entry({}, {})}
    await index.flush()
    assert await index.page([version()]) == {}
    assert await index.page([version(etag="e2")]) == {"a": Entry({}, {})}


async def test_version_as_young_as_its_head_is_not_kept(index: Index) -> None:
    item = version()
    for asked, kept in ((1_999_999_999, False), (2 * SECOND, True)):
        index.put(item, METADATA, HEADERS, asked_ns=item.mtime_ns + asked)
        assert bool(await index.page([item])) is kept


async def test_clock_of_the_server_is_believed_more_than_ours(index: Index) -> None:
    item = version()
    index.put(item, METADATA, {"date": "Tue, 14 Nov 2023 22:13:21 GMT"})
    assert await index.page([item]) == {}
    index.put(item, METADATA, {"date": "Tue, 14 Nov 2023 22:13:22 GMT"}, asked_ns=0)
    assert await index.page([item]) == {"a": Entry(METADATA, {})}
    index.put(version("b"), METADATA, {"date": "soon"})
    assert list(await index.page([version("b")])) == ["b"]


async def test_headers_that_change_without_a_new_version_are_not_kept(index: Index) -> None:
    index.put(version(), {}, HEADERS | {"x-amz-restore": "x", "x-amz-tagging-count": "1", "x-amz-missing-meta": "1"})
    assert await index.page([version()]) == {"a": Entry({}, HEADERS | {"x-amz-missing-meta": "1"})}


async def test_values_no_header_can_have_are_not_kept(index: Index) -> None:
    for value in ("a\nb", "\udcff"):
        index.put(version(), {"x": value}, {})
        assert await index.page([version()]) == {}


async def test_key_that_was_forgotten_is_not_known(index: Index) -> None:
    index.put(version(), METADATA, HEADERS)
    await index.flush()
    index.forget("a")
    assert await index.page([version()]) == {}
    await index.flush()
    assert await index.page([version()]) == {}


async def test_odd_keys_are_told_apart(index: Index) -> None:
    odd = ["", "a\0", "a\0b", "\udcff", "x" * 1024, "é", "a'b", "%"]
    for number, key in enumerate(odd):
        index.put(version(key), {"number": str(number)}, {})
    await index.flush()
    found = await index.page([version(key) for key in odd])
    assert [found[key].metadata["number"] for key in odd] == [str(number) for number in range(len(odd))]


async def test_pages_larger_than_a_statement_are_found_whole(index: Index) -> None:
    items = [version(f"k{number}") for number in range(1203)]
    for item in items:
        index.put(item, METADATA, HEADERS)
    await index.flush()
    assert set(await index.page(items)) == {item.key for item in items}


@pytest.mark.parametrize(("delay", "many"), [(0.01, 1000), (3600, 5)])
async def test_writes_itself_after_a_moment_or_when_there_is_much(
    path: str, index: Index, monkeypatch: pytest.MonkeyPatch, delay: float, many: int
) -> None:
    monkeypatch.setattr("pyfusekit.fs.s3fs.metadata.index._DELAY_S", delay)
    monkeypatch.setattr("pyfusekit.fs.s3fs.metadata.index._MANY", many)
    written = asyncio.Event()
    write = index._write
    loop = asyncio.get_running_loop()

    def note(batch: Mapping[bytes, Any]) -> None:
        write(batch)
        loop.call_soon_threadsafe(written.set)

    monkeypatch.setattr(index, "_write", note)
    items = [version(f"k{number}") for number in range(5)]
    for item in items:
        index.put(item, METADATA, HEADERS)
    await asyncio.wait_for(written.wait(), 10)
    assert len(await again(path, items)) == 5


async def test_two_mounts_share_a_file(path: str, index: Index) -> None:
    other = Index(path)
    await other.open()
    index.put(version("a"), {"who": "one"}, {})
    other.put(version("b"), {"who": "two"}, {})
    await asyncio.gather(index.flush(), other.flush())
    both = [version("a"), version("b")]
    assert await index.page(both) == await other.page(both) == {"a": Entry({"who": "one"}, {}), "b": Entry({"who": "two"}, {})}
    await other.close()


def fill(name: str, data: bytes) -> None:
    """Make a file."""
    Path(name).write_bytes(data)


def damage(path: str) -> None:
    """Write over what SQLite keeps, but its name in the header."""
    with open(f"{path}.v1.1", "r+b") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(100)
        file.write(b"\xa5" * (size - 100))


async def test_file_that_is_broken_is_begun_anew(path: str, index: Index, caplog: pytest.LogCaptureFixture) -> None:
    index.put(version(), METADATA, HEADERS)
    await index.close()
    damage(path)
    other = Index(path)
    with caplog.at_level(logging.WARNING):
        await other.open()
        assert await other.page([version()]) == {}
    assert "another is begun" in caplog.text
    other.put(version(), METADATA, HEADERS)
    await other.close()
    assert os.listdir(os.path.dirname(path)) == ["index.v1.2"]
    assert list(await again(path, [version()])) == ["a"]


async def test_file_that_is_no_database_is_begun_anew(path: str) -> None:
    os.mkdir(os.path.dirname(path))
    fill(f"{path}.v1.1", b"not a database, but long enough to be taken for one" * 100)
    index = Index(path)
    await index.open()
    index.put(version(), METADATA, HEADERS)
    await index.close()
    assert list(await again(path, [version()])) == ["a"]


async def test_file_that_breaks_under_a_mount_is_begun_anew(path: str, index: Index) -> None:
    index.put(version(), METADATA, HEADERS)
    await index.flush()
    other = Index(path)
    await other.open()
    assert other._database is not None
    other._database.execute("pragma wal_checkpoint(truncate)")
    damage(path)
    other._database.execute("pragma schema_version = 99")
    assert await index.page([version()]) == {}
    assert index._file == f"{path}.v1.2"
    index.put(version(), METADATA, HEADERS)
    await index.flush()
    assert list(await index.page([version()])) == ["a"]
    await other.close()


@pytest.mark.parametrize("value", ["", "x", "9\na", "1\na", "-1", "0\na\nb\nc"])
async def test_entry_that_the_disk_changed_is_not_known(index: Index, value: str) -> None:
    index.put(version(), METADATA, HEADERS)
    await index.flush()
    assert index._database is not None
    index._database.execute("update entries set value = ?", (value,))
    assert await index.page([version()]) == {}


async def test_directory_that_cannot_be_made_means_that_nothing_is_remembered(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    index = Index(str(tmp_path / "file" / "index"))
    await index.open()
    index.put(version(), METADATA, HEADERS)
    await index.flush()
    assert await index.page([version()]) == {}
    await index.close()


async def test_database_that_is_locked_means_that_nothing_is_written(
    path: str, index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert index._database is not None
    index._database.execute("pragma busy_timeout = 1")
    lock = sqlite3.connect(f"{path}.v1.1", isolation_level=None)
    lock.execute("begin immediate")
    index.put(version(), METADATA, HEADERS)
    await index.flush()
    assert await index.page([version()]) == {}
    lock.execute("rollback")
    lock.close()
    index.put(version(), METADATA, HEADERS)
    await index.flush()
    assert list(await index.page([version()])) == ["a"]


async def test_disk_that_is_full_is_forgotten_when_there_is_room_again(index: Index) -> None:
    assert index._database is not None
    # SQLite then answers as it does for ENOSPC: SQLITE_FULL, in the middle of a transaction.
    index._database.execute("pragma max_page_count = 10")
    items = [version(f"k{number}") for number in range(1000)]
    for _ in range(2):
        for item in items:
            index.put(item, METADATA, HEADERS)
        await index.flush()
        assert await index.page(items) == {}
    index._database.execute("pragma max_page_count = 1000000")
    index.put(version(), METADATA, HEADERS)
    await index.flush()
    assert list(await index.page([version()])) == ["a"]


async def test_write_that_failed_half_way_does_not_stand_in_the_way_of_the_next(index: Index) -> None:
    assert index._database is not None
    index._database.execute("alter table entries rename to away")
    index.put(version(), METADATA, HEADERS)
    await index.flush()
    assert not index._database.in_transaction
    index._database.execute("alter table away rename to entries")
    index.put(version(), METADATA, HEADERS)
    await index.flush()
    assert list(await index.page([version()])) == ["a"]


async def test_file_stays_within_its_limit_and_the_oldest_go(path: str) -> None:
    index = Index(path, limit=200_000)
    await index.open()
    for start in range(0, 5000, 250):
        for number in range(start, start + 250):
            index.put(version(f"k{number}"), {"filling": "x" * 100}, {})
        await index.flush()
    items = [version(f"k{number}") for number in range(5000)]
    found = await index.page(items)
    assert f"k{4999}" in found
    assert "k0" not in found
    assert 400 < len(found) < 1500
    await index.close()
    assert os.stat(f"{path}.v1.1").st_size < 400_000


async def test_entry_that_is_still_used_is_not_the_first_to_go(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    index.put(version("old"), METADATA, HEADERS)
    index.put(version("new"), METADATA, HEADERS)
    await index.flush()
    assert index._database is not None
    index._database.execute("update entries set written = written - 8 * 86400")
    await index.page([version("old")])
    await index.flush()
    rows = index._database.execute("select written > ? from entries order by id", (time.time() - 60,)).fetchall()
    assert rows == [(0,), (1,)]


async def test_nothing_is_done_before_open_and_after_close(path: str) -> None:
    index = Index(path)
    index.put(version(), METADATA, HEADERS)
    assert await index.page([version()]) == {}
    await index.open()
    await index.open()
    await index.close()
    await index.close()
    index.put(version(), METADATA, HEADERS)
    await index.flush()
    assert await index.page([version()]) == {}


_KILLED = """
import asyncio, sys
from pyfusekit.fs.s3fs.metadata.index import Index
from pyfusekit.fs.s3fs.remote.store import Object

async def main():
    index = Index(sys.argv[1])
    await index.open()
    number = 0
    while True:
        for _ in range(50):
            index.put(Object(f"k{number}", 3, 10**9, "e"), {"number": str(number)}, {})
            number += 1
        await index.flush()
        print(number, flush=True)

asyncio.run(main())
"""


def test_what_was_written_survives_sigkill(path: str) -> None:
    process = subprocess.Popen([sys.executable, "-c", _KILLED, path], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for _ in range(20):
        written = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    items = [Object(f"k{number}", 3, 10**9, "e") for number in range(written)]
    found = asyncio.run(again(path, items))
    assert {key: entry.metadata["number"] for key, entry in found.items()} == {f"k{n}": str(n) for n in range(written)}
