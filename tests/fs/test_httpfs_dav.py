"""Publishing by WebDAV: the conditions, what a lost answer has done, conflicts, and what the disk keeps."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from aiohttp import web as aiohttp_web
from davworld import FakeDav, Fault, World, fake_world, writing_to
from webservers import Apache, Lighttpd, Nginx, Server

from pyfusekit.core import CONFLICT
from pyfusekit.fs.httpfs import held
from pyfusekit.fs.httpfs.held import Time, Times
from pyfusekit.fs.httpfs.values import Entry, HttpError
from pyfusekit.fs.httpfs.webdav.staged import Staged
from pyfusekit.testing.contract.base import fails_with

SERVERS: dict[str, type[Apache] | type[Nginx] | type[Lighttpd]] = {"apache": Apache, "nginx": Nginx, "lighttpd": Lighttpd}
HONOUR = {"apache", "lighttpd"}
"""Those that honour conditions."""


@pytest.fixture(params=list(SERVERS), scope="module")
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp(request.param)
    root.chmod(0o777)
    with SERVERS[request.param](root, dav=True) as server:
        yield server


@pytest.fixture
def folder(served: Server, request: pytest.FixtureRequest) -> Path:
    """An empty directory of the server."""
    made = served.root / f"t{len(list(served.root.iterdir()))}"
    made.mkdir()
    made.chmod(0o777)
    return made


@pytest.fixture
async def world(served: Server, folder: Path, tmp_path: Path) -> AsyncIterator[World]:
    async with writing_to(f"{served.url}{folder.name}/", tmp_path / "staging") as made:
        yield made


@pytest.fixture
async def fake(tmp_path: Path) -> AsyncIterator[tuple[FakeDav, World]]:
    async with fake_world(tmp_path / "staging") as made:
        yield made


def by_somebody_else(method: str, url: str, data: bytes | None = None) -> None:
    """Change a file as a plain client does, which knows nothing of conditions."""
    with urllib.request.urlopen(urllib.request.Request(url, data, {"Content-Type": "x/y"}, method=method), timeout=10):
        pass


def names(folder: Path) -> list[str]:
    """Return what is in a directory."""
    return sorted(os.listdir(folder))


def contents(path: str) -> bytes:
    """Return a file's bytes."""
    return Path(path).read_bytes()


def ended(code: str, *arguments: str) -> int:
    """Run Python *code* to its end."""
    return subprocess.run([sys.executable, "-c", code, *arguments], timeout=30).returncode


@contextlib.contextmanager
def full(staged: Staged) -> Iterator[None]:
    """Let the disk of a staging file be full."""
    kept = os.dup(staged.fd)
    with open("/dev/full", "r+b", buffering=0) as device:
        os.dup2(device.fileno(), staged.fd)
    try:
        yield
    finally:
        os.dup2(kept, staged.fd)
        os.close(kept)


def honours(served: Server) -> bool:
    return served.program not in {"nginx"}


# Real servers.


async def test_new_file_is_published_and_its_version_known(world: World, folder: Path) -> None:
    staged = world.new("a file é%.txt".replace(" ", "%20").replace("é", "%C3%A9").replace("%.", "%25."), b"hello")
    published = await world.writer.publish(staged)
    assert published is not None
    assert not published.overtaken
    assert (folder / "a file é%.txt").read_bytes() == b"hello"
    assert published.resource.size == 5
    assert not staged.dirty
    now = await world.writer.dav.look(staged.url)
    assert now is not None
    assert not published.resource.validator.changed(now.validator)
    staged.close()
    assert world.open_files() == []
    assert names(folder) == ["a file é%.txt"]


async def test_written_again_and_again_without_asking_anew(world: World, folder: Path) -> None:
    staged = world.new("f")
    for number in range(4):
        staged.write(staged.size, b"line %d\n" % number)
        await world.writer.publish(staged)
    staged.truncate(4)
    await world.writer.publish(staged)
    assert (folder / "f").read_bytes() == b"line"


async def test_existing_file_is_changed_in_its_middle(world: World, folder: Path) -> None:
    (folder / "f").write_bytes(b"0123456789")
    staged = await world.open("f")
    staged.write(3, b"xyz")
    staged.write(12, b"end")
    await world.writer.publish(staged)
    assert (folder / "f").read_bytes() == b"012xyz6789\0\0end"


