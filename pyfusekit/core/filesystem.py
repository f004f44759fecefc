"""The interface: a filesystem is a class, its abilities are the methods it overrides.

How to read this file: every method says what is asked, what to answer, which errno, what it does to the lookup count, and
what the kernel is told when the method is not overridden.

Handlers. A method is called with the caller's :class:`Request` first. It may be a plain ``def`` when it never waits, an
``async def`` when it may, or a ``def`` that returns a value or a coroutine (a cache hit need not wait). All run on one
event loop: between two awaits nothing else happens, and at every await a file may be renamed, unlinked or closed.

Errors. Raise ``OSError(errno.X, "what")``. Anything else is answered EIO and logged once with its traceback; the mount
lives. Never raise ENOSYS: the kernel would take it for the whole mount, so the core sends EOPNOTSUPP instead.

Cancellation. When the caller is interrupted the handler's task is cancelled. What has already been done is to be returned
as done; otherwise let CancelledError pass (the caller sees EINTR).

Inodes. Files are named by node ids: positive integers of the filesystem's choice, the root is 1. Each answer that carries an
Attr to lookup, mknod, mkdir, symlink, link, create and tmpfile counts one lookup of its node; ``forget`` takes counts back,
and only then may the id be given to another file. Count where the node is chosen, with no await in between: see
:class:`InodeTable`, which does it in ``enter``.

Names are bytes without NUL and "/", not necessarily UTF-8. Times are integer nanoseconds.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from .types import (
    Attr,
    Data,
    Entries,
    Ioctl,
    Lock,
    ReadResult,
    Request,
    Result,
    SetAttr,
    StatFs,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .backing import Backing
    from .notify import Notifier
    from .problems import ProblemLog


class NoOptions:
    """The options of a filesystem that has none."""


class DiskCache(Protocol):
    """A cache on a disk, as far as an operator asks about it."""

    @property
    def directory(self) -> Path:
        """Where it is."""

    @property
    def limit(self) -> int:
        """The most bytes it may take."""


def _absent(operation: str) -> OSError:
    return OSError(errno.ENOSYS, f"{operation} is not implemented")


class Filesystem:
    """A filesystem: override what you support.

    The registry builds one with ``cls(source, options)``: *source* as the user gave it, or None; *options* an instance of
    ``Options``. A filesystem made by hand may have any constructor.
    """

    # What people see.
    summary: ClassVar[str] = ""
    """One line for ``pyfusekit mount --help``."""
    Options: ClassVar[type[Any]] = NoOptions
    """The dataclass of options, see core/options.py."""
    source_use: ClassVar[str] = "optional"
    """Whether a source must be given: "required", "optional" or "none"."""

    # How long the kernel may believe what it was told, in seconds; inf is for ever. An Attr can say otherwise for itself.
    attr_ttl: float = 1.0
    entry_ttl: float = 1.0
    negative_ttl: float = 0.0

    # What no method expresses. Set in the class or in __init__; read once, when the session begins.
    read_only: bool = False
    """Mount read-only: the kernel itself refuses every change with EROFS. So is a class that overrides no method that changes
    anything."""
    root_is_file: bool = False
    """The root is a regular file, and so must the mountpoint be."""
    default_permissions: bool = True
    """The kernel checks modes (and ACLs); without it the filesystem is the only guard, in access and everywhere."""
    posix_acl: bool = False
    """The kernel enforces the ACLs kept in system.posix_acl_access and _default. The filesystem must then apply the parent's
    default ACL to new files itself: modes arrive with the umask beside them, not applied."""
    dont_mask: bool = False
    """Modes of new files arrive unmasked, with the umask beside them."""
    writeback_cache: bool = False
    """The kernel gathers writes and owns size, mtime and ctime of files; see setattr and write for what then changes."""
    atomic_o_trunc: bool = False
    """O_TRUNC arrives in open's flags instead of as a setattr of size 0 behind it."""
    handle_killpriv: bool = False
    """write, setattr (size, uid, gid), open and create clear suid, sgid and security.capability when request.flags or
    SetAttr.kill_suidgid say so, and on every chown. Otherwise the core does it, with getattr and setattr."""
    stateless_open: bool = False
    """Opening needs no request: open and release are never called, handle is None, cached contents stay while mtime and size
    do."""
    stateless_opendir: bool = False
    """Likewise for directories; listings are cached while the directory's mtime stays."""
    keep_own_locks: bool = False
    """setlk and setlkw also get flock(2) locks (request.flags & LK_FLOCK). Without setlk, the kernel keeps locks by itself."""
    cache_symlinks: bool = False
    """The kernel may cache what readlink said."""
    parallel_dirops: bool = True
    """lookups and readdirs in one directory may be asked at the same time."""
    explicit_inval_data: bool = False
    """Cached contents are only dropped by notifier.inval_inode, not when mtime or size change."""
    direct_io_allow_mmap: bool = True
    """Files opened with FOPEN_DIRECT_IO may be mapped shared."""
    async_dio: bool = True
    """O_DIRECT reads and writes are sent in parallel pieces. Their callers then wait uninterruptibly (fs/fuse/file.c
    fuse_direct_IO): turn it off where a request may take long."""
    export_support: bool = False
    """lookup answers "." and ".." on any node id ever given, as NFS and open_by_handle_at need."""
    security_ctx: bool = False
    """Ask for Request.extensions.secctx on new files."""
    create_supp_group: bool = False
    """Ask for Request.extensions.groups on new files."""
    allow_idmap: bool = False
    """The mount may be id-mapped; needs default_permissions."""
    max_stack_depth: int = 1
    """How deep backing files may lie on stacked filesystems: 1, or 2 when the backing store is itself an overlay."""
    max_write: int = 1 << 20
    """Most bytes of one write, 4096 and up; clamped to what the kernel allows."""
    max_background: int = 1024
    """Readahead and write-back requests in flight at a time."""
    max_readahead: int = 1 << 20
    """Bytes the kernel may read ahead."""
    time_gran: int = 1
    """Granularity of times in nanoseconds, 1 to 10^9."""
    request_timeout: int = 0
    """Seconds after which the kernel aborts the whole mount when a request is unanswered; 0 is never. Ignored with setlkw."""

    notifier: Notifier
    """Tells the kernel what changed behind its back; set before init."""
    device: Callable[[], int] | None = None
    """Returns the connection's descriptor, once the kernel has agreed to take backing files; see :meth:`backing`."""
    problems: ProblemLog | None = None
    """What went wrong, for ``pyfusekit errors``; None is a filesystem that keeps no such list. Made in __init__."""
    notes: Sequence[str] = ()
    """What the person who mounts should know although the mount works, a sentence each: a promise that this backend weakens.
    Read after init."""

    def implements(self, method: str) -> bool:
        """Say whether *method* is supported: by default, whether the class overrides it. Read once, when the session begins."""
        return getattr(type(self), method) is not getattr(Filesystem, method)

    def backing(self, fd: int) -> Backing | None:
        """Register the open file *fd* for the kernel to read and write by itself: for ``Opened(handle, backing=...)``.

        None where the kernel or the user lacks passthrough, or the file does not do: then serve the file as usual. While a node
        is open with it, every other open of the node needs the same Backing (the kernel answers EIO otherwise).
        """
        from .backing import Backing

        if self.device is None:
            return None
        try:
            return Backing(self.device, fd)
        except OSError:
            return None

    # The filesystem's own life.

    async def init(self) -> None:
        """Begin: connect to the backend and prove that it answers. Called before mounting; an exception stops the mount."""

    async def destroy(self) -> None:
        """End: called once, after the last request was answered and the mount is gone, also when it was aborted."""

    # Names and nodes.

    def lookup(self, request: Request, parent: int, name: bytes) -> Result[Attr | None]:
        """Find *name* in *parent*.

        Return its Attr, or None to let the kernel remember for negative_ttl that there is none; raise ENOENT to have it ask
        again. Each Attr returned counts one lookup. "." and ".." are only asked with export_support. Not overridden: ENOENT.
        """
        raise OSError(errno.ENOENT, "lookup")

    def forget(self, ino: int, nlookup: int) -> None:
        """Take back *nlookup* lookups of *ino*; at 0 the kernel no longer knows the node.

        Never waits and has no answer. Also called by the core when an answer that counted did not reach the kernel. Unmount
        forgets everything without saying so.
        """

    def entered(self, ino: int) -> None:
        """Count one lookup of *ino*: a readdirplus entry goes to the kernel. Called while the entry is packed."""

    def getattr(self, request: Request, ino: int, handle: Any) -> Result[Attr]:
        """Return the attributes of *ino*; *handle* is an open file's, or None. Must be overridden."""
        raise _absent("getattr")

    def statx(self, request: Request, ino: int, handle: Any, mask: int) -> Result[Attr]:
        """Return the attributes of *ino* with btime_ns; *mask* are STATX_* bits. Not overridden: the kernel uses getattr."""
        raise _absent("statx")

    def setattr(self, request: Request, ino: int, changes: SetAttr, handle: Any) -> Result[Attr]:
        """Change what *changes* names and return the new attributes; *handle* comes with ftruncate, else None.

        chmod, chown, truncate and utimens are all this. ctime changes with every one of them. With writeback_cache mtime and
        ctime arrive at close and must be taken. Not overridden: EPERM.
        """
        raise OSError(errno.EPERM, "setattr")

    def access(self, request: Request, ino: int, mask: int) -> Result[None]:
        """Raise EACCES unless the caller may do *mask* (os.R_OK...). Only asked without default_permissions, for access(2) and
        chdir. Not overridden: everything is granted."""
        raise _absent("access")

    def readlink(self, request: Request, ino: int) -> Result[bytes]:
        """Return the target of a symbolic link, without a NUL, at most 4095 bytes. Not overridden: EINVAL."""
        raise OSError(errno.EINVAL, "readlink")

    def mknod(self, request: Request, parent: int, name: bytes, mode: int, rdev: int, umask: int) -> Result[Attr]:
        """Make a file, fifo, socket or device node, owned by the caller; counts one lookup. EEXIST, ENOSPC. Not overridden:
        EPERM.

        *mode* has the umask already applied unless dont_mask or posix_acl.
        """
        raise OSError(errno.EPERM, "mknod")

    def mkdir(self, request: Request, parent: int, name: bytes, mode: int, umask: int) -> Result[Attr]:
        """Make a directory; *mode* may lack S_IFDIR. Counts one lookup. EEXIST, ENOSPC. Not overridden: EPERM."""
        raise OSError(errno.EPERM, "mkdir")

    def symlink(self, request: Request, parent: int, name: bytes, target: bytes) -> Result[Attr]:
        """Make a symbolic link to *target*; counts one lookup. Not overridden: EPERM."""
        raise OSError(errno.EPERM, "symlink")

    def link(self, request: Request, ino: int, newparent: int, newname: bytes) -> Result[Attr]:
        """Give *ino* another name; counts one lookup of it. ino may be an unlinked O_TMPFILE. Not overridden: EPERM."""
        raise _absent("link")

    def unlink(self, request: Request, parent: int, name: bytes) -> Result[None]:
        """Remove a name that is not a directory. The file lives on until it is forgotten and released. Not overridden:
        EPERM."""
        raise OSError(errno.EPERM, "unlink")

    def rmdir(self, request: Request, parent: int, name: bytes) -> Result[None]:
        """Remove an empty directory; ENOTEMPTY, ENOTDIR. Not overridden: EPERM."""
        raise OSError(errno.EPERM, "rmdir")

    def rename(self, request: Request, parent: int, name: bytes, newparent: int, newname: bytes, flags: int) -> Result[None]:
        """Move *name* to *newname*, replacing what is there, atomically.

        *flags*: RENAME_NOREPLACE (EEXIST when newname is there), RENAME_EXCHANGE (both are there and change places),
        RENAME_WHITEOUT (leave a 0:0 character device behind). Raise EINVAL for flags you do not do. Not overridden: EPERM.
        """
        raise OSError(errno.EPERM, "rename")

    # Files.

    def open(self, request: Request, ino: int, flags: int) -> Result[Any]:
        """Open *ino*; return any object as its handle, or an Opened.

        *flags* are open(2)'s without O_CREAT, O_EXCL, O_NOCTTY, and without O_TRUNC unless atomic_o_trunc. The kernel has
        checked permissions if default_permissions. Not overridden: opens succeed with the handle None.
        """
        return None

    def create(self, request: Request, parent: int, name: bytes, mode: int, umask: int, flags: int) -> Result[tuple[Attr, Any]]:
        """Make *name* and open it; return (Attr, what open returns). Counts one lookup.

        *name* may have appeared since the kernel looked: EEXIST with O_EXCL in *flags*, otherwise open it. Not overridden: the
        kernel uses mknod and open.
        """
        raise _absent("create")

    def tmpfile(self, request: Request, parent: int, mode: int, umask: int, flags: int) -> Result[tuple[Attr, Any]]:
        """Make and open a file without a name (O_TMPFILE); link may give it one. Counts one lookup. Not overridden:
        EOPNOTSUPP."""
        raise _absent("tmpfile")

    def read(self, request: Request, ino: int, handle: Any, offset: int, size: int) -> Result[ReadResult]:
        """Return at most *size* bytes from *offset*, in one piece or a list of pieces; fewer mean the end of the file.

        With writeback_cache the handle may be one opened for writing. Any offset and size may be asked. A piece must not
        change before the reply is sent, which is at once.
        """
        raise OSError(errno.EOPNOTSUPP, "read")

    def write(self, request: Request, ino: int, handle: Any, offset: int, data: memoryview) -> Result[int]:
        """Write *data* at *offset* and return how many bytes were taken: all of them, unless the file is FOPEN_DIRECT_IO.

        *data* is a view of the core's buffer: valid until the handler ends, to be copied if kept. ``request.flags`` has
        WRITE_KILL_SUIDGID and WRITE_CACHE (write-back: uid, gid and pid are 0, any writable handle of the inode, ignore
        O_APPEND).
        """
        raise OSError(errno.EOPNOTSUPP, "write")

    def flush(self, request: Request, ino: int, handle: Any, lock_owner: int) -> Result[None]:
        """A descriptor of *handle* was closed; an error is close(2)'s error. Called once for every close, so maybe often.

        POSIX locks of *lock_owner* on the inode end here. Not overridden: 0 with locks, otherwise no longer asked.
        """
        raise _absent("flush")

    def release(self, request: Request, ino: int, handle: Any) -> Result[None]:
        """The last descriptor of *handle* is gone; called once, nobody sees an error. Locks taken through handle end here."""
        return None

    def fsync(self, request: Request, ino: int, handle: Any, datasync: int) -> Result[None]:
        """Make the file survive a crash; with *datasync* 1, its contents and size. Not overridden: fsync(2) says 0 at once."""
        raise _absent("fsync")

    def fallocate(self, request: Request, ino: int, handle: Any, mode: int, offset: int, length: int) -> Result[None]:
        """Reserve or free space. *mode*: 0, or FALLOC_FL_KEEP_SIZE, PUNCH_HOLE|KEEP_SIZE, ZERO_RANGE, ZERO_RANGE|KEEP_SIZE (the
        kernel refuses the others). ENOSPC. Not overridden: EOPNOTSUPP."""
        raise _absent("fallocate")

    def lseek(self, request: Request, ino: int, handle: Any, offset: int, whence: int) -> Result[int]:
        """Return the next offset with data (SEEK_DATA) or in a hole (SEEK_HOLE); ENXIO behind the end. Not overridden: no
        holes."""
        raise _absent("lseek")

    def copy_file_range(
        self,
        request: Request,
        ino: int,
        handle: Any,
        offset: int,
        ino_out: int,
        handle_out: Any,
        offset_out: int,
        length: int,
        flags: int,
    ) -> Result[int]:
        """Copy inside the filesystem and return how many bytes were copied. Not overridden: the kernel reads and writes."""
        raise _absent("copy_file_range")

    def ioctl(self, request: Request, ino: int, handle: Any, cmd: int, arg: int, data: memoryview) -> Result[Ioctl | None]:
        """Do a restricted ioctl: *data* is what cmd's size says was passed in, Ioctl.data (at most request.size bytes) goes
        back.

        Raise ENOTTY for what you do not know. ``request.flags`` has IOCTL_DIR. Not overridden: ENOTTY.
        """
        raise _absent("ioctl")

    def poll(self, request: Request, ino: int, handle: Any, events: int, kh: int | None) -> Result[int]:
        """Return which of *events* (POLLIN...) hold now. When *kh* is given keep it, and call ``notifier.poll(kh)`` when that
        changes. Not overridden: always ready."""
        raise _absent("poll")

    def bmap(self, request: Request, ino: int, block: int, blocksize: int) -> Result[int]:
        """Return the device block of file block *block*; only asked of a fuseblk mount. Not overridden: EINVAL."""
        raise _absent("bmap")

    # Directories.

    def opendir(self, request: Request, ino: int, flags: int) -> Result[Any]:
        """Open a directory; return any object as its handle, or an Opened (FOPEN_CACHE_DIR, FOPEN_KEEP_CACHE).
        Not overridden: opens succeed with the handle None."""
        return None

    def readdir(self, request: Request, ino: int, handle: Any, offset: int) -> Result[Entries]:
        """Return the entries behind the cookie *offset* (0: all), "." and ".." among them if they are to be seen.

        Anything iterable, a generator or async generator too: the core stops taking when the reply is full. A name that is
        there all the time must appear exactly once in a walk, whatever is created and removed meanwhile.
        """
        raise OSError(errno.EOPNOTSUPP, "readdir")

    def readdirplus(self, request: Request, ino: int, handle: Any, offset: int) -> Result[Entries]:
        """As readdir, with DirEntry.attr where it is at hand. Each entry with attr that reaches the kernel, but "." and "..",
        counts one lookup: the core calls entered for it. Not overridden: the kernel looks names up one by one."""
        raise _absent("readdirplus")

    def releasedir(self, request: Request, ino: int, handle: Any) -> Result[None]:
        """The last descriptor of the directory handle is gone; called once."""
        return None

    def fsyncdir(self, request: Request, ino: int, handle: Any, datasync: int) -> Result[None]:
        """Make the directory's names survive a crash. Not overridden: fsync(2) says 0 at once."""
        raise _absent("fsyncdir")

    # Extended attributes.

    def getxattr(self, request: Request, ino: int, name: bytes) -> Result[Data]:
        """Return a value; ENODATA when there is none. The core answers size queries and ERANGE. Not overridden: EOPNOTSUPP."""
        raise _absent("getxattr")

    def setxattr(self, request: Request, ino: int, name: bytes, value: memoryview, flags: int) -> Result[None]:
        """Set a value; *flags* XATTR_CREATE (EEXIST) or XATTR_REPLACE (ENODATA). ``request.flags`` has SETXATTR_ACL_KILL_SGID.
        *value* is to be copied. Not overridden: EOPNOTSUPP."""
        raise _absent("setxattr")

    def listxattr(self, request: Request, ino: int) -> Result[list[bytes]]:
        """Return the names, with their prefixes ("user.x"). Not overridden: EOPNOTSUPP."""
        raise _absent("listxattr")

    def removexattr(self, request: Request, ino: int, name: bytes) -> Result[None]:
        """Remove a value; ENODATA. Not overridden: EOPNOTSUPP."""
        raise _absent("removexattr")

    # Locks. Override them only to share locks with others: the kernel keeps them for one machine, faster. See core/locks.py.

    def getlk(self, request: Request, ino: int, handle: Any, owner: int, lock: Lock) -> Result[Lock | None]:
        """Return a lock that stands in the way of *lock*, or None. Not overridden: the kernel keeps locks."""
        raise _absent("getlk")

    def setlk(self, request: Request, ino: int, handle: Any, owner: int, lock: Lock) -> Result[None]:
        """Take or (F_UNLCK) give back a lock of *owner*; EAGAIN when one stands in the way."""
        raise _absent("setlk")

    def setlkw(self, request: Request, ino: int, handle: Any, owner: int, lock: Lock) -> Result[None]:
        """As setlk, but wait. INTERRUPT cancels the waiting task. EDEADLK."""
        raise _absent("setlkw")

    # The whole.

    def statfs(self, request: Request, ino: int) -> Result[StatFs]:
        """Return the totals for df(1). Not overridden: zeros."""
        return StatFs()

    def syncfs(self, request: Request, ino: int) -> Result[None]:
        """Make everything survive a crash; the kernel only asks fuseblk and virtiofs mounts. Not overridden: 0."""
        raise _absent("syncfs")

    # What the operator asks. These are no requests of the kernel: they come over the control socket, from the one who runs the
    # mount, and from the server when it ends. They run on the loop like everything else.

    def waiting(self) -> tuple[int, int]:
        """Return how many files, and how many bytes of them, were acknowledged and are not in the backend yet.

        Asked often, and never waits. What waits must survive the server: the next mount of the same source goes on with it.
        Not overridden: nothing ever waits.
        """
        return 0, 0

    async def drain(self, deadline: float) -> None:
        """Write back what waits, now, without any delay there may be; return when nothing waits any more.

        *deadline* is a time of time.monotonic(), inf for none: return then at the latest, what is left kept for the next mount.
        Errors are no exceptions but problems. Called while the mount is in use (more may come to wait meanwhile), again and
        again, and a last time when it is gone, before destroy. May be cancelled.
        """

    async def refresh(self, path: bytes) -> int:
        """Believe nothing any more of what was learnt of *path* and all below it, and have the kernel drop it too.

        *path* is below the root, without a slash at its front, b"" for everything. Local changes stay. Return how many names
        were believed; a path that is not known is 0 and no error. Not overridden: there is nothing that could be out of date.
        """
        return 0

    def disk_cache(self) -> DiskCache | None:
        """Return what keeps on a disk what was fetched, for ``pyfusekit cache``; None when nothing does. Never waits."""
        return None

    def details(self) -> dict[str, Any]:
        """Return what else is worth knowing about the mount, by name, for ``status``: strings, numbers, and lists and dicts of
        them. Never waits."""
        return {}


__all__ = ["Filesystem", "NoOptions"]
