"""How a bucket's requests are sent: by one path or the other, with checksums and conditions as far as the store has them."""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from ..options import S3Options
from . import answers, extras
from .calls import Calls, Report
from .client import BodyFile, Client, headers_of
from .errors import StoreError
from .link import Link
from .store import Body, Condition, Features, Object
from .thin import Thin

log = logging.getLogger("pyfusekit.s3fs")

T = TypeVar("T")

COPY_SHARE = 16
"""A byte that the store copies counts this much less in a deadline than one that is sent."""
CHECKSUM_REFUSED = frozenset({"InvalidArgument", "InvalidRequest", "NotImplemented", "XAmzContentSHA256Mismatch", "400", "501"})
"""What stores say that do not know x-amz-checksum-*; also what they say about other things, so it is tried without."""

Headers = Mapping[str, str]


class Requests:
    """What every request of a bucket needs.

    *report* is told of each request that failed for good. *root* is a store of the same mount, whose credentials, connections
    and limits this one shares.
    """

    def __init__(self, bucket: str, options: S3Options, *, report: Report | None = None, root: Requests | None = None) -> None:
        self.bucket = bucket
        self.options = options
        self.features = Features()
        self.writable = True
        """False once the probe was denied to write."""
        self.calls: Calls = root.calls if root is not None else Calls(options.max_connections, options.deadline, report)
        self.link: Link = Link(bucket, options, root.link if root is not None else None)
        self._extras = extras.Extras(options)
        self._summed: set[str] = set()
        """Multipart uploads that were begun with checksums: all their parts have one."""

    @property
    def endpoint(self) -> str:
        """The URL requests go to; known for sure after start."""
        return self.link.client.endpoint

    @property
    def attempts(self) -> int:
        """How often a request is sent, when the failure is one that may pass."""
        return self.calls.attempts

    @attempts.setter
    def attempts(self, attempts: int) -> None:
        self.calls.attempts = attempts

    @property
    def sums(self) -> bool:
        """Whether uploads carry checksums."""
        return self.features.checksums and self.options.checksums != "off"

    def deadline(self, size: int) -> float:
        """Return the seconds a request that moves *size* bytes may take, its retries included."""
        return self.calls.deadline(size)

    async def start(self) -> None:
        """Make the client. ValueError or a BotoCoreError when the options make none."""
        await self.link.start()

    async def close(self) -> None:
        """Close the connections."""
        await self.link.close()

    async def who(self) -> str:
        """Return which credentials sign the requests, in words: the key's id and where it was found."""
        return await self.link.client.who()

    async def _either(
        self,
        operation: str,
        key: str,
        size: int,
        thin_call: Callable[[Thin], Awaitable[T]],
        call: Callable[[Client], Awaitable[T]],
    ) -> T:
        async def attempt() -> T:
            return await self.link.either(f"{operation} {key!r}", thin_call, call)

        return await self.calls.run(operation, key, size, attempt)

    async def _client(self, operation: str, key: str, name: str, arguments: Mapping[str, Any], size: int = 0) -> dict[str, Any]:
        """Return aiobotocore's answer to a rare request; *name* is its method's."""

        async def call(client: Client) -> dict[str, Any]:
            return await client.call(name, {"Bucket": self.bucket, **arguments})

        async def attempt() -> dict[str, Any]:
            return await self.link.through_client(f"{operation} {key!r}", call)

        return await self.calls.run(operation, key, size, attempt)

    async def _send_body(
        self, operation: str, key: str, query: str, headers: dict[str, str], body: Body, name: str, more: Mapping[str, Any]
    ) -> Headers:
        async def thin_call(thin: Thin) -> Headers:
            return (await thin.send(f"{operation} {key!r}", "PUT", key, query, headers, body)).headers

        async def call(client: Client) -> Headers:
            arguments: dict[str, Any] = {"Bucket": self.bucket, "Key": key, "Body": BodyFile(body), "ContentLength": body.size}
            return headers_of(await client.call(name, {**arguments, **extras.parameters(headers), **more}))

        return await self._either(operation, key, body.size, thin_call, call)

    async def _with_checksum(
        self, crc: int | None, headers: dict[str, str], send: Callable[[dict[str, str]], Awaitable[Headers]]
    ) -> Headers:
        """Send a body with its CRC32, or without when the store refuses that, and remember."""
        if crc is None:
            return await send(headers)
        try:
            return await send(headers | {"x-amz-checksum-crc32": answers.crc32_header(crc)})
        except StoreError as exc:
            if exc.code not in CHECKSUM_REFUSED:
                raise
        answer = await send(headers)
        log.info("bucket %r: the store refuses checksums; none are sent from now on", self.bucket)
        self.features.checksums = False
        return answer

    async def _conditional(self, key: str, condition: Condition, request: Awaitable[T]) -> T:
        """Return what a conditional write returns; the key's absence is a refusal too: AWS says 404 to If-Match then."""
        try:
            return await request
        except StoreError as exc:
            gone = exc.errno == errno.ENOENT and exc.code in ("NoSuchKey", "404")
            if condition.match and gone:
                raise StoreError(
                    errno.ESTALE, str(exc.strerror), code="PreconditionFailed", status=exc.status, request_id=exc.request_id
                ) from exc
            raise

    def _source(self, source: Object) -> dict[str, str]:
        match = {"x-amz-copy-source-if-match": f'"{source.etag}"'} if source.etag else {}
        return self._extras.source | match


async def crc32_of(body: Body) -> int:
    return body.crc32() if body.size <= 1 << 20 else await asyncio.to_thread(body.crc32)


__all__ = ["CHECKSUM_REFUSED", "COPY_SHARE", "Headers", "Requests", "crc32_of"]
