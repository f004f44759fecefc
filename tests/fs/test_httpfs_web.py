"""Web: one answer or one error in words, whatever servers do; redirects, attempts, deadlines, slots."""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import errno
import gzip
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web as server
from weborigin import origin, raw

from pyfusekit.fs.httpfs.client import pacing
from pyfusekit.fs.httpfs.client.web import Web, unreachable
from pyfusekit.fs.httpfs.options import HttpOptions
from pyfusekit.fs.httpfs.values import HttpError

IN_TIME = 20.0
"""A guard against hanging, not a measure."""


@pytest.fixture(autouse=True)
def no_proxy_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/nonexistent")


@asynccontextmanager
async def client(source: str, report: Any = None, **options: Any) -> AsyncIterator[Web]:
    made = Web(HttpOptions(**options), source, report)
    await made.start()
    try:
        yield made
    finally:
        await made.close()


async def failure(awaitable: Any) -> HttpError:
    with pytest.raises(HttpError) as caught:
        await asyncio.wait_for(awaitable, IN_TIME)
    return caught.value


def answers(*steps: server.Response | int | dict[str, Any]) -> Any:
    """Return a handler that gives these answers one after the other, the last one for ever."""
    left = list(steps)

    async def handler(request: server.Request) -> server.StreamResponse:
        step = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(step, int):
            return server.Response(status=step, text="well" if step < 300 else "")
        return server.Response(**step)

    return handler


# What an answer is.


async def test_an_answer_has_status_headers_in_lower_case_final_url_and_body() -> None:
    async with origin(answers({"text": "hello", "headers": {"ETag": '"1"'}})) as there, client(there.url) as web:
        answer = await web.request("GET", f"{there.url}/a")
        assert (answer.status, answer.body, answer.url, answer.tries) == (200, b"hello", f"{there.url}/a", 1)
        assert answer.headers["etag"] == '"1"'


async def test_headers_of_one_name_are_joined() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nLink: <a>\r\nlink: <b>\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()

    async with raw(handler) as url, client(url) as web:
        assert (await web.request("GET", url + "/")).headers["link"] == "<a>, <b>"


async def test_nothing_is_asked_for_encoded_and_what_comes_encoded_is_not_decoded() -> None:
    packed = gzip.compress(b"hello")
    encoded = {"body": packed, "headers": {"Content-Encoding": "gzip"}}
    async with origin(answers(encoded)) as there, client(there.url) as web:
        answer = await web.request("GET", f"{there.url}/", headers={"Accept-Encoding": "gzip"})
        assert answer.body == packed
        assert there.asked[0].headers["accept-encoding"] == "identity"


async def test_the_encoding_of_a_url_arrives_as_it_is() -> None:
    path = "/a%2Fb/%7Ex%20y/;p=1/%C3%A4?sig=%2B%2f+=&&x"
    async with origin(answers(200)) as there, client(there.url) as web:
        await web.request("GET", there.url + path)
        assert there.asked[0].path == path


async def test_a_url_with_spaces_and_umlauts_is_encoded() -> None:
    async with origin(answers(200)) as there, client(there.url) as web:
        await web.request("GET", f"{there.url}/a b/ä?q=ö")
        assert there.asked[0].path == "/a%20b/%C3%A4?q=%C3%B6"


@pytest.mark.parametrize(
    "url",
    [
        "http://a..b:9/",
        "http://.:9/",
        "http://" + "a" * 300 + ":9/",
        "http://" + "ä" * 70 + ":9/",
        "http://[::1]x:9/",
        "http://[::1:9/",
        "http://1.2.3.4.5:9/",
        "http://\u2100:9/",
        "http://h:99999/",
        "http://127.0.0.1:9/\ud800",
        "/relative",
        "ftp://127.0.0.1/",
    ],
)
async def test_what_is_no_url_is_einval(url: str) -> None:
    async with client("http://127.0.0.1:9/") as web:
        assert (await failure(web.request("GET", url))).errno == errno.EINVAL


