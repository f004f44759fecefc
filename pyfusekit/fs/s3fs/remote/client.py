"""aiobotocore: who we are, where the bucket is, and every request the thin path does not make.

It brings the chain of credentials (environment, profiles, SSO, roles, their renewal), endpoints and regions. Retries and
deadlines are ours (calls.py): botocore's end where a body begins.
"""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from ..options import S3Options
from .sigv4 import Clock, Keys, Signer, encode_query
from .store import Body
from .thin import Target

log = logging.getLogger("pyfusekit.s3fs")

_CHUNK = 1 << 20
_SIGNED = re.compile(r"AWS4-HMAC-SHA256 Credential=[^/]+/\d{8}/([^/]+)/s3/aws4_request,")


class _Seen(Exception):
    """Stops a request before it is sent: only its address was wanted."""

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        super().__init__(url)
        self.url = url
        self.headers = headers


class Client:
    """An aiobotocore client; its calls are made by ``call`` under S3's own names."""

    def __init__(self, options: S3Options, clock: Clock, session: Any = None, region: str = "") -> None:
        self.options = options
        self.clock = clock
        self.session = session
        self.region = region or options.region
        self.endpoint = str(options.endpoint_url or "")
        self._client: Any = None
        self._exit = AsyncExitStack()

    async def start(self) -> None:
        """Make the client; nothing is sent. ValueError or a BotoCoreError when the options make none."""
        options = self.options
        self.open_session()
        client = self.session.create_client(
            "s3",
            region_name=self.region or None,
            endpoint_url=str(options.endpoint_url) if options.endpoint_url else None,
            config=self._config(),
        )
        self._client = await self._exit.enter_async_context(client)
        self.endpoint = str(self._client.meta.endpoint_url)
        self._client.meta.events.register_last("before-send.s3", self._date)
        # To find a bucket's region botocore asks HeadBucket, and when that is redirected to nowhere asks it again, for ever.
        self._client.meta.events.register_last("before-call.s3.HeadBucket", _not_redirected)
        # A body waits for "100 Continue" without a time limit in aiohttp, and is lost on some servers.
        for operation in ("PutObject", "UploadPart"):
            self._client.meta.events.register_last(f"before-send.s3.{operation}", _without_expect)

    async def _date(self, request: Any, **_: Any) -> None:
        """Sign a request anew with the store's time, when ours is known to be wrong: botocore has no other."""
        found = _SIGNED.match(_text(request.headers.get("Authorization", "")))
        if not self.clock.offset or found is None:
            return
        url = urlsplit(request.url)
        kept = {name.lower(): _text(value) for name, value in request.headers.items()}
        headers = {name: value for name, value in kept.items() if name.startswith("x-amz-") or name == "content-type"}
        query = encode_query(parse_qsl(url.query, keep_blank_values=True))
        signer = Signer(url.netloc.removesuffix(":443" if url.scheme == "https" else ":80"), found[1], self.clock)
        signer.sign(await self.keys(), request.method, url.path, query, headers, kept["x-amz-content-sha256"])
        for name in ("x-amz-date", "authorization"):
            del request.headers[name]
            request.headers[name] = headers[name]

    def open_session(self) -> None:
        """Make what finds the credentials."""
        from aiobotocore.session import AioSession

        if self.session is None:
            self.session = AioSession(profile=self.options.profile or None)

    def _config(self) -> Any:
        """Return the client's configuration.

        One attempt each: Calls retries. Checksums only where S3 demands them: other servers refuse the new ones, or send the
        whole object's with a range. No time limit between two bytes that is shorter than a big copy takes: Calls has one.
        """
        from aiobotocore.config import AioConfig
        from botocore import UNSIGNED

        options = self.options
        timeout = min(options.deadline, 3600.0)
        settings: dict[str, Any] = {
            "connect_timeout": timeout / 3,
            "read_timeout": 3600.0,
            "max_pool_connections": max(1, options.max_connections),
            "retries": {"mode": "standard", "total_max_attempts": 1},
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
            "s3": {"addressing_style": options.addressing},
        }
        if options.anonymous:
            settings["signature_version"] = UNSIGNED
        return AioConfig(**settings)

    async def close(self) -> None:
        """Close the client and its connections."""
        self._client = None
        await self._exit.aclose()

    async def who(self) -> str:
        """Return which credentials sign the requests, in words: the key's id and where it was found."""
        if self.options.anonymous:
            return "nobody (anonymous)"
        credentials = await self.session.get_credentials()
        if credentials is None:
            return "nobody (no credentials)"
        frozen = await credentials.get_frozen_credentials()
        return f"key {frozen.access_key} from {credentials.method}"

    async def keys(self) -> Keys:
        """Return the keys of this moment: botocore renews them when they are about to expire."""
        from botocore.exceptions import NoCredentialsError

        credentials = await self.session.get_credentials()
        if credentials is None:
            raise NoCredentialsError
        frozen = await credentials.get_frozen_credentials()
        return Keys(frozen.access_key, frozen.secret_key, frozen.token or "")

    async def target(self, bucket: str) -> Target | None:
        """Return where and with which region the keys of *bucket* are asked for; None when it takes more than Thin knows.

        Found by letting aiobotocore make a request that is stopped before it is sent: so endpoints, access points, FIPS,
        dual stack and addressing are botocore's to know. Raises what a request raises (no credentials, no name of a bucket).
        """
        from botocore.utils import get_environ_proxies

        if bucket.endswith("--x-s3"):
            # A directory bucket: its requests are signed with the keys of a session that has to be made first.
            return None
        try:
            self._client.meta.events.register_last("before-send.s3.HeadObject", _stop, unique_id="pyfusekit")
            await self._client.head_object(Bucket=bucket, Key="k")
        except _Seen as seen:
            url, headers = urlsplit(seen.url), seen.headers
        else:
            return None
        finally:
            self._client.meta.events.unregister("before-send.s3.HeadObject", _stop, unique_id="pyfusekit")
        signed = _SIGNED.match(_text(headers.get("Authorization", "")))
        if (
            not url.path.endswith("/k")
            or url.query
            or url.scheme in get_environ_proxies(url.geturl())
            or "x-amz-s3session-token" in {name.lower() for name in headers}
            or (signed is None) != self.options.anonymous
        ):
            return None
        authority = url.netloc.removesuffix(":443" if url.scheme == "https" else ":80")
        return Target(url.scheme, authority, url.path.removesuffix("/k"), signed[1] if signed else "")

    def trust(self) -> str | None:
        """Return the file with the certificates that are trusted."""
        from botocore.httpsession import get_cert_path

        chosen = self.session.get_config_variable("ca_bundle")
        return str(chosen) if chosen else str(get_cert_path(True))

    async def call(self, operation: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer to one request; *operation* is aiobotocore's name, head_object. Raises what botocore raises."""
        answer: dict[str, Any] = await getattr(self._client, operation)(**parameters)
        return answer

    async def fetch(
        self, parameters: Mapping[str, Any], check: Callable[[Mapping[str, str]], None], take: Callable[[bytes], None]
    ) -> None:
        """GetObject: hand the body to *take* in pieces, when *check* raises nothing about the headers."""
        answer = await self._client.get_object(**parameters)
        async with answer["Body"] as body:
            check(headers_of(answer))
            while piece := await body.read(_CHUNK):
                take(piece)


def headers_of(answer: Mapping[str, Any]) -> Mapping[str, str]:
    """Return the headers of an answer, names in lower case."""
    headers: Mapping[str, str] = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    return headers


def _stop(request: Any, **_: Any) -> None:
    raise _Seen(request.url, request.headers)


def _not_redirected(context: dict[str, Any], **_: Any) -> None:
    context.setdefault("s3_redirect", {})["redirected"] = True


def _without_expect(request: Any, **_: Any) -> None:
    del request.headers["Expect"]


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


class BodyFile(io.RawIOBase):
    """A Body as the seekable file that botocore wants; seeking back begins again."""

    def __init__(self, body: Body) -> None:
        self._body = body
        self._pieces: Iterator[bytes] = iter(())
        self._rest = b""
        self._position = 0
        self._at = -1
        """Where reading goes on; -1 begins anew."""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._body.size}[whence] + offset
        return self._position

    def readall(self) -> bytes:
        return self.read(-1)

    def read(self, size: int | None = -1) -> bytes:
        if self._at != self._position:
            self._pieces, self._rest, self._at = self._body.pieces(), b"", 0
            while self._at < self._position and self._more():
                skipped = min(len(self._rest), self._position - self._at)
                self._rest = self._rest[skipped:]
                self._at += skipped
        wanted = self._body.size - self._position if size is None or size < 0 else size
        parts = []
        while wanted > 0 and self._more():
            parts.append(self._rest[:wanted])
            self._rest = self._rest[len(parts[-1]) :]
            wanted -= len(parts[-1])
            self._at += len(parts[-1])
        self._position = self._at
        return b"".join(parts)

    def _more(self) -> bool:
        """Return whether there are bytes at hand."""
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return False
            self._rest = piece
        return True


__all__ = ["BodyFile", "Client", "headers_of"]
