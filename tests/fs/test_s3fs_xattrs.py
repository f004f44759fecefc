"""Extended attributes: which names there are, who may set them, and what becomes of the object."""

from __future__ import annotations

import errno
import os

import pytest

from pyfusekit.fs.s3fs.metadata import xattrs
from pyfusekit.fs.s3fs.metadata.posix import METADATA_MAX, NOTHING, Posix, attributes, blank
from pyfusekit.fs.s3fs.metadata.xattrs import assign, get, names, needs
from pyfusekit.fs.s3fs.remote.store import Head, Object

HEAD = Head(
    Object("a/b.txt", 3, 1_700_000_000 * 10**9, "abc123", "STANDARD_IA"),
    {"mode": "33188", "foreign": "=?UTF-8?B?w6k=?="},
    {
        "content-type": "text/plain",
        "cache-control": "no-store",
        "x-amz-version-id": "v1",
        "x-amz-server-side-encryption": "aws:kms",
        "x-amz-server-side-encryption-aws-kms-key-id": "arn:key",
        "x-amz-restore": 'ongoing-request="true"',
        "x-amz-checksum-crc32": "AAAAAA==",
    },
)
POSIX = Posix(xattrs={b"user.mine": b"\0\xff", b"trusted.t": b"t", b"security.selinux": b"s", b"user.s3.etag": b"false"})


def refused(error: int, name: bytes, value: bytes | None, flags: int = 0, **others: object) -> None:
    """Check that setting *name* raises *error*."""
    arguments = {"posix": POSIX, "head": HEAD, "flavour": "s3fs"} | others
    with pytest.raises(OSError, match=r".") as caught:
        assign(name, value, flags, **arguments)  # type: ignore[arg-type]
    assert caught.value.errno == error


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"user.s3.etag", b"abc123"),
        (b"user.s3.key", b"a/b.txt"),
        (b"user.s3.size", b"3"),
        (b"user.s3.last-modified", b"2023-11-14T22:13:20Z"),
        (b"user.s3.storage-class", b"STANDARD_IA"),
        (b"user.s3.version-id", b"v1"),
        (b"user.s3.sse", b"aws:kms"),
        (b"user.s3.sse-kms-key", b"arn:key"),
        (b"user.s3.restore", b'ongoing-request="true"'),
        (b"user.s3.checksum-crc32", b"AAAAAA=="),
        (b"user.s3.content-type", b"text/plain"),
        (b"user.s3.cache-control", b"no-store"),
        (b"user.s3.meta.foreign", "é".encode()),
        (b"user.s3.meta.mode", b"33188"),
        (b"user.s3.tag.team", b"blue"),
        (b"user.mine", b"\0\xff"),
        (b"trusted.t", b"t"),
    ],
)
def test_names_that_are_there_have_their_values(name: bytes, value: bytes) -> None:
    assert get(name, POSIX, HEAD, {"team": "blue"}) == value


@pytest.mark.parametrize(
    "name",
    [
        b"user.other",
        b"user.s3.nothing",
        b"user.s3.content-encoding",
        b"user.s3.meta.other",
        b"user.s3.tag.other",
        b"user.s3.",
        b"security.capability",
        b"security.selinux",
    ],
)
def test_names_that_are_not_there_are_enodata(name: bytes) -> None:
    with pytest.raises(OSError, match="no such") as caught:
        get(name, POSIX, HEAD, {})
    assert caught.value.errno == errno.ENODATA


def test_nothing_is_said_of_a_directory_without_a_marker() -> None:
    for name in (b"user.s3", b"user.s3.etag"):
        with pytest.raises(OSError, match="no such") as caught:
            get(name, NOTHING, None)
        assert caught.value.errno == errno.ENODATA


def test_acl_of_the_system_is_not_supported() -> None:
    with pytest.raises(OSError, match="system") as caught:
        get(b"system.posix_acl_access", POSIX, None)
    assert caught.value.errno == errno.EOPNOTSUPP


def test_all_of_s3_can_be_read_at_once() -> None:
    lines = get(b"user.s3", POSIX, HEAD).decode().splitlines()
    assert "etag=abc123" in lines
    assert "meta.foreign=é" in lines
    words = [line.partition("=")[0] for line in lines]
    assert words == sorted(words)


def test_no_storage_class_is_standard_and_a_new_file_has_no_etag() -> None:
    head = blank("new")
    assert get(b"user.s3.storage-class", NOTHING, head) == b"STANDARD"
    assert get(b"user.s3", NOTHING, head) == b"key=new\nsize=0\nstorage-class=STANDARD\n"


def test_listed_are_the_users_own() -> None:
    assert names(POSIX) == [b"user.mine", b"trusted.t"]
    assert names(POSIX.but(xattrs=None)) == []


@pytest.mark.parametrize(
    ("name", "needed"),
    [
        (b"security.capability", xattrs.NOTHING),
        (b"system.posix_acl_access", xattrs.NOTHING),
        (b"user.mine", xattrs.POSIX),
        (b"user.s3x", xattrs.POSIX),
        (b"user.s3", xattrs.HEAD),
        (b"user.s3.etag", xattrs.HEAD),
        (b"user.s3.meta.x", xattrs.HEAD),
        (b"user.s3.tag.x", xattrs.TAGS),
    ],
)
def test_what_a_name_costs_is_known_beforehand(name: bytes, needed: int) -> None:
    assert needs(name) == needed


