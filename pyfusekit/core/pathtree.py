"""The names behind the node ids of a PathFilesystem, and who relies on them staying as they are."""

from __future__ import annotations

import errno
from collections.abc import Callable, Coroutine, Iterable, Iterator
from copy import copy
from stat import S_IFDIR, S_IFMT
from typing import TYPE_CHECKING, Any, TypeVar

from .abi import ROOT_ID
from .inodes import InodeTable
from .types import Attr, Result

if TYPE_CHECKING:
    import asyncio

R = TypeVar("R")
S = TypeVar("S")


class PathNode:
    """A name that the kernel knows, or that leads to one."""

    __slots__ = ("children", "handles", "ino", "moving", "name", "parent", "type", "users")

    def __init__(self) -> None:
        self.ino = 0
        """0 while the kernel does not know it."""
        self.type = 0
        self.name = b""
        self.parent: PathNode | None = None
        """None for the root, and for what has no name any more."""
        self.children: dict[bytes, PathNode] = {}
        self.handles: list[Any] = []
        """Of its open files, those that are not None."""
        self.users = 0
        """How many operations rely on this name, for the node itself or one below it."""
        self.moving = False
        """A rename or removal of this name waits or runs."""

    def way_up(self) -> Iterator[PathNode]:
        """Go from here to the root."""
        node: PathNode | None = self
        while node is not None:
            yield node
            node = node.parent


Nodes = tuple[PathNode, ...]
Place = tuple[PathNode, bytes]
"""A name in a directory, whether a file has it or not."""


