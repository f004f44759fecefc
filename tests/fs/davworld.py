"""WebDAV for the tests of writing: a small server that misbehaves when told to, a plain second client, and a Writer for both.

The real servers are those of webservers.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from aiohttp import web as aiohttp_web

from pyfusekit.fs.httpfs.client.web import Web
from pyfusekit.fs.httpfs.options import HttpOptions
from pyfusekit.fs.httpfs.values import Resource
from pyfusekit.fs.httpfs.webdav.staged import Staged
from pyfusekit.fs.httpfs.webdav.writing import Writer


@dataclass
class Body:
    """A file of the server."""

    data: bytes
    version: int
    mtime: int


@dataclass
class Fault:
    """What happens to the next request of a method."""

    method: str
    status: int = 0
    """Answered instead of doing it."""
    lost: bool = False
    """It is done, and the connection closed instead of an answer."""
    cut: int = 0
    """The connection is closed when so many bytes of the body have come, and nothing is done."""
    before: Callable[[], None] | None = None
    """Somebody else's change, a moment before it is done."""
    after: Callable[[], None] | None = None
    """Somebody else's change, a moment after it was done and before the answer."""
    times: int = 1
    header: str = ""
    """Only a request that carries this header."""


@dataclass
class FakeDav:
    """A WebDAV server of paths: bytes are files, None is a directory. Conditions, ETags and more can be turned off."""

    files: dict[str, Body | None] = field(default_factory=lambda: {"/": None})
    conditions: bool = True
    etags: str = "strong"
    """strong, weak, or none."""
    put_tells: bool = False
    """Whether the answer to a PUT has the ETag."""
    mtimes: bool = False
    """Whether X-OC-Mtime and PROPPATCH are honoured."""
    quota: tuple[int, int] | None = None
    propfind: bool = True
    dates: bool = True
    lies: bool = False
    """If-Match never holds."""
    early: Callable[[], None] | None = None
    """Called at a PUT before its body is read."""
    faults: list[Fault] = field(default_factory=list)
    seen: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    """Method, path and headers of each request."""
    url: str = ""
    _version: int = 0

    # The second client.

    def set(self, path: str, data: bytes | None, mtime: int | None = None) -> None:
        """Make *path* a file or a directory, as another client would."""
        self._version += 1
        self.files[path] = None if data is None else Body(data, self._version, mtime or int(time.time()))

    def get(self, path: str) -> bytes | None:
        """Return a file's bytes; None when there is none."""
        found = self.files.get(path)
        return None if found is None else found.data

    def names(self) -> list[str]:
        """Return all paths but the root."""
        return sorted(path for path in self.files if path != "/")

    def methods(self, *which: str) -> list[str]:
        """Return "METHOD path" of the requests of some methods."""
        return [f"{method} {path}" for method, path, _ in self.seen if method in which]

    # The server.

    async def serve(self) -> aiohttp_web.AppRunner:
        app = aiohttp_web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{tail:.*}", self._handle)
        runner = aiohttp_web.AppRunner(app, access_log=None, handler_cancellation=False)
        await runner.setup()
        site = aiohttp_web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
        return runner

    async def _handle(self, request: aiohttp_web.Request) -> aiohttp_web.StreamResponse:
        method = request.method
        path = unquote(request.rel_url.raw_path)
        if method == "PUT" and self.early is not None:
            self.early()
        self.seen.append((method, path, {name.lower(): value for name, value in request.headers.items()}))
        fault = next(
            (one for one in self.faults if one.method == method and (not one.header or one.header in request.headers)), None
        )
        if fault is not None:
            fault.times -= 1
            if not fault.times:
                self.faults.remove(fault)
            if fault.cut:
                got = 0
                async for piece in request.content.iter_chunked(65536):
                    got += len(piece)
                    if got >= fault.cut:
                        break
                return self._cut(request)
            if fault.status:
                await request.read()
                return aiohttp_web.Response(status=fault.status)
            if fault.before is not None:
                fault.before()
        answer: aiohttp_web.StreamResponse = getattr(self, f"_{method.lower()}", self._refuse)(
            request, path, await request.read()
        )
        if fault is not None and fault.after is not None:
            fault.after()
        if fault is not None and fault.lost:
            return self._cut(request)
        return answer

    def _cut(self, request: aiohttp_web.Request) -> aiohttp_web.Response:
        if request.transport is not None:
            request.transport.abort()
        return aiohttp_web.Response(status=500)

    def _refuse(self, request: Any, path: str, data: bytes) -> aiohttp_web.Response:
        return aiohttp_web.Response(status=405)

    def _etag(self, body: Body) -> str:
        return {"strong": f'"{body.version}"', "weak": f'W/"{body.version}"', "none": ""}[self.etags]

    def _key(self, path: str) -> str:
        return path.rstrip("/") or "/"

    def _parent(self, key: str) -> bool:
        return (key.rpartition("/")[0] or "/") in self.files and self.files[key.rpartition("/")[0] or "/"] is None

    def _holds(self, request: Any, key: str) -> bool:
        if not self.conditions:
            return True
        body = self.files.get(key)
        match, none_match = request.headers.get("If-Match"), request.headers.get("If-None-Match")
        since = request.headers.get("If-Unmodified-Since")
        if match is not None:
            return body is not None and match == self._etag(body) and not match.startswith("W/") and not self.lies
        if none_match == "*":
            return key not in self.files
        return since is None or body is None or since == formatdate(body.mtime, usegmt=True)

    def _describe(self, body: Body) -> dict[str, str]:
        headers = {"Content-Type": "application/octet-stream"}
        if self._etag(body):
            headers["ETag"] = self._etag(body)
        if self.dates:
            headers["Last-Modified"] = formatdate(body.mtime, usegmt=True)
        return headers

    def _get(self, request: Any, path: str, data: bytes) -> aiohttp_web.Response:
        key = self._key(path)
        if key not in self.files:
            return aiohttp_web.Response(status=404)
        body = self.files[key]
        if body is None:
            if not path.endswith("/"):
                return aiohttp_web.Response(status=301, headers={"Location": f"{quote(path)}/"})
            inside = key.rstrip("/") + "/"
            names = [one[len(inside) :] for one in self.files if one.startswith(inside) and one != "/"]
            links = "".join(
                f'<a href="{quote(name)}{"/" if self.files[inside + name] is None else ""}">{name}</a>\n'
                for name in names
                if name and "/" not in name
            )
            return aiohttp_web.Response(
                text=f"<html><title>Index of /</title><body>{links}</body></html>", content_type="text/html"
            )
        return aiohttp_web.Response(body=body.data, headers=self._describe(body))

    _head = _get

    def _put(self, request: Any, path: str, data: bytes) -> aiohttp_web.Response:
        key = self._key(path)
        if not self._holds(request, key):
            return aiohttp_web.Response(status=412)
        if not self._parent(key) or (key in self.files and self.files[key] is None):
            return aiohttp_web.Response(status=409)
        was = key in self.files
        mtime = request.headers.get("X-OC-Mtime") if self.mtimes else None
        self.set(key, data, int(mtime) if mtime else None)
        headers = {"X-OC-Mtime": "accepted"} if mtime else {}
        body = self.files[key]
        if self.put_tells and body is not None:
            headers["ETag"] = self._etag(body)
        return aiohttp_web.Response(status=204 if was else 201, headers=headers)

    def _mkcol(self, request: Any, path: str, data: bytes) -> aiohttp_web.Response:
        key = self._key(path)
        if key in self.files:
            return aiohttp_web.Response(status=405)
        if not self._parent(key):
            return aiohttp_web.Response(status=409)
        self.set(key, None)
        return aiohttp_web.Response(status=201)

    def _delete(self, request: Any, path: str, data: bytes) -> aiohttp_web.Response:
        key = self._key(path)
        if key not in self.files:
            return aiohttp_web.Response(status=404)
        if not self._holds(request, key):
            return aiohttp_web.Response(status=412)
        for one in [one for one in self.files if one == key or one.startswith(f"{key}/")]:
            del self.files[one]
        return aiohttp_web.Response(status=204)

    def _move(self, request: Any, path: str, data: bytes) -> aiohttp_web.Response:
        key = self._key(path)
        there = urlsplit(request.headers["Destination"])
        if f"{there.scheme}://{there.netloc}/" != self.url:
            return aiohttp_web.Response(status=502)
        to = self._key(unquote(there.path))
        if key not in self.files:
            return aiohttp_web.Response(status=404)
        if not self._parent(to):
            return aiohttp_web.Response(status=409)
        over = to in self.files
        if over and request.headers.get("Overwrite", "T") == "F":
            return aiohttp_web.Response(status=412)
        for one in [one for one in self.files if one == to or one.startswith(f"{to}/")]:
            del self.files[one]
        for one in [one for one in self.files if one == key or one.startswith(f"{key}/")]:
            self.files[to + one[len(key) :]] = self.files.pop(one)
        return aiohttp_web.Response(status=204 if over else 201)

    def _options(self, request: Any, path: str, data: bytes) -> aiohttp_web.Response:
        return aiohttp_web.Response(headers={"DAV": "1", "Allow": "OPTIONS,GET,HEAD,PUT,DELETE,MKCOL,MOVE,PROPFIND"})

    def _proppatch(self, request: Any, path: str, data: bytes) -> aiohttp_web.Response:
        body = self.files.get(self._key(path))
        status = "200 OK" if self.mtimes else "403 Forbidden"
        if self.mtimes and body is not None:
            from email.utils import parsedate_to_datetime

            text = data.decode().partition("getlastmodified>")[2].partition("<")[0]
            body.mtime = int(parsedate_to_datetime(text).timestamp())
        return self._multistatus(
            f"<D:response><D:href>{quote(path)}</D:href><D:propstat><D:prop><D:getlastmodified/></D:prop>"
            f"<D:status>HTTP/1.1 {status}</D:status></D:propstat></D:response>"
        )

    def _propfind(self, request: Any, path: str, data: bytes) -> aiohttp_web.Response:
        if not self.propfind:
            return aiohttp_web.Response(status=405)
        key = self._key(path)
        if key not in self.files:
            return aiohttp_web.Response(status=404)
        found = [key]
        if request.headers.get("Depth") == "1" and self.files[key] is None:
            inside = key.rstrip("/") + "/"
            found += [one for one in self.files if one.startswith(inside) and "/" not in one[len(inside) :] and one != key]
        return self._multistatus("".join(map(self._response, found)))

    def _response(self, key: str) -> str:
        body = self.files[key]
        props = "<D:resourcetype><D:collection/></D:resourcetype>"
        if body is not None:
            props = f"<D:resourcetype/><D:getcontentlength>{len(body.data)}</D:getcontentlength>"
            props += f"<D:getlastmodified>{formatdate(body.mtime, usegmt=True)}</D:getlastmodified>"
            props += f"<D:getetag>{self._etag(body)}</D:getetag>" if self._etag(body) else ""
        elif self.quota is not None:
            props += f"<D:quota-available-bytes>{self.quota[0]}</D:quota-available-bytes>"
            props += f"<D:quota-used-bytes>{self.quota[1]}</D:quota-used-bytes>"
        href = quote(key) + ("/" if body is None and key != "/" else "")
        return (
            f"<D:response><D:href>{href}</D:href><D:propstat><D:prop>{props}</D:prop>"
            "<D:status>HTTP/1.1 200 OK</D:status></D:propstat></D:response>"
        )

    def _multistatus(self, inside: str) -> aiohttp_web.Response:
        text = f'<?xml version="1.0" encoding="utf-8"?><D:multistatus xmlns:D="DAV:">{inside}</D:multistatus>'
        return aiohttp_web.Response(status=207, text=text, content_type="application/xml")


