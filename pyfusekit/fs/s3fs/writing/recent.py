"""The bytes of small files that this mount has just published: who reads them back need not fetch them."""

from __future__ import annotations

from typing import NamedTuple

LARGEST = 128 << 10
"""Bytes of the largest file that is kept."""
TOGETHER = 8 << 20
"""Bytes of all of them."""


class _Kept(NamedTuple):
    etag: str
    data: bytes


class Recent:
    """Contents by inode number, each of one version; what was kept first goes first.

    Whether that version is still the one to be shown is for the caller to know, as of what the kernel has cached.
    """

    def __init__(self, limit: int = TOGETHER) -> None:
        self._limit = limit
        self._kept: dict[int, _Kept] = {}
        self._bytes = 0

    def keep(self, ino: int, etag: str, data: bytes) -> None:
        """Keep the bytes of the version *etag*, in place of an older one's."""
        self.drop(ino)
        if not etag or not 0 < len(data) <= min(LARGEST, self._limit):
            return
        while self._bytes + len(data) > self._limit:
            self.drop(next(iter(self._kept)))
        self._kept[ino] = _Kept(etag, data)
        self._bytes += len(data)

    def find(self, ino: int, etag: str) -> bytes | None:
        """Return the bytes of that version, None when they are not here."""
        kept = self._kept.get(ino)
        return kept.data if kept is not None and kept.etag == etag else None

    def copied(self, ino: int, etag: str, made: str) -> None:
        """The version *etag* was copied: *made* has the same bytes."""
        kept = self._kept.get(ino)
        if kept is not None and kept.etag == etag != made:
            self.keep(ino, made, kept.data)

    def drop(self, ino: int) -> None:
        """Forget what is kept of a file."""
        kept = self._kept.pop(ino, None)
        if kept is not None:
            self._bytes -= len(kept.data)


__all__ = ["LARGEST", "TOGETHER", "Recent"]
