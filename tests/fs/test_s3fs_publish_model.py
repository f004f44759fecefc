"""Publishing against a model: whatever happens, no update is lost in silence, and an error leaves the local bytes as they are.

The sizes of S3's rules are made small, so that a few bytes are a multipart upload.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import fakestore
import pytest
from fakestore import FakeStore, Fault
from hypothesis import Phase, event, example, given, settings
from hypothesis import strategies as st

from pyfusekit.fs.s3fs.remote.store import Attributes, Features
from pyfusekit.fs.s3fs.writing import feeding, plan, publish, staging, streams
from pyfusekit.fs.s3fs.writing.publish import Publisher
from pyfusekit.fs.s3fs.writing.scratch import Scratch
from pyfusekit.fs.s3fs.writing.staging import Base, Local, Staged

MIN = 8
KEY = "dir/key"
PHASES = (Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink)


class Options(NamedTuple):
    part_size: int = MIN
    uploads: int = 4
    on_conflict: str = "fail"


@contextmanager
def small() -> Iterator[None]:
    """Make S3's sizes small, and its pauses short."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (plan, staging, feeding):
            patch.setattr(module, "MIN_PART", MIN)
        patch.setattr(plan, "PUT_MAX", 2 * MIN)
        patch.setattr(plan, "_COPY", 3 * MIN)
        patch.setattr(plan, "_MIB", 1)
        for module in (plan, publish):
            patch.setattr(module, "MAX_PART", 8 * MIN)
        patch.setattr(publish, "SMALL", MIN)
        patch.setattr(streams, "_PIECE", 3)
        patch.setattr(publish, "random", SimpleNamespace(uniform=lambda low, high: 0))
        yield


class Watched(FakeStore):
    """A store that knows when somebody's update is overwritten who was not known of."""

    def __init__(self, does: Features) -> None:
        super().__init__(does=does, min_part=MIN)
        self.features = Features(**{name: getattr(does, name) for name in does.__slots__})
        self.known: set[str] = set()
        """ETags of versions that our writer saw, or made."""
        self.bytes: dict[str, bytes] = {}
        self.lost: list[bytes] = []

    def _keep(self, data, item, attributes):  # type: ignore[no-untyped-def]
        self.bytes[item.etag] = data
        return super()._keep(data, item, attributes)

    def _write(self, key, data, etag, attributes):  # type: ignore[no-untyped-def]
        was = self.objects.get(key)
        if was is not None and was.item.etag not in self.known:
            self.lost.append(was.data)
        self.known.add(etag)
        return super()._write(key, data, etag, attributes)


def contents(staged: Staged, store: Watched) -> bytes:
    """Return the file as a reader sees it; of a base that is gone, what it was."""
    found = b""
    base = store.bytes[staged.base.etag] if staged.base is not None else b""
    for piece in staged.plan_read(0, staged.size):
        if isinstance(piece, Local):
            found += os.pread(staged.fd, piece.end - piece.start, piece.start)
        else:
            found += base[piece.start : piece.end] if isinstance(piece, Base) else bytes(piece.end - piece.start)
    return found


def kept_copy(staged: Staged) -> tuple[bytearray, list[tuple[int, int]]]:
    """Return the copy that a conflict left, and which of its bytes were never here."""
    said = json.loads(Path(f"{staged.kept}.json").read_text(encoding="utf-8"))
    return bytearray(Path(staged.kept).read_bytes()), said["missing"]


