"""Contracts about links, special files, and files without a name."""

from __future__ import annotations

import errno
import os
import stat

import pytest

from ..tree import O_TMPFILE, Tree
from .base import ALICE, Capability, fails_with, opened, umask


class LinkContract:
    """Hard links and symbolic links."""

    def test_link_is_another_name_of_the_same_file(self, tree: Tree, supports_links: Capability) -> None:
        tree.write_file("a", b"data")
        with supports_links:
            tree.link("a", "b")
            one, two = tree.stat("a"), tree.stat("b")
            assert one.ino == two.ino
            assert one.nlink == two.nlink == 2
            with opened(tree, "b", os.O_WRONLY) as fd:
                tree.pwrite(fd, b"DATA", 0)
            assert tree.read_file("a") == b"DATA"
            tree.drop_caches()
            assert tree.stat("a").ino == tree.stat("b").ino

    def test_file_lives_until_its_last_name_is_removed(self, tree: Tree, supports_links: Capability) -> None:
        tree.write_file("a", b"data")
        with supports_links:
            tree.link("a", "b")
            tree.unlink("a")
            assert tree.stat("b").nlink == 1
            assert tree.read_file("b") == b"data"
            tree.unlink("b")
            assert tree.listdir() == []

    def test_link_of_a_directory_is_eperm(self, tree: Tree) -> None:
        tree.mkdir("d")
        with fails_with(errno.EPERM):
            tree.link("d", "e")

    def test_link_over_a_name_is_eexist(self, tree: Tree) -> None:
        tree.write_file("a")
        tree.write_file("b")
        with fails_with(errno.EEXIST):
            tree.link("a", "b")
        with fails_with(errno.ENOENT):
            tree.link("missing", "c")

    def test_link_into_another_directory(self, tree: Tree, supports_links: Capability) -> None:
        tree.mkdir("d")
        tree.write_file("a", b"data")
        with supports_links:
            tree.link("a", "d/b")
            assert tree.read_file("d/b") == b"data"

    def test_rename_of_a_link_over_its_other_name_does_nothing(self, tree: Tree, supports_links: Capability) -> None:
        tree.write_file("a")
        with supports_links:
            tree.link("a", "b")
            tree.rename("a", "b")
            assert tree.listdir() == [b"a", b"b"]
            assert tree.stat("a").nlink == 2

    def test_rename_over_a_link_takes_one_name_away(self, tree: Tree, supports_links: Capability) -> None:
        tree.write_file("a", b"old")
        tree.write_file("new", b"new")
        with supports_links:
            tree.link("a", "b")
            tree.rename("new", "b")
            assert tree.stat("a").nlink == 1
            assert tree.read_file("a") == b"old"
            assert tree.read_file("b") == b"new"

    def test_many_links_are_counted(self, tree: Tree, supports_links: Capability) -> None:
        tree.write_file("f")
        with supports_links:
            for index in range(50):
                tree.link("f", f"l{index}")
            assert tree.stat("f").nlink == 51
            for index in range(50):
                tree.unlink(f"l{index}")
            assert tree.stat("f").nlink == 1

    @pytest.mark.parametrize("target", [b"x", b"../up/and/away", b"/absolute", b"\xff\xfe", b"t" * 4095, b"with space\n"])
    def test_symlink_keeps_its_target_byte_for_byte(self, tree: Tree, supports_symlinks: Capability, target: bytes) -> None:
        with supports_symlinks:
            tree.symlink(target, "s")
            tree.drop_caches()
            assert tree.readlink("s") == target
            found = tree.lstat("s")
            assert stat.S_ISLNK(found.mode)
            assert found.size == len(target)
            assert found.nlink == 1

    def test_symlink_is_followed(self, tree: Tree, supports_symlinks: Capability) -> None:
        tree.mkdir("d")
        tree.write_file("d/f", b"data")
        with supports_symlinks:
            tree.symlink("d", "s")
            tree.symlink("../d/f", "d/t")
            assert tree.read_file("s/t") == b"data"
            assert tree.stat("s").ino == tree.stat("d").ino
            assert tree.listdir("s") == [b"f", b"t"]

    def test_dangling_symlink_is_enoent_when_followed(self, tree: Tree, supports_symlinks: Capability) -> None:
        with supports_symlinks:
            tree.symlink("missing", "s")
            with fails_with(errno.ENOENT):
                tree.stat("s")
            assert tree.exists("s")

    def test_symlink_loop_is_eloop(self, tree: Tree, supports_symlinks: Capability) -> None:
        with supports_symlinks:
            tree.symlink("b", "a")
            tree.symlink("a", "b")
            with fails_with(errno.ELOOP):
                tree.stat("a")

    def test_symlink_over_a_name_is_eexist(self, tree: Tree) -> None:
        tree.write_file("f")
        with fails_with(errno.EEXIST):
            tree.symlink("x", "f")

    def test_symlink_is_renamed_and_removed_itself(self, tree: Tree, supports_symlinks: Capability) -> None:
        tree.write_file("f", b"data")
        with supports_symlinks:
            tree.symlink("f", "s")
            tree.rename("s", "t")
            assert tree.readlink("t") == b"f"
            tree.unlink("t")
            assert tree.read_file("f") == b"data"

    def test_symlink_can_be_linked(self, tree: Tree, supports_symlinks: Capability, supports_links: Capability) -> None:
        with supports_symlinks:
            tree.symlink("x", "s")
            with supports_links:
                tree.link("s", "t")
                assert tree.readlink("t") == b"x"
                assert tree.lstat("s").nlink == 2

    def test_readlink_of_a_file_is_einval(self, tree: Tree) -> None:
        tree.write_file("f")
        tree.mkdir("d")
        for name in ("f", "d"):
            with fails_with(errno.EINVAL):
                tree.readlink(name)

    def test_empty_target_is_enoent(self, tree: Tree) -> None:
        with fails_with(errno.ENOENT):
            tree.symlink("", "s")

    def test_symlink_mode_is_full(self, tree: Tree, supports_symlinks: Capability) -> None:
        with supports_symlinks, umask(tree, 0o077):
            tree.symlink("x", "s")
            assert tree.lstat("s").mode & 0o7777 == 0o777


