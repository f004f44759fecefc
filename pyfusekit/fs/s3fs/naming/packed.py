"""Objects of a page in little memory: some 30 bytes each beside the key, instead of 250."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import overload

from ..remote.store import Object

_MD5 = 16


class Packed(Sequence["Object"]):
    """The objects of *keys*, made anew whenever one is asked for. The keys are the caller's list, not a copy."""

    __slots__ = ("_classes", "_digests", "_etags", "_keys", "_sizes", "_times")

    def __init__(self, keys: list[str], objects: Sequence[Object]) -> None:
        self._keys = keys
        self._sizes = array("q", [item.size for item in objects])
        self._times = array("q", [item.mtime_ns for item in objects])
        self._etags: list[str] | None = None
        try:
            digests = bytes.fromhex("".join([item.etag for item in objects]))
        except ValueError:
            digests = b""
        # What is no MD5 in lower case, as of a multipart upload, stays as it is.
        plain = len(digests) == _MD5 * len(objects) and all([len(item.etag) == 2 * _MD5 for item in objects])
        if plain and digests.hex() == "".join([item.etag for item in objects]):
            self._digests = digests
        else:
            self._digests = b""
            self._etags = [item.etag for item in objects]
        classes = [item.storage_class for item in objects]
        self._classes = classes if any(classes) else None

    def __len__(self) -> int:
        return len(self._sizes)

    @overload
    def __getitem__(self, place: int) -> Object: ...
    @overload
    def __getitem__(self, place: slice) -> list[Object]: ...
    def __getitem__(self, place: int | slice) -> Object | list[Object]:
        if isinstance(place, slice):
            return [self[index] for index in range(*place.indices(len(self)))]
        etags = self._etags
        etag = self._digests[_MD5 * place : _MD5 * (place + 1)].hex() if etags is None else etags[place]
        storage_class = self._classes[place] if self._classes is not None else ""
        return Object(self._keys[place], self._sizes[place], self._times[place], etag, storage_class)


__all__ = ["Packed"]
