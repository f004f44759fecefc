"""What real servers show of a directory of odd names is what is in it."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest
from webservers import Apache, Caddy, Lighttpd, Nginx, PythonServer, Server

from pyfusekit.fs.httpfs import listing
from pyfusekit.fs.httpfs.values import Entry, Listing

SECOND = 1_000_000_000
MINUTE = 60 * SECOND
CHANGED = 1_795_429_439 * SECOND
"""2026-11-23 10:23:59 UTC."""

ODD = [
    b"plain.txt",
    b"no-suffix",
    b"a b",
    b" leading space",
    b"trailing space ",
    b"two  spaces",
    b"tab\there",
    b"new\nline",
    b"control\x01",
    b"hash#tag",
    b"question?mark",
    b"percent%41",
    b"percent%",
    b"100%25",
    b"a%2Fb",
    b"amp&amp;amp",
    b"amp&lt",
    b"semi;colon",
    b"plus+plus",
    b"equals=x",
    b"at@home",
    b"colon:name",
    b"http:evil",
    b"javascript:x",
    b"comma,",
    b"dollar$",
    b"star*",
    b"paren(1)[2]{3}",
    b"pipe|caret^tick`",
    b"back\\slash",
    b"quote'single",
    b'quote"double',
    b"<b>bold</b>".replace(b"/", b""),
    b"less<greater>",
    b"tilde~",
    b"exclaim!",
    b".dot",
    b"..two",
    b"...",
    b"name..>",
    "é-precomposed".encode(),
    "é-combining".encode(),
    "日本語".encode(),
    "😀".encode(),
    "\u202eright-to-left".encode(),
    "\u00a0no-break".encode(),
    b"\xff\xfe-bytes",
    b"caf\xe9",
    b"x" * 255,
    ("é" * 127).encode(),
    b"index.md",
    b"Parent Directory",
    b"?C=N;O=D",
]
DIRECTORIES = [b"sub", b"sub dir", "répertoire".encode(), b"dir%20", b"empty", b"d" * 200]


class Told(NamedTuple):
    """What a server's page tells."""

    sizes: str
    """exact, small (exact below 973 bytes), rounded, none."""
    unit: int
    """Of times, in ns; 0 is none."""
    hidden: bool = False
    """Names that begin with a dot are not shown."""
    driver: str = ""
    refused: tuple[bytes, ...] = ()
    """Names that are shown, but not served."""


