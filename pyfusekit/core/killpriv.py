"""Set-id bits and file capabilities, cleared on write, truncate and chown for filesystems that do not do it themselves.

With HANDLE_KILLPRIV_V2 the kernel no longer asks for security.capability before every write, and the server clears instead
(include/uapi/linux/fuse.h). The duties, from fs/attr.c and fs/fuse: on a write or truncate whose request says so, and on
every chown of something that is not a directory, drop S_ISUID, drop S_ISGID where the group may execute, and remove
security.capability.
"""

from __future__ import annotations

import errno
import inspect
import stat
from collections.abc import Callable
from typing import Any

from . import abi
from .filesystem import Filesystem
from .types import Request, SetAttr

_CAPABILITY = b"security.capability"


def stripped(mode: int) -> int:
    """Return *mode* without the bits that must not survive a change by somebody else; directories keep theirs."""
    if stat.S_ISDIR(mode):
        return mode
    mode &= ~stat.S_ISUID
    if mode & stat.S_IXGRP:
        mode &= ~stat.S_ISGID
    return mode


async def _settled(result: Any) -> Any:
    return await result if inspect.isawaitable(result) else result


class PrivilegeKiller:
    """Wraps a filesystem's methods so that what they are told to clear is cleared, by its own getattr and setattr."""

    def __init__(self, fs: Filesystem) -> None:
        self._fs = fs
        self._has_xattrs = fs.implements("getxattr") and fs.implements("removexattr")

    def wrap(self, name: str) -> Callable[..., Any]:
        """Return the method *name* with the duty added, or as it is when it has none."""
        method: Callable[..., Any] = getattr(self._fs, name)
        if not self._fs.implements("setattr"):
            return method  # nobody can have set the bits
        if name == "write":
            return self._wrap_flagged(method, abi.WRITE_KILL_SUIDGID)
        if name == "open":
            return self._wrap_flagged(method, abi.OPEN_KILL_SUIDGID)
        if name == "setattr":
            return self._wrap_setattr(method)
        return method

    def _wrap_flagged(self, method: Callable[..., Any], flag: int) -> Callable[..., Any]:
        def guarded(request: Request, ino: int, *arguments: Any) -> Any:
            if request.flags & flag:
                return self._clear_then(method, request, ino, arguments)
            return method(request, ino, *arguments)

        return guarded

    async def _clear_then(self, method: Callable[..., Any], request: Request, ino: int, arguments: tuple[Any, ...]) -> Any:
        attr = await _settled(self._fs.getattr(request, ino, None))
        mode = stripped(attr.mode)
        if mode != attr.mode:
            await _settled(self._fs.setattr(request, ino, SetAttr(mode=mode), None))
        await self._drop_capability(request, ino)
        return await _settled(method(request, ino, *arguments))

    async def _drop_capability(self, request: Request, ino: int) -> None:
        if not self._has_xattrs:
            return
        try:
            await _settled(self._fs.getxattr(request, ino, _CAPABILITY))
            await _settled(self._fs.removexattr(request, ino, _CAPABILITY))
        except OSError as error:
            if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP):
                raise

    def _wrap_setattr(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(request: Request, ino: int, changes: SetAttr, handle: Any) -> Any:
            if changes.kill_suidgid or changes.uid is not None or changes.gid is not None:
                return self._clear_in(method, request, ino, changes, handle)
            return method(request, ino, changes, handle)

        return guarded

    async def _clear_in(self, method: Callable[..., Any], request: Request, ino: int, changes: SetAttr, handle: Any) -> Any:
        attr = await _settled(self._fs.getattr(request, ino, handle))
        if not stat.S_ISDIR(attr.mode):
            mode = stripped(attr.mode if changes.mode is None else stat.S_IFMT(attr.mode) | stat.S_IMODE(changes.mode))
            if mode != attr.mode:
                changes.mode = mode
            await self._drop_capability(request, ino)
        return await _settled(method(request, ino, changes, handle))
