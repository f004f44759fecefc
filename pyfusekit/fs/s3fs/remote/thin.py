"""The thin path to the store: requests signed by hand and sent over connections of our own, large bodies by aiohttp.

aiobotocore spends 0.8 to 1.4 ms of CPU on a request and 65 ms on a page of a listing, this 0.08 and 4. It knows one bucket at
one address, signed with AWS4-HMAC-SHA256 or not at all; whatever else the store wants raises Odd, and the same request then
goes through aiobotocore.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import hashlib
import logging
import ssl
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from . import xmlpages
from .errors import StoreError, reason_of, refused
from .exchange import Connections, Reply, Sink, Unreachable
from .sigv4 import EMPTY, UNSIGNED, Keys, Signer, encode_path
from .store import Body

if TYPE_CHECKING:
    import aiohttp

log = logging.getLogger("pyfusekit.s3fs")

HASHED = 64 << 10
"""Bytes of a body up to which it is signed over plain http: nothing else guards it there."""
SKEW = 240.0
"""Seconds between our clock and the store's behind which a 403 is taken for the clock's fault; S3 allows 900."""
_ERROR_BYTES = 64 << 10
_BODILESS = ("GET", "HEAD")
_ALWAYS = 4
"""Lines that end every head."""
_REGIONAL = frozenset({"AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "PermanentRedirect"})
_PAYLOAD = frozenset(
    {
        "InvalidArgument",
        "InvalidRequest",
        "NotImplemented",
        "SignatureDoesNotMatch",
        "XAmzContentSHA256Mismatch",
        "AccessDenied",
    }
)
"""What servers say that want the hash of a body."""


class Target(NamedTuple):
    """Where the keys of a bucket are."""

    scheme: str
    authority: str
    """Host and port, as the Host header says them."""
    path: str
    """What stands before a key's slash: empty, or "/bucket"."""
    region: str
    """Of the signature; empty when nothing is signed."""


class Odd(Exception):
    """An answer that only aiobotocore understands; *error* is what it is when aiobotocore does not either."""

    def __init__(self, error: StoreError, region: str, lasting: bool) -> None:
        super().__init__(error.strerror)
        self.error = error
        self.region = region
        """Where the bucket is, if the store said so."""
        self.lasting = lasting
        """The next request would be answered in the same way."""


class Answer(NamedTuple):
    """A whole answer."""

    headers: Mapping[str, str]
    """A large body's: names in any case; others': in lower case."""
    body: bytes


