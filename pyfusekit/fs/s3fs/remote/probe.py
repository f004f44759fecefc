"""Why a bucket cannot be mounted, in words for the person who tried; and what the server behind it really does."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import json
import logging
import os
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from urllib.parse import urlsplit

from pyfusekit.core import MountError

from ..options import S3Options, Source
from .aio import AioStore
from .buckets import AllBuckets
from .calls import ATTEMPTS, Report
from .errors import RENEWABLE, StoreError, reason_of
from .store import ABSENT, Attributes, Bytes, Condition, Features, Object, Store, Upload

log = logging.getLogger("pyfusekit.s3fs")

_HELP_TIMEOUT = 3.0
"""Seconds spent on finding out what could help."""
_PROBE_TIMEOUT = 10.0
"""Seconds for the capability probe; a server whose answers take that long is believed to do everything."""
_TRIED_BUCKETS = 3
"""Of a mount of all buckets: one that can be written to shows what the server does."""
_REMEMBERED = 86400.0
"""Seconds for which an endpoint is believed to do what it did."""
_OTHER = Condition(match="0123456789abcdef0123456789abcdef")
"""No object of the probe has this ETag."""


async def open_store(source: Source, options: S3Options, report: Report | None = None) -> AioStore | AllBuckets:
    """Return a started store; MountError when the options make none (an unknown profile, a URL that is none)."""
    from botocore import exceptions as boto

    try:
        store = AioStore(source.bucket, options, report=report) if source.bucket else AllBuckets(options, report=report)
        # Someone waits at the terminal: a dead endpoint is not asked for long.
        store.calls.attempts = 2
        await store.start()
    except boto.ProfileNotFound as exc:
        raise MountError(
            f"{source}: {exc}", kind="access-denied", remedy="aws configure list-profiles shows the profiles there are"
        ) from exc
    except (boto.BotoCoreError, ValueError) as exc:
        raise MountError(f"{source}: {exc}", kind="source-unreachable", remedy="look at --endpoint-url and --region") from exc
    return store


async def probe(store: Store, source: Source) -> None:
    """Ask for one name of what is to be mounted, so that a mount that cannot work fails now; MountError says why.

    Costs one ListObjectsV2 with max-keys=1. A prefix under which there is nothing is a misspelt one.
    """
    try:
        page = await store.list(source.prefix, max_keys=1)
    except StoreError as exc:
        raise await _explain(store, source, exc) from exc
    if isinstance(store, AioStore | AllBuckets):
        store.calls.attempts = ATTEMPTS
    if source.prefix and not page.objects and not page.prefixes and not page.token:
        raise MountError(
            f"{source}: nothing in the bucket begins with {source.prefix!r}",
            kind="source-missing",
            remedy=f"mount s3://{source.bucket} to see what there is",
        )


async def _explain(store: Store, source: Source, exc: StoreError) -> MountError:
    endpoint = getattr(store, "endpoint", "") or "the store"
    answer = f"{exc.status} {exc.code} from {endpoint}" if exc.status else f"no answer from {endpoint}"
    if exc.code == "ParamValidation":
        return MountError(
            f"{source}: {source.bucket!r} is no name of a bucket", kind="source-missing", remedy=await _buckets(store)
        )
    if exc.code in ("NoSuchBucket", "InvalidBucketName") or (exc.status == 404 and exc.code != "NotS3"):
        return MountError(f"{source}: no such bucket ({answer})", kind="source-missing", remedy=await _buckets(store))
    if exc.code == "NoCredentials":
        return MountError(
            f"{source}: no usable AWS credentials: {reason_of(exc.__cause__ or exc)}",
            kind="access-denied",
            remedy="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or use --profile NAME, or --anonymous for a public bucket",
        )
    if exc.code == "RequestTimeTooSkewed":
        return MountError(
            f"{source}: this machine's clock is wrong, says {endpoint}",
            kind="access-denied",
            remedy="set the clock: timedatectl",
        )
    if exc.code in RENEWABLE | {"SignatureDoesNotMatch"}:
        return MountError(
            f"{source}: the credentials are refused: {exc.code} ({await _who(store)})",
            kind="access-denied",
            remedy="renew them (aws sso login, aws configure), or use another --profile",
        )
    if exc.errno == errno.EACCES:
        what, owner, more = ("ListBucket", "bucket's owner", " and s3:GetObject")
        if not source.bucket:
            what, owner, more = ("ListAllMyBuckets", "account's owner", "")
        return MountError(
            f"{source}: access denied for {what} as {await _who(store)} ({answer})",
            kind="access-denied",
            remedy=f"ask the {owner} for s3:{what}{more}, or use another --profile",
        )
    if exc.code in ("PermanentRedirect", "AuthorizationHeaderMalformed"):
        return MountError(f"{source}: {exc.strerror}", kind="source-unreachable", remedy="name the bucket's --region")
    if exc.code == "NotS3" or exc.status:
        return MountError(
            f"{endpoint} does not answer as S3 does: {exc.strerror}",
            kind="source-unreachable",
            remedy="is --endpoint-url right? (it may come from $AWS_ENDPOINT_URL_S3)",
        )
    return _unreachable(endpoint, exc)


def _unreachable(endpoint: str, exc: StoreError) -> MountError:
    reason = "no answer in time" if exc.errno == errno.ETIMEDOUT else reason_of(exc.__cause__ or exc)
    return MountError(
        f"{endpoint}: {reason}",
        kind="source-unreachable",
        remedy="is --endpoint-url right? (it may come from $AWS_ENDPOINT_URL_S3)",
        errno=exc.errno,
    )


async def _who(store: Store) -> str:
    return await store.who() if isinstance(store, AioStore | AllBuckets) else "these credentials"


async def _buckets(store: Store) -> str:
    """Return a remedy for a bucket that is not there: the ones that are."""
    names: Sequence[str] = ()
    if isinstance(store, AioStore):
        with suppress(OSError):
            async with asyncio.timeout(_HELP_TIMEOUT):
                names = [bucket.key for bucket in await store.buckets()]
    if not names:
        return "look at the bucket's name and at --endpoint-url"
    more = ", ..." if len(names) > 8 else ""
    return f"buckets you can list: {', '.join(names[:8])}{more}"


# What the server really does.

WEAKENED = {
    "get_if_match": "If-Match on GetObject: an object replaced while it is read is noticed by the ETag of the answer only",
    "put_if_absent": "If-None-Match on PutObject: of two who create a file at once, one loses its update",
    "put_if_match": "If-Match on PutObject: of two who change a file at once, one loses its update",
    "complete_if": "conditions on CompleteMultipartUpload: of two who write a large file at once, one loses its update",
    "copy_if": "conditions on what CopyObject replaces: a rename or chmod may undo an update of the same moment",
    "delete_if": "If-Match on DeleteObject: an update of the same moment may be deleted",
}
"""By the field of Features: what a server passes over, and what that costs."""
LACKING = {
    "copy_part": "UploadPartCopy: a change in a large file sends all of it",
    "checksums": "checksums of uploads: bytes that change on their way are not noticed",
    "tags": "tags",
}


def weakened(features: Features) -> list[str]:
    """Return a sentence for each thing that a server does not do."""
    said = [f"this server ignores {words}" for name, words in WEAKENED.items() if not getattr(features, name)]
    return said + [f"this server has no {words}" for name, words in LACKING.items() if not getattr(features, name)]


async def features(store: Store, source: Source, cache_home: str = "") -> list[str]:
    """Find out what the server honours; set store.features, and return a sentence for each promise that is weakened.

    A few small objects are written below the prefix and removed again, unless *cache_home* remembers the answers of the last
    day. Without permission to write nothing can be found out, and one sentence says so. Nothing is raised.
    """
    if not isinstance(store, AioStore | AllBuckets):
        return []
    name = f"{store.endpoint} {source.bucket}"
    # What listens on a port of this machine today may be another server than yesterday.
    local = urlsplit(store.endpoint).hostname in ("localhost", "127.0.0.1", "::1")
    path = os.path.join(cache_home, "features.json") if cache_home and not local else ""
    kept = await asyncio.to_thread(_recall, path, name) if path else None
    if kept is not None:
        store.features = Features(**kept)
        return weakened(store.features)
    said = await Trial(store, source.prefix).run() if isinstance(store, AioStore) else await _try_some_bucket(store)
    if said is not None:
        return said
    if path:
        await asyncio.to_thread(_remember, path, name, dataclasses.asdict(store.features))
    wanted = store.options.checksums != "off"
    return [
        sentence for sentence in weakened(store.features) if wanted or sentence != f"this server has no {LACKING['checksums']}"
    ]


async def _try_some_bucket(store: AllBuckets) -> list[str] | None:
    """Set the store's features by the first of its buckets that can be written to; as :meth:`Trial.run`.

    The buckets are one server's, which does for one what it does for all.
    """
    try:
        names = [prefix.rstrip("/") for prefix in (await store.list("", max_keys=_TRIED_BUCKETS)).prefixes]
    except StoreError as exc:
        return [f"what this server honours was not found out: {exc.strerror}"]
    for name in names:
        bucket = await store.bucket(name)
        if await Trial(bucket, "").run() is None:
            store.features = bucket.features
            return None
    tried = ", ".join(names) or "there is none"
    return [f"what this server honours was not found out: no bucket could be tried ({tried})"]


class Trial:
    """The capability probe: each condition is set so that it cannot hold, and must be refused."""

    def __init__(self, store: AioStore, prefix: str) -> None:
        self.store = store
        self.key = f"{prefix}.pyfusekit-probe-{uuid.uuid4().hex}"
        self.source, self.target, self.part = f"{self.key}-source", f"{self.key}-target", f"{self.key}-part"
        self._uploads: list[Upload] = []

    async def run(self) -> list[str] | None:
        """Set the store's features. Return None, or why that could not be."""
        quiet, self.store.calls.quiet = self.store.calls.quiet, True
        try:
            async with asyncio.timeout(_PROBE_TIMEOUT):
                try:
                    await self._try()
                finally:
                    await self._clean()
        except TimeoutError:
            return [f"what this server honours was not found out within {_PROBE_TIMEOUT:.0f} s"]
        except StoreError as exc:
            if exc.errno == errno.EACCES:
                self.store.writable = False
                return [f"read-only: nothing can be written with these credentials ({exc.strerror})"]
            return [f"what this server honours was not found out: {exc.strerror}"]
        finally:
            self.store.calls.quiet = quiet
        return None

    async def _try(self) -> None:
        store, key, nothing = self.store, self.key, Attributes()
        probed = Bytes(b"probe!")
        await store.put(key, probed, nothing, ABSENT)
        # A server that accepts what it should refuse changes an object: what the others look at is another one.
        source, _ = await asyncio.gather(store.put(self.source, probed, nothing), store.put(self.target, probed, nothing))

        def put(condition: Condition) -> Callable[[], Awaitable[object]]:
            return lambda: store.put(key, probed, nothing, condition)

        def copy(condition: Condition) -> Callable[[], Awaitable[object]]:
            return lambda: store.copy(source, key, nothing, condition)

        found = await asyncio.gather(
            _refused(put(ABSENT)),
            _refused(put(_OTHER)),
            _refused(copy(ABSENT)),
            _refused(copy(_OTHER)),
            _refused(lambda: self._multipart(ABSENT)),
            _refused(lambda: self._multipart(_OTHER)),
            # Sets get_if_match itself, by what the answer is about.
            _refused(lambda: store.get(source._replace(etag=_OTHER.match), 0, 1, lambda data: None)),
            self._copies_part(source),
        )
        features = store.features
        features.put_if_absent, features.put_if_match = found[0], found[1]
        features.copy_if = features.copy_if and found[2] and found[3]
        features.complete_if = found[4] and found[5]
        features.copy_part = features.copy_part and found[7]
        features.delete_if = await _refused(lambda: store.delete(key, _OTHER))

    async def _multipart(self, condition: Condition) -> None:
        upload = await self._begin(self.target)
        part = await self.store.upload_part(upload, 1, Bytes(b"other."))
        await self.store.complete(upload, [part], condition)

    async def _begin(self, key: str) -> Upload:
        upload = await self.store.create_upload(key, Attributes())
        self._uploads.append(upload)
        return upload

    async def _copies_part(self, source: Object) -> bool:
        """Return whether a range of an object becomes a part: there are servers that copy all of it."""
        try:
            upload = await self._begin(self.part)
            part = await self.store.copy_part(upload, 1, source, 1, 4)
            await self.store.complete(upload, [part])
            return (await self.store.head(self.part)).item.size == 3
        except StoreError as exc:
            return exc.errno == errno.EACCES

    async def _clean(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_HELP_TIMEOUT):
                with suppress(StoreError):
                    await self.store.delete_many([self.key, self.source, self.target, self.part])
                for upload in self._uploads:
                    # Completed ones are gone.
                    with suppress(StoreError):
                        await self.store.abort(upload)
                with suppress(StoreError):
                    await self.store.erase(self.key)


