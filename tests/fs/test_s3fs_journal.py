"""The journal: what it says after kill -9, a full disk, damage, and how little it costs."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from pyfusekit.fs.s3fs.deferred import journal as journal_module
from pyfusekit.fs.s3fs.deferred import recordlog
from pyfusekit.fs.s3fs.deferred.journal import Journal, Record, home_of
from pyfusekit.fs.s3fs.remote.store import Upload


@pytest.fixture
def home(tmp_path: Path) -> str:
    return str(tmp_path / "s3" / "bucket")


@pytest.fixture
async def journal(home: str) -> AsyncIterator[Journal]:
    opened = Journal(home)
    assert await opened.open() == []
    yield opened
    await opened.close()


def staging_file(data: bytes, at: int = 0) -> int:
    """Return a descriptor of an unnamed file."""
    fd = os.open(tempfile.gettempdir(), os.O_TMPFILE | os.O_RDWR)
    os.pwrite(fd, data, at)
    return fd


async def die(journal: Journal) -> None:
    """Let a journal end as kill -9 does: what is on disk stays, the locks go."""
    assert journal._own is not None
    for one in (journal._own, *journal._adopted):
        await one.idle()
        one.abandon()
    journal._own = None
    journal._threads.shutdown()


async def adopt(home: str) -> tuple[Journal, list[Record]]:
    journal = Journal(home)
    return journal, await journal.open()


def change_log(journal: Journal, change: Callable[[bytes], bytes]) -> None:
    """Change what a dead server's log holds."""
    path = Path(journal.directory, "log-00000001")
    path.write_bytes(change(path.read_bytes()))


async def bytes_of(journal: Journal, record: Record) -> bytes:
    ranges = record.value["ranges"]
    fd = await journal.data(record, ranges)
    try:
        return b"".join(os.pread(fd, end - start, start) for start, end in ranges)
    finally:
        os.close(fd)


async def test_a_closed_journal_with_nothing_to_do_leaves_nothing(home: str) -> None:
    journal = Journal(home)
    await journal.open()
    record = await journal.begin("rename", {"a": 1})
    await journal.done(record)
    assert len(os.listdir(home)) == 2
    await journal.close()
    await journal.close()
    assert os.listdir(home) == ["lock"]


async def test_a_record_survives_the_server_and_is_adopted_once(home: str, journal: Journal) -> None:
    await journal.begin("rename", {"from": "a", "phase": "copy"})
    record = await journal.begin("tree", {"from": "b", "phase": "copy"})
    await journal.change(record, phase="delete", seen=3)
    await journal.done(await journal.begin("delete", {"key": "x"}))
    alive, nothing = await adopt(home)
    assert nothing == [], "a living server was robbed"
    await die(journal)
    second, found = await adopt(home)
    assert [(one.kind, one.value) for one in found] == [
        ("rename", {"from": "a", "phase": "copy"}),
        ("tree", {"from": "b", "phase": "delete", "seen": 3}),
    ]
    await second.done(found[0])
    await die(second)
    third, found = await adopt(home)
    assert [one.kind for one in found] == ["tree"]
    await third.done(found[0])
    await third.close()
    await alive.close()
    assert os.listdir(home) == ["lock"]


@pytest.mark.parametrize("size", [10, 300_000, 2_000_000])
async def test_bytes_of_a_file_survive_at_their_offsets(home: str, journal: Journal, size: int) -> None:
    data = random.Random(size).randbytes(size)
    fd = staging_file(data, at=5000)
    os.pwrite(fd, b"head", 0)
    ranges = [(0, 4), (5000, 5000 + size)]
    kept = await journal.keep(fd, ranges, {"key": "k", "ranges": ranges})
    os.close(fd)
    await die(journal)
    second, [record] = await adopt(home)
    assert ("data" in record.value) == (size > journal_module.INLINE)
    assert record.id == kept.id
    assert await bytes_of(second, record) == b"head" + data
    await second.done(record)
    await second.close()
    assert os.listdir(home) == ["lock"]


