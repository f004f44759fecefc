"""Contract about reading what is there."""

from __future__ import annotations

import errno
import os

import pytest

from ..tree import (
    Tree,
)
from .base import fails_with, opened, pattern

PAGE = 4096

SEED: dict[str, bytes] = {
    "empty": b"",
    "hello.txt": b"Hello, world!\n",
    "pages.bin": pattern(3 * 4096),
    "odd.bin": pattern(300_001, seed=7),
    "dir/inner.txt": b"inside\n",
    "dir/deep/er/leaf": b"leaf",
    "with space": b"space",
    "ümläut": b"umlaut",
}
"""The content ReadContract reads; directories are implied. A read-only filesystem prepares it in its ``seeded`` fixture."""


class ReadContract:
    """Reading what is there. Needs nothing but SEED, so a read-only filesystem runs it too."""

    @pytest.fixture
    def seeded(self, tree: Tree) -> Tree:
        """The tree with SEED in it."""
        for path, data in SEED.items():
            parts = path.split("/")[:-1]
            for depth in range(len(parts)):
                if not tree.exists("/".join(parts[: depth + 1])):
                    tree.mkdir("/".join(parts[: depth + 1]), 0o755)
            tree.write_file(path, data)
        return tree

    @pytest.mark.parametrize("path", sorted(SEED))
    def test_whole_file_is_read(self, seeded: Tree, path: str) -> None:
        assert seeded.read_file(path) == SEED[path]

    @pytest.mark.parametrize("path", sorted(SEED))
    def test_size_is_the_length_of_the_contents(self, seeded: Tree, path: str) -> None:
        assert seeded.stat(path).size == len(SEED[path])

    def test_every_name_is_listed_once(self, seeded: Tree) -> None:
        assert seeded.listdir() == sorted({os.fsencode(path.split("/")[0]) for path in SEED})
        assert seeded.listdir("dir") == [b"deep", b"inner.txt"]

    def test_listing_tells_directories_from_files(self, seeded: Tree) -> None:
        types = {entry.name: entry.type for entry in seeded.scandir()}
        assert types[b"dir"] == 4
        assert types[b"hello.txt"] == 8

    def test_listing_and_stat_agree_on_inode_numbers(self, seeded: Tree) -> None:
        for entry in seeded.scandir("dir"):
            assert entry.ino == seeded.lstat(b"dir/" + entry.name).ino

    def test_file_is_regular_and_directory_is_not(self, seeded: Tree) -> None:
        assert seeded.stat("hello.txt").mode & 0o170000 == 0o100000
        assert seeded.stat("dir").mode & 0o170000 == 0o040000

    def test_two_files_have_two_inode_numbers(self, seeded: Tree) -> None:
        inos = [seeded.stat(path).ino for path in SEED]
        assert len(set(inos)) == len(SEED)
        assert 0 not in inos

    def test_missing_name_is_enoent(self, seeded: Tree) -> None:
        with fails_with(errno.ENOENT):
            seeded.stat("missing")
        with fails_with(errno.ENOENT):
            seeded.open("missing", os.O_RDONLY)
        with fails_with(errno.ENOENT):
            seeded.stat("missing/below")

    def test_name_below_a_file_is_enotdir(self, seeded: Tree) -> None:
        with fails_with(errno.ENOTDIR):
            seeded.stat("hello.txt/below")

    def test_name_that_is_too_long_is_enametoolong(self, seeded: Tree, name_max: int) -> None:
        with fails_with(errno.ENAMETOOLONG):
            seeded.stat("n" * (name_max + 1))

    def test_range_in_the_middle_is_read(self, seeded: Tree) -> None:
        with opened(seeded, "odd.bin") as fd:
            assert seeded.pread(fd, 1000, 123_457) == SEED["odd.bin"][123_457:124_457]

    def test_range_over_the_end_is_cut(self, seeded: Tree) -> None:
        with opened(seeded, "odd.bin") as fd:
            assert seeded.pread(fd, 4096, 300_000) == SEED["odd.bin"][300_000:]

    def test_range_behind_the_end_is_empty(self, seeded: Tree) -> None:
        with opened(seeded, "odd.bin") as fd:
            assert seeded.pread(fd, 4096, 300_001) == b""
            assert seeded.pread(fd, 4096, 1 << 40) == b""

    def test_reading_nothing_gives_nothing(self, seeded: Tree) -> None:
        with opened(seeded, "hello.txt") as fd:
            assert seeded.pread(fd, 0, 0) == b""

    def test_byte_by_byte_gives_the_same(self, seeded: Tree) -> None:
        with opened(seeded, "hello.txt") as fd:
            assert seeded.read_all(fd, chunk=1) == SEED["hello.txt"]

    @pytest.mark.parametrize("chunk", [4096, 10_000, 131_072])
    def test_any_chunk_size_gives_the_same(self, seeded: Tree, chunk: int) -> None:
        with opened(seeded, "odd.bin") as fd:
            assert seeded.read_all(fd, chunk) == SEED["odd.bin"]

    def test_reading_backwards_gives_the_same(self, seeded: Tree) -> None:
        data = SEED["odd.bin"]
        with opened(seeded, "odd.bin") as fd:
            for offset in range(len(data) // 50_000 * 50_000, -1, -50_000):
                assert seeded.pread(fd, 50_000, offset) == data[offset : offset + 50_000]

    def test_offset_follows_reads_and_seeks(self, seeded: Tree) -> None:
        with opened(seeded, "hello.txt") as fd:
            assert seeded.read(fd, 5) == b"Hello"
            assert seeded.lseek(fd, 2, os.SEEK_CUR) == 7
            assert seeded.read(fd, 5) == b"world"
            assert seeded.lseek(fd, -2, os.SEEK_END) == 12
            assert seeded.read(fd, 10) == b"!\n"
            assert seeded.lseek(fd, 0, os.SEEK_SET) == 0
            with fails_with(errno.EINVAL):
                seeded.lseek(fd, -1, os.SEEK_SET)

    def test_two_descriptors_have_two_offsets(self, seeded: Tree) -> None:
        with opened(seeded, "hello.txt") as one, opened(seeded, "hello.txt") as two:
            assert seeded.read(one, 5) == b"Hello"
            assert seeded.read(two, 5) == b"Hello"

    def test_duplicated_descriptor_shares_the_offset_and_outlives_the_first(self, seeded: Tree) -> None:
        first = seeded.open("hello.txt", os.O_RDONLY)
        second = seeded.dup(first)
        assert seeded.read(first, 5) == b"Hello"
        seeded.close(first)
        assert seeded.read(second, 2) == b", "
        seeded.close(second)

    def test_reading_a_directory_is_eisdir(self, seeded: Tree) -> None:
        with opened(seeded, "dir") as fd, fails_with(errno.EISDIR):
            seeded.pread(fd, 10, 0)

    def test_listing_a_file_is_enotdir(self, seeded: Tree) -> None:
        with fails_with(errno.ENOTDIR):
            seeded.scandir("hello.txt")

    def test_seek_data_and_hole_on_a_file_full_of_data(self, seeded: Tree) -> None:
        with opened(seeded, "pages.bin") as fd:
            assert seeded.lseek(fd, 5000, os.SEEK_DATA) == 5000
            assert seeded.lseek(fd, 5000, os.SEEK_HOLE) == 3 * PAGE
            with fails_with(errno.ENXIO):
                seeded.lseek(fd, 3 * PAGE, os.SEEK_DATA)

    def test_caches_may_be_dropped_while_a_file_is_open(self, seeded: Tree) -> None:
        with opened(seeded, "odd.bin") as fd:
            assert seeded.pread(fd, 100, 0) == SEED["odd.bin"][:100]
            seeded.drop_caches()
            assert seeded.pread(fd, 100, 200_000) == SEED["odd.bin"][200_000:200_100]
            assert seeded.fstat(fd).size == len(SEED["odd.bin"])
        assert seeded.read_file("dir/deep/er/leaf") == b"leaf"


__all__ = ["SEED", "ReadContract"]
