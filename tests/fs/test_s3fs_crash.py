"""kill -9 of a server with write-back, at many moments, while uploads and a rename of a tree are under way.

The store lives here, the server in a child (crashchild.py). What the child said was acknowledged must be what the store holds
when the next server has adopted the journal: exactly that, and nothing over what another client wrote.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from crashchild import content, options
from fakestore import FakeStore

from pyfusekit.fs.s3fs.deferred.journal import Journal
from pyfusekit.fs.s3fs.deferred.writeback import WriteBack
from pyfusekit.fs.s3fs.remote.store import Object
from pyfusekit.fs.s3fs.writing.publish import Publisher
from pyfusekit.fs.s3fs.writing.scratch import Scratch

CHILD = str(Path(__file__).with_name("crashchild.py"))


class Served:
    """A FakeStore for another process. What has begun when that is killed is done, as on a real server, or not."""

    def __init__(self, store: FakeStore, rng: random.Random) -> None:
        self.store = store
        self.rng = rng
        self.tasks: set[asyncio.Task[None]] = set()

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                size = int.from_bytes(await reader.readexactly(4), "big")
                task = asyncio.ensure_future(self.call(pickle.loads(await reader.readexactly(size)), writer))
                self.tasks.add(task)
                task.add_done_callback(self.tasks.discard)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def call(self, message: Any, writer: asyncio.StreamWriter) -> None:
        number, name, args, kwargs = message
        await asyncio.sleep(self.rng.choice((0, 0.001, 0.005)))
        found, error = None, None
        try:
            if name == "get":
                pieces: list[bytes] = []
                await self.store.get(*args, pieces.append, **kwargs)
                found = b"".join(pieces)
            else:
                found = await getattr(self.store, name)(*args, **kwargs)
        except OSError as exc:
            error = exc
        await asyncio.sleep(self.rng.choice((0, 0.002)))
        answer = pickle.dumps((number, found, error))
        writer.write(len(answer).to_bytes(4, "big") + answer)


async def run_and_kill(store: FakeStore, home: Path, seed: int) -> list[list[str]]:
    """Let a child work on *store* for a random number of lines, another client write between, and kill it."""
    rng = random.Random(seed)
    served = Served(store, rng)
    path = str(home / "socket")
    server = await asyncio.start_unix_server(served.connected, path)
    child = await asyncio.create_subprocess_exec(
        sys.executable, CHILD, path, str(home), str(seed), stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": os.getcwd()}
    )
    assert child.stdout is not None
    lines = []
    until = rng.randint(1, 120)
    for n in range(until):
        lines.append(await child.stdout.readline())
        if n == until // 2:
            for key in ("contested0", "contested1"):
                store.put_plain(key, b"of another client")
    child.send_signal(signal.SIGKILL)
    lines += (await child.stdout.read()).splitlines(keepends=True)
    await child.wait()
    server.close()
    while served.tasks:
        await asyncio.wait(served.tasks)
    await server.wait_closed()
    return [line.decode().split() for line in lines if line.endswith(b"\n")]


def allowed_by(said: list[list[str]]) -> dict[str, set[int]]:
    """Return which versions each key may have: the one acknowledged last, or those begun since; 0 is removed."""
    allowed: dict[str, set[int]] = {}
    for word, *rest in said:
        if word == "begin":
            allowed.setdefault(rest[0], {0}).add(int(rest[1]))
        elif word == "kept":
            allowed[rest[0]] = {int(rest[1])}
    return allowed


@pytest.mark.timeout(120)
@pytest.mark.parametrize("seed", range(int(os.environ.get("PYFUSEKIT_CRASHES", "6"))))
async def test_after_kill_9_the_store_gets_exactly_what_was_acknowledged(
    tmp_path: Path, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    store = FakeStore(page_size=20)
    whole = {f"{n:02}": str(n).encode() for n in range(50)}
    for name, data in whole.items():
        store.seed(f"tree0/{name}", data)
    said = await run_and_kill(store, tmp_path, seed)

    journal, scratch = Journal(str(tmp_path / "s3")), Scratch(str(tmp_path / "staging"))
    publisher = Publisher(store, options(), scratch, begun=journal.upload_begun, ended=journal.upload_ended)
    failed: list[str] = []
    done: list[Object] = []
    waits = WriteBack(
        store,
        publisher,
        scratch,
        journal,
        published=lambda pending, item: done.append(item),
        failed=lambda pending, error, final: failed.append(f"{pending.key} {error}"),
    )
    with caplog.at_level(logging.CRITICAL):
        await waits.start()
        assert await waits.drain(60)
        await waits.close()
        await publisher.close()

    for key, versions in allowed_by(said).items():
        stored = store.objects.get(key)
        if key.startswith("contested"):
            assert stored is None or stored.data in [b"of another client", *(content(key, n) for n in versions)]
            continue
        got = stored.data if stored is not None else None
        assert got in [content(key, n) if n else None for n in versions], f"{key} is none of {versions}"
    assert [one for one in failed if not one.startswith("contested")] == []
    trees = {key.partition("/")[0] for key in store.objects if key.startswith("tree")}
    [name] = trees
    assert {key.partition("/")[2]: one.data for key, one in store.objects.items() if key.startswith("tree")} == whole
    last = max((int(line[2]) for line in said if line[0] == "moved"), default=0)
    assert name in (f"tree{last}", f"tree{last + 1}")
    assert store.uploading == {}
    assert os.listdir(tmp_path / "s3") == ["lock"]