async def test_a_file_kept_again_replaces_what_was_kept_and_its_data_goes_with_the_last(home: str, journal: Journal) -> None:
    big = bytes(400_000)
    fd, other = staging_file(big), staging_file(big)
    first = await journal.keep(fd, [(0, 400_000)], {"n": 1})
    second = await journal.keep(fd, [(0, 400_000)], {"n": 2}, first)
    assert second.value["data"] == first.value["data"], "the same file got a second name"
    third = await journal.keep(other, [(0, 400_000)], {"n": 3}, second)
    assert sorted(os.listdir(journal.directory)) == [str(third.value["data"]), "lock", "log-00000001"][::1]
    fourth = await journal.keep(other, [(0, 100)], {"n": 4, "ranges": [[0, 100]]}, third)
    assert sorted(os.listdir(journal.directory)) == ["lock", "log-00000001"]
    await die(journal)
    adopted, found = await adopt(home)
    assert [one.value["n"] for one in found] == [4]
    fifth = await adopted.keep(fd, [(0, 5)], {"n": 5}, found[0])
    assert fifth.directory == adopted.directory
    await die(adopted)
    last, found = await adopt(home)
    assert [one.value["n"] for one in found] == [5]
    await last.done(found[0])
    await last.close()
    os.close(fd)
    os.close(other)
    assert fourth.value["n"] == 4


