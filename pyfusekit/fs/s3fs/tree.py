"""The nodes of a mount: files and directories the kernel knows, and how long they are believed. No FUSE in here."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b

from pyfusekit.core import ROOT_ID, Attr

from .listing import KEY_MAX, Listing, text_of
from .store import Object

log = logging.getLogger("pyfusekit.s3fs")

MAX_CACHED_ENTRIES = 200_000
"""Listings remembered for lookups hold no more entries than this, the oldest go first."""
_MAX_HIDDEN_LINES = 1000


@dataclass(slots=True, eq=False)
class Node:
    """A file or directory the kernel has been told of.

    INVARIANT: while *opens* is not 0, item never changes: a newer version of the key is another node.
    """

    attr: Attr
    key: str
    """A directory's ends in "/", except the root's of a whole bucket, which is empty."""
    item: Object | None
    """None: a directory."""
    expires: float
    """On the monotonic clock: until then the store need not be asked."""
    nlookup: int = 0
    opens: int = 0
    replaced: bool = False
    """Another version has the name now, or none."""
    cached_etag: str = ""
    """The version whose bytes the kernel may have in its page cache."""


class Tree:
    """The nodes of one mount."""

    def __init__(self, prefix: str, ttl: float, stamp: Callable[[Attr, bool], None]) -> None:
        self.ttl = ttl
        self._stamp = stamp
        """Gives a new Attr its owner, mode and, for a directory, times."""
        self.root = Node(Attr(ino=ROOT_ID), prefix, None, float("inf"), nlookup=1)
        self._stamp(self.root.attr, True)
        self.nodes: dict[int, Node] = {ROOT_ID: self.root}
        self._by_key: dict[str, Node] = {prefix: self.root}
        self._listings: dict[str, Listing] = {}
        self._hidden: set[str] = set()

    # Nodes.

    def fresh(self, node: Node) -> bool:
        """Return whether *node* can be believed without asking the store."""
        return node.expires > time.monotonic()

    def expiry(self) -> float:
        """Return until when an answer to a request sent now is believed."""
        return time.monotonic() + self.ttl

    def ino_of(self, key: str) -> int:
        """Return the number *key* has, or would have: it follows from the key, so it is the same in every mount."""
        node = self._by_key.get(key)
        if node is not None:
            return node.attr.ino
        return self._free_ino(key, "")

    def _free_ino(self, key: str, salt: str) -> int:
        """Return a number no other node has. Another salt is tried when two keys have the same hash."""
        while True:
            digest = blake2b(f"{key}\0{salt}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
            ino = (int.from_bytes(digest, "little") >> 1) | 2
            if ino not in self.nodes:
                return ino
            salt += "+"

    def install(self, key: str, item: Object | None, expires: float) -> Node:
        """Return the node of *key* as it was just seen: a directory without *item*, else a file of that version."""
        node = self._by_key.get(key)
        old = node.item if node is not None else None
        if node is not None and old is not None and item is not None and node.opens and not same_version(old, item):
            # Who has the old version open goes on reading it, and the kernel's cached pages of it are not the new one's.
            self.replace(node)
            node = self._make(key, item, expires, salt=item.etag)
        elif node is None:
            node = self._make(key, item, expires)
        else:
            node.expires = max(node.expires, expires)
            if item is not None and (old is None or not same_version(old, item) or _seconds(old) != _seconds(item)):
                node.item = item
                _describe(node.attr, item)
        return node

    def _make(self, key: str, item: Object | None, expires: float, salt: str = "") -> Node:
        attr = Attr(ino=self._free_ino(key, salt))
        self._stamp(attr, item is None)
        if item is not None:
            _describe(attr, item)
        node = Node(attr, key, item, expires)
        self.nodes[attr.ino] = node
        self._by_key[key] = node
        return node

    def replace(self, node: Node) -> None:
        """Take *node*'s name away: the store has another version there, or nothing."""
        node.replaced = True
        if self._by_key.get(node.key) is node:
            del self._by_key[node.key]
        self.expire(node)

    def expire(self, node: Node) -> None:
        """Believe neither *node* nor what was listed of it: the next lookup asks the store."""
        node.expires = 0.0
        prefix = node.key[: node.key.rstrip("/").rfind("/") + 1]
        listing = self._listings.get(prefix)
        if listing is not None and node.key[len(prefix) :].rstrip("/").encode() in listing.places:
            # Walks that go on keep their entries.
            del self._listings[prefix]

    def release(self, node: Node) -> None:
        """Drop *node* when nobody knows it any more."""
        if node.nlookup > 0 or node.opens or node is self.root:
            return
        self.nodes.pop(node.attr.ino, None)
        if self._by_key.get(node.key) is node:
            del self._by_key[node.key]

    # Names.

    def known(self, parent: Node, name: bytes) -> Node | bool:
        """Return the node of *name* when the store need not be asked: True: it must be; False: there is no such name."""
        text = text_of(name)
        if text is None or len((parent.key + text).encode()) > KEY_MAX:
            return False
        for key in (f"{parent.key}{text}/", parent.key + text):
            node = self._by_key.get(key)
            if node is not None and self.fresh(node):
                return node
        listing = self._listings.get(parent.key)
        if listing is None or listing.expires <= time.monotonic():
            return True
        place = listing.places.get(name)
        if place is None:
            return not listing.complete
        listing.hits += 1
        item = listing.entries[place].item
        return self.install(self.key_of(parent, text, item), item, listing.expires)

    @staticmethod
    def key_of(parent: Node, text: str, item: Object | None) -> str:
        """Return the key of a name in *parent*."""
        return parent.key + text if item is not None else f"{parent.key}{text}/"

    def remember(self, listing: Listing) -> None:
        """Answer lookups from *listing* while it is fresh."""
        now = time.monotonic()
        self._listings.pop(listing.prefix, None)
        for prefix in [prefix for prefix, other in self._listings.items() if other.expires <= now]:
            del self._listings[prefix]
        total = sum(len(other.entries) for other in self._listings.values())
        while total > MAX_CACHED_ENTRIES:
            prefix = next(iter(self._listings))
            total -= len(self._listings.pop(prefix).entries)
        self._listings[listing.prefix] = listing

    def settle(self, listing: Listing) -> None:
        """Drop *listing*, which nobody walks any more, if it is of no more use."""
        if self._listings.get(listing.prefix) is listing and (
            listing.expires <= time.monotonic() or len(listing.entries) > MAX_CACHED_ENTRIES
        ):
            del self._listings[listing.prefix]

    def hide(self, key: str, why: str) -> None:
        """Say once that *key* cannot be reached."""
        if key in self._hidden or len(self._hidden) >= _MAX_HIDDEN_LINES:
            return
        self._hidden.add(key)
        log.warning("the key %r is hidden: %s", key, why)


def same_version(one: Object, other: Object) -> bool:
    """Return whether two answers about a key are about the same bytes."""
    return one.etag == other.etag and one.size == other.size and (bool(one.etag) or _seconds(one) == _seconds(other))


def _seconds(item: Object) -> int:
    """Return the whole seconds of a time: HEAD has no more, a listing may have milliseconds."""
    return item.mtime_ns // 1_000_000_000


def _describe(attr: Attr, item: Object) -> None:
    attr.size = item.size
    attr.blocks = (item.size + 511) // 512
    attr.atime_ns = attr.mtime_ns = attr.ctime_ns = attr.btime_ns = item.mtime_ns


__all__ = ["Node", "Tree", "same_version"]
