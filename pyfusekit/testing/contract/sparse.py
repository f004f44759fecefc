"""Contracts about holes, preallocation, copying, and mapping."""

from __future__ import annotations

import errno
import os

import pytest

from ..tree import (
    FALLOC_FL_COLLAPSE_RANGE,
    FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_PUNCH_HOLE,
    FALLOC_FL_ZERO_RANGE,
    Tree,
)
from .base import SUPPORTED, Capability, Refused, fails_with, opened, pattern

PAGE = 4096


class SparseContract:
    """Holes, preallocation, copying inside the filesystem."""

    def test_huge_sparse_file_costs_nothing(self, tree: Tree, max_size: int, supports_holes: Capability) -> None:
        tree.write_file("f")
        tree.truncate("f", max_size)
        assert tree.stat("f").size == max_size
        with opened(tree, "f", os.O_RDWR) as fd:
            assert tree.pread(fd, 100, max_size // 2) == bytes(100)
            tree.pwrite(fd, b"end", max_size - 3)
            assert tree.pread(fd, 10, max_size - 3) == b"end"
        assert tree.stat("f").size == max_size
        if supports_holes:
            assert tree.stat("f").blocks < 4096

    def test_holes_are_read_as_zeros(self, tree: Tree) -> None:
        with opened(tree, "f", os.O_CREAT | os.O_RDWR) as fd:
            for offset in (0, 1 << 20, 5 << 20):
                tree.pwrite(fd, b"data", offset)
            assert tree.pread(fd, 4096, 4096) == bytes(4096)
            assert tree.pread(fd, 8, (1 << 20) - 2) == b"\0\0data\0\0"

    def test_holes_take_no_blocks(self, tree: Tree, supports_holes: Capability) -> None:
        with opened(tree, "f", os.O_CREAT | os.O_RDWR) as fd:
            tree.pwrite(fd, b"data", 64 << 20)
        if supports_holes:
            assert 0 < tree.stat("f").blocks <= 8192

    def test_seek_finds_data_and_holes(self, tree: Tree, supports_holes: Capability) -> None:
        with opened(tree, "f", os.O_CREAT | os.O_RDWR) as fd:
            tree.pwrite(fd, b"D" * 65_536, 4 << 20)
            tree.ftruncate(fd, 12 << 20)
            if supports_holes:
                assert 0 < tree.lseek(fd, 0, os.SEEK_DATA) <= 4 << 20
                assert tree.lseek(fd, 0, os.SEEK_HOLE) == 0
                assert (4 << 20) + 65_536 <= tree.lseek(fd, 4 << 20, os.SEEK_HOLE) <= 8 << 20
                with fails_with(errno.ENXIO):
                    tree.lseek(fd, 10 << 20, os.SEEK_DATA)
            else:
                assert tree.lseek(fd, 0, os.SEEK_DATA) == 0
                assert tree.lseek(fd, 0, os.SEEK_HOLE) == 12 << 20

    def test_seek_behind_the_end_is_enxio(self, tree: Tree) -> None:
        tree.write_file("f", b"abc")
        with opened(tree, "f") as fd:
            for whence in (os.SEEK_DATA, os.SEEK_HOLE):
                with fails_with(errno.ENXIO):
                    tree.lseek(fd, 3, whence)
            assert tree.lseek(fd, 2, os.SEEK_HOLE) == 3

    def test_seeking_empty_file_for_data_is_enxio(self, tree: Tree) -> None:
        tree.write_file("f")
        with opened(tree, "f") as fd, fails_with(errno.ENXIO):
            tree.lseek(fd, 0, os.SEEK_DATA)

    def test_fallocate_makes_the_file_longer(self, tree: Tree, supports_fallocate: Capability) -> None:
        tree.write_file("f", b"abc")
        with opened(tree, "f", os.O_RDWR) as fd, supports_fallocate:
            tree.fallocate(fd, 0, 0, 100_000)
            assert tree.fstat(fd).size == 100_000
            assert tree.pread(fd, 10, 0) == b"abc" + bytes(7)
            assert tree.fstat(fd).blocks >= 100_000 // 512

    def test_fallocate_never_makes_the_file_shorter(self, tree: Tree, supports_fallocate: Capability) -> None:
        tree.write_file("f", pattern(9000))
        with opened(tree, "f", os.O_RDWR) as fd, supports_fallocate:
            tree.fallocate(fd, 0, 10, 100)
            assert tree.fstat(fd).size == 9000
        assert tree.read_file("f") == pattern(9000)

    def test_fallocate_keep_size_keeps_the_size(self, tree: Tree, supports_fallocate: Capability) -> None:
        tree.write_file("f", b"abc")
        with opened(tree, "f", os.O_RDWR) as fd, supports_fallocate:
            tree.fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, 100_000)
            assert tree.fstat(fd).size == 3
            assert tree.fstat(fd).blocks >= 100_000 // 512
        assert tree.read_file("f") == b"abc"

    def test_punched_hole_is_read_as_zeros(self, tree: Tree, supports_punch_hole: Capability) -> None:
        data = pattern(40_000)
        tree.write_file("f", data)
        with opened(tree, "f", os.O_RDWR) as fd, supports_punch_hole:
            tree.fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 5000, 20_000)
            expected = data[:5000] + bytes(20_000) + data[25_000:]
            assert tree.pread(fd, 40_000, 0) == expected
            tree.drop_caches()
            assert tree.pread(fd, 40_000, 0) == expected

    def test_punched_hole_gives_blocks_back(
        self, tree: Tree, supports_punch_hole: Capability, supports_holes: Capability
    ) -> None:
        tree.write_file("f", b"x" * 400_000)
        before = tree.stat("f").blocks
        with opened(tree, "f", os.O_RDWR) as fd, supports_punch_hole:
            tree.fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 400_000)
            assert tree.fstat(fd).size == 400_000
        if supports_punch_hole and supports_holes:
            assert tree.stat("f").blocks < before

    def test_punching_behind_the_end_changes_nothing(self, tree: Tree, supports_punch_hole: Capability) -> None:
        tree.write_file("f", b"abc")
        with opened(tree, "f", os.O_RDWR) as fd, supports_punch_hole:
            tree.fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 10_000, 20_000)
            tree.fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 2, 20_000)
        if supports_punch_hole:
            assert tree.read_file("f") == b"ab\0"

    def test_zero_range_zeroes_and_may_grow(self, tree: Tree, supports_zero_range: Capability) -> None:
        data = pattern(10_000)
        tree.write_file("f", data)
        with opened(tree, "f", os.O_RDWR) as fd, supports_zero_range:
            tree.fallocate(fd, FALLOC_FL_ZERO_RANGE, 8000, 5000)
            assert tree.fstat(fd).size == 13_000
            assert tree.pread(fd, 13_000, 0) == data[:8000] + bytes(5000)

    def test_zero_range_keep_size_keeps_the_size(self, tree: Tree, supports_zero_range: Capability) -> None:
        data = pattern(10_000)
        tree.write_file("f", data)
        with opened(tree, "f", os.O_RDWR) as fd, supports_zero_range:
            tree.fallocate(fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, 8000, 5000)
            assert tree.fstat(fd).size == 10_000
            assert tree.pread(fd, 13_000, 0) == data[:8000] + bytes(2000)

    def test_fallocate_refuses_nonsense(self, tree: Tree) -> None:
        tree.write_file("f", b"abc")
        with opened(tree, "f", os.O_RDWR) as fd:
            for offset, length in ((-1, 10), (0, 0), (0, -1)):
                with fails_with(errno.EINVAL):
                    tree.fallocate(fd, 0, offset, length)
            with fails_with(errno.EOPNOTSUPP):
                tree.fallocate(fd, FALLOC_FL_PUNCH_HOLE, 0, 4096)
            with fails_with(errno.EOPNOTSUPP):
                tree.fallocate(fd, FALLOC_FL_COLLAPSE_RANGE, 0, 4096)
        with opened(tree, "f") as fd, fails_with(errno.EBADF):
            tree.fallocate(fd, 0, 0, 4096)
        assert tree.read_file("f") == b"abc"

    def test_copy_file_range_copies(self, tree: Tree) -> None:
        data = pattern(100_000)
        tree.write_file("a", data)
        with opened(tree, "a") as source, opened(tree, "b", os.O_CREAT | os.O_RDWR) as target:
            copied = 0
            while copied < 60_000:
                copied += tree.copy_file_range(source, 10_000 + copied, target, 500 + copied, 60_000 - copied)
            assert copied == 60_000
            assert tree.fstat(target).size == 60_500
        tree.drop_caches()
        assert tree.read_file("b") == bytes(500) + data[10_000:70_000]
        assert tree.read_file("a") == data

    def test_copy_file_range_stops_at_the_end(self, tree: Tree) -> None:
        tree.write_file("a", b"0123456789")
        with opened(tree, "a") as source, opened(tree, "b", os.O_CREAT | os.O_RDWR) as target:
            assert tree.copy_file_range(source, 6, target, 0, 1000) == 4
            assert tree.copy_file_range(source, 10, target, 4, 1000) == 0
        assert tree.read_file("b") == b"6789"

    def test_copy_file_range_copies_inside_one_file(self, tree: Tree) -> None:
        tree.write_file("f", b"0123456789")
        with opened(tree, "f", os.O_RDWR) as fd:
            assert tree.copy_file_range(fd, 0, fd, 10, 5) == 5
            with fails_with(errno.EINVAL):
                tree.copy_file_range(fd, 0, fd, 3, 5)
        assert tree.read_file("f") == b"012345678901234"