async def test_control_characters_of_a_url_are_encoded_and_end_no_line() -> None:
    async with origin(answers(200)) as there, client(there.url) as web:
        await web.request("GET", there.url + "/a\x00b\r\nX-Evil: 1\x7f")
        assert there.asked[0].path == "/a%00bX-Evil:%201%7F"
        assert "x-evil" not in there.asked[0].headers


async def test_an_answer_that_is_too_large_is_efbig() -> None:
    async with origin(answers({"body": b"x" * 5000})) as there, client(there.url) as web:
        assert (await failure(web.request("GET", there.url, limit=4999))).errno == errno.EFBIG
        assert len((await web.request("GET", there.url, limit=5000)).body) == 5000


async def test_an_answer_without_a_length_that_is_too_large_is_efbig() -> None:
    async def handler(request: server.Request) -> server.StreamResponse:
        response = server.StreamResponse()
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            for _ in range(64):
                await response.write(b"x" * 65536)
        return response

    async with origin(handler) as there, client(there.url) as web:
        assert (await failure(web.request("GET", there.url, limit=1 << 20))).errno == errno.EFBIG


async def test_a_stream_is_read_piece_by_piece_and_its_status_is_not_judged() -> None:
    async with origin(answers({"status": 404, "body": b"x" * 100_000})) as there, client(there.url) as web:
        async with web.open("GET", there.url) as stream:
            assert stream.status == 404
            pieces = []
            while piece := await stream.readany():
                pieces.append(piece)
        assert b"".join(pieces) == b"x" * 100_000
        assert web.judge(stream).errno == errno.ENOENT


async def test_ipv6_literals_are_hosts() -> None:
    async with origin(answers(200), host="::1") as there, client(there.url) as web:
        assert (await web.request("GET", f"{there.url}/")).status == 200
        assert there.asked[0].headers["host"] == there.url.removeprefix("http://")
        assert web.same_origin(f"{there.url}/x")


async def test_an_upload_is_sent_with_its_length_and_again_from_its_beginning() -> None:
    begun = 0

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal begun
        begun += 1
        yield b"a" * 1000
        yield b"b" * 24

    async with origin(answers(500, 201)) as there, client(there.url) as web:
        answer = await web.request("PUT", f"{there.url}/x", upload=(1024, pieces))
        assert (answer.status, answer.tries, begun) == (201, 2, 2)
        assert [one.body for one in there.asked] == [b"a" * 1000 + b"b" * 24] * 2
        assert there.asked[1].headers["content-length"] == "1024"


@pytest.mark.parametrize("yielded", [1023, 1025])
async def test_an_upload_that_is_not_as_long_as_announced_is_not_stored(yielded: int) -> None:
    got: list[bytes] = []

    async def pieces() -> AsyncIterator[bytes]:
        yield b"a" * 1000
        yield b"b" * (yielded - 1000)

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        got.append(await reader.read(65536))
        while piece := await reader.read(65536):
            got.append(piece)

    async with raw(handler) as url, client(url) as web:
        error = await failure(web.request("PUT", url, upload=(1024, pieces)))
        assert (error.errno, error.retryable) == (errno.EIO, False)
        assert "what is to be sent cannot be read" in str(error.strerror)
    assert len(b"".join(got)) < 1024


async def test_an_upload_that_cannot_be_read_is_its_own_errno_and_no_fault_of_the_server() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"a"
        raise OSError(errno.ENODATA, "bad disk")

    async with origin(answers(201)) as there, client(there.url) as web:
        error = await failure(web.request("PUT", there.url, upload=(1024, pieces)))
        assert (error.errno, error.retryable) == (errno.ENODATA, False)


async def test_a_large_body_is_sent_whole_and_again() -> None:
    body = bytes(range(256)) * 2048
    async with origin(answers(503, 201)) as there, client(there.url) as web:
        await web.request("PUT", there.url, body=body)
        assert [one.body == body for one in there.asked] == [True, True]


