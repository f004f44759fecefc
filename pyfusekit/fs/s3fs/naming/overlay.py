"""What this mount did itself, held against listings that do not show it yet.

A listing may be older than what was done here: it was asked for before, or the store's index lags behind. So everything said
about a key carries the time it was *asked* for, and every change made here is kept for a while and judges it:

- what exists here only (not published yet) exists, whatever a listing says;
- what was published or removed within GRACE_S before the question, or after it, is as it was left here, unless the answer shows
  a version that is neither the published one nor one known to be older (by its ETag, or its time): somebody else's, which is
  newer;
- afterwards the store decides.

All times are time.monotonic().
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from typing import Final

from ..remote.store import Object
from .nodes import ident

_SECOND_NS = 1_000_000_000
GRACE_S = 5.0
"""How long after a change a store's listing may not show it."""

PRESENT: Final = 0
"""Made here, not published."""
PUBLISHED: Final = 1
REMOVED: Final = 2
DOUBT: Final = 3
"""Known to be wrong: what was asked for before is not believed."""
HELD: Final = 4
"""A directory without keys that shall stay."""

BELIEVE: Final = 0
"""As the store says."""
HERE: Final = 1
"""It exists, as it was left here."""
GONE: Final = 2
ASK: Final = 3
"""The store must be asked again."""


class Change:
    """What was done here to a key."""

    __slots__ = ("alone", "is_dir", "item", "key", "kind", "newest_ns", "parent", "passing", "past", "until", "when")

    def __init__(self, key: str, is_dir: bool, kind: int, parent: str, past: frozenset[str], item: Object | None) -> None:
        self.key = key
        self.is_dir = is_dir
        self.kind = kind
        self.parent = parent
        """The directory key of the directory that shows it."""
        self.past = past
        """ETags the key had before."""
        self.item = item
        """PUBLISHED: the version."""
        self.newest_ns = 0 if item is None else item.mtime_ns
        """LastModified of the newest version that was known: what is older came before."""
        self.passing = False
        """HELD only while a listing may not show yet what was made in it."""
        self.alone = False
        """A file that had no directory of the same name beside it."""
        self.when = time.monotonic()
        self.until = self.when if kind == DOUBT else self.when + GRACE_S

    @property
    def exists(self) -> bool:
        """Whether the change says that the file or directory is there."""
        return self.kind in (PRESENT, PUBLISHED, HELD)

    def judge(self, there: bool, item: Object | None, asked: float, now: float) -> int:
        """Return BELIEVE, HERE, GONE or ASK about an answer that shows the key or not, and a file's version."""
        kind = self.kind
        if kind == PRESENT:
            return HERE
        if kind == HELD:
            return BELIEVE if (there or self.passing) and asked >= self.until else HERE
        if asked >= self.until:
            return BELIEVE
        if kind == DOUBT:
            return ASK
        if asked >= self.when and self._agrees(there, item):
            return BELIEVE
        if now >= self.until:
            return ASK
        return HERE if kind == PUBLISHED else GONE

    def _agrees(self, there: bool, item: Object | None) -> bool:
        """Return whether an answer shows what was done here, or what somebody else did since."""
        if not there:
            return self.kind == REMOVED
        if item is None or not item.etag:
            return self.kind == PUBLISHED
        if self.item is not None and item.etag == self.item.etag:
            return True
        return item.etag not in self.past and item.mtime_ns // _SECOND_NS >= self.newest_ns // _SECOND_NS


