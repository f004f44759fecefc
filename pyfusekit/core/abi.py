"""The kernel's interface as data: include/uapi/linux/fuse.h of Linux 6.18, ABI 7.45.

One line a struct, one line an operation, both in the header's order. Nothing here computes: codec.py compiles it. Sizes and
offsets are held against the C header by tests/core/test_abi.py.
"""

from __future__ import annotations

import errno
from typing import NamedTuple

KERNEL_VERSION = 7
KERNEL_MINOR_VERSION = 45
OLDEST_MINOR_VERSION = 23
"""Linux 3.15. Older kernels lack rename2 and the 64-byte INIT reply; the session refuses them."""

ROOT_ID = 1
MIN_READ_BUFFER = 8192

# Field types, in the struct module's letters. A number before the letter is an array.
u16, u32, u64 = "H", "I", "Q"
i32, i64 = "i", "q"


class Layout:
    """A kernel struct: field names in the header's order, each with its type; a field may itself be a Layout."""

    __slots__ = ("fields", "name", "paths")

    def __init__(self, name: str, **fields: str | Layout) -> None:
        self.name = name
        self.fields: dict[str, str] = {}
        """Field name -> struct letter, nested structs spelled out as outer_inner."""
        self.paths: dict[str, str] = {}
        """Field name -> how C spells it, outer.inner."""
        for field, kind in fields.items():
            if isinstance(kind, Layout):
                self.fields |= {f"{field}_{inner}": letter for inner, letter in kind.fields.items()}
                self.paths |= {f"{field}_{inner}": f"{field}.{path}" for inner, path in kind.paths.items()}
            else:
                self.fields[field] = kind
                self.paths[field] = field

    def __repr__(self) -> str:
        return f"Layout({self.name})"


# Common structs.
# NOTE: times are u64 in the header; they are signed here, as in struct stat, for files from before 1970.
ATTR = Layout("fuse_attr", ino=u64, size=u64, blocks=u64, atime=i64, mtime=i64, ctime=i64, atimensec=u32, mtimensec=u32,
              ctimensec=u32, mode=u32, nlink=u32, uid=u32, gid=u32, rdev=u32, blksize=u32, flags=u32)  # fmt: skip
SX_TIME = Layout("fuse_sx_time", tv_sec=i64, tv_nsec=u32, __reserved=i32)
STATX_BODY = Layout("fuse_statx", mask=u32, blksize=u32, attributes=u64, nlink=u32, uid=u32, gid=u32, mode=u16, __spare0="1H",
               ino=u64, size=u64, blocks=u64, attributes_mask=u64, atime=SX_TIME, btime=SX_TIME, ctime=SX_TIME, mtime=SX_TIME,
               rdev_major=u32, rdev_minor=u32, dev_major=u32, dev_minor=u32, __spare2="14Q")  # fmt: skip
KSTATFS = Layout("fuse_kstatfs", blocks=u64, bfree=u64, bavail=u64, files=u64, ffree=u64, bsize=u32, namelen=u32, frsize=u32,
                 padding=u32, spare="6I")  # fmt: skip
FILE_LOCK = Layout("fuse_file_lock", start=u64, end=u64, type=u32, pid=u32)

# What goes with one operation.
ENTRY_OUT = Layout("fuse_entry_out", nodeid=u64, generation=u64, entry_valid=u64, attr_valid=u64, entry_valid_nsec=u32,
                   attr_valid_nsec=u32, attr=ATTR)  # fmt: skip
