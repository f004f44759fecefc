"""Reading from servers that do everything wrong: the right bytes or an errno that says why, never others, never for ever."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import random
import re
from collections.abc import Awaitable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hostile import DATA, MODES, OTHER, SIZE, HostileServer
from httpreading import MIB, Reading, content, errno_name, read

from pyfusekit.core import Duration, Size

MID = 5_000_000


@dataclass(frozen=True)
class Expected:
    """What is to come of it."""

    mid: str = ""
    """The errno of a read at 5,000,000, in words; empty is the right bytes."""
    whole: str = ""
    """That of reading all, then."""
    said: str = ""
    """What the error says."""
    fresh: str = ""
    """That of reading all when the file is opened again; empty is one version."""
    probe: str = ""
    """That of asking what is there: nothing can be opened."""


RIGHT = Expected()
STALE = Expected(whole="ESTALE", said="replaced while it was open")
EXPECTED: dict[str, Expected] = {
    **dict.fromkeys(
        (
            *(
                "honest",
                "weak",
                "no-validator",
                "fresh",
                "short-206",
                "long-206",
                "bare-206",
                "bare-weak",
                "multipart",
                "multipart-holes",
            ),
            *(
                "ignores-range",
                "ignores-range-unversioned",
                "ignores-range-cut",
                "head-405",
                "head-404",
                "head-zero",
                "head-lies",
            ),
            *("chunked", "chunked-unversioned", "until-close", "gzip-always", "gzip-asked", "cut", "busy-429", "busy-503-date"),
            *("stalls", "redirects", "signs", "range-length-short", "length-too-short"),
        ),
        RIGHT,
    ),
    "empty": RIGHT,
    **dict.fromkeys(
        (
            "changes",
            "bare-changes",
            "changes-no-if-range",
            "changes-unnamed",
            "changes-date",
            "changes-weak",
        ),
        STALE,
    ),
    # Nothing but the size tells versions apart: it is fetched in one piece.
    "changes-size": RIGHT,
    "shrinks": RIGHT,
    **dict.fromkeys(("vanishes", "refuses-412", "signs-gone"), STALE),
    "ignores-range-changing": Expected("ESTALE", "ESTALE", "replaced while it was fetched", "ESTALE"),
    "encoded-206": Expected("EIO", "EIO", "coding 'gzip', which was not asked for", "EIO"),
    "brotli": Expected("EIO", "EIO", "coding 'br', which was not asked for", "EIO"),
    "multipart-total": Expected("EIO", "EIO", "of 8388609 bytes", "EIO"),
    "wrong-start": Expected("EIO", "EIO", "byte .* was asked for, and what came begins at", "EIO"),
    "wrong-total": Expected("EIO", "EIO", "8388613 bytes now, and of 8388608 before", "ESTALE"),
    "no-content-range": Expected("EIO", "EIO", "no Content-Range", "EIO"),
    "says-204": Expected("EIO", "EIO", "204", "EIO"),
    "says-304": Expected("EIO", "EIO", "304", "EIO"),
    "length-too-long": Expected("", "EIO", "missing|broke in the middle", "EIO"),
    "silent": Expected("", "ETIMEDOUT", "no answer in time|not done within", "ETIMEDOUT"),
    "busy-forever": Expected("EBUSY", "EBUSY", "503.*86400 s", "EBUSY"),
    "hangs-up": Expected("EIO", "EIO", "closed the connection", "EIO"),
    "half-status": Expected("EIO", "EIO", "closed the connection|not HTTP|broke", "EIO"),
    "large-headers": Expected("EIO", "EIO", "not HTTP", "EIO"),
    "signs-never": Expected("EACCES", "EACCES", "403", "EACCES"),
    "signed-never": Expected("EACCES", "EACCES", "403", "EACCES"),
    # Each question is a GET there, and so the file has changed by the first answer.
    "bare-405": Expected("ESTALE", "ESTALE", "replaced while it was open"),
    "expires": Expected("", "EACCES", "403", "EACCES"),
    "loop": Expected(probe="ELOOP", said="circles"),
    "bomb": Expected(probe="ELOOP", said="circles"),
    "signed": Expected(probe="EACCES", said="403"),
}


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[HostileServer, HostileServer]]:
    with HostileServer() as other, HostileServer(other) as server:
        yield server, other


@pytest.fixture
def server(servers: tuple[HostileServer, HostileServer]) -> HostileServer:
    return servers[0]


def test_every_mode_has_its_expectation() -> None:
    assert EXPECTED.keys() == MODES.keys()


def special(mode: str) -> dict[str, Any]:
    """Return what the mount of a mode is told: those that never get an answer are to give up soon."""
    if mode in ("silent", "stalls"):
        return {"idle_timeout": Duration(0.2)}
    return {"known": mode != "head-lies"}


async def outcome(said: list[str], reading: Awaitable[Any], *versions: bytes) -> str:
    """Return the errno of *reading*, or "" when it brought one of *versions*; note in *said* what the error says."""
    try:
        data = await reading
    except OSError as exc:
        said.append(exc.strerror or "")
        return errno_name(exc)
    assert data in versions, f"wrong bytes: {len(data)}"
    return ""


async def run(server: HostileServer, reading: Reading, mode: str) -> None:
    """Read at 5,000,000, then all, then all once more behind a new open."""
    expected = EXPECTED[mode]
    said: list[str] = []
    url = server.url(mode, f"{reading.name}.bin")
    if expected.probe:
        assert await outcome(said, reading.files.probe(url)) == expected.probe, said
        assert_said(expected.said, said)
        return
    old = b"" if mode == "empty" else DATA
    file = await reading.files.open(await reading.files.probe(url))
    found = [await outcome(said, read(file, MID, 4096), old[MID : MID + 4096]), await outcome(said, content(file), old)]
    if mode == "length-too-short":
        # What comes behind an answer is read as the next one, or seen before: then it is none of HTTP.
        assert set(found) <= {"", "EIO"}
        file.close()
        return
    assert found == [expected.mid, expected.whole], said
    if expected.said:
        assert_said(expected.said, said)
    if expected.whole == "ESTALE":
        with pytest.raises(OSError, match=r"replaced|was fetched") as info:
            await read(file, MID, 1)
        assert info.value.errno == errno.ESTALE, "it is final"
    file.close()
    # Whoever opens it now gets the version that is there now, whole: or nothing.
    if mode in ("vanishes", "refuses-412", "signs-gone"):
        with pytest.raises(OSError, match=r"404|412"):
            await reading.files.probe(url)
        return
    if mode == "busy-forever":
        # The pause that the server wants is everybody's.
        assert await outcome(said, reading.files.probe(url)) == "EBUSY"
        return
    file = await reading.files.open(await reading.files.probe(url))
    new = (old, OTHER, OTHER + b"more", OTHER[:4_000_000])
    assert await outcome(said, content(file), *new) == expected.fresh, said
    file.close()


def assert_said(pattern: str, said: list[str]) -> None:
    assert any(re.search(pattern, text) for text in said), said


@pytest.mark.parametrize("mode", sorted(EXPECTED))
async def test_mid_then_whole_is_right_or_says_why(
    server: HostileServer, tmp_path: Path, mode: str, request: pytest.FixtureRequest
) -> None:
    async with asyncio.timeout(40), Reading(server, tmp_path, name="cached", **special(mode)) as reading:
        await run(server, reading, mode)


@pytest.mark.parametrize("mode", ["changes-size", "shrinks"])
async def test_file_without_a_version_that_is_too_large_to_spool_is_read_by_ranges_of_one_size(
    server: HostileServer, tmp_path: Path, mode: str
) -> None:
    async with Reading(server, tmp_path, name="large", spool_size=Size(1 << 20)) as reading:
        file = await reading.files.open(await reading.files.probe(server.url(mode, "large.bin")))
        said: list[str] = []
        assert await outcome(said, read(file, MID, 4096), DATA[MID : MID + 4096]) == ""
        assert await outcome(said, content(file), DATA) == "ESTALE"
        assert_said("replaced while it was open", said)
        file.close()


SLOW = {"silent", "hangs-up", "half-status", "length-too-long", "busy-429", "busy-503-date", "stalls", "large-headers"}
"""Modes whose answers are waited for, and which have nothing to do with where the bytes are kept."""


@pytest.mark.parametrize(
    "mode", ["bare-206", "bare-changes", "bare-405", "changes", "honest", "multipart", "weak", "short-206"]
)
async def test_first_file_of_a_host_is_pinned_to_its_version_too(server: HostileServer, mode: str) -> None:
    """HEAD and GET are compared then: the version is what either of them tells."""
    async with asyncio.timeout(40), Reading(server, None, name="first", known=False) as reading:
        found = await reading.files.probe(server.url(mode, "first.bin"))
        assert found.validator.etag in ('"v1"', 'W/"v1"')
        file = await reading.files.open(found)
        said: list[str] = []
        assert await outcome(said, content(file), DATA) == ("ESTALE" if EXPECTED[mode].whole else ""), said
        file.close()


@pytest.mark.parametrize("mode", sorted(EXPECTED.keys() - SLOW))
async def test_without_a_disk_cache_it_is_the_same(server: HostileServer, mode: str) -> None:
    async with asyncio.timeout(40), Reading(server, None, name="uncached", **special(mode)) as reading:
        await run(server, reading, mode)


async def test_if_range_goes_with_every_range_of_a_file_with_a_version(server: HostileServer) -> None:
    async with Reading(server, None, name="conditions") as reading:
        file = await reading.open("honest", "conditions.bin")
        assert await content(file) == DATA
        file.close()
    ranges = [one for one in server.asked("GET", "honest") if one.path.endswith("conditions.bin")]
    assert ranges
    assert {one.headers.get("if-range") for one in ranges} == {'"v1"'}
    assert {one.headers.get("accept-encoding") for one in ranges} == {"identity"}
    assert all(one.span(SIZE) for one in ranges)


async def test_cut_body_is_continued_at_the_byte(server: HostileServer) -> None:
    async with Reading(server, None, name="resumed") as reading:
        file = await reading.open("cut", "resumed.bin")
        assert await content(file) == DATA
        file.close()
    spans = [one.span(SIZE) for one in server.asked("GET", "cut") if one.path.endswith("resumed.bin")]
    starts = [span[0] for span in spans if span is not None]
    assert len(starts) == len(set(starts)), "nothing was asked for twice"
    assert sum(span[1] - span[0] for span in spans if span is not None) < 3 * SIZE


async def test_signed_url_that_expired_is_resolved_again(servers: tuple[HostileServer, HostileServer]) -> None:
    server, other = servers
    async with Reading(server, None, name="resolved", readahead=MIB) as reading:
        file = await reading.open("signs", "resolved.bin")
        assert await content(file) == DATA
        file.close()
    used = {one.target for one in other.asked("GET", "signed")}
    assert len(used) > 1
    assert len(server.asked("GET", "signs")) <= 2, "the redirect is not followed for each range"


async def test_retry_after_is_waited_for_by_everybody(server: HostileServer) -> None:
    async with Reading(server, None, name="patient") as reading:
        file = await reading.open("busy-429", "patient.bin")
        assert await content(file) == DATA
        file.close()
    times = [(one.number, one.at) for one in server.asked("GET", "busy-429") if one.path.endswith("patient.bin")]
    refused = next(at for number, at in times if number == 2)
    assert not [at for _, at in times if refused + 0.05 < at < refused + 0.9]


async def test_readers_who_begin_together_are_all_told_that_ranges_tell_no_version(server: HostileServer) -> None:
    for attempt in range(5):
        async with Reading(server, None, name=f"together{attempt}") as reading:
            file = await reading.open("bare-changes")
            said: list[str] = []
            offsets = [number * MIB for number in range(8)]
            found = await asyncio.gather(
                *(outcome(said, read(file, offset, 4096), DATA[offset : offset + 4096]) for offset in offsets)
            )
            assert set(found) <= {"", "ESTALE"}
            assert "ESTALE" in found
            file.close()


VERSIONS = {"old": DATA, "new": OTHER}
UNTOLD = {"no-validator", "large-headers", "busy-forever", "loop", "bomb", "signed"}
"""Modes without anything to be read, or to be told apart by."""


@pytest.mark.parametrize("seed", range(3))
async def test_who_reads_here_and_there_at_once_never_sees_two_versions(
    servers: tuple[HostileServer, HostileServer], tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    modes = sorted(MODES.keys() - SLOW - UNTOLD)
    for turn in range(15):
        mode = rng.choice(modes)
        how: dict[str, Any] = {"norange": rng.choice(("spool", "spool", "stream")), "known": rng.random() < 0.5}
        name = f"mix{seed}-{turn}"
        async with asyncio.timeout(40), Reading(servers[0], rng.choice((tmp_path, None)), name=name, **how) as reading:
            with contextlib.suppress(OSError):
                file = await reading.open(mode)
                spans = [(rng.randrange(SIZE), rng.choice((4096, 131072, MIB))) for _ in range(12)]
                spans += [(start + step * 131072, 131072) for start in (0, 3 * MIB) for step in range(8)]
                parts = await asyncio.gather(*(read(file, *span) for span in spans), return_exceptions=True)
                read_on = [(offset, part) for (offset, _), part in zip(spans, parts, strict=True) if isinstance(part, bytes)]
                assert all(isinstance(part, (bytes, OSError)) for part in parts), parts
                versions = {
                    next((name for name, data in VERSIONS.items() if data[at : at + len(part)] == part), "wrong bytes")
                    for at, part in read_on
                    if part
                }
                assert versions in ({"old"}, {"new"}, set()), (mode, versions)
                file.close()
