"""Files that are replaced here so fast that the server's ETags do not tell the versions apart.

nginx makes ETags of the second of the last change, and the size: git's index, replaced twice in a second, is the same file to
it. What was written here is known to be another version, so nothing that was cached under such a name is believed.
"""

from __future__ import annotations

import time
from typing import Final

from .contents.reading import Files, OpenFile
from .values import Resource

SAME_NS: Final = 3 * 10**9
"""Changes that lie closer together may be one to the server: its clock's second, and some difference between the clocks."""


class GuardedFiles(Files):
    """Files, whose disk cache is passed by for what cannot be told apart."""

    def __init__(self, files: Files) -> None:
        super().__init__(files.web, files.options, files.cache, files.budget, files.tasks)
        self._bare = Files(files.web, files.options, None, files.budget, files.tasks)
        self._suspects: set[str] = set()

    def replaced(self, url: str, mtime_ns: int) -> None:
        """Note that what was at *url*, changed last at *mtime_ns*, is replaced, moved or removed now."""
        if abs(time.time_ns() - mtime_ns) < SAME_NS:
            self.suspect(url)

    def suspect(self, url: str) -> None:
        """Believe nothing that is cached of *url*, as long as this mount lasts."""
        self._suspects.add(url)

    def trusted(self, resource: Resource) -> bool:
        """Return whether the disk cache may hold this version."""
        return resource.url not in self._suspects

    async def open(self, resource: Resource) -> OpenFile:
        """Return the version that *resource* describes, to be read."""
        return await (super().open(resource) if self.trusted(resource) else self._bare.open(resource))

    def left(self, file: OpenFile) -> None:
        """Share a file with nobody who opens its URL from now on."""
        super().left(file)
        self._bare.left(file)

    async def adopt(self, resource: Resource, fd: int) -> None:
        """Keep a file in the disk cache, if its version can be told apart."""
        if self.trusted(resource):
            await super().adopt(resource, fd)


__all__ = ["GuardedFiles"]
