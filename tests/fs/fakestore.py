"""A Store in memory, whose answers can be held back, refused and counted."""

from __future__ import annotations

import asyncio
import errno
import hashlib
from collections.abc import Callable

from pyfusekit.fs.s3fs.errors import StoreError
from pyfusekit.fs.s3fs.store import Object, Page

SECOND = 1_000_000_000


class FakeStore:
    """Sorts and pages as S3 does. *calls* has a line for each request; *gate*, when set, holds the answers of get back."""

    def __init__(self, page_size: int = 1000) -> None:
        self.page_size = page_size
        self.objects: dict[str, tuple[bytes, Object]] = {}
        self.calls: list[str] = []
        self.gate: asyncio.Event | None = None
        self.list_gate: asyncio.Event | None = None
        self.fail: list[StoreError] = []
        self.under_way = 0
        self.most_under_way = 0
        self.cancelled = 0
        self.closed = False

    def put(self, key: str, data: bytes = b"", second: int = 1_700_000_000) -> Object:
        item = Object(key, len(data), second * SECOND, hashlib.md5(data).hexdigest())
        self.objects[key] = (data, item)
        return item

    async def start(self) -> None:
        """Nothing to do."""

    async def close(self) -> None:
        self.closed = True

    async def list(self, prefix: str, *, token: str = "", start_after: str = "", max_keys: int = 1000) -> Page:
        self.calls.append(f"LIST {prefix} {token}{f'> {start_after}' if start_after else ''}".rstrip())
        self._refuse()
        await asyncio.sleep(0)
        if self.list_gate is not None and token:
            await self.list_gate.wait()
        rows: dict[str, Object | None] = {}
        for key in sorted(self.objects):
            if key.startswith(prefix) and key > start_after:
                head, slash, _ = key[len(prefix) :].partition("/")
                if slash:
                    rows[prefix + head + slash] = None
                else:
                    rows[key] = self.objects[key][1]
        behind = [key for key in sorted(rows) if key > token] if token else sorted(rows)
        taken = behind[: min(self.page_size, max_keys)]
        return Page(
            [item for key in taken if (item := rows[key]) is not None],
            [key for key in taken if rows[key] is None],
            taken[-1] if len(taken) < len(behind) else "",
        )

    async def head(self, key: str) -> Object:
        self.calls.append(f"HEAD {key}")
        self._refuse()
        await asyncio.sleep(0)
        if key not in self.objects:
            raise StoreError(errno.ENOENT, "404")
        return self.objects[key][1]

    async def get(self, item: Object, offset: int, size: int, sink: Callable[[bytes], None]) -> None:
        self.calls.append(f"GET {item.key} {offset}+{size}")
        self._refuse()
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await asyncio.sleep(0)
            if self.gate is not None:
                await self.gate.wait()
            if item.key not in self.objects:
                raise StoreError(errno.ENOENT, "NoSuchKey")
            data, now = self.objects[item.key]
            if now.etag != item.etag:
                raise StoreError(errno.ESTALE, "PreconditionFailed")
            assert 0 <= offset < offset + size <= len(data)
            half = offset + size // 2
            for piece in (data[offset:half], data[half : offset + size]):
                if piece:
                    sink(piece)
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.under_way -= 1

    def _refuse(self) -> None:
        if self.fail:
            raise self.fail.pop(0)

    def count(self, word: str) -> int:
        """Return how many requests began with *word*."""
        return sum(call.startswith(word) for call in self.calls)
