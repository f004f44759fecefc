"""POSIX attributes in metadata: what s3fs-fuse and rclone write is understood, and what is written is what they understand.

The literal metadata below are what s3fs 1.90 (-o use_xattr) and rclone 1.75 (copy; copy -M; mount) put on an S3 server.
"""

from __future__ import annotations

import errno
import stat
from typing import Any

import pytest

from pyfusekit.core import Attr
from pyfusekit.fs.s3fs.metadata.posix import (
    METADATA_MAX,
    NOTHING,
    TXN,
    Posix,
    attributes,
    blank,
    content_type,
    decode,
    encode,
    is_directory_object,
    keeps,
    shown,
)
from pyfusekit.fs.s3fs.remote.store import Head, Object

SECOND = 10**9


def head(key: str = "f.txt", size: int = 3, headers: dict[str, str] | None = None, /, **metadata: str) -> Head:
    """Return the Head of an object with *metadata* ("-" written as "_")."""
    named = {name.replace("_", "-"): value for name, value in metadata.items()}
    return Head(Object(key, size, 1_795_417_462 * SECOND, "e"), named, headers or {})


S3FS_FILE = {
    "atime": "1700000000.123000000",
    "ctime": "1795417462",
    "gid": "5678",
    "mode": "33184",
    "mtime": "1700000000.123000000",
    "uid": "1234",
    "xattr": "%7B%22user.bin%22%3A%22AAEC/w%3D%3D%22%2C%22user.plain%22%3A%22aGVsbG8gd29ybGQ%3D%22%2C%22user.q%22uote%5Cb%22"
    "%3A%22eQ%3D%3D%22%2C%22user.sp%20ace%2B/%3D%25%C3%A9%22%3A%22eA%3D%3D%22%7D",
}
FILE = Posix(
    mode=stat.S_IFREG | 0o640,
    uid=1234,
    gid=5678,
    atime_ns=1_700_000_000_123_000_000,
    mtime_ns=1_700_000_000_123_000_000,
    ctime_ns=1_795_417_462 * SECOND,
    xattrs={
        b"user.bin": b"\0\1\2\xff",
        b"user.plain": b"hello world",
        b'user.q"uote\\b': b"y",
        "user.sp ace+/=%é".encode(): b"x",
    },
)


def test_file_of_s3fs_is_understood() -> None:
    assert decode(head(**S3FS_FILE), "s3fs") == FILE


def test_file_is_written_as_s3fs_writes_it() -> None:
    assert encode(FILE, {}, "s3fs") == S3FS_FILE


S3FS_OTHERS: list[tuple[str, int, dict[str, str], int]] = [
    ("d/", 0, {"mode": "16832", "xattr": "%7B%22user.dir%22%3A%22MQ%3D%3D%22%7D"}, stat.S_IFDIR | 0o700),
    ("link", 5, {"mode": "41471"}, stat.S_IFLNK | 0o777),
    ("fifo", 0, {"mode": "4516"}, stat.S_IFIFO | 0o644),
    ("sock", 0, {"mode": "49645"}, stat.S_IFSOCK | 0o755),
    ("dev", 0, {"mode": "8612"}, stat.S_IFCHR | 0o644),
]


@pytest.mark.parametrize(("key", "size", "metadata", "mode"), S3FS_OTHERS, ids=[row[0] for row in S3FS_OTHERS])
def test_types_of_s3fs_are_understood_and_written(key: str, size: int, metadata: dict[str, str], mode: int) -> None:
    posix = decode(head(key, size, **metadata), "s3fs")
    assert posix.mode == mode
    assert encode(posix, {}, "s3fs") == metadata


def test_times_before_1970_are_timespecs_for_s3fs_and_decimals_for_rclone() -> None:
    # touch -d @-1.5: s3fs wrote the former, rclone the latter.
    early = -1_500_000_000
    assert decode(head(mtime="-2.500000000"), "s3fs").mtime_ns == early
    assert decode(head(mtime="-1.5"), "s3fs").mtime_ns == early
    assert decode(head(mtime="-1.5"), "rclone").mtime_ns == early
    assert decode(head(mtime="-1.500000001"), "rclone").mtime_ns == early - 1
    assert encode(Posix(mtime_ns=early), {}, "s3fs") == {"mtime": "-2.500000000"}
    assert encode(Posix(mtime_ns=early), {}, "rclone") == {"mtime": "-1.5"}


