"""An HTTP proxy before an object store that does to requests and answers what networks and stores do on a bad day.

As a program: ``python faultproxy.py UPSTREAM-URL [SECONDS-OF-LATENCY]`` prints its URL and serves until its input ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import hmac
import re
import socket
import struct
import sys
import termios
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

CONDITIONS = ("if-match", "if-none-match", "x-amz-copy-source-if-match")
"""The headers a store without conditions passes over."""
_CHUNK = 1 << 18
_HEAD_MAX = 1 << 16


@dataclass
class Fault:
    """What happens to requests; the first fault of the proxy's that matches one, and has *times* left, has it.

    A request matches when *method*, *path* (unquoted, "/bucket/key") and *query* (as sent), regular expressions, are found
    in its; *skip* matching ones pass first. What is done to it, in this order, all of what is set:
    """

    method: str = ""
    path: str = ""
    query: str = ""
    times: float = 1
    skip: int = 0
    latency: float = 0.0
    """Wait so many seconds."""
    hold: bool = False
    """Wait until release()."""
    reset: bool = False
    """Break the connection; the store never sees the request."""
    status: int = 0
    """Answer with this status and an S3 error *code*; the store never sees the request. 200 is the error in a good answer."""
    code: str = "InternalError"
    body: bytes | None = None
    """The body of that answer instead of an error."""
    strip: tuple[str, ...] = ()
    """Take these headers (lower case) off the request, and sign it again."""
    apply: bool = False
    """Let the store do the request before *status* is answered."""
    lose: bool = False
    """Let the store do the request, then break the connection without an answer."""
    headers: dict[str, str] = field(default_factory=dict)
    """Change the answer's headers; an empty value removes one."""
    flip: int | None = None
    """Change the bits of the byte at this place of the answer's body."""
    stall: int | None = None
    """Stop after so many bytes of the answer's body until release(); -1: before its headers."""
    truncate: int | None = None
    """End the connection in good order after so many bytes of the answer's body."""
    reset_at: int | None = None
    """Break it there."""
    met: int = 0
    """How many requests it has had."""
    _released: bool = False
    _waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = field(default_factory=list)

    def release(self) -> None:
        """End the waiting of *hold* and *stall*; from any thread."""
        self._released = True
        for loop, event in self._waiting:
            with contextlib.suppress(RuntimeError):  # the proxy is closed
                loop.call_soon_threadsafe(event.set)

    async def released(self) -> None:
        """Wait for release()."""
        event = asyncio.Event()
        self._waiting.append((asyncio.get_running_loop(), event))
        if not self._released:
            await event.wait()

    def matches(self, seen: Seen) -> bool:
        """Say whether it is meant for a request, and count that."""
        if self.times <= 0 or not seen.matches(self.method, self.path, self.query):
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        self.times -= 1
        self.met += 1
        return True


@dataclass
class Seen:
    """A request that came."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    when: float
    status: int = 0
    """Of the answer the client got; 0 while there is none."""

    def matches(self, method: str = "", path: str = "", query: str = "") -> bool:
        """Say whether these regular expressions are found in it."""
        return bool(re.fullmatch(method or ".*", self.method) and re.search(path, self.path) and re.search(query, self.query))


class Head:
    """The first line and the headers of a message, in their order."""

    def __init__(self, raw: bytes) -> None:
        lines = raw.decode("latin-1").split("\r\n")
        self.line = lines[0]
        self.headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines[1:] if line)]

    def get(self, name: str) -> str:
        return next((value for key, value in self.headers if key.lower() == name), "")

    def remove(self, name: str) -> None:
        self.headers = [pair for pair in self.headers if pair[0].lower() != name.lower()]

    def set(self, name: str, value: str) -> None:
        self.remove(name)
        if value:
            self.headers.append((name, value))

    def __bytes__(self) -> bytes:
        lines = [self.line, *(f"{name}: {value}" for name, value in self.headers), "", ""]
        return "\r\n".join(lines).encode("latin-1")


class Broken(Exception):
    """The client's connection is to end: at once (reset) or in good order."""

    def __init__(self, reset: bool) -> None:
        super().__init__("reset" if reset else "closed")
        self.reset = reset


