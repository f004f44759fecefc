"""Publishing, case by case: which requests a change costs, what a failure leaves, and who wins."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import NamedTuple

import fakestore
import pytest
from fakestore import FakeStore, Fault

from pyfusekit.fs.s3fs.remote.errors import StoreError
from pyfusekit.fs.s3fs.remote.store import Attributes, Features, Object, Upload
from pyfusekit.fs.s3fs.writing import conflicts, feeding, plan, publish
from pyfusekit.fs.s3fs.writing.feeding import BACKLOG, TXN
from pyfusekit.fs.s3fs.writing.publish import Publisher
from pyfusekit.fs.s3fs.writing.scratch import Scratch
from pyfusekit.fs.s3fs.writing.staging import Staged

MIB = 1 << 20
KEY = "dir/key"
MODE = Attributes({"mode": "420"}, {"content-type": "text/plain"})


class Options(NamedTuple):
    part_size: int = 5 * MIB
    uploads: int = 32
    on_conflict: str = "fail"


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


@pytest.fixture
def scratch(tmp_path: Path) -> Scratch:
    return Scratch(str(tmp_path / "staging"))


@pytest.fixture
async def publisher(store: FakeStore, scratch: Scratch) -> AsyncIterator[Publisher]:
    made = Publisher(store, Options(), scratch, source="s3://bucket")
    yield made
    await made.close()
    assert not store.uploading, "an upload was left"


def block(number: int, size: int = MIB) -> bytes:
    """Return bytes that differ from block to block."""
    return (b"%07d\n" % number) * (size // 8)


def write(publisher: Publisher, staged: Staged, offset: int, data: bytes, attributes: Attributes = MODE) -> None:
    assert publisher.room(staged, offset, offset + len(data)) is None
    assert staged.write(offset, data) == len(data)
    publisher.feed(staged, KEY, lambda: attributes)


async def write_blocks(publisher: Publisher, staged: Staged, blocks: int, start: int = 0) -> bytes:
    """Write blocks of 1 MiB one after another, letting others run in between; return them."""
    written = []
    for number in range(blocks):
        data = block(number)
        room = publisher.room(staged, start + number * MIB, start + (number + 1) * MIB)
        if room is not None:
            await room
        staged.write(start + number * MIB, data)
        publisher.feed(staged, KEY, lambda: MODE)
        written.append(data)
        await asyncio.sleep(0)
    return b"".join(written)


def contents(path: str) -> bytes:
    return Path(path).read_bytes()


async def settle() -> None:
    """Let what is under way end."""
    while others := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.wait(others)


class TestCost:
    async def test_a_new_small_file_is_one_request(self, store: FakeStore, scratch: Scratch, publisher: Publisher) -> None:
        staged = scratch.stage(None)
        write(publisher, staged, 0, b"hello")
        item = await publisher.publish(staged, KEY, MODE)
        assert store.calls == [f"PUT {KEY} 5"]
        assert store.data(KEY) == b"hello"
        assert (item, staged.base, staged.dirty) == (store.objects[KEY].item, item, False)
        assert store.objects[KEY].metadata.keys() == {"mode", TXN}
        assert store.objects[KEY].headers == {"content-type": "text/plain"}

    async def test_an_empty_file_is_one_request_at_close(
        self, store: FakeStore, scratch: Scratch, publisher: Publisher
    ) -> None:
        await publisher.publish(scratch.stage(None), KEY, MODE)
        assert store.calls == [f"PUT {KEY} 0"]

    async def test_what_did_not_change_costs_nothing(self, store: FakeStore, scratch: Scratch, publisher: Publisher) -> None:
        item = store.seed(KEY, b"hello")
        assert await publisher.publish(scratch.stage(item), KEY, MODE) is item
        assert store.calls == []

    async def test_8_mib_are_one_request_and_more_are_parts(
        self, store: FakeStore, scratch: Scratch, publisher: Publisher
    ) -> None:
        staged = scratch.stage(None)
        staged.write(0, bytes(8 * MIB))
        await publisher.publish(staged, KEY, MODE)
        assert store.calls == [f"PUT {KEY} {8 * MIB}"]
        staged = scratch.stage(None)
        staged.write(0, bytes(8 * MIB + 1))
        await publisher.publish(staged, "other", MODE)
        assert store.calls[1:] == ["CREATE other", f"PART other 1 {5 * MIB}", f"PART other 2 {3 * MIB + 1}", "COMPLETE other 2"]

    async def test_a_change_in_the_middle_copies_the_rest_inside_the_store(
        self, store: FakeStore, scratch: Scratch, publisher: Publisher
    ) -> None:
        data = b"".join(block(number) for number in range(32))
        staged = scratch.stage(store.seed(KEY, data))
        staged.write(12 * MIB, b"changed")
        await publisher.publish(staged, KEY, MODE)
        assert store.data(KEY) == data[: 12 * MIB] + b"changed" + data[12 * MIB + 7 :]
        assert sorted(store.calls[1:-1]) == [
            f"COPY_PART {KEY} {KEY} 1 0-{12 * MIB}",
            f"COPY_PART {KEY} {KEY} 3 {17 * MIB}-{32 * MIB}",
            f"GET {KEY} {12 * MIB + 7}+{5 * MIB - 7}",
            f"PART {KEY} 2 {5 * MIB}",
        ]

    async def test_an_append_moves_what_is_appended(self, store: FakeStore, scratch: Scratch, publisher: Publisher) -> None:
        data = block(1, 6 * MIB)
        staged = scratch.stage(store.seed(KEY, data))
        staged.write(6 * MIB, b"tail " * MIB)
        await publisher.publish(staged, KEY, MODE)
        assert store.data(KEY) == data + b"tail " * MIB
        assert store.count("GET") == 0
        assert sorted(store.calls[1:-1]) == [f"COPY_PART {KEY} {KEY} 1 0-{6 * MIB}", f"PART {KEY} 2 {5 * MIB}"]

    async def test_a_small_base_is_fetched_and_put(self, store: FakeStore, scratch: Scratch, publisher: Publisher) -> None:
        staged = scratch.stage(store.seed(KEY, b"0123456789"))
        staged.write(3, b"xyz")
        await publisher.publish(staged, KEY, MODE)
        assert store.calls == [f"GET {KEY} 0+3", f"GET {KEY} 6+4", f"PUT {KEY} 10"]
        assert store.data(KEY) == b"012xyz6789"

    async def test_a_file_that_was_cut_off_and_grew_is_zero_there(
        self, store: FakeStore, scratch: Scratch, publisher: Publisher
    ) -> None:
        staged = scratch.stage(store.seed(KEY, b"0123456789"))
        staged.truncate(4)
        staged.truncate(8)
        await publisher.publish(staged, KEY, MODE)
        assert store.data(KEY) == b"0123\0\0\0\0"

    async def test_attributes_alone_are_one_copy_inside_the_store(
        self, store: FakeStore, scratch: Scratch, publisher: Publisher
    ) -> None:
        staged = scratch.stage(store.seed(KEY, b"hello", metadata={"mode": "1"}))
        staged.touch()
        await publisher.publish(staged, KEY, MODE)
        assert store.calls == [f"COPY {KEY} {KEY}"]
        assert store.objects[KEY].metadata["mode"] == "420"
        assert not staged.dirty

    async def test_attributes_of_a_huge_object_are_a_copy_in_parts(
        self, store: FakeStore, scratch: Scratch, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(publish, "MAX_PART", 10 * MIB)
        data = block(1, 12 * MIB)
        staged = scratch.stage(store.seed(KEY, data))
        staged.touch()
        await publisher.publish(staged, KEY, MODE)
        assert store.calls == [f"CREATE {KEY}", f"COPY_PART {KEY} {KEY} 1 0-{12 * MIB}", f"COMPLETE {KEY} 1"]
        assert store.data(KEY) == data
        assert store.objects[KEY].metadata["mode"] == "420"

    async def test_attributes_are_folded_into_a_pending_publish(
        self, store: FakeStore, scratch: Scratch, publisher: Publisher
    ) -> None:
        staged = scratch.stage(None)
        write(publisher, staged, 0, b"hello")
        staged.touch()
        await publisher.publish(staged, KEY, MODE)
        assert store.calls == [f"PUT {KEY} 5"]


class TestStreaming:
    async def test_parts_are_sent_while_the_file_is_written(
        self, store: FakeStore, scratch: Scratch, publisher: Publisher
    ) -> None:
        staged = scratch.stage(None)
        store.fail.append(Fault("^PART", gate=(gate := asyncio.Event()), times=99))
        written = await write_blocks(publisher, staged, 22)
        await asyncio.sleep(0.01)
        assert store.busiest["PART"] == 4, "four parts are full, and all of them on their way"
        gate.set()
        await settle()
        assert store.count("PART") == 4
        assert KEY not in store.objects
        await publisher.publish(staged, KEY, MODE)
        assert store.calls[5:] == [f"PART {KEY} 5 {2 * MIB}", f"COMPLETE {KEY} 5"]
        assert store.data(KEY) == written

    async def test_a_file_below_two_parts_begins_no_upload(
        self, store: FakeStore, scratch: Scratch, publisher: Publisher
    ) -> None:
        staged = scratch.stage(None)
        await write_blocks(publisher, staged, 9)
        assert store.calls == []
        await publisher.discard(staged)

    async def test_an_append_streams_behind_what_is_copied(
        self, store: FakeStore, scratch: Scratch, publisher: Publisher
    ) -> None:
        base = block(7, 6 * MIB)
        staged = scratch.stage(store.seed(KEY, base))
        written = await write_blocks(publisher, staged, 11, start=6 * MIB)
        await settle()
        assert store.calls == [f"CREATE {KEY}", f"PART {KEY} 2 {5 * MIB}", f"PART {KEY} 3 {5 * MIB}"]
        await publisher.publish(staged, KEY, MODE)
        assert sorted(store.calls[3:]) == [f"COMPLETE {KEY} 4", f"COPY_PART {KEY} {KEY} 1 0-{6 * MIB}", f"PART {KEY} 4 {MIB}"]
        assert store.data(KEY) == base + written

    async def test_a_header_written_last_sends_its_part_again(
        self, store: FakeStore, scratch: Scratch, publisher: Publisher
    ) -> None:
        staged = scratch.stage(None)
        written = await write_blocks(publisher, staged, 15)
        await settle()
        write(publisher, staged, 0, b"header")
        await publisher.publish(staged, KEY, MODE)
        assert store.count(f"PART {KEY} 1 ") == 2
        assert store.count("PART") == 4
        assert store.data(KEY) == b"header" + written[6:]

    async def test_bytes_that_change_while_they_are_sent_are_sent_again(
        self, store: FakeStore, scratch: Scratch, publisher: Publisher
    ) -> None:
        staged = scratch.stage(None)
        store.fail.append(Fault("^PART .* 2 ", fakestore.invalid("BadDigest"), gate=(gate := asyncio.Event())))
        written = await write_blocks(publisher, staged, 11)
        write(publisher, staged, 5 * MIB, b"changed")
        gate.set()
        await publisher.publish(staged, KEY, MODE)
        assert store.data(KEY) == written[: 5 * MIB] + b"changed" + written[5 * MIB + 7 :]

    async def test_who_writes_here_and_there_is_left_alone(
        self, store: FakeStore, scratch: Scratch, publisher: Publisher
    ) -> None:
        staged = scratch.stage(None)
        await write_blocks(publisher, staged, 21)
        await settle()
        for number in range(4):
            write(publisher, staged, number * 5 * MIB, b"again")
        sent = store.count("PART")
        await write_blocks(publisher, staged, 20, start=21 * MIB)
        await settle()
        assert store.count("PART") == sent
        await publisher.publish(staged, KEY, MODE)
        assert len(store.data(KEY)) == 41 * MIB

    async def test_a_file_begun_anew_is_another_upload(self, store: FakeStore, scratch: Scratch, publisher: Publisher) -> None:
        staged = scratch.stage(None)
        await write_blocks(publisher, staged, 11)
        await settle()
        staged.truncate(0)
        written = await write_blocks(publisher, staged, 12)
        await settle()
        assert store.count("CREATE") == 2
        await publisher.publish(staged, KEY, MODE)
        assert store.data(KEY) == written

    async def test_a_file_renamed_while_it_is_written_is_published_under_its_new_name(
        self, store: FakeStore, scratch: Scratch, publisher: Publisher
    ) -> None:
        staged = scratch.stage(None)
        written = await write_blocks(publisher, staged, 12)
        await settle()
        await publisher.publish(staged, "new", MODE)
        assert list(store.objects) == ["new"]
        assert store.data("new") == written

    async def test_attributes_set_after_the_upload_began_cost_a_copy(
        self, store: FakeStore, scratch: Scratch, publisher: Publisher
    ) -> None:
        staged = scratch.stage(None)
        await write_blocks(publisher, staged, 12)
        await settle()
        await publisher.publish(staged, KEY, Attributes({"mode": "511"}, MODE.headers))
        assert store.calls[-1] == f"COPY {KEY} {KEY}"
        assert store.objects[KEY].metadata["mode"] == "511"

    async def test_loose_attributes_cost_nothing(self, store: FakeStore, scratch: Scratch, publisher: Publisher) -> None:
        staged = scratch.stage(None)
        await write_blocks(publisher, staged, 12)
        await settle()
        later = Attributes({"mode": "420", "mtime": "7"}, MODE.headers)
        await publisher.publish(staged, KEY, later, loose={"mtime"})
        assert store.count("COPY") == 0
        assert not staged.dirty

    async def test_attributes_that_could_not_follow_are_tried_again(
        self, store: FakeStore, scratch: Scratch, publisher: Publisher
    ) -> None:
        staged = scratch.stage(None)
        await write_blocks(publisher, staged, 12)
        await settle()
        store.fail.append(Fault("^COPY ", fakestore.denied()))
        attributes = Attributes({"mode": "511"}, MODE.headers)
        with pytest.raises(StoreError, match="AccessDenied"):
            await publisher.publish(staged, KEY, attributes)
        assert staged.dirty
        await publisher.publish(staged, KEY, attributes)
        assert store.objects[KEY].metadata["mode"] == "511"

    async def test_no_more_uploads_at_a_time_than_allowed(self, store: FakeStore, scratch: Scratch) -> None:
        publisher = Publisher(store, Options(uploads=3), scratch)
        files = [scratch.stage(None) for _ in range(4)]
        for number, staged in enumerate(files):
            staged.write(0, block(number, 12 * MIB))
        await asyncio.gather(*(publisher.publish(staged, f"key{number}", MODE) for number, staged in enumerate(files)))
        assert store.busiest["PART"] == 3
        await publisher.close()


class TestBackPressure:
    async def test_a_writer_does_not_run_far_ahead(self, store: FakeStore, scratch: Scratch, publisher: Publisher) -> None:
        staged = scratch.stage(None)
        store.fail.append(Fault("^PART", gate=(gate := asyncio.Event()), times=999))
        data = bytes(5 * MIB)
        # As many parts as may be under way, and what a writer may be ahead of them.
        allowed = 16 + BACKLOG // (5 * MIB)
        number = 0
        while (room := publisher.room(staged, number * 5 * MIB, (number + 1) * 5 * MIB)) is None:
            write(publisher, staged, number * 5 * MIB, data)
            number += 1
        assert allowed <= number <= allowed + 2
        waiting = asyncio.ensure_future(room)
        await asyncio.sleep(0.01)
        assert not waiting.done()
        gate.set()
        await waiting
        await publisher.discard(staged)

    async def test_a_writer_does_not_wait_for_a_store_that_fails(
        self, store: FakeStore, scratch: Scratch, publisher: Publisher
    ) -> None:
        staged = scratch.stage(None)
        store.fail.append(Fault("^CREATE", fakestore.denied()))
        for number in range(30):
            await settle()
            write(publisher, staged, number * 5 * MIB, bytes(5 * MIB))
        store.fail.append(Fault("^CREATE", fakestore.denied()))
        with pytest.raises(StoreError, match="AccessDenied"):
            await publisher.publish(staged, KEY, MODE)
        await publisher.discard(staged)

    async def test_writes_to_what_is_being_sent_wait(self, store: FakeStore, scratch: Scratch, publisher: Publisher) -> None:
        staged = scratch.stage(None)
        staged.write(0, block(1, 2 * MIB))
        store.fail.append(Fault("^PUT", gate=(gate := asyncio.Event())))
        publishing = asyncio.ensure_future(publisher.publish(staged, KEY, MODE))
        await asyncio.sleep(0.01)
        assert publisher.room(staged, 2 * MIB, 3 * MIB) is None, "what is behind is not being sent"
        staged.write(2 * MIB, b"more")
        room = publisher.room(staged, 0, 1)
        assert room is not None
        waiting = asyncio.ensure_future(room)
        await asyncio.sleep(0.01)
        assert not waiting.done()
        gate.set()
        await waiting
        staged.write(0, b"x")
        await publishing
        assert store.data(KEY) == block(1, 2 * MIB)
        assert staged.dirty
        await publisher.publish(staged, KEY, MODE)
        assert store.data(KEY) == b"x" + block(1, 2 * MIB)[1:] + b"more"

    async def test_small_files_may_change_while_they_are_sent(
        self, store: FakeStore, scratch: Scratch, publisher: Publisher
    ) -> None:
        staged = scratch.stage(None)
        staged.write(0, b"first")
        store.fail.append(Fault("^PUT", gate=(gate := asyncio.Event())))
        publishing = asyncio.ensure_future(publisher.publish(staged, KEY, MODE))
        await asyncio.sleep(0.01)
        write(publisher, staged, 0, b"FIR")
        staged.truncate(4)
        gate.set()
        await publishing
        assert store.data(KEY) == b"first"
        await publisher.publish(staged, KEY, MODE)
        assert store.data(KEY) == b"FIRs"


class TestFullStagingArea:
    @pytest.fixture
    def scratch(self, tmp_path: Path) -> Scratch:
        return Scratch(str(tmp_path / "staging"), 30 * MIB)

    async def test_a_file_larger_than_the_staging_area_is_written_in_order(
        self, store: FakeStore, scratch: Scratch, publisher: Publisher
    ) -> None:
        staged = scratch.stage(None)
        written = await write_blocks(publisher, staged, 60)
        assert scratch.used_bytes <= 30 * MIB
        assert os.fstat(staged.fd).st_blocks * 512 <= 31 * MIB
        write(publisher, staged, 0, b"header")
        with pytest.raises(OSError, match="no room to keep them") as caught:
            staged.read(8 * MIB, 1)
        assert caught.value.errno == errno.EBUSY
        await publisher.publish(staged, KEY, MODE)
        assert store.data(KEY) == b"header" + written[6:]
        assert not staged.gone
        await publisher.discard(staged)
        assert scratch.used_bytes == 0

    async def test_without_a_way_out_a_write_is_refused(self, store: FakeStore, scratch: Scratch, publisher: Publisher) -> None:
        staged = scratch.stage(store.seed(KEY, b"x"))
        for number in range(29):
            write(publisher, staged, (2 * number + 1) * MIB, block(number))
        room = publisher.room(staged, 100 * MIB, 103 * MIB)
        assert room is not None
        await room
        with pytest.raises(OSError, match="staging area is full") as caught:
            staged.write(100 * MIB, bytes(3 * MIB))
        assert caught.value.errno == errno.ENOSPC
        staged.truncate(0)
        await publisher.publish(staged, KEY, MODE)

    async def test_what_is_lost_with_its_upload_is_an_error(
        self, store: FakeStore, scratch: Scratch, publisher: Publisher
    ) -> None:
        staged = scratch.stage(None)
        await write_blocks(publisher, staged, 50)
        store.uploading.clear()
        with pytest.raises(OSError, match="NoSuchUpload"):
            await publisher.publish(staged, KEY, MODE)
        assert KEY not in store.objects
        await publisher.discard(staged)


class TestFailures:
    async def test_a_failure_at_part_37_sends_only_what_is_missing(
        self, scratch: Scratch, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for module in (plan, feeding):
            monkeypatch.setattr(module, "MIN_PART", MIB // 2)
        store = FakeStore(min_part=MIB // 2)
        publisher = Publisher(store, Options(part_size=MIB // 2, uploads=1), scratch)
        staged = scratch.stage(None)
        for number in range(40):
            staged.write(number * MIB // 2, block(number, MIB // 2))
        store.fail.append(Fault("^PART .* 37 ", StoreError(errno.EIO, "500 InternalError", code="InternalError", status=500)))
        with pytest.raises(OSError, match="500 InternalError"):
            await publisher.publish(staged, KEY, MODE)
        assert KEY not in store.objects
        assert staged.read(0, 8) == block(0, 8)
        store.calls.clear()
        await publisher.publish(staged, KEY, MODE)
        assert [call.split()[2] for call in store.calls if call.startswith("PART")] == ["37", "38", "39", "40"]
        assert store.data(KEY) == b"".join(block(number, MIB // 2) for number in range(40))
        await publisher.close()

    @pytest.mark.parametrize("size", [5, 3 * MIB, 11 * MIB])
    @pytest.mark.parametrize("error", [fakestore.lost, fakestore.failed_condition, fakestore.slow_down])
    async def test_a_lost_answer_is_no_conflict(
        self, store: FakeStore, scratch: Scratch, publisher: Publisher, size: int, error: Callable[[], StoreError]
    ) -> None:
        staged = scratch.stage(None)
        staged.write(0, bytes(size))
        store.fail.append(Fault("^(PUT|COMPLETE)", error(), after=True))
        item = await publisher.publish(staged, KEY, MODE)
        assert item == store.objects[KEY].item
        assert store.count("PUT") + store.count("COMPLETE") == 1
        assert not staged.dirty

    @pytest.mark.parametrize("size", [5, 3 * MIB, 11 * MIB])
    async def test_an_answer_lost_twice_is_found_by_the_next_publish(
        self, store: FakeStore, scratch: Scratch, publisher: Publisher, size: int
    ) -> None:
        staged = scratch.stage(None)
        staged.write(0, bytes(size))
        store.fail += [Fault("^(PUT|COMPLETE)", fakestore.lost(), after=True), Fault("^HEAD", fakestore.lost())]
        with pytest.raises(StoreError, match="the connection broke"):
            await publisher.publish(staged, KEY, MODE)
        assert staged.dirty
        staged.write(0, b"more")
        await publisher.publish(staged, KEY, MODE)
        assert store.data(KEY) == b"more" + bytes(size - 4)

    @pytest.mark.parametrize("size", [5, 11 * MIB])
    async def test_409_is_tried_again(self, store: FakeStore, scratch: Scratch, publisher: Publisher, size: int) -> None:
        staged = scratch.stage(None)
        staged.write(0, bytes(size))
        store.fail.append(Fault("^(PUT|COMPLETE)", fakestore.busy(), times=2))
        await publisher.publish(staged, KEY, MODE)
        assert store.count("CREATE") == (3 if size > 8 * MIB else 0), "S3 wants the parts again"

    async def test_409_for_ever_is_an_error(
        self, store: FakeStore, scratch: Scratch, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(publish.random, "uniform", lambda low, high: 0.0)
        staged = scratch.stage(None)
        store.fail.append(Fault("^PUT", fakestore.busy(), times=999))
        with pytest.raises(StoreError, match="409") as caught:
            await publisher.publish(staged, KEY, MODE)
        assert caught.value.errno == errno.EBUSY
        assert store.count("PUT") == publish.TRIES

    async def test_an_upload_that_somebody_aborted_is_begun_anew(
        self, store: FakeStore, scratch: Scratch, publisher: Publisher
    ) -> None:
        staged = scratch.stage(None)
        written = await write_blocks(publisher, staged, 12)
        await settle()
        store.uploading.clear()
        await publisher.publish(staged, KEY, MODE)
        assert store.data(KEY) == written

    async def test_a_cancelled_publish_can_be_done_again(
        self, store: FakeStore, scratch: Scratch, publisher: Publisher
    ) -> None:
        staged = scratch.stage(None)
        staged.write(0, block(1, 12 * MIB))
        store.fail.append(Fault("^PART .* 2 ", gate=asyncio.Event()))
        publishing = asyncio.ensure_future(publisher.publish(staged, KEY, MODE))
        await asyncio.sleep(0.05)
        publishing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await publishing
        assert publisher.room(staged, 0, 1) is None
        await publisher.publish(staged, KEY, MODE)
        assert store.data(KEY) == block(1, 12 * MIB)
        assert store.count("CREATE") == 1

    async def test_the_disk_being_full_is_not_taken_for_the_store(
        self, store: FakeStore, scratch: Scratch, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        staged = scratch.stage(store.seed(KEY, b"0123456789"))
        staged.write(0, b"x")

        def full(offset: int, data: bytes) -> None:
            raise OSError(errno.ENOSPC, "disk full")

        monkeypatch.setattr(Staged, "fill", lambda self, offset, data: full(offset, data))
        with pytest.raises(OSError, match="disk full") as caught:
            await publisher.publish(staged, KEY, MODE)
        assert caught.value.errno == errno.ENOSPC

    async def test_a_bucket_that_vanished_is_not_a_conflict(
        self, store: FakeStore, scratch: Scratch, publisher: Publisher
    ) -> None:
        staged = scratch.stage(store.seed(KEY, b"x"))
        staged.write(0, b"y")
        gone = StoreError(errno.ENOENT, "404 NoSuchBucket", code="NoSuchBucket", status=404)
        store.objects.pop(KEY)
        store.fail.append(Fault("^PUT", gone))
        with pytest.raises(StoreError, match="NoSuchBucket"):
            await publisher.publish(staged, KEY, MODE)
        assert not staged.conflicted

    async def test_discarding_aborts_the_upload_and_its_parts(
        self, store: FakeStore, scratch: Scratch, publisher: Publisher
    ) -> None:
        staged = scratch.stage(None)
        store.fail.append(Fault("^PART", gate=asyncio.Event(), times=9))
        await write_blocks(publisher, staged, 12)
        await asyncio.sleep(0.01)
        await publisher.discard(staged)
        assert store.calls[-1] == f"ABORT {KEY}"
        assert store.cancelled == 2
        assert scratch.used_bytes == 0

    async def test_uploads_are_told_to_the_journal(self, store: FakeStore, scratch: Scratch) -> None:
        begun: list[Upload] = []
        ended: list[Upload] = []
        publisher = Publisher(store, Options(), scratch, begun=begun.append, ended=ended.append)
        staged = scratch.stage(None)
        staged.write(0, bytes(12 * MIB))
        await publisher.publish(staged, KEY, MODE)
        other = scratch.stage(None)
        await write_blocks(publisher, other, 11)
        await settle()
        assert (len(begun), len(ended)) == (2, 1)
        store.fail.append(Fault("^ABORT", fakestore.lost()))
        await publisher.discard(other)
        assert len(ended) == 1, "an upload that could not be aborted stays noted"
        await publisher.close()
        assert begun == ended
        assert not store.uploading

    async def test_leftovers_of_the_dead_are_aborted_and_nobody_elses(
        self, store: FakeStore, scratch: Scratch, publisher: Publisher
    ) -> None:
        left = await store.create_upload("left", MODE)
        other = await store.create_upload("other", MODE)
        assert await publisher.leftovers([left, Upload("gone", "gone")]) == 2
        assert [begun.upload for begun in await store.uploads("")] == [other]
        store.fail.append(Fault("^ABORT", fakestore.denied()))
        assert await publisher.leftovers([other]) == 0
        await store.abort(other)


class TestConflicts:
    async def conflict(
        self, store: FakeStore, scratch: Scratch, policy: str, said: list[str] | None = None
    ) -> tuple[Publisher, Staged]:
        """Change a file here, and its object elsewhere."""
        report = (
            (lambda error, operation, key: said.append(f"{operation} {key}: {error.strerror}")) if said is not None else None
        )
        publisher = Publisher(store, Options(on_conflict=policy), scratch, source="s3://bucket", report=report)
        staged = scratch.stage(store.seed(KEY, b"base"), truncated=True)
        staged.write(0, b"ours")
        store.put_plain(KEY, b"theirs!")
        return publisher, staged

    async def test_somebody_elses_update_is_not_overwritten_and_ours_is_kept(self, store: FakeStore, scratch: Scratch) -> None:
        said: list[str] = []
        publisher, staged = await self.conflict(store, scratch, "fail", said)
        with pytest.raises(StoreError, match="changed by somebody else; the local version is kept in ") as caught:
            await publisher.publish(staged, KEY, MODE)
        assert caught.value.errno == errno.ESTALE
        assert store.data(KEY) == b"theirs!"
        assert said == [f"conflict {KEY}: {caught.value.strerror}"]
        assert staged.conflicted
        assert staged.read(0, 9) == b"ours"
        await publisher.discard(staged)
        (kept,) = conflicts.kept(scratch.conflicts)
        assert kept.path == staged.kept
        assert kept.path in str(caught.value)
        assert (kept.source, kept.key, kept.size, kept.missing) == ("s3://bucket", KEY, 4, [])
        assert contents(kept.path) == b"ours"

    async def test_a_second_try_keeps_the_same_copy(self, store: FakeStore, scratch: Scratch) -> None:
        publisher, staged = await self.conflict(store, scratch, "fail")
        for more in (b"", b"2"):
            staged.write(4, more)
            with pytest.raises(StoreError, match="kept in"):
                await publisher.publish(staged, KEY, MODE)
        (kept,) = conflicts.kept(scratch.conflicts)
        assert contents(kept.path) == b"ours2"

    async def test_bytes_that_were_never_here_are_named(self, store: FakeStore, scratch: Scratch, publisher: Publisher) -> None:
        staged = scratch.stage(store.seed(KEY, b"0123456789"))
        staged.write(2, b"x")
        store.put_plain(KEY, b"theirs")
        with pytest.raises(StoreError, match="but for bytes that were only in the version that is gone"):
            await publisher.publish(staged, KEY, MODE)
        (kept,) = conflicts.kept(scratch.conflicts)
        assert kept.missing == [(0, 2), (3, 10)]
        assert contents(kept.path) == b"\0\0x" + bytes(7)

    async def test_a_new_file_does_not_replace_one_that_appeared(
        self, store: FakeStore, scratch: Scratch, publisher: Publisher
    ) -> None:
        staged = scratch.stage(None)
        staged.write(0, block(1, 12 * MIB))
        store.fail.append(Fault("^COMPLETE", do=lambda: store.put_plain(KEY, b"theirs")))
        with pytest.raises(StoreError, match="changed by somebody else"):
            await publisher.publish(staged, KEY, MODE)
        assert store.data(KEY) == b"theirs"
        await publisher.discard(staged)

    async def test_a_file_that_was_removed_is_not_brought_back(
        self, store: FakeStore, scratch: Scratch, publisher: Publisher
    ) -> None:
        staged = scratch.stage(store.seed(KEY, b"base"), truncated=True)
        store.objects.pop(KEY)
        with pytest.raises(StoreError, match="removed by somebody else"):
            await publisher.publish(staged, KEY, MODE)
        assert KEY not in store.objects

    async def test_attributes_of_a_changed_object_are_not_set(
        self, store: FakeStore, scratch: Scratch, publisher: Publisher
    ) -> None:
        staged = scratch.stage(store.seed(KEY, b"base"))
        staged.touch()
        store.put_plain(KEY, b"theirs")
        with pytest.raises(StoreError, match="changed by somebody else"):
            await publisher.publish(staged, KEY, MODE)
        assert staged.conflicted
        assert staged.kept == "", "there are no bytes to keep"

    async def test_rename_publishes_beside_it(self, store: FakeStore, scratch: Scratch) -> None:
        said: list[str] = []
        publisher, staged = await self.conflict(store, scratch, "rename", said)
        item = await publisher.publish(staged, KEY, MODE)
        assert item.key == staged.diverted
        assert item.key.startswith(f"{KEY}.conflict-")
        assert (store.data(KEY), store.data(item.key)) == (b"theirs!", b"ours")
        assert said
        assert item.key in said[0]
        staged.write(0, b"more")
        assert (await publisher.publish(staged, KEY, MODE)).key == item.key

    async def test_overwrite_replaces_it_and_says_so(self, store: FakeStore, scratch: Scratch) -> None:
        said: list[str] = []
        publisher, staged = await self.conflict(store, scratch, "overwrite", said)
        await publisher.publish(staged, KEY, MODE)
        assert store.data(KEY) == b"ours"
        assert said == [f"conflict {KEY}: '{KEY}' was changed by somebody else, and is overwritten"]

    async def test_overwrite_does_not_mix_versions(self, store: FakeStore, scratch: Scratch) -> None:
        publisher = Publisher(store, Options(on_conflict="overwrite"), scratch)
        staged = scratch.stage(store.seed(KEY, b"base"))
        staged.write(0, b"x")
        store.put_plain(KEY, b"theirs")
        with pytest.raises(StoreError, match="changed by somebody else"):
            await publisher.publish(staged, KEY, MODE)
        assert store.data(KEY) == b"theirs"

    async def test_overwrite_with_all_parts_in_the_store_needs_no_base(self, store: FakeStore, scratch: Scratch) -> None:
        publisher = Publisher(store, Options(on_conflict="overwrite"), scratch)
        data = block(1, 12 * MIB)
        staged = scratch.stage(store.seed(KEY, data))
        staged.write(12 * MIB, b"tail")
        store.fail.append(Fault("^COMPLETE", do=lambda: store.put_plain(KEY, b"theirs")))
        await publisher.publish(staged, KEY, MODE)
        assert store.data(KEY) == data + b"tail"
        assert store.count("PART") == 1
        await publisher.close()

    async def test_append_merge_puts_the_tail_behind_theirs(self, store: FakeStore, scratch: Scratch) -> None:
        publisher = Publisher(store, Options(on_conflict="append-merge"), scratch)
        staged = scratch.stage(store.seed(KEY, b"base\n"))
        staged.write(5, b"ours\n", append=True)
        store.put_plain(KEY, b"base\ntheirs\n")
        item = await publisher.publish(staged, KEY, MODE)
        assert store.data(KEY) == b"base\ntheirs\nours\n"
        assert (item.size, staged.size, staged.base) == (17, 17, item)

    async def test_append_merge_merges_nothing_else(self, store: FakeStore, scratch: Scratch) -> None:
        publisher, staged = await self.conflict(store, scratch, "append-merge")
        with pytest.raises(StoreError, match="kept in"):
            await publisher.publish(staged, KEY, MODE)
        fresh = scratch.stage(None)
        fresh.write(0, b"not by O_APPEND")
        with pytest.raises(StoreError, match="kept in"):
            await publisher.publish(fresh, KEY, MODE)
        assert store.data(KEY) == b"theirs!"

    async def test_append_merge_does_not_merge_with_what_may_be_its_own(
        self, store: FakeStore, scratch: Scratch, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # As with KMS's keys, where an ETag is no digest of the bytes.
        monkeypatch.setattr(publish, "_etag_of", lambda parts: "")
        publisher = Publisher(store, Options(on_conflict="append-merge"), scratch)
        staged = scratch.stage(store.seed(KEY, block(1, 9 * MIB)))
        staged.write(9 * MIB, b"one\n", append=True)
        store.fail += [Fault("^COMPLETE", fakestore.lost(), after=True), Fault("^HEAD", fakestore.lost())]
        with pytest.raises(StoreError, match="connection broke"):
            await publisher.publish(staged, KEY, MODE)
        staged.write(staged.size, b"two\n", append=True)
        with pytest.raises(StoreError, match="kept in"):
            await publisher.publish(staged, KEY, MODE)
        assert store.data(KEY) == block(1, 9 * MIB) + b"one\n"
        await publisher.close()

    async def test_a_store_whose_etags_say_nothing_is_compared(
        self, store: FakeStore, scratch: Scratch, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(publish, "_md5", lambda body: "")
        for content, same in ((b"ours", True), (b"not!", False)):
            staged = scratch.stage(None)
            staged.write(0, b"ours")
            carried = {TXN: f"{staged.id}.{staged.generation}"}
            store.objects.pop(KEY)
            store.fail.append(Fault("^PUT", fakestore.lost(), do=lambda: store.put_plain(KEY, content, carried)))  # noqa: B023
            if same:
                assert (await publisher.publish(staged, KEY, MODE)).size == 4
            else:
                with pytest.raises(StoreError, match="connection broke"):
                    await publisher.publish(staged, KEY, MODE)
                with pytest.raises(StoreError, match="changed by somebody else"):
                    await publisher.publish(staged, KEY, MODE)

    async def test_metadata_carried_on_by_others_is_not_taken_for_ours(
        self, store: FakeStore, scratch: Scratch, publisher: Publisher
    ) -> None:
        staged = scratch.stage(None)
        staged.write(0, b"ours")
        store.fail += [Fault("^PUT", fakestore.lost(), after=True), Fault("^HEAD", fakestore.lost())]
        with pytest.raises(StoreError, match="connection broke"):
            await publisher.publish(staged, KEY, MODE)
        store.put_plain(KEY, b"more", store.objects[KEY].metadata)
        with pytest.raises(StoreError, match="changed by somebody else"):
            await publisher.publish(staged, KEY, MODE)
        assert store.data(KEY) == b"more"

    def test_the_name_of_a_conflict_fits(self) -> None:
        name = conflicts.conflict_key("d/" * 300 + "ü" * 200)
        assert len(name.encode()) <= 1024
        assert len(name.rpartition("/")[2].encode()) <= 255
        assert name.startswith("d/" * 300 + "ü")
        assert conflicts.conflict_key("k", [conflicts.conflict_key("k")]) != conflicts.conflict_key("k")

    def test_copies_that_cannot_be_understood_are_passed_over(self, tmp_path: Path) -> None:
        assert conflicts.kept(str(tmp_path / "none")) == []
        (tmp_path / "a").write_text("x")
        (tmp_path / "a.json").write_text("{")
        (tmp_path / "b.json").write_text("{}")
        assert conflicts.kept(str(tmp_path)) == []


class TestServers:
    async def test_a_server_without_conditions_is_asked_before(self, scratch: Scratch) -> None:
        does = Features(put_if_absent=False, put_if_match=False, complete_if=False, copy_if=False)
        store = FakeStore(does=does)
        store.features = does
        publisher = Publisher(store, Options(), scratch)
        for size in (4, 12 * MIB):
            staged = scratch.stage(store.seed(KEY, b"base"), truncated=True)
            staged.write(0, bytes(size))
            store.put_plain(KEY, b"theirs")
            with pytest.raises(StoreError, match="changed by somebody else"):
                await publisher.publish(staged, KEY, MODE)
            assert store.data(KEY) == b"theirs"
            await publisher.discard(staged)

    @pytest.mark.parametrize("size", [4, 12 * MIB])
    async def test_a_server_that_refuses_conditions_is_learnt(
        self, store: FakeStore, scratch: Scratch, publisher: Publisher, size: int
    ) -> None:
        store.fail.append(Fault("^(PUT|COMPLETE)", StoreError(errno.EOPNOTSUPP, "501", code="NotImplemented", status=501)))
        staged = scratch.stage(None)
        staged.write(0, bytes(size))
        await publisher.publish(staged, KEY, MODE)
        assert store.features.put_if_absent == (size > 4)
        assert store.features.complete_if == (size == 4)
        assert f"HEAD {KEY}" in store.calls

    async def test_a_server_without_copies_of_parts_is_learnt(self, scratch: Scratch) -> None:
        store = FakeStore(does=Features(copy_part=False))
        publisher = Publisher(store, Options(), scratch)
        data = block(1, 12 * MIB)
        staged = scratch.stage(store.seed(KEY, data))
        staged.write(12 * MIB, b"tail")
        await publisher.publish(staged, KEY, MODE)
        assert store.data(KEY) == data + b"tail"
        assert not store.features.copy_part
        await publisher.close()

    async def test_a_version_without_an_etag_is_compared(
        self, store: FakeStore, scratch: Scratch, publisher: Publisher
    ) -> None:
        item = store.seed(KEY, b"base")
        store.objects[KEY] = store.objects[KEY]._replace(item=item._replace(etag=""))
        staged = scratch.stage(item._replace(etag=""), truncated=True)
        staged.write(0, b"ours")
        await publisher.publish(staged, KEY, MODE)
        assert store.calls == [f"HEAD {KEY}", f"PUT {KEY} 4"]

    async def test_a_file_renamed_before_its_publish_replaces_what_is_there(
        self, store: FakeStore, scratch: Scratch, publisher: Publisher
    ) -> None:
        there = store.seed("there", b"there")
        staged = scratch.stage(None)
        staged.write(0, b"new")
        staged.retarget(there)
        assert (await publisher.publish(staged, "there", MODE)).size == 3
        other = scratch.stage(None)
        other.retarget(Object("there", 5, 0, "an older version"))
        with pytest.raises(StoreError, match="changed by somebody else"):
            await publisher.publish(other, "there", MODE)