async def test_large_file_is_streamed_whole(world: World, folder: Path) -> None:
    staged = world.new("large")
    piece = bytes(range(256)) * 4096
    for number in range(20):
        staged.write(number * len(piece), piece)
    published = await world.writer.publish(staged)
    assert published is not None
    assert published.resource.size == 20 * len(piece)
    assert (folder / "large").read_bytes() == piece * 20


async def test_somebody_elses_change_is_estale_and_the_copy_kept(world: World, folder: Path, served: Server) -> None:
    (folder / "f").write_bytes(b"before")
    staged = await world.open("f")
    staged.write(0, b"mine")
    by_somebody_else("PUT", staged.url, b"somebody else's")
    with pytest.raises(HttpError) as error:
        await world.writer.publish(staged)
    assert (folder / "f").read_bytes() == b"somebody else's"
    (kept,) = world.kept().items()
    assert kept[1] == b"minere"
    assert str(world.staging / "http" / "kept" / kept[0]) in str(error.value.strerror)
    (problem,) = world.problems
    assert problem[0] == CONFLICT
    assert problem[2] == errno.ESTALE
    assert kept[0] in problem[3]
    assert kept[0] in problem[4]
    staged.close()
    assert len(world.kept()) == 1


async def test_somebody_elses_new_file_is_estale(world: World, folder: Path) -> None:
    staged = world.new("f", b"mine")
    by_somebody_else("PUT", staged.url, b"theirs, longer")
    with fails_with(errno.ESTALE):
        await world.writer.publish(staged)
    assert (folder / "f").read_bytes() == b"theirs, longer"
    assert list(world.kept().values()) == [b"mine"]


async def test_removed_by_somebody_else_is_estale(world: World, folder: Path) -> None:
    (folder / "f").write_bytes(b"before")
    staged = await world.open("f")
    staged.write(0, b"mine")
    by_somebody_else("DELETE", staged.url)
    with fails_with(errno.ESTALE):
        await world.writer.publish(staged)
    assert not (folder / "f").exists()
    assert list(world.kept().values()) == [b"minere"]


async def test_what_the_server_ignores_is_noted(world: World, folder: Path, served: Server) -> None:
    await world.writer.publish(world.new("f", b"x"))
    assert world.writer.honours.match == world.writer.honours.none_match == honours(served)
    assert len(world.notes) == (0 if honours(served) else 2)
    assert names(folder) == ["f"]


async def test_directories_are_made_once_and_removed_when_empty(world: World, folder: Path) -> None:
    url = f"{world.url}d%20%C3%A9/"
    await world.writer.mkdir(url)
    assert (folder / "d é").is_dir()
    with fails_with(errno.EEXIST):
        await world.writer.mkdir(url)
    with fails_with(errno.ENOENT):
        await world.writer.mkdir(f"{world.url}no/where/")
    (folder / "d é" / "f").write_bytes(b"x")
    with fails_with(errno.ENOTEMPTY):
        await world.writer.rmdir(url)
    assert (folder / "d é" / "f").read_bytes() == b"x"
    (folder / "d é" / "f").unlink()
    await world.writer.rmdir(url)
    assert not (folder / "d é").exists()
    with fails_with(errno.ENOENT):
        await world.writer.rmdir(url)


async def test_unlink_takes_files_only(world: World, folder: Path) -> None:
    (folder / "f").write_bytes(b"x")
    await world.writer.unlink(f"{world.url}f", await world.resource("f"))
    assert not (folder / "f").exists()
    with fails_with(errno.ENOENT):
        await world.writer.unlink(f"{world.url}f", None)
    (folder / "d").mkdir()
    (folder / "d" / "f").write_bytes(b"x")
    with fails_with(errno.EISDIR):
        await world.writer.unlink(f"{world.url}d", None)
    assert (folder / "d" / "f").exists()


async def test_unlink_takes_what_was_changed_meanwhile(world: World, folder: Path) -> None:
    (folder / "f").write_bytes(b"x")
    known = await world.resource("f")
    await world.writer.publish(world.new("other", b""))
    by_somebody_else("PUT", f"{world.url}f", b"changed")
    await world.writer.unlink(f"{world.url}f", known)
    assert not (folder / "f").exists()