@pytest.mark.parametrize(
    ("text", "time_ns"),
    [
        ("1700000000.123456789", 1_700_000_000_123_456_789),
        ("1700000000.5", 1_700_000_000_500_000_000),
        ("1700000000", 1_700_000_000_000_000_000),
        ("1700000001.25", 1_700_000_001_250_000_000),
    ],
)
def test_time_of_rclone_is_understood_and_written(text: str, time_ns: int) -> None:
    assert decode(head(mtime=text), "rclone") == Posix(mtime_ns=time_ns)
    assert decode(head(mtime=text), "s3fs").mtime_ns == time_ns
    assert encode(Posix(mtime_ns=time_ns), {}, "rclone") == {"mtime": text}


RCLONE_METADATA = {
    "atime": "2026-11-23T07:04:49.495579682Z",
    "btime": "2026-11-23T07:04:49.347579675Z",
    "foo": "bar",
    "gid": "34",
    "mode": "100751",
    "mtime": "1700000000.123456789",
    "uid": "12",
}


@pytest.mark.parametrize("flavour", ["s3fs", "rclone"])
def test_octal_mode_of_rclone_with_metadata_is_understood(flavour: str) -> None:
    posix = decode(head(**RCLONE_METADATA), flavour)
    assert posix == Posix(stat.S_IFREG | 0o751, 12, 34, mtime_ns=1_700_000_000_123_456_789)


def test_octal_mode_of_a_directory_is_no_decimal_one() -> None:
    assert decode(head("d/", 0, mode="40755"), "s3fs").mode == stat.S_IFDIR | 0o755
    assert decode(head("d/", 0, mode="16877"), "s3fs").mode == stat.S_IFDIR | 0o755
    assert decode(head("link", 5, mode="120777"), "rclone").mode == stat.S_IFLNK | 0o777


def test_what_rclone_wrote_beside_is_kept_through_chmod() -> None:
    posix = decode(head(**RCLONE_METADATA), "rclone").but(mode=stat.S_IFREG | 0o700)
    assert encode(posix, RCLONE_METADATA, "rclone") == RCLONE_METADATA | {"mode": "100700"}


def test_datasync_is_understood_where_s3fs_says_nothing() -> None:
    said = {
        "file_permissions": "0640",
        "file_owner": "12",
        "file_group": "34",
        "file_mtime": "1595002920000000000ns",
        "file_atime": "1595002921000000000ns",
    }
    expected = Posix(stat.S_IFREG | 0o640, 12, 34, None, 1_595_002_921 * SECOND, 1_595_002_920 * SECOND)
    assert decode(head(**said), "s3fs") == expected
    assert decode(head(mode="33188", **said), "s3fs").mode == stat.S_IFREG | 0o644


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("mode", "rw-r--r--"),
        ("mode", "-1"),
        ("mode", "\uff19"),
        ("mode", "99999999999"),
        ("mode", "99999"),
        ("uid", "root"),
        ("uid", "4294967295"),
        ("gid", "-1"),
        ("gid", "1.5"),
        ("mtime", ""),
        ("mtime", "1e9"),
        ("mtime", "nan"),
        ("mtime", "1700000000.5.5"),
        ("mtime", "999999999999999999"),
        ("ctime", "yesterday"),
    ],
)
def test_nonsense_says_nothing_and_stays_where_it_is(field: str, text: str) -> None:
    posix = decode(head(**{field: text}), "s3fs")
    assert posix == NOTHING
    assert encode(posix, {field: text}, "s3fs") == ({field: text} if text.isascii() else {"mode": "=?UTF-8?B?77yZ?="})


@pytest.mark.parametrize(
    ("key", "size", "mode", "shown_as"),
    [
        ("f", 3, stat.S_IFDIR | 0o755, stat.S_IFREG | 0o755),
        ("f", 3, stat.S_IFIFO | 0o644, stat.S_IFREG | 0o644),
        ("f", 3, stat.S_IFBLK | 0o644, stat.S_IFREG | 0o644),
        ("f", 0, stat.S_IFLNK | 0o777, stat.S_IFREG | 0o777),
        ("f", 4096, stat.S_IFLNK | 0o777, stat.S_IFREG | 0o777),
        ("f", 3, 0o644, stat.S_IFREG | 0o644),
        ("d/", 0, 0o755, stat.S_IFDIR | 0o755),
        ("d/", 0, stat.S_IFREG | 0o755, stat.S_IFDIR | 0o755),
    ],
)
def test_type_never_hides_bytes_nor_makes_a_directory_of_a_file(key: str, size: int, mode: int, shown_as: int) -> None:
    assert decode(head(key, size, mode=str(mode)), "s3fs").mode == shown_as


