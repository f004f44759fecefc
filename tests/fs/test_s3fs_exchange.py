"""Requests and answers over connections of our own: what counts as an answer, and what becomes of the connection."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest

from pyfusekit.fs.s3fs.remote import exchange
from pyfusekit.fs.s3fs.remote.exchange import Connections, Lost, Reply, Sink, Unreachable

REQUEST = b"GET /k HTTP/1.1\r\nhost: x\r\n\r\n"
PLAIN = b'HTTP/1.1 200 OK\r\nContent-Length: 5\r\nETag: "e1"\r\n\r\nhello'
CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;name=value\r\nlo\r\n0\r\nx-amz-trailer: 1\r\n\r\n"
)


class Scripted:
    """Answers each request with the next of *answers*, piece by piece; None hangs up, an Event or seconds are waited for."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.connections = 0
        self.requests: list[bytes] = []
        self.hung_up = asyncio.Event()
        self.asked = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def begin(self) -> None:
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def end(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._tasks.add(asyncio.ensure_future(self._serve(reader, writer)))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                self.requests.append(await reader.readuntil(b"\r\n\r\n"))
                self.asked.set()
                answer = self.answers.pop(0)
                for piece in answer if isinstance(answer, list) else [answer]:
                    if piece is None:
                        return
                    if isinstance(piece, asyncio.Event):
                        if not await self._comes(piece, reader):
                            return
                        continue
                    if isinstance(piece, float):
                        await asyncio.sleep(piece)
                        continue
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0)
        except (asyncio.IncompleteReadError, ConnectionError):
            self.hung_up.set()
        finally:
            writer.close()

    async def _comes(self, event: asyncio.Event, reader: asyncio.StreamReader) -> bool:
        """Wait for *event*; return False when the client hangs up before."""
        both = [asyncio.ensure_future(event.wait()), asyncio.ensure_future(reader.read(1))]
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        for one in both:
            one.cancel()
        await asyncio.gather(*both, return_exceptions=True)
        if not event.is_set():
            self.hung_up.set()
        return event.is_set()


@contextlib.asynccontextmanager
async def serving(*answers: Any) -> AsyncIterator[tuple[Scripted, Connections]]:
    server = Scripted(*answers)
    await server.begin()
    connections = Connections("http", f"127.0.0.1:{server.port}", None, 5.0)
    try:
        yield server, connections
    finally:
        await connections.close()
        await server.end()


def into(pieces: list[bytes]) -> Sink:
    return Sink(lambda headers: None, pieces.append)


# Answers.


