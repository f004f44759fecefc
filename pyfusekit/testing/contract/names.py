"""Contracts about making, removing and moving names."""

from __future__ import annotations

import errno
import os
import stat

from ..tree import RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT, Tree
from .base import ALICE, BOB, Capability, fails_with, opened, umask


class TreeContract:
    """Making, removing and moving names."""

    def test_new_directory_is_empty(self, tree: Tree) -> None:
        tree.mkdir("d", 0o755)
        assert tree.listdir("d") == []
        assert stat.S_ISDIR(tree.stat("d").mode)
        assert tree.stat("d").mode & 0o7777 == 0o755

    def test_directory_mode_is_the_one_asked_for_without_the_umask(self, tree: Tree) -> None:
        with umask(tree, 0o027):
            tree.mkdir("d", 0o777)
            tree.mkdir("s", 0o1777)
        assert tree.stat("d").mode & 0o7777 == 0o750
        assert tree.stat("s").mode & 0o7777 == 0o1750

    def test_making_what_is_there_is_eexist(self, tree: Tree) -> None:
        tree.mkdir("d")
        tree.write_file("f")
        for name in ("d", "f"):
            with fails_with(errno.EEXIST):
                tree.mkdir(name)

    def test_making_below_nothing_is_enoent_and_below_a_file_enotdir(self, tree: Tree) -> None:
        tree.write_file("f")
        with fails_with(errno.ENOENT):
            tree.mkdir("missing/d")
        with fails_with(errno.ENOTDIR):
            tree.mkdir("f/d")

    def test_directory_counts_its_subdirectories_as_links(self, tree: Tree, counts_subdirectories: bool) -> None:
        tree.mkdir("d")
        assert tree.stat("d").nlink == (2 if counts_subdirectories else 1)
        tree.mkdir("d/one")
        tree.mkdir("d/two")
        tree.write_file("d/file")
        assert tree.stat("d").nlink == (4 if counts_subdirectories else 1)
        tree.rmdir("d/one")
        assert tree.stat("d").nlink == (3 if counts_subdirectories else 1)
        tree.rename("d/two", "two")
        assert tree.stat("d").nlink == (2 if counts_subdirectories else 1)

    def test_removed_directory_is_gone(self, tree: Tree) -> None:
        tree.mkdir("d")
        tree.rmdir("d")
        assert not tree.exists("d")
        assert tree.listdir() == []

    def test_removing_a_full_directory_is_enotempty(self, tree: Tree) -> None:
        tree.mkdir("d")
        tree.write_file("d/f")
        with fails_with(errno.ENOTEMPTY):
            tree.rmdir("d")
        assert tree.exists("d/f")

    def test_rmdir_of_a_file_is_enotdir_and_unlink_of_a_directory_eisdir(self, tree: Tree) -> None:
        tree.write_file("f")
        tree.mkdir("d")
        with fails_with(errno.ENOTDIR):
            tree.rmdir("f")
        with fails_with(errno.EISDIR):
            tree.unlink("d")
        assert tree.listdir() == [b"d", b"f"]

    def test_removing_what_is_missing_is_enoent(self, tree: Tree) -> None:
        for remove in (tree.unlink, tree.rmdir):
            with fails_with(errno.ENOENT):
                remove("missing")

    def test_rmdir_of_dot_is_einval_and_of_dot_dot_enotempty(self, tree: Tree) -> None:
        tree.mkdir("d")
        tree.mkdir("d/e")
        with fails_with(errno.EINVAL):
            tree.rmdir("d/.")
        with fails_with(errno.ENOTEMPTY):
            tree.rmdir("d/e/..")

    def test_nothing_is_made_in_a_removed_directory(self, tree: Tree) -> None:
        tree.mkdir("d")
        with opened(tree, "d", os.O_RDONLY | os.O_DIRECTORY) as fd:
            tree.rmdir("d")
            assert tree.fstat(fd).nlink == 0
            with fails_with(errno.ENOENT):
                tree.getdents(fd)
        with fails_with(errno.ENOENT):
            tree.write_file("d/f")

    def test_dot_and_dot_dot_are_the_directory_and_its_parent(self, tree: Tree) -> None:
        tree.mkdir("d")
        tree.mkdir("d/e")
        assert tree.stat("d/e/..").ino == tree.stat("d").ino
        assert tree.stat("d/e/.").ino == tree.stat("d/e").ino
        tree.write_file("f", b"up")
        assert tree.read_file("d/e/../../f") == b"up"

    def test_deep_tree_is_walked(self, tree: Tree) -> None:
        path = "d"
        for _ in range(40):
            tree.mkdir(path)
            path += "/d"
        tree.write_file(path, b"deep")
        tree.drop_caches()
        assert tree.read_file(path) == b"deep"

    def test_rename_moves_a_file(self, tree: Tree) -> None:
        tree.write_file("a", b"data")
        ino = tree.stat("a").ino
        tree.rename("a", "b")
        assert tree.listdir() == [b"b"]
        assert tree.read_file("b") == b"data"
        assert tree.stat("b").ino == ino
        tree.drop_caches()
        assert tree.stat("b").ino == ino

    def test_rename_moves_between_directories(self, tree: Tree) -> None:
        tree.mkdir("one")
        tree.mkdir("two")
        tree.write_file("one/f", b"data")
        tree.rename("one/f", "two/g")
        assert tree.listdir("one") == []
        assert tree.read_file("two/g") == b"data"

    def test_rename_replaces_a_file(self, tree: Tree) -> None:
        tree.write_file("a", b"new")
        tree.write_file("b", b"old")
        tree.rename("a", "b")
        assert tree.listdir() == [b"b"]
        assert tree.read_file("b") == b"new"

    def test_rename_to_itself_does_nothing(self, tree: Tree) -> None:
        tree.write_file("a", b"data")
        tree.rename("a", "a")
        assert tree.read_file("a") == b"data"

    def test_rename_moves_a_directory_with_all_below(self, tree: Tree) -> None:
        tree.mkdir("d")
        tree.mkdir("d/sub")
        tree.write_file("d/sub/f", b"data")
        tree.mkdir("other")
        tree.rename("d", "other/moved")
        assert tree.read_file("other/moved/sub/f") == b"data"
        assert tree.stat("other/moved/..").ino == tree.stat("other").ino
        assert tree.listdir() == [b"other"]

    def test_rename_replaces_an_empty_directory_only(self, tree: Tree) -> None:
        tree.mkdir("a")
        tree.write_file("a/f", b"data")
        tree.mkdir("empty")
        tree.mkdir("full")
        tree.write_file("full/g")
        with fails_with(errno.ENOTEMPTY, errno.EEXIST):
            tree.rename("a", "full")
        tree.rename("a", "empty")
        assert tree.listdir() == [b"empty", b"full"]
        assert tree.read_file("empty/f") == b"data"

    def test_rename_does_not_put_a_file_over_a_directory_nor_the_other_way(self, tree: Tree) -> None:
        tree.write_file("f")
        tree.mkdir("d")
        with fails_with(errno.EISDIR):
            tree.rename("f", "d")
        with fails_with(errno.ENOTDIR):
            tree.rename("d", "f")

    def test_rename_of_a_directory_into_itself_is_einval(self, tree: Tree) -> None:
        tree.mkdir("d")
        tree.mkdir("d/e")
        with fails_with(errno.EINVAL):
            tree.rename("d", "d/e/f")
        with fails_with(errno.ENOTEMPTY, errno.EEXIST):
            tree.rename("d/e", "d")

    def test_rename_of_what_is_missing_is_enoent(self, tree: Tree) -> None:
        tree.write_file("f")
        with fails_with(errno.ENOENT):
            tree.rename("missing", "f")
        with fails_with(errno.ENOENT):
            tree.rename("f", "missing/f")
        with fails_with(errno.ENOTDIR):
            tree.rename("f", "f/g")

    def test_open_file_follows_its_rename(self, tree: Tree) -> None:
        tree.write_file("a", b"data")
        with opened(tree, "a", os.O_RDWR) as fd:
            tree.rename("a", "b")
            tree.pwrite(fd, b"DATA", 0)
        assert tree.read_file("b") == b"DATA"

    def test_name_removed_and_made_again_is_new(self, tree: Tree) -> None:
        for round_ in range(10):
            tree.write_file("f", b"%d" % round_)
            assert tree.read_file("f") == b"%d" % round_
            tree.unlink("f")
            assert not tree.exists("f")

    def test_file_becomes_a_directory_of_the_same_name(self, tree: Tree) -> None:
        tree.write_file("n", b"file")
        tree.unlink("n")
        tree.mkdir("n")
        tree.write_file("n/f", b"x")
        tree.unlink("n/f")
        tree.rmdir("n")
        tree.write_file("n", b"file again")
        assert tree.read_file("n") == b"file again"

    def test_new_names_belong_to_who_made_them(self, tree: Tree) -> None:
        tree.chmod("", 0o777)
        with tree.actor(ALICE, BOB) as alice:
            alice.run(tree.write_file, "f", b"")
            alice.run(tree.mkdir, "d")
            alice.run(tree.symlink, "f", "s")
        for name in ("f", "d", "s"):
            found = tree.lstat(name)
            assert (found.uid, found.gid) == (ALICE, BOB), name

    def test_setgid_directory_gives_its_group(self, tree: Tree) -> None:
        tree.mkdir("d")
        tree.chown("d", 0, BOB)
        tree.chmod("d", 0o2777)
        with tree.actor(ALICE, ALICE) as alice:
            alice.run(tree.write_file, "d/f", b"")
            alice.run(tree.mkdir, "d/sub")
        assert tree.stat("d/f").gid == BOB
        assert tree.stat("d/sub").gid == BOB
        assert tree.stat("d/sub").mode & 0o2000
        assert not tree.stat("d/f").mode & 0o2000