class MmapContract:
    """Mapped files; the door must have memory (tree.maps_files)."""

    @pytest.fixture
    def supports_mmap(self, tree: Tree) -> Capability:
        return SUPPORTED if tree.maps_files else Refused(errno.ENODEV)

    def test_mapping_reads_the_contents(self, tree: Tree, supports_mmap: Capability) -> None:
        data = pattern(3 * PAGE + 100)
        tree.write_file("f", data)
        with opened(tree, "f") as fd, supports_mmap, tree.mmap(fd, len(data)) as view:
            assert view[:] == data

    def test_shared_mapping_writes_the_file(self, tree: Tree, supports_mmap: Capability) -> None:
        tree.write_file("f", bytes(3 * PAGE))
        with opened(tree, "f", os.O_RDWR) as fd, supports_mmap, tree.mmap(fd, 3 * PAGE, writable=True) as view:
            view[5000:5005] = b"hello"
            view.flush()
            assert tree.pread(fd, 5, 5000) == b"hello"
        if supports_mmap:
            tree.drop_caches()
            assert tree.read_file("f") == bytes(5000) + b"hello" + bytes(3 * PAGE - 5005)

    def test_private_mapping_does_not_write_the_file(self, tree: Tree, supports_mmap: Capability) -> None:
        tree.write_file("f", b"original")
        with opened(tree, "f", os.O_RDWR) as fd, supports_mmap, tree.mmap(fd, 8, shared=False, writable=True) as view:
            view[:] = b"CHANGED!"
        assert tree.read_file("f") == b"original"

    def test_write_is_seen_in_a_mapping(self, tree: Tree, supports_mmap: Capability) -> None:
        tree.write_file("f", bytes(PAGE))
        with opened(tree, "f", os.O_RDWR) as fd, supports_mmap, tree.mmap(fd, PAGE) as view:
            assert view[100] == 0
            tree.pwrite(fd, b"now", 100)
            assert view[100:103] == b"now"

    def test_mapping_of_an_unlinked_file_is_written(self, tree: Tree, supports_mmap: Capability) -> None:
        tree.write_file("f", bytes(PAGE))
        with opened(tree, "f", os.O_RDWR) as fd, supports_mmap, tree.mmap(fd, PAGE, writable=True) as view:
            tree.unlink("f")
            view[:4] = b"gone"
            view.flush()
            assert tree.pread(fd, 4, 0) == b"gone"

    def test_bytes_behind_the_end_of_the_last_page_are_not_written(self, tree: Tree, supports_mmap: Capability) -> None:
        tree.write_file("f", b"abc")
        with opened(tree, "f", os.O_RDWR) as fd, supports_mmap:
            with tree.mmap(fd, 3, writable=True) as view:
                view[:3] = b"xyz"
                view.flush()
            tree.ftruncate(fd, 10)
            assert tree.pread(fd, 10, 0) == b"xyz" + bytes(7)


__all__ = ["MmapContract", "SparseContract"]
