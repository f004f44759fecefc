"""The nodes of a mount, and what is done to them here. What is believed of them is in beliefs.py.

All times are time.monotonic().
"""

from __future__ import annotations

import errno
import time
from collections.abc import Mapping

from ..remote.store import Object, same_version
from . import keys
from .beliefs import UNKNOWN, Answer, Beliefs, Unknown
from .keys import BESIDE
from .nodes import Node, ident
from .overlay import DOUBT, GRACE_S, HELD, PRESENT, PUBLISHED, REMOVED

_NAMELESS = "\udc01"
"""Stands in the keys of nodes without a name: no key has a lone surrogate."""


class Tree(Beliefs):
    """The nodes of one mount."""

    def __init__(self, prefix: str, ttl: float, negative_ttl: float | None = None, keys_mode: str = "escape") -> None:
        super().__init__(prefix, ttl, negative_ttl, keys_mode)
        self._nameless = 0
        """How many nameless nodes there were."""

    def key_for(self, parent: Node, name: bytes, directory: bool) -> str:
        """Return the key of a name that shall be made: EILSEQ, EINVAL, ENAMETOOLONG when no key can have it."""
        where = keys.new_key(parent.key, name, directory, self.keys_mode == "escape")
        if where.kind == BESIDE and self.at(f"{where.key}/", True) is None and self.at(where.key, False) is None:
            raise OSError(errno.EINVAL, f"{name.decode()!r} is the name of a file beside a directory that is not there")
        return where.key

    def create(self, key: str, is_dir: bool, item: Object | None = None) -> Node:
        """Return the node of a new file or directory, which exists here until it is published or removed.

        With *item* it is in the store already. A file of that key that was known loses its name.
        """
        old = self.at(key, is_dir)
        if old is not None and not is_dir:
            self._lose(old)
            old = None
        node = old or self.make(key, is_dir, None, float("inf"))
        node.beside = not is_dir and self.at(f"{key}/", True) is not None
        if item is not None:
            self.published(node, item)
        else:
            node.expires = float("inf")
            self._record(node, PRESENT, self.overlay.past_of(key))
            self._hold_above(node)
        if is_dir:
            # Nothing is in it: the names that will be made need not be asked for.
            self.memory.forget_old(key, float("inf"))
            self.memory.add_empty(key, time.monotonic(), self.ttl)
        return node

    def published(self, node: Node, item: Object | None = None) -> None:
        """The store has *node* now: *item*, or the marker of a directory."""
        if node.gone:
            node.item = None if node.is_dir else item
            return
        past = self.overlay.past_of(node.key)
        old = node.item
        if old is not None:
            past |= {old.etag}
        if node.is_dir:
            item = None
        elif item is not None:
            past -= {item.etag}
            node.item = item
        self._believe(node)
        node.held = False
        self._record(node, PUBLISHED, past, item)
        self._hold_above(node)

    def _believe(self, node: Node) -> None:
        """Believe what was just done for one time to live."""
        node.asked = time.monotonic()
        node.expires = node.asked + self.ttl

    def removed(self, node: Node) -> None:
        """The name of *node* is gone, and its key in the store. What has it open keeps the node."""
        if node.gone or node is self.root:
            return
        past = self.overlay.past_of(node.key)
        item = node.item
        if item is not None:
            past |= {item.etag}
        self._record(node, REMOVED, past)
        if node.is_dir:
            self.memory.forget_old(node.key, float("inf"))
            self.overlay.sweep(node.key)
        self._lose(node)

    def forsaken(self, node: Node) -> None:
        """*node*, which was never in the store, never will be: its name is free, or somebody else's, which is asked anew."""
        if not node.gone:
            self._record(node, DOUBT)
            self._lose(node)

    def _lose(self, node: Node) -> None:
        """Take the name away from *node*, which lives on for those who have it open."""
        self.unlink(node)
        node.gone = True
        node.held = False
        node.expires = float("inf")
        self.release(node)

    def moved(self, node: Node, key: str, item: Object | None = None) -> None:
        """*node* has another key now; a file that had it loses it.

        *item* is what the store has there. Without it a version that was published is taken to be there, with the same ETag.
        """
        other = self.at(key, node.is_dir)
        past = self.overlay.past_of(key)
        if other is not None and other is not node:
            if (theirs := other.item) is not None:
                past |= {theirs.etag}
            self._lose(other)
        gone = self.overlay.past_of(node.key)
        if (mine := node.item) is not None:
            gone |= {mine.etag}
        self._record(node, REMOVED, gone)
        self.rename(node, key)
        self._hold_above(node)
        node.beside = not node.is_dir and self.at(f"{key}/", True) is not None
        if item is not None:
            node.item = item
        if (mine := node.item) is None and not node.is_dir:
            self._record(node, PRESENT, past)
            node.expires = float("inf")
            return
        self._record(node, PUBLISHED, past - {mine.etag} if mine is not None else past, mine)
        self._believe(node)

    def moved_tree(self, old: str, new: str, items: Mapping[str, Object] | None = None) -> list[Node]:
        """Everything whose key began with the directory key *old* is below *new* now; return the nodes, the directory's first.

        *items* are the copies, by their new keys; without one the same ETag is taken to be there.
        """
        target = self.at(new, True)
        if target is not None:
            self._lose(target)
        moving = [node for node in self.nodes.values() if node.key.startswith(old) and not node.gone and not node.replaced]
        moving.sort(key=lambda node: node.key != old or not node.is_dir)
        changes = {name: change for name, change in self.overlay.below(old)}
        for name in changes:
            self.overlay.drop(name)
        self.memory.forget(old)
        self.memory.forget(new)
        self._misses.clear()
        self.move_numbers(old, new)
        for node in moving:
            name = ident(node.key, node.is_dir)
            change = changes.get(name)
            self.rename(node, new + node.key[len(old) :])
            item = items.get(node.key) if items is not None else None
            if item is not None and not node.is_dir:
                node.item = item
            if node.held:
                self._record(node, HELD)
            elif change is not None and change.kind == PRESENT:
                self._record(node, PRESENT)
            else:
                self._record(node, PUBLISHED, item=node.item)
                self._believe(node)
        if self.at(new, True) is None:
            self.published(self.make(new, True, None, self.expiry()))
        self.overlay.add(old, True, REMOVED, self._parent_key(old, True))
        self.overlay.sweep(old)
        self.overlay.arrive(new)
        return moving

    def nameless(self, directory: Node) -> Node:
        """Return the node of a new file that has no name (O_TMPFILE), until named() gives it one."""
        self._nameless += 1
        node = self.make(f"{directory.key}{_NAMELESS}{self._nameless}", False, None, float("inf"))
        self.unlink(node)
        node.gone = True
        return node

    @staticmethod
    def is_nameless(node: Node) -> bool:
        """Return whether *node* never had a name."""
        return _NAMELESS in node.key

    def named(self, node: Node, key: str) -> None:
        """Give a nameless node the key *key*, where nothing is: it exists here until it is published or removed."""
        past = self.overlay.past_of(key)
        node.gone = False
        self.rename(node, key)
        node.beside = self.at(f"{key}/", True) is not None
        self._record(node, PRESENT, past)
        self._hold_above(node)

    def hold(self, node: Node, passing: bool = False) -> None:
        """Keep a directory although its last key went, until it is removed, or refreshed, or the store shows it again.

        Or a file of its name. *passing*: for as long as listings may lag.
        """
        if node.is_dir and not node.gone and node is not self.root:
            change = self.overlay.changes.get(ident(node.key, True))
            if change is None or change.kind != PRESENT:
                node.held = not passing
                self._record(node, HELD, passing=passing)

    def _hold_above(self, node: Node) -> None:
        """Keep the directory something was just made in: a listing may not show it yet, when others have just made it."""
        directory = self.at(self.parent_key(node), True)
        if directory is not None and ident(directory.key, True) not in self.overlay.changes:
            self.hold(directory, passing=True)

    def refresh(self, prefix: str) -> list[Node]:
        """Believe nothing that is known of keys beginning with *prefix*; return the nodes the kernel must drop too."""
        now = self._floor = time.monotonic()
        self.memory.forget(prefix)
        self._misses.clear()
        for above in {prefix[: prefix.rfind("/") + 1], prefix[: prefix.rstrip("/").rfind("/") + 1]}:
            self.memory.forget_old(above, now)
        for name, change in self.overlay.below(prefix):
            if change.kind != PRESENT:
                self.overlay.drop(name)
        found = [node for node in self.nodes.values() if node.key.startswith(prefix) and not node.gone]
        for node in found:
            node.held = False
            if node.expires != float("inf"):
                node.expires = 0.0
                node.asked = now
            self.release(node)
        return found


__all__ = ["GRACE_S", "UNKNOWN", "Answer", "Node", "Tree", "Unknown", "same_version"]