class SpecialFileContract:
    """Fifos, sockets, device nodes; and regular files made by mknod."""

    @pytest.mark.parametrize(
        ("kind", "rdev", "dtype"),
        [
            (stat.S_IFIFO, 0, 1),
            (stat.S_IFSOCK, 0, 12),
            (stat.S_IFCHR, os.makedev(1, 3), 2),
            (stat.S_IFBLK, os.makedev(7, 300), 6),
            (stat.S_IFCHR, os.makedev(4000, 70_000), 2),
        ],
        ids=["fifo", "socket", "character", "block", "big-numbers"],
    )
    def test_node_is_made_as_asked(
        self, tree: Tree, supports_special_files: Capability, kind: int, rdev: int, dtype: int
    ) -> None:
        with supports_special_files:
            tree.mknod("n", kind | 0o640, rdev)
            tree.drop_caches()
            found = tree.lstat("n")
            assert stat.S_IFMT(found.mode) == kind
            assert found.mode & 0o7777 == 0o640
            assert found.rdev == rdev
            assert found.nlink == 1
            assert [entry.type for entry in tree.scandir()] == [dtype]
            tree.rename("n", "m")
            tree.unlink("m")

    def test_mknod_makes_a_regular_file(self, tree: Tree) -> None:
        tree.mknod("f", stat.S_IFREG | 0o644)
        assert stat.S_ISREG(tree.stat("f").mode)
        tree.mknod("g", 0o600)
        assert stat.S_ISREG(tree.stat("g").mode)
        tree.write_file("f", b"data")
        assert tree.read_file("f") == b"data"

    def test_mknod_applies_the_umask(self, tree: Tree) -> None:
        with umask(tree, 0o027):
            tree.mknod("f", stat.S_IFREG | 0o666)
        assert tree.stat("f").mode & 0o7777 == 0o640

    def test_mknod_over_a_name_is_eexist(self, tree: Tree) -> None:
        tree.write_file("f")
        with fails_with(errno.EEXIST):
            tree.mknod("f", stat.S_IFIFO | 0o644)

    def test_mknod_of_a_directory_is_eperm(self, tree: Tree) -> None:
        with fails_with(errno.EPERM):
            tree.mknod("d", stat.S_IFDIR | 0o755)

    def test_device_is_for_root_only(self, tree: Tree) -> None:
        tree.chmod("", 0o777)
        with tree.actor(ALICE, ALICE) as alice, fails_with(errno.EPERM):
            alice.run(tree.mknod, "n", stat.S_IFCHR | 0o644, os.makedev(1, 3))

    def test_fifo_is_made_by_anybody(self, tree: Tree, supports_special_files: Capability) -> None:
        tree.chmod("", 0o777)
        with tree.actor(ALICE, ALICE) as alice, supports_special_files:
            alice.run(tree.mknod, "n", stat.S_IFIFO | 0o644)
            assert tree.lstat("n").uid == ALICE

    def test_opening_a_socket_is_enxio(self, tree: Tree, supports_special_files: Capability) -> None:
        with supports_special_files:
            tree.mknod("s", stat.S_IFSOCK | 0o644)
            with fails_with(errno.ENXIO):
                tree.open("s", os.O_RDONLY)

    def test_special_file_is_not_truncated(self, tree: Tree, supports_special_files: Capability) -> None:
        with supports_special_files:
            tree.mknod("p", stat.S_IFIFO | 0o644)
            with fails_with(errno.EINVAL):
                tree.truncate("p", 0)


