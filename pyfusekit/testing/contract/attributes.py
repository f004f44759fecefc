"""Contracts about modes, owners, times and totals."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable

import pytest

from ..tree import UTIME_NOW, UTIME_OMIT, Totals, Tree
from .base import ALICE, BOB, SUPPORTED, Capability, coarse_now_ns, fails_with, let_clock_pass, opened


class AttrContract:
    """Modes, owners, sizes."""

    @pytest.mark.parametrize("mode", [0o000, 0o644, 0o755, 0o1777, 0o4755, 0o2755, 0o7777])
    def test_mode_is_set(self, tree: Tree, mode: int) -> None:
        tree.write_file("f")
        tree.mkdir("d")
        for name, kind in (("f", stat.S_IFREG), ("d", stat.S_IFDIR)):
            tree.chmod(name, mode)
            assert tree.stat(name).mode == kind | mode
            tree.drop_caches()
            assert tree.stat(name).mode == kind | mode

    def test_mode_is_set_through_a_descriptor(self, tree: Tree) -> None:
        tree.write_file("f")
        with opened(tree, "f") as fd:
            tree.fchmod(fd, 0o611)
            assert tree.fstat(fd).mode & 0o7777 == 0o611
        assert tree.stat("f").mode & 0o7777 == 0o611

    def test_owner_is_set(self, tree: Tree, supports_ownership: Capability) -> None:
        tree.write_file("f")
        with supports_ownership:
            tree.chown("f", ALICE, BOB)
            assert (tree.stat("f").uid, tree.stat("f").gid) == (ALICE, BOB)
            tree.chown("f", -1, ALICE)
            assert (tree.stat("f").uid, tree.stat("f").gid) == (ALICE, ALICE)
            tree.chown("f", BOB, -1)
            tree.drop_caches()
            assert (tree.stat("f").uid, tree.stat("f").gid) == (BOB, ALICE)

    def test_large_ids_are_kept(self, tree: Tree, supports_ownership: Capability) -> None:
        tree.write_file("f")
        with supports_ownership:
            tree.chown("f", 4_000_000_000, 3_999_999_999)
            assert (tree.stat("f").uid, tree.stat("f").gid) == (4_000_000_000, 3_999_999_999)

    def test_owner_of_a_symlink_is_its_own(
        self, tree: Tree, supports_ownership: Capability, supports_symlinks: Capability
    ) -> None:
        tree.write_file("f")
        with supports_symlinks:
            tree.symlink("f", "s")
            with supports_ownership:
                tree.chown("s", ALICE, BOB, follow=False)
                assert tree.lstat("s").uid == ALICE
                assert tree.stat("f").uid == 0
                tree.chown("s", BOB, ALICE)
                assert tree.stat("f").uid == BOB
                assert tree.lstat("s").uid == ALICE

    def test_chown_clears_setuid_and_setgid(self, tree: Tree, supports_ownership: Capability) -> None:
        tree.write_file("f")
        tree.chmod("f", 0o6755)
        with supports_ownership:
            tree.chown("f", ALICE, ALICE)
            assert tree.stat("f").mode & 0o7777 == 0o755

    def test_chown_leaves_setgid_of_a_file_the_group_cannot_run(self, tree: Tree, supports_ownership: Capability) -> None:
        tree.write_file("f")
        tree.chmod("f", 0o2745)
        with supports_ownership:
            tree.chown("f", ALICE, ALICE)
            assert tree.stat("f").mode & 0o7777 == 0o2745

    def test_chown_leaves_a_directorys_bits(self, tree: Tree, supports_ownership: Capability) -> None:
        tree.mkdir("d")
        tree.chmod("d", 0o6755)
        with supports_ownership:
            tree.chown("d", ALICE, ALICE)
            assert tree.stat("d").mode & 0o7777 == 0o6755

    def test_inode_number_stays(self, tree: Tree) -> None:
        tree.write_file("f", b"x")
        ino = tree.stat("f").ino
        tree.chmod("f", 0o600)
        tree.truncate("f", 100)
        tree.rename("f", "g")
        tree.drop_caches()
        assert tree.stat("g").ino == ino

    def test_new_file_has_one_link_and_the_callers_ids(self, tree: Tree) -> None:
        tree.write_file("f")
        found = tree.stat("f")
        assert (found.nlink, found.uid, found.gid, found.size, found.rdev) == (1, 0, 0, 0, 0)

    def test_attributes_of_a_descriptor_are_those_of_the_name(self, tree: Tree) -> None:
        tree.write_file("f", b"data")
        with opened(tree, "f") as fd:
            assert tree.fstat(fd) == tree.stat("f")

    def test_changing_what_is_missing_is_enoent(self, tree: Tree) -> None:
        with fails_with(errno.ENOENT):
            tree.chmod("missing", 0o644)
        with fails_with(errno.ENOENT):
            tree.chown("missing", 0, 0)
        with fails_with(errno.ENOENT):
            tree.utimens("missing", 0, 0)

    def test_block_size_is_a_power_of_two(self, tree: Tree) -> None:
        tree.write_file("f")
        blksize = tree.stat("f").blksize
        assert blksize >= 512
        assert blksize & (blksize - 1) == 0


class TimesContract:
    """Times: what changes which, and to the nanosecond."""

    def _changed(self, tree: Tree, path: str, verb: Callable[[], object]) -> set[str]:
        """Do *verb* and tell which of "m" and "c" of *path* it brought forward; none may go back."""
        before = tree.lstat(path)
        let_clock_pass(max(before.mtime_ns, before.ctime_ns))
        verb()
        after = tree.lstat(path)
        assert after.mtime_ns >= before.mtime_ns
        assert after.ctime_ns >= before.ctime_ns
        changed = {"m"} if after.mtime_ns != before.mtime_ns else set()
        return changed | ({"c"} if after.ctime_ns != before.ctime_ns else set())

    def test_new_file_is_of_now(self, tree: Tree) -> None:
        before = coarse_now_ns()
        tree.write_file("f")
        tree.mkdir("d")
        after = time.time_ns()
        for name in ("f", "d"):
            found = tree.stat(name)
            for moment in (found.atime_ns, found.mtime_ns, found.ctime_ns):
                assert before <= moment <= after

    def test_writing_changes_mtime_and_ctime(self, tree: Tree) -> None:
        with opened(tree, "f", os.O_CREAT | os.O_WRONLY) as fd:
            assert self._changed(tree, "f", lambda: tree.pwrite(fd, b"x", 0)) == {"m", "c"}
            assert self._changed(tree, "f", lambda: tree.pwrite(fd, b"y", 0)) == {"m", "c"}

    def test_truncating_changes_mtime_and_ctime(self, tree: Tree) -> None:
        tree.write_file("f", b"data")
        assert self._changed(tree, "f", lambda: tree.truncate("f", 2)) == {"m", "c"}
        with opened(tree, "f", os.O_WRONLY) as fd:
            assert self._changed(tree, "f", lambda: tree.ftruncate(fd, 100)) == {"m", "c"}
        assert self._changed(tree, "f", lambda: tree.write_file("f")) == {"m", "c"}

    def test_reading_changes_neither(self, tree: Tree) -> None:
        tree.write_file("f", b"data")
        assert self._changed(tree, "f", lambda: tree.read_file("f")) == set()
        assert self._changed(tree, "", lambda: tree.listdir()) == set()

    def test_changing_attributes_changes_ctime_only(
        self, tree: Tree, supports_ownership: Capability, supports_links: Capability
    ) -> None:
        tree.write_file("f", b"data")
        assert self._changed(tree, "f", lambda: tree.chmod("f", 0o600)) == {"c"}
        if supports_ownership:
            assert self._changed(tree, "f", lambda: tree.chown("f", ALICE, ALICE)) == {"c"}
        if supports_links:
            assert self._changed(tree, "f", lambda: tree.link("f", "g")) == {"c"}
            assert self._changed(tree, "f", lambda: tree.unlink("g")) == {"c"}

    def test_xattr_changes_ctime_only(self, tree: Tree, supports_xattr: Capability) -> None:
        tree.write_file("f", b"data")
        with supports_xattr:
            tree.setxattr("f", "user.x", b"0")
            assert self._changed(tree, "f", lambda: tree.setxattr("f", "user.x", b"1")) == {"c"}
            assert self._changed(tree, "f", lambda: tree.removexattr("f", "user.x")) == {"c"}

    def test_fallocate_changes_times(self, tree: Tree, supports_fallocate: Capability) -> None:
        with opened(tree, "f", os.O_CREAT | os.O_RDWR) as fd, supports_fallocate:
            tree.fallocate(fd, 0, 0, 10)
            assert "c" in self._changed(tree, "f", lambda: tree.fallocate(fd, 0, 0, 10_000))

    @pytest.mark.parametrize("what", ["create", "mkdir", "symlink", "mknod", "unlink", "rmdir", "rename", "link"])
    def test_changing_a_directory_changes_its_mtime_and_ctime(self, tree: Tree, what: str, supports_links: Capability) -> None:
        tree.mkdir("d")
        tree.write_file("outside")
        tree.write_file("d/there")
        tree.mkdir("d/sub")
        verbs: dict[str, Callable[[], object]] = {
            "create": lambda: tree.write_file("d/n"),
            "mkdir": lambda: tree.mkdir("d/n"),
            "symlink": lambda: tree.symlink("x", "d/n"),
            "mknod": lambda: tree.mknod("d/n", stat.S_IFREG | 0o644),
            "unlink": lambda: tree.unlink("d/there"),
            "rmdir": lambda: tree.rmdir("d/sub"),
            "rename": lambda: tree.rename("d/there", "d/n"),
            "link": lambda: tree.link("outside", "d/n"),
        }
        with supports_links if what == "link" else SUPPORTED:
            assert self._changed(tree, "d", verbs[what]) == {"m", "c"}

    def test_rename_changes_both_directories_and_the_files_ctime(self, tree: Tree) -> None:
        tree.mkdir("one")
        tree.mkdir("two")
        tree.write_file("one/a", b"data")
        two = tree.stat("two")
        assert self._changed(tree, "one", lambda: tree.rename("one/a", "two/a")) == {"m", "c"}
        assert tree.stat("two").mtime_ns > two.mtime_ns
        before = tree.stat("two/a")
        let_clock_pass(before.ctime_ns)
        tree.rename("two/a", "two/b")
        after = tree.stat("two/b")
        assert after.mtime_ns == before.mtime_ns
        assert after.ctime_ns > before.ctime_ns

    def test_changing_a_file_does_not_change_its_directory(self, tree: Tree) -> None:
        tree.mkdir("d")
        tree.write_file("d/f", b"data")
        assert self._changed(tree, "d", lambda: tree.write_file("d/f", b"other")) == set()
        assert self._changed(tree, "d", lambda: tree.chmod("d/f", 0o600)) == set()

    @pytest.mark.parametrize(
        ("atime_ns", "mtime_ns"),
        [
            (0, 1),
            (1_234_567_890_123_456_789, 987_654_321),
            (-1_500_000_000, -3_000_000_003),
            (5_000_000_000_000_000_001, 4_294_967_296_999_999_999),
        ],
        ids=["epoch", "nanoseconds", "before-1970", "after-2106"],
    )
    def test_times_are_set_to_the_nanosecond(self, tree: Tree, atime_ns: int, mtime_ns: int) -> None:
        tree.write_file("f")
        tree.utimens("f", atime_ns, mtime_ns)
        found = tree.stat("f")
        assert (found.atime_ns, found.mtime_ns) == (atime_ns, mtime_ns)
        tree.drop_caches()
        found = tree.stat("f")
        assert (found.atime_ns, found.mtime_ns) == (atime_ns, mtime_ns)

    def test_setting_times_changes_ctime(self, tree: Tree) -> None:
        tree.write_file("f")
        before = tree.stat("f").ctime_ns
        let_clock_pass(before)
        tree.utimens("f", 1, 2)
        assert tree.stat("f").ctime_ns > before

    def test_one_time_is_left(self, tree: Tree) -> None:
        tree.write_file("f")
        tree.utimens("f", 10**18, 2 * 10**18)
        tree.utimens("f", UTIME_OMIT, 3 * 10**18)
        assert tree.stat("f").atime_ns == 10**18
        tree.utimens("f", 4 * 10**18, UTIME_OMIT)
        found = tree.stat("f")
        assert (found.atime_ns, found.mtime_ns) == (4 * 10**18, 3 * 10**18)

    def test_time_is_set_to_now(self, tree: Tree) -> None:
        tree.write_file("f")
        tree.utimens("f", 10**18, 10**18)
        before = coarse_now_ns()
        tree.utimens("f", UTIME_NOW, UTIME_NOW)
        after = time.time_ns()
        found = tree.stat("f")
        assert before <= found.atime_ns <= after
        assert before <= found.mtime_ns <= after

    def test_times_of_a_symlink_are_its_own(self, tree: Tree, supports_symlinks: Capability) -> None:
        tree.write_file("f")
        tree.utimens("f", 10**18, 10**18)
        with supports_symlinks:
            tree.symlink("f", "s")
            tree.utimens("s", 5, 6, follow=False)
            assert tree.lstat("s").mtime_ns == 6
            assert tree.stat("f").mtime_ns == 10**18

    def test_birth_time_is_told_and_stays(self, tree: Tree, supports_btime: bool) -> None:
        before = coarse_now_ns()
        tree.write_file("f")
        after = time.time_ns()
        born = tree.btime_ns("f")
        if not supports_btime:
            assert born is None
            return
        assert born is not None
        assert before <= born <= after
        tree.utimens("f", 1, 2)
        tree.write_file("f", b"more")
        assert tree.btime_ns("f") == born


class StatfsContract:
    """Totals."""

    def test_totals_hold_together(self, tree: Tree) -> None:
        found = tree.statfs()
        assert found.bavail <= found.bfree <= found.blocks
        assert found.ffree <= found.files
        assert found.frsize >= 512
        assert found.bsize >= 512

    def test_name_max_is_told(self, tree: Tree, name_max: int) -> None:
        assert tree.statfs().namelen == name_max

    def test_every_path_gives_the_same_totals(self, tree: Tree) -> None:
        tree.mkdir("d")
        tree.write_file("d/f", b"x")
        assert tree.statfs("d/f").blocks == tree.statfs().blocks
        assert tree.statfs("d").files == tree.statfs().files

    def test_statfs_of_what_is_missing_is_enoent(self, tree: Tree) -> None:
        with fails_with(errno.ENOENT):
            tree.statfs("missing")

    def test_written_bytes_are_counted_and_given_back(self, tree: Tree) -> None:
        before = tree.statfs()
        tree.write_file("f", b"x" * 1_000_000)
        during = tree.statfs()
        used = (before.bfree - during.bfree) * before.frsize
        assert used == 0 or 1_000_000 <= used <= 1_200_000
        tree.drop_caches()
        assert tree.read_file("f") == b"x" * 1_000_000  # looked up again
        tree.unlink("f")
        assert_given_back(tree, before)

    def test_deleted_file_takes_space_while_it_is_open(self, tree: Tree) -> None:
        before = tree.statfs()
        with opened(tree, "f", os.O_CREAT | os.O_RDWR) as fd:
            tree.write_all(fd, b"x" * 400_000)
            during = tree.statfs()
            tree.unlink("f")
            assert tree.statfs().bfree == during.bfree
        assert_given_back(tree, before)

    def test_every_kind_of_file_is_given_back(self, tree: Tree) -> None:
        before = tree.statfs()
        for round_ in range(3):
            tree.mkdir("d")
            tree.write_file("d/f", b"x" * 5000)
            tree.symlink("f", "d/s")
            tree.rename("d/f", "d/g")
            if round_ == 1:
                tree.drop_caches()
            assert tree.listdir("d") == [b"g", b"s"]
            tree.write_file("d/replaced", b"y" * 5000)
            tree.rename("d/g", "d/replaced")
            tree.remove_tree("d")
        assert_given_back(tree, before)


def assert_given_back(tree: Tree, before: Totals) -> None:
    """Wait until the totals are what they were *before*: forgets are told a little later than they are due."""
    tree.drop_caches()
    deadline = time.monotonic() + 2
    while (found := tree.statfs()) != before and time.monotonic() < deadline:
        time.sleep(0.005)
    assert (found.bfree, found.ffree) == (before.bfree, before.ffree)


__all__ = ["AttrContract", "StatfsContract", "TimesContract"]