def test_no_metadata_is_one_object_for_all() -> None:
    assert decode(head(), "s3fs") is NOTHING
    assert decode(head(mode="33188"), "none") is NOTHING


def test_others_metadata_is_kept_and_transaction_is_not() -> None:
    old = {"foreign": "x", "mode": "33188", TXN: "1234"}
    assert encode(Posix(mode=stat.S_IFREG | 0o600), old, "s3fs") == {"foreign": "x", "mode": "33152"}
    assert encode(Posix(mode=stat.S_IFREG | 0o600), old, "none") == {"foreign": "x", "mode": "33188"}


def test_xattrs_that_cannot_be_understood_are_kept() -> None:
    broken = ("garbage", '{"a":1}', '{"a":"MQ="}', '{"a":"MQ=="x}', '{x"a":"MQ=="}', '{"a":"MQ==",1,"b":"MQ=="}')
    for text in broken:
        posix = decode(head(xattr=text), "s3fs")
        assert posix.xattrs is None
        assert encode(posix.but(uid=5), {"xattr": text}, "s3fs") == {"xattr": text, "uid": "5"}


def test_json_with_spaces_is_understood() -> None:
    posix = decode(head(xattr='{ "user.a" : "MQ==", "user.b": "" }'), "s3fs")
    assert posix.xattrs == {b"user.a": b"1", b"user.b": b""}


def test_last_xattr_takes_the_header_with_it() -> None:
    assert encode(Posix(xattrs={}), {"xattr": "%7B%22user.a%22%3A%22MQ%3D%3D%22%7D"}, "s3fs") == {}
    assert decode(head(xattr="%7B%7D"), "s3fs").xattrs == {}


def test_names_that_are_no_text_survive() -> None:
    xattrs = {b"user.\xff\xfe": b"1", b'user.",{}': b"2", b"user.%41": b"3", b"user.a:b": b"4"}
    metadata = encode(Posix(xattrs=xattrs), {}, "s3fs")
    assert metadata["xattr"].isascii()
    assert decode(head(**metadata), "s3fs").xattrs == xattrs


@pytest.mark.parametrize("value", ["é", "日本語", "a\nb", "tab\there", " x ", "\x7f", "\udcff"])
def test_what_no_header_can_have_is_encoded_as_s3_does(value: str) -> None:
    (encoded,) = encode(NOTHING, {"foreign": value}, "s3fs").values()
    assert encoded.isascii()
    assert encoded.isprintable()
    assert encoded == encoded.strip()
    if "\udcff" not in value:
        assert shown(encoded) == value
    assert encode(NOTHING, {"foreign": encoded}, "s3fs") == {"foreign": encoded}


def test_words_of_s3_are_shown_as_text() -> None:
    # The example of the S3 user guide, and the other encoding RFC 2047 has.
    assert shown("=?UTF-8?B?w4PChE3Dg8KEWsODwpXDg8KR?=") == "Ã\x84MÃ\x84ZÃ\x95Ã\x91"
    assert shown("=?utf-8?q?a_=C3=A9?= =?UTF-8?B?w6k=?=") == "a éé"


@pytest.mark.parametrize("value", ["plain", "=?UTF-8?B?!!!?=", "=?nonsense?Q?a?=", "=?", "=?UTF-8?B?/////w==?="])
def test_what_is_no_encoded_word_is_shown_as_it_is(value: str) -> None:
    assert shown(value) == value


def test_more_than_s3_takes_is_enospc() -> None:
    limit = METADATA_MAX - len(TXN) - 36
    encode(NOTHING, {"a": "x" * (limit - 1)}, "s3fs")
    with pytest.raises(OSError, match="1 bytes more") as caught:
        encode(NOTHING, {"a": "x" * limit}, "s3fs")
    assert caught.value.errno == errno.ENOSPC


def test_device_numbers_are_kept() -> None:
    posix = Posix(mode=stat.S_IFCHR | 0o600, rdev=0x501)
    metadata = encode(posix, {}, "s3fs")
    assert metadata == {"mode": "8576", "rdev": "1281"}
    assert decode(head("dev", 0, **metadata), "s3fs") == posix


def test_flavours_say_what_they_keep() -> None:
    assert keeps("s3fs", "xattrs")
    assert keeps("rclone", "mtime_ns")
    assert not keeps("rclone", "xattrs")
    assert not keeps("none", "mtime_ns")


