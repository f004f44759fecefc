"""Local changes that are given up: what the store holds shows again, and nothing else is ever shown."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Coroutine
from pathlib import Path
from typing import Any
from unittest.mock import Mock

from fakestore import FakeStore

from pyfusekit.core import Attr, Duration, Opened, Request, SetAttr
from pyfusekit.fs.s3fs import S3FS, S3Options

ME = Request(2, 1000, 1000, 4711)
NEVER = Duration(0.0)


async def done(result: Any) -> Any:
    """Return a handler's value, whether it had to wait or not."""
    return await result if isinstance(result, Coroutine) else result


async def mounted(store: FakeStore, top: Path, **options: Any) -> S3FS:
    options = {"metadata_ttl": NEVER, "probe": False, "staging_dir": f"{top}/state", "cache_dir": f"{top}/cache", **options}
    fs = S3FS("bucket", S3Options(**options), store=store)
    fs.notifier = Mock()
    await fs.init()
    return fs


async def created(fs: S3FS, name: bytes, data: bytes) -> tuple[Attr, Any]:
    """Make a file, write to it, and return it with its handle."""
    attr, opened = await done(fs.create(ME, 1, name, 0o100644, 0, os.O_RDWR))
    assert isinstance(opened, Opened)
    assert await done(fs.write(ME, attr.ino, opened.handle, 0, memoryview(data))) == len(data)
    return attr, opened.handle


async def looked_up(fs: S3FS, name: bytes) -> Attr | None:
    found: Attr | None = await done(fs.lookup(ME, 1, name))
    return found


async def errno_of(result: Any) -> int | None:
    try:
        await done(result)
    except OSError as exc:
        return exc.errno
    return None


async def test_name_that_somebody_else_took_shows_theirs_and_the_inode_of_ours_is_estale(tmp_path: Path) -> None:
    store = FakeStore()
    fs = await mounted(store, tmp_path)
    attr, handle = await created(fs, b"new", b"ours")
    store.seed("new", b"somebody else's")
    assert await errno_of(fs.flush(ME, attr.ino, handle, 0)) == errno.ESTALE
    await done(fs.release(ME, attr.ino, handle))
    # The kernel may come with the number of our inode: its dentry is a moment old.
    assert await errno_of(_open(fs, attr.ino)) == errno.ESTALE
    assert await errno_of(_getattr(fs, attr.ino)) == errno.ESTALE
    theirs = await looked_up(fs, b"new")
    assert theirs is not None
    assert theirs.ino != attr.ino
    assert theirs.size == 15
    await fs.destroy()


async def test_write_back_that_meets_somebody_elses_file_shows_theirs(tmp_path: Path) -> None:
    store = FakeStore()
    fs = await mounted(store, tmp_path, write_back=True, write_back_delay=Duration(3600.0))
    attr, handle = await created(fs, b"new", b"ours")
    await done(fs.flush(ME, attr.ino, handle, 0))
    reading = await done(fs.open(ME, attr.ino, os.O_RDONLY))
    await done(fs.release(ME, attr.ino, handle))
    store.seed("new", b"somebody else's")
    await fs.drain(asyncio.get_running_loop().time() + 20)
    assert fs.waiting() == (0, 0)
    assert await errno_of(_read(fs, attr.ino, reading.handle)) == errno.ESTALE
    assert await errno_of(_getattr(fs, attr.ino)) == errno.ESTALE
    theirs = await looked_up(fs, b"new")
    assert theirs is not None
    assert theirs.size == 15
    (kept,) = [path for path in (tmp_path / "state" / "conflicts").iterdir() if path.suffix != ".json"]
    assert kept.read_bytes() == b"ours"
    await done(fs.release(ME, attr.ino, reading.handle))
    await fs.destroy()


async def test_pages_of_a_version_that_was_not_published_are_dropped(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("file", b"the store's")
    fs = await mounted(store, tmp_path)
    attr = await looked_up(fs, b"file")
    assert attr is not None
    opened = await done(fs.open(ME, attr.ino, os.O_RDWR))
    await done(fs.write(ME, attr.ino, opened.handle, 0, memoryview(b"OURS")))
    store.seed("file", b"theirs")
    assert await errno_of(fs.flush(ME, attr.ino, opened.handle, 0)) == errno.ESTALE
    await done(fs.release(ME, attr.ino, opened.handle))
    fs.notifier.inval_inode.assert_any_call(attr.ino, 0)  # type: ignore[attr-defined]
    await fs.destroy()


async def _open(fs: S3FS, ino: int) -> Any:
    return await done(fs.open(ME, ino, os.O_RDONLY))


async def _getattr(fs: S3FS, ino: int) -> Any:
    return await done(fs.getattr(ME, ino, None))


async def _read(fs: S3FS, ino: int, handle: Any) -> Any:
    return await done(fs.read(ME, ino, handle, 0, 4096))


async def test_truncate_of_a_file_that_somebody_changed_leaves_no_copy_and_can_be_repeated(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("file", b"the store's")
    fs = await mounted(store, tmp_path)
    attr = await looked_up(fs, b"file")
    assert attr is not None
    store.seed("file", b"somebody else's")
    assert await errno_of(fs.setattr(ME, attr.ino, SetAttr(size=4), None)) == errno.ESTALE
    assert list(fs.problems) == []
    assert not (tmp_path / "state" / "conflicts").exists() or not list((tmp_path / "state" / "conflicts").iterdir())
    # The kernel looks the name up again, and repeats it.
    again = await looked_up(fs, b"file")
    assert again is not None
    await fs.setattr(ME, again.ino, SetAttr(size=4), None)
    assert store.data("file") == b"some"
    await fs.destroy()


async def test_problem_is_shown_where_it_is_below_the_mountpoint(tmp_path: Path) -> None:
    store = FakeStore()
    store.seed("deep/er/file", b"x")
    fs = S3FS("bucket/deep/er", S3Options(probe=False, staging_dir=f"{tmp_path}/state", cache_dir=f"{tmp_path}/c"), store=store)
    fs.notifier = Mock()
    await fs.init()
    fs.report(OSError(errno.EIO, "broken"), "GetObject", "deep/er/file")
    assert [problem.path for problem in fs.problems] == ["file"]
    await fs.destroy()
