"""Paths instead of node ids, for simple filesystems.

What the filesystem does is a :class:`PathOperations`, whose methods take paths; :class:`PathFilesystem` makes a Filesystem of
it:

    class Hello(PathOperations):
        def getattr(self, request, path, handle): ...
        def readdir(self, request, path, handle): ...
        def read(self, request, path, handle, offset, size): ...

    serve(PathFilesystem(Hello()), mountpoint)

Paths are bytes, absolute, without a slash at the end: b"/", b"/a/b". A path does not change while the operation that got it
runs: renames and removals wait for those that use it, and those that come meanwhile wait for them. Operations on an open file
that has a handle neither wait nor are waited for; their path says where the file was when they began, and is b"" once it has
no name: use the handle.

Where this stops: no hard links (EPERM); st_ino holds only while the kernel knows the file; no locks, poll or ioctl of one's
own. A filesystem that needs them numbers its nodes and derives from Filesystem.
"""

from __future__ import annotations

import errno
from collections.abc import AsyncIterable, Callable, Coroutine, Iterator
from os import O_EXCL
from stat import S_IFDIR, S_IFMT
from typing import Any, TypeVar

from .abi import RENAME_EXCHANGE
from .errors import errno_of
from .filesystem import Filesystem
from .pathops import Listed, Names, PathOperations
from .pathtree import PathNode, PathTree, stamp
from .types import Attr, Data, DirEntry, Entries, Opened, ReadResult, Request, Result, SetAttr, StatFs

R = TypeVar("R")

UNKNOWN_INO = 0xFFFFFFFF
"""d_ino of a name that has no number yet."""


class _Listing:
    """The handle of an open directory: the filesystem's own, and the names of the walk that goes on."""

    __slots__ = ("handle", "names")

    def __init__(self, handle: Any) -> None:
        self.handle = handle
        self.names: list[Listed] = []