class Overlay:
    """The changes of a mount."""

    def __init__(self, keep: float) -> None:
        self._keep = keep
        """Seconds an answer may be used after it was asked for."""
        self.changes: dict[str, Change] = {}
        """By ident."""
        self._children: dict[str, dict[str, Change]] = {}
        """By directory key: the changes that say that something exists."""
        self._swept: dict[str, float] = {}
        """Directory keys ("a/b/") of which nothing that was asked for before that time is believed: they were moved or removed.
        The one that was swept last is at the end."""
        self._arrived: dict[str, float] = {}
        """Directory keys that came into such a directory, or in its place, since; until when that counts."""
        self._queue: deque[tuple[float, str, Change]] = deque()
        self.serial = 0
        """Counts changes."""
        self.dropped: list[tuple[str, float]] = []
        """Directory keys, and the time before which answers about them need a change that was just dropped."""

    def __bool__(self) -> bool:
        return bool(self.changes or self._swept)

    def add(
        self,
        key: str,
        is_dir: bool,
        kind: int,
        parent: str,
        past: frozenset[str] = frozenset(),
        item: Object | None = None,
        passing: bool = False,
    ) -> Change:
        """Record what was done, and return it; it takes the place of what was done before."""
        name = ident(key, is_dir)
        change = Change(key, is_dir, kind, parent, past, item)
        change.passing = passing
        self.serial += 1
        before = self.drop(name)
        if before is not None:
            change.newest_ns = max(change.newest_ns, before.newest_ns)
        self.changes[name] = change
        if change.exists:
            self._children.setdefault(parent, {})[name] = change
        if passing or kind in (PUBLISHED, REMOVED, DOUBT):
            self._queue.append((change.until + self._keep, name, change))
        self._expire(change.when)
        return change

    def drop(self, name: str) -> Change | None:
        """Forget the change of an ident."""
        change = self.changes.pop(name, None)
        if change is not None and change.exists:
            children = self._children.get(change.parent)
            if children is not None and children.pop(name, None) is not None and not children:
                del self._children[change.parent]
        return change

    def sweep(self, directory: str) -> None:
        """Believe nothing that was asked for up to GRACE_S from now about what is below *directory*."""
        now = time.monotonic()
        self._swept.pop(directory, None)
        self._swept[directory] = now + GRACE_S
        self._arrived = {other: until for other, until in self._arrived.items() if not other.startswith(directory)}
        self._expire(now)

    def arrive(self, directory: str) -> None:
        """Believe what is said of what is below *directory* again: a whole tree was just moved there."""
        now = time.monotonic()
        if self._swept:
            self._arrived = {other: until for other, until in self._arrived.items() if until > now}
            self._arrived[directory] = now + GRACE_S + self._keep

    def _expire(self, now: float) -> None:
        queue = self._queue
        while queue and queue[0][0] <= now:
            _, name, change = queue.popleft()
            if self.changes.get(name) is change:
                self.drop(name)
                self.dropped.append((change.parent, change.until))
        while self._swept and self._swept[directory := next(iter(self._swept))] + self._keep <= now:
            del self._swept[directory]

    def judge(self, key: str, is_dir: bool, there: bool, item: Object | None, asked: float, now: float) -> int:
        """Return BELIEVE, HERE, GONE or ASK about an answer that shows a key or not, and a file's version."""
        change = self.changes.get(ident(key, is_dir))
        if change is not None:
            return change.judge(there, item, asked, now)
        if self._swept and there:
            end = key.rfind("/", 0, len(key) - 1) + 1
            while end and key[:end] not in self._arrived:
                until = self._swept.get(key[:end], 0.0)
                if asked < until:
                    return GONE if now < until else ASK
                end = key.rfind("/", 0, end - 1) + 1
        return BELIEVE

    def past_of(self, key: str) -> frozenset[str]:
        """Return the ETags a file is known to have had a short while ago."""
        change = self.changes.get(ident(key, False))
        if change is None or change.kind not in (PUBLISHED, REMOVED) or change.until <= time.monotonic():
            return frozenset()
        return change.past | {change.item.etag} if change.item is not None else change.past

    def children(self, directory: str) -> list[Change]:
        """Return the changes that say what exists in *directory*, whatever a listing asked for now will say."""
        now = time.monotonic()
        return [
            change
            for change in self._children.get(directory, {}).values()
            if now < change.until or not (change.passing or change.kind == PUBLISHED)
        ]

    def below(self, prefix: str) -> Iterator[tuple[str, Change]]:
        """Yield the changes of keys that begin with *prefix*, with their idents."""
        for name, change in list(self.changes.items()):
            if change.key.startswith(prefix):
                yield name, change


__all__ = [
    "ASK",
    "BELIEVE",
    "DOUBT",
    "GONE",
    "GRACE_S",
    "HELD",
    "HERE",
    "PRESENT",
    "PUBLISHED",
    "REMOVED",
    "Change",
    "Overlay",
]
