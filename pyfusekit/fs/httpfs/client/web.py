"""Every request of a mounted web directory: one session, the source's credentials for the source only, attempts, redirects."""

from __future__ import annotations

import asyncio
import errno
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Container, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from ..options import HttpOptions
from ..values import HttpError
from .access import Access, fill_jar
from .pacing import Attempts, Deadline, current
from .trust import Proxies, context
from .uploads import Upload, of_bytes, payload_class
from .urls import Origin, User, absolute, basic, origin_of, wire, without_user
from .words import challenges, never_sent, refused, retry_after, shown, translate, unreachable

if TYPE_CHECKING:
    import aiohttp

log = logging.getLogger("pyfusekit.httpfs")

T = TypeVar("T")

Report = Callable[[HttpError, str], None]
"""Is told of each request that failed for good: the error, and what was wanted."""
SAFE = frozenset({"GET", "HEAD", "OPTIONS", "PROPFIND", "REPORT", "SEARCH"})
"""Methods that change nothing: any redirect is followed."""
REPEATABLE = SAFE | {"PUT"}
"""Methods that may be sent again when nobody knows whether they arrived (RFC 9110, section 9.2.2).

NOTE: DELETE is idempotent there, but the second one's 404 would be taken for a failure of the first.
"""
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_DRAINED = 64 << 10
"""Bytes of a redirect's or refusal's body that are read so that its connection can be used again."""
_DRAIN_SECONDS = 1.0
_SMALL = 64 << 10
"""Bytes of a body that are handed to the connection at once."""


class Answer(NamedTuple):
    """A whole answer."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case; several of one name are joined with ", "."""
    url: str
    """Where redirects ended."""
    body: bytes
    reason: str = ""
    method: str = ""
    tries: int = 1
    """How often the request was sent: a condition refused at the first attempt was refused for somebody else's change."""


class Stream:
    """An answer whose body is being read."""

    __slots__ = ("_read", "_what", "headers", "method", "reason", "status", "url")

    def __init__(self, response: aiohttp.ClientResponse, url: str) -> None:
        self.status = response.status
        self.reason = response.reason or ""
        self.headers = lower(response.headers)
        """Names in lower case; several of one name are joined with ", "."""
        self.url = url
        """Where redirects ended."""
        self.method = response.method
        self._read = response.content.readany
        self._what = f"{self.method} {shown(url)}"

    async def readany(self) -> bytes:
        """Return what has come, at least a byte; b"" at the end. HttpError when the connection breaks (retryable)."""
        try:
            return await self._read()
        except Exception as exc:
            raise translate(self._what, exc, self.url) from exc


class _Hop(NamedTuple):
    """One request on its way."""

    method: str
    url: str
    origin: Origin
    headers: dict[str, str]
    """Those of the caller."""
    body: bytes | None
    upload: Upload | None
    user: str
    """Authorization from the URL itself."""
    deadline: Deadline


