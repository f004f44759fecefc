"""Multipart uploads."""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from typing import Any

from . import answers, extras, xmlpages
from .client import headers_of
from .errors import StoreError
from .requests import CHECKSUM_REFUSED, COPY_SHARE, Headers, Requests, crc32_of
from .sigv4 import encode_query
from .store import ANYWAY, Attributes, Begun, Body, Condition, Object, Part, Upload


class Multipart(Requests):
    """The part of a Store that is about multipart uploads."""

    async def create_upload(self, key: str, attributes: Attributes) -> Upload:
        """CreateMultipartUpload."""
        headers = self._extras.new | extras.described(f"CreateMultipartUpload {key!r}", attributes)

        async def create(headers: Mapping[str, str]) -> str:
            arguments = {"Key": key, **extras.parameters(headers)}
            answer = await self._client("CreateMultipartUpload", key, "create_multipart_upload", arguments)
            return str(answer["UploadId"])

        if self.sums:
            try:
                summed = headers | {"x-amz-checksum-algorithm": "CRC32", "x-amz-checksum-type": "FULL_OBJECT"}
                upload = Upload(key, await create(summed))
            except StoreError as exc:
                if exc.code not in CHECKSUM_REFUSED:
                    raise
            else:
                self._summed.add(upload.id)
                return upload
            upload = Upload(key, await create(headers))
            self.features.checksums = False
            return upload
        return Upload(key, await create(headers))

    async def upload_part(self, upload: Upload, number: int, body: Body) -> Part:
        """UploadPart."""
        query = encode_query([("partNumber", str(number)), ("uploadId", upload.id)])
        more = {"PartNumber": number, "UploadId": upload.id}

        async def send(headers: dict[str, str]) -> Headers:
            return await self._send_body("UploadPart", upload.key, query, headers, body, "upload_part", more)

        # A part may have a checksum only when the upload was begun with them.
        crc = await crc32_of(body) if self.sums and upload.id in self._summed else None
        answer = await self._with_checksum(crc, self._extras.part, send)
        etag = xmlpages.bare(answer.get("etag", ""))
        if not etag:
            raise self.calls.failed(xmlpages.not_s3(f"UploadPart {upload.key!r}"), "UploadPart", upload.key)
        return Part(number, etag, body.size, crc if self.sums else None)

    async def copy_part(
        self, upload: Upload, number: int, source: Object, start: int, end: int, *, source_bucket: str = ""
    ) -> Part:
        """UploadPartCopy."""
        headers = self._extras.part | self._source(source) | {"x-amz-copy-source-range": f"bytes={start}-{end - 1}"}
        arguments = {
            "Key": upload.key,
            "PartNumber": number,
            "UploadId": upload.id,
            "CopySource": {"Bucket": source_bucket or self.bucket, "Key": source.key},
            **extras.parameters(headers),
        }
        size = (end - start) // COPY_SHARE
        answer = await self._client("UploadPartCopy", upload.key, "upload_part_copy", arguments, size)
        result = answer.get("CopyPartResult") or {}
        if not result.get("ETag"):
            self.features.copy_part = False
            error = StoreError(errno.EOPNOTSUPP, f"UploadPartCopy {upload.key!r}: the store does not say what it copied")
            raise self.calls.failed(error, "UploadPartCopy", upload.key)
        crc = answers.crc32_said({"x-amz-checksum-crc32": result.get("ChecksumCRC32", "")})
        return Part(number, xmlpages.bare(result["ETag"]), end - start, crc)

    async def complete(self, upload: Upload, parts: Sequence[Part], condition: Condition = ANYWAY) -> Object:
        """CompleteMultipartUpload; with the object's size, and its checksum when every part's is known."""
        key, size = upload.key, sum(part.size for part in parts)
        if_ok = self.features.complete_if
        asked = self._extras.every | extras.conditions(condition, match=if_ok, absent=if_ok)
        arguments = {"Key": key, "UploadId": upload.id, **extras.parameters(asked)}
        rows = [{"PartNumber": part.number, "ETag": f'"{part.etag}"'} for part in parts]
        known = [part.crc32 for part in parts if part.crc32 is not None]
        verified: dict[str, Any] = {}
        if upload.id in self._summed and len(known) == len(parts):
            crc = answers.crc32_of_parts((part.crc32 or 0, part.size) for part in parts)
            verified = {"ChecksumCRC32": answers.crc32_header(crc), "ChecksumType": "FULL_OBJECT", "MpuObjectSize": size}

        async def complete(more: Mapping[str, Any]) -> dict[str, Any]:
            given = {**arguments, **more, "MultipartUpload": {"Parts": rows}}
            request = self._client("CompleteMultipartUpload", key, "complete_multipart_upload", given, size // COPY_SHARE)
            return await self._conditional(key, condition, request)

        try:
            answer = await complete(verified)
        except StoreError as exc:
            if exc.code not in CHECKSUM_REFUSED or not verified:
                raise
            answer = await complete({})
            self.features.checksums = False
        self._summed.discard(upload.id)
        etag = xmlpages.bare(answer.get("ETag", ""))
        return answers.written(key, size, {**headers_of(answer), "etag": etag}, self.options.storage_class)

    async def abort(self, upload: Upload) -> None:
        """AbortMultipartUpload."""
        self._summed.discard(upload.id)
        arguments = {"Key": upload.key, "UploadId": upload.id, **extras.parameters(self._extras.every)}
        try:
            await self._client("AbortMultipartUpload", upload.key, "abort_multipart_upload", arguments)
        except StoreError as exc:
            if exc.errno != errno.ENOENT:
                raise

    async def uploads(self, prefix: str) -> list[Begun]:
        """ListMultipartUploads, all pages; empty where the store does not know it."""
        found: list[Begun] = []
        arguments: dict[str, Any] = {"Prefix": prefix, "EncodingType": "url", **extras.parameters(self._extras.every)}
        while True:
            try:
                answer = await self._client("ListMultipartUploads", prefix, "list_multipart_uploads", arguments)
            except StoreError as exc:
                if exc.errno != errno.EOPNOTSUPP:
                    raise
                return found
            found += answers.uploads_of(answer)
            following = (answer.get("NextKeyMarker", ""), answer.get("NextUploadIdMarker", ""))
            if not answer.get("IsTruncated") or following == (arguments.get("KeyMarker"), arguments.get("UploadIdMarker")):
                return found
            arguments |= {"KeyMarker": following[0], "UploadIdMarker": following[1]}


__all__ = ["Multipart"]
