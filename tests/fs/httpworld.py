"""A small web server whose files can be changed, that counts what it is asked, and that can go away; and mounts of it.

It shows directories as nginx does, in HTML or JSON, as Apache does (sizes that are rounded), or not at all.
"""

from __future__ import annotations

import email.utils
import errno
import html
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from pyfusekit.fs.httpfs import HttpFS, HttpOptions
from pyfusekit.testing.fake import FakeMount, FakeTree

OLD = 1_700_000_000
"""When files were changed: minutes and seconds are not 0 on purpose."""


@dataclass
class Served:
    """A file of the server."""

    data: bytes
    mtime: int = OLD
    etag: str = ""
    headers: dict[str, str] = field(default_factory=dict)


class World:
    """Files by path, without a slash in front. *style*: nginx, json, apache, plain (a page without a listing), forbidden."""

    def __init__(self, style: str = "nginx") -> None:
        self.style = style
        self.files: dict[str, Served] = {}
        self.folders: set[str] = set()
        self.asked: Counter[str] = Counter()
        """"GET /path" -> how often."""
        self.log: list[tuple[str, str, dict[str, str]]] = []
        self.validators = False
        """Listings carry an ETag."""
        self.chunked = False
        self.delay = 0.0
        self.busy = 0
        self.most_busy = 0
        self.hook: Callable[[str, str], int] | None = None
        """Called with method and path; a status other than 0 is answered."""
        self.special: Callable[[Any, str], bool] | None = None
        """Called with the handler and a path; True: it has answered."""
        self.lock = threading.Lock()
        self.server: ThreadingHTTPServer | None = None
        self.port = 0

    def put(self, path: str, data: bytes = b"", mtime: int = OLD, **more: Any) -> None:
        """Make or replace a file."""
        self.files[path] = Served(data, mtime, f'"{abs(hash((data, mtime))):x}"', **more)

    # Its life.

    def start(self) -> World:
        """Serve, on the port it had before if any."""
        world = self

        class Handler(_Handler):
            pass

        Handler.world = world
        server = _Server(("127.0.0.1", self.port), Handler)
        self.server, self.port = server, server.server_address[1]
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def stop(self) -> None:
        """Be gone: connections are refused, those that are open are closed."""
        if self.server is not None:
            server, self.server = self.server, None
            server.shutdown()
            server.close_all()
            server.server_close()

    def __enter__(self) -> World:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def forget(self) -> None:
        """Begin to count anew."""
        self.asked.clear()
        self.log.clear()

    def count(self, word: str) -> int:
        """Return how many requests matched a pattern, of "METHOD /path"."""
        return sum(number for line, number in self.asked.items() if re.search(word, line))

    # What it shows.

    def children(self, folder: str) -> dict[str, Served | None]:
        """Return the names of a folder ("" or ending in a slash), None for a folder in it."""
        found: dict[str, Served | None] = {}
        for path, served in self.files.items():
            if path.startswith(folder):
                name, slash, _ = path[len(folder) :].partition("/")
                found[name] = None if slash else served
        for path in self.folders:
            if path.startswith(folder) and path != folder:
                found[path[len(folder) :].partition("/")[0]] = None
        return dict(sorted(found.items()))

    def is_folder(self, folder: str) -> bool:
        return not folder or folder in self.folders or any(path.startswith(folder) for path in self.files)

    def listing(self, folder: str) -> tuple[str, bytes]:
        """Return content type and body of a folder's page."""
        rows = self.children(folder)
        if self.style == "json":
            items = []
            for name, served in rows.items():
                moment = email.utils.formatdate(served.mtime if served else OLD, usegmt=True)
                item: dict[str, Any] = {"name": name, "type": "file" if served else "directory", "mtime": moment}
                if served:
                    item["size"] = len(served.data)
                items.append(item)
            return "application/json", json.dumps(items).encode()
        if self.style == "plain":
            return "text/html", b"<html><body><p>It works!</p></body></html>"
        lines = []
        for name, served in rows.items():
            shown = name if served else f"{name}/"
            moment = time.gmtime(served.mtime if served else OLD)
            if self.style == "apache":
                stamp = time.strftime("%Y-%m-%d %H:%M", moment)
                size = "-" if served is None else rounded(len(served.data))
                lines.append(
                    f'<tr><td valign="top"><img src="/icons/unknown.gif" alt="[   ]"></td><td><a href="{quote(shown)}">'
                    f'{html.escape(shown)}</a></td><td align="right">{stamp}  </td><td align="right">{size}</td>'
                    "<td>&nbsp;</td></tr>"
                )
            else:
                stamp = time.strftime("%d-%b-%Y %H:%M", moment)
                size = "-" if served is None else str(len(served.data))
                lines.append(f'<a href="{quote(shown)}">{html.escape(shown)}</a> {stamp} {size:>20}')
        title = f"Index of /{html.escape(folder)}"
        if self.style == "apache":
            head = (
                '<!DOCTYPE HTML PUBLIC "-//W3C//DTD HTML 3.2 Final//EN">\n<html>\n <head>\n  <title>' + title + "</title>\n"
                " </head>\n <body>\n<h1>" + title + '</h1>\n  <table>\n   <tr><th valign="top"><img src="/icons/blank.gif" '
                'alt="[ICO]"></th><th><a href="?C=N;O=D">Name</a></th><th><a href="?C=M;O=A">Last modified</a></th><th>'
                '<a href="?C=S;O=A">Size</a></th><th><a href="?C=D;O=A">Description</a></th></tr>\n'
                '   <tr><th colspan="5"><hr></th></tr>\n'
            )
            tail = '   <tr><th colspan="5"><hr></th></tr>\n</table>\n</body></html>\n'
            return "text/html;charset=UTF-8", (head + "\n".join(lines) + "\n" + tail).encode()
        head = f'<html>\r\n<head><title>{title}</title></head>\r\n<body>\r\n<h1>{title}</h1><hr><pre><a href="../">../</a>\r\n'
        return "text/html", (head + "\r\n".join(lines) + "\r\n</pre><hr></body>\r\n</html>\r\n").encode()


