"""POSIX attributes as S3 user metadata, in the words of s3fs-fuse or of rclone.

flavour "s3fs": x-amz-meta-mode (decimal, with the type bits), -uid, -gid, -mtime, -atime, -ctime ("seconds.nanoseconds", a
timespec), -xattr (URL-encoded, names as they are and values in base64), -rdev (no word of s3fs-fuse's, which keeps none). What
rclone -M and AWS DataSync say is understood where s3fs-fuse's own words are missing. flavour "rclone": x-amz-meta-mtime
(seconds, a decimal fraction), and mode (octal), uid and gid as rclone -M keeps them. flavour "none": nothing at all.

A symlink is an object whose bytes are the target. All forms were seen from s3fs 1.90 and rclone 1.75; see the tests.
"""

from __future__ import annotations

import base64
import binascii
import errno
import re
import stat
from collections.abc import Mapping
from functools import cache, lru_cache
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import quote, unquote_to_bytes

from pyfusekit.core import Attr

from ..remote.store import Attributes, Head, Object

DIRECTORY_TYPE: Final = "application/x-directory"
"""The content-type of a directory's marker."""
HEADERS: Final = (
    "content-type",
    "cache-control",
    "content-encoding",
    "content-disposition",
    "content-language",
    "expires",
)
"""What a version carries in headers of its own, and a copy with other metadata must repeat."""
METADATA_MAX: Final = 2048
"""Bytes of all names and values of user metadata (S3 user guide, "User-defined object metadata")."""
TXN: Final = "pyfusekit-txn"
"""The metadata that publish marks its versions with; it belongs to one version only."""
SYMLINK_MAX: Final = 4095
"""Bytes of the longest symlink (PATH_MAX without its NUL)."""

_RESERVED = len(TXN) + 36
_FIELDS = {
    "s3fs": frozenset({"mode", "uid", "gid", "rdev", "atime_ns", "mtime_ns", "ctime_ns", "xattrs"}),
    "rclone": frozenset({"mode", "uid", "gid", "mtime_ns"}),
    "none": frozenset[str](),
}
_TYPES = {stat.S_IFREG, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK}
_SECOND = 10**9
_TIME = re.compile(r"(-?)([0-9]{1,11})(?:\.([0-9]*))?")
_DATASYNC_TIME = re.compile(r"([0-9]{1,20})ns")
_WORD = re.compile(r"=\?utf-8\?([bq])\?([!->@-~]*)\?=", re.IGNORECASE)
_PAIR = re.compile(rb'"(.*?)"\s*:\s*"([A-Za-z0-9+/=]*)"(?=\s*[,}])', re.DOTALL)
_NO_XATTRS: Final[Mapping[bytes, bytes]] = MappingProxyType({})


class Posix:
    """What a file's metadata says of it; None: nothing is said. Never changed in place: see :meth:`but`."""

    __slots__ = ("atime_ns", "ctime_ns", "gid", "mode", "mtime_ns", "rdev", "uid", "xattrs")

    def __init__(
        self,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        rdev: int | None = None,
        atime_ns: int | None = None,
        mtime_ns: int | None = None,
        ctime_ns: int | None = None,
        xattrs: Mapping[bytes, bytes] | None = _NO_XATTRS,
    ) -> None:
        self.mode = mode
        """With the type bits: S_IFDIR for keys that end in "/", and never for others."""
        self.uid = uid
        self.gid = gid
        self.rdev = rdev
        self.atime_ns = atime_ns
        self.mtime_ns = mtime_ns
        self.ctime_ns = ctime_ns
        self.xattrs = xattrs
        """None: there are some, but they cannot be understood; encode keeps them as they are."""

    def but(self, **changes: Any) -> Posix:
        """Return a copy with *changes*, by the names of the fields."""
        copy = Posix()
        for field in self.__slots__:
            setattr(copy, field, changes.pop(field) if field in changes else getattr(self, field))
        if changes:
            raise TypeError(f"Posix has no {', '.join(changes)}")
        return copy

    def fill(self, attr: Attr) -> None:
        """Write what is known into *attr*; what is None stays as it is there, so stamp the defaults first.

        Without an atime, it is the mtime. Without a ctime, what stands there (LastModified) is right.
        """
        if self.mode is not None:
            attr.mode = self.mode
        if self.uid is not None:
            attr.uid = self.uid
        if self.gid is not None:
            attr.gid = self.gid
        if self.rdev is not None:
            attr.rdev = self.rdev
        if self.mtime_ns is not None:
            attr.mtime_ns = self.mtime_ns
            attr.atime_ns = self.mtime_ns
        if self.atime_ns is not None:
            attr.atime_ns = self.atime_ns
        if self.ctime_ns is not None:
            attr.ctime_ns = self.ctime_ns

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Posix) and all(getattr(self, field) == getattr(other, field) for field in self.__slots__)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        said = (f"{field}={getattr(self, field)!r}" for field in self.__slots__ if getattr(self, field) is not None)
        return f"Posix({', '.join(said)})"


