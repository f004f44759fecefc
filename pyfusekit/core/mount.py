"""Mounting and unmounting; no asyncio, and nothing heavy at import.

    mount(path, options) -> Mount     mount(2) where this process may, else fusermount3, or a descriptor given as /dev/fd/N
    unmount(path), Mount.unmount()    umount2(2) where this process may, else fusermount3 -u
    abort(minor)                      the end of a connection by force

Every failure is a MountError: a kind for programs, one line of cause and one line of remedy for people. Nothing here looks
at a mount from this process once it stands: its server may be this very process, and would wait for itself.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass

from . import fusermount
from .errors import MountError
from .mounterrors import (
    ALLOW_OTHER_REFUSED,
    ALREADY_MOUNTED,
    BAD_OPTION,
    BUSY,
    CHMOD,
    DEV_FUSE,
    DEV_FUSE_REFUSED,
    FUSERMOUNT_REFUSED,
    GIVE_DEVICE,
    MOUNT_FAILED,
    MOUNTPOINT_MISSING,
    NO_DEV_FUSE,
    NO_FUSERMOUNT,
    NO_PERMISSION,
    NOT_A_DIRECTORY,
    NOT_A_FILE,
    NOT_EMPTY,
    NOT_MOUNTED,
    STALE,
    mount_error,
    quoted,
    reason,
)
from .mountinfo import MountInfo, read_mountinfo, topmost
from .mountpoints import check_mountpoint, find_mount, given_fd

CONNECTIONS = "/sys/fs/fuse/connections"

# linux/mount.h
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_SYNCHRONOUS, _MS_DIRSYNC, _MS_NOATIME = 1, 2, 4, 8, 16, 128, 1024
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8


@dataclass(slots=True)
class MountOptions:
    """What the kernel is told at mount time; none of it can be changed later but by mounting again."""

    source: str = "pyfusekit"
    """What mount tables show as the source, to the letter. Not empty, 4000 bytes at most."""
    subtype: str = "pyfusekit"
    """The type shown is fuse.SUBTYPE; tools find our mounts by it."""
    read_only: bool = False
    allow_other: bool = False
    """Let other users in. An ordinary user needs user_allow_other in /etc/fuse.conf for it."""
    default_permissions: bool | None = None
    """The kernel checks modes and owners; without it the filesystem must. None: as the filesystem says, else yes."""
    nosuid: bool | None = None
    """None: set. As with fusermount3, what a server invents gets no set-user-id bit honoured and no device opened, unless
    root asks for it with False; from an ordinary user False is not taken (fstab helpers add dev,suid for everyone)."""
    nodev: bool | None = None
    """As nosuid."""
    noexec: bool = False
    noatime: bool = False
    sync: bool = False
    dirsync: bool = False
    max_read: int | None = None
    """The largest READ in bytes; the kernel takes less than 4096 as 4096."""
    nonempty: bool = False
    """Mount over a directory that has entries, hiding them."""
    file: bool = False
    """The filesystem's root is a regular file: the mountpoint must be one too."""


@dataclass(slots=True)
class Mount:
    """A mount that stands, and its end of the connection. Closing fd is its owner's business, unmount() leaves it open."""

    path: str
    """Absolute, without symlinks; /dev/fd/N where a given descriptor is mounted out of this process's sight."""
    fd: int
    """/dev/fuse, O_NONBLOCK | O_CLOEXEC. Closing the last copy of it aborts the connection."""
    how: str
    """direct, fusermount3 or given."""
    minor: int | None
    """The connection's number (/sys/fs/fuse/connections/N, bdi 0:N)."""
    source: str

    def unmount(self, *, lazy: bool = False) -> None:
        """Unmount it, or with *lazy* take it out of the tree now and let its users finish.

        Raises MountError: BUSY, or NOT_MOUNTED when it is gone already or never was in sight. Writing back may need the
        server's answers: on the loop that serves it this deadlocks, so call it in a thread.
        """
        mounts = read_mountinfo()
        if not any(info.is_fuse and info.mountpoint == self.path and info.minor == self.minor for info in mounts):
            raise mount_error(NOT_MOUNTED, f"{self.path} is not mounted any more", "pyfusekit list shows what is mounted")
        info = topmost(mounts, self.path)
        if info is None or info.minor != self.minor:
            over = f" ({info.source})" if info else ""
            raise mount_error(BUSY, f"another mount{over} lies over {self.path}", f"first: sudo umount {quoted(self.path)}")
        _unmount(info, lazy)


