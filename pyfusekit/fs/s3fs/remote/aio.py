"""The store on S3: hot calls by the thin path, rare ones and whatever the thin path does not know by aiobotocore.

Each runs under Calls: a slot, a deadline, retries. What the two paths answer is read by the same code, as headers.
"""

from __future__ import annotations

import asyncio
import errno
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from . import answers, extras, xmlpages
from .client import Client, headers_of
from .errors import StoreError
from .multipart import Multipart
from .requests import COPY_SHARE, Headers, crc32_of
from .sigv4 import encode_query
from .store import (
    ANYWAY,
    Attributes,
    Body,
    Condition,
    Head,
    Object,
    Page,
    Versions,
)
from .thin import Thin

T = TypeVar("T")

_ONE_BY_ONE = 32
"""Single deletions at a time, where the store does not know DeleteObjects."""
_QUERY = {
    "Prefix": "prefix",
    "MaxKeys": "max-keys",
    "Delimiter": "delimiter",
    "ContinuationToken": "continuation-token",
    "StartAfter": "start-after",
}


class AioStore(Multipart):
    """A Store on S3."""

    # Reading.

    async def list(
        self, prefix: str, *, token: str = "", start_after: str = "", max_keys: int = 1000, delimiter: str = "/"
    ) -> Page:
        """ListObjectsV2."""
        what = f"ListObjectsV2 {prefix!r}"
        pairs = {"Prefix": prefix, "MaxKeys": str(max_keys)}
        if delimiter:
            pairs["Delimiter"] = delimiter
        if token:
            pairs["ContinuationToken"] = token
        elif start_after:
            pairs["StartAfter"] = start_after

        async def thin_call(thin: Thin) -> Page:
            query = [(_QUERY[name], value) for name, value in pairs.items()]
            query += [("list-type", "2"), ("encoding-type", "url")]
            answer = await thin.send(what, "GET", None, encode_query(query), self._extras.every)
            return xmlpages.page(what, answer.body)

        async def call(client: Client) -> Page:
            arguments: dict[str, Any] = {"Bucket": self.bucket, **pairs, "MaxKeys": max_keys}
            return answers.page_of(
                what, await client.call("list_objects_v2", arguments | extras.parameters(self._extras.every))
            )

        page = await self._either("ListObjectsV2", prefix, 0, thin_call, call)
        if page.token and page.token == token:
            error = StoreError(errno.EIO, f"{what}: the store repeats its page token", code="NotS3")
            raise self.calls.failed(error, "ListObjectsV2", prefix)
        return page

    async def buckets(self) -> Sequence[Object]:
        """Return the buckets these credentials may list, each with its name as the key and its time of creation."""

        async def call(client: Client) -> dict[str, Any]:
            return await client.call("list_buckets", {})

        async def attempt() -> dict[str, Any]:
            return await self.link.through_client("ListBuckets", call)

        rows = (await self.calls.run("ListBuckets", "", 0, attempt)).get("Buckets", ())
        return [
            Object(row["Name"], 0, answers.moment(row["CreationDate"]) if "CreationDate" in row else 0, "")
            for row in rows
            if row.get("Name")
        ]

    async def head(self, key: str) -> Head:
        """HeadObject."""
        what = f"HeadObject {key!r}"

        async def thin_call(thin: Thin) -> Headers:
            try:
                return (await thin.send(what, "HEAD", key, "", self._extras.read)).headers
            except StoreError as exc:
                if exc.status != 400:
                    raise
                # The refusal of a HEAD has no words; that of a listing has: another region, an expired token.
                query = encode_query([("list-type", "2"), ("max-keys", "1"), ("prefix", key)])
                await thin.send(what, "GET", None, query, self._extras.every)
                raise

        async def call(client: Client) -> Headers:
            arguments = {"Bucket": self.bucket, "Key": key, **extras.parameters(self._extras.read)}
            return headers_of(await client.call("head_object", arguments))

        return answers.head_of(what, key, await self._either("HeadObject", key, 0, thin_call, call))

    async def get(self, item: Object, offset: int, size: int, sink: Callable[[bytes], None], *, version: str = "") -> None:
        """GetObject with Range and If-Match; a body that breaks off is continued where it broke."""
        if size <= 0:
            return
        key = item.key
        verify = self.options.checksums != "off"
        receiver = answers.Receiver(f"GetObject {key!r}", item, offset, offset + size, sink, verify=verify)

        def asked() -> dict[str, str]:
            headers = dict(self._extras.read)
            span = receiver.range()
            if span:
                headers["range"] = span
            else:
                headers["x-amz-checksum-mode"] = "ENABLED"
            if item.etag:
                headers["if-match"] = f'"{item.etag}"'
            return headers

        async def thin_call(thin: Thin) -> None:
            query = encode_query([("versionId", version)]) if version else ""
            await thin.fetch(receiver.what, key, query, asked(), receiver.check, receiver.take)
            receiver.done()

        async def call(client: Client) -> None:
            arguments = {"Bucket": self.bucket, "Key": key, **extras.parameters(asked())}
            if version:
                arguments["VersionId"] = version
            await client.fetch(arguments, receiver.check, receiver.take)
            receiver.done()

        try:
            await self._either("GetObject", key, size, thin_call, call)
        finally:
            if receiver.version_ignored:
                self.features.get_if_match = False

    # Writing.

    async def put(self, key: str, body: Body, attributes: Attributes, condition: Condition = ANYWAY) -> Object:
        """PutObject."""
        described = self._extras.new | extras.described(f"PutObject {key!r}", attributes)
        features = self.features
        headers = described | extras.conditions(condition, match=features.put_if_match, absent=features.put_if_absent)

        async def send(headers: dict[str, str]) -> Headers:
            return await self._send_body("PutObject", key, "", headers, body, "put_object", {})

        crc = await crc32_of(body) if self.sums else None
        answer = await self._conditional(key, condition, self._with_checksum(crc, headers, send))
        made = answers.written(key, body.size, answer, self.options.storage_class)
        return made if made.etag else (await self.head(key)).item

    async def copy(
        self,
        source: Object,
        key: str,
        attributes: Attributes | None,
        condition: Condition = ANYWAY,
        *,
        source_bucket: str = "",
    ) -> Object:
        """CopyObject; the copy keeps its source's storage class."""
        what = f"CopyObject {key!r}"
        features = self.features
        headers = self._extras.copied | self._source(source)
        headers |= extras.conditions(condition, match=features.copy_if, absent=features.copy_if)
        headers["x-amz-metadata-directive"] = "COPY" if attributes is None else "REPLACE"
        if attributes is not None:
            headers |= extras.described(what, attributes)
        if source.storage_class and source.storage_class != "STANDARD":
            headers["x-amz-storage-class"] = source.storage_class
        bucket = source_bucket or self.bucket

        async def thin_call(thin: Thin) -> tuple[str, int]:
            sent = headers | {"x-amz-copy-source": extras.source_path(bucket, source.key)}
            answer = await thin.send(what, "PUT", key, "", sent, patient=True)
            root, found = xmlpages.leaves(answer.body)
            if root != "CopyObjectResult":
                raise xmlpages.not_s3(what)
            return found.get("ETag", ""), xmlpages.iso_ns(found.get("LastModified", ""))

        async def call(client: Client) -> tuple[str, int]:
            arguments = {"Bucket": self.bucket, "Key": key, "CopySource": {"Bucket": bucket, "Key": source.key}}
            result = (await client.call("copy_object", arguments | extras.parameters(headers)))["CopyObjectResult"]
            return result.get("ETag", ""), answers.moment(result["LastModified"])

        size = source.size // COPY_SHARE
        try:
            etag, mtime_ns = await self._conditional(key, condition, self._either("CopyObject", key, size, thin_call, call))
        except StoreError as exc:
            if exc.errno != errno.EOPNOTSUPP or not headers.keys() & {"if-match", "if-none-match"}:
                raise
            # The store knows no conditions here, and says so: comparing before is what is left, as with those that do not.
            features.copy_if = False
            await self._compare(key, condition)
            headers = {name: value for name, value in headers.items() if name not in ("if-match", "if-none-match")}
            etag, mtime_ns = await self._either("CopyObject", key, size, thin_call, call)
        if not etag:
            return (await self.head(key)).item
        return Object(key, source.size, mtime_ns, xmlpages.bare(etag), source.storage_class)

    async def _compare(self, key: str, condition: Condition) -> None:
        """Raise ESTALE when *condition* does not hold at this moment."""
        try:
            now = (await self.head(key)).item.etag
        except StoreError as exc:
            if exc.errno != errno.ENOENT:
                raise
            now = None
        if (condition.absent and now is not None) or (condition.match and condition.match != now):
            raise StoreError(errno.ESTALE, f"CopyObject {key!r}: another version is there", code="PreconditionFailed")

    async def delete(self, key: str, condition: Condition = ANYWAY) -> None:
        """DeleteObject."""
        headers = self._extras.every | extras.conditions(condition, match=self.features.delete_if, absent=False)
        sent = 0

        async def thin_call(thin: Thin) -> None:
            nonlocal sent
            sent += 1
            await thin.send(f"DeleteObject {key!r}", "DELETE", key, "", headers)

        async def call(client: Client) -> None:
            nonlocal sent
            sent += 1
            await client.call("delete_object", {"Bucket": self.bucket, "Key": key, **extras.parameters(headers)})

        try:
            await self._conditional(key, condition, self._either("DeleteObject", key, 0, thin_call, call))
        except StoreError as exc:
            if exc.code == "NoSuchKey" and not condition.match:
                return
            # The answer to an earlier attempt may have been lost: what is gone is deleted.
            if exc.errno != errno.ESTALE or sent < 2 or not await self._gone(key):
                raise

    async def _gone(self, key: str) -> bool:
        try:
            await self.head(key)
        except StoreError as exc:
            return exc.errno == errno.ENOENT
        return False

    async def delete_many(self, keys: Sequence[str]) -> dict[str, OSError]:
        """DeleteObjects; one by one where the store does not know it, or the key is none that XML can hold."""
        plain = [key for key in keys if key.isprintable()]
        failed: dict[str, OSError] = {}
        single = [key for key in keys if not key.isprintable()]
        if plain:
            arguments = {"Delete": {"Objects": [{"Key": key} for key in plain], "Quiet": True}}
            try:
                answer = await self._client(
                    "DeleteObjects", plain[0], "delete_objects", arguments | extras.parameters(self._extras.every)
                )
            except StoreError as exc:
                if exc.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                    raise
                single = list(keys)
            else:
                failed = answers.failures_of(answer)
        slots = asyncio.Semaphore(_ONE_BY_ONE)

        async def one(key: str) -> None:
            async with slots:
                try:
                    await self.delete(key)
                except OSError as exc:
                    failed[key] = exc

        await asyncio.gather(*(one(key) for key in single))
        return failed

    # Tags and versions.

    async def tags(self, key: str) -> dict[str, str]:
        """GetObjectTagging."""
        arguments = {"Key": key, **extras.parameters(self._extras.every)}
        answer = await self._tagging(self._client("GetObjectTagging", key, "get_object_tagging", arguments))
        return {row["Key"]: row["Value"] for row in answer.get("TagSet", ())}

    async def set_tags(self, key: str, tags: Mapping[str, str]) -> None:
        """PutObjectTagging, or DeleteObjectTagging for none."""
        arguments: dict[str, Any] = {"Key": key, **extras.parameters(self._extras.every)}
        if not tags:
            await self._tagging(self._client("DeleteObjectTagging", key, "delete_object_tagging", arguments))
            return
        arguments["Tagging"] = {"TagSet": [{"Key": name, "Value": value} for name, value in tags.items()]}
        await self._tagging(self._client("PutObjectTagging", key, "put_object_tagging", arguments))

    async def _tagging(self, request: Awaitable[T]) -> T:
        try:
            return await request
        except StoreError as exc:
            if exc.errno == errno.EOPNOTSUPP:
                self.features.tags = False
            raise

    async def versions(self, prefix: str, *, token: str = "", delimiter: str = "/") -> Versions:
        """ListObjectVersions."""
        arguments: dict[str, Any] = {"Prefix": prefix, **extras.parameters(self._extras.every)}
        if delimiter:
            arguments["Delimiter"] = delimiter
        if token:
            arguments["KeyMarker"], arguments["VersionIdMarker"] = json.loads(token)
            if not arguments["VersionIdMarker"]:
                del arguments["VersionIdMarker"]
        answer = await self._client("ListObjectVersions", prefix, "list_object_versions", arguments)
        prefixes = [row["Prefix"] for row in answer.get("CommonPrefixes", ())]
        following = ""
        if answer.get("IsTruncated"):
            following = json.dumps([answer.get("NextKeyMarker", ""), answer.get("NextVersionIdMarker", "")])
            if following == token:
                error = StoreError(errno.EIO, f"ListObjectVersions {prefix!r}: the store repeats its page token", code="NotS3")
                raise self.calls.failed(error, "ListObjectVersions", prefix)
        return Versions(answers.versions_of(answer), prefixes, following)

    async def erase(self, prefix: str) -> None:
        """Remove what a bucket that keeps versions has left of removed keys that begin with *prefix*: a page of them."""
        found = (await self.versions(prefix, delimiter="")).versions
        rows = [{"Key": one.item.key, "VersionId": one.id} for one in found if one.id not in ("", "null")]
        if rows:
            arguments = {"Delete": {"Objects": rows, "Quiet": True}, **extras.parameters(self._extras.every)}
            await self._client("DeleteObjects", prefix, "delete_objects", arguments)


__all__ = ["AioStore"]