class PathFilesystem(Filesystem):
    """A Filesystem that turns node ids into paths and asks *operations*.

    Its abilities are what the class of *operations* overrides; attributes such as attr_ttl are set here as on any Filesystem.
    """

    def __init__(self, operations: PathOperations) -> None:
        self.operations = operations
        self._tree = PathTree()

    def implements(self, method: str) -> bool:
        """Say whether *operations* support it."""
        if method == "readdirplus":
            method = "readdir"
        if hasattr(PathOperations, method):
            return getattr(type(self.operations), method) is not getattr(PathOperations, method)
        return super().implements(method)

    def ino_of(self, path: bytes) -> int | None:
        """Return the node id of *path*, for the notifier; None when the kernel does not know it."""
        return self._tree.ino_of(path)

    async def init(self) -> None:
        await self.operations.init()

    async def destroy(self) -> None:
        await self.operations.destroy()

    def forget(self, ino: int, nlookup: int) -> None:
        self._tree.forget(ino, nlookup)

    def entered(self, ino: int) -> None:
        self._tree.entered(ino)

    def _on_file(self, ino: int, handle: Any, call: Callable[[bytes], Result[R]]) -> Result[R]:
        """Run an operation on an open file. Without a handle it depends on the path, and so holds it."""
        node = self._tree.inodes[ino]
        if handle is None:
            return self._tree.use((node,), lambda: call(self._tree.named(node)), _same)
        return call(self._tree.path(node))

    def _on_name(self, ino: int, call: Callable[[bytes], Result[R]]) -> Result[R]:
        return self._on_file(ino, None, call)

    # Names and nodes.

    def lookup(self, request: Request, parent: int, name: bytes) -> Result[Attr | None]:
        directory = self._tree.inodes[parent]
        return self._tree.use(
            (directory,),
            lambda: _or_none(lambda: self.operations.getattr(request, self._tree.named(directory, name), None)),
            lambda attr: None if attr is None else self._tree.enter(directory, name, attr),
        )

    def _attr_of(self, node: PathNode, attr: Attr) -> Attr:
        if S_IFMT(attr.mode) != node.type and node is not self._tree.root:
            raise OSError(errno.ESTALE, "another type of file has taken the name")
        return stamp(attr, node.ino)

    def getattr(self, request: Request, ino: int, handle: Any) -> Result[Attr]:
        return self._on_attr(ino, handle, lambda path, handle: self.operations.getattr(request, path, handle))

    def setattr(self, request: Request, ino: int, changes: SetAttr, handle: Any) -> Result[Attr]:
        def call(path: bytes, handle: Any) -> Result[Attr]:
            return self._with_attr(request, path, handle, self.operations.setattr(request, path, changes, handle))

        return self._on_attr(ino, handle, call)

    def _on_attr(self, ino: int, handle: Any, call: Callable[[bytes, Any], Result[Attr]]) -> Result[Attr]:
        """Run an operation that may name an open file; where the node has no name any more, any open file will do."""
        node = self._tree.inodes[ino]
        handle = _own(handle)
        if handle is None and node.handles and not self._tree.path(node):
            handle = node.handles[-1]
        if handle is None:
            return self._tree.use((node,), lambda: call(self._tree.named(node), None), lambda attr: self._attr_of(node, attr))
        return self._tree.use((), lambda: call(self._tree.path(node), handle), lambda attr: self._attr_of(node, attr))

    def _with_attr(self, request: Request, path: bytes, handle: Any, result: Result[Attr | None]) -> Result[Attr]:
        """Ask for the attributes where an operation did not say them."""
        if isinstance(result, Coroutine):
            return self._with_attr_later(request, path, handle, result)
        return self.operations.getattr(request, path, handle) if result is None else result

    async def _with_attr_later(
        self, request: Request, path: bytes, handle: Any, running: Coroutine[Any, Any, Attr | None]
    ) -> Attr:
        result = self._with_attr(request, path, handle, await running)
        return await result if isinstance(result, Coroutine) else result

    def access(self, request: Request, ino: int, mask: int) -> Result[None]:
        return self._on_name(ino, lambda path: self.operations.access(request, path, mask))

    def readlink(self, request: Request, ino: int) -> Result[bytes]:
        return self._on_name(ino, lambda path: self.operations.readlink(request, path))

    def _make(
        self, request: Request, parent: int, name: bytes, operation: Callable[[bytes], Result[Attr | None]]
    ) -> Result[Attr]:
        directory = self._tree.inodes[parent]

        def call() -> Result[Attr]:
            path = self._tree.named(directory, name)
            return self._with_attr(request, path, None, operation(path))

        return self._tree.use((directory,), call, lambda attr: self._tree.enter(directory, name, attr, fresh=True))

    def mknod(self, request: Request, parent: int, name: bytes, mode: int, rdev: int, umask: int) -> Result[Attr]:
        return self._make(request, parent, name, lambda path: self.operations.mknod(request, path, mode, rdev))

    def mkdir(self, request: Request, parent: int, name: bytes, mode: int, umask: int) -> Result[Attr]:
        return self._make(request, parent, name, lambda path: self.operations.mkdir(request, path, mode))

    def symlink(self, request: Request, parent: int, name: bytes, target: bytes) -> Result[Attr]:
        return self._make(request, parent, name, lambda path: self.operations.symlink(request, path, target))

    def _remove(self, parent: int, name: bytes, operation: Callable[[bytes], Result[None]]) -> Result[None]:
        directory = self._tree.inodes[parent]
        return self._tree.change(
            ((directory, name),),
            lambda: operation(self._tree.named(directory, name)),
            lambda: self._tree.remove(directory, name),
        )

    def unlink(self, request: Request, parent: int, name: bytes) -> Result[None]:
        return self._remove(parent, name, lambda path: self.operations.unlink(request, path))

    def rmdir(self, request: Request, parent: int, name: bytes) -> Result[None]:
        return self._remove(parent, name, lambda path: self.operations.rmdir(request, path))

    def rename(self, request: Request, parent: int, name: bytes, newparent: int, newname: bytes, flags: int) -> Result[None]:
        if flags & ~self.operations.rename_flags:
            raise OSError(errno.EINVAL, f"rename cannot do the flags {flags & ~self.operations.rename_flags:#x}")
        old, new = self._tree.inodes[parent], self._tree.inodes[newparent]
        return self._tree.change(
            ((old, name), (new, newname)),
            lambda: self.operations.rename(request, self._tree.named(old, name), self._tree.named(new, newname), flags),
            lambda: self._tree.rename(old, name, new, newname, exchange=bool(flags & RENAME_EXCHANGE)),
        )

    # Files.

    def _opened(self, node: PathNode, result: Any) -> Any:
        handle = result.handle if isinstance(result, Opened) else result
        if handle is not None:
            node.handles.append(handle)
        return result

    def open(self, request: Request, ino: int, flags: int) -> Result[Any]:
        node = self._tree.inodes[ino]
        return self._tree.use(
            (node,),
            lambda: self.operations.open(request, self._tree.named(node), flags),
            lambda result: self._opened(node, result),
        )

    def create(self, request: Request, parent: int, name: bytes, mode: int, umask: int, flags: int) -> Result[tuple[Attr, Any]]:
        directory = self._tree.inodes[parent]

        def call() -> Result[tuple[Attr, Any]]:
            path = self._tree.named(directory, name)
            return self._created(request, path, self.operations.create(request, path, mode, flags))

        def then(result: tuple[Attr, Any]) -> tuple[Attr, Any]:
            attr = self._tree.enter(directory, name, result[0], fresh=bool(flags & O_EXCL))
            return attr, self._opened(self._tree.inodes[attr.ino], result[1])

        return self._tree.use((directory,), call, then)

    def _created(self, request: Request, path: bytes, result: Result[tuple[Attr | None, Any]]) -> Result[tuple[Attr, Any]]:
        if isinstance(result, Coroutine):
            return self._created_later(request, path, result)
        attr = self._with_attr(request, path, None, result[0])
        if isinstance(attr, Coroutine):
            return _paired(attr, result[1])
        return attr, result[1]

    async def _created_later(
        self, request: Request, path: bytes, running: Coroutine[Any, Any, tuple[Attr | None, Any]]
    ) -> tuple[Attr, Any]:
        result = self._created(request, path, await running)
        return await result if isinstance(result, Coroutine) else result

    def read(self, request: Request, ino: int, handle: Any, offset: int, size: int) -> Result[ReadResult]:
        return self._on_file(ino, handle, lambda path: self.operations.read(request, path, handle, offset, size))

    def write(self, request: Request, ino: int, handle: Any, offset: int, data: memoryview) -> Result[int]:
        return self._on_file(ino, handle, lambda path: self.operations.write(request, path, handle, offset, data))

    def flush(self, request: Request, ino: int, handle: Any, lock_owner: int) -> Result[None]:
        return self._on_file(ino, handle, lambda path: self.operations.flush(request, path, handle))

    def fsync(self, request: Request, ino: int, handle: Any, datasync: int) -> Result[None]:
        return self._on_file(ino, handle, lambda path: self.operations.fsync(request, path, handle, datasync))

    def fallocate(self, request: Request, ino: int, handle: Any, mode: int, offset: int, length: int) -> Result[None]:
        return self._on_file(ino, handle, lambda path: self.operations.fallocate(request, path, handle, mode, offset, length))

    def release(self, request: Request, ino: int, handle: Any) -> Result[None]:
        node = self._tree.inodes[ino]
        _remove_same(node.handles, handle)
        return self.operations.release(request, self._tree.path(node), handle)

    # Directories.

    def opendir(self, request: Request, ino: int, flags: int) -> Result[Any]:
        node = self._tree.inodes[ino]

        def then(result: Any) -> Opened:
            self._opened(node, result)
            if isinstance(result, Opened):
                return Opened(_Listing(result.handle), result.flags)
            return Opened(_Listing(result))

        return self._tree.use((node,), lambda: self.operations.opendir(request, self._tree.named(node), flags), then)

    def readdir(self, request: Request, ino: int, handle: Any, offset: int) -> Result[Entries]:
        return self._list(request, ino, handle, offset, plus=False)

    def readdirplus(self, request: Request, ino: int, handle: Any, offset: int) -> Result[Entries]:
        return self._list(request, ino, handle, offset, plus=True)

    def _list(self, request: Request, ino: int, handle: Any, offset: int, plus: bool) -> Result[Entries]:
        node = self._tree.inodes[ino]
        listing: _Listing = handle if isinstance(handle, _Listing) else _Listing(handle)
        if offset and listing is handle:
            return self._entries(node, listing.names, offset, plus)

        def call() -> Result[Names]:
            names = self.operations.readdir(request, self._tree.named(node), listing.handle)
            return _gathered(names) if isinstance(names, AsyncIterable) else names

        def then(names: Names) -> Entries:
            listing.names = [entry for entry in names if _name_of(entry) not in (b".", b"..")]
            return self._entries(node, listing.names, offset, plus)

        return self._tree.use((node,), call, then)

    def _entries(self, node: PathNode, names: list[Listed], offset: int, plus: bool) -> Iterator[DirEntry]:
        """Go through the entries behind the cookie *offset*; the first two are the dots."""
        if offset < 1:
            yield DirEntry(b".", node.ino, S_IFDIR, 1)
        if offset < 2:
            yield DirEntry(b"..", node.parent.ino or UNKNOWN_INO if node.parent else node.ino, S_IFDIR, 2)
        for index in range(max(0, offset - 2), len(names)):
            entry = names[index]
            name = _name_of(entry)
            attr = entry[1] if isinstance(entry, tuple) else None
            child = node.children.get(name)
            ino = child.ino if child is not None else 0
            if plus and attr is not None:
                ino = self._tree.offer(node, name, attr)
                yield DirEntry(name, ino, attr.mode, index + 3, stamp(attr, ino))
            else:
                yield DirEntry(name, ino or UNKNOWN_INO, attr.mode if attr is not None else 0, index + 3)

    def releasedir(self, request: Request, ino: int, handle: Any) -> Result[None]:
        node = self._tree.inodes[ino]
        _remove_same(node.handles, _own(handle))
        return self.operations.releasedir(request, self._tree.path(node), _own(handle))

    def fsyncdir(self, request: Request, ino: int, handle: Any, datasync: int) -> Result[None]:
        return self._on_name(ino, lambda path: self.operations.fsyncdir(request, path, _own(handle), datasync))

    # Extended attributes, and the whole.

    def getxattr(self, request: Request, ino: int, name: bytes) -> Result[Data]:
        return self._on_name(ino, lambda path: self.operations.getxattr(request, path, name))

    def setxattr(self, request: Request, ino: int, name: bytes, value: memoryview, flags: int) -> Result[None]:
        return self._on_name(ino, lambda path: self.operations.setxattr(request, path, name, value, flags))

    def listxattr(self, request: Request, ino: int) -> Result[list[bytes]]:
        return self._on_name(ino, lambda path: self.operations.listxattr(request, path))

    def removexattr(self, request: Request, ino: int, name: bytes) -> Result[None]:
        return self._on_name(ino, lambda path: self.operations.removexattr(request, path, name))

    def statfs(self, request: Request, ino: int) -> Result[StatFs]:
        return self.operations.statfs(request, self._tree.path(self._tree.inodes[ino]) or b"/")