FORGET_IN = Layout("fuse_forget_in", nlookup=u64)
FORGET_ONE = Layout("fuse_forget_one", nodeid=u64, nlookup=u64)
BATCH_FORGET_IN = Layout("fuse_batch_forget_in", count=u32, dummy=u32)
GETATTR_IN = Layout("fuse_getattr_in", getattr_flags=u32, dummy=u32, fh=u64)
ATTR_OUT = Layout("fuse_attr_out", attr_valid=u64, attr_valid_nsec=u32, dummy=u32, attr=ATTR)
STATX_IN = Layout("fuse_statx_in", getattr_flags=u32, reserved=u32, fh=u64, sx_flags=u32, sx_mask=u32)
STATX_OUT = Layout("fuse_statx_out", attr_valid=u64, attr_valid_nsec=u32, flags=u32, spare="2Q", stat=STATX_BODY)
MKNOD_IN = Layout("fuse_mknod_in", mode=u32, rdev=u32, umask=u32, padding=u32)
MKDIR_IN = Layout("fuse_mkdir_in", mode=u32, umask=u32)
RENAME_IN = Layout("fuse_rename_in", newdir=u64)
RENAME2_IN = Layout("fuse_rename2_in", newdir=u64, flags=u32, padding=u32)
LINK_IN = Layout("fuse_link_in", oldnodeid=u64)
SETATTR_IN = Layout("fuse_setattr_in", valid=u32, padding=u32, fh=u64, size=u64, lock_owner=u64, atime=i64, mtime=i64,
                    ctime=i64, atimensec=u32, mtimensec=u32, ctimensec=u32, mode=u32, unused4=u32, uid=u32, gid=u32,
                    unused5=u32)  # fmt: skip
OPEN_IN = Layout("fuse_open_in", flags=u32, open_flags=u32)
CREATE_IN = Layout("fuse_create_in", flags=u32, mode=u32, umask=u32, open_flags=u32)
OPEN_OUT = Layout("fuse_open_out", fh=u64, open_flags=u32, backing_id=i32)
CREATE_OUT = Layout("fuse_create_out", entry=ENTRY_OUT, open=OPEN_OUT)  # NOTE: not in the header, which sends two structs
RELEASE_IN = Layout("fuse_release_in", fh=u64, flags=u32, release_flags=u32, lock_owner=u64)
FLUSH_IN = Layout("fuse_flush_in", fh=u64, unused=u32, padding=u32, lock_owner=u64)
READ_IN = Layout("fuse_read_in", fh=u64, offset=u64, size=u32, read_flags=u32, lock_owner=u64, flags=u32, padding=u32)
WRITE_IN = Layout("fuse_write_in", fh=u64, offset=u64, size=u32, write_flags=u32, lock_owner=u64, flags=u32, padding=u32)
WRITE_OUT = Layout("fuse_write_out", size=u32, padding=u32)
STATFS_OUT = Layout("fuse_statfs_out", st=KSTATFS)
FSYNC_IN = Layout("fuse_fsync_in", fh=u64, fsync_flags=u32, padding=u32)
SETXATTR_IN = Layout("fuse_setxattr_in", size=u32, flags=u32, setxattr_flags=u32, padding=u32)
SETXATTR_IN_COMPAT = Layout("fuse_setxattr_in_compat", size=u32, flags=u32)  # without SETXATTR_EXT
GETXATTR_IN = Layout("fuse_getxattr_in", size=u32, padding=u32)
GETXATTR_OUT = Layout("fuse_getxattr_out", size=u32, padding=u32)
LK_IN = Layout("fuse_lk_in", fh=u64, owner=u64, lk=FILE_LOCK, lk_flags=u32, padding=u32)
LK_OUT = Layout("fuse_lk_out", lk=FILE_LOCK)
ACCESS_IN = Layout("fuse_access_in", mask=u32, padding=u32)
INIT_IN = Layout("fuse_init_in", major=u32, minor=u32, max_readahead=u32, flags=u32, flags2=u32, unused="11I")
INIT_IN_COMPAT = Layout("fuse_init_in_compat", major=u32, minor=u32, max_readahead=u32, flags=u32)  # before 7.36
INIT_OUT = Layout("fuse_init_out", major=u32, minor=u32, max_readahead=u32, flags=u32, max_background=u16,
                  congestion_threshold=u16, max_write=u32, time_gran=u32, max_pages=u16, map_alignment=u16, flags2=u32,
                  max_stack_depth=u32, request_timeout=u16, unused="11H")  # fmt: skip
INTERRUPT_IN = Layout("fuse_interrupt_in", unique=u64)
BMAP_IN = Layout("fuse_bmap_in", block=u64, blocksize=u32, padding=u32)
BMAP_OUT = Layout("fuse_bmap_out", block=u64)
IOCTL_IN = Layout("fuse_ioctl_in", fh=u64, flags=u32, cmd=u32, arg=u64, in_size=u32, out_size=u32)
IOCTL_OUT = Layout("fuse_ioctl_out", result=i32, flags=u32, in_iovs=u32, out_iovs=u32)
POLL_IN = Layout("fuse_poll_in", fh=u64, kh=u64, flags=u32, events=u32)
POLL_OUT = Layout("fuse_poll_out", revents=u32, padding=u32)
FALLOCATE_IN = Layout("fuse_fallocate_in", fh=u64, offset=u64, length=u64, mode=u32, padding=u32)
IN_HEADER = Layout("fuse_in_header", len=u32, opcode=u32, unique=u64, nodeid=u64, uid=u32, gid=u32, pid=u32,
                   total_extlen=u16, padding=u16)  # fmt: skip
