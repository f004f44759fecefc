"""Local changes over a base, against a bytearray; and what a staging area does when it is full, saved and adopted."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyfusekit.fs.s3fs.remote.store import MAX_OBJECT, Object
from pyfusekit.fs.s3fs.writing import sparse, staging
from pyfusekit.fs.s3fs.writing.scratch import Scratch
from pyfusekit.fs.s3fs.writing.staging import Base, Local, Staged, Zero

SPACE = 64
BASE = bytes(range(1, 41))
ITEM = Object("key", len(BASE), 0, "etag")
steps = st.lists(
    st.tuples(
        st.sampled_from(["write", "truncate", "zero", "fill", "publish", "freeze", "touch"]),
        st.integers(0, SPACE),
        st.integers(0, 24),
    ),
    max_size=25,
)


@pytest.fixture
def scratch(tmp_path: Path) -> Scratch:
    return Scratch(str(tmp_path / "staging"))


def contents(staged: Staged, base: bytes, offset: int = 0, size: int = SPACE * 4) -> bytes:
    """Return the file's bytes as plan_read says where they are."""
    found = b""
    position = offset
    for piece in staged.plan_read(offset, size):
        assert piece.start == position < piece.end
        position = piece.end
        if isinstance(piece, Local):
            found += os.pread(staged.fd, piece.end - piece.start, piece.start)
        elif isinstance(piece, Base):
            found += base[piece.start : piece.end]
        else:
            assert isinstance(piece, Zero)
            found += bytes(piece.end - piece.start)
    assert position == max(offset, min(staged.size, offset + size))
    return found