class RenameFlagsContract:
    """renameat2(2)."""

    def test_noreplace_moves_to_a_free_name(self, tree: Tree) -> None:
        tree.write_file("a", b"data")
        tree.rename("a", "b", RENAME_NOREPLACE)
        assert tree.listdir() == [b"b"]
        assert tree.read_file("b") == b"data"

    def test_noreplace_over_a_name_is_eexist(self, tree: Tree) -> None:
        tree.write_file("a", b"a")
        tree.write_file("b", b"b")
        with fails_with(errno.EEXIST):
            tree.rename("a", "b", RENAME_NOREPLACE)
        assert (tree.read_file("a"), tree.read_file("b")) == (b"a", b"b")

    def test_exchange_swaps_two_files(self, tree: Tree, supports_exchange: Capability) -> None:
        tree.write_file("a", b"a")
        tree.write_file("b", b"b")
        with supports_exchange:
            tree.rename("a", "b", RENAME_EXCHANGE)
            tree.drop_caches()
            assert (tree.read_file("a"), tree.read_file("b")) == (b"b", b"a")

    def test_exchange_swaps_a_file_and_a_directory(self, tree: Tree, supports_exchange: Capability) -> None:
        tree.mkdir("one")
        tree.mkdir("two")
        tree.write_file("one/x", b"file")
        tree.mkdir("two/y")
        tree.write_file("two/y/inner", b"inner")
        with supports_exchange:
            tree.rename("one/x", "two/y", RENAME_EXCHANGE)
            assert tree.read_file("two/y") == b"file"
            assert tree.read_file("one/x/inner") == b"inner"
            assert tree.stat("one").nlink == 3
            assert tree.stat("two").nlink == 2
            assert tree.stat("one/x/..").ino == tree.stat("one").ino

    def test_exchange_needs_both(self, tree: Tree) -> None:
        tree.write_file("a")
        with fails_with(errno.ENOENT):
            tree.rename("a", "b", RENAME_EXCHANGE)
        assert tree.listdir() == [b"a"]

    def test_exchange_of_a_directory_with_its_descendant_is_einval(self, tree: Tree) -> None:
        tree.mkdir("d")
        tree.mkdir("d/e")
        for pair in (("d", "d/e"), ("d/e", "d")):
            with fails_with(errno.EINVAL):
                tree.rename(*pair, RENAME_EXCHANGE)

    def test_whiteout_leaves_a_device_behind(self, tree: Tree, supports_whiteout: Capability) -> None:
        tree.write_file("a", b"data")
        with supports_whiteout:
            tree.rename("a", "b", RENAME_WHITEOUT)
            assert tree.read_file("b") == b"data"
            left = tree.lstat("a")
            assert stat.S_ISCHR(left.mode)
            assert left.rdev == 0
            assert tree.listdir() == [b"a", b"b"]
            tree.unlink("a")

    def test_contradicting_flags_are_einval(self, tree: Tree) -> None:
        tree.write_file("a")
        tree.write_file("b")
        for flags in (RENAME_NOREPLACE | RENAME_EXCHANGE, RENAME_EXCHANGE | RENAME_WHITEOUT, 0x80):
            with fails_with(errno.EINVAL):
                tree.rename("a", "b", flags)


__all__ = ["RenameFlagsContract", "TreeContract"]