class TmpfileContract:
    """Files without a name, O_TMPFILE."""

    def test_file_without_a_name_is_read_and_written(self, tree: Tree, supports_tmpfile: Capability) -> None:
        with supports_tmpfile, opened(tree, "", O_TMPFILE | os.O_RDWR, 0o640) as fd:
            tree.write(fd, b"nameless")
            assert tree.pread(fd, 100, 0) == b"nameless"
            found = tree.fstat(fd)
            assert found.nlink == 0
            assert found.mode == stat.S_IFREG | 0o640
            assert tree.listdir() == []

    def test_file_without_a_name_is_given_one(self, tree: Tree, supports_tmpfile: Capability) -> None:
        with supports_tmpfile:
            with opened(tree, "", O_TMPFILE | os.O_RDWR, 0o640) as fd:
                tree.write(fd, b"nameless")
                tree.link_fd(fd, "named")
                assert tree.fstat(fd).nlink == 1
                assert tree.fstat(fd).ino == tree.stat("named").ino
            tree.drop_caches()
            assert tree.read_file("named") == b"nameless"

    def test_naming_over_a_name_is_eexist(self, tree: Tree, supports_tmpfile: Capability) -> None:
        tree.write_file("f", b"there")
        with supports_tmpfile, opened(tree, "", O_TMPFILE | os.O_RDWR) as fd:
            with fails_with(errno.EEXIST):
                tree.link_fd(fd, "f")
            assert tree.read_file("f") == b"there"

    def test_exclusive_one_can_never_be_named(self, tree: Tree, supports_tmpfile: Capability) -> None:
        with supports_tmpfile, opened(tree, "", O_TMPFILE | os.O_RDWR | os.O_EXCL) as fd, fails_with(errno.ENOENT):
            tree.link_fd(fd, "f")

    def test_unlinked_file_is_not_named_again(self, tree: Tree) -> None:
        with opened(tree, "f", os.O_CREAT | os.O_RDWR) as fd:
            tree.unlink("f")
            with fails_with(errno.ENOENT):
                tree.link_fd(fd, "g")

    def test_it_needs_write_access_and_a_directory(self, tree: Tree) -> None:
        tree.write_file("f")
        with fails_with(errno.EINVAL):
            tree.open("", O_TMPFILE | os.O_RDONLY)
        with fails_with(errno.ENOTDIR):
            tree.open("f", O_TMPFILE | os.O_RDWR)

    def test_several_live_side_by_side(self, tree: Tree, supports_tmpfile: Capability) -> None:
        with supports_tmpfile:
            fds = [tree.open("", O_TMPFILE | os.O_RDWR) for _ in range(10)]
            for index, fd in enumerate(fds):
                tree.write(fd, b"%d" % index)
            assert [tree.pread(fd, 10, 0) for fd in fds] == [b"%d" % index for index in range(10)]
            assert len({tree.fstat(fd).ino for fd in fds}) == 10
            for fd in fds:
                tree.close(fd)


__all__ = ["LinkContract", "SpecialFileContract", "TmpfileContract"]