class Run:
    """One run of the model."""

    def __init__(self, directory: str, store: Watched, policy: str, base: int | None) -> None:
        self.store = store
        self.scratch = Scratch(directory)
        self.publisher = Publisher(store, Options(on_conflict=policy), self.scratch, report=self._reported)
        self.serial = 0
        self.reported: list[str] = []
        self.local = bytearray()
        self.attributes = Attributes({"mode": "420"})
        if base is not None:
            store.seed(KEY, self.data(base))
        self.staged = self.open()

    def _reported(self, error: OSError, operation: str, key: str) -> None:
        assert operation == "conflict"
        self.reported.append(f"{key}: {error.strerror}")

    def data(self, length: int) -> bytes:
        """Return bytes that no other call returned."""
        self.serial += 1
        return bytes((self.serial * 31 + index * 7) % 251 + 1 for index in range(length))

    def open(self) -> Staged:
        """Stage what the store has now."""
        stored = self.store.objects.get(KEY)
        self.local = bytearray(stored.data if stored is not None else b"")
        if stored is not None:
            self.store.known.add(stored.item.etag)
        return self.scratch.stage(stored.item if stored is not None else None)

    async def reopen(self) -> None:
        await self.publisher.discard(self.staged)
        self.store.known = set()
        self.staged = self.open()

    def theirs(self, data: bytes, metadata: Mapping[str, str] | None = None) -> None:
        """Put another client's version there; the same bytes again are no update that could be lost."""
        was = self.store.objects.get(KEY)
        item = self.store.put_plain(KEY, data, metadata)
        if (was is None or was.data != data) and (self.staged.replaces is None or self.staged.replaces.etag != item.etag):
            self.store.known.discard(item.etag)

    async def restart(self) -> None:
        """Die, and begin again with what a journal has."""
        record = json.loads(json.dumps(self.staged.record()))
        fd = os.dup(self.staged.fd)
        await self.publisher.discard(self.staged)
        self.staged = self.scratch.adopt(record, fd)

    async def change(self, word: str, offset: int, length: int) -> None:
        staged, data = self.staged, self.data(length)
        if word == "append":
            offset, word = staged.size, "write"
        end = min(offset, staged.size) if word == "truncate" else offset + length
        start = min(offset, staged.size)
        room = self.publisher.room(staged, start, max(end, staged.size if word == "truncate" else end))
        if room is not None:
            await room
        if word == "write" and length:
            assert staged.write(offset, data) == length
            self.local.extend(bytes(max(0, offset + length - len(self.local))))
            self.local[offset : offset + length] = data
            self.publisher.feed(staged, KEY, lambda: self.attributes)
        elif word == "truncate":
            staged.truncate(offset)
            del self.local[offset:]
            self.local.extend(bytes(offset - len(self.local)))
        elif word == "zero":
            staged.zero(offset, offset + length)
            stop = min(offset + length, len(self.local))
            self.local[offset:stop] = bytes(max(0, stop - offset))

    async def publish(self, cancel_after: int = -1) -> None:
        """Publish, and hold the outcome to the promise."""
        dirty = self.staged.dirty
        work = asyncio.ensure_future(self.publisher.publish(self.staged, KEY, self.attributes))
        if cancel_after >= 0:
            for _ in range(cancel_after):
                await asyncio.sleep(0)
            work.cancel()
        try:
            item = await work
        except asyncio.CancelledError:
            event("cancelled")
        except OSError as exc:
            event(f"failed: {errno.errorcode[exc.errno or 0]}")
            if self.staged.conflicted and exc.errno == errno.ESTALE:
                await self.conflict()
                return
        else:
            event("published")
            assert not self.staged.dirty
            assert item.key == (self.staged.diverted or KEY)
            assert self.store.bytes[item.etag] == self.local
            assert not dirty or self.store.objects[item.key].metadata["mode"] == "420"
        assert contents(self.staged, self.store) == self.local

    async def conflict(self) -> None:
        """An error said that somebody else changed the key: so it must be, and the local bytes are kept."""
        event("conflict")
        stored = self.store.objects.get(KEY)
        unknown = stored is None or stored.item.etag not in self.store.known
        # What is not proved to be ours counts as another's: too large for a digest, and its answer lost twice.
        assert self.staged.diverted or unknown or (stored is not None and stored.item.size > MIN)
        assert contents(self.staged, self.store) == self.local
        if self.staged.data_dirty:
            kept, missing = kept_copy(self.staged)
            for start, end in missing:
                kept[start:end] = self.local[start:end]
            assert kept == self.local
        await self.reopen()