class FaultProxy:
    """``with FaultProxy(server.url) as proxy:`` has ``proxy.url``. It lives in a thread of its own.

    The Host header and with it the signature pass unchanged; where headers are taken off, *secret* signs again.
    """

    def __init__(self, upstream: str, *, secret: str = "testing", latency: float = 0.0) -> None:
        parts = urlsplit(upstream)
        self.upstream = (parts.hostname or "127.0.0.1", parts.port or 80)
        self.secret = secret
        self.latency = latency
        """Seconds added to each request."""
        self.down = False
        """Break every connection as soon as something comes."""
        self.url = ""
        self.seen: list[Seen] = []
        self.under_way = 0
        self.most_under_way = 0
        self._faults: list[Fault] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        """Of connections whose task has not ended them."""
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="faultproxy", daemon=True)

    def __enter__(self) -> FaultProxy:
        self._thread.start()
        self._ready.wait(10)
        return self

    def __exit__(self, *exc: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        self._loop.close()

    # What a test says and asks; from any thread.

    def add(self, fault: Fault) -> Fault:
        """Let a fault happen from now on, before those that were added earlier; return it."""
        self._faults.insert(0, fault)
        return fault

    def clear(self) -> None:
        """Forget all faults and all requests."""
        for fault in self._faults:
            fault.release()
        self._faults = []
        self.seen = []
        self.most_under_way = 0

    def count(self, method: str = "", path: str = "", query: str = "") -> int:
        """Return how many requests came that these regular expressions are found in."""
        return sum(seen.matches(method, path, query) for seen in list(self.seen))

    def wait_for(self, method: str = "", path: str = "", query: str = "", *, times: int = 1) -> None:
        """Wait until so many of such requests came."""
        limit = time.monotonic() + 20
        while self.count(method, path, query) < times:
            assert time.monotonic() < limit, f"{method} {path}?{query} came {self.count(method, path, query)} times"
            time.sleep(0.005)

    # The loop.

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=_CHUNK)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._ready.set()
        await self._stop.wait()
        server.close()
        # A connection that was accepted a moment ago gets its task in the next rounds of the loop.
        for _ in range(3):
            await asyncio.sleep(0)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        # A task that was cancelled before it ran has closed nothing.
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.sleep(0)
        await server.wait_closed()
        await self._loop.shutdown_asyncgens()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # What was drained is sent: a reset takes back nothing of it.
        writer.transport.set_write_buffer_limits(high=0)
        self._writers.add(writer)
        task = self._loop.create_task(Connection(self, reader, writer).serve())
        self._tasks.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if not task.cancelled():
                self._writers.discard(writer)

        task.add_done_callback(ended)

    def fault_of(self, seen: Seen) -> Fault:
        """Return what is to happen to a request."""
        return next((fault for fault in list(self._faults) if fault.matches(seen)), Fault())