@dataclass
class World:
    """A Writer at a server, and what it said."""

    url: str
    web: Web
    writer: Writer
    staging: Path
    notes: list[str]
    problems: list[tuple[str, str, int, str, str]]
    """Operation, URL, errno, words, remedy."""

    async def open(self, name: str) -> Staged:
        """Return a Staged of what is at a name, with its bytes, as the first write to an open file makes it."""
        found = await self.resource(name)
        staged = self.writer.staging.stage(self.url + name, found)
        answer = await self.web.request("GET", self.url + name)
        staged.fill(0, answer.body)
        return staged

    async def resource(self, name: str) -> Resource:
        """Return the version that is at a name now."""
        found = await self.writer.dav.look(self.url + name)
        assert found is not None
        return found

    def new(self, name: str, data: bytes = b"") -> Staged:
        """Return a Staged of a file that is not there yet."""
        staged = self.writer.staging.stage(self.url + name, None)
        if data:
            staged.write(0, data)
        return staged

    def kept(self) -> dict[str, bytes]:
        """Return the copies that were kept: name -> bytes."""
        folder = self.staging / "http" / "kept"
        return {path.name: path.read_bytes() for path in folder.glob("*") if path.suffix != ".json"}

    def open_files(self) -> list[str]:
        """Return what is in the directory of the staging files."""
        folder = self.staging / "http" / "open"
        return sorted(path.name for path in folder.glob("*"))


