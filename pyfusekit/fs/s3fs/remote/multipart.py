"""Multipart uploads."""

from __future__ import annotations

import asyncio
import base64
import errno
import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

from . import answers, extras, xmlpages
from .client import headers_of
from .errors import StoreError, refused
from .requests import CHECKSUM_REFUSED, COPY_SHARE, Headers, Requests, crc32_of
from .sigv4 import encode_query
from .store import ANYWAY, Attributes, Begun, Body, Bytes, Condition, Object, Part, Upload

if TYPE_CHECKING:
    from .client import Client
    from .thin import Answer, Thin


class Multipart(Requests):
    """The part of a Store that is about multipart uploads."""

    async def create_upload(self, key: str, attributes: Attributes, *, copies: bool = False) -> Upload:
        """CreateMultipartUpload; where parts are to be copied without a checksum of the whole.

        For that a server must read what it could otherwise take over as it is: SeaweedFS needs twice the time.
        """
        what = f"CreateMultipartUpload {key!r}"
        headers = self._extras.new | extras.described(what, attributes)

        async def create(headers: dict[str, str]) -> str:
            async def thin_call(thin: Thin) -> str:
                answer = await thin.send(what, "POST", key, "uploads=", headers)
                upload = _leaves(what, answer, "InitiateMultipartUploadResult").get("UploadId", "")
                if not upload:
                    raise xmlpages.not_s3(what)
                return upload

            async def call(client: Client) -> str:
                arguments = {"Bucket": self.bucket, "Key": key, **extras.parameters(headers)}
                return str((await client.call("create_multipart_upload", arguments))["UploadId"])

            return await self._either("CreateMultipartUpload", key, 0, thin_call, call)

        if self.sums and not copies:
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
        summed = self.sums and upload.id in self._summed
        crc = await crc32_of(body) if summed else None
        headers = self._extras.part if summed or not self.sums else self._extras.part | {"content-md5": await _md5_of(body)}
        answer = await self._with_checksum(crc, headers, send)
        etag = xmlpages.bare(answer.get("etag", ""))
        if not etag:
            raise self.calls.failed(xmlpages.not_s3(f"UploadPart {upload.key!r}"), "UploadPart", upload.key)
        return Part(number, etag, body.size, crc if self.sums else None)

    async def copy_part(
        self, upload: Upload, number: int, source: Object, start: int, end: int, *, source_bucket: str = ""
    ) -> Part:
        """UploadPartCopy."""
        what = f"UploadPartCopy {upload.key!r}"
        bucket = source_bucket or self.bucket
        headers = self._extras.part | self._source(source) | {"x-amz-copy-source-range": f"bytes={start}-{end - 1}"}

        async def thin_call(thin: Thin) -> Mapping[str, Any]:
            query = encode_query([("partNumber", str(number)), ("uploadId", upload.id)])
            sent = headers | {"x-amz-copy-source": extras.source_path(bucket, source.key)}
            answer = await thin.send(what, "PUT", upload.key, query, sent, patient=True)
            # Who knows no copies takes it for a part without bytes, and says nothing.
            return _leaves(what, answer, "CopyPartResult") if answer.body else {}

        async def call(client: Client) -> Mapping[str, Any]:
            arguments = {
                "Bucket": self.bucket,
                "Key": upload.key,
                "PartNumber": number,
                "UploadId": upload.id,
                "CopySource": {"Bucket": bucket, "Key": source.key},
                **extras.parameters(headers),
            }
            return (await client.call("upload_part_copy", arguments)).get("CopyPartResult") or {}

        result = await self._either("UploadPartCopy", upload.key, (end - start) // COPY_SHARE, thin_call, call)
        if not result.get("ETag"):
            self.features.copy_part = False
            error = StoreError(errno.EOPNOTSUPP, f"UploadPartCopy {upload.key!r}: the store does not say what it copied")
            raise self.calls.failed(error, "UploadPartCopy", upload.key)
        crc = answers.crc32_said({"x-amz-checksum-crc32": result.get("ChecksumCRC32", "")})
        return Part(number, xmlpages.bare(result["ETag"]), end - start, crc)

    async def complete(self, upload: Upload, parts: Sequence[Part], condition: Condition = ANYWAY) -> Object:
        """CompleteMultipartUpload; with the object's size, and its checksum when every part's is known."""
        key, size = upload.key, sum(part.size for part in parts)
        what = f"CompleteMultipartUpload {key!r}"
        if_ok = self.features.complete_if
        asked = self._extras.every | extras.conditions(condition, match=if_ok, absent=if_ok)
        known = [part.crc32 for part in parts if part.crc32 is not None]
        verified: dict[str, str] = {}
        if upload.id in self._summed and len(known) == len(parts):
            crc = answers.crc32_header(answers.crc32_of_parts((part.crc32 or 0, part.size) for part in parts))
            verified = {"x-amz-checksum-crc32": crc, "x-amz-checksum-type": "FULL_OBJECT", "x-amz-mp-object-size": str(size)}

        async def thin_call_with(thin: Thin, more: Mapping[str, str]) -> Headers:
            query = encode_query([("uploadId", upload.id)])
            sent = {**asked, **more, "content-type": "application/xml"}
            answer = await thin.send(what, "POST", key, query, sent, Bytes(_parts_xml(parts)), patient=True)
            etag = _leaves(what, answer, "CompleteMultipartUploadResult").get("ETag", "")
            return {**{name.lower(): value for name, value in answer.headers.items()}, "etag": etag}

        async def call_with(client: Client, more: Mapping[str, str]) -> Headers:
            arguments: dict[str, Any] = {"Bucket": self.bucket, "Key": key, "UploadId": upload.id, **extras.parameters(asked)}
            if more:
                arguments |= {
                    "ChecksumCRC32": more["x-amz-checksum-crc32"],
                    "ChecksumType": more["x-amz-checksum-type"],
                    "MpuObjectSize": size,
                }
            arguments["MultipartUpload"] = {"Parts": [{"PartNumber": part.number, "ETag": f'"{part.etag}"'} for part in parts]}
            answer = await client.call("complete_multipart_upload", arguments)
            return {**headers_of(answer), "etag": answer.get("ETag", "")}

        async def complete(more: Mapping[str, str]) -> Headers:
            request = self._either(
                "CompleteMultipartUpload",
                key,
                size // COPY_SHARE,
                lambda thin: thin_call_with(thin, more),
                lambda client: call_with(client, more),
            )
            return await self._conditional(key, condition, request)

        try:
            answer = await complete(verified)
        except StoreError as exc:
            if exc.code not in CHECKSUM_REFUSED or not verified:
                raise
            answer = await complete({})
            self.features.checksums = False
        self._summed.discard(upload.id)
        return answers.written(key, size, {**answer, "etag": xmlpages.bare(answer["etag"])}, self.options.storage_class)

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


async def _md5_of(body: Body) -> str:
    """Return the value of Content-MD5."""

    def digested() -> bytes:
        digest = hashlib.md5(usedforsecurity=False)
        for piece in body.pieces():
            digest.update(piece)
        return digest.digest()

    return base64.b64encode(digested() if body.size <= 1 << 20 else await asyncio.to_thread(digested)).decode()


def _leaves(what: str, answer: Answer, root: str) -> dict[str, str]:
    """Return the elements of an answer whose root must be *root*; StoreError.

    S3 sends spaces while it works on a request that takes long, and then it may be an error after all.
    """
    data = answer.body.lstrip()
    found_root, found = xmlpages.leaves(data)
    if found_root == "Error":
        code, message = found.get("Code", ""), found.get("Message", "")
        raise refused(what, 200, code, message, answer.headers.get("x-amz-request-id", "") or found.get("RequestId", ""))
    if found_root != root:
        raise xmlpages.not_s3(what)
    return found


def _parts_xml(parts: Sequence[Part]) -> bytes:
    """Return the body that names an upload's parts in their order (S3 API, "CompleteMultipartUpload")."""
    rows = "".join(
        f"<Part><ETag>&quot;{escape(part.etag)}&quot;</ETag><PartNumber>{part.number}</PartNumber></Part>" for part in parts
    )
    namespace = "http://s3.amazonaws.com/doc/2006-03-01/"
    return f'<CompleteMultipartUpload xmlns="{namespace}">{rows}</CompleteMultipartUpload>'.encode()


__all__ = ["Multipart"]
