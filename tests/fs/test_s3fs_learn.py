"""What the metadata say in s3fs on a store in memory: one HEAD a version, ever, and many at a time."""

from __future__ import annotations

import asyncio
import errno
import stat
import time
from pathlib import Path

from fakestore import FakeStore, Fault, denied
from s3user import User, eventually, refusal, using

from pyfusekit.core import abi
from pyfusekit.fs.s3fs.naming import learn

MODE = {"mode": str(stat.S_IFREG | 0o640), "uid": "5", "gid": "6", "mtime": "1500000000.5"}


def seeded(count: int) -> FakeStore:
    store = FakeStore()
    for number in range(count):
        store.seed(f"d/f{number:03}", b"%03d" % number, metadata=MODE)
    return store


async def shown(user: User) -> dict[str, tuple[int, int, int, int]]:
    """Return what "ls -l d" shows."""
    return {name: (row.mode, row.uid, row.size, row.mtime_ns) for name, row in (await user.ls_l("d")).items()}


EXPECTED = (stat.S_IFREG | 0o640, 5, 3, 1_500_000_000_500_000_000)


async def test_ls_l_of_known_versions_is_a_list_alone_also_in_the_next_mount(tmp_path: Path) -> None:
    store = seeded(100)
    async with using(store, tmp_path, metadata_ttl=0.0) as user:
        assert await shown(user) == {f"f{number:03}": EXPECTED for number in range(100)}
        assert store.count("HEAD d/f") == 100
        user.calls.clear()
        assert set((await shown(user)).values()) == {EXPECTED}
        assert store.count("HEAD") == 0
    store.calls.clear()
    async with using(store, tmp_path, metadata_ttl=0.0) as user:
        await user.stat("d")
        user.calls.clear()
        assert set((await shown(user)).values()) == {EXPECTED}
        assert [call for call in user.calls if not call.startswith("LIST d")] == []


async def test_version_that_others_replaced_is_asked_for_again_and_the_rest_is_not(tmp_path: Path) -> None:
    store = seeded(20)
    async with using(store, tmp_path, metadata_ttl=0.0) as user:
        await shown(user)
        store.put_plain("d/f007", b"007", {"mode": str(stat.S_IFREG | 0o600)})
        user.calls.clear()
        rows = await shown(user)
        assert rows["f007"][0] == stat.S_IFREG | 0o600
        assert [call for call in user.calls if call.startswith("HEAD d/f")] == ["HEAD d/f007"]


async def test_metadata_changed_by_others_alone_are_seen(tmp_path: Path) -> None:
    store = seeded(1)
    async with using(store, tmp_path, metadata_ttl=0.0) as user:
        await shown(user)
        # A chmod elsewhere: the same bytes and the same ETag, at another time.
        store.seed("d/f000", b"000", second=1_800_000_000, metadata={"mode": str(stat.S_IFREG | 0o600)})
        assert (await user.stat("d/f000")).mode == stat.S_IFREG | 0o600


async def test_what_was_just_written_is_not_taken_from_the_index(tmp_path: Path) -> None:
    store = seeded(1)
    now = int(time.time())
    store.seed("d/f000", b"000", second=now, metadata=MODE)
    async with using(store, tmp_path) as user:
        await shown(user)
    async with using(store, tmp_path) as user:
        user.calls.clear()
        await shown(user)
        # Another version of this second could look the same.
        assert "HEAD d/f000" in user.calls


async def test_who_looks_at_all_files_has_their_heads_asked_ahead(tmp_path: Path) -> None:
    store = seeded(200)
    store.latency = 0.002
    async with using(store, tmp_path) as user:
        assert set((await shown(user)).values()) == {EXPECTED}
        assert store.count("HEAD d/f") == 200
        assert store.busiest["HEAD"] > 30


async def test_heads_asked_ahead_leave_room_for_other_requests(tmp_path: Path) -> None:
    store = seeded(600)
    store.latency = 0.005
    async with using(store, tmp_path) as user:
        assert len(await shown(user)) == 600
        assert store.count("HEAD d/f") == 600
        assert learn._AT_ONCE - 8 <= store.busiest["HEAD"] <= learn._AT_ONCE + 1


async def test_who_stops_looking_had_few_heads_asked_in_vain(tmp_path: Path) -> None:
    store = seeded(600)
    async with using(store, tmp_path) as user:
        await user.names("d")
        for number in range(learn._RUN + 2):
            await user.stat(f"d/f{number:03}")
        await eventually(lambda: not user.fs.learner._asking)
        assert store.count("HEAD d/f") <= learn._RUN + learn._AHEAD
        assert not user.fs.learner._queue


async def test_file_removed_before_its_turn_is_not_asked_for(tmp_path: Path) -> None:
    store = seeded(90)
    gate = asyncio.Event()
    async with using(store, tmp_path) as user:
        await user.names("d")
        store.fail = [Fault("HEAD d/f", gate=gate, times=learn._RUN - 1 + learn._AT_ONCE)]
        asking = [asyncio.ensure_future(user.stat(f"d/f{number:03}")) for number in range(learn._RUN)]
        await eventually(lambda: user.fs.learner._queue)
        waiting = user.fs.learner._queue[-1]
        user.fs.tree.removed(waiting)
        gate.set()
        await asyncio.gather(*asking)
        await eventually(lambda: not user.fs.learner._asking)
        assert f"HEAD {waiting.key}" not in store.calls
        assert store.count("HEAD d/f") > learn._AT_ONCE


