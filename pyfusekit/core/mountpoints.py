"""What is at a mountpoint, and whether it will do as one, without ever waiting for a server that is dead or hangs.

check_mountpoint(path)            what a person got wrong, told before anything is started
find_mount(path), probe(path)     what is there
"""

from __future__ import annotations

import errno
import os
import stat
from typing import NoReturn

from .errors import MountError
from .mounterrors import (
    ALREADY_MOUNTED,
    BAD_OPTION,
    CHOWN,
    MOUNTPOINT_MISSING,
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

PROBE_LIMIT_S = 2.0

_FUSE_RDEV = os.makedev(10, 229)
_CAP_SYS_ADMIN = 21
_DEAD = (errno.ENOTCONN, errno.ECONNABORTED, errno.ECONNREFUSED)


def find_mount(mountpoint: str) -> MountInfo | None:
    """Return the mount that is visible at exactly this path, or None; the mountpoint itself is never looked at."""
    mounts = read_mountinfo()
    try:
        return topmost(mounts, _resolve(mountpoint, mounts)[0])
    except (OSError, ValueError):
        return None


def check_mountpoint(mountpoint: str, *, nonempty: bool = False, file: bool = False) -> str:
    """Return the absolute path of a mountpoint that will do, or raise the MountError that says why not.

    *nonempty* allows a directory with entries; *file* asks for a regular file in the directory's place. A mount that is
    there already is asked in another process, for PROBE_LIMIT_S at most.
    """
    if mountpoint.startswith("/dev/fd/"):
        given_fd(mountpoint)
        return mountpoint
    mounts = read_mountinfo()
    try:
        path, dead = _resolve(mountpoint, mounts)
        there = dead or topmost(mounts, path)
        if there is not None and there.is_fuse:
            raise _occupied(there)
        mode = os.stat(path).st_mode
        wanted = stat.S_ISREG(mode) if file else stat.S_ISDIR(mode)
        if not wanted:
            raise _wrong_type(mountpoint, mode, file)
        if not file and not nonempty and _has_entries(path):
            remedy = "choose an empty directory, or hide what is in it with -o nonempty"
            raise mount_error(NOT_EMPTY, f"{mountpoint} is not empty", remedy)
    except OSError as exc:
        raise _unusable(mountpoint, exc) from exc
    except ValueError as exc:
        cause = f"{mountpoint!a} cannot be a file name"
        raise mount_error(MOUNTPOINT_MISSING, cause, "give the directory to mount on") from exc
    if not is_admin() and not os.access(path, os.W_OK):
        remedy = CHOWN.format(uid=os.getuid(), quoted=quoted(path))
        raise mount_error(NO_PERMISSION, f"{mountpoint} is not writable for uid {os.getuid()}", remedy, errno.EACCES)
    return path


def given_fd(mountpoint: str) -> int:
    """Return the N of /dev/fd/N when it is a mounted /dev/fuse."""
    import fcntl
    import select

    remedy = "hand over a /dev/fuse descriptor that is mounted and open for reading and writing"
    try:
        fd = int(mountpoint.removeprefix("/dev/fd/"))
        status = os.fstat(fd)
        mode = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
    except (ValueError, OverflowError, OSError) as exc:
        raise mount_error(BAD_OPTION, f"{mountpoint} is no open descriptor", remedy, errno.EBADF) from exc
    if not stat.S_ISCHR(status.st_mode) or status.st_rdev != _FUSE_RDEV or mode != os.O_RDWR:
        raise mount_error(BAD_OPTION, f"{mountpoint} is not /dev/fuse, open for reading and writing", remedy)
    poller = select.poll()
    poller.register(fd, 0)
    if poller.poll(0):
        raise mount_error(NOT_MOUNTED, f"{mountpoint} is /dev/fuse, but not mounted", remedy)
    return fd


def probe(mountpoint: str, limit_s: float | None = None) -> int | None:
    """Ask a mount's server for statfs from another process: 0 when it answered, its errno, or None for no answer in time.

    *limit_s* is PROBE_LIMIT_S unless told.
    statfs and not stat, because the kernel answers a stat of a dead mount from its cache as long as the attributes live.
    """
    import select

    read_end, write_end = os.pipe()
    # The one that asks may stay in the kernel for as long as the server hangs, even when killed. So it is a grandchild: init
    # reaps it, and we need not; and it holds no descriptor of ours, whose reader would wait for its end.
    child = os.fork()
    if child == 0:
        _probe_and_exit(mountpoint, write_end)
    os.close(write_end)
    try:
        _wait_quietly(child)
        poller = select.poll()
        poller.register(read_end, select.POLLIN)
        answer = os.read(read_end, 16) if poller.poll((PROBE_LIMIT_S if limit_s is None else limit_s) * 1000) else b""
    finally:
        os.close(read_end)
    return int(answer) if answer else None


def _probe_and_exit(mountpoint: str, write_end: int) -> NoReturn:
    """Be the child of probe(): start the one that asks, and go."""
    try:
        if os.fork() == 0:
            for name in os.listdir("/proc/self/fd"):
                if int(name) != write_end:
                    _close_quietly(int(name))
            try:
                os.statvfs(mountpoint)
                number = 0
            except OSError as exc:
                number = exc.errno or errno.EIO
            os.write(write_end, b"%d" % number)
    finally:
        os._exit(0)


def _wait_quietly(child: int) -> None:
    try:
        os.waitpid(child, 0)
    except ChildProcessError:
        return  # SIGCHLD is ignored here: the kernel reaped it


def _close_quietly(fd: int) -> None:
    try:
        os.close(fd)
    except OSError:
        return  # the descriptor listdir itself was reading with


def _resolve(path: str, mounts: list[MountInfo]) -> tuple[str, MountInfo | None]:
    """Return *path* absolute and without symlinks, and the dead mount it leads through, if it does.

    realpath(3) looks at every component, also at a mountpoint, whose server may hang. A mountpoint is no symlink, so it
    need not be looked at; what lies below a FUSE mount is, once its server has answered another process.
    """
    points = {info.mountpoint for info in mounts}
    if not path:
        raise ValueError("no path")
    todo = (path if path.startswith("/") else f"{os.getcwd()}/{path}").split("/")[::-1]
    done, links = "/", 0
    while todo:
        name = todo.pop()
        if name in ("", ".", ".."):
            done = os.path.dirname(done) if name == ".." else done
            continue
        done = os.path.join(done, name)
        if done in points:
            info = topmost(mounts, done)
            if any(todo) and info is not None and info.is_fuse and probe(done) in (None, *_DEAD):
                return os.path.normpath(os.path.join(done, *todo[::-1])), info
            continue
        try:
            target = os.readlink(done)
        except OSError:
            continue
        links += 1
        if links > 40:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        todo += target.split("/")[::-1]
        done = "/" if target.startswith("/") else os.path.dirname(done)
    return done, None


def is_admin() -> bool:
    """Say whether this process has CAP_SYS_ADMIN, in its own user namespace."""
    with open("/proc/self/status", "rb") as file:
        effective = next((line.split()[1] for line in file if line.startswith(b"CapEff:")), b"0")
    return bool(int(effective, 16) >> _CAP_SYS_ADMIN & 1)


def _has_entries(path: str) -> bool:
    try:
        with os.scandir(path) as entries:
            return next(entries, None) is not None
    except PermissionError:
        return False  # nobody who may not list it misses what the mount hides


def _occupied(info: MountInfo) -> MountError:
    where = quoted(info.mountpoint)
    undo = f"pyfusekit umount {where}" if info.is_ours else f"fusermount3 -u {where}"
    answer = probe(info.mountpoint)
    if answer is None:
        cause = f"the mount of {info.source} on {info.mountpoint} does not answer"
        return mount_error(STALE, cause, f"pyfusekit umount --lazy {where}" if info.is_ours else f"fusermount3 -u -z {where}")
    if answer in _DEAD:
        return mount_error(STALE, f"{info.mountpoint} holds a dead mount of {info.source}: its server is gone", undo, answer)
    cause = f"{info.source} is mounted on {info.mountpoint} already"
    return mount_error(ALREADY_MOUNTED, cause, f"{undo}, or choose another mountpoint", errno.EBUSY)


def _wrong_type(mountpoint: str, mode: int, file: bool) -> MountError:
    if not file:
        return mount_error(NOT_A_DIRECTORY, f"{mountpoint} is not a directory", "give a directory to mount on", errno.ENOTDIR)
    number = errno.EISDIR if stat.S_ISDIR(mode) else None
    remedy = "this filesystem is one file; give a file to mount on"
    return mount_error(NOT_A_FILE, f"{mountpoint} is not a regular file", remedy, number)


def _unusable(mountpoint: str, exc: OSError) -> MountError:
    where, number = quoted(mountpoint), exc.errno
    if number == errno.ENOENT:
        return mount_error(MOUNTPOINT_MISSING, f"{mountpoint} does not exist", f"mkdir -p {where}", number)
    if number == errno.ENOTDIR:
        cause = f"a part of {mountpoint} is not a directory"
        return mount_error(NOT_A_DIRECTORY, cause, "give a directory to mount on", number)
    if number in (errno.EACCES, errno.EPERM):
        cause = f"{mountpoint} is out of reach for uid {os.geteuid()}: {reason(number)}"
        return mount_error(NO_PERMISSION, cause, f"choose a directory you may enter; see: namei -l {where}", number)
    if number in _DEAD:
        cause = f"{mountpoint} lies in a dead mount: {reason(number)}"
        return mount_error(STALE, cause, f"pyfusekit umount {where}", number)
    cause = f"{mountpoint} cannot be used: {reason(number)}"
    return mount_error(MOUNTPOINT_MISSING, cause, "choose another mountpoint", number)


__all__ = ["PROBE_LIMIT_S", "check_mountpoint", "find_mount", "given_fd", "is_admin", "probe"]