async def test_files_are_renamed_over_others_or_not(world: World, folder: Path) -> None:
    (folder / "a b").write_bytes(b"one")
    await world.writer.rename(f"{world.url}a%20b", f"{world.url}c%20d", replaces=None, is_dir=False, no_replace=False)
    assert names(folder) == ["c d"]
    (folder / "e").write_bytes(b"two")
    known = await world.resource("c%20d")
    with fails_with(errno.EEXIST):
        await world.writer.rename(f"{world.url}e", f"{world.url}c%20d", replaces=known, is_dir=False, no_replace=True)
    with fails_with(errno.EEXIST):
        await world.writer.rename(f"{world.url}e", f"{world.url}c%20d", replaces=None, is_dir=False, no_replace=True)
    assert (folder / "c d").read_bytes() == b"one"
    await world.writer.rename(f"{world.url}e", f"{world.url}c%20d", replaces=known, is_dir=False, no_replace=False)
    assert names(folder) == ["c d"]
    assert (folder / "c d").read_bytes() == b"two"
    (folder / "g").write_bytes(b"three")
    await world.writer.rename(f"{world.url}g", f"{world.url}c%20d", replaces=None, is_dir=False, no_replace=False)
    assert (folder / "c d").read_bytes() == b"three"
    with fails_with(errno.ENOENT):
        await world.writer.rename(f"{world.url}g", f"{world.url}h", replaces=None, is_dir=False, no_replace=False)


async def test_directories_are_renamed_over_empty_ones_only(world: World, folder: Path) -> None:
    (folder / "a").mkdir()
    (folder / "a" / "f").write_bytes(b"x")
    await world.writer.rename(f"{world.url}a/", f"{world.url}b/", replaces=None, is_dir=True, no_replace=False)
    assert (folder / "b" / "f").read_bytes() == b"x"
    assert not (folder / "a").exists()
    (folder / "c").mkdir()
    (folder / "c" / "g").write_bytes(b"y")
    with fails_with(errno.ENOTEMPTY):
        await world.writer.rename(f"{world.url}b/", f"{world.url}c/", replaces=None, is_dir=True, no_replace=False)
    assert (folder / "c" / "g").exists()
    assert (folder / "b" / "f").exists()
    (folder / "c" / "g").unlink()
    await world.writer.rename(f"{world.url}b/", f"{world.url}c/", replaces=None, is_dir=True, no_replace=False)
    assert (folder / "c" / "f").read_bytes() == b"x"


async def test_a_file_is_never_renamed_over_a_directory(world: World, folder: Path, served: Server) -> None:
    (folder / "f").write_bytes(b"x")
    (folder / "d").mkdir()
    (folder / "d" / "g").write_bytes(b"y")
    rename = world.writer.rename(f"{world.url}f", f"{world.url}d", replaces=None, is_dir=False, no_replace=False)
    if served.program == "lighttpd":
        # It takes a directory at the Destination for where the file shall go, as mv(1) does: nothing is lost.
        await rename
        assert (folder / "d" / "f").read_bytes() == b"x"
    else:
        with fails_with(errno.EISDIR):
            await rename
        assert (folder / "f").exists()
    assert (folder / "d" / "g").exists()


# A server that misbehaves.


async def test_put_carries_its_length_and_no_expectation(fake: tuple[FakeDav, World]) -> None:
    server, world = fake
    await world.writer.publish(world.new("f", b"x" * 3_000_000))
    headers = next(headers for method, path, headers in server.seen if path == "/f" and method == "PUT")
    assert headers["content-length"] == "3000000"
    assert "transfer-encoding" not in headers
    assert "expect" not in headers
    assert headers["if-none-match"] == "*"


async def test_strong_etag_is_the_condition(fake: tuple[FakeDav, World]) -> None:
    server, world = fake
    server.set("/f", b"before")
    staged = await world.open("f")
    staged.write(0, b"B")
    server.seen.clear()
    await world.writer.publish(staged)
    sent = [headers for method, path, headers in server.seen if path == "/f" and method == "PUT"]
    assert [headers["if-match"] for headers in sent] == ['"1"']
    assert server.get("/f") == b"Before"


async def test_etag_in_the_answer_spares_the_question(tmp_path: Path) -> None:
    async with fake_world(tmp_path, FakeDav(put_tells=True)) as (server, world):
        staged = world.new("f", b"x")
        await world.writer.publish(staged)
        staged.write(1, b"y")
        server.seen.clear()
        published = await world.writer.publish(staged)
        assert server.methods("HEAD", "GET", "PROPFIND", "PUT") == ["PUT /f"]
        assert published is not None
        body = server.files["/f"]
        assert body is not None
        assert published.resource.validator.etag == f'"{body.version}"'


