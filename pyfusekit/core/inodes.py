"""What the kernel's numbers stand for: node ids with their lookup counts, and the handles of open files.

A filesystem keeps an :class:`InodeTable`, whose values are its own node objects:

    self.inodes = InodeTable(Directory())          # the root is 1
    ...
    ino = self.inodes.number(key, lambda: File(key))
    self.inodes.enter(ino)                         # no await between choosing a node and counting it
    ...
    def forget(self, ino, nlookup): self.inodes.forget(ino, nlookup)

The core keeps a :class:`HandleTable` for a session.
"""

from __future__ import annotations

import errno
import logging
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from typing import Any, Generic, TypeVar

from .abi import ROOT_ID

T = TypeVar("T")

_log = logging.getLogger(__name__)


class InodeTable(Generic[T]):
    """Node id -> the filesystem's node object, for as long as the kernel or the filesystem needs it.

    A node stays while it has lookups (:meth:`enter`, taken back by :meth:`forget`) or pins (:meth:`pin`, :meth:`unpin`: the
    filesystem's own reasons, such as a name or unwritten data), and drops out when the last of both goes. One that was only
    added has neither yet and stays until they have come and gone, or until :meth:`discard`.

    INVARIANT: (ino, generation) never names two nodes in the life of the table. Ids count up from *first* and are not used
    again; with *recycle* the ones that dropped out are, oldest first, each time with the next higher generation. That keeps
    them small, for programs that store inode numbers in 32 bits.
    """

    __slots__ = ("_by_key", "_free", "_generations", "_keys", "_lookups", "_next", "_nodes", "_pins", "_recycle")

    def __init__(self, root: T, *, first: int = ROOT_ID + 1, recycle: bool = False) -> None:
        if first <= ROOT_ID:
            raise ValueError("node ids below 2 are taken: 0 is none, 1 is the root")
        self._nodes: dict[int, T] = {ROOT_ID: root}
        self._lookups: dict[int, int] = {}
        """INVARIANT: only counts above 0."""
        self._pins: dict[int, int] = {}
        """INVARIANT: only counts above 0."""
        self._by_key: dict[Hashable, int] = {}
        self._keys: dict[int, Hashable] = {}
        """INVARIANT: the inverse of _by_key."""
        self._generations: dict[int, int] = {}
        """Ids in their second and later lives; all others have generation 0."""
        self._free: deque[int] = deque()
        self._next = first
        self._recycle = recycle

    def __getitem__(self, ino: int) -> T:
        """Return the node of *ino*; OSError(ESTALE) when there is none."""
        try:
            return self._nodes[ino]
        except KeyError:
            raise _stale(ino) from None

    def __contains__(self, ino: object) -> bool:
        return ino in self._nodes

    def __len__(self) -> int:
        return len(self._nodes)

    def __iter__(self) -> Iterator[int]:
        return iter(self._nodes)

    def get(self, ino: int) -> T | None:
        """Return the node of *ino*, or None."""
        return self._nodes.get(ino)

    def nlookup(self, ino: int) -> int:
        """Return how many lookups of *ino* the kernel has."""
        return self._lookups.get(ino, 0)

    def generation(self, ino: int) -> int:
        """Return the generation of *ino*, for Attr.generation."""
        return self._generations.get(ino, 0)

    # Coming in.

    def add(self, node: T) -> int:
        """Give *node* an id of its own, with no lookup counted."""
        if self._free:
            ino = self._free.popleft()
            self._generations[ino] = self._generations.get(ino, 0) + 1
        else:
            ino = self._next
            while ino in self._nodes:  # placed there by hand
                ino += 1
            self._next = ino + 1
        self._nodes[ino] = node
        return ino

    def place(self, ino: int, node: T, generation: int = 0) -> None:
        """Put *node* under an id of the filesystem's choice, such as a row id; ValueError when it is taken.

        Who chooses ids answers for the invariant: *generation* is to be higher than at the id's last use.
        """
        if ino <= ROOT_ID or ino in self._nodes:
            raise ValueError(f"the node id {ino} is taken")
        if generation:
            self._generations[ino] = generation
        if ino in self._free:
            self._free.remove(ino)
        self._nodes[ino] = node

    def number(self, key: Hashable, make: Callable[[], T]) -> int:
        """Return the id of the node that *key* names, made with *make* when it is not here yet; no lookup is counted.

        A key is what the backend knows the file by: (st_dev, st_ino), a path, a URL.
        """
        ino = self._by_key.get(key)
        if ino is None:
            ino = self.add(make())
            self.rekey(ino, key)
        return ino

    def find(self, key: Hashable) -> int | None:
        """Return the id of the node that *key* names, or None."""
        return self._by_key.get(key)

    def rekey(self, ino: int, key: Hashable | None) -> None:
        """Let *key* name the node *ino* from now on, or (None) no key.

        A node that had this key loses it. Call it with None when the backend's object is gone while the kernel still knows
        the node, because the backend may use the same key for another.
        """
        if ino not in self._nodes:
            raise _stale(ino)
        former = self._keys.pop(ino, None)
        if former is not None:
            del self._by_key[former]
        if key is None:
            return
        loser = self._by_key.get(key)
        if loser is not None:
            del self._keys[loser]
        self._by_key[key] = ino
        self._keys[ino] = key

    def enter(self, ino: int) -> int:
        """Count one lookup of *ino* and return it; OSError(ESTALE) when there is no such node.

        To be called where the node is chosen, with no await in between: a FORGET may come at any await.
        """
        if ino not in self._nodes:
            raise _stale(ino)
        self._lookups[ino] = self._lookups.get(ino, 0) + 1
        return ino

    def pin(self, ino: int) -> None:
        """Keep *ino* for one more reason of the filesystem's own."""
        if ino not in self._nodes:
            raise _stale(ino)
        self._pins[ino] = self._pins.get(ino, 0) + 1

    # Going out.

    def forget(self, ino: int, nlookup: int) -> T | None:
        """Take *nlookup* lookups of *ino* back; return its node when it dropped out with that, else None.

        Never raises: it is called with what the kernel says, which is only logged when it makes no sense.
        """
        count = self._lookups.get(ino, 0)
        if nlookup > count:
            _log.warning("the kernel forgot node %d %d times, it was looked up %d times", ino, nlookup, count)
        if not count:
            return None
        if nlookup < count:
            self._lookups[ino] = count - max(0, nlookup)
            return None
        del self._lookups[ino]
        return self._drop_if_unused(ino)

    def unpin(self, ino: int) -> T | None:
        """Take one pin of *ino* back; return its node when it dropped out with that, else None."""
        count = self._pins.get(ino, 0)
        if not count:
            raise ValueError(f"node {ino} is not pinned")
        if count > 1:
            self._pins[ino] = count - 1
            return None
        del self._pins[ino]
        return self._drop_if_unused(ino)

    def discard(self, ino: int) -> T | None:
        """Drop *ino* if nothing holds it: a node that was added and never entered. Return its node then, else None."""
        return self._drop_if_unused(ino) if ino in self._nodes else None

    def clear(self) -> list[T]:
        """Forget everything but the root and return the nodes that went: the mount is gone, no FORGET will come."""
        gone = [self._drop(ino) for ino in list(self._nodes) if ino != ROOT_ID]
        self._lookups.clear()
        self._pins.clear()
        return gone

    def _drop_if_unused(self, ino: int) -> T | None:
        if ino == ROOT_ID or ino in self._lookups or ino in self._pins:
            return None
        return self._drop(ino)

    def _drop(self, ino: int) -> T:
        key = self._keys.pop(ino, None)
        if key is not None:
            del self._by_key[key]
        if self._recycle:
            self._free.append(ino)
        else:
            self._generations.pop(ino, None)
        return self._nodes.pop(ino)