def mount(mountpoint: str, options: MountOptions) -> Mount:
    """Mount and return the connection; nothing is answered yet, so nothing may look at the mountpoint until a session does.

    "/dev/fd/N" as mountpoint is a descriptor someone mounted already, and is taken over. Raises MountError, with nothing
    left mounted or open.
    """
    words = _option_words(options)
    if mountpoint.startswith("/dev/fd/"):
        return _adopt(mountpoint, options)
    path = check_mountpoint(mountpoint, nonempty=options.nonempty, file=options.file)
    try:
        fd = os.open(DEV_FUSE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as exc:
        # A fusermount3 that asks a daemon outside the container gets at the device all the same; libfuse's own opens it with
        # the user's rights (3.14: setfsuid comes first), and says so.
        return _mount_helped(path, options, words, _dev_fuse_error(exc))
    try:
        refused = _mount_direct(path, fd, options, words)
    except BaseException:
        os.close(fd)
        raise
    if refused is None:
        return Mount(path, fd, "direct", _minor_of(fd, path), options.source)
    os.close(fd)
    return _mount_helped(path, options, words, refused)


def unmount(mountpoint: str, *, lazy: bool = False) -> None:
    """Unmount the FUSE mount at exactly *mountpoint*, anyone's; see Mount.unmount."""
    info = find_mount(mountpoint)
    if info is None:
        raise mount_error(NOT_MOUNTED, f"nothing is mounted on {mountpoint}", "pyfusekit list shows what is mounted")
    if not info.is_fuse:
        cause = f"{mountpoint} is a mount of type {info.fstype}, not of FUSE"
        raise mount_error(NOT_MOUNTED, cause, f"sudo umount {quoted(info.mountpoint)}")
    _unmount(info, lazy)


def set_readahead(minor: int, kib: int = 1024) -> bool:
    """Set a mount's read-ahead, which bounds its buffered READs (128 KiB otherwise); False where that is not permitted.

    Call it when INIT was answered: the kernel lowers the value to INIT's max_readahead then (fs/fuse/inode.c,
    process_init_reply).
    """
    try:
        _write(f"/sys/class/bdi/0:{minor}/read_ahead_kb", b"%d" % kib)
    except OSError:
        return False
    return True


def abort(minor: int) -> None:
    """End a connection by force: every request fails with ENOTCONN or ECONNABORTED, the mount stays, dead."""
    remedy = f"sudo sh -c 'echo 1 > {CONNECTIONS}/{minor}/abort' (after: sudo mount -t fusectl none {CONNECTIONS})"
    try:
        there = topmost(read_mountinfo(), CONNECTIONS)
        if (there is None or there.fstype != "fusectl") and (number := _mount2(b"none", CONNECTIONS, b"fusectl")):
            raise OSError(number, os.strerror(number))
        _write(f"{CONNECTIONS}/{minor}/abort", b"1")
    except FileNotFoundError as exc:
        raise mount_error(NOT_MOUNTED, f"there is no FUSE connection {minor}", f"ls {CONNECTIONS}", exc.errno) from exc
    except OSError as exc:
        cause = f"FUSE connection {minor} cannot be aborted: {reason(exc.errno)}"
        raise mount_error(NO_PERMISSION, cause, remedy, exc.errno) from exc


def connection_of(fd: int) -> int | None:
    """Return the number of the connection a /dev/fuse descriptor serves; None before mounting, or where Linux does not tell."""
    with open(f"/proc/self/fdinfo/{fd}", "rb") as file:
        for line in file:
            if line.startswith(b"fuse_connection:"):
                return int(line.split()[1])
    return None


def _option_words(options: MountOptions) -> list[str]:
    """Check the options and return those that mount(2) and fusermount3 write alike."""
    remedy = "use a name of 1 to 4000 bytes without NUL"
    for name, value in (("source", options.source), ("subtype", options.subtype)):
        try:
            encoded = os.fsencode(value)
        except UnicodeEncodeError:
            encoded = b""
        if not 0 < len(encoded) <= 4000 or b"\0" in encoded:
            raise mount_error(BAD_OPTION, f"{name} {value[:40]!a} cannot be given to the kernel", remedy)
    words = ["default_permissions"] if options.default_permissions is not False else []
    if options.allow_other:
        words.append("allow_other")
    if options.max_read is not None:
        if not 0 < options.max_read < 1 << 32:
            cause = f"max_read {options.max_read} is out of range"
            raise mount_error(BAD_OPTION, cause, "give 4096 or more bytes, below 4 GiB")
        words.append(f"max_read={options.max_read}")
    return words


def _mount_direct(path: str, fd: int, options: MountOptions, words: list[str]) -> MountError | None:
    """Call mount(2); return the refusal when it is a matter of privilege, which fusermount3 may have."""
    kind = stat.S_IFREG if options.file else stat.S_IFDIR
    data = [f"fd={fd}", f"rootmode={kind:o}", f"user_id={os.getuid()}", f"group_id={os.getgid()}", *words]
    flags = (
        _MS_RDONLY * options.read_only
        | _MS_NOSUID * (options.nosuid is not False)
        | _MS_NODEV * (options.nodev is not False)
        | _MS_NOEXEC * options.noexec
        | _MS_NOATIME * options.noatime
        | _MS_SYNCHRONOUS * options.sync
        | _MS_DIRSYNC * options.dirsync
    )
    fstype = b"fuse." + os.fsencode(options.subtype)
    number = _mount2(os.fsencode(options.source), path, fstype, flags, ",".join(data).encode())
    if number == 0:
        return None
    cause = f"the kernel does not mount on {path}: {reason(number)}"
    if number == errno.EPERM:
        return mount_error(NO_PERMISSION, cause, "in a container: docker run --cap-add SYS_ADMIN --device /dev/fuse", number)
    if number == errno.ENODEV:
        raise mount_error(NO_DEV_FUSE, cause, "sudo modprobe fuse", number)
    if number == errno.ENOSPC:
        raise mount_error(MOUNT_FAILED, cause, "raise the limit: sudo sysctl fs.mount-max=200000", number)
    raise mount_error(MOUNT_FAILED, cause, "sudo dmesg | tail may tell more", number)


def _mount_helped(path: str, options: MountOptions, words: list[str], refused: MountError) -> Mount:
    """Mount with fusermount3; *refused* is why we need it."""
    helper = fusermount.find()
    no_device = refused.kind == NO_DEV_FUSE or (refused.kind == DEV_FUSE_REFUSED and refused.errno == errno.EPERM)
    if helper is None:
        raise refused if no_device or os.geteuid() == 0 else fusermount.missing()
    try:
        fd = fusermount.mount(helper, path, _helper_words(options) + words)
    except MountError as exc:
        if refused.kind == NO_DEV_FUSE:
            raise refused from exc
        raise
    return Mount(path, fd, "fusermount3", _minor_of(fd, path), options.source)


def _helper_words(options: MountOptions) -> list[str]:
    root = os.geteuid() == 0
    switches = (
        ("ro", options.read_only),
        ("suid", root and options.nosuid is False),
        ("dev", root and options.nodev is False),
        ("noexec", options.noexec),
        ("noatime", options.noatime),
        ("sync", options.sync),
        ("dirsync", options.dirsync),
    )
    names = [f"fsname={fusermount.escaped(options.source)}", f"subtype={fusermount.escaped(options.subtype)}"]
    return names + [word for word, wanted in switches if wanted]


def _adopt(mountpoint: str, options: MountOptions) -> Mount:
    fd = given_fd(mountpoint)
    os.set_blocking(fd, False)
    os.set_inheritable(fd, False)
    minor = connection_of(fd)
    for info in read_mountinfo():
        if info.is_fuse and info.minor == minor:
            return Mount(info.mountpoint, fd, "given", minor, info.source)
    return Mount(mountpoint, fd, "given", minor, options.source)


def _minor_of(fd: int, path: str) -> int | None:
    try:
        minor = connection_of(fd)
        if minor is None and (info := topmost(read_mountinfo(), path)) is not None:
            minor = info.minor
    except OSError:
        return None
    return minor


def _unmount(info: MountInfo, lazy: bool) -> None:
    path = info.mountpoint
    number = _umount2(path, _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy else 0))
    if number == errno.EPERM:
        number = fusermount.unmount(info, lazy)
    if number == 0:
        return
    if number == errno.EBUSY:
        remedy = f"close what uses it, or detach it now: pyfusekit umount --lazy {quoted(path)}"
        raise mount_error(BUSY, f"{path} is in use", remedy, number)
    if number in (errno.EINVAL, errno.ENOENT):
        cause = f"{path} is not mounted, or is another namespace's to unmount"
        raise mount_error(NOT_MOUNTED, cause, "pyfusekit list shows what is mounted", number)
    raise mount_error(NO_PERMISSION, f"{path} cannot be unmounted: {reason(number)}", f"sudo umount {quoted(path)}", number)