@pytest.mark.parametrize("etags", ["weak", "none"])
async def test_without_a_strong_etag_the_version_is_compared_before(tmp_path: Path, etags: str) -> None:
    async with fake_world(tmp_path, FakeDav(etags=etags)) as (server, world):
        server.set("/f", b"before", 1_000_000_000)
        staged = await world.open("f")
        staged.write(0, b"B")
        await world.writer.publish(staged)
        assert server.get("/f") == b"Before"
        sent = [headers for method, path, headers in server.seen if path == "/f" and method == "PUT"]
        assert sent[0]["if-unmodified-since"] == "Sun, 09 Sep 2001 01:46:40 GMT"
        server.set("/g", b"before", 1_000_000_000)
        staged = await world.open("g")
        staged.write(0, b"B")
        server.set("/g", b"theirs", 1_000_000_001)
        with fails_with(errno.ESTALE):
            await world.writer.publish(staged)
        assert server.get("/g") == b"theirs"
        assert list(world.kept().values()) == [b"Before"]


async def test_a_server_without_conditions_is_compared_before_and_noted(tmp_path: Path) -> None:
    async with fake_world(tmp_path, FakeDav(conditions=False)) as (server, world):
        server.set("/f", b"before")
        staged = await world.open("f")
        staged.write(0, b"B")
        server.set("/f", b"theirs")
        with fails_with(errno.ESTALE):
            await world.writer.publish(staged)
        assert server.get("/f") == b"theirs"
        new = world.new("g", b"mine")
        server.set("/g", b"theirs")
        with pytest.raises(HttpError):
            await world.writer.publish(new)
        assert server.get("/g") == b"theirs"
        assert len(world.notes) == 2
        assert "If-Match" in world.notes[0]
        assert server.names() == ["/f", "/g"]


async def test_a_server_that_refuses_its_own_etag_is_not_a_conflict(tmp_path: Path) -> None:
    async with fake_world(tmp_path, FakeDav(lies=True)) as (server, world):
        server.set("/f", b"before")
        staged = await world.open("f")
        staged.write(0, b"B")
        await world.writer.publish(staged)
        assert server.get("/f") == b"Before"
        assert len(world.notes) == 1


@pytest.mark.parametrize("size", [5, 3_000_000])
async def test_lost_answer_to_an_applied_put_is_success(fake: tuple[FakeDav, World], size: int) -> None:
    server, world = fake
    await world.writer.publish(world.new("other"))
    server.set("/f", b"b" * size)
    staged = await world.open("f")
    staged.write(0, b"mine")
    server.faults.append(Fault("PUT", lost=True))
    published = await world.writer.publish(staged)
    assert published is not None
    assert not staged.dirty
    assert server.get("/f") == b"mine" + b"b" * (size - 4)
    assert world.kept() == {}
    assert world.problems == []


async def test_lost_answer_and_somebody_elses_change_is_a_conflict(fake: tuple[FakeDav, World]) -> None:
    server, world = fake
    await world.writer.publish(world.new("other"))
    server.set("/f", b"before")
    staged = await world.open("f")
    staged.write(0, b"mine")
    server.faults.append(Fault("PUT", lost=True, after=lambda: server.set("/f", b"theirs")))
    with fails_with(errno.ESTALE):
        await world.writer.publish(staged)
    assert server.get("/f") == b"theirs"
    assert list(world.kept().values()) == [b"minere"]


async def test_written_on_after_all_answers_were_lost_is_no_conflict(fake: tuple[FakeDav, World]) -> None:
    server, world = fake
    await world.writer.publish(world.new("other"))
    server.set("/f", b"before")
    staged = await world.open("f")
    staged.write(0, b"mine")
    server.faults += [Fault("PUT", lost=True), Fault("PUT", status=504, times=20)]
    with pytest.raises(HttpError):
        await world.writer.publish(staged)
    assert server.get("/f") == b"minere"
    server.faults.clear()
    staged.write(4, b" and more")
    await world.writer.publish(staged)
    assert server.get("/f") == b"mine and more"
    assert world.kept() == {}


