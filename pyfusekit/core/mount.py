"""Mounting, unmounting and what is mounted; no asyncio, and nothing heavy at import.

    mount(path, options) -> Mount     mount(2) where this process may, else fusermount3, or a descriptor given as /dev/fd/N
    unmount(path), Mount.unmount()    umount2(2) where this process may, else fusermount3 -u
    check_mountpoint(path)            what a person got wrong, told before anything is started
    find_mount(path), probe(path)     what is there, without ever waiting for a server that is dead or hangs

Every failure is a MountError: a kind for programs, one line of cause and one line of remedy for people. Nothing here looks
at a mount from this process once it stands: its server may be this very process, and would wait for itself.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from .errors import MountError
from .mountinfo import MountInfo, read_mountinfo, topmost

if TYPE_CHECKING:
    import socket

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
CONNECTIONS = "/sys/fs/fuse/connections"
PROBE_LIMIT_S = 2.0
HELPER_LIMIT_S = 30.0

_FUSE_RDEV = os.makedev(10, 229)
_CAP_SYS_ADMIN = 21
# linux/mount.h
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_SYNCHRONOUS, _MS_DIRSYNC, _MS_NOATIME = 1, 2, 4, 8, 16, 128, 1024
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8
_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_INSTALL = "sudo apt install fuse3"
_DEVICE = "docker: --device /dev/fuse; Kubernetes: a FUSE device plugin"
_CHMOD = "sudo chmod 666 /dev/fuse"
_CHOWN = "sudo chown {uid} {quoted}, or mount below your home directory"
_DEAD = (errno.ENOTCONN, errno.ECONNABORTED, errno.ECONNREFUSED)


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
    default_permissions: bool = True
    """The kernel checks modes and owners; without it the filesystem must."""
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
            raise _error(NOT_MOUNTED, f"{self.path} is not mounted any more", "pyfusekit list shows what is mounted")
        info = topmost(mounts, self.path)
        if info is None or info.minor != self.minor:
            over = f" ({info.source})" if info else ""
            raise _error(BUSY, f"another mount{over} lies over {self.path}", f"first: sudo umount {_quoted(self.path)}")
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
        raise _error(NOT_MOUNTED, f"nothing is mounted on {mountpoint}", "pyfusekit list shows what is mounted")
    if not info.is_fuse:
        cause = f"{mountpoint} is a mount of type {info.fstype}, not of FUSE"
        raise _error(NOT_MOUNTED, cause, f"sudo umount {_quoted(info.mountpoint)}")
    _unmount(info, lazy)


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
        _given_fd(mountpoint)
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
            raise _error(NOT_EMPTY, f"{mountpoint} is not empty", remedy)
    except OSError as exc:
        raise _unusable(mountpoint, exc) from exc
    except ValueError as exc:
        raise _error(MOUNTPOINT_MISSING, f"{mountpoint!a} cannot be a file name", "give the directory to mount on") from exc
    if not _may_mount() and not os.access(path, os.W_OK):
        remedy = _CHOWN.format(uid=os.getuid(), quoted=_quoted(path))
        raise _error(NO_PERMISSION, f"{mountpoint} is not writable for uid {os.getuid()}", remedy, errno.EACCES)
    return path


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
        raise _error(NOT_MOUNTED, f"there is no FUSE connection {minor}", f"ls {CONNECTIONS}", exc.errno) from exc
    except OSError as exc:
        cause = f"FUSE connection {minor} cannot be aborted: {_reason(exc.errno)}"
        raise _error(NO_PERMISSION, cause, remedy, exc.errno) from exc


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
            raise _error(BAD_OPTION, f"{name} {value[:40]!a} cannot be given to the kernel", remedy)
    words = ["default_permissions"] if options.default_permissions else []
    if options.allow_other:
        words.append("allow_other")
    if options.max_read is not None:
        if not 0 < options.max_read < 1 << 32:
            raise _error(BAD_OPTION, f"max_read {options.max_read} is out of range", "give 4096 or more bytes, below 4 GiB")
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
    cause = f"the kernel does not mount on {path}: {_reason(number)}"
    if number == errno.EPERM:
        return _error(NO_PERMISSION, cause, "in a container: docker run --cap-add SYS_ADMIN --device /dev/fuse", number)
    if number == errno.ENODEV:
        raise _error(NO_DEV_FUSE, cause, "sudo modprobe fuse", number)
    if number == errno.ENOSPC:
        raise _error(MOUNT_FAILED, cause, "raise the limit: sudo sysctl fs.mount-max=200000", number)
    raise _error(MOUNT_FAILED, cause, "sudo dmesg | tail may tell more", number)


def _mount_helped(path: str, options: MountOptions, words: list[str], refused: MountError) -> Mount:
    """Mount with fusermount3, which sends the descriptor it mounted through a socket; *refused* is why we need it."""
    helper = _fusermount()
    no_device = refused.kind == NO_DEV_FUSE or (refused.kind == DEV_FUSE_REFUSED and refused.errno == errno.EPERM)
    if helper is None:
        raise refused if no_device or os.geteuid() == 0 else _no_fusermount()
    try:
        fd = _run_helper([helper, "-o", ",".join(_helper_words(options) + words), "--", path], path)
    except MountError as exc:
        if refused.kind == NO_DEV_FUSE:
            raise refused from exc
        raise
    return Mount(path, fd, "fusermount3", _minor_of(fd, path), options.source)


def _run_helper(argv: list[str], path: str) -> int:
    import socket

    ours, theirs = socket.socketpair()
    with ours, theirs:
        status, said = _call(argv, {"_FUSE_COMMFD": str(theirs.fileno())}, (theirs.fileno(),))
        theirs.close()
        fd = _receive_fd(ours)
    if fd is None:
        raise _helper_refusal(path, said)
    if status != 0:
        os.close(fd)
        raise _helper_refusal(path, said)
    os.set_blocking(fd, False)
    return fd


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
    texts = (("fsname", options.source), ("subtype", options.subtype))
    # fusermount3 splits at commas and takes a backslash before one, or before itself, away; in these two options only.
    escaped = [name + "=" + text.replace("\\", "\\\\").replace(",", "\\,") for name, text in texts]
    return escaped + [word for word, wanted in switches if wanted]


def _receive_fd(sock: socket.socket) -> int | None:
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


def _adopt(mountpoint: str, options: MountOptions) -> Mount:
    fd = _given_fd(mountpoint)
    os.set_blocking(fd, False)
    os.set_inheritable(fd, False)
    minor = connection_of(fd)
    for info in read_mountinfo():
        if info.is_fuse and info.minor == minor:
            return Mount(info.mountpoint, fd, "given", minor, info.source)
    return Mount(mountpoint, fd, "given", minor, options.source)


def _given_fd(mountpoint: str) -> int:
    """Return the N of /dev/fd/N when it is a mounted /dev/fuse."""
    import fcntl
    import select

    remedy = "hand over a /dev/fuse descriptor that is mounted and open for reading and writing"
    try:
        fd = int(mountpoint.removeprefix("/dev/fd/"))
        status = os.fstat(fd)
        mode = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
    except (ValueError, OverflowError, OSError) as exc:
        raise _error(BAD_OPTION, f"{mountpoint} is no open descriptor", remedy, errno.EBADF) from exc
    if not stat.S_ISCHR(status.st_mode) or status.st_rdev != _FUSE_RDEV or mode != os.O_RDWR:
        raise _error(BAD_OPTION, f"{mountpoint} is not /dev/fuse, open for reading and writing", remedy)
    poller = select.poll()
    poller.register(fd, 0)
    if poller.poll(0):
        raise _error(NOT_MOUNTED, f"{mountpoint} is /dev/fuse, but not mounted", remedy)
    return fd


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
        number = _unmount_helped(info, lazy)
    if number == 0:
        return
    if number == errno.EBUSY:
        remedy = f"close what uses it, or detach it now: pyfusekit umount --lazy {_quoted(path)}"
        raise _error(BUSY, f"{path} is in use", remedy, number)
    if number in (errno.EINVAL, errno.ENOENT):
        cause = f"{path} is not mounted, or is another namespace's to unmount"
        raise _error(NOT_MOUNTED, cause, "pyfusekit list shows what is mounted", number)
    raise _error(NO_PERMISSION, f"{path} cannot be unmounted: {_reason(number)}", f"sudo umount {_quoted(path)}", number)


def _unmount_helped(info: MountInfo, lazy: bool) -> int:
    helper = _fusermount()
    if helper is None:
        raise _no_fusermount()
    status, said = _call([helper, "-u", *(["-z"] if lazy else []), "--", info.mountpoint], {}, ())
    if status == 0:
        return 0
    if os.strerror(errno.EBUSY) in said:
        return errno.EBUSY
    if "not found in" in said:
        owner = next((word for word in info.super_options.split(",") if word.startswith("user_id=")), "user_id=?")
        cause = f"{info.mountpoint} was mounted by another user ({owner})"
        raise _error(NO_PERMISSION, cause, f"sudo umount {_quoted(info.mountpoint)}", errno.EPERM)
    raise _error(FUSERMOUNT_REFUSED, f"fusermount3 does not unmount {info.mountpoint}: {said}", "see fusermount3(1)")


def _fusermount() -> str | None:
    """Find fusermount3: $FUSERMOUNT_PATH names it, else PATH does; mount(8) and systemd may start us without a PATH."""
    named = os.environ.get("FUSERMOUNT_PATH")
    folders = os.environ.get("PATH", _DEFAULT_PATH).split(":")
    for candidate in [named] if named else [f"{folder or '.'}/fusermount3" for folder in folders]:
        if os.path.isfile(candidate) and os.access(candidate, os.X_OK):
            return os.path.abspath(candidate)
    return None


def _call(argv: list[str], environment: dict[str, str], fds: tuple[int, ...]) -> tuple[int, str]:
    """Run the helper; return its status and what it said, in one line."""
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
        raise _error(FUSERMOUNT_REFUSED, cause, "sudo dmesg | tail may tell more", errno.ETIMEDOUT) from exc
    except OSError as exc:
        raise _error(NO_FUSERMOUNT, f"{argv[0]} cannot be run: {_reason(exc.errno)}", _INSTALL, exc.errno) from exc
    lines = os.fsdecode(done.stderr).strip().split("\n")
    return done.returncode, "; ".join(line.rpartition("fusermount3: ")[2] for line in lines) or "no reason given"


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


def _may_mount() -> bool:
    """Whether this process has CAP_SYS_ADMIN, in its own user namespace."""
    with open("/proc/self/status", "rb") as file:
        effective = next((line.split()[1] for line in file if line.startswith(b"CapEff:")), b"0")
    return bool(int(effective, 16) >> _CAP_SYS_ADMIN & 1)


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


def _has_entries(path: str) -> bool:
    try:
        with os.scandir(path) as entries:
            return next(entries, None) is not None
    except PermissionError:
        return False  # nobody who may not list it misses what the mount hides


def _occupied(info: MountInfo) -> MountError:
    where = _quoted(info.mountpoint)
    undo = f"pyfusekit umount {where}" if info.is_ours else f"fusermount3 -u {where}"
    answer = probe(info.mountpoint)
    if answer is None:
        cause = f"the mount of {info.source} on {info.mountpoint} does not answer"
        return _error(STALE, cause, f"pyfusekit umount --lazy {where}" if info.is_ours else f"fusermount3 -u -z {where}")
    if answer in _DEAD:
        return _error(STALE, f"{info.mountpoint} holds a dead mount of {info.source}: its server is gone", undo, answer)
    cause = f"{info.source} is mounted on {info.mountpoint} already"
    return _error(ALREADY_MOUNTED, cause, f"{undo}, or choose another mountpoint", errno.EBUSY)


def _wrong_type(mountpoint: str, mode: int, file: bool) -> MountError:
    if not file:
        return _error(NOT_A_DIRECTORY, f"{mountpoint} is not a directory", "give a directory to mount on", errno.ENOTDIR)
    number = errno.EISDIR if stat.S_ISDIR(mode) else None
    return _error(
        NOT_A_FILE, f"{mountpoint} is not a regular file", "this filesystem is one file; give a file to mount on", number
    )


def _unusable(mountpoint: str, exc: OSError) -> MountError:
    where, number = _quoted(mountpoint), exc.errno
    if number == errno.ENOENT:
        return _error(MOUNTPOINT_MISSING, f"{mountpoint} does not exist", f"mkdir -p {where}", number)
    if number == errno.ENOTDIR:
        return _error(NOT_A_DIRECTORY, f"a part of {mountpoint} is not a directory", "give a directory to mount on", number)
    if number in (errno.EACCES, errno.EPERM):
        cause = f"{mountpoint} is out of reach for uid {os.geteuid()}: {_reason(number)}"
        return _error(NO_PERMISSION, cause, f"choose a directory you may enter; see: namei -l {where}", number)
    if number in _DEAD:
        return _error(STALE, f"{mountpoint} lies in a dead mount: {_reason(number)}", f"pyfusekit umount {where}", number)
    return _error(MOUNTPOINT_MISSING, f"{mountpoint} cannot be used: {_reason(number)}", "choose another mountpoint", number)


def _dev_fuse_error(exc: OSError) -> MountError:
    number = exc.errno
    if number == errno.ENOENT:
        remedy = "sudo modprobe fuse; in a container: docker run --device /dev/fuse"
        return _error(NO_DEV_FUSE, f"{DEV_FUSE} does not exist", remedy, number)
    if number in (errno.ENODEV, errno.ENXIO):
        return _error(NO_DEV_FUSE, f"the kernel has no FUSE behind {DEV_FUSE}", "sudo modprobe fuse", number)
    if number == errno.EPERM:
        return _error(DEV_FUSE_REFUSED, f"cannot open {DEV_FUSE}: {_reason(number)} (container device rules)", _DEVICE, number)
    if number == errno.EACCES:
        return _error(DEV_FUSE_REFUSED, f"cannot open {DEV_FUSE}: {_reason(number)}", _CHMOD, number)
    return _error(
        MOUNT_FAILED, f"cannot open {DEV_FUSE}: {_reason(number)}", "ulimit -n, and sudo dmesg | tail, may tell", number
    )


_REFUSALS = (
    # what fusermount3 says (libfuse 3.x), our kind, the cause, the remedy; the first that matches counts
    (
        "user_allow_other",
        ALLOW_OTHER_REFUSED,
        "allow_other needs user_allow_other in /etc/fuse.conf",
        "echo user_allow_other | sudo tee -a /etc/fuse.conf",
    ),
    ("fuse device not found", NO_DEV_FUSE, "there is no FUSE device", "sudo modprobe fuse"),
    (f"{DEV_FUSE}: Permission denied", DEV_FUSE_REFUSED, f"cannot open {DEV_FUSE}: Permission denied", _CHMOD),
    (f"{DEV_FUSE}: Operation not permitted", DEV_FUSE_REFUSED, f"cannot open {DEV_FUSE}: container device rules", _DEVICE),
    (
        "no write access",
        NO_PERMISSION,
        "you may not write to {path}",
        _CHOWN,
    ),
    (
        "not owned by user",
        NO_PERMISSION,
        "{path} is not yours",
        _CHOWN,
    ),
    ("chdir to mountpoint: Permission denied", NO_PERMISSION, "you may not enter {path}", _CHOWN),
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


def _helper_refusal(path: str, said: str) -> MountError:
    row = next((row for row in _REFUSALS if row[0] in said), None)
    if row is None:
        return _error(FUSERMOUNT_REFUSED, f"fusermount3 does not mount on {path}: {said}", "see fusermount3(1)")
    values = {"path": path, "quoted": _quoted(path), "uid": os.getuid()}
    return _error(row[1], f"{row[2].format_map(values)} (fusermount3: {said})", row[3].format_map(values))


def _no_fusermount() -> MountError:
    named = os.environ.get("FUSERMOUNT_PATH")
    if named:
        return _error(NO_FUSERMOUNT, f"{named} is no program", "FUSERMOUNT_PATH must name fusermount3, or be unset")
    return _error(NO_FUSERMOUNT, "fusermount3 is not installed", _INSTALL)


def _error(kind: str, cause: str, remedy: str, number: int | None = None) -> MountError:
    return MountError(cause.replace("\n", "\\n"), kind=kind, remedy=remedy, errno=number)


def _reason(number: int | None) -> str:
    return os.strerror(number or 0)


def _quoted(path: str) -> str:
    import shlex

    return shlex.quote(path)
