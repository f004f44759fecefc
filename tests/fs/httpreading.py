"""What the tests of reading share: Files over a real Web, with limits that make a hang a failure soon."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Coroutine
from pathlib import Path
from types import TracebackType
from typing import Any

from hostile import HostileServer

from pyfusekit.cache import BlockCache, Budget
from pyfusekit.core import Duration, Size
from pyfusekit.fs.httpfs.client.web import Web
from pyfusekit.fs.httpfs.contents.reading import Files, OpenFile
from pyfusekit.fs.httpfs.options import HttpOptions

MIB = 1 << 20


def errno_name(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, str(error.errno))


class Reading:
    """The files of one mount, of *server*, with a cache in *directory* or none. ``async with``."""

    def __init__(
        self,
        server: HostileServer,
        directory: Path | None,
        *,
        name: str = "file",
        memory: int = 48 * MIB,
        known: bool = True,
        **more: Any,
    ) -> None:
        self.server = server
        self.name = name
        self.known = known
        """It is known already that HEAD and GET of this server tell the same."""
        given = {"deadline": Duration(3.0), "idle_timeout": Duration(1.0), "connect_timeout": Duration(2.0), "netrc": False}
        given["spool_size"] = Size(64 * MIB)
        self.options = HttpOptions(**{**given, **more})
        self.web = Web(self.options, f"{server.root}/")
        self.budget = Budget(memory)
        self.tasks: set[asyncio.Task[Any]] = set()
        self.cache = BlockCache(directory, 256 * MIB) if directory is not None else None
        self.files = Files(self.web, self.options, self.cache, self.budget, self.tasks)

    async def __aenter__(self) -> Reading:
        await self.web.start()
        if self.known:
            await self.files.probe(self.server.url("honest", "known.bin"))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        waiting = set(self.tasks)
        if waiting and kind is None:
            await asyncio.wait(waiting, timeout=5)
        left = set(self.tasks)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await self.web.close()
        if self.cache is not None:
            self.cache.close()
        if kind is None:
            assert not left, f"still running: {left}"
            assert self.budget.used == 0, self.budget.used
            assert self.budget.most_used <= self.budget.limit

    async def open(self, mode: str, name: str = "") -> OpenFile:
        return await self.files.open(await self.files.probe(self.server.url(mode, name or f"{self.name}.bin")))


async def read(file: OpenFile, offset: int, size: int) -> bytes:
    found = file.read(offset, size)
    found = await found if isinstance(found, Coroutine) else found
    return found if isinstance(found, bytes) else b"".join(found)


async def content(file: OpenFile, step: int = 131072) -> bytes:
    """Read all of a file as the kernel does: in order."""
    pieces: list[bytes] = []
    position = 0
    while piece := await read(file, position, step):
        pieces.append(piece)
        position += len(piece)
    return b"".join(pieces)


__all__ = ["MIB", "Reading", "content", "errno_name", "read"]
