"""pyfusekit cache: what is on the disk is told without a mount, what is in use stays, and reading never hangs the command.

The filesystem "keeps" has a disk cache: its source is a directory of files that it shows, and keeps what was read of them. In
it the file "refused" cannot be read, and "never" is not answered; without a source it has no cache.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from commandline import Commandline, needs_mounts

from pyfusekit.cache import BlockCache, inventory
from pyfusekit.cache.blocks import BLOCK
from pyfusekit.core import Filesystem
from pyfusekit.service import caches, warming
from pyfusekit.service.commands import Commands
from pyfusekit.service.ending import Ending
from pyfusekit.service.exits import ACCESS, BUSY, NOT_MOUNTED, SOURCE, TIMED_OUT, USAGE, Failure

MIB = 1 << 20

_KEEPS = """
import asyncio, errno, os, stat
from pathlib import Path
from pyfusekit.cache import BlockCache
from pyfusekit.core import Attr, DirEntry, NoOptions, Opened, PathFilesystem, PathOperations

FOPEN_KEEP_CACHE = 2

class Operations(PathOperations):
    def __init__(self, top):
        self.top = top

    def place(self, path):
        return self.top / os.fsdecode(path[1:])

    def getattr(self, request, path, handle):
        try:
            status = os.lstat(self.place(path))
        except FileNotFoundError:
            return None
        return Attr(ino=0, mode=status.st_mode, size=status.st_size, nlink=1)

    def readlink(self, request, path):
        return os.fsencode(os.readlink(self.place(path)))

    def readdir(self, request, path, handle):
        return [os.fsencode(entry.name) for entry in os.scandir(self.place(path))]

    def open(self, request, path, flags):
        size = os.stat(self.place(path)).st_size
        entry = self.fs.cache.open("keeps-test", os.fsdecode(path), "v1", size) if self.fs.cache else None
        return Opened(entry, FOPEN_KEEP_CACHE)

    def release(self, request, path, handle):
        if self.fs.cache:
            handle.close()

    async def read(self, request, path, handle, offset, size):
        if path.endswith(b"/refused"):
            raise OSError(errno.EACCES, "refused")
        if path.endswith(b"/never"):
            await asyncio.sleep(1000)
        with open(self.place(path), "rb") as file:
            data = os.pread(file.fileno(), size, offset)
        if self.fs.cache:
            handle.write(offset, data)
        return data

class KeepsFS(PathFilesystem):
    summary = "Keeps what was read."
    Options = NoOptions

    def __init__(self, source, options):
        super().__init__(Operations(Path(source or "/usr/share/doc")))
        self.operations.fs = self
        self.cache = BlockCache(os.environ["KEEPS"] + "/keeps/blocks", 2 << 20) if source else None

    def disk_cache(self):
        return self.cache