async def test_who_looks_at_one_file_asks_for_one(tmp_path: Path) -> None:
    store = seeded(50)
    async with using(store, tmp_path) as user:
        await user.names("d")
        user.calls.clear()
        await user.stat("d/f010")
        await user.stat("d/f030")
        assert store.count("HEAD d/f") == 2


async def test_two_who_ask_at_once_share_one_head(tmp_path: Path) -> None:
    store = seeded(1)
    gate = asyncio.Event()
    async with using(store, tmp_path) as user:
        await user.names("d")
        store.fail = [Fault("HEAD d/f", gate=gate, times=9)]
        both = [asyncio.ensure_future(user.stat("d/f000")) for _ in range(2)]
        await eventually(lambda: store.count("HEAD d/f"))
        gate.set()
        assert [row.mode for row in await asyncio.gather(*both)] == [stat.S_IFREG | 0o640] * 2
        assert store.count("HEAD d/f") == 1


async def test_interrupted_asker_leaves_the_other_the_answer(tmp_path: Path) -> None:
    store = seeded(1)
    gate = asyncio.Event()
    async with using(store, tmp_path) as user:
        await user.names("d")
        parent = await user.ino("d")
        store.fail = [Fault("HEAD d/f", gate=gate, times=9)]
        one, other = (user.ask(abi.LOOKUP, parent, names=[b"f000"]) for _ in range(2))
        await eventually(lambda: store.count("HEAD d/f"))
        user.kernel.interrupt(one)
        with refusal(errno.EINTR):
            await one
        gate.set()
        assert (await other).fields["attr_mode"] == stat.S_IFREG | 0o640


async def test_interrupted_lone_asker_ends_its_request(tmp_path: Path) -> None:
    store = seeded(1)
    async with using(store, tmp_path) as user:
        await user.names("d")
        parent = await user.ino("d")
        store.fail = [Fault("HEAD d/f", gate=asyncio.Event())]
        cancelled = store.cancelled
        one = user.ask(abi.LOOKUP, parent, names=[b"f000"])
        await eventually(lambda: store.count("HEAD d/f"))
        user.kernel.interrupt(one)
        with refusal(errno.EINTR):
            await one
        await eventually(lambda: store.cancelled == cancelled + 1)
        assert (await user.stat("d/f000")).size == 3


async def test_refused_metadata_are_an_errno_and_not_defaults(tmp_path: Path) -> None:
    store = seeded(2)
    async with using(store, tmp_path) as user:
        await user.names("d")
        store.fail = [Fault("HEAD d/f", denied())]
        with refusal(errno.EACCES):
            await user.stat("d/f000")
        assert (await user.stat("d/f000")).mode == stat.S_IFREG | 0o640


async def test_file_replaced_or_removed_between_list_and_head_is_what_it_is_now(tmp_path: Path) -> None:
    store = seeded(3)
    async with using(store, tmp_path) as user:
        await user.names("d")
        store.put_plain("d/f000", b"longer than before", {"mode": str(stat.S_IFREG | 0o600)})
        del store.objects["d/f001"]
        found = await user.stat("d/f000")
        assert (found.size, found.mode) == (18, stat.S_IFREG | 0o600)
        with refusal(errno.ENOENT):
            await user.stat("d/f001")
        assert await user.read("d/f000") == b"longer than before"


async def test_metadata_none_never_asks(tmp_path: Path) -> None:
    store = seeded(30)
    async with using(store, tmp_path, metadata="none") as user:
        rows = await user.ls_l("d")
        assert len(rows) == 30
        assert {row.mode for row in rows.values()} == {stat.S_IFREG | 0o644}
        assert await user.read("d/f000") == b"000"
        assert store.count("HEAD") == 0
        assert user.fs.index is None


async def test_directorys_own_mode_is_asked_once_a_minute(tmp_path: Path) -> None:
    assert learn.DIRECTORY_TTL_S == 60.0
    store = seeded(1)
    store.seed("d/", metadata={"mode": str(stat.S_IFDIR | 0o700)})
    async with using(store, tmp_path, metadata_ttl=0.0) as user:
        for _ in range(5):
            assert (await user.stat("d")).mode == stat.S_IFDIR | 0o700
        assert store.count("HEAD d/") == 1


async def test_broken_index_is_begun_anew(tmp_path: Path) -> None:
    store = seeded(5)
    async with using(store, tmp_path) as user:
        await shown(user)
    for path in (tmp_path / "cache").rglob("*.sqlite*"):
        path.write_bytes(b"this is no database" * 1000)
    async with using(store, tmp_path) as user:
        assert set((await shown(user)).values()) == {EXPECTED}