OUT_HEADER = Layout("fuse_out_header", len=u32, error=i32, unique=u64)
DIRENT = Layout("fuse_dirent", ino=u64, off=u64, namelen=u32, type=u32)
DIRENTPLUS = Layout("fuse_direntplus", entry_out=ENTRY_OUT, dirent=DIRENT)
LSEEK_IN = Layout("fuse_lseek_in", fh=u64, offset=u64, whence=u32, padding=u32)
LSEEK_OUT = Layout("fuse_lseek_out", offset=u64)
COPY_FILE_RANGE_IN = Layout("fuse_copy_file_range_in", fh_in=u64, off_in=u64, nodeid_out=u64, fh_out=u64, off_out=u64, len=u64,
                            flags=u64)  # fmt: skip
COPY_FILE_RANGE_OUT = Layout("fuse_copy_file_range_out", bytes_copied=u64)
SETUPMAPPING_IN = Layout("fuse_setupmapping_in", fh=u64, foffset=u64, len=u64, flags=u64, moffset=u64)
REMOVEMAPPING_IN = Layout("fuse_removemapping_in", count=u32)
REMOVEMAPPING_ONE = Layout("fuse_removemapping_one", moffset=u64, len=u64)
SYNCFS_IN = Layout("fuse_syncfs_in", padding=u64)

# Extensions behind a request.
SECCTX = Layout("fuse_secctx", size=u32, padding=u32)
SECCTX_HEADER = Layout("fuse_secctx_header", size=u32, nr_secctx=u32)
EXT_HEADER = Layout("fuse_ext_header", size=u32, type=u32)
SUPP_GROUPS = Layout("fuse_supp_groups", nr_groups=u32)
MAX_NR_SECCTX = 31
EXT_GROUPS = 32

# Notifications.
NOTIFY_POLL_WAKEUP_OUT = Layout("fuse_notify_poll_wakeup_out", kh=u64)
NOTIFY_INVAL_INODE_OUT = Layout("fuse_notify_inval_inode_out", ino=u64, off=i64, len=i64)
NOTIFY_INVAL_ENTRY_OUT = Layout("fuse_notify_inval_entry_out", parent=u64, namelen=u32, flags=u32)
NOTIFY_DELETE_OUT = Layout("fuse_notify_delete_out", parent=u64, child=u64, namelen=u32, padding=u32)
NOTIFY_STORE_OUT = Layout("fuse_notify_store_out", nodeid=u64, offset=u64, size=u32, padding=u32)
NOTIFY_RETRIEVE_OUT = Layout("fuse_notify_retrieve_out", notify_unique=u64, nodeid=u64, offset=u64, size=u32, padding=u32)
NOTIFY_RETRIEVE_IN = Layout("fuse_notify_retrieve_in", dummy1=u64, offset=u64, size=u32, dummy2=u32, dummy3=u64, dummy4=u64)
NOTIFY_PRUNE_OUT = Layout("fuse_notify_prune_out", count=u32, padding=u32, spare=u64)

# ioctls of the device.
BACKING_MAP = Layout("fuse_backing_map", fd=i32, flags=u32, padding=u64)
DEV_IOC_CLONE = 0x8004E500
DEV_IOC_BACKING_OPEN = 0x4010E501
DEV_IOC_BACKING_CLOSE = 0x4004E502
DEV_IOC_SYNC_INIT = 0xE503

# FATTR_*: fuse_setattr_in.valid.
FATTR_MODE = 1 << 0
FATTR_UID = 1 << 1
FATTR_GID = 1 << 2
FATTR_SIZE = 1 << 3
FATTR_ATIME = 1 << 4
FATTR_MTIME = 1 << 5
FATTR_FH = 1 << 6
FATTR_ATIME_NOW = 1 << 7
FATTR_MTIME_NOW = 1 << 8
FATTR_LOCKOWNER = 1 << 9
FATTR_CTIME = 1 << 10
FATTR_KILL_SUIDGID = 1 << 11

