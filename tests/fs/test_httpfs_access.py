"""Access: the source gets its credentials, in every form, and no other origin gets any; TLS and proxies in words."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web as server
from weborigin import Authority, Origin, origin, proxy, raw

from pyfusekit.core import MountError, Secret, Url
from pyfusekit.fs.httpfs.client import access
from pyfusekit.fs.httpfs.client.access import TokenCommand, parse_headers
from pyfusekit.fs.httpfs.client.trust import Proxies
from pyfusekit.fs.httpfs.client.urls import User, basic, origin_of
from pyfusekit.fs.httpfs.client.web import Web, unreachable
from pyfusekit.fs.httpfs.options import HttpOptions
from pyfusekit.fs.httpfs.values import HttpError

IN_TIME = 20.0
ALICE = basic(User("alice", "open sesame"))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "NETRC", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    made = tmp_path / "home"
    made.mkdir()
    monkeypatch.setenv("HOME", str(made))
    return made


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@asynccontextmanager
async def client(source: str, **options: Any) -> AsyncIterator[Web]:
    made = Web(HttpOptions(**options), source)
    await made.start()
    made.attempts.attempts = 1
    try:
        yield made
    finally:
        await made.close()


async def failure(awaitable: Any) -> HttpError:
    with pytest.raises(HttpError) as caught:
        await asyncio.wait_for(awaitable, IN_TIME)
    return caught.value


async def mistake(source: str = "http://127.0.0.1/", **options: Any) -> MountError:
    with pytest.raises(MountError) as caught:
        async with client(source, **options):
            pass
    assert caught.value.kind == "bad-option"
    assert caught.value.remedy
    return caught.value


async def welcome(request: server.Request) -> server.StreamResponse:
    return server.Response(text="welcome")


def sender(there: Origin, status: int = 302) -> Any:
    async def handler(request: server.Request) -> server.StreamResponse:
        return server.Response(status=status, headers={"Location": f"{there.url}/there"})

    return handler


def with_user(url: str, user: str) -> str:
    return url.replace("//", f"//{user}@")


# Users and passwords.


async def test_a_user_in_the_url_is_sent_and_not_shown() -> None:
    async with origin(welcome) as here, client(with_user(here.url, "alice:open%20sesame") + "/d/") as web:
        assert web.source == f"{here.url}/d/"
        await web.request("GET", f"{here.url}/d/")
        assert here.secrets == [f"authorization: {ALICE}"]


async def test_user_and_password_of_the_options_are_sent() -> None:
    async with origin(welcome) as here, client(here.url, user="alice", password=Secret("open sesame")) as web:
        await web.request("GET", here.url)
        assert here.secrets == [f"authorization: {ALICE}"]


async def test_the_options_password_is_for_the_urls_user() -> None:
    async with origin(welcome) as here, client(with_user(here.url, "alice"), password=Secret("open sesame")) as web:
        await web.request("GET", here.url)
        assert here.secrets == [f"authorization: {ALICE}"]


async def test_a_password_without_a_user_is_a_mistake() -> None:
    assert "without a user" in str(await mistake(password=Secret("x")))


async def test_two_ways_to_say_who_one_is_are_a_mistake() -> None:
    assert "exclude each other" in str(await mistake(user="alice", bearer_token=Secret("x")))
    assert "exclude each other" in str(await mistake(token_command="id", header="Authorization: x"))


async def test_a_bearer_token_is_sent() -> None:
    async with origin(welcome) as here, client(here.url, bearer_token=Secret("abc.def\n")) as web:
        await web.request("GET", here.url)
        assert here.secrets == ["authorization: Bearer abc.def"]


async def test_a_bearer_token_with_a_line_break_inside_is_a_mistake_that_is_not_shown() -> None:
    error = await mistake(bearer_token=Secret("abc\r\nX: y"))
    assert "abc" not in f"{error} {error.remedy}"


async def test_a_users_own_401_names_the_ways_to_log_in() -> None:
    async def handler(request: server.Request) -> server.StreamResponse:
        return server.Response(status=401, headers={"WWW-Authenticate": "Basic"})

    async with origin(handler) as here, client(here.url) as web:
        error = await failure(web.request("GET", here.url))
        assert error.errno == errno.EACCES
        assert "--user" in str(error.strerror)


async def test_a_401_to_who_has_logged_in_says_that_the_password_is_refused() -> None:
    async with origin(refuse) as here, client(here.url, user="alice", password=Secret("x")) as web:
        assert "refuses the user and password" in str((await failure(web.request("GET", here.url))).strerror)


@pytest.mark.parametrize(
    ("challenge", "words"),
    [
        ('Digest realm="a\\", Basic b", qop="auth", nonce="x"', "wants Digest authentication, which is not supported"),
        ("Negotiate, NTLM", "wants Negotiate or NTLM authentication"),
        ('Digest realm="x", Basic realm="y"', "--user"),
        ("=garbage,,=", "--user"),
    ],
)
async def test_a_401_names_the_way_of_logging_in_that_is_not_supported(challenge: str, words: str) -> None:
    async def handler(request: server.Request) -> server.StreamResponse:
        return server.Response(status=401, headers={"WWW-Authenticate": challenge})

    async with origin(handler) as here, client(here.url) as web:
        assert words in str((await failure(web.request("GET", here.url))).strerror)


# netrc.


def write_netrc(path: Path, text: str, mode: int = 0o600) -> None:
    path.write_text(text)
    path.chmod(mode)


async def test_netrc_gives_user_and_password_of_the_host(home: Path) -> None:
    write_netrc(home / ".netrc", 'machine 127.0.0.1 login alice password "open sesame"\n')
    async with origin(welcome) as here, client(here.url) as web:
        await web.request("GET", here.url)
        assert here.secrets == [f"authorization: {ALICE}"]


async def test_the_file_that_netrc_names_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_netrc(tmp_path / "mine", 'machine 127.0.0.1 login alice password "open sesame"\n')
    monkeypatch.setenv("NETRC", str(tmp_path / "mine"))
    async with origin(welcome) as here, client(here.url) as web:
        await web.request("GET", here.url)
        assert here.secrets == [f"authorization: {ALICE}"]


async def test_netrc_is_for_the_user_who_was_named(home: Path) -> None:
    write_netrc(home / ".netrc", "machine 127.0.0.1 login bob password x\n")
    async with origin(welcome) as here, client(here.url, user="alice") as web:
        await web.request("GET", here.url)
        assert here.secrets == [f"authorization: {basic(User('alice', ''))}"]


async def test_netrc_is_left_alone_when_told_so(home: Path) -> None:
    write_netrc(home / ".netrc", "machine 127.0.0.1 login bob password x\n")
    async with origin(welcome) as here, client(here.url, netrc=False) as web:
        await web.request("GET", here.url)
        assert here.secrets == []


async def refuse(request: server.Request) -> server.StreamResponse:
    return server.Response(status=401)


@pytest.mark.parametrize(
    ("text", "mode", "words"),
    [
        ("machine 127.0.0.1 login bob password x\n", 0o644, "chmod 600"),
        ("machine 127.0.0.1 login bob\nnonsense here\n", 0o600, "line 2"),
        ("\udcff\udcfe", 0o600, "not netrc's"),
    ],
)
async def test_a_netrc_that_is_not_used_is_said_when_the_server_refuses(home: Path, text: str, mode: int, words: str) -> None:
    path = home / ".netrc"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    path.chmod(mode)
    async with origin(refuse) as here, client(here.url) as web:
        error = await failure(web.request("GET", here.url))
        assert here.secrets == []
        assert words in str(error.strerror)


async def test_a_netrc_of_other_hosts_may_have_any_permissions(home: Path) -> None:
    write_netrc(home / ".netrc", "machine example.org login bob password x\n", 0o644)
    async with origin(welcome) as here, client(here.url) as web:
        await web.request("GET", here.url)
        assert web.access.hints == []


# The token command.


def command(tmp_path: Path, body: str) -> str:
    script = tmp_path / "token.py"
    script.write_text(body)
    return f"{sys.executable} {script}"


def counting(tmp_path: Path) -> str:
    """Return a command that prints t1, t2, ... on its first, second, ... run."""
    count = tmp_path / "count"
    return command(tmp_path, f"open({str(count)!r}, 'a').write('x'); print('t%d' % len(open({str(count)!r}).read()))")


def accepts(*tokens: str) -> Any:
    async def handler(request: server.Request) -> server.StreamResponse:
        good = request.headers.get("Authorization") in [f"Bearer {token}" for token in tokens]
        return server.Response(status=200 if good else 401)

    return handler


async def test_the_token_command_is_run_once_for_all(tmp_path: Path) -> None:
    async with origin(accepts("t1")) as here, client(here.url, token_command=counting(tmp_path)) as web:
        await asyncio.gather(*(web.request("GET", here.url) for _ in range(8)))
        assert set(here.secrets) == {"authorization: Bearer t1"}


async def test_the_token_command_is_run_again_once_on_401_and_nobody_notices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "COMMAND_PAUSE", 0.0)
    async with origin(accepts("t2")) as here, client(here.url, token_command=counting(tmp_path)) as web:
        answers = await asyncio.gather(*(web.request("PUT", here.url, body=b"data") for _ in range(6)))
        assert [one.status for one in answers] == [200] * 6
        assert {one.headers["authorization"] for one in here.asked} == {"Bearer t1", "Bearer t2"}
        assert all(one.body == b"data" for one in here.asked)


async def test_a_server_that_refuses_every_token_does_not_have_the_command_run_each_time(tmp_path: Path) -> None:
    async with origin(refuse) as here, client(here.url, token_command=counting(tmp_path)) as web:
        for _ in range(5):
            assert (await failure(web.request("GET", here.url))).errno == errno.EACCES
        assert (tmp_path / "count").read_text() == "x"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("import sys; sys.exit('no \\x1b session')", "ended with status 1: no ? session"),
        ("pass", "printed nothing"),
        ("print('two words')", "no token"),
        ("print('a\\r\\nX: y')", "no token"),
    ],
)
async def test_a_token_command_that_fails_is_eacces_in_words(tmp_path: Path, body: str, words: str) -> None:
    async with origin(welcome) as here, client(here.url, token_command=command(tmp_path, body)) as web:
        error = await failure(web.request("GET", here.url))
        assert error.errno == errno.EACCES
        assert words in str(error.strerror)
        assert here.asked == []


async def test_a_token_command_that_does_not_exist_is_said() -> None:
    async with origin(welcome) as here, client(here.url, token_command="/no/such/command --secret") as web:
        error = await failure(web.request("GET", here.url))
        assert "'/no/such/command' cannot be started: No such file" in str(error.strerror)
        assert "--secret" not in str(error.strerror)


@pytest.mark.parametrize("line", ["echo 'x", "   "])
async def test_a_token_command_that_is_no_command_line_is_a_mistake(line: str) -> None:
    assert "--token-command" in str(await mistake(token_command=line))


async def test_a_token_command_that_hangs_is_ended_with_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "COMMAND_SECONDS", 0.5)
    pidfile = tmp_path / "pid"
    line = f"sh -c 'sleep 1000 & echo $! > {pidfile}; wait'"
    async with origin(welcome) as here, client(here.url, token_command=line) as web:
        assert "took longer" in str((await failure(web.request("GET", here.url))).strerror)
    deadline = time.monotonic() + IN_TIME
    while _alive(int(pidfile.read_text())):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def _alive(pid: int) -> bool:
    try:
        return b") Z" not in Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False


async def test_who_is_interrupted_does_not_take_the_others_token_away(tmp_path: Path) -> None:
    line = command(tmp_path, "import time; time.sleep(0.5); print('t')")
    token = TokenCommand(line)
    first, second = asyncio.create_task(token.token()), asyncio.create_task(token.token())
    await asyncio.sleep(0)
    first.cancel()
    assert await asyncio.wait_for(second, IN_TIME) == "t"
    await token.close()


async def test_closing_ends_a_token_command_that_runs(tmp_path: Path) -> None:
    pidfile = tmp_path / "pid"
    line = command(tmp_path, f"import os, time; open({str(pidfile)!r}, 'w').write(str(os.getpid())); time.sleep(1000)")
    async with origin(welcome) as here:
        async with client(here.url, token_command=line) as web:
            task = asyncio.create_task(web.request("GET", here.url))
            async with asyncio.timeout(IN_TIME):
                while not pidfile.exists() or not pidfile.read_text():  # noqa: ASYNC110 - another process writes it
                    await asyncio.sleep(0.01)
        assert not _alive(int(pidfile.read_text()))
        assert (await failure(task)).errno == errno.ESHUTDOWN


# Headers.


async def test_headers_go_to_the_source() -> None:
    lines = "X-Secret: a b\r\n\nuser-agent: mine/1\nAuthorization: Custom x"
    async with origin(welcome) as here, client(here.url, header=lines) as web:
        await web.request("GET", here.url)
        assert here.secrets == ["authorization: Custom x", "x-secret: a b"]
        assert here.asked[0].headers["user-agent"] == "mine/1"


@pytest.mark.parametrize(
    "text",
    [
        "Host: other",
        "content-length: 3",
        "Transfer-Encoding: chunked",
        "Range: bytes=0-1",
        "Accept-Encoding: gzip",
        "no colon",
        ": x",
        "A B: x",
        "X: a\rY: b",
        "X: a\x00",
        " X: folded",
        "X: 1\nx: 2",
        "Ü: x",
    ],
)
def test_headers_that_are_none_or_not_a_persons_to_set_are_a_mistake(text: str) -> None:
    with pytest.raises(MountError) as caught:
        parse_headers(text)
    assert caught.value.kind == "bad-option"


# Nobody else gets anything.


ALL: dict[str, Any] = {"user": "alice", "password": Secret("open sesame"), "header": "X-Secret: 1\nCookie: c=1"}


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_to_another_origin_carries_no_credentials(status: int) -> None:
    async with origin(welcome) as there, origin(sender(there, status)) as here, client(here.url, **ALL) as web:
        assert (await web.request("GET", here.url)).body == b"welcome"
        assert len(here.secrets) == 3
        assert len(there.asked) == 1
        assert there.secrets == []


async def test_a_url_of_another_origin_gets_no_credentials() -> None:
    async with origin(welcome) as there, origin(welcome) as here, client(here.url, **ALL) as web:
        await web.request("GET", f"{there.url}/mirror")
        async with web.open("GET", f"{there.url}/mirror"):
            pass
        assert there.secrets == []
        assert web.same_origin(f"{here.url}/x")
        assert not web.same_origin(f"{there.url}/x")


async def test_a_redirect_back_to_the_source_carries_them_again() -> None:
    async with origin(welcome) as back:
        pass

    async def handler(request: server.Request) -> server.StreamResponse:
        if request.path == "/home":
            return server.Response(text="home")
        return server.Response(status=302, headers={"Location": f"{there.url}/x"})

    async def away(request: server.Request) -> server.StreamResponse:
        return server.Response(status=302, headers={"Location": f"{here.url}/home"})

    assert back.asked == []
    async with origin(away) as there, origin(handler) as here, client(here.url, **ALL) as web:
        assert (await web.request("GET", here.url)).body == b"home"
        assert there.secrets == []
        assert len(here.secrets) == 6


async def test_a_downgrade_to_http_carries_no_credentials(authority: Authority) -> None:
    async with (
        origin(welcome) as there,
        origin(sender(there), tls=authority.server()) as here,
        client(here.url, ca_file=str(authority.ca), **ALL) as web,
    ):
        await web.request("GET", here.url)
        assert len(here.secrets) == 3
        assert there.secrets == []


async def test_a_401_of_another_origin_says_that_nothing_was_sent_there() -> None:
    async with origin(refuse) as there, origin(sender(there)) as here, client(here.url, **ALL) as web:
        error = await failure(web.request("GET", here.url))
        assert "were not sent there" in str(error.strerror)
        assert there.secrets == []


async def test_a_401_of_another_origin_does_not_run_the_token_command_again(tmp_path: Path) -> None:
    async with (
        origin(refuse) as there,
        origin(sender(there)) as here,
        client(here.url, token_command=counting(tmp_path)) as web,
    ):
        await failure(web.request("GET", here.url))
        assert (there.secrets, (tmp_path / "count").read_text()) == ([], "x")


async def test_a_user_in_a_redirect_is_for_that_host_alone() -> None:
    async with origin(welcome) as there:
        sending = Origin(with_user(there.url, "alice:open%20sesame"))
        async with origin(sender(sending)) as here, client(here.url, bearer_token=Secret("mine")) as web:
            assert (await web.request("GET", here.url)).url == f"{there.url}/there"
            assert there.secrets == [f"authorization: {ALICE}"]


async def test_a_redirect_to_the_source_cannot_choose_its_user() -> None:
    async def handler(request: server.Request) -> server.StreamResponse:
        if request.path == "/b":
            return server.Response()
        return server.Response(status=302, headers={"Location": with_user(here.url, "eve:x") + "/b"})

    async with origin(handler) as here, client(here.url, bearer_token=Secret("mine")) as web:
        await web.request("GET", here.url)
        assert here.secrets == ["authorization: Bearer mine"] * 2


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("http://h/a", "http://H:80/b", True),
        ("https://h", "https://h:443/", True),
        ("http://h/", "https://h/", False),
        ("http://h/", "http://h:81/", False),
        ("http://h/", "http://h.evil/", False),
        ("http://h/", "http://h@evil/", False),
        ("http://h/", "http://u:p@h/", True),
        ("http://h./", "http://h/", True),
        ("http://[::1]:8/", "http://[::1]:8/x", True),
    ],
)
def test_an_origin_is_scheme_host_and_port(one: str, other: str, same: bool) -> None:
    assert (origin_of(one) == origin_of(other)) is same


@pytest.mark.parametrize("url", ["ftp://h/", "/path", "http://", "http://[x/", "http://h:99999/", "mailto:a@b"])
def test_what_is_no_url_of_a_web_server_has_no_origin(url: str) -> None:
    assert origin_of(url) is None


# Cookies.


def jar(path: Path, *rows: tuple[str, ...]) -> str:
    path.write_text("# Netscape HTTP Cookie File\n" + "".join("\t".join(row) + "\n" for row in rows))
    return str(path)


async def test_cookies_of_the_file_are_sent_by_their_own_rules(tmp_path: Path) -> None:
    later, past = str(int(time.time()) + 3600), "1"
    path = jar(
        tmp_path / "jar",
        ("127.0.0.1", "FALSE", "/", "FALSE", later, "good", 'a"b=c'),
        ("127.0.0.1", "FALSE", "/", "FALSE", "0", "session", "s"),
        ("127.0.0.1", "FALSE", "/sub", "FALSE", later, "sub", "1"),
        ("127.0.0.1", "FALSE", "/", "TRUE", later, "secure", "1"),
        ("127.0.0.1", "FALSE", "/", "FALSE", past, "old", "1"),
        (".example.org", "TRUE", "/", "FALSE", later, "other", "1"),
    )
    async with origin(welcome) as here, client(here.url, cookie_jar=path) as web:
        await web.request("GET", here.url)
        await web.request("GET", f"{here.url}/sub/x")
        sent = [sorted(one.headers["cookie"].split("; ")) for one in here.asked]
        assert sent == [['good=a"b=c', "session=s"], ['good=a"b=c', "session=s", "sub=1"]]


async def test_cookies_of_the_file_are_not_sent_to_another_host(tmp_path: Path) -> None:
    path = jar(tmp_path / "jar", ("127.0.0.1", "FALSE", "/", "FALSE", "0", "mine", "1"))
    async with origin(welcome, host="::1") as there, origin(sender(there)) as here, client(here.url, cookie_jar=path) as web:
        await web.request("GET", here.url)
        assert (here.secrets, there.secrets) == (["cookie: mine=1"], [])


async def test_a_cookie_that_a_server_sets_is_kept_for_the_mount() -> None:
    async def handler(request: server.Request) -> server.StreamResponse:
        return server.Response(headers={"Set-Cookie": "sid=1; Path=/"})

    async with origin(handler) as here, client(here.url) as web:
        await web.request("GET", here.url)
        await web.request("GET", here.url)
        assert here.secrets == ["cookie: sid=1"]


async def test_a_cookie_file_that_is_none_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "jar").write_text("cookies\n")
    assert "Netscape's format" in str(await mistake(cookie_jar=str(tmp_path / "jar")))
    assert "No such file" in str(await mistake(cookie_jar=str(tmp_path / "none")))


# TLS.


async def test_an_unknown_authority_is_said_with_the_remedy(authority: Authority) -> None:
    async with origin(welcome, tls=authority.server()) as here, client(here.url) as web:
        error = await failure(web.request("GET", here.url))
        assert (error.errno, error.retryable, unreachable(error)) == (errno.EIO, False, False)
        assert "--ca-file" in str(error.strerror)


async def test_the_file_of_authorities_is_trusted(authority: Authority) -> None:
    async with origin(welcome, tls=authority.server()) as here, client(here.url, ca_file=str(authority.ca)) as web:
        assert (await web.request("GET", here.url)).status == 200


async def test_an_expired_certificate_is_said(authority: Authority) -> None:
    async with (
        origin(welcome, tls=authority.server(days=-1)) as here,
        client(here.url, ca_file=str(authority.ca)) as web,
    ):
        assert "has expired" in str((await failure(web.request("GET", here.url))).strerror)


async def test_a_certificate_of_another_host_is_said(authority: Authority) -> None:
    tls = authority.server("example.org")
    async with origin(welcome, tls=tls) as here, client(here.url, ca_file=str(authority.ca)) as web:
        assert "not for this address" in str((await failure(web.request("GET", here.url))).strerror)
        by_name = here.url.replace("127.0.0.1", "localhost")
        assert "for another host" in str((await failure(web.request("GET", by_name))).strerror)


async def test_insecure_verifies_nothing(authority: Authority) -> None:
    async with origin(welcome, tls=authority.server("example.org", days=-1)) as here, client(here.url, insecure=True) as web:
        assert (await web.request("GET", here.url)).status == 200


async def test_a_server_without_tls_is_said() -> None:
    async with origin(welcome) as here:
        url = here.url.replace("http:", "https:")
        async with client(url) as web:
            assert "does not speak TLS" in str((await failure(web.request("GET", url))).strerror)


async def test_a_connection_closed_during_the_handshake_is_said() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)

    async with raw(handler) as url:
        secure = url.replace("http:", "https:")
        async with client(secure) as web:
            error = await failure(web.request("GET", secure))
            assert error.errno in (errno.EIO, errno.ECONNRESET)
            assert error.retryable


async def test_a_client_certificate_is_shown_to_the_source_and_to_nobody_else(authority: Authority) -> None:
    cert = str(authority.certificate("client"))
    async with (
        origin(welcome, tls=authority.server(clients="optional")) as there,
        origin(sender(there), tls=authority.server(clients="required")) as here,
        client(here.url, ca_file=str(authority.ca), client_cert=cert) as web,
    ):
        await web.request("GET", here.url)
        assert [one.certificate for one in here.asked] == [True]
        assert [one.certificate for one in there.asked] == [False]


async def test_a_server_that_wants_a_client_certificate_is_said(authority: Authority) -> None:
    # Not asyncio's TLS: it closes without the alert that says why.
    tls = authority.server(clients="required")
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def refuse_one() -> None:
            connection, _ = listener.accept()
            with connection.dup() as plain, tls.wrap_socket(connection, True, do_handshake_on_connect=False) as secure:
                with pytest.raises(ssl.SSLError):
                    secure.do_handshake()
                # What is not read when a connection is closed takes the alert with it.
                while plain.recv(65536):
                    pass

        served = asyncio.create_task(asyncio.to_thread(refuse_one))
        url = f"https://127.0.0.1:{listener.getsockname()[1]}/"
        async with client(url, ca_file=str(authority.ca)) as web:
            error = await failure(web.request("GET", url))
        await served
    assert (error.errno, error.retryable) == (errno.EACCES, False)
    assert "wants a client's certificate: --client-cert" in str(error.strerror)


async def test_certificates_that_are_none_are_mistakes(authority: Authority, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("nothing")
    text, locked = str(tmp_path / "text"), str(authority.certificate("c", password=b"pass"))
    url = "https://127.0.0.1/"
    assert "--ca-file" in str(await mistake(url, ca_file=text))
    assert "No such file" in str(await mistake(url, ca_file="/no/such/file"))
    assert "--client-cert" in str(await mistake(url, client_cert=text))
    assert "encrypted" in str(await mistake(url, client_cert=locked))


# Proxies.


async def test_a_proxy_gets_requests_and_its_own_credentials_which_the_server_does_not() -> None:
    async with origin(welcome) as here, proxy() as through:
        by = Url(with_user(through.url, "alice:open%20sesame"))
        async with client(here.url, proxy=by, bearer_token=Secret("mine")) as web:
            assert (await web.request("GET", f"{here.url}/a%2Fb")).body == b"welcome"
    assert through.heads[0].startswith(f"GET {here.url}/a%2Fb HTTP/1.1\r\n")
    assert f"Proxy-Authorization: {ALICE}\r\n".lower() in through.heads[0].lower()


async def test_a_proxy_tunnels_tls_and_sees_nothing_of_it(authority: Authority) -> None:
    async with origin(welcome, tls=authority.server()) as here, proxy() as through:
        by = Url(with_user(through.url, "alice:open%20sesame"))
        async with client(here.url, proxy=by, ca_file=str(authority.ca), **ALL | {"password": Secret("other")}) as web:
            assert (await web.request("GET", f"{here.url}/path")).body == b"welcome"
    assert through.heads[0].startswith("CONNECT 127.0.0.1:")
    assert f"proxy-authorization: {ALICE}".lower() in through.heads[0].lower()
    assert "x-secret" not in through.heads[0].lower()
    assert basic(User("alice", "other")) not in through.heads[0]
    assert not any(one.startswith("proxy-") for one in here.secrets)


async def test_the_environments_proxy_is_used_unless_no_proxy_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    async with origin(welcome) as here, proxy() as through:
        monkeypatch.setenv("http_proxy", through.url)
        async with client(here.url) as web:
            await web.request("GET", here.url)
        assert len(through.heads) == 1
        monkeypatch.setenv("no_proxy", "example.org, 127.0.0.1")
        async with client(here.url) as web:
            await web.request("GET", here.url)
        assert len(through.heads) == 1
        assert len(here.asked) == 2


def test_no_proxy_knows_domains_and_ports() -> None:
    found = Proxies(None, {"http": "proxy:3128", "no": "example.org,host:81,::1"})
    through = [
        found.find(("http", host, port)) for host, port in (("other", 80), ("a.example.org", 80), ("host", 81), ("::1", 80))
    ]
    assert [one is not None for one in through] == [True, False, False, False]
    assert through[0] is not None
    assert through[0].url == "http://proxy:3128"
    assert found.find(("https", "other", 443)) is None


@pytest.mark.parametrize(
    ("refusal", "number", "gone"),
    [
        ("407 Proxy Authentication Required", errno.EACCES, False),
        ("403 Forbidden", errno.EACCES, False),
        ("502 Bad", errno.EHOSTUNREACH, True),
    ],
)
async def test_a_proxy_that_refuses_is_said(refusal: str, number: int, gone: bool) -> None:
    async with proxy(refusal) as through:
        url = "https://127.0.0.1:9/"
        async with client(url, proxy=Url(through.url)) as web:
            error = await failure(web.request("GET", url))
    assert (error.errno, unreachable(error)) == (number, gone)
    assert "the proxy" in str(error.strerror)


async def test_a_proxy_that_is_not_there_is_said() -> None:
    async with proxy() as through:
        pass
    async with client("http://example.org/", proxy=Url(through.url)) as web:
        error = await failure(web.request("GET", "http://example.org/"))
        assert error.errno == errno.ECONNREFUSED
        assert f"through the proxy {through.url.removeprefix('http://')}" in str(error.strerror)


async def test_a_proxy_that_is_none_is_a_mistake_without_its_password() -> None:
    assert "socks5" in str(await mistake(proxy=Url("socks5://h:1")))
    error = await mistake(proxy=Url("http://u:sesame@:x"))
    assert "sesame" not in f"{error} {error.remedy}"
