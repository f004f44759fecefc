"""The read-only view of older versions: .versions/PATH/OF/KEY/TIMESTAMP.VERSIONID.

Every key that has or had versions is a directory there, in a tree that mirrors the keys (with the names of keys.py). Its
files are the versions, the newest first; a delete marker is an empty file TIMESTAMP.VERSIONID.deleted. What lies below the key
"a/" is in the same directory "a" as the versions of the key "a". Inode numbers have bit 63 set (owns()): no other node of the
mount has.

Nothing is remembered but what the kernel knows: a version never changes, so the kernel keeps what it read of one, and names are
asked again when the mount's ttl is over.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any, Final, cast
from urllib.parse import quote
from weakref import WeakValueDictionary

from pyfusekit.core import FOPEN_KEEP_CACHE, ROOT_ID, Attr, DirEntry, Entries, Opened, Result

from ..remote.store import Object, Store, Version
from . import keys

NAME: Final = b".versions"
FIRST_INO: Final = 1 << 63
_VERSION_NAME = re.compile(rb"\d{4,}-\d\d-\d\dT\d\d:\d\d:\d\dZ\.")
_WRITE_BITS = 0o222
_DOTS = 2
"""Cookies 1 and 2 follow "." and ".."; entry i of the listing is followed by cookie i + 3."""


def owns(ino: int) -> bool:
    """Return whether *ino* is one of this view's."""
    return ino >= FIRST_INO


class Node:
    """A directory, or one version. Nodes the kernel does not know live as long as a walk that shows them."""

    __slots__ = ("__weakref__", "attr", "directory", "key", "nlookup", "parent", "version")

    def __init__(self, attr: Attr, parent: Node | None, directory: str, key: str | None, version: Version | None) -> None:
        self.attr = attr
        self.parent = parent
        self.directory = directory
        """What the keys below begin with (keys.py: a directory key); of a version, that of its directory."""
        self.key = key
        """The key whose versions are shown here; None in the root and in continuations."""
        self.version = version
        """None: a directory."""
        self.nlookup = 0


class _Pinned:
    """A Store whose get reads one version."""

    def __init__(self, store: Store, version: str) -> None:
        self._store = store
        self._version = version

    async def get(self, item: Object, offset: int, size: int, sink: Callable[[bytes], None], *, version: str = "") -> None:
        """Hand bytes of that version to *sink*, see Store.get."""
        await self._store.get(item, offset, size, sink, version=version or self._version)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


