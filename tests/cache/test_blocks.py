"""The block cache: what it keeps over deaths and other mounts, what it evicts, and that nothing it meets is an error."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pyfusekit.cache.blocks import BACKLOG, BLOCK, BlockCache, Entry

MIB = 1 << 20
DATA = random.Random(11).randbytes(3 * MIB + 77)
SIZE = len(DATA)


def cache_in(directory: Path, limit: int = 100 * MIB) -> BlockCache:
    return BlockCache(directory, limit)


def opened(cache: BlockCache, name: str = "f", size: int = SIZE) -> Entry:
    return cache.open("store", name, "etag", size)


def filled(cache: BlockCache, name: str = "f", data: bytes = DATA) -> Entry:
    """Write a whole entry, piece by piece; where the cache makes room meanwhile, wait for that."""
    entry = opened(cache, name, len(data))
    for offset in range(0, len(data), BLOCK):
        for _ in range(4):
            if entry.write(offset, data[offset : offset + BLOCK]):
                break
            cache.close()
        else:
            raise AssertionError("there is no room")
    return entry


def files(directory: Path, ending: str) -> list[Path]:
    return sorted(directory.glob(f"??/*.{ending}"))


def test_blocks_written_are_read_and_others_are_missing(tmp_path: Path) -> None:
    entry = opened(cache_in(tmp_path))
    assert entry.missing(0, SIZE) == [(0, SIZE)]
    assert entry.read(0, 1) is None
    assert entry.fd == -1
    assert entry.write(2 * BLOCK, DATA[2 * BLOCK : 4 * BLOCK])
    assert entry.read(2 * BLOCK + 5, 1000) == DATA[2 * BLOCK + 5 : 2 * BLOCK + 1005]
    assert entry.read(2 * BLOCK - 1, 10) is None
    assert entry.missing(BLOCK + 1, 5 * BLOCK - 1) == [(BLOCK, 2 * BLOCK), (4 * BLOCK, 5 * BLOCK)]
    assert entry.missing(0, SIZE + 5) == [(0, 2 * BLOCK), (4 * BLOCK, SIZE)]
    assert entry.missing(SIZE, SIZE + 1) == []
    assert not entry.complete
    assert entry.write(0, DATA[: 2 * BLOCK])
    assert entry.write(4 * BLOCK, DATA[4 * BLOCK :])
    assert entry.complete
    assert (entry.missing(0, SIZE), entry.read(0, SIZE + 5), entry.read(SIZE, 1)) == ([], DATA, b"")
    assert (os.fstat(entry.fd).st_size, os.pread(entry.fd, SIZE + 1, 0)) == (SIZE, DATA)
    entry.close()


def test_block_is_there_when_its_last_piece_came_in_order(tmp_path: Path) -> None:
    entry = opened(cache_in(tmp_path))
    # The middle of a block is no block, whoever brings the rest.
    entry.write(100, DATA[100:BLOCK])
    assert entry.missing(0, BLOCK) == [(0, BLOCK)]
    for start in range(0, BLOCK, 1000):
        assert entry.read(0, 1) is None
        entry.write(start, memoryview(DATA)[start : min(start + 1000, BLOCK)])
    assert entry.read(0, BLOCK) == DATA[:BLOCK]
    # Two who fetch side by side do not disturb each other.
    at, other = 5 * BLOCK, 7 * BLOCK
    for step in range(0, BLOCK, BLOCK // 4):
        for start in (at, other):
            entry.write(start + step, DATA[start + step : start + step + BLOCK // 4])
    assert entry.missing(at, 8 * BLOCK) == [(6 * BLOCK, 7 * BLOCK)]
    entry.close()


def test_pieces_of_any_size_make_the_whole(tmp_path: Path) -> None:
    entry = opened(cache_in(tmp_path))
    rng = random.Random(2)
    offset = 0
    while offset < SIZE:
        step = rng.choice((1, 4096, 100_000, 300_000))
        entry.write(offset, DATA[offset : offset + step])
        offset += step
    assert entry.complete
    assert entry.read(0, SIZE) == DATA
    entry.close()


def test_empty_file_is_complete_and_takes_no_room(tmp_path: Path) -> None:
    entry = opened(cache_in(tmp_path), size=0)
    assert (entry.complete, entry.read(0, 10), entry.missing(0, 10)) == (True, b"", [])
    entry.close()
    assert list(tmp_path.iterdir()) == []


def test_entry_is_found_again_by_name_and_validator_and_size(tmp_path: Path) -> None:
    filled(cache_in(tmp_path)).close()
    cache = cache_in(tmp_path)
    entry = opened(cache)
    assert entry.complete
    assert entry.read(0, SIZE) == DATA
    entry.close()
    for other in [
        ("store", "f", "etag2", SIZE),
        ("store", "g", "etag", SIZE),
        ("x", "f", "etag", SIZE),
        ("store", "f", "etag", 5),
    ]:
        entry = cache.open(*other)
        assert entry.missing(0, 5) == [(0, min(BLOCK, other[3]))]
        entry.close()


@pytest.mark.parametrize("name", ["a/../b", "n\0ul", "\udcff", "x" * 1024, "\U0001f600" * 256, "line\nline"])
def test_any_key_is_a_name(tmp_path: Path, name: str) -> None:
    filled(cache_in(tmp_path), name, b"1234").close()
    entry = opened(cache_in(tmp_path), name, 4)
    assert entry.read(0, 4) == b"1234"
    entry.close()


def test_open_twice_is_one_entry_until_the_last_close(tmp_path: Path) -> None:
    cache = cache_in(tmp_path)
    one, other = opened(cache), opened(cache)
    assert one is other
    one.write(0, DATA)
    one.close()
    assert other.read(0, SIZE) == DATA
    other.close()
    assert other.read(0, 1) is None
    assert not other.complete
    assert not other.write(0, DATA)
    assert opened(cache).read(0, 1) == DATA[:1]


def test_two_mounts_see_each_others_blocks_at_once(tmp_path: Path) -> None:
    one, other = opened(cache_in(tmp_path)), opened(cache_in(tmp_path))
    one.write(0, DATA[:BLOCK])
    # It was opened before there were files, and makes none of its own.
    assert other.write(BLOCK, DATA[BLOCK : 2 * BLOCK])
    assert one.read(0, 2 * BLOCK) == other.read(0, 2 * BLOCK) == DATA[: 2 * BLOCK]
    assert len(files(tmp_path, "data")) == len(files(tmp_path, "meta")) == 1
    assert files(tmp_path, "new") == []
    one.close()
    other.close()


_KILLED = """
import os, signal, sys
from pyfusekit.cache.blocks import BlockCache
data = open(sys.argv[2], "rb").read()
entry = BlockCache(sys.argv[1], 1 << 30).open("store", "f", "etag", len(data))
entry.write(0, data[: 20 * 131072 + 5])
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_blocks_survive_kill_9(tmp_path: Path) -> None:
    (tmp_path / "input").write_bytes(DATA)
    child = subprocess.run([sys.executable, "-c", _KILLED, tmp_path / "cache", tmp_path / "input"], timeout=30, check=False)
    assert child.returncode == -signal.SIGKILL
    entry = opened(cache_in(tmp_path / "cache"))
    assert entry.missing(0, SIZE) == [(20 * BLOCK, SIZE)]
    assert entry.read(0, 20 * BLOCK) == DATA[: 20 * BLOCK]
    assert not entry.doubtful
    entry.close()


