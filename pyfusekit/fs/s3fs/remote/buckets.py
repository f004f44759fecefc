"""All buckets of an account as one store: the first component of a key is the bucket's name."""

from __future__ import annotations

import asyncio
import builtins
import errno
import json
from collections.abc import Callable, Mapping, Sequence

from ..options import S3Options
from .aio import AioStore
from .calls import Calls, Report
from .errors import StoreError
from .store import (
    ANYWAY,
    Attributes,
    Begun,
    Body,
    Condition,
    Features,
    Head,
    Object,
    Page,
    Part,
    Upload,
    Versions,
)


class AllBuckets:
    """A Store whose keys are "bucket/key". Buckets are neither made nor removed: writing beside them is EPERM.

    Each bucket has a store of its own, made when it is first asked for; they share credentials, connections and limits.
    """

    def __init__(self, options: S3Options, *, report: Report | None = None) -> None:
        self.options = options
        self._root = AioStore("", options, report=report)
        self._stores: dict[str, AioStore] = {}
        self._making = asyncio.Lock()

    @property
    def features(self) -> Features:
        """What the server does: one for all buckets."""
        return self._root.features

    @features.setter
    def features(self, features: Features) -> None:
        self._root.features = features
        for store in self._stores.values():
            store.features = features

    @property
    def calls(self) -> Calls:
        """The limits all share."""
        return self._root.calls

    @property
    def endpoint(self) -> str:
        """The URL requests go to; known for sure after start."""
        return self._root.endpoint

    async def start(self) -> None:
        """Make the client. ValueError or a BotoCoreError when the options make none."""
        await self._root.start()

    async def close(self) -> None:
        """Close the connections."""
        for store in self._stores.values():
            await store.close()
        await self._root.close()

    async def who(self) -> str:
        """Return which credentials sign the requests, in words."""
        return await self._root.who()

    async def bucket(self, name: str) -> AioStore:
        """Return the store of one bucket, whether or not there is such a bucket."""
        store = self._stores.get(name)
        if store is None:
            async with self._making:
                store = self._stores.get(name)
                if store is None:
                    store = AioStore(name, self.options, root=self._root)
                    store.features = self._root.features
                    await store.start()
                    self._stores[name] = store
        return store

    async def _split(self, operation: str, key: str) -> tuple[AioStore, str, str]:
        """Return the store, the key within it, and what stands before that: EPERM where there is no bucket to write to."""
        name, slash, rest = key.partition("/")
        if not slash or not rest:
            raise self._root.calls.failed(
                StoreError(errno.EPERM, f"{operation} {key!r}: buckets are neither made nor removed here"), operation, key
            )
        return await self.bucket(name), rest, f"{name}/"

    async def list(
        self, prefix: str, *, token: str = "", start_after: str = "", max_keys: int = 1000, delimiter: str = "/"
    ) -> Page:
        """List the buckets, or one of them; all of them one after the other when there is no delimiter."""
        name, slash, rest = prefix.partition("/")
        if slash:
            store = await self.bucket(name)
            after = start_after.removeprefix(f"{name}/") if start_after.startswith(f"{name}/") else ""
            page = await store.list(rest, token=token, start_after=after, max_keys=max_keys, delimiter=delimiter)
            return _within(f"{name}/", page)
        if not delimiter:
            return await self._everything(prefix, token, start_after, max_keys)
        after = token or start_after
        names = [f"{name}/" for name in await self._names(prefix)]
        shown = [name for name in names if name > after]
        return Page([], shown[:max_keys], shown[max_keys - 1] if len(shown) > max_keys else "")

    async def _names(self, prefix: str) -> Sequence[str]:
        """Return the buckets whose name begins with *prefix*, in the order of their keys.

        Who may not list buckets may still name one.
        """
        try:
            names = [bucket.key for bucket in await self._root.buckets() if bucket.key.startswith(prefix)]
            # As keys are: "a-b/" is before "a/".
            return sorted(names, key=lambda name: f"{name}/")
        except StoreError as exc:
            if exc.errno != errno.EACCES or not prefix:
                raise
        try:
            await (await self.bucket(prefix)).list("", max_keys=1)
        except StoreError as exc:
            if exc.errno in (errno.ENOENT, errno.EINVAL):
                return []
            raise
        return [prefix]

    async def _everything(self, prefix: str, token: str, start_after: str, max_keys: int) -> Page:
        """Return a page of all keys of all buckets; the token names the bucket and its own token."""
        names = await self._names(prefix)
        current, inner = json.loads(token) if token else (start_after.partition("/")[0], "")
        names = [name for name in names if f"{name}/" >= f"{current}/"]
        if not names:
            return Page([], [], "")
        first = f"{names[0]}/"
        after = start_after.removeprefix(first) if start_after.startswith(first) and not inner else ""
        page = await (await self.bucket(names[0])).list("", token=inner, start_after=after, max_keys=max_keys, delimiter="")
        following = json.dumps([names[0], page.token]) if page.token else json.dumps([names[1], ""]) if names[1:] else ""
        return _within(first, page)._replace(token=following)

    async def head(self, key: str) -> Head:
        """HeadObject; a bucket is no object."""
        name, slash, rest = key.partition("/")
        if not slash or not rest:
            raise StoreError(errno.ENOENT, f"HeadObject {key!r}: a bucket is no object", code="NoSuchKey")
        head = await (await self.bucket(name)).head(rest)
        return head._replace(item=_prefixed(f"{name}/", head.item))

    async def get(self, item: Object, offset: int, size: int, sink: Callable[[bytes], None], *, version: str = "") -> None:
        """GetObject."""
        store, rest, _ = await self._split("GetObject", item.key)
        await store.get(item._replace(key=rest), offset, size, sink, version=version)

    async def put(self, key: str, body: Body, attributes: Attributes, condition: Condition = ANYWAY) -> Object:
        """PutObject."""
        store, rest, bucket = await self._split("PutObject", key)
        return _prefixed(bucket, await store.put(rest, body, attributes, condition))

    async def copy(self, source: Object, key: str, attributes: Attributes | None, condition: Condition = ANYWAY) -> Object:
        """CopyObject, from one bucket to another if need be."""
        store, rest, bucket = await self._split("CopyObject", key)
        origin, inner, _ = await self._split("CopyObject", source.key)
        made = await store.copy(source._replace(key=inner), rest, attributes, condition, source_bucket=origin.bucket)
        return _prefixed(bucket, made)

    async def delete(self, key: str, condition: Condition = ANYWAY) -> None:
        """DeleteObject."""
        store, rest, _ = await self._split("DeleteObject", key)
        await store.delete(rest, condition)

    async def delete_many(self, keys: Sequence[str]) -> dict[str, OSError]:
        """DeleteObjects, one request a bucket."""
        groups: dict[str, list[str]] = {}
        for key in keys:
            _, rest, bucket = await self._split("DeleteObjects", key)
            groups.setdefault(bucket, []).append(rest)

        async def one(bucket: str, rests: list[str]) -> dict[str, OSError]:
            failed = await (await self.bucket(bucket.removesuffix("/"))).delete_many(rests)
            return {f"{bucket}{rest}": error for rest, error in failed.items()}

        failures: dict[str, OSError] = {}
        for failed in await asyncio.gather(*(one(bucket, rests) for bucket, rests in groups.items())):
            failures |= failed
        return failures

    async def _inner(self, upload: Upload) -> tuple[AioStore, Upload]:
        store, rest, _ = await self._split("UploadPart", upload.key)
        return store, upload._replace(key=rest)

    async def create_upload(self, key: str, attributes: Attributes, *, copies: bool = False) -> Upload:
        """CreateMultipartUpload."""
        store, rest, _ = await self._split("CreateMultipartUpload", key)
        return (await store.create_upload(rest, attributes, copies=copies))._replace(key=key)

    async def upload_part(self, upload: Upload, number: int, body: Body) -> Part:
        """UploadPart."""
        store, inner = await self._inner(upload)
        return await store.upload_part(inner, number, body)

    async def copy_part(self, upload: Upload, number: int, source: Object, start: int, end: int) -> Part:
        """UploadPartCopy, from one bucket to another if need be."""
        store, inner = await self._inner(upload)
        origin, rest, _ = await self._split("UploadPartCopy", source.key)
        return await store.copy_part(inner, number, source._replace(key=rest), start, end, source_bucket=origin.bucket)

    async def complete(self, upload: Upload, parts: Sequence[Part], condition: Condition = ANYWAY) -> Object:
        """CompleteMultipartUpload."""
        store, inner = await self._inner(upload)
        return (await store.complete(inner, parts, condition))._replace(key=upload.key)

    async def abort(self, upload: Upload) -> None:
        """AbortMultipartUpload."""
        store, inner = await self._inner(upload)
        await store.abort(inner)

    async def uploads(self, prefix: str) -> builtins.list[Begun]:
        """ListMultipartUploads of the bucket that *prefix* names; none where it names none: that would be every bucket's."""
        name, slash, rest = prefix.partition("/")
        if not slash:
            return []
        begun = await (await self.bucket(name)).uploads(rest)
        return [one._replace(upload=one.upload._replace(key=f"{name}/{one.upload.key}")) for one in begun]

    async def tags(self, key: str) -> dict[str, str]:
        """GetObjectTagging."""
        store, rest, _ = await self._split("GetObjectTagging", key)
        return await store.tags(rest)

    async def set_tags(self, key: str, tags: Mapping[str, str]) -> None:
        """PutObjectTagging."""
        store, rest, _ = await self._split("PutObjectTagging", key)
        await store.set_tags(rest, tags)

    async def versions(self, prefix: str, *, token: str = "", delimiter: str = "/") -> Versions:
        """ListObjectVersions of the bucket that *prefix* names; the buckets where it names none."""
        name, slash, rest = prefix.partition("/")
        if not slash:
            return Versions([], [f"{name}/" for name in await self._names(prefix)], "")
        found = await (await self.bucket(name)).versions(rest, token=token, delimiter=delimiter)
        versions = [version._replace(item=_prefixed(f"{name}/", version.item)) for version in found.versions]
        return Versions(versions, [f"{name}/{one}" for one in found.prefixes], found.token)


def _prefixed(bucket: str, item: Object) -> Object:
    return item._replace(key=f"{bucket}{item.key}")


def _within(bucket: str, page: Page) -> Page:
    """Return a page of one bucket with the keys of all."""
    return Page([_prefixed(bucket, item) for item in page.objects], [f"{bucket}{one}" for one in page.prefixes], page.token)


__all__ = ["AllBuckets"]
