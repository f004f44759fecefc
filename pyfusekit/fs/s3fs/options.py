"""What a person may say about a mounted bucket, and what the source names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from pyfusekit.core import Duration, Mode, MountError, Secret, Size, Url, option


@dataclass(frozen=True)
class S3Options:
    """The options of ``pyfusekit mount s3``. Credentials come from botocore's own chain."""

    endpoint_url: Url | None = option(
        None, help="Where the store is; not given, it is Amazon.", group="Store", env="AWS_ENDPOINT_URL_S3"
    )
    region: str = option(
        "", help="Region of the bucket; found from the bucket when not given.", group="Store", env="AWS_REGION"
    )
    profile: str = option("", help="Profile of ~/.aws/config and ~/.aws/credentials.", group="Store", env="AWS_PROFILE")
    anonymous: bool = option(False, help="Sign nothing: for public buckets.", group="Store")
    addressing: str = option(
        "auto",
        help="Where the bucket's name goes: into the URL's path, or into the host name; auto is path with an endpoint-url.",
        group="Store",
        choices=("auto", "path", "virtual"),
    )
    requester_pays: bool = option(False, help="Say that you pay for what you read.", group="Store")
    expected_bucket_owner: str = option("", help="Account that must own the bucket, or every request is denied.", group="Store")
    max_connections: int = option(64, help="Requests to the store at a time.", group="Store")
    deadline: Duration = option(
        Duration(30.0),
        help="How long a request to the store may take with its retries; 8 s a MiB of data are added.",
        group="Store",
    )
    checksums: str = option(
        "auto",
        help="Send checksums of what is written and verify those of what is read; auto stops where the store refuses them.",
        group="Store",
        choices=("auto", "off"),
    )
    probe: bool = option(True, help="Find out at mount which conditions and checksums the store really honours.", group="Store")

    keys: str = option(
        "escape",
        help="Keys that are no path (a//b, ., over 255 bytes): show them escaped, hide them, or fail the listing.",
        group="Names",
        choices=("escape", "hide", "error"),
    )
    versions: bool = option(False, help="Show older versions, read-only, under .versions/.", group="Names")

    metadata: str = option(
        "s3fs",
        help="How modes, owners, times and xattrs are kept with an object: as s3fs-fuse does, as rclone does, or not.",
        group="Metadata",
        choices=("s3fs", "rclone", "none"),
    )
    content_type: bool = option(True, help="Give new objects the Content-Type of their name's extension.", group="Metadata")
    uid: int | None = option(None, help="Owner of what has none; you, when not given.", group="Metadata")
    gid: int | None = option(None, help="Group of what has none; yours, when not given.", group="Metadata")
    file_mode: Mode = option(Mode(0o644), help="Permissions of files that have none.", group="Metadata")
    dir_mode: Mode = option(Mode(0o755), help="Permissions of directories that have none.", group="Metadata")

    metadata_ttl: Duration = option(Duration(1.0), help="How long names, sizes and times may be out of date.", group="Caching")
    negative_ttl: Duration | None = option(
        None, help="How long it is believed that a name does not exist; as metadata-ttl when not given.", group="Caching"
    )
    readahead: Size = option(
        Size(64 << 20), help="Most bytes to fetch ahead of a sequential reader, for each file; 0 is none.", group="Caching"
    )
    memory_limit: Size = option(Size(128 << 20), help="Memory for data on its way, of all files together.", group="Caching")
    cache_dir: str = option("", help="Directory of the disk cache; ~/.cache/pyfusekit when not given.", group="Caching")
    cache_size: Size = option(Size(0), help="Disk cache for what was read, kept over restarts; 0 is none.", group="Caching")

    staging_dir: str = option(
        "",
        help="Directory for what is written until the store has it; ~/.local/state/pyfusekit when not given.",
        group="Writing",
    )
    staging_size: Size = option(Size(10 << 30), help="Most bytes in the staging directory; 0 is no limit.", group="Writing")
    part_size: Size = option(Size(8 << 20), help="Bytes of a part of a multipart upload; grows with the file.", group="Writing")
    uploads: int = option(32, help="Parts and files sent at a time.", group="Writing")
    write_back: bool = option(
        False, help="close returns when the data is safe on this machine's disk; it is uploaded afterwards.", group="Writing"
    )
    write_back_delay: Duration = option(
        Duration(0.0), help="With write-back: how long a file rests before it is uploaded.", group="Writing"
    )
    on_conflict: str = option(
        "fail",
        help="When somebody else changed the object meanwhile: fail (ESTALE, your copy is kept), write a file of another name, "
        "overwrite, or append what you appended to theirs.",
        group="Writing",
        choices=("fail", "rename", "overwrite", "append-merge"),
    )
    storage_class: str = option("", help="Storage class of new objects; the bucket's own when not given.", group="Writing")
    sse: str = option(
        "",
        help="Server-side encryption of new objects; the bucket's own when not given.",
        group="Writing",
        choices=("", "AES256", "aws:kms", "aws:kms:dsse"),
    )
    sse_kms_key: str = option("", help="KMS key for --sse aws:kms.", group="Writing")
    sse_c_key: Secret | None = option(
        None, help="Encrypt and read with a key of your own (SSE-C): 32 bytes, or their base64.", group="Writing"
    )


class Source(NamedTuple):
    """A bucket, and the part of it that is mounted."""

    bucket: str
    prefix: str
    """Empty, or ending in "/": what the keys of all files begin with."""

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/") if self.bucket else "s3://"


def parse_source(text: str | None) -> Source:
    """Return what BUCKET[/PREFIX] or s3://BUCKET[/PREFIX] names; nothing, or "s3://", is all buckets. MountError otherwise."""
    rest = (text or "").removeprefix("s3://")
    bucket, _, prefix = rest.partition("/")
    prefix = prefix.rstrip("/")
    if (rest and not bucket) or "://" in rest:
        raise MountError(
            f"{text!r} names no bucket",
            kind="source-missing",
            remedy="write BUCKET, BUCKET/PREFIX or s3://BUCKET/PREFIX; no source at all shows every bucket",
        )
    return Source(bucket, f"{prefix}/" if prefix else "")


__all__ = ["S3Options", "Source", "parse_source"]
