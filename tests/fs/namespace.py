"""The namespace of s3fs without a filesystem around it: walks and lookups as the kernel makes them, and a clock to turn."""

from __future__ import annotations

import stat
from types import SimpleNamespace
from typing import Any

import pytest
from fakestore import FakeStore

from pyfusekit.core import Attr, DirEntry
from pyfusekit.fs.s3fs.naming import beliefs, lookup, overlay, tree, walk
from pyfusekit.fs.s3fs.naming.lookup import Finder
from pyfusekit.fs.s3fs.naming.tree import UNKNOWN, Node, Tree
from pyfusekit.fs.s3fs.naming.walk import Walk


class Clock:
    """What the modules of the namespace take for time.monotonic."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for module in (beliefs, lookup, overlay, tree, walk):
            monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=self))


class Namespace:
    """A store, a tree and a finder, as a mount has them."""

    def __init__(self, store: FakeStore, prefix: str = "", ttl: float = 60.0, **more: Any) -> None:
        self.store = store
        self.tree = Tree(prefix, ttl, **more)
        self.finder = Finder(store, self.tree)

    @property
    def root(self) -> Node:
        return self.tree.root

    def attr(self, node: Node, name: bytes) -> Attr:
        mode = stat.S_IFDIR if node.is_dir else stat.S_IFREG
        return Attr(ino=node.ino, mode=mode | 0o644, size=node.size, mtime_ns=node.mtime_ns)

    def walk(self, node: Node) -> Walk:
        return Walk(self.store, self.tree, node, self.attr)

    async def lookup(self, parent: Node, name: bytes | str) -> Node | None:
        """Look a name up as the kernel does, and count it."""
        raw = name.encode() if isinstance(name, str) else name
        found = self.tree.known(parent, raw)
        if found is UNKNOWN:
            found = await self.finder.lookup(parent, raw)
        if found is not None:
            found.nlookup += 1
        return found

    async def path(self, path: str) -> Node | None:
        """Look a path up from the root."""
        node: Node | None = self.root
        for name in path.split("/"):
            assert node is not None, path
            node = await self.lookup(node, name)
        return node

    async def find(self, path: str) -> Node:
        found = await self.path(path)
        assert found is not None, path
        return found

    async def listed(self, node: Node, plus: bool = False, reply: int = 10_000) -> list[DirEntry]:
        """Read a directory in replies of at most *reply* entries, as the core does, and count what readdirplus gave."""
        walked = self.walk(node)
        entries: list[DirEntry] = []
        cookie = 0
        while True:
            taken = 0
            async for entry in walked.entries(cookie, plus):
                if taken == reply:
                    break
                taken += 1
                cookie = entry.offset
                entries.append(entry)
                if entry.attr is not None:
                    self.tree.nodes[entry.ino].nlookup += 1
            if not taken:
                break
        walked.close()
        return entries

    async def names(self, node: Node | None = None, plus: bool = False) -> list[str]:
        """Return the sorted names of a directory."""
        return sorted(
            entry.name.decode() for entry in await self.listed(node or self.root, plus) if entry.name not in (b".", b"..")
        )

    async def crawl(self) -> dict[str, Node]:
        """Return every path of the mount with its node; a directory's ends in "/"."""
        found: dict[str, Node] = {}
        todo = [("", self.root)]
        while todo:
            above, directory = todo.pop()
            for entry in await self.listed(directory, plus=True):
                if entry.name in (b".", b".."):
                    continue
                node = self.tree.nodes[entry.ino]
                path = above + entry.name.decode() + ("/" if node.is_dir else "")
                assert path not in found, f"{path!r} twice"
                found[path] = node
                if node.is_dir:
                    todo.append((path, node))
        return found