async def test_a_server_that_stops_reading_a_body_is_given_up() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await asyncio.sleep(IN_TIME)

    async with raw(handler) as url, client(url, idle_timeout=0.3) as web:
        web.attempts.attempts = 1
        error = await failure(web.request("PUT", url, body=b"x" * (64 << 20)))
        assert error.errno == errno.ETIMEDOUT


async def test_a_server_that_refuses_a_body_before_it_has_it_is_heard() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 507 Full\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        await asyncio.sleep(0.3)

    async with raw(handler) as url, client(url) as web:
        assert (await failure(web.request("PUT", url, body=b"x" * (64 << 20)))).errno == errno.ENOSPC


async def test_a_server_may_take_its_time_to_store_what_it_got() -> None:
    async def handler(request: server.Request) -> server.StreamResponse:
        await asyncio.sleep(0.6)
        return server.Response(status=201)

    async with origin(handler) as there, client(there.url, idle_timeout=0.2) as web:
        assert (await web.request("PUT", there.url, body=b"x")).tries == 1


# What a refusal is.


@pytest.mark.parametrize(
    ("status", "number"),
    [
        (400, errno.EINVAL),
        (401, errno.EACCES),
        (403, errno.EACCES),
        (404, errno.ENOENT),
        (405, errno.EOPNOTSUPP),
        (410, errno.ENOENT),
        (409, errno.ESTALE),
        (412, errno.ESTALE),
        (413, errno.ENOSPC),
        (418, errno.EIO),
        (423, errno.EBUSY),
        (501, errno.EOPNOTSUPP),
        (507, errno.ENOSPC),
    ],
)
async def test_a_refusal_is_an_errno_after_one_request(status: int, number: int) -> None:
    async with origin(answers(status)) as there, client(there.url) as web:
        error = await failure(web.request("GET", f"{there.url}/a/b"))
        assert (error.errno, error.status, error.retryable) == (number, status, False)
        assert f"GET {there.url}/a/b: {status} " in str(error.strerror)
        assert len(there.asked) == 1


async def test_a_refusal_shows_neither_user_nor_query_nor_the_page() -> None:
    page = {"status": 403, "text": "<html>secret words</html>", "content_type": "text/html"}
    async with origin(answers(page)) as there, client(there.url) as web:
        url = there.url.replace("//", "//alice:sesame@") + "/f?token=sesame"
        error = await failure(web.request("GET", url))
        text = f"{error.strerror} {error.url}"
        assert "sesame" not in text
        assert "alice" not in text
        assert "secret words" not in text
        assert f"{there.url}/f?..." in text


async def test_plain_words_of_a_server_are_repeated_shortly_and_printably() -> None:
    page = {"status": 403, "text": "go\x1b[31m away\r\n" + "x" * 5000}
    async with origin(answers(page)) as there, client(there.url) as web:
        text = str((await failure(web.request("GET", there.url))).strerror)
        assert "go?[31m away xxx" in text
        assert len(text) < 300
        assert text.isprintable()


async def test_the_message_of_a_webdav_error_is_repeated() -> None:
    xml = '<d:error xmlns:d="DAV:" xmlns:s="urn:s"><s:message>quota is used up</s:message></d:error>'
    page = {"status": 507, "text": xml, "content_type": "application/xml"}
    async with origin(answers(page)) as there, client(there.url) as web:
        assert "quota is used up" in str((await failure(web.request("PUT", there.url, body=b""))).strerror)


async def test_failures_are_reported_once_and_missing_names_are_none() -> None:
    told: list[tuple[int | None, str]] = []
    async with (
        origin(answers(404, 403)) as there,
        client(there.url, lambda error, what: told.append((error.errno, what))) as web,
    ):
        await failure(web.request("GET", f"{there.url}/a"))
        await failure(web.request("GET", f"{there.url}/a?x"))
        assert told == [(errno.EACCES, f"GET {there.url}/a?...")]


