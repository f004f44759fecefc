"""A file or directory the kernel knows, small: a mount may know a million of them."""

from __future__ import annotations

import errno
import struct
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from pyfusekit.core import ROOT_ID

from ..remote.store import Object

if TYPE_CHECKING:
    from ..metadata.posix import Posix

_HEX = struct.Struct("<qqBi16s")
"""Size, mtime_ns, place in _CLASSES, number of parts (-1: not in the ETag), the MD5 that most ETags are."""
_RAW = struct.Struct("<qqB")
"""Size, mtime_ns, _RAW_CLASS; the ETag, NUL and the storage class follow."""
_CLASSES = (
    "",
    "STANDARD",
    "REDUCED_REDUNDANCY",
    "STANDARD_IA",
    "ONEZONE_IA",
    "INTELLIGENT_TIERING",
    "GLACIER",
    "GLACIER_IR",
    "DEEP_ARCHIVE",
    "OUTPOSTS",
    "EXPRESS_ONEZONE",
    "SNOW",
)
_PLACES = {name: place for place, name in enumerate(_CLASSES)}
_RAW_CLASS = 255
_MD5_DIGITS = 32


def pack(item: Object) -> bytes:
    """Return *item* without its key, in a quarter of the memory."""
    etag = item.etag
    place = _PLACES.get(item.storage_class)
    if place is not None:
        digits, dash, parts = etag.partition("-")
        try:
            digest = bytes.fromhex(digits)
            number = int(parts) if dash else -1
            if len(digits) == _MD5_DIGITS and _etag(digest, number) == etag:
                return _HEX.pack(item.size, item.mtime_ns, place, number, digest)
        except (ValueError, struct.error):
            pass
    return _RAW.pack(item.size, item.mtime_ns, _RAW_CLASS) + f"{etag}\0{item.storage_class}".encode("utf-8", "surrogatepass")


def unpack(key: str, packed: bytes) -> Object:
    """Return what was packed."""
    if packed[16] == _RAW_CLASS:
        size, mtime_ns, _ = _RAW.unpack_from(packed)
        etag, _, storage_class = packed[_RAW.size :].decode("utf-8", "surrogatepass").partition("\0")
        return Object(key, size, mtime_ns, etag, storage_class)
    size, mtime_ns, place, parts, digest = _HEX.unpack(packed)
    return Object(key, size, mtime_ns, _etag(digest, parts), _CLASSES[place])


def _etag(digest: bytes, parts: int) -> str:
    return digest.hex() if parts < 0 else f"{digest.hex()}-{parts}"


class Node:
    """A file or directory the kernel has been told of, or that exists here only.

    A directory's key ends in "/", except the bucket's root (empty) and the continuation of a long name; a *file's* key may end
    in "/" too (a folder marker with bytes). So a node is told by its key and is_dir together.

    INVARIANT: while *opens* is not 0, item is not changed by what the store says, only by what was published here: another
    version is another node.
    """

    __slots__ = (
        "asked",
        "beside",
        "cached_etag",
        "expires",
        "gone",
        "held",
        "ino",
        "is_dir",
        "key",
        "nlookup",
        "opens",
        "packed",
        "posix",
        "replaced",
        "staged",
    )

    def __init__(self, ino: int, key: str, is_dir: bool, expires: float, packed: bytes | None = None) -> None:
        self.ino = ino
        self.key = key
        self.is_dir = is_dir
        self.expires = expires
        """On the monotonic clock: until then the store need not be asked."""
        self.asked = 0.0
        """When the store was asked for what is known."""
        self.packed = packed
        """The item as pack() gives it."""
        self.nlookup = 0
        self.opens = 0
        self.replaced = False
        """Another version has the name now, or none."""
        self.gone = False
        """Removed here, or another file was moved over it: no name leads to it."""
        self.held = False
        """A directory that stays although no key is below it; set by Tree.hold."""
        self.beside = False
        """A file whose plain name a directory has."""
        self.cached_etag = ""
        """The version whose bytes the kernel may have in its page cache."""
        self.posix: Posix | None = None
        """Mode, owner, times and xattrs that the object says; None: not known."""
        self.staged: Any = None
        """Local changes that are not in the store yet."""

    @property
    def item(self) -> Object | None:
        """The version in the store; None: a directory, or a file that was never published."""
        return None if self.packed is None else unpack(self.key, self.packed)

    @item.setter
    def item(self, item: Object | None) -> None:
        self.packed = None if item is None else pack(item)

    @property
    def size(self) -> int:
        """Bytes of item, 0 without one."""
        return 0 if self.packed is None else int.from_bytes(self.packed[:8], "little")

    @property
    def mtime_ns(self) -> int:
        """LastModified of item, 0 without one."""
        return 0 if self.packed is None else int.from_bytes(self.packed[8:16], "little", signed=True)

    @property
    def etag(self) -> str:
        """The ETag of item, empty without one."""
        item = self.item
        return "" if item is None else item.etag

    def __repr__(self) -> str:
        return f"Node({self.ino}, {self.key!r}{', directory' if self.is_dir else ''})"