# FOPEN_*: fuse_open_out.open_flags.
FOPEN_DIRECT_IO = 1 << 0
FOPEN_KEEP_CACHE = 1 << 1
FOPEN_NONSEEKABLE = 1 << 2
FOPEN_CACHE_DIR = 1 << 3
FOPEN_STREAM = 1 << 4
FOPEN_NOFLUSH = 1 << 5
FOPEN_PARALLEL_DIRECT_WRITES = 1 << 6
FOPEN_PASSTHROUGH = 1 << 7

# FUSE_*: capabilities of INIT. Bits 32 and up travel in flags2.
ASYNC_READ = 1 << 0
POSIX_LOCKS = 1 << 1
FILE_OPS = 1 << 2
ATOMIC_O_TRUNC = 1 << 3
EXPORT_SUPPORT = 1 << 4
BIG_WRITES = 1 << 5
DONT_MASK = 1 << 6
SPLICE_WRITE = 1 << 7
SPLICE_MOVE = 1 << 8
SPLICE_READ = 1 << 9
FLOCK_LOCKS = 1 << 10
HAS_IOCTL_DIR = 1 << 11
AUTO_INVAL_DATA = 1 << 12
DO_READDIRPLUS = 1 << 13
READDIRPLUS_AUTO = 1 << 14
ASYNC_DIO = 1 << 15
WRITEBACK_CACHE = 1 << 16
NO_OPEN_SUPPORT = 1 << 17
PARALLEL_DIROPS = 1 << 18
HANDLE_KILLPRIV = 1 << 19
POSIX_ACL = 1 << 20
ABORT_ERROR = 1 << 21
MAX_PAGES = 1 << 22
CACHE_SYMLINKS = 1 << 23
NO_OPENDIR_SUPPORT = 1 << 24
EXPLICIT_INVAL_DATA = 1 << 25
MAP_ALIGNMENT = 1 << 26
SUBMOUNTS = 1 << 27
HANDLE_KILLPRIV_V2 = 1 << 28
SETXATTR_EXT = 1 << 29
INIT_EXT = 1 << 30
INIT_RESERVED = 1 << 31
SECURITY_CTX = 1 << 32
HAS_INODE_DAX = 1 << 33
CREATE_SUPP_GROUP = 1 << 34
HAS_EXPIRE_ONLY = 1 << 35
DIRECT_IO_ALLOW_MMAP = 1 << 36
PASSTHROUGH = 1 << 37
NO_EXPORT_SUPPORT = 1 << 38
HAS_RESEND = 1 << 39
ALLOW_IDMAP = 1 << 40
OVER_IO_URING = 1 << 41
REQUEST_TIMEOUT = 1 << 42

# The small flag words of single operations.
RELEASE_FLUSH = 1 << 0
RELEASE_FLOCK_UNLOCK = 1 << 1
GETATTR_FH = 1 << 0
LK_FLOCK = 1 << 0
WRITE_CACHE = 1 << 0
WRITE_LOCKOWNER = 1 << 1
WRITE_KILL_SUIDGID = 1 << 2
READ_LOCKOWNER = 1 << 1
IOCTL_COMPAT = 1 << 0
IOCTL_UNRESTRICTED = 1 << 1
IOCTL_RETRY = 1 << 2
IOCTL_32BIT = 1 << 3
IOCTL_DIR = 1 << 4
IOCTL_COMPAT_X32 = 1 << 5
POLL_SCHEDULE_NOTIFY = 1 << 0
FSYNC_FDATASYNC = 1 << 0
ATTR_SUBMOUNT = 1 << 0
ATTR_DAX = 1 << 1
OPEN_KILL_SUIDGID = 1 << 0
SETXATTR_ACL_KILL_SGID = 1 << 0
EXPIRE_ONLY = 1 << 0
UNIQUE_RESEND = 1 << 63
RENAME_NOREPLACE = 1 << 0
RENAME_EXCHANGE = 1 << 1
RENAME_WHITEOUT = 1 << 2