async def _refused(request: Callable[[], Awaitable[object]]) -> bool:
    """Return whether a request whose condition does not hold is refused; what may not be tried is believed to be."""
    try:
        await request()
    except StoreError as exc:
        return exc.errno != errno.EOPNOTSUPP
    return False


def _recall(path: str, name: str) -> dict[str, bool] | None:
    """Return what is remembered of an endpoint, when it is fresh and complete."""
    try:
        with open(path, encoding="utf-8") as file:
            kept = json.load(file)[name]
        values = {field.name: bool(kept["features"][field.name]) for field in dataclasses.fields(Features)}
        return values if 0 <= time.time() - float(kept["time"]) < _REMEMBERED else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _remember(path: str, name: str, values: dict[str, bool]) -> None:
    """Keep what was found out; what cannot be kept is found out again."""
    try:
        with open(path, encoding="utf-8") as file:
            kept = json.load(file)
        if not isinstance(kept, dict):
            kept = {}
    except (OSError, ValueError):
        kept = {}
    kept[name] = {"time": time.time(), "features": values}
    temporary = f"{path}.{os.getpid()}"
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(kept, file)
        os.replace(temporary, path)
    except OSError as exc:
        log.info("%s: %s", path, exc.strerror)


__all__ = ["LACKING", "WEAKENED", "features", "open_store", "probe", "weakened"]