def _same(value: R) -> R:
    return value


def _own(handle: Any) -> Any:
    """Return the filesystem's own handle of a directory."""
    return handle.handle if isinstance(handle, _Listing) else handle


def _remove_same(handles: list[Any], handle: Any) -> None:
    """Remove the very object, whatever it is equal to."""
    for index, other in enumerate(handles):
        if other is handle:
            del handles[index]
            return


def _name_of(entry: Listed) -> bytes:
    return entry[0] if isinstance(entry, tuple) else entry


def _or_none(call: Callable[[], Result[Attr]]) -> Result[Attr | None]:
    """Return None for ENOENT."""
    try:
        result = call()
    except OSError as error:
        if errno_of(error) == errno.ENOENT:
            return None
        raise
    return _or_none_later(result) if isinstance(result, Coroutine) else result


async def _or_none_later(running: Coroutine[Any, Any, Attr]) -> Attr | None:
    try:
        return await running
    except OSError as error:
        if errno_of(error) == errno.ENOENT:
            return None
        raise


async def _paired(running: Coroutine[Any, Any, Attr], opened: Any) -> tuple[Attr, Any]:
    return await running, opened


async def _gathered(names: AsyncIterable[Listed]) -> Names:
    return [entry async for entry in names]


__all__ = ["PathFilesystem"]