class Connection:
    """A client's connection, and ours to the store for it."""

    def __init__(self, proxy: FaultProxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.proxy = proxy
        self.reader = reader
        self.writer = writer
        self.upstream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def serve(self) -> None:
        """Pass requests on until somebody ends it."""
        reset = True
        try:
            while await self._one():
                pass
            reset = False
        except Broken as broken:
            reset = broken.reset
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            await self._close_upstream()
            await _close(self.writer, reset)

    async def _one(self) -> bool:
        """Pass one request on and its answer back; return whether another may follow."""
        head = await _head(self.reader)
        if head is None:
            return False
        if self.proxy.down:
            raise Broken(reset=True)
        method, target, _ = head.line.split(" ", 2)
        path, _, query = target.partition("?")
        headers = {name.lower(): value for name, value in head.headers}
        seen = Seen(method, unquote(path), query, headers, time.monotonic())
        self.proxy.seen.append(seen)
        self.proxy.under_way += 1
        self.proxy.most_under_way = max(self.proxy.most_under_way, self.proxy.under_way)
        try:
            return await self._answer(head, method, seen, self.proxy.fault_of(seen))
        finally:
            self.proxy.under_way -= 1

    async def _answer(self, head: Head, method: str, seen: Seen, fault: Fault) -> bool:
        if wait := self.proxy.latency + fault.latency:
            await asyncio.sleep(wait)
        if fault.hold:
            await fault.released()
        if fault.reset:
            raise Broken(reset=True)
        if head.get("expect"):
            self.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            head.remove("expect")
        body = _body(self.reader, head)
        if fault.status and not fault.apply:
            async for _ in body:
                pass
            return await self._say(method, seen, fault)
        if fault.strip:
            for name in fault.strip:
                head.remove(name)
            sign_again(head, self.proxy.secret)
        answer = await self._ask(head, body)
        assert self.upstream is not None
        reader = self.upstream[0]
        pieces = _body(reader, answer, method)
        if fault.lose or fault.status:
            async for _ in pieces:
                pass
            if fault.lose:
                raise Broken(reset=True)
            return await self._say(method, seen, fault)
        await self._pass_on(answer, pieces, seen, fault)
        if answer.get("connection").lower() == "close":
            await self._close_upstream()
            return False
        return head.get("connection").lower() != "close"

    async def _ask(self, head: Head, body: AsyncIterator[bytes]) -> Head:
        """Send a request to the store and return the head of its answer."""
        if self.upstream is not None and self.upstream[0].at_eof():
            await self._close_upstream()
        if self.upstream is None:
            self.upstream = await asyncio.open_connection(*self.proxy.upstream, limit=_CHUNK)
        reader, writer = self.upstream
        writer.write(bytes(head))
        await _send(writer, head, body)
        while True:
            answer = await _head(reader)
            if answer is None:
                raise ConnectionResetError("the store ended the connection")
            if not answer.line.startswith("HTTP/1.1 100"):
                return answer

    async def _pass_on(self, answer: Head, pieces: AsyncIterator[bytes], seen: Seen, fault: Fault) -> None:
        """Send an answer to the client, with what *fault* does to it."""
        for name, value in fault.headers.items():
            answer.set(name, value)
        if fault.stall == -1:
            await fault.released()
        seen.status = int(answer.line.split(" ")[1])
        self.writer.write(bytes(answer))
        await _send(self.writer, answer, self._spoilt(pieces, fault))

    async def _spoilt(self, pieces: AsyncIterator[bytes], fault: Fault) -> AsyncIterator[bytes]:
        """Yield the body of an answer with what *fault* does to it."""
        position = 0
        async for piece in pieces:
            start, position = position, position + len(piece)
            if fault.flip is not None and start <= fault.flip < position:
                changed = bytearray(piece)
                changed[fault.flip - start] ^= 0xFF
                piece = bytes(changed)
            for place in (fault.stall, fault.truncate, fault.reset_at):
                if place is not None and start <= place < position:
                    if place > start:
                        yield piece[: place - start]
                    if place != fault.stall:
                        raise Broken(reset=place == fault.reset_at)
                    await fault.released()
                    start, piece = place, piece[place - start :]
            yield piece

    async def _say(self, method: str, seen: Seen, fault: Fault) -> bool:
        """Answer with a fault's own words."""
        resource = seen.path.replace("&", "&amp;").replace("<", "&lt;")
        text = (
            '<?xml version="1.0" encoding="UTF-8"?>\n'
            f"<Error><Code>{fault.code}</Code><Message>said by the fault proxy</Message>"
            f"<Resource>{resource}</Resource><RequestId>FAULT{fault.met}</RequestId></Error>"
        )
        body = fault.body if fault.body is not None else text.encode()
        answer = Head(f"HTTP/1.1 {fault.status} Said".encode())
        answer.headers = [
            ("Content-Type", "application/xml"),
            ("Content-Length", str(len(body))),
            ("x-amz-request-id", f"FAULT{fault.met}"),
            *fault.headers.items(),
        ]
        seen.status = fault.status
        self.writer.write(bytes(answer) + (b"" if method == "HEAD" else body))
        await self.writer.drain()
        return True

    async def _close_upstream(self) -> None:
        if self.upstream is not None:
            writer, self.upstream = self.upstream[1], None
            await _close(writer, reset=False)


async def _close(writer: asyncio.StreamWriter, reset: bool) -> None:
    if reset:
        raw: socket.socket = writer.get_extra_info("socket")
        with contextlib.suppress(OSError, ValueError):
            await _acknowledged(raw.fileno())
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def _acknowledged(fd: int) -> None:
    """Wait until the other side has what was sent, at most a second: a reset throws away what is on its way."""
    for _ in range(500):
        if fd < 0 or struct.unpack("i", fcntl.ioctl(fd, termios.TIOCOUTQ, bytes(4))) == (0,):
            return
        await asyncio.sleep(0.002)


async def _send(writer: asyncio.StreamWriter, head: Head, pieces: AsyncIterator[bytes]) -> None:
    """Send the body of a message, framed as its *head* says."""
    chunked = "chunked" in head.get("transfer-encoding").lower()
    async for piece in pieces:
        writer.write(b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece)
        await writer.drain()
    if chunked:
        writer.write(b"0\r\n\r\n")
    await writer.drain()


async def _head(reader: asyncio.StreamReader) -> Head | None:
    """Read a message's head; None when the connection ended before one."""
    try:
        return Head((await reader.readuntil(b"\r\n\r\n"))[:-4])
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise
        return None


async def _body(reader: asyncio.StreamReader, head: Head, method: str = "") -> AsyncIterator[bytes]:
    """Yield a message's body without its chunks' framing; *method* is that of the request an answer belongs to."""
    is_answer = head.line.startswith("HTTP/")
    if is_answer and (method == "HEAD" or head.line.split(" ")[1] in ("204", "304")):
        return
    if "chunked" in head.get("transfer-encoding").lower():
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            yield await reader.readexactly(size)
            await reader.readexactly(2)
        while await reader.readuntil(b"\r\n") != b"\r\n":
            pass
        return
    length = head.get("content-length")
    if not length and not is_answer:
        return
    left = int(length) if length else sys.maxsize
    while left:
        piece = await reader.read(min(left, _CHUNK))
        if not piece:
            if length:
                raise ConnectionResetError("a body ended early")
            return
        left -= len(piece)
        yield piece


def sign_again(head: Head, secret: str) -> None:
    """Sign what is left of a signed request (AWS Signature Version 4, as S3 has it: paths are escaped once)."""
    found = re.fullmatch(
        r"(AWS4-HMAC-SHA256) Credential=(\S+?), ?SignedHeaders=(\S+?), ?Signature=\w+", head.get("authorization")
    )
    if found is None:
        return
    method, target, _ = head.line.split(" ", 2)
    path, _, query = target.partition("?")
    parameters = sorted(tuple(part.partition("=")[::2]) for part in query.split("&") if part)
    names = [name for name in found[3].split(";") if head.get(name)]
    canonical = [
        method,
        path,
        "&".join(f"{name}={value}" for name, value in parameters),
        *(f"{name}:{' '.join(head.get(name).split())}" for name in names),
        "",
        ";".join(names),
        head.get("x-amz-content-sha256"),
    ]
    _, *scope = found[2].split("/")
    hashed = hashlib.sha256("\n".join(canonical).encode("latin-1")).hexdigest()
    text = "\n".join((found[1], head.get("x-amz-date"), "/".join(scope), hashed))
    key = f"AWS4{secret}".encode()
    for part in (*scope, text):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    value = f"{found[1]} Credential={found[2]}, SignedHeaders={';'.join(names)}, Signature={key.hex()}"
    head.set("authorization", value)


def main(read: Callable[[], object] = sys.stdin.read) -> None:
    """Serve as a program."""
    latency = float(sys.argv[2]) if len(sys.argv) > 2 else 0.0
    with FaultProxy(sys.argv[1], latency=latency) as proxy:
        print(proxy.url, flush=True)
        read()


if __name__ == "__main__":
    main()
