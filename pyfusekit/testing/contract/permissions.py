"""Contracts about who may do what: modes and POSIX ACLs."""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Callable

from ..tree import UTIME_NOW, Tree
from .base import ALICE, BOB, Capability, Fails, Refused, fails_with, umask

ACCESS_ACL = b"system.posix_acl_access"
DEFAULT_ACL = b"system.posix_acl_default"


class PermissionContract:
    """Who may do what; enforced by the kernel (default_permissions) or by the filesystem."""

    def test_mode_decides_for_owner_group_and_others(self, tree: Tree) -> None:
        tree.write_file("f", b"secret")
        tree.chown("f", ALICE, ALICE)
        for mode, owner, group, other in (
            (0o400, True, False, False),
            (0o040, False, True, False),
            (0o004, False, False, True),
            (0o000, False, False, False),
        ):
            tree.chmod("f", mode)
            for uid, gid, allowed in ((ALICE, BOB, owner), (BOB, ALICE, group), (BOB, BOB, other)):
                with tree.actor(uid, gid) as user:
                    if allowed:
                        assert user.run(tree.read_file, "f") == b"secret"
                    else:
                        with fails_with(errno.EACCES):
                            user.run(tree.read_file, "f")
            assert tree.read_file("f") == b"secret"

    def test_supplementary_groups_count(self, tree: Tree) -> None:
        tree.write_file("f", b"secret")
        tree.chown("f", 0, 5000)
        tree.chmod("f", 0o040)
        with tree.actor(ALICE, ALICE, (4000, 5000)) as alice:
            assert alice.run(tree.read_file, "f") == b"secret"
        with tree.actor(ALICE, ALICE, (4000,)) as alice, fails_with(errno.EACCES):
            alice.run(tree.read_file, "f")

    def test_writing_needs_write_permission(self, tree: Tree) -> None:
        tree.write_file("f", b"data", 0o644)
        with tree.actor(ALICE, ALICE) as alice:
            for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC):
                with fails_with(errno.EACCES):
                    alice.run(tree.open, "f", flags)
            with fails_with(errno.EACCES):
                alice.run(tree.truncate, "f", 0)
        assert tree.read_file("f") == b"data"

    def test_changing_a_directory_needs_write_permission_on_it(self, tree: Tree) -> None:
        tree.mkdir("d", 0o755)
        tree.write_file("d/f")
        tree.mkdir("d/sub")
        with tree.actor(ALICE, ALICE) as alice:
            verbs: list[Callable[[], object]] = [
                lambda: tree.write_file("d/n"),
                lambda: tree.mkdir("d/n"),
                lambda: tree.symlink("x", "d/n"),
                lambda: tree.mknod("d/n", stat.S_IFREG | 0o644),
                lambda: tree.unlink("d/f"),
                lambda: tree.rmdir("d/sub"),
                lambda: tree.rename("d/f", "d/n"),
            ]
            for verb in verbs:
                with fails_with(errno.EACCES):
                    alice.run(verb)
        assert tree.listdir("d") == [b"f", b"sub"]

    def test_walking_needs_search_permission(self, tree: Tree) -> None:
        tree.mkdir("d")
        tree.write_file("d/f", b"data")
        tree.chmod("d/f", 0o644)
        with tree.actor(ALICE, ALICE) as alice:
            tree.chmod("d", 0o744)
            with fails_with(errno.EACCES):
                alice.run(tree.read_file, "d/f")
            assert alice.run(tree.listdir, "d") == [b"f"]
            tree.chmod("d", 0o711)
            assert alice.run(tree.read_file, "d/f") == b"data"
            with fails_with(errno.EACCES):
                alice.run(tree.listdir, "d")

    def test_permission_taken_away_is_noticed(self, tree: Tree) -> None:
        tree.write_file("f", b"data", 0o644)
        with tree.actor(ALICE, ALICE) as alice:
            assert alice.run(tree.read_file, "f") == b"data"
            tree.chmod("f", 0o600)
            with fails_with(errno.EACCES):
                alice.run(tree.read_file, "f")

    def test_sticky_directory_protects_others_files(self, tree: Tree) -> None:
        tree.mkdir("d")
        tree.chmod("d", 0o1777)
        with tree.actor(ALICE, ALICE) as alice, tree.actor(BOB, BOB) as bob:
            alice.run(tree.write_file, "d/a", b"")
            alice.run(tree.mkdir, "d/sub")
            bob.run(tree.write_file, "d/b", b"")
            with fails_with(errno.EPERM):
                bob.run(tree.unlink, "d/a")
            with fails_with(errno.EPERM):
                bob.run(tree.rmdir, "d/sub")
            with fails_with(errno.EPERM):
                bob.run(tree.rename, "d/a", "d/c")
            with fails_with(errno.EPERM):
                bob.run(tree.rename, "d/b", "d/a")
            alice.run(tree.unlink, "d/a")
            bob.run(tree.unlink, "d/b")
            alice.run(tree.rmdir, "d/sub")

    def test_only_the_owner_changes_the_mode(self, tree: Tree) -> None:
        tree.write_file("f", b"", 0o666)
        tree.chown("f", ALICE, ALICE)
        with tree.actor(BOB, BOB) as bob, fails_with(errno.EPERM):
            bob.run(tree.chmod, "f", 0o777)
        with tree.actor(ALICE, ALICE) as alice:
            alice.run(tree.chmod, "f", 0o600)
        assert tree.stat("f").mode & 0o7777 == 0o600

    def test_setgid_is_not_set_by_who_is_not_in_the_group(self, tree: Tree) -> None:
        tree.write_file("f")
        tree.chown("f", ALICE, BOB)
        with tree.actor(ALICE, ALICE) as alice:
            alice.run(tree.chmod, "f", 0o2755)
        assert tree.stat("f").mode & 0o7777 == 0o755
        with tree.actor(ALICE, ALICE, (BOB,)) as alice:
            alice.run(tree.chmod, "f", 0o2755)
        assert tree.stat("f").mode & 0o7777 == 0o2755

    def test_owner_gives_the_file_to_their_groups_only(self, tree: Tree) -> None:
        tree.write_file("f")
        tree.chown("f", ALICE, ALICE)
        with tree.actor(ALICE, ALICE, (5000,)) as alice:
            alice.run(tree.chown, "f", -1, 5000)
            with fails_with(errno.EPERM):
                alice.run(tree.chown, "f", -1, 6000)
            with fails_with(errno.EPERM):
                alice.run(tree.chown, "f", BOB, -1)
        assert (tree.stat("f").uid, tree.stat("f").gid) == (ALICE, 5000)

    def test_owners_chown_clears_setuid(self, tree: Tree) -> None:
        tree.write_file("f")
        tree.chown("f", ALICE, ALICE)
        tree.chmod("f", 0o6755)
        with tree.actor(ALICE, ALICE, (5000,)) as alice:
            alice.run(tree.chown, "f", -1, 5000)
        assert tree.stat("f").mode & 0o7777 == 0o755

    def test_times_are_set_by_the_owner_and_to_now_by_who_may_write(self, tree: Tree) -> None:
        tree.write_file("f")
        tree.chown("f", ALICE, ALICE)
        tree.chmod("f", 0o646)
        with tree.actor(BOB, BOB) as bob:
            with fails_with(errno.EPERM):
                bob.run(tree.utimens, "f", 1, 2)
            bob.run(tree.utimens, "f", UTIME_NOW, UTIME_NOW)
            tree.chmod("f", 0o644)
            with fails_with(errno.EACCES):
                bob.run(tree.utimens, "f", UTIME_NOW, UTIME_NOW)
        with tree.actor(ALICE, ALICE) as alice:
            alice.run(tree.utimens, "f", 1, 2)
        assert tree.stat("f").mtime_ns == 2

    def test_access_tells_what_would_be_allowed(self, tree: Tree) -> None:
        tree.write_file("f", b"", 0o644)
        tree.chown("f", ALICE, ALICE)
        with tree.actor(ALICE, ALICE) as alice, tree.actor(BOB, BOB) as bob:
            assert alice.run(tree.access, "f", os.R_OK | os.W_OK)
            assert not alice.run(tree.access, "f", os.X_OK)
            assert bob.run(tree.access, "f", os.R_OK)
            assert not bob.run(tree.access, "f", os.W_OK)
            assert bob.run(tree.access, "f", os.F_OK)
            assert not bob.run(tree.access, "missing", os.F_OK)
        assert tree.access("f", os.R_OK | os.W_OK)
        assert not tree.access("f", os.X_OK)

    def test_directory_is_moved_only_by_who_may_write_it(self, tree: Tree) -> None:
        tree.chmod("", 0o777)
        tree.mkdir("from")
        tree.mkdir("to")
        tree.mkdir("from/d")
        tree.chmod("from", 0o777)
        tree.chmod("to", 0o777)
        tree.chmod("from/d", 0o755)
        with tree.actor(ALICE, ALICE) as alice:
            with fails_with(errno.EACCES):
                alice.run(tree.rename, "from/d", "to/d")
            alice.run(tree.rename, "from/d", "from/e")


USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
NOBODY = 0xFFFFFFFF


def acl(*entries: tuple[int, int, int]) -> bytes:
    """Pack (tag, permissions, id) entries as the kernel keeps them (linux/posix_acl_xattr.h)."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def alice_may(perms: int, *, other: int = 0, mask: int = 7) -> bytes:
    """Return an ACL that names alice."""
    return acl(
        (USER_OBJ, 7, NOBODY), (USER, perms, ALICE), (GROUP_OBJ, 0, NOBODY), (MASK, mask, NOBODY), (OTHER, other, NOBODY)
    )


def kernel_fails_with(number: int, supports_acl: Capability) -> Fails:
    """Expect what the kernel says before it asks the filesystem, which may be too late for one that refuses."""
    return fails_with(number, *(supports_acl.numbers if isinstance(supports_acl, Refused) else ()))


class AclContract:
    """POSIX ACLs: kept, enforced, in step with the mode, inherited (acl(5))."""

    def test_acl_is_read_back(self, tree: Tree, supports_acl: Capability) -> None:
        tree.write_file("f")
        with supports_acl:
            tree.setxattr("f", ACCESS_ACL, alice_may(6))
            tree.drop_caches()
            assert tree.getxattr("f", ACCESS_ACL) == alice_may(6)
            assert ACCESS_ACL in tree.listxattr("f")

    def test_named_user_is_allowed_and_others_are_not(self, tree: Tree, supports_acl: Capability) -> None:
        tree.write_file("f", b"data")
        with supports_acl:
            tree.setxattr("f", ACCESS_ACL, alice_may(4))
            with tree.actor(ALICE, ALICE) as alice, tree.actor(BOB, BOB) as bob:
                assert alice.run(tree.read_file, "f") == b"data"
                with fails_with(errno.EACCES):
                    alice.run(tree.open, "f", os.O_WRONLY)
                with fails_with(errno.EACCES):
                    bob.run(tree.read_file, "f")

    def test_named_group_is_allowed(self, tree: Tree, supports_acl: Capability) -> None:
        tree.write_file("f", b"data")
        value = acl((USER_OBJ, 6, NOBODY), (GROUP_OBJ, 0, NOBODY), (GROUP, 4, 5000), (MASK, 4, NOBODY), (OTHER, 0, NOBODY))
        with supports_acl:
            tree.setxattr("f", ACCESS_ACL, value)
            with tree.actor(ALICE, ALICE, (5000,)) as alice, tree.actor(BOB, BOB) as bob:
                assert alice.run(tree.read_file, "f") == b"data"
                with fails_with(errno.EACCES):
                    bob.run(tree.read_file, "f")

    def test_mask_limits_the_named_user(self, tree: Tree, supports_acl: Capability) -> None:
        tree.write_file("f", b"data")
        with supports_acl:
            tree.setxattr("f", ACCESS_ACL, alice_may(6, mask=4))
            with tree.actor(ALICE, ALICE) as alice:
                assert alice.run(tree.read_file, "f") == b"data"
                with fails_with(errno.EACCES):
                    alice.run(tree.open, "f", os.O_WRONLY)

    def test_setting_an_acl_sets_the_mode(self, tree: Tree, supports_acl: Capability) -> None:
        tree.write_file("f", b"", 0o600)
        with supports_acl:
            tree.setxattr("f", ACCESS_ACL, alice_may(6, other=4, mask=5))
            assert tree.stat("f").mode & 0o7777 == 0o754

    def test_minimal_acl_becomes_the_mode_alone(self, tree: Tree, supports_acl: Capability) -> None:
        tree.write_file("f", b"", 0o600)
        with supports_acl:
            tree.setxattr("f", ACCESS_ACL, acl((USER_OBJ, 6, NOBODY), (GROUP_OBJ, 4, NOBODY), (OTHER, 1, NOBODY)))
            assert tree.stat("f").mode & 0o7777 == 0o641
            assert ACCESS_ACL not in tree.listxattr("f")

    def test_chmod_changes_the_acls_mask(self, tree: Tree, supports_acl: Capability) -> None:
        tree.write_file("f", b"data")
        with supports_acl:
            tree.setxattr("f", ACCESS_ACL, alice_may(6))
            tree.chmod("f", 0o640)
            value = acl((USER_OBJ, 6, NOBODY), (USER, 6, ALICE), (GROUP_OBJ, 0, NOBODY), (MASK, 4, NOBODY), (OTHER, 0, NOBODY))
            assert tree.getxattr("f", ACCESS_ACL) == value
            assert tree.stat("f").mode & 0o7777 == 0o640
            with tree.actor(ALICE, ALICE) as alice:
                assert alice.run(tree.read_file, "f") == b"data"
                with fails_with(errno.EACCES):
                    alice.run(tree.open, "f", os.O_WRONLY)

    def test_removing_the_acl_leaves_the_mode(self, tree: Tree, supports_acl: Capability) -> None:
        tree.write_file("f", b"data")
        with supports_acl:
            tree.setxattr("f", ACCESS_ACL, alice_may(6, mask=6))
            tree.removexattr("f", ACCESS_ACL)
            assert tree.stat("f").mode & 0o7777 == 0o760
            with tree.actor(ALICE, ALICE) as alice, fails_with(errno.EACCES):
                alice.run(tree.read_file, "f")

    def test_default_acl_is_inherited_by_files(self, tree: Tree, supports_acl: Capability) -> None:
        tree.mkdir("d", 0o755)
        with supports_acl:
            tree.setxattr("d", DEFAULT_ACL, alice_may(6))
            tree.write_file("d/f", b"data", 0o666)
            value = acl((USER_OBJ, 6, NOBODY), (USER, 6, ALICE), (GROUP_OBJ, 0, NOBODY), (MASK, 6, NOBODY), (OTHER, 0, NOBODY))
            assert tree.getxattr("d/f", ACCESS_ACL) == value
            assert tree.stat("d/f").mode & 0o7777 == 0o660
            with fails_with(errno.ENODATA):
                tree.getxattr("d/f", DEFAULT_ACL)

    def test_default_acl_is_inherited_by_directories_with_itself(self, tree: Tree, supports_acl: Capability) -> None:
        tree.mkdir("d", 0o755)
        with supports_acl:
            tree.setxattr("d", DEFAULT_ACL, alice_may(5, other=5))
            tree.mkdir("d/sub", 0o777)
            assert tree.getxattr("d/sub", DEFAULT_ACL) == alice_may(5, other=5)
            assert tree.getxattr("d/sub", ACCESS_ACL) == alice_may(5, other=5)
            assert tree.stat("d/sub").mode & 0o7777 == 0o775

    def test_default_acl_replaces_the_umask(self, tree: Tree, supports_acl: Capability) -> None:
        tree.mkdir("d", 0o755)
        tree.mkdir("plain", 0o755)
        with supports_acl:
            tree.setxattr("d", DEFAULT_ACL, acl((USER_OBJ, 7, NOBODY), (GROUP_OBJ, 7, NOBODY), (OTHER, 7, NOBODY)))
            with umask(tree, 0o077):
                for parent, mode in (("d", 0o666), ("plain", 0o600)):
                    tree.write_file(f"{parent}/f", b"", 0o666)
                    tree.mknod(f"{parent}/n", stat.S_IFREG | 0o666)
                    assert tree.stat(f"{parent}/f").mode & 0o7777 == mode
                    assert tree.stat(f"{parent}/n").mode & 0o7777 == mode
                tree.mkdir("d/sub", 0o777)
                tree.mkdir("plain/sub", 0o777)
            assert tree.stat("d/sub").mode & 0o7777 == 0o777
            assert tree.stat("plain/sub").mode & 0o7777 == 0o700

    def test_default_acl_does_not_change_the_directorys_own_mode(self, tree: Tree, supports_acl: Capability) -> None:
        tree.mkdir("d", 0o755)
        with supports_acl:
            tree.setxattr("d", DEFAULT_ACL, alice_may(7))
            assert tree.stat("d").mode & 0o7777 == 0o755
            tree.removexattr("d", DEFAULT_ACL)
            tree.write_file("d/f", b"", 0o644)
            with fails_with(errno.ENODATA):
                tree.getxattr("d/f", ACCESS_ACL)

    def test_default_acl_is_for_directories_only(self, tree: Tree, supports_acl: Capability) -> None:
        tree.write_file("f")
        with kernel_fails_with(errno.EACCES, supports_acl):
            tree.setxattr("f", DEFAULT_ACL, alice_may(7))

    def test_invalid_acl_is_einval(self, tree: Tree, supports_acl: Capability) -> None:
        tree.write_file("f")
        with kernel_fails_with(errno.EINVAL, supports_acl):
            tree.setxattr("f", ACCESS_ACL, acl((USER_OBJ, 7, NOBODY), (USER, 7, ALICE)))

    def test_only_the_owner_sets_it(self, tree: Tree, supports_acl: Capability) -> None:
        tree.write_file("f", b"", 0o666)
        with tree.actor(ALICE, ALICE) as alice, kernel_fails_with(errno.EPERM, supports_acl):
            alice.run(tree.setxattr, "f", ACCESS_ACL, alice_may(7))

    def test_setting_it_clears_setgid_for_who_is_not_in_the_group(self, tree: Tree, supports_acl: Capability) -> None:
        tree.write_file("f")
        tree.chown("f", ALICE, BOB)
        tree.chmod("f", 0o2755)
        with tree.actor(ALICE, ALICE) as alice, supports_acl:
            alice.run(tree.setxattr, "f", ACCESS_ACL, alice_may(5, other=5))
            assert not tree.stat("f").mode & 0o2000


__all__ = ["AclContract", "PermissionContract", "acl"]
