"""POSIX ACLs as the kernel hands them over in system.posix_acl_access and system.posix_acl_default.

With FUSE_POSIX_ACL the kernel enforces what these two say; keeping them and the mode in step, and giving a new file what its
directory prescribes, is the filesystem's duty (fs/posix_acl.c does it for filesystems in the kernel; acl(5) names the rules).

The value is a version word, then one entry of tag, permissions and id after the other (uapi/linux/posix_acl_xattr.h).
"""

from __future__ import annotations

import errno
import struct
from itertools import pairwise

ACCESS = b"system.posix_acl_access"
DEFAULT = b"system.posix_acl_default"

VERSION = 2
USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20

_HEADER = struct.Struct("<I")
_ENTRY = struct.Struct("<HHI")
_ORDER = {USER_OBJ: 0, USER: 1, GROUP_OBJ: 2, GROUP: 3, MASK: 4, OTHER: 5}

Entries = list[tuple[int, int, int]]
"""(tag, permissions, id) in the order of the tags."""


def parse(value: bytes) -> Entries:
    """Return the entries of an ACL; EINVAL unless it is a whole and valid one, EOPNOTSUPP for another version."""
    if len(value) < _HEADER.size or (len(value) - _HEADER.size) % _ENTRY.size:
        raise OSError(errno.EINVAL, "ACL of an odd length")
    if _HEADER.unpack_from(value)[0] != VERSION:
        raise OSError(errno.EOPNOTSUPP, "ACL of another version")
    entries = list(_ENTRY.iter_unpack(value[_HEADER.size :]))
    if not _valid(entries):
        raise OSError(errno.EINVAL, "not a valid ACL")
    return entries


def _valid(entries: Entries) -> bool:
    tags = [tag for tag, _, _ in entries]
    if any(tag not in _ORDER or perm & ~7 for tag, perm, _ in entries):
        return False
    if any(_ORDER[a] > _ORDER[b] for a, b in pairwise(tags)):
        return False
    if any(tags.count(tag) != 1 for tag in (USER_OBJ, GROUP_OBJ, OTHER)) or tags.count(MASK) > 1:
        return False
    return MASK in tags or not (USER in tags or GROUP in tags)


def build(entries: Entries) -> bytes:
    """Return the value of *entries*."""
    return _HEADER.pack(VERSION) + b"".join(_ENTRY.pack(*entry) for entry in entries)


def permissions(entries: Entries) -> int:
    """Return the permission bits that stand for *entries* in the mode: the mask, where there is one, for the group."""
    found = {tag: perm for tag, perm, _ in entries if tag not in (USER, GROUP)}
    return found[USER_OBJ] << 6 | found.get(MASK, found[GROUP_OBJ]) << 3 | found[OTHER]


def is_plain(entries: Entries) -> bool:
    """Say whether the permission bits alone say all that *entries* do."""
    return len(entries) == 3


def chmod(value: bytes, mode: int) -> bytes:
    """Return the access ACL *value* with the permissions of *mode* (chmod changes the mask, where there is one)."""
    return build(_with_mode(parse(value), mode))


def _with_mode(entries: Entries, mode: int) -> Entries:
    masked = any(tag == MASK for tag, _, _ in entries)
    bits = {USER_OBJ: mode >> 6 & 7, MASK if masked else GROUP_OBJ: mode >> 3 & 7, OTHER: mode & 7}
    return [(tag, bits.get(tag, perm), who) for tag, perm, who in entries]


def inherit(default: bytes, mode: int) -> tuple[int, bytes | None]:
    """Return the mode and the access ACL of a file created with *mode* in a directory with the ACL *default*.

    The creator's mode can only take permissions away; the umask does not count (acl(5), "Object creation and default ACLs").
    None: the mode says it all.
    """
    entries = parse(default)
    bits = permissions(entries) & mode
    entries = _with_mode(entries, bits)
    return mode & ~0o777 | bits, None if is_plain(entries) else build(entries)


__all__ = [
    "ACCESS",
    "DEFAULT",
    "GROUP",
    "GROUP_OBJ",
    "MASK",
    "OTHER",
    "USER",
    "USER_OBJ",
    "Entries",
    "build",
    "chmod",
    "inherit",
    "is_plain",
    "parse",
    "permissions",
]