async def test_many_who_wait_share_one_fsync(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    real = os.fdatasync

    def counted(fd: int) -> None:
        synced.append(fd)
        real(fd)

    monkeypatch.setattr(os, "fdatasync", counted)
    fd = staging_file(b"x" * 4096)
    records = await asyncio.gather(*(journal.keep(fd, [(0, 4096)], {"n": n}) for n in range(500)))
    assert len(synced) <= 3
    await asyncio.gather(*(journal.done(record) for record in records))
    assert len(synced) <= 6
    os.close(fd)


async def test_a_full_disk_refuses_one_record_and_harms_none(
    home: str, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = recordlog.write_all
    full = True

    def write_all(fd: int, data: bytes, at: int) -> None:
        real(fd, data[:20] if full else data, at)
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")

    before = await journal.begin("rename", {"n": 1})
    stays = await journal.begin("rename", {"n": 2})
    monkeypatch.setattr(recordlog, "write_all", write_all)
    with pytest.raises(OSError, match="No space left") as caught:
        await journal.begin("rename", {"n": 3})
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(OSError, match="No space left"):
        await journal.done(before)
    full = False
    await journal.begin("rename", {"n": 4})
    await die(journal)
    monkeypatch.undo()
    second, found = await adopt(home)
    assert [one.value["n"] for one in found] == [2, 4], "what was done while the disk was full was said again"
    assert stays.value == {"n": 2}
    for record in found:
        await second.done(record)
    await second.close()


async def test_after_a_failed_fsync_nothing_more_is_put_into_that_file(
    home: str, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    await journal.begin("rename", {"n": 1})

    def fails(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", fails)
    with pytest.raises(OSError, match="Input/output error"):
        await journal.begin("rename", {"n": 2})
    monkeypatch.undo()
    await journal.begin("rename", {"n": 3})
    assert sorted(os.listdir(journal.directory)) == ["lock", "log-00000001", "log-00000002"]
    await die(journal)
    second, found = await adopt(home)
    assert [one.value["n"] for one in found] == [1, 3]
    for record in found:
        await second.done(record)
    await second.close()


@pytest.mark.parametrize("cut", range(1, 60, 7))
async def test_a_torn_last_frame_is_no_record_and_no_trouble(home: str, journal: Journal, cut: int) -> None:
    await journal.begin("rename", {"n": 1})
    await journal.begin("rename", {"n": 2})
    await die(journal)
    change_log(journal, lambda data: data[:-cut])
    second, found = await adopt(home)
    assert [one.value["n"] for one in found] == [1]
    await second.done(found[0])
    await second.close()


async def test_damage_in_the_middle_loses_one_record_and_is_said(
    home: str, journal: Journal, caplog: pytest.LogCaptureFixture
) -> None:
    first = await journal.begin("rename", {"n": 1})
    await journal.begin("rename", {"n": 2})
    await journal.begin("rename", {"n": 3})
    await die(journal)
    change_log(journal, lambda data: data.replace(b'"n":2', b'"n":9'))
    with caplog.at_level(logging.WARNING):
        second, found = await adopt(home)
    assert [one.value["n"] for one in found] == [1, 3]
    assert "a record was lost" in caplog.text
    for record in found:
        await second.done(record)
    await second.close()
    assert first.value == {"n": 1}


async def test_old_logs_go_and_what_keeps_them_alive_moves(
    home: str, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recordlog, "SEGMENT", 20_000)
    monkeypatch.setattr(recordlog, "EMPTY_SEGMENT", 20_000)
    fd = staging_file(bytes(range(250)) * 8)
    stays = await journal.keep(fd, [(0, 2000)], {"n": 0, "ranges": [[0, 2000]]})
    for n in range(1, 200):
        await journal.done(await journal.keep(fd, [(0, 2000)], {"n": n}))
    os.close(fd)
    logs = [name for name in os.listdir(journal.directory) if name.startswith("log-")]
    assert len(logs) <= recordlog.MOST_SEGMENTS + 2
    assert "log-00000001" not in logs
    assert await bytes_of(journal, stays) == bytes(range(250)) * 8
    await die(journal)
    second, [record] = await adopt(home)
    assert record.value["n"] == 0
    assert await bytes_of(second, record) == bytes(range(250)) * 8
    await second.done(record)
    await second.close()
    assert os.listdir(home) == ["lock"]


async def test_a_record_that_is_done_is_not_written_again(home: str, journal: Journal) -> None:
    """Behind the frame that ends it, it would live again."""
    record = await journal.begin("rename", {"n": 1})
    log = journal._log()
    ended = log.done(record)
    log._move(record)
    await ended
    await die(journal)
    second, found = await adopt(home)
    assert found == []
    await second.close()


async def test_the_bytes_of_a_large_file_are_on_the_disk_before_its_record(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    fdatasync, fsync = os.fdatasync, os.fsync
    fd = staging_file(bytes(400_000))

    def kind(synced: int) -> str:
        path = os.readlink(f"/proc/self/fd/{synced}")
        return "data" if os.path.samestat(os.fstat(synced), os.fstat(fd)) else os.path.basename(path)[:3]

    monkeypatch.setattr(os, "fdatasync", lambda synced: (order.append(kind(synced)), fdatasync(synced)))
    monkeypatch.setattr(os, "fsync", lambda synced: (order.append("directory"), fsync(synced)))
    await journal.begin("rename", {"n": 1})
    order.clear()
    await journal.keep(fd, [(0, 400_000)], {"n": 1})
    assert order == ["data", "directory", "log"]
    os.close(fd)


async def test_a_cancelled_begin_leaves_no_record(home: str, journal: Journal) -> None:
    waiting = asyncio.ensure_future(journal.begin("tree", {"n": 1}))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await asyncio.wait(journal._tasks)
    await die(journal)
    second, found = await adopt(home)
    assert found == []
    await second.close()


async def test_uploads_that_did_not_end_are_known_to_the_next_server(home: str, journal: Journal) -> None:
    journal.upload_begun(Upload("k1", "id1"))
    journal.upload_begun(Upload("k2", "id2"))
    journal.upload_ended(Upload("k1", "id1"))
    journal.upload_ended(Upload("of somebody else", "x"))
    await die(journal)
    second, found = await adopt(home)
    assert [(one.kind, one.value) for one in found] == [("upload", {"key": "k2", "id": "id2"})]
    await second.done(found[0])
    await second.close()


async def test_what_others_put_into_the_directory_is_not_removed(home: str) -> None:
    journal = Journal(home)
    await journal.open()
    os.mkdir(os.path.join(journal.directory, "conflicts"))
    directory = journal.directory
    await journal.close()
    assert sorted(os.listdir(directory)) == ["conflicts", "lock"]


def test_a_source_has_one_home_and_other_sources_have_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    one = home_of("", "http://h", "s3://bucket/some/prefix")
    assert one.startswith("/state/pyfusekit/s3/bucket-some-prefix-")
    assert one == home_of("", "http://h", "s3://bucket/some/prefix")
    others = {home_of("", "http://i", "s3://bucket/some/prefix"), home_of("", "http://h", "s3://bucket/some-prefix")}
    assert one not in others
    assert len(others) == 2
    assert home_of("/staging", "", "s3://../..").startswith("/staging/s3/")
    assert ".." not in home_of("/staging", "", "s3://../..")


CHILD = """
import asyncio, os, random, sys, tempfile
from pyfusekit.fs.s3fs.deferred import recordlog
from pyfusekit.fs.s3fs.deferred.journal import Journal
recordlog.SEGMENT = 3_000_000

def write(line):
    os.write(1, (line + "\\n").encode())

async def worker(journal, name, seed):
    rng = random.Random(seed)
    fd = os.open(tempfile.gettempdir(), os.O_TMPFILE | os.O_RDWR)
    record, version, big = None, 0, False
    while True:
        version += 1
        size = rng.choice([0, 100, 5000, 100_000, 300_000])
        if big:  # What has a name in the journal must not change.
            os.close(fd)
            fd = os.open(tempfile.gettempdir(), os.O_TMPFILE | os.O_RDWR)
        big = size > 262144
        os.pwrite(fd, random.Random(f"{name} {version}").randbytes(size), 0)
        value = {"name": name, "version": version, "ranges": [[0, size]]}
        write(f"begin {name} {version}")
        record = await journal.keep(fd, [(0, size)], value, record)
        write(f"kept {name} {version}")
        if rng.random() < 0.4:
            write(f"ending {name} {version}")
            await journal.done(record)
            write(f"done {name} {version}")
            record = None

async def main():
    journal = Journal(sys.argv[1])
    await journal.open()
    await asyncio.gather(*(worker(journal, f"w{n}", int(sys.argv[2]) * 100 + n) for n in range(8)))

asyncio.run(main())
"""


@pytest.mark.parametrize("seed", range(6))
async def test_kill_9_at_any_moment_loses_nothing_that_was_acknowledged(home: str, seed: int) -> None:
    """The child writes what it knows to a pipe: the state found must be one the pipe allows."""
    rng = random.Random(seed)
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CHILD, home, str(seed), stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": os.getcwd()}
    )
    assert child.stdout is not None
    said: list[str] = []
    for _ in range(rng.randint(5, 400)):
        said.append((await child.stdout.readline()).decode())
    child.send_signal(signal.SIGKILL)
    said += (await child.stdout.read()).decode().splitlines()
    await child.wait()
    allowed: dict[str, set[int]] = {}
    for line in said:
        if len(line.split()) != 3:
            continue
        word, name, version = line.split()[0], line.split()[1], int(line.split()[2])
        if word == "begin":
            allowed.setdefault(name, {0}).add(version)
        elif word == "kept":
            allowed[name] = {version}
        elif word == "ending":
            allowed[name].add(0)
        else:
            allowed[name] = {0}
    journal, found = await adopt(home)
    states: dict[str, Any] = {record.value["name"]: record for record in found}
    assert len(states) == len(found)
    for name, versions in allowed.items():
        record = states.pop(name, None)
        version = record.value["version"] if record else 0
        assert version in versions, f"{name}: {version} is none of {versions}"
        if record is not None:
            size = record.value["ranges"][0][1]
            assert await bytes_of(journal, record) == random.Random(f"{name} {version}").randbytes(size)
            await journal.done(record)
    assert not states
    await journal.close()
    assert os.listdir(home) == ["lock"]