def _stale(ino: int) -> OSError:
    return OSError(errno.ESTALE, f"there is no node {ino}")


class HandleTable:
    """fh, the kernel's number of an open file -> the object that open returned.

    ``table.objects[fh]`` is the way to look one up on the hot path; an IndexError is an EBADF. fh 0 is never given out and
    stands for None, the handle of a file whose open said nothing.
    """

    __slots__ = ("_free", "objects")

    def __init__(self) -> None:
        self.objects: list[Any] = [None]
        """INVARIANT: None at 0 and where no file is open."""
        self._free: list[int] = []

    def __len__(self) -> int:
        """Return how many handles are open."""
        return len(self.objects) - 1 - len(self._free)

    def __iter__(self) -> Iterator[Any]:
        """Go through the open handles."""
        return (handle for handle in self.objects if handle is not None)

    def __getitem__(self, fh: int) -> Any:
        """Return the handle *fh*; None for 0, OSError(EBADF) when it is not open."""
        if fh == 0:
            return None
        try:
            handle = self.objects[fh] if fh > 0 else None
        except IndexError:
            handle = None
        if handle is None:
            raise _bad_handle(fh)
        return handle

    def add(self, handle: Any) -> int:
        """Return a number for *handle*; 0 for None."""
        if handle is None:
            return 0
        if self._free:
            fh = self._free.pop()
            self.objects[fh] = handle
            return fh
        self.objects.append(handle)
        return len(self.objects) - 1

    def pop(self, fh: int) -> Any:
        """Return the handle *fh* and close its number; None for 0, OSError(EBADF) when it is not open."""
        handle = self[fh]
        if fh:
            self.objects[fh] = None
            self._free.append(fh)
        return handle


def _bad_handle(fh: int) -> OSError:
    return OSError(errno.EBADF, f"there is no open file {fh}")


__all__ = ["HandleTable", "InodeTable"]
