"""The headers that a mount's options and a file's attributes add to requests, and their names as aiobotocore's parameters."""

from __future__ import annotations

import base64
import binascii
import errno
import hashlib
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from ..options import S3Options
from .errors import StoreError
from .store import Attributes, Condition

META = "x-amz-meta-"
_CUSTOMER = "x-amz-server-side-encryption-customer-"
_COPY_CUSTOMER = "x-amz-copy-source-server-side-encryption-customer-"
_PARAMETERS = {
    "range": "Range",
    "if-match": "IfMatch",
    "if-none-match": "IfNoneMatch",
    "content-type": "ContentType",
    "cache-control": "CacheControl",
    "content-encoding": "ContentEncoding",
    "content-disposition": "ContentDisposition",
    "content-language": "ContentLanguage",
    "expires": "Expires",
    "x-amz-request-payer": "RequestPayer",
    "x-amz-expected-bucket-owner": "ExpectedBucketOwner",
    "x-amz-source-expected-bucket-owner": "ExpectedSourceBucketOwner",
    "x-amz-storage-class": "StorageClass",
    "x-amz-server-side-encryption": "ServerSideEncryption",
    "x-amz-server-side-encryption-aws-kms-key-id": "SSEKMSKeyId",
    f"{_CUSTOMER}algorithm": "SSECustomerAlgorithm",
    f"{_CUSTOMER}key": "SSECustomerKey",
    f"{_CUSTOMER}key-md5": "SSECustomerKeyMD5",
    f"{_COPY_CUSTOMER}algorithm": "CopySourceSSECustomerAlgorithm",
    f"{_COPY_CUSTOMER}key": "CopySourceSSECustomerKey",
    f"{_COPY_CUSTOMER}key-md5": "CopySourceSSECustomerKeyMD5",
    "x-amz-copy-source-if-match": "CopySourceIfMatch",
    "x-amz-copy-source-range": "CopySourceRange",
    "x-amz-metadata-directive": "MetadataDirective",
    "content-md5": "ContentMD5",
    "x-amz-checksum-crc32": "ChecksumCRC32",
    "x-amz-checksum-mode": "ChecksumMode",
    "x-amz-checksum-algorithm": "ChecksumAlgorithm",
    "x-amz-checksum-type": "ChecksumType",
}
"""Headers that are never sent by botocore's parameters are not here: its signer makes them."""
_STORED = frozenset({"content-type", "cache-control", "content-encoding", "content-disposition", "content-language", "expires"})
_METADATA_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[\x20-\x7e\t]*")


class Extras:
    """What the options add: *every* request, the *read* of an object, a *new* one, a *part* of one, a *copy*'s source.

    ValueError when the customer's key is none.
    """

    def __init__(self, options: S3Options) -> None:
        every: dict[str, str] = {}
        if options.requester_pays:
            every["x-amz-request-payer"] = "requester"
        if options.expected_bucket_owner:
            every["x-amz-expected-bucket-owner"] = options.expected_bucket_owner
        customer = _customer(options.sse_c_key)
        self.every = every
        self.read = every | customer
        self.part = self.read
        new = dict(self.read)
        if options.sse and not customer:
            new["x-amz-server-side-encryption"] = options.sse
            if options.sse_kms_key:
                new["x-amz-server-side-encryption-aws-kms-key-id"] = options.sse_kms_key
        self.copied = new
        """A copy keeps the storage class of its source."""
        self.new = dict(new)
        if options.storage_class:
            self.new["x-amz-storage-class"] = options.storage_class
        self.source = {name.replace(_CUSTOMER, _COPY_CUSTOMER): value for name, value in customer.items()}
        if options.expected_bucket_owner:
            self.source["x-amz-source-expected-bucket-owner"] = options.expected_bucket_owner


def _customer(secret: str | None) -> dict[str, str]:
    """Return the headers of SSE-C."""
    if not secret:
        return {}
    key = secret.encode("utf-8", "surrogateescape")
    if len(key) != 32:
        try:
            key = base64.b64decode(key, validate=True)
        except binascii.Error:
            key = b""
    if len(key) != 32:
        raise ValueError("the key for SSE-C is neither 32 bytes nor their base64")
    return {
        f"{_CUSTOMER}algorithm": "AES256",
        f"{_CUSTOMER}key": base64.b64encode(key).decode(),
        # S3's checksum of the key in transit, no protection.
        f"{_CUSTOMER}key-md5": base64.b64encode(hashlib.md5(key, usedforsecurity=False).digest()).decode(),
    }


def described(what: str, attributes: Attributes) -> dict[str, str]:
    """Return the headers of *attributes*; EINVAL for what a header cannot hold: the store would change it in silence."""
    headers: dict[str, str] = {}
    for name, value in attributes.metadata.items():
        if not _METADATA_NAME.fullmatch(name) or not _VALUE.fullmatch(value) or value != value.strip():
            raise StoreError(errno.EINVAL, f"{what}: metadata {name!r}: {value!r} is no value of a header")
        headers[META + name.lower()] = value
    for name, value in attributes.headers.items():
        if name.lower() not in _STORED or not _VALUE.fullmatch(value):
            raise StoreError(errno.EINVAL, f"{what}: {name}: {value!r} cannot be stored with an object")
        if value:
            headers[name.lower()] = value
    return headers


def conditions(condition: Condition, *, match: bool, absent: bool) -> dict[str, str]:
    """Return the headers of a condition, as far as the store honours them."""
    if condition.absent:
        return {"if-none-match": "*"} if absent else {}
    return {"if-match": f'"{condition.match}"'} if condition.match and match else {}


def source_path(bucket: str, key: str, version: str = "") -> str:
    """Return the value of x-amz-copy-source."""
    return quote(f"{bucket}/{key}", safe="/-_.~") + (f"?versionId={quote(version)}" if version else "")


def parameters(headers: Mapping[str, str]) -> dict[str, Any]:
    """Return what aiobotocore calls these headers."""
    named: dict[str, Any] = {}
    metadata: dict[str, str] = {}
    for name, value in headers.items():
        if name.startswith(META):
            metadata[name.removeprefix(META)] = value
        else:
            named[_PARAMETERS[name]] = value
    if metadata:
        named["Metadata"] = metadata
    return named


__all__ = ["META", "Extras", "conditions", "described", "parameters", "source_path"]
