"""What is believed of names: what the kernel knows, what listings said, what was done here.

All times are time.monotonic(). What the store says carries the time until which it is believed, expiry() taken *before* the
request was sent; it was asked for one time to live earlier. overlay.py judges it by what was done here since.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable, Iterable
from enum import Enum
from typing import Final, Literal

from ..remote.store import Object, same_version
from . import keys
from .keys import BESIDE, MORE, PLAIN, Meaning
from .listing import Listing, Memory, Said, Span
from .nodes import Node, NodeTable, ident, number_of, pack
from .overlay import ASK, BELIEVE, DOUBT, GONE, GRACE_S, HELD, HERE, PRESENT, PUBLISHED, REMOVED, Overlay

log = logging.getLogger("pyfusekit.s3fs")

_MAX_HIDDEN_LINES = 1000
_SECOND_NS = 1_000_000_000
_MAX_MISSES = 10_000


class Unknown(Enum):
    """The type of UNKNOWN."""

    UNKNOWN = 0


UNKNOWN: Final = Unknown.UNKNOWN
"""The store must be asked."""

Answer = Node | Literal[Unknown.UNKNOWN] | None
"""A node; UNKNOWN; None: there is no such name."""


class Beliefs(NodeTable):
    """The nodes of one mount, and what answers questions about them."""

    def __init__(self, prefix: str, ttl: float, negative_ttl: float | None = None, keys_mode: str = "escape") -> None:
        super().__init__(prefix)
        self.ttl = float(ttl)
        self.negative_ttl = self.ttl if negative_ttl is None else float(negative_ttl)
        self.keys_mode = keys_mode
        self.memory = Memory()
        self.overlay = Overlay(max(self.ttl, self.negative_ttl) + GRACE_S)
        self.pages: dict[str, Span] = {}
        """By directory key: pages of which it is counted how many lookups they spare."""
        self._misses: dict[str, float] = {}
        """Keys of which the store had nothing, and when it was asked. INVARIANT: what is done here to a key takes it out."""
        self._floor = 0.0
        """What was asked for before is not believed: refresh."""
        self._hidden: set[str] = set()
        self.refused: Callable[[OSError, str, str], None] | None = None
        """Is told of a key that makes a listing fail, once: who lists gets only an errno."""

    def fresh(self, node: Node) -> bool:
        """Return whether *node* can be believed without asking the store."""
        return node.expires > time.monotonic()

    def expiry(self) -> float:
        """Return until when an answer to a request sent now is believed."""
        return time.monotonic() + self.ttl

    def install(
        self, key: str, item: Object | None, expires: float, is_dir: bool | None = None, asked: float | None = None
    ) -> Node:
        """Return the node of *key* as the store just showed it: a directory without *item*, else a file of that version.

        What has local changes, or is newer than the answer, stays as it is. A version an open file has not is another node.
        Without *asked* the store was asked one time to live before *expires*.
        """
        if is_dir is None:
            is_dir = item is None
        if asked is None:
            asked = expires - self.ttl
        name = ident(key, is_dir)
        number = number_of(name)
        node = self.found(name, key, is_dir, number)
        packed = None if item is None else pack(item)
        if node is None:
            node = self.make(key, is_dir, packed, expires, number)
            node.asked = asked
            return node
        if asked < node.asked:
            return node
        if packed is not None and packed != node.packed and node.staged is None and not self._unpublished(name):
            old = node.item
            if old is None or not same_version(old, item):  # type: ignore[arg-type]
                if node.opens and old is not None:
                    # Who has the old version open goes on reading it, and the kernel's cached pages are not the new one's.
                    node.replaced = True
                    node.expires = 0.0
                    self.unlink(node)
                    node = self.make(key, is_dir, packed, expires)
                    node.asked = asked
                    return node
                node.posix = None
            elif self._copied_over(name, old, item):  # type: ignore[arg-type]
                node.posix = None
            node.packed = packed
        node.expires = max(node.expires, expires)
        node.asked = asked
        return node

    def _copied_over(self, name: str, old: Object, item: Object) -> bool:
        """Return whether somebody copied the same bytes over themselves with other metadata (chmod), as the time says."""
        beside = abs(old.mtime_ns // _SECOND_NS - item.mtime_ns // _SECOND_NS)
        change = self.overlay.changes.get(name)
        # The time that the answer to a write says may be a second beside the listing's.
        return beside > (1 if change is not None and change.item == old else 0)

    def _unpublished(self, name: str) -> bool:
        change = self.overlay.changes.get(name)
        return change is not None and change.kind == PRESENT

    def replace(self, node: Node) -> None:
        """Take *node*'s name away: the store has another version there, or nothing."""
        self.expire(node)
        node.replaced = True
        self.unlink(node)

    def expire(self, node: Node) -> None:
        """Believe neither *node* nor what was listed of it: the next lookup asks the store."""
        node.expires = 0.0
        node.asked = time.monotonic()
        if node.gone or node.replaced or node is self.root:
            return
        change = self.overlay.changes.get(ident(node.key, node.is_dir))
        if change is None or change.kind in (PUBLISHED, DOUBT):
            self._record(node, DOUBT)

    def release(self, node: Node) -> None:
        """Drop *node* when nobody knows it any more."""
        if node.nlookup > 0 or node.opens or node.staged is not None or node.held or node is self.root:
            return
        if self.overlay.changes and not node.gone and self._unpublished(ident(node.key, node.is_dir)):
            return
        self.nodes.pop(node.ino, None)
        if not node.gone and not node.replaced:
            self.keep_number(node)
        self.unlink(node)

    # Names.

    def meaning(self, parent: Node, name: bytes) -> Meaning | None:
        """Return what a name in *parent* stands for, None when no key can have it."""
        if self.keys_mode == "escape":
            return keys.meaning(parent.key, name)
        return keys.as_it_stands(parent.key, name)

    def known(self, parent: Node, name: bytes) -> Answer:
        """Return the node of *name*, None when there is believed to be none, UNKNOWN when the store must be asked."""
        where = self.meaning(parent, name)
        if where is None:
            return None
        now = time.monotonic()
        key, kind = where
        if kind == MORE:
            node = self.at(key, True)
            return node if node is not None and node.expires > now else UNKNOWN
        if self.overlay:
            done = self._done_here(where, now)
            if done is not UNKNOWN:
                return done
        below = self.at(f"{key}/", True)
        if below is not None and below.expires <= now:
            below = None
        found = below if kind == PLAIN else None
        if found is None and (kind == PLAIN or below is not None):
            file = self.at(key, False)
            if file is not None and file.expires > now and file.beside == (kind == BESIDE):
                found = file
        if found is not None:
            page = self.pages.get(parent.key) if self.pages else None
            if page is not None and page.after < key <= page.last:
                page.hits += 1
            return found
        said = self.memory.find(parent.key, key)
        if said is not None:
            return self._remembered(where, said, now)
        missed = self._misses.get(key) if kind == PLAIN else None
        return UNKNOWN if missed is None or missed + min(self.ttl, self.negative_ttl) <= now else None

    def missed(self, where: Meaning, asked: float) -> None:
        """The store, *asked*, had nothing of a name: whoever makes it asks again at once (LOOKUP, then CREATE)."""
        if where.kind != PLAIN or asked < self._floor or self.negative_ttl <= 0:
            return
        if len(self._misses) >= _MAX_MISSES:
            self._misses.clear()
        self._misses[where.key] = asked

    def _remembered(self, where: Meaning, said: Said, now: float) -> Answer:
        """Answer from a remembered page."""
        span = said.span
        nothing = said.item is None and not said.below
        if (span.asked + self.negative_ttl if nothing and self.negative_ttl < self.ttl else span.life.expires) <= now:
            return UNKNOWN
        found = self.settle(where, said.item, said.below, span.life.expires, asked=span.asked, now=now)
        if found is not UNKNOWN:
            span.hits += 1
        return found

    def _done_here(self, where: Meaning, now: float) -> Answer:
        """Return what is known of a name from what was done here, without asking the store."""
        key, kind = where
        changes = self.overlay.changes
        file = changes.get(ident(key, False))
        below = changes.get(ident(f"{key}/", True))
        if below is not None and below.kind == PRESENT and kind == PLAIN:
            return self.left_here(f"{key}/", True)
        if file is not None and file.kind == PRESENT:
            node = self.left_here(key, False)
            return node if node.beside == (kind == BESIDE) else UNKNOWN
        if file is not None and file.kind == REMOVED and file.alone and kind == PLAIN and (below is None or not below.exists):
            return None if now < file.when + min(GRACE_S, self.negative_ttl) else UNKNOWN
        return UNKNOWN

    def left_here(self, key: str, is_dir: bool, expires: float = 0.0) -> Node:
        """Return the node of something that exists as it was left here, believed until *expires*."""
        change = self.overlay.changes[ident(key, is_dir)]
        node = self.at(key, is_dir)
        if node is None:
            node = self.make(key, is_dir, None if change.item is None else pack(change.item), 0.0)
            node.asked = change.when
        lasting = change.kind == HELD and not change.passing
        node.expires = max(node.expires, expires if lasting else min(expires, change.until))
        return node

    def settle(self, where: Meaning, item: Object | None, below: bool, expires: float, *, asked: float, now: float) -> Answer:
        """Return what a name is, as the store says and as was done here since.

        The store was *asked*, and showed *item* under the name's key (None: nothing), and *below*: there are keys that begin
        with the key and "/". UNKNOWN: it must be asked again.
        """
        key, kind = where
        file: Node | Object | None = item
        new_here = False
        if self.overlay:
            verdict = self.overlay.judge(key, False, item is not None, item, asked, now)
            under = self.overlay.judge(f"{key}/", True, below, None, asked, now)
            if verdict == ASK or under == ASK:
                return UNKNOWN
            if verdict == HERE:
                file = self.left_here(key, False, expires)
                new_here = not file.beside
            elif verdict == GONE:
                file = None
            if below and under == BELIEVE:
                self.shown(f"{key}/", True, asked)
            elif not below and item is not None and verdict == BELIEVE and self.shown(f"{key}/", True, asked):
                under = BELIEVE
            below = under == HERE or (under == BELIEVE and bool(below or self.overlay.children(f"{key}/")))
        if file is None and (dirty := self.at(key, False)) is not None and dirty.staged is not None:
            file = dirty
        if kind == PLAIN and below and not new_here:
            if file is not None and self.keys_mode != "escape":
                self.hide(key, "there is a directory of that name")
            return self.install(f"{key}/", None, expires, True, asked)
        if file is None or (kind == BESIDE and not below):
            return None
        node = file if isinstance(file, Node) else self.install(key, file, expires, False, asked)
        node.beside = kind == BESIDE
        return node

    def opinion(self, key: str, is_dir: bool, item: Object | None, asked: float) -> int:
        """Return BELIEVE, HERE, GONE or ASK about a row of a listing."""
        return self.overlay.judge(key, is_dir, True, item, asked, time.monotonic())

    def name_of(self, node: Node) -> bytes:
        """Return the name by which parent_key(node) shows *node*; empty for the root."""
        if node is self.root:
            return b""
        directory = self.parent_key(node)
        key = node.key[:-1] if node.is_dir and node.key.endswith("/") else node.key
        tail = key[len(directory) :]
        if self.keys_mode != "escape":
            return tail.encode()
        if node.is_dir and not node.key.endswith("/"):
            return keys.continuation(tail)
        return keys.path_of(key[key.rfind("/") + 1 :], node.beside)[-1]

    def parent_key(self, node: Node) -> str:
        """Return the directory key of the directory that shows *node*; the root's own for the root."""
        if node is self.root:
            return node.key
        return self._parent_key(node.key, node.is_dir, node.beside)

    def _parent_key(self, key: str, is_dir: bool, beside: bool = False) -> str:
        if self.keys_mode == "escape":
            return keys.parent_of(key, is_dir, beside)
        end = len(key) - 1 if is_dir else len(key)
        return key[: key.rfind("/", 0, end) + 1]

    # What was done here.

    def _record(
        self, node: Node, kind: int, past: frozenset[str] = frozenset(), item: Object | None = None, passing: bool = False
    ) -> None:
        change = self.overlay.add(node.key, node.is_dir, kind, self.parent_key(node), past, item, passing)
        change.alone = not node.is_dir and not node.beside
        change.newest_ns = max(change.newest_ns, node.mtime_ns)
        if self._misses:
            self._misses.pop(node.key[:-1] if node.is_dir else node.key, None)
        while self.overlay.dropped:
            directory, until = self.overlay.dropped.pop()
            self.memory.forget_old(directory, until)

    def shown(self, key: str, is_dir: bool, asked: float) -> bool:
        """A directory that is held was seen in the store, or a file of its name: it is held no more. Return whether it was."""
        change = self.overlay.changes.get(ident(key, is_dir))
        if change is not None and change.kind == HELD and asked >= change.until:
            self.overlay.drop(ident(key, is_dir))
            node = self.at(key, is_dir)
            if node is not None:
                node.held = False
                self.release(node)
            return True
        return False

    def children(self, directory: str) -> Iterable[Node]:
        """Yield the nodes of what exists in *directory* by what was done here, and may not be listed."""
        for change in self.overlay.children(directory):
            if self.overlay.changes.get(ident(change.key, change.is_dir)) is change:
                yield self.left_here(change.key, change.is_dir)

    # Memory.

    def remember(self, directory: str, span: Span) -> None:
        """Answer lookups from *span* while it is believed."""
        if span.asked >= self._floor:
            self.memory.add(directory, span, time.monotonic())

    def listing(self, directory: str) -> Listing:
        """Return what makes names of the pages of a directory."""
        return Listing(directory, self.keys_mode, self.hide)

    def hide(self, key: str, why: str) -> None:
        """Say once that *key* cannot be reached."""
        if key in self._hidden or len(self._hidden) >= _MAX_HIDDEN_LINES:
            return
        self._hidden.add(key)
        if self.keys_mode == "error":
            log.warning("the key %r fails the listing of its directory: %s", key, why)
            if self.refused is not None:
                self.refused(OSError(errno.EIO, f"the key {key!r} is no path: {why}"), "list", key)
            return
        log.warning("the key %r is hidden: %s", key, why)

    def following(self, directory: str, key: str, count: int) -> list[Object]:
        """Return up to *count* files of *directory* behind *key*, in the order of the listing, as far as they are known.

        Those that have their plain name: "a" is left out while there may be keys "a/...".
        """
        found = []
        for other, item in self.memory.behind(directory, key, count):
            if self.overlay and other in self.overlay.changes:
                # Asked for before something was done here, perhaps.
                continue
            if item is None:
                node = self.at(other, False)
                item = node.item if node is not None and node.staged is None and not node.beside else None
            elif (said := self.memory.find(directory, other)) is None or said.below:
                continue
            if item is not None:
                found.append(item)
        return found

    def counts(self) -> dict[str, int]:
        """Return how much is known: nodes, names of remembered listings, changes made here that listings may not show."""
        return {"nodes": len(self.nodes), "listed": self.memory.rows(), "local": len(self.overlay.changes)}


__all__ = ["UNKNOWN", "Answer", "Beliefs", "Unknown"]
