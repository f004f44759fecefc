"""httpfs behind a fake kernel and before a real server: how many requests things take, and what is shown when things change."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from httpworld import OLD, World, eventually, filesystem, fs_of, mounted, read_again

from pyfusekit.core import MountError
from pyfusekit.fs.httpfs import HttpFS
from pyfusekit.fs.httpfs.client import offline
from pyfusekit.fs.httpfs.naming import listings
from pyfusekit.fs.httpfs.naming import tree as tree_module
from pyfusekit.testing.contract.base import fails_with, pattern


@pytest.fixture
def world() -> Iterator[World]:
    with World("json") as made:
        yield made


@pytest.fixture(params=["nginx", "json"])
def either(request: pytest.FixtureRequest) -> Iterator[World]:
    """A server whose listing tells times to the minute, and one that tells the second."""
    with World(request.param) as made:
        yield made


def test_listing_of_a_thousand_files_is_one_request(either: World, tmp_path: Path) -> None:
    for number in range(1000):
        either.put(f"f{number:04}", b"x" * number)
    with mounted(either, tmp_path) as tree:
        names = tree.listdir()
        assert names == [b"f%04d" % number for number in range(1000)]
        assert [tree.stat(name).size for name in names] == list(range(1000))
        assert {tree.stat(name).mtime_ns // (60 * 10**9) for name in names} == {OLD // 60}
        assert either.log
        assert {(method, path) for method, path, _ in either.log} == {("GET", "/")}
        assert len(either.log) == 1


def test_lookup_is_answered_from_the_listing_and_what_it_lacks_is_not_asked_for(world: World, tmp_path: Path) -> None:
    world.put("a/b/file", b"12345")
    with mounted(world, tmp_path) as tree:
        assert tree.stat("a/b/file").size == 5
        for name in ("nothing", "a/nothing", "a/b/.well-known"):
            with fails_with(errno.ENOENT):
                tree.stat(name)
        assert [(method, path) for method, path, _ in world.log] == [("GET", "/"), ("GET", "/a/"), ("GET", "/a/b/")]


def test_a_listing_that_has_not_changed_is_revalidated_by_304(world: World, tmp_path: Path) -> None:
    world.validators = True
    world.put("f", b"x")
    with mounted(world, tmp_path, metadata_ttl=0.01) as tree:
        ino = tree.stat("f").ino
        world.forget()
        eventually(lambda: tree.listdir() == [b"f"] and len(world.log) > 2, "the listing is asked for again and again")
        assert all(headers.get("if-none-match") for _, _, headers in world.log)
        world.put("g", b"y")
        tree.drop_caches()
        eventually(lambda: tree.listdir() == [b"f", b"g"], "the new name is listed")
        assert tree.stat("f").ino == ino


def test_a_remount_asks_with_what_the_disk_knows(world: World, tmp_path: Path) -> None:
    world.validators = True
    world.put("f", b"xyz")
    with mounted(world, tmp_path) as tree:
        assert tree.listdir() == [b"f"]
    world.forget()
    with mounted(world, tmp_path) as tree:
        assert tree.stat("f").size == 3
    assert [(method, bool(headers.get("if-none-match"))) for method, _, headers in world.log] == [("GET", True)]


def test_files_that_come_go_and_change_are_seen_after_the_ttl(either: World, tmp_path: Path) -> None:
    either.put("stays", b"1")
    either.put("goes", b"2")
    with mounted(either, tmp_path, metadata_ttl=0.01, negative_ttl=0.0) as tree:
        assert tree.listdir() == [b"goes", b"stays"]
        del either.files["goes"]
        either.put("stays", b"longer", OLD + 600)
        either.put("new/inside", b"3")
        eventually(lambda: tree.listdir() == [b"new", b"stays"], "names are those of the server")
        assert tree.stat("stays").size == 6
        assert read_again(tree, "stays") == b"longer"
        with fails_with(errno.ENOENT):
            tree.stat("goes")
        del either.files["new/inside"]
        either.put("new", b"a file now")
        eventually(lambda: tree.stat("new").mode & 0o170000 == 0o100000, "a directory has become a file")
        assert read_again(tree, "new") == b"a file now"


def test_an_open_file_is_one_version_and_the_next_open_is_the_next(either: World, tmp_path: Path) -> None:
    old, new = pattern(300_000), pattern(300_000, seed=9)
    either.put("f", old)
    with mounted(either, tmp_path, metadata_ttl=0.01, readahead=0) as tree:
        fd = tree.open("f", os.O_RDONLY)
        assert tree.pread(fd, 4096, 0) == old[:4096]
        ino = tree.stat("f").ino
        either.put("f", new, OLD + 1)
        with fails_with(errno.ESTALE):
            tree.pread(fd, 4096, 200_000)
        assert tree.fstat(fd).size == len(old)
        assert read_again(tree, "f") == new
        assert tree.stat("f").ino != ino
        tree.close(fd)
        assert [problem.errno for problem in fs_of(tree).problems] == [errno.ESTALE]


def test_a_file_that_was_read_is_not_asked_for_again_within_the_ttl(world: World, tmp_path: Path) -> None:
    world.put("f", b"contents")
    with mounted(world, tmp_path) as tree:
        assert tree.read_file("f") == b"contents"

        def asks_nothing() -> bool:
            world.forget()
            assert tree.read_file("f") == b"contents"
            return world.log == []

        eventually(asks_nothing, "it is on the disk")


def test_odd_names_are_themselves(either: World, tmp_path: Path) -> None:
    names = [
        "with space",
        "ümläut",
        "a&b",
        "50%",
        "a+b",
        "quote'\"",
        "semi;colon",
        "ha#sh",
        "que?stion",
        "col:on",
        "~t",
        "日本",
    ]
    for name in names:
        either.put(f"d/{name}", name.encode())
    with mounted(either, tmp_path) as tree:
        assert tree.listdir("d") == sorted(name.encode() for name in names)
        assert [tree.read_file(f"d/{name}") for name in names] == [name.encode() for name in names]


def test_writing_is_erofs(world: World, tmp_path: Path) -> None:
    world.put("f", b"x")
    with mounted(world, tmp_path) as tree:
        assert fs_of(tree).read_only
        with fails_with(errno.EROFS):
            tree.open("f", os.O_RDWR)


def test_attributes_of_the_server_are_extended_attributes(world: World, tmp_path: Path) -> None:
    world.put("d/f", b"x", headers={"content-type": "text/plain", "server": "odd/1"})
    with mounted(world, tmp_path) as tree:
        base = world.url.encode()
        assert tree.getxattr("d/f", "user.http.url") == base + b"d/f"
        assert tree.getxattr("d", "user.http.url") == base + b"d/"
        assert tree.getxattr("d/f", "user.http.etag") == world.files["d/f"].etag.encode()
        assert tree.getxattr("d/f", "user.http.content-type") == b"text/plain"
        assert tree.getxattr("d/f", "user.http.last-modified").startswith(b"Tue, 14 Nov 2023")
        assert tree.getxattr("d/f", "user.http.status") == b"200"
        assert tree.getxattr("d", "user.http.driver") == tree.getxattr("d/f", "user.http.driver") != b""
        for name, number in (("user.http.nothing", errno.ENODATA), ("user.mine", errno.ENODATA)):
            with fails_with(number):
                tree.getxattr("d/f", name)
        with fails_with(errno.EOPNOTSUPP):
            tree.getxattr("d/f", "system.posix_acl_access")


def test_refresh_shows_at_once_what_others_changed(world: World, tmp_path: Path) -> None:
    world.put("d/f", b"old")
    with mounted(world, tmp_path, metadata_ttl=3600.0, negative_ttl=0.0) as tree:
        assert tree.read_file("d/f") == b"old"
        assert not tree.exists("d/g")
        world.put("d/f", b"newer", OLD + 600)
        world.put("d/g", b"x")
        assert tree.stat("d/f").size == 3
        fs = fs_of(tree)
        count = asyncio.run_coroutine_threadsafe(fs.refresh(b"d"), tree.mount._loop).result(10)
        assert count == 2
        assert tree.stat("d/f").size == 5
        assert read_again(tree, "d/f") == b"newer"
        assert tree.read_file("d/g") == b"x"


# Listings that do not tell sizes.


def test_rounded_sizes_are_asked_for_when_somebody_stats_and_not_before(tmp_path: Path) -> None:
    with World("apache") as world:
        world.delay = 0.01
        for number in range(60):
            world.put(f"f{number:03}", bytes(5000 + number))
        with mounted(world, tmp_path) as tree:
            assert len(tree.listdir()) == 60
            assert world.count("HEAD") == 0
            assert [tree.stat(f"f{number:03}").size for number in range(60)] == [5000 + number for number in range(60)]
            assert world.count("HEAD") == 60
            assert 2 <= world.most_busy <= 6
            assert world.count("GET /$") == 1


def test_one_stat_asks_about_one_file(tmp_path: Path) -> None:
    with World("apache") as world:
        for number in range(20):
            world.put(f"f{number:03}", bytes(5000))
        with mounted(world, tmp_path) as tree:
            assert tree.stat("f007").size == 5000
            assert world.count("HEAD") == 1


def test_what_is_listed_as_a_file_and_redirects_to_a_directory_is_one(tmp_path: Path) -> None:
    with World("apache") as world:
        world.put("d/inside", b"x")
        page = world.listing

        def listing(folder: str) -> tuple[str, bytes]:
            kind, body = page(folder)
            return kind, body.replace(b'href="d/"', b'href="d"')

        world.listing = listing  # type: ignore[method-assign]
        with mounted(world, tmp_path) as tree:
            assert tree.stat("d").mode & 0o170000 == 0o040000
            assert tree.listdir("d") == [b"inside"]
            assert tree.read_file("d/inside") == b"x"


# Directories that are not listed.


@pytest.mark.parametrize("style", ["forbidden", "plain"])
def test_a_directory_that_is_not_listed_shows_what_was_asked_for(style: str, tmp_path: Path) -> None:
    with World(style) as world:
        world.put("f", b"file")
        world.put("d/g", b"below")
        with mounted(world, tmp_path) as tree:
            assert tree.listdir() == []
            assert tree.read_file("f") == b"file"
            assert tree.read_file("d/g") == b"below"
            assert not tree.exists("nothing")
            assert tree.listdir() == [b"d", b"f"]
            world.forget()
            tree.drop_caches()
            assert not tree.exists("nothing")
            assert tree.stat("f").size == 4
            assert world.log == []
            assert any("does not list" in note for note in fs_of(tree).notes)


# One file.


def test_a_url_of_a_file_is_one_file_named_by_its_path(tmp_path: Path) -> None:
    with World() as world:
        world.put("d/an image.iso", pattern(10_000))
        with mounted(world, tmp_path, "d/an%20image.iso?version=1") as tree:
            assert tree.listdir() == [b"an image.iso"]
            assert tree.stat("an image.iso").size == 10_000
            assert tree.read_file("an image.iso") == pattern(10_000)
            assert not tree.exists("other")
        assert world.count("HEAD") == 1


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ('attachment; filename="report.pdf"', b"report.pdf"),
        ("attachment; filename*=UTF-8''na%C3%AFve%20file.txt", "naïve file.txt".encode()),
        ('attachment; filename="../../etc/passwd"', b"passwd"),
        ('attachment; filename=".."', b"download"),
        ("attachment", b"download"),
    ],
)
def test_content_disposition_names_the_file(said: str, name: bytes, tmp_path: Path) -> None:
    with World() as world:
        world.put("download", b"x", headers={"content-disposition": said})
        with mounted(world, tmp_path, "download") as tree:
            assert tree.listdir() == [name]
            assert tree.read_file(name) == b"x"


def test_a_url_that_redirects_to_a_directory_is_one(tmp_path: Path) -> None:
    with World() as world:
        world.put("d/f", b"x")
        with mounted(world, tmp_path, "d") as tree:
            assert tree.read_file("f") == b"x"


def test_single_shows_even_a_listing_as_a_file(tmp_path: Path) -> None:
    with World() as world:
        world.put("d/f", b"x")
        with mounted(world, tmp_path, "d/", single=True) as tree:
            (name,) = tree.listdir()
            assert b"Index of /d/" in tree.read_file(name)


def test_a_file_without_a_length_is_read_to_its_end_and_has_a_size_then(tmp_path: Path) -> None:
    with World() as world:
        world.chunked = True
        data = pattern(200_000)
        world.put("f", data)
        with mounted(world, tmp_path, "f") as tree:
            assert tree.stat("f").size == 0
            assert tree.read_file("f") == data
            assert tree.stat("f").size == len(data)
            assert tree.read_file("f") == data


# A host that is gone.


def slowly(fs: object) -> bool:
    """Return whether the host is known to be gone."""
    return bool(fs.web.offline)  # type: ignore[attr-defined]


def test_what_is_cached_is_served_when_the_host_is_gone_and_all_of_it_when_it_is_back(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offline, "FIRST_LOOK_S", 0.05)
    monkeypatch.setattr(offline, "MOST_LOOK_S", 0.1)
    monkeypatch.setattr(listings, "RETRY_S", 0.05)
    data = pattern(300_000)
    world.put("d/read", data)
    world.put("d/unread", data)
    options = {"metadata_ttl": 0.01, "deadline": 0.3, "connect_timeout": 0.2}
    with mounted(world, tmp_path, **options) as tree:
        assert tree.read_file("d/read") == data
        assert tree.listdir("d") == [b"read", b"unread"]
        world.stop()
        eventually(lambda: tree.listdir("d") == [b"read", b"unread"] and slowly(fs_of(tree)), "it is noticed")
        assert read_again(tree, "d/read") == data
        with fails_with(errno.EIO, errno.EHOSTUNREACH):
            tree.read_file("d/unread")
        assert any("offline" in note for note in fs_of(tree).notes)
        assert fs_of(tree).details()["offline"] is True
        world.put("d/new", b"new")
        world.start()
        eventually(lambda: not slowly(fs_of(tree)), "it is back")
        eventually(lambda: tree.exists("d/new"), "what is new is seen")
        assert tree.read_file("d/new") == b"new"
        assert read_again(tree, "d/unread") == data
        assert not fs_of(tree).notes


def test_a_mount_begins_without_its_host_when_it_was_mounted_before(world: World, tmp_path: Path) -> None:
    data = pattern(300_000)
    world.put("d/read", data)
    world.put("d/unread", data)
    options = {"deadline": 0.3, "connect_timeout": 0.2}
    with mounted(world, tmp_path, **options) as tree:
        assert tree.read_file("d/read") == data
    world.stop()
    with mounted(world, tmp_path, **options) as tree:
        assert any("offline" in note for note in fs_of(tree).notes)
        assert tree.listdir("d") == [b"read", b"unread"]
        assert tree.stat("d/unread").size == len(data)
        assert tree.read_file("d/read") == data
        with fails_with(errno.EIO):
            tree.read_file("d/unread")
    assert refused(filesystem(world, tmp_path, offline="never", **options)).kind == "source-unreachable"
    assert refused(filesystem(world, tmp_path / "another", **options)).kind == "source-unreachable"


def test_offline_always_asks_nobody(world: World, tmp_path: Path) -> None:
    world.put("d/read", b"data")
    world.put("e/f", b"x")
    with mounted(world, tmp_path) as tree:
        assert tree.read_file("d/read") == b"data"
    world.forget()
    with mounted(world, tmp_path, offline="always") as tree:
        assert tree.listdir() == [b"d", b"e"]
        assert tree.read_file("d/read") == b"data"
        with fails_with(errno.EIO):
            tree.listdir("e")
    assert world.log == []


def test_one_file_is_served_when_the_host_is_gone(tmp_path: Path) -> None:
    data = pattern(300_000)
    options = {"deadline": 0.3, "connect_timeout": 0.2}
    with World() as world:
        world.put("f.iso", data)
        with mounted(world, tmp_path, "f.iso", **options) as tree:
            assert tree.read_file("f.iso") == data
    with mounted(world, tmp_path, "f.iso", **options) as tree:
        assert tree.read_file("f.iso") == data


# Mounts that do not begin.


def refused(fs: HttpFS) -> MountError:
    """Return why a mount does not begin."""
    with pytest.raises(MountError) as info:
        asyncio.run(fs.init())
    return info.value


@pytest.mark.parametrize(
    ("status", "kind"),
    [(401, "access-denied"), (404, "source-missing"), (410, "source-missing"), (500, "source-unreachable")],
)
@pytest.mark.parametrize("path", ["", "file"])
def test_a_source_that_cannot_be_had_says_why(status: int, kind: str, path: str, tmp_path: Path) -> None:
    with World() as world:
        world.hook = lambda method, path: status
        error = refused(filesystem(world, tmp_path, path, deadline=0.3))
        assert error.kind == kind
        assert error.remedy
        assert str(status) in str(error)


# Listings in pages.


def s3_page(start: int, end: int, token: str) -> bytes:
    """Return a page of a bucket's listing."""
    rows = "".join(
        f"<Contents><Key>k{number:04}</Key><LastModified>2026-11-23T10:00:00.000Z</LastModified>"
        f"<ETag>&quot;{number:032x}&quot;</ETag><Size>{number}</Size></Contents>"
        for number in range(start, end)
    )
    more = f"<IsTruncated>true</IsTruncated><NextContinuationToken>{token}</NextContinuationToken>" if token else ""
    text = (
        '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<Name>b</Name><Prefix></Prefix>{more or '<IsTruncated>false</IsTruncated>'}{rows}</ListBucketResult>"
    )
    return text.encode()


