"""What a person may say about a mounted bucket, and what the source names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from pyfusekit.core import Duration, Mode, MountError, Size, Url, option


@dataclass(frozen=True)
class S3Options:
    """The options of ``pyfusekit mount s3``. Credentials come from botocore's own chain, so none of them is a secret."""

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
    max_connections: int = option(64, help="Requests to the store at a time.", group="Store")
    deadline: Duration = option(
        Duration(30.0),
        help="How long a request to the store may take with its retries; 8 s a MiB of data are added.",
        group="Store",
    )
    metadata_ttl: Duration = option(Duration(1.0), help="How long names, sizes and times may be out of date.", group="Caching")
    readahead: Size = option(
        Size(8 << 20), help="Most bytes to fetch ahead of a sequential reader, for each open file; 0 is none.", group="Caching"
    )
    uid: int | None = option(None, help="Owner of everything; you, when not given.", group="Permissions")
    gid: int | None = option(None, help="Group of everything; yours, when not given.", group="Permissions")
    file_mode: Mode = option(Mode(0o644), help="Permissions of files.", group="Permissions")
    dir_mode: Mode = option(Mode(0o755), help="Permissions of directories.", group="Permissions")


class Source(NamedTuple):
    """A bucket, and the part of it that is mounted."""

    bucket: str
    prefix: str
    """Empty, or ending in "/": what the keys of all files begin with."""

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")


def parse_source(text: str | None) -> Source:
    """Return what BUCKET[/PREFIX] or s3://BUCKET[/PREFIX] names; MountError when no bucket is named."""
    rest = (text or "").removeprefix("s3://")
    bucket, _, prefix = rest.partition("/")
    prefix = prefix.rstrip("/")
    if not bucket or "://" in rest:
        raise MountError(
            f"{text!r} names no bucket" if text else "no bucket is named",
            kind="source-missing",
            remedy="write BUCKET, BUCKET/PREFIX or s3://BUCKET/PREFIX",
        )
    return Source(bucket, f"{prefix}/" if prefix else "")


__all__ = ["S3Options", "Source", "parse_source"]