# Opcodes.
LOOKUP = 1
FORGET = 2
GETATTR = 3
SETATTR = 4
READLINK = 5
SYMLINK = 6
MKNOD = 8
MKDIR = 9
UNLINK = 10
RMDIR = 11
RENAME = 12
LINK = 13
OPEN = 14
READ = 15
WRITE = 16
STATFS = 17
RELEASE = 18
FSYNC = 20
SETXATTR = 21
GETXATTR = 22
LISTXATTR = 23
REMOVEXATTR = 24
FLUSH = 25
INIT = 26
OPENDIR = 27
READDIR = 28
RELEASEDIR = 29
FSYNCDIR = 30
GETLK = 31
SETLK = 32
SETLKW = 33
ACCESS = 34
CREATE = 35
INTERRUPT = 36
BMAP = 37
DESTROY = 38
IOCTL = 39
POLL = 40
NOTIFY_REPLY = 41
BATCH_FORGET = 42
FALLOCATE = 43
READDIRPLUS = 44
RENAME2 = 45
LSEEK = 46
COPY_FILE_RANGE = 47
SETUPMAPPING = 48
REMOVEMAPPING = 49
SYNCFS = 50
TMPFILE = 51
STATX = 52
COPY_FILE_RANGE_64 = 53

# Notification codes.
NOTIFY_POLL = 1
NOTIFY_INVAL_INODE = 2
NOTIFY_INVAL_ENTRY = 3
NOTIFY_STORE = 4
NOTIFY_RETRIEVE = 5
NOTIFY_DELETE = 6
NOTIFY_RESEND = 7
NOTIFY_INC_EPOCH = 8
NOTIFY_PRUNE = 9


class Out(NamedTuple):
    """What a reply carries behind its header."""

    name: str
    layout: Layout | None = None
    """The fixed part; None when there is none."""
    data: bool = False
    """Bytes follow, of any length up to what was asked."""


EMPTY = Out("empty")
NO_REPLY = Out("no reply")
ENTRY = Out("entry", ENTRY_OUT)
ATTRS = Out("attr", ATTR_OUT)
STATX_ATTRS = Out("statx", STATX_OUT)
OPENED = Out("open", OPEN_OUT)
CREATED = Out("create", CREATE_OUT)
TARGET = Out("target", data=True)
DATA = Out("data", data=True)
WRITTEN = Out("write", WRITE_OUT)
TOTALS = Out("statfs", STATFS_OUT)
XATTR = Out("xattr", data=True)
XATTR_NAMES = Out("xattr names", data=True)
DIRENTS = Out("dirents", data=True)
DIRENTS_PLUS = Out("dirents plus", data=True)
LOCK = Out("lock", LK_OUT)
BLOCK = Out("bmap", BMAP_OUT)
IOCTL_RESULT = Out("ioctl", IOCTL_OUT, data=True)
REVENTS = Out("poll", POLL_OUT)
OFFSET = Out("lseek", LSEEK_OUT)
COPIED = Out("copied", COPY_FILE_RANGE_OUT)
INITIAL = Out("init", INIT_OUT)


class Op(NamedTuple):
    """One operation: how its message is laid out, what its method takes, what goes back."""

    name: str
    method: str
    """The Filesystem method, or "" for what the core answers itself."""
    struct: Layout | None
    takes: str
    """The method's arguments behind the Request: fields of the struct, the names below, "nodeid" from the header, "data" for
    the bytes at the end; "fh" becomes the handle object, "fh?" and "kh?" too if the request's flags say that they are
    given, "lock" and "changes" gather fields into a Lock and a SetAttr."""
    out: Out = EMPTY
    names: str = ""
    """The NUL-terminated strings behind the struct, in order."""
    data: bool = False
    """Bytes follow, to the end of the message."""
    flags: str = ""
    """The field that becomes Request.flags."""
    limit: str = ""
    """The field that becomes Request.size."""
    absent: int = errno.ENOSYS
    """What is answered when the method is not overridden: an errno, or 0 for success. ENOSYS makes the kernel stop asking for
    LINK, RENAME2, ACCESS, FLUSH, FSYNC, FSYNCDIR, xattrs, LSEEK, FALLOCATE, COPY_FILE_RANGE, STATX, TMPFILE, POLL, BMAP, CREATE
    and SYNCFS; elsewhere it is an error like any other, so those rows say something a person understands."""