NOTHING: Final = Posix()
"""Says nothing and has no xattrs: one object for all files without metadata."""


def keeps(flavour: str, field: str) -> bool:
    """Return whether *flavour* can store Posix.*field* ("mode", "mtime_ns"...): what it cannot, setattr must refuse."""
    return field in _FIELDS[flavour]


# Reading.


def decode(head: Head, flavour: str) -> Posix:
    """Return what *head* says, nonsense taken for nothing.

    A type that would hide an object's bytes is not believed: what is no possible symlink and no empty special file is regular.
    """
    metadata = head.metadata
    if not metadata or flavour == "none":
        return NOTHING
    get = metadata.get
    mode, uid, gid, mtime = get("mode"), get("uid"), get("gid"), get("mtime")
    posix = Posix()
    if flavour == "rclone":
        posix.mode = _mode(mode, head.item, octal=True) if mode is not None else None
        posix.mtime_ns = _time(mtime, True) if mtime is not None else None
    else:
        posix.mode = _mode(mode, head.item, octal=False) if mode is not None else None
        posix.mtime_ns = _time(mtime) if mtime is not None else None
        _decode_more(posix, head)
    if uid is not None:
        posix.uid = _id(uid)
    if gid is not None:
        posix.gid = _id(gid)
    return posix


def _decode_more(posix: Posix, head: Head) -> None:
    """Take what only s3fs-fuse and DataSync say."""
    get = head.metadata.get
    atime, ctime, rdev, packed = get("atime"), get("ctime"), get("rdev"), get("xattr")
    if atime is not None:
        posix.atime_ns = _time(atime)
    if ctime is not None:
        posix.ctime_ns = _time(ctime)
    if rdev is not None:
        posix.rdev = _id(rdev)
    if packed is not None:
        posix.xattrs = _xattrs_of(packed)
    if posix.mode is None and "file-permissions" in head.metadata:
        posix.mode = _mode(head.metadata["file-permissions"], head.item, octal=True)
        posix.uid, posix.gid = _id(get("file-owner", "")), _id(get("file-group", ""))
        posix.mtime_ns = posix.mtime_ns or _time(get("file-mtime", ""))
        posix.atime_ns = posix.atime_ns or _time(get("file-atime", ""))


def _mode(text: str, item: Object, *, octal: bool) -> int | None:
    mode = _mode_of(text, octal, item.key.endswith("/"))
    if mode is None or stat.S_IFMT(mode) in (stat.S_IFREG, stat.S_IFDIR):
        return mode
    possible = 0 < item.size <= SYMLINK_MAX if stat.S_ISLNK(mode) else not item.size
    return mode if possible else stat.S_IFREG | stat.S_IMODE(mode)


# Thousands of files have the same modes and owners, and one time as mtime and ctime: they then share the numbers too.


@lru_cache(1024)
def _mode_of(text: str, octal: bool, directory: bool) -> int | None:
    if not (text.isascii() and text.isdecimal()) or len(text) > 7:
        return None
    decimal = int(text)
    if not octal:
        # rclone -M writes "100644" and "40755": no decimal mode is that long, and no decimal directory looks like the latter.
        octal = decimal > 0o177777 or (directory and stat.S_IFMT(decimal) != stat.S_IFDIR and text.startswith("40"))
    try:
        mode = int(text, 8) if octal else decimal
    except ValueError:
        return None
    if mode > 0o177777:
        return None
    kind = stat.S_IFMT(mode)
    if directory:
        kind = stat.S_IFDIR
    elif kind not in _TYPES:
        kind = stat.S_IFREG
    return kind | stat.S_IMODE(mode)


