"""Contract about extended attributes."""

from __future__ import annotations

import errno

from ..tree import Tree
from .base import ALICE, Capability, fails_with

XATTR_CREATE = 1
XATTR_REPLACE = 2


class XattrContract:
    """Extended attributes."""

    def test_value_is_read_back(self, tree: Tree, supports_xattr: Capability) -> None:
        tree.write_file("f")
        with supports_xattr:
            tree.setxattr("f", "user.one", b"value")
            tree.setxattr("f", "user.bytes", bytes(range(256)))
            tree.drop_caches()
            assert tree.getxattr("f", "user.one") == b"value"
            assert tree.getxattr("f", "user.bytes") == bytes(range(256))

    def test_value_may_be_empty(self, tree: Tree, supports_xattr: Capability) -> None:
        tree.write_file("f")
        with supports_xattr:
            tree.setxattr("f", "user.empty", b"")
            assert tree.getxattr("f", "user.empty") == b""
            assert tree.getxattr_size("f", "user.empty") == 0
            assert b"user.empty" in tree.listxattr("f")

    def test_value_is_replaced(self, tree: Tree, supports_xattr: Capability) -> None:
        tree.write_file("f")
        with supports_xattr:
            tree.setxattr("f", "user.x", b"long value")
            tree.setxattr("f", "user.x", b"short")
            assert tree.getxattr("f", "user.x") == b"short"

    def test_big_value_is_read_back(self, tree: Tree, supports_xattr: Capability, xattr_max: int) -> None:
        tree.write_file("f")
        value = bytes(index % 251 for index in range(xattr_max))
        with supports_xattr:
            tree.setxattr("f", "user.big", value)
            assert tree.getxattr("f", "user.big") == value

    def test_size_is_asked_and_too_small_a_buffer_is_erange(self, tree: Tree, supports_xattr: Capability) -> None:
        tree.write_file("f")
        with supports_xattr:
            tree.setxattr("f", "user.x", b"12345")
            assert tree.getxattr_size("f", "user.x") == 5
            assert tree.getxattr("f", "user.x", 5) == b"12345"
            with fails_with(errno.ERANGE):
                tree.getxattr("f", "user.x", 4)

    def test_missing_attribute_is_enodata(self, tree: Tree, supports_xattr: Capability) -> None:
        tree.write_file("f")
        with supports_xattr:
            tree.setxattr("f", "user.there", b"")
            with fails_with(errno.ENODATA):
                tree.getxattr("f", "user.x")
            with fails_with(errno.ENODATA):
                tree.removexattr("f", "user.x")

    def test_missing_file_is_enoent(self, tree: Tree) -> None:
        with fails_with(errno.ENOENT):
            tree.getxattr("missing", "user.x")
        with fails_with(errno.ENOENT):
            tree.setxattr("missing", "user.x", b"")

    def test_create_and_replace_flags_are_obeyed(self, tree: Tree, supports_xattr: Capability) -> None:
        tree.write_file("f")
        with supports_xattr:
            tree.setxattr("f", "user.x", b"1", XATTR_CREATE)
            with fails_with(errno.EEXIST):
                tree.setxattr("f", "user.x", b"2", XATTR_CREATE)
            assert tree.getxattr("f", "user.x") == b"1"
            tree.setxattr("f", "user.x", b"3", XATTR_REPLACE)
            assert tree.getxattr("f", "user.x") == b"3"
            with fails_with(errno.ENODATA):
                tree.setxattr("f", "user.y", b"", XATTR_REPLACE)
            assert b"user.y" not in tree.listxattr("f")

    def test_all_names_are_listed(self, tree: Tree, supports_xattr: Capability) -> None:
        tree.write_file("f")
        names = [b"user.%d" % index for index in range(20)] + [b"user.with space", "user.ü".encode()]
        with supports_xattr:
            for name in names:
                tree.setxattr("f", name, name)
            assert sorted(set(tree.listxattr("f")) - {b"security.selinux"}) == sorted(names)
            for name in names:
                tree.removexattr("f", name)
            assert set(tree.listxattr("f")) - {b"security.selinux"} == set()

    def test_directory_has_them_too(self, tree: Tree, supports_xattr: Capability) -> None:
        tree.mkdir("d")
        with supports_xattr:
            tree.setxattr("d", "user.x", b"dir")
            assert tree.getxattr("d", "user.x") == b"dir"

    def test_they_move_with_the_file(self, tree: Tree, supports_xattr: Capability) -> None:
        tree.write_file("f")
        with supports_xattr:
            tree.setxattr("f", "user.x", b"kept")
            tree.rename("f", "g")
            tree.write_file("f")
            assert tree.getxattr("g", "user.x") == b"kept"
            with fails_with(errno.ENODATA):
                tree.getxattr("f", "user.x")

    def test_user_attributes_are_for_files_and_directories_only(
        self, tree: Tree, supports_xattr: Capability, supports_symlinks: Capability
    ) -> None:
        if not supports_symlinks:
            return
        tree.symlink("x", "s")
        with supports_xattr if not supports_xattr else fails_with(errno.EPERM):
            tree.setxattr("s", "user.x", b"", follow=False)

    def test_trusted_attributes_are_roots(self, tree: Tree, supports_trusted_xattr: Capability) -> None:
        tree.write_file("f", b"", 0o666)
        with supports_trusted_xattr:
            tree.setxattr("f", "trusted.x", b"secret")
            assert tree.getxattr("f", "trusted.x") == b"secret"
            with tree.actor(ALICE, ALICE) as alice:
                with fails_with(errno.ENODATA):
                    alice.run(tree.getxattr, "f", "trusted.x")
                with fails_with(errno.EPERM):
                    alice.run(tree.setxattr, "f", "trusted.x", b"")

    def test_security_attributes_are_kept(self, tree: Tree, supports_security_xattr: Capability) -> None:
        tree.write_file("f")
        with supports_security_xattr:
            tree.setxattr("f", "security.test", b"label")
            assert tree.getxattr("f", "security.test") == b"label"
            assert b"security.test" in tree.listxattr("f")

    def test_unknown_namespace_is_eopnotsupp(self, tree: Tree) -> None:
        tree.write_file("f")
        with fails_with(errno.EOPNOTSUPP):
            tree.setxattr("f", "nonsense.x", b"")
        with fails_with(errno.EOPNOTSUPP, errno.ENODATA):
            tree.getxattr("f", "nonsense.x")

    def test_limits_are_kept(self, tree: Tree, supports_xattr: Capability) -> None:
        tree.write_file("f")
        with supports_xattr:
            tree.setxattr("f", b"user." + b"n" * 250, b"long name")
            with fails_with(errno.ERANGE):
                tree.setxattr("f", b"user." + b"n" * 251, b"")
            with fails_with(errno.E2BIG):
                tree.setxattr("f", "user.x", bytes(65_537))
            with fails_with(errno.EINVAL):
                tree.setxattr("f", "user.x", b"", 8)

    def test_permissions_apply(self, tree: Tree, supports_xattr: Capability) -> None:
        tree.write_file("f")
        with supports_xattr:
            tree.setxattr("f", "user.x", b"1")
            tree.chmod("f", 0o640)
            with tree.actor(ALICE, ALICE) as alice:
                with fails_with(errno.EACCES):
                    alice.run(tree.getxattr, "f", "user.x")
                tree.chmod("f", 0o644)
                assert alice.run(tree.getxattr, "f", "user.x") == b"1"
                with fails_with(errno.EACCES):
                    alice.run(tree.setxattr, "f", "user.x", b"2")


__all__ = ["XattrContract"]