def test_a_listing_in_pages_is_read_to_its_end_and_its_first_names_come_before_the_last_page(tmp_path: Path) -> None:
    with World() as world:
        held = threading.Event()
        queries: list[str] = []

        def page(handler: object, path: str) -> bool:
            query = urlsplit(handler.path).query  # type: ignore[attr-defined]
            queries.append(query)
            token = parse_qs(query).get("continuation-token", [""])[0]
            if token == "two":
                held.wait(20)
            pages = {"": (0, 100, "one"), "one": (100, 200, "two"), "two": (200, 300, "")}
            handler._answer(200, {"content-type": "application/xml"}, s3_page(*pages[token]))  # type: ignore[attr-defined]
            return True

        world.special = page
        options = {"single": False}
        fs = filesystem(world, tmp_path, "?list-type=2&delimiter=/&encoding-type=url&prefix=", **options)

        async def work() -> None:
            root = fs.tree.root
            mounting = asyncio.create_task(fs.init())
            while len(root.index) < 200:  # noqa: ASYNC110 - what is waited for says nothing
                await asyncio.sleep(0.01)
            walk = fs.opendir(None, 1, 0)  # type: ignore[arg-type]
            entries = fs.readdirplus(None, 1, walk, 0)  # type: ignore[arg-type]
            names = []
            async for entry in entries:  # type: ignore[union-attr]
                names.append(entry.name)
                if len(names) == 150:
                    assert not held.is_set()
                    held.set()
            assert names == [b".", b"..", *(b"k%04d" % number for number in range(300))]
            await mounting
            assert len(queries) == 3
            await fs.destroy()

        asyncio.run(asyncio.wait_for(work(), 30))