@lru_cache(1024)
def _id(text: str) -> int | None:
    """Return a uid, gid or device number; -1 is none (chown(2))."""
    if not (text.isascii() and text.isdecimal()) or len(text) > 10:
        return None
    value = int(text)
    return value if value < 0xFFFFFFFF else None


@lru_cache(1024)
def _time(text: str, rclone: bool = False) -> int | None:
    """Return nanoseconds. "-2.500000000" is 1.5 s before the epoch to s3fs-fuse, 2.5 s to rclone, which writes "-2.5"."""
    found = _TIME.fullmatch(text)
    if found is None:
        datasync = _DATASYNC_TIME.fullmatch(text)
        return int(datasync[1]) if datasync is not None else None
    sign, seconds, fraction = found.groups()
    nanoseconds = int(fraction[:9].ljust(9, "0")) if fraction else 0
    if not sign:
        return int(seconds) * _SECOND + nanoseconds
    if rclone or len(fraction or "") != 9:
        return -int(seconds) * _SECOND - nanoseconds
    return -int(seconds) * _SECOND + nanoseconds


# Writing.


def encode(posix: Posix, foreign: Mapping[str, str], flavour: str) -> dict[str, str]:
    """Return the user metadata of a version: *foreign* (all metadata of the version before) with ours in its place.

    What *posix* does not say stays as it is in *foreign*. Names and values are printable ASCII (others' as RFC 2047 words, as
    S3 itself gives them out). ENOSPC when it is more than S3 takes.
    """
    metadata = {name: _printable(value) for name, value in foreign.items() if name != TXN}
    if flavour == "s3fs":
        said = {
            "mode": _number(posix.mode),
            "uid": _number(posix.uid),
            "gid": _number(posix.gid),
            "rdev": _number(posix.rdev),
            "mtime": _timespec(posix.mtime_ns),
            "atime": _timespec(posix.atime_ns),
            "ctime": _timespec(posix.ctime_ns),
        }
        if posix.xattrs is not None:
            metadata.pop("xattr", None)
            if posix.xattrs:
                said["xattr"] = _xattr_text(posix.xattrs)
    elif flavour == "rclone":
        said = {
            "mode": None if posix.mode is None else f"{posix.mode:o}",
            "uid": _number(posix.uid),
            "gid": _number(posix.gid),
            "mtime": _decimal(posix.mtime_ns),
        }
    else:
        said = {}
    metadata.update((name, value) for name, value in said.items() if value is not None)
    excess = sum(len(name) + len(value) for name, value in metadata.items()) - (METADATA_MAX - _RESERVED)
    if excess > 0:
        raise OSError(errno.ENOSPC, f"the attributes are {excess} bytes more than the metadata of an S3 object holds")
    return metadata


def _number(value: int | None) -> str | None:
    return None if value is None else str(value)


def _timespec(time_ns: int | None) -> str | None:
    """Write a time as s3fs-fuse does: no fraction, or one of nine digits that always counts forward."""
    if time_ns is None:
        return None
    seconds, nanoseconds = divmod(time_ns, _SECOND)
    return f"{seconds}.{nanoseconds:09}" if nanoseconds else str(seconds)


def _decimal(time_ns: int | None) -> str | None:
    """Write a time as rclone does: a decimal number without zeros at its end."""
    if time_ns is None:
        return None
    seconds, nanoseconds = divmod(abs(time_ns), _SECOND)
    text = f"{seconds}.{nanoseconds:09}".rstrip("0").rstrip(".")
    return f"-{text}" if time_ns < 0 else text


def _printable(value: str) -> str:
    if value.isascii() and value.isprintable() and value == value.strip():
        return value
    return f"=?UTF-8?B?{base64.b64encode(value.encode('utf-8', 'surrogateescape')).decode()}?="


def shown(value: str) -> str:
    """Return a metadata value as text: what was given out as RFC 2047 words of UTF-8 is decoded."""
    words = [_WORD.fullmatch(word) for word in value.split(" ")]
    try:
        raw = b"".join(
            base64.b64decode(word[2], validate=True) if word[1] in "Bb" else binascii.a2b_qp(word[2], header=True)
            for word in words
            if word is not None
        )
        return raw.decode() if None not in words else value
    except ValueError:
        return value


def _xattr_text(xattrs: Mapping[bytes, bytes]) -> str:
    """Write xattrs as s3fs-fuse does: {"name":"base64",...}, the names unescaped, all of it URL-encoded."""
    pairs = (b'"%b":"%b"' % (name, base64.b64encode(value)) for name, value in sorted(xattrs.items()))
    return quote(b"{%b}" % b",".join(pairs), safe="/*")