@contextlib.asynccontextmanager
async def writing_to(url: str, staging: Path, **options: Any) -> AsyncIterator[World]:
    """Yield a Writer at *url*."""
    chosen = HttpOptions(rw=True, staging_dir=str(staging), netrc=False, **options)
    web = Web(chosen, url)
    await web.start()
    notes: list[str] = []
    problems: list[tuple[str, str, int, str, str]] = []

    def report(error: OSError, operation: str, place: str, remedy: str) -> None:
        problems.append((operation, place, error.errno or 0, error.strerror or "", remedy))

    writer = Writer(web, chosen, url, report=report, note=notes.append)
    try:
        yield World(url, web, writer, staging, notes, problems)
    finally:
        await web.close()


@contextlib.contextmanager
def served(fake: FakeDav) -> Iterator[FakeDav]:
    """Serve a FakeDav from a thread: for a mount, which is another process."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    runner = asyncio.run_coroutine_threadsafe(fake.serve(), loop).result(10)
    try:
        yield fake
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


@contextlib.asynccontextmanager
async def fake_world(staging: Path, fake: FakeDav | None = None, **options: Any) -> AsyncIterator[tuple[FakeDav, World]]:
    """Yield a FakeDav and a Writer at it."""
    fake = fake or FakeDav()
    runner = await fake.serve()
    try:
        async with writing_to(fake.url, staging, **options) as world:
            yield fake, world
    finally:
        await runner.cleanup()


__all__ = ["FakeDav", "Fault", "World", "fake_world", "served", "writing_to"]
