"""The object store: listing, asking and reading, each under a deadline, with retries, failing with an errno.

Store is all the filesystem knows of S3; AioStore is the one on aiobotocore. aiobotocore brings the credential chain, regions
and signatures; retries are ours, because botocore's end where a body begins.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any, NamedTuple, Protocol, TypeVar

from .errors import StoreError, translate
from .options import S3Options

log = logging.getLogger("pyfusekit.s3fs")

T = TypeVar("T")

ATTEMPTS = 5
"""How often a request is sent, when the failure is one that may pass."""
SECONDS_PER_BYTE = 8.0 / (1 << 20)
"""What a byte adds to a request's deadline: 128 KiB/s is the slowest line that is waited for."""
_CHUNK = 1 << 20


class Object(NamedTuple):
    """What a listing or a HEAD says of an object."""

    key: str
    size: int
    mtime_ns: int
    etag: str
    """The version, without its quotes; empty when the store says none."""


class Page(NamedTuple):
    """One answer of ListObjectsV2. Objects and prefixes are each in the order of their UTF-8 bytes, where the store sorts."""

    objects: list[Object]
    prefixes: list[str]
    """What is common to keys up to the delimiter, "/" included."""
    token: str
    """Asks for the next page; empty when this is the last."""


class Store(Protocol):
    """A bucket. Every method raises StoreError and may be cancelled at any time, which ends its HTTP request."""

    async def start(self) -> None:
        """Make the connection; nothing is sent yet."""

    async def close(self) -> None:
        """End everything that is under way. May be called twice."""

    async def list(self, prefix: str, *, token: str = "", start_after: str = "", max_keys: int = 1000) -> Page:
        """Return the objects that begin with *prefix* and have no "/" behind it, and the common prefixes of the others.

        The page is the one *token* of the page before asks for, or begins behind the key *start_after*, or is the first.
        """

    async def head(self, key: str) -> Object:
        """Return what *key* is now; ENOENT."""

    async def get(self, item: Object, offset: int, size: int, sink: Callable[[bytes], None]) -> None:
        """Hand the bytes [offset, offset + size) of *item* to *sink*, piece after piece in order.

        The range must lie within the object. ESTALE when the key holds another version than item.etag. What sink has got
        when an error is raised is right as far as it goes.
        """