OPS: dict[int, Op] = {
    LOOKUP: Op("LOOKUP", "lookup", None, "nodeid name", ENTRY, "name", absent=errno.ENOENT),
    FORGET: Op("FORGET", "", FORGET_IN, "nodeid nlookup", NO_REPLY),
    GETATTR: Op("GETATTR", "getattr", GETATTR_IN, "nodeid fh?", ATTRS),
    SETATTR: Op("SETATTR", "setattr", SETATTR_IN, "nodeid changes fh?", ATTRS, absent=errno.EPERM),
    READLINK: Op("READLINK", "readlink", None, "nodeid", TARGET, absent=errno.EINVAL),
    SYMLINK: Op("SYMLINK", "symlink", None, "nodeid name target", ENTRY, "name target", absent=errno.EPERM),
    MKNOD: Op("MKNOD", "mknod", MKNOD_IN, "nodeid name mode rdev umask", ENTRY, "name", absent=errno.EPERM),
    MKDIR: Op("MKDIR", "mkdir", MKDIR_IN, "nodeid name mode umask", ENTRY, "name", absent=errno.EPERM),
    UNLINK: Op("UNLINK", "unlink", None, "nodeid name", EMPTY, "name", absent=errno.EPERM),
    RMDIR: Op("RMDIR", "rmdir", None, "nodeid name", EMPTY, "name", absent=errno.EPERM),
    RENAME: Op("RENAME", "rename", RENAME_IN, "nodeid name newdir newname 0", EMPTY, "name newname", absent=errno.EPERM),
    LINK: Op("LINK", "link", LINK_IN, "oldnodeid nodeid name", ENTRY, "name"),
    OPEN: Op("OPEN", "open", OPEN_IN, "nodeid flags", OPENED, flags="open_flags", absent=0),
    READ: Op("READ", "read", READ_IN, "nodeid fh offset size", DATA, flags="read_flags", limit="size", absent=errno.EOPNOTSUPP),
    WRITE: Op("WRITE", "write", WRITE_IN, "nodeid fh offset data", WRITTEN, data=True, flags="write_flags", limit="size",
              absent=errno.EOPNOTSUPP),
    STATFS: Op("STATFS", "statfs", None, "nodeid", TOTALS, absent=0),
    RELEASE: Op("RELEASE", "release", RELEASE_IN, "nodeid fh", EMPTY, flags="release_flags", absent=0),
    FSYNC: Op("FSYNC", "fsync", FSYNC_IN, "nodeid fh fsync_flags", EMPTY),
    SETXATTR: Op("SETXATTR", "setxattr", SETXATTR_IN, "nodeid name data flags", EMPTY, "name", data=True,
                 flags="setxattr_flags", limit="size"),
    GETXATTR: Op("GETXATTR", "getxattr", GETXATTR_IN, "nodeid name", XATTR, "name", limit="size"),
    LISTXATTR: Op("LISTXATTR", "listxattr", GETXATTR_IN, "nodeid", XATTR_NAMES, limit="size"),
    REMOVEXATTR: Op("REMOVEXATTR", "removexattr", None, "nodeid name", EMPTY, "name"),
    FLUSH: Op("FLUSH", "flush", FLUSH_IN, "nodeid fh lock_owner", EMPTY),
    INIT: Op("INIT", "", INIT_IN, "", INITIAL),
    OPENDIR: Op("OPENDIR", "opendir", OPEN_IN, "nodeid flags", OPENED, flags="open_flags", absent=0),
    READDIR: Op("READDIR", "readdir", READ_IN, "nodeid fh offset", DIRENTS, limit="size", absent=errno.EOPNOTSUPP),
    RELEASEDIR: Op("RELEASEDIR", "releasedir", RELEASE_IN, "nodeid fh", EMPTY, flags="release_flags", absent=0),
    FSYNCDIR: Op("FSYNCDIR", "fsyncdir", FSYNC_IN, "nodeid fh fsync_flags", EMPTY),
    GETLK: Op("GETLK", "getlk", LK_IN, "nodeid fh owner lock", LOCK, flags="lk_flags"),
    SETLK: Op("SETLK", "setlk", LK_IN, "nodeid fh owner lock", EMPTY, flags="lk_flags"),
    SETLKW: Op("SETLKW", "setlkw", LK_IN, "nodeid fh owner lock", EMPTY, flags="lk_flags"),
    ACCESS: Op("ACCESS", "access", ACCESS_IN, "nodeid mask", EMPTY),
    CREATE: Op("CREATE", "create", CREATE_IN, "nodeid name mode umask flags", CREATED, "name", flags="open_flags"),
    INTERRUPT: Op("INTERRUPT", "", INTERRUPT_IN, "unique", NO_REPLY),
    BMAP: Op("BMAP", "bmap", BMAP_IN, "nodeid block blocksize", BLOCK),
    DESTROY: Op("DESTROY", "", None, "", EMPTY),
    IOCTL: Op("IOCTL", "ioctl", IOCTL_IN, "nodeid fh cmd arg data", IOCTL_RESULT, data=True, flags="flags", limit="out_size"),
    POLL: Op("POLL", "poll", POLL_IN, "nodeid fh events kh?", REVENTS, flags="flags"),
    NOTIFY_REPLY: Op("NOTIFY_REPLY", "", NOTIFY_RETRIEVE_IN, "offset data", NO_REPLY, data=True),
    BATCH_FORGET: Op("BATCH_FORGET", "", BATCH_FORGET_IN, "count data", NO_REPLY, data=True),
    FALLOCATE: Op("FALLOCATE", "fallocate", FALLOCATE_IN, "nodeid fh mode offset length", EMPTY),
    READDIRPLUS: Op("READDIRPLUS", "readdirplus", READ_IN, "nodeid fh offset", DIRENTS_PLUS, limit="size"),
    RENAME2: Op("RENAME2", "rename", RENAME2_IN, "nodeid name newdir newname flags", EMPTY, "name newname"),
    LSEEK: Op("LSEEK", "lseek", LSEEK_IN, "nodeid fh offset whence", OFFSET),
    COPY_FILE_RANGE: Op("COPY_FILE_RANGE", "copy_file_range", COPY_FILE_RANGE_IN,
                        "nodeid fh_in off_in nodeid_out fh_out off_out len flags", WRITTEN),
    SETUPMAPPING: Op("SETUPMAPPING", "", SETUPMAPPING_IN, "", EMPTY),
    REMOVEMAPPING: Op("REMOVEMAPPING", "", REMOVEMAPPING_IN, "", EMPTY, data=True),
    SYNCFS: Op("SYNCFS", "syncfs", SYNCFS_IN, "nodeid", EMPTY),
    TMPFILE: Op("TMPFILE", "tmpfile", CREATE_IN, "nodeid mode umask flags", CREATED, "name", flags="open_flags"),
    STATX: Op("STATX", "statx", STATX_IN, "nodeid fh? sx_mask", STATX_ATTRS),
    COPY_FILE_RANGE_64: Op("COPY_FILE_RANGE_64", "copy_file_range", COPY_FILE_RANGE_IN,
                           "nodeid fh_in off_in nodeid_out fh_out off_out len flags", COPIED),
}  # fmt: skip


