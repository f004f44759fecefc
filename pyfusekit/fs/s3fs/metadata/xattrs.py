"""Extended attributes: the user's own (kept in the metadata, see posix.py), and S3's words below user.s3.

user.s3.etag, .key, .size, .last-modified, .storage-class, .version-id, .sse, .sse-kms-key and every other x-amz-NAME header of
the object as user.s3.NAME (.restore, .expiration, .replication-status, .checksum-crc32...) are read-only. Writable are
user.s3.content-type, .cache-control, .content-encoding, .content-disposition, .content-language, .expires, user.s3.meta.NAME
(user metadata that is not ours) and user.s3.tag.NAME. None of them is listed by listxattr, because rsync -X and cp would carry
them to files they are not true of; user.s3 alone has them all but the tags, as lines "name=value".
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final, NamedTuple, TypeVar

from ..remote.store import Head
from .posix import HEADERS, TXN, Posix, encode, keeps, shown

_K = TypeVar("_K")
_V = TypeVar("_V")

NOTHING: Final = 0
POSIX: Final = 1
HEAD: Final = 2
TAGS: Final = 3

TAGS_MAX: Final = 10
"""Tags of an object (S3 user guide, "Object tagging"); names have at most 128 characters, values 256."""

_ALL = b"user.s3"
_S3 = b"user.s3."
_META = b"user.s3.meta."
_TAG = b"user.s3.tag."
_KEPT = (b"user.", b"trusted.")
_RENAMED = {
    "sse": "x-amz-server-side-encryption",
    "sse-kms-key": "x-amz-server-side-encryption-aws-kms-key-id",
    "sse-c": "x-amz-server-side-encryption-customer-algorithm",
    "parts-count": "x-amz-mp-parts-count",
    "tag-count": "x-amz-tagging-count",
}
_WORDS = {header: word for word, header in _RENAMED.items()}
_OURS = frozenset({"mode", "uid", "gid", "rdev", "atime", "mtime", "ctime", "xattr", TXN})
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]+")
"""Names HTTP takes (RFC 9110, 5.6.2), in lower case as S3 gives them out."""


def needs(name: bytes) -> int:
    """Return what get() must be given for *name*: NOTHING (blanks do), POSIX, HEAD (and POSIX), TAGS (and both).

    The kernel asks for security.capability before every write, and "ls -l" for an ACL of every file: those cost nothing.
    """
    if name.startswith(_TAG):
        return TAGS
    if name == _ALL or name.startswith(_S3):
        return HEAD
    return POSIX if name.startswith(_KEPT) else NOTHING


def get(name: bytes, posix: Posix, head: Head | None, tags: Mapping[str, str] | None = None) -> bytes:
    """Return the value; ENODATA. *head* is None where there is no object, as for a directory without a marker."""
    found: str | None = None
    if name.startswith(_TAG):
        found = (tags or {}).get(_text(name[len(_TAG) :]))
    elif name == _ALL:
        found = "".join(f"{word}={value}\n" for word, value in sorted(_all(head).items())) if head is not None else None
    elif name.startswith(_S3):
        found = _all(head).get(_text(name[len(_S3) :])) if head is not None else None
    elif name.startswith(_KEPT):
        value = (posix.xattrs or {}).get(name)
        if value is not None:
            return value
    elif name.startswith(b"system."):
        raise OSError(errno.EOPNOTSUPP, "no attributes of the system are kept")
    if found is None:
        raise OSError(errno.ENODATA, "no such attribute")
    return found.encode("utf-8", "surrogateescape")


def names(posix: Posix) -> list[bytes]:
    """Return the names for listxattr."""
    return [name for name in posix.xattrs or () if name.startswith(_KEPT) and name != _ALL and not name.startswith(_S3)]


class Assigned(NamedTuple):
    """What setxattr and removexattr make of an object."""

    posix: Posix
    head: Head
    """With other metadata or headers: give it to posix.attributes as *old*."""
    tags: dict[str, str] | None = None
    """Not None: store.set_tags(key, these), and nothing else changes."""


def assign(
    name: bytes, value: bytes | None, flags: int, posix: Posix, head: Head, flavour: str, tags: Mapping[str, str] | None = None
) -> Assigned:
    """Return what setting *name* to *value* (None: removing it) changes.

    *flags*: XATTR_CREATE (EEXIST), XATTR_REPLACE (ENODATA). EPERM: names that only S3 can set. EOPNOTSUPP: namespaces and
    flavours that keep nothing. EINVAL: a value that is no text where it must be one. ENOSPC: more than an object's metadata
    holds. *tags* are wanted where needs() says TAGS.
    """
    if name.startswith(_TAG):
        changed = _changed(tags or {}, _text(name[len(_TAG) :]), _tag_value(name, value), flags)
        if len(changed) > TAGS_MAX:
            raise OSError(errno.ENOSPC, f"an S3 object has at most {TAGS_MAX} tags")
        return Assigned(posix, head, changed)
    if name == _ALL or name.startswith(_S3):
        return Assigned(posix, _assign_s3(name, value, flags, posix, head, flavour))
    if not name.startswith(_KEPT) or not keeps(flavour, "xattrs"):
        raise OSError(errno.EOPNOTSUPP, f"the attribute {name!r} cannot be kept")
    if posix.xattrs is None:
        raise OSError(errno.EIO, "the attributes in x-amz-meta-xattr cannot be understood, and would be lost")
    if value is not None and b'":"' in name:
        raise OSError(errno.EINVAL, "s3fs-fuse's format has no place for this name")
    posix = posix.but(xattrs=_changed(posix.xattrs, name, value, flags))
    if value is not None:
        encode(posix, head.metadata, flavour)
    return Assigned(posix, head)


def _assign_s3(name: bytes, value: bytes | None, flags: int, posix: Posix, head: Head, flavour: str) -> Head:
    """Set a header or metadata of others."""
    word = _text(name[len(_S3) :])
    if name.startswith(_META):
        word = _text(name[len(_META) :])
        if word in _OURS:
            raise OSError(errno.EPERM, f"{word!r} is set by chmod, chown, utimensat and setxattr")
        if not _TOKEN.fullmatch(word):
            raise OSError(errno.EINVAL, f"{word!r} is no name of user metadata (lower case, no spaces)")
        head = head._replace(metadata=_changed(head.metadata, word, None if value is None else _text(value), flags))
        if value is not None:
            encode(posix, head.metadata, flavour)
        return head
    if word not in HEADERS:
        raise OSError(errno.EPERM, f"{name!r} cannot be set")
    text = None if value is None else _text(value)
    if text is not None and not (text and text.isascii() and text.isprintable() and text == text.strip()):
        raise OSError(errno.EINVAL, f"{word} must be printable ASCII without spaces around it")
    return head._replace(headers=_changed(head.headers, word, text, flags))


def _changed(old: Mapping[_K, _V], name: _K, value: _V | None, flags: int) -> dict[_K, _V]:
    """Return *old* with *name* set or removed, as the flags of setxattr(2) allow."""
    if name in old:
        if flags & os.XATTR_CREATE:
            raise OSError(errno.EEXIST, "the attribute is there")
    elif value is None or flags & os.XATTR_REPLACE:
        raise OSError(errno.ENODATA, "no such attribute")
    new = dict(old)
    if value is None:
        del new[name]
    else:
        new[name] = value
    return new


def _tag_value(name: bytes, value: bytes | None) -> str | None:
    text = None if value is None else _text(value)
    if not 0 < len(_text(name[len(_TAG) :])) <= 128 or (text is not None and len(text) > 256):
        raise OSError(errno.EINVAL, "a tag's name has 1 to 128 characters, its value at most 256")
    return text


def _all(head: Head) -> dict[str, str]:
    """Return what can be read below user.s3, by name."""
    item = head.item
    found = {header: head.headers[header] for header in HEADERS if header in head.headers}
    found["storage-class"] = item.storage_class or "STANDARD"
    for header, value in head.headers.items():
        if header.startswith("x-amz-"):
            found[_WORDS.get(header, header[len("x-amz-") :])] = value
    for word, value in head.metadata.items():
        found[f"meta.{word}"] = shown(value)
    found["key"] = item.key
    found["size"] = str(item.size)
    if item.etag:
        found["etag"] = item.etag
    if item.mtime_ns:
        found["last-modified"] = datetime.fromtimestamp(item.mtime_ns // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return found


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise OSError(errno.EINVAL, "not UTF-8") from None


__all__ = ["HEAD", "NOTHING", "POSIX", "TAGS", "TAGS_MAX", "Assigned", "assign", "get", "names", "needs"]