# What nobody may believe for any time, and what others break.


@pytest.mark.parametrize("style", ["nginx", "apache", "forbidden"])
def test_everything_works_when_nothing_is_believed(style: str, tmp_path: Path) -> None:
    with World(style) as world:
        world.put("d/f", pattern(5000))
        with mounted(world, tmp_path, metadata_ttl=0.0, negative_ttl=0.0) as tree:
            assert tree.stat("d/f").size == 5000
            assert tree.read_file("d/f") == pattern(5000)
            assert not tree.exists("d/g")
            world.put("d/g", b"new")
            assert tree.stat("d/g").size == 3
            if style != "forbidden":
                assert tree.listdir("d") == [b"f", b"g"]
        with mounted(world, tmp_path, "d/f", metadata_ttl=0.0) as tree:
            assert tree.read_file("f") == pattern(5000)


def test_a_listing_that_fails_is_its_error_and_then_asked_for_again(world: World, tmp_path: Path) -> None:
    world.put("d/f", b"x")
    with mounted(world, tmp_path, deadline=0.3, offline="never") as tree:
        world.hook = lambda method, path: 500 if path == "/d/" else 0
        with fails_with(errno.EIO, errno.ETIMEDOUT):
            tree.listdir("d")
        with fails_with(errno.EIO, errno.ETIMEDOUT):
            tree.stat("d/f")
        world.hook = None
        assert tree.listdir("d") == [b"f"]
        assert tree.stat("d/f").size == 1


