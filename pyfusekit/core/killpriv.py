"""Set-id bits and file capabilities, cleared on write, truncate and chown for filesystems that do not do it themselves.

With HANDLE_KILLPRIV_V2 the kernel no longer asks for security.capability before every write, and the server clears instead
(include/uapi/linux/fuse.h). The duties, from fs/attr.c and fs/fuse: on a write, truncate or truncating open whose request says
so, and on every chown of something that is not a directory, drop S_ISUID, drop S_ISGID where the group may execute, and remove
security.capability. fallocate and copy_file_range have no flag for it; the kernel leaves them to the server all the same
(fs/fuse/dir.c fuse_setattr), so there whoever is not root counts as one without CAP_FSETID.

The kernel sets the flag in every write of an ordinary user, so what finds nothing to clear must not cost a task.
"""

from __future__ import annotations

import errno
import inspect
import stat
from collections.abc import Callable, Coroutine
from typing import Any

from . import abi
from .filesystem import Filesystem
from .types import Attr, Opened, Request, SetAttr

_CAPABILITY = b"security.capability"
_SET_ID = stat.S_ISUID | stat.S_ISGID
_FLAGS = {"write": abi.WRITE_KILL_SUIDGID, "open": abi.OPEN_KILL_SUIDGID}


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
        self._has_modes = fs.implements("setattr")
        """Somebody can have set the bits."""
        self._has_xattrs = fs.implements("getxattr") and fs.implements("removexattr")

    def wrap(self, name: str) -> Callable[..., Any]:
        """Return the method *name* with the duty added, or as it is when it has none."""
        method: Callable[..., Any] = getattr(self._fs, name)
        if not self._has_modes and not self._has_xattrs:
            return method
        if name in _FLAGS:
            return self._wrap_flagged(method, _FLAGS[name])
        if name == "setattr":
            return self._wrap_setattr(method)
        if name == "create":
            return self._wrap_create(method)
        if name == "fallocate":
            return self._wrap_unflagged(method, 0)
        if name == "copy_file_range":
            return self._wrap_unflagged(method, 3)
        return method

    # Clearing; None, or what is still to be awaited.

    def _clear(self, request: Request, ino: int) -> Coroutine[Any, Any, None] | None:
        if self._has_modes:
            attr = self._fs.getattr(request, ino, None)
            if not isinstance(attr, Attr) or stripped(attr.mode) != attr.mode:
                return self._clear_later(request, ino, attr)
        return self._drop_capability(request, ino)

    async def _clear_later(self, request: Request, ino: int, found: Any) -> None:
        attr = await _settled(found)
        mode = stripped(attr.mode)
        if mode != attr.mode:
            await _settled(self._fs.setattr(request, ino, SetAttr(mode=mode), None))
        rest = self._drop_capability(request, ino)
        if rest is not None:
            await rest

    def _drop_capability(self, request: Request, ino: int) -> Coroutine[Any, Any, None] | None:
        if not self._has_xattrs:
            return None
        try:
            value = self._fs.getxattr(request, ino, _CAPABILITY)
        except OSError as error:
            if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
                return None
            raise
        return self._drop_later(request, ino, value)

    async def _drop_later(self, request: Request, ino: int, found: Any) -> None:
        try:
            await _settled(found)
            await _settled(self._fs.removexattr(request, ino, _CAPABILITY))
        except OSError as error:
            if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP):
                raise

    # The methods.

    def _wrap_flagged(self, method: Callable[..., Any], flag: int) -> Callable[..., Any]:
        def guarded(request: Request, ino: int, *arguments: Any) -> Any:
            if request.flags & flag:
                rest = self._clear(request, ino)
                if rest is not None:
                    return self._then(rest, method, request, ino, arguments)
            return method(request, ino, *arguments)

        return guarded

    def _wrap_unflagged(self, method: Callable[..., Any], changed: int) -> Callable[..., Any]:
        """*changed* is the place of the changed node among the arguments."""

        def guarded(request: Request, ino: int, *arguments: Any) -> Any:
            if request.uid:
                rest = self._clear(request, (ino, *arguments)[changed])
                if rest is not None:
                    return self._then(rest, method, request, ino, arguments)
            return method(request, ino, *arguments)

        return guarded

    async def _then(
        self,
        rest: Coroutine[Any, Any, None],
        method: Callable[..., Any],
        request: Request,
        ino: int,
        arguments: tuple[Any, ...],
    ) -> Any:
        await rest
        return await _settled(method(request, ino, *arguments))

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
            rest = self._drop_capability(request, ino)
            if rest is not None:
                await rest
        return await _settled(method(request, ino, changes, handle))

    def _wrap_create(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """A create that truncates what was there already; bits of a new file are those that were asked for."""

        def guarded(request: Request, parent: int, name: bytes, mode: int, umask: int, flags: int) -> Any:
            result = method(request, parent, name, mode, umask, flags)
            if not request.flags & abi.OPEN_KILL_SUIDGID:
                return result
            if type(result) is tuple and not self._has_xattrs and not result[0].mode & _SET_ID & ~mode:
                return result
            return self._clear_created(request, mode, result)

        return guarded

    async def _clear_created(self, request: Request, mode: int, result: Any) -> Any:
        attr, opened = await _settled(result)
        try:
            if attr.mode & _SET_ID & ~mode and self._has_modes:
                attr = await _settled(self._fs.setattr(request, attr.ino, SetAttr(mode=stripped(attr.mode)), None))
            rest = self._drop_capability(request, attr.ino)
            if rest is not None:
                await rest
        except BaseException:
            # The caller sees an error, so the kernel has neither the node nor the handle.
            self._fs.forget(attr.ino, 1)
            await _settled(self._fs.release(request, attr.ino, opened.handle if isinstance(opened, Opened) else opened))
            raise
        return attr, opened
