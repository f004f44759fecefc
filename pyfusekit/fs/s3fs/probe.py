"""Why a bucket cannot be mounted, in words for the person who tried."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Sequence
from contextlib import suppress

from pyfusekit.core import MountError

from .errors import StoreError, reason_of
from .options import S3Options, Source
from .store import ATTEMPTS, AioStore, Store

_HELP_TIMEOUT = 3.0
"""Seconds spent on finding out what could help."""


async def open_store(source: Source, options: S3Options) -> AioStore:
    """Return a started store; MountError when the options make none (an unknown profile, a URL that is none)."""
    from botocore import exceptions as boto

    store = AioStore(source.bucket, options)
    # Someone waits at the terminal: a dead endpoint is not asked for long.
    store.attempts = 2
    try:
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
    if isinstance(store, AioStore):
        store.attempts = ATTEMPTS
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
    if exc.code in ("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"):
        return MountError(
            f"{source}: the credentials are refused: {exc.code} ({await _who(store)})",
            kind="access-denied",
            remedy="renew them (aws sso login, aws configure), or use another --profile",
        )
    if exc.errno == errno.EACCES:
        return MountError(
            f"{source}: access denied for ListBucket as {await _who(store)} ({answer})",
            kind="access-denied",
            remedy="ask the bucket's owner for s3:ListBucket and s3:GetObject, or use another --profile",
        )
    if exc.code in ("PermanentRedirect", "AuthorizationHeaderMalformed"):
        return MountError(f"{source}: {exc.strerror}", kind="source-unreachable", remedy="name the bucket's --region")
    if exc.code == "NotS3" or exc.status:
        return MountError(
            f"{endpoint} does not answer as S3 does: {exc.strerror}",
            kind="source-unreachable",
            remedy="is --endpoint-url right? (it may come from $AWS_ENDPOINT_URL_S3)",
        )
    reason = "no answer in time" if exc.errno == errno.ETIMEDOUT else reason_of(exc.__cause__ or exc)
    return MountError(
        f"{endpoint}: {reason}",
        kind="source-unreachable",
        remedy="is --endpoint-url right? (it may come from $AWS_ENDPOINT_URL_S3)",
        errno=exc.errno,
    )


async def _who(store: Store) -> str:
    return await store.who() if isinstance(store, AioStore) else "these credentials"


async def _buckets(store: Store) -> str:
    """Return a remedy for a bucket that is not there: the ones that are."""
    names: Sequence[str] = ()
    if isinstance(store, AioStore):
        with suppress(OSError):
            async with asyncio.timeout(_HELP_TIMEOUT):
                names = await store.buckets()
    if not names:
        return "look at the bucket's name and at --endpoint-url"
    more = ", ..." if len(names) > 8 else ""
    return f"buckets you can list: {', '.join(names[:8])}{more}"


__all__ = ["open_store", "probe"]