def _umount2(path: str, flags: int) -> int:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    return 0 if libc.umount2(os.fsencode(path), flags) == 0 else ctypes.get_errno()


def _mount2(source: bytes, path: str, fstype: bytes, flags: int = 0, data: bytes = b"") -> int:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    return 0 if libc.mount(source, os.fsencode(path), fstype, ctypes.c_ulong(flags), data) == 0 else ctypes.get_errno()


def _write(path: str, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


def _dev_fuse_error(exc: OSError) -> MountError:
    number = exc.errno
    cause = f"cannot open {DEV_FUSE}: {reason(number)}"
    if number == errno.ENOENT:
        remedy = "sudo modprobe fuse; in a container: docker run --device /dev/fuse"
        return mount_error(NO_DEV_FUSE, f"{DEV_FUSE} does not exist", remedy, number)
    if number in (errno.ENODEV, errno.ENXIO):
        return mount_error(NO_DEV_FUSE, f"the kernel has no FUSE behind {DEV_FUSE}", "sudo modprobe fuse", number)
    if number == errno.EPERM:
        return mount_error(DEV_FUSE_REFUSED, f"{cause} (container device rules)", GIVE_DEVICE, number)
    if number == errno.EACCES:
        return mount_error(DEV_FUSE_REFUSED, cause, CHMOD, number)
    return mount_error(MOUNT_FAILED, cause, "ulimit -n, and sudo dmesg | tail, may tell", number)


__all__ = [
    "ALLOW_OTHER_REFUSED",
    "ALREADY_MOUNTED",
    "BAD_OPTION",
    "BUSY",
    "CONNECTIONS",
    "DEV_FUSE_REFUSED",
    "FUSERMOUNT_REFUSED",
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
    "Mount",
    "MountOptions",
    "abort",
    "connection_of",
    "mount",
    "set_readahead",
    "unmount",
]