def test_pieces_are_written_beside_and_the_entry_stays_open_for_them(tmp_path: Path) -> None:
    cache = cache_in(tmp_path)
    entry = opened(cache)
    entry.write_later(0, [DATA[:1000], memoryview(DATA)[1000 : 2 * BLOCK]])
    entry.write_later(2 * BLOCK, [DATA[2 * BLOCK :]])
    entry.close()
    cache.close()
    assert not cache._entries
    entry = opened(cache)
    assert entry.read(0, SIZE) == DATA
    entry.close()


def test_pieces_are_written_now_when_the_disk_cannot_keep_up(tmp_path: Path) -> None:
    cache = cache_in(tmp_path)
    cache._backlog = BACKLOG
    entry = opened(cache)
    entry.write_later(0, [DATA])
    assert entry.complete
    entry.close()


def test_bytes_that_come_after_the_last_close_touch_nobody(tmp_path: Path) -> None:
    cache = cache_in(tmp_path)
    old = opened(cache)
    old.close()
    new = opened(cache)
    old.write_later(0, [DATA])
    cache.close()
    assert new.missing(0, SIZE) == [(0, SIZE)]
    assert opened(cache) is new
    new.close()


# Power loss: another boot, and pages that never came to the disk.


def rebooted(directory: Path) -> BlockCache:
    cache = cache_in(directory)
    cache.boot ^= 1
    return cache