UNSERVED = (b"tab\there", b"new\nline", b"control\x01", b"\xff\xfe-bytes")
"""lighttpd answers 400 to control characters and the byte 0xFF."""
Make = Callable[[Path], Server]
SERVERS: dict[str, tuple[Make, Told]] = {
    "nginx-html": (Nginx, Told("exact", MINUTE, True, "nginx")),
    "nginx-html-rounded": (lambda root: Nginx(root, exact=False), Told("small", MINUTE, True, "nginx")),
    "nginx-json": (lambda root: Nginx(root, autoindex="json"), Told("exact", SECOND, True, "nginx-json")),
    "nginx-xml": (lambda root: Nginx(root, autoindex="xml"), Told("exact", SECOND, True, "nginx-xml")),
    "apache-plain": (lambda root: Apache(root, style="plain"), Told("none", 0, False, "apache")),
    "apache-fancy": (lambda root: Apache(root, style="fancy"), Told("small", MINUTE, False, "apache")),
    "apache-table": (lambda root: Apache(root, style="table"), Told("small", MINUTE, False, "apache")),
    "lighttpd": (Lighttpd, Told("rounded", SECOND, False, "lighttpd", refused=UNSERVED)),
    "caddy-html": (Caddy, Told("exact", SECOND, False, "caddy")),
    "caddy-json": (Caddy, Told("exact", 1, False, "caddy-json")),
    "python": (PythonServer, Told("none", 0, False, "python")),
    "dav-nginx": (lambda root: Nginx(root, dav=True), Told("exact", SECOND, True, "webdav")),
    "dav-apache": (lambda root: Apache(root, dav=True), Told("exact", SECOND, False, "webdav")),
    "dav-lighttpd": (lambda root: Lighttpd(root, dav=True), Told("exact", SECOND, False, "webdav", refused=UNSERVED)),
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with each of ODD, some larger files, and DIRECTORIES."""
    root = tmp_path_factory.mktemp("served")
    place = os.fsencode(root)
    for number, name in enumerate(ODD):
        path = os.path.join(place, name)
        Path(os.fsdecode(path)).write_bytes(b"x" * (number * 7))
        os.utime(path, ns=(CHANGED, CHANGED - number * 3661 * SECOND))
    for name, size in (("kibibytes", 1234), ("mebibytes", 123_456_789), ("gibibytes", 5 << 30)):
        (root / name).touch()
        os.truncate(root / name, size)
        os.utime(root / name, ns=(CHANGED, CHANGED))
    for name in DIRECTORIES:
        os.mkdir(os.path.join(place, name))
    inside = os.path.join(place, "répertoire".encode(), b"in & below")
    Path(os.fsdecode(inside)).write_bytes(b"12345")
    return root


def ask(server: Server, kind: str, url: str = "") -> Listing:
    headers = {"Accept": "text/html" if kind == "caddy-html" else listing.ACCEPT}
    method, body = "GET", None
    if kind.startswith("dav-"):
        method, body = "PROPFIND", listing.PROPFIND
        headers |= {"Depth": "1", "Content-Type": "application/xml"}
    request = urllib.request.Request(url or server.url, body, headers, method=method)
    with urllib.request.urlopen(request, timeout=20) as answer:
        lines: list[str] = []
        found = listing.parse(answer.url, answer.headers.get("Content-Type", ""), answer.read(), skipped=lines.append)
    assert lines == []
    assert found is not None
    return found


def check(entry: Entry, path: bytes, told: Told) -> None:
    """See that *entry* is what is at *path*, as far as the server tells."""
    status = os.stat(path)
    if entry.is_dir:
        assert os.path.isdir(path)
        assert (entry.size, entry.exact) == (None, False)
        assert urlsplit(entry.url).path.endswith("/")
    else:
        assert os.path.isfile(path)
        if told.sizes == "none":
            assert entry.size is None
        elif told.sizes == "exact" or (told.sizes == "small" and status.st_size < 973):
            assert (entry.size, entry.exact) == (status.st_size, True)
        elif status.st_size >= 1000:
            assert entry.size is not None
            if not entry.exact:
                assert abs(entry.size - status.st_size) <= status.st_size * 0.06
            else:
                assert entry.size == status.st_size
        else:
            assert not entry.exact
    if told.unit == 0:
        assert entry.mtime_ns is None
    else:
        assert entry.mtime_ns == status.st_mtime_ns - status.st_mtime_ns % told.unit


@pytest.mark.parametrize("kind", SERVERS)
def test_a_directory_of_odd_names_is_listed_as_it_is(kind: str, tree: Path) -> None:
    make, told = SERVERS[kind]
    place = os.fsencode(tree)
    with make(tree) as server:
        found = ask(server, kind)
        assert found.driver == told.driver
        assert found.next_url == ""
        expected = {name for name in os.listdir(place) if not (told.hidden and name.startswith(b"."))}
        assert sorted(os.fsencode(entry.name) for entry in found.entries) == sorted(expected)
        for entry in found.entries:
            check(entry, os.path.join(place, os.fsencode(entry.name)), told)
        # What a listing says of a file's place is where the file is.
        for entry in found.entries:
            if not entry.is_dir and os.fsencode(entry.name) not in told.refused:
                request = urllib.request.Request(entry.url, headers={"Accept": "*/*"}, method="HEAD")
                with urllib.request.urlopen(request, timeout=20) as answer:
                    size = os.stat(os.path.join(place, os.fsencode(entry.name))).st_size
                    assert int(answer.headers.get("Content-Length", 0)) == size, entry
        (below,) = (entry for entry in found.entries if entry.name == "répertoire")
        assert [entry.name for entry in ask(server, kind, below.url).entries] == ["in & below"]
        (empty,) = (entry for entry in found.entries if entry.name == "empty")
        assert ask(server, kind, empty.url).entries == []


@pytest.mark.parametrize("make", [Nginx, Apache, Lighttpd])
def test_servers_ask_for_the_password_they_were_given(make: Callable[..., Server], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("secret")
    with make(tmp_path, auth=("me", "word")) as server:
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(server.url + "file", timeout=20)
        manager = urllib.request.HTTPPasswordMgrWithPriorAuth()
        manager.add_password(None, server.url, "me", "word", is_authenticated=True)
        opener = urllib.request.build_opener(urllib.request.HTTPBasicAuthHandler(manager))
        with opener.open(server.url + "file", timeout=20) as answer:
            assert answer.read() == b"secret"


@pytest.mark.parametrize("make", [Nginx, Apache, Lighttpd])
def test_dav_servers_take_files(make: Callable[..., Server], tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    with make(root, dav=True) as server:
        for method, url, body in (("MKCOL", "new/", None), ("PUT", "new/file", b"content"), ("DELETE", "new/", None)):
            urllib.request.urlopen(urllib.request.Request(server.url + url, body, method=method), timeout=20).close()
            if method == "PUT":
                assert (root / "new" / "file").read_bytes() == b"content"
                (entry,) = ask(server, "dav-any", server.url + "new/").entries
                assert (entry.name, entry.size) == ("file", 7)
        assert list(root.iterdir()) == []


@pytest.mark.parametrize("make", [Nginx, Apache, Caddy, PythonServer])
def test_servers_tell_what_they_were_asked(make: Callable[..., Server], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with make(tmp_path) as server:
        for _ in range(2):
            urllib.request.urlopen(server.url + "file", timeout=20).close()
        # The last line may come a moment later.
        assert "GET /file" in server.requests()


def test_a_missing_program_is_an_error_with_its_package(tmp_path: Path) -> None:
    class Missing(Nginx):
        program = "no-such-program"

    with pytest.raises(RuntimeError, match="apt-get install nginx"), Missing(tmp_path):
        pass


def test_a_server_is_gone_when_its_block_ends(tmp_path: Path) -> None:
    with Nginx(tmp_path) as server:
        scratch, url = server.scratch, server.url
        assert scratch.is_dir()
    assert not scratch.exists()
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(url, timeout=20)
