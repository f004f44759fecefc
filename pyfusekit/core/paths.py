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
from collections.abc import AsyncIterable, Callable, Coroutine, Iterable, Iterator
from copy import copy
from os import O_EXCL
from stat import S_IFDIR, S_IFMT
from typing import TYPE_CHECKING, Any, TypeVar

from .errors import errno_of
from .filesystem import Filesystem
from .inodes import ROOT_ID, InodeTable
from .types import Attr, Data, DirEntry, Entries, Opened, ReadResult, Request, Result, SetAttr, StatFs

if TYPE_CHECKING:
    import asyncio

R = TypeVar("R")
S = TypeVar("S")

Names = Iterable[bytes | tuple[bytes, Attr]]
"""A directory's contents: names, or pairs of a name and its Attr, which saves the kernel a question each."""

_RENAME_EXCHANGE = 1 << 1

UNKNOWN_INO = 0xFFFFFFFF
"""d_ino of a name that has no number yet."""


def _absent(operation: str) -> OSError:
    return OSError(errno.ENOSYS, f"{operation} is not implemented")


class PathOperations:
    """A filesystem in terms of paths: override what you support, with ``def`` or ``async def``.

    The methods are those of Filesystem, which says more about each, with *path* for the node; what is not overridden is
    answered as there. Attr.ino need not be set. Raise OSError; ENOENT where there is no such file.
    """

    rename_flags: int = 0
    """Which of RENAME_NOREPLACE, RENAME_EXCHANGE and RENAME_WHITEOUT ``rename`` does; the others are EINVAL without asking."""

    async def init(self) -> None:
        """Begin; called before mounting."""

    async def destroy(self) -> None:
        """End; called once, when the mount is gone."""

    def getattr(self, request: Request, path: bytes, handle: Any) -> Result[Attr]:
        """Return the attributes; ENOENT when there is no such file. Must be overridden: every lookup asks this.

        *handle* is an open file's or None; it is given for a file that has no name any more.
        """
        raise _absent("getattr")

    def setattr(self, request: Request, path: bytes, changes: SetAttr, handle: Any) -> Result[Attr | None]:
        """Change what *changes* names; return the new attributes, or None to be asked for them. As all that makes files."""
        raise _absent("setattr")

    def access(self, request: Request, path: bytes, mask: int) -> Result[None]:
        """Raise EACCES unless the caller may do *mask*; only without default_permissions."""
        raise _absent("access")

    def readlink(self, request: Request, path: bytes) -> Result[bytes]:
        """Return the target of a symbolic link."""
        raise _absent("readlink")

    def mknod(self, request: Request, path: bytes, mode: int, rdev: int) -> Result[Attr | None]:
        """Make a file; *mode* has its type."""
        raise _absent("mknod")

    def mkdir(self, request: Request, path: bytes, mode: int) -> Result[Attr | None]:
        """Make a directory; *mode* may lack S_IFDIR."""
        raise _absent("mkdir")

    def symlink(self, request: Request, path: bytes, target: bytes) -> Result[Attr | None]:
        """Make a symbolic link."""
        raise _absent("symlink")

    def unlink(self, request: Request, path: bytes) -> Result[None]:
        """Remove a name. Who has the file open goes on using it by its handle."""
        raise _absent("unlink")

    def rmdir(self, request: Request, path: bytes) -> Result[None]:
        """Remove an empty directory."""
        raise _absent("rmdir")

    def rename(self, request: Request, path: bytes, newpath: bytes, flags: int) -> Result[None]:
        """Move a file, or a directory with all that is in it; *flags* are among rename_flags."""
        raise _absent("rename")

    def open(self, request: Request, path: bytes, flags: int) -> Result[Any]:
        """Open; return any object as its handle, or an Opened. Not overridden: None."""
        return None

    def create(self, request: Request, path: bytes, mode: int, flags: int) -> Result[tuple[Attr | None, Any]]:
        """Make a file and open it: (Attr or None, what open returns). Not overridden: mknod and open."""
        raise _absent("create")

    def read(self, request: Request, path: bytes, handle: Any, offset: int, size: int) -> Result[ReadResult]:
        """Return at most *size* bytes from *offset*; fewer mean the end of the file."""
        raise _absent("read")

    def write(self, request: Request, path: bytes, handle: Any, offset: int, data: memoryview) -> Result[int]:
        """Write *data*, which is only valid until this returns, and return its length."""
        raise _absent("write")

    def flush(self, request: Request, path: bytes, handle: Any) -> Result[None]:
        """A descriptor was closed; errors are close(2)'s."""
        raise _absent("flush")

    def release(self, request: Request, path: bytes, handle: Any) -> Result[None]:
        """The last descriptor of *handle* is gone; called once."""
        return None

    def fsync(self, request: Request, path: bytes, handle: Any, datasync: int) -> Result[None]:
        """Make the file survive a crash."""
        raise _absent("fsync")

    def fallocate(self, request: Request, path: bytes, handle: Any, mode: int, offset: int, length: int) -> Result[None]:
        """Reserve or free space."""
        raise _absent("fallocate")

    def opendir(self, request: Request, path: bytes, flags: int) -> Result[Any]:
        """Open a directory; as open. Not overridden: None."""
        return None

    def readdir(self, request: Request, path: bytes, handle: Any) -> Result[Names] | AsyncIterable[bytes | tuple[bytes, Attr]]:
        """Return everything in the directory; "." and ".." are added. Asked once for each walk through it."""
        raise _absent("readdir")

    def releasedir(self, request: Request, path: bytes, handle: Any) -> Result[None]:
        """The last descriptor of a directory's handle is gone."""
        return None

    def fsyncdir(self, request: Request, path: bytes, handle: Any, datasync: int) -> Result[None]:
        """Make the directory's names survive a crash."""
        raise _absent("fsyncdir")

    def getxattr(self, request: Request, path: bytes, name: bytes) -> Result[Data]:
        """Return a value; ENODATA."""
        raise _absent("getxattr")

    def setxattr(self, request: Request, path: bytes, name: bytes, value: memoryview, flags: int) -> Result[None]:
        """Set a value."""
        raise _absent("setxattr")

    def listxattr(self, request: Request, path: bytes) -> Result[list[bytes]]:
        """Return the names."""
        raise _absent("listxattr")

    def removexattr(self, request: Request, path: bytes, name: bytes) -> Result[None]:
        """Remove a value; ENODATA."""
        raise _absent("removexattr")

    def statfs(self, request: Request, path: bytes) -> Result[StatFs]:
        """Return the totals. Not overridden: zeros."""
        return StatFs()