async def test_put_that_breaks_midway_is_sent_again(fake: tuple[FakeDav, World]) -> None:
    server, world = fake
    await world.writer.publish(world.new("other"))
    data = bytes(range(256)) * 20_000
    server.faults.append(Fault("PUT", cut=1_000_000))
    await world.writer.publish(world.new("f", data))
    assert server.get("/f") == data


async def test_replaced_at_once_is_published_but_no_base_for_more(fake: tuple[FakeDav, World]) -> None:
    server, world = fake
    await world.writer.publish(world.new("other"))
    staged = world.new("f", b"mine")
    server.faults.append(Fault("PUT", after=lambda: server.set("/f", b"THEM")))
    published = await world.writer.publish(staged)
    assert published is not None
    assert published.overtaken
    staged.write(4, b"!")
    with fails_with(errno.ESTALE):
        await world.writer.publish(staged)
    assert server.get("/f") == b"THEM"
    assert list(world.kept().values()) == [b"mine!"]


@pytest.mark.parametrize(
    ("status", "number"),
    [(507, errno.ENOSPC), (423, errno.EBUSY), (403, errno.EACCES), (409, errno.ENOENT), (413, errno.EFBIG), (405, errno.EPERM)],
)
async def test_refusals_of_put_and_their_errnos(fake: tuple[FakeDav, World], status: int, number: int) -> None:
    server, world = fake
    await world.writer.publish(world.new("other"))
    staged = world.new("f", b"mine")
    server.faults.append(Fault("PUT", status=status))
    with pytest.raises(HttpError) as error:
        await world.writer.publish(staged)
    assert staged.dirty
    assert error.value.errno == number
    assert staged.failure is error.value
    await world.writer.publish(staged)
    assert server.get("/f") == b"mine"


async def test_a_put_that_is_redirected_is_no_success(fake: tuple[FakeDav, World]) -> None:
    server, world = fake
    await world.writer.publish(world.new("other"))
    server.faults.append(Fault("PUT", status=302))
    with fails_with(errno.EIO):
        await world.writer.publish(world.new("f", b"mine"))


async def test_kept_after_a_failure_names_path_and_errno(fake: tuple[FakeDav, World]) -> None:
    _server, world = fake
    staged = world.new("f", b"mine")
    kept = await world.writer.keep(staged, OSError(errno.ENOSPC, "the server has no space left"), "close")
    assert kept.errno == errno.ENOSPC
    assert staged.kept in str(kept.strerror)
    staged.close()
    assert list(world.kept().values()) == [b"mine"]
    assert world.problems[0][0] == "close"
    assert staged.kept in world.problems[0][4]
    assert world.open_files() == []


@pytest.mark.parametrize("method", ["MKCOL", "DELETE", "MOVE"])
async def test_lost_answer_to_a_change_of_names_is_looked_after(fake: tuple[FakeDav, World], method: str) -> None:
    server, world = fake
    server.set("/f", b"x")
    server.faults.append(Fault(method, lost=True))
    if method == "MKCOL":
        await world.writer.mkdir(f"{world.url}d/")
        assert "/d" in server.names()
    elif method == "DELETE":
        await world.writer.unlink(f"{world.url}f", None)
        assert server.names() == []
    else:
        await world.writer.rename(f"{world.url}f", f"{world.url}g", replaces=None, is_dir=False, no_replace=True)
        assert server.names() == ["/g"]
    assert len(server.methods(method)) == 1


@pytest.mark.parametrize("method", ["MKCOL", "DELETE", "MOVE"])
async def test_a_change_that_did_not_arrive_is_made_again(fake: tuple[FakeDav, World], method: str) -> None:
    server, world = fake
    server.set("/f", b"x")
    server.faults.append(Fault(method, status=504))
    if method == "MKCOL":
        await world.writer.mkdir(f"{world.url}d/")
        assert server.names() == ["/d", "/f"]
    elif method == "DELETE":
        await world.writer.unlink(f"{world.url}f", None)
        assert server.names() == []
    else:
        await world.writer.rename(f"{world.url}f", f"{world.url}g", replaces=None, is_dir=False, no_replace=True)
        assert server.names() == ["/g"]