async def test_a_status_that_is_expected_is_an_answer() -> None:
    async with origin(answers(412)) as there, client(there.url) as web:
        assert (await web.request("PUT", there.url, body=b"x", ok=(200, 412))).status == 412


# Redirects.


def to(place: str, status: int = 302) -> dict[str, Any]:
    return {"status": status, "headers": {"Location": place}}


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_followed_and_the_final_url_is_told(status: int) -> None:
    async with origin(answers(to("sub/b?x#frag", status), 200)) as there, client(there.url) as web:
        answer = await web.request("GET", f"{there.url}/dir/a", headers={"Range": "bytes=0-1"})
        assert answer.url == f"{there.url}/dir/sub/b?x"
        assert there.asked[1].path == "/dir/sub/b?x"
        assert there.asked[1].headers["range"] == "bytes=0-1"


async def test_redirects_use_their_connection_again() -> None:
    peers = set()

    async def handler(request: server.Request) -> server.StreamResponse:
        assert request.transport is not None
        peers.add(request.transport.get_extra_info("peername"))
        return server.Response(text="there", status=200) if request.path == "/b" else server.Response(**to("/b"), text="go")

    async with origin(handler) as there, client(there.url) as web:
        for _ in range(3):
            await web.request("GET", f"{there.url}/a")
        assert len(peers) == 1


async def test_redirects_in_a_circle_are_eloop_in_words() -> None:
    async with origin(answers(to("/a"))) as there, client(there.url, redirects=4) as web:
        error = await failure(web.request("GET", f"{there.url}/a"))
        assert error.errno == errno.ELOOP
        assert "more than 4 times" in str(error.strerror)
        assert len(there.asked) == 5


@pytest.mark.parametrize("place", ["ftp://127.0.0.1/x", "http://[x/", "javascript:1", "file:///etc/passwd"])
async def test_a_redirect_to_what_is_no_web_server_is_einval(place: str) -> None:
    async with origin(answers(to(place))) as there, client(there.url) as web:
        assert (await failure(web.request("GET", there.url))).errno == errno.EINVAL
        assert len(there.asked) == 1


async def test_a_redirect_without_a_place_is_eio() -> None:
    async with origin(answers({"status": 302})) as there, client(there.url) as web:
        assert (await failure(web.request("GET", there.url))).errno == errno.EIO


async def test_a_redirect_in_raw_bytes_is_encoded() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"GET /a "):
            writer.write(b"HTTP/1.1 302 Found\r\nLocation: /\xe4 \xc3\xa4%2F\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        else:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-Line: " + head.split(b" ")[1] + b"\r\n\r\n")
        await writer.drain()

    async with raw(handler) as url, client(url) as web:
        assert (await web.request("GET", f"{url}/a")).headers["x-line"] == "/%E4%20%C3%A4%2F"


@pytest.mark.parametrize(("status", "followed"), [(301, False), (302, False), (303, False), (307, True), (308, True)])
async def test_who_writes_follows_only_where_the_method_is_kept(status: int, followed: bool) -> None:
    async with origin(answers(to("/b", status), 200)) as there, client(there.url) as web:
        if followed:
            assert (await web.request("PUT", f"{there.url}/a", body=b"data")).status == 200
            assert (there.asked[1].method, there.asked[1].body) == ("PUT", b"data")
        else:
            error = await failure(web.request("PUT", f"{there.url}/a", body=b"data"))
            assert error.errno == errno.EIO
            assert "it is at /b now" in str(error.strerror)
            assert len(there.asked) == 1


# Attempts.


@pytest.mark.parametrize("status", [500, 502, 503, 504, 520, 521, 522, 523, 524, 429])
async def test_what_may_pass_is_asked_again(status: int) -> None:
    async with origin(answers(status, 200)) as there, client(there.url) as web:
        answer = await asyncio.wait_for(web.request("GET", there.url), IN_TIME)
        assert (answer.status, answer.tries) == (200, 2)


