"""The ACL rules of memfs: what is taken, and what follows from it for modes and new files."""

from __future__ import annotations

import errno

import pytest

from pyfusekit.fs.memfs import acl
from pyfusekit.fs.memfs.acl import GROUP, GROUP_OBJ, MASK, OTHER, USER, USER_OBJ

NOBODY = 0xFFFFFFFF
PLAIN = acl.build([(USER_OBJ, 7, NOBODY), (GROUP_OBJ, 5, NOBODY), (OTHER, 4, NOBODY)])
MASKED = acl.build(
    [(USER_OBJ, 7, NOBODY), (USER, 6, 1000), (GROUP_OBJ, 5, NOBODY), (GROUP, 1, 50), (MASK, 6, NOBODY), (OTHER, 4, NOBODY)]
)


def test_value_is_what_the_kernel_writes() -> None:
    value = bytes.fromhex(
        "02000000"  # version 2
        "01000700ffffffff"  # user::rwx
        "02000600e8030000"  # user:1000:rw-
        "04000500ffffffff"  # group::r-x
        "08000100 32000000"  # group:50:--x
        "10000600ffffffff"  # mask::rw-
        "20000400ffffffff"  # other::r--
    )
    assert value == MASKED
    assert acl.build(acl.parse(value)) == value


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\2\0\0",
        MASKED[:-1],
        acl.build([(USER_OBJ, 7, NOBODY), (GROUP_OBJ, 5, NOBODY)]),
        acl.build([(USER_OBJ, 7, NOBODY), (USER_OBJ, 7, NOBODY), (GROUP_OBJ, 5, NOBODY), (OTHER, 4, NOBODY)]),
        acl.build([(USER_OBJ, 7, NOBODY), (USER, 6, 1000), (GROUP_OBJ, 5, NOBODY), (OTHER, 4, NOBODY)]),
        acl.build([(GROUP_OBJ, 5, NOBODY), (USER_OBJ, 7, NOBODY), (OTHER, 4, NOBODY)]),
        acl.build([(USER_OBJ, 8, NOBODY), (GROUP_OBJ, 5, NOBODY), (OTHER, 4, NOBODY)]),
        acl.build([(USER_OBJ, 7, NOBODY), (GROUP_OBJ, 5, NOBODY), (OTHER, 4, NOBODY), (0x40, 4, NOBODY)]),
    ],
    ids=["nothing", "half a version", "cut", "no other", "two owners", "no mask", "out of order", "fourth bit", "strange tag"],
)
def test_what_is_no_acl_is_einval(value: bytes) -> None:
    with pytest.raises(OSError, match="ACL") as caught:
        acl.parse(value)
    assert caught.value.errno == errno.EINVAL


def test_other_version_is_eopnotsupp() -> None:
    with pytest.raises(OSError, match="version") as caught:
        acl.parse(b"\3" + PLAIN[1:])
    assert caught.value.errno == errno.EOPNOTSUPP


def test_group_bits_of_the_mode_are_the_mask() -> None:
    assert acl.permissions(acl.parse(PLAIN)) == 0o754
    assert acl.permissions(acl.parse(MASKED)) == 0o764


def test_three_entries_say_no_more_than_a_mode() -> None:
    assert acl.is_plain(acl.parse(PLAIN))
    assert not acl.is_plain(acl.parse(MASKED))


def test_chmod_changes_the_mask_and_leaves_the_group() -> None:
    assert acl.parse(acl.chmod(MASKED, 0o421)) == [
        (USER_OBJ, 4, NOBODY),
        (USER, 6, 1000),
        (GROUP_OBJ, 5, NOBODY),
        (GROUP, 1, 50),
        (MASK, 2, NOBODY),
        (OTHER, 1, NOBODY),
    ]


def test_new_file_gets_what_both_its_creator_and_the_default_allow() -> None:
    mode, access = acl.inherit(MASKED, 0o100640)
    assert mode == 0o100640
    assert access is not None
    assert dict((tag, perm) for tag, perm, _ in acl.parse(access)) == {
        USER_OBJ: 6,
        USER: 6,
        GROUP_OBJ: 5,
        GROUP: 1,
        MASK: 4,
        OTHER: 0,
    }


def test_plain_default_becomes_a_mode_alone() -> None:
    assert acl.inherit(PLAIN, 0o104777) == (0o104754, None)
