"""INIT: what the kernel offers, what the filesystem's methods imply, and the rules between the two.

A pure function of its arguments; the rules are those of fs/fuse/inode.c process_init_reply.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from . import abi
from .filesystem import Filesystem

PAGE_BYTES = 4096
PAGES_WITHOUT_MAX_PAGES = 32


@dataclass(slots=True)
class Limits:
    """What the machine and the mount add to the kernel's offer."""

    max_pages: int = 256
    """Most pages of one request: /proc/sys/fs/fuse/max_pages_limit, when the connection was made."""
    default_permissions: bool = True
    """The mount option of that name is on."""
    may_passthrough: bool = False
    """The process has CAP_SYS_ADMIN in the first user namespace."""


@dataclass(slots=True)
class Agreed:
    """What was agreed for the life of the connection."""

    minor: int
    flags: int
    max_readahead: int
    max_write: int
    max_pages: int
    max_background: int
    congestion_threshold: int
    time_gran: int
    max_stack_depth: int
    request_timeout: int

    def has(self, flag: int) -> bool:
        """Say whether the capability *flag* was agreed."""
        return bool(self.flags & flag)

    def reply_fields(self) -> dict[str, Any]:
        """Return the fields of fuse_init_out. max_stack_depth counts from 1 where passthrough is on, else it is 0."""
        return {
            "major": abi.KERNEL_VERSION,
            "minor": self.minor,
            "max_readahead": self.max_readahead,
            "flags": self.flags & 0xFFFFFFFF,
            "flags2": self.flags >> 32,
            "max_background": self.max_background,
            "congestion_threshold": self.congestion_threshold,
            "max_write": self.max_write,
            "time_gran": self.time_gran,
            "max_pages": self.max_pages,
            "max_stack_depth": self.max_stack_depth,
            "request_timeout": self.request_timeout,
        }


def _wanted(fs: Filesystem, limits: Limits) -> int:
    """Return the capabilities that follow from what *fs* overrides and says."""
    implements = fs.implements
    writes = implements("write")
    # All three or none: fcntl(2) on a file whose locks are only half kept would fail with ENOSYS.
    locks = implements("getlk") and implements("setlk") and implements("setlkw")
    wanted = {
        abi.ASYNC_READ: True,
        abi.BIG_WRITES: True,
        abi.MAX_PAGES: True,
        abi.ASYNC_DIO: fs.async_dio,
        abi.HAS_EXPIRE_ONLY: True,
        abi.HAS_RESEND: True,
        abi.PARALLEL_DIROPS: fs.parallel_dirops,
        abi.HAS_IOCTL_DIR: implements("ioctl"),
        abi.DO_READDIRPLUS: implements("readdirplus"),
        abi.READDIRPLUS_AUTO: implements("readdirplus"),
        abi.POSIX_LOCKS: locks,
        abi.FLOCK_LOCKS: locks and fs.keep_own_locks,
        abi.ATOMIC_O_TRUNC: fs.atomic_o_trunc and implements("open") and not fs.stateless_open,
        abi.NO_OPEN_SUPPORT: fs.stateless_open,
        abi.NO_OPENDIR_SUPPORT: fs.stateless_opendir,
        abi.WRITEBACK_CACHE: fs.writeback_cache and writes,
        # Without it every write(2) asks for security.capability; where xattrs are absent one ENOSYS silences that too.
        abi.HANDLE_KILLPRIV_V2: writes,
        abi.POSIX_ACL: fs.posix_acl and implements("getxattr"),
        # A default ACL replaces the umask, which the kernel otherwise has applied already, POSIX_ACL or not.
        abi.DONT_MASK: fs.dont_mask or fs.posix_acl,
        abi.EXPLICIT_INVAL_DATA: fs.explicit_inval_data,
        # AUTO beats EXPLICIT when both are on.
        abi.AUTO_INVAL_DATA: not fs.explicit_inval_data,
        abi.CACHE_SYMLINKS: fs.cache_symlinks,
        abi.SETXATTR_EXT: implements("setxattr"),
        abi.EXPORT_SUPPORT: fs.export_support,
        abi.DIRECT_IO_ALLOW_MMAP: fs.direct_io_allow_mmap,
        abi.SECURITY_CTX: fs.security_ctx,
        abi.CREATE_SUPP_GROUP: fs.create_supp_group,
        # Without default_permissions the kernel would fail the whole connection.
        abi.ALLOW_IDMAP: fs.allow_idmap and limits.default_permissions,
        # The kernel ignores passthrough beside the write-back cache, and with a stack depth out of range.
        abi.PASSTHROUGH: limits.may_passthrough and not (fs.writeback_cache and writes) and 1 <= fs.max_stack_depth <= 2,
        # The kernel counts the wait for a lock too, and would abort the whole mount (fs/fuse/req_timeout.c).
        abi.REQUEST_TIMEOUT: fs.request_timeout > 0 and not implements("setlkw"),
    }
    flags = 0
    for flag, is_wanted in wanted.items():
        if is_wanted:
            flags |= flag
    return flags


def negotiate(fs: Filesystem, minor: int, offered: int, max_readahead: int, limits: Limits) -> Agreed:
    """Return the answer to an INIT of 7.*minor* that offers the capabilities *offered* and *max_readahead* bytes."""
    flags = _wanted(fs, limits) & offered
    if not flags & abi.DO_READDIRPLUS:
        flags &= ~abi.READDIRPLUS_AUTO
    # Always: abort shows as ECONNABORTED instead of looking like an unmount, and the high half of the flags counts.
    flags |= abi.ABORT_ERROR | abi.INIT_EXT
    most_pages = limits.max_pages if flags & abi.MAX_PAGES else PAGES_WITHOUT_MAX_PAGES
    max_write = max(PAGE_BYTES, min(fs.max_write, most_pages * PAGE_BYTES))
    # It bounds READs as well, so small writes must not make it small.
    max_pages = min(most_pages, -(-max(max_write, fs.max_readahead) // PAGE_BYTES))
    max_background = max(1, min(fs.max_background, 0xFFFF))
    return Agreed(
        minor=min(minor, abi.KERNEL_MINOR_VERSION),
        flags=flags,
        max_readahead=min(max_readahead, max(0, fs.max_readahead)),
        max_write=max_write,
        max_pages=max_pages,
        max_background=max_background,
        congestion_threshold=max(1, max_background * 3 // 4),
        time_gran=max(1, min(fs.time_gran, 1_000_000_000)),
        max_stack_depth=fs.max_stack_depth if flags & abi.PASSTHROUGH else 0,
        request_timeout=min(fs.request_timeout, 0xFFFF) if flags & abi.REQUEST_TIMEOUT else 0,
    )