async def test_what_does_not_pass_is_given_up_after_so_many_attempts() -> None:
    async with origin(answers(500)) as there, client(there.url) as web:
        web.attempts.attempts = 3
        error = await failure(web.request("GET", there.url))
        assert (error.errno, len(there.asked)) == (errno.EIO, 3)


@pytest.mark.parametrize("method", ["MKCOL", "MOVE", "DELETE", "POST"])
@pytest.mark.parametrize("status", [500, 502, 504])
async def test_what_may_have_been_done_is_not_done_again(method: str, status: int) -> None:
    async with origin(answers(status)) as there, client(there.url) as web:
        error = await failure(web.request(method, there.url))
        assert (error.retryable, len(there.asked)) == (False, 1)


async def test_what_was_refused_for_its_rate_is_sent_again_whatever_it_is() -> None:
    async with origin(answers(429, 201)) as there, client(there.url) as web:
        assert (await web.request("MKCOL", there.url)).tries == 2


def _closing(counts: list[bytes], answer_from: int) -> Any:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        counts.append(await reader.readuntil(b"\r\n\r\n"))
        if len(counts) >= answer_from:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
            await writer.drain()

    return handler


async def test_a_connection_closed_without_an_answer_is_tried_again() -> None:
    counts: list[bytes] = []
    async with raw(_closing(counts, 3)) as url, client(url) as web:
        assert (await web.request("GET", url)).body == b"ok"
        assert len(counts) == 3


async def test_a_write_that_got_no_answer_is_not_sent_again() -> None:
    counts: list[bytes] = []
    async with raw(_closing(counts, 3)) as url, client(url) as web:
        error = await failure(web.request("DELETE", url))
        assert "nobody knows whether it was done" in str(error.strerror)
        assert len(counts) == 1


async def test_a_body_that_is_cut_is_asked_for_again() -> None:
    counts = 0

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal counts
        counts += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n" + (b"0123456789" if counts > 1 else b"0123"))
        await writer.drain()

    async with raw(handler) as url, client(url) as web:
        assert (await web.request("GET", url)).body == b"0123456789"


async def test_a_stream_that_is_cut_raises_what_may_be_tried_again() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n0123")
        await writer.drain()

    async with raw(handler) as url, client(url) as web, web.open("GET", url) as stream:

        async def rest() -> None:
            while await stream.readany():
                pass

        error = await failure(rest())
        assert (error.errno, error.retryable, error.status) == (errno.EIO, True, 0)


async def test_what_is_not_http_is_eio_in_words() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")

    async with raw(handler) as url, client(url) as web:
        error = await failure(web.request("GET", url))
        assert error.errno == errno.EIO
        assert "not HTTP" in str(error.strerror)


async def test_an_operation_within_another_is_tried_once() -> None:
    async with origin(answers(500)) as there, client(there.url) as web:
        web.attempts.attempts = 2

        async def both() -> None:
            await web.request("GET", there.url)

        await failure(web.run("read", there.url, 0, both))
        assert len(there.asked) == 2


# Waiting: Retry-After, deadlines, slots.


async def test_retry_after_in_seconds_makes_everybody_wait() -> None:
    times: list[float] = []

    async def handler(request: server.Request) -> server.StreamResponse:
        times.append(time.monotonic())
        return server.Response(status=429, headers={"Retry-After": "1"}) if len(times) == 1 else server.Response()

    async with origin(handler) as there, client(there.url) as web:
        async with web.open("GET", there.url) as stream:
            assert stream.status == 429
        await asyncio.wait_for(asyncio.gather(*(web.request("GET", f"{there.url}/{n}") for n in range(2))), IN_TIME)
        assert len(times) == 3
        assert all(later - times[0] > 0.9 for later in times[1:])