def test_own_attribute_is_set_replaced_and_removed() -> None:
    after = assign(b"user.new", b"1", 0, POSIX, HEAD, "s3fs")
    assert get(b"user.new", after.posix, after.head) == b"1"
    assert POSIX.xattrs is not None
    assert b"user.new" not in POSIX.xattrs
    after = assign(b"user.new", b"2", os.XATTR_REPLACE, after.posix, after.head, "s3fs")
    assert get(b"user.new", after.posix, after.head) == b"2"
    after = assign(b"user.new", None, 0, after.posix, after.head, "s3fs")
    assert after.posix.xattrs == POSIX.xattrs
    assert after.tags is None


def test_flags_of_setxattr_are_kept() -> None:
    refused(errno.EEXIST, b"user.mine", b"1", os.XATTR_CREATE)
    refused(errno.ENODATA, b"user.new", b"1", os.XATTR_REPLACE)
    refused(errno.ENODATA, b"user.new", None)
    refused(errno.EEXIST, b"user.s3.content-type", b"a/b", os.XATTR_CREATE)
    refused(errno.ENODATA, b"user.s3.tag.new", None, tags={})


def test_content_type_can_be_set_and_reaches_the_object() -> None:
    after = assign(b"user.s3.content-type", b"image/png", 0, POSIX, HEAD, "s3fs")
    assert attributes("a/b.txt", NOTHING, "s3fs", old=after.head).headers == {
        "content-type": "image/png",
        "cache-control": "no-store",
    }
    after = assign(b"user.s3.cache-control", None, 0, POSIX, after.head, "s3fs")
    assert attributes("a/b.txt", NOTHING, "s3fs", old=after.head).headers == {"content-type": "image/png"}


def test_metadata_of_others_can_be_set() -> None:
    after = assign(b"user.s3.meta.team", "blé".encode(), 0, NOTHING, HEAD, "none")
    assert get(b"user.s3.meta.team", NOTHING, after.head) == "blé".encode()
    metadata = attributes("a/b.txt", NOTHING, "none", old=after.head).metadata
    assert metadata["team"].isascii()
    assert get(b"user.s3.meta.team", NOTHING, after.head._replace(metadata=metadata)) == "blé".encode()
    assert "team" not in assign(b"user.s3.meta.team", None, 0, NOTHING, after.head, "none").head.metadata


def test_tags_are_set_by_themselves() -> None:
    after = assign(b"user.s3.tag.team", b"blue", 0, POSIX, HEAD, "s3fs", {"a": "1"})
    assert after.tags == {"a": "1", "team": "blue"}
    assert (after.posix, after.head) == (POSIX, HEAD)
    assert assign(b"user.s3.tag.a", None, 0, POSIX, HEAD, "s3fs", {"a": "1"}).tags == {}


@pytest.mark.parametrize(
    ("error", "name", "value"),
    [
        (errno.EPERM, b"user.s3", b"x"),
        (errno.EPERM, b"user.s3.etag", b"x"),
        (errno.EPERM, b"user.s3.storage-class", b"GLACIER"),
        (errno.EPERM, b"user.s3.restore", None),
        (errno.EPERM, b"user.s3.meta.mode", b"33188"),
        (errno.EPERM, b"user.s3.meta.pyfusekit-txn", b"x"),
        (errno.EINVAL, b"user.s3.meta.Upper", b"x"),
        (errno.EINVAL, b"user.s3.meta.", b"x"),
        (errno.EINVAL, b"user.s3.meta.a b", b"x"),
        (errno.EINVAL, b"user.s3.meta.a", b"\xff"),
        (errno.EINVAL, b"user.s3.\xff", b"x"),
        (errno.EINVAL, b"user.s3.content-type", b"a\nb"),
        (errno.EINVAL, b"user.s3.content-type", b" a"),
        (errno.EINVAL, b"user.s3.content-type", b""),
        (errno.EINVAL, b"user.s3.content-type", "é".encode()),
        (errno.EINVAL, b"user.s3.tag.", b"x"),
        (errno.EINVAL, b"user.s3.tag." + b"x" * 129, b"x"),
        (errno.EINVAL, b"user.s3.tag.x", b"x" * 257),
        (errno.EINVAL, b'user.a":"b', b"x"),
        (errno.EOPNOTSUPP, b"security.capability", b"x"),
        (errno.EOPNOTSUPP, b"system.posix_acl_access", b"x"),
        (errno.EOPNOTSUPP, b"security.selinux", None),
        (errno.ENOSPC, b"user.big", b"x" * METADATA_MAX),
        (errno.ENOSPC, b"user.s3.meta.big", b"x" * METADATA_MAX),
    ],
)
def test_what_cannot_be_set_is_refused_with_its_errno(error: int, name: bytes, value: bytes | None) -> None:
    refused(error, name, value, tags={})


def test_eleventh_tag_is_enospc() -> None:
    refused(errno.ENOSPC, b"user.s3.tag.new", b"x", tags={str(number): "" for number in range(10)})


def test_flavours_without_attributes_refuse_them() -> None:
    for flavour in ("rclone", "none"):
        refused(errno.EOPNOTSUPP, b"user.mine", b"x", flavour=flavour)


def test_attributes_that_are_not_understood_are_not_overwritten() -> None:
    refused(errno.EIO, b"user.mine", b"x", posix=POSIX.but(xattrs=None))
