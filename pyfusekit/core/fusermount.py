"""fusermount3, the set-user-id program that mounts for those who may not (fusermount3(1))."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from .errors import MountError
from .mounterrors import (
    ALLOW_OTHER_REFUSED,
    CHMOD,
    CHOWN,
    DEV_FUSE,
    DEV_FUSE_REFUSED,
    FUSERMOUNT_REFUSED,
    GIVE_DEVICE,
    NO_DEV_FUSE,
    NO_FUSERMOUNT,
    NO_PERMISSION,
    mount_error,
    quoted,
    reason,
)
from .mountinfo import MountInfo

if TYPE_CHECKING:
    import socket

HELPER_LIMIT_S = 30.0

_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_INSTALL = "sudo apt install fuse3"

_REFUSALS = (
    # what fusermount3 says (libfuse 3.x), our kind, the cause, the remedy; the first that matches counts
    (
        "user_allow_other",
        ALLOW_OTHER_REFUSED,
        "allow_other needs user_allow_other in /etc/fuse.conf",
        "echo user_allow_other | sudo tee -a /etc/fuse.conf",
    ),
    ("fuse device not found", NO_DEV_FUSE, "there is no FUSE device", "sudo modprobe fuse"),
    (f"{DEV_FUSE}: Permission denied", DEV_FUSE_REFUSED, f"cannot open {DEV_FUSE}: Permission denied", CHMOD),
    (f"{DEV_FUSE}: Operation not permitted", DEV_FUSE_REFUSED, f"cannot open {DEV_FUSE}: container device rules", GIVE_DEVICE),
    ("no write access", NO_PERMISSION, "you may not write to {path}", CHOWN),
    ("not owned by user", NO_PERMISSION, "{path} is not yours", CHOWN),
    ("chdir to mountpoint: Permission denied", NO_PERMISSION, "you may not enter {path}", CHOWN),
    ("mount_max", FUSERMOUNT_REFUSED, "too many FUSE mounts", "raise mount_max in /etc/fuse.conf"),
    ("over filesystem type", FUSERMOUNT_REFUSED, "fusermount3 does not mount over {path}", "mount below your home directory"),
    (
        "mount failed: Permission denied",
        FUSERMOUNT_REFUSED,
        "fusermount3 may not mount on {path}, perhaps because of AppArmor",
        "mount below $HOME, /mnt, /media or /tmp, or allow the path in /etc/apparmor.d/local/fusermount3",
    ),
    (
        "mount failed: Operation not permitted",
        FUSERMOUNT_REFUSED,
        "fusermount3 has no right to mount",
        "sudo chmod u+s $(command -v fusermount3); in a container: --cap-add SYS_ADMIN",
    ),
)


def find() -> str | None:
    """Return where fusermount3 is, or None: $FUSERMOUNT_PATH names it, else PATH does."""
    named = os.environ.get("FUSERMOUNT_PATH")
    # mount(8) and systemd may start us without a PATH.
    folders = os.environ.get("PATH", _DEFAULT_PATH).split(":")
    for candidate in [named] if named else [f"{folder or '.'}/fusermount3" for folder in folders]:
        if os.path.isfile(candidate) and os.access(candidate, os.X_OK):
            return os.path.abspath(candidate)
    return None


def missing() -> MountError:
    """Return what is to be raised where find() found none."""
    named = os.environ.get("FUSERMOUNT_PATH")
    if named:
        return mount_error(NO_FUSERMOUNT, f"{named} is no program", "FUSERMOUNT_PATH must name fusermount3, or be unset")
    return mount_error(NO_FUSERMOUNT, "fusermount3 is not installed", _INSTALL)


def escaped(text: str) -> str:
    """Return *text* as a value of fsname or subtype."""
    # fusermount3 splits at commas and takes a backslash before one, or before itself, away; in these two options only.
    return text.replace("\\", "\\\\").replace(",", "\\,")


def mount(helper: str, path: str, words: list[str]) -> int:
    """Mount on *path* with the options *words*; return the descriptor (O_NONBLOCK), which comes through a socket."""
    import socket

    ours, theirs = socket.socketpair()
    with ours, theirs:
        argv = [helper, "-o", ",".join(words), "--", path]
        status, said = _call(argv, {"_FUSE_COMMFD": str(theirs.fileno())}, (theirs.fileno(),))
        theirs.close()
        fd = _receive_fd(ours)
    if fd is not None and status == 0:
        os.set_blocking(fd, False)
        return fd
    if fd is not None:
        os.close(fd)
    raise _refusal(path, said)


def _receive_fd(sock: socket.socket) -> int | None:
    """Take the descriptor that comes with one message; None when there is none."""
    import array
    import socket

    sock.settimeout(HELPER_LIMIT_S)
    fds = array.array("i")
    try:
        _, ancillary, _, _ = sock.recvmsg(1, socket.CMSG_SPACE(fds.itemsize), socket.MSG_CMSG_CLOEXEC)
    except OSError:
        return None
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data[: fds.itemsize])
    return fds[0] if fds else None


def unmount(info: MountInfo, lazy: bool) -> int:
    """Unmount *info*; return 0 or EBUSY."""
    helper = find()
    if helper is None:
        raise missing()
    status, said = _call([helper, "-u", *(["-z"] if lazy else []), "--", info.mountpoint], {}, ())
    if status == 0:
        return 0
    if os.strerror(errno.EBUSY) in said:
        return errno.EBUSY
    if "not found in" in said:
        owner = next((word for word in info.super_options.split(",") if word.startswith("user_id=")), "user_id=?")
        cause = f"{info.mountpoint} was mounted by another user ({owner})"
        raise mount_error(NO_PERMISSION, cause, f"sudo umount {quoted(info.mountpoint)}", errno.EPERM)
    raise mount_error(FUSERMOUNT_REFUSED, f"fusermount3 does not unmount {info.mountpoint}: {said}", "see fusermount3(1)")


def _call(argv: list[str], environment: dict[str, str], fds: tuple[int, ...]) -> tuple[int, str]:
    """Run fusermount3; return its status and what it said, in one line."""
    import subprocess

    try:
        done = subprocess.run(
            argv,
            env={"PATH": _DEFAULT_PATH, **os.environ, **environment},
            pass_fds=fds,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=HELPER_LIMIT_S,
        )
    except subprocess.TimeoutExpired as exc:
        cause = f"{argv[0]} did not finish within {HELPER_LIMIT_S:.0f} s"
        raise mount_error(FUSERMOUNT_REFUSED, cause, "sudo dmesg | tail may tell more", errno.ETIMEDOUT) from exc
    except OSError as exc:
        raise mount_error(NO_FUSERMOUNT, f"{argv[0]} cannot be run: {reason(exc.errno)}", _INSTALL, exc.errno) from exc
    lines = os.fsdecode(done.stderr).strip().split("\n")
    return done.returncode, "; ".join(line.rpartition("fusermount3: ")[2] for line in lines) or "no reason given"


def _refusal(path: str, said: str) -> MountError:
    """Put what fusermount3 *said* when it did not mount into our words."""
    row = next((row for row in _REFUSALS if row[0] in said), None)
    if row is None:
        return mount_error(FUSERMOUNT_REFUSED, f"fusermount3 does not mount on {path}: {said}", "see fusermount3(1)")
    values = {"path": path, "quoted": quoted(path), "uid": os.getuid()}
    return mount_error(row[1], f"{row[2].format_map(values)} (fusermount3: {said})", row[3].format_map(values))


__all__ = ["HELPER_LIMIT_S", "escaped", "find", "missing", "mount", "unmount"]