class AioStore:
    """A Store on aiobotocore.

    INVARIANT: no more than max_connections requests are under way, so the deadline, which begins with the first attempt,
    never counts time spent waiting for others.
    """

    def __init__(self, bucket: str, options: S3Options) -> None:
        self.bucket = bucket
        self.options = options
        self.endpoint = str(options.endpoint_url or "")
        """The URL requests go to; known for sure after start."""
        self.attempts = ATTEMPTS
        self._session: Any = None
        self._client: Any = None
        self._exit = AsyncExitStack()
        self._slots = asyncio.Semaphore(max(1, options.max_connections))
        self._extra: dict[str, str] = {"RequestPayer": "requester"} if options.requester_pays else {}

    async def start(self) -> None:
        """Make the client. ValueError or a BotoCoreError when the options make none."""
        from aiobotocore.session import AioSession

        options = self.options
        self._session = AioSession(profile=options.profile or None)
        client = self._session.create_client(
            "s3",
            region_name=options.region or None,
            endpoint_url=str(options.endpoint_url) if options.endpoint_url else None,
            config=self._config(),
        )
        self._client = await self._exit.enter_async_context(client)
        self.endpoint = str(self._client.meta.endpoint_url)

    def _config(self) -> Any:
        """Return the client's configuration.

        One attempt each: _call retries. Checksums only where S3 demands them: other servers refuse the new ones, or send
        the whole object's with a range.
        """
        from aiobotocore.config import AioConfig
        from botocore import UNSIGNED

        options = self.options
        timeout = min(options.deadline, 3600.0)
        settings: dict[str, Any] = {
            "connect_timeout": timeout / 3,
            "read_timeout": timeout / 2,
            "max_pool_connections": max(1, options.max_connections),
            "retries": {"mode": "standard", "total_max_attempts": 1},
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
            "s3": {"addressing_style": options.addressing},
        }
        if options.anonymous:
            settings["signature_version"] = UNSIGNED
        return AioConfig(**settings)

    async def close(self) -> None:
        """Close the client and its connections."""
        self._client = None
        await self._exit.aclose()

    async def who(self) -> str:
        """Return which credentials sign the requests, in words: the key's id and where it was found."""
        if self.options.anonymous:
            return "nobody (anonymous)"
        credentials = await self._session.get_credentials()
        if credentials is None:
            return "nobody (no credentials)"
        frozen = await credentials.get_frozen_credentials()
        return f"key {frozen.access_key} from {credentials.method}"

    async def list(self, prefix: str, *, token: str = "", start_after: str = "", max_keys: int = 1000) -> Page:
        """ListObjectsV2 with the delimiter "/"."""
        arguments: dict[str, Any] = {"Bucket": self.bucket, "Prefix": prefix, "Delimiter": "/", "MaxKeys": max_keys}
        if token:
            arguments["ContinuationToken"] = token
        elif start_after:
            arguments["StartAfter"] = start_after

        async def attempt() -> dict[str, Any]:
            answer: dict[str, Any] = await self._client.list_objects_v2(**arguments, **self._extra)
            return answer

        what = f"ListObjectsV2 {prefix!r}"
        answer = await self._call(what, 0, attempt)
        if not answer.keys() & {"IsTruncated", "KeyCount", "Name"}:
            # Any page of a web server parses as a listing without names; a directory must not look empty for that.
            raise self._failed(StoreError(errno.EIO, f"{what}: the answer is no listing", code="NotS3"))
        objects = [
            Object(row["Key"], int(row["Size"]), _ns(row["LastModified"]), _bare(row.get("ETag", "")))
            for row in answer.get("Contents", ())
        ]
        prefixes = [row["Prefix"] for row in answer.get("CommonPrefixes", ())]
        following = answer.get("NextContinuationToken", "") if answer.get("IsTruncated") else ""
        if following and following == token:
            raise self._failed(StoreError(errno.EIO, f"{what}: the store repeats its page token"))
        return Page(objects, prefixes, following)

    async def buckets(self) -> Sequence[str]:
        """Return the names of the buckets these credentials may list: a help for who misspelled one."""

        async def attempt() -> dict[str, Any]:
            answer: dict[str, Any] = await self._client.list_buckets()
            return answer

        return [row["Name"] for row in (await self._call("ListBuckets", 0, attempt)).get("Buckets", ())]

    async def head(self, key: str) -> Object:
        """HeadObject."""

        async def attempt() -> dict[str, Any]:
            answer: dict[str, Any] = await self._client.head_object(Bucket=self.bucket, Key=key, **self._extra)
            return answer

        answer = await self._call(f"HeadObject {key!r}", 0, attempt)
        return Object(key, int(answer["ContentLength"]), _ns(answer["LastModified"]), _bare(answer.get("ETag", "")))

    async def get(self, item: Object, offset: int, size: int, sink: Callable[[bytes], None]) -> None:
        """GetObject with Range and If-Match; a body that breaks off is continued where it broke."""
        what = f"GetObject {item.key!r}"
        position, end = offset, offset + size

        async def attempt() -> None:
            nonlocal position
            condition = {"IfMatch": f'"{item.etag}"'} if item.etag else {}
            answer = await self._client.get_object(
                Bucket=self.bucket, Key=item.key, Range=f"bytes={position}-{end - 1}", **condition, **self._extra
            )
            async with answer["Body"] as body:
                _check_range(what, item, position, end, answer)
                while position < end:
                    chunk = await body.read(_CHUNK)
                    if not chunk:
                        raise StoreError(errno.EIO, f"{what}: the body ended {end - position} bytes early", retryable=True)
                    if position + len(chunk) > end:
                        raise StoreError(errno.EIO, f"{what}: the body is longer than what was asked for")
                    sink(chunk)
                    position += len(chunk)

        await self._call(what, size, attempt)

    def deadline(self, size: int) -> float:
        """Return the seconds a request that moves *size* bytes may take, its retries included."""
        return self.options.deadline + size * SECONDS_PER_BYTE

    async def _call(self, what: str, size: int, attempt: Callable[[], Awaitable[T]]) -> T:
        """Run *attempt*, again if its failure may pass, until the deadline of a request of *size* bytes."""
        async with self._slots:
            limit = self.deadline(size)
            last: StoreError | None = None
            try:
                async with asyncio.timeout(limit if limit != float("inf") else None):
                    for tries in range(1, self.attempts + 1):
                        try:
                            return await attempt()
                        except Exception as exc:
                            last = translate(what, exc)
                            if not last.retryable or tries == self.attempts:
                                raise last from exc
                        log.info("%s; trying again", last.strerror)
                        await asyncio.sleep(_pause(tries, last))
            except TimeoutError:
                because = f"; the last answer was: {last.strerror}" if last else ""
                error = StoreError(errno.ETIMEDOUT, f"{what}: not done within {limit:.0f} s{because}")
                raise self._failed(error) from None
            except StoreError as error:
                raise self._failed(error) from error.__cause__
        raise AssertionError("unreachable")

    @staticmethod
    def _failed(error: StoreError) -> StoreError:
        """Log why a request failed for good: a program sees only the errno. Names that do not exist are no failure."""
        level = logging.DEBUG if error.errno == errno.ENOENT else logging.WARNING
        log.log(level, "%s -> %s", error.strerror, errno.errorcode.get(error.errno or 0, error.errno))
        return error


def _check_range(what: str, item: Object, start: int, end: int, answer: dict[str, Any]) -> None:
    """Raise unless *answer* is about the version that was asked for and its body is exactly [start, end).

    A header that was sent is no guarantee: there are servers that pass over If-Match, and some that pass over Range.
    """
    etag = _bare(answer.get("ETag", ""))
    if item.etag and etag and etag != item.etag:
        raise StoreError(errno.ESTALE, f"{what}: replaced by another version since it was opened")
    said = str(answer.get("ContentRange", ""))
    length = int(answer.get("ContentLength", -1))
    whole = start == 0 and end == item.size
    if said:
        span, _, total = said.removeprefix("bytes ").partition("/")
        if total not in ("*", str(item.size)):
            raise StoreError(errno.ESTALE, f"{what}: its size is {total} now, it was {item.size} when it was opened")
        right = span == f"{start}-{end - 1}"
    else:
        right = whole
    if not right or length not in (-1, end - start):
        raise StoreError(errno.EIO, f"{what}: bytes {start}-{end - 1} were asked for, {said or 'the whole'} ({length} B) came")


def _pause(tries: int, error: StoreError) -> float:
    """Return the seconds to wait before attempt *tries* + 1, with jitter; longer when the store says that it has enough."""
    base = 0.5 if error.errno == errno.EBUSY else 0.1
    return float(min(4.0, base * (1 << (tries - 1))) * random.uniform(0.5, 1.0))


def _bare(etag: str) -> str:
    return etag.removeprefix("W/").strip('"')


def _ns(moment: Any) -> int:
    """Return a datetime as nanoseconds; S3's own have whole seconds or milliseconds."""
    milliseconds: int = round(moment.timestamp() * 1000)
    return milliseconds * 1_000_000


__all__ = ["ATTEMPTS", "AioStore", "Object", "Page", "Store"]