@given(steps, st.booleans(), st.tuples(st.integers(0, SPACE), st.integers(0, SPACE)))
@settings(max_examples=250, deadline=None)
def test_a_staged_file_is_its_model(done: list[tuple[str, int, int]], new: bool, asked: tuple[int, int]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        scratch = Scratch(directory)
        staged = scratch.stage(None if new else ITEM)
        base = b"" if new else BASE
        model = bytearray(base)
        snapshot: tuple[bytes, staging.Snapshot] | None = None
        for number, (word, offset, length) in enumerate(done):
            data = bytes((number * 7 + index) % 255 + 1 for index in range(length))
            generation = staged.generation
            if word == "write":
                assert staged.write(offset, data) == length
                model.extend(bytes(max(0, offset + length - len(model)) if length else 0))
                model[offset : offset + length] = data
                assert staged.generation > generation or not length
            elif word == "truncate":
                staged.truncate(offset)
                del model[offset:]
                model.extend(bytes(offset - len(model)))
            elif word == "zero":
                staged.zero(offset, offset + length)
                end = min(offset + length, len(model))
                model[offset:end] = bytes(max(0, end - offset))
            elif word == "fill":
                staged.fill(offset, base[offset : offset + length])
            elif word == "touch":
                staged.touch()
                assert staged.dirty
            elif word == "freeze":
                for low, high in staged.missing(0, staged.size):
                    staged.fill(low, base[low:high])
                snapshot = bytes(model), staged.freeze(hold=False)
            elif snapshot is not None:
                # What is sent is what was there at freeze, whatever was written since.
                base = snapshot[0]
                staged.published(Object("key", len(base), 0, f"etag{number}"), snapshot[1])
                staged.thaw()
                assert staged.dirty == (staged.generation != snapshot[1].generation)
                snapshot = None
            assert staged.size == len(model)
            assert contents(staged, base) == bytes(model)
            assert scratch.used_bytes == staged.local.total
        offset, size = asked
        whole = staged.read(offset, size)
        assert whole is None or whole == bytes(model[offset : offset + size])
        assert contents(staged, base, offset, size) == bytes(model[offset : offset + size])
        assert staged.complete == (not staged.missing(0, staged.size))
        if not staged.data_dirty:
            assert base == bytes(model)
        for start, end in staged.copyable():
            assert base[start:end] == model[start:end]
        shown = staged.allocated(0, SPACE * 4)
        for start, end in zip([0, *(end for _, end in shown)], [*(start for start, _ in shown), len(model)], strict=True):
            assert not any(model[start:end]), "a hole is zero"
        again = scratch.adopt(json.loads(json.dumps(staged.record())), os.dup(staged.fd))
        assert contents(again, base) == bytes(model)
        assert again.record() == staged.record()
        assert again.dirty
        again.close()
        staged.close()
        staged.close()
        assert scratch.used_bytes == 0


def test_a_new_file_is_dirty_and_an_opened_one_is_not(scratch: Scratch) -> None:
    assert scratch.stage(None).dirty
    assert not scratch.stage(ITEM).dirty
    truncated = scratch.stage(ITEM, truncated=True)
    assert truncated.dirty
    assert (truncated.size, truncated.base_limit, truncated.base) == (0, 0, ITEM)
    assert truncated.read(0, 10) == b""


def test_a_full_staging_area_refuses_before_anything_is_written(tmp_path: Path) -> None:
    scratch = Scratch(str(tmp_path), 100)
    one, other = scratch.stage(None), scratch.stage(ITEM)
    assert one.write(0, bytes(60)) == 60
    with pytest.raises(OSError, match="staging area is full") as caught:
        other.write(0, b"x" * 41)
    assert caught.value.errno == errno.ENOSPC
    assert (other.size, other.dirty, list(other.local)) == (40, False, [])
    assert one.write(20, b"y" * 80) == 80, "only what is new counts"
    one.truncate(10)
    assert other.write(0, b"x" * 90) == 90
    one.close()
    assert scratch.used_bytes == 90


def test_a_full_disk_takes_what_fits_and_then_nothing(scratch: Scratch, monkeypatch: pytest.MonkeyPatch) -> None:
    staged = scratch.stage(None)
    left = 7

    def pwrite(fd: int, data: bytes, offset: int) -> int:
        nonlocal left
        if not left:
            raise OSError(errno.ENOSPC, "disk full")
        taken = min(left, len(data))
        left -= taken
        return taken

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", pwrite)
        assert staged.write(0, b"0123456789") == 7
        with pytest.raises(OSError, match="disk full"):
            staged.write(7, b"789")
    assert staged.size == 7
    assert list(staged.local) == [(0, 7)]


def test_nothing_is_larger_than_5_tib(scratch: Scratch) -> None:
    staged = scratch.stage(None)
    for act in (lambda: staged.write(MAX_OBJECT, b"x"), lambda: staged.truncate(MAX_OBJECT + 1)):
        with pytest.raises(OSError, match="5 TiB") as caught:
            act()
        assert caught.value.errno == errno.EFBIG
    assert staged.size == 0


def test_bytes_that_are_being_sent_do_not_change(scratch: Scratch) -> None:
    staged = scratch.stage(None)
    staged.write(0, b"0123456789")
    snapshot = staged.freeze(hold=True)
    for act in (lambda: staged.write(9, b"x"), lambda: staged.truncate(5), lambda: staged.zero(0, 1)):
        with pytest.raises(OSError, match="being published") as caught:
            act()
        assert caught.value.errno == errno.EBUSY
    assert staged.write(10, b"more") == 4
    staged.published(Object("key", 10, 0, "new"), snapshot)
    staged.thaw()
    assert staged.dirty
    assert list(staged.changed) == [(10, 14)]
    assert staged.base_limit == 10
    staged.truncate(3)
    assert staged.read(0, 99) == b"012"


def test_what_is_cut_off_while_it_is_sent_does_not_come_back(scratch: Scratch) -> None:
    staged = scratch.stage(None)
    staged.write(0, b"0123456789")
    snapshot = staged.freeze(hold=False)
    staged.truncate(2)
    staged.published(Object("key", 10, 0, "new"), snapshot)
    staged.thaw()
    staged.truncate(5)
    assert contents(staged, b"0123456789") == b"01\0\0\0"
    assert staged.copyable() == []
    assert staged.dirty


def test_an_adopted_file_must_hold_what_its_record_says(scratch: Scratch) -> None:
    staged = scratch.stage(None)
    staged.write(0, b"0123456789")
    record = staged.record()
    os.ftruncate(staged.fd, 5)
    with pytest.raises(OSError, match="shorter") as caught:
        scratch.adopt(record, os.dup(staged.fd))
    assert caught.value.errno == errno.EIO
    assert scratch.used_bytes == 10


def test_an_adopted_file_is_extended_where_only_zeros_are_missing(scratch: Scratch) -> None:
    staged = scratch.stage(None)
    staged.write(0, b"01234")
    staged.truncate(9)
    record = staged.record()
    os.ftruncate(staged.fd, 5)
    assert scratch.adopt(record, os.dup(staged.fd)).read(0, 99) == b"01234\0\0\0\0"


def test_a_saved_file_outlives_its_staged(scratch: Scratch, tmp_path: Path) -> None:
    staged = scratch.stage(None)
    staged.write(0, b"kept")
    staged.save(str(tmp_path / "name"))
    staged.close()
    assert (tmp_path / "name").read_bytes() == b"kept"
    assert os.listdir(scratch.directory) == []


def test_where_files_need_names_they_have_one_until_close(scratch: Scratch, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refuse(path: str, flags: int, *rest: int, **more: int) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "no nameless files")
        return real(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", refuse)
    staged = scratch.stage(None)
    staged.write(0, b"x")
    assert len(os.listdir(scratch.directory)) == 1
    staged.close()
    assert os.listdir(scratch.directory) == []


def test_a_file_can_be_replaced_by_one_with_the_same_bytes(scratch: Scratch) -> None:
    staged = scratch.stage(None)
    staged.write(0, b"0123")
    staged.truncate(6)
    number = staged.fd
    fd, _ = scratch.open()
    os.pwrite(fd, b"0123", 0)
    staged.replace_file(fd)
    assert staged.fd == number
    assert not os.get_inheritable(number)
    assert staged.read(0, 9) == b"0123\0\0"


def test_zeros_are_written_where_holes_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    with open(path, "r+b") as file:
        sparse.punch(file.fileno(), 2, 4)
        monkeypatch.setattr(sparse, "_fallocate", lambda: lambda *_: -1)
        sparse.punch(file.fileno(), 6, 12)
    assert path.read_bytes() == b"01\0\x0045" + bytes(6)


def test_bytes_that_only_an_upload_holds_are_busy(scratch: Scratch) -> None:
    staged = scratch.stage(None)
    staged.write(0, b"0123456789")
    staged.drop(4, 8)
    assert scratch.used_bytes == 6
    assert staged.read(0, 4) == b"0123"
    for read in (lambda: staged.read(3, 2), lambda: staged.plan_read(0, 10)):
        with pytest.raises(OSError, match="sent already") as caught:
            read()
        assert caught.value.errno == errno.EBUSY
    with pytest.raises(OSError, match="sent already") as caught:
        staged.write(7, b"x")
    assert caught.value.errno == errno.ENOSPC
    assert not staged.complete