class PathTree:
    """The nodes that the kernel knows, by id and by name."""

    __slots__ = ("_moving", "_offered", "_waiters", "inodes", "root")

    def __init__(self) -> None:
        self.root = PathNode()
        self.root.ino, self.root.type = ROOT_ID, S_IFDIR
        self.inodes: InodeTable[PathNode] = InodeTable(self.root)
        self._offered: tuple[PathNode, PathNode, bytes] | None = None
        """(node, parent, name) of the listing entry that the core is packing, if the kernel does not know it yet."""
        self._moving = 0
        """How many nodes are moving."""
        self._waiters: list[asyncio.Future[None]] = []
        """Of those who wait until somebody lets go."""

    # Names.

    def path(self, node: PathNode, *names: bytes) -> bytes:
        """Return the path of *node*, or of a name in it; b"" when it has none any more."""
        parts = list(names)
        for step in node.way_up():
            if step.parent is None:
                return b"/" + b"/".join(parts) if step is self.root else b""
            parts.insert(0, step.name)
        raise AssertionError("way_up has no end")

    def named(self, node: PathNode, *names: bytes) -> bytes:
        """As path, but ESTALE when there is none."""
        path = self.path(node, *names)
        if not path:
            raise OSError(errno.ESTALE, f"node {node.ino} has no name any more")
        return path

    def ino_of(self, path: bytes) -> int | None:
        """Return the node id of *path*; None when the kernel does not know it."""
        node: PathNode | None = self.root
        for name in path.split(b"/"):
            if name:
                node = node.children.get(name) if node is not None else None
        return node.ino or None if node is not None else None

    def remove(self, parent: PathNode, name: bytes) -> None:
        """Take the name away from whoever has it: it was removed."""
        self._detach(parent.children.get(name))

    def rename(self, parent: PathNode, name: bytes, newparent: PathNode, newname: bytes, *, exchange: bool) -> None:
        """Give the new name to who has the old one; with *exchange* the old one to who had the new one."""
        source, target = parent.children.get(name), newparent.children.get(newname)
        if source is target:
            return
        self._detach(target)
        self._detach(source)
        if source is not None:
            self._attach(source, newparent, newname)
        if target is not None and exchange:
            self._attach(target, parent, name)

    def _detach(self, node: PathNode | None) -> None:
        """Take a node's name away."""
        if node is not None and node.parent is not None:
            parent, node.parent = node.parent, None
            del parent.children[node.name]
            self._prune(parent)

    def _attach(self, node: PathNode, parent: PathNode, name: bytes) -> None:
        """Give *node* the name, instead of whoever has it."""
        former = parent.children.get(name)
        if former is not None and former is not node:
            former.parent = None
        node.parent, node.name = parent, name
        parent.children[name] = node

    def _prune(self, node: PathNode) -> None:
        """Drop a node that the kernel does not know and that leads nowhere, and then those above it."""
        while not node.ino and not node.children and node.parent is not None:
            parent, node.parent = node.parent, None
            del parent.children[node.name]
            node = parent

    # What the kernel knows.

    def enter(self, parent: PathNode, name: bytes, attr: Attr, *, fresh: bool = False) -> Attr:
        """Count a lookup of *name*; return *attr* with its number. A *fresh* file, or one of another type, is another node."""
        node = parent.children.get(name)
        if node is None or fresh or node.type != S_IFMT(attr.mode):
            node = PathNode()
            self._attach(node, parent, name)
        if not node.ino:
            node.ino = self.inodes.add(node)
        node.type = S_IFMT(attr.mode)
        self.inodes.enter(node.ino)
        return stamp(attr, node.ino)

    def offer(self, parent: PathNode, name: bytes, attr: Attr) -> int:
        """Return a number for an entry of a listing; it is used when the core says that the entry fitted in (entered)."""
        if self._offered is not None:
            self.inodes.discard(self._offered[0].ino)
            self._offered = None
        node = parent.children.get(name)
        if node is None or node.type != S_IFMT(attr.mode):
            node = PathNode()
        if not node.ino:
            node.type = S_IFMT(attr.mode)
            node.ino = self.inodes.add(node)
            self._offered = (node, parent, name)
        return node.ino

    def entered(self, ino: int) -> None:
        """Count a lookup of what was offered last, or of a node that was known before."""
        if self._offered is not None and self._offered[0].ino == ino:
            self._attach(*self._offered)
            self._offered = None
        self.inodes.enter(ino)

    def forget(self, ino: int, nlookup: int) -> None:
        """Take lookups back; a node without any goes, unless it leads to one that has."""
        node = self.inodes.forget(ino, nlookup)
        if node is not None:
            node.ino = 0
            self._prune(node)

    # Holding paths still.

    def use(self, nodes: Nodes, call: Callable[[], Result[R]], then: Callable[[R], S]) -> Result[S]:
        """Return what *then* makes of *call*'s result; the paths of *nodes* do not change until then.

        The session begins every coroutine that it was given, so what is held here is let go.
        """
        if self._is_moving(nodes):
            return self._use_later(nodes, call, then)
        result = call()
        if isinstance(result, Coroutine):
            return self._finish(result, then, self._hold(nodes))
        return then(result)

    async def _use_later(self, nodes: Nodes, call: Callable[[], Result[R]], then: Callable[[R], S]) -> S:
        while self._is_moving(nodes):
            await self._someone_lets_go()
        result = call()
        if isinstance(result, Coroutine):
            return await self._finish(result, then, self._hold(nodes))
        return then(result)

    def change(self, places: tuple[Place, ...], call: Callable[[], Result[None]], then: Callable[[], None]) -> Result[None]:
        """Run *call* and *then*, which change who has the names at *places*: as use, but wait for who uses them."""
        parents, targets = _parents_of(places), _who_has(places)
        if self._is_moving((*parents, *targets)) or any(target.users for target in targets):
            return self._change_later(places, call, then)
        result = call()
        if isinstance(result, Coroutine):
            return self._finish(result, lambda _: then(), self._claim(parents, targets), targets)
        then()
        return None

    async def _change_later(
        self, places: tuple[Place, ...], call: Callable[[], Result[None]], then: Callable[[], None]
    ) -> None:
        parents = _parents_of(places)
        while self._is_moving((*parents, *(targets := _who_has(places)))):
            await self._someone_lets_go()
        held = self._claim(parents, targets)
        try:
            while any(target.users for target in targets):
                await self._someone_lets_go()
            result = call()
            if isinstance(result, Coroutine):
                await result
            then()
        finally:
            self._let_go(held, targets)

    async def _finish(
        self, running: Coroutine[Any, Any, R], then: Callable[[R], S], held: list[PathNode], targets: Nodes = ()
    ) -> S:
        try:
            return then(await running)
        finally:
            self._let_go(held, targets)

    def _is_moving(self, nodes: Iterable[PathNode]) -> bool:
        return self._moving > 0 and any(step.moving for node in nodes for step in node.way_up())

    def _hold(self, nodes: Nodes) -> list[PathNode]:
        held = [step for node in nodes for step in node.way_up()]
        for step in held:
            step.users += 1
        return held

    def _claim(self, parents: Nodes, targets: Nodes) -> list[PathNode]:
        for target in targets:
            target.moving = True
            self._moving += 1
        return self._hold(parents)

    def _let_go(self, held: list[PathNode], targets: Nodes) -> None:
        for step in held:
            step.users -= 1
        for target in targets:
            target.moving = False
            self._moving -= 1
        for future in self._waiters:
            if not future.done():
                future.set_result(None)
        self._waiters.clear()

    async def _someone_lets_go(self) -> None:
        import asyncio

        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(future)
        await future


def _parents_of(places: tuple[Place, ...]) -> Nodes:
    return tuple(parent for parent, _ in places)


def _who_has(places: tuple[Place, ...]) -> Nodes:
    nodes = dict.fromkeys(parent.children.get(name) for parent, name in places)
    return tuple(node for node in nodes if node is not None)


def stamp(attr: Attr, ino: int) -> Attr:
    """Return *attr* with its number; a copy when it already serves another file."""
    if attr.ino != ino:
        if attr.ino:
            attr = copy(attr)
        attr.ino = ino
    return attr


__all__ = ["PathNode", "PathTree", "stamp"]
