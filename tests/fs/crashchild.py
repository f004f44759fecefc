"""A server that is made to be killed: write-back and renames on a store that lives in another process.

Usage: crashchild.py SOCKET HOME SEED. It writes what it begins and what was acknowledged to standard output, a line each.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import pickle
import random
import sys
from types import SimpleNamespace
from typing import Any

from pyfusekit.fs.s3fs.deferred.journal import Journal
from pyfusekit.fs.s3fs.deferred.rename import rename_tree
from pyfusekit.fs.s3fs.deferred.writeback import WriteBack
from pyfusekit.fs.s3fs.remote.store import Attributes, Bytes, Features
from pyfusekit.fs.s3fs.writing.publish import Publisher
from pyfusekit.fs.s3fs.writing.scratch import Scratch

SIZES = (0, 10, 4000, 70_000, 400_000, 1_500_000)


def content(key: str, version: int) -> bytes:
    """Return what a version of a file holds."""
    rng = random.Random(f"{key} {version}")
    return rng.randbytes(rng.choice(SIZES))


def options() -> Any:
    """Return what a Publisher asks for; parts are small enough for the larger files to need two."""
    return SimpleNamespace(part_size=5 << 20, uploads=8, on_conflict="fail")


class RemoteStore:
    """A Store whose methods are done by another process, one message each way."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.features = Features()
        self._reader, self._writer = reader, writer
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Future[Any]] = {}

    async def answers(self) -> None:
        """Hand answers to those who wait."""
        while True:
            size = int.from_bytes(await self._reader.readexactly(4), "big")
            number, found, error = pickle.loads(await self._reader.readexactly(size))
            waiter = self._waiting.pop(number)
            if waiter.cancelled():
                continue
            if error is not None:
                waiter.set_exception(error)
            else:
                waiter.set_result(found)

    async def _call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        number = next(self._numbers)
        self._waiting[number] = asyncio.get_running_loop().create_future()
        message = pickle.dumps((number, name, args, kwargs))
        self._writer.write(len(message).to_bytes(4, "big") + message)
        return await self._waiting[number]

    def __getattr__(self, name: str) -> Any:
        async def call(*args: Any, **kwargs: Any) -> Any:
            args = tuple(Bytes(b"".join(arg.pieces())) if hasattr(arg, "pieces") else arg for arg in args)
            return await self._call(name, *args, **kwargs)

        return call

    async def get(self, item: Any, offset: int, size: int, sink: Any, *, version: str = "") -> None:
        """Hand bytes to *sink*."""
        sink(await self._call("get", item, offset, size, version=version))


def say(*words: object) -> None:
    """Tell the parent, which reads a pipe that survives us."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


async def work(waits: WriteBack, publisher: Publisher, scratch: Scratch, key: str, rng: random.Random) -> None:
    """Write one file again and again: anew, over itself, or removed in between."""
    staged = scratch.stage(None)
    for version in itertools.count(1):
        data = content(key, version)
        end = max(staged.size, len(data))
        while (room := publisher.room(staged, 0, end)) is not None or waits.frozen(staged, 0, end):
            await (room if room is not None else waits.thaw(staged, 0, end))
        staged.write(0, data)
        staged.truncate(len(data))
        say("begin", key, version)
        await waits.keep(staged, key, Attributes({"version": str(version)}))
        say("kept", key, version)
        await asyncio.sleep(rng.choice((0, 0.001, 0.02)))
        if rng.random() < 0.1:
            say("begin", key, 0)
            if key in waits.files:
                await waits.remove(key)
            elif staged.base is not None:
                await publisher.store.delete(key)
            say("kept", key, 0)
            await publisher.discard(staged)
            staged = scratch.stage(None)


async def move(store: Any, journal: Journal) -> None:
    """Rename a tree again and again."""
    for number in itertools.count():
        await rename_tree(store, journal, f"tree{number}/", f"tree{number + 1}/")
        say("moved", number, number + 1)


async def main() -> None:
    """Work until killed."""
    path, home, seed = sys.argv[1:]
    reader, writer = await asyncio.open_unix_connection(path)
    store = RemoteStore(reader, writer)
    listening = asyncio.ensure_future(store.answers())
    journal, scratch = Journal(os.path.join(home, "s3")), Scratch(os.path.join(home, "staging"))
    publisher = Publisher(store, options(), scratch, begun=journal.upload_begun, ended=journal.upload_ended)
    rng = random.Random(int(seed))
    waits = WriteBack(store, publisher, scratch, journal, uploads=8, delay=rng.choice((0, 0.01)))
    await waits.start()
    workers = [work(waits, publisher, scratch, f"f{n}", random.Random(int(seed) + n)) for n in range(6)]
    contested = [work(waits, publisher, scratch, f"contested{n}", random.Random(int(seed) - n)) for n in range(2)]
    await asyncio.gather(listening, move(store, journal), *workers, *contested)


if __name__ == "__main__":
    asyncio.run(main())