def rounded(size: int) -> str:
    """Return a size as Apache writes it."""
    if size < 1000:
        return str(size)
    return f"{size / 1024:.1f}K" if size < 10 * 1024 else f"{size / 1024:.0f}K"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, *args: Any) -> None:
        self.sockets: set[Any] = set()
        super().__init__(*args)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.sockets.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.sockets.discard(request)
        super().shutdown_request(request)

    def close_all(self) -> None:
        import contextlib
        import socket

        for request in list(self.sockets):
            with contextlib.suppress(OSError):
                request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    world: World

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def do_OPTIONS(self) -> None:
        self._note()
        self._answer(200, {"allow": "GET, HEAD"}, b"")

    def _note(self) -> str:
        world = self.world
        path = unquote(urlsplit(self.path).path, errors="surrogateescape")
        with world.lock:
            world.asked[f"{self.command} {path}"] += 1
            world.log.append((self.command, path, {name.lower(): value for name, value in self.headers.items()}))
        return path

    def _serve(self) -> None:
        world = self.world
        path = self._note()
        with world.lock:
            world.busy += 1
            world.most_busy = max(world.busy, world.most_busy)
        try:
            if world.delay:
                time.sleep(world.delay)
            status = world.hook(self.command, path) if world.hook is not None else 0
            if status:
                self._answer(status, {}, b"no")
                return
            if world.special is not None and world.special(self, path):
                return
            self._find(path.removeprefix("/"))
        finally:
            with world.lock:
                world.busy -= 1

    def _find(self, path: str) -> None:
        world = self.world
        if path in world.files:
            self._file(world.files[path])
        elif (not path or path.endswith("/")) and world.is_folder(path):
            if world.style == "forbidden":
                self._answer(403, {}, b"forbidden")
                return
            kind, body = world.listing(path)
            headers = {"content-type": kind}
            if world.validators:
                headers["etag"] = f'"{hash(body) & 0xFFFFFFFF:x}"'
                if self.headers.get("if-none-match") == headers["etag"]:
                    self._answer(304, headers, b"")
                    return
            self._answer(200, headers, body)
        elif world.is_folder(f"{path}/"):
            self._answer(301, {"location": quote(f"/{path}/")}, b"")
        else:
            self._answer(404, {}, b"not found")

    def _file(self, served: Served) -> None:
        headers = {
            "last-modified": email.utils.formatdate(served.mtime, usegmt=True),
            "content-type": "application/octet-stream",
            "accept-ranges": "bytes",
            **served.headers,
        }
        if served.etag:
            headers["etag"] = served.etag
        if self.world.chunked:
            self._chunked(headers, served.data)
            return
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", ""))
        condition = self.headers.get("if-range")
        if wanted is None or (condition is not None and condition not in (served.etag, headers["last-modified"])):
            self._answer(200, headers, served.data)
            return
        total = len(served.data)
        start, end = int(wanted[1]), min(int(wanted[2] or total - 1), total - 1)
        if start >= total:
            self._answer(416, {"content-range": f"bytes */{total}"}, b"")
            return
        headers["content-range"] = f"bytes {start}-{end}/{total}"
        self._answer(206, headers, served.data[start : end + 1])

    def _chunked(self, headers: dict[str, str], data: bytes) -> None:
        self.send_response(200)
        for name, value in headers.items():
            if name != "accept-ranges":
                self.send_header(name, value)
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        if self.command == "GET":
            for start in range(0, len(data), 50_000):
                piece = data[start : start + 50_000]
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.wfile.write(b"0\r\n\r\n")

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status != 304:
            self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD" and status != 304:
            self.wfile.write(body)


def filesystem(world: World, home: Any, path: str = "", **options: Any) -> HttpFS:
    """Return a filesystem of the server, its cache below *home*."""
    return HttpFS(world.url + path, HttpOptions(cache_dir=str(home), **{"deadline": 3.0, "cache_size": 1 << 30, **options}))


@contextmanager
def mounted(world: World, home: Any, path: str = "", **options: Any) -> Iterator[FakeTree]:
    """Mount the server behind a fake kernel; at the end every lookup must be forgotten and every file closed."""
    mount = FakeMount(lambda: filesystem(world, home, path, **options))
    mount.start()
    try:
        yield FakeTree(mount)
        mount.drop_caches()
    finally:
        mount.finish()


def fs_of(tree: FakeTree) -> HttpFS:
    """Return the filesystem behind a tree."""
    fs = tree.mount.fs
    assert isinstance(fs, HttpFS)
    return fs


def read_again(tree: FakeTree, path: str) -> bytes:
    """Open and read a file as the kernel does (fs/namei.c): at ESTALE the path is looked up once more, in no cache."""
    try:
        return tree.read_file(path)
    except OSError as exc:
        if exc.errno != errno.ESTALE:
            raise
    # What the server says of the name is on its way to the kernel, too.
    time.sleep(0.05)
    tree.drop_caches()
    return tree.read_file(path)


def eventually(holds: Callable[[], bool], what: str) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)