class Web:
    """Makes requests. The status of what open() yields is not judged; judge() says what a refusing one stands for."""

    def __init__(self, options: HttpOptions, source: str, report: Report | None = None) -> None:
        self.options = options
        self.access = Access(options, source)
        self.source = self.access.source
        """The source's URL, without user and password."""
        self.attempts = Attempts(options.max_connections, options.deadline, report)
        self._proxies = Proxies(None, {})
        self._http: aiohttp.ClientSession | None = None
        self._contexts: dict[bool, ssl.SSLContext] = {}
        self._contexts_lock = asyncio.Lock()
        self._patient: aiohttp.ClientTimeout | None = None
        self._closed = False

    async def start(self) -> None:
        """Read what the options name; nothing is sent. MountError."""
        await asyncio.to_thread(self._load)
        import aiohttp

        options = self.options
        connect = _seconds(options.connect_timeout)
        self._patient = aiohttp.ClientTimeout(total=None, sock_connect=connect)
        jar = aiohttp.CookieJar(unsafe=True, quote_cookie=False)
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, limit_per_host=max(1, options.max_connections), keepalive_timeout=30),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=connect, sock_read=_seconds(options.idle_timeout)),
            cookie_jar=jar,
            auto_decompress=False,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            read_bufsize=1 << 20,
            # Signed URLs and single sign-on exceed the 8 KiB that are allowed otherwise.
            max_line_size=64 << 10,
            max_field_size=64 << 10,
        )
        # Who sends a write again must know that it was sent before; aiohttp would do it unseen, and has no option for it.
        self._http._retry_connection = False
        fill_jar(jar, self.access.cookies)

    def _load(self) -> None:
        self.access.load()
        self._proxies = Proxies(str(self.options.proxy) if self.options.proxy else None)
        if self.access.origin is not None and self.access.origin[0] == "https":
            own = bool(self.options.client_cert)
            self._contexts[own] = context(self.options, own=own)

    async def close(self) -> None:
        """End every request and connection; those that come later fail with ESHUTDOWN."""
        self._closed = True
        await self.access.close()
        if self._http is not None:
            await self._http.close()

    def same_origin(self, url: str) -> bool:
        """Return whether *url* is the source's: only there credentials are sent."""
        return self.access.owns(origin_of(url))

    async def run(self, what: str, url: str, size: int, attempt: Callable[[], Awaitable[T]]) -> T:
        """Return what *attempt* returns, run again while its HttpError is retryable, within the deadline for *size* bytes.

        Within another operation it is run once: that one's attempts and deadline count. Time spent waiting for a connection
        does not.
        """
        return await self.attempts.run(what, url, size, attempt)

    def judge(self, answer: Answer | Stream, what: str = "") -> HttpError:
        """Return what an answer that is no success stands for; *what* names the request, when that is not method and URL."""
        body = answer.body if isinstance(answer, Answer) else b""
        return refused(
            what or f"{answer.method} {shown(answer.url)}",
            answer.status,
            answer.reason,
            answer.headers,
            body,
            answer.url,
            self._hint(answer.status, answer.headers, answer.url),
        )

    def _hint(self, status: int, headers: Mapping[str, str], url: str) -> str:
        """Return what to do about a 401, when it is known better than by the status."""
        if status != 401:
            return ""
        there = origin_of(url)
        if there is not None and not self.access.owns(there):
            return f"credentials are for {shown(self.source)} only and were not sent there; mount a URL of {there[1]}"
        kinds = challenges(headers.get("www-authenticate", ""))
        if kinds and not {"basic", "bearer"} & {kind.lower() for kind in kinds}:
            return f"it wants {' or '.join(kinds)} authentication, which is not supported; ask for Basic, or for a token"
        if self.access.renewable:
            return "it refuses what the token command printed; run it by hand, or change --token-command"
        if self.access.identified:
            return "it refuses the user and password, or the token, that it got"
        return "; ".join(self.access.hints)

    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        upload: Upload | None = None,
        ok: Container[int] = range(200, 300),
        limit: int = 256 << 20,
    ) -> Answer:
        """Return the whole answer, of a status in *ok* and at most *limit* bytes; HttpError, EFBIG when it is larger.

        Sent again when that may help, within the deadline. A method that changes something (not PUT: set a condition) is not
        sent again when it may have arrived.
        """
        tries = 0
        name, plain = f"{method} {shown(url)}", split_user(method, url)[0]

        async def attempt() -> Answer:
            nonlocal tries
            tries += 1
            try:
                async with self._open(method, url, headers, body, upload) as stream:
                    judged = stream.status in ok
                    data = await _whole(stream, limit if judged else _DRAINED, strict=judged)
            except HttpError as error:
                if error.retryable and method not in REPEATABLE and not never_sent(error.__cause__):
                    error.retryable = False
                    error.strerror = f"{error.strerror}; nobody knows whether it was done"
                raise
            answer = Answer(stream.status, stream.headers, stream.url, data, stream.reason, method, tries)
            if judged:
                return answer
            failure = self.judge(answer, name if stream.url == plain else f"{name} -> {shown(stream.url)}")
            if method not in REPEATABLE and failure.status not in (429, 503):
                failure.retryable = False
            raise failure

        size = upload[0] if upload is not None else len(body or b"")
        return await self.run(method, url, size, attempt)

    def open(self, method: str, url: str, *, headers: Mapping[str, str] | None = None) -> AbstractAsyncContextManager[Stream]:
        """Send a request once and yield the answer, its body unread; HttpError when there is none.

        Redirects are followed, and a 401 is answered with a fresh token. A connection is held until the end.
        """
        return self._open(method, url, headers, None, None)

    @asynccontextmanager
    async def _open(
        self, method: str, url: str, headers: Mapping[str, str] | None, body: bytes | None, upload: Upload | None
    ) -> AsyncIterator[Stream]:
        what = f"{method} {shown(url)}"
        deadline = current() or Deadline(self.attempts.deadline(upload[0] if upload is not None else 0))
        sent = {name.lower(): value for name, value in headers.items()} if headers else {}
        there = url
        for _ in range(self.options.redirects + 1):
            plain, user = split_user(what, there)
            origin = origin_of(plain)
            if origin is None:
                raise HttpError(errno.EINVAL, f"{what}: {shown(plain)} is no URL of a web server", url=shown(plain))
            # A user in the source's own URL was taken by Access; one in a redirect or a listing is for that host alone.
            own = basic(user) if user is not None and not self.access.owns(origin) else ""
            hop = _Hop(method, plain, origin, sent, body, upload, own, deadline)
            async with self._answered(what, hop) as response:
                place = response.headers.get("Location", "")
                if not _followed(method, response.status) or not place:
                    yield Stream(response, plain)
                    return
                await _drain(response)
            there = absolute(plain, place)
            log.debug("%s: %d to %s", what, response.status, shown(there))
        why = f"{what}: redirected more than {self.options.redirects} times, the last time to {shown(there)}"
        raise HttpError(errno.ELOOP, f"{why}; the server sends in circles, or --redirects is too small", url=shown(url))

    @asynccontextmanager
    async def _answered(self, what: str, hop: _Hop) -> AsyncIterator[aiohttp.ClientResponse]:
        """Yield the answer of one host, a 401 answered with a fresh token; hold one of its slots meanwhile."""
        host = self.attempts.host(hop.origin)
        own = self.access.owns(hop.origin)
        async with host.slot(what, hop.url, hop.deadline):
            authorization = await self.access.authorization() if own else hop.user
            response = await self._send(what, hop, authorization)
            try:
                if response.status == 401 and own and self.access.renewable:
                    fresh = await self.access.authorization(authorization)
                    if fresh != authorization:
                        await _drain(response)
                        response.close()
                        response = await self._send(what, hop, fresh)
                if response.status in (429, 503):
                    host.busy(response.status, retry_after(lower(response.headers)))
                elif host.pacer.interval:
                    host.pacer.done()
                yield response
            finally:
                # At its end a body has given the connection back; whatever is left is not waited for.
                response.close()

    async def _send(self, what: str, hop: _Hop, authorization: str) -> aiohttp.ClientResponse:
        if self._http is None or self._closed:
            raise _ended(what, hop.url)
        try:
            place = wire(hop.url)
        except ValueError:
            raise HttpError(errno.EINVAL, f"{what}: this is no URL that can be asked for", url=shown(hop.url)) from None
        own = self.access.owns(hop.origin)
        sent = {"user-agent": "pyfusekit", "accept": "*/*"}
        if own:
            sent |= self.access.headers
        sent |= hop.headers
        sent["accept-encoding"] = "identity"
        if authorization:
            sent["authorization"] = authorization
        proxy = self._proxies.find(hop.origin)
        secure = hop.origin[0] == "https"
        extra: dict[str, Any] = {}
        if proxy is not None:
            extra["proxy"] = proxy.url
            if proxy.authorization and secure:
                extra["proxy_headers"] = {"Proxy-Authorization": proxy.authorization}
            elif proxy.authorization:
                sent["proxy-authorization"] = proxy.authorization
        if secure:
            extra["ssl"] = await self._context(own)
        data: Any = hop.body
        upload = of_bytes(hop.body) if hop.body is not None and len(hop.body) > _SMALL else hop.upload
        if upload is not None:
            sent["content-length"] = str(upload[0])
            data = payload_class()(upload, _seconds(self.options.idle_timeout))
        if hop.method not in SAFE:
            # Who stores or moves a large thing answers when it is done: the deadline is the limit.
            extra["timeout"] = self._patient
        try:
            # Reading has a limit of its own, connecting too; but a name service and a proxy's handshake have none.
            async with asyncio.timeout(min(max(hop.deadline.left(), 0.0), 1e6)):
                return await self._http.request(hop.method, place, headers=sent, data=data, allow_redirects=False, **extra)
        except Exception as exc:
            if self._closed:
                raise _ended(what, hop.url) from exc
            if upload is not None and data.failure is not None:
                raise unreadable(what, hop.url, data.failure) from data.failure
            raise translate(what, exc, hop.url) from exc

    async def _context(self, own: bool) -> ssl.SSLContext:
        own = own and bool(self.options.client_cert)
        made = self._contexts.get(own)
        if made is None:
            async with self._contexts_lock:
                made = self._contexts.get(own)
                if made is None:
                    made = self._contexts[own] = await asyncio.to_thread(context, self.options, own=own)
        return made