class Note(NamedTuple):
    """One notification: how its message is laid out."""

    name: str
    struct: Layout | None
    names: str = ""
    data: bool = False
    since: int = KERNEL_MINOR_VERSION
    """The first minor version that knows it."""


NOTES: dict[int, Note] = {
    NOTIFY_POLL: Note("POLL", NOTIFY_POLL_WAKEUP_OUT, since=11),
    NOTIFY_INVAL_INODE: Note("INVAL_INODE", NOTIFY_INVAL_INODE_OUT, since=12),
    NOTIFY_INVAL_ENTRY: Note("INVAL_ENTRY", NOTIFY_INVAL_ENTRY_OUT, "name", since=12),
    NOTIFY_STORE: Note("STORE", NOTIFY_STORE_OUT, data=True, since=15),
    NOTIFY_RETRIEVE: Note("RETRIEVE", NOTIFY_RETRIEVE_OUT, since=15),
    NOTIFY_DELETE: Note("DELETE", NOTIFY_DELETE_OUT, "name", since=18),
    NOTIFY_RESEND: Note("RESEND", None, since=40),
    NOTIFY_INC_EPOCH: Note("INC_EPOCH", None, since=44),
    NOTIFY_PRUNE: Note("PRUNE", NOTIFY_PRUNE_OUT, data=True, since=45),
}