class VersionView:
    """The nodes of the view. The filesystem hands it every request about an ino that it owns()."""

    def __init__(
        self,
        store: Store,
        prefix: str,
        *,
        ttl: float,
        stamp: Callable[[Attr, bool], None],
        reader: Callable[[Store, Object], Any],
    ) -> None:
        """*prefix*: of the mount. *stamp(attr, is_dir)* gives owner, mode and a directory's times; the view takes the write
        bits away. *reader(store, item)* opens a version: the store it is given reads that one, whatever the key holds now.
        """
        self.store = store
        self.ttl = ttl
        self._stamp = stamp
        self._reader = reader
        self._all: WeakValueDictionary[int, Node] = WeakValueDictionary()
        self._known: dict[int, Node] = {}
        """Those with nlookup > 0."""
        self.root = self._make(None, prefix, None, None)

    owns = staticmethod(owns)

    # Nodes.

    def _make(self, parent: Node | None, directory: str, key: str | None, version: Version | None) -> Node:
        """Return the node of these, a new one when there is none. Its number follows from what it is."""
        identity = f"{directory}\0{key or ''}\0{version.id if version else ''}\0{_seconds(version) if version else ''}"
        salt = ""
        while True:
            digest = blake2b(f"{identity}\0{salt}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
            ino = int.from_bytes(digest, "little") | FIRST_INO
            node = self._all.get(ino)
            if node is None:
                break
            if (node.directory, node.key, node.version and node.version.id) == (directory, key, version and version.id):
                return node
            salt += "+"
        attr = Attr(ino=ino, entry_ttl=self.ttl)
        self._stamp(attr, version is None)
        attr.mode &= ~_WRITE_BITS
        if version is not None:
            attr.size = version.item.size
            attr.blocks = (attr.size + 511) // 512
            attr.atime_ns = attr.mtime_ns = attr.ctime_ns = attr.btime_ns = version.item.mtime_ns
        node = Node(attr, parent, directory, key, version)
        self._all[ino] = node
        return node

    def _node(self, ino: int) -> Node:
        node = self._all.get(ino)
        if node is None:
            raise OSError(errno.ESTALE, f"inode {ino} is not known")
        return node

    def _enter(self, node: Node) -> Attr:
        node.nlookup += 1
        self._known[node.attr.ino] = node
        return node.attr

    def entered(self, ino: int) -> None:
        """Count a lookup: a readdirplus entry goes to the kernel."""
        self._enter(self._node(ino))

    def forget(self, ino: int, nlookup: int) -> None:
        """Take lookups back."""
        node = self._known.get(ino)
        if node is not None:
            node.nlookup -= nlookup
            if node.nlookup <= 0:
                del self._known[ino]

    def getattr(self, ino: int) -> Attr:
        """Return the attributes; ESTALE when the kernel should not know of *ino*. Versions do not change."""
        return self._node(ino).attr

    def refuse(self, ino: int) -> OSError:
        """Return what every change is answered with."""
        return OSError(errno.EROFS, "older versions are read-only")

    # Names.

    def enter_root(self) -> Attr:
        """Answer a lookup of NAME in the mount's root."""
        return self._enter(self.root)

    def lookup(self, parent: int, name: bytes) -> Result[Attr | None]:
        """As Filesystem.lookup; counts."""
        directory = self._node(parent)
        if directory.version is not None:
            raise OSError(errno.ENOTDIR, "a version is no directory")
        if len(name) > keys.NAME_MAX:
            raise OSError(errno.ENAMETOOLONG, "names have at most 255 bytes")
        return self._lookup(directory, name)

    async def _lookup(self, parent: Node, name: bytes) -> Attr | None:
        if parent.key is not None and _VERSION_NAME.match(name):
            async for version in self._of_key(parent.key):
                if _name(version) == name:
                    return self._enter(self._make(parent, parent.directory, parent.key, version))
        meaning = keys.meaning(parent.directory, name)
        if meaning is None or meaning.kind == keys.BESIDE or not await self._is_there(parent, name, meaning):
            return None
        return self._enter(self._child(parent, meaning.key, meaning.kind))

    def _child(self, parent: Node, key: str, kind: int) -> Node:
        if kind == keys.MORE:
            return self._make(parent, key, None, None)
        return self._make(parent, f"{key}/", key, None)

    async def _is_there(self, parent: Node, name: bytes, meaning: keys.Meaning) -> bool:
        """Return whether something has the key, or lies below it."""
        begins = len(parent.directory) - len(keys.stem_of(parent.directory))
        async for key in self._below(meaning.key, parent.directory):
            if meaning.kind == keys.PLAIN:
                if key == meaning.key:
                    return True
                # Between "a" and "a/" there may be thousands of others ("a-b").
                page = await self.store.versions(f"{meaning.key}/")
                return bool(page.versions or page.prefixes)
            shown = keys.name_in(parent.directory, key[begins:])
            if shown is not None and (shown.name, shown.kind) == (name, meaning.kind):
                return True
        return False

    # Listings.

    async def _of_key(self, key: str) -> AsyncIterator[Version]:
        """Yield the versions of *key*, the newest first."""
        token = ""
        while True:
            page = await self.store.versions(key, token=token)
            for version in page.versions:
                if version.item.key != key:
                    return
                yield version
            # The key comes before all others that begin with it.
            if not page.token or page.prefixes:
                return
            token = page.token

    async def _below(self, prefix: str, directory: str) -> AsyncIterator[str]:
        """Yield keys that begin with *prefix* up to their next slash, each once: objects and what has keys below it.

        The marker of *directory* itself only counts when a version of it has bytes.
        """
        token = last = ""
        while True:
            page = await self.store.versions(prefix, token=token)
            for version in page.versions:
                key = version.item.key
                if key != last and (key != directory or version.item.size):
                    last = key
                    yield key
            for common in page.prefixes:
                yield common[:-1]
            if not page.token:
                return
            token = page.token

    def opendir(self, ino: int) -> Walk:
        """Return a handle for readdir; nothing is asked yet."""
        node = self._node(ino)
        if node.version is not None:
            raise OSError(errno.ENOTDIR, "a version is no directory")
        return Walk(self, node)

    def readdir(self, ino: int, handle: Walk, offset: int, plus: bool) -> Entries:
        """List page by page; readdirplus with *plus*."""
        return handle.entries(offset, plus)

    async def contents(self, node: Node) -> AsyncIterator[tuple[bytes, Node]]:
        """Yield the names in a directory and their nodes, each name once."""
        seen: set[bytes] = set()
        if node.key is not None:
            async for version in self._of_key(node.key):
                name = _name(version)
                if name not in seen:
                    seen.add(name)
                    yield name, self._make(node, node.directory, node.key, version)
        begins = len(node.directory) - len(keys.stem_of(node.directory))
        async for key in self._below(node.directory, node.directory):
            try:
                found = keys.name_in(node.directory, key[begins:])
            except UnicodeEncodeError:
                continue
            if found is not None and found.name not in seen:
                seen.add(found.name)
                yield found.name, self._child(node, key[: begins + found.end], found.kind)

    # Files.

    def open(self, ino: int, flags: int) -> Opened:
        """Open a version: the handle is what *reader* made. EROFS unless it is to be read only."""
        node = self._node(ino)
        if node.version is None:
            raise OSError(errno.EISDIR, "a key's versions are a directory")
        if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
            raise self.refuse(ino)
        pinned = cast(Store, _Pinned(self.store, node.version.id))
        return Opened(self._reader(pinned, node.version.item), flags=FOPEN_KEEP_CACHE)

    def release(self, ino: int, handle: Any) -> None:
        """Close the reader."""
        handle.close()


class Walk:
    """An open directory: what was listed of it so far, so that cookies stay what they are."""

    def __init__(self, view: VersionView, node: Node) -> None:
        self._view = view
        self._node = node
        self._entries: list[tuple[bytes, Node]] = []
        self._rest: AsyncIterator[tuple[bytes, Node]] | None = None
        self._complete = False

    async def entries(self, offset: int, plus: bool) -> AsyncIterator[DirEntry]:
        """Yield the entries behind the cookie *offset*; 0 lists anew."""
        if offset == 0:
            self._entries = []
            self._rest = self._view.contents(self._node)
            self._complete = False
            yield DirEntry(b".", self._node.attr.ino, stat.S_IFDIR, 1)
        if offset <= 1:
            parent = self._node.parent
            yield DirEntry(b"..", ROOT_ID if parent is None else parent.attr.ino, stat.S_IFDIR, _DOTS)
        place = max(0, offset - _DOTS)
        while place < len(self._entries) or await self._more():
            name, node = self._entries[place]
            place += 1
            yield DirEntry(name, node.attr.ino, stat.S_IFMT(node.attr.mode), place + _DOTS, node.attr if plus else None)

    async def _more(self) -> bool:
        """List another entry; False at the end."""
        if self._rest is None:
            return False
        try:
            self._entries.append(await anext(self._rest))
        except StopAsyncIteration:
            self._rest = None
            return False
        except BaseException:
            # Whoever goes on does so in a new listing, not behind a gap.
            self._rest = None
            raise
        return True


def _seconds(version: Version) -> int:
    return version.item.mtime_ns // 10**9


def _name(version: Version) -> bytes:
    """Return the name of a version's file; a very long id is cut, and told apart by a digest."""
    instant = datetime.fromtimestamp(_seconds(version), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    identity = quote(version.id, safe="-_.~+=")
    if len(identity) > 200:
        identity = f"{identity[:160]}~{blake2b(version.id.encode(), digest_size=16).hexdigest()}"
    return f"{instant}.{identity}{'.deleted' if version.deleted else ''}".encode()


__all__ = ["FIRST_INO", "NAME", "Node", "VersionView", "Walk", "owns"]
