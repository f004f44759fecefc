"""What the server says of a file beside its bytes, as extended attributes below user.http.

They are not listed by listxattr: cp -a and rsync -X would carry them to files they are not true of, and ls would ask for them
one by one.
"""

from __future__ import annotations

import errno
from typing import Any

from pyfusekit.core import Data, Request, Result, StatFs

from .naming.nodes import IS_DIR, NAME_MAX, Directory
from .opening import Opens
from .values import HttpError, Resource

_OURS = b"user.http."
_BLOCK = 4096
_OF_FILES = frozenset(("etag", "last-modified", "content-type", "status", "final-url", "server"))
_OF_ALL = frozenset(("url", "driver"))


class Attributed(Opens):
    """getxattr, statfs."""

    def getxattr(self, request: Request, ino: int, name: bytes) -> Result[Data]:
        """Return what is below user.http; EOPNOTSUPP for the rest, so that ls asks for no ACL but once."""
        if not name.startswith(b"user."):
            raise OSError(errno.EOPNOTSUPP, "there are no such attributes")
        word = name.removeprefix(_OURS).decode("utf-8", "replace") if name.startswith(_OURS) else ""
        directory, place = self.tree.row(ino)
        if word in _OF_ALL:
            return self._of_all(word, ino, directory, place)
        if word not in _OF_FILES:
            raise OSError(errno.ENODATA, "there is no such attribute")
        if directory.flags[place] & IS_DIR:
            return self._of_directory(word, ino)
        return self._of_file(word, ino, directory, place)

    def _of_all(self, word: str, ino: int, directory: Directory, place: int) -> bytes:
        if word == "url":
            own = self.tree.directories.get(ino)
            return (own.url if own is not None else directory.url_at(place)).encode("utf-8", "surrogateescape")
        own = self.tree.directories.get(ino) if directory.flags[place] & IS_DIR else directory
        if own is None or not own.told.driver:
            raise OSError(errno.ENODATA, "nobody has looked into it")
        return own.told.driver.encode()

    def _of_directory(self, word: str, ino: int) -> bytes:
        own = self.tree.directories.get(ino)
        said = {}
        if own is not None:
            said = {"etag": own.told.etag, "last-modified": own.told.modified, **own.told.headers}
        return _value(said.get(word, ""))

    async def _of_file(self, word: str, ino: int, directory: Directory, place: int) -> bytes:
        resource = self.known(directory, place)
        if resource is None:
            try:
                resource = await self.current(ino, directory, place)
            except HttpError as exc:
                if word == "status" and exc.status:
                    return str(exc.status).encode()
                raise
        return _value(_words(resource)[word])

    def statfs(self, request: Request, ino: int) -> StatFs:
        """A web server has no size: what is known of it, and no room."""
        used = (self.tree.known_bytes() + _BLOCK - 1) // _BLOCK
        names = self.tree.counts()["names"] + 1
        free = (1 << 50) // _BLOCK if self.options.rw else 0
        return StatFs(
            blocks=used + free, bfree=free, bavail=free, files=names + free, ffree=free, bsize=_BLOCK, frsize=_BLOCK,
            namelen=NAME_MAX,
        )  # fmt: skip


def _words(resource: Resource) -> dict[str, Any]:
    validator = resource.validator
    return {
        "etag": validator.etag,
        "last-modified": validator.modified,
        "content-type": resource.content_type,
        "status": "200",
        "final-url": resource.final_url,
        "server": resource.headers.get("server", ""),
    }


def _value(text: str) -> bytes:
    if not text:
        raise OSError(errno.ENODATA, "the server does not tell")
    return text.encode("utf-8", "surrogateescape")


__all__ = ["Attributed"]