async def test_retry_after_as_a_date_is_compared_with_the_servers_clock() -> None:
    base = time.time() - 86400
    headers = {"Retry-After": email.utils.formatdate(base + 1, usegmt=True), "Date": email.utils.formatdate(base, usegmt=True)}
    async with origin(answers({"status": 503, "headers": headers}, 200)) as there, client(there.url) as web:
        begun = time.monotonic()
        assert (await asyncio.wait_for(web.request("GET", there.url), IN_TIME)).tries == 2
        assert time.monotonic() - begun > 0.9


async def test_a_wait_longer_than_the_deadline_is_ebusy_at_once_for_everybody() -> None:
    busy = {"status": 503, "headers": {"Retry-After": "3600"}}
    async with origin(answers(busy)) as there, client(there.url) as web:
        for _ in range(2):
            error = await failure(web.request("GET", there.url))
            assert (error.errno, error.status) == (errno.EBUSY, 503)
            assert "wants no request for another" in str(error.strerror)
        assert len(there.asked) == 1


@pytest.mark.parametrize("text", ["soon", "-5", "", "1e9", "Thu, 99 Foo 2026", "9" * 400])
async def test_a_retry_after_that_is_none_is_ignored(text: str) -> None:
    async with origin(answers({"status": 503, "headers": {"Retry-After": text}}, 200)) as there, client(there.url) as web:
        assert (await asyncio.wait_for(web.request("GET", there.url), IN_TIME)).tries == 2


async def test_one_host_that_is_busy_does_not_slow_another() -> None:
    busy = {"status": 429, "headers": {"Retry-After": "30"}}
    async with origin(answers(busy)) as here, origin(answers(200)) as there, client(here.url) as web:
        async with web.open("GET", here.url) as stream:
            assert stream.status == 429
        assert (await asyncio.wait_for(web.request("GET", there.url), IN_TIME)).status == 200


async def silent(request: server.Request) -> server.StreamResponse:
    if request.path != "/quick":
        await asyncio.sleep(IN_TIME)
    return server.Response()


async def test_a_server_that_never_answers_is_etimedout_within_the_deadline() -> None:
    async with origin(silent) as there, client(there.url, deadline=0.5) as web:
        error = await failure(web.request("GET", there.url))
        assert error.errno == errno.ETIMEDOUT
        assert "not done within" in str(error.strerror)
        assert unreachable(error)


async def test_a_server_that_never_answers_is_tried_again_after_the_idle_timeout() -> None:
    async with origin(silent) as there, client(there.url, deadline=5, idle_timeout=0.2) as web:
        web.attempts.attempts = 2
        error = await failure(web.request("GET", there.url))
        assert (error.errno, len(there.asked)) == (errno.ETIMEDOUT, 2)
        assert "no answer in time" in str(error.strerror)


async def test_the_deadline_grows_with_the_bytes() -> None:
    web = Web(HttpOptions(deadline=3.0), "http://127.0.0.1/")
    assert web.attempts.deadline(2 << 20) == 19.0


async def test_cancelling_ends_the_request_and_frees_its_slot() -> None:
    async with origin(silent) as there, client(there.url, max_connections=1) as web:
        task = asyncio.create_task(web.request("GET", f"{there.url}/slow"))
        await asyncio.wait_for(there.reached.wait(), IN_TIME)
        task.cancel()
        begun = time.monotonic()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert time.monotonic() - begun < 5
        assert (await asyncio.wait_for(web.request("GET", f"{there.url}/quick"), 5)).status == 200


@pytest.mark.parametrize("status", [503, 500])
async def test_cancelling_ends_the_wait_before_the_next_attempt(status: int) -> None:
    busy = {"status": status, "headers": {"Retry-After": "30"}}
    async with origin(answers(busy)) as there, client(there.url) as web:
        task = asyncio.create_task(web.request("GET", there.url))
        await asyncio.wait_for(there.reached.wait(), IN_TIME)
        done, _ = await asyncio.wait([task], timeout=0.2)
        assert not done
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=5)
        assert done
        assert task.cancelled()