@pytest.mark.parametrize(
    ("answer", "status", "body"),
    [
        (PLAIN, 200, b"hello"),
        (CHUNKED, 200, b"hello"),
        ([b"HTTP/1.1 200 OK\r\n\r\nhel", b"lo", None], 200, b"hello"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
        (b"HTTP/1.1 304\r\nContent-Length: 9\r\n\r\n", 304, b""),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + PLAIN, 200, b"hello"),
        ([b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", PLAIN], 200, b"hello"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\ngone", 404, b"gone"),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", 200, b"ok"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 200, b""),
    ],
)
async def test_body_ends_where_its_head_says(answer: Any, status: int, body: bytes) -> None:
    async with serving(answer) as (_, connections):
        reply = await connections.ask(REQUEST)
        assert (reply.status, reply.body) == (status, body)


@pytest.mark.parametrize("answer", [PLAIN, CHUNKED, b"HTTP/1.1 100 Continue\r\n\r\n" + PLAIN])
async def test_answer_may_be_cut_anywhere_on_its_way(answer: bytes) -> None:
    pool = Connections("http", "127.0.0.1:1", None, 5.0)
    for cut in range(1, len(answer)):
        reply = await fed(pool, [answer[:cut], answer[cut:]])
        assert (reply.status, reply.body) == (200, b"hello")
    assert (await fed(pool, [bytes([byte]) for byte in answer])).body == b"hello"


@pytest.mark.parametrize("answer", [PLAIN, CHUNKED])
async def test_answer_that_breaks_off_anywhere_is_lost(answer: bytes) -> None:
    pool = Connections("http", "127.0.0.1:1", None, 5.0)
    for cut in range(len(answer)):
        with pytest.raises(Lost) as info:
            await fed(pool, [answer[:cut]] if cut else [])
        assert (info.value.errno, info.value.unanswered) == (errno.ECONNRESET, not cut)


class _Transport(asyncio.Transport):
    """A transport that goes nowhere."""

    def write(self, data: Any) -> None:
        pass

    def abort(self) -> None:
        pass

    def is_closing(self) -> bool:
        return False


async def fed(pool: Connections, pieces: list[bytes]) -> Reply:
    """Return what is made of *pieces*, behind which the server closes the connection."""
    connection = exchange._Connection(pool)
    connection.connection_made(_Transport())
    answer = connection.ask(REQUEST, False, None, None)
    for piece in pieces:
        connection.data_received(piece)
    connection.connection_lost(None)
    return await answer


@pytest.mark.parametrize(
    "answer",
    [
        b"<html>\r\n\r\n",
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 2x0 OK\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: five\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 4\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nETag : x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nETag: x\r\n folded\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nETag: x\nContent-Length: 3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nETag: \0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello!\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1" * 9000,
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 70_000,
    ],
)
async def test_what_is_no_answer_is_lost_and_ends_the_connection(answer: bytes) -> None:
    async with serving(answer) as (server, connections):
        with pytest.raises(Lost) as info:
            await connections.ask(REQUEST, again=True)
        assert not info.value.unanswered
        await asyncio.wait_for(server.hung_up.wait(), 10)
        assert len(server.requests) == 1


async def test_names_are_in_lower_case_and_values_of_one_name_are_joined() -> None:
    _, headers, keep = exchange.parse(b'HTTP/1.1 200 OK\r\nETag:  "e" \r\nX-Amz-Meta-A: 1\r\nx-amz-meta-a: \xc3\xb6\r\nEmpty:')
    assert headers == {"etag": '"e"', "x-amz-meta-a": "1, ö", "empty": ""}
    assert keep


async def test_body_of_a_success_goes_to_the_sink_and_that_of_a_refusal_does_not() -> None:
    refusal = b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\ngone"
    async with serving(PLAIN, refusal) as (_, connections):
        pieces: list[bytes] = []
        assert (await connections.ask(REQUEST, sink=into(pieces))).body == b""
        assert b"".join(pieces) == b"hello"
        reply = await connections.ask(REQUEST, sink=into(pieces))
        assert (reply.status, reply.body, b"".join(pieces)) == (404, b"gone", b"hello")


@pytest.mark.parametrize("where", ["check", "take"])
async def test_what_the_sink_raises_is_raised_and_ends_the_connection(where: str) -> None:
    def check(headers: Mapping[str, str]) -> None:
        if where == "check":
            raise OSError(errno.ESTALE, "replaced")

    def take(piece: bytes) -> None:
        raise OSError(errno.ESTALE, "replaced")

    async with serving([PLAIN, asyncio.Event()]) as (server, connections):
        with pytest.raises(OSError, match="replaced"):
            await connections.ask(REQUEST, sink=Sink(check, take), again=True)
        await asyncio.wait_for(server.hung_up.wait(), 10)
        assert len(server.requests) == 1


async def test_long_refusal_is_not_read_to_its_end() -> None:
    head = b"HTTP/1.1 500 X\r\nContent-Length: 99999999\r\n\r\n"
    async with serving([head, b"x" * 100_000, asyncio.Event()]) as (server, connections):
        assert (await connections.ask(REQUEST)).status == 500
        await asyncio.wait_for(server.hung_up.wait(), 10)


# Connections.


async def test_connection_is_used_again() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"
    async with serving(PLAIN, head, CHUNKED, PLAIN) as (server, connections):
        await connections.ask(REQUEST)
        assert (await connections.ask(REQUEST, bodiless=True)).headers["content-length"] == "100"
        await connections.ask(REQUEST)
        await connections.ask(REQUEST)
        assert (server.connections, len(server.requests)) == (1, 4)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        PLAIN + b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        CHUNKED + b"x",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ],
)
async def test_connection_that_may_be_out_of_step_is_not_used_again(answer: bytes) -> None:
    async with serving(answer, PLAIN) as (server, connections):
        await connections.ask(REQUEST)
        assert (await connections.ask(REQUEST)).body == b"hello"
        assert server.connections == 2