FAULTS: dict[str, Callable[[], Fault]] = {
    "lost before": lambda: Fault("^(PUT|COMPLETE|COPY) ", fakestore.lost()),
    "lost after": lambda: Fault("^(PUT|COMPLETE|COPY) ", fakestore.lost(), after=True),
    "412 after": lambda: Fault("^(PUT|COMPLETE|COPY) ", fakestore.failed_condition(), after=True),
    "409": lambda: Fault("^(PUT|COMPLETE|COPY) ", fakestore.busy()),
    "no head": lambda: Fault("^HEAD ", fakestore.slow_down()),
    "part": lambda: Fault("^PART .* 3 ", fakestore.lost()),
    "part after": lambda: Fault("^PART .* 1 ", fakestore.lost(), after=True),
    "copied part": lambda: Fault("^COPY_PART ", fakestore.slow_down()),
    "get": lambda: Fault("^GET ", fakestore.lost()),
    "create": lambda: Fault("^CREATE ", fakestore.denied()),
    "any": lambda: Fault("", fakestore.denied()),
}

offsets = st.one_of(st.integers(0, 100), st.sampled_from([0, MIN, 2 * MIN, 4 * MIN]))
CHANGES = ["write", "append", "append", "truncate", "zero"]
EVENTS = ["publish", "publish", "yield", "theirs", "carried on", "removed", "restart", "touch"]
steps = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(CHANGES), offsets, st.integers(0, 40)),
        st.tuples(st.sampled_from(EVENTS), offsets, st.just(0)),
        st.tuples(st.sampled_from(["cancel", "janitor", "reopen", "unchanged"]), st.integers(0, 40), st.just(0)),
        st.tuples(st.sampled_from(sorted(FAULTS)), st.just(0), st.just(0)),
    ),
    max_size=24,
)
features = st.sampled_from([Features(), Features(copy_part=False)])


# An answer is lost, and the question what became of it cancelled.
@example([("412 after", 0, 0), ("cancel", 2, 0), ("write", 0, 1)], None, Features())
@given(steps, st.one_of(st.none(), st.integers(0, 90)), features)
@settings(max_examples=400, deadline=None, phases=PHASES)
def test_nothing_is_lost_and_nothing_is_overwritten_in_silence(
    done: list[tuple[str, int, int]], base: int | None, does: Features
) -> None:
    asyncio.run(run(done, base, does, "fail"))


@given(steps, st.one_of(st.none(), st.integers(0, 90)))
@settings(max_examples=150, deadline=None, phases=PHASES)
def test_a_store_without_conditions_is_asked_before(done: list[tuple[str, int, int]], base: int | None) -> None:
    does = Features(put_if_absent=False, put_if_match=False, complete_if=False, copy_if=False)
    asyncio.run(run(done, base, does, "fail"))


# What others made of a lost version of ours is theirs.
@example([("412 after", 0, 0), ("write", 0, 1), ("cancel", 3, 0), ("truncate", 0, 0), ("carried on", 0, 0)], None, "rename")
@given(steps, st.one_of(st.none(), st.integers(0, 90)), st.sampled_from(["rename", "overwrite"]))
@settings(max_examples=150, deadline=None, phases=PHASES)
def test_what_on_conflict_does_is_said(done: list[tuple[str, int, int]], base: int | None, policy: str) -> None:
    asyncio.run(run(done, base, Features(), policy))


PASSING = ["lost before", "lost after", "412 after", "409", "no head", "part", "part after"]
appends = st.lists(
    st.one_of(
        st.tuples(st.sampled_from([0, 1]), st.integers(1, 30)),
        st.tuples(st.just("restart"), st.sampled_from([0, 1])),
        st.tuples(st.sampled_from(PASSING), st.just(0)),
    ),
    max_size=16,
)


# Somebody went on from a version whose maker does not know that he made it; the same, and he wrote more; and he died.
@example([("412 after", 0), ("no head", 0), (0, 1), (1, 1)], None)
@example([("412 after", 0), ("no head", 0), (1, 1), (0, 1), (1, 2), ("restart", 1)], None)
@example([("lost before", 0), ("412 after", 0), ("lost before", 0), (0, 1), ("no head", 0), (1, 1), (1, 1)], 9)
@example([("412 after", 0), ("no head", 0), (0, 13), ("restart", 0)], 12)
@given(appends, st.one_of(st.none(), st.integers(0, 60)))
@settings(max_examples=200, deadline=None, phases=PHASES)
def test_two_that_append_lose_no_line_and_write_none_twice(done: list[tuple[str | int, int]], base: int | None) -> None:
    asyncio.run(run_appends(done, base))


