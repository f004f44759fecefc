"""The directory of the staging files, how much they may hold together, and empty ones kept for the next."""

from __future__ import annotations

import errno
import os
import tempfile
from typing import Any

from ..remote.store import Object
from .extents import Extents
from .staging import Staged
from .streams import Attempt

_SPARE = 16


class Scratch:
    """A directory for staging files, and how many bytes they may hold together."""

    def __init__(self, directory: str, limit_bytes: int = 0, *, conflicts: str = "") -> None:
        """*directory* is made, for its owner only, when it is not there; *limit_bytes* 0 is no limit but the disk's.

        *conflicts*: where copies are kept that could not be published, on the same filesystem; DIRECTORY/conflicts when "".
        """
        os.makedirs(directory, 0o700, exist_ok=True)
        self.directory = directory
        self.conflicts = conflicts or os.path.join(directory, "conflicts")
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self._spare: list[int] = []
        """Empty files without a name."""

    def stage(self, base: Object | None, *, truncated: bool = False) -> Staged:
        """Return a Staged for a file whose object is *base* (None: a new file, which is dirty from the start).

        *truncated*: nothing of the base shows (O_TRUNC), which is a change.
        """
        staged = Staged(self, *self.open(), base)
        if truncated:
            staged.truncate(0)
        return staged

    def adopt(self, record: dict[str, Any], fd: int) -> Staged:
        """Return the Staged of a record() whose local bytes are in the file *fd*, which belongs to it from now on.

        The bytes count towards the limit, but are never refused. EIO when the file is shorter than the record says.
        """
        base = Object(*record["base"]) if record["base"] is not None else None
        staged = Staged(self, fd, "", base)
        staged.replaces = Object(*record["replaces"]) if record["replaces"] is not None else None
        staged.id = str(record["id"])
        staged.restored = True
        staged.base_limit = int(record["base_limit"])
        staged.size = int(record["size"])
        staged.generation = int(record["generation"])
        staged.published_generation = -1
        staged.diverted = str(record["diverted"])
        staged.appended = bool(record["appended"])
        staged.attempts = {str(txn): Attempt(*attempt) for txn, attempt in record["attempts"].items()}
        staged.local = Extents((start, end) for start, end in record["local"])
        staged.changed = Extents((start, end) for start, end in record["changed"])
        self.used_bytes += staged.local.total
        if os.fstat(fd).st_size < staged.local.end:
            staged.close()
            raise OSError(errno.EIO, "the staging file is shorter than its record says")
        staged.cover()
        return staged

    def open(self) -> tuple[int, str]:
        """Return a new file's descriptor, and its path where the filesystem gives nameless files none later."""
        if self._spare:
            return self._spare.pop(), ""
        try:
            return os.open(self.directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600), ""
        except OSError as exc:
            if exc.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL):
                raise
        os.makedirs(self.directory, 0o700, exist_ok=True)
        return tempfile.mkstemp(prefix="staged-", dir=self.directory)

    def give_back(self, fd: int) -> None:
        """Close a file's descriptor, or keep it for the next: to make a file costs a hundred times what emptying one does."""
        if len(self._spare) < _SPARE and not os.fstat(fd).st_nlink:
            os.ftruncate(fd, 0)
            self._spare.append(fd)
        else:
            os.close(fd)

    def close(self) -> None:
        """Close what is kept for later."""
        while self._spare:
            os.close(self._spare.pop())

    def fits(self, size: int) -> bool:
        """Return whether *size* bytes more are within the limit."""
        return not self.limit_bytes or self.used_bytes + size <= self.limit_bytes


__all__ = ["Scratch"]