def test_a_broken_index_is_replaced(world: World, tmp_path: Path) -> None:
    world.put("f", b"x")
    with mounted(world, tmp_path) as tree:
        assert tree.read_file("f") == b"x"
    (index,) = (tmp_path / "http" / "index").glob("*.sqlite")
    index.write_bytes(b"no database" * 1000)
    with mounted(world, tmp_path) as tree:
        assert tree.read_file("f") == b"x"
    world.forget()
    with mounted(world, tmp_path, offline="always") as tree:
        assert tree.read_file("f") == b"x"


def test_directories_that_nobody_needs_are_forgotten(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tree_module, "KEPT_DIRECTORIES", 8)
    with World("json") as world:
        for number in range(40):
            world.put(f"d{number:02}/e/f", b"%d" % number)
        with mounted(world, tmp_path) as tree:
            fs_of(tree).tree._most = 8
            for number in range(40):
                assert tree.read_file(f"d{number:02}/e/f") == b"%d" % number
                tree.drop_caches()
            assert len(fs_of(tree).tree.directories) <= 40
            assert [tree.read_file(f"d{number:02}/e/f") for number in range(40)] == [b"%d" % number for number in range(40)]


def test_a_listing_that_takes_its_time_is_no_host_that_is_gone(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listings, "FALLBACK_S", 0.2)
    world.put("f", b"x")
    with mounted(world, tmp_path) as tree:
        assert tree.listdir() == [b"f"]
    world.put("g", b"y")
    world.hook = lambda method, path: time.sleep(0.6 if method == "GET" else 0) or 0
    with mounted(world, tmp_path) as tree:
        assert tree.listdir() == [b"f", b"g"]
        assert not fs_of(tree).web.offline


def test_who_opens_one_file_after_the_other_has_the_next_ones_asked_about(world: World, tmp_path: Path) -> None:
    for number in range(40):
        world.put(f"f{number:03}", b"%d" % number)
    world.delay = 0.01
    with mounted(world, tmp_path) as tree:
        assert tree.read_file("f000") == b"0"
        assert tree.read_file("f020") == b"20"
        assert world.count("HEAD") == 2
        assert [tree.read_file(f"f{number:03}") for number in range(40)] == [b"%d" % number for number in range(40)]
        assert world.count("HEAD") == 40
        assert 2 <= world.most_busy <= 7