class _Node:
    """A name that the kernel knows, or that leads to one."""

    __slots__ = ("children", "handles", "ino", "moving", "name", "parent", "type", "users")

    def __init__(self) -> None:
        self.ino = 0
        """0 while the kernel does not know it."""
        self.type = 0
        self.name = b""
        self.parent: _Node | None = None
        """None for the root, and for what has no name any more."""
        self.children: dict[bytes, _Node] = {}
        self.handles: list[Any] = []
        """Of its open files, those that are not None."""
        self.users = 0
        """How many operations rely on this name, for the node itself or one below it."""
        self.moving = False
        """A rename or removal of this name waits or runs."""

    def way_up(self) -> Iterator[_Node]:
        """Go from here to the root."""
        node: _Node | None = self
        while node is not None:
            yield node
            node = node.parent


class _Listing:
    """The handle of an open directory: the filesystem's own, and the names of the walk that goes on."""

    __slots__ = ("handle", "names")

    def __init__(self, handle: Any) -> None:
        self.handle = handle
        self.names: list[bytes | tuple[bytes, Attr]] = []


Targets = tuple[_Node, ...]
"""Nodes that a rename or removal takes for itself."""


class PathFilesystem(Filesystem):
    """A Filesystem that turns node ids into paths and asks *operations*.

    Its abilities are what the class of *operations* overrides; attributes such as attr_ttl are set here as on any Filesystem.
    """

    def __init__(self, operations: PathOperations) -> None:
        self.operations = operations
        self._root = _Node()
        self._root.ino, self._root.type = ROOT_ID, S_IFDIR
        self._inodes: InodeTable[_Node] = InodeTable(self._root)
        self._offered: tuple[_Node, _Node, bytes] | None = None
        """(node, parent, name) of the listing entry that the core is packing, if the kernel does not know it yet."""
        self._moving = 0
        self._waiters: list[asyncio.Future[None]] = []

    def implements(self, method: str) -> bool:
        """Say whether *operations* support it."""
        if method == "readdirplus":
            method = "readdir"
        if hasattr(PathOperations, method):
            return getattr(type(self.operations), method) is not getattr(PathOperations, method)
        return super().implements(method)

    def ino_of(self, path: bytes) -> int | None:
        """Return the node id of *path*, for the notifier; None when the kernel does not know it."""
        node: _Node | None = self._root
        for name in path.split(b"/"):
            if name:
                node = node.children.get(name) if node is not None else None
        return node.ino or None if node is not None else None

    async def init(self) -> None:
        await self.operations.init()

    async def destroy(self) -> None:
        await self.operations.destroy()

    # The tree of names.

    def _path(self, node: _Node, *names: bytes) -> bytes:
        """Return the path of *node*, or of a name in it; b"" when it has none any more."""
        parts = list(names)
        for step in node.way_up():
            if step.parent is None:
                return b"/" + b"/".join(parts) if step is self._root else b""
            parts.insert(0, step.name)
        raise AssertionError("way_up has no end")

    def _named(self, node: _Node, *names: bytes) -> bytes:
        """As _path, but ESTALE when there is none."""
        path = self._path(node, *names)
        if not path:
            raise OSError(errno.ESTALE, f"node {node.ino} has no name any more")
        return path

    def _detach(self, node: _Node | None) -> None:
        """Take a node's name away: it was removed or replaced."""
        if node is not None and node.parent is not None:
            parent, node.parent = node.parent, None
            del parent.children[node.name]
            self._prune(parent)

    def _attach(self, node: _Node, parent: _Node, name: bytes) -> None:
        """Give *node* the name, instead of whoever has it."""
        former = parent.children.get(name)
        if former is not None and former is not node:
            former.parent = None
        node.parent, node.name = parent, name
        parent.children[name] = node

    def _prune(self, node: _Node) -> None:
        """Drop a node that the kernel does not know and that leads nowhere, and then those above it."""
        while not node.ino and not node.children and node.parent is not None:
            parent, node.parent = node.parent, None
            del parent.children[node.name]
            node = parent

    def _enter(self, parent: _Node, name: bytes, attr: Attr, fresh: bool = False) -> Attr:
        """Count a lookup of *name*; return *attr* with its number. A *fresh* file, or one of another type, is another node."""
        node = parent.children.get(name)
        if node is None or fresh or node.type != S_IFMT(attr.mode):
            node = _Node()
            self._attach(node, parent, name)
        if not node.ino:
            node.ino = self._inodes.add(node)
        node.type = S_IFMT(attr.mode)
        self._inodes.enter(node.ino)
        return _stamp(attr, node.ino)

    def forget(self, ino: int, nlookup: int) -> None:
        node = self._inodes.forget(ino, nlookup)
        if node is not None:
            node.ino = 0
            self._prune(node)

    def entered(self, ino: int) -> None:
        if self._offered is not None and self._offered[0].ino == ino:
            self._attach(*self._offered)
            self._offered = None
        self._inodes.enter(ino)

    # Holding paths still.

    def _is_moving(self, nodes: Iterable[_Node]) -> bool:
        return self._moving > 0 and any(step.moving for node in nodes for step in node.way_up())

    def _hold(self, nodes: Iterable[_Node]) -> list[_Node]:
        held = [step for node in nodes for step in node.way_up()]
        for step in held:
            step.users += 1
        return held

    def _let_go(self, held: list[_Node], targets: Targets = ()) -> None:
        for step in held:
            step.users -= 1
        for target in targets:
            target.moving = False
            self._moving -= 1
        for future in self._waiters:
            if not future.done():
                future.set_result(None)
        self._waiters.clear()

    async def _change(self) -> None:
        """Wait until somebody lets go."""
        import asyncio

        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(future)
        await future

    def _do(self, nodes: Targets, call: Callable[[], Result[R]], then: Callable[[R], S]) -> Result[S]:
        """Return what *then* makes of *call*'s result; the paths of *nodes* do not change until then.

        The session begins every coroutine that it was given, so what is held here is let go.
        """
        if self._is_moving(nodes):
            return self._do_later(nodes, call, then)
        result = call()
        if isinstance(result, Coroutine):
            return self._finish(result, then, self._hold(nodes))
        return then(result)

    async def _do_later(self, nodes: Targets, call: Callable[[], Result[R]], then: Callable[[R], S]) -> S:
        while self._is_moving(nodes):
            await self._change()
        result = call()
        if isinstance(result, Coroutine):
            return await self._finish(result, then, self._hold(nodes))
        return then(result)

    async def _finish(
        self, running: Coroutine[Any, Any, R], then: Callable[[R], S], held: list[_Node], targets: Targets = ()
    ) -> S:
        try:
            return then(await running)
        finally:
            self._let_go(held, targets)

    def _alone(
        self,
        parents: Targets,
        find: Callable[[], Targets],
        call: Callable[[], Result[R]],
        then: Callable[[R], None],
    ) -> Result[None]:
        """As _do for an operation that changes the names of the nodes that *find* returns: it waits for who uses them."""
        targets = find()
        if self._is_moving((*parents, *targets)) or any(target.users for target in targets):
            return self._alone_later(parents, find, call, then)
        result = call()
        if isinstance(result, Coroutine):
            return self._finish(result, then, self._claim(parents, targets), targets)
        then(result)
        return None

    def _claim(self, parents: Targets, targets: Targets) -> list[_Node]:
        for target in targets:
            target.moving = True
            self._moving += 1
        return self._hold(parents)

    async def _alone_later(
        self,
        parents: Targets,
        find: Callable[[], Targets],
        call: Callable[[], Result[R]],
        then: Callable[[R], None],
    ) -> None:
        while self._is_moving((*parents, *(targets := find()))):
            await self._change()
        held = self._claim(parents, targets)
        try:
            while any(target.users for target in targets):
                await self._change()
            result = call()
            then(await result if isinstance(result, Coroutine) else result)
        finally:
            self._let_go(held, targets)

    def _on_file(self, ino: int, handle: Any, call: Callable[[bytes], Result[R]]) -> Result[R]:
        """Run an operation on an open file. Without a handle it depends on the path, and so holds it."""
        node = self._inodes[ino]
        if handle is None:
            return self._do((node,), lambda: call(self._named(node)), _same)
        return call(self._path(node))

    def _on_name(self, ino: int, call: Callable[[bytes], Result[R]]) -> Result[R]:
        return self._on_file(ino, None, call)

    # Names and nodes.

    def lookup(self, request: Request, parent: int, name: bytes) -> Result[Attr | None]:
        directory = self._inodes[parent]
        return self._do(
            (directory,),
            lambda: _or_none(lambda: self.operations.getattr(request, self._named(directory, name), None)),
            lambda attr: None if attr is None else self._enter(directory, name, attr),
        )

    def _attr_of(self, node: _Node, attr: Attr) -> Attr:
        if S_IFMT(attr.mode) != node.type and node is not self._root:
            raise OSError(errno.ESTALE, "another type of file has taken the name")
        return _stamp(attr, node.ino)

    def getattr(self, request: Request, ino: int, handle: Any) -> Result[Attr]:
        node = self._inodes[ino]
        handle = _own(handle)
        if handle is None and node.handles and not self._path(node):
            handle = node.handles[-1]
        nodes = (node,) if handle is None else ()

        def call() -> Result[Attr]:
            path = self._path(node) if handle is not None else self._named(node)
            return self.operations.getattr(request, path, handle)

        return self._do(nodes, call, lambda attr: self._attr_of(node, attr))

    def setattr(self, request: Request, ino: int, changes: SetAttr, handle: Any) -> Result[Attr]:
        node = self._inodes[ino]
        handle = _own(handle)
        if handle is None and node.handles and not self._path(node):
            handle = node.handles[-1]

        def call() -> Result[Attr]:
            path = self._path(node) if handle is not None else self._named(node)
            return self._with_attr(request, path, handle, self.operations.setattr(request, path, changes, handle))

        return self._do((node,) if handle is None else (), call, lambda attr: self._attr_of(node, attr))

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
        directory = self._inodes[parent]

        def call() -> Result[Attr]:
            path = self._named(directory, name)
            return self._with_attr(request, path, None, operation(path))

        return self._do((directory,), call, lambda attr: self._enter(directory, name, attr, fresh=True))

    def mknod(self, request: Request, parent: int, name: bytes, mode: int, rdev: int, umask: int) -> Result[Attr]:
        return self._make(request, parent, name, lambda path: self.operations.mknod(request, path, mode, rdev))

    def mkdir(self, request: Request, parent: int, name: bytes, mode: int, umask: int) -> Result[Attr]:
        return self._make(request, parent, name, lambda path: self.operations.mkdir(request, path, mode))

    def symlink(self, request: Request, parent: int, name: bytes, target: bytes) -> Result[Attr]:
        return self._make(request, parent, name, lambda path: self.operations.symlink(request, path, target))

    def _remove(self, parent: int, name: bytes, operation: Callable[[bytes], Result[None]]) -> Result[None]:
        directory = self._inodes[parent]
        return self._alone(
            (directory,),
            lambda: _known(directory.children.get(name)),
            lambda: operation(self._named(directory, name)),
            lambda _: self._detach(directory.children.get(name)),
        )

    def unlink(self, request: Request, parent: int, name: bytes) -> Result[None]:
        return self._remove(parent, name, lambda path: self.operations.unlink(request, path))

    def rmdir(self, request: Request, parent: int, name: bytes) -> Result[None]:
        return self._remove(parent, name, lambda path: self.operations.rmdir(request, path))

    def rename(self, request: Request, parent: int, name: bytes, newparent: int, newname: bytes, flags: int) -> Result[None]:
        if flags & ~self.operations.rename_flags:
            raise OSError(errno.EINVAL, f"rename cannot do the flags {flags & ~self.operations.rename_flags:#x}")
        old, new = self._inodes[parent], self._inodes[newparent]

        def move(_: None) -> None:
            source, target = old.children.get(name), new.children.get(newname)
            if source is target:
                return
            self._detach(target)
            self._detach(source)
            if source is not None:
                self._attach(source, new, newname)
            if target is not None and flags & _RENAME_EXCHANGE:
                self._attach(target, old, name)

        return self._alone(
            (old, new),
            lambda: _known(old.children.get(name), new.children.get(newname)),
            lambda: self.operations.rename(request, self._named(old, name), self._named(new, newname), flags),
            move,
        )

    # Files.

    def _opened(self, node: _Node, result: Any) -> Any:
        handle = result.handle if isinstance(result, Opened) else result
        if handle is not None:
            node.handles.append(handle)
        return result

    def open(self, request: Request, ino: int, flags: int) -> Result[Any]:
        node = self._inodes[ino]
        return self._do(
            (node,),
            lambda: self.operations.open(request, self._named(node), flags),
            lambda result: self._opened(node, result),
        )

    def create(self, request: Request, parent: int, name: bytes, mode: int, umask: int, flags: int) -> Result[tuple[Attr, Any]]:
        directory = self._inodes[parent]

        def call() -> Result[tuple[Attr, Any]]:
            path = self._named(directory, name)
            return self._created(request, path, self.operations.create(request, path, mode, flags))

        def then(result: tuple[Attr, Any]) -> tuple[Attr, Any]:
            attr = self._enter(directory, name, result[0], fresh=bool(flags & O_EXCL))
            return attr, self._opened(self._inodes[attr.ino], result[1])

        return self._do((directory,), call, then)

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
        node = self._inodes[ino]
        _remove_same(node.handles, handle)
        return self.operations.release(request, self._path(node), handle)

    # Directories.

    def opendir(self, request: Request, ino: int, flags: int) -> Result[Any]:
        node = self._inodes[ino]

        def then(result: Any) -> Opened:
            self._opened(node, result)
            if isinstance(result, Opened):
                return Opened(_Listing(result.handle), result.flags)
            return Opened(_Listing(result))

        return self._do((node,), lambda: self.operations.opendir(request, self._named(node), flags), then)

    def readdir(self, request: Request, ino: int, handle: Any, offset: int) -> Result[Entries]:
        return self._list(request, ino, handle, offset, plus=False)

    def readdirplus(self, request: Request, ino: int, handle: Any, offset: int) -> Result[Entries]:
        return self._list(request, ino, handle, offset, plus=True)

    def _list(self, request: Request, ino: int, handle: Any, offset: int, plus: bool) -> Result[Entries]:
        node = self._inodes[ino]
        listing: _Listing = handle if isinstance(handle, _Listing) else _Listing(handle)
        if offset and listing is handle:
            return self._entries(node, listing.names, offset, plus)

        def call() -> Result[Names]:
            names = self.operations.readdir(request, self._named(node), listing.handle)
            return _gathered(names) if isinstance(names, AsyncIterable) else names

        def then(names: Names) -> Entries:
            listing.names = [entry for entry in names if _name_of(entry) not in (b".", b"..")]
            return self._entries(node, listing.names, offset, plus)

        return self._do((node,), call, then)

    def _entries(self, node: _Node, names: list[bytes | tuple[bytes, Attr]], offset: int, plus: bool) -> Iterator[DirEntry]:
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
                ino = self._offer(node, name, attr)
                yield DirEntry(name, ino, attr.mode, index + 3, _stamp(attr, ino))
            else:
                yield DirEntry(name, ino or UNKNOWN_INO, attr.mode if attr is not None else 0, index + 3)

    def _offer(self, parent: _Node, name: bytes, attr: Attr) -> int:
        """Return a number for an entry of a listing; it is used when the core says that the entry fitted in (entered)."""
        if self._offered is not None:
            self._inodes.discard(self._offered[0].ino)
            self._offered = None
        node = parent.children.get(name)
        if node is None or node.type != S_IFMT(attr.mode):
            node = _Node()
        if not node.ino:
            node.type = S_IFMT(attr.mode)
            node.ino = self._inodes.add(node)
            self._offered = (node, parent, name)
        return node.ino

    def releasedir(self, request: Request, ino: int, handle: Any) -> Result[None]:
        node = self._inodes[ino]
        _remove_same(node.handles, _own(handle))
        return self.operations.releasedir(request, self._path(node), _own(handle))

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
        return self.operations.statfs(request, self._path(self._inodes[ino]) or b"/")


def _same(value: R) -> R:
    return value


def _known(*nodes: _Node | None) -> Targets:
    return tuple(node for node in dict.fromkeys(nodes) if node is not None)


def _own(handle: Any) -> Any:
    """Return the filesystem's own handle of a directory."""
    return handle.handle if isinstance(handle, _Listing) else handle


def _remove_same(handles: list[Any], handle: Any) -> None:
    """Remove the very object, whatever it is equal to."""
    for index, other in enumerate(handles):
        if other is handle:
            del handles[index]
            return


def _name_of(entry: bytes | tuple[bytes, Attr]) -> bytes:
    return entry[0] if isinstance(entry, tuple) else entry


def _stamp(attr: Attr, ino: int) -> Attr:
    """Return *attr* with its number; a copy when it already serves another file."""
    if attr.ino != ino:
        if attr.ino:
            attr = copy(attr)
        attr.ino = ino
    return attr


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


async def _gathered(names: AsyncIterable[bytes | tuple[bytes, Attr]]) -> Names:
    return [entry async for entry in names]


__all__ = ["PathFilesystem", "PathOperations"]