def _ended(what: str, url: str) -> HttpError:
    return HttpError(errno.ESHUTDOWN, f"{what}: the mount is being ended", url=shown(url))


def unreadable(what: str, url: str, failure: Exception) -> HttpError:
    """Return the error of a body that could not be read here: the server has not got it, and is not to blame."""
    number = failure.errno if isinstance(failure, OSError) and failure.errno else errno.EIO
    why = failure.strerror if isinstance(failure, OSError) and failure.strerror else str(failure)
    return HttpError(number, f"{what}: what is to be sent cannot be read: {why}", url=shown(url))


def _seconds(duration: float) -> float | None:
    """Return a time limit as aiohttp takes it: infinite is none."""
    return float(duration) if 0 < duration < float("inf") else None


def _followed(method: str, status: int) -> bool:
    """Return whether a redirect is followed.

    One that keeps the method always is. 303 names another resource: only who reads goes there. Who writes and is sent
    elsewhere by 301 or 302 meets a login page more often than a moved directory: taking its 200 for success would lose data.
    """
    if status not in _REDIRECTS:
        return False
    return status in (307, 308) or (status == 303 and method in ("GET", "HEAD")) or (status in (301, 302) and method in SAFE)


def lower(headers: Mapping[str, str]) -> dict[str, str]:
    """Return *headers* with names in lower case; several of one name are joined (RFC 9110, section 5.3)."""
    found: dict[str, str] = {}
    for name, value in headers.items():
        name = name.lower()
        found[name] = f"{found[name]}, {value}" if name in found else value
    return found