def ident(key: str, is_dir: bool) -> str:
    """Return what tells a file or directory from all others: its key, where the last character says which of both it is.

    The others get a lone surrogate, which no key has.
    """
    return key if is_dir == (not key or key[-1] == "/") else f"{key}\udc00"


NUMBERS_KEPT = 1 << 16
"""Renamed files whose numbers are remembered when the kernel has forgotten them."""


class NodeTable:
    """The nodes of a mount by number and by key.

    A number follows from the key, so most nodes are found by key without another table.
    """

    def __init__(self, prefix: str) -> None:
        self.root = Node(ROOT_ID, prefix, True, float("inf"))
        self.root.nlookup = 1
        self.nodes: dict[int, Node] = {ROOT_ID: self.root}
        self._elsewhere: dict[str, Node] = {ident(prefix, True): self.root}
        """By ident: nodes whose number does not follow from their key."""
        self._kept: dict[str, int] = {}
        """By ident: the numbers of such nodes that the kernel has forgotten, for when it asks again."""
        self._lent: set[int] = set()
        """INVARIANT: the values of _kept."""

    def node(self, ino: int) -> Node:
        """Return the node of a number; ESTALE."""
        found = self.nodes.get(ino)
        if found is None:
            raise OSError(errno.ESTALE, f"inode {ino} is not known")
        return found

    def at(self, key: str, is_dir: bool) -> Node | None:
        """Return the node that has *key* now."""
        name = ident(key, is_dir)
        return self.found(name, key, is_dir, number_of(name))

    def found(self, name: str, key: str, is_dir: bool, number: int) -> Node | None:
        """Return the same, for who has made the ident and its number."""
        node = self._elsewhere.get(name)
        if node is None:
            node = self.nodes.get(number)
            if node is None or node.gone or node.replaced or node.is_dir != is_dir or node.key != key:
                return None
        return node

    def ino_of(self, key: str, is_dir: bool | None = None) -> int:
        """Return the number *key* has, or would have: it follows from the key, so it is the same in every mount.

        Without *is_dir* it is a directory's if it ends in "/" or is empty.
        """
        if is_dir is None:
            is_dir = not key or key[-1] == "/"
        name = ident(key, is_dir)
        node = self._elsewhere.get(name)
        if node is not None:
            return node.ino
        kept = self._kept.get(name)
        if kept is not None:
            return kept
        ino = number_of(name)
        node = self.nodes.get(ino)
        if node is None and ino not in self._lent:
            return ino
        if node is not None and node.key == key and node.is_dir == is_dir and not node.gone and not node.replaced:
            return ino
        return self._free(name)

    def _free(self, name: str) -> int:
        """Return a number no node has, when another one has that which follows from the key."""
        salt = ""
        while (ino := number_of(f"{name}\0{salt}" if salt else name)) in self.nodes or ino in self._lent:
            salt += "+"
        return ino

    def make(self, key: str, is_dir: bool, packed: bytes | None, expires: float, natural: int = 0) -> Node:
        """Return a new node, which has *key* from now on; the one that had it must have lost it.

        *natural* is the number that follows from the key, where it is known already.
        """
        name = ident(key, is_dir)
        natural = natural or number_of(name)
        kept = self._take_back(name) if self._kept else 0
        if kept and kept not in self.nodes:
            ino = kept
        else:
            ino = self._free(name) if natural in self.nodes or natural in self._lent else natural
        node = self.nodes[ino] = Node(ino, key, is_dir, expires, packed)
        if ino != natural:
            self._elsewhere[name] = node
        return node

    def rename(self, node: Node, key: str) -> None:
        """Give *node* another key, and let it keep its number."""
        self.unlink(node)
        node.key = key
        name = ident(key, node.is_dir)
        if node.ino != number_of(name):
            self._elsewhere[name] = node

    def keep_number(self, node: Node) -> None:
        """Remember the number of a node that is let go, when it does not follow from its key: a renamed file keeps its own."""
        name = ident(node.key, node.is_dir)
        if self._elsewhere.get(name) is not node:
            return
        self._take_back(name)
        self._kept[name] = node.ino
        self._lent.add(node.ino)
        if len(self._kept) > NUMBERS_KEPT:
            self._take_back(next(iter(self._kept)))

    def _take_back(self, name: str) -> int:
        """Forget the number that is kept for an ident, and return it, or 0."""
        ino = self._kept.pop(name, 0)
        self._lent.discard(ino)
        return ino

    def move_numbers(self, old: str, new: str) -> None:
        """Keep the numbers of what was below the directory key *old* for the same below *new*."""
        for name in [name for name in self._kept if name.startswith(old)]:
            self._kept[new + name[len(old) :]] = self._kept.pop(name)

    def unlink(self, node: Node) -> None:
        """Let the node's key lead to it no more."""
        name = ident(node.key, node.is_dir)
        if self._elsewhere.get(name) is node:
            del self._elsewhere[name]


def number_of(name: str) -> int:
    """Return the inode number of an ident: 60 bits, so that it is a small int, and not ROOT_ID."""
    digest = blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 4) | 2


__all__ = ["NUMBERS_KEPT", "Node", "NodeTable", "ident", "number_of", "pack", "unpack"]