async def test_read_on_a_kept_connection_that_was_closed_is_sent_again_and_a_write_is_not() -> None:
    async with serving(PLAIN, None, PLAIN, None, PLAIN) as (server, connections):
        await connections.ask(REQUEST)
        assert (await connections.ask(REQUEST, again=True)).body == b"hello"
        assert len(server.requests) == 3
        with pytest.raises(Lost) as info:
            await connections.ask(REQUEST)
        assert info.value.unanswered
        assert len(server.requests) == 4


async def test_read_is_not_sent_again_when_the_connection_was_new() -> None:
    async with serving(None, PLAIN) as (server, connections):
        with pytest.raises(Lost):
            await connections.ask(REQUEST, again=True)
        assert len(server.requests) == 1


async def test_silence_is_a_timeout_and_a_slow_answer_is_none() -> None:
    async with serving([PLAIN[:-1], asyncio.Event()]) as (server, connections):
        with pytest.raises(TimeoutError):
            await connections.ask(REQUEST, stall=0.2, again=True)
        await asyncio.wait_for(server.hung_up.wait(), 10)
        assert len(server.requests) == 1
    slow = [piece for at in range(0, len(PLAIN), 9) for piece in (0.25, PLAIN[at : at + 9])]
    async with serving(slow) as (_, connections):
        assert (await connections.ask(REQUEST, stall=1.0)).body == b"hello"


async def test_time_limit_of_a_request_is_not_that_of_the_next() -> None:
    gate = asyncio.Event()
    async with serving(PLAIN, [gate, PLAIN]) as (_, connections):
        await connections.ask(REQUEST, stall=0.1)
        patient = asyncio.ensure_future(connections.ask(REQUEST, stall=None))
        await asyncio.sleep(0.3)
        assert not patient.done()
        gate.set()
        assert (await patient).body == b"hello"


async def test_cancelled_request_ends_its_connection() -> None:
    async with serving(asyncio.Event()) as (server, connections):
        task = asyncio.ensure_future(connections.ask(REQUEST))
        await asyncio.wait_for(server.asked.wait(), 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(server.hung_up.wait(), 10)


async def test_closed_connections_take_no_requests_and_those_under_way_fail() -> None:
    async with serving(asyncio.Event()) as (server, connections):
        task = asyncio.ensure_future(connections.ask(REQUEST))
        await asyncio.wait_for(server.asked.wait(), 10)
        await connections.close()
        with pytest.raises(Lost, match="closed"):
            await task
        with pytest.raises(Lost, match="closed"):
            await connections.ask(REQUEST)
        assert server.connections == 1


async def test_connection_that_nobody_uses_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "KEPT_S", 0.05)
    async with serving(PLAIN) as (server, connections):
        await connections.ask(REQUEST)
        assert not server.hung_up.is_set()
        await asyncio.wait_for(server.hung_up.wait(), 10)


async def test_bytes_that_nobody_asked_for_end_the_connection() -> None:
    gate = asyncio.Event()
    async with serving([PLAIN, gate, PLAIN], PLAIN) as (server, connections):
        await connections.ask(REQUEST)
        gate.set()
        await asyncio.wait_for(server.hung_up.wait(), 10)
        assert (await connections.ask(REQUEST)).body == b"hello"
        assert server.connections == 2


async def test_server_that_is_not_there_is_unreachable() -> None:
    server = Scripted()
    await server.begin()
    await server.end()
    with pytest.raises(Unreachable) as info:
        await Connections("http", f"127.0.0.1:{server.port}", None, 5.0).ask(REQUEST)
    assert isinstance(info.value.__cause__, ConnectionRefusedError)


@pytest.mark.parametrize(
    ("scheme", "authority", "place"),
    [
        ("http", "[::1]:9000", ("::1", 9000, True)),
        ("http", "10.0.0.1", ("10.0.0.1", 80, True)),
        ("https", "s3.example", ("s3.example", 443, False)),
    ],
)
def test_authority_is_host_and_port(scheme: str, authority: str, place: tuple[str, int, bool]) -> None:
    found = Connections(scheme, authority, None, 5.0)
    assert (found.host, found.port, found._is_address) == place
