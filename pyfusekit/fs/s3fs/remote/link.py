"""The way to a bucket: the thin path while it serves, aiobotocore otherwise, renewed when the store says that it must be.

The bucket may turn out to be in another region, and the credentials may be replaced while it is mounted (``aws sso login``, an
edited file): both make another client, once the store refused the old one.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, TypeVar

from ..options import S3Options
from .client import Client
from .errors import RENEWABLE, StoreError, translate
from .exchange import Connections
from .sigv4 import Clock, Signer
from .thin import Odd, Target, Thin

if TYPE_CHECKING:
    import ssl

    import aiohttp

log = logging.getLogger("pyfusekit.s3fs")

T = TypeVar("T")

RENEWALS = 5.0
"""Seconds between two looks for other credentials: each may start a program or ask a service."""


class Link:
    """The ways to one bucket. Links of one mount share credentials and connections: *parent* is the first of them."""

    def __init__(self, bucket: str, options: S3Options, parent: Link | None = None) -> None:
        self.bucket = bucket
        self.options = options
        self._clock: Clock = parent._clock if parent is not None else Clock()
        self.client = Client(options, self._clock)
        self.use_thin = True
        """False once the thin path met what it does not know."""
        self._parent = parent
        self._thin: Thin | None = None
        self._http: aiohttp.ClientSession | None = None
        self._servers: dict[tuple[str, str], Connections] = {}
        """Those of all links, by scheme and authority."""
        self._trusted: ssl.SSLContext | None = None
        self._clients: dict[tuple[Any, str], Client] = {}
        """Those of all links, by session and region."""
        self._renewed = float("-inf")
        self._closed = False
        self._lock = asyncio.Lock()
        self._exit = AsyncExitStack()

    async def start(self) -> None:
        """Make the client; nothing is sent. ValueError or a BotoCoreError when the options make none."""
        # A client is no bucket's: it is a region's.
        self.client = await self._open(None, "") if self._parent is None else self._parent.client

    async def close(self) -> None:
        """End every request and connection; those that come later fail."""
        self._closed = True
        self._thin = None
        await self._exit.aclose()

    async def _open(self, session: Any, region: str) -> Client:
        if self._parent is not None:
            return await self._parent._open(session, region)
        client = self._clients.get((session, region))
        if client is None:
            client = Client(self.options, self._clock, session, region)
            self._exit.push_async_callback(client.close)
            await client.start()
            self._clients[client.session, region] = client
        return client

    async def either(self, what: str, thin_call: Callable[[Thin], Awaitable[T]], call: Callable[[Client], Awaitable[T]]) -> T:
        """Return what *thin_call* returns, or *call* when that is not to be had.

        A failure that a renewal mended is raised as one to be tried again.
        """
        client = self.client
        try:
            self._check_open(what)
            thin = await self._ready() if self.use_thin else None
            if thin is not None:
                try:
                    return await thin_call(thin)
                except Odd as odd:
                    await self._unexpected(odd)
            return await call(client)
        except Exception as exc:
            error = await self._failed(what, exc, client)
            raise error from (exc if error is not exc else exc.__cause__)

    async def through_client(self, what: str, call: Callable[[Client], Awaitable[T]]) -> T:
        """Return what *call* returns: a request the thin path does not know."""
        client = self.client
        try:
            self._check_open(what)
            return await call(client)
        except Exception as exc:
            error = await self._failed(what, exc, client)
            raise error from (exc if error is not exc else exc.__cause__)

    def _check_open(self, what: str) -> None:
        if self._closed:
            raise StoreError(errno.ESHUTDOWN, f"{what}: the store is closed")

    async def _failed(self, what: str, exc: Exception, client: Client) -> StoreError:
        """Return what a failure is, to be tried again when other credentials were found."""
        error = translate(what, exc)
        if error.code in RENEWABLE and await self._renew(client):
            error.retryable = True
        return error

    async def _ready(self) -> Thin | None:
        """Return the thin path, made when it is first asked for: that is when credentials are looked for."""
        if self._thin is not None:
            return self._thin
        async with self._lock:
            if self._thin is None and self.use_thin:
                client = self.client
                target = await client.target(self.bucket)
                if target is None:
                    self.use_thin = False
                    log.info("bucket %r: every request goes through aiobotocore", self.bucket)
                    return None
                signer = Signer(target.authority, target.region, self._clock)
                stall = min(self.options.deadline, 3600.0) / 2
                http, connections = await self._pool(client), self._connections_to(target, client)
                self._thin = Thin(target, signer, client.keys, http, connections, stall)
            return self._thin

    async def _pool(self, client: Client) -> aiohttp.ClientSession:
        """Return the session of the thin path: without proxies, redirects, decompression, or cookies."""
        if self._parent is not None:
            return await self._parent._pool(client)
        if self._http is None:
            import aiohttp

            limit = max(1, self.options.max_connections)
            secure = client.endpoint.startswith("https:")
            context = self._context(client) if secure else True
            self._http = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=limit, keepalive_timeout=60, ssl=context),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._connect_s),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
                headers={"User-Agent": "pyfusekit"},
                read_bufsize=1 << 20,
            )
            # Who sends a write again must know that it was sent before; aiohttp would do it unseen, and has no option for it.
            self._http._retry_connection = False
            self._exit.push_async_callback(self._http.close)
        return self._http

    def _connections_to(self, target: Target, client: Client) -> Connections:
        """Return the connections of the thin path to one server: buckets may have servers of their own."""
        if self._parent is not None:
            return self._parent._connections_to(target, client)
        place = target.scheme, target.authority
        found = self._servers.get(place)
        if found is None:
            context = self._context(client) if target.scheme == "https" else None
            found = self._servers[place] = Connections(*place, context, self._connect_s)
            self._exit.push_async_callback(found.close)
        return found

    def _context(self, client: Client) -> ssl.SSLContext:
        """Return which certificates are trusted; made once: it takes 20 ms."""
        if self._trusted is None:
            import ssl

            self._trusted = ssl.create_default_context(cafile=client.trust())
        return self._trusted

    @property
    def _connect_s(self) -> float:
        return min(self.options.deadline, 3600.0) / 3

    async def _unexpected(self, odd: Odd) -> None:
        """Decide what an answer means that the thin path does not know: return to let aiobotocore try."""
        if odd.region and await self._move(odd.region):
            odd.error.retryable = True
            raise odd.error
        if odd.lasting:
            self.use_thin = False
            log.info("%s: every request goes through aiobotocore from now on", odd.error.strerror)

    async def _move(self, region: str) -> bool:
        """Ask in *region* from now on; return False when that is where was asked. Calls bounds how often it may change."""
        async with self._lock:
            if region == self.client.region:
                # Somebody else was told so too, a moment ago.
                return self._thin is None or self._thin.target.region == region
            log.info("bucket %r is in the region %s", self.bucket, region)
            self.client = await self._open(self.client.session, region)
            self._forget()
            return True

    async def _renew(self, refused: Client) -> bool:
        """Look for other credentials than those of *refused*; return whether there are any."""
        if self.options.anonymous:
            return False
        async with self._lock:
            if self.client is not refused:
                return True
            parent = self._parent
            if parent is not None:
                if parent.client.session is refused.session and not await parent._renew(parent.client):
                    return False
                self.client = await self._open(parent.client.session, refused.region)
            else:
                fresh = await self._other_keys(refused)
                if fresh is None:
                    return False
                self.client = fresh
            self._forget()
            return True

    async def _other_keys(self, refused: Client) -> Client | None:
        """Return a client with the credentials of this moment, unless they are those of *refused*."""
        if time.monotonic() - self._renewed < RENEWALS:
            return None
        self._renewed = time.monotonic()
        try:
            fresh = Client(self.options, self._clock, None, refused.region)
            fresh.open_session()
            if await fresh.keys() == await refused.keys():
                return None
            fresh = await self._open(fresh.session, refused.region)
        except Exception as exc:
            log.debug("no other credentials: %s", translate("renewal", exc).strerror)
            return None
        log.info("other credentials are used from now on")
        return fresh

    def _forget(self) -> None:
        """Make the thin path anew; requests under way end on the old one."""
        self._thin = None
        self.use_thin = True


__all__ = ["Link"]
