from __future__ import annotations

import asyncio
import errno
import math
import time
from typing import Any

import pytest

from pyfusekit.core import Filesystem, ProblemLog
from pyfusekit.service import ending as endings
from pyfusekit.service.commands import Commands
from pyfusekit.service.ending import Ending


class Slow(Filesystem):
    """Two files wait, and a drain writes them when it is let."""

    def __init__(self) -> None:
        self.left = 2
        self.let = asyncio.Event()
        self.deadlines: list[float] = []
        self.problems = ProblemLog()
        self.refreshed: list[bytes] = []

    def waiting(self) -> tuple[int, int]:
        return self.left, self.left * 10

    async def drain(self, deadline: float) -> None:
        self.deadlines.append(deadline)
        await self.let.wait()
        self.left = 0

    async def refresh(self, path: bytes) -> int:
        self.refreshed.append(path)
        return 3


class Broken(Slow):
    async def drain(self, deadline: float) -> None:
        raise TypeError("a bug of drain")


def commands(fs: Filesystem, ending: Ending | None = None) -> Commands:
    return Commands(fs, {"pid": 1}, {}, ending or Ending())


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_drain_is_begun_once_and_says_how_far_it_is() -> None:
    fs = Slow()
    made = commands(fs)
    fs.problems.note(OSError(errno.EIO, "x"), "put", "a")
    for _ in range(3):
        answer = made.drain({})
        assert answer["waiting"] == {"files": 2, "bytes": 20}
        assert answer["newest"]["cause"] == "x"  # type: ignore[index]
        await turns()
    assert fs.deadlines == [math.inf]
    fs.let.set()
    await turns()
    assert made.drain({})["waiting"] == {"files": 0, "bytes": 0}
    fs.left = 1
    made.drain({})
    await turns()
    assert len(fs.deadlines) == 2, "what came to wait since is written too"
    await made.close()


async def test_closing_ends_a_drain() -> None:
    fs = Slow()
    made = commands(fs)
    made.drain({})
    await turns()
    await made.close()
    assert made._drain is not None
    assert made._drain.cancelled()
    assert fs.left == 2


async def test_a_drain_with_a_bug_is_told_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    made = commands(Broken())
    made.drain({})
    await turns()
    with pytest.raises(RuntimeError, match="writing back failed"):
        made.drain({})
    await made.close()
    assert "a bug of drain" in caplog.text


async def test_refresh_takes_any_name_and_nothing_else() -> None:
    fs = Slow()
    made = commands(fs)
    assert await made.refresh({"path": "a/\udcff"}) == {"count": 3}
    assert fs.refreshed == [b"a/\xff"]
    for wrong in (None, 3, ["a"]):
        answer: Any = await made.refresh({"path": wrong})
        assert answer["ok"] is False


async def test_farewell_is_said_when_all_is_over() -> None:
    fs, ending = Slow(), Ending()
    saying = asyncio.ensure_future(commands(fs, ending).farewell({}))
    await turns()
    assert not saying.done()
    fs.let.set()
    await ending.write_back(fs)
    assert (await saying)["waiting"] == {"files": 0, "bytes": 0}


async def test_the_last_drain_has_a_deadline() -> None:
    fs, ending = Slow(), Ending()
    fs.let.set()
    await ending.write_back(fs)
    (deadline,) = fs.deadlines
    assert 0 < deadline - time.monotonic() <= endings.DRAIN_LIMIT_S
    assert ending.drained.is_set()


@pytest.mark.parametrize("limit", [0, 0.0])
async def test_nothing_is_written_at_the_end_when_nobody_wants_it(limit: float) -> None:
    fs, ending = Slow(), Ending()
    made = commands(fs, ending)
    made.set_ending({"limit": limit})
    await ending.write_back(fs)
    assert fs.deadlines == []
    made.set_ending({"limit": None})
    assert math.isnan(ending.drain_limit)


async def test_once_it_ends_nobody_can_begin_another_drain() -> None:
    fs, ending = Slow(), Ending(drain_limit=0)
    await ending.write_back(fs)
    commands(fs, ending).drain({})
    await turns()
    assert fs.deadlines == []


async def test_a_bug_in_the_last_drain_is_logged_and_the_end_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    ending = Ending()
    await ending.write_back(Broken())
    assert ending.drained.is_set()
    assert "a bug of drain" in caplog.text
    assert "2 files (20 bytes) not written back" in caplog.text
