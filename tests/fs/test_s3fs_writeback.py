"""Write-back: what close acknowledged reaches the store exactly so, whatever is killed, refused or lost on the way."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from fakestore import FakeStore, Fault, denied, lost, slow_down

from pyfusekit.fs.s3fs.deferred import recovery, uploading
from pyfusekit.fs.s3fs.deferred.journal import INLINE, Journal, Record
from pyfusekit.fs.s3fs.deferred.writeback import Pending, WriteBack
from pyfusekit.fs.s3fs.remote.errors import StoreError
from pyfusekit.fs.s3fs.remote.store import Attributes, Object, Upload
from pyfusekit.fs.s3fs.writing.publish import Publisher
from pyfusekit.fs.s3fs.writing.scratch import Scratch
from pyfusekit.fs.s3fs.writing.staging import Staged

BIG = INLINE + 1000


class Server:
    """What a mount has: everything below a home, on one store."""

    def __init__(self, store: FakeStore, home: Path, *, delay: float = 0.0, uploads: int = 32, policy: str = "fail") -> None:
        self.store = store
        self.journal = Journal(str(home / "s3" / "bucket"))
        self.scratch = Scratch(str(home / "staging"))
        options = SimpleNamespace(part_size=8 << 20, uploads=uploads, on_conflict=policy)
        self.publisher = Publisher(
            store, options, self.scratch, begun=self.journal.upload_begun, ended=self.journal.upload_ended
        )
        self.published: list[tuple[str, Object]] = []
        self.failed: list[tuple[str, int, bool]] = []
        self.waits = WriteBack(
            store,
            self.publisher,
            self.scratch,
            self.journal,
            uploads=uploads,
            delay=delay,
            published=lambda pending, item: self.published.append((pending.key, item)),
            failed=lambda pending, error, final: self.failed.append((pending.key, error.errno or 0, final)),
        )

    async def start(self) -> list[Pending]:
        return await self.waits.start()

    async def close(self) -> None:
        await self.waits.close()
        await self.publisher.close()

    async def die(self) -> None:
        """End as kill -9 does."""
        self.waits._closed = True
        tasks = [*self.waits._tasks, *self.journal._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert self.journal._own is not None
        for log in (self.journal._own, *self.journal._adopted):
            await log.idle()
            log.abandon()
        self.journal._own = None
        self.journal._threads.shutdown()

    def new(self, data: bytes, base: Object | None = None) -> Staged:
        staged = self.scratch.stage(base, truncated=base is not None)
        staged.write(0, data)
        return staged

    async def keep(self, key: str, data: bytes, base: Object | None = None) -> Staged:
        staged = self.new(data, base)
        await self.waits.keep(staged, key, Attributes({"mode": "33188"}))
        return staged


async def until(holds: Callable[[], bool]) -> None:
    """Give the others their turn until something holds."""
    for _ in range(100_000):
        if holds():
            return
        await asyncio.sleep(0.0001)
    raise AssertionError("it never came to hold")


def kept_copies(server: Server) -> list[bytes]:
    """Return what conflicts left."""
    return sorted(one.read_bytes() for one in Path(server.scratch.conflicts).iterdir() if one.suffix != ".json")


Servers = Callable[..., Server]


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


@pytest.fixture
async def servers(store: FakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Servers]:
    monkeypatch.setattr(uploading, "FIRST_RETRY", 0.01)
    monkeypatch.setattr(recovery, "FIRST_RETRY", 0.01)
    made: list[Server] = []

    def make(**options: object) -> Server:
        made.append(Server(store, tmp_path, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for server in made:
        if server.journal._own is not None:
            await server.close()


async def test_a_kept_file_is_one_put_and_then_nothing_is_left(store: FakeStore, servers: Servers, tmp_path: Path) -> None:
    server = servers()
    assert await server.start() == []
    staged = await server.keep("a", b"hello")
    assert server.waits.waiting() == (1, 5)
    assert await server.waits.drain()
    assert store.data("a") == b"hello"
    assert store.objects["a"].metadata["mode"] == "33188"
    assert store.calls == ["PUT a 5"]
    assert server.published == [("a", store.objects["a"].item)]
    assert not staged.dirty
    assert server.waits.waiting() == (0, 0)
    await server.close()
    assert os.listdir(tmp_path / "s3" / "bucket") == ["lock"]


@pytest.mark.parametrize("size", [0, 5, BIG])
async def test_what_was_kept_is_uploaded_by_the_next_server(store: FakeStore, servers: Servers, size: int) -> None:
    dead = servers(delay=60)
    await dead.start()
    data = os.urandom(size)
    await dead.keep("a", data)
    old = store.seed("b", b"old")
    await dead.keep("b", data, old)
    assert store.calls == []
    await dead.die()
    server = servers()
    found = await server.start()
    assert sorted((pending.key, pending.staged.size) for pending in found) == [("a", size), ("b", size)]
    assert found[0].staged.read(0, size) == data
    assert await server.waits.drain()
    assert (store.data("a"), store.data("b")) == (data, data)
    assert store.objects["a"].metadata["mode"] == "33188"
    await server.close()
    third = servers()
    assert await third.start() == []


async def test_conditions_are_those_of_before_the_crash_and_nothing_newer_is_overwritten(
    store: FakeStore, servers: Servers
) -> None:
    dead = servers(delay=60)
    await dead.start()
    old = store.seed("changed", b"old")
    await dead.keep("changed", b"ours", old)
    await dead.keep("new", b"ours too")
    await dead.die()
    store.put_plain("changed", b"theirs")
    store.put_plain("new", b"theirs too")
    server = servers()
    await server.start()
    assert await server.waits.drain()
    assert (store.data("changed"), store.data("new")) == (b"theirs", b"theirs too")
    assert sorted(server.failed) == [("changed", errno.ESTALE, True), ("new", errno.ESTALE, True)]
    assert kept_copies(server) == [b"ours", b"ours too"]


@pytest.mark.parametrize("size", [5, BIG])
async def test_an_upload_whose_answer_the_crash_hid_is_no_conflict(store: FakeStore, servers: Servers, size: int) -> None:
    dead = servers()
    await dead.start()
    data = os.urandom(size)
    done = asyncio.Event()

    async def forever(*args: object, **kwargs: object) -> Object:
        item = await real(*args, **kwargs)  # type: ignore[arg-type]
        done.set()
        await asyncio.sleep(3600)
        return item

    real, store.put = store.put, forever  # type: ignore[method-assign, assignment]
    await dead.keep("a", data)
    await done.wait()
    await dead.die()
    store.put = real  # type: ignore[method-assign]
    etag = store.objects["a"].item.etag
    server = servers()
    [pending] = await server.start()
    assert await server.waits.drain()
    assert server.failed == []
    assert store.objects["a"].item.etag == etag
    assert server.published == [("a", store.objects["a"].item)]
    assert pending.staged.base == store.objects["a"].item


async def test_a_version_kept_while_the_one_before_is_on_its_way_survives_both_ends_of_the_crash(
    store: FakeStore, servers: Servers
) -> None:
    dead = servers()
    await dead.start()
    gate = asyncio.Event()
    store.fail.append(Fault("PUT a", gate=gate))
    staged = await dead.keep("a", b"first")
    await until(lambda: store.count("PUT") > 0)
    staged.write(0, b"second")
    await dead.waits.keep(staged, "a", Attributes())
    gate.set()
    await until(lambda: "a" in store.objects)
    await dead.die()
    server = servers()
    [pending] = await server.start()
    assert pending.staged.read(0, 9) == b"second"
    assert await server.waits.drain()
    assert server.failed == []
    assert store.data("a") == b"second"


async def test_a_version_that_builds_on_one_published_just_now_says_so_after_the_crash(
    store: FakeStore, servers: Servers
) -> None:
    dead = servers()
    await dead.start()
    gate, done, real = asyncio.Event(), asyncio.Event(), store.put

    async def put(*args: object, **kwargs: object) -> Object:
        second = "a" in store.objects
        item = await real(*args, **kwargs)  # type: ignore[arg-type]
        if second:
            done.set()
            await asyncio.sleep(3600)
        return item

    store.put = put  # type: ignore[method-assign, assignment]
    store.fail.append(Fault("PUT a", gate=gate))
    staged = await dead.keep("a", b"first")
    await until(lambda: store.count("PUT") > 0)
    staged.write(0, b"second")
    await dead.waits.keep(staged, "a", Attributes())
    gate.set()
    await done.wait()
    await dead.die()
    store.put = real  # type: ignore[method-assign]
    etag = store.objects["a"].item.etag
    server = servers()
    await server.start()
    assert await server.waits.drain()
    assert server.failed == []
    assert (store.data("a"), store.objects["a"].item.etag) == (b"second", etag)


async def test_an_adopted_file_that_is_written_again_is_one_file_wherever_the_crash_is(
    store: FakeStore, servers: Servers
) -> None:
    first = servers(delay=60)
    await first.start()
    await first.keep("a", b"older")
    await first.die()
    second = servers(delay=60)
    [pending] = await second.start()
    pending.staged.write(0, b"newer")
    never = asyncio.Event()

    async def done(record: Record) -> None:
        never.set()
        await asyncio.sleep(3600)

    second.journal.done = done  # type: ignore[method-assign]
    keeping = asyncio.ensure_future(second.waits.keep(pending.staged, "a", Attributes()))
    await never.wait()
    await second.die()
    keeping.cancel()
    third = servers()
    assert [one.key for one in await third.start()] == ["a"]
    assert third.waits.waiting()[0] == 1
    assert await third.waits.drain()
    assert (store.data("a"), third.failed) == (b"newer", [])
    await third.close()
    assert await servers().start() == []


async def test_keeping_again_replaces_what_waits(store: FakeStore, servers: Servers) -> None:
    server = servers(delay=60)
    await server.start()
    staged = await server.keep("a", b"one")
    staged.write(3, b" two")
    await server.waits.keep(staged, "a", Attributes({"mode": "33152"}))
    again = server.waits.files["a"].record
    await server.waits.keep(staged, "a", Attributes({"mode": "33152"}))
    assert server.waits.files["a"].record is again, "nothing changed, and it was written again"
    assert await server.waits.drain()
    assert store.calls == ["PUT a 7"]
    assert store.objects["a"].metadata["mode"] == "33152"


async def test_what_is_written_after_close_waits_for_the_next_close(store: FakeStore, servers: Servers) -> None:
    server = servers(delay=0.05)
    await server.start()
    staged = await server.keep("a", b"acknowledged")
    staged.write(0, b"half")
    await asyncio.sleep(0.1)
    assert store.calls == []
    staged.write(4, b" and half, whole")
    await server.waits.keep(staged, "a", Attributes())
    assert await server.waits.drain()
    assert store.data("a") == b"half and half, whole"
    assert store.count("PUT") == 1


async def test_big_files_are_copied_before_what_was_acknowledged_is_overwritten(store: FakeStore, servers: Servers) -> None:
    dead = servers(delay=60)
    await dead.start()
    data = os.urandom(BIG)
    staged = await dead.keep("a", data)
    waits = dead.waits
    assert waits.frozen(staged, 0, 10)
    assert waits.frozen(staged, BIG - 1, BIG + 5)
    assert not waits.frozen(staged, BIG, BIG + 5)
    staged.write(BIG, b"appended, not acknowledged")
    fd = staged.fd
    await waits.thaw(staged, 0, 10)
    assert staged.fd == fd
    assert not waits.frozen(staged, 0, 10)
    staged.write(0, b"not acknowledged")
    assert staged.read(BIG, 8) == b"appended"
    await dead.die()
    server = servers()
    [pending] = await server.start()
    assert pending.staged.read(0, BIG + 100) == data
    assert server.waits.frozen(pending.staged, 0, 10)
    assert await server.waits.drain()
    assert store.data("a") == data


async def test_small_files_may_be_overwritten_at_once(servers: Servers) -> None:
    dead = servers(delay=60)
    await dead.start()
    staged = await dead.keep("a", b"acknowledged")
    assert not dead.waits.frozen(staged, 0, 5)
    staged.write(0, b"forgotten...")
    await dead.die()
    server = servers(delay=60)
    [pending] = await server.start()
    assert pending.staged.read(0, 100) == b"acknowledged"


@pytest.mark.parametrize("fault", [lost(), slow_down(), denied(), StoreError(errno.EHOSTDOWN, "no route", retryable=True)])
async def test_errors_that_pass_are_tried_again_until_they_do(store: FakeStore, servers: Servers, fault: StoreError) -> None:
    server = servers()
    await server.start()
    store.fail.append(Fault("PUT", fault, times=3))
    for n in range(10):
        await server.keep(f"f{n}", b"data")
    assert await server.waits.drain(20)
    assert sorted(store.objects) == [f"f{n}" for n in range(10)]
    assert server.failed
    assert all(error == fault.errno and not final for _, error, final in server.failed)


async def test_while_the_store_is_away_one_file_at_a_time_asks_for_it(
    store: FakeStore, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = servers(uploads=4)
    await server.start()
    store.fail.append(Fault("PUT", StoreError(errno.EHOSTDOWN, "no route", retryable=True), times=1 << 30))
    for n in range(50):
        await server.keep(f"f{n:02}", b"data")
    await until(lambda: len(server.failed) >= 4)
    store.latency = 0.005
    store.busiest.clear()
    await until(lambda: len(server.failed) >= 8)
    assert store.busiest["PUT"] == 1
    store.fail.clear()
    assert await server.waits.drain(20)
    assert len(store.objects) == 50


async def test_drain_gives_up_in_time_and_the_files_stay_in_the_journal(store: FakeStore, servers: Servers) -> None:
    server = servers()
    await server.start()
    store.fail.append(Fault("PUT", denied(), times=1 << 30))
    await server.keep("a", b"data")
    assert not await server.waits.drain(0.1)
    await server.close()
    store.fail.clear()
    second = servers()
    assert [pending.key for pending in await second.start()] == ["a"]
    assert await second.waits.drain()
    assert store.data("a") == b"data"


async def test_settle_waits_for_the_store_and_raises_its_error(store: FakeStore, servers: Servers) -> None:
    server = servers(delay=60)
    await server.start()
    await server.keep("d/a", b"1")
    await server.keep("d/b", b"2")
    await server.keep("e", b"3")
    await server.waits.settle("not waiting")
    await server.waits.settle("d/", below=True)
    assert sorted(store.objects) == ["d/a", "d/b"]
    store.fail.append(denied())
    with pytest.raises(OSError, match="403") as caught:
        await server.waits.settle("e")
    assert caught.value.errno == errno.EACCES
    await server.waits.settle("e")
    assert store.data("e") == b"3"


async def test_a_file_that_was_never_published_is_renamed_without_a_request(store: FakeStore, servers: Servers) -> None:
    dead = servers(delay=60)
    await dead.start()
    await dead.keep("draft", b"text")
    target = store.seed("final", b"old")
    await dead.waits.rekey("draft", "final", target)
    assert list(dead.waits.files) == ["final"]
    assert store.calls == []
    await dead.die()
    server = servers()
    assert [pending.key for pending in await server.start()] == ["final"]
    assert await server.waits.drain()
    assert store.data("final") == b"text"
    assert sorted(store.objects) == ["final"]


async def test_a_rename_over_a_file_that_waits_drops_it(store: FakeStore, servers: Servers) -> None:
    server = servers(delay=60)
    await server.start()
    old = store.seed("final", b"old")
    await server.keep("final", b"older text", old)
    await server.keep("draft", b"text")
    await server.waits.rekey("draft", "final", None)
    assert server.waits.waiting() == (1, 4)
    assert await server.waits.drain()
    assert store.data("final") == b"text"
    assert store.calls == ["PUT final 4"]
    await server.close()
    assert await servers().start() == []


async def test_rekey_of_a_file_on_its_way_says_that_it_is_published(store: FakeStore, servers: Servers) -> None:
    server = servers()
    await server.start()
    gate = asyncio.Event()
    store.fail.append(Fault("PUT", gate=gate))
    await server.keep("draft", b"text")
    await until(lambda: store.count("PUT") > 0)
    renaming = asyncio.ensure_future(server.waits.rekey("draft", "final", None))
    await asyncio.sleep(0.01)
    gate.set()
    pending = await renaming
    assert pending.base == store.objects["draft"].item
    assert pending.key == "draft"


@pytest.mark.parametrize("existed", [False, True])
@pytest.mark.parametrize("on_its_way", [False, True])
async def test_unlink_of_a_file_that_waits_leaves_nothing_of_it(
    store: FakeStore, servers: Servers, existed: bool, on_its_way: bool
) -> None:
    server = servers(delay=0 if on_its_way else 60)
    await server.start()
    base = store.seed("a", b"old") if existed else None
    gate = asyncio.Event()
    store.fail.append(Fault("PUT", gate=gate))
    await server.keep("a", b"new", base)
    await until(lambda: not on_its_way or store.count("PUT") > 0)
    removing = asyncio.ensure_future(server.waits.remove("a"))
    await asyncio.sleep(0.01)
    gate.set()
    await removing
    assert store.objects == {}
    assert store.count("DELETE") == (existed or on_its_way)
    assert server.waits.waiting() == (0, 0)
    await server.die()
    again = servers()
    assert await again.start() == []
    assert await again.waits.drain()
    assert store.objects == {}


async def test_an_unlink_that_fails_leaves_the_file(store: FakeStore, servers: Servers) -> None:
    server = servers(delay=60)
    await server.start()
    await server.keep("a", b"new", store.seed("a", b"old"))
    store.fail.append(Fault("DELETE", denied()))
    with pytest.raises(OSError, match="403"):
        await server.waits.remove("a")
    assert server.waits.waiting() == (1, 3)
    assert await server.waits.drain()
    assert store.data("a") == b"new"


async def test_an_unlink_that_a_crash_interrupts_is_finished(store: FakeStore, servers: Servers) -> None:
    dead = servers(delay=60)
    await dead.start()
    await dead.keep("a", b"new", store.seed("a", b"old"))
    store.fail.append(Fault("DELETE", gate=asyncio.Event()))
    removing = asyncio.ensure_future(dead.waits.remove("a"))
    await until(lambda: store.count("DELETE") > 0)
    dead.waits._resume = lambda pending: None  # type: ignore[method-assign]
    removing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await removing
    await dead.die()
    store.fail.append(Fault("DELETE", lost()))
    server = servers()
    assert await server.start() == []
    await until(lambda: not store.objects)
    await server.close()
    assert await servers().start() == []


async def test_uploads_of_a_dead_server_are_aborted_and_those_of_others_are_not(store: FakeStore, servers: Servers) -> None:
    dead = servers()
    await dead.start()
    ours = await store.create_upload("big", Attributes())
    await store.create_upload("of somebody else", Attributes())
    dead.journal.upload_begun(ours)
    await dead.die()
    server = servers()
    await server.start()
    await until(lambda: ours.id not in store.uploading)
    assert [one.key for one in store.uploading.values()] == ["of somebody else"]
    await server.close()
    assert await servers().start() == []
    assert Upload("big", ours.id) == ours


async def test_two_dead_servers_with_one_key_lose_nothing(store: FakeStore, servers: Servers) -> None:
    first, second = servers(delay=60), servers(delay=60)
    await first.start()
    await second.start()
    await first.keep("a", b"of the first")
    await second.keep("a", b"of the second")
    await first.die()
    await second.die()
    server = servers()
    found = await server.start()
    assert [pending.key for pending in found] == ["a"]
    assert server.waits.waiting()[0] == 2
    assert await server.waits.drain()
    assert {*kept_copies(server), store.data("a")} == {b"of the first", b"of the second"}


async def test_a_full_disk_acknowledges_nothing(store: FakeStore, servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    server = servers()
    await server.start()

    async def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(server.journal, "keep", full)
    staged = server.new(b"data")
    with pytest.raises(OSError, match="No space left"):
        await server.waits.keep(staged, "a", Attributes())
    assert server.waits.waiting() == (0, 0)
    assert await server.waits.drain()
    assert store.calls == []


async def test_two_thousand_small_files_take_few_fsyncs_and_go_up_side_by_side(
    store: FakeStore, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    real = os.fdatasync

    def counted(fd: int) -> None:
        synced.append(fd)
        real(fd)

    monkeypatch.setattr(os, "fdatasync", counted)
    store.latency = 0.02
    server = servers()
    await server.start()
    free = asyncio.Semaphore(16)

    async def write(n: int) -> None:
        async with free:
            await server.keep(f"f{n}", b"x" * 100)

    await asyncio.gather(*(write(n) for n in range(2000)))
    assert await server.waits.drain()
    assert len(store.objects) == 2000
    assert store.count("PUT") == 2000
    assert store.busiest["PUT"] == 32
    assert len(synced) < 800
    assert store.count("HEAD") == 0


async def test_too_many_waiting_files_slow_the_writers_and_an_absent_store_refuses_them(
    store: FakeStore, servers: Servers
) -> None:
    server = servers()
    await server.start()
    server.waits.most = 3
    for n in range(20):
        await server.keep(f"f{n}", b"data")
        assert server.waits.waiting()[0] <= 3
    assert await server.waits.drain()
    store.fail.append(Fault("PUT", StoreError(errno.EHOSTDOWN, "no route", retryable=True), times=1 << 30))
    for n in range(3):
        await server.keep(f"g{n}", b"data")
    await until(lambda: bool(server.failed))
    with pytest.raises(OSError, match="cannot be reached") as caught:
        await server.keep("g3", b"data")
    assert caught.value.errno == errno.ENFILE


async def test_unlink_while_two_versions_are_on_their_way_leaves_nothing(store: FakeStore, servers: Servers) -> None:
    server = servers()
    await server.start()
    gate = asyncio.Event()
    store.fail.append(Fault("PUT", gate=gate))
    staged = await server.keep("a", b"one")
    await until(lambda: store.count("PUT") > 0)
    staged.write(0, b"two and more")
    await server.waits.keep(staged, "a", Attributes())
    removing = asyncio.ensure_future(server.waits.remove("a"))
    await asyncio.sleep(0)
    gate.set()
    await removing
    await asyncio.sleep(0.02)
    assert store.objects == {}
    assert store.count("PUT") == 1, "a version of a removed file was uploaded"


async def test_a_version_kept_while_a_conflict_is_put_away_stays_protected(store: FakeStore, servers: Servers) -> None:
    server = servers()
    await server.start()
    old = store.seed("a", b"old")
    store.put_plain("a", b"theirs")
    gate, reached, real = asyncio.Event(), asyncio.Event(), server.journal.done

    async def done(record: Record) -> None:
        reached.set()
        await gate.wait()
        await real(record)

    server.journal.done = done  # type: ignore[method-assign]
    staged = await server.keep("a", b"ours", old)
    await reached.wait()
    staged.write(0, os.urandom(BIG))
    server.waits._delay = 60
    keeping = asyncio.ensure_future(server.waits.keep(staged, "a", Attributes()))
    await asyncio.sleep(0.01)
    gate.set()
    await keeping
    await asyncio.sleep(0.02)
    assert server.waits.frozen(staged, 0, 1)
    assert not any(final for _, _, final in server.failed)
    assert await server.waits.drain()
    assert server.failed[-1] == ("a", errno.ESTALE, True)
    assert len(kept_copies(server)[0]) == BIG


async def test_writers_wait_from_when_an_upload_begins_until_it_holds_its_bytes(store: FakeStore, servers: Servers) -> None:
    """Else it would take what nobody acknowledged."""
    store.features.put_if_absent = False
    server = servers(delay=0.02)
    await server.start()
    staged = await server.keep("a", b"acknowledged")
    gate = asyncio.Event()
    store.fail.append(Fault("PUT", gate=gate))
    while server.waits.files["a"].running is None:  # noqa: ASYNC110
        # Each turn of the loop: the upload holds its bytes a turn or two after it began.
        await asyncio.sleep(0)
    assert server.waits.frozen(staged, 50, 60)
    thawing = asyncio.ensure_future(server.waits.thaw(staged, 50, 60))
    await until(lambda: store.count("PUT") > 0)
    gate.set()
    await thawing
    assert not server.waits.frozen(staged, 50, 60)
    assert await server.waits.drain()
    assert store.data("a") == b"acknowledged"