def _xattrs_of(text: str) -> Mapping[bytes, bytes] | None:
    """Read xattrs; None when they are nothing that s3fs-fuse writes."""
    raw = unquote_to_bytes(text).strip()
    if not (raw.startswith(b"{") and raw.endswith(b"}")):
        return None
    found: dict[bytes, bytes] = {}
    place = 1
    for pair in _PAIR.finditer(raw):
        try:
            found[pair[1]] = base64.b64decode(pair[2], validate=True)
        except binascii.Error:
            return None
        if raw[place : pair.start()].strip(b" ,\t\r\n"):
            return None
        place = pair.end()
    return found if not raw[place:-1].strip() else None


def attributes(
    key: str, posix: Posix, flavour: str, *, old: Head | None = None, guess_type: bool = True, default_type: str = ""
) -> Attributes:
    """Return what a new version of *key* carries: encode's metadata, and *old*'s headers or else a content-type by extension.

    *default_type*: of names whose extension says nothing; empty leaves it to the server. EPERM when *old* has metadata that
    HTTP cannot show (x-amz-missing-meta counts it), which a change would lose.
    """
    missing = "0" if old is None else old.headers.get("x-amz-missing-meta", "0")
    if missing != "0":
        raise OSError(errno.EPERM, f"{key!r} has metadata that cannot be read ({missing} entries), and would lose it")
    headers = {} if old is None else {name: old.headers[name] for name in HEADERS if name in old.headers}
    if "content-type" not in headers and (guess_type or key.endswith("/")):
        guessed = content_type(key, posix.mode) or default_type
        if guessed:
            headers["content-type"] = guessed
    return Attributes(encode(posix, {} if old is None else old.metadata, flavour), headers)


def content_type(key: str, mode: int | None = None) -> str:
    """Return a content-type by *key*'s extension, the same on every machine; "" when it says none.

    Only the last extension counts, so that "x.tar.gz" is gzip and nobody unpacks it unasked.
    """
    if key.endswith("/"):
        return DIRECTORY_TYPE
    if mode is not None and not stat.S_ISREG(mode):
        return "application/octet-stream"
    name = key[key.rfind("/") + 1 :]
    stem, dot, extension = name.rpartition(".")
    return _types().get(f".{extension.lower()}", "") if dot and stem else ""


@cache
def _types() -> dict[str, str]:
    from mimetypes import MimeTypes

    # An instance made without files has the table of the standard library alone; what that lacks in some version is here.
    return MimeTypes().types_map[True] | {
        ".7z": "application/x-7z-compressed",
        ".avif": "image/avif",
        ".br": "application/x-brotli",
        ".bz2": "application/x-bzip2",
        ".csv": "text/csv",
        ".gz": "application/gzip",
        ".js": "text/javascript",
        ".jsonl": "application/jsonl",
        ".log": "text/plain",
        ".md": "text/markdown",
        ".mjs": "text/javascript",
        ".otf": "font/otf",
        ".parquet": "application/vnd.apache.parquet",
        ".svg": "image/svg+xml",
        ".toml": "application/toml",
        ".ttf": "font/ttf",
        ".wasm": "application/wasm",
        ".webm": "video/webm",
        ".webp": "image/webp",
        ".woff": "font/woff",
        ".woff2": "font/woff2",
        ".xz": "application/x-xz",
        ".yaml": "application/yaml",
        ".yml": "application/yaml",
        ".zst": "application/zstd",
    }


def blank(key: str) -> Head:
    """Return the Head of a key that has no version yet."""
    return Head(Object(key, 0, 0, ""), {}, {})


def is_directory_object(head: Head) -> bool:
    """Return whether an object without "/" at its key's end is some tool's mark of a directory: empty, and of that type."""
    return not head.item.key.endswith("/") and head.item.size == 0 and head.headers.get("content-type") == DIRECTORY_TYPE


__all__ = [
    "DIRECTORY_TYPE",
    "HEADERS",
    "METADATA_MAX",
    "NOTHING",
    "SYMLINK_MAX",
    "TXN",
    "Posix",
    "attributes",
    "blank",
    "content_type",
    "decode",
    "encode",
    "is_directory_object",
    "keeps",
    "shown",
]
