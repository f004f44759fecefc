"""The kernel's mount table, /proc/self/mountinfo, as values (proc_pid_mountinfo(5)).

Reading it touches no mount, so it is what decides about a mountpoint whose server may be dead or hang.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

MOUNTINFO = "/proc/self/mountinfo"
OUR_FSTYPE = "fuse.pyfusekit"


@dataclass(slots=True)
class MountInfo:
    """One line of the mount table; paths and the source are decoded as file names are (surrogateescape)."""

    mount_id: int
    parent_id: int
    major: int
    minor: int
    """The connection's number under /sys/fs/fuse/connections, where fstype is FUSE's."""
    root: str
    mountpoint: str
    """Absolute, as seen from this process's root directory."""
    options: str
    """The mountpoint's own options (rw,nosuid,...)."""
    fstype: str
    source: str
    super_options: str
    """The superblock's options (rw,user_id=0,...)."""

    @property
    def is_fuse(self) -> bool:
        """Whether a FUSE server stands behind it, anyone's."""
        return self.fstype in ("fuse", "fuseblk") or self.fstype.startswith(("fuse.", "fuseblk."))

    @property
    def is_ours(self) -> bool:
        return self.fstype == OUR_FSTYPE

    @property
    def subtype(self) -> str:
        """What follows the dot of fuse.SUBTYPE, or nothing."""
        return self.fstype.partition(".")[2]


def read_mountinfo(path: str = MOUNTINFO) -> list[MountInfo]:
    """Return the mount table, oldest mount first where the kernel lists it so; an unreadable line is left out."""
    with open(path, "rb") as file:
        # Not splitlines(): the kernel escapes space, tab, newline, backslash and #, but leaves a carriage return as it is.
        lines = file.read().split(b"\n")
    return [info for info in map(_parse, lines) if info is not None]


def topmost(mounts: list[MountInfo], path: str) -> MountInfo | None:
    """Return the mount a lookup of *path* ends in, if it is mounted exactly there; *path* is absolute, without symlinks.

    A mount that lies under another one, on the same path or on one above it, is in the table but out of reach.
    """
    by_id = {info.mount_id: info for info in mounts}
    children: dict[int, list[MountInfo]] = {}
    for info in mounts:
        children.setdefault(info.parent_id, []).append(info)
    for info in reversed(mounts):
        if info.mountpoint == path and _within_reach(info, by_id, children):
            return info
    return None


def _within_reach(info: MountInfo, by_id: dict[int, MountInfo], children: dict[int, list[MountInfo]]) -> bool:
    if any(over.mountpoint == info.mountpoint for over in children.get(info.mount_id, ()) if over is not info):
        return False
    below = info
    while (parent := by_id.get(below.parent_id)) is not None and parent is not below:
        for sibling in children[parent.mount_id]:
            covers = sibling.mountpoint != below.mountpoint and is_within(below.mountpoint, sibling.mountpoint)
            if covers and sibling is not parent:
                return False
        below = parent
    return True


def is_within(path: str, top: str) -> bool:
    """Say whether *path* is *top* or lies below it; both absolute and normal."""
    return path == top or path.startswith(top if top == "/" else top + "/")


def _parse(line: bytes) -> MountInfo | None:
    # "36 35 98:0 /root /mnt rw,noatime master:1 - ext3 /dev/sda rw": any number of optional fields before the dash. The
    # fields before it never hold a lone dash (paths begin with a slash), and a source may be empty.
    left, dash, right = line.partition(b" - ")
    before = left.split(b" ")
    fstype, _, rest = right.partition(b" ")
    source, _, super_options = rest.rpartition(b" ")
    if not dash or len(before) < 6:
        return None
    try:
        mount_id, parent_id = int(before[0]), int(before[1])
        major, minor = map(int, before[2].split(b":"))
    except ValueError:
        return None
    return MountInfo(
        mount_id=mount_id,
        parent_id=parent_id,
        major=major,
        minor=minor,
        root=_decode(before[3]),
        mountpoint=_decode(before[4]),
        options=_decode(before[5]),
        fstype=_decode(fstype),
        source=_decode(source),
        super_options=_decode(super_options),
    )


def _decode(field: bytes) -> str:
    """Undo the kernel's octal escapes (fs/seq_file.c, mangle_path), then decode as a file name."""
    if b"\\" not in field:
        return os.fsdecode(field)
    first, *others = field.split(b"\\")
    pieces = [first]
    for piece in others:
        octal = piece[:3]
        if len(octal) == 3 and octal.isdigit() and octal < b"400" and not octal.strip(b"01234567"):
            pieces.append(bytes((int(octal, 8),)) + piece[3:])
        else:
            pieces.append(b"\\" + piece)
    return os.fsdecode(b"".join(pieces))


__all__ = ["MOUNTINFO", "OUR_FSTYPE", "MountInfo", "is_within", "read_mountinfo", "topmost"]