def split_user(what: str, url: str) -> tuple[str, User | None]:
    """Return *url* without user and password, and these; HttpError EINVAL when it is no URL."""
    try:
        return without_user(url)
    except ValueError:
        raise HttpError(errno.EINVAL, f"{what}: what it leads to is no URL") from None


async def _whole(stream: Stream, limit: int, *, strict: bool) -> bytes:
    """Return the body; EFBIG when it is longer than *limit*, or what was read by then unless *strict*."""
    if stream.method == "HEAD":
        return b""
    pieces: list[bytes] = []
    size = 0
    declared = stream.headers.get("content-length", "")
    too_long = declared.isdigit() and int(declared[:19]) > limit
    while not (too_long and strict):
        piece = await stream.readany()
        if not piece:
            return b"".join(pieces)
        pieces.append(piece)
        size += len(piece)
        if size > limit:
            if not strict:
                return b"".join(pieces)
            too_long = True
    why = f"{stream.method} {shown(stream.url)}: the answer is larger than {limit} bytes"
    raise HttpError(errno.EFBIG, why, url=shown(stream.url), status=stream.status)


async def _drain(response: aiohttp.ClientResponse) -> None:
    """Read the rest of a small body, so that its connection can be used again."""
    if (response.content_length or 0) > _DRAINED:
        return
    try:
        async with asyncio.timeout(_DRAIN_SECONDS):
            size = 0
            while size <= _DRAINED:
                piece = await response.content.readany()
                if not piece:
                    return
                size += len(piece)
    except Exception as exc:
        log.debug("the rest of an answer: %s", type(exc).__name__)


__all__ = ["REPEATABLE", "SAFE", "Answer", "Report", "Stream", "Upload", "Web", "unreachable"]
