"""Contracts about writing, truncating and opening."""

from __future__ import annotations

import errno
import os

import pytest

from ..tree import (
    Tree,
)
from .base import ALICE, Capability, fails_with, opened, pattern

PAGE = 4096


class WriteContract:
    """Writing, appending, truncating: what was written is read, and nothing else."""

    @pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 65_536, 1_200_001])
    def test_what_was_written_is_read(self, tree: Tree, size: int) -> None:
        data = pattern(size, seed=size)
        tree.write_file("f", data)
        tree.drop_caches()
        assert tree.read_file("f") == data
        assert tree.stat("f").size == size

    def test_overwriting_the_middle_leaves_the_rest(self, tree: Tree) -> None:
        data = bytearray(pattern(20_000))
        tree.write_file("f", bytes(data))
        with opened(tree, "f", os.O_RDWR) as fd:
            assert tree.pwrite(fd, b"X" * 5000, 3000) == 5000
            data[3000:8000] = b"X" * 5000
            assert tree.pread(fd, 20_000, 0) == bytes(data)
        tree.drop_caches()
        assert tree.read_file("f") == bytes(data)

    def test_overwriting_the_end_makes_the_file_longer(self, tree: Tree) -> None:
        tree.write_file("f", b"0123456789")
        with opened(tree, "f", os.O_WRONLY) as fd:
            tree.pwrite(fd, b"abcdef", 8)
        assert tree.read_file("f") == b"01234567abcdef"

    def test_writing_behind_the_end_leaves_zeros_between(self, tree: Tree) -> None:
        tree.write_file("f", b"abc")
        with opened(tree, "f", os.O_WRONLY) as fd:
            tree.pwrite(fd, b"xyz", 10_000)
        assert tree.stat("f").size == 10_003
        tree.drop_caches()
        assert tree.read_file("f") == b"abc" + bytes(9997) + b"xyz"

    def test_writing_nothing_changes_nothing(self, tree: Tree) -> None:
        tree.write_file("f", b"abc")
        with opened(tree, "f", os.O_WRONLY) as fd:
            assert tree.pwrite(fd, b"", 100) == 0
        assert tree.stat("f").size == 3

    def test_sequential_writes_follow_each_other(self, tree: Tree) -> None:
        with opened(tree, "f", os.O_CREAT | os.O_RDWR) as fd:
            for index in range(50):
                assert tree.write(fd, b"%06d\n" % index) == 7
            assert tree.lseek(fd, 0, os.SEEK_CUR) == 350
        assert tree.read_file("f") == b"".join(b"%06d\n" % index for index in range(50))

    def test_append_goes_to_the_end_wherever_the_offset_is(self, tree: Tree) -> None:
        tree.write_file("f", b"one")
        with opened(tree, "f", os.O_RDWR | os.O_APPEND) as fd:
            tree.lseek(fd, 0, os.SEEK_SET)
            tree.write(fd, b"two")
            tree.lseek(fd, 1, os.SEEK_SET)
            tree.write(fd, b"three")
        assert tree.read_file("f") == b"onetwothree"

    def test_two_appenders_do_not_overwrite_each_other(self, tree: Tree) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        with opened(tree, "f", flags) as one, opened(tree, "f", flags) as two:
            for _ in range(5):
                tree.write(one, b"1")
                tree.write(two, b"2")
        assert tree.read_file("f") == b"1212121212"

    def test_write_is_seen_through_another_descriptor(self, tree: Tree) -> None:
        tree.write_file("f", b"before")
        with opened(tree, "f") as reader, opened(tree, "f", os.O_WRONLY) as writer:
            assert tree.pread(reader, 6, 0) == b"before"
            tree.pwrite(writer, b"after!!", 0)
            assert tree.pread(reader, 10, 0) == b"after!!"
            assert tree.fstat(reader).size == 7

    @pytest.mark.parametrize("size", [0, 1, 4095, 4096, 5000, 9999])
    def test_truncating_cuts_and_keeps_the_beginning(self, tree: Tree, size: int) -> None:
        data = pattern(10_000)
        tree.write_file("f", data)
        tree.truncate("f", size)
        assert tree.stat("f").size == size
        tree.drop_caches()
        assert tree.read_file("f") == data[:size]

    def test_truncating_up_appends_zeros(self, tree: Tree) -> None:
        tree.write_file("f", b"abc")
        tree.truncate("f", 9000)
        assert tree.read_file("f") == b"abc" + bytes(8997)

    def test_bytes_cut_off_do_not_come_back(self, tree: Tree) -> None:
        tree.write_file("f", b"S" * 9000)
        tree.truncate("f", 100)
        tree.truncate("f", 9000)
        tree.drop_caches()
        assert tree.read_file("f") == b"S" * 100 + bytes(8900)

    def test_bytes_cut_off_do_not_come_back_when_writing_behind_them(self, tree: Tree) -> None:
        tree.write_file("f", b"S" * 5000)
        with opened(tree, "f", os.O_RDWR) as fd:
            tree.ftruncate(fd, 10)
            tree.pwrite(fd, b"E", 4999)
            assert tree.pread(fd, 5000, 0) == b"S" * 10 + bytes(4989) + b"E"

    def test_ftruncate_moves_no_offset(self, tree: Tree) -> None:
        with opened(tree, "f", os.O_CREAT | os.O_RDWR) as fd:
            tree.write(fd, b"0123456789")
            tree.ftruncate(fd, 4)
            assert tree.lseek(fd, 0, os.SEEK_CUR) == 10
            tree.write(fd, b"x")
        assert tree.read_file("f") == b"0123" + bytes(6) + b"x"

    def test_truncate_refuses_nonsense(self, tree: Tree) -> None:
        tree.write_file("f", b"abc")
        tree.mkdir("d")
        with fails_with(errno.EINVAL):
            tree.truncate("f", -1)
        with fails_with(errno.EISDIR):
            tree.truncate("d", 0)
        with fails_with(errno.ENOENT):
            tree.truncate("missing", 0)
        with opened(tree, "f") as fd, fails_with(errno.EINVAL, errno.EBADF):
            tree.ftruncate(fd, 0)
        assert tree.read_file("f") == b"abc"

    def test_unlinked_file_is_read_and_written_until_it_is_closed(self, tree: Tree) -> None:
        fd = tree.open("f", os.O_CREAT | os.O_RDWR, 0o644)
        tree.write(fd, b"still here")
        tree.unlink("f")
        assert not tree.exists("f")
        tree.drop_caches()
        assert tree.pread(fd, 100, 0) == b"still here"
        tree.pwrite(fd, b"grown", 10)
        tree.ftruncate(fd, 12)
        assert tree.fstat(fd).size == 12
        assert tree.fstat(fd).nlink == 0
        tree.fchmod(fd, 0o600)
        assert tree.fstat(fd).mode & 0o7777 == 0o600
        tree.close(fd)

    def test_new_file_of_an_unlinked_name_is_another_file(self, tree: Tree) -> None:
        tree.write_file("f", b"old")
        with opened(tree, "f") as old:
            tree.unlink("f")
            tree.write_file("f", b"new!")
            assert tree.pread(old, 10, 0) == b"old"
            assert tree.read_file("f") == b"new!"
            assert tree.fstat(old).ino != tree.stat("f").ino

    def test_file_replaced_by_rename_is_read_until_it_is_closed(self, tree: Tree) -> None:
        tree.write_file("f", b"old")
        tree.write_file("g", b"new")
        with opened(tree, "f") as old:
            tree.rename("g", "f")
            assert tree.pread(old, 10, 0) == b"old"
        assert tree.read_file("f") == b"new"

    def test_fsync_and_fdatasync_succeed(self, tree: Tree) -> None:
        with opened(tree, "f", os.O_CREAT | os.O_WRONLY) as fd:
            tree.write(fd, b"data")
            tree.fsync(fd)
            tree.fdatasync(fd)
            tree.fsync(fd)
        assert tree.read_file("f") == b"data"

    def test_writing_a_read_only_descriptor_is_ebadf(self, tree: Tree) -> None:
        tree.write_file("f", b"abc")
        with opened(tree, "f") as fd, fails_with(errno.EBADF):
            tree.pwrite(fd, b"x", 0)

    def test_reading_a_write_only_descriptor_is_ebadf(self, tree: Tree) -> None:
        with opened(tree, "f", os.O_CREAT | os.O_WRONLY) as fd, fails_with(errno.EBADF):
            tree.pread(fd, 1, 0)

    def test_blocks_grow_with_the_contents(self, tree: Tree) -> None:
        tree.write_file("f")
        assert tree.stat("f").blocks == 0
        tree.write_file("f", b"x" * 40_960)
        assert 80 <= tree.stat("f").blocks <= 160

    def test_setuid_bit_is_cleared_by_another_users_write(self, tree: Tree) -> None:
        tree.chmod("", 0o777)
        tree.write_file("f", b"abc")
        tree.chmod("f", 0o6777)
        assert tree.stat("f").mode & 0o7777 == 0o6777
        with tree.actor(ALICE, ALICE) as alice:
            fd = alice.run(tree.open, "f", os.O_WRONLY)
            alice.run(tree.pwrite, fd, b"x", 0)
            alice.run(tree.close, fd)
        assert tree.stat("f").mode & 0o7777 == 0o777

    def test_setuid_bit_is_cleared_by_another_users_truncate(self, tree: Tree) -> None:
        tree.chmod("", 0o777)
        tree.write_file("f", b"abc")
        tree.chmod("f", 0o6777)
        with tree.actor(ALICE, ALICE) as alice:
            alice.run(tree.truncate, "f", 1)
        assert tree.stat("f").mode & 0o7777 == 0o777

    def test_roots_write_keeps_the_setuid_bit(self, tree: Tree) -> None:
        tree.write_file("f", b"abc")
        tree.chmod("f", 0o6755)
        with opened(tree, "f", os.O_WRONLY) as fd:
            tree.pwrite(fd, b"x", 0)
        assert tree.stat("f").mode & 0o7777 == 0o6755