async def test_cancelling_who_waits_for_a_connection_leaves_it_to_the_next() -> None:
    async with origin(silent) as there, client(there.url, max_connections=1) as web:
        first = asyncio.create_task(web.request("GET", f"{there.url}/slow"))
        await asyncio.wait_for(there.reached.wait(), IN_TIME)
        second, third = (asyncio.create_task(web.request("GET", f"{there.url}/quick")) for _ in range(2))
        await asyncio.sleep(0)
        second.cancel()
        first.cancel()
        assert (await asyncio.wait_for(third, 5)).status == 200
        assert second.cancelled()


async def test_no_more_than_so_many_requests_run_at_a_time_and_waiting_costs_no_deadline() -> None:
    running = most = 0

    async def handler(request: server.Request) -> server.StreamResponse:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.25)
        running -= 1
        return server.Response()

    async with origin(handler) as there, client(there.url, max_connections=2, deadline=3.0) as web:
        await asyncio.wait_for(asyncio.gather(*(web.request("GET", f"{there.url}/{n}") for n in range(30))), IN_TIME)
        assert most == 2


async def test_streams_that_hold_every_connection_are_ebusy_for_the_next() -> None:
    async with origin(answers({"body": b"x" * 9_000_000})) as there, client(there.url, max_connections=1, deadline=0.3) as web:
        async with web.open("GET", there.url):
            error = await failure(web.request("GET", there.url))
        assert error.errno == errno.EBUSY
        assert "--max-connections" in str(error.strerror)


async def test_a_redirect_gives_its_slot_back_before_the_next() -> None:
    async with origin(answers(to("/b"), 200)) as there, client(there.url, max_connections=1) as web:
        assert (await asyncio.wait_for(web.request("GET", f"{there.url}/a"), IN_TIME)).status == 200


async def test_after_close_requests_are_eshutdown() -> None:
    async with origin(silent) as there:
        async with client(there.url) as web:
            task = asyncio.create_task(web.request("GET", there.url))
            await asyncio.wait_for(there.reached.wait(), IN_TIME)
        assert (await failure(task)).errno == errno.ESHUTDOWN
        assert (await failure(web.request("GET", there.url))).errno == errno.ESHUTDOWN


# The host is gone.


async def test_a_refused_connection_is_econnrefused_and_unreachable() -> None:
    async with origin(answers(200)) as there:
        pass
    async with client(there.url) as web:
        web.attempts.attempts = 2
        error = await failure(web.request("GET", there.url))
        assert error.errno == errno.ECONNREFUSED
        assert "connection refused" in str(error.strerror)
        assert unreachable(error)


async def test_a_name_that_is_none_is_ehostunreach() -> None:
    async with client("http://no-such-host.invalid/") as web:
        web.attempts.attempts = 1
        error = await failure(web.request("GET", "http://no-such-host.invalid/"))
        assert error.errno == errno.EHOSTUNREACH
        assert unreachable(error)


@pytest.mark.parametrize(
    ("status", "gone"), [(404, False), (403, False), (429, False), (500, False), (502, True), (503, True), (504, True)]
)
async def test_only_gateways_and_unavailable_services_say_that_a_host_is_gone(status: int, gone: bool) -> None:
    async with origin(answers(status)) as there, client(there.url) as web, web.open("GET", there.url) as stream:
        assert unreachable(web.judge(stream)) is gone
    assert not unreachable(OSError(errno.ECONNREFUSED, "somebody else's"))


def test_a_retry_after_of_years_is_asked_about_again_within_minutes() -> None:
    host = pacing.Host(1)
    host.busy(503, 1e12)
    assert host.closed_until - time.monotonic() <= pacing.GATE_MOST