class Thin:
    """Sends requests for the keys of one bucket."""

    def __init__(
        self,
        target: Target,
        signer: Signer,
        keys: Callable[[], Awaitable[Keys]],
        http: aiohttp.ClientSession,
        connections: Connections,
        stall: float | None = None,
    ) -> None:
        """Make one; *http* takes large bodies, *connections* all else.

        *stall* is the seconds a request waits for the next bytes to go out or come in.
        """
        from aiohttp import ClientTimeout
        from yarl import URL

        self.target = target
        self.signer = signer
        self._keys = keys
        self._http = http
        self._connections = connections
        self._stall = stall
        connect = http.timeout.sock_connect
        self._eager = ClientTimeout(total=None, sock_connect=connect, sock_read=stall)
        self._patient = ClientTimeout(total=None, sock_connect=connect)
        self._url = URL
        self._base = f"{target.scheme}://{target.authority}"
        self._secure = target.scheme == "https"
        self._always = f"host: {target.authority}\r\naccept-encoding: identity\r\nuser-agent: pyfusekit\r\n\r\n"
        """The last lines of a head."""
        self._unsigned: bool | None = None
        """Whether the store takes bodies it cannot verify over plain http; None until it was tried."""

    async def send(
        self,
        what: str,
        method: str,
        key: str | None,
        query: str,
        headers: dict[str, str],
        body: Body | None = None,
        *,
        patient: bool = False,
    ) -> Answer:
        """Return the answer to a request about *key*, or about the bucket; StoreError, Odd, OSError, or what aiohttp raises.

        *what* names it in errors. *headers*, names in lower case, are not changed; *query* is encoded and sorted. *patient*
        gives the store all the time it wants before the first byte: it is copying. An <Error> under the status 200 is an error.
        """
        reply = await self._answered(what, method, key, query, headers, body, patient)
        data = reply.body
        if data[:5] in (b"<?xml", b"<Erro") and xmlpages.said(data[:_ERROR_BYTES]) is not None:
            raise self._refused(what, method, 200, reply.headers, data)
        return Answer(reply.headers, data)

    async def fetch(
        self,
        what: str,
        key: str,
        query: str,
        headers: dict[str, str],
        check: Callable[[Mapping[str, str]], None],
        take: Callable[[bytes], None],
    ) -> None:
        """Hand an object's body to *take* in pieces as they arrive, when *check* raises nothing about the headers.

        Both are called where the loop receives: what they raise ends the request and is raised here.
        """
        await self._answered(what, "GET", key, query, headers, sink=Sink(check, take))

    async def _answered(
        self,
        what: str,
        method: str,
        key: str | None,
        query: str,
        headers: dict[str, str],
        body: Body | None = None,
        patient: bool = False,
        sink: Sink | None = None,
    ) -> Reply:
        """Return the answer of a request that succeeded; one whose body is wanted with its hash is sent a second time."""
        try:
            reply = await self._request(method, key, query, headers, body, self._unsigned is not False, patient, sink)
            if reply.status < 300:
                return reply
            error = self._refused(what, method, reply.status, reply.headers, reply.body)
            if not self._wants_hash(error, body):
                raise error
            reply = await self._request(method, key, query, headers, body, False, patient, sink)
        except Unreachable as exc:
            cause = exc.__cause__ or exc
            # A certificate that is not trusted will not be in a moment.
            lasting = isinstance(cause, ssl.SSLError)
            raise StoreError(errno.EHOSTDOWN, f"{what}: {reason_of(cause)}", retryable=not lasting) from cause
        if reply.status >= 300:
            raise error
        self._unsigned = False
        return reply

    def _wants_hash(self, error: Exception, body: Body | None) -> bool:
        """Return whether a refusal may be one of a body without its hash, which has not been taken yet."""
        return (
            isinstance(error, StoreError)
            and error.code in _PAYLOAD
            and self._unsigned is None
            and body is not None
            and body.size > HASHED
            and not self._secure
        )

    async def _request(
        self,
        method: str,
        key: str | None,
        query: str,
        headers: dict[str, str],
        body: Body | None,
        unsigned: bool,
        patient: bool,
        sink: Sink | None,
    ) -> Reply:
        target = self.target
        path = target.path if key is None else f"{target.path}/{encode_path(key)}"
        sent = dict(headers)
        data: bytes = b""
        payload = EMPTY
        if body is not None:
            sent["content-length"] = str(body.size)
            if body.size <= HASHED:
                data = b"".join(body.pieces())
                payload = UNSIGNED if self._secure else hashlib.sha256(data).hexdigest()
            else:
                payload = UNSIGNED if self._secure or unsigned else await asyncio.to_thread(_sha256, body)
        elif method not in _BODILESS:
            # RFC 9110 section 8.6; some servers insist on it.
            sent["content-length"] = "0"
        if target.region:
            self.signer.sign(await self._keys(), method, path or "/", query, sent, payload)
        place = f"{path or '/'}?{query}" if query else path or "/"
        if body is not None and body.size > HASHED:
            reply = await self._upload(method, place, sent, body, patient)
            if unsigned and reply.status < 300:
                self._unsigned = True
            return reply
        lines = [f"{method} {place} HTTP/1.1\r\n", *[f"{name}: {value}\r\n" for name, value in sent.items()], self._always]
        head = "".join(lines).encode()
        if head.count(b"\n") != len(lines) + _ALWAYS - 1:
            raise ValueError("a header of two lines")
        return await self._connections.ask(
            head + data,
            bodiless=method == "HEAD",
            sink=sink,
            stall=None if patient else self._stall,
            again=method in _BODILESS,
        )

    async def _upload(self, method: str, place: str, sent: dict[str, str], body: Body, patient: bool) -> Reply:
        """Send a large body: aiohttp writes no faster than the store reads."""
        sent["host"] = self.target.authority
        sent["accept-encoding"] = "identity"
        limits = self._patient if patient else self._eager
        url = self._url(f"{self._base}{place}", encoded=True)
        data = payload_class()(body, self._stall)
        async with await self._http.request(
            method, url, headers=sent, data=data, allow_redirects=False, timeout=limits
        ) as response:
            said = await (response.read() if response.status < 300 else response.content.read(_ERROR_BYTES))
            return Reply(response.status, response.headers, said)

    def _refused(self, what: str, method: str, status: int, headers: Mapping[str, str], data: bytes) -> StoreError | Odd:
        """Return what an answer that is no success stands for."""
        said = xmlpages.said(data) or xmlpages.Said("", "", "", "")
        code = said.code or {301: "PermanentRedirect", 307: "TemporaryRedirect"}.get(status, str(status))
        request_id = headers.get("x-amz-request-id", "") or said.request_id
        error = refused(what, status, code, said.message, request_id)
        region = headers.get("x-amz-bucket-region", "") or said.region
        moved = bool(region) and region != self.target.region
        # A HEAD's refusal has no body: the header is all that says so.
        if 300 <= status < 400 or code in _REGIONAL or (method == "HEAD" and status == 400 and moved):
            return Odd(error, region if moved else "", status != 307)
        if status == 403 and self.target.region and self._skewed(headers.get("date", "")):
            error.retryable = True
        return error

    def _skewed(self, date: str) -> bool:
        """Correct our clock by the store's; return whether it was far off."""
        clock = self.signer.clock
        theirs, ours = xmlpages.http_ns(date) / 1e9, clock.now()
        if not theirs or abs(theirs - ours - clock.offset) < SKEW:
            return False
        clock.offset = theirs - ours
        log.warning("this machine's clock differs from the store's by %.0f s; requests are signed with theirs", ours - theirs)
        return True


def _sha256(body: Body) -> str:
    digest = hashlib.sha256()
    for piece in body.pieces():
        digest.update(piece)
    return digest.hexdigest()


@functools.cache
def payload_class() -> Any:
    """Return aiohttp's payload for a Body: unlike a generator it can be sent again when a kept connection was dead."""
    from aiohttp import payload

    class BodyPayload(payload.Payload):
        def __init__(self, body: Body, stall: float | None) -> None:
            super().__init__(body)
            self._size = body.size
            self._stall = stall

        def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
            raise TypeError("a body is no text")

        async def write(self, writer: Any) -> None:
            # aiohttp's own time limit begins when all is written: a store that stops reading would be waited for.
            for piece in self._value.pieces():
                async with asyncio.timeout(self._stall):
                    await writer.write(piece)

        async def write_with_length(self, writer: Any, content_length: int | None) -> None:
            await self.write(writer)

    return BodyPayload


__all__ = ["HASHED", "Answer", "Odd", "Target", "Thin", "payload_class"]