async def test_destination_elsewhere_is_exdev(fake: tuple[FakeDav, World]) -> None:
    server, world = fake
    server.set("/f", b"x")
    server.faults.append(Fault("MOVE", status=502, times=20))
    with fails_with(errno.EXDEV):
        await world.writer.rename(f"{world.url}f", f"{world.url}g", replaces=None, is_dir=False, no_replace=False)


async def test_locked_names_are_ebusy(fake: tuple[FakeDav, World]) -> None:
    server, world = fake
    server.set("/f", b"x")
    server.set("/d", None)
    server.faults += [Fault("DELETE", status=423, times=2), Fault("MOVE", status=423), Fault("MKCOL", status=507)]
    for call in (
        world.writer.unlink(f"{world.url}f", None),
        world.writer.rmdir(f"{world.url}d/"),
        world.writer.rename(f"{world.url}f", f"{world.url}g", replaces=None, is_dir=False, no_replace=True),
    ):
        with fails_with(errno.EBUSY):
            await call
    with fails_with(errno.ENOSPC):
        await world.writer.mkdir(f"{world.url}e/")


async def test_rmdir_without_propfind_is_refused_not_recursive(tmp_path: Path) -> None:
    async with fake_world(tmp_path, FakeDav(propfind=False)) as (server, world):
        server.set("/d", None)
        server.set("/d/f", b"x")
        with fails_with(errno.EOPNOTSUPP):
            await world.writer.rmdir(f"{world.url}d/")
        assert server.names() == ["/d", "/d/f"]


async def test_times_go_with_the_put_where_the_server_takes_them(tmp_path: Path) -> None:
    async with fake_world(tmp_path, FakeDav(mtimes=True)) as (server, world):
        staged = world.new("f", b"x")
        staged.mtime_ns = 1_111_111_111 * 10**9 + 5
        await world.writer.publish(staged)
        body = server.files["/f"]
        assert body is not None
        assert body.mtime == 1_111_111_111
        found = await world.writer.set_mtime(f"{world.url}f", 1_222_222_222 * 10**9)
        assert found is not None
        assert found.mtime_ns == 1_222_222_222 * 10**9
        assert world.notes == []


async def test_times_that_are_refused_are_noted_once(fake: tuple[FakeDav, World]) -> None:
    server, world = fake
    server.set("/f", b"x")
    assert await world.writer.set_mtime(f"{world.url}f", 10**18) is None
    assert await world.writer.set_mtime(f"{world.url}f", 10**18) is None
    assert len(world.notes) == 1
    assert len(server.methods("PROPPATCH")) == 1


async def test_quota_is_told_where_it_is_served(tmp_path: Path) -> None:
    async with fake_world(tmp_path, FakeDav(quota=(7000, 3000))) as (server, world):
        assert await world.writer.dav.quota(world.url) == (7000, 3000)
        server.quota = None
        assert await world.writer.dav.quota(world.url) is None


# The disk.


async def test_nothing_that_may_change_is_left_when_published(fake: tuple[FakeDav, World]) -> None:
    _, world = fake
    staged = world.new("f", b"x")
    assert [name.endswith(".json") for name in world.open_files()] == [False, True]
    await world.writer.publish(staged)
    assert len(world.open_files()) == 1
    staged.write(0, b"y")
    assert len(world.open_files()) == 2
    staged.close()
    assert world.open_files() == []


async def test_what_a_killed_mount_left_is_kept_and_named(tmp_path: Path) -> None:
    code = """
import os, sys
from pyfusekit.fs.httpfs.webdav.staged import StagingDir
from pyfusekit.fs.httpfs.values import Resource
store = StagingDir(sys.argv[1] + "/http", sys.argv[2])
mine = store.stage(sys.argv[2] + "dir/unsaved.txt", None)
mine.write(0, b"not on the server")
clean = store.stage(sys.argv[2] + "clean", Resource("u", "u", 0, None, ()))
StagingDir(sys.argv[1] + "/http", "http://other/").stage("http://other/f", None).write(0, b"another source's")
os.kill(os.getpid(), 9)
"""
    async with fake_world(tmp_path) as (_, world):
        assert ended(code, str(tmp_path), world.url) == -9
        alive = world.new("alive", b"still being written")
        (left,) = await world.writer.start()
        assert contents(left.path) == b"not on the server"
        assert left.url == f"{world.url}dir/unsaved.txt"
        (note,) = world.notes
        assert left.path in note
        assert left.url in note
        (problem,) = world.problems
        assert left.path in problem[3]
        assert problem[1] == left.url
        assert json.loads(contents(f"{left.path}.json"))["size"] == 17
        # A second mount names it again until somebody has removed it; what lives is not touched.
        world.notes.clear()
        assert [one.path for one in await world.writer.start()] == [left.path]
        assert len(world.notes) == 1
        assert not alive.kept
        assert contents(alive.path) == b"still being written"