"""


@pytest.fixture
def files(command: Commandline) -> Path:
    """The filesystem "keeps" is installed; the files that it shows are put here."""
    folder = command.top / "plugins"
    (folder / "keeps.py").write_text(_KEEPS)
    info = folder / "pyfusekit_keeps-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: pyfusekit-keeps\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[pyfusekit.filesystems]\nkeeps = keeps:KeepsFS\n")
    command.environment["KEEPS"] = str(command.top / "cache")
    command.environment["XDG_CACHE_HOME"] = str(command.top / "no-cache")
    return command.folder("files")


@pytest.fixture
def place(command: Commandline, files: Path) -> Path:
    """Where "keeps" is mounted."""
    made = command.folder()
    done = command.run("mount", "keeps", files, made)
    assert done.returncode == 0, done.stderr
    return made


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The place of a filesystem's blocks in a cache of this process, which no mount uses."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(caches, "survey", lambda: [])
    return tmp_path / "pyfusekit" / "test" / "blocks"


def keep(directory: Path, source: str, name: str, size: int, kept: int | None = None) -> None:
    """Make an entry with the first *kept* bytes of a file."""
    cache = BlockCache(directory, 100 * MIB)
    entry = cache.open(source, name, "v1", size)
    assert entry.write(0, os.urandom(size if kept is None else kept))
    entry.close()
    cache.close()


def meta_of(directory: Path, name: str) -> Path:
    (found,) = [entry.path for entry in inventory.held(directory) if entry.name == name]
    return found


@contextlib.contextmanager
def held_open(path: Path) -> Iterator[None]:
    """Be somebody who has an entry open."""
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield


# --- what is there ----------------------------------------------------------------------------------------------------


def test_files_and_bytes_are_told_by_source(own: Path) -> None:
    keep(own, "b-source", "whole", 3 * BLOCK + 5)
    keep(own, "b-source", "half", 4 * BLOCK, 2 * BLOCK)
    keep(own, "a-source", "tail missing", BLOCK + 5, BLOCK)
    (row,) = caches.show(None)
    assert row["directory"] == str(own)
    assert row["mounts"] == []
    told = [
        {key: source[key] for key in ("source", "files", "complete", "cached_bytes", "size_bytes", "in_use")}
        for source in row["sources"]
    ]
    assert told == [
        {"source": "a-source", "files": 1, "complete": 0, "cached_bytes": BLOCK, "size_bytes": BLOCK + 5, "in_use": 0},
        {
            "source": "b-source",
            "files": 2,
            "complete": 1,
            "cached_bytes": 5 * BLOCK + 5,
            "size_bytes": 7 * BLOCK + 5,
            "in_use": 0,
        },
    ]
    assert row["disk_bytes"] == sum(source["disk_bytes"] for source in row["sources"]) >= 6 * BLOCK
    assert time.time() - 60 < row["sources"][0]["used_at"] <= time.time()


def test_what_is_open_is_told_and_told_again_when_it_is_not(own: Path) -> None:
    keep(own, "s", "a", BLOCK)
    keep(own, "s", "b", BLOCK)
    with held_open(meta_of(own, "a")):
        assert caches.show(None)[0]["sources"][0]["in_use"] == 1
    assert caches.show(None)[0]["sources"][0]["in_use"] == 0


def test_a_damaged_entry_has_a_name_of_its_own_and_can_be_cleared(own: Path) -> None:
    keep(own, "s", "a", BLOCK)
    with meta_of(own, "a").open("r+b") as file:
        # The first letter of the source, behind the format and a bracket.
        file.seek(len(b"pyfusekit blocks 1\n[") + 1)
        assert file.read(1) == b"s"
        file.seek(-1, os.SEEK_CUR)
        file.write(b"t")
    (source,) = caches.show(None)[0]["sources"]
    assert (source["source"], source["complete"]) == (inventory.DAMAGED, 0)
    assert caches.clear(inventory.DAMAGED, None, everything=False, older_than=None).startswith("Cleared 1 file (")
    assert list(own.glob("??/*.meta")) == []


def test_a_cache_is_found_from_its_own_directory_and_from_the_one_above(own: Path) -> None:
    keep(own, "s", "a", BLOCK)
    for given in (own, own.parent, own.parent.parent):
        assert [row["directory"] for row in caches.show(str(given))] == [str(own)], given
    assert caches.show(str(own / "..")) == caches.show(None)


def test_nothing_cached_and_no_such_directory_are_told_apart(own: Path, tmp_path: Path) -> None:
    assert caches.as_text(caches.show(str(tmp_path))) == "Nothing is cached."
    assert caches.as_text(caches.show(None)) == "Nothing is cached."
    with pytest.raises(Failure, match="no such directory") as caught:
        caches.show(str(tmp_path / "not"))
    assert caught.value.code == SOURCE


def test_the_text_is_a_table_that_no_name_can_spoil(own: Path) -> None:
    keep(own, "so\nur\x1bce", "a", BLOCK, 0)
    keep(own, "so\nur\x1bce", "b", 2 * BLOCK)
    head, names, row = caches.as_text(caches.show(None)).splitlines()
    assert head.startswith(f"{own}: 2")
    assert head.endswith(" KiB, used by no mount")
    assert names.split("  ")[0] == "SOURCE"
    cells = [cell for cell in row.split("  ") if cell]
    assert [cells[0], *map(str.strip, cells[1:5])] == ["so\\nur\\x1bce", "1", "1", "256 KiB", "256 KiB"]


# --- clearing ---------------------------------------------------------------------------------------------------------


def clear(source: str | None = None, *, everything: bool = False, older_than: float | None = None) -> str:
    return caches.clear(source, None, everything=everything, older_than=older_than)


def names(directory: Path) -> list[str]:
    return sorted(f"{entry.source}/{entry.name}" for entry in inventory.held(directory))


def test_one_source_is_cleared_and_the_others_stay(own: Path) -> None:
    for source in ("a", "b"):
        keep(own, source, "1", 2 * BLOCK)
        keep(own, source, "2", BLOCK)
    assert clear("a").startswith("Cleared 2 files (")
    assert names(own) == ["b/1", "b/2"]
    assert len(list(own.glob("??/*.data"))) == 2, "the bytes go with their records"
    clear(everything=True)
    assert list(own.glob("??/*")) == []


def test_only_what_was_not_used_for_long_is_cleared(own: Path) -> None:
    for name in ("old", "new"):
        keep(own, "s", name, BLOCK)
    os.utime(meta_of(own, "old"), (time.time() - 7200,) * 2)
    assert clear(older_than=10800).startswith("Cleared 0 files")
    assert clear("s", older_than=3600).startswith("Cleared 1 file (")
    assert names(own) == ["s/new"]


def test_what_is_in_use_stays_and_is_said(own: Path) -> None:
    for name in ("a", "b", "c"):
        keep(own, "s", name, BLOCK)
    with held_open(meta_of(own, "b")), pytest.raises(Failure) as caught:
        clear(everything=True)
    assert caught.value.cause.startswith("Cleared 2 files (")
    assert "; 1 file (" in caught.value.cause
    assert caught.value.cause.endswith(") is in use and stays")
    assert caught.value.code == BUSY
    assert names(own) == ["s/b"]


def test_an_unknown_source_is_answered_with_the_closest(own: Path) -> None:
    keep(own, "photos-1a2b", "a", BLOCK)
    with pytest.raises(Failure, match=r"nothing is cached of photos-1a2; did you mean photos-1a2b\?") as caught:
        clear("photos-1a2")
    assert caught.value.code == SOURCE


def test_clearing_says_what_it_wants_to_know(own: Path) -> None:
    for wrong in ({}, {"source": "s", "everything": True}):
        with pytest.raises(Failure) as caught:
            clear(**wrong)  # type: ignore[arg-type]
        assert caught.value.code == USAGE


# --- what a mount says ------------------------------------------------------------------------------------------------


def test_a_status_says_where_the_cache_is(tmp_path: Path) -> None:
    class Keeping(Filesystem):
        def disk_cache(self) -> BlockCache:
            return BlockCache(tmp_path, 4711)

    assert Commands(Filesystem(), {}, {}, Ending()).status({})["cache"] is None
    commands = Commands(Keeping(), {}, {}, Ending())
    assert commands.status({})["cache"] == {"directory": str(tmp_path), "limit": 4711}


def test_a_cache_that_cannot_be_told_hides_no_mount(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Filesystem):
        def disk_cache(self) -> BlockCache:
            raise TypeError("a bug of disk_cache")

    status = Commands(Broken(), {"pid": 1}, {}, Ending()).status({})
    assert (status["pid"], status["cache"]) == (1, None)
    assert "a bug of disk_cache" in caplog.text


@needs_mounts
def test_the_mounts_that_use_a_cache_are_named_with_their_limits(command: Commandline, files: Path, place: Path) -> None:
    (files / "a").write_bytes(bytes(1000))
    assert (place / "a").read_bytes() == bytes(1000)
    directory = command.top / "cache" / "keeps" / "blocks"
    rows = json.loads(command.run("cache", "show", "--json").stdout)
    (row,) = [row for row in rows if row["directory"].startswith(str(command.top))]
    assert row["directory"] == str(directory)
    assert row["mounts"] == [{"mountpoint": str(place), "limit_bytes": 2 << 20}]
    done = command.run("cache", "show", directory)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].endswith(f", at most 2.0 MiB for {place}")
    assert done.stdout.splitlines()[2].split()[:2] == ["keeps-test", "1"]
    with (place / "a").open():
        done = command.run("cache", "clear", "--all", "--cache-dir", directory)
        assert done.returncode == BUSY
        assert done.stderr.splitlines()[1] == f"  pyfusekit umount {place}, and repeat"
    done = command.run("cache", "clear", "keeps-test")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Cleared 1 file (")


# --- warming ----------------------------------------------------------------------------------------------------------


@needs_mounts
def test_whole_trees_are_read_into_the_cache(command: Commandline, files: Path, place: Path) -> None:
    (files / "d" / "e").mkdir(parents=True)
    for name in ("a", "d/b", "d/e/c"):
        (files / name).write_bytes(os.urandom(200_000))
    (files / "d" / "not").write_bytes(os.urandom(200_000))
    assert len((place / "d" / "not").read_bytes()) == 200_000
    done = command.run("cache", "warm", place / "a", place / "d")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Read 4 files (781 KiB")
    assert done.stderr == ""
    (row,) = caches.show(str(command.top / "cache" / "keeps"))
    assert [(source["files"], source["complete"]) for source in row["sources"]] == [(4, 4)]


@needs_mounts
def test_what_the_kernel_has_already_is_read_all_the_same(command: Commandline, files: Path, place: Path) -> None:
    (files / "a").write_bytes(os.urandom(200_000))
    assert len((place / "a").read_bytes()) == 200_000
    for path in (command.top / "cache").rglob("*.*"):
        path.unlink()
    done = command.run("cache", "warm", place / "a")
    assert done.stdout.startswith("Read 1 file (195 KiB"), done.stderr
    (row,) = caches.show(str(command.top / "cache" / "keeps"))
    assert row["sources"][0]["complete"] == 1


@needs_mounts
def test_what_cannot_be_read_is_named_and_the_rest_is_read(command: Commandline, files: Path, place: Path) -> None:
    for name in ("a", "refused", "z"):
        (files / name).write_bytes(bytes(10))
    done = command.run("cache", "warm", place, place / "absent")
    assert done.returncode in (ACCESS, SOURCE)
    assert done.stdout.startswith("Read 2 files (20 bytes")
    said = done.stderr.splitlines()
    assert f"pyfusekit: {place}/refused: Permission denied" in said
    assert f"pyfusekit: {place}/absent: No such file or directory" in said
    assert f"  pyfusekit errors {place} may say why" in said
    assert len(said) == 4


@needs_mounts
def test_a_long_list_of_failures_is_cut(command: Commandline, files: Path, place: Path) -> None:
    for number in range(14):
        (files / f"d{number}").mkdir()
        (files / f"d{number}" / "refused").write_bytes(b"x")
    done = command.run("cache", "warm", place)
    assert done.returncode == ACCESS
    assert done.stderr.count("Permission denied") == warming.TOLD_FAILURES
    assert done.stderr.endswith("\npyfusekit: 4 more could not be read\n")


@needs_mounts
def test_more_than_the_cache_takes_is_said(command: Commandline, files: Path, place: Path) -> None:
    (files / "big").write_bytes(bytes(3 * MIB))
    done = command.run("cache", "warm", place)
    assert done.returncode == 0
    assert done.stderr.startswith(f"pyfusekit: note: that is more than a cache takes ({place} has 2.0 MiB): ")


@needs_mounts
def test_other_mounts_and_links_in_a_tree_are_left_alone(command: Commandline, files: Path, place: Path) -> None:
    (files / "a").write_bytes(b"x")
    (files / "inner").mkdir()
    (files / "link").symlink_to(files)
    (files / "other").symlink_to(files / "a")
    assert command.run("mount", "mem", place / "inner").returncode == 0
    (place / "inner" / "b").write_bytes(b"y")
    try:
        done = command.run("cache", "warm", place)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("Read 1 file (1 byte")
    finally:
        command.run("umount", place / "inner")


@needs_mounts
def test_a_mount_without_a_cache_and_a_path_in_none_are_refused(command: Commandline, files: Path) -> None:
    bare = command.folder("bare")
    assert command.run("mount", "keeps", bare).returncode == 0
    done = command.run("cache", "warm", bare / "x", command.top)
    assert (done.returncode, done.stdout) == (USAGE, "")
    assert done.stderr.splitlines()[0] == f"pyfusekit: {bare} has no disk cache to read {bare}/x into"
    assert done.stderr.splitlines()[2] == f"pyfusekit: {command.top} is not in one of pyfusekit's mounts"
    assert command.run("cache", "warm", command.top).returncode == NOT_MOUNTED


@needs_mounts
def test_ctrl_c_ends_it_at_once_and_says_how_far_it_was(command: Commandline, files: Path, place: Path) -> None:
    (files / "a").write_bytes(bytes(1000))
    (files / "never").write_bytes(bytes(1000))
    servers = set(command.processes())
    process = command.start("cache", "warm", place)
    deadline = time.monotonic() + 20
    while not (command.top / "cache").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert out == ""
    assert err.strip().startswith("Stopped; read 1 file (1000 bytes")
    deadline = time.monotonic() + 20
    while set(command.processes()) != servers and time.monotonic() < deadline:
        time.sleep(0.01)
    assert set(command.processes()) == servers


@needs_mounts
def test_a_server_that_hangs_does_not_hang_it(
    command: Commandline, files: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (files / "never").write_bytes(bytes(1000))
    (pid,) = command.processes()
    monkeypatch.setattr(warming, "STALLED_S", 0.3)
    goal = warming.target(str(place))

    class Terminal(io.StringIO):
        def __init__(self) -> None:
            super().__init__()
            self.turns = 0

        def isatty(self) -> bool:
            return True

        def flush(self) -> None:
            self.turns += 1
            if self.turns == 3:
                os.kill(pid, signal.SIGSTOP)

    stream = Terminal()
    try:
        with pytest.raises(Failure, match="does not answer") as caught:
            warming.Warming([goal], warming.Meter(stream)).run()
    finally:
        os.kill(pid, signal.SIGCONT)
    assert caught.value.code == TIMED_OUT
    assert stream.getvalue().endswith("\r\x1b[K")


def test_the_meter_is_a_line_on_a_terminal_and_now_and_then_one_elsewhere() -> None:
    now = 100.0
    for is_terminal in (True, False):
        stream = io.StringIO()
        stream.isatty = lambda: is_terminal  # type: ignore[method-assign]  # noqa: B023
        now = 100.0
        meter = warming.Meter(stream, lambda: now)  # noqa: B023
        meter.tell(0, 0)
        now = 102.0
        meter.tell(1, 2 * MIB)
        now = 112.0
        meter.tell(2, 24 * MIB)
        meter.clear()
        if is_terminal:
            assert stream.getvalue() == (
                "\rReading: 0 files, 0 bytes\x1b[K"
                "\rReading: 1 file, 2.0 MiB, 1.0 MiB/s\x1b[K"
                "\rReading: 2 files, 24 MiB, 2.0 MiB/s\x1b[K"
                "\r\x1b[K"
            )
        else:
            assert stream.getvalue() == "Reading: 2 files, 24 MiB, 2.0 MiB/s\n"


def test_a_path_is_in_its_own_tree_only() -> None:
    tree = SimpleNamespace(path="/m/a")
    found = [warming._is_in(path, tree) for path in ("/m/a", "/m/a/b", "/m/ab")]  # type: ignore[arg-type]
    assert found == [True, True, False]