def test_blocks_of_another_boot_are_used_when_their_bytes_are_whole(tmp_path: Path) -> None:
    filled(cache_in(tmp_path)).close()
    with files(tmp_path, "data")[0].open("r+b") as file:
        file.seek(3 * BLOCK + 7)
        file.write(b"torn")
    cache = rebooted(tmp_path)
    entry = opened(cache)
    assert entry.doubtful
    assert not entry.complete
    assert entry.read(0, 3 * BLOCK) == DATA[: 3 * BLOCK]
    assert entry.read(3 * BLOCK, 1) is None
    assert entry.missing(0, SIZE) == [(3 * BLOCK, 4 * BLOCK)]
    entry.write(3 * BLOCK, DATA[3 * BLOCK : 4 * BLOCK])
    assert entry.complete
    entry.close()
    # What was looked at is this boot's now.
    entry = opened(cache)
    assert (entry.complete, entry.doubtful, entry.read(0, SIZE)) == (True, False, DATA)
    entry.close()


def test_zeros_where_bytes_were_lost_are_not_read(tmp_path: Path) -> None:
    filled(cache_in(tmp_path)).close()
    os.truncate(files(tmp_path, "data")[0], 0)
    os.truncate(files(tmp_path, "data")[0], SIZE)
    entry = opened(rebooted(tmp_path))
    assert entry.missing(0, SIZE) == [(0, SIZE)]
    assert not entry.verify()
    entry.close()


def test_records_that_were_lost_are_missing_blocks(tmp_path: Path) -> None:
    filled(cache_in(tmp_path)).close()
    os.truncate(files(tmp_path, "meta")[0], 4096 + 8 * 5 + 3)
    entry = opened(rebooted(tmp_path))
    assert not entry.doubtful
    assert entry.missing(0, SIZE) == [(5 * BLOCK, SIZE)]
    entry.close()


def test_whole_entry_of_another_boot_is_verified_beside(tmp_path: Path) -> None:
    filled(cache_in(tmp_path)).close()
    cache = rebooted(tmp_path)
    entry = opened(cache)
    entry.verify_later()
    entry.close()
    assert entry.opens <= 1
    for thread in threading.enumerate():
        if thread.name == "cache-verify":
            thread.join()
    assert not cache._entries
    entry = opened(cache)
    assert entry.complete
    entry.close()


# Damage.


@pytest.mark.parametrize("damage", ["empty", "zeros", "garbage", "flip", "other", "short-data", "no-data", "directory"])
def test_damaged_entry_is_a_miss_and_is_made_anew(tmp_path: Path, damage: str) -> None:
    filled(cache_in(tmp_path)).close()
    meta, data = files(tmp_path, "meta")[0], files(tmp_path, "data")[0]
    header = meta.read_bytes()
    if damage == "empty":
        meta.write_bytes(b"")
    elif damage == "zeros":
        meta.write_bytes(bytes(8192))
    elif damage == "garbage":
        meta.write_bytes(random.Random(1).randbytes(8192))
    elif damage == "flip":
        meta.write_bytes(header.replace(b"etag", b"etaG", 1))
    elif damage == "other":
        # Another file's entry under this one's name.
        filled(cache_in(tmp_path / "b"), "g", bytes(SIZE)).close()
        other = files(tmp_path / "b", "data")[0]
        meta.write_bytes(files(tmp_path / "b", "meta")[0].read_bytes())
        other.rename(meta.with_name(f"{meta.stem}.{other.name.partition('.')[2]}"))
    elif damage == "short-data":
        os.truncate(data, SIZE - 1)
    elif damage == "no-data":
        data.unlink()
    else:
        meta.unlink()
        meta.mkdir()
    cache = cache_in(tmp_path)
    entry = opened(cache)
    assert entry.read(0, 1) is None
    assert entry.missing(0, SIZE) == [(0, SIZE)]
    assert entry.write(0, DATA) is (damage != "directory")
    assert entry.complete is (damage != "directory")
    entry.close()