async def run_appends(done: list[tuple[str | int, int]], base: int | None) -> None:
    with tempfile.TemporaryDirectory() as directory, small():
        store = Watched(Features())
        scratch = Scratch(directory)
        publisher = Publisher(store, Options(on_conflict="append-merge"), scratch)
        if base is not None:
            store.seed(KEY, b"." * base)
        files: list[Staged | None] = [None, None]
        lines: list[bytes] = []

        async def publish(who: int) -> None:
            staged = files[who]
            assert staged is not None
            try:
                await publisher.publish(staged, KEY, Attributes())
            except OSError:
                failed = staged.conflicted
            else:
                failed = False
                await publisher.discard(staged)
                files[who] = None
            assert not failed, "appends never conflict"

        for word, number in done:
            if isinstance(word, int):
                stored = store.objects.get(KEY)
                staged = files[word] or scratch.stage(stored.item if stored is not None else None)
                files[word] = staged
                line = b"%d:%d" % (word, len(lines)) + b"x" * number + b"\n"
                lines.append(line)
                staged.write(staged.size, line, append=True)
                publisher.feed(staged, KEY, Attributes)
                if number % 2:
                    await publish(word)
            elif word == "restart":
                staged = files[number]
                if staged is not None:
                    record, fd = json.loads(json.dumps(staged.record())), os.dup(staged.fd)
                    await publisher.discard(staged)
                    files[number] = scratch.adopt(record, fd)
            else:
                store.fail.append(FAULTS[word]())
        store.fail.clear()
        for who in (0, 1):
            if files[who] is not None:
                await publish(who)
        assert files == [None, None]
        found = store.data(KEY) if KEY in store.objects else b""
        assert found.startswith(b"." * (base or 0))
        assert sorted(found[base or 0 :].splitlines(keepends=True)) == sorted(lines)
        await publisher.close()
        assert not store.uploading
        assert scratch.used_bytes == 0


async def run(done: list[tuple[str, int, int]], base: int | None, does: Features, policy: str) -> None:
    with tempfile.TemporaryDirectory() as directory, small():
        store = Watched(does)
        this = Run(directory, store, policy, base)
        for word, offset, length in done:
            if word in ("write", "append", "truncate", "zero"):
                await this.change(word, offset, length)
            elif word == "publish":
                await this.publish()
            elif word == "cancel":
                await this.publish(cancel_after=offset)
            elif word == "yield":
                for _ in range(offset):
                    await asyncio.sleep(0)
            elif word == "theirs":
                this.theirs(this.data(offset))
            elif word == "carried on":
                was = store.objects.get(KEY)
                if was is not None:
                    this.theirs(this.data(was.item.size), was.metadata)
            elif word == "unchanged":
                was = store.objects.get(KEY)
                if was is not None:
                    store.put_plain(KEY, was.data, was.metadata)
            elif word == "removed":
                store.objects.pop(KEY)
            elif word == "touch":
                this.staged.touch()
            elif word == "janitor":
                store.uploading.clear()
            elif word == "reopen":
                await this.reopen()
            elif word == "restart":
                await this.restart()
            else:
                store.fail.append(FAULTS[word]())
            assert len(store.lost) <= (len(this.reported) if policy == "overwrite" else 0), "overwritten in silence"
        store.fail.clear()
        await this.publish()
        assert len(store.lost) <= (len(this.reported) if policy == "overwrite" else 0), "overwritten in silence"
        await this.publisher.discard(this.staged)
        await this.publisher.close()
        assert not store.uploading, "an upload was left"
        assert this.scratch.used_bytes == 0
        assert not (set(os.listdir(directory)) - {"conflicts"})