class OpenFlagsContract:
    """What open(2)'s flags do."""

    def test_creating_makes_an_empty_file(self, tree: Tree) -> None:
        with opened(tree, "f", os.O_CREAT | os.O_RDWR) as fd:
            assert tree.fstat(fd).size == 0
            assert tree.pread(fd, 10, 0) == b""
        assert tree.listdir() == [b"f"]

    def test_creating_what_is_there_opens_it(self, tree: Tree) -> None:
        tree.write_file("f", b"there", 0o600)
        with opened(tree, "f", os.O_CREAT | os.O_RDWR, 0o777) as fd:
            assert tree.pread(fd, 10, 0) == b"there"
        assert tree.stat("f").mode & 0o7777 == 0o600

    def test_exclusive_creation_of_what_is_there_is_eexist(self, tree: Tree) -> None:
        tree.write_file("f", b"there")
        tree.mkdir("d")
        for name in ("f", "d"):
            with fails_with(errno.EEXIST):
                tree.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        assert tree.read_file("f") == b"there"

    def test_exclusive_creation_does_not_follow_a_link(self, tree: Tree, supports_symlinks: Capability) -> None:
        with supports_symlinks:
            tree.symlink("target", "s")
            with fails_with(errno.EEXIST):
                tree.open("s", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            assert tree.listdir() == [b"s"]

    def test_creating_through_a_dangling_link_makes_its_target(self, tree: Tree, supports_symlinks: Capability) -> None:
        with supports_symlinks:
            tree.symlink("target", "s")
            tree.write_file("s", b"through")
            assert tree.read_file("target") == b"through"

    def test_truncation_on_open_empties_the_file(self, tree: Tree) -> None:
        tree.write_file("f", pattern(9000))
        with opened(tree, "f", os.O_RDWR | os.O_TRUNC) as fd:
            assert tree.fstat(fd).size == 0
            tree.write(fd, b"new")
        assert tree.read_file("f") == b"new"

    def test_truncation_is_seen_by_who_has_it_open(self, tree: Tree) -> None:
        tree.write_file("f", pattern(9000))
        with opened(tree, "f") as reader:
            tree.close(tree.open("f", os.O_WRONLY | os.O_TRUNC))
            assert tree.pread(reader, 10, 0) == b""
            assert tree.fstat(reader).size == 0

    def test_opening_a_directory_for_writing_is_eisdir(self, tree: Tree) -> None:
        tree.mkdir("d")
        for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_CREAT):
            with fails_with(errno.EISDIR):
                tree.open("d", flags)

    def test_directory_flag_refuses_a_file(self, tree: Tree) -> None:
        tree.write_file("f")
        with fails_with(errno.ENOTDIR):
            tree.open("f", os.O_RDONLY | os.O_DIRECTORY)

    def test_nofollow_flag_refuses_a_link(self, tree: Tree, supports_symlinks: Capability) -> None:
        with supports_symlinks:
            tree.symlink("f", "s")
            tree.write_file("f", b"x")
            with fails_with(errno.ELOOP):
                tree.open("s", os.O_RDONLY | os.O_NOFOLLOW)

    def test_mode_is_the_one_asked_for_without_the_umask(self, tree: Tree) -> None:
        for mask, asked, got in ((0o022, 0o666, 0o644), (0o077, 0o777, 0o700), (0, 0o642, 0o642), (0o777, 0o777, 0)):
            old = tree.umask(mask)
            try:
                tree.close(tree.open(f"f{mask}", os.O_CREAT | os.O_WRONLY, asked))
            finally:
                tree.umask(old)
            assert tree.stat(f"f{mask}").mode & 0o7777 == got

    def test_new_file_may_be_written_whatever_its_mode(self, tree: Tree) -> None:
        tree.chmod("", 0o777)
        with tree.actor(ALICE, ALICE) as alice:
            fd = alice.run(tree.open, "f", os.O_CREAT | os.O_RDWR, 0)
            assert alice.run(tree.write, fd, b"mine") == 4
            alice.run(tree.close, fd)
            with fails_with(errno.EACCES):
                alice.run(tree.open, "f", os.O_RDONLY)
        assert tree.stat("f").mode & 0o7777 == 0

    def test_creating_below_a_missing_directory_is_enoent(self, tree: Tree) -> None:
        with fails_with(errno.ENOENT):
            tree.open("missing/f", os.O_CREAT | os.O_WRONLY)

    def test_creating_below_a_file_is_enotdir(self, tree: Tree) -> None:
        tree.write_file("f")
        with fails_with(errno.ENOTDIR):
            tree.open("f/g", os.O_CREAT | os.O_WRONLY)

    def test_creating_with_a_slash_at_the_end_is_eisdir(self, tree: Tree) -> None:
        with fails_with(errno.EISDIR):
            tree.open("f/", os.O_CREAT | os.O_WRONLY)

    def test_direct_io_reads_what_buffered_io_wrote(self, tree: Tree, supports_direct_io: Capability) -> None:
        data = pattern(3 * PAGE)
        tree.write_file("f", data)
        with supports_direct_io, opened(tree, "f", os.O_RDONLY | os.O_DIRECT) as fd:
            assert tree.read_direct(fd, 2 * PAGE, PAGE) == data[PAGE:]
            assert tree.read_direct(fd, 2 * PAGE, 3 * PAGE) == b""

    def test_synchronous_writes_are_read(self, tree: Tree) -> None:
        with opened(tree, "f", os.O_CREAT | os.O_WRONLY | os.O_SYNC) as fd:
            tree.write(fd, b"sync")
        with opened(tree, "f", os.O_WRONLY | os.O_DSYNC) as fd:
            tree.pwrite(fd, b"D", 0)
        assert tree.read_file("f") == b"Dync"


__all__ = ["OpenFlagsContract", "WriteContract"]