async def test_passwords_in_the_url_are_not_written_to_disk(tmp_path: Path) -> None:
    async with fake_world(tmp_path) as (server, _world):
        async with writing_to(server.url.replace("//", "//me:secret@"), tmp_path) as other:
            assert "secret" not in other.writer.source
            other.writer.staging.stage(f"{other.url}f", None)
        texts = [path.read_text() for path in (tmp_path / "http" / "open").glob("*.json")]
        assert len(texts) == 1
        assert "secret" not in texts[0]


async def test_a_full_disk_is_enospc_and_keeps_what_was_written(fake: tuple[FakeDav, World]) -> None:
    _, world = fake
    staged = world.new("f", b"abc")
    with full(staged), fails_with(errno.ENOSPC):
        staged.write(3, b"more")
    assert staged.size == 3
    assert staged.read(0, 10) == b"abc"


async def test_punched_and_allocated_ranges(fake: tuple[FakeDav, World]) -> None:
    server, world = fake
    staged = world.new("f", b"0123456789")
    staged.zero(2, 4)
    staged.zero(8, 20)
    staged.allocate(5, 12, keep_size=False)
    staged.allocate(0, 1 << 20, keep_size=True)
    await world.writer.publish(staged)
    assert server.get("/f") == b"01\0\x004567" + bytes(4)


async def test_a_server_that_refuses_the_probe_may_take_files_all_the_same(fake: tuple[FakeDav, World]) -> None:
    server, world = fake
    server.faults.append(Fault("PUT", status=403))
    await world.writer.publish(world.new("f", b"x"))
    assert server.get("/f") == b"x"
    assert len(world.notes) == 2


async def test_a_server_that_makes_no_directories_is_eperm(fake: tuple[FakeDav, World]) -> None:
    server, world = fake
    server.faults.append(Fault("MKCOL", status=405))
    with fails_with(errno.EPERM):
        await world.writer.mkdir(f"{world.url}d/")
    server.set("/d", None)
    with fails_with(errno.EEXIST):
        await world.writer.mkdir(f"{world.url}d/")


async def test_a_refusal_before_the_body_was_sent_is_heard(tmp_path: Path) -> None:
    def refuse() -> None:
        raise aiohttp_web.HTTPRequestEntityTooLarge(max_size=1, actual_size=2)

    async with fake_world(tmp_path, FakeDav(early=refuse)) as (_, world):
        world.writer.honours.known = True
        with fails_with(errno.EFBIG):
            await world.writer.publish(world.new("f", b"x" * 30_000_000))


# Times.


def test_times_are_of_one_version_only() -> None:
    times = Times()
    times.set(b"d/f", Time(5, 10, '"1"', 60 * 10**9))
    entry = Entry("f", "http://h/d/f", False, 10, True, 60 * 10**9, etag='W/"1"')
    assert times.of(b"d/f", entry) == 5
    assert times.of(b"d/f", entry._replace(etag="", mtime_ns=90 * 10**9)) == 5
    times.move(b"d", b"e")
    assert times.of(b"d/f", entry) is None
    for other in ({"etag": '"2"'}, {"size": 11}, {"etag": "", "mtime_ns": 200 * 10**9}):
        times.set(b"e/f", Time(5, 10, '"1"', 60 * 10**9))
        assert times.of(b"e/f", entry._replace(**other)) is None
        assert times.of(b"e/f", entry) is None
    times.set(b"e", Time(7, -1, "", None))
    assert times.of(b"e", Entry("e", "http://h/e/", True)) == 7
    assert times.of(b"e", Entry("e", "http://h/e", False, 1, True)) is None


def test_only_so_many_times_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held, "MOST_TIMES", 3)
    times = Times()
    for number in range(5):
        times.set(b"%d" % number, Time(number, 1, "", None))
    assert len(times) == 3
    assert times.of(b"1", Entry("1", "u", False, 1, True)) is None
    assert times.of(b"4", Entry("4", "u", False, 1, True)) == 4