def test_but_changes_a_copy_and_knows_its_fields() -> None:
    changed = FILE.but(uid=1, xattrs=None)
    assert (changed.uid, changed.xattrs, changed.mode, FILE.uid) == (1, None, FILE.mode, 1234)
    with pytest.raises(TypeError, match="size"):
        FILE.but(size=1)


def test_fill_leaves_what_is_not_said() -> None:
    attr = Attr(ino=5, mode=stat.S_IFREG | 0o644, uid=7, gid=8, atime_ns=1, mtime_ns=2, ctime_ns=3)
    NOTHING.fill(attr)
    assert (attr.mode, attr.uid, attr.gid, attr.atime_ns, attr.mtime_ns, attr.ctime_ns) == (0o100644, 7, 8, 1, 2, 3)
    Posix(mtime_ns=9).fill(attr)
    assert (attr.atime_ns, attr.mtime_ns, attr.ctime_ns) == (9, 9, 3)
    FILE.but(rdev=4).fill(attr)
    assert (attr.mode, attr.uid, attr.gid, attr.rdev) == (0o100640, 1234, 5678, 4)
    assert (attr.atime_ns, attr.ctime_ns) == (FILE.atime_ns, FILE.ctime_ns)


@pytest.mark.parametrize(
    ("key", "mode", "type_"),
    [
        ("a/b.txt", None, "text/plain"),
        ("a/b.HTML", stat.S_IFREG, "text/html"),
        ("b.jpg", None, "image/jpeg"),
        ("b.tar.gz", None, "application/gzip"),
        ("b.parquet", None, "application/vnd.apache.parquet"),
        ("b.bin", None, "application/octet-stream"),
        ("a.txt/b", None, ""),
        (".txt", None, ""),
        ("noextension", None, ""),
        ("data:,a.unknown", None, ""),
        ("d/", None, "application/x-directory"),
        ("b.txt", stat.S_IFLNK, "application/octet-stream"),
    ],
)
def test_content_type_follows_from_the_extension(key: str, mode: int | None, type_: str) -> None:
    assert content_type(key, mode) == type_


def test_system_files_do_not_change_content_types(monkeypatch: pytest.MonkeyPatch) -> None:
    import mimetypes

    from pyfusekit.fs.s3fs.metadata import posix

    posix._types.cache_clear()
    monkeypatch.setattr(mimetypes, "types_map", mimetypes.types_map | {".txt": "text/odd"})
    monkeypatch.setitem(mimetypes._db.types_map[True], ".txt", "text/odd")  # type: ignore[union-attr]
    assert content_type("a.txt") == "text/plain"


def test_new_file_has_a_type_and_an_old_one_keeps_its_own() -> None:
    new = attributes("a.txt", Posix(mode=0o100644), "s3fs")
    assert new.headers == {"content-type": "text/plain"}
    assert new.metadata == {"mode": "33188"}
    old = head("a.txt", 3, {"content-type": "x/y", "cache-control": "no-store", "x-amz-version-id": "v"}, foreign="1")
    kept = attributes("a.txt", Posix(mode=0o100644), "s3fs", old=old)
    assert kept.headers == {"content-type": "x/y", "cache-control": "no-store"}
    assert kept.metadata == {"mode": "33188", "foreign": "1"}


def test_type_is_not_guessed_when_not_wanted_but_for_directories() -> None:
    assert attributes("a.txt", NOTHING, "s3fs", guess_type=False).headers == {}
    assert attributes("d/", NOTHING, "s3fs", guess_type=False).headers == {"content-type": "application/x-directory"}
    assert attributes("a", NOTHING, "s3fs", default_type="x/y").headers == {"content-type": "x/y"}
    assert attributes("a", NOTHING, "s3fs").headers == {}


def test_metadata_that_cannot_be_read_is_not_lost_in_silence() -> None:
    with pytest.raises(OSError, match="cannot be read") as caught:
        attributes("a", NOTHING, "s3fs", old=head("a", 3, {"x-amz-missing-meta": "2"}))
    assert caught.value.errno == errno.EPERM


def test_directory_objects_of_other_tools_are_recognised() -> None:
    directory: dict[str, Any] = {"content-type": "application/x-directory"}
    assert is_directory_object(head("d", 0, directory))
    assert not is_directory_object(head("d", 1, directory))
    assert not is_directory_object(head("d/", 0, directory))
    assert not is_directory_object(blank("d"))
