"""The kinds of MountError, and how one is made; core/mount.py shows the kinds to everyone else."""

from __future__ import annotations

import os

from .errors import MountError

MOUNTPOINT_MISSING = "mountpoint-missing"
NOT_A_DIRECTORY = "not-a-directory"
NOT_A_FILE = "not-a-file"
NOT_EMPTY = "not-empty"
ALREADY_MOUNTED = "already-mounted"
STALE = "stale"
"""A mount whose server is gone (ENOTCONN) or does not answer."""
NO_PERMISSION = "no-permission"
NO_DEV_FUSE = "no-dev-fuse"
DEV_FUSE_REFUSED = "dev-fuse-refused"
NO_FUSERMOUNT = "no-fusermount"
FUSERMOUNT_REFUSED = "fusermount-refused"
ALLOW_OTHER_REFUSED = "allow-other-refused"
BUSY = "busy"
NOT_MOUNTED = "not-mounted"
BAD_OPTION = "bad-option"
MOUNT_FAILED = "mount-failed"

DEV_FUSE = "/dev/fuse"

GIVE_DEVICE = "docker: --device /dev/fuse; Kubernetes: a FUSE device plugin"
CHMOD = "sudo chmod 666 /dev/fuse"
CHOWN = "sudo chown {uid} {quoted}, or mount below your home directory"
"""Remedies; CHOWN is to be formatted with uid and quoted, the path."""


def mount_error(kind: str, cause: str, remedy: str, number: int | None = None) -> MountError:
    """Make a MountError whose cause is one line, whatever the names in it."""
    return MountError(cause.replace("\n", "\\n"), kind=kind, remedy=remedy, errno=number)


def reason(number: int | None) -> str:
    """Return what an errno means, in words."""
    return os.strerror(number or 0)


def quoted(path: str) -> str:
    """Return *path* as a shell takes it."""
    import shlex

    return shlex.quote(path)


__all__ = [
    "ALLOW_OTHER_REFUSED",
    "ALREADY_MOUNTED",
    "BAD_OPTION",
    "BUSY",
    "CHMOD",
    "CHOWN",
    "DEV_FUSE",
    "DEV_FUSE_REFUSED",
    "FUSERMOUNT_REFUSED",
    "GIVE_DEVICE",
    "MOUNTPOINT_MISSING",
    "MOUNT_FAILED",
    "NOT_A_DIRECTORY",
    "NOT_A_FILE",
    "NOT_EMPTY",
    "NOT_MOUNTED",
    "NO_DEV_FUSE",
    "NO_FUSERMOUNT",
    "NO_PERMISSION",
    "STALE",
    "mount_error",
    "quoted",
    "reason",
]