def test_bytes_that_vanish_under_an_open_entry_are_missing(tmp_path: Path) -> None:
    entry = filled(cache_in(tmp_path))
    os.truncate(files(tmp_path, "data")[0], 5 * BLOCK)
    assert entry.read(0, 5 * BLOCK) == DATA[: 5 * BLOCK]
    assert entry.read(4 * BLOCK, 2 * BLOCK) is None
    assert not entry.complete
    assert entry.missing(0, 6 * BLOCK) == [(4 * BLOCK, 6 * BLOCK)]
    entry.close()


def test_directory_that_cannot_be_made_keeps_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_bytes(b"")
    cache = BlockCache(tmp_path / "file" / "cache", 100 * MIB)
    entry = opened(cache)
    assert not entry.write(0, DATA)
    assert not entry.write(0, DATA)
    assert entry.missing(0, 1) == [(0, BLOCK)]
    entry.close()
    assert len(caplog.messages) == 1


def test_full_disk_is_said_once_and_keeps_nothing_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache = cache_in(tmp_path, 16 * MIB)
    entry = opened(cache)
    entry.write(0, DATA[:BLOCK])
    pwrite = os.pwrite

    def full(fd: int, data: bytes, offset: int) -> int:
        if offset >= 2 * BLOCK:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(fd, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        assert entry.write(BLOCK, DATA[BLOCK : 2 * BLOCK])
        assert not entry.write(2 * BLOCK, DATA[2 * BLOCK :])
    cache.close()
    assert not entry.write(BLOCK, DATA[BLOCK:])
    assert entry.read(0, 2 * BLOCK) == DATA[: 2 * BLOCK]
    assert ["No space left" in line for line in caplog.messages] == [True]
    while not entry.write(2 * BLOCK, DATA[2 * BLOCK :]):
        pass
    assert entry.read(0, SIZE) == DATA
    entry.close()


# Room.


def test_limit_holds_and_the_oldest_go_first(tmp_path: Path) -> None:
    cache = cache_in(tmp_path, 16 * MIB)
    for number in range(20):
        entry = filled(cache, f"f{number}")
        entry.close()
        cache.close()
        os.utime(entry._path, (1000 + number, 1000 + number))
        # The first is used again and again.
        first = opened(cache, "f0")
        assert first.complete
        first.close()
        assert cache.used <= 16 * MIB
        assert sum(path.stat().st_blocks for path in tmp_path.rglob("*")) * 512 <= 16 * MIB
    kept = []
    for number in range(20):
        entry = opened(cache, f"f{number}")
        if entry.complete:
            kept.append(number)
        entry.close()
    assert kept in ([0, 17, 18, 19], [0, 16, 17, 18, 19])


def test_open_entries_are_not_evicted_by_any_mount(tmp_path: Path) -> None:
    cache = cache_in(tmp_path, 8 * MIB)
    held = filled(cache, "held")
    os.utime(files(tmp_path, "meta")[0], (1, 1))
    other = cache_in(tmp_path, 8 * MIB)
    for number in range(5):
        filled(other, f"f{number}").close()
        other.trim()
    assert held.read(0, SIZE) == DATA
    assert opened(cache_in(tmp_path), "held").complete
    held.close()


def test_entry_that_was_there_before_is_not_evicted_while_it_is_open(tmp_path: Path) -> None:
    filled(cache_in(tmp_path)).close()
    entry = opened(cache_in(tmp_path))
    nothing = cache_in(tmp_path, BLOCK)
    nothing.trim()
    assert len(files(tmp_path, "data")) == 1
    assert opened(cache_in(tmp_path)).complete
    entry.close()


def test_limit_holds_while_the_making_of_room_takes_long(tmp_path: Path) -> None:
    cache = cache_in(tmp_path, 8 * MIB)
    for number in range(2):
        filled(cache, f"f{number}").close()
    cache.close()
    with cache._trimming:
        entry = opened(cache, "f2")
        kept = [entry.write(offset, DATA[offset : offset + BLOCK]) for offset in range(0, SIZE, BLOCK)]
    assert kept[0]
    assert False in kept
    cache.close()
    assert sum(path.stat().st_blocks for path in tmp_path.rglob("*")) * 512 <= 8 * MIB
    entry.close()


def test_open_entries_that_fill_the_limit_keep_nothing_more(tmp_path: Path) -> None:
    cache = cache_in(tmp_path, 8 * MIB)
    held = [filled(cache, f"held{number}") for number in range(2)]
    entry = opened(cache, "more")
    for offset in range(0, SIZE, BLOCK):
        entry.write(offset, DATA[offset : offset + BLOCK])
        cache.close()
    assert not entry.complete
    assert sum(path.stat().st_blocks for path in tmp_path.rglob("*")) * 512 <= 8 * MIB
    for one in held:
        one.close()
    cache.trim()
    # There is room again, but it is not looked for with every block.
    tries = 0
    while not entry.complete:
        for first, upto in entry.missing(0, SIZE):
            entry.write(first, DATA[first:upto])
            cache.close()
        tries += 1
        assert tries < 10
    assert entry.read(0, SIZE) == DATA
    entry.close()


def test_evicted_entry_is_made_anew_and_never_mixed_with_what_it_was(tmp_path: Path) -> None:
    old, new = cache_in(tmp_path), cache_in(tmp_path)
    filled(old).close()
    meta, data = files(tmp_path, "meta")[0], files(tmp_path, "data")[0]
    # Somebody else evicts, and is killed half way.
    meta.unlink()
    entry = opened(new)
    assert entry.missing(0, SIZE) == [(0, SIZE)]
    entry.write(0, DATA[:BLOCK])
    assert entry.missing(0, SIZE) == [(BLOCK, SIZE)]
    assert len(files(tmp_path, "data")) == 2
    entry.close()
    # What he left goes, but not what may be just in the making.
    new.trim()
    assert data.exists()
    os.utime(data, (1, 1))
    new.trim()
    assert not data.exists()
    entry = opened(new)
    assert entry.read(0, BLOCK) == DATA[:BLOCK]
    entry.close()


def test_cache_without_room_keeps_nothing(tmp_path: Path) -> None:
    entry = opened(cache_in(tmp_path, 0))
    assert not entry.write(0, DATA)
    assert entry.missing(0, 1) == [(0, BLOCK)]
    entry.close()
    assert list(tmp_path.iterdir()) == []


# Files that are there already.


def test_finished_file_is_adopted_by_path_and_by_descriptor(tmp_path: Path) -> None:
    (tmp_path / "staged").write_bytes(DATA)
    cache = cache_in(tmp_path / "cache")
    assert cache.adopt("store", "f", "etag", SIZE, str(tmp_path / "staged"))
    fd = os.open(tmp_path / "staged", os.O_RDONLY)
    assert cache.adopt("store", "g", "etag", SIZE, fd)
    os.close(fd)
    (tmp_path / "staged").write_bytes(b"")
    for name in ("f", "g"):
        entry = opened(cache, name)
        assert entry.complete
        assert entry.read(0, SIZE) == DATA
        entry.close()


def test_threads_that_write_one_entry_at_once_make_one_file_of_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = cache_in(tmp_path / "cache")
    path = tmp_path / "finished"
    data = DATA[: 2 * BLOCK + 77]
    path.write_bytes(data)
    for number in range(60):
        name = f"f{number}"
        start = threading.Barrier(3)

        def adopt(name: str = name, start: threading.Barrier = start) -> None:
            start.wait()
            assert cache.adopt("store", name, "etag", len(data), str(path))

        entry = opened(cache, name, len(data))
        threads = [threading.Thread(target=adopt) for _ in range(2)]
        for thread in threads:
            thread.start()
        start.wait()
        entry.write_later(0, [data])
        for thread in threads:
            thread.join()
        cache.close()
        assert entry.read(0, len(data)) == data
        entry.close()
    # Descriptors that one closes and another goes on using would be other files' by now.
    assert caplog.messages == []
    assert len(files(tmp_path / "cache", "data")) == len(files(tmp_path / "cache", "meta")) <= 60
    again = opened(cache_in(tmp_path / "cache"), "f59", len(data))
    assert again.read(0, len(data)) == data
    again.close()


def test_file_that_is_not_what_it_should_be_is_not_adopted(tmp_path: Path) -> None:
    (tmp_path / "staged").write_bytes(DATA[:-1])
    cache = cache_in(tmp_path / "cache")
    assert not cache.adopt("store", "f", "etag", SIZE, str(tmp_path / "staged"))
    assert not cache.adopt("store", "f", "etag", SIZE, str(tmp_path / "nothing"))
    assert not opened(cache).complete
