"""The FUSE core: everything a filesystem needs, and the only module of the core that others import.

Names are loaded when they are first used: a command that only lists mounts shall not wait for asyncio.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .abi import (
        FOPEN_CACHE_DIR,
        FOPEN_DIRECT_IO,
        FOPEN_KEEP_CACHE,
        FOPEN_NOFLUSH,
        FOPEN_NONSEEKABLE,
        FOPEN_PARALLEL_DIRECT_WRITES,
        FOPEN_STREAM,
        IOCTL_DIR,
        LK_FLOCK,
        OPEN_KILL_SUIDGID,
        POLL_SCHEDULE_NOTIFY,
        RENAME_EXCHANGE,
        RENAME_NOREPLACE,
        RENAME_WHITEOUT,
        ROOT_ID,
        SETXATTR_ACL_KILL_SGID,
        WRITE_CACHE,
        WRITE_KILL_SUIDGID,
    )
    from .backing import Backing
    from .errors import DeadlockError, MountError, ProtocolError, PyfusekitError, errno_of
    from .filesystem import Filesystem, NoOptions
    from .inodes import HandleTable, InodeTable
    from .locks import LockKeeper, LockTable
    from .mount import Mount, MountOptions
    from .notify import Notifier
    from .options import Duration, Mode, Secret, Size, Url, option
    from .pathops import PathOperations
    from .paths import PathFilesystem
    from .problems import CONFLICT, Problem, ProblemLog
    from .serving import Served, run, serve
    from .session import Session
    from .types import (
        Attr,
        Data,
        DirEntry,
        Entries,
        Extensions,
        Ioctl,
        Lock,
        Opened,
        ReadResult,
        Request,
        Result,
        SetAttr,
        StatFs,
    )

_HOME = {
    "FOPEN_CACHE_DIR": "abi",
    "FOPEN_DIRECT_IO": "abi",
    "FOPEN_KEEP_CACHE": "abi",
    "FOPEN_NOFLUSH": "abi",
    "FOPEN_NONSEEKABLE": "abi",
    "FOPEN_PARALLEL_DIRECT_WRITES": "abi",
    "FOPEN_STREAM": "abi",
    "IOCTL_DIR": "abi",
    "LK_FLOCK": "abi",
    "OPEN_KILL_SUIDGID": "abi",
    "POLL_SCHEDULE_NOTIFY": "abi",
    "RENAME_EXCHANGE": "abi",
    "RENAME_NOREPLACE": "abi",
    "RENAME_WHITEOUT": "abi",
    "ROOT_ID": "abi",
    "SETXATTR_ACL_KILL_SGID": "abi",
    "WRITE_CACHE": "abi",
    "WRITE_KILL_SUIDGID": "abi",
    "Backing": "backing",
    "DeadlockError": "errors",
    "MountError": "errors",
    "ProtocolError": "errors",
    "PyfusekitError": "errors",
    "errno_of": "errors",
    "Filesystem": "filesystem",
    "NoOptions": "filesystem",
    "HandleTable": "inodes",
    "InodeTable": "inodes",
    "LockKeeper": "locks",
    "LockTable": "locks",
    "Mount": "mount",
    "MountOptions": "mount",
    "Notifier": "notify",
    "Duration": "options",
    "Mode": "options",
    "Secret": "options",
    "Size": "options",
    "Url": "options",
    "option": "options",
    "PathOperations": "pathops",
    "PathFilesystem": "paths",
    "CONFLICT": "problems",
    "Problem": "problems",
    "ProblemLog": "problems",
    "Served": "serving",
    "run": "serving",
    "serve": "serving",
    "Session": "session",
    "Attr": "types",
    "Data": "types",
    "DirEntry": "types",
    "Entries": "types",
    "Extensions": "types",
    "Ioctl": "types",
    "Lock": "types",
    "Opened": "types",
    "ReadResult": "types",
    "Request": "types",
    "Result": "types",
    "SetAttr": "types",
    "StatFs": "types",
}
"""Which module of the core each public name lives in."""


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(_HOME)


__all__ = [
    "CONFLICT",
    "FOPEN_CACHE_DIR",
    "FOPEN_DIRECT_IO",
    "FOPEN_KEEP_CACHE",
    "FOPEN_NOFLUSH",
    "FOPEN_NONSEEKABLE",
    "FOPEN_PARALLEL_DIRECT_WRITES",
    "FOPEN_STREAM",
    "IOCTL_DIR",
    "LK_FLOCK",
    "OPEN_KILL_SUIDGID",
    "POLL_SCHEDULE_NOTIFY",
    "RENAME_EXCHANGE",
    "RENAME_NOREPLACE",
    "RENAME_WHITEOUT",
    "ROOT_ID",
    "SETXATTR_ACL_KILL_SGID",
    "WRITE_CACHE",
    "WRITE_KILL_SUIDGID",
    "Attr",
    "Backing",
    "Data",
    "DeadlockError",
    "DirEntry",
    "Duration",
    "Entries",
    "Extensions",
    "Filesystem",
    "HandleTable",
    "InodeTable",
    "Ioctl",
    "Lock",
    "LockKeeper",
    "LockTable",
    "Mode",
    "Mount",
    "MountError",
    "MountOptions",
    "NoOptions",
    "Notifier",
    "Opened",
    "PathFilesystem",
    "PathOperations",
    "Problem",
    "ProblemLog",
    "ProtocolError",
    "PyfusekitError",
    "ReadResult",
    "Request",
    "Result",
    "Secret",
    "Served",
    "Session",
    "SetAttr",
    "Size",
    "StatFs",
    "Url",
    "errno_of",
    "option",
    "run",
    "serve",
]
