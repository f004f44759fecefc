"""Contract about names and listings."""

from __future__ import annotations

import errno
import os

import pytest

from ..tree import Tree
from .base import SUPPORTED, Capability, fails_with, opened


def is_utf8(name: bytes) -> bool:
    """Return whether *name* is UTF-8."""
    return name.decode("utf-8", "replace").encode() == name


class DirectoryContract:
    """Names and listings."""

    @pytest.mark.parametrize(
        "name",
        [
            b"plain",
            b"with space",
            b"new\nline",
            b"tab\t",
            "ünïcödé".encode(),
            b"\xff\xfe not utf-8",
            b"-dash",
            b"...",
            b"~",
            b"a" * 255,
        ],
        ids=["plain", "space", "newline", "tab", "utf8", "not-utf8", "dash", "dots", "tilde", "255-bytes"],
    )
    def test_name_is_kept_byte_for_byte(self, tree: Tree, name: bytes, supports_undecodable_names: Capability) -> None:
        with SUPPORTED if is_utf8(name) else supports_undecodable_names:
            tree.write_file(name, name)
            tree.drop_caches()
            assert tree.listdir() == [name]
            assert tree.read_file(name) == name
            tree.rename(name, b"other")
            tree.mkdir(name)
            assert tree.listdir() == sorted([name, b"other"])
            tree.rmdir(name)
            tree.rename(b"other", name)
            tree.unlink(name)
        assert tree.listdir() == []

    def test_name_of_256_bytes_is_enametoolong(self, tree: Tree, name_max: int) -> None:
        name = b"n" * (name_max + 1)
        tree.write_file("f")
        for verb in (
            lambda: tree.write_file(name),
            lambda: tree.mkdir(name),
            lambda: tree.symlink("x", name),
            lambda: tree.mknod(name, 0o100644),
            lambda: tree.rename("f", name),
            lambda: tree.link("f", name),
            lambda: tree.unlink(name),
            lambda: tree.stat(name),
        ):
            with fails_with(errno.ENAMETOOLONG):
                verb()
        assert tree.listdir() == [b"f"]

    def test_longest_name_counts_bytes_not_characters(self, tree: Tree, name_max: int) -> None:
        tree.write_file("é" * (name_max // 2))
        with fails_with(errno.ENAMETOOLONG):
            tree.write_file("é" * (name_max // 2 + 1))

    def test_names_differ_by_case(self, tree: Tree) -> None:
        tree.write_file("name", b"1")
        tree.write_file("NAME", b"2")
        assert tree.read_file("name") == b"1"
        assert tree.read_file("NAME") == b"2"

    def test_listing_begins_with_dot_and_dot_dot(self, tree: Tree) -> None:
        tree.mkdir("d")
        with opened(tree, "d", os.O_RDONLY | os.O_DIRECTORY) as fd:
            entries = {entry.name: entry for entry in tree.getdents(fd)}
            assert set(entries) == {b".", b".."}
            assert entries[b"."].ino == tree.stat("d").ino
            assert entries[b".."].ino == tree.stat("").ino
            assert tree.getdents(fd) == []

    def test_listing_gives_types(self, tree: Tree) -> None:
        tree.write_file("file")
        tree.mkdir("dir")
        tree.symlink("x", "link")
        assert {entry.name: entry.type for entry in tree.scandir()} == {b"file": 8, b"dir": 4, b"link": 10}

    def test_big_directory_is_listed_whole(self, tree: Tree, many_entries: int) -> None:
        tree.mkdir("d")
        names = [b"entry-%06d" % index for index in range(many_entries)]
        for name in names:
            tree.mknod(b"d/" + name, 0o100644)
        assert tree.listdir("d") == names
        tree.drop_caches()
        assert tree.listdir("d") == names
        small = [entry.name for entry in tree.scandir("d", size=600)]
        assert sorted(small) == names

    def test_cookie_leads_back_to_where_it_was_given(self, tree: Tree) -> None:
        tree.mkdir("d")
        for index in range(60):
            tree.mknod(f"d/n{index:03d}", 0o100644)
        with opened(tree, "d", os.O_RDONLY | os.O_DIRECTORY) as fd:
            entries = [entry for batch in tree.read_entries(fd, 512) for entry in batch]
            assert len(entries) == 62
            assert len({entry.offset for entry in entries}) == 62
            for index in (0, 1, 2, 17, 40, 60):
                tree.lseek(fd, entries[index].offset, os.SEEK_SET)
                assert tree.getdents(fd, 512)[0].name == entries[index + 1].name
            tree.lseek(fd, entries[61].offset, os.SEEK_SET)
            assert tree.getdents(fd, 512) == []
            tree.lseek(fd, 0, os.SEEK_SET)
            assert tree.getdents(fd, 512)[0] == entries[0]

    def test_rewinding_shows_what_was_made_meanwhile(self, tree: Tree) -> None:
        tree.mkdir("d")
        with opened(tree, "d", os.O_RDONLY | os.O_DIRECTORY) as fd:
            assert sum(map(len, tree.read_entries(fd))) == 2
            tree.write_file("d/new")
            tree.lseek(fd, 0, os.SEEK_SET)
            assert b"new" in [entry.name for entry in tree.getdents(fd)]

    def test_deleting_while_reading_misses_nothing(self, tree: Tree) -> None:
        tree.mkdir("d")
        names = [b"n%03d" % index for index in range(200)]
        for name in names:
            tree.mknod(b"d/" + name, 0o100644)
        seen = []
        with opened(tree, "d", os.O_RDONLY | os.O_DIRECTORY) as fd:
            for batch in tree.read_entries(fd, 600):
                for entry in batch:
                    if entry.name not in (b".", b".."):
                        seen.append(entry.name)
                        tree.unlink(b"d/" + entry.name)
        assert sorted(seen) == names
        tree.rmdir("d")

    def test_name_that_stays_is_seen_once_while_others_come_and_go(self, tree: Tree) -> None:
        tree.mkdir("d")
        staying = [b"stay%02d" % index for index in range(50)]
        for index, name in enumerate(staying):
            tree.mknod(b"d/" + name, 0o100644)
            tree.mknod(b"d/go%02d" % index, 0o100644)
        seen: list[bytes] = []
        with opened(tree, "d", os.O_RDONLY | os.O_DIRECTORY) as fd:
            turn = 0
            for batch in tree.read_entries(fd, 400):
                seen += [entry.name for entry in batch]
                if turn < 8:  # who goes on making names makes a walk that goes on
                    tree.unlink(b"d/go%02d" % turn)
                    tree.mknod(b"d/come%02d" % turn, 0o100644)
                turn += 1
        assert turn > 5
        for name in staying:
            assert seen.count(name) == 1, name
        for name in set(seen):
            assert seen.count(name) == 1, name

    def test_fsync_of_a_directory_succeeds(self, tree: Tree) -> None:
        tree.mkdir("d")
        tree.write_file("d/f")
        with opened(tree, "d", os.O_RDONLY | os.O_DIRECTORY) as fd:
            tree.fsync(fd)
            tree.fdatasync(fd)

    def test_two_readers_do_not_disturb_each_other(self, tree: Tree) -> None:
        tree.mkdir("d")
        for index in range(30):
            tree.mknod(f"d/n{index:02d}", 0o100644)
        flags = os.O_RDONLY | os.O_DIRECTORY
        with opened(tree, "d", flags) as one, opened(tree, "d", flags) as two:
            first: list[bytes] = []
            second: list[bytes] = []
            for _ in range(40):
                first += [entry.name for entry in tree.getdents(one, 200)]
                second += [entry.name for entry in tree.getdents(two, 300)]
        assert len(first) == 32
        assert first == second


__all__ = ["DirectoryContract"]
